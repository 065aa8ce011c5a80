"""Running errors hold: coarse evaluations stay within what they state of the same evaluations in float64."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from lipbridge.graph import Graph, Normalize
from lipbridge.search.running_error import Enclosure, _divided, _mean_product, _normalized, enclose_tangent
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


def corners(x: Enclosure) -> Iterator[Tensor]:
    """All values at the ends of what is known of the last axis."""
    for signs in itertools.product((-1.0, 1.0), repeat=x.value.shape[-1]):
        yield x.value + x.error * torch.tensor(signs, dtype=torch.float64)


def known(values: list[float], errors: list[float]) -> Enclosure:
    return Enclosure(torch.tensor([values], dtype=torch.float64), torch.tensor([errors], dtype=torch.float64))


def test_products_and_quotients_of_what_is_known_within_an_error() -> None:
    a, b = known([1.0, -2.0], [0.5, 0.25]), known([4.0, -3.0], [0.25, 0.5])
    mean, ratio = _mean_product(a, b), _divided(a, known([4.0, 3.0], [0.25, 0.5]), 1.0)
    for x in corners(a):
        for y in corners(b):
            assert abs(float((x * y).mean() - mean.value)) <= float(mean.error)
            assert bool(((x / y.abs() - ratio.value).abs() <= ratio.error).all())
    assert float(mean.error) < 2.5
    assert float(ratio.error.max()) < 0.5


def test_a_mean_of_many_products_counts_its_rounding() -> None:
    n = 60
    for worst in ("low", "high"):
        ones = Enclosure(torch.ones(1, n, dtype=torch.float64), torch.zeros(1, n, dtype=torch.float64))
        with coarse_arithmetic("nearest", worst):
            found = _mean_product(ones, ones)
        assert abs(float(found.value) - 1.0) <= float(found.error) <= 1e-3
    third = known([1.0 + 2.0**-12], [0.0])  # one product, whose square takes 25 bits
    with coarse_arithmetic("zero"):
        found = _mean_product(third, third)
    assert abs(float(found.value) - (1.0 + 2.0**-12) ** 2) <= float(found.error) <= 1e-5


def test_the_deviation_of_what_is_known_within_an_error() -> None:
    x = known([0.0, 1.0, 3.0], [0.25, 0.5, 0.125])
    node = Normalize("n", (0,), (3,), 1, 1e-5)
    found = _normalized(node, x)
    for point in corners(x):
        deviation = (point.var(correction=0) + 1e-5).sqrt()
        assert abs(float(found.deviation.value) - float(deviation)) <= float(found.deviation.error)
        inside = (found.normal.value - (point - point.mean()) / deviation).abs() <= found.normal.error
        assert bool(inside.all())
