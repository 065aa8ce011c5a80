"""Pooling over space, and means over axes."""

from __future__ import annotations

import re
from typing import Any, cast

from lipbridge.frontend import moments, pooling
from lipbridge.frontend.aten.layers import each
from lipbridge.frontend.aten.registry import Arguments, Handler, axis_of, handles
from lipbridge.frontend.builder import Curve, GraphBuilder
from lipbridge.frontend.layers import Padded
from lipbridge.graph.nodes import Reshape


def _over_space(handler: Handler) -> Handler:
    """Torch reads inputs with one axis less, ``(batch, *space)``, as one image whose channels are the batch."""

    def with_channels(builder: GraphBuilder, a: Arguments, shape: tuple[int, ...]) -> Any:
        rank = int(re.findall(r"([123])d", builder.operation)[0])
        x = a["self"]
        if len(builder.shape_of(x.value if isinstance(x, Padded) else x)) == rank + 1:
            return handler(builder, a, shape)  # padding with infinite numbers is no value of its own
        inside = builder.shape_of(x)
        if len(inside) != rank:
            raise builder.unsupported(f"It pools over {rank} axes of inputs of shape {inside}.")
        source = builder.append(Reshape(builder.layer, (builder.materialise(x),), (1, *inside)))
        made = handler(builder, {**a, "self": source}, (1, *shape))
        return builder.append(Reshape(builder.layer, (builder.materialise(made),), shape))

    return with_channels


@handles("avg_pool1d", "avg_pool2d", "avg_pool3d")
@_over_space
def _avg_pool(builder: GraphBuilder, a: Arguments, shape: tuple[int, ...]) -> Curve:
    rank = len(shape) - 1
    kernel = each(a["kernel_size"], rank)
    stride = each(a["stride"], rank) if a["stride"] else kernel
    padding = each(a["padding"], rank)
    return pooling.average_pool(
        builder,
        a["self"],
        shape,
        kernel=kernel,
        stride=stride,
        padding=padding,
        with_padding=bool(a["count_include_pad"]),
        divisor=int(a.get("divisor_override") or 0),
    )


@handles("adaptive_avg_pool1d", "adaptive_avg_pool2d", "adaptive_avg_pool3d", "_adaptive_avg_pool2d")
@_over_space
def _adaptive_avg_pool(builder: GraphBuilder, a: Arguments, shape: tuple[int, ...]) -> Curve:
    return pooling.adaptive_average_pool(builder, a["self"], shape)


@handles("max_pool1d", "max_pool2d", "max_pool3d", "max_pool1d_with_indices", "max_pool2d_with_indices")
@_over_space
def _max_pool(builder: GraphBuilder, a: Arguments, shape: tuple[int, ...]) -> Curve:
    rank = len(shape) - 1
    kernel = each(a["kernel_size"], rank)
    return pooling.max_pool(
        builder,
        a["self"],
        shape,
        kernel=kernel,
        stride=each(a["stride"], rank) if a["stride"] else kernel,
        padding=each(a["padding"], rank),
        dilation=each(a["dilation"], rank),
        ceil_mode=bool(a["ceil_mode"]),
    )


@handles("adaptive_max_pool1d", "adaptive_max_pool2d", "adaptive_max_pool3d")
@_over_space
def _adaptive_max_pool(builder: GraphBuilder, a: Arguments, shape: tuple[int, ...]) -> Curve:
    return pooling.adaptive_max_pool(builder, a["self"], shape)


@handles("mean")
def _mean(builder: GraphBuilder, a: Arguments, shape: tuple[int, ...]) -> Any:
    value, dims = a["self"], a.get("dim")
    if type(value) is moments.Square:
        rank = len(builder.shape_of(value.x))
        axes = {axis_of(builder, dim, rank) for dim in a["dim"]} if a["keepdim"] and a["dim"] else set[int]()
        return moments.mean_square(builder, value, axes)
    rank = len(builder.shape_of(value))
    over = cast(list[int], dims if isinstance(dims, list) else [] if dims is None else [dims])
    places = [int(axis) % (rank + 1) - 1 for axis in over]
    if not places or min(places) < 0:
        raise builder.unsupported("It mixes the inputs of a batch.")
    return pooling.mean(builder, value, places, shape)
