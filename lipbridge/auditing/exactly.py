"""Values of small networks in fractions, and norms of their Jacobians: what the audit knows, it knows from here.

Nothing here is shared with the verifiers: sums, products and comparisons of fractions alone. Roots, and activations
that are no piecewise linear functions, are enclosed to some seventy digits.
"""

from __future__ import annotations

import decimal
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import product
from typing import Any, cast

import torch
from torch import Tensor

from lipbridge.activations.activation import Component, Term
from lipbridge.errors import UnsupportedOperation
from lipbridge.graph.graph import Graph
from lipbridge.graph.nodes import Add, Concat, Conv, Dense, Elementwise, Node, Reshape
from lipbridge.linalg import spectral_norm
from lipbridge.vocabulary import Norm

Vector = list[Fraction]
Matrix = list[Vector]
ZERO, ONE, HALF = Fraction(0), Fraction(1), Fraction(1, 2)
#: Digits of exp, and how far its result may be off, relatively: some room is left for the argument's rounding.
DIGITS, OFF = 90, Fraction(1, 10**80)
#: pi lies above this, by less than 1e-60.
PI = Fraction(314159265358979323846264338327950288419716939937510582097494, 10**59)
#: The exponents of powers of two to which middles of enclosures are rounded.
BITS = 260


@dataclass(frozen=True)
class Near:
    """A number within ``off`` of ``value``."""

    value: Fraction
    off: Fraction = ZERO


def numbers(tensor: Tensor) -> Vector:
    """The entries of a tensor, in order."""
    return [Fraction(item) for item in cast(list[float], cast(Any, tensor.detach().cpu().double().flatten()).tolist())]


def rows(tensor: Tensor) -> Matrix:
    """The rows of a matrix."""
    flat, width = numbers(tensor), tensor.shape[1]
    return [flat[start : start + width] for start in range(0, len(flat), width)]


def values(graph: Graph, x: Sequence[Fraction]) -> list[Near]:
    """The flattened output at a point.

    Raises:
        UnsupportedOperation: for a node or an activation that the audit's networks do not have.
    """
    return graph.fold([Near(t) for t in x], lambda _, node, inputs: _apply(graph, node, inputs))


def _apply(graph: Graph, node: Node, inputs: list[list[Near]]) -> list[Near]:
    if isinstance(node, Dense) and len(node.shape) == 1:
        return _affine(rows(node.weight), None if node.bias is None else numbers(node.bias), inputs[0])
    if isinstance(node, Conv):
        return _convolved(node, graph.nodes[node.inputs[0]].shape, inputs[0])
    if isinstance(node, Elementwise) and (len(node.shape) == 1 or node.activation.width == 1):
        return [_on(component, t) for component in node.activation.components for t in inputs[0]]
    if isinstance(node, Add):
        return [_total(entries) for entries in zip(*inputs, strict=True)]
    if isinstance(node, Concat) and len(node.shape) == 1:
        return [t for part in inputs for t in part]
    if isinstance(node, Reshape) and node.axes is None:
        return inputs[0]
    raise UnsupportedOperation(node.name, type(node).__name__, "The audit's networks do not have it.")


def _total(entries: Sequence[Near]) -> Near:
    return Near(sum((t.value for t in entries), ZERO), sum((t.off for t in entries), ZERO))


def _affine(weight: Matrix, bias: Vector | None, x: Sequence[Near]) -> list[Near]:
    found: list[Near] = []
    for place, row in enumerate(weight):
        value = sum((w * t.value for w, t in zip(row, x, strict=True) if w), ZERO if bias is None else bias[place])
        found.append(Near(value, sum((abs(w) * t.off for w, t in zip(row, x, strict=True) if t.off), ZERO)))
    return found


def _convolved(node: Conv, shape: Sequence[int], x: Sequence[Near]) -> list[Near]:
    """The convolution by its definition, with zeros or around the circle."""
    channels, *space = shape
    out, *length = node.shape
    weight, held = numbers(node.weight), node.weight.shape[1]
    bias = [ZERO] * out if node.bias is None else numbers(node.bias)
    taps = list(product(*(range(k) for k in node.kernel)))
    found: list[Near] = []
    for channel in range(out):
        first = channel // (out // node.groups) * held
        for at in product(*(range(n) for n in length)):
            terms: list[Near] = [Near(bias[channel])]
            for own, (inner, tap) in enumerate(product(range(held), taps)):
                where = [
                    a * step + t * far - before
                    for a, step, t, far, (before, _) in zip(
                        at, node.stride, tap, node.dilation, node.padding, strict=True
                    )
                ]
                if node.padding_mode == "circular":
                    where = [w % n for w, n in zip(where, space, strict=True)]
                elif any(not 0 <= w < n for w, n in zip(where, space, strict=True)):
                    continue
                place = first + inner
                for w, n in zip(where, space, strict=True):
                    place = place * n + w
                factor = weight[channel * held * len(taps) + own]
                terms.append(Near(factor * x[place].value, abs(factor) * x[place].off))
            found.append(_total(terms))
    assert channels * math.prod(space) == len(x)
    return found


def _on(component: Component, t: Near) -> Near:
    return _total([_term(term, t) for term in component])


def _term(term: Term, t: Near) -> Near:
    c, s = Fraction(term.coefficient), Fraction(term.scale)
    inner = Near(s * t.value + Fraction(term.offset), abs(s) * t.off)
    if term.function not in FUNCTIONS:
        raise UnsupportedOperation("activation", term.function, "The audit's networks do not have it.")
    steepest, function = FUNCTIONS[term.function]
    found = function(inner.value)
    off = found.off + steepest * inner.off
    value = found.value
    if off:  # it is no exact number: it need not have thousands of digits
        value, off = Fraction(math.floor(value * (1 << BITS)), (1 << BITS)), off + Fraction(1, (1 << BITS))
    return Near(c * value, abs(c) * off)


def exponential(x: Fraction) -> Near:
    """``exp(x)`` for |x| below 1000: Python's decimals round it rightly."""
    with decimal.localcontext() as context:
        context.prec = DIGITS
        found = Fraction((decimal.Decimal(x.numerator) / decimal.Decimal(x.denominator)).exp())
    return Near(found, found * OFF)


def sigmoid(x: Fraction) -> Near:
    """``1 / (1 + exp(-x))``; it moves by no more than a quarter of what exp is off."""
    e = exponential(-x)
    value = 1 / (1 + e.value)
    return Near(value, 2 * value * e.off)


def silu(x: Fraction) -> Near:
    """``x sigmoid(x)``."""
    s = sigmoid(x)
    return Near(x * s.value, abs(x) * s.off)


def normal(x: Fraction) -> Near:
    """The distribution function of the standard normal law for |x| <= 8, by its series at 0, whose terms alternate."""
    x = Fraction(math.floor(x * (1 << 80)), (1 << 80))  # its slope is below a half: counted in what the result is off
    term: Fraction = x
    total: Fraction = x
    n = 0
    while n < 64 or abs(term) * 10**75 > 1:
        n += 1
        term = -term * x * x / (2 * n)
        total += term / (2 * n + 1)
        term = Fraction(math.floor(term * (1 << 400)), (1 << 400))
    root = root_down(1 / (2 * PI))
    return Near(HALF + total * root, Fraction(1, 10**22))


def gelu(x: Fraction) -> Near:
    """``x Phi(x)``."""
    found = normal(x)
    return Near(x * found.value, abs(x) * found.off)


def tanh(x: Fraction) -> Near:
    """``2 sigmoid(2 x) - 1``."""
    found = sigmoid(2 * x)
    return Near(2 * found.value - 1, 2 * found.off)


#: By name, no less than the steepest slope, and the function.
FUNCTIONS: dict[str, tuple[Fraction, Callable[[Fraction], Near]]] = {
    "identity": (ONE, Near),
    "relu": (ONE, lambda x: Near(max(x, ZERO))),
    "abs": (ONE, lambda x: Near(abs(x))),
    "sigmoid": (ONE, sigmoid),
    "tanh": (ONE, tanh),
    "silu": (Fraction(11, 10), silu),
    "gelu": (Fraction(113, 100), gelu),
}


def root_down(square: Fraction) -> Fraction:
    """Never above the root, and less than 1e-90 of it below."""
    if not square:
        return ZERO
    shift = 620 - square.numerator.bit_length() + square.denominator.bit_length()
    shift += shift % 2
    scaled = square * Fraction(2) ** shift
    return Fraction(math.isqrt(math.floor(scaled))) / Fraction(2) ** (shift // 2)


def root_up(square: Fraction) -> Fraction:
    """Never below the root."""
    return root_down(square) * (1 + Fraction(1, 10**90))


def length(v: Sequence[Fraction], norm: Norm, *, up: bool) -> Fraction:
    """The norm of a vector; rounded up or down where it is a root."""
    if norm == 1:
        return sum((abs(t) for t in v), ZERO)
    if norm == "inf":
        return max((abs(t) for t in v), default=ZERO)
    square = sum((t * t for t in v), ZERO)
    return root_up(square) if up else root_down(square)


def inside(x: Sequence[Fraction], center: Sequence[Fraction], radius: float, norm: Norm) -> bool:
    """Whether a point is in a closed ball."""
    d = [a - b for a, b in zip(x, center, strict=True)]
    if norm == 2:
        return sum((t * t for t in d), ZERO) <= Fraction(radius) ** 2
    return length(d, norm, up=True) <= Fraction(radius)


def moved(graph: Graph, x: Tensor, y: Tensor, norm: Norm) -> Fraction:
    """No more than ``|f(x) - f(y)|``."""
    at_x, at_y = values(graph, numbers(x)), values(graph, numbers(y))
    least: Vector = []
    for a, b in zip(at_x, at_y, strict=True):
        least.append(max(abs(a.value - b.value) - a.off - b.off, ZERO))
    return length(least, norm, up=False)


def jacobian(graph: Graph, x: Tensor, step: float) -> Matrix:
    """The matrix of a network that is affine on the ball of l_inf radius ``step`` around x, one row an output."""
    start = values(graph, numbers(x))
    columns: list[Vector] = []
    for place in range(x.numel()):
        point = numbers(x)
        point[place] += Fraction(step)
        moved_to = values(graph, point)
        columns.append([(b.value - a.value) / Fraction(step) for a, b in zip(start, moved_to, strict=True)])
    return [list(row) for row in zip(*columns, strict=True)]


def times(A: Matrix, B: Matrix) -> Matrix:
    """The product of two matrices."""
    columns = list(zip(*B, strict=True))
    return [[sum((a * b for a, b in zip(row, column, strict=True)), ZERO) for column in columns] for row in A]


def solved(A: Matrix, b: Vector) -> Vector:
    """The solution of ``A x = b`` for a square matrix that has an inverse, by elimination."""
    system = [[*row, right] for row, right in zip(A, b, strict=True)]
    for k in range(len(system)):
        pivot = next(i for i in range(k, len(system)) if system[i][k])
        system[k], system[pivot] = system[pivot], system[k]
        system[k] = [t / system[k][k] for t in system[k]]
        for i, row in enumerate(system):
            if i != k and row[k]:
                system[i] = [a - row[k] * b for a, b in zip(row, system[k], strict=True)]
    return [row[-1] for row in system]


def norm_up(J: Matrix, p: Norm, q: Norm) -> Fraction:
    """No less than the operator norm from l_p to l_q, and less than 1e-9 above it.

    Raises:
        UnsupportedOperation: for pairs of norms whose operator norm is no sum or eigenvalue.
    """
    columns = [list(column) for column in zip(*J, strict=True)]
    if p == 1:
        return max(length(column, q, up=True) for column in columns)
    if q == "inf":
        return max(length(row, 2 if p == 2 else 1, up=True) for row in J)
    if p == q == 2:
        return _spectral_up(J)
    raise UnsupportedOperation("norms", f"{p} -> {q}", "Its operator norm is not computed in fractions.")


def _spectral_up(J: Matrix) -> Fraction:
    """The largest singular value, rounded up: ``s^2 I - J J'`` is shown to be positive definite by elimination."""
    biggest = max((abs(t) for row in J for t in row), default=ZERO)
    if not biggest:
        return ZERO
    unit = Fraction(2) ** (biggest.numerator.bit_length() - biggest.denominator.bit_length())
    scaled = [[t / unit for t in row] for row in J]
    J = scaled if len(scaled) <= len(scaled[0]) else [list(column) for column in zip(*scaled, strict=True)]
    gram = times(J, [list(column) for column in zip(*J, strict=True)])
    floats = torch.tensor([[float(t) for t in row] for row in J], dtype=torch.float64)
    about = float(spectral_norm(floats))
    for room in (2.0**-40, 2.0**-32):
        s = Fraction(about * (1.0 + room))
        if _definite([[(s * s if i == j else ZERO) - t for j, t in enumerate(row)] for i, row in enumerate(gram)]):
            return s * unit
    return root_up(sum((t * t for row in J for t in row), ZERO)) * unit  # the Frobenius norm


def _definite(A: Matrix) -> bool:
    """Whether a symmetric matrix is positive definite: all pivots of the elimination are positive."""
    A = [list(row) for row in A]
    for k in range(len(A)):
        if A[k][k] <= 0:
            return False
        for i in range(k + 1, len(A)):
            factor = A[i][k] / A[k][k]
            if factor:
                A[i] = [a - factor * b for a, b in zip(A[i], A[k], strict=True)]
    return True


__all__ = [
    "FUNCTIONS",
    "Matrix",
    "Near",
    "inside",
    "jacobian",
    "length",
    "moved",
    "norm_up",
    "numbers",
    "root_down",
    "root_up",
    "rows",
    "solved",
    "times",
    "values",
]
