"""A full disk at any operation of any writer: one line that names the file and the way out, and no half file."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import lipbridge
from lipbridge.cli.app import run
from lipbridge.disk import atomic
from lipbridge.errors import FileNotWritten, LipbridgeError, ModelFileError, TrainingError
from lipbridge.files import container, graphs, problems
from lipbridge.processes import STDERR, Ended
from lipbridge.report.page import write_report
from lipbridge.study.engine import alone, wire, worker
from lipbridge.study.requests import Request
from lipbridge.verifiers import Budget
from lipbridge.vocabulary import Status
from tests.support.faults import Disk, Killed

MODULE = lipbridge.mlp([4, 3, 2], "relu")
GRAPH = lipbridge.capture(MODULE)
PROBLEM = lipbridge.Problem(GRAPH, lipbridge.Question.everywhere(2))

WRITERS: dict[str, Callable[[Path], Any]] = {
    "save": lambda file: lipbridge.save(MODULE, file),
    "save_graph": lambda file: graphs.save_graph(GRAPH, file),
    "save_problem": lambda file: problems.save_problem(PROBLEM, file),
    "save_tensors": lambda file: container.save_tensors(file, {"a": torch.ones(3)}),
    "onnx": lambda file: import_module("lipbridge_adapters.onnx.export").export_onnx(GRAPH, file, check=False),
    "mat": lambda file: import_module("lipbridge_adapters.matlab.lipsdp_mat").export_mat(GRAPH, file),
    "report": lambda file: write_report(file, [], [], {}),
}


@pytest.mark.parametrize("writer", WRITERS)
def test_every_writer_names_the_file(writer: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if writer == "report":
        monkeypatch.setattr("lipbridge.report.page.render", lambda *_: "<!doctype html>")
    file = tmp_path / "the-file"
    file.write_bytes(b"old")
    with Disk().mounted() as disk:
        WRITERS[writer](tmp_path / "other")
    assert disk.done >= 4
    (tmp_path / "other").unlink()
    for at in range(disk.done - 1):  # the last brings the folder to the disk, which not every system can
        with Disk(at, "full").mounted(), pytest.raises(LipbridgeError) as caught:
            WRITERS[writer](file)
        assert str(caught.value) == (
            f"Cannot write {str(file)!r}: No space left on device. Make room on its disk, or write elsewhere."
        )
        assert file.read_bytes() == b"old"
        with Disk(at, "kill").mounted(), pytest.raises(Killed):
            WRITERS[writer](file)
        assert file.read_bytes() == b"old" or at == disk.done - 2
        file.write_bytes(b"old")
        for left in tmp_path.glob(".the-file.*.tmp"):
            left.unlink()
        assert list(tmp_path.iterdir()) == [file]


@pytest.mark.parametrize(
    ("number", "words"),
    [
        (errno.ENOSPC, "Make room"),
        (errno.EDQUOT, "quota"),
        (errno.EFBIG, "ulimit -f"),
        (errno.EROFS, "Mount"),
        (errno.EACCES, "permission"),
        (errno.ENOENT, "folder is there"),
    ],
)
def test_each_reason_has_its_way_out(number: int, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(FileNotWritten, match=words) as caught:
        atomic.write_atomically(tmp_path / "a", b"")
    assert (caught.value.errno, caught.value.filename) == (number, str(tmp_path / "a"))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="/dev/full is of Linux")
def test_standard_output_is_named(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in (["verifiers", "--json"], ["verifiers"]):
        with open("/dev/full", "w") as full:
            monkeypatch.setattr(sys, "stdout", full)
            assert run(arguments) == 2
            assert capsys.readouterr().err.startswith("error: Cannot write 'standard output': No space left on device.")
            os.dup2(os.open(os.devnull, os.O_WRONLY), full.fileno())


def request() -> Request:
    return Request("net", PROBLEM, "trivial", Budget(seconds=1.0))


def test_a_cell_without_room_is_a_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever could not be written, the other cells go on; and the process is told to keep its files in the folder."""
    started: list[str] = []

    def popen(*_: Any, env: dict[str, str], **__: Any) -> None:
        started.append(env["TMPDIR"])
        raise OSError(errno.ENOSPC, "No space left on device", "fork")

    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setattr(subprocess, "Popen", popen)
    for at in range(40):
        with Disk(at, "once").mounted() as disk:
            bound = alone.run_request(request()).bound
        assert bound.status is Status.FAILED
        assert "No space left on device" in bound.detail
        assert "TMPDIR" in bound.detail
        assert list(tmp_path.iterdir()) == []
        if disk.done <= at:
            break
    assert at > 10
    assert started[-1].startswith(str(tmp_path / "lipbridge-"))


def test_an_answer_without_room_has_an_exit_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """There may be no room for the last words either."""
    alone._write_request(request(), tmp_path)
    monkeypatch.setattr(worker, "_speak_into", lambda _: None)
    monkeypatch.setattr("tempfile.tempdir", None)
    monkeypatch.setenv("TMPDIR", str(tmp_path))

    def full(path: Path, *_: object) -> None:
        raise FileNotWritten(path, OSError(errno.ENOSPC, "No space left on device"))

    monkeypatch.setattr(wire, "write_bound", full)
    with pytest.raises(SystemExit) as caught:
        worker.answer(tmp_path)
    assert caught.value.code == os.EX_IOERR
    (tmp_path / STDERR).touch()
    bound = alone._read_answer(request(), tmp_path, Ended(os.EX_IOERR, None, 1.0, 0))
    assert bound.status is Status.FAILED
    assert f"could not be written to {tmp_path}: make room" in bound.detail


def fit(folder: Path, penalty: float, **options: bool) -> nn.Module:
    torch.manual_seed(0)
    config = lipbridge.TrainingConfig(epochs=2, batch_size=50, penalty=penalty)
    return lipbridge.fit(nn.Linear(4, 3), lipbridge.load_dataset("iris"), config, out=folder, **options).module


def test_training_without_room_says_what_is_kept(tmp_path: Path) -> None:
    """In the first epoch nothing, then a checkpoint; while overwriting the old run in any case."""
    wanted = fit(tmp_path / "old", 0.0)
    told: list[str] = []
    for at, options in ((8, {}), (30, {}), (30, {"overwrite": True})):
        folder = tmp_path / f"{at}{len(options)}"
        if options:
            fit(folder, 0.1)
        before = {path.name: path.read_bytes() for path in folder.glob("*")}
        with Disk(at, "full").mounted(), pytest.raises(TrainingError) as caught:
            fit(folder, 0.0, **options)
        told.append(str(caught.value))
        assert str(folder) in told[-1]
        assert "could not be written (No space left on device). Make room on its disk;" in told[-1]
        if options:
            assert {name: (folder / name).read_bytes() for name in before} == before
        found = fit(folder, 0.0, **({} if "start again" in told[-1] else {"resume": True}))
        assert torch.equal(found.weight, wanted.weight)
    assert "start again" in told[0]
    assert "--resume" in told[1]
    assert f"the run in {folder} is as it was, and" in told[2]


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["kill", "full"])
@pytest.mark.parametrize("options", [{}, {"overwrite": True}])
def test_training_at_every_operation(options: dict[str, bool], mode: Any, tmp_path: Path) -> None:
    """Kill and fill a run of two epochs at each operation in turn: the old run or the new one is whole."""
    wanted = fit(tmp_path / "new", 0.0)
    fit(tmp_path / "old", 0.1)
    names = [path.name for path in (tmp_path / "old").iterdir()]
    for at in range(200):
        folder = tmp_path / "runs" / str(at)
        folder.mkdir(parents=True)
        for name in names if options else ():
            (folder / name).write_bytes((tmp_path / "old" / name).read_bytes())
        with Disk(at, mode).mounted() as disk:
            try:
                fit(folder, 0.0, **options)
            except (Killed, LipbridgeError):
                pass
            else:
                assert mode != "kill" or disk.done <= at
        if disk.done <= at:
            break
        lipbridge.files.run_folder.settle(folder)
        if options:
            old = all((folder / name).read_bytes() == (tmp_path / "old" / name).read_bytes() for name in names)
            assert old or torch.equal(lipbridge.load(folder).weight, wanted.weight)
        try:
            found = fit(folder, 0.0, resume=True)
        except (ModelFileError, LipbridgeError):
            found = fit(folder, 0.0, **options)
        assert torch.equal(found.weight, wanted.weight)
        assert sorted(path.name for path in folder.iterdir()) == sorted(names)
    assert at > 40
