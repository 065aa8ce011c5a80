"""A child ends by itself, at a limit, or with this process, and takes with it all that it started."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lipbridge.descendants import Family
from lipbridge.processes import STDERR, STDOUT, Child, Ended, Limit, last_line, python_module, run_child


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
    used = Family(process.pid)
    try:
        wait_for(lambda: used.memory() > 2**28)
    finally:
        process.communicate(b"\n")
    assert used.memory() == 0


#: A daemon: a session of its own, no parent, and it says its id.
DAEMON = """
import os, sys, time
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        kept = b"x" * 2**{bits}
        with open({file!r}, "a") as out:
            print(os.getpid(), file=out)
        time.sleep(60)
    os._exit(0)
os.wait()
"""


def ids(file: Path) -> list[int]:
    return [int(line) for line in file.read_text().split()] if file.exists() else []


@pytest.mark.parametrize("own_group", [True, False])
def test_what_left_its_session_and_its_parent_ends_with_the_child(tmp_path: Path, own_group: bool) -> None:
    file = tmp_path / "daemons"
    code = DAEMON.format(bits=10, file=str(file)) * 2 + "time.sleep(1)"
    end = run(tmp_path, code, own_group=own_group)
    assert (end.code, end.limit) == (0, None)
    assert len(ids(file)) == 2
    assert all(map(gone, ids(file)))


def test_a_daemon_counts_against_the_limit_of_memory(tmp_path: Path) -> None:
    file = tmp_path / "daemons"
    end = run(tmp_path, DAEMON.format(bits=29, file=str(file)) + "time.sleep(60)", memory=2**28, seconds=50.0)
    assert (end.code, end.limit) == (None, Limit.MEMORY)
    assert all(map(gone, ids(file)))


def test_a_child_that_forks_without_end_ends(tmp_path: Path) -> None:
    """What is killed while it starts another is followed by the other: they are stopped first."""
    code = f"""
import os, time
for _ in range(3):
    if os.fork() == 0:
        for _ in range(2000):
            if os.fork():
                os._exit(0)
            os.setsid()
            with open({str(tmp_path / "pids")!r}, "a") as out:
                print(os.getpid(), file=out)
            time.sleep(0.003)
        os._exit(0)
time.sleep(60)
"""
    run(tmp_path, code, seconds=1.0)
    known = ids(tmp_path / "pids")
    assert len(known) > 20
    assert all(map(gone, known[-50:]))
    time.sleep(0.1)
    assert ids(tmp_path / "pids") == known


def test_a_daemon_ends_with_the_parent_of_its_child(tmp_path: Path) -> None:
    file = tmp_path / "daemons"
    child = (
        "from lipbridge.processes import end_with_parent\nend_with_parent()\n"
        + DAEMON.format(bits=10, file=str(file))
        + f"open({str(tmp_path / 'pid')!r}, 'w').write(str(os.getpid()))\ntime.sleep(60)"
    )
    parent = (
        "import sys\nfrom pathlib import Path\nfrom lipbridge.processes import run_child\n"
        f"run_child([sys.executable, '-c', {child!r}], Path({str(tmp_path)!r}), seconds=60.0, memory=2**30)"
    )
    process = subprocess.Popen([sys.executable, "-c", parent], env={**os.environ, **python_module("x")[1]})
    try:
        wait_for(lambda: ids(file) and (tmp_path / "pid").exists() and (tmp_path / "pid").read_text())
    finally:
        process.kill()
        process.wait()
    assert gone(int((tmp_path / "pid").read_text()))
    assert gone(ids(file)[0])


def test_cpu_seconds_are_those_of_all_of_a_child(tmp_path: Path) -> None:
    busy = "import time\nwhile time.process_time() < 0.6: pass"
    several = (
        f"import subprocess, sys\nwork = [sys.executable, '-c', {busy!r}]\n"
        "subprocess.run(work); others = [subprocess.Popen(work, start_new_session=True) for _ in range(2)]\n"
        "[other.wait() for other in others]"
    )
    assert 1.8 <= run(tmp_path, several).cpu_seconds < 6.0
    idle = run(tmp_path, "import time; time.sleep(0.5)")
    assert 0.0 < idle.cpu_seconds < 0.4
    stopped = run(tmp_path, "while True: pass", seconds=1.0)
    assert stopped.limit is Limit.TIME
    assert 0.3 < stopped.cpu_seconds < 1.5


def test_a_child_of_a_child_is_known_to_both(tmp_path: Path) -> None:
    """Tokens add up: what an inner child left behind, the outer one ends."""
    file = tmp_path / "daemons"
    (tmp_path / "inner").mkdir()
    outer = (
        "import sys, os, signal\nfrom pathlib import Path\nfrom lipbridge.processes import Child\n"
        f"inner = Child([sys.executable, '-c', {DAEMON.format(bits=10, file=str(file))!r}],"
        f" Path({str(tmp_path / 'inner')!r}), memory=2**30)\n"
        "inner.wait(20.0)\nos._exit(0)"
    )
    end = run(tmp_path, outer, environment=python_module("x")[1])
    assert end.code == 0
    assert all(map(gone, ids(file)))
    assert len(ids(file)) == 1


def test_each_piece_of_work_has_its_own_peak_and_limit(tmp_path: Path) -> None:
    code = "import sys, time\nkept = b'x' * 2**28\ndel kept\nopen(sys.argv[1], 'w').close()\ntime.sleep(60)"
    with Child([sys.executable, "-c", code, str(tmp_path / "done")], tmp_path, memory=2**30) as child:
        wait_for(lambda: (child.look(), (tmp_path / "done").exists())[1])
        child.memory = max(child.memory, 2**28)
        assert not child.look()
        child.begin(2**29)
        assert not child.look()
        assert 0 < child.memory < 2**28
        child.begin(2**20)
        assert child.look()
    assert child.code == -signal.SIGKILL
    assert gone(child.pid)


def test_another_thread_may_end_a_child(tmp_path: Path) -> None:
    with Child(["sleep", "60"], tmp_path, memory=2**30) as child:
        threading.Timer(0.3, child.end).start()
        assert child.wait(20.0)
        assert child.code == -signal.SIGKILL


def test_a_child_is_told_lines(tmp_path: Path) -> None:
    code = (
        "import queue\nfrom lipbridge.processes import end_with_parent\nlines = queue.SimpleQueue()\n"
        "end_with_parent(lines.put)\nprint(lines.get(), lines.get())"
    )
    command = [sys.executable, "-c", code]
    with Child(command, tmp_path, memory=2**30, environment=python_module("x")[1]) as child:
        child.tell("one")
        child.tell("two")
        assert child.wait(20.0)
        child.tell("three")
    assert (tmp_path / STDOUT).read_text() == "one two\n"
