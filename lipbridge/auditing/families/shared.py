"""One pre-activation that several functions read: relu(z) and relu(-z), |z|, both outputs of one unit.

What bounds z only where one of its readers needs it, and lets the other read that, is unsound.
"""

from __future__ import annotations

import random
from collections.abc import Iterator

import torch
from torch import Tensor

from lipbridge.auditing.instance import Instance, Prediction, PropertyInstance, Steep, made
from lipbridge.auditing.networks import Layer, chain, matrix, whole
from lipbridge.graph.graph import Graph
from lipbridge.problem.property import Case, Property, Verdict
from lipbridge.problem.question import Ball, Question
from lipbridge.vocabulary import Quantity

#: Random networks: the activation, the seed, the radius of the ball. Those that were found to tell most, and others.
DRAWN = (
    ("abs", 23, 0.25),
    ("abs", 46, 0.25),
    ("abs", 136, 0.25),
    ("abs", 147, 0.25),
    ("abs", 7, 0.5),
    ("crelu", 84, 0.25),
    ("crelu", 62, 0.5),
    ("crelu", 88, 0.5),
    ("crelu", 3, 0.5),
)
#: Points of the grid along one axis, on which the largest change is looked for.
GRID = 65


def drawn(name: str, seed: int) -> tuple[list[Layer], Tensor, Tensor]:
    """Three hidden layers of four units, of eighths from -2 to 2, for two inputs; and a last weight and bias."""
    generator, layers = random.Random(seed), list[Layer]()
    copies = 2 if name == "crelu" else 1
    sizes = [(4, 2), (4, 4 * copies), (4, 4 * copies), (1, 4 * copies)]
    weights = [whole(generator, m, n, -16, 16, 8) for m, n in sizes]
    biases = [whole(generator, 1, len(W), -16, 16, 8)[0] for W in weights]
    for W, b in zip(weights[:-1], biases[:-1], strict=True):
        layers += [(W, b), name]
    return layers, weights[-1], biases[-1]


def farthest(graph: Graph, radius: float) -> Tensor:
    """The point of a grid on the square at which the first output differs most from that at zero."""
    t = torch.linspace(-radius, radius, GRID, dtype=torch.float64)
    points = torch.cartesian_prod(t, t)
    change = (graph(points) - graph(torch.zeros_like(points[:1]))).abs()[:, 0]
    return points[int(change.argmax())]


def shared_preactivation(seed: int) -> Iterator[Instance | Prediction | PropertyInstance]:
    """Analytic ones, and random ones whose largest change on a ball is known from below by a grid."""
    family = "shared-preactivation"
    # |z| = relu(z) + relu(-z), and sums of them, are as steep as their linear parts.
    for n in (1, 3):
        eye = torch.eye(n, dtype=torch.float64)
        graph = chain((eye, [0.0] * n), "crelu", (torch.cat([eye, eye], 1), None), "abs", (eye, None))
        yield from Steep(family, f"both-sides-{n}", graph, torch.ones(n, dtype=torch.float64), 0.5).instances()
    graph = chain((matrix([[1.0, 1.0], [1.0, -1.0]]), None), "crelu", ([[1.0, 1.0, 1.0, 1.0]], None))
    yield from Steep(family, "diamond", graph, matrix([3.0, 1.0]), 0.5).instances()
    for name, number, radius in DRAWN:
        layers, W, b = drawn(name, number + 1000 * seed)
        graph = chain(*layers, (W, b))
        y = farthest(graph, radius)
        zero = torch.zeros_like(y)
        ball, pair = Ball(zero[None], radius, "inf"), torch.stack([zero, y])
        question = Question.on(ball, quantity=Quantity.DEVIATION)
        yield made(family, f"{name}-{number}-linf-ball-deviation", graph, question, pair, None)
        yield made(family, f"{name}-{number}-linf-ball", graph, Question.on(ball), pair, None)
        yield made(family, f"{name}-{number}-l2", graph, Question.everywhere(2), _steep_pair(graph, radius), None)
        # Class 0 has a constant, a little less than what the other output reaches at y.
        at_zero, at_y = (float(graph(point[None])[0, 0]) for point in (zero, y))
        sign = 1.0 if at_y > at_zero else -1.0
        level = sign * (0.125 * at_zero + 0.875 * at_y)
        last = (torch.cat([torch.zeros_like(W), sign * W]), torch.cat([matrix([level]), sign * b]))
        classes = chain(*layers, last)
        yield Prediction(f"{name}-{number}-class", family, classes, zero, 0, radius, "inf", False, y)
        box = torch.full_like(y, radius)
        asked = Property((Case(-box, box, matrix([[1.0, -1.0]]), matrix([0.0])),))
        yield PropertyInstance(f"{name}-{number}-property", family, classes, asked, Verdict.FALSIFIED, y)


def _steep_pair(graph: Graph, radius: float) -> Tensor:
    """Two neighbours on a fine grid along an axis, between which the network changes most."""
    t = torch.linspace(-radius, radius, GRID, dtype=torch.float64)
    points = torch.cartesian_prod(t, t)
    step = radius / 1024
    gains = torch.stack([(graph(points + step * e) - graph(points)).abs().amax(1) for e in torch.eye(2).double()])
    axis, place = divmod(int(gains.argmax()), len(points))
    return torch.stack([points[place], points[place] + step * torch.eye(2).double()[axis]])


__all__ = ["drawn", "farthest", "shared_preactivation"]
