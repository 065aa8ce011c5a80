"""Maxima, minima and order: of two values, over axes, and whole sorts."""

from __future__ import annotations

from typing import Any, cast

from lipbridge.frontend.aten.registry import Arguments, axis_of, handles, plain_name
from lipbridge.frontend.builder import Curve, Deferred, GraphBuilder, Unusable
from lipbridge.frontend.extremes import AxisExtreme, Extreme, extreme_over, extreme_with, first_sorted, sort


@handles("maximum", "max", "minimum", "min", "fmax", "fmin")
def _extreme(builder: GraphBuilder, a: Arguments, shape: tuple[int, ...]) -> Any:
    larger = "max" in plain_name(builder)
    if "dim" in a:  # values and indices
        value = builder.curve(a["self"])
        axis = axis_of(builder, a["dim"], len(builder.shape_of(value)))
        return [AxisExtreme(value, axis, bool(a["keepdim"]), larger), Unusable()]
    one, two = a["self"], a.get("other")
    if isinstance(one, Curve | Deferred) and isinstance(two, Curve | Deferred):
        return Extreme(one, two, larger)
    value, constant = (one, two) if isinstance(one, Curve | Deferred) else (two, one)
    return extreme_with(builder, value, constant, shape, larger)


@handles("amax", "amin")
def _amax(builder: GraphBuilder, a: Arguments, shape: tuple[int, ...]) -> Any:
    value = builder.curve(a["self"])
    rank = len(builder.shape_of(value))
    dims = cast(list[int], a["dim"] if isinstance(a["dim"], list) else [a["dim"]])
    if not dims:
        raise builder.unsupported("It works along the batch.")
    axes = {axis_of(builder, dim, rank) for dim in dims}
    larger = builder.operation.startswith("amax")
    return extreme_over(builder, value, axes, bool(a["keepdim"]), larger, shape)


@handles("aminmax")
def _aminmax(builder: GraphBuilder, a: Arguments, shape: tuple[int, ...]) -> Any:
    value = builder.curve(a["self"])
    if a["dim"] is None:
        raise builder.unsupported("It works along the batch.")
    axis = axis_of(builder, a["dim"], len(builder.shape_of(value)))
    return [AxisExtreme(value, axis, bool(a["keepdim"]), larger) for larger in (False, True)]


@handles("sort", "msort")
def _sort(builder: GraphBuilder, a: Arguments, shape: tuple[int, ...]) -> Any:
    """Sorting along an axis sorts groups of neighbours once the axes before it are one with it."""
    axis = axis_of(builder, a.get("dim", 0), len(shape))
    return [sort(builder, a["self"], axis, bool(a.get("descending")), shape), Unusable()]


@handles("topk")
def _topk(builder: GraphBuilder, a: Arguments, shape: tuple[int, ...]) -> Any:
    """The first of a sort."""
    value = builder.curve(a["self"])
    axis = axis_of(builder, a["dim"], len(builder.shape_of(value)))
    if not a["sorted"]:
        raise builder.unsupported("Without an order its entries may stand anywhere.")
    return [first_sorted(builder, value, axis, bool(a["largest"]), shape), Unusable()]
