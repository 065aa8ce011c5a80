"""Reading ONNX: thirty files of different origin against ONNX Runtime, our own files back with their bound."""

from __future__ import annotations

import importlib.util
import json
import math
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import lipbridge
from lipbridge.activations.registry import activation, activation_names
from lipbridge.cli.app import run
from lipbridge.errors import InvalidArgument, ModelFileError, UnsupportedOperation
from lipbridge.graph.nodes import Conv, Dense, Elementwise, Reshape
from lipbridge.lowering.chain import as_chain

onnx: Any = pytest.importorskip("onnx", reason="needs lipbridge[onnx]")

from lipbridge_adapters.onnx.export import export_onnx  # noqa: E402
from lipbridge_adapters.onnx.reading import read_onnx  # noqa: E402
from tests.support.onnx_files import BY_HAND, BY_TORCH, normal, op, save, torch_file  # noqa: E402
from tests.support.onnx_reading import require_equal  # noqa: E402

ONNXSCRIPT = importlib.util.find_spec("onnxscript") is not None


@pytest.mark.parametrize("name", BY_TORCH)
def test_files_of_torch(name: str, tmp_path: Path) -> None:
    """The file's function, by the nodes that capture gives (diagonal maps stand in another place)."""
    module, shape, opset, dynamo, free = BY_TORCH[name]
    if dynamo and not ONNXSCRIPT:
        pytest.skip("torch's newer exporter needs onnxscript")
    network = module()
    path = torch_file(network, shape, tmp_path / "m.onnx", opset, dynamo=dynamo, free=free)
    graph, captured = read_onnx(path), lipbridge.capture(network, shape)
    require_equal(path, graph)
    kinds = [[type(n).__name__ for n in g.nodes if not isinstance(n, Reshape)] for g in (graph, captured)]
    if not name.startswith(("normalised", "residual")):  # the exporters fold BatchNorm into the convolution
        assert kinds[0] == kinds[1]
    if not kinds[0].count("Conv") and name != "maxmin_15":
        for norm in (1, 2, "inf"):
            bounds = [lipbridge.trivial_bound(g, norm).value for g in (graph, captured)]
            assert bounds[0] == pytest.approx(bounds[1], rel=1e-6)


@pytest.mark.parametrize("name", BY_HAND)
def test_files_by_hand(name: str, tmp_path: Path) -> None:
    path = BY_HAND[name](tmp_path / "m.onnx")
    require_equal(path, read_onnx(path))


@pytest.mark.parametrize("kind", ["regressor", "classifier", "pair"])
def test_files_of_scikit_learn(kind: str, tmp_path: Path) -> None:
    """Converted by skl2onnx; a classifier's scores are a value on the way to its softmax or sigmoid."""
    skl2onnx: Any = pytest.importorskip("skl2onnx", reason="the converter of scikit-learn's models is not installed")
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.neural_network import MLPClassifier, MLPRegressor

    generator = np.random.default_rng(0)
    x, y = generator.normal(size=(40, 4)).astype(np.float32), generator.integers(0, 2 if kind == "pair" else 3, 40)
    made = MLPRegressor if kind == "regressor" else MLPClassifier
    model = made(hidden_layer_sizes=(6, 5), activation="tanh" if kind == "pair" else "relu", max_iter=3, random_state=0)
    with pytest.warns(ConvergenceWarning):
        model.fit(x, x[:, :2] if kind == "regressor" else y)
    path = tmp_path / "m.onnx"
    path.write_bytes(skl2onnx.to_onnx(model, x[:1], target_opset={"": 17, "ai.onnx.ml": 3}).SerializeToString())
    if kind == "regressor":
        require_equal(path, read_onnx(path))
        return
    scores = "add_result2"
    graph = read_onnx(path, output=scores)
    file = onnx.load(str(path))
    del file.graph.output[:]
    file.graph.output.append(onnx.helper.make_tensor_value_info(scores, onnx.TensorProto.FLOAT, None))
    path.write_bytes(file.SerializeToString())
    require_equal(path, graph)


def test_the_command_line(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """A MODEL may be an ONNX file; what a file leaves open is an option, and a mistake is one line."""
    nodes = [op("Conv", "X K", "c"), op("Flatten", "c", "f"), op("Hardmax", "f", "Y")]
    path = save(tmp_path / "net.onnx", nodes, {"K": normal(2, 1, 3, 3)}, (1, 1, "h", "w"))
    for arguments, code, text in (
        (["bound", path, "--json"], 2, "--input-shape"),
        (["bound", path, "--json", "--input-shape", "1,6,6"], 2, "--output"),
        (["bound", path, "--json", "--input-shape", "1,x"], 2, "--input-shape"),
        (["bound", tmp_path, "--json", "--output", "f"], 2, "ONNX file"),
        (["bound", path, "--json", "--input-shape", "1,6,6", "--output", "f"], 0, ""),
    ):
        assert run([str(argument) for argument in arguments]) == code
        out, err = capfd.readouterr()
        assert text in err
        assert err.count("\n") <= 1
    (row,) = json.loads(out)
    graph = read_onnx(path, (1, 6, 6), output="f")
    assert (row["network"], row["value"]) == ("net", lipbridge.trivial_bound(graph, 2).value)


#: Those whose constants are no numbers of float32: the file holds another function, next to it.
ROUNDED_BY_FLOAT32 = {"identity_abs_l2", "selu", "hardsigmoid", "gelu_tanh", "hardswish"}


@pytest.mark.parametrize("name", activation_names())
def test_our_own_files_have_the_same_bound(name: str, tmp_path: Path) -> None:
    torch.manual_seed(2)
    module = lipbridge.mlp([6, 9, 8, 3], name)
    graph = lipbridge.capture(module)
    export_onnx(module, tmp_path / "native.onnx", "native", check=False)
    read = {"native": read_onnx(tmp_path / "native.onnx")}
    if name in ("relu", "abs", "crelu"):
        export_onnx(module, tmp_path / "relu.onnx", "relu", check=False)
        read["relu"] = read_onnx(tmp_path / "relu.onnx")
    for found in read.values():
        if name not in ROUNDED_BY_FLOAT32:
            assert [a.name for a in as_chain(found).activations] == [name, name]
        for norm in (1, 2, "inf"):
            bounds = [lipbridge.trivial_bound(g, norm).value for g in (found, graph)]
            assert bounds[0] == (pytest.approx(bounds[1], rel=1e-6) if name in ROUNDED_BY_FLOAT32 else bounds[1])


def test_constants_are_those_of_the_file(tmp_path: Path) -> None:
    """A SELU in float32 is steeper than torch's: whoever wrote the file, its own numbers are bounded."""
    module = nn.Sequential(nn.Linear(1, 1, bias=False), nn.SELU())
    nn.init.ones_(module[0].weight)
    graph = read_onnx(export_onnx(module, tmp_path / "m.onnx", "native", check=False).path)
    x = torch.tensor([[-1e-12], [0.0]], dtype=torch.float64)
    low, high = graph(x).flatten().tolist()
    steepest = Fraction(float(np.float32(1.6732632423543772))) * Fraction(float(np.float32(1.0507009873554805)))
    assert (high - low) / 1e-12 == pytest.approx(float(steepest), rel=1e-11)
    assert Fraction(lipbridge.trivial_bound(graph).value) >= steepest > Fraction(lipbridge.trivial_bound(module).value)


@pytest.mark.parametrize("name", [name for name in activation_names() if activation(name).sides is not None])
def test_the_relu_dialect_reads_back(name: str, tmp_path: Path) -> None:
    torch.manual_seed(2)
    export_onnx(lipbridge.mlp([6, 9, 8, 3], name), tmp_path / "m.onnx", "relu", check=False)
    require_equal(tmp_path / "m.onnx", read_onnx(tmp_path / "m.onnx"))


def test_vnn_comp_networks_are_chains(tmp_path: Path) -> None:
    chain = as_chain(read_onnx(BY_HAND["mnist_fc"](tmp_path / "m.onnx")))
    assert [layer.weight.shape for layer in chain.layers] == [(6, 8), (3, 6)]
    assert all(layer.bias is not None for layer in chain.layers)
    nodes = read_onnx(BY_HAND["acasxu"](tmp_path / "a.onnx")).nodes
    assert [type(n).__name__ for n in nodes if not isinstance(n, Reshape)] == [
        "Input", "Conv", "Conv", "Dense", "Elementwise", "Dense"
    ]  # fmt: skip


def test_weights_are_exact_copies(tmp_path: Path) -> None:
    W, b = normal(3, 4) * 1e-30, normal(3)
    graph = read_onnx(save(tmp_path / "m.onnx", [op("Gemm", "X W b", "Y", transB=1)], {"W": W, "b": b}, (1, 4)))
    (layer,) = (node for node in graph if isinstance(node, Dense))
    assert layer.bias is not None
    assert torch.equal(layer.weight, torch.from_numpy(W).double())
    assert torch.equal(layer.bias, torch.from_numpy(b).double())


def test_joint_activations_are_recognised(tmp_path: Path) -> None:
    graph = read_onnx(torch_file(BY_TORCH["pairs_14"][0](), (6,), tmp_path / "m.onnx", 14, dynamo=False, free=False))
    assert [n.activation.name for n in graph if isinstance(n, Elementwise)] == ["crelu", "sincos"]


@pytest.mark.parametrize("producer", ["lipbridge", "somebody"])
def test_a_sine_pair_with_rounded_shifts_is_two_sines(producer: str, tmp_path: Path) -> None:
    """The shifts differ from pi / 2 by their rounding, up to 0.43 here, and the slopes' norms from one."""
    b = np.array([4e6, 3e7], dtype=np.float32)
    c = (b.astype(np.float64) + math.pi / 2).astype(np.float32)
    nodes = [op("Gemm", "X W b", "z", transB=1), op("Sin", "z", "Y")]
    weights = {"W": np.ones((4, 1), dtype=np.float32), "b": np.concatenate([b, c])}
    model = onnx.load(str(save(tmp_path / "m.onnx", nodes, weights, (1, 1))))
    model.producer_name = producer
    (tmp_path / "m.onnx").write_bytes(model.SerializeToString())
    graph = read_onnx(tmp_path / "m.onnx")
    x = torch.linspace(-2, 2, 4001, dtype=torch.float64)[:, None]
    found = float(torch.func.vmap(torch.func.jacrev(lambda x: graph(x[None])[0]))(x).norm(dim=1).max())
    assert lipbridge.trivial_bound(graph).value >= found > 1.03 * math.sqrt(2.0)


def test_sines_of_one_shift_are_a_pair(tmp_path: Path) -> None:
    """One shift for all rows is a fact of the file: sqrt(1 + |cos o|), and sqrt 2 where there are others."""
    for shift, differs in ((np.float32(math.pi / 2), False), (np.float32(1.25), False), (np.float32(1.25), True)):
        b = np.array([0.0, 0.0, shift, shift + (0.25 if differs else 0.0)], dtype=np.float32)
        nodes = [op("Gemm", "X W b", "z", transB=1), op("Sin", "z", "Y")]
        weights = {"W": np.tile(np.eye(2, dtype=np.float32), (2, 1)), "b": b}
        graph = read_onnx(save(tmp_path / "m.onnx", nodes, weights, (1, 2)))
        true = math.sqrt(2.0) if differs else math.sqrt(1.0 + abs(math.cos(float(shift))))
        assert lipbridge.trivial_bound(graph).value == pytest.approx(true, rel=1e-14)
        assert Fraction(lipbridge.trivial_bound(graph).value) >= Fraction(true) * (1 - Fraction(1, 2**51))


def test_hardmax_names_the_way_out(tmp_path: Path) -> None:
    nodes = [op("MatMul", "X W", "scores"), op("Hardmax", "scores", "Y")]
    path = save(tmp_path / "m.onnx", nodes, {"W": normal(4, 3)}, (1, 4))
    with pytest.raises(UnsupportedOperation, match=r"Hardmax.*--output"):
        read_onnx(path)
    graph = read_onnx(path, output="scores")
    assert [type(node).__name__ for node in graph] == ["Input", "Dense"]
    with pytest.raises(ModelFileError, match="no operator gives its output 'nothing'"):
        read_onnx(path, output="nothing")


def test_several_outputs_need_a_choice(tmp_path: Path) -> None:
    nodes = [op("MatMul", "X W", "a"), op("Relu", "a", "b"), op("ArgMax", "b", "label")]
    path = save(tmp_path / "m.onnx", nodes, {"W": normal(4, 3)}, (1, 4), outputs=("label", "b"))
    with pytest.raises(ModelFileError, match=r"2 outputs \('label', 'b'\): name one"):
        read_onnx(path)
    assert read_onnx(path, output="b").output_shape == (3,)


def test_the_shape_of_the_input(tmp_path: Path) -> None:
    def conv(shape: tuple[Any, ...]) -> Path:
        return save(tmp_path / "m.onnx", [op("Conv", "X K", "Y")], {"K": normal(2, 3, 3, 3)}, shape)

    assert read_onnx(conv(("batch", 3, 8, 8))).input_shape == (3, 8, 8)
    with pytest.raises(InvalidArgument, match=r"input_shape.*\(1, 3, \?, \?\)"):
        read_onnx(conv((1, 3, "h", "w")))
    assert read_onnx(conv((1, 3, "h", "w")), (3, 5, 7)).output_shape == (2, 3, 5)
    with pytest.raises(UnsupportedOperation, match="one input at a time"):
        read_onnx(conv((4, 3, 8, 8)))
    assert read_onnx(conv((4, 3, 8, 8)), (3, 8, 8)).output_shape == (2, 6, 6)
    for wrong in ((3, 8), (2, 8, 8), (3, 8, 0)):
        with pytest.raises(InvalidArgument, match="input_shape"):
            read_onnx(conv((1, 3, 8, 8)), wrong)


@pytest.mark.parametrize(
    ("nodes", "what"),
    [
        ([op("Mul", "X X", "Y")], "no global Lipschitz"),
        ([op("Relu", "X", "r"), op("Mul", "X r", "Y")], "no Lipschitz constant"),
        ([op("Sign", "X", "Y")], "jumps"),
        ([op("Exp", "X", "Y")], "Exp"),
        ([op("Relu", "X", "Y", slope=2.0)], "slope"),
        ([op("Cast", "X", "Y", to=7)], "Cast"),
        ([op("Gelu", "X", "Y", approximate="cubic")], "approximate='tanh'"),
        ([op("Pow", "X three", "Y")], "no global Lipschitz"),
        ([op("Sqrt", "X", "Y")], "no global Lipschitz"),
        ([op("ThresholdedRelu", "X", "Y")], "jumps"),
        ([op("Shrink", "X", "Y", lambd=0.5)], "jumps"),
        ([op("Celu", "X", "Y", alpha=-1.0)], "exponentially"),
        ([op("TopK", "X two", "Y i")], "all entries"),
        ([op("Add", "X tall", "Y")], "repeat"),
    ],
)
def test_what_is_no_layer_is_named(nodes: list[Any], what: str, tmp_path: Path) -> None:
    path = save(
        tmp_path / "m.onnx",
        nodes,
        {"tall": normal(3, 4), "three": np.float32(3), "two": np.array([2])},
        (1, 4),
        20,
    )
    with pytest.raises(UnsupportedOperation, match=what):
        read_onnx(path)


def test_a_shared_value_takes_no_bias(tmp_path: Path) -> None:
    """MatMul + Add becomes one layer only where nothing else reads the product."""
    nodes = [op("MatMul", "X W", "a"), op("Add", "a b", "c"), op("Relu", "c", "r"), op("Add", "r a", "Y")]
    path = save(tmp_path / "m.onnx", nodes, {"W": normal(4, 3), "b": normal(3)}, (1, 4))
    graph = read_onnx(path)
    require_equal(path, graph)
    assert any(isinstance(node, Conv) for node in graph)
