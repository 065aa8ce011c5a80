"""Copies: an operation whose every output is one of its inputs, or zero."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import permutations
from typing import Any

import torch
from torch import Tensor

from lipbridge.frontend.builder import LINE, Curve, Deferred, GraphBuilder
from lipbridge.graph.nodes import Concat, Gather, Node, Reshape

#: Axes of a value up to which copies are looked through for a transposition.
_MOST_AXES = 5


class Copies(Deferred):
    """A choice of coordinates of ``value``, not yet a node; whoever copies on takes them from the value itself."""

    value: Curve

    def places(self, builder: GraphBuilder) -> Tensor:
        """Which coordinates of the flattened value they are, in their shape; -1 for zero."""
        raise NotImplementedError

    def materialise(self, builder: GraphBuilder) -> Curve:
        """A node that copies."""
        places = self.places(builder)
        return copied(builder, [self.value], places, tuple(places.shape))


def copied(builder: GraphBuilder, values: Sequence[Any], index: Tensor, shape: tuple[int, ...]) -> Curve:
    """The coordinates ``index`` of the flattened ``values``, one after the other, -1 for zero, in ``shape``.

    Nothing is made for the identity, and a ``Reshape`` where coordinates keep their order or axes change places.
    Copies of copies, and of reshaped ones, are copies of the first value.
    """
    source, index = _joined(builder, [origin(builder, value) for value in values], index.flatten().cpu())
    before = builder.nodes[source].shape
    if index.numel() == math.prod(before):
        axes = _transposition(index, before)
        if axes == tuple(range(len(before))):
            return Curve(source, (LINE,)) if before == shape else _once(builder, _reshape(builder, source, shape))
        if axes is not None:
            return _once(builder, _reshape(builder, source, shape, axes))
    return _once(builder, Gather(builder.layer, (source,), shape, index.to(builder.device).contiguous()))


def broadcast(builder: GraphBuilder, value: Any, shape: tuple[int, ...]) -> Curve:
    """A value repeated along axes of length one, as torch does in an operation on two; itself if it has the shape.

    Raises:
        UnsupportedOperation: if its axes are others, so that the batch would meet another axis.
    """
    size = builder.shape_of(value)
    if size == shape:
        return builder.curve(value)
    if len(size) != len(shape) or any(n not in (1, m) for n, m in zip(size, shape, strict=True)):
        raise builder.unsupported(f"Values of shape {size} do not fit the shape {shape}.")
    return copied(builder, [value], torch.arange(math.prod(size)).reshape(size).expand(shape), shape)


def _once(builder: GraphBuilder, node: Gather | Reshape) -> Curve:
    """A node, or the same one if there is one already: what waits may be asked for more than once."""
    for place in range(len(builder.nodes) - 1, node.inputs[0], -1):
        other = builder.nodes[place]
        if (
            type(other) is type(node)
            and (other.inputs, other.shape) == (node.inputs, node.shape)
            and _equal(other, node)
        ):
            return Curve(place, (LINE,))
    return builder.append(node)


def _equal(first: Node, second: Node) -> bool:
    if isinstance(first, Gather) and isinstance(second, Gather):
        return torch.equal(first.index, second.index)
    return isinstance(first, Reshape) and isinstance(second, Reshape) and first.axes == second.axes


def _before(builder: GraphBuilder, source: int, index: Tensor) -> tuple[int, Tensor]:
    """The first node that coordinates ``index`` of node ``source`` are copies of, and which of its they are."""
    while True:
        node = builder.nodes[source]
        if isinstance(node, Gather):
            before = node.index.cpu()
        elif isinstance(node, Reshape):
            inner = builder.nodes[node.inputs[0]].shape
            before = torch.arange(math.prod(inner)).reshape(inner)
            before = (before if node.axes is None else before.permute(node.axes)).flatten()
        else:
            return source, index
        index = torch.where(index >= 0, before[index.clamp_min(0)], -1)
        source = node.inputs[0]


def origin(builder: GraphBuilder, value: Any) -> tuple[int, Tensor]:
    """The node that a value is a copy of, and which coordinates it holds, flattened; itself if it is none."""
    if isinstance(value, Copies):
        return _before(builder, builder.materialise(value.value), value.places(builder).flatten())
    source = builder.materialise(value)
    return _before(builder, source, torch.arange(math.prod(builder.nodes[source].shape)))


def _joined(builder: GraphBuilder, origins: list[tuple[int, Tensor]], index: Tensor) -> tuple[int, Tensor]:
    """One node that all coordinates are copies of, a ``Concat`` if there are several."""
    first = {root: 0 for root, _ in origins}
    start = 0
    for root in first:
        first[root] = start
        start += math.prod(builder.nodes[root].shape)
    table = torch.cat([torch.where(places >= 0, places + first[root], -1) for root, places in origins])
    index = torch.where(index >= 0, table[index.clamp_min(0)], -1)
    if len(first) == 1:
        return origins[0][0], index
    flat = [_flat(builder, root) for root in first]
    return builder.append(Concat(builder.layer, tuple(flat), (start,), 0)).source, index


def _flat(builder: GraphBuilder, source: int) -> int:
    shape = builder.nodes[source].shape
    return source if len(shape) == 1 else builder.append(_reshape(builder, source, (math.prod(shape),))).source


def _reshape(
    builder: GraphBuilder, source: int, shape: tuple[int, ...], axes: tuple[int, ...] | None = None
) -> Reshape:
    return Reshape(builder.layer, (source,), shape, axes)


def _transposition(index: Tensor, shape: tuple[int, ...]) -> tuple[int, ...] | None:
    """The order of axes by which all coordinates are taken, if there is one."""
    numbers = torch.arange(index.numel()).reshape(shape)
    if torch.equal(index, numbers.flatten()):
        return tuple(range(len(shape)))
    if not 2 <= len(shape) <= _MOST_AXES or bool((index[:1] != 0).any()) or int(index[-1]) != index.numel() - 1:
        return None
    for axes in permutations(range(len(shape))):
        if torch.equal(index, numbers.permute(axes).flatten()):
            return axes
    return None


__all__ = ["Copies", "broadcast", "copied", "origin"]
