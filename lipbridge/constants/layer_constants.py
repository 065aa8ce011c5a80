"""Lipschitz constants through a Graph: of every kind of node, proved, and combined along paths, sums and joins.

Where the algebra gives more than the product and the sum of norms, it is used:

* a convolution or dense layer with a diagonal map before or after it (BatchNorm, a normalised input) is one layer;
* terms of a sum, or parts of a concatenation, that are linear functions of one and the same node are one linear map:
  x + W x = (I + W) x. For convolutions of one geometry that is one kernel; otherwise the matrix, if it is small;
* a layer [D, E] with diagonals D and E behind (relu t, relu -t), such as a PReLU with a slope for each channel, acts on
  each coordinate by itself, with the slopes d and -e: its constant is their largest magnitude, exactly, in every norm.

Everything is rounded outward. Where several bounds are known the smallest is taken.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from functools import singledispatch
from itertools import pairwise

import torch
from torch import Tensor

from lipbridge.activations.activation import derive
from lipbridge.errors import InvalidArgument, UnsupportedOperation
from lipbridge.graph.geometry import adjoint_geometry, geometry, most_copies, most_windows
from lipbridge.graph.graph import Graph
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
    Node,
    Normalize,
    Reshape,
    Softmax,
    block_axis,
)
from lipbridge.norms.conv_geometry import Convolution
from lipbridge.norms.matrix import require_cheap
from lipbridge.rigor.convolution import proved_conv_norm
from lipbridge.rigor.matrix import proved_operator_norm
from lipbridge.rounding.outward import product, total
from lipbridge.rounding.scalars import TINY, UNIT, add_up, down, mul_up, root_sum_of_powers_up, sqrt_up, up
from lipbridge.vocabulary import NORMS, Norm, dual

#: Per norm r, an upper bound of the Lipschitz constant from the input in l_p to a node in l_r.
Constants = Mapping[Norm, float]
_NormUp = Callable[[Norm, Norm], float]  # (p, q) -> proved norm
#: Sums of linear branches are written as a matrix of at most so many entries.
LARGEST_MATRIX = 2**20


def output_constants(graph: Graph, p: Norm, q: Norm) -> Constants:
    """Proved upper bounds of the Lipschitz constant from the input in l_p to the output in l_r, p <= r <= q."""
    require_cheap(p, q, "Lipschitz constant")
    if graph.device.type == "meta":
        raise InvalidArgument("network", "have weights with numbers; those on the meta device have none", graph.name)
    norms: list[Norm] = [norm for norm in NORMS if NORMS.index(p) <= NORMS.index(norm) <= NORMS.index(q)]
    roots = _roots(graph)
    reads = [_reads(graph, index, roots) for index in range(len(graph.nodes))]
    found: dict[int, Constants] = {0: dict.fromkeys(norms, 1.0)}
    for index in sorted(_needed(reads)):
        if index:
            constants = dict(_constants(graph, index, roots, found))
            for smaller, larger in pairwise(norms):
                constants[larger] = min(constants[larger], constants[smaller])  # ||x||_r falls as r grows
            found[index] = constants
    return found[len(graph.nodes) - 1]


def _reads(graph: Graph, index: int, roots: list[int]) -> set[int]:
    """The nodes whose constants give that of node ``index``."""
    if index == 0:
        return set()
    block = _block(graph, index)
    if block is not None:
        return {block.source}
    node = graph.nodes[index]
    behind = _two_slopes(graph, index)
    own = set(node.inputs) if behind is None else {*node.inputs, behind[0]}
    return own | {roots[group[0]] for group in _groups(graph, node, roots)}


def _needed(reads: list[set[int]]) -> set[int]:
    alive, waiting = {0}, [len(reads) - 1]
    while waiting:
        index = waiting.pop()
        if index not in alive:
            alive.add(index)
            waiting.extend(reads[index])
    return alive


def _constants(graph: Graph, index: int, roots: list[int], found: Mapping[int, Constants]) -> Constants:
    node = graph.nodes[index]
    block = _block(graph, index)
    if block is not None:
        shape = graph.nodes[block.source].shape
        return _through(found[block.source], lambda p, q: block.norm_up(shape, p, q))
    inputs = [found[i] for i in node.inputs]
    constants = propagate(node, inputs, [graph.nodes[i].shape for i in node.inputs])
    behind = _two_slopes(graph, index)
    if behind is not None:
        source, steepest = behind
        return _smaller(constants, {norm: mul_up(value, steepest) for norm, value in found[source].items()})
    merged = [_merged(graph, node, roots, group, found) for group in _groups(graph, node, roots)]
    if not any(merged):
        return constants
    if isinstance(node, Concat):
        return _smaller(constants, *(each for each in merged if each))
    taken = {i for group, each in zip(_groups(graph, node, roots), merged, strict=True) if each for i in group}
    rest = [constants_of for i, constants_of in zip(node.inputs, inputs, strict=True) if i not in taken]
    terms = [*rest, *(each for each in merged if each)]
    return _smaller(constants, {norm: add_up(*(term[norm] for term in terms)) for norm in constants})


def _two_slopes(graph: Graph, index: int) -> tuple[int, float] | None:
    """What (relu t, relu -t) before the node reads, and the steepest slope, if the node joins the two one by one."""
    node = graph.nodes[index]
    if not isinstance(node, Dense | Conv):
        return None
    before = graph.nodes[node.inputs[0]]
    if not isinstance(before, Elementwise) or before.activation.sides != ((0.0, 1.0), (-1.0, 0.0)):
        return None
    if isinstance(node, Conv):
        plain = set(node.stride) | set(node.weight.shape[2:]) | {node.groups} == {1} and not any(map(any, node.padding))
    else:
        plain = len(node.shape) == 1
    W = node.weight.flatten(1)
    n = W.shape[0]
    if not plain or block_axis(before) != 0 or W.shape[1] != 2 * n:
        return None
    used = W if node.error is None else W.abs() + node.error.flatten(1)
    blocks = used.reshape(n, 2, n)
    single = int(blocks.count_nonzero()) == int(blocks.diagonal(dim1=0, dim2=2).count_nonzero())
    steepest = _with_error(node, float(W.abs().max()), lambda error: float(error.max()))
    return (before.inputs[0], steepest) if single else None


def _smaller(first: Constants, *others: Constants) -> Constants:
    return {norm: min(value, *(other[norm] for other in others)) for norm, value in first.items()}


def _through(before: Constants, norm_up: _NormUp) -> Constants:
    """Behind a linear map: the smallest product over the norms on its input's side."""
    table: dict[Norm, float] = {}
    for q in before:
        paths: list[Norm] = [p for p in before if NORMS.index(p) <= NORMS.index(q)]
        table[q] = min(mul_up(before[p], norm_up(p, q)) for p in paths)
    return table


@singledispatch
def propagate(node: Node, inputs: list[Constants], shapes: list[tuple[int, ...]]) -> Constants:
    """Constants of a node from those of its inputs, which have ``shapes``, rounded outward."""
    raise UnsupportedOperation(node.name, type(node).__name__, "Its Lipschitz constant is not known yet.")


@propagate.register
def _(node: Dense, inputs: list[Constants], shapes: list[tuple[int, ...]]) -> Constants:
    # On further axes the same matrix acts on each row: for p <= q the norm of its copies is its own.
    return _through(inputs[0], lambda p, q: dense_norm_up(node, p, q))


@propagate.register
def _(node: Conv, inputs: list[Constants], shapes: list[tuple[int, ...]]) -> Constants:
    return _through(inputs[0], lambda p, q: conv_norm_up(node, shapes[0], p, q))


@propagate.register
def _(node: ConvTranspose, inputs: list[Constants], shapes: list[tuple[int, ...]]) -> Constants:
    return _through(inputs[0], lambda p, q: transposed_norm_up(node, shapes[0], p, q))


@propagate.register
def _(node: Gather, inputs: list[Constants], shapes: list[tuple[int, ...]]) -> Constants:
    """A change of one input shows in its m copies: m in l_1, sqrt(m) in l_2, 1 in l_inf; all are reached."""
    count = most_copies(node)
    factors: Constants = {1: float(count), 2: _root_up(count), "inf": float(count > 0)}
    return {norm: mul_up(value, factors[norm]) for norm, value in inputs[0].items()}


@propagate.register
def _(node: Elementwise, inputs: list[Constants], shapes: list[tuple[int, ...]]) -> Constants:
    return {norm: mul_up(value, node.activation.lipschitz[norm]) for norm, value in inputs[0].items()}


@propagate.register
def _(node: Reshape, inputs: list[Constants], shapes: list[tuple[int, ...]]) -> Constants:
    return inputs[0]


@propagate.register
def _(node: Concat, inputs: list[Constants], shapes: list[tuple[int, ...]]) -> Constants:
    return {norm: _joined([values[norm] for values in inputs], norm) for norm in inputs[0]}


@propagate.register
def _(node: Add, inputs: list[Constants], shapes: list[tuple[int, ...]]) -> Constants:
    return {norm: add_up(*(values[norm] for values in inputs)) for norm in inputs[0]}


@propagate.register
def _(node: GroupSort, inputs: list[Constants], shapes: list[tuple[int, ...]]) -> Constants:
    return inputs[0]  # almost everywhere a permutation


@propagate.register
def _(node: MaxPool, inputs: list[Constants], shapes: list[tuple[int, ...]]) -> Constants:
    """A change of one input reaches the c windows that hold it, and no more: c in l_1, sqrt(c) in l_2, 1 in l_inf."""
    count = most_windows(node, shapes[0])
    factors: Constants = {1: float(count), 2: _root_up(count), "inf": 1.0}
    return {norm: mul_up(value, factors[norm]) for norm, value in inputs[0].items()}


def _root_up(count: int) -> float:
    root = math.isqrt(count)
    return float(root) if root * root == count else sqrt_up(float(count))


@propagate.register
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


@propagate.register
def _(node: Softmax, inputs: list[Constants], shapes: list[tuple[int, ...]]) -> Constants:
    # On further axes the same function acts on each row: for p <= q the constant of its copies is its own.
    n = node.shape[node.axis]
    return _through(inputs[0], lambda p, q: softmax_norm_up(n, p, q, log=node.log))


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
    return _with_error(node, proved_operator_norm(node.weight, p, q), lambda error: proved_operator_norm(error, p, q))


def conv_norm_up(node: Conv, shape: tuple[int, ...], p: Norm, q: Norm) -> float:
    """The proved norm of a convolution on inputs of ``shape``, without its bias."""
    if node.diagonal:
        return _with_error(node, float(node.weight.abs().max()), lambda error: float(error.max()))  # for p <= q
    exact = geometry(node, shape)
    return _with_error(
        node, proved_conv_norm(node.weight, exact, p, q), lambda error: proved_conv_norm(error, exact, p, q)
    )


def _with_error(node: Dense | Conv | ConvTranspose, norm: float, norm_of: Callable[[Tensor], float]) -> float:
    """A norm of the weights that are held as one of all that are within their errors."""
    return norm if node.error is None or node.outward else add_up(norm, norm_of(node.error))


def transposed_norm_up(node: ConvTranspose, shape: tuple[int, ...], p: Norm, q: Norm) -> float:
    """The proved norm of a transposed convolution on inputs of ``shape``, without its bias.

    The norm of an adjoint from l_p to l_q is that of the operator between the dual spaces, from l_q' to l_p'.
    """
    exact = adjoint_geometry(node, shape)
    if exact is None:
        return 0.0
    return _with_error(
        node,
        proved_conv_norm(node.weight, exact, dual(q), dual(p)),
        lambda error: proved_conv_norm(error, exact, dual(q), dual(p)),
    )


@dataclass(frozen=True, eq=False)
class Block:
    """A layer and the diagonal maps ``before`` and ``after`` it, reading node ``source``."""

    core: Dense | Conv | ConvTranspose
    before: Tensor | None
    after: Tensor | None
    source: int

    def norm_up(self, shape: tuple[int, ...], p: Norm, q: Norm) -> float:
        """The proved norm of the product."""
        weight, error = self.core.weight, None if self.core.outward else self.core.error
        if self.before is not None:
            weight = weight * on_inputs(self.core, self.before)
            error = None if error is None else product(error, on_inputs(self.core, self.before).abs())
        if self.after is not None:
            weight = weight * on_outputs(self.core, self.after)
            error = None if error is None else product(error, on_outputs(self.core, self.after).abs())
        if not bool(torch.isfinite(weight).all()):
            factors = [float(t.abs().max()) for t in (self.before, self.after) if t is not None]
            return mul_up(*factors, self._norm(self.core.weight, self.core.error, shape, p, q))
        # Each entry is off by at most 3 UNIT of itself, or by TINY if it underflowed: in the first product, before
        # the second made it larger.
        grown = 1.0 if self.after is None else max(1.0, float(self.after.abs().max()))
        size = _magnitude(lambda a, b: self._norm(weight, None, shape, a, b), p, q)
        lost = mul_up(
            float(weight.numel()), float(math.prod(shape)), float(math.prod(self.core.shape)), 4.0, TINY, grown
        )
        return add_up(self._norm(weight, error, shape, p, q), mul_up(4.0 * UNIT, size), lost)

    def _norm(self, weight: Tensor, error: Tensor | None, shape: tuple[int, ...], p: Norm, q: Norm) -> float:
        if isinstance(self.core, Dense):
            return dense_norm_up(replace(self.core, weight=weight, error=error), p, q)
        if isinstance(self.core, ConvTranspose):
            return transposed_norm_up(replace(self.core, weight=weight, error=error), shape, p, q)
        return conv_norm_up(replace(self.core, weight=weight, error=error), shape, p, q)


def on_inputs(layer: Dense | Conv | ConvTranspose, scale: Tensor) -> Tensor:
    """A number for each input channel (of a dense layer: coordinate) in a shape that multiplies the layer's weight."""
    if isinstance(layer, Dense):
        return scale
    if isinstance(layer, ConvTranspose):
        return scale.reshape(-1, *(1,) * (layer.weight.ndim - 1))
    out, per_group, *kernel = layer.weight.shape
    table = scale.reshape(layer.groups, 1, per_group).expand(layer.groups, out // layer.groups, per_group)
    return table.reshape(out, per_group, *(1,) * len(kernel))


def on_outputs(layer: Dense | Conv | ConvTranspose, scale: Tensor) -> Tensor:
    """As :func:`on_inputs`, a number for each output channel (of a dense layer: coordinate)."""
    if not isinstance(layer, ConvTranspose):
        return scale.reshape(-1, *(1,) * (layer.weight.ndim - 1))
    channels, per_group, *kernel = layer.weight.shape
    table = scale.reshape(layer.groups, 1, per_group).expand(layer.groups, channels // layer.groups, per_group)
    return table.reshape(channels, per_group, *(1,) * len(kernel))


def _magnitude(norm_up: _NormUp, p: Norm, q: Norm) -> float:
    """Upper bound of the norm of |A|, whose norms in l_1 and l_inf are those of A (Schur's test for l_2)."""
    if p == 1:
        return norm_up(1, 1)
    if q == "inf":
        return norm_up("inf", "inf")
    return mul_up(sqrt_up(norm_up(1, 1)), sqrt_up(norm_up("inf", "inf")))


def _block(graph: Graph, index: int) -> Block | None:
    """The block that ends in node ``index``, if there is a diagonal map to merge."""
    node = graph.nodes[index]
    before = after = None
    if isinstance(node, Conv) and node.diagonal:
        if not (node.error is None or node.outward):
            return None
        after = node.weight.flatten()
        node = graph.nodes[node.inputs[0]]
    if not isinstance(node, Dense | Conv | ConvTranspose) or (isinstance(node, Conv) and node.diagonal):
        return None
    if isinstance(node, Dense) and len(node.shape) != 1:
        return None
    source = node.inputs[0]
    first = graph.nodes[source]
    if isinstance(first, Conv) and first.diagonal and (first.error is None or first.outward):
        before, source = first.weight.flatten(), first.inputs[0]
    return None if before is None and after is None else Block(node, before, after, source)


def _linear(node: Node) -> bool:
    """Whether a node is affine in its inputs."""
    if isinstance(node, Elementwise):
        return node.linear
    return isinstance(node, Dense | Conv | ConvTranspose | Gather | Reshape | Add | Concat)


def _roots(graph: Graph) -> list[int]:
    """For each node the one node that it is an affine function of; itself if there is no earlier one."""
    roots: list[int] = []
    for index, node in enumerate(graph.nodes):
        sources = {roots[i] for i in node.inputs}
        roots.append(sources.pop() if _linear(node) and len(sources) == 1 else index)
    return roots


def _groups(graph: Graph, node: Node, roots: list[int]) -> list[list[int]]:
    """The inputs of a sum (or of a join, if all of them) that are affine functions of one node: two or more each."""
    if not isinstance(node, Add | Concat):
        return []
    groups: dict[int, list[int]] = {}
    for i in node.inputs:
        groups.setdefault(roots[i], []).append(i)
    if isinstance(node, Concat) and len(groups) > 1:
        return []
    return [group for group in groups.values() if len(group) > 1]


def _merged(
    graph: Graph, node: Node, roots: list[int], group: list[int], found: Mapping[int, Constants]
) -> Constants | None:
    """Constants of the sum (or join) of a group as one linear map; None if it is too large to write down."""
    root = roots[group[0]]
    shape = graph.nodes[root].shape
    if isinstance(node, Add):
        conv = _summed_kernels([_branch(graph, i, root) for i in group], shape)
        if conv is not None:
            exact = geometry(conv.core, shape)
            return _through(found[root], lambda p, q: _sum_norm_up(conv, exact, p, q))
    if math.prod(shape) * math.prod(node.shape) > LARGEST_MATRIX:
        return None
    joined = replace(node, inputs=tuple(group))
    matrix, error = _jacobian(graph, joined, root)
    if not bool(torch.isfinite(matrix).all() & torch.isfinite(error).all()):
        return None
    return _through(
        found[root], lambda p, q: add_up(proved_operator_norm(matrix, p, q), proved_operator_norm(error, p, q))
    )


@dataclass(frozen=True, eq=False)
class _Kernel:
    """A kernel in the geometry of ``core``; entries are off by ``units`` UNIT of ``magnitude``'s and ``error``."""

    core: Conv
    weight: Tensor
    magnitude: Tensor
    units: int
    error: Tensor | None


def _branch(graph: Graph, index: int, root: int) -> Conv | int | None:
    """A branch that is one convolution of the root, scaled or not, or the root itself; None if it is more."""
    if index == root:
        return root
    node = graph.nodes[index]
    if not isinstance(node, Conv):
        return None
    if node.inputs == (root,):
        return node
    inner = graph.nodes[node.inputs[0]]
    if not (node.diagonal and isinstance(inner, Conv) and not inner.diagonal and inner.inputs == (root,)):
        return None
    scale, lost = (
        None if t is None else t.reshape(-1, *[1] * (inner.weight.ndim - 1)) for t in (node.weight, node.error)
    )
    assert scale is not None
    pairs = ((inner.error, scale.abs()), (inner.weight.abs(), lost), (inner.error, lost))
    error = total(None if a is None or b is None else product(a, b) for a, b in pairs)
    return replace(inner, weight=inner.weight * scale, error=error, outward=False)


def _summed_kernels(branches: Iterable[Conv | int | None], shape: tuple[int, ...]) -> _Kernel | None:
    found = list(branches)
    convs = [branch for branch in found if isinstance(branch, Conv) and not branch.diagonal]
    diagonals = [branch for branch in found if isinstance(branch, Conv) and branch.diagonal]
    if not convs or None in found:
        return None
    core = convs[0]
    same = all(
        (c.weight.shape, c.stride, c.padding, c.dilation, c.groups, c.padding_mode)
        == (core.weight.shape, core.stride, core.padding, core.dilation, core.groups, core.padding_mode)
        for c in convs
    )
    if not same or len(core.kernel) not in (1, 2, 3):
        return None
    weight, magnitude = torch.zeros_like(core.weight), torch.zeros_like(core.weight)
    for conv in convs:
        weight, magnitude = weight + conv.weight, magnitude + conv.weight.abs()
    error = total(conv.error for conv in convs)
    one = torch.ones(shape[0], dtype=weight.dtype, device=weight.device)
    scales: list[tuple[Tensor, Tensor | None]] = [(one, None) for b in found if isinstance(b, int)]
    scales += [(conv.weight.flatten(), conv.error) for conv in diagonals]
    for scale, lost in scales:
        taps = _own_tap(core, shape)
        if taps is None:
            return None
        out = torch.arange(shape[0], device=weight.device)
        place = (out, out % weight.shape[1], *taps)
        weight[place] += scale
        magnitude[place] += scale.abs()
        if lost is not None:
            own = torch.zeros_like(weight)
            own[place] = lost.flatten()
            error = total((error, own))
    if not bool(torch.isfinite(magnitude).all()):
        return None
    return _Kernel(core, weight, magnitude, 2 * len(found) + 2, error)  # sums, and the scaling of a branch


def _own_tap(core: Conv, shape: tuple[int, ...]) -> tuple[int, ...] | None:
    """The tap by which an output reads the input at its own place, if the shapes are equal and there is one."""
    if core.shape != shape or any(step != 1 for step in core.stride):
        return None
    taps: list[int] = []
    for (before, _), dilation, length in zip(core.padding, core.dilation, core.kernel, strict=True):
        if before % dilation or before // dilation >= length:
            return None
        taps.append(before // dilation)
    return tuple(taps)


def _sum_norm_up(kernel: _Kernel, exact: Convolution, p: Norm, q: Norm) -> float:
    rounding = _magnitude(lambda a, b: proved_conv_norm(kernel.magnitude, exact, a, b), p, q)
    lost = mul_up(float(kernel.weight.numel()), float(math.prod(exact.input_shape)), 8.0, TINY)
    own = 0.0 if kernel.error is None else proved_conv_norm(kernel.error, exact, p, q)
    return add_up(proved_conv_norm(kernel.weight, exact, p, q), mul_up(kernel.units + 1.0, UNIT, rounding), lost, own)


def _jacobian(graph: Graph, last: Node, root: int) -> tuple[Tensor, Tensor]:
    """The matrix ``(outputs, inputs)`` of the linear part from node ``root`` to ``last``, and its entries' errors."""
    # Imported here, since the search builds on bounds.
    from lipbridge.rigor.running_error import Enclosure, enclosed

    shape = graph.nodes[root].shape
    n = math.prod(shape)
    unit = torch.eye(n, dtype=torch.float64, device=graph.device).reshape(n, *shape)
    values = {root: Enclosure(unit, torch.zeros_like(unit))}
    between: set[int] = set()
    waiting = list(last.inputs)
    while waiting:
        index = waiting.pop()
        if index not in between and index != root:
            between.add(index)
            waiting.extend(graph.nodes[index].inputs)
    for index in sorted(between):
        node = graph.nodes[index]
        values[index] = enclosed(_homogeneous(node), [values[i] for i in node.inputs])
    found = enclosed(last, [values[i] for i in last.inputs])
    return found.value.reshape(n, -1).T, found.error.reshape(n, -1).T


def _homogeneous(node: Node) -> Node:
    """A linear node without what it adds."""
    if isinstance(node, Dense | Conv | ConvTranspose):
        return replace(node, bias=None, bias_error=None)
    if isinstance(node, Elementwise):
        lines = tuple(tuple(replace(t, offset=0.0) for t in c) for c in node.activation.components)
        return replace(node, activation=derive("linear", lines))
    return node


def notes(graph: Graph) -> str:
    """What to know of the bound, in one line: layers whose constant is that of their epsilon, a softmax; else empty."""
    return "; ".join(note for note in (_epsilon_note(graph), _softmax_note(graph)) if note)


def _epsilon_note(graph: Graph) -> str:
    rows = [node for node in graph.nodes if isinstance(node, Normalize)]
    if not rows:
        return ""
    worst = min(rows, key=lambda node: node.epsilon)
    factor, near = normalize_norm_up(2, worst.epsilon, 2), "constant" if worst.centred else "zero"
    return (
        f"{len(rows)} normalisation layer{'s' if len(rows) > 1 else ''} (e.g. `{worst.name}`) may stretch by "
        f"1/sqrt(epsilon) = {factor:.3g} near {near} inputs: this is why the bound is large"
    )


def _softmax_note(graph: Graph) -> str:
    last = graph.nodes[-1]
    while isinstance(last, Reshape):
        last = graph.nodes[last.inputs[0]]
    if not isinstance(last, Softmax):
        return ""
    if last.log:
        reason = "has the margins of the logits, and a larger constant"
    else:
        reason = "flattens the margins of the logits"
    return f"the last layer `{last.name}` is a {'log-' if last.log else ''}softmax, which {reason}: bound the logits"


__all__ = [
    "Block",
    "Constants",
    "conv_norm_up",
    "dense_norm_up",
    "notes",
    "on_inputs",
    "on_outputs",
    "output_constants",
    "propagate",
    "root_mean_square_norm_up",
    "softmax_norm_up",
    "transposed_norm_up",
]
