"""Proofs of small networks are accepted, what was changed in one is refused, and unfinished ones say what they show."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction
from functools import cache
from pathlib import Path

import pytest
import torch
from torch import nn

import lipbridge
from lipbridge import Ball, Budget, Problem, Question, Refusal, get_verifier
from lipbridge.activations.modules import Abs
from lipbridge.branch_and_bound.proof import prove
from lipbridge.checking.check import check
from lipbridge.checking.network import Network
from lipbridge.checking.proof import Bounded, Empty, Proof, Split, Step
from lipbridge.cli.app import run
from lipbridge.errors import ProofRefused, UnsupportedProblem
from lipbridge.files.proofs import load_proof, save_proof
from lipbridge.graph.graph import Graph
from lipbridge.problem.bound import Bound, Witness
from lipbridge.vocabulary import Norm
from tests.support.brute_force import KINDS, constants, tiny

NORMS: tuple[Norm, ...] = (1, 2, "inf")


def problem_of(seed: int, act: nn.Module, norm: Norm, ball: bool, width: int = 6) -> Problem:
    torch.manual_seed(seed)
    layers = nn.Linear(2, width), act, nn.Linear(width, width), act, nn.Linear(width, 2)
    graph = lipbridge.capture(nn.Sequential(*layers))
    region = Ball(torch.zeros(1, 2, dtype=torch.float64), 1.0, "inf")
    return Problem(graph, Question.on(region, norm) if ball else Question.everywhere(norm))


def solved(problem: Problem) -> Bound:
    task = get_verifier("exact").prepare(problem)
    assert not isinstance(task, Refusal), task
    return task.bound(Budget(seconds=30.0))


def proved(problem: Problem) -> tuple[Bound, Proof]:
    bound = solved(problem)
    return bound, prove(problem, bound.value, seconds=30.0, witness=bound.witness)


@cache
def example(ball: bool = True) -> Proof:
    return proved(problem_of(3, nn.ReLU(), "inf", ball, 4))[1]


@pytest.mark.parametrize("ball", [False, True])
@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("act", [nn.ReLU(), Abs()], ids=["relu", "abs"])
def test_a_finished_proof_is_accepted(act: nn.Module, norm: Norm, ball: bool, tmp_path: Path) -> None:
    problem = problem_of(1, act, norm, ball)
    bound, proof = proved(problem)
    assert proof.upper == bound.value
    found = check(load_proof(save_proof(proof, tmp_path / "proof.safetensors"), problem.graph))
    assert found.upper == bound.value
    assert found.lower == pytest.approx(bound.extra["lower"], rel=1e-12)
    assert found.lower >= found.upper * (1.0 - 1e-9)


def test_other_nodes_and_balls() -> None:
    torch.manual_seed(5)
    graph = lipbridge.capture(nn.Sequential(nn.Linear(2, 4), nn.Hardtanh(), nn.Linear(4, 2)))
    for norm in NORMS:
        region = Ball(torch.randn(2, 2, dtype=torch.float64), 0.7, norm)
        bound, proof = proved(Problem(graph, Question.on(region, 2)))
        assert check(proof).upper == bound.value


def test_an_unfinished_proof_shows_its_larger_bound() -> None:
    problem = example().problem
    proof = prove(problem, solved(problem).value, seconds=0.0)
    found = check(proof)
    assert found.leaves == 1
    assert found.upper == proof.upper > 1.01 * example().upper


def changed(kind: type[Step], change: Callable[[Step], Step]) -> tuple[int, Proof]:
    proof = example()
    place = next(i for i, step in enumerate(proof.steps) if isinstance(step, kind))
    steps = list(proof.steps)
    steps[place] = change(steps[place])
    return place, replace(proof, steps=tuple(steps))


def refused(proof: Proof, words: str) -> None:
    with pytest.raises(ProofRefused, match=words):
        check(proof)


def test_a_proof_without_its_last_leaf_is_refused() -> None:
    proof = example()
    refused(replace(proof, steps=proof.steps[:-1]), f"ends at step {len(proof.steps) - 1}")


def test_a_proof_with_a_leaf_too_many_is_refused() -> None:
    proof = example()
    refused(replace(proof, steps=(*proof.steps, Bounded(0.0))), "belong to no part")


def test_every_leaf_must_hold() -> None:
    proof = example()
    sharp = [i for i, s in enumerate(proof.steps) if isinstance(s, Bounded)]
    for place in sharp[:: max(1, len(sharp) // 3)]:
        steps = list(proof.steps)
        steps[place] = Bounded(0.0)
        refused(replace(proof, steps=tuple(steps)), f"step {place}, .* is not shown to")


def test_a_stated_bound_that_is_lower_is_refused() -> None:
    proof = example()
    refused(replace(proof, upper=proof.upper * 0.999), "its parts show")


def test_all_bounds_lowered_together_are_refused() -> None:
    proof = example()
    steps = tuple(Bounded(s.bound * 0.999) if isinstance(s, Bounded) else s for s in proof.steps)
    refused(replace(proof, steps=steps, upper=proof.upper * 0.999), "is not shown to")


@pytest.mark.parametrize("change", ["side", "weights", "rows", "negative"])
def test_a_changed_multiplier_is_refused(change: str) -> None:
    def other(step: Step) -> Step:
        assert isinstance(step, Empty)
        if change == "side":
            return replace(step, rows=tuple((unit, 1 - side) for unit, side in step.rows))
        if change == "rows":
            return Empty(step.rows[:-1], step.weights[:-1])
        weights = step.weights or (1.0,) * len(step.rows)
        return replace(step, weights=tuple(-w if change == "negative" else 0.0 for w in weights))

    place, proof = changed(Empty, other)
    refused(proof, f"step {place}, .* empty")


def test_a_full_part_that_is_said_to_be_empty_is_refused() -> None:
    place, proof = changed(Bounded, lambda _: Empty((), ()))
    refused(proof, f"step {place}, .* empty")


def test_a_split_at_no_kink_is_refused() -> None:
    place, proof = changed(Split, lambda step: Split(10**6, 0))
    refused(proof, f"step {place} splits unit")


def test_another_network_is_refused(tmp_path: Path) -> None:
    file = save_proof(example(), tmp_path / "proof.safetensors")
    other: Graph = problem_of(4, nn.ReLU(), "inf", True, 4).graph
    with pytest.raises(ProofRefused, match="another network"):
        load_proof(file, other)
    refused(replace(example(), problem=Problem(other, example().problem.question)), "step")


def test_a_witness_elsewhere_is_refused() -> None:
    proof = example()
    assert proof.witness is not None
    outside = Witness(proof.witness.points + 5.0, proof.witness.direction)
    refused(replace(proof, witness=outside), "outside")


def test_what_the_checker_does_not_know_is_refused_in_words() -> None:
    graph = lipbridge.capture(nn.Sequential(nn.Linear(2, 3), nn.Tanh(), nn.Linear(3, 2)))
    with pytest.raises(UnsupportedProblem, match="piecewise linear"):
        prove(Problem(graph, Question.everywhere(2)), 1.0, seconds=1.0)


def test_the_command_line_keeps_and_checks_a_proof(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.manual_seed(0)
    models = [nn.Sequential(nn.Linear(2, 4), nn.ReLU(), nn.Linear(4, 2)) for _ in range(2)]
    model, other = (lipbridge.save(m, tmp_path / f"{i}.safetensors") for i, m in enumerate(models))
    file = tmp_path / "proof.safetensors"
    asked = ["bound", str(model), "--verifier", "exact", "--norm", "1", "--keep-proof", str(file), "--json"]
    assert run(asked) == 0
    (row,) = json.loads(capsys.readouterr().out)
    assert run(["check", str(model), str(file), "--json"]) == 0
    (found,) = json.loads(capsys.readouterr().out)
    assert found["upper"] == row["value"]
    assert found["norm"] == "1"
    assert run(["check", str(other), str(file)]) == 2
    assert "another network" in capsys.readouterr().err
    assert run([*asked[:3], "trivial", *asked[4:]]) == 2
    assert "--keep-proof" in capsys.readouterr().err
    file.write_bytes(file.read_bytes()[:-8])
    assert run(["check", str(model), str(file)]) == 2
    assert "error:" in capsys.readouterr().err


@pytest.mark.parametrize("seed", range(len(KINDS)), ids=KINDS)
def test_it_is_what_all_patterns_give(seed: int) -> None:
    """On networks of every kind of node, everywhere."""
    graph = tiny(seed)
    for norm, expected in zip(NORMS, constants(graph, tuple((p, p) for p in NORMS)), strict=True):
        found = check(prove(Problem(graph, Question.everywhere(norm)), expected * (1.0 + 1e-9), seconds=20.0))
        assert expected * (1.0 - 1e-12) <= found.upper <= expected * (1.0 + 2e-9)


LAYERS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "strides, dilation and groups": (lambda: nn.Conv2d(4, 6, (2, 3), (1, 2), (1, 2), (2, 1), groups=2), (4, 5, 6)),
    "circular": (lambda: nn.Conv2d(2, 3, 3, padding=(1, 2), padding_mode="circular"), (2, 4, 4)),
    "reflect": (lambda: nn.Conv1d(2, 3, 3, padding=2, padding_mode="reflect", bias=False), (2, 5)),
    "replicate": (lambda: nn.Conv1d(2, 3, 3, padding=2, padding_mode="replicate"), (2, 5)),
    "average": (lambda: nn.AvgPool2d(2), (2, 4, 5)),
    "pool": (lambda: nn.MaxPool2d((3, 2), (2, 1), (1, 0)), (2, 5, 4)),
    "dilated pool": (lambda: nn.MaxPool1d(3, 1, dilation=2, ceil_mode=True), (1, 7)),
    "sorted channels": (lambda: lipbridge.GroupSort(4), (8, 3)),
    "all sorted": (lambda: lipbridge.GroupSort(5), (5,)),
    "scaled": (lambda: nn.Sequential(lipbridge.GroupSort(2), nn.LeakyReLU(0.25)), (4, 2)),
}


@pytest.mark.parametrize("name", LAYERS)
def test_the_checkers_layers_are_those_of_the_graph(name: str) -> None:
    torch.manual_seed(0)
    make, shape = LAYERS[name]
    graph = lipbridge.capture(nn.Sequential(make(), nn.Flatten()), shape)
    network = Network(graph)
    for _ in range(3):
        x = torch.randn(1, *shape, dtype=torch.float64)
        pieces, value = network.at([Fraction(float(entry)) for entry in x.flatten()])
        assert pieces is not None
        assert len(pieces) == len(network.units)
        torch.testing.assert_close(torch.tensor([float(v) for v in value], dtype=torch.float64)[None], graph(x))
        forms = network.forms(pieces, pieces)
        assert forms.known
        J = torch.func.jacrev(lambda z, graph=graph: graph(z[None])[0])(x[0]).flatten(1)
        torch.testing.assert_close(torch.tensor(forms.jacobian.astype(float)), J)


def test_weights_that_are_rounded_are_refused() -> None:
    graph = lipbridge.capture(nn.Sequential(nn.Conv1d(1, 2, 2), nn.BatchNorm1d(2), nn.Flatten()).eval(), (1, 3))
    with pytest.raises(UnsupportedProblem, match="rounded"):
        Network(graph)
