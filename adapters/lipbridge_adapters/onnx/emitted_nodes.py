"""Nodes as ONNX operators: one function a kind."""

from __future__ import annotations

import math

import torch

from lipbridge.graph.nodes import (
    Add,
    Concat,
    Conv,
    ConvTranspose,
    Dense,
    Elementwise,
    Gather,
    GroupSort,
    MaxPool,
    Normalize,
    Reshape,
    Softmax,
    block_axis,
)
from lipbridge_adapters.onnx.emitted_functions import write_term
from lipbridge_adapters.onnx.emitter import EMIT, Emitter

_PADDING = {"reflect": "reflect", "replicate": "edge"}


@EMIT.of(Dense)
def _(node: Dense, to: Emitter, inputs: list[str]) -> str:
    if len(node.shape) == 1:
        bias = node.weight.new_zeros(len(node.weight)) if node.bias is None else node.bias
        return to.op("Gemm", inputs[0], to.weight(node.weight), to.weight(bias), transB=1)
    product = to.op("MatMul", inputs[0], to.weight(node.weight.T))
    return product if node.bias is None else to.op("Add", product, to.weight(node.bias))


@EMIT.of(Conv)
def _(node: Conv, to: Emitter, inputs: list[str]) -> str:
    rank = len(node.shape) - 1
    if rank > 3:
        raise to.unsupported(f"a {rank}-dimensional convolution")
    if node.diagonal and len(node.weight) > 1:
        # One number a channel, and one alone would be the same as a number for all: that one is a convolution.
        shape = (-1, *(1,) * rank)
        scaled = to.op("Mul", inputs[0], to.weight(node.weight.reshape(shape)))
        return scaled if node.bias is None else to.op("Add", scaled, to.weight(node.bias.reshape(shape)))
    if rank == 0:
        one = to.convolution(node, to.reshaped(inputs[0], 1, 1), node.weight[..., None], ((1,), (1,)), [0, 0])
        return to.op("Flatten", one, axis=1)
    value, pads = inputs[0], [0] * (2 * rank)
    if node.padding_mode == "zeros":
        pads = [pair[side] for side in (0, 1) for pair in node.padding]
    elif node.padding_mode == "circular":
        value = to.circular(value, node)
    elif any(any(pair) for pair in node.padding):
        widths = [width for side in (0, 1) for width in (0, 0, *(pair[side] for pair in node.padding))]
        value = to.op("Pad", value, to.integers(*widths), mode=_PADDING[node.padding_mode])
    return to.convolution(node, value, node.weight, (node.stride, node.dilation), pads)


@EMIT.of(ConvTranspose)
def _(node: ConvTranspose, to: Emitter, inputs: list[str]) -> str:
    """Pads are equal on both sides where ``output_padding`` can make up for the difference, as exporters do."""
    rank = len(node.shape) - 1
    if rank > 3:
        raise to.unsupported(f"a {rank}-dimensional transposed convolution")
    before, after, more = list[int](), list[int](), list[int]()
    beyond: list[tuple[int, int]] = []
    for (b, a), step in zip(node.padding, node.stride, strict=True):
        even = 0 <= b - a < step and b >= 0
        before.append(max(b, 0))
        after.append(b if even else max(a, 0))
        more.append(b - a if even else min(max(-a, 0), step - 1))
        beyond.append((max(-b, 0), 0 if even else max(-a, 0) - more[-1]))
    put_on = any(any(pair) for pair in beyond)
    bias = node.weight.new_zeros(node.shape[0]) if node.bias is None else node.bias
    value = to.op(
        "ConvTranspose",
        inputs[0],
        to.weight(node.weight),
        *([] if put_on else [to.weight(bias)]),
        kernel_shape=list(node.kernel),
        strides=list(node.stride),
        dilations=list(node.dilation),
        group=node.groups,
        pads=[*before, *after],
        **({"output_padding": more} if any(more) else {}),
    )
    if not put_on:
        return value
    widths = [width for side in (0, 1) for width in (0, 0, *(pair[side] for pair in beyond))]
    value = to.op("Pad", value, to.integers(*widths))
    return to.op("Add", value, to.weight(bias.reshape(-1, *(1,) * rank)))


@EMIT.of(Gather)
def _(node: Gather, to: Emitter, inputs: list[str]) -> str:
    """A slice along one axis, or entries of the flattened value, with a zero behind them where there are zeros."""
    size, found = math.prod(to.shapes[0]), _slice_of(node, to.shapes[0])
    if found is not None:
        ends = (to.integers(value) for value in (found[1], found[2], found[0] + 1))
        steps = [] if found[3] == 1 else [to.integers(found[3])]
        return to.op("Slice", inputs[0], *ends, *steps)
    value = inputs[0] if len(to.shapes[0]) == 1 else to.op("Flatten", inputs[0], axis=1)
    index = node.index.cpu()
    if bool((index < 0).any()):
        value = to.op("Pad", value, to.integers(0, 0, 0, 1))
        index = torch.where(index < 0, size, index)
    value = to.op("Gather", value, to.tensor(index.numpy()), axis=1)
    return value if len(node.shape) == 1 else to.reshaped(value, *node.shape)


@EMIT.of(Reshape)
def _(node: Reshape, to: Emitter, inputs: list[str]) -> str:
    value = inputs[0]
    if node.axes is not None:
        value = to.op("Transpose", value, perm=[0, *(axis + 1 for axis in node.axes)])
    if len(node.shape) == 1:
        return to.op("Flatten", value, axis=1)
    return to.reshaped(value, *node.shape)


@EMIT.of(Concat)
def _(node: Concat, to: Emitter, inputs: list[str]) -> str:
    return to.op("Concat", *inputs, axis=node.axis + 1)


@EMIT.of(Add)
def _(node: Add, to: Emitter, inputs: list[str]) -> str:
    return to.total(inputs)


@EMIT.of(MaxPool)
def _(node: MaxPool, to: Emitter, inputs: list[str]) -> str:
    """With ``ceil_mode`` the windows that reach beyond the end are written as padding, which readers agree on."""
    after = list(node.padding)
    if node.ceil_mode:
        space = zip(to.shapes[0][1:], node.shape[1:], strict=True)
        steps = zip(node.kernel, node.stride, node.dilation, node.padding, strict=True)
        axes = ((*ends, *step) for ends, step in zip(space, steps, strict=True))
        after = [max(0, (m - 1) * s + (k - 1) * d + 1 - n - b) for n, m, k, s, d, b in axes]
    return to.op(
        "MaxPool",
        inputs[0],
        kernel_shape=list(node.kernel),
        strides=list(node.stride),
        pads=[*node.padding, *after],
        **({} if set(node.dilation) == {1} else {"dilations": list(node.dilation)}),
    )


@EMIT.of(GroupSort)
def _(node: GroupSort, to: Emitter, inputs: list[str]) -> str:
    """All of each group, the smallest first."""
    to.only_native("GroupSort")
    if node.group == 1:
        return inputs[0]
    channels, *rest = node.shape
    groups = to.reshaped(inputs[0], channels // node.group, node.group, *rest)
    ordered = to.ops("TopK", 2, groups, to.integers(node.group), axis=2, largest=0, sorted=1)[0]
    return to.reshaped(ordered, *node.shape)


@EMIT.of(Softmax)
def _(node: Softmax, to: Emitter, inputs: list[str]) -> str:
    to.only_native("Softmax")
    return to.op("LogSoftmax" if node.log else "Softmax", inputs[0], axis=node.axis + 1)


@EMIT.of(Normalize)
def _(node: Normalize, to: Emitter, inputs: list[str]) -> str:
    """(x - mean) / sqrt(variance + epsilon), with epsilon as a sum of float32 numbers that is exact."""
    to.only_native("Normalize")
    runs = (node.groups, math.prod(node.shape) // node.groups)
    x = inputs[0] if node.shape == runs else to.reshaped(inputs[0], *runs)
    centred = to.op("Sub", x, to.op("ReduceMean", x, axes=[2], keepdims=1)) if node.centred else x
    variance = to.op("ReduceMean", to.op("Mul", centred, centred), axes=[2], keepdims=1)
    for part in to.parts(node.epsilon):
        variance = to.op("Add", variance, to.scalar(part))
    made = to.op("Div", centred, to.op("Sqrt", variance))
    return made if node.shape == runs else to.reshaped(made, *node.shape)


@EMIT.of(Elementwise)
def _(node: Elementwise, to: Emitter, inputs: list[str]) -> str:
    components = node.activation.components
    parts = [to.total([write_term(to, inputs[0], term) for term in component]) for component in components]
    return parts[0] if len(parts) == 1 else to.op("Concat", *parts, axis=block_axis(node) + 1)


def _slice_of(node: Gather, shape: tuple[int, ...]) -> tuple[int, int, int, int] | None:
    """The axis, start, end and positive step of the one axis that is cut, if that is all."""
    cut = [axis for axis, (m, n) in enumerate(zip(node.shape, shape, strict=False)) if m != n]
    if len(node.shape) != len(shape) or len(cut) != 1 or bool((node.index < 0).any()):
        return None
    (axis,) = cut
    index = node.index.cpu().reshape(node.shape)
    line = index.movedim(axis, 0).reshape(len(index.movedim(axis, 0)), -1)[:, 0]
    after = math.prod(shape[axis + 1 :])
    start, count = int(line[0]) // after, len(line)
    step = int(line[1] - line[0]) // after if count > 1 else 1
    end = start + step * (count - 1) + 1
    if step < 1 or end > shape[axis]:
        return None
    rows = torch.arange(start, end, step)
    numbers = torch.arange(math.prod(shape)).reshape(shape).index_select(axis, rows)
    return (axis, start, end, step) if torch.equal(numbers, index) else None
