"""Sums, running sums, differences and interpolation along axes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch

from lipbridge.frontend.aten.registry import Arguments, axis_of, handles
from lipbridge.frontend.axes import along, interpolation, total
from lipbridge.frontend.builder import Curve, GraphBuilder


@handles("sum")
def _sum(builder: GraphBuilder, a: Arguments, shape: tuple[int, ...]) -> Curve:
    value = builder.curve(a["self"])
    size = builder.shape_of(value)
    dims = cast(Any, a.get("dim"))
    dims = list(cast(Sequence[int], dims)) if isinstance(dims, list | tuple) else [] if dims is None else [dims]
    if not dims:
        raise builder.unsupported("It works along the batch.")
    if isinstance(a.get("dtype"), torch.dtype) and not a["dtype"].is_floating_point:
        raise builder.unsupported("A sum of integers is no continuous function.")
    return total(builder, value, [axis_of(builder, dim, len(size)) for dim in dims], shape)


@handles("cumsum")
def _cumsum(builder: GraphBuilder, a: Arguments, shape: tuple[int, ...]) -> Curve:
    axis = axis_of(builder, a["dim"], len(shape))
    return along(builder, a["self"], axis, torch.ones(shape[axis], shape[axis], dtype=torch.float64).tril())


@handles("diff")
def _diff(builder: GraphBuilder, a: Arguments, shape: tuple[int, ...]) -> Curve:
    if a["n"] != 1 or a["prepend"] is not None or a["append"] is not None:
        raise builder.unsupported("Only first differences, with nothing put before or behind, are read.")
    size = builder.shape_of(a["self"])
    axis = axis_of(builder, a["dim"], len(size))
    unit = torch.eye(size[axis], dtype=torch.float64)
    return along(builder, a["self"], axis, unit[1:] - unit[:-1])


@handles("upsample_linear1d", "upsample_bilinear2d", "upsample_trilinear3d")
def _upsample(builder: GraphBuilder, a: Arguments, shape: tuple[int, ...]) -> Curve:
    """Along one axis after the other; the shares are those of real numbers, with their errors."""
    value = builder.curve(a["input"] if "input" in a else a["self"])
    size = builder.shape_of(value)
    rank = len(shape) - 1
    names = {1: ["scales"], 2: ["scales_h", "scales_w"], 3: ["scales_d", "scales_h", "scales_w"]}[rank]
    factors: list[Any] = list(a["scale_factors"] or [None] * rank) if "scale_factors" in a else [a[n] for n in names]
    for axis, factor in enumerate(factors, start=1):
        if shape[axis] != size[axis] or factor not in (None, 1.0):
            rows = interpolation(size[axis], shape[axis], bool(a["align_corners"]), factor)
            value = along(builder, value, axis, rows)
    return value
