"""Graphs as files: nodes with their tensors, and activations by the terms that make them."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from dataclasses import MISSING, fields, replace
from fractions import Fraction
from functools import cache
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, get_args, get_origin, get_type_hints

import torch
from torch import Tensor

from lipbridge import checks
from lipbridge.activations.activation import Activation, Component, Term
from lipbridge.activations.registry import recognise
from lipbridge.activations.scalar_functions import SCALAR_FUNCTIONS
from lipbridge.errors import NumericalFailure, first_line
from lipbridge.files.container import Opened, model_file, named_faults, open_container, write_container
from lipbridge.files.header import (
    MAX_DIGITS,
    MAX_SIZE,
    MAX_TERMS,
    Check,
    Fault,
    as_flag,
    as_integer,
    as_list,
    as_object,
    as_positive,
    as_real,
    as_text,
)
from lipbridge.graph.evaluation import evaluate
from lipbridge.graph.graph import Graph
from lipbridge.graph.nodes import (
    Add,
    Concat,
    Conv,
    ConvTranspose,
    Dense,
    Elementwise,
    Gather,
    GroupSort,
    Input,
    MaxPool,
    Node,
    Normalize,
    Reshape,
    Softmax,
)
from lipbridge.rounding.factors import Factor, number


def save_graph(graph: Graph, path: str | os.PathLike[str], extra: Mapping[str, object] | None = None) -> Path:
    """Write a Graph to a file, atomically and exactly (float64); returns the file's path.

    Args:
        graph: of any nodes.
        path: a file, or an existing folder, which gets ``model.safetensors``.
        extra: as for :func:`save`.

    Raises:
        ModelFileError: if weights are NaN or infinite, or the file cannot be written.
    """
    file = model_file(path)
    checks.instance(graph, Graph, "graph", "be a Graph, which lipbridge.capture(module) gives")
    with named_faults(file, "write"):
        body, tensors = encode_graph(graph)
        return write_container(file, "graph", body, tensors, extra, NUMBERS.values())


def load_graph(path: str | os.PathLike[str]) -> Graph:
    """Read a Graph that :func:`save_graph` wrote. The facts of its activations are derived anew from their terms.

    Raises:
        ModelFileError: as :func:`load`.
    """
    file = model_file(path)
    with named_faults(file), open_container(file, "graph") as opened:
        graph, _ = decode_graph(opened.body, opened)
        return graph


_NODES: Mapping[str, type[Node]] = {
    kind.__name__: kind
    for kind in (
        *(Input, Dense, Conv, ConvTranspose, Gather, Elementwise),
        *(Concat, Add, MaxPool, GroupSort, Normalize, Softmax, Reshape),
    )
}
#: What a Graph holds: weights, and the coordinates of a Gather.
NUMBERS: Mapping[str, torch.dtype] = {"F64": torch.float64, "I64": torch.int64}


def _number_of(field: str) -> torch.dtype:
    """The dtype of a node's tensor."""
    return torch.int64 if field == "index" else torch.float64


@cache
def _hints(kind: type[Node]) -> dict[str, Any]:
    hints = get_type_hints(kind)
    return {item.name: hints[item.name] for item in fields(kind)}


def encode_graph(graph: Graph) -> tuple[dict[str, Any], dict[str, Tensor]]:
    tensors: dict[str, Tensor] = {}
    nodes: list[dict[str, Any]] = []
    for index, node in enumerate(graph.nodes):
        if type(node) is not _NODES.get(type(node).__name__):
            raise Fault(f"node {node.name!r} of type {type(node).__name__} has no place in it", "Lower it first")
        spec: dict[str, Any] = {"type": type(node).__name__}
        for name in _hints(type(node)):
            value = getattr(node, name)
            if isinstance(value, Tensor):
                tensors[f"{index}.{name}"] = value.to(_number_of(name))
                value = {"tensor": f"{index}.{name}"}
            elif isinstance(value, Activation):
                value = [[_encode_term(term) for term in component] for component in value.components]
            spec[name] = value
        nodes.append(spec)
    return {"name": graph.name, "nodes": nodes}, tensors


def _encode_term(term: Term) -> list[Any]:
    numbers = [_encode_factor(value) for value in (term.coefficient, term.scale, term.offset)]
    return [term.function, *numbers, list(term.parameters)]


def _encode_factor(value: float) -> float | str:
    """A number of a term; a fraction that is no double as text."""
    return f"{value.exact.numerator}/{value.exact.denominator}" if isinstance(value, Factor) else float(value)


def _decode_factor(value: Any) -> float:
    if not isinstance(value, str):
        return as_real(value)
    top, _, bottom = value.partition("/")
    if not (len(value) <= MAX_DIGITS and top.removeprefix("-").isdecimal() and bottom.isdecimal() and int(bottom)):
        raise Fault("its header holds a term with a factor that is no fraction")
    try:
        return number(Fraction(int(top), int(bottom)))
    except NumericalFailure as error:
        raise Fault("its header holds a factor beyond float64") from error


def decode_graph(body: Any, opened: Opened, others: tuple[str, ...] = ()) -> tuple[Graph, dict[str, Tensor]]:
    """The Graph, and the float64 tensors ``others``. Shapes are checked on the meta device before anything is read."""
    body = as_object(body, "name", "nodes")
    wanted: dict[str, Tensor] = {}
    nodes: list[Node] = []
    for index, item in enumerate(as_list(body["nodes"])):
        node = _decode_node(item, index, opened, wanted)
        _check_node(node, index, nodes)
        nodes.append(node)
    expected = {name: (blank.dtype, tuple(blank.shape)) for name, blank in wanted.items()}
    rest = {name: (torch.float64, opened.shape(name)) for name in others}
    tensors = opened.tensors({**expected, **rest}, NUMBERS)
    for index, node in enumerate(nodes):
        values = {name: tensors[f"{index}.{name}"] for name in _hints(type(node)) if f"{index}.{name}" in wanted}
        nodes[index] = replace(node, **values)
        if isinstance(node, Gather):
            _check_index(values["index"], node, nodes[node.inputs[0]])
        if any(bool((t < 0).any()) for name, t in values.items() if name.endswith("error")):
            raise Fault(f"the errors of its node {node.name!r} are negative")
    return Graph(tuple(nodes), as_text(body["name"])), tensors


def _decode_node(item: Any, index: int, opened: Opened, wanted: dict[str, Tensor]) -> Node:
    item = as_object(item)
    kind = _NODES.get(as_text(item.get("type")))
    if kind is None:
        raise Fault(f"its node type {item.get('type')!r} is unknown", f"Known are {', '.join(_NODES)}")
    hints = _hints(kind)
    required = {field.name for field in fields(kind) if field.default is MISSING}
    if not {"type", *required} <= set(item) <= {"type", *hints}:
        raise Fault(f"its header lacks an object of type, {', '.join(hints)}, or it has more")
    values: dict[str, Any] = {}
    for name, hint in hints.items():
        if name not in item:  # written before the node got this field
            continue
        value, optional = item[name], NoneType in get_args(hint)
        if value is None and optional:
            values[name] = None
        elif hint is Tensor or (optional and Tensor in get_args(hint)):
            if value != {"tensor": f"{index}.{name}"}:
                raise Fault(f"its node {index} names another node's tensor")
            blank = torch.empty(opened.shape(f"{index}.{name}"), dtype=_number_of(name), device="meta")
            values[name] = wanted[f"{index}.{name}"] = blank
        else:
            values[name] = _decode_field(value, hint)
    return kind(**values)


def _decode_field(value: Any, hint: Any) -> Any:
    """A JSON value as a field of the type ``hint``, one of the few that the nodes of a Graph have."""
    if isinstance(hint, UnionType):
        (hint,) = (choice for choice in get_args(hint) if choice is not NoneType)
    if get_origin(hint) is tuple:
        inner = get_args(hint)
        items = as_list(value)
        if inner[-1] is not Ellipsis and len(items) != len(inner):
            raise Fault(f"its header lacks a list of {len(inner)} items")
        return tuple(_decode_field(item, inner[0]) for item in items)
    decoders: Mapping[Any, Check] = {
        bool: as_flag,
        int: as_integer,
        float: as_positive,
        str: as_text,
        Activation: _decode_activation,
    }
    return decoders[hint](value)


def _decode_activation(value: Any) -> Activation:
    components: list[Component] = [
        tuple(_decode_term(t) for t in as_list(c, MAX_TERMS)) for c in as_list(value, MAX_TERMS)
    ]
    count = sum(map(len, components))
    if not components or not all(components) or count > MAX_TERMS:
        raise Fault(f"its header holds an activation of {count} terms, 1 to {MAX_TERMS} are allowed")
    result = recognise(tuple(components))
    if not all(math.isfinite(constant) for constant in result.lipschitz.values()):
        raise Fault("its header holds an activation without a finite Lipschitz constant")
    return result


def _decode_term(value: Any) -> Term:
    items = as_list(value)
    if len(items) != 5 or as_text(items[0]) not in SCALAR_FUNCTIONS:
        raise Fault("its header holds a term of an unknown function", f"Known are {', '.join(SCALAR_FUNCTIONS)}")
    parameters = tuple(as_real(item) for item in as_list(items[4]))
    if len(parameters) != len(SCALAR_FUNCTIONS[items[0]].parameters):
        raise Fault(f"its header holds {items[0]} with {len(parameters)} parameters")
    if items[0] == "softplus":
        as_positive(parameters[0])
    coefficient, scale, offset = (_decode_factor(item) for item in items[1:4])
    return Term(items[0], coefficient, scale, offset, parameters)


def _check_node(node: Node, index: int, before: list[Node]) -> None:
    """Whether the node fits those before it: its inputs, and its shape, which torch computes on the meta device."""
    if any(not 1 <= size <= MAX_SIZE for size in node.shape) or math.prod(node.shape) > MAX_SIZE or not node.shape:
        raise Fault(f"its node {node.name!r} has the shape {str(node.shape)[:80]}")
    several = isinstance(node, Concat | Add)
    if isinstance(node, Input) != (index == 0) or (index > 0 and not several and len(node.inputs) != 1):
        raise Fault(f"its node {node.name!r} has {len(node.inputs)} inputs")
    if not all(0 <= source < index for source in node.inputs) or (several and not node.inputs):
        raise Fault(f"its node {node.name!r} reads a node that does not come before it")
    if isinstance(node, Dense):
        fits = node.weight.shape == (node.shape[-1], before[node.inputs[0]].shape[-1])
        if not fits or (node.bias is not None and node.bias.shape != node.shape[-1:]):
            raise Fault(f"the weights of its node {node.name!r} do not fit its shape")
    if isinstance(node, Dense | Conv | ConvTranspose):
        pairs = ((node.error, node.weight), (node.bias_error, node.bias))
        if any(a is not None and (b is None or a.shape != b.shape) for a, b in pairs):
            raise Fault(f"the errors of its node {node.name!r} do not fit its weights")
    if isinstance(node, Softmax) and not 0 <= node.axis < len(node.shape):
        raise Fault(f"its node {node.name!r} has the axis {node.axis}")
    if index == 0:
        return
    if isinstance(node, ConvTranspose):
        spread = _spread(node, before[node.inputs[0]].shape)
        if spread > MAX_SIZE:
            raise Fault(f"its node {node.name!r} spreads its input over {spread} positions")
    sources = [torch.empty((1, *before[i].shape), dtype=torch.float64, device="meta") for i in node.inputs]
    try:
        found = evaluate(node, sources).shape
    except (RuntimeError, ValueError, TypeError, IndexError) as error:
        raise Fault(f"its node {node.name!r} does not fit its inputs ({first_line(error).rstrip('.')})") from error
    if found != (1, *node.shape):
        raise Fault(f"its node {node.name!r} has a shape that its inputs do not give")


def _spread(node: ConvTranspose, shape: tuple[int, ...]) -> int:
    """How many positions there are before anything is cut off; 0 if the geometry does not fit the shape."""
    fits = len(node.stride) == len(node.dilation) == len(node.kernel) == len(shape) - 1
    return node.shape[0] * math.prod(node.spread(shape)) if fits else 0


def _check_index(index: Tensor, node: Node, source: Node) -> None:
    """Whether a Gather copies coordinates that there are."""
    size = math.prod(source.shape)
    if index.numel() and not -1 <= int(index.min()) <= int(index.max()) < size:
        raise Fault(f"its node {node.name!r} copies coordinates beyond the {size} of its input")


__all__ = ["NUMBERS", "decode_graph", "encode_graph", "load_graph", "save_graph"]
