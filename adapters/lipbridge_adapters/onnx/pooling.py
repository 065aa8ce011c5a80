"""Padding, pooling and reductions in ONNX files."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from lipbridge.errors import first_line
from lipbridge.frontend.builder import Curve
from lipbridge.frontend.diagonal import diagonal, shares
from lipbridge.frontend.layers import Padded, convolution
from lipbridge.frontend.moves import run_on_numbers
from lipbridge.frontend.pooling import average_pool, max_pool
from lipbridge_adapters.onnx import moments
from lipbridge_adapters.onnx.axes import reduced, reduced_axes
from lipbridge_adapters.onnx.constants import axes_of, integers
from lipbridge_adapters.onnx.convolutions import Pairs, integers_of, padding_of, space_of, windows
from lipbridge_adapters.onnx.file import Fault
from lipbridge_adapters.onnx.moves import moved
from lipbridge_adapters.onnx.reader import Call, Flow, OnnxReader, Value, has_batch, operator


@operator("Pad", "mode pads value")
def _pad(reader: OnnxReader, call: Call) -> Value:
    x, rank = call.flow(), len(call.flow().shape)
    widths = integers(call.attributes.get("pads") if "pads" in call.attributes else call.constant(1))
    axes = axes_of(call.constants, {}, rank, 3)
    axes = list(range(rank)) if axes is None else axes
    fill = call.constant(2)
    value = float(call.attributes.get("value", 0.0)) if fill is None else float(fill)
    mode = call.attributes.get("mode", "constant")
    modes = {"constant": "constant", "reflect": "reflect", "edge": "replicate", "wrap": "circular"}
    if len(widths) != 2 * len(axes) or mode not in modes:
        raise Fault(f"its Pad has the pads {str(widths)[:60]} and the mode {str(mode)[:20]!r}")
    pairs = dict(zip(axes, zip(widths[: len(axes)], widths[len(axes) :], strict=True), strict=True))
    every = [pairs.get(axis, (0, 0)) for axis in range(rank)]
    if any(abs(width) > 2**24 for pair in every for width in pair):
        raise Fault(f"its Pad has the pads {str(widths)[:60]}")
    shape = tuple(n + sum(pair) for n, pair in zip(x.shape, every, strict=True))
    if not any(any(pair) for pair in every):
        return x
    if not has_batch(x.shape) or any(every[0]):
        raise reader.unsupported("It pads the batch.")
    if any(n < 1 for n in shape):
        raise Fault(f"its Pad leaves {shape} of {x.shape}")
    reader.require_small(math.prod(shape))
    if (
        modes[mode] == "constant"
        and value == 0.0
        and (any(every[1]) or any(width < 0 for pair in every for width in pair))
    ):
        widths = [width for pair in reversed(every) for width in pair]
        return moved(reader, x, lambda numbers: torch.nn.functional.pad(numbers, widths, value=-1))
    if modes[mode] in ("reflect", "circular"):
        room = zip(every[1:], x.shape[1:], strict=True)
        if any(max(pair) > n - (mode == "reflect") for pair, n in room):
            raise Fault("its Pad is wider than what it repeats")
    curve = reader.curve(reader.seen(x))
    inside = every[1:]
    if any(width < 0 for pair in inside for width in pair) or any(inside[0]):
        return Flow(_cut_and_filled(reader, curve, inside, modes[mode], value, shape[1:]), shape)
    spelt = "zeros" if modes[mode] == "constant" else modes[mode]
    return Flow(Padded(curve, tuple(inside[1:]), spelt, value), shape)


def _cut_and_filled(
    reader: OnnxReader, value: Curve, pairs: Sequence[tuple[int, int]], mode: str, fill: float, shape: tuple[int, ...]
) -> Curve:
    """Padding of channels, or of negative width, as torch does it."""
    widths = [width for pair in reversed(pairs) for width in pair]

    def padded(inputs: list[Tensor]) -> Tensor:
        try:
            return torch.ops.aten.pad.default(inputs[0], widths, mode, fill)
        except (RuntimeError, IndexError, NotImplementedError, ValueError) as error:
            line = first_line(error, 120)
            raise reader.unsupported(f"It was not understood in float64 ({line}).") from error

    return run_on_numbers(reader, [value], padded, shape)


Axes = tuple[int, ...]


def _pool_geometry(reader: OnnxReader, call: Call) -> tuple[Axes, Axes, Axes, Axes, Pairs]:
    size = space_of(reader, call.flow())
    if "kernel_shape" not in call.attributes:
        raise Fault(f"its operator {call.kind} has no kernel_shape")
    kernel, stride, dilation = (
        integers_of(call, name, len(size), 1) for name in ("kernel_shape", "strides", "dilations")
    )
    padding = padding_of(call, size, kernel, stride, dilation)
    if any(max(pair) > (k - 1) * d for pair, k, d in zip(padding, kernel, dilation, strict=True)):
        raise Fault(f"the padding of its operator {call.kind} is as wide as the window")  # a window of padding alone
    return size, kernel, stride, dilation, padding


@operator("MaxPool", "auto_pad ceil_mode dilations kernel_shape pads storage_order strides")
def _max_pool(reader: OnnxReader, call: Call) -> Value:
    """Windows start at the padding before, and what is beyond the end never wins: only their number matters."""
    x = call.flow()
    size, kernel, stride, dilation, padding = _pool_geometry(reader, call)
    count = windows(call, size, kernel, stride, dilation, padding, bool(call.attributes.get("ceil_mode", 0)))
    shape, value = (x.shape[1], *count), reader.seen(x)
    before = tuple(pair[0] for pair in padding)
    same = tuple((b, b) for b in before)
    fitting = [
        ceil
        for ceil in (False, True)
        if _fits(size, kernel, dilation, same) and windows(call, size, kernel, stride, dilation, same, ceil) == count
    ]
    if fitting and all(2 * b <= k for b, k in zip(before, kernel, strict=True)):
        start, ceil = before, fitting[0]
    elif all(d == 1 for d in dilation) and windows(call, size, kernel, stride, dilation, padding) == count:
        # A window that sees the padding sees the entry at the edge, so copies of that entry never change a maximum.
        reader.require_small(x.shape[1] * math.prod(n + sum(pair) for n, pair in zip(size, padding, strict=True)))
        value = Padded(reader.curve(value), padding, "replicate", 0.0)
        start, ceil = (0,) * len(size), False
    else:
        raise reader.unsupported("This padding of a dilated window is not supported.")
    reader.require_small(math.prod(shape))
    made = max_pool(
        reader, value, shape, kernel=kernel, stride=stride, padding=start, dilation=dilation, ceil_mode=ceil
    )
    return Flow(made, (1, *shape))


def _fits(size: tuple[int, ...], kernel: tuple[int, ...], dilation: tuple[int, ...], padding: Pairs) -> bool:
    axes = zip(size, kernel, dilation, padding, strict=True)
    return all(n + before + after >= (k - 1) * d + 1 for n, k, d, (before, after) in axes)


@operator("AveragePool", "auto_pad ceil_mode count_include_pad dilations kernel_shape pads strides")
def _average_pool(reader: OnnxReader, call: Call) -> Value:
    x = call.flow()
    size, kernel, stride, dilation, padding = _pool_geometry(reader, call)
    if any(d != 1 for d in dilation):
        raise reader.unsupported("Averages over dilated windows are not supported.")
    include = bool(call.attributes.get("count_include_pad", 0))
    ceil = bool(call.attributes.get("ceil_mode", 0))
    count = windows(call, size, kernel, stride, dilation, padding, ceil)
    shape = (x.shape[1], *count)
    axes = zip(count, size, kernel, stride, padding, strict=True)
    beyond = tuple(max(0, (m - 1) * s + k - n - sum(pair)) for m, n, k, s, pair in axes)
    if include and any(beyond):
        raise reader.unsupported(
            "How windows beyond the padding count it (count_include_pad) differs between runtimes."
        )
    padding = tuple((before, after + more) for (before, after), more in zip(padding, beyond, strict=True))
    value = reader.seen(x)
    reader.require_small(math.prod(shape))
    reader.require_small(x.shape[1] * math.prod(n + sum(pair) for n, pair in zip(size, padding, strict=True)))
    if all(before == after for before, after in padding):
        before = tuple(pair[0] for pair in padding)
        made = average_pool(reader, value, shape, kernel=kernel, stride=stride, padding=before, with_padding=include)
        return Flow(made, (1, *shape))
    return Flow(_uneven_average(reader, value, (size, kernel, stride, count), padding, include), (1, *shape))


def _uneven_average(
    reader: OnnxReader, value: object, geometry: tuple[tuple[int, ...], ...], padding: Pairs, include: bool
) -> Curve:
    """An average over windows with different padding on the two sides; its shares are rounded up."""
    size, kernel, stride, count = geometry
    curve = reader.curve(value)
    channels, rank = reader.shape_of(curve)[0], len(size)
    total = torch.ones((), dtype=torch.int64)
    for n, k, s, m, (before, _) in zip(size, kernel, stride, count, padding, strict=True):
        start = torch.arange(m) * s - before
        inside = (start + k).clamp(max=n) - start.clamp(min=0)
        total = total[..., None] * (torch.full_like(inside, k) if include else inside)
    weight = torch.full((channels, 1, *kernel), 1.0, dtype=torch.float64)
    padded = Padded(curve, padding, "zeros", 0.0)
    sums = convolution(
        reader,
        padded,
        weight,
        None,
        (channels, *count),
        stride=stride,
        padding=((0, 0),) * rank,
        dilation=(1,) * rank,
        groups=channels,
    )
    return diagonal(reader, sums, shares(total)[None], None, (channels, *count))


@operator("GlobalAveragePool GlobalMaxPool")
def _global_pool(reader: OnnxReader, call: Call) -> Value:
    x = call.flow()
    return _reduced(reader, x, list(range(2, 2 + len(space_of(reader, x)))), True, call.kind == "GlobalMaxPool")


@operator("ReduceMean ReduceMax", "axes keepdims noop_with_empty_axes")
def _reduce(reader: OnnxReader, call: Call) -> Value:
    axes, keep = reduced_axes(call), bool(call.attributes.get("keepdims", 1))
    if axes is None:
        return call.flow()
    return _reduced(reader, call.flow(), axes, keep, call.kind == "ReduceMax")


def _reduced(reader: OnnxReader, x: Flow, axes: list[int], keep: bool, largest: bool) -> Flow:
    """The mean or the maximum over axes; means may be those of a normalisation."""
    if largest:
        return reduced(reader, x, axes, keep, "amax")
    kept = tuple(1 if i in axes else n for i, n in enumerate(x.shape) if keep or i not in axes)
    variance = moments.mean_of_square(x, axes, kept)
    if variance is not None:
        return variance
    found = reduced(reader, x, axes, keep, "mean")
    return moments.mean(x, axes, found) if keep else found
