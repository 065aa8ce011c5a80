"""The registry's conformance test: every fact of every row, checked numerically."""

from __future__ import annotations

import math

import pytest
import torch

from lipbridge.activations import (
    SCALAR_FUNCTIONS,
    Term,
    activation,
    activation_module,
    activation_names,
    derive,
    recognise,
    register,
    saturating,
)
from lipbridge.errors import InvalidArgument, UnknownName
from lipbridge.vocabulary import NORMS, exponent

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
