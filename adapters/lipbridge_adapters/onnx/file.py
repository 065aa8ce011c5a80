"""ONNX files from anybody: what is checked before a parser sees the bytes, and how tensors are read from them.

A file may be hostile. Its wire format is walked first, which finds a file that is cut short and counts messages (an
empty one takes two bytes in the file and a hundred in memory). A tensor's declared size is compared with the bytes
that are there before anything is allocated. Data in other files is read only from below the model's own folder, one
path component at a time and through no symbolic link. A file in gzip, told by its first bytes, unfolds piece by piece
up to a limit. Whatever is wrong is a :class:`ModelFileError` of one line.

Source: the protobuf wire format (protobuf.dev/programming-guides/encoding), onnx.proto of ONNX 1.17.
"""

from __future__ import annotations

import gzip
import math
import os
import stat
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO, cast

import numpy as np
import torch
from torch import Tensor

from lipbridge.errors import MissingDependency

INSTALL = 'pip install "lipbridge[onnx]"'
#: A protobuf message ends at 2 GiB; larger networks keep their weights in other files.
MAX_FILE = 2**31
MAX_NODES = 20_000
#: A file in gzip may unfold to `FREELY` bytes, and beyond that to so many times its size (weights fold to a half).
FREELY = 2**26
MAX_RATIO = 100
_GZIP, _CHUNK = b"\x1f\x8b", 2**20
#: Fields of a file, all messages together; a tensor's packed data is one field.
MAX_FIELDS = 500_000
#: Bytes of integers of variable length, which take up to eight times as much in memory.
MAX_VARINTS = 2**23
MAX_ELEMENTS = 2**31
MAX_RANK = 16
OPSETS = range(9, 23)


class Fault(Exception):
    """What is wrong with a file; the caller adds which file."""


# --- the wire format -------------------------------------------------------------------------------------------------

#: Which fields of a message are messages again: kind -> field number -> kind.
_MESSAGES: Mapping[str, Mapping[int, str]] = {
    "model": {7: "graph", 8: "leaf", 14: "leaf", 20: "leaf", 25: "function"},
    "graph": {1: "node", 5: "tensor", 11: "value", 12: "value", 13: "value", 14: "leaf", 15: "leaf", 16: "leaf"},
    "node": {5: "attribute", 9: "leaf"},
    "attribute": {5: "tensor", 6: "inner", 10: "tensor", 11: "inner", 14: "type", 22: "leaf", 23: "leaf"},
    "inner": {1: "node", 5: "tensor", 11: "value", 12: "value", 13: "value", 14: "leaf", 15: "leaf", 16: "leaf"},
    "tensor": {3: "leaf", 13: "leaf", 16: "leaf"},
    "value": {2: "type", 4: "leaf"},
    "type": {1: "tensor type", 4: "leaf", 5: "leaf", 7: "leaf", 8: "leaf", 9: "leaf"},
    "tensor type": {2: "shape"},
    "shape": {1: "leaf"},
    "leaf": {},
}
#: Packed integers of variable length in a tensor: int32_data, int64_data, uint64_data; and its dims.
_VARINTS = (1, 5, 7, 11)


def scan(data: memoryview) -> None:
    """Walk the messages of a model without building any.

    Raises:
        Fault: if the bytes are no protobuf, end too early, or hold too many nodes or fields.
    """
    fields = nodes = varints = 0
    waiting: list[tuple[int, int, str]] = [(0, len(data), "model")]
    while waiting:
        position, end, kind = waiting.pop()
        inside = _MESSAGES[kind]
        while position < end:
            fields += 1
            if fields > MAX_FIELDS:
                raise Fault(f"it has more than {MAX_FIELDS} fields")
            tag, position = _varint(data, position, end)
            number, wire = tag >> 3, tag & 7
            if number == 0 or wire in (3, 4, 6, 7):
                raise Fault("it is no ONNX file, or damaged")
            if wire == 0:
                _, position = _varint(data, position, end)
                continue
            length, position = _varint(data, position, end) if wire == 2 else ({1: 8, 5: 4}[wire], position)
            if length > end - position:
                raise Fault("it is cut short, or no ONNX file")
            if wire == 2 and number in inside:
                nodes += inside[number] == "node"
                if inside[number] == "inner":
                    raise Fault("it has graphs inside nodes (If, Loop, Scan), which are no feed-forward network")
                if inside[number] == "function":
                    raise Fault("it defines functions; inline them first with onnx.inliner.inline_local_functions")
                if nodes > MAX_NODES:
                    raise Fault(f"it has more than {MAX_NODES} nodes")
                waiting.append((position, position + length, inside[number]))
            elif wire == 2 and kind == "tensor" and number in _VARINTS:
                varints += length
                if varints > MAX_VARINTS:
                    raise Fault("its integers take more than 8 MiB, which no shape or index of a layer needs")
            position += length


def _varint(data: memoryview, position: int, end: int) -> tuple[int, int]:
    value = shift = 0
    while position < end and shift < 70:
        byte = data[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, position
        shift += 7
    raise Fault("it is cut short, or no ONNX file")


# --- files -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class OnnxFile:
    """A parsed model: its graph and opset, the folder that its data may come from."""

    path: Path
    graph: Any
    opset: int
    tensors: dict[str, Tensor] = field(default_factory=lambda: {})


def open_onnx(path: Path) -> OnnxFile:
    """Parse a model; no tensor is read yet.

    Raises:
        Fault: naming what is wrong.
        MissingDependency: if onnx is not installed.
    """
    onnx = tool()
    data = _bytes(path)
    scan(memoryview(data))
    try:
        model = onnx.ModelProto.FromString(data)
    except Exception as error:  # protobuf's own error types differ between its implementations
        raise Fault(f"it is no ONNX file, or damaged ({type(error).__name__})") from error
    if not model.HasField("graph"):
        raise Fault("it is no ONNX file: it holds no graph")
    versions = {entry.domain: entry.version for entry in model.opset_import}
    opset = versions.get("", versions.get("ai.onnx", 0))
    if opset not in OPSETS:
        raise Fault(
            f"it is of opset {opset}, and {OPSETS[0]} to {OPSETS[-1]} are read: export it again with opset_version=17, "
            "or convert it with onnx.version_converter"
        )
    return OnnxFile(path, model.graph, int(opset))


def tool() -> Any:
    """The package onnx.

    Raises:
        MissingDependency: if it is not installed.
    """
    try:
        return import_module("onnx")
    except ImportError as error:
        raise MissingDependency("onnx", INSTALL) from error


def _bytes(path: Path) -> bytes:
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)  # a pipe must not keep us waiting
    except OSError as error:
        raise Fault(f"{error.strerror or error}") from error
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise Fault("it is no regular file")
        if status.st_size > MAX_FILE:
            raise Fault(f"it has {status.st_size} bytes, and a protobuf ends at 2 GiB")
        start = os.pread(descriptor, len(_GZIP), 0)
        with os.fdopen(os.dup(descriptor), "rb") as stream:
            if start == _GZIP:
                return _unfolded(stream, status.st_size)
            _require_protobuf(start)
            return stream.read()
    finally:
        os.close(descriptor)


def _require_protobuf(start: bytes) -> None:
    if start and not (start[0] & 7 in (0, 2) and start[0] >> 3):
        raise Fault("it is no ONNX file, or damaged")


def _unfolded(stream: BinaryIO, size: int) -> bytes:
    """What a gzip file holds, piece by piece, so that memory follows what is really there."""
    most = min(MAX_FILE, max(FREELY, MAX_RATIO * size))
    data = bytearray()
    try:
        with gzip.GzipFile(fileobj=stream) as unfolding:
            while piece := unfolding.read(_CHUNK):
                if not data:
                    _require_protobuf(piece)
                data += piece
                if len(data) > most:
                    words = "2 GiB, where a protobuf ends" if most == MAX_FILE else f"{MAX_RATIO} times its size"
                    raise Fault(f"it unfolds to more than {words}, which no network's weights do")
    except (EOFError, OSError, zlib.error) as error:
        raise Fault(f"its gzip data is cut short or damaged ({error})") from error
    return bytes(data)


# --- tensors ---------------------------------------------------------------------------------------------------------

#: How each type that is read is stored: numpy's type, and the field of data that is not raw.
_TYPES: Mapping[int, tuple[str, str]] = {
    1: ("<f4", "float_data"),
    11: ("<f8", "double_data"),
    10: ("<f2", "int32_data"),
    16: ("<u2", "int32_data"),  # bfloat16: the upper half of a float32
    7: ("<i8", "int64_data"),
    6: ("<i4", "int32_data"),
    5: ("<i2", "int32_data"),
    3: ("<i1", "int32_data"),
    2: ("<u1", "int32_data"),
    9: ("<?", "int32_data"),
}
_HALVES, _BFLOAT = 10, 16
FLOATS = (1, 10, 11, 16)


def tensor_of(proto: Any, folder: Path) -> Tensor:
    """The exact values of a stored tensor: float64 for floating point, int64 for integers, or bool.

    Raises:
        Fault: if its size is not that of its data, its type is not a number's, or it holds NaN.
    """
    name = repr(str(proto.name)[:60])
    kind = int(proto.data_type)
    if kind not in _TYPES:
        raise Fault(f"its tensor {name} is of a type that no network's weights have (number {kind})")
    if proto.HasField("segment"):
        raise Fault(f"its tensor {name} is stored in segments")
    shape = tuple(int(n) for n in proto.dims)
    elements = math.prod(shape)
    if len(shape) > MAX_RANK or any(n < 0 for n in shape) or elements > MAX_ELEMENTS:
        raise Fault(f"its tensor {name} declares the shape {str(shape)[:80]}")
    dtype = np.dtype(_TYPES[kind][0])
    array = _array(proto, kind, dtype, elements, folder, name)
    if kind in FLOATS and bool(np.isnan(array).any()):
        raise Fault(f"its tensor {name} holds NaN")
    wide = np.float64 if kind in FLOATS else np.bool_ if dtype.kind == "b" else np.int64
    return cast(Any, torch).from_numpy(np.array(array, dtype=wide).reshape(shape))


def _array(proto: Any, kind: int, dtype: np.dtype[Any], elements: int, folder: Path, name: str) -> np.ndarray[Any, Any]:
    if proto.data_location == 1:  # EXTERNAL
        raw = _external(proto, elements * dtype.itemsize, folder, name)
    elif proto.HasField("raw_data"):
        raw = bytes(proto.raw_data)
    else:
        values = getattr(proto, _TYPES[kind][1])
        if len(values) != elements:
            raise Fault(f"its tensor {name} declares {elements} numbers and holds {len(values)}")
        if kind in (_HALVES, _BFLOAT):
            found = np.array(values, dtype=np.int64)
            if found.size and not 0 <= int(found.min()) <= int(found.max()) < 2**16:
                raise Fault(f"its tensor {name} holds numbers beyond 16 bits")
            raw = found.astype("<u2").tobytes()
        else:
            return np.array(values, dtype=np.float64 if kind in FLOATS else np.int64).astype(dtype)
    if len(raw) != elements * dtype.itemsize:
        raise Fault(f"its tensor {name} declares {elements * dtype.itemsize} bytes and holds {len(raw)}")
    found = np.frombuffer(raw, dtype=dtype)
    if kind == _BFLOAT:
        return (found.astype(np.uint32) << 16).view(np.float32)
    return found


# --- data in other files ----------------------------------------------------------------------------------------------


def _external(proto: Any, expected: int, folder: Path, name: str) -> bytes:
    entries = {str(entry.key): str(entry.value) for entry in proto.external_data}
    location = entries.get("location", "")
    offset, length = (_number(entries.get(key), name) for key in ("offset", "length"))
    if length is not None and length != expected:
        raise Fault(f"its tensor {name} declares {expected} bytes and keeps {length} in another file")
    parts = PurePosixPath(location).parts
    bad = "\\" in location or "\0" in location or location.startswith("/") or ".." in parts or not parts
    if bad or len(parts) > 32:
        raise Fault(f"its tensor {name} keeps data in {location[:80]!r}, outside the model's folder, which is not read")
    descriptor = _below(folder, parts, name)
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode) or status.st_nlink > 1:
            raise Fault(f"its tensor {name} keeps data in {location[:80]!r}, which is no file of the folder alone")
        start = offset or 0
        if start + expected > status.st_size:
            raise Fault(f"its tensor {name} keeps {expected} bytes in {location[:80]!r}, which is too short")
        with os.fdopen(os.dup(descriptor), "rb") as stream:
            stream.seek(start)
            return stream.read(expected)
    finally:
        os.close(descriptor)


def _number(text: str | None, name: str) -> int | None:
    if text is None:
        return None
    if not (text.isascii() and text.isdigit() and len(text) < 16):
        raise Fault(f"its tensor {name} has a place in another file that is no number")
    return int(text)


def _below(folder: Path, parts: tuple[str, ...], name: str) -> int:
    """A descriptor of the file ``parts`` below ``folder``, reached through no symbolic link."""
    try:
        current = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    except OSError as error:
        raise Fault(f"its folder cannot be opened ({error.strerror or error})") from error
    for index, part in enumerate(parts):
        last = index == len(parts) - 1
        try:
            deeper = os.open(
                part, os.O_RDONLY | os.O_NOFOLLOW | (os.O_NONBLOCK if last else os.O_DIRECTORY), dir_fd=current
            )
        except OSError as error:
            where = "/".join(parts)[:80]
            raise Fault(
                f"its tensor {name} keeps data in {where!r}, which is missing from the model's folder or a link "
                f"({error.strerror or error})"
            ) from error
        finally:
            os.close(current)
        current = deeper
    return current


__all__ = ["FLOATS", "INSTALL", "MAX_NODES", "OPSETS", "Fault", "OnnxFile", "open_onnx", "scan", "tensor_of", "tool"]
