"""Sums, differences, products and powers in ONNX files."""

from __future__ import annotations

import math
from dataclasses import replace
from fractions import Fraction
from typing import Any

import torch
from torch import Tensor

from lipbridge.activations.activation import Term
from lipbridge.frontend import functions, scalar
from lipbridge.frontend.builder import LINE, Curve
from lipbridge.frontend.computed.tensor import Computed
from lipbridge.frontend.polynomials import Waiting, product, square_of
from lipbridge.frontend.self_gated import times_number
from lipbridge.graph.nodes import Conv, Dense, Node
from lipbridge.rounding.factors import number
from lipbridge_adapters.onnx import moments
from lipbridge_adapters.onnx.constants import broadcast_shape
from lipbridge_adapters.onnx.file import Fault
from lipbridge_adapters.onnx.moves import expanded
from lipbridge_adapters.onnx.reader import Call, Flow, OnnxReader, Scaled, Value, operator, per_input

#: How far a stored sqrt 2 may be from the number itself: a few units in the last place of float32.
FLOAT32 = 2.0**-21


def _line(value: Any) -> tuple[float, float] | None:
    """Scale and offset of a curve that is one line."""
    if isinstance(value, Curve) and len(value.components) == 1 and len(value.components[0]) == 1:
        (term,) = value.components[0]
        if term.function == "identity":
            return term.coefficient * term.scale, term.coefficient * term.offset
    return None


def _broadcast(reader: OnnxReader, x: Flow, other: tuple[int, ...]) -> tuple[Flow, tuple[int, ...]]:
    """The shape of what an operator makes of a value and another, and the value repeated where it has to be."""
    try:
        shape = broadcast_shape(x.shape, other)
    except RuntimeError:
        raise Fault(f"its operator {reader.operation} joins shapes {x.shape} and {other}") from None
    if math.prod(shape) == math.prod(x.shape):
        return x, shape
    if len(shape) != len(x.shape):
        raise reader.unsupported("Another value of more axes would repeat the layer's values along new ones.")
    return expanded(reader, x, shape), shape


def aligned(reader: OnnxReader, x: Flow, constant: Tensor) -> tuple[Curve, Tensor, tuple[int, ...]]:
    """The value, the constant as one for the value's node, and the result's shape in ONNX."""
    if not constant.is_floating_point():
        raise Fault(f"its operator {reader.operation} joins a layer's values with integers")
    x, shape = _broadcast(reader, x, tuple(constant.shape))
    value = reader.moderate(reader.curve(x.value))
    if constant.numel() == 1:
        return value, constant.reshape(()), shape
    node = reader.shape_of(value)
    constant = constant.reshape((1,) * (len(shape) - constant.ndim) + tuple(constant.shape))
    seen = per_input(shape)
    if node[0] != seen[0] == constant.numel():  # one number for each channel of ONNX's shape
        value, node = reader.curve(reader.in_shape(value, seen)), seen
    if node == (shape[1:] if len(shape) > 1 and shape[0] == 1 else shape):
        return value, constant[0] if node != shape else constant, shape
    return value, constant.expand(shape).reshape(node), shape


def shifted(reader: OnnxReader, x: Flow, constant: Tensor, alone: bool) -> Flow:
    """``x + constant``; a layer that has no bias and no other reader takes the constant as its bias, exactly."""
    value, constant, shape = aligned(reader, x, constant)
    node: Node = reader.nodes[value.source]
    if x.fresh and alone and value.components == (LINE,) and isinstance(node, Dense | Conv) and node.bias is None:
        m, rank = node.weight.shape[0], len(node.shape)
        axis = rank - 1 if isinstance(node, Dense) else 0
        full = constant.reshape((1,) * (rank - constant.ndim) + tuple(constant.shape))
        if full.numel() == full.shape[axis] and value.source == len(reader.nodes) - 1:
            reader.nodes[value.source] = replace(node, bias=full.reshape(-1).expand(m).contiguous())
            return Flow(value, shape)
    made = scalar.add(reader, value, constant, reader.shape_of(value))
    return Flow(made, shape)


def _pair(reader: OnnxReader, call: Call) -> tuple[Any, Any, tuple[int, ...]]:
    """Two values with their nodes in one shape."""
    a, b = call.flow(0), call.flow(1)
    x, shape = _broadcast(reader, a, b.shape)
    y, _ = _broadcast(reader, b, a.shape)
    both = [_waiting(reader, flow).value for flow in (x, y)]
    values = [v if isinstance(v, Waiting) else reader.moderate(reader.curve(v)) for v in both]
    whole = [v for v in values if isinstance(v, Curve)]
    sizes = [reader.shape_of(v) for v in whole]
    size = per_input(shape) if per_input(shape) in sizes or not sizes else sizes[0]
    first, second = (reader.in_shape(v, size) for v in values)
    return first, second, shape


@operator("Add Sub")
def add(reader: OnnxReader, call: Call) -> Value:
    a, b = call.inputs[:2]
    sign = 1.0 if call.kind == "Add" else -1.0
    if isinstance(a, Flow) and isinstance(b, Flow):
        centred = moments.difference(a, b) if sign < 0.0 else None
        if centred is not None:
            return centred
        x, y, shape = _pair(reader, call)
        if isinstance(x, Waiting) or isinstance(y, Waiting):
            return Flow(scalar.add(reader, x, y, per_input(shape), sign), shape)
        size = reader.shape_of(x)
        return Flow(reader.moderate(scalar.add(reader, x, y, size, sign)), shape)
    place = 0 if isinstance(a, Flow) else 1
    x, c = _waiting(reader, call.flow(place)), call.numbers(1 - place)
    if isinstance(x.value, Waiting) and c.numel() == 1:
        sides = (x.value, float(c)) if place == 0 else (float(c), x.value)
        return replace(x, value=scalar.add(reader, *sides, per_input(x.shape), sign))
    if sign > 0.0 or place == 0:
        shift = c if sign > 0.0 else -c
        return moments.shifted(x, shift) or shifted(reader, x, shift, call.alone[place])
    value, c, shape = aligned(reader, x, c)
    return Flow(scalar.add(reader, c, value, reader.shape_of(value), -1.0), shape)


@operator("Scaler", "offset scale")
def _scaler(reader: OnnxReader, call: Call) -> Value:
    """Of scikit-learn's converter: (x - offset) * scale, one number for all or one for each column."""
    x, n = call.flow(), call.flow().shape[-1]
    for name in ("offset", "scale"):
        given: Any = call.attributes.get(name)
        numbers = torch.tensor([given] if isinstance(given, float) else given or [], dtype=torch.float64)
        if numbers.numel() not in (1, n):
            raise Fault(f"the attribute {name} of its Scaler has {numbers.numel()} numbers for {n} columns")
        kind, numbers = ("Add", -numbers) if name == "offset" else ("Mul", numbers)
        step = replace(call, kind=kind, inputs=[x, numbers], attributes={}, alone=(True, True))
        made = add(reader, step) if kind == "Add" else _mul(reader, step)
        assert isinstance(made, Flow)
        x = made
    return x


@operator("Sum")
def _sum(reader: OnnxReader, call: Call) -> Value:
    total: Value | None = None
    for value, alone in zip(call.inputs, call.alone, strict=True):
        if total is None or value is None:
            total = value if total is None else total
        else:
            pair = replace(call, kind="Add", inputs=[total, value], alone=(True, alone))
            total = total + value if isinstance(total, Tensor) and isinstance(value, Tensor) else add(reader, pair)  # type: ignore[assignment]
    assert total is not None
    return total


@operator("Mul")
def _mul(reader: OnnxReader, call: Call) -> Value:
    a, b = call.inputs[:2]
    if isinstance(a, Flow) and isinstance(b, Flow):
        return moments.product(reader, a, b) or _product(reader, call)
    place = 0 if isinstance(a, Flow) else 1
    x, c = call.flow(place), call.numbers(1 - place)
    if isinstance(x.value, moments.Moment) and _exact_number(c) == 1.0:
        return x  # 1.0 / t is exported as a reciprocal times 1.0
    x = _waiting(reader, x)
    waiting = times_number(reader, x.value, c)
    if waiting is not None:
        return replace(x, value=waiting)
    value, c, shape = aligned(reader, x, c)
    made = scalar.multiply(reader, value, c, reader.shape_of(value))
    factor = _exact_number(c)
    return Flow(made, shape, fresh=True) if factor is None else Flow(scaled(x.value, value, made, factor), shape)


def _exact_number(c: Tensor) -> float | None:
    """The one number that a constant is; None for several, and for one that is only known up to an error."""
    return float(c) if c.numel() == 1 and not isinstance(c, Computed) else None


def scaled(before: Any, value: Curve, made: Curve, factor: float) -> Any:
    """``made``, which is ``factor`` times ``value``, the curve of ``before``."""
    if isinstance(before, Scaled) and before.made == value:
        both = factor * before.factor
        if Fraction(both) == Fraction(factor) * Fraction(before.factor):
            return Scaled(made, before.bent, both)
    return made if _line(value) is not None else Scaled(made, value, factor)


@operator("Div")
def _div(reader: OnnxReader, call: Call) -> Value:
    a, b = call.inputs[:2]
    if isinstance(b, Flow):
        if isinstance(a, Flow):
            found = moments.quotient(reader, a, b)
        else:
            found = moments.power(b, -1.0) if a is not None and a.numel() == 1 and float(a) == 1.0 else None
        if found is not None:
            return found
        if isinstance(a, Flow):
            x, y, shape = _pair(reader, call)
            return Flow(scalar.divide(reader, x, y, per_input(shape)), shape)
        raise reader.unsupported("A quotient by a function of the input has no global Lipschitz constant.")
    x, c = _waiting(reader, call.flow()), call.numbers(1)
    waiting = times_number(reader, x.value, c, inverse=True)
    if waiting is not None:
        return replace(x, value=waiting)
    value, c, shape = aligned(reader, x, c)
    made = scalar.divide(reader, value, c, reader.shape_of(value))
    divisor = _exact_number(c)
    return Flow(made if divisor is None else scaled(x.value, value, made, number(1 / Fraction(divisor))), shape)


def _product(reader: OnnxReader, call: Call) -> Value:
    """Products of two values that are one activation: sin(t)^2, t sigmoid(t), t (1 + erf(t / sqrt 2)), ..."""
    x, y, shape = _pair(reader, call)
    if x == y and isinstance(x, Curve):
        return _squared(reader, Flow(call.flow().value, shape))
    x, y = _as_line(reader, x, y), _as_line(reader, y, x)
    made = product(reader, x, y, FLOAT32)
    if made is None:
        raise reader.unsupported("A product of two functions of the input has no Lipschitz constant.")
    return Flow(made, shape)


def _alike(x: Any, y: Any) -> bool:
    """Whether two curves are on one node and have as many components."""
    if not isinstance(x, Curve) or not isinstance(y, Curve):
        return False
    return (x.source, x.axis, len(x.components)) == (y.source, y.axis, len(y.components))


def _as_line(reader: OnnxReader, value: Any, other: Any) -> Any:
    """A multiple of what the other one's node holds, as a line on that node."""
    if not isinstance(value, Curve) or value.source == other.source:
        return value
    for known, index in reader.materialised.items():
        if index == other.source and _alike(known, value):
            first, second = (_size(curve) for curve in (known, value))
            ratio = second / first if first else math.nan
            if math.isfinite(ratio) and scalar.multiply(reader, known, ratio, reader.shape_of(known)) == value:
                return Curve(index, ((Term("identity", 1.0, ratio),),))
    return value


def _size(curve: Curve) -> float:
    """The factor of a curve's first term."""
    term = curve.components[0][0]
    return term.scale if term.function == "identity" else term.coefficient


@operator("Pow")
def _pow(reader: OnnxReader, call: Call) -> Value:
    x, exponent = call.flow(), call.constant(1)
    found = None if exponent is None or exponent.numel() != 1 else float(exponent)
    step = None if found is None else moments.power(x, found)
    if step is not None:
        return step
    if found == 1.0:
        return x
    if found not in (2.0, 3.0):
        raise reader.unsupported("It has no global Lipschitz constant.")
    if found == 2.0:
        return _squared(reader, x)
    return Flow(functions.power(reader, reader.curve(x.value), found), x.shape)


def _squared(reader: OnnxReader, x: Flow) -> Flow:
    """A square that is an activation, as sin(t)^2 is, or one that waits for its mean or a part of GELU."""
    value = reader.curve(x.value)
    found = functions.square(reader, value)
    return Flow(found, x.shape) if isinstance(found, Curve) else moments.square(x)


def _waiting(reader: OnnxReader, x: Flow) -> Flow:
    """A square that is multiplied or added: no step of a normalisation."""
    if isinstance(x.value, moments.PlainSquare):
        return replace(x, value=square_of(reader, reader.curve(x.value.x)))
    return x


@operator("Sqrt Reciprocal")
def _root(reader: OnnxReader, call: Call) -> Value:
    step = moments.power(call.flow(), 0.5 if call.kind == "Sqrt" else -1.0)
    if step is None:
        raise reader.unsupported("It has no global Lipschitz constant.")
    return step


__all__ = ["FLOAT32", "add", "aligned"]
