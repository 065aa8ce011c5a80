"""Modules for rescale: ordinary chains, and one layer of each changed so that scaling its weight could change more.

Each kind takes a chain's modules by their places and gives a module. Nothing here knows what rescale may take: the
tests ask whether what comes back is the same function.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations as P
from torch.nn.utils import parametrize, prune

import lipbridge

Kind = Callable[[list[nn.Module], int], nn.Module]


class Chain(nn.Module):
    """Layers in turn; ``own`` calls one of them instead of itself."""

    def __init__(self, layers: Sequence[nn.Module], at: int, own: Callable[[Chain, nn.Module, Tensor], Tensor]) -> None:
        super().__init__()
        self.layers, self.at, self.own = nn.ModuleList(layers), at, own

    def forward(self, x: Tensor) -> Tensor:
        for index, layer in enumerate(self.layers):
            x = self.own(self, layer, x) if index == self.at else layer(x)
        return x


def applied(layer: nn.Module, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """A layer with another weight and bias."""
    if isinstance(layer, nn.Conv1d):
        return F.conv1d(x, weight, bias, layer.stride, layer.padding)
    return F.linear(x, weight, bias)


def by_weight(change: Callable[[Tensor], Tensor]) -> Kind:
    def made(layers: list[nn.Module], at: int) -> nn.Module:
        return Chain(layers, at, lambda _, layer, x: applied(layer, x, change(layer.weight), layer.bias))

    return made


def by_call(call: Callable[[nn.Module, Tensor], Tensor]) -> Kind:
    return lambda layers, at: Chain(layers, at, lambda _, layer, x: call(layer, x))


def biases(layer: nn.Module) -> Tensor:
    return torch.randn(len(layer.weight))


def by_layer(change: Callable[[nn.Module], object]) -> Kind:
    def made(layers: list[nn.Module], at: int) -> nn.Module:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            change(layers[at])
        return nn.Sequential(*layers)

    return made


def by_attribute(make: Callable[[nn.Module], Tensor], use: Callable[[nn.Module, Tensor, Tensor], Tensor]) -> Kind:
    """The module holds a parameter of its own, which the layer's call uses."""

    def made(layers: list[nn.Module], at: int) -> nn.Module:
        net = Chain(layers, at, lambda whole, layer, x: use(layer, x, whole.extra))
        net.extra = nn.Parameter(make(layers[at]).detach().clone())
        return net

    return made


class Doubled(nn.Module):
    """Its right_inverse is none."""

    def forward(self, weight: Tensor) -> Tensor:
        return 2.0 * weight

    def right_inverse(self, weight: Tensor) -> Tensor:
        return weight


class Softened(nn.Module):
    """No right_inverse at all."""

    def forward(self, weight: Tensor) -> Tensor:
        return weight.tanh()


class Exact(nn.Module):
    """A right_inverse that takes everything."""

    def forward(self, weight: Tensor) -> Tensor:
        return 0.5 * weight

    def right_inverse(self, weight: Tensor) -> Tensor:
        return 2.0 * weight


class LowRank(nn.Module):
    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.left, self.right = (
            nn.Parameter(torch.randn(len(weight), 1)),
            nn.Parameter(torch.randn(1, weight[0].numel())),
        )

    def forward(self, weight: Tensor) -> Tensor:
        return weight + (self.left @ self.right).reshape(weight.shape)


class Standardised(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        w = self.weight - self.weight.mean(1, keepdim=True)
        return F.linear(x, w / (w.std(1, keepdim=True) + 1e-5), self.bias)


def widths(layer: nn.Module) -> tuple[int, int]:
    return layer.weight.shape[1], layer.weight.shape[0]


def standardised(layers: list[nn.Module], at: int) -> nn.Module:
    layers[at] = Standardised(*widths(layers[at])) if isinstance(layers[at], nn.Linear) else layers[at]
    return nn.Sequential(*layers)


def buffered(layers: list[nn.Module], at: int) -> nn.Module:
    weight = layers[at].weight.detach().clone()
    del layers[at].weight
    layers[at].register_buffer("weight", weight)
    return nn.Sequential(*layers)


def lent(layers: list[nn.Module], at: int) -> nn.Module:
    """A layer that forward does not call shares the parameter."""
    net = Chain(layers, at, lambda _, layer, x: layer(x))
    net.head = nn.Linear(*widths(layers[at]))
    net.head.weight = layers[at].weight
    return net


def in_memory(layers: list[nn.Module], at: int) -> nn.Module:
    """A second parameter, on the same memory, is added to the output."""
    net = Chain(layers, at, lambda whole, layer, x: layer(x) + 0.1 * whole.extra.mean())
    net.extra = nn.Parameter(layers[at].weight.data.flatten()[:2])
    return net


def in_a_list(layers: list[nn.Module], at: int) -> nn.Module:
    weights = [layers[at].weight]
    return Chain(layers, at, lambda _, layer, x: applied(layer, x, weights[0], layer.bias))


def shared(attribute: str) -> Kind:
    """The middle layer shares its weight, or bias, with a fourth layer of the same widths."""

    def made(layers: list[nn.Module], at: int) -> nn.Module:
        n = layers[-1].weight.shape[1]
        first, second = nn.Linear(n, n), nn.Linear(n, n)
        setattr(second, attribute, getattr(first, attribute))
        return nn.Sequential(*layers[:-1], first, nn.ReLU(), second, nn.ReLU(), layers[-1])

    return made


def twice(layers: list[nn.Module], at: int) -> nn.Module:
    n = layers[-1].weight.shape[1]
    again = nn.Linear(n, n)
    return nn.Sequential(*layers[:-1], again, nn.ReLU(), again, nn.ReLU(), layers[-1])


def tied_decoder(layers: list[nn.Module], at: int) -> nn.Module:
    """The last layer is the transpose of the one before."""
    n = layers[-1].weight.shape[1]
    inner = nn.Linear(n, n + 1)
    return nn.Sequential(*layers[:-1], inner, nn.ReLU(), Transposed(inner))


class Transposed(nn.Module):
    def __init__(self, other: nn.Module) -> None:
        super().__init__()
        self.other, self.bias = other, nn.Parameter(torch.randn(other.weight.shape[1]))

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.other.weight.T, self.bias)


def prelu(layers: list[nn.Module], at: int) -> nn.Module:
    slopes = nn.PReLU(len(layers[0].weight))
    nn.init.uniform_(slopes.weight, -1.5, 1.5)
    return nn.Sequential(layers[0], slopes, *layers[2:])


def normalised(layers: list[nn.Module], at: int) -> nn.Module:
    norm = nn.BatchNorm1d(len(layers[at].weight))
    for tensor in (norm.weight, norm.bias, norm.running_mean):
        nn.init.normal_(tensor)
    return nn.Sequential(*layers[: at + 1], norm, *layers[at + 1 :])


def hooked(layer: nn.Module) -> None:
    layer.register_forward_hook(lambda owner, _, y: y + owner.weight.sum())


def before_hooked(layer: nn.Module) -> None:
    layer.register_forward_pre_hook(lambda owner, x: (x[0] * owner.weight.abs().mean(),))


def frozen(layer: nn.Module) -> None:
    layer.requires_grad_(False)


KINDS: dict[str, Kind] = {
    "plain": lambda layers, at: nn.Sequential(*layers),
    "frozen": by_layer(frozen),
    "weight_norm": by_layer(P.weight_norm),
    "weight_norm of columns": by_layer(lambda layer: P.weight_norm(layer, dim=1)),
    "old weight_norm": by_layer(nn.utils.weight_norm),
    "spectral_norm": by_layer(P.spectral_norm),
    "old spectral_norm": by_layer(nn.utils.spectral_norm),
    "orthogonal": by_layer(lambda layer: P.orthogonal(layer) if isinstance(layer, nn.Linear) else layer),
    "pruned": by_layer(lambda layer: prune.l1_unstructured(layer, "weight", 0.3)),
    "pruned for good": by_layer(lambda layer: prune.remove(prune.l1_unstructured(layer, "weight", 0.3), "weight")),
    "doubled": by_layer(lambda layer: parametrize.register_parametrization(layer, "weight", Doubled())),
    "softened": by_layer(lambda layer: parametrize.register_parametrization(layer, "weight", Softened())),
    "halved": by_layer(lambda layer: parametrize.register_parametrization(layer, "weight", Exact())),
    "low rank": by_layer(
        lambda layer: parametrize.register_parametrization(layer, "weight", LowRank(layer.weight), unsafe=True)
    ),
    "bias halved": by_layer(lambda layer: parametrize.register_parametrization(layer, "bias", Exact())),
    "hooked": by_layer(hooked),
    "hooked before": by_layer(before_hooked),
    "standardised": standardised,
    "squared": by_weight(lambda w: w * w),
    "softplus": by_weight(F.softplus),
    "centred": by_weight(lambda w: w - w.mean()),
    "over its norm": by_weight(lambda w: w / w.norm()),
    "shifted": by_weight(lambda w: w + 0.1),
    "doubled in forward": by_weight(lambda w: 2.0 * w),
    "another bias": by_attribute(biases, lambda layer, x, b: applied(layer, x, layer.weight, b)),
    "two biases": by_attribute(biases, lambda layer, x, b: applied(layer, x, layer.weight, layer.bias + b)),
    "another weight": by_attribute(lambda layer: layer.weight, lambda layer, x, w: applied(layer, x, w, layer.bias)),
    "weight in its shift": by_call(lambda layer, x: layer(x) + layer.weight.mean()),
    "bias in its shift": by_call(lambda layer, x: layer(x) + layer.bias.mean()),
    "buffered": buffered,
    "lent": lent,
    "in memory": in_memory,
    "in a list": in_a_list,
    "shared weight": shared("weight"),
    "shared bias": shared("bias"),
    "twice": twice,
    "tied decoder": tied_decoder,
    "prelu": prelu,
    "normalised": normalised,
}


@dataclass(frozen=True)
class Case:
    """A module to rescale, by its kind, the place of the changed layer, and the rest."""

    kind: str
    at: int
    convolutional: bool
    double: bool
    activation: str
    seed: int

    @property
    def input_shape(self) -> tuple[int, ...]:
        return (2, 6) if self.convolutional else (4,)

    def module(self) -> nn.Module:
        torch.manual_seed(self.seed)
        layers: list[nn.Module]
        g = lipbridge.activation_module
        if self.convolutional:
            layers = [nn.Conv1d(2, 4, 3, padding=1), g(self.activation), nn.Conv1d(4, 3, 2), g(self.activation)]
            layers += [nn.Flatten(), nn.Linear(15, 3)]
            places = (0, 2, 5)
        else:
            layers = [nn.Linear(4, 8), g(self.activation), nn.Linear(8, 6), g(self.activation), nn.Linear(6, 3)]
            places = (0, 2, 4)
        with torch.no_grad():  # units of very different sizes, so that scaling changes much
            for place in places[:-1]:
                d = torch.exp2(torch.randn(len(layers[place].weight)))
                layers[place].weight.mul_(d.reshape(-1, *(1,) * (layers[place].weight.ndim - 1)))
                layers[place].bias.normal_()
        net = KINDS[self.kind](layers, places[self.at]).eval()
        return net.double() if self.double else net


def cases() -> Iterator[Case]:
    """All kinds, at all places, dense and convolutional, in turn in float64 and float32, with three activations."""
    activations = ("relu", "leaky_relu", "abs")
    count = 0
    for convolutional in (False, True):
        for at in range(3):
            for kind in KINDS:
                yield Case(kind, at, convolutional, count % 3 != 2, activations[count % len(activations)], count)
                count += 1


def change_of(module: nn.Module, other: nn.Module, shape: tuple[int, ...]) -> float:
    """The largest difference of outputs at random points, over the largest output of the point's scale, in float64."""
    x = torch.randn(60, *shape, generator=torch.Generator().manual_seed(7), dtype=torch.float64)
    x = x * torch.logspace(-2, 2, len(x), dtype=torch.float64).reshape(-1, *(1,) * len(shape))
    dtype = next(module.parameters()).dtype
    with torch.no_grad():
        y, z = module(x.to(dtype)).double(), other(x.to(dtype)).double()
        size = y.abs().flatten(1).amax(1).clamp_min(1.0)
    return float(((y - z).abs().flatten(1).amax(1) / size).max())
