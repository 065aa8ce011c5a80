"""The weight file of the original LipSDP (MATLAB): written for it, and read from it or from any of its users.

The program reads one variable, ``weights``: a 1 x L cell array of the dense layers' matrices, doubles of shape
(outputs, inputs), first layer first. Biases are absent (increments do not see them), and so is the activation: one
interval of slopes for all units comes on its command line, ``--alpha`` and ``--beta``.

Source: github.com/arobey1/LipSDP, ``load_weights.m`` and ``solve_sdp.py``. MATLAB's file format, level 5: MathWorks,
"MAT-File Format". scipy reads it, after the lengths and classes in the file are known to be those of plain matrices.
"""

from __future__ import annotations

import contextlib
import math
import os
import shlex
import struct
import warnings
import zlib
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.io.matlab import loadmat, savemat, whosmat
from torch import Tensor, nn

from lipbridge.activations.activation import Activation
from lipbridge.activations.registry import activation
from lipbridge.disk.atomic import write_atomically
from lipbridge.errors import ModelFileError, NumericalFailure, UnsupportedProblem, first_line
from lipbridge.frontend.capture import capture
from lipbridge.graph.graph import Graph
from lipbridge.graph.nodes import Dense, Elementwise, Input, Node
from lipbridge.lowering.chain import as_chain

#: Most bytes of a file, and most bytes that it may unpack to.
MAX_BYTES = 2**30
#: Most entries of all matrices together: a gibibyte of doubles, however narrow the type that they are stored as.
MAX_ENTRIES = 2**27
MAX_LAYERS = 10_000


@dataclass(frozen=True)
class MatReport:
    """What was written, and how to run the original program on it.

    Attributes:
        path: the file.
        alpha: lower end of the slopes of every unit.
        beta: upper end.
        command: of ``solve_sdp.py`` in the folder ``LipSDP`` of its repository.
    """

    path: Path
    alpha: float
    beta: float
    command: str


def export_mat(network: Graph | nn.Module, path: str | os.PathLike[str]) -> MatReport:
    """Write a dense chain as the weight file of LipSDP, atomically.

    An activation with K outputs per unit becomes K rows; a row whose slopes are negative for the larger part is
    written with its sign changed, before and after, which is exact. The interval of the command holds the slopes of
    all units, so that the program's bound is one of this network; joint constraints, and slopes that differ from
    layer to layer, are lost, so that it may be larger than ``lipsdp``'s.

    Raises:
        UnsupportedProblem: if the network is no dense chain, or has no activation (the program needs one).
        NumericalFailure: for weights that are NaN or infinite.
        ModelFileError: if the file cannot be written.

    Law: :func:`read_mat` gives the matrices back bit for bit; a relu chain's are its weights.
    """
    weights, alpha, beta = _rows_of(capture(network) if isinstance(network, nn.Module) else network)
    cells = np.empty((1, len(weights)), dtype=object)  # not np.array(weights): equal shapes would make one cube
    for index, W in enumerate(weights):
        cells[0, index] = W.numpy()
    data = _stream()
    savemat(data, {"weights": cells})
    try:
        file = write_atomically(path, data.getvalue())
    except OSError as failure:
        raise ModelFileError(str(failure)) from failure
    place = shlex.quote(str(file.absolute()))
    command = f"python solve_sdp.py --form neuron --alpha={alpha!r} --beta={beta!r} --weight-path {place}"
    return MatReport(file, alpha, beta, command)


def read_mat(path: str | os.PathLike[str], activation_name: str | Activation = "relu") -> Graph:
    """The network of a LipSDP weight file, without biases, as a Graph.

    Args:
        path: a .mat file of level 5 (what scipy and MATLAB up to ``-v7`` write) with the cell array ``weights``.
        activation_name: the activation between the layers, with one output per unit; the file does not say it.

    Raises:
        ModelFileError: if the file is missing, damaged, of another level (7.3) or kind, or too large.
        UnknownName: for an activation that is not registered.
        UnsupportedProblem: for an activation with several outputs per unit.
    """
    row = activation(activation_name) if isinstance(activation_name, str) else activation_name
    if row.width != 1:
        raise UnsupportedProblem(f"A LipSDP weight file has one output per unit; `{row.name}` has {row.width}.")
    try:
        weights = _weights_of(_bytes_of(Path(path)))
    except _Damaged as fault:
        raise ModelFileError(f"{path}: {fault}") from None
    nodes: list[Node] = [Input("x", (), (weights[0].shape[1],))]
    for index, W in enumerate(weights):
        if index:
            nodes.append(Elementwise(f"{row.name}{index}", (len(nodes) - 1,), nodes[-1].shape, row))
        nodes.append(Dense(f"dense{index + 1}", (len(nodes) - 1,), (W.shape[0],), W))
    return Graph(tuple(nodes), Path(path).stem)


def _rows_of(graph: Graph) -> tuple[list[Tensor], float, float]:
    """The matrices with one row for every output of a unit, and the interval of all slopes."""
    chain = as_chain(graph)
    if not chain.activations:
        raise UnsupportedProblem("LipSDP's program needs an activation; the bound of one dense layer is its norm.")
    weights = [layer.weight.detach().to(device="cpu", dtype=torch.float64) for layer in chain.layers]
    for layer, W in zip(chain.layers, weights, strict=True):
        if not bool(torch.isfinite(W).all()):
            raise NumericalFailure(f"The weights of layer `{layer.name}` hold NaN or infinite entries.")
    slopes: list[tuple[float, float]] = []
    for index, g in enumerate(chain.activations):
        signs = [-1.0 if low + high < 0.0 else 1.0 for low, high in g.slopes]
        slopes += [(low, high) if s > 0 else (-high, -low) for s, (low, high) in zip(signs, g.slopes, strict=True)]
        units = chain.layers[index].weight.shape[0]
        columns = torch.tensor(signs, dtype=torch.float64).repeat_interleave(units)
        weights[index] = torch.cat([s * weights[index] for s in signs])
        weights[index + 1] = weights[index + 1] * columns
    return weights, min(low for low, _ in slopes), max(high for _, high in slopes)


def _stream(data: bytes = b"") -> Any:
    return BytesIO(data)  # of any type: the stubs of scipy know paths alone


# --- reading ---------------------------------------------------------------------------------------------------------


class _Damaged(Exception):
    """A fault of a file, in words."""


def _bytes_of(path: Path) -> bytes:
    try:
        if not path.is_file():
            raise _Damaged("it is no file." if path.exists() else "there is no such file.")
        if path.stat().st_size > MAX_BYTES:
            raise _Damaged(f"it has more than {MAX_BYTES} bytes.")
        return path.read_bytes()
    except OSError as failure:
        raise _Damaged(f"it cannot be read: {failure.strerror or failure}.") from failure


#: miINT8 ... miUINT64: the types that numbers are stored as, whatever the class of their array, and their bytes.
_STORED = {1: 1, 2: 1, 3: 2, 4: 2, 5: 4, 6: 4, 7: 4, 9: 8, 12: 8, 13: 8}
_MATRIX, _COMPRESSED = 14, 15
_FLOATS = (6, 7)
_CLASSES = {2: "a struct", 3: "an object", 4: "text", 5: "sparse", 16: "a function handle", 17: "an opaque object"}


def _weights_of(data: bytes) -> list[Tensor]:
    """The matrices of the variable ``weights`` of a level 5 file, which fit each other.

    scipy reads them, from a copy of the file with this variable alone, unpacked; but only after it is known to be a
    flat cell array of floats whose lengths are those of what is there. So scipy never follows a nesting, makes an
    object or allocates what a length only claims.
    """
    if data[:8] == b"\x89HDF\r\n\x1a\n" or b"MATLAB 7.3" in data[:124]:
        raise _Damaged("it is of MATLAB's level 7.3 (HDF5). Save it with `-v7`.")
    order = {b"IM": "<", b"MI": ">"}.get(data[126:128])
    if order is None:
        raise _Damaged("it is no MATLAB file of level 5.")
    (version,) = struct.unpack(order + "H", data[124:126])
    if version != 0x0100:
        raise _Damaged(f"it is of version {version:#06x}; level 5 is 0x0100.")
    left = MAX_BYTES
    for kind, body in _elements(memoryview(data)[128:], order):
        if kind == _COMPRESSED:
            whole = _unpacked(body, left)
            left -= len(whole)
            inner = list(_elements(memoryview(whole), order, padded=False))
            if len(inner) != 1:
                raise _Damaged("a compressed element does not hold one variable.")
            kind, body = inner[0]
        if kind != _MATRIX:
            raise _Damaged(f"an element of type {kind} stands where a variable should.")
        alone = data[:128] + struct.pack(order + "II", kind, len(body)) + bytes(body) + b"\0" * (-len(body) % 8)
        with _by_scipy():
            ((name, shape, what),) = whosmat(_stream(alone))
        if name != "weights":
            continue
        count = math.prod(shape)
        if what != "cell":
            raise _Damaged("`weights` is no cell array.")
        if not 1 <= count <= MAX_LAYERS or max(shape, default=0) != count:
            raise _Damaged(f"`weights` is a cell array of shape {shape}; it should be 1 x L, with 1 to 10,000.")
        _check_cells(body, order, count)
        with _by_scipy():
            cells: Any = loadmat(_stream(alone), mat_dtype=True)["weights"].ravel()
        return _chain([np.asarray(cell) for cell in cells])
    raise _Damaged("it holds no variable `weights`.")


def _check_cells(body: memoryview, order: str, count: int) -> None:
    """That a cell array holds ``count`` arrays of floats, and their numbers, before anything is made of them."""
    _, _, cells = _class_and_rest(body, order)
    if len(cells) != count or any(kind != _MATRIX for kind, _ in cells):
        raise _Damaged(f"`weights` should hold {count} matrices, and does not.")
    entries = 0
    for index, (_, cell) in enumerate(cells, start=1):
        found, complex_too, parts = _class_and_rest(cell, order)
        if found not in _FLOATS:
            raise _Damaged(f"matrix {index} is {_CLASSES.get(found, 'no array of floats')}.")
        if complex_too or len(parts) != 1:  # scipy crashes where it looks for numbers that are not there
            raise _Damaged(f"matrix {index} is complex, or has no numbers of its own.")
        ((kind, numbers),) = parts
        if kind not in _STORED or len(numbers) % _STORED[kind]:
            raise _Damaged(f"matrix {index} has {len(numbers)} bytes of type {kind}.")
        entries += len(numbers) // _STORED[kind]
        if entries > MAX_ENTRIES:
            raise _Damaged(f"its matrices have more than {MAX_ENTRIES} entries.")


def _class_and_rest(body: memoryview, order: str) -> tuple[int, bool, list[tuple[int, memoryview]]]:
    """The class of a variable, whether it is complex, and what stands where scipy looks for its numbers or cells."""
    parts = list(_elements(body, order))
    if len(parts) < 3 or len(parts[0][1]) != 8:
        raise _Damaged("a variable has no flags, shape and name.")
    (flags,) = struct.unpack(order + "I", parts[0][1][:4])
    return flags & 0xFF, bool(flags & 0x0800), parts[3:]


def _chain(matrices: list[NDArray[Any]]) -> list[Tensor]:
    for index, W in enumerate(matrices, start=1):
        if W.ndim != 2 or not W.size:
            raise _Damaged(f"matrix {index} has shape {W.shape}.")
        if not np.isfinite(W).all():
            raise _Damaged(f"matrix {index} holds NaN or infinite entries.")
        before = matrices[index - 2].shape
        if index > 1 and W.shape[1] != before[0]:
            raise _Damaged(f"the shapes of matrices {index - 1} and {index} do not fit: {before} and {W.shape}.")
    return [torch.tensor(W.astype(np.float64)) for W in matrices]


def _elements(data: memoryview, order: str, *, padded: bool = True) -> Iterator[tuple[int, memoryview]]:
    """The elements that ``data`` is made of, as types and bodies; each length is checked against what is there."""
    place, count = 0, 0
    while place < len(data):
        count += 1
        if count > MAX_LAYERS + 3:
            raise _Damaged(f"it holds more than {MAX_LAYERS} matrices or variables.")
        if len(data) - place < 8:
            raise _Damaged("it ends within an element.")
        kind, size = struct.unpack(order + "II", data[place : place + 8])
        if kind >> 16:  # the short form: four bytes at most, within the tag
            size, kind = kind >> 16, kind & 0xFFFF
            if size > 4:
                raise _Damaged("a short element has more than four bytes.")
            body, place = data[place + 4 : place + 4 + size], place + 8
        else:
            if size > len(data) - place - 8:
                raise _Damaged("it ends within an element.")
            body, place = data[place + 8 : place + 8 + size], place + 8 + size
            if padded and kind != _COMPRESSED:
                place += -size % 8
        yield kind, body


def _unpacked(body: memoryview, most: int) -> bytes:
    """A compressed element, if it is whole and no larger than a file of weights can be."""
    engine = zlib.decompressobj()
    try:
        data = engine.decompress(body, most)
    except zlib.error as fault:
        raise _Damaged(f"a compressed element is damaged ({fault}).") from None
    if not engine.eof:
        raise _Damaged("a compressed element is cut off, or unpacks to more than a file of weights can hold.")
    return data


@contextlib.contextmanager
def _by_scipy() -> Generator[None]:
    """Whatever scipy raises or warns of a damaged file is a fault of the file."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            yield
    except Exception as error:
        line = first_line(error)
        raise _Damaged(f"it does not fit together ({line}).") from None
