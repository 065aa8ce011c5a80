"""Products with constants: matmul, einsum, tensordot, bilinear and their like."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from lipbridge.frontend.aten.registry import Arguments, handles
from lipbridge.frontend.builder import FIXED, Curve, GraphBuilder
from lipbridge.frontend.contractions import LETTERS, matmul_terms, product
from lipbridge.frontend.diagonal import diagonal
from lipbridge.frontend.layers import dense


@handles("einsum")
def _einsum(builder: GraphBuilder, a: Arguments, shape: tuple[int, ...]) -> Curve:
    terms, result = _explicit(builder, str(a["equation"]), a["tensors"])
    return product(builder, a["tensors"], terms, result, shape)


@handles("matmul", "mm", "mv", "bmm", "linalg_matmul")
def _matmul(builder: GraphBuilder, a: Arguments, shape: tuple[int, ...]) -> Curve:
    pair = [a["self"], a.get("other", a.get("mat2", a.get("vec")))]
    matrix = pair[1]
    if (
        isinstance(matrix, Tensor) and matrix.ndim == 2 and not isinstance(pair[0], Tensor)
    ):  # a dense layer: its weight may be a parameter as it stands
        return dense(builder, pair[0], matrix, True, None, shape)
    return product(builder, pair, *matmul_terms(*(_rank(builder, value) for value in pair)), shape)


@handles("baddbmm", "addmv")
def _added(builder: GraphBuilder, a: Arguments, shape: tuple[int, ...]) -> Curve:
    if not isinstance(a["self"], Tensor) or (a["beta"], a["alpha"]) != (1, 1):
        raise builder.unsupported("Only a constant can be added to the product, without factors.")
    pair = [a.get("batch1", a.get("mat")), a.get("batch2", a.get("vec"))]
    made = product(builder, pair, *matmul_terms(*(_rank(builder, value) for value in pair)), shape)
    return diagonal(builder, made, None, a["self"], shape, FIXED)


@handles("inner")
def _inner(builder: GraphBuilder, a: Arguments, shape: tuple[int, ...]) -> Curve:
    pair = [a["self"], a["other"]]
    p, q = (_rank(builder, value) for value in pair)
    left, right = LETTERS[: p - 1], LETTERS[p - 1 : p + q - 2]
    return product(builder, pair, [left + "Z", right + "Z"], left + right, shape)


@handles("outer", "ger")
def _outer(builder: GraphBuilder, a: Arguments, shape: tuple[int, ...]) -> Curve:
    return product(builder, [a["self"], a.get("vec2", a.get("other"))], ["a", "b"], "ab", shape)


@handles("tensordot")
def _tensordot(builder: GraphBuilder, a: Arguments, shape: tuple[int, ...]) -> Curve:
    pair = [a["self"], a["other"]]
    p, q = (_rank(builder, value) for value in pair)
    left, right = list(LETTERS[:p]), list(LETTERS[p : p + q])
    for i, j in zip(a["dims_self"], a["dims_other"], strict=True):
        right[int(j)] = left[int(i)]
    kept = [x for x in left if x not in right] + [x for x in right if x not in left]
    return product(builder, pair, ["".join(left), "".join(right)], "".join(kept), shape)


@handles("bilinear")
def _bilinear(builder: GraphBuilder, a: Arguments, shape: tuple[int, ...]) -> Curve:
    rows = LETTERS[: len(shape)]
    values = [a["input1"], a["input2"], a["weight"]]
    made = product(builder, values, [rows + "Y", rows + "Z", "XYZ"], rows + "X", shape)
    return made if a["bias"] is None else diagonal(builder, made, None, a["bias"], shape, FIXED)


def _rank(builder: GraphBuilder, value: Any) -> int:
    """The number of axes, with the batch."""
    return value.ndim if isinstance(value, Tensor) else len(builder.shape_of(value)) + 1


def _explicit(builder: GraphBuilder, equation: str, tensors: Sequence[Any]) -> tuple[list[str], str]:
    """The labels of an einsum's operands and of its result, with its dots written out."""
    left, arrow, result = equation.replace(" ", "").partition("->")
    terms = left.split(",")
    free = [letter for letter in LETTERS if letter not in equation]
    spread = [_rank(builder, value) - len(term.replace("...", "")) for value, term in zip(tensors, terms, strict=True)]
    most = max((n for n, term in zip(spread, terms, strict=True) if "..." in term), default=0)
    dots = "".join(free[:most])
    if not arrow:
        named = [x for x in sorted(set(left) - set(",.")) if left.count(x) == 1]
        result = ("..." if "..." in left else "") + "".join(named)
    terms = [term.replace("...", dots[most - n :]) for n, term in zip(spread, terms, strict=True)]
    return terms, result.replace("...", dots)
