"""Evaluation of nodes, and of their derivatives along a direction: one function a node type, batched, on any device."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor
from torch.nn import functional as F

from lipbridge.errors import UnsupportedOperation
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
    Node,
    Normalize,
    Reshape,
    Softmax,
)
from lipbridge.graph.rules import Rule

_CONVOLUTIONS = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
_TRANSPOSED = {1: F.conv_transpose1d, 2: F.conv_transpose2d, 3: F.conv_transpose3d}
_POOLS = {1: F.max_pool1d, 2: F.max_pool2d, 3: F.max_pool3d}
_MODES = {"zeros": "constant", "circular": "circular", "reflect": "reflect", "replicate": "replicate"}


#: The value of a node given its inputs' values (batched).
evaluate = Rule[[list[Tensor]], Tensor]("evaluation")


@evaluate.of(Dense)
def _(node: Dense, inputs: list[Tensor]) -> Tensor:
    y = inputs[0] @ node.weight.T
    return y if node.bias is None else y + node.bias


@evaluate.of(Conv)
def _(node: Conv, inputs: list[Tensor]) -> Tensor:
    return convolve(node, inputs[0], node.weight, node.bias)


def convolve(node: Conv, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """The convolution of ``x`` ``(batch, channels, *space)`` with another kernel and bias, in the node's geometry."""
    if node.diagonal:
        ones = (1,) * (x.ndim - 2)
        y = x * weight.reshape(-1, *ones)
        return y if bias is None else y + bias.reshape(-1, *ones)
    convolution = _CONVOLUTIONS.get(x.ndim - 2)
    if convolution is None or node.padding_mode not in _MODES:
        raise UnsupportedOperation(node.name, f"a {x.ndim - 2}-dimensional convolution, {node.padding_mode} padding")
    # Without cuDNN, whose transforms (FFT) do not obey the error bound of a dot product that proofs build on; what is
    # left (on CPUs too) is a matrix product over patches.
    with torch.backends.cudnn.flags(enabled=False):
        return convolution(padded(node, x), weight, bias, node.stride, 0, node.dilation, node.groups)


def padded(node: Conv, x: Tensor) -> Tensor:
    """``x`` with the node's padding around it."""
    if not any(before or after for before, after in node.padding):
        return x
    widths = [width for pair in reversed(node.padding) for width in pair]
    return F.pad(x, widths, _MODES[node.padding_mode])


@evaluate.of(ConvTranspose)
def _(node: ConvTranspose, inputs: list[Tensor]) -> Tensor:
    return convolve_transposed(node, inputs[0], node.weight, node.bias)


def convolve_transposed(node: ConvTranspose, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """The transposed convolution of ``x`` ``(batch, channels, *space)`` with another kernel and bias."""
    transposed = _TRANSPOSED.get(x.ndim - 2)
    if transposed is None:
        raise UnsupportedOperation(node.name, f"a {x.ndim - 2}-dimensional transposed convolution")
    with torch.backends.cudnn.flags(enabled=False):  # see convolve
        y = transposed(x, weight, None, node.stride, 0, 0, node.groups, node.dilation)
    if any(before or after for before, after in node.padding):
        y = F.pad(y, [-width for pair in reversed(node.padding) for width in pair])
    return y if bias is None else y + bias.reshape(-1, *(1,) * (x.ndim - 2))


@evaluate.of(Gather)
def _(node: Gather, inputs: list[Tensor]) -> Tensor:
    x = inputs[0]
    return F.pad(x.flatten(1), (0, 1))[:, node.index].reshape(len(x), *node.shape)  # -1 is the zero at the end


@evaluate.of(Elementwise)
def _(node: Elementwise, inputs: list[Tensor]) -> Tensor:
    return joined(node, node.activation.parts(inputs[0]))


def joined(node: Elementwise, parts: list[Tensor]) -> Tensor:
    """The blocks of a polyactivation, joined along the node's axis."""
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim=node.axis + 1 if node.axis >= 0 else node.axis)


@evaluate.of(MaxPool)
def _(node: MaxPool, inputs: list[Tensor]) -> Tensor:
    return _pool(node, inputs[0])[0]


def _pool(node: MaxPool, x: Tensor) -> tuple[Tensor, Tensor]:
    """The maxima, and the index of each in the flattened space."""
    pool = _POOLS.get(x.ndim - 2)
    if pool is None:
        raise UnsupportedOperation(node.name, f"max pooling over {x.ndim - 2} axes")
    found = cast(Any, pool)(
        x, node.kernel, node.stride, node.padding, node.dilation, ceil_mode=node.ceil_mode, return_indices=True
    )
    return cast(tuple[Tensor, Tensor], found)


@evaluate.of(GroupSort)
def _(node: GroupSort, inputs: list[Tensor]) -> Tensor:
    return grouped(node, inputs[0]).sort(dim=2).values.reshape(inputs[0].shape)


def grouped(node: GroupSort, x: Tensor) -> Tensor:
    """``x`` as ``(batch, groups, group, *rest)``."""
    return x.reshape(x.shape[0], -1, node.group, *x.shape[2:])


@evaluate.of(Softmax)
def _(node: Softmax, inputs: list[Tensor]) -> Tensor:
    z = inputs[0] - inputs[0].amax(dim=node.axis + 1, keepdim=True)
    total = z.exp().sum(dim=node.axis + 1, keepdim=True)
    return z - total.log() if node.log else z.exp() / total


@evaluate.of(Normalize)
def _(node: Normalize, inputs: list[Tensor]) -> Tensor:
    return _normalized(node, inputs[0])[0].reshape(inputs[0].shape)


def runs(node: Normalize, x: Tensor) -> Tensor:
    """``x`` as ``(batch, groups, n)``."""
    return x.reshape(x.shape[0], node.groups, -1)


def _centred(node: Normalize, x: Tensor) -> Tensor:
    """The runs, less their means if the node centres."""
    found = runs(node, x)
    return found - found.mean(dim=2, keepdim=True) if node.centred else found


def _normalized(node: Normalize, x: Tensor) -> tuple[Tensor, Tensor]:
    """The normalised runs, and the standard deviation (with epsilon) that divided each."""
    centred = _centred(node, x)
    deviation = (centred.square().mean(dim=2, keepdim=True) + node.epsilon).sqrt()
    return centred / deviation, deviation


@evaluate.of(Reshape)
def _(node: Reshape, inputs: list[Tensor]) -> Tensor:
    x = inputs[0]
    if node.axes is not None:
        x = x.permute(0, *(axis + 1 for axis in node.axes))
    return x.reshape(x.shape[0], *node.shape)


@evaluate.of(Concat)
def _(node: Concat, inputs: list[Tensor]) -> Tensor:
    return torch.cat(inputs, dim=node.axis + 1)


@evaluate.of(Add)
def _(node: Add, inputs: list[Tensor]) -> Tensor:
    total = inputs[0]
    for value in inputs[1:]:
        total = total + value
    return total


# --- derivatives along a direction -----------------------------------------------------------------------------------


#: Value and tangent of a node given its inputs' values and tangents; the width smooths kinks.
push = Rule[[list[tuple[Tensor, Tensor]], float], tuple[Tensor, Tensor]]("tangent")


@push.of(Dense)
def _(node: Dense, pairs: list[tuple[Tensor, Tensor]], width: float) -> tuple[Tensor, Tensor]:
    x, v = pairs[0]
    return evaluate(node, [x]), v @ node.weight.T


@push.of(Conv)
def _(node: Conv, pairs: list[tuple[Tensor, Tensor]], width: float) -> tuple[Tensor, Tensor]:
    x, v = pairs[0]
    return evaluate(node, [x]), convolve(node, v, node.weight, None)


@push.of(ConvTranspose)
def _(node: ConvTranspose, pairs: list[tuple[Tensor, Tensor]], width: float) -> tuple[Tensor, Tensor]:
    x, v = pairs[0]
    return evaluate(node, [x]), convolve_transposed(node, v, node.weight, None)


@push.of(Elementwise)
def _(node: Elementwise, pairs: list[tuple[Tensor, Tensor]], width: float) -> tuple[Tensor, Tensor]:
    z, v = pairs[0]
    return evaluate(node, [z]), joined(node, [d * v for d in node.activation.derivatives(z, width)])


@push.of(MaxPool)
def _(node: MaxPool, pairs: list[tuple[Tensor, Tensor]], width: float) -> tuple[Tensor, Tensor]:
    x, v = pairs[0]
    value, index = _pool(node, x)
    return value, v.flatten(2).gather(2, index.flatten(2)).reshape(value.shape)


@push.of(GroupSort)
def _(node: GroupSort, pairs: list[tuple[Tensor, Tensor]], width: float) -> tuple[Tensor, Tensor]:
    x, v = pairs[0]
    value, order = grouped(node, x).sort(dim=2)
    return value.reshape(x.shape), grouped(node, v).gather(2, order).reshape(x.shape)


@push.of(Normalize)
def _(node: Normalize, pairs: list[tuple[Tensor, Tensor]], width: float) -> tuple[Tensor, Tensor]:
    x, v = pairs[0]
    y, deviation = _normalized(node, x)
    step = _centred(node, v)
    tangent = (step - y * (y * step).mean(dim=2, keepdim=True)) / deviation
    return y.reshape(x.shape), tangent.reshape(x.shape)


@push.of(Softmax)
def _(node: Softmax, pairs: list[tuple[Tensor, Tensor]], width: float) -> tuple[Tensor, Tensor]:
    x, v = pairs[0]
    value = evaluate(node, [x])
    p = value.exp() if node.log else value
    step = v - (p * v).sum(dim=node.axis + 1, keepdim=True)
    return value, step if node.log else p * step


def _push_linear(node: Node, pairs: list[tuple[Tensor, Tensor]], width: float) -> tuple[Tensor, Tensor]:
    return evaluate(node, [x for x, _ in pairs]), evaluate(node, [v for _, v in pairs])


push.of(Reshape, Concat, Add, Gather)(_push_linear)
