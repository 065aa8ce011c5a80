"""Capture of pooling: averages are convolutions (their shares rounded up), maxima are ``MaxPool``."""

from __future__ import annotations

import math
import re
from typing import Any, cast

import torch
from torch import Tensor

from lipbridge.frontend.axes import along, averages, windows
from lipbridge.frontend.copies import copied
from lipbridge.frontend.diagonal import diagonal, shares
from lipbridge.frontend.layers import Padded, each
from lipbridge.frontend.moments import mean_of
from lipbridge.frontend.reader import FIXED, Arguments, Curve, Handler, Reader, handles
from lipbridge.graph.nodes import Conv, MaxPool, Reshape


def _over_space(handler: Handler) -> Handler:
    """Torch reads inputs with one axis less, ``(batch, *space)``, as one image whose channels are the batch."""

    def with_channels(reader: Reader, a: Arguments, shape: tuple[int, ...]) -> Any:
        rank = int(re.findall(r"([123])d", reader.operation)[0])
        x = a["self"]
        if len(reader.shape_of(x.value if isinstance(x, Padded) else x)) == rank + 1:
            return handler(reader, a, shape)  # padding with infinite numbers is no value of its own
        inside = reader.shape_of(x)
        if len(inside) != rank:
            raise reader.unsupported(f"It pools over {rank} axes of inputs of shape {inside}.")
        source = reader.append(Reshape(reader.layer, (reader.materialise(x),), (1, *inside)))
        made = handler(reader, {**a, "self": source}, (1, *shape))
        return reader.append(Reshape(reader.layer, (reader.materialise(made),), shape))

    return with_channels


@handles("avg_pool1d", "avg_pool2d", "avg_pool3d")
@_over_space
def _avg_pool(reader: Reader, a: Arguments, shape: tuple[int, ...]) -> Curve:
    rank = len(shape) - 1
    kernel = each(a["kernel_size"], rank)
    stride = each(a["stride"], rank) if a["stride"] else kernel
    padding = each(a["padding"], rank)
    size = reader.shape_of(a["self"])
    counts = [
        _counts(*axis, bool(a["count_include_pad"]))
        for axis in zip(shape[1:], size[1:], kernel, stride, padding, strict=True)
    ]
    total = counts[0]
    for count in counts[1:]:
        total = total[..., None] * count
    if a.get("divisor_override"):
        total = torch.full_like(total, int(a["divisor_override"]))  # which may be negative
    return _average(reader, a["self"], (kernel, stride, padding), total, shape)


def _counts(outputs: int, size: int, kernel: int, stride: int, padding: int, with_padding: bool) -> Tensor:
    """How many entries torch divides each window of one axis by."""
    start = torch.arange(outputs) * stride - padding
    end = (start + kernel).clamp(max=size + padding)
    return end - start if with_padding else end.clamp(max=size) - start.clamp(min=0)


def _average(
    reader: Reader,
    value: Any,
    geometry: tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]],
    counts: Tensor,
    shape: tuple[int, ...],
) -> Curve:
    """Sums over windows, divided by ``counts``, one number for each position."""
    channels, *space = reader.shape_of(value)
    kernel, stride, before = geometry
    axes = zip(shape[1:], space, kernel, stride, before, strict=True)
    padding = tuple((b, max(0, (m - 1) * s + k - n - b)) for m, n, k, s, b in axes)
    uniform = bool((counts == counts.flatten()[0]).all())
    factor = shares(counts.flatten()[:1]) if uniform else torch.ones(1, dtype=torch.float64)
    weight = factor.to(reader.device).expand(channels * math.prod(kernel)).reshape(channels, 1, *kernel)
    source = reader.materialise(value)
    node = Conv(
        reader.layer, (source,), shape, weight, None, stride, padding, (1,) * len(kernel), channels, parameter=FIXED
    )
    made = reader.append(node)
    if uniform:
        return made
    return diagonal(reader, made, shares(counts).to(reader.device)[None], None, shape, FIXED)


@handles("adaptive_avg_pool1d", "adaptive_avg_pool2d", "adaptive_avg_pool3d", "_adaptive_avg_pool2d")
@_over_space
def _adaptive_avg_pool(reader: Reader, a: Arguments, shape: tuple[int, ...]) -> Curve:
    kernel = _divided(reader, a["self"], shape)
    if kernel is None:  # an average over a box is one of averages along its axes
        value = reader.curve(a["self"])
        for axis, (n, m) in enumerate(zip(reader.shape_of(value)[1:], shape[1:], strict=True), start=1):
            value = along(reader, value, axis, averages(n, m))
        return value
    return _average(reader, a["self"], (kernel, kernel, (0,) * len(kernel)), _full(kernel, shape), shape)


def _divided(reader: Reader, value: Any, shape: tuple[int, ...]) -> tuple[int, ...] | None:
    """The windows of adaptive pooling, if they have one size and do not overlap."""
    size = reader.shape_of(value)[1:]
    if any(n % m for n, m in zip(size, shape[1:], strict=True)):
        return None
    return tuple(n // m for n, m in zip(size, shape[1:], strict=True))


def _full(kernel: tuple[int, ...], shape: tuple[int, ...]) -> Tensor:
    return torch.full(shape[1:], int(torch.tensor(kernel).prod()))


@handles("mean")
def _mean(reader: Reader, a: Arguments, shape: tuple[int, ...]) -> Any:
    moment = mean_of(reader, a)
    if moment is not None:
        return moment
    made = last_axes_flat(reader, a)
    rows, n = reader.shape_of(made)
    average = _average(reader, made, ((n,), (n,), (0,)), torch.full((1,), n), (rows, 1))
    return reader.append(Reshape(reader.layer, (average.source,), shape))


def largest(reader: Reader, value: Any, shape: tuple[int, ...]) -> Curve:
    """The maximum of each row of ``(rows, n)``, in ``shape``."""
    rows, n = reader.shape_of(value)
    pool = MaxPool(reader.layer, (reader.materialise(value),), (rows, 1), (n,), (n,), (0,), (1,))
    return reader.append(Reshape(reader.layer, (reader.append(pool).source,), shape))


def last_axes_flat(reader: Reader, a: Arguments) -> Curve:
    """The value as ``(rows, n)``, the axes that an operation runs over last."""
    size = reader.shape_of(a["self"])
    dims = a.get("dim")
    axes = cast(list[int], dims if isinstance(dims, list) else [] if dims is None else [dims])
    over = sorted({int(axis) % (len(size) + 1) - 1 for axis in axes})
    if not over or over[0] < 0:
        raise reader.unsupported("It mixes the inputs of a batch.")
    order = [axis for axis in range(len(size)) if axis not in over] + over
    n = 1
    for axis in over:
        n *= size[axis]
    rows = 1
    for length in size:
        rows *= length
    source = reader.materialise(a["self"])
    axes_moved = None if order == sorted(order) else tuple(order)
    return reader.append(Reshape(reader.layer, (source,), (rows // n, n), axes_moved))


@handles("max_pool1d", "max_pool2d", "max_pool3d", "max_pool1d_with_indices", "max_pool2d_with_indices")
@_over_space
def _max_pool(reader: Reader, a: Arguments, shape: tuple[int, ...]) -> Curve:
    rank = len(shape) - 1
    kernel = each(a["kernel_size"], rank)
    stride = each(a["stride"], rank) if a["stride"] else kernel
    x, padding = a["self"], each(a["padding"], rank)
    if isinstance(x, Padded) and x.fill == float("-inf") and not any(padding):
        fits = all(before == after <= k // 2 for (before, after), k in zip(x.padding, kernel, strict=True))
        if fits:
            x, padding = x.value, tuple(before for before, _ in x.padding)
    source = reader.materialise(x)
    geometry = (kernel, stride, padding, each(a["dilation"], rank), bool(a["ceil_mode"]))
    return reader.append(MaxPool(reader.layer, (source,), shape, *geometry))


@handles("adaptive_max_pool1d", "adaptive_max_pool2d", "adaptive_max_pool3d")
@_over_space
def _adaptive_max_pool(reader: Reader, a: Arguments, shape: tuple[int, ...]) -> Curve:
    kernel = _divided(reader, a["self"], shape)
    if kernel is None:
        return _largest_of_windows(reader, a["self"], shape)
    none, ones = (0,) * len(kernel), (1,) * len(kernel)
    source = reader.materialise(a["self"])
    return reader.append(MaxPool(reader.layer, (source,), shape, kernel, kernel, none, ones))


def _largest_of_windows(reader: Reader, value: Any, shape: tuple[int, ...]) -> Curve:
    """The maximum over windows of different sizes, each with its middle entry repeated, which changes no maximum."""
    size = reader.shape_of(value)
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
    return largest(reader, copied(reader, [value], index, tuple(index.shape)), shape)
