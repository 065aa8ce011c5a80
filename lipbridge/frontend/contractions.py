"""Capture of products with constants in every form: matmul, einsum, tensordot, bilinear and their like.

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

from lipbridge.frontend.copies import copied
from lipbridge.frontend.diagonal import diagonal
from lipbridge.frontend.layers import dense
from lipbridge.frontend.reader import FIXED, Arguments, Curve, Deferred, Reader, handles
from lipbridge.frontend.refused import PRODUCT
from lipbridge.frontend.shapes import seen_as
from lipbridge.graph.nodes import Conv, Dense

_LETTERS = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"


@handles("einsum")
def _einsum(reader: Reader, a: Arguments, shape: tuple[int, ...]) -> Curve:
    terms, result = _explicit(reader, str(a["equation"]), a["tensors"])
    return product(reader, a["tensors"], terms, result, shape)


@handles("matmul", "mm", "mv", "bmm", "linalg_matmul")
def _matmul(reader: Reader, a: Arguments, shape: tuple[int, ...]) -> Curve:
    pair = [a["self"], a.get("other", a.get("mat2", a.get("vec")))]
    matrix = pair[1]
    if (
        isinstance(matrix, Tensor) and matrix.ndim == 2 and not isinstance(pair[0], Tensor)
    ):  # a dense layer: its weight may be a parameter as it stands
        return dense(reader, pair[0], matrix, True, None, shape)
    return product(reader, pair, *matmul_terms(*(_rank(reader, value) for value in pair)), shape)


def matmul_terms(p: int, q: int) -> tuple[list[str], str]:
    """The labels of a matmul of tensors with p and q axes: s is contracted, further axes are aligned at the right."""
    most = max(p, q) - 2
    batch = _LETTERS[:most] if most > 0 else ""
    left = "s" if p == 1 else batch[len(batch) - (p - 2) :] + "Ys"
    right = "s" if q == 1 else batch[len(batch) - (q - 2) :] + "sZ"
    return [left, right], batch + ("Y" if p > 1 else "") + ("Z" if q > 1 else "")


@handles("baddbmm", "addmv")
def _added(reader: Reader, a: Arguments, shape: tuple[int, ...]) -> Curve:
    if not isinstance(a["self"], Tensor) or (a["beta"], a["alpha"]) != (1, 1):
        raise reader.unsupported("Only a constant can be added to the product, without factors.")
    pair = [a.get("batch1", a.get("mat")), a.get("batch2", a.get("vec"))]
    made = product(reader, pair, *matmul_terms(*(_rank(reader, value) for value in pair)), shape)
    return diagonal(reader, made, None, a["self"], shape, FIXED)


@handles("inner")
def _inner(reader: Reader, a: Arguments, shape: tuple[int, ...]) -> Curve:
    pair = [a["self"], a["other"]]
    p, q = (_rank(reader, value) for value in pair)
    left, right = _LETTERS[: p - 1], _LETTERS[p - 1 : p + q - 2]
    return product(reader, pair, [left + "Z", right + "Z"], left + right, shape)


@handles("outer", "ger")
def _outer(reader: Reader, a: Arguments, shape: tuple[int, ...]) -> Curve:
    return product(reader, [a["self"], a.get("vec2", a.get("other"))], ["a", "b"], "ab", shape)


@handles("tensordot")
def _tensordot(reader: Reader, a: Arguments, shape: tuple[int, ...]) -> Curve:
    pair = [a["self"], a["other"]]
    p, q = (_rank(reader, value) for value in pair)
    left, right = list(_LETTERS[:p]), list(_LETTERS[p : p + q])
    for i, j in zip(a["dims_self"], a["dims_other"], strict=True):
        right[int(j)] = left[int(i)]
    kept = [x for x in left if x not in right] + [x for x in right if x not in left]
    return product(reader, pair, ["".join(left), "".join(right)], "".join(kept), shape)


@handles("bilinear")
def _bilinear(reader: Reader, a: Arguments, shape: tuple[int, ...]) -> Curve:
    rows = _LETTERS[: len(shape)]
    values = [a["input1"], a["input2"], a["weight"]]
    made = product(reader, values, [rows + "Y", rows + "Z", "XYZ"], rows + "X", shape)
    return made if a["bias"] is None else diagonal(reader, made, None, a["bias"], shape, FIXED)


def _rank(reader: Reader, value: Any) -> int:
    """The number of axes, with the batch."""
    return value.ndim if isinstance(value, Tensor) else len(reader.shape_of(value)) + 1


def _explicit(reader: Reader, equation: str, tensors: Sequence[Any]) -> tuple[list[str], str]:
    """The labels of an einsum's operands and of its result, with its dots written out."""
    left, arrow, result = equation.replace(" ", "").partition("->")
    terms = left.split(",")
    free = [letter for letter in _LETTERS if letter not in equation]
    spread = [_rank(reader, value) - len(term.replace("...", "")) for value, term in zip(tensors, terms, strict=True)]
    most = max((n for n, term in zip(spread, terms, strict=True) if "..." in term), default=0)
    dots = "".join(free[:most])
    if not arrow:
        named = [x for x in sorted(set(left) - set(",.")) if left.count(x) == 1]
        result = ("..." if "..." in left else "") + "".join(named)
    terms = [term.replace("...", dots[most - n :]) for n, term in zip(spread, terms, strict=True)]
    return terms, result.replace("...", dots)


# --- one sum of products ----------------------------------------------------------------------------------------------


def product(reader: Reader, values: Sequence[Any], terms: Sequence[str], result: str, shape: tuple[int, ...]) -> Curve:
    """The sum of products of one function of the input and constants; labels count the batch, ``shape`` does not.

    Raises:
        UnsupportedOperation: if several factors depend on the input, or one along the batch.
    """
    flows = [i for i, value in enumerate(values) if isinstance(value, Curve | Deferred)]
    if len(flows) != 1:
        raise reader.unsupported(PRODUCT)
    (flow,) = flows
    batch, own = terms[flow][:1], terms[flow][1:]
    if result[:1] != batch or batch in own or len(set(result)) != len(result):
        raise reader.unsupported("It works along the batch.")
    value = reader.curve(values[flow])
    if len(set(own)) != len(own):  # a diagonal
        size, unique = reader.shape_of(value), "".join(dict.fromkeys(own))
        index = torch.einsum(f"{own}->{unique}", torch.arange(math.prod(size)).reshape(size))
        value, own = copied(reader, [value], index, tuple(index.shape)), unique
    sizes = dict(zip(own, reader.shape_of(value), strict=True))
    constants = [(cast(Tensor, values[i]), terms[i]) for i in range(len(values)) if i != flow]
    for constant, labels in constants:
        for label, n in zip(labels, constant.shape, strict=True):
            if label == batch and n != 1:
                raise reader.unsupported("A constant that differs between the inputs of a batch is no layer.")
            if label != batch:
                sizes[label] = max(n, sizes.get(label, 1))
    value, own = _without_ones(reader, value, own, sizes)
    while constants:
        place = next((i for i, (_, labels) in enumerate(constants) if set(labels) & set(own)), 0)
        constant, labels = constants.pop(place)
        wanted = set(result[1:]).union(*(labels for _, labels in constants))
        value, own = _times(reader, value, own, constant, labels, wanted, sizes)
    value, own = summed(reader, value, own, set(own) - set(result[1:]), sizes)
    if any(label not in own for label in result[1:]):
        raise reader.unsupported("It repeats values along an axis of the result.")
    return _ordered(reader, value, own, result[1:], sizes, shape)


def _without_ones(reader: Reader, value: Curve, own: str, sizes: Mapping[str, int]) -> tuple[Curve, str]:
    """Axes of length one that another factor is longer along are the other factor's alone."""
    lengths = reader.shape_of(value)
    kept = [i for i, label in enumerate(own) if lengths[i] == sizes[label]]
    if len(kept) == len(own):
        return value, own
    return seen_as(reader, value, tuple(lengths[i] for i in kept)), "".join(own[i] for i in kept)


def _times(
    reader: Reader,
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
    recipe = reader.recipe(arranged, constant)
    parameter = None if reader.is_live(constant) else FIXED
    if not groups:
        source = _ordered(reader, value, own, "".join([*rest, *shared]), sizes, (r, s) if r > 1 else (s,))
        made: Dense | Conv = Dense(reader.layer, (source.source,), (r, m) if r > 1 else (m,), weight, None, parameter)
        found = [*rest, *new]
    else:
        source = _ordered(reader, value, own, "".join([*groups, *shared, *rest]), sizes, (g * s, r))
        made = Conv(reader.layer, (source.source,), (g * m, r), weight, groups=g, parameter=parameter)
        found = [*groups, *new, *rest]
    curve = reader.append(made, recipe)
    return seen_as(reader, curve, tuple(sizes[x] for x in found)), "".join(found)


def summed(reader: Reader, value: Curve, own: str, over: set[str], sizes: Mapping[str, int]) -> tuple[Curve, str]:
    """The sum over some axes, and the labels that are left."""
    if not over:
        return value, own
    rest, gone = [x for x in own if x not in over], [x for x in own if x in over]
    r, n = (math.prod(sizes[x] for x in part) for part in (rest, gone))
    source = _ordered(reader, value, own, "".join([*rest, *gone]), sizes, (r, n) if r > 1 else (n,))
    ones = torch.ones(1, n, dtype=torch.float64, device=reader.device)
    made = reader.append(Dense(reader.layer, (source.source,), (r, 1) if r > 1 else (1,), ones, None, FIXED))
    return seen_as(reader, made, tuple(sizes[x] for x in rest)), "".join(rest)


def _ordered(
    reader: Reader, value: Curve, own: str, wanted: str, sizes: Mapping[str, int], shape: tuple[int, ...]
) -> Curve:
    """A node with the axes in another order, in ``shape``."""
    value = reader.line(value)
    axes = tuple(own.index(label) for label in wanted)
    return seen_as(reader, value, shape, None if axes == tuple(range(len(own))) else axes)


__all__ = ["matmul_terms", "product", "summed"]
