"""``lipbridge audit``: its table, its exit codes, Ctrl-C, and wrong inputs in words."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from lipbridge.auditing import audit as auditing
from lipbridge.auditing.rows import AuditRow, Finding
from lipbridge.cli.app import run
from tests.support import unsound
from tests.support.command_line import Answer, refused

Cli = Callable[..., Answer]


@pytest.fixture
def cli(capfd: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Cli:
    """The command line in this process, in an empty folder."""
    monkeypatch.chdir(tmp_path)

    def call(*arguments: object) -> Answer:
        capfd.readouterr()
        code = run([str(argument) for argument in arguments])
        return Answer(code, *capfd.readouterr())

    return call


@pytest.fixture
def theirs(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(unsound.install(tmp_path_factory.mktemp("theirs"))))


def test_a_table_and_no_folder_where_nothing_is_found(cli: Cli) -> None:
    answer = cli("audit", "--verifier", "trivial,judge", "--family", "paired-biases", "--seconds", "5")
    assert answer.code == 0, answer
    assert "UNSOUND" not in answer.err
    lines = [line.split() for line in answer.out.splitlines()]
    assert ["judge", "3", "3", "0", "0", "0", "0"] in [line[:7] for line in lines]
    assert os.listdir() == []


def test_a_finding_is_told_kept_and_shown_again(cli: Cli, theirs: None) -> None:
    answer = cli("audit", "--verifier", "seqlip", "--family", "all-patterns")
    assert answer.code == 1
    assert "three-2-l2: 10.9545, truth = 13.416" in answer.out
    assert answer.err.count("UNSOUND: seqlip on") == 3
    assert "audit-findings" in answer.err
    (kept,) = Path("audit-findings").iterdir()
    again = cli("audit", "--again", kept, "--verifier", "seqlip", "--verifier", "trivial", "--json")
    assert again.code == 1
    assert {row["verifier"]: row["status"] for row in again.rows} == {"seqlip": "unsound", "trivial": "sound"}
    table = cli("audit", "--again", kept, "--verifier", "trivial")
    assert table.code == 0
    assert "three-2-l2" in table.out


def test_wrong_inputs_are_refused_in_words(cli: Cli, tmp_path: Path) -> None:
    refused(cli("audit", "--verifier", "nonesuch"), "nonesuch", "trivial", "judge")
    refused(cli("audit", "--family", "nonesuch"), "nonesuch", "paired-biases")
    refused(cli("audit", "--seconds", "0"), "--seconds", "above 0")
    refused(cli("audit", "--jobs", "0"), "--jobs")
    refused(cli("audit", "--seed", "-1"), "--seed")
    refused(cli("audit", "--memory-limit", "much"), "--memory-limit")
    refused(cli("audit", "--again", tmp_path / "nowhere"), "nowhere", "--keep")
    refused(cli("audit", "--again", tmp_path, "--family", "corners"), "--family", "--again")
    refused(cli("audit", "--verifier", ","), "--verifier")
    assert os.listdir() == []


def test_what_is_done_so_far_is_printed_at_ctrl_c(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    def asked(*_: object, **__: object) -> Iterator[AuditRow]:
        yield AuditRow("trivial", "corners", "corner-2-linf", "q", 2.0, "= 2", Finding.SOUND)
        raise KeyboardInterrupt

    monkeypatch.setattr(auditing, "audited", asked)
    answer = cli("audit")
    assert answer.code == 130
    assert "trivial" in answer.out
    assert "interrupted" in answer.err


def test_ctrl_c_ends_the_processes_too(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "lipbridge", "audit", "--verifier", "witness", "--family", "nonnegative"]
    process = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    own = psutil.Process(process.pid)
    deadline = time.monotonic() + 60
    while not (children := own.children(recursive=True)) and time.monotonic() < deadline:
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "interrupted" in err
    assert "Traceback" not in err
    assert children
    assert psutil.wait_procs(children, timeout=10)[1] == []
    assert os.listdir(tmp_path) == []
