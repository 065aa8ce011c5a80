"""The networks that ``[[networks]]`` of a study file ask for: every combination of the grid's values, every seed."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from fnmatch import fnmatchcase
from itertools import product
from typing import Any, cast

from lipbridge.study.file_tables import NetworksTable
from lipbridge.training.config import TrainingConfig
from lipbridge.training.recipes import Recipe

#: What a grid may vary: keys of the table itself, of its recipe, of its training.
OWN = ("data", "norm", "arch")
RECIPE = tuple(field.name for field in fields(Recipe) if field.name not in ("config", "arch"))
TRAINING = tuple(field.name for field in fields(TrainingConfig) if field.name not in ("norm", "seed"))
#: What changes a network's shape, so that no weights can be taken over.
SHAPING = ("data", "arch", "widths", "activation", "bias", "padding")


@dataclass(frozen=True)
class Point:
    """One point of a grid, without a seed: all that its table says of it, the grid's values in place."""

    family: str
    group: str
    data: str
    norm: object
    arch: str
    recipe: Mapping[str, Any]
    training: Mapping[str, Any]
    axes: Mapping[str, Any]
    seeds: int = 1

    def network(self, seed: int) -> str:
        """The name of its network with a seed, which it says where there are several."""
        return self.group if self.seeds == 1 else f"{self.group}-seed={seed}"


def points(table: NetworksTable) -> Iterator[Point]:
    """The points of a grid, the last key varying fastest."""
    for values in product(*table.grid.values()):
        axes = dict(zip(table.grid, values, strict=True))
        own = {key: axes.get(key, getattr(table, key)) for key in OWN}
        recipe = {**table.recipe, **{key: value for key, value in axes.items() if key in RECIPE}}
        training = {**table.training, **{key: value for key, value in axes.items() if key in TRAINING}}
        group = "-".join([table.name, *(f"{key}={_word(value)}" for key, value in axes.items())])
        yield Point(table.name, group, own["data"], own["norm"], own["arch"], recipe, training, axes, len(table.seeds))


def matches(pattern: str, *names: str) -> bool:
    """Whether a pattern with ``*`` and ``?`` is that of a network's name, or its group's, or its family's."""
    return any(fnmatchcase(name, pattern) for name in names)


def flat(value: object) -> Any:
    """A setting as one word or number: lists with commas."""
    if isinstance(value, list | tuple):
        return ",".join(str(flat(item)) for item in cast(list[object], value))
    return value


def _word(value: object) -> str:
    """A value as part of a folder's name."""
    if isinstance(value, list | tuple):
        items = cast(list[object], value)
        return "x".join(map(_word, items)) or "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    text = str(value)
    return re.sub(r"[^A-Za-z0-9._+-]", "_", text.rpartition(":")[2] if ".py:" in text else text)


__all__ = ["OWN", "RECIPE", "SHAPING", "TRAINING", "Point", "flat", "matches", "points"]
