"""A real Slurm of one node: the same cells, the same rows, and what clusters do to jobs."""

from __future__ import annotations

import hashlib
import json
import signal
import subprocess
import threading
import time
from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("submitit", reason='needs pip install "lipbridge[cluster]"')

import lipbridge
from lipbridge.errors import ClusterError
from lipbridge.files.rows import ROWS, load_rows
from lipbridge.study.cells import Cell, Kind, Limits, make_cell
from lipbridge.study.engine import schedulers
from lipbridge.study.engine.cluster_settings import ClusterSettings
from lipbridge.study.engine.local import LocalEngine
from lipbridge.study.engine.slurm import JOBS, cluster_engine
from tests.support.cluster_cells import GO, cell, engine, ran, study
from tests.support.killed import started, wait_for
from tests.support.slurm import Slurm, missing

pytestmark = [pytest.mark.slurm, pytest.mark.skipif(bool(missing()), reason=missing() or "there is one")]


@pytest.fixture(scope="module")
def cluster() -> Generator[Slurm]:
    with Slurm() as made:
        yield made


@pytest.fixture(autouse=True)
def _of_the_cluster(cluster: Slurm, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in cluster.environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(schedulers.Slurm, "settles", 1.0)


def jobs(cluster: Slurm) -> int:
    """How many Slurm was ever given."""
    return int(cluster.ask("sbatch", "--parsable", "--output=/dev/null", "--begin=now+1hour", "--wrap=true"))


def bounds(folder: Path) -> list[Cell]:
    """A network, opened and bounded by several verifiers; one cell more asks what none can answer."""
    torch.manual_seed(0)
    file = folder / "model.safetensors"
    lipbridge.save(lipbridge.mlp([4, 8, 3], "abs"), file)
    source = {"path": str(file), "sha256": hashlib.sha256(file.read_bytes()).hexdigest()}
    limits = Limits(30.0, 2**31)
    opened = make_cell(Kind.MODEL, {"source": source}, network="net", label="net", limits=limits)
    found = [opened]
    for norm in (1, 2, "inf"):
        for verifier in ("trivial", "witness"):
            question = {"norm": norm, "output_norm": norm, "quantity": "lipschitz", "region": None}
            words = {
                **{"source": source, "question": question, "verifier": verifier, "options": {}, "seed": 0},
                "points": None,
            }
            label = f"{verifier} l{norm}"
            found.append(make_cell(Kind.BOUND, words, network="net", label=label, limits=limits, after=[opened.id]))
    lost = {"source": {**source, "path": str(folder / "nonesuch"), "sha256": "0"}}
    return [*found, make_cell(Kind.MODEL, lost, network="lost", label="lost", limits=limits)]


#: What differs from run to run.
TIMES = {
    *("seconds", "total_seconds", "cpu_seconds", "memory", "load", "date", "extra", "witness", "detail"),
}


def test_a_study_on_slurm_gives_the_rows_of_one_here(tmp_path: Path) -> None:
    cells = bounds(tmp_path)
    rows: list[list[dict[str, Any]]] = []
    for name in ("here", "there"):
        place = tmp_path / name
        place.mkdir()
        settings = ClusterSettings(poll=0.5, cells_per_job=3)
        rows.append(
            study(place, cells, LocalEngine(place, 2) if name == "here" else cluster_engine("slurm", place, settings))
        )
    here, there = ([{key: row[key] for key in row if key not in TIMES} for row in each] for each in rows)
    assert here == there
    assert [row["status"] for row in there] == ["ok"] * 7 + ["failed"]
    assert [sorted(row) for row in rows[0]] == [sorted(row) for row in rows[1]]
    upper, lower = rows[1][3], rows[1][4]
    assert lower["value"] <= upper["value"]
    assert upper["enforced_by"] in ("cgroup", "polling")


def test_a_killed_study_loses_nothing_and_does_nothing_twice(tmp_path: Path, cluster: Slurm) -> None:
    cells = [cell(number, "wait" if number % 2 else "fine") for number in range(8)]
    cells.append(cell(8, after=[cells[1].id]))
    before = jobs(cluster)
    with started(tmp_path, "slurm", cells, cluster.environment) as process:
        wait_for(lambda: (tmp_path / ROWS).exists() and len(load_rows(tmp_path)) >= 3)
        process.send_signal(signal.SIGKILL)
    with started(tmp_path, "slurm", cells, cluster.environment) as process:
        time.sleep(3.0)
        process.send_signal(signal.SIGKILL)
    (tmp_path / GO).touch()
    rows = study(tmp_path, cells, engine(tmp_path, "slurm"))
    assert {row["status"] for row in rows} == {"ok"}
    assert len((tmp_path / ROWS).read_text().splitlines()) == 9
    assert ran(tmp_path) == list(range(9))
    assert jobs(cluster) == before + 9 + 1


def test_limits_and_accidents_are_rows(tmp_path: Path) -> None:
    cells = [cell(0, "eat"), cell(1, "sleep"), cell(2, "crash"), cell(3, "raise"), cell(4)]
    rows = study(tmp_path, cells, engine(tmp_path, "slurm"))
    assert [row["status"] for row in rows] == ["memory", "timeout", "failed", "failed", "ok"]
    assert "the last words" in rows[2]["detail"]
    assert "failed (NonZeroExitCode)" in rows[2]["detail"]


def test_a_job_that_somebody_cancels_is_a_row_and_is_done_again(tmp_path: Path, cluster: Slurm) -> None:
    made = engine(tmp_path, "slurm")
    each = cell(0, "wait")
    made.submit(each)
    wait_for(lambda: made.finished(0.1) == [] and (tmp_path / "ran.txt").exists())
    (job,) = [each.where.split()[1] for each in made.running()]
    cluster.ask("scancel", job)
    ((_, row),) = made.finished(60.0)
    assert row["status"] == "failed"
    assert row["detail"].startswith(f"job {job} of Slurm ended without a row: cancelled")
    made.close()
    (tmp_path / GO).touch()
    assert study(tmp_path, [each], engine(tmp_path, "slurm"))[0]["status"] == "ok"
    assert ran(tmp_path) == [0, 0]


def test_what_slurm_itself_ends_is_a_row(tmp_path: Path) -> None:
    """A job that takes more memory than it asked for: its cells' own limits do not count the program beside them."""
    (row,) = study(tmp_path, [cell(0, "grow")], engine(tmp_path, "slurm"))
    assert row["status"] in ("memory", "failed")
    assert "of Slurm ended without a row: " in row["detail"]


@pytest.mark.slow
def test_a_job_that_slurm_ends_at_its_time_is_a_row(tmp_path: Path) -> None:
    (row,) = study(tmp_path, [cell(0, "wait")], engine(tmp_path, "slurm", time=60), seconds=300)
    assert row["status"] == "timeout"
    assert "ended without a row: timeout (TimeLimit)" in row["detail"]


def test_slurm_goes_away_and_comes_back(tmp_path: Path, cluster: Slurm) -> None:
    told: list[dict[str, Any]] = []
    cells = [cell(number, "wait") for number in range(2)]
    cells.append(cell(2, after=[cells[0].id]))

    def back() -> None:
        (tmp_path / GO).touch()
        time.sleep(6.0)
        cluster.start_controller()

    made = engine(tmp_path, "slurm", max_jobs=3)
    for each in cells[:2]:
        made.submit(each)
    wait_for(lambda: made.finished(0.1) == [] and (tmp_path / "ran.txt").exists() and len(ran(tmp_path)) == 2)
    cluster.stop_controller()
    helper = threading.Thread(target=back)
    helper.start()
    try:
        rows = study(tmp_path, cells, made, told.append)
    finally:
        helper.join()
    assert [row["status"] for row in rows] == ["ok", "ok", "ok"]
    assert ran(tmp_path) == [0, 1, 2]


def test_what_slurm_refuses_is_an_error_in_words(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    made = engine(tmp_path, "slurm", partition="nonesuch")
    with pytest.raises(ClusterError, match=r"Slurm refused a job: .*invalid partition specified: nonesuch"):
        made.submit(cell(0))
    made.close()
    wrong = engine(tmp_path, "slurm", extra={"no-such-word": 1})
    with pytest.raises(ClusterError, match=r"refused a job: .*no-such-word"):
        wrong.submit(cell(0))
    wrong.close()
    assert json.loads((tmp_path / JOBS / "submitted.json").read_text()) == {}
    assert capfd.readouterr() == ("", "")


def test_words_of_the_study_file_reach_slurm(tmp_path: Path, cluster: Slurm) -> None:
    setup = [f"echo $SLURM_JOB_ID > {tmp_path}/setup.txt", f"export FROM_SETUP={tmp_path}"]
    extra = {"comment": "of a study"}
    made = engine(tmp_path, "slurm", partition="short", setup=setup, extra=extra, cpus=2, memory=300 * 2**20)
    made.submit(cell(0, "wait"))
    wait_for(lambda: made.finished(0.1) == [] and (tmp_path / "setup.txt").exists())
    job = (tmp_path / "setup.txt").read_text().strip()
    told = cluster.ask("scontrol", "show", "job", job)
    for words in ("Partition=short", "Comment=of a study", "NumCPUs=2", "MinMemoryNode=300M", "JobName=lipbridge-"):
        assert words in told
    (each,) = made.running()
    assert each.where.startswith(f"job {job} of Slurm, ")
    made.close()


def test_nothing_of_a_killed_job_runs_on(tmp_path: Path, cluster: Slurm) -> None:
    """scancel ends the node's program, and with it what runs for the cell, whatever it started."""
    made = engine(tmp_path, "slurm")
    pause = 60 + time.time() % 1  # nobody else sleeps so long
    running = ["pgrep", "-f", f"^sleep {pause}$"]
    made.submit(cell(0, "sleep", seconds=50.0, pause=pause))
    wait_for(lambda: made.finished(0.1) == [] and subprocess.run(running, capture_output=True).stdout)
    made.close()
    wait_for(lambda: not subprocess.run(running, capture_output=True).stdout)
