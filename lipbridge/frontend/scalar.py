"""Scalar operations: sums, factors and functions of the registry, collected on a curve.

Factors are fractions (:mod:`lipbridge.rounding.factors`), so products and sums of them are exact. Where one would leave
the range of float64, or grow very long, what was collected so far becomes a node and a new curve begins on it: the
Graph stays the network's real-number function.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction
from typing import Any, cast

import torch
from torch import Tensor

from lipbridge.activations.activation import Component, Term
from lipbridge.activations.registry import recognise
from lipbridge.activations.scalar_functions import SCALAR_FUNCTIONS
from lipbridge.frontend import moments, self_gated
from lipbridge.frontend.builder import (
    FIXED,
    LINE,
    Curve,
    Deferred,
    GraphBuilder,
    Recipe,
    inverse,
    itself,
    one_number,
)
from lipbridge.frontend.components import Inexact, constant_of, may_change, merged, number_of, product, scaled
from lipbridge.frontend.computed.program import tracking
from lipbridge.frontend.computed.tensor import Computed
from lipbridge.frontend.copies import broadcast
from lipbridge.frontend.diagonal import diagonal, reciprocal
from lipbridge.frontend.functions import square
from lipbridge.graph.nodes import Add, Elementwise


def _map(builder: GraphBuilder, value: Any, change: Callable[[Component], Component]) -> Curve:
    """``change`` of each component; on a node of its own if the factors would be rounded."""
    curve = builder.curve(value)
    try:
        return replace(curve, components=tuple(merged(change(component)) for component in curve.components))
    except Inexact:
        return replace(builder.line(curve), components=(merged(change(LINE)),))


def _live_line(builder: GraphBuilder, value: Any, factor: Tensor | None, shift: Tensor | None) -> Curve:
    """``factor * value + shift`` for scalars of which one may change: a node of its own, computed anew with them."""
    if (factor if factor is not None else torch.zeros(())).is_meta or (shift is not None and shift.is_meta):
        scale, offset = 1.0, 0.0  # on the meta device there is no number to read
    else:
        scale = 1.0 if factor is None else constant_of(builder, factor)
        offset = 0.0 if shift is None else constant_of(builder, shift)
    return _live_node(builder, value, scale, offset, None if factor is None else builder.recipe(one_number, factor))


def _live_node(builder: GraphBuilder, value: Any, scale: float, offset: float, recipe: Recipe | None) -> Curve:
    source = builder.materialise(value)
    activation = recognise(((Term("identity", 1.0, scale, offset),),))
    node = Elementwise(builder.layer or activation.name, (source,), builder.nodes[source].shape, activation)
    return builder.append(node, recipe)


def negate(builder: GraphBuilder, value: Any) -> Any:
    """``-value``."""
    found = self_gated.minus(builder, value)
    return _map(builder, value, lambda c: scaled(c, -1.0)) if found is None else found


def multiply(builder: GraphBuilder, x: Any, y: Any, shape: tuple[int, ...]) -> Any:
    """A value times a constant, or a product of two values that is one activation, or a step towards one."""
    waiting = self_gated.times(builder, x, y)
    if waiting is not None:
        return waiting
    for one, two in ((x, y), (y, x)):
        found = moments.quotient(builder, one, two, True)
        if found is not None:
            return found
        if isinstance(one, moments.Root) and not isinstance(two, Curve | Deferred) and constant_of(builder, two) == 1.0:
            return one  # 1.0 / t is exported as a reciprocal times 1.0
    x, y = (builder.curve(v) if isinstance(v, Deferred) else v for v in (x, y))
    if isinstance(x, Curve) and isinstance(y, Curve):
        if x == y:
            return square(builder, x)
        raise builder.unsupported("A product of two functions of the input has no Lipschitz constant.")
    curve, other = (x, y) if isinstance(x, Curve) else (y, x)
    if _vector(other):
        other = cast(Tensor, other)
        if other.numel() == 1:
            same_shape(builder, curve, shape)
        return diagonal(builder, curve, other, None, shape, builder.factor_origin(other), _own(builder, other))
    same_shape(builder, curve, shape)
    if may_change(builder, other):
        return _live_line(builder, curve, cast(Tensor, other), None)
    factor = constant_of(builder, other)
    return _map(builder, curve, lambda c: scaled(c, factor))


def _vector(constant: Any) -> bool:
    """Whether a constant is several numbers, or one that is only known up to an error: a diagonal layer of its own."""
    return isinstance(constant, Tensor) and (constant.numel() > 1 or isinstance(constant, Computed))


def _own(builder: GraphBuilder, constant: Tensor) -> Recipe | None:
    return builder.recipe(itself, constant)


def same_shape(builder: GraphBuilder, value: Any, shape: tuple[int, ...]) -> None:
    if builder.shape_of(value) != shape:
        raise builder.unsupported("A constant of another shape would repeat the layer's values.")


def divide(builder: GraphBuilder, x: Any, other: Any, shape: tuple[int, ...]) -> Any:
    """A value over a constant, or a quotient of two values that is one activation, or a step of a normalisation."""
    waiting = self_gated.over(builder, x, other)
    if waiting is not None:
        return waiting
    found = moments.quotient(builder, x, other, False)
    if found is not None:
        return found
    if isinstance(other, moments.Root) and not isinstance(x, Curve | Deferred) and constant_of(builder, x) == 1.0:
        return moments.root(builder, other, -1.0)
    if not isinstance(x, Curve | Deferred) or isinstance(other, Curve | Deferred):
        return _quotient(builder, x, other, shape)
    if _vector(other):
        other = cast(Tensor, other)
        if other.numel() == 1:
            same_shape(builder, x, shape)
        recipe = builder.recipe(inverse, other)
        parameter = FIXED if recipe is None else None
        return diagonal(builder, x, reciprocal(builder, other), None, shape, parameter, recipe)
    same_shape(builder, x, shape)
    if may_change(builder, other):
        recipe = builder.recipe(_one_inverse, cast(Tensor, other))
        return _live_node(builder, x, 1.0 if cast(Tensor, other).is_meta else _inverse(builder, other), 0.0, recipe)
    factor = _inverse(builder, other)
    return _map(builder, x, lambda c: scaled(c, factor))


def _inverse(builder: GraphBuilder, divisor: Any) -> float:
    """One over a number, exactly."""
    number = constant_of(builder, divisor)
    if number == 0.0:
        raise builder.unsupported("It divides by zero.")
    try:
        return number_of(1 / Fraction(number))
    except Inexact:
        raise builder.unsupported("The number that it divides by has no reciprocal in floating point.") from None


def _one_inverse(tensor: Tensor) -> Tensor:
    return 1.0 / tensor.reshape(())


def _quotient(builder: GraphBuilder, x: Any, y: Any, shape: tuple[int, ...]) -> Curve:
    """t / (1 + |t|) is softsign; no other quotient by a function of the input is known."""
    if isinstance(x, Curve | Deferred) and "softsign" in SCALAR_FUNCTIONS:
        top, below = builder.over_one_source([x, y])
        softened: list[Component] = []
        for one, two in zip(top.components, below.components, strict=False):
            if len(one) != 1 or one[0].function != "identity" or one[0].offset != 0.0:
                break
            if two == merged((Term("abs", abs(one[0].scale)), Term("identity", 1.0, 0.0, 1.0))):
                softened.append((Term("softsign", 1.0, one[0].scale),))
        if top.source == below.source and len(softened) == len(top.components) == len(below.components):
            return replace(top, components=tuple(softened))
    raise builder.unsupported("A quotient by a function of the input has no Lipschitz constant that is known.")


def add(builder: GraphBuilder, x: Any, y: Any, shape: tuple[int, ...], sign: float = 1.0, alpha: Any = 1) -> Any:
    """``x + sign * alpha * y`` for a sign of 1 or -1; one of the two may be a constant."""
    waiting = self_gated.plus(builder, x, y, alpha, sign)
    if waiting is not None:
        return waiting
    sign *= constant_of(builder, alpha)
    for one, two in ((x, y), (y, x)):
        found = moments.shifted(builder, one, two) if sign == 1.0 else None
        if found is not None:
            return found
    x, y = (builder.curve(v) if isinstance(v, Deferred) else v for v in (x, y))
    if isinstance(x, Curve) and isinstance(y, Curve):
        x, y = builder.over_one_source([x, y])
        if x.source != y.source or len(x.components) != len(y.components) or x.axis != y.axis:
            return _sum(builder, x, y, sign, shape)
        pairs = zip(x.components, y.components, strict=True)
        try:
            return replace(x, components=tuple(merged(c + scaled(d, sign)) for c, d in pairs))
        except Inexact:
            return _sum(builder, x, y, sign, shape)
    constant, curve = (y, x) if isinstance(x, Curve) else (x, y)
    scale = 1.0 if isinstance(x, Curve) else sign
    curve = curve if scale == 1.0 else _map(builder, curve, lambda c: scaled(c, sign))
    factor = sign if isinstance(x, Curve) else 1.0
    if _vector(constant):
        with tracking():
            shifts = cast(Tensor, constant).detach().double() * factor
        if shifts.numel() == 1:
            same_shape(builder, curve, shape)
        return diagonal(builder, curve, None, shifts, shape)
    same_shape(builder, curve, shape)
    if may_change(builder, constant):
        with tracking():
            moved = cast(Tensor, constant).detach().double() * factor
        if isinstance(moved, Computed):
            return diagonal(builder, curve, None, moved, shape)
        return _live_line(builder, curve, None, moved)
    shift = product(constant_of(builder, constant), factor)
    return _map(builder, curve, lambda c: (*c, Term("identity", 1.0, 0.0, shift)))


def _sum(builder: GraphBuilder, x: Curve, y: Curve, sign: float, shape: tuple[int, ...]) -> Curve:
    """The sum of two layers, e.g. a residual connection."""
    y = y if sign == 1.0 else _map(builder, y, lambda c: scaled(c, sign))
    x, y = (broadcast(builder, value, shape) for value in (x, y))
    sources = (builder.materialise(x), builder.materialise(y))
    return builder.append(Add(builder.layer, sources, shape))
