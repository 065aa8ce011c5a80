"""Activations and polyactivations: one row of facts each, in one registry.

A polyactivation is a curve g: R -> R^K, applied to every coordinate of its source. Its output is laid out block by
block: ``[g_1(z), ..., g_K(z)]`` along the last axis. Each component g_k is a sum of terms ``c * f(s t + o)`` of the
scalar functions below, so evaluation, derivative, lowering and recognition in a captured module all read one picture.

Facts of every row (checked numerically by the conformance test): the Lipschitz constant sup ||g'(t)||_p for each
norm, rounded up; the interval that contains the slopes of each component; the norms p that it saturates, that is
||g'(t)||_p = 1 almost everywhere.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from torch import nn

from lipbridge import checks
from lipbridge.activations.activation import Activation, Component, Term, derive
from lipbridge.activations.modules import (
    INVERSE_SQRT2,
    Abs,
    Atan,
    CReLU,
    GELUTanh,
    IdentityAbs,
    IdentityAbsL2,
    Sin,
    Sin2Pair,
    SinCos,
)
from lipbridge.activations.scalar_functions import GELU_CUBE, SCALAR_FUNCTIONS
from lipbridge.errors import InvalidArgument, UnknownName
from lipbridge.rounding.scalars import up
from lipbridge.vocabulary import NORMS, Norm

_SQRT2_UP = up(math.sqrt(2.0))


_ALL: frozenset[Norm] = frozenset(NORMS)


def _facts(one: float, two: float, infinity: float) -> dict[Norm, float]:
    return {1: one, 2: two, "inf": infinity}


def _scalar(name: str, defaults: Mapping[str, float] | None = None) -> Activation:
    values = dict(defaults or {})
    return derive(name, ((Term(name, parameters=tuple(values.values())),),), values)


@dataclass(frozen=True)
class Row:
    """A registry row: the activation with its facts, and the factory of its module (keyword parameters allowed)."""

    activation: Activation
    module: Callable[..., nn.Module]


#: The factors are those that torch multiplies by: scale * elu(t; alpha).
SELU: tuple[Component, ...] = (
    (Term("elu", 1.0507009873554804934193349852946, parameters=(1.6732632423543772848170429916717,)),),
)


_SIXTH = up(1.0 / 6.0)


#: min(max(t + 3, 0), 6) / 6, with 1/6 rounded up: the module's function is this times a factor of at most one.
HARDSIGMOID: tuple[Component, ...] = ((Term("relu", -_SIXTH, offset=-3.0), Term("relu", _SIXTH, offset=3.0)),)


_T = Term("identity")


_REGISTRY: dict[str, Row] = {}


def register(activation: Activation, module: Callable[..., nn.Module]) -> None:
    """Add an activation to the registry under its name. A new activation is one call, from any file or package.

    Raises:
        InvalidArgument: if the name is taken.
    """
    if activation.name in _REGISTRY:
        raise InvalidArgument("activation.name", "be new to the registry", activation.name)
    _REGISTRY[activation.name] = Row(activation, module)


def _register_all() -> None:
    relu, minus_relu = Term("relu"), Term("relu", scale=-1.0)
    register(Activation("abs", ((Term("abs"),),), _facts(1, 1, 1), ((-1.0, 1.0),), _ALL), Abs)
    register(Activation("crelu", ((relu,), (minus_relu,)), _facts(1, 1, 1), ((0.0, 1.0), (-1.0, 0.0)), _ALL), CReLU)
    register(
        Activation(
            "sincos",
            ((Term("sin"),), (Term("cos"),)),
            _facts(_SQRT2_UP, 1, 1),
            ((-1.0, 1.0), (-1.0, 1.0)),
            frozenset({2}),
        ),
        SinCos,
    )
    register(
        Activation(
            "identity_abs",
            ((_T,), (Term("abs"),)),
            _facts(2, _SQRT2_UP, 1),
            ((1.0, 1.0), (-1.0, 1.0)),
            frozenset({"inf"}),
        ),
        IdentityAbs,
    )
    c = INVERSE_SQRT2
    register(
        Activation(
            "identity_abs_l2",
            ((Term("identity", scale=c),), (Term("abs", scale=c),)),
            # Rounded up, so that they hold for (t, |t|) divided by the float64 number sqrt(2) as well.
            _facts(up(2 * c), 1, up(c)),
            ((c, up(c)), (-up(c), up(c))),
            frozenset({2}),
        ),
        IdentityAbsL2,
    )
    half = Term("identity", scale=0.5)
    register(
        Activation(
            "sin2_pair",
            ((half, Term("sin_squared", 0.5)), (half, Term("sin_squared", -0.5))),
            _facts(1, 1, 1),
            ((0.0, 1.0), (0.0, 1.0)),
            frozenset({1}),
        ),
        Sin2Pair,
    )
    register(_scalar("relu"), nn.ReLU)
    register(_scalar("leaky_relu", {"negative_slope": 0.01}), nn.LeakyReLU)
    register(_scalar("tanh"), nn.Tanh)
    register(_scalar("sigmoid"), nn.Sigmoid)
    register(_scalar("softplus", {"beta": 1.0}), nn.Softplus)
    register(_scalar("sin"), Sin)
    register(_scalar("silu"), nn.SiLU)
    register(_scalar("gelu"), nn.GELU)
    register(_scalar("elu", {"alpha": 1.0}), nn.ELU)
    register(derive("selu", SELU), nn.SELU)
    register(_scalar("celu", {"alpha": 1.0}), nn.CELU)
    register(derive("hardsigmoid", HARDSIGMOID), nn.Hardsigmoid)
    register(derive("gelu_tanh", ((Term("gelu_tanh", parameters=(GELU_CUBE,)),),)), GELUTanh)
    register(_scalar("mish"), nn.Mish)
    register(_scalar("hardswish"), nn.Hardswish)
    register(_scalar("softsign"), nn.Softsign)
    register(_scalar("atan"), Atan)


def activation_names() -> list[str]:
    """The names of all registered activations."""
    return list(_REGISTRY)


def activation(name: str) -> Activation:
    """The facts of a registered activation.

    Raises:
        UnknownName: with the list of known names.
    """
    return _row(name).activation


def activation_module(name: str, **parameters: float) -> nn.Module:
    """A new module of a registered activation, e.g. ``activation_module("leaky_relu", negative_slope=0.1)``."""
    return _row(name).module(**parameters)


def _row(name: str) -> Row:
    checks.instance(name, str, "activation", "be the name of an activation")
    if name not in _REGISTRY:
        raise UnknownName("activation", name, _REGISTRY)
    return _REGISTRY[name]


def recognise(components: tuple[Component, ...]) -> Activation:
    """The registered activation with exactly these components, or one with facts derived from them."""
    spelling = _canonical(components)
    for row in _REGISTRY.values():
        if spelling == _canonical(row.activation.components):
            return row.activation
    if len(components) == 1 and len(components[0]) == 1:
        term = components[0][0]
        function = SCALAR_FUNCTIONS[term.function]
        if (term.coefficient, term.scale, term.offset) == (1.0, 1.0, 0.0):
            return derive(term.function, components, dict(zip(function.parameters, term.parameters, strict=True)))
    names = [" + ".join(_spell(term) for term in component) for component in components]
    return derive(names[0] if len(names) == 1 else f"joint({', '.join(names)})", components)


def _canonical(components: tuple[Component, ...]) -> tuple[Component, ...]:
    return tuple(tuple(sorted(term.canonical for term in component)) for component in components)


def _spell(term: Term) -> str:
    if term.function == "identity" and term.scale == 0.0:
        return f"{term.coefficient * term.offset:g}"
    inner = "t" if term.scale == 1.0 else f"{term.scale:g} t"
    inner += f" + {term.offset:g}" if term.offset else ""
    body = inner if term.function == "identity" else f"{term.function}({inner})"
    return body if term.coefficient == 1.0 else f"{term.coefficient:g} {body}"


def saturating(norm: Norm) -> list[str]:
    """The names of the registered activations that saturate ``norm``."""
    return [name for name, row in _REGISTRY.items() if norm in row.activation.saturates]


_register_all()

__all__ = ["activation", "activation_module", "activation_names", "recognise", "register", "saturating"]
