"""Verdicts are right in exact arithmetic: proofs against samples in fractions, counterexamples by fractions."""

from __future__ import annotations

import time
from fractions import Fraction
from itertools import pairwise

import pytest
import torch
from torch import nn

import lipbridge
from lipbridge.checking.network import Network
from lipbridge.errors import InvalidArgument
from lipbridge.lowering.twin import twin
from lipbridge.problem.claim import LipschitzClaim
from lipbridge.problem.property import Case, Property, Verdict, robust
from lipbridge.verifiers.properties import judge


def network(seed: int) -> nn.Sequential:
    torch.manual_seed(seed)
    act = (nn.ReLU, nn.Hardtanh, nn.LeakyReLU)[seed % 3]
    widths = [3, 8, 8, 3] if seed % 2 else [4, 10, 3]
    layers = [layer for n, m in pairwise(widths) for layer in (nn.Linear(n, m), act())][:-1]
    module = nn.Sequential(*layers).double()
    with torch.no_grad():
        for layer in module:
            if isinstance(layer, nn.Linear):
                layer.weight *= 10.0 ** (seed % 4 - 1)
    return module


def obeys(exact: Network, case: Case, x: torch.Tensor) -> bool:
    """In fractions."""
    _, y = exact.at([Fraction(float(value)) for value in x.flatten()])
    rows = [[Fraction(float(value)) for value in row] for row in case.rows]
    limits = [Fraction(float(value)) for value in case.limits]
    inside = bool((x >= case.lower).all() and (x <= case.upper).all())
    sums = [sum(a * b for a, b in zip(row, y, strict=True)) for row in rows]
    return inside and all(total <= limit for total, limit in zip(sums, limits, strict=True))


@pytest.mark.parametrize("seed", range(24))
def test_verdicts_are_true(seed: int) -> None:
    module = network(seed)
    graph = lipbridge.capture(module)
    exact = Network(graph)
    for radius in (1e-6, 0.02, 0.2, 1.0):
        x = torch.randn(graph.input_shape, dtype=torch.float64)
        asked = robust(x, int(graph(x[None]).argmax()), 3, radius)
        found = judge(graph, asked, seed=seed)
        if found.verdict is Verdict.FALSIFIED:
            assert found.counterexample is not None
            assert any(obeys(exact, case, found.counterexample) for case in asked.cases)
        else:
            assert found.counterexample is None
        assert (found.verdict is Verdict.VERIFIED) == (found.margin > 0.0)
        case = asked.cases[0]
        for _ in range(20):
            point = case.lower + torch.rand(x.shape, dtype=torch.float64) * (case.upper - case.lower)
            _, y = exact.at([Fraction(float(value)) for value in point])
            gaps = [sum(Fraction(float(a)) * b for a, b in zip(c.rows[0], y, strict=True)) for c in asked.cases]
            assert min(gaps) >= Fraction(found.margin)


def test_a_tie_is_never_verified() -> None:
    module = nn.Linear(2, 3).double()
    with torch.no_grad():
        module.weight[1], module.bias[1] = module.weight[0], module.bias[0]
        module.bias[2] = -100.0
    found = judge(lipbridge.capture(module), robust(torch.zeros(2), 0, 3, 0.1))
    assert found.verdict is not Verdict.VERIFIED
    assert -1e-12 < found.margin <= 0.0


def test_all_inequalities_of_a_case_must_hold() -> None:
    """|x| <= 1 with y = x: y >= 0.5 and y <= 0.25 never hold together, each by itself does."""
    module = nn.Linear(1, 1, bias=False).double()
    with torch.no_grad():
        module.weight.fill_(1.0)
    graph = lipbridge.capture(module)
    box = torch.tensor([-1.0]), torch.tensor([1.0])
    high, low = ([[-1.0]], [-0.5]), ([[1.0]], [0.25])
    for rows, limits in (high, low):
        case = Case(*box, torch.tensor(rows), torch.tensor(limits))
        assert judge(graph, Property((case,))).verdict is Verdict.FALSIFIED
    both = Case(*box, torch.tensor(high[0] + low[0]), torch.tensor(high[1] + low[1]))
    assert judge(graph, Property((both,))).verdict is Verdict.UNKNOWN  # no bound sees both at once
    far = Case(*box, torch.tensor([[-1.0], [1.0]]), torch.tensor([-2.0, 5.0]))
    assert judge(graph, Property((far,))).verdict is Verdict.VERIFIED


def test_a_box_that_is_a_point_and_sides_that_differ() -> None:
    graph = lipbridge.capture(network(4))
    x = torch.randn(graph.input_shape, dtype=torch.float64)
    label = int(graph(x[None]).argmax())
    cases = robust(x, label, 3, 0.1).cases
    point = Property(tuple(Case(x, x, case.rows, case.limits) for case in cases))
    assert judge(graph, point).verdict is Verdict.VERIFIED
    wide = torch.zeros_like(x)
    wide[0] = 1e-3
    flat = Property(tuple(Case(x, x + wide, case.rows, case.limits) for case in cases))
    assert judge(graph, flat).verdict is Verdict.VERIFIED


def test_another_networks_property_is_refused() -> None:
    graph = lipbridge.capture(network(0))
    with pytest.raises(InvalidArgument, match="asked"):
        judge(graph, robust(torch.zeros(7), 0, 3, 0.1))


def test_branch_and_bound_halves_what_bends_though_no_slope_tells() -> None:
    """A Lipschitz claim of a twin network: at equal slopes of both copies, x does not move the difference at all."""
    torch.manual_seed(0)
    graph = lipbridge.capture(nn.Sequential(nn.Linear(1, 6), nn.ReLU(), nn.Linear(6, 1)).double())
    x = torch.linspace(-1.2, 1.2, 4001, dtype=torch.float64)[:, None]
    y = graph(x)
    steepest = float((y[1:] - y[:-1]).abs().max() / (x[1] - x[0]))
    for factor, wanted in ((1.05, Verdict.VERIFIED), (0.95, Verdict.FALSIFIED)):
        claim = LipschitzClaim(factor * steepest, "inf", -1.0, 1.0, 0.02, 0.2)
        both = twin(graph, claim.constant, "inf")
        found = [judge(both, asked, deadline=time.perf_counter() + 30.0) for _, asked in claim.properties(1, 1)]
        verdicts = {each.verdict for each in found}
        assert verdicts <= {Verdict.VERIFIED, wanted}
        assert wanted in verdicts
