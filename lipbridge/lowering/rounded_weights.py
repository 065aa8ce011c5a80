"""Dense and convolutional weights after a block map was merged into them, with what rounding took."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Any, cast

import torch
from torch import Tensor

from lipbridge.lowering.relu_blocks import Blocks
from lipbridge.rounding.scalars import TINY, UNIT


@dataclass(frozen=True, eq=False)
class Rounded:
    """A tensor and the absolute error of each entry: zero where it is exact, else a good estimate."""

    value: Tensor
    error: Tensor

    @property
    def relative(self) -> float:
        worst = float(self.error.max()) if self.error.numel() else 0.0
        return max(worst / max(worst, float(self.value.abs().max())), TINY) if worst else 0.0


def _plus(a: Rounded, b: Rounded) -> Rounded:
    """Sum, with Knuth's error of one addition."""
    total = a.value + b.value
    part = total - a.value
    error = (a.value - (total - part)) + (b.value - part)
    return Rounded(total, a.error + b.error + error.abs())


def _times(factor: Fraction, x: Tensor) -> Rounded:
    """Product; exact where the factor or the entry is a power of two and nothing underflows."""
    number = float(factor)
    value = number * x
    simple = (torch.frexp(x).mantissa.abs() == 0.5) | (x == 0)  # powers of two, and zero
    if abs(math.frexp(number)[0]) == 0.5:
        simple = torch.ones_like(simple)
    exact = simple & (value / number == x) if Fraction(number) == factor else x == 0
    return Rounded(value, torch.where(exact, 0.0, 2 * UNIT * value.abs() + 2.0**-1074))


def _combination(terms: list[tuple[Fraction, Tensor]], like: Tensor) -> Rounded:
    parts = [_times(factor, x) for factor, x in terms if factor != 0]
    total = parts[0] if parts else Rounded(torch.zeros_like(like), torch.zeros_like(like))
    for part in parts[1:]:
        total = _plus(total, part)
    return total


def _joined(parts: list[Rounded], axis: int) -> Rounded:
    return Rounded(torch.cat([p.value for p in parts], axis), torch.cat([p.error for p in parts], axis))


@dataclass(frozen=True, eq=False)
class Layer:
    """Weight and bias of a merged dense layer."""

    weight: Rounded
    bias: Rounded | None

    @property
    def relative(self) -> float:
        return max(self.weight.relative, 0.0 if self.bias is None else self.bias.relative)


def merged_after(blocks: Blocks, weight: Tensor, bias: Tensor | None) -> Layer:
    """``blocks(W x + b)`` as one layer, for a matrix or a kernel without groups."""
    rows = weight.chunk(blocks.sources)
    new = _joined([_combination(list(zip(f, rows, strict=True)), rows[0]) for f in blocks.factors], 0)
    if bias is None and not any(blocks.offsets):
        return Layer(new, None)
    inner = (weight.new_zeros(len(weight)) if bias is None else bias).chunk(blocks.sources)
    one = torch.ones_like(inner[0])
    pairs = zip(blocks.factors, blocks.offsets, strict=True)
    parts = [_combination([*zip(f, inner, strict=True), (offset, one)], one) for f, offset in pairs]
    return Layer(new, _joined(parts, 0))


def _sum(row: list[float]) -> float:
    """The sum, rounded once; NaN where it overflows or an entry has, which no merged layer may hold."""
    try:
        return math.fsum(row)
    except (OverflowError, ValueError):  # on the way, or for entries of both infinities
        return math.nan


def merged_before(blocks: Blocks, weight: Tensor, bias: Tensor | None) -> Layer:
    """``W blocks(h) + b`` as one layer; for a kernel no tap may fall on zeros if there are offsets."""
    columns = weight.chunk(len(blocks.factors), dim=1)
    factors = list(zip(*blocks.factors, strict=True))
    new = _joined([_combination(list(zip(f, columns, strict=True)), columns[0]) for f in factors], 1)
    if not any(blocks.offsets):
        return Layer(new, None if bias is None else Rounded(bias, torch.zeros_like(bias)))
    moved = Rounded(weight.new_zeros(len(weight)), weight.new_zeros(len(weight)))
    for offset, column in zip(blocks.offsets, columns, strict=True):
        sums = torch.tensor(
            [_sum(row) for row in cast(list[list[float]], cast(Any, column.flatten(1)).tolist())],
            dtype=weight.dtype,
            device=weight.device,
        )
        part = _combination([(offset, sums)], sums)
        moved = _plus(moved, replace(part, error=part.error + UNIT * part.value.abs()))  # the rounding of fsum
    return Layer(new, moved if bias is None else _plus(moved, Rounded(bias, torch.zeros_like(bias))))
