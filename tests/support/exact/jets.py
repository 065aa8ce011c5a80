"""A piecewise linear Graph on one of its pieces, in exact arithmetic.

A piece is met from a place t on the line a + t d, a moment later, and beside the line if the line runs along a border:
at ``a + t d + e d + e^2 e_1 + e^3 e_2 + ...`` for e above zero and as small as need be. Each node is affine there, and
is held as a jet: its affine function at a (value), along d, and its Jacobian's columns. All of these are exact, however
odd t is; t only enters where a sign decides.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field
from fractions import Fraction
from functools import singledispatchmethod
from typing import Any

import numpy as np

from lipbridge.activations.activation import Term
from lipbridge.activations.scalar_functions import SCALAR_FUNCTIONS
from lipbridge.graph.graph import Graph
from lipbridge.graph.nodes import (
    Add,
    Concat,
    Conv,
    ConvTranspose,
    Dense,
    Elementwise,
    Gather,
    GroupSort,
    Input,
    MaxPool,
    Node,
    Reshape,
    block_axis,
)
from tests.support.exact.convolution import convolved, spread
from tests.support.exact.rationals import Ints, Rationals, aligned, common_unit, concatenate, exact, product, zeros


class NotPiecewiseLinear(Exception):
    """The Graph has a node that is not piecewise linear."""


@dataclass(frozen=True, eq=False)
class ExactLinear(Node):
    """``matrix x + shift`` on the flattened input, of rational numbers: ``(m, n)`` and ``(m, 1)``."""

    matrix: Rationals
    shift: Rationals


class Stored:
    """A Graph with its weights as exact numbers, read once."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.weights: dict[int, tuple[Rationals, Rationals | None]] = {}
        for index, node in enumerate(graph.nodes):
            if isinstance(node, Dense | Conv | ConvTranspose):
                self.weights[index] = (exact(node.weight), None if node.bias is None else exact(node.bias))


@dataclass
class Piece:
    """The Graph's piece behind ``t`` (None: at minus infinity) on a line; ``value`` is the output's jet.

    ``end`` is where the next piece begins at the latest, None if there is none: a place where something in the network
    may switch, if only from one line to the same.
    """

    stored: Stored
    base: Rationals
    direction: Rationals
    t: Fraction | None
    end: Fraction | None = None
    value: Rationals = field(init=False)

    def __post_init__(self) -> None:
        graph = self.stored.graph
        values: list[Rationals] = []
        self.index = 0
        for self.index, node in enumerate(graph.nodes):
            values.append(self._node(node, [values[i] for i in node.inputs]).reduced())
            if values[-1].shape[:-1] != node.shape:
                raise AssertionError(f"{node} has the shape {values[-1].shape[:-1]}")
        self.value = values[-1].reshape(-1, values[-1].shape[-1])

    @property
    def jacobian(self) -> Rationals:
        """``(outputs, inputs)``."""
        return self.value[:, 2:]

    @property
    def slope(self) -> Rationals:
        """The derivative along the line, ``(outputs,)``."""
        return self.value[:, 1]

    # --- signs and places where they change ---------------------------------------------------------------------------

    def _signs(self, jets: Ints) -> Ints:
        """The sign of each jet ``(..., columns)`` on the piece: that of its first number that is not zero."""
        value, slope = jets[..., 0], jets[..., 1]
        first = [-slope, value] if self.t is None else [value * self.t.denominator + slope * self.t.numerator, slope]
        found = _sign(first[0])
        for numbers in (first[1], *np.moveaxis(jets[..., 2:], -1, 0)):
            if found.all():
                break
            found = np.where(found == 0, _sign(numbers), found)
        return found

    def _switch(self, jets: Ints, signs: Ints) -> None:
        """Remember where a jet, of known sign now, first reaches zero."""
        value, slope = jets[..., 0], jets[..., 1]
        for v, s in zip(value[_sign(slope) * signs < 0], slope[_sign(slope) * signs < 0], strict=True):
            place = Fraction(-v, s)
            if self.end is None or place < self.end:
                self.end = place

    def _decide(self, jets: Ints) -> Ints:
        signs = self._signs(jets)
        self._switch(jets, signs)
        return signs

    # --- nodes --------------------------------------------------------------------------------------------------------

    @singledispatchmethod
    def _node(self, node: Node, inputs: list[Rationals]) -> Rationals:
        raise NotPiecewiseLinear(type(node).__name__)

    @_node.register
    def _(self, node: Input, inputs: list[Rationals]) -> Rationals:
        n = self.base.ints.size
        unit = Rationals(np.eye(n, dtype=object))
        columns = [self.base.reshape(n, 1), self.direction.reshape(n, 1), unit]
        return concatenate(columns, axis=1).reshape(*node.shape, n + 2)

    @_node.register
    def _(self, node: Dense, inputs: list[Rationals]) -> Rationals:
        weight, bias = self.stored.weights[self.index]
        x = inputs[0]
        columns = np.moveaxis(x.ints, -2, 0)
        y = product(weight, Rationals(columns.reshape(columns.shape[0], -1), x.unit))
        found = np.moveaxis(y.ints.reshape(len(y.ints), *columns.shape[1:]), 0, -2)
        return _shifted(Rationals(found, y.unit), bias, axis=-2)

    @_node.register
    def _(self, node: Conv, inputs: list[Rationals]) -> Rationals:
        weight, bias = self.stored.weights[self.index]
        y = convolved(inputs[0], weight, node.stride, node.padding, node.dilation, node.groups, node.padding_mode)
        return _shifted(y, bias, axis=0)

    @_node.register
    def _(self, node: ConvTranspose, inputs: list[Rationals]) -> Rationals:
        weight, bias = self.stored.weights[self.index]
        return _shifted(spread(inputs[0], weight, node.stride, node.padding, node.dilation, node.groups), bias, axis=0)

    @_node.register
    def _(self, node: ExactLinear, inputs: list[Rationals]) -> Rationals:
        columns = inputs[0].shape[-1]
        y = product(node.matrix, inputs[0].reshape(-1, columns))
        blank = zeros(len(y.ints), columns - 1)
        return y.plus(concatenate([node.shift, blank], axis=1)).reshape(*node.shape, columns)

    @_node.register
    def _(self, node: Gather, inputs: list[Rationals]) -> Rationals:
        columns = inputs[0].shape[-1]
        flat = concatenate([inputs[0].reshape(-1, columns), zeros(1, columns)], axis=0)
        return flat[node.index.numpy()].reshape(*node.shape, columns)

    @_node.register
    def _(self, node: Concat, inputs: list[Rationals]) -> Rationals:
        return concatenate(inputs, node.axis % len(node.shape))

    @_node.register
    def _(self, node: Add, inputs: list[Rationals]) -> Rationals:
        total = inputs[0]
        for value in inputs[1:]:
            total = total.plus(value)
        return total

    @_node.register
    def _(self, node: Reshape, inputs: list[Rationals]) -> Rationals:
        x = inputs[0].ints
        if node.axes is not None:
            x = x.transpose(*node.axes, x.ndim - 1)
        return Rationals(x.reshape(*node.shape, x.shape[-1]), inputs[0].unit)

    @_node.register
    def _(self, node: Elementwise, inputs: list[Rationals]) -> Rationals:
        parts: list[Rationals] = []
        for component in node.activation.components:
            total = self._term(component[0], inputs[0])
            for term in component[1:]:
                total = total.plus(self._term(term, inputs[0]))
            parts.append(total)
        return concatenate(parts, block_axis(node))

    def _term(self, term: Term, x: Rationals) -> Rationals:
        sides = SCALAR_FUNCTIONS[term.function].sides(term.parameters)
        if sides is None:
            raise NotPiecewiseLinear(term.function)
        inner = _constant_added(x.times(term.scale), term.offset)
        left, right = (inner.times(side).times(term.coefficient) for side in sides)
        if sides[0] == sides[1]:
            return right
        signs = self._decide(inner.ints)
        unit = common_unit(left.unit, right.unit)
        return Rationals(np.where((signs > 0)[..., None], right.at(unit), left.at(unit)), unit)

    @_node.register
    def _(self, node: GroupSort, inputs: list[Rationals]) -> Rationals:
        x = inputs[0]
        rows = x.ints.reshape(-1, node.group, *x.shape[1:]).copy()
        for last in range(node.group - 1, 0, -1):
            for i in range(last):  # the larger of two neighbours moves up
                a, b = rows[:, i].copy(), rows[:, i + 1].copy()
                swap = (self._decide(a - b) > 0)[..., None]
                rows[:, i], rows[:, i + 1] = np.where(swap, b, a), np.where(swap, a, b)
        return Rationals(rows.reshape(x.shape), x.unit)

    @_node.register
    def _(self, node: MaxPool, inputs: list[Rationals]) -> Rationals:
        x = inputs[0].ints
        found = np.empty((*node.shape, x.shape[-1]), dtype=object)
        for place in itertools.product(*map(range, node.shape[1:])):
            window = [x[(slice(None), *at)] for at in _window(node, place, x.shape[1:-1])]
            best = window[0]
            for other in window[1:]:
                best = np.where((self._signs(other - best) > 0)[:, None], other, best)
            for other in window:
                difference = best - other
                self._switch(difference, self._signs(difference))
            found[(slice(None), *place)] = best
        return Rationals(found, inputs[0].unit)


def _window(node: MaxPool, place: tuple[int, ...], space: tuple[int, ...]) -> list[tuple[int, ...]]:
    """The inputs that an output is the largest of; padding is no number."""
    axes: list[list[int]] = []
    for i, n, k, s, p, d in zip(place, space, node.kernel, node.stride, node.padding, node.dilation, strict=True):
        taps = (i * s - p + j * d for j in range(k))
        axes.append([tap for tap in taps if 0 <= tap < n])
    return list(itertools.product(*axes))


def _sign(numbers: Any) -> Ints:
    return (numbers > 0).astype(np.int64) - (numbers < 0).astype(np.int64)


def _shifted(x: Rationals, bias: Rationals | None, axis: int) -> Rationals:
    """With a bias on the values, along an axis of the jets' shape."""
    if bias is None:
        return x
    unit = common_unit(x.unit, bias.unit)
    ints, shape = x.at(unit).copy(), [1] * (x.ints.ndim - 1)
    shape[axis if axis >= 0 else axis + 1] = -1
    ints[..., 0] += bias.at(unit).reshape(shape)
    return Rationals(ints, unit)


def _constant_added(x: Rationals, constant: float) -> Rationals:
    if constant == 0.0:
        return x
    ints, shift, unit = aligned(x, constant)
    ints = ints.copy()
    ints[..., 0] += shift
    return Rationals(ints, unit)
