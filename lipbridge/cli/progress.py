"""What is seen of a study that runs: a live table on a terminal, elsewhere a line for each cell."""

from __future__ import annotations

import contextlib
import time
from collections import Counter, deque
from collections.abc import Generator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from lipbridge.cli.output import note
from lipbridge.text import number, percent, seconds

if TYPE_CHECKING:
    from lipbridge.study.cells import Cell, Row
    from lipbridge.study.engine.protocol import InFlight
    from lipbridge.study.study import View

_SIGNS = {"upper": "<=", "lower": ">=", "exact": "="}
#: Finished cells that the live table shows.
_LAST = 8


def told(row: Mapping[str, Any]) -> str:
    """What came of a cell, in a few words."""
    if row["status"] != "ok":
        detail = f": {row['detail']}" if row["detail"] else ""
        return f"{str(row['status']).upper() if row['status'] == 'unsound' else row['status']}{detail}"[:160]
    kind = row["kind"]
    if kind == "training":
        return f"{percent(row['accuracy'])}, proved bound {number(row['value'], 5)}, {seconds(row['seconds'])}"
    if kind == "model":
        return ", ".join(text for text in (str(row["architecture"]), percent(row["accuracy"])) if text)
    if kind == "certificate":
        return f"{percent(row['certified_accuracy'])} at {number(row['radius'])}, {seconds(row['seconds'])}"
    tight = "" if row["tightness"] is None else f", tightness {number(row['tightness'], 5)}"
    return f"{_SIGNS[row['side']]} {number(row['value'], 6)}{tight}, {seconds(row['seconds'])}"


def duration(value: float) -> str:
    """A time that is only guessed."""
    if value < 90:
        return f"{value:.0f} s"
    return f"{value / 60:.0f} min" if value < 5400 else f"{value / 3600:.1f} h"


class _Seen:
    """What the views share: how far the study is."""

    def __init__(self, jobs: int) -> None:
        self.jobs = jobs
        self.cells: Sequence[Cell] = ()
        self.rows: dict[str, Row] = {}

    def begun(self, cells: Sequence[Cell], rows: Mapping[str, Row]) -> None:
        self.cells, self.rows = cells, dict(rows)

    def ended(self, cell: Cell, row: Row) -> None:
        self.rows[cell.id] = row

    def time_left(self) -> str:
        from lipbridge.study.left import left

        waiting = [cell for cell in self.cells if cell.id not in self.rows]
        found = left(waiting, self.cells, self.rows, self.jobs)
        if not waiting or len(waiting) == found.unknown:
            return ""
        return f"{'more than ' if found.unknown else 'about '}{duration(found.seconds)} left"


class _Lines(_Seen):
    """A line on stderr for each cell."""

    def begun(self, cells: Sequence[Cell], rows: Mapping[str, Row]) -> None:
        super().begun(cells, rows)
        note(f"{len(cells)} cells, {len(rows)} of them done before")

    def ended(self, cell: Cell, row: Row) -> None:
        super().ended(cell, row)
        note(f"[{len(self.rows)}/{len(self.cells)}] {cell.label}: {told(row)}")

    def looked(self, running: Sequence[InFlight]) -> None:
        pass


class _Live(_Seen):
    """A table that is drawn anew in its place."""

    def __init__(self, jobs: int) -> None:
        super().__init__(jobs)
        self.running: Sequence[InFlight] = ()
        self.last: deque[tuple[str, Row]] = deque(maxlen=_LAST)

    def ended(self, cell: Cell, row: Row) -> None:
        super().ended(cell, row)
        self.last.append((cell.label, row))

    def looked(self, running: Sequence[InFlight]) -> None:
        self.running = running

    def __rich__(self) -> Any:
        from rich import box
        from rich.console import Group
        from rich.table import Table
        from rich.text import Text

        statuses = Counter(str(row["status"]) for row in self.rows.values())
        counts = ", ".join(f"{count} {status}" for status, count in statuses.most_common())
        head = " · ".join(
            text for text in (f"{len(self.rows)} of {len(self.cells)} cells", counts, self.time_left()) if text
        )
        table = Table(box=box.SIMPLE_HEAD, pad_edge=False, expand=True)
        for name, ratio in (("cell", 3), ("", 4)):
            table.add_column(name, ratio=ratio, no_wrap=True, overflow="ellipsis")
        for label, row in self.last:
            table.add_row(Text(label), Text(told(row)))
        for each in self.running:
            table.add_row(
                Text(each.cell.label), Text(f"running for {duration(time.time() - each.since)}, {each.where}")
            )
        return Group(Text(head, style="bold"), table)


@contextlib.contextmanager
def shown(jobs: int) -> Generator[View]:
    """A view on stderr: live where that is a terminal. Of the live table nothing remains."""
    from rich.console import Console

    console = Console(stderr=True)
    if not console.is_terminal or console.is_dumb_terminal:
        yield _Lines(jobs)
        return
    from rich.live import Live

    live = _Live(jobs)
    with Live(live, console=console, refresh_per_second=2, transient=True):
        yield live


__all__ = ["duration", "shown", "told"]
