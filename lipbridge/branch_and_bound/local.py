"""The local constant by branch and bound: the parts of the balls with the largest bounds are split, while time lasts.

Every ball is bounded first without linear bounds, then the worst with them; a part whose bound is the largest and that
is bounded as well as it can be is split in two. At every moment the largest of the parts' bounds is one of all balls.
"""

from __future__ import annotations

import heapq
import itertools
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

from lipbridge.propagation.jacobian.regions import Bounded, Part, Parts
from lipbridge.rounding.scalars import FLOOR

#: Parts are bounded together up to so many.
BATCH = 32
#: How close, relatively, the Jacobian at a point comes to a bound that is as good as exact.
CLOSE = 1e-6


@dataclass(frozen=True)
class Found:
    """What a search found: the largest of all parts' bounds, whose ball that is, and what became of the parts.

    ``finished`` says that no part was left to sharpen, or that the Jacobian at some point reaches the value to within
    ``CLOSE``; ``splits`` how often one was split.
    """

    value: float
    ball: int
    splits: int
    linear: int
    finished: bool


@dataclass(order=True)
class _Entry:
    key: float
    order: int
    bounded: Bounded = field(compare=False)
    linear: bool = field(compare=False)


def search(
    parts: Parts,
    count: int,
    deadline: float,
    *,
    split: str,
    linear: bool = True,
    batch: Callable[[bool], int] = lambda linear: BATCH,
) -> Found:
    """Bound ``count`` balls until a time of ``time.perf_counter``.

    Args:
        parts: bounds parts of the balls.
        count: how many balls there are.
        deadline: the first bounds of all balls are computed whatever it says.
        split: ``none``, ``units`` or ``inputs``.
        linear: whether linear bounds of the cotangents are propagated where they matter.
        batch: how many parts to bound together, with linear bounds or without.

    Law: the value is never below the constant of any ball, and falls with time.
    """
    heap: list[_Entry] = []
    number = itertools.count()

    seen = 0.0

    def push(found: Sequence[Bounded], linear: bool) -> None:
        nonlocal seen
        for bounded in found:
            seen = max(seen, bounded.seen)
            heapq.heappush(heap, _Entry(-bounded.value, next(number), bounded, linear))

    inputs, splitting = split == "inputs", split != "none"
    step = batch(False)
    for start in range(0, count, step):
        balls = [Part(ball) for ball in range(start, min(start + step, count))]
        push(parts.bounded(balls, linear=False, inputs=inputs, split=splitting), not linear)
    splits = improved = 0
    while time.perf_counter() < deadline:
        waiting = _taken(heap, batch(True), lambda entry: not entry.linear)
        if waiting:
            own = [entry.bounded.part for entry in waiting]
            better = parts.bounded(own, linear=True, inputs=inputs, split=splitting)
            push([_smaller(a, entry.bounded) for a, entry in zip(better, waiting, strict=True)], True)
            improved += len(waiting)
            continue
        worst = heap[0].bounded
        if worst.split is None or worst.value <= seen * (1.0 + CLOSE) + FLOOR * 2**20:
            break
        chosen = _taken(heap, max(1, batch(linear) // 2), lambda entry: entry.bounded.split is not None)
        children: list[Part] = []
        known: list[float] = []
        for entry in chosen:
            assert entry.bounded.split is not None
            children += entry.bounded.part.halves(entry.bounded.split)
            known += [entry.bounded.value] * 2
        found = parts.bounded(children, linear=linear, inputs=inputs)
        push([replace(b, value=min(b.value, limit)) for b, limit in zip(found, known, strict=True)], True)
        splits += len(chosen)
    top = heap[0]
    close = top.bounded.value <= seen * (1.0 + CLOSE) + FLOOR * 2**20
    finished = top.linear and (top.bounded.split is None or close)
    return Found(top.bounded.value, top.bounded.part.ball, splits, improved, finished)


def _taken(heap: list[_Entry], most: int, wanted: Callable[[_Entry], bool]) -> list[_Entry]:
    """The entries with the largest bounds, from the heap, until the first that is not wanted."""
    found: list[_Entry] = []
    while heap and len(found) < most and wanted(heap[0]):
        found.append(heapq.heappop(heap))
    return found


def _smaller(new: Bounded, old: Bounded) -> Bounded:
    return replace(new, value=min(new.value, old.value))


__all__ = ["Found", "search"]
