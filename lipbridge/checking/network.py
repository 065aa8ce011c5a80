"""Piecewise linear networks in fractions: all nodes' values as affine functions of the input and of what is uncertain.

A component of a unit whose slope is not known is ``h = c z + w`` with a new symbol w. Of its gradient only
``|w| <= r |z|`` is known, entry by entry; what is known is multiplied out exactly.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from lipbridge.activations.activation import pieces_of
from lipbridge.activations.piecewise_linear import Hinge
from lipbridge.errors import NumericalFailure, UnsupportedProblem
from lipbridge.graph.graph import Graph, has_errors
from lipbridge.graph.nodes import Add, Concat, Dense, Elementwise, Gather, Node, Reshape, block_axis

#: Arrays of fractions.
Exact = NDArray[Any]
#: Products of fractions for one layer at most: some ten seconds.
LARGEST = 5_000_000


@dataclass(frozen=True)
class Line:
    """``slope t + offset``."""

    slope: Fraction
    offset: Fraction


@dataclass(frozen=True)
class Function:
    """What an activation makes of an argument: for each component a line on each piece, between ``kinks``."""

    kinks: tuple[Fraction, ...]
    components: tuple[tuple[Line, ...], ...]


@dataclass(frozen=True, eq=False)
class Symbol:
    """An uncertain slope: of a unit, with half the length of its slopes' interval and its argument's row."""

    unit: int
    radius: Fraction
    argument: Exact


@dataclass(frozen=True, eq=False)
class Forms:
    """On a part: ``arguments`` ``(units, n + 1 + S)``, ``output`` ``(m, n + 1 + S)`` and the S ``symbols``."""

    n: int
    arguments: list[Exact]
    output: Exact
    symbols: list[Symbol]

    def affine(self, unit: int) -> bool:
        """Whether a unit's argument is an affine function of the input on the part."""
        return not any(self.arguments[unit][self.n + 1 :])

    @property
    def known(self) -> bool:
        """Whether the Jacobian is known."""
        return not self.output[:, self.n + 1 :].any()

    @property
    def jacobian(self) -> Exact:
        """``(m, n)``: the Jacobian if it is known, else bounds of the magnitudes of all Jacobians' entries."""
        J = self.output[:, : self.n]
        if self.known:
            return J
        reach = self.reach
        return abs(J) + abs(self.output[:, self.n + 1 :]) @ reach

    @property
    def reach(self) -> Exact:
        """``(S, n)``: bounds of the magnitudes of the symbols' gradients."""
        reach = zeros(len(self.symbols), self.n)
        for s, symbol in enumerate(self.symbols):
            z = symbol.argument
            size: Exact = abs(z[: self.n])
            if s:
                size = size + abs(z[self.n + 1 : self.n + 1 + s]) @ reach[:s]
            reach[s] = size * symbol.radius
        return reach


class Network:
    """A Graph of dense layers, sums, joins, copies and piecewise linear activations, with its numbers as fractions.

    Attributes:
        units: the function of each unit.

    Raises:
        UnsupportedProblem: for another node, a large layer, or weights that the network computes and rounds.
        NumericalFailure: for weights that are not finite.
    """

    def __init__(self, graph: Graph) -> None:
        self.graph = graph.to("cpu")
        self.n = math.prod(graph.input_shape)
        self.units: list[Function] = []
        self.weights: dict[int, tuple[Exact, Exact | None]] = {}
        for index, node in enumerate(self.graph.nodes[1:], start=1):
            if has_errors(node):
                raise UnsupportedProblem(f"The checker takes no weights that are rounded, as those of `{node.name}`.")
            if isinstance(node, Elementwise):
                function = _function(node)
                size = math.prod(self.graph.nodes[node.inputs[0]].shape)
                self.units += [function] * size
            elif isinstance(node, Dense):
                bias = None if node.bias is None else fractions(node.bias)
                self.weights[index] = fractions(node.weight), bias
                if node.weight.numel() * (self.n + len(self.units)) > LARGEST:
                    raise UnsupportedProblem(f"The checker's fractions are too slow for `{node.name}`, a large layer.")
            elif not isinstance(node, Add | Concat | Gather | Reshape):
                words = f"The checker knows no nodes of type {type(node).__name__}, as `{node.name}` is."
                raise UnsupportedProblem(words)

    @property
    def last(self) -> tuple[int, ...]:
        """The number of each unit's last piece."""
        return tuple(len(unit.kinks) for unit in self.units)

    def forms(self, low: Sequence[int], high: Sequence[int]) -> Forms:
        """All values where units are on pieces ``low`` to ``high``, one number for each unit."""
        count = sum(
            len({line.slope for line in lines[a : b + 1]}) > 1
            for f, a, b in zip(self.units, low, high, strict=True)
            for lines in f.components
        )
        made = Forms(self.n, [], zeros(0, 0), [])

        def step(index: int, node: Node, inputs: list[Exact]) -> Exact:
            if isinstance(node, Elementwise):
                return _activate(node, inputs[0], self.units, low, high, made)
            return self._linear(index, node, inputs)

        x = zeros(self.n, self.n + 1 + count)
        for i in range(self.n):
            x[i, i] = Fraction(1)
        output = self.graph.fold(x.reshape(*self.graph.input_shape, -1), step)
        return Forms(self.n, made.arguments, output.reshape(-1, self.n + 1 + count), made.symbols)

    def _linear(self, index: int, node: Node, inputs: list[Exact]) -> Exact:
        x, columns = inputs[0], inputs[0].shape[-1]
        if isinstance(node, Dense):
            weight, bias = self.weights[index]
            rows = x.reshape(-1, weight.shape[1], columns)
            made = np.stack([weight @ part for part in rows])
            if bias is not None:
                made[:, :, self.n] = made[:, :, self.n] + bias
            return made.reshape(*node.shape, columns)
        if isinstance(node, Add):
            return sum(inputs[1:], x)
        if isinstance(node, Concat):
            return np.concatenate(inputs, axis=node.axis if node.axis >= 0 else node.axis - 1)
        if isinstance(node, Gather):
            flat = np.concatenate([x.reshape(-1, columns), zeros(1, columns)])
            return flat[node.index.numpy()].reshape(*node.shape, columns)
        assert isinstance(node, Reshape)
        if node.axes is not None:
            x = x.transpose(*node.axes, len(node.axes))
        return x.reshape(*node.shape, columns)

    def at(self, x: Sequence[Fraction]) -> tuple[tuple[int, ...] | None, Exact]:
        """The piece of each unit at a point ``(n,)``, None if one is at a kink, and the value ``(m,)``."""
        found: list[int] = []
        kinked = False

        def step(index: int, node: Node, inputs: list[Exact]) -> Exact:
            nonlocal kinked
            if not isinstance(node, Elementwise):
                return self._linear(index, node, inputs)
            flat = inputs[0].reshape(-1, self.n + 1)
            blocks: list[list[Exact]] = [[] for _ in range(node.activation.width)]
            for row in flat:
                f, t = self.units[len(found)], row[self.n]
                kinked = kinked or t in f.kinks
                found.append(sum(kink < t for kink in f.kinks))
                for lines, block in zip(f.components, blocks, strict=True):
                    block.append(_on(lines[found[-1]], row, self.n))
            return _blocks(node, inputs[0], blocks)

        start = zeros(self.n, self.n + 1)
        start[:, self.n] = list(x)
        output = self.graph.fold(start.reshape(*self.graph.input_shape, -1), step)
        return None if kinked else tuple(found), output.reshape(-1, self.n + 1)[:, self.n]


def _activate(
    node: Elementwise, x: Exact, units: list[Function], low: Sequence[int], high: Sequence[int], made: Forms
) -> Exact:
    columns = x.shape[-1]
    flat = x.reshape(-1, columns)
    first = len(made.arguments)
    made.arguments.extend(flat)
    blocks: list[list[Exact]] = []
    for k in range(node.activation.width):
        block: list[Exact] = []
        for unit, z in enumerate(flat, start=first):
            lines = units[unit].components[k][low[unit] : high[unit] + 1]
            slopes = [line.slope for line in lines]
            least, most = min(slopes), max(slopes)
            if least == most:
                block.append(_on(lines[0], z, made.n))
                continue
            row: Exact = (least + most) / 2 * z
            place = made.n + 1 + len(made.symbols)
            row[place] = row[place] + 1
            made.symbols.append(Symbol(unit, (most - least) / 2, z))
            block.append(row)
        blocks.append(block)
    return _blocks(node, x, blocks)


def _on(line: Line, z: Exact, constant: int) -> Exact:
    row = line.slope * z
    row[constant] = row[constant] + line.offset
    return row


def _blocks(node: Elementwise, x: Exact, blocks: list[list[Exact]]) -> Exact:
    parts = [np.stack(block).reshape(x.shape) for block in blocks]
    return np.concatenate(parts, axis=block_axis(node))


def _function(node: Elementwise) -> Function:
    pieces = pieces_of(node.activation)
    if pieces is None:
        raise UnsupportedProblem(f"The checker takes piecewise linear activations alone, not that of `{node.name}`.")
    kinks = tuple(pieces.kinks)
    places = [kinks[0] - 1, *((a + b) / 2 for a, b in pairwise(kinks)), kinks[-1] + 1] if kinks else [Fraction(1)]
    return Function(kinks, tuple(tuple(_at(hinges, t) for t in places) for hinges in pieces.functions))


def _at(hinges: tuple[Hinge, ...], t: Fraction) -> Line:
    slope = sum((hinge.slope(t) for hinge in hinges), Fraction(0))
    return Line(slope, sum((hinge.value(t) for hinge in hinges), Fraction(0)) - slope * t)


def fractions(tensor: Tensor) -> Exact:
    """The entries of a tensor, exactly.

    Raises:
        NumericalFailure: for NaN or infinity.
    """
    flat = cast(list[float], cast(Any, tensor.detach().cpu().flatten()).tolist())
    if not all(map(math.isfinite, flat)):
        raise NumericalFailure("The checker needs finite numbers. Found NaN or infinity.")
    made = np.empty(len(flat), dtype=object)
    made[:] = [Fraction(value) for value in flat]
    return made.reshape(tuple(tensor.shape))


def zeros(*shape: int) -> Exact:
    """Zeros as fractions."""
    made = np.empty(shape, dtype=object)
    made.fill(Fraction(0))
    return made


__all__ = ["Exact", "Forms", "Function", "Line", "Network", "Symbol", "fractions", "zeros"]
