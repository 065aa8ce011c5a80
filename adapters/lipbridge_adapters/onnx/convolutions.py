"""Convolutions of ONNX files, and the windows and paddings that pooling shares."""

from __future__ import annotations

import math
from typing import Any, cast

from lipbridge.frontend.layers import Padded, convolution, transposed_convolution
from lipbridge.graph.nodes import ConvTranspose
from lipbridge_adapters.onnx.file import Fault
from lipbridge_adapters.onnx.reader import Call, Flow, OnnxReader, Value, operator

Pairs = tuple[tuple[int, int], ...]


def _attribute_of(call: Call, name: str, count: int, default: int, least: int) -> tuple[int, ...]:
    """An attribute of ``count`` integers of a plausible size."""
    found: Any = call.attributes.get(name, [default] * count)
    items: list[Any] = cast(list[Any], found) if isinstance(found, list) else []
    if len(items) != count or not all(isinstance(n, int) and least <= n < 2**24 for n in items):
        raise Fault(f"the attribute {name} of its operator {call.kind} is {str(items)[:60]}")
    return tuple(int(n) for n in items)


def integers_of(call: Call, name: str, rank: int, default: int) -> tuple[int, ...]:
    """An attribute of one positive integer for each axis of space."""
    return _attribute_of(call, name, rank, default, 1)


def padding_of(
    call: Call, size: tuple[int, ...], kernel: tuple[int, ...], stride: tuple[int, ...], dilation: tuple[int, ...]
) -> Pairs:
    """(before, after) of each axis of space, by ``pads`` or ``auto_pad``."""
    rank = len(size)
    auto = call.attributes.get("auto_pad", "NOTSET")
    if auto == "NOTSET":
        pads = _attribute_of(call, "pads", 2 * rank, 0, 0)
        return tuple((pads[i], pads[i + rank]) for i in range(rank))
    if auto == "VALID":
        return ((0, 0),) * rank
    if auto not in ("SAME_UPPER", "SAME_LOWER"):
        raise Fault(f"the attribute auto_pad of its operator {call.kind} is {str(auto)[:60]!r}")
    pairs: list[tuple[int, int]] = []
    for n, k, s, d in zip(size, kernel, stride, dilation, strict=True):
        total = max((-(-n // s) - 1) * s + (k - 1) * d + 1 - n, 0)
        half = total // 2
        pairs.append((half, total - half) if auto == "SAME_UPPER" else (total - half, half))
    return tuple(pairs)


def windows(
    call: Call,
    size: tuple[int, ...],
    kernel: tuple[int, ...],
    stride: tuple[int, ...],
    dilation: tuple[int, ...],
    padding: Pairs,
    ceil: bool = False,
) -> tuple[int, ...]:
    """How many windows there are along each axis of space."""
    counts: list[int] = []
    for n, k, s, d, (before, after) in zip(size, kernel, stride, dilation, padding, strict=True):
        room = n + before + after - (k - 1) * d - 1
        if room < 0:
            raise Fault(f"the window of its operator {call.kind} is larger than its input")
        count = (-(-room // s) if ceil else room // s) + 1
        if ceil and (count - 1) * s >= n + before:  # a window that starts beyond the entries is none
            count -= 1
        counts.append(count)
    return tuple(counts)


def space_of(reader: OnnxReader, x: Flow) -> tuple[int, ...]:
    """The lengths of a value ``(1, channels, *space)``."""
    if len(x.shape) < 3 or x.shape[0] != 1:
        raise reader.unsupported(
            f"Its input has the shape {x.shape}, and one input at a time is read: give the shape of one input without "
            "batch (--input-shape in the command line)."
        )
    if len(x.shape) > 5:
        raise reader.unsupported("Space has at most three axes.")
    return x.shape[2:]


@operator("Conv", "auto_pad dilations group kernel_shape pads strides")
def _conv(reader: OnnxReader, call: Call) -> Value:
    x, W, b = call.flow(), call.numbers(1), call.constant(2)
    size = space_of(reader, x)
    kernel, group = tuple(W.shape[2:]), call.attributes.get("group", 1)
    fits = isinstance(group, int) and 1 <= group <= x.shape[1] and W.ndim == len(x.shape) and W.numel()
    if not fits or x.shape[1] != W.shape[1] * group or W.shape[0] % group:
        raise Fault(f"its Conv has a kernel of shape {tuple(W.shape)} for values of shape {x.shape}")
    if call.attributes.get("kernel_shape", list(kernel)) != list(kernel):
        raise Fault("its Conv declares another kernel_shape than its kernel has")
    if b is not None and (tuple(b.shape) != (W.shape[0],) or not b.is_floating_point()):
        raise Fault("the bias of its Conv does not fit its kernel")
    stride, dilation = (integers_of(call, name, len(size), 1) for name in ("strides", "dilations"))
    padding = padding_of(call, size, kernel, stride, dilation)
    shape = (W.shape[0], *windows(call, size, kernel, stride, dilation, padding))
    value = _padded(reader, reader.seen(x), padding)
    reader.require_small(math.prod(shape))
    made = convolution(
        reader,
        value,
        W,
        b,
        shape,
        stride=stride,
        padding=((0, 0),) * len(size),
        dilation=dilation,
        groups=group,
    )
    return Flow(made, (1, *shape), fresh=True)


@operator("ConvTranspose", "auto_pad dilations group kernel_shape output_padding output_shape pads strides")
def _conv_transpose(reader: OnnxReader, call: Call) -> Value:
    x, W, b = call.flow(), call.numbers(1), call.constant(2)
    size, kernel, group = space_of(reader, x), tuple(W.shape[2:]), call.attributes.get("group", 1)
    fits = isinstance(group, int) and 1 <= group <= x.shape[1] and W.ndim == len(x.shape) and W.numel()
    if not fits or x.shape[1] != W.shape[0] or W.shape[0] % group:
        raise Fault(f"its ConvTranspose has a kernel of shape {tuple(W.shape)} for values of shape {x.shape}")
    if call.attributes.get("kernel_shape", list(kernel)) != list(kernel):
        raise Fault("its ConvTranspose declares another kernel_shape than its kernel has")
    channels = W.shape[1] * group
    if b is not None and (tuple(b.shape) != (channels,) or not b.is_floating_point()):
        raise Fault("the bias of its ConvTranspose does not fit its kernel")
    stride, dilation = (integers_of(call, name, len(size), 1) for name in ("strides", "dilations"))
    more = _attribute_of(call, "output_padding", len(size), 0, 0)
    whole = ConvTranspose(reader.layer, (), (channels,), W, b, stride, (), dilation, group)
    spread = whole.spread((channels, *size))
    padding = _cut(call, size, stride, spread, more)
    shape = (channels, *(n - before - after for n, (before, after) in zip(spread, padding, strict=True)))
    if min(shape) < 1:
        raise Fault(f"its ConvTranspose leaves {shape} of {x.shape}")
    reader.require_small(channels * math.prod(spread))
    reader.require_small(math.prod(shape))
    made = transposed_convolution(
        reader,
        reader.seen(x),
        W,
        b,
        shape,
        stride=stride,
        padding=padding,
        dilation=dilation,
        groups=group,
    )
    return Flow(made, (1, *shape))


def _cut(
    call: Call, size: tuple[int, ...], stride: tuple[int, ...], spread: tuple[int, ...], more: tuple[int, ...]
) -> Pairs:
    """How many positions are cut off (before, after) each axis, or put on where that is negative."""
    auto, rank = call.attributes.get("auto_pad", "NOTSET"), len(size)
    if "output_shape" not in call.attributes and auto in ("NOTSET", "VALID"):
        pads = _attribute_of(call, "pads", 2 * rank, 0, 0) if auto == "NOTSET" else (0,) * (2 * rank)
        return tuple((pads[i], pads[i + rank] - more[i]) for i in range(rank))
    if auto not in ("NOTSET", "VALID", "SAME_UPPER", "SAME_LOWER"):
        raise Fault(f"the attribute auto_pad of its operator {call.kind} is {str(auto)[:60]!r}")
    if "output_shape" in call.attributes:
        lengths = _attribute_of(call, "output_shape", rank, 1, 1)
    else:
        lengths = tuple(n * step for n, step in zip(size, stride, strict=True))
    pairs: list[tuple[int, int]] = []
    for n, length, extra in zip(spread, lengths, more, strict=True):
        total = max(n + extra - length, 0)
        if n + extra < length and "output_shape" not in call.attributes:
            raise Fault("its ConvTranspose makes fewer values than its auto_pad asks for")
        half = total // 2 if auto == "SAME_UPPER" else total - total // 2
        pairs.append((half, n - length - half))  # what is missing is put on at the end
    return tuple(pairs)


def _padded(reader: OnnxReader, value: Any, padding: Pairs) -> Any:
    if not any(any(pair) for pair in padding):
        return value
    if isinstance(value, Padded) and value.mode == "zeros" and value.fill == 0.0:
        value, padding = (
            value.value,
            tuple((p[0] + q[0], p[1] + q[1]) for p, q in zip(value.padding, padding, strict=True)),
        )
    curve = reader.curve(value)
    channels, *space = reader.shape_of(curve)
    reader.require_small(channels * math.prod(n + sum(pair) for n, pair in zip(space, padding, strict=True)))
    return Padded(curve, padding, "zeros", 0.0)
