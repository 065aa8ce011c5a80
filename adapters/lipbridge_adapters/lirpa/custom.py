"""Custom bounds of lipbridge's activations for a plain user of auto_LiRPA: one call, and ``BoundedModule`` knows them.

    from lipbridge_adapters.lirpa import custom

    auto_LiRPA = custom.register()
    bounded = auto_LiRPA.BoundedModule(model, x)

A polyactivation is one operator then, bounded by the lines of all its components together: for the backward
coefficients a the function a_1 g_1(t) + ... + a_K g_K(t) of one number is enclosed, not each component by itself. For
|t|, (t, |t|) and CReLU it is linear on both sides of zero; for sin and cos of one frequency it is one sine. MaxMin and
GroupSort of pairs are means and |a - b|. All by intervals (IBP), by CROWN and by CROWN-IBP.

The lines hold in exact arithmetic; what the tool computes with them is rounded, and nothing of it is proved. Source:
ours; the elementary enclosures are those of Zhang et al. 2018 (CROWN).
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import threading
from collections.abc import Callable, Generator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lipbridge.activations.activation import Activation, Term
from lipbridge.activations.modules import Abs, CReLU, IdentityAbs, IdentityAbsL2, Sin, Sin2Pair, SinCos
from lipbridge.activations.registry import activation
from lipbridge.errors import UnsupportedProblem
from lipbridge.layers.layers import GroupSort, MaxMin
from lipbridge_adapters.lirpa import shim

#: The modules whose bounds are joint, by the name of their row in the registry of activations.
MODULES: dict[str, type[nn.Module]] = {
    "abs": Abs,
    "crelu": CReLU,
    "identity_abs": IdentityAbs,
    "identity_abs_l2": IdentityAbsL2,
    "sin": Sin,
    "sincos": SinCos,
    "sin2_pair": Sin2Pair,
}
_lock = threading.RLock()


def register() -> Any:
    """Teach the installed auto_LiRPA lipbridge's activations, and return the package.

    From then on its ``BoundedModule`` turns every module of :data:`MODULES`, ``MaxMin`` and ``GroupSort(2)`` into one
    operator, and takes our enclosures of sin, cos and abs wherever they stand, since its own lines for sin and cos can
    be violated and those for abs fail behind convolutions. The modules themselves stay as they are, and so does what
    else reads them. Calling it again changes nothing.

    Sorting in larger groups is an error of ``BoundedModule`` then (:class:`UnsupportedProblem`).

    Raises:
        MissingDependency: without auto_LiRPA, with the command that installs it.

    Law: no value of the model in the ball is outside the bounds of IBP, CROWN-IBP and CROWN, up to rounding.
    """
    tool = shim.load()
    with _lock:
        convert = tool.BoundedModule._convert_nodes
        if not getattr(convert, "lipbridge", False):
            for name, bound in operators(tool).items():
                tool.register_custom_op(name, bound)

            @functools.wraps(convert)
            def with_operators(*args: Any, **kwargs: Any) -> Any:
                with _as_operators():
                    return convert(*args, **kwargs)

            with_operators.lipbridge = True  # type: ignore[attr-defined]
            tool.BoundedModule._convert_nodes = with_operators
    return tool


def unregister() -> None:
    """Undo :func:`register`; without it nothing changes."""
    tool = shim.load()
    with _lock:
        convert = tool.BoundedModule._convert_nodes
        if getattr(convert, "lipbridge", False):
            tool.BoundedModule._convert_nodes = convert.__wrapped__
            for name in operators(tool):
                tool.unregister_custom_op(name)


@functools.cache
def operators(tool: Any) -> dict[str, Any]:
    """The classes of bounds by the operator's name, for ``register_custom_op`` or the argument ``custom_ops``."""
    base: Any = importlib.import_module(f"{tool.__name__}.operators").Bound
    named = {f"lipbridge::{name}": _curve_bounds(base, activation(name)) for name in MODULES}
    pairs = {f"lipbridge::{kind.name}": _pair_bounds(base, kind) for kind in _PAIRS}
    differences = {f"lipbridge::{kind.name}_difference": _difference_bounds(base, kind) for kind in _PAIRS}
    return {**shim.operators(tool), **named, **pairs, **differences, "onnx::Abs": named["lipbridge::abs"]}


# --- the functions ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Curve:
    """Components ``constant + line t + kink |t| + sine sin(w t) + cosine cos(w t)`` of one frequency w, row by row."""

    components: tuple[tuple[float, float, float, float, float], ...]
    frequency: float

    @property
    def kinked(self) -> bool:
        return any(row[2] for row in self.components)

    @property
    def waving(self) -> bool:
        return any(row[3] or row[4] for row in self.components)


def curve_of(facts: Activation) -> Curve:
    """The components of an activation that is made of lines, of kinks at zero, and of sines of one frequency.

    Raises:
        UnsupportedProblem: for any other.
    """
    frequencies: set[float] = set()
    rows: list[tuple[float, float, float, float, float]] = []
    for component in facts.components:
        total = (0.0,) * 5
        for term in component:
            row, frequency = _row_of(term, facts.name)
            total = tuple(a + b for a, b in zip(total, row, strict=True))
            frequencies |= {frequency} - {0.0}
        constant, line, kink, sine, cosine = total
        rows.append((constant, line, kink, sine, cosine))
    if len(frequencies) > 1:
        raise UnsupportedProblem(f"{facts.name} has sines of several frequencies")
    return Curve(tuple(rows), frequencies.pop() if frequencies else 1.0)


def _row_of(term: Term, name: str) -> tuple[tuple[float, ...], float]:
    c, s = term.coefficient, term.scale
    sides = term.sides()
    if sides is not None:
        left, right = sides
        return (float(term.constant), (left + right) / 2, (right - left) / 2, 0.0, 0.0), 0.0
    if term.offset == 0.0 and term.function == "sin":
        return (0.0, 0.0, 0.0, c if s > 0 else -c, 0.0), abs(s)
    if term.offset == 0.0 and term.function == "cos":
        return (0.0, 0.0, 0.0, 0.0, c), abs(s)
    if term.offset == 0.0 and term.function == "sin_squared":  # (1 - cos 2u) / 2
        return (c / 2, 0.0, 0.0, 0.0, -c / 2), 2 * abs(s)
    raise UnsupportedProblem(f"{name} holds {term.function}, which has no joint bounds")


def upper_lines(curve: Curve, weights: list[Tensor], low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
    """Slope and intercept of a line above ``sum of weights_k g_k`` on [low, high].

    Args:
        curve: the components g.
        weights: one for each component, of shapes that broadcast with ``low``.
        low, high: the interval of each number.

    Law: the line is above the sum all over the interval, and touches it.
    """
    constant, line, kink, sine, cosine = (
        sum((row[i] * weight for row, weight in zip(curve.components, weights, strict=True)), torch.zeros_like(low))
        for i in range(5)
    )
    slope, intercept = line, constant
    if curve.kinked:
        below, above = low.clamp(max=0.0), high.clamp(min=0.0)
        crosses = (low < 0.0) & (high > 0.0)
        width = torch.where(crosses, above - below, torch.ones_like(low))
        side = torch.where(high > -low, 1.0, -1.0).to(low)  # the steeper side; the right one if there is one only
        chord = torch.where(crosses, (above + below) / width, side)
        height = torch.where(crosses, -2.0 * below * (above / width), torch.zeros_like(low))
        slope = slope + kink * torch.where(kink > 0.0, chord, side)
        intercept = intercept + kink.clamp(min=0.0) * height
    if curve.waving:
        amplitude, phase = torch.hypot(sine, cosine), torch.atan2(cosine, sine)
        w = curve.frequency
        k, b = shim.upper_line(w * low + phase, w * high + phase)
        slope = slope + amplitude * k * w
        intercept = intercept + amplitude * (k * phase + b)
    return slope, intercept


def component_range(facts: Activation, curve: Curve, index: int, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
    """The least and the largest value of a component on [low, high], exactly but for rounding."""

    def value(t: Tensor) -> Tensor:
        return facts.parts(t)[index]

    ends = value(low), value(high)
    falls, rises = facts.slopes[index]
    if rises <= 0.0 or falls >= 0.0:
        return (ends[0], ends[1]) if falls >= 0.0 else (ends[1], ends[0])
    constant, line, _, sine, cosine = curve.components[index]
    if sine or cosine:
        if line:
            raise UnsupportedProblem(f"{facts.name} is neither monotone nor a sine")
        weight = low.new_tensor((sine, cosine))
        amplitude, phase = torch.hypot(*weight), torch.atan2(weight[1], weight[0])
        first, last = curve.frequency * low + phase, curve.frequency * high + phase
        top, bottom = shim.sine_maximum(first, last), -shim.sine_maximum(-last, -first)
        return constant + amplitude * bottom, constant + amplitude * top
    middle = torch.zeros_like(low).clamp(low, high)  # where the kink is, if it is inside
    points = torch.stack([*ends, value(middle)])
    return points.amin(0), points.amax(0)


# --- the tool's protocol ---------------------------------------------------------------------------------------------


def _dense(coefficients: Any, shape: torch.Size) -> Tensor:
    """The tool's backward coefficients as a tensor ``(spec, batch, *shape[1:])``, whatever form it keeps them in."""
    if isinstance(coefficients, Tensor):
        return coefficients
    if type(coefficients).__name__ == "Patches":
        return coefficients.to_matrix(shape).transpose(0, 1)
    if type(coefficients).__name__ == "eyeC":
        spec, batch, *rest = coefficients.shape
        eye = torch.eye(spec, device=coefficients.device)
        return eye.reshape(spec, 1, *rest).expand(-1, batch, *[-1] * len(rest))
    raise NotImplementedError(f"coefficients of type {type(coefficients).__name__}")


def _summed(bias: Tensor) -> Tensor:
    return bias.flatten(2).sum(2) if bias.ndim > 2 else bias


Lines = Callable[[Tensor], tuple[Any, Tensor]]


def _both(lA: Any, uA: Any, shape: torch.Size, above: Lines) -> tuple[list[tuple[Any, Any]], Any, Any]:
    """What ``bound_backward`` returns, by the lines above: those below are the negative's.

    ``above(A)`` gives the coefficients of each input, and the intercepts.
    """
    found: list[tuple[Any, Any]] = []
    for coefficients, sign in ((lA, -1.0), (uA, 1.0)):
        if coefficients is None:
            found.append((None, 0))
            continue
        inputs, bias = above(sign * _dense(coefficients, shape))
        found.append(([sign * part for part in inputs], sign * _summed(bias)))
    (lower, lower_bias), (upper, upper_bias) = found
    count = len(lower if lower is not None else upper)
    pairs = [(lower and lower[i], upper and upper[i]) for i in range(count)]
    return pairs, lower_bias, upper_bias


def _curve_bounds(base: Any, facts: Activation) -> Any:
    """The class of an activation's bounds."""
    curve = curve_of(facts)

    class CurveBounds(base):
        def __init__(self, attr: Any = None, inputs: Any = None, output_index: int = 0, options: Any = None) -> None:
            base.__init__(self, attr, inputs, output_index, options)
            self.requires_input_bounds = [0]
            self.axis = -1 if attr is None else int(attr.get("dim", -1))

        def forward(self, x: Tensor) -> Tensor:
            return torch.cat(facts.parts(x), self.axis)

        def interval_propagate(self, *v: Any) -> tuple[Tensor, Tensor]:
            low, high = v[0][0], v[0][1]
            ranges = [component_range(facts, curve, k, low, high) for k in range(facts.width)]
            return torch.cat([r[0] for r in ranges], self.axis), torch.cat([r[1] for r in ranges], self.axis)

        def bound_backward(self, last_lA: Any, last_uA: Any, x: Any, **_: Any) -> Any:
            axis = self.axis if self.axis < 0 else self.axis + 1

            def above(A: Tensor) -> tuple[list[Tensor], Tensor]:
                slope, intercept = upper_lines(curve, list(A.chunk(facts.width, axis)), x.lower[None], x.upper[None])
                return [slope], intercept

            return _both(last_lA, last_uA, self.output_shape, above)

    return CurveBounds


@dataclass(frozen=True)
class _Pairs:
    """How the channels are paired, and which of a pair's two places the maximum has."""

    name: str
    neighbours: bool
    first: bool

    def split(self, x: Tensor, axis: int) -> tuple[Tensor, Tensor]:
        """The first and the second of all pairs along an axis counted from 0."""
        if not self.neighbours:
            a, b = x.chunk(2, axis)
            return a, b
        both = x.reshape(*x.shape[:axis], -1, 2, *x.shape[axis + 1 :])
        return both.select(axis + 1, 0), both.select(axis + 1, 1)

    def join(self, a: Tensor, b: Tensor, axis: int) -> Tensor:
        return torch.stack([a, b], axis + 1).flatten(axis, axis + 1) if self.neighbours else torch.cat([a, b], axis)

    def placed(self, largest: Tensor, least: Tensor) -> Tensor:
        return self.join(largest, least, 1) if self.first else self.join(least, largest, 1)


_PAIRS = (_Pairs("max_min", neighbours=False, first=True), _Pairs("sorted_pairs", neighbours=True, first=False))
_KINK = Curve(((0.0, 0.0, 1.0, 0.0, 0.0),), 1.0)


def _difference_bounds(base: Any, kind: _Pairs) -> Any:
    """a - b of every pair: a node of its own, so that the tool bounds it as tightly as it can."""

    class Differences(base):
        def forward(self, x: Tensor) -> Tensor:
            a, b = kind.split(x, 1)
            return a - b

        def interval_propagate(self, *v: Any) -> tuple[Tensor, Tensor]:
            (a, b), (c, d) = kind.split(v[0][0], 1), kind.split(v[0][1], 1)
            return a - d, c - b

        def bound_backward(self, last_lA: Any, last_uA: Any, x: Any, **_: Any) -> Any:
            return _both(last_lA, last_uA, self.output_shape, lambda A: ([kind.join(A, -A, 2)], torch.zeros_like(A)))

    return Differences


def _pair_bounds(base: Any, kind: _Pairs) -> Any:
    """Maxima and minima of pairs, ``(a + b) / 2 +- |a - b| / 2``, of x and the differences in it."""

    class Pairs(base):
        def __init__(self, attr: Any = None, inputs: Any = None, output_index: int = 0, options: Any = None) -> None:
            base.__init__(self, attr, inputs, output_index, options)
            self.requires_input_bounds = [1]

        def forward(self, x: Tensor, difference: Tensor) -> Tensor:
            a, b = kind.split(x, 1)
            return kind.placed(torch.maximum(a, b), torch.minimum(a, b))

        def interval_propagate(self, *v: Any) -> tuple[Tensor, Tensor]:
            return self.forward(v[0][0], v[0][0]), self.forward(v[0][1], v[0][1])  # both rise in a and in b

        def bound_backward(self, last_lA: Any, last_uA: Any, x: Any, difference: Any, **_: Any) -> Any:
            def above(A: Tensor) -> tuple[list[Tensor], Tensor]:
                one, two = kind.split(A, 2)
                largest, least = (one, two) if kind.first else (two, one)
                mean = (largest + least) / 2
                weight = [(largest - least) / 2]
                slope, intercept = upper_lines(_KINK, weight, difference.lower[None], difference.upper[None])
                return [kind.join(mean, mean, 2), slope], intercept

            return _both(last_lA, last_uA, self.output_shape, above)

    return Pairs


# --- tracing ---------------------------------------------------------------------------------------------------------


class _Operator(torch.autograd.Function):
    """An activation as one node of the traced model."""

    @staticmethod
    def symbolic(g: Any, x: Any, name: str, dim: int) -> Any:
        made = g.op(f"lipbridge::{name}", x, dim_i=dim)
        sizes = x.type().sizes()
        if sizes is not None:
            sizes[dim] *= activation(name).width
        return made.setType(x.type().with_sizes(sizes))

    @staticmethod
    def forward(ctx: Any, x: Tensor, name: str, dim: int) -> Tensor:
        return torch.cat(activation(name).parts(x), dim)


class _Difference(torch.autograd.Function):
    """Differences of pairs as one node."""

    @staticmethod
    def symbolic(g: Any, x: Any, place: int) -> Any:
        made = g.op(f"lipbridge::{_PAIRS[place].name}_difference", x)
        sizes = x.type().sizes()
        if sizes is not None:
            sizes[1] //= 2
        return made.setType(x.type().with_sizes(sizes))

    @staticmethod
    def forward(ctx: Any, x: Tensor, place: int) -> Tensor:
        a, b = _PAIRS[place].split(x, 1)
        return a - b


class _Sorted(torch.autograd.Function):
    """Maxima and minima of pairs as one node, of the values and their differences."""

    @staticmethod
    def symbolic(g: Any, x: Any, difference: Any, place: int) -> Any:
        return g.op(f"lipbridge::{_PAIRS[place].name}", x, difference).setType(x.type())

    @staticmethod
    def forward(ctx: Any, x: Tensor, difference: Tensor, place: int) -> Tensor:
        a, b = _PAIRS[place].split(x, 1)
        return _PAIRS[place].placed(torch.maximum(a, b), torch.minimum(a, b))


def _forwards() -> dict[type[nn.Module], Callable[..., Tensor]]:
    """What modules do while the tool traces them."""

    def curve(name: str) -> Callable[..., Tensor]:
        return lambda module, z: _Operator.apply(z, name, getattr(module, "dim", -1))  # type: ignore[return-value]

    def pairs(place: int) -> Callable[..., Tensor]:
        return lambda module, x: _Sorted.apply(x, _Difference.apply(x, place), place)  # type: ignore[return-value]

    pair = pairs(1)

    def sorting(module: GroupSort, x: Tensor) -> Tensor:
        if module.group != 2:
            raise UnsupportedProblem(f"auto_LiRPA bounds the sorting of pairs, not that of GroupSort({module.group})")
        return pair(module, x)

    return {**{kind: curve(name) for name, kind in MODULES.items()}, MaxMin: pairs(0), GroupSort: sorting}


@contextlib.contextmanager
def _as_operators() -> Generator[None]:
    with _lock:
        before = {kind: kind.__dict__["forward"] for kind in _FORWARDS}
        for kind, forward in _FORWARDS.items():
            kind.forward = forward  # type: ignore[method-assign]
        try:
            yield
        finally:
            for kind, forward in before.items():
                kind.forward = forward


_FORWARDS = _forwards()

__all__ = ["MODULES", "Curve", "component_range", "curve_of", "operators", "register", "unregister", "upper_lines"]
