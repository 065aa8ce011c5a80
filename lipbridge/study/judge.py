"""How the rows of a study judge each other: tightness, and values that a witness contradicts."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from lipbridge.errors import LipbridgeError
from lipbridge.problem.bound import Bound, Witness
from lipbridge.problem.problem import Problem
from lipbridge.problem.question import Question
from lipbridge.search import witness_value
from lipbridge.study.cells import Cell
from lipbridge.study.cells import Row as JsonRow
from lipbridge.study.contradictions import keep_bound
from lipbridge.study.engine.blank import TRIVIAL
from lipbridge.study.engine.wire import decode_witness
from lipbridge.study.engine.work import INFINITE, options_of, problem_of
from lipbridge.study.requests import Outcome, Request
from lipbridge.study.rows import Row, make_row
from lipbridge.verifiers import Budget
from lipbridge.vocabulary import Quantity, Side, Status

#: How far below a witness a value may lie, relatively, before it is a contradiction.
TOLERANCE = 1e-9
#: In a judged row: what its verifier said of itself, which it is judged by once more when there are new witnesses.
CLAIMED = "claimed"


def best_lower(problem: Problem, witnesses: Iterable[Witness | None]) -> float | None:
    """The largest value that any of the witnesses proves for a problem, None if none does."""
    found = best_witness(problem, witnesses)
    return None if found is None else found[0]


def best_witness(problem: Problem, witnesses: Iterable[Witness | None]) -> tuple[float, Witness] | None:
    """The largest value that any of the witnesses proves for a problem, and that witness; None if none does.

    Each is evaluated anew and rounded down, so a verifier that claims too much cannot discredit the others. A pair
    found in a ball is a witness of the global constant too: every witness may be tried on every problem.
    """
    found: list[tuple[float, Witness]] = []
    for witness in witnesses:
        if witness is None:
            continue
        try:
            found.append((witness_value(problem, witness), witness))
        except (LipbridgeError, RuntimeError, IndexError):
            continue  # a point on a kink or outside the region, or a shape that does not fit
    return max(found, key=lambda pair: pair[0], default=None)


def judged(row: Row, lower: float | None) -> Row:
    """The row with its tightness, and ``unsound`` where a witness contradicts it.

    Args:
        row: a row about some question.
        lower: the best value that a witness proves for that question, None if there is none.
    """
    if row.side is Side.LOWER or lower is None or math.isnan(row.value):
        return row
    tightness = row.value / lower if lower > 0 else (1.0 if row.value == 0 else math.inf)
    if row.value < lower * (1 - TOLERANCE):
        detail = f"a witness proves {lower:.9g}, above this value" + (f"; {row.detail}" if row.detail else "")
        return replace(row, tightness=tightness, status=Status.UNSOUND, proved=False, detail=detail)
    return replace(row, tightness=tightness)


def judged_together(outcomes: Sequence[tuple[Request, Outcome]], keep: Path | None = None) -> list[Row]:
    """The rows of what was asked of one network, each judged by the best witness of its own question.

    Args:
        outcomes: requests, with what came of them.
        keep: where what is contradicted is kept, in a folder of its own; nothing is if not given.
    """
    witnesses = [outcome.bound.witness for _, outcome in outcomes]
    lower: dict[Question, tuple[float, Witness] | None] = {}
    rows: list[Row] = []
    for request, outcome in outcomes:
        question = request.problem.question
        if question not in lower:
            lower[question] = best_witness(request.problem, witnesses)
        best = lower[question]
        row = make_row(request.network, request.verifier, outcome.bound, outcome.total_seconds)
        row = judged(row, None if best is None else best[0])
        if row.status is Status.UNSOUND and best is not None and keep is not None:
            row = replace(row, detail=f"{row.detail}; kept in {keep_bound(keep, request, row, best[1])}")
        rows.append(row)
    return rows


def judged_cells(study: Path, pairs: Sequence[tuple[Cell, JsonRow]], keep: Path | None = None) -> list[JsonRow]:
    """The rows of one network's cells that bound it, as :func:`judged_together`, and what follows from them.

    The trivial bound holds in balls too: it is restated for each question about some, as a row of its own.

    Args:
        study: the folder where the cells' paths begin.
        pairs: the cells, with their rows.
        keep: as there.
    """
    outcomes = [_read_back(cell, row, study) for cell, row in pairs]
    found = judged_together(outcomes, keep)
    rows = [_told(row, mine) for mine, (_, row) in zip(found, pairs, strict=True)]
    witnesses = [outcome.bound.witness for _, outcome in outcomes]
    local = {request.problem.question: request.problem for request, _ in outcomes if request.problem.region is not None}
    answered = {
        request.problem.question
        for (request, _), row in zip(outcomes, rows, strict=True)
        if row["verifier_name"] == TRIVIAL and row["status"] == Status.OK
    }
    for problem in (problem for question, problem in local.items() if question not in answered):
        lower = best_lower(problem, witnesses)
        for mine, row in zip(found, tuple(rows), strict=False):
            here = (problem.norm_name, TRIVIAL) == (mine.norm, row["verifier_name"]) and mine.region == "everywhere"
            if here:
                again = judged(restated(mine, problem), lower)
                own = {"cell": _restated_id(row["cell"], problem.question), "restates": row["cell"]}
                rows.append({**_told(row, again), **own})
    return rows


def restated(row: Row, problem: Problem) -> Row:
    """A global upper bound as one of the constant or the deviation in balls, which never exceeds it."""
    detail = "global, so it holds here"
    status = row.status if math.isnan(row.value) else Status.OK  # judged anew
    return replace(
        row, region=problem.region_name, quantity=problem.quantity, detail=detail, tightness=None, status=status
    )


def row_of(found: Mapping[str, Any]) -> Row:
    """The Row of a cell's JSON row, whose numbers that are not finite come back as NaN or infinity."""
    own = {item.name for item in fields(Row)}
    extra: dict[str, Any] = dict(found["extra"])
    value = found["value"]
    if value is None:
        value = math.inf if extra.pop(INFINITE, False) else math.nan
    known: dict[str, Any] = {name: found[name] for name in own if name in found}
    known["seconds"] = math.nan if found["seconds"] is None else found["seconds"]
    known["witness"] = None if found["witness"] is None else decode_witness(found["witness"])
    for name, kind in (("side", Side), ("quantity", Quantity), ("status", Status)):
        known[name] = kind(found[name])
    known |= {"value": value, "extra": extra}
    return Row(**known)


def _read_back(cell: Cell, row: JsonRow, study: Path) -> tuple[Request, Outcome]:
    problem = problem_of(cell, study)
    words = cell.words
    budget = Budget(cell.limits.seconds, cell.limits.memory, words["seed"], options_of(cell, study))
    request = Request(cell.network, problem, words["verifier"], budget, threads=cell.threads)
    said = row.get(CLAIMED) or row
    infinite = bool(row["extra"].get(INFINITE))
    value = row["value"] if row["value"] is not None else (math.inf if infinite else math.nan)
    bound = Bound(
        value=float(value),
        side=Side(row["side"]),
        proved=bool(said["proved"]),
        question=problem.question,
        method=row["method"],
        seconds=row["seconds"] or 0.0,
        memory=row["memory"],
        status=Status(said["status"]),
        detail=said["detail"],
        witness=None if row["witness"] is None else decode_witness(row["witness"]),
        extra={**row["extra"], "certified_accuracy": row["certified_accuracy"]},
    )
    return request, Outcome(bound, row["total_seconds"] or 0.0)


def _told(row: JsonRow, mine: Row) -> JsonRow:
    changed = mine.to_json()
    names = ("status", "proved", "tightness", "detail", "region", "quantity")
    claimed = row.get(CLAIMED) or {name: row[name] for name in ("status", "proved", "detail")}
    return {**row, **{name: changed[name] for name in names}, "judged": True, CLAIMED: claimed}


def _restated_id(cell: str, question: Question) -> str:
    return hashlib.sha256(f"{cell} {question}".encode()).hexdigest()[:16]


__all__ = [
    "CLAIMED",
    "TOLERANCE",
    "TRIVIAL",
    "best_lower",
    "best_witness",
    "judged",
    "judged_cells",
    "judged_together",
    "restated",
    "row_of",
]
