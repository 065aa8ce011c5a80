"""Gradient ascent on ``||J(x) v||_q / ||v||_p`` over points x and directions v together, a batch at a time.

The derivative of a kinked activation does not change with x, so its gradient says nothing about which pattern of
signs would be better. Smoothed over a width, it does: a wide smoothing pushes every pre-activation towards the sign
that raises the gain, a narrow one settles the pattern. The width shrinks from step to step. The direction takes one
step of the power method along with each step of x, from the same backward pass. Nothing here waits for the device.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from lipbridge.graph.graph import Graph
from lipbridge.search.directions import batch_norm, dual_vector, replaced, smoothed_tangent
from lipbridge.search.domain import Balls, Domain
from lipbridge.vocabulary import Norm

_FADE = (0.9, 0.99)  # Adam's decay of the first and the second moment


@dataclass(frozen=True, eq=False)
class Climb:
    """The state of an ascent: points ``x`` and directions ``v`` ``(batch, *shape)``, Adam's two moments, its age."""

    x: Tensor
    v: Tensor
    first: Tensor
    second: Tensor
    age: int = 0

    @classmethod
    def start(cls, x: Tensor, v: Tensor) -> Climb:
        """A fresh state."""
        return cls(x, v, torch.zeros_like(x), torch.zeros_like(x))


def ascent_step(graph: Graph, state: Climb, domain: Domain, p: Norm, q: Norm, width: float, rate: float) -> Climb:
    """One step of x (Adam, ``rate`` times the domain's step length) and of v (power method).

    Args:
        width: of the smoothing, relative to each layer's size; zero for the true derivative.
        rate: relative step length.

    Law: runs without host synchronisation, so also on the ``meta`` device.
    """
    with torch.enable_grad():
        x, v = state.x.detach().requires_grad_(), state.v.detach().requires_grad_()
        _, y = smoothed_tangent(graph, x, v, width)
        u = dual_vector(y.detach(), q)
        gradient, w = torch.autograd.grad((u * y).sum(), (x, v), allow_unused=True, materialize_grads=True)
    return _moved(state, domain, gradient, replaced(state.v, w, p), rate)


def deviation_step(graph: Graph, state: Climb, balls: Balls, outputs: Tensor, q: Norm, rate: float) -> Climb:
    """One step of x that raises ``||f(x) - f(c)||_q``; ``outputs`` ``(batch, *output_shape)`` is f at the centres.

    Every other point moves towards the ball's point furthest along the gradient (Frank and Wolfe 1956; a power step
    where f is linear), since the best point is mostly on the surface; the others move as in :func:`ascent_step`.

    Law: as :func:`ascent_step`.
    """
    with torch.enable_grad():
        x = state.x.detach().requires_grad_()
        y = graph(x) - outputs
        u = dual_vector(y.detach(), q)
        (gradient,) = torch.autograd.grad((u * y).sum(), x)
    moved = _moved(state, balls, gradient, state.v, rate)
    # A gradient that vanishes asks for no move at all: towards the point itself.
    furthest = balls.centers + balls.radius * replaced(state.x - balls.centers, gradient, balls.norm)
    stays = (gradient == 0).flatten(1).all(dim=1).reshape(-1, *[1] * (x.ndim - 1))
    share = min(1.0, 3.0 * rate)
    towards = balls.project(torch.where(stays, state.x, (1.0 - share) * state.x + share * furthest))
    even = (torch.arange(len(x), device=x.device) % 2 == 0).reshape(stays.shape)
    return replace(moved, x=torch.where(even, towards, moved.x))


def _moved(state: Climb, domain: Domain, gradient: Tensor, v: Tensor, rate: float) -> Climb:
    gradient = _normalised(gradient)
    first = _FADE[0] * state.first + (1.0 - _FADE[0]) * gradient
    second = _FADE[1] * state.second + (1.0 - _FADE[1]) * gradient.square()
    age = state.age + 1
    step = (first / (1.0 - _FADE[0] ** age)) / ((second / (1.0 - _FADE[1] ** age)).sqrt() + 1e-6)
    x = domain.project(state.x + rate * domain.step_length(state.x) * step)
    return Climb(x, v, first, second, age)


def _normalised(gradient: Tensor) -> Tensor:
    """Rows scaled to a largest entry of one, so that the size of the weights does not matter; zero if not finite."""
    gradient = torch.where(torch.isfinite(gradient), gradient, 0.0)
    largest = batch_norm(gradient, "inf").reshape(-1, *[1] * (gradient.ndim - 1))
    return gradient / largest.clamp_min(2.0**-1000)
