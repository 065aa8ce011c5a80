"""Verdicts on queries in files: ours, those of other solvers, and who is wrong where they contradict each other."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from torch import Tensor

from lipbridge.errors import LipbridgeError, ModelFileError
from lipbridge.files.queries import Listed, Query, QueryFormat
from lipbridge.files.solvers import Answer, Asked, Solver
from lipbridge.problem.property import Property, Verdict
from lipbridge.problem.verifier import Budget
from lipbridge.processes import stdout_to_stderr
from lipbridge.study.contradictions import keep_query
from lipbridge.verifiers.properties import judge

#: Verdicts as the standard writes them: a query describes its counterexamples.
WORDS = {
    Verdict.VERIFIED: "unsat",
    Verdict.FALSIFIED: "sat",
    Verdict.UNKNOWN: "unknown",
    Verdict.TIMEOUT: "timed-out",
    Verdict.ERROR: "error",
}
#: The name of our own rows.
OURS = "lipbridge"
#: By how much a counterexample may miss for the competition's rules (VNN-COMP), which is not enough for ours.
TOLERANCE = 1e-4


@dataclass(frozen=True)
class VerdictRow:
    """What one solver said of one query.

    Attributes:
        network, query: the files; ``solver`` who was asked.
        verdict: what it said.
        assignment: its counterexample as text.
        seconds: wall time, its start included; ``startup`` what the start alone takes, None if it is not known.
        detail: what is to be known of it, in words.
        unsound: whether it is wrong for certain: a proof or a checked counterexample says the opposite, or its own
            counterexample is none.
    """

    network: str
    query: str
    solver: str
    verdict: Verdict
    assignment: str | None = None
    seconds: float = 0.0
    startup: float | None = None
    detail: str = ""
    unsound: bool = False

    @property
    def result(self) -> str:
        """The verdict as the standard writes it."""
        return WORDS[self.verdict]

    def facts(self) -> dict[str, object]:
        """Ready for JSON."""
        return {**asdict(self), "verdict": str(self.verdict), "result": self.result}


def our_verdict(
    kind: QueryFormat, query: Path, networks: Mapping[str, Path], began: float, seconds: float, *, as_real: bool
) -> tuple[VerdictRow, Query]:
    """Ours, until about ``began + seconds`` of ``time.perf_counter``, and the query as it was read.

    Raises:
        LipbridgeError: if the query or its network is not understood.
    """
    assignment, detail = None, ""
    with stdout_to_stderr():
        read = kind.read(query, networks, as_real=as_real)
        if read.asked is None:
            verdict, detail = Verdict.VERIFIED, "the query contradicts itself, whatever the network does"
        else:
            found = judge(read.graph, read.asked, tried=read.tried, dtype=read.dtype, deadline=began + 0.95 * seconds)
            verdict = found.verdict
            if found.counterexample is not None:
                assignment = None if read.tried is None else read.confirmed(found.counterexample)
                if assignment is None:
                    verdict = Verdict.UNKNOWN
                    detail = "an input obeys the query over the real numbers, but not when the file is run in floats"
    spent = time.perf_counter() - began
    if spent > seconds and assignment is None and verdict is Verdict.UNKNOWN:
        verdict = Verdict.TIMEOUT
    told = detail or (verdict.advice if verdict in (Verdict.UNKNOWN, Verdict.TIMEOUT) else "")
    network = str(next(iter(networks.values())))
    return VerdictRow(network, str(query), OURS, verdict, assignment, spent, None, told), read


def verdicts(
    kind: QueryFormat,
    line: Listed,
    networks: Mapping[str, Path],
    seconds: float,
    solvers: Sequence[Solver],
    *,
    as_real: bool,
    keep: Path,
    strict: bool,
    own_seconds: float | None = None,
) -> list[VerdictRow]:
    """A row of ours and of each solver, each judged by what is known for certain of the query.

    Args:
        kind: of the query.
        line: the query and the network's file, as rows name them.
        networks: files by the names that the query has for them, or "" for any name.
        seconds: for each of them.
        solvers: who else is asked.
        as_real: whether numbers that are declared as floats may be taken as real ones.
        keep: where the files of a contradiction are kept, in a folder of their own.
        strict: whether a query that we do not understand is an error, and not a row.
        own_seconds: for ours, if not as many.

    Raises:
        LipbridgeError: as above.
    """
    began, read = time.perf_counter(), None
    network, query = str(line.network), str(line.query)
    try:
        ours, read = our_verdict(kind, line.query, networks, began, own_seconds or seconds, as_real=as_real)
    except (LipbridgeError, OSError) as error:
        if strict:
            raise
        ours = VerdictRow(network, query, OURS, Verdict.ERROR, seconds=time.perf_counter() - began, detail=_told(error))
    rows = [replace(ours, network=network, query=query)]
    if not solvers:
        return rows
    try:
        asked = Asked(line.query, kind.named(line.query, networks), kind, read)
    except ModelFileError as error:  # no solver can be told which network is meant
        failed = [VerdictRow(network, query, each.name, Verdict.ERROR, detail=_told(error)) for each in solvers]
        return [*rows, *failed]
    answers = [each.answer(asked, seconds, Budget(seconds=seconds).memory) for each in solvers]
    found = _judged(rows[0], read, [(each, answer) for each, answer in zip(solvers, answers, strict=True)])
    kept = ""
    if any(row.unsound for row in found):
        kept = str(keep_query(keep, asked, [each.name for each in solvers], [row.facts() for row in found]))
    return [replace(row, detail=f"{row.detail}; kept in {kept}") if row.unsound else row for row in found]


def _told(error: Exception) -> str:
    return " ".join(str(error).split())


def _judged(ours: VerdictRow, read: Query | None, answers: Sequence[tuple[Solver, Answer]]) -> list[VerdictRow]:
    """The rows, once it is known what is true: by our proof, or by a counterexample that was run."""
    missing = [missed_by(read, answer) for _, answer in answers]
    proved = ours.verdict is Verdict.VERIFIED
    holder = OURS if ours.verdict is Verdict.FALSIFIED else None
    for (solver, answer), missed in zip(answers, missing, strict=True):
        if holder is None and answer.verdict is Verdict.FALSIFIED and missed == (0.0, ""):
            holder = solver.name
    rows = [ours]
    if proved and holder is not None:  # only in error, of ours or of the machine's
        rows = [replace(ours, unsound=True, detail=f"{holder} has a counterexample")]
    for (solver, answer), missed in zip(answers, missing, strict=True):
        details, unsound = [answer.detail] if answer.detail else [], False
        if answer.verdict is Verdict.VERIFIED and holder is not None:
            unsound = True
            details.append(f"unsound: the counterexample of {holder} is one when the file is run")
        elif answer.verdict is Verdict.FALSIFIED and missed is None:
            details.append("its counterexample cannot be read" if answer.assignment else "it gave no counterexample")
            if proved:
                unsound = True
                details.append("unsound: the opposite is proved")
        elif answer.verdict is Verdict.FALSIFIED and missed is not None and missed[1]:
            words = f"its counterexample is none when the file is run: {missed[1]}"
            unsound = proved or missed[0] > TOLERANCE
            if proved:
                words = f"unsound: the opposite is proved; {words}"
            elif not unsound:
                words += f", which VNN-COMP's rules allow (up to {TOLERANCE:g})"
            details.append(words)
        elif answer.verdict in (Verdict.UNKNOWN, Verdict.TIMEOUT) and not details:
            details.append(answer.verdict.advice)
        rows.append(
            VerdictRow(
                ours.network,
                ours.query,
                solver.name,
                answer.verdict,
                assignment=answer.assignment or None,
                seconds=answer.seconds,
                startup=solver.startup(),
                detail="; ".join(details),
                unsound=unsound,
            )
        )
    return rows


def missed_by(read: Query | None, answer: Answer) -> tuple[float, str] | None:
    """By how much a counterexample misses, at best, as it is or moved into a case's box; None if it cannot be read."""
    if read is None or answer.verdict is not Verdict.FALSIFIED:
        return None
    x = read.inputs(answer.assignment)
    if x is None:
        return None
    return min((read.failing(each) for each in [x, *_moved(read.tried, x)]), key=lambda pair: pair[0])


def _moved(tried: Property | None, x: Tensor) -> list[Tensor]:
    """The nearest points of the boxes: solvers compute in floats, and may leave a box by as much."""
    return [] if tried is None else [x.clamp(lower, upper) for lower, upper, _ in tried.boxes]


__all__ = ["OURS", "TOLERANCE", "VerdictRow", "missed_by", "our_verdict", "verdicts"]
