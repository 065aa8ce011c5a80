"""``lipbridge audit``: every verifier on networks whose truth is known."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lipbridge.cli import parse
from lipbridge.cli.output import JsonOption, JsonRow, note, print_json, print_table, spinner
from lipbridge.errors import InvalidArgument
from lipbridge.text import number, seconds

if TYPE_CHECKING:
    from collections.abc import Generator, Sequence

    from lipbridge.auditing.rows import AuditRow

#: The exit code of a finding, and of an audit that was interrupted.
FOUND, INTERRUPTED = 1, 130
#: Findings of one verifier in one family that are told.
TOLD = 3


def audit(
    verifier: Annotated[
        list[str] | None,
        typer.Option(
            "--verifier",
            "--verifiers",
            metavar="NAME",
            help="With commas between, or several times; `judge` is verify's, and those of verify --solver too.",
        ),
    ] = None,
    family: Annotated[
        list[str] | None, typer.Option("--family", "--families", metavar="NAME", help="Of networks; all if not given.")
    ] = None,
    time_limit: Annotated[float, typer.Option("--seconds", help="Limit of each question.")] = 10.0,
    memory_limit: Annotated[str, typer.Option("--memory-limit", help="Of a process, as in 512M or 8G.")] = "4G",
    jobs: Annotated[int | None, typer.Option("--jobs", help="Processes at once; two if there are two cores.")] = None,
    seed: Annotated[int, typer.Option("--seed", help="Of the random networks, and of the verifiers.")] = 0,
    keep: Annotated[
        Path, typer.Option("--keep", metavar="DIR", help="For the worst findings; it is made if there is one.")
    ] = Path("audit-findings"),
    again: Annotated[
        Path | None, typer.Option("--again", metavar="DIR", help="Ask a finding that was kept once more, nothing else.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Look for unsound verifiers: all that are installed, on networks whose truth is known.

    An upper bound below what two inputs prove, a lower one above the constant, and a certified prediction or a property
    that does not hold are unsound. The truth is proved in fractions. Solvers of queries are asked about properties. The
    exit code is 1 if something unsound was found in a verifier, 0 if not. Verifiers that comparisons run only if they
    are named are among them: lipsdp-network is known to be unsound.
    """
    names = None if not verifier else parse.names(",".join(verifier), "--verifier")
    families = None if not family else parse.names(",".join(family), "--family")
    memory = parse.memory(memory_limit)
    if not 0 < time_limit < float("inf"):
        raise InvalidArgument("--seconds", "be above 0 and finite", time_limit)
    for option, value, least in (("--jobs", 1 if jobs is None else jobs, 1), ("--seed", seed, 0)):
        if not least <= value < 2**31:
            raise InvalidArgument(option, f"be at least {least}", value)
    if again is not None and families is not None:
        raise InvalidArgument("--family", "not be given with --again, which asks one instance", families)
    from lipbridge.auditing.audit import ask, audited, chosen
    from lipbridge.machine import available_cores
    from lipbridge.verifiers import Budget

    at_once = min(2, available_cores()) if jobs is None else jobs
    with spinner() as show:

        def progress(done: int, total: int) -> None:
            show(f"{done} of {total} questions")

        if again is None:
            asked = audited(
                names,
                families,
                seconds=time_limit,
                memory=memory,
                seed=seed,
                jobs=at_once,
                keep=keep,
                progress=progress,
            )
        else:
            from lipbridge.auditing.files import load_instance

            found = chosen(names)
            asked = ask([load_instance(again)], found, Budget(time_limit, memory, seed), at_once)
        rows, interrupted = _gathered(asked)
    json_rows: list[dict[str, Any]] = [row.to_json() for row in rows]
    if as_json:
        print_json(json_rows)
    elif again is not None:
        _print_rows(json_rows)
    else:
        _print_summary(json_rows)
    _tell(json_rows)
    wrong = any(row["status"] == "unsound" for row in json_rows)
    if interrupted:
        note("interrupted: these are the rows so far")
    elif wrong and again is None:
        note(
            f"The worst of each verifier and family is kept in {keep}, each with a README.txt that says how to see it."
        )
    if interrupted or wrong:
        raise typer.Exit(INTERRUPTED if interrupted else FOUND)


def _gathered(asked: Generator[AuditRow]) -> tuple[list[AuditRow], bool]:
    """The rows, all or those before Ctrl-C."""
    rows: list[AuditRow] = []
    try:
        for row in asked:
            rows.append(row)
    except KeyboardInterrupt:
        asked.close()
        return rows, True
    return rows, False


def _print_summary(rows: Sequence[JsonRow]) -> None:
    names = list(dict.fromkeys(row["verifier"] for row in rows))
    print_table("Audit: verifiers on networks whose truth is known", {
        "verifier": lambda row: row["verifier"],
        "asked": lambda row: str(row["asked"]),
        "sound": lambda row: str(row["sound"]),
        "unsound": lambda row: str(row["unsound"]),
        "refused": lambda row: str(row["refused"]),
        "failed": lambda row: str(row["failed"]),
        "timeout": lambda row: str(row["timeout"]),
        "tightness": lambda row: row["tightness"],
        "time": lambda row: seconds(row["seconds"]),
        "worst finding": lambda row: row["worst"],
    }, [_summary(name, [row for row in rows if row["verifier"] == name]) for name in names])  # fmt: skip


def _summary(name: str, rows: Sequence[JsonRow]) -> dict[str, Any]:
    counts = Counter(row["status"] for row in rows)
    tight = sorted(row["tightness"] for row in rows if row["tightness"] is not None and row["status"] == "sound")
    wrong = sorted((row for row in rows if row["status"] == "unsound"), key=_ratio)
    kinds = ("sound", "unsound", "refused", "failed", "timeout")
    return {
        "verifier": name,
        "asked": len(rows),
        **{kind: counts[kind] for kind in kinds},
        "tightness": number(tight[len(tight) // 2]) if tight else "",
        "seconds": sum(row["seconds"] for row in rows),
        "worst": _line(wrong[0]) if wrong else "",
    }


def _ratio(row: JsonRow) -> float:
    """How far a value is off, the worst first."""
    tightness = row["tightness"]
    return -1.0 if not isinstance(row["value"], float) else 1.0 if tightness is None else tightness


def _line(row: JsonRow) -> str:
    value = number(row["value"], 6) if isinstance(row["value"], float) else str(row["value"])
    return f"{row['instance']}: {value}, truth {row['truth']}"


def _print_rows(rows: Sequence[JsonRow]) -> None:
    print_table("Audit of one instance", {
        "verifier": lambda row: row["verifier"],
        "instance": lambda row: row["instance"],
        "asked": lambda row: row["asked"],
        "value": lambda row: number(row["value"], 9) if isinstance(row["value"], float) else str(row["value"] or ""),
        "truth": lambda row: row["truth"],
        "status": lambda row: str(row["status"]).upper() if row["status"] == "unsound" else row["status"],
        "time": lambda row: seconds(row["seconds"]),
        "detail": lambda row: row["detail"],
    }, rows)  # fmt: skip


def _tell(rows: Sequence[JsonRow]) -> None:
    """A line on stderr for each finding, up to three of a verifier and family, and how many there are more."""
    groups: dict[tuple[str, str], list[JsonRow]] = {}
    for row in rows:
        if row["status"] == "unsound":
            groups.setdefault((row["verifier"], row["family"]), []).append(row)
    for (name, family), found in groups.items():
        found.sort(key=_ratio)
        for row in found[:TOLD]:
            note(f"UNSOUND: {name} on {_line(row)} ({row['asked']}; family {family}): {row['detail']}")
        if len(found) > TOLD:
            note(f"UNSOUND: {name}: {len(found) - TOLD} more of the family {family}; --json has all")


__all__ = ["audit"]
