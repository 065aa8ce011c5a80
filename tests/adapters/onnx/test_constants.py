"""What is folded from constants of a file is what ONNX's own reference evaluator makes of them."""

from __future__ import annotations

import numpy as np
import pytest
import torch

pytest.importorskip("onnx")
pytest.importorskip("onnx.reference")

import onnx
from onnx import TensorProto, helper
from onnx.reference import ReferenceEvaluator

from lipbridge_adapters.onnx.constants import fold, reshaped
from lipbridge_adapters.onnx.file import Fault

M = np.arange(-3.0, 9.0).reshape(3, 4) / 4.0
CUBE = np.arange(24.0).reshape(2, 3, 4)
WHOLE = np.array([[7, -7, 5], [-9, 2, 1]])
P = np.array([0.25, 1.5, 3.0])


def whole(*items: int) -> np.ndarray:
    return np.array(items, dtype=np.int64)


CASES = [
    ("Div", [WHOLE, whole(2, 2, -3)], {}),
    ("Div", [M, np.array([2.0, -4.0, 0.5, 8.0])], {}),
    ("Cast", [M], {"to": TensorProto.BOOL}),
    ("Cast", [M], {"to": TensorProto.INT64}),
    ("Cast", [WHOLE], {"to": TensorProto.DOUBLE}),
    ("Reshape", [CUBE, whole(0, -1)], {}),
    ("Reshape", [CUBE, whole(0, 0, 2, 2)], {}),
    ("Reshape", [np.zeros((0, 3)), whole(3, 0)], {"allowzero": 1}),
    ("Flatten", [CUBE], {"axis": 2}),
    ("Flatten", [CUBE], {"axis": -1}),
    ("Flatten", [CUBE], {"axis": 0}),
    ("Squeeze", [M[None, :, None], whole(-2)], {}),
    ("Squeeze", [M[None, :, None]], {}),
    ("Unsqueeze", [M, whole(-1)], {}),
    ("Unsqueeze", [M, whole(0, -2)], {}),
    ("Slice", [CUBE, whole(2, -1), whole(-9, 9), whole(1, 2), whole(-1, 1)], {}),
    ("Slice", [CUBE, whole(0), whole(4), whole(-1), whole(2)], {}),
    ("Slice", [CUBE, whole(1), whole(3)], {}),
    ("Gather", [M, whole(-1, 0)], {}),
    ("Gather", [M, np.array([[-2, 1], [3, -4]])], {"axis": 1}),
    ("Gather", [M, np.array(-1)], {"axis": -1}),
    ("Concat", [M, M[:1]], {"axis": 0}),
    ("Concat", [M, M[:, :2]], {"axis": -1}),
    ("ConstantOfShape", [whole(2, 3)], {}),
    ("Expand", [M[:, None], whole(2, 1)], {}),
    ("Tile", [M, whole(2, 3)], {}),
    ("Range", [np.array(1), np.array(9), np.array(3)], {}),
    ("Range", [np.array(9), np.array(1), np.array(-2)], {}),
    ("Transpose", [CUBE], {}),
    ("Transpose", [CUBE], {"perm": [1, 0, 2]}),
    ("Shape", [CUBE], {}),
    ("Shape", [CUBE], {"start": 1, "end": -1}),
    ("Shape", [CUBE], {"start": -2}),
    ("Size", [CUBE], {}),
    ("MatMul", [M, M.T], {}),
    ("Gemm", [M, M.T, np.array([1.0, 2.0, 3.0])], {"alpha": 0.5, "beta": -2.0}),
    ("Gemm", [M, M], {"transA": 1}),
    ("Gemm", [M, M, np.array(2.0)], {"transB": 1}),
    ("Clip", [M, np.array(0.0), np.array(1.0)], {}),
    ("Clip", [M, np.array(0.25)], {}),
    ("Max", [M, np.array(0.5), M[::-1].copy()], {}),
    ("Min", [M, np.array([0.5, 0.0, 1.0, -1.0])], {}),
    ("Pow", [M, np.array(3.0)], {}),
    ("Equal", [WHOLE, whole(7, 2, 1)], {}),
    ("Greater", [M, np.array(0.25)], {}),
    ("Less", [M, np.array(0.25)], {}),
    ("And", [M > 0, M < 1], {}),
    ("Or", [M > 1, M < 0], {}),
    ("Not", [M > 0], {}),
    ("Where", [M > 0, M, np.array(-1.0)], {}),
    *((kind, [M], {}) for kind in ("Neg", "Abs", "Exp", "Tanh", "Sigmoid", "Softplus", "Relu", "Sin", "Cos", "Sign")),
    *((kind, [M], {}) for kind in ("Floor", "Ceil", "Identity")),
    *((kind, [P], {}) for kind in ("Sqrt", "Reciprocal", "Log")),
    *(("ReduceSum", [CUBE, axes], {"keepdims": keep}) for axes in (whole(1), whole(0, -1)) for keep in (0, 1)),
    ("ReduceSum", [CUBE], {}),
    *(
        (kind, [CUBE], {"axes": axes, "keepdims": keep})
        for kind in ("ReduceMean", "ReduceProd", "ReduceMax", "ReduceMin", "ReduceL1", "ReduceL2", "ReduceSumSquare")
        for axes, keep in (([1], 1), ([0, 2], 0), ([-1], 0))
    ),
    *((kind, [M], {"keepdims": 0}) for kind in ("ReduceMean", "ReduceProd", "ReduceMax", "ReduceL2")),
]


@pytest.mark.parametrize(("kind", "inputs", "attributes"), CASES, ids=lambda v: v if isinstance(v, str) else "")
def test_constants_are_folded_as_the_reference_does(kind: str, inputs: list[np.ndarray], attributes: dict) -> None:
    names = [f"i{index}" for index in range(len(inputs))]
    values = [
        helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(array.dtype), array.shape)
        for name, array in zip(names, inputs, strict=True)
    ]
    node = helper.make_node(kind, names, ["y"], **attributes)
    graph = helper.make_graph([node], "g", values, [onnx.ValueInfoProto(name="y")])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
    (expected,) = ReferenceEvaluator(model).run(None, dict(zip(names, inputs, strict=True)))
    found = fold(kind, [torch.from_numpy(array.copy()) for array in inputs], attributes, 17)
    assert found is not None
    assert found.shape == np.shape(expected)
    if np.asarray(expected).dtype.kind in "bi":
        assert found.dtype == (torch.bool if np.asarray(expected).dtype == bool else torch.int64)
        np.testing.assert_array_equal(found.numpy(), expected)
    else:
        plain = found.value if hasattr(found, "value") else found
        np.testing.assert_allclose(plain.double().numpy(), expected, rtol=1e-13, atol=1e-15)


@pytest.mark.parametrize(
    ("kind", "inputs", "attributes", "words"),
    [
        ("Div", [WHOLE, whole(1, 0, 1)], {}, "divides by zero"),
        ("Cast", [np.array([2.0**31])], {"to": TensorProto.INT64}, "no integers"),
        ("Cast", [np.array([np.nan])], {"to": TensorProto.INT32}, "no integers"),
        ("Cast", [M], {"to": TensorProto.STRING}, "no cast"),
        ("Squeeze", [M[None], whole(3)], {}, "out of range"),
        ("ReduceSum", [M, whole(-3)], {}, "out of range"),
        ("Reshape", [M, whole(5, 2)], {}, "does not fit"),
        ("Reshape", [M, whole(-1, 5)], {}, "does not fit"),
        ("Reshape", [M, whole(-1, -1)], {}, "no shape"),
        ("Squeeze", [M, whole(0)], {}, "length one"),
        ("Unsqueeze", [M, whole(0, 0)], {}, "cannot be put in"),
        ("Unsqueeze", [M, whole(3)], {}, "cannot be put in"),
        ("Flatten", [M], {"axis": 3}, "out of range"),
        ("Slice", [M, whole(0), whole(1), whole(0), whole(0)], {}, "do not fit together"),
        ("Slice", [M, whole(0, 0), whole(1, 1), whole(0, 0)], {}, "do not fit together"),
        ("Gather", [M, whole(3)], {}, "does not fit"),
        ("Gather", [M, whole(-4)], {}, "does not fit"),
        ("MatMul", [CUBE, M.T], {}, "two matrices"),
        ("ConstantOfShape", [whole(-1)], {}, "negative size"),
        ("ConstantOfShape", [whole(4096, 4096)], {}, "enormous"),
        ("Expand", [M[:1], whole(10**7, 4)], {}, "enormous"),
        ("Tile", [M, whole(10**6, 10**6)], {}, "enormous"),
        ("Range", [np.array(0), np.array(10**9), np.array(1)], {}, "enormous"),
        ("Reshape", [M, np.array([3.0, 4.0])], {}, "integers are needed"),
    ],
)
def test_what_does_not_fit_is_a_fault(kind: str, inputs: list[np.ndarray], attributes: dict, words: str) -> None:
    with pytest.raises(Fault, match=words):
        fold(kind, [torch.from_numpy(array.copy()) for array in inputs], attributes, 17)


def test_other_operators_are_not_folded() -> None:
    assert fold("Einsum", [torch.ones(2, 2)], {}, 17) is None


def test_shapes_of_layers_values_are_those_of_onnx() -> None:
    assert reshaped((2, 3, 4), (0, -1)) == (2, 12)
    assert reshaped((2, 3, 4), (4, 6)) == (4, 6)
    assert reshaped((0, 3), (3, 0), allow_zero=True) == (3, 0)
    for target in ((5, 5), (2, 3), (7, -1)):
        with pytest.raises(ValueError, match="does not fit"):
            reshaped((2, 3, 4), target)
