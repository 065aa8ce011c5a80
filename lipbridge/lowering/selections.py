"""Max pooling and sorting as activations: comparators ``max(a, b) = b + relu(a - b)``, ``min(a, b) = a - relu(a - b)``.

A maximum over a window is a tournament, and a group is sorted by Batcher's merge exchange (Knuth 1973, algorithm
5.2.2 M), whose comparators of one round do not meet. Nothing is rounded: all factors are one or minus one.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, cast

import torch

from lipbridge.activations.activation import Term, derive
from lipbridge.activations.registry import activation
from lipbridge.graph.graph import Graph
from lipbridge.graph.nodes import Add, Concat, Elementwise, Gather, GroupSort, MaxPool, Node, Reshape
from lipbridge.graph.windows import window_places


def lower_selections(graph: Graph) -> Graph:
    """The same function without MaxPool and GroupSort; other nodes stay as they are.

    Law: ``lower_selections(g)(x)`` equals ``g(x)`` up to float64 rounding, and exactly as functions of real numbers.
    """
    return _Writer(graph).run()


class _Writer:
    """One pass; what old nodes became, by index."""

    def __init__(self, graph: Graph) -> None:
        self.old = graph
        self.nodes: list[Node] = [graph.nodes[0]]

    def run(self) -> Graph:
        self.old.fold(0, self.write)
        return replace(self.old, nodes=tuple(self.nodes))

    def write(self, index: int, node: Node, sources: list[int]) -> int:
        if isinstance(node, MaxPool):
            return self.maximum(node, sources[0])
        if isinstance(node, GroupSort):
            return self.sorted(node, sources[0])
        return self.add(replace(node, inputs=tuple(sources)))

    def add(self, node: Node) -> int:
        self.nodes.append(node)
        return len(self.nodes) - 1

    def chosen(self, name: str, source: int, places: Sequence[int]) -> int:
        index = torch.tensor(list(places), dtype=torch.int64, device=self.old.device)
        return self.add(Gather(name, (source,), (len(places),), index))

    def compared(self, name: str, source: int, pairs: Sequence[tuple[int, int]]) -> tuple[int, int, int]:
        """The nodes of the first entries, the second ones, and of ``relu(first - second)``."""
        size = (len(pairs),)
        first, second = (self.chosen(name, source, [pair[side] for pair in pairs]) for side in (0, 1))
        difference = self.add(Add(name, (first, self.negative(name, second, size)), size))
        return first, second, self.add(Elementwise(name, (difference,), size, activation("relu")))

    def negative(self, name: str, source: int, size: tuple[int, ...]) -> int:
        line = derive("negative", ((Term("identity", 1.0, -1.0),),))
        return self.add(Elementwise(name, (source,), size, line))

    def maximum(self, node: MaxPool, source: int) -> int:
        shape = self.nodes[source].shape
        windows = lists(window_places(node, shape[1:], torch.device("cpu")))
        space = math.prod(shape[1:])
        alive = [[c * space + p for p in window if p >= 0] for c in range(shape[0]) for window in windows]
        while any(len(window) > 1 for window in alive):
            pairs = [pair for window in alive for pair in zip(window[::2], window[1::2], strict=False)]
            rest = [window[-1] for window in alive if len(window) % 2]
            _, second, positive = self.compared(node.name, source, pairs)
            size = (len(pairs),)
            larger = self.add(Add(node.name, (second, positive), size))
            if rest:
                others = self.chosen(node.name, source, rest)
                larger = self.add(Concat(node.name, (larger, others), (len(pairs) + len(rest),)))
            won, passed = iter(range(len(pairs))), iter(range(len(pairs), len(pairs) + len(rest)))
            alive = [
                [next(won) for _ in window[1::2]] + [next(passed) for _ in window[: len(window) % 2]]
                for window in alive
            ]
            source = larger
        ordered = self.chosen(node.name, source, [window[0] for window in alive])
        return self.add(Reshape(node.name, (ordered,), node.shape))

    def sorted(self, node: GroupSort, source: int) -> int:
        places = torch.arange(math.prod(node.shape)).reshape(-1, node.group, math.prod(node.shape[1:]))
        groups = lists(places.movedim(1, 2).flatten(0, 1))
        source = self.chosen(node.name, source, list(range(math.prod(node.shape))))
        for comparators in merge_exchange(node.group):
            pairs = [(group[i], group[j]) for group in groups for i, j in comparators]
            first, second, positive = self.compared(node.name, source, pairs)
            size = (len(pairs),)
            larger = self.add(Add(node.name, (second, positive), size))
            smaller = self.add(Add(node.name, (first, self.negative(node.name, positive, size)), size))
            parts = [smaller, larger]
            compared = {place for pair in pairs for place in pair}
            rest = [place for group in groups for place in group if place not in compared]
            if rest:
                parts.append(self.chosen(node.name, source, rest))
            total = 2 * len(pairs) + len(rest)
            joined = self.add(Concat(node.name, tuple(parts), (total,)))
            stand = [pair[0] for pair in pairs] + [pair[1] for pair in pairs] + rest
            source = self.chosen(node.name, joined, sorted(range(total), key=stand.__getitem__))
        return self.add(Reshape(node.name, (source,), node.shape))


def lists(table: torch.Tensor) -> list[list[int]]:
    """A table of whole numbers as lists."""
    return cast(Any, table).tolist()


def merge_exchange(n: int) -> list[list[tuple[int, int]]]:
    """Rounds of comparators (i, j), i < j, that sort n entries; the smaller one goes to i."""
    rounds: list[list[tuple[int, int]]] = []
    top = 1 << max(0, (n - 1).bit_length() - 1) if n > 1 else 0
    p = top
    while p > 0:
        q, r, d = top, 0, p
        while True:
            rounds.append([(i, i + d) for i in range(n - d) if i & p == r])
            if q == p:
                break
            d, q, r = q - p, q // 2, p
        p //= 2
    return [pairs for pairs in rounds if pairs]


__all__ = ["lower_selections", "merge_exchange"]
