"""Public architectures through ONNX files, by both of torch's exporters and by ours: the same bound within 1e-6."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest
from torch import nn
from torch.fx.experimental.optimization import fuse

import lipbridge
from tests.support.architectures import ARCHITECTURES, BOUNDED, Architecture, build

pytest.importorskip("onnx", reason="needs lipbridge[onnx]")
pytest.importorskip("onnxruntime", reason="needs lipbridge[onnx]")

from lipbridge_adapters.onnx.export import export_onnx
from lipbridge_adapters.onnx.reading import read_onnx
from tests.support.onnx_files import torch_file

TOLERANCE = 1e-6

#: What torch itself cannot write: name -> the operation, and whether its newer exporter can.
UNWRITTEN: dict[str, tuple[str, bool]] = {
    "SN-GAN discriminator": ("vdot", True),
    "Invertible downsampling": ("vdot", True),
    "i-ResNet": ("vdot", True),
    "TSMixer": ("mT", True),
    "RMSNorm MLP": ("rms_norm", True),
    "deel-torchlip: two moons": ("matrix_norm", False),
    "deel-torchlip: MNIST": ("matrix_norm", False),
    "deel-torchlip: full sort": ("matrix_norm", False),
    "Convex potential layers": ("matrix_norm", False),
    "MaxMin network": ("householder_product", False),
    "Cayley layers": ("linalg_solve", False),
    "Sandwich layers": ("linalg_inv", False),
}

#: Torch writes BatchNorm into the convolution before it; a layer after it then has it no more, so the file's bound is
#: that of the network with BatchNorm folded in by torch.
FOLDED = ("MobileNetV2", "MobileNetV3 without SE", "EfficientNet without SE", "ShuffleNet", "ShuffleNetV2")

#: Our file writes what is added between two layers into the second one's bias, which brings layers together that are
#: one in the bound: it is the same network, with a smaller bound.
SMALLER = ("PINN with tanh", "Sandwich layers")

#: What the newer exporter, which takes a second or two, and we write in every run; the rest is marked slow.
ALWAYS = (
    *("SIREN", "PINN with tanh", "NeRF", "IGR with softplus", "DeepONet at fixed sensors", "DCGAN generator"),
    *("VAE, mean path", "U-Net", "DeepLab, ASPP", "Feature pyramid", "ESPCN", "CycleGAN generator", "ICNN"),
    *("Monotone network", "Min-max monotone network", "LipMLP", "ResNet-18", "ResNet-50", "ReZero", "NICE"),
    *("MLP-Mixer", "BiT", "ResNet-D", "NLinear", "TSMixer", "DeepSets", "DeepSets, equivariant", "MobileNetV2"),
    *("GCN on a fixed graph", "Neural additive model", "Dueling DQN", "Deep equilibrium, unrolled", "LeNet-5"),
    *(
        "ShuffleNet",
        "Maxout network",
        "TLL verification benchmark",
        "carvana U-Net",
        "ConvNeXt",
        "RevNet",
        "WGAN-GP critic",
    ),
)
MOST = [name if name in ALWAYS else pytest.param(name, marks=pytest.mark.slow) for name in BOUNDED]


def module_of(name: str) -> tuple[Architecture, nn.Module]:
    entry = ARCHITECTURES[name]
    return entry, build(entry).float().eval()


def bound_of(module: nn.Module, entry: Architecture) -> float:
    return lipbridge.trivial_bound(lipbridge.capture(module, entry.shape)).value


def require_same_bound(name: str, folder: Path, *, dynamo: bool) -> None:
    """What torch writes is read with the module's bound, or torch cannot write it."""
    entry, module = module_of(name)
    operation, newer = UNWRITTEN.get(name, ("", True))
    path, opset = folder / "network.onnx", 18 if dynamo else 17
    if operation and not (newer and dynamo):
        with pytest.raises(Exception, match=operation):
            torch_file(module, entry.shape, path, opset, dynamo=dynamo, free=True)
        return
    torch_file(module, entry.shape, path, opset, dynamo=dynamo, free=True)
    expected = bound_of(fuse(module) if name in FOLDED else module, entry)
    found = lipbridge.trivial_bound(read_onnx(path)).value
    assert found == pytest.approx(expected, rel=TOLERANCE)


@pytest.mark.parametrize("name", BOUNDED)
def test_written_by_the_older_exporter(name: str, tmp_path: Path, capfd: Any) -> None:
    require_same_bound(name, tmp_path, dynamo=False)


@pytest.mark.skipif(importlib.util.find_spec("onnxscript") is None, reason="needs onnxscript")
@pytest.mark.parametrize("name", MOST)
def test_written_by_the_newer_exporter(name: str, tmp_path: Path, capfd: Any) -> None:
    require_same_bound(name, tmp_path, dynamo=True)


@pytest.mark.parametrize("name", MOST)
def test_written_by_us(name: str, tmp_path: Path) -> None:
    entry, module = module_of(name)
    graph = lipbridge.capture(module.double(), entry.shape)
    expected = lipbridge.trivial_bound(graph).value
    export_onnx(graph, tmp_path / "network.onnx", dialect="native")
    found = lipbridge.trivial_bound(read_onnx(tmp_path / "network.onnx")).value
    if name in SMALLER:
        assert 0.8 * expected < found < expected
    else:
        assert found == pytest.approx(expected, rel=TOLERANCE)


def test_forty_go_through_both_of_torchs_exporters_in_every_run() -> None:
    assert set(ALWAYS) <= set(BOUNDED)
    assert len([name for name in ALWAYS if name not in UNWRITTEN]) >= 39
    assert len([name for name in BOUNDED if name not in UNWRITTEN]) >= 120
