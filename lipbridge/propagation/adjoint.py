"""Intervals and linear forms through transposed convolutions and through copies of coordinates.

A form of a transposed convolution is pulled back by the convolution that it is the adjoint of, and a form of copies by
adding the coefficients of each input's.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from lipbridge.activations.slopes import WIDER, outward
from lipbridge.constants.node_constants import propagate
from lipbridge.graph.evaluation import convolve_transposed, evaluate
from lipbridge.graph.geometry import most_copies
from lipbridge.graph.nodes import ConvTranspose, Gather, Node, Reshape
from lipbridge.propagation.linear_maps import convolved
from lipbridge.propagation.rules import (
    DUAL,
    BackSubstituted,
    Context,
    LinearRelaxation,
    NodeBounds,
    back_substitute,
    halves,
    narrowed,
    node_bounds,
    nothing,
    times,
)
from lipbridge.rigor.running_error import Enclosure, enclosed
from lipbridge.rounding.scalars import FLOOR, TINY, gamma
from lipbridge.vocabulary import Norm

# --- transposed convolutions -----------------------------------------------------------------------------------------


@node_bounds.of(ConvTranspose)
def _(node: ConvTranspose, inputs: list[NodeBounds], ball: Context) -> NodeBounds:
    (x,) = inputs
    center, box = enclosed(node, [x.center]), enclosed(node, [Enclosure(*halves(x))])
    lower, upper = outward(box.value - box.error, box.value + box.error)
    # The rows' dual norms bound every output by itself, as in a convolution.
    rows = _row_norms_up(node, tuple(x.lower.shape[1:]), DUAL[ball.norm])
    room = rows * x.distance.reshape(-1, *[1] * len(node.shape)) * (1.0 + 4.0 * WIDER) + FLOOR + center.error
    around = outward(center.value - room, center.value + room)
    lower, upper = torch.fmax(lower, around[0]), torch.fmin(upper, around[1])
    distance = torch.full_like(x.distance, math.inf)
    if node in ball.norms:
        distance = x.distance * ball.norms[node] * (1.0 + WIDER) + FLOOR
    return narrowed(NodeBounds(lower, upper, center, distance), lower, upper, ball)


def _row_norms_up(node: ConvTranspose, shape: tuple[int, ...], norm: Norm) -> Tensor:
    """``(1, *node.shape)``: upper bounds of the norms of the operator's rows on inputs of ``shape``.

    No two taps of an output read one input.
    """
    W, n = node.weight.abs(), _terms(node)
    slack, ones = 1.0 + 4.0 * gamma(n + 16), W.new_ones(1, *shape)
    if norm == 1:
        return convolve_transposed(node, ones, W, None) * slack + n * FLOOR
    channels, per_group = W.shape[:2]
    grouped = W.reshape(node.groups, channels // node.groups, per_group, -1)
    largest = grouped.amax((1, 3)).reshape(1, -1, *[1] * (len(shape) - 1))  # of each output channel
    if norm == "inf":
        return (largest * (1.0 + WIDER)).expand(1, *node.shape)
    scale = grouped.amax((1, 3), keepdim=True)
    scaled = torch.where(scale > 0, grouped / scale, 0.0).reshape(W.shape)
    squares = convolve_transposed(node, ones, scaled.square(), None) + n * FLOOR
    return squares.sqrt() * largest * slack + FLOOR


def _terms(node: ConvTranspose) -> int:
    """At most how many products are added in one output."""
    return node.weight[:, 0].numel() // node.groups


@back_substitute.of(ConvTranspose)
def _(node: ConvTranspose, form: Tensor, inputs: list[NodeBounds], lines: list[LinearRelaxation]) -> BackSubstituted:
    (x,) = inputs
    k, m = form.shape[:2]
    shape = tuple(x.lower.shape[1:])
    part = convolved(node, form.reshape(k * m, *node.shape), shape).reshape(k, m, -1)
    size, taps, terms = x.magnitude, _terms(node), node.weight[0].numel()
    # |fl(A W) - A W| |x| <= gamma |A| (|W| |x|), and underflow.
    reach_up = convolve_transposed(node, size.reshape(-1, *shape), node.weight.abs(), None).flatten(1) + taps * TINY
    reach_up = reach_up * (1.0 + gamma(taps + 16))
    error = gamma(terms + 2) * times(form.abs(), reach_up) + (4.0 * terms * FLOOR) * (1.0 + size.sum(1))[:, None]
    offset = nothing(form)
    if node.bias is not None:
        channels = form.reshape(k, m, len(node.bias), -1)
        offset = channels.sum(3) @ node.bias
        error = error + gamma(form.shape[2] + 4) * (channels.abs().sum(3) @ node.bias.abs()) + form.shape[2] * FLOOR
    return BackSubstituted([part], offset, error)


# --- copies ----------------------------------------------------------------------------------------------------------


@node_bounds.of(Gather)
def _(node: Gather, inputs: list[NodeBounds], ball: Context) -> NodeBounds:
    (x,) = inputs
    factor = propagate(node, [{ball.norm: 1.0}], [tuple(x.lower.shape[1:])])[ball.norm]
    lower, upper = evaluate(node, [x.lower]), evaluate(node, [x.upper])
    distance = x.distance if factor == 1.0 else x.distance * factor * (1.0 + WIDER) + FLOOR
    return narrowed(NodeBounds(lower, upper, enclosed(node, [x.center]), distance), lower, upper, ball)


@back_substitute.of(Gather)
def _(node: Gather, form: Tensor, inputs: list[NodeBounds], lines: list[LinearRelaxation]) -> BackSubstituted:
    (x,) = inputs
    n = math.prod(x.lower.shape[1:])
    index = torch.where(node.index >= 0, node.index, n)  # the zeros' coefficients are added in a place of their own
    part = form.new_zeros(*form.shape[:2], n + 1).index_add(2, index, form)[..., :n]
    copies = most_copies(node)
    if copies < 2:
        return BackSubstituted([part], nothing(form), nothing(form))
    size = form.new_zeros(*form.shape[:2], n + 1).index_add(2, index, form.abs())[..., :n]
    return BackSubstituted([part], nothing(form), gamma(copies + 2) * times(size, x.magnitude))


def moves(node: Node) -> bool:
    """Whether a node only moves coordinates, each to one place at most, so that intervals lose nothing."""
    return isinstance(node, Reshape) or (isinstance(node, Gather) and most_copies(node) <= 1)


__all__ = ["moves"]
