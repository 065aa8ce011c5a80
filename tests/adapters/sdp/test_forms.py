"""The forms of LipSDP beside each other: their order, their agreement, their solvers, and the one that is no bound."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from importlib.util import find_spec
from typing import Any

import pytest
import torch
from torch import nn

import lipbridge
from lipbridge.activations.registry import activation_names
from lipbridge.errors import UnsupportedProblem
from lipbridge.lipsdp.blocks import blocks_of, predicted_size
from lipbridge.lipsdp.elimination import closed_form
from lipbridge.lipsdp.multipliers import closed_form_bound, prove_from_multipliers
from lipbridge.lipsdp.system import lipsdp_of
from lipbridge.study.comparison import compare
from lipbridge.verifiers import Budget, Verifier, get_verifier, list_verifiers
from lipbridge.vocabulary import Side, Status
from lipbridge_adapters.sdp.options import Options, solver_memory
from lipbridge_adapters.sdp.solve import TOO_LARGE, solve
from tests.support.families import FLAVOURS, network
from tests.support.lipsdp_reference import chain, graph_of, sampled

cp: Any = pytest.importorskip("cvxpy")
pytest.importorskip("lipbridge_adapters.sdp.lipsdp")

torch.set_num_threads(1)
FORMS = ("lipsdp", "lipsdp-chordal", "lipsdp-layer", "eclipse")
MIXED = [
    ["relu", "abs", "gelu"],
    ["crelu", "relu", "relu"],
    ["tanh", "sincos", "identity_abs"],
    ["gelu", "elu", "relu"],
]
#: Solvers without a time limit of their own, as installed.
CHILDREN = [name for name in ("CVXOPT", "SDPA") if name in cp.installed_solvers()]


def bound(name: str, graph: lipbridge.Graph, seconds: float = 60.0, **options: object) -> lipbridge.Bound:
    return (
        get_verifier(name)
        .prepare(lipbridge.Problem(graph, lipbridge.Question.everywhere(2)))
        .bound(Budget(seconds=seconds, options=options))
    )


def pulse() -> lipbridge.Graph:
    """relu(x + 1) - relu(x - 1): constant 1."""
    net = nn.Sequential(nn.Linear(1, 2), nn.ReLU(), nn.Linear(2, 1)).double()
    with torch.no_grad():
        net[0].weight.copy_(torch.ones(2, 1))
        net[0].bias.copy_(torch.tensor([1.0, -1.0]))
        net[2].weight.copy_(torch.tensor([[1.0, -1.0]]))
        net[2].bias.zero_()
    return graph_of(net)


@pytest.mark.parametrize("names", [*([name] * 3 for name in activation_names()), *MIXED], ids="-".join)
def test_the_forms_are_in_order_and_agree_where_they_must(names):
    graph, _ = chain(names, [4, 6, 5, 6, 3], seed=11)
    trivial, closed = lipbridge.trivial_bound(graph).value, closed_form_bound(graph).value
    found = {name: bound(name, graph) for name in (*FORMS, "lipsdp-fast")}
    values = {name: each.value for name, each in found.items()}
    for each in found.values():
        assert (each.side, each.proved, each.status) == (Side.UPPER, True, Status.OK)
        assert sampled(graph) <= each.value <= closed * (1 + 1e-9)
        assert prove_from_multipliers(graph, each.multipliers or {}).value == pytest.approx(each.value, rel=1e-6)
    assert values["lipsdp-chordal"] == pytest.approx(values["lipsdp"], rel=1e-3)
    assert values["lipsdp-fast"] == pytest.approx(values["lipsdp"], rel=1e-3)
    assert values["lipsdp"] <= values["lipsdp-layer"] * (1 + 1e-3)
    assert values["lipsdp"] <= values["eclipse"] * (1 + 1e-3)
    assert max(values.values()) <= trivial * (1 + 1e-9)


def test_the_forms_differ_where_they_should():
    graph, _ = chain(["relu"] * 3, [5, 10, 10, 10, 3], seed=0)
    neuron, layer = bound("lipsdp", graph).value, bound("lipsdp-layer", graph).value
    eclipse, closed = bound("eclipse", graph).value, closed_form_bound(graph).value
    assert neuron < 0.8 * layer
    assert layer < 0.9 * closed
    assert neuron < 0.9 * eclipse
    assert eclipse < 0.8 * closed


def test_layer_and_eclipse_equal_neuron_where_nothing_is_lost():
    one_unit, _ = chain(["relu", "gelu"], [3, 1, 1, 2], seed=2)
    assert bound("lipsdp-layer", one_unit).value == pytest.approx(bound("lipsdp", one_unit).value, rel=1e-3)
    one_layer, _ = chain(["relu"], [4, 7, 3], seed=2)
    assert bound("eclipse", one_layer).value == pytest.approx(bound("lipsdp", one_layer).value, rel=1e-3)


@pytest.mark.parametrize("name", FORMS[1:])
@pytest.mark.parametrize("flavour", FLAVOURS)
def test_nasty_networks_lie_between_witness_and_closed_form(name, flavour):
    for seed, names in ((13, ("relu", "crelu")), (14, ("gelu", "abs"))):
        graph = graph_of(network(seed, 4, names, flavour, width=6))
        found = bound(name, graph, eps=1e-4)
        assert (found.side, found.proved) == (Side.UPPER, True)
        assert sampled(graph) * (1 - 1e-9) <= found.value <= closed_form_bound(graph).value * (1 + 1e-9)


def test_chordal_blocks_are_small_and_as_many_as_predicted():
    graph, _ = chain(["relu", "gelu", "relu", "relu"], [9, 6, 5, 4, 5, 2], seed=3)
    system = lipsdp_of(graph)
    blocks = blocks_of(system, closed_form(system), chordal=True)
    assert [block.size for block in blocks.blocks] == [6 + 6, 6 + 5, 5 + 4, 4 + 5]
    assert blocks.slack == sum(u * (u + 1) // 2 for u in (6, 5, 4))
    entries, cells = predicted_size(system, chordal=True)
    assert sum(len(block.values) for block in blocks.blocks) == entries
    assert sum(block.size**2 for block in blocks.blocks) == cells


@pytest.mark.parametrize("solver", ["CVXOPT", "SDPA", "QICS", "MOSEK"])
def test_a_solver_that_would_take_too_much_memory_is_not_begun(solver):
    graph, _ = chain(["relu"] * 2, [4, 6, 6, 2], seed=0)
    system = lipsdp_of(graph)
    blocks = blocks_of(system, closed_form(system))
    answer = solve(blocks, Options(solver, 1e-5, 1_000_000), time.perf_counter() + 60, memory=1e8)
    assert (answer.point, answer.status) == (None, TOO_LARGE)
    assert "GiB; the limit is" in answer.detail
    cells = 1000**2
    assert solver_memory("MOSEK", cells, 500) >= solver_memory(solver, cells, 500) > solver_memory(solver, cells, 100)


# --- limits ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", FORMS)
def test_limits_leave_a_proved_bound_or_a_reason(name):
    graph, _ = chain(["relu"] * 3, [10, 60, 60, 60, 5], seed=0)
    start = time.perf_counter()
    found = bound(name, graph, seconds=0.5, eps=1e-9)
    assert time.perf_counter() - start < 10.0  # half a second, and the slack of a busy machine
    assert (found.status, found.proved) == (Status.TIMEOUT, True)
    assert "limit" in found.detail
    assert found.value <= closed_form_bound(graph).value * (1 + 1e-9)
    refused = (
        get_verifier(name)
        .prepare(lipbridge.Problem(graph, lipbridge.Question.everywhere(2)))
        .bound(Budget(memory=10**8))
    )
    assert (refused.status, refused.proved) == (Status.MEMORY, False)
    assert "GiB" in refused.detail


@pytest.mark.parametrize("solver", CHILDREN)
def test_a_solver_in_a_child_process_gives_the_same_bound(solver):
    graph, _ = chain(["relu", "gelu", "relu"], [4, 6, 5, 6, 3], seed=4)
    found = bound("lipsdp", graph, solver=solver)
    assert found.status is Status.OK
    assert found.value == pytest.approx(bound("lipsdp", graph).value, rel=1e-3)


@pytest.mark.skipif(find_spec("qics") is None, reason="QICS is not installed")
def test_qics_by_its_own_interface_gives_the_same_bound():
    graph, _ = chain(["relu", "gelu", "relu"], [4, 6, 5, 6, 3], seed=4)
    for name in FORMS:
        assert bound(name, graph, solver="qics").value == pytest.approx(bound(name, graph).value, rel=1e-3)


@pytest.mark.parametrize("solver", CHILDREN[:1])
def test_a_solver_without_a_time_limit_is_ended(solver):
    graph, _ = chain(["gelu"] * 3, [10, 70, 70, 70, 5], seed=0)
    start = time.perf_counter()
    found = bound("lipsdp-chordal", graph, seconds=5.0, solver=solver)
    assert time.perf_counter() - start < 12.0
    assert (found.status, found.proved) == (Status.TIMEOUT, True)
    assert found.value == closed_form_bound(graph).value


# --- balls -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", FORMS)
@pytest.mark.parametrize("names", [["relu", "gelu"], ["sincos", "crelu"]], ids="-".join)
def test_on_a_ball_bounds_are_smaller_and_sound(name, names):
    graph, _ = chain(names, [4, 7, 6, 3], seed=5)
    center = torch.ones(1, 4, dtype=torch.float64)
    problem = lipbridge.Problem(graph, lipbridge.Question.on(lipbridge.Ball(center, 0.05, 2), 2))
    found = get_verifier(name).prepare(problem).bound(Budget())
    columns = [graph.tangent(center, row[None])[1] for row in torch.eye(4, dtype=torch.float64)]
    assert found.proved
    assert float(torch.linalg.matrix_norm(torch.stack(columns, -1), 2)) * (1 - 1e-9) <= found.value
    assert found.value < bound(name, graph).value


# --- the mode that is no bound ---------------------------------------------------------------------------------------


def test_the_network_mode_is_below_the_constant_of_a_pulse_and_says_so():
    found = bound("lipsdp-network", pulse())
    assert found.value < 0.1  # the constant is 1
    assert not found.proved
    assert "not a bound" in found.detail
    assert "UNSOUND" in get_verifier("lipsdp-network").summary


def test_the_judge_marks_the_network_mode_unsound():
    rows = compare({"pulse": pulse()}, ["lipsdp-network", "lipsdp"], budget=Budget(seconds=20.0), isolate=False)
    status = {row.verifier: (row.status, row.proved) for row in rows}
    assert status["lipsdp-network"] == ("unsound", False)
    assert status["lipsdp"] == ("ok", True)


def test_the_network_mode_is_never_run_unless_named():
    by_default = {info.name: info.by_default for info in list_verifiers()}
    assert not by_default["lipsdp-network"]
    assert all(by_default[name] for name in FORMS)


def test_without_pairs_the_network_mode_is_lipsdp():
    graph, _ = chain(["relu", "gelu"], [3, 1, 1, 2], seed=2)  # one unit a layer: no differences
    assert bound("lipsdp-network", graph).value == pytest.approx(bound("lipsdp", graph).value, rel=1e-3)


@pytest.mark.parametrize("name", [*FORMS, "lipsdp-network"])
def test_all_are_verifiers_and_say_what_they_do_not_take(name):
    verifier = get_verifier(name)
    assert isinstance(verifier, Verifier)
    with pytest.raises(UnsupportedProblem, match="l2"):
        verifier.prepare(lipbridge.Problem(pulse(), lipbridge.Question.everywhere("inf"))).bound(Budget())


def test_the_solvers_process_imports_no_torch() -> None:
    """It would take longer than many a program."""
    code = "import sys, lipbridge_adapters.sdp.solve; sys.exit('torch' in sys.modules)"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    assert subprocess.run([sys.executable, "-c", code], check=False, env=environment).returncode == 0
