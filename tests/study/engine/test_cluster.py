"""Jobs as processes of this machine: the same engine as Slurm's, without Slurm."""

from __future__ import annotations

import json
import signal
import sys
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("submitit", reason='needs pip install "lipbridge[cluster]"')

from lipbridge.errors import ClusterError, InvalidArgument, UnknownName
from lipbridge.files.rows import ROWS, append_rows, load_rows
from lipbridge.study.engine import schedulers
from lipbridge.study.engine.cluster_settings import ClusterSettings
from lipbridge.study.engine.schedulers import Away, Needs, Scheduler, State
from lipbridge.study.engine.slurm import JOBS, SUBMITTED, SlurmEngine
from lipbridge.vocabulary import Status
from tests.support.cluster_cells import GO, SETTINGS, cell, engine, ran, study
from tests.support.killed import started, wait_for


def test_a_study_of_jobs(tmp_path: Path) -> None:
    first = cell(0)
    cells = [first, cell(1, after=[first.id]), cell(2, "raise"), cell(3, "crash"), cell(4, "eat"), cell(5, "sleep")]
    rows = study(tmp_path, cells, engine(tmp_path, "submitit-local", max_jobs=3))
    assert [row["status"] for row in rows] == ["ok", "ok", "failed", "failed", "memory", "timeout"]
    assert [row["accuracy"] for row in rows[:2]] == [0.0, 0.01]
    assert rows[2]["detail"] == "ValueError: as it was told"
    assert "ended without a row" in rows[3]["detail"]
    assert "the last words" in rows[3]["detail"]
    assert ran(tmp_path) == [0, 1, 2, 3, 4, 5]
    assert not [name for name in (tmp_path / JOBS).glob("*.json") if name.name != SUBMITTED]
    assert json.loads((tmp_path / JOBS / SUBMITTED).read_text()) == {}


def test_several_cells_a_job(tmp_path: Path) -> None:
    made = engine(tmp_path, "submitit-local", cells_per_job=3, max_jobs=2)
    assert made.room() == 6
    for number in range(4):
        made.submit(cell(number, "wait"))
    assert made.room() == 2
    assert made.finished(0.0) == []
    assert made.room() == 0
    assert len(list((tmp_path / JOBS).glob("lipbridge-*"))) == 2
    assert len(made.running()) == 4
    (tmp_path / GO).touch()
    found: list[Any] = []
    while len(found) < 4:
        found += made.finished(20.0)
    made.close()
    assert sorted(row["accuracy"] for _, row in found) == [0.0, 0.01, 0.02, 0.03]
    assert ran(tmp_path) == [0, 1, 2, 3]


def test_a_study_that_was_killed_takes_its_jobs_over(tmp_path: Path) -> None:
    cells = [cell(number, "wait" if number % 2 else "fine") for number in range(6)]
    with started(tmp_path, "submitit-local", cells) as process:
        wait_for(lambda: (tmp_path / ROWS).exists() and len(load_rows(tmp_path)) == 3 and len(ran(tmp_path)) == 6)
        process.send_signal(signal.SIGKILL)
    (tmp_path / GO).touch()
    wait_for(lambda: len(list((tmp_path / JOBS).glob("????????????????.json"))) >= 3)
    rows = study(tmp_path, cells, engine(tmp_path, "submitit-local"))
    assert {row["status"] for row in rows} == {"ok"}
    assert len((tmp_path / ROWS).read_text().splitlines()) == 6
    assert ran(tmp_path) == list(range(6))


def test_jobs_that_still_run_are_waited_for(tmp_path: Path) -> None:
    cells = [cell(number, "wait") for number in range(3)]
    with started(tmp_path, "submitit-local", cells) as process:
        wait_for(lambda: (tmp_path / "ran.txt").exists() and len(ran(tmp_path)) == 3)
        process.send_signal(signal.SIGKILL)
    again = engine(tmp_path, "submitit-local")
    for each in cells:
        again.submit(each)
    assert again.finished(1.0) == []
    assert {each.cell.id for each in again.running()} == {each.id for each in cells}
    (tmp_path / GO).touch()
    study(tmp_path, cells, again)
    assert ran(tmp_path) == [0, 1, 2]


@pytest.mark.parametrize("leave", [False, True])
def test_what_runs_is_ended_or_left(tmp_path: Path, leave: bool) -> None:
    made = engine(tmp_path, "submitit-local", leave=leave)
    made.submit(cell(0, "wait"))
    made.finished(0.0)
    wait_for(lambda: (tmp_path / "ran.txt").exists())
    made.close()
    (tmp_path / GO).touch()
    rows = study(tmp_path, [cell(0, "wait")], engine(tmp_path, "submitit-local"))
    assert rows[0]["status"] == "ok"
    assert ran(tmp_path) == ([0] if leave else [0, 0])


def test_a_row_of_before_that_is_kept_is_no_row_of_now(tmp_path: Path) -> None:
    """A cell that failed is done again, though the row of its failure is still among the jobs'."""
    each = cell(0)
    made = engine(tmp_path, "submitit-local")
    made.submit(each)
    (found,) = made.finished(60.0)
    append_rows(tmp_path / ROWS, [found[1]])
    file = tmp_path / JOBS / f"{each.id}.json"
    assert file.exists()
    again = engine(tmp_path, "submitit-local")
    assert not file.exists()
    again.close()
    made.close()


def test_a_row_that_cannot_be_read_is_a_row(tmp_path: Path) -> None:
    (tmp_path / JOBS).mkdir()
    for number, text in enumerate(["{", '{"cell": "another"}', "[1]"]):
        (tmp_path / JOBS / f"{cell(number).id}.json").write_text(text)
    rows = study(tmp_path, [cell(number) for number in range(3)], engine(tmp_path, "submitit-local"))
    assert {row["status"] for row in rows} == {"failed"}
    assert all("cannot be read" in row["detail"] for row in rows)


class Moody(Scheduler):
    """Takes every job and says that it could not be reached; at the third question it remembers."""

    name, settles = "Moody", 0.0

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.away = False
        self.state = State("pending")

    def submit(self, name: str, command: list[str], environment: Mapping[str, str], folder: Path, needs: Needs) -> str:
        self.calls.append("submit")
        raise Away("socket timed out")

    def find(self, name: str, folder: Path) -> str | None:
        self.calls.append("find")
        return "17" if self.calls.count("find") > 2 else None

    def states(self, jobs: Collection[str]) -> dict[str, State]:
        if self.away:
            raise Away("connection refused")
        return dict.fromkeys(jobs, self.state)

    def cancel(self, jobs: Collection[str]) -> None:
        self.calls.append("cancel")


QUICK = ClusterSettings(**{**SETTINGS, "poll": 0.01, "patience": 0.5})


def accepted(folder: Path, moody: Moody) -> SlurmEngine:
    """An engine of which one job is known to the scheduler."""
    made = SlurmEngine(folder, QUICK, moody)
    made.submit(cell(0))
    while made.running()[0].where != "job 17 of Moody, pending":
        made.finished(0.05)
    return made


def test_a_job_that_was_taken_without_an_answer_is_not_submitted_twice(tmp_path: Path) -> None:
    moody = Moody()
    made = accepted(tmp_path, moody)
    assert moody.calls == ["submit", "find", "submit", "find", "submit", "find"]
    moody.state = State("node fail on n1", Status.FAILED)
    ((_, row),) = made.finished(5.0)
    assert (row["status"], row["detail"]) == ("failed", "job 17 of Moody ended without a row: node fail on n1")
    made.close()


def test_a_scheduler_that_stays_away_is_an_error_and_loses_nothing(tmp_path: Path) -> None:
    moody = Moody()
    made = accepted(tmp_path, moody)
    moody.away = True
    with pytest.raises(ClusterError, match=r"Moody cannot be reached .*: connection refused. .* run the study again"):
        made.finished(20.0)
    made.close()
    assert "cancel" not in moody.calls
    moody.away = False
    later = SlurmEngine(tmp_path, QUICK, moody)
    later.submit(cell(0))
    assert later.finished(0.2) == []
    assert [each.where for each in later.running()] == ["job 17 of Moody, pending"]
    assert moody.calls.count("submit") == 3
    moody.state = State("cancelled", Status.FAILED)
    later.close()
    assert moody.calls[-1] == "cancel"


def test_settings_are_read_from_a_table() -> None:
    found = ClusterSettings.read(
        {"partition": "gpu", "setup": ["module load x"], "extra": {"qos": "low"}, "time": 250.5}
    )
    assert (found.partition, found.setup, found.extra["qos"], found.minutes([cell(0)])) == (
        "gpu",
        ("module load x",),
        "low",
        5,
    )
    plain = ClusterSettings.read({"kind": "slurm", "jobs": 1, "account": None})
    assert plain == ClusterSettings()
    assert plain.bytes_of([cell(0)]) == 2**26 + 2**30
    assert plain.cores([cell(0)]) == 1
    assert plain.minutes([cell(0, seconds=600.0)]) * 60 > 2 * 660 + 120
    with pytest.raises(UnknownName, match="partitoin"):
        ClusterSettings.read({"partitoin": "gpu"})
    for name, value in [
        ("max_jobs", 0), ("time", 0), ("gpus", -1), ("poll", 0.0), ("patience", float("inf")), ("setup", "one line"),
        ("setup", ["a\nb"]), ("extra", "qos"), ("partition", 3), ("leave", "no"), ("cpus", True),
    ]:  # fmt: skip
        with pytest.raises(InvalidArgument, match=name):
            ClusterSettings.read({name: value})


@pytest.mark.parametrize(
    ("line", "words", "ended"),
    [
        (("RUNNING", "None", "n1"), "running on n1", None),
        (("PENDING", "Resources", ""), "pending (Resources)", None),
        (("OUT_OF_MEMORY", "OutOfMemory", "n1"), "out of memory (OutOfMemory) on n1", Status.MEMORY),
        (("TIMEOUT", "TimeLimit", "n1"), "timeout (TimeLimit) on n1", Status.TIMEOUT),
        (("CANCELLED by 0", "", ""), "cancelled", Status.FAILED),
        (("CANCELLED+", "", "(null)"), "cancelled", Status.FAILED),
        (("NODE_FAIL", "NodeDown", "n1"), "node fail (NodeDown) on n1", Status.FAILED),
        (("REQUEUED", "", ""), "requeued", None),
        (("COMPLETING", "None", "n1"), "completing on n1", None),
    ],
)
def test_states_of_slurm(line: tuple[str, str, str], words: str, ended: Status | None) -> None:
    assert schedulers._state(*line) == State(words, ended)


def test_without_slurm_its_engine_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ClusterError, match="no sbatch here"):
        SlurmEngine(tmp_path)


def test_an_engine_that_there_is_not(tmp_path: Path) -> None:
    with pytest.raises(UnknownName, match="slurm, submitit-local"):
        engine(tmp_path, "pbs")


def test_no_pickle_is_written_or_read(tmp_path: Path) -> None:
    study(tmp_path, [cell(0, "crash")], engine(tmp_path, "submitit-local"))
    assert list(tmp_path.rglob("*_log.err"))
    assert not list(tmp_path.rglob("*.pkl"))
    assert sys.modules.get("submitit") is not None
