"""Files of rows: JSON lines that are only appended to, so that nothing that was written is ever lost.

A row says by its ``cell`` what it is the result of; a later row of the same cell takes the place of an earlier one.
Whoever was killed while he wrote leaves a torn last line: it is skipped, and the next row begins on a line of its own.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, cast

from lipbridge.disk.strict_json import jsonable, parse_json
from lipbridge.errors import FileNotWritten, InvalidArgument

#: The rows of a study, in its folder.
ROWS = "rows.jsonl"
#: Beside them: the cells of the study as it was planned last; those of earlier plans keep their rows.
PLAN = "plan.json"


def append_rows(file: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Append rows to a file, which is made if it is not there, and bring them to the disk.

    Raises:
        FileNotWritten: if that fails; whole rows that were written stay, and part of one is taken back.
    """
    data = b"".join(json.dumps(jsonable(row), allow_nan=False).encode() + b"\n" for row in rows)
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with open(file, "ab+", buffering=0) as stream:
            end = stream.seek(0, os.SEEK_END)
            if end and os.pread(stream.fileno(), 1, end - 1) != b"\n":
                data = b"\n" + data
            try:
                written = 0
                while written < len(data):
                    written += stream.write(data[written:]) or 0
                os.fsync(stream.fileno())
            except OSError:
                os.ftruncate(stream.fileno(), end)
                raise
    except OSError as error:
        raise FileNotWritten(file, error) from error


def read_lines(file: Path) -> list[dict[str, Any]]:
    """All rows of a file as they were written; lines that are none are skipped.

    Raises:
        InvalidArgument: if the file cannot be read.
    """
    try:
        lines = file.read_bytes().split(b"\n")
    except OSError as error:
        raise InvalidArgument("rows", f"be a file of rows that can be read ({error.strerror})", str(file)) from error
    found: list[dict[str, Any]] = []
    for line in lines:
        try:
            row: Any = parse_json(line) if line.strip() else None
        except (ValueError, RecursionError):
            continue
        if isinstance(row, dict):
            found.append(cast(dict[str, Any], row))
    return found


def load_rows(path: Path | str) -> list[dict[str, Any]]:
    """The rows of a study's folder or of a file of rows: the last one of each cell, in the order of the first ones.

    Raises:
        InvalidArgument: if there are none to read.
    """
    path = Path(path)
    if path.is_dir():
        path = path / ROWS
        if not path.exists():
            words = f"be a study's folder, with {ROWS}, or such a file"
            raise InvalidArgument("rows", words, str(path.parent))
    found: dict[object, dict[str, Any]] = {}
    for index, row in enumerate(read_lines(path)):
        if "network" in row:
            cell = row.get("cell", index)
            found[cell if isinstance(cell, str) else index] = row
    return list(found.values())


__all__ = ["ROWS", "append_rows", "load_rows", "read_lines"]
