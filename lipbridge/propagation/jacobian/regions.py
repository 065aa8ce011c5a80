"""Parts of balls: the bound of the Jacobian on each, and where it pays to split it further.

A part is a ball with *cuts*: nodes' values, unit by unit, that are at least or at most a number. For almost every input
of a part the network is differentiable with the slopes that its units have inside their intervals: a kink at an end of
an interval does not count, since where a unit stays on its kink its gradient is zero almost everywhere (as that of any
Lipschitz function is on a level set), and any slope will do. The parts cover the ball, which is convex, so the largest
of their bounds is one of its Lipschitz constant.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lipbridge.activations.activation import pieces_of
from lipbridge.activations.piecewise_linear import above, below
from lipbridge.graph.graph import Graph
from lipbridge.graph.nodes import Elementwise, Node
from lipbridge.linalg import vector_norm
from lipbridge.norms.matrix import operator_norm
from lipbridge.problem.question import Ball
from lipbridge.propagation.bounds import forward_bounds
from lipbridge.propagation.jacobian.derivative import Derivative
from lipbridge.propagation.jacobian.derivatives import derivatives
from lipbridge.propagation.jacobian.diagonal import Diagonal
from lipbridge.propagation.jacobian.norms import Factors, Norms
from lipbridge.propagation.rules import Context, NodeBounds
from lipbridge.vocabulary import Norm

#: So few open units are split one by one: where kinks cross, no box of inputs holds less than all of their sides.
FEW = 6


@dataclass(frozen=True)
class Cut:
    """The value of one unit of a node (its place in the flattened node) lies between two ends."""

    node: int
    unit: int
    lower: float
    upper: float


@dataclass(frozen=True)
class Part:
    """A ball, by its place among those of the question, less what the cuts leave out."""

    ball: int
    cuts: tuple[Cut, ...] = ()

    def halves(self, split: Split) -> tuple[Part, Part]:
        """The parts on both sides of a split."""
        sides = ((-math.inf, split.at), (split.at, math.inf))
        below_, above_ = (Part(self.ball, (*self.cuts, Cut(split.node, split.unit, *ends))) for ends in sides)
        return below_, above_


@dataclass(frozen=True)
class Split:
    """Where to cut a part in two: a unit of a node, at a value."""

    node: int
    unit: int
    at: float


@dataclass(frozen=True)
class Bounded:
    """A part with its bound; ``split`` is None where no split would sharpen it. The bound of no inputs is zero.

    ``seen`` is about the norm of the Jacobian at one point of the part; zero if the point that was tried is outside.
    """

    part: Part
    value: float
    split: Split | None
    seen: float = 0.0


class Parts:
    """Bounds parts of the balls of one question.

    Args:
        graph: the network.
        ball: the balls.
        p, q: the norms.
        rows: linear combinations of outputs, ``(1, m, outputs)``.
        layer_norms: of :func:`lipbridge.propagation.bounds.layer_norms` in the balls' norm.
        factors: of :func:`lipbridge.propagation.jacobian.norms.factors_of` for p.
        steps: that lines descend on the bounds of units at a kink, where linear bounds are propagated.
    """

    def __init__(
        self,
        graph: Graph,
        ball: Ball,
        p: Norm,
        q: Norm,
        rows: Tensor,
        layer_norms: dict[Node, float],
        factors: Factors,
        *,
        steps: int = 0,
    ) -> None:
        self.graph, self.ball, self.rows, self.steps = graph, ball, rows, steps
        self.p: Norm = p
        self.q: Norm = q
        self.layer_norms, self.factors = layer_norms, factors

    def bounded(self, parts: Sequence[Part], *, linear: bool, inputs: bool, split: bool = True) -> list[Bounded]:
        """The bound of each part, and where to split it: at an input or at a unit of an activation.

        Args:
            parts: one at least.
            linear: whether to propagate linear bounds of the cotangents.
            inputs: whether to split the input while more than ``FEW`` units are open; else units while there are any.
            split: whether parts will be split at all; without, no place is looked for.
        """
        centers = self.ball.centers[[part.ball for part in parts]]
        ball = Ball(centers, self.ball.radius, self.ball.norm)
        narrowing = self._narrowing(parts)
        bounds = forward_bounds(
            self.graph,
            ball,
            self.layer_norms,
            steps=0 if narrowing or not linear else self.steps,
            narrowing=narrowing,
            open_only=True,
        )
        known = derivatives(self.graph, bounds, Context(ball.norm), open_ends=set(narrowing))
        norms = Norms(self.graph, known, self.p, self.rows, self.factors, linear=linear)
        values = norms.matrix(self.q).expand(len(parts))
        empty = torch.stack([(x.lower > x.upper).flatten(1).any(1).expand(len(parts)) for x in bounds]).any(0)
        values = torch.where(empty, 0.0, values)
        if not split:
            return [Bounded(part, float(value), None) for part, value in zip(parts, values, strict=True)]
        open_ = _open_units(known, len(parts)).to(empty.device)
        splits = self._wide(bounds, len(parts))
        units = self._influential(bounds, known, norms, len(parts))
        few = open_ <= FEW if inputs else open_ >= 0
        # Where no unit is left to split, inputs still tell which signs do not meet.
        splits = [
            (unit or wide) if bool(few[i]) else wide for i, (unit, wide) in enumerate(zip(units, splits, strict=True))
        ]
        seen = self._seen(bounds, ball, parts)
        certain = open_ == 0
        # Where no slope is open the bound is exact, if there is such an input: cuts of units may leave none.
        whole = torch.tensor([all(cut.node == 0 for cut in part.cuts) for part in parts], device=empty.device)
        done = empty | (certain & (whole | (seen > 0)))
        return [
            Bounded(part, float(values[i]), None if bool(done[i]) else splits[i], float(seen[i]))
            for i, part in enumerate(parts)
        ]

    def _seen(self, bounds: Sequence[NodeBounds], ball: Ball, parts: Sequence[Part]) -> Tensor:
        """``(k,)``: norms of the Jacobian in the middle of the inputs' intervals, in floating point alone."""
        x = (0.5 * bounds[0].lower + 0.5 * bounds[0].upper).expand(len(parts), *self.graph.input_shape)
        x = x.detach().clone().requires_grad_()
        with torch.enable_grad():
            values = self.graph.values(x)
            outputs = values[-1].flatten(1) @ self.rows[0].T
            rows = [
                torch.autograd.grad(outputs[:, i].sum(), x, retain_graph=True, allow_unused=True)[0]
                for i in range(outputs.shape[1])
                if outputs.requires_grad
            ]
        if not rows:
            return x.new_zeros(len(parts))
        J = torch.stack([row.flatten(1) for row in rows], 1)
        moved = (x.detach() - ball.centers.to(x.device)).flatten(1)
        inside = vector_norm(moved, ball.norm, 1) <= ball.radius
        for i, part in enumerate(parts):
            for cut in part.cuts:
                value = float(values[cut.node][i].detach().flatten()[cut.unit])
                inside[i] &= cut.lower <= value <= cut.upper
        return torch.where(inside, operator_norm(J, self.p, self.q), 0.0).nan_to_num(0.0, 0.0)

    def _narrowing(self, parts: Sequence[Part]) -> dict[int, tuple[Tensor, Tensor]]:
        found: dict[int, tuple[Tensor, Tensor]] = {}
        for place, part in enumerate(parts):
            for cut in part.cuts:
                if cut.node not in found:
                    shape = self.graph.nodes[cut.node].shape
                    none = torch.full((len(parts), math.prod(shape)), math.inf, dtype=torch.float64)
                    found[cut.node] = -none, none
                lower, upper = found[cut.node]
                lower[place, cut.unit] = max(float(lower[place, cut.unit]), cut.lower)
                upper[place, cut.unit] = min(float(upper[place, cut.unit]), cut.upper)
        device = self.graph.device
        return {
            node: (
                lower.reshape(-1, *self.graph.nodes[node].shape).to(device),
                upper.reshape(-1, *self.graph.nodes[node].shape).to(device),
            )
            for node, (lower, upper) in found.items()
        }

    def _wide(self, bounds: Sequence[NodeBounds], count: int) -> list[Split | None]:
        """The middle of the widest input."""
        lower, upper = (x.flatten(1).expand(count, -1) for x in (bounds[0].lower, bounds[0].upper))
        found: list[Split | None] = []
        for low, high in zip(lower, upper, strict=True):
            unit = int((high - low).argmax())
            middle = 0.5 * float(low[unit]) + 0.5 * float(high[unit])
            found.append(Split(0, unit, middle) if float(low[unit]) < middle < float(high[unit]) else None)
        return found

    def _influential(
        self, bounds: Sequence[NodeBounds], known: Sequence[Derivative | None], norms: Norms, count: int
    ) -> list[Split | None]:
        """The unit whose slope adds the most: its radius, times its cotangent, times how far its source moves."""
        best = [0.0] * count
        found: list[Split | None] = [None] * count
        for index, node in enumerate(self.graph.nodes):
            own = known[index]
            if not isinstance(node, Elementwise) or not isinstance(own, Diagonal):
                continue
            if index not in norms.cotangents.found:
                continue
            x = bounds[node.inputs[0]]
            lower, upper = (e.flatten(1).expand(count, -1) for e in (x.lower, x.upper))
            size = norms.cotangents.found[index].magnitude.amax(1)
            reach = torch.zeros_like(own.middle[0])
            for j, e, a in zip(own.joint, own.apart, own.blocks(size), strict=True):
                reach = reach + (j.abs() + e) * a
            scores = (reach * (upper - lower)).nan_to_num(0.0, math.inf).expand(count, -1)
            for i in range(count):
                unit = int(scores[i].argmax())
                score = float(scores[i, unit])
                at = place(node, float(lower[i, unit]), float(upper[i, unit])) if score > best[i] else None
                if at is not None:
                    best[i], found[i] = score, Split(node.inputs[0], unit, at)
        return found


def _open_units(known: Sequence[Derivative | None], count: int) -> Tensor:
    """``(k,)``: how many units' derivatives depend on the point."""
    found = torch.zeros(count, dtype=torch.long)
    for own in known:
        uncertain = None if own is None else own.uncertain
        if uncertain is not None:
            found = found.to(uncertain.device) + uncertain.sum(1).expand(count)
    return found


def place(node: Elementwise, lower: float, upper: float) -> float | None:
    """Where to cut the interval of an activation's argument: at the kink nearest to its middle, or in its middle."""
    if not (math.isfinite(lower) and math.isfinite(upper)):
        return 0.0 if lower < 0.0 < upper else None
    middle = 0.5 * lower + 0.5 * upper
    known = pieces_of(node.activation)
    kinks = [] if known is None else [float(kink) for kink in known.kinks if below(kink) == above(kink)]
    inside = [kink for kink in kinks if lower < kink < upper]
    if inside:
        return min(inside, key=lambda kink: abs(kink - middle))
    return middle if lower < middle < upper else None


__all__ = ["Bounded", "Cut", "Part", "Parts", "Split", "place"]
