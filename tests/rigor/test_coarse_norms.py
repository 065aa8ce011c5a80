"""The proved norms in a coarse arithmetic, step by step and as a whole, against exact rationals at tolerance zero.

A margin that is left out of a proof shows here, though float64 would hide it; and so does trust in a library: wrong
eigenvalues and wrong Cholesky factors may cost accuracy, never the bound.
"""

from __future__ import annotations

import math
import random
from fractions import Fraction

import numpy as np
import pytest
import torch
from torch import Tensor

from lipbridge.errors import NumericalFailure
from lipbridge.norms import CHEAP_PAIRS
from lipbridge.norms import torus as torus_module
from lipbridge.norms.conv_geometry import Convolution
from lipbridge.norms.torus import torus
from lipbridge.rigor import convolution as rigor_convolution
from lipbridge.rigor import gram as rigor_gram
from lipbridge.rigor import matrix as rigor
from lipbridge.rigor.convolution import proved_conv_norm
from lipbridge.rigor.matrix import gram_up, largest_eigenvalue_up, magnitude_norm_up, proved_operator_norm
from lipbridge.rigor.matrix import smallest_eigenvalue_down as eigenvalue_down
from tests.support.coarse import COARSE_UNIT, coarse, coarse_arithmetic
from tests.support.exact.norms import definiteness, matrix_exceeds
from tests.support.exact.rationals import Rationals, aligned, exact, product
from tests.support.matrices import conv_matrix

#: How single operations are rounded, and on which side sums and products are off.
ARITHMETICS = [("zero", None), ("zero", "low"), ("zero", "high"), ("away", "mixed"), ("nearest", "low")]
arithmetics = pytest.mark.parametrize("arithmetic", ARITHMETICS, ids=str)
SHAPES = [(1, 1), (1, 50), (50, 1), (2, 60), (60, 2), (4, 4), (5, 9)]


def drawn(seed: int, *shape: int, signs: bool = False) -> Tensor:
    """Weights of 24 bits in (0, 1), or with both signs."""
    generator = torch.Generator().manual_seed(seed)
    W = torch.rand(*shape, dtype=torch.float64, generator=generator)
    return coarse(W - 0.5 if signs else W)


def symmetric(seed: int, n: int) -> Tensor:
    A = torch.tril(drawn(seed, n, n, signs=True))
    return A + torch.tril(A, -1).T


def least_is(matrix: Tensor | Rationals, floor: float, sign: int = 1) -> bool:
    """Whether ``sign * matrix - floor I`` is positive semidefinite, exactly."""
    A, limit, _ = aligned((exact(matrix) if isinstance(matrix, Tensor) else matrix).times(sign), abs(floor))
    return definiteness(A - int(math.copysign(limit, floor)) * np.eye(len(A), dtype=object)) >= 0


def gram(rows: Tensor) -> Rationals:
    A = exact(rows)
    return product(A, Rationals(A.ints.T, A.unit))


def complex_as_real(pair: tuple[Tensor, Tensor]) -> Tensor:
    """The real matrix ``[[Re, -Im], [Im, Re]]``, which has the complex one's norm, each singular value twice."""
    re, im = pair
    return torch.cat([torch.cat([re, -im], dim=-1), torch.cat([im, re], dim=-1)], dim=-2)


@pytest.mark.parametrize("pair", CHEAP_PAIRS)
@arithmetics
def test_norms_of_matrices(pair, arithmetic) -> None:
    for seed, shape in enumerate(SHAPES):
        W = drawn(seed, *shape, signs=seed > 4)
        with coarse_arithmetic(*arithmetic):
            bound = proved_operator_norm(W, *pair)
        assert not matrix_exceeds(exact(W), bound, *pair)
        assert matrix_exceeds(exact(W), bound * (1 - 2e-3), *pair)


@arithmetics
def test_norms_of_magnitudes(arithmetic) -> None:
    for seed, shape in enumerate([*SHAPES, (1, 4), (4, 1)]):
        A = drawn(seed, *shape, signs=True) if seed % 2 else torch.ones(shape, dtype=torch.float64)
        with coarse_arithmetic(*arithmetic):
            bound = magnitude_norm_up(A)
        assert not matrix_exceeds(exact(A.abs()), bound, 2, 2)
        assert bound <= float(A.square().sum().sqrt()) * (1 + 1e-3)


@pytest.mark.parametrize("chunk", [2, 512])
@arithmetics
def test_the_error_of_a_gram_matrix(arithmetic, chunk: int, monkeypatch) -> None:
    monkeypatch.setattr(rigor, "CHUNK", chunk)
    for seed, shape in enumerate([(1, 1), (1, 60), (3, 40), (4, 4), (2, 7)]):
        rows = drawn(seed, *shape, signs=seed == 4)
        with coarse_arithmetic(*arithmetic):
            G, error = gram_up(rows)
        assert torch.equal(G, G.T)
        assert not matrix_exceeds(gram(rows).minus(exact(G)), error, 2, 2)
        assert error <= 1e-3 * shape[1]


def test_products_that_underflow_in_a_gram_matrix() -> None:
    """Each of a thousand products is just below half of the smallest double, and lost."""
    rows = torch.full((2, 1000), math.sqrt(0.49) * 2.0**-537, dtype=torch.float64)
    G, error = gram_up(rows)
    assert not G.any()
    assert not matrix_exceeds(gram(rows), error, 2, 2)
    B = (rows[None], torch.zeros_like(rows)[None])
    (re, _), errors = rigor_gram.gram_pair(B)
    assert not re.any()
    assert not matrix_exceeds(gram(rows), float(errors[0]), 2, 2)
    assert Fraction(float(rigor_gram.squared_norm_up(B)[0])) >= sum(Fraction(v) ** 2 for v in rows.flatten().tolist())


@arithmetics
def test_smallest_eigenvalues(arithmetic) -> None:
    proofs = 0
    for seed in range(16):
        n = 1 + seed % 3 // 2
        A = symmetric(seed, n) + torch.eye(n, dtype=torch.float64) * (seed % 2)
        A = coarse(torch.tril(A)) + coarse(torch.tril(A, -1)).T
        low = float(torch.linalg.eigvalsh(A)[0])
        for distance in (1e-3, 0.7 + seed / 100):
            with coarse_arithmetic(*arithmetic):
                floor = eigenvalue_down(A, low - distance)
            if floor is not None:
                proofs += 1
                assert least_is(A, floor)
                assert floor >= low - 1.01 * distance - 1e-4
    assert proofs >= 30


def test_smallest_eigenvalues_of_subnormal_matrices() -> None:
    """4 - sqrt(2) and the like are no doubles there: the bound goes down to the next."""
    for entries in ((3, 1, 5), (7, 3, 9), (20, 9, 31), (25, 7, 11), (19, 5, 30), (6, 4, 17)):
        a, b, c = (value * 2.0**-1074 for value in entries)
        A = torch.tensor([[a, b], [b, c]], dtype=torch.float64)
        low = float(
            torch.linalg.eigvalsh(torch.tensor([[entries[0], entries[1]], [entries[1], entries[2]]]).double())[0]
        )
        for shift in range(math.ceil(low)):
            floor = eigenvalue_down(A, 2.0**-1074 * shift)
            assert floor is not None
            assert least_is(A, floor)


@arithmetics
def test_largest_eigenvalues(arithmetic) -> None:
    for seed in range(12):
        A = symmetric(seed, 1 + seed % 4) if seed % 2 else drawn(seed, 1, 1) + 1.0
        with coarse_arithmetic(*arithmetic):
            bound = largest_eigenvalue_up(A)
        assert least_is(A, -bound, -1)
        assert bound <= float(torch.linalg.eigvalsh(A)[-1]) + 2e-4


@pytest.fixture
def wrong_library(monkeypatch) -> None:
    """Eigenvalues 5e-7 low, and factors of the matrix with 1e-6 more on its diagonal: they exist where none should."""
    eigenvalues, cholesky = rigor.eigenvalues, rigor.cholesky
    monkeypatch.setattr(rigor, "eigenvalues", lambda A: eigenvalues(A) - 5e-7)
    monkeypatch.setattr(rigor, "cholesky", lambda S: cholesky(S + 1e-6 * torch.eye(len(S), dtype=torch.float64)))
    factors = torch.linalg.cholesky_ex
    values = rigor_gram._eigenvalues
    monkeypatch.setattr(
        torch.linalg, "cholesky_ex", lambda S: factors(S + 1e-6 * torch.eye(S.shape[-1], dtype=torch.float64))
    )
    monkeypatch.setattr(rigor_gram, "_eigenvalues", lambda A: values(A) - 5e-7)


@pytest.mark.usefixtures("wrong_library")
def test_no_library_is_trusted() -> None:
    for seed in range(8):
        W = drawn(seed, 3, 4, signs=bool(seed % 2))
        bound = proved_operator_norm(W)
        assert not matrix_exceeds(exact(W), bound, 2, 2)
        assert matrix_exceeds(exact(W), bound - 1e-4, 2, 2)
        A = symmetric(seed, 4)
        low = float(torch.linalg.eigvalsh(A)[0])
        floor = eigenvalue_down(A, low + 5e-7)
        assert floor is not None
        assert least_is(A, floor)
        B = tuple(drawn(seed + k, 1, 3, 3, signs=True) for k in (0, 7))
        G, _ = rigor_gram.gram_pair(B)
        known = float(torch.linalg.eigvalsh(torch.complex(*G))[0, -1])
        value, _ = rigor_gram._cholesky_up(G, known - 5e-7)
        assert least_is(complex_as_real((G[0][0], G[1][0])), -value, -1)
        value, _ = rigor_gram.largest_eigenvalue_of_batch_up(G, 0.0)
        assert least_is(complex_as_real((G[0][0], G[1][0])), -value, -1)


@pytest.mark.usefixtures("wrong_library")
def test_eigenvalues_between_subnormal_numbers() -> None:
    """A shift just above the eigenvalue, in units of 2^-1074: the proved floor is below, and has to be rounded down."""
    drawn, tried = random.Random(0), 0
    while tried < 5:
        a, b, c = (drawn.randint(2**16, 2**17) for _ in range(3))
        A = torch.tensor([[a, b], [b, c]], dtype=torch.float64)
        low = float(torch.linalg.eigvalsh(A)[0])
        shift = math.ceil(low)
        if 1e-3 < shift - low < 0.05:
            tried += 1
            subnormal = A * 2.0**-1074
            floor = eigenvalue_down(subnormal, shift * 2.0**-1074)
            assert floor is not None
            assert least_is(subnormal, floor)


def test_a_gram_matrix_off_by_all_that_it_says(monkeypatch, wrong_library) -> None:
    """The factor is of a matrix 1e-6 larger, and the product's error hides it from the residual."""
    exact_gram, exact_pair = rigor.gram_up, rigor_gram.gram_pair
    size = 1e-6 / 4  # of a factor that is divided by two

    def gram_off(rows: Tensor) -> tuple[Tensor, float]:
        G, error = exact_gram(rows)
        return G - size * torch.eye(len(G), dtype=torch.float64), error + size * 1.001

    def pair_off(B: tuple[Tensor, Tensor]) -> tuple[tuple[Tensor, Tensor], Tensor]:
        (re, im), error = exact_pair(B)
        return (re - 1e-6 * torch.eye(re.shape[-1], dtype=torch.float64), im), error + 1.001e-6

    for seed in range(6):
        A = symmetric(seed, 3)
        A = A / A.abs().max() * 0.75
        low = float(torch.linalg.eigvalsh(A)[0])
        with monkeypatch.context() as patch:
            patch.setattr(rigor, "gram_up", gram_off)
            floor = eigenvalue_down(A, low + 5e-7)
        assert floor is not None
        assert least_is(A, floor)
        B = tuple(drawn(seed + k, 1, 3, 3, signs=True) for k in (0, 7))
        G, _ = exact_pair(B)
        known = float(torch.linalg.eigvalsh(torch.complex(*G))[0, -1])
        with monkeypatch.context() as patch:
            patch.setattr(rigor_gram, "gram_pair", pair_off)
            value, _ = rigor_gram._cholesky_up(G, known - 5e-7)
        assert least_is(complex_as_real((G[0][0], G[1][0])), -value, -1)


def test_a_square_off_by_all_that_it_says() -> None:
    """(H / 8)^2 is 4 I, computed as zero with an error of 4: the eigenvalues of H are 16."""
    zero = torch.zeros(1, 2, 2, dtype=torch.float64)
    error, scale = (torch.tensor([value], dtype=torch.float64) for value in (4.0, 8.0))
    assert float(rigor_gram.bounds_of_iterates((zero, zero), [error], [scale])) >= 16.0


@arithmetics
def test_the_steps_of_gram_iteration(arithmetic) -> None:
    for seed in range(6):
        m, n = [(1, 1), (1, 30), (2, 12), (3, 3), (2, 2), (4, 1)][seed]
        zero = torch.zeros(2, m, n, dtype=torch.float64)
        B = (drawn(seed, 2, m, n), drawn(seed + 9, 2, m, n, signs=True) if seed % 2 else zero)
        with coarse_arithmetic(*arithmetic):
            G, errors = rigor_gram.gram_pair(B)
            sizes = rigor_gram.squared_norm_up(B)
            square, square_errors, scales = rigor_gram.scaled_square(G)
            once = rigor_gram.bounds_of_iterates(square, [square_errors], [scales])
            none = rigor_gram.bounds_of_iterates(G, [], [])
            sharp, _ = rigor_gram._cholesky_up(G, 0.0)
            whole, _ = rigor_gram.largest_eigenvalue_of_batch_up(G, 0.0)
        for k in range(2):
            real, symbol = complex_as_real((B[0][k], B[1][k])), complex_as_real((G[0][k], G[1][k]))
            assert not matrix_exceeds(gram(real).minus(exact(symbol)), float(errors[k]), 2, 2)
            squares = [Fraction(v) ** 2 for part in B for v in part[k].flatten().tolist()]
            assert sum(squares) <= Fraction(float(sizes[k])) <= sum(squares) * Fraction(101, 100)
            scaled = gram(symbol).times(1 / Fraction(float(scales[k])) ** 2)
            held = complex_as_real((square[0][k], square[1][k]))
            assert not matrix_exceeds(scaled.minus(exact(held)), float(square_errors[k]), 2, 2)
            for bound in (float(once[k]), float(none[k]), sharp, whole):
                assert least_is(symbol, -bound, -1)


#: One pixel and many taps that merge on it; tori that are exact; two axes and strides; two groups.
GEOMETRIES = [
    (Convolution((1, 1), padding=((9, 9),), padding_mode="replicate"), (1, 1, 19)),
    (Convolution((1, 2), padding=((2, 2),), padding_mode="circular"), (1, 1, 5)),
    (Convolution((2, 3), padding=((2, 2),), padding_mode="reflect"), (2, 2, 5)),
    (Convolution((1, 3), padding=((1, 1),), padding_mode="circular"), (1, 1, 3)),
    (Convolution((12, 2), padding=((1, 0),), padding_mode="circular"), (1, 12, 2)),
    (Convolution((1, 4), padding=((6, 6),)), (1, 1, 13)),
    (Convolution((1, 2, 2), padding=((1, 1), (1, 0)), padding_mode="circular"), (2, 1, 3, 2)),
    (Convolution((1, 5), (2,), ((2, 0),), padding_mode="replicate"), (1, 1, 3)),  # the shortest column adds no taps
    (Convolution((2, 4, 3), (2, 1), ((1, 0), (0, 1)), groups=2), (2, 1, 2, 2)),
]


@pytest.mark.parametrize("case", range(len(GEOMETRIES)))
@arithmetics
def test_norms_of_convolutions(case: int, arithmetic, monkeypatch) -> None:
    """By the matrix, as small ones are, and by the torus."""
    geometry, shape = GEOMETRIES[case]
    for seed in range(2):
        W = drawn(seed, *shape, signs=seed == 1)
        A = conv_matrix(W, geometry)
        monkeypatch.setattr(torus_module, "ENTRIES", 1 if seed else 2**22)  # one frequency at a time, and all
        exponent = math.frexp(float(W.abs().max()))[1]
        with coarse_arithmetic(*arithmetic):
            bounds = {pair: proved_conv_norm(W, geometry, *pair) for pair in CHEAP_PAIRS}
            around = rigor_convolution._torus_up(rigor.times_power_of_two(W, -exponent), torus(geometry, W))
        for pair, bound in bounds.items():
            assert not matrix_exceeds(A, bound, *pair)
        assert not matrix_exceeds(A, math.ldexp(around, exponent), 2, 2)


def test_cancelling_taps_in_one_place() -> None:
    """Taps that add up on one pixel, ones beside 2^-53, of both signs: the sum's rounding is that of magnitudes."""
    u = 2.0**-53
    for taps in ([1.0, u, u, u, u], [1.0, -1.0, u, u * 1.5, -u], [1.0, u, -1.0, u, u / 3]):
        W = torch.tensor(taps, dtype=torch.float64).reshape(1, 1, -1)
        geometry = Convolution((1, 1), padding=((2, 2),), padding_mode="replicate")
        for pair in CHEAP_PAIRS:
            assert not matrix_exceeds(conv_matrix(W, geometry), proved_conv_norm(W, geometry, *pair), *pair)


@pytest.mark.parametrize("pair", CHEAP_PAIRS)
def test_swamped_weights(pair) -> None:
    """A few ones and thousands of 2^-27, whose squares are lost one by one: in rows, in columns, beside each other."""
    small = 2.0**-27
    blocks = torch.full((4, 2048), small, dtype=torch.float64)
    blocks[:, ::512] = 1.0
    row = torch.full((1, 384), small, dtype=torch.float64)
    row[0, ::128] = 1.0
    for W in (row, row.T, blocks, blocks.T):
        bound = proved_operator_norm(W.contiguous(), *pair)
        if pair == (2, 2) and min(W.shape) > 1:
            v = torch.ones(1, 4, dtype=torch.float64)
            rows = W if W.shape[0] == 4 else W.T
            image = product(exact(v), exact(rows))  # all rows are alike: it is a singular vector
            assert 4 * Fraction(bound) ** 2 >= sum(x * x for x in image.fractions())
        else:
            assert not matrix_exceeds(exact(W), bound, *pair)


@pytest.mark.parametrize("worst", ["low", "high"])
@pytest.mark.parametrize("size", [2.0**-10, 1.0, 2.0**10])
def test_the_error_of_a_factor_s_square_is_of_its_size(size: float, worst: str) -> None:
    L = size * torch.ones(40, 40, dtype=torch.float64)
    with coarse_arithmetic("nearest", worst):
        product, error = rigor._lower_gram(L)
    off = float(torch.linalg.matrix_norm(product - L @ L.T, 2))
    assert 0.0 < off <= error <= 10.0 * off


def test_the_rounding_of_a_factor_s_square_is_no_part_of_the_residual(monkeypatch) -> None:
    """L L' has the eigenvalue 0; rounded down it is A, so that no residual is seen, and A's eigenvalue is below."""
    L = torch.zeros(60, 60, dtype=torch.float64)
    L[:2, 0] = torch.tensor([1.0, -1.0])
    monkeypatch.setattr(rigor, "cholesky", lambda S: L)
    with coarse_arithmetic("nearest", "low"):
        A, _ = rigor._lower_gram(L)
        found = rigor._scaled_eigenvalue_down(A, 0.0)
    assert found is not None
    assert found <= float(torch.linalg.eigvalsh(A)[0]) < -50.0 * COARSE_UNIT / 2
    assert found >= -1000.0 * COARSE_UNIT


def test_angles_of_several_axes_are_added() -> None:
    geometry = Convolution((1, 5, 4), padding=((1, 1), (1, 0)), padding_mode="circular")
    held = torus(geometry, torch.ones(1, 1, 3, 2, dtype=torch.float64))
    cosines, sines = rigor_convolution._twiddles(held, 0, held.frequency_count)
    turns = held.turns(0, held.frequency_count, torch.device("cpu"))
    assert len(turns) == 2
    angles = sum(2.0 * math.pi * t.double() / axis.frequencies for t, axis in zip(turns, held.axes, strict=True))
    torch.testing.assert_close(
        torch.complex(cosines, sines), torch.polar(torch.ones_like(angles), angles), atol=1e-14, rtol=0.0
    )


@pytest.mark.parametrize("channels", [1, 16])
def test_the_rounding_of_a_symbol_s_sum_over_the_taps_counts(channels: int) -> None:
    """Ones all around a circle: the symbol at frequency zero is their sum, which comes out low."""
    taps = 256
    W = torch.ones(1, channels, taps, dtype=torch.float64)
    held = torus(Convolution((channels, taps), padding=((128, 127),), padding_mode="circular"), W)
    with coarse_arithmetic("nearest", "low", lambda a, b: a.shape[-1] == taps == len(b)):
        found = rigor_convolution._torus_up(W, held)
    assert taps * math.sqrt(channels) <= found <= taps * math.sqrt(channels) * (1.0 + 4000.0 * COARSE_UNIT)


def test_a_gram_matrix_of_symbols_off_by_all_that_it_says(monkeypatch) -> None:
    """[1, 1] on three places has the symbol 2 at frequency zero, and 1 at the others, which another part holds."""
    plain = rigor_convolution.gram_pair

    def off(B: tuple[Tensor, Tensor]) -> tuple[tuple[Tensor, Tensor], Tensor]:
        (re, im), error = plain(B)
        less = torch.where(re > 2.0, 3.0, 0.0)
        return (re - less, im), error + less.flatten(1).amax(1)

    monkeypatch.setattr(rigor_convolution, "gram_pair", off)
    W = torch.ones(1, 1, 2, dtype=torch.float64)
    held = torus(Convolution((1, 3), padding=((1, 0),), padding_mode="circular"), W)
    for entries in (1, 2**22):
        monkeypatch.setattr(torus_module, "ENTRIES", entries)
        assert 2.0 <= rigor_convolution._torus_up(W, held) <= 2.1


def test_the_worst_factor_of_a_batch_decides(monkeypatch) -> None:
    """Of two matrices the first one's factor is of a matrix 1e-6 larger, and the mark is below its eigenvalue."""
    plain = torch.linalg.cholesky_ex

    def one_wrong(S: Tensor) -> tuple[Tensor, Tensor]:
        more = torch.zeros(len(S), 1, 1, dtype=torch.float64)
        more[0] = 1e-6
        return plain(S + more * torch.eye(S.shape[-1]))

    monkeypatch.setattr(torch.linalg, "cholesky_ex", one_wrong)
    G = torch.diag_embed(torch.tensor([[1.0, 0.5], [0.25, 0.125]], dtype=torch.float64))
    value, _ = rigor_gram._cholesky_up((G, torch.zeros_like(G)), 1.0 - 5e-7)
    assert 1.0 <= value <= 1.0 + 1e-5


@pytest.mark.parametrize("value", [math.inf, -math.inf, math.nan])
def test_kernels_that_are_no_numbers_have_no_norm(value: float) -> None:
    W = torch.ones(1, 1, 3, dtype=torch.float64)
    W[0, 0, 1] = value
    for pair in CHEAP_PAIRS:
        with pytest.raises(NumericalFailure, match="NaN or infinite"):
            proved_conv_norm(W, Convolution((1, 5), padding=((1, 1),)), *pair)
