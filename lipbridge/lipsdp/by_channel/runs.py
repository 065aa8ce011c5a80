"""Runs of layers whose matrix inequality is kept whole: LipSDP by frequency, one multiplier a channel.

Where an activation's outputs see its source (relu: ``y = (z + q) / 2``), the product of the layers' norms is not
LipSDP's best. With one multiplier a channel the inequality of a run of convolutions is block diagonal in the Fourier
basis: the layers of a run live on one torus, coarser by the stride from layer to layer, and all fine frequencies that
alias to one frequency of the last layer's grid form a block. The elimination of
:mod:`lipbridge.lipsdp.elimination` runs on all blocks at once; a run of dense layers is a single block.

*Circular padding* is the torus itself. *Zero padding* needs an argument of its own, for behind a layer the network goes
on only with the window of the image, and on the torus the layer has outputs outside of it. Let the activation of a
position outside be a unit whose slope is zero: its output is then what zero padding reads. If zero lies in the interval
of slopes that the multipliers stand for, such a unit obeys the same constraint as all others, so the torus with these
units is one of the systems that the inequality bounds. Intervals that lack zero (leaky relu) are widened to it.

Runs end at pooling, sorting, flattening, other paddings, and where the inequality falls apart anyway; there the factors
of :mod:`lipbridge.rescaling.channels` stand. Everything here is ours.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import torch

from lipbridge.activations.activation import Activation
from lipbridge.graph.nodes import Conv
from lipbridge.lipsdp.by_channel.frequencies import SMALLEST_SCALED, Block, axes_of, conv_blocks, dense_block, width
from lipbridge.lipsdp.constraints import Increments, increments_of
from lipbridge.norms.conv_geometry import Axis
from lipbridge.rescaling.channel_chain import ChannelChain, Layer
from lipbridge.rounding.scalars import up

#: Entries of all the blocks of a layer: runs are cut where one would have more.
ENTRIES = 2**23
#: Operations of one elimination (cubes of the blocks' sizes, summed): runs that would take more are not formed.
OPERATIONS = 2e10


@dataclass(frozen=True, eq=False)
class Run:
    """Layers ``first`` to ``last`` of a chain, with the joints between them kept whole.

    Attributes:
        blocks: one a layer.
        increments: one a joint between them.
        units: the number of multipliers' units of those joints.
    """

    first: int
    last: int
    blocks: tuple[Block, ...]
    increments: tuple[Increments, ...]
    units: tuple[int, ...]

    @property
    def exponent(self) -> int:
        return sum(block.exponent for block in self.blocks)


def runs_of(chain: ChannelChain) -> list[Run]:
    """The runs of a chain that can be better than the product of norms."""
    found: list[Run] = []
    first = 0
    while first < len(chain.layers) - 1:
        last = first
        while last + 1 < len(chain.layers) and _joins(chain, last) and _fits(chain, first, last + 1):
            last += 1
        if any(rule.variables for rule in _rules(chain, first, last)):
            found.append(_formed(chain, first, last))
        first = last + 1 if last > first else first + 1  # the joint behind a run is cut
    return found


def _kind(layer: Layer) -> str | None:
    """``dense``, ``circular`` (its own torus), ``zeros``, or None for layers that no run takes."""
    if layer.scale is not None and float(layer.weight().abs().max()) < SMALLEST_SCALED:
        return None
    if not isinstance(layer.node, Conv):
        return "dense"
    if layer.geometry is None or layer.geometry.padding_mode in ("reflect", "replicate"):
        return None
    axes = axes_of(layer)
    if layer.geometry.padding_mode == "zeros" or all(axis.padding == (0, 0) for axis in axes):
        return "zeros"
    exact = all(axis.size % axis.stride == 0 and axis.outputs * axis.stride == axis.size for axis in axes)
    return "circular" if exact else None


def _joins(chain: ChannelChain, index: int) -> bool:
    """Whether joint ``index`` can be kept whole."""
    joint, before, after = chain.joints[index], chain.layers[index], chain.layers[index + 1]
    if _kind(before) is None or _kind(before) != _kind(after):
        return False
    if not joint.plain or len(joint.activations) != 1:
        return False
    channels = before.node.weight.shape[0]
    width = joint.activations[0].width
    if joint.units != channels or not torch.equal(before.writes, torch.arange(channels)):
        return False
    if not torch.equal(after.reads, torch.arange(channels).repeat(width)):
        return False
    return not _increments(joint.activations[0], _masked(after)).cuts


def _masked(after: Layer) -> bool:
    """Whether a layer reads zeros around its input, where the torus has outputs of the layer before."""
    if _kind(after) != "zeros":
        return False
    return any(axis.padding[0] > 0 or _highest(axis) >= axis.size for axis in axes_of(after))


def _highest(axis: Axis) -> int:
    """The highest position that is read."""
    return (axis.outputs - 1) * axis.stride - axis.padding[0] + (axis.kernel - 1) * axis.dilation


def _increments(activation: Activation, masked: bool) -> Increments:
    """What is known of an activation whose slope may also be zero, if ``masked``."""
    rule = increments_of(activation)
    if not masked or rule.cuts:
        return rule
    if activation.width == 1:
        low, high = min(activation.slopes[0][0], 0.0), max(activation.slopes[0][1], 0.0)
        middle = 0.5 * (low + high)
        radius = up(max(up(high - middle), up(middle - low)))
        return Increments(torch.tensor([[middle, radius]], dtype=torch.float64), torch.zeros(1, 2).double(), (0,))
    K = activation.width
    E = torch.zeros(K, 1 + K, dtype=torch.float64)
    E[:, 1:].fill_diagonal_(activation.lipschitz[2])
    return Increments(E, torch.zeros_like(E), (0,) * K)


def _grids(layers: Sequence[Layer]) -> list[tuple[int, ...]] | None:
    """Per layer the positions of its input's torus along each axis, and those of the last output; None if none fits."""
    axes = [axes_of(layer) for layer in layers]
    grids: list[list[int]] = [[] for _ in range(len(layers) + 1)]
    for place in range(len(axes[0])):
        own = [each[place] for each in axes]
        steps = [axis.stride for axis in own]
        if _kind(layers[0]) == "circular":
            size = own[0].size
            if size % math.prod(steps):
                return None
        else:
            size, done = 1, 1
            for axis in own:
                needed = max(axis.size + axis.padding[0], _highest(axis) + 1, axis.outputs * axis.stride)
                size, done = max(size, needed * done), done * axis.stride
            size = -(-size // done) * done
        for index, step in enumerate([1, *steps]):
            size //= step
            grids[index].append(size)
    return [tuple(grid) for grid in grids]


def _rules(chain: ChannelChain, first: int, last: int) -> list[Increments]:
    """What is known of the activations between these layers."""
    joints = range(first, last)
    return [_increments(chain.joints[i].activations[0], _masked(chain.layers[i + 1])) for i in joints]


def _fits(chain: ChannelChain, first: int, last: int) -> bool:
    """Whether the blocks of these layers are small enough, and there is one torus for them."""
    layers, rules = chain.layers[first : last + 1], _rules(chain, first, last)
    if _kind(layers[0]) == "dense":
        return sum((2.0 * layer.node.weight.shape[0]) ** 3 for layer in layers[:-1]) <= OPERATIONS
    grids = _grids(layers)
    if grids is None:
        return False
    frequencies, operations = math.prod(grids[-1]), 0.0
    for index, layer in enumerate(layers):
        columns, rows = (math.prod(grids[at]) // frequencies for at in (index, index + 1))
        out, per_group = layer.node.weight.shape[:2]
        if frequencies * rows * out * columns * per_group * cast(Conv, layer.node).groups > ENTRIES:
            return False
        if index < len(rules):
            operations += 4.0 * frequencies * ((rules[index].variables + 1.0) * rows * out) ** 3
    return operations <= OPERATIONS


def _formed(chain: ChannelChain, first: int, last: int) -> Run:
    layers = chain.layers[first : last + 1]
    if _kind(layers[0]) == "dense":
        blocks = [dense_block(layer, width(chain, first + k, first)) for k, layer in enumerate(layers)]
    else:
        grids = _grids(layers)
        assert grids is not None
        blocks = conv_blocks(layers, [width(chain, first + k, first) for k in range(len(layers))], grids)
    units = tuple(joint.units for joint in chain.joints[first:last])
    return Run(first, last, tuple(blocks), tuple(_rules(chain, first, last)), units)


def predicted_memory(runs: Sequence[Run]) -> int:
    """Bytes that the elimination of runs keeps for its gradient, generously, and of the process before it."""
    total = 0
    for run in runs:
        size = 16 if run.blocks[0].weight.is_complex() else 8
        for block, rule in zip(run.blocks[1:], run.increments, strict=True):
            total += 12 * size * len(block.weight) * ((1 + rule.variables) * len(block.reads)) ** 2
        total += 8 * size * sum(block.weight.numel() for block in run.blocks)
    return 400 * 10**6 + total
