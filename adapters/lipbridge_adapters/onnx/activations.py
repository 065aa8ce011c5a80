"""ONNX's activation operators beyond the plain ones, and choices between two lines."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

from lipbridge.frontend import activations
from lipbridge.frontend.builder import Curve
from lipbridge.frontend.choices import Mask, choose, compare
from lipbridge.frontend.functions import leaky_relu
from lipbridge.frontend.scalar import multiply
from lipbridge_adapters.onnx.arithmetic import add, aligned
from lipbridge_adapters.onnx.reader import Call, Flow, OnnxReader, Scaled, Value, operator, per_input
from lipbridge_adapters.onnx.scalar_functions import applied, float32, function_of, negated

_JUMPS = "It jumps, so it has no Lipschitz constant."
_PLAIN = {"Atan": "atan", "HardSwish": "hardswish", "Mish": "mish", "Softsign": "softsign"}


@operator(" ".join(_PLAIN))
def _plain(reader: OnnxReader, call: Call) -> Value:
    return applied(reader, call.flow(), function_of(reader, _PLAIN[call.kind]))


@operator("Gelu", "approximate")
def _gelu(reader: OnnxReader, call: Call) -> Value:
    approximate = call.attributes.get("approximate", "none")
    return applied(reader, call.flow(), lambda value: activations.gelu(reader, value, approximate))


@operator("Selu", "alpha gamma")
def _selu(reader: OnnxReader, call: Call) -> Value:
    """gamma * elu(t; alpha)."""
    alpha = float(call.attributes.get("alpha", float32(1.6732632423543772)))
    gamma = float(call.attributes.get("gamma", float32(1.0507009873554805)))
    return applied(reader, call.flow(), lambda value: activations.elu(reader, value, alpha, gamma))


@operator("Celu", "alpha")
def _celu(reader: OnnxReader, call: Call) -> Value:
    alpha = float(call.attributes.get("alpha", 1.0))
    return applied(reader, call.flow(), lambda value: activations.celu(reader, value, alpha))


@operator("ThresholdedRelu", "alpha")
def _thresholded(reader: OnnxReader, call: Call) -> Value:
    """t above alpha, else zero: a jump, unless alpha is zero."""
    if float(call.attributes.get("alpha", 1.0)) != 0.0:
        raise reader.unsupported(_JUMPS)
    return applied(reader, call.flow(), function_of(reader, "relu"))


@operator("Shrink", "bias lambd")
def _shrink(reader: OnnxReader, call: Call) -> Value:
    """Towards zero by the bias beyond lambd on either side, else zero: a jump, unless the two are equal."""
    bias, limit = (float(call.attributes.get(name, value)) for name, value in (("bias", 0.0), ("lambd", 0.5)))
    if bias != limit or limit < 0.0:
        raise reader.unsupported(_JUMPS)
    return applied(reader, call.flow(), lambda value: activations.softshrink(reader, value, limit))


@operator("PRelu")
def _prelu(reader: OnnxReader, call: Call) -> Value:
    """One slope is a leaky ReLU; one for each channel is as in a module; others are relu(t) - a relu(-t)."""
    x, slope = call.flow(), call.numbers(1)
    if slope.numel() and bool((slope == slope.reshape(-1)[0]).all()):
        one = float(slope.reshape(-1)[0])
        return applied(reader, x, lambda value: leaky_relu(reader, value, one))
    shape = per_input(x.shape)
    trailing = tuple(slope.shape[max(0, slope.ndim - len(shape)) :])
    if slope.numel() == shape[0] and trailing == (shape[0], *[1] * (len(shape) - 1)):
        return Flow(activations.channelwise_leaky_relu(reader, reader.seen(x), slope, shape), x.shape)
    relu = function_of(reader, "relu")
    positive = applied(reader, x, relu)
    negative = applied(reader, negated(reader, x), relu)
    value, slope, result = aligned(reader, negative, slope)
    scaled = Flow(multiply(reader, value, slope, reader.shape_of(value)), result)
    return add(reader, replace(call, kind="Sub", inputs=[positive, scaled], alone=(True, True)))


# --- choices ---------------------------------------------------------------------------------------------------------


@operator("Greater GreaterOrEqual Less LessOrEqual")
def _compare(reader: OnnxReader, call: Call) -> Value:
    sides: list[Any] = []
    for place, value in enumerate(call.inputs[:2]):
        sides.append(reader.curve(value.value) if isinstance(value, Flow) else _one_number(reader, call, place))
    x = call.flow(0 if isinstance(call.inputs[0], Flow) else 1)
    return Flow(compare(reader, sides[0], sides[1], call.kind.startswith("Greater")), x.shape)


def _one_number(reader: OnnxReader, call: Call, place: int) -> float:
    found = call.numbers(place)
    if found.numel() != 1:
        raise reader.unsupported("A limit must be one number.")
    return float(found)


@operator("Where")
def _where(reader: OnnxReader, call: Call) -> Value:
    """A choice between two lines that meet, or torch's softplus, Where(b t > 20, t, softplus(b t) / b).

    The step of that one at its limit is below 3e-9; it is read as a softplus, as it is in a module.
    """
    mask, shape = call.flow().value, call.flow().shape
    if not isinstance(mask, Mask):
        raise reader.unsupported("A choice is read only by a comparison of a layer's values with a number.")
    branches: list[Any] = []
    for place in (1, 2):
        value = call.inputs[place] if place < len(call.inputs) else None
        if isinstance(value, Flow):
            if value.shape != shape:
                raise reader.unsupported("Its branches have another shape than what it compares.")
            branches.append(value.value if isinstance(value.value, Scaled) else reader.curve(value.value))
        else:
            branches.append(_one_number(reader, call, place))
    soft = _softplus(reader, mask, *branches)
    if soft is not None:
        return Flow(soft, shape)
    size = reader.shape_of(mask.value)
    branches = [reader.curve(branch) if isinstance(branch, Scaled) else branch for branch in branches]
    return Flow(choose(reader, mask, branches[0], branches[1], size), shape)


def _softplus(reader: OnnxReader, mask: Mask, near: Any, bent: Any) -> Any:
    """The softplus ``bent`` if it nears the line ``near``; divided by b, it may have become a layer of its own."""
    curve, factor = (bent.bent, bent.factor) if isinstance(bent, Scaled) else (bent, 1.0)
    if not (isinstance(near, Curve) and isinstance(curve, Curve)) or not mask.above or mask.threshold < 20.0:
        return None
    values = (near, curve, mask.value)
    one = all(len(value.components) == len(value.components[0]) == 1 for value in values)
    if not one or len({value.source for value in values}) != 1:
        return None
    (line,), (term,), (compared,) = (value.components[0] for value in values)
    if (term.function, *term.parameters) != ("softplus", 1.0):
        return None
    if {line.function, compared.function} != {"identity"}:
        return None
    slope, offset = (factor * term.coefficient * number for number in (term.scale, term.offset))
    close = all(
        math.isclose(a, b, rel_tol=2.0**-50)
        for a, b in ((slope, line.coefficient * line.scale), (offset, line.coefficient * line.offset))
    )
    inner = (compared.coefficient * compared.scale, compared.coefficient * compared.offset)
    return bent if close and inner == (term.scale, term.offset) else None


__all__: list[str] = []
