"""Temporary folders go, however their process ends; those of the living stay."""

from __future__ import annotations

import os
import signal
import threading
import time
from pathlib import Path

import pytest

from lipbridge.disk.locks import HOLDER, LOCK, held
from lipbridge.disk.temporary import ended_in_order, sweep, temporary_folder

NUMBERS = (signal.SIGTERM, signal.SIGHUP, signal.SIGINT, signal.SIGKILL)


def start(parent: Path) -> tuple[int, Path]:
    """A process (a copy of this one) that has a temporary folder; returns its number and the folder."""
    there, here = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            signal.signal(signal.SIGINT, signal.default_int_handler)
            for number in (signal.SIGTERM, signal.SIGHUP):
                signal.signal(number, signal.SIG_DFL)
            with temporary_folder(parent=parent) as folder:
                (folder / "problem").write_text("x")
                os.write(here, os.fsencode(folder))
                time.sleep(600)
        finally:
            os._exit(130)
    os.close(here)
    folder = Path(os.fsdecode(os.read(there, 4096)))
    os.close(there)
    return pid, folder


def test_a_folder_goes_with_its_process(tmp_path: Path) -> None:
    """SIGTERM, SIGHUP and Ctrl-C at once, SIGKILL with the next process; the folder of a living one stays."""
    started = {number: start(tmp_path) for number in NUMBERS}
    sweep(parent=tmp_path)
    assert all((folder / "problem").exists() for _, folder in started.values())
    for number, (pid, folder) in started.items():
        os.kill(pid, number)
        code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        assert code == (130 if number == signal.SIGINT else -number)
        assert folder.exists() == (number == signal.SIGKILL)
    with temporary_folder(parent=tmp_path) as mine:
        assert list(tmp_path.iterdir()) == [mine]
    assert list(tmp_path.iterdir()) == []


def test_only_what_is_dead_and_ours_is_swept(tmp_path: Path) -> None:
    (tmp_path / "lipbridge-file").write_text("mine")
    (tmp_path / "target").mkdir()
    with held(tmp_path / "target"):
        pass
    (tmp_path / "target" / HOLDER).write_text("{}")
    (tmp_path / "lipbridge-link").symlink_to(tmp_path / "target")
    for name, files in {
        "lipbridge-others": ["theirs"],
        "lipbridge-young": [],
        "lipbridge-beginning": [LOCK],
        "lipbridge-empty": [],
        "lipbridge-cut": [LOCK],
        "lipbridge-dead": [LOCK, HOLDER, "problem"],
        "other-dead": [LOCK, HOLDER],
    }.items():
        (tmp_path / name).mkdir()
        for file in files:
            (tmp_path / name / file).write_text("")
    for name in ("lipbridge-others", "lipbridge-empty", "lipbridge-cut"):
        os.utime(tmp_path / name, (1, 1))
    before = {path.name for path in tmp_path.iterdir()}
    sweep(parent=tmp_path)
    assert before - {path.name for path in tmp_path.iterdir()} == {"lipbridge-empty", "lipbridge-cut", "lipbridge-dead"}
    assert (tmp_path / "target" / HOLDER).exists()


def test_an_error_passes_and_nothing_is_left(tmp_path: Path) -> None:
    with pytest.raises(FileExistsError), temporary_folder(parent=tmp_path) as folder:
        folder.mkdir()
    assert list(tmp_path.iterdir()) == []


def test_handlers_are_put_back_and_a_users_own_stays() -> None:
    heard: list[int] = []
    before = signal.signal(signal.SIGHUP, lambda number, _: heard.append(number))
    try:
        with ended_in_order(), ended_in_order():
            assert signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL
            os.kill(os.getpid(), signal.SIGHUP)
            time.sleep(0.01)
        assert heard == [signal.SIGHUP]
        assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_thread_has_a_folder_too(tmp_path: Path) -> None:
    seen: list[bool] = []

    def work() -> None:
        with temporary_folder(parent=tmp_path) as folder:
            seen.append(folder.is_dir())

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [True]
    assert list(tmp_path.iterdir()) == []
