"""The coarse arithmetic obeys the standard model that the proofs assume, and rounds where it says."""

from __future__ import annotations

from fractions import Fraction

import pytest
import torch

import lipbridge.rounding.scalars
from lipbridge.rigor import matrix as rigor
from tests.support.coarse import COARSE_UNIT, coarse, coarse_arithmetic


def fractions(x: torch.Tensor) -> list[Fraction]:
    return [Fraction(value) for value in x.flatten().tolist()]


@pytest.mark.parametrize("direction", ["zero", "away", "nearest"])
def test_each_operation_is_within_one_roundoff(direction):
    generator = torch.Generator().manual_seed(1)
    a, b = (coarse(torch.randn(7, dtype=torch.float64, generator=generator) + 2.0) for _ in range(2))
    u = Fraction(COARSE_UNIT) / (2 if direction == "nearest" else 1)
    with coarse_arithmetic(direction):
        results = {"+": a + b, "-": a - b, "*": a * b, "/": a / b}
        dot, total, matrix = a @ b, a.sum(), a[None] @ b[:, None]
        view = a.clone()
        view[1:].mul_(b[1:])
        assert lipbridge.rounding.scalars.UNIT == rigor.UNIT == float(u)
    assert torch.equal(view[1:], results["*"][1:])
    assert float(view[0]) == float(a[0])
    for sign, computed in results.items():
        for x, y, z in zip(fractions(a), fractions(b), fractions(computed), strict=True):
            exact = {"+": x + y, "-": x - y, "*": x * y, "/": x / y}[sign]
            assert abs(z - exact) <= u * abs(exact)
            assert direction != "zero" or abs(z) <= abs(exact)
            assert direction != "away" or abs(z) >= abs(exact)
    exact = sum(x * y for x, y in zip(fractions(a), fractions(b), strict=True))
    for value in (dot, matrix):
        assert 0 < abs(Fraction(float(value)) - exact) <= 9 * u * sum(abs(x) for x in fractions(a * b))
    assert 0 < abs(Fraction(float(total)) - sum(fractions(a))) <= 8 * u * sum(abs(x) for x in fractions(a))


def test_the_unit_roundoff_comes_back():
    with pytest.raises(KeyError), coarse_arithmetic():
        raise KeyError
    assert lipbridge.rounding.scalars.UNIT == rigor.UNIT == 2.0**-53
