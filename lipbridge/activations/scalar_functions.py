"""The scalar functions R -> R that activations are sums of, with their facts: slopes, kinks, smoothed derivatives."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from lipbridge.rounding.scalars import down, up

Interval = tuple[float, float]


Parameters = tuple[float, ...]


@dataclass(frozen=True)
class ScalarFunction:
    """A function R -> R with the facts that terms are built from.

    ``value(z, p)`` and ``derivative(z, width, p)`` act elementwise on tensors, for parameters p; a ``width`` above
    zero asks for the derivative smoothed over about that width (for ascent), zero for the derivative itself.
    ``slopes(p)`` is an interval that holds every difference quotient. ``sides(p)`` gives the slopes (left, right) of
    a function with one kink, at zero, that is linear on both sides; None for others. ``kinks`` are the places where a
    function that is not ``smooth`` has no derivative.
    """

    value: Callable[[Tensor, Parameters], Tensor]
    derivative: Callable[[Tensor, float, Parameters], Tensor]
    slopes: Callable[[Parameters], Interval]
    sides: Callable[[Parameters], Interval | None] = lambda _: None
    parameters: tuple[str, ...] = ()
    smooth: bool = True
    kinks: tuple[float, ...] = (0.0,)


def _step(z: Tensor, width: float) -> Tensor:
    """Derivative of relu, or its smoothing: a sigmoid."""
    return torch.sigmoid(z * (2.0 / width)) if width > 0 else (z > 0).to(z.dtype)


def _two_slopes(z: Tensor, width: float, left: float) -> Tensor:
    """``left`` and one, or a mixture of them; exact without a width."""
    if width > 0:
        return left + (1.0 - left) * _step(z, width)
    return torch.where(z > 0, torch.ones_like(z), torch.full_like(z, left))


def _sign(z: Tensor, width: float) -> Tensor:
    return torch.tanh(z / width) if width > 0 else torch.sign(z)


def _normal_cdf(z: Tensor) -> Tensor:
    return 0.5 * (1.0 + torch.erf(z * math.sqrt(0.5)))


def _gelu_slope(z: Tensor) -> Tensor:
    return _normal_cdf(z) + z * torch.exp(-0.5 * z * z) / math.sqrt(2.0 * math.pi)


def _silu_slope(z: Tensor) -> Tensor:
    return torch.sigmoid(z) * (1.0 + z * torch.sigmoid(-z))  # 1 - sigmoid(z) would cancel


def _clipped_line(z: Tensor) -> Tensor:
    """min(max(z + 3, 0), 6) / 6, the factor of Hardswish."""
    return (z + 3.0).clamp(0.0, 6.0) / 6.0


def _hardswish_slope(z: Tensor, width: float) -> Tensor:
    rising, above_it = _step(z + 3.0, width), _step(z - 3.0, width)
    return rising * (1.0 - above_it) * (2.0 * z.clamp(-3.0, 3.0) + 3.0) / 6.0 + above_it


def _mish_slope(z: Tensor) -> Tensor:
    """tanh(s) + z (1 - tanh(s)^2) sigmoid(z) for s = softplus(z), in q = exp(-|z|) so that nothing cancels."""
    q = torch.exp(-z.abs())
    one = (1.0 + q) ** 2
    right = z > 0
    scale = one + torch.where(right, q * q, 1.0)
    value = torch.where(right, 1.0 + 2.0 * q, q * (q + 2.0)) / scale
    fall = 4.0 * one * torch.where(right, q * q, 1.0) / (scale * scale)
    return value + z * fall * torch.sigmoid(z)


#: Of GELU's approximation by tanh, as torch has it: 0.5 t (1 + tanh(RATE (t + CUBE t^3))).
GELU_RATE, GELU_CUBE = math.sqrt(2.0 / math.pi), 0.044715


def _gelu_tanh(z: Tensor, cube: float) -> Tensor:
    return 0.5 * z * (1.0 + torch.tanh(GELU_RATE * (z + cube * z**3)))


def _gelu_tanh_slope(z: Tensor, cube: float) -> Tensor:
    z = z.clamp(-30.0, 30.0)  # tanh is one to the last bit long before
    inner = GELU_RATE * (z + cube * z**3)
    q = torch.exp(-2.0 * inner.abs())
    fall = 4.0 * q / (1.0 + q) ** 2  # 1 - tanh^2, without cancellation
    return 0.5 * (1.0 + torch.tanh(inner)) + 0.5 * z * fall * GELU_RATE * (1.0 + 3.0 * cube * z * z)


# sup silu' solves t tanh(t/2) = 2 and sup gelu' is at sqrt 2 (zeros of the second derivatives); inf is 1 - sup by
# symmetry. Rounded up in the last digit given.
_SILU_SLOPES = (1.0 - 1.0998393201289, 1.0998393201289)


_GELU_SLOPES = (1.0 - 1.1289041451852, 1.1289041451852)


# Likewise for mish', whose extremes are at -2.2563763963907931 and 1.4905711797854285, and for the tanh form of GELU,
# at 1.4185040087908284. mish has no symmetry; the other is t s(t) with s(t) + s(-t) = 1, so its slopes mirror at 1/2,
# and it has room of 1e-15 for constants that a network computes (sqrt(2 / pi), 0.044715 in float32 and the like): a
# slope moves by less than 0.031 times the relative change of the cube's factor, while that is between 0.04 and 0.05.
_MISH_SLOPES = (down(-0.11252612238946255641), up(1.0884981612517278612))


_GELU_TANH_SLOPES = (-0.12899306865877276, 1.12899306865877276)


_ERF_SLOPES = (0.0, up(1.1283791670955125739))  # 2 / sqrt(pi)


def _gelu_tanh_slopes(p: Parameters) -> Interval:
    if not 0.04 <= p[0] <= 0.05:
        return (-math.inf, math.inf)
    room = 0.04 * abs(p[0] - GELU_CUBE) / GELU_CUBE
    low, high = _GELU_TANH_SLOPES
    return (down(low - room), up(high + room)) if room else (low, high)


def _celu_slopes(p: Parameters) -> Interval:
    """For alpha < 0 the exponential grows, without bound."""
    return (0.0, 1.0) if p[0] > 0 else (-math.inf, math.inf)


SCALAR_FUNCTIONS: Mapping[str, ScalarFunction] = {
    "identity": ScalarFunction(
        lambda z, _: z, lambda z, _w, _: torch.ones_like(z), lambda _: (1.0, 1.0), lambda _: (1.0, 1.0)
    ),
    "relu": ScalarFunction(
        lambda z, _: torch.relu(z),
        lambda z, w, _: _step(z, w),
        lambda _: (0.0, 1.0),
        lambda _: (0.0, 1.0),
        smooth=False,
    ),
    "abs": ScalarFunction(
        lambda z, _: torch.abs(z),
        lambda z, w, _: _sign(z, w),
        lambda _: (-1.0, 1.0),
        lambda _: (-1.0, 1.0),
        smooth=False,
    ),
    "leaky_relu": ScalarFunction(
        lambda z, p: F.leaky_relu(z, p[0]),
        lambda z, w, p: _two_slopes(z, w, p[0]),
        lambda p: (min(p[0], 1.0), max(p[0], 1.0)),
        lambda p: (p[0], 1.0),
        ("negative_slope",),
        smooth=False,
    ),
    "elu": ScalarFunction(
        lambda z, p: F.elu(z, p[0]),
        # For alpha other than 1 there is a kink at zero, smoothed by mixing the two sides.
        lambda z, w, p: (1.0 - _step(z, w)) * p[0] * torch.exp(z.clamp(max=0.0)) + _step(z, w),
        lambda p: (min(0.0, p[0]), max(1.0, p[0])),
        parameters=("alpha",),
        smooth=False,
    ),
    "softplus": ScalarFunction(
        lambda z, p: F.softplus(z, p[0]),
        lambda z, _w, p: torch.sigmoid(p[0] * z),
        lambda _: (0.0, 1.0),
        parameters=("beta",),
    ),
    "tanh": ScalarFunction(lambda z, _: torch.tanh(z), lambda z, _w, _: 1.0 - torch.tanh(z) ** 2, lambda _: (0.0, 1.0)),
    "sigmoid": ScalarFunction(
        lambda z, _: torch.sigmoid(z), lambda z, _w, _: torch.sigmoid(z) * torch.sigmoid(-z), lambda _: (0.0, 0.25)
    ),
    "sin": ScalarFunction(lambda z, _: torch.sin(z), lambda z, _w, _: torch.cos(z), lambda _: (-1.0, 1.0)),
    "cos": ScalarFunction(lambda z, _: torch.cos(z), lambda z, _w, _: -torch.sin(z), lambda _: (-1.0, 1.0)),
    "sin_squared": ScalarFunction(
        lambda z, _: torch.sin(z) ** 2, lambda z, _w, _: torch.sin(2.0 * z), lambda _: (-1.0, 1.0)
    ),
    "silu": ScalarFunction(lambda z, _: F.silu(z), lambda z, _w, _: _silu_slope(z), lambda _: _SILU_SLOPES),
    "gelu": ScalarFunction(lambda z, _: F.gelu(z), lambda z, _w, _: _gelu_slope(z), lambda _: _GELU_SLOPES),
    "gelu_tanh": ScalarFunction(
        lambda z, p: _gelu_tanh(z, p[0]),
        lambda z, _w, p: _gelu_tanh_slope(z, p[0]),
        _gelu_tanh_slopes,
        parameters=("cube",),
    ),
    "mish": ScalarFunction(lambda z, _: F.mish(z), lambda z, _w, _: _mish_slope(z), lambda _: _MISH_SLOPES),
    # The slopes of t (t + 3) / 6 at -3 and 3; it has kinks there, beyond which it is 0 and t.
    "hardswish": ScalarFunction(
        lambda z, _: z * _clipped_line(z),
        lambda z, w, _: _hardswish_slope(z, w),
        lambda _: (-0.5, 1.5),
        smooth=False,
        kinks=(-3.0, 3.0),
    ),
    # alpha (exp(t / alpha) - 1) left of zero: its slope is 1 there for every alpha, so there is no kink.
    "celu": ScalarFunction(
        lambda z, p: torch.where(z > 0, z, p[0] * torch.expm1(z.clamp(max=0.0) / p[0])),
        lambda z, _w, p: torch.exp(z.clamp(max=0.0) / p[0]),
        _celu_slopes,
        parameters=("alpha",),
    ),
    # -softplus(-t), without torch's step to the line in it.
    "log_sigmoid": ScalarFunction(
        lambda z, _: F.logsigmoid(z), lambda z, _w, _: torch.sigmoid(-z), lambda _: (0.0, 1.0)
    ),
    "softsign": ScalarFunction(
        lambda z, _: F.softsign(z), lambda z, _w, _: (1.0 + z.abs()) ** -2, lambda _: (0.0, 1.0)
    ),
    "atan": ScalarFunction(lambda z, _: torch.atan(z), lambda z, _w, _: 1.0 / (1.0 + z * z), lambda _: (0.0, 1.0)),
    "erf": ScalarFunction(
        lambda z, _: torch.erf(z), lambda z, _w, _: 2.0 / math.sqrt(math.pi) * torch.exp(-z * z), lambda _: _ERF_SLOPES
    ),
}
