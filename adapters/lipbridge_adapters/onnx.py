"""ONNX files in two dialects, written node by node so that every verifier's reader takes them.

``relu``: only Gemm and Relu (and Flatten or Reshape where the input is not flat), which all VNN-COMP tools read;
piecewise linear activations are lowered into the weights. ``native``: the activations as ONNX operators, for tools
that know them; cos z is sin(z + pi/2), so that a (sin, cos) pair is one Gemm and one Sin.

Both are opset 13, IR 7, one file, float32 raw data, static batch 1, input ``X``, output ``Y``; Gemm always has a bias
and ``transB=1``. GELU is written with Erf and SiLU with Sigmoid, which is what opset 13 has.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import singledispatchmethod
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from lipbridge.activations import Component, Term, derive
from lipbridge.bounds import Problem
from lipbridge.capture import capture
from lipbridge.errors import (
    LipbridgeError,
    MissingDependency,
    ModelFileError,
    NumericalFailure,
    UnknownName,
    UnsupportedOperation,
)
from lipbridge.graph import Add, Concat, Dense, Elementwise, Graph, Node, Reshape
from lipbridge.lowering import Lowering, fold_scalings, relu_lowering
from lipbridge.store import load_problem, parse_json, save_problem, write_atomically

OPSET = 13
IR_VERSION = 7
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
        rounding: largest relative change of a weight, by float32 and by merging an activation into it; 0.0 if the
            file holds the network's weights exactly.
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
) -> ExportReport:
    """Write a network as an ONNX file, atomically; nothing is written if it fails or is checked and found wrong.

    Args:
        network: a Graph, or a module that :func:`lipbridge.capture` can read.
        path: the file.
        dialect: ``relu`` or ``native``, see the module's docstring.
        check: whether to compare it with the Graph first, in ONNX Runtime (see :func:`check_export`).
        input_shape: of one input of a module, without batch, as for :func:`lipbridge.capture`.

    Raises:
        UnknownName: for another dialect.
        UnsupportedOperation: naming the layer that the dialect cannot say.
        NumericalFailure: for weights beyond float32's range, or if the check fails.
        MissingDependency: if onnx (or, to check, onnxruntime) is not installed.
        ModelFileError: if the file cannot be written.
    """
    if dialect not in DIALECTS:
        raise UnknownName("ONNX dialect", dialect, DIALECTS)
    graph = capture(network, input_shape) if isinstance(network, nn.Module) else network
    lowering = relu_lowering(graph) if dialect == "relu" else fold_scalings(_sines_joined(graph))
    emitter = _Emitter(lowering, dialect)
    data = emitter.model()
    error = _compare(data, graph, 1000, 0, str(path)) if check else None
    try:
        file = write_atomically(path, data)
    except OSError as failure:
        raise ModelFileError(f"Cannot write {str(path)!r}: {failure.strerror or failure}.") from failure
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
        as :func:`export_onnx` and :func:`lipbridge.store.save_problem`.
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


# --- a pair of sines is one sine ---------------------------------------------------------------------------------


def _sines_joined(graph: Graph) -> Graph:
    """Each (poly)activation of plain sines and cosines as sines of one affine map, which is folded into the weights."""
    nodes: list[Node] = []
    place: list[int] = []
    for node in graph.nodes:
        node = replace(node, inputs=tuple(place[i] for i in node.inputs))
        components = node.activation.components if isinstance(node, Elementwise) and len(node.shape) == 1 else ()
        lines = [_sine_argument(component) for component in components]
        if isinstance(node, Elementwise) and components and not any(line is None for line in lines):
            affine = derive("affine", tuple((line,) for line in lines if line is not None))
            nodes.append(replace(node, activation=affine))
            sine = derive("sin", ((Term("sin"),),))
            node = Elementwise(node.name, (len(nodes) - 1,), node.shape, sine)
        nodes.append(node)
        place.append(len(nodes) - 1)
    return Graph(tuple(nodes), graph.name)


def _sine_argument(component: Component) -> Term | None:
    if len(component) != 1 or component[0].function not in ("sin", "cos") or component[0].coefficient != 1.0:
        return None
    (term,) = component
    shift = math.pi / 2 if term.function == "cos" else 0.0
    return Term("identity", 1.0, term.scale, term.offset + shift)


# --- writing -------------------------------------------------------------------------------------------------------


class _Emitter:
    """Writes the nodes of one Graph; a value that is needed twice is computed once."""

    def __init__(self, lowering: Lowering, dialect: str) -> None:
        self.onnx = _tool("onnx")
        self.graph, self.dialect = lowering.graph, dialect
        self.rounding = max(lowering.rounding.values(), default=0.0)
        self.operations: set[str] = set()
        self.nodes: list[Any] = []
        self.tensors: dict[tuple[bytes, tuple[int, ...], str], Any] = {}
        self.known: dict[tuple[Any, ...], str] = {}
        self.layer = ""

    def model(self) -> bytes:
        """The bytes of the ONNX file."""
        helper, float32 = self.onnx.helper, self.onnx.TensorProto.FLOAT
        values = ["X"]
        for node in self.graph.nodes[1:]:
            self.layer = node.name
            values.append(self.emit(node, [values[i] for i in node.inputs]))
        if values[-1] == "X":
            raise UnsupportedOperation("input", "a network without layers")
        for node in self.nodes:  # the output may have readers, and may stand anywhere if it was needed before
            for names in (node.input, node.output):
                names[:] = ["Y" if name == values[-1] else name for name in names]
        ends = [
            helper.make_tensor_value_info(name, float32, [1, *shape])
            for name, shape in (("X", self.graph.input_shape), ("Y", self.graph.output_shape))
        ]
        graph = helper.make_graph(self.nodes, "lipbridge", ends[:1], ends[1:], list(self.tensors.values()))
        opset = helper.make_opsetid("", OPSET)
        model = helper.make_model(graph, opset_imports=[opset], ir_version=IR_VERSION, producer_name="lipbridge")
        return model.SerializeToString()

    def op(self, kind: str, *inputs: str, **attributes: object) -> str:
        """The name of the output of one operator."""
        key = (kind, inputs, tuple(sorted((name, repr(value)) for name, value in attributes.items())))
        if key not in self.known:
            name = f"v{len(self.nodes)}"
            label = f"{self.layer}.{len(self.nodes)}"
            self.nodes.append(self.onnx.helper.make_node(kind, list(inputs), [name], name=label, **attributes))
            self.operations.add(kind)
            self.known[key] = name
        return self.known[key]

    def tensor(self, array: NDArray[Any]) -> str:
        key = (array.tobytes(), array.shape, str(array.dtype))
        if key not in self.tensors:
            self.tensors[key] = self.onnx.numpy_helper.from_array(array, name=f"c{len(self.tensors)}")
        return str(self.tensors[key].name)

    def weight(self, values: Tensor) -> str:
        """A float32 tensor; what rounding changes is noted."""
        exact = values.detach().cpu().contiguous()
        stored = exact.to(torch.float32)
        back = stored.to(torch.float64)
        if not bool(torch.isfinite(stored).all()):
            raise NumericalFailure(f"Layer `{self.layer}`: its weights overflow float32, which ONNX verifiers read.")
        change = torch.where(back == exact, 0.0, (back - exact).abs() / exact.abs())
        self.rounding = max(self.rounding, float(change.max()))
        return self.tensor(stored.numpy())

    def scalar(self, value: float) -> str:
        number = np.array(value, dtype=np.float32)
        if not np.isfinite(number):
            raise NumericalFailure(f"Layer `{self.layer}`: its constant {value:g} overflows float32.")
        return self.tensor(number)

    def unsupported(self, operation: str, hint: str = "") -> UnsupportedOperation:
        return UnsupportedOperation(self.layer, f"{operation} in the ONNX dialect `{self.dialect}`", hint)

    @singledispatchmethod
    def emit(self, node: Node, inputs: list[str]) -> str:
        """The name of the value of ``node``."""
        raise self.unsupported(type(node).__name__)

    @emit.register
    def _(self, node: Dense, inputs: list[str]) -> str:
        if len(node.shape) != 1:
            raise self.unsupported("a dense layer on more than one axis", "Flatten before it.")
        bias = torch.zeros_like(node.weight[:, 0]) if node.bias is None else node.bias
        return self.op("Gemm", inputs[0], self.weight(node.weight), self.weight(bias), transB=1)

    @emit.register
    def _(self, node: Reshape, inputs: list[str]) -> str:
        value = inputs[0]
        if node.axes is not None:
            if self.dialect == "relu":
                raise self.unsupported("a transposition", "The dialect `native` takes it.")
            value = self.op("Transpose", value, perm=[0, *(axis + 1 for axis in node.axes)])
        if len(node.shape) == 1:
            return self.op("Flatten", value, axis=1)
        return self.op("Reshape", value, self.tensor(np.array([1, *node.shape], dtype=np.int64)))

    @emit.register
    def _(self, node: Concat, inputs: list[str]) -> str:
        self.only_native("Concat")
        return self.op("Concat", *inputs, axis=node.axis + 1)

    @emit.register
    def _(self, node: Add, inputs: list[str]) -> str:
        self.only_native("Add")
        return self.total(inputs)

    @emit.register
    def _(self, node: Elementwise, inputs: list[str]) -> str:
        components = node.activation.components
        if len(components) > 1 and len(node.shape) > 1:
            raise self.unsupported(f"{node.activation.name} on more than one axis", "Flatten before it.")
        parts = [self.total([self.term(inputs[0], term) for term in component]) for component in components]
        return parts[0] if len(parts) == 1 else self.op("Concat", *parts, axis=1)

    def only_native(self, operation: str) -> None:
        if self.dialect == "relu":
            raise self.unsupported(operation, "The dialect `native` takes it.")

    def total(self, values: Sequence[str]) -> str:
        total = values[0]
        for value in values[1:]:
            total = self.op("Add", total, value)
        return total

    def affine(self, z: str, factor: float, shift: float = 0.0) -> str:
        if factor == -1.0:
            z = self.op("Neg", z)
        elif factor != 1.0:
            z = self.op("Mul", z, self.scalar(factor))
        return z if shift == 0.0 else self.op("Add", z, self.scalar(shift))

    def term(self, z: str, term: Term) -> str:
        write = _FUNCTIONS.get(term.function)
        if write is None:
            raise self.unsupported(term.function)
        return self.affine(write(self, self.affine(z, term.scale, term.offset), term.parameters), term.coefficient)


_Write = Callable[[_Emitter, str, tuple[float, ...]], str]


def _plain(kind: str) -> _Write:
    return lambda emitter, z, _: emitter.op(kind, z)


def _softplus(emitter: _Emitter, z: str, parameters: tuple[float, ...]) -> str:
    (beta,) = parameters
    return emitter.affine(emitter.op("Softplus", emitter.affine(z, beta)), 1.0 / beta)


def _sin_squared(emitter: _Emitter, z: str, _: tuple[float, ...]) -> str:
    sine = emitter.op("Sin", z)
    return emitter.op("Mul", sine, sine)


def _gelu(emitter: _Emitter, z: str, _: tuple[float, ...]) -> str:
    error = emitter.op("Erf", emitter.affine(z, math.sqrt(0.5)))
    return emitter.op("Mul", emitter.affine(z, 0.5), emitter.affine(error, 1.0, 1.0))


#: How each scalar function is said in opset 13.
_FUNCTIONS: dict[str, _Write] = {
    "identity": lambda _emitter, z, _: z,
    "relu": _plain("Relu"),
    "abs": _plain("Abs"),
    "leaky_relu": lambda emitter, z, p: emitter.op("LeakyRelu", z, alpha=p[0]),
    "elu": lambda emitter, z, p: emitter.op("Elu", z, alpha=p[0]),
    "softplus": _softplus,
    "tanh": _plain("Tanh"),
    "sigmoid": _plain("Sigmoid"),
    "sin": _plain("Sin"),
    "cos": lambda emitter, z, _: emitter.op("Sin", emitter.affine(z, 1.0, math.pi / 2)),
    "sin_squared": _sin_squared,
    "silu": lambda emitter, z, _: emitter.op("Mul", z, emitter.op("Sigmoid", z)),
    "gelu": _gelu,
}


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
        line = (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
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
