"""Intervals and linear forms through convolutions, max pooling, sorting and normalisation.

A convolution is a dense layer with few entries: each output is a dot product with the kernel's taps, and a form is
pulled back by the transposed convolution. A maximum, or an order statistic, is one of its entries and an interval for
what the others may add. A normalised run is its centred entries times 1 / s, with s enclosed on the ball.

Source: ours, but for the line of a maximum (Zhang et al. 2018, CNN-Cert, has other ones).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from lipbridge.activations.slopes import WIDER, outward
from lipbridge.constants.node_constants import normalize_norm_up, propagate, root_mean_square_norm_up
from lipbridge.graph.evaluation import convolve, evaluate, grouped, runs
from lipbridge.graph.geometry import meeting_taps
from lipbridge.graph.nodes import Conv, GroupSort, MaxPool, Normalize
from lipbridge.graph.windows import in_windows, most_windows, window_places
from lipbridge.propagation.linear_maps import transposed
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
    norm_up,
    nothing,
    times,
    with_center,
)
from lipbridge.rigor.running_error import Enclosure, enclosed
from lipbridge.rounding.scalars import FLOOR, TINY, gamma
from lipbridge.vocabulary import Norm

#: The nodes of this file that are not linear.
NONLINEAR = (MaxPool, GroupSort, Normalize)


# --- convolutions ----------------------------------------------------------------------------------------------------


@node_bounds.of(Conv)
def _(node: Conv, inputs: list[NodeBounds], ball: Context) -> NodeBounds:
    (x,) = inputs
    center, box = enclosed(node, [x.center]), enclosed(node, [Enclosure(*halves(x))])
    lower, upper = outward(box.value - box.error, box.value + box.error)
    # The rows' dual norms bound every output by itself, as in a dense layer.
    rows = _row_norms_up(node, tuple(x.lower.shape[1:]), DUAL[ball.norm])
    room = rows * _spread(x.distance, rows) * (1.0 + 4.0 * WIDER) + FLOOR + center.error
    around = outward(center.value - room, center.value + room)
    lower, upper = torch.fmax(lower, around[0]), torch.fmin(upper, around[1])
    distance = torch.full_like(x.distance, math.inf)
    if node in ball.norms:
        distance = x.distance * ball.norms[node] * (1.0 + WIDER) + FLOOR
    return narrowed(NodeBounds(lower, upper, center, distance), lower, upper, ball)


def _spread(x: Tensor, like: Tensor) -> Tensor:
    """``(k,)`` with further axes of length one, as many as ``like`` has."""
    return x.reshape(-1, *[1] * (like.ndim - 1))


def _row_norms_up(node: Conv, shape: tuple[int, ...], norm: Norm) -> Tensor:
    """``(1, *node.shape)``: upper bounds of the norms of the operator's rows on inputs of ``shape``.

    Taps in padded zeros do not count. Where padding lets m taps read one input, their sum is at most the largest of
    them times m, and its square at most m times the sum of theirs.
    """
    W, n = node.weight.abs(), node.weight[0].numel()
    slack, m = 1.0 + 4.0 * gamma(n + 16), meeting_taps(node, shape)
    ones = W.new_ones(1, *shape)
    if norm == 1:
        return convolve(node, ones, W, None) * slack + n * FLOOR
    largest = W.flatten(1).amax(1).reshape(1, -1, *[1] * (len(shape) - 1))
    if norm == "inf":
        return (largest * m * (1.0 + WIDER)).expand(1, *node.shape)
    scale = largest.reshape(-1, *[1] * (W.ndim - 1))
    scaled = torch.where(scale > 0, W / scale, 0.0)
    squares = convolve(node, ones, scaled.square(), None) + n * FLOOR
    return (m * squares).sqrt() * largest * slack + FLOOR


@back_substitute.of(Conv)
def _(node: Conv, form: Tensor, inputs: list[NodeBounds], lines: list[LinearRelaxation]) -> BackSubstituted:
    (x,) = inputs
    k, m = form.shape[:2]
    shape = tuple(x.lower.shape[1:])
    part = transposed(node, form.reshape(k * m, *node.shape), shape).reshape(k, m, -1)
    size, taps, terms = x.magnitude, node.weight[0].numel(), _terms(node)
    # |fl(A W) - A W| |x| <= gamma |A| (|W| |x|), and underflow.
    reach_up = convolve(node, size.reshape(-1, *shape), node.weight.abs(), None).flatten(1) + taps * TINY
    reach_up = reach_up * (1.0 + gamma(taps + 16))
    error = gamma(terms + 2) * times(form.abs(), reach_up) + (4.0 * terms * FLOOR) * (1.0 + size.sum(1))[:, None]
    offset = nothing(form)
    if node.bias is not None:
        channels = form.reshape(k, m, len(node.bias), -1)
        offset = channels.sum(3) @ node.bias
        error = error + gamma(form.shape[2] + 4) * (channels.abs().sum(3) @ node.bias.abs()) + form.shape[2] * FLOOR
    return BackSubstituted([part], offset, error)


def _terms(node: Conv) -> int:
    """At least how many products meet in one coefficient of a form that was pulled back."""
    copies = [1 if node.padding_mode == "zeros" else 1 + sum(pair) for pair in node.padding]
    return node.weight.shape[0] // node.groups * math.prod(node.kernel) * math.prod(copies)


# --- maxima and order statistics -------------------------------------------------------------------------------------


@node_bounds.of(MaxPool)
def _(node: MaxPool, inputs: list[NodeBounds], ball: Context) -> NodeBounds:
    (x,) = inputs
    factor = propagate(node, [{ball.norm: 1.0}], [tuple(x.lower.shape[1:])])[ball.norm]
    lower, upper = evaluate(node, [x.lower]), evaluate(node, [x.upper])
    distance = x.distance * factor * (1.0 + WIDER) + FLOOR
    return narrowed(NodeBounds(lower, upper, enclosed(node, [x.center]), distance), lower, upper, ball)


@back_substitute.of(MaxPool)
def _(node: MaxPool, form: Tensor, inputs: list[NodeBounds], lines: list[LinearRelaxation]) -> BackSubstituted:
    """Entry j of the window, plus [0, room]: the maximum exceeds x_j by at most max_(i != j) u_i - l_j."""
    (x,) = inputs
    shape = x.lower.shape
    places = window_places(node, shape[2:], x.lower.device)
    low, high = in_windows(x.lower, places, -math.inf), in_windows(x.upper, places, -math.inf)
    first = high.argmax(-1, keepdim=True)
    entries = torch.arange(places.shape[1], device=first.device)
    second = torch.where(entries == first, -math.inf, high).amax(-1, keepdim=True)
    others = torch.where(entries == first, second, high.gather(-1, first))
    # Unknown entries last, and padding behind them.
    rooms = _up(others - low)
    least = torch.where(places >= 0, rooms.clamp_max(2.0**1023), math.inf).argmin(-1, keepdim=True)
    room = rooms.gather(-1, least).flatten(1)
    index = places.expand_as(low).gather(-1, least).squeeze(-1).clamp_min(0)[:, None]
    forms = form.reshape(*form.shape[:2], *index.shape[2:]).expand(len(index), -1, -1, -1)
    zero = forms.new_zeros(*forms.shape[:3], math.prod(shape[2:]))
    index = index.expand_as(forms)
    part = zero.scatter_add(3, index, forms).flatten(2)
    size, n = zero.scatter_add(3, index, forms.abs()).flatten(2), form.shape[2]
    middle = 0.5 * room
    error = times(form.abs(), middle * (1.0 + gamma(n + 4)) + n * FLOOR)
    met = most_windows(node, tuple(shape[1:]))
    return BackSubstituted([part], times(form, middle), error + gamma(met + 2) * times(size, x.magnitude))


def _up(difference: Tensor) -> Tensor:
    """A computed difference or zero, the larger, raised by more than its rounding; infinite where nothing is known."""
    return difference.clamp_min(0.0).nan_to_num(math.inf, math.inf) * (1.0 + 4.0 * WIDER) + FLOOR


@node_bounds.of(GroupSort)
def _(node: GroupSort, inputs: list[NodeBounds], ball: Context) -> NodeBounds:
    (x,) = inputs
    lower, upper = evaluate(node, [x.lower]), evaluate(node, [x.upper])
    return narrowed(NodeBounds(lower, upper, enclosed(node, [x.center]), x.distance), lower, upper, ball)


@back_substitute.of(GroupSort)
def _(node: GroupSort, form: Tensor, inputs: list[NodeBounds], lines: list[LinearRelaxation]) -> BackSubstituted:
    """The r-th smallest, y, as an entry x_j plus an interval, with entries ranked by their middles.

    Where y > x_j, one of the r - 1 entries ranked before j is at least y: fewer than r entries are below y, and j is
    one. So y - x_j is at most the largest of their upper ends less l_j; likewise from below. Or y is an interval.
    """
    (x,) = inputs
    low, high = grouped(node, x.lower), grouped(node, x.upper)
    order = (0.5 * low + 0.5 * high).nan_to_num(0.0).argsort(dim=2)
    least, most = low.gather(2, order), high.gather(2, order)
    edge = torch.full_like(least[:, :, :1], math.inf)
    before = torch.cat([-edge, most[:, :, :-1].cummax(2).values], 2)
    behind = torch.cat([least[:, :, 1:].flip(2).cummin(2).values.flip(2), edge], 2)
    more, less = _up(before - least), _up(most - behind)
    bottom, top = low.sort(2).values, high.sort(2).values
    entry = more + less <= top - bottom
    least, most = torch.where(entry, -less, bottom), torch.where(entry, more, top)
    middle = 0.5 * least + 0.5 * most
    radius = torch.maximum(most - middle, middle - least) * (1.0 + WIDER) + FLOOR
    forms = form.reshape(*form.shape[:2], *low.shape[1:])
    own = forms * entry[:, None]
    index = order[:, None].expand_as(own)
    part = torch.zeros_like(own).scatter(3, index, own).flatten(2)
    n = form.shape[2]
    middle, radius = middle.flatten(1), radius.flatten(1)
    error = times(form.abs(), radius + gamma(n + 4) * middle.abs() + n * FLOOR)
    return BackSubstituted([part], times(form, middle), error)


# --- normalisation ---------------------------------------------------------------------------------------------------


@node_bounds.of(Normalize)
def _(node: Normalize, inputs: list[NodeBounds], ball: Context) -> NodeBounds:
    (x,) = inputs
    n, norm = math.prod(node.shape) // node.groups, ball.norm
    _, _, bottom, top = normalised(node, x, norm)
    _, long, _, _ = normalised(node, with_center(x), norm)
    # The Jacobian (I - (1 1' + y y') / n) / s with |y|^2 <= n: see normalize_norm_up.
    factor = 1.0 if norm == 2 else (2.0 + math.sqrt(n)) * (1.0 + WIDER)
    largest = normalize_norm_up if node.centred else root_mean_square_norm_up
    gain = (long.flatten(1).amax(1) * factor).clamp(max=largest(n, node.epsilon, norm))
    distance = x.distance * gain * (1.0 + 4.0 * WIDER) + FLOOR
    lower, upper = bottom.reshape(x.lower.shape), top.reshape(x.lower.shape)
    return narrowed(NodeBounds(lower, upper, enclosed(node, [x.center]), distance), lower, upper, ball)


def normalised(node: Normalize, x: NodeBounds, norm: Norm) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """An interval of the inverse deviations ``(k, groups, 1)`` and one of the outputs ``(k, groups, n)``."""
    n = math.prod(node.shape) // node.groups
    least, most = _centred(node, x)
    short, long = _inverse_deviations(node, least, most)
    moved = _spread(x.distance * (math.sqrt(n) * (1.0 + WIDER) if norm == "inf" else 1.0), short)
    long = torch.minimum(long, _nearest(node, x.center, moved))
    return short, long, *_quotients(node, least, most, short, long)


def _centred(node: Normalize, x: NodeBounds) -> tuple[Tensor, Tensor]:
    """Intervals of the runs, less their mean if the node centres: ``(k, groups, n)``."""
    if not node.centred:
        return runs(node, x.lower), runs(node, x.upper)
    low, high, size = (runs(node, end) for end in (x.lower, x.upper, x.magnitude))
    n = low.shape[2]
    rest = (n - 1) / n
    least = rest * low - (high.sum(2, keepdim=True) - high) / n
    most = rest * high - (low.sum(2, keepdim=True) - low) / n
    room = (gamma(n + 8) * 4.0) * (size + size.mean(2, keepdim=True)) + n * FLOOR
    return outward(least - room, most + room)


def _inverse_deviations(node: Normalize, least: Tensor, most: Tensor) -> tuple[Tensor, Tensor]:
    """An interval ``(k, groups, 1)`` of 1 / sqrt(variance + epsilon), for centred entries in [least, most]."""
    n = least.shape[2]
    slack = 4.0 * gamma(n + 16)
    nearest = torch.maximum(least, -most).clamp_min(0.0)
    farthest = torch.maximum(-least, most).clamp_min(0.0)
    small = (nearest.square().mean(2, keepdim=True) * (1.0 - slack) - FLOOR).clamp_min(0.0)
    large = farthest.square().mean(2, keepdim=True) * (1.0 + slack) + FLOOR
    short = (1.0 / (large + node.epsilon).sqrt()) * (1.0 - 8.0 * WIDER) - FLOOR
    long = (1.0 / (small + node.epsilon).sqrt()) * (1.0 + 8.0 * WIDER) + FLOOR
    return short.clamp_min(0.0).nan_to_num(0.0), long.nan_to_num(math.inf, math.inf)


def _nearest(node: Normalize, center: Enclosure, moved: Tensor) -> Tensor:
    """At most 1 / s ``(k, groups, 1)`` within l_2 distance ``moved`` of the centre: sqrt(n) s' >= |P c| - moved.

    P takes the mean off where the node centres, and is the identity otherwise.
    """
    value, error = runs(node, center.value), runs(node, center.error)
    n = value.shape[2]
    slack = gamma(n + 16)
    centred = value - value.mean(2, keepdim=True) if node.centred else value
    length = norm_up(centred.abs(), 2) * (1.0 - 16.0 * slack) - 4.0 * n * FLOOR
    lost = norm_up(error, 2) + 4.0 * slack * norm_up(value.abs(), 2)
    left = ((length - lost)[..., None] - moved * (1.0 + WIDER)).clamp_min(0.0) * (1.0 - 8.0 * WIDER)
    left = left.nan_to_num(0.0, 0.0)
    variance = ((left / math.sqrt(n)).square() * (1.0 - 8.0 * WIDER) - FLOOR).clamp_min(0.0)
    return ((1.0 / (variance + node.epsilon).sqrt()) * (1.0 + 8.0 * WIDER) + FLOOR).nan_to_num(math.inf, math.inf)


def _quotients(node: Normalize, least: Tensor, most: Tensor, short: Tensor, long: Tensor) -> tuple[Tensor, Tensor]:
    """Intervals of the runs' entries times 1 / s.

    No centred entry of a run of n exceeds sqrt(n - 1) (Samuelson 1968), and no other sqrt(n).
    """
    bottom, top = outward(least * torch.where(least < 0, long, short), most * torch.where(most > 0, long, short))
    largest = math.sqrt(least.shape[2] - int(node.centred)) * (1.0 + WIDER) + FLOOR
    return torch.fmax(bottom, torch.full_like(bottom, -largest)), torch.fmin(top, torch.full_like(top, largest))


@back_substitute.of(Normalize)
def _(node: Normalize, form: Tensor, inputs: list[NodeBounds], lines: list[LinearRelaxation]) -> BackSubstituted:
    """Centred entries times the middle t of 1 / s, and what 1 / s - t adds; or, run by run, an interval."""
    (x,) = inputs
    least, most = _centred(node, x)
    short, long = _inverse_deviations(node, least, most)
    t = 0.5 * short + 0.5 * long
    away = torch.maximum(long - t, t - short) * (1.0 + WIDER)
    radius = torch.maximum(-least, most) * away * (1.0 + 4.0 * WIDER) + FLOOR
    bottom, top = _quotients(node, least, most, short, long)
    middle = 0.5 * bottom + 0.5 * top
    half = torch.maximum(top - middle, middle - bottom) * (1.0 + WIDER) + FLOOR
    line = radius.sum(2, keepdim=True) < half.sum(2, keepdim=True)
    t = torch.where(line, t, 0.0)[:, None]
    radius, middle = torch.where(line, radius, half).flatten(1), torch.where(line, 0.0, middle).flatten(1)
    forms = form.reshape(*form.shape[:2], node.groups, -1)
    part, size = forms, forms.abs()
    if node.centred:
        part, size = part - part.mean(3, keepdim=True), size + size.mean(3, keepdim=True)
    part, size = (part * t).flatten(2), (size * t).flatten(2)
    n, run = form.shape[2], forms.shape[3]
    error = times(form.abs(), radius + gamma(n + 4) * middle.abs() + n * FLOOR)
    error = error + gamma(run + 8) * times(size, x.magnitude) + 4.0 * n * FLOOR * (1.0 + x.magnitude.sum(1))[:, None]
    return BackSubstituted([part], times(form, middle), error)


__all__ = ["NONLINEAR", "normalised"]
