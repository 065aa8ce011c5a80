"""Dense layers, convolutions, and padding that waits for one."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lipbridge.frontend.builder import FIXED, Curve, Deferred, GraphBuilder, itself, transposed
from lipbridge.frontend.copies import copied
from lipbridge.frontend.diagonal import diagonal
from lipbridge.graph.geometry import adjoint_geometry
from lipbridge.graph.nodes import Conv, ConvTranspose, Dense


def dense(
    builder: GraphBuilder, x: Any, matrix: Tensor, turned_over: bool, bias: Tensor | None, shape: tuple[int, ...]
) -> Curve:
    """``W x + b`` on the last axis for W the matrix, or its transpose."""
    source = builder.materialise(x)
    name, turned = builder.origin(matrix)
    if bias is not None:
        bias = bias.detach().to(torch.float64)
        if bias.ndim != 1 or len(bias) != shape[-1]:
            if bias.numel() not in (1, shape[-1]):
                raise builder.unsupported("Its bias differs between the inputs of a batch, or between rows.")
            bias = bias.reshape(-1).expand(shape[-1])
    weight = matrix.detach().to(torch.float64)
    recipe = builder.recipe(transposed if turned_over else itself, matrix)
    node = Dense(
        builder.layer, (source,), shape, weight.T if turned_over else weight, bias, name, turned != turned_over
    )
    return builder.append(node, recipe)


Pairs = tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class Padded(Deferred):
    """``value`` with padding around its space, which the convolution or pooling that reads it takes over."""

    value: Curve
    padding: Pairs
    mode: str
    fill: float

    def materialise(self, builder: GraphBuilder) -> Curve:
        """Padding alone is a convolution of each channel with the kernel 1, or copies beside other numbers than 0."""
        if self.fill != 0.0:
            return self._filled(builder)
        channels, *space = builder.shape_of(self.value)
        rank = len(space)
        weight = torch.ones(channels, 1, *(1,) * rank, dtype=torch.float64, device=builder.device)
        shape = (channels, *(n + before + after for n, (before, after) in zip(space, self.padding, strict=True)))
        source = builder.materialise(self.value)
        geometry = ((1,) * rank, self.padding, (1,) * rank, channels, self.mode, FIXED)
        return builder.append(Conv(builder.layer, (source,), shape, weight, None, *geometry))

    def _filled(self, builder: GraphBuilder) -> Curve:
        if not math.isfinite(self.fill):
            raise builder.unsupported("Padding with infinite numbers is read only before max pooling.")
        shape = builder.shape_of(self.value)
        widths = [width for pair in reversed(self.padding) for width in pair]
        index = torch.nn.functional.pad(torch.arange(math.prod(shape)).reshape(shape), widths, value=-1)
        made = copied(builder, [self.value], index, tuple(index.shape))
        beside = torch.zeros(index.shape, dtype=torch.float64).masked_fill(index < 0, self.fill)
        return diagonal(builder, made, None, beside[None].to(builder.device), tuple(index.shape), FIXED)


def convolution(
    builder: GraphBuilder,
    x: Any,
    weight: Tensor,
    bias: Tensor | None,
    shape: tuple[int, ...],
    *,
    stride: tuple[int, ...],
    padding: Pairs,
    dilation: tuple[int, ...],
    groups: int,
) -> Curve:
    """A convolution with zeros around; padding that waits becomes its own."""
    mode = "zeros"
    if isinstance(x, Padded) and x.fill == 0.0 and len(x.padding) == len(padding):
        if not any(any(pair) for pair in padding):
            x, padding, mode = x.value, x.padding, x.mode
        elif x.mode == "zeros":
            pairs = zip(padding, x.padding, strict=True)
            x, padding = x.value, tuple((p[0] + q[0], p[1] + q[1]) for p, q in pairs)
    if not any(any(pair) for pair in padding):
        mode = "zeros"
    source = builder.materialise(x)
    name, _ = builder.origin(weight)
    kernel = weight.detach().to(torch.float64)
    shift = None if bias is None else bias.detach().to(torch.float64)
    geometry = (stride, padding, dilation, groups, mode, name)
    recipe = builder.recipe(itself, weight)
    return builder.append(Conv(builder.layer, (source,), shape, kernel, shift, *geometry), recipe)


def transposed_convolution(
    builder: GraphBuilder,
    x: Any,
    weight: Tensor,
    bias: Tensor | None,
    shape: tuple[int, ...],
    *,
    stride: tuple[int, ...],
    padding: Pairs,
    dilation: tuple[int, ...],
    groups: int,
) -> Curve:
    """The adjoint of a convolution: ``padding`` is cut off its ends, and put on where it is negative."""
    node = ConvTranspose(
        builder.layer,
        (builder.materialise(x),),
        shape,
        weight.detach().to(torch.float64),
        None if bias is None else bias.detach().to(torch.float64),
        stride,
        padding,
        dilation,
        groups,
        builder.origin(weight)[0],
    )
    # Where everything but the bias is cut off, the weight does not count.
    counts = adjoint_geometry(node, builder.nodes[node.inputs[0]].shape) is not None
    return builder.append(node, builder.recipe(itself, weight) if counts else None)
