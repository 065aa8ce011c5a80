"""A study whose verifiers misbehave in every way, and which is killed, ends with the rows of one that was not."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch

import lipbridge
from lipbridge.disk.locks import held
from lipbridge.files.rows import load_rows
from tests.support import chaos

#: What a row says of the result; the rest is about time, memory and the machine.
FACTS = ("cell", "network", "verifier", "kind", "status", "side", "value", "proved", "norm", "region", "quantity")


@pytest.fixture
def model(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    lipbridge.save(lipbridge.mlp([3, 5, 2], "abs", bias=False), tmp_path / "net.safetensors")
    return tmp_path / "net.safetensors"


def start(file: Path, out: Path, *more: str) -> subprocess.Popen[bytes]:
    """The study in a process of its own."""
    theirs = chaos.install(file.parent / "theirs")
    command = [sys.executable, "-m", "lipbridge", "study", "run", str(file), "--out", str(out), *more]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(theirs), *sys.path]), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)


def finish(process: subprocess.Popen[bytes]) -> str:
    _, err = process.communicate(timeout=3000)
    assert process.returncode == 0, err.decode()
    return err.decode()


def table(out: Path) -> dict[str, dict[str, Any]]:
    rows = {row["cell"]: {name: row.get(name) for name in FACTS} for row in load_rows(out)}
    for row in rows.values():
        if row["side"] == "lower":
            row["value"] = None  # a search has so many seconds
    return rows


def left_over() -> list[str]:
    """Processes that a verifier of the chaos started and that still run."""
    found: list[str] = []
    for process in psutil.process_iter(["cmdline"]):
        line = process.info["cmdline"] or []
        if line[:2] == ["sleep", "3600.125"]:
            found.append(str(process))
    return found


def kill_at_random(file: Path, out: Path, times: int, cells: int, seed: int) -> None:
    """Kill the study so often, each time after another share of its cells."""
    draw = random.Random(seed)
    for number in range(times):
        target = (number + draw.random()) * cells / (times + 1)
        process = start(file, out)
        rows = out / "rows.jsonl"
        while process.poll() is None and (not rows.exists() or rows.read_bytes().count(b"\n") < target):
            time.sleep(0.05)
        time.sleep(draw.random())
        process.send_signal(signal.SIGKILL)
        process.communicate()


def the_same_after_kills(tmp_path: Path, text: str, cells: int) -> None:
    file = tmp_path / "chaos.toml"
    file.write_text(text)
    finish(start(file, tmp_path / "whole"))
    expected = table(tmp_path / "whole")
    assert len(expected) == cells
    for row in expected.values():
        if row["verifier"] not in ("witness", None):
            assert row["status"] == chaos.STATUSES[row["verifier"].split()[0]], row
    kill_at_random(file, tmp_path / "killed", 3, cells, seed=1)
    with open(tmp_path / "killed" / "rows.jsonl", "ab") as torn:
        torn.write(b'{"cell": "0123456789abcdef", "kind": "bo')  # as a write that a kill cut short
    assert f"{cells} of {cells} have a row" in finish(start(file, tmp_path / "killed"))
    assert table(tmp_path / "killed") == expected
    assert "0 cells run" in finish(start(file, tmp_path / "killed"))
    deadline = time.monotonic() + 10.0  # what a kill left behind ends with the pipe of its parent
    while left_over() and time.monotonic() < deadline:
        time.sleep(0.1)
    assert left_over() == []


def test_a_study_that_is_killed_ends_as_one_that_is_not(tmp_path: Path, model: Path) -> None:
    """Eight cells: one of each way to misbehave, the witness search and the reading."""
    the_same_after_kills(tmp_path, chaos.study(model, 1), 8)


@pytest.mark.slow
def test_two_hundred_cells_of_chaos(tmp_path: Path, model: Path) -> None:
    the_same_after_kills(tmp_path, chaos.study(model, 33), 200)


def test_a_folder_belongs_to_one_run_at_a_time(tmp_path: Path, model: Path) -> None:
    file, out = tmp_path / "chaos.toml", tmp_path / "out"
    file.write_text(chaos.study(model, 1))
    out.mkdir()
    with held(out):
        _, err = (process := start(file, out)).communicate(timeout=120)
    assert process.returncode == 2
    assert f"process {os.getpid()} on " in err.decode()
    assert not (out / "rows.jsonl").exists()


def test_a_folder_that_cannot_be_written_is_told(tmp_path: Path, model: Path) -> None:
    file = tmp_path / "chaos.toml"
    file.write_text(chaos.study(model, 1))
    (tmp_path / "file").write_text("")
    process = start(file, tmp_path / "file" / "out")
    _, err = process.communicate(timeout=120)
    assert process.returncode == 2
    assert err.decode().count("\n") <= 3
    assert "error: Cannot write" in err.decode()


@pytest.mark.skipif(os.geteuid() != 0 or shutil.which("mount") is None, reason="needs root, to mount a small disk")
def test_a_full_disk_keeps_what_is_done(tmp_path: Path, model: Path) -> None:
    """On a disk of one MiB: an error in words, and the rows that were finished stand and are gone on from."""
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", disk], capture_output=True).returncode:
        pytest.skip("no small disk can be mounted here")
    try:
        file, out = tmp_path / "chaos.toml", disk / "out"
        file.write_text(chaos.study(model, 1))
        (disk / "ballast").write_bytes(bytes(196 * 2**10))
        process = start(file, out)
        _, err = process.communicate(timeout=300)
        assert process.returncode == 2, err
        assert "No space left on device" in err.decode()
        done = len(load_rows(out)) if (out / "rows.jsonl").exists() else 0
        (disk / "ballast").unlink()
        assert f"{8 - done} cells run" in finish(start(file, out))
        assert len(table(out)) == 8
    finally:
        subprocess.run(["umount", "-l", disk], check=True)
