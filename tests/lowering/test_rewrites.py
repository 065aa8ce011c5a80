"""Lowering keeps the function, counts rows, and says what it rounded."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from lipbridge.activations.activation import Component, Term, derive
from lipbridge.activations.registry import activation, activation_module, activation_names, recognise
from lipbridge.errors import NumericalFailure, UnsupportedOperation
from lipbridge.frontend.capture import capture
from lipbridge.graph.graph import Graph
from lipbridge.graph.nodes import Add, Concat, Conv, Dense, Elementwise, Input, Node, Reshape
from lipbridge.layers.layers import mlp
from lipbridge.lowering.chain import as_chain
from lipbridge.lowering.rewrites import fold_scalings, lower_to_relu, relu_lowering

KINKED = [name for name in activation_names() if activation(name).sides is not None]
SMOOTH = [
    name for name in activation_names() if not all(term.hinge for part in activation(name).components for term in part)
]


def assert_same_function(a: Graph, b: Graph, tolerance: float = 1e-12) -> None:
    generator = torch.Generator().manual_seed(1)
    x = 3 * torch.randn(50, *a.input_shape, dtype=torch.float64, generator=generator)
    x = torch.cat([x, torch.zeros(1, *a.input_shape, dtype=torch.float64)])
    assert a.input_shape == b.input_shape
    assert a.output_shape == b.output_shape
    y = a(x)
    assert float((y - b(x)).abs().max()) <= tolerance * max(1.0, float(y.abs().max()))


def assert_only_relu(graph: Graph) -> None:
    assert {node.activation.name for node in graph if isinstance(node, Elementwise)} <= {"relu"}


def widths(graph: Graph) -> list[int]:
    return [node.shape[0] for node in graph if isinstance(node, Dense)]


def single(component_list: tuple[Component, ...], n: int = 3, m: int = 4, out: int = 2, bias: bool = True) -> Graph:
    """Dense, the activation, Dense, with float32 numbers as weights."""
    generator = torch.Generator().manual_seed(7)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator).double()

    act = recognise(component_list)
    nodes = (
        Input("input", (), (n,)),
        Dense("first", (0,), (m,), draw(m, n), draw(m) if bias else None),
        Elementwise("act", (1,), (m * act.width,), act),
        Dense("last", (2,), (out,), draw(out, m * act.width), draw(out) if bias else None),
    )
    return Graph(nodes)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("name", KINKED)
def test_chains_of_every_kinked_activation(name: str, bias: bool) -> None:
    torch.manual_seed(0)
    graph = capture(mlp([5, 7, 6, 3], name, bias=bias).double())
    lowered = lower_to_relu(graph)
    assert_only_relu(lowered)
    assert_same_function(graph, lowered)
    as_chain(lowered)
    rows = 1 if name == "relu" else 2
    assert widths(lowered) == [7 * rows, 6 * rows, 3]
    assert all((node.bias is not None) == bias for node in lowered if isinstance(node, Dense))


@pytest.mark.parametrize("name", ["relu", "abs", "crelu"])
def test_plain_ones_are_exact(name: str) -> None:
    result = relu_lowering(capture(mlp([5, 7, 6, 3], name)))
    assert result.exact
    assert result.rounding == {}
    if name == "relu":
        graph = capture(mlp([5, 7, 6, 3], name))
        assert [type(node) for node in lower_to_relu(graph)] == [type(node) for node in graph]
        first = lower_to_relu(graph).nodes[1]
        assert isinstance(first, Dense)
        assert first.parameter == "0.weight"  # untouched


def test_abs_is_the_formula_of_the_docstring() -> None:
    graph = single(((Term("abs"),),))
    first, _, last = lower_to_relu(graph).nodes[1:]
    W, V = graph.nodes[1], graph.nodes[3]
    assert isinstance(first, Dense)
    assert isinstance(last, Dense)
    assert isinstance(W, Dense)
    assert isinstance(V, Dense)
    assert W.bias is not None
    assert torch.equal(first.weight, torch.cat([W.weight, -W.weight]))
    assert first.bias is not None
    assert torch.equal(first.bias, torch.cat([W.bias, -W.bias]))
    assert torch.equal(last.weight, torch.cat([V.weight, V.weight], 1))


@pytest.mark.parametrize("name", SMOOTH)
def test_smooth_ones_are_refused_with_the_layer_and_the_dialect(name: str) -> None:
    graph = capture(nn.Sequential(nn.Linear(3, 4), activation_module(name)))
    with pytest.raises(UnsupportedOperation, match=r"Layer `.*native"):
        lower_to_relu(graph)


@pytest.mark.parametrize(
    ("components", "rows"),
    [
        (((Term("relu", 2.0),),), 1),
        (((Term("relu", scale=-1.0),),), 1),
        (((Term("relu", -0.3, -2.0),),), 1),
        (((Term("relu"),), (Term("relu", 3.0),), (Term("relu", -1.0),)), 1),
        (((Term("identity"),), (Term("relu"),)), 2),
        (((Term("abs", 0.5), Term("identity", 0.5)),), 1),  # relu in disguise
        (((Term("abs"),), (Term("identity"),), (Term("relu"),), (Term("leaky_relu", parameters=(0.1,)),)), 2),
        (((Term("abs", 1.5, -0.7), Term("identity", 0.2, 3.0, -0.4)), (Term("identity", 1.0, 0.0, 1.3),)), 2),
        (((Term("relu"), Term("identity", 1.0, 0.0, 0.25)),), 1),
        (((Term("leaky_relu", 2.0, -1.0, 0.5, (1.0,)), Term("relu")),), 2),  # a leaky relu that is a line
        (((Term("abs", 1.0, 2.0, -1.0),),), 2),  # a kink elsewhere
        (((Term("relu", 1.0, 1.0, 1.0), Term("relu", -1.0, 1.0, -1.0), Term("identity", 1.0, 0.0, -1.0)),), 2),
        (((Term("abs", 1.0, 1.0, 1.0), Term("identity", 3.0)),), 2),
        (((Term("relu", 1.0, 0.3, 1.0), Term("identity", 3.0)),), 3),
        (((Term("relu", 1.0, 0.0, 1.0), Term("abs", 1.0, 0.0, -2.0), Term("relu")),), 1),
    ],
)
def test_joint_activations_share_rows(components: tuple[Component, ...], rows: int) -> None:
    graph = single(components)
    lowered = lower_to_relu(graph)
    assert_only_relu(lowered)
    assert_same_function(graph, lowered)
    assert widths(lowered) == [4 * rows, 2]


def test_scalings_vanish() -> None:
    graph = single(((Term("identity", 2.0, 0.5, -1.0),), (Term("identity", scale=-1.0),)))
    for lowered in (lower_to_relu(graph), fold_scalings(graph).graph):
        assert [type(node) for node in lowered] == [Input, Dense, Dense]
        assert_same_function(graph, lowered)
    zero = single(((Term("identity", 0.0, 0.0),), (Term("relu", 0.0),)))
    assert_same_function(zero, lower_to_relu(zero))


def test_ends_without_a_dense_layer_get_one() -> None:
    both = Graph(
        (
            Input("input", (), (3,)),
            Elementwise("a", (0,), (6,), activation("identity_abs")),
            Elementwise("b", (1,), (12,), activation("crelu")),
            Elementwise("c", (2,), (12,), recognise(((Term("identity", 1.0, 0.5, 1.0),),))),
        )
    )
    lowered = lower_to_relu(both)
    assert [type(node) for node in lowered] == [Input, Dense, Elementwise, Dense, Elementwise, Dense]
    assert_only_relu(lowered)
    assert_same_function(both, lowered)
    relu = Graph((Input("input", (), (3,)), Elementwise("a", (0,), (3,), activation("relu"))))
    assert [type(node) for node in lower_to_relu(relu)] == [Input, Elementwise]
    empty = Graph((Input("input", (), (3,)),))
    assert len(lower_to_relu(empty).nodes) == 1


def test_captured_scaling_at_the_start_and_an_image() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.last = nn.Linear(12, 5), nn.Linear(5, 2)

        def forward(self, x: Tensor) -> Tensor:
            x = ((x * 2.0 - 1.0).abs()).flatten(1)
            return -3.0 * self.last(self.first(x).abs() * 0.25 + 1.0)

    graph = capture(Net().double(), (3, 2, 2))
    lowered = lower_to_relu(graph)
    assert_only_relu(lowered)
    assert_same_function(graph, lowered)
    assert widths(lowered) == [10, 2]
    assert [node.weight.shape for node in lowered if isinstance(node, Conv)] == [(6, 3, 1, 1)]
    folded = fold_scalings(graph)
    assert_same_function(graph, folded.graph)


def test_more_than_one_axis() -> None:
    graph = Graph((Input("input", (), (2, 3)), Elementwise("a", (0,), (2, 3), activation("abs"))))
    lowered = lower_to_relu(graph)
    assert_only_relu(lowered)
    assert_same_function(graph, lowered)
    wide = Graph((Input("input", (), (2, 3)), Elementwise("wide", (0,), (2, 6), activation("crelu"))))
    with pytest.raises(UnsupportedOperation, match=r"`wide`.*dense layers first"):
        lower_to_relu(wide)


def test_graphs_with_branches() -> None:
    W = torch.randn(4, 3, dtype=torch.float64)
    nodes: tuple[Node, ...] = (
        Input("input", (), (3,)),
        Dense("w", (0,), (4,), W),
        Elementwise("abs", (1,), (4,), activation("abs")),
        Elementwise("crelu", (1,), (8,), activation("crelu")),
        Concat("cat", (2, 3), (12,)),
        Dense("v", (4,), (4,), torch.randn(4, 12, dtype=torch.float64)),
        Add("add", (5, 1, 2, 2), (4,)),
        Reshape("swap", (6,), (2, 2)),
        Reshape("back", (7,), (4,), (1, 0)),
    )
    graph = Graph(nodes)
    lowered = lower_to_relu(graph)
    assert_only_relu(lowered)
    assert_same_function(graph, lowered)


def test_rounding_is_told_and_can_be_avoided() -> None:
    graph = single(((Term("identity"),), (Term("abs"),)))
    heavy = graph.nodes[3]
    assert isinstance(heavy, Dense)
    tail = heavy.weight.clone()
    tail[0, 0], tail[0, 4] = 1.0, 2.0**-70  # their sum is no double
    graph = replace(graph, nodes=(*graph.nodes[:3], replace(heavy, weight=tail)))
    result = relu_lowering(graph)
    assert set(result.rounding) == {"last"}
    assert 2.0**-75 < result.rounding["last"] < 2.0**-60
    careful = relu_lowering(graph, exact=True)
    assert careful.exact
    assert_same_function(graph, careful.graph)
    assert widths(careful.graph) == [8, 8, 2]
    leaky = single(((Term("leaky_relu", parameters=(0.1,)),),))
    assert 0.0 < relu_lowering(leaky).rounding["last"] < 1e-15
    careful = relu_lowering(leaky, exact=True)
    assert careful.exact
    assert_same_function(leaky, careful.graph)
    product = single(((Term("leaky_relu", 0.1, 0.1, parameters=(0.1,)),),))
    with pytest.raises(UnsupportedOperation, match="without rounding"):
        relu_lowering(product, exact=True)
    twice = single(((Term("identity", scale=0.1),),))
    twice = Graph((*twice.nodes[:3], Elementwise("again", (2,), (4,), twice.nodes[2].activation)))  # type: ignore[attr-defined]
    careful = relu_lowering(twice, exact=True)
    assert careful.exact
    assert_same_function(twice, careful.graph)


def test_overflow_is_an_error() -> None:
    graph = single(((Term("relu", 1e200),),))
    heavy = graph.nodes[3]
    assert isinstance(heavy, Dense)
    graph = replace(graph, nodes=(*graph.nodes[:3], replace(heavy, weight=heavy.weight * 1e200)))
    with pytest.raises(NumericalFailure, match="`last`"):
        lower_to_relu(graph)


@pytest.mark.parametrize("row", [[1e308] * 3, [math.inf, -math.inf, 0.0]])
def test_a_shift_that_overflows_in_the_next_layer_is_an_error(row: list[float]) -> None:
    line = derive("line", ((Term("identity", 1.0, 1.0, 2.0),),))
    nodes = (
        Input("input", (), (3,)),
        Dense("first", (0,), (3,), torch.eye(3, dtype=torch.float64)),
        Elementwise("line", (1,), (3,), line),
        Dense("last", (2,), (1,), torch.tensor([row], dtype=torch.float64)),
    )
    for lowering in (relu_lowering, fold_scalings):
        with pytest.raises(NumericalFailure, match="`last`"):
            lowering(Graph(nodes))


_numbers = st.floats(-3, 3).map(lambda x: round(x, 3)) | st.sampled_from([0.0, 1.0, -1.0, 0.5, math.pi])
_terms = st.builds(
    lambda f, c, s, o, p: Term(f, c, s, o if f == "identity" else 0.0, (p,) if f == "leaky_relu" else ()),
    st.sampled_from(["identity", "relu", "abs", "leaky_relu"]),
    _numbers,
    _numbers,
    _numbers,
    _numbers,
)
_components = st.lists(st.lists(_terms, min_size=1, max_size=3).map(tuple), min_size=1, max_size=3).map(tuple)


@settings(max_examples=100, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    layers=st.lists(_components | st.integers(1, 4), min_size=1, max_size=6),
    size=st.integers(1, 4),
    seed=st.integers(0, 99),
)
def test_random_graphs(layers: list[tuple[Component, ...] | int], size: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    nodes: list[Node] = [Input("input", (), (size,))]
    for index, layer in enumerate(layers):
        before = nodes[-1].shape[0]
        if isinstance(layer, int):
            W = torch.randn(layer, before, dtype=torch.float64, generator=generator) / before
            b = torch.randn(layer, dtype=torch.float64, generator=generator) if seed % 2 else None
            nodes.append(Dense(f"d{index}", (index,), (layer,), W, b))
        else:
            act = derive("joint", layer)
            nodes.append(Elementwise(f"a{index}", (index,), (before * act.width,), act))
    graph = Graph(tuple(nodes))
    for lowered in (lower_to_relu(graph), fold_scalings(graph).graph, fold_scalings(lower_to_relu(graph)).graph):
        assert_same_function(graph, lowered, 1e-11)
    assert_only_relu(lower_to_relu(graph))
    try:
        careful = relu_lowering(graph, exact=True)
    except UnsupportedOperation:
        return  # products of slopes that are no doubles
    assert careful.exact
    assert_only_relu(careful.graph)
    assert_same_function(graph, careful.graph, 1e-11)
