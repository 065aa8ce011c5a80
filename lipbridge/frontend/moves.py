"""Capture of what moves, repeats and drops coordinates, or puts constants beside them: torch says what goes where.

The operation is run on a batch of three inputs that hold the numbers of their coordinates, and on zeros: what differs
is a copy of the coordinate whose number it is, and the rest are constants. A third run, at other numbers, must agree.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor

from lipbridge.errors import UnsupportedOperation
from lipbridge.frontend.copies import copied
from lipbridge.frontend.diagonal import diagonal
from lipbridge.frontend.evaluated import evaluated, flows_of
from lipbridge.frontend.export import BatchSize
from lipbridge.frontend.reader import FIXED, Arguments, Curve, Deferred, Reader, handles

#: Inputs of the batch that an operation is run on.
_BATCH = 3
#: Coordinates of what an operation may make.
LARGEST = 2**26


@handles(
    *("flip", "roll", "rot90", "fliplr", "flipud", "mT", "adjoint"),
    *("atleast_1d", "atleast_2d", "atleast_3d", "ravel"),
    *("index_select", "index", "gather", "take_along_dim", "narrow_copy", "diagonal", "diagonal_copy"),
    *("expand", "expand_copy", "broadcast_to", "repeat", "tile", "repeat_interleave"),
    *("im2col", "unfold", "unfold_copy", "pixel_shuffle", "pixel_unshuffle"),
    *("channel_shuffle", "native_channel_shuffle", "tril", "triu", "diag_embed"),
    *("upsample_nearest1d", "upsample_nearest2d", "upsample_nearest3d"),
    *("_upsample_nearest_exact1d", "_upsample_nearest_exact2d", "_upsample_nearest_exact3d"),
    *("masked_fill", "index_fill", "index_put", "fill", "copy", "index_copy"),
    *("slice_scatter", "select_scatter", "diagonal_scatter", "scatter"),
)
def _moved(reader: Reader, a: Arguments, shape: tuple[int, ...]) -> Any:
    if _names_batch(reader, a):
        raise reader.unsupported("It works along the batch.")
    return moved(reader, a, shape)


#: Arguments that name axes.
_AXES = ("dim", "dims", "dimension", "dim1", "dim2", "axis", "axes")


def _names_batch(reader: Reader, a: Arguments) -> bool:
    """Whether an operation runs along the batch by what it is told, whatever it does to a few inputs.

    A roll by 42 rows or what lies below a far diagonal of ``(batch, n)`` changes nothing in small batches.
    """
    name = reader.operation.split(".")[0].rstrip("_")
    first = next((value for value in a.values() if isinstance(value, Curve | Deferred)), None)
    rank = 1 + len(reader.shape_of(first)) if first is not None else 0
    if name in ("tril", "triu") and rank < 3:
        return True
    if name == "flipud" or (name == "roll" and not a.get("dims")):
        return True
    if name in ("index", "index_put") and any(index is not None for index in cast(Sequence[Any], a["indices"])[:1]):
        return True
    whole = name == "slice_scatter" and not a["start"] and a["step"] == 1
    if whole and (a["end"] is None or isinstance(a["end"], BatchSize) or a["end"] >= 2**31):
        return False
    # The axes of diag_embed are those of the result, which is seen to keep the batch.
    named: list[Any] = [] if name == "diag_embed" else [a[key] for key in _AXES if key in a]
    axes: list[Any] = []
    for value in named:
        axes += list(cast(Sequence[Any], value)) if isinstance(value, list | tuple) else [value]
    return rank > 0 and any(axis in (0, -rank) for axis in axes)


@handles("expand_as")
def _expand_as(reader: Reader, a: Arguments, shape: tuple[int, ...]) -> Any:
    """The other value gives nothing but its shape."""
    if not isinstance(a["other"], Tensor):
        a = {**a, "other": torch.empty(_BATCH, *reader.shape_of(a["other"]), dtype=torch.float64, device=reader.device)}
    return moved(reader, a, shape)


def moved(reader: Reader, a: Arguments, shape: tuple[int, ...]) -> Any:
    """The operation at hand as copies of coordinates, and constants that are added.

    Raises:
        UnsupportedOperation: if it works along the batch, or is no such operation.
    """
    flows = flows_of(a)
    values = [reader.curve(flow) for flow in flows]
    sizes = [reader.shape_of(value) for value in values]
    total = sum(math.prod(size) for size in sizes)
    if max(total, math.prod(shape)) > LARGEST:
        raise reader.unsupported(f"It makes {math.prod(shape)} numbers of {total}, at most {LARGEST} are read.")

    def run(rows: Tensor) -> Tensor:
        """The result, flattened, for inputs ``(3, total)``."""
        parts = torch.split(rows, [math.prod(size) for size in sizes], 1)
        inputs = {flow: part.reshape(_BATCH, *size) for flow, part, size in zip(flows, parts, sizes, strict=True)}
        return _run(reader, a, inputs, shape).reshape(_BATCH, -1)

    numbers = torch.arange(_BATCH * total, dtype=torch.float64, device=reader.device).reshape(_BATCH, total)
    fixed, found = run(torch.zeros_like(numbers)), run(numbers + 1.0)
    copies = found != fixed
    place = torch.where(copies, found - 1.0, -1.0)
    if not bool(fixed.isfinite().all()):
        raise reader.unsupported("It puts infinite numbers beside the values.")
    if not bool((copies == copies[:1]).all() & (fixed == fixed[:1]).all() & (place == place.round()).all()):
        raise reader.unsupported("It works along the batch, or mixes coordinates.")
    index = place[0].to(torch.int64)
    # Seen once more at other numbers, in another order and differently in each input.
    other = 1.0 + numbers.flip(1).square()
    chosen = torch.nn.functional.pad(other, (0, 1))[:, index.clamp(-1, total)] if total else other
    if int(index.max()) >= total or not torch.equal(run(other), torch.where(copies, chosen, fixed)):
        raise reader.unsupported("It works along the batch, or mixes coordinates.")
    made = copied(reader, values, index, shape)
    return diagonal(reader, made, None, fixed[:1].reshape(1, *shape), shape, FIXED) if bool(fixed.any()) else made


def _run(reader: Reader, a: Arguments, values: Mapping[Any, Tensor], shape: tuple[int, ...]) -> Tensor:
    """The result for three inputs; a constant for each input stands in the program for a batch of one."""
    try:
        found = evaluated(reader, a, values)
    except UnsupportedOperation:
        found = evaluated(reader, a, values, rows=True)
    if found.shape != (_BATCH, *shape):
        found = evaluated(reader, a, values, rows=True)
    if found.shape != (_BATCH, *shape):
        raise reader.unsupported("It works along the batch.")
    return found


__all__ = ["LARGEST", "moved"]
