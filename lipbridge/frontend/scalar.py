"""Capture of scalar operations: sums, factors and functions of the registry, collected on a curve.

Factors are fractions (:mod:`lipbridge.rounding.factors`), so products and sums of them are exact. Where one would leave
the
range of float64, or grow very long, what was collected so far becomes a node and a new curve begins on it: the Graph
stays the module's real-number function.
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
from lipbridge.frontend import moments
from lipbridge.frontend.components import Inexact, constant_of, merged, number_of, product, scalar, scaled
from lipbridge.frontend.computed.program import tracking
from lipbridge.frontend.computed.tensor import Computed
from lipbridge.frontend.copies import broadcast
from lipbridge.frontend.diagonal import diagonal, reciprocal
from lipbridge.frontend.functions import plain, square
from lipbridge.frontend.reader import (
    FIXED,
    HANDLERS,
    LINE,
    Arguments,
    Curve,
    Deferred,
    Reader,
    Recipe,
    handles,
    inverse,
    itself,
    one_number,
)
from lipbridge.graph.nodes import Add, Elementwise


def _map(reader: Reader, value: Any, change: Callable[[Component], Component]) -> Curve:
    """``change`` of each component; on a node of its own if the factors would be rounded."""
    curve = reader.curve(value)
    try:
        return replace(curve, components=tuple(merged(change(component)) for component in curve.components))
    except Inexact:
        return replace(reader.line(curve), components=(merged(change(LINE)),))


def _live_line(reader: Reader, value: Any, factor: Tensor | None, shift: Tensor | None) -> Curve:
    """``factor * value + shift`` for scalars of which one may change: a node of its own, computed anew with them."""
    if (factor if factor is not None else torch.zeros(())).is_meta or (shift is not None and shift.is_meta):
        scale, offset = 1.0, 0.0  # on the meta device there is no number to read
    else:
        scale = 1.0 if factor is None else constant_of(reader, factor)
        offset = 0.0 if shift is None else constant_of(reader, shift)
    return _live_node(reader, value, scale, offset, None if factor is None else reader.recipe(one_number, factor))


def _live_node(reader: Reader, value: Any, scale: float, offset: float, recipe: Recipe | None) -> Curve:
    source = reader.materialise(value)
    activation = recognise(((Term("identity", 1.0, scale, offset),),))
    node = Elementwise(reader.layer or activation.name, (source,), reader.nodes[source].shape, activation)
    return reader.append(node, recipe)


@handles("neg")
def _neg(reader: Reader, a: Arguments, shape: tuple[int, ...]) -> Curve:
    return _map(reader, a["self"], lambda c: scaled(c, -1.0))


@handles("mul")
def _mul(reader: Reader, a: Arguments, shape: tuple[int, ...]) -> Any:
    for one, two in ((a["self"], a["other"]), (a["other"], a["self"])):
        found = moments.quotient(reader, one, two, True)
        if found is not None:
            return found
        if isinstance(one, moments.Root) and not isinstance(two, Curve | Deferred) and constant_of(reader, two) == 1.0:
            return one  # 1.0 / t is exported as a reciprocal times 1.0
    x, y = (reader.curve(v) if isinstance(v, Deferred) else v for v in (a["self"], a["other"]))
    if isinstance(x, Curve) and isinstance(y, Curve):
        if x == y:
            return square(reader, {"self": x}, shape)
        raise reader.unsupported("A product of two functions of the input has no Lipschitz constant.")
    curve, other = (x, y) if isinstance(x, Curve) else (y, x)
    if _vector(other):
        other = cast(Tensor, other)
        if other.numel() == 1:
            same_shape(reader, curve, shape)
        return diagonal(reader, curve, other, None, shape, reader.factor_origin(other), _own(reader, other))
    same_shape(reader, curve, shape)
    if scalar(reader, other):
        return _live_line(reader, curve, cast(Tensor, other), None)
    factor = constant_of(reader, other)
    return _map(reader, curve, lambda c: scaled(c, factor))


def _vector(constant: Any) -> bool:
    """Whether a constant is several numbers, or one that is only known up to an error: a diagonal layer of its own."""
    return isinstance(constant, Tensor) and (constant.numel() > 1 or isinstance(constant, Computed))


def _own(reader: Reader, constant: Tensor) -> Recipe | None:
    return reader.recipe(itself, constant)


def same_shape(reader: Reader, value: Any, shape: tuple[int, ...]) -> None:
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
    if isinstance(other, moments.Root) and not isinstance(x, Curve | Deferred) and constant_of(reader, x) == 1.0:
        return moments.root(reader, other, -1.0)
    if not isinstance(x, Curve | Deferred) or isinstance(other, Curve | Deferred):
        return _quotient(reader, x, other, shape)
    if _vector(other):
        other = cast(Tensor, other)
        if other.numel() == 1:
            same_shape(reader, x, shape)
        recipe = reader.recipe(inverse, other)
        parameter = FIXED if recipe is None else None
        return diagonal(reader, x, reciprocal(reader, other), None, shape, parameter, recipe)
    same_shape(reader, x, shape)
    if scalar(reader, other):
        recipe = reader.recipe(_one_inverse, cast(Tensor, other))
        return _live_node(reader, x, 1.0 if cast(Tensor, other).is_meta else _inverse(reader, other), 0.0, recipe)
    factor = _inverse(reader, other)
    return _map(reader, x, lambda c: scaled(c, factor))


def _inverse(reader: Reader, divisor: Any) -> float:
    """One over a number, exactly."""
    number = constant_of(reader, divisor)
    if number == 0.0:
        raise reader.unsupported("It divides by zero.")
    try:
        return number_of(1 / Fraction(number))
    except Inexact:
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
            if two == merged((Term("abs", abs(one[0].scale)), Term("identity", 1.0, 0.0, 1.0))):
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
    sign *= constant_of(reader, a.get("alpha", 1))
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
            return replace(x, components=tuple(merged(c + scaled(d, sign)) for c, d in pairs))
        except Inexact:
            return _sum(reader, x, y, sign, shape)
    constant, curve = (y, x) if isinstance(x, Curve) else (x, y)
    scale = 1.0 if isinstance(x, Curve) else sign
    curve = curve if scale == 1.0 else _map(reader, curve, lambda c: scaled(c, sign))
    factor = sign if isinstance(x, Curve) else 1.0
    if _vector(constant):
        with tracking():
            shifts = cast(Tensor, constant).detach().double() * factor
        if shifts.numel() == 1:
            same_shape(reader, curve, shape)
        return diagonal(reader, curve, None, shifts, shape)
    same_shape(reader, curve, shape)
    if scalar(reader, constant):
        with tracking():
            moved = cast(Tensor, constant).detach().double() * factor
        if isinstance(moved, Computed):
            return diagonal(reader, curve, None, moved, shape)
        return _live_line(reader, curve, None, moved)
    shift = product(constant_of(reader, constant), factor)
    return _map(reader, curve, lambda c: (*c, Term("identity", 1.0, 0.0, shift)))


def _sum(reader: Reader, x: Curve, y: Curve, sign: float, shape: tuple[int, ...]) -> Curve:
    """The sum of two layers, e.g. a residual connection."""
    y = y if sign == 1.0 else _map(reader, y, lambda c: scaled(c, sign))
    x, y = (broadcast(reader, value, shape) for value in (x, y))
    sources = (reader.materialise(x), reader.materialise(y))
    return reader.append(Add(reader.layer, sources, shape))


for _name in ("relu", "abs", "tanh", "sigmoid", "sin", "cos", "silu"):
    assert _name in SCALAR_FUNCTIONS
    HANDLERS[_name] = plain(_name)
