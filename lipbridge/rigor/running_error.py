"""Running error bounds: float64 values and Jacobian-vector products with a rigorous bound of their rounding error.

Every quantity is carried as (value, error) with |exact - value| <= error entrywise, where "exact" is the real-number
function of the stored weights. A dot product of length n obeys |fl(w'x) - w'x| <= gamma_n |w|'|x| in any order of
summation (Higham 2002, section 3.1); scalar functions of the libraries are trusted to a few units in the last place.
The error terms are sums of non-negative numbers, computed in float64 and enlarged by more than their own rounding.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

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
from lipbridge.graph.rules import Rule
from lipbridge.rigor.accuracy import ACCURACY, ULPS, Accuracy
from lipbridge.rounding.scalars import FLOOR, TINY, gamma


@dataclass(frozen=True, eq=False)
class Enclosure:
    """A tensor and a bound of its error, entry by entry; both ``(batch, *shape)`` float64."""

    value: Tensor
    error: Tensor


def enclose(graph: Graph, x: Tensor) -> Enclosure:
    """The network's value at ``x`` ``(batch, *input_shape)`` float64, with a rigorous error bound.

    Raises:
        UnsupportedOperation: for a layer or scalar function whose rounding is not known here.

    Law: the exact value, in real arithmetic, is within ``error`` of ``value``.
    """
    first = Enclosure(x, torch.zeros_like(x))
    return graph.fold(first, lambda _, node, inputs: enclosed(node, inputs))


#: A node's values with an error bound, given those of its inputs.
enclosed = Rule[[list[Enclosure]], Enclosure]("running error", "Its rounding error is not known.")


@enclosed.of(Dense)
def _(node: Dense, inputs: list[Enclosure]) -> Enclosure:
    x = inputs[0]
    error = dense_error(node.weight, node.bias, x)
    return Enclosure(evaluate(node, [x.value]), plus(error, uncertainty(node, size_of(x))))


@enclosed.of(Conv)
def _(node: Conv, inputs: list[Enclosure]) -> Enclosure:
    error = conv_error(node, node.bias, inputs[0])
    return Enclosure(evaluate(node, [inputs[0].value]), plus(error, uncertainty(node, size_of(inputs[0]))))


@enclosed.of(ConvTranspose)
def _(node: ConvTranspose, inputs: list[Enclosure]) -> Enclosure:
    error = transposed_error(node, node.bias, inputs[0])
    return Enclosure(evaluate(node, [inputs[0].value]), plus(error, uncertainty(node, size_of(inputs[0]))))


@enclosed.of(Gather)
def _(node: Gather, inputs: list[Enclosure]) -> Enclosure:
    return Enclosure(evaluate(node, [inputs[0].value]), evaluate(node, [inputs[0].error]))


@enclosed.of(MaxPool)
def _(node: MaxPool, inputs: list[Enclosure]) -> Enclosure:
    # A maximum moves by at most the largest move of its arguments.
    return Enclosure(evaluate(node, [inputs[0].value]), evaluate(node, [inputs[0].error]))


@enclosed.of(GroupSort)
def _(node: GroupSort, inputs: list[Enclosure]) -> Enclosure:
    # So does every order statistic.
    x = inputs[0]
    worst = grouped(node, x.error).amax(dim=2, keepdim=True)
    return Enclosure(evaluate(node, [x.value]), worst.expand_as(grouped(node, x.error)).reshape(x.error.shape))


@enclosed.of(Normalize)
def _(node: Normalize, inputs: list[Enclosure]) -> Enclosure:
    y = normalized(node, inputs[0]).normal
    return Enclosure(y.value.reshape(inputs[0].value.shape), y.error.reshape(inputs[0].value.shape))


@enclosed.of(Softmax)
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


@enclosed.of(Elementwise)
def _(node: Elementwise, inputs: list[Enclosure]) -> Enclosure:
    z, g = inputs[0], node.activation
    errors = [
        _component_error(node, component, z.value) + max(abs(low), abs(high)) * z.error
        for component, (low, high) in zip(g.components, g.slopes, strict=True)
    ]
    return Enclosure(evaluate(node, [z.value]), joined(node, errors) * (1.0 + ULPS) + FLOOR)


@enclosed.of(Reshape)
def _(node: Reshape, inputs: list[Enclosure]) -> Enclosure:
    x = inputs[0]
    return Enclosure(evaluate(node, [x.value]), evaluate(node, [x.error]))


@enclosed.of(Concat)
def _(node: Concat, inputs: list[Enclosure]) -> Enclosure:
    return Enclosure(evaluate(node, [x.value for x in inputs]), evaluate(node, [x.error for x in inputs]))


@enclosed.of(Add)
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


def may_be(node: Dense | Conv | ConvTranspose) -> Tensor:
    """Which weights may be other than zero."""
    return node.weight != 0 if node.error is None else (node.weight != 0) | (node.error != 0)


def plus(error: Tensor, more: Tensor | None) -> Tensor:
    return error if more is None else (error + more) * (1.0 + 4.0 * ULPS)


def size_of(x: Enclosure) -> Tensor:
    return (x.value.abs() + x.error) * (1.0 + ULPS)


def dense_error(W: Tensor, b: Tensor | None, x: Enclosure) -> Tensor:
    """Error of fl(W x + b): |W| e + gamma_(n+1) (|W| |x| + |b|)."""
    n = W.shape[1]
    rounding = gamma(n + 2)
    error = (x.error + rounding * x.value.abs()) @ W.abs().T + _before(W)
    if b is not None:
        error = error + rounding * b.abs()
    return error * (1.0 + 4.0 * gamma(n + 16)) + (n + 2) * FLOOR


def conv_error(node: Conv, b: Tensor | None, x: Enclosure) -> Tensor:
    """Error of a convolution, as :func:`dense_error`: each output is a dot product with a part of the kernel."""
    n = node.weight[0].numel()
    rounding = gamma(n + 2)
    shift = None if b is None else rounding * b.abs()
    error = convolve(node, x.error + rounding * x.value.abs(), node.weight.abs(), shift)
    error = error + _before(node.weight)
    return error * (1.0 + 4.0 * gamma(n + 16)) + (n + 2) * FLOOR


def transposed_error(node: ConvTranspose, b: Tensor | None, x: Enclosure) -> Tensor:
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


def runs_of(node: Normalize, x: Enclosure) -> Enclosure:
    """The runs, less their means if the node centres."""
    found = Enclosure(runs(node, x.value), runs(node, x.error))
    return _centred(found) if node.centred else found


def mean_product(a: Enclosure, b: Enclosure) -> Enclosure:
    """Mean of the entrywise product over the last axis."""
    n = a.value.shape[-1]
    value = (a.value * b.value).mean(dim=-1, keepdim=True)
    error = a.value.abs() * b.error + a.error * b.value.abs() + a.error * b.error
    error = error + gamma(n + 4) * (a.value * b.value).abs()
    return Enclosure(value, error.mean(dim=-1, keepdim=True) * (1.0 + 4.0 * gamma(n + 16)) + n * FLOOR)


def divided(a: Enclosure, b: Enclosure, floor: float) -> Enclosure:
    """``a / b`` for b that is nowhere below ``floor`` > 0: |a/b - a'/b'| <= (|a - a'| + |a/b| |b - b'|) / b'."""
    value = a.value / b.value
    least = ((b.value - b.error) * (1.0 - ULPS)).clamp_min(floor)
    error = (a.error + value.abs() * b.error + TINY) / least
    return Enclosure(value, (error + ULPS * value.abs()) * (1.0 + ULPS) + FLOOR)


def normalized(node: Normalize, x: Enclosure) -> _Normalized:
    centred = runs_of(node, x)
    variance = mean_product(centred, centred)
    deviation = (variance.value + node.epsilon).sqrt()
    # |sqrt a - sqrt b| <= |a - b| / sqrt a
    divisor = Enclosure(deviation, (variance.error / deviation + ULPS * deviation) * (1.0 + ULPS))
    return _Normalized(divided(centred, divisor, least_deviation(node)), divisor)


def least_deviation(node: Normalize) -> float:
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
        own = own + steepest * argument_error(term, z)
    if outer in (0.0, 1.0):  # the floor of the node is enough
        return outer * own
    # What underflows before it is multiplied by the coefficient.
    own = outer * (own + 8.0 * TINY)
    return own + ULPS * value.abs()


def argument_error(term: Term, z: Tensor) -> Tensor | float:
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


def unknown_functions(activation: Activation) -> list[str]:
    return [t.function for component in activation.components for t in component if t.function not in ACCURACY]
