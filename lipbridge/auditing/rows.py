"""Rows of an audit: what a verifier says of an instance, and whether the truth allows it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from enum import StrEnum
from fractions import Fraction
from typing import Any

from lipbridge.auditing.instance import AnyInstance, Instance, Prediction, PropertyInstance, obeys
from lipbridge.disk.strict_json import jsonable
from lipbridge.files.solvers import Answer
from lipbridge.problem.bound import Bound
from lipbridge.problem.property import Judgement, Verdict
from lipbridge.study.verdicts import TOLERANCE as TOLERANCE_OF_COUNTEREXAMPLES
from lipbridge.text import number
from lipbridge.vocabulary import Side, Status

#: How far a value that is not proved may lie on the wrong side of the truth, relatively.
TOLERANCE = Fraction(1, 10**9)


class Finding(StrEnum):
    """What came of a question."""

    SOUND = "sound"
    UNSOUND = "unsound"
    REFUSED = "refused"
    FAILED = "failed"
    TIMEOUT = "timeout"


@dataclass(frozen=True)
class AuditRow:
    """One verifier on one instance.

    Attributes:
        verifier, family, instance: names.
        asked: the question in words.
        value: a number, ``certified`` or not, or a verdict; None if there is none.
        truth: what is known, in the same terms.
        status: ``unsound`` if the truth contradicts the value.
        proved: whether the verifier calls its value proved.
        tightness: of an upper bound, value over the truth, where that is known exactly.
        seconds: of the verifier.
        detail: in words.
    """

    verifier: str
    family: str
    instance: str
    asked: str
    value: float | str | None
    truth: str
    status: Finding
    proved: bool = False
    tightness: float | None = None
    seconds: float = 0.0
    detail: str = ""

    def to_json(self) -> dict[str, Any]:
        """For programs: what is not a finite number is null."""
        return jsonable(asdict(self))


def no_answer(verifier: str, instance: AnyInstance, status: Status, detail: str) -> AuditRow:
    """The row of a verifier that gave none."""
    kinds = {
        Status.UNSUPPORTED: Finding.REFUSED,
        Status.MISSING: Finding.REFUSED,
        Status.TIMEOUT: Finding.TIMEOUT,
    }
    status_of = kinds.get(status, Finding.FAILED)
    return AuditRow(
        verifier, instance.family, instance.name, instance.asked, None, truth_of(instance), status_of, detail=detail
    )


def truth_of(instance: AnyInstance) -> str:
    """What is known, in words."""
    if isinstance(instance, Instance):
        least, most = float_of(instance.least), instance.most
        if most is not None and float_of(most) <= least * (1.0 + 1e-6):
            return f"= {number(least, 9)}"
        return f">= {number(least, 9)}" + ("" if most is None else f", <= {number(float_of(most), 9)}")
    if isinstance(instance, Prediction):
        return "holds" if instance.holds else "does not hold"
    return str(instance.verdict)


def float_of(value: Fraction) -> float:
    """The nearest float; infinity beyond all."""
    try:
        return float(value)
    except OverflowError:
        return math.inf


def judged_bound(verifier: str, instance: Instance, bound: Bound) -> AuditRow:
    """A Bound against the truth: in fractions, and to the last digit for what is called proved."""
    value = bound.value
    if math.isnan(value):
        return no_answer(verifier, instance, bound.status, bound.detail)
    found = math.inf if math.isinf(value) else Fraction(value)
    room = Fraction(0) if bound.proved else TOLERANCE
    above = TOLERANCE if bound.side is Side.EXACT else room  # an exact value is an upper one, with a lower one near
    why = ""
    if bound.side is not Side.LOWER and found < instance.least * (1 - room):
        why = f"a pair of inputs proves {number(float_of(instance.least), 9)}, above this {bound.side} value"
    elif bound.side is not Side.UPPER and instance.most is not None and found > instance.most * (1 + above):
        why = f"the constant is at most {number(float_of(instance.most), 9)}, below this {bound.side} value"
    tightness = None
    if bound.side is not Side.LOWER and instance.most is not None:
        tightness = float_of(Fraction(value) / instance.most) if math.isfinite(value) else math.inf
    return AuditRow(
        verifier,
        instance.family,
        instance.name,
        instance.asked,
        value,
        truth_of(instance),
        Finding.UNSOUND if why else Finding.SOUND,
        bound.proved,
        tightness,
        bound.seconds,
        why or bound.detail,
    )


def judged_prediction(verifier: str, instance: Prediction, facts: Mapping[str, object], proved: bool) -> AuditRow:
    """A certified prediction against the counterexample; facts are those of a cell's certification."""
    share = facts.get("certified_accuracy")
    if not isinstance(share, int | float):
        status = Status(str(facts.get("status", Status.FAILED)))
        return no_answer(verifier, instance, status, str(facts.get("certification", "no answer")))
    certified = share > 0
    wrong = certified and not instance.holds
    seconds = facts.get("certify_seconds")
    return AuditRow(
        verifier,
        instance.family,
        instance.name,
        instance.asked,
        "certified" if certified else "not certified",
        truth_of(instance),
        Finding.UNSOUND if wrong else Finding.SOUND,
        proved,
        seconds=float(seconds) if isinstance(seconds, int | float) else 0.0,
        detail="an input of the ball has another class" if wrong else "",
    )


def judged_verdict(verifier: str, instance: PropertyInstance, found: Judgement) -> AuditRow:
    """A verdict against the known one; a counterexample is looked at in fractions, whoever gave it."""
    why = ""
    if {found.verdict, instance.verdict} == {Verdict.VERIFIED, Verdict.FALSIFIED}:
        why = "a counterexample is known" if found.verdict is Verdict.VERIFIED else "the opposite is proved"
    elif found.counterexample is not None and not obeys(instance, found.counterexample):
        why = "its counterexample is none in exact arithmetic"
    return AuditRow(
        verifier,
        instance.family,
        instance.name,
        instance.asked,
        str(found.verdict),
        truth_of(instance),
        Finding.UNSOUND if why else Finding.SOUND,
        True,
        seconds=found.seconds,
        detail=why,
    )


def judged_answer(
    verifier: str, instance: PropertyInstance, answer: Answer, missed: tuple[float, str] | None
) -> AuditRow:
    """What a solver says against the known verdict, and its counterexample against the competition's tolerance.

    Args:
        verifier: the solver's name.
        instance: what it was asked.
        answer: what it said.
        missed: of :func:`lipbridge.study.verdicts.missed_by`.
    """
    if answer.verdict in (Verdict.ERROR, Verdict.TIMEOUT):
        status = Status.TIMEOUT if answer.verdict is Verdict.TIMEOUT else Status.FAILED
        return replace(no_answer(verifier, instance, status, answer.detail), seconds=answer.seconds)
    row = judged_verdict(verifier, instance, Judgement(answer.verdict, 0.0, None, answer.seconds))
    if row.status is Finding.SOUND and missed is not None and missed[0] > TOLERANCE_OF_COUNTEREXAMPLES:
        row = replace(row, status=Finding.UNSOUND, detail=f"its counterexample is none: {missed[1]}")
    return replace(row, proved=False)


def shortfall(instance: AnyInstance, row: AuditRow) -> float:
    """How large the contradiction is: the truth over an upper bound, a lower one over the truth; else infinite."""
    if not isinstance(instance, Instance) or not isinstance(row.value, float):
        return math.inf
    if math.isinf(row.value) or row.value <= 0:
        return math.inf
    value = Fraction(row.value)
    if value < instance.least:
        return float_of(instance.least / value)
    return float_of(value / instance.most) if instance.most else math.inf


__all__ = [
    "AuditRow",
    "Finding",
    "judged_answer",
    "judged_bound",
    "judged_prediction",
    "judged_verdict",
    "no_answer",
    "shortfall",
    "truth_of",
]
