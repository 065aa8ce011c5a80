"""Capture of what moves coordinates as they are, and takes parts of them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor

from lipbridge.frontend.copies import Copies
from lipbridge.frontend.reader import LINE, Arguments, Curve, Reader, handles
from lipbridge.graph.nodes import Reshape


@handles("flatten", "view", "reshape", "_unsafe_view", "unsqueeze", "squeeze", "unflatten", "view_as", "reshape_as")
def _reshape(reader: Reader, a: Arguments, shape: tuple[int, ...]) -> Any:
    return seen_as(reader, a["self"], shape)


def seen_as(reader: Reader, value: Any, shape: tuple[int, ...], axes: tuple[int, ...] | None = None) -> Curve:
    """The value transposed by ``axes`` (if given), in ``shape``."""
    curve = reader.curve(value)
    if axes is None and curve.components == (LINE,) and reader.nodes[curve.source].shape == shape:
        return curve
    source = reader.materialise(curve)
    if math.prod(reader.nodes[source].shape) != math.prod(shape):
        raise reader.unsupported("It mixes the batch with the features.")
    return reader.append(Reshape(reader.layer, (source,), shape, axes))


@handles("permute", "transpose", "swapaxes", "swapdims", "movedim")
def _permute(reader: Reader, a: Arguments, shape: tuple[int, ...]) -> Any:
    rank = len(shape) + 1
    order = list(range(rank))
    if "dims" in a:
        order = [int(axis) % rank for axis in a["dims"]]
    elif "source" in a:
        order = torch.movedim(torch.empty(*range(2, rank + 2)), a["source"], a["destination"]).shape  # type: ignore[assignment]
        order = [length - 2 for length in order]
    else:
        i, j = ((int(a[name]) % rank) for name in (("dim0", "dim1") if "dim0" in a else ("axis0", "axis1")))
        order[i], order[j] = j, i
    if order[0] != 0:
        raise reader.unsupported("It moves the axis of the batch.")
    if order == sorted(order):
        return a["self"]
    return seen_as(reader, a["self"], shape, tuple(axis - 1 for axis in order[1:]))


@handles("dropout", "feature_dropout", "alpha_dropout", "feature_alpha_dropout", "native_dropout")
def _dropout(reader: Reader, a: Arguments, shape: tuple[int, ...]) -> Any:
    if a.get("train"):
        raise reader.unsupported("Dropout is the identity only in eval mode.")
    return a["input"]


@handles("clone", "contiguous", "detach", "alias", "detach_", "lift_fresh_copy")
def _same(reader: Reader, a: Arguments, shape: tuple[int, ...]) -> Any:
    return a["self"]


@handles("to", "_to_copy", "type_as")
def _cast(reader: Reader, a: Arguments, shape: tuple[int, ...]) -> Any:
    """A cast between floating point types only rounds; to any other type it jumps, or has no value in a Graph."""
    other = a.get("other")
    dtype = other.dtype if isinstance(other, Tensor) else a.get("dtype")
    if isinstance(dtype, torch.dtype) and not dtype.is_floating_point:
        raise reader.unsupported(f"A cast to {dtype} is no continuous function, or leaves the real numbers.")
    return a["self"]


def axis_of(reader: Reader, dim: int, rank: int) -> int:
    """An axis of the shape without batch."""
    axis = int(dim) % (rank + 1) - 1
    if axis < 0:
        raise reader.unsupported("It works along the batch.")
    return axis


# --- parts -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Part(Copies):
    """Positions ``start, start + step, ...`` (``count`` of them) of ``value`` along ``axis``."""

    value: Curve
    axis: int
    start: int
    step: int
    count: int

    def places(self, reader: Reader) -> Tensor:
        """Of the flattened value, in their shape."""
        shape = reader.shape_of(self.value)
        rows = torch.arange(self.start, self.start + self.step * self.count, self.step)
        return torch.arange(math.prod(shape)).reshape(shape).index_select(self.axis, rows)


@handles("split", "split_with_sizes", "chunk", "unsafe_split", "unsafe_chunk", "tensor_split")
def _split(reader: Reader, a: Arguments, shape: tuple[int, ...]) -> Any:
    value = reader.curve(a["self"])
    size = reader.shape_of(value)
    axis = axis_of(reader, a["dim"], len(size))
    sizes = a.get("split_sizes", a.get("split_size"))
    if isinstance(sizes, list):
        lengths = [int(length) for length in cast(list[Any], sizes)]
    elif "chunks" in a or isinstance(sizes, int):
        # torch's chunk makes pieces of the size of the first
        piece = shape[axis]
        lengths = [min(piece, size[axis] - start) for start in range(0, size[axis], piece)]
    else:
        raise reader.unsupported()
    starts = [sum(lengths[:index]) for index in range(len(lengths))]
    return [Part(value, axis, start, 1, length) for start, length in zip(starts, lengths, strict=True)]


@handles("unbind")
def _unbind(reader: Reader, a: Arguments, shape: tuple[int, ...]) -> Any:
    value = reader.curve(a["self"])
    size = reader.shape_of(value)
    axis = axis_of(reader, a["dim"], len(size))
    parts = [Part(value, axis, index, 1, 1) for index in range(size[axis])]
    return [seen_as(reader, part, shape) for part in parts]


@handles("slice")
def _slice(reader: Reader, a: Arguments, shape: tuple[int, ...]) -> Any:
    value = reader.curve(a["self"])
    size = reader.shape_of(value)
    if int(a["dim"]) % (len(size) + 1) == 0:
        if a.get("start") in (None, 0) and a.get("end") in (None, 2**63 - 1) and a["step"] == 1:
            return value  # x[:] on the batch
        raise reader.unsupported("It works along the batch.")
    axis = axis_of(reader, a["dim"], len(size))
    return _part(reader, value, axis, torch.arange(size[axis])[slice(a.get("start"), a.get("end"), a["step"])])


@handles("narrow")
def _narrow(reader: Reader, a: Arguments, shape: tuple[int, ...]) -> Any:
    value = reader.curve(a["self"])
    size = reader.shape_of(value)
    axis = axis_of(reader, a["dim"], len(size))
    return _part(reader, value, axis, torch.arange(size[axis]).narrow(0, int(a["start"]), int(a["length"])))


@handles("select")
def _select(reader: Reader, a: Arguments, shape: tuple[int, ...]) -> Any:
    value = reader.curve(a["self"])
    size = reader.shape_of(value)
    axis = axis_of(reader, a["dim"], len(size))
    return seen_as(reader, _part(reader, value, axis, torch.arange(size[axis]).select(0, int(a["index"]))[None]), shape)


def _part(reader: Reader, value: Curve, axis: int, places: Tensor) -> Any:
    """The places along an axis that torch itself takes, whatever signs its arguments have."""
    if len(places) == 0:
        raise reader.unsupported("It takes no entry at all.")
    start, count = int(places[0]), len(places)
    step = int(places[1]) - start if count > 1 else 1
    if (start, step, count) == (0, 1, reader.shape_of(value)[axis]):
        return value
    return Part(value, axis, start, step, count)


__all__ = ["Part", "axis_of", "seen_as"]
