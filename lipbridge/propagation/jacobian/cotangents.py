"""Enclosures of the rows of the Jacobian, propagated from the output to the input.

Every node's cotangents are enclosed twice, and the enclosures are intersected:

* by intervals, node by node;
* by linear bounds: a coefficient of a cotangent, from above, is a linear form of the cotangents of the nodes that read
  it, and so on up to the output, whose rows are known. At an activation the product slope times cotangent, which is
  bilinear, lies below the chord of its largest value: the hull of all slopes between bounds, exactly.

The second costs about a product of all layers for each unit whose slope is not known, and is what makes the bound of a
deep network useful.

Source: Zhang et al. 2019 (RecurJac) and Shi et al. 2022 (arXiv 2210.07394) bound these products recursively and by
linear bound propagation; the segments of joint slopes, maxima and order statistics, and the rounding are ours.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from lipbridge.activations.slopes import WIDER
from lipbridge.graph.graph import Graph, reached
from lipbridge.propagation.jacobian.derivative import Derivative, Interval, Relaxed, Spread, chord, times
from lipbridge.rounding.scalars import FLOOR, gamma

#: Linear forms are propagated in pieces of at most so many numbers.
LARGEST = 2**22


class Cotangents:
    """The rows ``C J`` of the Jacobians on k regions, by node.

    Args:
        graph: the network.
        derivatives: of :func:`lipbridge.propagation.jacobian.derivatives.derivatives`.
        rows: C, ``(k or 1, m, outputs)``: linear combinations of the flattened outputs.
        linear: whether to propagate linear bounds too.
    """

    def __init__(
        self, graph: Graph, derivatives: Sequence[Derivative | None], rows: Tensor, *, linear: bool = True
    ) -> None:
        self.graph, self.rows, self.linear = graph, rows, linear
        self.last = len(graph.nodes) - 1
        self.alive = reached([self.last], lambda index: graph.nodes[index].inputs)
        self.derivatives = derivatives
        readers = graph.readers()
        self.last_reader = [max(r, default=i) for i, r in enumerate(readers)]
        self.relaxed: dict[int, Relaxed] = {}
        self.found: dict[int, Interval] = {self.last: Interval(rows, rows)}
        curved = [i for i in self.alive if i and self._derivative(i).uncertain is not None]
        self.first_curved = max(curved, default=0)

    def propagate(self) -> Interval:
        """Intervals of the cotangents of all nodes that the output reads; those of the Input are returned."""
        for index in sorted(self.alive, reverse=True):
            if index == 0:
                break
            own = self.found[index]
            map_ = self._derivative(index)
            uncertain = map_.uncertain
            if self.linear and uncertain is not None and index < self.first_curved:
                own = self.found[index] = self.narrowed(index, _needed(uncertain))
            if self.linear:
                self.relaxed[index] = map_.relaxed(own)
            for source, part in zip(self.graph.nodes[index].inputs, map_.adjoint(own), strict=True):
                self.found[source] = self.found[source].plus(part) if source in self.found else part
        if 0 not in self.found:  # the output is constant
            n = math.prod(self.graph.input_shape)
            zero = self.rows.new_zeros(*self.rows.shape[:2], n)
            self.found[0] = Interval(zero, zero)
        return self.found[0]

    def narrowed(self, index: int, units: Tensor) -> Interval:
        """Node ``index``'s interval, intersected at ``units`` (places in the flattened node) with linear bounds."""
        own = self.found[index]
        if not self._curved_behind(index) or not len(units):
            return own
        size = own.lower.shape[2]
        lead = max(own.lower.shape[0], 1) * own.lower.shape[1]
        widest = max(math.prod(self.graph.nodes[i].shape) for i in self.alive)
        step = max(1, LARGEST // (2 * lead * widest))
        every = torch.arange(size, device=units.device)
        lower, upper = own.lower, own.upper
        for start in range(0, len(units), step):
            chosen = units[start : start + step]
            form = (chosen[:, None] == every).to(own.lower.dtype)
            most = self.upper(index, torch.cat([form, -form])[None, None])
            top, bottom = most[..., : len(chosen)], -most[..., len(chosen) :]
            found = Interval(lower.index_select(2, chosen), upper.index_select(2, chosen))
            found = found.narrowed(Interval(bottom, top))
            lower, upper = (
                x.expand(*y.shape[:2], size).index_copy(2, chosen, y)
                for x, y in ((lower, found.lower), (upper, found.upper))
            )
        return Interval(lower, upper)

    def upper(self, start: int, form: Tensor) -> Tensor:
        """Upper bounds ``(k, m, r)`` of linear forms ``(k or 1, m or 1, r, size)`` of node ``start``'s cotangents.

        What is NaN tells nothing.
        """
        forms = {start: form}
        bound: Tensor = form.new_zeros(1, 1, form.shape[2])
        if start == self.last:
            return self._at_output(form)
        for index in range(start + 1, self.last + 1):
            inputs = self.graph.nodes[index].inputs
            if index not in self.alive or not any(i in forms for i in inputs):
                continue
            found, offset = self.relaxed[index].image([forms.get(i) for i in inputs])
            forms[index] = found
            bound = bound + offset + WIDER * (bound.abs() + offset.abs())
            for i in set(inputs):
                if self.last_reader[i] <= index:
                    forms.pop(i, None)
        value = self._at_output(forms[self.last])
        return bound + value + 4.0 * WIDER * (bound.abs() + value.abs()) + FLOOR

    def _at_output(self, form: Tensor) -> Tensor:
        n = form.shape[3]
        value = times(form, self.rows)
        size = times(form.abs(), self.rows.abs())
        return value + 4.0 * gamma(n + 8) * size + n * FLOOR

    def row_sums(self) -> Tensor:
        """``(k, m)``: upper bounds of the l_1 norms of the rows; call :meth:`propagate` first."""
        entries = self.found[0]
        if self.linear:
            mixed = (entries.lower < 0) & (entries.upper > 0)
            entries = self.narrowed(0, _needed(mixed.flatten(0, 1)))
        n = entries.lower.shape[2]
        slack = 1.0 + 4.0 * gamma(n + 8)
        found = entries.magnitude.sum(2) * slack + n * FLOOR
        if self.linear and self._curved_behind(0):
            slope, offset = chord(entries)
            total = self.upper(0, slope[:, :, None]).squeeze(2)
            own = offset.sum(2) * slack + n * FLOOR
            total = total + own + 2.0 * WIDER * (total.abs() + own)
            found = torch.fmin(found, total)
        return found.nan_to_num(math.inf, math.inf)

    def _curved_behind(self, index: int) -> bool:
        """Whether a node with an uncertain derivative lies between a node and the output, itself not counted."""
        return index < self.first_curved

    def _derivative(self, index: int) -> Derivative:
        found = self.derivatives[index]
        assert found is not None  # the Input alone has none
        return found


def centers(
    graph: Graph, derivatives: Sequence[Derivative | None], rows: Tensor
) -> tuple[Tensor, list[tuple[int, Spread]]]:
    """The rows of middle Jacobians, and what the nodes' derivatives may add to them.

    Returns:
        The middle rows ``(k or 1, m, inputs)``, and pairs of a node and a :class:`Spread` of its cotangents. The rows
        of J are the middle ones plus, for each pair, what is spread times the Jacobian of that node: the differences
        telescope, from the output to the input.
    """
    last = len(graph.nodes) - 1
    alive = reached([last], lambda index: graph.nodes[index].inputs)
    found: dict[int, Tensor] = {last: rows}
    added: list[tuple[int, Spread]] = []
    for index in sorted(alive, reverse=True):
        if index == 0:
            break
        map_ = derivatives[index]
        assert map_ is not None
        parts = map_.spread(found.pop(index))
        for source, part in zip(graph.nodes[index].inputs, parts, strict=True):
            added.append((source, part))
            if source in found:
                found[source] = found[source] + part.center
                size = found[source].abs()
                added.append((source, Spread(found[source], WIDER * size + FLOOR)))
            else:
                found[source] = part.center
    return found.get(0, rows.new_zeros(*rows.shape[:2], math.prod(graph.input_shape))), added


def _needed(wanted: Tensor) -> Tensor:
    """The places along the last axis that are wanted anywhere; all of them where looking would wait for a device."""
    if wanted.device.type != "cpu":
        return torch.arange(wanted.shape[-1], device=wanted.device)
    return wanted.flatten(0, -2).any(0).nonzero().flatten()


__all__ = ["Cotangents", "centers"]
