"""Normalisation by root mean squares through torch's exporters: the same node, and the same bound."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import lipbridge
from lipbridge.errors import UnsupportedOperation
from lipbridge.graph.nodes import Normalize
from lipbridge_adapters.onnx.reading import read_onnx
from tests.support.captured import Lambda, Llama
from tests.support.onnx_files import op, save, torch_file


def pixels(x: Tensor) -> Tensor:
    return x / torch.sqrt(torch.mean(x * x, dim=1, keepdim=True) + 1e-3)


def reciprocal(x: Tensor) -> Tensor:
    return (1.0 / (x.pow(2).mean(1, True) + 0.1).sqrt()) * x


MODULES: dict[str, tuple[nn.Module, tuple[int, ...]]] = {
    "torch's": (nn.Sequential(nn.Linear(4, 5), nn.RMSNorm(5, eps=1e-3)), (4,)),
    "without epsilon": (nn.Sequential(nn.Linear(4, 5), nn.RMSNorm(5)), (4,)),
    "two axes": (nn.RMSNorm((3, 4), eps=1e-3, elementwise_affine=False), (2, 3, 4)),
    "Llama's": (Llama(5), (3, 5)),
    "pixels": (Lambda(pixels), (3, 2, 2)),
    "reciprocal": (Lambda(reciprocal), (4,)),
}


def test_the_root_mean_square_of_a_sine(tmp_path: Path) -> None:
    """Its square is a layer as well, so the mean of that is one, with a number added to it."""
    nodes = [
        op("Sin", "X", "s"),
        op("Mul", "s s", "q"),
        op("ReduceMean", "q", "m", axes=[1], keepdims=1),
        op("Add", "m e", "v"),
        op("Sqrt", "v", "r"),
    ]
    constants = {"e": np.float32(0.5)}
    x = torch.linspace(-3.0, 4.0, 20, dtype=torch.float64).reshape(-1, 4)
    mean = x.sin().square().mean(1, keepdim=True) + 0.5
    made = read_onnx(save(tmp_path / "m.onnx", [*nodes, op("Div", "s r", "Y")], constants, (1, 4)))
    assert any(isinstance(node, Normalize) for node in made)
    torch.testing.assert_close(made(x), x.sin() / mean.sqrt())
    layer = read_onnx(save(tmp_path / "m.onnx", [*nodes[:4], op("Relu", "v", "Y")], constants, (1, 4)))
    torch.testing.assert_close(layer(x), mean)
    for wrong in (op("Div", "X r", "Y"), op("Relu", "r", "Y")):
        with pytest.raises(UnsupportedOperation):
            read_onnx(save(tmp_path / "m.onnx", [*nodes, wrong], constants, (1, 4)))


@pytest.mark.parametrize("dynamo", [True, False], ids=["dynamo", "traced"])
@pytest.mark.parametrize("name", MODULES)
def test_root_mean_squares(name: str, dynamo: bool, tmp_path: Path) -> None:
    module, shape = MODULES[name]
    if not dynamo and any(isinstance(layer, nn.RMSNorm) for layer in module.modules()):
        pytest.skip("torch's older exporter has no rms_norm")
    graph = read_onnx(torch_file(module, shape, tmp_path / "m.onnx", 18, dynamo=dynamo, free=True))
    assert [node.centred for node in graph if isinstance(node, Normalize)] == [False]
    x = torch.randn(5, *shape)
    torch.testing.assert_close(graph(x.double()).float(), module(x), rtol=1e-5, atol=1e-5)
    for norm in (1, 2, "inf"):
        expected = lipbridge.trivial_bound(module, norm, input_shape=shape).value
        assert lipbridge.trivial_bound(graph, norm).value == pytest.approx(expected, rel=1e-6)
