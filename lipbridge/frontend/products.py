"""Products of curves that are one scalar function: SiLU, GELU, Hardswish, Mish."""

from __future__ import annotations

import math
from dataclasses import replace
from fractions import Fraction
from typing import Any

from lipbridge.activations.activation import Component, Term
from lipbridge.errors import NumericalFailure
from lipbridge.frontend.builder import Curve, GraphBuilder
from lipbridge.graph.nodes import Conv, Elementwise, block_axis
from lipbridge.rounding.factors import number


def past_factor(builder: GraphBuilder, value: Curve, source: int) -> Curve:
    """A curve on ``source``, if its own is that times one number that is computed, as sqrt(2); else itself.

    The number is read as the factor that the node has, which is no nearer to zero. Inside of a gate it changes no
    slope of the product, and in the line beside a gate it enlarges all of them alike.
    """
    node = builder.nodes[value.source]
    if not isinstance(node, Conv) or not node.diagonal or node.bias is not None or not node.outward:
        return value
    first = node.weight.flatten()[0]
    if node.inputs != (source,) or value.source in builder.recipes or bool((node.weight != first).any()):
        return value
    factor = Fraction(float(first))
    try:
        components = tuple(
            tuple(replace(term, scale=number(Fraction(term.scale) * factor)) for term in component)
            for component in value.components
        )
    except NumericalFailure:
        return value
    return replace(value, source=source, components=components)


def on_node(builder: GraphBuilder, value: Curve, index: int) -> Curve:
    """A curve as a line on a node that holds it but for a constant; itself if the node holds something else."""
    for known, node in builder.materialised.items():
        alike = (known.source, known.axis, len(known.components)) == (value.source, value.axis, len(value.components))
        if node == index and alike:
            pairs = zip(value.components, known.components, strict=True)
            shifts = {_difference(a, b) for a, b in pairs}
            if len(shifts) == 1 and (shift := shifts.pop()) is not None:
                return Curve(index, ((Term("identity", 1.0, 1.0, shift),),))
    return value


def _difference(a: Component, b: Component) -> float | None:
    """The constant by which two components differ, if they differ by a constant that is a double."""
    bent: list[list[Term]] = []
    lines: list[Line] = []
    for component in (a, b):
        bent.append(sorted(term for term in component if term.function != "identity"))
        known = [line for term in component if (line := _line((term,))) is not None]
        lines.append((sum((line[0] for line in known), Fraction(0)), sum((line[1] for line in known), Fraction(0))))
    shift = lines[0][1] - lines[1][1]
    if bent[0] != bent[1] or lines[0][0] != lines[1][0] or Fraction(float(shift)) != shift:
        return None
    return float(shift)


def made_of(builder: GraphBuilder, like: Curve, found: list[tuple[Term, bool] | None]) -> Curve | None:
    """The curve of the terms; a node of its own if a factor was rounded."""
    made = [item for item in found if item is not None]
    if len(made) < len(found):
        return None
    curve = replace(like, components=tuple((term,) for term, _ in made))
    return curve if all(exact for _, exact in made) else builder.apart(curve)


def _line(component: Component) -> Line | None:
    """Scale and offset of a line."""
    if len(component) != 1 or component[0].function != "identity":
        return None
    (term,) = component
    return Fraction(term.coefficient) * Fraction(term.scale), Fraction(term.coefficient) * Fraction(term.offset)


def through_zero(value: Any) -> float | None:
    """The factor k of a curve that is k t."""
    if not isinstance(value, Curve) or len(value.components) != 1:
        return None
    line = _line(value.components[0])
    return None if line is None or line[1] != 0 else float(line[0])


def gated(line: Component, gate: Component, tolerance: float) -> tuple[Term, bool] | None:
    """A line times its gate as one term, and whether its factor is exact."""
    known = _line(line)
    if known is None or known[0] == 0:
        return None
    return _silu(known, gate) or _gelu(known, gate, tolerance) or _hardswish(known, gate)


def _ratio(line: Line, scale: Fraction, offset: Fraction) -> Fraction | None:
    """The factor with ``line = factor * (scale t + offset)``, if there is one."""
    if scale == 0 or line[1] * scale != line[0] * offset:
        return None
    return line[0] / scale


def rounded(function: str, factor: Fraction, *inner: float, parameters: tuple[float, ...] = ()) -> tuple[Term, bool]:
    """``factor * function(...)``, the factor rounded away from zero if it is no double."""
    value = float(factor)
    if Fraction(value) == factor:
        return Term(function, value, *inner, parameters=parameters), True
    if abs(Fraction(value)) < abs(factor):
        value = math.nextafter(value, math.copysign(math.inf, value))
    return Term(function, value, *inner, parameters=parameters), False


def _silu(line: Line, gate: Component) -> tuple[Term, bool] | None:
    """r (s t + o) * c sigmoid(s t + o) = c r silu(s t + o)."""
    if len(gate) != 1 or gate[0].function != "sigmoid":
        return None
    (term,) = gate
    ratio = _ratio(line, Fraction(term.scale), Fraction(term.offset))
    return None if ratio is None else rounded("silu", Fraction(term.coefficient) * ratio, term.scale, term.offset)


def _gelu(line: Line, gate: Component, tolerance: float) -> tuple[Term, bool] | None:
    """k t * c (1 + erf(r t)) = 2 c k / s * gelu(s t) for s = r sqrt 2.

    s is read as the number that it is but for rounding. The slopes of gelu(s t) / s are those of gelu for every s, so
    this changes no Lipschitz constant.
    """
    bent = [term for term in gate if term.function == "erf"]
    level = [term for term in gate if term.function == "identity" and term.scale == 0.0]
    if len(bent) != 1 or len(level) != 1 or len(gate) != 2 or line[1] != 0 or bent[0].offset != 0.0:
        return None
    c, r, k = Fraction(bent[0].coefficient), bent[0].scale, float(line[0])
    if Fraction(level[0].coefficient) * Fraction(level[0].offset) != c or r == 0.0:
        return None
    scale = nearby(r * math.sqrt(2.0), (k, 2.0 * k, 1.0), tolerance)
    return rounded("gelu", 2 * c * line[0] / Fraction(scale), scale)


def nearby(value: float, candidates: tuple[float, ...], tolerance: float) -> float:
    """The candidate that ``value`` is but for rounding, or the value."""
    return next((c for c in candidates if abs(value - c) <= tolerance * abs(c)), value)


def _hardswish(line: Line, gate: Component) -> tuple[Term, bool] | None:
    """k t times c (relu(s t + a) - relu(s t + b)), for any slope of the clipped line and any of its two ends.

    With h = (a - b) / 6 and u = (s t + (a + b) / 2) / h the gate is 6 c h times that of hardswish(u). Where u is
    rounded the slopes keep their bounds: they are those of hardswish times the product of the two factors.
    """
    if len(gate) != 2 or any(term.function != "relu" for term in gate):
        return None
    first, second = sorted(gate, key=lambda term: -term.offset)
    if first.scale != second.scale or first.coefficient != -second.coefficient or first.offset <= second.offset:
        return None
    a, b = Fraction(first.offset), Fraction(second.offset)
    h = (a - b) / 6
    scale, offset = Fraction(first.scale) / h, (a + b) / (2 * h)
    ratio = _ratio(line, scale, offset)
    inner = (float(scale), float(offset))
    if ratio is None or inner[0] == 0.0 or not all(map(math.isfinite, inner)):
        return None
    factor = 6 * Fraction(first.coefficient) * h * ratio * scale / Fraction(inner[0])
    term, exact = rounded("hardswish", factor, *inner)
    return term, exact and Fraction(inner[1]) == offset


def through_node(builder: GraphBuilder, line: Curve, other: Curve, tolerance: float) -> Curve | None:
    """A line times a function of a node that is itself a function of the line's source: a factor of it, or a tanh."""
    node = builder.nodes[other.source]
    if not isinstance(node, Elementwise) or other.source in builder.recipes:
        return None
    line = on_node(builder, line, node.inputs[0])
    if line.source != node.inputs[0]:
        return None
    inner, outer = node.activation.components, other.components
    fits = len(inner) == len(line.components) and len(outer) == len(outer[0]) == 1
    if not fits or (len(inner) > 1 and block_axis(node) != line.axis % len(node.shape)):
        return None
    factor = through_zero(other)
    pairs = zip(line.components, inner, strict=True)
    if factor is None:
        return made_of(builder, line, [_mish(one, soft, outer[0][0]) for one, soft in pairs])
    scaled = [(one, _times(factor, part)) for one, part in pairs]
    return made_of(builder, line, [None if gate is None else gated(one, gate, tolerance) for one, gate in scaled])


def _times(factor: float, component: Component) -> Component | None:
    """A multiple of a component, if no factor is rounded."""
    scaled = tuple(replace(term, coefficient=factor * term.coefficient) for term in component)
    pairs = zip(scaled, component, strict=True)
    exact = all(Fraction(a.coefficient) == Fraction(factor) * Fraction(b.coefficient) for a, b in pairs)
    return scaled if exact else None


def _mish(line: Component, inner: Component, tanh: Term) -> tuple[Term, bool] | None:
    """r (s t + o) * c tanh(softplus(s t + o)) = c r mish(s t + o), the softplus being a node."""
    known = _line(line)
    if len(inner) != 1 or known is None:
        return None
    (soft,) = inner
    plain = (tanh.function, tanh.scale, tanh.offset) == ("tanh", 1.0, 0.0)
    if (soft.function, soft.coefficient, *soft.parameters) != ("softplus", 1.0, 1.0) or not plain:
        return None
    ratio = _ratio(known, Fraction(soft.scale), Fraction(soft.offset))
    return None if ratio is None else rounded("mish", Fraction(tanh.coefficient) * ratio, soft.scale, soft.offset)


#: Relative error of a constant that was computed in a few operations, e.g. sqrt(2 / pi).
ROUNDING = 2.0**-48


Line = tuple[Fraction, Fraction]
