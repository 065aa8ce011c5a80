"""Whether a Graph and the ONNX file that it was read from agree."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lipbridge.graph.graph import Graph

runtime: Any = pytest.importorskip("onnxruntime", reason="needs lipbridge[onnx]")


def require_equal(path: Path, graph: Graph, output: str | None = None) -> None:
    """The Graph in float64 against the file in ONNX Runtime, to float32's accuracy."""
    options = runtime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 4
    session = runtime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    (entry,) = session.get_inputs()
    shape = [n if isinstance(n, int) else 1 for n in entry.shape]
    dtype = np.float64 if "double" in entry.type else np.float32
    for _ in range(5):
        x = (2.0 * torch.randn(shape)).numpy().astype(dtype)
        (expected,) = session.run([output or session.get_outputs()[0].name], {entry.name: x})
        found = graph(torch.from_numpy(x).double().reshape(1, *graph.input_shape)).flatten().numpy()
        scale = max(float(np.abs(expected).max()), 1e-6)
        assert found.shape == (expected.size,)
        assert np.abs(found - expected.flatten()).max() <= 2e-5 * scale
