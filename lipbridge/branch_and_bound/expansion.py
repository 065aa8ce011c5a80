"""What is done to parts of the tree: bounds from above, cells from within, and the unit to be split next.

An expansion knows no queue and no limit: from some parts and the best lower bound it makes their children that are not
done with. So it can be done in any process.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor

from lipbridge.branch_and_bound.bounds import Bounds
from lipbridge.branch_and_bound.cascade import Cascade
from lipbridge.branch_and_bound.cells import Array, Domain
from lipbridge.branch_and_bound.feasibility import Feasibility
from lipbridge.branch_and_bound.multipliers import Multipliers
from lipbridge.branch_and_bound.parts import NONE, Part, lines_of, stacked
from lipbridge.branch_and_bound.pieces import PieceTable
from lipbridge.branch_and_bound.rational import numbers
from lipbridge.branch_and_bound.relaxation import Resolved
from lipbridge.vocabulary import Norm

#: Parts are done with at this relative distance above the best lower bound.
CLOSE = 4e-10
#: Parts that are bounded together at most.
TOGETHER = 256
#: How often ranges are folded before the next split; each time more arguments may be affine.
FOLDS = 4
#: Share of the bound that any unit's uncertainty is taken to have at least.
TINY = 1e-12


@dataclass(eq=False)
class Expanded:
    """What became of some parts.

    Attributes:
        parts: that are to be split further.
        best: the best lower bound, an estimate; ``points``: where it was raised, the best last.
        done: the largest upper bound of what is done with.
        stuck: ... of what cannot be split any further.
        regions, leaves, empty, unproved, folded: how many there were.
        seconds: by step.
    """

    best: float
    parts: list[Part] = field(default_factory=lambda: [])
    points: list[Tensor] = field(default_factory=lambda: [])
    done: float = 0.0
    stuck: float = 0.0
    regions: int = 0
    leaves: int = 0
    empty: int = 0
    unproved: int = 0
    folded: int = 0
    seconds: dict[str, float] = field(default_factory=lambda: {})

    def spent(self, what: str, since: float) -> float:
        """Count the time of a step."""
        now = time.perf_counter()
        self.seconds[what] = self.seconds.get(what, 0.0) + now - since
        return now


class Expansion:
    """Expands parts of one network's tree on some domains."""

    def __init__(self, cascade: Cascade, p: Norm, q: Norm, domains: list[Domain]) -> None:
        self.made_of = cascade, p, q, domains
        self.cascade, self.table = cascade, PieceTable(cascade)
        self.bounds = Bounds(cascade, self.table, p, q)
        self.feasibility = Feasibility(cascade, self.table, domains)
        self.dear = self.bounds.has_multipliers()

    def expand(self, parts: list[Part], best: float) -> Expanded:
        """Split parts where they are to be split, and bound the halves; and parts that are not bounded yet."""
        new = [own for part in parts for own in ([part] if part.branch == NONE else part.halves())]
        return self.receive(new, best)

    def begin(self, roots: list[Part], best: float) -> Expanded:
        """The rows of roots that may be larger than the best lower bound, to be expanded; their bounds are rough."""
        out = Expanded(best, regions=len(roots))
        for start in range(0, len(roots), TOGETHER):
            some = roots[start : start + TOGETHER]
            found = self.bounds.cheap(self.bounds.resolved(*stacked(some)))
            for root, own in zip(some, found, strict=True):
                signs = np.zeros(self.bounds.entries, dtype=np.int8)
                rows = [replace(root, row=row, upper=upper, signs=signs) for row, upper in enumerate(numbers(own))]
                out.parts += [rows[i] for i in self.alive(rows, out)]
        return out

    def receive(self, parts: list[Part], best: float) -> Expanded:
        """Bound new parts; keep those that are not done with."""
        out = Expanded(best, regions=len(parts))
        looks = self.feasibility
        before = looks.empty, looks.unproved, looks.folded
        for start in range(0, len(parts), TOGETHER):
            self._receive(parts[start : start + TOGETHER], out)
        after = looks.empty, looks.unproved, looks.folded
        out.empty, out.unproved, out.folded = (b - a for a, b in zip(before, after, strict=True))
        return out

    def close(self, best: float) -> float:
        """Parts up to here are done with."""
        return best * (1.0 + CLOSE) + 2.0 * self.bounds.slack

    def _receive(self, parts: list[Part], out: Expanded) -> None:
        now = time.perf_counter()
        parts, x = self.bounded(parts, out)
        now = out.spent("linear", now)
        if not parts:
            return
        z, affine = self.arguments(parts)
        index = self.feasibility.inhabited(parts, z, affine)
        parts, x, z, affine = (
            [parts[i] for i in index],
            x.rows(torch.tensor(index, dtype=torch.int64)),
            z[index],
            affine[index],
        )
        now = out.spent("cells", now)
        parts, x = self.folded(parts, x, z, affine, out)
        now = out.spent("folds", now)
        self.witness(parts, out)
        now = out.spent("points", now)
        if not parts:
            return
        score, entries = self.bounds.score(x), torch.zeros(len(parts), self.bounds.entries, dtype=torch.float64)
        if self.dear:
            shares, entries = self.sharpen(parts, x)
            score = torch.where(score > 0.0, shares.clamp_min(TINY) + TINY * score, 0.0)
        now = out.spent("multipliers", now)
        self.queue(parts, score, entries, out)
        out.spent("queue", now)

    def bounded(self, parts: list[Part], out: Expanded) -> tuple[list[Part], Resolved]:
        """Cheap bounds; the parts that are not done with by them."""
        x = self.bounds.row(*stacked(parts), *lines_of(parts))
        for part, own in zip(parts, numbers(self.bounds.cheap(x)[:, 0]), strict=True):
            part.upper = min(part.upper, own)
        index = self.alive(parts, out)
        return [parts[i] for i in index], x.rows(torch.tensor(index, dtype=torch.int64))

    def arguments(self, parts: list[Part]) -> tuple[Array, Array]:
        """Of all units as functions of the coordinates, and which are affine."""
        low, high = stacked(parts)
        z, affine = self.feasibility.rows.arguments(low, high, *self.table.hull(low, high))
        return z.numpy(), affine.numpy()

    def folded(
        self, parts: list[Part], x: Resolved, z: Array, affine: Array, out: Expanded
    ) -> tuple[list[Part], Resolved]:
        """Fold units of one sign, as long as that makes more arguments affine; bound the parts anew."""
        waiting = list(range(len(parts)))
        changed: set[int] = set()
        for _ in range(FOLDS):
            if not waiting:
                break
            of_use = (self.bounds.score(x.rows(torch.tensor(waiting))) > 0).numpy()
            some = [parts[i] for i in waiting]
            index = self.feasibility.fold(some, z, affine, of_use)
            waiting = [waiting[i] for i in index]
            changed |= set(waiting)
            if waiting and len(self.cascade.layers) > 1:
                z, affine = self.arguments([parts[i] for i in waiting])
            else:
                break
        if not changed:
            return parts, x
        anew, own = self.bounded([parts[i] for i in sorted(changed)], out)
        kept = [i for i in range(len(parts)) if i not in changed]
        return [parts[i] for i in kept] + anew, x.rows(torch.tensor(kept, dtype=torch.int64)).joined(own)

    def alive(self, parts: list[Part], out: Expanded) -> list[int]:
        """The places of parts that are not done with."""
        found: list[int] = []
        for i, part in enumerate(parts):
            if part.upper <= self.close(out.best):
                out.leaves += 1
                out.done = max(out.done, part.upper)
            else:
                found.append(i)
        return found

    def queue(self, parts: list[Part], score: Tensor, entries: Tensor, out: Expanded) -> None:
        """Keep the parts that are not done with, each with the unit or sign to be split: of the largest score.

        Units, ``(k, U)``, whose arguments are affine on the part come first: only they make its cell smaller. Of the
        entries ``(k, entries)``, the first sign is decided as it likes: those that follow are relative to it.
        """
        _, affine = self.arguments(parts)
        prefer = torch.where(torch.as_tensor(affine), score, 0.0)
        some = (prefer > 0).any(1)
        branch = torch.where(some[:, None], prefer, score)
        most, unit = branch.max(1) if branch.shape[1] else (torch.zeros(len(parts)), torch.zeros(len(parts)))
        alive = set(self.alive(parts, out))
        for i, part in enumerate(parts):
            if self.bounds.signed and i in alive:
                if not part.signs.any():
                    part.signs = np.eye(len(part.signs), dtype=np.int8)[int(entries[i].argmax())]
                own = torch.where(torch.as_tensor(part.signs) == 0, entries[i], 0.0)
                sign = int(own.argmax())
                if 0.0 < most[i] < own[sign]:
                    unit[i] = self.cascade.units + sign
        for i, (size, which) in enumerate(zip(numbers(most), numbers(unit), strict=True)):
            if i not in alive:
                continue
            if size == 0.0:
                out.leaves += 1
                out.stuck = max(out.stuck, parts[i].upper)
            else:
                parts[i].branch = int(which)
                out.parts.append(parts[i])

    def witness(self, parts: list[Part], out: Expanded) -> None:
        """Raise the lower bound by the Jacobians at the parts' points."""
        held = [part.points for part in parts if part.points is not None]
        if not held:
            return
        x = self.feasibility.rows.points(torch.as_tensor(np.concatenate(held)))
        pattern, clear = self.pattern(x)
        gain, i = torch.where(clear, self.bounds.gains(pattern), 0.0).max(0)
        if float(gain) > out.best:
            out.best = float(gain)
            out.points.append(x[i])

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

    def sharpen(self, parts: list[Part], x: Resolved) -> tuple[Tensor, Tensor]:
        """Bounds by multipliers; how much they fall with units' uncertainty ``(k, U)`` and signs ``(k, entries)``."""
        shares, entries = torch.zeros_like(x.r), torch.zeros(len(parts), self.bounds.entries, dtype=torch.float64)
        loose = [bool(size) for size in numbers(x.r.gt(0).sum(1))]
        for warm in (False, True):
            own = [i for i, part in enumerate(parts) if loose[i] and (part.multipliers is not None) == warm]
            if not own:
                continue
            at = torch.tensor(own)
            start = _gathered([parts[i].multipliers for i in own]) if warm else None
            found = self.bounds.dear(x.rows(at), start)
            shares[at] = found.shares
            if self.bounds.signed:
                entries[at] = found.entries
            T, mu = (t.float().numpy() for t in (found.multipliers.T, found.multipliers.mu))
            for row, (i, value) in enumerate(zip(own, numbers(found.bounds), strict=True)):
                parts[i].upper = min(parts[i].upper, value)
                parts[i].multipliers = T[row].copy(), mu[row].copy()
        return shares, entries


def _gathered(rows: list[tuple[Array, Array] | None]) -> Multipliers:
    held = [row for row in rows if row is not None]
    T, mu = (torch.as_tensor(np.stack([row[i] for row in held]), dtype=torch.float64) for i in (0, 1))
    return Multipliers(T, mu)


__all__ = ["Expanded", "Expansion"]
