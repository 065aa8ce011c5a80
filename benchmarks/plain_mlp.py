"""Plain MNIST MLPs that benchmarks ask about, and their dense layers alone, as other tools read them."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

import lipbridge
from lipbridge.training.runs import train_run

SETTINGS = {"penalty": 0.0, "epochs": 5, "batch_size": 256, "learning_rate": 1e-3, "shift": 0, "seed": 0}
CHANGES = {"activation": "relu", "bias": True, "start": "uniform", "gain": 1.0}


def network(
    folder: Path,
    name: str,
    widths: Sequence[int],
    *,
    norm: str = "2",
    penalty: float = 0.0,
    activation: str = "relu",
) -> nn.Module:
    """A network of these widths with bias in float64, trained for five epochs if the folder has none yet."""
    out = folder / name
    if not (out / "model.safetensors").exists():
        row = train_run(
            "mnist",
            norm,
            out,
            {**CHANGES, "activation": activation, "widths": tuple(widths)},
            SETTINGS | {"penalty": penalty},
        )
        print(f"{name}: trained, accuracy {row['accuracy']:.2%}", file=sys.stderr)
    return lipbridge.load(out / "model.safetensors").double().requires_grad_(False)


def dense_alone(module: nn.Module, graph: lipbridge.Graph, x: Tensor) -> nn.Sequential:
    """Its dense layers and relus for flat inputs, without what only reshapes; checked at some inputs of the Graph."""
    layers = [m for m in module.modules() if not list(m.children())]
    kept = [m for m in layers if not isinstance(m, nn.Flatten | nn.Unflatten | nn.Identity)]
    dense = nn.Sequential(*(m if isinstance(m, nn.Linear) else nn.ReLU() for m in kept))
    assert torch.allclose(dense(x.flatten(1)), graph(x))
    return dense
