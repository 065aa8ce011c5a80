"""Numbers with an error, exactly and in coarse arithmetic."""

from __future__ import annotations

from fractions import Fraction

import torch

from lipbridge.rounding.uncertain import Uncertain


def exact(A: Uncertain, side: int) -> list[list[Fraction]]:
    """One of the true matrices that A stands for: ``side`` -1, 0, 1 times the error beside the copy."""
    M = A.matrix()
    error = torch.zeros_like(M.value) if M.error is None else M.error
    rows = zip(M.value.tolist(), error.tolist(), strict=True)
    return [[Fraction(v) + side * Fraction(e) for v, e in zip(*pair, strict=True)] for pair in rows]


def times(A: list[list[Fraction]], B: list[list[Fraction]]) -> list[list[Fraction]]:
    return [
        [sum((a * b for a, b in zip(row, column, strict=True)), Fraction(0)) for column in zip(*B, strict=True)]
        for row in A
    ]


def misses(found: Uncertain, truth: list[list[Fraction]]) -> list[Fraction]:
    """By how much the true entries are beyond the error."""
    M = found.matrix()
    error = torch.zeros_like(M.value) if M.error is None else M.error
    return [
        abs(Fraction(v) - t) - Fraction(e)
        for values, errors, row in zip(M.value.tolist(), error.tolist(), truth, strict=True)
        for v, e, t in zip(values, errors, row, strict=True)
    ]
