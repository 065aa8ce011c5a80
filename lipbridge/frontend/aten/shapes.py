"""What moves coordinates as they are, and takes parts of them."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor

from lipbridge.frontend.aten.registry import Arguments, axis_of, handles
from lipbridge.frontend.builder import GraphBuilder
from lipbridge.frontend.shapes import Part, part_of, seen_as


@handles("flatten", "view", "reshape", "_unsafe_view", "unsqueeze", "squeeze", "unflatten", "view_as", "reshape_as")
def _reshape(builder: GraphBuilder, a: Arguments, shape: tuple[int, ...]) -> Any:
    return seen_as(builder, a["self"], shape)


@handles("permute", "transpose", "swapaxes", "swapdims", "movedim")
def _permute(builder: GraphBuilder, a: Arguments, shape: tuple[int, ...]) -> Any:
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
        raise builder.unsupported("It moves the axis of the batch.")
    if order == sorted(order):
        return a["self"]
    return seen_as(builder, a["self"], shape, tuple(axis - 1 for axis in order[1:]))


@handles("dropout", "feature_dropout", "alpha_dropout", "feature_alpha_dropout", "native_dropout")
def _dropout(builder: GraphBuilder, a: Arguments, shape: tuple[int, ...]) -> Any:
    if a.get("train"):
        raise builder.unsupported("Dropout is the identity only in eval mode.")
    return a["input"]


@handles("clone", "contiguous", "detach", "alias", "detach_", "lift_fresh_copy")
def _same(builder: GraphBuilder, a: Arguments, shape: tuple[int, ...]) -> Any:
    return a["self"]


@handles("to", "_to_copy", "type_as")
def _cast(builder: GraphBuilder, a: Arguments, shape: tuple[int, ...]) -> Any:
    """A cast between floating point types only rounds; to any other type it jumps, or has no value in a Graph."""
    other = a.get("other")
    dtype = other.dtype if isinstance(other, Tensor) else a.get("dtype")
    if isinstance(dtype, torch.dtype) and not dtype.is_floating_point:
        raise builder.unsupported(f"A cast to {dtype} is no continuous function, or leaves the real numbers.")
    return a["self"]


@handles("split", "split_with_sizes", "chunk", "unsafe_split", "unsafe_chunk", "tensor_split")
def _split(builder: GraphBuilder, a: Arguments, shape: tuple[int, ...]) -> Any:
    value = builder.curve(a["self"])
    size = builder.shape_of(value)
    axis = axis_of(builder, a["dim"], len(size))
    sizes = a.get("split_sizes", a.get("split_size"))
    if isinstance(sizes, list):
        lengths = [int(length) for length in cast(list[Any], sizes)]
    elif "chunks" in a or isinstance(sizes, int):
        # torch's chunk makes pieces of the size of the first
        piece = shape[axis]
        lengths = [min(piece, size[axis] - start) for start in range(0, size[axis], piece)]
    else:
        raise builder.unsupported()
    starts = [sum(lengths[:index]) for index in range(len(lengths))]
    return [Part(value, axis, start, 1, length) for start, length in zip(starts, lengths, strict=True)]


@handles("unbind")
def _unbind(builder: GraphBuilder, a: Arguments, shape: tuple[int, ...]) -> Any:
    value = builder.curve(a["self"])
    size = builder.shape_of(value)
    axis = axis_of(builder, a["dim"], len(size))
    parts = [Part(value, axis, index, 1, 1) for index in range(size[axis])]
    return [seen_as(builder, part, shape) for part in parts]


@handles("slice")
def _slice(builder: GraphBuilder, a: Arguments, shape: tuple[int, ...]) -> Any:
    value = builder.curve(a["self"])
    size = builder.shape_of(value)
    if int(a["dim"]) % (len(size) + 1) == 0:
        if a.get("start") in (None, 0) and a.get("end") in (None, 2**63 - 1) and a["step"] == 1:
            return value  # x[:] on the batch
        raise builder.unsupported("It works along the batch.")
    axis = axis_of(builder, a["dim"], len(size))
    return part_of(builder, value, axis, torch.arange(size[axis])[slice(a.get("start"), a.get("end"), a["step"])])


@handles("narrow")
def _narrow(builder: GraphBuilder, a: Arguments, shape: tuple[int, ...]) -> Any:
    value = builder.curve(a["self"])
    size = builder.shape_of(value)
    axis = axis_of(builder, a["dim"], len(size))
    return part_of(builder, value, axis, torch.arange(size[axis]).narrow(0, int(a["start"]), int(a["length"])))


@handles("select")
def _select(builder: GraphBuilder, a: Arguments, shape: tuple[int, ...]) -> Any:
    value = builder.curve(a["self"])
    size = builder.shape_of(value)
    axis = axis_of(builder, a["dim"], len(size))
    return seen_as(
        builder, part_of(builder, value, axis, torch.arange(size[axis]).select(0, int(a["index"]))[None]), shape
    )
