"""Points of balls, and whether their values lie in the bounds."""

from __future__ import annotations

import torch

from lipbridge import Ball
from lipbridge.graph.graph import Graph
from lipbridge.search.starts import in_balls
from lipbridge.vocabulary import exponent


def balls_of(graph, radius, norm, count=2, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return Ball(torch.randn(count, *graph.input_shape, generator=generator, dtype=torch.float64), radius, norm)


def require_inside(graph: Graph, ball: Ball, found) -> None:
    x, domain = in_balls(ball, 100, torch.Generator().manual_seed(1))
    index = [int((ball.centers == center).flatten(1).all(1).nonzero()[0, 0]) for center in domain.centers]
    for value, reach in zip(graph.values(x), found, strict=True):
        slack = 1e-12 * value.abs().flatten(1).amax(1).reshape(-1, *[1] * (value.ndim - 1))
        assert bool(((value >= reach.lower[index] - slack) & (value <= reach.upper[index] + slack)).all())
        moved = torch.linalg.vector_norm((value - reach.center.value[index]).flatten(1), exponent(ball.norm), dim=1)
        assert bool((moved <= reach.distance[index] + slack.flatten() * value[0].numel()).all())
