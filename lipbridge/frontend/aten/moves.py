"""What moves, repeats and drops coordinates, or puts constants beside them, by running the operation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor

from lipbridge.errors import UnsupportedOperation
from lipbridge.frontend.aten.evaluated import evaluated, flows_of
from lipbridge.frontend.aten.registry import Arguments, handles, plain_name
from lipbridge.frontend.builder import Curve, Deferred, GraphBuilder
from lipbridge.frontend.export import BatchSize
from lipbridge.frontend.moves import BATCH, run_on_numbers


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
def _moved(builder: GraphBuilder, a: Arguments, shape: tuple[int, ...]) -> Any:
    if _names_batch(builder, a):
        raise builder.unsupported("It works along the batch.")
    return moved_by(builder, a, shape)


#: Arguments that name axes.
_AXES = ("dim", "dims", "dimension", "dim1", "dim2", "axis", "axes")


def _names_batch(builder: GraphBuilder, a: Arguments) -> bool:
    """Whether an operation runs along the batch by what it is told, whatever it does to a few inputs.

    A roll by 42 rows or what lies below a far diagonal of ``(batch, n)`` changes nothing in small batches.
    """
    name = plain_name(builder).rstrip("_")
    first = next((value for value in a.values() if isinstance(value, Curve | Deferred)), None)
    rank = 1 + len(builder.shape_of(first)) if first is not None else 0
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
def _expand_as(builder: GraphBuilder, a: Arguments, shape: tuple[int, ...]) -> Any:
    """The other value gives nothing but its shape."""
    if not isinstance(a["other"], Tensor):
        a = {
            **a,
            "other": torch.empty(BATCH, *builder.shape_of(a["other"]), dtype=torch.float64, device=builder.device),
        }
    return moved_by(builder, a, shape)


def moved_by(builder: GraphBuilder, a: Arguments, shape: tuple[int, ...]) -> Curve:
    """The operation at hand as copies of coordinates, and constants that are added.

    Raises:
        UnsupportedOperation: if it works along the batch, or is no such operation.
    """
    flows = flows_of(a)

    def operation(inputs: list[Tensor]) -> Tensor:
        return _run(builder, a, dict(zip(flows, inputs, strict=True)), shape)

    return run_on_numbers(builder, flows, operation, shape)


def _run(builder: GraphBuilder, a: Arguments, values: Mapping[Any, Tensor], shape: tuple[int, ...]) -> Tensor:
    """The result for three inputs; a constant for each input stands in the program for a batch of one."""
    try:
        found = evaluated(builder, a, values)
    except UnsupportedOperation:
        found = evaluated(builder, a, values, rows=True)
    if found.shape != (BATCH, *shape):
        found = evaluated(builder, a, values, rows=True)
    if found.shape != (BATCH, *shape):
        raise builder.unsupported("It works along the batch.")
    return found
