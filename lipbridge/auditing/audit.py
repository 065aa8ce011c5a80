"""The audit: every verifier on every instance of the families that it takes, in processes of their own.

A process keeps what it has imported and answers one instance after the other; a crash, a hang or a leak costs the
instance at hand, and the others are asked in a new process. What contradicts the truth is asked once more, alone, in a
cell of a study, before it is kept.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

from lipbridge import checks
from lipbridge.auditing.files import labels_of, save_instance
from lipbridge.auditing.instance import AnyInstance, Instance, Prediction, PropertyInstance
from lipbridge.auditing.kept import keep
from lipbridge.auditing.registry import instances
from lipbridge.auditing.rows import (
    AuditRow,
    Finding,
    judged_bound,
    judged_prediction,
    judged_verdict,
    no_answer,
    shortfall,
)
from lipbridge.auditing.solving import solved
from lipbridge.auditing.worker import ASKED, JUDGE, READY, answer_file, judged, read_judgement
from lipbridge.disk.temporary import temporary_folder
from lipbridge.errors import LipbridgeError, UnknownName
from lipbridge.files.container import load_tensors
from lipbridge.files.solvers import Solver, get_solver, list_solvers
from lipbridge.problem.problem import Problem
from lipbridge.problem.property import Judgement
from lipbridge.problem.question import Question
from lipbridge.processes import STDERR, Ended, Limit, last_line, python_module, run_child
from lipbridge.study.contradictions import own_folder
from lipbridge.study.engine import wire
from lipbridge.study.engine.alone import certify_request, run_request
from lipbridge.study.engine.workers import STARTUP_SECONDS, THREAD_VARIABLES
from lipbridge.study.requests import Certification, Request
from lipbridge.verifiers import Budget, Verifier, get_verifiers, list_verifiers
from lipbridge.vocabulary import Status

#: Seconds for one question, bytes of a process, processes at once.
SECONDS, MEMORY, JOBS = 10.0, 4 * 2**30, 2
#: Instances that one process is asked at most, so that several can share a slow verifier.
CHUNK = 250

#: Told after each row: how many there are so far, how many there will be.
Progress = Callable[[int, int], None]


#: A number of an instance and its row; None from a thread that has ended, or what went wrong in it.
_Told = queue.SimpleQueue[tuple[int, AuditRow] | BaseException | None]


class _Stopped(Exception):
    """The audit was interrupted."""


#: Who is asked, by name: a verifier, a solver of queries, or None for our verdicts on properties.
Asked = Verifier | Solver | None


@dataclass(frozen=True, eq=False)
class _Work:
    """What one process, or one solver, is asked: numbers of instances."""

    name: str
    verifier: Asked
    numbers: tuple[int, ...]


def audit(
    verifiers: Iterable[str] | None = None,
    families: Iterable[str] | None = None,
    *,
    seconds: float = SECONDS,
    memory: int = MEMORY,
    seed: int = 0,
    jobs: int = JOBS,
    keep: Path | str | None = None,
) -> list[AuditRow]:
    """Every verifier on networks whose truth is known: which of its claims are wrong, and how tight it is.

    The truth of an instance is proved in fractions: by two inputs, or by the law of its family. An upper bound below
    it, a lower bound above it, and a certified prediction that does not hold are ``unsound``: a bound that is called
    proved at tolerance zero, any other beyond 1e-9 of its value.

    Args:
        verifiers: registered names, those of solvers of queries, and ``judge`` for :func:`lipbridge.judge`; all that
            are installed, also those that comparisons run only if they are named.
        families: names of :data:`lipbridge.auditing.registry.FAMILIES`; all if not given.
        seconds: limit of each question.
        memory: limit of a process, in bytes.
        seed: of the random networks, and of the verifiers.
        jobs: processes at once.
        keep: a folder for the worst finding of each verifier and family, as files; it is made if there is one.

    Raises:
        UnknownName, MissingDependency: for a verifier or a family, before anything runs.
        InvalidArgument: for a number out of its domain.

    Law: none of lipbridge's own verifiers has an unsound row.
    """
    return list(audited(verifiers, families, seconds=seconds, memory=memory, seed=seed, jobs=jobs, keep=keep))


def audited(
    verifiers: Iterable[str] | None = None,
    families: Iterable[str] | None = None,
    *,
    seconds: float = SECONDS,
    memory: int = MEMORY,
    seed: int = 0,
    jobs: int = JOBS,
    keep: Path | str | None = None,
    progress: Progress | None = None,
) -> Generator[AuditRow]:
    """The rows of :func:`audit` as they come; closing the generator ends all processes."""
    limits = Budget(checks.real(seconds, "seconds", 0.0, above=True), memory, seed)
    jobs = checks.whole(jobs, "jobs", 1)
    found = chosen(verifiers)
    return ask(instances(families, seed), found, limits, jobs, None if keep is None else Path(keep), progress)


def chosen(names: Iterable[str] | None) -> dict[str, Asked]:
    """Verifiers and solvers of queries by name, and None for ``judge``.

    A solver that needs words is named with them, as ``"nnenum CHECKOUT"``.

    Raises:
        UnknownName, MissingDependency: for one that there is not.
        InvalidArgument: for words that a solver cannot take.
    """
    known, solvers = list_verifiers(), list_solvers()
    if names is None:
        installed = [info.name for info in known if info.installed] + [info.name for info in solvers if info.installed]
        names = [*installed, JUDGE]
    names = list(dict.fromkeys(names))
    registered, solving = [info.name for info in known], [info.name for info in solvers]
    for name in names:
        if name not in (*registered, JUDGE) and name.partition(" ")[0] not in solving:
            raise UnknownName("verifier", str(name), sorted([*registered, *solving, JUDGE]))
    found: dict[str, Asked] = dict(get_verifiers(name for name in names if name in registered))
    found |= {name: get_solver(name) for name in names if name not in (*registered, JUDGE)}
    return {name: found.get(name) for name in names}


def ask(
    asked: Sequence[AnyInstance],
    verifiers: dict[str, Asked],
    limits: Budget,
    jobs: int,
    folder: Path | None = None,
    progress: Progress | None = None,
) -> Generator[AuditRow]:
    """Put instances to verifiers; see :func:`audited`."""
    works = [work for name, verifier in verifiers.items() for work in _works(name, verifier, asked)]
    total = sum(len(work.numbers) for work in works)
    waiting: queue.SimpleQueue[_Work] = queue.SimpleQueue()
    for work in works:
        waiting.put(work)
    told: _Told = queue.SimpleQueue()
    stop = threading.Event()
    worst: dict[tuple[str, str], tuple[float, int, AuditRow]] = {}
    done = 0
    with temporary_folder() as here:
        for number, instance in enumerate(asked):
            (here / str(number)).mkdir()
            save_instance(instance, here / str(number))
        threads = [
            threading.Thread(target=_take, args=(waiting, told, stop, asked, here, limits, place), daemon=True)
            for place in range(min(jobs, len(works)))
        ]
        try:
            for thread in threads:
                thread.start()
            for number, row in _told(told, len(threads)):
                done += 1
                if progress is not None:
                    progress(done, total)
                if row.status is Finding.UNSOUND:
                    key, size = (row.verifier, row.family), shortfall(asked[number], row)
                    if key not in worst or worst[key][0] < size:
                        worst[key] = size, number, row
                yield row
        except KeyboardInterrupt:
            _end(stop, threads)
            told.put(None)
            yield from (row for _, row in _told(told, 1))
            raise
        finally:
            _end(stop, threads)
    if folder is not None:
        for (name, _), (_, number, row) in worst.items():
            told_again = _alone(name, verifiers, asked[number], limits)
            keep(folder, asked[number], replace(row, detail=f"{row.detail}; {told_again}"))


def _told(told: _Told, threads: int) -> Iterator[tuple[int, AuditRow]]:
    """What so many threads tell until they end; what went wrong in one is raised."""
    while threads:
        item = told.get()
        if item is None:
            threads -= 1
        elif isinstance(item, BaseException):
            raise item
        else:
            yield item


def _end(stop: threading.Event, threads: Sequence[threading.Thread]) -> None:
    """Their processes end within a moment, and what these have answered is told."""
    stop.set()
    for thread in threads:
        if thread.is_alive():
            thread.join()


def _works(name: str, verifier: Asked, asked: Sequence[AnyInstance]) -> list[_Work]:
    """Problems for all verifiers, predictions for those that certify, properties for solvers and our verdicts."""
    if verifier is None or isinstance(verifier, Solver):
        kinds: tuple[type[object], ...] = (PropertyInstance,)
    else:
        kinds = (Instance, Prediction) if verifier.certifies else (Instance,)
    numbers = [number for number, instance in enumerate(asked) if type(instance) in kinds]
    return [_Work(name, verifier, tuple(numbers[at : at + CHUNK])) for at in range(0, len(numbers), CHUNK)]


def _take(
    waiting: queue.SimpleQueue[_Work],
    told: _Told,
    stop: threading.Event,
    asked: Sequence[AnyInstance],
    here: Path,
    limits: Budget,
    place: int,
) -> None:
    """A thread: takes what waits until nothing does."""
    count = 0
    try:
        with suppress(queue.Empty):
            while not stop.is_set():
                work = waiting.get_nowait()
                numbers = list(work.numbers)
                if isinstance(work.verifier, Solver):
                    _ask_a_solver(work.name, work.verifier, numbers, told, stop, asked, here, limits)
                    continue
                while numbers and not stop.is_set():
                    count += 1
                    own = here / f"process-{place}-{count}"
                    own.mkdir()
                    for number, row in _asked_in_a_process(
                        replace(work, numbers=tuple(numbers)), asked, here, own, limits, stop
                    ):
                        told.put((number, row))
                        numbers.remove(number)
        told.put(None)
    except BaseException as error:
        told.put(error)


def _ask_a_solver(
    name: str,
    solver: Solver,
    numbers: Sequence[int],
    told: _Told,
    stop: threading.Event,
    asked: Sequence[AnyInstance],
    here: Path,
    limits: Budget,
) -> None:
    """One instance after the other: each answer is a process of its own."""
    for number in numbers:
        instance = asked[number]
        if stop.is_set() or not isinstance(instance, PropertyInstance):
            return
        folder = own_folder(here / str(number), name)
        told.put((number, solved(name, solver, instance, folder, limits)))


def _asked_in_a_process(
    work: _Work, asked: Sequence[AnyInstance], here: Path, own: Path, limits: Budget, stop: threading.Event
) -> list[tuple[int, AuditRow]]:
    """Rows of the instances that a process answered, and of the one at which it ended, or was ended."""
    request = {
        "verifier": work.name,
        "seconds": limits.seconds,
        "memory": limits.memory,
        "seed": limits.seed,
        "numbers": work.numbers,
    }
    wire.write_facts(own / ASKED, request)
    place = 0

    def phase() -> tuple[str, float]:
        nonlocal place
        if stop.is_set():
            raise _Stopped
        while place < len(work.numbers) and answer_file(own, work.numbers[place]).exists():
            place += 1
        if not (own / READY).exists():
            return "", STARTUP_SECONDS
        return str(place), limits.seconds + max(2.0, 0.1 * limits.seconds)

    command, environment = python_module("lipbridge.auditing.worker", str(own), str(here))
    environment |= dict.fromkeys(THREAD_VARIABLES, "1") | {"TMPDIR": str(own)}
    end = None
    with suppress(_Stopped):
        end = run_child(command, own, seconds=phase, memory=limits.memory, environment=environment)
    found: list[tuple[int, AuditRow]] = []
    for number in work.numbers:
        if answer_file(own, number).exists():
            found.append((number, _read(work, asked[number], answer_file(own, number))))
    if end is None or len(found) == len(work.numbers):
        return found
    status, detail = _how_it_ended(end, own, limits)
    answered = {number for number, _ in found}
    left = [number for number in work.numbers if number not in answered]
    if (own / READY).exists():
        left = left[:1]
    return found + [(number, no_answer(work.name, asked[number], status, detail)) for number in left]


def _how_it_ended(end: Ended, own: Path, limits: Budget) -> tuple[Status, str]:
    last = last_line(own / STDERR)
    if end.limit is Limit.TIME:
        started = (own / READY).exists()
        return Status.TIMEOUT, f"stopped at the limit of {limits.seconds:g} s" if started else "still importing"
    if end.limit is Limit.MEMORY:
        return Status.MEMORY, f"stopped at the limit of {limits.memory / 2**20:.0f} MiB"
    return Status.FAILED, f"its process ended with exit code {end.code}" + (f": {last}" if last else "")


def _read(work: _Work, instance: AnyInstance, path: Path) -> AuditRow:
    try:
        if isinstance(instance, Instance):
            return judged_bound(work.name, instance, wire.read_bound(path, instance.problem))
        if isinstance(instance, Prediction):
            proved = isinstance(work.verifier, Verifier) and work.verifier.proved
            return judged_prediction(work.name, instance, load_tensors(path)[1], proved)
        return _of_judgement(work.name, instance, read_judgement(path))
    except (LipbridgeError, ValueError, KeyError, TypeError) as error:  # anybody's code may write there
        return no_answer(work.name, instance, Status.FAILED, f"its answer cannot be read: {error}")


def _of_judgement(name: str, instance: PropertyInstance, found: Judgement | str) -> AuditRow:
    if isinstance(found, str):
        return no_answer(name, instance, Status.FAILED, found)
    return judged_verdict(name, instance, found)


def _alone(name: str, verifiers: dict[str, Asked], instance: AnyInstance, limits: Budget) -> str:
    """What comes of a finding when it alone is asked, in a new process."""
    verifier = verifiers[name]
    if isinstance(verifier, Solver) and isinstance(instance, PropertyInstance):
        with temporary_folder() as folder:
            row = solved(name, verifier, instance, folder, limits)
    elif isinstance(instance, Instance):
        row = judged_bound(name, instance, run_request(Request(instance.name, instance.problem, name, limits)).bound)
    elif isinstance(instance, Prediction):
        points = Certification(instance.center[None], labels_of(instance), instance.radius)
        problem = Problem(instance.graph, Question.everywhere(instance.norm))
        facts = certify_request(Request(instance.name, problem, name, limits, points))
        row = judged_prediction(name, instance, facts, isinstance(verifier, Verifier) and verifier.proved)
    else:
        row = _of_judgement(name, instance, judged(instance.graph, instance.asked_property, limits))
    return "so too when it is asked alone" if row.status is Finding.UNSOUND else "not so when it is asked alone"


__all__ = ["JOBS", "MEMORY", "SECONDS", "audit", "audited", "chosen"]
