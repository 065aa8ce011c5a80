"""What we write, read back: the same function and, to the last bit, the same bound, for every kind of node."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import lipbridge
from lipbridge.activations.registry import activation, activation_module, activation_names
from lipbridge.errors import UnsupportedOperation
from lipbridge.graph.graph import Graph, without_dead_nodes
from lipbridge.graph.nodes import (
    Add,
    Concat,
    Conv,
    ConvTranspose,
    Dense,
    Elementwise,
    Gather,
    GroupSort,
    MaxPool,
    Node,
    Normalize,
    Reshape,
    Softmax,
)
from tests.support.dags import dag

onnx: Any = pytest.importorskip("onnx", reason="needs lipbridge[onnx]")
pytest.importorskip("onnxruntime", reason="needs lipbridge[onnx]")

from lipbridge_adapters.onnx.export import ExportReport, check_export, export_onnx  # noqa: E402
from lipbridge_adapters.onnx.reading import read_onnx  # noqa: E402
from tests.support.node_graphs import graph_on  # noqa: E402

#: Those whose constants are no numbers of float32: the file holds another function, next to it.
ROUNDED_BY_FLOAT32 = {"identity_abs_l2", "selu", "hardsigmoid", "gelu_tanh", "hardswish"}
KINKED = [name for name in activation_names() if activation(name).sides is not None]
PIECEWISE = [*KINKED, "hardsigmoid"]
ONES = ((1,), (1,))


def bounds(graph: Graph) -> list[float]:
    return [lipbridge.trivial_bound(graph, norm).value for norm in (1, 2, "inf")]


def require_same(graph: Graph, path: Path, dialect: str) -> ExportReport:
    """Exported, checked in ONNX Runtime, read back: same values, same bound."""
    report = export_onnx(graph, path, dialect)
    assert report.error is not None
    found = read_onnx(path)
    x = torch.randn(7, *graph.input_shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    assert found.output_shape == graph.output_shape
    torch.testing.assert_close(found(x), graph(x), rtol=1e-6, atol=1e-6)
    rounded = any(isinstance(n, Elementwise) and n.activation.name in ROUNDED_BY_FLOAT32 for n in graph)
    assert bounds(found) == (pytest.approx(bounds(graph), rel=1e-6) if rounded else bounds(graph))
    return report


def normal(*shape: int) -> Tensor:
    generator = torch.Generator().manual_seed(math.prod(shape) + len(shape))
    return (torch.randn(*shape, generator=generator) / math.sqrt(math.prod(shape[1:]))).double()


def image(*nodes: Node, shape: tuple[int, ...] = (4, 6, 5)) -> Graph:
    """The nodes on top of an image."""
    return graph_on(*nodes, shape=shape)


def conv(
    out: int = 4,
    into: int = 4,
    kernel: tuple[int, ...] = (3, 3),
    padding: tuple[tuple[int, int], ...] = ((1, 1), (1, 1)),
    groups: int = 1,
    mode: str = "zeros",
    **options: Any,
) -> Conv:
    rank = len(kernel)
    geometry = {"stride": (1,) * rank, "dilation": (1,) * rank} | options
    weight, bias = normal(out, into // groups, *kernel), normal(out, 1).flatten()
    return Conv("conv", (0,), (), weight, bias, padding=padding, groups=groups, padding_mode=mode, **geometry)


def scale(n: int, rank: int, source: int = 0, bias: bool = True) -> Conv:
    ones = (1,) * rank
    shift = normal(n, 2)[:, 0].contiguous() if bias else None
    return Conv("scale", (source,), (), normal(n, 1, *ones), shift, ones, ((0, 0),) * rank, ones, n)


#: name -> a Graph, and what operators its file has beside Reshape and Flatten, with what only ``native`` takes last.
NODES: dict[str, tuple[Graph, set[str]]] = {
    "conv2d": (image(conv()), {"Conv"}),
    "conv1d": (image(conv(2, 3, (3,), ((0, 2),), stride=(2,)), shape=(3, 9)), {"Conv"}),
    "conv3d": (image(conv(2, 1, (2, 2, 2), ((1, 0), (0, 1), (0, 0))), shape=(1, 3, 4, 3)), {"Conv"}),
    "grouped": (image(conv(6, 4, (3, 2), ((2, 0), (1, 0)), 2, stride=(2, 1), dilation=(1, 2))), {"Conv"}),
    "circular": (image(conv(mode="circular", padding=((1, 2), (0, 1)))), {"Conv", "Slice", "Concat"}),
    "circular_all": (
        image(conv(1, 1, (3, 3), mode="circular"), shape=(1, 1, 4)),
        {"Conv", "Concat", "Slice"},
    ),
    "reflect": (image(conv(mode="reflect", padding=((2, 1), (0, 1)), stride=(1, 2))), {"Conv", "Pad"}),
    "replicate": (image(conv(2, 3, (3,), ((2, 1),), mode="replicate"), shape=(3, 5)), {"Conv", "Pad"}),
    "batch_norm": (image(scale(4, 2)), {"Mul", "Add"}),
    "scales": (image(scale(5, 0, bias=False), scale(5, 0, 1), shape=(5,)), {"Mul", "Add"}),
    "one_channel": (image(scale(1, 2), shape=(1, 3, 2)), {"Conv"}),
    "one_number": (image(scale(1, 0), shape=(1,)), {"Conv"}),
    "normalised_input": (
        image(scale(5, 0), Dense("dense", (1,), (), normal(3, 5), normal(3, 1).flatten()), shape=(5,)),
        {"Mul", "Add", "Gemm"},
    ),
    "rows": (image(Dense("rows", (0,), (), normal(3, 5), normal(3, 1).flatten())), {"MatMul", "Add"}),
    "max_pool": (image(MaxPool("pool", (0,), (), (3, 2), (2, 1), (1, 1), (1, 2))), {"MaxPool"}),
    "max_pool_ceil": (image(MaxPool("pool", (0,), (), (2, 3), (2, 2), (0, 0), (1, 1), True)), {"MaxPool"}),
    "transpose": (image(Reshape("swap", (0,), (20, 6), (2, 0, 1)), scale(20, 1, 1)), {"Transpose", "Mul", "Add"}),
    "residual": (image(conv(), Add("add", (0, 1), ())), {"Conv", "Add"}),
    "join": (image(conv(), Concat("join", (0, 1), (), 0)), {"Conv", "Concat"}),
    "join_space": (image(conv(), Concat("join", (1, 0), (), 2)), {"Conv", "Concat"}),
    "group_sort": (image(GroupSort("sort", (0,), (), 2)), {"TopK"}),
    "sorted": (image(GroupSort("sort", (0,), (), 4), shape=(4,)), {"TopK"}),
    "layer_norm": (image(Normalize("norm", (0,), (), 6, 1e-5), shape=(6, 5)), {"Normalize"}),
    "group_norm": (image(Normalize("norm", (0,), (), 2, 1e-12)), {"Normalize"}),
    "rms_norm": (image(Normalize("norm", (0,), (), 6, 1e-5, False), shape=(6, 5)), {"Root mean square"}),
    "softmax": (image(Softmax("softmax", (0,), (), 1)), {"Softmax"}),
    "log_softmax": (image(Softmax("softmax", (0,), (), 0, True)), {"LogSoftmax"}),
    "instance_norm": (image(Normalize("norm", (0,), (), 1, 0.5), shape=(6,)), {"Normalize"}),
}
STATISTICS = {"ReduceMean", "Sub", "Mul", "Add", "Sqrt", "Div"}


@pytest.mark.parametrize("dialect", ["native", "relu"])
@pytest.mark.parametrize("name", NODES)
def test_every_node(name: str, dialect: str, tmp_path: Path) -> None:
    graph, operations = NODES[name]
    path = tmp_path / "m.onnx"
    if dialect == "relu" and operations & {"TopK", "Normalize", "Root mean square", "Softmax", "LogSoftmax"}:
        with pytest.raises(UnsupportedOperation, match="native"):
            export_onnx(graph, path, dialect)
        return
    report = require_same(graph, path, dialect)
    operations = STATISTICS if operations == {"Normalize"} else operations
    operations = STATISTICS - {"Sub"} if operations == {"Root mean square"} else operations
    assert set(report.operations) - {"Reshape", "Flatten"} == operations
    assert report.rounding == 0.0
    assert report.opset == 13


@pytest.mark.parametrize("dialect", ["native", "relu"])
@pytest.mark.parametrize("name", activation_names())
def test_channelwise_activations(name: str, dialect: str, tmp_path: Path) -> None:
    """Between convolutions, before a pool, and flattened for a dense layer."""
    act = activation(name)
    K = act.width
    graph = image(
        conv(),
        Elementwise("act", (1,), (), act, 0),
        replace(conv(4, 4 * K, stride=(2, 1)), name="second", inputs=(2,)),
        Elementwise("act2", (3,), (), act, 0),
        MaxPool("pool", (4,), (), (2, 2), (1, 1), (0, 0), (1, 1)),
        replace(conv(2, 4 * K, (2, 2), ((0, 0), (0, 0)), 2), inputs=(5,)),
        Elementwise("act3", (6,), (), act, 0),
        Reshape("flat", (7,), (2 * K * 3,)),
        Dense("dense", (8,), (), normal(3, 2 * K * 3)),
    )
    if dialect == "relu" and name not in PIECEWISE:
        with pytest.raises(UnsupportedOperation, match="native"):
            export_onnx(graph, tmp_path / "m.onnx", dialect)
        return
    if dialect == "relu" and name == "hardsigmoid":  # kinks beside zero stay rows, with another bound
        report = export_onnx(graph, tmp_path / "m.onnx", dialect)
        assert report.error is not None
    else:
        report = require_same(graph, tmp_path / "m.onnx", dialect)
        found = [n.activation.name for n in read_onnx(report.path) if isinstance(n, Elementwise)]
        assert found == [name] * 3 or name in ROUNDED_BY_FLOAT32
    if dialect == "relu":
        assert set(report.operations) == {"Conv", "Relu", "MaxPool", "Flatten", "Gemm"}


@pytest.mark.parametrize("name", KINKED)
def test_the_relu_dialect_of_dense_networks(name: str, tmp_path: Path) -> None:
    """The activation comes back as what it was, also where it had to be given a layer of its own."""
    torch.manual_seed(2)
    graph = lipbridge.capture(lipbridge.mlp([6, 9, 8, 3], name))
    report = require_same(graph, tmp_path / "m.onnx", "relu")
    assert set(report.operations) == {"Gemm", "Relu"}
    names = [n.activation.name for n in read_onnx(report.path) if isinstance(n, Elementwise)]
    assert names == [name, name] or name in ROUNDED_BY_FLOAT32
    if name == "identity_abs":
        assert report.rounding == 0.0
        assert export_onnx(graph, tmp_path / "n.onnx", merge=True).rounding > 0.0


#: Activations with parameters, or with kinks beside zero, and those of the registry as they are.
WITH_PARAMETERS: dict[str, Callable[[], nn.Module]] = {
    "relu6": nn.ReLU6,
    "hardtanh": lambda: nn.Hardtanh(-1.0, 2.0),
    "hardtanh, narrow": lambda: nn.Hardtanh(-0.5, 0.25),
    "softshrink": lambda: nn.Softshrink(0.5),
    "leaky, power of two": lambda: nn.LeakyReLU(0.25),
    "leaky, steep": lambda: nn.LeakyReLU(-2.5),
    "softplus, 1/5 is no float32": lambda: nn.Softplus(5.0),
    "softplus, flat": lambda: nn.Softplus(0.25),
    "elu": lambda: nn.ELU(2.0),
    "celu": lambda: nn.CELU(0.5),
    **{name: partial(activation_module, name) for name in activation_names()},
}


@pytest.mark.parametrize("dialect", ["native", "relu"])
@pytest.mark.parametrize("name", WITH_PARAMETERS)
def test_the_bound_of_what_was_written(name: str, dialect: str, tmp_path: Path) -> None:
    """To the last bit where nothing was rounded, and next to it where float32 rounded a constant."""
    for width in (1, 4):
        act = WITH_PARAMETERS[name]()
        torch.manual_seed(width)
        outputs = act(torch.zeros(1, width)).shape[1]
        graph = lipbridge.capture(nn.Sequential(nn.Linear(3, width), act, nn.Linear(outputs, 2)), (3,))
        bent = [t for n in graph if isinstance(n, Elementwise) for part in n.activation.components for t in part]
        if dialect == "relu" and any(term.hinge is None for term in bent):
            with pytest.raises(UnsupportedOperation, match="not piecewise linear"):
                export_onnx(graph, tmp_path / "m.onnx", dialect, check=False)
            continue
        report = export_onnx(graph, tmp_path / "m.onnx", dialect, check=False)
        found = bounds(read_onnx(report.path))
        if report.rounding == 0.0:
            assert found == bounds(graph)
        else:
            assert found == pytest.approx(bounds(graph), rel=8 * report.rounding, abs=0.0)
            rounded = {*ROUNDED_BY_FLOAT32, "gelu", "leaky_relu", "softplus, 1/5 is no float32"}
            assert name in rounded


def test_a_residual_network_in_relu_form(tmp_path: Path) -> None:
    """Values with several readers are not copied: the sum of z and |z| keeps its root."""
    torch.manual_seed(0)

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two = nn.Conv2d(3, 3, 3, padding=1), nn.Conv2d(3, 3, 3, padding=1, padding_mode="circular")
            self.norm, self.last = nn.BatchNorm2d(3), nn.Linear(48, 2)

        def forward(self, x: Tensor) -> Tensor:
            z = self.one(x)
            z = z + self.two(z.abs())
            return self.last((x + nn.functional.leaky_relu(self.norm(z), 0.25)).flatten(1))

    graph = lipbridge.capture(Block().eval(), (3, 4, 4))
    # BatchNorm's factors are computed, so float32 rounds them: what is written is compared
    graph = replace(graph, nodes=tuple(stored(node) for node in graph.nodes))
    for dialect in ("relu", "native"):
        assert require_same(graph, tmp_path / "m.onnx", dialect).rounding == 0.0


# --- random Graphs ---------------------------------------------------------------------------------------------------


def stored(node: Node) -> Node:
    """Weights as float32 has them, the extremes moved into its range; no padding has no mode."""
    if not isinstance(node, Dense | Conv | ConvTranspose):
        return node

    def short(x: Tensor) -> Tensor:
        top = float(x.abs().max())
        return (x * (1e-40 if top > 1e20 else 1e20 if top < 1e-20 else 1.0)).to(torch.float32).double()

    exact = dict.fromkeys(("error", "bias_error"))
    node = replace(node, weight=short(node.weight), bias=None if node.bias is None else short(node.bias), **exact)
    return replace(node, padding_mode="zeros") if isinstance(node, Conv) and not any(map(any, node.padding)) else node


def storable(graph: Graph) -> Graph:
    """With weights of float32, and without the sorting of single entries, which is nothing."""
    nodes: list[Node] = []
    place: list[int] = []
    for node in graph.nodes:
        node = replace(stored(node), inputs=tuple(place[i] for i in node.inputs))
        if isinstance(node, GroupSort) and node.group == 1:
            place.append(node.inputs[0])
            continue
        nodes.append(node)
        place.append(len(nodes) - 1)
    return without_dead_nodes(Graph(tuple(nodes), graph.name), place[-1])


def joins_functions_of_one_node(graph: Graph) -> bool:
    """Whether a sum or join has parts that a reader takes for one activation, or one activation scales another."""
    keys: list[object] = []  # equal for nodes of one value
    for index, node in enumerate(graph.nodes):
        inputs = tuple(keys[i] for i in node.inputs)
        if isinstance(node, Reshape) and node.axes is None:
            keys.append(inputs[0])
        elif isinstance(node, GroupSort | Normalize | Softmax):
            fields = ("group", "groups", "epsilon", "centred", "axis", "log")
            key = (type(node), inputs, *(getattr(node, field, 0) for field in fields))
            if key in keys:
                return True  # one node when it is read
            keys.append(key)
        elif isinstance(node, Elementwise | Gather):
            keys.append(("on", inputs[0][1] if inputs[0][:1] == ("on",) else inputs[0], index))  # type: ignore[index]
            inner = graph.nodes[inputs[0][2]] if inputs[0][:1] == ("on",) else None  # type: ignore[index]
            names = [n.activation.name if isinstance(n, Elementwise) else "" for n in (inner, node)]
            if all(names) and (names[0] == "selu" or names[1] in ("identity_abs_l2", "sin2_pair")):
                return True
        else:
            keys.append((index,))
        sources = [key[1] if key[:1] == ("on",) else key for key in inputs]  # type: ignore[index]
        if isinstance(node, Add | Concat) and len(set(sources)) < len(sources):
            return True
    return False


def shares_rows(graph: Graph) -> bool:
    """Whether two activations read one value, whose relu rows they share in the relu dialect."""
    sources = [node.inputs[0] for node in graph.nodes if isinstance(node, Elementwise)]
    return len(set(sources)) < len(sources)


def kinked(graph: Graph) -> bool:
    smooth = any(isinstance(n, Elementwise) and n.activation.sides is None for n in graph)
    return not smooth and not any(isinstance(n, GroupSort | Normalize | Softmax) for n in graph)


def require_read_back(seed: int, dialect: str, path: Path) -> None:
    graph = storable(dag(seed))
    if len(graph.nodes) < 2 or (dialect == "relu" and not kinked(graph)):
        return
    exact = export_onnx(graph, path, dialect, check=False).rounding == 0.0
    found = read_onnx(path)
    x = torch.randn(5, *graph.input_shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    y = graph(x)
    z = found(x).reshape(y.shape)  # a copy at the end may lose axes of length one
    assert [n for n in found.output_shape if n > 1] == [n for n in graph.output_shape if n > 1]
    tame = float((in_float32(graph)(x.float()).double() - y).abs().max()) <= 1e-6 * float(y.abs().max())
    if exact or tame:  # in others the rounding of a constant of an activation may grow to anything
        assert float((z - y).abs().max()) <= 1e-6 * float(y.abs().max())
    if not joins_functions_of_one_node(graph) and not (dialect == "relu" and shares_rows(graph)):
        assert bounds(found) == (bounds(graph) if exact else pytest.approx(bounds(graph), rel=1e-5))
    if tame:
        assert check_export(path, graph, 5) <= 1e-5


def in_float32(graph: Graph) -> Graph:
    """To see whether float32 is enough for a Graph."""
    nodes = [
        replace(n, weight=n.weight.float(), bias=None if n.bias is None else n.bias.float())
        if isinstance(n, Dense | Conv | ConvTranspose)
        else n
        for n in graph
    ]
    return replace(graph, nodes=tuple(nodes))


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**6))
def test_random_graphs_native(tmp_path_factory: pytest.TempPathFactory, seed: int) -> None:
    require_read_back(seed, "native", tmp_path_factory.getbasetemp() / "native.onnx")


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**6))
def test_random_graphs_relu(tmp_path_factory: pytest.TempPathFactory, seed: int) -> None:
    require_read_back(seed, "relu", tmp_path_factory.getbasetemp() / "relu.onnx")


@pytest.mark.slow
@pytest.mark.parametrize("dialect", ["native", "relu"])
def test_many_random_graphs(dialect: str, tmp_path: Path) -> None:
    for seed in range(1500):
        require_read_back(seed, dialect, tmp_path / "m.onnx")
