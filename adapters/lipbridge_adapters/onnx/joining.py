"""Rows that were stacked for tools that know fewer operations, as the joint activation that they stand for.

``relu([W; -W] x + [b; -b])`` is crelu on ``W x + b``; what comes after it may show the activation that it is part of:
``[V V] crelu(z)`` is ``V |z|``, ``[V -aV] crelu(z)`` is ``V`` on a leaky ReLU, and a layer that only mixes the two
blocks, such as ``[I -I; I I]`` for (t, abs t), is that activation itself. All of these are exact, hold for kernels as
for matrices and in files of anybody, and have a smaller bound.

``sin([W; W] x + [b; b + o])`` with one shift o for all rows is (sin t, sin(t + o)) on ``W x + b``, whose constant in
l_2 is sqrt(1 + |cos o|): next to one for a shift near pi / 2, whatever its rounding was. Where the shifts differ from
row to row, as rounded ones do, the rows are sines like any others. Nothing depends on who says to have written a file.
"""

from __future__ import annotations

import math
from dataclasses import replace
from fractions import Fraction
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from lipbridge.activations.activation import Activation, Component, Term
from lipbridge.activations.registry import activation, recognise
from lipbridge.graph.graph import Graph, without_dead_nodes
from lipbridge.graph.nodes import Conv, Dense, Elementwise, Node, Reshape, block_axis


def join_stacked_rows(graph: Graph) -> Graph:
    """The same function with its stacked rows joined."""
    nodes = list(graph.nodes)
    readers = [len(found) for found in graph.readers()]
    for index, node in enumerate(nodes):
        if not (isinstance(node, Elementwise) and node.activation.width == 1):
            continue
        source = node.inputs[0]
        layer = nodes[source]
        if isinstance(layer, Dense | Conv) and _rows(layer) and layer.shape == node.shape and readers[source] == 1:
            joint = _joint(layer, node.activation)
            if joint is not None:
                nodes[source] = half = _first_half(layer)
                nodes[index] = replace(node, activation=joint, axis=0 if len(node.shape) > 1 else -1)
                shifted = _on_shifted(joint, half) if nodes[half.inputs[0]].shape == half.shape else None
                if shifted is not None:
                    nodes[index] = replace(nodes[index], inputs=half.inputs, activation=shifted)
    for index in range(len(nodes)):
        _mixed(nodes, index)
    for index in range(len(nodes)):
        _repeated(nodes, readers, index)
    return without_dead_nodes(Graph(tuple(nodes), graph.name))


def straightened(graph: Graph) -> Graph:
    """The same function without reshapes of reshapes, and with a factor of a single entry as a vector's."""
    nodes: list[Node] = []
    place: list[int] = []
    for node in graph.nodes:
        node = replace(node, inputs=tuple(place[i] for i in node.inputs))
        if isinstance(node, Conv | Reshape):
            source = nodes[node.inputs[0]]
            flat = isinstance(source, Reshape) and source.axes is None
            if isinstance(node, Conv) and flat and node.diagonal and math.prod(node.shape) == 1:
                if nodes[source.inputs[0]].shape == (1,):
                    vector = (node.weight.reshape(1, 1), node.bias, (), (), (), 1)
                    nodes.append(Conv(node.name, source.inputs, (1,), *vector))
                    node = Reshape(node.name, (len(nodes) - 1,), node.shape)
            elif isinstance(node, Reshape) and node.axes is None and flat:
                node = replace(node, inputs=source.inputs)
            if isinstance(node, Reshape) and node.axes is None and nodes[node.inputs[0]].shape == node.shape:
                place.append(node.inputs[0])
                continue
        nodes.append(node)
        place.append(len(nodes) - 1)
    return without_dead_nodes(Graph(tuple(nodes), graph.name), place[-1])


def _rows(layer: Dense | Conv) -> bool:
    """Whether each row of the weight is one coordinate or channel of the layer's value."""
    return len(layer.shape) == 1 if isinstance(layer, Dense) else layer.groups == 1


# --- rows before the activation --------------------------------------------------------------------------------------


def _joint(layer: Dense | Conv, act: Activation) -> Activation | None:
    m = layer.weight.shape[0]
    if m % 2 or act.name not in ("relu", "sin"):
        return None
    bias, half = _bias(layer), m // 2
    W, V, b, c = layer.weight[:half], layer.weight[half:], bias[:half], bias[half:]
    if act.name == "relu":
        if torch.equal(V, -W) and torch.equal(c, -b):
            return activation("crelu")
        for sign in (1.0, -1.0):
            shift = _shift(sign * b, c) if torch.equal(V, sign * W) else None
            if shift is not None:
                return recognise(((Term("relu"),), (Term("relu", 1.0, sign, shift),)))
        return None
    shift = _shift(b, c) if torch.equal(V, W) else None
    return None if shift is None else recognise(((Term("sin"),), (Term("sin", offset=shift),)))


def _shift(b: Tensor, c: Tensor) -> float | None:
    """The double by which each entry of c is above that of b, exactly and the same for all; else None."""
    if not bool(torch.isfinite(b).all() & torch.isfinite(c).all()) or not len(b):
        return None
    pairs = zip(cast(list[float], cast(Any, b).tolist()), cast(list[float], cast(Any, c).tolist()), strict=True)
    shifts = {Fraction(high) - Fraction(low) for low, high in pairs}
    shift = shifts.pop()
    return float(shift) if not shifts and Fraction(float(shift)) == shift else None


def _bias(layer: Dense | Conv) -> Tensor:
    return layer.weight.new_zeros(len(layer.weight)) if layer.bias is None else layer.bias


def _first_half(layer: Dense | Conv) -> Dense | Conv:
    m = layer.weight.shape[0] // 2
    bias = None if layer.bias is None else layer.bias[:m]
    return replace(layer, shape=(m, *layer.shape[1:]), weight=layer.weight[:m], bias=bias)


def _on_shifted(act: Activation, layer: Dense | Conv) -> Activation | None:
    """The activation of ``t + o`` if that is all that the layer does, with one o for all rows and nothing rounded."""
    W, bias = _mixer(layer, biased=True), _bias(layer)
    if W is None or not torch.equal(W, torch.eye(len(W), dtype=W.dtype)) or not bool((bias == bias[0]).all()):
        return None
    shift = float(bias[0])
    components: list[Component] = []
    for component in act.components:
        exact = [Fraction(term.scale) * Fraction(shift) + Fraction(term.offset) for term in component]
        if any(Fraction(float(offset)) != offset for offset in exact):
            return None
        components.append(tuple(replace(t, offset=float(o)) for t, o in zip(component, exact, strict=True)))
    return act if shift == 0.0 else recognise(tuple(components))


def _mixer(layer: Node, *, biased: bool = False) -> Tensor | None:
    """The matrix of a layer (without bias, unless ``biased``) that works on channels alone, each place by itself."""
    if isinstance(layer, Dense) and len(layer.shape) == 1:
        W = layer.weight
    elif isinstance(layer, Conv) and layer.groups == 1 and math.prod(layer.kernel) == 1:
        if any(any(pair) for pair in layer.padding) or any(step != 1 for step in layer.stride):
            return None
        W = layer.weight.flatten(1)
    else:
        return None
    return None if not biased and layer.bias is not None and bool(layer.bias.any()) else W


# --- what comes after it ---------------------------------------------------------------------------------------------


def _pair(nodes: list[Node], index: int) -> Elementwise | None:
    """The node, if it is (relu(t + o), relu(+-t + o')), such as a CReLU, whose blocks are halves of its first axis."""
    node = nodes[index]
    if not isinstance(node, Elementwise) or node.activation.width != 2 or block_axis(node) != 0:
        return None
    terms = [component[0] for component in node.activation.components if len(component) == 1]
    plain = all((term.function, term.coefficient, abs(term.scale)) == ("relu", 1.0, 1.0) for term in terms)
    return node if plain and len(terms) == 2 and terms[0].scale == 1.0 else None


def _combined(pair: Elementwise, first: float, second: float, constant: float = 0.0) -> Component:
    """``first`` times the first function of a pair, ``second`` times the other, and a constant."""
    (one,), (other,) = pair.activation.components
    if pair.activation.name == "crelu" and constant == 0.0:
        return _component(first, -second)
    terms = [replace(one, coefficient=first), replace(other, coefficient=second)]
    found = [term for term in terms if term.coefficient != 0.0]
    return tuple(found if constant == 0.0 else [*found, Term("identity", 1.0, 0.0, constant)])


def _component(right: float, left: float) -> Component:
    """``right * relu(t) - left * relu(-t)``: a function with these slopes."""
    if right == left:
        return (Term("identity", 1.0, right),)
    if right == -left:
        return (Term("abs", right),)
    if right == 1.0 and left != 0.0:
        return (Term("leaky_relu", parameters=(left,)),)
    terms = (Term("relu", right), Term("relu", -left, -1.0))
    return tuple(term for term in terms if term.coefficient != 0.0)


def _mixed(nodes: list[Node], index: int) -> None:
    """A layer that mixes the two blocks of a pair entry by entry, as one activation on what the pair reads."""
    node = nodes[index]
    pair = _pair(nodes, node.inputs[0]) if node.inputs else None
    W = None if pair is None else _mixer(node, biased=True)
    if pair is None or W is None or not isinstance(node, Dense | Conv):
        return
    n = W.shape[1] // 2
    if len(W) % n:
        return
    F, shifts = W[::n, ::n], _bias(node)
    if not bool(F.any(1).all()) or not torch.equal(W, torch.kron(F, torch.eye(n, dtype=W.dtype))):
        return
    if not torch.equal(shifts, shifts[::n].repeat_interleave(n)):
        return
    plain = bool(((F[:, 0] == 0.0) | (F[:, 0] == 1.0)).all() | (F.abs() == F.abs().max()).all())
    if n == 1 and not plain:
        return  # any layer on a single unit would do
    rows = [(float(F[k, 0]), float(F[k, 1]), float(shifts[k * n])) for k in range(len(F))]
    act = recognise(tuple(_combined(pair, *row) for row in rows))
    axis = -1 if len(rows) == 1 or len(node.shape) == 1 else 0
    nodes[index] = Elementwise(node.name, pair.inputs, node.shape, act, axis)


def _repeated(nodes: list[Node], readers: list[int], index: int) -> None:
    """``[V cV] crelu`` as ``V`` on one activation, also with a flattening between them."""
    node = nodes[index]
    if not isinstance(node, Dense | Conv) or not _rows(node):
        return
    place, between = node.inputs[0], nodes[node.inputs[0]]
    flattened = isinstance(between, Reshape) and between.axes is None and len(between.shape) == 1
    if flattened:
        place = between.inputs[0]
    pair = _pair(nodes, place)
    if pair is None or readers[place] != 1 or readers[node.inputs[0]] != 1:
        return
    V, U = node.weight.chunk(2, dim=1)
    ratio = _ratio(V, U)
    if ratio is None or (ratio == -1.0 and pair.activation.name == "crelu"):  # which would be no activation
        return
    act = recognise((_combined(pair, 1.0, ratio),))
    nodes[place] = replace(pair, shape=(pair.shape[0] // 2, *pair.shape[1:]), activation=act, axis=-1)
    if flattened:
        nodes[node.inputs[0]] = replace(between, shape=(between.shape[0] // 2,))
    nodes[index] = replace(node, weight=V.contiguous())


def _ratio(V: Tensor, U: Tensor) -> float | None:
    """The number of float32 with U = c V exactly, if there is one."""
    if torch.equal(V, U):
        return 1.0
    largest = int(V.abs().argmax())
    top = float(V.flatten()[largest])
    ratio = float(np.float32(float(U.flatten()[largest]) / top)) if top else 0.0
    # Products of numbers of float32 are exact in float64.
    short = bool((V.to(torch.float32) == V).all()) and math.isfinite(ratio)
    return ratio if short and torch.equal(U, ratio * V) else None


__all__ = ["join_stacked_rows", "straightened"]
