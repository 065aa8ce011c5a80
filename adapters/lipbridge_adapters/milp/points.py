"""From a pattern of slopes that a program found to a point inside its cell, where the network is differentiable.

The program's own point often lies on a kink: optima of linear programs are vertices. With the pattern fixed, the
network is affine, and one linear program finds the point of the cell that is farthest from its walls.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from lipbridge.errors import LipbridgeError
from lipbridge.problem.bound import Witness
from lipbridge.problem.problem import Problem
from lipbridge.search.witness import witness_value
from lipbridge_adapters.milp.network import Network, Reach
from lipbridge_adapters.milp.program import Vector

#: How far from all walls, in units of the ball's radius, a point must be to be tried.
LEAST = 1e-9


def proved_witness(problem: Problem, reach: Reach, slopes: Sequence[Vector]) -> tuple[float, Witness] | None:
    """What is proved at a point that has given slopes, and the witness; None if no such point is found.

    A pattern that belongs to kinks alone (the chain rule's slopes that no neighbourhood has) gives none.

    Args:
        problem: what is asked.
        reach: of one of its balls.
        slopes: by activation ``(units, kinks)`` of 0 and 1.
    """
    x = interior_point(reach, slopes)
    if x is None:
        return None
    if reach.shrink is not None:
        x = x * reach.shrink
    direction = _direction(jacobian(reach.network, slopes), problem)
    shape = (1, *problem.graph.input_shape)
    found = Witness(torch.tensor(x).reshape(shape), torch.tensor(direction).reshape(shape))
    try:
        return witness_value(problem, found), found
    except LipbridgeError:
        return None


def jacobian(network: Network, slopes: Sequence[Vector]) -> Vector:
    """``(outputs, inputs)``: the Jacobian of a pattern of slopes."""
    J = network.weights[0]
    for W, hinges, own in zip(network.weights[1:], network.hinges, slopes, strict=True):
        parts = [(first + own @ steps)[:, None] * J for first, steps in zip(hinges.first, hinges.steps, strict=True)]
        J = W @ np.concatenate(parts)
    return J


def interior_point(reach: Reach, slopes: Sequence[Vector]) -> Vector | None:
    """The flattened point of a pattern's cell in the ball that is farthest from its walls, or None if it has no inside.

    Distances to the kinks are in the ball's norm, those to its surface too.
    """
    from scipy.optimize import linprog

    network, center = reach.network, reach.ball.centers[0].flatten().cpu().numpy()
    n, radius, box = len(center), reach.ball.radius, reach.ball.norm == "inf"
    A, b = radius * np.eye(n), center  # the layer's input is A d + b, d in the unit ball
    walls: list[Vector] = []
    ends: list[Vector] = []
    for W, shift, hinges, own in zip(network.weights, network.biases, network.hinges, slopes, strict=False):
        A, b = W @ A, W @ b + shift
        size = np.abs(A).sum(1) if box else np.abs(A).max(1)
        for j, kink in enumerate(hinges.kinks):
            sign = 2.0 * own[:, j] - 1.0  # sign (A d + b - kink) >= size tau
            walls.append(np.concatenate([-sign[:, None] * A, size[:, None]], 1))
            ends.append(sign * (b - kink))
        parts: list[tuple[Vector, Vector]] = []
        for first, steps, value in zip(hinges.first, hinges.steps, hinges.value, strict=True):
            slope = first + own @ steps
            parts.append((slope[:, None] * A, slope * b + value - own @ (steps * hinges.kinks)))
        A, b = (np.concatenate(part) for part in zip(*parts, strict=True))
    rows, right = np.concatenate([np.zeros((0, n + 1)), *walls]), np.concatenate([np.zeros(0), *ends])
    size = np.abs(rows[:, :n]).max(1, initial=0.0)
    constant = size == 0.0
    if np.any(right[constant] < 0.0):
        return None
    rows, right = rows[~constant] / size[~constant, None], right[~constant] / size[~constant]
    one = np.ones((n, 1))
    if box:
        surface = np.concatenate([np.concatenate([s * np.eye(n), one], 1) for s in (1.0, -1.0)])
        rows, right = np.concatenate([rows, surface]), np.concatenate([right, np.ones(2 * n)])
        bounds = [(-1.0, 1.0)] * n
    else:  # d = u - v with u, v >= 0 and sum (u + v) + tau <= 1
        rows = np.concatenate([rows[:, :n], -rows[:, :n], rows[:, n:]], 1)
        rows = np.concatenate([rows, np.ones((1, 2 * n + 1))])
        right = np.append(right, 1.0)
        bounds = [(0.0, 1.0)] * (2 * n)
    cost = np.zeros(rows.shape[1])
    cost[-1] = -1.0
    found = linprog(cost, A_ub=rows, b_ub=right, bounds=[*bounds, (0.0, 1.0)], method="highs")
    if found.x is None or found.x[-1] < LEAST:
        return None
    d = found.x[:n] if box else found.x[:n] - found.x[n : 2 * n]
    return center + radius * d


def _direction(J: Vector, problem: Problem) -> Vector:
    """A direction in which J has its norm, for l_inf to l_inf, l_1 to l_1 and l_1 to l_inf."""
    if problem.input_norm == "inf":
        return np.sign(J[np.abs(J).sum(1).argmax()])
    gains = np.abs(J).sum(0) if problem.output_norm == 1 else np.abs(J).max(0)
    return np.eye(J.shape[1])[gains.argmax()]


__all__ = ["interior_point", "jacobian", "proved_witness"]
