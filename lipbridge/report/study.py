"""The report of a study's folder: its rows, what it says of itself, the histories of its trainings."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

from lipbridge.disk.strict_json import parse_json
from lipbridge.files.rows import PLAN, load_rows
from lipbridge.machine import machine_facts
from lipbridge.report.networks import networks_of
from lipbridge.report.page import About, write_report
from lipbridge.report.pictures import write_figures

Row = Mapping[str, Any]


def write_study_report(
    folder: Path, path: Path | None = None, figures: Sequence[Path] = (), rows: Sequence[Row] | None = None
) -> Path:
    """Write the report of a study, of as many of its cells as are finished.

    Args:
        folder: of the study: ``rows.jsonl``, and ``plan.json``, ``runs.jsonl`` and ``study.toml`` where they are.
        path: the HTML file; ``report.html`` in the folder if not given.
        figures: folders to write the figures into too, as PDF and PNG.
        rows: those that the report is about; all that the folder has if not given.

    Raises:
        MissingDependency: if jinja2 or matplotlib is not installed.
        FileNotWritten: if a file cannot be written.
        InvalidArgument: if the folder has no rows.
    """
    rows = load_rows(folder) if rows is None else rows
    networks = networks_of(rows, folder)
    about, machine = read_about(folder)
    path = folder / "report.html" if path is None else path
    epochs = [{"network": network.name, **line} for network in networks for line in network.history]
    for place in figures:
        for suffix in (".pdf", ".png"):
            write_figures(place, rows, epochs, suffix)
    return write_report(path, rows, networks, machine, about)


def read_about(folder: Path) -> tuple[About, Mapping[str, Any]]:
    """What a study says of itself, and the machine of its last start; this one's where no start is recorded."""
    plan = _object(_text(folder / PLAN))
    runs = [run for line in _text(folder / "runs.jsonl").splitlines() if (run := _object(line))]
    last = runs[-1] if runs else {}
    jobs, machine = last.get("jobs"), last.get("machine")
    about = About(
        str(plan.get("title") or plan.get("name") or folder.resolve().name),
        str(plan.get("description") or ""),
        shlex.join(["lipbridge", "study", "run", "study.toml", "--out", str(folder)])
        if (folder / "study.toml").exists()
        else str(last.get("command") or ""),
        str(last.get("engine") or ""),
        jobs if isinstance(jobs, int) else None,
        _text(folder / "study.toml"),
        runs,
    )
    return about, cast(Mapping[str, Any], machine) if isinstance(machine, dict) else machine_facts()


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def _object(text: str) -> dict[str, Any]:
    """A JSON object; empty for what is none."""
    try:
        found: Any = parse_json(text)
    except ValueError:
        return {}
    return cast(dict[str, Any], found) if isinstance(found, dict) else {}
