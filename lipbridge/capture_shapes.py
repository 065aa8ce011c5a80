"""Capture of what moves, joins, splits and sorts coordinates."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor

from lipbridge.activations import Term
from lipbridge.capture_layers import select_channels, select_positions
from lipbridge.capture_pooling import largest
from lipbridge.capture_reader import LINE, Arguments, Curve, Deferred, Reader, handles
from lipbridge.graph import Concat, GroupSort, Reshape


@handles("flatten", "view", "reshape", "_unsafe_view", "unsqueeze", "squeeze", "unflatten", "view_as", "reshape_as")
def _reshape(reader: Reader, a: Arguments, shape: tuple[int, ...]) -> Any:
    return _seen_as(reader, a["self"], shape)


def _seen_as(reader: Reader, value: Any, shape: tuple[int, ...], axes: tuple[int, ...] | None = None) -> Curve:
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
    return _seen_as(reader, a["self"], shape, tuple(axis - 1 for axis in order[1:]))


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


def _axis(reader: Reader, dim: int, rank: int) -> int:
    """An axis of the shape without batch."""
    axis = int(dim) % (rank + 1) - 1
    if axis < 0:
        raise reader.unsupported("It works along the batch.")
    return axis


# --- parts and maxima ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Part(Deferred):
    """Positions ``start, start + step, ...`` (``count`` of them) of ``value`` along ``axis``."""

    value: Curve
    axis: int
    start: int
    step: int
    count: int

    def materialise(self, reader: Reader) -> Curve:
        """A linear layer that selects."""
        if self.axis == 0:
            rows = range(self.start, self.start + self.step * self.count, self.step)
            return select_channels(reader, self.value, rows)
        return select_positions(reader, self.value, self.axis, self.start, self.step, self.count)


@dataclass(frozen=True)
class Extreme(Deferred):
    """The larger (or smaller) of two values of equal shape, entry by entry."""

    first: Any
    second: Any
    larger: bool

    def materialise(self, reader: Reader) -> Curve:
        """max(a, b) as max pooling over the pair; min(a, b) = -max(-a, -b)."""
        pair = [self.first, self.second]
        shape = reader.shape_of(pair[0])
        if shape != reader.shape_of(pair[1]):
            raise reader.unsupported("The layers have different shapes.")
        pair = [reader.curve(value) if self.larger else _negated(reader, value) for value in pair]
        rows = [_seen_as(reader, value, (1, math.prod(shape))) for value in pair]
        both = Concat(reader.layer, tuple(row.source for row in rows), (2, math.prod(shape)), 0)
        turned = _seen_as(reader, reader.append(both), (math.prod(shape), 2), (1, 0))
        made = largest(reader, turned, shape)
        return made if self.larger else _negated(reader, made)


def _negated(reader: Reader, value: Any) -> Curve:
    """A node that holds ``-value``."""
    minus = Curve(reader.materialise(value), ((Term("identity", 1.0, -1.0),),))
    return reader.line(minus)


@handles("split", "split_with_sizes", "chunk", "unsafe_split", "unsafe_chunk", "tensor_split")
def _split(reader: Reader, a: Arguments, shape: tuple[int, ...]) -> Any:
    value = reader.curve(a["self"])
    size = reader.shape_of(value)
    axis = _axis(reader, a["dim"], len(size))
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
    axis = _axis(reader, a["dim"], len(size))
    parts = [Part(value, axis, index, 1, 1) for index in range(size[axis])]
    return [_seen_as(reader, part, shape) for part in parts]


@handles("slice")
def _slice(reader: Reader, a: Arguments, shape: tuple[int, ...]) -> Any:
    value = reader.curve(a["self"])
    size = reader.shape_of(value)
    if int(a["dim"]) % (len(size) + 1) == 0:
        if a.get("start") in (None, 0) and a.get("end") in (None, 2**63 - 1) and a["step"] == 1:
            return value  # x[:] on the batch
        raise reader.unsupported("It works along the batch.")
    axis = _axis(reader, a["dim"], len(size))
    return _part(reader, value, axis, torch.arange(size[axis])[slice(a.get("start"), a.get("end"), a["step"])])


@handles("narrow")
def _narrow(reader: Reader, a: Arguments, shape: tuple[int, ...]) -> Any:
    value = reader.curve(a["self"])
    size = reader.shape_of(value)
    axis = _axis(reader, a["dim"], len(size))
    return _part(reader, value, axis, torch.arange(size[axis]).narrow(0, int(a["start"]), int(a["length"])))


@handles("select")
def _select(reader: Reader, a: Arguments, shape: tuple[int, ...]) -> Any:
    value = reader.curve(a["self"])
    size = reader.shape_of(value)
    axis = _axis(reader, a["dim"], len(size))
    return _seen_as(
        reader, _part(reader, value, axis, torch.arange(size[axis]).select(0, int(a["index"]))[None]), shape
    )


def _part(reader: Reader, value: Curve, axis: int, places: Tensor) -> Any:
    """The places along an axis that torch itself takes, whatever signs its arguments have."""
    if len(places) == 0:
        raise reader.unsupported("It takes no entry at all.")
    start, count = int(places[0]), len(places)
    step = int(places[1]) - start if count > 1 else 1
    if (start, step, count) == (0, 1, reader.shape_of(value)[axis]):
        return value
    return Part(value, axis, start, step, count)


@handles("maximum", "max", "minimum", "min")
def _extreme(reader: Reader, a: Arguments, shape: tuple[int, ...]) -> Any:
    if not isinstance(a.get("other"), Curve | Deferred) or not isinstance(a["self"], Curve | Deferred):
        raise reader.unsupported("Only the maximum of two layers is supported; amax takes it over axes.")
    return Extreme(a["self"], a["other"], reader.operation.startswith("max"))


@handles("sort")
def _sort(reader: Reader, a: Arguments, shape: tuple[int, ...]) -> Any:
    """Sorting along an axis sorts groups of neighbours once the axes before it are one with it."""
    axis = _axis(reader, a["dim"], len(shape))
    flat = (math.prod(shape[: axis + 1]), *shape[axis + 1 :])
    return [_seen_as(reader, _sorted(reader, a["self"], flat, shape[axis], bool(a["descending"])), shape)]


def _sorted(reader: Reader, value: Any, flat: tuple[int, ...], group: int, descending: bool) -> Curve:
    value = _negated(reader, value) if descending else value
    source = _seen_as(reader, value, flat).source
    made = reader.append(GroupSort(reader.layer, (source,), flat, group))
    return _negated(reader, made) if descending else made


# --- joining ---------------------------------------------------------------------------------------------------------


@handles("cat", "concat", "concatenate")
def _cat(reader: Reader, a: Arguments, shape: tuple[int, ...]) -> Curve:
    axis = _axis(reader, a["dim"], len(shape))
    pair = _max_and_min(a["tensors"], axis)
    if pair is not None:
        return _pairs_sorted(reader, *pair)
    joined: list[Curve] = []
    for part in reader.over_one_source(a["tensors"]):
        if joined and joined[-1].source == part.source and all(_along(c, axis) for c in (joined[-1], part)):
            joined[-1] = Curve(part.source, (*joined[-1].components, *part.components), axis)
        else:
            joined.append(part)
    if len(joined) == 1:
        return joined[0]
    sources = tuple(reader.materialise(part) for part in joined)
    return reader.append(Concat(reader.layer, sources, shape, axis))


@handles("stack")
def _stack(reader: Reader, a: Arguments, shape: tuple[int, ...]) -> Curve:
    axis = _axis(reader, a["dim"], len(shape))
    one = (*shape[:axis], 1, *shape[axis + 1 :])
    return _cat(reader, {"tensors": [_seen_as(reader, part, one) for part in a["tensors"]], "dim": axis + 1}, shape)


def _along(curve: Curve, axis: int) -> bool:
    return len(curve.components) == 1 or curve.axis == axis


def _max_and_min(tensors: Any, axis: int) -> tuple[Part, Part, bool] | None:
    """The two halves whose maximum and minimum are joined again, and whether the maximum comes first."""
    if len(tensors) != 2 or not all(isinstance(part, Extreme) for part in tensors):
        return None
    one, two = cast(list[Extreme], tensors)
    parts = {one.first, one.second}
    if one.larger == two.larger or parts != {two.first, two.second} or not all(isinstance(p, Part) for p in parts):
        return None
    halves = sorted(cast(set[Part], parts), key=lambda part: part.start)
    fits = len(halves) == 2 and halves[0].value == halves[1].value and halves[0].axis == halves[1].axis == axis == 0
    whole = fits and halves[0].start == 0 and halves[1].start == halves[0].count == halves[1].count
    return (halves[0], halves[1], one.larger) if whole and halves[0].step == halves[1].step == 1 else None


def _pairs_sorted(reader: Reader, first: Part, second: Part, descending: bool) -> Curve:
    """MaxMin written out by halves: channel i and channel i + n/2 are a pair."""
    channels, *space = shape = reader.shape_of(first.value)
    if channels != first.count + second.count:
        raise reader.unsupported("The halves leave channels out.")
    rest = tuple(range(2, 2 + len(space)))
    split = _seen_as(reader, first.value, (2, channels // 2, *space))
    turned = _seen_as(reader, split, tuple(shape), (1, 0, *rest))
    made = _sorted(reader, turned, tuple(shape), 2, descending)
    back = _seen_as(reader, made, (channels // 2, 2, *space))
    return _seen_as(reader, back, tuple(shape), (1, 0, *rest))
