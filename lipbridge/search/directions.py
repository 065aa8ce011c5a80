"""Directions v that maximise ||J v||_q / ||v||_p: dual vectors, the power method, and small Jacobians in full."""

from __future__ import annotations

import torch
from torch import Tensor

from lipbridge.graph.evaluation import evaluate, joined, push
from lipbridge.graph.graph import Graph
from lipbridge.graph.nodes import Elementwise, Node
from lipbridge.linalg import torch_linalg, vector_norm
from lipbridge.vocabulary import Norm, dual

#: Jacobians are formed in full if their shorter side is at most this.
FULL_SIDE = 32
#: Largest number of entries of the Jacobians of one batch.
FULL_ENTRIES = 2**24
_TINY = 2.0**-1000


def batch_norm(y: Tensor, norm: Norm) -> Tensor:
    """``||y_i||`` of each row of ``(batch, *shape)``, as ``(batch,)``; without overflow or underflow on the way."""
    flat = y.flatten(1)
    scale = flat.abs().amax(dim=1).clamp_min(_TINY)
    return vector_norm(flat / scale[:, None], norm, dim=1) * scale


def dual_vector(y: Tensor, norm: Norm) -> Tensor:
    """The u with <u, y> = ||y||_norm whose dual norm is one, row by row of ``(batch, *shape)``."""
    if norm == 1:
        return torch.where(y >= 0, 1.0, -1.0).to(y.dtype)
    flat = y.flatten(1)
    if norm == 2:
        scaled = flat / flat.abs().amax(dim=1, keepdim=True).clamp_min(_TINY)
        unit = scaled / vector_norm(scaled, 2, dim=1, keepdim=True).clamp_min(_TINY)
        return unit.reshape(y.shape)
    index = flat.abs().argmax(dim=1, keepdim=True)
    sign = torch.where(flat.gather(1, index) >= 0, 1.0, -1.0).to(y.dtype)
    return torch.zeros_like(flat).scatter(1, index, sign).reshape(y.shape)


def smoothed_tangent(graph: Graph, x: Tensor, v: Tensor, width: float) -> tuple[Tensor, Tensor]:
    """Value and tangent, with kinks smoothed over ``width`` times the root mean square of each layer's input.

    The relative width makes the smoothing the same at every depth and for points of any size. Both results are
    ``(batch, *output_shape)``; a width of zero gives the true derivative.
    """

    def step(_: int, node: Node, pairs: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
        if width > 0 and isinstance(node, Elementwise) and node.activation.kinked and node.activation.homogeneous:
            z, t = pairs[0]
            scale = _root_mean_square(z.detach()).clamp_min(_TINY)
            slopes = node.activation.derivatives(z / scale, width)  # of degree zero, so only the width is rescaled
            return evaluate(node, [z]), joined(node, [d * t for d in slopes])
        return push(node, pairs, width)

    return graph.fold((x, v), step)


def _root_mean_square(z: Tensor) -> Tensor:
    axes = tuple(range(1, z.ndim))
    largest = z.abs().amax(dim=axes, keepdim=True).clamp_min(_TINY)
    return (z / largest).square().mean(dim=axes, keepdim=True).sqrt() * largest


def gains(graph: Graph, x: Tensor, v: Tensor, p: Norm, q: Norm) -> Tensor:
    """``||J(x) v||_q / ||v||_p`` of each row, ``(batch,)``; zero where it is not finite."""
    _, y = smoothed_tangent(graph, x, v, 0.0)
    ratio = batch_norm(y, q) / batch_norm(v, p)
    return torch.where(torch.isfinite(ratio), ratio, 0.0)


def top_directions(graph: Graph, x: Tensor, v: Tensor, p: Norm, q: Norm, width: float, steps: int = 8) -> Tensor:
    """For each x the direction of largest gain, ``(batch, *input_shape)``; ``v`` is the guess to start from.

    Exact (for a Jacobian small enough to be formed) for the cheap norm pairs; for inf->1, inf->2 and 2->1, and for
    large Jacobians, the power method of Boyd 1974 and Higham 1992, which climbs to a local maximum.
    """
    m, n = _size(graph.output_shape), _size(graph.input_shape)
    if min(m, n) > FULL_SIDE or len(x) * m * n > FULL_ENTRIES:
        return _power(graph, x, v, p, q, width, steps)
    J = jacobians(graph, x, width)
    return _direction_of(J, v.flatten(1), p, q).reshape(v.shape)


def power_step(graph: Graph, x: Tensor, v: Tensor, p: Norm, q: Norm, width: float) -> Tensor:
    """One step of the power method for ``||J v||_q / ||v||_p`` at fixed x: it never lowers the gain."""
    with torch.enable_grad():
        leaf = v.detach().requires_grad_()
        _, y = smoothed_tangent(graph, x.detach(), leaf, width)
        u = dual_vector(y.detach(), q)
        (w,) = torch.autograd.grad((u * y).sum(), leaf)
    return replaced(v, w, p)


def replaced(v: Tensor, w: Tensor, p: Norm) -> Tensor:
    """The maximiser of <w, v> over ||v||_p = 1, or the old v where w vanishes or is not finite."""
    good = torch.isfinite(w).flatten(1).all(dim=1) & (w != 0).flatten(1).any(dim=1)
    return torch.where(good.reshape(-1, *[1] * (v.ndim - 1)), dual_vector(w, dual(p)), v)


def jacobians(graph: Graph, x: Tensor, width: float) -> Tensor:
    """The Jacobians at ``x``, ``(batch, outputs, inputs)``, smoothed as in :func:`smoothed_tangent`."""
    x = x.detach()
    m, n = _size(graph.output_shape), _size(graph.input_shape)
    if n < m:
        basis = torch.eye(n, dtype=x.dtype, device=x.device).reshape(n, 1, *x.shape[1:])
        columns = [smoothed_tangent(graph, x, e.expand_as(x), width)[1].flatten(1) for e in basis]
        return torch.stack(columns, dim=2)
    with torch.enable_grad():
        leaf = torch.zeros_like(x).requires_grad_()
        y = smoothed_tangent(graph, x, leaf, width)[1].flatten(1)
        rows = [torch.autograd.grad(y[:, i].sum(), leaf, retain_graph=i + 1 < m)[0].flatten(1) for i in range(m)]
    return torch.stack(rows, dim=1)


def _direction_of(J: Tensor, v: Tensor, p: Norm, q: Norm) -> Tensor:
    finite = torch.isfinite(J).flatten(1).all(dim=1)
    J = torch.where(finite[:, None, None], J, 0.0)
    if p == 1:  # the largest column
        return dual_vector(vector_norm(_scaled(J), q, dim=1), "inf")
    if q == "inf":  # the largest row
        row = vector_norm(_scaled(J), dual(p), dim=2).argmax(dim=1)
        return replaced(v, J[torch.arange(len(J), device=J.device), row], p)
    if (p, q) == (2, 2):
        return replaced(v, _top_right_vector(_scaled(J)), 2)
    return _matrix_power(_scaled(J), v, p, q)


def _scaled(J: Tensor) -> Tensor:
    return J / J.abs().amax(dim=(1, 2), keepdim=True).clamp_min(_TINY)


def _top_right_vector(J: Tensor) -> Tensor:
    short = J if J.shape[1] <= J.shape[2] else J.mT
    vectors = torch_linalg.eigh(short @ short.mT)[1]
    top = vectors[..., -1]
    return top if short is not J else (top[:, None, :] @ J)[:, 0]


def _matrix_power(J: Tensor, v: Tensor, p: Norm, q: Norm, steps: int = 12) -> Tensor:
    """Power method on formed matrices from ``v`` and from every row's own maximiser; the best end wins."""
    rows = torch.where(J >= 0, 1.0, -1.0).to(J.dtype) if p == "inf" else J
    V = torch.cat([v[:, None], rows], dim=1)  # (batch, 1 + m, n): a direction a row
    for _ in range(steps):
        Y = V @ J.mT
        U = torch.where(Y >= 0, 1.0, -1.0).to(J.dtype) if q == 1 else Y / vector_norm(Y, 2, 2, True).clamp_min(_TINY)
        W = U @ J
        V = (
            torch.where(W >= 0, 1.0, -1.0).to(J.dtype)
            if p == "inf"
            else W / vector_norm(W, 2, 2, True).clamp_min(_TINY)
        )
    best = vector_norm(V @ J.mT, q, dim=2).argmax(dim=1)
    return V[torch.arange(len(V), device=V.device), best]


def _power(graph: Graph, x: Tensor, v: Tensor, p: Norm, q: Norm, width: float, steps: int) -> Tensor:
    for _ in range(steps):
        v = power_step(graph, x, v, p, q, width)
    return v


def _size(shape: tuple[int, ...]) -> int:
    size = 1
    for length in shape:
        size *= length
    return size
