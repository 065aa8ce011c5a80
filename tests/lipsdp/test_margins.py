"""What each step of the proof of a matrix inequality promises, one by one: its margins hide each other in the whole.

Where a margin covers the rounding of a product, that product alone is off by all that the standard model permits, in
the coarse arithmetic (tests/support/coarse.py); where it covers a factor or a solution, LAPACK's is replaced by a bad
one: the proofs must not depend on how good it is. References are in float64, whose own rounding is a millionth of what
is tested.
"""

from __future__ import annotations

from fractions import Fraction

import pytest
import torch
from torch import Tensor

from lipbridge.errors import NumericalFailure
from lipbridge.linalg import cholesky, solve_triangular
from lipbridge.lipsdp import proof as lmi_proof
from lipbridge.lipsdp.constraints import Increments
from lipbridge.lipsdp.system import Stage
from tests.support.coarse import COARSE_UNIT, coarse_arithmetic

torch.set_num_threads(1)

DOUBLE = torch.float64


def ones_like(n: int, rest: float = 0.25) -> Tensor:
    """``(1 - rest) 1 1' + rest I``: positive definite, of norm about n, so that rounding adds up."""
    return torch.full((n, n), 1.0 - rest, dtype=DOUBLE) + rest * torch.eye(n, dtype=DOUBLE)


def least(matrix: Tensor) -> float:
    return float(torch.linalg.eigvalsh(matrix)[0])


def norm(matrix: Tensor) -> float:
    return float(torch.linalg.matrix_norm(matrix, 2))


class Known:
    """A spread whose errors of G are said to be these, on the activation's inputs z alone."""

    def __init__(self, on_z: float) -> None:
        self.on_z = on_z

    def times(self, v: Tensor) -> Tensor:
        """All of it on the diagonal of G_zz."""
        return torch.cat([self.on_z * v[: len(v) // 2], torch.zeros_like(v[len(v) // 2 :])])


def stage(n: int) -> Stage:
    half = torch.full((1, 2), 0.5, dtype=DOUBLE)
    return Stage(Increments(half, torch.zeros_like(half), (0,)), torch.eye(n, dtype=DOUBLE), torch.arange(n), n)


def gram(zz: Tensor, qz: Tensor, qq: Tensor) -> Tensor:
    return torch.cat([torch.cat([zz, qz.T], 1), torch.cat([qz, qq], 1)])


@pytest.mark.parametrize("share", [0.9, 1.1])
def test_a_bad_solution_is_no_harm(share: float, monkeypatch) -> None:
    """X instead of L^-1 B: the storage matrix must still dominate G_qz' (D - G_qq)^-1 G_qz."""
    monkeypatch.setattr(lmi_proof, "solve_triangular", lambda L, B: share * solve_triangular(L, B))
    n = 3
    qz, qq = 0.1 * torch.eye(n, dtype=DOUBLE) + 0.02, torch.zeros(n, n, dtype=DOUBLE)
    T = torch.ones(1, n, dtype=DOUBLE)
    storage, _ = lmi_proof.attempt(stage(n), T, gram(torch.zeros_like(qq), qz, qq), Known(0.0))  # type: ignore[arg-type]
    assert storage is not None
    needed = torch.eye(n, dtype=DOUBLE) + qz.T @ qz
    assert least(storage - needed) >= -1e-14


def test_the_error_of_the_gram_matrix_is_lifted() -> None:
    n, error = 3, 2.0**-10
    zero = torch.zeros(n, n, dtype=DOUBLE)
    T = torch.ones(1, n, dtype=DOUBLE)
    storage, _ = lmi_proof.attempt(stage(n), T, gram(zero, zero, zero), Known(error))  # type: ignore[arg-type]
    assert storage is not None
    assert least(storage) >= 1.0 + error * (1.0 - 1e-12)
    assert float(storage.max()) <= 1.0 + error * (1.0 + 1e-4)


def test_a_sum_of_multipliers_that_was_rounded_is_raised() -> None:
    """Where the outputs see q alone, the storage matrix is diag(sum of the multipliers), 1 + 2^-54 here."""
    E = torch.tensor([[0.0, 1.0, 0.0], [0.0, 0.0, 1.0]], dtype=DOUBLE)
    two = Stage(Increments(E, torch.zeros_like(E), (0, 1)), torch.zeros(1, 2, dtype=DOUBLE), torch.arange(1), 1)
    assert two.increments.cuts
    T = torch.tensor([[1.0], [2.0**-54]], dtype=DOUBLE)
    G = torch.zeros(3, 3, dtype=DOUBLE)
    storage, _ = lmi_proof.attempt(two, T, G, ZeroSpread())  # type: ignore[arg-type]
    assert storage is not None
    assert Fraction(float(storage)) >= Fraction(1) + Fraction(2) ** -54


class ZeroSpread:
    """G is exact."""

    def times(self, v: Tensor) -> Tensor:
        """Zeros."""
        return torch.zeros_like(v)


def test_the_error_of_a_solution() -> None:
    generator = torch.Generator().manual_seed(0)
    n, m = 40, 7
    L = torch.rand(n, n, dtype=DOUBLE, generator=generator).tril()
    X = torch.rand(n, m, dtype=DOUBLE, generator=generator)
    nothing = (torch.zeros(n, dtype=DOUBLE), torch.zeros(m, dtype=DOUBLE))
    # The computed residual is zero, the real one is the rounding of the product.
    with coarse_arithmetic("nearest", "high"):
        B = L @ X
        found = lmi_proof.error_of_solution(B, L, X, *nothing)
    assert norm(B - L @ X) <= found <= 3.0 * norm(B - L @ X)
    # The computed residual is all.
    B = L @ X + 0.1
    found = lmi_proof.error_of_solution(B, L, X, *nothing)
    assert norm(B - L @ X) * (1.0 - 1e-12) <= found <= norm(B - L @ X) * (1.0 + 1e-9)
    # The error of B is all.
    E = torch.full((n, m), 0.25, dtype=DOUBLE)
    found = lmi_proof.error_of_solution(L @ X, L, X, E.sum(1), E.sum(0))
    assert norm(E) * (1.0 - 1e-12) <= found <= norm(E) * (1.0 + 1e-5)


def test_the_error_of_a_sum_with_a_square() -> None:
    generator = torch.Generator().manual_seed(0)
    X = torch.rand(60, 5, dtype=DOUBLE, generator=generator)
    one = torch.ones(5, dtype=DOUBLE)
    zero = torch.zeros(5, 5, dtype=DOUBLE)
    for worst in ("low", "high"):
        with coarse_arithmetic("nearest", worst):
            H, error = lmi_proof.sum_with_square(zero, X, one, 0.0)
        assert norm(H - X.T @ X) <= error <= 3.0 * norm(H - X.T @ X)
    # A square that is rounded away beside what it is added to, and scales that undo each other.
    for scale in (1.0, 2.0**-8, 2.0**8):
        top, root, columns = torch.eye(1, dtype=DOUBLE) / scale**2, torch.tensor([[2.0**-27]], dtype=DOUBLE), one[:1]
        H, error = lmi_proof.sum_with_square(top, root, scale * columns, 0.0)
        assert (Fraction(1) + Fraction(2) ** -54 - Fraction(float(H)) * Fraction(scale) ** 2) <= Fraction(error)
    # A sum of multipliers that is off by its share.
    _, error = lmi_proof.sum_with_square(torch.eye(5, dtype=DOUBLE), 0.0 * X, one, 2.0**-20)
    assert 2.0**-20 <= error <= 2.0**-19


@pytest.mark.parametrize("share", [0.999, 1.0, 1.001])
@pytest.mark.parametrize("margin", [0.0, 1e-4])
def test_a_bad_factor_is_no_harm(share: float, margin: float, monkeypatch) -> None:
    """``A >= L L' + (r + margin) I`` for whatever Cholesky returns."""
    monkeypatch.setattr(lmi_proof, "cholesky", lambda S: (lambda L: None if L is None else share * L)(cholesky(S)))
    n = 4
    A = torch.eye(n, dtype=DOUBLE) + 0.1
    found, _ = lmi_proof._factor(A, margin)
    assert (found is not None) or share != 1.0
    if found is not None:
        L, room = found
        assert room > 0.0
        assert least(A - L @ L.T - (room + margin) * torch.eye(n, dtype=DOUBLE)) >= -1e-14
    H = ones_like(n)
    L, eta = lmi_proof.dominating_factor(H)
    assert least(L @ L.T + eta * torch.eye(n, dtype=DOUBLE) - H) >= -1e-14


def test_a_factor_whose_square_is_rounded() -> None:
    """L is off by what makes the computed ``L L'`` look right."""
    n = 120
    A = ones_like(n)
    off = (n - 1) * COARSE_UNIT / 4.0
    for share, worst in ((1.0 + off, "low"), (1.0 - off, "high")):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(lmi_proof, "cholesky", lambda S, share=share: cholesky(S) * share)
            with coarse_arithmetic("nearest", worst, lambda a, b: a.shape == b.shape == (n, n)):
                found, _ = lmi_proof._factor(A, 0.0)
                L, eta = lmi_proof.dominating_factor(A)
        assert least(L @ L.T + eta * torch.eye(n, dtype=DOUBLE) - A) >= -1e-12
        if found is not None:
            assert least(A - found[0] @ found[0].T - found[1] * torch.eye(n, dtype=DOUBLE)) >= -1e-12


def test_the_norm_of_an_entry_with_its_products_off() -> None:
    generator = torch.Generator().manual_seed(0)
    for shape in ((60, 2), (20, 21)):
        W = torch.rand(shape, dtype=DOUBLE, generator=generator)
        H = torch.eye(shape[0], dtype=DOUBLE)
        # The norm of the last product, and its eigenvalue, as they are: their own margins would hide this one.
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(lmi_proof, "proved_operator_norm", lambda Y: plain(norm, Y))
            patch.setattr(lmi_proof, "largest_eigenvalue_up", lambda G: plain(lambda M: -least(-M), G))
            with coarse_arithmetic("nearest", "low", lambda a, b, shape=shape: b.shape == shape):
                found = lmi_proof.entry_norm_up(H, W)
        assert found >= norm(W)
        assert found <= norm(W) * (1.0 + 400.0 * COARSE_UNIT)


def plain(function, matrix: Tensor) -> float:
    """Outside of the coarse arithmetic that is in force."""
    with torch.utils._python_dispatch._disable_current_modes():
        return function(matrix)


def test_a_wide_entry_with_a_bad_factor(monkeypatch) -> None:
    monkeypatch.setattr(lmi_proof, "cholesky", lambda S: 0.99 * cholesky(S))  # type: ignore[operator]
    W = torch.rand(3, 9, dtype=DOUBLE, generator=torch.Generator().manual_seed(0))
    for H in (torch.eye(3, dtype=DOUBLE), ones_like(3), torch.diag(torch.tensor([1e-30, 1.0, 1e20], dtype=DOUBLE))):
        found = lmi_proof.entry_norm_up(H, W)
        assert found >= float(torch.linalg.eigvalsh(W.T @ H @ W)[-1]) ** 0.5 * (1.0 - 1e-14)
    monkeypatch.setattr(lmi_proof, "cholesky", cholesky)
    with pytest.raises(NumericalFailure):
        lmi_proof.entry_norm_up(-torch.eye(3, dtype=DOUBLE), W)


def test_a_power_of_two_that_underflows_rounds_up() -> None:
    for value, exponent in ((1.25, -1074), (1.0 + 2.0**-52, -1023), (3.0, -2000), (1.5, -1000)):
        found = Fraction(lmi_proof.times_power_of_two_up(value, exponent))
        exact = Fraction(value) * Fraction(2) ** exponent
        assert exact <= found <= exact + Fraction(2) ** -1074
    with pytest.raises(NumericalFailure, match="beyond float64"):
        lmi_proof.times_power_of_two_up(1.0, 1024)
