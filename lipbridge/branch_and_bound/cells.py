"""Cells: the regions of the input on which some units keep their pieces, points inside them, and proofs of emptiness.

A cell is ``{x : G (x, 1) > 0}``: each row of G says that the argument of a unit, affine on the cell, lies above or
below one of its kinks. Only interiors count (:mod:`lipbridge.branch_and_bound.search` says why). By Gordan's theorem
exactly one of two things exists: such a point, or ``lambda >= 0``, not zero, with ``lambda' G = 0`` (with the rows of
the cone over the inputs). Both come from one non-negative least squares problem, min |[G 1]' lambda - (0, 1)|: its
residual is the deepest point of the cone, or its solution the proof.

Proofs hold after rounding, for all rows within their errors. On a ball, what ``lambda' G`` may be there is bounded.
Everywhere it must vanish exactly: for n + 1 rows in general position a solution near the computed one exists by a
residual and an approximate inverse (Krawczyk), and its sign is certain if it is far enough from zero; rows that depend
on each other otherwise are left to fractions (:mod:`lipbridge.branch_and_bound.rational`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import nnls

from lipbridge.rounding.scalars import FLOOR, gamma
from lipbridge.vocabulary import Norm

Array = NDArray[Any]
#: Residuals below this are taken for zero, and the proof is tried.
ZERO = 1e-9
#: Supporting planes of a round ball that are added at most.
PLANES = 40
#: A proof on a ball is first sought on one that is larger by this.
LARGER = 1.0 + 1e-6


@dataclass(frozen=True)
class Domain:
    """Where the coordinates lie: everywhere, or in a ball with center ``(N,)``."""

    size: int
    center: Array | None = None
    radius: float = 0.0
    norm: Norm = 2


@dataclass(frozen=True)
class Empty:
    """A multiplier of each row that shows that a cell is empty; ``proved`` after rounding."""

    multipliers: Array
    proved: bool


def look(domain: Domain, rows: Array, errors: Array) -> Array | Empty | None:
    """A point inside the cell of ``rows`` ``(m, N + 1)``, or why there is none; None if neither was found.

    ``errors`` is of the shape of ``rows``. On a ball a slightly larger one is looked at first: a proof that the cell is
    empty there leaves room for rounding.
    """
    if domain.center is None:
        return _look(domain, rows, errors)
    larger = Domain(domain.size, domain.center, domain.radius * LARGER, domain.norm)
    found = _look(larger, rows, errors)
    if isinstance(found, Empty):
        sure = found.proved or _empty_on_ball(domain, rows, errors, found.multipliers)
        return Empty(found.multipliers, sure)
    if found is not None and _size(domain, found) < domain.radius * (1.0 - 1e-9):
        return found
    return _look(domain, rows, errors)


def _look(domain: Domain, rows: Array, errors: Array) -> Array | Empty | None:
    cone = domain.center is None and not rows[:, -1].any() and not errors[:, -1].any()
    if cone:
        rows, errors = rows[:, :-1], errors[:, :-1]
    sizes = np.linalg.norm(rows, axis=1)
    sizes = np.where(sizes > 0, sizes, 1.0)
    more = np.zeros((0, rows.shape[1])) if cone else given(domain)
    if not len(rows) + len(more):  # the whole space; scipy's routine crashes on no columns
        return np.ones(domain.size)
    for _ in range(PLANES):
        G = np.concatenate([rows / sizes[:, None], more])
        try:
            answer = nnls(np.concatenate([G.T, np.ones((1, len(G)))]), _last(G.shape[1] + 1))
        except RuntimeError:  # too many iterations
            return None
        found, residual = cast(tuple[Array, float], answer)
        if residual < ZERO:
            multipliers = found[: len(rows)] / sizes
            whole = np.concatenate([rows, more]), np.concatenate([errors, np.zeros_like(more)])
            basis = basis_of(*whole, np.concatenate([multipliers, found[len(rows) :]]))
            return Empty(multipliers, basis is not None and bool(dependent([basis])[0]))
        u = G.T @ found
        if cone:
            return u
        if not u[-1] > 0:
            return None
        x = u[:-1] / u[-1]
        if domain.center is None or _size(domain, x) < domain.radius * (1.0 - 1e-9):
            return x
        if domain.norm == "inf":
            return None
        more = np.concatenate([more, _plane(domain, x)[None]])
    return None


def _last(size: int) -> Array:
    found = np.zeros(size)
    found[-1] = 1.0
    return found


def given(domain: Domain) -> Array:
    """Rows that hold for the inputs: a positive last coordinate, or the box around the ball."""
    N = domain.size
    if domain.center is None:
        return _last(N + 1)[None]
    eye = np.eye(N)
    upper = np.concatenate([-eye, np.nextafter(domain.center + domain.radius, np.inf)[:, None]], 1)
    lower = np.concatenate([eye, np.nextafter(domain.radius - domain.center, np.inf)[:, None]], 1)
    return np.concatenate([upper, lower])


def _size(domain: Domain, x: Array) -> float:
    """The distance of x from the ball's centre, about."""
    return size_in(domain, x - domain.center)


def size_in(domain: Domain, d: Array) -> float:
    """The norm of d that the ball is of, about."""
    d = np.abs(d)
    return float({1: d.sum(), 2: np.linalg.norm(d), "inf": d.max()}[domain.norm])


def _plane(domain: Domain, x: Array) -> Array:
    """A half space that holds the ball and not x, a point outside."""
    assert domain.center is not None
    d = x - domain.center
    normal = np.sign(d) if domain.norm == 1 else d / np.linalg.norm(d)
    room = 4.0 * gamma(domain.size + 8) * (domain.radius + np.abs(normal) @ np.abs(domain.center))
    return np.concatenate([-normal, [domain.radius + normal @ domain.center + room]])


def _empty_on_ball(domain: Domain, rows: Array, errors: Array, multipliers: Array) -> bool:
    """``lambda' G (x, 1) < 0`` at all x of the ball, for all rows within their errors."""
    assert domain.center is not None
    held = multipliers > 0
    y, G, E = multipliers[held], rows[held], errors[held]
    if not len(y):
        return False
    reach = np.abs(domain.center) + domain.radius
    form = y @ G
    size = y @ np.abs(G)
    lost = y @ E + 4.0 * gamma(len(y) + 8) * size
    own = np.abs(form[:-1])
    dual = {1: own.max(), 2: np.linalg.norm(own), "inf": own.sum()}[domain.norm]
    top = form[:-1] @ domain.center + form[-1] + domain.radius * dual
    rounding = 8.0 * gamma(domain.size + 16) * (size[:-1] @ reach + size[-1]) + FLOOR
    return bool(top + (lost[:-1] @ reach + lost[-1]) * (1.0 + 1e-9) + rounding < 0.0)


Basis = tuple[Array, Array]


def basis_of(rows: Array, errors: Array, multipliers: Array) -> Basis | None:
    """The rows that multipliers are of, one more than columns; None if :func:`dependent` could not prove anything."""
    sizes = multipliers * np.linalg.norm(rows, axis=1)
    held = sizes > 1e-11 * sizes.sum()
    G, E = rows[held], errors[held]
    # A row that may vanish is no constraint.
    return (G, E) if len(G) == G.shape[1] + 1 and (np.abs(G) > E).any(1).all() else None


def dependent(bases: Sequence[Basis]) -> Array:
    """Whether ``lambda' G = 0`` has a positive solution for all rows within their errors: for bases of one shape."""
    G, E = (np.stack([basis[i] for basis in bases]) for i in (0, 1))
    size = G.shape[1]
    scale = 1.0 / np.linalg.norm(G, axis=2, keepdims=True)
    ones = np.ones((len(G), 1, size))
    M = np.concatenate([(G * scale).swapaxes(1, 2), ones], 1)
    D = np.concatenate([(E * scale).swapaxes(1, 2), 0.0 * ones], 1) + 4.0 * gamma(4) * np.abs(M)
    R = _inverses(M)
    weights = R[:, :, -1]
    eye, last = np.eye(size), _last(size)
    off = np.abs(eye - R @ M) + np.abs(R) @ D + 4.0 * gamma(size + 8) * (np.abs(R) @ np.abs(M) + eye)
    contraction = off.sum(2).max(1) * (1.0 + 1e-9)
    residual = np.abs(_times(M, weights) - last) + _times(D, np.abs(weights))
    residual = residual + 4.0 * gamma(size + 8) * (_times(np.abs(M), np.abs(weights)) + 1.0)
    with np.errstate(divide="ignore", invalid="ignore"):
        radius = _times(np.abs(R), residual).max(1) / (1.0 - contraction) * (1.0 + 1e-9) + FLOOR
    found: Array = (contraction < 0.5) & (weights > radius[:, None]).all(1)
    return found


def _times(M: Array, x: Array) -> Array:
    return (M @ x[:, :, None])[:, :, 0]


def _inverses(M: Array) -> Array:
    """Inverses of a batch, about; zero where there is none."""
    try:
        return np.linalg.inv(M)
    except np.linalg.LinAlgError:
        if len(M) == 1:
            return np.zeros_like(M)
        return np.concatenate([_inverses(own[None]) for own in M])


def combination(rows: Array, row: Array) -> tuple[Array, Array | None]:
    """Multipliers y >= 0 with ``y' rows = row`` and None; or the nearest, and d with ``rows d >= 0`` and ``row d < 0``.

    Args:
        rows, row: ``(m, N)`` and ``(N,)``. By Farkas' lemma there is one of the two, and never both.
    """
    sizes, size = np.linalg.norm(rows, axis=1), float(np.linalg.norm(row))
    sizes, size = np.where(sizes > 0, sizes, 1.0), size if size > 0 else 1.0
    G, c = rows / sizes[:, None], row / size
    try:
        answer = nnls(G.T, c)
    except RuntimeError:  # too many iterations
        return np.zeros(len(rows)), np.zeros_like(row)
    y, residual = cast(tuple[Array, float], answer)
    return y / sizes * size, None if residual < ZERO else y @ G - c


__all__ = ["Array", "Basis", "Domain", "Empty", "basis_of", "combination", "dependent", "given", "look", "size_in"]
