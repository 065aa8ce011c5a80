"""What LipSDP may know of an activation: quadratic constraints on the increments of its source and its outputs.

Take any two inputs of a unit and let z be the difference of the sources, y the difference of the K outputs. Then
``y = E (z, q_1, ..., q_J)`` for some numbers q_j that obey quadratic inequalities:

* slopes: a function with slopes in [a, b] is ``(a+b)/2 z + (b-a)/2 q`` with ``q^2 <= z^2``. This is the constraint of
  Fazlyab et al. 2019 in another variable, and has no cross terms;
* joint: for K functions of one source with l_2 constant c, ``y = c q`` with ``q_1^2 + ... + q_K^2 <= z^2``.

Functions that are linear on both sides of zero (relu, abs, leaky relu, t itself) share *one* variable, the increment
of |t|: relu(t) = (t + |t|)/2 and relu(-t) = (|t| - t)/2, so CReLU costs one variable and keeps the fact that its two
outputs differ by z. A line such as t in (t, |t|) is exactly a multiple of z and needs no variable at all. Likewise the
sin^2 pair is (z +- q)/2. (sin, cos) has two different functions and a joint constant below what their slopes imply:
it takes the joint constraint.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache

import torch
from torch import Tensor

from lipbridge.activations.activation import Activation, Component
from lipbridge.activations.piecewise_linear import above
from lipbridge.activations.scalar_functions import SCALAR_FUNCTIONS

#: A slope interval narrower than this, relative to its slopes, is a line with an uncertain slope: no variable.
NARROW = 2.0**-36


@dataclass(frozen=True, eq=False)
class Increments:
    """The constraint of every unit of one activation layer.

    Attributes:
        outputs: E, ``(K, 1 + J)`` float64: the outputs as combinations of (z, q_1, ..., q_J).
        radius: ``(K, 1 + J)``: each entry of E is known up to this; the true one may differ from unit to unit.
        group: for each variable q_j the constraint that it belongs to. Constraint c reads
            ``z^2 - (sum of q_j^2 over j in group c) >= 0``.
    """

    outputs: Tensor
    radius: Tensor
    group: tuple[int, ...]

    @property
    def components(self) -> int:
        """K, outputs per unit."""
        return self.outputs.shape[0]

    @property
    def variables(self) -> int:
        """J, free variables per unit."""
        return len(self.group)

    @property
    def constraints(self) -> int:
        """Constraints, and so multipliers, per unit."""
        return max(self.group, default=-1) + 1

    @property
    def cuts(self) -> bool:
        """Whether the outputs do not see z but through q, so that the matrix inequality falls apart here."""
        return not bool(self.outputs[:, 0].any() or self.radius[:, 0].any())


def increments_of(activation: Activation) -> Increments:
    """The tightest of the constraints above that the activation's terms and facts give.

    Law: for all s, t some q with ``z = s - t`` obeys the constraints, and ``g(s) - g(t)`` is ``E (z, q)`` within the
    radius.
    """
    return _increments(activation.components, activation.slopes, activation.lipschitz[2])


@lru_cache(maxsize=256)
def _increments(
    components: tuple[Component, ...], slopes: tuple[tuple[float, float], ...], constant: float
) -> Increments:
    rows = [_decompose(component) for component in components]
    if len(rows) == 1:
        return _single(rows[0], slopes[0])
    atoms = sorted({atom for row in rows for atom in row.curved})
    implied = math.hypot(*(float(abs(row.line) + sum(abs(share) for share in row.curved.values())) for row in rows))
    if len(atoms) > 1 and constant < implied * (1.0 - 1e-9):
        K = len(rows)
        E = torch.zeros(K, 1 + K, dtype=torch.float64)
        E[:, 1:].fill_diagonal_(constant)
        return Increments(E, torch.zeros_like(E), (0,) * K)
    return _assemble([(row.line, [row.curved.get(atom, Fraction(0)) for atom in atoms]) for row in rows])


@dataclass(frozen=True)
class _Row:
    """One component as ``line * z + sum of radius * q`` over its curved atoms, in exact arithmetic."""

    line: Fraction
    curved: Mapping[tuple[object, ...], Fraction]


def _decompose(component: Component) -> _Row:
    line, curved = Fraction(0), dict[tuple[object, ...], Fraction]()
    for term in component:
        function = SCALAR_FUNCTIONS[term.function]
        factor = Fraction(term.coefficient) * Fraction(term.scale)
        sides = function.sides(term.parameters)
        if sides is not None and (term.offset == 0.0 or sides[0] == sides[1]):
            left, right = sides if term.scale >= 0 else (sides[1], sides[0])
            atom: tuple[object, ...] = ("|t|",)
        else:
            left, right = function.slopes(term.parameters)
            atom = (term.function, term.scale, term.offset, *term.parameters)
        line += factor * (Fraction(left) + Fraction(right)) / 2
        share = factor * (Fraction(right) - Fraction(left)) / 2
        if share:
            curved[atom] = curved.get(atom, Fraction(0)) + share
    return _Row(line, {atom: share for atom, share in curved.items() if share})


def _single(row: _Row, slopes: tuple[float, float]) -> Increments:
    """One component takes one variable: the narrower of the interval of its terms and the registry's."""
    line, radius = row.line, sum((abs(share) for share in row.curved.values()), Fraction(0))
    low, high = Fraction(slopes[0]), Fraction(slopes[1])
    if (high - low) / 2 < radius:
        line, radius = (low + high) / 2, (high - low) / 2
    m = Fraction(float(line))
    return _assemble([(m, [radius + abs(line - m)])], round_up=True)


def _assemble(rows: list[tuple[Fraction, list[Fraction]]], *, round_up: bool = False) -> Increments:
    """E and its radius from exact (line, shares) rows; narrow variables become an uncertainty of the line."""
    size = max((abs(value) for line, shares in rows for value in (line, *shares)), default=Fraction(0))
    J = max(len(shares) for _, shares in rows)
    wide = [j for j in range(J) if max(abs(shares[j]) for _, shares in rows) > Fraction(NARROW) * size]
    E = torch.zeros(len(rows), 1 + len(wide), dtype=torch.float64)
    radius = torch.zeros_like(E)
    for k, (line, shares) in enumerate(rows):
        narrow = sum((abs(shares[j]) for j in range(J) if j not in wide), Fraction(0))
        E[k, 0], radius[k, 0] = float(line), above(abs(line - Fraction(float(line))) + narrow)
        for column, j in enumerate(wide, start=1):
            E[k, column] = above(shares[j]) if round_up else float(shares[j])
            radius[k, column] = 0.0 if round_up else above(abs(shares[j] - Fraction(float(shares[j]))))
    return Increments(E, radius, tuple(range(len(wide))))
