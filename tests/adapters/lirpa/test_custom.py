"""Custom bounds of polyactivations in a plain BoundedModule: sound, joint, no looser than component by component."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import lipbridge
from lipbridge import Budget, activation, activation_module
from lipbridge.errors import UnsupportedProblem
from lipbridge.layers.layers import GroupSort, MaxMin
from lipbridge_adapters.lirpa import custom, shim
from lipbridge_adapters.lirpa.network import Network
from lipbridge_adapters.lirpa.runner import Runner
from tests.support.chains import normal

if find_spec("auto_LiRPA") is None:
    pytest.skip("auto_LiRPA is missing: pip install --no-deps auto-LiRPA==0.3", allow_module_level=True)

METHODS = ("IBP", "CROWN-IBP", "CROWN")
NORMS = (2.0, math.inf)
WIDTHS = {name: activation(name).width for name in custom.MODULES} | {"max_min": 1, "sorted_pairs": 1}
OTHERS: dict[str, Callable[[], nn.Module]] = {"max_min": MaxMin, "sorted_pairs": GroupSort}


@pytest.fixture(autouse=True)
def _as_it_was() -> Iterator[None]:
    """Registering is for a whole process; the other tests see the tool as it was."""
    yield
    custom.unregister()


def layer(name: str, dim: int = -1) -> nn.Module:
    if name in OTHERS:
        return OTHERS[name]()
    module = activation_module(name)
    if hasattr(module, "dim"):
        module.dim = dim
    return module


def drawn(model: nn.Module, seed: int, gain: float = 1.0) -> nn.Module:
    for place, parameter in enumerate(model.parameters()):
        fan = math.prod(parameter.shape[1:]) if parameter.ndim > 1 else 4
        parameter.data = gain * normal(31 * seed + place, *parameter.shape) / fan**0.5
    return model


def dense(name: str, seed: int, gain: float = 1.5) -> nn.Module:
    k = WIDTHS[name]
    layers = [nn.Linear(4, 6), layer(name), nn.Linear(6 * k, 6), layer(name), nn.Linear(6 * k, 3)]
    return drawn(nn.Sequential(*layers), seed, gain)


def images(name: str, seed: int) -> nn.Module:
    k = WIDTHS[name]
    layers = [nn.Conv2d(1, 4, 3, padding=1), layer(name, 1), nn.Conv2d(4 * k, 4, 3, padding=1), layer(name, 1)]
    return drawn(nn.Sequential(*layers, nn.Flatten(), nn.Linear(64 * k, 3)), seed)


class _Skip(nn.Module):
    """One pre-activation that is read three times."""

    def __init__(self, name: str) -> None:
        super().__init__()
        k = WIDTHS[name]
        self.first, self.act, self.out, self.short = nn.Linear(4, 6), layer(name), nn.Linear(6 * k, 3), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        z = self.first(x)
        return self.out(self.act(z)) + self.short(z) + self.short(z.relu())


def bounds(
    model: nn.Module, x: Tensor, radius: float, norm: float, method: str, **options: Any
) -> tuple[Tensor, Tensor]:
    tool = custom.register()
    with shim.session():
        bounded = tool.BoundedModule(model, x[:1], bound_opts=options, device="cpu")
        ball = tool.PerturbationLpNorm(norm=norm, eps=radius)
        low, high = bounded.compute_bounds(x=(tool.BoundedTensor(x, ball),), method=method)
    return low.detach(), high.detach()


def reached(model: nn.Module, x: Tensor, radius: float, norm: float) -> Tensor:
    """Values ``(points, batch, outputs)`` in balls around the inputs."""
    step = normal(8, 3000, *x.shape)
    if norm == 2:
        step = step / step.flatten(2).norm(dim=2).view(3000, -1, *[1] * (x.ndim - 1))
    else:
        step = torch.where(step.abs() > 0.4, step.sign(), step)
    with torch.no_grad():
        return model((x + radius * step).flatten(0, 1)).reshape(3000, len(x), -1)


def assert_inside(model: nn.Module, x: Tensor, radius: float, norm: float, method: str, **options: Any) -> None:
    low, high = bounds(model, x, radius, norm, method, **options)
    values = reached(model, x, radius, norm)
    room = 1e-9 * (1 + high.abs().max())
    assert bool((values <= high + room).all() and (values >= low - room).all())
    assert bool((high - low).max() < 1e6)


# --- soundness -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "norm", "method"), list(product(WIDTHS, NORMS, METHODS)))
def test_no_point_is_outside(name: str, norm: float, method: str) -> None:
    for seed, radius in enumerate((1e-4, 0.1, 0.7)):
        assert_inside(dense(name, seed), normal(seed, 2, 4), radius, norm, method)


@pytest.mark.parametrize("mode", ["patches", "matrix"])
@pytest.mark.parametrize(("name", "method"), list(product(WIDTHS, METHODS)))
def test_no_point_is_outside_behind_convolutions(name: str, method: str, mode: str) -> None:
    for norm in NORMS:
        assert_inside(images(name, 3), normal(3, 2, 1, 4, 4), 0.2, norm, method, conv_mode=mode)


@pytest.mark.parametrize("name", ["abs", "crelu", "sincos", "max_min"])
def test_strides_are_sound_in_matrices(name: str) -> None:
    k = WIDTHS[name]
    layers = [nn.Conv2d(1, 4, 3, stride=2, padding=1), layer(name, 1), nn.Conv2d(4 * k, 4, 2, stride=2), layer(name, 1)]
    model = drawn(nn.Sequential(*layers, nn.Flatten(), nn.Linear(16 * k, 3)), 5)
    assert_inside(model, normal(1, 2, 1, 7, 7), 0.2, math.inf, "CROWN", conv_mode="matrix")


@pytest.mark.parametrize("name", WIDTHS)
def test_pre_activations_that_are_read_often_are_sound_with_default_options(name: str) -> None:
    """Release 0.3 with its own operators is violated there."""
    for seed in range(5):
        assert_inside(drawn(_Skip(name), seed, 1.5), normal(seed, 1, 4), 0.4, math.inf, "CROWN")


def test_functions_by_name_are_ours_too() -> None:
    class Written(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(4, 6), nn.Linear(18, 3)

        def forward(self, x: Tensor) -> Tensor:
            z = self.a(x)
            return self.b(torch.cat([z.sin(), z.cos(), z.abs()], -1))

    assert_inside(drawn(Written(), 1, 3.0), normal(0, 2, 4), 0.5, math.inf, "CROWN")


def test_in_single_precision() -> None:
    tool, model, x = custom.register(), dense("crelu", 1).float(), normal(0, 1, 4).float()
    bounded = tool.BoundedModule(model, x, device="cpu")
    low, high = bounded.compute_bounds(
        x=(tool.BoundedTensor(x, tool.PerturbationLpNorm(norm=math.inf, eps=0.1)),), method="CROWN"
    )
    values = reached(model.double(), x.double(), 0.1, math.inf)
    assert low.dtype == torch.float32
    assert bool((values <= high + 1e-5).all() and (values >= low - 1e-5).all())


# --- tightness -------------------------------------------------------------------------------------------------------


class _ByComponents(nn.Module):
    """An activation whose components are operators of their own."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.name = name

    def forward(self, z: Tensor) -> Tensor:
        parts: dict[str, Callable[[], list[Tensor]]] = {
            "crelu": lambda: [z.relu(), (-z).relu()],
            "sincos": lambda: [z.sin(), z.cos()],
            "identity_abs": lambda: [z, z.abs()],
        }
        return torch.cat(parts[self.name](), -1)


@pytest.mark.parametrize("name", ["crelu", "sincos", "identity_abs"])
def test_joint_lines_are_tighter_than_those_of_components(name: str) -> None:
    """On the mean over networks; of one hidden layer, so that both draw their lines on the same intervals."""
    joint, apart = 0.0, 0.0
    for seed in range(8):
        layers = [nn.Linear(4, 8), layer(name), nn.Linear(8 * WIDTHS[name], 3)]
        model = drawn(nn.Sequential(*layers), seed, 2.0)
        low, high = bounds(model, normal(seed, 2, 4), 0.4, math.inf, "CROWN", sparse_intermediate_bounds=False)
        joint += float((high - low).mean())
        model[1] = _ByComponents(name)
        low, high = bounds(model, normal(seed, 2, 4), 0.4, math.inf, "CROWN", sparse_intermediate_bounds=False)
        apart += float((high - low).mean())
    assert joint <= apart * (1 + 1e-9)
    if name != "identity_abs":  # a line is exact, alone or not
        assert joint < 0.97 * apart


@pytest.mark.parametrize("name", ["abs", "crelu", "identity_abs"])
def test_kinks_are_as_tight_as_our_lowering(name: str) -> None:
    """The adapter's, which writes all of them as one relu and a line."""
    for seed in range(3):
        model, x = dense(name, seed), normal(seed, 2, 4)
        low, high = bounds(model, x, 0.3, math.inf, "CROWN")
        chunks = list(Runner(Network(lipbridge.capture(model), "CROWN"), Budget(), 1).chunks(x, 0.3, "inf"))
        ours = [torch.cat([chunk[i] for chunk in chunks]) for i in (0, 1)]
        torch.testing.assert_close(torch.stack([low, high]), torch.stack(ours), rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("name", WIDTHS)
def test_intervals_of_one_layer_are_exact(name: str) -> None:
    x, first = normal(1, 1, 6), nn.Linear(6, 6)
    first.weight.data, first.bias.data = 2 * torch.eye(6, dtype=torch.float64), torch.zeros(6, dtype=torch.float64)
    model = nn.Sequential(first, layer(name))
    low, high = bounds(model, x, 0.8, math.inf, "IBP")
    grid = torch.linspace(-1.0, 1.0, 4001, dtype=torch.float64)[:, None]
    if name in OTHERS:
        step = 0.8 * torch.cartesian_prod(*[torch.tensor([-1.0, 1.0], dtype=torch.float64)] * 6)
        values = model(x + step)
    else:
        values = model(x + 0.8 * grid)  # coordinates do not meet
    assert bool((values <= high + 1e-12).all() and (values >= low - 1e-12).all())
    torch.testing.assert_close(values.amax(0, keepdim=True), high, rtol=0, atol=1e-3)
    torch.testing.assert_close(values.amin(0, keepdim=True), low, rtol=0, atol=1e-3)  # the grid misses kinks


@pytest.mark.parametrize("name", custom.MODULES)
def test_lines_are_above_the_joint_function_and_touch_it(name: str) -> None:
    facts = activation(name)
    curve = custom.curve_of(facts)
    low = 3 * normal(0, 400)
    high = low + 4 * normal(1, 400).abs()
    weights = list(normal(2, facts.width, 400))
    slope, intercept = custom.upper_lines(curve, weights, low, high)
    t = low + (high - low) * torch.linspace(0, 1, 801, dtype=torch.float64)[:, None]
    value = sum(weight * part for weight, part in zip(weights, facts.parts(t), strict=True))
    gap = slope * t + intercept - value
    assert gap.min() >= -1e-12
    if name in ("abs", "crelu", "identity_abs", "identity_abs_l2"):
        assert gap.min(0).values.max() <= 1e-2  # at a kink that the grid misses


def test_other_activations_have_no_joint_bounds() -> None:
    for name in ("tanh", "softplus", "hardsigmoid"):
        with pytest.raises(UnsupportedProblem, match=name):
            custom.curve_of(activation(name))


# --- what it leaves alone --------------------------------------------------------------------------------------------


def test_modules_are_what_they_were() -> None:
    before = {kind: kind.forward for kind in (*custom.MODULES.values(), MaxMin, GroupSort)}
    model, x = dense("crelu", 0), normal(0, 2, 4)
    expected = model(x)
    bounds(model, x, 0.1, math.inf, "IBP")
    assert before == {kind: kind.forward for kind in before}
    torch.testing.assert_close(model(x), expected, rtol=0, atol=0)
    assert lipbridge.capture(model).nodes[2].activation.name == "crelu"


def test_registering_twice_changes_nothing_more() -> None:
    tool = custom.register()
    convert = tool.BoundedModule._convert_nodes
    assert custom.register().BoundedModule._convert_nodes is convert


def test_unregistering_leaves_nothing() -> None:
    tool = shim.load()
    convert, names = tool.BoundedModule._convert_nodes, dict(tool.bound_op_map.bound_op_map)
    custom.register()
    assert tool.BoundedModule._convert_nodes is not convert
    custom.unregister()
    custom.unregister()
    assert tool.BoundedModule._convert_nodes is convert
    assert tool.bound_op_map.bound_op_map == names


def test_the_bounded_module_computes_the_model() -> None:
    tool = custom.register()
    for name in WIDTHS:
        for model, x in ((dense(name, 1), normal(0, 3, 4)), (images(name, 1), normal(0, 3, 1, 4, 4))):
            with shim.session():
                bounded = tool.BoundedModule(model, x[:1], device="cpu")
                names = [type(node).__name__ for node in bounded._modules.values()]
                torch.testing.assert_close(bounded(x), model(x), rtol=1e-12, atol=1e-12)
            assert "BoundConcat" not in names
            assert {"CurveBounds", "Pairs"} & set(names)


def test_sorting_in_larger_groups_is_refused() -> None:
    model = drawn(nn.Sequential(nn.Linear(4, 6), GroupSort(3), nn.Linear(6, 3)), 0)
    with pytest.raises(UnsupportedProblem, match=r"GroupSort\(3\)"):
        bounds(model, normal(0, 1, 4), 0.1, math.inf, "CROWN")
    assert model(normal(0, 1, 4)).shape == (1, 3)
