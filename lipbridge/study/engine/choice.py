"""Which engine a study file asks for."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lipbridge.errors import UnknownName
from lipbridge.study.engine.local import LocalEngine
from lipbridge.study.engine.protocol import Engine

ENGINES = ("local", "slurm", "submitit-local")


def require_engine(kind: str) -> None:
    """Check a name before anything is done.

    Raises:
        UnknownName: with the names that there are.
    """
    if kind not in ENGINES:
        raise UnknownName("engine", kind, ENGINES)


def engine_of(kind: str, folder: Path, jobs: int, table: Mapping[str, Any]) -> Engine:
    """The engine of a kind, for a study's folder.

    Args:
        kind: of :data:`ENGINES`.
        folder: of the study.
        jobs: cells at once, on this machine.
        table: the study file's ``[engine]``, as TOML has it, which says the rest of a cluster.

    Raises:
        UnknownName, InvalidArgument: for a kind or a setting that there is not.
        MissingDependency: if a cluster's package is not installed.
    """
    require_engine(kind)
    if kind == "local":
        return LocalEngine(folder, jobs)
    from lipbridge.study.engine.cluster_settings import ClusterSettings
    from lipbridge.study.engine.slurm import cluster_engine
    from lipbridge.study.file_tables import EngineTable

    said = EngineTable.model_validate(dict(table)).model_dump(exclude_unset=True)
    return cluster_engine(kind, folder, ClusterSettings.read(said))


__all__ = ["ENGINES", "engine_of", "require_engine"]
