"""Capture of maxima, minima, order and joins: the values are the module's, and an order is one map, of constant one."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import lipbridge
from lipbridge.errors import UnsupportedOperation
from lipbridge.graph.nodes import Concat, Gather, GroupSort, MaxPool
from lipbridge.vocabulary import NORMS
from tests.support.captured import Lambda, agrees, kinds, same

Function = Callable[[Tensor], Tensor]
LEVELS = torch.tensor([[[0.5, -1.0, 0.0, 2.0]]]).expand(1, 3, 4) * torch.tensor([1.0, -1.0, 3.0])[:, None]


def pairs(x: Tensor) -> Tensor:
    """As in deel-torchlip's GroupSort2."""
    y = x.view(x.shape[0], -1, 2)
    return torch.cat([y.min(2, keepdim=True)[0], y.max(2, keepdim=True)[0]], 2).view(x.shape)


def stacked(x: Tensor) -> Tensor:
    y = x.unflatten(1, (-1, 2))
    return torch.stack((y.amax(2), y.amin(2)), 2).flatten(1, 2)


def neighbours(x: Tensor) -> Tensor:
    even, odd = x[:, ::2], x[:, 1::2]
    return torch.cat((torch.minimum(even, odd), torch.maximum(even, odd)), 1)


def ends(x: Tensor) -> Tensor:
    y = x.unflatten(1, (-1, 3))
    return torch.cat(torch.aminmax(y, dim=2), 1)


ORDERS: dict[str, tuple[Function, tuple[int, ...]]] = {
    "pairs": (pairs, (6,)),
    "pairs of channels": (lambda x: stacked(x), (6, 2)),
    "pairs on images": (lambda x: stacked(x), (4, 2, 3)),
    "neighbours": (neighbours, (6,)),
    "neighbours on images": (neighbours, (4, 3, 2)),
    "both ends of three": (ends, (6,)),
    "topk": (lambda x: x.topk(3, 1)[0], (6,)),
    "smallest": (lambda x: x.topk(2, -1, largest=False).values, (2, 5)),
    "sort of an axis": (lambda x: x.sort(2, descending=True).values[:, :, 1:], (2, 4)),
}


@pytest.mark.parametrize("name", ORDERS)
def test_an_order_keeps_distances(name: str) -> None:
    function, shape = ORDERS[name]
    graph = same(Lambda(function), shape)
    assert sum(isinstance(node, GroupSort) for node in graph) == 1
    assert not any(isinstance(node, MaxPool | Concat) for node in graph)
    assert [lipbridge.trivial_bound(graph, p).value for p in NORMS] == [1.0, 1.0, 1.0]


@pytest.mark.parametrize("larger", [True, False])
@pytest.mark.parametrize("keep", [True, False])
@pytest.mark.parametrize("axis", [1, 3, -1])
def test_extremes_over_an_axis(axis: int, keep: bool, larger: bool) -> None:
    function = torch.max if larger else torch.min
    graph = same(Lambda(lambda x: function(x, axis, keep)[0]), (3, 4, 2))
    assert sum(isinstance(node, MaxPool) for node in graph) == 1
    assert all(lipbridge.trivial_bound(graph, p).value == 1.0 for p in NORMS)
    reduced = torch.amax if larger else torch.amin
    assert kinds(same(Lambda(lambda x: reduced(x, (axis, -2), keep)), (3, 4, 2))).count("MaxPool") == 1


@pytest.mark.parametrize("function", [torch.maximum, torch.minimum])
def test_one_extreme_of_two_values(function: Callable[[Tensor, Tensor], Tensor]) -> None:
    graph = same(Lambda(lambda x: function(x.relu(), x.flip(1))), (3, 2))
    assert kinds(graph).count("MaxPool") == 1


def test_maxout() -> None:
    graph = same(Lambda(lambda x: x.view(-1, 3, 2).max(-1)[0]), (6,))
    assert kinds(graph).count("MaxPool") == 1
    assert lipbridge.trivial_bound(graph, 2).value == 1.0


def test_a_value_that_is_read_twice_is_made_once() -> None:
    def function(x: Tensor) -> Tensor:
        y = x.view(-1, 3, 2).max(-1)[0]
        return y + y.relu()

    assert kinds(same(Lambda(function), (6,))).count("MaxPool") == 1


@pytest.mark.parametrize(
    "function",
    [
        lambda x: x.max(1)[1] * 1.0,
        lambda x: torch.topk(x, 2, 1).indices.float(),
        lambda x: x.max(0)[0].expand_as(x),
        lambda x: x.amax().expand(3, 3),
        lambda x: x.topk(2, 1, sorted=False)[0],
    ],
)
def test_indices_and_the_batch_are_refused(function: Function) -> None:
    with pytest.raises(UnsupportedOperation):
        lipbridge.capture(Lambda(function), (3,))


JOINS: dict[str, tuple[Function, tuple[int, ...]]] = {
    "constants": (lambda x: torch.cat([x, torch.ones(len(x), 2)], 1), (3,)),
    "constants before": (lambda x: torch.cat([torch.full((1, 1, 2), 3.0).expand(len(x), 1, 2), x, x * 2], 1), (3, 2)),
    "a stack with a constant": (lambda x: torch.stack([x.relu(), torch.arange(3.0).expand(len(x), 3)], 1), (3,)),
    "parts in another order": (lambda x: torch.cat([x[:, 2:], x[:, :2]], 1), (5,)),
    "parts of parts": (lambda x: torch.cat([x.flip(1)[:, :2], x.flip(1)], 1), (3, 2)),
}


@pytest.mark.parametrize("name", JOINS)
def test_joins(name: str) -> None:
    function, shape = JOINS[name]
    same(Lambda(function), shape)


def test_parts_that_are_joined_again_are_one_choice_of_coordinates() -> None:
    graph = same(Lambda(lambda x: torch.cat([x[:, 2:], x[:, :2]], 1)), (5, 2))
    assert [type(node) for node in graph.nodes[1:]] == [Gather]
    graph = same(Lambda(lambda x: torch.cat(x.split([2, 1, 2], 1), 1)), (5,))
    assert len(graph.nodes) == 1


def test_constants_that_differ_between_inputs_are_refused() -> None:
    with pytest.raises(UnsupportedOperation):
        lipbridge.capture(Lambda(lambda x: torch.cat([x, torch.arange(len(x) * 2.0).reshape(len(x), 2)], 1)), (3,))


@pytest.mark.parametrize(
    "function",
    [
        lambda x: torch.maximum(x, LEVELS),
        lambda x: torch.minimum(LEVELS[:, :1], x),
        lambda x: torch.max(x.sin(), LEVELS),
        lambda x: torch.fmin(x, torch.tensor(0.3)),
        lambda x: torch.maximum(x, torch.zeros_like(x)),
        lambda x: torch.maximum(x[:, :1], LEVELS),
    ],
)
def test_against_constants(function) -> None:
    graph = agrees(Lambda(function), (3, 4))
    assert lipbridge.trivial_bound(graph, "inf").value == 1.0


def test_against_a_learnable_constant() -> None:
    """The threshold of FRN's activation is no part of the bound, and the penalty is live."""

    class Thresholded(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.tau = nn.Linear(4, 3), nn.Parameter(torch.randn(1, 3))

        def forward(self, x: Tensor) -> Tensor:
            return torch.maximum(self.first(x), self.tau)

    module = Thresholded()
    penalty = lipbridge.TrivialBoundPenalty(module)
    with torch.no_grad():
        module.tau.mul_(-3.0)
        module.first.weight.mul_(2.0)
    penalty().backward()
    assert float(module.first.weight.grad.abs().sum()) > 0.0
    assert penalty.bound().value == pytest.approx(lipbridge.trivial_bound(module).value, rel=1e-6)


def test_infinite_constants_are_refused() -> None:
    with pytest.raises(UnsupportedOperation, match="finite"):
        lipbridge.capture(Lambda(lambda x: torch.maximum(x, torch.full((4,), -torch.inf))), (4,))
