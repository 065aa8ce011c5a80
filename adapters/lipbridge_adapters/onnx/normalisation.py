"""Normalisation and softmax in ONNX files."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from lipbridge.frontend.normalisation import batch_norm, group_norm, layer_norm
from lipbridge.frontend.softmax import softmax
from lipbridge_adapters.onnx.convolutions import space_of
from lipbridge_adapters.onnx.file import Fault
from lipbridge_adapters.onnx.reader import Call, Flow, OnnxReader, Value, has_batch, operator, per_input
from lipbridge_adapters.onnx.selection import axis_of


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
    given = (mean, variance, weight, bias, _epsilon(call))
    return Flow(batch_norm(reader, reader.seen(x), *given, per_input(x.shape)), x.shape)


def _epsilon(call: Call) -> float:
    return float(call.attributes.get("epsilon", float(torch.tensor(1e-5))))


@operator("LayerNormalization", "axis epsilon stash_type")
def _layer_norm(reader: OnnxReader, call: Call) -> Value:
    x = call.flow()
    axis = axis_of(call, len(x.shape), -1)
    if not has_batch(x.shape) or axis == 0:
        raise reader.unsupported("It mixes the inputs of a batch.")
    over = x.shape[axis:]
    weight = call.numbers(1).expand(over)
    bias = None if call.constant(2) is None else call.numbers(2).expand(over)
    given = (len(over), weight, bias, _epsilon(call))
    return Flow(layer_norm(reader, reader.seen(x), *given, per_input(x.shape)), x.shape)


@operator("Softmax LogSoftmax", "axis")
def _softmax(reader: OnnxReader, call: Call) -> Value:
    """Along one axis; before opset 13, along all axes from the given one on together."""
    x = call.flow()
    axis = axis_of(call, len(x.shape), -1 if call.opset >= 13 else 1)
    if not has_batch(x.shape) or axis == 0:
        raise reader.unsupported("It mixes the inputs of a batch.")
    logarithm = call.kind == "LogSoftmax"
    shape = per_input(x.shape)
    if call.opset < 13 and axis < len(x.shape) - 1:
        wide = (*x.shape[1:axis], math.prod(x.shape[axis:]))
        flat = reader.in_shape(x.value, wide)
        return Flow(softmax(reader, flat, axis - 1, wide, logarithm), x.shape)
    return Flow(softmax(reader, reader.seen(x), axis - 1, shape, logarithm), x.shape)


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
    given = (groups, weight, bias, _epsilon(call))
    return Flow(group_norm(reader, reader.seen(x), *given, x.shape[1:]), x.shape)
