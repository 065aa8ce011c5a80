"""``lipbridge study``: run, look at, go on with and report a comparative study."""

from __future__ import annotations

import shlex
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lipbridge.cli import parse
from lipbridge.cli.exports import CsvOption, LatexOption, MarkdownOption, ParquetOption, exported, require_exports
from lipbridge.cli.output import JsonOption, note, print_json, print_table
from lipbridge.cli.progress import duration, shown
from lipbridge.errors import InvalidArgument, MissingDependency, first_line

if TYPE_CHECKING:
    from lipbridge.study.folder import Recorded
    from lipbridge.study.plan import Plan

app = typer.Typer(help="Comparative studies: one file in, one report out.", rich_markup_mode=None)

#: The study that comes with lipbridge.
DEMO = Path(__file__).parents[1] / "study" / "demo.toml"

StudyArgument = Annotated[
    Path, typer.Argument(metavar="STUDY", help="A study file (TOML), the folder of a study that was run, or `demo`.")
]
OutOption = Annotated[
    Path | None, typer.Option("--out", help="The study's folder; named after the file, here, if not given.")
]
JobsOption = Annotated[
    int | None, typer.Option("--jobs", min=1, help="Cells at once; as the study file says, or 1. Cores are divided.")
]
EngineOption = Annotated[
    str | None, typer.Option("--engine", help="local, slurm or submitit-local; as the study file says, or local.")
]
RetryOption = Annotated[
    str, typer.Option("--retry", help="Cells that ended so run again, e.g. failed,timeout; those `missing` always do.")
]
ReportOption = Annotated[
    Path | None, typer.Option("--report", help="Where the report is written; report.html in the study's folder.")
]


@app.command()
def run(
    study: StudyArgument,
    out: OutOption = None,
    jobs: JobsOption = None,
    engine: EngineOption = None,
    retry: RetryOption = "",
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only list the cells.")] = False,
    report: ReportOption = None,
    csv: CsvOption = None,
    parquet: ParquetOption = None,
    latex: LatexOption = None,
    markdown: MarkdownOption = None,
    as_json: JsonOption = False,
) -> None:
    """Run what is missing of a study, and write its report.

    Rows are kept as they come: a run that was stopped in any way goes on where it was, and a file that was changed
    runs only what it changed.
    """
    from lipbridge.study.config import read_study
    from lipbridge.study.plan import make_plan

    file, folder = _file_and_folder(study, out)
    read = read_study(file)
    plan = make_plan(read, jobs=jobs)
    if dry_run:
        _list(plan, as_json=as_json)
        return
    require_exports(csv, parquet, latex, markdown)
    command = shlex.join(["lipbridge", "study", "run", str(study), "--out", str(folder)])
    run_plan(plan, read.kept(), folder, command, jobs, engine, retry)
    finish(folder, report, csv, parquet, latex, markdown, as_json=as_json)


@app.command()
def resume(
    study: StudyArgument,
    out: OutOption = None,
    jobs: JobsOption = None,
    engine: EngineOption = None,
    retry: RetryOption = "",
    report: ReportOption = None,
    csv: CsvOption = None,
    parquet: ParquetOption = None,
    latex: LatexOption = None,
    markdown: MarkdownOption = None,
    as_json: JsonOption = False,
) -> None:
    """Go on with a study that was begun, as it was planned then, whatever became of its file."""
    from lipbridge.study.folder import FILE, read_recorded
    from lipbridge.study.plan import Plan

    folder = _folder(study, out)
    recorded = read_recorded(folder)
    require_exports(csv, parquet, latex, markdown)
    text = (folder / FILE).read_text(encoding="utf-8") if (folder / FILE).exists() else ""
    try:
        plan = Plan.from_json(recorded.words)
    except (LookupError, TypeError, ValueError, AttributeError) as error:
        expected = "be a study's folder whose plan.json can be read: run the study's file again to write it anew"
        raise InvalidArgument("study", expected, f"{folder}: {first_line(error)}") from None
    run_plan(plan, text, folder, shlex.join(["lipbridge", "study", "resume", str(folder)]), jobs, engine, retry)
    finish(folder, report, csv, parquet, latex, markdown, as_json=as_json)


@app.command()
def status(study: StudyArgument, out: OutOption = None, as_json: JsonOption = False) -> None:
    """How far a study is, also while it runs in another shell."""
    from lipbridge.study.folder import read_recorded

    recorded = read_recorded(_folder(study, out))
    facts = _facts(recorded)
    if as_json:
        print_json([facts])
        return
    state = f"run by {facts['holder']}" if facts["running"] else "not running"
    typer.echo(f"{recorded.name}: {facts['done']} of {facts['cells']} cells done, {state}{_time_left(facts)}")
    counts = [{"cells": kind, **statuses} for kind, statuses in facts["by_kind"].items()]
    names = list(dict.fromkeys(name for row in counts for name in row))
    print_table("", {name: lambda row, name=name: str(row.get(name, "")) for name in names}, counts)
    if facts["in_flight"]:
        columns: dict[str, Callable[[Mapping[str, Any]], str]] = {
            "in flight": lambda row: row["label"],
            "for": lambda row: duration(time.time() - row["since"]),
            "where": lambda row: row["where"],
        }
        print_table("", columns, facts["in_flight"])
    if not facts["running"] and facts["done"] < facts["cells"]:
        note(f"to go on: lipbridge study resume {shlex.quote(str(recorded.folder))}")
    for problem in facts["failures"]:
        note(f"{problem['status']}: {problem['label']}: {problem['detail']}")


@app.command()
def report(
    study: StudyArgument,
    out: OutOption = None,
    report: ReportOption = None,
    figures: Annotated[
        Path | None, typer.Option("--figures", help="A folder for the figures as PDF and PNG as well.")
    ] = None,
    csv: CsvOption = None,
    parquet: ParquetOption = None,
    latex: LatexOption = None,
    markdown: MarkdownOption = None,
    as_json: JsonOption = False,
) -> None:
    """Write the report of a study, as far as it is done."""
    folder = _folder(study, out)
    finish(folder, report, csv, parquet, latex, markdown, as_json=as_json, figures=figures, wanted=True)


@app.command()
def example() -> None:
    """Print the study file of `demo`, to begin one of your own with."""
    typer.echo(DEMO.read_text(), nl=False)


def run_plan(
    plan: Plan, text: str, folder: Path, command: str, jobs: int | None, engine: str | None, retry: str
) -> None:
    """Run a plan in a folder, with what is seen of it on stderr."""
    from lipbridge.study.engine.choice import choice_of
    from lipbridge.study.study import run_cells_of
    from lipbridge.vocabulary import Status

    again = [Status(name) for name in parse.chosen(retry, "--retry", [status.value for status in Status])]
    chosen = choice_of(plan.tables, engine, jobs)
    for words in plan.notes:
        note(f"note: {words}")
    with shown(chosen.jobs) as view:
        facts = chosen.facts(command)
        done = run_cells_of(plan, text, folder, chosen.engine, view=view, retry=again, facts=facts)
    bad = Counter(row["status"] for row in done.rows.values())
    note(f"{plan.name}: {done.ran} cells run, {len(done.rows)} of {len(plan.cells)} have a row ({_listed(bad)})")
    if done.waiting:
        note(f"{len(done.waiting)} cells were not run, since the networks that they need are not there: --retry failed")


def finish(
    folder: Path,
    report: Path | None,
    csv: Path | None,
    parquet: Path | None,
    latex: Path | None,
    markdown: Path | None,
    *,
    as_json: bool,
    figures: Path | None = None,
    wanted: bool = False,
) -> None:
    """The report, the exports and the rows of what a study's folder holds."""
    from lipbridge.study.folder import read_recorded

    recorded = read_recorded(folder)
    rows = recorded.current
    exported(rows, csv, parquet, latex, markdown)
    page = report or folder / "report.html"
    try:
        from lipbridge.report.page import require_writable
        from lipbridge.report.study import write_study_report

        require_writable(page)
        write_study_report(folder, page, [] if figures is None else [figures], rows)
    except MissingDependency as error:
        if wanted or report is not None:
            raise
        note(f"note: no report: {error}")
    else:
        note(f"report: {page}")
    if as_json:
        print_json([{name: value for name, value in row.items() if name != "witness"} for row in rows])
    else:
        _table(rows)


def _facts(recorded: Recorded) -> dict[str, Any]:
    from lipbridge.disk.locks import holder, is_held
    from lipbridge.study.folder import read_running
    from lipbridge.study.left import left

    done = {cell.id: recorded.rows[cell.id] for cell in recorded.cells if cell.id in recorded.rows}
    waiting = [cell for cell in recorded.cells if cell.id not in done]
    last: Mapping[str, Any] = recorded.runs[-1] if recorded.runs else {}
    jobs = int(last.get("jobs") or 1)
    time_left = left(waiting, recorded.cells, done, jobs)
    running = is_held(recorded.folder)
    kinds: dict[str, Counter[str]] = {}
    for cell in recorded.cells:
        kinds.setdefault(cell.kind.value, Counter())[done[cell.id]["status"] if cell.id in done else "waiting"] += 1
    failures = [
        {"label": cell.label, "status": done[cell.id]["status"], "detail": done[cell.id]["detail"]}
        for cell in recorded.cells
        if cell.id in done and done[cell.id]["status"] in ("failed", "unsound")
    ]
    return {
        "study": recorded.name,
        "cells": len(recorded.cells),
        "done": len(done),
        "running": running,
        "holder": holder(recorded.folder) if running else None,
        "seconds_left": time_left.seconds,
        "cells_of_unknown_length": time_left.unknown,
        "by_kind": {kind: dict(counts) for kind, counts in kinds.items()},
        "in_flight": read_running(recorded.folder) if running else [],
        "failures": failures,
    }


def _time_left(facts: Mapping[str, Any]) -> str:
    waiting = facts["cells"] - facts["done"]
    if not waiting or facts["cells_of_unknown_length"] == waiting:
        return ""
    return f", {'more than ' if facts['cells_of_unknown_length'] else 'about '}{duration(facts['seconds_left'])} left"


def _table(rows: Sequence[Mapping[str, Any]]) -> None:
    """The networks in a table, then the bounds: as many as can be read at once."""
    from lipbridge.cli.tables import advise, print_bounds, print_networks, warn_of_unsound

    networks = [row for row in rows if row["kind"] in ("training", "model")]
    bounds = [row for row in rows if row["kind"] == "bound"]
    if networks:
        print_networks(networks)
    if bounds and len(bounds) <= _MANY:
        print_bounds(bounds)
    elif bounds:
        typer.echo(f"{len(bounds)} bounds: see the report")
    advise(bounds)
    warn_of_unsound(bounds)


def _list(plan: Plan, *, as_json: bool) -> None:
    rows = [{"cell": cell.id, "kind": cell.kind.value, "label": cell.label} for cell in plan.cells]
    if as_json:
        print_json(rows)
        return
    for words in plan.notes:
        note(f"note: {words}")
    print_table(f"{plan.name}: {len(rows)} cells", {name: lambda row, name=name: row[name] for name in rows[0]}, rows)


def _listed(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{count} {status}" for status, count in counts.items())


def _file_and_folder(study: Path, out: Path | None) -> tuple[Path, Path]:
    """The study's file, and the folder in which it runs."""
    from lipbridge.study.folder import FILE

    if str(study) == DEMO.stem and not study.exists():
        return DEMO, out or Path(study)
    if study.is_dir():
        if out is not None and out.resolve() != study.resolve():
            raise InvalidArgument("--out", "be left out with a study's folder, which it is", str(out))
        if not (study / FILE).is_file():
            expected = f"be a study file, or the folder of a study that was run: it holds no {FILE}"
            raise InvalidArgument("study", expected, str(study))
        return study / FILE, study
    return study, out or Path(study.stem)


def _folder(study: Path, out: Path | None) -> Path:
    if study.is_dir() and out is None:
        return study
    return _file_and_folder(study, out)[1]


#: Bounds above which the terminal shows none of them: the report does.
_MANY = 200
