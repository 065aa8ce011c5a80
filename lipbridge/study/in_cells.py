"""A comparison of networks in memory as cells: their files, the run, and the rows judged."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from lipbridge.disk.temporary import temporary_folder
from lipbridge.errors import InvalidArgument
from lipbridge.files.container import save_tensors
from lipbridge.files.graphs import save_graph
from lipbridge.files.rows import append_rows, load_rows
from lipbridge.problem.question import Question
from lipbridge.study.cells import Cell, Kind, Limits, make_cell
from lipbridge.study.cells import Row as JsonRow
from lipbridge.study.engine.local import LocalEngine
from lipbridge.study.engine.protocol import InFlight
from lipbridge.study.engine.received import named
from lipbridge.study.engine.wire import number_words
from lipbridge.study.judge import judged_cells, row_of
from lipbridge.study.points import Points
from lipbridge.study.requests import Request
from lipbridge.study.rows import Row
from lipbridge.study.running import run_cells
from lipbridge.study.words import Words, question_words
from lipbridge.verifiers import Refusal, Task
from lipbridge.vocabulary import Status

#: In place of limits that are infinite, which JSON cannot say: three hundred years, and more than any machine has.
ENDLESS = Limits(1e10, 2**60)
#: Told before each cell: how many are done, how many there are, the network and the verifier.
Progress = Callable[[int, int, str, str], None]
#: Told of each row as it comes, before it is judged.
Ended = Callable[[Row], None]
#: What is asked, and its task where it is asked in this process.
Planned = tuple[Request, Task | Refusal | None]


def compare_in_cells(
    plans: Sequence[Sequence[Planned]],
    points: Mapping[str, Points | None],
    *,
    jobs: int = 1,
    progress: Progress | None = None,
    keep: Path | None = None,
    rows: Path | None = None,
    resume: bool = False,
    ended: Ended | None = None,
) -> list[Row]:
    """The plans of networks as cells of this machine; see :func:`lipbridge.study.comparison.compare`."""
    before = _known(rows, resume)
    found: list[Row] = []
    with temporary_folder() as folder:
        of_networks = [_cells(planned, points, folder) for planned in plans]
        all_cells = [cell for cells in of_networks for cell in cells]
        known = _named(all_cells, before)
        watcher = _Watcher(all_cells, known, rows, progress, ended)
        engine = LocalEngine(folder, jobs)
        try:
            run_cells([cell for cell in watcher.cells if cell.id not in known], engine, watcher)
        finally:
            engine.close()
        for cells in of_networks:
            pairs = [(cell, named(cell, watcher.rows[cell.id])) for cell in cells]
            judged = judged_cells(folder, pairs, keep)
            if rows is not None:
                append_rows(rows, [row for row in judged if row != watcher.rows.get(row["cell"])])
            found += [row_of(row) for row in judged]
    return found


class _Watcher:
    def __init__(
        self,
        cells: Sequence[Cell],
        known: Mapping[str, JsonRow],
        file: Path | None,
        progress: Progress | None,
        told: Ended | None,
    ) -> None:
        self.cells = cells
        self.rows = dict(known)
        self._file = file
        self._progress = progress
        self._told = told
        self._total = len({cell.id for cell in cells})
        self._done = len({cell.id for cell in cells} & known.keys())

    def started(self, cell: Cell) -> None:
        if self._progress is not None:
            self._progress(self._done, self._total, cell.network, cell.words["verifier"])

    def ended(self, cell: Cell, row: JsonRow) -> None:
        self._done += 1
        self.rows[cell.id] = row
        if self._file is not None:
            append_rows(self._file, [row])
        if self._told is not None:
            self._told(row_of(row))

    def looked(self, running: Sequence[InFlight]) -> None:
        pass


def _require_rows(file: Path) -> None:
    """Rows are appended to a file of rows or a new one: never to another file of a user's."""
    try:
        with file.open("rb") as stream:
            start = stream.read(4096).lstrip()
    except OSError:
        return  # what is wrong with it, appending tells
    if start and not start.startswith(b"{"):
        raise InvalidArgument("rows", "be a file of rows (JSON lines), or one that is not there yet", str(file))


def _known(rows: Path | None, resume: bool) -> dict[str, JsonRow]:
    """Rows of earlier runs that are not to be run again."""
    if rows is None:
        if resume:
            raise InvalidArgument("resume", "come with a file of rows", None)
        return {}
    _require_rows(rows)
    append_rows(rows, [])  # what cannot be written is told before any work
    if not resume:
        return {}
    return {
        row["cell"]: row
        for row in load_rows(rows)
        if isinstance(row.get("cell"), str) and row.get("status") != Status.MISSING
    }


def _named(cells: Sequence[Cell], rows: Mapping[str, JsonRow]) -> dict[str, JsonRow]:
    """The rows, those of the cells under the names that these have; what is no row of its cell is left out."""
    found = dict(rows)
    for cell in cells:
        if cell.id in rows:
            try:
                found[cell.id] = named(cell, rows[cell.id])
            except ValueError:
                del found[cell.id]
    return found


def _cells(planned: Sequence[Planned], points: Mapping[str, Points | None], folder: Path) -> list[Cell]:
    """The cells of one network; its Graph and its points become files, whose contents are part of their ids."""
    first = planned[0][0]
    graph, own = first.problem.graph, points.get(first.network)
    source = _file(folder, save_graph(graph, folder / f"network{_number(folder)}.safetensors"))
    data = None
    if own is not None:
        tensors = {"inputs": own.inputs.detach().cpu()}
        if own.labels is not None:
            tensors["labels"] = own.labels.detach().cpu()
        data = _save(folder, tensors)
    return [_cell(request, source, data, folder) for request, _ in planned]


def _cell(request: Request, source: Mapping[str, Any], data: Mapping[str, Any] | None, folder: Path) -> Cell:
    budget, asked = request.budget, request.certification
    words = {
        "source": source,
        "question": _question(request.problem.question),
        "verifier": request.verifier,
        "options": {
            name: _save(folder, {"value": value}) if isinstance(value, Tensor) else number_words(value)
            for name, value in budget.options.items()
        },
        "seed": budget.seed,
        "points": data,
        "certify": None if asked is None else {"radius": asked.radius, "count": len(asked.inputs)},
    }
    limits = Limits(min(budget.seconds, ENDLESS.seconds), int(min(budget.memory, ENDLESS.memory)))
    label = f"{request.verifier} on {request.network}"
    return make_cell(Kind.BOUND, words, network=request.network, label=label, limits=limits, threads=request.threads)


def _question(question: Question) -> Words:
    """A question in a cell's words; its balls lie around the first of the cell's points."""
    ball = question.region
    region = None if ball is None else {"radius": ball.radius, "norm": ball.norm, "points": len(ball.centers)}
    return question_words(question.input_norm, question.output_norm, question.quantity, region)


def _save(folder: Path, tensors: Mapping[str, Tensor]) -> dict[str, str]:
    tensors = {name: value.contiguous() for name, value in tensors.items()}
    return _file(folder, save_tensors(folder / f"numbers{_number(folder)}.safetensors", tensors))


def _file(folder: Path, path: Path) -> dict[str, str]:
    return {"path": str(path.relative_to(folder)), "sha256": hashlib.sha256(path.read_bytes()).hexdigest()}


def _number(folder: Path) -> int:
    return sum(1 for _ in folder.iterdir())


__all__ = ["Planned", "Progress", "compare_in_cells"]
