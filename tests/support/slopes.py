"""Exact slopes of scalar functions, and where they turn."""

from __future__ import annotations

import mpmath

from lipbridge.activations.scalar_functions import SCALAR_FUNCTIONS
from tests.support.functions import SMOOTH

#: Functions with their parameters, and the ends between which the slope's extremes are looked for.
PARAMETERS: dict[str, tuple[float, ...]] = {
    "leaky_relu": (0.01, -2.5, 3.0, 1.0),
    "elu": (1.0, 2.0, 0.25, -0.5, -3.0),
    "softplus": (1.0, 7.0, -2.0),
    "celu": (1.0, 0.1, 30.0),
    "gelu_tanh": (0.044715, 0.0401, 0.0449, 0.0499),
}


SCALARS = [(name, (p,)) for name in SCALAR_FUNCTIONS for p in PARAMETERS.get(name, ())]


#: Where a function's slope turns, seen from an eye's distance; smooth functions are differentiated by mpmath.
TURNS = {
    "silu": (-2.4, 2.4),
    "gelu": (-1.41, 1.41),
    "gelu_tanh": (-1.42, 1.42),
    "mish": (-2.26, 1.49),
}


def exact_slope(name: str, parameters: tuple[float, ...], t: mpmath.mpf) -> mpmath.mpf:
    """The derivative in many digits, at a place that is no kink."""
    h = mpmath.mpf(10) ** -30
    return (SMOOTH[name](t + h, *parameters) - SMOOTH[name](t - h, *parameters)) / (2 * h)


def turn(name: str, parameters: tuple[float, ...], near: float) -> mpmath.mpf:
    """Where the slope is extreme, by golden sections around a place near it."""
    low, high = mpmath.mpf(near) - 0.2, mpmath.mpf(near) + 0.2
    sign = 1 if near > 0 else -1
    for _ in range(120):
        a, b = high - (high - low) / mpmath.phi, low + (high - low) / mpmath.phi
        rises = sign * exact_slope(name, parameters, a) < sign * exact_slope(name, parameters, b)
        low, high = (a, high) if rises else (low, b)
    return (low + high) / 2
