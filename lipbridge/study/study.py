"""Runs a study: what is missing of its cells, with every row kept the moment it is there."""

from __future__ import annotations

import shlex
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Protocol

from lipbridge.disk.atomic import write_atomically
from lipbridge.disk.locks import held
from lipbridge.disk.temporary import ended_in_order
from lipbridge.errors import FileNotWritten, LipbridgeError
from lipbridge.files.rows import ROWS, append_rows
from lipbridge.machine import machine_facts
from lipbridge.study.cells import Cell, Kind, Row
from lipbridge.study.config import read_study
from lipbridge.study.engine.choice import choice_of
from lipbridge.study.engine.protocol import Engine, InFlight
from lipbridge.study.folder import (
    AGAIN,
    CONTRADICTIONS,
    FILE,
    PLAN,
    RUNNING,
    RUNS,
    read_recorded,
    write_json,
    write_running,
)
from lipbridge.study.judge import CLAIMED, TOLERANCE, judged_cells
from lipbridge.study.plan import Plan, make_plan
from lipbridge.study.running import run_cells
from lipbridge.vocabulary import Side, Status

#: Seconds between two writings of what runs, for those who look on.
_TELL = 2.0
#: In a row's ``extra``: why it could not be judged yet.
UNJUDGED = "not judged"


class View(Protocol):
    """Whoever shows a study that runs."""

    def begun(self, cells: Sequence[Cell], rows: Mapping[str, Row]) -> None:
        """Before the first cell: all cells, and the rows that are there already, by cell."""
        ...

    def ended(self, cell: Cell, row: Row) -> None:
        """A row is there."""
        ...

    def looked(self, running: Sequence[InFlight]) -> None:
        """Twice a second: what runs."""
        ...


@dataclass(frozen=True, eq=False)
class StudyRun:
    """What a run of a study did.

    Attributes:
        ran: how many cells it ran.
        rows: of all cells of the study that have one, by cell.
        waiting: the cells that could not be run, since a network that they need is not there.
    """

    ran: int
    rows: Mapping[str, Row]
    waiting: Sequence[Cell]


def run_cells_of(
    plan: Plan,
    text: str,
    folder: Path,
    engine: Callable[[Path], Engine],
    *,
    view: View | None = None,
    retry: Collection[Status] = (),
    facts: Mapping[str, Any] | None = None,
) -> StudyRun:
    """Run the cells of a plan that have no row in ``folder`` yet, and judge each network when its cells are done.

    Args:
        plan: the study.
        text: its file, which is kept beside the rows.
        folder: made if it is not there; one run at a time has it.
        engine: makes the engine once the folder is held.
        view: is told of every row.
        retry: rows with these statuses count as none.
        facts: of this start, for ``runs.jsonl``.

    Raises:
        FolderInUse: if another process runs a study there.
        FileNotWritten: if the folder cannot be written, or not any more: what has its row is kept.

    Law: whenever it is killed, at most the cells in flight are lost, and another run ends with the rows of one that was
    not killed, times and loads aside.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise FileNotWritten(folder, error) from error
    with ended_in_order(), held(folder):
        write_atomically(folder / FILE, text.encode())
        write_json(folder / PLAN, plan.to_json())
        append_rows(folder / ROWS, [])
        started = {"date": datetime.now(UTC).isoformat(timespec="seconds"), "machine": machine_facts(), **(facts or {})}
        append_rows(folder / RUNS, [started])
        run = _Run(plan, folder, view, retry)
        running = engine(folder)
        try:
            if view is not None:
                view.begun(plan.cells, run.rows)
            run.judge_all()
            waiting = run_cells(run.missing, running, run, run.succeeded)
        finally:
            running.close()
            with suppress(OSError):
                (folder / RUNNING).unlink(missing_ok=True)
    return StudyRun(run.ran, {cell.id: run.rows[cell.id] for cell in plan.cells if cell.id in run.rows}, waiting)


def run_study(
    file: Path | str,
    out: Path | str | None = None,
    *,
    jobs: int | None = None,
    engine: str | None = None,
    retry: Collection[Status | str] = (),
    view: View | None = None,
) -> list[Row]:
    """Run what is missing of a study file, and give all its rows, as JSON; ``lipbridge.read_rows(out)`` frames them.

    Args:
        file: the study file.
        out: its folder; named after the file, in the working folder, if not given.
        jobs: cells at once; as the file says if not given.
        engine: ``local``, ``slurm`` or ``submitit-local``; as the file says if not given.
        retry: statuses whose cells run again, e.g. ``["failed", "timeout"]``.
        view: is told of every row.

    Raises:
        StudyFileError: for a file with faults.
        FolderInUse, FileNotWritten: as :func:`run_cells_of`.
    """
    read = read_study(file)
    plan = make_plan(read, jobs=jobs)
    chosen = choice_of(plan.tables, engine, jobs)
    folder = Path(read.path.stem) if out is None else Path(out)
    again = [Status(status) for status in retry]
    command = shlex.join(["lipbridge", "study", "run", str(file), "--out", str(folder)])
    run_cells_of(plan, read.kept(), folder, chosen.engine, view=view, retry=again, facts=chosen.facts(command))
    return read_recorded(folder).current


class _Run:
    """The rows as they come: kept, and judged as soon as a network has all of its own."""

    def __init__(self, plan: Plan, folder: Path, view: View | None, retry: Collection[Status]) -> None:
        self._plan, self._folder, self._view = plan, folder, view
        ids = {cell.id for cell in plan.cells}
        again = {*AGAIN, *retry}
        recorded = read_recorded(folder)
        found = recorded.rows
        self.rows = {id: row for id, row in found.items() if id in ids and row["status"] not in again}
        append_rows(folder / ROWS, [{**found[id], "study": plan.name} for id in recorded.renamed])
        self.ran = 0
        self._told = 0.0
        self._bounds: dict[str, list[Cell]] = {}
        for cell in plan.cells:
            if cell.kind is Kind.BOUND:
                self._bounds.setdefault(cell.network, []).append(cell)

    @property
    def missing(self) -> list[Cell]:
        return [cell for cell in self._plan.cells if cell.id not in self.rows]

    @property
    def succeeded(self) -> set[str]:
        return {id for id, row in self.rows.items() if row["status"] == Status.OK}

    def started(self, cell: Cell) -> None:
        self._told = 0.0

    def ended(self, cell: Cell, row: Row) -> None:
        self.ran += 1
        self._keep([self._measured(cell, row)])
        if cell.kind is Kind.BOUND:
            self._judge(cell.network)
        self._told = 0.0
        if self._view is not None:
            self._view.ended(cell, self.rows[cell.id])

    def looked(self, running: Sequence[InFlight]) -> None:
        if time.monotonic() - self._told >= _TELL:
            write_running(self._folder, running)
            self._told = time.monotonic()
        if self._view is not None:
            self._view.looked(running)

    def _measured(self, cell: Cell, row: Row) -> Row:
        """With its tightness by the lower bounds that there are so far, until it is judged."""
        if cell.kind is not Kind.BOUND or row["side"] == Side.LOWER or row["value"] is None:
            return row
        question = ("norm", "quantity", "region")
        lower = [
            other["value"]
            for other in (self.rows.get(each.id) for each in self._bounds[cell.network])
            if other is not None and other["side"] != Side.UPPER and other["witness"] is not None
            if all(other[name] == row[name] for name in question)
        ]
        best = max((value for value in lower if value is not None), default=0.0)
        if not best > 0:
            return row
        found: Row = {**row, "tightness": row["value"] / best}
        if row["value"] >= best * (1 - TOLERANCE):
            return found
        claimed = {name: row[name] for name in ("status", "proved", "detail")}
        words = f"it lies below {best:.9g}, which a witness is said to prove; not judged yet"
        return {**found, "status": Status.UNSOUND.value, "proved": False, "detail": words, CLAIMED: claimed}

    def judge_all(self) -> None:
        """What a kill kept from being judged."""
        for network, cells in self._bounds.items():
            if any(cell.id in self.rows and not self.rows[cell.id]["judged"] for cell in cells):
                self._judge(network)

    def _judge(self, network: str) -> None:
        cells = self._bounds[network]
        if not all(cell.id in self.rows for cell in cells):
            return
        pairs: list[tuple[Cell, Row]] = []
        for cell in cells:
            row = self.rows[cell.id]
            pairs.append((cell, {**row, "extra": {k: v for k, v in row["extra"].items() if k != UNJUDGED}}))
        try:
            found = judged_cells(self._folder, pairs, self._folder / CONTRADICTIONS)
        except FileNotWritten:
            raise
        except LipbridgeError as error:  # the network is not there, or cannot be read here: the next run tries again
            found = [{**row, "extra": {**row["extra"], UNJUDGED: str(error)}} for _, row in pairs]
        named: list[Row] = [{**row, "study": self._plan.name} for row in found]
        self._keep([row for row in named if row != self.rows.get(row["cell"])])

    def _keep(self, rows: Sequence[Row]) -> None:
        named = [{**row, "study": self._plan.name} for row in rows]
        append_rows(self._folder / ROWS, named)
        self.rows |= {row["cell"]: row for row in named}


__all__ = ["StudyRun", "View", "run_cells_of", "run_study"]
