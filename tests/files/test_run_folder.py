"""The folder of a run: one process at a time, and at every moment of a kill or a full disk a whole run in it."""

from __future__ import annotations

import os
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from lipbridge.disk.atomic import write_atomically
from lipbridge.disk.locks import HOLDER, LOCK, held
from lipbridge.errors import FileNotWritten, FolderInUse, InvalidArgument, ModelFileError
from lipbridge.files import run_folder
from lipbridge.files.container import save_tensors
from tests.support.faults import Disk, Killed, Mode

FILES = ("checkpoint.safetensors", "metrics.csv", "metrics.jsonl", "model.safetensors", "run.json")


def train(folder: Path, name: str, *, resume: bool = False, overwrite: bool = False) -> None:
    """A run of two epochs that writes its name instead of numbers."""
    with run_folder.opened(folder, resume, overwrite):
        place = run_folder.place(folder, overwrite)
        first = 0
        if resume:
            found = {where: facts for where, facts in run_folder.checkpoints(folder).items() if facts["name"] == name}
            place, first = next((where, facts["epoch"]) for where, facts in found.items())
            write_metrics(place, name, first)
        for epoch in range(first + 1, 3):
            save_tensors(place / "checkpoint.safetensors", {"a": torch.ones(1)}, {"name": name, "epoch": epoch})
            write_metrics(place, name, epoch)
        with run_folder.finishing(folder, place) as whole:
            for result in ("model.safetensors", "run.json"):
                write_atomically(whole / result, name.encode())


def write_metrics(place: Path, name: str, epoch: int) -> None:
    for metrics in ("metrics.jsonl", "metrics.csv"):
        write_atomically(place / metrics, f"{name} {epoch}".encode())


def state(folder: Path) -> dict[str, bytes]:
    """What a reader finds."""
    run_folder.settle(folder)
    return {name: (folder / name).read_bytes() for name in FILES if (folder / name).exists()}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, bytes]]:
    """The finished runs by name."""
    found: dict[str, dict[str, bytes]] = {}
    for name in ("old", "new"):
        folder = tmp_path_factory.mktemp("runs") / name
        train(folder, name)
        assert sorted(path.name for path in folder.iterdir()) == sorted([*FILES, LOCK])
        found[name] = state(folder)
    return found


@pytest.fixture(autouse=True)
def _memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing here waits for the disk."""
    monkeypatch.setattr(os, "fsync", os.fstat)


@contextmanager
def failing(folder: Path, prepare: Callable[[Path], None], at: int | None, mode: Mode) -> Generator[Disk]:
    folder.parent.mkdir()
    prepare(folder)
    with Disk(at, mode).mounted() as disk:
        yield disk


def nothing(folder: Path) -> None:
    """A folder that is not there."""


def old(folder: Path) -> None:
    train(folder, "old")


def half(folder: Path) -> None:
    """A run that was killed while it wrote its last checkpoint."""
    with Disk(20).mounted(), pytest.raises(Killed):
        train(folder, "new")
    assert 0 < len(state(folder)) < 5


@pytest.mark.parametrize(
    ("before", "mode"),
    [(nothing, "kill"), (half, "kill"), (half, "full"), (old, "kill"), (old, "full"), (old, "once")],
)
def test_at_every_moment_a_whole_run_is_there(
    before: Callable[[Path], None], mode: Mode, whole: dict[str, dict[str, bytes]], tmp_path: Path
) -> None:
    """Whatever fails, what was finished is there to the last byte, and the new run can be brought to its end."""
    options = {nothing: {}, half: {"resume": True}, old: {"overwrite": True}}[before]
    with failing(tmp_path / "count" / "run", before, None, mode) as disk:
        train(tmp_path / "count" / "run", "new", **options)
    assert state(tmp_path / "count" / "run") == whole["new"]
    assert disk.done > 30
    kept: list[bool] = []
    for at in range(disk.done):
        folder = tmp_path / str(at) / "run"
        told = "no failure"
        with failing(folder, before, at, mode):
            try:
                train(folder, "new", **options)
            except Killed:
                told = "killed"
            except (ModelFileError, FileNotWritten, InvalidArgument) as error:
                told = str(error)
            except OSError as error:  # of a rename; fit adds the sentence
                told = error.strerror
        assert told == "killed" if mode == "kill" else told == "no failure" or "No space left on device" in told
        found = state(folder)
        assert before is not old or found in (whole["old"], whole["new"])
        kept.append(found == whole["old"])
        named_new = [facts["name"] == "new" for facts in run_folder.checkpoints(folder).values()]
        train(folder, "new", **({"resume": True} if any(named_new) else {"overwrite": before is old}))
        assert state(folder) == whole["new"]
        assert sorted(path.name for path in folder.iterdir()) == sorted([*FILES, LOCK])
    assert any(kept) == (before is old)
    assert not all(kept)


def test_a_folder_is_held_by_one(tmp_path: Path) -> None:
    """Also by another thread or run of this process; the refused one changes nothing."""
    train(tmp_path / "run", "old")
    before = state(tmp_path / "run")
    with run_folder.opened(tmp_path / "run", True, False):
        for options in ({"resume": True}, {"overwrite": True}):
            with pytest.raises(FolderInUse, match=rf"run is in use by process {os.getpid()} on .*, since 20.*another"):
                train(tmp_path / "run", "new", **options)
    assert state(tmp_path / "run") == before
    train(tmp_path / "run", "new", overwrite=True)


@pytest.mark.parametrize("text", [b"", b"[]", b"{}", b"\xff", b"[" * 10_000, b'{"pid": 1}'])
def test_a_holder_without_a_name(text: bytes, tmp_path: Path) -> None:
    with held(tmp_path):
        (tmp_path / HOLDER).write_bytes(text)
        with pytest.raises(FolderInUse, match="in use by another process"), held(tmp_path):
            pass


def test_the_lock_alone_makes_no_run(tmp_path: Path) -> None:
    """A run that was refused or failed at once leaves a folder that the next can take."""
    with pytest.raises(KeyError), run_folder.opened(tmp_path / "new", False, False):
        raise KeyError
    assert not (tmp_path / "new").exists()
    with held(tmp_path):
        pass
    assert [path.name for path in tmp_path.iterdir()] == [LOCK]
    with run_folder.opened(tmp_path, False, False):
        pass


def test_resuming_knows_which_of_two_runs_is_meant(tmp_path: Path, whole: dict[str, dict[str, bytes]]) -> None:
    train(tmp_path / "run", "old")
    with Disk(20).mounted(), pytest.raises(Killed):
        train(tmp_path / "run", "new", overwrite=True)
    assert list(run_folder.checkpoints(tmp_path / "run")) == [tmp_path / "run" / ".unfinished", tmp_path / "run"]
    with pytest.raises(InvalidArgument, match="--resume or --overwrite"):
        train(tmp_path / "run", "new")
    train(tmp_path / "run", "old", resume=True)
    assert state(tmp_path / "run") == whole["old"]
    train(tmp_path / "run", "new", resume=True)
    assert state(tmp_path / "run") == whole["new"]


def test_a_link_in_place_of_a_finished_run_is_left_alone(tmp_path: Path) -> None:
    train(tmp_path / "run", "old")
    train(tmp_path / "mine", "new")
    (tmp_path / "run" / ".finished").symlink_to(tmp_path / "mine")
    before = state(tmp_path / "run")
    assert (tmp_path / "mine" / "model.safetensors").exists()
    assert before["run.json"] == b"old"
