"""Roots, lengths and variances of numbers that carry an error."""

from __future__ import annotations

import math
from typing import Any

from lipbridge.frontend.computed.arithmetic import (
    Rule,
    axes_of,
    div,
    mean,
    mul,
    operand,
    sqrt,
    sub,
    total,
)
from lipbridge.frontend.computed.entrywise import absolute, largest
from lipbridge.rounding.uncertain import Uncertain


def length_of(a: Any, ord: Any = 2, dim: Any = None, keepdim: bool = False, *, dtype: Any = None) -> Any:
    if not isinstance(a, Uncertain):
        return NotImplemented
    if ord in (2, 2.0):
        made = total(mul(a, a), dim, keepdim, dtype=dtype)
        return made if made is NotImplemented else sqrt(made)
    if ord in (1, 1.0):
        return total(absolute(a), dim, keepdim, dtype=dtype)
    return largest(absolute(a), axes_of(a.value, dim), keepdim) if ord == math.inf else NotImplemented


def norm(a: Any, p: Any = 2, dim: Any = None, keepdim: bool = False, *, dtype: Any = None) -> Any:
    return length_of(a, 2 if p is None else p, dim, keepdim, dtype=dtype)


def variance(a: Any, dim: Any = None, unbiased: Any = True, keepdim: bool = False, *, correction: Any = None) -> Any:
    if not isinstance(a, Uncertain):
        return NotImplemented
    if isinstance(unbiased, bool) and correction is None:
        correction = 1 if unbiased else 0
    n = math.prod(a.value.shape[axis] for axis in axes_of(a.value, dim))
    divisor = n - float(1 if correction is None else correction)
    if divisor <= 0:
        return NotImplemented
    away = sub(a, mean(a, dim, True))
    return div(total(mul(away, away), dim, keepdim), divisor)


def deviation(*args: Any, **kwargs: Any) -> Any:
    found = variance(*args, **kwargs)
    return found if found is NotImplemented else sqrt(found)


def with_mean(rule: Rule) -> Rule:
    def both(a: Any, dim: Any = None, *args: Any, keepdim: bool = False, **kwargs: Any) -> Any:
        found = rule(a, dim, *args, keepdim=keepdim, **kwargs)
        return found if found is NotImplemented else (found, mean(a, dim, keepdim))

    return both


def weight_norm(v: Any, g: Any, dim: int = 0) -> Any:
    rank = operand(v).value.ndim
    length = length_of(v, 2, [axis for axis in range(rank) if axis != dim % rank], True)
    return mul(v, div(g, length)), length
