"""A study keeps each row the moment it is there, runs only what is missing, and judges a network when it is done."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import pytest

from lipbridge.errors import FileNotWritten, FolderInUse, InvalidArgument, ModelFileError, UnknownName
from lipbridge.files.frames import read_rows
from lipbridge.files.rows import append_rows, load_rows, read_lines
from lipbridge.study.cells import Cell, Kind, Limits, Row, make_cell
from lipbridge.study.config import parse_study
from lipbridge.study.engine.blank import blank
from lipbridge.study.engine.local import LocalEngine
from lipbridge.study.engine.protocol import InFlight
from lipbridge.study.folder import read_recorded, read_running
from lipbridge.study.left import left
from lipbridge.study.plan import Plan, make_plan
from lipbridge.study.running import run_cells
from lipbridge.study.study import StudyRun, run_cells_of, run_study
from lipbridge.vocabulary import Status

TEXT = """
name = "small"
limits = { threads = 1, time = 20 }
networks = [{ name = "abs", data = "iris", training.epochs = 3, grid.penalty = [0.02, 0.0] }]
problems = [{ verifiers = ["trivial"] }, { verifiers = ["jacobian"], region = { radius = 0.1, points = 2 } }]
certificates = [{ radii = [0.05] }]
verifiers = [{ name = "witness", options.seconds = 0.2 }, { name = "trivial" }, { name = "jacobian" }]
"""


NET = """
from torch import nn
def net(input_shape, classes):
    return nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 3))
"""
FACTORY = """
limits = { threads = 1, time = 20 }
networks = [{ name = "own", data = "iris", arch = "net.py:net", training = { epochs = 2, shift = 0 } }]
problems = [{ verifiers = ["trivial"] }]
verifiers = [{ name = "witness", options.seconds = 0.2 }, { name = "trivial" }]
"""


class Fake:
    """An engine that answers at once, as it is told."""

    def __init__(self, statuses: dict[str, Status] | None = None, room: int = 2) -> None:
        self.statuses, self._room = statuses or {}, room
        self.submitted: list[Cell] = []
        self.open: list[Cell] = []
        self.closed = False

    def room(self) -> int:
        return self._room - len(self.open)

    def submit(self, cell: Cell) -> None:
        assert self.room() > 0
        self.submitted.append(cell)
        self.open.append(cell)

    def finished(self, seconds: float) -> list[tuple[Cell, Row]]:
        cell = self.open.pop()
        return [(cell, {**blank(cell, self.statuses.get(cell.label, Status.OK)), "total_seconds": 2.0})]

    def running(self) -> list[InFlight]:
        return [InFlight(cell, 0.0, "nowhere") for cell in self.open]

    def close(self) -> None:
        self.closed = True


class Seen:
    def __init__(self) -> None:
        self.rows: list[Row] = []

    def started(self, cell: Cell) -> None:
        pass

    def ended(self, cell: Cell, row: Row) -> None:
        self.rows.append(row)

    def looked(self, running: Sequence[InFlight]) -> None:
        pass


def cell(label: str, *after: Cell) -> Cell:
    words = {"source": {"path": label, "sha256": label}}
    ids = [other.id for other in after]
    return make_cell(Kind.MODEL, words, network=label, label=label, limits=Limits(1.0, 2**30), after=ids)


@pytest.fixture(scope="module")
def plan() -> Plan:
    return make_plan(parse_study(TEXT))


@pytest.fixture(scope="module")
def done(plan: Plan, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, StudyRun]:
    folder = tmp_path_factory.mktemp("study") / "small"
    return folder, run_cells_of(plan, TEXT, folder, LocalEngine)


def test_a_cell_waits_for_what_it_needs() -> None:
    first, second, third = (a := cell("a")), (b := cell("b", a)), cell("c", b)
    engine, seen = Fake(), Seen()
    assert run_cells([third, second, first], engine, seen) == []
    assert [each.label for each in engine.submitted] == ["a", "b", "c"]
    assert [row["network"] for row in seen.rows] == ["a", "b", "c"]


def test_what_needs_a_cell_that_failed_is_not_run() -> None:
    a, other = cell("a"), cell("other")
    b = cell("b", a)
    engine = Fake({"a": Status.FAILED})
    assert run_cells([a, b, other], engine, Seen()) == [b]
    assert {each.label for each in engine.submitted} == {"a", "other"}
    assert run_cells([b], Fake(), Seen(), succeeded=[a.id]) == []


def test_equal_work_is_done_once() -> None:
    a, engine = cell("a"), Fake()
    run_cells([a, cell("a"), cell("b", a), cell("b", a)], engine, Seen())
    assert [each.label for each in engine.submitted] == ["a", "b"]


def test_an_id_is_that_of_what_is_done() -> None:
    """Names, places and order are none of it; settings, threads, and limits of bounds are."""
    limits, words = Limits(1.0, 2**30), {"x": {"path": "here", "sha256": "1"}, "seed": 0}
    own = make_cell(Kind.BOUND, words, network="n", label="l", limits=limits)
    moved = {"seed": 0, "x": {"sha256": "1", "path": "there"}}
    assert make_cell(Kind.BOUND, moved, network="m", label="k", limits=limits).id == own.id
    assert len(own.id) == 16
    others = [
        make_cell(Kind.BOUND, {**words, "seed": 1}, network="n", label="l", limits=limits),
        make_cell(Kind.BOUND, {**words, "x": {"path": "here", "sha256": "2"}}, network="n", label="l", limits=limits),
        make_cell(Kind.BOUND, words, network="n", label="l", limits=limits, threads=2),
        make_cell(Kind.BOUND, words, network="n", label="l", limits=Limits(2.0, 2**30)),
        make_cell(Kind.BOUND, words, network="n", label="l", limits=limits, after=["a"]),
        make_cell(Kind.CERTIFICATE, words, network="n", label="l", limits=limits),
        make_cell(Kind.BOUND, {**words, "y": {"path": "here"}}, network="n", label="l", limits=limits),
    ]
    assert len({own.id, *(other.id for other in others)}) == 8
    trained = make_cell(Kind.TRAINING, words, network="n", label="l", limits=limits)
    assert make_cell(Kind.TRAINING, words, network="n", label="l", limits=Limits(9.0, 1)).id == trained.id
    assert Cell.from_json(json.loads(json.dumps(own.to_json()))).to_json() == own.to_json()


def test_a_study_has_a_row_for_each_cell(plan: Plan, done: tuple[Path, StudyRun]) -> None:
    folder, run = done
    assert run.ran == len(plan.cells) == len(run.rows)
    assert list(run.waiting) == []
    rows = {row["cell"]: row for row in load_rows(folder)}
    assert set(rows) >= {each.id for each in plan.cells}
    for each in plan.cells:
        row = rows[each.id]
        assert (row["status"], row["kind"], row["study"]) == ("ok", each.kind.value, "small"), row
        assert row.keys() >= blank(each, Status.OK).keys()
        assert row["seconds"] is not None
        assert row["memory"] > 2**26
        if each.kind is Kind.BOUND:
            assert row["judged"]
            assert row["side"] == "lower" or row["tightness"] >= 1 - 1e-9
    assert len(load_rows(folder)) == len(plan.cells) + 2  # the trivial bound in balls, for each of the two networks
    restated = [row for row in rows.values() if row.get("restates")]
    assert {(row["region"], row["quantity"]) for row in restated} == {("2 l2 balls, radius 0.1", "lipschitz")}
    assert all(rows[row["restates"]]["value"] == row["value"] for row in restated)


def test_it_tells_what_it_was(plan: Plan, done: tuple[Path, StudyRun]) -> None:
    folder, _ = done
    recorded = read_recorded(folder)
    assert recorded.name == "small"
    assert [each.id for each in recorded.cells] == [each.id for each in plan.cells]
    assert (folder / "study.toml").read_text() == TEXT
    assert recorded.runs[0]["machine"]["versions"]["lipbridge"]
    assert read_running(folder) == []
    assert Plan.from_json(recorded.words).to_json() == plan.to_json()


def test_nothing_runs_twice_and_a_change_runs_what_it_changed(done: tuple[Path, StudyRun], plan: Plan) -> None:
    folder, _ = done
    before = (folder / "rows.jsonl").read_bytes()
    assert run_cells_of(plan, TEXT, folder, LocalEngine).ran == 0
    assert (folder / "rows.jsonl").read_bytes() == before
    changed = make_plan(parse_study(TEXT.replace("radii = [0.05]", "radii = [0.05, 0.1]")))
    assert run_cells_of(changed, TEXT, folder, LocalEngine).ran == 2
    assert (folder / "rows.jsonl").read_bytes().startswith(before)
    renamed = make_plan(parse_study(TEXT.replace('"abs"', '"other"').replace("0.05]", "0.05, 0.1, 0.2]")))
    assert (
        run_cells_of(renamed, TEXT, folder, LocalEngine).ran == 2
    )  # of the networks that are there under another name
    names = {row["network"] for row in read_recorded(folder).current}
    assert names == {each.network for each in renamed.cells} == set(read_rows(folder, frame="pandas")["network"])
    assert {row["settings"]["family"] for row in read_recorded(folder).current} == {"other"}
    assert all(row["status"] == "ok" for row in load_rows(folder))
    one = make_plan(parse_study(TEXT.replace("[0.02, 0.0]", "[0.02]")))
    recorded = read_recorded(folder)
    assert run_cells_of(one, TEXT, folder, LocalEngine).ran == 0
    assert len(read_recorded(folder).current) < len(recorded.current)  # the rows of the other network are kept
    assert len(load_rows(folder)) == len(recorded.rows)
    assert len(read_rows(folder, frame="pandas")) == len(read_recorded(folder).current)


def test_what_was_restated_for_a_question_is_left_out_with_it(tmp_path: Path) -> None:
    text = TEXT.replace("[0.02, 0.0]", "[0.02]")
    run_cells_of(make_plan(parse_study(text)), text, tmp_path, LocalEngine)
    assert [row["region"] for row in read_recorded(tmp_path).current if row.get("restates")] != []
    fewer = make_plan(parse_study(text.replace("radius = 0.1", "radius = 0.2")))
    run_cells_of(fewer, text, tmp_path, LocalEngine)
    restated = [row["region"] for row in read_recorded(tmp_path).current if row.get("restates")]
    assert restated == ["2 l2 balls, radius 0.2"]


def test_what_could_not_be_judged_is_judged_by_the_next_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = TEXT.replace("[0.02, 0.0]", "[0.02]")
    plan = make_plan(parse_study(text))

    def unreadable(*_: object) -> list[Row]:
        raise ModelFileError("not here")

    with monkeypatch.context() as patch:
        patch.setattr("lipbridge.study.study.judged_cells", unreadable)
        run_cells_of(plan, text, tmp_path, LocalEngine)
    bounds = [row for row in read_recorded(tmp_path).current if row["kind"] == "bound"]
    assert all(row["extra"]["not judged"] == "not here" and not row["judged"] for row in bounds)
    assert run_cells_of(plan, text, tmp_path, LocalEngine).ran == 0
    bounds = [row for row in read_recorded(tmp_path).current if row["kind"] == "bound"]
    assert all("not judged" not in row["extra"] and row["judged"] for row in bounds)


def test_what_was_changed_after_it_was_planned_is_not_taken_for_it(tmp_path: Path) -> None:
    """Otherwise a row would stand under the id of another network."""
    file, text = tmp_path / "net.py", FACTORY
    file.write_text(NET)
    plan = make_plan(parse_study(text, tmp_path / "study.toml"))
    file.write_text(NET.replace("4, 5", "4, 6").replace("5, 3", "6, 3"))
    run = run_cells_of(plan, text, tmp_path / "out", LocalEngine)
    (row,) = run.rows.values()
    assert row["status"] == "failed"
    assert "net.py:net was changed since the study was planned" in row["detail"]
    again = run_cells_of(make_plan(parse_study(text, tmp_path / "study.toml")), text, tmp_path / "out", LocalEngine)
    assert {row["status"] for row in again.rows.values()} == {"ok"}


def test_rows_that_are_none_count_as_none(plan: Plan, tmp_path: Path) -> None:
    run_cells_of(plan, TEXT, tmp_path, lambda _: Fake())
    ids = [each.id for each in plan.cells]
    wrong: list[Row] = [{"cell": ids[0], "network": "n", "status": []}, {"cell": ids[1], "network": "n", "value": "3"}]
    append_rows(tmp_path / "rows.jsonl", [*wrong, {"cell": ["a"], "network": "n"}, {"cell": {}, "network": {}}])
    again = Fake()
    run_cells_of(plan, TEXT, tmp_path, lambda _: again)
    assert {each.id for each in again.submitted} == set(ids[:2])


def test_statuses_can_be_tried_again(plan: Plan, tmp_path: Path) -> None:
    failing = {plan.cells[0].label: Status.FAILED, plan.cells[-1].label: Status.MISSING}
    first = run_cells_of(plan, TEXT, tmp_path, lambda _: Fake(failing))
    assert [each.id for each in first.waiting] == [each.id for each in plan.cells if plan.cells[0].id in each.after]
    again = Fake()
    run_cells_of(plan, TEXT, tmp_path, lambda _: again)
    assert [each.id for each in again.submitted] == [plan.cells[-1].id]
    all_of_it = Fake()
    last = run_cells_of(plan, TEXT, tmp_path, lambda _: all_of_it, retry=[Status.FAILED])
    assert len(all_of_it.submitted) == 1 + len(first.waiting)
    assert len(last.rows) == len(plan.cells)
    assert all_of_it.closed


def test_an_engine_is_closed_whatever_happens(plan: Plan, tmp_path: Path) -> None:
    class Broken(Fake):
        def finished(self, seconds: float) -> list[tuple[Cell, Row]]:
            raise KeyboardInterrupt

    engine = Broken()
    with pytest.raises(KeyboardInterrupt):
        run_cells_of(plan, TEXT, tmp_path, lambda _: engine)
    assert engine.closed
    assert run_cells_of(plan, TEXT, tmp_path, lambda _: Fake()).ran == len(plan.cells)


def test_two_runs_do_not_share_a_folder(plan: Plan, tmp_path: Path) -> None:
    def second(folder: Path) -> Fake:
        with pytest.raises(FolderInUse):
            run_cells_of(plan, TEXT, folder, lambda _: Fake())
        return Fake()

    assert run_cells_of(plan, TEXT, tmp_path, second).ran == len(plan.cells)


def test_a_folder_that_is_none_is_told(tmp_path: Path) -> None:
    with pytest.raises(InvalidArgument, match=r"holds no plan\.json"):
        read_recorded(tmp_path)
    (tmp_path / "plan.json").write_text('{"cells": [{}]}')
    with pytest.raises(InvalidArgument, match="run the study again"):
        read_recorded(tmp_path)


@pytest.mark.parametrize(
    "change",
    [
        {"id": "/../../../../tmp/out"},
        {"network": 3},
        {"threads": "many"},
        {"limits": {"seconds": None, "memory": None}},
        {"words": []},
        {"kind": "certificate"},
        {"after": [1]},
    ],
)
def test_a_plan_that_is_none_is_told(change: dict[str, object], plan: Plan, tmp_path: Path) -> None:
    """A folder may come from anywhere; an id becomes the name of files."""
    words = plan.to_json()
    words["cells"][0] |= change
    (tmp_path / "plan.json").write_text(json.dumps(words))
    with pytest.raises(InvalidArgument, match="run the study again"):
        read_recorded(tmp_path)


def test_a_torn_line_is_skipped_and_written_after(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    row = {"cell": "a", "network": "n", "value": float("nan")}
    append_rows(file, [row])
    with open(file, "ab") as stream:
        stream.write(b'{"cell": "b", "netw')
    append_rows(file, [{"cell": "c", "network": "n"}, {"cell": "a", "network": "m"}])
    assert read_lines(file) == [
        {"cell": "a", "network": "n", "value": None},
        {"cell": "c", "network": "n"},
        {"cell": "a", "network": "m"},
    ]
    assert [found["network"] for found in load_rows(file)] == ["m", "n"]
    append_rows(file, [])
    assert len(read_lines(file)) == 3
    with pytest.raises(FileNotWritten):
        append_rows(tmp_path / "rows.jsonl" / "below", [row])


def test_a_claim_below_a_witness_is_unsound_before_it_is_judged(plan: Plan, tmp_path: Path) -> None:
    """And what it claimed is what it is judged by at the end, when the witness is evaluated anew."""
    bounds = [each for each in plan.cells if each.kind is Kind.BOUND and each.words["question"]["region"] is None]

    class Claims(Fake):
        def finished(self, seconds: float) -> list[tuple[Cell, Row]]:
            cell = self.open.pop()
            row = {**blank(cell, Status.OK), "total_seconds": 1.0}
            if cell in bounds:
                lower = row["verifier"] == "witness"
                row |= {"value": 2.0 if lower else 1.0, "proved": True}
                row["witness"] = {"points": {"shape": [1, 4], "float64": ""}} if lower else None
            return [(cell, row)]

    seen: list[Row] = []

    class See:
        def begun(self, *_: object) -> None: ...
        def looked(self, *_: object) -> None: ...
        def ended(self, cell: Cell, row: Row) -> None:
            seen.append(row)

    run_cells_of(plan, TEXT, tmp_path, lambda _: Claims(room=1), view=See())
    found = [row for row in seen if row["kind"] == "bound" and row["value"] == 1.0]
    assert found
    assert all((row["status"], row["proved"], row["tightness"]) == ("unsound", False, 0.5) for row in found)
    assert all(row["claimed"] == {"status": "ok", "proved": True, "detail": ""} for row in found)


def test_a_file_is_run_from_python(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "few.toml").write_text(TEXT.replace("[0.02, 0.0]", "[0.02]"))
    rows = run_study("few.toml", jobs=2)
    assert [row["status"] for row in rows] == ["ok"] * len(rows)
    assert rows == run_study(tmp_path / "few.toml", tmp_path / "few", retry=["failed"])
    with pytest.raises(UnknownName, match="steam"):
        run_study("few.toml", engine="steam")


def test_what_is_left_is_guessed_by_what_was_done(plan: Plan) -> None:
    rows = {each.id: {"total_seconds": 3.0} for each in plan.cells if each.seed == 0 and "0.02" in each.network}
    waiting = [each for each in plan.cells if each.id not in rows]
    assert 0 < len(waiting) < len(plan.cells)
    guess = left(waiting, plan.cells, rows, 2)
    assert (guess.seconds, guess.unknown) == (1.5 * len(waiting), 0)
    assert left(plan.cells, plan.cells, {}, 1).unknown == len(plan.cells)
