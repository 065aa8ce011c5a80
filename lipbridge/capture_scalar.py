"""Capture of scalar operations: sums, factors and functions of the registry, collected on a curve."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from torch import Tensor

from lipbridge.activations import SCALAR_FUNCTIONS, Component, Term
from lipbridge.capture_diagonal import diagonal, reciprocal
from lipbridge.capture_reader import FIXED, HANDLERS, LINE, Arguments, Curve, Deferred, Handler, Reader, handles
from lipbridge.graph import Add


def _scaled(component: Component, factor: float) -> Component:
    # A line keeps its factor as the inner scale, so that relu(-t) and -t are each spelt in one way.
    return tuple(
        Term("identity", 1.0, term.coefficient * term.scale * factor, term.coefficient * term.offset * factor)
        if term.function == "identity"
        else replace(term, coefficient=term.coefficient * factor)
        for term in component
    )


def _merged(component: Component) -> Component:
    """Sum equal functions and lines; drop terms that vanish."""
    scale, offset = 0.0, 0.0
    others: dict[Term, float] = {}
    for term in component:
        if term.function == "identity":
            scale += term.coefficient * term.scale
            offset += term.coefficient * term.offset
        else:
            term = term.canonical
            key = replace(term, coefficient=1.0)
            others[key] = others.get(key, 0.0) + term.coefficient
    terms = [replace(key, coefficient=value) for key, value in others.items() if value != 0.0]
    if scale != 0.0 or offset != 0.0 or not terms:
        terms.append(Term("identity", 1.0, scale, offset))
    return tuple(sorted(terms))


def _map(reader: Reader, value: Any, change: Callable[[Component], Component]) -> Curve:
    curve = reader.curve(value)
    return replace(curve, components=tuple(_merged(change(component)) for component in curve.components))


def _constant(reader: Reader, value: Any) -> float:
    if isinstance(value, Tensor) and value.numel() == 1:
        value = value.detach().double().cpu().item()
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise reader.unsupported("Only scalar constants can be combined with a layer's values.")
    return float(value)


@handles("neg")
def _neg(reader: Reader, a: Arguments, shape: tuple[int, ...]) -> Curve:
    return _map(reader, a["self"], lambda c: _scaled(c, -1.0))


@handles("mul")
def _mul(reader: Reader, a: Arguments, shape: tuple[int, ...]) -> Curve:
    x, y = (reader.curve(v) if isinstance(v, Deferred) else v for v in (a["self"], a["other"]))
    if isinstance(x, Curve) and isinstance(y, Curve):
        if x == y:
            return _square(reader, {"self": x}, shape)
        raise reader.unsupported("A product of two functions of the input has no Lipschitz constant.")
    curve, other = (x, y) if isinstance(x, Curve) else (y, x)
    if isinstance(other, Tensor) and other.numel() > 1:
        return diagonal(reader, curve, other, None, shape, reader.factor_origin(other))
    factor = _constant(reader, other)
    return _map(reader, curve, lambda c: _scaled(c, factor))


@handles("div")
def _div(reader: Reader, a: Arguments, shape: tuple[int, ...]) -> Curve:
    if a.get("rounding_mode") is not None:
        raise reader.unsupported()
    if isinstance(a["other"], Tensor) and a["other"].numel() > 1:
        fixed = FIXED if id(a["other"]) in reader.fixed else None
        return diagonal(reader, a["self"], reciprocal(reader, a["other"]), None, shape, fixed)
    divisor = _constant(reader, a["other"])
    if divisor == 0.0:
        raise reader.unsupported("It divides by zero.")
    return _map(reader, a["self"], lambda c: _scaled(c, 1.0 / divisor))


@handles("add", "sub", "rsub")
def _add(reader: Reader, a: Arguments, shape: tuple[int, ...]) -> Curve:
    sign = {"add": 1.0, "sub": -1.0, "rsub": 1.0}[reader.operation.split(".")[0].rstrip("_")]
    x, y = a["self"], a["other"]
    if reader.operation.startswith("rsub"):
        x, y, sign = y, x, -1.0
    sign *= _constant(reader, a.get("alpha", 1))
    x, y = (reader.curve(v) if isinstance(v, Deferred) else v for v in (x, y))
    if isinstance(x, Curve) and isinstance(y, Curve):
        x, y = reader.over_one_source([x, y])
        if x.source != y.source or len(x.components) != len(y.components) or x.axis != y.axis:
            return _sum(reader, x, y, sign, shape)
        pairs = zip(x.components, y.components, strict=True)
        return replace(x, components=tuple(_merged(c + _scaled(d, sign)) for c, d in pairs))
    constant = y if isinstance(x, Curve) else x
    if isinstance(constant, Tensor) and constant.numel() > 1:
        curve = x if isinstance(x, Curve) else _map(reader, y, lambda c: _scaled(c, sign))
        shifts = constant.detach().double() * (sign if isinstance(x, Curve) else 1.0)
        return diagonal(reader, curve, None, shifts, shape)
    if isinstance(x, Curve):
        shift = sign * _constant(reader, y)
        return _map(reader, x, lambda c: (*c, Term("identity", 1.0, 0.0, shift)))
    shift = _constant(reader, x)
    return _map(reader, y, lambda c: (*_scaled(c, sign), Term("identity", 1.0, 0.0, shift)))


def _sum(reader: Reader, x: Curve, y: Curve, sign: float, shape: tuple[int, ...]) -> Curve:
    """The sum of two layers, e.g. a residual connection."""
    y = y if sign == 1.0 else _map(reader, y, lambda c: _scaled(c, sign))
    if not reader.shape_of(x) == reader.shape_of(y) == shape:
        raise reader.unsupported("The layers have different shapes; only sums without broadcasting are supported.")
    sources = (reader.materialise(x), reader.materialise(y))
    return reader.append(Add(reader.layer, sources, shape))


@handles("pow")
def _pow(reader: Reader, a: Arguments, shape: tuple[int, ...]) -> Curve:
    if a["exponent"] == 2:
        return _square(reader, a, shape)
    raise reader.unsupported("It has no global Lipschitz constant.")


@handles("square")
def _square(reader: Reader, a: Arguments, shape: tuple[int, ...]) -> Curve:
    curve = reader.curve(a["self"])
    squares: list[Component] = []
    for component in curve.components:
        if len(component) != 1 or component[0].function != "sin":
            raise reader.unsupported("A square has no global Lipschitz constant (but sin(t)**2 has).")
        term = component[0]
        squares.append((replace(term, function="sin_squared", coefficient=term.coefficient**2),))
    return replace(curve, components=tuple(squares))


def _apply(reader: Reader, value: Any, function: str, parameters: tuple[float, ...] = ()) -> Curve:
    """``function`` of a curve: each line component becomes a term; anything else is made a node first."""
    curve = reader.curve(value)
    if not all(len(c) == 1 and c[0].function == "identity" for c in curve.components):
        curve = Curve(reader.materialise(curve), (LINE,))
    terms = [component[0] for component in curve.components]
    made = (Term(function, 1.0, t.coefficient * t.scale, t.coefficient * t.offset, parameters) for t in terms)
    return replace(curve, components=tuple((term,) for term in made))


def _plain(function: str) -> Handler:
    def handler(reader: Reader, a: Arguments, shape: tuple[int, ...]) -> Curve:
        return _apply(reader, a["self"], function)

    return handler


for _name in ("relu", "abs", "tanh", "sigmoid", "sin", "cos", "silu"):
    assert _name in SCALAR_FUNCTIONS
    HANDLERS[_name] = _plain(_name)


@handles("gelu")
def _gelu(reader: Reader, a: Arguments, shape: tuple[int, ...]) -> Curve:
    if a.get("approximate", "none") != "none":
        raise reader.unsupported("Only the exact GELU (approximate='none') is supported.")
    return _apply(reader, a["self"], "gelu")


@handles("leaky_relu")
def _leaky_relu(reader: Reader, a: Arguments, shape: tuple[int, ...]) -> Curve:
    return _apply(reader, a["self"], "leaky_relu", (float(a["negative_slope"]),))


@handles("elu")
def _elu(reader: Reader, a: Arguments, shape: tuple[int, ...]) -> Curve:
    if a["scale"] != 1 or a["input_scale"] != 1:
        raise reader.unsupported("Only ELU itself is supported, not its scaled variants.")
    return _apply(reader, a["self"], "elu", (float(a["alpha"]),))


@handles("softplus")
def _softplus(reader: Reader, a: Arguments, shape: tuple[int, ...]) -> Curve:
    if a["threshold"] < 20:
        # Beyond the threshold torch goes over to the line, with a jump of log(1 + exp(-threshold)): 2e-9 at 20.
        raise reader.unsupported("A softplus with a threshold below 20 jumps there; it has no Lipschitz constant.")
    return _apply(reader, a["self"], "softplus", (float(a["beta"]),))


@handles("clamp", "hardtanh", "relu6")
def _clamp(reader: Reader, a: Arguments, shape: tuple[int, ...]) -> Curve:
    """min(max(t, low), high) = low + relu(t - low) - relu(t - high)."""
    bounds = {"relu6": (0.0, 6.0)}.get(reader.operation.split(".")[0], (a.get("min_val"), a.get("max_val")))
    low, high = (a.get("min"), a.get("max")) if "min" in a else bounds
    numbers = [None if bound is None else _constant(reader, bound) for bound in (low, high)]
    curve = reader.curve(a["self"])
    if not all(len(c) == 1 and c[0].function == "identity" for c in curve.components):
        curve = reader.line(curve)
    if None not in numbers and numbers[0] > numbers[1]:  # type: ignore[operator]
        raise reader.unsupported("Its lower limit is above the upper one.")
    made: list[Component] = []
    for (term,) in curve.components:
        scale, offset = term.coefficient * term.scale, term.coefficient * term.offset
        low, high = numbers
        start: Component = (term,)
        if low is not None:
            start = (Term("identity", 1.0, 0.0, low), Term("relu", 1.0, scale, offset - low))
        if high is not None:
            start = (*start, Term("relu", -1.0, scale, offset - high))
        made.append(_merged(start))
    return replace(curve, components=tuple(made))
