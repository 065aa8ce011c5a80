"""How the rows of a study judge each other: tightness, and values that a witness contradicts."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

from lipbridge.errors import LipbridgeError
from lipbridge.problem.bound import Witness
from lipbridge.problem.problem import Problem
from lipbridge.problem.question import Question
from lipbridge.search import witness_value
from lipbridge.study.contradictions import keep_bound
from lipbridge.study.requests import Outcome, Request
from lipbridge.study.rows import Row, make_row
from lipbridge.vocabulary import Side, Status

#: How far below a witness a value may lie, relatively, before it is a contradiction.
TOLERANCE = 1e-9


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


__all__ = ["TOLERANCE", "best_lower", "best_witness", "judged", "judged_together"]
