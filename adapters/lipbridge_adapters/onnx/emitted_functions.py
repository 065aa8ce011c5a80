"""Scalar functions as ONNX operators: how each is written."""

from __future__ import annotations

import math
from collections.abc import Callable

from lipbridge.activations.activation import Term
from lipbridge.activations.scalar_functions import GELU_RATE
from lipbridge_adapters.onnx.emitter import Emitter

_Write = Callable[[Emitter, str, tuple[float, ...]], str]


def _plain(kind: str) -> _Write:
    return lambda emitter, z, _: emitter.op(kind, z)


def _softplus(emitter: Emitter, z: str, parameters: tuple[float, ...]) -> str:
    (beta,) = parameters
    return emitter.affine(emitter.op("Softplus", emitter.affine(z, beta)), 1.0 / beta)


def _sin_squared(emitter: Emitter, z: str, _: tuple[float, ...]) -> str:
    sine = emitter.op("Sin", z)
    return emitter.op("Mul", sine, sine)


def _gelu(emitter: Emitter, z: str, _: tuple[float, ...]) -> str:
    error = emitter.op("Erf", emitter.affine(z, math.sqrt(0.5)))
    return emitter.op("Mul", emitter.affine(z, 0.5), emitter.affine(error, 1.0, 1.0))


def _gelu_tanh(emitter: Emitter, z: str, parameters: tuple[float, ...]) -> str:
    cube = emitter.op("Mul", emitter.op("Mul", z, z), z)
    inner = emitter.op("Add", z, emitter.affine(cube, parameters[0]))
    bent = emitter.op("Tanh", emitter.affine(inner, GELU_RATE))
    return emitter.op("Mul", emitter.affine(z, 0.5), emitter.affine(bent, 1.0, 1.0))


def _hardswish(emitter: Emitter, z: str, _: tuple[float, ...]) -> str:
    clipped = emitter.op("Clip", emitter.affine(z, 1.0, 3.0), emitter.scalar(0.0), emitter.scalar(6.0))
    return emitter.affine(emitter.op("Mul", z, clipped), 1.0 / 6.0)


def _mish(emitter: Emitter, z: str, _: tuple[float, ...]) -> str:
    return emitter.op("Mul", z, emitter.op("Tanh", emitter.op("Softplus", z)))


#: How each scalar function is said in opset 13.
_FUNCTIONS: dict[str, _Write] = {
    "identity": lambda _emitter, z, _: z,
    "relu": _plain("Relu"),
    "abs": _plain("Abs"),
    "leaky_relu": lambda emitter, z, p: emitter.op("LeakyRelu", z, alpha=emitter.number(p[0])),
    "elu": lambda emitter, z, p: emitter.op("Elu", z, alpha=emitter.number(p[0])),
    "softplus": _softplus,
    "tanh": _plain("Tanh"),
    "sigmoid": _plain("Sigmoid"),
    "sin": _plain("Sin"),
    "cos": _plain("Cos"),
    "sin_squared": _sin_squared,
    "silu": lambda emitter, z, _: emitter.op("Mul", z, emitter.op("Sigmoid", z)),
    "gelu": _gelu,
    "gelu_tanh": _gelu_tanh,
    "mish": _mish,
    "hardswish": _hardswish,
    "celu": lambda emitter, z, p: emitter.op("Celu", z, alpha=emitter.number(p[0])),
    "log_sigmoid": lambda emitter, z, _: emitter.op("Neg", emitter.op("Softplus", emitter.op("Neg", z))),
    "softsign": _plain("Softsign"),
    "atan": _plain("Atan"),
    "erf": _plain("Erf"),
}


def write_term(to: Emitter, z: str, term: Term) -> str:
    write = _FUNCTIONS.get(term.function)
    if write is None:
        raise to.unsupported(term.function)
    return to.affine(write(to, to.affine(z, term.scale, term.offset), term.parameters), term.coefficient)
