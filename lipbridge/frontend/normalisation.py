"""Capture of normalisation: BatchNorm in eval mode is affine; LayerNorm, GroupNorm and InstanceNorm are ``Normalize``.

The scale of BatchNorm is rounded away from zero, see :mod:`lipbridge.frontend.diagonal`.
"""

from __future__ import annotations

import math
from typing import Any

from torch import Tensor

from lipbridge.frontend.computed.program import tracking
from lipbridge.frontend.diagonal import diagonal, scale_of_statistics
from lipbridge.frontend.reader import FIXED, Arguments, Curve, Reader, handles
from lipbridge.graph.nodes import Normalize

#: The `parameter` of the scale of a normalisation layer: computed from statistics, it counts with the layer before it.
SCALE = ".scale"


@handles("batch_norm", "_native_batch_norm_legit_no_training", "native_batch_norm", "cudnn_batch_norm")
def _batch_norm(reader: Reader, a: Arguments, shape: tuple[int, ...]) -> Curve:
    mean, variance = a["running_mean"], a["running_var"]
    if a.get("training") or not isinstance(variance, Tensor) or not isinstance(mean, Tensor):
        raise reader.unsupported("BatchNorm without running statistics mixes the inputs of a batch.")
    epsilon = a["eps"] if "eps" in a else a["epsilon"]
    return _affine(reader, a["input"], (mean, variance, a["weight"], a["bias"], float(epsilon)), shape)


def _affine(
    reader: Reader,
    value: Any,
    statistics: tuple[Tensor, Tensor, Tensor | None, Tensor | None, float],
    shape: tuple[int, ...],
) -> Curve:
    mean, variance, weight, bias, epsilon = statistics
    scale = scale_of_statistics(variance, weight, epsilon)
    with tracking():
        shift = -mean.detach().double() * scale
        if bias is not None:
            shift = shift + bias.detach().double()
    ones = (1,) * (len(shape) - 1)

    def scale_of(variance: Tensor, weight: Tensor | None = None) -> Tensor:
        deviation = (variance + epsilon).sqrt()
        return (1.0 / deviation if weight is None else weight / deviation).reshape(-1, *ones)

    recipe = reader.recipe(scale_of, variance, *(() if weight is None else (weight,)))
    parameter = FIXED if recipe is None else SCALE
    return diagonal(reader, value, scale.reshape(-1, *ones), shift.reshape(-1, *ones), shape, parameter, recipe)


@handles("layer_norm", "native_layer_norm")
def _layer_norm(reader: Reader, a: Arguments, shape: tuple[int, ...]) -> Curve:
    axes = len(a["normalized_shape"])
    return _normalised(reader, a, math.prod(shape[: len(shape) - axes]), 0, shape)


@handles("group_norm")
def _group_norm(reader: Reader, a: Arguments, shape: tuple[int, ...]) -> Curve:
    return _normalised(reader, a, int(a["num_groups"]), len(shape) - 1, shape)


@handles("instance_norm")
def _instance_norm(reader: Reader, a: Arguments, shape: tuple[int, ...]) -> Curve:
    if a["use_input_stats"]:
        return _normalised(reader, a, shape[0], len(shape) - 1, shape)
    statistics = (a["running_mean"], a["running_var"], a["weight"], a["bias"], float(a["eps"]))
    return _affine(reader, a["input"], statistics, shape)


def _normalised(reader: Reader, a: Arguments, groups: int, trailing: int, shape: tuple[int, ...]) -> Curve:
    """The node, then scale and shift; these have ``trailing`` axes less than the value at its end."""
    epsilon = float(a["eps"])
    if not epsilon > 0.0:
        raise reader.unsupported("Without an epsilon it has no Lipschitz constant.")
    source = reader.materialise(a["input"])
    made = reader.append(Normalize(reader.layer, (source,), shape, groups, epsilon))
    weight, bias = a.get("weight"), a.get("bias")
    if weight is None and bias is None:
        return made
    ones = (1,) * trailing
    scale, shift = (None if t is None else t.reshape(*t.shape, *ones) for t in (weight, bias))
    if weight is None:
        return diagonal(reader, made, None, shift, shape)

    def scale_of(weight: Tensor) -> Tensor:
        return weight.reshape(*weight.shape, *ones)

    recipe = reader.recipe(scale_of, weight)
    return diagonal(reader, made, scale, shift, shape, reader.factor_origin(weight), recipe)
