"""Softmax and log-softmax along an axis."""

from __future__ import annotations

from typing import Any

from lipbridge.frontend.builder import Curve, GraphBuilder
from lipbridge.graph.nodes import Softmax


def softmax(builder: GraphBuilder, value: Any, axis: int, shape: tuple[int, ...], logarithm: bool = False) -> Curve:
    """Softmax along an axis of the shape, or its logarithm."""
    source = builder.materialise(value)
    return builder.append(Softmax(builder.layer, (source,), shape, axis, logarithm))
