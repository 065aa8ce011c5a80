"""Scalar functions of ONNX files, entry by entry."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch

from lipbridge.activations.activation import Term
from lipbridge.frontend import activations, functions, scalar
from lipbridge.frontend.builder import Curve
from lipbridge.frontend.extremes import Extreme, extreme_with
from lipbridge.frontend.polynomials import Waiting
from lipbridge_adapters.onnx.arithmetic import aligned, scaled
from lipbridge_adapters.onnx.reader import Call, Flow, OnnxReader, Scaled, Value, operator, per_input

_FUNCTIONS = {
    "Abs": "abs",
    "Relu": "relu",
    "Sigmoid": "sigmoid",
    "Sin": "sin",
    "Cos": "cos",
    "Erf": "erf",
}


def applied(reader: OnnxReader, x: Flow, function: Callable[[Any], Any]) -> Flow:
    """A function of a value, entry by entry."""
    if isinstance(x.value, Waiting):
        return replace(x, value=function(x.value))
    value = reader.moderate(reader.curve(x.value))
    if isinstance(x.value, Scaled):
        # A multiple of a bent curve bends again: as a function of the first bend, which others may read as well.
        value = Curve(reader.materialise(x.value.bent), ((Term("identity", 1.0, x.value.factor),),))
    return Flow(function(value), x.shape)


def function_of(reader: OnnxReader, name: str) -> Callable[[Any], Any]:
    """A function of the registry without parameters."""
    return lambda value: functions.apply(reader, value, name)


def negated(reader: OnnxReader, x: Flow) -> Flow:
    """``-x``."""
    if isinstance(x.value, Waiting):
        return replace(x, value=scalar.negate(reader, x.value))
    value = reader.moderate(reader.curve(x.value))
    return Flow(scaled(x.value, value, scalar.negate(reader, value), -1.0), x.shape)


@operator("Neg")
def _neg(reader: OnnxReader, call: Call) -> Value:
    return negated(reader, call.flow())


@operator("Tanh")
def _tanh(reader: OnnxReader, call: Call) -> Value:
    return applied(reader, call.flow(), lambda value: functions.tanh(reader, value))


@operator(" ".join(_FUNCTIONS))
def _scalar(reader: OnnxReader, call: Call) -> Value:
    return applied(reader, call.flow(), function_of(reader, _FUNCTIONS[call.kind]))


@operator("LeakyRelu", "alpha")
def _leaky_relu(reader: OnnxReader, call: Call) -> Value:
    slope = float(call.attributes.get("alpha", float32(0.01)))
    return applied(reader, call.flow(), lambda value: functions.leaky_relu(reader, value, slope))


def float32(value: float) -> float:
    """A default that ONNX states in decimal and every runtime keeps in float32."""
    return float(torch.tensor(value, dtype=torch.float32))


@operator("Elu", "alpha")
def _elu(reader: OnnxReader, call: Call) -> Value:
    alpha = float(call.attributes.get("alpha", 1.0))
    return applied(reader, call.flow(), lambda value: activations.elu(reader, value, alpha))


@operator("Softplus")
def _softplus(reader: OnnxReader, call: Call) -> Value:
    return applied(reader, call.flow(), lambda value: functions.softplus(reader, value, 1.0, math.inf))


@operator("Log")
def _log(reader: OnnxReader, call: Call) -> Value:
    """log(sigmoid(t)). Where t is low, a sigmoid in float32 is zero or what ONNX Runtime stops at."""
    x = call.flow()
    curve = reader.curve(x.value)
    terms = [component[0] for component in curve.components if len(component) == 1]
    if len(terms) != len(curve.components) or any((t.function, t.coefficient) != ("sigmoid", 1.0) for t in terms):
        raise reader.unsupported("It has no global Lipschitz constant (but log(sigmoid(t)) has).")
    lines = tuple((Term("identity", 1.0, t.scale, t.offset),) for t in terms)
    reader.underflowing.append(replace(curve, components=lines))
    made = (replace(t, function="log_sigmoid") for t in terms)
    return Flow(replace(curve, components=tuple((term,) for term in made)), x.shape)


@operator("HardSigmoid", "alpha beta")
def _hard_sigmoid(reader: OnnxReader, call: Call) -> Value:
    alpha, beta = (float(call.attributes.get(n, float32(d))) for n, d in (("alpha", 0.2), ("beta", 0.5)))
    x = call.flow()
    shape = per_input(x.shape)
    value = x.value
    if not isinstance(value, Waiting):
        value = reader.moderate(reader.curve(value))
        shape = reader.shape_of(value)
    line = reader.moderate(scalar.multiply(reader, value, alpha, shape))
    line = replace(x, value=scalar.add(reader, line, beta, shape), fresh=False)
    return applied(reader, line, lambda value: functions.clamp(reader, value, 0.0, 1.0))


@operator("Clip", "min max")
def _clip(reader: OnnxReader, call: Call) -> Value:
    limits = [call.attributes.get(n, call.constant(i)) for n, i in (("min", 1), ("max", 2))]
    numbers = [None if limit is None else float(limit) for limit in limits]
    low, high = (None if n is None or math.isinf(n) or abs(n) > 3.4e38 else n for n in numbers)
    if low is None and high is None:
        return call.flow()
    return applied(reader, call.flow(), lambda value: functions.clamp(reader, value, low, high))


@operator("Max Min")
def _extreme(reader: OnnxReader, call: Call) -> Value:
    larger = call.kind == "Max"
    flows = [value for value in call.inputs if isinstance(value, Flow)]
    limits = [call.numbers(i) for i, value in enumerate(call.inputs) if not isinstance(value, Flow)]
    found = flows[0]
    for other in flows[1:]:
        if other.shape != found.shape:
            raise reader.unsupported("The layers have different shapes.")
        found = Flow(Extreme(reader.seen(found), reader.seen(other), larger), found.shape)
    for many in (limit for limit in limits if limit.numel() != 1):
        value, constant, shape = aligned(reader, found, many)
        found = Flow(extreme_with(reader, value, constant, reader.shape_of(value), larger), shape)
    numbers = [float(limit) for limit in limits if limit.numel() == 1]
    if numbers:
        low, high = (max(numbers), None) if larger else (None, min(numbers))
        found = applied(reader, found, lambda value: functions.clamp(reader, value, low, high))
    return found
