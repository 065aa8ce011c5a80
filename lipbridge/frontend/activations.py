"""Capture of further activations, each as torch computes it for every value of its parameters, or refused."""

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
from lipbridge.frontend.choices import Mask
from lipbridge.frontend.computed.tensor import Computed
from lipbridge.frontend.functions import apply
from lipbridge.frontend.reader import HANDLERS, LINE, Arguments, Curve, Handler, Reader, Recipe, handles, one_number
from lipbridge.frontend.self_gated import extend
from lipbridge.graph.nodes import Conv, Dense, Elementwise

extend()

_NO_PARAMETERS = {
    "atan": "atan",
    "arctan": "atan",
    "erf": "erf",
    "special_erf": "erf",
    "hardswish": "hardswish",
    "mish": "mish",
    "softsign": "softsign",  # no operation of torch, which writes it out, but one of ONNX
    "special_expit": "sigmoid",
}


def _plain(function: str) -> Handler:
    def handler(reader: Reader, a: Arguments, shape: tuple[int, ...]) -> Curve:
        return apply(reader, a["self"], function)

    return handler


for _name, _function in _NO_PARAMETERS.items():
    HANDLERS[_name] = _plain(_function)


def composed(reader: Reader, value: Any, component: Component) -> Curve:
    """A sum of terms, applied to a curve: on each line component exactly, on anything else as a node's function."""
    curve = reader.curve(value)
    terms = [c[0] for c in curve.components if len(c) == 1 and c[0].function == "identity"]
    lines = [(t.coefficient * t.scale, t.coefficient * t.offset) for t in terms]
    exact = len(terms) == len(curve.components) and all(_exactly(component, *line) for line in lines)
    if not exact:
        curve, lines = Curve(reader.materialise(curve), (LINE,)), [(1.0, 0.0)]
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


def _number(reader: Reader, value: Any, name: str) -> float:
    """A parameter that is a finite number."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise reader.unsupported(f"Its {name} should be a finite number.")
    return float(value)


@handles("selu")
def _selu(reader: Reader, a: Arguments, shape: tuple[int, ...]) -> Curve:
    return composed(reader, a["self"], SELU[0])


@handles("celu")
def _celu(reader: Reader, a: Arguments, shape: tuple[int, ...]) -> Curve:
    return _celu_of(reader, a["self"], _number(reader, a["alpha"], "alpha"))


def _celu_of(reader: Reader, value: Any, alpha: float) -> Curve:
    if alpha <= 0.0:
        raise reader.unsupported("With alpha <= 0 a CELU grows exponentially; it has no Lipschitz constant.")
    if not 2.0**-1000 <= alpha <= 2.0**1000:
        raise reader.unsupported("Its alpha has no reciprocal in floating point; choose one of moderate size.")
    return apply(reader, value, "celu", (alpha,))


@handles("elu")
def _elu(reader: Reader, a: Arguments, shape: tuple[int, ...]) -> Curve:
    """scale * t right of zero and scale * alpha (exp(b t) - 1) left of it, for b the scale of the input."""
    alpha, scale, b = (_number(reader, a[name], name) for name in ("alpha", "scale", "input_scale"))
    if b == 1.0:
        return composed(reader, a["self"], (Term("elu", scale, parameters=(alpha,)),))
    if scale == 1.0 and alpha > 0.0 and b == 1.0 / alpha:  # what a CELU is decomposed into
        return _celu_of(reader, a["self"], alpha)
    if b <= 0.0:
        raise reader.unsupported("With a negative scale of its input an ELU grows exponentially.")
    outer, inner = Fraction(scale) / Fraction(b), Fraction(alpha) * Fraction(b)
    if Fraction(float(outer)) != outer or Fraction(float(inner)) != inner:
        raise reader.unsupported("Its scales have products that are no doubles; scale around it instead.")
    return composed(reader, a["self"], (Term("elu", float(outer), b, parameters=(float(inner),)),))


@handles("gelu")
def _gelu(reader: Reader, a: Arguments, shape: tuple[int, ...]) -> Curve:
    approximate = a.get("approximate", "none")
    if approximate not in ("none", "tanh"):
        raise reader.unsupported("GELU has the forms approximate='none' and approximate='tanh'.")
    if approximate == "tanh":
        return apply(reader, a["self"], "gelu_tanh", (GELU_CUBE,))
    return apply(reader, a["self"], "gelu")


@handles("hardsigmoid")
def _hardsigmoid(reader: Reader, a: Arguments, shape: tuple[int, ...]) -> Curve:
    return reader.apart(composed(reader, a["self"], HARDSIGMOID[0]))  # its factor is rounded: nothing cancels it


@handles("log_sigmoid", "log_sigmoid_forward")
def _log_sigmoid(reader: Reader, a: Arguments, shape: tuple[int, ...]) -> Any:
    found = apply(reader, a["self"], "log_sigmoid")
    return [found] if reader.operation.startswith("log_sigmoid_forward") else found


@handles("softshrink")
def _softshrink(reader: Reader, a: Arguments, shape: tuple[int, ...]) -> Curve:
    """relu(t - lambda) - relu(-t - lambda)."""
    limit = _number(reader, a["lambd"], "lambd")
    if limit < 0.0:
        raise reader.unsupported("Its lambd should not be negative.")
    return composed(reader, a["self"], (Term("relu", -1.0, -1.0, -limit), Term("relu", 1.0, 1.0, -limit)))


@handles("hardshrink")
def _hardshrink(reader: Reader, a: Arguments, shape: tuple[int, ...]) -> Curve:
    """Zero for |t| <= lambda, else t: a jump, unless lambda is so low that it never shrinks."""
    if _number(reader, a["lambd"], "lambd") > 0.0:
        raise reader.unsupported("It jumps, so it has no Lipschitz constant; softshrink does not.")
    return reader.curve(a["self"])


@handles("threshold")
def _threshold(reader: Reader, a: Arguments, shape: tuple[int, ...]) -> Curve:
    """t above the threshold, else a value: without a jump only if the two are equal, max(t, threshold)."""
    limit = _number(reader, a["threshold"], "threshold")
    if _number(reader, a["value"], "value") != limit:
        raise reader.unsupported(
            "It jumps at its threshold, so it has no Lipschitz constant, unless `value` equals it."
        )
    return HANDLERS["clamp"](reader, {"self": a["self"], "min": limit, "max": None}, shape)


@handles("rrelu")
def _rrelu(reader: Reader, a: Arguments, shape: tuple[int, ...]) -> Curve:
    """In eval mode a leaky ReLU with the mean slope, which is how a module is read."""
    lower, upper = (_number(reader, a[name], name) for name in ("lower", "upper"))
    if a.get("training"):
        raise reader.unsupported("In training its slopes are random; put the module in eval mode.")
    return apply(reader, a["self"], "leaky_relu", ((lower + upper) / 2.0,))


# --- PReLU ------------------------------------------------------------------------------------------------------------


@handles("prelu", "_prelu_kernel")
def _prelu(reader: Reader, a: Arguments, shape: tuple[int, ...]) -> Curve:
    """One slope is a leaky ReLU; slopes of their own channel by channel are a CReLU and a layer that mixes it."""
    slopes = a["weight"]
    if not isinstance(slopes, Tensor) or not slopes.numel():
        raise reader.unsupported("Its slopes should be constants.")
    if not slopes.is_meta and not bool(slopes.isfinite().all()):
        raise reader.unsupported("Its slopes should be finite numbers.")
    if slopes.numel() == 1:
        return _leaky(reader, a["self"], slopes)
    # The kernel's weight broadcasts from the right, (1, channels, 1, ...); that of prelu itself has one axis.
    kernel = reader.operation.startswith("_prelu_kernel")
    channels = (slopes.numel(), *[1] * (len(shape) - 1))
    if slopes.numel() != shape[0] or (kernel and tuple(slopes.shape[max(0, slopes.ndim - len(shape)) :]) != channels):
        raise reader.unsupported(f"It has {slopes.numel()} slopes for {shape[0]} channels.")
    if not reader.is_live(slopes) and not slopes.is_meta and bool((slopes == slopes.flatten()[0]).all()):
        return _leaky(reader, a["self"], slopes.flatten()[:1])
    return channelwise_leaky_relu(reader, a["self"], slopes, shape)


def _leaky(reader: Reader, value: Any, slope: Tensor) -> Curve:
    """A leaky ReLU; one that may change is a node of its own, with the constant max(1, |slope|)."""
    if isinstance(slope, Computed):
        raise reader.unsupported("Its slope is computed and known up to rounding alone; store it.")
    number = 0.25 if slope.is_meta else _number(reader, float(slope.detach().double()), "slope")
    recipe = reader.recipe(_leaky_constant, slope)
    if recipe is None:
        return apply(reader, value, "leaky_relu", (number,))
    return _live_leaky(reader, reader.materialise(value), number, recipe)


def _live_leaky(reader: Reader, source: int, number: float, recipe: Recipe) -> Curve:
    activation = recognise(((Term("leaky_relu", parameters=(number,)),),))
    node = Elementwise(reader.layer or activation.name, (source,), reader.nodes[source].shape, activation)
    return reader.append(node, recipe)


def _leaky_constant(slope: Tensor) -> Tensor:
    return slope.reshape(()).abs().clamp_min(1.0)


def _chosen(reader: Reader, a: Arguments) -> Curve | None:
    """where(t > 0, t, a t) for a number a that may change; None for other choices."""
    mask = a["condition"]
    if not isinstance(mask, Mask) or mask.threshold != 0.0:
        return None
    kept, other = (a["self"], a["other"]) if mask.above else (a["other"], a["self"])
    if kept != mask.value or not isinstance(other, Curve) or other.components != (LINE,):
        return None
    node, recipe = reader.nodes[other.source], reader.recipes.get(other.source)
    if recipe is None or recipe.compute is not one_number or not isinstance(node, Elementwise):
        return None
    source = reader.materialise(mask.value)
    (term,) = node.activation.components[0]
    if node.inputs != (source,):
        return None
    return _live_leaky(reader, source, term.coefficient * term.scale, Recipe(recipe.sources, _leaky_constant))


def _extended_where() -> None:
    registered = HANDLERS["where"]

    def handler(reader: Reader, a: Arguments, shape: tuple[int, ...]) -> Any:
        return _chosen(reader, a) or registered(reader, a, shape)

    HANDLERS["where"] = handler


_extended_where()


@dataclass(frozen=True)
class TwoSlopes:
    """For a :class:`Recipe`: ``[I, -diag(a)]`` of slopes a, with ``rank`` axes of length one behind."""

    rank: int

    def __call__(self, slopes: Tensor) -> Tensor:
        a = slopes.flatten()
        matrix = torch.cat([torch.diag(torch.ones_like(a)), torch.diag(-a)], dim=1)
        return matrix.reshape(*matrix.shape, *(1,) * self.rank)


def channelwise_leaky_relu(reader: Reader, value: Any, slopes: Tensor, shape: tuple[int, ...]) -> Curve:
    """``max(t, 0) + a min(t, 0)`` with the slope a of each channel, for a value of ``shape`` ``(channels, *space)``.

    A node has one activation for all its channels, so this is (relu t, relu -t) and a layer ``[I, -diag(a)]``: exactly
    the function, and live in a penalty. Its constant, max(1, |a|) in every norm, is found in
    :mod:`lipbridge.constants.layer_constants`.
    """
    source = reader.line(value)
    pair = reader.line(replace(source, components=((Term("relu"),), (Term("relu", 1.0, -1.0),)), axis=0))
    rank = len(shape) - 1

    weight = TwoSlopes(rank)
    W, recipe = weight(slopes.detach().to(torch.float64)), reader.recipe(weight, slopes)
    if not rank:
        return reader.append(Dense(reader.layer, (pair.source,), shape, W), recipe)
    geometry = ((1,) * rank, ((0, 0),) * rank, (1,) * rank)
    return reader.append(Conv(reader.layer, (pair.source,), shape, W, None, *geometry), recipe)


__all__ = ["TwoSlopes", "channelwise_leaky_relu", "composed"]
