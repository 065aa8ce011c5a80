"""Capture of scalar operations: sums, factors and functions of the registry, collected on a curve.

Factors are fractions (:mod:`lipbridge.rounding.factors`), so products and sums of them are exact. Where one would leave
the
range of float64, or grow very long, what was collected so far becomes a node and a new curve begins on it: the Graph
stays the module's real-number function.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Any, cast

import torch
from torch import Tensor

from lipbridge.activations.activation import Component, Term
from lipbridge.activations.registry import recognise
from lipbridge.activations.scalar_functions import SCALAR_FUNCTIONS
from lipbridge.frontend import moments
from lipbridge.frontend.computed.program import Computed, tracking
from lipbridge.frontend.copies import broadcast
from lipbridge.frontend.diagonal import diagonal, reciprocal
from lipbridge.frontend.reader import (
    FIXED,
    HANDLERS,
    LINE,
    Arguments,
    Curve,
    Deferred,
    Handler,
    Reader,
    Recipe,
    handles,
    inverse,
    itself,
    one_number,
)
from lipbridge.graph.nodes import Add, Elementwise
from lipbridge.rounding.factors import Factor, number

#: Slopes below would lose bits, or vanish, and those above overflow.
_SMALLEST, _LARGEST = 2.0**-900, 2.0**900
#: Denominators and numerators of more bits are not carried on.
_LONGEST = 4096


class _Inexact(Exception):
    """A product or sum of factors that leaves the range of float64, or takes too many digits."""


def _number(exact: Fraction) -> float:
    """The factor as a float that is exact, or stands for the exact fraction."""
    value = number(exact) if abs(exact) < Fraction(_LARGEST) else math.inf
    if not isinstance(value, Factor) and math.isfinite(value):
        return value
    if (
        not _SMALLEST < abs(value) < _LARGEST
        or max(exact.numerator.bit_length(), exact.denominator.bit_length()) > _LONGEST
    ):
        raise _Inexact
    return value


def _product(a: float, b: float) -> float:
    if a in (0.0, 1.0, -1.0) or b in (0.0, 1.0, -1.0):
        return a * b
    return _number(Fraction(a) * Fraction(b))


def _add_exactly(a: float, b: float) -> float:
    return a + b if a == 0.0 or b == 0.0 else _number(Fraction(a) + Fraction(b))


def _scaled(component: Component, factor: float) -> Component:
    # A line keeps its factor as the inner scale, so that relu(-t) and -t are each spelt in one way.
    return tuple(
        _line(*(_product(_product(term.coefficient, t), factor) for t in (term.scale, term.offset)))
        if term.function == "identity"
        else replace(term, coefficient=_product(term.coefficient, factor))
        for term in component
    )


def _line(scale: float, offset: float) -> Term:
    return Term("identity", 1.0, scale, offset)


def _canonical(term: Term) -> Term:
    """The term in one spelling, if that rounds nothing."""
    try:
        _product(term.coefficient, term.scale)
        _product(term.coefficient, term.offset)
    except _Inexact:
        return term
    return term.canonical


def _merged(component: Component) -> Component:
    """Sum equal functions and lines; drop terms that vanish."""
    scale, offset = 0.0, 0.0
    others: dict[Term, float] = {}
    for term in component:
        if term.function == "identity":
            scale = _add_exactly(scale, _product(term.coefficient, term.scale))
            offset = _add_exactly(offset, _product(term.coefficient, term.offset))
        else:
            term = _canonical(term)
            if abs(term.coefficient * term.scale) < _SMALLEST and term.coefficient and term.scale:
                raise _Inexact  # the product of the two, the term's slope, must not underflow
            key = replace(term, coefficient=1.0)
            others[key] = _add_exactly(others.get(key, 0.0), term.coefficient)
    terms = [replace(key, coefficient=value) for key, value in others.items() if value != 0.0]
    if scale != 0.0 or offset != 0.0 or not terms:
        terms.append(Term("identity", 1.0, scale, offset))
    return tuple(sorted(terms))


def _map(reader: Reader, value: Any, change: Callable[[Component], Component]) -> Curve:
    """``change`` of each component; on a node of its own if the factors would be rounded."""
    curve = reader.curve(value)
    try:
        return replace(curve, components=tuple(_merged(change(component)) for component in curve.components))
    except _Inexact:
        return replace(reader.line(curve), components=(_merged(change(LINE)),))


def _constant(reader: Reader, value: Any) -> float:
    if isinstance(value, Computed):
        raise reader.unsupported("The number is computed and known up to rounding alone; store it.")
    if isinstance(value, Tensor) and value.numel() == 1:
        value = value.detach().double().cpu().item()
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise reader.unsupported("Only scalar constants can be combined with a layer's values.")
    if not math.isfinite(value):
        raise reader.unsupported(f"The number {value} is no factor or shift of a layer.")
    return float(value)


def _live_line(reader: Reader, value: Any, factor: Tensor | None, shift: Tensor | None) -> Curve:
    """``factor * value + shift`` for scalars of which one may change: a node of its own, computed anew with them."""
    if (factor if factor is not None else torch.zeros(())).is_meta or (shift is not None and shift.is_meta):
        scale, offset = 1.0, 0.0  # on the meta device there is no number to read
    else:
        scale = 1.0 if factor is None else _constant(reader, factor)
        offset = 0.0 if shift is None else _constant(reader, shift)
    return _live_node(reader, value, scale, offset, None if factor is None else reader.recipe(one_number, factor))


def _live_node(reader: Reader, value: Any, scale: float, offset: float, recipe: Recipe | None) -> Curve:
    source = reader.materialise(value)
    activation = recognise(((Term("identity", 1.0, scale, offset),),))
    node = Elementwise(reader.layer or activation.name, (source,), reader.nodes[source].shape, activation)
    return reader.append(node, recipe)


def _scalar(reader: Reader, value: Any) -> bool:
    """Whether a constant is one number that may change."""
    return isinstance(value, Tensor) and value.numel() == 1 and reader.is_live(value)


@handles("neg")
def _neg(reader: Reader, a: Arguments, shape: tuple[int, ...]) -> Curve:
    return _map(reader, a["self"], lambda c: _scaled(c, -1.0))


@handles("mul")
def _mul(reader: Reader, a: Arguments, shape: tuple[int, ...]) -> Any:
    for one, two in ((a["self"], a["other"]), (a["other"], a["self"])):
        found = moments.quotient(reader, one, two, True)
        if found is not None:
            return found
        if isinstance(one, moments.Root) and not isinstance(two, Curve | Deferred) and _constant(reader, two) == 1.0:
            return one  # 1.0 / t is exported as a reciprocal times 1.0
    x, y = (reader.curve(v) if isinstance(v, Deferred) else v for v in (a["self"], a["other"]))
    if isinstance(x, Curve) and isinstance(y, Curve):
        if x == y:
            return _square(reader, {"self": x}, shape)
        raise reader.unsupported("A product of two functions of the input has no Lipschitz constant.")
    curve, other = (x, y) if isinstance(x, Curve) else (y, x)
    if _vector(other):
        other = cast(Tensor, other)
        if other.numel() == 1:
            _same_shape(reader, curve, shape)
        return diagonal(reader, curve, other, None, shape, reader.factor_origin(other), _own(reader, other))
    _same_shape(reader, curve, shape)
    if _scalar(reader, other):
        return _live_line(reader, curve, cast(Tensor, other), None)
    factor = _constant(reader, other)
    return _map(reader, curve, lambda c: _scaled(c, factor))


def _vector(constant: Any) -> bool:
    """Whether a constant is several numbers, or one that is only known up to an error: a diagonal layer of its own."""
    return isinstance(constant, Tensor) and (constant.numel() > 1 or isinstance(constant, Computed))


def _own(reader: Reader, constant: Tensor) -> Recipe | None:
    return reader.recipe(itself, constant)


def _same_shape(reader: Reader, value: Any, shape: tuple[int, ...]) -> None:
    if reader.shape_of(value) != shape:
        raise reader.unsupported("A constant of another shape would repeat the layer's values.")


@handles("div")
def _div(reader: Reader, a: Arguments, shape: tuple[int, ...]) -> Any:
    if a.get("rounding_mode") is not None:
        raise reader.unsupported("It jumps where it rounds.")
    x, other = a["self"], a["other"]
    found = moments.quotient(reader, x, other, False)
    if found is not None:
        return found
    if isinstance(other, moments.Root) and not isinstance(x, Curve | Deferred) and _constant(reader, x) == 1.0:
        return moments.root(reader, other, -1.0)
    if not isinstance(x, Curve | Deferred) or isinstance(other, Curve | Deferred):
        return _quotient(reader, x, other, shape)
    if _vector(other):
        other = cast(Tensor, other)
        if other.numel() == 1:
            _same_shape(reader, x, shape)
        recipe = reader.recipe(inverse, other)
        parameter = FIXED if recipe is None else None
        return diagonal(reader, x, reciprocal(reader, other), None, shape, parameter, recipe)
    _same_shape(reader, x, shape)
    if _scalar(reader, other):
        recipe = reader.recipe(_one_inverse, cast(Tensor, other))
        return _live_node(reader, x, 1.0 if cast(Tensor, other).is_meta else _inverse(reader, other), 0.0, recipe)
    factor = _inverse(reader, other)
    return _map(reader, x, lambda c: _scaled(c, factor))


def _inverse(reader: Reader, divisor: Any) -> float:
    """One over a number, exactly."""
    number = _constant(reader, divisor)
    if number == 0.0:
        raise reader.unsupported("It divides by zero.")
    try:
        return _number(1 / Fraction(number))
    except _Inexact:
        raise reader.unsupported("The number that it divides by has no reciprocal in floating point.") from None


def _one_inverse(tensor: Tensor) -> Tensor:
    return 1.0 / tensor.reshape(())


def _quotient(reader: Reader, x: Any, y: Any, shape: tuple[int, ...]) -> Curve:
    """t / (1 + |t|) is softsign; no other quotient by a function of the input is known."""
    if isinstance(x, Curve | Deferred) and "softsign" in SCALAR_FUNCTIONS:
        top, below = reader.over_one_source([x, y])
        softened: list[Component] = []
        for one, two in zip(top.components, below.components, strict=False):
            if len(one) != 1 or one[0].function != "identity" or one[0].offset != 0.0:
                break
            if two == _merged((Term("abs", abs(one[0].scale)), Term("identity", 1.0, 0.0, 1.0))):
                softened.append((Term("softsign", 1.0, one[0].scale),))
        if top.source == below.source and len(softened) == len(top.components) == len(below.components):
            return replace(top, components=tuple(softened))
    raise reader.unsupported("A quotient by a function of the input has no Lipschitz constant that is known.")


@handles("add", "sub", "rsub")
def _add(reader: Reader, a: Arguments, shape: tuple[int, ...]) -> Any:
    sign = {"add": 1.0, "sub": -1.0, "rsub": 1.0}[reader.operation.split(".")[0].rstrip("_")]
    x, y = a["self"], a["other"]
    if reader.operation.startswith("rsub"):
        x, y, sign = y, x, -1.0
    sign *= _constant(reader, a.get("alpha", 1))
    for one, two in ((x, y), (y, x)):
        found = moments.shifted(reader, one, two) if sign == 1.0 else None
        if found is not None:
            return found
    x, y = (reader.curve(v) if isinstance(v, Deferred) else v for v in (x, y))
    if isinstance(x, Curve) and isinstance(y, Curve):
        x, y = reader.over_one_source([x, y])
        if x.source != y.source or len(x.components) != len(y.components) or x.axis != y.axis:
            return _sum(reader, x, y, sign, shape)
        pairs = zip(x.components, y.components, strict=True)
        try:
            return replace(x, components=tuple(_merged(c + _scaled(d, sign)) for c, d in pairs))
        except _Inexact:
            return _sum(reader, x, y, sign, shape)
    constant, curve = (y, x) if isinstance(x, Curve) else (x, y)
    scale = 1.0 if isinstance(x, Curve) else sign
    curve = curve if scale == 1.0 else _map(reader, curve, lambda c: _scaled(c, sign))
    factor = sign if isinstance(x, Curve) else 1.0
    if _vector(constant):
        with tracking():
            shifts = cast(Tensor, constant).detach().double() * factor
        if shifts.numel() == 1:
            _same_shape(reader, curve, shape)
        return diagonal(reader, curve, None, shifts, shape)
    _same_shape(reader, curve, shape)
    if _scalar(reader, constant):
        with tracking():
            moved = cast(Tensor, constant).detach().double() * factor
        if isinstance(moved, Computed):
            return diagonal(reader, curve, None, moved, shape)
        return _live_line(reader, curve, None, moved)
    shift = _product(_constant(reader, constant), factor)
    return _map(reader, curve, lambda c: (*c, Term("identity", 1.0, 0.0, shift)))


def _sum(reader: Reader, x: Curve, y: Curve, sign: float, shape: tuple[int, ...]) -> Curve:
    """The sum of two layers, e.g. a residual connection."""
    y = y if sign == 1.0 else _map(reader, y, lambda c: _scaled(c, sign))
    x, y = (broadcast(reader, value, shape) for value in (x, y))
    sources = (reader.materialise(x), reader.materialise(y))
    return reader.append(Add(reader.layer, sources, shape))


# --- choices by sign -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Mask(Deferred):
    """Where ``value`` is above a number (or below it): only a choice between two lines that meet there can use it."""

    value: Curve
    threshold: float
    above: bool

    def materialise(self, reader: Reader) -> Curve:
        """Raises UnsupportedOperation."""
        raise reader.unsupported(
            "A comparison jumps; only where(x > c, a, b) with a = b at c has a Lipschitz constant."
        )


@handles("gt", "ge", "lt", "le")
def _compare(reader: Reader, a: Arguments, shape: tuple[int, ...]) -> Mask:
    above = reader.operation.startswith("g")
    x, y = a["self"], a["other"]
    if not isinstance(x, Curve | Deferred):
        x, y, above = y, x, not above
    if isinstance(y, Curve | Deferred) or _scalar(reader, y) or (isinstance(y, Tensor) and y.numel() != 1):
        raise reader.unsupported("A comparison jumps; only one with a fixed number can be part of a layer.")
    return Mask(reader.curve(x), _constant(reader, y), above)


@handles("where")
def _where(reader: Reader, a: Arguments, shape: tuple[int, ...]) -> Curve:
    """where(t > c, a t + b, d t + e) = v + a relu(t - c) - d relu(c - t), if both are v at c."""
    mask = a["condition"]
    if not isinstance(mask, Mask):
        raise reader.unsupported("It needs a comparison of the layer's values with a number.")
    constants = [a["self"], a["other"]]
    curves = [mask.value, *(v for v in constants if isinstance(v, Curve | Deferred))]
    found = iter(reader.over_one_source(curves))
    value = next(found)
    branches = [next(found) if isinstance(v, Curve | Deferred) else v for v in constants]
    if any(isinstance(b, Curve) and (b.source != value.source or b.axis != value.axis) for b in branches):
        raise reader.unsupported("Its branches are no lines of what is compared.")
    _same_shape(reader, value, shape)
    count = len(value.components)
    columns: list[list[Term]] = []
    for branch in branches if mask.above else branches[::-1]:
        if isinstance(branch, Curve):
            columns.append([_line_of(reader, component) for component in branch.components])
        else:
            if reader.is_live(branch):
                raise reader.unsupported("A value that may change is no part of a piecewise linear function.")
            level = branch
            if isinstance(branch, Tensor) and branch.numel() and bool((branch == branch.reshape(-1)[0]).all()):
                level = branch.reshape(-1)[0]
            columns.append([_line(0.0, _constant(reader, level))] * count)
    if any(len(column) != count for column in columns):
        raise reader.unsupported("Its branches are no lines of what is compared.")
    made: list[Component] = []
    for compared, *lines in zip(value.components, *columns, strict=True):
        line = _line_of(reader, compared)
        if line.scale == 0.0:
            raise reader.unsupported("It compares a constant.")
        kink = (Fraction(mask.threshold) - Fraction(line.offset)) / Fraction(line.scale)
        values = [Fraction(item.scale) * kink + Fraction(item.offset) for item in lines]
        if values[0] != values[1]:
            raise reader.unsupported("It jumps where the comparison changes.")
        # In z, the source: above the kink (below it, for a negative factor) the first line, else the second.
        right, left = lines if line.scale > 0 else lines[::-1]
        try:
            level, place = _number(values[0]), _number(kink)
        except _Inexact:
            raise reader.unsupported("The place where its branches meet is no float64 number.") from None
        terms = (
            Term("identity", 1.0, 0.0, level),
            Term("relu", right.scale, 1.0, -place),
            Term("relu", -left.scale, -1.0, place),
        )
        made.append(_merged(tuple(term for term in terms if term.coefficient != 0.0)))
    return replace(value, components=tuple(made))


def _line_of(reader: Reader, component: Component) -> Term:
    if len(component) != 1 or component[0].function != "identity":
        raise reader.unsupported("It chooses between bends; only between lines can it be read.")
    return component[0]


@handles("pow")
def _pow(reader: Reader, a: Arguments, shape: tuple[int, ...]) -> Any:
    if a["exponent"] == 2:
        return _square(reader, a, shape)
    if isinstance(a["self"], moments.MeanSquare):
        return moments.root(reader, a["self"], float(a["exponent"]))
    raise reader.unsupported("It has no global Lipschitz constant.")


@handles("square")
def _square(reader: Reader, a: Arguments, shape: tuple[int, ...]) -> Any:
    curve = reader.curve(a["self"])
    squares: list[Component] = []
    for component in curve.components:
        if len(component) != 1 or component[0].function != "sin":
            return moments.Square(curve)  # which waits for its mean
        term = component[0]
        try:
            squares.append((replace(term, function="sin_squared", coefficient=_product(*[term.coefficient] * 2)),))
        except _Inexact:
            raise reader.unsupported("The square of its factor is no float64 number.") from None
    return replace(curve, components=tuple(squares))


def apply(reader: Reader, value: Any, function: str, parameters: tuple[float, ...] = ()) -> Curve:
    """``function`` of a curve: each line component becomes a term; anything else is made a node first."""
    curve = reader.curve(value)
    if not all(len(c) == 1 and c[0].function == "identity" for c in curve.components):
        curve = Curve(reader.materialise(curve), (LINE,))
    terms = [component[0] for component in curve.components]
    try:
        made = [
            Term(function, 1.0, _product(t.coefficient, t.scale), _product(t.coefficient, t.offset), parameters)
            for t in terms
        ]
    except _Inexact:
        curve = reader.line(curve)
        made = [Term(function, 1.0, 1.0, 0.0, parameters)]
    return replace(curve, components=tuple((term,) for term in made))


def _plain(function: str) -> Handler:
    def handler(reader: Reader, a: Arguments, shape: tuple[int, ...]) -> Curve:
        return apply(reader, a["self"], function)

    return handler


for _name in ("relu", "abs", "tanh", "sigmoid", "sin", "cos", "silu"):
    assert _name in SCALAR_FUNCTIONS
    HANDLERS[_name] = _plain(_name)


@handles("gelu")
def _gelu(reader: Reader, a: Arguments, shape: tuple[int, ...]) -> Curve:
    if a.get("approximate", "none") != "none":
        raise reader.unsupported("Only the exact GELU (approximate='none') is supported.")
    return apply(reader, a["self"], "gelu")


@handles("leaky_relu")
def _leaky_relu(reader: Reader, a: Arguments, shape: tuple[int, ...]) -> Curve:
    return apply(reader, a["self"], "leaky_relu", (float(a["negative_slope"]),))


@handles("elu")
def _elu(reader: Reader, a: Arguments, shape: tuple[int, ...]) -> Curve:
    if a["scale"] != 1 or a["input_scale"] != 1:
        raise reader.unsupported("Only ELU itself is supported, not its scaled variants.")
    return apply(reader, a["self"], "elu", (float(a["alpha"]),))


@handles("softplus")
def _softplus(reader: Reader, a: Arguments, shape: tuple[int, ...]) -> Curve:
    if a["threshold"] < 20:
        # Beyond the threshold torch goes over to the line, with a jump of log(1 + exp(-threshold)): 2e-9 at 20.
        raise reader.unsupported("A softplus with a threshold below 20 jumps there; it has no Lipschitz constant.")
    return apply(reader, a["self"], "softplus", (float(a["beta"]),))


@handles("clamp", "clip", "hardtanh", "relu6", "clamp_min", "clamp_max")
def _clamp(reader: Reader, a: Arguments, shape: tuple[int, ...]) -> Curve:
    """min(max(t, low), high) = low + relu(t - low) - relu(t - high)."""
    bounds = {"relu6": (0.0, 6.0)}.get(reader.operation.split(".")[0], (a.get("min_val"), a.get("max_val")))
    low, high = (a.get("min"), a.get("max")) if "min" in a else bounds
    if any((isinstance(bound, Tensor) and bound.numel() > 1) or _scalar(reader, bound) for bound in (low, high)):
        raise reader.unsupported("Only fixed numbers can be limits.")
    if reader.operation.split(".")[0] == "clamp_max":
        low, high = None, a["max"]
    low, high = _limit(reader, low, -math.inf), _limit(reader, high, math.inf)
    curve = reader.curve(a["self"])
    if low is not None and high is not None and low > high:
        raise reader.unsupported("Its lower limit is above the upper one.")
    try:
        made = [_limited(reader, component, low, high) for component in curve.components]
    except _Inexact:
        curve = reader.line(curve)
        made = [_limited(reader, LINE, low, high)]
    return replace(curve, components=tuple(made))


def _limit(reader: Reader, bound: Any, infinite: float) -> float | None:
    """A limit; None for the infinite one that limits nothing."""
    return None if bound is None or bound == infinite else _constant(reader, bound)


def _limited(reader: Reader, component: Component, low: float | None, high: float | None) -> Component:
    if len(component) != 1 or component[0].function != "identity":
        raise _Inexact  # no line: it becomes a node first
    (term,) = component
    scale, offset = _product(term.coefficient, term.scale), _product(term.coefficient, term.offset)
    start: Component = (term,)
    if low is not None:
        start = (Term("identity", 1.0, 0.0, low), Term("relu", 1.0, scale, _add_exactly(offset, -low)))
    if high is not None:
        start = (*start, Term("relu", -1.0, scale, _add_exactly(offset, -high)))
    return _merged(start)
