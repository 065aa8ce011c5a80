"""ONNX's operators in terms of capture's handlers: layers, scalar functions, products that are activations."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Any, cast

import torch
from torch import Tensor

from lipbridge.activations import Term
from lipbridge.capture_diagonal import reciprocal
from lipbridge.capture_extremes import Extreme
from lipbridge.capture_reader import LINE, Curve, Deferred, Reader
from lipbridge.graph import Conv, ConvTranspose, Dense, Node
from lipbridge_adapters import onnx_moments as moments
from lipbridge_adapters.onnx_constants import broadcast_shape
from lipbridge_adapters.onnx_file import Fault
from lipbridge_adapters.onnx_reader import Call, Flow, OnnxReader, Scaled, Value, operator, per_input

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
        W = _matrix(call.numbers(1))
        if not a.shape or a.shape[-1] != W.shape[0]:
            raise Fault(f"its MatMul multiplies {a.shape} and {tuple(W.shape)}")
        return _dense(reader, a, W.T, (*a.shape[:-1], W.shape[1]))
    x, W = call.flow(1), _matrix(call.numbers(0))
    if len(x.shape) == 1:
        return _dense(reader, x, W, (W.shape[0],))
    if x.shape[-2] != W.shape[1]:
        raise Fault(f"its MatMul multiplies {tuple(W.shape)} and {x.shape}")
    turned = _turned(reader, x)
    made = _dense(reader, turned, W, (*turned.shape[:-1], W.shape[0]))
    return replace(_turned(reader, made), fresh=x.shape[-1] == 1)


def _matrix(tensor: Tensor) -> Tensor:
    while tensor.ndim > 2 and tensor.shape[0] == 1:
        tensor = tensor[0]
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
    c = call.numbers(2)
    return _shifted(reader, made, c if beta == 1.0 else beta * c, alone=True)


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
    from lipbridge.capture_layers import Padded

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


@dataclass(frozen=True)
class ErrorFunction(Deferred):
    """``factor * erf(rate t) + shift`` of a line t, which waits to become a GELU."""

    source: int
    rate: float
    factor: float = 1.0
    shift: float = 0.0

    def materialise(self, reader: Reader) -> Curve:
        """Alone it is none of the activations."""
        raise reader.unsupported("Erf is read only as a part of a GELU, 0.5 t (1 + erf(t / sqrt 2)).")


@operator("Erf")
def _erf(reader: OnnxReader, call: Call) -> Value:
    x = call.flow()
    curve = reader.curve(x.value)
    line = _line(curve)
    if line is None and isinstance(x.value, Scaled):
        curve, line = reader.line(x.value.bent), (x.value.factor, 0.0)
    elif line is None or line[1] != 0.0:
        curve, line = reader.line(curve), (1.0, 0.0)
    return Flow(ErrorFunction(curve.source, line[0]), x.shape)


def _line(value: Any) -> tuple[float, float] | None:
    """Scale and offset of a curve that is one line."""
    if isinstance(value, Curve) and len(value.components) == 1 and len(value.components[0]) == 1:
        (term,) = value.components[0]
        if term.function == "identity":
            return term.coefficient * term.scale, term.coefficient * term.offset
    return None


def _broadcast(reader: OnnxReader, x: Flow, other: tuple[int, ...]) -> tuple[int, ...]:
    try:
        shape = broadcast_shape(x.shape, other)
    except RuntimeError:
        raise Fault(f"its operator {reader.kind} joins shapes {x.shape} and {other}") from None
    if math.prod(shape) != math.prod(x.shape):
        raise reader.unsupported("A constant of another shape would repeat the layer's values.")
    return shape


def _aligned(reader: OnnxReader, x: Flow, constant: Tensor) -> tuple[Curve, Tensor, tuple[int, ...]]:
    """The value, the constant as one for the value's node, and the result's shape in ONNX."""
    if not constant.is_floating_point():
        raise Fault(f"its operator {reader.kind} joins a layer's values with integers")
    shape = _broadcast(reader, x, tuple(constant.shape))
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
    value, constant, shape = _aligned(reader, x, constant)
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
    x, y = call.flow(0), call.flow(1)
    shape = _broadcast(reader, x, y.shape)
    if math.prod(y.shape) != math.prod(shape):
        raise reader.unsupported("A value of another shape would be repeated.")
    values = [v if isinstance(v, ErrorFunction) else reader.moderate(reader.curve(v)) for v in (x.value, y.value)]
    whole = [v for v in values if isinstance(v, Curve)]
    sizes = [reader.shape_of(v) for v in whole]
    size = per_input(shape) if per_input(shape) in sizes or not sizes else sizes[0]
    first, second = (reader.in_shape(v, size) for v in values)
    return first, second, shape


@operator("Add Sub")
def _add(reader: OnnxReader, call: Call) -> Value:
    a, b = call.inputs[:2]
    name = "add" if call.kind == "Add" else "sub"
    if isinstance(a, Flow) and isinstance(b, Flow):
        centred = moments.difference(a, b) if name == "sub" else None
        if centred is not None:
            return centred
        x, y, shape = _pair(reader, call)
        size = reader.shape_of(x)
        return Flow(reader.moderate(reader.aten(name, size, self=x, other=y, alpha=1)), shape)
    place = 0 if isinstance(a, Flow) else 1
    x, c = call.flow(place), call.numbers(1 - place)
    if isinstance(x.value, ErrorFunction) and c.numel() == 1:
        sign = -1.0 if name == "sub" and place == 1 else 1.0
        shift = float(c) * (-1.0 if name == "sub" and place == 0 else 1.0)
        erf = replace(x.value, factor=sign * x.value.factor, shift=sign * x.value.shift + shift)
        return replace(x, value=erf)
    moved = moments.shifted(x, c if name == "add" else -c) if name == "add" or place == 0 else None
    if moved is not None:
        return moved
    if name == "add" or place == 0:
        return _shifted(reader, x, c if name == "add" else -c, call.alone[place])
    value, c, shape = _aligned(reader, x, c)
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
        made = _add(reader, step) if kind == "Add" else _mul(reader, step)
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
            total = total + value if isinstance(total, Tensor) and isinstance(value, Tensor) else _add(reader, pair)  # type: ignore[assignment]
    assert total is not None
    return total


@operator("Mul")
def _mul(reader: OnnxReader, call: Call) -> Value:
    a, b = call.inputs[:2]
    if isinstance(a, Flow) and isinstance(b, Flow):
        return moments.product(reader, a, b) or _product(reader, call)
    place = 0 if isinstance(a, Flow) else 1
    x, c = call.flow(place), call.numbers(1 - place)
    if isinstance(x.value, ErrorFunction) and c.numel() == 1:
        factor = float(c)
        return replace(x, value=replace(x.value, factor=factor * x.value.factor, shift=factor * x.value.shift))
    if isinstance(x.value, moments.Moment) and c.numel() == 1 and float(c) == 1.0:
        return x  # 1.0 / t is exported as a reciprocal times 1.0
    value, c, shape = _aligned(reader, x, c)
    made = reader.aten("mul", reader.shape_of(value), self=value, other=c)
    if c.numel() == 1:
        return Flow(_scaled(value, made, float(c)), shape)
    return Flow(made, shape, fresh=True)


def _scaled(value: Curve, made: Curve, factor: float) -> Any:
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
        raise reader.unsupported("A quotient by a function of the input has no global Lipschitz constant.")
    x, c = call.flow(), call.numbers(1)
    if isinstance(x.value, ErrorFunction) and c.numel() == 1 and float(c) != 0.0:
        return replace(x, value=replace(x.value, factor=x.value.factor / float(c), shift=x.value.shift / float(c)))
    value, c, shape = _aligned(reader, x, c)
    made = reader.aten("div", reader.shape_of(value), self=value, other=c)
    return Flow(_scaled(value, made, 1.0 / float(c)) if c.numel() == 1 else made, shape)


def _product(reader: OnnxReader, call: Call) -> Value:
    """Products of two values that are one activation: sin(t)^2, t sigmoid(t), t (1 + erf(t / sqrt 2))."""
    x, y, shape = _pair(reader, call)
    if not isinstance(x, ErrorFunction) and x == y:
        return _squared(reader, Flow(call.flow().value, shape))
    x, y = _as_line(reader, x, y), _as_line(reader, y, x)
    for line, other in ((x, y), (y, x)):
        if isinstance(other, ErrorFunction):
            made = [_gelu_of(line, other)]
        elif _alike(line, other):
            made = [_silu_of(one, two) for one, two in zip(_each(line), _each(other), strict=True)]
        else:
            continue
        terms = [term for term in made if term is not None]
        if len(terms) == len(made):
            return Flow(replace(line, components=tuple((term,) for term in terms)), shape)
    raise reader.unsupported("A product of two functions of the input has no Lipschitz constant.")


def _each(curve: Curve) -> list[Curve]:
    """The components of a curve, each as a curve."""
    return [replace(curve, components=(component,)) for component in curve.components]


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
            if reader.aten("mul", reader.shape_of(known), self=known, other=ratio) == value:
                return Curve(index, ((Term("identity", 1.0, ratio),),))
    return value


def _size(curve: Curve) -> float:
    """The factor of a curve's first term."""
    term = curve.components[0][0]
    return term.scale if term.function == "identity" else term.coefficient


def _silu_of(line: Any, other: Any) -> Term | None:
    """k t * c sigmoid(s t) = (c k / s) silu(s t), if the quotient is a double."""
    found = _line(line)
    if found is None or not isinstance(other, Curve) or other.source != line.source or len(other.components) != 1:
        return None
    component = other.components[0]
    if len(component) != 1 or component[0].function != "sigmoid":
        return None
    (term,), (k, offset) = component, found
    if (term.scale, term.offset) == (k, offset):
        return Term("silu", term.coefficient, k, offset)
    if offset != 0.0 or term.offset != 0.0 or term.scale == 0.0:
        return None
    exact = Fraction(term.coefficient) * Fraction(k) / Fraction(term.scale)
    return Term("silu", float(exact), term.scale) if Fraction(float(exact)) == exact else None


def _gelu_of(line: Any, erf: ErrorFunction) -> Term | None:
    """k t (f erf(r t) + f) = 2 f k / c * gelu(c t) with c = r sqrt 2.

    A stored sqrt 2 is rounded to float32, so that c is 1 (or k, or 2k) but for that, and is read so. The slopes of
    gelu(c t) / c are those of gelu itself, so this changes no Lipschitz constant.
    """
    found = _line(line)
    if found is None or line.source != erf.source or erf.factor != erf.shift or found[1] != 0.0:
        return None
    k, c = found[0], erf.rate * math.sqrt(2.0)
    if k != 0.0 and abs(c - k) <= FLOAT32 * abs(k):
        return Term("gelu", 2.0 * erf.factor, k)
    if k != 0.0 and abs(c - 2.0 * k) <= FLOAT32 * abs(2.0 * k):  # half of 2k t, as the formula has it
        return Term("gelu", erf.factor, 2.0 * k)
    if abs(c - 1.0) <= FLOAT32:
        return Term("gelu", 2.0 * erf.factor * k)
    return None


@operator("Pow")
def _pow(reader: OnnxReader, call: Call) -> Value:
    x, exponent = call.flow(), call.constant(1)
    found = None if exponent is None or exponent.numel() != 1 else float(exponent)
    step = None if found is None else moments.power(x, found)
    if step is not None:
        return step
    if found not in (1.0, 2.0):
        raise reader.unsupported(_TANH_GELU if found == 3.0 else "It has no global Lipschitz constant.")
    if found == 1.0:
        return x
    return _squared(reader, x)


def _squared(reader: OnnxReader, x: Flow) -> Flow:
    """A square that is an activation, as sin(t)^2 is, or one that waits for its mean."""
    value = reader.curve(x.value)
    found = reader.aten("square", reader.shape_of(value), self=value)
    return Flow(found, x.shape) if isinstance(found, Curve) else moments.square(x)


_TANH_GELU = (
    "A cube has no global Lipschitz constant. If it is of a GELU in its approximation by tanh, export the exact one "
    "(approximate='none'), which is read."
)


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
}


def _applied(reader: OnnxReader, x: Flow, name: str, **arguments: Any) -> Flow:
    value = reader.moderate(reader.curve(x.value))
    if isinstance(x.value, Scaled) and name not in ("neg", "mul", "add"):
        # A multiple of a bent curve bends again: as a function of the first bend, which others may read as well.
        value = Curve(reader.materialise(x.value.bent), ((Term("identity", 1.0, x.value.factor),),))
    made = reader.aten(name, reader.shape_of(value), self=value, **arguments)
    return Flow(_scaled(value, made, -1.0) if name == "neg" else made, x.shape)


@operator(" ".join(_FUNCTIONS))
def _scalar(reader: OnnxReader, call: Call) -> Value:
    return _applied(reader, call.flow(), _FUNCTIONS[call.kind])


@operator("LeakyRelu", "alpha")
def _leaky_relu(reader: OnnxReader, call: Call) -> Value:
    return _applied(
        reader, call.flow(), "leaky_relu", negative_slope=float(call.attributes.get("alpha", _float32(0.01)))
    )


def _float32(value: float) -> float:
    """A default that ONNX states in decimal and every runtime keeps in float32."""
    return float(torch.tensor(value, dtype=torch.float32))


@operator("Elu", "alpha")
def _elu(reader: OnnxReader, call: Call) -> Value:
    alpha = float(call.attributes.get("alpha", 1.0))
    return _applied(reader, call.flow(), "elu", alpha=alpha, scale=1, input_scale=1)


@operator("Selu", "alpha gamma")
def _selu(reader: OnnxReader, call: Call) -> Value:
    """gamma * elu(t; alpha)."""
    alpha = float(call.attributes.get("alpha", _float32(1.6732632423543772)))
    gamma = float(call.attributes.get("gamma", _float32(1.0507009873554805)))
    made = _applied(reader, call.flow(), "elu", alpha=alpha, scale=1, input_scale=1)
    return _applied(reader, made, "mul", other=gamma)


@operator("Celu", "alpha")
def _celu(reader: OnnxReader, call: Call) -> Value:
    """alpha * elu(t / alpha), with 1 / alpha rounded away from zero where it is no double."""
    alpha = float(call.attributes.get("alpha", 1.0))
    x = call.flow()
    inner = x if alpha == 1.0 else _applied(reader, x, "mul", other=_over(reader, alpha))
    made = _applied(reader, inner, "elu", alpha=1.0, scale=1, input_scale=1)
    return made if alpha == 1.0 else _applied(reader, made, "mul", other=alpha)


def _over(reader: OnnxReader, divisor: float) -> float:
    return float(reciprocal(reader, torch.tensor(divisor, dtype=torch.float64)))


@operator("Softplus")
def _softplus(reader: OnnxReader, call: Call) -> Value:
    return _applied(reader, call.flow(), "softplus", beta=1.0, threshold=math.inf)


@operator("Log")
def _log(reader: OnnxReader, call: Call) -> Value:
    """log(sigmoid(t)) = -softplus(-t)."""
    x = call.flow()
    curve = reader.curve(x.value)
    terms = [component[0] for component in curve.components if len(component) == 1]
    if len(terms) != len(curve.components) or any((t.function, t.coefficient) != ("sigmoid", 1.0) for t in terms):
        raise reader.unsupported("It has no global Lipschitz constant (but log(sigmoid(t)) has).")
    made = (Term("softplus", -1.0, -t.scale, -t.offset, (1.0,)) for t in terms)
    return Flow(replace(curve, components=tuple((term,) for term in made)), x.shape)


@dataclass(frozen=True)
class Above(Deferred):
    """Whether a line is above a limit, which chooses between a softplus and the line that it nears there."""

    curve: Curve
    limit: float

    def materialise(self, reader: Reader) -> Curve:
        """Alone it is no layer."""
        raise reader.unsupported("A comparison jumps; it is read only in a softplus that goes over to its line.")


@operator("Greater")
def _greater(reader: OnnxReader, call: Call) -> Value:
    x, limit = call.flow(), call.numbers(1)
    if limit.numel() != 1:
        raise reader.unsupported("A limit must be one number.")
    return Flow(Above(reader.curve(x.value), float(limit)), x.shape)


@operator("Where")
def _where(reader: OnnxReader, call: Call) -> Value:
    """Where(b t > 20, t, softplus(b t) / b), torch's softplus: the step at the limit is below 3e-9, as in capture."""
    above, line, bent = (call.flow(place) for place in range(3))
    near, curve = reader.curve(line.value), reader.curve(bent.value)
    if isinstance(above.value, Above) and line.shape == bent.shape == above.shape and above.value.limit >= 20.0:
        one = len(curve.components) == len(curve.components[0]) == 1
        if one and near.source == curve.source == above.value.curve.source:
            (term,) = curve.components[0]
            found, inner = _line(near), _line(above.value.curve)
            slope, offset = term.coefficient * term.scale, term.coefficient * term.offset
            close = found is not None and all(
                math.isclose(a, b, rel_tol=2.0**-50) for a, b in ((slope, found[0]), (offset, found[1]))
            )
            if close and inner == (term.scale, term.offset) and (term.function, *term.parameters) == ("softplus", 1.0):
                return Flow(curve, bent.shape)
    raise reader.unsupported("A choice jumps, unless it is a softplus that goes over to its line at 20 or above.")


@operator("Gelu", "approximate")
def _gelu(reader: OnnxReader, call: Call) -> Value:
    if call.attributes.get("approximate", "none") != "none":
        raise reader.unsupported("Only the exact GELU is read (approximate='none'), not its approximation by tanh.")
    return _applied(reader, call.flow(), "gelu", approximate="none")


@operator("HardSigmoid", "alpha beta")
def _hard_sigmoid(reader: OnnxReader, call: Call) -> Value:
    alpha, beta = (float(call.attributes.get(n, _float32(d))) for n, d in (("alpha", 0.2), ("beta", 0.5)))
    line = _applied(reader, _applied(reader, call.flow(), "mul", other=alpha), "add", other=beta, alpha=1)
    return _applied(reader, line, "clamp", min=0.0, max=1.0)


@operator("Clip", "min max")
def _clip(reader: OnnxReader, call: Call) -> Value:
    limits = [call.attributes.get(n, call.constant(i)) for n, i in (("min", 1), ("max", 2))]
    numbers = [None if limit is None else float(limit) for limit in limits]
    low, high = (None if n is None or math.isinf(n) or abs(n) > 3.4e38 else n for n in numbers)
    if low is None and high is None:
        return call.flow()
    return _applied(reader, call.flow(), "clamp", min=low, max=high)


@operator("PRelu")
def _prelu(reader: OnnxReader, call: Call) -> Value:
    """One slope is a leaky ReLU; slopes of their own are relu(t) - a relu(-t), layers after one another."""
    x, slope = call.flow(), call.numbers(1)
    if slope.numel() and bool((slope == slope.reshape(-1)[0]).all()):
        return _applied(reader, x, "leaky_relu", negative_slope=float(slope.reshape(-1)[0]))
    positive = _applied(reader, x, "relu")
    negative = _applied(reader, _applied(reader, x, "neg"), "relu")
    value, slope, shape = _aligned(reader, negative, slope)
    scaled = Flow(reader.aten("mul", reader.shape_of(value), self=value, other=slope), shape)
    difference = replace(call, kind="Sub", inputs=[positive, scaled], alone=(True, True))
    return _add(reader, difference)  # type: ignore[return-value]


@operator("Max Min")
def _extreme(reader: OnnxReader, call: Call) -> Value:
    larger = call.kind == "Max"
    flows = [value for value in call.inputs if isinstance(value, Flow)]
    limits = [call.numbers(i) for i, value in enumerate(call.inputs) if not isinstance(value, Flow)]
    if any(limit.numel() != 1 for limit in limits):
        raise reader.unsupported("A limit must be one number.")
    found = flows[0]
    for other in flows[1:]:
        if other.shape != found.shape:
            raise reader.unsupported("The layers have different shapes.")
        found = Flow(Extreme(reader.seen(found), reader.seen(other), larger), found.shape)
    numbers = [float(limit) for limit in limits]
    if numbers:
        limit = {"min": max(numbers), "max": None} if larger else {"min": None, "max": min(numbers)}
        found = _applied(reader, found, "clamp", **limit)
    return found


__all__ = ["integers_of", "padding_of", "permuted", "space_of", "windows"]
