"""Certified points against exact margins: the nearest place on a line where a rival catches up."""

from __future__ import annotations

import math
import random
from collections.abc import Iterator
from dataclasses import replace
from fractions import Fraction

import torch
from torch import Tensor

from lipbridge import certified_radii
from lipbridge.errors import LipbridgeError
from lipbridge.graph.graph import Graph
from lipbridge.graph.nodes import Dense, Reshape
from lipbridge.vocabulary import NORMS, Norm
from tests.support.attack.judge import Outcome
from tests.support.attack.networks import Case
from tests.support.attack.weights import EXTREME, Weights
from tests.support.exact.jets import Piece, Stored
from tests.support.exact.lines import TooManyPieces, at_point, pieces
from tests.support.exact.rationals import Rationals, exact

NAME = "certified radii"
#: Pieces that are walked on one ray.
MOST = 60


def classifier(case: Case, classes: int = 3) -> Case:
    """The network, flattened, with a last layer of some classes; at times its rows differ in the last bits that are."""
    nodes, n = list(case.graph.nodes), math.prod(case.graph.output_shape)
    weights = Weights(f"classes {case}", EXTREME)
    nodes.append(Reshape("flat", (len(nodes) - 1,), (n,)))
    if weights.random.random() < 0.3:
        nodes.append(Dense("large", (len(nodes) - 1,), (n,), torch.eye(n, dtype=torch.float64) * 1e300))
        W = (3.0 * weights.normal(classes, n)).round() * 5e-324
        head = Dense("classes", (len(nodes) - 1,), (classes,), W)
    else:
        W, b = weights.weight(classes, n), weights.bias(classes)
        head = Dense("classes", (len(nodes) - 1,), (classes,), W, b)
    return replace(case, graph=Graph((*nodes, head), f"{case.graph.name} with classes"))


def judge_points(case: Case, points: int = 2) -> list[Outcome]:
    """Certified radii of random points: no point that is closer is of another class, tied, or was wrong before."""
    graph = case.graph
    stored, drawn = Stored(graph), random.Random(f"points {case}")
    generator = torch.Generator().manual_seed(drawn.randrange(2**31))
    x = drawn.choice((1e-3, 1.0, 30.0)) * torch.randn(points, *graph.input_shape, generator=generator).double()
    outcomes: list[Outcome] = []
    try:
        labels = graph(x).nan_to_num().argmax(dim=1)
        radii = {norm: certified_radii(graph, x, labels, norm) for norm in NORMS}
    except LipbridgeError as error:
        return [Outcome(case.family, NAME, "refused", f"{case}: {error}")]
    for index in range(points):
        for norm in NORMS:
            radius = float(radii[norm][index])
            text = f"{case}, point {x[index].tolist()}, norm {norm}, radius {radius!r}"
            held = radius == 0.0 or not any(
                is_lost(line, int(labels[index]), radius, norm, direction)
                for direction, line in _lines(stored, x[index], int(labels[index]), norm, generator)
            )
            outcomes.append(Outcome(case.family, NAME, "held" if held else "violated", text))
    return outcomes


def _lines(
    stored: Stored, x: Tensor, label: int, norm: Norm, generator: torch.Generator
) -> Iterator[tuple[Rationals, Iterator[Piece]]]:
    """Rays from a point: both for one input; else the steepest towards each rival, and a random one."""
    n, point = x.numel(), exact(x.flatten())
    if n == 1:
        directions = [torch.ones(1), -torch.ones(1)]
    else:
        directions = [torch.randn(n, generator=generator)]
        J = at_point(stored, point, exact(directions[0])).jacobian
        for rival in range(J.shape[0]):
            if rival != label:
                directions.append(_steepest(_as_floats(J[rival].minus(J[label])), norm))
    for direction in directions:
        d = exact(direction.float())
        if any(d.ints):
            yield d, pieces(stored, point, d, Fraction(0), None, MOST)


def _as_floats(x: Rationals) -> Tensor:
    """A multiple of the numbers, the largest of size one."""
    largest = max(abs(value) for value in x.ints) or 1
    return torch.tensor([float(Fraction(value, largest)) for value in x.ints], dtype=torch.float64)


def _steepest(gradient: Tensor, norm: Norm) -> Tensor:
    if norm == "inf":
        return gradient.sign()
    if norm == 1:
        return gradient.sign() * (gradient.abs() == gradient.abs().max())
    return gradient


def is_lost(line: Iterator[Piece], label: int, radius: float, norm: Norm, direction: Rationals) -> bool:
    """Whether a rival is at least even with the label somewhere on a ray, closer than the radius."""
    try:
        for piece in line:
            t = piece.t or Fraction(0)
            if not _closer(t, radius, norm, direction):
                return False
            margins = piece.value[label : label + 1].minus(piece.value)
            value, slope = (margins[:, column].fractions() for column in (0, 1))
            for rival, (v, s) in enumerate(zip(value, slope, strict=True)):
                if rival == label:
                    continue
                if v + t * s <= 0:
                    return True
                if s < 0 and (piece.end is None or -v / s < piece.end) and _closer(-v / s, radius, norm, direction):
                    return True
    except TooManyPieces:
        pass
    return False


def _closer(t: Fraction, radius: float, norm: Norm, direction: Rationals) -> bool:
    """Whether ``t ||direction|| < radius``."""
    if math.isinf(radius):
        return True
    sizes = [abs(value) for value in direction.fractions()]
    if norm == 2:
        return t * t * sum(size * size for size in sizes) < Fraction(radius) ** 2
    return t * (sum(sizes) if norm == 1 else max(sizes)) < Fraction(radius)
