"""Permutations of axes in ONNX files."""

from __future__ import annotations

from dataclasses import replace

from lipbridge.frontend.shapes import seen_as
from lipbridge_adapters.onnx.file import Fault
from lipbridge_adapters.onnx.reader import Flow, OnnxReader


def rows_turned(reader: OnnxReader, x: Flow) -> Flow:
    """The last two axes exchanged."""
    if len(x.shape) < 2:
        raise Fault(f"its operator {reader.operation} needs a matrix, not values of shape {x.shape}")
    order = [*range(len(x.shape) - 2), len(x.shape) - 1, len(x.shape) - 2]
    return permuted(reader, x, order)


def permuted(reader: OnnxReader, x: Flow, order: list[int]) -> Flow:
    """A Transpose; one that moves only axes of length one is a reshape."""
    shape = tuple(x.shape[axis] for axis in order)
    moved = [axis for axis in order if x.shape[axis] != 1]
    if moved == sorted(moved):
        return replace(x, value=reader.curve(x.value), shape=shape)
    lengths = [x.shape[axis] for axis in sorted(moved)]
    value = reader.in_shape(reader.line(x.value), tuple(lengths))
    places = [sorted(moved).index(axis) for axis in moved]
    return Flow(seen_as(reader, value, tuple(lengths[i] for i in places), tuple(places)), shape)
