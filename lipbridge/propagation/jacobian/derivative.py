"""What is known of a node's derivative on regions: the contract that each kind of node fulfils in a way of its own.

The Jacobian of a network at a point is a product, along each path, of its nodes' derivatives, and so is the difference
quotient ``f(x) - f(y) = J (x - y)`` of two points, with difference quotients in their place. Its rows are *cotangents*:
the row of the output is chosen, and a node with derivative M hands ``M' a`` to its inputs where ``a`` is its own. For
a linear node M is the same everywhere; for others it lies in a set, here for each of k regions.

Cotangents are float64 ``(k or 1, m, size)`` for m rows and flattened nodes, and m may be ``... x r`` where linear forms
of them are meant: :meth:`Relaxed.image`.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from lipbridge.activations.slopes import WIDER, outward
from lipbridge.rounding.scalars import FLOOR


@dataclass(frozen=True, eq=False)
class Interval:
    """Tensors between ``lower`` and ``upper``, entry by entry; ends may be infinite."""

    lower: Tensor
    upper: Tensor

    @property
    def magnitude(self) -> Tensor:
        """The largest absolute value of each entry."""
        return torch.fmax(self.lower.abs(), self.upper.abs())

    @property
    def halves(self) -> tuple[Tensor, Tensor]:
        """Middle and radius, rounded up; the radius is zero where both ends are one number."""
        middle = 0.5 * self.lower + 0.5 * self.upper
        radius = torch.maximum(self.upper - middle, middle - self.lower)
        radius = torch.where(self.lower == self.upper, 0.0, radius * (1.0 + WIDER) + FLOOR)
        return middle, radius

    def narrowed(self, other: Interval) -> Interval:
        """Numbers of both; nothing is learnt from NaN."""
        return Interval(torch.fmax(self.lower, other.lower), torch.fmin(self.upper, other.upper))

    def plus(self, other: Interval) -> Interval:
        """All sums, rounded outward."""
        return around(self.lower + other.lower, self.upper + other.upper)


def around(lower: Tensor, upper: Tensor) -> Interval:
    """An interval, wider by more than the rounding of its ends; what is NaN tells nothing."""
    return Interval(*outward(lower, upper))


@dataclass(frozen=True, eq=False)
class Spread:
    """``M' a`` for a known cotangent ``a``, at one input: ``center`` plus what M may add to it.

    What it adds is ``E' signed`` for one diagonal E with entries in [-1, 1], whatever the row, and less than ``radius``
    in each entry. All are ``(k or 1, m, size)``; ``signed`` is None for zero.
    """

    center: Tensor
    radius: Tensor
    signed: Tensor | None = None


class Relaxed(ABC):
    """A derivative on cotangents that are enclosed: linear upper bounds of linear forms of what it hands on.

    What rounding takes from a form of an input's cotangent is at most its coefficients' magnitudes times ``lost``:
    ``(k or 1, m, size)`` for each input, or None for nothing. Whoever makes such a form adds that to its offset; so a
    node is told the ``charge`` of its own forms, and adds it to what it computes anyway. ``still`` says where M' has a
    column of zeros and a row of zeros, of a node that is as wide as its one input: bool ``(k or 1, size)``.
    """

    lost: list[Tensor] | None = None
    still: Tensor | None = None

    @abstractmethod
    def part(self, regions: slice) -> Relaxed:
        """The same on some of the regions, for :meth:`image` alone."""

    def between(self, before: Tensor | None, own: Tensor | None) -> Relaxed | None:
        """For :meth:`image` alone, between some coordinates of the one input and of the node; None if it cannot be."""
        return self if before is None and own is None else None

    @abstractmethod
    def image(self, forms: list[Tensor | None]) -> tuple[Tensor, Tensor | None]:
        """Forms of the inputs' cotangents as one form of the node's own, from above.

        Args:
            forms: for each input ``(k or 1, m or 1, r, size)`` coefficients, or None for zero; one at least is there.

        Returns:
            Coefficients ``(k or 1, m or 1, r, node's size)`` and an offset ``(k or 1, m or 1, r)``, or None for zero:
            for every cotangent ``a`` in the enclosure and every derivative M, ``sum_j <form_j, (M' a)_j>`` is at most
            ``<coefficients, a> + offset + sum_j <|form_j|, lost_j>`` in exact arithmetic, less the node's charge.
        """


class Derivative(ABC):
    """What is known of a node's derivative M on k regions."""

    @abstractmethod
    def adjoint(self, a: Interval) -> list[Interval]:
        """``M' a`` for all cotangents ``a`` of an enclosure and all M, for each input."""

    @abstractmethod
    def spread(self, a: Tensor) -> list[Spread]:
        """``M' a`` for one known cotangent, for each input."""

    @abstractmethod
    def relaxed(self, a: Interval, charge: Tensor | None = None) -> Relaxed:
        """Linear bounds for cotangents of an enclosure.

        Args:
            a: the enclosure of the node's own cotangents.
            charge: what its readers lose of a form of them, by unit of each coefficient's magnitude.
        """

    @property
    def uncertain(self) -> Tensor | None:
        """Bool ``(k or 1, node's size)``: where M depends on the point; None if nowhere."""
        return None


def times(forms: Tensor, x: Tensor) -> Tensor:
    """``(k or 1, m or 1, r, n)`` forms at ``(k or 1, m, n)`` points: ``(k or 1, m, r)``."""
    if forms.shape[:2] == (1, 1):  # one product of matrices, not one for each point
        k, m, n = x.shape
        return (x.reshape(k * m, n) @ forms[0, 0].T).reshape(k, m, -1)
    return (forms @ x[..., None]).squeeze(-1)


def chord(x: Interval) -> tuple[Tensor, Tensor]:
    """``(slope, offset)`` of the line above ``|t|`` on an interval through its ends.

    No line that holds on the interval is lower anywhere on it, |t| being convex: there is nothing to optimise.
    """
    slope = (x.upper.abs() - x.lower.abs()) / (x.upper - x.lower)
    slope = torch.where(torch.isfinite(slope), slope.clamp(-1.0, 1.0), 0.0)
    positive, negative = x.lower >= 0, x.upper <= 0
    slope = torch.where(positive, 1.0, torch.where(negative, -1.0, slope))
    offset = torch.maximum(x.lower.abs() - slope * x.lower, x.upper.abs() - slope * x.upper)
    offset = torch.where(positive | negative, 0.0, offset + 4.0 * WIDER * x.magnitude + FLOOR)
    return slope, offset.nan_to_num(math.inf, math.inf)


def part_of(x: Tensor, regions: slice) -> Tensor:
    """Some of k regions; what is the same on all stays."""
    return x if len(x) == 1 else x[regions]


__all__ = ["Derivative", "Interval", "Relaxed", "Spread", "around", "chord", "part_of", "times"]
