"""Every attribute of every operator away from its default, one operator a file, against ONNX Runtime; jumps refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional as F

pytest.importorskip("onnx", reason="needs lipbridge[onnx]")
pytest.importorskip("onnxruntime", reason="needs lipbridge[onnx]")

from lipbridge.errors import UnsupportedOperation
from lipbridge.graph.nodes import Elementwise
from lipbridge_adapters.onnx.reading import read_onnx
from tests.support.onnx_files import normal, op, save
from tests.support.onnx_reading import require_equal

VECTOR, IMAGE, LINE = (1, 4), (1, 2, 5, 6), (1, 2, 7)


def ints(*values: int) -> Any:
    return np.array(values, np.int64)


def floats(*values: float) -> Any:
    return np.array(values, np.float32)


#: The nodes, their constants, the input's shape, the opset.
Case = tuple[list[Any], dict[str, Any], tuple[int, ...], int]


def one(kind: str, shape: tuple[int, ...], opset: int = 18, /, *constants: Any, **attributes: Any) -> Case:
    names = {f"c{i}": value for i, value in enumerate(constants) if value is not None}
    inputs = " ".join(["X", *(f"c{i}" if value is not None else "" for i, value in enumerate(constants))])
    return [op(kind, inputs, "Y", **attributes)], names, shape, opset


def cases() -> dict[str, Case]:
    W, U, K, T = normal(4, 3), normal(3, 4), normal(3, 2, 2, 3), normal(2, 3, 2, 3)
    _line, turned = normal(3, 2, 2), normal(2, 3, 2)
    return {
        "gemm alpha": one("Gemm", VECTOR, 13, W, floats(1.0, -2.0, 0.5), alpha=0.5),
        "gemm beta": one("Gemm", VECTOR, 13, W, floats(1.0, -2.0, 0.5), beta=-3.0),
        "gemm transB": one("Gemm", VECTOR, 13, normal(4, 4), normal(4), transB=1, alpha=2.0, beta=0.25),
        "conv pads": one("Conv", IMAGE, 13, K, normal(3), pads=[0, 1, 2, 3]),
        "conv everything": one("Conv", IMAGE, 13, K, strides=[2, 1], dilations=[2, 1], pads=[1, 0, 2, 1]),
        "conv groups": one("Conv", IMAGE, 13, normal(4, 1, 2, 2), group=2, pads=[1, 0, 0, 2]),
        "conv valid": one("Conv", IMAGE, 13, K, auto_pad="VALID", strides=[1, 2]),
        "conv upper": one("Conv", IMAGE, 13, K, auto_pad="SAME_UPPER", strides=[2, 1]),
        "conv lower": one("Conv", IMAGE, 13, K, auto_pad="SAME_LOWER", strides=[1, 2]),
        "another mean": (
            [op("Relu", "X", "r"), op("ReduceMean", "X", "m", axes=[1]), op("Sub", "r m", "Y")],
            {},
            VECTOR,
            13,
        ),
        "transposed pads": one("ConvTranspose", IMAGE, 13, T, pads=[0, 1, 2, 0], strides=[2, 3]),
        "transposed more": one(
            "ConvTranspose", LINE, 13, turned, normal(3), output_padding=[1], strides=[2], pads=[1, 0]
        ),
        "transposed dilated": one(
            "ConvTranspose", IMAGE, 13, T, dilations=[2, 1], output_padding=[0, 1], strides=[1, 2]
        ),
        "transposed groups": one("ConvTranspose", LINE, 13, normal(2, 2, 3), group=2, strides=[2]),
        "transposed lower": one("ConvTranspose", LINE, 13, turned, auto_pad="SAME_LOWER", strides=[1]),
        "transposed upper": one("ConvTranspose", LINE, 13, turned, auto_pad="SAME_UPPER", strides=[1]),
        "transposed shape": one("ConvTranspose", LINE, 13, turned, output_shape=[13], strides=[2]),
        "average": one("AveragePool", IMAGE, 13, kernel_shape=[2, 3], strides=[2, 1], pads=[1, 0, 0, 2]),
        "average with padding": one(
            "AveragePool", IMAGE, 13, kernel_shape=[2, 3], pads=[0, 1, 1, 2], count_include_pad=1
        ),
        "average ceil": one("AveragePool", IMAGE, 19, kernel_shape=[2, 2], strides=[2, 4], ceil_mode=1),
        "average lower": one("AveragePool", LINE, 13, kernel_shape=[2], auto_pad="SAME_LOWER"),
        "max": one("MaxPool", IMAGE, 13, kernel_shape=[3, 2], strides=[1, 2], pads=[1, 0, 1, 1], dilations=[1, 2]),
        "max ceil": one("MaxPool", IMAGE, 13, kernel_shape=[2, 2], strides=[2, 4], ceil_mode=1),
        "average ceil beyond": one(
            "AveragePool", (1, 2, 5), 19, kernel_shape=[2], strides=[3], pads=[0, 1], ceil_mode=1
        ),
        "max ceil beyond": one("MaxPool", (1, 2, 5), 13, kernel_shape=[2], strides=[3], pads=[0, 1], ceil_mode=1),
        "max lower": one("MaxPool", LINE, 13, kernel_shape=[2], auto_pad="SAME_LOWER"),
        "max upper": one("MaxPool", LINE, 13, kernel_shape=[4], auto_pad="SAME_UPPER", strides=[2]),
        **{
            f"pad {mode}": one("Pad", IMAGE, 19, ints(0, 0, 1, 0, 0, 0, 2, 3), mode=mode)
            for mode in ("constant", "reflect", "edge", "wrap")
        },
        "pad value": one("Pad", LINE, 13, ints(0, 0, 1, 0, 0, 2), floats(-1.5)[0]),
        "pad channels": one("Pad", LINE, 13, ints(0, 1, 0, 0, 0, 2), floats(0.75)[0]),
        "pad axes": one("Pad", IMAGE, 18, ints(1, 2), None, ints(-1)),
        "leaky": one("LeakyRelu", VECTOR, 13, alpha=-0.7),
        "leaky steep": one("LeakyRelu", VECTOR, 13, alpha=1.6),
        "elu": one("Elu", VECTOR, 13, alpha=2.5),
        "selu": one("Selu", VECTOR, 13, alpha=0.5, gamma=3.0),
        "celu": one("Celu", VECTOR, 13, alpha=0.3),
        "hard sigmoid": one("HardSigmoid", VECTOR, 13, alpha=0.4, beta=0.9),
        "shrink": one("Shrink", VECTOR, 13, lambd=0.3, bias=0.3),
        "gelu": one("Gelu", VECTOR, 20, approximate="tanh"),
        "clip": one("Clip", VECTOR, 13, floats(-0.5)[0], floats(0.7)[0]),
        "clip below": one("Clip", VECTOR, 13, floats(-0.5)[0]),
        "clip above": one("Clip", VECTOR, 13, None, floats(0.7)[0]),
        "max of numbers": one("Max", VECTOR, 13, floats(-0.5)[0], floats(0.2)[0]),
        "min of numbers": one("Min", VECTOR, 13, floats(-0.5)[0], floats(0.2)[0]),
        "min of vectors": one("Min", VECTOR, 13, normal(4)),
        "max of vectors": one("Max", VECTOR, 13, normal(4)),
        "transpose": one("Transpose", (1, 2, 3, 4), 13, perm=[0, 2, 3, 1]),
        "gather behind": one("Gather", LINE, 13, ints(-1, 0, -3), axis=2),
        "gather twice": one("Gather", LINE, 13, ints(2, 2, 5).reshape(3, 1), axis=-1),
        "flatten": one("Flatten", IMAGE, 13, axis=-2),
        "top k": ([op("TopK", "X k", "Y i", largest=1, axis=1)], {"k": ints(4)}, VECTOR, 13),
        "smallest": ([op("TopK", "X k", "Y i", largest=0, axis=-1)], {"k": ints(7)}, LINE, 13),
        "split": (
            [op("Split", "X s", "a b", axis=2), op("Relu", "b", "r"), op("Concat", "r a", "Y", axis=-1)],
            {"s": ints(2, 5)},
            LINE,
            13,
        ),
        "concat of channels": ([op("Relu", "X", "r"), op("Concat", "r X", "Y", axis=1)], {}, IMAGE, 13),
        "concat of rows": ([op("Sin", "X", "r"), op("Concat", "X r X", "Y", axis=-2)], {}, IMAGE, 13),
        "slice": one("Slice", IMAGE, 13, ints(1, -1), ints(5, -9), ints(2, 3), ints(2, -2)),
        "less a value": ([op("Sub", "c X", "a"), op("Relu", "a", "Y")], {"c": normal(4)}, VECTOR, 13),
        "of a number less": ([op("Sub", "c X", "a"), op("Tanh", "a", "Y")], {"c": floats(0.5)[0]}, VECTOR, 13),
        "crd": one("DepthToSpace", (1, 8, 2, 3), 13, blocksize=2, mode="CRD"),
        "dcr": one("DepthToSpace", (1, 8, 2, 3), 13, blocksize=2),
        "blocks": one("SpaceToDepth", (1, 3, 4, 6), 13, blocksize=2),
        "elements": one("GatherElements", VECTOR, 13, ints(-1, 0, -2).reshape(1, 3), axis=1),
        "minimum over axes": one("ReduceMin", IMAGE, 18, ints(1, -1), keepdims=0),
        "sum over axes": one("ReduceSum", IMAGE, 18, ints(2), keepdims=0),
        "sum over none": one("ReduceSum", VECTOR, 18, noop_with_empty_axes=1),
        "product from the left": ([op("MatMul", "c X", "Y")], {"c": normal(3, 5)}, (1, 5, 2), 13),
        "product from the right": one("MatMul", (1, 2, 4), 13, U.T.copy()),
        "two shapes of one value": (
            [
                op("MatMul", "X E", "r"),
                op("Reshape", "r two", "a"),
                op("Reshape", "r three", "b"),
                op("MatMul", "a V", "c"),
                op("MatMul", "b U", "d"),
                op("Reshape", "d back", "e"),
                op("Add", "c e", "Y"),
            ],
            {
                "E": normal(4, 12),
                "V": normal(6, 3),
                "U": normal(2, 1),
                "two": ints(1, 2, 6),
                "three": ints(1, 2, 3, 2),
                "back": ints(1, 2, 3),
            },
            VECTOR,
            13,
        ),
        "a part of the shape": (
            [
                op("Shape", "X", "s", start=1, end=-2),
                op("Concat", "one s rest", "t", axis=0),
                op("Reshape", "X t", "r"),
                op("ReduceSum", "r last", "Y", keepdims=0),
            ],
            {"one": ints(1), "rest": ints(-1), "last": ints(2)},
            IMAGE,
            18,
        ),
        "log of a sigmoid": ([op("Sigmoid", "X", "s"), op("Log", "s", "Y")], {}, VECTOR, 13),
        "a shared sum": (
            [op("MatMul", "X W", "a"), op("Add", "a b", "c"), op("Mul", "a c2", "d"), op("Add", "c d", "Y")],
            {"W": W, "b": normal(3), "c2": floats(2.0)[0]},
            VECTOR,
            13,
        ),
    }


CASES = cases()


@pytest.mark.parametrize("name", CASES)
def test_operators_with_all_their_attributes(name: str, tmp_path: Path) -> None:
    path = save(tmp_path / "m.onnx", *CASES[name])
    require_equal(path, read_onnx(path))


def test_defaults_are_the_numbers_of_float32_that_runtimes_keep(tmp_path: Path) -> None:
    path = save(tmp_path / "m.onnx", *one("LeakyRelu", VECTOR, 13))
    (node,) = [node for node in read_onnx(path) if isinstance(node, Elementwise)]
    assert node.activation.components[0][0].parameters == (float(np.float32(0.01)),)


@pytest.mark.parametrize(("auto", "widths"), [("SAME_UPPER", (1, 2)), ("SAME_LOWER", (2, 1))])
def test_padding_that_keeps_the_size_counts_the_dilation(auto: str, widths: tuple[int, int], tmp_path: Path) -> None:
    """ONNX Runtime refuses the two together, which ONNX allows."""
    kernel = normal(3, 2, 2)
    path = save(tmp_path / "m.onnx", [op("Conv", "X K", "Y", auto_pad=auto, dilations=[3])], {"K": kernel}, LINE)
    x = torch.randn(1, 2, 7, dtype=torch.float64)
    expected = F.conv1d(F.pad(x, widths), torch.from_numpy(kernel).double(), dilation=3)
    torch.testing.assert_close(read_onnx(path)(x), expected, rtol=1e-12, atol=1e-12)


def centred(*steps: Any) -> list[Any]:
    """x - mean(x), and what comes of it."""
    return [op("ReduceMean", "X", "m", axes=[1], keepdims=1), op("Sub", "X m", "d"), *steps]


VARIANCE = [op("Pow", "d two_", "q"), op("ReduceMean", "q", "v", axes=[1]), op("Add", "v eps", "w")]
REFUSED: dict[str, tuple[list[Any], str]] = {
    "power 4": ([op("Pow", "X four", "Y")], "no global Lipschitz"),
    "power 0": ([op("Pow", "X zero", "Y")], "no global Lipschitz"),
    "log of half a sigmoid": ([op("Sigmoid", "X", "s"), op("Mul", "s half", "h"), op("Log", "h", "Y")], "Lipschitz"),
    "log of a tanh": ([op("Tanh", "X", "s"), op("Log", "s", "Y")], "Lipschitz"),
    "cast to int32": ([op("Cast", "X", "i", to=6), op("Cast", "i", "Y", to=1)], "casts"),
    "cast to bool": ([op("Cast", "X", "i", to=9), op("Cast", "i", "Y", to=1)], "casts"),
    "dropout in training": ([op("Dropout", "X ratio yes", "Y")], "inference"),
    "tiled batch": ([op("Tile", "X two", "Y")], "batch"),
    "no epsilon": (
        centred(
            op("Pow", "d two_", "q"), op("ReduceMean", "q", "v", axes=[1]), op("Sqrt", "v", "s"), op("Div", "d s", "Y")
        ),
        "epsilon",
    ),
    "another value divided": ([*centred(*VARIANCE), op("Sqrt", "w", "s"), op("Div", "X s", "Y")], "tatistics"),
    "a fourth root": ([*centred(*VARIANCE), op("Pow", "w quarter", "s"), op("Div", "d s", "Y")], "Lipschitz"),
    "batch of places": ([op("GatherND", "X places", "Y", batch_dims=1)], "batch_dims"),
}
CONSTANTS = {
    "four": floats(4.0)[0],
    "zero": floats(0.0)[0],
    "half": floats(0.5)[0],
    "two_": floats(2.0)[0],
    "quarter": floats(0.25)[0],
    "eps": floats(1e-3)[0],
    "ratio": floats(0.5)[0],
    "yes": np.array(True),
    "two": ints(2, 1),
    "places": ints(1).reshape(1, 1),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_no_layer_is_refused(name: str, tmp_path: Path) -> None:
    nodes, words = REFUSED[name]
    used = {source for node in nodes for source in node.input}
    constants = {key: value for key, value in CONSTANTS.items() if key in used}
    path = save(tmp_path / "m.onnx", nodes, constants, VECTOR, 13)
    with pytest.raises(UnsupportedOperation, match=words):
        read_onnx(path)
