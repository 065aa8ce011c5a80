"""How far the libraries' scalar functions are trusted, and how fast their derivatives turn: one row a function."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from lipbridge.activations.scalar_functions import Parameters
from lipbridge.rounding.scalars import FLOOR, UNIT

#: Trusted accuracy of the library's scalar functions and of the few operations around them: eight ulp.
ULPS = 16.0 * UNIT


@dataclass(frozen=True)
class Accuracy:
    """Of a scalar function with parameters p: bounds of the error of its evaluation at t, and of |f''| off kinks."""

    value_error: Callable[[Tensor, Tensor, Parameters], Tensor]
    curvature: Callable[[Parameters], float]


def _exact(t: Tensor, _value: Tensor, _: Parameters) -> Tensor:
    return torch.zeros_like(t)


def _relative(_t: Tensor, value: Tensor, _: Parameters) -> Tensor:
    return ULPS * value.abs()


def _bounded(t: Tensor, _value: Tensor, _: Parameters) -> Tensor:
    return ULPS * t.abs().clamp(max=1.0)


def _absolute(t: Tensor, _value: Tensor, _: Parameters) -> Tensor:
    return torch.full_like(t, ULPS)


def _argument(t: Tensor, _value: Tensor, _: Parameters) -> Tensor:
    return ULPS * t.abs()


def _log_sigmoid_error(_t: Tensor, value: Tensor, _: Parameters) -> Tensor:
    # exp(-t) may underflow.
    return ULPS * value.abs() + FLOOR


def _softplus_error(t: Tensor, value: Tensor, p: Parameters) -> Tensor:
    # fl(beta t) is off by u |beta t|, which moves softplus by as many times its value where beta t is negative (its
    # derivative is below its value there), and exp is nothing beyond -1100. Elsewhere by at most u |t|, the value.
    # Beyond beta t = 20 torch returns t itself, which is log(1 + exp(-20)) / beta < 2.1e-9 / beta too low.
    inner = p[0] * t
    own = ULPS * value.abs() * (1.0 + (-inner).clamp(0.0, 1100.0))
    return own + (FLOOR + (inner > 19.0).to(t.dtype) * 2.1e-9) / abs(p[0])


def _elu_error(t: Tensor, _value: Tensor, p: Parameters) -> Tensor:
    # exp(t) - 1 may be computed with cancellation, so its error is absolute.
    return (t < 0).to(t.dtype) * (ULPS * max(1.0, abs(p[0])))


def _celu_error(t: Tensor, _value: Tensor, p: Parameters) -> Tensor:
    # As of elu; and t / alpha may underflow, or be flushed to zero, before it is multiplied by alpha again.
    return (t < 0).to(t.dtype) * (ULPS * abs(p[0])) + torch.minimum(t.abs(), torch.full_like(t, abs(p[0]) * FLOOR))


ACCURACY: dict[str, Accuracy] = {
    "identity": Accuracy(_exact, lambda _: 0.0),
    "relu": Accuracy(_exact, lambda _: 0.0),
    "abs": Accuracy(_exact, lambda _: 0.0),
    "leaky_relu": Accuracy(_relative, lambda _: 0.0),
    "elu": Accuracy(_elu_error, lambda p: abs(p[0])),
    "softplus": Accuracy(_softplus_error, lambda p: 0.25 * abs(p[0])),
    "tanh": Accuracy(_bounded, lambda _: 0.8),
    "sigmoid": Accuracy(_relative, lambda _: 0.1),
    "sin": Accuracy(_bounded, lambda _: 1.0),
    "cos": Accuracy(_absolute, lambda _: 1.0),
    "sin_squared": Accuracy(_bounded, lambda _: 2.0),
    "silu": Accuracy(_argument, lambda _: 0.51),
    "gelu": Accuracy(_argument, lambda _: 0.8),
    "gelu_tanh": Accuracy(_argument, lambda _: 0.8),
    "mish": Accuracy(_argument, lambda _: 0.65),
    "hardswish": Accuracy(_argument, lambda _: 0.34),
    "celu": Accuracy(_celu_error, lambda p: 1.0 / p[0] if p[0] else math.inf),
    "log_sigmoid": Accuracy(_log_sigmoid_error, lambda _: 0.25),
    "softsign": Accuracy(_relative, lambda _: 2.0),
    "atan": Accuracy(_relative, lambda _: 0.65),
    "erf": Accuracy(_relative, lambda _: 0.97),
}
