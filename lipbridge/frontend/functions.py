"""Scalar functions of a layer's values: powers, activations, limits."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

from torch import Tensor

from lipbridge.activations.activation import Component, Term
from lipbridge.frontend import moments
from lipbridge.frontend.components import Inexact, add_exactly, constant_of, merged, product, scalar
from lipbridge.frontend.reader import (
    LINE,
    Arguments,
    Curve,
    Handler,
    Reader,
    handles,
)


@handles("pow")
def _pow(reader: Reader, a: Arguments, shape: tuple[int, ...]) -> Any:
    if a["exponent"] == 2:
        return square(reader, a, shape)
    if isinstance(a["self"], moments.MeanSquare):
        return moments.root(reader, a["self"], float(a["exponent"]))
    raise reader.unsupported("It has no global Lipschitz constant.")


@handles("square")
def square(reader: Reader, a: Arguments, shape: tuple[int, ...]) -> Any:
    curve = reader.curve(a["self"])
    squares: list[Component] = []
    for component in curve.components:
        if len(component) != 1 or component[0].function != "sin":
            return moments.Square(curve)  # which waits for its mean
        term = component[0]
        try:
            squares.append((replace(term, function="sin_squared", coefficient=product(*[term.coefficient] * 2)),))
        except Inexact:
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
            Term(function, 1.0, product(t.coefficient, t.scale), product(t.coefficient, t.offset), parameters)
            for t in terms
        ]
    except Inexact:
        curve = reader.line(curve)
        made = [Term(function, 1.0, 1.0, 0.0, parameters)]
    return replace(curve, components=tuple((term,) for term in made))


def plain(function: str) -> Handler:
    def handler(reader: Reader, a: Arguments, shape: tuple[int, ...]) -> Curve:
        return apply(reader, a["self"], function)

    return handler


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
    if any((isinstance(bound, Tensor) and bound.numel() > 1) or scalar(reader, bound) for bound in (low, high)):
        raise reader.unsupported("Only fixed numbers can be limits.")
    if reader.operation.split(".")[0] == "clamp_max":
        low, high = None, a["max"]
    low, high = _limit(reader, low, -math.inf), _limit(reader, high, math.inf)
    curve = reader.curve(a["self"])
    if low is not None and high is not None and low > high:
        raise reader.unsupported("Its lower limit is above the upper one.")
    try:
        made = [_limited(reader, component, low, high) for component in curve.components]
    except Inexact:
        curve = reader.line(curve)
        made = [_limited(reader, LINE, low, high)]
    return replace(curve, components=tuple(made))


def _limit(reader: Reader, bound: Any, infinite: float) -> float | None:
    """A limit; None for the infinite one that limits nothing."""
    return None if bound is None or bound == infinite else constant_of(reader, bound)


def _limited(reader: Reader, component: Component, low: float | None, high: float | None) -> Component:
    if len(component) != 1 or component[0].function != "identity":
        raise Inexact  # no line: it becomes a node first
    (term,) = component
    scale, offset = product(term.coefficient, term.scale), product(term.coefficient, term.offset)
    start: Component = (term,)
    if low is not None:
        start = (Term("identity", 1.0, 0.0, low), Term("relu", 1.0, scale, add_exactly(offset, -low)))
    if high is not None:
        start = (*start, Term("relu", -1.0, scale, add_exactly(offset, -high)))
    return merged(start)
