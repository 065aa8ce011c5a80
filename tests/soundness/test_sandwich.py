"""The heart: witness <= every proved upper bound, over families of networks, and the invariances of bounds.

Hypothesis draws the networks (depth, widths, activations alone and mixed, biases, and one nasty layer: rank one,
zero, dead, ill-conditioned, huge, tiny). The suite walks well over 500 of them; a failure is shrunk to a small one.
"""

from __future__ import annotations

import copy
import functools
import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import lipbridge
from lipbridge import Problem, Question, search_lower_bound, trivial_bound, witness_value
from lipbridge.activations.registry import activation, activation_names
from lipbridge.errors import NumericalFailure
from lipbridge.lipsdp.multipliers import closed_form_bound, prove_from_multipliers
from lipbridge.norms import CHEAP_PAIRS
from lipbridge.vocabulary import NORMS, exponent
from tests.support.exact.norms import compared
from tests.support.exact.rationals import exact, product
from tests.support.families import FLAVOURS, network

#: What a norm of a few entries and a quotient round by at most, relatively; taken off a witness before it is compared.
QUOTIENT = 2.0**-46

families = st.builds(
    network,
    seed=st.integers(0, 10**9),
    depth=st.integers(1, 5),
    activations=st.lists(st.sampled_from(activation_names()), min_size=1, max_size=2).map(tuple),
    flavour=st.sampled_from(FLAVOURS),
    bias=st.booleans(),
)


def lower(graph, p, q=None, seconds: float = 5.0) -> lipbridge.Bound:
    return search_lower_bound(
        Problem(graph, Question.everywhere(p, q or p)), seconds=seconds, restarts=8, steps=15, rounds=2
    )


def difference_quotient(module: nn.Module, p, q, scale: float) -> float:
    """A lower bound that knows nothing of ours: the largest quotient over random pairs, less the rounding of f."""
    generator = torch.Generator().manual_seed(0)
    n = module[0].in_features
    x, step, far = torch.randn(3, 200, n, generator=generator, dtype=torch.float64) * scale
    y = torch.where(torch.arange(200)[:, None] < 100, x + 1e-3 * step, far)
    at_x, at_y, size = x, y, torch.zeros(200, dtype=torch.float64)
    for layer in module:
        at_x, at_y = layer(at_x), layer(at_y)
        size = torch.maximum(size, torch.maximum(at_x.abs().amax(1), at_y.abs().amax(1)))
    top = torch.linalg.vector_norm(at_x - at_y, exponent(q), dim=1) - 1e-12 * size
    quotient = top / torch.linalg.vector_norm(x - y, exponent(p), dim=1)
    return float(quotient[torch.isfinite(quotient)].detach().max()) * (1 - QUOTIENT)


@settings(max_examples=25)
@given(families, st.sampled_from(CHEAP_PAIRS))
def test_witness_is_below_the_trivial_bound(module: nn.Sequential, pair) -> None:
    graph = lipbridge.capture(module)
    upper = trivial_bound(graph, *pair)
    found = lower(graph, *pair)
    assert found.proved
    assert found.value <= upper.value
    if found.witness is not None:
        assert witness_value(Problem(graph, Question.everywhere(*pair)), found.witness) == found.value
    for scale in (1e-2, 1.0, 30.0):
        assert difference_quotient(module, *pair, scale) <= upper.value


@settings(max_examples=25)
@given(families, st.integers(0, 10**9), st.sampled_from([1e-3, 1.0, 1e3]))
def test_witness_is_below_lipsdp_from_any_multipliers(module: nn.Sequential, seed: int, scale: float) -> None:
    graph = lipbridge.capture(module)
    found = lower(graph, 2)
    closed = closed_form_bound(graph)
    assert closed.multipliers is not None
    assert found.value <= closed.value
    generator = torch.Generator().manual_seed(seed)
    garbage = {
        name: torch.randn(T.shape, generator=generator, dtype=torch.float64) * scale * T.abs().mean().clamp_min(1e-3)
        for name, T in closed.multipliers.items()
    }
    proved = prove_from_multipliers(graph, garbage)
    assert proved.proved
    assert found.value <= proved.value


@settings(max_examples=25)
@given(families)
def test_lipsdp_is_never_above_the_trivial_bound(module: nn.Sequential) -> None:
    graph = lipbridge.capture(module)
    assert closed_form_bound(graph).value <= trivial_bound(graph).value * (1 + 1e-7)


@settings(max_examples=25)
@given(st.integers(0, 10**9), st.integers(1, 5), st.sampled_from(NORMS))
def test_nonnegative_relu_networks_are_known_exactly(seed: int, depth: int, norm) -> None:
    """Nonnegative weights, ReLU, no bias: the constant is ||W_L ... W_1||_p, and the sandwich closes around it."""
    module = network(seed, depth, ("relu",), bias=False)
    with torch.no_grad():
        for layer in linears(module):
            layer.weight.abs_()
    matrices = [exact(layer.weight) for layer in linears(module)]
    J = functools.reduce(lambda x, W: product(W, x), matrices)
    graph = lipbridge.capture(module)
    assert compared(J, trivial_bound(graph, norm).value, norm, norm) <= 0
    found = lower(graph, norm).value
    assert compared(J, found, norm, norm) >= 0
    assert compared(J, found / (1 - 1e-6), norm, norm) <= 0
    if norm == 2:
        assert compared(J, closed_form_bound(graph).value, 2, 2) <= 0


@settings(max_examples=25)
@given(st.integers(0, 10**9), st.sampled_from(NORMS))
def test_linear_networks_are_known_exactly(seed: int, norm) -> None:
    module = network(seed, 1, ("relu",))
    graph = lipbridge.capture(module)
    size = float(lipbridge.operator_norm(module[0].weight.detach(), norm))
    upper, found = trivial_bound(graph, norm).value, lower(graph, norm).value
    assert found == pytest.approx(size, rel=1e-6)
    assert upper <= size * (1 + 1e-11)
    assert compared(exact(module[0].weight), upper, norm, norm) <= 0
    assert compared(exact(module[0].weight), found, norm, norm) >= 0


@settings(max_examples=20)
@given(st.integers(0, 10**9), st.sampled_from(["abs", "crelu", "sincos", "identity_abs_l2"]))
def test_one_isometric_layer_with_orthonormal_rows_is_tight(seed: int, name: str) -> None:
    """theory.md, consequence 3: f = V g(c Q x), Q with orthonormal rows: the trivial bound is the constant."""
    generator = torch.Generator().manual_seed(seed)
    Q = torch.linalg.qr(torch.randn(5, 5, generator=generator, dtype=torch.float64))[0][:3]
    V = torch.randn(1, 3 * activation(name).width, generator=generator, dtype=torch.float64)
    module = nn.Sequential(
        nn.Linear(5, 3, bias=False), lipbridge.activation_module(name), nn.Linear(V.shape[1], 1)
    ).double()
    with torch.no_grad():
        module[0].weight.copy_(3.0 * Q)
        module[2].weight.copy_(V)
    graph = lipbridge.capture(module)
    upper = trivial_bound(graph).value
    found = search_lower_bound(Problem(graph, Question.everywhere(2)), seconds=20, restarts=32, steps=60).value
    assert found <= upper
    if name in ("abs", "sincos"):  # norming ones: the constant is attained
        assert found >= upper * (1 - 1e-4)


# --- invariances -----------------------------------------------------------------------------------------------------


def linears(module: nn.Sequential) -> list[nn.Linear]:
    return [layer for layer in module if isinstance(layer, nn.Linear)]


def changed(module: nn.Sequential, change) -> nn.Sequential:
    twin = copy.deepcopy(module)
    with torch.no_grad():
        change(twin)
    return twin


def bounds_of(module: nn.Sequential, norm) -> list[float]:
    graph = lipbridge.capture(module)
    values = [trivial_bound(graph, norm).value]
    return [*values, closed_form_bound(graph).value] if norm == 2 else values


tame = st.builds(
    network,
    seed=st.integers(0, 10**9),
    depth=st.integers(2, 4),
    activations=st.lists(st.sampled_from(activation_names()), min_size=1, max_size=2).map(tuple),
    flavour=st.sampled_from(["random", "rank_one", "orthogonal", "integers"]),
)


@settings(max_examples=25)
@given(tame, st.sampled_from(NORMS), st.randoms(use_true_random=False))
def test_permuting_neurons_changes_nothing(module: nn.Sequential, norm, random) -> None:
    first, second = linears(module)[:2]
    m = first.out_features
    order = torch.tensor(random.sample(range(m), m))
    width = second.in_features // m
    columns = torch.cat([order + k * m for k in range(width)])

    def permute(twin: nn.Sequential) -> None:
        a, b = linears(twin)[:2]
        a.weight.copy_(first.weight[order])
        if a.bias is not None:
            a.bias.copy_(first.bias[order])
        b.weight.copy_(second.weight[:, columns])

    twin = changed(module, permute)
    x = torch.randn(4, first.in_features, dtype=torch.float64)
    torch.testing.assert_close(twin(x), module(x))
    assert bounds_of(twin, norm) == pytest.approx(bounds_of(module, norm), rel=1e-6)


@settings(max_examples=25)
@given(tame, st.integers(0, 10**9))
def test_orthogonal_changes_of_input_and_output_change_nothing(module: nn.Sequential, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    first, last = linears(module)[0], linears(module)[-1]

    def orthogonal(n: int) -> Tensor:
        return torch.linalg.qr(torch.randn(n, n, generator=generator, dtype=torch.float64))[0]

    def turn(twin: nn.Sequential) -> None:
        linears(twin)[0].weight.copy_(first.weight @ orthogonal(first.in_features))
        linears(twin)[-1].weight.copy_(orthogonal(last.out_features) @ linears(twin)[-1].weight)

    assert bounds_of(changed(module, turn), 2) == pytest.approx(bounds_of(module, 2), rel=1e-6)


@settings(max_examples=25)
@given(tame, st.sampled_from(NORMS), st.integers(-40, 40))
def test_scaling_the_output_scales_the_bound(module: nn.Sequential, norm, power: int) -> None:
    twin = changed(module, lambda twin: linears(twin)[-1].weight.mul_(2.0**power))
    expected = [value * 2.0**power for value in bounds_of(module, norm)]
    assert bounds_of(twin, norm) == pytest.approx(expected, rel=1e-6)


@settings(max_examples=20)
@given(tame, st.sampled_from(NORMS), st.floats(-50, 50, allow_nan=False))
def test_biases_do_not_move_global_bounds(module: nn.Sequential, norm, shift: float) -> None:
    twin = changed(module, lambda twin: [layer.bias.add_(shift) for layer in linears(twin)])
    assert bounds_of(twin, norm) == bounds_of(module, norm)


# --- known answers ---------------------------------------------------------------------------------------------------


def test_a_network_whose_constant_a_full_multiplier_gets_wrong() -> None:
    """f = relu(x + 1) - relu(x - 1) has constant 1; a full matrix of multipliers would claim almost 0 (peers)."""
    module = nn.Sequential(nn.Linear(1, 2), nn.ReLU(), nn.Linear(2, 1, bias=False)).double()
    with torch.no_grad():
        module[0].weight.fill_(1.0)
        module[0].bias.copy_(torch.tensor([1.0, -1.0]))
        module[2].weight.copy_(torch.tensor([[1.0, -1.0]]))
    graph = lipbridge.capture(module)
    assert lower(graph, 2).value == pytest.approx(1.0, rel=1e-9)
    assert closed_form_bound(graph).value >= 1.0
    assert trivial_bound(graph).value >= 1.0


def test_a_derivative_at_a_kink_is_no_witness() -> None:
    """f = x - relu(x) + relu(-x) is zero, but its formal derivative at 0 is 1."""

    class Zero(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(1, 1, bias=False), nn.Linear(3, 1, bias=False)
            nn.init.ones_(self.a.weight)
            with torch.no_grad():
                self.b.weight.copy_(torch.tensor([[1.0, -1.0, 1.0]]))

        def forward(self, x: Tensor) -> Tensor:
            z = self.a(x)
            return self.b(torch.cat([z, z.relu(), (-z).relu()], -1))

    graph = lipbridge.capture(Zero())
    found = search_lower_bound(
        Problem(graph, Question.everywhere(2)), torch.zeros(3, 1, dtype=torch.float64), seconds=5, restarts=4, steps=10
    )
    assert found.value == 0.0


def test_dead_network_is_constant_but_its_trivial_bound_is_not() -> None:
    """theory.md, consequence 5: x -> relu(-1 - relu(x))."""
    module = nn.Sequential(nn.Linear(1, 1), nn.ReLU(), nn.Linear(1, 1), nn.ReLU(), nn.Linear(1, 1)).double()
    with torch.no_grad():
        for layer, (w, b) in zip(linears(module), ((1.0, 0.0), (-1.0, -1.0), (1.0, 0.0)), strict=True):
            layer.weight.fill_(w)
            layer.bias.fill_(b)
    graph = lipbridge.capture(module)
    assert lower(graph, 2).value == 0.0
    assert trivial_bound(graph).value >= 1.0


@pytest.mark.parametrize("pair", list(itertools.product(NORMS, NORMS)))
def test_lower_bounds_exist_for_all_nine_norm_pairs(pair) -> None:
    module = network(3, 3, ("abs",))
    found = lower(lipbridge.capture(module), *pair).value
    quotient = difference_quotient(module, *pair, 1.0)
    assert found >= quotient * (1 - 1e-3)


def test_overflowing_networks_are_errors_not_numbers() -> None:
    module = network(1, 3, ("abs",)).double()
    with torch.no_grad():
        for layer in linears(module):
            layer.weight.fill_(1e200)
    with pytest.raises(NumericalFailure):
        trivial_bound(module)
