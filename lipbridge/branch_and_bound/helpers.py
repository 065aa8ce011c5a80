"""Processes that expand parts of the tree for a search, one on each core."""

from __future__ import annotations

import importlib
from concurrent.futures import FIRST_COMPLETED, Executor, Future, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import suppress
from typing import Any, cast

import torch

from lipbridge.branch_and_bound.cascade import Cascade
from lipbridge.branch_and_bound.cells import Domain
from lipbridge.branch_and_bound.expansion import Expanded, Expansion
from lipbridge.branch_and_bound.parts import Part
from lipbridge.vocabulary import Norm

#: Seconds without work after which a helper ends; so it does not outlive a search that was killed.
IDLE = 30.0
#: Variables by which libraries of linear algebra are told to use one thread each; and the bytes above its first ones at
#: which loky, which takes them for leaked, replaces a process: batches of large networks need more than its 3e8.
ENVIRONMENT = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1") | {
    "LOKY_MAX_MEMORY_LEAK_SIZE": "1e9"
}

_mine: list[Expansion] = []


def _prepare(cascade: Cascade, p: Norm, q: Norm, domains: list[Domain]) -> None:
    torch.set_num_threads(1)
    _mine[:] = [Expansion(cascade, p, q, domains)]


def _ready() -> bool:
    return bool(_mine)


def _expand(parts: list[Part], best: float) -> Expanded:
    return _mine[0].expand(parts, best)


class Helpers:
    """A pool of processes, each with an expansion of its own.

    Attributes:
        count: how many there are; 0 once one was lost, and its work must be done by the caller.
    """

    def __init__(self, count: int, *expansion: Any) -> None:
        """Start them.

        Args:
            count: of processes.
            expansion: what an :class:`Expansion` is made of.
        """
        self.count = count
        loky: Any = importlib.import_module("loky")  # here, since few searches take so long; it carries no types
        self.pool: Executor = loky.ProcessPoolExecutor(
            max_workers=count, timeout=IDLE, initializer=_prepare, initargs=expansion, env=ENVIRONMENT
        )
        self.waking: list[Future[bool]] = [self.pool.submit(_ready) for _ in range(count)]
        self.sent: dict[Future[Expanded], list[Part]] = {}
        self.lost: list[Part] = []

    @property
    def ready(self) -> bool:
        """Whether they can be given work."""
        return self.count > 0 and all(future.done() and not future.exception() for future in self.waking)

    @property
    def free(self) -> bool:
        """Whether one waits for work."""
        return len(self.sent) < self.count

    def send(self, parts: list[Part], best: float) -> None:
        """Have parts expanded."""
        try:
            self.sent[self.pool.submit(_expand, parts, best)] = parts
        except BrokenProcessPool:  # a process died while it had nothing to do
            self.count = 0
            self.lost += parts

    def answers(self, seconds: float) -> tuple[list[Expanded], list[Part]]:
        """What is done, after waiting for some; and parts that were lost with a process."""
        done, _ = wait(self.sent, seconds, FIRST_COMPLETED)
        found: list[Expanded] = []
        lost, self.lost = self.lost, []
        for future in done:
            parts = self.sent.pop(future)
            try:
                found.append(future.result())
            except BrokenProcessPool:
                lost += parts
                self.count = 0
        if not self.count:
            lost += [part for parts in self.sent.values() for part in parts]
            self.sent.clear()
        return found, lost

    def unfinished(self) -> list[Part]:
        """Parts that were sent and not answered."""
        return self.lost + [part for parts in self.sent.values() for part in parts]

    def end(self) -> None:
        """End them, whatever they do."""
        with suppress(Exception):  # they may be gone already
            cast(Any, self.pool).shutdown(wait=False, kill_workers=True)


__all__ = ["Helpers"]
