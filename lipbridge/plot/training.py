"""Accuracy, bound and loss by epoch."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, cast

from lipbridge.errors import NothingToDraw
from lipbridge.plot.networks import grouped, is_number, names_of, network_of
from lipbridge.plot.style import LINES, PAPER, Look, canvas, entry, legend, plain_ticks

Row = Mapping[str, Any]
_PANELS = (("accuracy", "Test accuracy, %", 100.0), ("bound", "Trivial bound", 1.0), ("loss", "Loss", 1.0))


def training(rows: Sequence[Row], ax: Any = None, *, look: Look = PAPER) -> tuple[Any, list[Any]]:
    """Test accuracy, trivial bound and loss of each network by epoch.

    Args:
        rows: lines of ``metrics.jsonl`` with their ``network``, as :func:`history` reads them.
        ax: three axes to draw on; a new figure if not given.
        look: colours and sizes.

    Returns:
        The figure and its three axes.

    Raises:
        NothingToDraw: if no row has an epoch.
        MissingDependency: if matplotlib is not installed.
    """
    known = grouped((network_of(row), row) for row in rows if is_number(row.get("epoch")))
    if not known:
        raise NothingToDraw("training", "epochs of trainings")
    names = names_of(known)
    with canvas(look, ax, look.size(7.2, 2.6), 3) as (figure, axes):
        for own, (key, title, factor) in zip(axes, _PANELS, strict=True):
            drawn: list[float] = []
            for place, some in enumerate(known.values()):
                points = [(row["epoch"], factor * row[key]) for row in some if is_number(row.get(key))]
                if points:
                    mark = {"marker": "o", "markersize": 3} if len(points) < 40 else {}
                    own.plot(*zip(*points, strict=True), **_line(place, look), **mark)
                    drawn += [value for _, value in points]
            own.set_title(title)
            own.set_xlabel("epoch")
            own.xaxis.get_major_locator().set_params(integer=True)
            positive = [value for value in drawn if value > 0]
            if key != "accuracy" and positive and max(positive) > 8 * min(positive):
                own.set_yscale("log")
                plain_ticks(own.yaxis, min(positive), max(positive))
        entries = [entry(name, **_line(place, look)) for place, name in enumerate(names.values())]
        legend(figure, axes, entries if len(entries) > 1 else [], ax is None)
        return figure, axes


def history(*folders: str | os.PathLike[str]) -> list[Row]:
    """What the folders of training runs recorded: the lines of their ``metrics.jsonl``, each with its ``network``.

    A network is named by its folder. A damaged line is skipped; a folder without the file has none.
    """
    found: list[Row] = []
    for folder in map(Path, folders):
        try:
            lines = (folder / "metrics.jsonl").read_text(encoding="utf-8", errors="replace").splitlines()
        except OSError:
            continue
        for line in lines:
            with suppress(ValueError, RecursionError):
                row: Any = json.loads(line)
                if isinstance(row, dict) and "epoch" in row:
                    found.append({"network": folder.resolve().name, **cast(Row, row)})
    return found


def _line(place: int, look: Look) -> dict[str, Any]:
    line = LINES[(place // len(look.series)) % len(LINES)]
    return {"color": look.colour(place), "linestyle": line, "linewidth": 1.6}
