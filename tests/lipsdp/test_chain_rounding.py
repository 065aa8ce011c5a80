"""What a rounded chain's bounds lack: compared with exact rationals, and shown to be needed."""

from __future__ import annotations

from fractions import Fraction

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import lipbridge
from lipbridge.errors import NumericalFailure, UnsupportedProblem
from lipbridge.graph.graph import Graph
from lipbridge.graph.nodes import Dense, Elementwise, Input
from lipbridge.lipsdp.chain_rounding import rounding_term
from lipbridge.lipsdp.linf import closed_form, pieces_of, prove_piece
from lipbridge.lipsdp.proof import prove
from lipbridge.lipsdp.solve.batch import lipsdp_bounds
from lipbridge.lipsdp.system import Intervals, lipsdp_of
from lipbridge.lowering.chain import Chain, as_chain

relu = lipbridge.activation("relu")


def chain_of(weights: list[Tensor], errors: list[Tensor | None]) -> Chain:
    layers = tuple(Dense(f"{i}", (i,), (len(W),), W) for i, W in enumerate(weights))
    return Chain(layers, (relu,) * (len(weights) - 1), tuple(range(1, len(weights))), tuple(errors))


def columns(matrix: list[list[Fraction]]) -> list[list[Fraction]]:
    return [list(column) for column in zip(*matrix, strict=True)]


def product(weights: list[list[list[Fraction]]], slopes: list[list[Fraction]]) -> list[list[Fraction]]:
    found = weights[0]
    for D, W in zip(slopes, weights[1:], strict=True):
        scaled = [[d * v for v in row] for d, row in zip(D, found, strict=True)]
        found = [
            [sum((a * b for a, b in zip(row, col, strict=True)), Fraction(0)) for col in columns(scaled)] for row in W
        ]
    return found


def norm_of(matrix: list[list[Fraction]], norm: object) -> Fraction:
    rows = matrix if norm == "inf" else columns(matrix)
    return max(sum((abs(v) for v in row), Fraction(0)) for row in rows)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**6), st.sampled_from([1, "inf"]), st.sampled_from([2.0**-50, 2.0**-3]))
def test_the_networks_product_is_within_the_term(seed: int, norm, size: float) -> None:
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    shapes = [(3, 2), (4, 3), (2, 4)]
    weights = [draw(*shape) for shape in shapes]
    errors = [None if i == seed % 3 else draw(*shape).abs() * size for i, shape in enumerate(shapes)]
    term = Fraction(rounding_term(chain_of(weights, errors), norm))
    exact = [[[Fraction(v) for v in row] for row in W.tolist()] for W in weights]
    off = [
        W
        if e is None
        else [
            [v + s * Fraction(d) for v, d, s in zip(*rows, strict=True)]
            for rows in zip(W, e.tolist(), signs, strict=True)
        ]
        for W, e, signs in zip(exact, errors, [draw(*shape).sign().int().tolist() for shape in shapes], strict=True)
    ]
    slopes = [[Fraction(v) for v in torch.rand(len(W), generator=generator).tolist()] for W in weights[:-1]]
    assert norm_of(product(off, slopes), norm) <= norm_of(product(exact, slopes), norm) + term


def test_nothing_is_added_where_nothing_is_rounded() -> None:
    W = torch.eye(2, dtype=torch.float64)
    assert rounding_term(chain_of([W, W], [None, None]), 2) == 0.0
    assert rounding_term(chain_of([W, W], [W, None]), 2, [True]) == 0.0  # the network is constant
    assert rounding_term(chain_of([W, W], [W, None]), 2, [False]) > 1.0


def test_the_term_is_above_the_worst_case_of_positive_weights() -> None:
    """With positive weights and errors, and slopes one, the sum is reached but for products of errors."""
    W, e = torch.tensor([[2.0]], dtype=torch.float64), torch.tensor([[0.25]], dtype=torch.float64)
    term = rounding_term(chain_of([W, W, W], [e, None, e]), 2)
    assert 2.25 * 2.0 * 2.25 - 8.0 <= term <= 2 * 0.25 * 2.25 * 2.0 * (1 + 1e-12)


@pytest.mark.parametrize("norm", [1, 2, "inf"])
def test_activations_with_several_outputs_count_by_their_constant_in_the_norm(norm) -> None:
    """For (t, |t|) it is 2 in l_1, and both of its outputs lie on one line of slope one for positive inputs."""
    W, e = torch.full((1, 1), 2.0, dtype=torch.float64), torch.full((1, 1), 0.25, dtype=torch.float64)
    layers = (Dense("0", (0,), (1,), W), Dense("1", (1,), (1,), W.expand(1, 2)))
    chain = Chain(layers, (lipbridge.activation("identity_abs"),), (1,), (e, e.expand(1, 2)))
    term = rounding_term(chain, norm)
    assert 2.25 * 2.0 * 2.25 - 2.0 * 2.0 * 2.0 <= term <= 2 * 0.25 * 2.0 * 2.25 * (1 + 1e-12)


def test_errors_beyond_float64_are_refused() -> None:
    W = torch.full((1, 1), 1e200, dtype=torch.float64)
    with pytest.raises(NumericalFailure, match="overflow"):
        rounding_term(chain_of([W, W], [W, None]), 2)


def cancelling() -> nn.Sequential:
    """Linear behind Linear: 1.3 (1 + 2^-52) - 1.3 is 1.3 * 2^-52, and 2^-52 in float64."""
    first, second, last = nn.Linear(1, 2, bias=False), nn.Linear(2, 1, bias=False), nn.Linear(1, 1, bias=False)
    net = nn.Sequential(first, second, nn.ReLU(), last).double()
    with torch.no_grad():
        first.weight.copy_(torch.tensor([[1.0 + 2.0**-52], [1.0]], dtype=torch.float64))
        second.weight.copy_(torch.tensor([[1.3, -1.3]], dtype=torch.float64))
        last.weight.fill_(2.0**52)
    return net


def test_bounds_of_the_rounded_chain_alone_are_below_the_constant() -> None:
    graph = lipbridge.capture(cancelling(), (1,))
    truth = Fraction(1.3)
    chain = as_chain(graph, rounded=True)
    alone = lipbridge.trivial_bound(nn.Sequential(*(weights(layer.weight) for layer in chain.layers)), input_shape=(1,))
    assert Fraction(alone.value) < truth * Fraction(9, 10)  # the chain without what it lacks
    assert Fraction(alone.value) + Fraction(rounding_term(chain, 2)) >= truth
    for name in ("eclipse-fast", "lipsdp-fast"):
        for region in (None, lipbridge.Ball(torch.ones(1, 1, dtype=torch.float64), 0.5, 2)):
            bound = (
                lipbridge.get_verifier(name)
                .prepare(lipbridge.Problem(graph, lipbridge.Question(input_norm=2, output_norm=2, region=region)))
                .bound(
                    lipbridge.Budget(),
                )
            )
            assert truth <= Fraction(bound.value) <= 10 * truth
    (batched,) = lipsdp_bounds([graph])
    assert truth <= Fraction(batched.value)


@pytest.mark.parametrize(("low", "high"), [(1.0, 2.0), (-2.0, -1.0)])
def test_only_units_that_are_all_dead_on_a_region_hide_what_was_rounded(low: float, high: float) -> None:
    chain = as_chain(lipbridge.capture(cancelling(), (1,)), rounded=True)
    ball = lipbridge.Ball(torch.tensor([[0.5 * (low + high)]], dtype=torch.float64), 0.5 * (high - low), 2)
    interval = (torch.tensor([low], dtype=torch.float64), torch.tensor([high], dtype=torch.float64))
    term = rounding_term(chain, 2)
    assert term > 0.0
    assert lipsdp_of(chain, Intervals(ball, [interval])).rounding == (term if high > 0.0 else 0.0)


def test_a_chain_that_is_constant_by_underflow_alone_is_not_proved_constant() -> None:
    layers = [weights(torch.tensor([[w]], dtype=torch.float64)) for w in (1e-200, 1e-200, 1e200, 1e200)]
    graph = lipbridge.capture(nn.Sequential(layers[0], layers[1], nn.ReLU(), layers[2], nn.ReLU(), layers[3]), (1,))
    system = lipsdp_of(graph)
    assert system.constant
    assert prove(system, [])[0] >= 1.0


def weights(W: Tensor) -> nn.Linear:
    layer = nn.Linear(W.shape[1], W.shape[0], bias=False).double()
    layer.weight.data.copy_(W)
    return layer


def test_a_reader_that_does_not_ask_for_a_rounded_chain_gets_none() -> None:
    graph = lipbridge.capture(cancelling(), (1,))
    with pytest.raises(UnsupportedProblem, match="is rounded"):
        as_chain(graph)
    assert all(layer.bias is None for layer in as_chain(graph, rounded=True).layers)


@pytest.mark.parametrize("norm", [1, "inf"])
@pytest.mark.parametrize("size", [0.0, 1.0], ids=["zero weights", "weights"])
def test_pieces_of_an_uncertain_chain_cover_its_errors(norm, size: float) -> None:
    """Positive weights and errors as large as they are: with all at their upper end the ReLUs are lines."""
    generator = torch.Generator().manual_seed(0)
    shapes = [(5, 3), (2, 5)]
    weights, errors = ([torch.rand(*shape, generator=generator).double() + 0.1 for shape in shapes] for _ in range(2))
    weights = [size * W for W in weights]
    first, last = (
        Dense(f"{i}", (2 * i,), (len(W),), W, error=e) for i, (W, e) in enumerate(zip(weights, errors, strict=True))
    )
    graph = Graph((Input("input", (), (3,)), first, Elementwise("relu", (1,), (5,), relu), last))
    product = (weights[1] + errors[1]) @ (weights[0] + errors[0])
    sums = product.sum(1 if norm == "inf" else 0)
    for piece in pieces_of(graph, norm):
        assert prove_piece(piece, closed_form(piece)) >= float(sums[piece.index]) * (1.0 - 1e-12)
        assert piece.trivial >= float(sums[piece.index]) * (1.0 - 1e-12)
