"""Model files: safetensors plus one JSON header; they hold numbers and words, never anything that is executed.

The header is the value of the key ``lipbridge`` in the metadata of the safetensors file, e.g.::

    {"format": 1, "kind": "module", "body": {...}, "extra": {...}, "lipbridge": "0.1.0"}

What is read is checked first: the header against the whitelist of layers (or of Graph nodes) and their limits, the
tensors' names, types and shapes against what the header makes of them on torch's meta device, where nothing is
allocated. Only then are numbers read. Facts about activations are derived from their terms, never read from a file.
Every fault is a :class:`ModelFileError` of one line that names the file and the way out.
"""

from __future__ import annotations

import json
import math
import os
import re
import secrets
import time
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import MISSING, dataclass, fields, replace
from fractions import Fraction
from functools import cache
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, cast, get_args, get_origin, get_type_hints

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

import lipbridge
from lipbridge import checks
from lipbridge.activations import (
    SCALAR_FUNCTIONS,
    Activation,
    Component,
    CReLU,
    IdentityAbs,
    IdentityAbsL2,
    Sin2Pair,
    SinCos,
    Term,
    activation,
    activation_module,
    activation_names,
    recognise,
)
from lipbridge.bounds import Ball, Problem
from lipbridge.errors import FileNotWritten, InvalidArgument, LipbridgeError, ModelFileError, NumericalFailure
from lipbridge.factors import Factor, number
from lipbridge.graph import (
    Add,
    Concat,
    Conv,
    ConvTranspose,
    Dense,
    Elementwise,
    Gather,
    Graph,
    GroupSort,
    Input,
    MaxPool,
    Node,
    Normalize,
    Reshape,
    Softmax,
    evaluate,
)
from lipbridge.layers import GroupSort as GroupSortLayer
from lipbridge.layers import MaxMin, Sinusoidal, SinusoidalConv1d, SinusoidalConv2d
from lipbridge.vocabulary import Quantity, as_norm

FORMAT = 1
MODEL_FILE = "model.safetensors"
#: Limits of what is read: bytes of the header, features of a layer, coordinates of a node, layers, depth, terms.
MAX_HEADER = 16 * 2**20
MAX_WIDTH = 2**20
MAX_SIZE = 2**30
MAX_LAYERS = 10_000
MAX_DEPTH = 16
MAX_TERMS = 1024
#: Characters of a fraction in a term.
MAX_DIGITS = 2600
MAX_TEXT = 1024
#: Seconds after which a temporary file has no writer any more.
STALE = 3600.0

_FLOATS = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
_INTEGERS = {"I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8}
#: What a module may hold; integers are the counters of BatchNorm.
_STATE: Mapping[str, torch.dtype] = {**_FLOATS, "I64": torch.int64}
_DTYPES: Mapping[str, torch.dtype] = {**_FLOATS, **_INTEGERS, "BOOL": torch.bool}

_DAMAGED = "It is damaged, or lipbridge did not write it; save the network again"
_SAVE = (
    "write it with lipbridge.save(module, path), or say which module it belongs to: "
    "lipbridge bound FILE.py:NAME --weights FILE"
)
_PICKLE = f"lipbridge never unpickles: load it with torch yourself, then {_SAVE}"


#: How deep the JSON of a file may be nested.
MAX_NESTING = 500
_BRACKETS = re.compile(r'"(?:[^"\\]|\\.)*+"|[\[\]{}]')


class _Fault(Exception):
    """A short fact about a file, and the way out; the public functions add the file's name."""

    def __init__(self, fact: str, way_out: str = _DAMAGED) -> None:
        super().__init__(fact)
        self.way_out = way_out


# --- the public functions ------------------------------------------------------------------------------------------


def save(module: nn.Module, path: str | os.PathLike[str], extra: Mapping[str, object] | None = None) -> Path:
    """Write a module to a model file, atomically; returns the file's path.

    Args:
        module: ``Linear``, ``Conv1d``, ``Conv2d``, sinusoidal layers, ``GroupSort``, ``MaxMin``, a registered
            activation, ``BatchNorm``, pooling, ``Flatten``, ``Unflatten``, ``Identity`` or ``Dropout``, or an
            ``nn.Sequential`` of these (also nested). Weights float64, float32, float16 or bfloat16, of any device.
        path: a file, or an existing folder, which gets ``model.safetensors``.
        extra: anything JSON can hold, kept in the header (accuracy, seed, ...).

    Raises:
        ModelFileError: naming the layer that a model file cannot hold, or weights that are NaN or infinite, or why
            the file cannot be written. A file that was there stays as it was.

    Law: ``load(save(module, path))`` has an equal ``state_dict``, with equal dtypes, and equal layers.
    """
    file = _file(path)
    checks.instance(module, nn.Module, "module", "be a torch.nn.Module")
    with _faults(file, "write"):
        body = {"module": _described(module), "training": module.training}
        return _write(file, "module", body, dict(module.state_dict()), extra, _STATE.values())


def can_save(module: nn.Module) -> bool:
    """Whether a model file can hold the architecture of a module, so that :func:`save` and :func:`load` work for it."""
    try:
        _described(module)
    except (_Fault, *_PARSING):
        return False
    return True


def load(path: str | os.PathLike[str]) -> nn.Module:
    """Read a model file as a torch module again, on the CPU, in the mode (train or eval) that it was saved in.

    Args:
        path: a file that :func:`save` wrote, or a folder that holds ``model.safetensors``.

    Raises:
        ModelFileError: for a file that is missing, damaged, hostile, or of an unknown architecture.
    """
    file = _file(path)
    with _faults(file), _opened(file, "module") as opened:
        body = _object(opened.body, "module", "training")
        module = _decode_module(body["module"])
        expected = {name: (None, shape) for name, shape in _shapes(module).items()}
        module.load_state_dict(opened.tensors(expected, _STATE), assign=True)
        return module.train(_flag(body["training"]))


def load_header(path: str | os.PathLike[str]) -> dict[str, Any]:
    """The JSON header of any file of lipbridge: ``format``, ``kind``, ``body`` (the architecture), ``extra``.

    Raises:
        ModelFileError: as :func:`load`.
    """
    file = _file(path)
    with _faults(file), _opened(file) as opened:
        return opened.header


def save_graph(graph: Graph, path: str | os.PathLike[str], extra: Mapping[str, object] | None = None) -> Path:
    """Write a Graph to a file, atomically and exactly (float64); returns the file's path.

    Args:
        graph: of any nodes.
        path: a file, or an existing folder, which gets ``model.safetensors``.
        extra: as for :func:`save`.

    Raises:
        ModelFileError: if weights are NaN or infinite, or the file cannot be written.
    """
    file = _file(path)
    checks.instance(graph, Graph, "graph", "be a Graph, which lipbridge.capture(module) gives")
    with _faults(file, "write"):
        body, tensors = _encode_graph(graph)
        return _write(file, "graph", body, tensors, extra, _NUMBERS.values())


def load_graph(path: str | os.PathLike[str]) -> Graph:
    """Read a Graph that :func:`save_graph` wrote. The facts of its activations are derived anew from their terms.

    Raises:
        ModelFileError: as :func:`load`.
    """
    file = _file(path)
    with _faults(file), _opened(file, "graph") as opened:
        graph, _ = _decode_graph(opened.body, opened)
        return graph


def save_problem(problem: Problem, path: str | os.PathLike[str]) -> Path:
    """Write a Problem (graph, norms, quantity, region) to a file, atomically and exactly; returns the file's path.

    Raises:
        ModelFileError: if weights or centres are NaN or infinite, or the file cannot be written.
    """
    file = _file(path)
    checks.instance(problem, Problem, "problem", "be a Problem, e.g. Problem(lipbridge.capture(module))")
    with _faults(file, "write"):
        graph, tensors = _encode_graph(problem.graph)
        region = problem.region
        if region is not None:
            tensors["region.centers"] = region.centers.to(torch.float64)
        body = {
            "graph": graph,
            "input_norm": problem.input_norm,
            "output_norm": problem.output_norm,
            "quantity": problem.quantity.value,
            "region": None if region is None else {"radius": float(region.radius), "norm": region.norm},
        }
        return _write(file, "problem", body, tensors, None, _NUMBERS.values())


def load_problem(path: str | os.PathLike[str]) -> Problem:
    """Read a Problem that :func:`save_problem` wrote.

    Raises:
        ModelFileError: as :func:`load`.

    Law: the trivial bound of the loaded Problem is the same double as that of the saved one.
    """
    file = _file(path)
    with _faults(file), _opened(file, "problem") as opened:
        body = _object(opened.body, "graph", "input_norm", "output_norm", "quantity", "region")
        extra = () if body["region"] is None else ("region.centers",)
        graph, others = _decode_graph(body["graph"], opened, extra)
        region = None
        if body["region"] is not None:
            ball = _object(body["region"], "radius", "norm")
            centers = others["region.centers"]
            if centers.shape[1:] != graph.input_shape:
                raise _Fault(f"the region's centres have shape {tuple(centers.shape)}, which does not fit the input")
            region = Ball(centers, _real(ball["radius"]), as_norm(ball["norm"]))
        norms = as_norm(body["input_norm"]), as_norm(body["output_norm"])
        return Problem(graph, *norms, region, Quantity(_text(body["quantity"])))


def save_tensors(
    path: str | os.PathLike[str], tensors: Mapping[str, Tensor], metadata: Mapping[str, object] | None = None
) -> Path:
    """Write tensors and JSON metadata to a file, atomically (for checkpoints); returns the file's path.

    Args:
        path: a file.
        tensors: float64, float32, float16, bfloat16, integers of up to 64 bits, or bool. Names are free.
        metadata: anything JSON can hold; NaN and infinity are refused, here as in the tensors.

    Raises:
        ModelFileError: for a tensor that the file cannot hold, or if it cannot be written.
    """
    file = _file(path)
    checks.instance(tensors, Mapping, "tensors", "be tensors by name, in a dict")
    for name, value in cast(Mapping[object, object], tensors).items():
        checks.instance(name, str, "tensors", "have names that are text")
        checks.instance(value, Tensor, "tensors", "hold tensors alone")
    with _faults(file, "write"):
        return _write(file, "tensors", {}, dict(tensors), metadata, _DTYPES.values())


def load_tensors(path: str | os.PathLike[str]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read ``(tensors, metadata)`` that :func:`save_tensors` wrote, on the CPU.

    Raises:
        ModelFileError: as :func:`load`.
    """
    file = _file(path)
    with _faults(file), _opened(file, "tensors") as opened:
        return opened.tensors(dict.fromkeys(opened.names, (None, None)), _DTYPES), opened.header["extra"]


def write_atomically(path: str | os.PathLike[str], data: bytes) -> Path:
    """Write ``data`` so that at any moment, also after ``kill -9``, ``path`` holds the old bytes or the new ones.

    Missing folders are made. The bytes go to a temporary file in the same folder, to the disk, then to the name. What
    a killed writer leaves behind is removed by a later write of the same file, after an hour.

    Raises:
        FileNotWritten: if that fails, e.g. on a full disk; the temporary file is removed and the old file is as it was.
    """
    path = Path(path)
    temporary = _temporary(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(temporary, "xb") as stream:
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(temporary, path)
    except BaseException as error:
        with suppress(OSError):
            temporary.unlink()
        if isinstance(error, OSError):
            raise FileNotWritten(path, error) from error
        raise
    sync_folder(path.parent)
    _sweep(path)
    return path


def sync_folder(folder: Path) -> None:
    """Bring to the disk which names a folder has; some file systems cannot, and the files themselves are safe."""
    with suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def is_temporary(name: str, file: str) -> bool:
    """Whether ``name`` is one of the names that :func:`write_atomically` gives the bytes of ``file`` on their way."""
    return re.fullmatch(re.escape(f".{file[:100]}.") + r"[0-9a-f]{12}\.tmp", name) is not None


def _temporary(path: Path) -> Path:
    return path.parent / f".{path.name[:100]}.{secrets.token_hex(6)}.tmp"


def _sweep(path: Path) -> None:
    """Remove temporary files of ``path`` that writers killed long ago left behind."""
    with suppress(OSError):  # another writer may be faster
        for entry in os.scandir(path.parent):
            if is_temporary(entry.name, path.name) and time.time() - entry.stat().st_mtime > STALE:
                os.unlink(entry.path)


# --- files ---------------------------------------------------------------------------------------------------------


def _file(path: str | os.PathLike[str]) -> Path:
    found = checks.path(path, "path")
    return found / MODEL_FILE if found.is_dir() else found


@contextmanager
def _faults(file: Path, verb: str = "read") -> Generator[None]:
    """Turn whatever goes wrong inside into one line about ``file``."""
    try:
        yield
    except _Fault as fault:
        raise ModelFileError(f"Cannot {verb} model file {str(file)!r}: {fault}. {fault.way_out}.") from None
    except ModelFileError:
        raise
    except FileNotWritten as error:
        raise ModelFileError(str(error)) from error
    except OSError as error:
        raise ModelFileError(f"Cannot {verb} model file {str(file)!r}: {error.strerror or error}.") from error
    except InvalidArgument as error:
        if verb == "write":
            raise
        raise ModelFileError(f"Cannot read model file {str(file)!r}: {_line(error)} {_DAMAGED}.") from error
    except _PARSING as error:
        raise ModelFileError(f"Cannot {verb} model file {str(file)!r}: {_line(error)}. {_DAMAGED}.") from error


#: What parsing damaged bytes may raise: safetensors, json (also its recursion limit), torch on absurd shapes.
_PARSING = (safetensors.SafetensorError, ValueError, TypeError, RuntimeError, ArithmeticError, LipbridgeError)


def _line(error: Exception) -> str:
    """The first line of an error's text, printable and not too long."""
    lines = str(error).splitlines() or [type(error).__name__]
    return "".join(c if c.isprintable() else "?" for c in lines[0])[:300].rstrip(".")


def _write(
    file: Path,
    kind: str,
    body: Mapping[str, Any],
    tensors: Mapping[str, Tensor],
    extra: Mapping[str, object] | None,
    dtypes: Any,
) -> Path:
    stored: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        if name == "__metadata__" or tensor.dtype not in dtypes or tensor.layout != torch.strided:
            raise _Fault(f"tensor {name!r} ({tensor.dtype}, {tensor.layout}) has no place in it", "Convert it first")
        _require_finite(name, tensor, "Such a network has no bound; go back to one that is finite")
        stored[name] = tensor.detach().cpu().clone(memory_format=torch.contiguous_format)
    kept: dict[str, object] = {}
    if extra is not None:
        kept |= cast(Mapping[str, object], checks.instance(extra, Mapping, "extra", "be a dict of what JSON can hold"))
    try:
        json.dumps(kept, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise InvalidArgument("extra", f"hold only what JSON can ({_line(error)})", type(extra).__name__) from error
    header = {"format": FORMAT, "kind": kind, "body": body, "extra": kept, "lipbridge": lipbridge.__version__}
    text = json.dumps(header, allow_nan=False)
    if len(text) > MAX_HEADER // 2:
        raise _Fault(f"its header would have {len(text)} bytes", f"At most {MAX_HEADER // 2} are allowed")
    return write_atomically(file, safetensors.torch.save(stored, {"lipbridge": text}))


def _require_finite(name: str, tensor: Tensor, way_out: str) -> None:
    if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
        raise _Fault(f"tensor {name!r} holds NaN or infinite values", way_out)


@dataclass(frozen=True)
class _Opened:
    """An open file whose header has been checked; no number of it has been read yet."""

    handle: Any
    header: dict[str, Any]
    names: frozenset[str]

    @property
    def body(self) -> Any:
        return self.header["body"]

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of a tensor, or a fault if the file has none of that name."""
        if name not in self.names:
            raise _Fault(f"tensor {name!r} is missing")
        return tuple(self.handle.get_slice(name).get_shape())

    def tensors(
        self,
        expected: Mapping[str, tuple[torch.dtype | None, tuple[int, ...] | None]],
        dtypes: Mapping[str, torch.dtype] = _FLOATS,
    ) -> dict[str, Tensor]:
        """Exactly the ``expected`` tensors, of the dtype and shape given there; all are checked before one is read."""
        if missing := sorted(set(expected) - self.names):
            raise _Fault(f"{len(missing)} tensor(s) missing, e.g. {missing[0]!r}")
        if surplus := sorted(self.names - set(expected)):
            raise _Fault(f"{len(surplus)} tensor(s) belong to no layer, e.g. {surplus[0][:MAX_TEXT]!r}")
        for name, (dtype, shape) in expected.items():
            found = dtypes.get(str(self.handle.get_slice(name).get_dtype()))
            if found is None or dtype not in (None, found):
                raise _Fault(f"tensor {name[:MAX_TEXT]!r} has a type that does not belong there")
            if shape is not None and self.shape(name) != shape:
                raise _Fault(f"tensor {name!r} has shape {self.shape(name)}, the architecture says {shape}")
        result: dict[str, Tensor] = {}
        for name in expected:
            tensor = cast(Tensor, self.handle.get_tensor(name))
            _require_finite(name[:MAX_TEXT], tensor, "Go back to a file that was saved before the weights overflowed")
            result[name] = tensor.clone()  # off the memory map, so that a file cut short later does no harm
        return result


@contextmanager
def _opened(file: Path, kind: str | None = None) -> Generator[_Opened]:
    _look(file)
    with cast(Any, safetensors).safe_open(str(file), framework="pt") as handle:
        metadata: Mapping[str, str] = handle.metadata() or {}
        text = metadata.get("lipbridge")
        if text is None:
            raise _Fault(
                "it is a safetensors file without a header of lipbridge, so its architecture is unknown",
                f"Load it with torch and safetensors yourself, then {_SAVE}",
            )
        header = parse_json(text)
        if not isinstance(header, dict):
            raise _Fault("its header is no JSON object")
        header = cast(dict[str, Any], header)
        if header.get("format") != FORMAT or isinstance(header["format"], bool):
            raise _Fault(
                f"its format is {str(header.get('format'))[:20]!r}, this lipbridge reads {FORMAT}", "Upgrade lipbridge"
            )
        header = _object(header, "format", "kind", "body", "extra", "lipbridge")
        _object(header["extra"])
        found = _text(header["kind"])
        if found not in _READERS:
            raise _Fault(f"its kind {found[:40]!r} is unknown", "Upgrade lipbridge")
        if kind is not None and found != kind:
            raise _Fault(f"it holds a {found}, not a {kind}", f"Read it with {_READERS[found]}")
        yield _Opened(handle, header, frozenset(handle.keys()))


_READERS = {
    "module": "lipbridge.load",
    "graph": "lipbridge.store.load_graph",
    "problem": "lipbridge.store.load_problem",
    "tensors": "lipbridge.store.load_tensors",
}


def _look(file: Path) -> None:
    """Refuse what is no safetensors file of a plausible size, before any parser sees it."""
    if not file.is_file():
        found = "it is no regular file" if file.exists() else "there is no such file"
        raise _Fault(found, f"Give a file that lipbridge wrote, or a folder that holds {MODEL_FILE}")
    with open(file, "rb") as stream:
        start = stream.read(9)
        size = os.fstat(stream.fileno()).st_size
    if start[:4] == b"PK\x03\x04" or (
        start[:1] == b"\x80" and start[1:2] in b"\x02\x03\x04\x05" and start[8:9] != b"{"
    ):
        raise _Fault("it is a pickle (torch.save), which can execute anything", _PICKLE)
    length = int.from_bytes(start[:8], "little")
    if len(start) < 9 or length > size - 8:
        raise _Fault("it is cut short, or no safetensors file")
    if length > MAX_HEADER:
        raise _Fault(f"its header has {length} bytes, at most {MAX_HEADER} are allowed")


def parse_json(text: str | bytes) -> Any:
    """Parse JSON from a file that may be hostile: no NaN or infinity, and no deeper than :data:`MAX_NESTING`.

    Python's own parser recurses in C, and where the recursion limit was raised a deep text ends the process.

    Raises:
        ValueError: for text that is no such JSON.
    """
    text = text.decode() if isinstance(text, bytes) else text
    depth = 0
    for token in _BRACKETS.finditer(text):
        depth += {"[": 1, "{": 1, "]": -1, "}": -1}.get(token.group(), 0)
        if depth > MAX_NESTING:
            raise ValueError(f"it is nested more than {MAX_NESTING} deep")
    return json.loads(text, parse_constant=_no_constant)


def _no_constant(name: str) -> float:
    raise _Fault(f"its header holds {name}")


# --- JSON values -----------------------------------------------------------------------------------------------------


def _object(value: Any, *keys: str) -> dict[str, Any]:
    """A JSON object with exactly ``keys`` (any, if none are given)."""
    if not isinstance(value, dict) or (keys and set(cast(dict[str, Any], value)) != set(keys)):
        raise _Fault(f"its header lacks an object of {', '.join(keys) or 'any keys'}, or it has more")
    return cast(dict[str, Any], value)


def _list(value: Any, most: int = MAX_LAYERS) -> list[Any]:
    if not isinstance(value, list) or len(cast(list[Any], value)) > most:
        raise _Fault(f"its header lacks a list of at most {most} items")
    return cast(list[Any], value)


def _text(value: Any) -> str:
    if not isinstance(value, str) or len(value) > MAX_TEXT:
        raise _Fault(f"its header lacks a text of at most {MAX_TEXT} characters")
    return value


def _flag(value: Any) -> bool:
    if not isinstance(value, bool):
        raise _Fault("its header lacks a truth value")
    return value


def _integer(value: Any, least: int = -MAX_SIZE, most: int = MAX_SIZE) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
        raise _Fault(f"its header lacks a whole number from {least} to {most}")
    return value


def _width(value: Any) -> int:
    return _integer(value, 1, MAX_WIDTH)


def _axis(value: Any) -> int:
    return _integer(value, -8, 8)


def _real(value: Any) -> float:
    if not isinstance(value, int | float) or isinstance(value, bool) or not math.isfinite(value):
        raise _Fault("its header lacks a finite number")
    return float(value)


def _probability(value: Any) -> float:
    if not 0.0 <= _real(value) <= 1.0:
        raise _Fault("its header holds a probability outside [0, 1]")
    return float(value)


def _positive(value: Any) -> float:
    if _real(value) <= 0.0:
        raise _Fault("its header holds a number that should be above 0")
    return float(value)


# --- modules -------------------------------------------------------------------------------------------------------

_Check = Callable[[Any], Any]


def _lengths(value: Any) -> Any:
    """A length along space, or one for each axis; 0 stands for no padding."""
    if isinstance(value, list | tuple):
        items = cast(list[Any], value)
        if not 1 <= len(items) <= 3:
            raise _Fault("its header lacks one to three lengths")
        return tuple(_integer(item, 0, MAX_WIDTH) for item in items)
    return _integer(value, 0, MAX_WIDTH)


def _sizes(value: Any) -> tuple[int, ...]:
    items = cast(Any, list(cast(tuple[Any, ...], value)) if isinstance(value, tuple) else value)
    return tuple(_width(item) for item in _list(items, 8))


def _padding(value: Any) -> Any:
    return _text(value) if isinstance(value, str) else _lengths(value)


_CONV: Mapping[str, _Check] = {
    "in_channels": _width,
    "out_channels": _width,
    "kernel_size": _lengths,
    "stride": _lengths,
    "padding": _padding,
    "dilation": _lengths,
    "groups": _width,
    "padding_mode": _text,
}
_ONE: Mapping[str, _Check] = dict.fromkeys(("kernel_size", "stride", "padding", "dilation"), _integer)
_POOL: Mapping[str, _Check] = dict.fromkeys(("kernel_size", "stride", "padding"), _lengths)
_NORM: Mapping[str, _Check] = {"num_features": _width, "eps": _positive, "affine": _flag, "track_running_stats": _flag}
#: The layers other than activations and Sequential: class, and its arguments with their checks.
_LAYERS: Mapping[str, tuple[type[nn.Module], Mapping[str, _Check]]] = {
    "Linear": (nn.Linear, {"in_features": _width, "out_features": _width, "bias": _flag}),
    "Sinusoidal": (Sinusoidal, {"in_features": _width, "out_features": _width, "scale": _real}),
    "Conv1d": (nn.Conv1d, {**_CONV, "bias": _flag}),
    "Conv2d": (nn.Conv2d, {**_CONV, "bias": _flag}),
    "SinusoidalConv1d": (SinusoidalConv1d, {**_CONV, **_ONE, "scale": _real}),
    "SinusoidalConv2d": (SinusoidalConv2d, {**_CONV, **_ONE, "scale": _real}),
    "GroupSort": (GroupSortLayer, {"group": _width}),
    "MaxMin": (MaxMin, {}),
    "MaxPool2d": (nn.MaxPool2d, {**_POOL, "dilation": _lengths, "ceil_mode": _flag}),
    "AvgPool2d": (nn.AvgPool2d, {**_POOL, "ceil_mode": _flag, "count_include_pad": _flag}),
    "AdaptiveAvgPool2d": (nn.AdaptiveAvgPool2d, {"output_size": _lengths}),
    "BatchNorm1d": (nn.BatchNorm1d, _NORM),
    "BatchNorm2d": (nn.BatchNorm2d, _NORM),
    "Flatten": (nn.Flatten, {"start_dim": _axis, "end_dim": _axis}),
    "Unflatten": (nn.Unflatten, {"dim": _axis, "unflattened_size": _sizes}),
    "Identity": (nn.Identity, {}),
    "Dropout": (nn.Dropout, {"p": _probability}),
}
#: Arguments of torch's activation modules beyond the parameters of the registry's row.
_FURTHER: Mapping[type[nn.Module], Mapping[str, _Check]] = {
    nn.Softplus: {"beta": _positive, "threshold": _positive},
    **{kind: {"dim": _axis} for kind in (CReLU, IdentityAbs, IdentityAbsL2, Sin2Pair, SinCos)},
}


def _arguments(name: str, kind: type[nn.Module]) -> Mapping[str, _Check]:
    return {**dict.fromkeys(activation(name).parameters, _real), **_FURTHER.get(kind, {})}


def _activation_of(layer: nn.Module) -> str | None:
    """The registered name of an activation module (their default forms are cheap to make: they have no weights)."""
    return next((name for name in activation_names() if type(activation_module(name)) is type(layer)), None)


def _described(module: nn.Module) -> dict[str, Any]:
    """The specification of a module, from which one with the same tensors can be made."""
    spec = _encode_module(module, "")
    found = {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}
    if found != _shapes(_decode_module(spec)):
        raise _Fault(
            "the module has tensors that its layers do not explain (a parametrisation or a hook?)",
            "Remove them first, e.g. with torch.nn.utils.parametrize.remove_parametrizations",
        )
    return spec


def _encode_module(module: nn.Module, path: str, depth: int = 0) -> dict[str, Any]:
    kind = type(module).__name__
    if type(module) is nn.Sequential:
        if depth >= MAX_DEPTH:
            raise _Fault(f"layer {path!r} is nested more than {MAX_DEPTH} deep", "Flatten the network first")
        # named_children would leave out the second place of a module that stands in two
        inner = cast(Mapping[str, nn.Module], cast(Any, module)._modules)
        layers = [
            [name, _encode_module(layer, f"{path}.{name}".lstrip("."), depth + 1)] for name, layer in inner.items()
        ]
        return {"type": "Sequential", "layers": layers}
    row = _LAYERS.get(kind)
    if row is not None and type(module) is row[0]:
        values = {name: getattr(module, name) for name in row[1]}
        if "bias" in values:
            values["bias"] = values["bias"] is not None
        return {"type": kind, "arguments": values}
    name = _activation_of(module)
    if name is None or getattr(module, "approximate", "none") != "none":
        raise _Fault(
            f"layer {path or '(top level)'!r} of type {kind} cannot be described in it",
            f"A model file holds Sequential, {', '.join(_LAYERS)} and registered activations ({_names()}); "
            "use lipbridge.store.save_graph(lipbridge.capture(module), path) to keep any network that can be captured",
        )
    values = {key: getattr(module, key) for key in _arguments(name, type(module))}
    values = {key: value if key == "dim" else float(value) for key, value in values.items()}
    return {"type": name, "arguments": values}


def _names() -> str:
    return ", ".join(activation_names())


def _decode_module(spec: Any, depth: int = 0, budget: list[int] | None = None) -> nn.Module:
    """The module of a specification, on the meta device."""
    budget = [MAX_LAYERS] if budget is None else budget
    budget[0] -= 1
    if depth > MAX_DEPTH or budget[0] < 0:
        raise _Fault(f"its network has more than {MAX_LAYERS} layers or {MAX_DEPTH} levels")
    kind = _text(_object(spec).get("type"))
    if kind == "Sequential":
        module = nn.Sequential()
        for item in _list(_object(spec, "type", "layers")["layers"]):
            name, inner = _list(item) if len(_list(item)) == 2 else (None, None)
            name = _text(name)
            if not name or "." in name or hasattr(module, name):
                raise _Fault(f"its network has a layer with the name {name!r}, which is taken or not allowed")
            module.add_module(name, _decode_module(inner, depth + 1, budget))
        return module
    row = _LAYERS.get(kind)
    if row is None and kind not in activation_names():
        raise _Fault(
            f"its layer type {kind[:40]!r} is unknown", f"Known are {', '.join(_LAYERS)}, Sequential, {_names()}"
        )
    checks = row[1] if row is not None else _arguments(kind, type(activation_module(kind)))
    values = _object(_object(spec, "type", "arguments")["arguments"])
    values = {"dim": -1, **values} if "dim" in checks else values  # files from before there was a choice
    if set(values) != set(checks):
        raise _Fault(f"its layer {kind} has arguments other than {', '.join(checks) or 'none'}")
    arguments = {name: check(values[name]) for name, check in checks.items()}
    with torch.device("meta"):
        return row[0](**arguments) if row is not None else activation_module(kind, **arguments)


def _shapes(module: nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}


# --- graphs --------------------------------------------------------------------------------------------------------

_NODES: Mapping[str, type[Node]] = {
    kind.__name__: kind
    for kind in (
        *(Input, Dense, Conv, ConvTranspose, Gather, Elementwise),
        *(Concat, Add, MaxPool, GroupSort, Normalize, Softmax, Reshape),
    )
}
#: What a Graph holds: weights, and the coordinates of a Gather.
_NUMBERS: Mapping[str, torch.dtype] = {"F64": torch.float64, "I64": torch.int64}


def _number_of(field: str) -> torch.dtype:
    """The dtype of a node's tensor."""
    return torch.int64 if field == "index" else torch.float64


@cache
def _hints(kind: type[Node]) -> dict[str, Any]:
    hints = get_type_hints(kind)
    return {item.name: hints[item.name] for item in fields(kind)}


def _encode_graph(graph: Graph) -> tuple[dict[str, Any], dict[str, Tensor]]:
    tensors: dict[str, Tensor] = {}
    nodes: list[dict[str, Any]] = []
    for index, node in enumerate(graph.nodes):
        if type(node) is not _NODES.get(type(node).__name__):
            raise _Fault(f"node {node.name!r} of type {type(node).__name__} has no place in it", "Lower it first")
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
        return _real(value)
    top, _, bottom = value.partition("/")
    if not (len(value) <= MAX_DIGITS and top.removeprefix("-").isdecimal() and bottom.isdecimal() and int(bottom)):
        raise _Fault("its header holds a term with a factor that is no fraction")
    try:
        return number(Fraction(int(top), int(bottom)))
    except NumericalFailure as error:
        raise _Fault("its header holds a factor beyond float64") from error


def _decode_graph(body: Any, opened: _Opened, others: tuple[str, ...] = ()) -> tuple[Graph, dict[str, Tensor]]:
    """The Graph, and the float64 tensors ``others``. Shapes are checked on the meta device before anything is read."""
    body = _object(body, "name", "nodes")
    wanted: dict[str, Tensor] = {}
    nodes: list[Node] = []
    for index, item in enumerate(_list(body["nodes"])):
        node = _decode_node(item, index, opened, wanted)
        _check_node(node, index, nodes)
        nodes.append(node)
    expected = {name: (blank.dtype, tuple(blank.shape)) for name, blank in wanted.items()}
    rest = {name: (torch.float64, opened.shape(name)) for name in others}
    tensors = opened.tensors({**expected, **rest}, _NUMBERS)
    for index, node in enumerate(nodes):
        values = {name: tensors[f"{index}.{name}"] for name in _hints(type(node)) if f"{index}.{name}" in wanted}
        nodes[index] = replace(node, **values)
        if isinstance(node, Gather):
            _check_index(values["index"], node, nodes[node.inputs[0]])
        if any(bool((t < 0).any()) for name, t in values.items() if name.endswith("error")):
            raise _Fault(f"the errors of its node {node.name!r} are negative")
    return Graph(tuple(nodes), _text(body["name"])), tensors


def _decode_node(item: Any, index: int, opened: _Opened, wanted: dict[str, Tensor]) -> Node:
    item = _object(item)
    kind = _NODES.get(_text(item.get("type")))
    if kind is None:
        raise _Fault(f"its node type {item.get('type')!r} is unknown", f"Known are {', '.join(_NODES)}")
    hints = _hints(kind)
    required = {field.name for field in fields(kind) if field.default is MISSING}
    if not {"type", *required} <= set(item) <= {"type", *hints}:
        raise _Fault(f"its header lacks an object of type, {', '.join(hints)}, or it has more")
    values: dict[str, Any] = {}
    for name, hint in hints.items():
        if name not in item:  # written before the node got this field
            continue
        value, optional = item[name], NoneType in get_args(hint)
        if value is None and optional:
            values[name] = None
        elif hint is Tensor or (optional and Tensor in get_args(hint)):
            if value != {"tensor": f"{index}.{name}"}:
                raise _Fault(f"its node {index} names another node's tensor")
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
        items = _list(value)
        if inner[-1] is not Ellipsis and len(items) != len(inner):
            raise _Fault(f"its header lacks a list of {len(inner)} items")
        return tuple(_decode_field(item, inner[0]) for item in items)
    decoders: Mapping[Any, _Check] = {
        bool: _flag,
        int: _integer,
        float: _positive,
        str: _text,
        Activation: _decode_activation,
    }
    return decoders[hint](value)


def _decode_activation(value: Any) -> Activation:
    components: list[Component] = [tuple(_decode_term(t) for t in _list(c, MAX_TERMS)) for c in _list(value, MAX_TERMS)]
    count = sum(map(len, components))
    if not components or not all(components) or count > MAX_TERMS:
        raise _Fault(f"its header holds an activation of {count} terms, 1 to {MAX_TERMS} are allowed")
    result = recognise(tuple(components))
    if not all(math.isfinite(constant) for constant in result.lipschitz.values()):
        raise _Fault("its header holds an activation without a finite Lipschitz constant")
    return result


def _decode_term(value: Any) -> Term:
    items = _list(value)
    if len(items) != 5 or _text(items[0]) not in SCALAR_FUNCTIONS:
        raise _Fault("its header holds a term of an unknown function", f"Known are {', '.join(SCALAR_FUNCTIONS)}")
    parameters = tuple(_real(item) for item in _list(items[4]))
    if len(parameters) != len(SCALAR_FUNCTIONS[items[0]].parameters):
        raise _Fault(f"its header holds {items[0]} with {len(parameters)} parameters")
    if items[0] == "softplus":
        _positive(parameters[0])
    coefficient, scale, offset = (_decode_factor(item) for item in items[1:4])
    return Term(items[0], coefficient, scale, offset, parameters)


def _check_node(node: Node, index: int, before: list[Node]) -> None:
    """Whether the node fits those before it: its inputs, and its shape, which torch computes on the meta device."""
    if any(not 1 <= size <= MAX_SIZE for size in node.shape) or math.prod(node.shape) > MAX_SIZE or not node.shape:
        raise _Fault(f"its node {node.name!r} has the shape {str(node.shape)[:80]}")
    several = isinstance(node, Concat | Add)
    if isinstance(node, Input) != (index == 0) or (index > 0 and not several and len(node.inputs) != 1):
        raise _Fault(f"its node {node.name!r} has {len(node.inputs)} inputs")
    if not all(0 <= source < index for source in node.inputs) or (several and not node.inputs):
        raise _Fault(f"its node {node.name!r} reads a node that does not come before it")
    if isinstance(node, Dense):
        fits = node.weight.shape == (node.shape[-1], before[node.inputs[0]].shape[-1])
        if not fits or (node.bias is not None and node.bias.shape != node.shape[-1:]):
            raise _Fault(f"the weights of its node {node.name!r} do not fit its shape")
    if isinstance(node, Dense | Conv | ConvTranspose):
        pairs = ((node.error, node.weight), (node.bias_error, node.bias))
        if any(a is not None and (b is None or a.shape != b.shape) for a, b in pairs):
            raise _Fault(f"the errors of its node {node.name!r} do not fit its weights")
    if isinstance(node, Softmax) and not 0 <= node.axis < len(node.shape):
        raise _Fault(f"its node {node.name!r} has the axis {node.axis}")
    if index == 0:
        return
    if isinstance(node, ConvTranspose):
        spread = _spread(node, before[node.inputs[0]].shape)
        if spread > MAX_SIZE:
            raise _Fault(f"its node {node.name!r} spreads its input over {spread} positions")
    sources = [torch.empty((1, *before[i].shape), dtype=torch.float64, device="meta") for i in node.inputs]
    try:
        found = evaluate(node, sources).shape
    except (RuntimeError, ValueError, TypeError, IndexError) as error:
        raise _Fault(f"its node {node.name!r} does not fit its inputs ({_line(error)})") from error
    if found != (1, *node.shape):
        raise _Fault(f"its node {node.name!r} has a shape that its inputs do not give")


def _spread(node: ConvTranspose, shape: tuple[int, ...]) -> int:
    """How many positions there are before anything is cut off; 0 if the geometry does not fit the shape."""
    fits = len(node.stride) == len(node.dilation) == len(node.kernel) == len(shape) - 1
    return node.shape[0] * math.prod(node.spread(shape)) if fits else 0


def _check_index(index: Tensor, node: Node, source: Node) -> None:
    """Whether a Gather copies coordinates that there are."""
    size = math.prod(source.shape)
    if index.numel() and not -1 <= int(index.min()) <= int(index.max()) < size:
        raise _Fault(f"its node {node.name!r} copies coordinates beyond the {size} of its input")


__all__ = [
    "FORMAT",
    "MAX_HEADER",
    "MODEL_FILE",
    "can_save",
    "load",
    "load_graph",
    "load_header",
    "load_problem",
    "load_tensors",
    "save",
    "save_graph",
    "save_problem",
    "save_tensors",
    "write_atomically",
]
