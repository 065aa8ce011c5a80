"""Cells that do what a test says, in place of a study's own; and a study of them, as a process that can be killed.

``python -m tests.support.cluster_cells FOLDER slurm|submitit-local CELLS`` runs the cells of a file of JSON lines.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from lipbridge.disk.temporary import temporary_folder
from lipbridge.files.rows import ROWS, append_rows, load_rows
from lipbridge.processes import Limit, run_child
from lipbridge.study.cells import Cell, Kind, Limits, Row, make_cell
from lipbridge.study.engine.blank import blank
from lipbridge.study.engine.cluster_settings import ClusterSettings
from lipbridge.study.engine.protocol import Engine
from lipbridge.study.engine.slurm import SlurmEngine, cluster_engine
from lipbridge.vocabulary import Status

RUN = "tests.support.cluster_cells:work"
RAN, GO = "ran.txt", "go"
#: Quick to look, and to give up.
SETTINGS: dict[str, Any] = {"poll": 0.3, "patience": 60.0, "max_jobs": 8, "memory": 2**28, "cpus": 1}
_EAT = "import time\nkept = b'x' * 2**27\ntime.sleep(60)"


def cell(number: int, do: str = "fine", *, after: Sequence[str] = (), seconds: float = 2.0, **words: Any) -> Cell:
    """A cell that does as it is told, with a limit of 64 MiB."""
    given = {"do": do, "number": number, "source": {"path": f"model-{number}"}, "limits": seconds, **words}
    limits = Limits(seconds, 2**26)
    return make_cell(Kind.MODEL, given, network=f"n{number}", label=f"cell {number}", limits=limits, after=after)


def work(folder: Path, cell: Cell) -> Row:
    """Do a cell: what it did is in a file of its own too, so that a test sees what ran twice."""
    with open(folder / RAN, "a") as ran:
        ran.write(f"{cell.words['number']}\n")
    start, status, detail = time.time(), Status.OK, ""
    match cell.words["do"]:
        case "wait":
            while not (folder / GO).exists():
                time.sleep(0.05)
        case "raise":
            raise ValueError("as it was told")
        case "crash":
            os.write(2, b"the last words\n")
            os._exit(7)
        case "grow":  # the node's program itself, which no limit of ours holds
            kept = b"x" * 2**29
            time.sleep(60.0 + 0 * len(kept))
        case "sleep":
            status, detail = _within(["sleep", str(cell.words.get("pause", 60))], cell)
        case "eat":
            status, detail = _within([sys.executable, "-c", _EAT], cell)
        case _:
            time.sleep(cell.words.get("pause", 0.0))
    return {**blank(cell, status, detail), "accuracy": cell.words["number"] / 100, "seconds": time.time() - start}


def _within(command: list[str], cell: Cell) -> tuple[Status, str]:
    with temporary_folder() as place:
        end = run_child(command, place, seconds=cell.limits.seconds, memory=cell.limits.memory)
    status = {Limit.TIME: Status.TIMEOUT, Limit.MEMORY: Status.MEMORY, None: Status.OK}[end.limit]
    return status, f"stopped at the limit of {end.limit}"


def engine(folder: Path, kind: str, **settings: Any) -> SlurmEngine:
    """Of Slurm, or of processes of this machine."""
    return cluster_engine(kind, folder, ClusterSettings(**{**SETTINGS, **settings}), RUN)


def study(
    folder: Path, cells: Sequence[Cell], engine: Engine, told: Callable[[Row], None] | None = None, seconds: float = 120
) -> list[Row]:
    """What a study does: submits what is missing and may begin, and keeps rows as they come."""
    deadline = time.monotonic() + seconds
    try:
        while True:
            done = {row["cell"]: row for row in load_rows(folder)} if (folder / ROWS).exists() else {}
            ok = {name for name, row in done.items() if row["status"] == "ok"}
            flying = {each.cell.id for each in engine.running()}
            for each in cells:
                if each.id not in done and each.id not in flying and ok.issuperset(each.after) and engine.room():
                    engine.submit(each)
            if all(each.id in done for each in cells):
                return [done[each.id] for each in cells]
            assert time.monotonic() < deadline, [each.where for each in engine.running()]
            found = engine.finished(2.0)
            append_rows(folder / ROWS, [row for _, row in found])
            for _, row in found:
                if told is not None:
                    told(row)
    finally:
        engine.close()


def ran(folder: Path) -> list[int]:
    """The numbers of cells that began, in order."""
    return sorted(int(line) for line in (folder / RAN).read_text().split())


if __name__ == "__main__":
    place, kind, file = Path(sys.argv[1]), sys.argv[2], Path(sys.argv[3])
    study(place, [Cell.from_json(json.loads(line)) for line in file.read_text().splitlines()], engine(place, kind))
