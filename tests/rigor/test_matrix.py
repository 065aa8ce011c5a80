"""The proved norm: never below the exact one (by rational arithmetic), close to it, and an error when it must be."""

from __future__ import annotations

import math
from fractions import Fraction

import mpmath
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lipbridge.errors import InvalidArgument, NumericalFailure, UnsupportedProblem
from lipbridge.norms import CHEAP_PAIRS, operator_norm
from lipbridge.rigor.matrix import gram_up, largest_eigenvalue_up, proved_operator_norm, smallest_eigenvalue_down
from tests.support.families import FLAVOURS, matrix
from tests.support.matrices import exact_norm_is_at_most

HARD_PAIRS = [("inf", 1), ("inf", 2), (2, 1)]


def slow_norm(W: torch.Tensor, p, q) -> mpmath.mpf:
    """The norm with 60 digits."""
    with mpmath.workdps(60):
        rows = mpmath.matrix([[mpmath.mpf(float(value)) for value in row] for row in W])
        if (p, q) == (2, 2):
            return mpmath.sqrt(max(mpmath.eigsy(rows * rows.T, eigvals_only=True)))
        if (p, q) == (1, "inf"):
            return max(abs(x) for x in rows)
        vectors = rows.T if p == 1 else rows
        order = 2 if 2 in (p, q) else 1
        return max(mpmath.norm(vectors[i, :], order) for i in range(vectors.rows))


@pytest.mark.parametrize("pair", CHEAP_PAIRS)
@settings(max_examples=60, deadline=None)
@given(st.integers(1, 6), st.integers(1, 6), st.sampled_from(FLAVOURS), st.integers(0, 10**6))
def test_never_below_and_close(pair, m: int, n: int, flavour: str, seed: int) -> None:
    W = matrix(m, n, flavour, torch.Generator().manual_seed(seed))
    bound = proved_operator_norm(W, *pair)
    assert exact_norm_is_at_most(W, *pair, bound)
    exact = slow_norm(W, *pair)
    assert mpmath.mpf(bound) >= exact * (1 - mpmath.mpf(10) ** -50)
    assert mpmath.mpf(bound) <= exact * (1 + mpmath.mpf(10) ** -12)


@pytest.mark.parametrize("pair", CHEAP_PAIRS)
@pytest.mark.parametrize("shape", [(1, 1), (1, 7), (7, 1), (4096, 3), (3, 4096), (256, 784), (600, 600)])
def test_close_at_size(pair, shape) -> None:
    W = torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    value, bound = float(operator_norm(W, *pair)), proved_operator_norm(W, *pair)
    assert value * (1 - 1e-13) <= bound <= value * (1 + 1e-10)


@pytest.mark.parametrize("flavour", ["repeated", "identity", "ones", "rank_one", "orthogonal"])
def test_special_spectra(flavour: str) -> None:
    generator = torch.Generator().manual_seed(2)
    if flavour == "repeated":
        Q, R = (matrix(80, 80, "orthogonal", generator) for _ in range(2))
        W, exact = Q @ torch.diag(torch.tensor([5.0] * 40 + [1.0] * 40, dtype=torch.float64)) @ R, 5.0
    elif flavour == "identity":
        W, exact = 3 * torch.eye(50, dtype=torch.float64), 3.0
    elif flavour == "ones":
        W, exact = torch.ones(30, 50, dtype=torch.float64), math.sqrt(1500)
    else:
        W = matrix(60, 90, flavour, generator)
        exact = float(torch.linalg.svdvals(W)[0])
    bound = proved_operator_norm(W)
    assert exact * (1 - 1e-13) <= bound <= exact * (1 + 1e-10)


@pytest.mark.parametrize("pair", CHEAP_PAIRS)
@pytest.mark.parametrize("scale", [1e-320, 1e-310, 1e-200, 1e-150, 1e150, 1e300])
def test_any_scale(pair, scale: float) -> None:
    W = torch.tensor([[1.0, 2.0, 0.5], [0.25, 1.0, 4.0]], dtype=torch.float64)
    scaled = W * scale
    bound = proved_operator_norm(scaled, *pair)
    assert exact_norm_is_at_most(scaled, *pair, bound)
    if scale > 1e-300:
        assert bound == pytest.approx(float(operator_norm(W, *pair)) * scale, rel=1e-12)


def test_mixed_scales_in_one_matrix() -> None:
    W = torch.tensor([[1e-200, 1e150, 1.0], [1e-320, 1.0, 1e140]], dtype=torch.float64)
    for pair in CHEAP_PAIRS:
        bound = proved_operator_norm(W, *pair)
        assert exact_norm_is_at_most(W, *pair, bound)
        assert bound == pytest.approx(1e150, rel=1e-9)


@pytest.mark.parametrize("pair", CHEAP_PAIRS)
def test_zero_is_exactly_zero(pair) -> None:
    assert proved_operator_norm(torch.zeros(4, 3), *pair) == 0.0


def test_one_by_one_is_exact_or_an_ulp_above() -> None:
    for value in (3.0, -0.1, 5e-324, 1.7e308):
        bound = proved_operator_norm(torch.tensor([[value]], dtype=torch.float64))
        assert abs(value) <= bound <= math.nextafter(math.nextafter(abs(value) * (1 + 4e-16), math.inf), math.inf)


@pytest.mark.parametrize("pair", CHEAP_PAIRS)
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_nan_and_infinity_are_errors(pair, bad: float) -> None:
    W = torch.ones(3, 3, dtype=torch.float64)
    W[1, 1] = bad
    with pytest.raises(NumericalFailure, match="NaN or infinite"):
        proved_operator_norm(W, *pair)


@pytest.mark.parametrize("pair", [(1, 1), (1, 2), (2, 2), (2, "inf"), ("inf", "inf")])
def test_overflow_is_an_error(pair) -> None:
    with pytest.raises(NumericalFailure):
        proved_operator_norm(torch.full((3, 3), 1.7e308, dtype=torch.float64), *pair)


@pytest.mark.parametrize("pair", HARD_PAIRS)
def test_hard_norms_say_why(pair) -> None:
    for function in (proved_operator_norm, operator_norm):
        with pytest.raises(UnsupportedProblem, match="NP-hard"):
            function(torch.ones(2, 2), *pair)


def test_not_a_matrix() -> None:
    with pytest.raises(InvalidArgument, match="two axes"):
        proved_operator_norm(torch.ones(3))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_low_precision_weights_are_read_exactly(dtype: torch.dtype) -> None:
    W = torch.randn(20, 30, generator=torch.Generator().manual_seed(3)).to(dtype)
    assert exact_norm_is_at_most(W.double(), 2, 2, proved_operator_norm(W))


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 7), st.sampled_from(FLAVOURS), st.integers(0, 10**6), st.sampled_from([1.0, 1e-200, 1e100]))
def test_eigenvalue_bounds_against_sixty_digits(n: int, flavour: str, seed: int, scale: float) -> None:
    W = matrix(n, n, flavour if flavour not in ("huge", "tiny") else "random", torch.Generator().manual_seed(seed))
    A = (W + W.T) * scale
    if not bool(A.any()):
        return
    with mpmath.workdps(60):
        values = mpmath.eigsy(mpmath.matrix([[mpmath.mpf(float(x)) for x in row] for row in A]), eigvals_only=True)
        top, low = max(values), min(values)
    size = float(A.abs().max())
    bound = largest_eigenvalue_up(A)
    assert mpmath.mpf(bound) >= top
    assert float(mpmath.mpf(bound) - top) <= 1e-11 * size * n
    floor = smallest_eigenvalue_down(A, float(low) - 1e-10 * size)
    assert floor is not None
    assert mpmath.mpf(floor) <= low
    assert float(low - mpmath.mpf(floor)) <= 2e-10 * size * n


def test_not_positive_definite_is_none() -> None:
    A = torch.diag(torch.tensor([1.0, -1.0], dtype=torch.float64))
    assert smallest_eigenvalue_down(A) is None
    assert smallest_eigenvalue_down(A, -0.5) is None
    floor = smallest_eigenvalue_down(A, -1.0001)
    assert floor is not None
    assert -1.0002 < floor <= -1


def test_gram_error_holds_exactly() -> None:
    W = matrix(6, 1300, "random", torch.Generator().manual_seed(4))
    W = W / W.abs().max()
    G, error = gram_up(W)
    exact = [
        [sum((Fraction(float(a)) * Fraction(float(b)) for a, b in zip(x, y, strict=True)), Fraction(0)) for y in W]
        for x in W
    ]
    off = max(abs(exact[i][j] - Fraction(float(G[i, j]))) for i in range(6) for j in range(6))
    assert off * 6 <= Fraction(error)  # the spectral norm is at most 6 times the largest entry
    assert error < 1e-10
