"""The geolip verifier: equal to a naive program in cvxpy, above every pattern of slopes, never above trivial."""

from __future__ import annotations

import itertools
import time
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import lipbridge
from lipbridge.activations.registry import activation_names
from lipbridge.errors import InvalidArgument, LipbridgeError, UnsupportedProblem
from lipbridge.lowering.chain import as_chain
from lipbridge.verifiers import Budget, Verifier
from lipbridge.vocabulary import Norm, Side, Status
from tests.support.families import FLAVOURS, network
from tests.support.jacobians import NORMS, jacobian_norms
from tests.support.lipsdp_reference import SLOPES, chain, graph_of, lmi

cp: Any = pytest.importorskip("cvxpy")
geolip: Any = pytest.importorskip("lipbridge_adapters.sdp.geolip")

torch.set_num_threads(1)
VERIFIER = geolip.GeoLipVerifier()
#: Of Grothendieck's inequality: what the program of a single hidden layer loses at most (Wang et al. 2022).
GROTHENDIECK = 1.7823


def bound(graph: lipbridge.Graph, norm: Norm, seconds: float = 60.0, **options: object) -> lipbridge.Bound:
    return VERIFIER.prepare(lipbridge.Problem(graph, lipbridge.Question.everywhere(norm))).bound(
        Budget(seconds=seconds, options=options)
    )


def matrices(graph: lipbridge.Graph) -> list[np.ndarray]:
    return [layer.weight.numpy() for layer in as_chain(graph).layers]


def reference(weights: list[np.ndarray], names: list[str], norm: Norm) -> float:
    """GeoLIP as its paper has it, bounding the gain itself and not its square, by cvxpy with another solver."""
    rows, columns = len(weights[-1]), weights[0].shape[1]
    best = 0.0
    for index in range(rows if norm == "inf" else columns):
        part = list(weights)
        if norm == "inf":
            part[-1] = part[-1][[index]]
        else:
            part[0] = part[0][:, [index]]
        n, _, units = lmi(part, names)
        order = len(units[0].form)
        output = naive_output(part, names)
        m = len(output)
        # maximise s'o over |s_k| <= 1, |x_i| <= 1: (sum w + sum d)/2 >= s'o if [diag(w) -o; -o' diag(d) - sum T] >= 0.
        w, d, T = cp.Variable(m, nonneg=True), cp.Variable(n, nonneg=True), cp.Variable(len(units), nonneg=True)
        forms = np.stack([unit.form.astype(float).ravel(order="F") for unit in units], axis=1)
        inner = cp.diag(cp.hstack([d, np.zeros(order - n)])) - cp.reshape(forms @ T, (order, order), order="F")
        whole = cp.bmat([[cp.diag(w), -output], [-output.T, inner]])
        problem = cp.Problem(cp.Minimize((cp.sum(w) + cp.sum(d)) / 2), [whole >> 0])
        problem.solve(solver="CLARABEL")
        best = max(best, float(problem.value))
    return best


def naive_output(weights: list[np.ndarray], names: list[str]) -> np.ndarray:
    """The outputs as rows over (x, p), with the variables in the order of the reference's matrix inequality."""
    n = weights[0].shape[1]
    sizes = [len(W) * (2 if name == "sincos" else 1) for W, name in zip(weights, names, strict=False)]
    y, start = np.eye(n, n + sum(sizes)), n
    for W, name, size in zip(weights, names, sizes, strict=False):
        z, p = W @ y, np.eye(size, n + sum(sizes), start)
        start += size
        y = p if name == "sincos" else np.concatenate([float(a) * z + float(b) * p for a, b in SLOPES[name][1]])
    return weights[-1] @ y


@pytest.mark.parametrize("names", [["relu"], ["relu", "gelu"], ["abs", "crelu"], ["tanh", "sincos"]], ids="-".join)
def test_it_agrees_with_the_naive_program(names: list[str]) -> None:
    graph, _ = chain(names, [*[3, 6, 5][: len(names) + 1], 2], seed=7)
    for norm in NORMS:
        assert bound(graph, norm).value == pytest.approx(reference(matrices(graph), names, norm), rel=1e-3)


@pytest.mark.parametrize("names", [["relu"], ["relu", "gelu"], ["abs", "abs"], ["leaky_relu", "sigmoid"]], ids="-".join)
def test_l1_agrees_with_linf_of_the_transposed_slopes(names: list[str]) -> None:
    """|J|_1 = |J'|_inf for every pattern of slopes, and the two programs are each other's transpose."""
    graph, _ = chain(names, [3, *[5] * len(names), 2], seed=5)
    turned = nn.Sequential()
    weights = matrices(graph)
    for index, W in enumerate(reversed(weights)):
        layer = nn.Linear(W.shape[0], W.shape[1], bias=False, dtype=torch.float64)
        with torch.no_grad():
            layer.weight.copy_(torch.tensor(W.T))
        turned.append(layer)
        if index < len(names):
            turned.append(lipbridge.activation_module(names[len(names) - 1 - index]))
    assert bound(graph, 1).value == pytest.approx(bound(graph_of(turned), "inf").value, rel=1e-3)


def patterns(graph: lipbridge.Graph, slopes: list[tuple[float, float]], norm: Norm) -> float:
    """The largest norm of W_L D ... D W_1 over all D of end slopes: what any bound from slopes must cover."""
    weights = matrices(graph)
    units = [len(W) for W in weights[:-1]]
    best = 0.0
    for choice in itertools.product([0, 1], repeat=sum(units)):
        J, place = weights[0], 0
        for W, (a, b), u in zip(weights[1:], slopes, units, strict=True):
            D = np.where(np.array(choice[place : place + u]) > 0, b, a)
            J, place = W @ (D[:, None] * J), place + u
        best = max(best, float(np.abs(J).sum(1 if norm == "inf" else 0).max()))
    return best


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("name", ["relu", "abs", "silu", "leaky_relu"])
def test_one_hidden_layer_is_within_grothendiecks_constant_of_all_patterns(name: str, norm: Norm) -> None:
    graph, _ = chain([name], [4, 8, 3], seed=11)
    exact = patterns(graph, [tuple(float(end) for end in SLOPES[name][0])], norm)
    found = bound(graph, norm).value
    assert exact * (1 - 1e-9) <= found <= exact * GROTHENDIECK
    assert found <= lipbridge.trivial_bound(graph, norm).value


@pytest.mark.parametrize("norm", NORMS)
def test_deep_networks_are_above_all_patterns(norm: Norm) -> None:
    for seed in range(3):
        graph, _ = chain(["relu", "abs", "relu"], [2, 3, 4, 3, 2], seed=seed)
        assert patterns(graph, [(0, 1), (-1, 1), (0, 1)], norm) * (1 - 1e-9) <= bound(graph, norm).value


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("name", activation_names())
def test_it_lies_between_witness_and_trivial_bound(name: str, norm: Norm) -> None:
    first = 3 * activation_names().index(name) + 4 * (norm == 1)
    for seed in range(first, first + 2):  # every activation meets a part of the flavours, in turn
        graph = graph_of(network(seed, 3, (name,), FLAVOURS[seed % len(FLAVOURS)], width=4))
        found = bound(graph, norm, eps=1e-4, max_iters=20_000)
        assert (found.side, found.proved) == (Side.UPPER, True)
        assert found.status == Status.OK, found.detail
        assert float(jacobian_norms(graph, norm, 16).max()) * (1 - 1e-9) <= found.value
        assert found.value <= lipbridge.trivial_bound(graph, norm).value


def test_it_improves_on_the_trivial_bound_and_says_what_it_did() -> None:
    graph, _ = chain(["relu", "relu"], [5, 10, 10, 3], seed=0)
    for norm, where in (("inf", "output"), (1, "input")):
        found = bound(graph, norm)
        assert found.value < 0.5 * lipbridge.trivial_bound(graph, norm).value
        assert found.method == "GeoLIP, SCS"
        assert found.extra["programs"] == found.extra[f"{where}s"]
        assert found.multipliers is not None
        assert set(found.multipliers) == {"T1", "T2", "d" if norm == "inf" else "w"}


def test_single_layers_are_exact_and_need_no_solver() -> None:
    layer = nn.Sequential(nn.Linear(5, 4)).double().requires_grad_(False)
    for norm, axis in (("inf", 1), (1, 0)):
        found = bound(graph_of(layer), norm)
        assert found.value == pytest.approx(float(layer[0].weight.abs().sum(axis).max()), rel=1e-12)
        assert found.extra["programs"] == 0
        assert "trivial" in found.method


# --- limits, options, errors -----------------------------------------------------------------------------------------


def test_the_time_limit_holds_and_leaves_a_proved_bound() -> None:
    graph, _ = chain(["relu", "relu"], [10, 60, 60, 8], seed=0)
    start = time.perf_counter()
    found = bound(graph, "inf", seconds=1.0, eps=1e-9)
    assert time.perf_counter() - start < 10.0  # one second, and the slack of a busy machine
    assert found.status == Status.TIMEOUT
    assert "outputs" in found.detail
    assert float(jacobian_norms(graph, "inf").max()) <= found.value <= lipbridge.trivial_bound(graph, "inf").value


def test_a_program_that_does_not_fit_is_refused_with_its_estimate() -> None:
    graph, _ = chain(["relu"], [10, 60, 8], seed=0)
    found = VERIFIER.prepare(lipbridge.Problem(graph, lipbridge.Question.everywhere(1))).bound(Budget(memory=2**20))
    assert (found.status, found.proved) == (Status.MEMORY, False)
    assert "GiB" in found.detail
    assert found.value != found.value


def test_a_solver_that_fails_leaves_the_closed_forms_bound() -> None:
    graph, _ = chain(["relu"], [3, 5, 2], seed=0)
    found = bound(graph, "inf", max_iters=1)
    assert found.proved
    assert float(jacobian_norms(graph, "inf").max()) <= found.value <= lipbridge.trivial_bound(graph, "inf").value


def test_bad_options_and_problems_are_refused() -> None:
    assert isinstance(VERIFIER, Verifier)
    graph, _ = chain(["relu"], [3, 5, 2], seed=0)
    for options in ({"eps": 0.0}, {"eps": "small"}, {"max_iters": 0}, {"solver": 3}):
        with pytest.raises(InvalidArgument):
            bound(graph, "inf", **options)
    with pytest.raises(LipbridgeError, match="Installed"):
        bound(graph, "inf", solver="HIGHS")
    with pytest.raises(UnsupportedProblem, match="l_inf and l_1"):
        VERIFIER.prepare(lipbridge.Problem(graph, lipbridge.Question.everywhere(2))).bound(Budget())
