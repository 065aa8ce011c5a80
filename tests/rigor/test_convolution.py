"""The proved norm of a convolution: never below the exact one, close to it or to its torus, or an error."""

from __future__ import annotations

import math
from fractions import Fraction

import mpmath
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lipbridge.errors import InvalidArgument, NumericalFailure, UnsupportedProblem
from lipbridge.norms import CHEAP_PAIRS
from lipbridge.norms.conv_geometry import Convolution
from lipbridge.norms.convolution import circular_norm, conv_operator_norm
from lipbridge.norms.torus import torus
from lipbridge.rigor import convolution as rigor_convolution
from lipbridge.rigor import gram as rigor_gram
from lipbridge.rigor.convolution import proved_conv_norm
from lipbridge.rigor.gram import gram_pair, largest_eigenvalue_of_batch_up
from lipbridge.rigor.matrix import times_power_of_two
from lipbridge.rigor.roots import unit_roots
from tests.support.convolutions import MODES, convolutions
from tests.support.families import FLAVOURS, matrix
from tests.support.matrices import exact_norm_is_at_most


def exact_matrix(weight: torch.Tensor, geometry: Convolution) -> list[list[Fraction]]:
    """The operator by its definition, tap by tap, in rational numbers."""
    out, *space = geometry.output_shape(weight)
    axes = geometry.geometry(tuple(weight.shape[2:]))
    rows, columns = weight.shape[0] // geometry.groups, weight.shape[1]
    A: dict[tuple, Fraction] = {}
    for o in range(out):
        for position in torch.cartesian_prod(*[torch.arange(n) for n in space]).reshape(-1, len(space)).tolist():
            for taps in (
                torch.cartesian_prod(*[torch.arange(axis.kernel) for axis in axes]).reshape(-1, len(axes)).tolist()
            ):
                source = [
                    axis.source(i * axis.stride - axis.padding[0] + j * axis.dilation)
                    for axis, i, j in zip(axes, position, taps, strict=True)
                ]
                if None in source:
                    continue
                for c in range(columns):
                    key = ((o, *position), (o // rows * columns + c, *source))
                    A[key] = A.get(key, Fraction(0)) + Fraction(float(weight[(o, c, *taps)]))
    lines = sorted({row for row, _ in A})
    inputs = sorted({column for _, column in A})
    return [[A.get((row, column), Fraction(0)) for column in inputs] for row in lines]


def leading_quotient_is_at_most(rows: list[list[Fraction]], bound: float) -> bool:
    """``|A v| <= bound |v|`` exactly, for the leading singular vector v as floating point finds it."""
    size = max((abs(x) for row in rows for x in row), default=Fraction(0))
    if not size:
        return True
    floating = torch.tensor([[float(x / size) for x in row] for row in rows], dtype=torch.float64)
    v = [Fraction(float(x)) for x in torch.linalg.svd(floating)[2][0]]
    image = [sum(a * b for a, b in zip(row, v, strict=True)) for row in rows]
    return sum(x * x for x in image) <= Fraction(bound) ** 2 * sum(x * x for x in v)


def torus_bound(weight: torch.Tensor, geometry: Convolution) -> float:
    """The bound by the torus, whichever way is chosen for this size."""
    if not bool(weight.any()):
        return 0.0
    exponent = math.frexp(float(weight.abs().max()))[1]
    value = rigor_convolution._torus_up(times_power_of_two(weight, -exponent), torus(geometry, weight))
    return math.ldexp(value, exponent)


@settings(max_examples=80)
@given(convolutions())
def test_never_below_the_value_and_close(case) -> None:
    weight, geometry = case
    for p, q in CHEAP_PAIRS:
        value = conv_operator_norm(weight, geometry, p, q)
        bound = proved_conv_norm(weight, geometry, p, q)
        assert value * (1 - 1e-12) <= bound
        assert bound <= value * (1 + 1e-9) + float(weight.abs().max()) * 1e-13
    held = torus(geometry, weight)
    circular = circular_norm(weight, geometry) * math.sqrt(held.padding_norm_squared)
    low = max(circular * (1 - 1e-13), conv_operator_norm(weight, geometry) * (1 - 1e-12))
    assert low <= torus_bound(weight, geometry) <= circular * (1 + 1e-9)


@settings(max_examples=40)
@given(convolutions())
def test_never_below_in_rational_arithmetic(case) -> None:
    weight, geometry = case
    if weight.numel() > 200 or math.prod(geometry.input_shape) > 60:
        weight, geometry = weight[: geometry.groups], geometry
    rows = exact_matrix(weight, geometry)
    assert leading_quotient_is_at_most(rows, proved_conv_norm(weight, geometry))
    assert leading_quotient_is_at_most(rows, torus_bound(weight, geometry))
    sums = [sum(abs(x) for x in row) for row in rows]
    assert max(sums, default=0) <= Fraction(proved_conv_norm(weight, geometry, "inf"))
    columns = [sum(abs(x) for x in column) for column in zip(*rows, strict=True)]
    assert max(columns, default=0) <= Fraction(proved_conv_norm(weight, geometry, 1))


@pytest.mark.slow
@settings(max_examples=1000)
@given(convolutions(), st.sampled_from([1e-300, 1e-200, 1e-20, 1.0, 1e100]))
def test_a_thousand_kernels_of_any_kind(case, scale: float) -> None:
    weight, geometry = case
    if float(weight.abs().max()) > 1e50:
        scale = 1.0
    for p, q in CHEAP_PAIRS:
        value = conv_operator_norm(weight * scale, geometry, p, q)
        assert proved_conv_norm(weight * scale, geometry, p, q) >= value * (1 - 1e-12)
    assert torus_bound(weight * scale, geometry) >= conv_operator_norm(weight * scale, geometry) * (1 - 1e-12)


@pytest.mark.parametrize(
    "shape", [(64, 64, 3, 16), (3, 64, 7, 32), (32, 16, 5, 16), (128, 128, 1, 8), (72, 96, 3, 8), (96, 1, 3, 24)]
)
def test_close_to_the_circular_norm_at_size(shape) -> None:
    outputs, inputs, kernel, size = shape
    weight = torch.randn(outputs, inputs, kernel, kernel, generator=torch.Generator().manual_seed(1))
    groups = outputs if inputs == 1 else 1
    pad = ((kernel // 2, kernel // 2),) * 2
    geometry = Convolution((inputs * groups, size, size), padding=pad, groups=groups, padding_mode="circular")
    exact = circular_norm(weight, geometry)
    assert exact * (1 - 1e-13) <= proved_conv_norm(weight, geometry) <= exact * (1 + 1e-9)


def test_flat_spectrum() -> None:
    """An orthogonal convolution, where Gram iteration is at its slowest and every frequency holds the maximum."""
    Q = matrix(48, 48, "orthogonal", torch.Generator().manual_seed(2))
    weight = torch.zeros(48, 48, 3, 3, dtype=torch.float64)
    weight[:, :, 1, 1] = Q
    geometry = Convolution((48, 24, 24), padding=((1, 1), (1, 1)))
    assert 1 - 1e-15 <= proved_conv_norm(weight, geometry) <= 1 + 1e-9


def test_average_pooling_is_exact() -> None:
    weight = torch.full((512, 1, 2, 2), 0.25)
    geometry = Convolution((512, 16, 16), (2, 2), groups=512)
    assert 0.5 <= proved_conv_norm(weight, geometry) <= 0.5 * (1 + 1e-12)
    assert proved_conv_norm(weight, geometry, "inf") == pytest.approx(1.0, rel=1e-14)


@pytest.mark.parametrize("pair", CHEAP_PAIRS)
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("scale", [1e-310, 1e-200, 1e150, 1e300])
def test_any_scale(pair, mode: str, scale: float, monkeypatch) -> None:
    weight = torch.randn(4, 3, 3, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(3)) / 8
    geometry = Convolution((3, 6, 5), padding=((2, 1), (1, 1)), padding_mode=mode)
    for operations in (rigor_convolution.OPERATIONS, 0.0):  # by the matrix, and by the torus
        monkeypatch.setattr(rigor_convolution, "OPERATIONS", operations)
        bound, plain = proved_conv_norm(weight * scale, geometry, *pair), proved_conv_norm(weight, geometry, *pair)
        assert bound == pytest.approx(plain * scale, rel=1e-9)
        if mode == "zeros":
            assert pair == (2, 2) or exact_norm_is_at_most(geometry.matrix(weight * scale), *pair, bound)


@pytest.mark.parametrize("pair", CHEAP_PAIRS)
def test_zero_one_by_one_nan_and_overflow(pair) -> None:
    geometry = Convolution((2, 6), padding=((1, 1),))
    assert proved_conv_norm(torch.zeros(3, 2, 3), geometry, *pair) == 0.0
    assert proved_conv_norm(
        torch.full((1, 1, 1), -0.3, dtype=torch.float64), Convolution((1, 1)), *pair
    ) == pytest.approx(0.3)
    for bad in (math.nan, math.inf):
        with pytest.raises(NumericalFailure):
            proved_conv_norm(torch.full((3, 2, 3), bad), geometry, *pair)
    if pair != (1, "inf"):
        with pytest.raises(NumericalFailure):
            proved_conv_norm(torch.full((3, 2, 3), 1.7e308, dtype=torch.float64), geometry, *pair)


def test_overflow_on_the_torus(monkeypatch) -> None:
    monkeypatch.setattr(rigor_convolution, "OPERATIONS", 0.0)
    with pytest.raises(NumericalFailure):
        proved_conv_norm(torch.full((3, 2, 3), 1.7e308, dtype=torch.float64), Convolution((2, 6), padding=((1, 1),)))


def test_arguments() -> None:
    geometry = Convolution((2, 6))
    with pytest.raises(UnsupportedProblem, match="NP-hard"):
        proved_conv_norm(torch.ones(1, 2, 3), geometry, "inf", 1)
    with pytest.raises(InvalidArgument):
        proved_conv_norm(torch.ones(1, 3, 3), geometry)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_low_precision_kernels_are_read_exactly(dtype: torch.dtype) -> None:
    weight = torch.randn(4, 3, 3).to(dtype)
    geometry = Convolution((3, 9), padding=((1, 1),))
    assert proved_conv_norm(weight, geometry) == proved_conv_norm(weight.double(), geometry)
    assert leading_quotient_is_at_most(exact_matrix(weight, geometry), proved_conv_norm(weight, geometry))


def test_roots_of_unity_against_fifty_digits() -> None:
    for count in (1, 2, 3, 4, 7, 33, 64, 225):
        with mpmath.workdps(50):
            for m, (c, s) in enumerate(zip(*unit_roots(count), strict=True)):
                angle = 2 * mpmath.pi * m / count
                error = max(
                    abs(mpmath.mpf(float(c)) - mpmath.cos(angle)), abs(mpmath.mpf(float(s)) - mpmath.sin(angle))
                )
                assert error <= mpmath.mpf(2) ** -54 * (1 + mpmath.mpf(2) ** -90)


@settings(max_examples=25)
@given(st.integers(1, 4), st.integers(1, 5), st.sampled_from(FLAVOURS), st.integers(0, 10**6), st.integers(0, 5))
def test_eigenvalues_of_a_batch_against_fifty_digits(m: int, n: int, flavour: str, seed: int, squarings: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    re, im = (torch.stack([matrix(m, n, flavour, generator) for _ in range(3)]) for _ in range(2))
    size = max(float(re.abs().max()), float(im.abs().max()), 1e-300)
    B = (re / size, im / size)
    G, errors = gram_pair(B)
    with pytest.MonkeyPatch.context() as patch, mpmath.workdps(50):
        patch.setattr(rigor_gram, "SQUARINGS", squarings)
        bound, seen = largest_eigenvalue_of_batch_up(G, 0.0)
        tops = []
        for k in range(3):
            entries = [[mpmath.mpc(float(B[0][k, i, j]), float(B[1][k, i, j])) for j in range(n)] for i in range(m)]
            exact = mpmath.matrix(entries) * mpmath.matrix(entries).H
            off = exact - mpmath.matrix(
                [[mpmath.mpc(float(G[0][k, i, j]), float(G[1][k, i, j])) for j in range(m)] for i in range(m)]
            )
            assert mpmath.mnorm(off, "f") <= mpmath.mpf(float(errors[k]))  # at least the spectral norm
            values = mpmath.eighe(exact - off, eigvals_only=True)
            tops.append(max(values))
    assert mpmath.mpf(bound) >= max(tops)
    assert bound <= float(max(tops)) * (1 + 1e-8) + 1e-13
    assert seen <= float(max(tops)) * (1 + 1e-12) + 1e-13


@settings(max_examples=30)
@given(st.integers(2, 6), st.integers(1, 6), st.integers(0, 10**6))
def test_gram_iteration_alone_is_a_bound(n: int, squarings: int, seed: int) -> None:
    """Without the Cholesky test: each squaring's rounding is proved, and n^(1/2^(squarings + 1)) is the slack."""
    re, im = (
        torch.randn(2, n, n, dtype=torch.float64, generator=torch.Generator().manual_seed(seed + k)) for k in (0, 1)
    )
    (real, imaginary), _ = gram_pair((re / 8, im / 8))
    H, errors, scales = (real, imaginary), [], []
    for _ in range(squarings):
        H, error, scale = rigor_gram.scaled_square(H)
        errors.append(error)
        scales.append(scale)
    bounds = rigor_gram.bounds_of_iterates(H, errors, scales)
    exact = torch.linalg.eigvalsh(torch.complex(real, imaginary))[:, -1]
    assert bool((bounds >= exact * (1 - 1e-15)).all())
    assert bool((bounds <= exact * n ** (0.5 ** (squarings + 1)) * (1 + 1e-12)).all())


def test_tiny_and_huge_blocks_beside_each_other() -> None:
    """Blocks far below the others are dropped, not overflowed; NaN is an error."""
    A = (
        torch.randn(3, 4, 4, dtype=torch.float64)
        * torch.tensor([1.0, 1e-130, 1e-160], dtype=torch.float64)[:, None, None]
    )
    G, _ = gram_pair((A, torch.zeros_like(A)))
    exact = float(torch.linalg.eigvalsh(G[0])[:, -1].max())
    assert exact * (1 - 1e-14) <= largest_eigenvalue_of_batch_up(G, 0.0)[0] <= exact * (1 + 1e-9)
    small = (G[0][1:], G[1][1:])
    assert largest_eigenvalue_of_batch_up(small, 0.0)[0] >= float(torch.linalg.eigvalsh(small[0])[:, -1].max())
    with pytest.raises(NumericalFailure):
        largest_eigenvalue_of_batch_up((G[0] * math.nan, G[1]), 0.0)
