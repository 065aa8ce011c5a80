"""Products and quotients of tensors that are rounded away from zero, entry by entry, also where they underflow.

Rounding to nearest turns a product of two numbers that are not zero into zero where it is below 2^-1075, and takes up
to half of 2^-1074 from one in the subnormal range, whatever its size. A bound that is multiplied by such a number is
then not a bound: weights of 1e300 make it as large as any. So here a result is zero only if a factor is, exact where
that is certain (a factor of one; a power of two without underflow), and otherwise one step further from zero than the
nearest double. What is beyond float64 is infinite, and no proof takes that.

This is what diagonal maps, non-negative sums and bounds of errors need: they grow with each of their numbers. A matrix
does not (its spectral norm may fall when an entry grows), so matrices carry the error of each entry beside them:
:mod:`lipbridge.rounding.uncertain`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import Tensor

#: Below this a rounded result may have lost bits to underflow.
SMALLEST = 2.0**-1021
#: More than the relative error of the few operations that a factor is computed by.
FEW = 1.0 + 2.0**-50


def away(values: Tensor) -> Tensor:
    """One step of float64 further from zero; a zero goes to the side of its sign."""
    return torch.nextafter(values, torch.copysign(torch.full_like(values, math.inf), values))


def product(x: Tensor, y: Tensor) -> Tensor:
    """``x y``, rounded away from zero.

    Args:
        x, y: float64, of shapes that broadcast.

    Law: ``|product(x, y)| >= |x y|`` in exact arithmetic, with its sign, and zero only where a factor is.
    """
    value = x * y
    zero = (x == 0) | (y == 0)
    exact = (is_power_of_two(x) | is_power_of_two(y)) & (value.abs() >= SMALLEST) | (x.abs() == 1) | (y.abs() == 1)
    return torch.where(zero | exact, value, away(value))


def quotient(x: Tensor, y: Tensor) -> Tensor:
    """``x / y`` for y that is nowhere zero, rounded away from zero; arguments and law are those of :func:`product`."""
    value = x / y
    exact = is_power_of_two(y) & (value.abs() >= SMALLEST) | (y.abs() == 1) | (x == 0)
    return torch.where(exact, value, away(value))


def enlarged(values: Tensor, zero: Tensor) -> Tensor:
    """Values that a few operations computed, further from zero than their error; zero only where ``zero`` says so.

    Args:
        values: float64, each off by less than 2^-51 of itself and by half of 2^-1074.
        zero: bool: where the exact value is zero.
    """
    return torch.where(zero, values, away(values * FEW))


def total(errors: Iterable[Tensor | None]) -> Tensor | None:
    """The sum of tensors that are nowhere negative, rounded up where there are several; None stands for zero."""
    found: Tensor | None = None
    for error in errors:
        if error is not None:
            found = error if found is None else (found + error) * FEW
    return found


def scaled_up(values: Tensor, exponents: Tensor) -> Tensor:
    """Upper bounds of ``values 2**exponents``, for non-negative values and whole numbers of any size; zero stays.

    Args:
        values: float64; a bound below 2^-1022 is one step above the nearest double.
        exponents: int64, of the same shape.
    """
    mantissa, own = torch.frexp(values)
    total = own.to(exponents.dtype) + exponents
    # In two steps, each by a normal power of two; what is beyond them is infinite, or one step above zero.
    first = total.clamp(-1000, 1000)
    second = (total - first).clamp(-1000, 1000)
    found = mantissa * powers_of_two(first) * powers_of_two(second)
    found = torch.where(found < SMALLEST, away(found), found)
    found = torch.where(total > 2000, values * math.inf, found)
    return torch.where(values == 0, values, found)


def powers_of_two(exponents: Tensor) -> Tensor:
    """``2**exponents`` for int64 exponents of -1022 to 1023: from the bits, since ``exp2`` may be off by a step."""
    return ((exponents + 1023) << 52).view(torch.float64)


def is_power_of_two(x: Tensor) -> Tensor:
    """Which entries are plus or minus a power of two."""
    return torch.frexp(x).mantissa.abs() == 0.5


__all__ = [
    "SMALLEST",
    "away",
    "enlarged",
    "is_power_of_two",
    "powers_of_two",
    "product",
    "quotient",
    "scaled_up",
    "total",
]
