"""ONNX's operators that move, join, select and pool entries, and those that normalise."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from lipbridge.frontend.diagonal import diagonal, shares
from lipbridge.frontend.layers import Padded
from lipbridge.frontend.reader import LINE, Curve, Deferred, Reader
from lipbridge.frontend.shapes import Part
from lipbridge_adapters.onnx import moments
from lipbridge_adapters.onnx.axes import reduced, reduced_axes
from lipbridge_adapters.onnx.constants import axes_of, flattened, integers, reshaped, slices, squeezed, unsqueezed
from lipbridge_adapters.onnx.file import FLOATS, Fault
from lipbridge_adapters.onnx.moves import moved, taken
from lipbridge_adapters.onnx.operators import Pairs, integers_of, padding_of, permuted, space_of, windows
from lipbridge_adapters.onnx.reader import SCORES, Call, Flow, OnnxReader, Scaled, Value, has_batch, operator, per_input

# --- shapes ----------------------------------------------------------------------------------------------------------


def _viewed(reader: OnnxReader, call: Call, shape: tuple[int, ...]) -> Flow:
    """The same entries in the same order, under another shape; the node waits until somebody needs the shape."""
    x = call.flow()
    if math.prod(shape) != math.prod(x.shape):
        raise Fault(f"its operator {call.kind} makes {shape} of {x.shape}")
    curve = reader.curve(x.value)
    if len(curve.components) > 1:
        curve = reader.line(curve)
    return Flow(curve, shape, fresh=x.fresh and call.alone[0])


@operator("Reshape", "shape allowzero")
def _reshape(reader: OnnxReader, call: Call) -> Value:
    target = integers(call.constant(1))
    return _viewed(reader, call, reshaped(call.flow().shape, target, bool(call.attributes.get("allowzero", 0))))


@operator("Flatten", "axis")
def _flatten(reader: OnnxReader, call: Call) -> Value:
    return _viewed(reader, call, flattened(call.flow().shape, int(call.attributes.get("axis", 1))))


@operator("Squeeze", "axes")
def _squeeze(reader: OnnxReader, call: Call) -> Value:
    x = call.flow()
    return _viewed(reader, call, squeezed(x.shape, axes_of(call.constants, call.attributes, len(x.shape))))


@operator("Unsqueeze", "axes")
def _unsqueeze(reader: OnnxReader, call: Call) -> Value:
    axes = integers(call.constant(1) if len(call.inputs) > 1 else call.attributes.get("axes"))
    return _viewed(reader, call, unsqueezed(call.flow().shape, axes))


@operator("Transpose", "perm")
def _transpose(reader: OnnxReader, call: Call) -> Value:
    x = call.flow()
    order = call.attributes.get("perm", list(range(len(x.shape)))[::-1])
    if sorted(order) != list(range(len(x.shape))):
        raise Fault(f"the attribute perm of its Transpose is {str(order)[:60]}")
    found = permuted(reader, x, order)
    return replace(found, fresh=found.fresh and call.alone[0])


@operator("Identity")
def _identity(reader: OnnxReader, call: Call) -> Value:
    return replace(call.flow(), fresh=call.flow().fresh and call.alone[0])


@operator("Dropout", "ratio seed")
def _dropout(reader: OnnxReader, call: Call) -> Value:
    training = call.constant(2)
    if training is not None and bool(training.any()):
        raise reader.unsupported("Dropout is the identity only in inference mode.")
    return _identity(reader, call)


@operator("Cast", "to saturate")
def _cast(reader: OnnxReader, call: Call) -> Value:
    if call.attributes.get("to") not in FLOATS:
        raise reader.unsupported("Only casts between floating point types are the identity.")
    return _identity(reader, call)


# --- joining and selecting -------------------------------------------------------------------------------------------


def _axis(call: Call, rank: int, default: int = 0) -> int:
    axis = call.attributes.get("axis", default)
    if not isinstance(axis, int) or not -rank <= axis < rank:
        raise Fault(f"the attribute axis of its operator {call.kind} is {str(axis)[:60]}")
    return axis % rank


def _graph_axis(reader: OnnxReader, shape: tuple[int, ...], axis: int) -> tuple[tuple[int, ...], int]:
    """The shape of the node and its axis that belong to an axis in ONNX; along the batch the whole is one input."""
    if has_batch(shape) and axis > 0:
        return shape[1:], axis - 1
    return shape, axis


@operator("Concat", "axis")
def _concat(reader: OnnxReader, call: Call) -> Value:
    if any(not isinstance(value, Flow) for value in call.inputs):
        return _beside_constants(reader, call)
    flows = [call.flow(i) for i in range(len(call.inputs))]
    if len(flows) == 1:
        return _identity(reader, call)
    rank = len(flows[0].shape)
    axis = _axis(call, rank)
    if any(len(x.shape) != rank or _without(x.shape, axis) != _without(flows[0].shape, axis) for x in flows):
        raise Fault(f"its Concat joins {[x.shape for x in flows][:4]} along axis {axis}")
    total = list(flows[0].shape)
    total[axis] = sum(x.shape[axis] for x in flows)
    padded = _wrapped(reader, flows, axis)
    if padded is not None:
        return Flow(padded, tuple(total))
    along_batch = axis == 0 or not has_batch(tuple(total))
    values = _together(reader, flows, along_batch)
    size, place = (tuple(total), axis) if along_batch else (tuple(total[1:]), axis - 1)
    made = reader.aten("cat", size, tensors=[reader.moderate(value) for value in values], dim=place + 1)
    return Flow(reader.moderate(made), tuple(total))


def _beside_constants(reader: OnnxReader, call: Call) -> Value:
    """Constants have the batch of one that the layers' values have."""
    parts = [call.flow(i) if isinstance(part, Flow) else call.numbers(i) for i, part in enumerate(call.inputs)]
    shapes = [tuple(part.shape) for part in parts]
    axis = _axis(call, len(shapes[0]))
    if any(len(shape) != len(shapes[0]) or _without(shape, axis) != _without(shapes[0], axis) for shape in shapes):
        raise Fault(f"its Concat joins {shapes[:4]} along axis {axis}")
    total = (*shapes[0][:axis], sum(shape[axis] for shape in shapes), *shapes[0][axis + 1 :])
    reader.require_small(math.prod(total))
    along_batch = axis == 0 or not has_batch(total)
    size, place = (total, axis) if along_batch else (total[1:], axis - 1)
    values: list[Any] = []
    for part in parts:
        if isinstance(part, Flow):
            values.append(reader.moderate(reader.in_shape(part.value, part.shape if along_batch else part.shape[1:])))
        else:
            values.append(part[None] if along_batch else part)
    return Flow(reader.aten("cat", size, tensors=values, dim=place + 1), total)


def _together(reader: OnnxReader, flows: list[Flow], along_batch: bool) -> list[Any]:
    """The values in ONNX's shape; functions of one node stay functions of one node, which takes that shape."""
    sizes = [x.shape if along_batch else per_input(x.shape) for x in flows]
    plain = [x.value.made if isinstance(x.value, Scaled) else x.value for x in flows]
    curves = [value if isinstance(value, Curve) and len(value.components) == 1 else None for value in plain]
    sources = [(curve.source, size) for curve, size in zip(curves, sizes, strict=True) if curve is not None]
    turned: dict[tuple[int, tuple[int, ...]], int] = {}
    values: list[Any] = []
    for x, curve, size in zip(flows, curves, sizes, strict=True):
        if curve is None or sources.count((curve.source, size)) < 2:
            values.append(reader.in_shape(x.value, size))
            continue
        if (curve.source, size) not in turned:
            turned[curve.source, size] = reader.in_shape(Curve(curve.source, (LINE,)), size).source
        values.append(Curve(turned[curve.source, size], curve.components))
    return values


@dataclass(frozen=True)
class Cut(Deferred):
    """Positions along an axis of a padded value, which may be what pads it along that axis."""

    value: Padded
    axis: int
    start: int
    step: int
    count: int

    def materialise(self, reader: Reader) -> Curve:
        """The padding as a layer, and a part of that."""
        return Part(reader.curve(self.value), self.axis, self.start, self.step, self.count).materialise(reader)


def _wrapped(reader: OnnxReader, flows: list[Flow], axis: int) -> Padded | None:
    """The last entries before the first and the first after the last: circular padding of one axis."""
    shape = flows[0].shape
    if axis < 2 or not 3 <= len(shape) <= 5 or shape[0] != 1 or not 2 <= len(flows) <= 3:
        return None
    whole = [i for i, x in enumerate(flows) if not isinstance(x.value, Part | Cut)]
    if len(whole) != 1 and not (len(whole) == 3 and flows[0].value == flows[1].value == flows[2].value):
        return None
    middle = whole[len(whole) // 2]
    value, n = reader.seen(flows[middle]), flows[middle].shape[axis]
    widths = [0, 0]
    for i, x in enumerate(flows):
        side, count = int(i > middle), x.shape[axis]
        fits = isinstance(x.value, Part | Cut) and (x.value.value, x.value.axis, x.value.step) == (value, axis - 1, 1)
        if i == middle:
            continue
        if widths[side] or (reader.seen(x) != value and not (fits and x.value.start == (0 if side else n - count))):
            return None
        widths[side] = count
    pairs = [(0, 0)] * (len(shape) - 2)
    if isinstance(value, Padded):
        if value.mode != "circular" or any(value.padding[axis - 2]):
            return None
        value, pairs = value.value, list(value.padding)
    pairs[axis - 2] = (widths[0], widths[1])
    return Padded(value, tuple(pairs), "circular", 0.0) if isinstance(value, Curve) else None


def _without(shape: tuple[int, ...], axis: int) -> tuple[int, ...]:
    return shape[:axis] + shape[axis + 1 :]


def _selected(reader: OnnxReader, x: Flow, axis: int, rows: list[int]) -> Flow:
    """The entries ``rows`` along an axis of ONNX's shape."""
    n = x.shape[axis]
    if not rows or not all(0 <= row < n for row in rows):
        raise Fault(f"its operator {reader.kind} selects nothing, or entries that are not there")
    shape = (*x.shape[:axis], len(rows), *x.shape[axis + 1 :])
    if rows == list(range(n)):
        return x
    size, place = _graph_axis(reader, x.shape, axis)
    if isinstance(x.value, Padded) and rows == list(range(rows[0], rows[0] + len(rows))) and axis > 1:
        return Flow(Cut(x.value, place, rows[0], 1, len(rows)), shape)
    curve = reader.curve(reader.in_shape(x.value, size))
    step = rows[1] - rows[0] if len(rows) > 1 else 1
    if step > 0 and rows == list(range(rows[0], rows[0] + step * len(rows), step)):
        return Flow(Part(curve, place, rows[0], step, len(rows)), shape)
    return taken(reader, x, axis, rows)


@operator("Slice", "starts ends axes")
def _slice(reader: OnnxReader, call: Call) -> Value:
    x = call.flow()
    for axis, part in slices(call.constants, call.attributes, x.shape).items():
        x = _selected(reader, x, axis, list(range(*part.indices(x.shape[axis]))))
    return x


@operator("Gather", "axis")
def _gather(reader: OnnxReader, call: Call) -> Value:
    x, index = call.flow(), call.constant(1)
    axis = _axis(call, len(x.shape))
    if index is None or index.is_floating_point():
        raise Fault("its Gather needs integers")
    n = x.shape[axis]
    rows = [row + n if row < 0 else row for row in integers(index)]
    if not rows or not all(0 <= row < n for row in rows):
        raise Fault("its Gather selects nothing, or entries that are not there")
    found = x if rows == list(range(n)) else taken(reader, x, axis, rows)
    shape = (*x.shape[:axis], *index.shape, *x.shape[axis + 1 :])
    return Flow(reader.line(found.value), shape)


@operator("Split", "axis split num_outputs")
def _split(reader: OnnxReader, call: Call) -> Value | list[Value]:
    x = call.flow()
    axis = _axis(call, len(x.shape))
    n = x.shape[axis]
    given = call.constant(1) if call.constant(1) is not None else call.attributes.get("split")
    piece = -(-n // call.outputs)
    lengths = integers(given) if given is not None else [min(piece, n - start) for start in range(0, n, piece)]
    if sum(lengths) != n or len(lengths) != call.outputs or any(length < 1 for length in lengths):
        raise Fault(f"its Split makes parts of {str(lengths)[:60]} out of {n}")
    starts = [sum(lengths[:i]) for i in range(len(lengths))]
    return [
        _selected(reader, x, axis, list(range(start, start + length)))
        for start, length in zip(starts, lengths, strict=True)
    ]


@operator("TopK", "axis k largest sorted")
def _top_k(reader: OnnxReader, call: Call) -> Value | list[Value]:
    """All entries of an axis in order; only the values are read, not their places."""
    x, k = call.flow(), call.constant(1) if len(call.inputs) > 1 else call.attributes.get("k")
    axis = _axis(call, len(x.shape), -1)
    if k is None or integers(k) != [x.shape[axis]] or not call.attributes.get("sorted", 1):
        raise reader.unsupported(f"Only all entries of an axis in order are a layer. {SCORES}")
    if x.shape[axis] == 1:
        return [x]
    size, place = _graph_axis(reader, x.shape, axis)
    value, largest = reader.in_shape(x.value, size), bool(call.attributes.get("largest", 1))
    made, _ = reader.aten("sort", size, self=value, dim=place + 1, descending=largest)
    return [Flow(made, x.shape)]


# --- padding and pooling ---------------------------------------------------------------------------------------------


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
    flat = [width for pair in reversed(every[1:]) for width in pair]
    seen = reader.curve(reader.seen(x))
    return Flow(reader.aten("pad", shape[1:], self=seen, pad=flat, mode=modes[mode], value=value), shape)


def _pool_geometry(reader: OnnxReader, call: Call) -> tuple[tuple[int, ...], ...]:
    size = space_of(reader, call.flow())
    if "kernel_shape" not in call.attributes:
        raise Fault(f"its operator {call.kind} has no kernel_shape")
    return (size, *(integers_of(call, name, len(size), 1) for name in ("kernel_shape", "strides", "dilations")))


@operator("MaxPool", "auto_pad ceil_mode dilations kernel_shape pads storage_order strides")
def _max_pool(reader: OnnxReader, call: Call) -> Value:
    """Windows start at the padding before, and what is beyond the end never wins: only their number matters."""
    x = call.flow()
    size, kernel, stride, dilation = _pool_geometry(reader, call)
    padding = padding_of(call, size, kernel, stride, dilation)
    _require_inside(call, kernel, dilation, padding)
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
        geometry = {"padding": list(before), "ceil_mode": fitting[0]}
    elif all(d == 1 for d in dilation) and windows(call, size, kernel, stride, dilation, padding) == count:
        # A window that sees the padding sees the entry at the edge, so copies of that entry never change a maximum.
        reader.require_small(x.shape[1] * math.prod(n + sum(pair) for n, pair in zip(size, padding, strict=True)))
        value, geometry = Padded(reader.curve(value), padding, "replicate", 0.0), {"padding": [0], "ceil_mode": False}
    else:
        raise reader.unsupported("This padding of a dilated window is not supported.")
    reader.require_small(math.prod(shape))
    made = reader.aten(
        f"max_pool{len(size)}d",
        shape,
        self=value,
        kernel_size=list(kernel),
        stride=list(stride),
        dilation=list(dilation),
        **geometry,
    )
    return Flow(made, (1, *shape))


def _fits(size: tuple[int, ...], kernel: tuple[int, ...], dilation: tuple[int, ...], padding: Pairs) -> bool:
    axes = zip(size, kernel, dilation, padding, strict=True)
    return all(n + before + after >= (k - 1) * d + 1 for n, k, d, (before, after) in axes)


def _require_inside(call: Call, kernel: tuple[int, ...], dilation: tuple[int, ...], padding: Pairs) -> None:
    """No window may see padding alone."""
    if any(max(pair) > (k - 1) * d for pair, k, d in zip(padding, kernel, dilation, strict=True)):
        raise Fault(f"the padding of its operator {call.kind} is as wide as the window")


@operator("AveragePool", "auto_pad ceil_mode count_include_pad dilations kernel_shape pads strides")
def _average_pool(reader: OnnxReader, call: Call) -> Value:
    x = call.flow()
    size, kernel, stride, dilation = _pool_geometry(reader, call)
    padding = padding_of(call, size, kernel, stride, dilation)
    _require_inside(call, kernel, dilation, padding)
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
        made = reader.aten(
            f"avg_pool{len(size)}d",
            shape,
            self=value,
            kernel_size=list(kernel),
            stride=list(stride),
            padding=[pair[0] for pair in padding],
            ceil_mode=False,
            count_include_pad=include,
            divisor_override=None,
        )
        return Flow(made, (1, *shape))
    return Flow(_uneven_average(reader, value, (size, kernel, stride, count), padding, include), (1, *shape))


def _uneven_average(
    reader: OnnxReader, value: object, geometry: tuple[tuple[int, ...], ...], padding: Pairs, include: bool
) -> Curve:
    """An average over windows with different padding on the two sides; its shares are rounded up, as in capture."""
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
    sums = reader.aten(
        "convolution",
        (channels, *count),
        input=padded,
        weight=weight,
        bias=None,
        stride=list(stride),
        padding=[0] * rank,
        dilation=[1] * rank,
        groups=channels,
        transposed=False,
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


# --- normalisation ---------------------------------------------------------------------------------------------------


def _vector(call: Call, place: int, n: int) -> Tensor:
    found = call.numbers(place)
    if found.numel() != n:
        raise Fault(f"input {place} of its operator {call.kind} has {found.numel()} numbers, not {n}")
    return found.reshape(-1)


@operator("BatchNormalization", "epsilon momentum training_mode")
def _batch_norm(reader: OnnxReader, call: Call) -> Value:
    x = call.flow()
    if call.attributes.get("training_mode", 0):
        raise reader.unsupported("In training mode it mixes the inputs of a batch.")
    if not has_batch(x.shape):
        space_of(reader, x)
    n = per_input(x.shape)[0]
    weight, bias, mean, variance = (_vector(call, place, n) for place in (1, 2, 3, 4))
    made = reader.aten(
        "batch_norm",
        per_input(x.shape),
        input=reader.seen(x),
        weight=weight,
        bias=bias,
        running_mean=mean,
        running_var=variance,
        training=False,
        eps=_epsilon(call),
    )
    return Flow(made, x.shape)


def _epsilon(call: Call) -> float:
    return float(call.attributes.get("epsilon", float(torch.tensor(1e-5))))


@operator("LayerNormalization", "axis epsilon stash_type")
def _layer_norm(reader: OnnxReader, call: Call) -> Value:
    x = call.flow()
    axis = _axis(call, len(x.shape), -1)
    if not has_batch(x.shape) or axis == 0:
        raise reader.unsupported("It mixes the inputs of a batch.")
    over = x.shape[axis:]
    weight = call.numbers(1).expand(over)
    bias = None if call.constant(2) is None else call.numbers(2).expand(over)
    made = reader.aten(
        "layer_norm",
        per_input(x.shape),
        input=reader.seen(x),
        normalized_shape=list(over),
        weight=weight,
        bias=bias,
        eps=_epsilon(call),
    )
    return Flow(made, x.shape)


@operator("Softmax LogSoftmax", "axis")
def _softmax(reader: OnnxReader, call: Call) -> Value:
    """Along one axis; before opset 13, along all axes from the given one on together."""
    x = call.flow()
    axis = _axis(call, len(x.shape), -1 if call.opset >= 13 else 1)
    if not has_batch(x.shape) or axis == 0:
        raise reader.unsupported("It mixes the inputs of a batch.")
    name = "log_softmax" if call.kind == "LogSoftmax" else "softmax"
    shape = per_input(x.shape)
    if call.opset < 13 and axis < len(x.shape) - 1:
        wide = (*x.shape[1:axis], math.prod(x.shape[axis:]))
        flat = reader.in_shape(x.value, wide)
        made = reader.aten(name, wide, self=flat, dim=axis)
        return Flow(made, x.shape)
    return Flow(reader.aten(name, shape, self=reader.seen(x), dim=axis), x.shape)


@operator("InstanceNormalization GroupNormalization", "epsilon num_groups stash_type")
def _group_norm(reader: OnnxReader, call: Call) -> Value:
    x = call.flow()
    space_of(reader, x)
    channels = x.shape[1]
    groups = channels if call.kind == "InstanceNormalization" else int(call.attributes.get("num_groups", 0))
    if groups < 1 or channels % groups:
        raise Fault(f"its GroupNormalization makes {groups} groups of {channels} channels")
    by_group = call.kind == "GroupNormalization" and call.opset < 21
    weight, bias = (_vector(call, place, groups if by_group else channels) for place in (1, 2))
    if by_group:
        weight, bias = (t.repeat_interleave(channels // groups) for t in (weight, bias))
    made = reader.aten(
        "group_norm", x.shape[1:], input=reader.seen(x), num_groups=groups, weight=weight, bias=bias, eps=_epsilon(call)
    )
    return Flow(made, x.shape)
