"""How each kind of node passes intervals on and linear forms back: the rules of :mod:`lipbridge.propagation.bounds`.

A further kind of node registers :func:`reach`, and :func:`pull` for the linear part. Convolutions, pooling, sorting and
normalisation are in :mod:`lipbridge.propagation.space`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from lipbridge.activations.slopes import WIDER, component_bend, component_range, component_slopes, outward
from lipbridge.graph.evaluation import evaluate
from lipbridge.graph.nodes import Add, Concat, Dense, Elementwise, Node, Reshape, block_axis
from lipbridge.graph.rules import ProblemRule
from lipbridge.linalg import vector_norm
from lipbridge.problem.question import Ball
from lipbridge.propagation.products import product
from lipbridge.rigor.running_error import Enclosure, enclosed
from lipbridge.rounding.scalars import FLOOR, TINY, gamma
from lipbridge.vocabulary import Norm


@dataclass(frozen=True, eq=False)
class NodeBounds:
    """Where a node's value lies while the input runs through each of k balls.

    Attributes:
        lower: ``(k, *shape)`` float64; may be infinite.
        upper: likewise; never below ``lower`` but for nothing being known.
        center: the value at the balls' centres, enclosed.
        distance: ``(k,)``: how far in l_p, the balls' norm, the value moves from that at the centre, at most.
        lost: by dense layer that reads the node, once it was asked for, what :func:`lost_in` says.
    """

    lower: Tensor
    upper: Tensor
    center: Enclosure
    distance: Tensor
    lost: dict[Node, tuple[Tensor, Tensor]] = field(default_factory=lambda: {}, init=False)

    @property
    def magnitude(self) -> Tensor:
        """``(k, size)``: the largest absolute value of each coordinate."""
        return torch.fmax(self.lower.abs(), self.upper.abs()).flatten(1)


@dataclass(frozen=True, eq=False)
class LinearRelaxation:
    """A component on its interval: ``slope t + offset`` is within ``radius`` of it. All ``(k, *shape)``."""

    slope: Tensor
    offset: Tensor
    radius: Tensor

    def at(self, places: Tensor | None) -> LinearRelaxation:
        """The lines on some of the balls; on all for None."""
        if places is None:
            return self
        return LinearRelaxation(self.slope[places], self.offset[places], self.radius[places])


@dataclass(frozen=True, eq=False)
class Context:
    """What the nodes' rules read: the norm p, and proved l_p norms of linear layers where they are known."""

    norm: Norm
    norms: Mapping[Node, float] = field(default_factory=lambda: {})


# --- forward ---------------------------------------------------------------------------------------------------------


#: What encloses a node's values, given its inputs'.
node_bounds = ProblemRule[[list[NodeBounds], Context], NodeBounds]("bounds", "has no interval rule yet.")


def narrowed(found: NodeBounds, lower: Tensor, upper: Tensor, ball: Context) -> NodeBounds:
    """Intersected with a further interval; the distance follows."""
    lower, upper = torch.fmax(found.lower, lower), torch.fmin(found.upper, upper)
    center, far = found.center, found.distance.reshape(-1, *[1] * (lower.ndim - 1))
    room = (center.error + far) * (1.0 + WIDER)  # an end near zero is wider by less than the rounding of its room
    around = outward(center.value - room, center.value + room)
    lower, upper = torch.fmax(lower, around[0]), torch.fmin(upper, around[1])
    # The center's own error counts: the true value at the center is only known to within it.
    span = torch.maximum(upper - center.value, center.value - lower) + center.error
    distance = norm_up(span.clamp_min(0.0).flatten(1), ball.norm)
    distance = torch.fmin(found.distance, distance).nan_to_num(math.inf, math.inf)
    return replace(found, lower=lower, upper=upper, distance=distance)


def norm_up(x: Tensor, norm: Norm) -> Tensor:
    """Upper bound of the norms of rows with entries >= 0."""
    if norm == "inf":
        return x.amax(-1) * (1.0 + 4.0 * WIDER) + FLOOR
    n = x.shape[-1]
    slack = 1.0 + 4.0 * gamma(n + 16)
    if norm == 1:
        return x.sum(-1) * slack + FLOOR
    largest = x.amax(-1, keepdim=True)
    scaled = torch.where(largest > 0, x / largest, 0.0)
    return vector_norm(scaled, 2, -1) * largest.squeeze(-1) * slack + n * FLOOR


def with_center(x: NodeBounds) -> NodeBounds:
    """The intervals, and the value at the centre in them, which parts of a ball may leave out.

    What a function moves by, from the value at the centre, is at most its slopes between the two.
    """
    lower = torch.minimum(x.lower, x.center.value - x.center.error)
    return replace(x, lower=lower, upper=torch.maximum(x.upper, x.center.value + x.center.error))


def halves(x: NodeBounds) -> tuple[Tensor, Tensor]:
    """Middle and radius of a node's intervals."""
    middle = 0.5 * x.lower + 0.5 * x.upper
    return middle, torch.maximum(x.upper - middle, middle - x.lower) * (1.0 + WIDER) + FLOOR


DUAL: Mapping[Norm, Norm] = {1: "inf", 2: 2, "inf": 1}


@node_bounds.of(Dense)
def _(node: Dense, inputs: list[NodeBounds], ball: Context) -> NodeBounds:
    (x,) = inputs
    n = node.weight.shape[1]
    middle, half = halves(x)
    center = enclosed(node, [x.center])
    size = node.weight.abs()
    spread = (half + gamma(n + 2) * middle.abs()) @ size.T + n * FLOOR
    if node.bias is not None:
        spread = spread + gamma(n + 2) * node.bias.abs()
    spread = spread * (1.0 + 4.0 * gamma(n + 16))
    value = evaluate(node, [middle])
    lower, upper = outward(value - spread, value + spread)
    # The rows' dual norms bound every unit by itself: exact where the input is the ball.
    rows = norm_up(size, DUAL[ball.norm]) * x.distance.reshape(-1, *[1] * len(node.shape))
    room = rows * (1.0 + WIDER) + center.error
    around = outward(center.value - room, center.value + room)
    lower, upper = torch.fmax(lower, around[0]), torch.fmin(upper, around[1])
    distance = torch.full_like(x.distance, math.inf)
    if node in ball.norms:
        distance = x.distance * ball.norms[node] * (1.0 + WIDER) + FLOOR
    return narrowed(NodeBounds(lower, upper, center, distance), lower, upper, ball)


@node_bounds.of(Elementwise)
def _(node: Elementwise, inputs: list[NodeBounds], ball: Context) -> NodeBounds:
    (z,) = inputs
    lower: list[Tensor] = []
    upper: list[Tensor] = []
    steepest: list[Tensor] = []
    ends, around = (values_at(node, z.lower), values_at(node, z.upper)), with_center(z)
    for k, component in enumerate(node.activation.components):
        a, b = component_slopes(component, node.activation.slopes[k], z.lower, z.upper)
        bend = component_bend(component, z.lower, z.upper)
        low, high = line_offsets(z.lower, z.upper, torch.zeros_like(a), a, b, bend, (ends[0][k], ends[1][k]))
        least, most = component_range(component)
        lower.append(torch.fmax(low, torch.full_like(low, least)))
        upper.append(torch.fmin(high, torch.full_like(high, most)))
        a, b = component_slopes(component, node.activation.slopes[k], around.lower, around.upper)
        steepest.append(torch.maximum(a.abs(), b.abs()).flatten(1))
    gain = norm_up(torch.stack(steepest, dim=-1), ball.norm).amax(-1).clamp(max=node.activation.lipschitz[ball.norm])
    values, errors = zip(*_blocks(node, z.center), strict=True)
    axis = block_axis(node) + 1
    center = Enclosure(torch.cat(values, axis), torch.cat(errors, axis))
    distance = z.distance * gain * (1.0 + WIDER) + FLOOR
    found = NodeBounds(torch.cat(lower, axis), torch.cat(upper, axis), center, distance)
    return narrowed(found, found.lower, found.upper, ball)


def values_at(node: Elementwise, t: Tensor) -> list[tuple[Tensor, Tensor]]:
    """Per component the value at t and its error, of t's shape."""
    return _blocks(node, Enclosure(t, torch.zeros_like(t)))


def _blocks(node: Elementwise, z: Enclosure) -> list[tuple[Tensor, Tensor]]:
    """Per component the value at an enclosed z and its error, of z's shape."""
    shape, K = z.value.shape, node.activation.width
    flat = replace(node, shape=(K * math.prod(shape[1:]),), axis=-1)
    found = enclosed(flat, [Enclosure(z.value.flatten(1), z.error.flatten(1))])
    pairs = zip(found.value.chunk(K, 1), found.error.chunk(K, 1), strict=True)
    return [(value.reshape(shape), error.reshape(shape)) for value, error in pairs]


def line_offsets(
    lower_end: Tensor,
    upper_end: Tensor,
    slope: Tensor,
    a: Tensor,
    b: Tensor,
    bend: Tensor,
    ends: tuple[tuple[Tensor, Tensor], ...],
) -> tuple[Tensor, Tensor]:
    """An interval of ``g(t) - slope t`` for t in [l, u], for a in [l, u] slopes [a, b] of g and values at both ends.

    With x = t - l and w = u - l the difference d obeys ``d(l) - s x <= d <= d(l) + r x`` for r = b - slope and
    s = slope - a, and likewise from the other end; both meet in a parallelogram. Ends alone decide where g is convex
    (for the maximum) or concave (for the minimum).
    """
    (at_l, e_l), (at_u, e_u) = ends
    lines = slope.abs() * torch.fmax(lower_end.abs(), upper_end.abs())
    width = (upper_end - lower_end) * (1.0 + WIDER)
    room = torch.fmax(e_l, e_u) + 8.0 * WIDER * (at_l.abs() + at_u.abs() + lines) + FLOOR
    at_l, at_u = at_l - slope * lower_end, at_u - slope * upper_end
    rise, fall = (b - slope).clamp_min(0.0), (slope - a).clamp_min(0.0)
    total = rise + fall
    line = total <= FLOOR
    total = torch.where(line, 1.0, total)
    product = rise * (fall / total) * width
    room = room + 4.0 * TINY * width.clamp(max=2.0**1023)  # what the products of slopes lose before it
    upper = (at_l * (fall / total) + at_u * (rise / total)) + product
    lower = (at_l * (rise / total) + at_u * (fall / total)) - product
    high, low = torch.maximum(at_l, at_u), torch.minimum(at_l, at_u)
    # Outside of [a, b] one of rise and fall is cut to zero: then d is monotone, and its ends decide as well.
    ends_decide = line | (rise == 0) | (fall == 0)
    upper = torch.where(ends_decide | (bend > 0), high, torch.maximum(upper, high))
    lower = torch.where(ends_decide | (bend < 0), low, torch.minimum(lower, low))
    room = room + 8.0 * WIDER * (product + high.abs() + low.abs())
    return outward(lower - room, upper + room)


@node_bounds.of(Reshape)
def _(node: Reshape, inputs: list[NodeBounds], ball: Context) -> NodeBounds:
    (x,) = inputs
    lower, upper = evaluate(node, [x.lower]), evaluate(node, [x.upper])
    return NodeBounds(lower, upper, enclosed(node, [x.center]), x.distance)


@node_bounds.of(Concat)
def _(node: Concat, inputs: list[NodeBounds], ball: Context) -> NodeBounds:
    lower, upper = evaluate(node, [x.lower for x in inputs]), evaluate(node, [x.upper for x in inputs])
    value, error = (evaluate(node, part) for part in _parts(inputs))
    distance = norm_up(torch.stack([x.distance for x in inputs], -1), ball.norm)
    return narrowed(NodeBounds(lower, upper, Enclosure(value, error), distance), lower, upper, ball)


def _parts(inputs: list[NodeBounds]) -> tuple[list[Tensor], list[Tensor]]:
    return [x.center.value for x in inputs], [x.center.error for x in inputs]


@node_bounds.of(Add)
def _(node: Add, inputs: list[NodeBounds], ball: Context) -> NodeBounds:
    room = torch.stack([torch.fmax(x.lower.abs(), x.upper.abs()) for x in inputs]).sum(0) * (8.0 * len(inputs) * WIDER)
    lower, upper = evaluate(node, [x.lower for x in inputs]), evaluate(node, [x.upper for x in inputs])
    lower, upper = outward(lower - room, upper + room)
    center = enclosed(node, [x.center for x in inputs])
    distance = norm_up(torch.stack([x.distance for x in inputs], -1), 1)
    return narrowed(NodeBounds(lower, upper, center, distance), lower, upper, ball)


# --- backward --------------------------------------------------------------------------------------------------------


def linear_relaxation(node: Elementwise, z: NodeBounds) -> list[LinearRelaxation]:
    """Parallel lines around each component: along its chord, which is the best slope for a convex function."""
    ends = (values_at(node, z.lower), values_at(node, z.upper))
    found: list[LinearRelaxation] = []
    for k, component in enumerate(node.activation.components):
        a, b = component_slopes(component, node.activation.slopes[k], z.lower, z.upper)
        width = z.upper - z.lower
        slope = ((ends[1][k][0] - ends[0][k][0]) / width).nan_to_num(0.0, 0.0, 0.0)
        slope = torch.minimum(torch.maximum(slope, a), b)
        slope = torch.where(torch.isfinite(width), slope, 0.0)
        bend = component_bend(component, z.lower, z.upper)
        low, high = line_offsets(z.lower, z.upper, slope, a, b, bend, (ends[0][k], ends[1][k]))
        least, most = component_range(component)
        flat = slope == 0
        low = torch.where(flat, torch.fmax(low, torch.full_like(low, least)), low)
        high = torch.where(flat, torch.fmin(high, torch.full_like(high, most)), high)
        middle = 0.5 * low + 0.5 * high
        found.append(
            LinearRelaxation(slope, middle, torch.maximum(high - middle, middle - low) * (1.0 + WIDER) + FLOOR)
        )
    return found


@dataclass(frozen=True, eq=False)
class BackSubstituted:
    """A linear form of a node as one of its inputs: coefficients by input ``(k or 1, m, size)``, offset and error."""

    parts: list[Tensor]
    offset: Tensor
    error: Tensor


def times(form: Tensor, x: Tensor) -> Tensor:
    """``(k, m, n)`` forms at ``(k, n)`` points, ``(k, m)``."""
    return (form @ x[..., None]).squeeze(-1)


def spread_up(size: Tensor, ball: Ball, middle: Tensor) -> Tensor:
    """``(k, m)``: by how much forms exceed on the ball what was computed at its ``middle``, but for this rounding.

    ``size`` holds the coefficients' magnitudes, ``(k or 1, m, n)``.
    """
    lost = gamma(size.shape[2] + 4) * middle.abs()
    if ball.norm == "inf":
        return times(size, ball.radius + lost)
    return norm_up(size, DUAL[ball.norm]) * ball.radius + times(size, lost)


#: A linear form of a node's values (``(k or 1, m, size)``: m forms of the flattened node) as forms of its inputs',
#: which are enclosed, with the error that this makes on the balls; and the lines of an Elementwise, per component.
back_substitute = ProblemRule[[Tensor, list[NodeBounds], list[LinearRelaxation]], BackSubstituted](
    "linear bounds", "has no linear rule yet."
)


def nothing(form: Tensor) -> Tensor:
    return torch.zeros_like(form[..., 0])


@back_substitute.of(Dense)
def _(node: Dense, form: Tensor, inputs: list[NodeBounds], lines: list[LinearRelaxation]) -> BackSubstituted:
    (x,) = inputs
    k, m = form.shape[:2]
    rows = len(node.weight)
    if form.shape[2] == rows:
        part = product(form, node.weight)
    else:
        part = (form.reshape(k, m, -1, rows) @ node.weight).flatten(2)
    lost, floor = lost_in(node, x)
    offset = nothing(form)
    if node.bias is not None:
        offset = times(form, node.bias.expand(1, *node.shape).flatten(1))
    return BackSubstituted([part], offset, times(form.abs(), lost) + floor)


def lost_in(node: Dense, x: NodeBounds) -> tuple[Tensor, Tensor]:
    """What each coefficient of a form of a dense layer loses ``(k, size)``, by its magnitude, and all lose ``(k, 1)``.

    |fl(A W) - A W| |x| <= gamma |A| (|W| |x|), and underflow; likewise of the bias.
    """
    if node not in x.lost:
        rows, n = node.weight.shape
        size = x.magnitude.reshape(len(x.lower), -1, n)
        lost = gamma(rows + 2) * (size @ node.weight.abs().T + n * TINY)
        floor = (4.0 * rows * FLOOR) * (1.0 + size.flatten(1).sum(1))[:, None]
        if node.bias is not None:
            total = lost[0].numel()
            lost, floor = lost + gamma(total + 4) * node.bias.abs(), floor + total * FLOOR
        x.lost[node] = lost.flatten(1), floor
    return x.lost[node]


@back_substitute.of(Elementwise)
def _(node: Elementwise, form: Tensor, inputs: list[NodeBounds], lines: list[LinearRelaxation]) -> BackSubstituted:
    (z,) = inputs
    K = node.activation.width
    blocks = form.reshape(*form.shape[:2], *node.shape).chunk(K, block_axis(node) + 2)
    part: Tensor | None = None
    offset, error = nothing(form), nothing(form)
    size = z.magnitude
    for block, line in zip(blocks, lines, strict=True):
        block = block.flatten(2)
        slope, middle, radius = (x.flatten(1) for x in (line.slope, line.offset, line.radius))
        own = block * slope[:, None]
        part = own if part is None else part + own
        n = own.shape[2]
        offset = offset + times(block, middle)
        # What products with slopes lose, and sums of as many of them as there are components.
        lost = radius + gamma(n + K + 4) * middle.abs() + (K + 1) * WIDER * slope.abs() * size
        error = error + times(block.abs(), lost) + 4.0 * n * FLOOR * (1.0 + size.sum(1))[:, None]
    assert part is not None
    return BackSubstituted([part], offset, error + WIDER * offset.abs())


@back_substitute.of(Reshape)
def _(node: Reshape, form: Tensor, inputs: list[NodeBounds], lines: list[LinearRelaxation]) -> BackSubstituted:
    (x,) = inputs
    if node.axes is None:
        return BackSubstituted([form], nothing(form), nothing(form))
    before = x.lower.shape[1:]
    moved = form.reshape(*form.shape[:2], *(before[axis] for axis in node.axes))
    back = sorted(range(len(node.axes)), key=lambda place: node.axes[place] if node.axes else 0)
    part = moved.permute(0, 1, *(place + 2 for place in back)).flatten(2)
    return BackSubstituted([part], nothing(form), nothing(form))


@back_substitute.of(Concat)
def _(node: Concat, form: Tensor, inputs: list[NodeBounds], lines: list[LinearRelaxation]) -> BackSubstituted:
    lengths = [x.lower.shape[1 + node.axis] for x in inputs]
    whole = form.reshape(*form.shape[:2], *node.shape)
    parts = torch.split(whole, lengths, node.axis + 2)
    return BackSubstituted([part.flatten(2) for part in parts], nothing(form), nothing(form))


@back_substitute.of(Add)
def _(node: Add, form: Tensor, inputs: list[NodeBounds], lines: list[LinearRelaxation]) -> BackSubstituted:
    return BackSubstituted([form for _ in inputs], nothing(form), nothing(form))


__all__ = [
    "DUAL",
    "BackSubstituted",
    "Context",
    "LinearRelaxation",
    "NodeBounds",
    "back_substitute",
    "halves",
    "line_offsets",
    "linear_relaxation",
    "lost_in",
    "narrowed",
    "node_bounds",
    "norm_up",
    "nothing",
    "spread_up",
    "times",
    "values_at",
    "with_center",
]
