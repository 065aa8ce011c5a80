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
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from lipbridge.activations.slopes import WIDER
from lipbridge.graph.graph import Graph, reached
from lipbridge.propagation.jacobian.derivative import (
    Derivative,
    Interval,
    Relaxed,
    Spread,
    chord,
    part_of,
    times,
)
from lipbridge.rounding.scalars import FLOOR, gamma

#: Linear forms are propagated in pieces of at most so many numbers.
LARGEST = 2**18


class Cotangents:
    """The rows ``C J`` of the Jacobians on k regions, by node.

    Args:
        graph: the network.
        derivatives: of :func:`lipbridge.propagation.jacobian.derivatives.derivatives`.
        rows: C, ``(k or 1, m, outputs)``: linear combinations of the flattened outputs.
        linear: whether to propagate linear bounds too.
    """

    def __init__(
        self,
        graph: Graph,
        derivatives: Sequence[Derivative | None],
        rows: Tensor,
        *,
        linear: bool = True,
    ) -> None:
        self.graph, self.rows, self.linear = graph, rows, linear
        self.last = len(graph.nodes) - 1
        self.alive = reached([self.last], lambda index: graph.nodes[index].inputs)
        self.derivatives = derivatives
        self.readers = [[i for i in found if i in self.alive] for found in graph.readers()]
        self.last_reader = [max(r, default=i) for i, r in enumerate(self.readers)]
        self.images: dict[int, Tensor] = {}
        self.relaxed: dict[int, Relaxed] = {}
        self.found: dict[int, Interval] = {self.last: Interval(rows, rows)}
        curved = sorted(i for i in self.alive if i and self._derivative(i).uncertain is not None)
        self.last_curved = curved[-1] if curved else 0
        self.gaining = curved[-2] if len(curved) > 1 else 0
        lost = (4.0 * gamma(rows.shape[2] + 8)) * rows.abs() + FLOOR  # in the product with the rows
        self.charges: dict[int, Tensor] = {self.last: lost}

    def propagate(self) -> Interval:
        """Intervals of the cotangents of all nodes that the output reads; those of the Input are returned."""
        for index in sorted(self.alive, reverse=True):
            if index == 0:
                break
            own = self.found[index]
            map_ = self._derivative(index)
            uncertain = map_.uncertain
            if self.linear:
                if uncertain is not None and index < self.gaining:
                    own = self.found[index] = self.narrowed(index, uncertain)
                self._relax(index, map_, own)
            for source, part in zip(self.graph.nodes[index].inputs, map_.adjoint(own), strict=True):
                self.found[source] = self.found[source].plus(part) if source in self.found else part
        if 0 not in self.found:  # the output is constant
            n = math.prod(self.graph.input_shape)
            zero = self.rows.new_zeros(*self.rows.shape[:2], n)
            self.found[0] = Interval(zero, zero)
        return self.found[0]

    def _relax(self, index: int, map_: Derivative, own: Interval) -> None:
        found = self.relaxed[index] = map_.relaxed(own, self.charges.get(index))
        if found.lost is not None:
            for source, lost in zip(self.graph.nodes[index].inputs, found.lost, strict=True):
                known = self.charges.get(source)
                self.charges[source] = lost if known is None else (known + lost) * (1.0 + 2.0 * WIDER)

    def narrowed(self, index: int, wanted: Tensor) -> Interval:
        """Node ``index``'s interval, intersected with linear bounds at units that are ``wanted``: bool ``(k, size)``.

        Where one node alone is curved behind it, its intervals are as good: they take each slope by itself.
        """
        own = self.found[index]
        if index >= self.gaining:
            return own
        count, m, size = own.lower.shape
        widest = max(math.prod(self.graph.nodes[i].shape) for i in self.alive if i > index)
        together = max(1, LARGEST // (2 * m * size * widest))
        found = [
            self._narrowed(
                index, slice(start, start + together), _needed(part_of(wanted, slice(start, start + together)))
            )
            for start in range(0, count, together)
        ]
        return Interval(torch.cat([x.lower for x in found]), torch.cat([x.upper for x in found]))

    def _narrowed(self, index: int, regions: slice, units: Tensor) -> Interval:
        """The same on some of the regions, at units by their places in the flattened node."""
        own = self.found[index]
        lower, upper = own.lower[regions], own.upper[regions]
        widest = max(math.prod(self.graph.nodes[i].shape) for i in self.alive if i > index)
        relaxed, kept = self._without_still(index, {i: x.part(regions) for i, x in self.relaxed.items()})
        charge = self.charges.get(index)
        rows = part_of(self.rows, regions)
        step = max(1, LARGEST // (2 * len(lower) * lower.shape[1] * widest))
        for start in range(0, len(units), step):
            chosen = units[start : start + step]
            lost = None if charge is None else part_of(charge, regions).index_select(2, chosen).repeat(1, 1, 2)
            most = self.upper(index, self._units(index, chosen, kept), lost, relaxed, rows)
            top, bottom = most[..., : len(chosen)], -most[..., len(chosen) :]
            found = Interval(lower.index_select(2, chosen), upper.index_select(2, chosen))
            found = found.narrowed(Interval(bottom, top))
            lower, upper = lower.index_copy(2, chosen, found.lower), upper.index_copy(2, chosen, found.upper)
        return Interval(lower, upper)

    def _without_still(self, start: int, relaxed: dict[int, Relaxed]) -> tuple[dict[int, Relaxed], dict[int, Tensor]]:
        """Linear bounds behind a node without units that hand nothing on, and by node the places that are left.

        Such units are those whose slope is zero on all regions, between two nodes that can leave places out.
        """
        kept: dict[int, Tensor] = {}
        if self.rows.device.type != "cpu":  # looking would wait for the device
            return relaxed, kept
        found = dict(relaxed)
        for index in range(start + 2, self.last):
            still = found[index].still if index in found else None
            source = self.graph.nodes[index].inputs[0]
            if still is None or source <= start or [len(self.readers[i]) for i in (source, index)] != [1, 1]:
                continue
            places = (~still).any(0).nonzero().flatten()
            before = found[source].between(None, places)
            own = found[index].between(places, places)
            after = found[self.readers[index][0]].between(places, None)
            if len(places) < still.shape[1] and before is not None and own is not None and after is not None:
                found[source], found[index], found[self.readers[index][0]] = before, own, after
                kept[source] = kept[index] = places
        return found, kept

    def _units(self, index: int, chosen: Tensor, kept: Mapping[int, Tensor]) -> dict[int, Tensor]:
        """The unit forms of a node, and their opposites, as forms of what reads it: ``(1, 1, 2 r, size)``.

        Where places of the reader are left out, ``kept`` has the others.
        """
        reader = self.readers[index]
        size = math.prod(self.graph.nodes[index].shape)
        if len(reader) == 1 and len(self.graph.nodes[reader[0]].inputs) == 1 and self._linear(reader[0]):
            if index not in self.images:
                every = torch.eye(size, dtype=self.rows.dtype, device=self.rows.device)
                self.images[index] = self.relaxed[reader[0]].image([every[None, None]])[0][0, 0]
            form = self.images[index].index_select(0, chosen)
            form = form.index_select(1, kept[reader[0]]) if reader[0] in kept else form
            return {reader[0]: torch.cat([form, -form])[None, None]}
        places = torch.arange(size, device=chosen.device)
        form = (chosen[:, None] == places).to(self.rows.dtype)
        return {index: torch.cat([form, -form])[None, None]}

    def _linear(self, index: int) -> bool:
        return self._derivative(index).uncertain is None

    def upper(
        self, start: int, forms: dict[int, Tensor], bound: Tensor | None, relaxed: Mapping[int, Relaxed], rows: Tensor
    ) -> Tensor:
        """Upper bounds ``(k, m, r)`` of linear forms of cotangents; what is NaN tells nothing.

        Args:
            start: the node whose cotangents they are of.
            forms: ``(k or 1, m or 1, r, size)``: at that node, or already at the one that reads it.
            bound: the charge of the forms that were there first.
            relaxed: linear bounds of the derivatives, by node.
            rows: of the output.
        """
        for index in range(start + 1, self.last + 1):
            inputs = self.graph.nodes[index].inputs
            if index not in self.alive or not any(i in forms for i in inputs):
                continue
            found, offset = relaxed[index].image([forms.get(i) for i in inputs])
            forms[index] = found
            if offset is not None:
                bound = offset if bound is None else _sum(bound, offset)
            for i in set(inputs):
                if self.last_reader[i] <= index:
                    forms.pop(i, None)
        value = times(forms[self.last], rows)
        bound = value if bound is None else _sum(bound, value)
        return bound + 4.0 * WIDER * bound.abs() + FLOOR

    def row_sums(self) -> Tensor:
        """``(k, m)``: upper bounds of the l_1 norms of the rows; call :meth:`propagate` first."""
        entries = self.found[0]
        if self.linear:
            mixed = ((entries.lower < 0) & (entries.upper > 0)).any(1)
            entries = self.narrowed(0, mixed)
        n = entries.lower.shape[2]
        slack = 1.0 + 4.0 * gamma(n + 8)
        found = entries.magnitude.sum(2) * slack + n * FLOOR
        if self.linear and self.last_curved:
            slope, offset = chord(entries)
            own = offset.sum(2) * slack + n * FLOOR
            charge = self.charges.get(0)
            lost = None if charge is None else ((slope.abs() * charge).sum(2) * slack + n * FLOOR)[:, :, None]
            total = self.upper(0, {0: slope[:, :, None]}, lost, self.relaxed, self.rows).squeeze(2)
            found = torch.fmin(found, total + own + 2.0 * WIDER * (total.abs() + own))
        return found.nan_to_num(math.inf, math.inf)

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


def _sum(a: Tensor, b: Tensor) -> Tensor:
    """The sum of two upper bounds, rounded up."""
    return a + b + WIDER * (a.abs() + b.abs())


def _needed(wanted: Tensor) -> Tensor:
    """The places along the last axis that are wanted anywhere; all of them where looking would wait for a device."""
    if wanted.device.type != "cpu":
        return torch.arange(wanted.shape[-1], device=wanted.device)
    return wanted.flatten(0, -2).any(0).nonzero().flatten()


__all__ = ["Cotangents", "centers"]
