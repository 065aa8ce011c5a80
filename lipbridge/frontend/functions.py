"""Scalar functions of a layer's values: powers, activations, limits."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

from lipbridge.activations.activation import Component, Term
from lipbridge.frontend import moments
from lipbridge.frontend.builder import LINE, Curve, GraphBuilder
from lipbridge.frontend.components import Inexact, add_exactly, constant_of, merged, product
from lipbridge.frontend.polynomials import cube_of
from lipbridge.frontend.self_gated import fixed, tanh_of


def power(builder: GraphBuilder, value: Any, exponent: Any) -> Any:
    """A power of a value: a square or a cube that waits, a sine's square, or the root of a mean square."""
    found = cube_of(builder, value, fixed(builder, exponent))
    if found is not None:
        return found
    if exponent == 2:
        return square(builder, value)
    if isinstance(value, moments.MeanSquare):
        return moments.root(builder, value, float(exponent))
    raise builder.unsupported("It has no global Lipschitz constant.")


def square(builder: GraphBuilder, value: Any) -> Any:
    """The square of a value: of a sine a function, of others a step of a normalisation."""
    curve = builder.curve(value)
    squares: list[Component] = []
    for component in curve.components:
        if len(component) != 1 or component[0].function != "sin":
            return moments.Square(curve)  # which waits for its mean
        term = component[0]
        try:
            squares.append((replace(term, function="sin_squared", coefficient=product(*[term.coefficient] * 2)),))
        except Inexact:
            raise builder.unsupported("The square of its factor is no float64 number.") from None
    return replace(curve, components=tuple(squares))


def apply(builder: GraphBuilder, value: Any, function: str, parameters: tuple[float, ...] = ()) -> Curve:
    """``function`` of a curve: each line component becomes a term; anything else is made a node first."""
    curve = builder.curve(value)
    if not all(len(c) == 1 and c[0].function == "identity" for c in curve.components):
        curve = Curve(builder.materialise(curve), (LINE,))
    terms = [component[0] for component in curve.components]
    try:
        made = [
            Term(function, 1.0, product(t.coefficient, t.scale), product(t.coefficient, t.offset), parameters)
            for t in terms
        ]
    except Inexact:
        curve = builder.line(curve)
        made = [Term(function, 1.0, 1.0, 0.0, parameters)]
    return replace(curve, components=tuple((term,) for term in made))


def tanh(builder: GraphBuilder, value: Any) -> Any:
    """Of a curve, or of a cube that waits for GELU's approximation."""
    found = tanh_of(value)
    return apply(builder, value, "tanh") if found is None else found


def leaky_relu(builder: GraphBuilder, value: Any, slope: float) -> Curve:
    """max(t, 0) + slope * min(t, 0)."""
    return apply(builder, value, "leaky_relu", (slope,))


def softplus(builder: GraphBuilder, value: Any, beta: float, threshold: float) -> Curve:
    """log(1 + exp(beta t)) / beta, and t where beta t is beyond the threshold."""
    if threshold < 20:
        # Beyond the threshold torch goes over to the line, with a jump of log(1 + exp(-threshold)): 2e-9 at 20.
        raise builder.unsupported("A softplus with a threshold below 20 jumps there; it has no Lipschitz constant.")
    return apply(builder, value, "softplus", (float(beta),))


def clamp(builder: GraphBuilder, value: Any, low: Any, high: Any) -> Curve:
    """min(max(t, low), high) = low + relu(t - low) - relu(t - high); a limit of None limits nothing."""
    low, high = _limit(builder, low, -math.inf), _limit(builder, high, math.inf)
    curve = builder.curve(value)
    if low is not None and high is not None and low > high:
        raise builder.unsupported("Its lower limit is above the upper one.")
    try:
        made = [_limited(builder, component, low, high) for component in curve.components]
    except Inexact:
        curve = builder.line(curve)
        made = [_limited(builder, LINE, low, high)]
    return replace(curve, components=tuple(made))


def _limit(builder: GraphBuilder, bound: Any, infinite: float) -> float | None:
    """A limit; None for the infinite one that limits nothing."""
    return None if bound is None or bound == infinite else constant_of(builder, bound)


def _limited(builder: GraphBuilder, component: Component, low: float | None, high: float | None) -> Component:
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
