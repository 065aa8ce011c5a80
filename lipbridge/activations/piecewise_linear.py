"""Piecewise linear functions with kinks anywhere, in exact arithmetic: sums of ``c * f(s t + o)`` for f kinked at zero.

A sum of hinges at different places, such as ``relu(t + 1) - relu(t - 1) - 1``, has on each piece between two kinks the
slope of all its terms together. That interval of slopes is much narrower than the sum of the terms' own intervals.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from itertools import pairwise

from lipbridge.rounding.scalars import down, up


@dataclass(frozen=True)
class Hinge:
    """``coefficient * f(scale t + offset)``, f with the slopes ``left`` and ``right`` of zero and f(0) = 0."""

    left: float
    right: float
    coefficient: float
    scale: float
    offset: float

    @property
    def kink(self) -> Fraction | None:
        """The place of the kink, if there is one."""
        if self.left == self.right or self.scale == 0.0 or self.coefficient == 0.0:
            return None
        return -Fraction(self.offset) / Fraction(self.scale)

    def slope(self, t: Fraction) -> Fraction:
        """The slope at t, which is no kink."""
        argument = Fraction(self.scale) * t + Fraction(self.offset)
        return Fraction(self.coefficient) * Fraction(self.scale) * Fraction(self.right if argument > 0 else self.left)

    def value(self, t: Fraction) -> Fraction:
        """The value at t."""
        argument = Fraction(self.scale) * t + Fraction(self.offset)
        return Fraction(self.coefficient) * argument * Fraction(self.right if argument > 0 else self.left)


@dataclass(frozen=True)
class Pieces:
    """Functions of one variable, each a sum of hinges, between their common kinks.

    Attributes:
        functions: the hinges of each function; none is the zero function.
    """

    functions: tuple[tuple[Hinge, ...], ...]

    @cached_property
    def kinks(self) -> list[Fraction]:
        """The places where some function may bend, sorted."""
        places = (hinge.kink for hinges in self.functions for hinge in hinges)
        return sorted({place for place in places if place is not None})

    @cached_property
    def slopes(self) -> list[list[Fraction]]:
        """Per function the slopes of the pieces from left to right, one more than there are kinks."""
        inside = self._inside
        return [[sum((h.slope(t) for h in hinges), Fraction(0)) for t in inside] for hinges in self.functions]

    @property
    def _inside(self) -> list[Fraction]:
        if not self.kinks:
            return [Fraction(1)]
        between = [(a + b) / 2 for a, b in pairwise(self.kinks)]
        return [self.kinks[0] - 1, *between, self.kinks[-1] + 1]

    def range(self, function: int) -> tuple[float, float]:
        """An interval that holds all values of a function, rounded outward."""
        slopes, hinges = self.slopes[function], self.functions[function]
        values = [sum((h.value(t) for h in hinges), Fraction(0)) for t in self.kinks or [Fraction(0)]]
        low = -math.inf if slopes[0] > 0 or slopes[-1] < 0 else below(min(values))
        high = math.inf if slopes[0] < 0 or slopes[-1] > 0 else above(max(values))
        return low, high


def below(value: Fraction) -> float:
    """The largest double that is not above ``value``, or one step less."""
    nearest = _nearest(value)
    return nearest if Fraction(nearest) <= value else down(nearest)


def above(value: Fraction) -> float:
    """The smallest double that is not below ``value``, or one step more."""
    nearest = _nearest(value)
    return nearest if Fraction(nearest) >= value else up(nearest)


def _nearest(value: Fraction) -> float:
    try:
        return float(value)
    except OverflowError:
        return math.copysign(1.7976931348623157e308, value)


def interval(values: Iterable[Fraction]) -> tuple[float, float]:
    """The interval of some numbers, rounded outward."""
    found: Sequence[Fraction] = list(values)
    return below(min(found)), above(max(found))


__all__ = ["Hinge", "Pieces", "above", "below", "interval"]
