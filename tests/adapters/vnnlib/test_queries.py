"""VNN-LIB text says no less than the property, in words that its own parser takes."""

from __future__ import annotations

import re
from fractions import Fraction

import pytest
import torch
import vnnlib
from hypothesis import given
from hypothesis import strategies as st

from lipbridge.errors import UnsupportedProblem
from lipbridge.problem.property import Case, Property, robust
from lipbridge_adapters.vnnlib.decimals import exactly
from lipbridge_adapters.vnnlib.queries import vnnlib_1, vnnlib_2

FIXED = re.compile(r"-?\d+\.\d+")


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_decimals_are_fixed_and_exact(value: float) -> None:
    text = exactly(value)
    assert FIXED.fullmatch(text)
    assert Fraction(text) == Fraction(value)


def bounds(text: str, name: str) -> tuple[Fraction, Fraction]:
    low, high = (re.findall(rf"\({op} {re.escape(name)} (-?\d+\.\d+)\)", text) for op in (">=", "<="))
    assert len(low) == len(high) == 1
    return Fraction(low[0]), Fraction(high[0])


@pytest.mark.parametrize("radius", [1e-12, 0.02, 3.0])
def test_robustness_in_both_versions(radius: float) -> None:
    x = torch.randn(2, 3, dtype=torch.float64)
    asked = robust(x, 1, 4, radius)
    one, two = vnnlib_1(asked), vnnlib_2(asked, (1, 2, 3), (1, 4))
    case = asked.cases[0]
    for i, (low, high) in enumerate(zip(case.lower.flatten(), case.upper.flatten(), strict=True)):
        for text, name in ((one, f"X_{i}"), (two, f"X[0,{i // 3},{i % 3}]")):
            least, most = bounds(text, name)
            assert least == Fraction(float(low))
            assert most == Fraction(float(high))
            assert most - least <= Fraction(2 * radius) * (1 + Fraction(1, 10**6)) + Fraction(4, 10**15)
    assert [f"(and (<= Y_1 Y_{k}))" in one for k in range(4)] == [True, False, True, True]
    assert "(and (<= Y[0,1] Y[0,3]))" in two
    query = vnnlib.parse_query_string(two)
    assert len(query.networks) == 1
    assert len(query.assertions) == 13


def test_general_inequalities_need_version_two() -> None:
    box = torch.zeros(2), torch.ones(2)
    rows = torch.tensor([[0.1, -2.0, 0.0], [0.0, 0.0, 1.0], [0.0, -1.0, 0.0]])
    asked = Property((Case(*box, rows, torch.tensor([1e-9, 0.25, 3.0])),))
    with pytest.raises(UnsupportedProblem, match="version 2"):
        vnnlib_1(asked)
    text = vnnlib_2(asked, (1, 2), (1, 3))
    assert f"(* {exactly(float(torch.tensor(0.1)))} Y[0,0])" in text
    vnnlib.parse_query_string(text)
    simple = vnnlib_1(Property((Case(*box, rows[1:], torch.tensor([0.25, 3.0])),)))
    assert "(assert (<= Y_2 0.25))" in simple
    assert "(assert (>= Y_1 -3.0))" in simple


def test_several_boxes_are_one_disjunction() -> None:
    one, other = robust(torch.zeros(2), 0, 2, 0.1), robust(torch.ones(2), 1, 2, 0.1)
    asked = Property((*one.cases, *other.cases))
    text = vnnlib_1(asked)
    assert text.count("(assert") == 1
    assert text.count("(and (>= X_0") == 2
    vnnlib.parse_query_string(vnnlib_2(asked, (1, 2), (1, 2)))
