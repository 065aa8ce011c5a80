"""Arrays of rational numbers: whole numbers of any size times one positive unit. Sums and products are exact."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np
from torch import Tensor

Ints = np.ndarray[Any, Any]
ONE = Fraction(1)


@dataclass(frozen=True, eq=False)
class Rationals:
    """``ints * unit``, where ``ints`` is an array of Python's whole numbers."""

    ints: Ints
    unit: Fraction = ONE

    @property
    def shape(self) -> tuple[int, ...]:
        return self.ints.shape

    def __getitem__(self, index: Any) -> Rationals:
        return Rationals(self.ints[index], self.unit)

    def reshape(self, *shape: int) -> Rationals:
        return Rationals(self.ints.reshape(*shape), self.unit)

    def at(self, unit: Fraction) -> Ints:
        """The whole numbers in front of a unit that divides the own one."""
        return self.ints if unit == self.unit else self.ints * (self.unit / unit).numerator

    def plus(self, other: Rationals) -> Rationals:
        unit = common_unit(self.unit, other.unit)
        return Rationals(self.at(unit) + other.at(unit), unit)

    def minus(self, other: Rationals) -> Rationals:
        return self.plus(Rationals(-other.ints, other.unit))

    def times(self, factor: float | Fraction) -> Rationals:
        ratio = Fraction(factor)
        if ratio == 0:
            return zeros(*self.shape)
        return Rationals(self.ints if ratio > 0 else -self.ints, self.unit * abs(ratio))

    def reduced(self) -> Rationals:
        """The same numbers without common factors."""
        common = math.gcd(*self.ints.flat)
        if common == 0:
            return Rationals(self.ints)
        return self if common == 1 else Rationals(self.ints // common, self.unit * common)

    def fractions(self) -> list[Fraction]:
        """The numbers, flattened."""
        return [self.unit * value for value in self.ints.flat]


def common_unit(*units: Fraction) -> Fraction:
    """The largest number that divides all."""
    found = units[0]
    for unit in units[1:]:
        if unit != found:
            a, b = found.numerator * unit.denominator, unit.numerator * found.denominator
            found = Fraction(math.gcd(a, b), found.denominator * unit.denominator)
    return found


def exact(values: Tensor | Iterable[float] | float) -> Rationals:
    """What floats say, exactly. A tensor keeps its shape."""
    given = values.detach().double().cpu().numpy() if isinstance(values, Tensor) else np.array(values, dtype=np.float64)
    ratios = [float(value).as_integer_ratio() for value in given.flat]
    most = max((d for _, d in ratios), default=1)  # denominators are powers of two
    ints = np.empty(len(ratios), dtype=object)
    ints[:] = [n * (most // d) for n, d in ratios]
    return Rationals(ints.reshape(given.shape), Fraction(1, most)).reduced()


def zeros(*shape: int) -> Rationals:
    ints = np.empty(shape, dtype=object)
    ints.fill(0)
    return Rationals(ints)


def concatenate(parts: list[Rationals], axis: int) -> Rationals:
    unit = common_unit(*(part.unit for part in parts))
    return Rationals(np.concatenate([part.at(unit) for part in parts], axis=axis), unit)


def product(matrix: Rationals, x: Rationals) -> Rationals:
    """``matrix @ x`` for ``(m, n)`` and ``(n, k)``."""
    if not matrix.ints.size or not x.ints.size:
        return zeros(matrix.shape[0], x.shape[1])
    return Rationals(np.dot(matrix.ints, x.ints), matrix.unit * x.unit)


def aligned(x: Rationals, number: float) -> tuple[Ints, int, Fraction]:
    """The whole numbers of an array and of a number in front of one unit, and the unit."""
    ratio = Fraction(number)
    unit = common_unit(x.unit, Fraction(1, ratio.denominator))
    return x.at(unit), (ratio / unit).numerator, unit
