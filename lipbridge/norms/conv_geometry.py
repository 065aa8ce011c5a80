"""The geometry of a convolution, and with it the linear operator that it truly is on its input's size."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor
from torch.nn import functional as F

from lipbridge.errors import InvalidArgument

PaddingMode = Literal["zeros", "circular", "reflect", "replicate"]

_CONV = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
_CONV_TRANSPOSE = {1: F.conv_transpose1d, 2: F.conv_transpose2d, 3: F.conv_transpose3d}


@dataclass(frozen=True)
class Convolution:
    """How a kernel ``(out, in / groups, *kernel)`` acts on inputs ``(channels, *space)``: torch's Conv1d to Conv3d.

    Args:
        input_shape: ``(channels, *space)``, one to three axes of space.
        stride: per axis of space; ones if empty, as is ``dilation``.
        padding: ``(before, after)`` per axis of space; none if empty.
        padding_mode: "zeros", "circular", "reflect" or "replicate".

    Raises:
        InvalidArgument: for values outside these domains.
    """

    input_shape: tuple[int, ...]
    stride: tuple[int, ...] = ()
    padding: tuple[tuple[int, int], ...] = ()
    dilation: tuple[int, ...] = ()
    groups: int = 1
    padding_mode: str = "zeros"

    def __post_init__(self) -> None:
        axes = len(self.input_shape) - 1
        for name, default in (("stride", 1), ("dilation", 1), ("padding", (0, 0))):
            if not getattr(self, name):
                object.__setattr__(self, name, (default,) * axes)
            if len(getattr(self, name)) != axes:
                raise InvalidArgument(name, f"have one entry for each of {axes} axes of space", getattr(self, name))
        if axes not in _CONV or min(self.input_shape) < 1:
            raise InvalidArgument("input_shape", "be (channels, *space) with one to three axes", self.input_shape)
        if min(self.stride) < 1 or min(self.dilation) < 1:
            raise InvalidArgument("stride", "and dilation be at least one", (self.stride, self.dilation))
        if self.groups < 1 or self.input_shape[0] % self.groups:
            raise InvalidArgument("groups", f"divide {self.input_shape[0]} channels", self.groups)
        if self.padding_mode not in get_args(PaddingMode):
            raise InvalidArgument("padding_mode", f"be one of {', '.join(get_args(PaddingMode))}", self.padding_mode)
        for size, (before, after) in zip(self.space, self.padding, strict=True):
            widest = {"circular": size, "reflect": size - 1}.get(self.padding_mode, math.inf)
            if min(before, after) < 0 or max(before, after) > widest:
                raise InvalidArgument("padding", f"be 0 to {widest} on an axis of {size}", (before, after))

    @property
    def space(self) -> tuple[int, ...]:
        """The input's axes of space."""
        return self.input_shape[1:]

    @property
    def axes(self) -> int:
        """The number of axes of space."""
        return len(self.input_shape) - 1

    def output_shape(self, weight: Tensor) -> tuple[int, ...]:
        """``(out, *space)`` of an output, without batch.

        Raises:
            InvalidArgument: if the kernel does not fit the input.
        """
        kernel = tuple(weight.shape[2:])
        fits = (
            weight.ndim == self.axes + 2
            and weight.shape[1] == self.input_shape[0] // self.groups
            and weight.shape[0] % self.groups == 0
        )
        space = tuple(axis.outputs for axis in self.geometry(kernel)) if len(kernel) == self.axes else ()
        if not fits or min(space, default=0) < 1:
            raise InvalidArgument("weight", f"be a kernel that fits {self}", tuple(weight.shape))
        return (weight.shape[0], *space)

    def geometry(self, kernel: tuple[int, ...]) -> tuple[Axis, ...]:
        """The convolution's index arithmetic, axis by axis."""
        axes = zip(self.space, kernel, self.stride, self.padding, self.dilation, strict=True)
        return tuple(Axis(*axis, self.padding_mode) for axis in axes)

    def apply(self, weight: Tensor, x: Tensor) -> Tensor:
        """The operator at ``x`` of shape ``(batch, *input_shape)``, differentiable, on any device."""
        if self.padding_mode == "zeros":
            x = F.pad(x, [width for pair in reversed(self.padding) for width in pair])
        else:
            for dim, axis in enumerate(self.geometry(tuple(weight.shape[2:])), start=2):
                x = x.index_select(dim, axis.sources(x.device))
        return _CONV[self.axes](x, weight, None, self.stride, 0, self.dilation, self.groups)

    def adjoint(self, weight: Tensor, y: Tensor) -> Tensor:
        """The transposed operator at ``y`` of shape ``(batch, *output_shape)``; ``(batch, *input_shape)``."""
        x = _CONV_TRANSPOSE[self.axes](y, weight, None, self.stride, 0, 0, self.groups, self.dilation)
        geometry = self.geometry(tuple(weight.shape[2:]))
        # Positions behind the last window are read by no output.
        missing = [axis.padded - length for axis, length in zip(geometry, x.shape[2:], strict=True)]
        x = F.pad(x, [width for length in reversed(missing) for width in (0, length)])
        for dim, axis in enumerate(geometry, start=2):
            if self.padding_mode == "zeros":
                x = x.narrow(dim, axis.padding[0], axis.size)
            else:
                shape = (*x.shape[:dim], axis.size, *x.shape[dim + 1 :])
                x = x.new_zeros(shape).index_add(dim, axis.sources(x.device), x)
        return x

    def matrix(self, weight: Tensor) -> Tensor:
        """The operator as a dense matrix ``(outputs, inputs)`` on flattened tensors; for small inputs."""
        inputs = math.prod(self.input_shape)
        unit = torch.eye(inputs, dtype=weight.dtype, device=weight.device)
        return self.apply(weight, unit.reshape(inputs, *self.input_shape)).reshape(inputs, -1).T


@dataclass(frozen=True)
class Axis:
    """One axis of a convolution: output i reads, by tap j, the padded position ``i stride + j dilation``."""

    size: int
    kernel: int
    stride: int
    padding: tuple[int, int]
    dilation: int
    mode: str

    @property
    def padded(self) -> int:
        """The input's size with its padding."""
        return self.size + sum(self.padding)

    @property
    def outputs(self) -> int:
        """The number of outputs; below one if the kernel does not fit."""
        return (self.padded - self.dilation * (self.kernel - 1) - 1) // self.stride + 1

    def source(self, position: int) -> int | None:
        """The input that stands at a position (counted from the input's first); None for a padded zero."""
        n = self.size
        if 0 <= position < n:
            return position
        if self.mode == "circular":
            return position % n
        if self.mode == "reflect":
            return -position if position < 0 else 2 * (n - 1) - position
        return min(max(position, 0), n - 1) if self.mode == "replicate" else None

    def sources(self, device: torch.device) -> Tensor:
        """The inputs that stand at the padded positions, for modes that copy; made on the device itself."""
        position = torch.arange(-self.padding[0], self.size + self.padding[1], device=device)
        last = self.size - 1
        if self.mode == "circular":
            return position % self.size
        return last - (last - position.abs()).abs() if self.mode == "reflect" else position.clamp(0, last)

    @property
    def copies(self) -> int:
        """How often the padding copies the most copied input, itself included: the square of the padding's norm."""
        if self.mode == "zeros":
            return 1
        found = [self.source(position) for position in range(-self.padding[0], self.size + self.padding[1])]
        return max(found.count(source) for source in set(found))
