"""Tables of bounds for people."""

from __future__ import annotations

from collections.abc import Sequence

from lipbridge.cli.output import JsonRow, note, print_table
from lipbridge.report.headline import exactly_known, question_of
from lipbridge.text import mebibytes, number, percent, seconds
from lipbridge.vocabulary import Status

_SIGNS = {"upper": "<= ", "lower": ">= ", "exact": "= "}


def print_bounds(rows: Sequence[JsonRow]) -> None:
    """One table for each question: quantity, norm and region."""
    questions = list(dict.fromkeys((row["quantity"], row["norm"], row["region"]) for row in rows))
    for quantity, norm, region in questions:
        what = "Lipschitz constant" if quantity == "lipschitz" else "Largest deviation from the centre / radius"
        chosen = [row for row in rows if (row["quantity"], row["norm"], row["region"]) == (quantity, norm, region)]
        print_table(
            f"{what}, l{norm}, {region}",
            {
                "network": lambda row: row["network"],
                "verifier": lambda row: row["verifier"],
                "bound": _bound,
                "proved": lambda row: "" if row["value"] is None else "yes" if row["proved"] else "no",
                "tightness": lambda row: number(row["tightness"]),
                "time": lambda row: seconds(row["seconds"]),
                "memory": lambda row: mebibytes(row["memory"]),
                "certified": lambda row: percent(row["certified_accuracy"]),
                "status": lambda row: str(row["status"]).upper() if row["status"] == "unsound" else row["status"],
                "detail": lambda row: row["detail"],
            },
            chosen,
        )
    for network, quantity, norm, region in sorted(exactly_known(rows), key=str):
        if any(row["side"] == "upper" and question_of(row) == (network, quantity, norm, region) for row in rows):
            note(f"{network}, l{norm}, {region}: tightness is against the exact constant.")


def print_networks(rows: Sequence[JsonRow]) -> None:
    """The networks of a study: trainings, and models from elsewhere."""
    print_table(
        "Networks",
        {
            "network": lambda row: row["network"],
            "data": lambda row: row["data"] or "",
            "architecture": lambda row: row["architecture"] or "",
            "parameters": lambda row: str(row["parameters"] or ""),
            "accuracy": lambda row: percent(row["accuracy"]),
            "proved bound": lambda row: "" if row.get("value") is None else f"<= {number(row['value'], 5)}",
            "time": lambda row: seconds(row["seconds"]) if row["kind"] == "training" else "",
            "status": lambda row: row["status"],
            "detail": lambda row: row["detail"],
        },
        rows,
    )


def advise(rows: Sequence[JsonRow]) -> None:
    """A line on stderr for each way in which a computation ended short: what a user can do about it."""
    for status in dict.fromkeys(row["status"] for row in rows):
        if status != "unsound" and Status(status).advice:
            note(f"{status}: {Status(status).advice}")


def warn_of_unsound(rows: Sequence[JsonRow]) -> None:
    """A line on stderr for each value that a witness contradicts."""
    for row in rows:
        if row["status"] == "unsound":
            note(f"UNSOUND: {row['verifier']} on {row['network']}: {row['detail']}. {Status.UNSOUND.advice}")


def _bound(row: JsonRow) -> str:
    return f"{_SIGNS[row['side']]}{number(row['value'], 7)}" if row["value"] is not None else ""
