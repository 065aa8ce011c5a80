"""What waits for GELU's approximation: cubic polynomials of a line, and tanh of one."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Any

from torch import Tensor

from lipbridge.activations.activation import Term
from lipbridge.activations.scalar_functions import GELU_CUBE, GELU_RATE
from lipbridge.errors import UnsupportedOperation
from lipbridge.frontend.builder import Curve, Deferred, GraphBuilder
from lipbridge.frontend.computed.tensor import Computed
from lipbridge.frontend.moments import SQUARE
from lipbridge.frontend.products import (
    ROUNDING,
    gated,
    made_of,
    nearby,
    on_node,
    past_factor,
    rounded,
    through_node,
    through_zero,
)
from lipbridge.rounding.factors import number

_CUBE = "It has no global Lipschitz constant."


@dataclass(frozen=True)
class Polynomial(Deferred):
    """``a t + b t^2 + c t^3`` of a node's value t, which waits to become a part of GELU's approximation."""

    source: int
    a: float
    b: float
    c: float
    layer: str
    operation: str

    def materialise(self, builder: GraphBuilder) -> Curve:
        """Raises UnsupportedOperation, for the operation that made it."""
        hint = SQUARE if self.c == 0.0 else _CUBE
        raise UnsupportedOperation(self.layer or "(top level)", self.operation, hint)

    def scaled(self, factor: float) -> Polynomial:
        """``factor`` times this."""
        return replace(self, a=factor * self.a, b=factor * self.b, c=factor * self.c)


@dataclass(frozen=True)
class CubicTanh(Deferred):
    """``factor * tanh(a t + c t^3) + shift`` of a node's value t."""

    source: int
    a: float
    c: float
    factor: float = 1.0
    shift: float = 0.0

    def materialise(self, builder: GraphBuilder) -> Curve:
        """Alone it is none of the activations."""
        raise builder.unsupported(
            "A tanh of a cube is read only as a part of GELU's approximation, "
            "0.5 t (1 + tanh(sqrt(2 / pi) (t + 0.044715 t^3)))."
        )

    def scaled(self, factor: float) -> CubicTanh:
        """``factor`` times this."""
        inside = (number(Fraction(factor) * Fraction(own)) for own in (self.factor, self.shift))
        return CubicTanh(self.source, self.a, self.c, *inside)


Waiting = Polynomial | CubicTanh


def _on(builder: GraphBuilder, value: Any, source: int) -> float | None:
    """The factor k of a value that is k times the node ``source``."""
    if isinstance(value, Curve) and value.source != source and builder.materialised.get(value) == source:
        return 1.0
    return through_zero(value) if isinstance(value, Curve) and value.source == source else None


def waiting_product(builder: GraphBuilder, x: Any, y: Any, tolerance: float) -> Curve | Waiting | None:
    if not isinstance(x, Waiting):
        return None
    k = _on(builder, y, x.source)
    if k is None:
        return None
    if isinstance(x, Polynomial):
        if x.c:
            return None
        return Polynomial(x.source, 0.0, k * x.a, k * x.b, builder.layer, builder.operation)
    found = gelu_tanh(k, x, tolerance) if x.factor == x.shift else None
    if found is None:
        return None
    like = Curve(x.source, ())
    return made_of(builder, like, [found])


def gelu_tanh(k: float, gate: CubicTanh, tolerance: float) -> tuple[Term, bool] | None:
    """k t * f (1 + tanh(a t + c t^3)) = 2 f k / s * gelu_tanh(s t; cube), with s and cube as they are but for rounding.

    As with gelu the slopes do not depend on s; of cube they depend so little that the registry's have room for it.
    """
    s = gate.a / GELU_RATE
    if k == 0.0 or s == 0.0 or not math.isfinite(gate.c):
        return None
    cube = nearby(gate.c / (GELU_RATE * s) / (s * s), (GELU_CUBE,), ROUNDING)
    if not 0.04 <= cube <= 0.05:
        return None
    s = nearby(s, (k, 2.0 * k, 1.0), tolerance)
    return rounded("gelu_tanh", 2 * Fraction(gate.factor) * Fraction(k) / Fraction(s), s, 0.0, parameters=(cube,))


def waiting_sum(builder: GraphBuilder, x: Any, y: Any, sign: float) -> Waiting | None:
    """``x + sign * y`` where one of the two waits, if the sum may still become GELU's approximation."""
    number = number_of(y) if isinstance(x, CubicTanh) else number_of(x) if isinstance(y, CubicTanh) else None
    if isinstance(x, CubicTanh):
        return None if number is None else replace(x, shift=x.shift + sign * number)
    if isinstance(y, CubicTanh):
        return None if number is None else replace(y.scaled(sign), shift=sign * y.shift + number)
    source = x.source if isinstance(x, Polynomial) else y.source
    parts: list[tuple[float, float, float]] = []
    for value in (x, y):
        if isinstance(value, Polynomial) and value.source == source:
            parts.append((value.a, value.b, value.c))
        else:
            k = _on(builder, value, source)
            if k is None:
                return None
            parts.append((k, 0.0, 0.0))
    a, b, c = (one + sign * two for one, two in zip(*parts, strict=True))
    return replace(x if isinstance(x, Polynomial) else y, a=a, b=b, c=c)


def square_of(builder: GraphBuilder, value: Curve) -> Polynomial:
    """The square of a curve."""
    return _monomial(builder, value, 2)


def cube_of(builder: GraphBuilder, value: Any, exponent: Any) -> Polynomial | None:
    """The power of a curve, if it is its cube."""
    return _monomial(builder, value, 3) if isinstance(value, Curve) and number_of(exponent) == 3.0 else None


def _monomial(builder: GraphBuilder, value: Curve, exponent: int) -> Polynomial:
    k = through_zero(value)
    source, k = (builder.materialise(value), 1.0) if k is None else (value.source, k)
    terms = (0.0, k**2, 0.0) if exponent == 2 else (0.0, 0.0, k**3)
    return Polynomial(source, *terms, builder.layer, builder.operation)


def number_of(value: Any) -> float | None:
    """A number that is known exactly."""
    if isinstance(value, Computed):
        return None
    if isinstance(value, Tensor):
        value = float(value) if value.numel() == 1 and not value.is_meta else None
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return float(value)


def product(builder: GraphBuilder, x: Any, y: Any, tolerance: float = ROUNDING) -> Curve | Waiting | None:
    """The product of two values that depend on the input, if it is one activation or may become one; else None.

    Args:
        builder: of the network at hand.
        x: a value that is no constant.
        y: likewise.
        tolerance: relative error that a stored sqrt(1 / 2) may have, for GELU.
    """
    if isinstance(x, Waiting) or isinstance(y, Waiting):
        return waiting_product(builder, x, y, tolerance) or waiting_product(builder, y, x, tolerance)
    one, two = builder.over_one_source([x, y])
    if one.source != two.source:
        one, two = past_factor(builder, one, two.source), past_factor(builder, two, one.source)
    if one.source != two.source:
        one, two = on_node(builder, one, two.source), on_node(builder, two, one.source)
    if (one.source, one.axis, len(one.components)) == (two.source, two.axis, len(two.components)):
        lines = [through_zero(curve) for curve in (one, two)]
        if lines[0] is not None and lines[1] is not None:
            return Polynomial(one.source, 0.0, lines[0] * lines[1], 0.0, builder.layer, builder.operation)
        pairs = list(zip(one.components, two.components, strict=True))
        found = [gated(a, b, tolerance) or gated(b, a, tolerance) for a, b in pairs]
        return made_of(builder, one, found)
    return through_node(builder, one, two, tolerance) or through_node(builder, two, one, tolerance)
