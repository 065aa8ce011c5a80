"""Fixed linear maps along axes: sums, running sums, differences, interpolation, windows of any lengths."""

from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction
from typing import Any

import torch
from torch import Tensor

from lipbridge.frontend.builder import Curve, GraphBuilder
from lipbridge.frontend.computed.program import tracking
from lipbridge.frontend.computed.tensor import computed
from lipbridge.frontend.contractions import product, summed
from lipbridge.frontend.diagonal import shares
from lipbridge.frontend.shapes import seen_as
from lipbridge.rounding.uncertain import known

_LETTERS = "bcdefghijklmnopqrstuvwxyz"


def along(builder: GraphBuilder, value: Any, axis: int, matrix: Tensor) -> Curve:
    """``matrix`` ``(m, n)`` float64 applied along an axis of the shape (batch not counted)."""
    size = builder.shape_of(value)
    own = _LETTERS[: len(size)]
    result = own.replace(own[axis], "Z")
    shape = (*size[:axis], len(matrix), *size[axis + 1 :])
    return product(builder, [value, matrix.to(builder.device)], ["a" + own, "Z" + own[axis]], "a" + result, shape)


def total(builder: GraphBuilder, value: Any, axes: Sequence[int], shape: tuple[int, ...]) -> Curve:
    """The sum over axes of the shape, in ``shape``."""
    value = builder.curve(value)
    size = builder.shape_of(value)
    own = _LETTERS[: len(size)]
    over = {own[axis] for axis in axes}
    made, _ = summed(builder, value, own, over, dict(zip(own, size, strict=True)))
    return seen_as(builder, made, shape)


# --- interpolation ---------------------------------------------------------------------------------------------------


def interpolation(n: int, m: int, align_corners: bool, factor: float | None) -> Tensor:
    """The matrix ``(m, n)`` of linear interpolation from n to m positions, with the error of its shares.

    ``factor`` is the scale that was asked for, where it is not m / n. Law: row i has the shares of the two positions
    around ``(i + 1/2) / factor - 1/2``, or ``i (n - 1) / (m - 1)`` with ``align_corners``, kept within the ends.
    """
    step = Fraction(n, m) if factor is None else 1 / Fraction(factor)
    if align_corners:
        step = Fraction(n - 1, m - 1) if m > 1 else Fraction(0)
    half = Fraction(1, 2)
    return torch.stack([shares_around(step * i if align_corners else step * (i + half) - half, n) for i in range(m)])


def shares_around(at: Fraction, n: int) -> Tensor:
    """The shares ``(n,)`` of n positions in a value read at a place between two of them, with their error."""
    row, error, at = torch.zeros(n, dtype=torch.float64), torch.zeros(n, dtype=torch.float64), max(at, Fraction(0))
    first = min(math.floor(at), n - 1)
    weight = min(at - first, Fraction(1)) if first < n - 1 else Fraction(0)
    row[first], error[first] = known(1 - weight)
    if weight:
        row[first + 1], error[first + 1] = known(weight)
    return computed(row, error)


# --- windows of any lengths ------------------------------------------------------------------------------------------


def windows(n: int, m: int) -> list[tuple[int, int]]:
    """Start and end of the m windows of adaptive pooling along an axis of length n."""
    return [(i * n // m, -(-(i + 1) * n // m)) for i in range(m)]


def averages(n: int, m: int) -> Tensor:
    """The matrix ``(m, n)`` of averages over the windows of adaptive pooling, with the error of its shares."""
    counts, rows = torch.zeros(m, 1, dtype=torch.int64), torch.zeros(m, n, dtype=torch.float64)
    for i, (start, end) in enumerate(windows(n, m)):
        counts[i], rows[i, start:end] = end - start, 1.0
    each = shares(counts)
    with tracking():
        return rows * each


__all__ = ["along", "averages", "interpolation", "shares_around", "total", "windows"]
