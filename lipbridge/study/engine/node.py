"""The program of a job on a cluster's node: ``python -m lipbridge.study.engine.node FILE``.

The file is JSON: the study's folder, cells, and where rows go, one file a cell. Cells are done one after the other as
anywhere, within their limits. One whose row is there is not done again, so a job that is started anew goes on.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from contextlib import closing
from importlib import import_module
from pathlib import Path
from typing import Any

from lipbridge.disk.atomic import write_atomically
from lipbridge.disk.strict_json import jsonable, parse_json
from lipbridge.disk.temporary import ended_in_order
from lipbridge.errors import kind_and_line
from lipbridge.study.cells import Cell, Row
from lipbridge.study.engine.blank import blank
from lipbridge.study.engine.local import LocalEngine
from lipbridge.vocabulary import Status

#: Does a cell in a study's folder.
Run = Callable[[Path, Cell], Row]


def row_file(rows: Path, cell: str) -> Path:
    """Where the row of a cell goes."""
    return rows / f"{cell}.json"


def write_batch(file: Path, folder: Path, rows: Path, cells: list[Cell], run: str | None = None) -> None:
    """Write what :func:`main` reads; ``run`` is ``module:function``, of a :data:`Run` in place of the engine's own.

    Raises:
        FileNotWritten: if that fails.
    """
    words = {
        "folder": str(folder.absolute()),
        "rows": str(rows.absolute()),
        "run": run,
        "cells": [cell.to_json() for cell in cells],
    }
    write_atomically(file, json.dumps(jsonable(words)).encode())


def main(file: Path) -> None:
    """Do the cells of a file, one after the other."""
    words: Any = parse_json(file.read_bytes())
    folder, rows = Path(words["folder"]), Path(words["rows"])
    with ended_in_order(), closing(LocalEngine(folder)) as engine:  # a cluster sends SIGTERM, and then SIGKILL

        def by_engine(_: Path, cell: Cell) -> Row:
            engine.submit(cell)
            while not (found := engine.finished(60.0)):
                pass
            return found[0][1]

        run = by_engine if words["run"] is None else _named(words["run"])
        for cell in map(Cell.from_json, words["cells"]):
            if row_file(rows, cell.id).exists():
                continue
            try:
                row = run(folder, cell)
            except Exception as error:  # ours to mend, and still no reason to lose the other rows
                row = blank(cell, Status.FAILED, kind_and_line(error))
            write_atomically(row_file(rows, cell.id), json.dumps(jsonable(row)).encode())


def _named(name: str) -> Run:
    module, _, function = name.partition(":")
    return getattr(import_module(module), function)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
