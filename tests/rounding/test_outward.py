"""Products and quotients rounded away from zero, compared with exact rationals at tolerance zero."""

from __future__ import annotations

import math
from collections.abc import Callable
from fractions import Fraction

import pytest
import torch
from torch import Tensor

from lipbridge.rounding.outward import SMALLEST, away, enlarged, powers_of_two, product, quotient, scaled_up, total


def numbers(seed: int, count: int = 300) -> Tensor:
    """Numbers of all sizes, subnormal ones, powers of two, zeros."""
    generator = torch.Generator().manual_seed(seed)
    mantissas = torch.randn(count, generator=generator, dtype=torch.float64)
    exponents = torch.randint(-1074, 900, (count,), generator=generator)
    kind = torch.randint(0, 6, (count,), generator=generator)
    mantissas = torch.where(kind == 0, 1.0, mantissas)
    found = mantissas * powers_of_two(exponents // 2) * powers_of_two(exponents - exponents // 2)
    return torch.where(kind == 1, found.sign() * 0.0, torch.where(kind == 2, mantissas, found))


@pytest.mark.parametrize(("function", "exactly"), [(product, Fraction.__mul__), (quotient, Fraction.__truediv__)])
@pytest.mark.parametrize("seed", range(4))
def test_away_from_zero_and_by_no_more_than_a_step(
    function: Callable[[Tensor, Tensor], Tensor], exactly: Callable[[Fraction, Fraction], Fraction], seed: int
) -> None:
    x, y = numbers(seed), numbers(seed + 100)
    if function is quotient:
        y = torch.where(y == 0, 1.0, y)
    for a, b, c in zip(x.tolist(), y.tolist(), function(x, y).tolist(), strict=True):
        exact = exactly(Fraction(a), Fraction(b))
        if math.isinf(c):
            assert abs(exact) >= Fraction(2) ** 1023
            continue
        assert abs(Fraction(c)) >= abs(exact)
        assert exact * Fraction(c) >= 0
        assert (c == 0.0) == (exact == 0)
        before = Fraction(math.nextafter(math.nextafter(c, 0.0), 0.0))
        assert exact == 0 or abs(before) < abs(exact), (a, b, c)


def test_products_with_powers_of_two_are_exact_where_nothing_underflows() -> None:
    x, two = torch.tensor([0.3, -7.1, 5e-324, 3e-310], dtype=torch.float64), torch.tensor(2.0**-10).double()
    assert product(x[:2], two).equal(x[:2] * 2.0**-10)
    assert quotient(x[:2], two).equal(x[:2] * 2.0**10)
    assert product(x, torch.tensor(-1.0).double()).equal(-x)
    assert product(x[2:], two).tolist() == [5e-324, math.nextafter(3e-310 * 2.0**-10, 1.0)]


def test_enlarged_is_zero_only_where_it_is_told() -> None:
    zeros = torch.tensor([0.0, 0.0, -0.0, 1.0, 3e-320], dtype=torch.float64)
    found = enlarged(zeros, torch.tensor([True, False, False, False, False]))
    assert found.tolist()[:3] == [0.0, 5e-324, -5e-324]
    assert found[3] >= 1.0 + 2.0**-51
    assert found[4] == math.nextafter(3e-320, 1.0)


@pytest.mark.parametrize("seed", range(4))
def test_scaled_by_any_power_of_two(seed: int) -> None:
    values = numbers(seed).abs()
    exponents = torch.randint(-2300, 2300, values.shape, generator=torch.Generator().manual_seed(seed))
    for value, exponent, found in zip(
        values.tolist(), exponents.tolist(), scaled_up(values, exponents).tolist(), strict=True
    ):
        exact = Fraction(value) * Fraction(2) ** exponent
        assert (found == 0.0) == (value == 0.0)
        if math.isinf(found):
            assert exact >= Fraction(2) ** 1024
            continue
        assert Fraction(found) >= exact
        before = Fraction(math.nextafter(math.nextafter(found, 0.0), 0.0))  # a step from the nearest, at most
        assert found == exact or (before < exact and found < SMALLEST)


def test_one_step_and_powers_of_two() -> None:
    assert away(torch.tensor([0.0, -0.0, 1.0, -1.0], dtype=torch.float64)).tolist() == [
        5e-324,
        -5e-324,
        math.nextafter(1.0, 2.0),
        -math.nextafter(1.0, 2.0),
    ]
    exponents = torch.arange(-1022, 1024)
    assert powers_of_two(exponents).tolist() == [math.ldexp(1.0, e) for e in exponents.tolist()]


def test_sums_of_errors_are_rounded_up() -> None:
    errors = [torch.tensor([one, 1e-320], dtype=torch.float64) for one in (1.0, 2.0**-54, 2.0**-60)]
    found = total([None, *errors, None])
    assert found is not None
    for i in range(2):
        assert Fraction(float(found[i])) >= sum(Fraction(float(error[i])) for error in errors)
    assert total([None]) is None
    assert total([errors[1], None]) is errors[1]
