"""What joins values: functions of one node, copies of one node, a maximum and a minimum, constants."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor

from lipbridge.frontend.builder import FIXED, LINE, Curve, GraphBuilder
from lipbridge.frontend.copies import Copies, copied, origin
from lipbridge.frontend.diagonal import diagonal
from lipbridge.frontend.extremes import AxisExtreme, Extreme, both_extremes, sorted_groups
from lipbridge.frontend.shapes import Part, seen_as
from lipbridge.graph.nodes import Concat, Gather, Reshape


def join(builder: GraphBuilder, values: Sequence[Any], axis: int, shape: tuple[int, ...]) -> Curve:
    """Values one after the other along an axis of the shape; constants ``(1, ...)`` may be among them."""
    tensors = [value for value in values if not _is_empty(value)]
    if len(tensors) == 1:
        return builder.line(tensors[0])
    if any(isinstance(value, Tensor) for value in tensors):
        return _beside_constants(builder, tensors, axis, shape)
    found = _as_copies(builder, tensors, axis, shape)
    if found is not None:
        return found
    joined: list[Curve] = []
    for part in builder.over_one_source(tensors):
        if joined and joined[-1].source == part.source and all(_along(c, axis) for c in (joined[-1], part)):
            joined[-1] = Curve(part.source, (*joined[-1].components, *part.components), axis)
        else:
            joined.append(part)
    if len(joined) == 1:
        return joined[0]
    sources = tuple(builder.materialise(part) for part in joined)
    return builder.append(Concat(builder.layer, sources, shape, axis))


def _is_empty(value: Any) -> bool:
    """Whether it adds nothing to a join: parts of length zero, which a split may give, and torch's old empty tensor."""
    return value.numel() == 0 if isinstance(value, Tensor) else isinstance(value, Part) and value.count == 0


def stack(builder: GraphBuilder, values: Sequence[Any], axis: int, shape: tuple[int, ...]) -> Curve:
    """Values one after the other along a new axis."""
    if all(isinstance(value, Extreme | AxisExtreme) for value in values):
        both = both_extremes(builder, list(values))
        if both is not None:
            return copied(builder, [both[0]], torch.stack(both[1], axis), shape)
    one = (*shape[:axis], 1, *shape[axis + 1 :])
    parts = [p[:, None].movedim(1, axis + 1) if isinstance(p, Tensor) else seen_as(builder, p, one) for p in values]
    return join(builder, parts, axis, shape)


def _beside_constants(builder: GraphBuilder, tensors: list[Any], axis: int, shape: tuple[int, ...]) -> Curve:
    """Copies of the values beside zeros, to which the constants are added."""
    values, places, shifts, start = list[Any](), list[Tensor](), list[Tensor](), 0
    for value in tensors:
        if isinstance(value, Tensor):
            constant = value.detach().to(torch.float64)
            if constant.ndim != len(shape) + 1 or len(constant) != 1:
                raise builder.unsupported("A constant that differs between the inputs of a batch is no layer.")
            places.append(torch.full(constant.shape[1:], -1))
            shifts.append(constant[0])
            continue
        size = builder.shape_of(value)
        places.append(torch.arange(start, start + math.prod(size)).reshape(size))
        shifts.append(torch.zeros(size, dtype=torch.float64, device=builder.device))
        start += math.prod(size)
        values.append(value)
    made = copied(builder, values, torch.cat(places, axis), shape)
    return diagonal(builder, made, None, torch.cat(shifts, axis)[None], shape, FIXED)


def _along(curve: Curve, axis: int) -> bool:
    return len(curve.components) == 1 or curve.axis == axis


def _as_copies(builder: GraphBuilder, tensors: list[Any], axis: int, shape: tuple[int, ...]) -> Curve | None:
    """The whole as a sort, or as copies of one node, if it is one."""
    if all(isinstance(value, Extreme | AxisExtreme) for value in tensors):
        pair = _max_and_min(tensors, axis)
        if pair is not None:
            return _pairs_sorted(builder, *pair)
        both = both_extremes(builder, tensors)
        return None if both is None else copied(builder, [both[0]], torch.cat(both[1], axis), shape)
    whole = [value.value if isinstance(value, Copies) else value for value in tensors]
    lines = all(isinstance(value, Curve) and value.components == (LINE,) for value in whole)
    if not lines or not any(isinstance(v, Copies) or _is_copy(builder, v) for v in tensors):
        return None
    origins = [origin(builder, value) for value in tensors]
    if len({root for root, _ in origins}) > 1:
        return None
    before, after = shape[:axis], shape[axis + 1 :]
    index = torch.cat([places.reshape(*before, -1, *after) for _, places in origins], axis)
    return copied(builder, [Curve(origins[0][0], (LINE,))], index, shape)


def _is_copy(builder: GraphBuilder, curve: Curve) -> bool:
    node = builder.nodes[curve.source]
    while isinstance(node, Reshape):
        node = builder.nodes[node.inputs[0]]
    return isinstance(node, Gather)


# --- halves ----------------------------------------------------------------------------------------------------------


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


def _pairs_sorted(builder: GraphBuilder, first: Part, second: Part, descending: bool) -> Curve:
    """MaxMin written out by halves: channel i and channel i + n/2 are a pair."""
    channels, *space = shape = builder.shape_of(first.value)
    if channels != first.count + second.count:
        raise builder.unsupported("The halves leave channels out.")
    rest = tuple(range(2, 2 + len(space)))
    split = seen_as(builder, first.value, (2, channels // 2, *space))
    turned = seen_as(builder, split, tuple(shape), (1, 0, *rest))
    made = sorted_groups(builder, turned, tuple(shape), 2, descending)
    back = seen_as(builder, made, (channels // 2, 2, *space))
    return seen_as(builder, back, tuple(shape), (1, 0, *rest))
