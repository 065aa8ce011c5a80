"""Products of matrices that are known up to an error: compared with exact rationals, at tolerance zero."""

from __future__ import annotations

from fractions import Fraction
from itertools import product

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from lipbridge.errors import NumericalFailure
from lipbridge.rounding.uncertain import Uncertain, _product_up, composed, image, known, plus
from tests.support.uncertain import exact, misses, times

TINY = 2.0**-1074


def entries(seed: int, kind: str, *shape: int) -> Tensor:
    """Numbers of one kind: ordinary, of all sizes, about to underflow, powers of two, selections."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(*shape, generator=generator, dtype=torch.float64)
    power = torch.randint(-8, 8, shape, generator=generator).double()
    zeros = torch.rand(*shape, generator=generator) < 0.3
    kinds = {
        "ordinary": x,
        "sizes": x * torch.exp2(power * 60.0),
        "underflow": x * 2.0**-530,
        "subnormal": x * 2.0**-1030,
        "powers": torch.exp2(power),
        "selection": torch.where(x > 0, 1.0, -1.0).double(),
    }
    return torch.where(zeros, 0.0, kinds[kind])


def uncertain(seed: int, kind: str, *shape: int, off: bool) -> Uncertain:
    value = entries(seed, kind, *shape)
    return Uncertain(value, entries(seed + 1, kind, *shape).abs() * 2.0**-40 if off else None)


KINDS = st.sampled_from(["ordinary", "sizes", "underflow", "subnormal", "powers", "selection"])


@settings(max_examples=150)
@given(
    st.integers(0, 10**6),
    KINDS,
    KINDS,
    st.booleans(),
    st.booleans(),
    st.sampled_from(["full", "left", "right", "both"]),
)
def test_a_product_encloses_the_exact_one(seed: int, a: str, b: str, off: bool, other: bool, diagonal: str) -> None:
    A = uncertain(seed, a, *((4,) if diagonal in ("left", "both") else (3, 4)), off=off)
    B = uncertain(seed + 7, b, *((4,) if diagonal in ("right", "both") else (4, 3)), off=other)
    found = composed(A, B)
    for sides in product((-1, 0, 1), repeat=2):
        assert max(misses(found, times(exact(A, sides[0]), exact(B, sides[1])))) <= 0
    column = image(A, Uncertain(B.value.flatten()[:4]))
    assert column is not None
    truth = times(exact(A, 1), [[Fraction(v)] for v in B.value.flatten()[:4].tolist()])
    total = plus(column, Uncertain(torch.ones(len(truth), dtype=torch.float64) / 3.0))
    summed = [[row[0] + Fraction(1.0 / 3.0)] for row in truth]
    as_column = Uncertain(total.value[:, None], None if total.error is None else total.error[:, None])
    assert max(misses(as_column, summed)) <= 0


def test_the_error_is_needed_and_not_larger_than_the_products() -> None:
    A, B = uncertain(0, "ordinary", 5, 6, off=False), uncertain(1, "ordinary", 6, 5, off=False)
    found = composed(A, B)
    assert max(misses(Uncertain(found.value), times(exact(A, 0), exact(B, 0)))) > 0
    assert found.error is not None
    assert bool((found.error <= 8 * 2.0**-53 * (A.value.abs() @ B.value.abs())).all())


def test_selections_and_powers_of_two_round_nothing() -> None:
    W = entries(0, "ordinary", 4, 4)
    for scale in (torch.ones(4), -torch.ones(4), torch.tensor([0.5, 2.0, -4.0, 1.0])):
        assert composed(Uncertain(W), Uncertain(scale.double())).error is None
        assert composed(Uncertain(scale.double()), Uncertain(W)).error is None
    turned = torch.eye(4, dtype=torch.float64)[[2, 0, 3, 1]]
    assert composed(Uncertain(turned), Uncertain(W)).error is None
    assert composed(Uncertain(W), Uncertain(turned)).error is None


def test_a_product_that_underflows_is_neither_exact_nor_zero() -> None:
    for factor in (1.3e-162, 2.0**-540):  # the second is a power of two
        small = torch.tensor([[2.0**-538]], dtype=torch.float64)
        found = composed(Uncertain(torch.tensor([factor], dtype=torch.float64)), Uncertain(small))
        assert found.error is not None
        assert float(found.error) >= TINY
        assert max(misses(found, [[Fraction(factor) * Fraction(2) ** -538]])) <= 0


def test_numbers_that_are_no_doubles() -> None:
    for number in (Fraction(1, 3), Fraction(5, 2), Fraction(0), Fraction(1, 3) * Fraction(2) ** -1070):
        nearest, error = known(number)
        assert abs(Fraction(nearest) - number) <= Fraction(error)
        assert (error == 0.0) == (Fraction(nearest) == number)
    with pytest.raises(NumericalFailure, match="beyond float64"):
        known(Fraction(10) ** 400)


def test_products_of_errors_that_underflow_are_no_zeros() -> None:
    small = torch.full((2, 2), 2.0**-600, dtype=torch.float64)
    found = _product_up(small, small)
    assert bool((found > 0).all())
    large = torch.full((2, 2), 2.0**-500, dtype=torch.float64)
    assert Fraction(float(_product_up(large, large)[0, 0])) >= Fraction(2) ** -999
