"""How far the libraries' scalar functions are trusted, and how fast their derivatives turn: one row a function."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from lipbridge.activations import Parameters
from lipbridge.rounding import UNIT

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


def _softplus_error(t: Tensor, value: Tensor, p: Parameters) -> Tensor:
    # Beyond beta t = 20 torch returns t itself, which is log(1 + exp(-20)) / beta < 2.1e-9 / beta too low.
    return ULPS * value.abs() + (p[0] * t > 19.0).to(t.dtype) * (2.1e-9 / abs(p[0]))


def _elu_error(t: Tensor, _value: Tensor, p: Parameters) -> Tensor:
    # exp(t) - 1 may be computed with cancellation, so its error is absolute.
    return (t < 0).to(t.dtype) * (ULPS * max(1.0, abs(p[0])))


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
}
