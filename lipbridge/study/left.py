"""How long the rest of a study takes, by what the cells that are done took."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from lipbridge.study.cells import Cell, Kind, Row


@dataclass(frozen=True)
class Left:
    """Seconds until the end, if ``unknown`` cells, of which none of their kind was done yet, took no time."""

    seconds: float
    unknown: int


def left(waiting: Iterable[Cell], cells: Sequence[Cell], rows: Mapping[str, Row], jobs: int) -> Left:
    """Each cell that waits is taken to last as long as the median of those of its kind that are done.

    Those of the same training settings or verifier on the same kind of network count; where there are none, of the
    same data and architecture or verifier.
    """
    near: dict[object, list[float]] = {}
    for cell in cells:
        row = rows.get(cell.id)
        seconds = None if row is None else row.get("total_seconds")
        if isinstance(seconds, int | float):
            for key in _keys(cell):
                near.setdefault(key, []).append(float(seconds))
    medians: dict[object, float] = {}
    total, unknown = 0.0, 0
    for cell in waiting:
        key = next((key for key in _keys(cell) if key in near), None)
        if key is None:
            unknown += 1
        else:
            if key not in medians:  # once, where thousands wait for the same
                medians[key] = statistics.median(near[key])
            total += medians[key]
    return Left(total / max(jobs, 1), unknown)


def _keys(cell: Cell) -> list[object]:
    words = cell.words
    if cell.kind is Kind.TRAINING:
        near = (cell.kind, words["data"]["sha256"], words["arch"], words["settings"].get("epochs"))
        return [(cell.kind, cell.group), near]
    if cell.kind is Kind.MODEL:
        return [cell.kind]
    own = (cell.kind, words["verifier"], str(words.get("question")), words.get("radius"))
    return [(own, cell.group), own]


__all__ = ["Left", "left"]
