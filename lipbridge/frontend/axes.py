"""Capture of fixed linear maps along axes: sums, running sums, differences, interpolation, windows of any lengths."""

from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction
from typing import Any, cast

import torch
from torch import Tensor

from lipbridge.frontend.computed.program import tracking
from lipbridge.frontend.computed.tensor import computed
from lipbridge.frontend.contractions import product, summed
from lipbridge.frontend.diagonal import shares
from lipbridge.frontend.reader import Arguments, Curve, Reader, handles
from lipbridge.frontend.shapes import axis_of, seen_as
from lipbridge.rounding.uncertain import known as nearest

_LETTERS = "bcdefghijklmnopqrstuvwxyz"


def along(reader: Reader, value: Any, axis: int, matrix: Tensor) -> Curve:
    """``matrix`` ``(m, n)`` float64 applied along an axis of the shape (batch not counted)."""
    size = reader.shape_of(value)
    own = _LETTERS[: len(size)]
    result = own.replace(own[axis], "Z")
    shape = (*size[:axis], len(matrix), *size[axis + 1 :])
    return product(reader, [value, matrix.to(reader.device)], ["a" + own, "Z" + own[axis]], "a" + result, shape)


@handles("sum")
def _sum(reader: Reader, a: Arguments, shape: tuple[int, ...]) -> Curve:
    value = reader.curve(a["self"])
    size = reader.shape_of(value)
    dims = cast(Any, a.get("dim"))
    dims = list(cast(Sequence[int], dims)) if isinstance(dims, list | tuple) else [] if dims is None else [dims]
    if not dims:
        raise reader.unsupported("It works along the batch.")
    if isinstance(a.get("dtype"), torch.dtype) and not a["dtype"].is_floating_point:
        raise reader.unsupported("A sum of integers is no continuous function.")
    own = _LETTERS[: len(size)]
    over = {own[axis_of(reader, dim, len(size))] for dim in dims}
    made, _ = summed(reader, value, own, over, dict(zip(own, size, strict=True)))
    return seen_as(reader, made, shape)


@handles("cumsum")
def _cumsum(reader: Reader, a: Arguments, shape: tuple[int, ...]) -> Curve:
    axis = axis_of(reader, a["dim"], len(shape))
    return along(reader, a["self"], axis, torch.ones(shape[axis], shape[axis], dtype=torch.float64).tril())


@handles("diff")
def _diff(reader: Reader, a: Arguments, shape: tuple[int, ...]) -> Curve:
    if a["n"] != 1 or a["prepend"] is not None or a["append"] is not None:
        raise reader.unsupported("Only first differences, with nothing put before or behind, are read.")
    size = reader.shape_of(a["self"])
    axis = axis_of(reader, a["dim"], len(size))
    unit = torch.eye(size[axis], dtype=torch.float64)
    return along(reader, a["self"], axis, unit[1:] - unit[:-1])


# --- interpolation ---------------------------------------------------------------------------------------------------


@handles("upsample_linear1d", "upsample_bilinear2d", "upsample_trilinear3d")
def _upsample(reader: Reader, a: Arguments, shape: tuple[int, ...]) -> Curve:
    """Along one axis after the other; the shares are those of real numbers, with their errors."""
    value = reader.curve(a["input"] if "input" in a else a["self"])
    size = reader.shape_of(value)
    rank = len(shape) - 1
    names = {1: ["scales"], 2: ["scales_h", "scales_w"], 3: ["scales_d", "scales_h", "scales_w"]}[rank]
    factors: list[Any] = list(a["scale_factors"] or [None] * rank) if "scale_factors" in a else [a[n] for n in names]
    for axis, factor in enumerate(factors, start=1):
        if shape[axis] != size[axis] or factor not in (None, 1.0):
            rows = interpolation(size[axis], shape[axis], bool(a["align_corners"]), factor)
            value = along(reader, value, axis, rows)
    return value


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
    row[first], error[first] = nearest(1 - weight)
    if weight:
        row[first + 1], error[first + 1] = nearest(weight)
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


__all__ = ["along", "averages", "interpolation", "shares_around", "windows"]
