"""The row that another process wrote: input, from a verifier that may be anything, which must not harm the others."""

from __future__ import annotations

import math
import os
import stat
from pathlib import Path
from typing import Any, cast

from lipbridge.disk.strict_json import parse_json
from lipbridge.study.cells import Cell, Kind, Row
from lipbridge.study.engine import wire
from lipbridge.study.engine.blank import LABELS, blank
from lipbridge.vocabulary import Side, Status

#: Bytes of a row at most: its witness is two inputs.
MOST = 2**28
#: What the cell says of itself, and its process does not: who it was, and that nobody has judged it.
_OF_CELL = (
    *("cell", "kind", "network", "group", "seed", "settings", "norm", "output_norm", "verifier", "verifier_name"),
    *("region", "quantity", "options", "radius", "threads", "time_limit", "memory_limit", "folder", "path"),
    *("tightness", "judged", "claimed"),
)
_NUMBERS = (
    *("value", "accuracy", "certified_accuracy", "seconds", "total_seconds", "cpu_seconds", "memory", "gpu_memory"),
    *("parameters", "epochs", "epoch_seconds", "bound_before_rescaling", "points", "load"),
)


def read_row(cell: Cell, file: Path) -> Row:
    """The row of a cell in a file, with every column of its kind.

    Raises:
        FileNotFoundError: if there is none.
        OSError, ValueError: if it is no such row: what the file holds is no JSON, too long, another cell's, or of other
            kinds than the columns are.

    Law: whatever the file holds, what names, groups, judges, counts and shows rows takes the row.
    """
    row: Any = parse_json(_bytes(file))
    if not isinstance(row, dict) or row.get("cell") != cell.id:  # type: ignore[reportUnknownMemberType]
        raise ValueError("it is another's")
    own = blank(cell, Status.OK)
    found = {**own, **cast(Row, row), **{name: own[name] for name in _OF_CELL if name in own}}
    for name in {"study", "restates"} & found.keys():
        del found[name]
    return checked(cell, found)


def named(cell: Cell, row: Row) -> Row:
    """A row that was kept, of the same work, called as the cell calls it.

    Raises:
        ValueError: if it is no row of its kind.
    """
    own = blank(cell, Status.OK)
    return checked(cell, {**own, **row, **{name: own[name] for name in LABELS if name in own}})


def checked(cell: Cell, found: Row) -> Row:
    """The row, if what stands in its columns is of the kinds that they are.

    Raises:
        ValueError: if not.
    """
    if found["status"] not in list(Status):
        raise ValueError("its status is none")
    for name in _NUMBERS:
        value = found.get(name)
        if value is not None and (isinstance(value, bool) or not isinstance(value, int | float) or _beyond(value)):
            raise ValueError(f"its {name} is no number")
    if not isinstance(found["detail"], str):
        raise ValueError("its detail is no text")
    if cell.kind is Kind.BOUND:
        _check_bound(found)
    return found


def _check_bound(row: Row) -> None:
    if row["side"] not in list(Side):
        raise ValueError("its side is none")
    if not isinstance(row["proved"], bool) or not isinstance(row["method"], str) or not isinstance(row["extra"], dict):
        raise ValueError("it is no bound")
    try:
        if row["witness"] is not None:
            wire.decode_witness(row["witness"])
    except (KeyError, TypeError, AttributeError, OverflowError, RuntimeError) as error:
        raise ValueError(f"its witness is none ({error})") from None


def _beyond(value: float) -> bool:
    try:
        return not math.isfinite(float(value))
    except OverflowError:
        return True


def _bytes(file: Path) -> bytes:
    """What a file holds: a file, no pipe that never ends and no link to another place."""
    descriptor = os.open(file, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    with open(descriptor, "rb") as stream:
        found = os.fstat(descriptor)
        if not stat.S_ISREG(found.st_mode) or found.st_size > MOST:
            raise ValueError(f"it is no file of at most {MOST // 2**20} MiB")
        return stream.read(MOST)


__all__ = ["MOST", "checked", "named", "read_row"]
