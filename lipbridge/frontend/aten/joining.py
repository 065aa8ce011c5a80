"""What joins values."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from lipbridge.frontend.aten.registry import Arguments, axis_of, handles
from lipbridge.frontend.builder import Curve, GraphBuilder
from lipbridge.frontend.joining import join, stack
from lipbridge.frontend.shapes import seen_as


@handles("cat", "concat", "concatenate")
def _cat(builder: GraphBuilder, a: Arguments, shape: tuple[int, ...]) -> Curve:
    return join(builder, a["tensors"], axis_of(builder, a["dim"], len(shape)), shape)


@handles("stack")
def _stack(builder: GraphBuilder, a: Arguments, shape: tuple[int, ...]) -> Curve:
    return stack(builder, a["tensors"], axis_of(builder, a["dim"], len(shape)), shape)


@handles("hstack", "column_stack", "dstack", "vstack", "row_stack")
def _stacked_along(builder: GraphBuilder, a: Arguments, shape: tuple[int, ...]) -> Curve:
    """Joins along axis 1 or 2 of a batch; what has fewer axes gets them at the end. (A vstack mixes the batch.)"""
    dim = 2 if builder.operation.startswith("dstack") else 1
    parts: list[Any] = []
    for value in a["tensors"]:
        size = tuple(value.shape[1:]) if isinstance(value, Tensor) else builder.shape_of(value)
        size = (*size, *(1,) * (len(shape) - len(size)))
        if isinstance(value, Tensor):
            parts.append(value.reshape(len(value), *size))
        else:
            parts.append(seen_as(builder, value, size))
    if len(shape) < dim:
        raise builder.unsupported("It works along the batch.")
    return join(builder, parts, axis_of(builder, dim, len(shape)), shape)
