"""Public architectures: bounded and checked against the module, or refused with a reason that a person understands."""

from __future__ import annotations

import copy
import re

import pytest
import torch
from torch import Tensor, nn

import lipbridge
from lipbridge.errors import UnsupportedOperation
from lipbridge.graph.graph import Graph
from tests.support.architectures import ARCHITECTURES, BOUNDED, Architecture, build

REFUSED = [name for name, entry in ARCHITECTURES.items() if entry.refused]
NORMS = {1: 1, 2: 2, "inf": torch.inf}


def points(entry: Architecture) -> Tensor:
    """Random points of several scales, and zero."""
    scales = torch.tensor([1e-3, 0.1, 1.0, 1.0, 30.0, 1e3], dtype=torch.float64)
    x = torch.randn(7, *entry.shape, dtype=torch.float64)
    x[:6] *= scales.reshape(-1, *(1,) * len(entry.shape))
    x[6] = 0.0
    return x


def require_same_function(graph: Graph, module: nn.Module, x: Tensor, tolerance: float) -> None:
    """Row by row, to ``tolerance`` of the largest output."""
    with torch.no_grad():
        expected = module(x)
    found = graph(x)
    assert found.shape == expected.shape
    assert bool(found.isfinite().all())
    scale = expected.abs().reshape(len(x), -1).amax(1).clamp_min(1e-9)
    assert bool(((found - expected).abs().reshape(len(x), -1).amax(1) <= tolerance * scale).all())


def require_bounded(graph: Graph, module: nn.Module, x: Tensor, tolerance: float) -> None:
    """No Jacobian and no pair of points is beyond the trivial bound."""
    bounds = {norm: lipbridge.trivial_bound(graph, norm).value * (1.0 + tolerance) for norm in NORMS}
    assert all(0.0 < bound < torch.inf for bound in bounds.values())
    for row in x[1:6:2]:
        J = torch.autograd.functional.jacobian(lambda z: module(z[None]).flatten(), row)
        J = J.reshape(len(J), -1)
        for norm, order in NORMS.items():
            assert float(torch.linalg.matrix_norm(J, order)) <= bounds[norm]
    y = x.roll(1, 0) + 0.1
    with torch.no_grad():
        moved = (module(x) - module(y)).reshape(len(x), -1)
    for norm, order in NORMS.items():
        ratios = torch.linalg.vector_norm(moved, order, 1) / torch.linalg.vector_norm((x - y).flatten(1), order, 1)
        assert float(ratios.max()) <= bounds[norm]


@pytest.mark.parametrize("name", BOUNDED)
def test_bounded(name: str) -> None:
    entry = ARCHITECTURES[name]
    module = build(entry)
    tolerance = 1e-9
    graph = lipbridge.capture(module, entry.shape)
    exact = copy.deepcopy(module).double()
    x = points(entry)
    require_same_function(graph, exact, x, tolerance)
    require_bounded(graph, exact, x, tolerance)


@pytest.mark.parametrize("name", REFUSED)
def test_refused_with_the_reason(name: str) -> None:
    entry = ARCHITECTURES[name]
    with pytest.raises(UnsupportedOperation) as error:
        lipbridge.capture(build(entry), entry.shape)
    assert re.search(entry.refused, str(error.value)), str(error.value)


def test_there_are_many() -> None:
    assert len(BOUNDED) >= 100
    assert len(REFUSED) >= 25


def test_every_paper_is_named() -> None:
    assert all(re.search(r"\b(19|20)\d\d\b|VNN-COMP|PyTorch", entry.paper) for entry in ARCHITECTURES.values())
