"""Frames of rows: the same columns and kinds in pandas and polars, from one study or several."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

import lipbridge
from lipbridge.errors import InvalidArgument, MissingDependency
from lipbridge.files.frames import COLUMNS, load_all
from tests.support.study_rows import bound, grid, hostile, strange, training

FRAMES = ("pandas", "polars")


def study(folder: Path, rows: list[dict[str, Any]]) -> Path:
    folder.mkdir(parents=True)
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


@pytest.mark.parametrize("frame", FRAMES)
def test_a_row_each_and_the_known_columns_first(frame: str, tmp_path: Path) -> None:
    pytest.importorskip(frame)
    rows = grid(seeds=1) + strange()
    found = lipbridge.read_rows(study(tmp_path / "a", rows), frame=frame)
    assert len(found) == len(rows)
    assert list(found.columns)[: len(COLUMNS)] == list(COLUMNS)
    assert "witness" not in found.columns
    assert {"settings.penalty", "settings.activation"} <= set(found.columns)
    kinds = {name: str(found[name].dtype).lower() for name in found.columns}
    assert kinds["value"] == kinds["settings.penalty"] == "float64"
    assert kinds["seed"] == kinds["parameters"] == "int64"
    assert kinds["proved"] == kinds["settings.bias"] == "boolean"
    assert kinds["verifier"].startswith("str")


def test_both_frames_hold_the_same(tmp_path: Path) -> None:
    polars = pytest.importorskip("polars")
    folder = study(tmp_path / "a", grid(seeds=1) + hostile())
    one = lipbridge.read_rows(folder, frame="pandas")
    two: polars.DataFrame = lipbridge.read_rows(folder, frame="polars")
    assert list(one.columns) == list(two.columns)
    ours = one.astype(object).where(one.notna(), None).to_dict("records")
    assert ours == two.to_dicts()


def test_several_studies_are_told_apart(tmp_path: Path) -> None:
    bare = [{key: value for key, value in bound("n").items() if key != "study"}]
    one, two = study(tmp_path / "one", bare), study(tmp_path / "two", [bound("n", study="toy")])
    three = study(tmp_path / "three", [bound("n", study="toy")])
    found = lipbridge.read_rows(one, two / "rows.jsonl", three)
    assert list(found["study"]) == ["one", "toy", f"toy ({three})"]


def test_rows_that_compare_printed_are_read(tmp_path: Path) -> None:
    file = tmp_path / "rows.json"
    file.write_text(json.dumps([bound("n"), bound("m")]))
    assert [row["network"] for row in load_all([file])] == ["n", "m"]


def test_settings_can_stay_together(tmp_path: Path) -> None:
    found = lipbridge.read_rows(study(tmp_path / "a", [training("n", settings={"penalty": 0.1})]), flatten=False)
    assert json.loads(found["settings"][0]) == {"penalty": 0.1}


def test_mixed_values_become_text(tmp_path: Path) -> None:
    rows = [training("n", settings={"x": value}) for value in (1, "one", [1, 2], None, True)]
    for place, row in enumerate(rows):
        row["cell"] = str(place)
    found = lipbridge.read_rows(study(tmp_path / "a", rows), frame="pandas")
    assert list(found["settings.x"].dropna()) == ["1", "one", "[1, 2]", "true"]


@pytest.mark.parametrize("content", [None, "", "not a row\n"])
def test_a_place_without_rows_is_told(content: str | None, tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    if content is not None:
        file.write_text(content)
    with pytest.raises(InvalidArgument, match="file of rows"):
        lipbridge.read_rows(tmp_path)
    with pytest.raises(InvalidArgument, match="paths"):
        lipbridge.read_rows()


def test_what_is_not_installed_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = study(tmp_path / "a", [bound("n")])
    monkeypatch.setitem(sys.modules, "pandas", None)
    monkeypatch.setitem(sys.modules, "polars", None)
    for frame in (None, "pandas", "polars"):
        with pytest.raises(MissingDependency, match="pip install"):
            lipbridge.read_rows(folder, frame=frame)
    with pytest.raises(InvalidArgument, match="pandas or polars"):
        lipbridge.read_rows(folder, frame="excel")
