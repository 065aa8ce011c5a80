"""LayerNorm and its like, written out: (x - mean(x)) / sqrt(mean((x - mean(x))^2) + epsilon), step by step.

RMSNorm is the same without the mean.

Every step is a value that waits for the next one (:class:`Moment`). None but the mean, and what it leaves of x, is a
layer of its own: what is squared, or divided by, is no Lipschitz function until the whole stands.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Any

from torch import Tensor

from lipbridge.frontend.builder import Curve, Deferred, GraphBuilder
from lipbridge.frontend.moments import SQUARE
from lipbridge.frontend.scalar import add
from lipbridge.graph.nodes import Normalize
from lipbridge_adapters.onnx.permuting import permuted
from lipbridge_adapters.onnx.reader import Flow, OnnxReader, per_input


@dataclass(frozen=True)
class Moment(Deferred):
    """A step towards normalising ``x``, of shape ``shape`` in ONNX, over ``axes``."""

    x: Any
    shape: tuple[int, ...]
    axes: tuple[int, ...]

    def of(self, other: Moment) -> bool:
        """Whether both are steps of one normalisation."""
        return (self.x, self.shape, self.axes) == (other.x, other.shape, other.axes)

    def materialise(self, builder: GraphBuilder) -> Curve:
        """Alone it is no layer."""
        raise builder.unsupported(
            "Statistics of a layer's values are read only as parts of (x - mean) / sqrt(variance + epsilon)."
        )


@dataclass(frozen=True)
class Mean(Moment):
    """mean(x), which is a layer of its own as well."""

    made: Curve

    def materialise(self, builder: GraphBuilder) -> Curve:
        """The mean as an average."""
        return self.made


@dataclass(frozen=True)
class Centred(Moment):
    """x - mean(x), which is a layer of its own as well."""

    mean: Curve

    def materialise(self, builder: GraphBuilder) -> Curve:
        """The difference of the two."""
        assert isinstance(builder, OnnxReader)
        size = per_input(self.shape)
        kept = per_input(tuple(1 if i in self.axes else n for i, n in enumerate(self.shape)))
        x, average = builder.curve(builder.in_shape(self.x, size)), builder.in_shape(self.mean, kept)
        return builder.line(add(builder, x, average, size, -1.0))


class Square(Moment):
    """(x - mean(x))^2."""


@dataclass(frozen=True)
class PlainSquare(Moment):
    """x^2, over axes that are not known yet."""

    def materialise(self, builder: GraphBuilder) -> Curve:
        """Alone it is no layer."""
        raise builder.unsupported(SQUARE)


@dataclass(frozen=True)
class Variance(Moment):
    """mean((x - mean(x))^2) + epsilon, or mean(x^2) + epsilon if not centred.

    ``mean`` is that of x^2 as a layer, where it is one: that of sin(t)^2.
    """

    epsilon: float = 0.0
    centred: bool = True
    mean: Mean | None = None

    def materialise(self, builder: GraphBuilder) -> Curve:
        """The mean as an average, and the number added to it."""
        if self.mean is None:
            return super().materialise(builder)
        made = self.mean.made
        return add(builder, made, self.epsilon, builder.shape_of(made))


@dataclass(frozen=True)
class Deviation(Moment):
    """sqrt(variance + epsilon), or one over it."""

    epsilon: float
    inverse: bool = False
    centred: bool = True


def mean(x: Flow, axes: list[int], made: Flow) -> Flow:
    """The mean of x over ``axes``, kept with length one; ``made`` is that as a layer."""
    assert isinstance(made.value, Curve)
    return replace(made, value=Mean(x.value, x.shape, tuple(sorted(axes)), made.value))


def mean_of_square(x: Flow, axes: list[int], shape: tuple[int, ...]) -> Flow | None:
    """The variance, if x is the square of a centred value over the same axes."""
    if isinstance(x.value, Square) and x.value.axes == tuple(sorted(axes)) and len(shape) == len(x.shape):
        return Flow(Variance(x.value.x, x.value.shape, x.value.axes), shape)
    if isinstance(x.value, PlainSquare) and len(shape) == len(x.shape):
        return Flow(Variance(x.value.x, x.value.shape, tuple(sorted(axes)), centred=False), shape)
    return None


def square(x: Flow) -> Flow:
    """The square of a value that is no activation: a step as well."""
    return replace(x, value=PlainSquare(x.value, x.shape, ()))


def difference(x: Flow, y: Flow) -> Flow | None:
    """x - mean(x)."""
    if isinstance(y.value, Mean) and (x.value, x.shape) == (y.value.x, y.value.shape):
        return Flow(Centred(y.value.x, y.value.shape, y.value.axes, y.value.made), x.shape)
    return None


def shifted(x: Flow, constant: Tensor) -> Flow | None:
    """variance + epsilon; the sum of several numbers is exact, or rounded down."""
    if isinstance(x.value, Mean):
        mean, root = x.value, _root(x.value.x)
        x = x if root is None else replace(x, value=Variance(root, mean.shape, mean.axes, 0.0, False, mean))
    if not isinstance(x.value, Variance) or constant.numel() != 1 or not math.isfinite(float(constant)):
        return None
    exact = Fraction(x.value.epsilon) + Fraction(float(constant))
    epsilon = float(exact)
    epsilon = epsilon if Fraction(epsilon) <= exact else math.nextafter(epsilon, -math.inf)
    return replace(x, value=replace(x.value, epsilon=epsilon))


def _root(value: Any) -> Curve | None:
    """The curve that a curve is the square of: sin(t) of sin(t)^2."""
    if not isinstance(value, Curve):
        return None
    terms = [component[0] for component in value.components if len(component) == 1]
    if len(terms) < len(value.components) or any((t.function, t.coefficient) != ("sin_squared", 1.0) for t in terms):
        return None
    return replace(value, components=tuple((replace(term, function="sin"),) for term in terms))


def power(x: Flow, exponent: float) -> Flow | None:
    """The square of a centred value, or a root of its variance."""
    if isinstance(x.value, Centred) and exponent == 2.0:
        return replace(x, value=Square(x.value.x, x.value.shape, x.value.axes))
    if isinstance(x.value, Variance) and exponent in (0.5, -0.5):
        found = x.value
        root = Deviation(found.x, found.shape, found.axes, found.epsilon, exponent < 0.0, found.centred)
        return replace(x, value=root)
    if isinstance(x.value, Deviation) and exponent == -1.0 and not x.value.inverse:
        return replace(x, value=replace(x.value, inverse=True))
    return None


def product(reader: OnnxReader, x: Flow, y: Flow) -> Flow | None:
    """The square of a centred value, or a centred value divided by its deviation."""
    if isinstance(x.value, Centred) and x.value == y.value:
        return power(x, 2.0)
    for one, other in ((x, y), (y, x)):
        if isinstance(other.value, Deviation) and other.value.inverse:
            return _normalised(reader, one, other.value)
    return None


def quotient(reader: OnnxReader, x: Flow, y: Flow) -> Flow | None:
    """A centred value divided by its deviation."""
    if isinstance(y.value, Deviation) and not y.value.inverse:
        return _normalised(reader, x, y.value)
    return None


def _normalised(reader: OnnxReader, x: Flow, deviation: Deviation) -> Flow | None:
    """Normalize on runs of entries; axes that are not the last are moved there and back."""
    if deviation.centred:
        fits = isinstance(x.value, Centred) and x.value.of(deviation)
    else:
        fits = (x.value, x.shape) == (deviation.x, deviation.shape)
    if not fits:
        return None
    if not deviation.epsilon > 0.0:
        raise reader.unsupported("Without an epsilon it has no Lipschitz constant.")
    long = [axis for axis, n in enumerate(x.shape) if n != 1]
    over = [axis for axis in long if axis in deviation.axes]
    if has_others_after := long[len(long) - len(over) :] != over:
        order = [axis for axis in range(len(x.shape)) if axis not in over] + over
        source = permuted(reader, Flow(deviation.x, x.shape), order)
    else:
        order, source = list(range(len(x.shape))), Flow(deviation.x, x.shape)
    index = reader.materialise(source.value)
    shape = reader.nodes[index].shape
    groups = math.prod(shape) // math.prod(x.shape[axis] for axis in over)
    made = reader.append(Normalize(reader.layer, (index,), shape, groups, deviation.epsilon, deviation.centred))
    found = Flow(made, source.shape)
    return permuted(reader, found, [order.index(axis) for axis in range(len(order))]) if has_others_after else found


__all__ = ["Moment", "difference", "mean", "mean_of_square", "power", "product", "quotient", "shifted", "square"]
