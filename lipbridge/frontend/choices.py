"""Choices by the sign of a line: comparisons and where."""

from __future__ import annotations

from dataclasses import dataclass, replace
from fractions import Fraction

from torch import Tensor

from lipbridge.activations.activation import Component, Term
from lipbridge.frontend.components import Inexact, constant_of, line_of, merged, number_of, scalar
from lipbridge.frontend.reader import (
    Arguments,
    Curve,
    Deferred,
    Reader,
    handles,
)
from lipbridge.frontend.scalar import same_shape


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
    if isinstance(y, Curve | Deferred) or scalar(reader, y) or (isinstance(y, Tensor) and y.numel() != 1):
        raise reader.unsupported("A comparison jumps; only one with a fixed number can be part of a layer.")
    return Mask(reader.curve(x), constant_of(reader, y), above)


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
    same_shape(reader, value, shape)
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
            columns.append([line_of(0.0, constant_of(reader, level))] * count)
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
            level, place = number_of(values[0]), number_of(kink)
        except Inexact:
            raise reader.unsupported("The place where its branches meet is no float64 number.") from None
        terms = (
            Term("identity", 1.0, 0.0, level),
            Term("relu", right.scale, 1.0, -place),
            Term("relu", -left.scale, -1.0, place),
        )
        made.append(merged(tuple(term for term in terms if term.coefficient != 0.0)))
    return replace(value, components=tuple(made))


def _line_of(reader: Reader, component: Component) -> Term:
    if len(component) != 1 or component[0].function != "identity":
        raise reader.unsupported("It chooses between bends; only between lines can it be read.")
    return component[0]
