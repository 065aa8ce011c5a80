"""The harness: two pieces of work timed in turn in one process, pinned threads, medians, the ratio pair by pair.

Absolute times drift with the machine; the ratio of neighbours does not. The load before and after stands beside every
figure, so that a noisy run can be seen.
"""

from __future__ import annotations

import gc
import os
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Ratio:
    """Medians of both times in seconds, and of the ratios ours/theirs of neighbouring runs with their spread."""

    name: str
    ours: float
    theirs: float
    ratio: float
    low: float
    high: float
    runs: int
    load: tuple[float, float]

    def __str__(self) -> str:
        return (
            f"{self.name}: ratio {self.ratio:.3f} (quartiles {self.low:.3f} to {self.high:.3f}), "
            f"ours {self.ours * 1e3:.3f} ms, theirs {self.theirs * 1e3:.3f} ms, "
            f"{self.runs} pairs, load {self.load[0]:.2f} -> {self.load[1]:.2f}"
        )


def seconds_of(work: Callable[[], object]) -> float:
    """Wall time of one call."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def compare(name: str, ours: Callable[[], object], theirs: Callable[[], object], runs: int = 30) -> Ratio:
    """Time both in turn, alternating which goes first, after a warm-up of each."""
    before = os.getloadavg()[0]
    for _ in range(3):
        ours(), theirs()
    gc.disable()
    pairs: list[tuple[float, float]] = []
    for run in range(runs):
        if run % 2:
            other = seconds_of(theirs)
            pairs.append((seconds_of(ours), other))
        else:
            own = seconds_of(ours)
            pairs.append((own, seconds_of(theirs)))
    gc.enable()
    quartiles = statistics.quantiles([own / other for own, other in pairs], n=4)
    own, other = (statistics.median(column) for column in zip(*pairs, strict=True))
    return Ratio(name, own, other, quartiles[1], quartiles[0], quartiles[2], runs, (before, os.getloadavg()[0]))
