"""Cells on this machine: several processes at once, each with its threads and its limits."""

from __future__ import annotations

import os
import queue
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import entry_points
from pathlib import Path

from lipbridge.disk.temporary import temporary_folder
from lipbridge.errors import LipbridgeError, first_line, kind_and_line
from lipbridge.processes import Ended
from lipbridge.study.cells import Cell, Kind, Row
from lipbridge.study.engine import wire
from lipbridge.study.engine.blank import blank
from lipbridge.study.engine.ends import patience, without_answer
from lipbridge.study.engine.protocol import InFlight
from lipbridge.study.engine.received import read_row
from lipbridge.study.engine.workers import STARTUP_SECONDS, Worker
from lipbridge.verifiers.registry import GROUP
from lipbridge.vocabulary import Status


class LocalEngine:
    """An Engine of ``jobs`` cells at once in a study's folder.

    Verifiers of lipbridge's own, trainings and readings share warm processes, one for each job; any other verifier
    has a process of its own, so that nothing of it stays.
    """

    def __init__(self, folder: Path, jobs: int = 1) -> None:
        self._folder = folder
        self._jobs = jobs
        self._pool = ThreadPoolExecutor(jobs)
        self._results: queue.SimpleQueue[tuple[Cell, Row]] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._warm: list[Worker] = []  # those that wait
        self._busy: dict[str, tuple[Cell, float, Worker]] = {}
        self._open = 0
        self._closed = False

    def room(self) -> int:
        """How many more cells it takes now."""
        return self._jobs - self._open

    def submit(self, cell: Cell) -> None:
        """Begin a cell.

        Raises:
            LookupError, TypeError: if its words are none of its kind.
        """
        blank(cell, Status.OK)  # here, where somebody hears of it
        self._open += 1
        self._pool.submit(self._do, cell)

    def finished(self, seconds: float) -> list[tuple[Cell, Row]]:
        """What has ended since the last call."""
        found: list[tuple[Cell, Row]] = []
        end = time.monotonic() + seconds
        while self._open:
            try:
                found.append(self._results.get(timeout=0.0 if found else max(end - time.monotonic(), 0.0)))
            except queue.Empty:
                break
            self._open -= 1
        return found

    def running(self) -> list[InFlight]:
        """What runs now."""
        with self._lock:
            busy = list(self._busy.values())
        return [InFlight(cell, since, f"process {worker.pid}") for cell, since, worker in busy]

    def close(self) -> None:
        """End what still runs, with all that it started."""
        with self._lock:
            self._closed = True
            workers = [*self._warm, *(worker for _, _, worker in self._busy.values())]
        for worker in workers:
            worker.close()
        self._pool.shutdown(wait=True, cancel_futures=True)

    def _do(self, cell: Cell) -> None:
        try:
            row = self._answered(cell)
        except BaseException as error:  # ours to mend, and still no reason to lose the other rows, or to wait for ever
            row = blank(cell, Status.FAILED, kind_and_line(error))
        self._results.put((cell, row))

    def _answered(self, cell: Cell) -> Row:
        warm = is_own(cell)
        with self._lock:
            fitting = [worker for worker in self._warm if warm and worker.threads == cell.threads]
            worker = fitting[0] if fitting else Worker(cell.threads)
            if fitting:
                self._warm.remove(worker)
            self._busy[cell.id] = (cell, time.time(), worker)
            stopped = self._closed
        try:
            if stopped:
                return blank(cell, Status.FAILED, "the study was stopped")
            return run_one(self._folder, cell, worker)
        finally:
            with self._lock:
                self._busy.pop(cell.id, None)
                spare = self._warm.pop(0) if warm and len(self._warm) >= self._jobs else None
                if warm and not self._closed:
                    self._warm.append(worker)
            if not warm:
                worker.close()
            if spare is not None:
                spare.close()


def run_one(folder: Path, cell: Cell, worker: Worker | None = None) -> Row:
    """Do a cell within its limits, in a process, and give its row whatever happens.

    Args:
        folder: of the study, where a training writes and paths begin.
        cell: what to do.
        worker: the process; a new one if not given, which is ended.
    """
    own = Worker(cell.threads) if worker is None else worker
    start = time.perf_counter()
    try:
        with temporary_folder() as place:
            request = {"cell": cell.to_json(), "study": os.fspath(folder.absolute())}
            wire.write_facts(place / wire.CELL, request)
            end = own.ask(place, _phases(cell), cell.limits.memory)
            row = _row(cell, place, end)
    except (OSError, LipbridgeError) as error:  # a full disk: the other cells, and their rows, go on
        words = f"{str(error).rstrip('.')}; TMPDIR says where temporary files go"
        row = blank(cell, Status.FAILED, words)
    finally:
        if worker is None:
            own.close()
    return {**row, "total_seconds": time.perf_counter() - start, "load": round(os.getloadavg()[0], 2)}


def is_own(cell: Cell) -> bool:
    """Whether a cell is done by lipbridge itself, not by anybody's verifier."""
    if cell.kind in (Kind.TRAINING, Kind.MODEL):
        return True
    places = {point.name: point.value for point in entry_points(group=GROUP)}
    return places.get(cell.words["verifier"], "").startswith("lipbridge.")


def _phases(cell: Cell) -> dict[str, float]:
    seconds = patience(cell.limits.seconds)
    return {"": STARTUP_SECONDS, wire.STARTED: seconds} | ({wire.ROW: seconds} if cell.words.get("certify") else {})


def _row(cell: Cell, place: Path, end: Ended) -> Row:
    try:
        row = read_row(cell, place / wire.ROW)
    except FileNotFoundError:
        status, detail = without_answer(place, end, cell.limits)
        seen = {"seconds": end.seconds, "cpu_seconds": end.cpu_seconds, "memory": end.memory or None}
        return {**blank(cell, status, detail), **seen, "enforced_by": end.enforced_by.value}
    except (OSError, ValueError, RecursionError) as error:
        row = blank(cell, Status.FAILED, f"the row that its process wrote cannot be read: {first_line(error)}")
    if end.limit is not None and cell.words.get("certify"):  # it has a bound, and certified nothing
        row["extra"] = {**row["extra"], "certification": f"stopped at the {end.limit} limit"}
    return {**row, "enforced_by": end.enforced_by.value}


__all__ = ["LocalEngine", "is_own", "run_one"]
