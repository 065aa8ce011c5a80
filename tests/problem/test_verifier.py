"""Options, tasks and refusals: what a verifier declares is what a user can set, and what it has computed is used."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

import lipbridge
from lipbridge import Ball, Budget, Problem, Question
from lipbridge.errors import InvalidArgument, LipbridgeError, UnknownName, UnsupportedProblem
from lipbridge.lipsdp.dense_problem import KEPT, DenseProblem, dense_problem
from lipbridge.verifiers import Option, Refusal, Task, Verifier, get_verifier, list_verifiers, read_options
from lipbridge.verifiers.registry import get_verifiers

INSTALLED = [info.name for info in list_verifiers() if info.installed]


def network(seed: int = 0) -> lipbridge.Graph:
    torch.manual_seed(seed)
    return lipbridge.capture(lipbridge.mlp([3, 6, 5, 2], "relu"))


@pytest.mark.parametrize("name", INSTALLED)
def test_every_verifier_declares_its_options(name: str) -> None:
    verifier = get_verifier(name)
    assert verifier.name == name
    names = [option.name for option in verifier.options]
    assert len(set(names)) == len(names)
    for option in verifier.options:
        assert option.help
        assert "\n" not in option.help
        assert option.default is None or option.read(option.default) == option.default
        with pytest.raises(InvalidArgument, match=option.name):
            option.read(object())
    with pytest.raises(UnknownName, match=rf"{names[0]}" if names else "none"):
        read_options(name, verifier.options, {"gapp": 3})


@pytest.mark.parametrize("name", INSTALLED)
def test_a_misspelt_option_is_refused_by_every_task(name: str) -> None:
    graph = network()
    ball = Ball(torch.zeros(1, 3), 0.1, 2)
    questions = [Question.everywhere(2), Question.everywhere("inf"), Question.on(ball, quantity="deviation")]
    questions.append(Question.on(Ball(torch.zeros(1, 3), 0.1, "inf")))
    tasks = [get_verifier(name).prepare(Problem(graph, question)) for question in questions]
    assert any(isinstance(task, Task) for task in tasks)
    for task in tasks:
        if isinstance(task, Task):
            with pytest.raises(UnknownName, match="gapp"):
                task.bound(Budget(seconds=5.0, options={"gapp": 3}))
        else:
            with pytest.raises(UnsupportedProblem, match=name):
                task.bound(Budget())
            with pytest.raises(UnsupportedProblem, match=name):
                task.certify(torch.zeros(1, 3), torch.zeros(1), 0.1, Budget())


def test_options_are_read_as_their_types() -> None:
    whole = Option(name="n", type=int, default=1, help="n", domain="be 1 or more", allows=lambda value: value >= 1)
    real = Option(name="x", type=float, default=0.5, help="x")
    assert (whole.read(3), real.read(3)) == (3, 3.0)
    assert isinstance(real.read(3), float)
    for option, wrong in ((whole, 1.5), (whole, True), (whole, 0), (real, "1"), (real, True), (real, 10**400)):
        with pytest.raises(InvalidArgument, match=f"`{option.name}`"):
            option.read(wrong)
    assert read_options("v", (whole, real), {"x": 2}) == {"n": 1, "x": 2.0}


def doubled(numbers) -> None:
    numbers *= 2.0


def test_verifiers_that_cannot_certify_say_so() -> None:
    for name in INSTALLED:
        verifier = get_verifier(name)
        if not verifier.certifies:
            for question in (Question.everywhere(2), Question.everywhere("inf")):
                task = verifier.prepare(Problem(network(), question))
                with pytest.raises(UnsupportedProblem):
                    task.certify(torch.zeros(1, 3), torch.zeros(1), 0.1, Budget())


@pytest.mark.parametrize(
    "change",
    [lambda weight: weight.mul_(2.0), lambda weight: weight.data.mul_(2.0), lambda weight: doubled(weight.numpy())],
    ids=["in place", "through data", "through numpy"],
)
def test_a_problem_is_read_once_until_its_weights_change(change) -> None:
    graph = network()
    problem = Problem(graph, Question.everywhere(2))
    first = dense_problem(problem)
    assert isinstance(first, DenseProblem)
    assert dense_problem(problem) is first
    tasks = [get_verifier(name).prepare(problem) for name in ("eclipse-fast", "lipsdp-fast")]
    assert all(task.dense is first for task in tasks)
    before = tasks[0].bound(Budget()).value
    change(graph.nodes[1].weight)
    again = dense_problem(problem)
    assert again is not first
    after = get_verifier("eclipse-fast").prepare(problem).bound(Budget()).value
    assert after == pytest.approx(2.0 * before)
    assert after >= lipbridge.search_lower_bound(problem, seconds=2.0).value


def test_the_inequalities_of_balls_are_kept_while_they_are_small(monkeypatch: pytest.MonkeyPatch) -> None:
    problem = Problem(network(), Question.on(Ball(torch.randn(4, 3), 0.1, 2)))
    dense = dense_problem(problem)
    assert isinstance(dense, DenseProblem)
    assert all(dense.of_ball(ball) is dense.of_ball(ball) for ball in range(4))
    monkeypatch.setattr("lipbridge.lipsdp.dense_problem.KEPT", 0)
    unkept = DenseProblem(problem)
    assert unkept.of_ball(0) is not unkept.of_ball(0)
    assert KEPT > 0


def test_names_are_looked_up_together() -> None:
    assert list(get_verifiers(["witness", "trivial"])) == ["witness", "trivial"]
    with pytest.raises(UnknownName, match="nonesuch"):
        get_verifiers(["trivial", "nonesuch"])


class Bare:
    """No subclass of Verifier, but all that one needs."""

    name, summary, norms, proved, options, by_default, certifies = "bare", "for tests", "2", False, (), True, False
    requires, install = (), ""

    def load(self) -> None:
        return None

    def prepare(self, problem: Problem) -> Task | Refusal:
        return Refusal(self.name, "it takes nothing")


def test_a_class_of_its_own_is_a_verifier_too() -> None:
    assert isinstance(Bare(), Verifier)
    with pytest.raises(UnsupportedProblem, match="takes nothing"):
        Bare().prepare(Problem(network(), Question.everywhere(2))).bound(Budget())


def test_the_trivial_bound_certifies_by_its_task() -> None:
    graph = network()
    x = torch.randn(20, 3, dtype=torch.float64)
    labels = graph(x).argmax(1)
    task = get_verifier("trivial").prepare(Problem(graph, Question.everywhere("inf")))
    found: Tensor = task.certify(x, labels, 1e-3, Budget())
    assert torch.equal(found, lipbridge.certified_radii(graph, x, labels, "inf") > 1e-3)
    assert bool(found.any())
    with pytest.raises(LipbridgeError):
        task.certify(x, labels + 9, 1e-3, Budget())
    assert math.isfinite(task.bound(Budget()).value)
