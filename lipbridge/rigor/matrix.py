"""Outward-rounded linear algebra: a proved operator norm and proved positive semidefiniteness.

Everything here runs in float64 on the CPU, whatever the device of the weights, because the proofs use the standard
a-priori error of a dot product, |fl(x'y) - x'y| <= gamma_n |x|'|y| in any order of summation, with or without fused
multiply-add (Higham 2002, section 3.1), which conventional matrix products obey.

The Cholesky test is in the spirit of Rump 2006 ("Verification of positive definiteness"): if A is nearly L L' then A
is nearly positive semidefinite. Instead of the a-priori error of the factorisation, the residual A - L L' is computed
and bounded. L L' is positive semidefinite in exact arithmetic whatever L is, so nothing is assumed about how the
library factorises (blocked, recursive, with inverted diagonal blocks).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from lipbridge import checks
from lipbridge.errors import InvalidArgument, NumericalFailure
from lipbridge.linalg import cholesky, eigenvalues
from lipbridge.norms.matrix import require_cheap
from lipbridge.rounding.scalars import TINY, UNIT, add_up, down, finite, gamma, mul_up, sqrt_up, up
from lipbridge.vocabulary import Norm, as_norm

#: Longest run of one accumulator in a matrix product; longer sums are split, which keeps gamma_n small.
CHUNK = 512


def _float64(matrix: Tensor, name: str = "matrix") -> Tensor:
    matrix = checks.tensor(matrix, name)
    if matrix.ndim != 2:
        raise InvalidArgument(name, "have two axes", tuple(matrix.shape))
    return matrix.detach().to(device="cpu", dtype=torch.float64)


def _require_finite(matrix: Tensor) -> None:
    if not bool(torch.isfinite(matrix).all()):
        raise NumericalFailure("The matrix holds NaN or infinite entries.")


def proved_operator_norm(matrix: Tensor, p: Norm = 2, q: Norm | None = None) -> float:
    """A double that is never below ``sup ||W x||_q / ||x||_p`` of the stored ``matrix`` W, in exact arithmetic.

    Within about 1e-10 relative of it for well-scaled matrices up to some thousand rows; zero exactly for W = 0.

    Args:
        matrix: ``(m, n)``, any real floating dtype and device; read as float64.
        p: norm of the input space.
        q: norm of the output space, ``p`` if not given.

    Raises:
        InvalidArgument: for what is no matrix, or no norm.
        UnsupportedProblem: for inf->1, inf->2 and 2->1 (NP-hard).
        NumericalFailure: for NaN, infinite entries or a norm beyond float64.

    Law: at least ``|W x|_q / |x|_p`` for every x, evaluated exactly.
    """
    p = as_norm(p, "p")
    q = p if q is None else as_norm(q, "q")
    require_cheap(p, q, "operator norm of a matrix")
    W = _float64(matrix)
    _require_finite(W)
    if W.numel() == 0 or not bool(W.any()):
        return 0.0
    if (p, q) == (2, 2):
        return _spectral_norm_up(W)
    if (p, q) == (1, "inf"):
        return float(W.abs().max())
    vectors = W.T if p == 1 else W  # 1 -> q: columns in l_q; p -> inf: rows in the dual of l_p
    return _largest_row_norm_up(vectors, 2 if 2 in (p, q) else 1)


def _largest_row_norm_up(rows: Tensor, norm: Norm) -> float:
    scaled, exponent = _scaled_to_one(rows)
    length = rows.shape[1]
    if norm == 1:
        largest = float(scaled.abs().sum(dim=1).max())
        slack = add_up(mul_up(gamma(length), largest), mul_up(2.0 * length, TINY)) if length > 1 else 0.0
        return _unscaled(add_up(largest, slack) if slack else largest, exponent)
    largest = float(scaled.square().sum(dim=1).max())
    slack = add_up(mul_up(gamma(length + 1), largest), mul_up(8.0 * length, TINY))
    return _unscaled(sqrt_up(add_up(largest, slack)), exponent)


def _scaled_to_one(W: Tensor) -> tuple[Tensor, int]:
    """``(W 2**-e, e)`` with the largest magnitude in [0.5, 1).

    Exact but for entries that underflow: each then moves by at most 2 * TINY, which every caller's slack covers.
    """
    exponent = math.frexp(float(W.abs().max()))[1]
    return times_power_of_two(W, -exponent), exponent


def times_power_of_two(W: Tensor, exponent: int) -> Tensor:
    """``W 2**exponent``, exact but for entries that leave the range of float64."""
    first = exponent // 2  # in two steps, since 2**1074 is no double
    return W * 2.0**first * 2.0 ** (exponent - first)


def _unscaled(value: float, exponent: int) -> float:
    try:
        scaled = math.ldexp(value, exponent)
    except OverflowError as error:
        raise NumericalFailure("The operator norm is beyond float64; rescale the weights.") from error
    return finite(scaled) if math.ldexp(scaled, -exponent) == value else up(scaled)


def magnitude_norm_up(matrix: Tensor) -> float:
    """Upper bound of the spectral norm of ``|A|`` (entrywise magnitudes): the smaller of Frobenius and Schur."""
    A = matrix.abs()
    if A.numel() == 0:
        return 0.0
    scale = float(A.max())
    if scale == 0.0:
        return 0.0
    terms = A.shape[0] + A.shape[1] + 8
    rows, columns = float(A.sum(1).max()), float(A.sum(0).max())
    schur = sqrt_up(mul_up(rows, columns))
    frobenius = mul_up(scale, sqrt_up(add_up(float((A / scale).square().sum()), TINY)))
    return mul_up(min(schur, frobenius), add_up(1.0, mul_up(2.0, gamma(A.numel() + terms))))


def gram_up(rows: Tensor) -> tuple[Tensor, float]:
    """``(G, e)`` with ``||rows rows' - G||_2 <= e`` and G exactly symmetric; entries of ``rows`` at most one."""
    n, inner = rows.shape
    G = torch.zeros(n, n, dtype=torch.float64)
    for start in range(0, inner, CHUNK):
        block = rows[:, start : start + CHUNK]
        G += block @ block.T  # not addmm: that may add each product to what earlier blocks left, one by one
    G = torch.tril(G) + torch.tril(G, -1).T
    k = min(inner, CHUNK) + (inner + CHUNK - 1) // CHUNK
    magnitude = magnitude_norm_up(rows)
    return G, add_up(mul_up(gamma(k), magnitude, magnitude), mul_up(8.0, n, inner, TINY))


def smallest_eigenvalue_down(matrix: Tensor, shift: float = 0.0) -> float | None:
    """A proved lower bound of the smallest eigenvalue of a symmetric matrix, close below ``shift``; None if not found.

    Factorises ``A - shift I``; if that fails, ``A - shift I`` is not numerically positive definite and the answer is
    None. Otherwise ``A - shift I = L L' + R`` and the smallest eigenvalue of A is at least ``shift - ||R||_2``, where
    the residual R is computed and its rounding bounded.

    Args:
        matrix: ``(n, n)`` float64, exactly symmetric, finite.
        shift: where to test.
    """
    A = _float64(matrix)
    _require_finite(A)
    if A.shape[0] == 0:
        return math.inf
    size = max(float(A.abs().max()), abs(finite(shift, "The shift")))
    if size == 0.0:
        return None
    exponent = math.frexp(size)[1]
    floor = _scaled_eigenvalue_down(times_power_of_two(A, -exponent), math.ldexp(shift, -exponent))
    if floor is None:
        return None
    value = math.ldexp(floor, exponent)
    return value if math.ldexp(value, -exponent) == floor else math.nextafter(value, -math.inf)


def _scaled_eigenvalue_down(A: Tensor, shift: float) -> float | None:
    S = A.clone()
    S.diagonal().sub_(shift)  # one rounding per diagonal entry, counted below
    L = cholesky(S)
    if L is None:
        return None
    product, error = _lower_gram(L)
    residual = magnitude_norm_up(S - product)
    # The rounding of the shift and of S - product, and the entries that underflowed when A was scaled to one.
    rounding = mul_up(4.0 * UNIT, add_up(magnitude_norm_up(S), abs(shift), 1.0))
    return down(-add_up(residual, error, rounding, -shift))


def _lower_gram(L: Tensor) -> tuple[Tensor, float]:
    scale = 2.0 ** math.frexp(float(L.abs().max()))[1]
    product, error = gram_up(L / scale)
    return product * scale * scale, mul_up(error, scale, scale)


def _spectral_norm_up(W: Tensor) -> float:
    scaled, exponent = _scaled_to_one(W)
    rows = scaled if scaled.shape[0] <= scaled.shape[1] else scaled.T
    if min(rows.shape) == 1:
        return _largest_row_norm_up(W if W.shape[0] == 1 else W.T, 2)
    G, gram_error = gram_up(rows.contiguous())
    square = add_up(largest_eigenvalue_up(G), gram_error)
    # The entries that underflowed in the scaling: at most 2 TINY each, in Frobenius norm.
    return _unscaled(add_up(sqrt_up(square), mul_up(4.0, W.numel(), TINY)), exponent)


def largest_eigenvalue_up(matrix: Tensor) -> float:
    """A proved upper bound of the largest eigenvalue of an exactly symmetric float64 matrix.

    Raises:
        NumericalFailure: if the matrix holds NaN or no bound could be proved.
    """
    A = _float64(matrix)
    _require_finite(A)
    n = A.shape[0]
    top = float(eigenvalues(A)[-1])
    size = max(abs(top), float(A.abs().max()))
    if size == 0.0:
        return 0.0
    step = 4.0 * n * UNIT * size
    for _ in range(60):
        shift = top + step
        floor = smallest_eigenvalue_down(-A, -shift)
        if floor is not None:
            return -floor
        step *= 8.0
    raise NumericalFailure("No upper bound of the largest eigenvalue could be proved.")
