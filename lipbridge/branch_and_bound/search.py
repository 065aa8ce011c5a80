"""The search: parts of the tree, best first, until the largest upper bound is the best lower one.

A part keeps a row of the Jacobian (:mod:`bounds`) and for every unit a range of its pieces. It stands for all cells of
full dimension on which each unit's argument stays between the kinks of one of these pieces. There are finitely many
such cells, they are dense, and f is affine on each: f is Lipschitz with the largest norm of their matrices, along every
segment but for a null set, and with no less. So the constant is the largest over cells that have an interior, and what
happens on kinks does not count. An argument that is constant on a cell, at a kink, has the derivative zero there,
whatever slope it is multiplied by: it is never made a constraint.

Children halve one unit's range, or decide one sign in the sum that an l_1 norm is, so that they cover their parent. A
part is done with when its upper bound is no more than the best lower bound (but for a relative 1e-10 or so), or its
cell is proved to be empty.
"""

from __future__ import annotations

import heapq
import itertools
import math
import time
from dataclasses import dataclass, field

from torch import Tensor

from lipbridge.branch_and_bound.expansion import Expanded, Expansion
from lipbridge.branch_and_bound.feasibility import POINTS
from lipbridge.branch_and_bound.helpers import Helpers
from lipbridge.branch_and_bound.parts import Part
from lipbridge.vocabulary import Status

#: Parts whose children are bounded together.
BATCH = 64
#: Seconds that a batch takes at most, about, so that limits are kept.
LONGEST = 1.0
#: Seconds before other processes are started: they take two to come.
ALONE = 1.5


@dataclass(eq=False)
class Outcome:
    """What a search ends with: a proved ``upper`` bound, the best points (the last is best), and figures."""

    upper: float
    points: list[Tensor]
    status: Status
    regions: int = 0
    leaves: int = 0
    empty: int = 0
    unproved: int = 0
    folded: int = 0
    left: int = 0
    seconds: dict[str, float] = field(default_factory=lambda: {})


class Search:
    """Branch and bound of one network on some domains."""

    def __init__(self, expansion: Expansion, *, deadline: float, memory: float, processes: int = 1) -> None:
        """Prepare one.

        Args:
            expansion: of the network and the domains.
            deadline: in seconds of ``time.perf_counter``.
            memory: bytes for the tree.
            processes: that expand parts at the same time, if the search takes longer than a moment.
        """
        self.expansion, self.deadline, self.memory, self.processes = expansion, deadline, memory, processes
        self.best = 0.0
        self.heap: list[tuple[float, int, Part]] = []
        self.done = 0.0  # the largest upper bound of what is done with, or cannot be split any further
        self.count = itertools.count()
        self.outcome = Outcome(math.inf, [], Status.OK)
        self.batch = 4
        self.helpers: Helpers | None = None

    def run(self, lower: float, roots: list[Part]) -> Outcome:
        """Search from the roots, knowing a lower bound."""
        self.best = lower
        began = time.perf_counter()
        try:
            self.take(self.expansion.begin(roots, lower))
            while self.open() or (self.helpers is not None and self.helpers.sent):
                if time.perf_counter() > self.deadline:
                    self.outcome.status = Status.TIMEOUT
                    break
                if len(self.heap) * self.bytes > self.memory:
                    self.outcome.status = Status.MEMORY
                    break
                if self.helpers is None and self.processes > 1 and time.perf_counter() - began > ALONE:
                    self.helpers = Helpers(self.processes, *self.expansion.made_of)
                if self.helpers is not None and self.helpers.ready:
                    self.together(self.helpers)
                else:
                    self.take(self.expansion.expand(self.chosen(), self.best))
        finally:
            if self.helpers is not None:
                for part in self.helpers.unfinished():
                    self.queue(part)
                self.helpers.end()
        out = self.outcome
        out.left = len(self.heap)
        out.upper = max(self.done, max((part.upper for *_, part in self.heap), default=0.0))
        return out

    def together(self, helpers: Helpers) -> None:
        """Give the helpers work, and take what they have done."""
        while helpers.free and self.open():
            helpers.send(self.chosen(), self.best)
        found, lost = helpers.answers(min(LONGEST, max(0.0, self.deadline - time.perf_counter())))
        for expanded in found:
            self.take(expanded)
        for part in lost:
            self.queue(part)

    def queue(self, part: Part) -> None:
        """Let a part wait."""
        heapq.heappush(self.heap, (-part.upper, next(self.count), part))

    def open(self) -> bool:
        """Whether a part waits that is not done with."""
        return bool(self.heap) and -self.heap[0][0] > self.expansion.close(self.best)

    def chosen(self) -> list[Part]:
        """The parts with the largest bounds, off the queue."""
        most = self.batch
        if self.helpers is not None and self.helpers.ready:  # so that there is something for all
            most = max(1, min(most, len(self.heap) // (2 * self.helpers.count)))
        found: list[Part] = []
        while len(found) < most and self.open():
            found.append(heapq.heappop(self.heap)[2])
        return found

    def take(self, found: Expanded) -> None:
        """Queue what is left of some parts, and count."""
        if found.best > self.best and found.points:
            self.best = found.best
            self.outcome.points += found.points
        self.done = max(self.done, found.done, found.stuck)
        for name in ("regions", "leaves", "empty", "unproved", "folded"):
            setattr(self.outcome, name, getattr(self.outcome, name) + getattr(found, name))
        for what, seconds in found.seconds.items():
            self.outcome.seconds[what] = self.outcome.seconds.get(what, 0.0) + seconds
        taken = sum(found.seconds.values()) / max(found.regions // 2, 1)
        self.batch = max(1, min(BATCH, int(LONGEST / max(taken, 1e-9))))
        for part in found.parts:
            self.queue(part)

    @property
    def bytes(self) -> int:
        """About what an open part takes."""
        c = self.expansion.cascade
        m, n = c.D.shape
        points = 8 * POINTS * self.expansion.feasibility.rows.size if self.expansion.feasibility.looks else 0
        return 4000 + 4 * c.units + 9 * (c.units + m + n) + points


__all__ = ["Outcome", "Search"]
