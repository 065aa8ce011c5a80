"""Operations that only move numbers, and that only look at them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor

from lipbridge.errors import NumericalFailure
from lipbridge.frontend.computed.arithmetic import error_of, operand
from lipbridge.frontend.computed.tensor import Computed
from lipbridge.rounding.scalars import UNIT
from lipbridge.rounding.uncertain import COVER, Uncertain


def _as_they_are(args: Any) -> Any:
    return args


def _fill(args: Any) -> Any:
    """A number that is put in is exact."""
    return [0.0 if isinstance(entry, float | int) and i == 2 else entry for i, entry in enumerate(args)]


def _scatter_fill(args: Any) -> Any:
    return [*args[:3], *(0.0 if isinstance(entry, float | int) else entry for entry in args[3:])]


def _mask_fill(args: Any) -> Any:
    return [*args[:2], 0.0 if isinstance(args[2], float | int) else args[2], *args[3:]]


MOVES: Mapping[str, Callable[[Any], Any]] = {
    **dict.fromkeys(
        (
            *("view", "reshape", "_unsafe_view", "t", "transpose", "permute", "expand", "slice"),
            *("select", "index_select", "index", "gather", "unsqueeze", "squeeze", "alias", "detach", "clone"),
            *("lift_fresh", "contiguous", "cat", "stack", "split", "split_with_sizes", "unbind", "chunk", "flip"),
            *("roll", "repeat", "diagonal", "diag_embed", "diag", "tril", "triu", "narrow", "unfold", "movedim"),
            *("take", "repeat_interleave", "expand_copy", "view_copy", "unsqueeze_copy", "hstack"),
            *("broadcast_to", "tile", "flatten", "lift", "lift_fresh_copy", "select_scatter", "slice_scatter"),
            *("index_copy", "masked_scatter", "diagonal_scatter", "block_diag", "rot90", "im2col", "embedding"),
            *("reflection_pad1d", "reflection_pad2d", "reflection_pad3d", "replication_pad1d", "replication_pad2d"),
            *("replication_pad3d", "upsample_nearest1d", "upsample_nearest2d", "upsample_nearest3d", "pixel_shuffle"),
            *("pixel_unshuffle", "channel_shuffle", "diagonal_copy", "slice_copy", "select_copy", "permute_copy"),
        ),
        _as_they_are,
    ),
    "constant_pad_nd": _fill,
    "masked_fill": _mask_fill,
    **dict.fromkeys(("scatter", "index_fill"), _scatter_fill),
}


def _compared(func: Any, args: Any, kwargs: Any) -> Any:
    """A comparison that no error can turn round.

    Raises:
        NumericalFailure: if one could.
    """
    x, y = (operand(Uncertain(a.value, a.error) if isinstance(a, Computed) else a) for a in args)
    room = torch.zeros_like(x.value - y.value)
    for error in (x.error, y.error):
        room = room if error is None else room + error
    certain = (x.value - y.value).abs() * (1.0 - 4.0 * UNIT) > room * COVER  # not where one is NaN
    if bool((~certain).logical_and(room > 0).any()):
        raise NumericalFailure("A choice between constants hangs on the rounding of one that is computed.")
    return func(x.value, y.value) if isinstance(args[1], Tensor) else func(x.value, args[1])


def _equal_entries(func: Any, args: Any, kwargs: Any) -> Any:
    """Entries are equal only if both are exact; of a tensor and itself all but NaN are."""
    if args[0] is args[1]:
        return func(args[0].value, args[0].value)
    x, y = (operand(Uncertain(a.value, a.error) if isinstance(a, Computed) else a) for a in args)
    exact = (x.value == y.value) & (error_of(x) == 0) & (error_of(y) == 0)
    return exact if func._schema.name.endswith("eq") else ~exact


def _chosen_equal(func: Any, args: Any, kwargs: Any) -> Any:
    """As :func:`_equal_entries`, where what is computed further hangs on it: no entry may be undecided."""
    if args[0] is not args[1]:
        _compared(func, args, kwargs)
    return _equal_entries(func, args, kwargs)


def _same(func: Any, args: Any, kwargs: Any) -> bool:
    x, y = args
    if x is y:
        return True
    return not any(isinstance(t, Computed) and bool(t.error.any()) for t in (x, y)) and torch.equal(x, y)


def _any(func: Any, args: Any, kwargs: Any) -> Any:
    """Whether an entry may be other than zero."""
    x = cast(Computed, args[0])
    return func((x.value != 0) | (x.error != 0), *args[1:], **kwargs)


def _on_values(func: Any, args: Any, kwargs: Any) -> Any:
    return func(*(a.value if isinstance(a, Computed) else a for a in args), **kwargs)


READS: Mapping[str, Callable[[Any, Sequence[Any], Mapping[str, Any]], Any]] = {
    **dict.fromkeys(("gt", "ge", "lt", "le"), _compared),
    **dict.fromkeys(("eq", "ne"), _equal_entries),
    "equal": _same,
    "any": _any,
    **dict.fromkeys(("isnan", "isinf", "isfinite", "zeros_like", "ones_like", "full_like", "new_zeros"), _on_values),
    **dict.fromkeys(("new_ones", "new_full", "new_empty", "empty_like", "sym_size", "is_same_size"), _on_values),
}


#: What a program that is tracked reads, where this differs from what one may ask of its results.
CHOICES: Mapping[str, Callable[[Any, Sequence[Any], Mapping[str, Any]], Any]] = dict.fromkeys(
    ("eq", "ne"), _chosen_equal
)


#: Operations without a rule that round nothing.
EXACT = frozenset(
    [
        *("_to_copy", "sgn", "zeros_like", "ones_like", "full_like", "new_zeros", "new_ones", "new_full"),
        *("new_empty", "empty_like", "fill_", "zero_", "copy_", "isnan", "full", "zeros", "ones", "eye"),
        "scalar_tensor",
    ]
)
