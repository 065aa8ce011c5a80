"""Components of activations in exact arithmetic: scaled, moved and merged without a rounding."""

from __future__ import annotations

import math
from dataclasses import replace
from fractions import Fraction
from typing import Any

from torch import Tensor

from lipbridge.activations.activation import Component, Term
from lipbridge.frontend.builder import (
    GraphBuilder,
)
from lipbridge.frontend.computed.tensor import Computed
from lipbridge.rounding.factors import Factor, number

#: Slopes below would lose bits, or vanish, and those above overflow.
_SMALLEST, _LARGEST = 2.0**-900, 2.0**900


#: Denominators and numerators of more bits are not carried on.
_LONGEST = 4096


class Inexact(Exception):
    """A product or sum of factors that leaves the range of float64, or takes too many digits."""


def number_of(exact: Fraction) -> float:
    """The factor as a float that is exact, or stands for the exact fraction."""
    value = number(exact) if abs(exact) < Fraction(_LARGEST) else math.inf
    if not isinstance(value, Factor) and math.isfinite(value):
        return value
    if (
        not _SMALLEST < abs(value) < _LARGEST
        or max(exact.numerator.bit_length(), exact.denominator.bit_length()) > _LONGEST
    ):
        raise Inexact
    return value


def product(a: float, b: float) -> float:
    if a in (0.0, 1.0, -1.0) or b in (0.0, 1.0, -1.0):
        return a * b
    return number_of(Fraction(a) * Fraction(b))


def add_exactly(a: float, b: float) -> float:
    return a + b if a == 0.0 or b == 0.0 else number_of(Fraction(a) + Fraction(b))


def scaled(component: Component, factor: float) -> Component:
    # A line keeps its factor as the inner scale, so that relu(-t) and -t are each spelt in one way.
    return tuple(
        line_of(*(product(product(term.coefficient, t), factor) for t in (term.scale, term.offset)))
        if term.function == "identity"
        else replace(term, coefficient=product(term.coefficient, factor))
        for term in component
    )


def line_of(scale: float, offset: float) -> Term:
    return Term("identity", 1.0, scale, offset)


def _canonical(term: Term) -> Term:
    """The term in one spelling, if that rounds nothing."""
    try:
        product(term.coefficient, term.scale)
        product(term.coefficient, term.offset)
    except Inexact:
        return term
    return term.canonical


def merged(component: Component) -> Component:
    """Sum equal functions and lines; drop terms that vanish."""
    scale, offset = 0.0, 0.0
    others: dict[Term, float] = {}
    for term in component:
        if term.function == "identity":
            scale = add_exactly(scale, product(term.coefficient, term.scale))
            offset = add_exactly(offset, product(term.coefficient, term.offset))
        else:
            term = _canonical(term)
            if abs(term.coefficient * term.scale) < _SMALLEST and term.coefficient and term.scale:
                raise Inexact  # the product of the two, the term's slope, must not underflow
            key = replace(term, coefficient=1.0)
            others[key] = add_exactly(others.get(key, 0.0), term.coefficient)
    terms = [replace(key, coefficient=value) for key, value in others.items() if value != 0.0]
    if scale != 0.0 or offset != 0.0 or not terms:
        terms.append(Term("identity", 1.0, scale, offset))
    return tuple(sorted(terms))


def constant_of(builder: GraphBuilder, value: Any) -> float:
    if isinstance(value, Computed):
        raise builder.unsupported("The number is computed and known up to rounding alone; store it.")
    if isinstance(value, Tensor) and value.numel() == 1:
        value = value.detach().double().cpu().item()
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise builder.unsupported("Only scalar constants can be combined with a layer's values.")
    if not math.isfinite(value):
        raise builder.unsupported(f"The number {value} is no factor or shift of a layer.")
    return float(value)


def may_change(builder: GraphBuilder, value: Any) -> bool:
    """Whether a constant is one number that may change."""
    return isinstance(value, Tensor) and value.numel() == 1 and builder.is_live(value)
