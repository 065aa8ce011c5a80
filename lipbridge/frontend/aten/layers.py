"""Dense layers, convolutions and padding."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

from torch import Tensor

from lipbridge.frontend.aten.moves import moved_by
from lipbridge.frontend.aten.registry import Arguments, handles, plain_name
from lipbridge.frontend.builder import Curve, GraphBuilder
from lipbridge.frontend.layers import Padded, Pairs, convolution, dense, transposed_convolution


@handles("linear")
def _linear(builder: GraphBuilder, a: Arguments, shape: tuple[int, ...]) -> Curve:
    if not isinstance(a["weight"], Tensor):
        raise builder.unsupported("The weight of a dense layer must not depend on the input.")
    return dense(builder, a["input"], a["weight"], False, a.get("bias"), shape)


@handles("addmm")
def _addmm(builder: GraphBuilder, a: Arguments, shape: tuple[int, ...]) -> Curve:
    if not isinstance(a["mat2"], Tensor) or not isinstance(a["self"], Tensor) or (a["beta"], a["alpha"]) != (1, 1):
        raise builder.unsupported()
    return dense(builder, a["mat1"], a["mat2"], True, a["self"], shape)


@handles(
    "pad",
    "constant_pad_nd",
    "reflection_pad1d",
    "reflection_pad2d",
    "replication_pad1d",
    "replication_pad2d",
    "reflection_pad3d",
    "replication_pad3d",
)
def _pad(builder: GraphBuilder, a: Arguments, shape: tuple[int, ...]) -> Any:
    name = plain_name(builder)
    known = {"constant": "zeros", "circular": "circular", "reflect": "reflect", "replicate": "replicate"}
    renamed = {"reflection": "reflect", "replication": "replicate"}
    spelt = str(renamed.get(name.split("_")[0], a.get("mode", "constant")))
    if spelt not in known:
        raise builder.unsupported(f"Padding mode {spelt!r} is not known.")
    mode = known[spelt]
    widths = a["padding"] if "padding" in a else a["pad"]
    pairs = [(int(widths[i]), int(widths[i + 1])) for i in range(0, len(widths), 2)][::-1]
    rank = len(shape) - 1
    if any(width < 0 for pair in pairs for width in pair):
        return moved_by(builder, a, shape)
    if len(pairs) > rank and any(any(pair) for pair in pairs[: len(pairs) - rank]):
        return moved_by(builder, a, shape)  # channels
    pairs = [(0, 0)] * (rank - len(pairs)) + pairs[max(0, len(pairs) - rank) :]
    return Padded(builder.curve(a["self"]), tuple(pairs), mode, float(a.get("value") or 0.0))


@handles("conv_transpose1d", "conv_transpose2d", "conv_transpose3d")
def _conv_transpose(builder: GraphBuilder, a: Arguments, shape: tuple[int, ...]) -> Curve:
    """A transposed convolution; what torch's ``output_padding`` puts behind the end is padding that is not cut off."""
    weight, bias = a["weight"], a.get("bias")
    if not isinstance(weight, Tensor) or not isinstance(bias, Tensor | None):
        raise builder.unsupported("The weight of a convolution must not depend on the input.")
    rank = weight.ndim - 2
    if len(shape) != rank + 1:
        raise builder.unsupported("It reads the batch as channels: give inputs (channels, *space).")
    cut, more = each(a["padding"], rank), each(a["output_padding"], rank)
    padding = tuple((width, width - extra) for width, extra in zip(cut, more, strict=True))
    return transposed_convolution(
        builder,
        a["input"],
        weight,
        bias,
        shape,
        stride=each(a["stride"], rank),
        padding=padding,
        dilation=each(a["dilation"], rank),
        groups=int(a["groups"]),
    )


@handles("conv1d", "conv2d", "conv3d", "convolution")
def _convolution(builder: GraphBuilder, a: Arguments, shape: tuple[int, ...]) -> Curve:
    weight, bias = a["weight"], a.get("bias")
    if not isinstance(weight, Tensor) or not isinstance(bias, Tensor | None):
        raise builder.unsupported("The weight of a convolution must not depend on the input.")
    if a.get("transposed"):
        return _conv_transpose(builder, a, shape)
    rank = weight.ndim - 2
    if len(shape) != rank + 1:
        raise builder.unsupported("It reads the batch as channels: give inputs (channels, *space).")
    stride, dilation = each(a["stride"], rank), each(a["dilation"], rank)
    padding = _own_padding(a["padding"], tuple(weight.shape[2:]), dilation)
    return convolution(
        builder,
        a["input"],
        weight,
        bias,
        shape,
        stride=stride,
        padding=padding,
        dilation=dilation,
        groups=int(a["groups"]),
    )


def each(value: Any, rank: int) -> tuple[int, ...]:
    """An option that is one number for all axes, or one for each."""
    items = [int(item) for item in cast(Sequence[int], value if isinstance(value, list | tuple) else [value])]
    return tuple(items * rank if len(items) == 1 else items)


def _own_padding(value: Any, kernel: tuple[int, ...], dilation: tuple[int, ...]) -> Pairs:
    if value == "valid":
        return ((0, 0),) * len(kernel)
    if value == "same":
        totals = [d * (k - 1) for d, k in zip(dilation, kernel, strict=True)]
        return tuple((total // 2, total - total // 2) for total in totals)
    return tuple((n, n) for n in each(value, len(kernel)))
