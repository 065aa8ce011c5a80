"""The verifier `jacobian`: the best of its bounds, certificates that no attack breaks, limits that are told."""

from __future__ import annotations

import pytest
import torch

import lipbridge
from lipbridge import Ball, Budget, Problem, Question, Refusal, Side, Status, Task, get_verifier
from lipbridge.errors import InvalidArgument, UnknownName
from lipbridge.graph.graph import Graph
from lipbridge.graph.nodes import Input, Node
from lipbridge.robustness.radii import certified_radii
from lipbridge.verifiers.jacobian import (
    differences,
    margins_of,
    predicted_seconds,
    predicted_seconds_of_lines,
)
from tests.support.families import network
from tests.support.lipsdp_reference import graph_of


def task(graph, question) -> Task:
    found = get_verifier("jacobian").prepare(Problem(graph, question))
    assert not isinstance(found, Refusal), found
    return found


@pytest.mark.parametrize("norm", [1, 2, "inf"])
def test_a_local_bound_is_below_the_trivial_one_and_above_a_witness(norm) -> None:
    graph = graph_of(network(3, 4, ("relu",), width=10))
    question = Question.on(Ball(torch.zeros(3, *graph.input_shape, dtype=torch.float64), 0.1, norm))
    bound = task(graph, question).bound(Budget(seconds=20.0))
    assert bound.side is Side.UPPER
    assert bound.proved
    assert bound.question == question
    assert bound.value < 0.9 * lipbridge.trivial_bound(graph, norm).value
    witness = get_verifier("witness").prepare(Problem(graph, question)).bound(Budget(seconds=1.0))
    assert witness.value <= bound.value


@pytest.mark.parametrize("radius", [0.05, 0.5])
def test_in_l2_it_is_never_above_the_matrix_inequality(radius) -> None:
    graph = graph_of(network(8, 3, ("relu",), width=10))
    question = Question.on(Ball(torch.zeros(1, *graph.input_shape, dtype=torch.float64), radius, 2))
    spectral = get_verifier("lipsdp-fast").prepare(Problem(graph, question)).bound(Budget(seconds=20.0))
    assert task(graph, question).bound(Budget(seconds=20.0)).value <= spectral.value * (1 + 1e-9)


def test_everywhere_it_is_never_above_the_trivial_bound() -> None:
    graph = graph_of(network(3, 3, ("tanh",), width=8))
    for norm in (1, 2, "inf"):
        bound = task(graph, Question.everywhere(norm)).bound(Budget(seconds=20.0))
        assert bound.value <= lipbridge.trivial_bound(graph, norm).value


def test_splitting_sharpens_until_the_limit_and_says_so() -> None:
    graph = lipbridge.capture(lipbridge.mlp([8, 24, 24, 3], "relu"))
    question = Question.on(Ball(torch.randn(1, 8, dtype=torch.float64), 1.0, "inf"))
    plain = task(graph, question).bound(Budget(seconds=20.0))
    split = task(graph, question).bound(Budget(seconds=2.0, options={"split": "units"}))
    assert plain.status is Status.OK
    assert split.status is Status.TIMEOUT
    assert split.value < plain.value
    assert split.proved
    assert int(split.extra["splits"]) > 0


def test_a_limit_that_leaves_no_time_still_gives_a_bound() -> None:
    graph = graph_of(network(3, 3, ("relu",), width=10))
    question = Question.on(Ball(torch.zeros(4, *graph.input_shape, dtype=torch.float64), 0.2, "inf"))
    bound = task(graph, question).bound(Budget(seconds=1e-6))
    assert bound.status is Status.TIMEOUT
    assert bound.proved
    assert bound.value <= lipbridge.trivial_bound(graph, "inf").value


def test_it_refuses_what_it_cannot_take() -> None:
    class Strange(Node):
        pass

    graph = graph_of(network(3, 3, ("relu",)))
    odd = Graph((Input("input", (), (3,)), Strange("odd", (0,), (3,))))
    for problem, words in (
        (Problem(odd, Question.everywhere(2)), "odd"),
        (Problem(graph, Question.everywhere("inf", 1)), "NP-hard"),
        (
            Problem(
                graph,
                Question.on(Ball(torch.zeros(1, *graph.input_shape), 0.1, 2), quantity=lipbridge.Quantity.DEVIATION),
            ),
            "deviation",
        ),
    ):
        found = get_verifier("jacobian").prepare(problem)
        assert isinstance(found, Refusal)
        assert words in found.reason
    with pytest.raises(InvalidArgument, match="split"):
        task(graph, Question.everywhere(2)).bound(Budget(options={"split": "sideways"}))
    with pytest.raises(UnknownName, match="splits"):
        task(graph, Question.everywhere(2)).bound(Budget(options={"splits": "units"}))


@pytest.mark.parametrize("margins", [True, False])
@pytest.mark.parametrize("norm", [1, 2, "inf"])
def test_certificates_hold_and_are_more_than_the_global_ones(norm, margins) -> None:
    torch.manual_seed(0)
    graph = lipbridge.capture(lipbridge.mlp([6, 16, 16, 4], "relu"))
    x = torch.randn(60, 6, dtype=torch.float64)
    labels = graph(x).argmax(1)
    radius = {1: 0.2, 2: 0.1, "inf": 0.04}[norm]
    found = task(graph, Question.everywhere(norm)).certify(
        x, labels, radius, Budget(seconds=30.0, options={"margins": margins})
    )
    known = certified_radii(graph, x, labels, norm) > radius
    assert bool((found >= known).all())
    assert int(found.sum()) > int(known.sum())
    assert not bool(task(graph, Question.everywhere(norm)).certify(x, (labels + 1) % 4, radius, Budget()).any())
    for _ in range(300):
        step = torch.randn_like(x)
        size = torch.linalg.vector_norm(step, {1: 1, 2: 2, "inf": torch.inf}[norm], dim=1, keepdim=True)
        moved = x + radius * step / size
        assert bool((graph(moved).argmax(1) == labels)[found].all())


def test_differences_are_of_the_label_and_each_rival() -> None:
    rows = differences(torch.tensor([1, 0]), 3)
    assert rows.tolist() == [[[-1, 1, 0], [0, 1, -1]], [[1, -1, 0], [1, 0, -1]]]
    graph = graph_of(network(3, 2, ("relu",), width=6))
    if graph.output_shape[0] > 1:
        x = torch.randn(4, *graph.input_shape, dtype=torch.float64)
        labels = torch.zeros(4, dtype=torch.long)
        margins = margins_of(graph, x, labels)
        exact = graph(x)[:, :1] - graph(x)[:, 1:]
        assert bool((margins <= exact).all())
        torch.testing.assert_close(margins, exact)


def test_large_networks_keep_the_time_limit() -> None:
    """Linear bounds and lines of one ball would take a multiple of the limit: they are left out, and the rest told."""
    torch.manual_seed(0)
    layers = [
        torch.nn.Conv2d(1, 8, 3, padding=1),
        torch.nn.ReLU(),
        torch.nn.Conv2d(8, 8, 3, padding=1),
        torch.nn.ReLU(),
    ]
    module = torch.nn.Sequential(*layers, torch.nn.Flatten(), torch.nn.Linear(8 * 14 * 14, 10))
    graph = lipbridge.capture(module, (1, 14, 14))
    question = Question.on(Ball(torch.zeros(2, 1, 14, 14, dtype=torch.float64), 0.02, "inf"))
    bound = task(graph, question).bound(Budget(seconds=1.0))
    assert bound.seconds < 20.0
    assert bound.value < lipbridge.trivial_bound(graph, "inf").value
    assert predicted_seconds(graph) > 1.0
    assert predicted_seconds_of_lines(graph, 20) > 1.0
    assert predicted_seconds_of_lines(graph, 0) == 0.0
