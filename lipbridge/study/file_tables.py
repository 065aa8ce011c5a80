"""The tables of a study file: their keys, types and defaults. What the values mean is checked elsewhere.

Each class is a table of the file; pydantic refuses a key that has no field here, and finds all faults at once.
"""

from __future__ import annotations

import math
from typing import Annotated, Any, Literal, cast

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from lipbridge.text import duration, size
from lipbridge.vocabulary import Norm, Quantity, as_norm


def _seconds(value: object) -> object:
    found = duration(value) if isinstance(value, str) else value
    if isinstance(found, bool) or not isinstance(found, int | float) or not 0 < found < math.inf:
        raise ValueError('should be a time like 90, "90 s", "5 min" or "2 h"')
    return float(found)


def _bytes(value: object) -> object:
    found = size(value) if isinstance(value, str) else value * 2**20 if type(value) is int else None
    if found is None or not 1 <= found < 2**60:
        raise ValueError('should be a size like "512M" or "8G", or a number of MiB')
    return found


def _seeds(value: object) -> object:
    found = list(range(value)) if type(value) is int and 0 < value <= 10_000 else value
    items = cast(list[object], found) if isinstance(found, list) else []
    whole = all(type(seed) is int and 0 <= seed < 2**40 for seed in items)
    if not items or not whole or len(set(items)) != len(items):
        raise ValueError("should be how many seeds (5 for 0 to 4), or a list of different whole numbers of at least 0")
    return items


def _everywhere(value: object) -> object:
    if isinstance(value, str) and value != "everywhere":
        raise ValueError('should be "everywhere", or a table with a radius')
    return None if value == "everywhere" else value


def _quantity(value: object) -> object:
    if value not in list(Quantity):
        raise ValueError(f"should be {' or '.join(map(repr, map(str, Quantity)))}")
    return Quantity(value)  # type: ignore[arg-type]


def _family(value: object) -> object:
    good = isinstance(value, str) and value.replace("_", "a").replace(".", "a").replace("-", "a").isalnum()
    if not good or not value[0].isalnum():  # type: ignore[index]
        raise ValueError("should be a name of letters, digits, dots, - and _, since folders are called so")
    return value


Seconds = Annotated[float, BeforeValidator(_seconds)]
Bytes = Annotated[int, BeforeValidator(_bytes)]
FieldNorm = Annotated[Norm, BeforeValidator(as_norm)]
Seeds = Annotated[list[int], BeforeValidator(_seeds)]
Seed = Annotated[int, Field(ge=0, lt=2**40)]
Count = Annotated[int, Field(ge=1)]
Radius = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Family = Annotated[str, BeforeValidator(_family)]
Text = Annotated[str, Field(min_length=1)]
Texts = Annotated[list[Text], Field(min_length=1)]


class Table(BaseModel):
    """A table whose keys are all known."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class LimitsTable(Table):
    """``[limits]``: of every cell that has none of its own."""

    time: Seconds = 300.0
    memory: Bytes = 8 * 2**30
    threads: Count | None = None


class EngineTable(Table):
    """``[engine]``: who runs the cells. All but ``kind`` and ``jobs`` is Slurm's."""

    kind: Literal["local", "slurm", "submitit-local"] = "local"
    jobs: Count = 1
    partition: Text | None = None
    account: Text | None = None
    time: Seconds | None = None
    memory: Bytes | None = None
    cpus: Count | None = None
    gpus: Annotated[int, Field(ge=0)] | None = None
    cells_per_job: Count = 1
    setup: list[str] = []
    extra: dict[str, Any] = {}
    max_jobs: Count | None = None
    poll: Seconds | None = None
    patience: Seconds | None = None
    leave: bool = False


class NetworksTable(Table):
    """``[[networks]]``: a grid of trainings, each of its points with each seed."""

    name: Family
    data: Text
    norm: FieldNorm = 2
    arch: Text = "dense"
    seeds: Seeds = [0]
    rescale: bool = False
    warm_start: Text | None = None
    recipe: dict[str, Any] = {}
    training: dict[str, Any] = {}
    grid: dict[str, Annotated[list[Any], Field(min_length=1)]] = {}
    time: Seconds = 86400.0
    memory: Bytes | None = None


class ModelTable(Table):
    """``[[models]]``: a network that is there already."""

    path: Text
    name: Family | None = None
    data: Text | None = None
    input_shape: Annotated[list[Count], Field(min_length=1)] | None = None
    output: Text | None = None
    weights: Text | None = None
    classes: Count | None = None


class RegionTable(Table):
    """``region``: balls around the first test points."""

    radius: Radius
    norm: FieldNorm | None = None
    points: Count = 32
    quantity: Annotated[Quantity, BeforeValidator(_quantity)] = Quantity.LIPSCHITZ


class ProblemTable(Table):
    """``[[problems]]``: a question, the networks that it is asked of and the verifiers that are asked."""

    name: Text | None = None
    norm: FieldNorm = 2
    output_norm: FieldNorm | None = None
    region: Annotated[RegionTable | None, BeforeValidator(_everywhere)] = None
    verifiers: Texts | None = None
    networks: Texts | None = None
    time: Seconds | None = None
    memory: Bytes | None = None


class VerifierTable(Table):
    """``[[verifiers]]``: one with its options; the same one may stand there again with others."""

    name: Text
    label: Text | None = None
    options: dict[str, Any] = {}
    time: Seconds | None = None
    memory: Bytes | None = None
    seed: Seed = 0


class CertificatesTable(Table):
    """``[[certificates]]``: at which of these radii the predictions on test points are certified."""

    radii: Annotated[list[Radius], Field(min_length=1)]
    verifiers: Texts = ["trivial"]
    norm: FieldNorm = 2
    points: Count | None = None
    networks: Texts | None = None
    time: Seconds | None = None
    memory: Bytes | None = None


class StudyTable(Table):
    """The whole file."""

    name: Text | None = None
    title: str = ""
    description: str = ""
    folder: Text | None = None
    limits: LimitsTable = LimitsTable()
    engine: EngineTable = EngineTable()
    networks: list[NetworksTable] = []
    models: list[ModelTable] = []
    problems: list[ProblemTable] = []
    verifiers: list[VerifierTable] = []
    certificates: list[CertificatesTable] = []


__all__ = [
    "CertificatesTable",
    "EngineTable",
    "LimitsTable",
    "ModelTable",
    "NetworksTable",
    "ProblemTable",
    "RegionTable",
    "StudyTable",
    "Table",
    "VerifierTable",
]
