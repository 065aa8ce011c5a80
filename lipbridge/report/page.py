"""The report: one HTML file that opens anywhere, offline, with tables, figures, rows, and where it all ran."""

from __future__ import annotations

import base64
import hashlib
import importlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lipbridge import text
from lipbridge.disk.atomic import require_place, write_atomically
from lipbridge.disk.strict_json import jsonable
from lipbridge.errors import MissingDependency
from lipbridge.plot import require_matplotlib
from lipbridge.plot.style import COMMAND, PAPER
from lipbridge.report import summaries
from lipbridge.report.headline import exactly_known, headline
from lipbridge.report.networks import Network, networks_of
from lipbridge.report.pictures import pictures
from lipbridge.verifiers import list_verifiers

Row = Mapping[str, Any]
#: More networks than this are a table and not cards.
CARDS = 8


@dataclass(frozen=True)
class About:
    """What a study says of itself, and how it was run; all of it can be left out.

    ``file`` is the study file as it was run, ``runs`` are the lines of ``runs.jsonl``.
    """

    title: str = ""
    description: str = ""
    command: str = ""
    engine: str = ""
    jobs: int | None = None
    file: str = ""
    runs: Sequence[Row] = field(default_factory=lambda: [])


def require_writable(path: Path) -> None:
    """Check, before any long work, that a report can be made and written there.

    Raises:
        MissingDependency: if jinja2 or matplotlib is not installed.
        InvalidArgument: if the file cannot be written.
    """
    _jinja2()
    require_matplotlib()
    require_place(path, "report")


def write_report(
    path: Path,
    rows: Sequence[Row],
    networks: Sequence[Network] | None,
    machine: Mapping[str, Any],
    about: About | None = None,
) -> Path:
    """Write the report atomically; a file that is there is replaced.

    Args:
        path: the HTML file.
        rows: JSON rows of a study, of all kinds, or those of bounds alone, as :func:`lipbridge.compare` has them.
        networks: those that the rows are about; what the rows say of them if not given.
        machine: :func:`lipbridge.machine.machine_facts`.
        about: title, description and command of a study.

    Raises:
        MissingDependency: if jinja2 or matplotlib is not installed.
        FileNotWritten: if the file cannot be written.
    """
    return write_atomically(path, render(rows, networks, machine, about).encode())


def render(
    rows: Sequence[Row],
    networks: Sequence[Network] | None,
    machine: Mapping[str, Any],
    about: About | None = None,
) -> str:
    """The page. It loads nothing: styles, script, figures and rows stand inside, and its policy forbids the rest."""
    environment = _environment()
    safe: Any = importlib.import_module("markupsafe").Markup  # what is ours, or escaped already
    script, style = (Path(__file__).with_name(name).read_text(encoding="utf-8") for name in ("page.js", "page.css"))
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    known = networks_of(rows) if networks is None else networks
    told = {row["network"] for row in rows if row.get("kind") in ("training", "model")}
    everything = [*rows, *(network.to_row() for network in known if network.name not in told)]
    bounds = summaries.bounds_of(rows)
    epochs = [{"network": network.name, **line} for network in known for line in network.history]
    groups = list(dict.fromkeys(str(row.get("group") or row["network"]) for row in everything))
    verifiers = {row["verifier"] for row in rows if row.get("verifier")}
    return environment.get_template("report.html.j2").render(
        about=about or About(),
        headline=headline(bounds) if bounds else [],
        exact=sorted({network for network, *_ in exactly_known(bounds)}),
        networks=known if len(known) <= CARDS else [],
        several=len({row["norm"] for row in bounds if row["verifier"] == "trivial"}) > 1,
        trivial={network.name: _trivial(bounds, network.name) for network in known[:CARDS]},
        colours={name: index for index, name in enumerate(groups)} if len(groups) <= len(PAPER.series) else {},
        group_of={row["network"]: str(row.get("group") or row["network"]) for row in everything},
        groups=summaries.group_table(everything) if len(known) > CARDS else [],
        questions=summaries.questions(rows),
        certified=summaries.certified_tables(rows),
        ablations=summaries.ablations(everything),
        unsound=[row for row in rows if row.get("status") == "unsound"],
        failures=summaries.failures(rows),
        setup=summaries.setup(rows),
        load=summaries.load_of(rows),
        pictures={name: safe(svg) for name, svg in pictures(everything, epochs).items()},
        machine=machine,
        verifiers=[info for info in list_verifiers() if info.name in verifiers],
        foreign=sorted(verifiers - {info.name for info in list_verifiers()}),
        script=safe(script),
        style=safe(style),
        digest=digest,
        data=safe(embedded(rows)),
        count=len(rows),
    )


def embedded(rows: Sequence[Row]) -> str:
    """The rows as JSON that can stand inside a page: no text in it ends the element. Witnesses are left out."""
    kept = [{key: value for key, value in row.items() if key != "witness"} for row in rows]
    data = json.dumps(jsonable(kept), ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    return data.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _environment() -> Any:
    jinja2 = _jinja2()
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("lipbridge.report", "."),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
        finalize=_one_way,
    )
    environment.filters |= {
        **{"number": text.number, "seconds": text.seconds, "percent": text.percent, "mebibytes": text.mebibytes},
        **{"spread": _spread, "advice": summaries.advice, "whole": "{:,}".format},
    }
    return environment


def _one_way(value: Any) -> Any:
    """Text without the marks that turn the direction of what follows: in a name they would turn the page around it."""
    return value.translate(_TURNS) if type(value) is str else value


_TURNS = dict.fromkeys([*range(0x202A, 0x202F), *range(0x2066, 0x206A)])


def _spread(value: Mapping[str, float] | None, factor: float = 1.0) -> str:
    return text.interval(value["mean"], value["spread"], factor) if value else ""


def _trivial(rows: Sequence[Row], network: str) -> Row | None:
    mine = (row for row in rows if row["network"] == network and row["quantity"] == "lipschitz")
    found = [row for row in mine if row["verifier"] == "trivial" and row["value"] is not None]
    return min(found, key=lambda row: row["region"] != "everywhere", default=None)  # the first, of the constant


def _jinja2() -> Any:
    try:
        return importlib.import_module("jinja2")
    except ImportError:
        raise MissingDependency("jinja2, which fills in the report,", COMMAND) from None


__all__ = ["About", "Network", "render", "require_writable", "write_report"]
