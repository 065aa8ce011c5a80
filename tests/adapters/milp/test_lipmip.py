"""The lipmip verifier: equal to the enumeration of all cells, above no claim of its own, honest at kinks and limits."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy.optimize import linprog
from torch import nn

import lipbridge
from lipbridge import Ball, Bound, Budget, Problem, Quantity, Question, Refusal, Side, Status
from lipbridge.errors import NumericalFailure
from lipbridge.vocabulary import Norm

pytest.importorskip("highspy")
lipmip: Any = pytest.importorskip("lipbridge_adapters.milp.lipmip")
program: Any = pytest.importorskip("lipbridge_adapters.milp.program")

torch.set_num_threads(1)
VERIFIER = lipmip.LipMipVerifier()
NORMS: tuple[tuple[Norm, Norm], ...] = (("inf", "inf"), (1, 1), (1, "inf"))
Make = Callable[[], nn.Module]
#: Activations by name: the module, its components, and its kinks.
ACTIVATIONS: dict[str, tuple[Make, int, tuple[float, ...]]] = {
    "relu": (nn.ReLU, 1, (0.0,)),
    "leaky_relu": (lambda: nn.LeakyReLU(0.1), 1, (0.0,)),
    "abs": (lambda: lipbridge.activation_module("abs"), 1, (0.0,)),
    "crelu": (lambda: lipbridge.activation_module("crelu"), 2, (0.0,)),
    "identity_abs": (lambda: lipbridge.activation_module("identity_abs"), 2, (0.0,)),
    "hardtanh": (lambda: nn.Hardtanh(-0.25, 0.5), 1, (-0.25, 0.5)),
    "hardsigmoid": (nn.Hardsigmoid, 1, (-3.0, 3.0)),
}


def chain(widths: list[int], name: str, seed: int = 0, *, bias: bool = True, scale: float = 1.0) -> nn.Sequential:
    make, components, _ = ACTIVATIONS[name]
    generator = torch.Generator().manual_seed(seed)
    layers: list[nn.Module] = []
    for n, m in pairwise(widths):
        layer = nn.Linear(n * (components if layers else 1), m, bias=bias, dtype=torch.float64).requires_grad_(False)
        for parameter in layer.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator, dtype=torch.float64) * scale)
        layers += [layer, make()]
    return nn.Sequential(*layers[:-1])


def ball(n: int, norm: Norm, radius: float = 1.0, seed: int = 3, count: int = 1) -> Ball:
    generator = torch.Generator().manual_seed(seed)
    return Ball(torch.randn(count, n, generator=generator, dtype=torch.float64) * 0.3, radius, norm)


def bound(graph: lipbridge.Graph, question: Question, seconds: float = 60.0, **options: object) -> Bound:
    return VERIFIER.prepare(Problem(graph, question)).bound(Budget(seconds=seconds, options=options))


def cells(module: nn.Sequential, name: str, region: Ball) -> list[NDArray[Any]]:
    """The Jacobian of every cell that has an inside in a ball, by trying the pieces of one unit after the other."""
    make, components, kinks = ACTIVATIONS[name]
    function = make()
    middles = [kinks[0] - 1.0, *[(a + b) / 2 for a, b in pairwise(kinks)], kinks[-1] + 1.0]
    ends = [-math.inf, *kinks, math.inf]
    lines: list[tuple[NDArray[Any], NDArray[Any]]] = []
    for middle in middles:
        t = torch.tensor([middle], dtype=torch.float64)
        slope = torch.func.jacfwd(lambda t: function(t[None])[0])(t)[:, 0]
        lines.append((slope.numpy(), (function(t[None])[0] - slope * t).numpy()))
    layers = [layer for layer in module if isinstance(layer, nn.Linear)]
    center, n = region.centers[0].numpy(), region.centers.shape[1]
    walls = [[*s, 0.0] for s in (np.eye(n).tolist() + (-np.eye(n)).tolist())] if region.norm == "inf" else []
    if region.norm == 1:
        walls = [[*signs, 0.0] for signs in np.array(np.meshgrid(*[[-1, 1]] * n)).T.reshape(-1, n).tolist()]
    start = ([[*wall[:-1], 1.0] for wall in walls], [region.radius] * len(walls))  # in coordinates x - centre
    found: list[NDArray[Any]] = []

    def inside(rows: list[list[float]], right: list[float]) -> bool:
        answer = linprog([0.0] * n + [-1.0], A_ub=rows, b_ub=right, bounds=[(None, None)] * n + [(0, 1)])
        return answer.x is not None and answer.x[-1] > 1e-7

    def layer(index: int, A: NDArray[Any], b: NDArray[Any], rows: list[list[float]], right: list[float]) -> None:
        W, shift = layers[index].weight.numpy(), layers[index].bias
        A, b = W @ A, W @ b + (0.0 if shift is None else shift.numpy())
        if index == len(layers) - 1:
            found.append(A)
            return
        unit(index, A, b, rows, right, [])

    def unit(index: int, A: NDArray[Any], b: NDArray[Any], rows: Any, right: Any, pieces: list[int]) -> None:
        i = len(pieces)
        if i == len(A):
            slopes = np.array([lines[piece][0] for piece in pieces])
            offsets = np.array([lines[piece][1] for piece in pieces])
            after = np.concatenate([slopes[:, [k]] * A for k in range(components)])
            moved = np.concatenate([slopes[:, k] * b + offsets[:, k] for k in range(components)])
            layer(index + 1, after, moved, rows, right)
            return
        size = float(np.abs(A[i]).max()) or 1.0
        for piece in range(len(lines)):
            more, ends_of = list(rows), list(right)
            if ends[piece] > -math.inf:  # A d + b >= end
                more, ends_of = [*more, [*(-A[i] / size), 1.0]], [*ends_of, (b[i] - ends[piece]) / size]
            if ends[piece + 1] < math.inf:
                more, ends_of = [*more, [*(A[i] / size), 1.0]], [*ends_of, (ends[piece + 1] - b[i]) / size]
            if inside(more, ends_of):
                unit(index, A, b, more, ends_of, [*pieces, piece])

    layer(0, np.eye(n), center, *start)
    return found


def norm_of(J: NDArray[Any], norms: tuple[Norm, Norm]) -> float:
    if norms == (1, "inf"):
        return float(np.abs(J).max())
    return float(np.abs(J).sum(1 if norms[0] == "inf" else 0).max())


@pytest.mark.parametrize("name", ACTIVATIONS)
@pytest.mark.parametrize(("region", "widths"), [("inf", [2, 4, 3, 2]), (1, [3, 5, 2])])
def test_it_agrees_with_the_enumeration_of_all_cells(name: str, region: Norm, widths: list[int]) -> None:
    scale = 3.0 if name == "hardsigmoid" else 1.0
    module, around = chain(widths, name, seed=1, scale=scale), ball(widths[0], region)
    every = cells(module, name, around)
    assert len(every) > 1
    graph = lipbridge.capture(module)
    for p, q in NORMS:
        exact = max(norm_of(J, (p, q)) for J in every)
        found = bound(graph, Question.on(around, p, q))
        assert (found.side, found.proved, found.status) == (Side.UPPER, False, Status.OK)
        assert exact <= found.value <= exact * (1 + 2e-6)
        assert found.witness is not None
        proved = lipbridge.witness_value(Problem(graph, found.question), found.witness)
        assert proved == found.extra["lower"]
        assert exact * (1 - 2e-6) <= proved <= exact * (1 + 1e-12)


@pytest.mark.parametrize("norms", NORMS)
def test_one_program_and_one_each_agree(norms: tuple[Norm, Norm]) -> None:
    graph = lipbridge.capture(chain([3, 6, 3, 3], "relu", seed=5))
    question = Question.on(ball(3, "inf"), *norms)
    one, each = bound(graph, question, together=True), bound(graph, question, together=False)
    assert one.value == pytest.approx(each.value, rel=2e-6)
    assert one.extra["programs"] == 1
    assert ("output" if norms[1] == "inf" else "input") in each.extra


def test_of_several_balls_the_largest_counts() -> None:
    graph = lipbridge.capture(chain([2, 5, 2], "relu", seed=2))
    balls = ball(2, "inf", 0.2, count=4)
    alone = [
        bound(graph, Question.on(Ball(balls.centers[k : k + 1], balls.radius, balls.norm))).value for k in range(4)
    ]
    together = bound(graph, Question.on(balls))
    assert together.value == pytest.approx(max(alone), rel=2e-6)
    assert alone[together.extra["ball"]] == max(alone)
    assert max(alone) > min(alone) * 1.01


@pytest.mark.parametrize("factor", [2.0**-100, 2.0**100])
def test_weights_of_any_size_give_the_same_answer(factor: float) -> None:
    module, around = chain([2, 4, 3, 2], "relu", seed=1), ball(2, "inf")
    before = bound(lipbridge.capture(module), Question.on(around))
    module[0].weight.mul_(factor)
    module[0].bias.mul_(factor)
    module[2].bias.mul_(factor)
    after = bound(lipbridge.capture(module), Question.on(around))
    assert after.value == pytest.approx(before.value * factor, rel=2e-6)


# --- kinks, cones, networks that are lowered -------------------------------------------------------------------------


def two_units(first: list[list[float]], bias: list[float], last: list[list[float]]) -> lipbridge.Graph:
    module = nn.Sequential(nn.Linear(1, len(first)), nn.ReLU(), nn.Linear(len(first), 1, bias=False)).double()
    module.requires_grad_(False)
    module[0].weight.copy_(torch.tensor(first))
    module[0].bias.copy_(torch.tensor(bias))
    module[2].weight.copy_(torch.tensor(last))
    return lipbridge.capture(module)


def test_kinks_that_coincide_count_with_the_chain_rules_slopes_and_the_witness_does_not() -> None:
    line = two_units([[1.0], [-1.0]], [-0.25, 0.25], [[1.0, -1.0]])  # x - 0.25
    found = bound(line, Question.on(Ball(torch.zeros(1, 1), 1.0, "inf")))
    assert found.value == pytest.approx(2.0, rel=1e-6)
    assert found.witness is None or found.extra["lower"] == pytest.approx(1.0)


def test_a_kink_on_the_surface_counts_with_both_sides() -> None:
    """relu(x - 1) is zero on [-1, 1], and its slope at 1 is 0 or 1."""
    graph = two_units([[1.0]], [-1.0], [[1.0]])
    assert bound(graph, Question.on(Ball(torch.zeros(1, 1), 1.0, "inf"))).value == pytest.approx(1.0, rel=1e-6)
    assert bound(graph, Question.on(Ball(torch.zeros(1, 1), 0.999, "inf"))).value == 0.0


@pytest.mark.parametrize("norms", NORMS)
@pytest.mark.parametrize("region", ["everywhere", "inf", 1])
def test_cones_are_exact_everywhere_and_around_the_origin(region: Any, norms: tuple[Norm, Norm]) -> None:
    """All kinks coincide at the origin, which is not counted; away from it a ball is one like any other."""
    module = chain([2, 4, 3, 2], "abs", seed=4, bias=False)
    graph, unit = lipbridge.capture(module), Ball(torch.zeros(1, 2), 1.0, "inf")
    around = Ball(torch.tensor([[0.01, -0.02]]), 0.1, region) if region != "everywhere" else None
    exact = max(norm_of(J, norms) for J in cells(module, "abs", unit))
    question = Question.everywhere(*norms) if around is None else Question.on(around, *norms)
    found = bound(graph, question)
    assert exact <= found.value <= exact * (1 + 2e-6)
    assert found.question == question
    assert found.extra["lower"] == pytest.approx(exact)
    apart = Ball(torch.tensor([[0.5, 0.2]]), 0.05, "inf")
    less = max(norm_of(J, norms) for J in cells(module, "abs", apart))
    assert less < 0.99 * exact
    assert less <= bound(graph, Question.on(apart, *norms)).value <= less * (1 + 2e-6)


def test_other_networks_are_told_to_name_a_ball() -> None:
    for other in (chain([2, 4, 2], "abs"), chain([2, 4, 2], "hardtanh", bias=False)):
        answer = VERIFIER.prepare(Problem(lipbridge.capture(other), Question.everywhere("inf")))
        assert isinstance(answer, Refusal)
        assert "big-M" in answer.reason
        assert "ball" in answer.reason


def test_convolutions_and_batch_normalisation_are_lowered() -> None:
    torch.manual_seed(0)
    module = nn.Sequential(
        nn.Conv1d(1, 2, 2), nn.BatchNorm1d(2), nn.ReLU(), nn.Flatten(), nn.Linear(6, 3), nn.ReLU(), nn.Linear(3, 2)
    )
    module = module.double().eval().requires_grad_(False)
    module[1].running_mean.normal_()
    graph = lipbridge.capture(module, (1, 4))
    found = bound(graph, Question.on(Ball(torch.zeros(1, 1, 4), 1.0, "inf")))
    assert found.extra["lower"] == pytest.approx(found.value, rel=2e-6)  # the witness is of the network itself


@pytest.mark.parametrize("norms", NORMS)
def test_linear_and_constant_networks_need_no_solver(norms: tuple[Norm, Norm]) -> None:
    module = chain([3, 2], "relu")
    found = bound(lipbridge.capture(module), Question.on(ball(3, 1), *norms))
    assert found.value == pytest.approx(norm_of(module[0].weight.numpy(), norms), rel=1e-6)
    assert found.extra["programs"] <= 1
    assert found.extra["lower"] == pytest.approx(found.value, rel=1e-6)
    module = chain([3, 4, 2], "relu")
    module[2].weight.zero_()
    assert bound(lipbridge.capture(module), Question.on(ball(3, "inf"), *norms)).value < 1e-9


# --- limits, failures, refusals --------------------------------------------------------------------------------------


def test_at_the_time_limit_the_value_is_the_dual_bound_so_far() -> None:
    graph = lipbridge.capture(chain([8, 24, 24, 4], "relu", scale=0.4))
    around = ball(8, "inf")
    found = bound(graph, Question.on(around), seconds=2.0)
    assert found.status is Status.TIMEOUT
    assert found.seconds < 10.0  # two seconds, and the slack of a busy machine
    assert "dual bound" in found.detail
    x = around.centers + torch.rand(512, 8, dtype=torch.float64) * 2 - 1
    sampled = torch.func.vmap(torch.func.jacrev(lambda x: graph(x[None])[0]))(x).abs().sum(2).max()
    assert float(sampled) <= found.value <= lipbridge.trivial_bound(graph, "inf").value
    assert found.extra.get("primal", 0.0) <= found.value


def answering(monkeypatch: pytest.MonkeyPatch, **changes: object) -> None:
    known = {"status": "Optimal", "optimal": True, "timed_out": False, "infeasible": False}
    answer = program.Answer(**{**known, "dual": 0.0, "primal": 0.0, "point": None, "nodes": 0, **changes})
    monkeypatch.setattr(lipmip, "highs", lambda *_, **__: answer)


def test_the_value_is_the_dual_bound_and_not_the_objective(monkeypatch: pytest.MonkeyPatch) -> None:
    graph, question = lipbridge.capture(chain([2, 4, 2], "relu")), Question.on(ball(2, "inf"))
    exact = bound(graph, question).value
    answering(monkeypatch, dual=0.5 * exact, primal=0.25 * exact)
    assert bound(graph, question).value == pytest.approx(0.5 * exact, rel=1e-6)


def test_a_solver_that_fails_is_a_failed_row(monkeypatch: pytest.MonkeyPatch) -> None:
    answering(monkeypatch, status="Infeasible", optimal=False, dual=math.inf, primal=-math.inf)
    found = bound(lipbridge.capture(chain([2, 4, 2], "relu")), Question.on(ball(2, "inf")))
    assert (found.status, found.proved) == (Status.FAILED, False)
    assert math.isnan(found.value)
    assert "Infeasible" in found.detail


@pytest.mark.parametrize(("center", "factor"), [(1e308, 10.0), (0.0, 1e200)])
def test_bounds_beyond_float64_are_an_error(center: float, factor: float) -> None:
    module = chain([2, 4, 2], "relu")
    module[0].weight.mul_(factor)
    module[2].weight.mul_(factor)
    around = Ball(torch.full((1, 2), center, dtype=torch.float64), 1.0, "inf")
    with pytest.raises(NumericalFailure, match=r"float64|overflow"):
        bound(lipbridge.capture(module), Question.on(around))


def test_other_problems_are_refused_with_the_reason() -> None:
    relu = lipbridge.capture(chain([2, 3, 2], "relu"))
    tanh = lipbridge.capture(nn.Sequential(nn.Linear(2, 3), nn.Tanh(), nn.Linear(3, 2)))
    sort = lipbridge.capture(nn.Sequential(nn.Linear(2, 4), lipbridge.GroupSort(2), nn.Linear(4, 2)))
    around = ball(2, "inf")
    for graph, question, word in (
        (relu, Question.on(around, 2), "norm 2"),
        (relu, Question.on(around, quantity=Quantity.DEVIATION), "deviation"),
        (relu, Question.on(ball(2, 2), "inf"), "l_2 balls"),
        (tanh, Question.on(around), "tanh"),
        (sort, Question.on(around), "GroupSort"),
    ):
        answer = VERIFIER.prepare(Problem(graph, question))
        assert isinstance(answer, Refusal)
        assert word in answer.reason
