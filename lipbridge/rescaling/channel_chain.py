"""A Graph as a chain of dense and convolutional layers, with a factor for each channel between two."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from lipbridge.activations.activation import Activation
from lipbridge.constants.node_constants import propagate
from lipbridge.errors import UnsupportedProblem
from lipbridge.graph.geometry import geometry
from lipbridge.graph.graph import Graph
from lipbridge.graph.nodes import Conv, Dense, Elementwise, Gather, GroupSort, MaxPool, Node, Reshape, block_axis
from lipbridge.norms.conv_geometry import Convolution
from lipbridge.rounding.outward import product, total
from lipbridge.rounding.scalars import mul_up


@dataclass(frozen=True, eq=False)
class Joint:
    """What stands between two linear layers.

    Attributes:
        units: the number of factors.
        activations: the polyactivations, in order; none between two linear layers.
        constant: a proved Lipschitz constant in l_2, pooling included.
        free: whether the factors may be other than one.
        plain: whether there are activations and nothing else: no pooling, sorting, or change of places.
    """

    units: int
    activations: tuple[Activation, ...]
    constant: float
    free: bool = True
    plain: bool = False


@dataclass(frozen=True, eq=False)
class Layer:
    """A linear layer of a chain.

    Attributes:
        node: its node.
        shape: of its input.
        reads: the unit of the joint before that each input channel (of a dense layer: coordinate) belongs to.
        writes: the unit of the joint after that each output channel belongs to.
        scale: of BatchNorm and the like right behind the node, by output channel: the layer is both.
        scale_error: how far that may be from the network's own, which is no further from zero.
    """

    node: Dense | Conv
    shape: tuple[int, ...]
    reads: Tensor
    writes: Tensor
    scale: Tensor | None = None
    scale_error: Tensor | None = None

    @cached_property
    def geometry(self) -> Convolution | None:
        """Of a convolution that is not diagonal."""
        return geometry(self.node, self.shape) if isinstance(self.node, Conv) and not self.node.diagonal else None

    def weight(self) -> Tensor:
        """The layer's weight in float64, its scale included; an entry that is scaled is off by a rounding."""
        W = self.node.weight.detach().to(torch.float64)
        return W if self.scale is None else W * self._by_channel(self.scale)

    @cached_property
    def error(self) -> Tensor | None:
        """How far the entries of ``node.weight``, scaled, may be from the network's own; None if they are exact."""
        W, own = self.node.weight.detach().to(torch.float64).abs(), self.node.error
        if self.scale is None:
            return own
        scale, lost = self._by_channel(self.scale).abs(), self.scale_error
        lost = None if lost is None else self._by_channel(lost)
        pairs = ((own, scale), (W, lost), (own, lost))
        return total(None if a is None or b is None else product(a, b) for a, b in pairs)

    def _by_channel(self, values: Tensor) -> Tensor:
        return values.to(self.node.weight.device, torch.float64).reshape(-1, *[1] * (self.node.weight.ndim - 1))


@dataclass(frozen=True, eq=False)
class ChannelChain:
    """n layers and the n - 1 joints between them."""

    layers: tuple[Layer, ...]
    joints: tuple[Joint, ...]


#: Whether a linear node scales with its input, unit by unit, so that it belongs to a joint: none by default.
Through = Callable[[Node], bool]


def channel_chain(graph: Graph, through: Through = lambda node: False) -> ChannelChain:
    """Read a Graph as a chain of dense and convolutional layers with a factor for each channel between two.

    Args:
        graph: nodes in a line: Dense, Conv, Elementwise, MaxPool, GroupSort, Reshape and Gather.
        through: which depthwise convolutions (average pooling) are part of a joint: they act on each channel alone, and
            their factors are tied to those before them.

    Raises:
        UnsupportedProblem: naming the first node that does not fit.
    """
    reader = _Reader(graph)
    for index, node in enumerate(graph.nodes[1:], start=1):
        if node.inputs != (index - 1,):
            raise UnsupportedProblem(
                f"Layer `{node.name}` ({type(node).__name__}) does not read the node before it alone: one multiplier a "
                "channel takes networks without branches."
            )
        reader.read(node, graph.nodes[index - 1], through)
    if not reader.layers:
        raise UnsupportedProblem("The network has no dense or convolutional layer.")
    return reader.finish()


class _Reader:
    """One pass along the nodes. ``unit`` names, for each coordinate of the node before, its unit."""

    def __init__(self, graph: Graph) -> None:
        self.unit: Tensor = torch.zeros(graph.input_shape, dtype=torch.int64)  # the input is one unit, of factor one
        self.layers: list[Layer] = []
        self.joints: list[Joint] = []
        self.activations: list[Activation] = []
        self.constant = 1.0
        self.plain = True  # whether there were only activations since the last layer

    def read(self, node: Node, before: Node, through: Through) -> None:
        conv = node if isinstance(node, Conv) and not through(node) else None
        norms = conv is not None and (conv.error is None or conv.outward)
        if conv is not None and norms and conv.diagonal and self.layers and before is self.layers[-1].node:
            scale, lost = conv.weight.detach().to(torch.float64).flatten(), conv.error
            lost = None if lost is None else lost.flatten()
            # a second one is a layer of its own
            self.layers[-1] = replace(self.layers[-1], scale=scale, scale_error=lost)
        elif conv is not None:
            self.tie(_by_channel(self.unit))
            self.layer(conv, before.shape, _by_channel(self.unit)[:, 0])
        elif isinstance(node, Dense) and len(node.shape) == 1:
            self.layer(node, before.shape, self.unit)
        elif isinstance(node, Elementwise):
            self.activations.append(node.activation)
            self.constant = mul_up(self.constant, node.activation.lipschitz[2])
            self.unit = torch.cat([self.unit] * node.activation.width, dim=block_axis(node))
        else:
            self.plain = False
            self.move(node, before.shape)

    def move(self, node: Node, shape: tuple[int, ...]) -> None:
        """A node that changes the places of coordinates, or mixes them."""
        if isinstance(node, Reshape):
            unit = self.unit if node.axes is None else self.unit.permute(node.axes)
            self.unit = unit.reshape(node.shape)
        elif isinstance(node, Gather):
            self.constant = mul_up(self.constant, propagate(node, [{2: 1.0}], [shape])[2])
            self.unit = _copied(self.unit.flatten(), node.index.cpu().reshape(node.shape))
        elif isinstance(node, GroupSort):
            groups = self.unit.reshape(self.unit.shape[0] // node.group, node.group, -1).transpose(1, 2)
            self.tie(groups.reshape(-1, node.group))
        elif isinstance(node, MaxPool | Conv):
            self.tie(_by_channel(self.unit))
            self.constant = mul_up(self.constant, propagate(node, [{2: 1.0}], [shape])[2])
            self.unit = _spread(self.unit, node.shape)
        else:
            raise UnsupportedProblem(
                f"Layer `{node.name}` ({type(node).__name__}) does not fit a chain of dense and convolutional layers."
            )

    def tie(self, rows: Tensor) -> None:
        """The units of each row become one."""
        if not self.layers:
            return
        count = int(self.unit.max()) + 1
        from scipy import sparse
        from scipy.sparse import csgraph

        # In int32: with scipy 1.11 wider indices fail inside csgraph, which then returns what is no answer.
        pairs = tuple(t.flatten().numpy().astype(np.int32) for t in (rows[:, :1].expand_as(rows), rows))
        edges = sparse.coo_array((np.ones(rows.numel(), dtype=np.int8), pairs), (count, count))
        names = torch.as_tensor(csgraph.connected_components(edges, directed=False)[1], dtype=torch.int64)
        self.unit = names[self.unit]
        last = self.layers[-1]
        self.layers[-1] = replace(last, writes=names[last.writes])

    def layer(self, node: Dense | Conv, shape: tuple[int, ...], reads: Tensor) -> None:
        if self.layers:
            units = int(self.layers[-1].writes.max()) + 1
            self.joints.append(Joint(units, tuple(self.activations), self.constant, plain=self.plain))
        elif self.constant != 1.0 or self.activations:
            raise UnsupportedProblem("The network begins with an activation or a pooling, not with a layer of weights.")
        self.activations, self.constant, self.plain = [], 1.0, True
        outputs = torch.arange(node.weight.shape[0])
        self.layers.append(Layer(node, shape, reads, outputs))
        self.unit = _spread(outputs, node.shape)

    def finish(self) -> ChannelChain:
        if self.constant != 1.0 or self.activations:
            raise UnsupportedProblem("The network ends with an activation or a pooling, not with a layer of weights.")
        return ChannelChain(tuple(self.layers), tuple(self.joints))


def _copied(unit: Tensor, index: Tensor) -> Tensor:
    """The units of copies. A zero may have any: it takes one that its channel has, if there is one."""
    own = index.reshape(len(index), -1).amax(1).clamp_min(0).reshape(-1, *[1] * (index.ndim - 1))
    return unit[torch.where(index >= 0, index, own)]


def _by_channel(unit: Tensor) -> Tensor:
    return unit.reshape(unit.shape[0], -1)


def _spread(unit: Tensor, shape: tuple[int, ...]) -> Tensor:
    """The units of channels (or of an image whose channels have one each) on all positions of ``shape``."""
    channels = unit.reshape(shape[0], -1)[:, 0]
    return channels.reshape(-1, *[1] * (len(shape) - 1)).expand(shape)
