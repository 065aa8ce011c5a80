"""The registry of public architectures, and their random weights."""

from __future__ import annotations

import zlib
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn


@dataclass(frozen=True)
class Architecture:
    """A small version of a published network.

    Attributes:
        name: as in the paper.
        paper: authors, year, and what it is called.
        shape: of one input, without batch.
        make: gives the module.
        refused: words of the reason why it has no global bound; empty if it has one.
        computed: whether forward computes weights from others, which float32 rounds.
    """

    name: str
    paper: str
    shape: tuple[int, ...]
    make: Callable[[], nn.Module]
    refused: str = ""
    computed: bool = False


ARCHITECTURES: dict[str, Architecture] = {}


def architecture(
    name: str, paper: str, shape: tuple[int, ...], *, refused: str = "", computed: bool = False
) -> Callable[[Callable[[], nn.Module]], Callable[[], nn.Module]]:
    """Register a function that makes a network."""

    def add(make: Callable[[], nn.Module]) -> Callable[[], nn.Module]:
        assert name not in ARCHITECTURES
        ARCHITECTURES[name] = Architecture(name, paper, shape, make, refused, computed)
        return make

    return add


def build(entry: Architecture) -> nn.Module:
    """The network in eval mode, with the same random numbers each time."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(zlib.crc32(entry.name.encode()))
        module = entry.make()
        _as_trained(module)
    return module.eval()


def _as_trained(module: nn.Module) -> None:
    """Statistics, scales and shifts that are not those of the first step."""
    for layer in module.modules():
        if isinstance(layer, nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d):
            layer.running_mean.normal_(0.0, 0.3)
            layer.running_var.uniform_(0.3, 2.0)
        if (
            isinstance(layer, nn.modules.batchnorm._BatchNorm | nn.LayerNorm | nn.GroupNorm)
            and layer.weight is not None
        ):
            nn.init.uniform_(layer.weight, 0.5, 1.5)
            nn.init.normal_(layer.bias, 0.0, 0.2)
