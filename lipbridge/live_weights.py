"""Where the weights of a Graph's layers stand in the module, so that a penalty reads them anew in every call."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

from lipbridge.capture_diagonal import scale_of_statistics
from lipbridge.capture_reader import FIXED
from lipbridge.errors import UnsupportedOperation
from lipbridge.graph import Add, Concat, Conv, Dense, Graph, Input, Node
from lipbridge.layer_constants import propagate
from lipbridge.vocabulary import Norm

_SCALE = ".scale"


@dataclass(frozen=True)
class Place:
    """A tensor of the module, or the scale that a normalisation layer has in eval mode."""

    owner: nn.Module
    name: str
    shape: tuple[int, ...]
    transposed: bool = False

    @property
    def tensor(self) -> Tensor:
        """The module's tensor itself."""
        return cast(Tensor, getattr(self.owner, "weight" if self.name == "scale" else self.name))

    @property
    def direct(self) -> bool:
        """Whether it is a parameter that is trained."""
        return self.name != "scale" and isinstance(self.tensor, nn.Parameter) and self.tensor.requires_grad

    def read(self) -> Tensor:
        """The weight as the layer uses it, with gradients."""
        if self.name == "scale":
            layer = cast(Any, self.owner)
            deviation = cast(Tensor, layer.running_var + layer.eps).sqrt()
            return (1.0 / deviation if layer.weight is None else layer.weight / deviation).reshape(self.shape)
        tensor = self.tensor.T if self.transposed else self.tensor
        if tuple(tensor.shape) == self.shape:
            return tensor
        size = 1
        for length in self.shape:
            size *= length
        return tensor.reshape(-1).repeat(size // tensor.numel()).reshape(self.shape)

    def stored(self) -> Tensor:
        """The weight in float64 as :func:`lipbridge.capture` stores it."""
        if self.name == "scale":
            layer = cast(Any, self.owner)
            return scale_of_statistics(layer.running_var, layer.weight, float(layer.eps)).reshape(self.shape)
        return self.read().detach().to(torch.float64)


@dataclass(frozen=True)
class LiveLayer:
    """A layer of the module: its weight, and the scale of a normalisation that follows it and nothing else reads.

    ``node`` is the convolution, None for a dense layer. ``places`` gives the parts by the index of their node.
    """

    node: Conv | None
    weight: Place
    scale: Place | None
    places: Mapping[int, Place]

    @property
    def tensor(self) -> Tensor:
        """The parameter, if ``direct``."""
        return self.weight.tensor

    @property
    def transposed(self) -> bool:
        """Whether the layer's matrix is the parameter's transpose."""
        return self.weight.transposed

    @property
    def direct(self) -> bool:
        """Whether the layer's weight is a parameter as it stands."""
        return self.scale is None and self.weight.direct

    def read(self) -> Tensor:
        """The weight, scaled, with gradients to all parameters."""
        weight = self.weight.read()
        if self.scale is None:
            return weight
        return weight * self.scale.read().reshape(-1, *(1,) * (weight.ndim - 1))

    def stored(self) -> Mapping[int, Tensor]:
        """The float64 weights of the Graph's nodes, by index."""
        return {index: place.stored() for index, place in self.places.items()}


def live_layers(module: nn.Module, graph: Graph) -> dict[int, LiveLayer]:
    """The layers with weights that training changes, by the index of their node; see :class:`LiveLayer`.

    Raises:
        UnsupportedOperation: for a weight that is no tensor of the module.
    """
    readers: dict[int, list[int]] = {}
    for index, node in enumerate(graph.nodes):
        for source in node.inputs:
            readers.setdefault(source, []).append(index)
    found: dict[int, LiveLayer] = {}
    merged: set[int] = set()
    for index, node in enumerate(graph.nodes):
        if not isinstance(node, Dense | Conv) or node.parameter == FIXED or index in merged:
            continue
        places = {index: _place(module, node)}
        scale = None
        after = readers.get(index, [])
        follower = graph.nodes[after[0]] if len(after) == 1 else None
        if _mergeable(node) and isinstance(follower, Conv) and follower.diagonal and _is_scale(follower):
            scale = places[after[0]] = _place(module, follower)
            merged.add(after[0])
        found[index] = LiveLayer(node if isinstance(node, Conv) else None, places[index], scale, places)
    return found


def _mergeable(node: Dense | Conv) -> bool:
    return len(node.shape) == 1 if isinstance(node, Dense) else not node.diagonal


def _is_scale(node: Conv) -> bool:
    return node.parameter is not None and node.parameter.endswith(_SCALE)


def _place(module: nn.Module, node: Dense | Conv) -> Place:
    if node.parameter is None:
        kind = "dense" if isinstance(node, Dense) else "convolution"
        raise UnsupportedOperation(node.name, kind, "Its weight is computed on the way; penalise the parameters.")
    path, _, name = node.parameter.rpartition(".")
    transposed = isinstance(node, Dense) and node.transposed
    return Place(module.get_submodule(path), name, tuple(node.weight.shape), transposed)


def fixed_factors(graph: Graph, norm: Norm, live: set[int]) -> dict[int, float]:
    """The constants of all nodes with one input and no live weight of their own, by index."""
    found: dict[int, float] = {}
    for index, node in enumerate(graph.nodes):
        if isinstance(node, Input | Add | Concat) or index in live:
            continue
        found[index] = _factor(graph, node, norm)
    return found


def _factor(graph: Graph, node: Node, norm: Norm) -> float:
    if isinstance(node, Dense | Conv) and (node.parameter != FIXED or node.weight.is_meta):
        return 1.0  # a scale that counts with the layer before it; on the meta device there is no number to read
    return propagate(node, [{norm: 1.0}], [graph.nodes[i].shape for i in node.inputs])[norm]
