"""ONNX files of others as Graphs: opset 9 to 22, from torch, TensorFlow, scikit-learn, VNN-COMP, or by hand.

Operators are read with the functions of the builder (:mod:`lipbridge.frontend.builder`), as a module's are, so a
network has the same Graph whether it comes as a module or as a file. Weights are exact float64 copies of what the file
stores, and the Graph is the function of real numbers that they define. What is not understood is an error that names
it, and nothing is ever executed.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from lipbridge import checks
from lipbridge.errors import InvalidArgument, LipbridgeError, ModelFileError, first_line
from lipbridge.graph.graph import Graph, stored
from lipbridge.graph.nodes import Elementwise, Node
from lipbridge_adapters.onnx import (
    activations,
    arithmetic,
    axes,
    convolutions,
    dense,
    moves,
    normalisation,
    pooling,
    scalar_functions,
    selection,
    shapes,
)
from lipbridge_adapters.onnx.check import FileCheck, check_reading
from lipbridge_adapters.onnx.constants import FOLDS
from lipbridge_adapters.onnx.file import FLOATS, Fault, open_onnx
from lipbridge_adapters.onnx.joining import join_stacked_rows, straightened
from lipbridge_adapters.onnx.reader import MAX_SIZE, OPERATORS, OnnxReader

#: Modules that register what they read.
_REGISTERED = (
    activations,
    arithmetic,
    axes,
    convolutions,
    dense,
    moves,
    normalisation,
    pooling,
    scalar_functions,
    selection,
    shapes,
)

#: What operators on absurd numbers may raise in torch or Python.
_PARSING = (RuntimeError, ValueError, TypeError, IndexError, KeyError, AttributeError, ArithmeticError, MemoryError)


def operators() -> list[str]:
    """Names of the operators that are read, some on constants alone: all files of them are imported here."""
    return sorted({*OPERATORS, *FOLDS, "Constant"})


def read_onnx(
    path: str | os.PathLike[str], input_shape: Sequence[int] | None = None, *, output: str | None = None
) -> Graph:
    """Read an ONNX file as a Graph.

    The file may come from anybody: it is checked before it is parsed, weights in other files are read only from below
    its own folder and through no link, and a hostile file is an error within seconds and little memory.

    Args:
        path: the file, plain or in gzip (``.onnx.gz``, as VNN-COMP has them); a batch that it leaves open is one.
        input_shape: of one input without batch (or, where the file's input has no batch, the whole), for sizes that
            the file leaves open, or in place of a batch that it fixes.
        output: a value of the file to stop at, e.g. the scores before a softmax; its only output if not given.

    Raises:
        ModelFileError: for a file that is missing, damaged, hostile, or of another opset.
        UnsupportedOperation: naming the node and the operator that no node of a Graph can be.
        InvalidArgument: if the input's shape is open and not given, or does not fit.
        MissingDependency: if onnx is not installed.

    Law: the Graph equals the file in ONNX Runtime up to float32 rounding, which is checked at random points wherever
    onnxruntime is installed and can run the file (:mod:`lipbridge_adapters.onnx.check`); a file that ``export_onnx``
    wrote has the trivial bound of the network that it was written from, wherever the file holds its weights exactly.
    """
    return _read_and_check(path, input_shape, output)[0]


def check_onnx(
    path: str | os.PathLike[str], input_shape: Sequence[int] | None = None, *, output: str | None = None
) -> FileCheck:
    """Read an ONNX file, and tell how its Graph compares with it in ONNX Runtime.

    Args:
        path, input_shape, output: as of :func:`read_onnx`, which makes the same check and keeps its outcome for itself.

    Raises:
        as :func:`read_onnx`; UnsupportedOperation, naming the first node at which they part, if they differ.
    """
    return _read_and_check(path, input_shape, output)[1]


def _read_and_check(
    path: str | os.PathLike[str], input_shape: Sequence[int] | None, output: str | None
) -> tuple[Graph, FileCheck]:
    file = checks.path(path, "path")
    input_shape = None if input_shape is None else checks.shape(input_shape, "input_shape")
    output = None if output is None else checks.instance(output, str, "output", "name a value of the file")
    try:
        graph, check = _read(file, input_shape, output)
        _check(graph)
        return graph, check()
    except Fault as fault:
        raise ModelFileError(f"Cannot read ONNX file {str(file)!r}: {fault}.") from None
    except LipbridgeError:
        raise
    except _PARSING as error:
        line = first_line(error)
        raise ModelFileError(f"Cannot read ONNX file {str(file)!r}: it does not fit together ({line}).") from error


def _read(path: Path, input_shape: Sequence[int] | None, output: str | None) -> tuple[Graph, Callable[[], FileCheck]]:
    """The Graph, and what checks it against the file."""
    file = open_onnx(path)
    graph = file.graph
    if len(graph.sparse_initializer):
        raise Fault("it has sparse tensors")
    stored = {str(tensor.name) for tensor in graph.initializer}
    inputs = [entry for entry in graph.input if str(entry.name) not in stored]
    if len(inputs) != 1:
        raise Fault(f"it has {len(inputs)} inputs{_list(inputs)}, and a network has one")
    reader = OnnxReader(file, str(inputs[0].name), _input_shape(inputs[0], input_shape))
    if output is None:
        if len(graph.output) != 1:
            raise Fault(f"it has {len(graph.output)} outputs{_list(graph.output)}: name one (--output)")
        output = str(graph.output[0].name)
    found = reader.read_graph(output, Path(path.name.removesuffix(".gz")).stem)
    found = join_stacked_rows(straightened(found))
    made = replace(found, nodes=_named_apart(found.nodes))
    return made, lambda: check_reading(reader, made, inputs[0], output)


def _list(entries: Sequence[Any]) -> str:
    names = [str(entry.name)[:40] for entry in entries[:6]]
    return f" ({', '.join(repr(name) for name in names)})" if names else ""


def _input_shape(entry: Any, given: Sequence[int] | None) -> tuple[int, ...]:
    """The whole shape of the input, with a batch of one."""
    name = repr(str(entry.name)[:40])
    if not entry.type.HasField("tensor_type") or entry.type.tensor_type.elem_type not in FLOATS:
        raise Fault(f"its input {name} is no tensor of floating point numbers")
    declared = entry.type.tensor_type
    dims = [int(d.dim_value) if d.HasField("dim_value") and d.dim_value > 0 else None for d in declared.shape.dim]
    if given is None:
        shape = [1 if i == 0 and n is None and len(dims) > 1 else n for i, n in enumerate(dims)]
        if not shape or None in shape:
            text = ", ".join("?" if n is None else str(n) for n in dims)
            raise InvalidArgument(
                "input_shape", f"be given, since the file leaves its input's shape open (--input-shape): ({text})", None
            )
        found = tuple(n for n in shape if n is not None)
    else:
        found = _given_shape(tuple(given), dims)
    if len(found) > 8 or math.prod(found) > MAX_SIZE:
        raise Fault(f"its input {name} has the shape {str(found)[:80]}")
    return found


def _given_shape(given: tuple[int, ...], dims: list[int | None]) -> tuple[int, ...]:
    whole = len(given) == len(dims) and len(dims) > 0
    found = given if whole else (1, *given)
    expected = dims if whole or not dims else [None, *dims[1:]]
    fits = not dims or len(found) == len(dims)
    if not fits or any(n is not None and n != m for m, n in zip(found, expected, strict=False)) or min(found) < 1:
        text = ", ".join("?" if n is None else str(n) for n in dims)
        raise InvalidArgument("input_shape", f"fit the file's input, ({text}) with its batch", given)
    return found


def _named_apart(nodes: Sequence[Node]) -> tuple[Node, ...]:
    """The nodes under names that tell them apart: a file may give one name to many."""
    seen: dict[str, int] = {}
    found: list[Node] = []
    for node in nodes:
        name = node.name
        while name in seen:
            seen[node.name] += 1
            name = f"{node.name}#{seen[node.name]}"
        seen[name] = 1
        found.append(node if name == node.name else replace(node, name=name))
    return tuple(found)


def _check(graph: Graph) -> None:
    """Every number is finite, and every node has the shape that its inputs give."""
    for node in graph.nodes:
        numbers = [
            number
            for component in (node.activation.components if isinstance(node, Elementwise) else ())
            for term in component
            for number in (term.coefficient, term.scale, term.offset, *term.parameters)
        ]
        finite = all(bool(tensor.isfinite().all()) for tensor in stored(node).values())
        if not finite or not all(math.isfinite(x) for x in numbers):
            raise Fault(f"its layer {node.name[:60]!r} has numbers that are infinite or NaN")
    values = graph.to("meta").values(torch.empty(1, *graph.input_shape, dtype=torch.float64, device="meta"))
    for node, value in zip(graph.nodes, values, strict=True):
        if tuple(value.shape[1:]) != node.shape:
            raise Fault(f"its layer {node.name[:60]!r} has values of shape {tuple(value.shape[1:])}, not {node.shape}")


__all__ = ["FileCheck", "check_onnx", "read_onnx"]
