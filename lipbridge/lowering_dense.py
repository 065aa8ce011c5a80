"""Lowering to dense layers: every linear node as a matrix on flattened vectors, for tools that read dense networks.

A convolution's matrix holds its weights and nothing else, so it is exact (where padding copies inputs, weights that
meet on one input are added). Channelwise blocks of a polyactivation are the blocks of the flattened vector.
"""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from torch import Tensor

from lipbridge.errors import NumericalFailure, UnsupportedProblem
from lipbridge.graph import (
    Add,
    Concat,
    Conv,
    ConvTranspose,
    Dense,
    Elementwise,
    Gather,
    Graph,
    Node,
    Reshape,
    block_axis,
    evaluate,
    without_dead_nodes,
)
from lipbridge.lowering import Lowering
from lipbridge.rounding import UNIT, gamma

#: Entries of the largest matrix that is written down (256 MB).
LARGEST = 2**25


def lower_to_dense(graph: Graph, *, largest: int = LARGEST) -> Lowering:
    """The same function with convolutions, averages, BatchNorm and transpositions as dense layers on vectors.

    Linear layers one after the other are multiplied into one (BatchNorm is folded), which rounds; ``rounding`` says by
    how much. The output has the old one's coordinates in one axis. Max pooling, sorting and normalisation stay.

    Args:
        graph: any Graph.
        largest: entries of the largest matrix that may be built.

    Raises:
        UnsupportedProblem: if a matrix would have more entries, naming the layer.
        NumericalFailure: if merged weights overflow.

    Law: ``lower_to_dense(g).graph(x)`` equals ``g(x).flatten(1)`` up to float64 rounding.
    """
    return _Writer(graph, largest).run()


class _Writer:
    """One pass; each old node becomes a new one with a single axis."""

    def __init__(self, graph: Graph, largest: int) -> None:
        self.old, self.largest = graph, largest
        self.nodes: list[Node] = [graph.nodes[0]]
        self.rounding: dict[str, float] = {}
        self.readers = [0] * len(graph.nodes)
        for node in graph.nodes:
            for source in node.inputs:
                self.readers[source] += 1

    def run(self) -> Lowering:
        place = [self.flat(0, "input")]
        free = [False]  # whether the new node serves this old node alone, so that it may be merged into its reader
        for index, node in enumerate(self.old.nodes[1:], start=1):
            sources = [place[i] for i in node.inputs]
            merge = len(sources) == 1 and free[node.inputs[0]] and isinstance(self.nodes[sources[0]], Dense)
            place.append(self.write(node, sources, merge))
            free.append(self.readers[index] == 1)
        graph = without_dead_nodes(Graph(tuple(self.nodes), self.old.name), place[-1])
        return Lowering(graph, self.rounding)

    def add(self, node: Node) -> int:
        self.nodes.append(node)
        return len(self.nodes) - 1

    def flat(self, index: int, name: str) -> int:
        shape = self.nodes[index].shape
        return index if len(shape) == 1 else self.add(Reshape(f"{name}.flat", (index,), (math.prod(shape),)))

    def write(self, node: Node, sources: list[int], merge: bool) -> int:
        size = (math.prod(node.shape),)
        if isinstance(node, Reshape) and node.axes is None:
            return sources[0]
        if isinstance(node, Dense | Conv | ConvTranspose | Gather | Reshape):
            plain = isinstance(node, Dense) and len(node.shape) == 1
            return self.linear(node, sources[0], merge, None if plain else self.shape_before(node))
        if isinstance(node, Elementwise):
            made = self.add(replace(node, inputs=(sources[0],), shape=size, axis=-1))
            return self.reordered(node, made, self.shape_before(node), block_axis(node))
        if isinstance(node, Add):
            return self.add(replace(node, inputs=tuple(sources), shape=size))
        if isinstance(node, Concat):
            return self.joined(node, sources)
        shaped = [self.add(Reshape(f"{node.name}.shape", (sources[0],), self.shape_before(node)))]
        return self.flat(self.add(replace(node, inputs=tuple(shaped))), node.name)

    def shape_before(self, node: Node) -> tuple[int, ...]:
        return self.old.nodes[node.inputs[0]].shape

    def linear(self, node: Node, source: int, merge: bool, shape: tuple[int, ...] | None) -> int:
        """A linear node as a matrix, after the dense layer before it if that is its own."""
        if shape is None and isinstance(node, Dense):
            weight, bias, error = node.weight, node.bias, torch.zeros_like(node.weight)
        else:
            assert shape is not None
            weight, bias, error = self.matrix(node, shape)
        if not merge:
            kept = node.parameter if isinstance(node, Dense) and len(node.shape) == 1 else None
            turned = isinstance(node, Dense) and node.transposed
            made = Dense(node.name, (source,), (weight.shape[0],), weight, bias, kept, turned)
            self.note(node.name, weight, error)
            return self.add(made)
        before = self.nodes[source]
        assert isinstance(before, Dense)
        self.fits(node.name, weight.shape[0] * before.weight.shape[1])
        product = weight @ before.weight
        magnitude = weight.abs() @ before.weight.abs()
        chosen = ((weight != 0).sum(1) <= 1) & ((weight == 0) | (weight.abs() == 1)).all(1)
        copied = ((before.weight != 0).sum(0) <= 1) & ((before.weight == 0) | (before.weight.abs() == 1)).all(0)
        lost = torch.where(chosen[:, None] | copied, 0.0, gamma(weight.shape[1] + 1) * magnitude)
        if bias is not None or before.bias is not None:
            several = bias is not None and before.bias is not None
            moved = 0.0 if before.bias is None else weight @ before.bias
            bias = moved + (torch.zeros_like(weight[:, 0]) if bias is None else bias)
            exact = before.bias is None or (bool(chosen.all()) and not several)
            lost = lost if exact else lost + UNIT * magnitude
        if not bool(torch.isfinite(product).all()):
            raise NumericalFailure(f"Layer `{node.name}`: its weights overflow when it is merged into the one before.")
        self.note(node.name, product, error @ before.weight.abs() + lost)
        # The old layer stays in the list, unread; it goes with the dead nodes.
        return self.add(Dense(node.name, before.inputs, (weight.shape[0],), product, bias))

    def note(self, name: str, weight: Tensor, error: Tensor) -> None:
        worst = float(error.max()) if error.numel() else 0.0
        if worst > 0.0:
            relative = worst / max(worst, float(weight.abs().max()))
            self.rounding[name] = max(relative, self.rounding.get(name, 0.0))

    def fits(self, name: str, entries: int) -> None:
        if entries > self.largest:
            raise UnsupportedProblem(
                f"Layer `{name}` as a matrix would have {entries} entries, at most {self.largest} are built: the input "
                "is too large for a method that reads dense layers."
            )

    def matrix(self, node: Node, shape: tuple[int, ...]) -> tuple[Tensor, Tensor | None, Tensor]:
        """Matrix, bias and the matrix's errors of a linear node on inputs of ``shape``."""
        n = math.prod(shape)
        self.fits(node.name, n * math.prod(node.shape))
        unit = torch.eye(n, dtype=torch.float64, device=self.old.device).reshape(n, *shape)
        bias = None
        core = node
        if isinstance(node, Dense | Conv | ConvTranspose):
            core = replace(node, bias=None)
            if node.bias is not None:
                blank = replace(node, weight=torch.zeros_like(node.weight))
                bias = evaluate(blank, [torch.zeros_like(unit[:1])]).flatten()
        weight = evaluate(core, [unit]).reshape(n, -1).T
        error = torch.zeros_like(weight)
        if isinstance(core, Conv) and core.padding_mode != "zeros":  # copies of an input meet: their weights are added
            absolute = evaluate(replace(core, weight=core.weight.abs()), [unit]).reshape(n, -1).T
            several = evaluate(replace(core, weight=(core.weight != 0).to(torch.float64)), [unit]).reshape(n, -1).T > 1
            error = torch.where(several, gamma(math.prod(core.kernel)) * absolute, 0.0)
        return weight.contiguous(), bias, error

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
        return self.add(Dense(f"{name}.order", (source,), (len(index),), matrix))
