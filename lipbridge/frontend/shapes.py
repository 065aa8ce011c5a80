"""What moves coordinates as they are, and takes parts of them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lipbridge.frontend.builder import LINE, Curve, GraphBuilder
from lipbridge.frontend.copies import Copies
from lipbridge.graph.nodes import Reshape


def seen_as(builder: GraphBuilder, value: Any, shape: tuple[int, ...], axes: tuple[int, ...] | None = None) -> Curve:
    """The value transposed by ``axes`` (if given), in ``shape``."""
    curve = builder.curve(value)
    if axes is None and curve.components == (LINE,) and builder.nodes[curve.source].shape == shape:
        return curve
    source = builder.materialise(curve)
    if math.prod(builder.nodes[source].shape) != math.prod(shape):
        raise builder.unsupported("It mixes the batch with the features.")
    return builder.append(Reshape(builder.layer, (source,), shape, axes))


# --- parts -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Part(Copies):
    """Positions ``start, start + step, ...`` (``count`` of them) of ``value`` along ``axis``."""

    value: Curve
    axis: int
    start: int
    step: int
    count: int

    def places(self, builder: GraphBuilder) -> Tensor:
        """Of the flattened value, in their shape."""
        shape = builder.shape_of(self.value)
        rows = torch.arange(self.start, self.start + self.step * self.count, self.step)
        return torch.arange(math.prod(shape)).reshape(shape).index_select(self.axis, rows)


def part_of(builder: GraphBuilder, value: Curve, axis: int, places: Tensor) -> Any:
    """The places along an axis that torch itself takes, whatever signs its arguments have."""
    if len(places) == 0:
        raise builder.unsupported("It takes no entry at all.")
    start, count = int(places[0]), len(places)
    step = int(places[1]) - start if count > 1 else 1
    if (start, step, count) == (0, 1, builder.shape_of(value)[axis]):
        return value
    return Part(value, axis, start, step, count)


__all__ = ["Part", "part_of", "seen_as"]
