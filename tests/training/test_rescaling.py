"""rescale: the same function, a trivial bound that is never larger and in l_2 the least possible."""

from __future__ import annotations

import math
from collections import Counter

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import lipbridge
from lipbridge.errors import NumericalFailure, UnsupportedOperation
from lipbridge.training import rescaling
from lipbridge.verifiers import Budget, get_verifier
from tests.support.families import FLAVOURS, network
from tests.support.rescaled_modules import KINDS, Case, cases, change_of

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


@settings(max_examples=15, deadline=None)
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
    sdp = (
        get_verifier("lipsdp-fast")
        .prepare(lipbridge.Problem(lipbridge.capture(net), lipbridge.Question.everywhere(2)))
        .bound(Budget(options={"gap": 1e-5}))
    )
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


# --- the same function, or a refusal ----------------------------------------------------------------------------------


CASES = list(cases())
#: Dense cases of every fourth kind, at places in turn, in the ordinary suite; the others are slow.
QUICK = [CASES[(i % 3) * len(KINDS) + i] for i in range(0, len(KINDS), 4)]


def outcome(case: Case, norm, exact: bool) -> str:
    """What rescale makes of a case, which must be the same function and leave the module as it was."""
    module = case.module()
    stored = [(t, t.detach().clone()) for t in (*module.parameters(), *module.buffers())]
    try:
        found = lipbridge.rescale(module, norm, exact=exact, input_shape=case.input_shape)
    except UnsupportedOperation:
        return "refused"
    finally:
        assert all(torch.equal(tensor, copy) for tensor, copy in stored)
    assert change_of(module, found.module, case.input_shape) < (1e-11 if case.double else 2e-4), case
    return "rescaled" if found.after.value < found.before.value else "left"


def tally(chosen: list[Case]) -> Counter[str]:
    return Counter(outcome(case, (2, 1, "inf")[case.seed % 3], case.seed % 4 == 3) for case in chosen)


def test_modules_of_some_kinds_stay_the_same_function_or_are_refused() -> None:
    found = tally(QUICK)
    assert found["rescaled"] >= 3
    assert found["refused"] >= 1


@pytest.mark.slow
@pytest.mark.parametrize("part", range(6))
def test_two_hundred_modules_stay_the_same_function_or_are_refused(part: int) -> None:
    assert len(CASES) > 200
    chosen = CASES[part::6]
    assert tally(chosen)["rescaled"] > len(chosen) / 4


@pytest.mark.parametrize("kind", ["weight_norm", "halved", "spectral_norm", "twice", "another bias"])
@pytest.mark.parametrize("double", [True, False])
def test_only_weights_of_one_use_are_scaled(kind: str, double: bool) -> None:
    """A parametrisation is scaled through its right_inverse; what nothing can be said of is left alone."""
    case = Case(kind, 0, False, double, "relu", 3)
    module = case.module()
    found = lipbridge.rescale(module)
    assert found.after.value < found.before.value
    assert change_of(module, found.module, (4,)) < (1e-11 if double else 2e-4)
    layers = list(getattr(found.module, "layers", found.module))
    before = list(getattr(module, "layers", module))
    scaled = [not torch.equal(a.weight, b.weight) for a, b in zip(before, layers, strict=True) if hasattr(a, "weight")]
    assert scaled[0] is (kind in ("weight_norm", "halved", "twice"))
    if kind == "twice":
        assert scaled == [True, True, False, False, False]


@pytest.mark.parametrize("double", [True, False])
def test_the_comparison_notices_a_layer_that_was_scaled_alone(double: bool, monkeypatch) -> None:
    """Also where the Graph that it compares with reads the module's own memory, as in float64."""
    module = Case("plain", 0, False, double, "relu", 5).module()
    apply = rescaling._apply

    def forgetful(chain, weights, factors):
        apply(chain, [*weights[:-1], None], [*factors[:-1], 2.0 * factors[-1]])

    monkeypatch.setattr(rescaling, "_apply", forgetful)
    with pytest.raises(UnsupportedOperation, match="another function"):
        lipbridge.rescale(module)


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
@pytest.mark.parametrize("kind", ["plain", "weight_norm"])
def test_an_interruption_leaves_the_module_bit_for_bit(error, kind, monkeypatch) -> None:
    module = Case(kind, 1, False, True, "relu", 5).module()
    stored = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    write = rescaling.ScalableWeight.write
    written: list[int] = []

    def broken(self, weight, bias):
        if written:
            raise error
        written.append(1)
        write(self, weight, bias)

    monkeypatch.setattr(rescaling.ScalableWeight, "write", broken)
    with pytest.raises(error):
        lipbridge.rescale(module)
    assert all(torch.equal(tensor, stored[name]) for name, tensor in module.state_dict().items())


class _Alone(nn.Linear):
    """Copies share its parameters."""

    def __deepcopy__(self, memo):
        return self


def test_what_cannot_be_copied_is_refused_in_words() -> None:
    with pytest.raises(UnsupportedOperation, match="shares tensors"):
        lipbridge.rescale(nn.Sequential(_Alone(3, 4), nn.ReLU(), nn.Linear(4, 2)))
    with pytest.raises(UnsupportedOperation, match="cannot be copied"):
        lipbridge.rescale(Case("pruned", 0, False, True, "relu", 0).module())


def test_why_no_weight_may_be_scaled_is_told() -> None:
    linear, last = nn.Linear(3, 4), nn.Linear(4, 2)
    spectral = nn.Sequential(nn.utils.parametrizations.spectral_norm(nn.Linear(3, 4)), nn.ReLU(), last).eval()
    with pytest.raises(UnsupportedOperation, match="right_inverse"):
        lipbridge.rescale(spectral)
    other = Case("another bias", 0, False, True, "relu", 0).module()
    other.layers = nn.ModuleList([linear, nn.ReLU(), last])
    other.extra = nn.Parameter(torch.randn(4))
    with pytest.raises(UnsupportedOperation, match="bias"):
        lipbridge.rescale(other)
