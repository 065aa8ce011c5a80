"""Networks that give one number for each input, of shape (batch,): verifiers, files and penalties take them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import lipbridge
from lipbridge import Ball, Problem, Question
from lipbridge.errors import InvalidArgument, UnsupportedProblem
from lipbridge.graph.graph import Graph
from lipbridge.graph.nodes import Conv, Dense, Input, Node, Reshape
from lipbridge.rigor.running_error import enclose


class Number(nn.Module):
    """A regression network that drops its last axis in one of the usual ways, and computes on."""

    def __init__(self, ending: str) -> None:
        super().__init__()
        self.a, self.b, self.ending = nn.Linear(3, 6), nn.Linear(6, 1), ending

    def forward(self, x: Tensor) -> Tensor:
        h = self.a(x)
        y = self.b(h.relu())
        match self.ending:
            case "squeeze":
                return y.squeeze(-1)
            case "index":
                return 3.0 * y[:, 0]
            case "sum":
                return h.abs().sum(1)
            case "curve":
                return y.squeeze(1).tanh()
            case "skip":
                return 2.0 * y.squeeze(1) + x.mean(1)
            case _:
                return -h.view(-1, 2, 3).amin(2).amax(1)


ENDINGS = ["squeeze", "index", "sum", "curve", "skip", "extremes"]


def graph_of(ending: str) -> tuple[Graph, nn.Module]:
    torch.manual_seed(5)
    module = Number(ending).double()
    return lipbridge.capture(module, (3,)), module


@pytest.mark.parametrize("ending", ENDINGS)
def test_the_graph_gives_the_number(ending: str) -> None:
    graph, module = graph_of(ending)
    x = torch.randn(7, 3, dtype=torch.float64)
    assert graph.output_shape == ()
    torch.testing.assert_close(graph(x), module(x).detach())
    assert all(node.shape for node in graph.nodes[:-1])
    assert Problem(graph, Question.everywhere(2)).graph.output_shape == (1,)
    torch.testing.assert_close(Problem(graph, Question.everywhere(2)).graph(x)[:, 0], graph(x))


@pytest.mark.parametrize("ending", ENDINGS)
@pytest.mark.parametrize("norm", [1, 2, "inf"])
@pytest.mark.parametrize("local", [False, True])
def test_every_verifier_bounds_it_or_says_no(ending: str, norm: lipbridge.vocabulary.Norm, local: bool) -> None:
    graph, _ = graph_of(ending)
    region = Ball(torch.zeros(1, 3, dtype=torch.float64), 0.5, norm) if local else None
    problem = Problem(graph, Question(input_norm=norm, output_norm=norm, region=region))
    low = lipbridge.search_lower_bound(problem).value
    assert low > 0.0
    taken = []
    for entry in (verifier for verifier in lipbridge.list_verifiers() if verifier.installed):
        try:
            bound = lipbridge.get_verifier(entry.name).prepare(problem).bound(lipbridge.Budget(seconds=20))
        except UnsupportedProblem:
            continue
        taken.append(entry.name)
        if bound.side == "upper" and bound.proved:
            assert bound.value >= low * (1.0 - 1e-12), entry.name
    assert {"trivial", "witness"} <= set(taken)


@pytest.mark.parametrize("ending", ENDINGS)
def test_its_penalty_is_its_bound(ending: str) -> None:
    graph, module = graph_of(ending)
    penalty = lipbridge.TrivialBoundPenalty(module, input_shape=(3,))
    assert penalty.bound().value == lipbridge.trivial_bound(graph).value


def test_one_number_as_input_says_the_way_out() -> None:
    with pytest.raises(InvalidArgument, match=r"x\[:, 0\]"):
        lipbridge.capture(Number("squeeze"), ())


def test_only_the_output_has_a_shape_without_axes() -> None:
    number = (Input("x", (), (2,)), Dense("d", (0,), (1,), torch.ones(1, 2)), Reshape("r", (1,), ()))
    assert Graph(number).output_shape == ()
    with pytest.raises(ValueError, match="without axes"):
        Graph((*number, Reshape("s", (2,), (1,))))


@pytest.mark.parametrize("ending", ENDINGS)
def test_its_running_error_covers_its_rounding(ending: str) -> None:
    graph, _ = graph_of(ending)
    x = torch.randn(6, 3, dtype=torch.float64)
    enclosure = enclose(graph, x)
    single = Graph(tuple(_single(node) for node in graph.nodes))(x.float()).double()
    assert enclosure.error.shape == (6,)
    assert bool(((single - graph(x)).abs() <= 2.0**29 * enclosure.error).all())


def _single(node: Node) -> Node:
    if not isinstance(node, Dense | Conv):
        return node
    return replace(node, weight=node.weight.float(), bias=None if node.bias is None else node.bias.float())


@pytest.mark.parametrize("ending", [e for e in ENDINGS if e != "curve"])
@pytest.mark.parametrize("dialect", ["native", "relu"])
def test_files_keep_its_bound(ending: str, dialect: str, tmp_path: Path) -> None:
    pytest.importorskip("onnx", reason="needs lipbridge[onnx]")
    from lipbridge_adapters.onnx.export import export_onnx
    from lipbridge_adapters.onnx.reading import read_onnx

    graph, _ = graph_of(ending)
    export_onnx(graph, tmp_path / "a.onnx", dialect=dialect)
    found = lipbridge.trivial_bound(read_onnx(tmp_path / "a.onnx")).value
    assert found == pytest.approx(lipbridge.trivial_bound(graph).value, rel=1e-6)
