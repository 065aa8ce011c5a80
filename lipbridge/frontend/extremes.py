"""Maxima, minima and order: of two values, over axes, and whole sorts."""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from lipbridge.activations.activation import Term
from lipbridge.frontend.builder import Curve, Deferred, GraphBuilder
from lipbridge.frontend.copies import copied
from lipbridge.frontend.diagonal import diagonal
from lipbridge.frontend.pooling import largest, last_axes_flat
from lipbridge.frontend.shapes import seen_as
from lipbridge.graph.nodes import Concat, GroupSort


@dataclass(frozen=True)
class Extreme(Deferred):
    """The larger (or smaller) of two values of equal shape, entry by entry."""

    first: Any
    second: Any
    larger: bool

    def materialise(self, builder: GraphBuilder) -> Curve:
        """max(a, b) as max pooling over the pair; min(a, b) = -max(-a, -b)."""
        pair = [self.first, self.second]
        shape = builder.shape_of(pair[0])
        if shape != builder.shape_of(pair[1]):
            raise builder.unsupported("The layers have different shapes.")
        pair = [builder.curve(value) if self.larger else _negated(builder, value) for value in pair]
        rows = [seen_as(builder, value, (1, math.prod(shape))) for value in pair]
        both = Concat(builder.layer, tuple(row.source for row in rows), (2, math.prod(shape)), 0)
        turned = seen_as(builder, builder.append(both), (math.prod(shape), 2), (1, 0))
        made = largest(builder, turned, shape)
        return made if self.larger else _negated(builder, made)


@dataclass(frozen=True)
class AxisExtreme(Deferred):
    """The largest (or smallest) entries of ``value`` along ``axis``; ``keep`` leaves the axis with length one."""

    value: Curve
    axis: int
    keep: bool
    larger: bool
    made: list[Curve] = field(default_factory=lambda: [], compare=False)

    def shape(self, builder: GraphBuilder) -> tuple[int, ...]:
        """Without batch."""
        size = builder.shape_of(self.value)
        return (*size[: self.axis], *((1,) if self.keep else ()), *size[self.axis + 1 :])

    def materialise(self, builder: GraphBuilder) -> Curve:
        """Max pooling over the axis."""
        if not self.made:
            self.made.append(_over_axes(builder, self.value, [self.axis], self.shape(builder), self.larger))
        return self.made[0]


def _over_axes(builder: GraphBuilder, value: Any, axes: list[int], shape: tuple[int, ...], larger: bool) -> Curve:
    value = value if larger else _negated(builder, value)
    found = largest(builder, last_axes_flat(builder, value, axes), shape)
    return found if larger else _negated(builder, found)


def _negated(builder: GraphBuilder, value: Any) -> Curve:
    """A node that holds ``-value``."""
    minus = Curve(builder.materialise(value), ((Term("identity", 1.0, -1.0),),))
    return builder.line(minus)


def extreme_with(builder: GraphBuilder, value: Any, constant: Any, shape: tuple[int, ...], larger: bool) -> Curve:
    """The larger (or smaller) of a value and a constant, entry by entry."""
    if not isinstance(constant, Tensor) or not bool(constant.isfinite().all()):
        raise builder.unsupported("It is that of a layer's values and no finite numbers; amax takes it over axes.")
    return _against(builder, value, constant, shape, larger)


def _against(builder: GraphBuilder, value: Any, constant: Tensor, shape: tuple[int, ...], larger: bool) -> Curve:
    """max(t, c) = c + relu(t - c) and min(t, c) = c - relu(c - t), with constants that shift alone."""
    shifted = diagonal(builder, value, None, -constant, shape)
    sign = 1.0 if larger else -1.0
    bent = Curve(shifted.source, ((Term("relu", sign, sign),),))
    return diagonal(builder, bent, None, constant, shape)


def extreme_over(
    builder: GraphBuilder, value: Any, axes: Collection[int], keep: bool, larger: bool, shape: tuple[int, ...]
) -> AxisExtreme | Curve:
    """The largest (or smallest) entries over axes of the shape; ``keep`` leaves these with length one."""
    value, over = builder.curve(value), sorted(set(axes))
    if len(over) == 1:
        return AxisExtreme(value, over[0], keep, larger)
    return _over_axes(builder, value, over, shape, larger)


# --- order -----------------------------------------------------------------------------------------------------------


def sort(builder: GraphBuilder, value: Any, axis: int, descending: bool, shape: tuple[int, ...]) -> Curve:
    """The value sorted along an axis, in ``shape``."""
    return seen_as(builder, sorted_along(builder, value, axis, descending), shape)


def first_sorted(builder: GraphBuilder, value: Any, axis: int, largest: bool, shape: tuple[int, ...]) -> Curve:
    """The first of a sort, as many along an axis as ``shape`` has."""
    value = builder.curve(value)
    size = builder.shape_of(value)
    ordered = sorted_along(builder, value, axis, largest)
    places = torch.arange(math.prod(size)).reshape(size).narrow(axis, 0, shape[axis])
    return copied(builder, [ordered], places, shape)


def sorted_along(builder: GraphBuilder, value: Any, axis: int, descending: bool = False) -> Curve:
    """The value sorted along an axis, with the axes before it in one with it."""
    value = builder.curve(value)
    size = builder.shape_of(value)
    flat = (math.prod(size[: axis + 1]), *size[axis + 1 :])
    return sorted_groups(builder, value, flat, size[axis], descending)


def sorted_groups(builder: GraphBuilder, value: Any, flat: tuple[int, ...], group: int, descending: bool) -> Curve:
    """The value in the shape ``flat`` with groups of neighbours along the first axis sorted."""
    value = _negated(builder, value) if descending else value
    source = seen_as(builder, value, flat).source
    made = builder.append(GroupSort(builder.layer, (source,), flat, group))
    return _negated(builder, made) if descending else made


def both_extremes(builder: GraphBuilder, values: list[Any]) -> tuple[Curve, list[Tensor]] | None:
    """A maximum and a minimum of the same entries, in either order, as coordinates of one sorted value.

    Together they are an order, which keeps distances; each by itself would be counted with its own constant.
    """
    if len(values) != 2 or type(values[0]) is not type(values[1]) or values[0].larger == values[1].larger:
        return None
    first, second = values
    if isinstance(first, AxisExtreme):
        if (first.value, first.axis) != (second.value, second.axis):
            return None
        size = builder.shape_of(first.value)
        ordered = sorted_along(builder, first.value, first.axis)
        places = torch.arange(math.prod(size)).reshape(size)
        ends = [places.narrow(v.axis, size[v.axis] - 1 if v.larger else 0, 1) for v in (first, second)]
        return ordered, [end.reshape(v.shape(builder)) for end, v in zip(ends, (first, second), strict=True)]
    if {first.first, first.second} != {second.first, second.second}:
        return None
    shape = builder.shape_of(first.first)
    if shape != builder.shape_of(first.second):
        raise builder.unsupported("The layers have different shapes.")
    n = math.prod(shape)
    pairs = copied(builder, [first.first, first.second], torch.arange(2 * n).reshape(2, n).T, (2 * n,))
    ordered = sorted_groups(builder, pairs, (2 * n,), 2, False)
    places = torch.arange(2 * n).reshape(n, 2)
    return ordered, [places[:, int(v.larger)].reshape(shape) for v in (first, second)]


__all__ = [
    "AxisExtreme",
    "Extreme",
    "both_extremes",
    "extreme_over",
    "extreme_with",
    "first_sorted",
    "sort",
    "sorted_groups",
]
