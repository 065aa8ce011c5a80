"""ONNX files in two dialects, written node by node so that every verifier's reader takes them.

``relu``: piecewise linear activations as rows of relu in the layers around them. A dense network has only Gemm and Relu
(and Flatten or Reshape where the input is not flat), which all VNN-COMP tools read; beside them come Conv, MaxPool, and
Add, Mul, Concat, Pad, Slice, MatMul and Transpose only where the network has what they say. ``native``: every node
and activation as ONNX operators, for tools that know them.

Both are opset 13, IR 7, one file, float32 raw data, static batch 1, input ``X``, output ``Y``; Gemm always has a bias
and ``transB=1``, Conv always a bias and explicit pads. How each node is written stands in
:mod:`lipbridge_adapters.onnx.emitter`.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from lipbridge.disk.atomic import write_atomically
from lipbridge.disk.strict_json import parse_json
from lipbridge.errors import (
    LipbridgeError,
    MissingDependency,
    ModelFileError,
    NumericalFailure,
    UnknownName,
    UnsupportedOperation,
    first_line,
)
from lipbridge.files.problems import load_problem, save_problem
from lipbridge.frontend.capture import capture
from lipbridge.graph.graph import Graph, with_axes
from lipbridge.graph.nodes import Conv, ConvTranspose, Dense, Node
from lipbridge.lowering.rewriter import Lowering
from lipbridge.lowering.rewrites import fold_scalings, relu_lowering
from lipbridge.problem.problem import Problem
from lipbridge_adapters.onnx import emitted_nodes
from lipbridge_adapters.onnx.emitter import IR_VERSION, OPSET, Emitter

_REGISTERED = (emitted_nodes,)  # the nodes' functions
DIALECTS = ("relu", "native")
#: Largest difference that is allowed between a file in ONNX Runtime and its Graph, relative to the outputs' scale.
TOLERANCE = 1e-5
INSTALL = 'pip install "lipbridge[onnx]"'


@dataclass(frozen=True)
class ExportReport:
    """What was written, and how far it is from the network.

    Attributes:
        path: the file.
        dialect: ``relu`` or ``native``.
        opset: of the default operator set.
        operations: the operators that the file uses, sorted.
        rounding: largest relative change of a weight or of a constant in an activation, by float32 and by merging
            an activation into a weight; 0.0 if the file holds the network exactly.
        error: largest difference of an output from the Graph's, relative to the outputs' scale, in ONNX Runtime on
            1,000 random inputs; None if it was not checked.
    """

    path: Path
    dialect: str
    opset: int
    operations: tuple[str, ...]
    rounding: float
    error: float | None


def export_onnx(
    network: Graph | nn.Module,
    path: str | os.PathLike[str],
    dialect: str = "relu",
    *,
    check: bool = True,
    input_shape: Sequence[int] | None = None,
    merge: bool = False,
) -> ExportReport:
    """Write a network as an ONNX file, atomically; nothing is written if it fails or is checked and found wrong.

    Args:
        network: a Graph, or a module that :func:`lipbridge.capture` can read.
        path: the file.
        dialect: ``relu`` or ``native``, see the module's docstring.
        check: whether to compare it with the Graph first, in ONNX Runtime (see :func:`check_export`).
        input_shape: of one input of a module, without batch, as for :func:`lipbridge.capture`.
        merge: of the dialect ``relu``: merge every activation into the weights beside it. That rounds them, and hides
            the activation from a reader; without, one that is not plain to see in them (any but relu, abs and CReLU)
            gets a linear layer of its own.

    Raises:
        UnknownName: for another dialect.
        UnsupportedOperation: naming the layer that the dialect cannot say.
        NumericalFailure: for weights beyond float32's range, or if the check fails.
        MissingDependency: if onnx (or, to check, onnxruntime) is not installed.
        ModelFileError: if the file cannot be written.

    Law: without ``merge``, the Graph that :func:`lipbridge_adapters.onnx.reading.read_onnx` reads has the same trivial
    bound, to the last bit, if ``rounding`` is 0.0. It can be another where the Graph has functions of one node (t and
    abs t, joined or added) as several nodes, which are read as one joint activation.
    """
    if dialect not in DIALECTS:
        raise UnknownName("ONNX dialect", dialect, DIALECTS)
    graph = with_axes(capture(network, input_shape) if isinstance(network, nn.Module) else network)
    if dialect == "native":
        lowering, rounding = fold_scalings(graph), 0.0
    elif merge:
        lowering, rounding = relu_lowering(graph), 0.0
    else:
        lowering, rounding = _relu_readable(graph)
    emitter = Emitter(_tool("onnx"), lowering.graph, dialect, max(rounding, *lowering.rounding.values(), 0.0))
    data = emitter.model()
    error = _compare(data, graph, 1000, 0, str(path)) if check else None
    try:
        file = write_atomically(path, data)
    except OSError as failure:
        raise ModelFileError(str(failure)) from failure
    return ExportReport(file, dialect, OPSET, tuple(sorted(emitter.operations)), emitter.rounding, error)


def check_export(path: str | os.PathLike[str], graph: Graph, n: int = 1000, seed: int = 0) -> float:
    """Check an ONNX file with onnx's checker, and compare it with ``graph`` in ONNX Runtime.

    Args:
        path: an ONNX file with input ``X`` of shape ``(1, *graph.input_shape)`` and one output.
        graph: what it should compute.
        n: number of random inputs (standard normal).
        seed: of the inputs.

    Returns:
        The largest difference of an output, divided by the largest output of the Graph.

    Raises:
        ModelFileError: if the file is missing, damaged, refers to other files, or is rejected.
        NumericalFailure: if the difference is above 1e-5.
        MissingDependency: if onnx or onnxruntime is not installed.
    """
    try:
        data = Path(path).read_bytes()
    except OSError as failure:
        raise ModelFileError(f"Cannot read {str(path)!r}: {failure.strerror or failure}.") from failure
    return _compare(data, graph, n, seed, str(path))


def problem_to_files(problem: Problem, folder: str | os.PathLike[str], dialect: str | None = None) -> ExportReport:
    """Write a Problem for foreign tools, and exactly for the way back.

    The folder gets ``model.onnx`` (for tools), ``problem.safetensors`` (the Problem itself, exact; a region's centres
    are its tensor ``region.centers``) and ``problem.json`` (norms, region, and the SHA-256 of ``model.onnx``).

    Args:
        problem: the Problem.
        folder: made if it is missing.
        dialect: of the ONNX file; ``relu`` where the network allows it, otherwise ``native``, if not given.

    Raises:
        as :func:`export_onnx` and :func:`lipbridge.files.problems.save_problem`.
    """
    folder = Path(folder)
    report = _export_somehow(problem.graph, folder / "model.onnx", dialect)
    file = save_problem(problem, folder / "problem.safetensors")
    region = problem.region
    facts = {
        "network": "model.onnx",
        "sha256": _sha256(report.path),
        "dialect": report.dialect,
        "rounding": report.rounding,
        "problem": file.name,
        "input_norm": problem.input_norm,
        "output_norm": problem.output_norm,
        "quantity": problem.quantity.value,
        "region": None
        if region is None
        else {"norm": region.norm, "radius": region.radius, "balls": len(region.centers)},
    }
    write_atomically(folder / "problem.json", (json.dumps(facts, indent=2) + "\n").encode())
    return report


def problem_from_files(folder: str | os.PathLike[str]) -> Problem:
    """Read the Problem that :func:`problem_to_files` wrote.

    Raises:
        ModelFileError: if a file is missing or damaged, or ``model.onnx`` is no longer what the tools were given.

    Law: the trivial bound is the same double as before.
    """
    folder = Path(folder)
    try:
        facts: Any = parse_json((folder / "problem.json").read_bytes())
        written, found = facts["sha256"], _sha256(folder / "model.onnx")
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as failure:
        raise ModelFileError(
            f"{str(folder)!r} does not hold the files of a problem ({type(failure).__name__}): write them again with "
            "problem_to_files(problem, folder)."
        ) from failure
    if written != found:
        raise ModelFileError(
            f"{str(folder / 'model.onnx')!r} is not the file that was written with its problem: write them again with "
            "problem_to_files(problem, folder)."
        )
    return load_problem(folder / "problem.safetensors")


def _export_somehow(graph: Graph, path: Path, dialect: str | None) -> ExportReport:
    if dialect is not None:
        return export_onnx(graph, path, dialect)
    try:
        return export_onnx(graph, path, "relu")
    except UnsupportedOperation:
        return export_onnx(graph, path, "native")


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _tool(name: str) -> Any:
    try:
        return import_module(name)
    except ImportError as error:
        raise MissingDependency(name, INSTALL) from error


def _relu_readable(graph: Graph) -> tuple[Lowering, float]:
    """The network in float32 with relu alone and every activation in plain sight, and the rounding of its weights."""
    nodes: list[Node] = []
    rounding = 0.0
    for node in graph.nodes:
        if isinstance(node, Dense | Conv | ConvTranspose):
            tensors = [t for t in (node.weight, node.bias) if t is not None]
            stored = [t.to(torch.float32).to(torch.float64) for t in tensors]
            if not all(bool(t.isfinite().all()) for t in stored):
                raise NumericalFailure(f"Layer `{node.name}`: its weights overflow float32, which ONNX verifiers read.")
            changes = (
                torch.where(s == t, 0.0, (s - t).abs() / t.abs()).max() for s, t in zip(stored, tensors, strict=True)
            )
            rounding = max(rounding, *(float(change) for change in changes))
            node = replace(node, weight=stored[0], bias=None if node.bias is None else stored[1])
        nodes.append(node)
    return relu_lowering(Graph(tuple(nodes), graph.name), readable=torch.float32), rounding


# --- checking ------------------------------------------------------------------------------------------------------


def _compare(data: bytes, graph: Graph, n: int, seed: int, name: str) -> float:
    run = _session(data, graph, name)
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, *graph.input_shape, generator=generator)
    expected = graph.to("cpu")(x.double())
    outputs = [run(x[i : i + 1].numpy()) for i in range(n)]
    if any(output.shape != (1, *graph.output_shape) for output in outputs):
        raise ModelFileError(f"{name!r} has outputs of shape {outputs[0].shape}, not (1, *{graph.output_shape}).")
    found = torch.as_tensor(np.concatenate(outputs), dtype=torch.float64)
    scale = max(float(expected.abs().max()), float(np.finfo(np.float32).tiny))
    error = float((found - expected).abs().max()) / scale
    if not error <= TOLERANCE:
        raise NumericalFailure(
            f"{name!r} differs from the network by {error:.2g} of the outputs' scale in ONNX Runtime, more than "
            f"{TOLERANCE:g}: float32 is too coarse for these weights; rescale or retrain the network."
        )
    return error


def _session(data: bytes, graph: Graph, name: str) -> Callable[[NDArray[Any]], NDArray[Any]]:
    """A function that runs the model in ONNX Runtime, after the checker has accepted it."""
    onnx, runtime = _tool("onnx"), _tool("onnxruntime")
    try:
        model = onnx.load_model_from_string(data)
        if any(onnx.external_data_helper.uses_external_data(tensor) for tensor in _tensors(model.graph)):
            raise ModelFileError(f"{name!r} keeps weights in other files, which are not read: write it as one file.")
        onnx.checker.check_model(model, full_check=True)
        options = runtime.SessionOptions()
        options.intra_op_num_threads = 1
        options.log_severity_level = 4  # errors come as exceptions; nothing goes to stderr
        session = runtime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
        (entry,) = session.get_inputs()
        if list(entry.shape) != [1, *graph.input_shape]:
            raise ModelFileError(f"{name!r} takes an input of shape {entry.shape}, not {[1, *graph.input_shape]}.")
    except LipbridgeError:
        raise
    except Exception as error:  # protobuf, checker and runtime each have errors of their own
        line = first_line(error, 300)
        raise ModelFileError(f"{name!r} is no ONNX file that the checker and ONNX Runtime accept: {line}") from error
    return lambda x: session.run(None, {entry.name: x})[0]


def _tensors(graph: Any) -> Iterator[Any]:
    """Every tensor of an ONNX graph, also inside attributes and subgraphs."""
    yield from graph.initializer
    for attribute in (attribute for node in graph.node for attribute in node.attribute):
        yield from (attribute.t, *attribute.tensors)
        for inner in (attribute.g, *attribute.graphs):
            yield from _tensors(inner)


__all__ = [
    "DIALECTS",
    "IR_VERSION",
    "OPSET",
    "ExportReport",
    "check_export",
    "export_onnx",
    "problem_from_files",
    "problem_to_files",
]
