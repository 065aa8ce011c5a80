"""Matrices that are known up to an error of each entry, and their products: what folding layers into one rounds.

A dot product of n terms obeys |fl(x'y) - x'y| <= gamma_n |x|'|y| in any order of summation (Higham 2002, section 3.1),
plus half of 2^-1074 for each product that underflows. Terms that are exactly zero round nothing, so n counts the
others. A product that underflows is neither exact nor zero; one with a power of two that does not is exact.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction

import torch
from torch import Tensor

from lipbridge.errors import NumericalFailure
from lipbridge.rounding.outward import SMALLEST, is_power_of_two
from lipbridge.rounding.scalars import TINY, UNIT

#: More than the rounding of a sum of non-negative terms that bounds an error, for sums of up to 2^30 terms.
COVER = 1.0 + 2.0**-20


@dataclass(frozen=True, eq=False)
class Uncertain:
    """A matrix ``(m, n)``, or the diagonal ``(n,)`` of a diagonal one, of which a float64 copy is known.

    Attributes:
        value: the copy, float64.
        error: of the same shape: the true entry is within it of the copy's. None if all are exact.
    """

    value: Tensor
    error: Tensor | None = None

    @property
    def diagonal(self) -> bool:
        """Whether it is the diagonal of a diagonal matrix."""
        return self.value.ndim == 1

    @property
    def relative(self) -> float:
        """The largest error over the largest entry; zero if all are exact."""
        worst = 0.0 if self.error is None or not self.error.numel() else float(self.error.max())
        return max(worst / max(worst, float(self.value.abs().max())), TINY) if worst else 0.0

    def matrix(self) -> Uncertain:
        """The same as a full matrix."""
        if not self.diagonal:
            return self
        return Uncertain(torch.diag(self.value), None if self.error is None else torch.diag(self.error))


def known(number: Fraction) -> tuple[float, float]:
    """The nearest double and an upper bound of its error, zero if there is none.

    Raises:
        NumericalFailure: if the number is beyond float64.
    """
    try:
        nearest = float(number)
    except OverflowError:
        raise NumericalFailure("A factor is beyond float64; rescale the network.") from None
    error = abs(number - Fraction(nearest))
    return nearest, math.nextafter(float(error), math.inf) if error else 0.0


def composed(A: Uncertain, B: Uncertain) -> Uncertain:
    """``A B``, in float64, with an error that covers both factors' and the product's own rounding.

    Law: for all A', B' within the factors' errors the exact A' B' is within the error, entry by entry.
    """
    if not A.diagonal and not B.diagonal:
        return _product(A, B)
    if A.diagonal and not B.diagonal:
        a, a_error = A.value[:, None], None if A.error is None else A.error[:, None]
        return _entrywise(Uncertain(a, a_error), B)
    return _entrywise(A, B)  # B's entries belong to A's columns


def plus(a: Uncertain, b: Uncertain | None) -> Uncertain:
    """The sum of two vectors."""
    if b is None:
        return a
    total = a.value + b.value
    alone = (a.value == 0) | (b.value == 0)
    return _made(total, torch.where(alone, 0.0, UNIT * total.abs()), a.error, b.error)


def image(A: Uncertain, b: Uncertain | None) -> Uncertain | None:
    """``A b`` for a vector b."""
    if b is None:
        return None
    if A.diagonal:
        return _entrywise(A, b)
    column = _product(A, Uncertain(b.value[:, None], None if b.error is None else b.error[:, None]))
    return Uncertain(column.value[:, 0], None if column.error is None else column.error[:, 0])


def _entrywise(a: Uncertain, b: Uncertain) -> Uncertain:
    x, y = a.value, b.value
    value = x * y
    nonzero = (x != 0) & (y != 0)
    underflow = nonzero & (value.abs() < SMALLEST) & (x.abs() != 1) & (y.abs() != 1)
    rounded = nonzero & ~is_power_of_two(x) & ~is_power_of_two(y)
    lost = rounded * (UNIT * value.abs()) + underflow.to(value.dtype) * TINY
    parts = [lost]
    if b.error is not None:
        parts.append(times_up(x.abs(), b.error))
    if a.error is not None:
        size = y.abs() if b.error is None else y.abs() + b.error
        parts.append(times_up(a.error, size))
    return _made(value, *parts)


def _product(A: Uncertain, B: Uncertain) -> Uncertain:
    x, y = A.value, B.value
    value = x @ y
    terms = torch.minimum((x != 0).sum(1)[:, None], (y != 0).sum(0)[None]).to(value.dtype)
    chosen = (_selects(x, 1)[:, None] | _selects(y, 0)[None]) & (terms <= 1)
    lost = UNIT * COVER * terms * (x.abs() @ y.abs()) * COVER + _underflow(x, y, terms)
    parts = [torch.where(chosen, 0.0, lost)]
    if B.error is not None:
        parts.append(_product_up(x.abs(), B.error))
    if A.error is not None:
        parts.append(_product_up(A.error, y.abs() if B.error is None else y.abs() + B.error))
    return _made(value, *parts)


def _made(value: Tensor, *errors: Tensor | None) -> Uncertain:
    total = torch.zeros_like(value)
    for error in errors:
        if error is not None:
            total = total + error
    total = torch.where(total > 0, total * COVER + TINY, total)  # a product with COVER may underflow to less
    return Uncertain(value, total if bool((total != 0).any()) else None)


def times_up(x: Tensor, y: Tensor) -> Tensor:
    """An upper bound of the products of non-negative entries, up to COVER; zero times infinity is zero."""
    product = torch.where((x == 0) | (y == 0), 0.0, x * y)
    return product + ((x > 0) & (y > 0) & (product < SMALLEST)).to(product.dtype) * TINY


def _product_up(X: Tensor, Y: Tensor) -> Tensor:
    """An upper bound of a product of non-negative matrices, up to COVER."""
    terms = torch.minimum((X != 0).sum(1)[:, None], (Y != 0).sum(0)[None]).to(X.dtype)
    return X @ Y * COVER + _underflow(X, Y, terms)


def _underflow(x: Tensor, y: Tensor, terms: Tensor) -> Tensor:
    """What the products of ``x @ y`` may lose to underflow: zero where none can."""
    least = _least(x) * _least(y)
    return terms * (2.0 * TINY) if least < SMALLEST else torch.zeros_like(terms)


def _least(x: Tensor) -> float:
    """The smallest size of an entry that is not zero; one if there is none."""
    sizes = torch.where(x == 0, torch.inf, x.abs())
    least = float(sizes.min()) if x.numel() else 1.0
    return least if least < torch.inf else 1.0


def _selects(x: Tensor, axis: int) -> Tensor:
    """Whether a row (or a column) has at most one entry, which is one or minus one."""
    return ((x != 0).sum(axis) <= 1) & ((x == 0) | (x.abs() == 1)).all(axis)


__all__ = ["Uncertain", "composed", "image", "known", "plus", "times_up"]
