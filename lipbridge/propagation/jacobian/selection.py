"""Derivatives of maxima and order statistics: each output has the derivative of one entry of its window.

At a tie the Clarke Jacobian holds every mixture, so an output's row is any convex combination of the entries that may
be the one. A linear form of the window's cotangents sees of them only its largest and its smallest coefficient there.
"""

from __future__ import annotations

import math
from abc import abstractmethod

import torch
from torch import Tensor

from lipbridge.activations.slopes import WIDER
from lipbridge.graph.nodes import GroupSort, MaxPool
from lipbridge.graph.windows import in_windows, window_places
from lipbridge.propagation.jacobian.derivative import (
    Derivative,
    Interval,
    Relaxed,
    Spread,
    around,
    chord,
    part_of,
    times,
)
from lipbridge.rounding.scalars import FLOOR, gamma


class Selection(Derivative):
    """Outputs that each choose from ``possible`` entries: bool ``(k, outputs, entries)`` of the windows."""

    possible: Tensor

    @abstractmethod
    def gathered(self, x: Tensor) -> Tensor:
        """``(.., size of the source)`` as ``(.., outputs, entries)``; zero for no entry."""

    @property
    def certain(self) -> Tensor:
        """Where one entry alone may be chosen: bool ``(k, outputs)``."""
        return self.possible.sum(-1) == 1

    @property
    def uncertain(self) -> Tensor:
        return ~self.certain

    def spread(self, a: Tensor) -> list[Spread]:
        (found,) = self.adjoint(Interval(a, a))
        middle, radius = found.halves
        return [Spread(middle, radius)]

    def relaxed(self, a: Interval, charge: Tensor | None = None) -> Relaxed:
        """``a v``, for v between the smallest and the largest coefficient, is at most ``a middle + |a| radius``."""
        slope, offset = chord(a)
        size = 8.0 * WIDER * a.magnitude + FLOOR
        if charge is not None:
            size = size + charge * (1.0 + 8.0 * WIDER)
        n = size.shape[2]
        floor = (8.0 * n * FLOOR) * (1.0 + a.magnitude.sum(2, keepdim=True))  # coefficients that underflow
        return _Relaxed(self, self.possible[:, None, None], slope, offset, size, floor)


class _Relaxed(Relaxed):
    def __init__(
        self, map_: Selection, possible: Tensor, slope: Tensor, offset: Tensor, size: Tensor, floor: Tensor
    ) -> None:
        self.map, self.possible, self.slope, self.offset, self.size = map_, possible, slope, offset, size
        self.floor = floor

    def part(self, regions: slice) -> Relaxed:
        parts = [part_of(x, regions) for x in (self.possible, self.slope, self.offset, self.size, self.floor)]
        return _Relaxed(self.map, *parts)

    def image(self, forms: list[Tensor | None]) -> tuple[Tensor, Tensor | None]:
        (form,) = forms
        assert form is not None
        entries = self.map.gathered(form)
        most = torch.where(self.possible, entries, -math.inf).amax(-1)
        least = torch.where(self.possible, entries, math.inf).amin(-1)
        middle = 0.5 * most + 0.5 * least
        radius = torch.where(most == least, 0.0, (0.5 * most - 0.5 * least) * (1.0 + WIDER) + FLOOR)
        n = middle.shape[3]
        offset = times(radius, self.offset) + times(middle.abs() + radius, self.size)
        return middle + radius * self.slope[:, :, None], offset * (1.0 + gamma(n + 16)) + self.floor


class Maximum(Selection):
    """Max pooling of inputs ``(k, *shape)`` between ``lower`` and ``upper``."""

    def __init__(self, node: MaxPool, lower: Tensor, upper: Tensor) -> None:
        self.node, self.shape = node, tuple(lower.shape[1:])
        self.places = window_places(node, self.shape[1:], lower.device)
        low, high = in_windows(lower, self.places, -math.inf), in_windows(upper, self.places, -math.inf)
        inside = self.places >= 0
        self.possible = (inside & ~(high < low.amax(-1, keepdim=True))).flatten(1, 2)

    def gathered(self, x: Tensor) -> Tensor:
        lead = x.shape[:-1]
        entries = in_windows(x.reshape(-1, *self.shape), self.places, 0.0)
        return entries.reshape(*lead, -1, entries.shape[-1])

    def adjoint(self, a: Interval) -> list[Interval]:
        certain = self.certain[:, None, :, None]
        possible = self.possible[:, None]
        lower, upper = a.lower[..., None], a.upper[..., None]
        low = torch.where(possible, torch.where(certain, lower, lower.clamp_max(0.0)), 0.0)
        high = torch.where(possible, torch.where(certain, upper, upper.clamp_min(0.0)), 0.0)
        windows, entries = self.places.shape
        size = torch.maximum(low.abs(), high.abs())
        room = self._scattered(size) * (4.0 * gamma(windows * entries))
        return [around(self._scattered(low) - room, self._scattered(high) + room)]

    def _scattered(self, x: Tensor) -> Tensor:
        """``(k, m, outputs, entries)`` added up where they come from: ``(k, m, size)``."""
        n = math.prod(self.shape[1:])
        places = torch.where(self.places >= 0, self.places, n).flatten()
        parts = x.reshape(*x.shape[:2], self.shape[0], -1)
        found = x.new_zeros(*x.shape[:2], self.shape[0], n + 1).index_add(3, places, parts)
        return found[..., :n].flatten(2)


class Sorted(Selection):
    """Sorting of groups of inputs ``(k, *shape)`` between ``lower`` and ``upper``.

    Entry i can stand at place r if at most r others are certainly below it, and at most n - 1 - r certainly above.
    """

    def __init__(self, node: GroupSort, lower: Tensor, upper: Tensor) -> None:
        self.shape, self.group = tuple(lower.shape[1:]), node.group
        low, high = self._groups(lower.flatten(1)), self._groups(upper.flatten(1))
        below = (high[..., None, :] < low[..., :, None]).sum(-1)
        above = (low[..., None, :] > high[..., :, None]).sum(-1)
        place = torch.arange(self.group, device=lower.device)[:, None]
        possible = (below[..., None, :] <= place) & (place <= self.group - 1 - above[..., None, :])
        # (k, groups, rest, places, entries), with the places where the node has them
        self.possible = possible.movedim(3, 2).reshape(len(lower), -1, self.group)

    def _groups(self, x: Tensor) -> Tensor:
        """``(.., size)`` as ``(.., groups, rest, entries)``."""
        lead = x.shape[:-1]
        return x.reshape(*lead, self.shape[0] // self.group, self.group, -1).movedim(-2, -1)

    def gathered(self, x: Tensor) -> Tensor:
        lead = x.shape[:-1]
        groups = self._groups(x)[..., None, :]  # (.., groups, rest, 1, entries)
        whole = groups.expand(*groups.shape[:-2], self.group, self.group)
        return whole.movedim(-2, -3).reshape(*lead, -1, self.group)

    def adjoint(self, a: Interval) -> list[Interval]:
        """The weights of an entry add up to one as well: what it gets is a mean of cotangents."""
        k = len(self.possible)
        rest = math.prod(self.shape[1:])
        possible = self.possible.reshape(k, 1, -1, self.group, rest, self.group)
        shape = (*a.lower.shape[:2], self.shape[0] // self.group, self.group, rest, 1)
        lower = torch.where(possible, a.lower.reshape(shape), math.inf).amin(3)
        upper = torch.where(possible, a.upper.reshape(shape), -math.inf).amax(3)
        single = possible.sum(3) == 1
        found = [x.movedim(-1, -2).flatten(2) for x in (lower, upper, single.expand_as(lower))]
        exact = found[2].to(torch.bool)
        wide = around(found[0], found[1])
        return [Interval(torch.where(exact, found[0], wide.lower), torch.where(exact, found[1], wide.upper))]


__all__ = ["Maximum", "Selection", "Sorted"]
