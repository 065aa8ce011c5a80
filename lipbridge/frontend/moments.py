"""RMSNorm and its like, written out: x / sqrt(mean(x^2) + epsilon), step by step.

Every step is a value that waits for the next one. None is a layer of its own: what is squared, or divided by, is no
Lipschitz function until the whole stands.
"""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lipbridge.frontend.builder import FIXED, Curve, Deferred, GraphBuilder, itself
from lipbridge.frontend.diagonal import diagonal
from lipbridge.frontend.shapes import seen_as
from lipbridge.graph.nodes import Normalize

SQUARE = "A square has no global Lipschitz constant (but sin(t)**2 has)."
_ROOT = "Its slopes grow without limit, so it has no global Lipschitz constant."


@dataclass(frozen=True)
class Moment(Deferred):
    """A step towards dividing ``x`` by the root of its mean square."""

    x: Curve

    def materialise(self, builder: GraphBuilder) -> Curve:
        """Alone it is no layer."""
        raise builder.unsupported(SQUARE)


class Square(Moment):
    """x^2."""


@dataclass(frozen=True)
class MeanSquare(Moment):
    """mean(x^2) + epsilon over ``axes`` of the shape, which are kept with length one."""

    axes: tuple[int, ...]
    epsilon: float = 0.0


@dataclass(frozen=True)
class Root(MeanSquare):
    """sqrt(mean(x^2) + epsilon), or one over it."""

    inverse: bool = False


def mean_square(builder: GraphBuilder, value: Square, axes: Collection[int]) -> MeanSquare:
    """The mean of a square over axes of the shape, which it keeps.

    Raises:
        UnsupportedOperation: if there are none.
    """
    if not axes:
        raise builder.unsupported(SQUARE)
    return MeanSquare(value.x, tuple(sorted(axes)))


def shifted(builder: GraphBuilder, value: Any, constant: Any) -> MeanSquare | None:
    """A mean square plus a number; None if ``value`` is none."""
    if type(value) is not MeanSquare or isinstance(constant, Curve | Deferred):
        return None
    if builder.is_live(constant) or (isinstance(constant, Tensor) and constant.numel() != 1):
        raise builder.unsupported("An epsilon that may change, or is more than one number, is not read.")
    number = float(constant.detach()) if isinstance(constant, Tensor) else float(constant)
    if value.epsilon:
        raise builder.unsupported("An epsilon that is added twice is not read.")
    return MeanSquare(value.x, value.axes, number)


def root(builder: GraphBuilder, value: Any, exponent: float) -> Root:
    """A power of a mean square that is its root, or one over that.

    Raises:
        UnsupportedOperation: for anything else.
    """
    if type(value) is MeanSquare and exponent in (0.5, -0.5):
        return Root(value.x, value.axes, value.epsilon, exponent < 0)
    if isinstance(value, Root) and exponent == -1.0 and not value.inverse:
        return Root(value.x, value.axes, value.epsilon, True)
    raise builder.unsupported(_ROOT)


def quotient(builder: GraphBuilder, x: Any, divisor: Any, inverse: bool) -> Curve | None:
    """x divided by the root of its mean square, or times one over it; None for anything else."""
    if not isinstance(divisor, Root) or divisor.inverse != inverse or not isinstance(x, Curve | Deferred):
        return None
    if builder.curve(x) != divisor.x:
        raise builder.unsupported("It divides by the root of another value's mean square.")
    return normalised(builder, x, divisor.axes, divisor.epsilon)


def normalised(builder: GraphBuilder, x: Any, axes: tuple[int, ...], epsilon: float) -> Curve:
    """x over the root of its mean square over ``axes`` of the shape, with epsilon."""
    if not epsilon > 0.0:
        raise builder.unsupported("Without an epsilon it has no Lipschitz constant.")
    shape = builder.shape_of(x)
    order = (*(axis for axis in range(len(shape)) if axis not in axes), *axes)
    size = tuple(shape[axis] for axis in order)
    plain = order == tuple(range(len(shape)))
    source = builder.line(x) if plain else seen_as(builder, x, size, order)
    groups = math.prod(size[: len(size) - len(axes)])
    made = builder.append(Normalize(builder.layer, (source.source,), size, groups, epsilon, False))
    back = tuple(order.index(axis) for axis in range(len(shape)))
    return made if plain else seen_as(builder, made, shape, back)


def default_epsilon(dtype: torch.dtype) -> float:
    """What torch takes without one: the spacing at one of the numbers that it computes with, float32 for half ones."""
    return torch.finfo(torch.promote_types(dtype, torch.float32)).eps


def rms_norm(
    builder: GraphBuilder, x: Any, axes: tuple[int, ...], weight: Tensor | None, epsilon: float, shape: tuple[int, ...]
) -> Curve:
    """x over the root of its mean square over ``axes``, times a weight."""
    made = normalised(builder, x, axes, epsilon)
    if weight is None:
        return made
    recipe = builder.recipe(itself, weight)
    return diagonal(builder, made, weight, None, shape, builder.factor_origin(weight) if recipe else FIXED, recipe)


__all__ = [
    "SQUARE",
    "MeanSquare",
    "Moment",
    "Root",
    "Square",
    "default_epsilon",
    "mean_square",
    "normalised",
    "quotient",
    "rms_norm",
    "root",
    "shifted",
]
