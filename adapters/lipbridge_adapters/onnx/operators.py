"""ONNX's operators in terms of capture's handlers: layers, scalar functions, products that are activations."""

from __future__ import annotations

import math
from dataclasses import replace
from fractions import Fraction
from typing import Any, cast

import torch
from torch import Tensor

from lipbridge.activations.activation import Term
from lipbridge.frontend.computed.program import Computed, tracking
from lipbridge.frontend.extremes import Extreme
from lipbridge.frontend.reader import LINE, Curve
from lipbridge.frontend.self_gated import Waiting, product, square_of, times_number
from lipbridge.graph.nodes import Conv, ConvTranspose, Dense, Node
from lipbridge.rounding.factors import number
from lipbridge_adapters.onnx import moments
from lipbridge_adapters.onnx.axes import multiplied
from lipbridge_adapters.onnx.constants import broadcast_shape
from lipbridge_adapters.onnx.file import Fault
from lipbridge_adapters.onnx.moves import expanded
from lipbridge_adapters.onnx.reader import Call, Flow, OnnxReader, Scaled, Value, operator, per_input

#: How far a stored sqrt 2 may be from the number itself: a few units in the last place of float32.
FLOAT32 = 2.0**-21

# --- dense layers ----------------------------------------------------------------------------------------------------


def _dense(reader: OnnxReader, x: Flow, W: Tensor, shape: tuple[int, ...], bias: Tensor | None = None) -> Flow:
    """``W x + b`` on the last axis; a value whose other axes are one is a vector."""
    m, n = W.shape
    vector = math.prod(x.shape) == n
    value = reader.in_shape(x.value, (n,)) if vector else reader.seen(x)
    if not vector and reader.shape_of(value)[-1] != n:
        raise Fault(f"its operator {reader.kind} has {n} columns for values of shape {x.shape}")
    size = (m,) if vector else (*reader.shape_of(value)[:-1], m)
    reader.require_small(math.prod(size))
    return Flow(reader.aten("linear", size, input=value, weight=W.contiguous(), bias=bias), shape, fresh=True)


def _turned(reader: OnnxReader, x: Flow) -> Flow:
    """The last two axes exchanged."""
    if len(x.shape) < 2:
        raise Fault(f"its operator {reader.kind} needs a matrix, not values of shape {x.shape}")
    order = [*range(len(x.shape) - 2), len(x.shape) - 1, len(x.shape) - 2]
    return permuted(reader, x, order)


def permuted(reader: OnnxReader, x: Flow, order: list[int]) -> Flow:
    """A Transpose; one that moves only axes of length one is a reshape."""
    shape = tuple(x.shape[axis] for axis in order)
    moved = [axis for axis in order if x.shape[axis] != 1]
    if moved == sorted(moved):
        return replace(x, value=reader.curve(x.value), shape=shape)
    lengths = [x.shape[axis] for axis in sorted(moved)]
    value = reader.in_shape(reader.line(x.value), tuple(lengths))
    places = [sorted(moved).index(axis) for axis in moved]
    turned = reader.aten(
        "permute", tuple(lengths[i] for i in places), self=value, dims=[0, *(place + 1 for place in places)]
    )
    return Flow(turned, shape)


@operator("MatMul")
def _matmul(reader: OnnxReader, call: Call) -> Value:
    a, b = call.inputs[:2]
    if isinstance(a, Flow) and isinstance(b, Flow):
        raise reader.unsupported("A product of two functions of the input has no Lipschitz constant.")
    if isinstance(a, Flow):
        if call.numbers(1).ndim != 2:
            return multiplied(reader, a, call.numbers(1), first=True)
        W = _matrix(call.numbers(1))
        if not a.shape or a.shape[-1] != W.shape[0]:
            raise Fault(f"its MatMul multiplies {a.shape} and {tuple(W.shape)}")
        return _dense(reader, a, W.T, (*a.shape[:-1], W.shape[1]))
    if call.numbers(0).ndim != 2:
        return multiplied(reader, call.flow(1), call.numbers(0), first=False)
    x, W = call.flow(1), _matrix(call.numbers(0))
    if len(x.shape) == 1:
        return _dense(reader, x, W, (W.shape[0],))
    if x.shape[-2] != W.shape[1]:
        raise Fault(f"its MatMul multiplies {tuple(W.shape)} and {x.shape}")
    turned = _turned(reader, x)
    made = _dense(reader, turned, W, (*turned.shape[:-1], W.shape[0]))
    return replace(_turned(reader, made), fresh=x.shape[-1] == 1)


def _matrix(tensor: Tensor) -> Tensor:
    if tensor.ndim != 2 or not tensor.numel():
        raise Fault(f"a product needs a constant matrix, not a constant of shape {tuple(tensor.shape)}")
    return tensor


@operator("Gemm", "alpha beta transA transB")
def _gemm(reader: OnnxReader, call: Call) -> Value:
    a, b = call.inputs[:2]
    if isinstance(a, Flow) == isinstance(b, Flow):
        raise reader.unsupported("Exactly one factor must be constant.")
    alpha, beta = (float(call.attributes.get(name, 1.0)) for name in ("alpha", "beta"))
    place = 0 if isinstance(a, Flow) else 1
    x, W = call.flow(place), call.numbers(1 - place)
    if len(x.shape) != 2 or W.ndim != 2 or not W.numel():
        raise Fault(f"its Gemm multiplies {x.shape} and {tuple(W.shape)}")
    with tracking():
        W = W if alpha == 1.0 else alpha * W
    turns = [bool(call.attributes.get(name, 0)) for name in ("transA", "transB")]
    x = _turned(reader, x) if turns[place] else x
    W = W.T if turns[1 - place] else W
    x, W = (x, W.T) if place == 0 else (_turned(reader, x), W)  # x W' in either case, for a product A B or (B' A')'
    if x.shape[1] != W.shape[1]:
        raise Fault(f"its Gemm multiplies {x.shape} and {tuple(W.T.shape)}")
    made = _dense(reader, x, W, (x.shape[0], W.shape[0]))
    made = made if place == 0 else replace(_turned(reader, made), fresh=x.shape[0] == 1)
    c = call.inputs[2] if len(call.inputs) > 2 else None
    if c is None or beta == 0.0:
        return made
    if isinstance(c, Flow):
        raise reader.unsupported("What it adds must be constant.")
    with tracking():
        shift = call.numbers(2) if beta == 1.0 else beta * call.numbers(2)
    return _shifted(reader, made, shift, alone=True)


# --- convolutions ----------------------------------------------------------------------------------------------------

Pairs = tuple[tuple[int, int], ...]


def _attribute_of(call: Call, name: str, count: int, default: int, least: int) -> tuple[int, ...]:
    """An attribute of ``count`` integers of a plausible size."""
    found: Any = call.attributes.get(name, [default] * count)
    items: list[Any] = cast(list[Any], found) if isinstance(found, list) else []
    if len(items) != count or not all(isinstance(n, int) and least <= n < 2**24 for n in items):
        raise Fault(f"the attribute {name} of its operator {call.kind} is {str(items)[:60]}")
    return tuple(int(n) for n in items)


def integers_of(call: Call, name: str, rank: int, default: int) -> tuple[int, ...]:
    """An attribute of one positive integer for each axis of space."""
    return _attribute_of(call, name, rank, default, 1)


def padding_of(
    call: Call, size: tuple[int, ...], kernel: tuple[int, ...], stride: tuple[int, ...], dilation: tuple[int, ...]
) -> Pairs:
    """(before, after) of each axis of space, by ``pads`` or ``auto_pad``."""
    rank = len(size)
    auto = call.attributes.get("auto_pad", "NOTSET")
    if auto == "NOTSET":
        pads = _attribute_of(call, "pads", 2 * rank, 0, 0)
        return tuple((pads[i], pads[i + rank]) for i in range(rank))
    if auto == "VALID":
        return ((0, 0),) * rank
    if auto not in ("SAME_UPPER", "SAME_LOWER"):
        raise Fault(f"the attribute auto_pad of its operator {call.kind} is {str(auto)[:60]!r}")
    pairs: list[tuple[int, int]] = []
    for n, k, s, d in zip(size, kernel, stride, dilation, strict=True):
        total = max((-(-n // s) - 1) * s + (k - 1) * d + 1 - n, 0)
        half = total // 2
        pairs.append((half, total - half) if auto == "SAME_UPPER" else (total - half, half))
    return tuple(pairs)


def windows(
    call: Call,
    size: tuple[int, ...],
    kernel: tuple[int, ...],
    stride: tuple[int, ...],
    dilation: tuple[int, ...],
    padding: Pairs,
    ceil: bool = False,
) -> tuple[int, ...]:
    """How many windows there are along each axis of space."""
    counts: list[int] = []
    for n, k, s, d, (before, after) in zip(size, kernel, stride, dilation, padding, strict=True):
        room = n + before + after - (k - 1) * d - 1
        if room < 0:
            raise Fault(f"the window of its operator {call.kind} is larger than its input")
        count = (-(-room // s) if ceil else room // s) + 1
        if ceil and (count - 1) * s >= n + before:  # a window that starts beyond the entries is none
            count -= 1
        counts.append(count)
    return tuple(counts)


def space_of(reader: OnnxReader, x: Flow) -> tuple[int, ...]:
    """The lengths of a value ``(1, channels, *space)``."""
    if len(x.shape) < 3 or x.shape[0] != 1:
        raise reader.unsupported(
            f"Its input has the shape {x.shape}, and one input at a time is read: give the shape of one input without "
            "batch (--input-shape in the command line)."
        )
    if len(x.shape) > 5:
        raise reader.unsupported("Space has at most three axes.")
    return x.shape[2:]


@operator("Conv", "auto_pad dilations group kernel_shape pads strides")
def _conv(reader: OnnxReader, call: Call) -> Value:
    x, W, b = call.flow(), call.numbers(1), call.constant(2)
    size = space_of(reader, x)
    kernel, group = tuple(W.shape[2:]), call.attributes.get("group", 1)
    fits = isinstance(group, int) and 1 <= group <= x.shape[1] and W.ndim == len(x.shape) and W.numel()
    if not fits or x.shape[1] != W.shape[1] * group or W.shape[0] % group:
        raise Fault(f"its Conv has a kernel of shape {tuple(W.shape)} for values of shape {x.shape}")
    if call.attributes.get("kernel_shape", list(kernel)) != list(kernel):
        raise Fault("its Conv declares another kernel_shape than its kernel has")
    if b is not None and (tuple(b.shape) != (W.shape[0],) or not b.is_floating_point()):
        raise Fault("the bias of its Conv does not fit its kernel")
    stride, dilation = (integers_of(call, name, len(size), 1) for name in ("strides", "dilations"))
    padding = padding_of(call, size, kernel, stride, dilation)
    shape = (W.shape[0], *windows(call, size, kernel, stride, dilation, padding))
    value = _padded(reader, reader.seen(x), padding)
    reader.require_small(math.prod(shape))
    made = reader.aten(
        "convolution",
        shape,
        input=value,
        weight=W,
        bias=b,
        stride=list(stride),
        padding=[0] * len(size),
        dilation=list(dilation),
        groups=group,
        transposed=False,
    )
    return Flow(made, (1, *shape), fresh=True)


@operator("ConvTranspose", "auto_pad dilations group kernel_shape output_padding output_shape pads strides")
def _conv_transpose(reader: OnnxReader, call: Call) -> Value:
    x, W, b = call.flow(), call.numbers(1), call.constant(2)
    size, kernel, group = space_of(reader, x), tuple(W.shape[2:]), call.attributes.get("group", 1)
    fits = isinstance(group, int) and 1 <= group <= x.shape[1] and W.ndim == len(x.shape) and W.numel()
    if not fits or x.shape[1] != W.shape[0] or W.shape[0] % group:
        raise Fault(f"its ConvTranspose has a kernel of shape {tuple(W.shape)} for values of shape {x.shape}")
    if call.attributes.get("kernel_shape", list(kernel)) != list(kernel):
        raise Fault("its ConvTranspose declares another kernel_shape than its kernel has")
    channels = W.shape[1] * group
    if b is not None and (tuple(b.shape) != (channels,) or not b.is_floating_point()):
        raise Fault("the bias of its ConvTranspose does not fit its kernel")
    stride, dilation = (integers_of(call, name, len(size), 1) for name in ("strides", "dilations"))
    more = _attribute_of(call, "output_padding", len(size), 0, 0)
    node = ConvTranspose(reader.layer, (), (channels,), W, b, stride, (), dilation, group)
    spread = node.spread((channels, *size))
    padding = _cut(call, size, stride, spread, more)
    shape = (channels, *(n - before - after for n, (before, after) in zip(spread, padding, strict=True)))
    if min(shape) < 1:
        raise Fault(f"its ConvTranspose leaves {shape} of {x.shape}")
    reader.require_small(channels * math.prod(spread))
    reader.require_small(math.prod(shape))
    source = reader.materialise(reader.seen(x))
    made = reader.append(replace(node, inputs=(source,), shape=shape, padding=padding))
    return Flow(made, (1, *shape))


def _cut(
    call: Call, size: tuple[int, ...], stride: tuple[int, ...], spread: tuple[int, ...], more: tuple[int, ...]
) -> Pairs:
    """How many positions are cut off (before, after) each axis, or put on where that is negative."""
    auto, rank = call.attributes.get("auto_pad", "NOTSET"), len(size)
    if "output_shape" not in call.attributes and auto in ("NOTSET", "VALID"):
        pads = _attribute_of(call, "pads", 2 * rank, 0, 0) if auto == "NOTSET" else (0,) * (2 * rank)
        return tuple((pads[i], pads[i + rank] - more[i]) for i in range(rank))
    if auto not in ("NOTSET", "VALID", "SAME_UPPER", "SAME_LOWER"):
        raise Fault(f"the attribute auto_pad of its operator {call.kind} is {str(auto)[:60]!r}")
    if "output_shape" in call.attributes:
        lengths = _attribute_of(call, "output_shape", rank, 1, 1)
    else:
        lengths = tuple(n * step for n, step in zip(size, stride, strict=True))
    pairs: list[tuple[int, int]] = []
    for n, length, extra in zip(spread, lengths, more, strict=True):
        total = max(n + extra - length, 0)
        if n + extra < length and "output_shape" not in call.attributes:
            raise Fault("its ConvTranspose makes fewer values than its auto_pad asks for")
        half = total // 2 if auto == "SAME_UPPER" else total - total // 2
        pairs.append((half, n - length - half))  # what is missing is put on at the end
    return tuple(pairs)


def _padded(reader: OnnxReader, value: Any, padding: Pairs) -> Any:
    from lipbridge.frontend.layers import Padded

    if not any(any(pair) for pair in padding):
        return value
    if isinstance(value, Padded) and value.mode == "zeros" and value.fill == 0.0:
        value, padding = (
            value.value,
            tuple((p[0] + q[0], p[1] + q[1]) for p, q in zip(value.padding, padding, strict=True)),
        )
    curve = reader.curve(value)
    channels, *space = reader.shape_of(curve)
    reader.require_small(channels * math.prod(n + sum(pair) for n, pair in zip(space, padding, strict=True)))
    return Padded(curve, padding, "zeros", 0.0)


# --- sums, differences, factors --------------------------------------------------------------------------------------


def _line(value: Any) -> tuple[float, float] | None:
    """Scale and offset of a curve that is one line."""
    if isinstance(value, Curve) and len(value.components) == 1 and len(value.components[0]) == 1:
        (term,) = value.components[0]
        if term.function == "identity":
            return term.coefficient * term.scale, term.coefficient * term.offset
    return None


def _broadcast(reader: OnnxReader, x: Flow, other: tuple[int, ...]) -> tuple[Flow, tuple[int, ...]]:
    """The shape of what an operator makes of a value and another, and the value repeated where it has to be."""
    try:
        shape = broadcast_shape(x.shape, other)
    except RuntimeError:
        raise Fault(f"its operator {reader.kind} joins shapes {x.shape} and {other}") from None
    if math.prod(shape) == math.prod(x.shape):
        return x, shape
    if len(shape) != len(x.shape):
        raise reader.unsupported("Another value of more axes would repeat the layer's values along new ones.")
    return expanded(reader, x, shape), shape


def aligned(reader: OnnxReader, x: Flow, constant: Tensor) -> tuple[Curve, Tensor, tuple[int, ...]]:
    """The value, the constant as one for the value's node, and the result's shape in ONNX."""
    if not constant.is_floating_point():
        raise Fault(f"its operator {reader.kind} joins a layer's values with integers")
    x, shape = _broadcast(reader, x, tuple(constant.shape))
    value = reader.moderate(reader.curve(x.value))
    if constant.numel() == 1:
        return value, constant.reshape(()), shape
    node = reader.shape_of(value)
    constant = constant.reshape((1,) * (len(shape) - constant.ndim) + tuple(constant.shape))
    seen = per_input(shape)
    if node[0] != seen[0] == constant.numel():  # one number for each channel of ONNX's shape
        value, node = reader.curve(reader.in_shape(value, seen)), seen
    if node == (shape[1:] if len(shape) > 1 and shape[0] == 1 else shape):
        return value, constant[0] if node != shape else constant, shape
    return value, constant.expand(shape).reshape(node), shape


def _shifted(reader: OnnxReader, x: Flow, constant: Tensor, alone: bool) -> Flow:
    """``x + constant``; a layer that has no bias and no other reader takes the constant as its bias, exactly."""
    value, constant, shape = aligned(reader, x, constant)
    node: Node = reader.nodes[value.source]
    if x.fresh and alone and value.components == (LINE,) and isinstance(node, Dense | Conv) and node.bias is None:
        m, rank = node.weight.shape[0], len(node.shape)
        axis = rank - 1 if isinstance(node, Dense) else 0
        full = constant.reshape((1,) * (rank - constant.ndim) + tuple(constant.shape))
        if full.numel() == full.shape[axis] and value.source == len(reader.nodes) - 1:
            reader.nodes[value.source] = replace(node, bias=full.reshape(-1).expand(m).contiguous())
            return Flow(value, shape)
    made = reader.aten("add", reader.shape_of(value), self=value, other=constant, alpha=1)
    return Flow(made, shape)


def _pair(reader: OnnxReader, call: Call) -> tuple[Any, Any, tuple[int, ...]]:
    """Two values with their nodes in one shape."""
    a, b = call.flow(0), call.flow(1)
    x, shape = _broadcast(reader, a, b.shape)
    y, _ = _broadcast(reader, b, a.shape)
    both = [_waiting(reader, flow).value for flow in (x, y)]
    values = [v if isinstance(v, Waiting) else reader.moderate(reader.curve(v)) for v in both]
    whole = [v for v in values if isinstance(v, Curve)]
    sizes = [reader.shape_of(v) for v in whole]
    size = per_input(shape) if per_input(shape) in sizes or not sizes else sizes[0]
    first, second = (reader.in_shape(v, size) for v in values)
    return first, second, shape


@operator("Add Sub")
def add(reader: OnnxReader, call: Call) -> Value:
    a, b = call.inputs[:2]
    name = "add" if call.kind == "Add" else "sub"
    if isinstance(a, Flow) and isinstance(b, Flow):
        centred = moments.difference(a, b) if name == "sub" else None
        if centred is not None:
            return centred
        x, y, shape = _pair(reader, call)
        if isinstance(x, Waiting) or isinstance(y, Waiting):
            return Flow(reader.aten(name, per_input(shape), self=x, other=y, alpha=1), shape)
        size = reader.shape_of(x)
        return Flow(reader.moderate(reader.aten(name, size, self=x, other=y, alpha=1)), shape)
    place = 0 if isinstance(a, Flow) else 1
    x, c = _waiting(reader, call.flow(place)), call.numbers(1 - place)
    if isinstance(x.value, Waiting) and c.numel() == 1:
        sides = (x.value, float(c)) if place == 0 else (float(c), x.value)
        return replace(x, value=reader.aten(name, per_input(x.shape), self=sides[0], other=sides[1], alpha=1))
    moved = moments.shifted(x, c if name == "add" else -c) if name == "add" or place == 0 else None
    if moved is not None:
        return moved
    if name == "add" or place == 0:
        return _shifted(reader, x, c if name == "add" else -c, call.alone[place])
    value, c, shape = aligned(reader, x, c)
    return Flow(reader.aten("sub", reader.shape_of(value), self=c, other=value, alpha=1), shape)


@operator("Scaler", "offset scale")
def _scaler(reader: OnnxReader, call: Call) -> Value:
    """Of scikit-learn's converter: (x - offset) * scale, one number for all or one for each column."""
    x, n = call.flow(), call.flow().shape[-1]
    for name in ("offset", "scale"):
        given: Any = call.attributes.get(name)
        numbers = torch.tensor([given] if isinstance(given, float) else given or [], dtype=torch.float64)
        if numbers.numel() not in (1, n):
            raise Fault(f"the attribute {name} of its Scaler has {numbers.numel()} numbers for {n} columns")
        kind, numbers = ("Add", -numbers) if name == "offset" else ("Mul", numbers)
        step = replace(call, kind=kind, inputs=[x, numbers], attributes={}, alone=(True, True))
        made = add(reader, step) if kind == "Add" else _mul(reader, step)
        assert isinstance(made, Flow)
        x = made
    return x


@operator("Sum")
def _sum(reader: OnnxReader, call: Call) -> Value:
    total: Value | None = None
    for value, alone in zip(call.inputs, call.alone, strict=True):
        if total is None or value is None:
            total = value if total is None else total
        else:
            pair = replace(call, kind="Add", inputs=[total, value], alone=(True, alone))
            total = total + value if isinstance(total, Tensor) and isinstance(value, Tensor) else add(reader, pair)  # type: ignore[assignment]
    assert total is not None
    return total


@operator("Mul")
def _mul(reader: OnnxReader, call: Call) -> Value:
    a, b = call.inputs[:2]
    if isinstance(a, Flow) and isinstance(b, Flow):
        return moments.product(reader, a, b) or _product(reader, call)
    place = 0 if isinstance(a, Flow) else 1
    x, c = call.flow(place), call.numbers(1 - place)
    if isinstance(x.value, moments.Moment) and _exact_number(c) == 1.0:
        return x  # 1.0 / t is exported as a reciprocal times 1.0
    x = _waiting(reader, x)
    waiting = times_number(reader, x.value, c)
    if waiting is not None:
        return replace(x, value=waiting)
    value, c, shape = aligned(reader, x, c)
    made = reader.aten("mul", reader.shape_of(value), self=value, other=c)
    factor = _exact_number(c)
    return Flow(made, shape, fresh=True) if factor is None else Flow(_scaled(x.value, value, made, factor), shape)


def _exact_number(c: Tensor) -> float | None:
    """The one number that a constant is; None for several, and for one that is only known up to an error."""
    return float(c) if c.numel() == 1 and not isinstance(c, Computed) else None


def _scaled(before: Any, value: Curve, made: Curve, factor: float) -> Any:
    """``made``, which is ``factor`` times ``value``, the curve of ``before``."""
    if isinstance(before, Scaled) and before.made == value:
        both = factor * before.factor
        if Fraction(both) == Fraction(factor) * Fraction(before.factor):
            return Scaled(made, before.bent, both)
    return made if _line(value) is not None else Scaled(made, value, factor)


@operator("Div")
def _div(reader: OnnxReader, call: Call) -> Value:
    a, b = call.inputs[:2]
    if isinstance(b, Flow):
        if isinstance(a, Flow):
            found = moments.quotient(reader, a, b)
        else:
            found = moments.power(b, -1.0) if a is not None and a.numel() == 1 and float(a) == 1.0 else None
        if found is not None:
            return found
        if isinstance(a, Flow):
            x, y, shape = _pair(reader, call)
            return Flow(reader.aten("div", per_input(shape), self=x, other=y), shape)
        raise reader.unsupported("A quotient by a function of the input has no global Lipschitz constant.")
    x, c = _waiting(reader, call.flow()), call.numbers(1)
    waiting = times_number(reader, x.value, c, inverse=True)
    if waiting is not None:
        return replace(x, value=waiting)
    value, c, shape = aligned(reader, x, c)
    made = reader.aten("div", reader.shape_of(value), self=value, other=c)
    divisor = _exact_number(c)
    return Flow(made if divisor is None else _scaled(x.value, value, made, number(1 / Fraction(divisor))), shape)


def _product(reader: OnnxReader, call: Call) -> Value:
    """Products of two values that are one activation: sin(t)^2, t sigmoid(t), t (1 + erf(t / sqrt 2)), ..."""
    x, y, shape = _pair(reader, call)
    if x == y and isinstance(x, Curve):
        return _squared(reader, Flow(call.flow().value, shape))
    x, y = _as_line(reader, x, y), _as_line(reader, y, x)
    made = product(reader, x, y, FLOAT32)
    if made is None:
        raise reader.unsupported("A product of two functions of the input has no Lipschitz constant.")
    return Flow(made, shape)


def _alike(x: Any, y: Any) -> bool:
    """Whether two curves are on one node and have as many components."""
    if not isinstance(x, Curve) or not isinstance(y, Curve):
        return False
    return (x.source, x.axis, len(x.components)) == (y.source, y.axis, len(y.components))


def _as_line(reader: OnnxReader, value: Any, other: Any) -> Any:
    """A multiple of what the other one's node holds, as a line on that node."""
    if not isinstance(value, Curve) or value.source == other.source:
        return value
    for known, index in reader.materialised.items():
        if index == other.source and _alike(known, value):
            first, second = (_size(curve) for curve in (known, value))
            ratio = second / first if first else math.nan
            if math.isfinite(ratio) and reader.aten("mul", reader.shape_of(known), self=known, other=ratio) == value:
                return Curve(index, ((Term("identity", 1.0, ratio),),))
    return value


def _size(curve: Curve) -> float:
    """The factor of a curve's first term."""
    term = curve.components[0][0]
    return term.scale if term.function == "identity" else term.coefficient


@operator("Pow")
def _pow(reader: OnnxReader, call: Call) -> Value:
    x, exponent = call.flow(), call.constant(1)
    found = None if exponent is None or exponent.numel() != 1 else float(exponent)
    step = None if found is None else moments.power(x, found)
    if step is not None:
        return step
    if found == 1.0:
        return x
    if found not in (2.0, 3.0):
        raise reader.unsupported("It has no global Lipschitz constant.")
    if found == 2.0:
        return _squared(reader, x)
    return Flow(reader.aten("pow", per_input(x.shape), self=reader.curve(x.value), exponent=found), x.shape)


def _squared(reader: OnnxReader, x: Flow) -> Flow:
    """A square that is an activation, as sin(t)^2 is, or one that waits for its mean or a part of GELU."""
    value = reader.curve(x.value)
    found = reader.aten("square", reader.shape_of(value), self=value)
    return Flow(found, x.shape) if isinstance(found, Curve) else moments.square(x)


def _waiting(reader: OnnxReader, x: Flow) -> Flow:
    """A square that is multiplied or added: no step of a normalisation."""
    if isinstance(x.value, moments.PlainSquare):
        return replace(x, value=square_of(reader, reader.curve(x.value.x)))
    return x


@operator("Sqrt Reciprocal")
def _root(reader: OnnxReader, call: Call) -> Value:
    step = moments.power(call.flow(), 0.5 if call.kind == "Sqrt" else -1.0)
    if step is None:
        raise reader.unsupported("It has no global Lipschitz constant.")
    return step


# --- scalar functions ------------------------------------------------------------------------------------------------

_FUNCTIONS = {
    "Neg": "neg",
    "Abs": "abs",
    "Relu": "relu",
    "Tanh": "tanh",
    "Sigmoid": "sigmoid",
    "Sin": "sin",
    "Cos": "cos",
    "Erf": "erf",
}


def applied(reader: OnnxReader, x: Flow, name: str, **arguments: Any) -> Flow:
    if isinstance(x.value, Waiting):
        return replace(x, value=reader.aten(name, per_input(x.shape), self=x.value, **arguments))
    value = reader.moderate(reader.curve(x.value))
    if isinstance(x.value, Scaled) and name not in ("neg", "mul", "add"):
        # A multiple of a bent curve bends again: as a function of the first bend, which others may read as well.
        value = Curve(reader.materialise(x.value.bent), ((Term("identity", 1.0, x.value.factor),),))
    made = reader.aten(name, reader.shape_of(value), self=value, **arguments)
    return Flow(_scaled(x.value, value, made, -1.0) if name == "neg" else made, x.shape)


@operator(" ".join(_FUNCTIONS))
def _scalar(reader: OnnxReader, call: Call) -> Value:
    return applied(reader, call.flow(), _FUNCTIONS[call.kind])


@operator("LeakyRelu", "alpha")
def _leaky_relu(reader: OnnxReader, call: Call) -> Value:
    return applied(reader, call.flow(), "leaky_relu", negative_slope=float(call.attributes.get("alpha", float32(0.01))))


def float32(value: float) -> float:
    """A default that ONNX states in decimal and every runtime keeps in float32."""
    return float(torch.tensor(value, dtype=torch.float32))


@operator("Elu", "alpha")
def _elu(reader: OnnxReader, call: Call) -> Value:
    alpha = float(call.attributes.get("alpha", 1.0))
    return applied(reader, call.flow(), "elu", alpha=alpha, scale=1, input_scale=1)


@operator("Softplus")
def _softplus(reader: OnnxReader, call: Call) -> Value:
    return applied(reader, call.flow(), "softplus", beta=1.0, threshold=math.inf)


@operator("Log")
def _log(reader: OnnxReader, call: Call) -> Value:
    """log(sigmoid(t)). Where t is low, a sigmoid in float32 is zero or what ONNX Runtime stops at."""
    x = call.flow()
    curve = reader.curve(x.value)
    terms = [component[0] for component in curve.components if len(component) == 1]
    if len(terms) != len(curve.components) or any((t.function, t.coefficient) != ("sigmoid", 1.0) for t in terms):
        raise reader.unsupported("It has no global Lipschitz constant (but log(sigmoid(t)) has).")
    lines = tuple((Term("identity", 1.0, t.scale, t.offset),) for t in terms)
    reader.underflowing.append(replace(curve, components=lines))
    made = (replace(t, function="log_sigmoid") for t in terms)
    return Flow(replace(curve, components=tuple((term,) for term in made)), x.shape)


@operator("HardSigmoid", "alpha beta")
def _hard_sigmoid(reader: OnnxReader, call: Call) -> Value:
    alpha, beta = (float(call.attributes.get(n, float32(d))) for n, d in (("alpha", 0.2), ("beta", 0.5)))
    line = applied(reader, applied(reader, call.flow(), "mul", other=alpha), "add", other=beta, alpha=1)
    return applied(reader, line, "clamp", min=0.0, max=1.0)


@operator("Clip", "min max")
def _clip(reader: OnnxReader, call: Call) -> Value:
    limits = [call.attributes.get(n, call.constant(i)) for n, i in (("min", 1), ("max", 2))]
    numbers = [None if limit is None else float(limit) for limit in limits]
    low, high = (None if n is None or math.isinf(n) or abs(n) > 3.4e38 else n for n in numbers)
    if low is None and high is None:
        return call.flow()
    return applied(reader, call.flow(), "clamp", min=low, max=high)


@operator("Max Min")
def _extreme(reader: OnnxReader, call: Call) -> Value:
    larger = call.kind == "Max"
    flows = [value for value in call.inputs if isinstance(value, Flow)]
    limits = [call.numbers(i) for i, value in enumerate(call.inputs) if not isinstance(value, Flow)]
    found = flows[0]
    for other in flows[1:]:
        if other.shape != found.shape:
            raise reader.unsupported("The layers have different shapes.")
        found = Flow(Extreme(reader.seen(found), reader.seen(other), larger), found.shape)
    for many in (limit for limit in limits if limit.numel() != 1):
        value, constant, shape = aligned(reader, found, many)
        name = "maximum" if larger else "minimum"
        found = Flow(reader.aten(name, reader.shape_of(value), self=value, other=constant), shape)
    numbers = [float(limit) for limit in limits if limit.numel() == 1]
    if numbers:
        limit = {"min": max(numbers), "max": None} if larger else {"min": None, "max": min(numbers)}
        found = applied(reader, found, "clamp", **limit)
    return found


__all__ = [
    "FLOAT32",
    "add",
    "aligned",
    "applied",
    "float32",
    "integers_of",
    "padding_of",
    "permuted",
    "space_of",
    "windows",
]
