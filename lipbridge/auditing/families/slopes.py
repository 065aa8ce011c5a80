"""Activations that are steeper than 1, or fall: what takes every slope to be in [0, 1] is unsound on them."""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction

import torch
from torch import Tensor

from lipbridge.auditing.exactly import HALF, normal, root_up, silu
from lipbridge.auditing.instance import Instance, Steep, made
from lipbridge.auditing.networks import Layer, chain, matrix
from lipbridge.graph.graph import Graph
from lipbridge.linalg import vector_norm
from lipbridge.problem.question import Ball, Question
from lipbridge.vocabulary import Norm, Quantity

#: Where silu is steepest: its slope is sigma + t sigma (1 - sigma), which falls behind t tanh(t / 2) = 2. There it is
#: t sigma / 2, so that half of silu at any t beyond is no less than the largest slope.
SILU_AT = Fraction(2399357280515467, 10**15)
#: Where gelu is: phi(t) (2 - t^2) is the derivative of its slope Phi(t) + t phi(t).
GELU_AT = root_up(Fraction(2))
#: Half the distance of the pairs.
STEP = 2.0**-16


def _steepest() -> dict[str, tuple[float, Fraction]]:
    """By activation where it is steepest, and no less than its slope there."""
    top = silu(SILU_AT + Fraction(1, 10**14))
    found = normal(GELU_AT)
    # t phi(t) at t = sqrt 2 is 1 / (e sqrt pi); both factors are rounded up.
    density = root_up(1 / Fraction(314159265358979323846, 10**20)) / Fraction(271828182845904523536, 10**20)
    gelu = found.value + found.off + density
    return {"silu": (float(SILU_AT), (top.value + top.off) * HALF), "gelu": (float(GELU_AT), gelu)}


def steep_slopes(seed: int) -> Iterator[Instance]:
    """Networks of silu and of gelu whose units are all where they are steepest at one input; and of abs."""
    family = "steep-slopes"
    for name, (at, slope) in _steepest().items():
        one = [[1.0]]
        yield from _smooth(family, f"{name}-one", chain((one, None), name), matrix([at]), slope, (2,), local=True)
        eye = torch.eye(3, dtype=torch.float64)
        graph = chain((eye, [0.0, 0.5, -0.5]), name, (eye, None))
        base = matrix([at, at - 0.5, at + 0.5])
        yield from _smooth(family, f"{name}-three", graph, base, slope, (1, 2, "inf"))
        # Orthonormal weights of entries +-1/2: the Jacobian is the slope times an orthonormal matrix.
        H = matrix([[1.0, 1.0, 1.0, 1.0], [1.0, -1.0, 1.0, -1.0], [1.0, 1.0, -1.0, -1.0], [1.0, -1.0, -1.0, 1.0]]) / 2
        graph = chain((H, None), name, (H, None))
        yield from _smooth(family, f"{name}-rotated", graph, H @ torch.full_like(H[0], at), slope, (2,), local=True)
        # Biases move what an activation gives to where the next one is steepest.
        value = _value(name, at)
        for depth in (3, 6):
            layers: list[Layer] = [(one, None), name]
            for _ in range(depth - 1):
                layers += [(one, [at - value]), name]
            graph = chain(*layers)
            own = slope**depth
            yield from _smooth(family, f"{name}-{depth}-deep", graph, matrix([at]), own, (2,), local=depth == 3)
    # |x| - |x - 1| has the slope 2 between 0 and 1.
    graph = chain(([[1.0], [1.0]], [0.0, -1.0]), "abs", ([[1.0, -1.0]], None))
    yield from Steep(family, "abs-pulse", graph, matrix([0.5]), 0.25).instances()


def _value(name: str, at: float) -> float:
    graph = chain(([[1.0]], None), name)
    return float(graph(matrix([[at]]))[0, 0])


def _smooth(
    family: str, name: str, graph: Graph, base: Tensor, slope: Fraction, norms: tuple[Norm, ...], *, local: bool = False
) -> Iterator[Instance]:
    """The Instances of a network whose Jacobian is ``slope`` times an isometry at ``base``, and nowhere larger."""
    v = torch.ones_like(base) if len(base) != 4 else torch.eye(4, dtype=torch.float64)[0]
    pair = torch.stack([base - STEP * v, base + STEP * v])
    for p in norms:
        yield made(family, f"{name}-l{p}", graph, Question.everywhere(p), pair, slope)
        if local:
            ball = Ball(base[None], 0.25, p)
            yield made(family, f"{name}-l{p}-ball", graph, Question.on(ball, p), pair, slope)
            small = Ball(base[None], STEP, p)
            question = Question.on(small, p, quantity=Quantity.DEVIATION)
            far = torch.stack([base, base + STEP * (1.0 - 2.0**-30) * v / vector_norm(v)])
            yield made(family, f"{name}-l{p}-ball-deviation", graph, question, far, slope)


__all__ = ["steep_slopes"]
