"""Sums of hinges: the exact slopes of every piece, and no value or slope outside of what is said."""

from __future__ import annotations

import math
from fractions import Fraction
from itertools import pairwise

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from lipbridge.activations.activation import Term, derive
from lipbridge.activations.piecewise_linear import Hinge, Pieces, above, below
from lipbridge.activations.slopes import component_bend, component_range, component_slopes

NUMBERS = st.sampled_from([0.0, 1.0, -1.0, 0.5, 3.0, -0.1, 1 / 3, 1e-8, 1e8, -2.7])
HINGES = st.builds(
    lambda name, c, s, o, a: Term(name, c, s, o, (a,) if name == "leaky_relu" else ()),
    st.sampled_from(["relu", "abs", "identity", "leaky_relu"]),
    NUMBERS,
    NUMBERS,
    NUMBERS,
    NUMBERS,
)


def reference(component: tuple[Term, ...], t: Fraction) -> Fraction:
    """The component at t, by its definition."""
    total = Fraction(0)
    for term in component:
        z = Fraction(term.scale) * t + Fraction(term.offset)
        left = {"relu": 0.0, "abs": -1.0, "identity": 1.0, "leaky_relu": (*term.parameters, 0.0)[0]}[term.function]
        total += Fraction(term.coefficient) * (z if z > 0 else Fraction(left) * z)
    return total


def ends(low: float, high: float) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.tensor([low], dtype=torch.float64), torch.tensor([high], dtype=torch.float64)


@settings(max_examples=150)
@given(
    component=st.lists(HINGES, min_size=1, max_size=4).map(tuple),
    places=st.tuples(st.floats(-1e3, 1e3), st.floats(-10.0, 10.0)).map(sorted),
)
def test_slopes_bends_and_ranges_hold_in_exact_arithmetic(component: tuple[Term, ...], places: list[float]) -> None:
    row = derive("sum", (component,))
    low, high = places
    a, b = (Fraction(float(x)) for x in component_slopes(component, row.slopes[0], *ends(low, high)))
    assert row.slopes[0][0] <= a <= b <= row.slopes[0][1]
    bend = float(component_bend(component, *ends(low, high)))
    least, most = component_range(component)
    points = [Fraction(low) + (Fraction(high) - Fraction(low)) * k / 64 for k in range(65)]
    values = [reference(component, t) for t in points]
    for k in range(64):
        run = points[k + 1] - points[k]
        assert a * run <= values[k + 1] - values[k] <= b * run
    for value, t in zip(values, points, strict=True):
        assert least <= value <= most
        if bend and low < high:
            share = (t - points[0]) / (points[-1] - points[0])
            chord = values[0] + share * (values[-1] - values[0])
            assert (value - chord) * Fraction(bend) <= 0


@settings(max_examples=100)
@example(
    components=(
        (Term("relu", 1.0, 1e-8, 1e8), Term("abs")),  # a kink at -1e16
        (Term("relu", 1.0, -1.0),),
    )
)
@given(components=st.lists(st.lists(HINGES, min_size=1, max_size=3).map(tuple), min_size=2, max_size=3).map(tuple))
def test_a_joint_constant_is_the_largest_over_all_pieces(components: tuple[tuple[Term, ...], ...]) -> None:
    row = derive("joint", components)
    pieces = Pieces(tuple(tuple(t.hinge for t in c if t.hinge is not None) for c in components))
    kinks = sorted(pieces.kinks) or [Fraction(0)]
    inside = [kinks[0] - 1, *kinks, kinks[-1] + 1]  # the outermost pieces too, wherever the kinks are
    sizes: dict[object, list[float]] = {1: [], 2: [], "inf": []}
    for left, right in pairwise(inside):
        at, further = (left + (right - left) * Fraction(k, 3) for k in (1, 2))
        slopes = [float((reference(c, further) - reference(c, at)) / (further - at)) for c in components]
        sizes[1].append(math.fsum(map(abs, slopes)))
        sizes[2].append(math.hypot(*slopes))
        sizes["inf"].append(max(map(abs, slopes)))
    for norm, found in sizes.items():
        assert max(found) * (1 - 1e-14) <= row.lipschitz[norm] <= max(found) * (1 + 1e-14) + 5e-324


def test_a_clipped_line_has_the_slopes_of_its_pieces() -> None:
    component = (Term("relu", 1.0, 1.0, 1.0), Term("relu", -1.0, 1.0, -1.0), Term("identity", 1.0, 0.0, -1.0))
    row = derive("clip", (component,))
    assert row.slopes == ((0.0, 1.0),)
    assert row.lipschitz == {1: 1.0, 2: 1.0, "inf": 1.0}
    assert component_range(component) == (-1.0, 1.0)
    for low, high, slopes, bend in (
        (-0.9, 0.9, (1.0, 1.0), 1.0),
        (-5.0, -1.1, (0.0, 0.0), 1.0),
        (-5.0, 0.0, (0.0, 1.0), 1.0),
        (0.0, 5.0, (0.0, 1.0), -1.0),
        (-1.0, -0.5, (0.0, 1.0), 1.0),
        (-5.0, 5.0, (0.0, 1.0), 0.0),
    ):
        a, b = component_slopes(component, row.slopes[0], *ends(low, high))
        assert (float(a), float(b)) == slopes
        assert float(component_bend(component, *ends(low, high))) == bend


def test_a_hinge_beside_a_smooth_function_keeps_its_pieces() -> None:
    """min(max(t, -1), 1) + tanh(t): the hinges' slopes together are between 0 and 1."""
    clip = (Term("relu", 1.0, 1.0, 1.0), Term("relu", -1.0, 1.0, -1.0), Term("identity", 1.0, 0.0, -1.0))
    row = derive("sum", ((*clip, Term("tanh")),))
    assert row.slopes[0] == pytest.approx((0.0, 2.0))
    a, b = component_slopes(row.components[0], row.slopes[0], *ends(3.0, 4.0))
    assert float(a) >= 0.0
    assert float(b) <= 0.01


def test_without_kinks_there_is_one_piece() -> None:
    line = Pieces(((Hinge(1.0, 1.0, 2.0, 3.0, 1.0),), ()))
    assert line.kinks == []
    assert line.slopes == [[6], [0]]
    assert line.range(0) == (-math.inf, math.inf)
    assert line.range(1) == (0.0, 0.0)


def test_rounding_outward() -> None:
    third = Fraction(1, 3)
    assert below(third) < third < above(third)
    assert below(Fraction(1, 2)) == above(Fraction(1, 2)) == 0.5
    tiny = Fraction(1, 10**400)
    assert (below(tiny), above(tiny)) == (0.0, 5e-324)
