"""The weight file of the original LipSDP (MATLAB): written for it, and read from it or from any of its users.

The program reads one variable, ``weights``: a 1 x L cell array of the dense layers' matrices, doubles of shape
(outputs, inputs), first layer first. Biases are absent (increments do not see them), and so is the activation: one
interval of slopes for all units comes on its command line, ``--alpha`` and ``--beta``.

Source: github.com/arobey1/LipSDP, ``load_weights.m`` and ``solve_sdp.py``. MATLAB's file format, level 5: MathWorks,
"MAT-File Format". The reader here takes the little of it that such files use, checks every length before it believes
it, and never makes an object of any class.
"""

from __future__ import annotations

import math
import os
import shlex
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from io import BytesIO
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from lipbridge.activations.activation import Activation
from lipbridge.activations.registry import activation
from lipbridge.disk.atomic import write_atomically
from lipbridge.errors import MissingDependency, ModelFileError, NumericalFailure, UnsupportedProblem
from lipbridge.frontend.capture import capture
from lipbridge.graph.graph import Graph
from lipbridge.graph.nodes import Dense, Elementwise, Input, Node
from lipbridge.lowering.chain import as_chain

INSTALL = 'pip install "lipbridge[sdp]"'
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
        MissingDependency: if scipy is not installed.
        ModelFileError: if the file cannot be written.

    Law: :func:`read_mat` gives the matrices back bit for bit; a relu chain's are its weights.
    """
    if find_spec("scipy") is None:
        raise MissingDependency("scipy", INSTALL)
    weights, alpha, beta = _rows_of(capture(network) if isinstance(network, nn.Module) else network)
    cells = np.empty((1, len(weights)), dtype=object)  # not np.array(weights): equal shapes would make one cube
    for index, W in enumerate(weights):
        cells[0, index] = W.numpy()
    data = BytesIO()
    import_module("scipy.io").savemat(data, {"weights": cells})
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
        weights = _Reader(_bytes_of(Path(path))).weights()
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


#: miINT8 ... miUINT64: the types that numbers are stored as, whatever the class of their array.
_STORED = {1: "i1", 2: "u1", 3: "i2", 4: "u2", 5: "i4", 6: "u4", 7: "f4", 9: "f8", 12: "i8", 13: "u8"}
_MATRIX, _COMPRESSED = 14, 15
_CELL, _DOUBLE, _SINGLE = 1, 6, 7
_CLASSES = {2: "a struct", 3: "an object", 4: "text", 5: "sparse", 16: "a function handle", 17: "an opaque object"}
_COMPLEX = 0x08


class _Reader:
    """A level 5 file, element by element. Every length is checked against what is there before it is used."""

    def __init__(self, data: bytes) -> None:
        if data[:8] == b"\x89HDF\r\n\x1a\n" or b"MATLAB 7.3" in data[:124]:
            raise _Damaged("it is of MATLAB's level 7.3 (HDF5). Save it with `-v7`.")
        order = {b"IM": "<", b"MI": ">"}.get(data[126:128])
        if order is None:
            raise _Damaged("it is no MATLAB file of level 5.")
        self.order: str = order
        (version,) = struct.unpack(order + "H", data[124:126])
        if version != 0x0100:
            raise _Damaged(f"it is of version {version:#06x}; level 5 is 0x0100.")
        self.data, self.left, self.entries = data, MAX_BYTES, MAX_ENTRIES

    def weights(self) -> list[Tensor]:
        """The matrices of the variable ``weights``, which fit each other."""
        for kind, body in self.elements(memoryview(self.data)[128:]):
            if kind == _COMPRESSED:
                inner = list(self.elements(memoryview(self.unpacked(body)), padded=False))
                if len(inner) != 1:
                    raise _Damaged("a compressed element does not hold one variable.")
                kind, body = inner[0]
            if kind != _MATRIX:
                raise _Damaged(f"an element of type {kind} stands where a variable should.")
            found = self.array(body)
            if found.name == b"weights":
                return self.chain(found)
        raise _Damaged("it holds no variable `weights`.")

    def chain(self, cells: _Array) -> list[Tensor]:
        if cells.kind != _CELL:
            raise _Damaged("`weights` is no cell array.")
        count = math.prod(cells.shape)
        if not 1 <= count <= MAX_LAYERS or max(cells.shape) != count:
            raise _Damaged(f"`weights` is a cell array of shape {cells.shape}; it should be 1 x L, with 1 to 10,000.")
        children = [body for kind, body in cells.rest if kind == _MATRIX]
        if len(children) != count or len(cells.rest) != count:
            raise _Damaged(f"`weights` should hold {count} matrices, and does not.")
        weights = [self.matrix(self.array(body), index) for index, body in enumerate(children, start=1)]
        for index in range(1, count):
            if weights[index].shape[1] != weights[index - 1].shape[0]:
                shapes = f"{tuple(weights[index - 1].shape)} and {tuple(weights[index].shape)}"
                raise _Damaged(f"the shapes of matrices {index} and {index + 1} do not fit: {shapes}.")
        return weights

    def matrix(self, found: _Array, index: int) -> Tensor:
        if found.kind not in (_DOUBLE, _SINGLE):
            raise _Damaged(f"matrix {index} is {_CLASSES.get(found.kind, 'no array of floats')}.")
        if found.flags & _COMPLEX or len(found.rest) != 1:
            raise _Damaged(f"matrix {index} is complex, or has no numbers of its own.")
        ((kind, body),) = found.rest
        if len(found.shape) != 2 or not all(found.shape):
            raise _Damaged(f"matrix {index} has shape {found.shape}.")
        self.entries -= math.prod(found.shape)
        if self.entries < 0:
            raise _Damaged(f"its matrices have more than {MAX_ENTRIES} entries.")
        stored = _STORED.get(kind)
        if stored is None or len(body) != math.prod(found.shape) * int(stored[1]):
            raise _Damaged(f"matrix {index} has {len(body)} bytes of type {kind} for the shape {found.shape}.")
        values = np.frombuffer(body, self.order + stored).astype(np.float64)
        if not np.isfinite(values).all():
            raise _Damaged(f"matrix {index} holds NaN or infinite entries.")
        return torch.tensor(values.reshape(found.shape, order="F"))

    def array(self, body: memoryview) -> _Array:
        """The head of a variable: flags, shape, name."""
        parts = list(self.elements(body))
        if len(parts) < 3 or parts[0][0] != 6 or len(parts[0][1]) != 8 or parts[1][0] != 5 or parts[2][0] != 1:
            raise _Damaged("a variable has no flags, shape and name.")
        (flags,) = struct.unpack(self.order + "I", parts[0][1][:4])
        if len(parts[1][1]) % 4 or not 8 <= len(parts[1][1]) <= 128:
            raise _Damaged("a variable has no shape.")
        shape = struct.unpack(f"{self.order}{len(parts[1][1]) // 4}i", parts[1][1])
        if min(shape) < 0:
            raise _Damaged(f"a variable has the shape {shape}.")
        return _Array(flags & 0xFF, flags >> 8, shape, bytes(parts[2][1]), parts[3:])

    def elements(self, data: memoryview, *, padded: bool = True) -> Iterator[tuple[int, memoryview]]:
        """The elements that ``data`` is made of, as types and bodies."""
        place, count = 0, 0
        while place < len(data):
            count += 1
            if count > MAX_LAYERS + 3:
                raise _Damaged(f"it holds more than {MAX_LAYERS} matrices or variables.")
            if len(data) - place < 8:
                raise _Damaged("it ends within an element.")
            kind, size = struct.unpack(self.order + "II", data[place : place + 8])
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

    def unpacked(self, body: memoryview) -> bytes:
        """A compressed element, if it is whole and no larger than a file of weights can be."""
        engine = zlib.decompressobj()
        try:
            data = engine.decompress(body, self.left)
        except zlib.error as fault:
            raise _Damaged(f"a compressed element is damaged ({fault}).") from None
        if not engine.eof:
            raise _Damaged("a compressed element is cut off, or unpacks to more than a file of weights can hold.")
        self.left -= len(data)
        return data


@dataclass(frozen=True)
class _Array:
    """A variable's class, flags, shape and name, and the elements after them."""

    kind: int
    flags: int
    shape: tuple[int, ...]
    name: bytes
    rest: list[tuple[int, memoryview]]
