"""The families' truths, each by another way than its own: the exact verifier, brute force, float64 on samples."""

from __future__ import annotations

from fractions import Fraction

import pytest
import torch
from torch import Tensor

import lipbridge
from lipbridge.auditing.exactly import jacobian, length, moved, numbers, values
from lipbridge.auditing.families.polynomials import sawtooth, square
from lipbridge.auditing.instance import Instance, Prediction, PropertyInstance, breaks, made, obeys, proved_by
from lipbridge.auditing.registry import FAMILIES, instances, property_instances
from lipbridge.errors import InvalidArgument, UnknownName
from lipbridge.problem.property import Case, Property, Verdict
from lipbridge.problem.question import Ball, Question
from lipbridge.verifiers import Budget, Refusal, get_verifier
from lipbridge.verifiers.properties import counterexample
from lipbridge.vocabulary import Quantity, Side, exponent


def problems(family: str, seed: int = 0) -> list[Instance]:
    return [found for found in instances([family], seed) if isinstance(found, Instance)]


@pytest.mark.parametrize("family", FAMILIES)
def test_names_tell_instances_apart_and_seeds_repeat_them(family: str) -> None:
    found = instances([family])
    assert len({instance.name for instance in found}) == len(found) >= 5
    again = list(FAMILIES[family](0))
    for one, other in zip(found, again, strict=True):
        assert one.name == other.name
        if isinstance(one, Instance) and isinstance(other, Instance):
            assert (one.least, one.most) == (other.least, other.most)


@pytest.mark.parametrize("family", FAMILIES)
def test_other_seeds_have_a_truth_too(family: str) -> None:
    """Whatever is drawn: each instance is proved when it is made."""
    assert len(list(FAMILIES[family](3))) == len(instances([family]))


@pytest.mark.parametrize("family", FAMILIES)
def test_what_the_pair_proves_is_not_above_the_law(family: str) -> None:
    for found in problems(family):
        assert found.least > 0
        assert proved_by(found.problem, found.pair) == found.least
        if found.most is not None:
            assert found.least <= found.most
            slack = 1e-8 if family == "steep-slopes" else 1e-11
            assert found.most <= found.least * Fraction(1 + slack), found.name


@pytest.mark.parametrize("family", [name for name in FAMILIES if name not in ("planted", "subnormal-and-huge")])
def test_the_law_is_what_the_exact_verifier_says(family: str) -> None:
    """Global constants and those in balls, of networks of up to a dozen units."""
    verifier, asked = get_verifier("exact"), 0
    for found in problems(family):
        units = sum(node.shape[0] for node in found.problem.graph.nodes if "relu" in node.name or "abs" in node.name)
        if found.most is None or units > 12 or family == "cancelling-biases":
            continue
        task = verifier.prepare(found.problem)
        if isinstance(task, Refusal):
            continue
        bound = task.bound(Budget(seconds=5.0))
        if bound.side is Side.EXACT:
            asked += 1
            assert bound.value == pytest.approx(float(found.most), rel=2e-9), found.name
    smooth = family == "steep-slopes"
    assert asked >= (2 if smooth or family in ("all-patterns", "corners", "tied-logits") else 0)


@pytest.mark.parametrize("family", FAMILIES)
def test_no_sampled_pair_is_above_the_law(family: str) -> None:
    """Pairs at random, near the known one too: of none the quotient, in fractions, is above ``most``."""
    torch.manual_seed(0)
    for found in problems(family):
        problem, most = found.problem, found.most
        if most is None:
            continue
        region, shape = problem.region, problem.graph.input_shape
        for spread in (1e-3, 0.3, 3.0):
            x, y = found.pair[0] + spread * torch.randn(2, *shape, dtype=torch.float64)
            if region is not None:
                x, y = inside(x, region), inside(y, region)
                if problem.quantity is Quantity.DEVIATION:
                    x = region.centers[0]
            try:
                proved = proved_by(problem, torch.stack([x, y]))
            except InvalidArgument:  # rounding has put one outside
                continue
            assert proved <= most, found.name


def inside(x: Tensor, ball: Ball) -> Tensor:
    d = x - ball.centers[0]
    size = float(d.flatten().norm(exponent(ball.norm)))
    return ball.centers[0] + d * min(1.0, ball.radius * (1 - 1e-9) / size)


def test_squares_are_squares_at_dyadic_points_and_straight_between_them() -> None:
    for m in (1, 3, 5):
        k = torch.arange(2**m + 1, dtype=torch.float64) / 2**m
        assert torch.equal(square(m)(k[:, None])[:, 0], k**2)
        middle = (k[1:] + k[:-1]) / 2
        assert torch.equal(square(m)(middle[:, None])[:, 0], (k[1:] ** 2 + k[:-1] ** 2) / 2)
        outside = torch.tensor([[-3.0], [-0.25], [1.5], [7.0]], dtype=torch.float64)
        assert torch.equal(square(m)(outside), outside)
    teeth = torch.arange(2**4 + 1, dtype=torch.float64) / 2**4
    assert torch.equal(sawtooth(4)(teeth[:, None])[:, 0], torch.tensor([0.0, 1.0] * 8 + [0.0]).double())


def test_counterexamples_are_some_and_what_holds_is_not_broken_by_samples() -> None:
    torch.manual_seed(0)
    predictions = [found for found in instances() if isinstance(found, Prediction)]
    assert {found.holds for found in predictions} == {True, False}
    assert {found.norm for found in predictions} == {2, "inf"}
    for found in predictions:
        at_center = [near.value for near in values(found.graph, numbers(found.center))]
        assert at_center[found.label] == max(at_center)
        assert found.holds == (found.counterexample is None)
        if found.counterexample is not None:
            assert breaks(found, found.counterexample)
            continue
        ball = Ball(found.center[None], found.radius, found.norm)
        for _ in range(200):
            x = inside(found.center + 3 * found.radius * torch.randn_like(found.center), ball)
            assert not breaks(found, x), found.name


def test_properties_have_their_verdicts() -> None:
    torch.manual_seed(0)
    found = property_instances()
    assert {instance.verdict for instance in found} == {Verdict.VERIFIED, Verdict.FALSIFIED}
    for instance in found:
        if instance.verdict is Verdict.FALSIFIED:
            assert instance.counterexample is not None
            assert obeys(instance, instance.counterexample), instance.name
            continue
        (case,) = instance.asked_property.cases
        for _ in range(200):
            t = torch.rand_like(case.lower)
            ends = torch.where(torch.rand_like(t) < 0.3, t.round(), t)
            assert not obeys(instance, case.lower + ends * (case.upper - case.lower)), instance.name


def test_the_planted_input_is_not_found_by_the_search_for_counterexamples() -> None:
    """That is what planting is for: signed gradients from the middle and from corners miss it."""
    missed = []
    for seed in range(3):
        for found in property_instances(["planted"], seed):
            x = counterexample(found.graph, found.asked_property.cases, seed=1)
            missed.append(x is None)
    assert sum(missed) >= len(missed) / 2


def test_a_point_outside_the_box_or_the_ball_is_no_counterexample() -> None:
    (found,) = [each for each in property_instances(["paired-biases"]) if each.name == "pair-equal"]
    assert obeys(found, torch.tensor([3.0]).double())
    assert not obeys(found, torch.tensor([4.5]).double())
    (own,) = [each for each in instances(["corners"]) if each.name == "corner-2-class-lost"]
    assert breaks(own, own.counterexample)
    assert not breaks(own, 1.01 * own.counterexample)
    assert not breaks(own, torch.zeros(2).double())


def test_pairs_that_prove_nothing_are_refused() -> None:
    graph = lipbridge.capture(torch.nn.Linear(2, 1).double())
    ball = Ball(torch.zeros(1, 2), 1.0, 2)
    x = torch.tensor([[0.0, 0.0], [0.5, 0.0]]).double()
    made("f", "n", graph, Question.on(ball), x, None)
    for question, pair in (
        (Question.everywhere(2), x[:1].repeat(2, 1)),
        (Question.on(ball), x + 2.0),
        (Question.on(ball), torch.tensor([[0.0, 0.0], [0.8, 0.8]]).double()),
        (Question.on(ball, quantity=Quantity.DEVIATION), x.flip(0)),
    ):
        with pytest.raises(InvalidArgument, match="pair"):
            made("f", "n", graph, question, pair, None)
    with pytest.raises(InvalidArgument, match="law"):
        made("f", "n", graph, Question.everywhere(2), x, Fraction(1, 10**9))


def test_what_a_pair_proves_is_the_plain_quotient() -> None:
    torch.manual_seed(0)
    graph = lipbridge.capture(lipbridge.mlp([3, 5, 2], "relu").double())
    x = torch.randn(2, 3, dtype=torch.float64)
    for p in (1, 2, "inf"):
        problem = lipbridge.Problem(graph, Question.everywhere(p))
        plain = (graph(x)[0] - graph(x)[1]).norm(exponent(p)) / (x[0] - x[1]).norm(exponent(p))
        assert float(proved_by(problem, x)) == pytest.approx(float(plain), rel=1e-12)
        assert moved(graph, x[0], x[1], p) <= length(numbers(graph(x)[0] - graph(x)[1]), p, up=True) * Fraction(
            1 + 1e-12
        )
    J = jacobian(graph, x[0], 1e-9)
    _, expected = graph.tangent(x[:1].repeat(3, 1), torch.eye(3).double())
    assert torch.allclose(torch.tensor([[float(t) for t in row] for row in J]).double(), expected.T, rtol=1e-9)


def test_families_are_named() -> None:
    with pytest.raises(UnknownName, match=r"nonesuch.*nonnegative.*planted"):
        instances(["nonesuch"])
    assert {found.family for found in instances(["corners", "tied-logits"])} == {"corners", "tied-logits"}
    assert all(isinstance(found, PropertyInstance) for found in property_instances(["corners"]))
    assert Property((Case(torch.zeros(1), torch.ones(1), torch.ones(1, 1), torch.zeros(1)),)).outputs == 1
