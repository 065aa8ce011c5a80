"""Products with constants in every form: matmul, einsum, tensordot, bilinear and their like.

Each is one sum of products in Einstein's notation, of which one factor depends on the input. Axes that both factors
have and the result has not are contracted; those that the result keeps make groups. Without groups it is a dense layer
on the last axis, with groups a convolution of one tap: the constants themselves are the weights, in another order.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor

from lipbridge.frontend.builder import FIXED, Curve, Deferred, GraphBuilder
from lipbridge.frontend.copies import copied
from lipbridge.frontend.refused import PRODUCT
from lipbridge.frontend.shapes import seen_as
from lipbridge.graph.nodes import Conv, Dense

#: Names of axes.
LETTERS = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"


def matmul_terms(p: int, q: int) -> tuple[list[str], str]:
    """The labels of a matmul of tensors with p and q axes: s is contracted, further axes are aligned at the right."""
    most = max(p, q) - 2
    batch = LETTERS[:most] if most > 0 else ""
    left = "s" if p == 1 else batch[len(batch) - (p - 2) :] + "Ys"
    right = "s" if q == 1 else batch[len(batch) - (q - 2) :] + "sZ"
    return [left, right], batch + ("Y" if p > 1 else "") + ("Z" if q > 1 else "")


# --- one sum of products ----------------------------------------------------------------------------------------------


def product(
    builder: GraphBuilder, values: Sequence[Any], terms: Sequence[str], result: str, shape: tuple[int, ...]
) -> Curve:
    """The sum of products of one function of the input and constants; labels count the batch, ``shape`` does not.

    Raises:
        UnsupportedOperation: if several factors depend on the input, or one along the batch.
    """
    flows = [i for i, value in enumerate(values) if isinstance(value, Curve | Deferred)]
    if len(flows) != 1:
        raise builder.unsupported(PRODUCT)
    (flow,) = flows
    batch, own = terms[flow][:1], terms[flow][1:]
    if result[:1] != batch or batch in own or len(set(result)) != len(result):
        raise builder.unsupported("It works along the batch.")
    value = builder.curve(values[flow])
    if len(set(own)) != len(own):  # a diagonal
        size, unique = builder.shape_of(value), "".join(dict.fromkeys(own))
        index = torch.einsum(f"{own}->{unique}", torch.arange(math.prod(size)).reshape(size))
        value, own = copied(builder, [value], index, tuple(index.shape)), unique
    sizes = dict(zip(own, builder.shape_of(value), strict=True))
    constants = [(cast(Tensor, values[i]), terms[i]) for i in range(len(values)) if i != flow]
    for constant, labels in constants:
        for label, n in zip(labels, constant.shape, strict=True):
            if label == batch and n != 1:
                raise builder.unsupported("A constant that differs between the inputs of a batch is no layer.")
            if label != batch:
                sizes[label] = max(n, sizes.get(label, 1))
    value, own = _without_ones(builder, value, own, sizes)
    while constants:
        place = next((i for i, (_, labels) in enumerate(constants) if set(labels) & set(own)), 0)
        constant, labels = constants.pop(place)
        wanted = set(result[1:]).union(*(labels for _, labels in constants))
        value, own = _times(builder, value, own, constant, labels, wanted, sizes)
    value, own = summed(builder, value, own, set(own) - set(result[1:]), sizes)
    if any(label not in own for label in result[1:]):
        raise builder.unsupported("It repeats values along an axis of the result.")
    return _ordered(builder, value, own, result[1:], sizes, shape)


def _without_ones(builder: GraphBuilder, value: Curve, own: str, sizes: Mapping[str, int]) -> tuple[Curve, str]:
    """Axes of length one that another factor is longer along are the other factor's alone."""
    lengths = builder.shape_of(value)
    kept = [i for i, label in enumerate(own) if lengths[i] == sizes[label]]
    if len(kept) == len(own):
        return value, own
    return seen_as(builder, value, tuple(lengths[i] for i in kept)), "".join(own[i] for i in kept)


def _times(
    builder: GraphBuilder,
    value: Curve,
    own: str,
    constant: Tensor,
    labels: str,
    wanted: set[str],
    sizes: Mapping[str, int],
) -> tuple[Curve, str]:
    """The product with one constant, summed over what they share and nobody wants; and its labels."""
    keep = [i for i, label in enumerate(labels) if constant.shape[i] == sizes.get(label)]
    drop = [i for i in range(len(labels)) if i not in keep]
    used = "".join(dict.fromkeys(labels[i] for i in keep))
    groups = [x for x in own if x in used and x in wanted]
    shared = [x for x in own if x in used and x not in wanted]
    rest = [x for x in own if x not in used]
    new = [x for x in used if x not in own]
    g, s, m, r = (math.prod(sizes[x] for x in part) for part in (groups, shared, new, rest))
    term, order = "".join(labels[i] for i in keep), "".join([*groups, *new, *shared])
    size = (g * m, s, 1) if groups else (m, s)

    def arranged(tensor: Tensor) -> Tensor:
        for i in reversed(drop):
            tensor = tensor.select(i, 0)
        return torch.einsum(f"{term}->{order}", tensor).reshape(size)  # a repeated label is a diagonal

    weight = arranged(constant.detach().to(torch.float64)).contiguous()
    recipe = builder.recipe(arranged, constant)
    parameter = None if builder.is_live(constant) else FIXED
    if not groups:
        source = _ordered(builder, value, own, "".join([*rest, *shared]), sizes, (r, s) if r > 1 else (s,))
        made: Dense | Conv = Dense(builder.layer, (source.source,), (r, m) if r > 1 else (m,), weight, None, parameter)
        found = [*rest, *new]
    else:
        source = _ordered(builder, value, own, "".join([*groups, *shared, *rest]), sizes, (g * s, r))
        made = Conv(builder.layer, (source.source,), (g * m, r), weight, groups=g, parameter=parameter)
        found = [*groups, *new, *rest]
    curve = builder.append(made, recipe)
    return seen_as(builder, curve, tuple(sizes[x] for x in found)), "".join(found)


def summed(
    builder: GraphBuilder, value: Curve, own: str, over: set[str], sizes: Mapping[str, int]
) -> tuple[Curve, str]:
    """The sum over some axes, and the labels that are left."""
    if not over:
        return value, own
    rest, gone = [x for x in own if x not in over], [x for x in own if x in over]
    r, n = (math.prod(sizes[x] for x in part) for part in (rest, gone))
    source = _ordered(builder, value, own, "".join([*rest, *gone]), sizes, (r, n) if r > 1 else (n,))
    ones = torch.ones(1, n, dtype=torch.float64, device=builder.device)
    made = builder.append(Dense(builder.layer, (source.source,), (r, 1) if r > 1 else (1,), ones, None, FIXED))
    return seen_as(builder, made, tuple(sizes[x] for x in rest)), "".join(rest)


def _ordered(
    builder: GraphBuilder, value: Curve, own: str, wanted: str, sizes: Mapping[str, int], shape: tuple[int, ...]
) -> Curve:
    """A node with the axes in another order, in ``shape``."""
    value = builder.line(value)
    axes = tuple(own.index(label) for label in wanted)
    return seen_as(builder, value, shape, None if axes == tuple(range(len(own))) else axes)


__all__ = ["LETTERS", "matmul_terms", "product", "summed"]
