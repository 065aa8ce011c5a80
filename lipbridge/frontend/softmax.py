"""Capture of softmax and log-softmax along an axis."""

from __future__ import annotations

from lipbridge.frontend.reader import Arguments, Curve, Reader, handles
from lipbridge.frontend.shapes import axis_of
from lipbridge.graph.nodes import Softmax


@handles("softmax", "_softmax", "special_softmax", "log_softmax", "_log_softmax", "special_log_softmax")
def _softmax(reader: Reader, a: Arguments, shape: tuple[int, ...]) -> Curve:
    axis = axis_of(reader, a["dim"], len(shape))
    source = reader.materialise(a["self"])
    return reader.append(Softmax(reader.layer, (source,), shape, axis, "log" in reader.operation))


__all__: list[str] = []
