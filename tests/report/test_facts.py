"""What reports tell of a network: counted from its Graph, and equal to what the module itself says."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import lipbridge
from lipbridge.graph.graph import Graph
from lipbridge.graph.nodes import Dense, Input, Node
from lipbridge.report.facts import architecture, parameter_count
from lipbridge.report.networks import Network


def of(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Conv2d(3, 3, 3, padding=1), nn.Linear(48, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(torch.relu(x + self.first(x)).flatten(1))


class Twice(nn.Module):
    """One layer that is used twice."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(6, 6)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(torch.relu(self.layer(x)))


class Tied(nn.Module):
    """A decoder with the encoder's weight, transposed, and a bias of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.shift = nn.Linear(6, 4), nn.Parameter(torch.zeros(6))

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.linear(torch.relu(self.encoder(x)), self.encoder.weight.T, self.shift)


MODULES = {
    "dense": (lipbridge.mlp([64, 32, 10], "abs"), (64,), "64–32–10, abs"),
    "without a bias": (lipbridge.mlp([64, 32, 10], "abs", bias=False), (64,), "64–32–10, abs, no bias"),
    "convolutional": (
        nn.Sequential(nn.Conv2d(1, 8, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(72, 10)),
        (1, 8, 8),
        "1×8×8–8×6×6–10, relu, MaxPool",
    ),
    "batchnorm and an average": (
        nn.Sequential(nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.AvgPool2d(6), nn.Flatten(), nn.Linear(8, 3)),
        (1, 8, 8),
        "1×8×8–8×6×6–3, relu, AvgPool",
    ),
    "sorted in groups": (
        nn.Sequential(nn.Linear(8, 16), lipbridge.GroupSort(4), nn.Linear(16, 3)),
        (8,),
        "8–16–3, GroupSort",
    ),
    "sorted in pairs": (
        nn.Sequential(nn.Linear(8, 16), lipbridge.MaxMin(), nn.Linear(16, 3)),
        (8,),
        "8–16–3, GroupSort",
    ),
    "rmsnorm": (nn.Sequential(nn.Linear(6, 8), nn.RMSNorm(8), nn.Linear(8, 3)), (6,), "6–8–3, Normalize"),
    "layernorm": (nn.Sequential(nn.Linear(6, 8), nn.LayerNorm(8), nn.Linear(8, 3)), (6,), "6–8–3, Normalize"),
    "groups": (
        nn.Sequential(nn.Conv1d(4, 8, 3, groups=2), nn.Flatten(), nn.Linear(48, 2)),
        (4, 8),
        "4×8–8×6–2, linear",
    ),
    "residual": (Residual(), (3, 4, 4), "3×4×4–3×4×4–5, relu"),
    "used twice": (Twice(), (6,), "6–6–6, relu"),
    "tied": (Tied(), (6,), "6–4–6, relu"),
}


@pytest.mark.parametrize("name", MODULES)
def test_the_count_is_that_of_the_module(name: str) -> None:
    module, shape, words = MODULES[name]
    graph = lipbridge.capture(module, shape)
    assert parameter_count(graph) == of(module)
    assert architecture(graph) == words


@pytest.mark.parametrize("name", ["dense", "convolutional", "batchnorm and an average", "groups", "residual"])
def test_a_file_in_onnx_tells_the_same(name: str, tmp_path: Path) -> None:
    pytest.importorskip("onnx")
    module, shape, words = MODULES[name]
    graph = lipbridge.capture(module.eval(), shape)
    lipbridge.export_onnx(graph, tmp_path / "net.onnx", dialect="native", check=False)
    found = lipbridge.read_onnx(tmp_path / "net.onnx")
    assert architecture(found) == words
    if "batchnorm" not in name:  # of which a file keeps a scale, and a shift if it is not zero
        assert parameter_count(found) == of(module)


def test_the_report_tells_the_same(tmp_path: Path) -> None:
    module, shape, words = MODULES["convolutional"]
    found = Network.read("net", tmp_path, lipbridge.capture(module, shape), None)
    assert (found.parameters, found.architecture) == (of(module), words)


@dataclass(frozen=True, eq=False)
class Bilinear(Node):
    """A node that does not exist yet."""

    left: Tensor
    right: Tensor
    order: int = 2


def test_a_node_of_the_future_counts_by_its_tensors() -> None:
    nodes = (
        Input("input", (), (3,)),
        Bilinear("layer", (0,), (4,), torch.zeros(4, 3), torch.zeros(4)),
        Dense("last", (1,), (2,), torch.zeros(2, 4)),
    )
    assert parameter_count(Graph(nodes)) == 12 + 4 + 8


def test_deep_networks_are_shortened() -> None:
    words = architecture(lipbridge.capture(lipbridge.mlp([4] * 30, "relu")))
    assert words.count("–") == 11
    assert "…" in words
