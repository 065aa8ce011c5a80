"""The geometry of convolutions, and of copies, read off their nodes."""

from __future__ import annotations

import math

from lipbridge.graph.nodes import (
    Conv,
    ConvTranspose,
    Gather,
)
from lipbridge.norms.conv_geometry import Axis, Convolution


def most_copies(node: Gather) -> int:
    """The largest number of outputs that copy one input."""
    copied = node.index[node.index >= 0]
    return int(copied.bincount().max()) if copied.numel() else 0


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


def meeting_taps(node: Conv, shape: tuple[int, ...]) -> int:
    """The most taps of one window that read one and the same input."""
    if node.diagonal or node.padding_mode == "zeros":
        return 1
    return math.prod(_meeting_on(axis) for axis in geometry(node, shape).geometry(node.kernel))


def _meeting_on(axis: Axis) -> int:
    most = 1
    for window in range(axis.outputs):
        start = window * axis.stride - axis.padding[0]
        sources = [axis.source(start + tap * axis.dilation) for tap in range(axis.kernel)]
        most = max(most, *(sources.count(source) for source in sources))
    return most


__all__ = ["adjoint_geometry", "geometry", "meeting_taps", "most_copies"]
