"""ONNX files of different origin, made when a test asks: by torch's two exporters, by hand as others write them."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import nn

import lipbridge

Array = np.ndarray[Any, Any]
FLOAT = TensorProto.FLOAT


def save(
    path: Path,
    nodes: list[Any],
    weights: dict[str, Any],
    shape: tuple[Any, ...],
    opset: int = 13,
    *,
    outputs: tuple[str, ...] = ("Y",),
    kind: int = FLOAT,
) -> Path:
    """A file with input X of ``shape``; weights keep their numpy type."""
    made = [numpy_helper.from_array(np.asarray(value), name) for name, value in weights.items()]
    ends = [helper.make_tensor_value_info("X", kind, shape)]
    results = [helper.make_tensor_value_info(name, kind, None) for name in outputs]
    graph = helper.make_graph(nodes, "net", ends, results, made)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=7 if opset < 20 else 9)
    path.write_bytes(model.SerializeToString())
    return path


def op(kind: str, inputs: str, output: str, **attributes: Any) -> Any:
    """A node; inputs with blanks between."""
    return helper.make_node(kind, inputs.split(" "), output.split(" "), name=f"n_{output.split(' ')[0]}", **attributes)


def normal(*shape: int) -> Array:
    return torch.randn(*shape).numpy()


# --- by torch --------------------------------------------------------------------------------------------------------


def torch_file(module: nn.Module, shape: tuple[int, ...], path: Path, opset: int, *, dynamo: bool, free: bool) -> Path:
    """What torch.onnx.export writes; ``free`` leaves the batch open."""
    extra: dict[str, Any] = {}
    if free:
        extra = {"dynamic_shapes": ({0: "batch"},)} if dynamo else {"dynamic_axes": {"x": {0: "batch"}}}
    example = torch.randn(2 if free and dynamo else 1, *shape)
    logging.disable(logging.CRITICAL)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            torch.onnx.export(
                module.eval(), (example,), str(path), opset_version=opset, dynamo=dynamo, input_names=["x"], **extra
            )
    finally:
        logging.disable(logging.NOTSET)
    return path


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(2, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4)
        self.body = nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 4, 3, padding=1))
        self.down, self.head = nn.Conv2d(4, 6, 3, stride=2, padding=1, groups=2), nn.Linear(6, 3)
        self.norm.running_mean = torch.randn(4)
        self.norm.running_var = torch.rand(4) + 0.5

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.norm(self.stem(x)).relu()
        x = self.down((x + self.body(x)).relu())
        return self.head(x.mean(dim=(2, 3)))


class Pairs(nn.Module):
    """Joint activations written out."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(6, 5), nn.Linear(10, 4), nn.Linear(8, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        z = self.a(x)
        z = self.b(torch.cat([z.relu(), (-z).relu()], dim=-1))
        return self.c(torch.cat([z.sin(), z.cos()], dim=1))


class MaxMin(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(6, 8), nn.Linear(8, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        p, q = self.a(x).split(4, dim=-1)
        return self.b(torch.cat([torch.maximum(p, q), torch.minimum(p, q)], dim=-1))


def convolutional() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 4, 5, stride=2, padding=2),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(4, 6, 3, dilation=2, padding=2),
        nn.LeakyReLU(0.1),
        nn.AvgPool2d(2, padding=1, stride=1),
        nn.Flatten(),
        nn.Linear(6 * 5 * 5, 3),
    )


def smooth() -> nn.Module:
    acts = [nn.Tanh(), nn.Sigmoid(), nn.ELU(0.7), nn.GELU(), nn.SiLU(), nn.Hardtanh(-1, 2)]
    return nn.Sequential(*[layer for act in acts for layer in (nn.Linear(5, 5), act)], nn.Dropout(), nn.Linear(5, 2))


def sequence() -> nn.Module:
    return nn.Sequential(nn.ConstantPad1d((1, 2), 0.0), nn.Conv1d(3, 4, 3), nn.ReLU6(), nn.Flatten(), nn.Linear(36, 2))


def normalised() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(2, 4, 3), nn.GroupNorm(2, 4), nn.ReLU(), nn.Flatten(), nn.LayerNorm(64), nn.Linear(64, 2)
    )


class Circular(nn.Module):
    """Circular padding on one side and on both, and a bent curve under it."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Conv2d(2, 3, 3, padding=1, padding_mode="circular")
        self.b = nn.Conv2d(3, 2, (3, 2), padding=(1, 0), padding_mode="circular")

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.b(self.a(x.tanh()).relu())


def layer_norms() -> nn.Module:
    return nn.Sequential(nn.Linear(6, 5), nn.LayerNorm(5), nn.Tanh(), nn.LayerNorm(5, elementwise_affine=False))


def softplus() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 3), nn.Softplus(), nn.Linear(3, 2), nn.Softplus(2.0))


Module = Callable[[], nn.Module]
#: name -> (module, shape of one input, opset, dynamo, batch left open)
BY_TORCH: dict[str, tuple[Module, tuple[int, ...], int, bool, bool]] = {
    "mlp_9": (lambda: lipbridge.mlp([6, 9, 8, 3], "relu"), (6,), 9, False, False),
    "mlp_11_free": (lambda: lipbridge.mlp([6, 9, 8, 3], "abs"), (6,), 11, False, True),
    "mlp_17_unbiased": (lambda: lipbridge.mlp([6, 9, 3], "identity_abs", bias=False), (6,), 17, False, False),
    "conv_10": (convolutional, (1, 16, 16), 10, False, False),
    "conv_13_free": (convolutional, (1, 16, 16), 13, False, True),
    "residual_12": (Residual, (2, 8, 8), 12, False, False),
    "residual_18": (Residual, (2, 8, 8), 18, False, True),
    "pairs_14": (Pairs, (6,), 14, False, False),
    "maxmin_15": (MaxMin, (6,), 15, False, False),
    "smooth_16": (smooth, (5,), 16, False, False),
    "smooth_20": (smooth, (5,), 20, False, True),
    "sequence_17": (sequence, (3, 8), 17, False, False),
    "circular_13": (Circular, (2, 5, 6), 13, False, False),
    "layer_norms_13": (layer_norms, (6,), 13, False, False),
    "mlp_18_dynamo": (lambda: lipbridge.mlp([6, 9, 8, 3], "crelu"), (6,), 18, True, False),
    "residual_20_dynamo": (Residual, (2, 8, 8), 20, True, True),
    "pairs_18_dynamo": (Pairs, (6,), 18, True, False),
    "normalised_21_dynamo": (normalised, (2, 6, 6), 21, True, False),
    "smooth_22_dynamo": (smooth, (5,), 22, True, False),
    "softplus_18_dynamo": (softplus, (4,), 18, True, False),
    "circular_20_dynamo": (Circular, (2, 5, 6), 20, True, False),
}


# fmt: off  (a node a line would hide the network)

# --- by hand, as others write them -----------------------------------------------------------------------------------


def acasxu(path: Path) -> Path:
    """VNN-COMP's ACAS Xu: input (1, 1, 1, 5), Sub and Div of constants, Flatten, MatMul + Add, Relu."""
    nodes = [
        op("Sub", "X m", "c"),
        op("Div", "c s", "d"),
        op("Flatten", "d", "f"),
        op("MatMul", "f W0", "a"),
        op("Add", "a b0", "b"),
        op("Relu", "b", "r"),
        op("MatMul", "r W1", "e"),
        op("Add", "e b1", "Y"),
    ]
    weights = {
        "m": normal(1, 1, 1, 5),
        "s": np.abs(normal(1, 1, 1, 5)) + 0.5,
        "W0": normal(5, 7),
        "b0": normal(7),
        "W1": normal(7, 5),
        "b1": normal(5),
    }
    return save(path, nodes, weights, (1, 1, 1, 5), 9)


def mnist_fc(path: Path) -> Path:
    """VNN-COMP's mnist_fc: a column without batch, weights on the left."""
    nodes = [
        op("MatMul", "W0 X", "a"),
        op("Add", "a b0", "b"),
        op("Relu", "b", "r"),
        op("MatMul", "W1 r", "c"),
        op("Add", "c b1", "Y"),
    ]
    weights = {"W0": normal(6, 8), "b0": normal(6, 1), "W1": normal(3, 6), "b1": normal(3, 1)}
    return save(path, nodes, weights, (8, 1), 12)


def gemm_attributes(path: Path) -> Path:
    """alpha, beta, both transpositions, a bias that is one number, and a Gemm with its weights on the left."""
    nodes = [
        op("Gemm", "X A c", "a", alpha=0.5, beta=2.0),
        op("Relu", "a", "r"),
        op("Gemm", "B r C", "b", transB=1),
        op("Transpose", "b", "t", perm=[1, 0]),
        op("Gemm", "t D", "Y", alpha=-1.0),
    ]
    weights = {"A": normal(4, 6), "c": np.float32(0.25), "B": normal(5, 6), "C": normal(5, 1), "D": normal(5, 2)}
    return save(path, nodes, weights, (1, 4), 13)


def keras(path: Path, upper: str = "SAME_UPPER") -> Path:
    """tf2onnx: NHWC input, Transpose to NCHW and back, SAME padding, BatchNormalization, a shape computed in place."""
    nodes = [
        op("Transpose", "X", "x", perm=[0, 3, 1, 2]),
        op("Conv", "x K", "c", auto_pad=upper, strides=[2, 2], kernel_shape=[3, 3]),
        op("BatchNormalization", "c g h m v", "n", epsilon=0.001),
        op("Relu", "n", "r"),
        op("MaxPool", "r", "p", kernel_shape=[3, 3], strides=[2, 2], auto_pad=upper),
        op("AveragePool", "p", "q", kernel_shape=[2, 2], auto_pad=upper),
        op("Transpose", "q", "t", perm=[0, 2, 3, 1]),
        op("Shape", "t", "sh"),
        op("Gather", "sh zero", "n0"),
        op("Unsqueeze", "n0", "n1", axes=[0]),
        op("Concat", "n1 rest", "to", axis=0),
        op("Reshape", "t to", "flat"),
        op("MatMul", "flat W", "y"),
        op("Add", "y b", "Y"),
    ]
    weights = {
        "K": normal(4, 3, 3, 3),
        "g": normal(4),
        "h": normal(4),
        "m": normal(4),
        "v": np.abs(normal(4)) + 0.1,
        "zero": np.int64(0),
        "rest": np.array([-1]),
        "W": normal(36, 3),
        "b": normal(3),
    }
    return save(path, nodes, weights, ("N", 10, 10, 3), 11)


def keras_lower(path: Path) -> Path:
    return keras(path, "SAME_LOWER")


def convolution_forms(path: Path) -> Path:
    """Groups, dilation, pads that differ on all sides, Pad by reflection, GlobalAveragePool."""
    nodes = [
        op("Pad", "X pads", "p", mode="reflect"),
        op("Conv", "p K b", "c", group=2, dilations=[2, 1], pads=[0, 1, 2, 3], strides=[1, 2]),
        op("PRelu", "c slope", "r"),
        op("Conv", "r L", "d", auto_pad="VALID"),
        op("GlobalAveragePool", "d", "g"),
        op("Squeeze", "g axes", "s"),
        op("Gemm", "s W", "Y", transB=1),
    ]
    weights = {
        "pads": np.array([0, 0, 1, 0, 0, 0, 1, 2]),
        "K": normal(4, 2, 3, 2),
        "b": normal(4),
        "slope": normal(4, 1, 1),
        "L": normal(3, 4, 2, 2),
        "axes": np.array([2, 3]),
        "W": normal(2, 3),
    }
    return save(path, nodes, weights, (1, 4, 7, 7), 13)


def selections(path: Path) -> Path:
    """Slice, Gather, Split, Concat, Max, Min, Clip."""
    nodes = [
        op("Slice", "X st en ax sp", "s"),
        op("Gather", "X idx", "g", axis=1),
        op("Concat", "s g", "c", axis=1),
        op("Gemm", "c W", "z", transB=1),
        op("Split", "z", "p q r", axis=1),
        op("Max", "p q", "u"),
        op("Min", "q r", "v"),
        op("Max", "u zero", "w"),
        op("Concat", "w v", "k", axis=-1),
        op("Clip", "k low", "l"),
        op("Mul", "l f", "m"),
        op("Neg", "m", "n"),
        op("Sub", "one n", "Y"),
    ]
    weights = {
        "st": np.array([1]),
        "en": np.array([2**60]),
        "ax": np.array([-1]),
        "sp": np.array([2]),
        "idx": np.array([5, 0, -2]),
        "W": normal(6, 6),
        "zero": np.float32(0),
        "low": np.float32(-0.3),
        "f": normal(4),
        "one": np.float32(1),
    }
    return save(path, nodes, weights, (1, 6), 13)


def reductions(path: Path) -> Path:
    """ReduceMean with its axes as an input, a mean over one axis, InstanceNormalization, Sum, HardSigmoid."""
    nodes = [
        op("InstanceNormalization", "X g h", "i", epsilon=0.1),
        op("Sum", "i X c", "s"),
        op("ReduceMean", "s ax", "r", keepdims=0),
        op("HardSigmoid", "r", "k"),
        op("MatMul", "k W", "Y"),
    ]
    weights = {"g": normal(3), "h": normal(3), "c": normal(3, 1, 1), "ax": np.array([2]), "W": normal(5, 2)}
    return save(path, nodes, weights, (1, 3, 4, 5), 18)


def doubles(path: Path) -> Path:
    """Float64 weights, constants from Constant nodes, weights that are transposed and scaled on the way."""
    inner = helper.make_node("Constant", [], ["two"], value=numpy_helper.from_array(np.float64(2.0)))
    nodes = [
        inner,
        op("Transpose", "A", "T", perm=[1, 0]),
        op("Mul", "T two", "W"),
        op("MatMul", "X W", "z"),
        op("Sin", "z", "s"),
        op("Mul", "s s", "q"),
        op("Abs", "q", "Y"),
    ]
    return save(path, nodes, {"A": np.random.default_rng(0).normal(size=(3, 4))}, (1, 4), 17, kind=TensorProto.DOUBLE)


def old_style(path: Path) -> Path:
    """IR 3: initializers are inputs as well; Dropout, Reshape by attributes of shape, Clip by attributes."""
    nodes = [
        op("Reshape", "X to", "x"),
        op("Gemm", "x W b", "z", transB=1),
        op("Clip", "z", "c", min=-0.5, max=0.5),
        op("Dropout", "c", "d"),
        op("Identity", "d", "e"),
        op("Unsqueeze", "e", "u", axes=[2]),
        op("LeakyRelu", "u", "l"),
        op("Squeeze", "l", "Y", axes=[2]),
    ]
    weights = {"to": np.array([0, -1]), "W": normal(3, 8), "b": normal(3)}
    save(path, nodes, weights, (1, 2, 4), 9)
    model = onnx.load(str(path))
    model.ir_version = 3
    for tensor in model.graph.initializer:
        model.graph.input.append(helper.make_tensor_value_info(tensor.name, tensor.data_type, list(tensor.dims)))
    path.write_bytes(model.SerializeToString())
    return path


def halves(path: Path) -> Path:
    """Float16 weights that are cast to float32."""
    nodes = [
        op("Cast", "W", "w", to=FLOAT),
        op("MatMul", "X w", "z"),
        op("Softplus", "z", "s"),
        op("Selu", "s", "e"),
        op("Tanh", "e", "Y"),
    ]
    return save(path, nodes, {"W": normal(4, 3).astype(np.float16)}, (1, 4), 13)


def external(path: Path) -> Path:
    """Weights in another file of the folder."""
    acasxu(path)
    model = onnx.load(str(path))
    onnx.save_model(
        model,
        str(path),
        save_as_external_data=True,
        location=f"{path.stem}.bin",
        size_threshold=0,
        all_tensors_to_one_file=True,
    )
    return path


def statistics(path: Path) -> Path:
    """Normalisation written out: over channels with Pow and Reciprocal, over space with Mul, Sqrt and Div."""
    nodes = [
        op("ReduceMean", "X", "m", axes=[1]),
        op("Sub", "X m", "c"),
        op("Pow", "c two", "q"),
        op("ReduceMean", "q", "v", axes=[1]),
        op("Add", "v e", "w"),
        op("Sqrt", "w", "s"),
        op("Reciprocal", "s", "r"),
        op("Mul", "r c", "n"),
        op("ReduceMean", "n", "M", axes=[2, 3]),
        op("Sub", "n M", "C"),
        op("Mul", "C C", "Q"),
        op("ReduceMean", "Q", "V", axes=[-1, -2]),
        op("Add", "e V", "W"),
        op("Sqrt", "W", "S"),
        op("Div", "C S", "N"),
        op("Add", "N M2", "Y"),
    ]
    weights = {"two": np.float32(2), "e": np.float32(0.1), "M2": normal(3, 1, 1)}
    return save(path, nodes, weights, (1, 3, 4, 5), 13)


def curves(path: Path) -> Path:
    """Celu, a GELU of 2 relu(t) written out, SiLU of a joint activation, LogSigmoid, TopK of all entries."""
    nodes = [
        op("Celu", "X", "k", alpha=0.3),
        op("Gemm", "k W", "z", transB=1),
        op("Relu", "z", "r"),
        op("Mul", "r two", "d"),
        op("Div", "d root", "u"),
        op("Erf", "u", "e"),
        op("Add", "e one", "f"),
        op("Mul", "d f", "g"),
        op("Mul", "g half", "h"),
        op("Neg", "h", "i"),
        op("Concat", "h i", "j", axis=1),
        op("Sigmoid", "j", "l"),
        op("Mul", "j l", "n"),
        op("TopK", "n six", "o p", axis=-1),
        op("Sigmoid", "o", "q"),
        op("Log", "q", "Y"),
    ]
    numbers = {"two": 2.0, "root": 2.0**0.5, "one": 1.0, "half": 0.5}
    weights = {"W": normal(3, 4), "six": np.array([6]), **{name: np.float32(n) for name, n in numbers.items()}}
    return save(path, nodes, weights, (1, 4), 13)


def scaler(path: Path) -> Path:
    """skl2onnx's StandardScaler before a dense layer: an operator of the domain ai.onnx.ml."""
    scale = helper.make_node(
        "Scaler", ["X"], ["s"], domain="ai.onnx.ml", offset=[0.5, -1.0, 2.0], scale=[2.0, 0.3, 1.0]
    )
    save(path, [scale, op("MatMul", "s W", "Y")], {"W": normal(3, 2)}, (1, 3), 15)
    model = onnx.load(str(path))
    model.opset_import.append(helper.make_opsetid("ai.onnx.ml", 1))
    path.write_bytes(model.SerializeToString())
    return path


BY_HAND: dict[str, Callable[[Path], Path]] = {
    f.__name__: f
    for f in (
        acasxu,
        mnist_fc,
        gemm_attributes,
        keras,
        keras_lower,
        convolution_forms,
        selections,
        reductions,
        doubles,
        old_style,
        halves,
        external,
        statistics,
        curves,
        scaler,
    )
}

# fmt: on
