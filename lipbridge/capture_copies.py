"""Capture of copies: an operation whose every output is one of its inputs, or zero."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from lipbridge.capture_reader import LINE, Curve, Reader
from lipbridge.graph import Gather, Node, Reshape


def copied(reader: Reader, value: Any, index: Tensor, shape: tuple[int, ...]) -> Curve:
    """The coordinates ``index`` of the flattened ``value``, -1 for zero, in ``shape``.

    Nothing is made for the identity, and a ``Reshape`` where every coordinate stays in its place. Copies of copies, and
    of reshaped ones, are copies of the first value.
    """
    source = reader.materialise(value)
    index = index.flatten()
    while True:
        node = reader.nodes[source]
        if isinstance(node, Gather):
            before = node.index.to(index.device)
            index = torch.where(index >= 0, before[index.clamp_min(0)], -1)
        elif isinstance(node, Reshape):
            index = _before_reshape(node, reader.nodes[node.inputs[0]], index)
        else:
            break
        source = node.inputs[0]
    size = math.prod(reader.nodes[source].shape)
    if index.numel() == size and torch.equal(index, torch.arange(size, device=index.device)):
        if reader.nodes[source].shape == shape:
            return Curve(source, (LINE,))
        return reader.append(Reshape(reader.layer, (source,), shape))
    return reader.append(Gather(reader.layer, (source,), shape, index.to(reader.device).contiguous()))


def _before_reshape(node: Reshape, source: Node, index: Tensor) -> Tensor:
    if node.axes is None:
        return index
    order = torch.arange(math.prod(source.shape), device=index.device).reshape(source.shape).permute(node.axes)
    return torch.where(index >= 0, order.flatten()[index.clamp_min(0)], -1)
