"""LipSDP from multipliers: never below a witness, whatever the multipliers; equal to the naive matrix inequality."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import lipbridge
from lipbridge.activations.registry import activation, activation_names
from lipbridge.errors import InvalidArgument, NumericalFailure
from lipbridge.lipsdp.constraints import increments_of
from lipbridge.lipsdp.dense_problem import l2_problem
from lipbridge.lipsdp.elimination import closed_form, eliminate
from lipbridge.lipsdp.multipliers import (
    closed_form_bound,
    closed_form_multipliers,
    prove_from_multipliers,
)
from lipbridge.lipsdp.proof import prove
from lipbridge.lipsdp.system import lipsdp_of
from tests.support.families import FLAVOURS, network
from tests.support.lipsdp_reference import SLOPES, chain, graph_of, is_positive_semidefinite, lmi, sampled
from tests.support.refusals import reason

torch.set_num_threads(1)
NAMES = activation_names()
REFERENCED = [*SLOPES, "sincos"]


def garbage(multipliers: dict[str, torch.Tensor], kind: str, seed: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    made = {
        "uniform": lambda T: torch.rand(T.shape, generator=generator, dtype=torch.float64),
        "signed": lambda T: torch.randn(T.shape, generator=generator, dtype=torch.float64),
        "zeros": torch.zeros_like,
        "huge": lambda T: torch.full_like(T, 1e300),
        "tiny": lambda T: torch.full_like(T, 1e-300),
        "wild": lambda T: torch.exp(30 * torch.randn(T.shape, generator=generator, dtype=torch.float64)),
        "near": lambda T: T * (1 + 1e-3 * torch.randn(T.shape, generator=generator, dtype=torch.float64)),
        "float32": lambda T: T.float(),
    }[kind]
    return {key: made(T) for key, T in multipliers.items()}


KINDS = ("uniform", "signed", "zeros", "huge", "tiny", "wild", "near", "float32")


# --- increments ------------------------------------------------------------------------------------------------------


def leaky(slope: float) -> nn.Module:
    return nn.LeakyReLU(slope)


class Written(nn.Module):
    """A polyactivation that is in no registry."""

    def __init__(self, function) -> None:
        super().__init__()
        self.function = function

    def forward(self, z):
        return self.function(z)


WRITTEN = {
    "leaky 0.3": leaky(0.3),
    "leaky -2": leaky(-2.0),
    "leaky almost a line": leaky(1 - 1e-13),
    "elu 2": nn.ELU(2.0),
    "line": Written(lambda z: -3 * z),
    "sin + relu": Written(lambda z: z.sin() + 0.3 * z.relu()),
    "sin, relu": Written(lambda z: torch.cat([z.sin(), 0.7 * z.relu()], -1)),
    "relu, 0.3 relu(-), t": Written(lambda z: torch.cat([z.relu(), 0.3 * (-z).relu(), 0.1 * z], -1)),
    "2 sin, 2 cos": Written(lambda z: torch.cat([2 * z.sin(), 2 * z.cos()], -1)),
    "relu - shifted relu": Written(lambda z: z.relu() - (z + 1).relu()),
    "mirrored leaky": Written(lambda z: nn.functional.leaky_relu(-2 * z, 0.25)),
    "mirrored leaky, leaky": Written(
        lambda z: torch.cat([nn.functional.leaky_relu(-2 * z, 0.25), nn.functional.leaky_relu(z, 0.25)], -1)
    ),
    "relu, shifted relu": Written(lambda z: torch.cat([z.relu(), 0.5 * (3 * z - 1).relu() + 0.2 * z], -1)),
    "two elus": Written(lambda z: torch.cat([nn.functional.elu(z, 2.0), nn.functional.elu(2 * z, 0.5)], -1)),
    "elus of two parameters": Written(lambda z: torch.cat([nn.functional.elu(z, 2.0), nn.functional.elu(z, 0.5)], -1)),
    "tanh, tanh of 2 t": Written(lambda z: torch.cat([z.tanh(), (2 * z).tanh()], -1)),
    "tanh, sin, abs": Written(lambda z: torch.cat([z.tanh(), z.sin() + 0.1 * z, z.abs()], -1)),
}


def rows():
    yield from (activation(name) for name in NAMES)
    for module in WRITTEN.values():
        width = module(torch.ones(1, 1)).shape[-1]
        graph = lipbridge.capture(nn.Sequential(nn.Linear(1, 1), module, nn.Linear(width, 1)))
        yield from (node.activation for node in graph if hasattr(node, "activation"))


@pytest.mark.parametrize("row", list(rows()), ids=[*NAMES, *WRITTEN])
def test_increments_of_every_activation_obey_their_constraints(row):
    rule = increments_of(row)
    points = torch.randn(2, 4000, dtype=torch.float64, generator=torch.Generator().manual_seed(1)) * 3
    s, t = torch.cat([points, torch.stack([points[0], points[0] + 1e-6]), torch.tensor([[0.0] * 2, [2.0, -2.0]])], 1)
    z = s - t
    y = (row(s[:, None]) - row(t[:, None])).T
    rest = y - rule.outputs[:, :1] * z
    R = rule.outputs[:, 1:]
    q = torch.linalg.lstsq(R, rest).solution if rule.variables else torch.zeros(0, len(z), dtype=torch.float64)
    off = (rest - R @ q).abs() - rule.radius[:, :1] * z.abs()
    assert float(off.max()) < 1e-12
    for c in range(rule.constraints):
        mine = q[[j for j, group in enumerate(rule.group) if group == c]]
        assert float((mine.square().sum(0) - z.square()).max()) < 1e-10


def test_one_variable_where_one_is_enough():
    assert increments_of(activation("crelu")).variables == 1
    assert increments_of(activation("identity_abs")).variables == 1
    assert increments_of(activation("sin2_pair")).variables == 1
    assert increments_of(activation("sincos")).constraints == 1
    assert increments_of(activation("sincos")).cuts
    assert increments_of(activation("abs")).cuts
    assert not increments_of(activation("relu")).cuts


# --- soundness -------------------------------------------------------------------------------------------------------


@settings(max_examples=150, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    depth=st.integers(1, 5),
    names=st.lists(st.sampled_from(NAMES), min_size=1, max_size=3),
    flavour=st.sampled_from(FLAVOURS),
    kind=st.sampled_from(KINDS),
)
def test_no_multipliers_give_a_bound_below_a_witness(seed, depth, names, flavour, kind):
    graph = graph_of(network(seed, depth, tuple(names), flavour))
    closed = closed_form_bound(graph)
    trivial = lipbridge.trivial_bound(graph)
    witness = sampled(graph) * (1 - 1e-9)
    assert closed.proved
    assert witness <= closed.value <= trivial.value * (1 + 1e-6)
    bound = prove_from_multipliers(graph, garbage(dict(closed.multipliers or {}), kind, seed))
    assert witness <= bound.value <= closed.value * (1 + 1e-6)


@settings(max_examples=80, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    depth=st.integers(2, 5),
    name=st.sampled_from(NAMES),
    spread=st.sampled_from([10, 100]),
    axis=st.sampled_from(["rows", "columns", "entries"]),
)
def test_weights_of_wildly_different_size_are_no_trouble(seed, depth, name, spread, axis):
    net = network(seed, depth, (name,))
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for layer in net:
            if isinstance(layer, nn.Linear):
                m, n = layer.weight.shape
                shape = {"rows": (m, 1), "columns": (1, n), "entries": (m, n)}[axis]
                exponents = (spread * torch.randn(shape, generator=generator, dtype=torch.float64)).round()
                layer.weight *= torch.exp2(exponents.clamp(-150, 150))
    graph = graph_of(net)
    value = closed_form_bound(graph).value
    assert sampled(graph) * (1 - 1e-9) <= value <= lipbridge.trivial_bound(graph).value * (1 + 1e-6)


@pytest.mark.parametrize("name", NAMES)
def test_every_activation_on_a_deeper_network(name):
    for flavour in ("random", "ill_conditioned", "rank_one"):
        graph = graph_of(network(3, 5, (name,), flavour, width=12))
        bound = closed_form_bound(graph)
        assert sampled(graph, 200) * (1 - 1e-9) <= bound.value <= lipbridge.trivial_bound(graph).value * (1 + 1e-6)


@pytest.mark.parametrize("flavour", ["zero_layer", "dead"])
def test_a_constant_network_has_bound_zero_only_if_a_weight_is_zero(flavour):
    graph = graph_of(network(5, 3, ("relu",), flavour))
    value = closed_form_bound(graph).value
    assert value == 0.0 if flavour == "zero_layer" else value > 0.0


def test_units_that_lead_nowhere_are_dropped_exactly():
    net = network(11, 4, ("gelu", "crelu", "abs"), width=8)
    before = closed_form_bound(graph_of(net))
    with torch.no_grad():
        wide = nn.Linear(net[0].in_features, net[0].out_features + 2, dtype=torch.float64)
        wide.weight.copy_(torch.cat([net[0].weight, torch.full((2, net[0].in_features), 1e9)]))
        after = nn.Linear(net[2].in_features + 2, net[2].out_features, dtype=torch.float64)
        after.weight.copy_(torch.cat([net[2].weight, torch.zeros(net[2].out_features, 2)], 1))
    bound = closed_form_bound(graph_of(nn.Sequential(wide, net[1], after, *net[3:])))
    assert bound.value == pytest.approx(before.value, rel=1e-9)
    assert (bound.multipliers or {})["T1"].shape == (net[0].out_features + 2,)
    assert not (bound.multipliers or {})["T1"][-2:].any()


# --- against the naive inequality ------------------------------------------------------------------------------------


def assembled(weights, names, multipliers, rho):
    """The naive matrix at the multipliers, which are ours (of q) divided by the ratio of the two forms."""
    n, gram, units = lmi(weights, names)
    matrix = -gram
    for i in range(n):
        matrix[i, i] += rho
    values = [value for layer in range(len(names)) for value in multipliers[f"T{layer + 1}"]]
    for value, unit in zip(values, units, strict=True):
        matrix = matrix - value / unit.ratio * unit.form
    return matrix


CASES = [[name] for name in REFERENCED] + [[name, name] for name in REFERENCED]
CASES += [
    ["relu", "abs", "gelu"],
    ["sincos", "relu"],
    ["crelu", "sin2_pair", "abs"],
    ["tanh", "sincos", "identity_abs"],
]


@pytest.mark.parametrize("names", CASES, ids="-".join)
def test_rho_is_the_least_for_which_the_naive_matrix_is_semidefinite(names):
    graph, weights = chain(names, [*[3, 5, 4, 3, 2][: len(names) + 1], 2], seed=len(names))
    system = lipsdp_of(graph)
    generator = torch.Generator().manual_seed(0)
    vectors = [T * (1.1 + torch.rand(T.shape, generator=generator)) for T in closed_form(system)]
    for layer in range(len(vectors) - 1, -1, -1):  # raised from the output on, until they are feasible
        while eliminate(system, vectors) is None and layer == 0:
            vectors = [T * (2.0 ** (len(vectors) - k)) for k, T in enumerate(vectors)]
    rho = float(eliminate(system, vectors))
    value, proved = prove(system, vectors)
    assert value == pytest.approx(math.sqrt(rho) * 2.0**system.exponent, rel=1e-8)
    table = {key: T.numpy() for key, T in system.multipliers(proved).items()}

    def smallest(factor: float) -> float:
        matrix = assembled(weights, names, table, rho * factor).astype(float)
        return float(np.linalg.eigvalsh(matrix)[0])

    assert smallest(1.0) > -1e-9
    assert smallest(1.0 - 1e-4) < -1e-12


@pytest.mark.parametrize("names", [["relu"], ["abs"], ["relu", "relu"], ["abs", "crelu"], ["sincos"]], ids="-".join)
@pytest.mark.parametrize("seed", range(3))
def test_the_proved_inequality_holds_in_exact_arithmetic(names, seed):
    graph, weights = chain(names, [*[2, 3, 2, 2][: len(names) + 1], 2], seed)
    exact = [np.vectorize(Fraction, otypes=[object])(W) for W in weights]
    bound = closed_form_bound(graph)
    table = {key: [Fraction(float(value)) for value in T] for key, T in (bound.multipliers or {}).items()}
    root = Fraction(bound.value) / Fraction(2) ** lipsdp_of(graph).exponent
    n, gram, units = lmi(exact, names)
    values = [value for layer in range(len(names)) for value in table[f"T{layer + 1}"]]

    def matrix(rho):
        total = -gram
        for i in range(n):
            total[i, i] = total[i, i] + rho
        for value, unit in zip(values, units, strict=True):
            total = total - value / Fraction(unit.ratio) * unit.form
        return total

    assert is_positive_semidefinite(matrix(root * root))
    assert not is_positive_semidefinite(matrix(root * root * (1 - Fraction(1, 10**6))))


def test_the_gradient_in_the_multipliers_exists():
    graph, _ = chain(["relu", "crelu"], [3, 5, 4, 2], seed=0)
    system = lipsdp_of(graph)
    vectors = [(1.1 * T).requires_grad_() for T in closed_form(system)]
    eliminate(system, vectors).backward()
    assert all(bool(torch.isfinite(T.grad).all()) for T in vectors)


# --- invariances, errors ---------------------------------------------------------------------------------------------


def test_powers_of_two_scale_the_bound_exactly():
    net = network(21, 4, ("silu", "abs", "relu"), width=8)
    before = closed_form_bound(graph_of(net)).value
    with torch.no_grad():
        net[0].weight *= 2.0**200
        net[2].weight *= 2.0**-70
    assert closed_form_bound(graph_of(net)).value == before * 2.0**130


def test_infeasible_multipliers_are_refused_by_the_proof_itself():
    system = lipsdp_of(graph_of(network(1, 3, ("abs",), width=8)))
    with pytest.raises(NumericalFailure, match="too far from feasible"):
        prove(system, [0.5 * T for T in closed_form(system)])


def test_errors():
    graph = graph_of(network(1, 3, ("relu",)))
    good = closed_form_multipliers(graph)
    for bad in (math.nan, math.inf):
        with pytest.raises(InvalidArgument, match="finite"):
            prove_from_multipliers(graph, {key: torch.full_like(T, bad) for key, T in good.items()})
    with pytest.raises(InvalidArgument, match="T2"):
        prove_from_multipliers(graph, {"T1": good["T1"]})
    with pytest.raises(InvalidArgument, match="length"):
        prove_from_multipliers(graph, {key: torch.ones(99) for key in good})
    net = network(1, 3, ("relu",))
    with torch.no_grad():
        net[0].weight[0, 0] = math.nan
    with pytest.raises(NumericalFailure, match="NaN"):
        closed_form_bound(graph_of(net))


def test_what_is_not_supported_says_why():
    graph = graph_of(network(1, 3, ("relu",)))
    ball = lipbridge.Ball(torch.zeros(1, *graph.input_shape, dtype=torch.float64), 1.0, 2)
    assert reason(l2_problem(lipbridge.Problem(graph, lipbridge.Question.everywhere(2)))) is None
    assert reason(l2_problem(lipbridge.Problem(graph, lipbridge.Question.on(ball, 2)))) is None
    assert "norm inf" in str(reason(l2_problem(lipbridge.Problem(graph, lipbridge.Question.everywhere("inf")))))
    assert "chain" in str(
        reason(
            l2_problem(
                lipbridge.Problem(
                    lipbridge.capture(nn.Sequential(nn.Linear(2, 2), nn.ReLU())), lipbridge.Question.everywhere(2)
                )
            )
        )
    )
