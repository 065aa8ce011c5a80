"""Derivatives of linear nodes: the same at every point, known but for rounding and for errors of the weights."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cached_property

import torch
from torch import Tensor

from lipbridge.activations.slopes import WIDER
from lipbridge.graph.graph import has_errors
from lipbridge.graph.nodes import Add, Conv, ConvTranspose, Dense, Node
from lipbridge.propagation.jacobian.derivative import Derivative, Interval, Relaxed, Spread, around, part_of
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
    def errors(self) -> Node | None:
        """The node with how far each weight may be off for a weight; None if all are exact."""
        if not has_errors(self._held):
            return None
        return self._with(lambda weight, error: torch.zeros_like(weight) if error is None else error)

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
        found = self.lost(size if radius is None else size + radius)
        if radius is not None:
            slack = 1.0 + 4.0 * gamma(self.terms + 8)
            found = [x + y * slack for x, y in zip(found, self.back(self.size, radius), strict=True)]
        return [x * (1.0 + 4.0 * WIDER) + 2.0 * self.terms * FLOOR for x in found]

    def lost(self, size: Tensor) -> list[Tensor]:
        """What rounding, and the weights' errors, take from the adjoint at cotangents of ``size``; underflow aside."""
        rounding = gamma(self.terms + 8)
        found = [x * (rounding * (1.0 + 4.0 * rounding)) + FLOOR for x in self.back(self.size, size)]
        if self.errors is None:
            return found
        more = self.back(self.errors, size)
        return [(x + y * (1.0 + 4.0 * rounding)) * (1.0 + 2.0 * WIDER) for x, y in zip(found, more, strict=True)]

    def spread(self, a: Tensor) -> list[Spread]:
        centers = self.back(self.node, a)
        if not self.terms:
            return [Spread(center, torch.zeros_like(center)) for center in centers]
        return [Spread(c, r) for c, r in zip(centers, self._radius(a.abs(), None), strict=True)]

    def relaxed(self, a: Interval, charge: Tensor | None = None) -> Relaxed:
        size, slack = a.magnitude, 1.0 + 4.0 * gamma(self.terms + 8)
        found: list[Tensor] | None = None
        floor: Tensor | None = None
        if self.terms:
            found = self.lost(size)
            # Products that underflow, in each coefficient of the image.
            floor = (4.0 * self.terms * FLOOR) * (1.0 + size.sum(2, keepdim=True))
        if charge is not None:  # |W F| charge <= |F| |W|' charge
            more = [x * slack + 2.0 * self.terms * FLOOR for x in self.back(self.size, charge)]
            found = more if found is None else [(x + y) * (1.0 + 2.0 * WIDER) for x, y in zip(found, more, strict=True)]
        return _Relaxed(self, floor, found)

    def back(self, node: Node, a: Tensor) -> list[Tensor]:
        """The adjoint of a node of this geometry at cotangents ``(k, m, size)``."""
        k, m = a.shape[:2]
        parts = adjoint(node, a.reshape(k * m, *node.shape), self.shapes)
        return [part.reshape(k, m, -1) for part in parts]


class _Relaxed(Relaxed):
    def __init__(self, map_: Linear, floor: Tensor | None, lost: list[Tensor] | None) -> None:
        self.map, self.floor, self.lost = map_, floor, lost

    def part(self, regions: slice) -> Relaxed:
        return _Relaxed(self.map, None if self.floor is None else part_of(self.floor, regions), None)

    def between(self, before: Tensor | None, own: Tensor | None) -> Relaxed | None:
        node, shape = self.map.node, self.map.shapes[0]
        if before is None and own is None:
            return self
        if not isinstance(node, Dense) or len(shape) != 1:
            return None
        weight = node.weight if own is None else node.weight.index_select(0, own)
        weight = weight if before is None else weight.index_select(1, before)
        some = Linear(replace(node, weight=weight, shape=weight.shape[:1]), [weight.shape[1:]])
        return _Relaxed(some, self.floor, None)

    def image(self, forms: list[Tensor | None]) -> tuple[Tensor, Tensor | None]:
        held = [form for form in forms if form is not None]
        if isinstance(self.map.node, Add):
            total = held[0]
            for form in held[1:]:
                total = total + form
            return total, self.floor
        lead = tuple(max(form.shape[axis] for form in held) for axis in range(3))
        count = lead[0] * lead[1] * lead[2]
        inputs: list[Tensor] = []
        for form, shape in zip(forms, self.map.shapes, strict=True):
            if form is None:
                inputs.append(held[0].new_zeros(1, *shape).expand(count, *shape))
            else:
                inputs.append(form.expand(*lead, form.shape[3]).reshape(count, *shape))
        return image(self.map.node, inputs).reshape(*lead, -1), self.floor


__all__ = ["Linear"]
