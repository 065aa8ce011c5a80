"""The normal form of a piecewise linear network: units one after the other, and linear maps between them.

With the input x and units h_1, ..., h_U in layers, every Graph of linear nodes and piecewise linear activations is

    z_i = P_i x + b_i + sum_j A_ij h_j,   h_i = g_i(z_i),   f(x) = D x + d + sum_j C_j h_j

where A_ij is not zero only for units j of earlier layers: residual sums, joins and convolutions are in the matrices.
Each g_i is a continuous function of one number with finitely many pieces. A polyactivation whose components are one
such function up to lines, as (relu t, relu -t) and (t, |t|) are, is one unit and lines; others are several units.
Where two linear maps meet whose product would be rounded, the value between them is held by units g(t) = t, so that all
numbers are those of the network (but for those that it computes itself, as a BatchNorm's scale).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction

import torch
from torch import Tensor

from lipbridge.activations.piecewise_linear import Hinge, Pieces
from lipbridge.branch_and_bound.columns import Columns, through
from lipbridge.errors import NumericalFailure, UnsupportedProblem
from lipbridge.graph.evaluation import joined
from lipbridge.graph.graph import Graph, has_errors, without_dead_nodes
from lipbridge.graph.nodes import Elementwise, Node, Normalize, Softmax
from lipbridge.lowering.selections import lower_selections
from lipbridge.rounding.uncertain import known

#: Entries of the largest set of columns that is built (256 MB).
LARGEST = 2**25


@dataclass(frozen=True)
class Function:
    """A continuous piecewise linear function: ``slopes[i] t + offsets[i]`` on piece i, between ``kinks``; exact."""

    kinks: tuple[Fraction, ...]
    slopes: tuple[Fraction, ...]
    offsets: tuple[Fraction, ...]


IDENTITY = Function((), (Fraction(1),), (Fraction(0),))


@dataclass(frozen=True, eq=False)
class Layer:
    """Units ``start`` to ``stop``; ``node`` is the activation in the lowered Graph, ``function`` what they compute."""

    start: int
    stop: int
    node: int
    function: Function


@dataclass(frozen=True, eq=False)
class Cascade:
    """A network in the normal form, float64 on the CPU; each ``*_error`` bounds its matrix's entries' errors.

    Attributes:
        graph: the Graph without selections that the layers' nodes are of.
        layers: of units, in order.
        A, P, b: ``(U, U)``, ``(U, n)`` and ``(U,)``: what the units read.
        C, D: ``(m, U)`` and ``(m, n)``: what the outputs read (their constant is of no interest).
    """

    graph: Graph
    layers: tuple[Layer, ...]
    A: Tensor
    P: Tensor
    b: Tensor
    C: Tensor
    D: Tensor
    A_error: Tensor
    P_error: Tensor
    b_error: Tensor
    C_error: Tensor
    D_error: Tensor

    @property
    def units(self) -> int:
        """U."""
        return len(self.b)

    def function(self, unit: int) -> Function:
        """What a unit computes."""
        return next(layer.function for layer in self.layers if layer.start <= unit < layer.stop)

    @property
    def exact(self) -> bool:
        """Whether all numbers are those of the network itself."""
        parts = (self.A_error, self.P_error, self.b_error, self.C_error, self.D_error)
        return not any(bool(part.any()) for part in parts)


def cascade_of(graph: Graph) -> Cascade:
    """The normal form of a Graph.

    Raises:
        UnsupportedProblem: for a node that is not piecewise linear, or a network that is too large, in words.
        NumericalFailure: for weights that are not finite.
    """
    graph = without_dead_nodes(lower_selections(graph.to("cpu")))
    return _Reader(graph).run()


class _Reader:
    """One pass; every node's value as columns of x, the constant 1, and the units so far."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.n = math.prod(graph.input_shape)
        self.layers: list[Layer] = []
        self.rows: list[Columns] = []  # of the layers' arguments, (variables, units)

    @property
    def count(self) -> int:
        """Variables so far."""
        return self.n + 1 + (self.layers[-1].stop if self.layers else 0)

    def run(self) -> Cascade:
        self.fits("input", (self.n + 1) * self.n)
        unit = torch.eye(self.n + 1, self.n, dtype=torch.float64).reshape(self.n + 1, *self.graph.input_shape)
        last = self.graph.fold(Columns(unit, torch.zeros_like(unit)), self.read)
        U = self.layers[-1].stop if self.layers else 0
        count = self.n + 1 + U
        output = self.flat(last, count)
        none = torch.zeros(count, 0, dtype=torch.float64)
        rows = [self.flat(row, count) for row in self.rows] or [Columns(none, none)]
        z = Columns(torch.cat([r.value for r in rows], 1), torch.cat([r.error for r in rows], 1))
        for part in (z.value, z.error, output.value, output.error):
            if not bool(torch.isfinite(part).all()):
                raise NumericalFailure("The weights hold NaN or infinite entries, or overflow where layers meet.")
        n = self.n
        parts = [(x[n + 1 :].T, x[:n].T, x[n]) for x in (z.value, z.error, output.value, output.error)]
        (A, P, b), (Ae, Pe, be), (C, D, _), (Ce, De, _) = [[t.contiguous() for t in p] for p in parts]
        return Cascade(self.graph, tuple(self.layers), A, P, b, C, D, Ae, Pe, be, Ce, De)

    def flat(self, x: Columns, count: int) -> Columns:
        x = x.padded(count)
        return Columns(x.value.flatten(1), x.error.flatten(1))

    def fits(self, name: str, entries: int) -> None:
        if entries > LARGEST:
            raise UnsupportedProblem(
                f"Layer `{name}` as a function of all inputs and units has {entries} coefficients, at most {LARGEST} "
                "are built: the network is too large for the exact constant."
            )

    def read(self, index: int, node: Node, inputs: list[Columns]) -> Columns:
        if isinstance(node, Softmax | Normalize):
            raise UnsupportedProblem(f"Layer `{node.name}` ({type(node).__name__}) is not piecewise linear.")
        self.fits(node.name, self.count * math.prod(node.shape))
        if isinstance(node, Elementwise):
            return self.activated(index, node, inputs[0])
        found = through(node, inputs, self.n)
        given = has_errors(node) or any(bool(x.error.any()) for x in inputs)
        if not given and bool(found.error.any()):  # what would be rounded is kept apart
            inputs = [self.unit(index, node, IDENTITY, x) for x in inputs]
            self.fits(node.name, self.count * math.prod(node.shape))
            found = through(node, inputs, self.n)
        return found

    def activated(self, index: int, node: Elementwise, z: Columns) -> Columns:
        hinges: list[tuple[Hinge, ...]] = []
        for component in node.activation.components:
            found = [term.hinge for term in component]
            if any(hinge is None for hinge in found):
                name = node.activation.name
                raise UnsupportedProblem(f"Layer `{node.name}` ({name}) is not piecewise linear.")
            hinges.append(tuple(hinge for hinge in found if hinge is not None))
        slopes = Pieces(tuple(hinges)).slopes
        basis: list[tuple[int, Columns]] = []  # a component, and the columns of its function
        parts: list[Columns] = []
        for k, row in enumerate(slopes):
            made = next((p for b, h in basis if (p := _as_line_of(slopes[b], row, hinges, b, k, z, h, self.n))), None)
            if made is None and len(set(row)) == 1:
                made = _line(row[0], _value(hinges[k], Fraction(0)), z, self.n)
            if made is None:
                made = self.unit(index, node, function_of(hinges[k]), z)
                basis.append((k, made))
            parts.append(made)
        parts = [part.padded(self.count) for part in parts]
        value, error = joined(node, [p.value for p in parts]), joined(node, [p.error for p in parts])
        return Columns(value, error)

    def unit(self, index: int, node: Node, function: Function, z: Columns) -> Columns:
        """New units with the arguments z; their columns."""
        size = z.value[0].numel()
        self.fits(node.name, (self.count + size) * size)
        start = self.layers[-1].stop if self.layers else 0
        self.rows.append(z)
        before = self.count
        self.layers.append(Layer(start, start + size, index, function))
        value = torch.zeros(before + size, size, dtype=torch.float64)
        value[before:] = torch.eye(size, dtype=torch.float64)
        value = value.reshape(before + size, *z.value.shape[1:])
        return Columns(value, torch.zeros_like(value))


def function_of(hinges: tuple[Hinge, ...]) -> Function:
    """A sum of hinges, with pieces that continue one another as one."""
    pieces = Pieces((hinges,))
    kinks, (slopes,) = pieces.kinks, pieces.slopes
    kept = [i for i in range(len(kinks)) if slopes[i] != slopes[i + 1]]
    kinks, slopes = [kinks[i] for i in kept], [slopes[0], *(slopes[i + 1] for i in kept)]
    places = [*kinks[:1], *kinks] or [Fraction(0)]
    offsets = [_value(hinges, t) - s * t for s, t in zip(slopes, places, strict=True)]
    return Function(tuple(kinks), tuple(slopes), tuple(offsets))


def _value(hinges: tuple[Hinge, ...], t: Fraction) -> Fraction:
    return sum((hinge.value(t) for hinge in hinges), Fraction(0))


def _line(slope: Fraction, offset: Fraction, z: Columns, constant: int) -> Columns:
    found = z.scaled(known(slope))
    if offset == 0:
        return found
    number, error = known(offset)
    ones = torch.ones_like(z.value[0])
    return found.shifted(constant, number * ones, error * ones)


def _as_line_of(
    base: list[Fraction],
    row: list[Fraction],
    hinges: list[tuple[Hinge, ...]],
    b: int,
    k: int,
    z: Columns,
    h: Columns,
    constant: int,
) -> Columns | None:
    """Component k as ``alpha z + beta h + o`` for the function h of component b; None if it is none."""
    i = next(i for i in range(len(base) - 1) if base[i] != base[i + 1])
    beta = (row[i + 1] - row[i]) / (base[i + 1] - base[i])
    alpha = row[i] - beta * base[i]
    if beta == 0 or any(s != alpha + beta * t for s, t in zip(row, base, strict=True)):
        return None
    zero = Fraction(0)
    offset = _value(hinges[k], zero) - beta * _value(hinges[b], zero)
    return _line(alpha, offset, z, constant).plus(h.scaled(known(beta)))


__all__ = ["Cascade", "Function", "Layer", "cascade_of", "function_of"]
