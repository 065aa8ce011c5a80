"""The check that every reading of an ONNX file ends with: does ONNX Runtime compute what the Graph computes?

Both are evaluated at the same random points of several scales: alone and, where the file leaves its batch open, beside
one another and in another order. Differences within float32's rounding of the values on the way are allowed, which is
measured by evaluating the Graph in float32 as well. Anything else is a refusal that names the first node at which the
two part.

ONNX Runtime never sees the file. It gets a model of the nodes that were read, each of ONNX's own operators, with the
tensors that the reader has checked; half precision is widened, since the Graph is about real numbers.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from importlib import import_module
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lipbridge.errors import LipbridgeError, UnsupportedOperation, first_line
from lipbridge.graph.graph import Graph, multiply_adds
from lipbridge.graph.nodes import Conv, ConvTranspose, Dense, Node
from lipbridge.rigor.running_error import enclose
from lipbridge_adapters.onnx.file import tensor_of, tool
from lipbridge_adapters.onnx.reader import Flow, OnnxReader, has_batch, printable

Array = NDArray[Any]
#: Points by the multiply-adds of one evaluation: (at most, scales of the points), the last for all beyond.
_POINTS: tuple[tuple[float, tuple[float, ...]], ...] = (
    (2e6, (1.0, 1e-3, 1e3, 30.0, 0.03, 1.0, 1.0)),
    (5e7, (1.0, 1e-3, 1e3, 30.0)),
    (math.inf, (1.0, 0.03)),
)
#: Differences that need no closer look, relative to the largest output of a point: 168 units of float32.
_ROUNDING = 1e-5
#: Times the rounding that the Graph in float32 shows, relative to the largest value on the way.
_MEASURED = 32.0
#: Of the largest value on the way: however far the running error goes, more than this is a difference of the output...
_LARGEST_ERROR = 1e-2
#: ... and more than this one of the node that is named.
_CAP = 1e-4
#: Below, ONNX Runtime's sigmoid in float32 is no longer that of real numbers: it stops at -18.
_LOWEST = -15.0
#: Largest values on the way, from which on float32 may have overflowed.
_OVERFLOW = 1e37
#: Bytes of all tensors above which nothing is run.
_LARGEST = 2**30
#: Tensors of more numbers are inputs of the model that is run, which saves copies.
_SMALL = 256
_FLOAT, _DOUBLE, _HALVES = 1, 11, (10, 16)


@dataclass(frozen=True)
class FileCheck:
    """What comparing a Graph with its file gave.

    Attributes:
        points: at how many inputs both were evaluated; 0 if the check could not run.
        error: largest difference of an output, relative to the largest output of its point.
        reason: why the check could not run, in words; empty if it ran.
    """

    points: int
    error: float
    reason: str = ""


def check_reading(reader: OnnxReader, graph: Graph, entry: Any, output: str) -> FileCheck:
    """Compare a Graph with the file that it was read from.

    Args:
        reader: that has read the file.
        graph: what came of it.
        entry: the file's input, a ``ValueInfoProto``.
        output: name of the value that the Graph is.

    Raises:
        UnsupportedOperation: naming the first node at which the two part.
    """
    try:
        runtime = import_module("onnxruntime")
    except Exception:  # not installed, or not fit for this machine
        return FileCheck(0, 0.0, "ONNX Runtime is not installed.")
    if _bytes(reader) > _LARGEST:
        return FileCheck(0, 0.0, f"Its tensors take more than {_LARGEST} bytes.")
    try:
        model = _Model(runtime, reader, entry)
        run = model.session([output])
    except Exception as error:  # ONNX Runtime's errors share no base
        return FileCheck(0, 0.0, f"ONNX Runtime does not take the file: {first_line(error)}")
    with torch.no_grad():
        return _Comparison(reader, graph, model, output).outcome(run)


def _bytes(reader: OnnxReader) -> int:
    protos = (reader.stored[name] for name in reader.named if name in reader.stored)
    return sum(math.prod(proto.dims) * 8 for proto in protos)


# --- the model that is run -------------------------------------------------------------------------------------------


class _Model:
    """The nodes that were read as a model of their own; ``batch`` is None where any number of inputs may be given."""

    def __init__(self, runtime: Any, reader: OnnxReader, entry: Any) -> None:
        self.onnx, self.runtime, self.reader = tool(), runtime, reader
        self.name = str(entry.name)
        self.shape = reader.entry_shape
        declared = [int(d.dim_value) if d.HasField("dim_value") else 0 for d in entry.type.tensor_type.shape.dim]
        self.kind = _DOUBLE if entry.type.tensor_type.elem_type == _DOUBLE else _FLOAT
        self.dtype: Any = np.float64 if self.kind == _DOUBLE else np.float32
        batched = has_batch(self.shape)
        self.batch = (declared[0] or None) if batched and declared else 1
        self.feeds: dict[str, Array] = {}
        self.graph = self._graph()

    def _graph(self) -> Any:
        onnx, reader = self.onnx, self.reader
        graph = onnx.GraphProto(name="read")
        batch: int | str = "batch" if self.batch is None else self.batch
        shape = [batch, *self.shape[1:]] if has_batch(self.shape) else list(self.shape)
        graph.input.append(onnx.helper.make_tensor_value_info(self.name, self.kind, shape))
        for name, proto in reader.stored.items():
            if name not in reader.named:
                continue
            tensor = self._own(proto)
            if tensor.data_type in (_FLOAT, _DOUBLE) and math.prod(tensor.dims) > _SMALL:
                value = onnx.helper.make_tensor_value_info(name, tensor.data_type, list(tensor.dims))
                graph.input.append(value)
                self.feeds[name] = onnx.numpy_helper.to_array(tensor)
            else:
                graph.initializer.append(tensor)
        for index in reader.needed:
            node = graph.node.add()
            node.CopyFrom(reader.file.graph.node[index])
            for attribute in node.attribute:
                if attribute.type == 4:
                    attribute.t.CopyFrom(self._own(attribute.t))
                elif node.op_type == "Cast" and attribute.name == "to" and attribute.i in _HALVES:
                    attribute.i = _FLOAT
        return graph

    def _own(self, proto: Any) -> Any:
        """A tensor inside the model, of float32 where the file has half precision."""
        if proto.data_location != 1 and proto.data_type not in _HALVES:
            return proto
        values = cast(Any, tensor_of(proto, self.reader.file.path.parent)).numpy()
        kind = _FLOAT if proto.data_type in _HALVES else proto.data_type
        array = values.astype(self.onnx.helper.tensor_dtype_to_np_dtype(kind))
        return self.onnx.numpy_helper.from_array(array, str(proto.name))

    def session(self, outputs: Sequence[str]) -> Callable[[Array], list[Array]]:
        """A function of the input's values that gives those of ``outputs``."""
        helper, options = self.onnx.helper, self.runtime.SessionOptions()
        model = helper.make_model(
            self.graph,
            opset_imports=[helper.make_opsetid("", self.reader.file.opset), helper.make_opsetid("ai.onnx.ml", 1)],
            ir_version=10 if self.reader.file.opset > 20 else 8,
        )
        for name in outputs:
            model.graph.output.add().name = name
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        options.log_severity_level = 4  # errors come as exceptions; nothing goes to stderr
        options.graph_optimization_level = self.runtime.GraphOptimizationLevel.ORT_DISABLE_ALL
        options.enable_cpu_mem_arena = options.enable_mem_pattern = False
        session = self.runtime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
        return lambda x: session.run(list(outputs), {self.name: x, **self.feeds})


# --- comparing -------------------------------------------------------------------------------------------------------


class _Comparison:
    """The Graph's values at some points, and what the file's may differ from them."""

    def __init__(self, reader: OnnxReader, graph: Graph, model: _Model, output: str) -> None:
        self.reader, self.graph, self.model, self.output = reader, graph, model, output
        self.work = multiply_adds(graph)
        scales = next(scales for most, scales in _POINTS if self.work <= most)
        generator = torch.Generator().manual_seed(20261125)
        unit = torch.randn(len(scales), *graph.input_shape, generator=generator, dtype=torch.float64)
        sizes = torch.tensor(scales, dtype=torch.float64).reshape(-1, *(1,) * len(graph.input_shape))
        self.x = (unit * sizes).to(torch.float32).to(torch.float64)
        values = graph.values(self.x)
        self.y = values[-1].reshape(len(self.x), -1)
        self.largest = torch.stack([_by_row(value) for value in values if value.numel()]).amax(0)
        self.largest[self._underflowing()] = _OVERFLOW
        self.room = _ROUNDING * _by_row(self.y) + 1e-30
        self.measured = False
        self.error = 0.0

    def outcome(self, run: Callable[[Array], list[Array]]) -> FileCheck:
        """Compare in every way that there is.

        Raises:
            UnsupportedOperation: see above.
        """
        count, batch = len(self.x), self.model.batch
        every = list(range(count))
        together = batch is None and self._batches(run)
        ways: list[list[int]] = [every] if together else []
        if together and self.work <= _POINTS[1][0]:
            ways += [every[::-1][:3], every[:1]]
        if not together:
            ways = [(every * math.ceil((batch or 1) / count))[i:][: batch or 1] for i in every]
            if batch is not None and batch > 1:
                ways = [(every[i:] + every * batch)[:batch] for i in every[:2]]
        if self.work <= _POINTS[1][0]:
            ways.append(ways[-1])  # the same again
        for rows in ways:
            try:
                (found,) = run(self._input(rows))
            except Exception as error:
                return FileCheck(0, 0.0, f"ONNX Runtime cannot run it: {first_line(error)}")
            if not self._agrees(found, rows):
                self._refuse(rows)
        return FileCheck(count, self.error)

    def _underflowing(self) -> Tensor:
        """The points at which float32 loses a value before its logarithm is taken."""
        found = torch.zeros(len(self.x), dtype=torch.bool)
        if self.reader.underflowing:
            values = Graph(tuple(self.reader.nodes)).values(self.x)
            for curve in self.reader.underflowing:
                for (line,) in curve.components:
                    t = line.value(values[curve.source]).reshape(len(self.x), -1)
                    found |= (t < _LOWEST).any(1)
        return found

    def _input(self, rows: Sequence[int]) -> Array:
        shape = (len(rows), *self.model.shape[1:]) if has_batch(self.model.shape) else self.model.shape
        return cast(Any, self.x)[list(rows)].numpy().astype(self.model.dtype).reshape(shape)

    def _batches(self, run: Callable[[Array], list[Array]]) -> bool:
        """Whether the outputs are one after the other for several inputs; a file may take one alone nevertheless."""
        try:
            for rows in ([0, 1], [0, 1, 0]):
                (found,) = run(self._input(rows))
                if found.ndim == 0 or found.shape[0] != len(rows) or found.size != len(rows) * self.y.shape[1]:
                    return False
        except Exception:
            return False
        return True

    def _agrees(self, found: Array, rows: Sequence[int]) -> bool:
        expected = self.y[list(rows)]
        if found.size != expected.numel():
            return False
        values = cast(Any, torch).from_numpy(np.ascontiguousarray(found)).to(torch.float64).reshape(expected.shape)
        gap = _gap(values, expected, self.largest[list(rows)])
        self.error = max(self.error, float((gap / _by_row(expected).clamp_min(1e-30)).max()))
        if bool((gap <= self.room[list(rows)]).all()):
            return True
        if not self.measured:
            self._measure()
        return bool((gap <= self.room[list(rows)]).all()) or bool((gap <= self._running(rows)).all())

    def _measure(self) -> None:
        """More room where float32 shows that it needs it."""
        self.measured = True
        share = float((_rounding_of(self.graph, self.x, self.y) / self.largest.clamp_min(1e-30)).max())
        self.room = torch.maximum(self.room, _MEASURED * min(share, 1e-3) * self.largest)

    def _running(self, rows: Sequence[int]) -> Tensor:
        """The running error in float32, while it says something."""
        try:
            error = _by_row(enclose(self.graph, self.x[list(rows)]).error) * 2.0**29
        except LipbridgeError:
            return torch.zeros(len(rows), dtype=torch.float64)
        return torch.minimum(error, _LARGEST_ERROR * self.largest[list(rows)])

    def _refuse(self, rows: Sequence[int]) -> None:
        words = "for a batch of several inputs, " if len(rows) > 1 and self.model.batch is None else ""
        layer, operation = self._first_difference(rows)
        raise UnsupportedOperation(
            layer,
            operation,
            f"What was read is not what ONNX Runtime computes there ({words}found by the check of the file).",
        )

    def _first_difference(self, rows: Sequence[int]) -> tuple[str, str]:
        """Name and kind of the first node whose values are not those that were read."""
        nodes = [self.reader.file.graph.node[index] for index in self.reader.needed]
        flows, places = self._readable(nodes)
        try:
            made = self.model.session(list(flows))(self._input(rows))
        except Exception:
            return ("output", "output")
        values = Graph(tuple(self.reader.nodes)).values(self.x[list(rows)])
        largest = torch.stack([_by_row(value) for value in values if value.numel()]).amax(0)
        largest = torch.maximum(largest, self.largest[list(rows)])
        for (name, index), found in zip(flows.items(), made, strict=True):
            ours = self._values(index, values)
            theirs = cast(Any, torch).from_numpy(np.ascontiguousarray(found)).to(torch.float64)
            alike = theirs.numel() == ours.numel()
            if not alike or not bool((_gap(theirs.reshape(ours.shape), ours, largest) <= _CAP * largest).all()):
                node = nodes[places[name]]
                return (printable(str(node.name) or name), printable(str(node.op_type)))
        return ("output", "output")

    def _readable(self, nodes: Sequence[Any]) -> tuple[dict[str, Any], dict[str, int]]:
        """The values of nodes that are functions of the Graph's nodes, in the file's order."""
        flows: dict[str, Any] = {}
        places: dict[str, int] = {}
        for place, node in enumerate(nodes):
            for name in map(str, node.output):
                flow = self.reader.named.get(name)
                if not isinstance(flow, Flow):
                    continue
                try:
                    curve = self.reader.curve(flow.value)
                    index = self.reader.materialise(curve)
                except (LipbridgeError, RuntimeError, ValueError):
                    continue  # a step that is no layer of its own, e.g. a variance
                # A layer that took its bias later holds the later value alone.
                for earlier in [key for key, known in flows.items() if known == index]:
                    del flows[earlier]
                flows[name], places[name] = index, place
        return flows, places

    def _values(self, index: int, values: list[Tensor]) -> Tensor:
        return values[index].reshape(len(values[index]), -1)


def _by_row(y: Tensor) -> Tensor:
    return y.abs().reshape(len(y), -1).amax(1)


def _gap(found: Tensor, expected: Tensor, largest: Tensor) -> Tensor:
    """The largest difference of each row; none where float32 has overflowed, or lost a value, on the way."""
    gap = _by_row(torch.nan_to_num(found - expected, nan=math.inf))
    overflowed = ~(largest < _OVERFLOW)
    return torch.where(overflowed, torch.zeros_like(gap), gap)


def _rounding_of(graph: Graph, x: Tensor, y: Tensor) -> Tensor:
    """The largest error, of each row, of evaluating the Graph in float32."""
    single = Graph(tuple(_single(node) for node in graph.nodes), graph.name)
    found = single(x.to(torch.float32)).to(torch.float64).reshape(y.shape)
    return _by_row(torch.nan_to_num(found - y, nan=0.0, posinf=0.0, neginf=0.0))


def _single(node: Node) -> Node:
    if isinstance(node, Dense | Conv | ConvTranspose):
        bias = None if node.bias is None else node.bias.to(torch.float32)
        return replace(node, weight=node.weight.to(torch.float32), bias=bias)
    return node


__all__ = ["FileCheck", "check_reading"]
