"""What we train by default: network, initial weights and settings for a dataset and a norm, found by measurement.

Users change any part of it. The figures that each recipe reaches stand in the documentation, with their seeds.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from lipbridge.data import Dataset
from lipbridge.errors import InvalidArgument, UnknownName
from lipbridge.frontend.capture import capture, tensor_of
from lipbridge.graph.geometry import geometry
from lipbridge.graph.nodes import Conv
from lipbridge.layers.architectures import CONVOLUTIONAL, DENSE, Padding, build, build_by_factory, is_factory
from lipbridge.norms.convolution import conv_operator_norm
from lipbridge.training.config import TrainingConfig
from lipbridge.vocabulary import Norm

#: ``orthogonal``: rows (or columns) of each weight orthonormal, a kernel's as a matrix and scaled so that the
#: convolution has l_2 norm one on its input; ``uniform``: torch's own default for dense and convolutional layers;
#: ``ill-conditioned``: as ``orthogonal``, with singular values that fall geometrically from 1 to 1/1000.
Start = Literal["orthogonal", "uniform", "ill-conditioned"]
#: The condition number of each weight of an ill-conditioned start.
CONDITION = 1e3


@dataclass(frozen=True)
class Recipe:
    """A network and how to train it.

    Attributes:
        widths: hidden widths; of a convolutional network see :class:`lipbridge.layers.architectures.ConvNet`.
        activation: a registered activation.
        bias: whether layers have a bias.
        start: how weights are drawn.
        gain: factor of the drawn weights.
        config: how to train.
        arch: ``dense``, ``conv-small``, ``conv-large`` or ``FILE.py:FACTORY``, whose function decides all of the
            network and its initial weights (:func:`lipbridge.layers.architectures.build_by_factory`).
        padding: of convolutions, ``circular`` or ``zeros``.
    """

    widths: tuple[int, ...]
    activation: str = "abs"
    bias: bool = False
    start: Start = "orthogonal"
    gain: float = 1.0
    config: TrainingConfig = field(default_factory=TrainingConfig)
    arch: str = DENSE
    padding: Padding = "circular"

    def build(self, dataset: Dataset) -> nn.Module:
        """A new network for ``dataset``, drawn from the recipe's seed.

        Raises:
            InvalidArgument: for a network that does not fit the data, or a user's factory that fails.
        """
        if is_factory(self.arch):
            return build_by_factory(self.arch, dataset, self.config.seed)
        module = build(self.arch, dataset, self.widths, self.activation, bias=self.bias, padding=self.padding)
        return initialised(module, self.start, self.gain, self.config.seed, (dataset.features,))


def recipe(dataset: Dataset, norm: Norm, arch: str = DENSE) -> Recipe:
    """Our recipe for a dataset, a norm and an architecture.

    Dense networks have one for large images and one for each embedded dataset, convolutional ones one for all images.
    A user's own architecture trains with the settings of ``conv-small``.

    Raises:
        UnknownName: for an architecture that is not known.
    """
    if is_factory(arch) or arch in CONVOLUTIONAL:
        return _convolutional(norm, arch)
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


def _convolutional(norm: Norm, arch: str) -> Recipe:
    widths = CONVOLUTIONAL[arch].widths if arch in CONVOLUTIONAL else ()
    if norm == 2:
        config = TrainingConfig(
            penalty=0.033, every=4, squarings=6, stride=1, epochs=50, batch_size=256, learning_rate=2e-3, shift=1
        )
        return Recipe(widths, config=config, arch=arch, padding="zeros")
    # Longer runs and wider networks get stuck at bounds in the thousands while the learning rate is at its peak.
    if arch == "conv-small":
        widths = (32, 64, 128)
    config = TrainingConfig(
        norm=norm, penalty=0.03 if norm == 1 else 0.0003, every=8, stride=1, epochs=20, batch_size=256,
        learning_rate=3e-3, shift=1,
    )  # fmt: skip
    return Recipe(widths, gain=0.3, config=config, arch=arch, padding="zeros")


@torch.no_grad()
def initialised(
    module: nn.Sequential, start: Start, gain: float = 1.0, seed: int = 0, input_shape: Sequence[int] | None = None
) -> nn.Sequential:
    """Draw the weights of dense and convolutional layers anew; biases become zero. Returns the module.

    Args:
        module: on the CPU.
        gain: factor of the drawn weights.
        seed: of what is drawn.
        input_shape: as for :func:`lipbridge.capture`; convolutions need it for any start but ``uniform``.

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
        if isinstance(layer, nn.Linear | nn.Conv1d | nn.Conv2d):
            layer.weight.copy_(gain * _drawn(layer.weight.shape, start, generator))
        for name, parameter in layer.named_parameters(recurse=False):
            if name == "bias":
                parameter.zero_()
    if start != "uniform" and any(isinstance(layer, nn.Conv1d | nn.Conv2d) for layer in module.modules()):
        _normalise_convolutions(module, gain, input_shape)
    return module


def _drawn(shape: Sequence[int], start: Start, generator: torch.Generator) -> Tensor:
    weight = torch.empty(*shape)
    if start == "uniform":
        return nn.init.kaiming_uniform_(weight, a=5**0.5, generator=generator)
    if start == "orthogonal":
        return nn.init.orthogonal_(weight, generator=generator)
    rows, columns = shape[0], weight[0].numel()
    rank = min(rows, columns)
    U = nn.init.orthogonal_(torch.empty(rows, rank), generator=generator)
    V = nn.init.orthogonal_(torch.empty(rank, columns), generator=generator)
    sigma = torch.logspace(0, -1, rank, base=CONDITION)
    return ((U * sigma) @ V).reshape(weight.shape)


def _normalise_convolutions(module: nn.Module, gain: float, input_shape: Sequence[int] | None) -> None:
    """Scale every convolution to the l_2 norm ``gain`` on the input that it has in the network."""
    graph = capture(module, input_shape)
    for node in graph.nodes:
        if isinstance(node, Conv) and node.parameter and node.parameter.rpartition(".")[2] == "weight":
            weight = tensor_of(module)(node.parameter)
            norm = conv_operator_norm(node.weight, geometry(node, graph.nodes[node.inputs[0]].shape))
            if norm > 0:
                weight.mul_(gain / norm)
