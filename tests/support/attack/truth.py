"""Exact Jacobians that a network has: all of them on lines, for networks of one input all there are."""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction

import torch

from lipbridge import Ball
from lipbridge.vocabulary import Norm, exponent
from tests.support.exact.jets import Stored
from tests.support.exact.lines import TooManyPieces, pieces
from tests.support.exact.norms import matrix_exceeds, vector_exceeds
from tests.support.exact.rationals import Rationals, exact

#: Pieces that are walked on one line.
MOST = 150


@dataclass(frozen=True)
class Truth:
    """Jacobians ``(outputs, inputs)`` that are met; ``complete`` if the network has no other on the region."""

    jacobians: list[Rationals]
    complete: bool

    def exceeds(self, bound: float, p: Norm, q: Norm) -> bool:
        """Whether the Lipschitz constant is surely above a bound."""
        return any(matrix_exceeds(J, bound, p, q) for J in self.jacobians)


def everywhere(stored: Stored, seed: int, lines: int = 3) -> Truth:
    """Along random lines and one parallel to an axis."""
    n = math.prod(stored.graph.input_shape)
    if n == 1:
        return _walked(stored, [(exact([0.0]), exact([1.0]), None, None)])
    generator = torch.Generator().manual_seed(seed)
    walks: list[tuple[Rationals, Rationals, Fraction | None, Fraction | None]] = []
    for line in range(lines):
        base, direction = (torch.randn(n, generator=generator).float() for _ in range(2))
        if line == lines - 1:
            direction = torch.eye(n)[seed % n]
            base = base * (seed % 2)  # through zero, where networks without biases switch at once
        walks.append((exact(base), exact(direction), None, None))
    return _walked(stored, walks)


def in_balls(stored: Stored, region: Ball, seed: int, lines: int = 3) -> Truth:
    """Along segments inside the balls; for one input along the whole of each."""
    walks: list[tuple[Rationals, Rationals, Fraction | None, Fraction | None]] = []
    generator = torch.Generator().manual_seed(seed)
    for center in region.centers.flatten(1):
        if len(center) == 1:
            radius = Fraction(region.radius)
            walks.append((exact(center), exact([1.0]), -radius, radius))
            continue
        for _ in range(lines):
            ends = [exact(center).plus(offset) for offset in _offsets(region, len(center), generator)]
            walks.append((ends[0], ends[1].minus(ends[0]), Fraction(0), Fraction(1)))
    return _walked(stored, walks)


def _offsets(region: Ball, n: int, generator: torch.Generator) -> list[Rationals]:
    """Two points inside the ball around zero, near opposite ends."""
    step = torch.randn(n, generator=generator, dtype=torch.float64)
    found: list[Rationals] = []
    for side in (step, -step + 0.5 * torch.randn(n, generator=generator, dtype=torch.float64)):
        size = float(torch.linalg.vector_norm(side, exponent(region.norm)))
        offset = exact(side * (0.999 * region.radius / size))
        if vector_exceeds(offset, region.radius, region.norm):
            raise AssertionError("a point of a ball lies outside of it")
        found.append(offset)
    return found


def _walked(stored: Stored, walks: list[tuple[Rationals, Rationals, Fraction | None, Fraction | None]]) -> Truth:
    found: dict[tuple[object, ...], Rationals] = {}
    complete = math.prod(stored.graph.input_shape) == 1
    for base, direction, start, stop in walks:
        try:
            for piece in pieces(stored, base, direction, start, stop, MOST):
                J = piece.jacobian.reduced()
                found.setdefault((J.unit, *J.ints.flat), J)
        except TooManyPieces:
            complete = False
    return Truth(list(found.values()), complete)
