"""Proofs of upper bounds as data: a tree that splits the inputs by arguments of units, and what backs each leaf.

A unit is one entry of the input of a piecewise linear activation, numbered in the order of the Graph's nodes; its
pieces lie between the kinks of all components of the activation. A split says: the argument lies below kink k (pieces
up to k), or above it (pieces from k + 1). Whatever the tree, that covers everything.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from lipbridge.problem.bound import Witness
from lipbridge.problem.problem import Problem


@dataclass(frozen=True)
class Split:
    """The two parts where a unit's argument is below and above a kink, in this order."""

    unit: int
    kink: int


@dataclass(frozen=True)
class Empty:
    """A part without interior: its arguments' constraints contradict each other.

    ``rows`` are units with the side: 0 for above the lower end of their pieces, 1 for below the upper one. ``weights``
    are multipliers that show it on the ball. Where there are none, the rows contradict each other everywhere, with the
    only multipliers that they have, which are found again.
    """

    rows: tuple[tuple[int, int], ...]
    weights: tuple[float, ...]


@dataclass(frozen=True)
class Bounded:
    """A part on which no Jacobian has a larger norm than ``bound``."""

    bound: float


Step = Split | Empty | Bounded


@dataclass(frozen=True, eq=False)
class Proof:
    """That a problem's constant is at most ``upper``: ``steps`` in preorder, one tree after the other for each ball."""

    problem: Problem
    upper: float
    steps: tuple[Step, ...] = field(repr=False)
    witness: Witness | None = None


__all__ = ["Bounded", "Empty", "Proof", "Split", "Step"]
