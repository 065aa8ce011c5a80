"""Choices by the sign of a line: comparisons and where."""

from __future__ import annotations

from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Any

from torch import Tensor

from lipbridge.activations.activation import Component, Term
from lipbridge.frontend.activations import leaky_constant, live_leaky
from lipbridge.frontend.builder import LINE, Curve, Deferred, GraphBuilder, Recipe, one_number
from lipbridge.frontend.components import Inexact, constant_of, line_of, may_change, merged, number_of
from lipbridge.frontend.scalar import same_shape
from lipbridge.graph.nodes import Elementwise


@dataclass(frozen=True)
class Mask(Deferred):
    """Where ``value`` is above a number (or below it): only a choice between two lines that meet there can use it."""

    value: Curve
    threshold: float
    above: bool

    def materialise(self, builder: GraphBuilder) -> Curve:
        """Raises UnsupportedOperation."""
        raise builder.unsupported(
            "A comparison jumps; only where(x > c, a, b) with a = b at c has a Lipschitz constant."
        )


def compare(builder: GraphBuilder, x: Any, y: Any, above: bool) -> Mask:
    """Where x is above y (or below it), one of which is a number."""
    if not isinstance(x, Curve | Deferred):
        x, y, above = y, x, not above
    if isinstance(y, Curve | Deferred) or may_change(builder, y) or (isinstance(y, Tensor) and y.numel() != 1):
        raise builder.unsupported("A comparison jumps; only one with a fixed number can be part of a layer.")
    return Mask(builder.curve(x), constant_of(builder, y), above)


def choose(builder: GraphBuilder, mask: Any, first: Any, second: Any, shape: tuple[int, ...]) -> Curve:
    """where(t > c, a t + b, d t + e) = v + a relu(t - c) - d relu(c - t), if both are v at c."""
    leaky = _live_slope(builder, mask, first, second)
    if leaky is not None:
        return leaky
    if not isinstance(mask, Mask):
        raise builder.unsupported("It needs a comparison of the layer's values with a number.")
    constants = [first, second]
    curves = [mask.value, *(v for v in constants if isinstance(v, Curve | Deferred))]
    found = iter(builder.over_one_source(curves))
    value = next(found)
    branches = [next(found) if isinstance(v, Curve | Deferred) else v for v in constants]
    if any(isinstance(b, Curve) and (b.source != value.source or b.axis != value.axis) for b in branches):
        raise builder.unsupported("Its branches are no lines of what is compared.")
    same_shape(builder, value, shape)
    count = len(value.components)
    columns: list[list[Term]] = []
    for branch in branches if mask.above else branches[::-1]:
        if isinstance(branch, Curve):
            columns.append([_line_of(builder, component) for component in branch.components])
        else:
            if builder.is_live(branch):
                raise builder.unsupported("A value that may change is no part of a piecewise linear function.")
            level = branch
            if isinstance(branch, Tensor) and branch.numel() and bool((branch == branch.reshape(-1)[0]).all()):
                level = branch.reshape(-1)[0]
            columns.append([line_of(0.0, constant_of(builder, level))] * count)
    if any(len(column) != count for column in columns):
        raise builder.unsupported("Its branches are no lines of what is compared.")
    made: list[Component] = []
    for compared, *lines in zip(value.components, *columns, strict=True):
        line = _line_of(builder, compared)
        if line.scale == 0.0:
            raise builder.unsupported("It compares a constant.")
        kink = (Fraction(mask.threshold) - Fraction(line.offset)) / Fraction(line.scale)
        values = [Fraction(item.scale) * kink + Fraction(item.offset) for item in lines]
        if values[0] != values[1]:
            raise builder.unsupported("It jumps where the comparison changes.")
        # In z, the source: above the kink (below it, for a negative factor) the first line, else the second.
        right, left = lines if line.scale > 0 else lines[::-1]
        try:
            level, place = number_of(values[0]), number_of(kink)
        except Inexact:
            raise builder.unsupported("The place where its branches meet is no float64 number.") from None
        terms = (
            Term("identity", 1.0, 0.0, level),
            Term("relu", right.scale, 1.0, -place),
            Term("relu", -left.scale, -1.0, place),
        )
        made.append(merged(tuple(term for term in terms if term.coefficient != 0.0)))
    return replace(value, components=tuple(made))


def _line_of(builder: GraphBuilder, component: Component) -> Term:
    if len(component) != 1 or component[0].function != "identity":
        raise builder.unsupported("It chooses between bends; only between lines can it be read.")
    return component[0]


def _live_slope(builder: GraphBuilder, mask: Any, first: Any, second: Any) -> Curve | None:
    """where(t > 0, t, a t) for a number a that may change; None for other choices."""
    if not isinstance(mask, Mask) or mask.threshold != 0.0:
        return None
    kept, other = (first, second) if mask.above else (second, first)
    if kept != mask.value or not isinstance(other, Curve) or other.components != (LINE,):
        return None
    node, recipe = builder.nodes[other.source], builder.recipes.get(other.source)
    if recipe is None or recipe.compute is not one_number or not isinstance(node, Elementwise):
        return None
    source = builder.materialise(mask.value)
    (term,) = node.activation.components[0]
    if node.inputs != (source,):
        return None
    return live_leaky(builder, source, term.coefficient * term.scale, Recipe(recipe.sources, leaky_constant))
