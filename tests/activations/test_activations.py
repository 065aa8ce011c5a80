"""The registry's conformance test: every fact of every row, checked numerically."""

from __future__ import annotations

import math
from fractions import Fraction

import mpmath
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lipbridge.activations.activation import Term, derive
from lipbridge.activations.modules import INVERSE_SQRT2
from lipbridge.activations.piecewise_linear import Pieces
from lipbridge.activations.registry import (
    activation,
    activation_module,
    activation_names,
    recognise,
    register,
    saturating,
)
from lipbridge.activations.scalar_functions import SCALAR_FUNCTIONS
from lipbridge.errors import InvalidArgument, UnknownName
from lipbridge.vocabulary import NORMS, exponent
from tests.support.slopes import PARAMETERS, SCALARS, TURNS, exact_slope, turn

GRID = torch.cat(
    [
        torch.linspace(-30, 30, 240_001, dtype=torch.float64),
        torch.randn(1000, dtype=torch.float64) * 1e-3,
        torch.tensor([-1e-8, 1e-8], dtype=torch.float64),
    ]
)
NAMES = activation_names()


def components(name: str, t: torch.Tensor) -> torch.Tensor:
    """(len(t), K) from the module, which is the independent reference for the row's terms."""
    return activation_module(name)(t[:, None])


def test_the_registry_holds_the_activations_of_the_issue() -> None:
    saturating_ones = "abs crelu sincos identity_abs_l2 identity_abs sin2_pair"
    ordinary = "relu leaky_relu tanh sigmoid softplus sin silu gelu elu"
    ordinary += " selu celu hardsigmoid hardswish gelu_tanh mish softsign atan"
    assert set(f"{saturating_ones} {ordinary}".split()) <= set(NAMES)


@pytest.mark.parametrize("name", NAMES)
class TestEveryRow:
    def test_no_column_is_missing(self, name: str) -> None:
        row = activation(name)
        assert row.name == name
        assert set(row.lipschitz) == set(NORMS)
        assert len(row.slopes) == row.width == len(row.components)
        assert row.saturates <= set(NORMS)

    def test_terms_compute_what_the_module_computes(self, name: str) -> None:
        t = GRID[::37]
        torch.testing.assert_close(activation(name)(t[:, None]), components(name, t), rtol=1e-12, atol=1e-12)

    def test_module_works_on_batches_in_blocks(self, name: str) -> None:
        z = torch.randn(5, 3, dtype=torch.float64)
        value = activation_module(name)(z)
        assert value.shape == (5, 3 * activation(name).width)
        for k in range(activation(name).width):
            torch.testing.assert_close(value[:, 3 * k : 3 * k + 3].flatten(), components(name, z.flatten())[:, k])

    def test_derivatives_match_differences(self, name: str) -> None:
        t = GRID[(activation(name).distance_to_kink(GRID) > 1e-5) & (GRID.abs() > 1e-3) & (GRID.abs() < 20)][::101]
        h = 1e-6
        difference = (components(name, t + h) - components(name, t - h)) / (2 * h)
        torch.testing.assert_close(torch.stack(activation(name).derivatives(t), -1), difference, rtol=1e-6, atol=1e-7)

    def test_smoothed_derivative_approaches_the_derivative(self, name: str) -> None:
        t = GRID[activation(name).distance_to_kink(GRID) > 0.1][::101]
        for exact, smooth in zip(activation(name).derivatives(t), activation(name).derivatives(t, 1e-3), strict=True):
            torch.testing.assert_close(smooth, exact, rtol=1e-9, atol=1e-9)

    def test_slope_intervals_hold_every_difference_quotient(self, name: str) -> None:
        values = components(name, GRID)
        order = torch.randperm(len(GRID), generator=torch.Generator().manual_seed(0))
        far = (GRID - GRID[order]).abs() > 1e-6
        quotient = ((values - values[order]) / (GRID - GRID[order])[:, None])[far]
        for k, (low, high) in enumerate(activation(name).slopes):
            assert float(quotient[:, k].min()) >= low - 1e-8
            assert float(quotient[:, k].max()) <= high + 1e-8

    def test_slope_intervals_are_attained(self, name: str) -> None:
        t = torch.cat([GRID[GRID.abs() > 1e-9], GRID.new_tensor([-1e4, 1e4])])  # softsign and atan flatten slowly
        for slope, (low, high) in zip(activation(name).derivatives(t), activation(name).slopes, strict=True):
            assert float(slope.min()) <= low + 1e-3
            assert float(slope.max()) >= high - 1e-3

    @pytest.mark.parametrize("norm", NORMS)
    def test_lipschitz_constant_is_right_and_tight(self, name: str, norm) -> None:
        t = GRID[GRID.abs() > 1e-9]
        sizes = torch.linalg.vector_norm(torch.stack(activation(name).derivatives(t), -1), exponent(norm), dim=-1)
        constant = activation(name).lipschitz[norm]
        assert float(sizes.max()) <= constant * (1 + 1e-15)
        assert float(sizes.max()) >= constant * (1 - 1e-6)

    @pytest.mark.parametrize("norm", NORMS)
    def test_saturation(self, name: str, norm) -> None:
        t = GRID[GRID.abs() > 1e-9]
        sizes = torch.linalg.vector_norm(torch.stack(activation(name).derivatives(t), -1), exponent(norm), dim=-1)
        saturated = bool(((sizes - 1).abs() < 1e-12).all())
        assert saturated == (norm in activation(name).saturates)

    def test_homogeneity(self, name: str) -> None:
        t = GRID[::53]
        homogeneous = torch.allclose(components(name, 3 * t), 3 * components(name, t), rtol=1e-12, atol=1e-12)
        assert homogeneous == activation(name).homogeneous

    def test_sides_are_the_slopes_left_and_right(self, name: str) -> None:
        sides = activation(name).sides
        if sides is None:
            return
        ends = components(name, torch.tensor([-1.0, 1.0], dtype=torch.float64))
        for k, (left, right) in enumerate(sides):
            assert ends[0, k] == -left
            assert ends[1, k] == right

    def test_derived_facts_agree(self, name: str) -> None:
        row = activation(name)
        derived = derive(name, row.components)
        for norm in NORMS:  # derived from intervals: sound, equal where every component is piecewise linear
            assert derived.lipschitz[norm] >= row.lipschitz[norm] * (1 - 1e-15)
            if row.homogeneous:
                assert derived.lipschitz[norm] == pytest.approx(row.lipschitz[norm], rel=1e-14)

    def test_is_recognised(self, name: str) -> None:
        assert recognise(activation(name).components).name == name

    def test_distance_to_kink(self, name: str) -> None:
        distance = activation(name).distance_to_kink(torch.tensor([-2.0, 0.5]))
        expected = [2.0, 0.5] if activation(name).kinked else [math.inf, math.inf]
        if name in ("hardswish", "hardsigmoid"):  # at -3 and 3
            expected = pytest.approx([1.0, 2.5])
        assert distance.tolist() == expected


@pytest.mark.parametrize(
    ("norm", "names"),
    [
        (1, {"abs", "crelu", "sin2_pair"}),
        (2, {"abs", "crelu", "sincos", "identity_abs_l2"}),
        ("inf", {"abs", "crelu", "identity_abs"}),
    ],
)
def test_saturating_lists_the_table_of_the_theory(norm, names: set[str]) -> None:
    assert set(saturating(norm)) == names


def test_parameters_change_the_facts() -> None:
    steep = derive("leaky_relu", ((Term("leaky_relu", parameters=(2.5,)),),))
    assert steep.lipschitz[2] == 2.5
    assert steep.slopes == ((1.0, 2.5),)
    negative = derive("leaky_relu", ((Term("leaky_relu", parameters=(-3.0,)),),))
    assert negative.lipschitz["inf"] == 3.0


def test_scalar_functions_have_a_row_each() -> None:
    used = {term.function for name in NAMES for component in activation(name).components for term in component}
    assert used | {"identity", "cos", "erf", "log_sigmoid"} >= set(SCALAR_FUNCTIONS)


def test_unknown_name_lists_the_known_ones() -> None:
    with pytest.raises(UnknownName, match=r"Unknown activation 'swoosh'. Known: abs, crelu"):
        activation("swoosh")


def test_a_name_is_registered_once() -> None:
    with pytest.raises(InvalidArgument, match="new to the registry"):
        register(activation("abs"), torch.nn.Identity)


def test_a_joint_curve_gets_its_own_facts() -> None:
    joint = recognise(((Term("relu"),), (Term("tanh"),)))
    assert joint.name == "joint(relu(t), tanh(t))"
    assert joint.lipschitz["inf"] == 1.0
    assert joint.lipschitz[2] >= math.sqrt(2)
    assert joint.lipschitz[1] >= 2.0


# --- slopes to the last digits ----------------------------------------------------------------------------------------

SCALARS += [(name, ()) for name in SCALAR_FUNCTIONS if name not in PARAMETERS]


def extreme_slopes(name: str, parameters: tuple[float, ...]) -> tuple[mpmath.mpf, mpmath.mpf]:
    """The least and the largest slope in many digits: beside kinks, far away, and where the slope turns."""

    places = [
        *(k + side * mpmath.mpf(10) ** -25 for k in (-3, 0, 3) for side in (-1, 1)),
        mpmath.mpf(-(10**9)),
        mpmath.mpf(10**9),
    ]
    places += [mpmath.pi / 2, -mpmath.pi / 2, mpmath.pi, mpmath.pi / 4, -mpmath.pi / 4]
    places += [turn(name, parameters, near) for near in TURNS.get(name, ())]
    found = [exact_slope(name, parameters, t) for t in places]
    return min(found), max(found)


@pytest.mark.parametrize(("name", "parameters"), SCALARS, ids=str)
def test_slopes_of_a_function_hold_its_extreme_slopes_to_fifteen_digits(
    name: str, parameters: tuple[float, ...]
) -> None:
    low, high = SCALAR_FUNCTIONS[name].slopes(parameters)
    with mpmath.workdps(80):
        least, most = extreme_slopes(name, parameters)
        reference = mpmath.mpf(10) ** -20  # what differences leave out
        assert low <= least + reference
        assert high >= most - reference
        other = name == "gelu_tanh" and parameters[0] != 0.044715
        room = 1e-2 if other else 2e-13 if name in ("silu", "gelu") else 2e-15
        assert high - most <= room * max(1, most)
        assert least - low <= room * max(1, -least)


def test_parameters_without_a_finite_slope_have_none() -> None:
    assert SCALAR_FUNCTIONS["celu"].slopes((-0.5,)) == (-math.inf, math.inf)
    assert SCALAR_FUNCTIONS["celu"].slopes((0.0,)) == (-math.inf, math.inf)
    for cube in (0.039, 0.051, 10.0, -0.044715):
        assert SCALAR_FUNCTIONS["gelu_tanh"].slopes((cube,)) == (-math.inf, math.inf)


FACTORS = st.sampled_from([1.0, -1.0, 0.1, -0.3, 3.7, -2.0, 1e-3, 0.7])
TERMS = st.builds(
    lambda f, c, s, o: Term(f[0], c, s, o, f[1]),
    st.sampled_from([scalar for scalar in SCALARS if scalar[0] not in ("sin_squared", "sin", "cos")]),
    FACTORS,
    FACTORS,
    st.sampled_from([0.0, 1.0, -0.6]),
)


@settings(max_examples=150)
@given(st.lists(TERMS, min_size=1, max_size=3), st.lists(TERMS, min_size=1, max_size=2))
def test_facts_of_sums_are_those_of_their_terms_rounded_outward(first: list[Term], second: list[Term]) -> None:
    """In rational numbers: no interval is narrower than the sum of those of the terms that are no hinges."""
    row = derive("sum", (tuple(first), tuple(second)))
    ends: list[tuple[Fraction, Fraction]] = []
    for component, found in zip(row.components, row.slopes, strict=True):
        low = high = Fraction(0)
        for term in component:
            if term.hinge is None:
                factor = Fraction(term.coefficient) * Fraction(term.scale)
                own = [factor * Fraction(end) for end in SCALAR_FUNCTIONS[term.function].slopes(term.parameters)]
                low, high = low + min(own), high + max(own)
        hinges = Pieces((tuple(term.hinge for term in component if term.hinge is not None),)).slopes[0]
        low, high = low + min(hinges), high + max(hinges)
        assert Fraction(found[0]) <= low
        assert Fraction(found[1]) >= high
        assert Fraction(found[1]) - Fraction(found[0]) <= (high - low) + (abs(low) + abs(high)) * Fraction(1, 2**44)
        ends.append((low, high))
    if all(term.hinge is not None for component in row.components for term in component):
        return  # the constants of pieces are in the tests of piecewise linear functions
    sizes = [max(abs(low), abs(high)) for low, high in ends]
    assert Fraction(row.lipschitz["inf"]) >= max(sizes)
    assert Fraction(row.lipschitz[1]) >= sum(sizes)
    assert Fraction(row.lipschitz[2]) ** 2 >= sum(size * size for size in sizes)


@pytest.mark.parametrize("kink", [0.25, -0.8, 1e3])
@pytest.mark.parametrize("scale", [1.0, 2.0, -0.3, 1e3])
def test_the_distance_to_a_kink_away_from_zero(kink: float, scale: float) -> None:
    """Of a sum of terms the nearest of all kinks; never above the exact distance."""
    terms = (Term("relu", 1.0, scale, -scale * kink), Term("abs", 0.5), Term("identity"), Term("tanh", 1.0, 3.0))
    for component in (terms, terms[::-1]):
        row = derive("kinks", (component,))
        t = torch.tensor([kink, kink + 0.125, kink - 0.1, 0.0, 1e-3, 5.0], dtype=torch.float64)
        place = -Fraction(terms[0].offset) / Fraction(scale)
        for at, found in zip(t.tolist(), row.distance_to_kink(t).tolist(), strict=True):
            exact = min(abs(Fraction(at) - place), abs(Fraction(at)))
            assert Fraction(found) <= exact
            assert found >= float(exact) * (1 - 1e-12) - 1e-12 * (1 + abs(kink))


def test_the_distance_to_a_kink_is_nothing_where_the_argument_rounds() -> None:
    generator = torch.Generator().manual_seed(0)
    for _ in range(200):
        s, x = (0.5 + torch.rand(2, generator=generator, dtype=torch.float64)).tolist()
        row = derive("kink", ((Term("relu", 1.0, s, -math.nextafter(s * x, 0.0)),),))
        exact = Fraction(s) * Fraction(x) + Fraction(row.components[0][0].offset)
        assert float(exact) != 0.0
        assert float(row.distance_to_kink(torch.tensor([x], dtype=torch.float64))) == 0.0
    tiny = derive("tiny", ((Term("relu", 1.0, 2.0**-1000),),))  # the argument underflows
    assert float(tiny.distance_to_kink(torch.tensor([2.0**-80], dtype=torch.float64))) == 0.0


def test_only_what_is_zero_at_zero_and_bends_there_alone_is_homogeneous() -> None:
    for component in (
        (Term("relu", 1.0, 1.0, 0.5),),
        (Term("leaky_relu", 1.0, 1.0, 1.0, (1.0,)),),  # a line that is one at zero
        (Term("abs"), Term("identity", 1.0, 0.0, 2.0)),
        (Term("relu"), Term("tanh")),
    ):
        row = derive("bent", (component,))
        assert not row.homogeneous
        assert row.sides is None
        assert Term("relu", offset=0.5).sides() is None
    both = derive("both", ((Term("relu", 2.0, -1.0), Term("abs", 0.5), Term("identity", -3.0)),))
    assert both.sides == ((-2.0 - 0.5 - 3.0, 0.5 - 3.0),)


def test_stored_factors_are_rounded_to_the_side_that_bounds_keep() -> None:
    """1/6 is above 1/6 and 1/sqrt 2 is below it; the constants of joint ones hold the exact norms of their slopes."""
    (hard,) = activation("hardsigmoid").components
    assert all(6 * Fraction(abs(term.coefficient)) >= 1 for term in hard)
    c = Fraction(INVERSE_SQRT2)
    assert 2 * c * c < 1 < 2 * Fraction(math.nextafter(INVERSE_SQRT2, 1.0)) ** 2
    facts = {name: activation(name).lipschitz for name in ("identity_abs", "sincos", "identity_abs_l2")}
    for value in (facts["identity_abs"][2], facts["sincos"][1]):
        assert Fraction(value) ** 2 > 2
    assert Fraction(facts["identity_abs_l2"][1]) ** 2 > 2
    assert 2 * Fraction(facts["identity_abs_l2"]["inf"]) ** 2 > 1
    (selu,) = activation("selu").components
    assert (selu[0].coefficient, *selu[0].parameters) == (1.0507009873554805, 1.6732632423543772)


@pytest.mark.parametrize("offset", [math.pi / 2, 1.5707963705062866, -0.3, 0.0, 2.0, 1e6 + 0.7])
def test_sines_and_cosines_of_one_frequency_are_taken_together(offset: float) -> None:
    """(sin t, sin(t + o)) has the constant sqrt(1 + |cos o|) in l_2, proved; a sine and a cosine cancel exactly."""
    with mpmath.workdps(40):
        true = mpmath.sqrt(1 + abs(mpmath.cos(mpmath.mpf(offset))))
        for components in (
            ((Term("sin"),), (Term("sin", offset=offset),)),
            ((Term("sin", scale=-1.0),), (Term("sin", -1.0, 1.0, -offset),)),
            ((Term("cos", offset=offset),), (Term("cos"),)),
        ):
            found = derive("pair", components).lipschitz[2]
            assert true <= mpmath.mpf(found) <= true * (1 + mpmath.mpf(2) ** -50)
        steep = derive("pair", ((Term("sin", 3.0, 2.0, offset),), (Term("cos", 3.0, 2.0, offset),)))
        assert steep.lipschitz[2] == 6.0
    other = derive("pair", ((Term("sin"),), (Term("sin", scale=2.0),)))  # two frequencies: both steep at zero
    assert other.lipschitz[2] >= math.sqrt(5.0)
