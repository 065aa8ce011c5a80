"""The proved constant of one node, from a norm to a norm, as it passes on the constants before it."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

from torch import Tensor

from lipbridge.graph.geometry import adjoint_geometry, geometry, most_copies
from lipbridge.graph.nodes import (
    Add,
    Concat,
    Conv,
    ConvTranspose,
    Dense,
    Elementwise,
    Gather,
    GroupSort,
    MaxPool,
    Normalize,
    Reshape,
    Softmax,
)
from lipbridge.graph.rules import Rule
from lipbridge.graph.windows import most_windows
from lipbridge.rigor.convolution import proved_conv_norm
from lipbridge.rigor.matrix import proved_operator_norm
from lipbridge.rounding.scalars import add_up, down, mul_up, root_sum_of_powers_up, sqrt_up, up
from lipbridge.vocabulary import NORMS, Norm, dual

#: Per norm r, an upper bound of the Lipschitz constant from the input in l_p to a node in l_r.
Constants = Mapping[Norm, float]


NormUp = Callable[[Norm, Norm], float]  # (p, q) -> proved norm


def through(before: Constants, norm_up: NormUp) -> Constants:
    """Behind a linear map: the smallest product over the norms on its input's side."""
    table: dict[Norm, float] = {}
    for q in before:
        paths: list[Norm] = [p for p in before if NORMS.index(p) <= NORMS.index(q)]
        table[q] = min(mul_up(before[p], norm_up(p, q)) for p in paths)
    return table


#: Constants of a node from those of its inputs, which have the given shapes, rounded outward.
propagate = Rule[[list[Constants], list[tuple[int, ...]]], Constants](
    "constant", "Its Lipschitz constant is not known yet."
)


@propagate.of(Dense)
def _(node: Dense, inputs: list[Constants], shapes: list[tuple[int, ...]]) -> Constants:
    # On further axes the same matrix acts on each row: for p <= q the norm of its copies is its own.
    return through(inputs[0], lambda p, q: dense_norm_up(node, p, q))


@propagate.of(Conv)
def _(node: Conv, inputs: list[Constants], shapes: list[tuple[int, ...]]) -> Constants:
    return through(inputs[0], lambda p, q: conv_norm_up(node, shapes[0], p, q))


@propagate.of(ConvTranspose)
def _(node: ConvTranspose, inputs: list[Constants], shapes: list[tuple[int, ...]]) -> Constants:
    return through(inputs[0], lambda p, q: transposed_norm_up(node, shapes[0], p, q))


@propagate.of(Gather)
def _(node: Gather, inputs: list[Constants], shapes: list[tuple[int, ...]]) -> Constants:
    """A change of one input shows in its m copies: m in l_1, sqrt(m) in l_2, 1 in l_inf; all are reached."""
    count = most_copies(node)
    factors: Constants = {1: float(count), 2: _root_up(count), "inf": float(count > 0)}
    return {norm: mul_up(value, factors[norm]) for norm, value in inputs[0].items()}


@propagate.of(Elementwise)
def _(node: Elementwise, inputs: list[Constants], shapes: list[tuple[int, ...]]) -> Constants:
    return {norm: mul_up(value, node.activation.lipschitz[norm]) for norm, value in inputs[0].items()}


@propagate.of(Reshape)
def _(node: Reshape, inputs: list[Constants], shapes: list[tuple[int, ...]]) -> Constants:
    return inputs[0]


@propagate.of(Concat)
def _(node: Concat, inputs: list[Constants], shapes: list[tuple[int, ...]]) -> Constants:
    return {norm: _joined([values[norm] for values in inputs], norm) for norm in inputs[0]}


@propagate.of(Add)
def _(node: Add, inputs: list[Constants], shapes: list[tuple[int, ...]]) -> Constants:
    return {norm: add_up(*(values[norm] for values in inputs)) for norm in inputs[0]}


@propagate.of(GroupSort)
def _(node: GroupSort, inputs: list[Constants], shapes: list[tuple[int, ...]]) -> Constants:
    return inputs[0]  # almost everywhere a permutation


@propagate.of(MaxPool)
def _(node: MaxPool, inputs: list[Constants], shapes: list[tuple[int, ...]]) -> Constants:
    """A change of one input reaches the c windows that hold it, and no more: c in l_1, sqrt(c) in l_2, 1 in l_inf."""
    count = most_windows(node, shapes[0])
    factors: Constants = {1: float(count), 2: _root_up(count), "inf": 1.0}
    return {norm: mul_up(value, factors[norm]) for norm, value in inputs[0].items()}


def _root_up(count: int) -> float:
    root = math.isqrt(count)
    return float(root) if root * root == count else sqrt_up(float(count))


@propagate.of(Normalize)
def _(node: Normalize, inputs: list[Constants], shapes: list[tuple[int, ...]]) -> Constants:
    n = math.prod(shapes[0]) // node.groups
    factor = normalize_norm_up if node.centred else root_mean_square_norm_up
    return {norm: mul_up(value, factor(n, node.epsilon, norm)) for norm, value in inputs[0].items()}


def root_mean_square_norm_up(n: int, epsilon: float, norm: Norm) -> float:
    """Upper bound of the Lipschitz constant of x -> x / sqrt(mean(x^2) + epsilon) on R^n; exact in every norm.

    With y the output, s the divisor and r = mean(x^2) / (mean(x^2) + epsilon) the Jacobian is (I - y y' / n) / s, and
    |y|^2 = n r, s = sqrt(epsilon / (1 - r)). In l_2 its norm is at most 1 / s, reached at zero. It is symmetric; a row
    sums to 1 - a^2 / n + a b / n, in units of 1 / s, for a = |y_i| and b the sum of the other |y_j|, at most
    sqrt((n - 1) (n r - a^2)). With a = sqrt(n r) cos t that is 1 - r / 2 + r / 2 (sqrt(n - 1) sin 2t - cos 2t), at most
    1 + c r for c = (sqrt(n) - 1) / 2, reached where the others are equal. So sqrt(1 - r) (1 + c r) / sqrt(epsilon).
    """
    least = down(math.sqrt(epsilon))
    c = (math.sqrt(n) - 1.0) / 2.0
    if norm == 2 or c <= 0.5:
        return up(1.0 / least)
    r = (2.0 * c - 1.0) / (3.0 * c)  # the maximiser; near it the function is flat
    largest = max(1.0, math.sqrt(1.0 - r) * (1.0 + c * r))
    return mul_up(largest * (1.0 + 2.0**-40), up(1.0 / least))


def normalize_norm_up(n: int, epsilon: float, norm: Norm) -> float:
    """Upper bound of the Lipschitz constant of x -> (x - mean) / sqrt(variance + epsilon) on R^n; exact in l_2.

    With y the output, s the divisor and r = variance / (variance + epsilon) the Jacobian is
    (I - (1 1' + y y') / n) / s, and |y|^2 = n r, s = sqrt(epsilon / (1 - r)). In l_2 its norm is 1 / s for n > 2, at
    most 1 / sqrt(epsilon), which is reached where all entries are equal. A row sums to at most
    2 (1 - 1/n) + |y_i| sqrt(r) with |y_i| <= sqrt(r (n - 1)), and the columns are the rows:
    sqrt(1 - r) (a + b r) / sqrt(epsilon) for a = 2 (1 - 1/n), b = sqrt(n - 1) bounds l_1 and l_inf.
    """
    if n == 1:
        return 0.0
    least = down(math.sqrt(epsilon))
    if norm == 2:
        return up(1.0 / least)
    a, b = 2.0 * (1.0 - 1.0 / n), math.sqrt(n - 1.0)
    r = min(1.0, max(0.0, (2.0 * b - a) / (3.0 * b)))  # the maximiser; near it the function is flat
    largest = max(a, math.sqrt(1.0 - r) * (a + b * r))
    return mul_up(largest * (1.0 + 2.0**-40), up(1.0 / least))


@propagate.of(Softmax)
def _(node: Softmax, inputs: list[Constants], shapes: list[tuple[int, ...]]) -> Constants:
    # On further axes the same function acts on each row: for p <= q the constant of its copies is its own.
    n = node.shape[node.axis]
    return through(inputs[0], lambda p, q: softmax_norm_up(n, p, q, log=node.log))


def softmax_norm_up(n: int, p: Norm, q: Norm, *, log: bool) -> float:
    """Upper bound of the Lipschitz constant of softmax or log-softmax of R^n, from l_p to l_q for p <= q.

    Each is the supremum over probabilities y, and so exact:

    * softmax has the Jacobian diag(y) - y y', which is symmetric. Column j is y_j (e_j - y). Its sum is
      2 y_j (1 - y_j) <= 1/2, which bounds l_1, l_inf and hence l_2 too (n = 2, y = 1/2: the eigenvalue is 1/2); its l_2
      length is at most sqrt(2) y_j (1 - y_j) <= sqrt(2) / 4, and its largest entry y_j (1 - y_j) <= 1/4.
    * log-softmax has I - 1 y'. Column j is e_j - y_j 1: its sum 1 + (n - 2) y_j is at most n - 1, its length
      sqrt((1 - y_j)^2 + (n - 1) y_j^2) at most sqrt(n - 1), its entries at most 1; all approached as y_j -> 1. Row i
      sums to 2 (1 - y_i) <= 2 and has at most the length sqrt(2) (1 - y_i). In l_2, I - 1 y' and 1 y' are projections
      that add up to I, and such have one norm (Szyld 2006): |1| |y| <= sqrt(n).
    """
    if n == 1:
        return 0.0
    if not log:
        same: dict[tuple[Norm, Norm], float] = {(1, "inf"): 0.25, (1, 2): sqrt_up(0.125), (2, "inf"): sqrt_up(0.125)}
        return same.get((p, q), 0.5)
    rows: dict[tuple[Norm, Norm], float] = {
        (1, 1): float(n - 1),
        (1, 2): _root_up(n - 1),
        (1, "inf"): 1.0,
        (2, 2): _root_up(n),
        (2, "inf"): _root_up(2),
        ("inf", "inf"): 2.0,
    }
    return rows[p, q]


def _joined(values: list[float], norm: Norm) -> float:
    return max(values) if norm == "inf" else root_sum_of_powers_up(values, norm)


def dense_norm_up(node: Dense, p: Norm, q: Norm) -> float:
    """The proved norm of a dense layer, without its bias."""
    return with_error(node, proved_operator_norm(node.weight, p, q), lambda error: proved_operator_norm(error, p, q))


def conv_norm_up(node: Conv, shape: tuple[int, ...], p: Norm, q: Norm) -> float:
    """The proved norm of a convolution on inputs of ``shape``, without its bias."""
    if node.diagonal:
        return with_error(node, float(node.weight.abs().max()), lambda error: float(error.max()))  # for p <= q
    exact = geometry(node, shape)
    return with_error(
        node, proved_conv_norm(node.weight, exact, p, q), lambda error: proved_conv_norm(error, exact, p, q)
    )


def with_error(node: Dense | Conv | ConvTranspose, norm: float, norm_of: Callable[[Tensor], float]) -> float:
    """A norm of the weights that are held as one of all that are within their errors."""
    return norm if node.error is None or node.outward else add_up(norm, norm_of(node.error))


def transposed_norm_up(node: ConvTranspose, shape: tuple[int, ...], p: Norm, q: Norm) -> float:
    """The proved norm of a transposed convolution on inputs of ``shape``, without its bias.

    The norm of an adjoint from l_p to l_q is that of the operator between the dual spaces, from l_q' to l_p'.
    """
    exact = adjoint_geometry(node, shape)
    if exact is None:
        return 0.0
    return with_error(
        node,
        proved_conv_norm(node.weight, exact, dual(q), dual(p)),
        lambda error: proved_conv_norm(error, exact, dual(q), dual(p)),
    )
