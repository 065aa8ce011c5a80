"""Dense layers of ONNX files: MatMul and Gemm."""

from __future__ import annotations

import math
from dataclasses import replace

from torch import Tensor

from lipbridge.frontend.computed.program import tracking
from lipbridge.frontend.layers import dense
from lipbridge_adapters.onnx.arithmetic import shifted
from lipbridge_adapters.onnx.axes import multiplied
from lipbridge_adapters.onnx.file import Fault
from lipbridge_adapters.onnx.permuting import rows_turned
from lipbridge_adapters.onnx.reader import Call, Flow, OnnxReader, Value, operator


def _dense(reader: OnnxReader, x: Flow, W: Tensor, shape: tuple[int, ...], bias: Tensor | None = None) -> Flow:
    """``W x + b`` on the last axis; a value whose other axes are one is a vector."""
    m, n = W.shape
    vector = math.prod(x.shape) == n
    value = reader.in_shape(x.value, (n,)) if vector else reader.seen(x)
    if not vector and reader.shape_of(value)[-1] != n:
        raise Fault(f"its operator {reader.operation} has {n} columns for values of shape {x.shape}")
    size = (m,) if vector else (*reader.shape_of(value)[:-1], m)
    reader.require_small(math.prod(size))
    return Flow(dense(reader, value, W.contiguous(), False, bias, size), shape, fresh=True)


@operator("MatMul")
def _matmul(reader: OnnxReader, call: Call) -> Value:
    a, b = call.inputs[:2]
    if isinstance(a, Flow) and isinstance(b, Flow):
        raise reader.unsupported("A product of two functions of the input has no Lipschitz constant.")
    if isinstance(a, Flow):
        if call.numbers(1).ndim != 2:
            return multiplied(reader, a, call.numbers(1), first=True)
        W = _matrix(call.numbers(1))
        if not a.shape or a.shape[-1] != W.shape[0]:
            raise Fault(f"its MatMul multiplies {a.shape} and {tuple(W.shape)}")
        return _dense(reader, a, W.T, (*a.shape[:-1], W.shape[1]))
    if call.numbers(0).ndim != 2:
        return multiplied(reader, call.flow(1), call.numbers(0), first=False)
    x, W = call.flow(1), _matrix(call.numbers(0))
    if len(x.shape) == 1:
        return _dense(reader, x, W, (W.shape[0],))
    if x.shape[-2] != W.shape[1]:
        raise Fault(f"its MatMul multiplies {tuple(W.shape)} and {x.shape}")
    turned = rows_turned(reader, x)
    made = _dense(reader, turned, W, (*turned.shape[:-1], W.shape[0]))
    return replace(rows_turned(reader, made), fresh=x.shape[-1] == 1)


def _matrix(tensor: Tensor) -> Tensor:
    if tensor.ndim != 2 or not tensor.numel():
        raise Fault(f"a product needs a constant matrix, not a constant of shape {tuple(tensor.shape)}")
    return tensor


@operator("Gemm", "alpha beta transA transB")
def _gemm(reader: OnnxReader, call: Call) -> Value:
    a, b = call.inputs[:2]
    if isinstance(a, Flow) == isinstance(b, Flow):
        raise reader.unsupported("Exactly one factor must be constant.")
    alpha, beta = (float(call.attributes.get(name, 1.0)) for name in ("alpha", "beta"))
    place = 0 if isinstance(a, Flow) else 1
    x, W = call.flow(place), call.numbers(1 - place)
    if len(x.shape) != 2 or W.ndim != 2 or not W.numel():
        raise Fault(f"its Gemm multiplies {x.shape} and {tuple(W.shape)}")
    with tracking():
        W = W if alpha == 1.0 else alpha * W
    turns = [bool(call.attributes.get(name, 0)) for name in ("transA", "transB")]
    x = rows_turned(reader, x) if turns[place] else x
    W = W.T if turns[1 - place] else W
    x, W = (x, W.T) if place == 0 else (rows_turned(reader, x), W)  # x W' in either case, for a product A B or (B' A')'
    if x.shape[1] != W.shape[1]:
        raise Fault(f"its Gemm multiplies {x.shape} and {tuple(W.T.shape)}")
    made = _dense(reader, x, W, (x.shape[0], W.shape[0]))
    made = made if place == 0 else replace(rows_turned(reader, made), fresh=x.shape[0] == 1)
    c = call.inputs[2] if len(call.inputs) > 2 else None
    if c is None or beta == 0.0:
        return made
    if isinstance(c, Flow):
        raise reader.unsupported("What it adds must be constant.")
    with tracking():
        shift = call.numbers(2) if beta == 1.0 else beta * call.numbers(2)
    return shifted(reader, made, shift, alone=True)
