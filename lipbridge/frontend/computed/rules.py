"""What torch's operations on constants round: a value and a bound of its error, by the name of the operation.

A sum is exact where its error, by Knuth's error-free transformation, is zero; so is a product by Dekker's. Dot products
and sums of many terms are exact where all partial sums are multiples of one power of two below 2^53 of it. All others
obey the bounds of :mod:`lipbridge.rounding.uncertain`. Functions of the libraries are trusted to a few units in the
last place.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor

from lipbridge.errors import NumericalFailure
from lipbridge.frontend.computed.program import Computed
from lipbridge.rounding.outward import SMALLEST, is_power_of_two
from lipbridge.rounding.scalars import TINY, UNIT, gamma
from lipbridge.rounding.uncertain import COVER, Uncertain

#: More than the relative error of a function of the libraries.
ULPS = 2.0**-50
#: More than the relative error of a root.
_ROOT = 4.0 * UNIT
#: More than the rounding of the few operations that an error is computed by, where none is a long sum.
_FEW = 1.0 + 2.0**-48
#: 1 / (1 + exp(-t)) is zero where exp(-t) overflows, though it is more than this only where it does not.
_FLUSHED = 2.0**-1022
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


def _up(x: Tensor, y: Tensor) -> Tensor:
    """At least the products of numbers that are not negative, but for _FEW; zero times infinity is zero."""
    product = torch.where((x == 0) | (y == 0), 0.0, x * y)
    return product + ((x > 0) & (y > 0) & (product < SMALLEST)).to(product.dtype) * TINY


def _size(x: Uncertain) -> Tensor:
    return x.value.abs() if x.error is None else x.value.abs() + x.error


# --- sums and products -----------------------------------------------------------------------------------------------


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


def _product_error(x: Tensor, y: Tensor, value: Tensor) -> Tensor:
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
    parts = [_product_error(*cast(Any, torch).broadcast_tensors(x.value, y.value, value))]
    if y.error is not None:
        parts.append(_up(x.value.abs(), y.error))
    if x.error is not None:
        parts.append(_up(x.error, _size(y)))
    return with_error(value, *parts)


def div(a: Any, b: Any, rounding_mode: Any = None) -> Any:
    if rounding_mode is not None:
        return NotImplemented
    x, y = operand(a), operand(b)
    value = x.value / y.value
    # The residual of a quotient that is exact is zero, and so is its error: x = value y.
    back = value * y.value
    lost = _product_error(*cast(Any, torch).broadcast_tensors(value, y.value, back))
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
            moved = moved + _up(size, y.error)
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


def _addmm(c: Any, a: Any, b: Any, *, beta: Any = 1, alpha: Any = 1) -> Uncertain:
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


def _axes(x: Tensor, dim: Any) -> list[int]:
    if dim is None or dim == []:
        return list(range(x.ndim))
    dims = cast(list[int], dim) if isinstance(dim, list | tuple) else [int(dim)]
    return [axis % max(x.ndim, 1) for axis in dims]


def total(a: Any, dim: Any = None, keepdim: bool = False, *, dtype: Any = None) -> Any:
    """A sum over some axes."""
    if dtype not in (None, torch.float64) or not isinstance(a, Uncertain):
        return NotImplemented
    x, axes = a.value, _axes(a.value, dim)
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
    n = math.prod(a.value.shape[axis] for axis in _axes(a.value, dim))
    return div(made, n) if n else NotImplemented


def _prod(a: Any, dim: Any = None, keepdim: bool = False, *, dtype: Any = None) -> Any:
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


# --- roots and lengths -----------------------------------------------------------------------------------------------


def sqrt(a: Any) -> Uncertain:
    x = operand(a)
    value = x.value.sqrt()
    square = value * value
    exact = (square == x.value) & (_product_error(value, value, square) == 0)
    # Not by half a unit alone: torch's root of many numbers is MKL's, which is not the nearest double.
    parts = [torch.where(torch.isfinite(value), torch.where(exact, 0.0, _ROOT * value), torch.inf)]
    if x.error is not None:  # |sqrt a - sqrt b| <= |a - b| / sqrt a
        moved = torch.where(value > 0, x.error / (value * (1.0 - 2.0 * _ROOT)) + TINY, (x.error * COVER).sqrt() * COVER)
        parts.append(torch.where(x.error > 0, moved, 0.0))
    return with_error(value, *parts)


def _length(a: Any, ord: Any = 2, dim: Any = None, keepdim: bool = False, *, dtype: Any = None) -> Any:
    if not isinstance(a, Uncertain):
        return NotImplemented
    if ord in (2, 2.0):
        made = total(mul(a, a), dim, keepdim, dtype=dtype)
        return made if made is NotImplemented else sqrt(made)
    if ord in (1, 1.0):
        return total(absolute(a), dim, keepdim, dtype=dtype)
    return _largest(absolute(a), _axes(a.value, dim), keepdim) if ord == math.inf else NotImplemented


def _norm(a: Any, p: Any = 2, dim: Any = None, keepdim: bool = False, *, dtype: Any = None) -> Any:
    return _length(a, 2 if p is None else p, dim, keepdim, dtype=dtype)


def _variance(a: Any, dim: Any = None, unbiased: Any = True, keepdim: bool = False, *, correction: Any = None) -> Any:
    if not isinstance(a, Uncertain):
        return NotImplemented
    if isinstance(unbiased, bool) and correction is None:
        correction = 1 if unbiased else 0
    n = math.prod(a.value.shape[axis] for axis in _axes(a.value, dim))
    divisor = n - float(1 if correction is None else correction)
    if divisor <= 0:
        return NotImplemented
    away = sub(a, mean(a, dim, True))
    return div(total(mul(away, away), dim, keepdim), divisor)


def _deviation(*args: Any, **kwargs: Any) -> Any:
    found = _variance(*args, **kwargs)
    return found if found is NotImplemented else sqrt(found)


def _with_mean(rule: Rule) -> Rule:
    def both(a: Any, dim: Any = None, *args: Any, keepdim: bool = False, **kwargs: Any) -> Any:
        found = rule(a, dim, *args, keepdim=keepdim, **kwargs)
        return found if found is NotImplemented else (found, mean(a, dim, keepdim))

    return both


def _weight_norm(v: Any, g: Any, dim: int = 0) -> Any:
    rank = operand(v).value.ndim
    length = _length(v, 2, [axis for axis in range(rank) if axis != dim % rank], True)
    return mul(v, div(g, length)), length


# --- entrywise -------------------------------------------------------------------------------------------------------


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


def _largest(a: Any, dim: Any, keepdim: bool) -> Uncertain:
    value = a.value.amax(dim, keepdim)
    return with_error(value, None if a.error is None else a.error.amax(dim, keepdim))


def _amax(a: Any, dim: Any = (), keepdim: bool = False) -> Any:
    return _largest(a, dim, keepdim) if isinstance(a, Uncertain) else NotImplemented


def _amin(a: Any, dim: Any = (), keepdim: bool = False) -> Any:
    return neg(_largest(neg(a), dim, keepdim)) if isinstance(a, Uncertain) else NotImplemented


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


def _exp(a: Any) -> Uncertain:
    x = operand(a)
    value = x.value.exp()
    own = torch.where(x.value == 0, 0.0, ULPS * value + TINY)
    moved = None if x.error is None else _up(value + own, torch.expm1(x.error)) * (1.0 + ULPS)
    return with_error(value, torch.where(torch.isfinite(value), own, torch.inf), moved)


def _log(a: Any) -> Uncertain:
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


def _soft_maximum(a: Any, b: Any) -> Uncertain:
    """log(exp x + exp y), of slopes that add up to one."""
    x, y = operand(a), operand(b)
    value = torch.logaddexp(x.value, y.value)
    larger, gap = torch.maximum(x.value, y.value), (x.value - y.value).abs()
    own = ULPS * (larger.abs() + torch.log1p(torch.exp(-gap)) + torch.where(gap > 0, gap * torch.exp(-gap), 0.0))
    worst = torch.zeros_like(value)
    for error in (x.error, y.error):
        worst = worst if error is None else torch.maximum(worst, error)
    return with_error(value, torch.where(torch.isfinite(value), own + TINY, torch.inf), worst)


def _power(a: Any, b: Any) -> Any:
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
    moved = torch.where((x.value - error > 0) & torch.isfinite(steepest), _up(steepest + TINY, error), torch.inf)
    made = _pow(x, exponent)
    return with_error(made.value, made.error, torch.where(error > 0, moved, 0.0))


def _pow(a: Any, b: Any) -> Uncertain:
    value = torch.pow(operand(a).value, operand(b).value)
    return with_error(value, torch.where(torch.isfinite(value), ULPS * value.abs() + TINY, torch.inf))


def _where(condition: Any, a: Any, b: Any) -> Any:
    if not isinstance(condition, Tensor):
        return NotImplemented
    x, y = operand(a), operand(b)
    zero = torch.zeros((), dtype=torch.float64, device=x.value.device)
    errors = [zero if t.error is None else t.error for t in (x, y)]
    return with_error(torch.where(condition, x.value, y.value), torch.where(condition, errors[0], errors[1]))


def _cast(a: Any, *args: Any, **kwargs: Any) -> Any:
    """A cast to another dtype, which rounds as the module does; of what is uncertain by one unit more."""
    dtype = kwargs.get("dtype")
    if not isinstance(a, Uncertain) or a.error is None or dtype is None or not dtype.is_floating_point:
        return NotImplemented
    value = a.value.to(dtype).to(torch.float64)
    away = 2.0 * torch.finfo(dtype).eps * (value.abs() + a.error) + 2.0 * torch.finfo(dtype).smallest_normal
    return a if dtype == torch.float64 else with_error(value, a.error, away)


def _rsqrt(a: Any) -> Uncertain:
    return reciprocal(sqrt(a))


def _squared(a: Any) -> Uncertain:
    return mul(a, a)


def _addcmul(c: Any, a: Any, b: Any, *, value: Any = 1) -> Uncertain:
    return add(c, mul(a, b), value)


def _addcdiv(c: Any, a: Any, b: Any, *, value: Any = 1) -> Uncertain:
    return add(c, div(a, b), value)


RULES: dict[str, Rule] = {
    "add": add,
    "sub": sub,
    "rsub": rsub,
    "neg": neg,
    "mul": mul,
    "div": div,
    "reciprocal": reciprocal,
    "mm": dot,
    "bmm": dot,
    "mv": dot,
    "dot": dot,
    "matmul": dot,
    "addmm": _addmm,
    "addmv": _addmm,
    "baddbmm": _addmm,
    "sum": total,
    "mean": mean,
    "prod": _prod,
    "sqrt": sqrt,
    "rsqrt": _rsqrt,
    "square": _squared,
    "pow": _power,
    "linalg_vector_norm": _length,
    "norm": _norm,
    "var": _variance,
    "std": _deviation,
    "var_mean": _with_mean(_variance),
    "std_mean": _with_mean(_deviation),
    "_weight_norm_interface": _weight_norm,
    "addcmul": _addcmul,
    "addcdiv": _addcdiv,
    "abs": absolute,
    "relu": steady(torch.relu),
    "clamp": steady(torch.clamp),
    "clamp_min": steady(cast(Any, torch).clamp_min),
    "clamp_max": steady(cast(Any, torch).clamp_max),
    "maximum": steady(torch.maximum),
    "minimum": steady(torch.minimum),
    "amax": _amax,
    "amin": _amin,
    "exp": _exp,
    "log": _log,
    "logaddexp": _soft_maximum,
    "tanh": smooth(torch.tanh, 1.0),
    "sigmoid": smooth(torch.sigmoid, 0.25, least=_FLUSHED),
    "sin": smooth(torch.sin, 1.0),
    "cos": smooth(torch.cos, 1.0),
    "atan": smooth(torch.atan, 1.0),
    "erf": smooth(torch.erf, 1.13),
    "where": _where,
    "_to_copy": _cast,
}


# --- what only moves numbers, and what only looks at them ------------------------------------------------------------


def _as_they_are(args: Any) -> Any:
    return args


def _fill(args: Any) -> Any:
    """A number that is put in is exact."""
    return [0.0 if isinstance(entry, float | int) and i == 2 else entry for i, entry in enumerate(args)]


def _scatter_fill(args: Any) -> Any:
    return [*args[:3], *(0.0 if isinstance(entry, float | int) else entry for entry in args[3:])]


def _mask_fill(args: Any) -> Any:
    return [*args[:2], 0.0 if isinstance(args[2], float | int) else args[2], *args[3:]]


MOVES: Mapping[str, Callable[[Any], Any]] = {
    **dict.fromkeys(
        (
            *("view", "reshape", "_unsafe_view", "t", "transpose", "permute", "expand", "slice"),
            *("select", "index_select", "index", "gather", "unsqueeze", "squeeze", "alias", "detach", "clone"),
            *("lift_fresh", "contiguous", "cat", "stack", "split", "split_with_sizes", "unbind", "chunk", "flip"),
            *("roll", "repeat", "diagonal", "diag_embed", "diag", "tril", "triu", "narrow", "unfold", "movedim"),
            *("take", "repeat_interleave", "expand_copy", "view_copy", "unsqueeze_copy", "hstack"),
            *("broadcast_to", "tile", "flatten", "lift", "lift_fresh_copy", "select_scatter", "slice_scatter"),
            *("index_copy", "masked_scatter", "diagonal_scatter", "block_diag", "rot90", "im2col", "embedding"),
            *("reflection_pad1d", "reflection_pad2d", "reflection_pad3d", "replication_pad1d", "replication_pad2d"),
            *("replication_pad3d", "upsample_nearest1d", "upsample_nearest2d", "upsample_nearest3d", "pixel_shuffle"),
            *("pixel_unshuffle", "channel_shuffle", "diagonal_copy", "slice_copy", "select_copy", "permute_copy"),
        ),
        _as_they_are,
    ),
    "constant_pad_nd": _fill,
    "masked_fill": _mask_fill,
    **dict.fromkeys(("scatter", "index_fill"), _scatter_fill),
}


def _compared(func: Any, args: Any, kwargs: Any) -> Any:
    """A comparison that no error can turn round.

    Raises:
        NumericalFailure: if one could.
    """
    x, y = (operand(Uncertain(a.value, a.error) if isinstance(a, Computed) else a) for a in args)
    room = torch.zeros_like(x.value - y.value)
    for error in (x.error, y.error):
        room = room if error is None else room + error
    certain = (x.value - y.value).abs() * (1.0 - 4.0 * UNIT) > room * COVER  # not where one is NaN
    if bool((~certain).logical_and(room > 0).any()):
        raise NumericalFailure("A choice between constants hangs on the rounding of one that is computed.")
    return func(x.value, y.value) if isinstance(args[1], Tensor) else func(x.value, args[1])


def _equal_entries(func: Any, args: Any, kwargs: Any) -> Any:
    """Entries are equal only if both are exact; of a tensor and itself all but NaN are."""
    if args[0] is args[1]:
        return func(args[0].value, args[0].value)
    x, y = (operand(Uncertain(a.value, a.error) if isinstance(a, Computed) else a) for a in args)
    exact = (x.value == y.value) & (error_of(x) == 0) & (error_of(y) == 0)
    return exact if func._schema.name.endswith("eq") else ~exact


def _chosen_equal(func: Any, args: Any, kwargs: Any) -> Any:
    """As :func:`_equal_entries`, where what is computed further hangs on it: no entry may be undecided."""
    if args[0] is not args[1]:
        _compared(func, args, kwargs)
    return _equal_entries(func, args, kwargs)


def error_of(x: Uncertain) -> Tensor:
    return torch.zeros_like(x.value) if x.error is None else x.error


def _same(func: Any, args: Any, kwargs: Any) -> bool:
    x, y = args
    if x is y:
        return True
    return not any(isinstance(t, Computed) and bool(t.error.any()) for t in (x, y)) and torch.equal(x, y)


def _any(func: Any, args: Any, kwargs: Any) -> Any:
    """Whether an entry may be other than zero."""
    x = cast(Computed, args[0])
    return func((x.value != 0) | (x.error != 0), *args[1:], **kwargs)


def _on_values(func: Any, args: Any, kwargs: Any) -> Any:
    return func(*(a.value if isinstance(a, Computed) else a for a in args), **kwargs)


READS: Mapping[str, Callable[[Any, Sequence[Any], Mapping[str, Any]], Any]] = {
    **dict.fromkeys(("gt", "ge", "lt", "le"), _compared),
    **dict.fromkeys(("eq", "ne"), _equal_entries),
    "equal": _same,
    "any": _any,
    **dict.fromkeys(("isnan", "isinf", "isfinite", "zeros_like", "ones_like", "full_like", "new_zeros"), _on_values),
    **dict.fromkeys(("new_ones", "new_full", "new_empty", "empty_like", "sym_size", "is_same_size"), _on_values),
}


#: What a program that is tracked reads, where this differs from what one may ask of its results.
CHOICES: Mapping[str, Callable[[Any, Sequence[Any], Mapping[str, Any]], Any]] = dict.fromkeys(
    ("eq", "ne"), _chosen_equal
)

#: Operations without a rule that round nothing.
EXACT = frozenset(
    [
        *("_to_copy", "sgn", "zeros_like", "ones_like", "full_like", "new_zeros", "new_ones", "new_full"),
        *("new_empty", "empty_like", "fill_", "zero_", "copy_", "isnan", "full", "zeros", "ones", "eye"),
        "scalar_tensor",
    ]
)

__all__ = [
    "CHOICES",
    "EXACT",
    "MOVES",
    "READS",
    "RULES",
    "ULPS",
    "Rule",
    "absolute",
    "add",
    "div",
    "dot",
    "each",
    "error_of",
    "logarithm_of_one_plus",
    "many_terms",
    "mean",
    "moderate",
    "mul",
    "neg",
    "operand",
    "reciprocal",
    "rsub",
    "smooth",
    "sqrt",
    "steady",
    "sub",
    "total",
    "with_error",
]
