"""LipSDP written out naively in one dense matrix, with the constraints as the papers state them: slow and obvious.

Slopes in [a, b]: ``T (-2ab z^2 + 2(a+b) z p - 2p^2) >= 0`` (Fazlyab et al. 2019). Joint: ``T (c^2 z^2 - |p|^2) >= 0``.
Entries are floats or exact fractions, whatever the weights are.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise

import numpy as np
import torch
from torch import nn

from lipbridge.activations.registry import activation, activation_module, activation_names
from lipbridge.graph.graph import Graph
from lipbridge.graph.nodes import Dense, Elementwise, Input
from lipbridge.lipsdp.system import lipsdp_of

#: Per activation: slopes (a, b) of the variable p, and the outputs as rows (of z, of p).
SLOPES = {
    "relu": ((0, 1), [(0, 1)]),
    "tanh": ((0, 1), [(0, 1)]),
    "softplus": ((0, 1), [(0, 1)]),
    "elu": ((0, 1), [(0, 1)]),
    "sigmoid": ((0, Fraction(1, 4)), [(0, 1)]),
    "leaky_relu": ((Fraction(0.01), 1), [(0, 1)]),
    "silu": ((1 - Fraction(1.0998393201289), Fraction(1.0998393201289)), [(0, 1)]),
    "gelu": ((1 - Fraction(1.1289041451852), Fraction(1.1289041451852)), [(0, 1)]),
    "abs": ((-1, 1), [(0, 1)]),
    "sin": ((-1, 1), [(0, 1)]),
    "crelu": ((0, 1), [(0, 1), (-1, 1)]),
    "identity_abs": ((-1, 1), [(1, 0), (0, 1)]),
    "identity_abs_l2": ((-1, 1), [(Fraction(0.7071067811865475), 0), (0, Fraction(0.7071067811865475))]),
    "sin2_pair": ((-1, 1), [(Fraction(1, 2), Fraction(1, 2)), (Fraction(1, 2), -Fraction(1, 2))]),
}


@dataclass
class Unit:
    """One constraint: ``form`` is its symmetric matrix, ``ratio`` our T divided by the T that is meant here."""

    form: np.ndarray
    ratio: float


def lmi(weights: list[np.ndarray], names: list[str]) -> tuple[int, np.ndarray, list[Unit]]:
    """``(n, out'out, units)``: rho I_n (+) 0 - out'out - sum T form >= 0 is the inequality; all in dtype object."""
    n = weights[0].shape[1]
    sizes = [len(W) * (2 if name == "sincos" else 1) for W, name in zip(weights, names, strict=False)]
    N = n + sum(sizes)
    y = np.zeros((n, N), dtype=object)
    for i in range(n):
        y[i, i] = 1
    units: list[Unit] = []
    start = n
    for layer, name in enumerate(names):
        z = weights[layer] @ y
        u = len(z)
        p = np.zeros((sizes[layer], N), dtype=object)
        for i in range(sizes[layer]):
            p[i, start + i] = 1
        start += sizes[layer]
        if name == "sincos":
            for i in range(u):
                form = np.outer(z[i], z[i]) - np.outer(p[i], p[i]) - np.outer(p[u + i], p[u + i])
                units.append(Unit(form, 1.0))
            y = p
            continue
        (a, b), rows = SLOPES[name]
        for i in range(u):
            zp = np.outer(z[i], p[i])
            form = -2 * a * b * np.outer(z[i], z[i]) + (a + b) * (zp + zp.T) - 2 * np.outer(p[i], p[i])
            units.append(Unit(form, float(b - a) ** 2 / 2))
        y = np.concatenate([of_z * z + of_p * p for of_z, of_p in rows])
    out = weights[-1] @ y
    return n, out.T @ out, units


def is_positive_semidefinite(matrix: np.ndarray) -> bool:
    """Exact test on fractions: symmetric elimination; a zero pivot needs a zero row."""
    A = [[Fraction(value) for value in row] for row in matrix]
    while A:
        pivot = max(range(len(A)), key=lambda i: A[i][i])
        d = A[pivot][pivot]
        if d < 0 or (d == 0 and any(value for row in A for value in row)):
            return False
        if d == 0:
            return True
        rest = [i for i in range(len(A)) if i != pivot]
        A = [[A[i][j] - A[i][pivot] * A[pivot][j] / d for j in rest] for i in rest]
    return True


def graph_of(net: nn.Sequential) -> Graph:
    """A Graph without ``torch.export``, which would take most of these tests' time."""
    rows = {type(activation_module(name)): activation(name) for name in activation_names()}
    nodes: list = [Input("x", (), (net[0].in_features,))]
    for index, layer in enumerate(net):
        last = (len(nodes) - 1,)
        if isinstance(layer, nn.Linear):
            bias = None if layer.bias is None else layer.bias.detach()
            nodes.append(Dense(str(index), last, (layer.out_features,), layer.weight.detach(), bias))
        else:
            row = rows[type(layer)]
            nodes.append(Elementwise(str(index), last, (nodes[-1].shape[0] * row.width,), row))
    return Graph(tuple(nodes))


def sampled(graph: Graph, count: int = 64) -> float:
    """The largest Jacobian norm over random points near and far from the origin: a lower bound but for rounding."""
    n = graph.input_shape[0]
    scales = torch.logspace(-3, 2, count, dtype=torch.float64)[:, None]
    x = scales * torch.randn(count, n, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    columns = [graph.tangent(x, row.expand(count, n))[1] for row in torch.eye(n, dtype=torch.float64)]
    return float(torch.linalg.matrix_norm(torch.stack(columns, -1), 2).max())


def chain(names: list[str], widths: list[int], seed: int) -> tuple[Graph, list[np.ndarray]]:
    """A random network without biases and the weights of its LipSDP system (scaled by powers of two)."""
    layers: list[nn.Module] = []
    factor = 1
    torch.manual_seed(seed)
    for index, (n, m) in enumerate(pairwise(widths)):
        layers.append(nn.Linear(n * factor, m, bias=False, dtype=torch.float64))
        if index < len(names):
            layers.append(activation_module(names[index]))
            factor = activation(names[index]).width
    graph = graph_of(nn.Sequential(*layers))
    system = lipsdp_of(graph)
    return graph, [system.entry.numpy(), *(stage.weight.numpy() for stage in system.stages)]
