"""Maps that scale and shift each coordinate or channel by a constant of its own: a diagonal ``Conv``.

A factor that is not a stored number but computed from stored ones (a quotient, gamma / sqrt(variance + epsilon) of a
normalisation layer, 1 / 9 of an average) is rounded *away from zero*, by more than the error that its computation may
have made, and the node says by how much (see :mod:`lipbridge.frontend.computed.program`). The layer of the module is
then the Graph's layer times factors of at most one, entry by entry, so its norm is no larger; where layers are added
up, or values enclosed, the error counts.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from lipbridge.frontend.builder import FIXED, LINE, Curve, GraphBuilder, Recipe
from lipbridge.frontend.computed.program import tracking
from lipbridge.frontend.copies import broadcast
from lipbridge.graph.nodes import Conv, Reshape


def diagonal(
    builder: GraphBuilder,
    value: Any,
    scale: Tensor | None,
    shift: Tensor | None,
    shape: tuple[int, ...],
    parameter: str | None = FIXED,
    recipe: Recipe | None = None,
) -> Curve:
    """``scale * value + shift`` for constants that broadcast to ``shape``; ``recipe`` computes ``scale`` anew.

    Constants that differ along channels alone act on ``(channels, *space)``; others on the flattened value.
    """
    source = builder.materialise(broadcast(builder, value, shape))
    if not shape:  # one number for each input
        one = Curve(_reshaped(builder, source, (1,)), (LINE,))
        flat = [None if t is None else t.reshape(-1) for t in (scale, shift)]
        made = diagonal(builder, one, flat[0], flat[1], (1,), parameter, recipe)
        return Curve(_reshaped(builder, made.source, ()), (LINE,))
    factors = [None if t is None else _aligned(builder, t, shape) for t in (scale, shift)]
    channelwise = all(t is None or t.numel() == t.shape[0] for t in factors)
    size = (shape[0], *(1 for _ in shape[1:])) if channelwise else (math.prod(shape),)
    s, b = (None if t is None else (t.expand(size) if channelwise else t.expand(shape)).flatten() for t in factors)
    if not channelwise:
        source = _reshaped(builder, source, size)
    rank = len(shape) - 1 if channelwise else 0
    if s is None:
        assert b is not None
        s = torch.ones_like(b)
    full = size if channelwise else shape
    kernel = (-1, 1, *(1,) * rank)

    def weight_of(*constants: Tensor) -> Tensor:
        assert recipe is not None
        return _one_axis_each(recipe.compute(*constants), shape).expand(full).reshape(kernel)

    node = Conv(
        builder.layer,
        (source,),
        shape if channelwise else size,
        s.contiguous().reshape(kernel),
        None if b is None else b.contiguous(),
        (1,) * rank,
        ((0, 0),) * rank,
        (1,) * rank,
        len(s),
        parameter=parameter,
    )
    made = builder.append(node, None if recipe is None else Recipe(recipe.sources, weight_of)).source
    return Curve(_reshaped(builder, made, shape), (LINE,))


def _reshaped(builder: GraphBuilder, source: int, shape: tuple[int, ...]) -> int:
    if builder.nodes[source].shape == shape:
        return source
    return builder.append(Reshape(builder.layer, (source,), shape)).source


def _aligned(builder: GraphBuilder, constant: Tensor, shape: tuple[int, ...]) -> Tensor:
    """The constant in float64 with one axis for each of ``shape``, the batch's axis of length one gone."""
    made = _one_axis_each(constant.detach().to(torch.float64), shape)
    if made.ndim > len(shape):
        raise builder.unsupported("A constant that differs between the inputs of a batch is no layer.")
    return made


def _one_axis_each(constant: Tensor, shape: tuple[int, ...]) -> Tensor:
    if constant.ndim == len(shape) + 1 and constant.shape[0] == 1:
        constant = constant[0]
    return constant.reshape(*(1,) * (len(shape) - constant.ndim), *constant.shape)


def reciprocal(builder: GraphBuilder, divisors: Tensor) -> Tensor:
    """``1 / divisors``, with its error where it is not exact.

    Raises:
        UnsupportedOperation: if a divisor is zero.
    """
    divisors = divisors.detach().to(torch.float64)
    if divisors.is_meta:
        return 1.0 / divisors
    if bool((divisors == 0).any()):
        raise builder.unsupported("It divides by zero.")
    with tracking():
        return 1.0 / divisors


def shares(counts: Tensor) -> Tensor:
    """``1 / counts`` in float64, with its error where it is not exact."""
    with tracking():
        return 1.0 / counts.to(torch.float64)


def scale_of_statistics(variance: Tensor, weight: Tensor | None, epsilon: float) -> Tensor:
    """gamma / sqrt(variance + epsilon) in float64, with its error where it is not exact."""
    with tracking():
        deviation = (variance.detach().to(torch.float64) + epsilon).sqrt()
        return (torch.ones_like(deviation) if weight is None else weight.detach().to(torch.float64)) / deviation
