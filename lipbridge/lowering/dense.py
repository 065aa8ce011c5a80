"""Lowering to dense layers: every linear node as a matrix on flattened vectors, for tools that read dense networks.

A convolution's matrix holds its weights and nothing else, so it is exact (where padding copies inputs, weights that
meet on one input are added). Channelwise blocks of a polyactivation are the blocks of the flattened vector.

Linear layers one after the other are multiplied into one, and :mod:`lipbridge.rounding.uncertain` bounds what that
rounds, entry by entry. Maps that scale and shift each coordinate (BatchNorm, ``(x - mean) / std``, a factor) go into
the rows of the layer before or the columns of the one after; they are written as matrices only where there is none.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from fractions import Fraction

import torch
from torch import Tensor

from lipbridge.activations.activation import Component
from lipbridge.errors import NumericalFailure, UnsupportedProblem
from lipbridge.graph.evaluation import evaluate
from lipbridge.graph.graph import Graph, alive_nodes, with_axes, without_dead_nodes
from lipbridge.graph.nodes import (
    Add,
    Concat,
    Conv,
    ConvTranspose,
    Dense,
    Elementwise,
    Gather,
    GroupSort,
    MaxPool,
    Node,
    Normalize,
    Reshape,
    Softmax,
    block_axis,
)
from lipbridge.graph.rules import ProblemRule
from lipbridge.lowering.rewriter import Lowering
from lipbridge.rounding.scalars import gamma
from lipbridge.rounding.uncertain import Uncertain, composed, image, known, plus

#: Entries of the largest matrix that is written down (256 MB).
LARGEST = 2**25


def lower_to_dense(graph: Graph, *, largest: int = LARGEST) -> Lowering:
    """The same function with convolutions, averages, BatchNorm, factors and transpositions as dense layers on vectors.

    Linear layers one after the other are multiplied into one (BatchNorm is folded), which rounds; ``rounding`` says by
    how much, and ``errors`` bounds it entry by entry. The output has the old one's coordinates in one axis. Max
    pooling, sorting and normalisation stay.

    Args:
        graph: any Graph.
        largest: entries of the largest matrix that may be built.

    Raises:
        UnsupportedProblem: if a matrix would have more entries, naming the layer.
        NumericalFailure: if merged weights overflow.

    Laws: ``lower_to_dense(g).graph(x)`` equals ``g(x).flatten(1)`` up to float64 rounding. With weights that differ
    from its own by at most ``errors``, and some biases, it is that function exactly.
    """
    return _Writer(with_axes(graph), largest).run()


@dataclass(frozen=True, eq=False)
class _Affine:
    """``W x + b`` on vectors; b may be None."""

    weight: Uncertain
    bias: Uncertain | None = None

    def after(self, first: _Affine) -> _Affine:
        """This map of what ``first`` gives."""
        moved = image(self.weight, first.bias)
        bias = self.bias if moved is None else plus(moved, self.bias)
        return _Affine(composed(self.weight, first.weight), bias)

    @property
    def rounding(self) -> float:
        return max(self.weight.relative, 0.0 if self.bias is None else self.bias.relative)


@dataclass(frozen=True, eq=False)
class _Value:
    """What an old node holds, flattened: the value of new node ``index``, scaled and shifted by ``scaling``."""

    index: int
    scaling: _Affine | None = None


class _Writer:
    """One pass; each old node becomes a new one with a single axis."""

    def __init__(self, graph: Graph, largest: int) -> None:
        self.old, self.largest = graph, largest
        self.nodes: list[Node] = [graph.nodes[0]]
        self.affine: dict[int, _Affine] = {}  # what the new dense layers are
        self.origins: dict[int, int] = {}
        self.readers = graph.readers()

    def run(self) -> Lowering:
        last = self.old.fold(_Value(self.flat(0, "input")), self.write)
        output = self.plain(last, self.old.nodes[-1].name)
        graph = Graph(tuple(self.nodes), self.old.name)
        place = {index: position for position, index in enumerate(alive_nodes(graph, output))}
        used = {index: affine for index, affine in self.affine.items() if index in place}
        rounding: dict[str, float] = {}
        for index, affine in used.items():
            name = self.nodes[index].name  # two layers may share it: the larger error is told
            if affine.rounding > 0.0:
                rounding[name] = max(affine.rounding, rounding.get(name, 0.0))
        errors = {place[index]: a.weight.error for index, a in used.items() if a.weight.error is not None}
        origins = {place[index]: old for index, old in self.origins.items() if index in place}
        return Lowering(without_dead_nodes(graph, output), rounding, errors, origins)

    def write(self, index: int, node: Node, sources: list[_Value]) -> _Value:
        # The new node before may be merged into this one if it serves its old node alone, and that only this one.
        merge = len(sources) == 1 and node.inputs[0] > 0 and len(self.readers[node.inputs[0]]) == 1
        return _written(node, self, index, sources, merge)

    def add(self, node: Node) -> int:
        self.nodes.append(node)
        return len(self.nodes) - 1

    def flat(self, index: int, name: str) -> int:
        shape = self.nodes[index].shape
        return index if len(shape) == 1 else self.add(Reshape(f"{name}.flat", (index,), (math.prod(shape),)))

    def plain(self, value: _Value, name: str) -> int:
        """The index of a new node that holds the value itself."""
        if value.scaling is None:
            return value.index
        self.fits(name, self.nodes[value.index].shape[0] ** 2)
        weight = value.scaling.weight.matrix()
        return self.dense(Dense(name, (value.index,), (0,), weight.value), replace(value.scaling, weight=weight))

    def shape_before(self, node: Node) -> tuple[int, ...]:
        return self.old.nodes[node.inputs[0]].shape

    def linear(self, node: Node, source: _Value, merge: bool) -> _Value:
        """A linear node, merged with the dense layer before it if that is its own, and with a scaling."""
        own, index = self.map_of(node), source.index
        merged = source.scaling is not None or (merge and index in self.affine)
        if source.scaling is not None:
            own = own.after(source.scaling)
        elif merge and index in self.affine:
            before = self.affine[index].weight.value
            if not own.weight.diagonal:
                rows, columns = len(own.weight.value), before.shape[1]
                if rows * columns > max(own.weight.value.numel(), before.numel()):
                    self.fits(node.name, rows * columns)
            # The old layer stays in the list, unread; it goes with the dead nodes.
            own, index = own.after(self.affine[index]), self.nodes[index].inputs[0]
        if merged and not bool(torch.isfinite(own.weight.value).all()):
            raise NumericalFailure(f"Layer `{node.name}`: its weights overflow when it is merged with those beside it.")
        if own.weight.diagonal:
            return _Value(index, own)
        made = Dense(node.name, (index,), (0,), own.weight.value)
        if isinstance(node, Dense) and own.weight.value is node.weight:
            made = replace(node, inputs=(index,))
        return _Value(self.dense(made, own))

    def dense(self, like: Dense, affine: _Affine) -> int:
        bias = None if affine.bias is None else affine.bias.value
        made = self.add(
            replace(
                like,
                shape=(len(affine.weight.value),),
                weight=affine.weight.value,
                bias=bias,
                error=None,
                bias_error=None,
                outward=False,
            )
        )
        self.affine[made] = affine
        return made

    def map_of(self, node: Node) -> _Affine:
        """A linear node on the flattened input: a matrix, or a diagonal where it only scales and shifts."""
        if isinstance(node, Dense) and len(node.shape) == 1:
            return _Affine(
                Uncertain(node.weight, node.error), None if node.bias is None else Uncertain(node.bias, node.bias_error)
            )
        if isinstance(node, Conv) and node.diagonal:
            positions = math.prod(node.shape[1:])
            scale, shift, *errors = (
                None if t is None else t.flatten().repeat_interleave(positions)
                for t in (node.weight, node.bias, node.error, node.bias_error)
            )
            assert scale is not None
            return _Affine(Uncertain(scale, errors[0]), None if shift is None else Uncertain(shift, errors[1]))
        if isinstance(node, Elementwise):
            return self.lines(node)
        return self.matrix(node, self.shape_before(node))

    def lines(self, node: Elementwise) -> _Affine:
        """An Elementwise of lines: factors and shifts, block by block."""
        shape, width, axis = self.shape_before(node), node.activation.width, block_axis(node)
        n = math.prod(shape)
        slopes, offsets = zip(*(component_line(component) for component in node.activation.components), strict=True)
        scale, shift = (self.blocks(numbers, node.shape, width, axis) for numbers in (slopes, offsets))
        bias = shift if any(offsets) else None
        if width == 1:
            return _Affine(scale, bias)
        self.fits(node.name, n * n * width)
        # Output block k of coordinate i reads coordinate i: where the coordinates of the input stand in the output.
        places = torch.arange(n, device=self.old.device).reshape(shape)
        columns = torch.cat([places] * width, axis).flatten()
        rows = torch.arange(n * width, device=self.old.device)

        def spread(values: Tensor) -> Tensor:
            return values.new_zeros(n * width, n).index_put((rows, columns), values)

        error = None if scale.error is None else spread(scale.error)
        return _Affine(Uncertain(spread(scale.value), error), bias)

    def blocks(self, numbers: tuple[Fraction, ...], shape: tuple[int, ...], width: int, axis: int) -> Uncertain:
        """One number a block as a vector over the flattened coordinates of ``shape``."""
        each = [known(number) for number in numbers]
        block = [size // width if place == axis else size for place, size in enumerate(shape)]

        def spread(values: list[float]) -> Tensor:
            parts = [torch.full(block, v, dtype=torch.float64, device=self.old.device) for v in values]
            return torch.cat(parts, axis).flatten()

        errors = [error for _, error in each]
        return Uncertain(spread([value for value, _ in each]), spread(errors) if any(errors) else None)

    def fits(self, name: str, entries: int) -> None:
        if entries > self.largest:
            raise UnsupportedProblem(
                f"Layer `{name}` as a matrix would have {entries} entries, at most {self.largest} are built: the input "
                "is too large for a method that reads dense layers."
            )

    def matrix(self, node: Node, shape: tuple[int, ...]) -> _Affine:
        """Matrix and bias of a linear node on inputs of ``shape``."""
        n = math.prod(shape)
        self.fits(node.name, n * math.prod(node.shape))
        unit = torch.eye(n, dtype=torch.float64, device=self.old.device).reshape(n, *shape)
        bias = None
        core = node
        if isinstance(node, Dense | Conv | ConvTranspose):
            core = replace(node, bias=None)
            blank = replace(node, weight=torch.zeros_like(node.weight))
            if node.bias is not None:
                own = None if node.bias_error is None else replace(blank, bias=node.bias_error)
                shift, lost = (None if n is None else evaluate(n, [0 * unit[:1]]).flatten() for n in (blank, own))
                assert shift is not None
                bias = Uncertain(shift, lost)
        weight = evaluate(core, [unit]).reshape(n, -1).T
        error = None
        if isinstance(core, Conv) and core.padding_mode != "zeros":  # copies of an input meet: their weights are added
            absolute = evaluate(replace(core, weight=core.weight.abs()), [unit]).reshape(n, -1).T
            several = evaluate(replace(core, weight=(core.weight != 0).to(torch.float64)), [unit]).reshape(n, -1).T > 1
            error = torch.where(several, gamma(math.prod(core.kernel)) * absolute, 0.0)
        if isinstance(core, Dense | Conv | ConvTranspose) and core.error is not None:
            terms = gamma(2 * math.prod(core.weight.shape))  # where copies of an input meet
            own = evaluate(replace(core, weight=core.error), [unit]).reshape(n, -1).T * (1.0 + terms)
            error = own if error is None else (error + own) * (1.0 + 2.0**-50)
        return _Affine(Uncertain(weight.contiguous(), error), bias)

    def reordered(self, node: Elementwise, made: int, shape: tuple[int, ...], axis: int) -> int:
        """Blocks of the flattened vector are blocks along axis 0; along another axis coordinates change places."""
        width = node.activation.width
        if width == 1 or axis == 0:
            return made
        blocks = (width, *shape)
        order = (*range(1, 1 + axis), 0, *range(1 + axis, 1 + len(shape)))
        return self.moved(node, made, blocks, order)

    def joined(self, node: Concat, sources: list[int]) -> int:
        size = math.prod(node.shape)
        made = self.add(Concat(node.name, tuple(sources), (size,), 0))
        if node.axis == 0:
            return made
        shapes = [self.old.nodes[i].shape for i in node.inputs]
        starts = 0
        index: list[Tensor] = []
        for shape in shapes:
            index.append(torch.arange(starts, starts + math.prod(shape)).reshape(shape))
            starts += math.prod(shape)
        return self.chosen(node.name, made, torch.cat(index, dim=node.axis).flatten())

    def moved(self, node: Node, made: int, blocks: tuple[int, ...], order: tuple[int, ...]) -> int:
        index = torch.arange(math.prod(blocks)).reshape(blocks).permute(order).flatten()
        return self.chosen(node.name, made, index)

    def chosen(self, name: str, source: int, index: Tensor) -> int:
        """The coordinates ``index`` of a vector, as a matrix of zeros and ones."""
        self.fits(name, len(index) * self.nodes[source].shape[0])
        matrix = torch.zeros(len(index), self.nodes[source].shape[0], dtype=torch.float64, device=self.old.device)
        matrix[torch.arange(len(index)), index] = 1.0
        return self.dense(Dense(f"{name}.order", (source,), (0,), matrix), _Affine(Uncertain(matrix)))


#: A node in a network of one axis: the writer, the node's old index, what its inputs hold, whether to merge it.
_written = ProblemRule[[_Writer, int, list[_Value], bool], _Value]("lowering", "is no layer of a dense network.")


@_written.of(Dense, Conv, ConvTranspose, Gather)
def _linear(node: Node, to: _Writer, index: int, sources: list[_Value], merge: bool) -> _Value:
    return to.linear(node, sources[0], merge)


@_written.of(Reshape)
def _moved(node: Reshape, to: _Writer, index: int, sources: list[_Value], merge: bool) -> _Value:
    return sources[0] if node.axes is None else to.linear(node, sources[0], merge)


@_written.of(Elementwise)
def _elementwise(node: Elementwise, to: _Writer, index: int, sources: list[_Value], merge: bool) -> _Value:
    if node.linear:
        return to.linear(node, sources[0], merge)
    size = (math.prod(node.shape),)
    made = to.add(replace(node, inputs=(to.plain(sources[0], node.name),), shape=size, axis=-1))
    to.origins[made] = index
    return _Value(to.reordered(node, made, to.shape_before(node), block_axis(node)))


@_written.of(Add)
def _added(node: Add, to: _Writer, index: int, sources: list[_Value], merge: bool) -> _Value:
    inputs = tuple(to.plain(value, node.name) for value in sources)
    return _Value(to.add(replace(node, inputs=inputs, shape=(math.prod(node.shape),))))


@_written.of(Concat)
def _concatenated(node: Concat, to: _Writer, index: int, sources: list[_Value], merge: bool) -> _Value:
    return _Value(to.joined(node, [to.plain(value, node.name) for value in sources]))


@_written.of(MaxPool, GroupSort, Normalize, Softmax)
def _kept(node: Node, to: _Writer, index: int, sources: list[_Value], merge: bool) -> _Value:
    """As it is, in the shape that it had before."""
    shaped = to.add(Reshape(f"{node.name}.shape", (to.plain(sources[0], node.name),), to.shape_before(node)))
    return _Value(to.flat(to.add(replace(node, inputs=(shaped,))), node.name))


def component_line(component: Component) -> tuple[Fraction, Fraction]:
    """Slope and offset of a sum of lines, exactly."""
    slope = sum((Fraction(t.coefficient) * Fraction(t.scale) for t in component), Fraction(0))
    return slope, sum((Fraction(t.coefficient) * Fraction(t.offset) for t in component), Fraction(0))
