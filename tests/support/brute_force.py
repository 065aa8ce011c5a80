"""Exact constants of tiny networks by brute force: every pattern of pieces, kept if a linear program finds a point."""

from __future__ import annotations

import numpy as np
import torch
from scipy.optimize import linprog
from torch import Tensor, nn

import lipbridge
from lipbridge.branch_and_bound.cascade import Cascade, cascade_of
from lipbridge.graph.graph import Graph
from lipbridge.search.directions import jacobians

KINDS = ("relu", "leaky", "abs", "crelu", "hardtanh", "sort2", "sort3", "pool", "residual", "joined", "conv", "deep")


class _Residual(nn.Module):
    def __init__(self, n: int, width: int) -> None:
        super().__init__()
        self.inner, self.outer, self.last = nn.Linear(n, width), nn.Linear(width, n), nn.Linear(n, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(x + self.outer(self.inner(x).relu()))


class _Joined(nn.Module):
    def __init__(self, n: int) -> None:
        super().__init__()
        self.one, self.two, self.last = nn.Linear(n, 3), nn.Linear(n, 2), nn.Linear(5, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(torch.cat([self.one(x).relu(), self.two(x).abs()], 1))


class _Abs(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.abs()


def tiny(seed: int) -> Graph:
    """A network of at most ten units, its kind by the seed."""
    torch.manual_seed(seed)
    kind, bias = KINDS[seed % len(KINDS)], seed % 3 != 0
    n = 2 + seed % 2

    def dense(*layers: nn.Module, width: int = 5, out: int | None = None) -> nn.Module:
        return nn.Sequential(
            nn.Linear(n, width, bias=bias), *layers, nn.Linear(width if out is None else out, 2, bias=bias)
        )

    made: nn.Module
    shape: tuple[int, ...] = (n,)
    if kind == "relu":
        made = dense(nn.ReLU(), width=6)
    elif kind == "leaky":
        made = dense(nn.LeakyReLU(0.2))
    elif kind == "abs":
        made = dense(_Abs())
    elif kind == "crelu":
        made = lipbridge.mlp([n, 4, 2], "crelu", bias=bias)
    elif kind == "hardtanh":
        made = dense(nn.Hardtanh(-0.5, 1.0), width=4)
    elif kind == "sort2":
        made = dense(lipbridge.GroupSort(2), width=6)
    elif kind == "sort3":
        made = dense(lipbridge.GroupSort(3), width=6)
    elif kind == "pool":
        made = nn.Sequential(nn.Conv1d(1, 2, 2, bias=bias), nn.MaxPool1d(2), nn.Flatten(), nn.Linear(4, 2))
        shape = (1, 5)
    elif kind == "residual":
        made = _Residual(n, 5)
    elif kind == "joined":
        made = _Joined(n)
    elif kind == "conv":
        made = nn.Sequential(nn.Conv1d(1, 2, 2, bias=bias), nn.ReLU(), nn.Flatten(), nn.Linear(6, 2))
        shape = (1, 4)
    else:
        made = nn.Sequential(nn.Linear(n, 4, bias=bias), nn.ReLU(), nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))
    return lipbridge.capture(made.eval(), shape)


def interior_points(graph: Graph, box: tuple[Tensor, float] | None = None) -> Tensor:
    """A deep point of every cell that has one, everywhere or in a box (centre, radius): ``(cells, *input_shape)``."""
    cascade = cascade_of(graph)
    functions = [layer.function for layer in cascade.layers for _ in range(layer.stop - layer.start)]
    found: list[np.ndarray] = []
    _grow(cascade, functions, [], [], box, found)
    return torch.from_numpy(np.stack(found)).reshape(-1, *graph.input_shape)


def _grow(cascade: Cascade, functions, rows, values, box, found) -> None:
    """Units one by one: rows are the constraints so far, values the units' affine functions so far."""
    n, at = cascade.P.shape[1], len(values)
    point = _deepest(rows, n, box)
    if point is None:
        return
    if at == len(functions):
        found.append(point)
        return
    z = np.concatenate([cascade.P[at].numpy(), [float(cascade.b[at])]])
    for weight, value in zip(cascade.A[at].tolist(), values, strict=False):
        z = z + weight * value
    f = functions[at]
    for piece, (slope, offset) in enumerate(zip(f.slopes, f.offsets, strict=True)):
        more = []
        for kink, sign in ((piece - 1, 1.0), (piece, -1.0)):
            if 0 <= kink < len(f.kinks) and np.abs(z[:-1]).max() > 1e-12:
                row = z.copy()
                row[-1] -= float(f.kinks[kink])
                more.append(sign * row)
        value = float(slope) * z
        value[-1] += float(offset)
        _grow(cascade, functions, rows + more, [*values, value], box, found)


def _deepest(rows, n, box) -> np.ndarray | None:
    center, radius = (np.zeros(n), 1e3) if box is None else (box[0].flatten().numpy(), box[1])
    A = np.array([[*(-row[:-1]), np.linalg.norm(row[:-1])] for row in rows]).reshape(-1, n + 1)
    b = np.array([row[-1] for row in rows])
    sides = [(c - radius, c + radius) for c in center]
    walls = np.concatenate([np.eye(n), -np.eye(n)])
    A = np.concatenate([A, np.concatenate([walls, np.ones((2 * n, 1))], 1)])
    b = np.concatenate([b, center + radius, radius - center])
    answer = linprog([0.0] * n + [-1.0], A_ub=A, b_ub=b, bounds=[*sides, (None, 1.0)], method="highs")
    return answer.x[:n] if answer.status == 0 and answer.x[n] > 1e-7 else None


def largest_norm(graph: Graph, x: Tensor, p, q) -> float:
    """The largest norm of the Jacobians at points."""
    return float(lipbridge.operator_norm(jacobians(graph, x, 0.0), p, q).max())


def constants(graph: Graph, pairs, box=None) -> list[float]:
    """The exact constants for some pairs of norms."""
    x = interior_points(graph, box)
    return [largest_norm(graph, x, p, q) for p, q in pairs]


__all__ = ["KINDS", "constants", "interior_points", "largest_norm", "tiny"]
