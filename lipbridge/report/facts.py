"""What reports tell of a network, read off its Graph: how many parameters it has, and how it is built."""

from __future__ import annotations

import math

from torch import Tensor

from lipbridge.frontend.builder import FIXED
from lipbridge.graph.graph import Graph, stored
from lipbridge.graph.nodes import Conv, Elementwise, GroupSort, Input, MaxPool, Node, Normalize, Softmax

#: More layers than this are shown as the first ones and the last.
SHOWN = 12


def parameter_count(graph: Graph) -> int:
    """The numbers that the layers of a network hold: weights, kernels, biases, scales, shifts.

    Every node counts by its floating point tensors, whatever it is. What the architecture fixes (the kernel of an
    average) is no parameter. A tensor that several layers share counts once where the Graph knows it, by the name of
    the module's tensor (a file in ONNX has no such names); a weight that is computed from others counts as it is.

    Law: of a module of dense and convolutional layers, the sum of ``numel`` over its parameters.
    """
    found: dict[object, int] = {}
    for index, node in enumerate(graph.nodes):
        if _fixed(node):
            continue
        name = getattr(node, "parameter", None)
        for field, tensor in _numbers(node).items():
            # The layer belongs to the key of a bias: a decoder with its encoder's weight has a bias of its own.
            key = (index, field) if name is None else name if field == "weight" else (name, field, node.name)
            found[key] = tensor.numel()
    return sum(found.values())


def architecture(graph: Graph) -> str:
    """The sizes of the input and of each layer with weights, and the functions between them, in one line.

    E.g. ``784–256–256–10, abs, no bias`` or ``1×28×28–48×14×14–256–10, relu, AvgPool``.
    """
    layers = [node for node in graph if has_weights(node)]
    sizes = ["×".join(map(str, node.shape)) for node in (graph.nodes[0], *layers)]
    if len(sizes) > SHOWN:
        sizes = [*sizes[: SHOWN - 2], "…", sizes[-1]]
    words = dict.fromkeys(word for node in graph if (word := _word(node)))
    bias = "" if any("bias" in stored(node) for node in layers) else ", no bias"
    return f"{'–'.join(sizes)}, {', '.join(words) or 'linear'}{bias}"


def has_weights(node: Node) -> bool:
    """Whether a node is a layer with a matrix or a kernel: no scale of single channels, nothing that is fixed."""
    fixed = _fixed(node) or (isinstance(node, Conv) and node.diagonal)
    return not fixed and not isinstance(node, Input) and "weight" in _numbers(node)


def _fixed(node: Node) -> bool:
    """Whether the architecture fixes the layer: the reader says so, or it is an average over windows of a channel.

    A file has no names of parameters, and an average that was exported as a convolution is one.
    """
    return getattr(node, "parameter", None) == FIXED or _averages(node)


def _averages(node: Node) -> bool:
    if not isinstance(node, Conv) or node.weight.shape[1] != 1 or (node.bias is not None and bool(node.bias.any())):
        return False
    taps = math.prod(node.kernel)
    weight = node.weight.double()
    each = node.groups == len(weight) and taps > 1
    return each and bool((weight - 1 / taps).abs().max() <= 1e-6 / taps)


def _numbers(node: Node) -> dict[str, Tensor]:
    return {name: tensor for name, tensor in stored(node).items() if tensor.is_floating_point()}


def _word(node: Node) -> str:
    if isinstance(node, Elementwise):
        terms = [term for component in node.activation.components for term in component]
        return "" if all(term.function == "identity" for term in terms) else node.activation.name
    if _averages(node):
        return "AvgPool"
    return type(node).__name__ if isinstance(node, MaxPool | GroupSort | Normalize | Softmax) else ""


__all__ = ["architecture", "has_weights", "parameter_count"]
