"""Control groups: found where they were handed over, left alone elsewhere, none stays; a real one holds its limit."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from lipbridge import cgroups, processes
from lipbridge.cgroups import Groups, find, own_folder
from lipbridge.processes import Child, EnforcedBy, Limit, python_module, run_child
from tests.support.fake_cgroups import FakeCgroups


@pytest.fixture
def kernel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeCgroups:
    return FakeCgroups(tmp_path, monkeypatch)


def found(kernel: FakeCgroups) -> Groups | None:
    return find(kernel.proc, kernel.systemd)


def test_this_process_moves_and_comes_back(kernel: FakeCgroups) -> None:
    groups = found(kernel)
    assert groups is not None
    (leaf,) = kernel.groups()
    assert leaf.name == f"lipbridge-{os.getpid()}-12345-self"
    assert (kernel.processes(leaf), kernel.processes(kernel.own)) == ([os.getpid()], [])
    group = groups.group(2**30)
    (folder,) = set(kernel.groups()) - {leaf}
    limits = [(folder / name).read_text() for name in ("memory.max", "memory.swap.max", "memory.oom.group")]
    assert limits == [f"{2**30}\n", "0\n", "1\n"]
    group.enter(4711)
    assert kernel.processes(folder) == [4711]
    assert (group.out_of_memory(), group.cpu_seconds(), group.peak()) == (False, 1.5, 4096)
    (folder / "memory.events").write_text("oom 1\noom_kill 3\n")
    assert group.out_of_memory()
    group.kill()
    assert kernel.processes(folder) == []
    group.remove()
    groups.close()
    assert kernel.groups() == []
    assert kernel.processes(kernel.own) == [os.getpid()]
    assert (kernel.own / "cgroup.subtree_control").read_text() == "\n"


def test_without_a_limit_the_group_has_none(kernel: FakeCgroups) -> None:
    groups = found(kernel)
    assert groups is not None
    groups.group(float("inf"))
    assert {(path / "memory.max").read_text() for path in kernel.groups()} == {"max\n"}


def test_a_group_that_others_are_in_is_left_alone(kernel: FakeCgroups) -> None:
    (kernel.own / "cgroup.procs").write_text("1\n")
    assert found(kernel) is None
    assert kernel.groups() == []
    assert kernel.processes(kernel.own) == [os.getpid(), 1]


def test_descendants_move_with_this_process(kernel: FakeCgroups) -> None:
    with subprocess.Popen(["sleep", "60"]) as child:
        (kernel.own / "cgroup.procs").write_text(f"{child.pid}\n")
        groups = found(kernel)
        assert groups is not None
        assert kernel.processes(kernel.groups()[0]) == [os.getpid(), child.pid]
        groups.close()
        assert kernel.processes(kernel.own) == [os.getpid(), child.pid]
        child.kill()


@pytest.mark.parametrize(
    ("file", "text"),
    [
        ("cgroup.controllers", "cpu pids\n"),
        ("cgroup.type", "domain threaded\n"),
        ("../../../proc/self/cgroup", "4:memory:/x\n"),
        ("../../../proc/self/cgroup", "0::/../outside\n"),
        ("../../../proc/self/mountinfo", "20 1 0:1 / / rw - ext4 /dev/vda rw\n"),
    ],
)
def test_what_cannot_be_used_is_left_alone(kernel: FakeCgroups, file: str, text: str) -> None:
    (kernel.own / file).resolve().write_text(text)
    assert found(kernel) is None
    assert kernel.groups() == []


def test_what_systemd_did_not_hand_over_is_left_alone(kernel: FakeCgroups, monkeypatch: pytest.MonkeyPatch) -> None:
    kernel.systemd.mkdir()
    marks: dict[str, bytes] = {}

    def read(path: object, name: str) -> bytes:
        if name not in marks:
            raise OSError("none")
        return marks[name]

    monkeypatch.setattr(os, "getxattr", read, raising=False)
    assert found(kernel) is None
    marks["user.delegate"] = b"1"
    assert found(kernel) is not None


def test_nothing_changes_where_the_controller_is_refused(kernel: FakeCgroups, monkeypatch: pytest.MonkeyPatch) -> None:
    write = kernel.write

    def refuse(path: Path, text: str, *given: object, **named: object) -> None:
        if path.name == "cgroup.subtree_control":
            raise PermissionError(path)
        write(path, text)

    monkeypatch.setattr(kernel, "write", refuse)
    assert found(kernel) is None
    assert kernel.groups() == []
    assert kernel.processes(kernel.own) == [os.getpid()]


def test_the_root_of_all_may_have_processes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kernel = FakeCgroups(tmp_path, monkeypatch, own="")
    (kernel.own / "cgroup.procs").write_text("1\n")
    groups = found(kernel)
    assert groups is not None
    groups.group(2**30)
    assert kernel.processes(kernel.own) == [os.getpid(), 1]


def test_a_process_that_was_started_in_the_leaf_uses_the_same_place(kernel: FakeCgroups) -> None:
    assert found(kernel) is not None
    (leaf,) = kernel.groups()
    (kernel.proc / "self" / "cgroup").write_text(f"0::/a/b/{leaf.name}\n")
    inner = found(kernel)
    assert inner is not None
    inner.group(2**30)
    assert len(kernel.groups()) == 2
    inner.close()
    assert kernel.processes(leaf) == [os.getpid()]


def test_empty_groups_of_dead_processes_are_removed(kernel: FakeCgroups) -> None:
    for name in ("lipbridge-999999999-1-0", f"lipbridge-{os.getpid()}-1-3", "lipbridge-999999999-1-4", "another"):
        (kernel.own / name).mkdir()
    (kernel.own / "lipbridge-999999999-1-0" / "made-by-it").mkdir()
    (kernel.own / "lipbridge-999999999-1-4" / "cgroup.procs").write_text("12\n")
    with open(kernel.own / "cgroup.subtree_control", "w") as control:  # as a process that was killed left it
        control.write("memory\n")
    assert found(kernel) is not None
    assert {path.name for path in kernel.groups()} == {"lipbridge-999999999-1-4", "another"}


def test_a_path_in_a_container_is_that_of_what_is_mounted(kernel: FakeCgroups) -> None:
    me = kernel.proc / "self"
    (me / "cgroup").write_text("0::/docker/c0ffee/inner\n")
    (me / "mountinfo").write_text(f"31 23 0:28 /docker/c0ffee {kernel.root}\\040x ro - cgroup2 cgroup2 rw\n")
    assert own_folder(kernel.proc) == Path(f"{kernel.root} x/inner")


def test_a_child_whose_group_ran_out_of_memory_was_stopped_there(
    kernel: FakeCgroups, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    groups = found(kernel)
    assert groups is not None
    made: list[Path] = []

    def new(memory: float) -> object:
        before = set(kernel.groups())
        group = groups.group(memory)
        made.extend(set(kernel.groups()) - before)
        return group

    monkeypatch.setattr(processes, "new_group", new)
    monkeypatch.delenv("LIPBRIDGE_CHILD", raising=False)
    end = run_child([sys.executable, "-c", "pass"], tmp_path, seconds=20.0, memory=2**30)
    assert (end.code, end.limit, end.enforced_by, end.charged) == (0, None, EnforcedBy.CGROUP, 4096)
    assert end.cpu_seconds == 1.5
    with Child(["sleep", "60"], tmp_path, memory=2**30) as child:
        assert kernel.processes(made[-1]) == [child.pid]
        assert not child.look()
        (made[-1] / "memory.events").write_text("oom_kill 1\n")
        assert child.look()
    assert len(kernel.groups()) == 1
    inner = run_child(
        [sys.executable, "-c", "import os; assert os.environ['LIPBRIDGE_CHILD'].count(':') == 0"],
        tmp_path,
        seconds=20.0,
        memory=2**30,
    )
    assert inner.code == 0
    monkeypatch.setenv("LIPBRIDGE_CHILD", "outer")
    end = run_child(["true"], tmp_path, seconds=20.0, memory=2**30)
    assert end.enforced_by is EnforcedBy.POLLING


REAL = """
import json, sys, tempfile
from pathlib import Path
from lipbridge import cgroups
from lipbridge.processes import run_child
own = cgroups.own_folder()
eat = "import subprocess, sys\\nsubprocess.run([sys.executable, '-c', 'y = b\\"x\\" * 2**28; input()'])"
with tempfile.TemporaryDirectory() as folder:
    fine = run_child([sys.executable, "-c", "x = b'x' * 2**26"], Path(folder), seconds=60.0, memory=2**28)
    end = run_child([sys.executable, "-c", eat], Path(folder), seconds=60.0, memory=2**27)
print(json.dumps([fine.enforced_by, fine.code, fine.charged, end.limit, end.cpu_seconds, str(own)]))
"""


def test_the_kernel_holds_the_limit_where_it_may(tmp_path: Path) -> None:
    """In a process of its own, which is moved and moves back."""
    environment = {key: value for key, value in os.environ.items() if key != "LIPBRIDGE_CHILD"}
    done = subprocess.run(
        [sys.executable, "-c", REAL], capture_output=True, text=True, env={**environment, **python_module("x")[1]}
    )
    assert done.returncode == 0, done.stderr
    by, code, charged, limit, seconds, own = json.loads(done.stdout)
    assert (code, limit) == (0, Limit.MEMORY)
    assert seconds > 0
    if by == EnforcedBy.POLLING:
        pytest.skip("this process may make no control groups here; the limit was held by polling")
    assert charged is None or charged > 2**26
    assert not list(Path(own).glob("lipbridge-*"))


def test_where_groups_may_be_made_is_looked_for_once(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []
    monkeypatch.setattr(cgroups, "_found", {})
    monkeypatch.setattr(cgroups, "find", lambda: calls.append(1))
    assert cgroups.new_group(1.0) is None
    assert cgroups.new_group(1.0) is None
    assert calls == [1]
