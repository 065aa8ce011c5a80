"""Lipschitz constants through a Graph: of every kind of node, proved, and combined along paths, sums and joins.

Where the algebra gives more than the product and the sum of norms, it is used:

* a convolution or dense layer with a diagonal map before or after it (BatchNorm, a normalised input) is one layer;
* terms of a sum, or parts of a concatenation, that are linear functions of one and the same node are one linear map:
  x + W x = (I + W) x. For convolutions of one geometry that is one kernel; otherwise the matrix, if it is small;
* a layer [D, E] with diagonals D and E behind (relu t, relu -t), such as a PReLU with a slope for each channel, acts on
  each coordinate by itself, with the slopes d and -e: its constant is their largest magnitude, exactly, in every norm.

Everything is rounded outward. Where several bounds are known the smallest is taken.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise

from lipbridge.constants.linear_branches import groups_of, merged_of, roots_of
from lipbridge.constants.node_constants import Constants, propagate, through, with_error
from lipbridge.constants.scaled_layers import block_of
from lipbridge.errors import InvalidArgument
from lipbridge.graph.graph import Graph, reached
from lipbridge.graph.nodes import (
    Concat,
    Conv,
    Dense,
    Elementwise,
    block_axis,
)
from lipbridge.norms.matrix import require_cheap
from lipbridge.rounding.scalars import add_up, mul_up
from lipbridge.vocabulary import NORMS, Norm


def output_constants(graph: Graph, p: Norm, q: Norm) -> Constants:
    """Proved upper bounds of the Lipschitz constant from the input in l_p to the output in l_r, p <= r <= q."""
    require_cheap(p, q, "Lipschitz constant")
    if graph.device.type == "meta":
        raise InvalidArgument("network", "have weights with numbers; those on the meta device have none", graph.name)
    norms: list[Norm] = [norm for norm in NORMS if NORMS.index(p) <= NORMS.index(norm) <= NORMS.index(q)]
    roots = roots_of(graph)
    reads = [_reads(graph, index, roots) for index in range(len(graph.nodes))]
    found: dict[int, Constants] = {0: dict.fromkeys(norms, 1.0)}
    for index in sorted(reached([len(graph.nodes) - 1], lambda index: reads[index])):
        if index:
            constants = dict(_constants(graph, index, roots, found))
            for smaller, larger in pairwise(norms):
                constants[larger] = min(constants[larger], constants[smaller])  # ||x||_r falls as r grows
            found[index] = constants
    return found[len(graph.nodes) - 1]


def _reads(graph: Graph, index: int, roots: list[int]) -> set[int]:
    """The nodes whose constants give that of node ``index``."""
    if index == 0:
        return set()
    block = block_of(graph, index)
    if block is not None:
        return {block.source}
    node = graph.nodes[index]
    behind = _two_slopes(graph, index)
    own = set(node.inputs) if behind is None else {*node.inputs, behind[0]}
    return own | {roots[group[0]] for group in groups_of(graph, node, roots)}


def _constants(graph: Graph, index: int, roots: list[int], found: Mapping[int, Constants]) -> Constants:
    node = graph.nodes[index]
    block = block_of(graph, index)
    if block is not None:
        shape = graph.nodes[block.source].shape
        return through(found[block.source], lambda p, q: block.norm_up(shape, p, q))
    inputs = [found[i] for i in node.inputs]
    constants = propagate(node, inputs, [graph.nodes[i].shape for i in node.inputs])
    behind = _two_slopes(graph, index)
    if behind is not None:
        source, steepest = behind
        return _smaller(constants, {norm: mul_up(value, steepest) for norm, value in found[source].items()})
    merged = [merged_of(graph, node, roots, group, found) for group in groups_of(graph, node, roots)]
    if not any(merged):
        return constants
    if isinstance(node, Concat):
        return _smaller(constants, *(each for each in merged if each))
    taken = {i for group, each in zip(groups_of(graph, node, roots), merged, strict=True) if each for i in group}
    rest = [constants_of for i, constants_of in zip(node.inputs, inputs, strict=True) if i not in taken]
    terms = [*rest, *(each for each in merged if each)]
    return _smaller(constants, {norm: add_up(*(term[norm] for term in terms)) for norm in constants})


def _two_slopes(graph: Graph, index: int) -> tuple[int, float] | None:
    """What (relu t, relu -t) before the node reads, and the steepest slope, if the node joins the two one by one."""
    node = graph.nodes[index]
    if not isinstance(node, Dense | Conv):
        return None
    before = graph.nodes[node.inputs[0]]
    if not isinstance(before, Elementwise) or before.activation.sides != ((0.0, 1.0), (-1.0, 0.0)):
        return None
    if isinstance(node, Conv):
        plain = set(node.stride) | set(node.weight.shape[2:]) | {node.groups} == {1} and not any(map(any, node.padding))
    else:
        plain = len(node.shape) == 1
    W = node.weight.flatten(1)
    n = W.shape[0]
    if not plain or block_axis(before) != 0 or W.shape[1] != 2 * n:
        return None
    used = W if node.error is None else W.abs() + node.error.flatten(1)
    blocks = used.reshape(n, 2, n)
    single = int(blocks.count_nonzero()) == int(blocks.diagonal(dim1=0, dim2=2).count_nonzero())
    steepest = with_error(node, float(W.abs().max()), lambda error: float(error.max()))
    return (before.inputs[0], steepest) if single else None


def _smaller(first: Constants, *others: Constants) -> Constants:
    return {norm: min(value, *(other[norm] for other in others)) for norm, value in first.items()}


__all__ = ["output_constants"]
