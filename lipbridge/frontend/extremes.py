"""Capture of maxima, minima and order: of two values, over axes, and whole sorts."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from torch import Tensor

from lipbridge.activations.activation import Term
from lipbridge.frontend.copies import copied
from lipbridge.frontend.diagonal import diagonal
from lipbridge.frontend.pooling import largest, last_axes_flat
from lipbridge.frontend.reader import Arguments, Curve, Deferred, Reader, Unusable, handles
from lipbridge.frontend.shapes import axis_of, seen_as
from lipbridge.graph.nodes import Concat, GroupSort


@dataclass(frozen=True)
class Extreme(Deferred):
    """The larger (or smaller) of two values of equal shape, entry by entry."""

    first: Any
    second: Any
    larger: bool

    def materialise(self, reader: Reader) -> Curve:
        """max(a, b) as max pooling over the pair; min(a, b) = -max(-a, -b)."""
        pair = [self.first, self.second]
        shape = reader.shape_of(pair[0])
        if shape != reader.shape_of(pair[1]):
            raise reader.unsupported("The layers have different shapes.")
        pair = [reader.curve(value) if self.larger else _negated(reader, value) for value in pair]
        rows = [seen_as(reader, value, (1, math.prod(shape))) for value in pair]
        both = Concat(reader.layer, tuple(row.source for row in rows), (2, math.prod(shape)), 0)
        turned = seen_as(reader, reader.append(both), (math.prod(shape), 2), (1, 0))
        made = largest(reader, turned, shape)
        return made if self.larger else _negated(reader, made)


@dataclass(frozen=True)
class AxisExtreme(Deferred):
    """The largest (or smallest) entries of ``value`` along ``axis``; ``keep`` leaves the axis with length one."""

    value: Curve
    axis: int
    keep: bool
    larger: bool
    made: list[Curve] = field(default_factory=lambda: [], compare=False)

    def shape(self, reader: Reader) -> tuple[int, ...]:
        """Without batch."""
        size = reader.shape_of(self.value)
        return (*size[: self.axis], *((1,) if self.keep else ()), *size[self.axis + 1 :])

    def materialise(self, reader: Reader) -> Curve:
        """Max pooling over the axis."""
        if not self.made:
            self.made.append(_over_axes(reader, self.value, [self.axis], self.shape(reader), self.larger))
        return self.made[0]


def _over_axes(reader: Reader, value: Any, axes: list[int], shape: tuple[int, ...], larger: bool) -> Curve:
    value = value if larger else _negated(reader, value)
    found = largest(reader, last_axes_flat(reader, {"self": value, "dim": [axis + 1 for axis in axes]}), shape)
    return found if larger else _negated(reader, found)


def _negated(reader: Reader, value: Any) -> Curve:
    """A node that holds ``-value``."""
    minus = Curve(reader.materialise(value), ((Term("identity", 1.0, -1.0),),))
    return reader.line(minus)


@handles("maximum", "max", "minimum", "min", "fmax", "fmin")
def _extreme(reader: Reader, a: Arguments, shape: tuple[int, ...]) -> Any:
    larger = "max" in reader.operation.split(".")[0]
    if "dim" in a:  # values and indices
        value = reader.curve(a["self"])
        axis = axis_of(reader, a["dim"], len(reader.shape_of(value)))
        return [AxisExtreme(value, axis, bool(a["keepdim"]), larger), Unusable()]
    one, two = a["self"], a.get("other")
    if isinstance(one, Curve | Deferred) and isinstance(two, Curve | Deferred):
        return Extreme(one, two, larger)
    value, constant = (one, two) if isinstance(one, Curve | Deferred) else (two, one)
    if not isinstance(constant, Tensor) or not bool(constant.isfinite().all()):
        raise reader.unsupported("It is that of a layer's values and no finite numbers; amax takes it over axes.")
    return _against(reader, value, constant, shape, larger)


def _against(reader: Reader, value: Any, constant: Tensor, shape: tuple[int, ...], larger: bool) -> Curve:
    """max(t, c) = c + relu(t - c) and min(t, c) = c - relu(c - t), with constants that shift alone."""
    shifted = diagonal(reader, value, None, -constant, shape)
    sign = 1.0 if larger else -1.0
    bent = Curve(shifted.source, ((Term("relu", sign, sign),),))
    return diagonal(reader, bent, None, constant, shape)


@handles("amax", "amin")
def _amax(reader: Reader, a: Arguments, shape: tuple[int, ...]) -> Any:
    value = reader.curve(a["self"])
    rank = len(reader.shape_of(value))
    dims = cast(list[int], a["dim"] if isinstance(a["dim"], list) else [a["dim"]])
    if not dims:
        raise reader.unsupported("It works along the batch.")
    axes = sorted({axis_of(reader, dim, rank) for dim in dims})
    larger = reader.operation.startswith("amax")
    if len(axes) == 1:
        return AxisExtreme(value, axes[0], bool(a["keepdim"]), larger)
    return _over_axes(reader, value, axes, shape, larger)


@handles("aminmax")
def _aminmax(reader: Reader, a: Arguments, shape: tuple[int, ...]) -> Any:
    value = reader.curve(a["self"])
    if a["dim"] is None:
        raise reader.unsupported("It works along the batch.")
    axis = axis_of(reader, a["dim"], len(reader.shape_of(value)))
    return [AxisExtreme(value, axis, bool(a["keepdim"]), larger) for larger in (False, True)]


# --- order -----------------------------------------------------------------------------------------------------------


@handles("sort", "msort")
def _sort(reader: Reader, a: Arguments, shape: tuple[int, ...]) -> Any:
    """Sorting along an axis sorts groups of neighbours once the axes before it are one with it."""
    axis = axis_of(reader, a.get("dim", 0), len(shape))
    found = seen_as(reader, sorted_along(reader, a["self"], axis, bool(a.get("descending"))), shape)
    return [found, Unusable()]


@handles("topk")
def _topk(reader: Reader, a: Arguments, shape: tuple[int, ...]) -> Any:
    """The first of a sort."""
    value = reader.curve(a["self"])
    size = reader.shape_of(value)
    axis = axis_of(reader, a["dim"], len(size))
    if not a["sorted"]:
        raise reader.unsupported("Without an order its entries may stand anywhere.")
    ordered = sorted_along(reader, value, axis, bool(a["largest"]))
    places = torch.arange(math.prod(size)).reshape(size).narrow(axis, 0, shape[axis])
    return [copied(reader, [ordered], places, shape), Unusable()]


def sorted_along(reader: Reader, value: Any, axis: int, descending: bool = False) -> Curve:
    """The value sorted along an axis, with the axes before it in one with it."""
    value = reader.curve(value)
    size = reader.shape_of(value)
    flat = (math.prod(size[: axis + 1]), *size[axis + 1 :])
    return sorted_groups(reader, value, flat, size[axis], descending)


def sorted_groups(reader: Reader, value: Any, flat: tuple[int, ...], group: int, descending: bool) -> Curve:
    """The value in the shape ``flat`` with groups of neighbours along the first axis sorted."""
    value = _negated(reader, value) if descending else value
    source = seen_as(reader, value, flat).source
    made = reader.append(GroupSort(reader.layer, (source,), flat, group))
    return _negated(reader, made) if descending else made


def both_extremes(reader: Reader, values: list[Any]) -> tuple[Curve, list[Tensor]] | None:
    """A maximum and a minimum of the same entries, in either order, as coordinates of one sorted value.

    Together they are an order, which keeps distances; each by itself would be counted with its own constant.
    """
    if len(values) != 2 or type(values[0]) is not type(values[1]) or values[0].larger == values[1].larger:
        return None
    first, second = values
    if isinstance(first, AxisExtreme):
        if (first.value, first.axis) != (second.value, second.axis):
            return None
        size = reader.shape_of(first.value)
        ordered = sorted_along(reader, first.value, first.axis)
        places = torch.arange(math.prod(size)).reshape(size)
        ends = [places.narrow(v.axis, size[v.axis] - 1 if v.larger else 0, 1) for v in (first, second)]
        return ordered, [end.reshape(v.shape(reader)) for end, v in zip(ends, (first, second), strict=True)]
    if {first.first, first.second} != {second.first, second.second}:
        return None
    shape = reader.shape_of(first.first)
    if shape != reader.shape_of(first.second):
        raise reader.unsupported("The layers have different shapes.")
    n = math.prod(shape)
    pairs = copied(reader, [first.first, first.second], torch.arange(2 * n).reshape(2, n).T, (2 * n,))
    ordered = sorted_groups(reader, pairs, (2 * n,), 2, False)
    places = torch.arange(2 * n).reshape(n, 2)
    return ordered, [places[:, int(v.larger)].reshape(shape) for v in (first, second)]


__all__ = ["AxisExtreme", "Extreme", "both_extremes", "sorted_groups"]
