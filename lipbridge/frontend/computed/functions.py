"""Further operations on constants: activations, softmax, running sums, convolutions, orders and scattered sums.

They follow :mod:`lipbridge.frontend.computed.rules`: a value, and a bound of how far the exact result may be from it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from lipbridge.errors import NumericalFailure
from lipbridge.frontend.computed.arithmetic import (
    ULPS,
    Rule,
    add,
    div,
    dot,
    each,
    error_of,
    many_terms,
    moderate,
    mul,
    operand,
    sub,
    total,
    with_error,
)
from lipbridge.frontend.computed.entrywise import logarithm_of_one_plus, smooth, steady
from lipbridge.frontend.computed.rules import RULES
from lipbridge.rounding.scalars import TINY, UNIT, gamma
from lipbridge.rounding.uncertain import Uncertain

#: More than the product of an exponential that underflows, or overflows below one, and the number that it is of.
_FLUSHED = 2.0**-1010


# --- activations ------------------------------------------------------------------------------------------------------


def _leaky(a: Any, slope: Any = 0.01) -> Any:
    x = operand(a)
    return _by_side(x, x, mul(x, slope))


def _by_side(x: Uncertain, right: Uncertain, left: Uncertain) -> Uncertain:
    """One function right of zero and one left of it, which meet there; both are steep at most as their errors say."""
    value = torch.where(x.value > 0, right.value, left.value)
    own, other = error_of(right), error_of(left)
    undecided = x.value.abs() <= error_of(x)
    chosen = torch.where(x.value > 0, own, other)
    return with_error(value, torch.where(undecided & (error_of(x) > 0), own + other, chosen))


def _prelu(a: Any, slopes: Any) -> Any:
    x = operand(a)
    return _by_side(x, x, mul(x, slopes))


def _left_of_elu(alpha: float) -> Callable[[Tensor], Tensor]:
    def left(t: Tensor) -> Tensor:
        return alpha * torch.expm1(torch.clamp(t, max=0.0))

    return left


def _elu(a: Any, alpha: Any = 1.0, scale: Any = 1.0, input_scale: Any = 1.0) -> Any:
    x = operand(a)
    if input_scale != 1.0:
        return NotImplemented
    left = smooth(_left_of_elu(float(alpha)), abs(float(alpha)))(x)
    made = _by_side(x, x, left)
    return made if scale == 1.0 else mul(made, scale)


def _softplus(a: Any, beta: Any = 1.0, threshold: Any = 20.0) -> Any:
    """log(1 + exp(beta t)) / beta, and t beyond the threshold: what lies within its error of the jump is unknown."""
    x = operand(a)
    steep = x.value * float(beta)
    value = F.softplus(x.value, float(beta), float(threshold))
    # The rounding of beta t moves the exponential by as many units as beta t is large.
    own = ULPS * (1.0 + steep.abs().clamp_max(1e3)) * value.abs() + TINY + TINY / abs(float(beta))
    jump = (steep - float(threshold)).abs() <= error_of(x) * (2.0 * abs(float(beta))) + UNIT * 2.0 * abs(threshold)
    own = torch.where(torch.isfinite(value) & ~jump, own, torch.inf)
    return with_error(value, own, x.error)


def _size(t: Tensor) -> Tensor:
    return t.abs()


def _gelu(a: Any, approximate: str = "none") -> Any:
    def gelu(t: Tensor) -> Tensor:
        return F.gelu(t, approximate=approximate)

    return smooth(gelu, 1.15, _size, _FLUSHED)(a)


def _less_one(a: Any) -> Any:
    """exp(t) - 1, as near to zero as t is."""
    x = operand(a)
    value = x.value.expm1()
    own = torch.where(torch.isfinite(value), ULPS * value.abs() + TINY, torch.inf)
    moved = None if x.error is None else (value.abs() + 1.0) * torch.expm1(x.error) * (1.0 + 4.0 * ULPS)
    return with_error(value, own, moved)


def _log_sigmoid(a: Any) -> Any:
    found = smooth(F.logsigmoid, 1.0)(a)
    return found, found.value.new_zeros(0)


def _hardsigmoid(a: Any) -> Any:
    return smooth(F.hardsigmoid, 1.0, lambda t: t.abs() + 1.0)(a)


# --- softmax and running sums -----------------------------------------------------------------------------------------


def _shifted(a: Any, dim: int) -> tuple[Uncertain, Uncertain]:
    """Entries minus the largest one along an axis, and that one: which number is taken away changes nothing."""
    x = operand(a)
    largest = Uncertain(x.value.amax(dim, keepdim=True))
    return sub(x, largest), largest


def _softmax(a: Any, dim: int, half_to_float: bool = False) -> Any:
    if half_to_float or not isinstance(a, Uncertain) or not a.value.ndim:
        return NotImplemented
    powers = RULES["exp"](_shifted(a, dim)[0])
    return div(powers, total(powers, dim, True))


def _safe_softmax(a: Any, dim: int, dtype: Any = None) -> Any:
    return _softmax(a, dim) if dtype is None else NotImplemented


def _log_sum(a: Any, dim: Any, keepdim: bool = False) -> Any:
    dims: Sequence[int] = cast(Any, dim) if isinstance(dim, list | tuple) else [dim]
    if not isinstance(a, Uncertain) or len(dims) != 1 or not a.value.ndim:
        return NotImplemented
    shifted, largest = _shifted(a, dims[0])
    made = add(RULES["log"](total(RULES["exp"](shifted), dims[0], True)), largest)
    return made if keepdim else each(made, lambda t: t.squeeze(dims[0]))


def _log_softmax(a: Any, dim: int, half_to_float: bool = False) -> Any:
    if half_to_float or not isinstance(a, Uncertain) or not a.value.ndim:
        return NotImplemented
    shifted, _ = _shifted(a, dim)
    return sub(shifted, RULES["log"](total(RULES["exp"](shifted), dim, True)))


def _running_sum(a: Any, dim: int, *, dtype: Any = None) -> Any:
    if dtype not in (None, torch.float64) or not isinstance(a, Uncertain) or not a.value.ndim:
        return NotImplemented
    sizes = a.value.abs().cumsum(dim)
    moved = None if a.error is None else a.error.cumsum(dim) * moderate(a.value.shape[dim])
    return many_terms(a.value.cumsum(dim), sizes, a.value.shape[dim], [a.value], moved)


def _trace(a: Any) -> Any:
    return total(each(operand(a), lambda t: t.diagonal()), [0])


def _lerp(a: Any, b: Any, weight: Any) -> Any:
    return add(a, mul(sub(b, a), weight))


def _addr(c: Any, a: Any, b: Any, *, beta: Any = 1, alpha: Any = 1) -> Any:
    outer = mul(mul(each(operand(a), lambda t: t[:, None]), each(operand(b), lambda t: t[None])), alpha)
    return add(mul(c, beta), outer)


# --- convolutions -----------------------------------------------------------------------------------------------------


def _convolution(x: Any, w: Any, b: Any, *geometry: Any) -> Any:
    if not isinstance(x, Uncertain) or not isinstance(w, Uncertain):
        return NotImplemented

    def by(values: Tensor, kernel: Tensor) -> Tensor:
        return cast(Tensor, torch.ops.aten.convolution(values, kernel, None, *geometry))

    transposed, groups = bool(geometry[3]), int(geometry[5])
    channels = w.value.shape[0] // groups if transposed else w.value.shape[1]
    terms = channels * math.prod(w.value.shape[2:])
    sizes = by(x.value.abs(), w.value.abs())
    parts: list[Tensor | None] = [None if w.error is None else by(x.value.abs(), w.error)]
    if x.error is not None:
        parts.append(by(x.error, w.value.abs() + error_of(w)))
    moved = [part * moderate(terms) + terms * 2.0 * TINY for part in parts if part is not None]
    made = many_terms(by(x.value, w.value), sizes, terms, [x.value, w.value], *moved)
    return made if b is None else add(made, each(operand(b), lambda t: t.reshape(-1, *(1,) * (w.value.ndim - 2))))


def _averaging(function: Callable[..., Tensor]) -> Rule:
    """Sums, or averages, of some entries each."""

    def rule(a: Any, *args: Any, **kwargs: Any) -> Any:
        if not isinstance(a, Uncertain):
            return NotImplemented
        value, sizes, moved = (function(t, *args, **kwargs) for t in (a.value, a.value.abs(), error_of(a)))
        lost = gamma(a.value.numel() + 4) * sizes + 2.0 * TINY
        moved = moved * moderate(a.value.numel() + 4) + (moved > 0) * TINY
        return with_error(value, torch.where(torch.isfinite(value), lost, torch.inf), moved)

    return rule


# --- averages, steps and orders --------------------------------------------------------------------------------------


def _stepping(function: Callable[[Tensor], Tensor]) -> Rule:
    """A function that never falls, and is exact: it may jump where its argument is uncertain."""

    def rule(a: Any, **kwargs: Any) -> Any:
        if not isinstance(a, Uncertain) or any(kwargs.values()):
            return NotImplemented
        value = function(a.value)
        if a.error is None:
            return Uncertain(value)
        ends = (
            torch.nextafter(a.value + side * a.error, side * torch.full_like(a.error, torch.inf)) for side in (-1, 1)
        )
        moves = [(function(end) - value).abs() for end in ends]
        return with_error(value, torch.where(a.error > 0, torch.maximum(*moves) * (1.0 + 4.0 * UNIT), 0.0))

    return rule


def _ordered(function: Callable[..., Any]) -> Rule:
    """Sorted numbers: each moves no farther than the largest error along the axis."""

    def rule(a: Any, *args: Any, **kwargs: Any) -> Any:
        if not isinstance(a, Uncertain):
            return NotImplemented
        found = function(a.value, *args, **kwargs)
        if a.error is None:
            return Uncertain(found) if isinstance(found, Tensor) else (Uncertain(found[0]), *found[1:])
        worst = a.error.max()
        if isinstance(found, Tensor):
            return with_error(found, worst.expand(found.shape))
        return (with_error(found[0], worst.expand(found[0].shape)), *found[1:])

    return rule


def _extreme(function: Callable[..., Any], both: Callable[..., Any]) -> Rule:
    """``max`` and ``min``: of all entries, along an axis, or of two tensors."""
    along = _ordered(function)

    def rule(a: Any, *args: Any, **kwargs: Any) -> Any:
        if args and isinstance(args[0], Uncertain | Tensor):
            return steady(both)(a, *args, **kwargs)
        return along(a, *args, **kwargs)

    return rule


# --- entries that are put, or added, at places ------------------------------------------------------------------------


def _put(a: Any, places: Any, b: Any, accumulate: bool = False) -> Any:
    x, y = operand(a), operand(b)
    spread = [x.value.index_put(places, y.value, accumulate), error_of(x).index_put(places, error_of(y), accumulate)]
    if not accumulate:
        return with_error(*spread)
    sizes = x.value.abs().index_put(places, y.value.abs(), True)
    terms = y.value.numel() * math.prod(x.value.shape) + 1
    return many_terms(spread[0], sizes, terms, [_both(x, y)], spread[1] * moderate(terms))


def _both(x: Uncertain, y: Uncertain) -> Tensor:
    return torch.cat([x.value.flatten(), y.value.flatten()])


def _added(name: str) -> Rule:
    def rule(a: Any, dim: int, index: Tensor, b: Any, *, alpha: Any = 1) -> Any:
        x, y = operand(a), operand(b if alpha == 1 else mul(b, alpha))

        def by(values: Tensor, more: Tensor) -> Tensor:
            return cast(Tensor, getattr(values, name)(dim, index, more))

        terms = y.value.numel() + 1
        sizes, moved = by(x.value.abs(), y.value.abs()), by(error_of(x), error_of(y))
        return many_terms(by(x.value, y.value), sizes, terms, [_both(x, y)], moved * moderate(terms))

    return rule


# --- views with strides -----------------------------------------------------------------------------------------------


def _alias(a: Any, size: Sequence[int], stride: Sequence[int]) -> Any:
    x = operand(a)
    value = cast(Tensor, torch.ops.aten._reshape_alias(x.value, size, stride))
    return Uncertain(value, None if x.error is None else x.error.reshape(*size))


def _strided(a: Any, size: Sequence[int], stride: Sequence[int], offset: int | None = None) -> Any:
    """Of exact numbers; the errors of others lie elsewhere in memory.

    Raises:
        NumericalFailure: if there are errors.
    """
    x = operand(a)
    if x.error is not None:
        raise NumericalFailure("A constant that is computed is read with strides; write it with indices, or store it.")
    return Uncertain(x.value.as_strided(size, stride, offset))


_FURTHER: dict[str, Rule] = {
    "leaky_relu": _leaky,
    "_prelu_kernel": _prelu,
    "elu": _elu,
    "softplus": _softplus,
    "gelu": _gelu,
    "silu": smooth(F.silu, 1.1, _size, _FLUSHED),
    "mish": smooth(F.mish, 1.1, _size, _FLUSHED),
    "log_sigmoid_forward": _log_sigmoid,
    "hardsigmoid": _hardsigmoid,
    "hardtanh": steady(F.hardtanh),
    "fmax": steady(torch.maximum),
    "fmin": steady(torch.minimum),
    "log1p": logarithm_of_one_plus,
    "_softmax": _softmax,
    "_safe_softmax": _safe_softmax,
    "_log_softmax": _log_softmax,
    "logsumexp": _log_sum,
    "cumsum": _running_sum,
    "trace": _trace,
    "lerp": _lerp,
    "addr": _addr,
    "vdot": dot,
    "convolution": _convolution,
    "avg_pool1d": _averaging(F.avg_pool1d),
    "avg_pool2d": _averaging(torch.ops.aten.avg_pool2d),
    "_adaptive_avg_pool2d": _averaging(torch.ops.aten._adaptive_avg_pool2d),
    "floor": _stepping(torch.floor),
    "ceil": _stepping(torch.ceil),
    "round": _stepping(torch.round),
    "trunc": _stepping(torch.trunc),
    "sign": _stepping(torch.sign),
    "expm1": _less_one,
    "sort": _ordered(torch.sort),
    "topk": _ordered(torch.topk),
    "max": _extreme(torch.max, torch.maximum),
    "min": _extreme(torch.min, torch.minimum),
    "index_put": _put,
    "index_add": _added("index_add"),
    "scatter_add": _added("scatter_add"),
    "_reshape_alias": _alias,
    "as_strided": _strided,
}
#: All rules, by the name of the operation.
ALL: Mapping[str, Rule] = {**RULES, **_FURTHER}

__all__ = ["ALL"]
