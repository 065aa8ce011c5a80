"""The table of nodes: every kind has in every rule a function that does what the rule is for, or a reason."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

import lipbridge
from lipbridge.constants.node_constants import propagate
from lipbridge.errors import UnsupportedOperation, UnsupportedProblem
from lipbridge.graph.evaluation import evaluate, push
from lipbridge.graph.graph import Graph
from lipbridge.graph.nodes import (
    Conv,
    Dense,
    Gather,
    Input,
    Node,
    Reshape,
)
from lipbridge.graph.rules import RULES, ProblemRule, Rule
from lipbridge.lowering.dense import lower_to_dense
from lipbridge.propagation.bounds import forward_bounds
from lipbridge.rigor.running_error import enclose
from lipbridge.rigor.tangent_error import enclose_tangent
from lipbridge.training import penalty
from lipbridge.vocabulary import NORMS
from tests.support.node_graphs import NETWORKS, draw, graph_on

#: Rules of an adapter that may not be installed.
FOREIGN = ("ONNX",)


def kinds() -> list[type[Node]]:
    """Every kind of node of the package."""
    return [kind for kind in Node.__subclasses__() if kind.__module__.startswith("lipbridge.")]


def points(kind: type[Node], count: int = 5) -> Tensor:
    return draw(count, *NETWORKS[kind].input_shape)


def test_there_is_a_network_of_every_kind() -> None:
    assert set(NETWORKS) == set(kinds()) - {Input}


@pytest.mark.parametrize("rule", [rule for rule in RULES if rule not in FOREIGN])
@pytest.mark.parametrize("kind", kinds(), ids=lambda kind: kind.__name__)
def test_no_cell_is_empty(kind: type[Node], rule: str) -> None:
    cell = RULES[rule].cell(kind)
    assert cell is not None, f"the rule {rule!r} says nothing of {kind.__name__}"
    assert callable(cell) or len(cell) > 20


@pytest.mark.parametrize("kind", kinds(), ids=lambda kind: kind.__name__)
def test_no_cell_of_an_adapter_is_empty(kind: type[Node]) -> None:
    pytest.importorskip("onnx")
    pytest.importorskip("lipbridge_adapters.onnx.export")
    for rule in FOREIGN:
        cell = RULES[rule].cell(kind)
        assert callable(cell) or (cell is not None and len(cell) > 20)


def test_the_rules_are_those_that_the_package_is_made_of() -> None:
    assert {*RULES} >= {
        *("evaluation", "tangent", "constant", "bounds", "linear bounds", "running error"),
        *("running error of the tangent", "lowering", "live constant"),
    }
    assert penalty.TrivialBoundPenalty is lipbridge.TrivialBoundPenalty


@pytest.mark.parametrize("kind", NETWORKS, ids=lambda kind: kind.__name__)
def test_the_tangent_is_the_derivative_of_the_value(kind: type[Node]) -> None:
    graph, x = NETWORKS[kind], points(kind)
    v = draw(7, *graph.input_shape)[:5]
    value, tangent = graph.tangent(x, v)
    expected, derivative = torch.func.jvp(graph, (x,), (v,))
    torch.testing.assert_close(value, expected)
    torch.testing.assert_close(tangent, derivative)


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("kind", NETWORKS, ids=lambda kind: kind.__name__)
def test_the_constant_is_no_quotient_s_less(kind: type[Node], norm: Any) -> None:
    graph, x = NETWORKS[kind], points(kind, 40)
    constant = lipbridge.trivial_bound(graph, norm).value
    change, y = graph(x[1:]) - graph(x[:-1]), x[1:] - x[:-1]
    order = math.inf if norm == "inf" else norm
    quotients = torch.linalg.vector_norm(change.flatten(1), order, 1) / torch.linalg.vector_norm(y.flatten(1), order, 1)
    assert float(quotients.max()) <= constant * (1 + 1e-12)
    assert propagate.knows(kind)


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize(
    "kind", [k for k in NETWORKS if RULES["live constant"].knows(k)], ids=lambda kind: kind.__name__
)
def test_a_live_constant_is_the_constant_with_its_derivative(kind: type[Node], norm: Any) -> None:
    rule, graph = RULES["live constant"], NETWORKS[kind]
    node, before = graph.nodes[-1], torch.tensor([1.5, 0.75], dtype=torch.float64)
    jets = list(torch.cat([before[:, None], torch.eye(2, dtype=torch.float64)], 1))  # derivatives in each input's own
    found = rule(node, jets, norm)

    def constant(a: float, b: float) -> float:
        return propagate(node, [{norm: a}, {norm: b}], [graph.nodes[i].shape for i in node.inputs])[norm]

    (a, b), step = before.tolist(), 1e-6
    slopes = [constant(a + step, b) - constant(a - step, b), constant(a, b + step) - constant(a, b - step)]
    expected = torch.tensor([constant(a, b), *(slope / (2 * step) for slope in slopes)], dtype=torch.float64)
    torch.testing.assert_close(found, expected, rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize("kind", NETWORKS, ids=lambda kind: kind.__name__)
def test_bounds_and_errors_contain_the_values(kind: type[Node]) -> None:
    graph, center = NETWORKS[kind], points(kind, 1)
    ball = lipbridge.Ball(center, 0.3, "inf")
    inside = center + 0.3 * (2.0 * torch.rand(50, *graph.input_shape, dtype=torch.float64) - 1.0)
    found = forward_bounds(graph, ball)[-1]
    values = graph(inside)
    assert bool((values >= found.lower - 1e-12).all())
    assert bool((values <= found.upper + 1e-12).all())
    enclosure = enclose(graph, inside)
    torch.testing.assert_close(enclosure.value, values)
    assert bool((enclosure.error >= 0).all())
    assert float(enclosure.error.max()) < 1e-10
    tangent = enclose_tangent(graph, inside, torch.ones_like(inside))
    torch.testing.assert_close(tangent.tangent.value, graph.tangent(inside, torch.ones_like(inside))[1])


@pytest.mark.parametrize("kind", NETWORKS, ids=lambda kind: kind.__name__)
def test_the_lowering_keeps_the_function(kind: type[Node]) -> None:
    graph, x = NETWORKS[kind], points(kind)
    lowered = lower_to_dense(graph).graph
    torch.testing.assert_close(lowered(x).flatten(1), graph(x).flatten(1))
    assert all(len(node.shape) == 1 or not isinstance(node, Dense | Conv) for node in lowered.nodes)


@pytest.mark.parametrize("kind", NETWORKS, ids=lambda kind: kind.__name__)
def test_the_onnx_file_comes_back(kind: type[Node], tmp_path) -> None:
    pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    graph, x = NETWORKS[kind], points(kind)
    if kind in (Gather, Reshape):  # with a layer behind, as no file is without one
        graph = Graph((*graph.nodes, Dense("end", (len(graph.nodes) - 1,), (2,), draw(2, graph.output_shape[-1]))))
        graph = graph_on(*graph.nodes[1:], shape=graph.input_shape)
    lipbridge.export_onnx(graph, tmp_path / "n.onnx", "native")
    again = lipbridge.read_onnx(tmp_path / "n.onnx")
    torch.testing.assert_close(again(x).flatten(1), graph(x).flatten(1), rtol=1e-5, atol=1e-5)


def test_a_kind_that_nobody_knows_is_refused_by_name() -> None:
    class Unknown(Node):
        pass

    node = Unknown("odd", (0,), (2,))
    with pytest.raises(UnsupportedOperation, match=r"odd.*Unknown"):
        evaluate(node, [draw(1, 2)])
    with pytest.raises(UnsupportedOperation, match="odd"):
        push(node, [(draw(1, 2), draw(1, 2))], 0.0)
    with pytest.raises(UnsupportedProblem, match="odd"):
        lower_to_dense(Graph((Input("x", (), (2,)), node)))
    assert evaluate.cell(Unknown) is None


def test_a_cell_is_filled_once() -> None:
    rule = Rule[[int], int]("for a test")
    try:
        rule.of(Dense)(lambda node, more: more + 1)
        rule.without(Conv, reason="it has no number in this test")
        assert rule(NETWORKS[Dense].nodes[1], 2) == 3
        with pytest.raises(ValueError, match="Dense already"):
            rule.without(Dense, reason="twice")
        with pytest.raises(UnsupportedOperation, match="no number in this test"):
            rule(NETWORKS[Conv].nodes[1], 2)
        other = ProblemRule[[], int]("also for a test", "is not in it.")
        with pytest.raises(UnsupportedProblem, match=r"Layer `n` \(Dense\) is not in it"):
            other(NETWORKS[Dense].nodes[1])
    finally:
        for name in ("for a test", "also for a test"):
            RULES.pop(name, None)
