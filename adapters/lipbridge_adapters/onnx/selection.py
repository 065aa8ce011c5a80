"""Joining and selecting in ONNX files: Concat, Slice, Gather, Split and TopK."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from lipbridge.frontend.builder import LINE, Curve, Deferred, GraphBuilder
from lipbridge.frontend.extremes import sort
from lipbridge.frontend.joining import join
from lipbridge.frontend.layers import Padded
from lipbridge.frontend.shapes import Part
from lipbridge_adapters.onnx.constants import integers, slices
from lipbridge_adapters.onnx.file import Fault
from lipbridge_adapters.onnx.moves import taken
from lipbridge_adapters.onnx.reader import SCORES, Call, Flow, OnnxReader, Scaled, Value, has_batch, operator, per_input
from lipbridge_adapters.onnx.shapes import identity


def axis_of(call: Call, rank: int, default: int = 0) -> int:
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
        return identity(reader, call)
    rank = len(flows[0].shape)
    axis = axis_of(call, rank)
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
    made = join(reader, [reader.moderate(value) for value in values], place, size)
    return Flow(reader.moderate(made), tuple(total))


def _beside_constants(reader: OnnxReader, call: Call) -> Value:
    """Constants have the batch of one that the layers' values have."""
    parts = [call.flow(i) if isinstance(part, Flow) else call.numbers(i) for i, part in enumerate(call.inputs)]
    shapes = [tuple(part.shape) for part in parts]
    axis = axis_of(call, len(shapes[0]))
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
    return Flow(join(reader, values, place, size), total)


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

    def materialise(self, builder: GraphBuilder) -> Curve:
        """The padding as a layer, and a part of that."""
        return Part(builder.curve(self.value), self.axis, self.start, self.step, self.count).materialise(builder)


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
        raise Fault(f"its operator {reader.operation} selects nothing, or entries that are not there")
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
    axis = axis_of(call, len(x.shape))
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
    axis = axis_of(call, len(x.shape))
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
    axis = axis_of(call, len(x.shape), -1)
    if k is None or integers(k) != [x.shape[axis]] or not call.attributes.get("sorted", 1):
        raise reader.unsupported(f"Only all entries of an axis in order are a layer. {SCORES}")
    if x.shape[axis] == 1:
        return [x]
    size, place = _graph_axis(reader, x.shape, axis)
    value, largest = reader.in_shape(x.value, size), bool(call.attributes.get("largest", 1))
    return [Flow(sort(reader, value, place, largest, size), x.shape)]
