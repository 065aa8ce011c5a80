"""Gather: copies and zeros, with every rule of a node against its matrix."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from lipbridge.activations.registry import activation
from lipbridge.constants.layer_constants import output_constants
from lipbridge.errors import UnsupportedProblem
from lipbridge.graph.graph import Graph
from lipbridge.graph.nodes import Add, Conv, Dense, Elementwise, Gather, Input
from lipbridge.lowering.chain import as_chain
from lipbridge.lowering.dense import lower_to_dense
from lipbridge.problem.question import Ball
from lipbridge.propagation.bounds import forward_bounds, layer_norms
from lipbridge.rescaling.channel_chain import channel_chain
from lipbridge.rescaling.channels import ones, proved_product
from lipbridge.rigor.tangent_error import enclose_tangent
from lipbridge.vocabulary import NORMS, Norm, exponent
from tests.support.enclosed import balls_of, require_inside

CASES = {
    "identity": ((3,), [0, 1, 2], (3,)),
    "flip": ((2, 3), [5, 4, 3, 2, 1, 0], (3, 2)),
    "copies": ((3,), [1, 1, 1, 0, -1], (5,)),
    "many": ((2, 2), [3] * 9 + [0] * 2 + [-1], (3, 4)),
    "zeros": ((2,), [-1, -1], (2,)),
    "part": ((5,), [4], (1,)),
}


def gather(shape: tuple[int, ...], index: list[int], to: tuple[int, ...]) -> Graph:
    return Graph((Input("x", (), shape), Gather("g", (0,), to, torch.tensor(index))))


def matrix_of(graph: Graph) -> Tensor:
    n = math.prod(graph.input_shape)
    unit = torch.eye(n, dtype=torch.float64).reshape(n, *graph.input_shape)
    return graph(unit).reshape(n, -1).T


@pytest.mark.parametrize("case", CASES)
def test_values_and_tangents(case: str) -> None:
    shape, index, to = CASES[case]
    graph = gather(shape, index, to)
    x, v = torch.randn(2, 4, *shape, dtype=torch.float64)
    expected = [[0.0 if i < 0 else float(row.flatten()[i]) for i in index] for row in x]
    assert torch.equal(graph(x), torch.tensor(expected, dtype=torch.float64).reshape(4, *to))
    value, tangent = graph.tangent(x, v)
    assert torch.equal(value, graph(x))
    assert torch.equal(tangent, graph(v))


@pytest.mark.parametrize("p", NORMS)
@pytest.mark.parametrize("case", CASES)
def test_constants_are_exact(case: str, p: Norm) -> None:
    graph = gather(*CASES[case])
    matrix = matrix_of(graph)
    found = output_constants(graph, p, p)[p]
    exact = float(torch.linalg.matrix_norm(matrix, exponent(p)))
    assert found >= exact * (1.0 - 1e-15)
    assert found == pytest.approx(exact, rel=1e-15, abs=0.0)
    count = int((matrix.sum(0)).max())
    if p == 2:
        assert found * found >= count  # rounded up where it is no square
        assert math.isqrt(count) ** 2 != count or found == math.isqrt(count)


@pytest.mark.parametrize(("p", "q"), [(1, 2), (1, "inf"), (2, "inf")])
def test_mixed_constants_hold(p: Norm, q: Norm) -> None:
    graph = gather((3,), [1, 1, 1, 0, -1], (5,))
    found = output_constants(graph, p, q)[q]
    for x in torch.eye(3, dtype=torch.float64):
        assert torch.linalg.vector_norm(graph(x[None]), exponent(q)) <= found * torch.linalg.vector_norm(x, exponent(p))


def test_a_sum_with_copies_is_one_linear_map() -> None:
    """flip(x) - flip(x) is nothing but for rounding; the norms of its parts would give 2."""
    flip = Gather("flip", (0,), (4,), torch.tensor([3, 2, 1, 0]))
    minus = Dense("minus", (0,), (4,), -torch.eye(4, dtype=torch.float64).flip(0))
    graph = Graph((Input("x", (), (4,)), flip, minus, Add("sum", (1, 2), (4,))))
    assert output_constants(graph, 2, 2)[2] <= 1e-14


def test_running_error_and_where_it_cannot_vary() -> None:
    graph = gather((2,), [1, -1, 0], (3,))
    found = enclose_tangent(graph, torch.tensor([[1.0, 2.0]]).double(), torch.tensor([[3.0, 4.0]]).double())
    assert torch.equal(found.tangent.value, torch.tensor([[4.0, 0.0, 3.0]]).double())
    assert not bool(found.tangent.error.any() | found.primal.error.any())
    assert found.live.tolist() == [[1.0, 0.0, 1.0]]
    assert bool(found.sound.all())


@settings(max_examples=30)
@given(st.data())
def test_intervals_hold_and_lines_add_what_is_copied(data: st.DataObject) -> None:
    norm = data.draw(st.sampled_from(NORMS))
    n, m = data.draw(st.integers(1, 5)), data.draw(st.integers(1, 8))
    index = torch.tensor(data.draw(st.lists(st.integers(-1, n - 1), min_size=m, max_size=m)))
    seed = data.draw(st.integers(0, 1000))
    W = torch.randn(3, m, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    nodes = (
        Input("x", (), (n,)),
        Gather("g", (0,), (m,), index),
        Dense("d", (1,), (3,), W, torch.ones(3, dtype=torch.float64)),
        Elementwise("a", (2,), (3,), activation("relu")),
        Gather("h", (3,), (4,), torch.tensor([2, 2, -1, 0])),
    )
    graph = Graph(nodes)
    ball = balls_of(graph, 0.3, norm)
    for norms in (None, layer_norms(graph, norm)):
        require_inside(graph, ball, forward_bounds(graph, ball, norms))


def test_copies_that_cancel_are_seen_by_lines() -> None:
    """relu(x - x): intervals alone would leave [-2 r, 2 r]."""
    graph = Graph(
        (
            Input("x", (), (1,)),
            Gather("twice", (0,), (2,), torch.tensor([0, 0])),
            Dense("minus", (1,), (1,), torch.tensor([[1.0, -1.0]], dtype=torch.float64)),
            Elementwise("relu", (2,), (1,), activation("relu")),
        )
    )
    ball = Ball(torch.tensor([[5.0]], dtype=torch.float64), 1.0, "inf")
    found = forward_bounds(graph, ball)[2]
    assert float((found.upper - found.lower).abs().max()) < 1e-13


def test_chains_and_dense_lowering_hold_its_matrix() -> None:
    W = torch.randn(2, 4, dtype=torch.float64)
    for index, exact in (([2, 0, -1, 1], True), ([2, 0, -1, 2], False)):  # copies of one input are added
        moved = Gather("g", (0,), (4,), torch.tensor(index))
        graph = Graph((Input("x", (), (3,)), moved, Dense("d", (1,), (2,), W)))
        lowered = lower_to_dense(graph)
        assert lowered.exact == exact
        x = torch.randn(5, 3, dtype=torch.float64)
        torch.testing.assert_close(lowered.graph(x), graph(x), rtol=1e-14, atol=1e-14)
        if exact:
            assert torch.equal(as_chain(graph).layers[0].weight, W @ matrix_of(gather((3,), index, (4,))))


def test_one_multiplier_a_channel_passes_through() -> None:
    """Channels that are shuffled, and padded with zeros: the bound is that of the same network written as dense."""
    generator = torch.Generator().manual_seed(0)

    def weight(*shape: int) -> Tensor:
        return torch.randn(*shape, dtype=torch.float64, generator=generator)

    where = torch.arange(18).reshape(2, 3, 3).flip(0)
    index = torch.nn.functional.pad(where, (1, 0, 0, 1), value=-1)
    graph = Graph(
        (
            Input("x", (), (1, 3, 3)),
            Conv("one", (0,), (2, 3, 3), weight(2, 1, 1, 1), None, (1, 1), ((0, 0),) * 2, (1, 1)),
            Elementwise("relu", (1,), (2, 3, 3), activation("relu"), 0),
            Gather("moved", (2,), (2, 4, 4), index.flatten()),
            Conv("two", (3,), (2, 4, 4), weight(2, 2, 1, 1), None, (1, 1), ((0, 0),) * 2, (1, 1)),
        )
    )
    chain = channel_chain(graph)
    factors = [torch.tensor([1.0, 4.0], dtype=torch.float64)]
    first, last = (node.weight.flatten(1) for node in (graph.nodes[1], graph.nodes[4]))  # type: ignore[attr-defined]
    D = torch.diag(factors[0])
    swapped = torch.diag(factors[0].flip(0).reciprocal())
    expected = torch.linalg.matrix_norm(D @ first, 2) * torch.linalg.matrix_norm(last @ swapped, 2)
    assert proved_product(chain, factors) == pytest.approx(float(expected), rel=1e-9)
    assert proved_product(chain, ones(chain)) >= 0.0
    with pytest.raises(UnsupportedProblem):
        channel_chain(Graph((graph.nodes[0], Gather("g", (0,), (1,), torch.tensor([0])))))
