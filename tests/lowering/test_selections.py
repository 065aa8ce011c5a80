"""Sorting and max pooling as comparators: the same function."""

from __future__ import annotations

import pytest
import torch

from lipbridge.graph.graph import Graph
from lipbridge.graph.nodes import GroupSort, Input, MaxPool
from lipbridge.lowering.selections import lower_selections, merge_exchange


@pytest.mark.parametrize("n", range(1, 12))
def test_comparators_sort_and_those_of_a_round_are_apart(n: int) -> None:
    x = torch.randn(100, n)
    ordered = x.sort(1).values
    for comparators in merge_exchange(n):
        places = [place for pair in comparators for place in pair]
        assert len(places) == len(set(places))
        for i, j in comparators:
            a, b = x[:, i].clone(), x[:, j].clone()
            x[:, i], x[:, j] = torch.minimum(a, b), torch.maximum(a, b)
    assert torch.equal(x, ordered)


@pytest.mark.parametrize("group", [2, 3, 4, 5])
def test_sorted_groups(group: int) -> None:
    shape = (2 * group, 3)
    graph = Graph((Input("x", (), shape), GroupSort("s", (0,), shape, group)))
    check(graph)


@pytest.mark.parametrize(
    ("shape", "pool"),
    [
        ((2, 8, 8), MaxPool("m", (0,), (2, 4, 4), (3, 2), (2, 2), (1, 0), (1, 1))),
        ((2, 7, 6), MaxPool("m", (0,), (2, 3, 3), (2, 2), (2, 2), (0, 0), (2, 1))),
        ((2, 8, 8), MaxPool("m", (0,), (2, 3, 3), (3, 3), (3, 3), (0, 0), (1, 1), True)),
    ],
)
def test_pooled_windows(shape: tuple[int, ...], pool: MaxPool) -> None:
    check(Graph((Input("x", (), shape), pool)))


def check(graph: Graph) -> None:
    lowered = lower_selections(graph)
    assert not any(isinstance(node, MaxPool | GroupSort) for node in lowered)
    x = torch.randn(50, *graph.input_shape, dtype=torch.float64)
    torch.testing.assert_close(lowered(x), graph(x), rtol=1e-14, atol=1e-14)
