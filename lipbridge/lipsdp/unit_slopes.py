"""Units apart: the constraint of an activation layer where every unit has slopes of its own.

On a region each unit's source stays in an interval, and its functions have slopes in [a, b] there
(:mod:`lipbridge.activations.slopes`). With ``c = (a + b)/2`` and ``r = (b - a)/2`` the increments are ``y = c z + r
q``, ``q^2 <= z^2``: the constraint of :mod:`lipbridge.lipsdp.constraints` with factors of the unit. The factors are
multiplied into the columns of the next layer's weight, so that what remains is one rule for the whole layer: its
"outputs" are z and q themselves. A unit with a = b has no q, one with a = b = 0 no column at all.

As [a, b] lies in the global interval, so does the constraint (S-lemma), and the least bound is never above the global
one. The exception is a joint constraint (sin, cos), which says something that slopes do not: there both are tried.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

import torch
from torch import Tensor

from lipbridge.activations.activation import Activation, Component, Term
from lipbridge.activations.scalar_functions import SCALAR_FUNCTIONS
from lipbridge.activations.slopes import LOCAL, Slopes, component_slopes, function_slopes
from lipbridge.linalg import eigenvalues, vector_norm
from lipbridge.lipsdp.constraints import NARROW, Increments, increments_of
from lipbridge.rounding.outward import SMALLEST, product
from lipbridge.rounding.scalars import TINY, UNIT

#: Centres of slopes are rounded to this grid where several terms are added up, so that most sums are exact.
GRID = 2.0**26
#: Factors that are multiples of this are coarse: products with the grid, and their sums, are exact.
COARSE = 2.0**20
#: With coefficients below this, products could underflow: such activations keep their global rule.
LEAST_FACTOR = 2.0**-400


@dataclass(frozen=True, eq=False)
class SeparateShares:
    """What the closed form reads of a layer whose units differ.

    Attributes:
        weight: ``(m, K u)``: the layer after the activation, each unit's columns times its slope bound s.
        share: ``(constraints, u)``: the unit's multiplier where what follows is bounded by ``|y|^2``, over s^2.
    """

    weight: Tensor
    share: Tensor


@dataclass(frozen=True, eq=False)
class UnitRule:
    """The rule of a layer with slopes of each unit.

    Attributes:
        increments: what is left to say for all units alike; its outputs are the blocks.
        blocks: ``(component, factors)``, factors ``(u,)`` of at most one: block i of the new weight is the component's
            columns times them.
        alive: bool ``(K, u)``: the outputs that may vary.
        free: bool ``(u,)``: the units with a q.
        size: ``(u,)``: s, an upper bound of |y| / |z| up to rounding.
        share: as in :class:`Apart`.
    """

    increments: Increments
    blocks: tuple[tuple[int, Tensor], ...]
    alive: Tensor
    free: Tensor
    size: Tensor
    share: Tensor

    def only(self, kept: Tensor) -> UnitRule:
        """The rule of some of the units; without variables if none of these has a q."""
        blocks = tuple((k, factors[kept]) for k, factors in self.blocks)
        free, rule, share = self.free[kept], self.increments, self.share[:, kept]
        if not bool(free.any()):
            rule, share = Increments(rule.outputs[:, :1], rule.radius[:, :1], ()), share[:0]
        return UnitRule(rule, blocks, self.alive[:, kept], free, self.size[kept], share)

    def weight(self, W: Tensor) -> Tensor:
        """The weight ``(m, K u)`` after the activation as one after the blocks, ``(m, K' u)``.

        Each entry is within a few ulp of itself.
        """
        columns = W.reshape(W.shape[0], *self.alive.shape)
        return torch.cat([columns[:, k] * factors for k, factors in self.blocks], dim=1)

    def separate(self, W: Tensor) -> SeparateShares:
        """The closed form's view of the same weight."""
        columns = W.reshape(W.shape[0], *self.alive.shape)
        return SeparateShares((columns * self.size).flatten(1), self.share)


def is_joint(activation: Activation) -> bool:
    """Whether the activation's global rule is a joint constraint, below what its slopes imply."""
    rule = increments_of(activation)
    return rule.variables > rule.constraints


def unit_rule(activation: Activation, lower: Tensor, upper: Tensor, *, joint: bool = True) -> UnitRule | None:
    """The rule for sources in ``[lower, upper]``, both ``(u,)`` float64; None if the global rule is as good.

    ``joint`` keeps the global rule where that is a joint constraint.

    Law: for all s, t of a unit's interval the increments of its outputs obey the rule.
    """
    if joint and is_joint(activation):
        return None
    rows = _rows(activation, lower, upper)
    numbers = [abs(value) for row in (rows.lines, *rows.shares) for value in row if value]
    if min(numbers, default=1) < LEAST_FACTOR or rows.everywhere(activation):
        return None
    return _assembled(rows)


@dataclass(frozen=True, eq=False)
class _Rows:
    """Per component its exact line and shares of atoms; per atom its slopes ``(u,)`` on the intervals."""

    lines: list[Fraction]
    shares: list[list[Fraction]]
    slopes: list[Slopes]
    bounds: list[tuple[float, float]]

    def everywhere(self, activation: Activation) -> bool:
        """Whether no atom's slopes are narrower than they are globally."""
        if is_joint(activation):
            return False  # slopes alone are another rule, even if they are the global ones
        known = increments_of(activation)
        bounds = self.bounds
        if len(self.lines) == 1:  # the global rule may know more than the registry's interval
            m, r = float(known.outputs[0, 0]), float(known.outputs[0, 1:].sum() + known.radius[0, 0])
            bounds = [(m - r, m + r)]
        tiny = 1e-12
        return all(
            bool(((a <= low + tiny * (high - low)) & (b >= high - tiny * (high - low))).all())
            for (a, b), (low, high) in zip(self.slopes, bounds, strict=True)
        )


def _rows(activation: Activation, lower: Tensor, upper: Tensor) -> _Rows:
    if activation.width == 1:
        interval = activation.slopes[0]
        whole = component_slopes(activation.components[0], interval, lower, upper)
        return _Rows([Fraction(0)], [[Fraction(1)]], [whole], [interval])
    split = [_split(component) for component in activation.components]
    atoms = sorted({atom for _, curved in split for atom in curved}, key=repr)
    slopes: list[Slopes] = []
    bounds: list[tuple[float, float]] = []
    for atom in atoms:
        if atom is None:
            slopes.append(LOCAL["abs"].slopes(lower, upper, ()))
            bounds.append((-1.0, 1.0))
        else:
            slopes.append(function_slopes(atom, lower, upper))
            bounds.append(SCALAR_FUNCTIONS[atom.function].slopes(atom.parameters))
    shares = [[curved.get(atom, Fraction(0)) for atom in atoms] for _, curved in split]
    return _Rows([line for line, _ in split], shares, slopes, bounds)


def _split(component: Component) -> tuple[Fraction, dict[Term | None, Fraction]]:
    """``line t + sum of share * atom``: the atom None is |t|, the others are terms without their coefficient.

    A term's slope is ``share`` times its function's, at the term's argument.
    """
    line, curved = Fraction(0), dict[Term | None, Fraction]()
    for term in component:
        factor = Fraction(term.coefficient) * Fraction(term.scale)
        sides = SCALAR_FUNCTIONS[term.function].sides(term.parameters)
        if sides is not None and (term.offset == 0.0 or sides[0] == sides[1]):
            left, right = sides if term.scale >= 0 else (sides[1], sides[0])
            line += factor * (Fraction(left) + Fraction(right)) / 2
            atom, share = None, factor * (Fraction(right) - Fraction(left)) / 2
        else:
            atom, share = Term(term.function, 1.0, term.scale, term.offset, term.parameters), factor
        if share:
            curved[atom] = curved.get(atom, Fraction(0)) + share
    return line, {atom: share for atom, share in curved.items() if share}


def _coarse(values: Tensor) -> Tensor:
    """Where numbers are multiples of 1 / COARSE of moderate size, so that a few sums of them are exact."""
    return ((values * COARSE).round() == values * COARSE) & (values.abs() <= 4.0)


def _around(a: Tensor, b: Tensor, *, grid: bool) -> Slopes:
    """``(c, r)`` with [a, b] within [c - r, c + r], in exact arithmetic."""
    exact = _coarse(a) & _coarse(b)
    c = torch.where(a == b, a, 0.5 * a + 0.5 * b)
    if grid:
        c = torch.where(exact, c, (c * GRID).round() / GRID)
    r = torch.maximum(b - c, c - a)
    above = torch.nextafter(r, torch.full_like(r, math.inf))
    return c, torch.where(exact | ((a == c) & (b == c)), r, above)


def _assembled(rows: _Rows) -> UnitRule:
    K, A = len(rows.lines), len(rows.slopes)
    around = [_around(a, b, grid=K > 1) for a, b in rows.slopes]
    like = rows.slopes[0][0] if A else torch.zeros(0, dtype=torch.float64)
    lines: list[Tensor] = []
    unknown: list[Tensor] = []
    curved: list[list[Tensor]] = []
    for line, exact_shares in zip(rows.lines, rows.shares, strict=True):
        shares = _floats(exact_shares)
        addends = [torch.full_like(like, float(line)), *(s * c for s, (c, _) in zip(shares, around, strict=True))]
        total = torch.stack(addends).sum(0)
        magnitude, count = torch.stack(addends).abs().sum(0), (torch.stack(addends) != 0).sum(0)
        plain = bool(_coarse(torch.tensor([float(line), *shares], dtype=torch.float64)).all()) and all(
            Fraction(value) == exact for value, exact in zip([float(line), *shares], [line, *exact_shares], strict=True)
        )
        # One addend is known to a few ulp of itself; several are exact if all are on a grid, or else uncertain.
        error = torch.where((count <= 1) | plain, 0.0, 4.0 * (A + 2) * UNIT * magnitude)
        error = error + _underflow(shares, [c for c, _ in around])
        own: list[Tensor] = []
        for s, (_, r) in zip(shares, around, strict=True):
            spread = product(torch.full_like(r, abs(s)), r)
            narrow = spread <= NARROW * total.abs()  # hardly curved: a line with an uncertain slope
            error = torch.where(narrow & (spread > 0), error + spread * (1.0 + 8.0 * UNIT), error)
            own.append(torch.where(narrow, 0.0, product(torch.full_like(r, s), r)))
        lines.append(total)
        unknown.append(error * (1.0 + 8.0 * UNIT))
        curved.append(own)
    return _blocks(lines, curved, unknown)


def _underflow(shares: Sequence[float], centres: Sequence[Tensor]) -> Tensor | float:
    """What the products of shares and centres lose to underflow; zero where none can."""
    lost: Tensor | float = 0.0
    for s, c in zip(shares, centres, strict=True):
        small = (c != 0) & ((s * c).abs() < SMALLEST) if abs(s) not in (0.0, 1.0) else torch.zeros_like(c)
        lost = lost + small.to(c.dtype) * TINY
    return lost


def _floats(values: Sequence[Fraction]) -> list[float]:
    return [float(value) for value in values]


def _blocks(lines: list[Tensor], curved: list[list[Tensor]], unknown: list[Tensor]) -> UnitRule:
    K, u = len(lines), lines[0].numel()
    used = [j for j in range(len(curved[0])) if any(bool(row[j].any()) for row in curved)]
    J = len(used)
    largest = max(float(t.abs().max()) for t in [*lines, *unknown, *(t for row in curved for t in row)])
    scale = 2.0 ** math.frexp(largest)[1] if largest > 0.0 else 1.0
    blocks: list[tuple[int, Tensor]] = []
    outputs: list[Tensor] = []
    radii: list[Tensor] = []

    def add(k: int, factors: Tensor, column: int, *, known: bool = True) -> None:
        if not bool(factors.any()):
            return
        row = torch.zeros(1 + J, dtype=torch.float64)
        row[column] = scale
        blocks.append((k, factors / scale))
        outputs.append(row if known else torch.zeros_like(row))
        radii.append(torch.zeros_like(row) if known else row)

    for k in range(K):
        add(k, lines[k], 0)
        for column, j in enumerate(used, start=1):
            add(k, curved[k][j], column)
        add(k, unknown[k], 0, known=False)
    if not blocks:  # every unit is constant on its interval
        blocks.append((0, torch.zeros(u, dtype=torch.float64)))
        outputs.append(torch.zeros(1 + J, dtype=torch.float64))
        radii.append(torch.zeros(1 + J, dtype=torch.float64))
    rule = Increments(torch.stack(outputs), torch.stack(radii), tuple(range(J)))
    alive = torch.stack([(torch.stack([lines[k], unknown[k], *curved[k]]) != 0).any(0) for k in range(K)])
    m = torch.stack(lines, -1)
    if not J:
        none = torch.zeros(u, dtype=torch.bool)
        return UnitRule(rule, tuple(blocks), alive, none, vector_norm(m, 2, -1), m.new_zeros(0, u))
    R = torch.stack([torch.stack([row[j] for j in used], -1) for row in curved], -2)  # (u, K, J)
    spread = eigenvalues(R.transpose(-1, -2) @ R)[..., -1].clamp_min(0.0)
    cross = vector_norm((R.transpose(-1, -2) @ m[..., None]).squeeze(-1), 2, -1)
    square = J * spread + 2.0 * math.sqrt(J) * cross + m.square().sum(-1)
    free = R.flatten(1).any(1)
    share = torch.where(free, (spread + cross / math.sqrt(J)) / torch.where(free, square, 1.0), 1.0)
    return UnitRule(rule, tuple(blocks), alive, free, square.sqrt(), share.expand(J, u).clone())
