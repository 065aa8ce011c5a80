"""Slopes on intervals: every scalar function of the registry has a row, and the row is right."""

from __future__ import annotations

import itertools
import math

import mpmath
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lipbridge.activations.activation import Term, derive
from lipbridge.activations.registry import activation, activation_names
from lipbridge.activations.scalar_functions import SCALAR_FUNCTIONS
from lipbridge.activations.slopes import LOCAL, component_bend, component_range, component_slopes, outward
from tests.support.functions import SMOOTH
from tests.support.slopes import SCALARS, TURNS, exact_slope, turn

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


# --- the rows by themselves, in many digits ---------------------------------------------------------------------------


def one(value: float) -> torch.Tensor:
    return torch.tensor([value], dtype=torch.float64)


@pytest.mark.parametrize(("name", "parameters"), SCALARS, ids=str)
def test_a_row_holds_the_derivative_at_the_ends_and_beside_kinks(name, parameters):
    """On intervals of no length, of any, and on those that end on a kink, which counts with both sides."""
    row = LOCAL[name]
    points = [-3.0, -1.7, -0.3, 0.0, 1e-7, 0.9, 2.2, 3.0, 7.5, 60.0, -60.0]
    pairs = [(t, t) for t in points] + [(-3.0, 0.0), (0.0, 3.0), (-3.0, 3.0), (3.0, 4.0), (-5.0, -3.0), (-1.0, 2.0)]
    with mpmath.workdps(80):
        beside = mpmath.mpf(10) ** -25
        for low, high in pairs:
            a, b = (float(end) for end in row.slopes(one(low), one(high), parameters))
            bend = float(row.bend(one(low), one(high), parameters))
            inside = [low + (mpmath.mpf(high) - low) * j / 16 for j in range(17)] if low < high else [mpmath.mpf(low)]
            slopes = []
            for t in inside:
                at = [t - beside, t + beside] if low == high else [max(t, low + beside), min(t, high - beside)]
                if t in (-3, 0, 3):  # both sides of what may be a kink
                    at = [t - beside, t + beside]
                slopes += [exact_slope(name, parameters, place) for place in at]
            reference = mpmath.mpf(10) ** -20  # what differences leave out
            assert a - reference <= min(slopes)
            assert b + reference >= max(slopes)
            if low < high and bend:
                values = [SMOOTH[name](t, *parameters) for t in inside]
                for left, middle, right in zip(values, values[1:], values[2:], strict=False):
                    assert bend * (left + right - 2 * middle) >= -(mpmath.mpf(10) ** -60)
            least, most = row.range(parameters)
            tail = 3e-9 if name == "softplus" else 0.0
            for t in inside:
                assert least - tail <= SMOOTH[name](t, *parameters) <= most + tail


@pytest.mark.parametrize(("name", "parameters"), [case for case in SCALARS if case[0] in TURNS], ids=str)
def test_intervals_around_a_turn_hold_it_to_the_last_digit(name, parameters):
    low, high = SCALAR_FUNCTIONS[name].slopes(parameters)
    with mpmath.workdps(80):
        for near in TURNS[name]:
            place = turn(name, parameters, near)
            exact = exact_slope(name, parameters, place)
            for width in (1e-2, 1e-5, 1e-9, 1e-14):
                for ends in ((-width, width), (0.0, width), (-width, 0.0)):
                    lower, upper = (
                        math.nextafter(float(place + end), math.copysign(9.0, end or w))
                        for end, w in zip(ends, (-1, 1), strict=True)
                    )
                    a, b = (float(end) for end in LOCAL[name].slopes(one(lower), one(upper), parameters))
                    assert low <= a <= exact + 1e-20
                    assert exact - 1e-20 <= b <= high
        # the values' range, at the lowest point
        at = mpmath.findroot(
            lambda t: exact_slope(name, parameters, t), {"silu": -1.28, "mish": -1.19}.get(name, -0.75)
        )
        assert LOCAL[name].range(parameters)[0] <= SMOOTH[name](at, *parameters)


@pytest.mark.parametrize(("name", "parameters"), SCALARS, ids=str)
def test_intervals_with_one_end_hold_the_slopes_of_all_beyond(name, parameters):
    with mpmath.workdps(80):
        for end, side in ((-2.0, -1), (1.0, 1), (3.5, -1), (-3.5, 1)):
            ends = (one(-math.inf), one(end)) if side < 0 else (one(end), one(math.inf))
            a, b = (float(slope) for slope in LOCAL[name].slopes(*ends, parameters))
            for far in (0.01, 0.7, 1.5, 2.1, 3.2, 6.0, 40.0):
                exact = exact_slope(name, parameters, mpmath.mpf(end) + side * mpmath.mpf(far))
                assert a - mpmath.mpf(10) ** -20 <= exact <= b + mpmath.mpf(10) ** -20


def test_what_overflowed_tells_nothing():
    ends = torch.tensor([math.nan, math.inf, -math.inf, 1.0], dtype=torch.float64)
    low, high = outward(ends, ends)
    assert low[:3].tolist() == [-math.inf] * 3
    assert high[:3].tolist() == [math.inf] * 3
    assert float(low[3]) < 1.0 < float(high[3])
    zero = torch.zeros(1, dtype=torch.float64)
    assert float(outward(zero, zero)[0]) < 0.0 < float(outward(zero, zero)[1])


@pytest.mark.parametrize("scale", [0.3, -0.7, 1.0])
@pytest.mark.parametrize("coefficient", [-2.0, 0.1])
def test_narrow_intervals_of_sums_hold_the_slope_in_many_digits(scale, coefficient):
    """Terms whose arguments are rounded, with negative factors and offsets, beside hinges."""
    terms = (
        Term("tanh", coefficient, scale, 0.7),
        Term("relu", 0.3, scale, -0.1),
        Term("sin", 0.9, 33.3, 0.1),
        Term("gelu", coefficient, -scale, 1e3),
    )
    for count in (1, 2, 3, 4):
        row = derive("sum", (terms[:count],))
        for t in (-4.1, 0.3, 2.0, 1e3, 1430.0):
            a, b = slopes_of(row, t, t)
            with mpmath.workdps(80):
                exact = mpmath.fsum(
                    mpmath.mpf(term.coefficient)
                    * term.scale
                    * exact_slope(term.function, (), mpmath.mpf(term.scale) * t + term.offset)
                    for term in row.components[0]
                )
                assert a <= exact <= b


#: Bounded, convex, concave and mixed functions; pairs of them, of either sign, are sums of two curved terms.
CURVED = [
    ("tanh", ()),
    ("sin", ()),
    ("softplus", (1.0,)),
    ("gelu", ()),
    ("sigmoid", ()),
    ("elu", (1.0,)),
    ("celu", (2.0,)),
]


@pytest.mark.parametrize("first", range(len(CURVED)))
def test_bends_and_ranges_of_sums_of_two_terms(first: int) -> None:
    """Convex only if all terms are, and the range is that of the sum: against values on a grid."""
    steps = torch.linspace(0.0, 1.0, 41, dtype=torch.float64)
    bent = 0
    for second, signs in itertools.product(range(len(CURVED)), itertools.product((1.0, -2.0), repeat=2)):
        chosen = zip((CURVED[first], CURVED[second]), signs, strict=True)
        terms = [Term(name, sign, parameters=parameters) for (name, parameters), sign in chosen]
        lo = torch.tensor([-6.0, -3.0, -1.0, -0.25, 0.125, 0.5, 1.0, 2.0, 4.0], dtype=torch.float64)
        hi = lo + torch.tensor([12.0, 2.0, 2.0, 0.125, 0.25, 1.0, 0.5, 3.0, 1.0], dtype=torch.float64)
        bend = component_bend(tuple(terms), lo, hi)
        t = lo[:, None] + (hi - lo)[:, None] * steps
        values = sum((term.value(t) for term in terms), torch.zeros_like(t))
        second_differences = values[:, 2:] - 2.0 * values[:, 1:-1] + values[:, :-2]
        assert bool(((bend[:, None] <= 0) | (second_differences >= -1e-12)).all()), terms
        assert bool(((bend[:, None] >= 0) | (second_differences <= 1e-12)).all()), terms
        bent += int((bend != 0).sum())
        low, high = component_range(tuple(terms))
        assert low <= float(values.min())
        assert float(values.max()) <= high
    assert bent > 20 or CURVED[first][0] in ("sin", "gelu")  # whose bends nothing is said of
