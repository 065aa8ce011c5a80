"""Who is wrong where solvers contradict each other, and what is kept of it."""

from __future__ import annotations

import json
import shlex
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from torch import nn

import lipbridge
from lipbridge.cli.app import run
from lipbridge.files.formats import get_format
from lipbridge.files.queries import Listed, query_format_of
from lipbridge.files.solvers import Answer, Asked, Solver
from lipbridge.problem.property import Case, Judgement, Property, Verdict
from lipbridge.study import verdicts as module
from lipbridge.study.verdicts import VerdictRow, verdicts


class Said(Solver):
    """Says what it was made with."""

    def __init__(self, words: str, verdict: Verdict = Verdict.UNKNOWN, assignment: str = "") -> None:
        self.name, self.said, self.assignment = words, verdict, assignment

    def answer(self, asked: Asked, seconds: float, memory: float) -> Answer:
        return Answer(self.said, self.assignment, 0.1, "")

    def startup(self) -> float | None:
        return 0.05


UNSAT = Said("proof", Verdict.VERIFIED)


def sat(x: float, name: str = "witness") -> Said:
    return Said(name, Verdict.FALSIFIED, f"((X_0 {x!r}))")


@pytest.fixture
def asked(tmp_path: Path) -> Listed:
    """Whether ``2 x >= 1`` for some x in [0, 1]: yes, from 0.5 on."""
    layer = nn.Linear(1, 1, bias=False)
    with torch.no_grad():
        layer.weight.fill_(2.0)
    get_format("onnx").write(lipbridge.capture(layer), tmp_path / "f.onnx")
    kind, _ = query_format_of(tmp_path / "q.vnnlib")
    rows, limits = torch.tensor([[-1.0]]), torch.tensor([-1.0])
    kind.write(Property((Case(torch.zeros(1), torch.ones(1), rows, limits),)), tmp_path / "q.vnnlib", "2.0")
    return Listed(tmp_path / "f.onnx", tmp_path / "q.vnnlib", 5.0)


def rows_of(asked: Listed, *solvers: Solver) -> list[VerdictRow]:
    kind, _ = query_format_of(asked.query)
    keep = asked.query.parent / "kept"
    return verdicts(kind, asked, {"": asked.network}, 5.0, solvers, as_real=True, keep=keep, strict=True)


def unsound(rows: Sequence[VerdictRow]) -> list[str]:
    return [row.solver for row in rows if row.unsound]


@pytest.fixture
def we_do_not_know(monkeypatch: pytest.MonkeyPatch) -> None:
    unknown = Judgement(Verdict.UNKNOWN, -1.0, None, 0.1)
    monkeypatch.setattr(module, "judge", lambda *_, **__: unknown)


@pytest.mark.usefixtures("we_do_not_know")
def test_a_counterexample_that_is_run_decides_between_two(asked: Listed) -> None:
    rows = rows_of(asked, UNSAT, sat(0.75))
    assert unsound(rows) == ["proof"]
    assert "the counterexample of witness is one when the file is run" in rows[1].detail
    assert rows[0].verdict is Verdict.UNKNOWN


@pytest.mark.usefixtures("we_do_not_know")
def test_a_counterexample_that_is_none_convicts_its_own_solver(asked: Listed) -> None:
    rows = rows_of(asked, UNSAT, sat(0.25))
    assert unsound(rows) == ["witness"]
    assert "its counterexample is none when the file is run" in rows[2].detail
    assert "broken by 0.5" in rows[2].detail


@pytest.mark.usefixtures("we_do_not_know")
def test_nobody_is_wrong_for_certain(asked: Listed) -> None:
    rows = rows_of(asked, UNSAT, Said("silent", Verdict.FALSIFIED), Said("slow", Verdict.TIMEOUT))
    assert unsound(rows) == []
    assert rows[2].detail == "it gave no counterexample"
    assert rows[3].detail == Verdict.TIMEOUT.advice
    assert not (asked.query.parent / "kept").exists()


@pytest.mark.usefixtures("we_do_not_know")
@pytest.mark.parametrize("x", [0.5 - 1e-9, 1.0 + 2e-7, 1.4])
def test_counterexamples_are_moved_into_the_box(asked: Listed, x: float) -> None:
    """One that leaves the box is one at its end; 0.5 - 1e-9 is rounded to the network's floats, to 0.5."""
    rows = rows_of(asked, sat(x))
    assert unsound(rows) == []
    assert rows[1].detail == ""


@pytest.mark.usefixtures("we_do_not_know")
def test_what_the_rules_of_vnncomp_allow_is_told(asked: Listed) -> None:
    rows = rows_of(asked, sat(0.5 - 3e-8))
    assert unsound(rows) == []
    assert "VNN-COMP's rules allow" in rows[1].detail


def test_our_own_proof_and_counterexample_convict(asked: Listed, monkeypatch: pytest.MonkeyPatch) -> None:
    assert unsound(rows_of(asked, UNSAT, sat(0.75))) == ["proof"]
    proved = Judgement(Verdict.VERIFIED, 1.0, None, 0.1)
    monkeypatch.setattr(module, "judge", lambda *_, **__: proved)
    rows = rows_of(asked, UNSAT, sat(0.25))
    assert unsound(rows) == ["witness"]
    assert "the opposite is proved" in rows[2].detail
    ours = rows_of(asked, sat(0.75))
    assert unsound(ours) == ["lipbridge"]  # if that ever happened


def test_what_is_kept_shows_it_again(
    asked: Listed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = rows_of(asked, UNSAT)
    kept = tmp_path / "kept" / "f-q"
    assert rows[1].detail.endswith(f"kept in {kept}")
    text = (kept / "README.txt").read_text()
    assert "proof says unsat" in text
    command = next(line for line in text.splitlines() if "lipbridge verify" in line)
    words = shlex.split(command)
    monkeypatch.chdir(kept)
    assert run([*words[1 : words.index("--solver")], "--json"]) == 0
    assert json.loads(capsys.readouterr().out)[0]["result"] == "sat"
    assert [row["unsound"] for row in json.loads((kept / "verdicts.json").read_text())] == [False, True]
