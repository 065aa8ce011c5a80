"""Operators along whole axes: every form that ONNX Runtime computes, against it and against torch; the rest refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import lipbridge
from lipbridge.errors import ModelFileError, UnsupportedOperation

pytest.importorskip("onnx", reason="needs lipbridge[onnx]")
pytest.importorskip("onnxruntime", reason="needs lipbridge[onnx]")

from lipbridge_adapters.onnx.reading import read_onnx
from tests.support.onnx_files import normal, op, save
from tests.support.onnx_reading import require_equal

IMAGE = (1, 2, 4, 6)
SCALES = np.array([1, 1, 2, 3], np.float32)


def ints(*values: int) -> Any:
    return np.array(values, np.int64)


def resized(path: Path, opset: int = 18, *, scales: Any = None, sizes: Any = None, **attributes: Any) -> Path:
    weights = {"s": SCALES if scales is None and sizes is None else scales, "z": sizes}
    given = "s" if weights["s"] is not None else ""
    weights["r"] = np.array([], np.float32) if opset == 11 else None
    roi = "r" if opset == 11 else ""
    inputs = f"X {given}" if opset < 11 else f"X {roi} {given}" if sizes is None else "X   z"
    return save(
        path,
        [op("Resize", inputs, "Y", **attributes)],
        {name: value for name, value in weights.items() if value is not None},
        IMAGE,
        opset,
    )


@pytest.mark.parametrize("place", ["asymmetric", "half_pixel", "align_corners", "pytorch_half_pixel"])
@pytest.mark.parametrize("opset", [11, 13, 18, 19])
def test_linear_interpolation(place: str, opset: int, tmp_path: Path) -> None:
    path = resized(tmp_path / "a.onnx", opset, mode="linear", coordinate_transformation_mode=place)
    require_equal(path, read_onnx(path))


@pytest.mark.parametrize("nearest", ["floor", "ceil", "round_prefer_floor", "round_prefer_ceil"])
@pytest.mark.parametrize("place", ["asymmetric", "half_pixel", "pytorch_half_pixel"])
@pytest.mark.parametrize("factors", [(2.0, 4.0), (0.5, 0.5), (1.0, 2.0)])
def test_nearest_entries(nearest: str, place: str, factors: tuple[float, float], tmp_path: Path) -> None:
    path = resized(
        tmp_path / "a.onnx",
        scales=np.array([1, 1, *factors], np.float32),
        mode="nearest",
        nearest_mode=nearest,
        coordinate_transformation_mode=place,
    )
    require_equal(path, read_onnx(path))


@pytest.mark.parametrize("sizes", [(8, 12), (3, 2), (4, 5), (7, 6)])
@pytest.mark.parametrize("mode", ["nearest", "linear"])
def test_sizes(sizes: tuple[int, int], mode: str, tmp_path: Path) -> None:
    path = resized(tmp_path / "a.onnx", sizes=ints(1, 2, *sizes), mode=mode)
    if mode == "nearest" and sizes[1] == 5:  # 2.5 half-way between two entries, in numbers that float32 rounds
        with pytest.raises(UnsupportedOperation, match="depends on how its coordinates are rounded"):
            read_onnx(path)
        return
    require_equal(path, read_onnx(path))


def test_the_oldest_forms(tmp_path: Path) -> None:
    for mode in ("nearest", "linear"):
        path = resized(tmp_path / "a.onnx", 10, mode=mode)
        require_equal(path, read_onnx(path))
        path = save(tmp_path / "b.onnx", [op("Upsample", "X s", "Y", mode=mode)], {"s": SCALES}, IMAGE, 9)
        require_equal(path, read_onnx(path))


@pytest.mark.parametrize(
    ("attributes", "reason"),
    [
        ({"mode": "cubic"}, "Only nearest entries and linear"),
        ({"mode": "linear", "antialias": 1}, "reach further"),
        ({"coordinate_transformation_mode": "tf_crop_and_resize"}, "'tf_crop_and_resize' is not read"),
        ({"keep_aspect_ratio_policy": "not_larger"}, "sizes that stretch"),
    ],
)
def test_other_resizing_is_refused(attributes: dict[str, Any], reason: str, tmp_path: Path) -> None:
    with pytest.raises((UnsupportedOperation, ModelFileError), match=reason):
        read_onnx(resized(tmp_path / "a.onnx", **attributes))


def test_resizing_the_batch_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedOperation, match="along the batch"):
        read_onnx(resized(tmp_path / "a.onnx", scales=np.array([2, 1, 1, 1], np.float32)))


# --- sums, extremes, products ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["ReduceSum", "ReduceMin", "ReduceMax", "ReduceMean"])
@pytest.mark.parametrize("axes", [(1,), (2, 3), (-1,), (1, 3)])
@pytest.mark.parametrize("keep", [0, 1])
def test_reductions(kind: str, axes: tuple[int, ...], keep: int, tmp_path: Path) -> None:
    """What comes after reads the shape: a MatMul on the last axis."""
    size = [1 if i in [a % 4 for a in axes] else n for i, n in enumerate(IMAGE)]
    left = [n for i, n in enumerate(size) if keep or i not in [a % 4 for a in axes]]
    path = save(
        tmp_path / "a.onnx",
        [op(kind, "X a", "R", keepdims=keep), op("MatMul", "R W", "Y")],
        {"a": ints(*axes), "W": normal(left[-1], 3)},
        IMAGE,
        18,
    )
    require_equal(path, read_onnx(path))


EQUATIONS: list[tuple[str, tuple[int, ...], tuple[int, ...]]] = [
    ("bi,ij->bj", (1, 4), (4, 3)),
    ("bij,jk->bik", (1, 2, 4), (4, 3)),
    ("bij,ik->bkj", (1, 2, 4), (2, 3)),
    ("bij,ij->b", (1, 2, 4), (2, 4)),
    ("bij,ij->bi", (1, 2, 4), (2, 4)),
    ("bij,ikj->bki", (1, 2, 4), (2, 3, 4)),
    ("bii,ik->bk", (1, 3, 3), (3, 2)),
    ("ij,jk->ik", (5, 4), (4, 3)),
]


@pytest.mark.parametrize(("equation", "entry", "constant"), EQUATIONS)
@pytest.mark.parametrize("first", [True, False])
def test_einsum(equation: str, entry: tuple[int, ...], constant: tuple[int, ...], first: bool, tmp_path: Path) -> None:
    left, right = equation.split("->")[0].split(",")
    turned = equation if first else f"{right},{left}->{equation.split('->')[1]}"
    path = save(
        tmp_path / "a.onnx",
        [op("Einsum", "X W" if first else "W X", "Y", equation=turned)],
        {"W": normal(*constant)},
        entry,
    )
    require_equal(path, read_onnx(path))


@pytest.mark.parametrize(
    ("first", "entry", "constant"),
    [
        (True, (1, 3, 2, 4), (3, 4, 5)),
        (True, (1, 3, 2, 4), (1, 3, 4, 5)),
        (True, (1, 2, 4), (1, 4, 5)),
        (True, (1, 2, 4), (4,)),
        (False, (1, 3, 4, 2), (3, 5, 4)),
        (False, (1, 4, 2), (4,)),
    ],
)
def test_products_with_constants_of_any_rank(
    first: bool, entry: tuple[int, ...], constant: tuple[int, ...], tmp_path: Path
) -> None:
    path = save(tmp_path / "a.onnx", [op("MatMul", "X W" if first else "W X", "Y")], {"W": normal(*constant)}, entry)
    require_equal(path, read_onnx(path))


def test_products_of_two_functions_of_the_input_are_refused(tmp_path: Path) -> None:
    path = save(tmp_path / "a.onnx", [op("Einsum", "X X", "Y", equation="bi,bi->b")], {}, (1, 4))
    with pytest.raises(UnsupportedOperation, match="product of two functions"):
        read_onnx(path)


@pytest.mark.parametrize("equation", ["bi,ij", "b...,...j->bj", "bi,ij->bz", "bik,ij->bj"])
def test_equations_that_do_not_fit(equation: str, tmp_path: Path) -> None:
    path = save(tmp_path / "a.onnx", [op("Einsum", "X W", "Y", equation=equation)], {"W": normal(4, 3)}, (1, 4))
    with pytest.raises((UnsupportedOperation, ModelFileError)):
        read_onnx(path)


# --- values that repeat, entries that are named, windows beyond the end ----------------------------------------------


def test_values_repeat_along_axes_of_length_one(tmp_path: Path) -> None:
    nodes = [
        op("ReduceMean", "X a", "M", keepdims=1),
        op("Sub", "X M", "C"),
        op("ReduceMax", "X a", "T", keepdims=1),
        op("Add", "T B", "D"),  # a constant that is larger than the value
        op("Add", "C D", "Y"),
    ]
    path = save(tmp_path / "a.onnx", nodes, {"a": ints(3), "B": normal(1, 1, 4, 6)}, IMAGE, 18)
    require_equal(path, read_onnx(path))


@pytest.mark.parametrize("kind", ["Max", "Min"])
@pytest.mark.parametrize("size", [(6,), (2, 1, 1), (1, 2, 4, 6), (4, 1)])
def test_extremes_with_constants(kind: str, size: tuple[int, ...], tmp_path: Path) -> None:
    path = save(tmp_path / "a.onnx", [op(kind, "X c l", "Y")], {"c": normal(*size), "l": np.float32(0.1)}, IMAGE)
    require_equal(path, read_onnx(path))


def test_the_batch_does_not_repeat(tmp_path: Path) -> None:
    path = save(tmp_path / "a.onnx", [op("Add", "X B", "Y")], {"B": normal(3, 4)}, (1, 4))
    with pytest.raises(UnsupportedOperation, match="batch"):
        read_onnx(path)


def test_entries_that_are_named(tmp_path: Path) -> None:
    places = np.array([[[0, 1, 3], [0, 0, -1]], [[0, -1, 2], [0, 1, 0]]], np.int64)
    path = save(tmp_path / "a.onnx", [op("GatherND", "X i", "Y")], {"i": places}, IMAGE)
    require_equal(path, read_onnx(path))
    path = save(tmp_path / "b.onnx", [op("GatherND", "X i", "Y")], {"i": places + 7}, IMAGE)
    with pytest.raises(ModelFileError, match="not there"):
        read_onnx(path)


@pytest.mark.parametrize("pads", [(0, 0, 0, 0), (1, 0, 0, 1)])
def test_averages_of_windows_beyond_the_end(pads: tuple[int, ...], tmp_path: Path) -> None:
    attributes = {"kernel_shape": [3, 3], "strides": [2, 2], "ceil_mode": 1, "pads": list(pads)}
    path = save(tmp_path / "a.onnx", [op("AveragePool", "X", "Y", **attributes)], {}, (1, 2, 6, 6), 19)
    require_equal(path, read_onnx(path))
    attributes |= {"count_include_pad": 1, "pads": [0, 0, 0, 0]}
    path = save(tmp_path / "b.onnx", [op("AveragePool", "X", "Y", **attributes)], {}, (1, 2, 6, 6), 19)
    with pytest.raises(UnsupportedOperation, match="differs between runtimes"):
        read_onnx(path)


# --- constants -------------------------------------------------------------------------------------------------------

FOLDED: dict[str, tuple[Callable[[Tensor], Tensor], dict[str, Any]]] = {
    "Softplus": (torch.nn.functional.softplus, {}),
    "Tanh": (torch.tanh, {}),
    "Sigmoid": (torch.sigmoid, {}),
    "Relu": (torch.relu, {}),
    "Sin": (torch.sin, {}),
    "Cos": (torch.cos, {}),
    "Sign": (torch.sign, {}),
    "Abs": (torch.abs, {}),
    "Exp": (torch.exp, {}),
    "ReduceMean": (lambda t: t.mean().reshape(1, 1), {"keepdims": 1}),
    "ReduceSumSquare": (lambda t: t.square().sum().reshape(1, 1), {"keepdims": 1}),
    "ReduceL2": (lambda t: t.norm().reshape(1, 1), {"keepdims": 1}),
    "ReduceL1": (lambda t: t.abs().sum().reshape(1, 1), {"keepdims": 1}),
}


@pytest.mark.parametrize("kind", FOLDED)
def test_weights_that_the_file_computes(kind: str, tmp_path: Path) -> None:
    """A factor or a matrix that is computed from a stored one."""
    compute, attributes = FOLDED[kind]
    W = normal(4, 3)
    path = save(
        tmp_path / "a.onnx",
        [op(kind, "W", "V", **attributes), op("Mul", "V W", "U"), op("MatMul", "X U", "Y")],
        {"W": W},
        (1, 4),
    )
    graph = read_onnx(path)
    require_equal(path, graph)
    stored = torch.from_numpy(W).double()
    expected = torch.linalg.matrix_norm(compute(stored) * stored, 2)
    assert lipbridge.trivial_bound(graph).value == pytest.approx(float(expected), rel=1e-12)


def test_products_and_limits_of_constants(tmp_path: Path) -> None:
    nodes = [
        op("Gemm", "A B C", "V", transA=1, alpha=0.5, beta=2.0),
        op("Clip", "V l h", "U"),
        op("MatMul", "X U", "Y"),
    ]
    weights = {"A": normal(5, 4), "B": normal(5, 3), "C": normal(3), "l": np.float32(-1.0), "h": np.float32(0.7)}
    path = save(tmp_path / "a.onnx", nodes, weights, (1, 4))
    require_equal(path, read_onnx(path))
