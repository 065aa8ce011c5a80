"""What an ONNX file computes from constants alone: shapes for reshapes, transposed or scaled weights.

Every function takes float64, int64 or bool tensors and gives one; float64 ones carry the error of what was rounded
(:mod:`lipbridge.frontend.computed.program`). Exporters write long chains of these; a hostile file
writes short ones with enormous results, so every result has an agreed size before it is made.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor

from lipbridge.errors import first_line
from lipbridge.frontend.computed.program import tracking
from lipbridge_adapters.onnx.file import FLOATS, Fault

#: Elements of one folded result, unless its inputs have more.
LARGEST = 2**22
#: Elements of all folded results of a file, beside those that it stores.
BUDGET = 2**23

Attributes = Mapping[str, Any]
Inputs = Sequence[Tensor | None]
Fold = Callable[[Inputs, Attributes], Tensor]


def fold(kind: str, inputs: Inputs, attributes: Attributes, opset: int) -> Tensor | None:
    """The result of an operator on constants; None if it is not folded.

    Raises:
        Fault: if its arguments do not fit, or the result is enormous.
    """
    function = FOLDS.get(kind)
    if function is None:
        return None
    try:
        with tracking():
            return function(inputs, attributes)
    except (RuntimeError, ValueError, TypeError, IndexError, KeyError, OverflowError, AttributeError) as error:
        line = first_line(error)
        raise Fault(f"its operator {kind} does not fit its constants ({line})") from error


def integers(value: Any) -> list[int]:
    """A short list of integers from a tensor or an attribute."""
    if isinstance(value, Tensor):
        if value.is_floating_point() or value.numel() > 4096:
            raise ValueError("integers are needed")
        value = cast(Any, value).reshape(-1).tolist()
    items = cast(list[Any], value if isinstance(value, list) else [value])
    if not all(isinstance(item, int) for item in items):
        raise ValueError("integers are needed")
    return [int(item) for item in items]


def broadcast_shape(*shapes: tuple[int, ...]) -> tuple[int, ...]:
    """The shape of an elementwise operation's result.

    Raises:
        RuntimeError: if the shapes do not fit.
    """
    return tuple(cast(Any, torch).broadcast_shapes(*shapes))


def _sized(*shapes: Sequence[int], given: int) -> None:
    if any(math.prod(shape) > max(LARGEST, 2 * given) for shape in shapes):
        raise ValueError("its result is enormous")


def _elementwise(function: Callable[..., Tensor]) -> Fold:
    def apply(inputs: Inputs, _: Attributes) -> Tensor:
        tensors = [t for t in inputs if t is not None]
        _sized(broadcast_shape(*[tuple(t.shape) for t in tensors]), given=max(t.numel() for t in tensors))
        return function(*tensors)

    return apply


def _divided(a: Tensor, b: Tensor) -> Tensor:
    if a.is_floating_point() or b.is_floating_point():
        return a / b
    if bool((b == 0).any()):
        raise ValueError("it divides by zero")
    return torch.div(a, b, rounding_mode="trunc")


def _cast(inputs: Inputs, a: Attributes) -> Tensor:
    (x,) = _given(inputs)
    to = int(a["to"])
    if to in FLOATS:
        return x.to(torch.float64)
    if to == 9:
        return x.to(torch.bool)
    if to in (6, 7):
        if x.is_floating_point() and not bool((x.abs() < 2**31).all()):
            raise ValueError("its numbers are no integers")
        return x.to(torch.int64)
    raise ValueError(f"no cast to type {to}")


def _given(inputs: Inputs) -> list[Tensor]:
    return [t for t in inputs if t is not None]


def axes_of(inputs: Inputs, a: Attributes, rank: int, place: int = 1) -> list[int] | None:
    """The axes of an operator, as an input (newer opsets) or an attribute; None if not given."""
    found = inputs[place] if len(inputs) > place and inputs[place] is not None else a.get("axes")
    if found is None:
        return None
    axes = integers(found)
    if any(not -rank <= axis < rank for axis in axes):
        raise ValueError("an axis is out of range")
    return [axis % rank for axis in axes]


def reshaped(size: Sequence[int], target: Sequence[int], allow_zero: bool = False) -> tuple[int, ...]:
    """ONNX's target of a Reshape (0 copies, -1 is inferred) as a shape."""
    if len(target) > 16:
        raise ValueError("a shape of more than 16 axes")
    shape = [size[i] if n == 0 and not allow_zero else n for i, n in enumerate(target)]
    if shape.count(-1) > 1 or any(n < -1 for n in shape):
        raise ValueError(f"no shape is {target}")
    if -1 in shape:
        rest = -math.prod(shape)
        if rest == 0 or math.prod(size) % rest:
            raise ValueError(f"{tuple(size)} does not fit {target}")
        shape[shape.index(-1)] = math.prod(size) // rest
    if math.prod(shape) != math.prod(size):
        raise ValueError(f"{tuple(size)} does not fit {target}")
    return tuple(shape)


def squeezed(size: Sequence[int], axes: list[int] | None) -> tuple[int, ...]:
    """The shape without the given axes of length one, or without all of them."""
    gone = [i for i, n in enumerate(size) if n == 1] if axes is None else axes
    if any(size[i] != 1 for i in gone):
        raise ValueError("only axes of length one vanish")
    return tuple(n for i, n in enumerate(size) if i not in gone)


def unsqueezed(size: Sequence[int], axes: Sequence[int]) -> tuple[int, ...]:
    """The shape with new axes of length one at the given places of the result."""
    rank = len(size) + len(axes)
    places = {axis % rank for axis in axes}
    if len(places) != len(axes) or any(not -rank <= axis < rank for axis in axes) or rank > 16:
        raise ValueError("axes that cannot be put in")
    rest = iter(size)
    return tuple(1 if i in places else next(rest) for i in range(rank))


def flattened(size: Sequence[int], axis: int) -> tuple[int, int]:
    """The two axes of a Flatten."""
    if not -len(size) <= axis <= len(size):
        raise ValueError("an axis is out of range")
    axis = axis + len(size) if axis < 0 else axis
    return (math.prod(size[:axis]), math.prod(size[axis:]))


def slices(inputs: Inputs, a: Attributes, size: Sequence[int]) -> dict[int, slice]:
    """The slices of a Slice by axis; steps are positive or negative."""
    if len(inputs) > 1:
        starts, ends = (integers(t) for t in inputs[1:3])
        axes = axes_of(inputs, {}, len(size), 3)
        steps = integers(inputs[4]) if len(inputs) > 4 and inputs[4] is not None else [1] * len(starts)
    else:
        starts, ends = integers(a["starts"]), integers(a["ends"])
        axes, steps = axes_of(inputs, a, len(size)), [1] * len(starts)
    axes = list(range(len(starts))) if axes is None else axes
    if not len(starts) == len(ends) == len(axes) == len(steps) == len(set(axes)) or 0 in steps:
        raise ValueError("slices that do not fit together")
    found: dict[int, slice] = {}
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        # For a negative step an end before the first entry is written as a very negative number.
        stop = None if step < 0 and end < -size[axis] else end
        found[axis] = slice(start, stop, step)
    return found


def _slice(inputs: Inputs, a: Attributes) -> Tensor:
    x = _given(inputs)[0]
    for axis, part in slices(inputs, a, x.shape).items():
        rows = list(range(*part.indices(x.shape[axis])))
        x = x.index_select(axis, torch.tensor(rows, dtype=torch.int64))
    return x


def _gather(inputs: Inputs, a: Attributes) -> Tensor:
    x, index = _given(inputs)
    axis = int(a.get("axis", 0)) % max(x.ndim, 1)
    shape = (*x.shape[:axis], *index.shape, *x.shape[axis + 1 :])
    _sized(shape, given=x.numel())
    n = x.shape[axis]
    rows = index.reshape(-1)
    rows = torch.where(rows < 0, rows + n, rows)
    return x.index_select(axis, rows).reshape(shape)


def _concat(inputs: Inputs, a: Attributes) -> Tensor:
    return torch.cat(_given(inputs), dim=int(a["axis"]))


def _constant_of_shape(inputs: Inputs, a: Attributes) -> Tensor:
    shape = integers(inputs[0])
    if any(n < 0 for n in shape):
        raise ValueError("a negative size")
    _sized(shape, given=0)
    value = a.get("value")
    return torch.zeros(shape, dtype=torch.float64) if value is None else value.reshape(()).expand(shape).clone()


def _expand(inputs: Inputs, _: Attributes) -> Tensor:
    x, target = _given(inputs)
    shape = broadcast_shape(tuple(x.shape), tuple(integers(target)))
    _sized(shape, given=x.numel())
    return x.expand(shape)


def _tile(inputs: Inputs, _: Attributes) -> Tensor:
    x, repeats = _given(inputs)
    times = integers(repeats)
    _sized([n * t for n, t in zip(x.shape, times, strict=True)], given=x.numel())
    return x.repeat(times)


def _range(inputs: Inputs, _: Attributes) -> Tensor:
    start, end, step = (integers(t)[0] for t in _given(inputs))
    _sized([len(range(start, end, step))], given=0)
    return torch.arange(start, end, step)


def _transpose(inputs: Inputs, a: Attributes) -> Tensor:
    (x,) = _given(inputs)
    return x.permute(*a.get("perm", range(x.ndim - 1, -1, -1)))


def _reduced(function: Callable[[Tensor, list[int], bool], Tensor]) -> Fold:
    def apply(inputs: Inputs, a: Attributes) -> Tensor:
        x = _given(inputs)[0]
        axes = axes_of(inputs, a, x.ndim)
        return function(x, list(range(x.ndim)) if axes is None else axes, bool(a.get("keepdims", 1)))

    return apply


def _product(x: Tensor, axes: list[int], keep: bool) -> Tensor:
    for axis in sorted(axes, reverse=True):
        x = x.prod(axis, keepdim=keep)
    return x


def _same(inputs: Inputs, _: Attributes) -> Tensor:
    return _given(inputs)[0]


def _matmul(inputs: Inputs, _: Attributes) -> Tensor:
    a, b = _given(inputs)
    if a.ndim != 2 or b.ndim != 2:
        raise ValueError("only products of two matrices are folded")
    _sized((a.shape[0], b.shape[1]), given=max(a.numel(), b.numel()))
    if a.numel() * b.shape[1] > 2**32:
        raise ValueError("a product of enormous matrices")
    return a @ b


def _softplus(t: Tensor) -> Tensor:
    return torch.logaddexp(t, torch.zeros_like(t))


def _clip(inputs: Inputs, a: Attributes) -> Tensor:
    x = _given(inputs)[0]
    limits = [inputs[i] if len(inputs) > i else a.get(name) for i, name in ((1, "min"), (2, "max"))]
    low, high = (None if t is None else torch.as_tensor(t, dtype=x.dtype) for t in limits)
    x = x if low is None else torch.maximum(x, low)
    return x if high is None else torch.minimum(x, high)


def _gemm(inputs: Inputs, a: Attributes) -> Tensor:
    first, second = (
        t.T if a.get(turn, 0) else t for t, turn in zip(inputs[:2], ("transA", "transB"), strict=True) if t is not None
    )
    made = float(a.get("alpha", 1.0)) * _matmul([first, second], {})
    if len(inputs) > 2 and inputs[2] is not None:
        made = made + float(a.get("beta", 1.0)) * inputs[2].expand(made.shape)
    return made


FOLDS: Mapping[str, Fold] = {
    "Identity": _same,
    "Dropout": _same,
    "Cast": _cast,
    "Shape": lambda inputs, a: torch.tensor(list(_given(inputs)[0].shape)[int(a.get("start", 0)) : a.get("end")]),
    "Size": lambda inputs, _: torch.tensor(_given(inputs)[0].numel()),
    "Gather": _gather,
    "Slice": _slice,
    "Concat": _concat,
    "ConstantOfShape": _constant_of_shape,
    "Expand": _expand,
    "Tile": _tile,
    "Range": _range,
    "Transpose": _transpose,
    "Reshape": lambda inputs, a: _given(inputs)[0].reshape(
        reshaped(_given(inputs)[0].shape, integers(inputs[1]), bool(a.get("allowzero", 0)))
    ),
    "Flatten": lambda inputs, a: _given(inputs)[0].reshape(flattened(_given(inputs)[0].shape, int(a.get("axis", 1)))),
    "Squeeze": lambda inputs, a: _given(inputs)[0].reshape(
        squeezed(_given(inputs)[0].shape, axes_of(inputs, a, _given(inputs)[0].ndim))
    ),
    "Unsqueeze": lambda inputs, a: _given(inputs)[0].reshape(
        unsqueezed(_given(inputs)[0].shape, integers(inputs[1] if len(inputs) > 1 else a["axes"]))
    ),
    "MatMul": _matmul,
    "Gemm": _gemm,
    "Add": _elementwise(torch.add),
    "Sub": _elementwise(torch.sub),
    "Mul": _elementwise(torch.mul),
    "Div": _elementwise(_divided),
    "Max": _elementwise(lambda *t: _many(torch.maximum, t)),
    "Min": _elementwise(lambda *t: _many(torch.minimum, t)),
    "Pow": _elementwise(cast(Any, torch.pow)),
    "Equal": _elementwise(torch.eq),
    "Greater": _elementwise(torch.gt),
    "Less": _elementwise(torch.lt),
    "And": _elementwise(torch.logical_and),
    "Or": _elementwise(torch.logical_or),
    "Not": _elementwise(torch.logical_not),
    "Where": _elementwise(torch.where),
    "Neg": _elementwise(torch.neg),
    "Abs": _elementwise(torch.abs),
    "Sqrt": _elementwise(torch.sqrt),
    "Reciprocal": _elementwise(torch.reciprocal),
    "Exp": _elementwise(torch.exp),
    "Log": _elementwise(torch.log),
    "Tanh": _elementwise(torch.tanh),
    "Sigmoid": _elementwise(torch.sigmoid),
    "Softplus": _elementwise(_softplus),
    "Relu": _elementwise(torch.relu),
    "Sin": _elementwise(torch.sin),
    "Cos": _elementwise(torch.cos),
    "Sign": _elementwise(torch.sign),
    "Clip": _clip,
    "Floor": _elementwise(torch.floor),
    "Ceil": _elementwise(torch.ceil),
    "ReduceProd": _reduced(_product),
    "ReduceSum": _reduced(lambda x, axes, keep: x.sum(axes, keepdim=keep) if axes else x),
    "ReduceMean": _reduced(lambda x, axes, keep: x.mean(axes, keepdim=keep) if axes else x),
    "ReduceSumSquare": _reduced(lambda x, axes, keep: x.square().sum(axes, keepdim=keep) if axes else x.square()),
    "ReduceL2": _reduced(lambda x, axes, keep: x.square().sum(axes, keepdim=keep).sqrt() if axes else x.abs()),
    "ReduceL1": _reduced(lambda x, axes, keep: x.abs().sum(axes, keepdim=keep) if axes else x.abs()),
    "ReduceMax": _reduced(lambda x, axes, keep: x.amax(axes, keepdim=keep) if axes else x),
    "ReduceMin": _reduced(lambda x, axes, keep: x.amin(axes, keepdim=keep) if axes else x),
}


def _many(function: Callable[[Tensor, Tensor], Tensor], tensors: Sequence[Tensor]) -> Tensor:
    found = tensors[0]
    for tensor in tensors[1:]:
        found = function(found, tensor)
    return found


__all__ = [
    "BUDGET",
    "Attributes",
    "Inputs",
    "axes_of",
    "broadcast_shape",
    "flattened",
    "fold",
    "integers",
    "reshaped",
    "slices",
    "squeezed",
    "unsqueezed",
]
