"""One pass over a Graph that writes every piecewise linear activation with ReLU, and merges factors."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from lipbridge.activations.activation import Term, derive
from lipbridge.activations.registry import activation
from lipbridge.errors import NumericalFailure, UnsupportedOperation
from lipbridge.graph.graph import Graph, without_dead_nodes
from lipbridge.graph.nodes import Conv, ConvTranspose, Dense, Elementwise, Node, Reshape, block_axis
from lipbridge.lowering.relu_blocks import Blocks, hinges_of, pieces_of
from lipbridge.lowering.rounded_weights import Layer, Rounded, merged_after, merged_before
from lipbridge.rounding.factors import number


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


@dataclass(frozen=True)
class _Value:
    """What an old node holds: ``blocks`` of the flattened new node ``index``, seen in ``shape``."""

    index: int
    blocks: Blocks | None
    shape: tuple[int, ...]
    name: str


class Rewriter:
    """One pass over the nodes; block maps are carried along until a layer takes them in."""

    def __init__(self, graph: Graph, *, hinges: bool, exact: bool, readable: torch.dtype | None = None) -> None:
        self.old, self.hinges, self.exact, self.readable = graph, hinges, exact, readable
        self.nodes: list[Node] = [graph.nodes[0]]
        self.rounding: dict[str, float] = {}
        self.made: dict[_Value, int] = {}
        self.shared: set[int] = set()  # new nodes whose old value has several readers

    def run(self) -> Lowering:
        readers = self.old.readers()

        def rewritten(index: int, node: Node, inputs: list[_Value]) -> _Value:
            value = self.rewrite(node, inputs)
            if len(readers[index]) > 1:
                self.shared.add(value.index)
            return value

        output = self.plain(self.old.fold(_Value(0, None, self.old.input_shape, "input"), rewritten))
        graph = without_dead_nodes(Graph(tuple(self.nodes), self.old.name), output)
        used = {node.name for node in graph}
        for node in self.old.nodes:
            if isinstance(node, Dense | Conv | ConvTranspose) and node.error is not None:
                error = Rounded(node.weight, node.error).relative
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

    def add(self, node: Node, blocks: Blocks | None = None, shape: tuple[int, ...] | None = None) -> _Value:
        self.nodes.append(node)
        return _Value(len(self.nodes) - 1, blocks, shape or node.shape, node.name)

    def dense(self, node: Dense, source: _Value) -> _Value:
        if source.blocks is not None and len(node.shape) == 1:
            layer = merged_before(source.blocks, node.weight, node.bias)
            if self.allowed(layer, source.blocks) and self.kept(source):
                return self.layer(node.name, self.flat(source), layer)
        return self.add(replace(node, inputs=(self.plain(source),)))

    def conv(self, node: Conv, source: _Value) -> _Value:
        """The kernel over all blocks, if they stand as channels; zeros beside them are not shifted by an offset."""
        blocks = source.blocks
        if blocks is not None and node.groups == 1 and self.nodes[source.index].shape[1:] == source.shape[1:]:
            zeros = node.padding_mode == "zeros" and any(any(pair) for pair in node.padding)
            layer = merged_before(blocks, node.weight, node.bias)
            if not (zeros and any(blocks.offsets)) and self.allowed(layer, blocks) and self.kept(source):
                return self.layer(node.name, source.index, layer, node)
        return self.add(replace(node, inputs=(self.plain(source),)))

    def elementwise(self, node: Elementwise, source: _Value) -> _Value:
        pieces = pieces_of(node.activation)
        if node.activation.width > 1 and block_axis(node) != 0:
            if not self.hinges:
                return self.add(replace(node, inputs=(self.plain(source),)))
            raise UnsupportedOperation(
                node.name,
                f"{node.activation.name} along the last of several axes",
                "Lower the network to dense layers first (lipbridge.lowering.dense).",
            )
        if pieces is not None and not any(factor for piece in pieces for factor in piece.hinges.values()):
            line = Blocks(tuple((p.slope,) for p in pieces), tuple(p.constant for p in pieces))
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
        inner, take = hinges_of(pieces)
        if inner.identity and take.identity:
            return self.add(replace(node, inputs=(self.plain(source),), activation=activation("relu")))
        if self.exact and self.readable is None:
            _require_doubles(inner, node)
            _require_doubles(take, node)
        rows = self.rows(source, inner)
        return self.add(Elementwise(node.name, (rows,), self.nodes[rows].shape, activation("relu")), take, node.shape)

    def rows(self, source: _Value, inner: Blocks) -> int:
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
            merged = merged_after(blocks, node.weight, node.bias)
            if self.allowed(merged, blocks):
                made = self.layer(node.name, node.inputs[0], merged, node).index
        if made is None:
            made = self.inserted(value, blocks)
        if value.shape in ((-1,), self.nodes[made].shape):
            return made
        return self.add(Reshape(f"{value.name}.shape", (made,), value.shape)).index

    def takes(self, node: Node, blocks: Blocks) -> bool:
        """Whether the rows of a layer can be made the rows of its blocks."""
        if isinstance(node, Conv):
            return self.hinges and (node.groups == 1 or (len(blocks.factors), blocks.sources) == (1, 1))
        return isinstance(node, Dense) and len(node.shape) == 1

    def inserted(self, value: _Value, blocks: Blocks) -> int:
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
            return self.layer(name, index, merged_after(blocks, unit, None)).index
        ones = (1,) * (len(shape) - 1)
        like = Conv(name, (index,), shape, unit.reshape(*unit.shape, *ones), None, ones, ((0, 0),) * len(ones), ones)
        return self.layer(name, index, merged_after(blocks, like.weight, None), like).index

    def allowed(self, layer: Layer, blocks: Blocks) -> bool:
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

    def layer(self, name: str, source: int, layer: Layer, like: Node | None = None) -> _Value:
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


def _line(name: str, index: int, shape: tuple[int, ...], blocks: Blocks) -> Elementwise:
    """Affine blocks of one source as an Elementwise again."""
    pairs = [(row[0], offset) for row, offset in zip(blocks.factors, blocks.offsets, strict=True)]
    components = tuple((Term("identity", 1.0, number(factor), number(offset)),) for factor, offset in pairs)
    axis = -1 if len(shape) == 1 or len(pairs) == 1 else 0
    size = (shape[0] * len(pairs), *shape[1:])
    return Elementwise(name, (index,), size, derive("affine", components), axis)


def _require_doubles(blocks: Blocks, node: Elementwise) -> None:
    if not blocks.double:
        raise UnsupportedOperation(
            node.name,
            f"{node.activation.name} without rounding",
            "Its slopes are no doubles; lower it with exact=False.",
        )
