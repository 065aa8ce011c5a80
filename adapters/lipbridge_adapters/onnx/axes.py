"""ONNX's operators that work along whole axes: sums, extremes, products with constants of any rank, interpolation."""

from __future__ import annotations

import math
import string
from collections.abc import Callable, Mapping, Sequence
from fractions import Fraction
from typing import Any

import torch
from torch import Tensor

from lipbridge.frontend.axes import along, shares_around, total
from lipbridge.frontend.builder import Curve
from lipbridge.frontend.contractions import matmul_terms, product
from lipbridge.frontend.extremes import extreme_over
from lipbridge.frontend.pooling import mean
from lipbridge_adapters.onnx.constants import axes_of, integers
from lipbridge_adapters.onnx.file import Fault
from lipbridge_adapters.onnx.moves import taken
from lipbridge_adapters.onnx.reader import Call, Flow, OnnxReader, Value, has_batch, operator, per_input

_REDUCTIONS: Mapping[str, Callable[[OnnxReader, Curve, Sequence[int], tuple[int, ...]], Any]] = {
    "sum": total,
    "mean": mean,
    "amax": lambda reader, value, axes, shape: extreme_over(reader, value, axes, True, True, shape),
    "amin": lambda reader, value, axes, shape: extreme_over(reader, value, axes, True, False, shape),
}


def reduced(reader: OnnxReader, x: Flow, axes: Sequence[int], keep: bool, name: str) -> Flow:
    """A reduction (``sum``, ``mean``, ``amax``, ``amin``) over axes of ONNX's shape."""
    kept = tuple(1 if i in axes else n for i, n in enumerate(x.shape))
    shape = kept if keep else tuple(n for i, n in enumerate(x.shape) if i not in axes)
    over = [axis for axis in axes if x.shape[axis] != 1]
    if not over:
        return Flow(reader.line(x.value), shape)
    size = x.shape[1:] if has_batch(x.shape) else x.shape
    places = [axis - 1 if has_batch(x.shape) else axis for axis in over]
    value = reader.curve(reader.in_shape(x.value, size))
    return Flow(_REDUCTIONS[name](reader, value, places, per_input(kept)), shape)


def reduced_axes(call: Call) -> list[int] | None:
    """The axes that a reduction runs over; None if it is the identity."""
    rank = len(call.flow().shape)
    axes = axes_of(call.constants, call.attributes, rank)
    if axes:
        return axes
    return None if call.attributes.get("noop_with_empty_axes", 0) else list(range(rank))


@operator("ReduceSum ReduceMin", "axes keepdims noop_with_empty_axes")
def _reduce(reader: OnnxReader, call: Call) -> Value:
    axes = reduced_axes(call)
    if axes is None:
        return call.flow()
    name = "sum" if call.kind == "ReduceSum" else "amin"
    return reduced(reader, call.flow(), axes, bool(call.attributes.get("keepdims", 1)), name)


# --- products with constants of any rank -----------------------------------------------------------------------------


def contracted(reader: OnnxReader, x: Flow, equation: str, operands: list[Any]) -> Flow:
    """An einsum of one function of the input, ``x`` in its place among ``operands``, and of constants."""
    left, _, result = equation.partition("->")
    terms, lengths = left.split(","), dict[str, int]()
    for term, operand in zip(terms, operands, strict=True):
        shape = tuple(operand.shape)
        if len(term) != len(shape):
            raise Fault(f"its operator {reader.operation} has {len(term)} axes for a value of shape {shape}")
        for letter, n in zip(term, shape, strict=True):
            if n != 1 and lengths.get(letter, 1) not in (1, n):
                raise Fault(f"its operator {reader.operation} has the lengths {lengths[letter]} and {n} along one axis")
            lengths[letter] = max(n, lengths.get(letter, 1))
    place = next(i for i, operand in enumerate(operands) if operand is x)
    shape = tuple(lengths[letter] for letter in result)
    reader.require_small(math.prod(shape))
    size, inside = shape[1:], x.shape[1:]
    if not has_batch(x.shape) or result[:1] != terms[place][:1]:
        # The axis in front is one of the input's own, or a batch of one that is summed away: another stands before it.
        batch = next(letter for letter in string.ascii_letters if letter not in equation)
        terms[place], result = batch + terms[place], batch + result
        size, inside = shape, x.shape
    value = reader.curve(reader.in_shape(x.value, inside))
    tensors = [value if operand is x else operand for operand in operands]
    made = product(reader, tensors, terms, result, size or (1,))
    return Flow(made, shape)


@operator("Einsum", "equation")
def _einsum(reader: OnnxReader, call: Call) -> Value:
    equation = str(call.attributes.get("equation", "")).replace(" ", "")
    terms, arrow, result = equation.partition("->")
    letters = terms.replace(",", "") + result
    if not arrow or not letters.isalpha() or not letters.isascii() or "..." in equation:
        raise reader.unsupported("Only equations that name every axis and the result's are read.")
    if terms.count(",") + 1 != len(call.inputs) or not set(result) <= set(terms):
        raise Fault(f"its Einsum has the equation {equation[:60]!r} for {len(call.inputs)} inputs")
    flows = [value for value in call.inputs if isinstance(value, Flow)]
    if len(flows) != 1:
        raise reader.unsupported("A product of two functions of the input has no Lipschitz constant.")
    operands: list[Any] = [v if isinstance(v, Flow) else call.numbers(i) for i, v in enumerate(call.inputs)]
    return contracted(reader, flows[0], equation, operands)


def multiplied(reader: OnnxReader, x: Flow, constant: Tensor, first: bool) -> Flow:
    """A MatMul with a constant of any rank, ``x`` being the first factor or the second."""
    pair: list[Any] = [x, constant] if first else [constant, x]
    ranks = [len(factor.shape) for factor in pair]
    if min(ranks) < 1 or max(ranks) > 12:
        raise Fault(f"its MatMul multiplies {' and '.join(str(tuple(factor.shape)) for factor in pair)}")
    terms, result = matmul_terms(*ranks)
    return contracted(reader, x, f"{','.join(terms)}->{result}", pair)


# --- interpolation ---------------------------------------------------------------------------------------------------

_KNOWN = "antialias axes coordinate_transformation_mode cubic_coeff_a exclude_outside extrapolation_value"


@operator("Resize Upsample", f"{_KNOWN} keep_aspect_ratio_policy mode nearest_mode")
def _resize(reader: OnnxReader, call: Call) -> Value:
    """Nearest entries, or linear interpolation along one axis after the other, its shares rounded up."""
    x, rank = call.flow(), len(call.flow().shape)
    mode = str(call.attributes.get("mode", "nearest"))
    if mode not in ("nearest", "linear"):
        raise reader.unsupported("Only nearest entries and linear interpolation are read.")
    if call.attributes.get("antialias", 0) or call.attributes.get("exclude_outside", 0):
        raise reader.unsupported("Filters that reach further (antialias, exclude_outside) are not read.")
    lengths, factors = _sizes(reader, call)
    if not has_batch(x.shape) or lengths[0] != 1:
        raise reader.unsupported("It works along the batch.")
    if any(n < 1 for n in lengths):
        raise Fault(f"its {call.kind} makes {str(lengths)[:60]} of {x.shape}")
    for axis in range(1, rank):
        n, m, factor = x.shape[axis], lengths[axis], factors[axis]
        reader.require_small(math.prod(x.shape) // n * m)
        if m == n and factor == 1:
            continue
        places = [_place(reader, call, i, n, m, factor) for i in range(m)]
        if mode == "nearest":
            x = taken(reader, x, axis, [_nearest(reader, call, at, n, factor) for at in places])
            continue
        reader.require_small(n * m)
        value = reader.in_shape(reader.line(x.value), x.shape[1:])
        shape = (*x.shape[:axis], m, *x.shape[axis + 1 :])
        x = Flow(along(reader, value, axis - 1, torch.stack([shares_around(at, n) for at in places])), shape)
    return x


def _sizes(reader: OnnxReader, call: Call) -> tuple[list[int], list[Fraction]]:
    """The lengths and the factors of all axes of the result."""
    x = call.flow()
    rank = len(x.shape)
    if call.attributes.get("keep_aspect_ratio_policy", "stretch") != "stretch":
        raise reader.unsupported("Only sizes that stretch are read.")
    given: Any = call.attributes.get("axes")
    axes = [axis % rank for axis in integers(given)] if given is not None else list(range(rank))
    place = 1 if call.kind == "Upsample" or call.opset < 11 else 2
    scales = call.constant(place)
    sizes = call.constant(3) if place == 2 else None
    if sizes is not None and sizes.numel():
        wanted = integers(sizes)
        found = [Fraction(m, x.shape[axis]) for axis, m in zip(axes, wanted, strict=False)]
    elif scales is not None and scales.is_floating_point() and bool(scales.isfinite().all() & (scales > 0).all()):
        found = [Fraction(float(s)) for s in scales.reshape(-1)]
        wanted = [math.floor(s * x.shape[axis]) for axis, s in zip(axes, found, strict=False)]
    else:
        raise Fault(f"its {call.kind} has neither sizes nor scales")
    if len(wanted) != len(axes) or len(set(axes)) != len(axes) or any(abs(m) >= 2**24 for m in wanted):
        raise Fault(f"its {call.kind} has {len(wanted)} sizes for {len(axes)} axes")
    lengths, factors = list(x.shape), [Fraction(1)] * rank
    for axis, m, factor in zip(axes, wanted, found, strict=True):
        lengths[axis], factors[axis] = m, factor
    return lengths, factors


def _place(reader: OnnxReader, call: Call, i: int, n: int, m: int, factor: Fraction) -> Fraction:
    """The coordinate among n entries that the i-th of m results is read at."""
    default = "asymmetric" if call.kind == "Upsample" or call.opset < 11 else "half_pixel"
    mode = call.attributes.get("coordinate_transformation_mode", default)
    half = Fraction(1, 2)
    if mode == "asymmetric":
        return i / factor
    if mode == "align_corners":
        return Fraction(i * (n - 1), m - 1) if m > 1 else Fraction(0)
    if mode == "half_pixel" or (mode == "pytorch_half_pixel" and m > 1):
        return (i + half) / factor - half
    if mode == "pytorch_half_pixel":
        return Fraction(0)
    raise reader.unsupported(f"Its coordinate_transformation_mode {str(mode)[:30]!r} is not read.")


def _nearest(reader: OnnxReader, call: Call, at: Fraction, n: int, factor: Fraction) -> int:
    """The entry that is read; where rounding in float32 could choose another one, the file does not say which."""
    default = "floor" if call.kind == "Upsample" or call.opset < 11 else "round_prefer_floor"
    mode = call.attributes.get("nearest_mode", default)
    half = Fraction(1, 2)
    modes: dict[str, Callable[[Fraction], int]] = {
        "floor": math.floor,
        "ceil": math.ceil,
        "round_prefer_floor": lambda t: math.ceil(t - half),
        "round_prefer_ceil": lambda t: math.floor(t + half),
    }
    if mode not in modes:
        raise reader.unsupported(f"Its nearest_mode {str(mode)[:30]!r} is not read.")
    exact = all(Fraction(float(torch.tensor(float(t), dtype=torch.float32))) == t for t in (at, factor))
    slack = Fraction(0) if exact else (abs(at) + 1) * Fraction(1, 2**21)
    chosen = {min(max(modes[mode](t), 0), n - 1) for t in (at - slack, at, at + slack)}
    if len(chosen) > 1:
        raise reader.unsupported("The entry that it reads depends on how its coordinates are rounded.")
    return chosen.pop()


__all__ = ["multiplied", "reduced", "reduced_axes"]
