"""One walk over a Graph: in order, with the inputs' values, and without those that nothing reads any more."""

from __future__ import annotations

import gc
import weakref

import pytest
import torch

import lipbridge
from lipbridge.errors import InvalidArgument
from lipbridge.graph.evaluation import evaluate
from lipbridge.graph.graph import Graph
from lipbridge.graph.nodes import Add, Dense, Input, Node, Reshape
from tests.support.dags import dag


class Value:
    """Something that a weak reference can see go."""


@pytest.mark.parametrize("seed", range(12))
def test_the_fold_is_the_last_of_all_values(seed: int) -> None:
    graph = dag(seed)
    x = torch.randn(2, *graph.input_shape, dtype=torch.float64)
    values = graph.fold_all(x, lambda _, node, inputs: evaluate(node, inputs))
    assert torch.equal(
        torch.nan_to_num(graph.fold(x, lambda _, node, inputs: evaluate(node, inputs))), torch.nan_to_num(values[-1])
    )
    assert [value.shape[1:] for value in values] == [node.shape for node in graph]


def test_the_nodes_are_taken_in_order_with_their_inputs() -> None:
    graph = dag(3)
    seen: list[int] = []

    def step(index: int, node: Node, inputs: list[int]) -> int:
        assert inputs == list(node.inputs)
        assert graph.nodes[index] is node
        seen.append(index)
        return index

    assert graph.fold(0, step) == len(graph.nodes) - 1
    assert seen == list(range(1, len(graph.nodes)))


def test_values_that_nothing_reads_any_more_are_let_go_of() -> None:
    line = [Reshape(f"r{i}", (i,), (3,)) for i in range(6)]
    graph = Graph((Input("input", (), (3,)), *line, Reshape("dead", (2,), (3,)), Add("sum", (1, 6), (3,))))
    made: list[weakref.ref[Value]] = []

    def step(_: int, node: Node, inputs: list[Value]) -> Value:
        gc.collect()
        alive = [value() is not None for value in made]
        if node.name == "sum":  # what it reads, and no other
            assert alive == [True, False, False, False, False, True, False]
        value = Value()
        made.append(weakref.ref(value))
        return value

    assert isinstance(graph.fold(Value(), step), Value)


def test_the_input_alone() -> None:
    graph = Graph((Input("input", (), (3,)),))
    assert graph.fold("x", lambda _, node, inputs: "y") == "x"
    assert graph.fold_all("x", lambda _, node, inputs: "y") == ["x"]


def test_readers_are_there_once_for_each_time_that_they_read() -> None:
    nodes = (Input("input", (), (3,)), Reshape("r", (0,), (3,)), Add("twice", (1, 1), (3,)), Add("sum", (0, 2), (3,)))
    assert Graph(nodes).readers() == [[1, 3], [2, 2], [3], []]


def test_a_graph_is_where_its_weights_are_or_elsewhere_without_any() -> None:
    meta = torch.device("meta")
    bare = Graph((Input("input", (), (3,)),))
    assert bare.device == torch.device("cpu")
    assert bare.device_or(meta) == meta
    layered = Graph((*bare.nodes, Dense("d", (0,), (2,), torch.ones(2, 3, dtype=torch.float64))))
    assert layered.device_or(meta) == torch.device("cpu") == layered.device
    assert layered.to("meta").device_or(torch.device("cpu")) == meta


def test_margins_are_the_differences_of_a_label_and_its_rivals() -> None:
    graph = lipbridge.capture(lipbridge.mlp([3, 5, 4], "relu").double())
    x = torch.randn(6, 3, dtype=torch.float64)
    y = graph(x)
    torch.testing.assert_close(graph.margins(2)(x), y[:, 2:3] - y[:, [0, 1, 3]], rtol=0, atol=1e-15)
    torch.testing.assert_close(graph.margins(0, [3, 1])(x), y[:, :1] - y[:, [3, 1]], rtol=0, atol=1e-15)
    assert graph.margins(2).nodes[:-1] == graph.nodes  # nothing is merged, so that nothing is rounded
    for arguments in ((4,), (0, [0]), (0, []), (-1,)):
        with pytest.raises(InvalidArgument):
            graph.margins(*arguments)
