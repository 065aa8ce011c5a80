"""Which values the nodes of a Graph take on balls: intervals, propagated forward and backward, rounded outward.

Three enclosures of every node are intersected:

* interval arithmetic, in centre-and-radius form for dense layers and convolutions;
* distance: on the ball a node moves from its value at the centre by at most D in l_p, the radius times the layers'
  norms and the activations' *local* slopes, so a unit of the next layer moves by at most ``|w|_dual D``. This is exact
  for the first layer, and much the best for networks that were trained for a small bound;
* linear: each activation is enclosed on its interval between two parallel lines, the lines are pulled back to the
  input, and what is left is a linear function on the ball (as Fast-Lin and CROWN do).

Every step is a batch over balls in float64, on the weights' device, and never looks at a value. A dot product of
length n is trusted to |fl(w'x) - w'x| <= gamma_n |w|'|x| (Higham 2002, section 3.1), scalar functions to
:mod:`lipbridge.rigor.accuracy`. An overflow makes an interval infinite, never wrong.

Source: Weng et al. 2018 (Fast-Lin, parallel lines), Zhang et al. 2018 (CROWN); distances and rounding are ours.
The rules of the nodes are in :mod:`lipbridge.propagation.rules`, :mod:`lipbridge.propagation.space` and
:mod:`lipbridge.propagation.softmax`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from lipbridge.activations.activation import pieces_of
from lipbridge.activations.slopes import WIDER, outward
from lipbridge.constants.node_constants import conv_norm_up, transposed_norm_up
from lipbridge.errors import InvalidArgument
from lipbridge.graph.geometry import meeting_taps
from lipbridge.graph.graph import Graph, has_errors
from lipbridge.graph.nodes import Conv, ConvTranspose, Dense, Elementwise, Node
from lipbridge.problem.question import Ball
from lipbridge.propagation import softmax as _softmax
from lipbridge.propagation import space as _space
from lipbridge.propagation.adjoint import moves
from lipbridge.propagation.one_sided import Choice, choices_of, optimised_upper, upper_of_forms
from lipbridge.propagation.rules import (
    DUAL,
    Context,
    LinearRelaxation,
    NodeBounds,
    back_substitute,
    halves,
    linear_relaxation,
    narrowed,
    node_bounds,
    norm_up,
    nothing,
    times,
)
from lipbridge.rigor.matrix import proved_operator_norm
from lipbridge.rigor.running_error import Enclosure, uncertainty
from lipbridge.rounding.scalars import FLOOR, gamma
from lipbridge.vocabulary import Norm

#: Linear forms are pulled back in pieces of at most so many numbers.
LARGEST = 2**24


def layer_norms(graph: Graph, norm: Norm) -> dict[Node, float]:
    """Proved l_p norms of dense layers and convolutions (by node: names may repeat), for :func:`forward_bounds`.

    Raises:
        NumericalFailure: if weights hold NaN or a norm overflows.
    """
    found: dict[Node, float] = {}
    for node in graph.nodes:
        if isinstance(node, Dense):
            found[node] = proved_operator_norm(node.weight, norm)
        elif isinstance(node, Conv):
            found[node] = conv_norm_up(node, graph.nodes[node.inputs[0]].shape, norm, norm)
        elif isinstance(node, ConvTranspose):
            found[node] = transposed_norm_up(node, graph.nodes[node.inputs[0]].shape, norm, norm)
    return found


#: By node index, where the values ``(k, *shape)`` of a node are known to lie: what makes parts of balls regions.
Narrowing = Mapping[int, tuple[Tensor, Tensor]]


def forward_bounds(
    graph: Graph,
    ball: Ball,
    norms: Mapping[Node, float] | None = None,
    *,
    linear: bool = True,
    steps: int | None = None,
    narrowing: Narrowing | None = None,
) -> list[NodeBounds]:
    """What each node's values are enclosed by on each ball.

    Args:
        graph: the network.
        ball: k balls; centres are moved to the weights' device.
        norms: of :func:`layer_norms`; without, distances come from the intervals alone.
        linear: whether to pull lines back to the input; costs about a product of all layers for each activation.
        steps: whether to do so also with two lines of slopes of their own around each activation (not if None), and how
            many steps the lines of each unit that may be at a kink then descend on its bounds.
        narrowing: of each ball only the part where these nodes' values lie between these ends. Where a lower end is
            above an upper one in what is found, no input of the ball is in that part.

    Raises:
        InvalidArgument: if the centres do not fit the network.
        UnsupportedProblem: for a node without a rule.

    Law: the value of a node at any x of a ball is in its interval, in real arithmetic.
    """
    if tuple(ball.centers.shape[1:]) != graph.input_shape:
        raise InvalidArgument("centers", f"have shape (k, *{graph.input_shape})", tuple(ball.centers.shape))
    context = Context(ball.norm, norms or {})
    centers = ball.centers.detach().to(device=graph.device_or(ball.centers.device), dtype=torch.float64)
    zero = torch.zeros_like(centers)
    radius = torch.full((len(centers),), ball.radius, dtype=torch.float64, device=centers.device)
    lower, upper = outward(centers - ball.radius, centers + ball.radius)
    known = narrowing or {}
    found = [_part(NodeBounds(lower, upper, Enclosure(centers, zero), radius), known.get(0), context)]
    lines: dict[int, list[LinearRelaxation]] = {}
    sides: dict[int, list[Choice]] = {}
    for index, node in enumerate(graph.nodes[1:], start=1):
        if linear and _gains(graph, index):
            source = node.inputs[0]
            pulled = _pulled_back(graph, source, found, lines, ball, 0 in known)
            if pulled is not None:
                found[source] = narrowed(found[source], *pulled, context)
            if steps is not None and pulled is not None:
                found[source] = _one_sided(graph, source, found, sides, context, ball, boxed=0 in known)
                if steps:
                    found[source] = _optimised(graph, index, found, sides, context, ball, steps, boxed=0 in known)
        if isinstance(node, Elementwise):
            lines[index] = linear_relaxation(node, found[node.inputs[0]])
            if steps is not None:
                sides[index] = choices_of(node, found[node.inputs[0]])
        own = _widened(node, node_bounds(node, [found[i] for i in node.inputs], context), found, context)
        found.append(_part(own, known.get(index), context))
    return found


def _part(own: NodeBounds, ends: tuple[Tensor, Tensor] | None, context: Context) -> NodeBounds:
    """What is left of a node's values between two ends."""
    return own if ends is None else narrowed(own, *ends, context)


def _uncertainty(node: Node, found: list[NodeBounds]) -> Tensor | None:
    """How far a node's values may be from those that its weights give, which are known up to an error alone."""
    if not isinstance(node, Dense | Conv | ConvTranspose) or not has_errors(node):
        return None
    source = found[node.inputs[0]]
    return uncertainty(node, source.magnitude.reshape(source.lower.shape))


def _widened(node: Node, own: NodeBounds, found: list[NodeBounds], context: Context) -> NodeBounds:
    """What encloses a node's values for all weights within their errors."""
    more = _uncertainty(node, found)
    if more is None:
        return own
    lower, upper = outward(own.lower - more, own.upper + more)
    distance = own.distance + 2.0 * norm_up(more.flatten(1), context.norm) * (1.0 + WIDER)
    return NodeBounds(lower, upper, own.center, distance * (1.0 + WIDER))


def _gains(graph: Graph, index: int) -> bool:
    """Whether lines may narrow a node's source: it is nonlinear, and behind more than one layer or copying padding.

    Behind an activation only another one asks: what the lines know went into the activation's own source.
    """
    node = graph.nodes[index]
    if not isinstance(node, (Elementwise, *_softmax.NONLINEAR, *_space.NONLINEAR)):
        return False
    source = node.inputs[0]
    if isinstance(graph.nodes[source], Elementwise) and not isinstance(node, Elementwise):
        return False
    before = [node for node in graph.nodes[1 : source + 1] if not moves(node)]
    return len(before) > 1 or any(_copies(graph, node) for node in before)


def _copies(graph: Graph, node: Node) -> bool:
    """Whether taps of a convolution meet on one input, so that only lines know their sum."""
    return isinstance(node, Conv) and meeting_taps(node, graph.nodes[node.inputs[0]].shape) > 1


def _pulled_back(
    graph: Graph,
    index: int,
    found: list[NodeBounds],
    lines: Mapping[int, list[LinearRelaxation]],
    ball: Ball,
    boxed: bool = False,
) -> tuple[Tensor, Tensor] | None:
    """An interval of node ``index`` from linear forms pulled back to the input; None if a node has no rule."""
    center = found[0].center.value
    size = math.prod(graph.nodes[index].shape)
    longest = max(math.prod(node.shape) for node in graph.nodes[: index + 1])
    step = max(1, LARGEST // (len(center) * longest))
    units = torch.arange(size, device=center.device)
    ends: list[tuple[Tensor, Tensor]] = []
    for start in range(0, size, step):
        rows = (units[start : start + step, None] == units).to(torch.float64)
        end = _form_ends(graph, index, rows[None], found, lines, ball, boxed)
        if end is None:
            return None
        ends.append(end)
    shape = (len(center), *graph.nodes[index].shape)
    lower, upper = (torch.cat(parts, 1).expand(len(center), size).reshape(shape) for parts in zip(*ends, strict=True))
    return lower, upper


def _one_sided(
    graph: Graph,
    index: int,
    found: list[NodeBounds],
    choices: Mapping[int, list[Choice]],
    context: Context,
    ball: Ball,
    *,
    boxed: bool,
) -> NodeBounds:
    """Node ``index``'s bounds, narrowed by a line on either side of each activation."""
    shape = graph.nodes[index].shape
    size, count = math.prod(shape), len(found[0].center.value)
    longest = max(math.prod(node.shape) for node in graph.nodes[: index + 1])
    step = max(1, LARGEST // (2 * count * longest))
    lines = {i: [choice.adaptive() for choice in own] for i, own in choices.items() if i <= index}
    wide = widths(graph, index, found)
    units = torch.arange(size, device=found[0].lower.device)
    ends: list[Tensor] = []
    for start in range(0, size, step):
        rows = (units[start : start + step, None] == units).to(torch.float64)
        form = torch.stack([rows, -rows], 1).flatten(0, 1)[None]
        most = upper_of_forms(graph, index, form, found, lines, ball, wide, boxed=boxed)
        if most is None:
            return found[index]
        ends.append(most.expand(count, -1))
    top, bottom = torch.cat(ends, 1).reshape(count, size, 2).unbind(2)
    return narrowed(found[index], -bottom.reshape(count, *shape), top.reshape(count, *shape), context)


def widths(graph: Graph, index: int, found: list[NodeBounds]) -> dict[int, Tensor]:
    """By node, up to ``index``, how far its values may be from what the weights that are held give."""
    known = {i: _uncertainty(graph.nodes[i], found) for i in range(1, index + 1)}
    return {i: width for i, width in known.items() if width is not None}


def _optimised(
    graph: Graph,
    reader: int,
    found: list[NodeBounds],
    choices: Mapping[int, list[Choice]],
    context: Context,
    ball: Ball,
    steps: int,
    *,
    boxed: bool,
) -> NodeBounds:
    """The bounds of what a piecewise linear activation reads, narrowed by lines of their own for units at a kink."""
    node = graph.nodes[reader]
    index = node.inputs[0]
    own, before = found[index], [i for i in choices if i <= index]
    if not isinstance(node, Elementwise) or not before:
        return own
    lower, upper = own.lower.flatten(1), own.upper.flatten(1)
    size = lower.shape[1]
    longest = max(math.prod(node.shape) for node in graph.nodes[: index + 1])
    step = max(1, LARGEST // (32 * longest))
    units = torch.arange(size, device=lower.device)
    crossing = _crossing(node, lower, upper)
    # The places where it pays; all where looking would wait for the device.
    pairs = (crossing if crossing.device.type == "cpu" else torch.ones_like(crossing, device="cpu")).nonzero()
    for start in range(0, len(pairs), step):
        place, unit = pairs[start : start + step].to(lower.device).unbind(1)
        part = [taken(x, place) for x in found[: index + 1]]
        rows = (unit[:, None] == units).to(torch.float64)
        form = torch.stack([rows, -rows], 1)
        own_choices = {i: choices_of(_elementwise(graph, i), part[graph.nodes[i].inputs[0]]) for i in before}
        wide = widths(graph, index, part)
        most = optimised_upper(graph, index, form, part, own_choices, ball, wide, boxed=boxed, steps=steps)
        if most is None:
            return own
        top, bottom = most.expand(len(place), 2).unbind(1)
        lower = lower.index_put((place, unit), torch.fmax(lower[place, unit], -bottom))
        upper = upper.index_put((place, unit), torch.fmin(upper[place, unit], top))
    return narrowed(own, lower.reshape(own.lower.shape), upper.reshape(own.upper.shape), context)


def _crossing(node: Elementwise, lower: Tensor, upper: Tensor) -> Tensor:
    """Where a kink of a piecewise linear activation lies inside an interval."""
    found = torch.zeros_like(lower, dtype=torch.bool)
    known = pieces_of(node.activation)
    for kink in [] if known is None else known.kinks:
        found = found | ((lower <= float(kink)) & (upper >= float(kink)))
    return found


def _elementwise(graph: Graph, index: int) -> Elementwise:
    node = graph.nodes[index]
    assert isinstance(node, Elementwise)
    return node


def taken(x: NodeBounds, part: Tensor | slice) -> NodeBounds:
    """The bounds on some of the regions."""
    center = Enclosure(x.center.value[part], x.center.error[part])
    return NodeBounds(x.lower[part], x.upper[part], center, x.distance[part])


def _form_ends(
    graph: Graph,
    index: int,
    form: Tensor,
    found: list[NodeBounds],
    lines: Mapping[int, list[LinearRelaxation]],
    ball: Ball,
    boxed: bool = False,
) -> tuple[Tensor, Tensor] | None:
    """An interval of each linear form ``(1, m, size)`` of node ``index``: ``(k, m)``."""
    center = found[0].center.value.flatten(1)
    forms = {index: form}
    offset, error = nothing(form), nothing(form)
    for i in range(index, 0, -1):
        if i not in forms:
            continue
        node, form = graph.nodes[i], forms.pop(i)
        if not back_substitute.knows(type(node)):
            return None
        step = back_substitute(node, form, [found[j] for j in node.inputs], lines.get(i, []))
        own = _uncertainty(node, found)
        if own is not None:
            error = error + times(form.abs(), own.flatten(1)) * (1.0 + WIDER)
        offset = offset + step.offset
        error = error + step.error + WIDER * offset.abs()
        for j, part in zip(node.inputs, step.parts, strict=True):
            if j in forms:
                forms[j] = forms[j] + part
                error = error + WIDER * times(forms[j].abs(), found[j].magnitude)
            else:
                forms[j] = part
    n = center.shape[1]
    form = forms.get(0, center.new_zeros(1, form.shape[1], n))
    # Sums of numbers >= 0, each computed with a relative error below that of the longest dot product.
    longest = max(math.prod(node.shape) for node in graph.nodes)
    ends: list[tuple[Tensor, Tensor]] = []
    for middle, spread in ((center, norm_up(form.abs(), DUAL[ball.norm]) * ball.radius), *_box(found[0], form, boxed)):
        value = times(form, middle) + offset
        own = error + spread + gamma(n + 4) * times(form.abs(), middle.abs()) + WIDER * value.abs() + n * FLOOR
        own = own * (1.0 + 8.0 * gamma(longest + 64))
        ends.append(outward(value - own, value + own))
    (lower, upper), *others = ends
    for low, high in others:
        lower, upper = torch.fmax(lower, low), torch.fmin(upper, high)
    return lower, upper


def _box(source: NodeBounds, form: Tensor, boxed: bool) -> list[tuple[Tensor, Tensor]]:
    """Middle and spread of forms over the input's own intervals, where these say more than the ball."""
    if not boxed:
        return []
    middle, half = (x.flatten(1) for x in halves(source))
    return [(middle, times(form.abs(), half))]


__all__ = ["Narrowing", "forward_bounds", "layer_norms", "taken", "widths"]
