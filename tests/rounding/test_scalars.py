"""Scalars round outward: checked against exact rationals."""

from __future__ import annotations

import math
import random
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lipbridge.errors import NumericalFailure
from lipbridge.rounding.scalars import UNIT, add_up, down, gamma, mul_up, root_sum_of_powers_up, sqrt_up, up

positive = st.floats(min_value=0.0, max_value=1e100, allow_nan=False)


@given(st.lists(positive, min_size=1, max_size=5))
def test_sums_and_products(values: list[float]) -> None:
    assert Fraction(add_up(*values)) >= sum(map(Fraction, values))
    product = math.prod(map(Fraction, values))
    if product < Fraction(10) ** 300:
        assert Fraction(mul_up(*values)) >= product


@given(positive)
def test_roots(x: float) -> None:
    assert Fraction(sqrt_up(x)) ** 2 >= Fraction(x)


@given(st.lists(st.floats(-1e150, 1e150, allow_nan=False), min_size=1, max_size=6))
def test_vector_norms(values: list[float]) -> None:
    exact = [abs(Fraction(value)) for value in values]
    assert Fraction(root_sum_of_powers_up(values, 1)) >= sum(exact)
    two = root_sum_of_powers_up(values, 2)
    assert Fraction(two) ** 2 >= sum(x * x for x in exact)
    assert two <= math.hypot(*values) * (1 + 1e-13) + 1e-300


@pytest.mark.parametrize("value", [0.0, 5e-324, -5e-324, 1.0, -1.0, 2.0**-1022, 1e300])
def test_the_next_doubles(value: float) -> None:
    assert down(value) < value < up(value)
    assert math.nextafter(down(value), math.inf) == value == math.nextafter(up(value), -math.inf)
    for beyond, step in ((math.inf, up), (-math.inf, down), (1.7976931348623157e308, up)):
        with pytest.raises(NumericalFailure):
            step(beyond)


def test_products_around_the_smallest_normal_number() -> None:
    """Whatever is subnormal is rounded once more, up; also where one factor is a power of two."""
    drawn = random.Random(0)
    for power in range(-1030, -1015):
        for _ in range(20):
            a, b = 0.5 + drawn.random() / 2, drawn.choice((1.0, 0.5 + drawn.random() / 2))
            factors = (math.ldexp(a, power // 2), math.ldexp(b, power - power // 2))
            exact, found = math.prod(map(Fraction, factors)), Fraction(mul_up(*factors))
            assert exact <= found <= exact + 3 * max(exact * Fraction(UNIT), Fraction(2) ** -1074)


def test_a_sum_of_squares_that_all_round_down() -> None:
    """Quotients and squares round down by nearly as much as they can, more than the outer roundings make up for."""
    values = [float.fromhex("0x1.f352001266930p+0"), *[float.fromhex("0x1.00ea714ebcc42p+0")] * 3853]
    assert Fraction(root_sum_of_powers_up(values, 2)) ** 2 >= sum(Fraction(v) ** 2 for v in values)


def test_zero_stays_zero() -> None:
    assert add_up(0.0, 0.0) == mul_up(0.0, 3.0) == sqrt_up(0.0) == 0.0


def test_underflow_is_not_lost() -> None:
    assert mul_up(1e-200, 1e-200) > 0.0


def test_only_the_product_itself_can_overflow() -> None:
    factors = [1e200, 1e200, 1e-200, 1e-190]
    assert 0.0 <= Fraction(mul_up(*factors)) - math.prod(map(Fraction, factors)) <= 8 * Fraction(UNIT) * 10**10
    assert mul_up(1e-200, 1e-200, 1e200, 1e200) == pytest.approx(1.0, rel=1e-14)


def test_powers_of_two_are_exact() -> None:
    assert mul_up(0.3, 2.0, 0.25, 1.0) == 0.15
    assert mul_up(2.0**1000, 2.0**-1060) == 2.0**-60


@pytest.mark.parametrize(
    "call",
    [
        lambda: mul_up(1e200, 1e200),
        lambda: add_up(1.7e308, 1.7e308),
        lambda: mul_up(0.0, math.inf),
        lambda: add_up(math.nan),
    ],
)
def test_overflow_and_nan_are_errors(call) -> None:
    with pytest.raises(NumericalFailure):
        call()


def test_gamma() -> None:
    assert Fraction(gamma(100)) >= 100 * Fraction(UNIT) / (1 - 100 * Fraction(UNIT))
    for n in (2**53, int(0.6 * 2**53)):
        with pytest.raises(NumericalFailure):
            gamma(n)
