"""Layers of a run as blocks: one matrix for each frequency of the torus on which a convolution lives."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from typing import cast

import torch
from torch import Tensor

from lipbridge.errors import NumericalFailure
from lipbridge.graph.nodes import Conv
from lipbridge.norms.conv_geometry import Axis
from lipbridge.rescaling.channels import ChannelChain, Layer, normalised
from lipbridge.rigor.roots import unit_roots
from lipbridge.rounding.outward import scaled_up
from lipbridge.rounding.scalars import UNIT, add_up, gamma, mul_up

#: A layer with a scale takes part if its largest entry is above the second, beside which an underflow (2^-1074) is less
#: than a rounding of the first times that entry.
SMALLEST_SIZE, SMALLEST_SCALED = 2.0**-600, 2.0**-400


@dataclass(frozen=True, eq=False)
class Block:
    """A layer at all frequencies.

    Attributes:
        weight: ``(F, m, n)``, complex128 for a convolution, float64 for a dense layer: rows are (position, channel) of
            the outputs' aliasing frequencies, columns (component, position, unit) of the inputs'.
        magnitude: ``(m, n)`` float64: each real and imaginary part of ``weight`` is off by at most ``error`` times it.
        error: 0 for a dense layer.
        exponent: the layer is ``2**exponent`` times this one.
        reads: the unit of each column, without components; of the first layer the unit of the joint before.
        writes: the unit of each row.
    """

    weight: Tensor
    magnitude: Tensor
    error: float
    exponent: int
    reads: Tensor
    writes: Tensor


def axes_of(layer: Layer) -> tuple[Axis, ...]:
    assert layer.geometry is not None
    return layer.geometry.geometry(tuple(layer.node.weight.shape[2:]))


def width(chain: ChannelChain, index: int, first: int) -> int:
    """By how many components a layer inside the run reads each unit; the first layer's columns are what they are."""
    return 1 if index == first else chain.joints[index - 1].activations[0].width


def dense_block(layer: Layer, width: int) -> Block:
    scaled, exponent = _scaled(layer)
    return Block(
        scaled[None],
        _sizes(scaled, layer, exponent),
        _own_error(layer),
        exponent,
        layer.reads[: len(layer.reads) // width],
        layer.writes,
    )


def _own_error(layer: Layer) -> float:
    """The rounding of a layer's scale and the error of its weight, relative to :func:`_sizes`."""
    return (0.0 if layer.scale is None else 2.0 * UNIT) + (0.0 if layer.error is None else 4.0 * UNIT)


def _sizes(weight: Tensor, layer: Layer, exponent: int) -> Tensor:
    """The entries' sizes; at least so much that an underflow is within a rounding of it, and the own error within four.

    Args:
        weight: over ``2**exponent``.
    """
    sizes, error = weight.abs(), layer.error
    if error is not None:
        sizes = torch.maximum(sizes, scaled_up(error.cpu(), torch.full(error.shape, 51 - exponent)))
    return sizes if layer.scale is None else sizes.clamp_min(SMALLEST_SIZE)


def _scaled(layer: Layer) -> tuple[Tensor, int]:
    """The weight over a power of two near its largest entry, and that power's exponent."""
    weight = layer.weight().cpu()
    if not bool(torch.isfinite(weight).all()):
        raise NumericalFailure(f"The weights of layer `{layer.node.name}` hold NaN or infinite entries.")
    return normalised(weight)


def conv_blocks(layers: Sequence[Layer], widths: Sequence[int], grids: Sequence[tuple[int, ...]]) -> list[Block]:
    coarse = grids[-1]
    # A real kernel has conjugate blocks at opposite frequencies: half of them will do.
    sides = [*coarse[:-1], coarse[-1] // 2 + 1]
    frequencies = torch.tensor(list(product(*(range(side) for side in sides))))
    return [
        _conv_block(layer, width, grids[index], grids[index + 1], coarse, frequencies)
        for index, (layer, width) in enumerate(zip(layers, widths, strict=True))
    ]


def _aliases(grid: tuple[int, ...], coarse: tuple[int, ...]) -> Tensor:
    """``(positions, axes)``: what is added to a coarse frequency for each fine one that aliases to it."""
    steps = [[c * k for k in range(n // c)] for n, c in zip(grid, coarse, strict=True)]
    return torch.tensor(list(product(*steps)))


def _conv_block(
    layer: Layer,
    width: int,
    grid: tuple[int, ...],
    after: tuple[int, ...],
    coarse: tuple[int, ...],
    frequencies: Tensor,
) -> Block:
    """In the unitary Fourier bases of both grids: output frequency g is the sum over the inputs h = g modulo ``after``
    of the kernel's transform at h, over the square root of the stride."""
    axes, node = axes_of(layer), cast(Conv, layer.node)
    weight, exponent = _scaled(layer)
    magnitude = _whole(_sizes(weight, layer, exponent), node.groups)
    weight = _whole(weight, node.groups)
    out, inputs, taps = weight.shape[0], weight.shape[1], math.prod(weight.shape[2:])
    columns, rows = _aliases(grid, coarse), _aliases(after, coarse)
    fine = frequencies[:, None, :] + columns[None]  # (F, P, axes)
    cosines, sines = torch.ones((), dtype=torch.float64), torch.zeros((), dtype=torch.float64)
    offsets = torch.tensor(list(product(*([t * a.dilation - a.padding[0] for t in range(a.kernel)] for a in axes))))
    for place, count in enumerate(grid):
        turns = fine[..., place, None] * offsets[:, place] % count  # (F, P, taps)
        c, s = (table[turns] for table in unit_roots(count))
        cosines, sines = cosines * c - sines * s, cosines * s + sines * c
    kernel = weight.flatten(2).permute(2, 0, 1).flatten(1)  # (taps, out * in)
    root = math.sqrt(math.prod(axis.stride for axis in axes))
    shape = (len(frequencies), len(columns), out, inputs)
    transform = torch.complex(cosines @ kernel / root, sines @ kernel / root).reshape(shape)
    differences = (columns[None, :] - rows[:, None]) % torch.tensor(after)
    joined = (differences == 0).all(-1)
    whole = torch.where(joined[None, :, :, None, None], transform[:, None], torch.zeros((), dtype=transform.dtype))
    sizes = (magnitude.flatten(2).sum(2) / root).expand(len(columns), out, inputs)
    magnitude = torch.where(joined[:, :, None, None], sizes[None], 0.0)
    # A twiddle is off by 5 UNIT an axis, its products with the taps by a dot product's rounding, the root by an ulp.
    error = add_up(gamma(taps + 4), mul_up(5.0 * len(axes), UNIT), 8.0 * UNIT, _own_error(layer))
    return Block(
        _ordered(whole, width).contiguous(),
        _ordered(magnitude[None], width)[0] * (1.0 + 2.0 * gamma(taps + 4)),
        error,
        exponent,
        layer.reads[: inputs // width].repeat(len(columns)),
        layer.writes.repeat(len(rows)),
    )


def _whole(weight: Tensor, groups: int) -> Tensor:
    """The kernel of a grouped convolution as one of all channels."""
    if groups == 1:
        return weight
    out, per_group = weight.shape[:2]
    whole = weight.new_zeros(out, per_group * groups, *weight.shape[2:])
    for group in range(groups):
        rows = slice(group * out // groups, (group + 1) * out // groups)
        whole[rows, group * per_group : (group + 1) * per_group] = weight[rows]
    return whole


def _ordered(whole: Tensor, width: int) -> Tensor:
    """``(F, rows, columns, out, in)`` as matrices: rows (position, channel), columns (component, position, unit)."""
    F, rows, columns, out, inputs = whole.shape
    parts = whole.reshape(F, rows, columns, out, width, inputs // width)
    return parts.permute(0, 1, 3, 4, 2, 5).reshape(F, rows * out, width * columns * (inputs // width))
