"""Norms of a Graph's Jacobians."""

from __future__ import annotations

import torch
from torch import Tensor

from lipbridge.graph.graph import Graph
from lipbridge.rigor.tangent_error import enclose_tangent
from lipbridge.vocabulary import Norm

NORMS: tuple[Norm, Norm] = ("inf", 1)


def jacobian_norms(graph: Graph, norm: Norm, count: int = 64) -> Tensor:
    """By output (l_inf) or input (l_1): the largest that is met at random points, near and far, rounded down."""
    n = graph.input_shape[0]
    x = torch.logspace(-3, 2, count, dtype=torch.float64)[:, None]
    x = x * torch.randn(count, n, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    rows = [enclose_tangent(graph, x, row.expand(count, n)) for row in torch.eye(n, dtype=torch.float64)]
    columns = [(row.tangent.value.abs() - row.tangent.error).clamp_min(0.0) * row.sound[:, None] for row in rows]
    found = torch.stack(columns, -1).sum(2 if norm == "inf" else 1).amax(0)
    return found * (1 - 2.0**-46)  # sums of a few entries


def jacobians(graph: Graph, x: Tensor) -> Tensor:
    """The Jacobians ``(n, outputs, inputs)`` at ``x`` ``(n, *input_shape)``, column by column."""
    size = x[0].numel()
    basis = torch.eye(size, dtype=x.dtype).reshape(size, *x.shape[1:])
    columns = [graph.tangent(x, v.expand_as(x))[1].flatten(1) for v in basis]
    return torch.stack(columns, -1)


def operator_norms(J: Tensor, p: Norm, q: Norm) -> Tensor:
    """``(n,)``: the norms from l_p to l_q of ``(n, m, k)``, for p of at most q."""
    if (p, q) == (2, 2):
        return torch.linalg.matrix_norm(J, 2)
    if q == "inf":
        return torch.linalg.vector_norm(J, {1: torch.inf, 2: 2, "inf": 1}[p], dim=2).amax(1)
    return torch.linalg.vector_norm(J, q, dim=1).amax(1)
