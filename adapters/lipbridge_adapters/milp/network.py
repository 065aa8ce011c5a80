"""A piecewise linear network on one ball, as a program needs it: matrices, kinks, slopes, and what bounds them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from itertools import pairwise

import numpy as np
import torch

from lipbridge.activations.activation import Activation, pieces_of
from lipbridge.errors import NumericalFailure, UnsupportedProblem
from lipbridge.graph.graph import Graph, with_axes
from lipbridge.lowering.chain import LARGEST_CHAIN_MATRIX, Chain, as_chain
from lipbridge.lowering.dense import lower_to_dense
from lipbridge.problem.question import Ball
from lipbridge.propagation.bounds import forward_bounds, layer_norms
from lipbridge.propagation.jacobian.cotangents import Cotangents
from lipbridge.propagation.jacobian.derivative import Derivative, Interval
from lipbridge.propagation.jacobian.derivatives import derivatives
from lipbridge.propagation.jacobian.local import identity
from lipbridge.propagation.rules import Context, NodeBounds
from lipbridge.vocabulary import Norm
from lipbridge_adapters.milp.program import Vector

#: States of a hinge whose slope is known on the region; otherwise a hinge has a column.
OFF, ON, FREE = -2, -1, 0


@dataclass(frozen=True, eq=False)
class Hinges:
    """An activation as ``g_k(t) = value[k] + first[k] t + sum_j steps[k, j] max(t - kinks[j], 0)``.

    All are float64 and rounded to nearest; the kinks are sorted.
    """

    kinks: Vector
    first: Vector
    steps: Vector
    value: Vector

    @property
    def components(self) -> int:
        """K of R -> R^K."""
        return len(self.first)


@dataclass(frozen=True, eq=False)
class Network:
    """``W_L g(... g(W_1 x + b_1) ...) + b_L``; component k of a layer's activation is the k-th block of its output."""

    graph: Graph
    chain: Chain
    weights: Sequence[Vector]
    biases: Sequence[Vector]
    hinges: Sequence[Hinges]

    @property
    def conic(self) -> bool:
        """Whether f(s x) = s f(x) for s >= 0: no bias, and kinks at zero alone."""
        shifts = [*self.biases[:-1], *(h.kinks for h in self.hinges), *(h.value for h in self.hinges)]
        return not any(np.any(shift) for shift in shifts)


def network_of(graph: Graph) -> Network:
    """The network as a dense chain with piecewise linear activations.

    Convolutions and averages become matrices, and linear layers in a row are multiplied, which rounds: the answer is a
    claim in any case.

    Raises:
        UnsupportedProblem: for another network, naming the layer or the activation.
        NumericalFailure: if merged weights overflow.
    """
    graph = with_axes(graph)
    _ = as_chain(graph, rounded=True)  # refuses what is none, before anything large is built
    lowered = lower_to_dense(graph, largest=LARGEST_CHAIN_MATRIX).graph
    chain = as_chain(lowered)
    hinges = [hinges_of(activation) for activation in chain.activations]
    weights = [layer.weight.cpu().numpy() for layer in chain.layers]
    biases = [np.zeros(len(layer.weight)) if layer.bias is None else layer.bias.cpu().numpy() for layer in chain.layers]
    return Network(lowered, chain, weights, biases, hinges)


def hinges_of(activation: Activation) -> Hinges:
    """A piecewise linear activation; for another one UnsupportedProblem is raised."""
    pieces = pieces_of(activation)
    if pieces is None:
        raise UnsupportedProblem(f"its activation `{activation.name}` is not piecewise linear")
    origin = pieces.kinks[0] if pieces.kinks else Fraction(0)
    at_origin = [sum((h.value(origin) for h in component), Fraction(0)) for component in pieces.functions]
    slopes = pieces.slopes
    return Hinges(
        kinks=np.array([float(kink) for kink in pieces.kinks]),
        first=np.array([float(own[0]) for own in slopes]),
        steps=np.array([[float(b - a) for a, b in pairwise(own)] for own in slopes]).reshape(len(slopes), -1),
        value=np.array([float(v - own[0] * origin) for v, own in zip(at_origin, slopes, strict=True)]),
    )


@dataclass(frozen=True, eq=False)
class Reach:
    """What is proved of a network on one ball, in float64, rounded outward.

    Attributes:
        network, ball: of what; the ball is one.
        shrink: if not None, the network is a cone and the ball l_inf's unit ball: its surface alone is meant, which
            meets every ray, away from the origin, where all kinks coincide. A point times ``shrink`` is in the region.
        arguments: by activation, the intervals ``(lower, upper)`` of its arguments.
        states: by activation ``(units, kinks)``: ON or OFF where the slope is one in the whole closed ball, else FREE.
            A unit whose interval only touches a kink is FREE.
    """

    network: Network
    ball: Ball
    shrink: float | None
    arguments: Sequence[tuple[Vector, Vector]]
    states: Sequence[Vector]
    values: Sequence[NodeBounds]
    derivatives: Sequence[Derivative | None]

    def cotangents(self) -> tuple[list[tuple[Vector, Vector]], tuple[Vector, Vector]]:
        """Of every output: intervals ``(outputs, size)`` of its derivatives by each activation's output, and by inputs.

        The linear bounds of :class:`Cotangents` are in them.
        """
        found = Cotangents(self.network.graph, self.derivatives, identity(self.network.graph))
        entries = found.propagate()
        last = len(self.network.graph.nodes) - 1
        places = [i + 1 for i in self.network.chain.sources]  # a chain: the activation stands behind its source
        outputs = len(self.network.weights[-1])
        nothing = Interval(entries.lower.new_zeros(1, 1, 1), entries.lower.new_zeros(1, 1, 1))
        kept = [found.found.get(place, nothing) for place in places if place <= last]
        widths = [h.components * len(W) for h, W in zip(self.network.hinges, self.network.weights, strict=False)]
        inner = [_ends(one, (outputs, width)) for one, width in zip(kept, widths, strict=True)]
        return inner, _ends(entries, (outputs, self.network.weights[0].shape[1]))

    def tangents(self) -> list[tuple[Vector, Vector]]:
        """Of every layer: intervals ``(units, inputs)`` of the derivatives of its arguments; last, of the outputs."""
        found: list[tuple[Vector, Vector]] = []
        graph = self.network.graph
        for layer, place in enumerate([*self.network.chain.sources, len(graph.nodes) - 1]):
            part = replace(graph, nodes=graph.nodes[: place + 1])
            entries = Cotangents(part, self.derivatives[: place + 1], identity(part)).propagate()
            found.append(_ends(entries, (len(self.network.weights[layer]), self.network.weights[0].shape[1])))
        return found


def reach(network: Network, ball: Ball | None) -> Reach:
    """What is proved on a ball of one centre; None is everywhere, for cones.

    A cone has in a ball around the origin what it has everywhere, and that is what it has on the unit ball's surface.

    Raises:
        NumericalFailure: for NaN weights, or bounds beyond float64.
    """
    shrink: float | None = None
    if network.conic:
        shape = network.graph.input_shape
        if ball is None:
            shrink = 1.0
        elif (room := ball.radius - _length(ball.centers[0], ball.norm)) > 0.0:
            shrink = 0.5 * room / (1.0 if ball.norm == "inf" else math.prod(shape))
        if shrink is not None:
            ball = Ball(torch.zeros(1, *shape, dtype=torch.float64), 1.0, "inf")
    assert ball is not None  # the verifier refuses other networks without a region
    values = forward_bounds(network.graph, ball, layer_norms(network.graph, ball.norm))
    arguments = [_ends(Interval(values[i].lower, values[i].upper), None) for i in network.chain.sources]
    if not all(np.isfinite(end).all() for pair in arguments for end in pair):
        raise NumericalFailure("The bounds of pre-activations on the region are beyond float64.")
    states: list[Vector] = []
    for hinges, (lower, upper) in zip(network.hinges, arguments, strict=True):
        state = np.full((len(lower), len(hinges.kinks)), FREE)
        state[upper[:, None] < hinges.kinks] = OFF
        state[lower[:, None] > hinges.kinks] = ON
        states.append(state)
    found = derivatives(network.graph, values, Context(ball.norm))
    return Reach(network, ball, shrink, arguments, states, values, found)


def _length(x: torch.Tensor, norm: Norm) -> float:
    return float(x.abs().amax() if norm == "inf" else x.abs().sum())


def _ends(interval: Interval, shape: tuple[int, int] | None) -> tuple[Vector, Vector]:
    """Both ends of the only region as arrays, flat or of a shape."""
    lower, upper = (x[0].cpu() for x in (interval.lower, interval.upper))
    if shape is None:
        return lower.flatten().numpy(), upper.flatten().numpy()
    return lower.expand(shape).numpy(), upper.expand(shape).numpy()


__all__ = ["FREE", "OFF", "ON", "Hinges", "Network", "Reach", "hinges_of", "network_of", "reach"]
