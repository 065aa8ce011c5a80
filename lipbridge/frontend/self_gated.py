"""Products of two functions of one value that are one activation, written out, such as t sigmoid(t).

A product has no Lipschitz constant in general, but these have. Squares and cubes of a value wait (:class:`Polynomial`)
for the tanh of GELU's approximation, 0.5 t (1 + tanh(sqrt(2 / pi) (t + 0.044715 t^3))); nothing else can use them.

The factor of the activation is a quotient of the factors that were written. Where it is no double it is rounded away
from zero, and the product becomes a node of its own: the Graph's layer is the module's times a factor of at least one.
"""

from __future__ import annotations

from fractions import Fraction
from typing import Any

from torch import Tensor

from lipbridge.frontend.builder import Curve, GraphBuilder
from lipbridge.frontend.computed.tensor import Computed
from lipbridge.frontend.moments import Square
from lipbridge.frontend.polynomials import (
    CubicTanh,
    Polynomial,
    Waiting,
    number_of,
    product,
    square_of,
    waiting_sum,
)
from lipbridge.frontend.products import ROUNDING
from lipbridge.rounding.factors import number


def _waiting(builder: GraphBuilder, value: Any) -> Any:
    """A square that is multiplied or added: no step of a normalisation."""
    return square_of(builder, value.x) if isinstance(value, Square) else value


def times(builder: GraphBuilder, x: Any, y: Any) -> Any:
    """The product of two values of which one waits, or which are one activation together; None if it is neither."""
    if isinstance(x, Curve) and x == y:
        return None
    x, y = _waiting(builder, x), _waiting(builder, y)
    if isinstance(x, Curve | Waiting) and isinstance(y, Curve | Waiting):
        return product(builder, x, y)
    return times_number(builder, x, y) if isinstance(x, Waiting) else times_number(builder, y, x)


def over(builder: GraphBuilder, x: Any, y: Any) -> Any:
    """A value that waits over a number; None if it does not wait."""
    return times_number(builder, _waiting(builder, x), y, inverse=True)


def fixed(builder: GraphBuilder, value: Any) -> float | None:
    """A number that nothing changes."""
    return None if isinstance(value, Tensor) and builder.is_live(value) else number_of(value)


def times_number(builder: GraphBuilder, x: Any, constant: Any, *, inverse: bool = False) -> Waiting | None:
    """A waiting value times a fixed number other than zero, or with ``inverse`` over it; None if it is neither.

    A number that is computed will do for a polynomial alone, whose constants are read as GELU's but for rounding.
    """
    if not isinstance(x, Waiting):
        return None
    if isinstance(x, Polynomial) and isinstance(constant, Computed) and not builder.is_live(constant):
        near = bool((constant.error <= ROUNDING * constant.value.abs()).all())
        constant = constant.value if near else constant
    factor = fixed(builder, constant)
    if not factor:
        return None
    return x.scaled(number(1 / Fraction(factor)) if inverse else factor)


def plus(builder: GraphBuilder, x: Any, y: Any, alpha: Any, sign: float) -> Any:
    """``x + sign * alpha * y`` if one of them waits and goes on waiting; else None."""
    x, y = _waiting(builder, x), _waiting(builder, y)
    if not isinstance(x, Waiting) and not isinstance(y, Waiting):
        return None
    factor = fixed(builder, alpha)
    if factor is None or any(isinstance(v, Tensor) and builder.is_live(v) for v in (x, y)):
        return None
    return waiting_sum(builder, x, y, factor if sign > 0.0 else -factor)


def tanh_of(x: Any) -> CubicTanh | None:
    """The tanh of a cube that waits; None for anything else."""
    return CubicTanh(x.source, x.a, x.c) if isinstance(x, Polynomial) and x.b == 0.0 and x.c else None


def minus(builder: GraphBuilder, x: Any) -> Any:
    """The negative of a value that waits; None if it does not."""
    x = _waiting(builder, x)
    return x.scaled(-1.0) if isinstance(x, Waiting) else None


__all__ = ["fixed", "minus", "over", "plus", "tanh_of", "times", "times_number"]
