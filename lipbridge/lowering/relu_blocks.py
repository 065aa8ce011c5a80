"""Activations as block maps of ReLU and lines, in exact arithmetic."""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction

from lipbridge.activations.activation import Activation
from lipbridge.activations.scalar_functions import SCALAR_FUNCTIONS


@dataclass(frozen=True)
class Blocks:
    """Output block k is ``sum_j factors[k][j] * input block j + offsets[k]``; all blocks have one size."""

    factors: tuple[tuple[Fraction, ...], ...]
    offsets: tuple[Fraction, ...]

    @property
    def sources(self) -> int:
        return len(self.factors[0])

    @property
    def identity(self) -> bool:
        return self.factors == ((Fraction(1),),) and self.offsets == (Fraction(0),)

    @property
    def scalar(self) -> bool:
        """Whether it is one line for one block: a factor and a shift, which hide no activation."""
        return len(self.factors) == self.sources == 1

    @property
    def visible(self) -> bool:
        """Whether merged weights show what was merged: they repeat the old ones, or keep them apart."""
        if self.scalar:
            return True
        one = len(self.factors) == 1 and self.factors[0][0] == 1
        apart = all(row.count(_ONE) == 1 and row.count(_ZERO) == len(row) - 1 for row in self.factors)
        return (one or (apart and len(self.factors) == self.sources)) and not any(self.offsets)

    @property
    def double(self) -> bool:
        """Whether every factor and offset is a double."""
        numbers = [*self.offsets, *(factor for row in self.factors for factor in row)]
        return all(Fraction(float(number)) == number for number in numbers)

    def after(self, first: Blocks | None) -> Blocks:
        """This map, which has one source, applied to all blocks of ``first`` together."""
        if first is None:
            return self
        outer = [(row[0], offset) for row, offset in zip(self.factors, self.offsets, strict=True)]
        inner = list(zip(first.factors, first.offsets, strict=True))
        factors = tuple(tuple(a * b for b in row) for a, _ in outer for row, _ in inner)
        return Blocks(factors, tuple(a * offset + shift for a, shift in outer for _, offset in inner))


_Row = tuple[Fraction, Fraction]  # (s, o) stands for relu(s t + o)


_ZERO, _ONE = Fraction(0), Fraction(1)


@dataclass
class _Piece:
    """A component, exactly: the sum of ``hinges[s, o] * relu(s t + o)``, ``slope * t`` and ``constant``."""

    hinges: dict[_Row, Fraction]
    slope: Fraction = _ZERO
    constant: Fraction = _ZERO

    def add(self, row: _Row, factor: Fraction) -> None:
        scale, offset = row
        if offset == 0:  # relu(s t) = |s| relu(+-t), so that all terms with their kink at zero share rows
            row, factor = (scale / abs(scale), offset), factor * abs(scale)
        self.hinges[row] = self.hinges.get(row, _ZERO) + factor


def pieces_of(act: Activation) -> list[_Piece] | None:
    """The components of a piecewise linear activation, or None for any other."""
    pieces: list[_Piece] = []
    for component in act.components:
        piece = _Piece({})
        for term in component:
            sides = SCALAR_FUNCTIONS[term.function].sides(term.parameters)
            if sides is None:
                return None
            outer, scale, offset = Fraction(term.coefficient), Fraction(term.scale), Fraction(term.offset)
            left, right = Fraction(sides[0]), Fraction(sides[1])
            if left == right or scale == 0:
                side = right if offset >= 0 else left
                piece.slope += outer * side * scale
                piece.constant += outer * side * offset
            else:
                piece.add((scale, offset), outer * right)
                piece.add((-scale, -offset), -outer * left)
        pieces.append(piece)
    return pieces


def _without_slopes(pieces: list[_Piece]) -> None:
    """Write each slope * t by a pair of rows: s t + o = relu(s t + o) - relu(-s t - o), with s a power of two."""
    rows = {row for piece in pieces for row in piece.hinges}
    usable = [(_ONE, _ZERO), *sorted(row for row in rows if row[1] != 0 and row[0] > 0 and _power_of_two(row[0]))]
    scale, offset = min(usable, key=lambda row: len({row, (-row[0], -row[1])} - rows))
    for piece in pieces:
        if piece.slope != 0:
            factor = piece.slope / scale
            piece.add((scale, offset), factor)
            piece.add((-scale, -offset), -factor)
            piece.slope, piece.constant = _ZERO, piece.constant - factor * offset


def _power_of_two(number: Fraction) -> bool:
    return abs(math.frexp(float(number))[0]) == 0.5 and Fraction(float(number)) == number


def hinges_of(pieces: list[_Piece]) -> tuple[Blocks, Blocks]:
    """The relu rows that some component needs, and how the components are taken from them."""
    _without_slopes(pieces)
    rows = sorted({row for piece in pieces for row, factor in piece.hinges.items() if factor != 0}, reverse=True)
    inner = Blocks(tuple((scale,) for scale, _ in rows), tuple(offset for _, offset in rows))
    factors = tuple(tuple(piece.hinges.get(row, _ZERO) for row in rows) for piece in pieces)
    return inner, Blocks(factors, tuple(piece.constant for piece in pieces))
