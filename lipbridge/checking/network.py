"""Piecewise linear networks in fractions: all nodes' values as affine functions of the input and of what is uncertain.

A component of a unit whose slope is not known is ``h = c z + w`` with a new symbol w. Of its gradient only
``|w| <= r |z|`` is known, entry by entry; what is known is multiplied out exactly.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lipbridge.activations.activation import pieces_of
from lipbridge.activations.piecewise_linear import Hinge
from lipbridge.errors import NumericalFailure, UnsupportedProblem
from lipbridge.graph.graph import Graph, has_errors
from lipbridge.graph.nodes import (
    Add,
    Concat,
    Conv,
    Dense,
    Elementwise,
    Gather,
    GroupSort,
    MaxPool,
    Node,
    Reshape,
    block_axis,
)
from lipbridge.graph.windows import window_places

#: Arrays of fractions.
Exact = NDArray[Any]
#: Products of fractions for one layer at most: some ten seconds.
LARGEST = 5_000_000
#: Names of paddings in numpy.
PADDING: dict[str, Any] = {"circular": "wrap", "reflect": "reflect", "replicate": "edge"}


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


RELU = Function((Fraction(0),), ((Line(Fraction(0), Fraction(0)), Line(Fraction(1), Fraction(0))),))


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
    """A Graph of linear layers and piecewise linear activations, with its numbers as fractions.

    Known are dense layers, convolutions, sums, joins, copies, activations, and sorting and max pooling: comparators
    ``max(a, b) = b + relu(a - b)``, each a unit.

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
            elif isinstance(node, MaxPool | GroupSort):
                self.units += [RELU] * sum(1 for _ in self._comparators(node))
            elif isinstance(node, Dense | Conv):
                bias = None if node.bias is None else fractions(node.bias)
                self.weights[index] = fractions(node.weight), bias
                times = math.prod(node.shape[1:]) if isinstance(node, Conv) else 1
                if times * node.weight.numel() * (self.n + len(self.units)) > LARGEST:
                    raise UnsupportedProblem(f"The checker's fractions are too slow for `{node.name}`, a large layer.")
                if isinstance(node, Conv) and min((side for pad in node.padding for side in pad), default=0) < 0:
                    raise UnsupportedProblem(f"The checker takes no negative padding, as that of `{node.name}`.")
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
        arguments: list[Exact] = []
        symbols: list[Symbol] = []

        def component(lines: Sequence[Line], unit: int, z: Exact) -> Exact:
            slopes = [line.slope for line in lines]
            least, most = min(slopes), max(slopes)
            if least == most:
                return _on(lines[0], z, self.n)
            row: Exact = (least + most) / 2 * z
            place = self.n + 1 + len(symbols)
            row[place] = row[place] + 1
            symbols.append(Symbol(unit, (most - least) / 2, z))
            return row

        def apply(z: Exact) -> list[Exact]:
            unit = len(arguments)
            arguments.append(z)
            held = slice(low[unit], high[unit] + 1)
            return [component(lines[held], unit, z) for lines in self.units[unit].components]

        x = zeros(self.n, self.n + 1 + count)
        for i in range(self.n):
            x[i, i] = Fraction(1)
        return Forms(self.n, arguments, self._run(x, apply), symbols)

    def _run(self, x: Exact, apply: Callable[[Exact], list[Exact]]) -> Exact:
        """The output's rows, from the input's rows; ``apply`` makes a unit's components of its argument's row."""
        columns = x.shape[1]

        def step(index: int, node: Node, inputs: list[Exact]) -> Exact:
            if isinstance(node, Elementwise):
                own = [apply(z) for z in inputs[0].reshape(-1, columns)]
                return _blocks(node, inputs[0], [list(block) for block in zip(*own, strict=True)])
            if isinstance(node, MaxPool | GroupSort):
                rows = list(inputs[0].reshape(-1, columns))
                for first, second, smaller, larger in self._comparators(node):
                    a, b = rows[first], rows[second]
                    above = apply(a - b)[0]
                    rows += [zeros(columns)] * (max(smaller, larger) + 1 - len(rows))
                    rows[smaller], rows[larger] = a - above, b + above
                return np.stack([rows[place] for place in self._selected(node)]).reshape(*node.shape, columns)
            return self._linear(index, node, inputs)

        return self.graph.fold(x.reshape(*self.graph.input_shape, columns), step).reshape(-1, columns)

    def _comparators(self, node: MaxPool | GroupSort) -> Iterable[tuple[int, int, int, int]]:
        """The places of two rows, and the places where the smaller and the larger one are put, one after the other.

        A group is sorted in its places by exchanges of neighbours; a window's maximum is put behind all rows.
        """
        if isinstance(node, GroupSort):
            for group in _groups(node):
                for end in range(len(group) - 1, 0, -1):
                    for one, other in pairwise(group[: end + 1]):
                        yield one, other, one, other
            return
        place = math.prod(self.graph.nodes[node.inputs[0]].shape)
        for held in self._windows(node):
            waiting = list(held)
            while len(waiting) > 1:
                first, second, *waiting = waiting
                yield first, second, place, place + 1
                waiting.append(place + 1)
                place += 2

    def _selected(self, node: MaxPool | GroupSort) -> list[int]:
        """The places of the output's rows after the comparators."""
        if isinstance(node, GroupSort):
            return list(range(math.prod(node.shape)))
        place = math.prod(self.graph.nodes[node.inputs[0]].shape)
        found: list[int] = []
        for held in self._windows(node):
            place += 2 * (len(held) - 1)
            found.append(held[0] if len(held) == 1 else place - 1)
        return found

    def _windows(self, node: MaxPool) -> list[list[int]]:
        """The places of the entries of every window."""
        channels, *space = self.graph.nodes[node.inputs[0]].shape
        own = window_places(node, space, torch.device("cpu")).numpy()
        return [
            [int(p) + channel * math.prod(space) for p in row if p >= 0] for channel in range(channels) for row in own
        ]

    def _linear(self, index: int, node: Node, inputs: list[Exact]) -> Exact:
        x, columns = inputs[0], inputs[0].shape[-1]
        if isinstance(node, Dense):
            weight, bias = self.weights[index]
            rows = x.reshape(-1, weight.shape[1], columns)
            made = np.stack([weight @ part for part in rows])
            if bias is not None:
                made[:, :, self.n] = made[:, :, self.n] + bias
            return made.reshape(*node.shape, columns)
        if isinstance(node, Conv):
            return _convolved(node, *self.weights[index], x, self.n)
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

        def apply(z: Exact) -> list[Exact]:
            nonlocal kinked
            f, t = self.units[len(found)], z[self.n]
            kinked = kinked or t in f.kinks
            found.append(sum(kink < t for kink in f.kinks))
            return [_on(lines[found[-1]], z, self.n) for lines in f.components]

        start = zeros(self.n, self.n + 1)
        start[:, self.n] = list(x)
        output = self._run(start, apply)
        return None if kinked else tuple(found), output[:, self.n]


def _groups(node: GroupSort) -> list[list[int]]:
    """The places of each group's entries: neighbours along axis 0."""
    places = np.arange(math.prod(node.shape)).reshape(-1, node.group, math.prod(node.shape[1:]))
    return [list(map(int, block[:, i])) for block in places for i in range(block.shape[1])]


def _convolved(node: Conv, weight: Exact, bias: Exact | None, x: Exact, constant: int) -> Exact:
    space, columns = x.shape[1:-1], x.shape[-1]
    places = np.arange(math.prod(space)).reshape(space)
    if any(side for pad in node.padding for side in pad):
        if node.padding_mode == "zeros":
            places = np.pad(places, node.padding, constant_values=-1)
        else:
            places = np.pad(places, node.padding, mode=PADDING[node.padding_mode])
    taps = [
        places[
            tuple(
                slice(tap * dilation, tap * dilation + (length - 1) * stride + 1, stride)
                for tap, dilation, stride, length in zip(at, node.dilation, node.stride, node.shape[1:], strict=True)
            )
        ].reshape(-1)
        for at in np.ndindex(*node.kernel)
    ]
    rows = np.concatenate([x.reshape(x.shape[0], -1, columns), zeros(x.shape[0], 1, columns)], axis=1)  # -1 is the last
    held, made = weight.shape[1], weight.shape[0] // node.groups
    out = zeros(weight.shape[0], len(taps[0]), columns)
    for group in range(node.groups):
        own = slice(group * made, (group + 1) * made)
        kernel = weight[own].reshape(made, -1)
        for position, index in enumerate(np.stack(taps, axis=1)):
            patch = rows[group * held : (group + 1) * held][:, index]
            out[own, position] = kernel @ patch.reshape(-1, columns)
    if bias is not None:
        out[:, :, constant] = out[:, :, constant] + bias[:, None]
    return out.reshape(*node.shape, columns)


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
