"""Bounds of the l_inf and l_1 constants from multipliers: proved whatever the multipliers are."""

from __future__ import annotations

import itertools
import math
from fractions import Fraction

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import lipbridge
from lipbridge.activations.registry import activation_names
from lipbridge.errors import NumericalFailure
from lipbridge.lipsdp.linf import (
    Multipliers,
    box_norm_up,
    closed_form,
    ends_problem,
    pieces_of,
    prove_piece,
)
from lipbridge.vocabulary import Norm
from tests.support.exact.rationals import Rationals, exact, product
from tests.support.families import FLAVOURS, network
from tests.support.jacobians import NORMS, jacobian_norms
from tests.support.lipsdp_reference import graph_of
from tests.support.refusals import reason


def random_claim(piece, seed: int, scale: float) -> Multipliers:
    generator = torch.Generator().manual_seed(seed)

    def positive(*shape: int) -> Tensor:
        return scale * torch.randn(*shape, dtype=torch.float64, generator=generator).exp()

    stages = piece.system.stages
    return Multipliers([positive(s.increments.constraints, s.width) for s in stages], positive(piece.free))


@settings(max_examples=40)
@given(
    seed=st.integers(0, 10**9),
    depth=st.integers(1, 4),
    names=st.lists(st.sampled_from(activation_names()), min_size=1, max_size=2).map(tuple),
    flavour=st.sampled_from(FLAVOURS),
    norm=st.sampled_from(NORMS),
    scale=st.sampled_from([0.0, 1e-200, 1e-3, 1.0, 1e3, 1e200, math.nan]),
)
def test_any_multipliers_give_a_bound_between_the_jacobians_and_the_trivial_bound(
    seed: int, depth: int, names: tuple[str, ...], flavour: str, norm: Norm, scale: float
) -> None:
    graph = graph_of(network(seed, depth, names, flavour))
    below = jacobian_norms(graph, norm)
    for piece in pieces_of(graph, norm)[:3]:
        lower = float(below[piece.index])
        form = closed_form(piece)
        for claim in (form, random_claim(piece, seed, scale)):
            assert lower <= prove_piece(piece, claim) <= piece.trivial
        # Whatever the inner multipliers, the row sums are at hand: a wrong diagonal cannot spoil a bound.
        spoiled = Multipliers(form.inner, random_claim(piece, seed, scale).ends)
        assert lower <= prove_piece(piece, spoiled) <= piece.trivial


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("factors", [(1e-200, 1e150), (1e150, 1e-200), (1e-200, 1.0), (1e150, 1.0), (1e-160, 1e-160)])
def test_bounds_hold_at_the_ends_of_float64(norm: Norm, factors: tuple[float, float]) -> None:
    net = network(4, 2, ("relu",), width=5)
    with torch.no_grad():
        for layer, factor in zip((net[0], net[2]), factors, strict=True):
            layer.weight.mul_(factor)
    graph = graph_of(net)
    plain = graph_of(network(4, 2, ("relu",), width=5))
    expected = [prove_piece(piece, closed_form(piece)) for piece in pieces_of(plain, norm)]
    found = [prove_piece(piece, closed_form(piece)) for piece in pieces_of(graph, norm)]
    for value, at_one in zip(sorted(found), sorted(expected), strict=True):
        log = math.log10(at_one) + math.log10(factors[0]) + math.log10(factors[1])
        assert value > 0
        assert log > -300 or value < 1e-300
        if log > -300:
            assert math.log10(value) == pytest.approx(log, abs=1e-6)


@pytest.mark.parametrize("norm", NORMS)
def test_networks_without_increments_have_constant_zero(norm: Norm) -> None:
    for piece in pieces_of(graph_of(network(5, 3, ("gelu",), "zero_layer")), norm):
        assert prove_piece(piece, closed_form(piece)) == 0.0


def test_weights_beyond_float64_are_an_error() -> None:
    net = nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 2)).double()
    with torch.no_grad():
        net[0].weight[0, 0] = math.nan
    with pytest.raises(NumericalFailure):
        pieces_of(graph_of(net), "inf")


# --- the box ---------------------------------------------------------------------------------------------------------


def largest_on_the_corners(H: Tensor, W: Tensor) -> Fraction:
    """max x'W'HWx over the box, by all corners, exactly."""
    corners = torch.tensor(list(itertools.product([-1.0, 1.0], repeat=W.shape[1])), dtype=torch.float64)
    z = product(exact(W), exact(corners.T))
    found = product(exact(H), z)
    return max(Rationals((found.ints * z.ints).sum(axis=0), found.unit * z.unit).fractions())


@pytest.mark.parametrize("flavour", FLAVOURS)
@pytest.mark.parametrize("shape", [(1, 1), (3, 6), (6, 3), (5, 5)])
def test_the_box_norm_is_never_below_a_corner_nor_above_the_row_sums(flavour: str, shape: tuple[int, int]) -> None:
    from tests.support.families import matrix

    generator = torch.Generator().manual_seed(1)
    W, root = matrix(*shape, flavour, generator), torch.randn(shape[0], shape[0], generator=generator).double()
    H = root @ root.T
    P = W.T @ H @ W
    d = torch.rand(shape[1], dtype=torch.float64, generator=generator) * (1.0 + P.abs().sum(1))
    largest = largest_on_the_corners(H, W)
    for claim in (d, torch.zeros_like(d), torch.full_like(d, math.nan), P.abs().sum(1), 1e-6 * d):
        square = Fraction(box_norm_up(H, W, claim)) ** 2
        assert largest <= square <= float(P.abs().sum()) * (1 + 1e-9) + 1e-290


def test_the_box_norm_uses_a_good_diagonal() -> None:
    # x'Px with P = I - 11'/n over corners: the trace of I is n and the row sums give 2 (n - 1).
    n = 12
    H = torch.eye(n, dtype=torch.float64) - torch.ones(n, n, dtype=torch.float64) / n
    eye = torch.eye(n, dtype=torch.float64)
    found = Fraction(box_norm_up(H, eye, torch.ones(n, dtype=torch.float64))) ** 2
    assert float(found) == pytest.approx(n, rel=1e-9)
    assert found >= largest_on_the_corners(H, eye)


# --- what is supported -----------------------------------------------------------------------------------------------


def test_what_is_not_supported_has_a_reason() -> None:
    graph = graph_of(network(0, 2, ("relu",)))
    assert reason(ends_problem(lipbridge.Problem(graph, lipbridge.Question.everywhere("inf")))) is None
    assert reason(ends_problem(lipbridge.Problem(graph, lipbridge.Question.everywhere(1)))) is None
    assert "2" in (reason(ends_problem(lipbridge.Problem(graph, lipbridge.Question.everywhere(2)))) or "")
    assert "1->inf" in (reason(ends_problem(lipbridge.Problem(graph, lipbridge.Question.everywhere(1, "inf")))) or "")
