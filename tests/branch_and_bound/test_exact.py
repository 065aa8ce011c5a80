"""The exact constant against brute force, on networks of every kind of node."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import lipbridge
from lipbridge import Ball, Budget, Problem, Question, Refusal, Side, Status, Witness, witness_value
from lipbridge.branch_and_bound.cascade import cascade_of
from lipbridge.branch_and_bound.exact import mirrored_unit
from lipbridge.norms.matrix import CHEAP_PAIRS
from lipbridge.problem.bound import Bound
from lipbridge.verifiers import get_verifier
from tests.support.brute_force import constants, interior_points, largest_norm, tiny


def solved(problem: Problem, seconds: float = 60.0) -> Bound:
    task = get_verifier("exact").prepare(problem)
    assert not isinstance(task, Refusal), task
    return task.bound(Budget(seconds=seconds))


def check(problem: Problem, expected: float) -> None:
    bound = solved(problem)
    assert bound.status is Status.OK, bound
    assert bound.side is Side.EXACT, (bound, bound.extra)
    assert bound.value == pytest.approx(expected, rel=1e-9)
    assert bound.value >= expected * (1.0 - 1e-12)
    assert bound.witness is not None
    assert witness_value(problem, bound.witness) == bound.extra["lower"]


def everywhere(seed: int) -> None:
    graph = tiny(seed)
    pairs = CHEAP_PAIRS if seed % 5 == 0 else ((1, 1), (2, 2), ("inf", "inf"))
    for (p, q), expected in zip(pairs, constants(graph, pairs), strict=True):
        check(Problem(graph, Question.everywhere(p, q)), expected)


def in_a_box(seed: int) -> None:
    graph = tiny(seed)
    torch.manual_seed(seed)
    center = torch.randn(1, *graph.input_shape, dtype=torch.float64)
    radius = (0.3, 1.0, 3.0)[seed % 3]
    pairs = ((1, 1), (2, 2), ("inf", "inf"))
    for (p, q), expected in zip(pairs, constants(graph, pairs, (center[0], radius)), strict=True):
        check(Problem(graph, Question.on(Ball(center, radius, "inf"), p, q)), expected)


@pytest.mark.parametrize("seed", range(12))
def test_it_is_what_all_patterns_give(seed: int) -> None:
    everywhere(seed)


@pytest.mark.parametrize("seed", range(12, 24))
def test_it_is_what_all_patterns_in_a_box_give(seed: int) -> None:
    in_a_box(seed)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(24, 500))
def test_it_is_what_all_patterns_give_five_hundred_times(seed: int) -> None:
    (everywhere if seed % 2 else in_a_box)(seed)


@pytest.mark.parametrize("seed", range(48, 60))
def test_on_round_and_pointed_balls_it_is_exact_and_above_all_samples(seed: int) -> None:
    graph, norm = tiny(seed), (1, 2)[seed % 2]
    torch.manual_seed(seed)
    center = torch.randn(1, *graph.input_shape, dtype=torch.float64)
    problem = Problem(graph, Question.on(Ball(center, 1.0, norm), 2))
    bound = solved(problem)
    assert bound.side is Side.EXACT, (bound, bound.extra)
    d = torch.randn(20000, *graph.input_shape, dtype=torch.float64)
    size = d.flatten(1).abs().sum(1) if norm == 1 else d.flatten(1).square().sum(1).sqrt()
    inside = torch.rand(20000, dtype=torch.float64) ** 0.3 / size
    x = center + d * inside.reshape(-1, *[1] * len(graph.input_shape))
    assert largest_norm(graph, x, 2, 2) <= bound.value * (1 + 1e-12)


def test_several_balls_are_the_largest_of_theirs() -> None:
    graph = tiny(12)
    centers = torch.tensor([[0.0, 0.0], [1.0, 1.0], [-2.0, 0.5]], dtype=torch.float64)
    each = [solved(Problem(graph, Question.on(Ball(c[None], 0.4, "inf"), 2))).value for c in centers]
    both = solved(Problem(graph, Question.on(Ball(centers, 0.4, "inf"), 2)))
    assert both.value == pytest.approx(max(each), rel=1e-9)


def test_two_hidden_layers_in_the_plane() -> None:
    torch.manual_seed(0)
    graph = lipbridge.capture(nn.Sequential(nn.Linear(2, 8), nn.ReLU(), nn.Linear(8, 4), nn.ReLU(), nn.Linear(4, 2)))
    problem = Problem(graph, Question.everywhere("inf"))
    check(problem, largest_norm(graph, interior_points(graph), "inf", "inf"))


def test_an_even_network_is_searched_on_one_side() -> None:
    torch.manual_seed(1)
    graph = lipbridge.capture(lipbridge.mlp([3, 6, 2], "abs", bias=False))
    cascade = cascade_of(graph)
    assert mirrored_unit(cascade) == 0
    assert mirrored_unit(cascade_of(tiny(2))) is None  # it has biases
    assert mirrored_unit(cascade_of(lipbridge.capture(nn.Sequential(nn.Linear(3, 4, False), nn.ReLU())))) is None
    check(Problem(graph, Question.everywhere(1)), largest_norm(graph, interior_points(graph), 1, 1))


@pytest.mark.parametrize("kind", ["hard tanh", "abs after hard tanh", "hard tanh on a ball", "with a constant"])
def test_points_and_their_mirror_images_count_once(kind: str) -> None:
    torch.manual_seed(3)
    layers = [nn.Linear(2, 4, False), nn.Hardtanh(), nn.Linear(4, 3, kind == "with a constant")]
    layers += (
        [] if "on" in kind.split() else [Abs() if "abs" in kind else nn.Hardtanh(), nn.Linear(3, 2, "abs" in kind)]
    )
    graph = lipbridge.capture(nn.Sequential(*layers))
    assert mirrored_unit(cascade_of(graph)) == (None if kind == "with a constant" else 0)
    x = interior_points(graph)
    problem = Problem(graph, Question.everywhere(2))
    if kind == "hard tanh on a ball":
        x = 4.0 * torch.rand(20000, 2, dtype=torch.float64) - 2.0
        problem = Problem(graph, Question.on(Ball(torch.zeros(1, 2, dtype=torch.float64), 2.0, "inf"), 2))
    check(problem, largest_norm(graph, x, 2, 2))


class Abs(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.abs()


def test_a_dead_unit_and_a_constant_network() -> None:
    net = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 2))
    with torch.no_grad():
        net[0].weight[1] = 0.0
        net[2].weight[:, 2] = 0.0
    graph = lipbridge.capture(net)
    problem = Problem(graph, Question.everywhere(2))
    check(problem, largest_norm(graph, torch.randn(4000, 2, dtype=torch.float64) * 5.0, 2, 2))
    with torch.no_grad():
        net[2].weight.zero_()
    constant = solved(Problem(lipbridge.capture(net), Question.everywhere(2)))
    assert (constant.value, constant.side) == (0.0, Side.EXACT)


def test_at_a_limit_both_ends_are_proved_and_told() -> None:
    torch.manual_seed(0)
    graph = lipbridge.capture(
        nn.Sequential(nn.Linear(10, 60), nn.ReLU(), nn.Linear(60, 40), nn.ReLU(), nn.Linear(40, 5))
    )
    problem = Problem(graph, Question.everywhere(2))
    bound = solved(problem, 3.0)
    assert (bound.status, bound.side, bound.proved) == (Status.TIMEOUT, Side.UPPER, True)
    assert bound.value <= lipbridge.trivial_bound(graph).value
    lower = bound.extra["lower"]
    assert isinstance(lower, float)
    assert lower <= bound.value
    assert bound.extra["gap"] == pytest.approx(bound.value / lower - 1.0)
    assert bound.seconds < 8.0


@pytest.mark.parametrize("layer", [nn.Tanh(), nn.LayerNorm(4), nn.Softmax(-1)])
def test_what_is_not_piecewise_linear_is_refused_by_name(layer: nn.Module) -> None:
    graph = lipbridge.capture(nn.Sequential(nn.Linear(3, 4), layer))
    answer = get_verifier("exact").prepare(Problem(graph, Question.everywhere(2)))
    assert isinstance(answer, Refusal)
    assert answer.reason.startswith("Layer `")
    assert "piecewise linear" in answer.reason


def test_weights_whose_products_underflow_are_refused_in_words() -> None:
    """1e-163 times 1e-162 is zero in float64, and 1e300 behind it makes that wrong by any factor."""
    weights = [torch.tensor([[w]], dtype=torch.float64) for w in (1e-163, 1e-162, 1e300)]
    module = nn.Sequential(nn.Linear(1, 1, False), nn.ReLU(), nn.Linear(1, 1, False), nn.ReLU(), nn.Linear(1, 1, False))
    for layer, weight in zip(module.double()[::2], weights, strict=True):
        layer.weight = nn.Parameter(weight)
    found = get_verifier("exact").prepare(Problem(lipbridge.capture(module), Question.everywhere(2)))
    assert isinstance(found, Refusal)
    assert "rescale" in found.reason


class Bump(nn.Module):
    """Slopes 0, 1, 0, -1 between kinks at -3, -1 and 1."""

    def forward(self, z: torch.Tensor) -> torch.Tensor:
        return (z + 3).relu() - (z + 1).relu() - (z - 1).relu()


def test_a_narrow_cell_between_two_kinks_is_not_lost() -> None:
    """A cell of width 1e-10, in which a unit of four pieces has both its ends split off."""
    net = nn.Sequential(nn.Linear(1, 2), Bump(), nn.Linear(2, 1)).double()
    weight, bias, out = (
        [1.4494920661802966, 4.765771134507082],
        [7615.7989998576795, 25035.624977337488],
        [0.6898968427162222, -0.20982963129710358],
    )
    with torch.no_grad():
        net[0].weight.copy_(torch.tensor(weight, dtype=torch.float64)[:, None])
        net[0].bias.copy_(torch.tensor(bias, dtype=torch.float64))
        net[2].weight.copy_(torch.tensor(out, dtype=torch.float64)[None])
        net[2].bias.zero_()
    center = torch.tensor([[-5251.999188984239]], dtype=torch.float64)
    problem = Problem(lipbridge.capture(net), Question.on(Ball(center, 5.0, 1)))
    x = -((bias[0] - 1) / weight[0] + (bias[1] + 1) / weight[1]) / 2
    witness = Witness(torch.tensor([[x]], dtype=torch.float64), torch.ones(1, 1, dtype=torch.float64))
    least = witness_value(problem, witness)
    assert least == pytest.approx(2.0)
    assert solved(problem).value >= least


class Comb(nn.Module):
    """More than 128 pieces, and one of 2^-20 of slope 63."""

    def forward(self, z: torch.Tensor) -> torch.Tensor:
        y = z.relu()
        for i in range(1, 140):
            y = y + (z - float(i)).relu() * (2.0 if i % 2 == 0 else -2.0)
        a = 1000.0
        return y + 64 * (z - a).relu() - 128 * (z - (a + 2.0**-20)).relu() + 64 * (z - (a + 2.0**-19)).relu()


def test_an_activation_of_more_than_128_pieces() -> None:
    net = nn.Sequential(nn.Linear(1, 1), Comb()).double()
    with torch.no_grad():
        net[0].weight.fill_(1.0)
        net[0].bias.zero_()
    x = torch.tensor([[1000.0], [1000.0 + 2.0**-21]], dtype=torch.float64)
    y = net(x).detach()
    least = float((y[1] - y[0]) / (x[1] - x[0]))
    assert least > 60.0
    assert solved(Problem(lipbridge.capture(net), Question.everywhere(2))).value >= least


@pytest.mark.parametrize("radius", [1e-6, 1e-8, 1e-9, 1e-10, 1e-12])
def test_tiny_balls_beside_kinks_of_all_units(radius: float) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(2, 6), nn.ReLU(), nn.Linear(6, 2)).double()
    with torch.no_grad():
        net[0].bias.zero_()
    net.requires_grad_(False)
    center = torch.full((1, 2), 1e-13, dtype=torch.float64)
    bound = solved(Problem(lipbridge.capture(net), Question.on(Ball(center, radius, "inf"), 1, 1)))
    x = center + radius * (2.0 * torch.rand(200, 2, dtype=torch.float64) - 1.0)
    J = torch.func.vmap(torch.func.jacrev(net))(x)
    assert bound.value >= float(lipbridge.operator_norm(J, 1, 1).max())
    assert bound.value <= 0.4509546262514533  # everywhere
