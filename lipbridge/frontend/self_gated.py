"""Products of two functions of one value that are one activation, written out, such as t sigmoid(t).

A product has no Lipschitz constant in general, but these have. Squares and cubes of a value wait (:class:`Polynomial`)
for the tanh of GELU's approximation, 0.5 t (1 + tanh(sqrt(2 / pi) (t + 0.044715 t^3))); nothing else can use them.

The factor of the activation is a quotient of the factors that were written. Where it is no double it is rounded away
from zero, and the product becomes a node of its own: the Graph's layer is the module's times a factor of at least one.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Any

from torch import Tensor

from lipbridge.activations.activation import Component, Term
from lipbridge.activations.scalar_functions import GELU_CUBE, GELU_RATE
from lipbridge.errors import NumericalFailure, UnsupportedOperation
from lipbridge.frontend.computed.program import Computed
from lipbridge.frontend.moments import SQUARE, Square
from lipbridge.frontend.reader import HANDLERS, Arguments, Curve, Deferred, Reader
from lipbridge.graph.nodes import Conv, Elementwise, block_axis
from lipbridge.rounding.factors import number

#: Relative error of a constant that was computed in a few operations, e.g. sqrt(2 / pi).
ROUNDING = 2.0**-48
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

    def materialise(self, reader: Reader) -> Curve:
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

    def materialise(self, reader: Reader) -> Curve:
        """Alone it is none of the activations."""
        raise reader.unsupported(
            "A tanh of a cube is read only as a part of GELU's approximation, "
            "0.5 t (1 + tanh(sqrt(2 / pi) (t + 0.044715 t^3)))."
        )

    def scaled(self, factor: float) -> CubicTanh:
        """``factor`` times this."""
        inside = (number(Fraction(factor) * Fraction(own)) for own in (self.factor, self.shift))
        return CubicTanh(self.source, self.a, self.c, *inside)


Waiting = Polynomial | CubicTanh
_Line = tuple[Fraction, Fraction]


# --- products of curves ----------------------------------------------------------------------------------------------


def product(reader: Reader, x: Any, y: Any, tolerance: float = ROUNDING) -> Curve | Waiting | None:
    """The product of two values that depend on the input, if it is one activation or may become one; else None.

    Args:
        reader: of the network at hand.
        x: a value that is no constant.
        y: likewise.
        tolerance: relative error that a stored sqrt(1 / 2) may have, for GELU.
    """
    if isinstance(x, Waiting) or isinstance(y, Waiting):
        return _waiting_product(reader, x, y, tolerance) or _waiting_product(reader, y, x, tolerance)
    one, two = reader.over_one_source([x, y])
    if one.source != two.source:
        one, two = _past_factor(reader, one, two.source), _past_factor(reader, two, one.source)
    if one.source != two.source:
        one, two = _on_node(reader, one, two.source), _on_node(reader, two, one.source)
    if (one.source, one.axis, len(one.components)) == (two.source, two.axis, len(two.components)):
        lines = [_through_zero(curve) for curve in (one, two)]
        if lines[0] is not None and lines[1] is not None:
            return Polynomial(one.source, 0.0, lines[0] * lines[1], 0.0, reader.layer, reader.operation)
        pairs = list(zip(one.components, two.components, strict=True))
        found = [_gated(a, b, tolerance) or _gated(b, a, tolerance) for a, b in pairs]
        return _made(reader, one, found)
    return _through_node(reader, one, two, tolerance) or _through_node(reader, two, one, tolerance)


def _past_factor(reader: Reader, value: Curve, source: int) -> Curve:
    """A curve on ``source``, if its own is that times one number that is computed, as sqrt(2); else itself.

    The number is read as the factor that the node has, which is no nearer to zero. Inside of a gate it changes no
    slope of the product, and in the line beside a gate it enlarges all of them alike.
    """
    node = reader.nodes[value.source]
    if not isinstance(node, Conv) or not node.diagonal or node.bias is not None or not node.outward:
        return value
    first = node.weight.flatten()[0]
    if node.inputs != (source,) or value.source in reader.recipes or bool((node.weight != first).any()):
        return value
    factor = Fraction(float(first))
    try:
        components = tuple(
            tuple(replace(term, scale=number(Fraction(term.scale) * factor)) for term in component)
            for component in value.components
        )
    except NumericalFailure:
        return value
    return replace(value, source=source, components=components)


def _on_node(reader: Reader, value: Curve, index: int) -> Curve:
    """A curve as a line on a node that holds it but for a constant; itself if the node holds something else."""
    for known, node in reader.materialised.items():
        alike = (known.source, known.axis, len(known.components)) == (value.source, value.axis, len(value.components))
        if node == index and alike:
            pairs = zip(value.components, known.components, strict=True)
            shifts = {_difference(a, b) for a, b in pairs}
            if len(shifts) == 1 and (shift := shifts.pop()) is not None:
                return Curve(index, ((Term("identity", 1.0, 1.0, shift),),))
    return value


def _difference(a: Component, b: Component) -> float | None:
    """The constant by which two components differ, if they differ by a constant that is a double."""
    bent: list[list[Term]] = []
    lines: list[_Line] = []
    for component in (a, b):
        bent.append(sorted(term for term in component if term.function != "identity"))
        known = [line for term in component if (line := _line((term,))) is not None]
        lines.append((sum((line[0] for line in known), Fraction(0)), sum((line[1] for line in known), Fraction(0))))
    shift = lines[0][1] - lines[1][1]
    if bent[0] != bent[1] or lines[0][0] != lines[1][0] or Fraction(float(shift)) != shift:
        return None
    return float(shift)


def _made(reader: Reader, like: Curve, found: list[tuple[Term, bool] | None]) -> Curve | None:
    """The curve of the terms; a node of its own if a factor was rounded."""
    made = [item for item in found if item is not None]
    if len(made) < len(found):
        return None
    curve = replace(like, components=tuple((term,) for term, _ in made))
    return curve if all(exact for _, exact in made) else reader.apart(curve)


def _line(component: Component) -> _Line | None:
    """Scale and offset of a line."""
    if len(component) != 1 or component[0].function != "identity":
        return None
    (term,) = component
    return Fraction(term.coefficient) * Fraction(term.scale), Fraction(term.coefficient) * Fraction(term.offset)


def _through_zero(value: Any) -> float | None:
    """The factor k of a curve that is k t."""
    if not isinstance(value, Curve) or len(value.components) != 1:
        return None
    line = _line(value.components[0])
    return None if line is None or line[1] != 0 else float(line[0])


def _gated(line: Component, gate: Component, tolerance: float) -> tuple[Term, bool] | None:
    """A line times its gate as one term, and whether its factor is exact."""
    known = _line(line)
    if known is None or known[0] == 0:
        return None
    return _silu(known, gate) or _gelu(known, gate, tolerance) or _hardswish(known, gate)


def _ratio(line: _Line, scale: Fraction, offset: Fraction) -> Fraction | None:
    """The factor with ``line = factor * (scale t + offset)``, if there is one."""
    if scale == 0 or line[1] * scale != line[0] * offset:
        return None
    return line[0] / scale


def _rounded(function: str, factor: Fraction, *inner: float, parameters: tuple[float, ...] = ()) -> tuple[Term, bool]:
    """``factor * function(...)``, the factor rounded away from zero if it is no double."""
    value = float(factor)
    if Fraction(value) == factor:
        return Term(function, value, *inner, parameters=parameters), True
    if abs(Fraction(value)) < abs(factor):
        value = math.nextafter(value, math.copysign(math.inf, value))
    return Term(function, value, *inner, parameters=parameters), False


def _silu(line: _Line, gate: Component) -> tuple[Term, bool] | None:
    """r (s t + o) * c sigmoid(s t + o) = c r silu(s t + o)."""
    if len(gate) != 1 or gate[0].function != "sigmoid":
        return None
    (term,) = gate
    ratio = _ratio(line, Fraction(term.scale), Fraction(term.offset))
    return None if ratio is None else _rounded("silu", Fraction(term.coefficient) * ratio, term.scale, term.offset)


def _gelu(line: _Line, gate: Component, tolerance: float) -> tuple[Term, bool] | None:
    """k t * c (1 + erf(r t)) = 2 c k / s * gelu(s t) for s = r sqrt 2.

    s is read as the number that it is but for rounding. The slopes of gelu(s t) / s are those of gelu for every s, so
    this changes no Lipschitz constant.
    """
    bent = [term for term in gate if term.function == "erf"]
    level = [term for term in gate if term.function == "identity" and term.scale == 0.0]
    if len(bent) != 1 or len(level) != 1 or len(gate) != 2 or line[1] != 0 or bent[0].offset != 0.0:
        return None
    c, r, k = Fraction(bent[0].coefficient), bent[0].scale, float(line[0])
    if Fraction(level[0].coefficient) * Fraction(level[0].offset) != c or r == 0.0:
        return None
    scale = nearby(r * math.sqrt(2.0), (k, 2.0 * k, 1.0), tolerance)
    return _rounded("gelu", 2 * c * line[0] / Fraction(scale), scale)


def nearby(value: float, candidates: tuple[float, ...], tolerance: float) -> float:
    """The candidate that ``value`` is but for rounding, or the value."""
    return next((c for c in candidates if abs(value - c) <= tolerance * abs(c)), value)


def _hardswish(line: _Line, gate: Component) -> tuple[Term, bool] | None:
    """k t times c (relu(s t + a) - relu(s t + b)), for any slope of the clipped line and any of its two ends.

    With h = (a - b) / 6 and u = (s t + (a + b) / 2) / h the gate is 6 c h times that of hardswish(u). Where u is
    rounded the slopes keep their bounds: they are those of hardswish times the product of the two factors.
    """
    if len(gate) != 2 or any(term.function != "relu" for term in gate):
        return None
    first, second = sorted(gate, key=lambda term: -term.offset)
    if first.scale != second.scale or first.coefficient != -second.coefficient or first.offset <= second.offset:
        return None
    a, b = Fraction(first.offset), Fraction(second.offset)
    h = (a - b) / 6
    scale, offset = Fraction(first.scale) / h, (a + b) / (2 * h)
    ratio = _ratio(line, scale, offset)
    inner = (float(scale), float(offset))
    if ratio is None or inner[0] == 0.0 or not all(map(math.isfinite, inner)):
        return None
    factor = 6 * Fraction(first.coefficient) * h * ratio * scale / Fraction(inner[0])
    term, exact = _rounded("hardswish", factor, *inner)
    return term, exact and Fraction(inner[1]) == offset


def _through_node(reader: Reader, line: Curve, other: Curve, tolerance: float) -> Curve | None:
    """A line times a function of a node that is itself a function of the line's source: a factor of it, or a tanh."""
    node = reader.nodes[other.source]
    if not isinstance(node, Elementwise) or other.source in reader.recipes:
        return None
    line = _on_node(reader, line, node.inputs[0])
    if line.source != node.inputs[0]:
        return None
    inner, outer = node.activation.components, other.components
    fits = len(inner) == len(line.components) and len(outer) == len(outer[0]) == 1
    if not fits or (len(inner) > 1 and block_axis(node) != line.axis % len(node.shape)):
        return None
    factor = _through_zero(other)
    pairs = zip(line.components, inner, strict=True)
    if factor is None:
        return _made(reader, line, [_mish(one, soft, outer[0][0]) for one, soft in pairs])
    scaled = [(one, _times(factor, part)) for one, part in pairs]
    return _made(reader, line, [None if gate is None else _gated(one, gate, tolerance) for one, gate in scaled])


def _times(factor: float, component: Component) -> Component | None:
    """A multiple of a component, if no factor is rounded."""
    scaled = tuple(replace(term, coefficient=factor * term.coefficient) for term in component)
    pairs = zip(scaled, component, strict=True)
    exact = all(Fraction(a.coefficient) == Fraction(factor) * Fraction(b.coefficient) for a, b in pairs)
    return scaled if exact else None


def _mish(line: Component, inner: Component, tanh: Term) -> tuple[Term, bool] | None:
    """r (s t + o) * c tanh(softplus(s t + o)) = c r mish(s t + o), the softplus being a node."""
    known = _line(line)
    if len(inner) != 1 or known is None:
        return None
    (soft,) = inner
    plain = (tanh.function, tanh.scale, tanh.offset) == ("tanh", 1.0, 0.0)
    if (soft.function, soft.coefficient, *soft.parameters) != ("softplus", 1.0, 1.0) or not plain:
        return None
    ratio = _ratio(known, Fraction(soft.scale), Fraction(soft.offset))
    return None if ratio is None else _rounded("mish", Fraction(tanh.coefficient) * ratio, soft.scale, soft.offset)


# --- what waits for GELU's approximation ------------------------------------------------------------------------------


def _on(reader: Reader, value: Any, source: int) -> float | None:
    """The factor k of a value that is k times the node ``source``."""
    if isinstance(value, Curve) and value.source != source and reader.materialised.get(value) == source:
        return 1.0
    return _through_zero(value) if isinstance(value, Curve) and value.source == source else None


def _waiting_product(reader: Reader, x: Any, y: Any, tolerance: float) -> Curve | Waiting | None:
    if not isinstance(x, Waiting):
        return None
    k = _on(reader, y, x.source)
    if k is None:
        return None
    if isinstance(x, Polynomial):
        if x.c:
            return None
        return Polynomial(x.source, 0.0, k * x.a, k * x.b, reader.layer, reader.operation)
    found = gelu_tanh(k, x, tolerance) if x.factor == x.shift else None
    if found is None:
        return None
    like = Curve(x.source, ())
    return _made(reader, like, [found])


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
    return _rounded("gelu_tanh", 2 * Fraction(gate.factor) * Fraction(k) / Fraction(s), s, 0.0, parameters=(cube,))


def waiting_sum(reader: Reader, x: Any, y: Any, sign: float) -> Waiting | None:
    """``x + sign * y`` where one of the two waits, if the sum may still become GELU's approximation."""
    number = _number(y) if isinstance(x, CubicTanh) else _number(x) if isinstance(y, CubicTanh) else None
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
            k = _on(reader, value, source)
            if k is None:
                return None
            parts.append((k, 0.0, 0.0))
    a, b, c = (one + sign * two for one, two in zip(*parts, strict=True))
    return replace(x if isinstance(x, Polynomial) else y, a=a, b=b, c=c)


def square_of(reader: Reader, value: Curve) -> Polynomial:
    """The square of a curve."""
    return _monomial(reader, value, 2)


def cube_of(reader: Reader, value: Any, exponent: Any) -> Polynomial | None:
    """The power of a curve, if it is its cube."""
    return _monomial(reader, value, 3) if isinstance(value, Curve) and _number(exponent) == 3.0 else None


def _monomial(reader: Reader, value: Curve, exponent: int) -> Polynomial:
    k = _through_zero(value)
    source, k = (reader.materialise(value), 1.0) if k is None else (value.source, k)
    terms = (0.0, k**2, 0.0) if exponent == 2 else (0.0, 0.0, k**3)
    return Polynomial(source, *terms, reader.layer, reader.operation)


def _number(value: Any) -> float | None:
    """A number that is known exactly."""
    if isinstance(value, Computed):
        return None
    if isinstance(value, Tensor):
        value = float(value) if value.numel() == 1 and not value.is_meta else None
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return float(value)


# --- the handlers of sums and products, extended ----------------------------------------------------------------------

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
    return None if isinstance(value, Tensor) and reader.is_live(value) else _number(value)


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


__all__ = [
    "CubicTanh",
    "Polynomial",
    "Waiting",
    "cube_of",
    "extend",
    "gelu_tanh",
    "nearby",
    "product",
    "square_of",
    "times_number",
]
