"""The judge of an audit: each value against the truth, proved ones to the last digit."""

from __future__ import annotations

import math

import pytest
import torch

from lipbridge.auditing.instance import Instance, Prediction, PropertyInstance
from lipbridge.auditing.rows import Finding, judged_bound, judged_prediction, judged_verdict
from lipbridge.problem.bound import Bound
from lipbridge.problem.property import Judgement, Verdict
from lipbridge.vocabulary import Side, Status
from tests.support.audited import named


def bound(instance: Instance, value: float, side: Side = Side.UPPER, *, proved: bool = False) -> Bound:
    return Bound(value=value, side=side, proved=proved, question=instance.problem.question, method="test")


def test_proved_values_are_judged_to_the_last_digit() -> None:
    own = named("pair-l2")
    assert isinstance(own, Instance)
    assert own.most is not None
    just_below = math.nextafter(1.0, 0.0)
    for value, side, proved, expected in (
        (1.0, Side.UPPER, True, Finding.SOUND),
        (just_below, Side.UPPER, True, Finding.UNSOUND),
        (just_below, Side.UPPER, False, Finding.SOUND),
        (1.0 - 1e-8, Side.UPPER, False, Finding.UNSOUND),
        (just_below, Side.EXACT, True, Finding.UNSOUND),
        (1.0 + 1e-10, Side.EXACT, True, Finding.SOUND),
        (1.0 + 1e-8, Side.EXACT, True, Finding.UNSOUND),
        (1.0, Side.LOWER, True, Finding.SOUND),
        (1.0 + 1e-8, Side.LOWER, True, Finding.UNSOUND),
        (1.0 + 1e-8, Side.LOWER, False, Finding.UNSOUND),
        (1.0 + 1e-10, Side.LOWER, False, Finding.SOUND),
        (0.5, Side.LOWER, True, Finding.SOUND),
        (math.inf, Side.UPPER, True, Finding.SOUND),
        (-1.0, Side.UPPER, True, Finding.UNSOUND),
        (0.0, Side.UPPER, False, Finding.UNSOUND),
    ):
        found = judged_bound("v", own, bound(own, value, side, proved=proved))
        assert found.status is expected, (value, side, proved)
    assert judged_bound("v", own, bound(own, 3.0)).tightness == pytest.approx(3.0)
    assert judged_bound("v", own, bound(own, math.nan)).status is Finding.FAILED


def test_a_lower_bound_is_not_judged_where_no_law_is_known() -> None:
    own = named("planted-4-16-linf-ball")
    assert isinstance(own, Instance)
    assert own.most is None
    assert judged_bound("v", own, bound(own, 1e9, Side.LOWER)).status is Finding.SOUND
    assert judged_bound("v", own, bound(own, 1e-9)).status is Finding.UNSOUND


@pytest.mark.parametrize(
    ("status", "finding"),
    [
        (Status.UNSUPPORTED, Finding.REFUSED),
        (Status.MISSING, Finding.REFUSED),
        (Status.TIMEOUT, Finding.TIMEOUT),
        (Status.MEMORY, Finding.FAILED),
        (Status.FAILED, Finding.FAILED),
    ],
)
def test_how_a_verifier_that_gave_no_value_ended(status: Status, finding: Finding) -> None:
    own = named("corner-2-class-lost")
    assert isinstance(own, Prediction)
    row = judged_prediction("v", own, {"status": str(status), "certification": "why"}, True)
    assert (row.status, row.detail) == (finding, "why")


def test_predictions_and_verdicts() -> None:
    lost, held = named("corner-2-class-lost"), named("corner-2-class-held")
    assert isinstance(lost, Prediction)
    assert isinstance(held, Prediction)
    for own, share, expected in (
        (lost, 1.0, Finding.UNSOUND),
        (lost, 0.0, Finding.SOUND),
        (held, 1.0, Finding.SOUND),
        (held, 0.0, Finding.SOUND),
    ):
        assert judged_prediction("v", own, {"certified_accuracy": share}, True).status is expected
    broken, kept = named("corner-2-lost"), named("corner-2-held")
    assert isinstance(broken, PropertyInstance)
    assert isinstance(kept, PropertyInstance)
    corner, middle = broken.counterexample, torch.zeros(2).double()
    for own, verdict, x, expected in (
        (broken, Verdict.VERIFIED, None, Finding.UNSOUND),
        (broken, Verdict.FALSIFIED, corner, Finding.SOUND),
        (broken, Verdict.FALSIFIED, middle, Finding.UNSOUND),
        (broken, Verdict.UNKNOWN, None, Finding.SOUND),
        (kept, Verdict.VERIFIED, None, Finding.SOUND),
        (kept, Verdict.FALSIFIED, corner, Finding.UNSOUND),
    ):
        assert judged_verdict("v", own, Judgement(verdict, 0.0, x, 0.0)).status is expected
