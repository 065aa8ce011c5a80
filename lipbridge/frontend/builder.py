"""Building a Graph value by value, whoever reads the network: torch.export's programs and ONNX files alike.

A value is a :class:`Curve` (scalar functions of one node, not yet a node themselves), or something that waits for the
operation that uses it (:class:`Deferred`): padding waits for its convolution, halves of a split for their maximum.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Any

import torch
from torch import Tensor

from lipbridge.activations.activation import Activation, Component, Term
from lipbridge.activations.modules import INVERSE_SQRT2
from lipbridge.activations.registry import recognise
from lipbridge.errors import UnsupportedOperation
from lipbridge.frontend.computed.tensor import Computed, outward
from lipbridge.graph.graph import Graph
from lipbridge.graph.nodes import Conv, ConvTranspose, Dense, Elementwise, Input, Node, Reshape
from lipbridge.rounding.factors import number
from lipbridge.rounding.scalars import TINY


@dataclass(frozen=True)
class Curve:
    """Components applied to node ``source``, joined along ``axis`` of its shape; one component needs none."""

    source: int
    components: tuple[Component, ...]
    axis: int = 0


#: The `parameter` of a weight that is part of the architecture, e.g. the kernel of an average: nothing trains it.
FIXED = ""
LINE: Component = (Term("identity"),)


class Deferred:
    """A value that is no curve yet; ``materialise`` makes it one if no operation took it as it is."""

    def materialise(self, builder: GraphBuilder) -> Curve:
        """The value as a curve."""
        raise NotImplementedError


class Unusable(Deferred):
    """A result that no Graph holds; it is an error only if something reads it."""

    def materialise(self, builder: GraphBuilder) -> Curve:
        """Raises UnsupportedOperation."""
        raise builder.unsupported("It reads indices or statistics; only the values of such an operation can be used.")


@dataclass(frozen=True, eq=False)
class Recipe:
    """How a weight of a node comes from the constants of a program, so that a penalty can compute it anew.

    ``sources`` are keys of constants (see :meth:`GraphBuilder.key`), or fixed tensors; ``compute`` takes their values,
    in that order and in any dtype, and gives the weight. It is made of torch operations, so gradients flow through it.
    """

    sources: tuple[Any, ...]
    compute: Callable[..., Tensor]


def itself(tensor: Tensor) -> Tensor:
    """For a :class:`Recipe`: the constant as it is."""
    return tensor


def transposed(matrix: Tensor) -> Tensor:
    """For a :class:`Recipe`: the constant's transpose."""
    return matrix.T


def one_number(tensor: Tensor) -> Tensor:
    """For a :class:`Recipe`: a constant of one element, without axes."""
    return tensor.reshape(())


def inverse(tensor: Tensor) -> Tensor:
    """For a :class:`Recipe`: the factor of a quotient."""
    return 1.0 / tensor


class GraphBuilder:
    """A Graph in the making: ``nodes`` grows as curves are materialised.

    The functions beside this file (dense, convolution, add, sort, ...) take a builder and values, and give a value.
    Whoever reads a network says in ``layer`` and ``operation`` what is at hand, for names and errors, and where a
    constant comes from; here all constants are fixed, and any size is allowed.

    Attributes:
        nodes: so far.
        device: of weights that are part of an architecture.
        layer: name of the node at hand.
        operation: what the network calls the operation at hand.
        dtype: of the operation's result, in the network.
        materialised: by curve, the node that holds it.
        recipes: by node, how its weight (of a line: its factor) is computed anew.
    """

    def __init__(self, shape: tuple[int, ...], device: torch.device) -> None:
        self.nodes: list[Node] = [Input("input", (), shape)]
        self.device = device
        self.layer = ""
        self.operation = ""
        self.dtype = torch.get_default_dtype()
        self.materialised: dict[Curve, int] = {}
        self.recipes: dict[int, Recipe] = {}

    def key(self, constant: Any) -> Any:
        """What stands for a constant in a recipe: a key of it if it may change, the tensor itself if it is fixed."""
        return constant

    def is_live(self, constant: Any) -> bool:
        """Whether a constant depends on parameters or buffers, which may change."""
        return False

    def recipe(self, compute: Callable[..., Tensor], *constants: Tensor) -> Recipe | None:
        """The recipe of a weight computed from constants; None if none of them may change."""
        if not any(self.is_live(constant) for constant in constants):
            return None
        return Recipe(tuple(self.key(constant) for constant in constants), compute)

    def origin(self, weight: Tensor) -> tuple[str | None, bool]:
        """The dotted name of the module's tensor that ``weight`` is, and whether it is its transpose."""
        return (None, False)

    def factor_origin(self, factor: Tensor) -> str | None:
        """As :meth:`origin` for a factor of a diagonal map: ``FIXED`` for one that nothing changes."""
        return self.origin(factor)[0] if self.is_live(factor) else FIXED

    def unsupported(self, hint: str = "") -> UnsupportedOperation:
        """The error for the operation at hand."""
        return UnsupportedOperation(self.layer or "(top level)", self.operation, hint)

    def curve(self, value: Any) -> Curve:
        """``value`` as a curve.

        Raises:
            UnsupportedOperation: if it is none: a constant, or several values.
        """
        if isinstance(value, Deferred):
            return value.materialise(self)
        if not isinstance(value, Curve):
            raise self.unsupported("One operand is not a function of the network's input.")
        return value

    def require_small(self, size: int) -> None:
        """Refuse a value or a weight of more numbers than the network's origin is trusted with; here none."""

    def append(self, node: Node, recipe: Recipe | None = None) -> Curve:
        """A line on a new node, whose weight follows ``recipe`` where it may change."""
        if 0 in node.shape:
            raise self.unsupported("Its values are empty: an axis has the length 0.")
        self.nodes.append(self.with_errors(node))
        if recipe is not None:
            self.recipes[len(self.nodes) - 1] = recipe
        return Curve(len(self.nodes) - 1, (LINE,))

    def with_errors(self, node: Node) -> Node:
        """The node with its weight's error, and its bias's, beside them; factors of a diagonal are rounded outward.

        Raises:
            UnsupportedOperation: if nothing is known of a weight.
        """
        if not isinstance(node, Dense | Conv | ConvTranspose):
            return node
        weight, bias = node.weight, node.bias
        if isinstance(weight, Computed):
            # Averages, too: where no entry is negative, larger entries have a larger norm.
            away = (isinstance(node, Conv) and node.diagonal) or bool((weight.value >= 0).all())
            size = weight.value.abs()
            near = (weight.error <= _NEAR * size) | ((size > 0) & (weight.error <= 16.0 * TINY))
            away = away and bool(near.all())
            kept, error = outward(weight) if away else (weight.value, weight.error)
            node = replace(node, weight=kept, error=error, outward=away)
        if isinstance(bias, Computed):
            node = replace(node, bias=bias.value, bias_error=bias.error)
        errors = [error for error in (node.error, node.bias_error) if error is not None]
        if not all(bool(torch.isfinite(error).all()) for error in errors):
            raise self.unsupported("Its weight is computed, and rounding may have taken all its digits; store it.")
        return node

    def materialise(self, value: Any) -> int:
        """The index of the node that holds ``value``; a curve that bends becomes an ``Elementwise``."""
        curve = self.curve(value)
        if curve.components == (LINE,):
            return curve.source
        if curve not in self.materialised:
            self.materialised[curve] = self.apart(curve).source
        return self.materialised[curve]

    def apart(self, curve: Curve) -> Curve:
        """A curve as a node of its own, which no equal curve shares: what stands for it may be rounded."""
        activation = _recognised(curve.components)
        shape = list(self.nodes[curve.source].shape)
        axis = curve.axis
        if len(curve.components) > 1:
            shape[axis] *= len(curve.components)
        axis = -1 if axis == len(shape) - 1 or len(curve.components) == 1 else axis
        return self.append(Elementwise(self.layer or activation.name, (curve.source,), tuple(shape), activation, axis))

    def graph_of_nodes(self, name: str) -> Graph:
        """All nodes so far; a number for each input, without axes, is held with one axis of length one."""
        return Graph(tuple(_with_axes(node) for node in self.nodes), name)

    def line(self, value: Any) -> Curve:
        """``value`` as a node of its own."""
        return Curve(self.materialise(value), (LINE,))

    def shape_of(self, value: Any) -> tuple[int, ...]:
        """The shape of ``value``, without batch."""
        curve = self.curve(value)
        shape = list(self.nodes[curve.source].shape)
        if len(curve.components) > 1:
            shape[curve.axis] *= len(curve.components)
        return tuple(shape)

    def over_one_source(self, values: Sequence[Any]) -> list[Curve]:
        """The curves, with those that have become a node that another one reads replaced by a line on that node."""
        curves = [self.curve(value) for value in values]
        sources = {curve.source for curve in curves}
        if len(sources) == 1:
            return curves
        return [Curve(node, (LINE,)) if (node := self.materialised.get(c, -1)) in sources else c for c in curves]


#: 1 / sqrt(2) as a quotient is captured: one over the double next to sqrt(2).
_ROOT_HALF_UP = number(1 / Fraction(math.sqrt(2.0)))


#: Weights with larger relative errors stay as they are computed.
_NEAR = 2.0**-40


def _with_axes(node: Node) -> Node:
    if node.shape:
        return node
    return replace(node, shape=(1,), axes=None) if isinstance(node, Reshape) else replace(node, shape=(1,))


def _recognised(components: tuple[Component, ...]) -> Activation:
    """The activation; (t, |t|) divided by the float64 number sqrt(2) is the registered one.

    Its facts, rounded up in the registry, hold for that quotient too: 2 / fl(sqrt 2)^2 < 1.
    """
    found = recognise(components)
    if {term.scale for c in components for term in c} == {_ROOT_HALF_UP} or {
        term.coefficient for c in components for term in c
    } == {_ROOT_HALF_UP, 1.0}:
        nearest = tuple(
            tuple(
                replace(t, **{k: INVERSE_SQRT2 for k in ("scale", "coefficient") if getattr(t, k) == _ROOT_HALF_UP})
                for t in c
            )
            for c in components
        )
        registered = recognise(nearest)
        return registered if registered.saturates else found
    return found
