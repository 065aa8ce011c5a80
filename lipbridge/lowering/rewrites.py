"""Lowering: rewrites of a Graph that keep its function, for tools that know fewer operations.

A piecewise linear activation with its kink at zero is, in every component, g_k(t) = r_k relu(t) - l_k relu(-t) + o_k.
So ``relu([W; -W] x + [b; -b])`` holds everything it needs, and the r, l and o go into the weights that come next:
|Wx + b| = [I I] relu([W; -W] x + [b; -b]). A kink elsewhere, as in relu(s t + o), is a row with a shifted bias. Both
factors act block by block with one number a block (:class:`_Blocks`), which keeps the merging cheap and lets it
account for every rounding.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from fractions import Fraction
from typing import Any, cast

import torch
from torch import Tensor

from lipbridge.activations.activation import Activation, Term, derive
from lipbridge.activations.registry import activation
from lipbridge.activations.scalar_functions import SCALAR_FUNCTIONS
from lipbridge.errors import NumericalFailure, UnsupportedOperation
from lipbridge.graph.graph import Graph, with_axes, without_dead_nodes
from lipbridge.graph.nodes import Conv, ConvTranspose, Dense, Elementwise, Node, Reshape, block_axis
from lipbridge.rounding.factors import number
from lipbridge.rounding.scalars import TINY, UNIT


@dataclass(frozen=True, eq=False)
class Lowering:
    """A rewritten Graph, and by how much its weights were rounded.

    Attributes:
        graph: the Graph after the rewrite.
        rounding: by layer, the largest error of a weight relative to the layer's largest weight. Empty if every
            weight is exact, and then so is the function that the new Graph stands for.
        errors: by the place of a dense layer, how far each of its weights may be off, proved (of a lowering to dense
            layers; layers whose weights are exact are left out).
        origins: by the place of an activation, the old Graph's that it is: its argument is the flattened value of that
            one's source (of a lowering to dense layers).
    """

    graph: Graph
    rounding: Mapping[str, float]
    errors: Mapping[int, Tensor] = field(default_factory=lambda: {})
    origins: Mapping[int, int] = field(default_factory=lambda: {})

    @property
    def exact(self) -> bool:
        """Whether no weight was rounded."""
        return not self.rounding


def lower_to_relu(graph: Graph, *, exact: bool = False) -> Graph:
    """The same function with ``relu`` as its only activation; see :func:`relu_lowering` for the rounding.

    Law: ``lower_to_relu(g)(x)`` equals ``g(x)`` up to float64 rounding, a number an input with an axis of length one;
    abs, crelu and relu are lowered exactly.
    """
    return relu_lowering(graph, exact=exact).graph


def relu_lowering(graph: Graph, *, exact: bool = False, readable: torch.dtype | None = None) -> Lowering:
    """Write every piecewise linear activation as relu rows merged into the weights around it.

    A unit takes one row for each of relu(t) and relu(-t) that any component needs, whatever the number of
    components (and one for each kink elsewhere, and side of it); relu itself is left alone. Scalings and shifts
    vanish into a neighbouring dense layer or convolution. Where an activation has none beside it that can take it in,
    one is put in: on ``(channels, *space)`` a convolution with a kernel of one tap.

    Args:
        graph: any Graph; nodes other than ``Elementwise``, ``Dense`` and ``Conv`` pass through.
        exact: put in a layer of its own wherever merging would round a weight.
        readable: keep what a reader needs to find the activations again in weights of this dtype: merge only where
            merged weights of it are of it too and hold the activation for all to see (abs and CReLU do), and never
            into a layer that others read or read from. As with ``exact``, but for factors and shifts of all units
            alike, and slopes that are no doubles, which are rounded.

    Raises:
        UnsupportedOperation: naming the layer of an activation that is not piecewise linear;
            with ``exact`` also where a slope is no double.
        NumericalFailure: if merged weights overflow.
    """
    return _Rewriter(with_axes(graph), hinges=True, exact=exact or readable is not None, readable=readable).run()


def fold_scalings(graph: Graph, *, exact: bool = False) -> Lowering:
    """Merge every ``Elementwise`` that is affine, t -> s t + o, into a dense layer beside it; leave all others.

    Law: the function is the same up to float64 rounding. (A number an input gets an axis of length one.)
    """
    return _Rewriter(with_axes(graph), hinges=False, exact=exact).run()


# --- block maps ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Blocks:
    """Output block k is ``sum_j factors[k][j] * input block j + offsets[k]``; all blocks have one size."""

    factors: tuple[tuple[Fraction, ...], ...]
    offsets: tuple[Fraction, ...]

    @property
    def sources(self) -> int:
        return len(self.factors[0])

    @property
    def identity(self) -> bool:
        return self.factors == ((Fraction(1),),) and self.offsets == (Fraction(0),)

    @property
    def scalar(self) -> bool:
        """Whether it is one line for one block: a factor and a shift, which hide no activation."""
        return len(self.factors) == self.sources == 1

    @property
    def visible(self) -> bool:
        """Whether merged weights show what was merged: they repeat the old ones, or keep them apart."""
        if self.scalar:
            return True
        one = len(self.factors) == 1 and self.factors[0][0] == 1
        apart = all(row.count(_ONE) == 1 and row.count(_ZERO) == len(row) - 1 for row in self.factors)
        return (one or (apart and len(self.factors) == self.sources)) and not any(self.offsets)

    @property
    def double(self) -> bool:
        """Whether every factor and offset is a double."""
        numbers = [*self.offsets, *(factor for row in self.factors for factor in row)]
        return all(Fraction(float(number)) == number for number in numbers)

    def after(self, first: _Blocks | None) -> _Blocks:
        """This map, which has one source, applied to all blocks of ``first`` together."""
        if first is None:
            return self
        outer = [(row[0], offset) for row, offset in zip(self.factors, self.offsets, strict=True)]
        inner = list(zip(first.factors, first.offsets, strict=True))
        factors = tuple(tuple(a * b for b in row) for a, _ in outer for row, _ in inner)
        return _Blocks(factors, tuple(a * offset + shift for a, shift in outer for _, offset in inner))


_Row = tuple[Fraction, Fraction]  # (s, o) stands for relu(s t + o)
_ZERO, _ONE = Fraction(0), Fraction(1)


@dataclass
class _Piece:
    """A component, exactly: the sum of ``hinges[s, o] * relu(s t + o)``, ``slope * t`` and ``constant``."""

    hinges: dict[_Row, Fraction]
    slope: Fraction = _ZERO
    constant: Fraction = _ZERO

    def add(self, row: _Row, factor: Fraction) -> None:
        scale, offset = row
        if offset == 0:  # relu(s t) = |s| relu(+-t), so that all terms with their kink at zero share rows
            row, factor = (scale / abs(scale), offset), factor * abs(scale)
        self.hinges[row] = self.hinges.get(row, _ZERO) + factor


def _pieces(act: Activation) -> list[_Piece] | None:
    """The components of a piecewise linear activation, or None for any other."""
    pieces: list[_Piece] = []
    for component in act.components:
        piece = _Piece({})
        for term in component:
            sides = SCALAR_FUNCTIONS[term.function].sides(term.parameters)
            if sides is None:
                return None
            outer, scale, offset = Fraction(term.coefficient), Fraction(term.scale), Fraction(term.offset)
            left, right = Fraction(sides[0]), Fraction(sides[1])
            if left == right or scale == 0:
                side = right if offset >= 0 else left
                piece.slope += outer * side * scale
                piece.constant += outer * side * offset
            else:
                piece.add((scale, offset), outer * right)
                piece.add((-scale, -offset), -outer * left)
        pieces.append(piece)
    return pieces


def _without_slopes(pieces: list[_Piece]) -> None:
    """Write each slope * t by a pair of rows: s t + o = relu(s t + o) - relu(-s t - o), with s a power of two."""
    rows = {row for piece in pieces for row in piece.hinges}
    usable = [(_ONE, _ZERO), *sorted(row for row in rows if row[1] != 0 and row[0] > 0 and _power_of_two(row[0]))]
    scale, offset = min(usable, key=lambda row: len({row, (-row[0], -row[1])} - rows))
    for piece in pieces:
        if piece.slope != 0:
            factor = piece.slope / scale
            piece.add((scale, offset), factor)
            piece.add((-scale, -offset), -factor)
            piece.slope, piece.constant = _ZERO, piece.constant - factor * offset


def _power_of_two(number: Fraction) -> bool:
    return abs(math.frexp(float(number))[0]) == 0.5 and Fraction(float(number)) == number


def _hinges(pieces: list[_Piece]) -> tuple[_Blocks, _Blocks]:
    """The relu rows that some component needs, and how the components are taken from them."""
    _without_slopes(pieces)
    rows = sorted({row for piece in pieces for row, factor in piece.hinges.items() if factor != 0}, reverse=True)
    inner = _Blocks(tuple((scale,) for scale, _ in rows), tuple(offset for _, offset in rows))
    factors = tuple(tuple(piece.hinges.get(row, _ZERO) for row in rows) for piece in pieces)
    return inner, _Blocks(factors, tuple(piece.constant for piece in pieces))


# --- weights and their rounding ---------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class _Rounded:
    """A tensor and the absolute error of each entry: zero where it is exact, else a good estimate."""

    value: Tensor
    error: Tensor

    @property
    def relative(self) -> float:
        worst = float(self.error.max()) if self.error.numel() else 0.0
        return max(worst / max(worst, float(self.value.abs().max())), TINY) if worst else 0.0


def _plus(a: _Rounded, b: _Rounded) -> _Rounded:
    """Sum, with Knuth's error of one addition."""
    total = a.value + b.value
    part = total - a.value
    error = (a.value - (total - part)) + (b.value - part)
    return _Rounded(total, a.error + b.error + error.abs())


def _times(factor: Fraction, x: Tensor) -> _Rounded:
    """Product; exact where the factor or the entry is a power of two and nothing underflows."""
    number = float(factor)
    value = number * x
    simple = (torch.frexp(x).mantissa.abs() == 0.5) | (x == 0)  # powers of two, and zero
    if abs(math.frexp(number)[0]) == 0.5:
        simple = torch.ones_like(simple)
    exact = simple & (value / number == x) if Fraction(number) == factor else x == 0
    return _Rounded(value, torch.where(exact, 0.0, 2 * UNIT * value.abs() + 2.0**-1074))


def _combination(terms: list[tuple[Fraction, Tensor]], like: Tensor) -> _Rounded:
    parts = [_times(factor, x) for factor, x in terms if factor != 0]
    total = parts[0] if parts else _Rounded(torch.zeros_like(like), torch.zeros_like(like))
    for part in parts[1:]:
        total = _plus(total, part)
    return total


def _joined(parts: list[_Rounded], axis: int) -> _Rounded:
    return _Rounded(torch.cat([p.value for p in parts], axis), torch.cat([p.error for p in parts], axis))


@dataclass(frozen=True, eq=False)
class _Layer:
    """Weight and bias of a merged dense layer."""

    weight: _Rounded
    bias: _Rounded | None

    @property
    def relative(self) -> float:
        return max(self.weight.relative, 0.0 if self.bias is None else self.bias.relative)


def _merged_after(blocks: _Blocks, weight: Tensor, bias: Tensor | None) -> _Layer:
    """``blocks(W x + b)`` as one layer, for a matrix or a kernel without groups."""
    rows = weight.chunk(blocks.sources)
    new = _joined([_combination(list(zip(f, rows, strict=True)), rows[0]) for f in blocks.factors], 0)
    if bias is None and not any(blocks.offsets):
        return _Layer(new, None)
    inner = (weight.new_zeros(len(weight)) if bias is None else bias).chunk(blocks.sources)
    one = torch.ones_like(inner[0])
    pairs = zip(blocks.factors, blocks.offsets, strict=True)
    parts = [_combination([*zip(f, inner, strict=True), (offset, one)], one) for f, offset in pairs]
    return _Layer(new, _joined(parts, 0))


def _merged_before(blocks: _Blocks, weight: Tensor, bias: Tensor | None) -> _Layer:
    """``W blocks(h) + b`` as one layer; for a kernel no tap may fall on zeros if there are offsets."""
    columns = weight.chunk(len(blocks.factors), dim=1)
    factors = list(zip(*blocks.factors, strict=True))
    new = _joined([_combination(list(zip(f, columns, strict=True)), columns[0]) for f in factors], 1)
    if not any(blocks.offsets):
        return _Layer(new, None if bias is None else _Rounded(bias, torch.zeros_like(bias)))
    moved = _Rounded(weight.new_zeros(len(weight)), weight.new_zeros(len(weight)))
    for offset, column in zip(blocks.offsets, columns, strict=True):
        sums = torch.tensor(
            [math.fsum(row) for row in cast(list[list[float]], cast(Any, column.flatten(1)).tolist())],
            dtype=weight.dtype,
            device=weight.device,
        )
        part = _combination([(offset, sums)], sums)
        moved = _plus(moved, replace(part, error=part.error + UNIT * part.value.abs()))  # the rounding of fsum
    return _Layer(new, moved if bias is None else _plus(moved, _Rounded(bias, torch.zeros_like(bias))))


# --- the rewrite -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Value:
    """What an old node holds: ``blocks`` of the flattened new node ``index``, seen in ``shape``."""

    index: int
    blocks: _Blocks | None
    shape: tuple[int, ...]
    name: str


class _Rewriter:
    """One pass over the nodes; block maps are carried along until a layer takes them in."""

    def __init__(self, graph: Graph, *, hinges: bool, exact: bool, readable: torch.dtype | None = None) -> None:
        self.old, self.hinges, self.exact, self.readable = graph, hinges, exact, readable
        self.nodes: list[Node] = [graph.nodes[0]]
        self.rounding: dict[str, float] = {}
        self.made: dict[_Value, int] = {}
        self.shared: set[int] = set()  # new nodes whose old value has several readers

    def run(self) -> Lowering:
        readers = [0] * len(self.old.nodes)
        for node in self.old.nodes:
            for source in node.inputs:
                readers[source] += 1
        values = [_Value(0, None, self.old.input_shape, "input")]
        for index, node in enumerate(self.old.nodes[1:], start=1):
            values.append(self.rewrite(node, [values[i] for i in node.inputs]))
            if readers[index] > 1:
                self.shared.add(values[-1].index)
        output = self.plain(values[-1])
        graph = without_dead_nodes(Graph(tuple(self.nodes), self.old.name), output)
        used = {node.name for node in graph}
        for node in self.old.nodes:
            if isinstance(node, Dense | Conv | ConvTranspose) and node.error is not None:
                error = _Rounded(node.weight, node.error).relative
                self.rounding[node.name] = max(error, self.rounding.get(node.name, 0.0))
        return Lowering(graph, {name: error for name, error in self.rounding.items() if name in used})

    def rewrite(self, node: Node, inputs: list[_Value]) -> _Value:
        if isinstance(node, Dense):
            return self.dense(node, inputs[0])
        if isinstance(node, Conv) and self.hinges:
            return self.conv(node, inputs[0])
        if isinstance(node, Elementwise):
            return self.elementwise(node, inputs[0])
        if isinstance(node, Reshape) and node.axes is None and inputs[0].blocks is not None:
            return replace(inputs[0], shape=node.shape)
        sources = tuple(self.plain(value) for value in inputs)
        return self.add(replace(node, inputs=sources))

    def add(self, node: Node, blocks: _Blocks | None = None, shape: tuple[int, ...] | None = None) -> _Value:
        self.nodes.append(node)
        return _Value(len(self.nodes) - 1, blocks, shape or node.shape, node.name)

    def dense(self, node: Dense, source: _Value) -> _Value:
        if source.blocks is not None and len(node.shape) == 1:
            layer = _merged_before(source.blocks, node.weight, node.bias)
            if self.allowed(layer, source.blocks) and self.kept(source):
                return self.layer(node.name, self.flat(source), layer)
        return self.add(replace(node, inputs=(self.plain(source),)))

    def conv(self, node: Conv, source: _Value) -> _Value:
        """The kernel over all blocks, if they stand as channels; zeros beside them are not shifted by an offset."""
        blocks = source.blocks
        if blocks is not None and node.groups == 1 and self.nodes[source.index].shape[1:] == source.shape[1:]:
            zeros = node.padding_mode == "zeros" and any(any(pair) for pair in node.padding)
            layer = _merged_before(blocks, node.weight, node.bias)
            if not (zeros and any(blocks.offsets)) and self.allowed(layer, blocks) and self.kept(source):
                return self.layer(node.name, source.index, layer, node)
        return self.add(replace(node, inputs=(self.plain(source),)))

    def elementwise(self, node: Elementwise, source: _Value) -> _Value:
        pieces = _pieces(node.activation)
        if node.activation.width > 1 and block_axis(node) != 0:
            if not self.hinges:
                return self.add(replace(node, inputs=(self.plain(source),)))
            raise UnsupportedOperation(
                node.name,
                f"{node.activation.name} along the last of several axes",
                "Lower the network to dense layers first (lipbridge.lowering.dense).",
            )
        if pieces is not None and not any(factor for piece in pieces for factor in piece.hinges.values()):
            line = _Blocks(tuple((p.slope,) for p in pieces), tuple(p.constant for p in pieces))
            if self.exact and self.readable is None:
                _require_doubles(line, node)
            blocks = line.after(source.blocks)
            if self.exact and not blocks.double:
                source = _Value(self.plain(source), None, source.shape, source.name)
                blocks = line
            return _Value(source.index, blocks, node.shape, node.name)
        if not self.hinges:
            return self.add(replace(node, inputs=(self.plain(source),)))
        if pieces is None:
            raise UnsupportedOperation(
                node.name,
                f"{node.activation.name} in relu form",
                "It is not piecewise linear; the ONNX dialect `native` takes it.",
            )
        inner, take = _hinges(pieces)
        if inner.identity and take.identity:
            return self.add(replace(node, inputs=(self.plain(source),), activation=activation("relu")))
        if self.exact and self.readable is None:
            _require_doubles(inner, node)
            _require_doubles(take, node)
        rows = self.rows(source, inner)
        return self.add(Elementwise(node.name, (rows,), self.nodes[rows].shape, activation("relu")), take, node.shape)

    def rows(self, source: _Value, inner: _Blocks) -> int:
        """The node that holds the arguments of the relus, in the value's space if it has one."""
        if len(source.shape) > 1 and not self.in_space(source):
            source = _Value(self.plain(source), None, source.shape, source.name)
        return self.plain(replace(source, blocks=inner.after(source.blocks), shape=(-1,)))

    def in_space(self, value: _Value) -> bool:
        return self.nodes[value.index].shape[1:] == value.shape[1:]

    def flat(self, value: _Value) -> int:
        """The index of the value's new node, flattened."""
        node = self.nodes[value.index]
        size = math.prod(node.shape)
        if node.shape == (size,):
            return value.index
        return self.add(Reshape(f"{value.name}.flat", (value.index,), (size,))).index

    def plain(self, value: _Value) -> int:
        """The index of a new node that holds the value itself; ``shape=(-1,)`` takes any shape."""
        if value not in self.made:
            self.made[value] = self.make(value)
        return self.made[value]

    def make(self, value: _Value) -> int:
        blocks = value.blocks
        if blocks is None:
            return value.index
        node = self.nodes[value.index]
        made = value.index if blocks.identity else None
        if made is None and self.takes(node, blocks) and not (self.readable and value.index in self.shared):
            # a merged copy; the layer itself stays for others that read it, if there are any
            assert isinstance(node, Dense | Conv)
            merged = _merged_after(blocks, node.weight, node.bias)
            if self.allowed(merged, blocks):
                made = self.layer(node.name, node.inputs[0], merged, node).index
        if made is None:
            made = self.inserted(value, blocks)
        if value.shape in ((-1,), self.nodes[made].shape):
            return made
        return self.add(Reshape(f"{value.name}.shape", (made,), value.shape)).index

    def takes(self, node: Node, blocks: _Blocks) -> bool:
        """Whether the rows of a layer can be made the rows of its blocks."""
        if isinstance(node, Conv):
            return self.hinges and (node.groups == 1 or (len(blocks.factors), blocks.sources) == (1, 1))
        return isinstance(node, Dense) and len(node.shape) == 1

    def inserted(self, value: _Value, blocks: _Blocks) -> int:
        """A node of its own for the blocks: dense on a vector, a kernel of one tap on ``(channels, *space)``.

        Lines stay an Elementwise where there are no rows to make, and on images if a reader should see them.
        """
        index, name, K = value.index, f"{value.name}.linear", len(blocks.factors)
        shape = self.nodes[index].shape
        if not self.hinges or (self.readable and blocks.scalar and len(shape) > 1):
            return self.add(_line(name, index, shape, blocks)).index
        if len(value.shape) > 1 and value.shape[0] % K == 0 and shape[1:] != value.shape[1:]:
            shape = (value.shape[0] // K * blocks.sources, *value.shape[1:])
            index = self.add(Reshape(f"{value.name}.blocks", (index,), shape)).index
        unit = torch.eye(math.prod(shape[:1]), dtype=torch.float64, device=self.old.device)
        if len(shape) == 1:
            return self.layer(name, index, _merged_after(blocks, unit, None)).index
        ones = (1,) * (len(shape) - 1)
        like = Conv(name, (index,), shape, unit.reshape(*unit.shape, *ones), None, ones, ((0, 0),) * len(ones), ones)
        return self.layer(name, index, _merged_after(blocks, like.weight, None), like).index

    def allowed(self, layer: _Layer, blocks: _Blocks) -> bool:
        """Whether a merged layer may stand: with ``exact`` only if nothing was rounded, nor will be."""
        if self.readable is not None and blocks.scalar:
            return True  # a factor that is rounded hides nothing
        exact = not self.exact or (layer.relative == 0.0 and blocks.double)
        parts = [layer.weight] if layer.bias is None else [layer.weight, layer.bias]
        dtype = self.readable
        return exact and (dtype is None or all(bool((p.value.to(dtype) == p.value).all()) for p in parts))

    def kept(self, source: _Value) -> bool:
        """Whether merging the blocks into their reader hides no activation from a reader of the weights."""
        blocks = source.blocks
        return self.readable is None or (source.index not in self.shared and blocks is not None and blocks.visible)

    def layer(self, name: str, source: int, layer: _Layer, like: Node | None = None) -> _Value:
        weight, bias = layer.weight.value, None if layer.bias is None else layer.bias.value
        if not all(bool(torch.isfinite(x).all()) for x in (weight, bias) if x is not None):
            raise NumericalFailure(f"Layer `{name}`: its weights overflow when an activation is merged into them.")
        if layer.relative > 0.0:
            # two layers may share a name (a merged copy): the larger error is told
            self.rounding[name] = max(layer.relative, self.rounding.get(name, 0.0))
        if isinstance(like, Conv):
            shape = (weight.shape[0], *like.shape[1:])
            new = replace(like, name=name, inputs=(source,), shape=shape, weight=weight, bias=bias, parameter=None)
            return self.add(replace(new, error=None, bias_error=None, outward=False))
        return self.add(Dense(name, (source,), (weight.shape[0],), weight, bias))


def _line(name: str, index: int, shape: tuple[int, ...], blocks: _Blocks) -> Elementwise:
    """Affine blocks of one source as an Elementwise again."""
    pairs = [(row[0], offset) for row, offset in zip(blocks.factors, blocks.offsets, strict=True)]
    components = tuple((Term("identity", 1.0, number(factor), number(offset)),) for factor, offset in pairs)
    axis = -1 if len(shape) == 1 or len(pairs) == 1 else 0
    size = (shape[0] * len(pairs), *shape[1:])
    return Elementwise(name, (index,), size, derive("affine", components), axis)


def _require_doubles(blocks: _Blocks, node: Elementwise) -> None:
    if not blocks.double:
        raise UnsupportedOperation(
            node.name,
            f"{node.activation.name} without rounding",
            "Its slopes are no doubles; lower it with exact=False.",
        )


__all__ = ["Lowering", "fold_scalings", "lower_to_relu", "relu_lowering"]
