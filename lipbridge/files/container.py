"""Model files: safetensors plus one JSON header; they hold numbers and words, never anything that is executed.

The header is the value of the key ``lipbridge`` in the metadata of the safetensors file, e.g.::

    {"format": 1, "kind": "module", "body": {...}, "extra": {...}, "lipbridge": "0.1.0"}

What is read is checked first: the header against the whitelist of layers (or of Graph nodes) and their limits, the
tensors' names, types and shapes against what the header makes of them on torch's meta device, where nothing is
allocated. Only then are numbers read. Facts about activations are derived from their terms, never read from a file.
Every fault is a :class:`ModelFileError` of one line that names the file and the way out.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from lipbridge import checks
from lipbridge.disk.atomic import write_atomically
from lipbridge.disk.strict_json import parse_json
from lipbridge.errors import FileNotWritten, InvalidArgument, LipbridgeError, ModelFileError, first_line, way_out
from lipbridge.files.header import DAMAGED, MAX_HEADER, MAX_TEXT, Fault, as_object, as_text
from lipbridge.version import __version__

FORMAT = 1
MODEL_FILE = "model.safetensors"

FLOATS = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
_INTEGERS = {"I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8}
_DTYPES: Mapping[str, torch.dtype] = {**FLOATS, **_INTEGERS, "BOOL": torch.bool}
_SAVE = (
    "write it with lipbridge.save(module, path), or say which module it belongs to: "
    "lipbridge bound FILE.py:NAME --weights FILE"
)
_PICKLE = f"lipbridge never unpickles: load it with torch yourself, then {_SAVE}"


def load_header(path: str | os.PathLike[str]) -> dict[str, Any]:
    """The JSON header of any file of lipbridge: ``format``, ``kind``, ``body`` (the architecture), ``extra``.

    Raises:
        ModelFileError: as :func:`load`.
    """
    file = model_file(path)
    with named_faults(file), open_container(file) as opened:
        return opened.header


def file_digest(path: Path) -> str:
    """The SHA-256, in 64 hex digits, of any file; of a run's folder that of its model.

    Raises:
        ModelFileError: if it cannot be read.
    """
    file = path / MODEL_FILE if path.is_dir() else path
    try:
        with file.open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()
    except OSError as error:
        raise ModelFileError(f"{file} cannot be read ({error.strerror}). {way_out(error)}.") from None


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
    file = model_file(path)
    checks.instance(tensors, Mapping, "tensors", "be tensors by name, in a dict")
    for name, value in cast(Mapping[object, object], tensors).items():
        checks.instance(name, str, "tensors", "have names that are text")
        checks.instance(value, Tensor, "tensors", "hold tensors alone")
    with named_faults(file, "write"):
        return write_container(file, "tensors", {}, dict(tensors), metadata, _DTYPES.values())


def load_tensors(path: str | os.PathLike[str]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read ``(tensors, metadata)`` that :func:`save_tensors` wrote, on the CPU.

    Raises:
        ModelFileError: as :func:`load`.
    """
    file = model_file(path)
    with named_faults(file), open_container(file, "tensors") as opened:
        return opened.tensors(dict.fromkeys(opened.names, (None, None)), _DTYPES), opened.header["extra"]


def model_file(path: str | os.PathLike[str]) -> Path:
    found = checks.path(path, "path")
    return found / MODEL_FILE if found.is_dir() else found


@contextmanager
def named_faults(file: Path, verb: str = "read") -> Generator[None]:
    """Turn whatever goes wrong inside into one line about ``file``."""
    try:
        yield
    except Fault as fault:
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
        raise ModelFileError(f"Cannot read model file {str(file)!r}: {first_line(error)} {DAMAGED}.") from error
    except PARSING as error:
        raise ModelFileError(
            f"Cannot {verb} model file {str(file)!r}: {first_line(error).rstrip('.')}. {DAMAGED}."
        ) from error


#: What parsing damaged bytes may raise: safetensors, json (also its recursion limit), torch on absurd shapes.
PARSING = (safetensors.SafetensorError, ValueError, TypeError, RuntimeError, ArithmeticError, LipbridgeError)


def write_container(
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
            raise Fault(f"tensor {name!r} ({tensor.dtype}, {tensor.layout}) has no place in it", "Convert it first")
        _require_finite(name, tensor, "Such a network has no bound; go back to one that is finite")
        stored[name] = tensor.detach().cpu().clone(memory_format=torch.contiguous_format)
    kept: dict[str, object] = {}
    if extra is not None:
        kept |= cast(Mapping[str, object], checks.instance(extra, Mapping, "extra", "be a dict of what JSON can hold"))
    try:
        json.dumps(kept, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise InvalidArgument(
            "extra", f"hold only what JSON can ({first_line(error).rstrip('.')})", type(extra).__name__
        ) from error
    header = {"format": FORMAT, "kind": kind, "body": body, "extra": kept, "lipbridge": __version__}
    text = json.dumps(header, allow_nan=False)
    if len(text) > MAX_HEADER // 2:
        raise Fault(f"its header would have {len(text)} bytes", f"At most {MAX_HEADER // 2} are allowed")
    return write_atomically(file, safetensors.torch.save(stored, {"lipbridge": text}))


def _require_finite(name: str, tensor: Tensor, way_out: str) -> None:
    if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
        raise Fault(f"tensor {name!r} holds NaN or infinite values", way_out)


@dataclass(frozen=True)
class Opened:
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
            raise Fault(f"tensor {name!r} is missing")
        return tuple(self.handle.get_slice(name).get_shape())

    def tensors(
        self,
        expected: Mapping[str, tuple[torch.dtype | None, tuple[int, ...] | None]],
        dtypes: Mapping[str, torch.dtype] = FLOATS,
    ) -> dict[str, Tensor]:
        """Exactly the ``expected`` tensors, of the dtype and shape given there; all are checked before one is read."""
        if missing := sorted(set(expected) - self.names):
            raise Fault(f"{len(missing)} tensor(s) missing, e.g. {missing[0]!r}")
        if surplus := sorted(self.names - set(expected)):
            raise Fault(f"{len(surplus)} tensor(s) belong to no layer, e.g. {surplus[0][:MAX_TEXT]!r}")
        for name, (dtype, shape) in expected.items():
            found = dtypes.get(str(self.handle.get_slice(name).get_dtype()))
            if found is None or dtype not in (None, found):
                raise Fault(f"tensor {name[:MAX_TEXT]!r} has a type that does not belong there")
            if shape is not None and self.shape(name) != shape:
                raise Fault(f"tensor {name!r} has shape {self.shape(name)}, the architecture says {shape}")
        result: dict[str, Tensor] = {}
        for name in expected:
            tensor = cast(Tensor, self.handle.get_tensor(name))
            _require_finite(name[:MAX_TEXT], tensor, "Go back to a file that was saved before the weights overflowed")
            result[name] = tensor.clone()  # off the memory map, so that a file cut short later does no harm
        return result


@contextmanager
def open_container(file: Path, kind: str | None = None) -> Generator[Opened]:
    _look(file)
    with cast(Any, safetensors).safe_open(str(file), framework="pt") as handle:
        metadata: Mapping[str, str] = handle.metadata() or {}
        text = metadata.get("lipbridge")
        if text is None:
            raise Fault(
                "it is a safetensors file without a header of lipbridge, so its architecture is unknown",
                f"Load it with torch and safetensors yourself, then {_SAVE}",
            )
        header = parse_json(text)
        if not isinstance(header, dict):
            raise Fault("its header is no JSON object")
        header = cast(dict[str, Any], header)
        if header.get("format") != FORMAT or isinstance(header["format"], bool):
            raise Fault(
                f"its format is {str(header.get('format'))[:20]!r}, this lipbridge reads {FORMAT}", "Upgrade lipbridge"
            )
        header = as_object(header, "format", "kind", "body", "extra", "lipbridge")
        as_object(header["extra"])
        found = as_text(header["kind"])
        if found not in _READERS:
            raise Fault(f"its kind {found[:40]!r} is unknown", "Upgrade lipbridge")
        if kind is not None and found != kind:
            raise Fault(f"it holds a {found}, not a {kind}", f"Read it with {_READERS[found]}")
        yield Opened(handle, header, frozenset(handle.keys()))


_READERS = {
    "module": "lipbridge.load",
    "graph": "lipbridge.files.graphs.load_graph",
    "problem": "lipbridge.files.problems.load_problem",
    "proof": "lipbridge check MODEL FILE",
    "tensors": "lipbridge.files.container.load_tensors",
}


def _look(file: Path) -> None:
    """Refuse what is no safetensors file of a plausible size, before any parser sees it."""
    if not file.is_file():
        found = "it is no regular file" if file.exists() else "there is no such file"
        raise Fault(found, f"Give a file that lipbridge wrote, or a folder that holds {MODEL_FILE}")
    with open(file, "rb") as stream:
        start = stream.read(9)
        size = os.fstat(stream.fileno()).st_size
    if start[:4] == b"PK\x03\x04" or (
        start[:1] == b"\x80" and start[1:2] in b"\x02\x03\x04\x05" and start[8:9] != b"{"
    ):
        raise Fault("it is a pickle (torch.save), which can execute anything", _PICKLE)
    length = int.from_bytes(start[:8], "little")
    if len(start) < 9 or length > size - 8:
        raise Fault("it is cut short, or no safetensors file")
    if length > MAX_HEADER:
        raise Fault(f"its header has {length} bytes, at most {MAX_HEADER} are allowed")


__all__ = [
    "FLOATS",
    "FORMAT",
    "MODEL_FILE",
    "PARSING",
    "Opened",
    "file_digest",
    "load_header",
    "load_tensors",
    "model_file",
    "named_faults",
    "open_container",
    "save_tensors",
    "write_container",
]
