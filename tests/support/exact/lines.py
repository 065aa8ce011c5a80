"""All pieces of a piecewise linear Graph along a line: complete for networks of one input."""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction

from tests.support.exact.jets import Piece, Stored
from tests.support.exact.rationals import Rationals


class TooManyPieces(Exception):
    """The line has more pieces than one wants to walk."""


def pieces(
    graph: Stored,
    base: Rationals,
    direction: Rationals,
    start: Fraction | None = None,
    stop: Fraction | None = None,
    most: int = 400,
) -> Iterator[Piece]:
    """The pieces that the line ``base + t direction`` runs through for t from start to stop (None: without end).

    Raises:
        TooManyPieces: after ``most`` pieces.
    """
    t = start
    for _ in range(most):
        piece = Piece(graph, base, direction, t)
        yield piece
        if piece.end is None or (stop is not None and piece.end >= stop):
            return
        t = piece.end
    raise TooManyPieces(f"more than {most} pieces on a line")


def at_point(graph: Stored, point: Rationals, direction: Rationals) -> Piece:
    """The piece that begins at a point into a direction. ``value[:, 0]`` is the network at the point."""
    return Piece(graph, point, direction, Fraction(0))
