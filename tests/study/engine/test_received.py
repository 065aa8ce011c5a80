"""Whatever a process writes as its row, the study takes one that it can judge, count and show."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from typing import Any

import pytest
import torch

from lipbridge.problem.bound import Witness
from lipbridge.study.cells import Cell, Kind, Limits, make_cell
from lipbridge.study.engine import wire
from lipbridge.study.engine.blank import blank
from lipbridge.study.engine.local import LocalEngine
from lipbridge.study.engine.received import read_row
from lipbridge.vocabulary import Status

QUESTION = {"norm": 2, "output_norm": 2, "quantity": "lipschitz", "region": None}


def bound(**more: Any) -> Cell:
    source = {"path": "networks/n", "sha256": "1"}
    words = {"source": source, "question": QUESTION, "verifier": "theirs", "options": {}, "seed": 0, "points": None}
    return make_cell(Kind.BOUND, {**words, **more}, network="n", label="theirs on n", limits=Limits(5.0, 2**30))


CELL = bound()
WRONG: list[dict[str, Any]] = [
    {"cell": "0123456789abcdef"},
    {"status": "splendid"},
    {"status": None},
    {"value": "3.0"},
    {"value": [3.0]},
    {"value": True},
    {"value": math.nan},
    {"value": 10**400},
    {"seconds": "long"},
    {"side": "below"},
    {"proved": 1},
    {"extra": []},
    {"detail": None},
    {"witness": {}},
    {"witness": {"points": {"shape": [2], "float64": "?"}}},
    {"witness": {"points": {"shape": [-7], "float64": ""}}},
    {"witness": [1]},
]


@pytest.mark.parametrize(
    "garbage",
    [
        b"",
        b"{",
        b"[1]",
        b"\xff\xfe",
        b"[" * 10_000,
        b'{"cell": "another"}',
        *(json.dumps({**blank(CELL, Status.OK), **wrong}).encode() for wrong in WRONG),
        json.dumps(blank(CELL, Status.OK)).replace('"value": null', '"value": 1e999').encode(),
    ],
)
def test_garbage_is_refused(garbage: bytes, tmp_path: Path) -> None:
    (tmp_path / "row.json").write_bytes(garbage)
    with pytest.raises((ValueError, RecursionError)):
        read_row(CELL, tmp_path / "row.json")


def test_a_row_cannot_say_that_it_is_another_or_judged(tmp_path: Path) -> None:
    claims = {"network": "m", "verifier": "trivial", "verifier_name": "trivial", "judged": True, "tightness": 1.0}
    more = {"region": "here", "restates": CELL.id, "study": "s", "claimed": {"status": "ok"}, "value": 2.0}
    (tmp_path / "row.json").write_text(json.dumps({**blank(CELL, Status.OK), **claims, **more}))
    row = read_row(CELL, tmp_path / "row.json")
    own = blank(CELL, Status.OK)
    assert row["value"] == 2.0
    assert {name: row[name] for name in claims} == {name: own[name] for name in claims}
    assert row.keys() == own.keys()
    (tmp_path / "row.json").write_text(json.dumps({"cell": CELL.id, "status": "ok"}))
    assert read_row(CELL, tmp_path / "row.json").keys() == own.keys()


def test_a_row_is_read_as_it_was_written(tmp_path: Path) -> None:
    witness = wire.encode_witness(Witness(torch.ones(1, 3), torch.ones(1, 3)))
    row = {**blank(CELL, Status.OK), "value": 1.5, "proved": True, "witness": witness, "extra": {"a": 1}}
    wire.write_facts(tmp_path / "row.json", row)
    assert read_row(CELL, tmp_path / "row.json") == row


def test_a_pipe_and_a_link_are_no_row(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "row.json")
    with pytest.raises((OSError, ValueError)):
        read_row(CELL, tmp_path / "row.json")
    (tmp_path / "other").write_text(json.dumps(blank(CELL, Status.OK)))
    (tmp_path / "link").symlink_to(tmp_path / "other")
    with pytest.raises(OSError, match="link"):
        read_row(CELL, tmp_path / "link")


def test_a_cell_that_is_none_is_told_at_once(tmp_path: Path) -> None:
    broken = make_cell(Kind.CERTIFICATE, {}, network="n", label="broken", limits=Limits(5.0, 2**30))
    engine = LocalEngine(tmp_path)
    with pytest.raises(KeyError):
        engine.submit(broken)
    engine.close()
