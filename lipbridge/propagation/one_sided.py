"""Upper bounds of linear forms by two lines around each activation, of slopes of their own, as CROWN has them.

The parallel lines of :mod:`lipbridge.propagation.rules` bound a form from both sides in one pass. Here each activation
has a line below and one above, and a coefficient's sign says which of them counts: two passes, and tighter bounds
wherever the best lines are not parallel, as for relu.

Source: Zhang et al. 2018 (CROWN). The lines are chosen among the end slopes and the chord by the mean of the line on
the interval, which for relu is CROWN's adaptive choice; offsets are enclosed for whatever slope is chosen.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

import torch
from torch import Tensor

from lipbridge.activations.slopes import WIDER, component_bend, component_range, component_slopes
from lipbridge.graph.graph import Graph
from lipbridge.graph.nodes import Elementwise, block_axis
from lipbridge.problem.question import Ball
from lipbridge.propagation.rules import (
    NodeBounds,
    back_substitute,
    halves,
    line_offsets,
    nothing,
    spread_up,
    times,
    values_at,
)
from lipbridge.rounding.scalars import FLOOR, gamma

#: Step lengths at the beginning and the end of a descent, where slopes run from zero to one.
RATES = (0.2, 0.005)


@dataclass(frozen=True, eq=False)
class Lines:
    """``lower_slope t + lower_offset <= g(t) <= upper_slope t + upper_offset`` on an interval.

    All are ``(k, 1, size)``, or ``(k, m, size)`` where each of m forms has lines of its own.
    """

    lower_slope: Tensor
    lower_offset: Tensor
    upper_slope: Tensor
    upper_offset: Tensor

    def at(self, places: Tensor | None) -> Lines:
        """The lines on some of the balls; on all for None."""
        if places is None:
            return self
        return Lines(*(x[places] for x in (self.lower_slope, self.lower_offset, self.upper_slope, self.upper_offset)))


class Choice:
    """The lines around one component that there are to choose from: for every slope the best offset.

    Args:
        node: the activation.
        k: the component.
        z: bounds of the node's source.
    """

    def __init__(self, node: Elementwise, k: int, z: NodeBounds) -> None:
        flat = replace(node, shape=(node.activation.width * math.prod(z.lower.shape[1:]),), axis=-1)
        self.lower, self.upper = z.lower.flatten(1)[:, None], z.upper.flatten(1)[:, None]
        component = node.activation.components[k]
        ends = [values_at(flat, x.squeeze(1))[k] for x in (self.lower, self.upper)]
        self.ends = tuple((value[:, None], error[:, None]) for value, error in ends)
        self.least, self.most = component_slopes(component, node.activation.slopes[k], self.lower, self.upper)
        self.bend = component_bend(component, self.lower, self.upper)
        self.range = component_range(component)
        width = self.upper - self.lower
        chord = ((self.ends[1][0] - self.ends[0][0]) / width).nan_to_num(0.0, 0.0, 0.0)
        self.finite = torch.isfinite(width)
        self.chord = torch.minimum(torch.maximum(chord, self.least), self.most)
        self.middle = (0.5 * self.lower + 0.5 * self.upper).nan_to_num(0.0, 0.0, 0.0)

    def allowed(self, slope: Tensor) -> Tensor:
        """The nearest slope that a line may have."""
        return torch.where(self.finite, torch.minimum(torch.maximum(slope, self.least), self.most), 0.0)

    def offsets(self, slope: Tensor) -> tuple[Tensor, Tensor]:
        """Of the lines of a slope ``(k, m, size)`` below and above."""
        low, high = line_offsets(self.lower, self.upper, slope, self.least, self.most, self.bend, self.ends)
        flat, (least, most) = slope == 0, self.range
        return torch.where(flat, low.clamp_min(least), low), torch.where(flat, high.clamp_max(most), high)

    def adaptive(self) -> Lines:
        """The lines with the best means on the interval, among the end slopes and the chord."""
        below, above = self._tried(self.chord)
        for choice in (self.least, self.most):
            lower, upper = self._tried(choice)
            below = _where(lower[0] > below[0], lower, below)
            above = _where(upper[0] < above[0], upper, above)
        return Lines(*below[1:], *above[1:])

    def _tried(self, slope: Tensor) -> tuple[_Tried, _Tried]:
        """The lines of a slope below and above: their mean on the interval, slope and offset."""
        slope = self.allowed(slope)
        low, high = self.offsets(slope)
        below = (slope * self.middle + low).nan_to_num(-math.inf, math.inf, -math.inf)
        above = (slope * self.middle + high).nan_to_num(math.inf, math.inf, -math.inf)
        return (below, slope, low), (above, slope, high)

    def place(self, slope: Tensor) -> Tensor:
        """Where a slope lies between the least (0) and the most (1)."""
        return ((slope - self.least) / (self.most - self.least).clamp_min(FLOOR)).nan_to_num(0.0).clamp(0.0, 1.0)

    def at(self, lower: Tensor, upper: Tensor) -> Lines:
        """The lines of slopes at places; above a convex and below a concave function the chord, which is the best."""
        ends = [self.allowed(self.least + x * (self.most - self.least)) for x in (lower, upper)]
        low = torch.where(self.bend < 0, self.allowed(self.chord), ends[0])
        high = torch.where(self.bend > 0, self.allowed(self.chord), ends[1])
        return Lines(low, self.offsets(low)[0], high, self.offsets(high)[1])


_Tried = tuple[Tensor, Tensor, Tensor]


def _where(better: Tensor, new: _Tried, old: _Tried) -> _Tried:
    mean, slope, offset = (torch.where(better, x, y) for x, y in zip(new, old, strict=True))
    return mean, slope, offset


def choices_of(node: Elementwise, z: NodeBounds) -> list[Choice]:
    """Per component what lines there are."""
    return [Choice(node, k, z) for k in range(node.activation.width)]


def upper_of_forms(
    graph: Graph,
    index: int,
    form: Tensor,
    found: Sequence[NodeBounds],
    lines: Mapping[int, list[Lines]],
    ball: Ball,
    widened: Mapping[int, Tensor],
    *,
    constant: Tensor | None = None,
    boxed: bool = False,
) -> Tensor | None:
    """``(k, m)``: upper bounds of linear forms ``(1 or k, m, size)`` of a node on the balls; None without a rule.

    Args:
        graph: the network.
        index: the node.
        form: coefficients of its flattened values.
        found: bounds of all nodes before.
        lines: of the activations before, per component.
        ball: the balls.
        widened: by node, how far its values may be from what the weights that are held give.
        constant: ``(k or 1, m)``: what is added to the forms.
        boxed: whether the input is known to lie in less than the balls.
    """
    center = found[0].center.value.flatten(1)
    forms, bound = {index: form}, nothing(form) if constant is None else constant
    for i in range(index, 0, -1):
        if i not in forms:
            continue
        node, form = graph.nodes[i], forms.pop(i)
        if isinstance(node, Elementwise):
            parts, more = _between(node, form, found[node.inputs[0]], lines[i])
        elif back_substitute.knows(type(node)):
            step = back_substitute(node, form, [found[j] for j in node.inputs], [])
            parts, more = step.parts, step.offset + step.error + WIDER * step.offset.abs()
        else:
            return None
        if i in widened:
            more = more + times(form.abs(), widened[i].flatten(1)) * (1.0 + WIDER)
        bound = bound + more
        bound = bound + 2.0 * WIDER * (bound.abs() + more.abs())
        for j, part in zip(node.inputs, parts, strict=True):
            if j in forms:
                forms[j] = forms[j] + part
                bound = bound + WIDER * times(forms[j].abs(), found[j].magnitude)
            else:
                forms[j] = part
    n = center.shape[1]
    form = forms.get(0, center.new_zeros(1, bound.shape[1], n))
    size = form.abs()
    longest = max(math.prod(node.shape) for node in graph.nodes)
    slack = 1.0 + 8.0 * gamma(longest + 64)
    ends = [times(form, center) + (spread_up(size, ball, center) + n * FLOOR) * slack]
    if boxed:
        middle, half = (x.flatten(1) for x in halves(found[0]))
        room = times(size, half + gamma(n + 4) * middle.abs()) + n * FLOOR
        ends.append(times(form, middle) + room * slack)
    least = ends[0] if len(ends) == 1 else torch.fmin(*ends)
    # The sums of non-negative errors in ``bound`` were each computed to within the longest dot product's error.
    total = bound + least
    return total + 16.0 * gamma(longest + 64) * (bound.abs() + least.abs()) + n * FLOOR


def _between(node: Elementwise, form: Tensor, z: NodeBounds, lines: list[Lines]) -> tuple[list[Tensor], Tensor]:
    """Each coefficient times the line that bounds its component from its side."""
    K = node.activation.width
    blocks = form.reshape(*form.shape[:2], *node.shape).chunk(K, block_axis(node) + 2)
    part: Tensor | None = None
    bound = nothing(form)
    size = z.magnitude
    for block, line in zip(blocks, lines, strict=True):
        coefficients = block.flatten(2)
        negative, positive = coefficients.clamp_max(0.0), coefficients.clamp_min(0.0)
        n = positive.shape[2]
        own = torch.addcmul(positive * line.upper_slope, negative, line.lower_slope)
        part = own if part is None else part + own
        top, bottom = line.upper_offset, line.lower_offset
        steep = torch.maximum(line.upper_slope.abs(), line.lower_slope.abs())
        lost = gamma(n + 3 * K + 8) * torch.maximum(top.abs(), bottom.abs()) + FLOOR
        # What products with slopes lose, and sums of as many of them as there are components.
        lost = lost + (2 * K + 8) * WIDER * steep * size[:, None]
        bound = bound + _along(positive, top + lost) + _along(negative, bottom - lost)
        bound = bound + 4.0 * n * FLOOR * (1.0 + size.sum(1))[:, None]
    assert part is not None
    return [part], bound


def _along(form: Tensor, x: Tensor) -> Tensor:
    """Each form at ``x``, ``(k, 1, size)`` or one for each form."""
    return times(form, x.squeeze(1)) if x.shape[1] == 1 else (form * x).sum(2)


def optimised_upper(
    graph: Graph,
    index: int,
    form: Tensor,
    found: Sequence[NodeBounds],
    choices: Mapping[int, list[Choice]],
    ball: Ball,
    widened: Mapping[int, Tensor],
    *,
    boxed: bool,
    steps: int,
) -> Tensor | None:
    """As :func:`upper_of_forms`, with lines for each form whose slopes descend on its bound for some steps of Adam.

    Every step's bound holds, and the least of them is taken. Source: Xu et al. 2021 (alpha-CROWN); here each form has
    slopes of its own.
    """
    before = {i: own for i, own in choices.items() if i <= index}
    lines = {i: [choice.adaptive() for choice in own] for i, own in before.items()}
    best = upper_of_forms(graph, index, form, found, lines, ball, widened, boxed=boxed)
    if best is None or not steps or not before:
        return best
    k, m = best.shape
    leaves: list[Tensor] = []
    for i, own in before.items():
        for choice, line in zip(own, lines[i], strict=True):
            for slope in (line.lower_slope, line.upper_slope):  # midway to the chord, so that it may go either way
                leaves.append(choice.place(0.5 * (slope + choice.chord)).expand(k, m, -1).clone().requires_grad_())
    optimizer: Any = torch.optim.Adam(leaves, lr=RATES[0], betas=(0.7, 0.9))
    for step in range(steps):
        with torch.enable_grad():
            places = iter(leaves)
            moved = {i: [choice.at(next(places), next(places)) for choice in own] for i, own in before.items()}
            value = upper_of_forms(graph, index, form, found, moved, ball, widened, boxed=boxed)
            assert value is not None
            best = torch.fmin(best, value.detach())
            if step + 1 == steps or not value.requires_grad:  # no line matters
                break
            optimizer.zero_grad()
            cast(Any, torch.where(torch.isfinite(value), value, 0.0).sum()).backward()
        for group in optimizer.param_groups:
            group["lr"] = RATES[0] * (RATES[1] / RATES[0]) ** (step / steps)
        optimizer.step()
        with torch.no_grad():
            for leaf in leaves:
                leaf.nan_to_num_(0.0).clamp_(0.0, 1.0)
    return best


__all__ = ["Choice", "Lines", "choices_of", "optimised_upper", "upper_of_forms"]
