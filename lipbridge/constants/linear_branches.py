"""Linear branches of one node, merged: the norm of their sum is below the sum of their norms."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from lipbridge.activations.activation import derive
from lipbridge.constants.node_constants import Constants, through
from lipbridge.constants.scaled_layers import magnitude_of
from lipbridge.graph.geometry import geometry
from lipbridge.graph.graph import Graph, reached
from lipbridge.graph.nodes import (
    Add,
    Concat,
    Conv,
    ConvTranspose,
    Dense,
    Elementwise,
    Gather,
    Node,
    Reshape,
)
from lipbridge.norms.conv_geometry import Convolution
from lipbridge.rigor.convolution import proved_conv_norm
from lipbridge.rigor.matrix import proved_operator_norm
from lipbridge.rounding.outward import product, total
from lipbridge.rounding.scalars import TINY, UNIT, add_up, mul_up
from lipbridge.vocabulary import Norm

#: Sums of linear branches are written as a matrix of at most so many entries.
LARGEST_MATRIX = 2**20


def _linear(node: Node) -> bool:
    """Whether a node is affine in its inputs."""
    if isinstance(node, Elementwise):
        return node.linear
    return isinstance(node, Dense | Conv | ConvTranspose | Gather | Reshape | Add | Concat)


def roots_of(graph: Graph) -> list[int]:
    """For each node the one node that it is an affine function of; itself if there is no earlier one."""

    def root(index: int, node: Node, roots: list[int]) -> int:
        return roots[0] if _linear(node) and len(set(roots)) == 1 else index

    return graph.fold_all(0, root)


def groups_of(graph: Graph, node: Node, roots: list[int]) -> list[list[int]]:
    """The inputs of a sum (or of a join, if all of them) that are affine functions of one node: two or more each."""
    if not isinstance(node, Add | Concat):
        return []
    groups: dict[int, list[int]] = {}
    for i in node.inputs:
        groups.setdefault(roots[i], []).append(i)
    if isinstance(node, Concat) and len(groups) > 1:
        return []
    return [group for group in groups.values() if len(group) > 1]


def merged_of(
    graph: Graph, node: Node, roots: list[int], group: list[int], found: Mapping[int, Constants]
) -> Constants | None:
    """Constants of the sum (or join) of a group as one linear map; None if it is too large to write down."""
    root = roots[group[0]]
    shape = graph.nodes[root].shape
    if isinstance(node, Add):
        conv = _summed_kernels([_branch(graph, i, root) for i in group], shape)
        if conv is not None:
            exact = geometry(conv.core, shape)
            return through(found[root], lambda p, q: _sum_norm_up(conv, exact, p, q))
    if math.prod(shape) * math.prod(node.shape) > LARGEST_MATRIX:
        return None
    joined = replace(node, inputs=tuple(group))
    matrix, error = _jacobian(graph, joined, root)
    if not bool(torch.isfinite(matrix).all() & torch.isfinite(error).all()):
        return None
    return through(
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
    rounding = magnitude_of(lambda a, b: proved_conv_norm(kernel.magnitude, exact, a, b), p, q)
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
    between = reached(last.inputs, lambda index: () if index == root else graph.nodes[index].inputs)
    for index in sorted(between - {root}):
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
