"""Activations as data: sums of terms ``c * f(s t + o)`` of scalar functions, and the facts that follow from them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from functools import cached_property, lru_cache

import torch
from torch import Tensor

from lipbridge.activations.piecewise_linear import Hinge, Pieces, above, below, interval
from lipbridge.activations.scalar_functions import SCALAR_FUNCTIONS, Interval
from lipbridge.errors import NumericalFailure
from lipbridge.rounding.factors import Factor, number
from lipbridge.rounding.outward import SMALLEST
from lipbridge.rounding.scalars import FLOOR, down, root_sum_of_powers_up, up
from lipbridge.vocabulary import NORMS, Norm


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
                    away = (away - FLOOR / abs(term.scale)).clamp_min(0.0)
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


def pieces_of(activation: Activation) -> Pieces | None:
    """The components between their common kinks, or None if some component is not piecewise linear."""
    return _pieces(activation.components)


@lru_cache(maxsize=256)
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
