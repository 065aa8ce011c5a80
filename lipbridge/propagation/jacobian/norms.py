"""Upper bounds of norms of all Jacobians on regions, row by row and as matrices, each the best of several.

For rows or the whole matrix, in the norms p of the input and q of the output:

* *entries*: the norm of the entries' largest magnitudes; row sums by a further linear bound;
* *centre and radius*: J is a middle Jacobian plus, node by node, what the node's derivative adds to the middle
  cotangents, times the Jacobian of what comes before; the norm of that is at most the product of the nodes' constants
  on the region. This is exact as the region shrinks, and the better one in l_2;
* *path*: the product of the nodes' constants on the region itself.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from lipbridge.activations.slopes import WIDER
from lipbridge.constants.node_constants import propagate
from lipbridge.graph.graph import Graph
from lipbridge.graph.nodes import Add, Concat, Elementwise
from lipbridge.propagation.jacobian.cotangents import Cotangents, centers
from lipbridge.propagation.jacobian.derivative import Derivative, Spread
from lipbridge.propagation.jacobian.diagonal import Diagonal
from lipbridge.propagation.jacobian.spectral import spectral_norms_up
from lipbridge.propagation.rules import DUAL, norm_up
from lipbridge.rounding.scalars import FLOOR
from lipbridge.vocabulary import Norm

#: By node index, an upper bound of its l_p constant, alone, from each of its inputs.
Factors = Mapping[int, float]
#: Hidden layers of more units are bounded by the product of the norms before them alone.
WIDEST = 512


def factors_of(graph: Graph, norm: Norm) -> dict[int, float]:
    """Proved l_p constants of every node with one input, on its own; the others add and join.

    Raises:
        NumericalFailure: if weights hold NaN or a norm overflows.
    """
    found: dict[int, float] = {}
    for index, node in enumerate(graph.nodes[1:], start=1):
        if not isinstance(node, Add | Concat):
            shapes = [graph.nodes[i].shape for i in node.inputs]
            found[index] = propagate(node, [{norm: 1.0}], shapes)[norm]
    return found


def path_constants(
    graph: Graph,
    derivatives: Sequence[Derivative | None],
    norm: Norm,
    factors: Factors,
    like: Tensor,
    *,
    middles: bool = True,
) -> list[Tensor]:
    """By node, ``(k or 1,)``: upper bounds of its l_p constant on the regions.

    Products and sums of its nodes' constants there; for ``middles``, before an activation of up to ``WIDEST`` units,
    behind another one, also by a middle Jacobian and what the nodes before may add to it, with their own constants.
    """
    found = [like.new_ones(1)]
    curved = False
    for index, node in enumerate(graph.nodes[1:], start=1):
        inputs = [found[i] for i in node.inputs]
        own = derivatives[index]
        if isinstance(node, Elementwise) and isinstance(own, Diagonal):
            source = node.inputs[0]
            if middles and curved and norm_is_cheap(graph, source):
                rows = torch.eye(math.prod(graph.nodes[source].shape), dtype=like.dtype, device=like.device)[None]
                part = replace(graph, nodes=graph.nodes[: source + 1])
                sharper = middle_and_radius(*centers(part, derivatives, rows), found, norm, norm)
                found[source] = torch.fmin(found[source], sharper)
                inputs = [found[source]]
            curved = True
        if isinstance(node, Add | Concat):
            parts = torch.stack([x.expand(max(map(len, inputs))) for x in inputs], -1)
            found.append(norm_up(parts, 1 if isinstance(node, Add) else norm))
            continue
        gain = like.new_full((1,), factors.get(index, math.inf))
        if isinstance(node, Elementwise) and isinstance(own, Diagonal):
            gain = torch.minimum(gain, steepest(own, norm))
        found.append(inputs[0] * gain * (1.0 + WIDER) + FLOOR)
    return found


def norm_is_cheap(graph: Graph, index: int) -> bool:
    """Whether the Jacobian of a node is small enough for its norm to be worth it."""
    return math.prod(graph.nodes[index].shape) <= WIDEST and math.prod(graph.input_shape) <= 8 * WIDEST


def middle_and_radius(
    middle: Tensor, added: Sequence[tuple[int, Spread]], paths: Sequence[Tensor], p: Norm, q: Norm
) -> Tensor:
    """``(k or 1,)``: the norm from l_p to l_q of middle rows and of what :func:`centers` says may be added to them."""
    total = operators_up(middle, p, q)
    for source, spread in added:
        part = magnitudes_up(spread.radius, p, q)
        if spread.signed is not None:
            part = part + operators_up(spread.signed, p, q)
        part = part * paths[source]
        total = total + torch.where(part > 0, part, 0.0) * (1.0 + 4.0 * WIDER)
    return (total * (1.0 + (4.0 * len(added) + 8.0) * WIDER)).nan_to_num(math.inf, math.inf)


def operators_up(matrix: Tensor, p: Norm, q: Norm) -> Tensor:
    """Norms from l_p to l_q of ``(k, m, n)``, for p of at most q."""
    if q == "inf":
        return norm_up(matrix.abs(), DUAL[p]).amax(1)
    if p == 1:
        return norm_up(matrix.abs().mT, q).amax(1)
    return spectral_norms_up(matrix)


def magnitudes_up(radius: Tensor, p: Norm, q: Norm) -> Tensor:
    """The same of all matrices with entries of magnitudes up to ``radius``."""
    if q == "inf" or p == 1:
        return operators_up(radius, p, q)
    rows, columns = norm_up(radius, 1).amax(1), norm_up(radius.mT, 1).amax(1)
    schur = rows.sqrt() * columns.sqrt() * (1.0 + 4.0 * WIDER) + FLOOR  # the product itself may underflow
    return torch.minimum(schur, norm_up(radius.flatten(1), 2))


def steepest(own: Diagonal, norm: Norm) -> Tensor:
    """``(k,)``: the largest l_p norm of the components' slopes at one coordinate."""
    gains: list[Tensor] = []
    for sign in (-1.0, 1.0):
        sizes = [
            (c + sign * j).abs() + e + WIDER * (c.abs() + j.abs())
            for c, j, e in zip(own.middle, own.joint, own.apart, strict=True)
        ]
        gains.append(norm_up(torch.stack(sizes, -1), norm).amax(-1))
    return torch.maximum(*gains)


class Norms:
    """Norms of ``C J`` for all Jacobians J on k regions.

    Args:
        graph: the network.
        derivatives: of its nodes on the regions.
        p: norm of the input.
        rows: C, ``(k or 1, m, outputs)`` float64.
        factors: of :func:`factors_of` for the norm p; where a node has none its constant is unknown.
        linear: whether to propagate linear bounds, the dear part.
    """

    def __init__(
        self,
        graph: Graph,
        derivatives: Sequence[Derivative | None],
        p: Norm,
        rows: Tensor,
        factors: Factors,
        *,
        linear: bool = True,
    ) -> None:
        self.p: Norm = p
        self.cotangents = Cotangents(graph, derivatives, rows, linear=linear)
        self.middle, self.added = centers(graph, derivatives, rows)
        # In l_1 and l_inf the linear bounds of rows are the smaller ones, whatever the middles of hidden nodes give.
        self.paths = path_constants(graph, derivatives, p, factors, rows, middles=p == 2 or not linear)
        self.cotangents.propagate()
        self.rows_up = self._rows()

    def _rows(self) -> Tensor:
        """``(k, m)``: of each row the dual norm, which is its Lipschitz constant from l_p."""
        dual = DUAL[self.p]
        sums = self.p == "inf"
        entries = self.cotangents.row_sums() if sums else norm_up(self.cotangents.found[0].magnitude, dual)
        total = norm_up(self.middle.abs(), dual)
        for source, spread in self.added:
            size = spread.radius if spread.signed is None else spread.radius + spread.signed.abs()
            part = norm_up(size, dual) * self.paths[source][:, None]
            total = total + torch.where(part > 0, part, 0.0) * (1.0 + 4.0 * WIDER)
        total = total * (1.0 + (4.0 * len(self.added) + 8.0) * WIDER)
        return torch.fmin(entries, total.nan_to_num(math.inf, math.inf)).nan_to_num(math.inf, math.inf)

    def matrix(self, q: Norm) -> Tensor:
        """``(k,)``: the norm from l_p to l_q of all rows together, for q of at least p.

        The path's constant is for ``C`` the identity, and left to the caller.
        """
        if q == "inf":
            return self.rows_up.amax(1)
        entries = self.cotangents.found[0]
        total = middle_and_radius(self.middle, self.added, self.paths, self.p, q)
        if self.p == 1:
            columns = norm_up(entries.magnitude.mT, q).amax(1)
            return torch.fmin(columns, total).nan_to_num(math.inf, math.inf)
        center, radius = entries.halves
        whole = spectral_norms_up(center) + norm_up(radius.flatten(1), 2)
        found = torch.fmin(whole * (1.0 + 4.0 * WIDER), norm_up(self.rows_up, 2))
        return torch.fmin(found, total).nan_to_num(math.inf, math.inf)


__all__ = ["Factors", "Norms", "factors_of", "magnitudes_up", "path_constants"]
