"""Operations on entries: sums, products, powers, activations and choices by sign."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from lipbridge.activations.scalar_functions import SCALAR_FUNCTIONS
from lipbridge.frontend import activations, choices, functions, scalar
from lipbridge.frontend.aten.registry import HANDLERS, Arguments, Handler, handles, plain_name
from lipbridge.frontend.builder import Curve, GraphBuilder
from lipbridge.frontend.components import may_change

_FUNCTIONS = {
    **{name: name for name in ("relu", "abs", "sigmoid", "sin", "cos", "silu")},
    **{"atan": "atan", "arctan": "atan", "erf": "erf", "special_erf": "erf"},
    **{"hardswish": "hardswish", "mish": "mish", "special_expit": "sigmoid"},
}


def _plain(function: str) -> Handler:
    assert function in SCALAR_FUNCTIONS

    def handler(builder: GraphBuilder, a: Arguments, shape: tuple[int, ...]) -> Curve:
        return functions.apply(builder, a["self"], function)

    return handler


for _name, _function in _FUNCTIONS.items():
    HANDLERS[_name] = _plain(_function)


# --- sums, products, powers ------------------------------------------------------------------------------------------


@handles("neg")
def _neg(builder: GraphBuilder, a: Arguments, shape: tuple[int, ...]) -> Any:
    return scalar.negate(builder, a["self"])


@handles("mul")
def _mul(builder: GraphBuilder, a: Arguments, shape: tuple[int, ...]) -> Any:
    return scalar.multiply(builder, a["self"], a["other"], shape)


@handles("div")
def _div(builder: GraphBuilder, a: Arguments, shape: tuple[int, ...]) -> Any:
    if a.get("rounding_mode") is not None:
        raise builder.unsupported("It jumps where it rounds.")
    return scalar.divide(builder, a["self"], a["other"], shape)


@handles("add")
def _add(builder: GraphBuilder, a: Arguments, shape: tuple[int, ...]) -> Any:
    return scalar.add(builder, a["self"], a["other"], shape, 1.0, a.get("alpha", 1))


@handles("sub")
def _sub(builder: GraphBuilder, a: Arguments, shape: tuple[int, ...]) -> Any:
    return scalar.add(builder, a["self"], a["other"], shape, -1.0, a.get("alpha", 1))


@handles("rsub")
def _rsub(builder: GraphBuilder, a: Arguments, shape: tuple[int, ...]) -> Any:
    return scalar.add(builder, a["other"], a["self"], shape, -1.0, a.get("alpha", 1))


@handles("pow")
def _pow(builder: GraphBuilder, a: Arguments, shape: tuple[int, ...]) -> Any:
    return functions.power(builder, a["self"], a["exponent"])


@handles("square")
def _square(builder: GraphBuilder, a: Arguments, shape: tuple[int, ...]) -> Any:
    return functions.square(builder, a["self"])


# --- functions -------------------------------------------------------------------------------------------------------


@handles("tanh")
def _tanh(builder: GraphBuilder, a: Arguments, shape: tuple[int, ...]) -> Any:
    return functions.tanh(builder, a["self"])


@handles("leaky_relu")
def _leaky_relu(builder: GraphBuilder, a: Arguments, shape: tuple[int, ...]) -> Curve:
    return functions.leaky_relu(builder, a["self"], float(a["negative_slope"]))


@handles("softplus")
def _softplus(builder: GraphBuilder, a: Arguments, shape: tuple[int, ...]) -> Curve:
    return functions.softplus(builder, a["self"], a["beta"], a["threshold"])


@handles("clamp", "clip", "hardtanh", "relu6", "clamp_min", "clamp_max")
def _clamp(builder: GraphBuilder, a: Arguments, shape: tuple[int, ...]) -> Curve:
    bounds = {"relu6": (0.0, 6.0)}.get(plain_name(builder), (a.get("min_val"), a.get("max_val")))
    low, high = (a.get("min"), a.get("max")) if "min" in a else bounds
    if any((isinstance(bound, Tensor) and bound.numel() > 1) or may_change(builder, bound) for bound in (low, high)):
        raise builder.unsupported("Only fixed numbers can be limits.")
    if plain_name(builder) == "clamp_max":
        low, high = None, a["max"]
    return functions.clamp(builder, a["self"], low, high)


@handles("selu")
def _selu(builder: GraphBuilder, a: Arguments, shape: tuple[int, ...]) -> Curve:
    return activations.selu(builder, a["self"])


@handles("celu")
def _celu(builder: GraphBuilder, a: Arguments, shape: tuple[int, ...]) -> Curve:
    return activations.celu(builder, a["self"], a["alpha"])


@handles("elu")
def _elu(builder: GraphBuilder, a: Arguments, shape: tuple[int, ...]) -> Curve:
    return activations.elu(builder, a["self"], a["alpha"], a["scale"], a["input_scale"])


@handles("gelu")
def _gelu(builder: GraphBuilder, a: Arguments, shape: tuple[int, ...]) -> Curve:
    return activations.gelu(builder, a["self"], a.get("approximate", "none"))


@handles("hardsigmoid")
def _hardsigmoid(builder: GraphBuilder, a: Arguments, shape: tuple[int, ...]) -> Curve:
    return activations.hardsigmoid(builder, a["self"])


@handles("log_sigmoid", "log_sigmoid_forward")
def _log_sigmoid(builder: GraphBuilder, a: Arguments, shape: tuple[int, ...]) -> Any:
    found = functions.apply(builder, a["self"], "log_sigmoid")
    return [found] if builder.operation.startswith("log_sigmoid_forward") else found


@handles("softshrink")
def _softshrink(builder: GraphBuilder, a: Arguments, shape: tuple[int, ...]) -> Curve:
    return activations.softshrink(builder, a["self"], a["lambd"])


@handles("hardshrink")
def _hardshrink(builder: GraphBuilder, a: Arguments, shape: tuple[int, ...]) -> Curve:
    return activations.hardshrink(builder, a["self"], a["lambd"])


@handles("threshold")
def _threshold(builder: GraphBuilder, a: Arguments, shape: tuple[int, ...]) -> Curve:
    return activations.threshold(builder, a["self"], a["threshold"], a["value"])


@handles("rrelu")
def _rrelu(builder: GraphBuilder, a: Arguments, shape: tuple[int, ...]) -> Curve:
    """In eval mode a leaky ReLU with the mean slope, which is how a module is read."""
    lower, upper = (activations.number(builder, a[name], name) for name in ("lower", "upper"))
    if a.get("training"):
        raise builder.unsupported("In training its slopes are random; put the module in eval mode.")
    return functions.leaky_relu(builder, a["self"], (lower + upper) / 2.0)


@handles("prelu", "_prelu_kernel")
def _prelu(builder: GraphBuilder, a: Arguments, shape: tuple[int, ...]) -> Curve:
    return activations.prelu(builder, a["self"], a["weight"], shape, builder.operation.startswith("_prelu_kernel"))


# --- choices by sign -------------------------------------------------------------------------------------------------


@handles("gt", "ge", "lt", "le")
def _compare(builder: GraphBuilder, a: Arguments, shape: tuple[int, ...]) -> choices.Mask:
    return choices.compare(builder, a["self"], a["other"], builder.operation.startswith("g"))


@handles("where")
def _where(builder: GraphBuilder, a: Arguments, shape: tuple[int, ...]) -> Curve:
    return choices.choose(builder, a["condition"], a["self"], a["other"], shape)
