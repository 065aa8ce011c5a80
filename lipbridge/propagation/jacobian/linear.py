"""Derivatives of linear nodes: the same at every point, known but for rounding and for errors of the weights."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property

import torch
from torch import Tensor

from lipbridge.activations.slopes import WIDER
from lipbridge.graph.graph import has_errors
from lipbridge.graph.nodes import Add, Conv, ConvTranspose, Dense, Node
from lipbridge.propagation.jacobian.derivative import Derivative, Interval, Relaxed, Spread, around, times
from lipbridge.propagation.linear_maps import Shape, adjoint, bare, image, terms
from lipbridge.rounding.scalars import FLOOR, gamma


class Linear(Derivative):
    """A linear node on inputs of ``shapes``."""

    def __init__(self, node: Node, shapes: list[Shape]) -> None:
        self.node, self.shapes = bare(node), shapes
        self.terms = terms(node, shapes)
        self._held = node

    @cached_property
    def size(self) -> Node:
        """The node with magnitudes for weights."""
        return self._with(lambda weight, error: weight.abs())

    @cached_property
    def slack(self) -> Node | None:
        """The node with what each weight may be off by, and lose to rounding, for a weight; None if nothing is."""
        if isinstance(self.node, Dense | Conv | ConvTranspose):
            rounding = gamma(self.terms + 8)
            return self._with(lambda weight, error: weight.abs() * rounding + (0.0 if error is None else error))
        return None

    def _with(self, change: Callable[[Tensor, Tensor | None], Tensor]) -> Node:
        node = self._held
        if not isinstance(node, Dense | Conv | ConvTranspose):
            return self.node
        return bare(node, change(node.weight, node.error))

    def adjoint(self, a: Interval) -> list[Interval]:
        middle, radius = a.halves
        if not self.terms:
            ends = zip(self.back(self.node, a.lower), self.back(self.node, a.upper), strict=True)
            return [Interval(lower, upper) for lower, upper in ends]
        found = zip(self.back(self.node, middle), self._radius(middle.abs(), radius), strict=True)
        return [around(c - r, c + r) for c, r in found]

    def _radius(self, size: Tensor, radius: Tensor | None) -> list[Tensor]:
        """How far the adjoint may be from the computed one, for cotangents of ``size`` that are off by ``radius``."""
        rounding = gamma(self.terms + 8)
        if has_errors(self._held):
            assert self.slack is not None
            whole = size if radius is None else size + radius
            found = self.back(self.slack, whole)
            if radius is not None:
                found = [x + y for x, y in zip(found, self.back(self.size, radius), strict=True)]
        else:
            found = self.back(self.size, rounding * size if radius is None else radius + rounding * size)
        return [x * (1.0 + 4.0 * rounding) + 2.0 * self.terms * FLOOR for x in found]

    def spread(self, a: Tensor) -> list[Spread]:
        centers = self.back(self.node, a)
        if not self.terms:
            return [Spread(center, torch.zeros_like(center)) for center in centers]
        return [Spread(c, r) for c, r in zip(centers, self._radius(a.abs(), None), strict=True)]

    def relaxed(self, a: Interval) -> Relaxed:
        return _Relaxed(self, a)

    def back(self, node: Node, a: Tensor) -> list[Tensor]:
        """The adjoint of a node of this geometry at cotangents ``(k, m, size)``."""
        k, m = a.shape[:2]
        parts = adjoint(node, a.reshape(k * m, *node.shape), self.shapes)
        return [part.reshape(k, m, -1) for part in parts]


class _Relaxed(Relaxed):
    def __init__(self, map_: Linear, a: Interval) -> None:
        self.map = map_
        size = a.magnitude
        self.lost: list[Tensor] | None = None  # for each input, per unit of a form's coefficient
        self.floor: Tensor | float = 0.0
        if map_.slack is not None:
            self.lost = [x * (1.0 + 4.0 * gamma(map_.terms + 8)) + FLOOR for x in map_.back(map_.slack, size)]
            self.floor = (4.0 * map_.terms * FLOOR) * (1.0 + size.sum(2))[..., None]
        elif map_.terms:
            rounding = gamma(map_.terms + 8)
            self.lost = [x * (rounding * (1.0 + 4.0 * rounding)) + FLOOR for x in map_.back(map_.size, size)]

    def image(self, forms: list[Tensor | None]) -> tuple[Tensor, Tensor]:
        held = [form for form in forms if form is not None]
        if isinstance(self.map.node, Add):
            total = held[0]
            for form in held[1:]:
                total = total + form
            return total, self._lost(forms, total)
        lead = tuple(max(form.shape[axis] for form in held) for axis in range(3))
        count = lead[0] * lead[1] * lead[2]
        inputs: list[Tensor] = []
        for form, shape in zip(forms, self.map.shapes, strict=True):
            if form is None:
                inputs.append(held[0].new_zeros(1, *shape).expand(count, *shape))
            else:
                inputs.append(form.expand(*lead, form.shape[3]).reshape(count, *shape))
        found = image(self.map.node, inputs).reshape(*lead, -1)
        return found, self._lost(forms, found)

    def _lost(self, forms: list[Tensor | None], found: Tensor) -> Tensor:
        total = found.new_zeros(*found.shape[:3])
        if self.lost is None:
            return total
        for form, lost in zip(forms, self.lost, strict=True):
            if form is not None:
                total = total + times(form.abs(), lost) * (1.0 + gamma(form.shape[3] + 8))
        return total * (1.0 + 8.0 * WIDER) + self.floor


__all__ = ["Linear"]
