"""Softmax and LogSoftmax in ONNX files: torch's exporters, and the other meaning of the axis before opset 13."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import lipbridge
from lipbridge.errors import UnsupportedOperation
from lipbridge.graph.nodes import Softmax
from lipbridge_adapters.onnx.reading import read_onnx
from tests.support.onnx_files import op, save, torch_file

runtime = pytest.importorskip("onnxruntime", reason="ONNX Runtime is not installed")
KINDS = ("Softmax", "LogSoftmax")


@pytest.mark.parametrize("dynamo", [True, False], ids=["dynamo", "traced"])
@pytest.mark.parametrize("last", [nn.Softmax(1), nn.LogSoftmax(1), nn.Softmax(-1)], ids=repr)
@pytest.mark.parametrize("shape", [(4,), (4, 3)])
def test_torch_exporters(last: nn.Module, shape: tuple[int, ...], dynamo: bool, tmp_path: Path) -> None:
    module = nn.Sequential(nn.Linear(shape[-1], 5), last)
    graph = read_onnx(torch_file(module, shape, tmp_path / "m.onnx", 18, dynamo=dynamo, free=True))
    assert sum(isinstance(node, Softmax) for node in graph) == 1
    for norm in (1, 2, "inf"):
        expected = lipbridge.trivial_bound(module, norm, input_shape=shape)
        found = lipbridge.trivial_bound(graph, norm)
        assert found.value == pytest.approx(expected.value, rel=1e-6)
        assert "bound the logits" in found.detail


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("opset", [9, 11, 13, 17])
@pytest.mark.parametrize("axis", [None, -1, 1, 2, -2, 3])
def test_axis(kind: str, opset: int, axis: int | None, tmp_path: Path) -> None:
    if opset < 11 and axis is not None and axis < 0:
        pytest.skip("no negative axes before opset 11")
    attributes = {} if axis is None else {"axis": axis}
    path = save(tmp_path / "m.onnx", [op(kind, "X", "Y", **attributes)], {}, (1, 2, 3, 4), opset)
    graph = read_onnx(path)
    x = torch.randn(1, 2, 3, 4)
    session = runtime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    expected = np.asarray(session.run(None, {"X": x.numpy()})[0])
    found = graph(x.double()).float().reshape(x.shape)
    torch.testing.assert_close(found, torch.from_numpy(expected), rtol=1e-5, atol=1e-6)
    (node,) = (node for node in graph if isinstance(node, Softmax))
    place = (axis if axis is not None else (1 if opset < 13 else -1)) % 4
    length = (2, 3, 4)[place - 1] if opset >= 13 else int(np.prod((2, 3, 4)[place - 1 :]))
    assert node.shape[node.axis] == length


@pytest.mark.parametrize("opset", [11, 13])
def test_along_the_batch_is_refused(opset: int, tmp_path: Path) -> None:
    path = save(tmp_path / "m.onnx", [op("Softmax", "X", "Y", axis=0)], {}, (1, 3), opset)
    with pytest.raises(UnsupportedOperation, match="batch"):
        read_onnx(path)
