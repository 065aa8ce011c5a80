"""Each kind of node's derivative on regions: it holds the derivative at every point, and its linear bounds hold."""

from __future__ import annotations

import pytest
import torch

from lipbridge import Ball
from lipbridge.propagation.bounds import forward_bounds
from lipbridge.propagation.jacobian.derivative import Interval, chord
from lipbridge.propagation.jacobian.derivatives import derivatives
from lipbridge.propagation.linear_maps import adjoint, bare, image
from lipbridge.propagation.rules import Context
from lipbridge.search.starts import in_balls
from tests.support.jacobians import jacobians
from tests.support.node_graphs import NETWORKS, draw

SLACK = 1e-12


def _one_ball(kind, radius):
    graph = NETWORKS[kind]
    ball = Ball(draw(1, *graph.input_shape), radius, "inf")
    x, _ = in_balls(ball, 50, torch.Generator().manual_seed(2))
    found = derivatives(graph, forward_bounds(graph, ball), Context("inf"))
    return graph, found[-1], jacobians(graph, x)


@pytest.mark.parametrize("radius", [1e-6, 0.2, 2.0])
@pytest.mark.parametrize("kind", NETWORKS, ids=lambda kind: kind.__name__)
def test_it_holds_the_derivative_at_every_point(kind, radius) -> None:
    """Of networks whose last node is of the kind; their other nodes are linear."""
    graph, map_, J = _one_ball(kind, radius)
    outputs = J.shape[1]
    a = draw(1, 3, outputs)
    size = 0.3 * draw(2, 3, outputs)[:1].abs()
    enclosed = Interval(a - size, a + size)
    inside = a + size * (2.0 * torch.rand(40, *a.shape[1:], dtype=torch.float64) - 1.0)
    form = draw(1, 1, 5, J.shape[2])
    forms = _forms(graph, form)
    relaxed = map_.relaxed(enclosed)
    coefficients, offset = relaxed.image(forms)
    lost = sum(f[0, 0].abs() @ x[0].T for f, x in zip(forms, relaxed.lost, strict=True)).T if relaxed.lost else 0.0
    offset = lost + (0.0 if offset is None else offset)
    assert coefficients.shape[-1] == outputs
    for jacobian in J:
        exact = inside @ jacobian  # (40, 3, inputs of the network)
        most = (
            torch.einsum("krn,bmn->bmr", coefficients[:, 0], inside)
            if coefficients.shape[1] == 1
            else (torch.einsum("mrn,bmn->bmr", coefficients[0], inside))
        )
        value = torch.einsum("rn,bmn->bmr", form[0, 0], exact)
        assert bool((value <= most + offset + SLACK).all())
        own = sum(part @ matrix for part, matrix in zip(_middles(map_.adjoint(enclosed)), _parts(graph), strict=True))
        room = sum(
            part @ matrix.abs() for part, matrix in zip(_radii(map_.adjoint(enclosed)), _parts(graph), strict=True)
        )
        assert bool(((exact - own).abs() <= room + SLACK).all())
        spread = map_.spread(a)
        middle = sum(s.center @ matrix for s, matrix in zip(spread, _parts(graph), strict=True))
        off = sum(
            (s.radius + (0.0 if s.signed is None else s.signed.abs())) @ matrix.abs()
            for s, matrix in zip(spread, _parts(graph), strict=True)
        )
        assert bool(((a @ jacobian - middle).abs() <= off + SLACK).all())


def _parts(graph):
    """For each input of the last node, the matrix from the network's input to it."""
    n = draw(1, *graph.input_shape)[0].numel()
    found = []
    for i in graph.nodes[-1].inputs:
        found.append(torch.eye(n, dtype=torch.float64) if i == 0 else graph.nodes[i].weight)
    return found


def _forms(graph, form):
    """The form of the network's input's cotangent, as forms of the cotangents of the last node's inputs."""
    return [form @ matrix.T for matrix in _parts(graph)]


def _middles(found):
    return [x.halves[0] for x in found]


def _radii(found):
    return [x.halves[1] for x in found]


@pytest.mark.parametrize("kind", [k for k in NETWORKS if adjoint.knows(k)], ids=lambda kind: kind.__name__)
def test_the_adjoint_is_the_adjoint(kind) -> None:
    graph = NETWORKS[kind]
    node = bare(graph.nodes[-1])
    shapes = [graph.nodes[i].shape for i in node.inputs]
    x, y = [draw(4, *shape) for shape in shapes], draw(4, *node.shape)
    left = (image(node, x) * y).flatten(1).sum(1)
    right = sum((part * own).flatten(1).sum(1) for part, own in zip(adjoint(node, y, shapes), x, strict=True))
    torch.testing.assert_close(left, right)


def test_the_chord_is_above_the_absolute_value() -> None:
    lower = torch.tensor([-2.0, 0.0, 1.0, -3.0, -1.0, 0.5, -torch.inf, -1e-300], dtype=torch.float64)
    upper = torch.tensor([1.0, 2.0, 4.0, -1.0, 0.0, 0.5, 3.0, 1e-300], dtype=torch.float64)
    slope, offset = chord(Interval(lower, upper))
    finite = torch.isfinite(lower)
    for t in torch.linspace(0, 1, 21, dtype=torch.float64):
        point = (lower + t * (upper - lower))[finite]
        assert bool((point.abs() <= slope[finite] * point + offset[finite]).all())
    assert offset[1:6].tolist() == [0.0] * 5
    assert offset[6] == torch.inf
