"""The windows of max pooling: which entries each holds, and how many hold one entry."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from lipbridge.graph.nodes import (
    MaxPool,
)


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


def window_places(node: MaxPool, space: Sequence[int], device: torch.device) -> Tensor:
    """``(windows, entries)``: the place of each entry of each window in the flattened space, -1 for padding."""
    place = torch.zeros((), dtype=torch.long, device=device)
    inside = torch.ones((), dtype=torch.bool, device=device)
    rank = len(space)
    for axis, length in enumerate(space):
        starts = torch.arange(node.shape[1 + axis], device=device) * node.stride[axis] - node.padding[axis]
        offsets = torch.arange(node.kernel[axis], device=device) * node.dilation[axis]
        at = _spread(starts[:, None] + offsets, axis, rank)
        place = place * length + at
        inside = inside & (at >= 0) & (at < length)
    return torch.where(inside, place, -1).flatten(rank).flatten(0, rank - 1)


def _spread(table: Tensor, axis: int, rank: int) -> Tensor:
    """``(positions, offsets)`` of one axis, seen as ``(*positions, *offsets)`` of all axes."""
    shape = [1] * (2 * rank)
    shape[axis], shape[rank + axis] = table.shape
    return table.reshape(shape)


def in_windows(x: Tensor, windows: Tensor, outside: float) -> Tensor:
    """``(batch, channels, windows, entries)``."""
    flat = torch.nn.functional.pad(x.flatten(2), (0, 1), value=outside)
    return flat[:, :, windows]  # -1 is the last entry


__all__ = ["in_windows", "most_windows", "window_places"]
