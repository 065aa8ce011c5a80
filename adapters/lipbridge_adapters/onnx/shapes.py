"""Shapes in ONNX files: Reshape, Flatten, Transpose and what leaves values as they are."""

from __future__ import annotations

import math
from dataclasses import replace

from lipbridge_adapters.onnx.constants import axes_of, flattened, integers, reshaped, squeezed, unsqueezed
from lipbridge_adapters.onnx.file import FLOATS, Fault
from lipbridge_adapters.onnx.permuting import permuted
from lipbridge_adapters.onnx.reader import Call, Flow, OnnxReader, Value, operator


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
def identity(reader: OnnxReader, call: Call) -> Value:
    return replace(call.flow(), fresh=call.flow().fresh and call.alone[0])


@operator("Dropout", "ratio seed")
def _dropout(reader: OnnxReader, call: Call) -> Value:
    training = call.constant(2)
    if training is not None and bool(training.any()):
        raise reader.unsupported("Dropout is the identity only in inference mode.")
    return identity(reader, call)


@operator("Cast", "to saturate")
def _cast(reader: OnnxReader, call: Call) -> Value:
    if call.attributes.get("to") not in FLOATS:
        raise reader.unsupported("Only casts between floating point types are the identity.")
    return identity(reader, call)
