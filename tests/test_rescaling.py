"""rescale: the same function, a trivial bound that is never larger and in l_2 the least possible."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import lipbridge
from lipbridge.errors import NumericalFailure, UnsupportedOperation
from lipbridge.verifiers import Budget, get_verifier
from tests.families import FLAVOURS, network

torch.set_num_threads(1)
HOMOGENEOUS = ("relu", "abs", "crelu", "identity_abs", "identity_abs_l2", "leaky_relu")
KNOWN = tuple(name for name in HOMOGENEOUS if name in lipbridge.activation_names())


def inputs(net: nn.Sequential, count: int = 50) -> Tensor:
    x = torch.randn(count, net[0].in_features, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    return x * torch.logspace(-2, 3, count, dtype=torch.float64)[:, None]


def assert_same_function(net: nn.Sequential, other: nn.Module, rtol: float = 1e-9) -> None:
    x = inputs(net)
    y = net.double()(x)
    scale = 1.0 + lipbridge.trivial_bound(net).value * x.norm(dim=1, keepdim=True) + net(0 * x).abs()
    if bool(torch.isfinite(scale).all()):
        assert float(((other.double()(x) - y).abs() / scale).detach().max()) < rtol


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    depth=st.integers(1, 5),
    names=st.lists(st.sampled_from([*KNOWN, "sincos", "tanh"]), min_size=1, max_size=3),
    flavour=st.sampled_from(FLAVOURS),
    norm=st.sampled_from([1, 2, "inf"]),
    exact=st.booleans(),
)
def test_the_function_stays_and_the_bound_does_not_grow(seed, depth, names, flavour, norm, exact):
    net = network(seed, depth, tuple(names), flavour)
    found = lipbridge.rescale(net, norm, exact=exact)
    assert type(found.module) is nn.Sequential
    assert found.after.value <= found.before.value == lipbridge.trivial_bound(net, norm).value
    assert found.after.value == lipbridge.trivial_bound(found.module, norm).value
    assert found.after.proved
    if exact:
        assert torch.equal(found.module(inputs(net)), net(inputs(net)))
    assert_same_function(net, found.module)


@pytest.mark.parametrize("names", [("abs",), ("relu",), ("crelu",), ("identity_abs_l2", "relu")], ids="-".join)
def test_in_l2_it_is_the_best_rescaling_of_a_shaken_network(names):
    net = network(5, 4, names, bias=True, width=12)
    generator = torch.Generator().manual_seed(2)
    best = lipbridge.rescale(net).after.value
    for layer, activation, after in zip(net[::2], net[1::2], net[2::2], strict=False):
        d = torch.exp2(2 * torch.randn(layer.out_features, generator=generator, dtype=torch.float64))
        with torch.no_grad():
            layer.weight *= d[:, None]
            layer.bias *= d
            after.weight /= d.repeat(after.in_features // layer.out_features)
        assert activation is not None
    found = lipbridge.rescale(net)
    assert found.after.value == pytest.approx(best, rel=3e-4)
    assert found.after.value < 0.9 * found.before.value


def test_for_slopes_up_to_one_it_is_lipsdp():
    net = network(7, 4, ("abs",), width=12)
    sdp = get_verifier("lipsdp-fast").bound(lipbridge.Problem(lipbridge.capture(net)), Budget(options={"gap": 1e-5}))
    assert lipbridge.rescale(net).after.value == pytest.approx(sdp.value, rel=2e-4)


@pytest.mark.parametrize("norm", [1, "inf"])
def test_in_l1_and_linf_it_is_the_norm_of_the_product_of_magnitudes(norm):
    net = network(3, 4, ("abs",), width=10)
    product = torch.eye(net[0].in_features, dtype=torch.float64)
    for layer in net[::2]:
        product = layer.weight.abs() @ product
    least = float(torch.linalg.matrix_norm(product.detach(), 1 if norm == 1 else math.inf))
    assert lipbridge.rescale(net, norm).after.value == pytest.approx(least, rel=1e-9)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_dtype_stays_and_powers_of_two_are_exact(dtype):
    net = network(4, 3, ("relu",), width=12).to(dtype)
    found = lipbridge.rescale(net, exact=True)
    assert {parameter.dtype for parameter in found.module.parameters()} == {dtype}
    assert found.after.value < found.before.value
    x = torch.randn(20, net[0].in_features, dtype=dtype)
    assert torch.equal(net(x), found.module(x))
    assert_same_function(net, lipbridge.rescale(net.float()).module, rtol=1e-5)


def test_the_module_given_is_not_changed():
    net = network(4, 3, ("relu",), width=12)
    before = [parameter.detach().clone() for parameter in net.parameters()]
    assert lipbridge.rescale(net).module is not net
    assert all(torch.equal(a, b) for a, b in zip(before, net.parameters(), strict=True))


def test_layers_around_other_activations_are_left_alone():
    net = network(6, 5, ("tanh", "relu", "sincos", "abs"), width=8)
    found = lipbridge.rescale(net)
    assert torch.equal(found.module[0].weight, net[0].weight)
    assert found.after.value < found.before.value
    assert_same_function(net, found.module)


def test_errors():
    shared = nn.Linear(4, 4)
    with pytest.raises(UnsupportedOperation, match="twice"):
        lipbridge.rescale(nn.Sequential(shared, nn.ReLU(), shared))
    with pytest.raises(UnsupportedOperation, match="chain"):
        lipbridge.rescale(nn.Sequential(nn.Linear(3, 4), nn.ReLU()))
    broken = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    with torch.no_grad():
        broken[0].weight[0, 0] = math.nan
    with pytest.raises(NumericalFailure):
        lipbridge.rescale(broken)


class _OtherBias(nn.Module):
    """A layer's weight with a bias that is not the layer's."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last, self.bias = nn.Linear(4, 8), nn.Linear(8, 3), nn.Parameter(torch.randn(8))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(torch.relu(nn.functional.linear(x, self.first.weight, self.bias)))


@pytest.mark.parametrize("kind", ["weight_norm", "spectral_norm", "bias"])
def test_what_would_become_another_function_is_refused(kind: str) -> None:
    torch.manual_seed(0)
    modules = {
        "weight_norm": nn.Sequential(
            nn.Linear(4, 8), nn.ReLU(), nn.utils.parametrizations.weight_norm(nn.Linear(8, 3))
        ),
        "spectral_norm": nn.Sequential(
            nn.utils.parametrizations.spectral_norm(nn.Linear(4, 8)), nn.ReLU(), nn.Linear(8, 3)
        ),
        "bias": _OtherBias(),
    }
    module, x = modules[kind].eval(), torch.randn(64, 4)
    before = module(x)
    with pytest.raises(UnsupportedOperation, match="another function"):
        lipbridge.rescale(module, input_shape=(4,))
    assert torch.equal(module(x), before)
