"""What a study asks of whoever runs its cells."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from lipbridge.study.cells import Cell, Row


@dataclass(frozen=True, eq=False)
class InFlight:
    """A cell that runs: since when (seconds since 1970), and where, e.g. ``process 4711``."""

    cell: Cell
    since: float
    where: str


class Engine(Protocol):
    """Runs cells, several at once. One thread calls it.

    A cell that was submitted comes back once from :meth:`finished`, with a row whatever happened to it.
    """

    def room(self) -> int:
        """How many more cells it takes now."""
        ...

    def submit(self, cell: Cell) -> None:
        """Begin a cell; there must be room."""
        ...

    def finished(self, seconds: float) -> list[tuple[Cell, Row]]:
        """What has ended since the last call; waits at most so long for the first."""
        ...

    def running(self) -> list[InFlight]:
        """What runs now, or waits in a queue."""
        ...

    def close(self) -> None:
        """End what still runs, with all that it started."""
        ...


__all__ = ["Engine", "InFlight"]
