"""A child ends by itself, at a limit, or with this process, and takes with it all that it started."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lipbridge.processes import STDERR, STDOUT, Ended, FamilyMemory, Limit, last_line, python_module, run_child


def run(folder: Path, code: str, **given: Any) -> Ended:
    return run_child([sys.executable, "-c", code], folder, **{"seconds": 20.0, "memory": 2**30, **given})


def gone(pid: int) -> bool:
    """Whether a process ends within some seconds; a zombie that nobody has waited for yet counts as ended."""
    for _ in range(100):
        try:
            if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z":
                return True
            os.kill(pid, 0)
        except (ProcessLookupError, FileNotFoundError):
            return True
        time.sleep(0.05)
    return False


def test_a_child_that_ends_has_its_code_and_its_words(tmp_path: Path) -> None:
    code = "import os, sys; print(os.environ['SAID']); print('one\\nlast', file=sys.stderr); sys.exit(7)"
    end = run(tmp_path, code, environment={"SAID": "hello"})
    assert (end.code, end.limit) == (7, None)
    assert (tmp_path / STDOUT).read_text() == "hello\n"
    assert last_line(tmp_path / STDERR) == "last"
    assert run(tmp_path, "import os; os.abort()").code == -signal.SIGABRT
    with pytest.raises(OSError, match="nonesuch"):
        run_child(["/nonesuch"], tmp_path, seconds=1.0, memory=2**30)


@pytest.mark.parametrize("own_group", [True, False])
def test_a_child_is_stopped_at_its_limits(tmp_path: Path, own_group: bool) -> None:
    end = run(tmp_path, "import time; time.sleep(60)", seconds=0.5, own_group=own_group)
    assert (end.code, end.limit) == (None, Limit.TIME)
    assert 0.5 < end.seconds < 10
    code = "import time; kept = b'x' * 2**28; time.sleep(60)"
    end = run(tmp_path, code, memory=2**27, own_group=own_group)
    assert (end.code, end.limit) == (None, Limit.MEMORY)
    assert end.memory > 2**27


def test_what_a_child_started_ends_with_it(tmp_path: Path) -> None:
    code = "import subprocess; p = subprocess.Popen(['sleep', '60']); print(p.pid, flush=True); p.wait()"
    run(tmp_path, code, seconds=2.0)
    assert gone(int((tmp_path / STDOUT).read_text()))


def test_each_phase_has_its_own_clock(tmp_path: Path) -> None:
    start = time.perf_counter()

    def phases() -> tuple[str, float]:
        return ("first", 60.0) if time.perf_counter() - start < 1.5 else ("second", 0.5)

    end = run(tmp_path, "import time; time.sleep(60)", seconds=phases)
    assert end.limit is Limit.TIME
    assert 0.5 < end.seconds < 1.4


def test_a_child_ends_with_its_parent(tmp_path: Path) -> None:
    """Also when the parent is killed, and what it was doing never looks up."""
    child = (
        "import os, sys, time\nfrom lipbridge.processes import end_with_parent\nend_with_parent()\n"
        f"open({str(tmp_path / 'pid')!r}, 'w').write(str(os.getpid()))\ntime.sleep(60)"
    )
    parent = (
        "import sys\nfrom pathlib import Path\nfrom lipbridge.processes import run_child\n"
        f"run_child([sys.executable, '-c', {child!r}], Path({str(tmp_path)!r}), seconds=60.0, memory=2**30)"
    )
    process = subprocess.Popen([sys.executable, "-c", parent], env={**os.environ, **python_module("x")[1]})
    try:
        wait_for(lambda: (tmp_path / "pid").exists() and (tmp_path / "pid").read_text())
    finally:
        process.kill()
        process.wait()
    assert gone(int((tmp_path / "pid").read_text()))


def wait_for(thing: Callable[[], object]) -> None:
    for _ in range(400):
        if thing():
            return
        time.sleep(0.05)
    raise AssertionError("it never came")


def test_memory_counts_the_children(tmp_path: Path) -> None:
    code = "import subprocess, sys; subprocess.run([sys.executable, '-c', 'x = b\"x\" * 2**28; input()'])"
    process = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE)
    used = FamilyMemory(process.pid)
    try:
        wait_for(lambda: used.now() > 2**28)
    finally:
        process.communicate(b"\n")
    assert used.now() == 0
