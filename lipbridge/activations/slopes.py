"""Slopes of an activation on an interval: what bounds on a region may know beyond the global facts.

Every fact is an enclosure, rounded outward, of the difference quotients of a function over pairs of points of a closed
interval, which is also the hull of its Clarke derivatives there: a kink inside the interval *or on its boundary* counts
with both sides. All functions act elementwise on float64 tensors wherever these are, without looking at their values.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from lipbridge.activations.activation import Component, Term
from lipbridge.activations.piecewise_linear import Pieces, above, below
from lipbridge.activations.scalar_functions import GELU_CUBE, SCALAR_FUNCTIONS, Interval, Parameters
from lipbridge.rounding.scalars import FLOOR, TINY, up

Slopes = tuple[Tensor, Tensor]

#: More than the error of a derivative's evaluation (a few operations on numbers of size about one).
SLACK = 2.0**-46
#: More than the relative error of a few operations.
WIDER = 2.0**-50
#: Arguments beyond this have lost too many digits for the quadrant of a sine to be known.
FAR = 2.0**30


def outward(low: Tensor, high: Tensor) -> Slopes:
    """The interval, wider by more than the rounding of its ends; an end that overflowed or is NaN tells nothing."""
    low, high = low - low.abs() * WIDER - FLOOR, high + high.abs() * WIDER + FLOOR
    return low.nan_to_num(-math.inf, -math.inf, -math.inf), high.nan_to_num(math.inf, math.inf, math.inf)


@dataclass(frozen=True)
class Local:
    """What is known of a scalar function on the interval [lo, hi], for parameters p.

    Attributes:
        slopes: ``(lo, hi, p) -> (a, b)``, an enclosure of all difference quotients; never asked for NaN.
        bend: ``(lo, hi, p) ->`` 1.0 where the function is certainly convex there, -1.0 where it is concave, else 0.
        range: ``p ->`` an interval that holds all values of the function.
    """

    slopes: Callable[[Tensor, Tensor, Parameters], Slopes]
    bend: Callable[[Tensor, Tensor, Parameters], Tensor] = lambda lo, hi, p: torch.zeros_like(lo)
    range: Callable[[Parameters], Interval] = lambda p: (-math.inf, math.inf)


def _sides(left: float, right: float, lo: Tensor, hi: Tensor) -> Slopes:
    """Slopes of a function with one kink, at zero."""
    before, after = torch.full_like(lo, left), torch.full_like(lo, right)
    a = torch.where(lo > 0, after, torch.where(hi < 0, before, torch.minimum(before, after)))
    b = torch.where(lo > 0, after, torch.where(hi < 0, before, torch.maximum(before, after)))
    return a, b


def _piecewise_linear(name: str) -> Local:
    def slopes(lo: Tensor, hi: Tensor, p: Parameters) -> Slopes:
        left, right = SCALAR_FUNCTIONS[name].sides(p) or (0.0, 0.0)
        return _sides(left, right, lo, hi)

    def bend(lo: Tensor, hi: Tensor, p: Parameters) -> Tensor:
        left, right = SCALAR_FUNCTIONS[name].sides(p) or (0.0, 0.0)
        return torch.full_like(lo, 1.0 if left <= right else -1.0)

    return Local(slopes, bend, lambda p: (0.0, math.inf) if name in ("relu", "abs") else (-math.inf, math.inf))


def _between(
    name: str,
    peaks: Callable[[Parameters], tuple[tuple[float, float], ...]],
    room: Callable[[Parameters], float] = lambda _: 1e-9,
) -> Callable[..., Slopes]:
    """Slopes of a smooth function whose derivative is monotone between its peaks ``(place, slope)``.

    Places may be off by ``room``, which is looked for; slopes are rounded outward (and so, where that matters, listed
    with the registry's own digits).
    """

    def slopes(lo: Tensor, hi: Tensor, p: Parameters) -> Slopes:
        function = SCALAR_FUNCTIONS[name]
        at_l, at_u = function.derivative(lo, 0.0, p), function.derivative(hi, 0.0, p)
        a, b = torch.fmin(at_l, at_u) - SLACK, torch.fmax(at_l, at_u) + SLACK
        for place, slope in peaks(p):
            inside = (lo <= place + room(p)) & (hi >= place - room(p))
            a = torch.where(inside, a.clamp(max=slope), a)
            b = torch.where(inside, b.clamp(min=slope), b)
        infinite = torch.isinf(lo) | torch.isinf(hi)
        low, high = function.slopes(p)
        return torch.where(infinite, low, a).clamp(low, high), torch.where(infinite, high, b).clamp(low, high)

    return slopes


def _elu(lo: Tensor, hi: Tensor, p: Parameters) -> Slopes:
    (alpha,) = p
    low, high = SCALAR_FUNCTIONS["elu"].slopes(p)
    left = [alpha * torch.exp(t.clamp(max=0.0)) for t in (lo, hi)]  # on [lo, min(hi, 0)], if lo <= 0
    a, b = torch.fmin(*left) - SLACK * (1.0 + abs(alpha)), torch.fmax(*left) + SLACK * (1.0 + abs(alpha))
    one = torch.ones_like(lo)
    a = torch.where(lo > 0, one, torch.where(hi >= 0, torch.minimum(a, one), a))
    b = torch.where(lo > 0, one, torch.where(hi >= 0, torch.maximum(b, one), b))
    return a.clamp(low, high), b.clamp(low, high)


def _wave(slope: Callable[[Tensor], Tensor], period: float, top: float) -> Callable[..., Slopes]:
    """Slopes of a function with derivative ``slope``, a sine wave of height one with a maximum at ``top``."""

    def slopes(lo: Tensor, hi: Tensor, p: Parameters) -> Slopes:
        far = ~((lo > -FAR) & (hi < FAR))
        lo, hi = torch.where(far, 0.0, lo), torch.where(far, 0.0, hi)
        at_l, at_u = slope(lo), slope(hi)
        a, b = torch.minimum(at_l, at_u) - SLACK, torch.maximum(at_l, at_u) + SLACK
        for place, value in ((top, 1.0), (top + 0.5 * period, -1.0)):
            # 1e-6 is far more than the rounding of an argument below FAR, and makes no slope wrong by more than 1e-11.
            first, last = torch.ceil((lo - place) / period - 1e-6), torch.floor((hi - place) / period + 1e-6)
            peak = (first <= last) | far
            if value > 0:
                b = torch.where(peak, 1.0, b)
            else:
                a = torch.where(peak, -1.0, a)
        return a.clamp(-1.0, 1.0), b.clamp(-1.0, 1.0)

    return slopes


def _sigmoidal(lo: Tensor, hi: Tensor, p: Parameters) -> Tensor:
    """Convex left of zero, concave right of it."""
    return (hi <= 0).to(lo.dtype) - (lo >= 0).to(lo.dtype)


def _hardswish(lo: Tensor, hi: Tensor, p: Parameters) -> Slopes:
    """0 left of -3, (2 t + 3) / 6 up to 3, 1 right of it; a kink counts with both sides."""
    a, b = torch.full_like(lo, math.inf), torch.full_like(lo, -math.inf)
    ends = [(2.0 * t.clamp(-3.0, 3.0) + 3.0) / 6.0 for t in (lo, hi)]
    for apart, low, high in (
        (lo > -3.0, 0.0, 0.0),
        ((hi < -3.0) | (lo > 3.0), torch.fmin(*ends) - SLACK, torch.fmax(*ends) + SLACK),
        (hi < 3.0, 1.0, 1.0),
    ):
        a = torch.where(apart, a, torch.fmin(a, torch.as_tensor(low, dtype=a.dtype, device=a.device)))
        b = torch.where(apart, b, torch.fmax(b, torch.as_tensor(high, dtype=b.dtype, device=b.device)))
    return a.clamp(-0.5, 1.5), b.clamp(-0.5, 1.5)


# The places of the peaks of silu' and gelu': zeros of the second derivatives (see the registry for the values).
_SILU_PEAK, _GELU_PEAK, _GELU_TANH_PEAK = 2.3993572805154, math.sqrt(2.0), 1.4185040087908284
_MISH_PEAKS = ((-2.2563763963907931, -1.0), (1.4905711797854285, 2.0))
_QUARTER = up(0.5 * math.pi)
_ERF_SLOPE = SCALAR_FUNCTIONS["erf"].slopes(())[1]

LOCAL: Mapping[str, Local] = {
    "identity": _piecewise_linear("identity"),
    "relu": _piecewise_linear("relu"),
    "abs": _piecewise_linear("abs"),
    "leaky_relu": _piecewise_linear("leaky_relu"),
    "elu": Local(
        _elu,
        lambda lo, hi, p: torch.full_like(lo, 1.0 if 0.0 <= p[0] <= 1.0 else 0.0),
        lambda p: (min(0.0, -p[0]), math.inf),
    ),
    "softplus": Local(
        _between("softplus", lambda _: ()),
        lambda lo, hi, p: torch.full_like(lo, math.copysign(1.0, p[0])),
        lambda p: (0.0, math.inf) if p[0] > 0 else (-math.inf, 0.0),
    ),
    "tanh": Local(_between("tanh", lambda _: ((0.0, 1.0),)), _sigmoidal, lambda _: (-1.0, 1.0)),
    "sigmoid": Local(_between("sigmoid", lambda _: ((0.0, 0.25),)), _sigmoidal, lambda _: (0.0, 1.0)),
    "sin": Local(_wave(torch.cos, 2.0 * math.pi, 0.0), range=lambda _: (-1.0, 1.0)),
    "cos": Local(_wave(lambda t: -torch.sin(t), 2.0 * math.pi, -0.5 * math.pi), range=lambda _: (-1.0, 1.0)),
    "sin_squared": Local(_wave(lambda t: torch.sin(2.0 * t), math.pi, 0.25 * math.pi), range=lambda _: (0.0, 1.0)),
    "silu": Local(
        _between("silu", lambda _: ((-_SILU_PEAK, -1.0), (_SILU_PEAK, 2.0))), range=lambda _: (-0.2785, math.inf)
    ),
    "gelu": Local(
        _between("gelu", lambda _: ((-_GELU_PEAK, -1.0), (_GELU_PEAK, 2.0))), range=lambda _: (-0.17, math.inf)
    ),
    "gelu_tanh": Local(
        # The peaks move by less than the relative change of the cube's factor.
        _between(
            "gelu_tanh",
            lambda _: ((-_GELU_TANH_PEAK, -1.0), (_GELU_TANH_PEAK, 2.0)),
            lambda p: 1e-9 + abs(p[0] / GELU_CUBE - 1.0),
        ),
        range=lambda _: (-0.1706, math.inf),
    ),
    "mish": Local(_between("mish", lambda _: _MISH_PEAKS), range=lambda _: (-0.3089, math.inf)),
    "hardswish": Local(
        _hardswish,
        lambda lo, hi, p: ((hi <= -3.0) | ((lo >= -3.0) & (hi <= 3.0)) | (lo >= 3.0)).to(lo.dtype),
        lambda _: (-0.375, math.inf),
    ),
    "celu": Local(
        _between("celu", lambda _: ()),
        lambda lo, hi, p: torch.full_like(lo, 1.0 if p[0] > 0 else 0.0),
        lambda p: (-p[0], math.inf) if p[0] > 0 else (-math.inf, math.inf),
    ),
    "log_sigmoid": Local(
        _between("log_sigmoid", lambda _: ()), lambda lo, hi, p: -torch.ones_like(lo), lambda _: (-math.inf, 0.0)
    ),
    "softsign": Local(_between("softsign", lambda _: ((0.0, 1.0),)), _sigmoidal, lambda _: (-1.0, 1.0)),
    "atan": Local(_between("atan", lambda _: ((0.0, 1.0),)), _sigmoidal, lambda _: (-_QUARTER, _QUARTER)),
    "erf": Local(_between("erf", lambda _: ((0.0, _ERF_SLOPE),)), _sigmoidal, lambda _: (-1.0, 1.0)),
}  # the peaks of silu, gelu and mish are clamped to the registry's slopes


def _unknown(name: str) -> Local:
    """A function of another package: its global slopes hold on every interval."""

    def slopes(lo: Tensor, hi: Tensor, p: Parameters) -> Slopes:
        low, high = SCALAR_FUNCTIONS[name].slopes(p)
        return torch.full_like(lo, low), torch.full_like(lo, high)

    return Local(slopes)


def local(name: str) -> Local:
    """The row of a scalar function, or one made of its global facts."""
    return LOCAL[name] if name in LOCAL else _unknown(name)


def inner(term: Term, lo: Tensor, hi: Tensor) -> Slopes:
    """The interval of a term's argument ``scale t + offset`` for t in [lo, hi], rounded outward."""
    if (term.scale, term.offset) == (1.0, 0.0):
        return lo, hi
    if (term.scale, term.offset) == (-1.0, 0.0):
        return -hi, -lo
    if term.scale == 0.0:
        return torch.full_like(lo, term.offset), torch.full_like(hi, term.offset)
    ends = (term.scale * lo, term.scale * hi) if term.scale > 0 else (term.scale * hi, term.scale * lo)
    room = WIDER * (torch.fmax(ends[0].abs(), ends[1].abs()) + abs(term.offset))
    return outward(ends[0] + term.offset - room, ends[1] + term.offset + room)


def function_slopes(term: Term, lo: Tensor, hi: Tensor) -> Slopes:
    """Slopes of the term's function on the term's argument for t in [lo, hi], within the function's global slopes."""
    a, b = local(term.function).slopes(*inner(term, lo, hi), term.parameters)
    low, high = SCALAR_FUNCTIONS[term.function].slopes(term.parameters)
    return a.nan_to_num(low).clamp(low, high), b.nan_to_num(high).clamp(low, high)


def _split(component: Component) -> tuple[Pieces, list[Term]]:
    """The component's hinges together, and its other terms."""
    hinges = [term.hinge for term in component]
    together = tuple(hinge for hinge in hinges if hinge is not None)
    return Pieces((together,)), [term for term, hinge in zip(component, hinges, strict=True) if hinge is None]


def _piecewise_slopes(pieces: Pieces, lo: Tensor, hi: Tensor) -> Slopes:
    """The slopes of all pieces that [lo, hi] meets, ends included."""
    a, b = torch.full_like(lo, math.inf), torch.full_like(lo, -math.inf)
    starts = [-math.inf, *(below(kink) for kink in pieces.kinks)]
    ends = [*(above(kink) for kink in pieces.kinks), math.inf]
    for start, end, slope in zip(starts, ends, pieces.slopes[0], strict=True):
        apart = (hi < start) | (lo > end)
        a = torch.where(apart, a, a.clamp(max=below(slope)))
        b = torch.where(apart, b, b.clamp(min=above(slope)))
    return a, b


def component_slopes(component: Component, bounds: Interval, lo: Tensor, hi: Tensor) -> Slopes:
    """An enclosure of the component's slopes on [lo, hi], within its global ``bounds``.

    Piecewise linear terms are added up piece by piece, exactly; the others as intervals.

    Law: holds (g(s) - g(t)) / (s - t) for all s, t in [lo, hi]; monotone in [lo, hi] but for rounding.
    """
    pieces, curved = _split(component)
    a, b = _piecewise_slopes(pieces, lo, hi)
    for term in curved:
        ends = function_slopes(term, lo, hi)
        factor = term.coefficient * term.scale
        low, high = ends if factor >= 0 else (ends[1], ends[0])
        if factor != 1.0:
            low, high = outward(factor * low, factor * high)
        alone = len(component) == 1
        a, b = (low, high) if alone else outward(a + low - WIDER * low.abs(), b + high + WIDER * high.abs())
    return a.nan_to_num(bounds[0]).clamp(*bounds), b.nan_to_num(bounds[1]).clamp(*bounds)


def component_bend(component: Component, lo: Tensor, hi: Tensor) -> Tensor:
    """1.0 where the component is certainly convex on [lo, hi], -1.0 where concave, else 0; lines count as both."""
    convex, concave = torch.ones_like(lo, dtype=torch.bool), torch.ones_like(lo, dtype=torch.bool)
    pieces, curved = _split(component)
    slopes = pieces.slopes[0]
    for kink, before, after in zip(pieces.kinks, slopes, slopes[1:], strict=False):
        apart = (hi < below(kink)) | (lo > above(kink))
        convex, concave = convex & (apart | (before <= after)), concave & (apart | (before >= after))
    for term in curved:
        if term.coefficient == 0.0:
            continue
        bend = local(term.function).bend(*inner(term, lo, hi), term.parameters) * math.copysign(1.0, term.coefficient)
        convex, concave = convex & (bend > 0), concave & (bend < 0)
    return torch.where(convex, 1.0, torch.where(concave, -1.0, 0.0)).to(lo.dtype)


def component_range(component: Component) -> Interval:
    """An interval that holds all values of the component, rounded outward."""
    pieces, curved = _split(component)
    low, high = pieces.range(0)
    for term in curved:
        if term.coefficient:
            ends = [term.coefficient * end for end in local(term.function).range(term.parameters)]
            least, most = min(ends), max(ends)
            tiny = 0.0 if abs(term.coefficient) == 1.0 else TINY
            slack = [
                1e-14 * (abs(x) + abs(y)) + tiny if math.isfinite(x + y) else 0.0
                for x, y in ((low, least), (high, most))
            ]
            low, high = low + least - slack[0], high + most + slack[1]
    return low, high


__all__ = ["LOCAL", "Local", "component_bend", "component_range", "component_slopes", "function_slopes"]
