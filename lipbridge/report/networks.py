"""What the report says of each network: how it is built, and how it was trained, as far as that is known."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

from lipbridge.graph.graph import Graph
from lipbridge.plot.networks import is_number
from lipbridge.report.facts import architecture, parameter_count

Row = Mapping[str, Any]


@dataclass(frozen=True, eq=False)
class Network:
    """A network; what is not known of it is None or empty."""

    name: str
    architecture: str
    parameters: int | None
    data: str = ""
    accuracy: float | None = None
    penalty: float | None = None
    history: Sequence[Row] = field(default_factory=lambda: [])

    @classmethod
    def read(cls, name: str, folder: Path, graph: Graph, run: Mapping[str, Any] | None) -> Network:
        """From a Graph and the folder of its training run (``run.json``, ``metrics.jsonl``), if it has one."""
        result = cast(Mapping[str, Any], (run or {}).get("result") or {})
        return cls(
            name,
            architecture(graph),
            parameter_count(graph),
            str((run or {}).get("dataset") or ""),
            result.get("accuracy"),
            result.get("penalty"),
            _history(folder / "metrics.jsonl") if run is not None else [],
        )

    def to_row(self) -> dict[str, Any]:
        """As the row of a model, for figures and tables that are made from rows."""
        row = {"kind": "model", "network": self.name, "group": self.name, "data": self.data, "norm": None}
        facts = {"architecture": self.architecture, "parameters": self.parameters, "accuracy": self.accuracy}
        return row | facts | {"penalty": self.penalty, "status": "ok"}


def networks_of(rows: Sequence[Row], folder: Path | None = None) -> list[Network]:
    """The networks of a study, in the order of its rows.

    Args:
        rows: its JSON rows; the ones of trainings and models say how a network is built.
        folder: the study's, in which the histories of the trainings are.
    """
    found: dict[str, Row] = {}
    for row in rows:
        if row.get("kind") in ("training", "model") or row["network"] not in found:
            found[row["network"]] = row
    return [_network(row, folder) for row in found.values()]


def _network(row: Row, folder: Path | None) -> Network:
    parameters, accuracy, penalty = row.get("parameters"), row.get("accuracy"), row.get("penalty")
    told = row.get("kind") in ("training", "model")
    place = row.get("folder")
    history: list[Row] = []
    if (
        folder is not None
        and isinstance(place, str)
        and ".." not in Path(place).parts
        and not Path(place).is_absolute()
    ):
        history = _history(folder / place / "metrics.jsonl")
    return Network(
        row["network"],
        str(row.get("architecture") or ""),
        parameters if isinstance(parameters, int) else None,
        str(row.get("data") or "") if told else "",
        accuracy if told and is_number(accuracy) else None,
        penalty if told and is_number(penalty) else None,
        history,
    )


def _history(path: Path) -> list[Row]:
    """The rows of ``metrics.jsonl``; a damaged line is skipped."""
    rows: list[Row] = []
    with suppress(OSError):
        for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
            with suppress(ValueError, RecursionError):
                row: Any = json.loads(line)
                if isinstance(row, dict) and "epoch" in row:
                    rows.append(cast(Row, row))
    return rows
