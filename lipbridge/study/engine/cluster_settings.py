"""What a study file says of a cluster: the table ``[engine]``."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, cast

from lipbridge.errors import InvalidArgument, UnknownName
from lipbridge.study.cells import Cell
from lipbridge.study.engine.ends import patience
from lipbridge.study.engine.workers import STARTUP_SECONDS

#: Bytes of a job beside those of a cell: the program that watches it.
MARGIN = 2**30


@dataclass(frozen=True)
class ClusterSettings:
    """Of a cluster's jobs; what is not given follows from the cells.

    Attributes:
        partition: of Slurm; the cluster's default if not given.
        account: of Slurm, likewise.
        time: seconds of a job, of which Slurm counts whole minutes; if not given, what its cells may take at most, with
            the start of their processes.
        memory: bytes of a job; if not given, the largest limit of its cells and one GiB.
        cpus: cores of a job; if not given, the largest number of threads of its cells.
        gpus: of a job.
        cells_per_job: done one after the other: for cells so short that a job of its own costs more.
        setup: lines of shell that a job begins with.
        extra: further words of ``sbatch``, by their names without dashes in front.
        max_jobs: in the queue or running at once.
        poll: seconds between two questions to the scheduler.
        patience: seconds for which a scheduler may be away before the study ends with an error.
        leave: jobs that run stay when the study is stopped; the next run of it takes them over.
    """

    partition: str | None = None
    account: str | None = None
    time: float | None = None
    memory: int | None = None
    cpus: int | None = None
    gpus: int = 0
    cells_per_job: int = 1
    setup: tuple[str, ...] = ()
    extra: Mapping[str, str | int | bool] = field(default_factory=lambda: {})
    max_jobs: int = 100
    poll: float = 10.0
    patience: float = 600.0
    leave: bool = False

    def __post_init__(self) -> None:
        for name in ("memory", "cpus", "cells_per_job", "max_jobs"):
            _whole(name, getattr(self, name), 1)
        _whole("gpus", self.gpus, 0)
        for name in ("poll", "patience", "time"):
            value = getattr(self, name)
            if name == "time" and value is None:
                continue
            if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
                raise InvalidArgument(name, "be seconds, above 0 and finite", value)
        for name in ("partition", "account"):
            if not isinstance(getattr(self, name), str | None):
                raise InvalidArgument(name, "be a text", getattr(self, name))
        if any("\n" in line for line in self.setup):
            raise InvalidArgument("setup", "be lines of shell, each of them a text of one line", self.setup)
        if not isinstance(self.leave, bool):  # type: ignore[reportUnnecessaryIsInstance]
            raise InvalidArgument("leave", "be true or false", self.leave)

    @staticmethod
    def read(table: Mapping[str, Any]) -> ClusterSettings:
        """The settings of a table of a study file, where ``kind`` and ``jobs`` are those of any engine.

        Raises:
            UnknownName: for a name that there is not.
            InvalidArgument: for a value outside its domain.
        """
        known = [each.name for each in fields(ClusterSettings)]
        given = {name: value for name, value in table.items() if name not in ("kind", "jobs") and value is not None}
        for name in given:
            if name not in known:
                raise UnknownName("setting of a cluster", name, known)
        if "setup" in given:
            lines = cast(Sequence[object], given["setup"])
            if not isinstance(lines, list | tuple) or not all(isinstance(line, str) for line in lines):
                raise InvalidArgument("setup", "be a list of lines of shell", lines)
            given["setup"] = tuple(lines)
        if "extra" in given and not isinstance(given["extra"], Mapping):
            raise InvalidArgument("extra", "be a table of words of sbatch", given["extra"])
        return ClusterSettings(**given)

    def minutes(self, cells: Sequence[Cell]) -> int:
        """Of a job of these cells: enough that their own limits are what ends them."""
        if self.time is not None:
            return math.ceil(self.time / 60.0)
        # A verifier that certifies has its time twice; then its process is ended, and a row written.
        seconds = sum(STARTUP_SECONDS + 2 * patience(cell.limits.seconds) + 30.0 for cell in cells)
        return max(1, math.ceil((STARTUP_SECONDS + seconds) / 60.0))

    def bytes_of(self, cells: Sequence[Cell]) -> int:
        """Of memory, of a job of these cells."""
        return max(cell.limits.memory for cell in cells) + MARGIN if self.memory is None else self.memory

    def cores(self, cells: Sequence[Cell]) -> int:
        """Of a job of these cells."""
        return max(cell.threads for cell in cells) if self.cpus is None else self.cpus


def _whole(name: str, value: object, least: int) -> None:
    if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < least):
        raise InvalidArgument(name, f"be a whole number of at least {least}", value)


__all__ = ["ClusterSettings"]
