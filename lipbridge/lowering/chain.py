"""Networks read as chains of dense layers with one activation between each two, where they can be."""

from __future__ import annotations

from dataclasses import dataclass, replace

from torch import Tensor

from lipbridge.activations.activation import Activation
from lipbridge.errors import UnsupportedProblem
from lipbridge.graph.graph import Graph, alive_nodes, has_errors
from lipbridge.graph.nodes import (
    Add,
    Dense,
    Elementwise,
    GroupSort,
    MaxPool,
    Node,
    Normalize,
    Reshape,
    Softmax,
)


@dataclass(frozen=True, eq=False)
class Chain:
    """A sequential dense network: ``W_L g_(L-1)(... g_1(W_1 x + b_1) ...) + b_L``; ``len(layers) = len(gs) + 1``.

    Attributes:
        layers: W_l and b_l.
        activations: g_l.
        sources: for each activation the node of the Graph whose flattened values are its arguments.
        errors: for each layer how far each entry of its weight may be off, ``(m, n)`` float64; None if it is exact. If
            one is not, the layers have no biases: what they add was rounded as well, and is read from the Graph.
    """

    layers: tuple[Dense, ...]
    activations: tuple[Activation, ...]
    sources: tuple[int, ...]
    errors: tuple[Tensor | None, ...]


#: Matrices of at most so many entries are built to read a convolutional network as a chain.
LARGEST_CHAIN_MATRIX = 2**22


def as_chain(graph: Graph, *, rounded: bool = False) -> Chain:
    """Read a Graph as a chain of dense layers with one activation between each two.

    Other linear nodes (convolutions, BatchNorm, a factor, a second dense layer) are written as matrices if they are
    small, and merged.

    Args:
        graph: the network.
        rounded: whether weights and biases may be rounded in that; then :attr:`Chain.errors` says how far, and a bound
            of the chain is one of the network only with :func:`lipbridge.lipsdp.chain_rounding.rounding_term` added.

    Raises:
        UnsupportedProblem: naming the first node that does not fit, or why it cannot be lowered.
        NumericalFailure: if merged weights overflow.
    """
    reason = _misfit(graph)
    if reason is None:
        activations = [node for node in graph if isinstance(node, Elementwise)]
        layers = tuple(node for node in graph if isinstance(node, Dense))
        sources = tuple(node.inputs[0] for node in activations)
        uncertain = next(filter(has_errors, layers), None)
        if uncertain is None:
            return Chain(layers, tuple(node.activation for node in activations), sources, (None,) * len(layers))
        if not rounded:
            raise UnsupportedProblem(
                f"The weight of layer `{uncertain.name}` is computed from stored numbers, and rounded in that, so a "
                "bound of what is held would not be proved for the network."
            )
        plain = tuple(replace(layer, bias=None, error=None, bias_error=None) for layer in layers)
        found = tuple(node.activation for node in activations)
        return Chain(plain, found, sources, tuple(layer.error for layer in layers))
    for node in (graph.nodes[index] for index in alive_nodes(graph)):
        if isinstance(node, _BRANCHING):
            raise UnsupportedProblem(_out_of_place(node))
    from lipbridge.lowering.dense import lower_to_dense  # it builds on this file

    lowered = lower_to_dense(graph, largest=LARGEST_CHAIN_MATRIX)
    reason = _misfit(lowered.graph)
    if reason is not None:
        raise UnsupportedProblem(reason)
    if not lowered.exact and not rounded:
        name = next(iter(lowered.rounding))
        raise UnsupportedProblem(
            f"Layer `{name}` is rounded when the network is written as dense layers, so a bound of those would not "
            "be proved for this one. Give lower_to_dense(graph).graph itself."
        )
    places = [index for index, node in enumerate(lowered.graph) if isinstance(node, Dense)]
    layers = tuple(node for node in lowered.graph if isinstance(node, Dense))
    if not lowered.exact:
        layers = tuple(replace(layer, bias=None) for layer in layers)
    found = [(index, node) for index, node in enumerate(lowered.graph) if isinstance(node, Elementwise)]
    sources = tuple(graph.nodes[lowered.origins[index]].inputs[0] for index, _ in found)
    errors = tuple(lowered.errors.get(index) for index in places)
    return Chain(layers, tuple(node.activation for _, node in found), sources, errors)


#: Nodes that no chain of dense layers has, however the others are written.
_BRANCHING = (Add, GroupSort, MaxPool, Normalize, Softmax)


def _misfit(graph: Graph) -> str | None:
    """Why a Graph is no chain of dense layers as it stands; None if it is one."""
    layers = activations = 0
    for index, node in enumerate(graph.nodes[1:], start=1):
        in_line = node.inputs == (index - 1,)
        if in_line and isinstance(node, Dense) and len(node.shape) == 1 and layers == activations:
            layers += 1
        elif in_line and isinstance(node, Elementwise) and len(node.shape) == 1 and layers == activations + 1:
            activations += 1
        elif not (in_line and isinstance(node, Reshape) and not layers and node.axes is None):
            return _out_of_place(node)
    if not layers or layers != activations + 1:
        return "A dense chain starts and ends with a dense layer; this network does not."
    return None


def _out_of_place(node: Node) -> str:
    advice = " Bound the network before it, up to the logits." if isinstance(node, Softmax) else ""
    return (
        f"Layer `{node.name}` ({type(node).__name__}) does not fit a chain of dense layers with one activation "
        f"between each two.{advice}"
    )


__all__ = ["Chain", "as_chain"]
