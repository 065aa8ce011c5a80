"""Layers with a diagonal map before or after them (BatchNorm, a normalised input), as one layer."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from lipbridge.constants.node_constants import NormUp, conv_norm_up, dense_norm_up, transposed_norm_up
from lipbridge.graph.graph import Graph
from lipbridge.graph.nodes import (
    Conv,
    ConvTranspose,
    Dense,
)
from lipbridge.rounding.outward import product
from lipbridge.rounding.scalars import TINY, UNIT, add_up, mul_up, sqrt_up
from lipbridge.vocabulary import Norm


@dataclass(frozen=True, eq=False)
class Block:
    """A layer and the diagonal maps ``before`` and ``after`` it, reading node ``source``."""

    core: Dense | Conv | ConvTranspose
    before: Tensor | None
    after: Tensor | None
    source: int

    def norm_up(self, shape: tuple[int, ...], p: Norm, q: Norm) -> float:
        """The proved norm of the product."""
        weight, error = self.core.weight, None if self.core.outward else self.core.error
        if self.before is not None:
            weight = weight * on_inputs(self.core, self.before)
            error = None if error is None else product(error, on_inputs(self.core, self.before).abs())
        if self.after is not None:
            weight = weight * on_outputs(self.core, self.after)
            error = None if error is None else product(error, on_outputs(self.core, self.after).abs())
        if not bool(torch.isfinite(weight).all()):
            factors = [float(t.abs().max()) for t in (self.before, self.after) if t is not None]
            return mul_up(*factors, self._norm(self.core.weight, self.core.error, shape, p, q))
        # Each entry is off by at most 3 UNIT of itself, or by TINY if it underflowed: in the first product, before
        # the second made it larger.
        grown = 1.0 if self.after is None else max(1.0, float(self.after.abs().max()))
        size = magnitude_of(lambda a, b: self._norm(weight, None, shape, a, b), p, q)
        lost = mul_up(
            float(weight.numel()), float(math.prod(shape)), float(math.prod(self.core.shape)), 4.0, TINY, grown
        )
        return add_up(self._norm(weight, error, shape, p, q), mul_up(4.0 * UNIT, size), lost)

    def _norm(self, weight: Tensor, error: Tensor | None, shape: tuple[int, ...], p: Norm, q: Norm) -> float:
        if isinstance(self.core, Dense):
            return dense_norm_up(replace(self.core, weight=weight, error=error), p, q)
        if isinstance(self.core, ConvTranspose):
            return transposed_norm_up(replace(self.core, weight=weight, error=error), shape, p, q)
        return conv_norm_up(replace(self.core, weight=weight, error=error), shape, p, q)


def on_inputs(layer: Dense | Conv | ConvTranspose, scale: Tensor) -> Tensor:
    """A number for each input channel (of a dense layer: coordinate) in a shape that multiplies the layer's weight."""
    if isinstance(layer, Dense):
        return scale
    if isinstance(layer, ConvTranspose):
        return scale.reshape(-1, *(1,) * (layer.weight.ndim - 1))
    out, per_group, *kernel = layer.weight.shape
    table = scale.reshape(layer.groups, 1, per_group).expand(layer.groups, out // layer.groups, per_group)
    return table.reshape(out, per_group, *(1,) * len(kernel))


def on_outputs(layer: Dense | Conv | ConvTranspose, scale: Tensor) -> Tensor:
    """As :func:`on_inputs`, a number for each output channel (of a dense layer: coordinate)."""
    if not isinstance(layer, ConvTranspose):
        return scale.reshape(-1, *(1,) * (layer.weight.ndim - 1))
    channels, per_group, *kernel = layer.weight.shape
    table = scale.reshape(layer.groups, 1, per_group).expand(layer.groups, channels // layer.groups, per_group)
    return table.reshape(channels, per_group, *(1,) * len(kernel))


def magnitude_of(norm_up: NormUp, p: Norm, q: Norm) -> float:
    """Upper bound of the norm of |A|, whose norms in l_1 and l_inf are those of A (Schur's test for l_2)."""
    if p == 1:
        return norm_up(1, 1)
    if q == "inf":
        return norm_up("inf", "inf")
    return mul_up(sqrt_up(norm_up(1, 1)), sqrt_up(norm_up("inf", "inf")))


def block_of(graph: Graph, index: int) -> Block | None:
    """The block that ends in node ``index``, if there is a diagonal map to merge."""
    node = graph.nodes[index]
    before = after = None
    if isinstance(node, Conv) and node.diagonal:
        if not (node.error is None or node.outward):
            return None
        after = node.weight.flatten()
        node = graph.nodes[node.inputs[0]]
    if not isinstance(node, Dense | Conv | ConvTranspose) or (isinstance(node, Conv) and node.diagonal):
        return None
    if isinstance(node, Dense) and len(node.shape) != 1:
        return None
    source = node.inputs[0]
    first = graph.nodes[source]
    if isinstance(first, Conv) and first.diagonal and (first.error is None or first.outward):
        before, source = first.weight.flatten(), first.inputs[0]
    return None if before is None and after is None else Block(node, before, after, source)
