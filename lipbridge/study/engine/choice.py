"""Which engine a study file asks for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lipbridge.errors import UnknownName
from lipbridge.study.engine.local import LocalEngine
from lipbridge.study.engine.protocol import Engine

ENGINES = ("local", "slurm", "submitit-local")


@dataclass(frozen=True)
class Choice:
    """An engine by its name, the cells at once, and the study file's ``[engine]`` as TOML has it."""

    kind: str
    jobs: int
    table: Mapping[str, Any]

    def engine(self, folder: Path) -> Engine:
        """The engine, for a study's folder.

        Raises:
            InvalidArgument: for a setting that there is not.
            MissingDependency: if a cluster's package is not installed.
        """
        if self.kind == "local":
            return LocalEngine(folder, self.jobs)
        from lipbridge.study.engine.cluster_settings import ClusterSettings
        from lipbridge.study.engine.slurm import cluster_engine
        from lipbridge.study.file_tables import EngineTable

        said = EngineTable.model_validate(dict(self.table)).model_dump(exclude_unset=True)
        return cluster_engine(self.kind, folder, ClusterSettings.read(said))

    def facts(self, command: str) -> dict[str, Any]:
        """What is recorded of a start."""
        return {"command": command, "engine": self.kind, "jobs": self.jobs}


def choice_of(tables: Mapping[str, Any], engine: str | None = None, jobs: int | None = None) -> Choice:
    """What a study file asks for, or what is given in its place.

    Raises:
        UnknownName: for an engine that there is not, with the names that there are.
    """
    table: Mapping[str, Any] = tables.get("engine", {})
    kind = engine or str(table.get("kind", "local"))
    if kind not in ENGINES:
        raise UnknownName("engine", kind, ENGINES)
    return Choice(kind, jobs or int(table.get("jobs", 1)), table)


__all__ = ["ENGINES", "Choice", "choice_of"]
