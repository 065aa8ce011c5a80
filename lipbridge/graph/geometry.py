"""The geometry of convolutions and windows, read off their nodes."""

from __future__ import annotations

from lipbridge.graph.nodes import (
    Conv,
    ConvTranspose,
    Gather,
    MaxPool,
)
from lipbridge.norms.conv_geometry import Convolution


def most_copies(node: Gather) -> int:
    """The largest number of outputs that copy one input."""
    copied = node.index[node.index >= 0]
    return int(copied.bincount().max()) if copied.numel() else 0


def most_windows(node: MaxPool, shape: tuple[int, ...]) -> int:
    """The largest number of windows that one input belongs to."""
    product = 1
    for axis, length in enumerate(shape[1:]):
        held = [0] * length
        for window in range(node.shape[1 + axis]):
            start = window * node.stride[axis] - node.padding[axis]
            for tap in range(node.kernel[axis]):
                if 0 <= start + tap * node.dilation[axis] < length:
                    held[start + tap * node.dilation[axis]] += 1
        product *= max(held)
    return product


def geometry(node: Conv, shape: tuple[int, ...]) -> Convolution:
    """A convolution's geometry on inputs of ``shape``."""
    return Convolution(shape, node.stride, node.padding, node.dilation, node.groups, node.padding_mode)


def adjoint_geometry(node: ConvTranspose, shape: tuple[int, ...]) -> Convolution | None:
    """The convolution whose adjoint a transposed one on inputs of ``shape`` is; None if only the bias is left.

    Positions that hold nothing but the bias are left out: they are zeros of the adjoint.
    """
    padding = tuple((max(before, 0), max(after, 0)) for before, after in node.padding)
    space = tuple(n - sum(pair) for n, pair in zip(node.spread(shape), padding, strict=True))
    if min(space) < 1:
        return None
    return Convolution((node.shape[0], *space), node.stride, padding, node.dilation, node.groups)


__all__ = ["adjoint_geometry", "geometry", "most_copies", "most_windows"]
