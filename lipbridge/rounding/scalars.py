"""Outward rounding of scalars: each function returns a double on the safe side of the exact real result.

IEEE 754 round-to-nearest is within half a unit in the last place, so one step of ``nextafter`` outward is enough
for one operation (also in the subnormal range). Overflow and NaN raise :class:`NumericalFailure`: they are no bounds.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

from lipbridge.errors import NumericalFailure

#: Unit roundoff of float64, 2**-53.
UNIT = 2.0**-53
#: Largest error of one float64 operation whose result is subnormal or underflows: half of 2**-1074, rounded up.
TINY = 2.0**-1074
#: More than the error of one underflowing operation, also where a device flushes subnormal numbers to zero.
FLOOR = 2.0**-1020


def finite(value: float, what: str = "A bound") -> float:
    """Return ``value``, or raise :class:`NumericalFailure` if it is NaN or infinite."""
    if not math.isfinite(value):
        raise NumericalFailure(f"{what} is {value}: float64 overflowed or the weights hold NaN; rescale the network.")
    return value


def up(value: float) -> float:
    """The next double above ``value`` (zero stays zero only through the functions below, never here)."""
    return finite(math.nextafter(finite(value), math.inf))


def down(value: float) -> float:
    """The next double below ``value``."""
    return finite(math.nextafter(finite(value), -math.inf))


def add_up(*values: float) -> float:
    """Upper bound of a sum, correct to one rounding (``math.fsum`` rounds once)."""
    try:
        total = math.fsum(values)
    except (OverflowError, ValueError) as error:
        raise NumericalFailure(f"A sum overflowed: {error}.") from error
    return 0.0 if not any(values) else up(total)  # cancellation to zero is rounded up too


def mul_up(*factors: float) -> float:
    """Upper bound of a product of non-negative factors; an exact zero factor gives exactly zero.

    Fractions and exponents are multiplied apart, so that only the product itself can overflow, in whatever order the
    factors come; factors that are powers of two are exact.
    """
    parts = [math.frexp(finite(factor)) for factor in factors]
    fraction, exponent = 0.5, 1
    for part, power in parts:
        if part == 0.0:
            return 0.0
        product = fraction * part if 0.5 in (fraction, part) else up(fraction * part)
        fraction, carry = math.frexp(product)
        exponent += power + carry
    try:
        value = math.ldexp(fraction, exponent)
    except OverflowError:
        raise NumericalFailure("A product in a bound overflowed float64; rescale the network.") from None
    return value if exponent > -1021 else up(value)  # a subnormal result was rounded by ldexp


def sqrt_up(value: float) -> float:
    """Upper bound of the square root of a non-negative number; the root of zero is zero."""
    return 0.0 if value == 0.0 else up(math.sqrt(finite(value)))


def gamma(n: int) -> float:
    """Upper bound of gamma_n = n u / (1 - n u), the error constant of n successive roundings (Higham 2002, 3.1)."""
    nu = n * UNIT  # exact: n is far below 2**53
    if nu >= 0.5:
        raise NumericalFailure(f"A sum of {n} terms is too long to bound its rounding.")
    return up(nu / (1.0 - nu) * (1.0 + 4.0 * UNIT))


def root_sum_of_powers_up(values: Iterable[float], power: int) -> float:
    """Upper bound of ``(sum |v|**power)**(1/power)`` for power 1 or 2."""
    magnitudes = [abs(value) for value in values]
    if power == 1:
        return add_up(*magnitudes)
    largest = max(magnitudes, default=0.0)
    if largest == 0.0:
        return 0.0
    # Scaled by the largest, so that neither tiny nor huge values leave the range of float64.
    return mul_up(largest, sqrt_up(add_up(*(up((m / largest) ** 2 * (1 + 4 * UNIT)) for m in magnitudes))))
