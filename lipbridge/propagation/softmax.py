"""Intervals of softmax and log-softmax on balls, and how far they move.

log p_i = -log(1 + sum_(j != i) exp(x_j - x_i)) grows with x_i and falls with every other entry, so its largest and
smallest values on a box are at corners, and exact but for rounding.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from lipbridge.activations.slopes import WIDER, outward
from lipbridge.constants.node_constants import softmax_norm_up
from lipbridge.graph.nodes import Softmax
from lipbridge.propagation.rules import (
    BackSubstituted,
    Context,
    LinearRelaxation,
    NodeBounds,
    back_substitute,
    halves,
    narrowed,
    node_bounds,
    times,
    with_center,
)
from lipbridge.rigor.accuracy import ULPS
from lipbridge.rigor.running_error import Enclosure, enclosed
from lipbridge.rounding.scalars import FLOOR, gamma
from lipbridge.vocabulary import Norm

NONLINEAR = (Softmax,)


@node_bounds.of(Softmax)
def _(node: Softmax, inputs: list[NodeBounds], ball: Context) -> NodeBounds:
    (x,) = inputs
    logs = logarithms(node, x)
    ends = probabilities(*logs)
    lower, upper = logs if node.log else ends
    largest = softmax_norm_up(node.shape[node.axis], ball.norm, ball.norm, log=node.log)
    gain = _gain(node, *probabilities(*logarithms(node, with_center(x))), ball.norm).clamp(max=largest)
    distance = x.distance * gain * (1.0 + 4.0 * WIDER) + FLOOR
    return narrowed(NodeBounds(lower, upper, enclosed(node, [x.center]), distance), lower, upper, ball)


@back_substitute.of(Softmax)
def _(node: Softmax, form: Tensor, inputs: list[NodeBounds], lines: list[LinearRelaxation]) -> BackSubstituted:
    """Entry by entry an affine function plus an interval, or an interval alone, whichever is the narrower.

    With d = x - c, |d| <= r, the change from c is that of p_i (d_i - sum p_j d_j), averaged on the way, and of
    d_i - sum p_j d_j for the logarithm. With any q for p it is affine; |p - q| <= w bounds what that leaves out.
    """
    (x,) = inputs
    axis, n = node.axis + 1, node.shape[node.axis]
    logs = logarithms(node, x)
    low, high = probabilities(*logs)
    bottom, top = logs if node.log else (low, high)
    middle = 0.5 * bottom + 0.5 * top
    half = torch.maximum(top - middle, middle - bottom) * (1.0 + WIDER) + FLOOR
    half, middle = half.nan_to_num(math.inf, math.inf), middle.nan_to_num(0.0, 0.0, 0.0)
    c, r = halves(x)
    q = 0.5 * low + 0.5 * high
    w = torch.maximum(high - q, q - low) * (1.0 + WIDER) + FLOOR
    slack = gamma(n + 16)
    left = (w * r).sum(axis, keepdim=True)
    most = torch.minimum((high * r).sum(axis, keepdim=True), r.amax(axis, keepdim=True))
    radius = (left.expand_as(r) if node.log else w * (r + most) + q * left) * (1.0 + 8.0 * slack) + n * FLOOR
    line = radius < half  # not where either is NaN
    at = enclosed(node, [Enclosure(c, torch.zeros_like(c))])
    factor = torch.ones_like(q) if node.log else q
    offset = at.value - factor * (c - (q * c).sum(axis, keepdim=True))
    size = at.value.abs() + factor * (c.abs() + (q * c.abs()).sum(axis, keepdim=True))
    offset, radius = torch.where(line, offset, middle), torch.where(line, radius + at.error + slack * size, half)
    forms = form.reshape(*form.shape[:2], *node.shape)
    taken = forms * torch.where(line, factor, 0.0)[:, None]
    part = taken - q[:, None] * taken.sum(axis + 1, keepdim=True)
    grown = taken.abs() + q[:, None] * taken.abs().sum(axis + 1, keepdim=True)
    length = form.shape[2]
    offset, radius = offset.flatten(1), radius.flatten(1)
    error = times(form.abs(), radius + gamma(length + 4) * offset.abs() + length * FLOOR)
    error = error + slack * times(grown.flatten(2), x.magnitude)
    error = error + 4.0 * length * FLOOR * (1.0 + x.magnitude.sum(1))[:, None]
    return BackSubstituted([part.flatten(2)], times(form, offset), error)


def logarithms(node: Softmax, x: NodeBounds) -> tuple[Tensor, Tensor]:
    """Ends of log p ``(k, *shape)``: never above 0, -inf where nothing is known."""
    axis = node.axis + 1
    if node.shape[node.axis] == 1:
        zero = torch.zeros_like(x.lower)
        return zero, zero
    low, low_error = _others(x.lower, axis)
    high, high_error = _others(x.upper, axis)
    above, below = low - x.upper, high - x.lower
    top = -_softplus(above - low_error - ULPS * above.abs()) * (1.0 - 4.0 * ULPS)
    bottom = -_softplus(below + high_error + ULPS * below.abs()) * (1.0 + 4.0 * ULPS)
    bottom, top = outward(bottom, top)
    return bottom, top.clamp(max=0.0)


def probabilities(bottom: Tensor, top: Tensor) -> tuple[Tensor, Tensor]:
    """Ends of p from those of its logarithm."""
    low, high = bottom.exp() * (1.0 - ULPS) - FLOOR, top.exp() * (1.0 + ULPS) + FLOOR
    return low.clamp(min=0.0), high.clamp(max=1.0)


def _others(x: Tensor, axis: int) -> tuple[Tensor, Tensor]:
    """log sum_(j != i) exp(x_j) for each i, and a bound of its error; NaN where entries are infinite.

    The largest of the others is split off. With the i-th term taken away from the whole sum, at least half of it is
    left: the term of the largest entry, which is one.
    """
    n = x.shape[axis]
    largest, place = x.max(dim=axis, keepdim=True)
    first = torch.zeros_like(x, dtype=torch.bool).scatter(axis, place, True)
    rest = x.masked_fill(first, -math.inf)
    second = rest.amax(dim=axis, keepdim=True)
    terms = (x - largest).exp()
    sums = torch.where(
        first, (rest - second).exp().sum(dim=axis, keepdim=True), terms.sum(dim=axis, keepdim=True) - terms
    )
    shift = torch.where(first, second, largest)
    logs = sums.log()
    value = shift + logs
    # exp(t) is off by ULPS (1 + |t|) of itself, and exp(t) |t| < 0.4: n terms, by 2 n ULPS of a sum of at least one.
    error = 16.0 * (n + 8) * ULPS + ULPS * (logs.abs() + value.abs())
    return value, error


def _softplus(q: Tensor) -> Tensor:
    """log(1 + exp(q)), to a few units in the last place."""
    return q.clamp(min=0.0) + torch.log1p((-q.abs()).exp())


def _gain(node: Softmax, low: Tensor, high: Tensor, norm: Norm) -> Tensor:
    """Largest l_p norm of the Jacobian ``(k,)`` for probabilities between ``low`` and ``high``: see softmax_norm_up."""
    n = node.shape[node.axis]
    if not node.log:
        near = torch.minimum(torch.maximum(low, torch.full_like(low, 0.5)), high)  # the closest to 1/2
        size = 2.0 * near * (1.0 - near)
    elif norm == 1:
        size = 1.0 + (n - 2) * high
    elif norm == 2:
        size = high.square().sum(dim=node.axis + 1, keepdim=True).sqrt() * math.sqrt(n)
    else:
        size = 2.0 * (1.0 - low)
    return size.flatten(1).amax(1) * (1.0 + 4.0 * gamma(n + 16)) + FLOOR


__all__ = ["NONLINEAR", "logarithms", "probabilities"]
