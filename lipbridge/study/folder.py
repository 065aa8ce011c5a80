"""The folder of a study: what stands in it, for whoever runs it and whoever looks on.

``study.toml``     the study file as it was run
``plan.json``      the cells, and what the study says of itself
``rows.jsonl``     every row, only appended to (:mod:`lipbridge.files.rows`)
``runs.jsonl``     one line a start: when, by which command, on what machine
``running.json``   the cells in flight
``networks/``      a folder for each training
``contradictions/``  networks that a witness contradicts a verifier on
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lipbridge.disk.atomic import write_atomically
from lipbridge.disk.strict_json import jsonable, parse_json
from lipbridge.errors import InvalidArgument
from lipbridge.files.rows import PLAN, ROWS, load_rows, read_lines
from lipbridge.study.cells import Cell, Kind, Row
from lipbridge.study.engine.blank import LABELS, TRIVIAL, blank
from lipbridge.study.engine.protocol import InFlight
from lipbridge.study.engine.received import named
from lipbridge.vocabulary import Status

FILE, RUNS, RUNNING, CONTRADICTIONS = "study.toml", "runs.jsonl", "running.json", "contradictions"
#: With these a cell is run again by the next run: something may be installed meanwhile.
AGAIN = (Status.MISSING,)


@dataclass(frozen=True, eq=False)
class Recorded:
    """A study as its folder has it: the plan's words, its cells, and the rows that there are, by cell.

    ``renamed`` are the ids of rows that the plan calls otherwise than the file of rows does.
    """

    folder: Path
    words: Mapping[str, Any]
    cells: tuple[Cell, ...]
    rows: Mapping[str, Row]
    runs: Sequence[Mapping[str, Any]]
    renamed: Sequence[str] = ()

    @property
    def name(self) -> str:
        """Of the study."""
        return str(self.words.get("name") or self.folder.name)

    @property
    def current(self) -> list[Row]:
        """The rows of the plan's cells in its order, and what was restated of them; not those of earlier plans."""
        found = [self.rows[cell.id] for cell in self.cells if cell.id in self.rows]
        asked = {_question(row) for row in found if row["kind"] == Kind.BOUND}
        answered = {
            _question(row) for row in found if row.get("verifier_name") == TRIVIAL and row["status"] == Status.OK
        }
        restated: dict[str, list[Row]] = {}
        for row in self.rows.values():
            if row.get("restates") and _question(row) in asked - answered:
                restated.setdefault(row["restates"], []).append(row)
        return [each for row in found for each in (row, *restated.get(row["cell"], ()))]


def _question(row: Row) -> tuple[object, ...]:
    return tuple(row.get(name) for name in ("network", "norm", "quantity", "region"))


def read_recorded(folder: Path) -> Recorded:
    """A study's folder, also while it runs.

    Raises:
        InvalidArgument: if it is none, or its plan is damaged.
    """
    try:
        words: dict[str, Any] = parse_json((folder / PLAN).read_bytes())
        cells = tuple(Cell.from_json(found) for found in words["cells"])
        for cell in cells:
            blank(cell, Status.OK)  # which tells of words that are none
    except FileNotFoundError:
        expected = f"be the folder of a study that was run, by `lipbridge study run`: it holds no {PLAN}"
        raise InvalidArgument("study", expected, str(folder)) from None
    except (OSError, ValueError, TypeError, LookupError) as error:
        expected = f"be a study's folder whose {PLAN} can be read: run the study again to write it anew"
        raise InvalidArgument("study", expected, f"{folder}: {error}") from None
    rows = load_rows(folder) if (folder / ROWS).exists() else []
    runs = read_lines(folder / RUNS) if (folder / RUNS).exists() else []
    raw = {row["cell"]: row for row in rows if isinstance(row.get("cell"), str)}
    known = _named(cells, raw)
    renamed = [id for id, row in known.items() if any(row.get(name) != raw[id].get(name) for name in LABELS)]
    return Recorded(folder, words, cells, known, runs, renamed)


def _named(cells: Sequence[Cell], rows: Mapping[str, Row]) -> dict[str, Row]:
    """The rows, those of the plan's cells named as it names them now; what is no row of its cell is none."""
    found = dict(rows)
    for cell in cells:
        if (row := rows.get(cell.id)) is not None:
            try:
                found[cell.id] = named(cell, row)
            except ValueError:
                del found[cell.id]
    for id, row in rows.items():
        if (of := found.get(str(row.get("restates")))) is not None:
            found[id] = {**row, **{name: of[name] for name in LABELS if name in of}}
    return found


def write_json(file: Path, words: Mapping[str, Any]) -> None:
    """Write JSON for people and programs, atomically.

    Raises:
        FileNotWritten: if that fails.
    """
    write_atomically(file, (json.dumps(jsonable(words), indent=1) + "\n").encode())


def write_running(folder: Path, running: Sequence[InFlight]) -> None:
    """Tell others what is in flight."""
    cells = [
        {"cell": each.cell.id, "label": each.cell.label, "since": each.since, "where": each.where} for each in running
    ]
    write_json(folder / RUNNING, {"cells": cells})


def read_running(folder: Path) -> list[dict[str, Any]]:
    """What :func:`write_running` told last; empty if nobody runs the study."""
    try:
        found: Any = parse_json((folder / RUNNING).read_bytes())
        return list(found["cells"])
    except (OSError, ValueError, TypeError, LookupError):
        return []


__all__ = [
    "AGAIN",
    "CONTRADICTIONS",
    "FILE",
    "PLAN",
    "RUNNING",
    "RUNS",
    "Recorded",
    "read_recorded",
    "read_running",
    "write_json",
    "write_running",
]
