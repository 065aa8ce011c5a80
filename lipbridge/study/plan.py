"""From a study file to its cells: each network's training or reading, then the witness search, then who is judged.

Law: the same file gives the same ids on another machine and in another folder (``threads`` aside, where the file does
not say them: they are this machine's cores by the jobs), and a setting that changes changes the ids of just those cells
that depend on it. Order, labels, jobs and engine change none.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from lipbridge.machine import available_cores
from lipbridge.study.asked import asked
from lipbridge.study.cells import Cell
from lipbridge.study.config import StudyFile
from lipbridge.study.file_tables import EngineTable
from lipbridge.study.networks import Network, networks

Json = dict[str, Any]
#: From so many cells on a note tells how many there are.
MANY = 1000


@dataclass(frozen=True, eq=False)
class Plan:
    """A study's cells, in the order in which they are best run.

    Attributes:
        name, title, description: of the study.
        cells: each after those that it needs.
        networks: what each network is: ``name``, ``group``, ``kind``, ``cell``, ``seed``, ``settings``.
        tables: the study file as TOML has it.
        notes: what a user should know before it runs.
    """

    name: str
    title: str
    description: str
    cells: tuple[Cell, ...]
    networks: tuple[Json, ...]
    tables: Mapping[str, Any] = field(repr=False)
    notes: tuple[str, ...] = ()

    def to_json(self) -> Json:
        """JSON types only."""
        return {
            "name": self.name,
            "title": self.title,
            "description": self.description,
            "tables": dict(self.tables),
            "networks": list(self.networks),
            "cells": [cell.to_json() for cell in self.cells],
        }

    @staticmethod
    def from_json(found: Mapping[str, Any]) -> Plan:
        """What :meth:`to_json` gave.

        Raises:
            LookupError, TypeError, ValueError, AttributeError: for what is no plan.
        """
        cells = tuple(Cell.from_json(cell) for cell in found["cells"])
        name, title, description = (str(found[key]) for key in ("name", "title", "description"))
        EngineTable.model_validate(dict(found["tables"].get("engine", {})))
        return Plan(name, title, description, cells, tuple(found["networks"]), found["tables"])


def make_plan(study: StudyFile, *, jobs: int | None = None) -> Plan:
    """The plan of a study file. Data is loaded, models are hashed, and a network of each shape is built.

    Args:
        jobs: how many cells run at once, in place of the file's.

    Raises:
        StudyFileError: for what does not fit the data, with its line and its field.
        LipbridgeError: for a model of the Hub that cannot be had.
    """
    tables, faults, notes = study.tables, study.faults(), list(study.notes)
    threads = tables.limits.threads
    if threads is None:
        threads = threads_of(study, jobs)
        notes.append(
            f"limits.threads is not given: it is {threads} here, and cells run anew where it is another number"
        )
    found = networks(study, faults, threads)
    questions = asked(study, found, faults, notes)
    faults.done()
    cells: dict[str, Cell] = {}
    kept: list[Network] = []
    for network in found:
        if network.cell.id in cells:
            same = cells[network.cell.id].network
            notes.append(f"network {network.cell.network} is left out: it is the same as {same}")
            continue
        kept.append(network)
        cells[network.cell.id] = network.cell
        for each in questions:
            if network in each.networks:
                cell = network.cell_of(each.kind, each.words_for(network), each.label, each.limits, threads)
                cells.setdefault(cell.id, cell)
    if len(cells) > MANY:
        notes.append(f"the study has {len(cells)} cells")
    facts = tuple(network.facts() for network in kept)
    name, title, description = study.name, tables.title, tables.description
    return Plan(name, title or name, description, tuple(cells.values()), facts, study.raw, tuple(notes))


def threads_of(study: StudyFile, jobs: int | None = None) -> int:
    """The threads of each cell: the file's, or the cores that there are for each job."""
    tables = study.tables
    if tables.limits.threads is not None:
        return tables.limits.threads
    if tables.engine.kind == "slurm":
        return tables.engine.cpus or 1
    return max(1, available_cores() // (jobs or tables.engine.jobs))


__all__ = ["Plan", "make_plan", "threads_of"]
