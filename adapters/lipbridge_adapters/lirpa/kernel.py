"""Convolutions as linear maps of flat vectors, which stay kernels while they are scaled, mixed, added and joined."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional as F

from lipbridge.graph.nodes import Conv

Shape = tuple[int, int, int]
Pair = tuple[int, int]


@dataclass(frozen=True, eq=False)
class Kernel:
    """A convolution without a bias, zeros around, from flat images of shape ``source`` to such of shape ``target``.

    Attributes:
        weight: ``(out, in / groups, rows, columns)`` float64.
        source, target: (channels, rows, columns).
        stride, padding, dilation: along rows and columns; the padding is the same on both sides.
        groups: of channels.
    """

    weight: Tensor
    source: Shape
    target: Shape
    stride: Pair = (1, 1)
    padding: Pair = (0, 0)
    dilation: Pair = (1, 1)
    groups: int = 1

    def __call__(self, x: Tensor) -> Tensor:
        """``(batch, n)`` to ``(batch, m)``."""
        image = x.reshape(-1, *self.source)
        made = F.conv2d(image, self.weight, None, self.stride, self.padding, self.dilation, self.groups)
        return made.flatten(1)

    @property
    def pointwise(self) -> bool:
        """Whether it mixes the channels of each place by itself, all in one group."""
        return self.source[1:] == self.target[1:] and self.weight.shape[2:] == (1, 1) and self.groups == 1

    @property
    def mixing(self) -> Tensor:
        """The matrix ``(out, in)`` by which a pointwise kernel mixes channels."""
        return self.weight[:, :, 0, 0]

    def matrix(self) -> Tensor:
        """``(m, n)``."""
        return self(torch.eye(math.prod(self.source), dtype=self.weight.dtype, device=self.weight.device)).T

    def times(self, factor: float | Tensor) -> Kernel:
        """Scaled by a number, or each output channel by its own."""
        if isinstance(factor, Tensor):
            factor = factor[:, None, None, None]
        return replace(self, weight=self.weight * factor)

    def after_factors(self, factors: Tensor) -> Kernel:
        """This kernel of images whose channels are scaled by ``factors`` first."""
        each = factors.reshape(self.groups, 1, -1).expand(-1, self.target[0] // self.groups, -1)
        return replace(self, weight=self.weight * each.reshape(*self.weight.shape[:2], 1, 1))

    def after_mixing(self, first: Kernel) -> Kernel:
        """This kernel of what a pointwise one gives."""
        weight = torch.einsum("omhw,mi->oihw", self.one_group().weight, first.mixing)
        return replace(self, weight=weight, source=first.source, groups=1)

    def one_group(self) -> Kernel:
        """The same map with one group of channels."""
        if self.groups == 1:
            return self
        out, own = self.weight.shape[:2]
        weight = self.weight.new_zeros(out, self.source[0], *self.weight.shape[2:])
        for group in range(self.groups):
            rows = slice(group * (out // self.groups), (group + 1) * (out // self.groups))
            weight[rows, group * own : (group + 1) * own] = self.weight[rows]
        return replace(self, weight=weight, groups=1)

    def channels(self, index: Tensor) -> Kernel:
        """The output channels ``index``."""
        whole = self.one_group()
        return replace(whole, weight=whole.weight[index], target=(len(index), *self.target[1:]))

    def placed(self, start: int, total: int) -> Kernel:
        """The output channels among ``total``, from ``start`` on; the others are zero."""
        whole = self.one_group()
        weight = whole.weight.new_zeros(total, *whole.weight.shape[1:])
        weight[start : start + self.target[0]] = whole.weight
        return replace(whole, weight=weight, target=(total, *self.target[1:]))

    def plus(self, other: Kernel) -> Kernel | None:
        """The sum, if it is a kernel again."""

        def geometry(kernel: Kernel) -> tuple[object, ...]:
            taps = tuple(kernel.weight.shape[2:])
            return (kernel.source, kernel.target, kernel.stride, kernel.padding, kernel.dilation, taps)

        if geometry(self) != geometry(other):
            return None
        if self.groups != other.groups:
            return self.one_group().plus(other.one_group())
        return replace(self, weight=self.weight + other.weight)


def as_kernel(node: Conv, source: tuple[int, ...]) -> Kernel | None:
    """The kernel of a convolution that auto_LiRPA's own takes, of one or two axes of space; None for any other.

    Release 0.3 pads with zeros, the same number on both sides, and takes the dilation of the rows for the columns'.
    """
    axes = len(source) - 1
    even = all(before == after for before, after in node.padding)
    if axes not in (1, 2) or not even or node.padding_mode != "zeros" or len(set(node.dilation)) != 1:
        return None
    padding = tuple(before for before, _ in node.padding)
    weight, dilation = node.weight, node.dilation[0]
    if axes == 1:  # one row
        weight = weight.unsqueeze(2)
    rest = (1,) * (2 - axes)
    return Kernel(
        weight.detach(),
        image_shape(source),
        image_shape(node.shape),
        pair((*rest, *node.stride)),
        pair((0,) * (2 - axes) + padding),
        (dilation, dilation),
        node.groups,
    )


def pointwise(weight: Tensor, shape: Shape) -> Kernel | None:
    """A diagonal, of flat images of ``shape``, as a pointwise kernel; None if the places of a channel differ."""
    factors = channel_factors(weight, shape[0])
    return None if factors is None else Kernel(torch.diag(factors)[:, :, None, None], shape, shape)


def channel_factors(diagonal: Tensor, channels: int) -> Tensor | None:
    """``(channels,)``: the number that a vector has all over each channel; None if it differs within one."""
    if diagonal.ndim != 1 or len(diagonal) % channels:
        return None
    rows = diagonal.reshape(channels, -1)
    return rows[:, 0] if bool((rows == rows[:, :1]).all()) else None


def image_shape(shape: tuple[int, ...]) -> Shape:
    """Channels, rows and columns of images, or of sequences, which are one row."""
    return (shape[0], 1, shape[1]) if len(shape) == 2 else (shape[0], shape[1], shape[2])


def pair(numbers: tuple[int, ...]) -> Pair:
    """Two numbers, of rows and columns."""
    return numbers[0], numbers[1]
