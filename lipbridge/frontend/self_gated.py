"""Products of two functions of one value that are one activation, written out, such as t sigmoid(t).

A product has no Lipschitz constant in general, but these have. Squares and cubes of a value wait (:class:`Polynomial`)
for the tanh of GELU's approximation, 0.5 t (1 + tanh(sqrt(2 / pi) (t + 0.044715 t^3))); nothing else can use them.

The factor of the activation is a quotient of the factors that were written. Where it is no double it is rounded away
from zero, and the product becomes a node of its own: the Graph's layer is the module's times a factor of at least one.
"""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction
from typing import Any

from torch import Tensor

from lipbridge.frontend.computed.tensor import Computed
from lipbridge.frontend.moments import Square
from lipbridge.frontend.polynomials import (
    CubicTanh,
    Polynomial,
    Waiting,
    cube_of,
    number_of,
    product,
    square_of,
    waiting_sum,
)
from lipbridge.frontend.products import ROUNDING
from lipbridge.frontend.reader import HANDLERS, Arguments, Curve, Reader
from lipbridge.rounding.factors import number

_Rule = Callable[[Reader, Arguments], Any]


def _extended(name: str, rule: _Rule) -> None:
    """Ask ``rule`` first, and what is registered for an operation where it has no answer."""
    registered = HANDLERS[name]

    def handler(reader: Reader, a: Arguments, shape: tuple[int, ...]) -> Any:
        found = rule(reader, a)
        return registered(reader, a, shape) if found is None else found

    HANDLERS[name] = handler


def _waiting(reader: Reader, value: Any) -> Any:
    """A square that is multiplied or added: no step of a normalisation."""
    return square_of(reader, value.x) if isinstance(value, Square) else value


def _mul(reader: Reader, a: Arguments) -> Any:
    x, y = a["self"], a["other"]
    if isinstance(x, Curve) and x == y:
        return None
    x, y = _waiting(reader, x), _waiting(reader, y)
    if isinstance(x, Curve | Waiting) and isinstance(y, Curve | Waiting):
        return product(reader, x, y)
    return times_number(reader, x, y) if isinstance(x, Waiting) else times_number(reader, y, x)


def _div(reader: Reader, a: Arguments) -> Any:
    x = _waiting(reader, a["self"]) if a.get("rounding_mode") is None else None
    return times_number(reader, x, a["other"], inverse=True)


def _fixed(reader: Reader, value: Any) -> float | None:
    """A number that nothing changes."""
    return None if isinstance(value, Tensor) and reader.is_live(value) else number_of(value)


def times_number(reader: Reader, x: Any, constant: Any, *, inverse: bool = False) -> Waiting | None:
    """A waiting value times a fixed number other than zero, or with ``inverse`` over it; None if it is neither.

    A number that is computed will do for a polynomial alone, whose constants are read as GELU's but for rounding.
    """
    if not isinstance(x, Waiting):
        return None
    if isinstance(x, Polynomial) and isinstance(constant, Computed) and not reader.is_live(constant):
        near = bool((constant.error <= ROUNDING * constant.value.abs()).all())
        constant = constant.value if near else constant
    factor = _fixed(reader, constant)
    if not factor:
        return None
    return x.scaled(number(1 / Fraction(factor)) if inverse else factor)


def _add(reader: Reader, a: Arguments) -> Any:
    x, y = _waiting(reader, a["self"]), _waiting(reader, a["other"])
    if not isinstance(x, Waiting) and not isinstance(y, Waiting):
        return None
    name = reader.operation.split(".")[0]
    factor = _fixed(reader, a.get("alpha", 1))
    if factor is None or any(isinstance(v, Tensor) and reader.is_live(v) for v in (x, y)):
        return None
    sign = factor if name == "add" else -factor
    return waiting_sum(reader, *((y, x) if name == "rsub" else (x, y)), sign)


def _tanh(reader: Reader, a: Arguments) -> Any:
    x = a["self"]
    return CubicTanh(x.source, x.a, x.c) if isinstance(x, Polynomial) and x.b == 0.0 and x.c else None


def _neg(reader: Reader, a: Arguments) -> Any:
    x = _waiting(reader, a["self"])
    return x.scaled(-1.0) if isinstance(x, Waiting) else None


def extend() -> None:
    """Put these rules before the handlers that are registered by now. Called once, by the module of activations."""
    for name, rule in (("mul", _mul), ("div", _div), ("tanh", _tanh), ("neg", _neg)):
        _extended(name, rule)
    for name in ("add", "sub", "rsub"):
        _extended(name, _add)
    _extended("pow", lambda reader, a: cube_of(reader, a["self"], _fixed(reader, a["exponent"])))


__all__ = ["extend", "times_number"]
