"""Pooling: averages are convolutions (their shares rounded up), maxima are ``MaxPool``."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor

from lipbridge.frontend.axes import along, averages, windows
from lipbridge.frontend.builder import FIXED, Curve, GraphBuilder
from lipbridge.frontend.copies import copied
from lipbridge.frontend.diagonal import diagonal, shares
from lipbridge.frontend.layers import Padded
from lipbridge.graph.nodes import Conv, MaxPool, Reshape


def average_pool(
    builder: GraphBuilder,
    value: Any,
    shape: tuple[int, ...],
    *,
    kernel: tuple[int, ...],
    stride: tuple[int, ...],
    padding: tuple[int, ...],
    with_padding: bool,
    divisor: int | None = None,
) -> Curve:
    """Averages over windows, which count the padding or do not; or their sums over another ``divisor``."""
    size = builder.shape_of(value)
    counts = [_counts(*axis, with_padding) for axis in zip(shape[1:], size[1:], kernel, stride, padding, strict=True)]
    total = counts[0]
    for count in counts[1:]:
        total = total[..., None] * count
    if divisor:
        total = torch.full_like(total, divisor)  # which may be negative
    return _average(builder, value, (kernel, stride, padding), total, shape)


def _counts(outputs: int, size: int, kernel: int, stride: int, padding: int, with_padding: bool) -> Tensor:
    """How many entries torch divides each window of one axis by."""
    start = torch.arange(outputs) * stride - padding
    end = (start + kernel).clamp(max=size + padding)
    return end - start if with_padding else end.clamp(max=size) - start.clamp(min=0)


def _average(
    builder: GraphBuilder,
    value: Any,
    geometry: tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]],
    counts: Tensor,
    shape: tuple[int, ...],
) -> Curve:
    """Sums over windows, divided by ``counts``, one number for each position."""
    channels, *space = builder.shape_of(value)
    kernel, stride, before = geometry
    axes = zip(shape[1:], space, kernel, stride, before, strict=True)
    padding = tuple((b, max(0, (m - 1) * s + k - n - b)) for m, n, k, s, b in axes)
    uniform = bool((counts == counts.flatten()[0]).all())
    factor = shares(counts.flatten()[:1]) if uniform else torch.ones(1, dtype=torch.float64)
    weight = factor.to(builder.device).expand(channels * math.prod(kernel)).reshape(channels, 1, *kernel)
    source = builder.materialise(value)
    node = Conv(
        builder.layer, (source,), shape, weight, None, stride, padding, (1,) * len(kernel), channels, parameter=FIXED
    )
    made = builder.append(node)
    if uniform:
        return made
    return diagonal(builder, made, shares(counts).to(builder.device)[None], None, shape, FIXED)


def adaptive_average_pool(builder: GraphBuilder, value: Any, shape: tuple[int, ...]) -> Curve:
    """Averages over as many windows along each axis as ``shape`` has entries."""
    kernel = _divided(builder, value, shape)
    if kernel is None:  # an average over a box is one of averages along its axes
        value = builder.curve(value)
        for axis, (n, m) in enumerate(zip(builder.shape_of(value)[1:], shape[1:], strict=True), start=1):
            value = along(builder, value, axis, averages(n, m))
        return value
    return _average(builder, value, (kernel, kernel, (0,) * len(kernel)), _full(kernel, shape), shape)


def _divided(builder: GraphBuilder, value: Any, shape: tuple[int, ...]) -> tuple[int, ...] | None:
    """The windows of adaptive pooling, if they have one size and do not overlap."""
    size = builder.shape_of(value)[1:]
    if any(n % m for n, m in zip(size, shape[1:], strict=True)):
        return None
    return tuple(n // m for n, m in zip(size, shape[1:], strict=True))


def _full(kernel: tuple[int, ...], shape: tuple[int, ...]) -> Tensor:
    return torch.full(shape[1:], int(torch.tensor(kernel).prod()))


def mean(builder: GraphBuilder, value: Any, axes: Sequence[int], shape: tuple[int, ...]) -> Curve:
    """The average over axes of the shape, in ``shape``."""
    made = last_axes_flat(builder, value, axes)
    rows, n = builder.shape_of(made)
    average = _average(builder, made, ((n,), (n,), (0,)), torch.full((1,), n), (rows, 1))
    return builder.append(Reshape(builder.layer, (average.source,), shape))


def largest(builder: GraphBuilder, value: Any, shape: tuple[int, ...]) -> Curve:
    """The maximum of each row of ``(rows, n)``, in ``shape``."""
    rows, n = builder.shape_of(value)
    pool = MaxPool(builder.layer, (builder.materialise(value),), (rows, 1), (n,), (n,), (0,), (1,))
    return builder.append(Reshape(builder.layer, (builder.append(pool).source,), shape))


def last_axes_flat(builder: GraphBuilder, value: Any, axes: Sequence[int]) -> Curve:
    """The value as ``(rows, n)``, the axes that an operation runs over last."""
    size, over = builder.shape_of(value), sorted(set(axes))
    order = [axis for axis in range(len(size)) if axis not in over] + over
    n = 1
    for axis in over:
        n *= size[axis]
    rows = 1
    for length in size:
        rows *= length
    source = builder.materialise(value)
    axes_moved = None if order == sorted(order) else tuple(order)
    return builder.append(Reshape(builder.layer, (source,), (rows // n, n), axes_moved))


def max_pool(
    builder: GraphBuilder,
    x: Any,
    shape: tuple[int, ...],
    *,
    kernel: tuple[int, ...],
    stride: tuple[int, ...],
    padding: tuple[int, ...],
    dilation: tuple[int, ...],
    ceil_mode: bool = False,
) -> Curve:
    """The largest entry of each window; padding with minus infinity that waits becomes its own."""
    if isinstance(x, Padded) and x.fill == float("-inf") and not any(padding):
        fits = all(before == after <= k // 2 for (before, after), k in zip(x.padding, kernel, strict=True))
        if fits:
            x, padding = x.value, tuple(before for before, _ in x.padding)
    source = builder.materialise(x)
    geometry = (kernel, stride, padding, dilation, ceil_mode)
    return builder.append(MaxPool(builder.layer, (source,), shape, *geometry))


def adaptive_max_pool(builder: GraphBuilder, value: Any, shape: tuple[int, ...]) -> Curve:
    """The largest entries of as many windows along each axis as ``shape`` has entries."""
    kernel = _divided(builder, value, shape)
    if kernel is None:
        return _largest_of_windows(builder, value, shape)
    none, ones = (0,) * len(kernel), (1,) * len(kernel)
    source = builder.materialise(value)
    return builder.append(MaxPool(builder.layer, (source,), shape, kernel, kernel, none, ones))


def _largest_of_windows(builder: GraphBuilder, value: Any, shape: tuple[int, ...]) -> Curve:
    """The maximum over windows of different sizes, each with its middle entry repeated, which changes no maximum."""
    size = builder.shape_of(value)
    numbers = torch.arange(math.prod(size)).reshape(size)
    for axis, (n, m) in enumerate(zip(size[1:], shape[1:], strict=True), start=1):
        spans = windows(n, m)
        most = max(end - start for start, end in spans)
        rows = [[*range(start, end), *[(start + end) // 2] * (most - end + start)] for start, end in spans]
        # The positions of an axis become windows, and their entries an axis at the end.
        places = torch.tensor(rows).flatten()
        numbers = cast(Tensor, cast(Any, numbers.index_select(axis, places)).unflatten(axis, (m, most)))
        numbers = numbers.movedim(axis + 1, -1)
    index = numbers.reshape(math.prod(shape), -1)
    return largest(builder, copied(builder, [value], index, tuple(index.shape)), shape)
