"""The report: one HTML file that opens anywhere, offline, with the table, the plots, and where it all ran."""

from __future__ import annotations

import importlib
import json
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

from lipbridge import text
from lipbridge.disk.atomic import write_atomically
from lipbridge.errors import InvalidArgument, MissingDependency
from lipbridge.graph.graph import Graph
from lipbridge.report.facts import architecture, parameter_count
from lipbridge.report.headline import exactly_known, headline
from lipbridge.report.plots import COLOURS, REPORT_COMMAND, require_matplotlib, tightness_plot, training_plot
from lipbridge.verifiers import list_verifiers
from lipbridge.vocabulary import Status

Row = Mapping[str, Any]


@dataclass(frozen=True, eq=False)
class Network:
    """What the report says of a network: how it is built, and how it was trained, as far as that is known."""

    name: str
    architecture: str
    parameters: int
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


def require_writable(path: Path) -> None:
    """Check, before any long work, that a report can be made and written there.

    Raises:
        MissingDependency: if jinja2 or matplotlib is not installed.
        InvalidArgument: if the file cannot be written.
    """
    _jinja2()
    require_matplotlib()
    if path.is_dir():
        raise InvalidArgument("report", "be a file, not a folder", str(path))
    folder = next(folder for folder in path.absolute().parents if folder.exists())
    try:
        with tempfile.TemporaryFile(dir=folder):  # the only test that holds for every user and file system
            pass
    except OSError as error:
        raise InvalidArgument("report", f"be a file that can be written ({error.strerror})", str(path)) from None


def write_report(path: Path, rows: Sequence[Row], networks: Sequence[Network], machine: Mapping[str, Any]) -> Path:
    """Write the report atomically; a file that is there is replaced.

    Args:
        path: the HTML file.
        rows: JSON rows of :func:`lipbridge.study.comparison`.
        networks: those that the rows are about.
        machine: :func:`lipbridge.machine_facts`.

    Raises:
        MissingDependency: if jinja2 or matplotlib is not installed.
    """
    return write_atomically(path, render(rows, networks, machine).encode())


def render(rows: Sequence[Row], networks: Sequence[Network], machine: Mapping[str, Any]) -> str:
    """The page. It loads nothing: styles and plots stand inside, and its policy forbids the rest."""
    jinja2 = _jinja2()
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("lipbridge.report", "."),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters |= {
        "number": text.number,
        "seconds": text.seconds,
        "percent": text.percent,
        "mebibytes": text.mebibytes,
        "advice": _advice,
    }
    names = [network.name for network in networks]
    verifiers = list(dict.fromkeys(row["verifier"] for row in rows))
    safe: Any = importlib.import_module("markupsafe").Markup  # the plots are ours, with matplotlib's escaping
    return environment.get_template("report.html.j2").render(
        headline=headline(rows),
        exact=sorted({network for network, *_ in exactly_known(rows)}),
        questions=questions(rows),
        networks=networks,
        trivial={name: _trivial(rows, name) for name in names},
        colours={name: index % COLOURS for index, name in enumerate(names)},
        certified=[row for row in rows if row["certified_accuracy"] is not None and _own(row)],
        unsound=[row for row in rows if row["status"] == "unsound"],
        tightness=safe(tightness_plot(rows, names, verifiers)),
        training=safe(training_plot({network.name: network.history for network in networks}, names)),
        machine=machine,
        verifiers=[info for info in list_verifiers() if info.name in verifiers],
    )


def _advice(status: str) -> str:
    return Status(status).advice


def _trivial(rows: Sequence[Row], network: str) -> Row | None:
    mine = (row for row in rows if row["network"] == network and row["quantity"] == "lipschitz")
    return next((row for row in mine if row["verifier"] == "trivial" and row["value"] is not None), None)


def _own(row: Row) -> bool:
    """Whether the row is a verifier's own answer, not one restated for another question."""
    return row["region"] == "everywhere" or row["verifier"] != "trivial"


def questions(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """The rows by question (quantity, norm, region), and in each by network, upper bounds by value, witness last."""
    keys = list(dict.fromkeys((row["quantity"], row["norm"], row["region"]) for row in rows))
    found: list[dict[str, Any]] = []
    for quantity, norm, region in keys:
        mine = [row for row in rows if (row["quantity"], row["norm"], row["region"]) == (quantity, norm, region)]
        groups = [
            {"network": name, "rows": sorted((row for row in mine if row["network"] == name), key=_order)}
            for name in dict.fromkeys(row["network"] for row in mine)
        ]
        found.append({"quantity": quantity, "norm": norm, "region": region, "groups": groups})
    return found


def _order(row: Row) -> tuple[bool, bool, float]:
    return row["side"] == "lower", row["value"] is None, row["value"] if row["value"] is not None else 0.0


def _history(path: Path) -> list[Row]:
    """The rows of ``metrics.jsonl``, up to the first line that is damaged."""
    rows: list[Row] = []
    try:
        for line in path.read_text().splitlines():
            row: Any = json.loads(line)
            if isinstance(row, dict) and "epoch" in row:
                rows.append(cast(Row, row))
    except (OSError, ValueError):
        pass
    return rows


def _jinja2() -> Any:
    try:
        return importlib.import_module("jinja2")
    except ImportError:
        raise MissingDependency("jinja2, which fills in the report,", REPORT_COMMAND) from None
