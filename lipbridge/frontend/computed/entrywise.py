"""Functions entry by entry of numbers that carry an error."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from lipbridge.frontend.computed.arithmetic import (
    ULPS,
    Rule,
    add,
    div,
    error_of,
    mul,
    neg,
    operand,
    reciprocal,
    sqrt,
    with_error,
)
from lipbridge.rounding.scalars import TINY, UNIT
from lipbridge.rounding.uncertain import COVER, Uncertain, times_up


def absolute(a: Any) -> Uncertain:
    return Uncertain(operand(a).value.abs(), operand(a).error)


def steady(function: Callable[..., Tensor]) -> Rule:
    """A function of exact values that moves no farther than the largest move of its arguments."""

    def rule(*args: Any, **kwargs: Any) -> Any:
        values = [a.value if isinstance(a, Uncertain) else a for a in args]
        value = function(*values, **{k: v.value if isinstance(v, Uncertain) else v for k, v in kwargs.items()})
        errors = [a.error for a in (*args, *kwargs.values()) if isinstance(a, Uncertain) and a.error is not None]
        worst = torch.zeros_like(value)
        for error in errors:
            worst = torch.maximum(worst, error)
        return with_error(value, worst)

    return rule


def largest(a: Any, dim: Any, keepdim: bool) -> Uncertain:
    value = a.value.amax(dim, keepdim)
    return with_error(value, None if a.error is None else a.error.amax(dim, keepdim))


def amax(a: Any, dim: Any = (), keepdim: bool = False) -> Any:
    return largest(a, dim, keepdim) if isinstance(a, Uncertain) else NotImplemented


def amin(a: Any, dim: Any = (), keepdim: bool = False) -> Any:
    return neg(largest(neg(a), dim, keepdim)) if isinstance(a, Uncertain) else NotImplemented


def smooth(
    function: Callable[[Tensor], Tensor],
    steepest: float,
    scale: Callable[[Tensor], Tensor] | None = None,
    least: float = TINY,
) -> Rule:
    """A function of slopes up to ``steepest``, computed to a few units in the last place of ``scale`` (of itself).

    ``least`` is what may be lost where an exponential on the way underflows, or overflows.
    """

    def rule(a: Any) -> Uncertain:
        x = operand(a)
        value = function(x.value)
        own = ULPS * (value.abs() if scale is None else scale(x.value)) + 2.0 * least
        own = torch.where(torch.isfinite(value), own, torch.inf)
        return with_error(value, own, None if x.error is None else steepest * x.error)

    return rule


def exp(a: Any) -> Uncertain:
    x = operand(a)
    value = x.value.exp()
    own = torch.where(x.value == 0, 0.0, ULPS * value + TINY)
    moved = None if x.error is None else times_up(value + own, torch.expm1(x.error)) * (1.0 + ULPS)
    return with_error(value, torch.where(torch.isfinite(value), own, torch.inf), moved)


def log(a: Any) -> Uncertain:
    x = operand(a)
    value = x.value.log()
    own = torch.where(torch.isfinite(value), ULPS * value.abs() + torch.where(x.value == 1, 0.0, TINY), torch.inf)
    moved = None
    if x.error is not None:
        least = (x.value - x.error) * (1.0 - 4.0 * UNIT)
        moved = torch.where(x.error > 0, torch.where(least > 0, x.error / least, torch.inf), 0.0)
    return with_error(value, own, moved)


def logarithm_of_one_plus(a: Any) -> Uncertain:
    """log(1 + t), as near to zero as t is."""
    x = operand(a)
    value = x.value.log1p()
    own = torch.where(torch.isfinite(value), ULPS * value.abs() + TINY, torch.inf)
    least = (x.value - error_of(x) + 1.0) * (1.0 - 8.0 * UNIT)
    moved = torch.where(least > 2.0**-40, error_of(x) / (least - 2.0**-48) + TINY, torch.inf)
    return with_error(value, own, torch.where(error_of(x) > 0, moved, 0.0))


def soft_maximum(a: Any, b: Any) -> Uncertain:
    """log(exp x + exp y), of slopes that add up to one."""
    x, y = operand(a), operand(b)
    value = torch.logaddexp(x.value, y.value)
    larger, gap = torch.maximum(x.value, y.value), (x.value - y.value).abs()
    own = ULPS * (larger.abs() + torch.log1p(torch.exp(-gap)) + torch.where(gap > 0, gap * torch.exp(-gap), 0.0))
    worst = torch.zeros_like(value)
    for error in (x.error, y.error):
        worst = worst if error is None else torch.maximum(worst, error)
    return with_error(value, torch.where(torch.isfinite(value), own + TINY, torch.inf), worst)


def power(a: Any, b: Any) -> Any:
    if isinstance(b, Uncertain) and b.error is None and b.value.numel() == 1 and b.value.ndim <= operand(a).value.ndim:
        b = float(b.value)
    if isinstance(b, Tensor) and not b.is_floating_point() and not b.is_complex():
        b = operand(b)
    if isinstance(b, bool) or not isinstance(b, int | float):
        return (
            NotImplemented
            if not (isinstance(b, Uncertain) and operand(a).error is None and b.error is None)
            else _pow(a, b)
        )
    exact: Mapping[float, Callable[[Any], Any]] = {
        0.5: sqrt,
        -0.5: lambda t: reciprocal(sqrt(t)),
        -1.0: reciprocal,
        1.0: operand,
        2.0: lambda t: mul(t, t),
        3.0: lambda t: mul(mul(t, t), t),
        -2.0: lambda t: reciprocal(mul(t, t)),
    }
    if float(b) in exact:
        return exact[float(b)](a)
    return _pow(a, b) if operand(a).error is None else _moved_power(operand(a), float(b))


def _moved_power(x: Uncertain, exponent: float) -> Any:
    """A power of what is uncertain: whole ones as products, others by the largest slope that the base can have."""
    if exponent in range(65):
        made = Uncertain(torch.ones_like(x.value))
        for _ in range(int(exponent)):
            made = mul(made, x)
        return made
    if abs(exponent) > 64.0:
        return NotImplemented
    error = error_of(x)
    ends = [((x.value + side * error) * (1.0 + side * 4.0 * UNIT)) ** (exponent - 1.0) for side in (-1.0, 1.0)]
    steepest = abs(exponent) * torch.maximum(*ends) * COVER
    moved = torch.where((x.value - error > 0) & torch.isfinite(steepest), times_up(steepest + TINY, error), torch.inf)
    made = _pow(x, exponent)
    return with_error(made.value, made.error, torch.where(error > 0, moved, 0.0))


def _pow(a: Any, b: Any) -> Uncertain:
    value = torch.pow(operand(a).value, operand(b).value)
    return with_error(value, torch.where(torch.isfinite(value), ULPS * value.abs() + TINY, torch.inf))


def where(condition: Any, a: Any, b: Any) -> Any:
    if not isinstance(condition, Tensor):
        return NotImplemented
    x, y = operand(a), operand(b)
    zero = torch.zeros((), dtype=torch.float64, device=x.value.device)
    errors = [zero if t.error is None else t.error for t in (x, y)]
    return with_error(torch.where(condition, x.value, y.value), torch.where(condition, errors[0], errors[1]))


def cast_of(a: Any, *args: Any, **kwargs: Any) -> Any:
    """A cast to another dtype, which rounds as the module does; of what is uncertain by one unit more."""
    dtype = kwargs.get("dtype")
    if not isinstance(a, Uncertain) or a.error is None or dtype is None or not dtype.is_floating_point:
        return NotImplemented
    value = a.value.to(dtype).to(torch.float64)
    away = 2.0 * torch.finfo(dtype).eps * (value.abs() + a.error) + 2.0 * torch.finfo(dtype).smallest_normal
    return a if dtype == torch.float64 else with_error(value, a.error, away)


def rsqrt(a: Any) -> Uncertain:
    return reciprocal(sqrt(a))


def squared(a: Any) -> Uncertain:
    return mul(a, a)


def addcmul(c: Any, a: Any, b: Any, *, value: Any = 1) -> Uncertain:
    return add(c, mul(a, b), value)


def addcdiv(c: Any, a: Any, b: Any, *, value: Any = 1) -> Uncertain:
    return add(c, div(a, b), value)
