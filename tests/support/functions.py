"""Scalar functions that are smooth."""

from __future__ import annotations

from collections.abc import Callable

import mpmath

SMOOTH: dict[str, Callable[..., mpmath.mpf]] = {
    "identity": lambda t: t,
    "relu": lambda t: max(t, mpmath.mpf(0)),
    "abs": abs,
    "leaky_relu": lambda t, a: t if t > 0 else mpmath.mpf(a) * t,
    "elu": lambda t, a: t if t > 0 else mpmath.mpf(a) * mpmath.expm1(t),
    "softplus": lambda t, b: mpmath.log1p(mpmath.exp(mpmath.mpf(b) * t)) / mpmath.mpf(b),
    "tanh": mpmath.tanh,
    "sigmoid": lambda t: 1 / (1 + mpmath.exp(-t)),
    "sin": mpmath.sin,
    "cos": mpmath.cos,
    "sin_squared": lambda t: mpmath.sin(t) ** 2,
    "silu": lambda t: t / (1 + mpmath.exp(-t)),
    "gelu": lambda t: t * mpmath.ncdf(t),
    "gelu_tanh": lambda t, k: t / 2 * (1 + mpmath.tanh(mpmath.sqrt(2 / mpmath.pi) * (t + mpmath.mpf(k) * t**3))),
    "mish": lambda t: t * mpmath.tanh(mpmath.log1p(mpmath.exp(t))),
    "hardswish": lambda t: t * min(max(t + 3, mpmath.mpf(0)), mpmath.mpf(6)) / 6,
    "celu": lambda t, a: t if t > 0 else mpmath.mpf(a) * mpmath.expm1(t / mpmath.mpf(a)),
    "log_sigmoid": lambda t: -mpmath.log1p(mpmath.exp(-t)),
    "softsign": lambda t: t / (1 + abs(t)),
    "atan": mpmath.atan,
    "erf": mpmath.erf,
}
