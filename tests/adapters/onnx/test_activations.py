"""Activations in ONNX files: every form that torch's two exporters write, and the operators by themselves."""

from __future__ import annotations

import contextlib
import io
import logging
import math
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import lipbridge
from lipbridge.errors import UnsupportedOperation
from lipbridge.graph.nodes import Elementwise
from lipbridge_adapters.onnx.reading import read_onnx
from tests.support.onnx_files import op, save

onnx: Any = pytest.importorskip("onnx", reason="needs lipbridge[onnx]")
ort: Any = pytest.importorskip("onnxruntime", reason="needs lipbridge[onnx]")


class Of(nn.Module):
    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


def slopes(*values: float) -> nn.PReLU:
    module = nn.PReLU(len(values))
    with torch.no_grad():
        module.weight.copy_(torch.tensor(values))
    return module


RATE = math.sqrt(2.0 / math.pi)
MODULES: dict[str, nn.Module] = {
    "selu": nn.SELU(),
    "celu": nn.CELU(2.0),
    "elu": nn.ELU(1.5),
    "hardsigmoid": nn.Hardsigmoid(),
    "hardswish": nn.Hardswish(),
    "mish": nn.Mish(),
    "softsign": nn.Softsign(),
    "log_sigmoid": nn.LogSigmoid(),
    "gelu": nn.GELU(),
    "gelu_tanh": nn.GELU(approximate="tanh"),
    "prelu": nn.PReLU(),
    "prelu of channels": slopes(0.1, -0.5, 0.25, 2.0),
    "tanhshrink": nn.Tanhshrink(),
    "hardtanh": nn.Hardtanh(-2.0, 2.0),
    "relu6": nn.ReLU6(),
    "atan": Of(torch.atan),
    "erf": Of(torch.erf),
    "silu": nn.SiLU(),
    "quick gelu": Of(lambda x: x * torch.sigmoid(1.702 * x)),
    "gelu written out": Of(lambda x: 0.5 * x * (1.0 + torch.erf(x / math.sqrt(2.0)))),
    "gelu_tanh written out": Of(lambda x: 0.5 * x * (1.0 + torch.tanh(RATE * (x + 0.044715 * torch.pow(x, 3.0))))),
    "hardswish written out": Of(lambda x: x * F.relu6(x + 3.0) / 6.0),
    "mish written out": Of(lambda x: x * torch.tanh(F.softplus(x))),
    "where": Of(lambda x: torch.where(x > 0.5, x, 0.25 * x + 0.375)),
}
ONE_EXPORTER: dict[str, tuple[nn.Module, bool]] = {
    "softshrink": (nn.Softshrink(), False),  # the other one writes a product with the sign
    "threshold": (nn.Threshold(0.5, 0.5), True),
    "rrelu": (nn.RReLU(), False),
}


def exported(module: nn.Module, path: Path, dynamo: bool, opset: int, shape: tuple[int, ...]) -> Path:
    logging.disable(logging.CRITICAL)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            torch.onnx.export(module.eval(), (torch.randn(1, *shape),), str(path), dynamo=dynamo, opset_version=opset)
    finally:
        logging.disable(logging.NOTSET)
    return path


def require_same(module: nn.Module, path: Path, shape: tuple[int, ...]) -> None:
    """The file's Graph is the module's function and has its bound, to float32's rounding of constants."""
    graph, captured = read_onnx(path), lipbridge.capture(module, shape)
    x = 4.0 * torch.randn(40, *shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        torch.testing.assert_close(graph(x), captured(x), rtol=1e-6, atol=1e-6)
    (output,) = ort.InferenceSession(str(path)).run(
        None, {onnx.load(str(path)).graph.input[0].name: x[:1].float().numpy()}
    )
    torch.testing.assert_close(torch.from_numpy(output).double(), graph(x[:1]), rtol=1e-4, atol=1e-5)
    for norm in (1, 2, "inf"):
        found, right = (lipbridge.trivial_bound(g, norm).value for g in (graph, captured))
        assert found == pytest.approx(right, rel=1e-6)


@pytest.mark.parametrize(("dynamo", "opset"), [(True, 18), (False, 13), (False, 20)])
def test_a_chain_of_all(dynamo: bool, opset: int, tmp_path: Path) -> None:
    torch.manual_seed(0)
    layers = [layer for module in MODULES.values() for layer in (nn.Linear(4, 4), module)]
    chain = nn.Sequential(*layers)
    path = exported(chain, tmp_path / "m.onnx", dynamo, opset, (4,))
    require_same(chain, path, (4,))
    ours, theirs = (
        [max(n.activation.lipschitz.values()) for n in g if isinstance(n, Elementwise)]
        for g in (lipbridge.capture(chain), read_onnx(path))
    )
    assert theirs == pytest.approx(ours, rel=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("shape", [(4,), (4, 3)])
@pytest.mark.parametrize(("dynamo", "opset"), [(True, 18), (True, 20), (False, 13), (False, 20)])
@pytest.mark.parametrize("name", MODULES)
def test_torch_exporters(name: str, dynamo: bool, opset: int, shape: tuple[int, ...], tmp_path: Path) -> None:
    if len(shape) > 1 and opset != 18 and "prelu" not in name:
        return
    path = exported(MODULES[name], tmp_path / "m.onnx", dynamo, opset, shape)
    require_same(MODULES[name], path, shape)


@pytest.mark.slow
@pytest.mark.parametrize("name", ONE_EXPORTER)
def test_forms_of_one_exporter(name: str, tmp_path: Path) -> None:
    module, dynamo = ONE_EXPORTER[name]
    require_same(module, exported(module, tmp_path / "m.onnx", dynamo, 18, (4,)), (4,))


def read(tmp_path: Path, kind: str, **attributes: float) -> Elementwise:
    nodes = [op(kind, "X", "Y", **attributes)]
    (node,) = (n for n in read_onnx(save(tmp_path / "m.onnx", nodes, {}, (1, 4))) if isinstance(n, Elementwise))
    return node


@pytest.mark.parametrize(
    ("kind", "attributes", "function"),
    [
        ("Celu", {}, F.celu),
        ("Celu", {"alpha": 0.25}, lambda x: F.celu(x, 0.25)),
        ("Selu", {"alpha": 1.5, "gamma": 2.0}, lambda x: 2.0 * F.elu(x, 1.5)),
        ("HardSigmoid", {}, lambda x: (0.2 * x + 0.5).clamp(0.0, 1.0)),
        ("Softsign", {}, F.softsign),
        ("Atan", {}, torch.atan),
        ("Erf", {}, torch.erf),
        ("ThresholdedRelu", {"alpha": 0.0}, torch.relu),
        ("Shrink", {"bias": 0.75, "lambd": 0.75}, lambda x: F.softshrink(x, 0.75)),
    ],
)
def test_operators(
    kind: str, attributes: dict[str, float], function: Callable[[Tensor], Tensor], tmp_path: Path
) -> None:
    x = torch.linspace(-9.0, 9.0, 400, dtype=torch.float64).reshape(-1, 4)
    torch.testing.assert_close(read(tmp_path, kind, **attributes).activation(x), function(x), rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize(
    ("kind", "attributes"),
    [("ThresholdedRelu", {}), ("Shrink", {}), ("Shrink", {"bias": -0.5, "lambd": -0.5}), ("Celu", {"alpha": 0.0})],
)
def test_operators_without_a_constant(kind: str, attributes: dict[str, float], tmp_path: Path) -> None:
    with pytest.raises(UnsupportedOperation):
        read(tmp_path, kind, **attributes)


@pytest.mark.parametrize(
    "nodes",
    [
        [op("Greater", "X c", "g"), op("Where", "g X d", "Y")],
        [op("Less", "X c", "g"), op("Where", "g X d", "Y")],
        [op("Greater", "X c", "Y")],
        [op("Mul", "X X", "s"), op("Add", "s X", "Y")],
        [op("Mul", "X X", "s"), op("Mul", "s X", "t"), op("Tanh", "t", "Y")],
        [op("Sigmoid", "X", "s"), op("Add", "X c", "t"), op("Mul", "s t", "Y")],
        [op("Abs", "X", "a"), op("Sub", "c a", "b"), op("Div", "X b", "Y")],
    ],
    ids=range(7),
)
def test_what_jumps_or_grows_is_refused(nodes: list[Any], tmp_path: Path) -> None:
    import numpy as np

    constants = {"c": np.array(1.0, dtype=np.float32), "d": np.array(0.5, dtype=np.float32)}
    with pytest.raises(UnsupportedOperation):
        read_onnx(save(tmp_path / "m.onnx", nodes, constants, (1, 4)))
