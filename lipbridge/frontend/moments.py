"""Capture of RMSNorm and its like, written out: x / sqrt(mean(x^2) + epsilon), step by step.

Every step is a value that waits for the next one. None is a layer of its own: what is squared, or divided by, is no
Lipschitz function until the whole stands.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lipbridge.frontend.diagonal import diagonal
from lipbridge.frontend.reader import FIXED, Arguments, Curve, Deferred, Reader, handles, itself
from lipbridge.frontend.shapes import axis_of, seen_as
from lipbridge.graph.nodes import Normalize

SQUARE = "A square has no global Lipschitz constant (but sin(t)**2 has)."
_ROOT = "Its slopes grow without limit, so it has no global Lipschitz constant."


@dataclass(frozen=True)
class Moment(Deferred):
    """A step towards dividing ``x`` by the root of its mean square."""

    x: Curve

    def materialise(self, reader: Reader) -> Curve:
        """Alone it is no layer."""
        raise reader.unsupported(SQUARE)


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


def mean_of(reader: Reader, a: Arguments) -> MeanSquare | None:
    """The mean of a square over axes that it keeps; None for the mean of anything else."""
    value = a["self"]
    if type(value) is not Square:
        return None
    if not a["keepdim"] or not a["dim"]:
        raise reader.unsupported(SQUARE)
    rank = len(reader.shape_of(value.x))
    return MeanSquare(value.x, tuple(sorted({axis_of(reader, dim, rank) for dim in a["dim"]})))


def shifted(reader: Reader, value: Any, constant: Any) -> MeanSquare | None:
    """A mean square plus a number; None if ``value`` is none."""
    if type(value) is not MeanSquare or isinstance(constant, Curve | Deferred):
        return None
    if reader.is_live(constant) or (isinstance(constant, Tensor) and constant.numel() != 1):
        raise reader.unsupported("An epsilon that may change, or is more than one number, is not read.")
    number = float(constant.detach()) if isinstance(constant, Tensor) else float(constant)
    if value.epsilon:
        raise reader.unsupported("An epsilon that is added twice is not read.")
    return MeanSquare(value.x, value.axes, number)


@handles("rsqrt", "sqrt", "reciprocal")
def _root(reader: Reader, a: Arguments, shape: tuple[int, ...]) -> Root:
    return root(reader, a["self"], {"rsqrt": -0.5, "sqrt": 0.5, "reciprocal": -1.0}[reader.operation.split(".")[0]])


def root(reader: Reader, value: Any, exponent: float) -> Root:
    """A power of a mean square that is its root, or one over that.

    Raises:
        UnsupportedOperation: for anything else.
    """
    if type(value) is MeanSquare and exponent in (0.5, -0.5):
        return Root(value.x, value.axes, value.epsilon, exponent < 0)
    if isinstance(value, Root) and exponent == -1.0 and not value.inverse:
        return Root(value.x, value.axes, value.epsilon, True)
    raise reader.unsupported(_ROOT)


def quotient(reader: Reader, x: Any, divisor: Any, inverse: bool) -> Curve | None:
    """x divided by the root of its mean square, or times one over it; None for anything else."""
    if not isinstance(divisor, Root) or divisor.inverse != inverse or not isinstance(x, Curve | Deferred):
        return None
    if reader.curve(x) != divisor.x:
        raise reader.unsupported("It divides by the root of another value's mean square.")
    return normalised(reader, x, divisor.axes, divisor.epsilon)


def normalised(reader: Reader, x: Any, axes: tuple[int, ...], epsilon: float) -> Curve:
    """x over the root of its mean square over ``axes`` of the shape, with epsilon."""
    if not epsilon > 0.0:
        raise reader.unsupported("Without an epsilon it has no Lipschitz constant.")
    shape = reader.shape_of(x)
    order = (*(axis for axis in range(len(shape)) if axis not in axes), *axes)
    size = tuple(shape[axis] for axis in order)
    plain = order == tuple(range(len(shape)))
    source = reader.line(x) if plain else seen_as(reader, x, size, order)
    groups = math.prod(size[: len(size) - len(axes)])
    made = reader.append(Normalize(reader.layer, (source.source,), size, groups, epsilon, False))
    back = tuple(order.index(axis) for axis in range(len(shape)))
    return made if plain else seen_as(reader, made, shape, back)


def default_epsilon(dtype: torch.dtype) -> float:
    """What torch takes without one: the spacing at one of the numbers that it computes with, float32 for half ones."""
    return torch.finfo(torch.promote_types(dtype, torch.float32)).eps


@handles("rms_norm", "_fused_rms_norm")
def _rms_norm(reader: Reader, a: Arguments, shape: tuple[int, ...]) -> Curve:
    epsilon = default_epsilon(reader.dtype) if a["eps"] is None else a["eps"]
    axes = tuple(range(len(shape) - len(a["normalized_shape"]), len(shape)))
    made = normalised(reader, a["input"], axes, float(epsilon))
    weight = a["weight"]
    if weight is None:
        return made
    recipe = reader.recipe(itself, weight)
    return diagonal(reader, made, weight, None, shape, reader.factor_origin(weight) if recipe else FIXED, recipe)


__all__ = ["SQUARE", "Moment", "Square", "default_epsilon", "mean_of", "normalised", "quotient", "root", "shifted"]
