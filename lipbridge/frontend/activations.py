"""Further activations, each as torch computes it for every value of its parameters, or refused."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Any

import torch
from torch import Tensor

from lipbridge.activations.activation import Component, Term
from lipbridge.activations.registry import HARDSIGMOID, SELU, recognise
from lipbridge.activations.scalar_functions import GELU_CUBE
from lipbridge.frontend.builder import LINE, Curve, GraphBuilder, Recipe
from lipbridge.frontend.computed.tensor import Computed
from lipbridge.frontend.functions import apply, clamp
from lipbridge.graph.nodes import Conv, Dense, Elementwise


def composed(builder: GraphBuilder, value: Any, component: Component) -> Curve:
    """A sum of terms, applied to a curve: on each line component exactly, on anything else as a node's function."""
    curve = builder.curve(value)
    terms = [c[0] for c in curve.components if len(c) == 1 and c[0].function == "identity"]
    lines = [(t.coefficient * t.scale, t.coefficient * t.offset) for t in terms]
    exact = len(terms) == len(curve.components) and all(_exactly(component, *line) for line in lines)
    if not exact:
        curve, lines = Curve(builder.materialise(curve), (LINE,)), [(1.0, 0.0)]
    made = tuple(tuple(sorted(_on_line(term, *line) for term in component)) for line in lines)
    return replace(curve, components=made)


def _on_line(term: Term, scale: float, offset: float) -> Term:
    """The term of ``scale t + offset``."""
    inner = Term(term.function, 1.0, term.scale * scale, term.scale * offset + term.offset, term.parameters)
    return replace(inner, coefficient=term.coefficient)


def _exactly(component: Component, scale: float, offset: float) -> bool:
    """Whether the terms of ``scale t + offset`` need no rounding."""
    for term in component:
        made = _on_line(term, scale, offset)
        factor, shift = Fraction(term.scale) * Fraction(scale), Fraction(term.scale) * Fraction(offset)
        if not math.isfinite(made.offset) or not math.isfinite(made.scale):
            return False
        if Fraction(made.scale) != factor or Fraction(made.offset) != shift + Fraction(term.offset):
            return False
    return True


def number(builder: GraphBuilder, value: Any, name: str) -> float:
    """A parameter that is a finite number."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise builder.unsupported(f"Its {name} should be a finite number.")
    return float(value)


def selu(builder: GraphBuilder, value: Any) -> Curve:
    """SELU with its own two constants."""
    return composed(builder, value, SELU[0])


def celu(builder: GraphBuilder, value: Any, alpha: float) -> Curve:
    """max(t, 0) + alpha (exp(min(t, 0) / alpha) - 1)."""
    return _celu(builder, value, number(builder, alpha, "alpha"))


def _celu(builder: GraphBuilder, value: Any, alpha: float) -> Curve:
    if alpha <= 0.0:
        raise builder.unsupported("With alpha <= 0 a CELU grows exponentially; it has no Lipschitz constant.")
    if not 2.0**-1000 <= alpha <= 2.0**1000:
        raise builder.unsupported("Its alpha has no reciprocal in floating point; choose one of moderate size.")
    return apply(builder, value, "celu", (alpha,))


def elu(builder: GraphBuilder, value: Any, alpha: float, scale: float = 1.0, input_scale: float = 1.0) -> Curve:
    """scale * t right of zero and scale * alpha (exp(b t) - 1) left of it, for b the scale of the input."""
    given = {"alpha": alpha, "scale": scale, "input_scale": input_scale}
    alpha, scale, b = (number(builder, option, name) for name, option in given.items())
    if b == 1.0:
        return composed(builder, value, (Term("elu", scale, parameters=(alpha,)),))
    if scale == 1.0 and alpha > 0.0 and b == 1.0 / alpha:  # what a CELU is decomposed into
        return _celu(builder, value, alpha)
    if b <= 0.0:
        raise builder.unsupported("With a negative scale of its input an ELU grows exponentially.")
    outer, inner = Fraction(scale) / Fraction(b), Fraction(alpha) * Fraction(b)
    if Fraction(float(outer)) != outer or Fraction(float(inner)) != inner:
        raise builder.unsupported("Its scales have products that are no doubles; scale around it instead.")
    return composed(builder, value, (Term("elu", float(outer), b, parameters=(float(inner),)),))


def gelu(builder: GraphBuilder, value: Any, approximate: str = "none") -> Curve:
    """t Phi(t), or its approximation by a tanh."""
    if approximate not in ("none", "tanh"):
        raise builder.unsupported("GELU has the forms approximate='none' and approximate='tanh'.")
    if approximate == "tanh":
        return apply(builder, value, "gelu_tanh", (GELU_CUBE,))
    return apply(builder, value, "gelu")


def hardsigmoid(builder: GraphBuilder, value: Any) -> Curve:
    """min(max(t / 6 + 1 / 2, 0), 1)."""
    return builder.apart(composed(builder, value, HARDSIGMOID[0]))  # its factor is rounded: nothing cancels it


def softshrink(builder: GraphBuilder, value: Any, limit: float) -> Curve:
    """relu(t - lambda) - relu(-t - lambda)."""
    limit = number(builder, limit, "lambd")
    if limit < 0.0:
        raise builder.unsupported("Its lambd should not be negative.")
    return composed(builder, value, (Term("relu", -1.0, -1.0, -limit), Term("relu", 1.0, 1.0, -limit)))


def hardshrink(builder: GraphBuilder, value: Any, limit: float) -> Curve:
    """Zero for |t| <= lambda, else t: a jump, unless lambda is so low that it never shrinks."""
    if number(builder, limit, "lambd") > 0.0:
        raise builder.unsupported("It jumps, so it has no Lipschitz constant; softshrink does not.")
    return builder.curve(value)


def threshold(builder: GraphBuilder, value: Any, limit: float, below: float) -> Curve:
    """t above the threshold, else a value: without a jump only if the two are equal, max(t, threshold)."""
    limit = number(builder, limit, "threshold")
    if number(builder, below, "value") != limit:
        raise builder.unsupported(
            "It jumps at its threshold, so it has no Lipschitz constant, unless `value` equals it."
        )
    return clamp(builder, value, limit, None)


# --- PReLU ------------------------------------------------------------------------------------------------------------


def prelu(builder: GraphBuilder, value: Any, slopes: Any, shape: tuple[int, ...], kernel: bool = False) -> Curve:
    """One slope is a leaky ReLU; slopes of their own channel by channel are a CReLU and a layer that mixes it.

    ``kernel`` says that the slopes broadcast from the right, ``(1, channels, 1, ...)``, and have not one axis alone.
    """
    if not isinstance(slopes, Tensor) or not slopes.numel():
        raise builder.unsupported("Its slopes should be constants.")
    if not slopes.is_meta and not bool(slopes.isfinite().all()):
        raise builder.unsupported("Its slopes should be finite numbers.")
    if slopes.numel() == 1:
        return _leaky(builder, value, slopes)
    channels = (slopes.numel(), *[1] * (len(shape) - 1))
    if slopes.numel() != shape[0] or (kernel and tuple(slopes.shape[max(0, slopes.ndim - len(shape)) :]) != channels):
        raise builder.unsupported(f"It has {slopes.numel()} slopes for {shape[0]} channels.")
    if not builder.is_live(slopes) and not slopes.is_meta and bool((slopes == slopes.flatten()[0]).all()):
        return _leaky(builder, value, slopes.flatten()[:1])
    return channelwise_leaky_relu(builder, value, slopes, shape)


def _leaky(builder: GraphBuilder, value: Any, slope: Tensor) -> Curve:
    """A leaky ReLU; one that may change is a node of its own, with the constant max(1, |slope|)."""
    if isinstance(slope, Computed):
        raise builder.unsupported("Its slope is computed and known up to rounding alone; store it.")
    slope_now = 0.25 if slope.is_meta else number(builder, float(slope.detach().double()), "slope")
    recipe = builder.recipe(leaky_constant, slope)
    if recipe is None:
        return apply(builder, value, "leaky_relu", (slope_now,))
    return live_leaky(builder, builder.materialise(value), slope_now, recipe)


def live_leaky(builder: GraphBuilder, source: int, number: float, recipe: Recipe) -> Curve:
    activation = recognise(((Term("leaky_relu", parameters=(number,)),),))
    node = Elementwise(builder.layer or activation.name, (source,), builder.nodes[source].shape, activation)
    return builder.append(node, recipe)


def leaky_constant(slope: Tensor) -> Tensor:
    return slope.reshape(()).abs().clamp_min(1.0)


@dataclass(frozen=True)
class TwoSlopes:
    """For a :class:`Recipe`: ``[I, -diag(a)]`` of slopes a, with ``rank`` axes of length one behind."""

    rank: int

    def __call__(self, slopes: Tensor) -> Tensor:
        a = slopes.flatten()
        matrix = torch.cat([torch.diag(torch.ones_like(a)), torch.diag(-a)], dim=1)
        return matrix.reshape(*matrix.shape, *(1,) * self.rank)


def channelwise_leaky_relu(builder: GraphBuilder, value: Any, slopes: Tensor, shape: tuple[int, ...]) -> Curve:
    """``max(t, 0) + a min(t, 0)`` with the slope a of each channel, for a value of ``shape`` ``(channels, *space)``.

    A node has one activation for all its channels, so this is (relu t, relu -t) and a layer ``[I, -diag(a)]``: exactly
    the function, and live in a penalty. Its constant, max(1, |a|) in every norm, is found in
    :mod:`lipbridge.constants.layer_constants`.
    """
    source = builder.line(value)
    pair = builder.line(replace(source, components=((Term("relu"),), (Term("relu", 1.0, -1.0),)), axis=0))
    rank = len(shape) - 1

    weight = TwoSlopes(rank)
    W, recipe = weight(slopes.detach().to(torch.float64)), builder.recipe(weight, slopes)
    if not rank:
        return builder.append(Dense(builder.layer, (pair.source,), shape, W), recipe)
    geometry = ((1,) * rank, ((0, 0),) * rank, (1,) * rank)
    return builder.append(Conv(builder.layer, (pair.source,), shape, W, None, *geometry), recipe)
