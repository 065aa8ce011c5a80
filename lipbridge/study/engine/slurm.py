"""Cells on a cluster: jobs of one or several cells, whose rows come as files of the folder that all nodes share.

What was submitted is written down before and after, so that a study that was killed takes its jobs over: nothing runs
twice, and rows that came meanwhile are collected.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import shutil
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lipbridge.disk.atomic import write_atomically
from lipbridge.disk.strict_json import parse_json
from lipbridge.errors import ClusterError, FileNotWritten, InvalidArgument, UnknownName, first_line
from lipbridge.files.rows import load_rows
from lipbridge.processes import last_line, python_module
from lipbridge.study.cells import Cell, Row
from lipbridge.study.engine.blank import blank
from lipbridge.study.engine.cluster_settings import ClusterSettings
from lipbridge.study.engine.node import row_file, write_batch
from lipbridge.study.engine.protocol import InFlight
from lipbridge.study.engine.received import read_row
from lipbridge.study.engine.schedulers import Away, Needs, Processes, Scheduler, Slurm, State
from lipbridge.vocabulary import Status

#: In the study's folder: rows as they come, a folder for each job that runs, and which jobs these are.
JOBS, SUBMITTED, BATCH = "jobs", "submitted.json", "batch.json"
#: Seconds between two looks for rows.
_LOOK = 0.2


@dataclass
class _Batch:
    """The cells of a job.

    Attributes:
        name: of the job, and of its folder.
        ids: of its cells.
        since: when it was submitted, in seconds since 1970.
        needs: of the job.
        job: its id; None if it is not known, or not known yet, to the scheduler.
        tried: whether it may be known to the scheduler without our knowing its id.
        cells: those of its cells that this run has submitted, and whose rows have not come.
        left: ids of cells whose rows were never seen.
        state: as last told.
        ended_at: when it was first seen to have ended, on the monotonic clock.
    """

    name: str
    ids: tuple[str, ...]
    since: float
    needs: Needs
    job: str | None = None
    tried: bool = False
    cells: dict[str, Cell] = field(default_factory=lambda: {})
    state: State = field(default_factory=lambda: State("to be submitted"))
    ended_at: float | None = None
    left: set[str] = field(default_factory=lambda: set())

    def __post_init__(self) -> None:
        self.left = set(self.ids)


class SlurmEngine:
    """An Engine whose cells are jobs of a scheduler.

    A cell comes back with the row that its node wrote; where a job ends without, with one that says what the scheduler
    says of it. The caller keeps the rows that it was given before it asks for more.

    Args:
        folder: of the study, which all nodes see at the same place.
        settings: of the jobs.
        scheduler: Slurm if not given.
        run: ``module:function`` that does a cell, given the folder and the cell, in place of what does it elsewhere.

    Raises:
        MissingDependency: without submitit.
        ClusterError: where there is no scheduler; from other methods, if it refuses jobs or stays away.
        FileNotWritten: if the folder cannot be written.
    """

    def __init__(
        self,
        folder: Path,
        settings: ClusterSettings | None = None,
        scheduler: Scheduler | None = None,
        run: str | None = None,
    ) -> None:
        self._settings = settings or ClusterSettings()
        self._scheduler = scheduler or Slurm(self._settings)
        self._folder, self._rows, self._run = folder.absolute(), folder.absolute() / JOBS, run
        self._gathered: list[Cell] = []
        self._ready: dict[str, Cell] = {}  # of which a row was there before
        self._delivered: list[str] = []
        self._asked_at = self._sent_at = -1e9
        self._away_since: float | None = None
        self._lost = False
        self._batches = {batch.name: batch for batch in self._remembered()}
        self._forget_kept()

    def room(self) -> int:
        """How many more cells it takes now."""
        jobs = self._settings.max_jobs - sum(1 for batch in self._batches.values() if batch.cells)
        return max(0, jobs * self._settings.cells_per_job - len(self._gathered))

    def submit(self, cell: Cell) -> None:
        """Take a cell; its job is submitted when as many cells as a job has are there, or rows are asked for."""
        if row_file(self._rows, cell.id).exists():
            self._ready[cell.id] = cell
            return
        for batch in self._batches.values():
            if cell.id in batch.ids:
                batch.cells[cell.id] = cell
                return
        self._gathered.append(cell)
        if len(self._gathered) >= self._settings.cells_per_job:
            self._send()

    def finished(self, seconds: float) -> list[tuple[Cell, Row]]:
        """What has ended since the last call, whose rows are taken to be kept by now.

        Raises:
            ClusterError: if the scheduler refuses a job, or was away for longer than the settings allow.
        """
        for cell in self._delivered:
            row_file(self._rows, cell).unlink(missing_ok=True)
        self._delivered = []
        deadline = time.monotonic() + seconds
        self._send()
        while True:
            found = self._collected()
            if not found:
                self._ask()
                found = self._collected()
            left = deadline - time.monotonic()
            if found or left <= 0 or not (self._ready or any(batch.cells for batch in self._batches.values())):
                return found
            time.sleep(min(_LOOK, left))

    def running(self) -> list[InFlight]:
        """What runs, or waits in the queue, and what the scheduler says of it."""
        return [
            InFlight(cell, batch.since, f"{self._where(batch)}, {batch.state.words}")
            for batch in self._batches.values()
            for cell in batch.cells.values()
        ] + [InFlight(cell, time.time(), "to be submitted") for cell in self._gathered]

    def close(self) -> None:
        """Cancel the jobs, unless the settings leave them, or the scheduler is away; forget rows that are kept."""
        if not self._settings.leave and not self._lost:
            jobs = [batch.job for batch in self._batches.values() if batch.job is not None]
            self._scheduler.cancel(jobs)
            ended = self._ended_of(jobs) if jobs else set[str]()
            for batch in [batch for batch in self._batches.values() if batch.job in ended or not batch.tried]:
                self._drop(batch)
            with contextlib.suppress(FileNotWritten):  # the next run finds what it says to have ended
                self._remember()
        self._forget_kept()

    # Submitting.

    def _send(self) -> None:
        """Make jobs of what was gathered, and try those again that the scheduler did not take."""
        size = self._settings.cells_per_job
        fresh: list[_Batch] = []
        while self._gathered:
            cells, self._gathered = self._gathered[:size], self._gathered[size:]
            fresh.append(self._batch(cells))
        if fresh:
            self._remember()  # before any is submitted, so that none is lost
        if self._away_since is not None and time.monotonic() - self._sent_at < self._settings.poll:
            return
        for batch in list(self._batches.values()):
            if batch.job is not None or not (batch.cells or batch.tried):
                continue
            self._sent_at = time.monotonic()
            try:
                self._send_one(batch)
            except Away as error:
                self._away(str(error))
                return
            self._here()

    def _batch(self, cells: list[Cell]) -> _Batch:
        settings = self._settings
        needs = Needs(settings.minutes(cells), settings.bytes_of(cells), settings.cores(cells))
        name = f"lipbridge-{secrets.token_hex(6)}"
        batch = _Batch(name, tuple(cell.id for cell in cells), time.time(), needs, cells={c.id: c for c in cells})
        write_batch(self._rows / name / BATCH, self._folder, self._rows, cells, self._run)
        self._batches[name] = batch
        return batch

    def _send_one(self, batch: _Batch) -> None:
        place = self._rows / batch.name
        if batch.tried:  # by a run that was killed, or by a command that gave no answer
            batch.job = self._scheduler.find(batch.name, place)
            if batch.job is None and not batch.cells:  # nobody asks for them any more
                self._drop(batch)
                return
        if batch.job is None:
            batch.tried = True
            self._remember()
            command, environment = python_module("lipbridge.study.engine.node", str(place / BATCH))
            try:
                batch.job = self._scheduler.submit(batch.name, command, environment, place, batch.needs)
            except ClusterError:
                batch.tried = False
                raise
        batch.state = State("submitted")
        self._remember()

    # Collecting.

    def _collected(self) -> list[tuple[Cell, Row]]:
        """Rows that are there, and those of cells whose job has ended without."""
        found: list[tuple[Cell, Row]] = []
        there = _names(self._rows)
        for cell in list(self._ready.values()):
            found.append((cell, self._read(cell)))
            del self._ready[cell.id]
        for batch in list(self._batches.values()):
            batch.left = {cell for cell in batch.left if f"{cell}.json" not in there}
            for cell in [cell for cell in batch.cells.values() if cell.id not in batch.left]:
                found.append((cell, self._read(cell)))
                del batch.cells[cell.id]
            ended = batch.ended_at is not None and time.monotonic() - batch.ended_at >= self._scheduler.settles
            if ended:
                found += [(cell, self._without_row(batch, cell)) for cell in batch.cells.values()]
                lost, batch.cells = bool(batch.cells), {}
                self._drop(batch, keep_words=lost)
            elif not batch.left and not batch.cells:
                self._drop(batch)
        if found:
            self._remember()
        return found

    def _read(self, cell: Cell) -> Row:
        self._delivered.append(cell.id)
        try:
            return read_row(cell, row_file(self._rows, cell.id))
        except (OSError, ValueError, RecursionError) as error:
            why = first_line(error)
        return blank(cell, Status.FAILED, f"the row that its node wrote cannot be read: {why}")

    def _without_row(self, batch: _Batch, cell: Cell) -> Row:
        words = f"{self._where(batch)} ended without a row: {batch.state.words}"
        log = self._rows / batch.name / f"{(batch.job or '').partition('@')[0]}_0_log.err"
        with contextlib.suppress(OSError):
            if last := last_line(log):
                words += f": {last}"
        return blank(cell, batch.state.ended or Status.FAILED, words)

    def _ask(self) -> None:
        """What the scheduler says of the jobs, now and then."""
        now = time.monotonic()
        asked = {batch.job: batch for batch in self._batches.values() if batch.job is not None}
        if now - self._asked_at < self._settings.poll:
            return
        self._send()
        if not asked:
            return
        self._asked_at = now
        try:
            states = self._scheduler.states(asked.keys())
        except Away as error:
            self._away(str(error))
            return
        self._here()
        for job, state in states.items():
            batch = asked[job]
            batch.state = state
            if state.ended is None:
                batch.ended_at = None
            elif batch.ended_at is None:
                batch.ended_at = time.monotonic()

    def _away(self, why: str) -> None:
        now = time.monotonic()
        if self._away_since is None:
            self._away_since = now
        for batch in self._batches.values():
            batch.state = State(f"{self._scheduler.name} is away: {why}", None)
        if now - self._away_since > self._settings.patience:
            self._lost = True
            name, seconds = self._scheduler.name, now - self._away_since
            told = f"{name} cannot be reached for {seconds:.0f} s: {why}"
            raise ClusterError(f"{told}. Jobs go on; run the study again when it is back, and it takes them over.")

    def _here(self) -> None:
        self._away_since = None

    def _ended_of(self, jobs: Iterable[str]) -> set[str]:
        """Those that have ended within a moment of being cancelled."""
        jobs = list(jobs)
        for _ in range(20):
            with contextlib.suppress(Away):
                states = self._scheduler.states(jobs)
                if all(state.ended is not None for state in states.values()):
                    return set(jobs)
            time.sleep(0.25)
        return set()

    # On disk.

    def _remember(self) -> None:
        facts = {
            batch.name: {
                "job": batch.job,
                "cells": batch.ids,
                "since": batch.since,
                "needs": [batch.needs.minutes, batch.needs.memory, batch.needs.cores],
            }
            for batch in self._batches.values()
        }
        write_atomically(self._rows / SUBMITTED, json.dumps(facts, indent=1).encode())

    def _remembered(self) -> list[_Batch]:
        """The jobs of a run before; those without an id may have been submitted all the same."""
        try:
            facts: Any = parse_json((self._rows / SUBMITTED).read_bytes())
            return [
                _Batch(
                    str(name),
                    tuple(map(str, told["cells"])),
                    float(told["since"]),
                    Needs(*map(int, told["needs"])),
                    None if told["job"] is None else str(told["job"]),
                    tried=True,
                    state=State("submitted by a run before"),
                )
                for name, told in facts.items()
                if (self._rows / str(name) / BATCH).exists()
            ]
        except (OSError, ValueError, TypeError, LookupError, AttributeError):
            return []

    def _forget_kept(self) -> None:
        """Remove rows that are in the study's file."""
        files = [name for name in _names(self._rows) if name.endswith(".json") and name != SUBMITTED]
        if not files:
            return
        try:
            kept = {row.get("cell"): row for row in load_rows(self._folder)}
        except InvalidArgument:
            return
        for name in files:
            row = kept.get(name.removesuffix(".json"))
            with contextlib.suppress(OSError, ValueError, AttributeError):
                found: Any = parse_json((self._rows / name).read_bytes())
                if row is not None and all(row.get(key) == found.get(key) for key in ("date", "host", "total_seconds")):
                    (self._rows / name).unlink()

    def _drop(self, batch: _Batch, *, keep_words: bool = False) -> None:
        """Forget a job that has ended; what it said stays if it left a cell without a row."""
        del self._batches[batch.name]
        if not keep_words:
            shutil.rmtree(self._rows / batch.name, ignore_errors=True)

    def _where(self, batch: _Batch) -> str:
        job = "" if batch.job is None else f" {batch.job.partition('@')[0]}"
        return f"job{job} of {self._scheduler.name}"


#: Engines of jobs, as a study file names them.
KINDS = ("slurm", "submitit-local")


def cluster_engine(kind: str, folder: Path, settings: ClusterSettings, run: str | None = None) -> SlurmEngine:
    """An engine of jobs: Slurm's, or processes of this machine, by submitit's local executor.

    Raises:
        UnknownName: for another kind.
        MissingDependency, ClusterError: as :class:`SlurmEngine`.
    """
    if kind not in KINDS:
        raise UnknownName("engine", kind, KINDS)
    return SlurmEngine(folder, settings, Slurm(settings) if kind == "slurm" else Processes(settings), run)


def _names(folder: Path) -> set[str]:
    """What is in a folder: read anew, where asking for one name may give what a file server said before."""
    try:
        return set(os.listdir(folder))
    except FileNotFoundError:
        return set()


__all__ = ["KINDS", "SlurmEngine", "cluster_engine"]
