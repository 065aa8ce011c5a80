"""The check of a proof, in fractions from the Graph's numbers to the answer.

The parts that splits make are closed and cover the inputs. The network is affine on finitely many regions with an
interior that are dense; on each, an argument stays on one side of each kink, and where it is a kink all over, its
slope does not count. So the constant is at most the largest bound of the leaves that are not empty.

A leaf is empty if its arguments' distances g_i > 0 from kinks, affine and none of them zero, have multipliers
``y >= 0``, not all zero, for which ``sum y_i g_i <= 0`` at all points: everywhere, or on the ball.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction

from lipbridge.checking.network import Exact, Forms, Network, fractions, zeros
from lipbridge.checking.norms import norm_at_most, only_dependence, vector_at_most
from lipbridge.checking.proof import Empty, Proof, Split, Step
from lipbridge.errors import ProofRefused, UnsupportedProblem
from lipbridge.norms.matrix import CHEAP_PAIRS
from lipbridge.problem.problem import Problem
from lipbridge.vocabulary import Quantity

Pieces = tuple[int, ...]


@dataclass(frozen=True)
class Checked:
    """What a proof shows: the constant is between ``lower`` and ``upper``; with the numbers of leaves."""

    lower: float
    upper: float
    leaves: int
    empty: int


@dataclass(frozen=True, eq=False)
class Domain:
    """A ball with center ``(n,)`` in fractions."""

    center: list[Fraction]
    radius: Fraction
    norm: object


def check(proof: Proof) -> Checked:
    """Check a proof; nothing in it is believed.

    Raises:
        ProofRefused: with the first step that does not hold.
        UnsupportedProblem: for networks, norms or quantities that the checker does not know.
    """
    problem = proof.problem
    network = network_of(problem)
    steps = iter(enumerate(proof.steps))
    upper, leaves, empty = 0.0, 0, 0
    for domain in domains_of(problem):
        waiting: list[tuple[Pieces, Pieces]] = [((0,) * len(network.units), network.last)]
        while waiting:
            low, high = waiting.pop()
            number, step = _next(steps, len(proof.steps))
            if isinstance(step, Split):
                waiting += reversed(children(step, low, high, number))
                continue
            leaves += 1
            forms = network.forms(low, high)
            if isinstance(step, Empty):
                empty += 1
                if not is_empty(step, network, forms, low, high, domain):
                    raise ProofRefused(f"step {number}, a part said to be empty, is not shown to be so")
            elif not is_bounded(step.bound, forms, problem):
                raise ProofRefused(f"step {number}, a part said to have the bound {step.bound!r}, is not shown to")
            else:
                upper = max(upper, step.bound)
    if next(steps, None) is not None:
        raise ProofRefused("it has steps that belong to no part")
    if upper > proof.upper:
        raise ProofRefused(f"its parts show {upper!r}, not the bound {proof.upper!r} that it states")
    return Checked(_lower(proof, network), upper, leaves, empty)


def network_of(problem: Problem) -> Network:
    """The problem's network in fractions.

    Raises:
        UnsupportedProblem: as :func:`check`.
    """
    if problem.quantity is not Quantity.LIPSCHITZ:
        raise UnsupportedProblem("The checker knows proofs of Lipschitz constants alone.")
    if (problem.input_norm, problem.output_norm) not in CHEAP_PAIRS:
        raise UnsupportedProblem(f"The checker does not know the norm {problem.norm_name}, which is NP-hard.")
    return Network(problem.graph)


def domains_of(problem: Problem) -> list[Domain | None]:
    """The balls, or None for everywhere."""
    region = problem.region
    if region is None:
        return [None]
    centers = fractions(region.centers.flatten(1))
    return [Domain(list(center), Fraction(float(region.radius)), region.norm) for center in centers]


def _next(steps: Iterator[tuple[int, Step]], count: int) -> tuple[int, Step]:
    found = next(steps, None)
    if found is None:
        raise ProofRefused(f"it ends at step {count}, before all parts are bounded")
    return found


def children(step: Split, low: Pieces, high: Pieces, number: int) -> list[tuple[Pieces, Pieces]]:
    """Both parts of a split."""
    i, k = step.unit, step.kink
    if not (0 <= i < len(low) and low[i] <= k < high[i]):
        raise ProofRefused(f"step {number} splits unit {i} at kink {k}, which is not inside its part")
    under, above = list(high), list(low)
    under[i], above[i] = k, k + 1
    return [(low, tuple(under)), (tuple(above), high)]


def row_of(network: Network, forms: Forms, low: Pieces, high: Pieces, unit: int, side: int) -> Exact | None:
    """``(n + 1,)``: what is above zero inside the part as a unit is on a side of a kink; None if nothing is known."""
    if not 0 <= unit < len(low) or not forms.affine(unit):
        return None
    kinks = network.units[unit].kinks
    if side not in (0, 1) or (low[unit] == 0 if side == 0 else high[unit] == len(kinks)):
        return None
    row = forms.arguments[unit][: forms.n + 1].copy()
    row[-1] = row[-1] - (kinks[low[unit] - 1] if side == 0 else kinks[high[unit]])
    row = row if side == 0 else -row
    return row if any(row) else None


def is_empty(step: Empty, network: Network, forms: Forms, low: Pieces, high: Pieces, domain: Domain | None) -> bool:
    """Whether a part is shown to have no interior."""
    rows: list[Exact] = []
    for unit, side in step.rows:
        row = row_of(network, forms, low, high, unit, side)
        if row is None:
            return False
        rows.append(row)
    if not rows:
        return False
    if not step.weights or domain is None:
        return not step.weights and _contradict(rows)
    if len(step.weights) != len(rows) or not all(math.isfinite(w) and w >= 0 for w in step.weights):
        return False
    if not any(step.weights):
        return False
    total = sum((Fraction(w) * row for w, row in zip(step.weights, rows, strict=True)), zeros(forms.n + 1))
    middle = total[:-1] @ domain.center + total[-1] if forms.n else total[-1]
    dual = {1: "inf", 2: 2, "inf": 1}[domain.norm]  # type: ignore[index]
    return middle <= 0 and vector_at_most(domain.radius * total[:-1], -middle, dual)  # type: ignore[arg-type]


def _contradict(rows: list[Exact]) -> bool:
    """Whether the rows, or their parts without the constant, depend in one way alone that is a contradiction."""
    for whole in (False, True):
        y = only_dependence([list(row) if whole else list(row[:-1]) for row in rows])
        if y is None:
            continue
        y = [-value for value in y] if min(y) < 0 else y
        if min(y) >= 0 and sum(a * row[-1] for a, row in zip(y, rows, strict=True)) <= 0:
            return True
    return False


def is_bounded(bound: float, forms: Forms, problem: Problem) -> bool:
    """Whether no Jacobian of a part has a larger norm."""
    if not math.isfinite(bound):
        return False
    return norm_at_most(forms.jacobian, forms.known, Fraction(bound), problem.input_norm, problem.output_norm)


def _lower(proof: Proof, network: Network) -> float:
    """What the witness shows, rounded down; zero without one."""
    witness, problem = proof.witness, proof.problem
    if witness is None:
        return 0.0
    points = fractions(witness.points.flatten(1))
    region = problem.region
    if len(points) != (2 if witness.direction is None else 1) or points.shape[1] != network.n:
        raise ProofRefused("its witness is of the wrong shape")
    domains = domains_of(problem)
    if region is not None and not any(
        all(vector_at_most(point - domain.center, domain.radius, region.norm) for point in points)
        for domain in domains
        if domain is not None
    ):
        raise ProofRefused("its witness lies outside the balls")
    pieces, value = network.at(points[0])
    if witness.direction is None:
        step, image = points[1] - points[0], network.at(points[1])[1] - value
    elif pieces is None:
        raise ProofRefused("its witness lies on a kink")
    else:
        step = fractions(witness.direction.flatten())
        if len(step) != network.n:
            raise ProofRefused("its witness is of the wrong shape")
        image = network.forms(pieces, pieces).jacobian @ step
    if not any(step):
        raise ProofRefused("its witness has no direction")
    return _quotient_down(list(image), list(step), problem)


def _quotient_down(image: Sequence[Fraction], step: Sequence[Fraction], problem: Problem) -> float:
    def square(x: Sequence[Fraction], norm: object) -> Fraction:
        if norm == 2:
            return sum((entry * entry for entry in x), Fraction(0))
        sizes = [abs(entry) for entry in x]
        return (sum(sizes, Fraction(0)) if norm == 1 else max(sizes)) ** 2

    exact = square(image, problem.output_norm) / square(step, problem.input_norm)
    found = math.sqrt(float(exact))
    while found > 0.0 and Fraction(found) ** 2 > exact:
        found = math.nextafter(found, 0.0)
    return found


__all__ = ["Checked", "Domain", "check", "children", "domains_of", "is_bounded", "is_empty", "network_of", "row_of"]
