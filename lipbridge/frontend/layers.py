"""Capture of dense layers and convolutions."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor

from lipbridge.frontend.copies import copied
from lipbridge.frontend.diagonal import diagonal
from lipbridge.frontend.moves import moved
from lipbridge.frontend.reader import FIXED, Arguments, Curve, Deferred, Reader, handles, itself, transposed
from lipbridge.graph.geometry import adjoint_geometry
from lipbridge.graph.nodes import Conv, ConvTranspose, Dense


@handles("linear")
def _linear(reader: Reader, a: Arguments, shape: tuple[int, ...]) -> Curve:
    if not isinstance(a["weight"], Tensor):
        raise reader.unsupported("The weight of a dense layer must not depend on the input.")
    return dense(reader, a["input"], a["weight"], False, a.get("bias"), shape)


@handles("addmm")
def _addmm(reader: Reader, a: Arguments, shape: tuple[int, ...]) -> Curve:
    if not isinstance(a["mat2"], Tensor) or not isinstance(a["self"], Tensor) or (a["beta"], a["alpha"]) != (1, 1):
        raise reader.unsupported()
    return dense(reader, a["mat1"], a["mat2"], True, a["self"], shape)


def dense(
    reader: Reader, x: Any, matrix: Tensor, turned_over: bool, bias: Tensor | None, shape: tuple[int, ...]
) -> Curve:
    """``W x + b`` on the last axis for W the matrix, or its transpose."""
    source = reader.materialise(x)
    name, turned = reader.origin(matrix)
    if bias is not None:
        bias = bias.detach().to(torch.float64)
        if bias.ndim != 1 or len(bias) != shape[-1]:
            if bias.numel() not in (1, shape[-1]):
                raise reader.unsupported("Its bias differs between the inputs of a batch, or between rows.")
            bias = bias.reshape(-1).expand(shape[-1])
    weight = matrix.detach().to(torch.float64)
    recipe = reader.recipe(transposed if turned_over else itself, matrix)
    node = Dense(reader.layer, (source,), shape, weight.T if turned_over else weight, bias, name, turned != turned_over)
    return reader.append(node, recipe)


Pairs = tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class Padded(Deferred):
    """``value`` with padding around its space, which the convolution or pooling that reads it takes over."""

    value: Curve
    padding: Pairs
    mode: str
    fill: float

    def materialise(self, reader: Reader) -> Curve:
        """Padding alone is a convolution of each channel with the kernel 1, or copies beside other numbers than 0."""
        if self.fill != 0.0:
            return self._filled(reader)
        channels, *space = reader.shape_of(self.value)
        rank = len(space)
        weight = torch.ones(channels, 1, *(1,) * rank, dtype=torch.float64, device=reader.device)
        shape = (channels, *(n + before + after for n, (before, after) in zip(space, self.padding, strict=True)))
        source = reader.materialise(self.value)
        geometry = ((1,) * rank, self.padding, (1,) * rank, channels, self.mode, FIXED)
        return reader.append(Conv(reader.layer, (source,), shape, weight, None, *geometry))

    def _filled(self, reader: Reader) -> Curve:
        if not math.isfinite(self.fill):
            raise reader.unsupported("Padding with infinite numbers is read only before max pooling.")
        shape = reader.shape_of(self.value)
        widths = [width for pair in reversed(self.padding) for width in pair]
        index = torch.nn.functional.pad(torch.arange(math.prod(shape)).reshape(shape), widths, value=-1)
        made = copied(reader, [self.value], index, tuple(index.shape))
        beside = torch.zeros(index.shape, dtype=torch.float64).masked_fill(index < 0, self.fill)
        return diagonal(reader, made, None, beside[None].to(reader.device), tuple(index.shape), FIXED)


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
def _pad(reader: Reader, a: Arguments, shape: tuple[int, ...]) -> Any:
    name = reader.operation.split(".")[0]
    known = {"constant": "zeros", "circular": "circular", "reflect": "reflect", "replicate": "replicate"}
    renamed = {"reflection": "reflect", "replication": "replicate"}
    spelt = str(renamed.get(name.split("_")[0], a.get("mode", "constant")))
    if spelt not in known:
        raise reader.unsupported(f"Padding mode {spelt!r} is not known.")
    mode = known[spelt]
    widths = a["padding"] if "padding" in a else a["pad"]
    pairs = [(int(widths[i]), int(widths[i + 1])) for i in range(0, len(widths), 2)][::-1]
    rank = len(shape) - 1
    if any(width < 0 for pair in pairs for width in pair):
        return moved(reader, a, shape)
    if len(pairs) > rank and any(any(pair) for pair in pairs[: len(pairs) - rank]):
        return moved(reader, a, shape)  # channels
    pairs = [(0, 0)] * (rank - len(pairs)) + pairs[max(0, len(pairs) - rank) :]
    return Padded(reader.curve(a["self"]), tuple(pairs), mode, float(a.get("value") or 0.0))


@handles("conv_transpose1d", "conv_transpose2d", "conv_transpose3d")
def _conv_transpose(reader: Reader, a: Arguments, shape: tuple[int, ...]) -> Curve:
    """A transposed convolution; what torch's ``output_padding`` puts behind the end is padding that is not cut off."""
    weight, bias = a["weight"], a.get("bias")
    if not isinstance(weight, Tensor) or not isinstance(bias, Tensor | None):
        raise reader.unsupported("The weight of a convolution must not depend on the input.")
    rank = weight.ndim - 2
    if len(shape) != rank + 1:
        raise reader.unsupported("It reads the batch as channels: give inputs (channels, *space).")
    cut, more = each(a["padding"], rank), each(a["output_padding"], rank)
    padding = tuple((width, width - extra) for width, extra in zip(cut, more, strict=True))
    node = ConvTranspose(
        reader.layer,
        (reader.materialise(a["input"]),),
        shape,
        weight.detach().to(torch.float64),
        None if bias is None else bias.detach().to(torch.float64),
        each(a["stride"], rank),
        padding,
        each(a["dilation"], rank),
        int(a["groups"]),
        reader.origin(weight)[0],
    )
    # Where everything but the bias is cut off, the weight does not count.
    counts = adjoint_geometry(node, reader.nodes[node.inputs[0]].shape) is not None
    return reader.append(node, reader.recipe(itself, weight) if counts else None)


@handles("conv1d", "conv2d", "conv3d", "convolution")
def _convolution(reader: Reader, a: Arguments, shape: tuple[int, ...]) -> Curve:
    weight, bias, x = a["weight"], a.get("bias"), a["input"]
    if not isinstance(weight, Tensor) or not isinstance(bias, Tensor | None):
        raise reader.unsupported("The weight of a convolution must not depend on the input.")
    if a.get("transposed"):
        return _conv_transpose(reader, a, shape)
    rank = weight.ndim - 2
    if len(shape) != rank + 1:
        raise reader.unsupported("It reads the batch as channels: give inputs (channels, *space).")
    stride, dilation = each(a["stride"], rank), each(a["dilation"], rank)
    padding = _own_padding(a["padding"], tuple(weight.shape[2:]), dilation)
    mode = "zeros"
    if isinstance(x, Padded) and x.fill == 0.0 and len(x.padding) == rank:
        if not any(any(pair) for pair in padding):
            x, padding, mode = x.value, x.padding, x.mode
        elif x.mode == "zeros":
            pairs = zip(padding, x.padding, strict=True)
            x, padding = x.value, tuple((p[0] + q[0], p[1] + q[1]) for p, q in pairs)
    if not any(any(pair) for pair in padding):
        mode = "zeros"
    source = reader.materialise(x)
    name, _ = reader.origin(weight)
    kernel = weight.detach().to(torch.float64)
    shift = None if bias is None else bias.detach().to(torch.float64)
    geometry = (stride, padding, dilation, int(a["groups"]), mode, name)
    recipe = reader.recipe(itself, weight)
    return reader.append(Conv(reader.layer, (source,), shape, kernel, shift, *geometry), recipe)


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
