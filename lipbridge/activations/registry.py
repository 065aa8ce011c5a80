"""Activations and polyactivations: one row of facts each, in one registry.

A polyactivation is a curve g: R -> R^K, applied to every coordinate of its source. Its output is laid out block by
block: ``[g_1(z), ..., g_K(z)]`` along the last axis. Each component g_k is a sum of terms ``c * f(s t + o)`` of the
scalar functions below, so evaluation, derivative, lowering and recognition in a captured module all read one picture.

Facts of every row (checked numerically by the conformance test): the Lipschitz constant sup ||g'(t)||_p for each
norm, rounded up; the interval that contains the slopes of each component; the norms p that it saturates, that is
||g'(t)||_p = 1 almost everywhere.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from functools import cached_property

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lipbridge import checks
from lipbridge.activations.piecewise_linear import Hinge, Pieces, above, below, interval
from lipbridge.errors import InvalidArgument, NumericalFailure, UnknownName
from lipbridge.rounding.factors import Factor, number
from lipbridge.rounding.outward import SMALLEST
from lipbridge.rounding.scalars import down, root_sum_of_powers_up, up
from lipbridge.vocabulary import NORMS, Norm

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


@dataclass(frozen=True, order=True)
class Term:
    """``coefficient * function(scale * t + offset)``, with the function's parameters, e.g. a leaky slope."""

    function: str
    coefficient: float = 1.0
    scale: float = 1.0
    offset: float = 0.0
    parameters: tuple[float, ...] = ()

    def value(self, z: Tensor) -> Tensor:
        return _times(self.coefficient, SCALAR_FUNCTIONS[self.function].value(self._inner(z), self.parameters))

    def derivative(self, z: Tensor, width: float) -> Tensor:
        slope = SCALAR_FUNCTIONS[self.function].derivative(self._inner(z), width, self.parameters)
        return _times(self.coefficient * self.scale, slope)

    def slopes(self) -> Interval:
        """Interval of the slopes, rounded outward."""
        return _scaled(SCALAR_FUNCTIONS[self.function].slopes(self.parameters), self.coefficient, self.scale)

    def sides(self) -> Interval | None:
        """Slopes left and right of zero, exactly, if the term is linear on either side."""
        inner = SCALAR_FUNCTIONS[self.function].sides(self.parameters)
        if inner is None or (self.offset != 0.0 and inner[0] != inner[1]):
            return None
        left, right = inner if self.scale >= 0 else (inner[1], inner[0])
        return (_product(self.coefficient, self.scale, left), _product(self.coefficient, self.scale, right))

    @property
    def hinge(self) -> Hinge | None:
        """The term in exact arithmetic, if it is piecewise linear and its numbers are finite."""
        sides = SCALAR_FUNCTIONS[self.function].sides(self.parameters)
        if sides is None or not all(math.isfinite(x) for x in (*sides, self.coefficient, self.scale, self.offset)):
            return None
        return Hinge(*sides, self.coefficient, self.scale, self.offset)

    @property
    def canonical(self) -> Term:
        """The same term in one spelling: a kink at zero has its factor outside, a line has it inside."""
        if self.function == "identity":
            scale, offset = _product(self.coefficient, self.scale), _product(self.coefficient, self.offset)
            return Term("identity", 1.0, scale, offset)
        if self.offset != 0.0 or self.sides() is None or self.scale == 0.0:
            return self
        sign = 1.0 if self.function == "abs" else math.copysign(1.0, self.scale)
        return Term(self.function, _product(self.coefficient, abs(self.scale)), sign, 0.0, self.parameters)

    @property
    def constant(self) -> float:
        """The term's value at zero, for terms with ``sides``: other than zero only where both sides are one line."""
        sides = SCALAR_FUNCTIONS[self.function].sides(self.parameters)
        return 0.0 if sides is None else _product(self.coefficient, self.offset, sides[1])

    def _inner(self, z: Tensor) -> Tensor:
        z = _times(self.scale, z)
        return z if self.offset == 0.0 else z + self.offset


def _times(factor: float, z: Tensor) -> Tensor:
    if factor == 1.0:
        return z
    return -z if factor == -1.0 else factor * z


def _exact(a: float, b: float) -> bool:
    """Whether the product is exact for certain: of zero, or of a power of two and without underflow."""
    if a == 0.0 or b == 0.0:
        return True
    return 0.5 in (abs(math.frexp(a)[0]), abs(math.frexp(b)[0])) and abs(a * b) >= SMALLEST


def _product(*factors: float) -> float:
    """A product, exactly: as a ``Factor`` where it is no double; infinite beyond float64."""
    if not all(map(math.isfinite, factors)):
        return math.prod(factors)
    return _number(math.prod(map(Fraction, factors), start=Fraction(1)))


def _sum(terms: Iterable[float]) -> float:
    """A sum, likewise; NaN for opposite infinities."""
    values = list(terms)
    if not all(map(math.isfinite, values)):
        return sum(values)
    return _number(sum(map(Fraction, values), Fraction(0)))


def _number(exact: Fraction) -> float:
    try:
        return number(exact)
    except NumericalFailure:
        return math.copysign(math.inf, exact)


def _scaled(interval: Interval, *factors: float) -> Interval:
    low, high = interval
    for factor in factors:
        if isinstance(factor, Factor):  # in fractions, and rounded outward once
            low, high = _around(*(end * factor if end else 0.0 for end in (low, high)))
            continue
        ends = [(end * factor, _exact(end, factor)) for end in (low, high)]
        low, high = (
            side(value if exact else step(value) for value, exact in ends) for side, step in ((min, down), (max, up))
        )
    return (low, high)


def _around(*ends: float) -> Interval:
    low, high = sorted(ends)
    return (low if math.isinf(low) else below(Fraction(low)), high if math.isinf(high) else above(Fraction(high)))


def _sum_intervals(intervals: list[Interval]) -> Interval:
    if len(intervals) == 1:
        return intervals[0]
    low, high = (math.fsum(i[0] for i in intervals), math.fsum(i[1] for i in intervals))
    return (low if low == 0.0 else down(low), high if high == 0.0 else up(high))


Component = tuple[Term, ...]


@dataclass(frozen=True)
class Activation:
    """A (poly)activation: name, components, and the facts that bounds read.

    Attributes:
        name: the registry's name, or a description of a captured one, e.g. ``joint(relu, abs)``.
        components: K components, each a sum of terms.
        lipschitz: per norm p, an upper bound of sup ||g'(t)||_p (the constant of the layer R^d -> R^(dK) in l_p).
        slopes: per component, an interval of its difference quotients, rounded outward.
        saturates: the norms p with ||g'(t)||_p = 1 almost everywhere.
        parameters: values of the function's parameters, by name.
    """

    name: str
    components: tuple[Component, ...]
    lipschitz: Mapping[Norm, float]
    slopes: tuple[Interval, ...]
    saturates: frozenset[Norm] = frozenset()
    parameters: Mapping[str, float] = field(default_factory=lambda: {})

    @property
    def width(self) -> int:
        """K, the number of outputs per input coordinate."""
        return len(self.components)

    def __call__(self, z: Tensor) -> Tensor:
        """Apply to ``z`` of shape ``(..., d)``; returns ``(..., d K)`` in blocks ``[g_1(z), ..., g_K(z)]``."""
        parts = self.parts(z)
        return parts[0] if len(parts) == 1 else torch.cat(parts, dim=-1)

    def parts(self, z: Tensor) -> list[Tensor]:
        """The value of each component at ``z``, in its shape."""
        return [_total([term.value(z) for term in component]) for component in self.components]

    def derivatives(self, z: Tensor, width: float = 0.0) -> list[Tensor]:
        """The derivative of each component at ``z``, smoothed over about ``width`` where it jumps."""
        return [_total([term.derivative(z, width) for term in component]) for component in self.components]

    @cached_property
    def sides(self) -> tuple[Interval, ...] | None:
        """Per component the slopes (left, right) of zero, exactly, if all are linear on both sides and zero at zero."""
        result: list[Interval] = []
        for component in self.components:
            sides = [term.sides() for term in component]
            if any(side is None for side in sides) or any(term.constant != 0.0 for term in component):
                return None
            result.append((_sum(s[0] for s in sides if s), _sum(s[1] for s in sides if s)))
        return tuple(result)

    @property
    def homogeneous(self) -> bool:
        """Whether g(c t) = c g(t) for c > 0 (so that neurons can be rescaled)."""
        return self.sides is not None

    @property
    def kinked(self) -> bool:
        """Whether some component has a point without derivative (where a term's argument is at a kink)."""
        return any(not SCALAR_FUNCTIONS[term.function].smooth for component in self.components for term in component)

    def distance_to_kink(self, z: Tensor) -> Tensor:
        """How far each coordinate of ``z`` is from the nearest kink; infinite for smooth activations.

        Where a term's argument is rounded the distance is less by more than that: above zero means that the rounded
        argument lies on the same side of the kink as the exact one.
        """
        distance = torch.full_like(z, math.inf)
        for term in (t for component in self.components for t in component):
            function = SCALAR_FUNCTIONS[term.function]
            if function.smooth or term.scale == 0.0:
                continue
            for kink in function.kinks:
                away = (z + (term.offset - kink) / term.scale).abs()
                if abs(term.scale) != 1.0 or term.offset != 0.0:
                    away = away - 2.0**-50 * (z.abs() + abs((abs(term.offset) + abs(kink)) / term.scale))
                    away = (away - 2.0**-1020 / abs(term.scale)).clamp_min(0.0)
                distance = torch.minimum(distance, away)
        return distance

    def __repr__(self) -> str:
        inside = ", ".join(f"{key}={value:g}" for key, value in self.parameters.items())
        return f"Activation({self.name}{': ' + inside if inside else ''})"


def _total(parts: list[Tensor]) -> Tensor:
    total = parts[0]
    for part in parts[1:]:
        total = total + part
    return total


def derive(name: str, components: tuple[Component, ...], parameters: Mapping[str, float] | None = None) -> Activation:
    """An activation with facts derived from its terms: sound for any sum of terms, exact if it is piecewise linear.

    The norm constant is the largest vector norm of the components' slopes over all pieces where every component is
    piecewise linear, and otherwise the vector norm of the components' largest slopes, rounded up. Sines and cosines
    of one frequency are taken together in l_2: (sin t, sin(t + o)) has the constant sqrt(1 + |cos o|).
    """
    pieces = _pieces(components)
    if pieces is None:
        slopes = tuple(_component_slopes(component) for component in components)
        rows = [[max(abs(low), abs(high)) for low, high in slopes]]
    else:
        slopes = tuple(interval(row) for row in pieces.slopes)
        rows = [[above(abs(slope)) for slope in piece] for piece in zip(*pieces.slopes, strict=True)]
    lipschitz: dict[Norm, float] = {norm: max(_vector_norm_up(row, norm) for row in rows) for norm in NORMS}
    lipschitz[2] = min(lipschitz[2], _sinusoids_up(components))
    return Activation(name, components, lipschitz, slopes, frozenset(), dict(parameters or {}))


def _sinusoids_up(components: tuple[Component, ...]) -> float:
    """Upper bound of the l_2 norm of the slopes of sines and cosines of one frequency; infinite for other components.

    a^2 s^2 cos^2(s t + o) = a^2 s^2 (1 + cos(2 s t + 2 o)) / 2, and cosines of one frequency add up as the complex
    numbers a^2 exp(2 i o) do: the sum of squares is at most s^2 (sum a^2 + |sum a^2 exp(2 i o)|) / 2.
    """
    terms = [component[0] for component in components if len(component) == 1]
    known = len(terms) == len(components) > 1 and all(term.function in ("sin", "cos") for term in terms)
    if not known or len({abs(term.scale) for term in terms}) != 1:
        return math.inf
    if not all(abs(x) < 2.0**500 for term in terms for x in (term.coefficient, term.scale, term.offset)):
        return math.inf
    weights: dict[float, Fraction] = {}  # by the angle; those of a sine and a cosine cancel exactly
    total = Fraction(0)
    for term in terms:
        weight = Fraction(term.coefficient) ** 2
        angle = 2.0 * (term.offset if term.scale >= 0.0 else -term.offset)
        weights[angle] = weights.get(angle, Fraction(0)) + (weight if term.function == "sin" else -weight)
        total += weight
    # math.cos and math.sin are within an ulp, which is at most 2**-53 here; |x| + |y| bounds what is lost in both.
    parts = [(weight, Fraction(math.cos(angle)), Fraction(math.sin(angle))) for angle, weight in weights.items()]
    real, imaginary = (abs(sum((part[0] * part[i] for part in parts), Fraction(0))) for i in (1, 2))
    lost = sum((abs(part[0]) for part in parts), Fraction(0)) * Fraction(1, 2**51)
    together = Fraction(_root_up(real**2 + imaginary**2)) + lost
    return _root_up(Fraction(terms[0].scale) ** 2 * (total + together) / 2)


def _root_up(square: Fraction) -> float:
    """The least double, or one of the two next, that is not below the root of a number that is not negative."""
    if square == 0:
        return 0.0
    if not 2.0**-900 < square < 2.0**1000:
        return math.inf
    root = down(math.sqrt(square))
    while Fraction(root) ** 2 < square:
        root = up(root)
    return root


def _component_slopes(component: Component) -> Interval:
    """The hinges' slopes together, and the interval of each other term; rounded outward."""
    hinges = [term.hinge for term in component]
    pieces = Pieces((tuple(hinge for hinge in hinges if hinge is not None),))
    others = [term.slopes() for term, hinge in zip(component, hinges, strict=True) if hinge is None]
    return _sum_intervals(others if len(others) == len(component) else [interval(pieces.slopes[0]), *others])


def _pieces(components: tuple[Component, ...]) -> Pieces | None:
    """The components between their common kinks, or None if some component is not piecewise linear."""
    hinges = [[term.hinge for term in component] for component in components]
    found = tuple(tuple(hinge for hinge in row if hinge is not None) for row in hinges)
    return Pieces(found) if all(len(a) == len(b) for a, b in zip(found, hinges, strict=True)) else None


def _vector_norm_up(row: Iterable[float], norm: Norm) -> float:
    row = [value for value in row if value != 0.0]
    if norm == "inf" or len(row) <= 1:
        return max(row, default=0.0)
    return root_sum_of_powers_up(row, norm)


# --- modules -------------------------------------------------------------------------------------------------------


class Abs(nn.Module):
    """|t|. Saturates every norm."""

    def forward(self, z: Tensor) -> Tensor:
        return z.abs()


class Sin(nn.Module):
    """sin t. Lipschitz constant 1, saturates no norm."""

    def forward(self, z: Tensor) -> Tensor:
        return z.sin()


class Atan(nn.Module):
    """arctan t. Lipschitz constant 1, saturates no norm."""

    def forward(self, z: Tensor) -> Tensor:
        return z.atan()


class GELUTanh(nn.Module):
    """0.5 t (1 + tanh(sqrt(2 / pi) (t + 0.044715 t^3))), ``nn.GELU(approximate="tanh")``. Saturates no norm."""

    def forward(self, z: Tensor) -> Tensor:
        return F.gelu(z, approximate="tanh")


class _Joint(nn.Module):
    """A polyactivation of several components: ``dim`` is 1 for channelwise use on ``(batch, channels, *space)``."""

    def __init__(self, dim: int = -1) -> None:
        super().__init__()
        self.dim = int(dim)

    def extra_repr(self) -> str:
        return "" if self.dim == -1 else f"dim={self.dim}"


class CReLU(_Joint):
    """(relu t, relu -t), concatenated along ``dim``. Saturates every norm."""

    def forward(self, z: Tensor) -> Tensor:
        return torch.cat([z.relu(), (-z).relu()], dim=self.dim)


class SinCos(_Joint):
    """(sin t, cos t), concatenated along ``dim``. Saturates l_2."""

    def forward(self, z: Tensor) -> Tensor:
        return torch.cat([z.sin(), z.cos()], dim=self.dim)


class IdentityAbs(_Joint):
    """(t, |t|), concatenated along ``dim``. Saturates l_inf."""

    def forward(self, z: Tensor) -> Tensor:
        return torch.cat([z, z.abs()], dim=self.dim)


#: The largest double below 1/sqrt(2), so that the stored function has a constant of at most one in l_2.
INVERSE_SQRT2 = 0.7071067811865475


class IdentityAbsL2(_Joint):
    """(t, |t|) / sqrt 2, concatenated along ``dim``. Saturates l_2."""

    def forward(self, z: Tensor) -> Tensor:
        z = z * INVERSE_SQRT2
        return torch.cat([z, z.abs()], dim=self.dim)


class Sin2Pair(_Joint):
    """((t + sin^2 t)/2, (t - sin^2 t)/2), concatenated along ``dim``. Saturates l_1."""

    def forward(self, z: Tensor) -> Tensor:
        half, square = z * 0.5, z.sin().square() * 0.5
        return torch.cat([half + square, half - square], dim=self.dim)


# --- the registry ----------------------------------------------------------------------------------------------------

_SQRT2_UP = up(math.sqrt(2.0))
_ALL: frozenset[Norm] = frozenset(NORMS)


def _facts(one: float, two: float, infinity: float) -> dict[Norm, float]:
    return {1: one, 2: two, "inf": infinity}


def _scalar(name: str, defaults: Mapping[str, float] | None = None) -> Activation:
    values = dict(defaults or {})
    return derive(name, ((Term(name, parameters=tuple(values.values())),),), values)


@dataclass(frozen=True)
class Row:
    """A registry row: the activation with its facts, and the factory of its module (keyword parameters allowed)."""

    activation: Activation
    module: Callable[..., nn.Module]


#: The factors are those that torch multiplies by: scale * elu(t; alpha).
SELU: tuple[Component, ...] = (
    (Term("elu", 1.0507009873554804934193349852946, parameters=(1.6732632423543772848170429916717,)),),
)
_SIXTH = up(1.0 / 6.0)
#: min(max(t + 3, 0), 6) / 6, with 1/6 rounded up: the module's function is this times a factor of at most one.
HARDSIGMOID: tuple[Component, ...] = ((Term("relu", -_SIXTH, offset=-3.0), Term("relu", _SIXTH, offset=3.0)),)

_T = Term("identity")
_REGISTRY: dict[str, Row] = {}


def register(activation: Activation, module: Callable[..., nn.Module]) -> None:
    """Add an activation to the registry under its name. A new activation is one call, from any file or package.

    Raises:
        InvalidArgument: if the name is taken.
    """
    if activation.name in _REGISTRY:
        raise InvalidArgument("activation.name", "be new to the registry", activation.name)
    _REGISTRY[activation.name] = Row(activation, module)


def _register_all() -> None:
    relu, minus_relu = Term("relu"), Term("relu", scale=-1.0)
    register(Activation("abs", ((Term("abs"),),), _facts(1, 1, 1), ((-1.0, 1.0),), _ALL), Abs)
    register(Activation("crelu", ((relu,), (minus_relu,)), _facts(1, 1, 1), ((0.0, 1.0), (-1.0, 0.0)), _ALL), CReLU)
    register(
        Activation(
            "sincos",
            ((Term("sin"),), (Term("cos"),)),
            _facts(_SQRT2_UP, 1, 1),
            ((-1.0, 1.0), (-1.0, 1.0)),
            frozenset({2}),
        ),
        SinCos,
    )
    register(
        Activation(
            "identity_abs",
            ((_T,), (Term("abs"),)),
            _facts(2, _SQRT2_UP, 1),
            ((1.0, 1.0), (-1.0, 1.0)),
            frozenset({"inf"}),
        ),
        IdentityAbs,
    )
    c = INVERSE_SQRT2
    register(
        Activation(
            "identity_abs_l2",
            ((Term("identity", scale=c),), (Term("abs", scale=c),)),
            # Rounded up, so that they hold for (t, |t|) divided by the float64 number sqrt(2) as well.
            _facts(up(2 * c), 1, up(c)),
            ((c, up(c)), (-up(c), up(c))),
            frozenset({2}),
        ),
        IdentityAbsL2,
    )
    half = Term("identity", scale=0.5)
    register(
        Activation(
            "sin2_pair",
            ((half, Term("sin_squared", 0.5)), (half, Term("sin_squared", -0.5))),
            _facts(1, 1, 1),
            ((0.0, 1.0), (0.0, 1.0)),
            frozenset({1}),
        ),
        Sin2Pair,
    )
    register(_scalar("relu"), nn.ReLU)
    register(_scalar("leaky_relu", {"negative_slope": 0.01}), nn.LeakyReLU)
    register(_scalar("tanh"), nn.Tanh)
    register(_scalar("sigmoid"), nn.Sigmoid)
    register(_scalar("softplus", {"beta": 1.0}), nn.Softplus)
    register(_scalar("sin"), Sin)
    register(_scalar("silu"), nn.SiLU)
    register(_scalar("gelu"), nn.GELU)
    register(_scalar("elu", {"alpha": 1.0}), nn.ELU)
    register(derive("selu", SELU), nn.SELU)
    register(_scalar("celu", {"alpha": 1.0}), nn.CELU)
    register(derive("hardsigmoid", HARDSIGMOID), nn.Hardsigmoid)
    register(derive("gelu_tanh", ((Term("gelu_tanh", parameters=(GELU_CUBE,)),),)), GELUTanh)
    register(_scalar("mish"), nn.Mish)
    register(_scalar("hardswish"), nn.Hardswish)
    register(_scalar("softsign"), nn.Softsign)
    register(_scalar("atan"), Atan)


_register_all()


def activation_names() -> list[str]:
    """The names of all registered activations."""
    return list(_REGISTRY)


def activation(name: str) -> Activation:
    """The facts of a registered activation.

    Raises:
        UnknownName: with the list of known names.
    """
    return _row(name).activation


def activation_module(name: str, **parameters: float) -> nn.Module:
    """A new module of a registered activation, e.g. ``activation_module("leaky_relu", negative_slope=0.1)``."""
    return _row(name).module(**parameters)


def _row(name: str) -> Row:
    checks.instance(name, str, "activation", "be the name of an activation")
    if name not in _REGISTRY:
        raise UnknownName("activation", name, _REGISTRY)
    return _REGISTRY[name]


def recognise(components: tuple[Component, ...]) -> Activation:
    """The registered activation with exactly these components, or one with facts derived from them."""
    spelling = _canonical(components)
    for row in _REGISTRY.values():
        if spelling == _canonical(row.activation.components):
            return row.activation
    if len(components) == 1 and len(components[0]) == 1:
        term = components[0][0]
        function = SCALAR_FUNCTIONS[term.function]
        if (term.coefficient, term.scale, term.offset) == (1.0, 1.0, 0.0):
            return derive(term.function, components, dict(zip(function.parameters, term.parameters, strict=True)))
    names = [" + ".join(_spell(term) for term in component) for component in components]
    return derive(names[0] if len(names) == 1 else f"joint({', '.join(names)})", components)


def _canonical(components: tuple[Component, ...]) -> tuple[Component, ...]:
    return tuple(tuple(sorted(term.canonical for term in component)) for component in components)


def _spell(term: Term) -> str:
    if term.function == "identity" and term.scale == 0.0:
        return f"{term.coefficient * term.offset:g}"
    inner = "t" if term.scale == 1.0 else f"{term.scale:g} t"
    inner += f" + {term.offset:g}" if term.offset else ""
    body = inner if term.function == "identity" else f"{term.function}({inner})"
    return body if term.coefficient == 1.0 else f"{term.coefficient:g} {body}"


def saturating(norm: Norm) -> list[str]:
    """The names of the registered activations that saturate ``norm``."""
    return [name for name, row in _REGISTRY.items() if norm in row.activation.saturates]


__all__ = [
    "SCALAR_FUNCTIONS",
    "Abs",
    "Activation",
    "CReLU",
    "IdentityAbs",
    "IdentityAbsL2",
    "Sin",
    "Sin2Pair",
    "SinCos",
    "Term",
    "activation",
    "activation_module",
    "activation_names",
    "derive",
    "recognise",
    "register",
    "saturating",
]
