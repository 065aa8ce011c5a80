"""Properties hold what they are told, and boxes are rounded outward."""

from __future__ import annotations

import math
from fractions import Fraction

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lipbridge.errors import InvalidArgument
from lipbridge.problem.property import Case, Property, Verdict, robust


@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=4), st.floats(1e-12, 1e3))
def test_the_box_holds_the_ball_and_hardly_more(values: list[float], radius: float) -> None:
    (case,) = robust(torch.tensor(values, dtype=torch.float64), 0, 2, radius).cases
    for value, low, high in zip(values, case.lower, case.upper, strict=True):
        exact = Fraction(value) - Fraction(radius), Fraction(value) + Fraction(radius)
        assert Fraction(float(low)) <= exact[0]
        assert exact[1] <= Fraction(float(high))
        assert float(high) <= math.nextafter(math.nextafter(float(exact[1]), math.inf), math.inf)


def test_each_rival_is_a_case_and_boxes_are_shared() -> None:
    asked = robust(torch.zeros(2, 3), 1, 4, 0.5)
    assert asked.input_shape == (2, 3)
    assert asked.outputs == 4
    assert [case.rows.tolist() for case in asked.cases] == [
        [[-1.0, 1.0, 0.0, 0.0]],
        [[0.0, 1.0, -1.0, 0.0]],
        [[0.0, 1.0, 0.0, -1.0]],
    ]
    assert [len(cases) for *_, cases in asked.boxes] == [3]
    other = robust(torch.ones(2, 3), 1, 4, 0.5, rivals=[0])
    assert [len(cases) for *_, cases in Property((*asked.cases, *other.cases)).boxes] == [3, 1]


def test_wrong_arguments_are_refused_in_words() -> None:
    x, one = torch.zeros(2), torch.ones(1, 2)
    for make in (
        lambda: Case(x + 1, x, one, torch.zeros(1)),
        lambda: Case(x, x + torch.nan, one, torch.zeros(1)),
        lambda: Case(x, x, one, torch.zeros(2)),
        lambda: Case(x, x, torch.zeros(0, 2), torch.zeros(0)),
        lambda: Property(()),
        lambda: Property((*robust(x, 0, 2, 0.1).cases, *robust(torch.zeros(3), 0, 2, 0.1).cases)),
        lambda: robust(x, 2, 2, 0.1),
        lambda: robust(x, 0, 2, 0.0),
        lambda: robust(x, 0, 1, 0.1),
        lambda: robust(x, 0, 3, 0.1, rivals=[0]),
    ):
        with pytest.raises(InvalidArgument):
            make()


def test_every_verdict_but_a_proof_says_what_to_do() -> None:
    assert [verdict for verdict in Verdict if not verdict.advice] == [Verdict.VERIFIED]
