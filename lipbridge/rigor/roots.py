"""Roots of unity with a proved error, by integer arithmetic: no mathematical library is trusted with a cosine."""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

#: Bits behind the point of the fixed-point numbers below.
BITS = 192
ONE = 1 << BITS


def _arctan_of_inverse(n: int) -> int:
    """``arctan(1 / n)`` by its alternating series; off by less than one unit a term."""
    power, total, k = ONE // n, 0, 0
    while power:
        total += power // (2 * k + 1) * (-1) ** k
        power //= n * n
        k += 1
    return total


#: Twice pi by Machin's formula, off by less than 2^-180.
TWO_PI = 8 * (4 * _arctan_of_inverse(5) - _arctan_of_inverse(239))


@lru_cache(maxsize=128)
def unit_roots(count: int) -> tuple[Tensor, Tensor]:
    """``cos(2 pi m / count)`` and ``sin(2 pi m / count)`` for m = 0 .. count - 1, float64, each off by at most 2^-53.

    The angle is reduced to at most pi. The terms of both series are cut off where they fall below one unit of 2^-192,
    and each is off by less than 100 units, so that before the one rounding to float64 (2^-54) all is exact to 2^-170.
    """
    reduced = [m if 2 * m <= count else m - count for m in range(count)]
    pairs = [_cosine_and_sine(m * TWO_PI // count) for m in reduced]
    cosines, sines = zip(*pairs, strict=True)
    return torch.tensor(cosines, dtype=torch.float64), torch.tensor(sines, dtype=torch.float64)


def _cosine_and_sine(angle: int) -> tuple[float, float]:
    sums, term, k = [0, 0], ONE, 0
    while term not in (0, -1):  # -1 is where a floor division of a negative number ends
        sums[k % 2] += term if k % 4 < 2 else -term
        k += 1
        term = (term * angle >> BITS) // k
    return sums[0] / ONE, sums[1] / ONE
