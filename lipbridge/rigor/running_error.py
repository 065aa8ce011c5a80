"""Running error bounds: float64 values and Jacobian-vector products with a rigorous bound of their rounding error.

Every quantity is carried as (value, error) with |exact - value| <= error entrywise, where "exact" is the real-number
function of the stored weights. A dot product of length n obeys |fl(w'x) - w'x| <= gamma_n |w|'|x| in any order of
summation (Higham 2002, section 3.1); scalar functions of the libraries are trusted to a few units in the last place.
The error terms are sums of non-negative numbers, computed in float64 and enlarged by more than their own rounding.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import singledispatch

import torch
from torch import Tensor

from lipbridge.activations.activation import Activation, Component, Term
from lipbridge.activations.scalar_functions import SCALAR_FUNCTIONS
from lipbridge.errors import UnsupportedOperation
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
from lipbridge.rigor.accuracy import ACCURACY, ULPS, Accuracy
from lipbridge.rounding.scalars import TINY, gamma

#: More than the error of one underflowing operation, also where a device flushes subnormal numbers to zero.
FLOOR = 2.0**-1020


@dataclass(frozen=True, eq=False)
class Enclosure:
    """A tensor and a bound of its error, entry by entry; both ``(batch, *shape)`` float64."""

    value: Tensor
    error: Tensor


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


def enclose(graph: Graph, x: Tensor) -> Enclosure:
    """The network's value at ``x`` ``(batch, *input_shape)`` float64, with a rigorous error bound.

    Raises:
        UnsupportedOperation: for a layer or scalar function whose rounding is not known here.

    Law: the exact value, in real arithmetic, is within ``error`` of ``value``.
    """
    found = [Enclosure(x, torch.zeros_like(x))]
    for node in graph.nodes[1:]:
        found.append(enclosed(node, [found[i] for i in node.inputs]))
    return found[-1]


def enclose_tangent(graph: Graph, x: Tensor, v: Tensor) -> Tangent:
    """Value and Jacobian-vector product at ``x`` along ``v``, both ``(batch, *input_shape)`` float64, enclosed.

    Where ``sound`` is True the network is differentiable at x; elsewhere the product means nothing.

    Raises:
        UnsupportedOperation: as :func:`enclose`.
    """
    zero = torch.zeros_like(x)
    sound = torch.ones(len(x), dtype=torch.bool, device=x.device)
    found = [Tangent(Enclosure(x, zero), Enclosure(v, zero), torch.ones_like(x), sound)]
    for node in graph.nodes[1:]:
        found.append(enclosed_tangent(node, [found[i] for i in node.inputs]))
    return found[-1]


# --- values ----------------------------------------------------------------------------------------------------------


@singledispatch
def enclosed(node: Node, inputs: list[Enclosure]) -> Enclosure:
    """The enclosure of a node given those of its inputs."""
    raise UnsupportedOperation(node.name, type(node).__name__, "Its rounding error is not known.")


@enclosed.register
def _(node: Dense, inputs: list[Enclosure]) -> Enclosure:
    x = inputs[0]
    error = _dense_error(node.weight, node.bias, x)
    return Enclosure(evaluate(node, [x.value]), _plus(error, uncertainty(node, _size(x))))


@enclosed.register
def _(node: Conv, inputs: list[Enclosure]) -> Enclosure:
    error = _conv_error(node, node.bias, inputs[0])
    return Enclosure(evaluate(node, [inputs[0].value]), _plus(error, uncertainty(node, _size(inputs[0]))))


@enclosed.register
def _(node: ConvTranspose, inputs: list[Enclosure]) -> Enclosure:
    error = _transposed_error(node, node.bias, inputs[0])
    return Enclosure(evaluate(node, [inputs[0].value]), _plus(error, uncertainty(node, _size(inputs[0]))))


@enclosed.register
def _(node: Gather, inputs: list[Enclosure]) -> Enclosure:
    return Enclosure(evaluate(node, [inputs[0].value]), evaluate(node, [inputs[0].error]))


@enclosed.register
def _(node: MaxPool, inputs: list[Enclosure]) -> Enclosure:
    # A maximum moves by at most the largest move of its arguments.
    return Enclosure(evaluate(node, [inputs[0].value]), evaluate(node, [inputs[0].error]))


@enclosed.register
def _(node: GroupSort, inputs: list[Enclosure]) -> Enclosure:
    # So does every order statistic.
    x = inputs[0]
    worst = grouped(node, x.error).amax(dim=2, keepdim=True)
    return Enclosure(evaluate(node, [x.value]), worst.expand_as(grouped(node, x.error)).reshape(x.error.shape))


@enclosed.register
def _(node: Normalize, inputs: list[Enclosure]) -> Enclosure:
    y = _normalized(node, inputs[0]).normal
    return Enclosure(y.value.reshape(inputs[0].value.shape), y.error.reshape(inputs[0].value.shape))


@enclosed.register
def _(node: Softmax, inputs: list[Enclosure]) -> Enclosure:
    x, axis = inputs[0], node.axis + 1
    value = evaluate(node, [x.value])
    rounding, total = _softmax_rounding(x.value, axis)
    worst = x.error.amax(dim=axis, keepdim=True)
    if node.log:  # its i-th entry moves by at most x_i and the largest of all
        z = x.value - x.value.amax(dim=axis, keepdim=True)
        rounding = ULPS * (z.abs() + (z - value).abs() + value.abs()) + 2.0 * total
        return Enclosure(value, (rounding + x.error + worst) * (1.0 + ULPS) + FLOOR)
    error = value * rounding + FLOOR
    # Its entries move by at most half of the largest move, and by a factor of at most exp(twice that).
    moved = torch.minimum(0.5 * worst, (value + error) * torch.expm1(2.0 * worst))
    return Enclosure(value, (error + moved) * (1.0 + 4.0 * ULPS) + FLOOR)


def _softmax_rounding(x: Tensor, axis: int) -> tuple[Tensor, Tensor]:
    """Relative errors of the entries of softmax as evaluated, and of the sum of exp(x - max x), which is at least 1.

    exp(x - max x) is off by a factor of 1 + u |x - max x|; what is below exp(-1000) is nothing to any precision.
    """
    away = (x.amax(dim=axis, keepdim=True) - x).clamp(max=1000.0)
    n = x.shape[axis]
    own = ULPS * (1.0 + away)
    total = (torch.softmax(x, axis) * own).sum(dim=axis, keepdim=True) * (1.0 + 2.0**-20) + gamma(n + 8) + n * FLOOR
    return own + total + ULPS, total


@enclosed.register
def _(node: Elementwise, inputs: list[Enclosure]) -> Enclosure:
    z, g = inputs[0], node.activation
    errors = [
        _component_error(node, component, z.value) + max(abs(low), abs(high)) * z.error
        for component, (low, high) in zip(g.components, g.slopes, strict=True)
    ]
    return Enclosure(evaluate(node, [z.value]), joined(node, errors) * (1.0 + ULPS) + FLOOR)


@enclosed.register
def _(node: Reshape, inputs: list[Enclosure]) -> Enclosure:
    x = inputs[0]
    return Enclosure(evaluate(node, [x.value]), evaluate(node, [x.error]))


@enclosed.register
def _(node: Concat, inputs: list[Enclosure]) -> Enclosure:
    return Enclosure(evaluate(node, [x.value for x in inputs]), evaluate(node, [x.error for x in inputs]))


@enclosed.register
def _(node: Add, inputs: list[Enclosure]) -> Enclosure:
    value = evaluate(node, [x.value for x in inputs])
    return Enclosure(value, _add_error([x.value for x in inputs], [x.error for x in inputs]))


def _before(W: Tensor) -> Tensor:
    """What products of the unit roundoff and inputs lose to underflow before they are multiplied by W."""
    return TINY * W.abs().sum()


def uncertainty(node: Dense | Conv | ConvTranspose, size: Tensor, *, bias: bool = True) -> Tensor | None:
    """How far a layer's values may be off because its weights are, for inputs of magnitude ``size``; None if exact.

    ``size`` is ``(batch, *shape)``, nowhere negative. Without ``bias`` it is that of products with tangents.
    """
    own = node.bias_error if bias else None
    if node.error is None and own is None:
        return None
    weight = torch.zeros_like(node.weight) if node.error is None else node.error
    terms = node.weight.numel() + 2
    found = evaluate(replace(node, weight=weight, bias=own), [size])
    return found * (1.0 + 4.0 * gamma(terms + 16)) + terms * FLOOR


def _may_be(node: Dense | Conv | ConvTranspose) -> Tensor:
    """Which weights may be other than zero."""
    return node.weight != 0 if node.error is None else (node.weight != 0) | (node.error != 0)


def _plus(error: Tensor, more: Tensor | None) -> Tensor:
    return error if more is None else (error + more) * (1.0 + 4.0 * ULPS)


def _size(x: Enclosure) -> Tensor:
    return (x.value.abs() + x.error) * (1.0 + ULPS)


def _dense_error(W: Tensor, b: Tensor | None, x: Enclosure) -> Tensor:
    """Error of fl(W x + b): |W| e + gamma_(n+1) (|W| |x| + |b|)."""
    n = W.shape[1]
    rounding = gamma(n + 2)
    error = (x.error + rounding * x.value.abs()) @ W.abs().T + _before(W)
    if b is not None:
        error = error + rounding * b.abs()
    return error * (1.0 + 4.0 * gamma(n + 16)) + (n + 2) * FLOOR


def _conv_error(node: Conv, b: Tensor | None, x: Enclosure) -> Tensor:
    """Error of a convolution, as :func:`_dense_error`: each output is a dot product with a part of the kernel."""
    n = node.weight[0].numel()
    rounding = gamma(n + 2)
    shift = None if b is None else rounding * b.abs()
    error = convolve(node, x.error + rounding * x.value.abs(), node.weight.abs(), shift)
    error = error + _before(node.weight)
    return error * (1.0 + 4.0 * gamma(n + 16)) + (n + 2) * FLOOR


def _transposed_error(node: ConvTranspose, b: Tensor | None, x: Enclosure) -> Tensor:
    """Likewise of a transposed convolution: an output adds at most a product for each input channel and tap."""
    n = node.weight[:, 0].numel() // node.groups
    rounding = gamma(n + 2)
    shift = None if b is None else rounding * b.abs()
    error = convolve_transposed(node, x.error + rounding * x.value.abs(), node.weight.abs(), shift)
    error = error + _before(node.weight)
    return error * (1.0 + 4.0 * gamma(n + 16)) + (n + 2) * FLOOR


@dataclass(frozen=True, eq=False)
class _Normalized:
    """Runs ``(batch, groups, n)`` less their mean, divided by ``deviation`` ``(batch, groups, 1)``; all enclosed."""

    normal: Enclosure
    deviation: Enclosure


def _centred(x: Enclosure) -> Enclosure:
    """``x`` less its mean over the last axis."""
    n = x.value.shape[-1]
    value = x.value - x.value.mean(dim=-1, keepdim=True)
    mean_error = x.error.mean(dim=-1, keepdim=True) + gamma(n + 2) * x.value.abs().mean(dim=-1, keepdim=True)
    return Enclosure(value, (x.error + mean_error + ULPS * value.abs()) * (1.0 + 4.0 * gamma(n + 16)) + FLOOR)


def _runs(node: Normalize, x: Enclosure) -> Enclosure:
    """The runs, less their means if the node centres."""
    found = Enclosure(runs(node, x.value), runs(node, x.error))
    return _centred(found) if node.centred else found


def _mean_product(a: Enclosure, b: Enclosure) -> Enclosure:
    """Mean of the entrywise product over the last axis."""
    n = a.value.shape[-1]
    value = (a.value * b.value).mean(dim=-1, keepdim=True)
    error = a.value.abs() * b.error + a.error * b.value.abs() + a.error * b.error
    error = error + gamma(n + 4) * (a.value * b.value).abs()
    return Enclosure(value, error.mean(dim=-1, keepdim=True) * (1.0 + 4.0 * gamma(n + 16)) + n * FLOOR)


def _divided(a: Enclosure, b: Enclosure, floor: float) -> Enclosure:
    """``a / b`` for b that is nowhere below ``floor`` > 0: |a/b - a'/b'| <= (|a - a'| + |a/b| |b - b'|) / b'."""
    value = a.value / b.value
    least = ((b.value - b.error) * (1.0 - ULPS)).clamp_min(floor)
    error = (a.error + value.abs() * b.error + TINY) / least
    return Enclosure(value, (error + ULPS * value.abs()) * (1.0 + ULPS) + FLOOR)


def _normalized(node: Normalize, x: Enclosure) -> _Normalized:
    centred = _runs(node, x)
    variance = _mean_product(centred, centred)
    deviation = (variance.value + node.epsilon).sqrt()
    # |sqrt a - sqrt b| <= |a - b| / sqrt a
    divisor = Enclosure(deviation, (variance.error / deviation + ULPS * deviation) * (1.0 + ULPS))
    return _Normalized(_divided(centred, divisor, _least_deviation(node)), divisor)


def _least_deviation(node: Normalize) -> float:
    return node.epsilon**0.5 * (1.0 - ULPS)


def _add_error(values: list[Tensor], errors: list[Tensor]) -> Tensor:
    magnitude = torch.stack([value.abs() for value in values]).sum(0)
    return (torch.stack(errors).sum(0) + gamma(len(values)) * magnitude) * (1.0 + 4.0 * gamma(2 * len(values) + 8))


def _component_error(node: Node, component: Component, z: Tensor) -> Tensor:
    """Error of evaluating a sum of terms at the float64 number z itself."""
    error, magnitude = torch.zeros_like(z), torch.zeros_like(z)
    for term in component:
        value = term.value(z)
        error = error + _term_error(node, term, z, value)
        magnitude = magnitude + value.abs()
    return error + len(component) * ULPS * magnitude if len(component) > 1 else error


def _term_error(node: Node, term: Term, z: Tensor, value: Tensor) -> Tensor:
    inner = term.scale * z + term.offset
    outer = abs(term.coefficient)
    row = accuracy(node, term)
    own = row.value_error(inner, value if outer == 0.0 else value / outer, term.parameters)
    if term.scale not in (1.0, -1.0) or term.offset != 0.0:  # the argument was rounded
        low, high = SCALAR_FUNCTIONS[term.function].slopes(term.parameters)
        steepest = max(abs(low), abs(high))
        own = own + steepest * _argument_error(term, z)
    if outer in (0.0, 1.0):  # the floor of the node is enough
        return outer * own
    # What underflows before it is multiplied by the coefficient.
    own = outer * (own + 8.0 * TINY)
    return own + ULPS * value.abs()


def _argument_error(term: Term, z: Tensor) -> Tensor | float:
    """Error of ``scale * z + offset`` at the float64 number z itself."""
    if term.scale in (1.0, -1.0) and term.offset == 0.0:
        return 0.0
    return ULPS * ((term.scale * z).abs() + abs(term.offset)) + 4.0 * TINY


def accuracy(node: Node, term: Term) -> Accuracy:
    """The row of a term's function.

    Raises:
        UnsupportedOperation: if the function has none.
    """
    if term.function not in ACCURACY:
        raise UnsupportedOperation(node.name, term.function, "Its rounding error is not known.")
    return ACCURACY[term.function]


# --- tangents --------------------------------------------------------------------------------------------------------


@singledispatch
def enclosed_tangent(node: Node, inputs: list[Tangent]) -> Tangent:
    """Value and tangent of a node, enclosed, given those of its inputs."""
    raise UnsupportedOperation(node.name, type(node).__name__, "Its rounding error is not known.")


@enclosed_tangent.register
def _(node: Dense, inputs: list[Tangent]) -> Tangent:
    x = inputs[0]
    live = (x.live @ _may_be(node).to(x.live.dtype).T).clamp(max=1.0)
    product = x.tangent.value @ node.weight.T
    error = _plus(_dense_error(node.weight, None, x.tangent), uncertainty(node, _size(x.tangent), bias=False))
    return Tangent(enclosed(node, [x.primal]), Enclosure(product * live, error * live), live, x.sound)


@enclosed_tangent.register
def _(node: Conv, inputs: list[Tangent]) -> Tangent:
    x = inputs[0]
    live = (convolve(node, x.live, _may_be(node).to(x.live.dtype), None) > 0).to(x.live.dtype)
    product = convolve(node, x.tangent.value, node.weight, None)
    error = _plus(_conv_error(node, None, x.tangent), uncertainty(node, _size(x.tangent), bias=False))
    return Tangent(enclosed(node, [x.primal]), Enclosure(product * live, error * live), live, x.sound)


@enclosed_tangent.register
def _(node: ConvTranspose, inputs: list[Tangent]) -> Tangent:
    x = inputs[0]
    live = (convolve_transposed(node, x.live, _may_be(node).to(x.live.dtype), None) > 0).to(x.live.dtype)
    product = convolve_transposed(node, x.tangent.value, node.weight, None)
    error = _plus(_transposed_error(node, None, x.tangent), uncertainty(node, _size(x.tangent), bias=False))
    return Tangent(enclosed(node, [x.primal]), Enclosure(product * live, error * live), live, x.sound)


@enclosed_tangent.register
def _(node: Gather, inputs: list[Tangent]) -> Tangent:
    return _placed(node, inputs)


@enclosed_tangent.register
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


def window_places(node: MaxPool, space: Sequence[int], device: torch.device) -> Tensor:
    """``(windows, entries)``: the place of each entry of each window in the flattened space, -1 for padding."""
    place = torch.zeros((), dtype=torch.long, device=device)
    inside = torch.ones((), dtype=torch.bool, device=device)
    rank = len(space)
    for axis, length in enumerate(space):
        starts = torch.arange(node.shape[1 + axis], device=device) * node.stride[axis] - node.padding[axis]
        offsets = torch.arange(node.kernel[axis], device=device) * node.dilation[axis]
        at = _spread(starts[:, None] + offsets, axis, rank)
        place = place * length + at
        inside = inside & (at >= 0) & (at < length)
    return torch.where(inside, place, -1).flatten(rank).flatten(0, rank - 1)


def _spread(table: Tensor, axis: int, rank: int) -> Tensor:
    """``(positions, offsets)`` of one axis, seen as ``(*positions, *offsets)`` of all axes."""
    shape = [1] * (2 * rank)
    shape[axis], shape[rank + axis] = table.shape
    return table.reshape(shape)


def in_windows(x: Tensor, windows: Tensor, outside: float) -> Tensor:
    """``(batch, channels, windows, entries)``."""
    flat = torch.nn.functional.pad(x.flatten(2), (0, 1), value=outside)
    return flat[:, :, windows]  # -1 is the last entry


@enclosed_tangent.register
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


@enclosed_tangent.register
def _(node: Normalize, inputs: list[Tangent]) -> Tangent:
    """(d - y mean(y d)) / deviation, for d the tangent less its mean and y the normalised value."""
    x, shape = inputs[0], inputs[0].live.shape
    found = _normalized(node, x.primal)
    step = _runs(node, x.tangent)
    y, along = found.normal, _mean_product(found.normal, step)
    away = y.value * along.value
    error = y.error * along.value.abs() + (y.value.abs() + y.error) * along.error + ULPS * away.abs()
    rest = step.value - away
    error = (step.error + error + ULPS * rest.abs()) * (1.0 + ULPS) + FLOOR
    tangent = _divided(Enclosure(rest, error), found.deviation, _least_deviation(node))
    live = runs(node, x.live).amax(dim=2, keepdim=True).expand_as(tangent.value).reshape(shape)
    primal = Enclosure(y.value.reshape(shape), y.error.reshape(shape))
    enclosure = Enclosure(tangent.value.reshape(shape) * live, tangent.error.reshape(shape) * live)
    return Tangent(primal, enclosure, live, x.sound)


@enclosed_tangent.register
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


@enclosed_tangent.register
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
            room = 2.0 * (abs(term.scale) * z.error + _argument_error(term, z.value))
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
            error = error + factor * curvature * (abs(term.scale) * z.error + _argument_error(term, z.value))
    return (error + ULPS * (len(component) + 1) * size) * (1.0 + ULPS)


@enclosed_tangent.register
def _(node: Reshape, inputs: list[Tangent]) -> Tangent:
    return _placed(node, inputs)


@enclosed_tangent.register
def _(node: Concat, inputs: list[Tangent]) -> Tangent:
    return _placed(node, inputs)


def _placed(node: Node, inputs: list[Tangent]) -> Tangent:
    """For nodes that only move coordinates."""
    primal, tangent = enclosed(node, [x.primal for x in inputs]), enclosed(node, [x.tangent for x in inputs])
    return Tangent(primal, tangent, evaluate(node, [x.live for x in inputs]), _all_sound(inputs))


@enclosed_tangent.register
def _(node: Add, inputs: list[Tangent]) -> Tangent:
    live = evaluate(node, [x.live for x in inputs]).clamp(max=1.0)
    primal, tangent = enclosed(node, [x.primal for x in inputs]), enclosed(node, [x.tangent for x in inputs])
    return Tangent(primal, tangent, live, _all_sound(inputs))


def _all_sound(inputs: list[Tangent]) -> Tensor:
    return torch.stack([x.sound for x in inputs]).all(dim=0)


def understood(graph: Graph) -> str | None:
    """None if every layer's rounding is known here, otherwise the reason why not, in one line."""
    for node in graph.nodes[1:]:
        if enclosed_tangent.dispatch(type(node)) is enclosed_tangent.dispatch(Node):
            return f"layer `{node.name}` ({type(node).__name__}) has no known rounding error"
        if isinstance(node, Elementwise):
            unknown = _unknown_functions(node.activation)
            if unknown:
                return f"layer `{node.name}` uses {unknown[0]}, whose rounding error is not known"
    return None


def _unknown_functions(activation: Activation) -> list[str]:
    return [t.function for component in activation.components for t in component if t.function not in ACCURACY]
