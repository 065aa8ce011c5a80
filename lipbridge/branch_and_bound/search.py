"""The search: parts of the tree, best first, until the largest upper bound is the best lower one.

A part keeps for every unit a range of its pieces. It stands for all cells of full dimension on which each unit's
argument stays between the kinks of one of these pieces. There are finitely many such cells, they are dense, and f is
affine on each: f is Lipschitz with the largest norm of their matrices, along every segment but for a null set, and with
no less. So the constant is the largest over cells that have an interior, and what happens on kinks does not count. An
argument that is constant on a cell, at a kink, has the derivative zero there, whatever slope it is multiplied by: it is
never made a constraint.

Children halve one unit's range, so that they cover their parent. A part is done with when its upper bound is no more
than the best lower bound (but for a relative 1e-10 or so), or its cell is proved to be empty.
"""

from __future__ import annotations

import heapq
import itertools
import math
import time
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from lipbridge.branch_and_bound.bounds import Bounds
from lipbridge.branch_and_bound.cascade import Cascade
from lipbridge.branch_and_bound.cells import Array, Domain, Empty, look
from lipbridge.branch_and_bound.multipliers import Multipliers
from lipbridge.branch_and_bound.pieces import PieceTable
from lipbridge.branch_and_bound.rational import Rational, numbers
from lipbridge.branch_and_bound.relaxation import Resolved
from lipbridge.branch_and_bound.rows import Rows
from lipbridge.vocabulary import Norm, Status

#: Parts are done with at this relative distance above the best lower bound.
CLOSE = 4e-10
#: Parts whose children are bounded together.
BATCH = 128
#: Seconds that a batch takes at most, about, so that limits are kept.
LONGEST = 1.0
#: Coordinates of cells that linear programs look at, at most.
MOST_COORDINATES = 128


@dataclass(eq=False)
class Part:
    """A part of the tree: pieces ``low`` to ``high``, and what is known of it."""

    low: Array
    high: Array
    uppers: Array
    domain: int
    point: Array | None = None
    branch: int = -1
    held: Array | None = None  # the parts of the norm that have multipliers
    multipliers: Multipliers | None = None
    number: int = 0

    @property
    def upper(self) -> float:
        """The largest of the upper bounds."""
        return float(self.uppers.max())


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
    left: int = 0
    seconds: dict[str, float] = field(default_factory=lambda: {})


class Search:
    """Branch and bound of one network on some domains."""

    def __init__(
        self, cascade: Cascade, p: Norm, q: Norm, domains: list[Domain], *, deadline: float, memory: float
    ) -> None:
        self.cascade, self.table = cascade, PieceTable(cascade)
        self.bounds = Bounds(cascade, self.table, p, q)
        self.rows = Rows(cascade, self.table, reduce=domains[0].center is None)
        if domains[0].center is None:
            domains = [Domain(self.rows.size)]
        self.domains, self.deadline, self.memory = domains, deadline, memory
        self.fractions = Rational(cascade, self.rows.right)
        offsets = [o for layer in cascade.layers for o in (*layer.function.offsets, *layer.function.kinks)]
        self.biased = bool(cascade.b.any()) or any(offsets)
        self.dear = self.bounds.has_multipliers()
        self.best = 0.0
        self.points: list[Tensor] = []  # each better than the one before
        self.heap: list[tuple[float, int, Part]] = []
        self.done = 0.0  # the largest upper bound of what is done with
        self.stuck = 0.0  # ... of what cannot be split any further
        self.count = itertools.count()
        self.outcome = Outcome(math.inf, [], Status.OK)
        self.clock: dict[str, float] = {}
        self.batch = 4

    def run(self, lower: float, starts: list[tuple[Tensor, Tensor]]) -> Outcome:
        """Search from the roots ``starts``, pieces ``(U,)`` for each domain, knowing a lower bound."""
        self.best = lower
        roots = [
            Part(a.numpy().astype(np.int8), b.numpy().astype(np.int8), np.full(self.bounds.parts, np.inf), i)
            for i, (a, b) in enumerate(starts)
        ]
        self.receive(roots)
        while self.heap and -self.heap[0][0] > self.close:
            if time.perf_counter() > self.deadline:
                self.outcome.status = Status.TIMEOUT
                break
            if len(self.heap) * self.bytes > self.memory:
                self.outcome.status = Status.MEMORY
                break
            chosen: list[Part] = []
            while self.heap and len(chosen) < self.batch and -self.heap[0][0] > self.close:
                chosen.append(heapq.heappop(self.heap)[2])
            now = time.perf_counter()
            self.receive([child for part in chosen for child in self.split(part)])
            taken = (time.perf_counter() - now) / len(chosen)
            self.batch = max(1, min(BATCH, int(LONGEST / max(taken, 1e-9))))
        out = self.outcome
        out.left = len(self.heap)
        open_ = max((part.upper for *_, part in self.heap), default=0.0)
        out.upper = max(self.done, self.stuck, open_)
        out.points, out.seconds = self.points, self.clock
        return out

    @property
    def close(self) -> float:
        """Parts up to here are done with."""
        return self.best * (1.0 + CLOSE) + 2.0 * self.bounds.slack

    @property
    def bytes(self) -> int:
        """About what an open part takes."""
        m, n = self.cascade.D.shape
        return 3500 + 2 * self.cascade.units + 8 * self.bounds.parts + 4 * (self.cascade.units + m + n)

    def split(self, part: Part) -> list[Part]:
        """The two halves of the range of the part's branching unit."""
        low, high = int(part.low[part.branch]), int(part.high[part.branch])
        middle = (low + high) // 2
        children: list[Part] = []
        for a, b in ((low, middle), (middle + 1, high)):
            child = Part(part.low.copy(), part.high.copy(), part.uppers, part.domain, part.point)
            child.low[part.branch], child.high[part.branch] = a, b
            child.held, child.multipliers = part.held, part.multipliers
            children.append(child)
        return children

    def receive(self, parts: list[Part]) -> None:
        """Bound new parts, drop those that are done with, and queue the others."""
        self.outcome.regions += len(parts)
        for start in range(0, len(parts), 2 * BATCH):
            self._receive(parts[start : start + 2 * BATCH])

    def _receive(self, parts: list[Part]) -> None:
        now = time.perf_counter()
        low, high = _stacked(parts)
        x = self.bounds.resolved(low, high)
        uppers = self.bounds.cheap(x).numpy()
        for part, own in zip(parts, uppers, strict=True):
            part.uppers = np.minimum(part.uppers, own)
        now = self.spent("linear", now)
        index = self.alive(parts)
        parts, low, high = [parts[i] for i in index], low[index], high[index]
        x = x.rows(torch.tensor(index, dtype=torch.int64))
        if not parts:
            return
        middle, radius = self.table.hull(low, high)
        z, affine = self.rows.arguments(low, high, middle, radius)
        index = self.feasible(parts, z.numpy(), affine.numpy())
        now = self.spent("cells", now)
        parts, affine = [parts[i] for i in index], affine[index]
        x = x.rows(torch.tensor(index, dtype=torch.int64))
        self.witness(parts)
        now = self.spent("points", now)
        if not parts:
            return
        if self.dear:
            self.sharpen(parts, x)
        now = self.spent("multipliers", now)
        score = self.bounds.score(x)
        prefer = torch.where(affine, score, 0.0)
        some = (prefer > 0).any(1)
        branch = torch.where(some[:, None], prefer, score)
        most, unit = branch.max(1) if branch.shape[1] else (torch.zeros(len(parts)), torch.zeros(len(parts)))
        for part, size, i in zip(parts, numbers(most), numbers(unit), strict=True):
            if part.upper <= self.close:
                self.finish(part)
            elif size == 0.0:
                self.outcome.leaves += 1
                self.stuck = max(self.stuck, part.upper)
            else:
                part.branch = int(i)
                heapq.heappush(self.heap, (-part.upper, next(self.count), part))
        self.spent("queue", now)

    def spent(self, what: str, since: float) -> float:
        """Count the time of a step."""
        now = time.perf_counter()
        self.clock[what] = self.clock.get(what, 0.0) + now - since
        return now

    def finish(self, part: Part) -> None:
        """Done with: its bound is below the best."""
        self.outcome.leaves += 1
        self.done = max(self.done, part.upper)

    def alive(self, parts: list[Part]) -> list[int]:
        """The places of parts that are not done with."""
        found: list[int] = []
        for i, part in enumerate(parts):
            if part.upper <= self.close:
                self.finish(part)
            else:
                found.append(i)
        return found

    def feasible(self, parts: list[Part], z: Array, affine: Array) -> list[int]:
        """The places of parts whose cells are not proved empty; the others get a point if one is found."""
        if self.rows.size > MOST_COORDINATES:
            return list(range(len(parts)))
        found: list[int] = []
        for i, part in enumerate(parts):
            rows, errors, units, kinks = self.rows.cell(z[i], affine[i], part.low, part.high)
            held = (np.abs(rows) > errors).any(1)  # what may be constant is no constraint
            rows, errors, units, kinks = rows[held], errors[held], units[held], kinks[held]
            if part.point is not None:
                gap = rows[:, :-1] @ part.point + rows[:, -1]
                if (gap > 1e-9 * (np.abs(rows[:, :-1]) @ np.abs(part.point) + np.abs(rows[:, -1]))).all():
                    found.append(i)
                    continue
            part.point = None
            answer = look(self.domains[part.domain], rows, errors)
            if isinstance(answer, Empty):
                if answer.proved or self.rational(part, units, kinks, answer.multipliers):
                    self.outcome.empty += 1
                    continue
                self.outcome.unproved += 1
            else:
                part.point = answer
            found.append(i)
        return found

    def rational(self, part: Part, units: Array, kinks: Array, multipliers: Array) -> bool:
        """Whether a cell is proved empty in fractions; that is tried for a part of the time only."""
        small = self.cascade.units <= 400 and self.rows.size <= 24 and self.cascade.exact
        spent, total = self.clock.get("fractions", 0.0), sum(self.clock.values())
        if not small or spent > 2.0 + 0.2 * total:
            return False
        now = time.perf_counter()
        held = multipliers > 1e-11 * multipliers.max(initial=0.0)
        cone = self.domains[part.domain].center is None and not self.biased
        found = self.fractions.empty(part.low, part.high, units[held].tolist(), kinks[held].tolist(), cone)
        self.spent("fractions", now)
        return found

    def witness(self, parts: list[Part]) -> None:
        """Raise the lower bound by the Jacobians at the parts' points."""
        held = [part.point for part in parts if part.point is not None]
        if held:
            self.offer(self.rows.points(torch.as_tensor(np.stack(held))))

    def offer(self, x: Tensor) -> None:
        """Points ``(k, n)`` inside the domains, as candidates for the best lower bound."""
        pattern, clear = self.pattern(x)
        gain, i = torch.where(clear, self.bounds.gains(pattern), 0.0).max(0)
        if float(gain) > self.best:
            self.best = float(gain)
            self.points.append(x[i])

    def pattern(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The pieces ``(k, U)`` at points ``(k, n)``, and which points are away from kinks."""
        c = self.cascade
        h = x.new_zeros(len(x), c.units)
        found = torch.zeros(len(x), c.units, dtype=torch.int64)
        clear, most = torch.ones(len(x), dtype=torch.bool), self.table.slopes.shape[1]
        for layer in c.layers:
            own, before = slice(layer.start, layer.stop), slice(0, layer.start)
            z = x @ c.P[own].T + c.b[own] + h[:, before] @ c.A[own, before].T
            size = x.abs() @ c.P[own].abs().T + c.b[own].abs() + h[:, before].abs() @ c.A[own, before].abs().T
            away = (z[..., None] - self.table.kinks[own, 1:-1]).abs().amin(-1) if most > 1 else size
            clear &= ((away > 1e-12 * size) | (size == 0)).all(1)
            piece = self.table.pattern(z, own)
            found[:, own] = piece
            slope, offset = (t[own].gather(1, piece.T).T for t in (self.table.slopes, self.table.offsets))
            h[:, own] = slope * z + offset
        return found, clear

    def sharpen(self, parts: list[Part], x: Resolved) -> None:
        """Bounds by multipliers of the parts of the norm with the largest bounds, until the largest is such a one."""
        loose = [bool(size) for size in numbers(x.r.gt(0).sum(1))]
        known: list[dict[int, tuple[Tensor, Tensor]]] = [_rows_of(part) for part in parts]
        sharp: list[set[int]] = [set() for _ in parts]
        take = 1
        while True:
            places = [
                (i, j)
                for i, part in enumerate(parts)
                if loose[i]
                for j in _largest(part.uppers, sharp[i], self.close, take)
            ]
            if not places:
                break
            for warm in (False, True):
                own = [(i, j) for i, j in places if (j in known[i]) == warm]
                for begin in range(0, len(own), 256):
                    some = own[begin : begin + 256]
                    start = _gathered([known[i][j] for i, j in some]) if warm else None
                    where, which = torch.tensor([i for i, _ in some]), torch.tensor([j for _, j in some])
                    found, made = self.bounds.dear(x.rows(where), which, start)
                    for (i, j), value, T, mu in zip(some, numbers(found), made.T, made.mu, strict=True):
                        parts[i].uppers[j] = min(parts[i].uppers[j], value)
                        known[i][j] = T.float(), mu.float()
                        sharp[i].add(j)
            take *= 2
        for part, rows in zip(parts, known, strict=True):
            held = [j for j in rows if part.uppers[j] > self.close]
            part.held = np.array(held, dtype=np.int64)
            part.multipliers = _gathered([rows[j] for j in held], torch.float32) if held else None


def _largest(uppers: Array, sharp: set[int], close: float, take: int) -> list[int]:
    """The places of at most ``take`` bounds that are neither sharp nor below a sharp one, nor close; largest first."""
    floor = max([close, *(float(uppers[j]) for j in sharp)])
    waiting = [int(j) for j in np.flatnonzero(uppers > floor) if int(j) not in sharp]
    return sorted(waiting, key=lambda j: -float(uppers[j]))[:take]


def _rows_of(part: Part) -> dict[int, tuple[Tensor, Tensor]]:
    if part.held is None or part.multipliers is None:
        return {}
    return {int(j): (part.multipliers.T[i], part.multipliers.mu[i]) for i, j in enumerate(part.held)}


def _gathered(rows: list[tuple[Tensor, Tensor]], dtype: torch.dtype = torch.float64) -> Multipliers:
    return Multipliers(torch.stack([T for T, _ in rows]).to(dtype), torch.stack([mu for _, mu in rows]).to(dtype))


def _stacked(parts: list[Part]) -> tuple[Tensor, Tensor]:
    low, high = (np.stack([getattr(part, name) for part in parts]) for name in ("low", "high"))
    return torch.as_tensor(low, dtype=torch.int64), torch.as_tensor(high, dtype=torch.int64)


__all__ = ["Outcome", "Part", "Search"]
