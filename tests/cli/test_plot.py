"""``lipbridge plot``: figures from folders, and every fault in words."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from lipbridge.cli.app import run
from tests.support.study_rows import epochs, grid, training


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A study's folder."""
    study = tmp_path / "study"
    network = study / "networks" / "n"
    network.mkdir(parents=True)
    (network / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in epochs("n")))
    rows = grid(penalties=(0.0, 0.1), widths=("16,16", "64,64"), seeds=2)
    (study / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return study


@pytest.mark.parametrize("figure", ["frontier", "tightness", "certified", "training", "scaling", "ablation"])
def test_each_figure_is_written(figure: str, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "f.pdf"
    more = ["--factor", "activation"] if figure == "ablation" else []
    assert run(["plot", figure, str(folder), "--out", str(out), *more]) == 0
    assert out.read_bytes().startswith(b"%PDF")
    assert str(out) in capsys.readouterr().err


def test_training_takes_folders_of_runs(folder: Path, tmp_path: Path) -> None:
    assert run(["plot", "training", str(folder / "networks" / "n"), "--out", str(tmp_path / "f.svg")]) == 0


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["frontier", "STUDY", "--out", "f.doc"], ".pdf, .svg or .png"),
        (["frontier", "nowhere", "--out", "f.pdf"], "file of rows"),
        (["training", "nowhere", "--out", "f.pdf"], "metrics.jsonl"),
        (["ablation", "STUDY", "--out", "f.pdf"], "widths, activation, penalty"),
        (["certified", "ROWS", "--out", "f.pdf"], "nothing to draw"),
        (["frontier", "STUDY", "--norm", "3", "--out", "f.pdf"], "that the rows have: 2"),
        (["ablation", "STUDY", "--norm", "2", "--out", "f.pdf"], "come with frontier or tightness"),
        (["scaling", "STUDY", "--factor", "bias", "--out", "f.pdf"], "come with ablation"),
        (["sculpture", "STUDY", "--out", "f.pdf"], "sculpture"),
    ],
)
def test_faults_are_one_line(
    arguments: list[str], words: str, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "bare.jsonl"
    file.write_text(json.dumps(training("n")) + "\n")
    places = {
        "STUDY": str(folder),
        "ROWS": str(file),
        "f.pdf": str(tmp_path / "f.pdf"),
        "f.doc": str(tmp_path / "f.doc"),
    }
    assert run(["plot", *(places.get(word, word) for word in arguments)]) == 2
    told = capsys.readouterr().err
    assert words in told
    assert told.count("\n") == 1
    assert not (tmp_path / "f.pdf").exists()
