"""Derivatives of activations: a diagonal matrix for each component, with slopes between bounds.

A component's slopes on an interval lie in an interval. Where the pre-activation can meet two pieces of a piecewise
linear activation at most, the slopes of all components together are those of a point of a segment: one number E in
[-1, 1] places them all, and crelu, (relu t, relu -t), is no wider than relu.
"""

from __future__ import annotations

import math
from fractions import Fraction

import torch
from torch import Tensor

from lipbridge.activations.activation import Activation, pieces_of
from lipbridge.activations.piecewise_linear import above, below
from lipbridge.activations.slopes import WIDER, component_slopes
from lipbridge.graph.nodes import Elementwise, block_axis
from lipbridge.propagation.jacobian.derivative import (
    Derivative,
    Interval,
    Relaxed,
    Spread,
    around,
    chord,
    part_of,
    times,
)
from lipbridge.propagation.linear_maps import Shape
from lipbridge.rounding.scalars import FLOOR, gamma


class Diagonal(Derivative):
    """``M' a = sum_k (middle_k + E joint_k + E_k apart_k) a_k`` with all E between -1 and 1, entry by entry.

    Args:
        node: the activation.
        shape: of its source.
        middle, joint, apart: per component ``(k, size)``; ``apart`` is not negative.
    """

    def __init__(
        self, node: Elementwise, shape: Shape, middle: list[Tensor], joint: list[Tensor], apart: list[Tensor]
    ) -> None:
        self.node, self.shape = node, shape
        self.middle, self.joint, self.apart = middle, joint, apart

    @property
    def uncertain(self) -> Tensor:
        wide = [(j != 0) | (e > 0) for j, e in zip(self.joint, self.apart, strict=True)]
        lead = wide[0].shape[0]
        found = self.joined([x.to(torch.float64) for x in wide])
        return found.reshape(lead, -1) > 0

    def joined(self, parts: list[Tensor]) -> Tensor:
        """Components ``(.., size)`` as the blocks of the node's values."""
        lead = parts[0].shape[:-1]
        axis = len(lead) + block_axis(self.node)
        whole = [part.reshape(*lead, *self.shape) for part in parts]
        return (whole[0] if len(whole) == 1 else torch.cat(whole, axis)).reshape(*lead, -1)

    def blocks(self, a: Tensor) -> list[Tensor]:
        """The components ``(.., size)`` of a tensor of the node's size."""
        lead, width = a.shape[:-1], self.node.activation.width
        if width == 1:
            return [a]
        whole = a.reshape(*lead, *self.node.shape)
        parts = whole.chunk(width, len(lead) + block_axis(self.node))
        return [part.reshape(*lead, -1) for part in parts]

    def ends(self, sign: float) -> list[tuple[Tensor, Tensor]]:
        """Per component the slopes at one end of the segment, ``(k, 1, size)``."""
        return [
            ((c + sign * j - e)[:, None], (c + sign * j + e)[:, None])
            for c, j, e in zip(self.middle, self.joint, self.apart, strict=True)
        ]

    def adjoint(self, a: Interval) -> list[Interval]:
        lower, upper = self.blocks(a.lower), self.blocks(a.upper)
        found: Interval | None = None
        for sign in (-1.0, 1.0):
            low, high, size = None, None, None
            for (s, t), x, y in zip(self.ends(sign), lower, upper, strict=True):
                products = [s * x, s * y, t * x, t * y]
                least = torch.minimum(torch.minimum(*products[:2]), torch.minimum(*products[2:]))
                most = torch.maximum(torch.maximum(*products[:2]), torch.maximum(*products[2:]))
                low, high = (least, most) if low is None or high is None else (low + least, high + most)
                own = torch.maximum(least.abs(), most.abs())
                size = own if size is None else size + own
            assert low is not None
            assert high is not None
            assert size is not None
            room = size * (4.0 * (len(lower) - 1) * WIDER)
            low, high = low - room, high + room
            if found is None:
                found = Interval(low, high)
            else:  # NaN stays: it comes from an infinite end
                found = Interval(torch.minimum(found.lower, low), torch.maximum(found.upper, high))
        assert found is not None
        return [around(found.lower, found.upper)]

    def spread(self, a: Tensor) -> list[Spread]:
        center = signed = radius = torch.zeros((), dtype=torch.float64, device=a.device)
        for block, c, j, e in zip(self.blocks(a), self.middle, self.joint, self.apart, strict=True):
            size = block.abs()
            center, signed = center + c[:, None] * block, signed + j[:, None] * block
            radius = radius + size * (e[:, None] + 8.0 * WIDER * (c.abs() + j.abs())[:, None]) + FLOOR
        return [Spread(center, radius * (1.0 + 16.0 * WIDER), signed)]

    def relaxed(self, a: Interval, charge: Tensor | None = None) -> Relaxed:
        """``F E <joint, a>`` is at most ``|F| |<joint, a>|``, which is below a line; likewise for what is apart."""
        lower, upper = self.blocks(a.lower), self.blocks(a.upper)
        along = Interval(torch.zeros_like(lower[0]), torch.zeros_like(lower[0]))
        for j, x, y in zip(self.joint, lower, upper, strict=True):
            ends = (j[:, None] * x, j[:, None] * y)
            along = along.plus(Interval(torch.minimum(*ends), torch.maximum(*ends)))
        if len(lower) == 1:  # the sign of a product is certain, which rounding outward hides
            along = Interval(
                torch.where(lower[0] >= 0, along.lower.clamp_min(0.0), along.lower),
                torch.where(upper[0] <= 0, along.upper.clamp_max(0.0), along.upper),
            )
        slope, offset = chord(along)
        steep: list[Tensor] = []
        for k, (j, c, e, x, y) in enumerate(zip(self.joint, self.middle, self.apart, lower, upper, strict=True)):
            own_slope, own_offset = chord(Interval(x, y))
            steep.append(slope * j[:, None] + e[:, None] * own_slope)
            size = torch.maximum(x.abs(), y.abs())
            rounding = 16.0 * WIDER * (c.abs()[:, None] + j.abs()[:, None] + e[:, None]) * size
            offset = offset + torch.where(e[:, None] > 0, e[:, None] * own_offset, 0.0) + rounding + FLOOR
            if charge is not None:
                more = (c.abs()[:, None] + steep[k].abs()) * self.blocks(charge)[k]
                offset = offset + more * (1.0 + 4.0 * WIDER) + FLOOR
        n = offset.shape[2]
        middle = [c[:, None, None] for c in self.middle]
        floor = (8.0 * n * FLOOR) * (1.0 + a.magnitude.sum(2, keepdim=True))  # coefficients that underflow
        (c, *more), (j, *_), (e, *_) = self.middle, self.joint, self.apart
        still = None if more else (c == 0) & (j == 0) & (e == 0)
        return _Relaxed(self, middle, [g[:, :, None] for g in steep], offset * (1.0 + gamma(n + 16)), floor, still)


class _Relaxed(Relaxed):
    """A form F becomes ``F middle + |F| steep`` and ``|F| offset``, component by component."""

    def __init__(
        self,
        map_: Diagonal,
        middle: list[Tensor],
        steep: list[Tensor],
        offset: Tensor,
        floor: Tensor,
        still: Tensor | None,
    ) -> None:
        self.map, self.middle, self.steep, self.offset, self.floor = map_, middle, steep, offset, floor
        self.still = still

    def part(self, regions: slice) -> Relaxed:
        middle, steep = ([part_of(x, regions) for x in own] for own in (self.middle, self.steep))
        still = None if self.still is None else part_of(self.still, regions)
        return _Relaxed(self.map, middle, steep, part_of(self.offset, regions), part_of(self.floor, regions), still)

    def between(self, before: Tensor | None, own: Tensor | None) -> Relaxed | None:
        if before is None and own is None:
            return self
        if before is not own or before is None or self.still is None:
            return None
        middle, steep = ([x.index_select(3, before) for x in parts] for parts in (self.middle, self.steep))
        still = self.still.index_select(1, before)
        return _Relaxed(self.map, middle, steep, self.offset.index_select(2, before), self.floor, still)

    def image(self, forms: list[Tensor | None]) -> tuple[Tensor, Tensor | None]:
        (form,) = forms
        assert form is not None
        size = form.abs()
        parts = [torch.addcmul(form * c, size, g) for c, g in zip(self.middle, self.steep, strict=True)]
        return parts[0] if len(parts) == 1 else self.map.joined(parts), times(size, self.offset) + self.floor


def diagonal(node: Elementwise, shape: Shape, lower: Tensor, upper: Tensor, *, open_ends: bool = False) -> Diagonal:
    """The derivative of an activation whose source ``(k, *shape)`` lies between ``lower`` and ``upper``.

    Kinks at an end count with both sides; with ``open_ends`` those of piecewise linear activations do not.
    """
    act = node.activation
    lower, upper = lower.flatten(1), upper.flatten(1)
    if open_ends and pieces_of(act) is not None:  # no double lies between, and a kink that is none counts on both sides
        inside = torch.nextafter(lower, upper), torch.nextafter(upper, lower)
        wide = inside[0] <= inside[1]
        lower, upper = torch.where(wide, inside[0], lower), torch.where(wide, inside[1], upper)
    slopes = [component_slopes(c, act.slopes[k], lower, upper) for k, c in enumerate(act.components)]
    if act.width == 1:
        return from_slopes(node, shape, slopes)
    segment = _segment(act, lower, upper)
    apart = [halves_up(a, b) for a, b in slopes]
    if segment is None:
        zero = torch.zeros_like(lower)
        return Diagonal(node, shape, [c for c, _ in apart], [zero] * act.width, [e for _, e in apart])
    one, middle, joint, off = segment
    return Diagonal(
        node,
        shape,
        [torch.where(one, m, c) for m, (c, _) in zip(middle, apart, strict=True)],
        [torch.where(one, j, 0.0) for j in joint],
        [torch.where(one, o, e) for o, (_, e) in zip(off, apart, strict=True)],
    )


def from_slopes(node: Elementwise, shape: Shape, slopes: list[tuple[Tensor, Tensor]]) -> Diagonal:
    """The derivative of an activation with slopes between the given ones, per component ``(k, *shape)``."""
    pairs = [halves_up(a.flatten(1), b.flatten(1)) for a, b in slopes]
    zero = torch.zeros_like(pairs[0][0])
    if len(pairs) == 1:
        (middle, radius) = pairs[0]
        return Diagonal(node, shape, [middle], [radius], [zero])
    return Diagonal(node, shape, [c for c, _ in pairs], [zero] * len(pairs), [e for _, e in pairs])


def halves_up(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Middle and radius of slopes between ``a`` and ``b``, rounded up; a radius of zero where both are one."""
    middle = 0.5 * a + 0.5 * b
    radius = torch.maximum(b - middle, middle - a)
    exact = (middle - radius == a) & (middle + radius == b)
    return middle, torch.where(exact, radius, radius * (1.0 + WIDER) + WIDER * middle.abs() + FLOOR)


def _segment(
    act: Activation, lower: Tensor, upper: Tensor
) -> tuple[Tensor, list[Tensor], list[Tensor], list[Tensor]] | None:
    """Where at most two pieces are met, and there per component middle, joint part and rounding; None if nowhere."""
    pieces = pieces_of(act)
    if pieces is None:
        return None
    first = torch.zeros_like(lower)
    last = torch.zeros_like(lower)
    for kink in pieces.kinks:
        first = first + (lower > above(kink)).to(lower.dtype)
        last = last + (upper >= below(kink)).to(lower.dtype)
    # An end may be NaN no more than infinite: then nothing is known, and all pieces count.
    index = first.long(), last.long()
    middle: list[Tensor] = []
    joint: list[Tensor] = []
    off: list[Tensor] = []
    for row in pieces.slopes:
        table = _table(row, lower)
        s, t = table[index[0]], table[index[1]]
        c, j = 0.5 * s + 0.5 * t, 0.5 * t - 0.5 * s
        exact = (c - j == s) & (c + j == t) & _exactly(row)
        middle.append(c)
        joint.append(j)
        off.append(torch.where(exact, 0.0, 4.0 * WIDER * (s.abs() + t.abs()) + FLOOR))
    return last - first <= 1, middle, joint, off


def _table(row: list[Fraction], like: Tensor) -> Tensor:
    """The slopes of a component's pieces as doubles, made on the device: a transfer from the host would wait."""
    return torch.stack([like.new_full((), float(slope)) for slope in row])


def _exactly(row: list[Fraction]) -> bool:
    return all(math.isfinite(float(slope)) and Fraction(float(slope)) == slope for slope in row)


__all__ = ["Diagonal", "diagonal", "from_slopes", "halves_up"]
