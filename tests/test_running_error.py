"""Running errors hold: coarse evaluations stay within what they state of the same evaluations in float64."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from lipbridge.graph import Graph
from lipbridge.search.running_error import Enclosure, enclose_tangent
from tests.dags import dag
from tests.support.coarse import coarse, coarse_arithmetic

ARITHMETICS = [("zero", "low"), ("zero", "high"), ("away", "mixed")]


def coarsened(graph: Graph) -> Graph:
    """The graph with weights and biases that the coarse arithmetic holds exactly, and neither huge nor tiny."""
    for node in graph.nodes:
        for name in ("weight", "bias"):
            values = getattr(node, name, None)
            if isinstance(values, Tensor):
                values.copy_(
                    coarse(torch.where((values.abs() > 1e9) | (values.abs() < 1e-9), 0.75 * values.sign(), values))
                )
    return graph


def holds(coarsely: Enclosure, finely: Enclosure) -> Tensor:
    """Whether the exact value may lie in both enclosures, entry by entry."""
    return (coarsely.value - finely.value).abs() <= coarsely.error + finely.error


@pytest.mark.parametrize("arithmetic", ARITHMETICS, ids=str)
def test_values_and_tangents_of_every_node_stay_within_their_errors(arithmetic):
    tangents = 0
    for seed in range(60):
        graph = coarsened(dag(seed))
        generator = torch.Generator().manual_seed(seed)
        x, v = (coarse(torch.randn(3, *graph.input_shape, dtype=torch.float64, generator=generator)) for _ in range(2))
        x[1], x[2] = x[1].abs(), coarse(8.0 * x[2])
        fine = enclose_tangent(graph, x, v)
        with coarse_arithmetic(*arithmetic):
            found = enclose_tangent(graph, x, v)
        assert bool(holds(found.primal, fine.primal).all()), seed
        assert bool((fine.sound | ~found.sound).all()), seed
        tangents += int(found.sound.sum())
        assert bool(holds(found.tangent, fine.tangent)[found.sound].all()), seed
    assert tangents > 60
