"""Sums and products of numbers that carry an error, with what the operation's own rounding adds."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, cast

import torch
from torch import Tensor

from lipbridge.rounding.outward import SMALLEST, is_power_of_two
from lipbridge.rounding.scalars import TINY, UNIT, gamma
from lipbridge.rounding.uncertain import COVER, Uncertain, times_up

#: More than the relative error of a function of the libraries.
ULPS = 2.0**-50


#: More than the relative error of a root.
ROOT = 4.0 * UNIT


#: More than the rounding of the few operations that an error is computed by, where none is a long sum.
_FEW = 1.0 + 2.0**-48


#: 1 / (1 + exp(-t)) is zero where exp(-t) overflows, though it is more than this only where it does not.
FLUSHED = 2.0**-1022


#: Products of numbers between these have errors that are doubles themselves.
_LEAST, _MOST = 2.0**-900, 2.0**900


Rule = Callable[..., Any]


def operand(x: Any) -> Uncertain:
    """An operand with its error; whole numbers and numbers of Python are exact."""
    if isinstance(x, Uncertain):
        return x
    if isinstance(x, Tensor):
        value = x.to(torch.float64)
        return with_error(value, (value.to(x.dtype) != x).to(torch.float64) * UNIT * value.abs() * 2.0)
    lost = abs(int(float(x)) - x) if isinstance(x, int) else 0
    return with_error(torch.tensor(float(x), dtype=torch.float64), torch.tensor(float(lost), dtype=torch.float64))


def with_error(value: Tensor, *errors: Tensor | None) -> Uncertain:
    """The value with the sum of some errors, rounded up; an error that is NaN is infinite."""
    total = torch.zeros_like(value)
    for error in errors:
        if error is not None:
            total = total + error.to(value.device)
    total = torch.where(total > 0, total * _FEW, total)
    total = torch.where(torch.isnan(total) | torch.isnan(value), torch.inf, total)
    return Uncertain(value, total if bool((total != 0).any()) else None)


def _size(x: Uncertain) -> Tensor:
    return x.value.abs() if x.error is None else x.value.abs() + x.error


def add(a: Any, b: Any, alpha: Any = 1) -> Uncertain:
    x, y = operand(a), operand(b)
    y = y if alpha == 1 else mul(y, alpha)
    value = x.value + y.value
    part = value - x.value
    lost = ((x.value - (value - part)) + (y.value - part)).abs()
    lost = torch.where(torch.isfinite(value), lost, torch.inf)
    return with_error(value, lost, x.error, y.error)


def sub(a: Any, b: Any, alpha: Any = 1) -> Uncertain:
    return add(a, neg(b), alpha)


def rsub(a: Any, b: Any, alpha: Any = 1) -> Uncertain:
    return sub(b, a, alpha)


def neg(a: Any) -> Uncertain:
    return Uncertain(-operand(a).value, operand(a).error)


def product_error(x: Tensor, y: Tensor, value: Tensor) -> Tensor:
    """|x y - fl(x y)|, exactly where nothing comes near the limits of float64, else a bound."""

    def halves(t: Tensor) -> tuple[Tensor, Tensor]:
        high = t * 134217729.0
        high = high - (high - t)
        return high, t - high

    (a, b), (c, d) = halves(x), halves(y)
    error = (b * d - (((value - a * c) - b * c) - a * d)).abs()
    sizes = [t.abs() for t in (x, y, value)]
    safe = torch.ones_like(value, dtype=torch.bool)
    for size in sizes:
        safe = safe & (size > _LEAST) & (size < _MOST)
    error = torch.where(safe, error, UNIT * value.abs() + TINY)
    normal = torch.isfinite(value) & (value.abs() > SMALLEST)
    plain = (x.abs() == 1) | (y.abs() == 1) | (normal & (is_power_of_two(x) | is_power_of_two(y)))
    error = torch.where((x == 0) | (y == 0) | plain, 0.0, error)
    return torch.where(torch.isfinite(value), error, torch.inf)


def mul(a: Any, b: Any) -> Uncertain:
    x, y = operand(a), operand(b)
    value = x.value * y.value
    parts = [product_error(*cast(Any, torch).broadcast_tensors(x.value, y.value, value))]
    if y.error is not None:
        parts.append(times_up(x.value.abs(), y.error))
    if x.error is not None:
        parts.append(times_up(x.error, _size(y)))
    return with_error(value, *parts)


def div(a: Any, b: Any, rounding_mode: Any = None) -> Any:
    if rounding_mode is not None:
        return NotImplemented
    x, y = operand(a), operand(b)
    value = x.value / y.value
    # The residual of a quotient that is exact is zero, and so is its error: x = value y.
    back = value * y.value
    lost = product_error(*cast(Any, torch).broadcast_tensors(value, y.value, back))
    exact = (back == x.value) & (lost == 0) & torch.isfinite(value) & ((value.abs() > SMALLEST) | (x.value == 0))
    own = torch.where(exact, 0.0, UNIT * value.abs() + TINY)
    parts = [torch.where(torch.isfinite(value), own, torch.inf)]
    if x.error is not None or y.error is not None:
        least = y.value.abs() if y.error is None else y.value.abs() - y.error
        moved = torch.zeros_like(value)
        if x.error is not None:
            moved = moved + x.error
        if y.error is not None:
            # A quotient that underflowed may be larger than its double by as much as the double is.
            size = value.abs() + ((value.abs() < SMALLEST) & (x.value != 0)).to(value.dtype) * TINY
            moved = moved + times_up(size, y.error)
        by = torch.where(moved > 0, moved / (least * (1.0 - 4.0 * UNIT)) + TINY, 0.0)
        parts.append(torch.where((least > 0) | (moved == 0), by, torch.inf))
    return with_error(value, *parts)


def reciprocal(a: Any) -> Uncertain:
    return div(1.0, a)


def _quantum(x: Tensor) -> float:
    """The largest power of two that divides all entries; infinite if there is none but zero, zero if it is tiny."""
    if not bool(torch.isfinite(x).all()):
        return 0.0
    mantissa, exponent = torch.frexp(x[x != 0])
    if not mantissa.numel():
        return math.inf
    whole = (mantissa.abs() * 2.0**53).to(torch.int64)
    bits = torch.log2((whole & -whole).to(torch.float64)).to(torch.int64)
    least = int((bits + exponent.to(torch.int64) - 53).min())
    return math.ldexp(1.0, least) if least > -1000 else 0.0


def dot(a: Any, b: Any) -> Uncertain:
    """A product of matrices, or of stacks of them, or of a matrix and a vector."""
    x, y = operand(a), operand(b)
    value = x.value @ y.value
    n = x.value.shape[-1]
    sizes = x.value.abs() @ y.value.abs()
    quanta = (_quantum(x.value), _quantum(y.value))
    step = quanta[0] * quanta[1] if math.isfinite(quanta[0] + quanta[1]) else math.inf
    if step > SMALLEST and bool((sizes * COVER < 2.0**53 * step).all()):
        parts = [torch.zeros_like(value)]
    else:
        parts = [torch.where(torch.isfinite(value), gamma(n + 1) * COVER * sizes + n * 2.0 * TINY, torch.inf)]
    if y.error is not None:
        parts.append(x.value.abs() @ y.error * COVER + n * 2.0 * TINY)
    if x.error is not None:
        parts.append(x.error @ _size(y) * COVER + n * 2.0 * TINY)
    return with_error(value, *parts)


def addmm(c: Any, a: Any, b: Any, *, beta: Any = 1, alpha: Any = 1) -> Uncertain:
    made = dot(a, b)
    made = made if alpha == 1 else mul(made, alpha)
    return add(c if beta == 1 else mul(c, beta), made)


def many_terms(value: Tensor, sizes: Tensor, n: int, factors: Sequence[Tensor], *errors: Tensor | None) -> Uncertain:
    """Sums of up to n products of one entry of each factor, of which ``sizes`` are the sums of their sizes."""
    step = math.prod(_quantum(factor) for factor in factors)
    if step > SMALLEST and bool((sizes * COVER < 2.0**53 * step).all()):
        lost = torch.zeros_like(value)
    else:
        underflow = 0.0 if len(factors) == 1 else n * 2.0 * TINY
        lost = torch.where(torch.isfinite(value), gamma(n + 1) * COVER * sizes + underflow, torch.inf)
    return with_error(value, lost, *errors)


def moderate(n: int) -> float:
    """What covers the rounding of a sum of n numbers that are not negative."""
    return 1.0 + 2.0 * gamma(n + 1)


def axes_of(x: Tensor, dim: Any) -> list[int]:
    if dim is None or dim == []:
        return list(range(x.ndim))
    dims = cast(list[int], dim) if isinstance(dim, list | tuple) else [int(dim)]
    return [axis % max(x.ndim, 1) for axis in dims]


def total(a: Any, dim: Any = None, keepdim: bool = False, *, dtype: Any = None) -> Any:
    """A sum over some axes."""
    if dtype not in (None, torch.float64) or not isinstance(a, Uncertain):
        return NotImplemented
    x, axes = a.value, axes_of(a.value, dim)
    if not x.ndim:
        return a
    value, sizes = x.sum(axes, keepdim=keepdim), x.abs().sum(axes, keepdim=keepdim)
    n = math.prod(x.shape[axis] for axis in axes)
    step = _quantum(x)
    exact = n <= 1 or (step > 0 and bool((sizes * COVER < 2.0**53 * step).all()))
    lost = torch.zeros_like(value) if exact else gamma(n) * COVER * sizes
    lost = torch.where(torch.isfinite(value), lost, torch.inf)
    return with_error(value, lost, None if a.error is None else a.error.sum(axes, keepdim=keepdim) * COVER)


def mean(a: Any, dim: Any = None, keepdim: bool = False, *, dtype: Any = None) -> Any:
    made = total(a, dim, keepdim, dtype=dtype)
    if made is NotImplemented:
        return NotImplemented
    n = math.prod(a.value.shape[axis] for axis in axes_of(a.value, dim))
    return div(made, n) if n else NotImplemented


def prod(a: Any, dim: Any = None, keepdim: bool = False, *, dtype: Any = None) -> Any:
    if dtype not in (None, torch.float64) or not isinstance(a, Uncertain):
        return NotImplemented
    if dim is None:
        a, dim = each(a, lambda t: t.reshape(-1)), 0
    axis = int(dim) % max(a.value.ndim, 1)
    if not a.value.ndim or not a.value.numel():
        return NotImplemented
    made = a
    while (n := made.value.shape[axis]) > 1:  # the first half times the second, and one in the middle
        first, second = (each(made, _narrowed(axis, start, n // 2)) for start in (0, (n + 1) // 2))
        halves = mul(first, second)
        made = halves if n % 2 == 0 else _joined(halves, each(made, _narrowed(axis, n // 2, 1)), axis)
    return made if keepdim else each(made, lambda t: t.squeeze(axis))


def _narrowed(axis: int, start: int, length: int) -> Callable[[Tensor], Tensor]:
    return lambda t: t.narrow(axis, start, length)


def each(x: Uncertain, move: Callable[[Tensor], Tensor]) -> Uncertain:
    """The numbers and their errors, moved alike."""
    return Uncertain(move(x.value), None if x.error is None else move(x.error))


def _joined(x: Uncertain, y: Uncertain, axis: int) -> Uncertain:
    errors = [error_of(x), error_of(y)]
    return with_error(torch.cat([x.value, y.value], axis), torch.cat(errors, axis))


def error_of(x: Uncertain) -> Tensor:
    return torch.zeros_like(x.value) if x.error is None else x.error


def sqrt(a: Any) -> Uncertain:
    x = operand(a)
    value = x.value.sqrt()
    square = value * value
    exact = (square == x.value) & (product_error(value, value, square) == 0)
    # Not by half a unit alone: torch's root of many numbers is MKL's, which is not the nearest double.
    parts = [torch.where(torch.isfinite(value), torch.where(exact, 0.0, ROOT * value), torch.inf)]
    if x.error is not None:  # |sqrt a - sqrt b| <= |a - b| / sqrt a
        moved = torch.where(value > 0, x.error / (value * (1.0 - 2.0 * ROOT)) + TINY, (x.error * COVER).sqrt() * COVER)
        parts.append(torch.where(x.error > 0, moved, 0.0))
    return with_error(value, *parts)
