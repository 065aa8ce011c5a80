"""Running error bounds of Jacobian-vector products: directional derivatives with a rigorous bound of their rounding."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from lipbridge.activations.activation import Activation, Component, Term
from lipbridge.activations.scalar_functions import SCALAR_FUNCTIONS
from lipbridge.graph.evaluation import convolve, convolve_transposed, evaluate, grouped, joined, runs
from lipbridge.graph.graph import Graph
from lipbridge.graph.nodes import (
    Add,
    Concat,
    Conv,
    ConvTranspose,
    Dense,
    Elementwise,
    Gather,
    GroupSort,
    MaxPool,
    Node,
    Normalize,
    Reshape,
    Softmax,
)
from lipbridge.graph.rules import Rule
from lipbridge.graph.windows import in_windows, window_places
from lipbridge.rigor.accuracy import ULPS
from lipbridge.rigor.running_error import (
    Enclosure,
    accuracy,
    argument_error,
    conv_error,
    dense_error,
    divided,
    enclosed,
    least_deviation,
    may_be,
    mean_product,
    normalized,
    plus,
    runs_of,
    size_of,
    transposed_error,
    uncertainty,
    unknown_functions,
)
from lipbridge.rounding.scalars import FLOOR, TINY, gamma


@dataclass(frozen=True, eq=False)
class Tangent:
    """Value and Jacobian-vector product of a node, each enclosed.

    ``live`` is 1.0 where the node may vary with x near the point and 0.0 where it is constant there. ``sound`` is
    bool ``(batch,)``: no live pre-activation of this node or of those before it can be at a kink.
    """

    primal: Enclosure
    tangent: Enclosure
    live: Tensor
    sound: Tensor


def enclose_tangent(graph: Graph, x: Tensor, v: Tensor) -> Tangent:
    """Value and Jacobian-vector product at ``x`` along ``v``, both ``(batch, *input_shape)`` float64, enclosed.

    Where ``sound`` is True the network is differentiable at x; elsewhere the product means nothing.

    Raises:
        UnsupportedOperation: as :func:`enclose`.
    """
    zero = torch.zeros_like(x)
    sound = torch.ones(len(x), dtype=torch.bool, device=x.device)
    first = Tangent(Enclosure(x, zero), Enclosure(v, zero), torch.ones_like(x), sound)
    return graph.fold(first, lambda _, node, inputs: enclosed_tangent(node, inputs))


#: A node's values and tangents with error bounds, given those of its inputs.
enclosed_tangent = Rule[[list[Tangent]], Tangent]("running error of the tangent", "Its rounding error is not known.")


@enclosed_tangent.of(Dense)
def _(node: Dense, inputs: list[Tangent]) -> Tangent:
    x = inputs[0]
    live = (x.live @ may_be(node).to(x.live.dtype).T).clamp(max=1.0)
    product = x.tangent.value @ node.weight.T
    error = plus(dense_error(node.weight, None, x.tangent), uncertainty(node, size_of(x.tangent), bias=False))
    return Tangent(enclosed(node, [x.primal]), Enclosure(product * live, error * live), live, x.sound)


@enclosed_tangent.of(Conv)
def _(node: Conv, inputs: list[Tangent]) -> Tangent:
    x = inputs[0]
    live = (convolve(node, x.live, may_be(node).to(x.live.dtype), None) > 0).to(x.live.dtype)
    product = convolve(node, x.tangent.value, node.weight, None)
    error = plus(conv_error(node, None, x.tangent), uncertainty(node, size_of(x.tangent), bias=False))
    return Tangent(enclosed(node, [x.primal]), Enclosure(product * live, error * live), live, x.sound)


@enclosed_tangent.of(ConvTranspose)
def _(node: ConvTranspose, inputs: list[Tangent]) -> Tangent:
    x = inputs[0]
    live = (convolve_transposed(node, x.live, may_be(node).to(x.live.dtype), None) > 0).to(x.live.dtype)
    product = convolve_transposed(node, x.tangent.value, node.weight, None)
    error = plus(transposed_error(node, None, x.tangent), uncertainty(node, size_of(x.tangent), bias=False))
    return Tangent(enclosed(node, [x.primal]), Enclosure(product * live, error * live), live, x.sound)


@enclosed_tangent.of(Gather)
def _(node: Gather, inputs: list[Tangent]) -> Tangent:
    return _placed(node, inputs)


@enclosed_tangent.of(MaxPool)
def _(node: MaxPool, inputs: list[Tangent]) -> Tangent:
    """The largest entry of a window passes its tangent on, if none that may vary comes near it."""
    x = inputs[0]
    windows = window_places(node, x.primal.value.shape[2:], x.live.device)
    value = in_windows(x.primal.value, windows, -torch.inf)
    error = in_windows(x.primal.error, windows, 0.0)
    live = in_windows(x.live, windows, 0.0)
    top = value.argmax(dim=-1, keepdim=True)
    apart = value.gather(-1, top) - value > 2.0 * (error.gather(-1, top) + error)
    constant = (live.gather(-1, top) == 0) & (live == 0)
    itself = torch.arange(windows.shape[1], device=top.device) == top
    sound = x.sound & (apart | constant | itself).flatten(1).all(dim=1)

    def taken(y: Tensor) -> Tensor:
        return in_windows(y, windows, 0.0).gather(-1, top).reshape(len(y), *node.shape)

    tangent = Enclosure(taken(x.tangent.value), taken(x.tangent.error))
    return Tangent(enclosed(node, [x.primal]), tangent, taken(x.live), sound)


@enclosed_tangent.of(GroupSort)
def _(node: GroupSort, inputs: list[Tangent]) -> Tangent:
    """The order of a group is known if no two entries come near each other, unless neither varies."""
    x = inputs[0]
    value, order = grouped(node, x.primal.value).sort(dim=2)

    def taken(y: Tensor) -> Tensor:
        return grouped(node, y).gather(2, order)

    error, live = taken(x.primal.error), taken(x.live)
    sound = x.sound
    for shift in range(1, node.group):
        low, high = slice(None, -shift), slice(shift, None)
        apart = value[:, :, high] - value[:, :, low] > 2.0 * (error[:, :, high] + error[:, :, low])
        constant = (live[:, :, high] == 0) & (live[:, :, low] == 0)
        sound = sound & (apart | constant).flatten(1).all(dim=1)
    shape = x.live.shape
    tangent = Enclosure(taken(x.tangent.value).reshape(shape), taken(x.tangent.error).reshape(shape))
    return Tangent(enclosed(node, [x.primal]), tangent, live.reshape(shape), sound)


@enclosed_tangent.of(Normalize)
def _(node: Normalize, inputs: list[Tangent]) -> Tangent:
    """(d - y mean(y d)) / deviation, for d the tangent less its mean and y the normalised value."""
    x, shape = inputs[0], inputs[0].live.shape
    found = normalized(node, x.primal)
    step = runs_of(node, x.tangent)
    y, along = found.normal, mean_product(found.normal, step)
    away = y.value * along.value
    error = y.error * along.value.abs() + (y.value.abs() + y.error) * along.error + ULPS * away.abs()
    rest = step.value - away
    error = (step.error + error + ULPS * rest.abs()) * (1.0 + ULPS) + FLOOR
    tangent = divided(Enclosure(rest, error), found.deviation, least_deviation(node))
    live = runs(node, x.live).amax(dim=2, keepdim=True).expand_as(tangent.value).reshape(shape)
    primal = Enclosure(y.value.reshape(shape), y.error.reshape(shape))
    enclosure = Enclosure(tangent.value.reshape(shape) * live, tangent.error.reshape(shape) * live)
    return Tangent(primal, enclosure, live, x.sound)


@enclosed_tangent.of(Softmax)
def _(node: Softmax, inputs: list[Tangent]) -> Tangent:
    """d - sum(p d) for log-softmax, and p times that for softmax, with p the probabilities."""
    x, axis = inputs[0], node.axis + 1
    p, d, n = enclosed(replace(node, log=False), [x.primal]), x.tangent, node.shape[node.axis]
    error = p.value * d.error + p.error * (d.value.abs() + d.error) + gamma(n + 4) * (p.value * d.value).abs()
    mean = (p.value * d.value).sum(dim=axis, keepdim=True)
    mean_error = error.sum(dim=axis, keepdim=True) * (1.0 + 4.0 * gamma(n + 16)) + n * FLOOR
    step = d.value - mean
    error = (d.error + mean_error + ULPS * step.abs()) * (1.0 + ULPS) + FLOOR
    if not node.log:
        error = p.value * error + p.error * (step.abs() + error) + ULPS * (p.value * step).abs()
        step, error = p.value * step, error * (1.0 + 4.0 * ULPS) + FLOOR
    live = x.live.amax(dim=axis, keepdim=True).expand_as(x.live)
    return Tangent(enclosed(node, [x.primal]), Enclosure(step * live, error * live), live, x.sound)


@enclosed_tangent.of(Elementwise)
def _(node: Elementwise, inputs: list[Tangent]) -> Tangent:
    x, g = inputs[0], node.activation
    z, t = x.primal, x.tangent
    clear = _side_is_certain(g, z) | (x.live == 0)
    sound = x.sound & clear.flatten(1).all(dim=1)
    products: list[Tensor] = []
    errors: list[Tensor] = []
    live: list[Tensor] = []
    for component, d in zip(g.components, g.derivatives(z.value), strict=True):
        e = _slope_error(node, component, z)
        products.append(d * t.value)
        errors.append((d.abs() + e) * t.error + e * t.value.abs() + ULPS * products[-1].abs())
        # A linear piece of slope zero stops whatever comes through it (a sum of terms may only round to zero).
        stops = g.homogeneous and len(component) == 1
        live.append(x.live * _moves(component[0], z.value, d) if stops else x.live)
    alive = joined(node, live)
    error = joined(node, errors) * (1.0 + ULPS) + FLOOR
    enclosure = Enclosure(joined(node, products) * alive, error * alive)
    return Tangent(enclosed(node, [z]), enclosure, alive, sound)


def _moves(term: Term, z: Tensor, derivative: Tensor) -> Tensor:
    """1.0 where the slope is not zero, also if it underflows to zero with its factors."""
    factors = (term.coefficient, term.scale)
    if 0.0 not in factors and math.prod(factors) not in (1.0, -1.0):
        derivative = Term(term.function, 1.0, 1.0, 0.0, term.parameters).derivative(term.scale * z + term.offset, 0.0)
    return (derivative != 0).to(z.dtype)


def _side_is_certain(activation: Activation, z: Enclosure) -> Tensor:
    """Where no term's argument can be on the other side of its kink, the rounding of the argument included."""
    # Twice the error, which also covers the rounding of the distance itself.
    certain = activation.distance_to_kink(z.value) > 2.0 * z.error
    for term in (t for component in activation.components for t in component):
        if not SCALAR_FUNCTIONS[term.function].smooth and term.scale != 0.0:
            scaled = term.scale * z.value
            room = 2.0 * (abs(term.scale) * z.error + argument_error(term, z.value))
            certain = certain & ((scaled + term.offset).abs() > room)
    return certain


def _slope_error(node: Node, component: Component, z: Enclosure) -> Tensor:
    """Error of a component's derivative, away from kinks: curvature times the error of z, and its evaluation."""
    (first, *others) = component
    plain = first.function in ("identity", "relu", "abs") and abs(first.coefficient * first.scale) == 1.0
    if plain and abs(first.coefficient) == 1.0 and not others:
        return torch.zeros_like(z.value)
    size, error = 0.0, torch.zeros_like(z.value)
    for term in component:
        low, high = SCALAR_FUNCTIONS[term.function].slopes(term.parameters)
        steepest = max(abs(low), abs(high))
        factor = abs(term.coefficient * term.scale) + TINY  # it may have underflowed
        size += factor * steepest
        error = error + 8.0 * TINY * (1.0 + factor + steepest)
        curvature = accuracy(node, term).curvature(term.parameters)
        if curvature:  # the argument moves by the error of z and is rounded itself
            error = error + factor * curvature * (abs(term.scale) * z.error + argument_error(term, z.value))
    return (error + ULPS * (len(component) + 1) * size) * (1.0 + ULPS)


@enclosed_tangent.of(Reshape)
def _(node: Reshape, inputs: list[Tangent]) -> Tangent:
    return _placed(node, inputs)


@enclosed_tangent.of(Concat)
def _(node: Concat, inputs: list[Tangent]) -> Tangent:
    return _placed(node, inputs)


def _placed(node: Node, inputs: list[Tangent]) -> Tangent:
    """For nodes that only move coordinates."""
    primal, tangent = enclosed(node, [x.primal for x in inputs]), enclosed(node, [x.tangent for x in inputs])
    return Tangent(primal, tangent, evaluate(node, [x.live for x in inputs]), _all_sound(inputs))


@enclosed_tangent.of(Add)
def _(node: Add, inputs: list[Tangent]) -> Tangent:
    live = evaluate(node, [x.live for x in inputs]).clamp(max=1.0)
    primal, tangent = enclosed(node, [x.primal for x in inputs]), enclosed(node, [x.tangent for x in inputs])
    return Tangent(primal, tangent, live, _all_sound(inputs))


def _all_sound(inputs: list[Tangent]) -> Tensor:
    return torch.stack([x.sound for x in inputs]).all(dim=0)


def understood(graph: Graph) -> str | None:
    """None if every layer's rounding is known here, otherwise the reason why not, in one line."""
    for node in graph.nodes[1:]:
        if not enclosed_tangent.knows(type(node)):
            return f"layer `{node.name}` ({type(node).__name__}) has no known rounding error"
        if isinstance(node, Elementwise):
            unknown = unknown_functions(node.activation)
            if unknown:
                return f"layer `{node.name}` uses {unknown[0]}, whose rounding error is not known"
    return None
