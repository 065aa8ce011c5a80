"""Runs cells on an engine, each as soon as what it needs is there."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Protocol

from lipbridge.study.cells import Cell, Row
from lipbridge.study.engine.protocol import Engine, InFlight
from lipbridge.vocabulary import Status

#: Seconds between two looks at what runs.
_LOOK = 0.5


class Watcher(Protocol):
    """Told what happens to the cells."""

    def started(self, cell: Cell) -> None:
        """A cell was given to the engine."""
        ...

    def ended(self, cell: Cell, row: Row) -> None:
        """Its row is there."""
        ...

    def looked(self, running: Sequence[InFlight]) -> None:
        """Now and then: what runs."""
        ...


def run_cells(cells: Sequence[Cell], engine: Engine, watcher: Watcher, succeeded: Collection[str] = ()) -> list[Cell]:
    """Run cells in their order, several at once as the engine has room; a later one that is ready may overtake.

    Args:
        cells: to run.
        engine: runs them; it stays open.
        watcher: told of each; whatever it raises ends the run.
        succeeded: ids of cells that have been run already, which others may need.

    Returns:
        The cells that were not run, since something that they need failed.
    """
    once: dict[str, Cell] = {}
    for cell in cells:
        once.setdefault(cell.id, cell)  # equal work is done once, whoever asks for it
    good, waiting = set(succeeded), list(once.values())
    in_flight: set[str] = set()
    while True:
        ready = [cell for cell in waiting if good.issuperset(cell.after)]
        for cell in ready[: max(engine.room(), 0)]:
            watcher.started(cell)
            engine.submit(cell)
            in_flight.add(cell.id)
            waiting = [other for other in waiting if other.id != cell.id]
        if not in_flight:
            return waiting
        watcher.looked(engine.running())
        for cell, row in engine.finished(_LOOK):
            in_flight.discard(cell.id)
            if row["status"] == Status.OK:
                good.add(cell.id)
            watcher.ended(cell, row)


__all__ = ["Watcher", "run_cells"]
