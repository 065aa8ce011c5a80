"""Good files with a changed operator, attribute, input or index: whatever both read must be the same function."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lipbridge.errors import LipbridgeError

onnx: Any = pytest.importorskip("onnx", reason="needs lipbridge[onnx]")
runtime: Any = pytest.importorskip("onnxruntime", reason="needs lipbridge[onnx]")

from lipbridge_adapters.onnx.reading import read_onnx  # noqa: E402
from tests.support.onnx_files import BY_HAND  # noqa: E402

KINDS = [
    "Relu",
    "Abs",
    "Neg",
    "Sin",
    "Cos",
    "Sigmoid",
    "Tanh",
    "Identity",
    "Add",
    "Sub",
    "Mul",
    "Max",
    "Min",
    "MaxPool",
    "AveragePool",
    "Flatten",
    "Transpose",
    "Softplus",
    "Elu",
    "Selu",
    "LeakyRelu",
    "HardSigmoid",
    "Clip",
    "Squeeze",
    "Unsqueeze",
    "GlobalMaxPool",
    "ReduceMax",
    "Erf",
]
OPTIONS = ("ceil_mode", "count_include_pad", "axis", "keepdims", "transA", "transB")
TEXTS = (b"SAME_UPPER", b"SAME_LOWER", b"VALID", b"reflect", b"edge", b"constant")


def change(model: Any, generator: random.Random) -> None:
    """One change that leaves a well-formed file."""
    node, kind = generator.choice(model.graph.node), generator.randrange(6)
    if kind == 0 and node.attribute:
        attribute = generator.choice(node.attribute)
        if attribute.ints:
            i = generator.randrange(len(attribute.ints))
            attribute.ints[i] = generator.choice([0, 1, 2, 3, -1, attribute.ints[i] + 1])
        elif attribute.type == onnx.AttributeProto.INT:
            attribute.i = generator.choice([0, 1, 2, -1])
        elif attribute.type == onnx.AttributeProto.FLOAT:
            attribute.f = generator.choice([0.0, 1.0, -0.5, 2.0])
        elif attribute.type == onnx.AttributeProto.STRING:
            attribute.s = generator.choice(TEXTS)
    elif kind == 1:
        node.op_type = generator.choice(KINDS)
    elif kind == 2 and len(node.input) > 1:
        i, j = generator.randrange(len(node.input)), generator.randrange(len(node.input))
        node.input[i], node.input[j] = node.input[j], node.input[i]
    elif kind == 3:
        tensor = generator.choice(model.graph.initializer)
        values = onnx.numpy_helper.to_array(tensor).copy()
        if values.dtype == np.int64 and values.size:
            values.flat[generator.randrange(values.size)] = generator.choice([0, 1, 2, -1, 3])
            tensor.CopyFrom(onnx.numpy_helper.from_array(values, tensor.name))
    elif kind == 4 and node.input:
        names = ["X", *(name for other in model.graph.node for name in other.output)]
        node.input[generator.randrange(len(node.input))] = generator.choice(names)
    elif kind == 5:
        name = generator.choice(OPTIONS)
        if all(attribute.name != name for attribute in node.attribute):
            node.attribute.append(onnx.helper.make_attribute(name, 1))


def compare(data: bytes, path: Path) -> bool | None:
    """Whether the Graph and ONNX Runtime agree on a random input; None if one of them refuses the file."""
    path.write_bytes(data)
    options = runtime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 4
    try:
        graph = read_onnx(path)
    except LipbridgeError:
        return None
    try:
        session = runtime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
        (entry,) = session.get_inputs()
        x = torch.randn([n if isinstance(n, int) else 1 for n in entry.shape])
        expected = session.run(None, {entry.name: x.numpy()})[0].flatten()
    except Exception:  # ONNX Runtime has a dozen error types of its own
        return None
    found = graph(x.double().reshape(1, *graph.input_shape)).flatten().numpy()
    scale = max(float(np.abs(expected).max()), 1e-6)
    return found.size == expected.size and bool(np.abs(found - expected).max() <= 1e-4 * scale)


def agreement(cases: int, seed: int, folder: Path) -> int:
    """How many changed files both read; each must be one function."""
    names = [name for name in BY_HAND if name not in ("external", "doubles")]
    originals = [onnx.ModelProto.FromString(BY_HAND[name](folder / f"{name}.onnx").read_bytes()) for name in names]
    generator, read = random.Random(seed), 0
    for _ in range(cases):
        model = onnx.ModelProto()
        model.CopyFrom(generator.choice(originals))
        for _ in range(generator.choice([1, 1, 2, 3])):
            change(model, generator)
        same = compare(model.SerializeToString(), folder / "changed.onnx")
        assert same is not False
        read += same is True
    return read


def test_changed_files_are_the_same_function(tmp_path: Path) -> None:
    assert agreement(300, 0, tmp_path) > 60


@pytest.mark.slow
def test_many_changed_files_are_the_same_function(tmp_path: Path) -> None:
    assert agreement(10_000, 1, tmp_path) > 2_000
