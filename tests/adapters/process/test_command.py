"""Whatever another solver does ends in an answer, and what it says is checked."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from torch import nn

import lipbridge
from lipbridge.cli.app import run
from lipbridge.errors import InvalidArgument
from lipbridge.files import solver_processes as module
from lipbridge.files.formats import get_format
from lipbridge.files.queries import query_format_of
from lipbridge.files.solvers import Asked, get_solver
from lipbridge.problem.property import Verdict

QUERY = """(vnnlib-version <2.0>)
(declare-network f (declare-input X real [1,2]) (declare-output Y real [1,1]))
(assert (and (>= X[0,0] 0.0) (<= X[0,0] 1.0) (>= X[0,1] 0.0) (<= X[0,1] 1.0)))
(assert (>= Y[0,0] LIMIT))
"""
SAT = "print('sat\\nX real [1,2]\\n1.0\\n1.0\\nY real [1,1]\\n2.0')"


def fake(folder: Path, body: str, name: str = "solver") -> str:
    path = folder / name
    path.write_text(f"#!{sys.executable}\nimport os, sys, time, signal\n{body}\n")
    path.chmod(0o755)
    return str(path)


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, Path]:
    """``f(x) = x_0 + x_1``, and a query that is sat for LIMIT 1 and unsat for 3."""
    layer = nn.Linear(2, 1, bias=False)
    with torch.no_grad():
        layer.weight.fill_(1.0)
    get_format("onnx").write(lipbridge.capture(layer), tmp_path / "f.onnx")
    query = tmp_path / "q.vnnlib"
    query.write_text(QUERY.replace("LIMIT", "1.0"))
    return query, tmp_path / "f.onnx"


def asked_of(query: Path, network: Path) -> Asked:
    return Asked(query, {"f": network}, query_format_of(query)[0], None)


BEHAVIOURS = {
    "print('unsat')": (Verdict.VERIFIED, ""),
    "print('loading...\\nunknown')": (Verdict.UNKNOWN, ""),
    "print('timed-out')": (Verdict.TIMEOUT, ""),
    SAT: (Verdict.FALSIFIED, ""),
    "pass": (Verdict.ERROR, "it printed nothing"),
    "print('unsatisfiable, I think')": (Verdict.ERROR, "it gave no verdict"),
    "sys.stdout.buffer.write(bytes(range(256)) * 1000)": (Verdict.ERROR, "it gave no verdict"),
    "sys.exit('no licence')": (Verdict.ERROR, "exit code 1: no licence"),
    "print('unsat'); sys.stdout.flush(); os.kill(os.getpid(), signal.SIGSEGV)": (Verdict.ERROR, "signal 11"),
    SAT + "; sys.exit(1)": (Verdict.FALSIFIED, ""),
    "print('unsat'); sys.exit(20)": (Verdict.VERIFIED, ""),
    "print('unsat'); sys.exit(1)": (Verdict.ERROR, "exit code 1"),
    "time.sleep(1000)": (Verdict.TIMEOUT, "stopped"),
    "signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(1000)": (Verdict.TIMEOUT, "stopped"),
    "os.fork() or time.sleep(1000); print('unsat')": (Verdict.VERIFIED, ""),
    "b = bytearray(600 * 2**20); time.sleep(100)": (Verdict.ERROR, "GiB and was stopped"),
}


@pytest.mark.parametrize("body", BEHAVIOURS)
def test_every_behaviour_ends_in_an_answer(
    files: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, body: str
) -> None:
    monkeypatch.setattr(module, "START", 1.0)
    solver = get_solver(fake(tmp_path, body))
    began = time.perf_counter()
    answer = solver.answer(asked_of(*files), 1.0, 400 * 2**20)
    assert time.perf_counter() - began < 20.0
    verdict, told = BEHAVIOURS[body]
    assert answer.verdict is verdict
    assert told in answer.detail
    assert bool(answer.assignment) == (verdict is Verdict.FALSIFIED)
    assert ended_within(5.0, str(tmp_path / "solver"))


def ended_within(seconds: float, program: str) -> bool:
    """Whether no process runs the program after some seconds: a killed one takes a moment; a zombie has ended."""
    until = time.perf_counter() + seconds
    while time.perf_counter() < until:
        running = [p for p in psutil.process_iter(["cmdline", "status"]) if program in (p.info["cmdline"] or [])]
        if all(p.info["status"] == psutil.STATUS_ZOMBIE for p in running):
            return True
        time.sleep(0.05)
    return False


def test_it_is_asked_as_the_standard_has_it(files: tuple[Path, Path], tmp_path: Path) -> None:
    solver = get_solver(fake(tmp_path, "open(sys.argv[0] + '.txt', 'a').write(repr(sys.argv[1:])); print('unknown')"))
    solver.answer(asked_of(*files), 7.0, 1e10)
    wanted = ["verify", str(files[0]), "--network", f"f={files[1]}", "--timeout", "7"]
    assert (tmp_path / "solver.txt").read_text() == repr(wanted)
    started = solver.startup()
    assert started is not None
    assert 0.0 < started < 30.0


@pytest.mark.parametrize("words", ["no-such-solver-here", "'", " ", "/etc/passwd"])
def test_what_is_no_command_is_refused(words: str) -> None:
    with pytest.raises(InvalidArgument, match="be a command"):
        get_solver(words)


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Contradictions are kept in the working folder."""
    monkeypatch.chdir(tmp_path)


def rows_of(capsys: pytest.CaptureFixture[str], *arguments: str) -> list[dict[str, Any]]:
    assert run(["verify", *arguments, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_a_lie_is_told(files: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    query, network = files
    asked = [str(query), "--network", f"f={network}", "--timeout", "5"]
    honest, liar = fake(tmp_path, SAT, "honest"), fake(tmp_path, "print('unsat')", "liar")
    ours, first, second = rows_of(capsys, *asked, "--solver", honest, "--solver", liar)
    assert [row["solver"] for row in (ours, first, second)] == ["lipbridge", "honest", "liar"]
    assert [row["result"] for row in (ours, first, second)] == ["sat", "sat", "unsat"]
    told = "unsound: the counterexample of lipbridge is one when the file is run; kept in contradictions/f-q"
    assert [row["detail"] for row in (ours, first, second)] == ["", "", told]
    assert [row["unsound"] for row in (ours, first, second)] == [False, False, True]
    kept = tmp_path / "contradictions" / "f-q"
    assert {file.name for file in kept.iterdir()} == {"f.onnx", "q.vnnlib", "README.txt", "verdicts.json"}
    again = [word for word in (kept / "README.txt").read_text().split("\n") if word.startswith("    lipbridge verify")]
    assert len(again) == 1
    assert [row["solver"] for row in json.loads((kept / "verdicts.json").read_text())] == [
        *("lipbridge", "honest", "liar")
    ]
    assert all(row["startup"] > 0.0 for row in (first, second))
    query.write_text(QUERY.replace("LIMIT", "3.0"))
    ours, first, second = rows_of(capsys, *asked, "--solver", honest, "--solver", liar)
    assert [row["result"] for row in (ours, first, second)] == ["unsat", "sat", "unsat"]
    told = "unsound: the opposite is proved; its counterexample is none when the file is run: "
    assert first["detail"] == told + "an inequality of the outputs is broken by 1; kept in contradictions/f-q"
    broken = fake(tmp_path, "print('sat\\nX real [1,2]\\n1.0\\nnan')", "broken")
    query.write_text(QUERY.replace("LIMIT", "1.0"))
    _, row = rows_of(capsys, *asked, "--solver", broken)
    assert row["detail"] == "its counterexample cannot be read"


def test_what_cannot_be_started_is_a_row(
    files: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    query, network = files
    broken = tmp_path / "broken"
    broken.write_bytes(b"\x7fELF is no program")
    broken.chmod(0o755)
    ours, row = rows_of(capsys, str(query), "--network", f"f={network}", "--solver", str(broken))
    assert ours["result"] == "sat"
    assert row["result"] == "error"
    assert "it cannot be run" in row["detail"]
    assert row["startup"] is None


def test_a_list_has_a_row_for_each_solver(
    files: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "instances.csv").write_text("f.onnx,q.vnnlib,5\nf.onnx,none.vnnlib,5\n")
    mine = fake(tmp_path, SAT)
    rows = rows_of(capsys, str(tmp_path / "instances.csv"), "--solver", mine)
    assert [(row["query"], row["solver"]) for row in rows[:2]] == [("q.vnnlib", "lipbridge"), ("q.vnnlib", "solver")]
    assert [row["result"] for row in rows] == ["sat", "sat", "error", "error"]
    assert run(["verify", str(tmp_path / "instances.csv"), "--solver", mine]) == 0
    assert "q.vnnlib" in capsys.readouterr().out
