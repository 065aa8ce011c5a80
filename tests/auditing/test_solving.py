"""Solvers of queries in an audit: what each says of properties whose verdict is known."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from lipbridge.auditing.audit import ask, chosen
from lipbridge.auditing.instance import PropertyInstance
from lipbridge.auditing.registry import instances, property_instances
from lipbridge.auditing.rows import AuditRow, Finding, judged_answer
from lipbridge.errors import InvalidArgument, MissingDependency, UnknownName
from lipbridge.files.environments import VARIABLE
from lipbridge.files.solvers import Answer
from lipbridge.problem.property import Verdict
from lipbridge.verifiers import Budget

FAMILIES = ("corners", "paired-biases", "tied-logits", "cancelling-biases")


def rows_of(name: str, families: Sequence[str] = FAMILIES) -> list[AuditRow]:
    return list(ask(instances(families), chosen([name]), Budget(seconds=60.0), 2))


def fake(folder: Path, body: str) -> str:
    path = folder / "solver"
    path.write_text(f"#!{sys.executable}\nimport sys\n{body}\n")
    path.chmod(0o755)
    return f"command {path}"


def test_a_solver_that_always_proves_is_found(tmp_path: Path) -> None:
    rows = rows_of(fake(tmp_path, "print('unsat')"))
    known = {instance.name: instance for instance in property_instances(FAMILIES)}
    assert {row.instance for row in rows} == set(known)  # properties alone
    for row in rows:
        if row.family == "cancelling-biases":  # a file of floats computes another function
            assert row.status is Finding.REFUSED
        else:
            wrong = known[row.instance].verdict is Verdict.FALSIFIED
            assert row.status is (Finding.UNSOUND if wrong else Finding.SOUND)
            assert row.proved is False


def test_a_solver_that_dies_or_says_nothing_is_a_failed_row(tmp_path: Path) -> None:
    for body in ("sys.exit('no licence')", "pass"):
        rows = rows_of(fake(tmp_path, body))
        assert {row.status for row in rows} == {Finding.FAILED, Finding.REFUSED}


def test_our_mixed_integer_program_has_no_finding() -> None:
    pytest.importorskip("highspy")
    rows = rows_of("highs", ["corners", "tied-logits"])
    assert {row.status for row in rows} == {Finding.SOUND}
    said = {row.instance: row.value for row in rows}
    assert said["corner-9-lost"] == "falsified"
    assert said["corner-9-held"] == "verified"


def test_counterexamples_are_judged_with_the_tolerance_of_the_competition() -> None:
    lost = next(instance for instance in property_instances(["corners"]) if instance.verdict is Verdict.FALSIFIED)
    assert isinstance(lost, PropertyInstance)
    answer = Answer(Verdict.FALSIFIED, "", 0.1, "")
    assert judged_answer("s", lost, answer, None).status is Finding.SOUND
    assert judged_answer("s", lost, answer, (1e-6, "a bound")).status is Finding.SOUND
    row = judged_answer("s", lost, answer, (0.1, "a bound is broken by 0.1"))
    assert row.status is Finding.UNSOUND
    assert "its counterexample is none" in row.detail


def test_names_that_cannot_be_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, str(tmp_path))
    with pytest.raises(MissingDependency, match="verifiers install marabou"):
        chosen(["marabou"])
    with pytest.raises(UnknownName, match="marabou"):
        chosen(["maraboo"])
    with pytest.raises(InvalidArgument, match="CHECKOUT"):
        chosen(["nnenum"])
    assert "marabou" not in chosen(None)
