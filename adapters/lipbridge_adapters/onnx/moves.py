"""ONNX's operators that copy entries to other places: Gather, Expand, Tile, Resize, DepthToSpace and their like.

Each is computed once on the numbers of the entries, in the order of ONNX's shape; what comes out says which entry each
output copies (see :mod:`lipbridge.frontend.copies`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from lipbridge.frontend.copies import copied
from lipbridge_adapters.onnx.constants import broadcast_shape, integers
from lipbridge_adapters.onnx.file import Fault
from lipbridge_adapters.onnx.reader import Call, Flow, OnnxReader, Value, operator, per_input


def moved(reader: OnnxReader, x: Flow, move: Callable[[Tensor], Tensor]) -> Flow:
    """What ``move`` makes of the numbers of a value's entries, -1 for zero; its result has a size that is allowed."""
    index = move(torch.arange(math.prod(x.shape)).reshape(x.shape))
    shape = tuple(index.shape)
    if not index.numel():
        raise Fault(f"its operator {reader.operation} leaves nothing of {x.shape}")
    return Flow(copied(reader, [x.value], index, per_input(shape)), shape)


def taken(reader: OnnxReader, x: Flow, axis: int, rows: Sequence[int]) -> Flow:
    """The entries ``rows`` along an axis of ONNX's shape, each as often as it is named; -1 for zero."""
    reader.require_small(math.prod(x.shape) // x.shape[axis] * len(rows))
    chosen = torch.tensor(rows, dtype=torch.int64)

    def move(numbers: Tensor) -> Tensor:
        zero = torch.full_like(numbers.narrow(axis, 0, 1), -1)
        return torch.cat([numbers, zero], axis).index_select(axis, torch.where(chosen < 0, x.shape[axis], chosen))

    return moved(reader, x, move)


@operator("Expand")
def _expand(reader: OnnxReader, call: Call) -> Value:
    x, target = call.flow(), integers(call.constant(1))
    if len(target) > 16 or any(n < 1 for n in target):
        raise Fault(f"its Expand makes {str(target)[:60]}")
    try:
        shape = broadcast_shape(x.shape, tuple(target))
    except RuntimeError:
        raise Fault(f"its Expand makes {str(target)[:60]} of {x.shape}") from None
    return expanded(reader, x, shape)


def expanded(reader: OnnxReader, x: Flow, shape: tuple[int, ...]) -> Flow:
    """A value repeated along axes of length one and along new ones in front, to a shape that it can be broadcast to."""
    if shape == x.shape:
        return x
    reader.require_small(math.prod(shape))
    _require_one_input(reader, x, shape)
    return moved(reader, x, lambda numbers: numbers.expand(shape))


@operator("Tile")
def _tile(reader: OnnxReader, call: Call) -> Value:
    x, times = call.flow(), integers(call.constant(1))
    if len(times) != len(x.shape) or any(not 1 <= n < 2**24 for n in times):
        raise Fault(f"its Tile repeats {str(times)[:60]} times")
    shape = tuple(n * t for n, t in zip(x.shape, times, strict=True))
    reader.require_small(math.prod(shape))
    _require_one_input(reader, x, shape)
    return moved(reader, x, lambda numbers: numbers.tile(times))


def _require_one_input(reader: OnnxReader, x: Flow, shape: tuple[int, ...]) -> None:
    if len(x.shape) > 1 and len(shape) == len(x.shape) and x.shape[0] == 1 != shape[0]:
        raise reader.unsupported("It repeats the batch.")


@operator("GatherElements", "axis")
def _gather_elements(reader: OnnxReader, call: Call) -> Value:
    x, index, axis = call.flow(), call.constant(1), int(call.attributes.get("axis", 0))
    if index is None or index.is_floating_point() or index.ndim != len(x.shape) or not -index.ndim <= axis < index.ndim:
        raise Fault("its GatherElements needs integers for each axis")
    reader.require_small(index.numel())
    n = x.shape[axis]
    if index.numel() and not -n <= int(index.min()) <= int(index.max()) < n:
        raise Fault("its GatherElements selects entries that are not there")
    return moved(reader, x, lambda numbers: numbers.gather(axis, index % n))


@operator("GatherND", "batch_dims")
def _gather_nd(reader: OnnxReader, call: Call) -> Value:
    x, index = call.flow(), call.constant(1)
    if call.attributes.get("batch_dims", 0) != 0:
        raise reader.unsupported("Only places that count all axes (batch_dims = 0) are read.")
    if index is None or index.is_floating_point() or not index.ndim or not 1 <= index.shape[-1] <= len(x.shape):
        raise Fault("its GatherND needs places along the first axes")
    depth = index.shape[-1]
    lengths = torch.tensor(x.shape[:depth])
    if not bool(((-lengths <= index) & (index < lengths)).all()):
        raise Fault("its GatherND selects entries that are not there")
    reader.require_small(index.numel() // depth * math.prod(x.shape[depth:]))
    return moved(reader, x, lambda numbers: numbers[(index % lengths).unbind(-1)])


# --- blocks of channels ----------------------------------------------------------------------------------------------


@operator("DepthToSpace", "blocksize mode")
def _depth_to_space(reader: OnnxReader, call: Call) -> Value:
    x, b = call.flow(), call.attributes.get("blocksize")
    mode = call.attributes.get("mode", "DCR")
    if not isinstance(b, int) or b < 1 or len(x.shape) != 4 or x.shape[1] % (b * b) or mode not in ("DCR", "CRD"):
        raise Fault(f"its DepthToSpace has blocks of {str(b)[:20]} for values of shape {x.shape}")
    n, channels, height, width = x.shape
    rest = channels // (b * b)

    def move(numbers: Tensor) -> Tensor:
        if mode == "DCR":
            return numbers.reshape(n, b, b, rest, height, width).permute(0, 3, 4, 1, 5, 2)
        return numbers.reshape(n, rest, b, b, height, width).permute(0, 1, 4, 2, 5, 3)

    return moved(reader, x, lambda numbers: move(numbers).reshape(n, rest, height * b, width * b))


@operator("SpaceToDepth", "blocksize")
def _space_to_depth(reader: OnnxReader, call: Call) -> Value:
    x, b = call.flow(), call.attributes.get("blocksize")
    if not isinstance(b, int) or b < 1 or len(x.shape) != 4 or x.shape[2] % b or x.shape[3] % b:
        raise Fault(f"its SpaceToDepth has blocks of {str(b)[:20]} for values of shape {x.shape}")
    n, channels, height, width = x.shape

    def move(numbers: Tensor) -> Tensor:
        blocks = numbers.reshape(n, channels, height // b, b, width // b, b).permute(0, 3, 5, 1, 2, 4)
        return blocks.reshape(n, channels * b * b, height // b, width // b)

    return moved(reader, x, move)


__all__ = ["expanded", "moved", "taken"]
