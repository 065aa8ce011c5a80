"""Proofs for the checker: a tree of its own, of the parts that it can bound, down to a bound that is known already.

The search's tree closes parts by multipliers and by rounding errors of its own. A proof shall need neither, so it is
made anew once the constant is known: parts are split until their entries' bounds, or their known Jacobian, are at most
that number, or they are empty. That takes more parts than the search did.
"""

from __future__ import annotations

import heapq
import itertools
import math
import time
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lipbridge.branch_and_bound import cells
from lipbridge.checking.check import Domain, Pieces, children, domains_of, is_bounded, is_empty, network_of, row_of
from lipbridge.checking.network import Exact, Forms, Network
from lipbridge.checking.proof import Bounded, Empty, Proof, Split, Step
from lipbridge.problem.bound import Witness
from lipbridge.problem.problem import Problem


@dataclass(eq=False)
class _Part:
    low: Pieces
    high: Pieces
    domain: Domain | None
    step: Step
    branch: Split | None = None
    parts: tuple[_Part, _Part] | None = None


def prove(problem: Problem, upper: float, *, seconds: float, witness: Witness | None = None) -> Proof:
    """A proof that the constant is at most ``upper``, or, at the time limit, of a larger bound.

    Args:
        problem: of a network that the checker knows.
        upper: a bound that is known to hold.
        seconds: wall time.
        witness: of a lower bound, to be kept beside it.

    Raises:
        UnsupportedProblem: for networks that the checker does not know.
    """
    deadline = time.perf_counter() + seconds
    maker = _Maker(problem, upper)
    first: Pieces = (0,) * len(maker.network.units)
    roots = [maker.part(first, maker.network.last, domain) for domain in domains_of(problem)]
    count = itertools.count()
    heap = [(-_size(root), next(count), root) for root in roots if root.branch is not None]
    heapq.heapify(heap)
    while heap and time.perf_counter() < deadline:
        part = heapq.heappop(heap)[2]
        assert part.branch is not None
        one, other = (maker.part(low, high, part.domain) for low, high in children(part.branch, part.low, part.high, 0))
        part.parts = one, other
        for child in part.parts:
            if child.branch is not None:
                heapq.heappush(heap, (-_size(child), next(count), child))
    steps: list[Step] = []
    waiting = list(reversed(roots))
    while waiting:
        part = waiting.pop()
        if part.parts is None or part.branch is None:
            steps.append(part.step)
        else:
            steps.append(part.branch)
            waiting += reversed(part.parts)
    shown = max((step.bound for step in steps if isinstance(step, Bounded)), default=0.0)
    return Proof(problem, shown, tuple(steps), witness)


def _size(part: _Part) -> float:
    return part.step.bound if isinstance(part.step, Bounded) else 0.0


class _Maker:
    def __init__(self, problem: Problem, upper: float) -> None:
        self.problem, self.upper = problem, upper
        self.network: Network = network_of(problem)

    def part(self, low: Pieces, high: Pieces, domain: Domain | None) -> _Part:
        """A part with what can be said of it, and where it is to be split if that is not enough."""
        forms = self.network.forms(low, high)
        if self.estimate(forms) <= self.upper * (1.0 + 1e-9) and is_bounded(self.upper, forms, self.problem):
            return _Part(low, high, domain, Bounded(self.upper))
        empty = self.empty(forms, low, high, domain)
        if empty is not None:
            return _Part(low, high, domain, empty)
        return _Part(low, high, domain, Bounded(self.bound(forms)), self.branch(forms, low, high))

    def estimate(self, forms: Forms) -> float:
        J = _floats(forms.jacobian)
        p, q = self.problem.input_norm, self.problem.output_norm
        if (p, q) == (2, 2):
            if forms.known:
                return float(np.linalg.norm(J, 2))
            J = abs(J)
            return float(min(np.linalg.norm(J), math.sqrt(J.sum(0).max() * J.sum(1).max())))
        if p == 1:
            return float(np.linalg.norm(J, {1: 1, 2: 2, "inf": np.inf}[q], axis=0).max())
        return float(np.linalg.norm(J, 1 if p == "inf" else 2, axis=1).max())

    def bound(self, forms: Forms) -> float:
        size, room = self.estimate(forms) + 2.0**-500, 1e-15
        while not is_bounded(size * (1.0 + room), forms, self.problem):
            room *= 10.0
        return size * (1.0 + room)

    def empty(self, forms: Forms, low: Pieces, high: Pieces, domain: Domain | None) -> Empty | None:
        places: list[tuple[int, int]] = []
        rows: list[Exact] = []
        for unit, side in itertools.product(range(len(low)), (0, 1)):
            row = row_of(self.network, forms, low, high, unit, side)
            if row is not None:
                places.append((unit, side))
                rows.append(row)
        if not rows:
            return None
        own = cells.Domain(forms.n)
        if domain is not None:
            region = self.problem.region
            assert region is not None
            center = np.array([float(value) for value in domain.center])
            own = cells.Domain(forms.n, center, float(region.radius), region.norm)
        G = _floats(np.stack(rows))
        answer = cells.look(own, G, np.zeros_like(G))
        if not isinstance(answer, cells.Empty):
            return None
        y = answer.multipliers
        held = [int(i) for i in np.flatnonzero(y > 1e-10 * y.max(initial=0.0))]
        chosen = tuple(places[i] for i in held)
        tries = [Empty(chosen, ())]
        if domain is not None:
            tries.append(Empty(chosen, tuple(float(y[i]) for i in held)))
        return next((t for t in tries if is_empty(t, self.network, forms, low, high, domain)), None)

    def branch(self, forms: Forms, low: Pieces, high: Pieces) -> Split | None:
        """The unit of a known argument that adds most to the bound, or else any that is not known."""
        if not forms.symbols:
            return None
        reach = _floats(forms.reach)
        out = abs(_floats(forms.output[:, forms.n + 1 :])).sum(0)
        for s in reversed(range(len(forms.symbols))):
            symbol = forms.symbols[s]
            out += float(symbol.radius) * out[s] * abs(_floats(symbol.argument[forms.n + 1 :]))
        score = dict.fromkeys(range(len(low)), 0.0)
        for s, symbol in enumerate(forms.symbols):
            score[symbol.unit] += float(out[s] * reach[s].sum())
        some = [symbol.unit for symbol in forms.symbols if forms.affine(symbol.unit)]
        unit = max(some, key=lambda i: score[i])
        return Split(unit, (low[unit] + high[unit] - 1) // 2)


def _floats(x: Exact) -> NDArray[Any]:
    return x.astype(np.float64)


__all__ = ["prove"]
