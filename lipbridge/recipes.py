"""What we train by default: network, initial weights and settings for a dataset and a norm, found by measurement.

Users change any part of it. The figures that each recipe reaches stand in the documentation, with their seeds.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, get_args

import torch
from torch import nn

from lipbridge.data import Dataset
from lipbridge.errors import InvalidArgument, UnknownName
from lipbridge.layers import mlp
from lipbridge.training import TrainingConfig
from lipbridge.vocabulary import Norm

#: ``orthogonal``: rows (or columns) of each weight orthonormal; ``uniform``: torch's own default for dense layers.
Start = Literal["orthogonal", "uniform"]


@dataclass(frozen=True)
class Recipe:
    """A network and how to train it.

    Attributes:
        widths: hidden widths.
        activation: a registered activation.
        bias: whether dense layers have a bias.
        start: how weights are drawn.
        gain: factor of the drawn weights.
        config: how to train.
    """

    widths: tuple[int, ...]
    activation: str = "abs"
    bias: bool = False
    start: Start = "orthogonal"
    gain: float = 1.0
    config: TrainingConfig = field(default_factory=TrainingConfig)

    def build(self, dataset: Dataset) -> nn.Sequential:
        """A new network for ``dataset``, drawn from the recipe's seed."""
        widths = [dataset.features, *self.widths, dataset.classes]
        return initialised(mlp(widths, self.activation, bias=self.bias), self.start, self.gain, self.config.seed)


def recipe(dataset: Dataset, norm: Norm) -> Recipe:
    """Our recipe for a dataset and a norm: one for large images, one for each embedded dataset."""
    if dataset.features <= 16:
        return _small(norm)
    return _digits(norm) if dataset.features <= 256 else _images(norm)


def _images(norm: Norm) -> Recipe:
    if norm == 2:
        config = TrainingConfig(
            penalty=0.05, every=5, squarings=6, stride=1, epochs=60, batch_size=512, learning_rate=4e-3, shift=1
        )
        return Recipe((256, 256), config=config)
    # Row and column sums of ordinary initial weights are hundreds: start small, and let the loss call for more.
    weight = 0.03 if norm == 1 else 0.001
    config = TrainingConfig(norm=norm, penalty=weight, stride=1, epochs=40, batch_size=512, learning_rate=1e-2)
    return Recipe((256, 256), start="uniform", gain=0.1, config=config)


def _digits(norm: Norm) -> Recipe:
    weight: dict[Norm, float] = {1: 0.05, 2: 0.05, "inf": 0.005}
    config = TrainingConfig(
        norm=norm, penalty=weight[norm], every=2, squarings=6, stride=1, epochs=300, batch_size=128,
        learning_rate=3e-3 if norm == 2 else 1e-2,
    )  # fmt: skip
    start: Start = "orthogonal" if norm == 2 else "uniform"
    return Recipe((64, 64), start=start, gain=1.0 if norm == 2 else 0.3, config=config)


def _small(norm: Norm) -> Recipe:
    config = TrainingConfig(
        norm=norm, penalty=0.02, every=1, squarings=6, stride=1, epochs=300, batch_size=28, learning_rate=5e-3
    )
    return Recipe((32, 32), bias=True, gain=1.0 if norm == 2 else 0.3, config=config)


@torch.no_grad()
def initialised(module: nn.Sequential, start: Start, gain: float = 1.0, seed: int = 0) -> nn.Sequential:
    """Draw the dense weights of ``module`` anew; biases become zero. Returns the module.

    Raises:
        UnknownName: for a way to draw that is not known.
        InvalidArgument: for a gain that is not above zero.
    """
    if start not in get_args(Start):
        raise UnknownName("start", start, get_args(Start))
    if not gain > 0:
        raise InvalidArgument("gain", "be above 0", gain)
    generator = torch.Generator().manual_seed(seed)
    for layer in module.modules():
        if isinstance(layer, nn.Linear):
            weight = torch.empty(layer.weight.shape)
            if start == "orthogonal":
                nn.init.orthogonal_(weight, generator=generator)
            else:
                nn.init.kaiming_uniform_(weight, a=5**0.5, generator=generator)
            layer.weight.copy_(gain * weight)
        for name, parameter in layer.named_parameters(recurse=False):
            if name == "bias":
                parameter.zero_()
    return module
