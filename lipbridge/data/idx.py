"""The IDX format of MNIST, plain or gzip: one reader that believes nothing the file says.

Layout (big-endian): two zero bytes, one byte for the type of the items, one byte for the number of dimensions, one
unsigned 32-bit size per dimension, then the items in row-major order. Source: Y. LeCun, C. Cortes, C. Burges, "The
MNIST database of handwritten digits". Images and labels are unsigned bytes, so that is the one item type read here.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import math
import os
import struct
import zlib
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from lipbridge.errors import DataError

#: No file may unfold to more than this. The largest set in common use, EMNIST by class, has 0.5 GiB.
MAX_BYTES = 1 << 30

_UNSIGNED_BYTE = 0x08
_GZIP_MAGIC = b"\x1f\x8b"
# Deflate cannot do better than 1032 to 1, so a gzip file bounds what it unfolds to before any of it is unfolded.
_DEFLATE_RATIO = 1032
_CHUNK = 1 << 20


@dataclass(frozen=True)
class _Source:
    """An open IDX file: its uncompressed bytes, and how many of them there can be at most."""

    path: Path
    stream: io.BufferedIOBase
    capacity: int


@dataclass(frozen=True)
class _Header:
    raw: bytes
    shape: tuple[int, ...]

    @property
    def item_bytes(self) -> int:
        return math.prod(self.shape)


def idx_shape(path: Path) -> tuple[int, ...]:
    """Sizes of the dimensions that an IDX file's header gives; at most a few kilobytes of it are read.

    Raises:
        DataError: no such file; not an IDX file of unsigned bytes; a header that the file is too small for, with a
            dimension of zero, or beyond ``MAX_BYTES``.
    """
    with _open(path) as source:
        return _read_header(source).shape


def read_idx(path: Path, shape: tuple[int | None, ...], *, sha256: str | None = None) -> NDArray[np.uint8]:
    """The items of an IDX file, gzip or plain (told apart by content), as a writable uint8 array.

    ``shape`` is what the header must say, with None for a size that may be anything. ``sha256`` is the lower-case
    hexadecimal SHA-256 of the uncompressed file, header included; None where it is not known.

    Memory stays within what the header promises, and a header that promises more than the file can hold is refused
    before anything is unfolded.

    Raises:
        DataError: as :func:`idx_shape`; another shape; fewer or more items than the header promises; damaged gzip
            data; another SHA-256. Always one line that names the file.
    """
    with _open(path) as source:
        header = _read_header(source)
        _check_shape(source, header, shape)
        items = _read_items(source, header.item_bytes)
    if sha256 is not None:
        _check_sha256(path, sha256, header.raw, items)
    return np.frombuffer(items, dtype=np.uint8).reshape(header.shape)


@contextmanager
def _open(path: Path) -> Generator[_Source, None, None]:
    """Open a file, and turn whatever goes wrong while it is read into a DataError."""
    # A pipe or a device would block or never end: only regular files are opened.
    if not os.path.isfile(path):
        raise file_error(path, "no such file")
    try:
        with open(path, "rb") as file:
            size = os.fstat(file.fileno()).st_size
            zipped = file.read(len(_GZIP_MAGIC)) == _GZIP_MAGIC
            file.seek(0)
            if not zipped:
                yield _Source(path, file, size)
                return
            with gzip.GzipFile(fileobj=file, mode="rb") as unfolded:
                yield _Source(path, unfolded, size * _DEFLATE_RATIO)
    except EOFError:
        raise file_error(path, "truncated: its gzip data is cut off") from None
    except (gzip.BadGzipFile, zlib.error) as error:
        raise file_error(path, f"damaged gzip data ({error})") from None
    except OSError as error:
        raise file_error(path, f"cannot be read ({error.strerror or error})") from None


def _read_header(source: _Source) -> _Header:
    start = source.stream.read(4)
    if start[:2] != b"\0\0"[: len(start)]:
        raise file_error(source.path, f"not an IDX file: it starts with 0x{start[:2].hex()}, an IDX file with 0x0000")
    if len(start) < 4:
        raise file_error(source.path, f"truncated: {len(start)} bytes, too few for an IDX header")
    code, dimensions = start[2], start[3]
    if code != _UNSIGNED_BYTE:
        raise file_error(source.path, f"item type 0x{code:02x} is not supported, only unsigned bytes (0x08)")
    sizes = source.stream.read(4 * dimensions)
    if len(sizes) < 4 * dimensions:
        raise file_error(source.path, f"truncated: it ends within the sizes of its {dimensions} dimensions")
    header = _Header(start + sizes, struct.unpack(f">{dimensions}I", sizes))
    _check_promise(source, header)
    return header


def _check_promise(source: _Source, header: _Header) -> None:
    """Refuse a header that cannot be true, before a byte is allocated for it."""
    if 0 in header.shape or not header.shape:
        raise file_error(source.path, "its header says that it holds no items")
    # 255 dimensions of 32 bits give a number of thousands of digits, more than Python agrees to print.
    promised = f"{header.item_bytes} bytes" if header.item_bytes < 1 << 64 else "more than 2^64 bytes"
    if header.item_bytes > MAX_BYTES:
        raise file_error(source.path, f"its header promises {promised}, above the limit of {MAX_BYTES}")
    room = max(0, source.capacity - len(header.raw))
    if header.item_bytes > room:
        raise file_error(source.path, f"truncated: its header promises {promised}, there can be at most {room}")


def _check_shape(source: _Source, header: _Header, expected: tuple[int | None, ...]) -> None:
    matches = len(header.shape) == len(expected) and all(
        want is None or have == want for have, want in zip(header.shape, expected, strict=True)
    )
    if not matches:
        raise file_error(source.path, f"its shape is {_spell(header.shape)}, it should be {_spell(expected)}")


def _read_items(source: _Source, count: int) -> bytearray:
    # Grown piece by piece: memory follows the data that is really there, not the header.
    items = bytearray()
    while len(items) < count:
        piece = source.stream.read(min(_CHUNK, count - len(items)))
        if not piece:
            raise file_error(source.path, f"truncated: its header promises {count} bytes, it holds {len(items)}")
        items += piece
    # For gzip this read is also the one that reaches the end and verifies the checksum there.
    if source.stream.read(1):
        raise file_error(source.path, f"it holds more than the {count} bytes that its header promises")
    return items


def _check_sha256(path: Path, expected: str, header: bytes, items: bytearray) -> None:
    digest = hashlib.sha256(header)
    digest.update(items)
    found = digest.hexdigest()
    if found != expected:
        raise file_error(
            path,
            f"the SHA-256 of its uncompressed bytes is {found[:16]}..., it should be {expected[:16]}...: "
            "the file is damaged or belongs to another dataset",
        )


def _spell(shape: tuple[int | None, ...]) -> str:
    sizes = ["any" if size is None else str(size) for size in shape[:8]]
    return " x ".join(sizes) + (f" x ... ({len(shape)} dimensions)" if len(shape) > 8 else "")


def file_error(path: Path, fact: str) -> DataError:
    """The error that a file or folder is at fault for, in one line even if its name has line breaks."""
    return DataError(f"{' '.join(str(path).splitlines())}: {fact}.")
