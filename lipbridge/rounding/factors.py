"""Numbers of a scalar function that need not be doubles: fractions, which stay exact from the module to the norm.

A factor such as 1/3, or 0.1 times 10, is no double. A :class:`Factor` is the fraction itself, and wherever a float is
asked for, the double next to it *away from zero*. ``Fraction(factor)`` is the exact number, so whatever is proved in
fractions (the slopes of piecewise linear functions, the rows of a lowering) is proved for that.
"""

from __future__ import annotations

import math
from fractions import Fraction
from typing import Any

from lipbridge.errors import NumericalFailure


class Factor(float):
    """A fraction that is no double, seen as the double next to it away from zero; comparisons are exact.

    Attributes:
        exact: the number.

    Raises:
        NumericalFailure: if it is beyond float64.
    """

    exact: Fraction

    def __new__(cls, exact: Fraction) -> Factor:
        made = super().__new__(cls, away(exact))
        made.exact = exact
        return made

    @property
    def real(self) -> float:
        """Itself: what fractions compare with."""
        return self

    def as_integer_ratio(self) -> tuple[int, int]:
        """Numerator and denominator of the exact number."""
        return self.exact.numerator, self.exact.denominator

    def __repr__(self) -> str:
        return f"Factor({self.exact.numerator}/{self.exact.denominator})"

    def __reduce__(self) -> Any:
        return (Factor, (self.exact,))

    def __hash__(self) -> int:
        return hash(self.exact)

    def __eq__(self, other: object) -> bool:
        return self.exact == _exact(other)

    def __ne__(self, other: object) -> bool:
        return self.exact != _exact(other)

    def __lt__(self, other: Any) -> bool:
        return self.exact < _exact(other)

    def __le__(self, other: Any) -> bool:
        return self.exact <= _exact(other)

    def __gt__(self, other: Any) -> bool:
        return self.exact > _exact(other)

    def __ge__(self, other: Any) -> bool:
        return self.exact >= _exact(other)

    def __neg__(self) -> float:
        return number(-self.exact)

    def __abs__(self) -> float:
        return number(abs(self.exact))

    def __mul__(self, other: Any) -> Any:
        return number(self.exact * Fraction(other)) if _finite(other) else float.__mul__(self, other)

    __rmul__ = __mul__

    def __add__(self, other: Any) -> Any:
        return number(self.exact + Fraction(other)) if _finite(other) else float.__add__(self, other)

    __radd__ = __add__

    def __sub__(self, other: Any) -> Any:
        return number(self.exact - Fraction(other)) if _finite(other) else float.__sub__(self, other)

    def __rsub__(self, other: Any) -> Any:
        return number(Fraction(other) - self.exact) if _finite(other) else float.__rsub__(self, other)


def _exact(other: Any) -> Any:
    return other.exact if isinstance(other, Factor) else other


def _finite(other: Any) -> bool:
    return isinstance(other, int | float) and math.isfinite(other)


def away(exact: Fraction) -> float:
    """The double nearest to a fraction, or the next one, so that it is no nearer to zero.

    Raises:
        NumericalFailure: if it is beyond float64.
    """
    try:
        nearest = float(exact)
    except OverflowError:
        raise NumericalFailure("A factor is beyond float64; rescale the network.") from None
    if abs(Fraction(nearest)) < abs(exact):
        nearest = math.nextafter(nearest, math.copysign(math.inf, exact))
    if not math.isfinite(nearest):
        raise NumericalFailure("A factor is beyond float64; rescale the network.")
    return nearest


def number(exact: Fraction) -> float:
    """The fraction as a double if it is one, else as a :class:`Factor`."""
    if exact.denominator & (exact.denominator - 1) == 0 and abs(exact.numerator).bit_length() <= 2000:
        try:
            nearest = float(exact)
        except OverflowError:
            nearest = math.inf
        if math.isfinite(nearest) and Fraction(nearest) == exact:
            return nearest
    return Factor(exact)


__all__ = ["Factor", "away", "number"]
