"""The ONNX emitter: accepted by the checker, equal to the Graph in ONNX Runtime, honest about the rest."""

from __future__ import annotations

import json
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lipbridge.activations.activation import Component, Term
from lipbridge.activations.registry import activation, activation_names, recognise
from lipbridge.activations.scalar_functions import SCALAR_FUNCTIONS
from lipbridge.constants.trivial import trivial_bound
from lipbridge.errors import (
    MissingDependency,
    ModelFileError,
    NumericalFailure,
    UnknownName,
    UnsupportedOperation,
)
from lipbridge.frontend.capture import capture
from lipbridge.graph.graph import Graph
from lipbridge.graph.nodes import Add, Concat, Conv, Dense, Elementwise, GroupSort, Input, Node, Normalize, Reshape
from lipbridge.layers.layers import Sinusoidal, mlp
from lipbridge.problem.problem import Problem
from lipbridge.problem.question import Ball, Question
from lipbridge_adapters.onnx.export import check_export, export_onnx, problem_from_files, problem_to_files

onnx: Any = pytest.importorskip("onnx", reason="needs lipbridge[onnx]")
pytest.importorskip("onnxruntime", reason="needs lipbridge[onnx]")

RELU = [name for name in activation_names() if all(term.hinge for part in activation(name).components for term in part)]
CASES = [
    (name, dialect)
    for name in activation_names()
    for dialect in ("relu", "native")
    if dialect != "relu" or name in RELU
]
OPERATIONS = {
    "abs": {"Abs"},
    "crelu": {"Relu", "Neg", "Concat"},
    "sincos": {"Sin", "Cos", "Concat"},
    "identity_abs": {"Abs", "Concat"},
    "identity_abs_l2": {"Abs", "Concat", "Mul"},
    "sin2_pair": {"Sin", "Mul", "Add", "Concat"},
    "relu": {"Relu"},
    "leaky_relu": {"LeakyRelu"},
    "tanh": {"Tanh"},
    "sigmoid": {"Sigmoid"},
    "softplus": {"Softplus"},
    "sin": {"Sin"},
    "silu": {"Sigmoid", "Mul"},
    "gelu": {"Erf", "Mul", "Add"},
    "elu": {"Elu"},
    "selu": {"Elu", "Mul"},
    "celu": {"Celu"},
    "hardsigmoid": {"Relu", "Mul", "Add"},
    "gelu_tanh": {"Tanh", "Mul", "Add"},
    "mish": {"Softplus", "Tanh", "Mul"},
    "hardswish": {"Clip", "Mul", "Add"},
    "softsign": {"Softsign"},
    "atan": {"Atan"},
}


def kinds(path: Path) -> Counter[str]:
    return Counter(node.op_type for node in onnx.load(str(path)).graph.node)


@pytest.mark.parametrize(("name", "dialect"), CASES)
def test_every_activation_in_every_dialect_that_takes_it(name: str, dialect: str, tmp_path: Path) -> None:
    torch.manual_seed(3)
    module = mlp([6, 9, 8, 3], name)
    report = export_onnx(module, tmp_path / "m.onnx", dialect, merge=True)
    assert report.error is not None
    assert report.error <= 1e-5
    assert check_export(report.path, capture(module), seed=1) <= 1e-5
    found = kinds(report.path)
    assert set(report.operations) == set(found)
    assert found["Gemm"] == 3
    assert set(found) == {"Gemm", *(["Relu"] if dialect == "relu" else OPERATIONS[name])}
    if name in ("abs", "relu", "crelu"):
        assert report.rounding == 0.0
    assert report.rounding < 1e-7


def test_the_facts_that_readers_rely_on(tmp_path: Path) -> None:
    module = mlp([6, 9, 3], "abs", bias=False)
    report = export_onnx(module, tmp_path / "m.onnx")
    model = onnx.load(str(report.path))
    assert list(tmp_path.iterdir()) == [report.path]
    assert model.ir_version == 7
    assert [(entry.domain, entry.version) for entry in model.opset_import] == [("", 13)]
    for value, name, shape in ((model.graph.input, "X", [1, 6]), (model.graph.output, "Y", [1, 3])):
        assert [entry.name for entry in value] == [name]
        assert [d.dim_value for d in value[0].type.tensor_type.shape.dim] == shape
        assert value[0].type.tensor_type.elem_type == onnx.TensorProto.FLOAT
    for tensor in model.graph.initializer:
        assert tensor.data_type == onnx.TensorProto.FLOAT
        assert tensor.raw_data
    for node in model.graph.node:
        if node.op_type == "Gemm":
            assert len(node.input) == 3
            assert [(a.name, a.i) for a in node.attribute] == [("transB", 1)]
    assert report.opset == 13
    assert export_onnx(module, tmp_path / "n.onnx").path.read_bytes() == report.path.read_bytes()


def test_a_sine_pair_is_written_without_rounding(tmp_path: Path) -> None:
    """As Sin and Cos of one value: a shift by pi / 2 in the biases would be another function, by its rounding."""
    networks: list[nn.Module] = [nn.Sequential(Sinusoidal(5, 4), nn.Linear(8, 2)), mlp([5, 4, 2], "sincos")]
    for module in networks:
        report = export_onnx(module, tmp_path / "m.onnx", "native", input_shape=(5,))
        assert kinds(report.path) == {"Gemm": 2, "Sin": 1, "Cos": 1, "Concat": 1}
        assert report.rounding == 0.0


def single(components: tuple[Component, ...]) -> Graph:
    torch.manual_seed(5)
    act = recognise(components)
    nodes = (
        Input("input", (), (3,)),
        Dense("first", (0,), (4,), torch.randn(4, 3).double(), torch.randn(4).double()),
        Elementwise("act", (1,), (4 * act.width,), act),
    )
    return Graph(nodes)


@pytest.mark.parametrize("name", list(SCALAR_FUNCTIONS))
def test_every_scalar_function_with_scale_offset_and_parameters(name: str, tmp_path: Path) -> None:
    p = tuple(0.045 if name == "gelu_tanh" else 0.7 for _ in SCALAR_FUNCTIONS[name].parameters)
    term, plain = Term(name, -1.5, 0.5, 0.25, p), Term(name, 1.0, -1.0, 0.0, p)
    for components in (((term,),), ((plain,),), ((term, plain), (plain,)), ((term, term),)):
        assert export_onnx(single(components), tmp_path / "m.onnx", "native").error is not None
        if SCALAR_FUNCTIONS[name].sides(p) is not None:
            report = export_onnx(single(components), tmp_path / "r.onnx")
            assert set(report.operations) <= {"Gemm", "Relu"}


def test_an_image_is_flattened_in_the_file(tmp_path: Path) -> None:
    module = nn.Sequential(nn.Flatten(), nn.Linear(12, 5), nn.ReLU(), nn.Linear(5, 2))
    graph = capture(module, (3, 2, 2))
    for dialect in ("relu", "native"):
        report = export_onnx(graph, tmp_path / "m.onnx", dialect)
        assert report.operations == ("Flatten", "Gemm", "Relu")
    image = Graph((Input("input", (), (3, 2)), Elementwise("abs", (0,), (3, 2), activation("abs"))))
    assert export_onnx(image, tmp_path / "i.onnx").operations == ("Conv", "Relu")
    assert export_onnx(image, tmp_path / "i.onnx", "native").operations == ("Abs",)


def test_branches_are_native(tmp_path: Path) -> None:
    W = torch.randn(4, 3, dtype=torch.float32).double()
    nodes: tuple[Node, ...] = (
        Input("input", (), (3,)),
        Dense("w", (0,), (4,), W),
        Elementwise("abs", (1,), (4,), activation("abs")),
        Concat("cat", (2, 1), (8,)),
        Dense("v", (3,), (4,), torch.randn(4, 8).double()),
        Add("add", (4, 1, 2), (4,)),
        Reshape("square", (5,), (2, 2)),
        Reshape("swap", (6,), (4,), (1, 0)),
        Elementwise("again", (7,), (4,), activation("tanh")),
    )
    export_onnx(Graph(nodes), tmp_path / "m.onnx", "native")
    plain = Graph((*nodes[:8], replace(nodes[8], activation=activation("relu"))))  # type: ignore[call-arg]
    report = export_onnx(plain, tmp_path / "r.onnx", "relu")
    assert set(report.operations) == {"Gemm", "Relu", "Concat", "Add", "Reshape", "Transpose", "Flatten"}
    twice = (*nodes[:3], Elementwise("same", (1,), (4,), activation("abs")), Add("sum", (2, 3), (4,)))
    assert kinds(export_onnx(Graph(twice), tmp_path / "m.onnx", "native").path)["Abs"] == 1
    ends = (*nodes[:3], Concat("both", (2, 2), (8,)), Elementwise("relu", (1,), (4,), activation("abs")))
    export_onnx(Graph(ends), tmp_path / "m.onnx", "native")


def test_float64_weights_are_rounded_and_told(tmp_path: Path) -> None:
    module = mlp([6, 9, 3], "tanh").double()
    report = export_onnx(module, tmp_path / "m.onnx", "native")
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.randn_like(parameter))
    report = export_onnx(module, tmp_path / "m.onnx", "native")
    assert 1e-9 < report.rounding <= 2.0**-24
    with torch.no_grad():
        module[0].weight[0, 0] = 1e39  # type: ignore[index]
    before = report.path.read_bytes()
    with pytest.raises(NumericalFailure, match=r"`0`.*overflow float32"):
        export_onnx(module, tmp_path / "m.onnx", "native")
    assert report.path.read_bytes() == before


def test_constants_of_activations_are_rounded_and_told(tmp_path: Path) -> None:
    """ReLU's slopes are exact; 0.1, sqrt(1/2) of a GELU, and a scale that overflows are not."""
    leaky, exact = (Term("leaky_relu", parameters=(a,)) for a in (0.1, 0.25))
    assert export_onnx(single(((exact,),)), tmp_path / "m.onnx", "native").rounding == 0.0
    for term in (
        leaky,
        Term("gelu"),
        Term("tanh", 1.0, 0.1),
        Term("tanh", 1.0, 1.0, 0.1),
        Term("elu", 0.1, parameters=(1.0,)),
    ):
        rounding = export_onnx(single(((term,),)), tmp_path / "m.onnx", "native").rounding
        assert 1e-9 < rounding <= 2.0**-24
    for term in (Term("tanh", 1e39), Term("leaky_relu", parameters=(1e39,))):
        with pytest.raises(NumericalFailure, match="overflow"):
            export_onnx(single(((term,),)), tmp_path / "n.onnx", "native", check=False)
    tiny = Graph((Input("input", (), (3,)), Normalize("norm", (0,), (3,), 1, 1e-60)))
    with pytest.raises(NumericalFailure, match=r"`norm`.*zero in float32"):
        export_onnx(tiny, tmp_path / "n.onnx", "native", check=False)
    assert not (tmp_path / "n.onnx").exists()


def test_a_check_that_fails_writes_nothing(tmp_path: Path) -> None:
    graph = single(((Term("sin", scale=1e9),),))
    with pytest.raises(NumericalFailure, match="differs from the network"):
        export_onnx(graph, tmp_path / "m.onnx", "native")
    assert not list(tmp_path.iterdir())
    report = export_onnx(graph, tmp_path / "m.onnx", "native", check=False)
    assert report.error is None


@pytest.mark.parametrize("name", [name for name in activation_names() if name not in RELU])
def test_smooth_activations_are_refused_by_the_relu_dialect(name: str, tmp_path: Path) -> None:
    with pytest.raises(UnsupportedOperation, match="native"):
        export_onnx(mlp([2, 3, 1], name), tmp_path / "m.onnx", "relu")
    assert not list(tmp_path.iterdir())


def test_errors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UnknownName, match=r"Unknown ONNX dialect 'klingon'\. Known: relu, native"):
        export_onnx(mlp([2, 1]), tmp_path / "m.onnx", "klingon")
    empty = Graph((Input("input", (), (3,)),))
    image = Graph((Input("input", (), (1, 3)), Dense("d", (0,), (1, 2), torch.zeros(2, 3, dtype=torch.float64))))
    conv = Graph((Input("input", (), (1, 3)), Conv("c", (0,), (1, 3), torch.zeros(1, 1, 1, dtype=torch.float64))))
    sort = Graph((Input("input", (), (4,)), GroupSort("s", (0,), (4,), 2)))
    for dialect in ("relu", "native"):
        assert export_onnx(image, tmp_path / "m.onnx", dialect).operations == ("MatMul",)
        assert export_onnx(conv, tmp_path / "m.onnx", dialect).operations == ("Conv",)
        (tmp_path / "m.onnx").unlink()
    for graph, text, dialects in ((empty, "without layers", ("relu", "native")), (sort, "`s`.*native", ("relu",))):
        for dialect in dialects:
            with pytest.raises(UnsupportedOperation, match=text):
                export_onnx(graph, tmp_path / "m.onnx", dialect)
    (tmp_path / "file").write_text("")
    with pytest.raises(ModelFileError, match="Cannot write"):
        export_onnx(mlp([2, 1]), tmp_path / "file" / "m.onnx")
    for tool in ("onnx", "onnxruntime"):
        with monkeypatch.context() as patch:
            patch.setitem(sys.modules, tool, None)
            with pytest.raises(MissingDependency, match=rf'{tool} is not installed.*pip install "lipbridge\[onnx\]"'):
                export_onnx(mlp([2, 1]), tmp_path / "m.onnx")


def test_files_that_are_no_good(tmp_path: Path) -> None:
    graph = capture(mlp([3, 4, 2]))
    path = export_onnx(graph, tmp_path / "m.onnx").path
    data = path.read_bytes()
    with pytest.raises(ModelFileError, match="Cannot read"):
        check_export(tmp_path / "none.onnx", graph)
    for bad in (b"", b"nonsense", data[: len(data) // 2], b"\x80\x04."):
        path.write_bytes(bad)
        with pytest.raises(ModelFileError, match=r"m\.onnx"):
            check_export(path, graph)
    path.write_bytes(data)
    with pytest.raises(ModelFileError, match="input of shape"):
        check_export(path, capture(mlp([4, 4, 2])))
    with pytest.raises(ModelFileError, match="outputs of shape"):
        check_export(path, capture(mlp([3, 4, 5])))
    with pytest.raises(NumericalFailure, match="differs"):
        check_export(path, capture(mlp([3, 4, 2])), n=5)
    model = onnx.load_model_from_string(data)
    onnx.external_data_helper.set_external_data(model.graph.initializer[0], "/etc/hostname")
    model.graph.initializer[0].ClearField("raw_data")
    path.write_bytes(model.SerializeToString())
    with pytest.raises(ModelFileError, match="other files"):
        check_export(path, graph)


@pytest.mark.parametrize("name", ["abs", "tanh"])
def test_a_problem_travels_and_comes_back(name: str, tmp_path: Path) -> None:
    centers: Tensor = torch.randn(2, 3, dtype=torch.float64)
    for region in (None, Ball(centers, 0.3, "inf")):
        problem = Problem(capture(mlp([3, 5, 2], name).double()), Question(input_norm=1, output_norm=2, region=region))
        report = problem_to_files(problem, tmp_path / "p")
        assert report.dialect == ("relu" if name == "abs" else "native")
        facts = json.loads((tmp_path / "p" / "problem.json").read_text())
        assert (facts["input_norm"], facts["output_norm"], facts["quantity"]) == (1, 2, "lipschitz")
        assert facts["region"] == (None if region is None else {"norm": "inf", "radius": 0.3, "balls": 2})
        again = problem_from_files(tmp_path / "p")
        assert trivial_bound(again.graph, 1, 2).value == trivial_bound(problem.graph, 1, 2).value
        assert again.norm_name == problem.norm_name
        assert again.region_name == problem.region_name
        assert check_export(tmp_path / "p" / facts["network"], again.graph) <= 1e-5
    with pytest.raises(UnknownName):
        problem_to_files(problem, tmp_path / "q", "weird")


@pytest.mark.parametrize("damage", ["missing", "changed", "json", "hash", "problem"])
def test_damaged_problem_folders(damage: str, tmp_path: Path) -> None:
    problem_to_files(Problem(capture(mlp([3, 5, 2])), Question.everywhere(2)), tmp_path)
    if damage == "missing":
        (tmp_path / "model.onnx").unlink()
    elif damage == "changed":
        (tmp_path / "model.onnx").write_bytes(b"other")
    elif damage == "json":
        (tmp_path / "problem.json").write_text("[1, 2")
    elif damage == "hash":
        (tmp_path / "problem.json").write_text("{}")
    else:
        (tmp_path / "problem.safetensors").write_bytes(b"cut")
    with pytest.raises(ModelFileError, match=str(tmp_path)) as caught:
        problem_from_files(tmp_path)
    assert "\n" not in str(caught.value)
