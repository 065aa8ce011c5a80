"""Normalisation: BatchNorm in eval mode is affine; LayerNorm, GroupNorm and InstanceNorm are ``Normalize``.

The scale of BatchNorm is rounded away from zero, see :mod:`lipbridge.frontend.diagonal`.
"""

from __future__ import annotations

import math
from typing import Any

from torch import Tensor

from lipbridge.frontend.builder import FIXED, Curve, GraphBuilder
from lipbridge.frontend.computed.program import tracking
from lipbridge.frontend.diagonal import diagonal, scale_of_statistics
from lipbridge.graph.nodes import Normalize

#: The `parameter` of the scale of a normalisation layer: computed from statistics, it counts with the layer before it.
SCALE = ".scale"


def batch_norm(
    builder: GraphBuilder,
    value: Any,
    mean: Tensor,
    variance: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    epsilon: float,
    shape: tuple[int, ...],
) -> Curve:
    """``(x - mean) / sqrt(variance + epsilon) * weight + bias`` with statistics that are constant."""
    scale = scale_of_statistics(variance, weight, epsilon)
    with tracking():
        shift = -mean.detach().double() * scale
        if bias is not None:
            shift = shift + bias.detach().double()
    ones = (1,) * (len(shape) - 1)

    def scale_of(variance: Tensor, weight: Tensor | None = None) -> Tensor:
        deviation = (variance + epsilon).sqrt()
        return (1.0 / deviation if weight is None else weight / deviation).reshape(-1, *ones)

    recipe = builder.recipe(scale_of, variance, *(() if weight is None else (weight,)))
    parameter = FIXED if recipe is None else SCALE
    return diagonal(builder, value, scale.reshape(-1, *ones), shift.reshape(-1, *ones), shape, parameter, recipe)


def layer_norm(
    builder: GraphBuilder,
    value: Any,
    axes: int,
    weight: Tensor | None,
    bias: Tensor | None,
    epsilon: float,
    shape: tuple[int, ...],
) -> Curve:
    """Normalised over the last ``axes`` axes."""
    groups = math.prod(shape[: len(shape) - axes])
    return normalised(builder, value, groups, weight, bias, epsilon, shape, trailing=0)


def group_norm(
    builder: GraphBuilder,
    value: Any,
    groups: int,
    weight: Tensor | None,
    bias: Tensor | None,
    epsilon: float,
    shape: tuple[int, ...],
) -> Curve:
    """Normalised over groups of channels with their space; weight and bias have an entry for each channel."""
    return normalised(builder, value, groups, weight, bias, epsilon, shape, trailing=len(shape) - 1)


def normalised(
    builder: GraphBuilder,
    value: Any,
    groups: int,
    weight: Tensor | None,
    bias: Tensor | None,
    epsilon: float,
    shape: tuple[int, ...],
    *,
    trailing: int,
) -> Curve:
    """The node, then scale and shift; these have ``trailing`` axes less than the value at its end."""
    if not epsilon > 0.0:
        raise builder.unsupported("Without an epsilon it has no Lipschitz constant.")
    source = builder.materialise(value)
    made = builder.append(Normalize(builder.layer, (source,), shape, groups, epsilon))
    if weight is None and bias is None:
        return made
    ones = (1,) * trailing
    scale, shift = (None if t is None else t.reshape(*t.shape, *ones) for t in (weight, bias))
    if weight is None:
        return diagonal(builder, made, None, shift, shape)

    def scale_of(weight: Tensor) -> Tensor:
        return weight.reshape(*weight.shape, *ones)

    recipe = builder.recipe(scale_of, weight)
    return diagonal(builder, made, scale, shift, shape, builder.factor_origin(weight), recipe)
