"""Which values the nodes of a Graph take on balls: intervals, propagated forward and backward, rounded outward.

Three enclosures of every node are intersected:

* interval arithmetic, in centre-and-radius form for dense layers and convolutions;
* distance: on the ball a node moves from its value at the centre by at most D in l_p, the radius times the layers'
  norms and the activations' *local* slopes, so a unit of the next layer moves by at most ``|w|_dual D``. This is exact
  for the first layer, and much the best for networks that were trained for a small bound;
* linear: each activation is enclosed on its interval between two parallel lines, the lines are pulled back to the
  input, and what is left is a linear function on the ball (as Fast-Lin and CROWN do).

Every step is a batch over balls in float64, on the weights' device, and looks at values on the CPU alone, to save work.
A dot product of length n is trusted to |fl(w'x) - w'x| <= gamma_n |w|'|x| (Higham 2002, section 3.1), scalar functions
to :mod:`lipbridge.rigor.accuracy`. An overflow makes an interval infinite, never wrong.

Source: Weng et al. 2018 (Fast-Lin, parallel lines), Zhang et al. 2018 (CROWN); distances and rounding are ours.
The rules of the nodes are in :mod:`lipbridge.propagation.rules`, :mod:`lipbridge.propagation.space` and
:mod:`lipbridge.propagation.softmax`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial

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
from lipbridge.propagation.one_sided import Lines, choices_of, optimised_upper, upper_of_forms
from lipbridge.propagation.rules import (
    Context,
    LinearRelaxation,
    NodeBounds,
    back_substitute,
    halves,
    linear_relaxation,
    lost_in,
    narrowed,
    node_bounds,
    norm_up,
    nothing,
    spread_up,
    times,
)
from lipbridge.rigor.matrix import proved_operator_norm
from lipbridge.rigor.running_error import Enclosure, uncertainty
from lipbridge.rounding.scalars import FLOOR, gamma
from lipbridge.vocabulary import Norm

#: Linear forms are pulled back in pieces of at most so many numbers; on the CPU of as many as stay in its cache.
LARGEST, BLOCK = 2**24, 2**19


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
    parallel: bool = True,
    steps: int | None = None,
    narrowing: Narrowing | None = None,
    open_only: bool = False,
) -> list[NodeBounds]:
    """What each node's values are enclosed by on each ball.

    Args:
        graph: the network.
        ball: k balls; centres are moved to the weights' device.
        norms: of :func:`layer_norms`; without, distances come from the intervals alone.
        linear: whether to pull lines back to the input; costs about a product of all layers for each activation.
        parallel: whether to do so with two parallel lines around each activation.
        steps: whether to do so also with two lines of slopes of their own around each activation (not if None), and how
            many steps the lines of each unit that may be at a kink then descend on its bounds.
        narrowing: of each ball only the part where these nodes' values lie between these ends. Where a lower end is
            above an upper one in what is found, no input of the ball is in that part.
        open_only: whether, on the CPU, lines are pulled back for units at a kink alone, where only piecewise linear
            activations read them: enough to know the pieces, and much faster.

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
    sides: dict[int, list[Lines]] = {}
    gaining = [index for index in range(1, len(graph.nodes)) if linear and _gains(graph, index)]
    for index, node in enumerate(graph.nodes[1:], start=1):
        if index in gaining:
            source = node.inputs[0]
            pull = _Pull(graph, source, ball, boxed=0 in known, open_only=open_only)
            ways: list[_Ends] = [partial(pull.between, lines=lines)] if parallel else []
            ways += [] if steps is None else [partial(pull.by_sides, sides=sides)]
            if all(pull.narrow(found, context, way) for way in ways) and steps:
                found[source] = _optimised(graph, index, found, sides, context, ball, steps, boxed=0 in known)
        if isinstance(node, Elementwise) and any(later > index for later in gaining):
            if parallel:
                lines[index] = linear_relaxation(node, found[node.inputs[0]])
            if steps is not None:
                sides[index] = [choice.adaptive() for choice in choices_of(node, found[node.inputs[0]])]
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


#: Which regions a group holds; None for all.
_Places = Tensor | None
#: Lower and upper ends of units ``(1 or g, m)`` on the g regions of a group; None if a node has no rule.
_Ends = Callable[[Tensor, list[NodeBounds], _Places], tuple[Tensor, Tensor] | None]


@dataclass(frozen=True, eq=False)
class _Pull:
    """Bounds of a node's units from linear forms that are pulled back to the input; of all units, or open ones."""

    graph: Graph
    index: int
    ball: Ball
    boxed: bool
    open_only: bool

    def narrow(self, found: list[NodeBounds], context: Context, ends_of: _Ends) -> bool:
        """Whether no node was without a rule; then the node's bounds are narrowed."""
        own = found[self.index]
        for node in self.graph.nodes[: self.index + 1]:
            if isinstance(node, Dense):
                lost_in(node, found[node.inputs[0]])  # for all balls at once
        lower = torch.full_like(own.lower.flatten(1), -math.inf)
        upper = -lower
        longest = max(math.prod(node.shape) for node in self.graph.nodes[: self.index + 1])
        for places, units in _groups(self._wanted(own), 2 * longest):
            part = found[: self.index + 1]
            ends = ends_of(units, part if places is None else [taken(x, places) for x in part], places)
            if ends is None:
                return False
            where = torch.arange(len(lower), device=lower.device) if places is None else places
            for whole, end in zip((lower, upper), ends, strict=True):
                whole[where[:, None], units] = end.expand(len(where), -1)
        found[self.index] = narrowed(own, lower.reshape(own.lower.shape), upper.reshape(own.lower.shape), context)
        return True

    def _wanted(self, own: NodeBounds) -> Tensor:
        """``(k, size)``: which units to bound; all where looking would wait for the device."""
        lower, upper = own.lower.flatten(1), own.upper.flatten(1)
        readers = [node for node in self.graph.nodes if self.index in node.inputs]
        kinked = all(isinstance(node, Elementwise) and pieces_of(node.activation) is not None for node in readers)
        if lower.device.type != "cpu" or not self.open_only or not kinked:
            return torch.ones_like(lower, dtype=torch.bool)
        return torch.stack([_crossing(node, lower, upper) for node in readers if isinstance(node, Elementwise)]).any(0)

    def between(
        self, units: Tensor, found: list[NodeBounds], places: _Places, lines: Mapping[int, list[LinearRelaxation]]
    ) -> tuple[Tensor, Tensor] | None:
        """By parallel lines around each activation: both ends from one form."""
        start, form, offset, error = self._started(units, found)
        own = {i: [line.at(places) for line in group] for i, group in lines.items() if i <= start}
        return _form_ends(self.graph, start, form, found, own, self.ball, constant=(offset, error), boxed=self.boxed)

    def by_sides(
        self, units: Tensor, found: list[NodeBounds], places: _Places, sides: Mapping[int, list[Lines]]
    ) -> tuple[Tensor, Tensor] | None:
        """By a line on either side of each activation: a form for each end."""
        start, form, offset, error = self._started(units, found)
        both, constant = torch.cat([form, -form], 1), torch.cat([offset + error, error - offset], 1)
        own = {i: [line.at(places) for line in group] for i, group in sides.items() if i <= start}
        wide = widths(self.graph, start, found)
        most = upper_of_forms(self.graph, start, both, found, own, self.ball, wide, constant=constant, boxed=self.boxed)
        if most is None:
            return None
        top, bottom = most.chunk(2, 1)
        return -bottom, top

    def _started(self, units: Tensor, found: list[NodeBounds]) -> tuple[int, Tensor, Tensor, Tensor]:
        """Units as forms ``(1 or g, m, size)`` of a node's values, constants and errors: rows of a dense layer."""
        node = self.graph.nodes[self.index]
        zero = torch.zeros(units.shape, dtype=torch.float64, device=units.device)
        if not isinstance(node, Dense) or len(node.shape) > 1:
            size = torch.arange(math.prod(node.shape), device=units.device)
            return self.index, (units[..., None] == size).to(torch.float64), zero, zero
        own = _uncertainty(node, found)
        error = zero if own is None else own.gather(1, units.expand(len(own), -1))
        return node.inputs[0], node.weight[units], zero if node.bias is None else node.bias[units], error


def _groups(open_: Tensor, each: int) -> Iterator[tuple[_Places, Tensor]]:
    """Balls and units ``(1 or g, m)`` of each, all that are open, few at a time: a unit takes so many numbers.

    Balls that go together have about as many open units; those that have less fill up with others.
    """
    count, size = open_.shape
    every = torch.arange(size, device=open_.device)
    if open_.device.type != "cpu":
        step = max(1, LARGEST // (count * each))
        yield from ((None, every[None, start : start + step]) for start in range(0, size, step))
        return
    room = max(1, min(BLOCK, LARGEST) // each)
    open_counts, order = open_.sum(1).sort(descending=True)
    counts, start = [int(number) for number in open_counts], 0
    while start < count and counts[start]:
        most = counts[start]
        stop = min(start + max(1, room // most), count)
        while not counts[stop - 1]:
            stop -= 1
        places = order[start:stop].sort().values
        units = open_[places].to(torch.uint8).sort(dim=1, descending=True, stable=True).indices[:, :most]
        if counts[stop - 1] == size:
            units = every[None]
        for first in range(0, most, room):
            yield (None if len(places) == count else places), units[:, first : first + room]
        start = stop


def widths(graph: Graph, index: int, found: list[NodeBounds]) -> dict[int, Tensor]:
    """By node, up to ``index``, how far its values may be from what the weights that are held give."""
    known = {i: _uncertainty(graph.nodes[i], found) for i in range(1, index + 1)}
    return {i: width for i, width in known.items() if width is not None}


def _optimised(
    graph: Graph,
    reader: int,
    found: list[NodeBounds],
    sides: Mapping[int, list[Lines]],
    context: Context,
    ball: Ball,
    steps: int,
    *,
    boxed: bool,
) -> NodeBounds:
    """The bounds of what a piecewise linear activation reads, narrowed by lines of their own for units at a kink."""
    node = graph.nodes[reader]
    index = node.inputs[0]
    own, before = found[index], [i for i in sides if i <= index]
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
    found = NodeBounds(x.lower[part], x.upper[part], center, x.distance[part])
    found.lost.update({node: (lost[part], floor[part]) for node, (lost, floor) in x.lost.items()})
    return found


def _form_ends(
    graph: Graph,
    index: int,
    form: Tensor,
    found: list[NodeBounds],
    lines: Mapping[int, list[LinearRelaxation]],
    ball: Ball,
    *,
    constant: tuple[Tensor, Tensor] | None = None,
    boxed: bool = False,
) -> tuple[Tensor, Tensor] | None:
    """``(k, m)``: an interval of each linear form ``(1 or k, m, size)`` of a node, plus a constant with an error."""
    center = found[0].center.value.flatten(1)
    forms = {index: form}
    offset, error = (nothing(form), nothing(form)) if constant is None else constant
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
    size = form.abs()
    # Sums of numbers >= 0, each computed with a relative error below that of the longest dot product.
    longest = max(math.prod(node.shape) for node in graph.nodes)
    ends: list[tuple[Tensor, Tensor]] = []
    for middle, spread in ((center, spread_up(size, ball, center)), *_box(found[0], size, boxed)):
        value = times(form, middle) + offset
        own = error + spread + WIDER * value.abs() + n * FLOOR
        own = own * (1.0 + 8.0 * gamma(longest + 64))
        ends.append(outward(value - own, value + own))
    (lower, upper), *others = ends
    for low, high in others:
        lower, upper = torch.fmax(lower, low), torch.fmin(upper, high)
    return lower, upper


def _box(source: NodeBounds, size: Tensor, boxed: bool) -> list[tuple[Tensor, Tensor]]:
    """The middle of the input's own intervals, and how far forms may be there, where these say more than the ball."""
    if not boxed:
        return []
    middle, half = (x.flatten(1) for x in halves(source))
    return [(middle, times(size, half + gamma(size.shape[2] + 4) * middle.abs()))]


__all__ = ["Narrowing", "forward_bounds", "layer_norms", "taken", "widths"]
