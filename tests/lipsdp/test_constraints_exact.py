"""Rules of increments hold for the slopes as rational numbers, and nothing that was rounded is left out of them."""

from __future__ import annotations

from fractions import Fraction
from itertools import product

import pytest
import torch
from torch import Tensor

from lipbridge.activations.activation import Term, derive
from lipbridge.lipsdp.constraints import Increments, increments_of
from lipbridge.lipsdp.unit_slopes import UnitRule, _assembled, _Rows

ALMOST = (1.0 - 1e-13, 1.0 - 3e-12)


def leaky(*slopes: float) -> Increments:
    return increments_of(derive("leaky", tuple((Term("leaky_relu", parameters=(slope,)),) for slope in slopes)))


def drawn(n: int) -> list[float]:
    """Of both signs, most of them on a finer grid than the numbers near one."""
    return (0.7 * torch.rand(n, dtype=torch.float64, generator=torch.Generator().manual_seed(n)) - 0.3).tolist()


@pytest.mark.parametrize("slopes", [drawn(40), ALMOST], ids=["bends", "almost lines"])
def test_an_activations_interval_holds_its_slopes(slopes: list[float]) -> None:
    for slope in slopes:
        rule = leaky(slope)
        assert rule.variables == (slope not in ALMOST)
        middle, half = Fraction(float(rule.outputs[0, 0])), sum(map(Fraction, rule.radius[0].tolist()))
        half += sum(map(Fraction, rule.outputs[0, 1:].tolist()))
        assert middle - half <= Fraction(slope)
        assert middle + half >= 1
        assert half <= Fraction(2, 3)


@pytest.mark.parametrize("slopes", [drawn(40), ALMOST], ids=["bends", "almost lines"])
def test_each_entry_of_a_common_rule_is_as_near_as_it_says(slopes: list[float]) -> None:
    """Of two functions that bend at zero, both of which are a line and a share of the increment of |t|."""
    for pair in zip(slopes[::2], slopes[1::2], strict=True):
        rule = leaky(*pair)
        for slope, found, radius in zip(pair, rule.outputs.tolist(), rule.radius.tolist(), strict=True):
            line, share = (1 + Fraction(slope)) / 2, (1 - Fraction(slope)) / 2
            if rule.variables:
                assert abs(Fraction(found[1]) - share) <= Fraction(radius[1]) <= Fraction(1, 2**53)
                share = Fraction(0)
            assert abs(Fraction(found[0]) - line) + share <= Fraction(radius[0])


# --- units apart ------------------------------------------------------------------------------------------------------


def reach(rule: UnitRule, units: int) -> list[list[tuple[Fraction, Fraction]]]:
    """Per output and unit the middle and half the length of what the rule lets its slopes be."""
    found = [[(Fraction(0), Fraction(0))] * units for _ in range(rule.alive.shape[0])]
    for (k, factors), outputs, radius in zip(
        rule.blocks, rule.increments.outputs.tolist(), rule.increments.radius.tolist(), strict=True
    ):
        for i, factor in enumerate(factors.tolist()):
            middle, half = found[k][i]
            half += abs(Fraction(factor)) * sum(map(Fraction, (*map(abs, outputs[1:]), *radius)))
            found[k][i] = middle + Fraction(factor) * Fraction(outputs[0]), half
    return found


def require_every_slope(lines: list[float], shares: list[list[float]], slopes: list[tuple[Tensor, Tensor]]) -> None:
    """The slope of each output is its line and its shares of the atoms' slopes, each at any end of its interval."""
    exact = [[Fraction(share) for share in row] for row in shares]
    rule = _assembled(_Rows([Fraction(line) for line in lines], exact, slopes, []))
    units = len(slopes[0][0])
    found = reach(rule, units)
    for i in range(units):
        for ends in product(*((Fraction(float(a[i])), Fraction(float(b[i]))) for a, b in slopes)):
            for k, row in enumerate(exact):
                middle, half = found[k][i]
                true = Fraction(lines[k]) + sum(share * end for share, end in zip(row, ends, strict=True))
                assert abs(true - middle) <= half


def intervals(units: int, width: float, grid: float | None = None) -> tuple[Tensor, Tensor]:
    a = torch.rand(units, dtype=torch.float64, generator=torch.Generator().manual_seed(units))
    a = a if grid is None else (a * grid).round() / grid
    return a, a + width * torch.rand(units, dtype=torch.float64, generator=torch.Generator().manual_seed(units + 1))


@pytest.mark.parametrize("width", [0.5, 1e-9, 1e-13, 1e-15])
def test_the_rule_of_a_unit_holds_all_its_slopes(width: float) -> None:
    """Wide, narrow and hardly an interval: the middle and half the length are rounded, and together they reach both."""
    a, b = intervals(60, width)
    require_every_slope([0.0], [[1.0]], [(a, b)])
    require_every_slope([0.0], [[1.0]], [(0.7 * a - width, b)])
    require_every_slope([0.1, 0.0], [[0.3, 0.7], [0.9, -0.2]], [intervals(60, width), intervals(60, 0.7 * width)])


def test_middles_that_are_exact_are_added_up_with_rounding() -> None:
    """Slopes on the grid of the middles take no variable, so the sum of several addends is all that is rounded."""
    points, others = intervals(60, 0.0, 2.0**26), intervals(59, 0.0, 2.0**26)
    slopes = [points, (torch.cat([others[0], others[0][:1]]),) * 2]
    require_every_slope([0.1, 0.0], [[0.3, 0.7], [0.9, -0.2]], slopes)
