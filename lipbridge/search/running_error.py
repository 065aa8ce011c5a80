"""Running error bounds: float64 values and Jacobian-vector products with a rigorous bound of their rounding error.

Every quantity is carried as (value, error) with |exact - value| <= error entrywise, where "exact" is the real-number
function of the stored weights. A dot product of length n obeys |fl(w'x) - w'x| <= gamma_n |w|'|x| in any order of
summation (Higham 2002, section 3.1); scalar functions of the libraries are trusted to a few units in the last place.
The error terms are sums of non-negative numbers, computed in float64 and enlarged by more than their own rounding.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import singledispatch

import torch
from torch import Tensor

from lipbridge.activations import SCALAR_FUNCTIONS, Activation, Component, Term
from lipbridge.errors import UnsupportedOperation
from lipbridge.graph import Add, Concat, Dense, Elementwise, Graph, Node, Reshape, evaluate
from lipbridge.rounding import gamma
from lipbridge.search.accuracy import ACCURACY, ULPS, Accuracy

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
    return Enclosure(evaluate(node, [x.value]), _dense_error(node.weight, node.bias, x))


@enclosed.register
def _(node: Elementwise, inputs: list[Enclosure]) -> Enclosure:
    z, g = inputs[0], node.activation
    errors = [
        _component_error(node, component, z.value) + max(abs(low), abs(high)) * z.error
        for component, (low, high) in zip(g.components, g.slopes, strict=True)
    ]
    return Enclosure(evaluate(node, [z.value]), torch.cat(errors, dim=1) * (1.0 + ULPS) + FLOOR)


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


def _dense_error(W: Tensor, b: Tensor | None, x: Enclosure) -> Tensor:
    """Error of fl(W x + b): |W| e + gamma_(n+1) (|W| |x| + |b|)."""
    n = W.shape[1]
    rounding = gamma(n + 2)
    error = (x.error + rounding * x.value.abs()) @ W.abs().T
    if b is not None:
        error = error + rounding * b.abs()
    return error * (1.0 + 4.0 * gamma(n + 16)) + (n + 2) * FLOOR


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
    own = outer * row.value_error(inner, value if outer == 0.0 else value / outer, term.parameters)
    if term.scale not in (1.0, -1.0) or term.offset != 0.0:  # the argument was rounded
        low, high = SCALAR_FUNCTIONS[term.function].slopes(term.parameters)
        steepest = max(abs(low), abs(high))
        own = own + outer * steepest * ULPS * ((term.scale * z).abs() + abs(term.offset))
    return own if outer in (0.0, 1.0) else own + ULPS * value.abs()


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
    live = (x.live @ (node.weight != 0).to(x.live.dtype).T).clamp(max=1.0)
    product = x.tangent.value @ node.weight.T
    error = _dense_error(node.weight, None, x.tangent)
    return Tangent(enclosed(node, [x.primal]), Enclosure(product * live, error * live), live, x.sound)


@enclosed_tangent.register
def _(node: Elementwise, inputs: list[Tangent]) -> Tangent:
    x, g = inputs[0], node.activation
    z, t = x.primal, x.tangent
    # Twice the error, which also covers the rounding of the distance itself.
    clear = (g.distance_to_kink(z.value) > 2.0 * z.error) | (x.live == 0)
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
        live.append(x.live * (d != 0).to(x.live.dtype) if stops else x.live)
    alive = torch.cat(live, dim=1)
    error = torch.cat(errors, dim=1) * (1.0 + ULPS) + FLOOR
    enclosure = Enclosure(torch.cat(products, dim=1) * alive, error * alive)
    return Tangent(enclosed(node, [z]), enclosure, alive, sound)


def _slope_error(node: Node, component: Component, z: Enclosure) -> Tensor:
    """Error of a component's derivative, away from kinks: curvature times the error of z, and its evaluation."""
    curvature, size = 0.0, 0.0
    for term in component:
        factor = abs(term.coefficient * term.scale)
        curvature += factor * abs(term.scale) * accuracy(node, term).curvature(term.parameters)
        low, high = SCALAR_FUNCTIONS[term.function].slopes(term.parameters)
        size += factor * max(abs(low), abs(high))
    exact = curvature == 0.0 and len(component) == 1 and abs(component[0].coefficient * component[0].scale) == 1.0
    if exact and component[0].function in ("identity", "relu", "abs"):
        return torch.zeros_like(z.value)
    # The argument of a smooth function is rounded too, by at most a few ulp of itself.
    argument = z.value.abs() + max(abs(term.offset) for term in component)
    rounding = ULPS * (len(component) + 1) * size
    return curvature * (z.error + ULPS * argument) * (1.0 + ULPS) + rounding


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
