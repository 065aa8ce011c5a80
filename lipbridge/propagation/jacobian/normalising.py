"""Derivatives of normalisation and of softmax: symmetric matrices of a run, a middle one and a radius.

Both are a diagonal matrix less a product of two vectors that are known in intervals on a region.
"""

from __future__ import annotations

import math
from abc import abstractmethod

import torch
from torch import Tensor

from lipbridge.activations.slopes import WIDER
from lipbridge.graph.nodes import Normalize, Softmax
from lipbridge.propagation.jacobian.derivative import (
    Derivative,
    Interval,
    Relaxed,
    Spread,
    around,
    part_of,
    times,
)
from lipbridge.rounding.scalars import FLOOR, gamma


class Uncertain(Derivative):
    """A derivative within ``spread`` of ``center``, a matrix that acts on the last axis of :meth:`split` tensors."""

    length: int
    shape: tuple[int, ...]
    device: torch.device
    #: More than the divisors' inverses: what a product that underflowed may be multiplied by.
    steepest: float = 1.0

    @abstractmethod
    def split(self, x: Tensor) -> Tensor:
        """``(.., size)`` with the axis last along which the matrix acts."""

    @abstractmethod
    def joined(self, x: Tensor) -> Tensor:
        """The inverse of :meth:`split`."""

    @abstractmethod
    def center(self, a: Tensor) -> Tensor:
        """The middle matrix's transpose at split cotangents."""

    @abstractmethod
    def image(self, form: Tensor, regions: slice) -> Tensor:
        """The middle matrix of some of the regions at split forms."""

    @abstractmethod
    def radius(self, size: Tensor) -> Tensor:
        """How far the transpose may be from the middle one's, at split cotangents of ``size``; rounding aside."""

    @abstractmethod
    def size(self, size: Tensor) -> Tensor:
        """The sum of the magnitudes of all terms of :meth:`center` at split cotangents of ``size``."""

    def off(self, size: Tensor) -> Tensor:
        """How far the transpose may be from the computed middle one's, at cotangents of ``size``."""
        slack = gamma(self.length + 32)
        split = self.split(size)
        return self.joined(
            (self.radius(split) + 4.0 * slack * self.size(split)) * (1.0 + 8.0 * slack) + FLOOR * (1.0 + self.steepest)
        )

    @property
    def uncertain(self) -> Tensor:
        return torch.ones(1, math.prod(self.shape), dtype=torch.bool, device=self.device)

    def adjoint(self, a: Interval) -> list[Interval]:
        middle, radius = a.halves
        center = self.joined(self.center(self.split(middle)))
        slack = gamma(self.length + 32)
        more = self.joined(self.size(self.split(radius))) * (1.0 + 8.0 * slack) + self.off(a.magnitude)
        return [around(center - more, center + more)]

    def spread(self, a: Tensor) -> list[Spread]:
        return [Spread(self.joined(self.center(self.split(a))), self.off(a.abs()))]

    def relaxed(self, a: Interval, charge: Tensor | None = None) -> Relaxed:
        n = math.prod(self.shape)
        # A coefficient is computed as the transpose is: the terms of both are the same products.
        off = self.off(a.magnitude)
        if charge is not None:
            slack = gamma(self.length + 32)
            off = off + self.joined(self.size(self.split(charge))) * (1.0 + 8.0 * slack) + n * FLOOR
        floor = (8.0 * n * FLOOR) * (1.0 + self.steepest) * (1.0 + a.magnitude.sum(2, keepdim=True))
        return _Relaxed(self, slice(None), off * (1.0 + gamma(n + 8)), floor)


class _Relaxed(Relaxed):
    def __init__(self, map_: Uncertain, regions: slice, offset: Tensor, floor: Tensor) -> None:
        self.map, self.regions, self.offset, self.floor = map_, regions, offset, floor

    def part(self, regions: slice) -> Relaxed:
        return _Relaxed(self.map, regions, part_of(self.offset, regions), part_of(self.floor, regions))

    def image(self, forms: list[Tensor | None]) -> tuple[Tensor, Tensor | None]:
        (form,) = forms
        assert form is not None
        found = self.map.joined(self.map.image(self.map.split(form), self.regions))
        return found, times(form.abs(), self.offset) + self.floor


class SoftmaxDerivative(Uncertain):
    """``diag(p) - p p'``, or ``I - 1 p'`` for the logarithm, for probabilities between ``low`` and ``high``."""

    def __init__(self, node: Softmax, low: Tensor, high: Tensor) -> None:
        self.node, self.length, self.shape, self.device = node, node.shape[node.axis], node.shape, low.device
        q = 0.5 * low + 0.5 * high
        w = torch.maximum(high - q, q - low) * (1.0 + WIDER) + FLOOR
        self.q, self.w, self.high = (self._lead(x) for x in (q, w, high))

    def _lead(self, x: Tensor) -> Tensor:
        """``(k, *shape)`` as ``(k, 1, *rest, length)``, for rows of cotangents."""
        return self.split(x.flatten(1)[:, None])

    def split(self, x: Tensor) -> Tensor:
        return x.reshape(*x.shape[:-1], *self.node.shape).movedim(x.ndim - 1 + self.node.axis, -1)

    def joined(self, x: Tensor) -> Tensor:
        rank = len(self.node.shape)
        return x.movedim(-1, x.ndim - rank + self.node.axis).flatten(-rank)

    def center(self, a: Tensor) -> Tensor:
        q = self.q
        if self.node.log:
            return a - q * a.sum(-1, keepdim=True)
        return q * (a - (q * a).sum(-1, keepdim=True))

    def image(self, form: Tensor, regions: slice) -> Tensor:
        q = part_of(self.q, regions)[:, :, None]
        mean = (q * form).sum(-1, keepdim=True)
        return form - mean if self.node.log else q * (form - mean)

    def radius(self, size: Tensor) -> Tensor:
        total = size.sum(-1, keepdim=True)
        if self.node.log:
            return self.w * total
        return self.w * (size + (self.high * size).sum(-1, keepdim=True)) + self.q * (self.w * size).sum(
            -1, keepdim=True
        )

    def size(self, size: Tensor) -> Tensor:
        if self.node.log:
            return size + self.q * size.sum(-1, keepdim=True)
        return self.q * (size + (self.q * size).sum(-1, keepdim=True))


class NormalizeDerivative(Uncertain):
    """``(P - y y' / n) / s`` with P taking the mean off where the node centres, for outputs y in ``[bottom, top]``.

    Args:
        node: the normalisation.
        short, long: 1 / s lies between them, ``(k, groups, 1)``.
        bottom, top: ``(k, groups, n)``.
    """

    def __init__(self, node: Normalize, short: Tensor, long: Tensor, bottom: Tensor, top: Tensor) -> None:
        self.node, self.length, self.shape, self.device = node, bottom.shape[2], node.shape, top.device
        self.steepest = 2.0 / math.sqrt(node.epsilon)
        t = 0.5 * short + 0.5 * long
        self.t = t[:, None]
        self.away = (torch.maximum(long - t, t - short) * (1.0 + WIDER) + FLOOR)[:, None]
        c = 0.5 * bottom + 0.5 * top
        self.c = c[:, None]
        self.r = (torch.maximum(top - c, c - bottom) * (1.0 + WIDER) + FLOOR)[:, None]
        self.most = torch.maximum(-bottom, top)[:, None]

    def split(self, x: Tensor) -> Tensor:
        return x.reshape(*x.shape[:-1], self.node.groups, -1)

    def joined(self, x: Tensor) -> Tensor:
        return x.flatten(-2)

    def center(self, a: Tensor) -> Tensor:
        return self._middle(a, self.c, self.t)

    def image(self, form: Tensor, regions: slice) -> Tensor:
        c, t = (part_of(x, regions)[:, :, None] for x in (self.c, self.t))
        return self._middle(form, c, t)

    def _middle(self, x: Tensor, c: Tensor, t: Tensor) -> Tensor:
        found = x - x.mean(-1, keepdim=True) if self.node.centred else x
        return t * (found - c * ((c * x).sum(-1, keepdim=True) / self.length))

    def radius(self, size: Tensor) -> Tensor:
        mean = size.mean(-1, keepdim=True) if self.node.centred else 0.0
        most = (self.most * size).sum(-1, keepdim=True)
        outer = self.away * self.most * most + self.t * self.most * (self.r * size).sum(-1, keepdim=True)
        outer = outer + self.t * self.r * (self.c.abs() * size).sum(-1, keepdim=True)
        return self.away * (size + mean) + outer / self.length

    def size(self, size: Tensor) -> Tensor:
        mean = size.mean(-1, keepdim=True) if self.node.centred else 0.0
        c = self.c.abs()
        return self.t * (size + mean + c * ((c * size).sum(-1, keepdim=True) / self.length))


__all__ = ["NormalizeDerivative", "SoftmaxDerivative"]
