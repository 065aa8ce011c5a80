"""``lipbridge study`` and ``lipbridge sweep``: from a file to rows, tables, figures and a report; on after a stop."""

from __future__ import annotations

import csv
import json
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lipbridge.cli.app import run
from lipbridge.cli.progress import duration, told
from lipbridge.files.rows import load_rows
from tests.support.command_line import Answer, refused

Cli = Callable[..., Answer]

TEXT = """
name = "small"
title = "A small study"
limits = { threads = 1, time = 20 }
networks = [{ name = "abs", data = "iris", seeds = 2, training.epochs = 3, grid.penalty = [0.02, 0.0] }]
problems = [{ verifiers = ["trivial"] }]
certificates = [{ radii = [0.05, 0.1] }]
verifiers = [{ name = "witness", options.seconds = 0.2 }, { name = "trivial" }]
"""
CELLS = 4 * (1 + 2 + 2)


@pytest.fixture
def cli(capfd: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Cli:
    monkeypatch.chdir(tmp_path)

    def call(*arguments: object) -> Answer:
        capfd.readouterr()
        code = run([str(argument) for argument in arguments])
        return Answer(code, *capfd.readouterr())

    return call


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("studies")
    (place / "small.toml").write_text(TEXT)
    assert run(["study", "run", str(place / "small.toml"), "--out", str(place / "out"), "--jobs", "2"]) == 0
    return place / "out"


def test_a_study_ends_with_rows_and_a_report(cli: Cli, folder: Path) -> None:
    assert len(load_rows(folder)) == CELLS
    page = (folder / "report.html").read_text()
    assert "A small study" in page
    assert "abs-penalty=0.02" in page
    answer = cli("study", "run", folder, "--json")
    assert answer.code == 0
    assert len(answer.rows) == CELLS
    assert not any("witness" in row and row["witness"] for row in answer.rows)
    assert f"0 cells run, {CELLS} of {CELLS} have a row" in answer.err


def test_each_cell_is_a_line_off_a_terminal(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "small.toml").write_text(TEXT.replace("seeds = 2", "seeds = 1").replace("[0.02, 0.0]", "[0.02]"))
    answer = cli("study", "run", "small.toml")
    assert answer.code == 0
    lines = [line for line in answer.err.splitlines() if line.startswith("[")]
    assert [line.split("]")[0] for line in lines] == [f"[{number}/5" for number in range(1, 6)]
    assert "tightness" in answer.err
    assert (tmp_path / "small" / "rows.jsonl").exists()  # named after the file
    assert "proved bound" in answer.out


def test_the_cells_can_be_listed_before(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "small.toml").write_text(TEXT)
    answer = cli("study", "run", "small.toml", "--dry-run", "--json")
    assert answer.code == 0
    assert len(answer.rows) == CELLS
    assert set(answer.rows[0]) == {"cell", "kind", "label"}
    assert "small: 20 cells" in cli("study", "run", "small.toml", "--dry-run").out
    assert not (tmp_path / "small").exists()


def test_status_tells_how_far_it_is(cli: Cli, folder: Path, tmp_path: Path) -> None:
    (facts,) = cli("study", "status", folder, "--json").rows
    assert (facts["cells"], facts["done"], facts["running"]) == (CELLS, CELLS, False)
    assert facts["by_kind"] == {"training": {"ok": 4}, "bound": {"ok": 8}, "certificate": {"ok": 8}}
    half = tmp_path / "half"
    half.mkdir()
    for name in ("plan.json", "runs.jsonl"):
        (half / name).write_bytes((folder / name).read_bytes())
    lines = (folder / "rows.jsonl").read_bytes().splitlines(keepends=True)
    (half / "rows.jsonl").write_bytes(b"".join(lines[:8]))
    answer = cli("study", "status", half)
    assert answer.code == 0
    assert "small: " in answer.out
    assert f"of {CELLS} cells done, not running" in answer.out
    assert "left" in answer.out
    assert "waiting" in answer.out
    assert f"lipbridge study resume {half}" in answer.err


def test_resume_goes_on_without_the_file(cli: Cli, folder: Path, tmp_path: Path) -> None:
    half = tmp_path / "half"
    half.mkdir()
    for name in ("plan.json", "runs.jsonl", "study.toml"):
        (half / name).write_bytes((folder / name).read_bytes())
    answer = cli("study", "resume", half, "--json")
    assert answer.code == 0

    def facts(row: dict[str, Any]) -> tuple[Any, ...]:
        value = None if row.get("side") == "lower" else row.get("value")  # a search has so many seconds
        return row["cell"], row["kind"], row["status"], value, row.get("accuracy"), row.get("certified_accuracy")

    assert {facts(row) for row in answer.rows} == {facts(row) for row in load_rows(folder)}


def test_rows_and_figures_are_exported(cli: Cli, folder: Path, tmp_path: Path) -> None:
    answer = cli(
        *("study", "report", folder, "--report", "page.html", "--figures", "figures"),
        *("--csv", "rows.csv", "--parquet", "rows.parquet", "--latex", "tables.tex"),
    )
    assert answer.code == 0, answer.err
    with open("rows.csv", newline="") as file:
        assert len(list(csv.DictReader(file))) == CELLS
    assert (tmp_path / "rows.parquet").read_bytes().startswith(b"PAR1")
    assert r"\toprule" in (tmp_path / "tables.tex").read_text()
    assert "A small study" in (tmp_path / "page.html").read_text()
    names = {path.name for path in (tmp_path / "figures").iterdir()}
    assert {"frontier.pdf", "frontier.png", "tightness.pdf", "certified-l2.pdf"} <= names


def test_a_sweep_is_a_study(cli: Cli, tmp_path: Path) -> None:
    answer = cli(
        *("sweep", "iris", "--penalty", "0.03,0.003", "--seeds", "2", "--epochs", "2", "--warm-start"),
        *("--out", "sweep", "--json"),
    )
    assert answer.code == 0, answer.err
    kinds = [row["kind"] for row in answer.rows]
    assert (kinds.count("training"), kinds.count("bound")) == (4, 8)
    text = (tmp_path / "sweep" / "study.toml").read_text()
    assert tomllib.loads(text)["networks"][0]["warm_start"] == "penalty"
    runs = [json.loads(path.read_text()) for path in (tmp_path / "sweep").glob("networks/*/run.json")]
    starts = {json.dumps(found["start_from"]) for found in runs if found.get("start_from")}
    assert (len(runs), len(starts)) == (4, 2)  # two began afresh, each other from another's weights
    again = cli("study", "run", "sweep", "--json")
    assert again.code == 0
    assert "0 cells run" in again.err
    (first, *_) = (tmp_path / "sweep" / "runs.jsonl").read_text().splitlines()
    assert "--epochs" in json.loads(first)["command"]
    assert "--warm-start" in json.loads(first)["command"]
    assert (tmp_path / "sweep" / "report.html").exists()


def test_the_demo_is_a_study_to_begin_with(cli: Cli, tmp_path: Path) -> None:
    answer = cli("study", "example")
    assert answer.code == 0
    assert tomllib.loads(answer.out)["name"] == "demo"
    listed = cli("study", "run", "demo", "--dry-run", "--json").rows
    assert {row["kind"] for row in listed} == {"training", "bound", "certificate"}
    (tmp_path / "mine.toml").write_text(answer.out)
    mine = cli("study", "run", "mine.toml", "--dry-run", "--json").rows
    assert [row["cell"] for row in mine] == [row["cell"] for row in listed]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["study", "run", "nothing.toml"], ["nothing.toml"]),
        (["study", "status", "nothing"], ["nothing", "plan.json"]),
        (["study", "resume", "nothing"], ["nothing", "plan.json"]),
        (["study", "report", "nothing"], ["nothing", "plan.json"]),
        (["study", "run", "small.toml", "--retry", "tired"], ["--retry", "failed", "tired"]),
        (["study", "run", "small.toml", "--engine", "steam"], ["steam", "local", "slurm"]),
        (["study", "run", "small.toml", "--jobs", "0"], ["--jobs"]),
        (["study", "run", "wrong.toml"], ["wrong.toml", "line 2", "penaly", "did you mean 'penalty'"]),
        (["study", "run", "folder", "--out", "elsewhere"], ["--out", "elsewhere"]),
        (["study", "run", "nothing.toml"], ["nothing.toml", "No such file", "lipbridge study example"]),
        (["study", "run", "folder"], ["folder", "study.toml"]),
        (["study", "run", "small.toml", "--csv", "folder"], ["--csv", "folder"]),
        (["sweep", "iris", "--penalty", "0.1", "--out", "x", "--parquet", "folder"], ["--parquet", "folder"]),
        (["sweep", "iris", "--penalty", "-1", "--out", "x"], ["--penalty", "-1"]),
        (["sweep", "nodata", "--penalty", "0.1", "--out", "x"], ["nodata"]),
        (["sweep", "iris", "--penalty", "0.1", "--norm", "3", "--out", "x"], ["norm", "3"]),
    ],
)
def test_wrong_inputs_are_one_line(cli: Cli, tmp_path: Path, arguments: list[str], words: list[str]) -> None:
    (tmp_path / "small.toml").write_text(TEXT)
    (tmp_path / "wrong.toml").write_text('name = "x"\nnetworks = [{ name = "a", data = "iris", grid.penaly = [1] }]\n')
    (tmp_path / "folder").mkdir()
    refused(cli(*arguments), *words)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["folder", "small.toml", "wrong.toml"]


def test_each_fault_of_a_file_is_a_line(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "wrong.toml").write_text('name = "x"\nlimits.time = "soon"\nlimts = 3\nengine.jobs = 0\n')
    answer = cli("study", "run", "wrong.toml")
    assert (answer.code, answer.out) == (2, "")
    lines = answer.err.splitlines()
    assert len(lines) >= 3
    assert all(line.startswith("error: wrong.toml, line ") for line in lines), lines
    assert not (tmp_path / "wrong").exists()


def test_words_of_a_row() -> None:
    row = {"status": "ok", "kind": "bound", "side": "upper", "value": 2.5, "tightness": 1.25, "seconds": 0.5}
    assert told(row) == "<= 2.5, tightness 1.25, 500 ms"
    assert told({**row, "status": "timeout", "detail": "stopped"}) == "timeout: stopped"
    assert told({**row, "status": "unsound", "detail": "a witness"}) == "UNSOUND: a witness"
    assert [duration(value) for value in (5.0, 300.0, 7200.0)] == ["5 s", "5 min", "2.0 h"]
