"""Slopes on intervals: every scalar function of the registry has a row, and the row is right."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lipbridge.activations import SCALAR_FUNCTIONS, Term, activation, activation_names, derive
from lipbridge.slopes import LOCAL, component_bend, component_range, component_slopes

PARAMETERS = {
    "leaky_relu": (0.01, -2.0, 1.5),
    "elu": (1.0, 2.0, 0.3, -0.5),
    "softplus": (1.0, 4.0, 0.2),
    "celu": (1.0, 0.1, 20.0),
    "gelu_tanh": (0.044715, 0.0401, 0.0499),
}
CASES = [(name, (p,)) for name in SCALAR_FUNCTIONS for p in PARAMETERS.get(name, ())]
CASES += [(name, ()) for name in SCALAR_FUNCTIONS if name not in PARAMETERS]
ENDS = st.one_of(
    st.sampled_from(
        [0.0, -0.0, 1e-300, -1e-300, 2.3993572805154, math.sqrt(2.0), math.pi / 2, -math.pi, 1e6, -700.0, 3.0, -3.0]
    ),
    st.floats(-8.0, 8.0),
    st.floats(-1e3, 1e3),
)


def alone(name, parameters=(), coefficient=1.0, scale=1.0, offset=0.0):
    return derive("alone", ((Term(name, coefficient, scale, offset, parameters),),))


def slopes_of(row, low, high, k=0):
    ends = torch.tensor([low], dtype=torch.float64), torch.tensor([high], dtype=torch.float64)
    a, b = component_slopes(row.components[k], row.slopes[k], *ends)
    return float(a), float(b)


def test_every_scalar_function_has_a_row():
    assert set(LOCAL) == set(SCALAR_FUNCTIONS)


@pytest.mark.parametrize(("name", "parameters"), CASES, ids=str)
@settings(max_examples=40)
@given(ends=st.tuples(ENDS, ENDS), scale=st.sampled_from([1.0, -1.0, 0.3, -2.0]), offset=st.sampled_from([0.0, 0.7]))
def test_slopes_hold_every_difference_quotient_and_derivative(name, parameters, ends, scale, offset):
    low, high = min(ends), max(ends)
    row = alone(name, parameters, 0.7, scale, offset)
    a, b = slopes_of(row, low, high)
    assert row.slopes[0][0] <= a <= b <= row.slopes[0][1]
    t = torch.linspace(low, high, 401, dtype=torch.float64).clamp(low, high)
    inside = row.derivatives(t)[0]
    clear = row.distance_to_kink(t) > 0
    assert bool(((inside >= a - 1e-12) & (inside <= b + 1e-12))[clear].all())
    value = row(t[:, None]).flatten()
    rise, run = value.diff(), t.diff()
    slack = 1e-13 * (1.0 + value.abs().max() + t.abs().max()) + (4.2e-9 if name == "softplus" else 0.0)
    assert bool(((rise >= a * run - slack) & (rise <= b * run + slack)).all())
    # the bend and the range
    ends_of = torch.tensor([low], dtype=torch.float64), torch.tensor([high], dtype=torch.float64)
    bend = float(component_bend(row.components[0], *ends_of))
    chord = value[0] + (value[-1] - value[0]) * torch.linspace(0, 1, 401, dtype=torch.float64)
    if bend:
        assert float((bend * (value - chord)).max()) <= slack * 4
    least, most = component_range(row.components[0])
    assert least - slack <= float(value.min()) <= float(value.max()) <= most + slack


@pytest.mark.parametrize("name", ["relu", "abs", "leaky_relu", "elu"])
@pytest.mark.parametrize("ends", [(0.0, 1.0), (-1.0, 0.0), (0.0, 0.0), (-1.0, 1.0)])
def test_a_kink_inside_or_on_the_boundary_counts_with_both_sides(name, ends):
    parameters = {"leaky_relu": (0.1,), "elu": (2.0,)}.get(name, ())
    a, b = slopes_of(alone(name, parameters), *ends)
    left, right = {"relu": (0, 1), "abs": (-1, 1), "leaky_relu": (0.1, 1), "elu": (2, 1)}[name]
    assert a <= min(left, right)
    assert b >= max(left, right)


def test_fixed_units_are_known_exactly():
    for name, low, high, slope in (
        ("relu", 1e-300, 2.0, 1.0),
        ("relu", -2.0, -1e-300, 0.0),
        ("abs", -2.0, -1.0, -1.0),
        ("leaky_relu", 1.0, 2.0, 1.0),
    ):
        assert slopes_of(activation(name), low, high) == (slope, slope)


def test_a_sum_of_terms_with_kinks_is_added_side_by_side():
    """x - relu(x) + relu(-x) has slope zero left and right of its kink."""
    row = derive("zero", ((Term("identity"), Term("relu", -1.0), Term("relu", 1.0, -1.0)),))
    assert slopes_of(row, -3.0, 2.0) == (0.0, 0.0)


@pytest.mark.parametrize("name", activation_names())
@pytest.mark.parametrize("point", [-2.7, 0.4, 3.1])
def test_narrow_intervals_have_narrow_slopes(name, point):
    row = activation(name)
    exact = row.derivatives(torch.tensor([point], dtype=torch.float64))
    for k, slope in enumerate(exact):
        a, b = slopes_of(row, point - 1e-9, point + 1e-9, k)
        assert a == pytest.approx(float(slope), abs=1e-8)
        assert b == pytest.approx(float(slope), abs=1e-8)


@pytest.mark.parametrize("name", activation_names())
def test_a_smaller_interval_has_no_wider_slopes_and_an_infinite_one_the_global_ones(name):
    row = activation(name)
    for k in range(row.width):
        a, b = slopes_of(row, -1.5, 2.5, k)
        c, d = slopes_of(row, -0.5, 1.0, k)
        assert a <= c <= d <= b
        low, high = slopes_of(row, -math.inf, math.inf, k)
        assert (low, high) == pytest.approx(row.slopes[k], rel=1e-12, abs=1e-12)


def test_far_sines_have_their_global_slopes_and_meta_tensors_work():
    assert slopes_of(activation("sin"), 1e12, 1e12 + 1e-3) == (-1.0, 1.0)
    for name in activation_names():
        row = activation(name)
        ends = torch.empty(3, 4, dtype=torch.float64, device="meta")
        assert component_slopes(row.components[0], row.slopes[0], ends, ends)[0].shape == (3, 4)
