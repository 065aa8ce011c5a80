"""What rows say of each network: its accuracy, its proved bounds, its settings, and with whom it forms a group."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeGuard, TypeVar

Row = Mapping[str, Any]
Item = TypeVar("Item")
#: The setting that is the name of a family in a study file.
FAMILY = "family"
#: What tells the seeds of a group and the points of a family apart, and so is in no name of a family.
ALONG = ("penalty", "seed")
#: No more groups of networks than this have a colour of their own; beyond, families have.
COLOURED = 8


@dataclass(frozen=True)
class Measured:
    """A network in one norm: what its training, and every verifier of its Lipschitz constant, said.

    ``bound`` is the proved trivial bound with its ``tightness``, ``best`` the least proved upper bound of all.
    """

    study: str
    network: str
    group: str
    seed: int | None
    settings: Mapping[str, Any]
    norm: str
    accuracy: float | None
    bound: float | None
    tightness: float | None
    best: float | None

    @property
    def penalty(self) -> float | None:
        """The weight of the bound in the loss, where the settings name it."""
        value = self.settings.get("penalty")
        return value if is_number(value) else None


def measured(rows: Sequence[Row]) -> list[Measured]:
    """Each network in each norm in which something is known of its bound, in the order of the rows."""
    facts: dict[tuple[str, str], Row] = {}
    accuracy: dict[tuple[str, str], float] = {}
    bounds: dict[tuple[str, str], dict[str, list[Row]]] = defaultdict(dict)
    for row in rows:
        key = network_of(row)
        if key not in facts or (row.get("settings") and not facts[key].get("settings")):
            facts[key] = row
        if row.get("kind") in ("training", "model", "certificate") and is_number(row.get("accuracy")):
            accuracy.setdefault(key, row["accuracy"])
        if _is_proved_bound(row):
            bounds[key].setdefault(norm_of(row), []).append(row)
    return [
        _measured(row, accuracy.get(key), norm, found)
        for key, row in facts.items()
        for norm, found in (bounds.get(key) or {str(row.get("norm") or ""): []}).items()
    ]


def network_of(row: Row) -> tuple[str, str]:
    """Study and name: names repeat in other studies."""
    return str(row.get("study") or ""), str(row.get("network") or "")


def group_of(row: Row) -> tuple[str, str]:
    """Study and group: the networks that differ by their seeds alone."""
    return str(row.get("study") or ""), str(row.get("group") or row.get("network") or "")


def settings_of(row: Row) -> Mapping[str, Any]:
    """What the grid of its study says of a row's network."""
    return row.get("settings") or {}


def norm_of(row: Row) -> str:
    """``2``, or ``2->inf`` where the output's norm is another."""
    norm, output = str(row.get("norm")), row.get("output_norm")
    if output is None or "->" in norm or str(output) == norm:  # a row of bounds has both in its norm already
        return norm
    return f"{norm}->{output}"


def is_global(row: Row) -> bool:
    """Whether a row bounds a Lipschitz constant everywhere."""
    bound = row.get("kind") in (None, "bound") and row.get("quantity") == "lipschitz"
    return bound and row.get("region") == "everywhere"


def is_number(value: object) -> TypeGuard[float]:
    """Whether a value is a finite number."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def names_of(keys: Iterable[tuple[str, str]]) -> dict[tuple[str, str], str]:
    """Names for people: with the study's where there are several studies."""
    found = list(dict.fromkeys(keys))
    several = len({study for study, _ in found}) > 1
    return {key: f"{key[0]}: {key[1]}" if several else key[1] for key in found}


def families(items: Sequence[tuple[str, str, Mapping[str, Any]]], along: Sequence[str] = ALONG) -> list[str]:
    """The name of each item's family: its settings that differ anywhere, without those ``along`` which a curve goes.

    Args:
        items: study, group and settings; an item without settings is named by its group.
        along: settings that are left out.
    """
    varying = [key for key in varying_settings([settings for *_, settings in items]) if key not in along]
    within = grouped((settings.get(FAMILY), settings) for *_, settings in items if settings.get(FAMILY) is not None)
    if within:  # what is the same in all of a family's networks is said by its name
        own = {key for some in within.values() for key in varying_settings(some)}
        varying = [key for key in varying if key == FAMILY or key in own]
    several = len({study for study, *_ in items}) > 1
    names: list[str] = []
    for study, group, settings in items:
        name = settings_text(settings, varying) if settings else group
        names.append(f"{study}: {name}".removesuffix(": ") if several else name)
    return names


def palette(rows: Iterable[Row]) -> tuple[dict[tuple[str, str], int], list[str]]:
    """The place of each group's colour, and the names of the colours: groups, or families where there are many.

    It is made from all rows of a study, so that its figures agree.
    """
    rows = [row for row in rows if row.get("network")]
    groups = names_of(group_of(row) for row in rows)
    if len(groups) > COLOURED:
        settings = {group_of(row): settings_of(row) for row in rows}
        named = families([(*key, found) for key, found in settings.items()], along=("seed",))
        if len(set(named)) > COLOURED:
            named = families([(*key, found) for key, found in settings.items()])
        groups = dict(zip(settings, named, strict=True))
    names = list(dict.fromkeys(groups.values()))
    if len(names) > COLOURED:  # too many to tell apart: the rest shares the last colour
        kept = [*names[: COLOURED - 1], f"{len(names) - COLOURED + 1} others"]
        return {key: min(names.index(name), COLOURED - 1) for key, name in groups.items()}, kept
    return {key: names.index(name) for key, name in groups.items()}, names


def varying_settings(settings: Sequence[Mapping[str, Any]]) -> list[str]:
    """The settings that have more than one value (not to be there is a value too), of the items that have settings."""
    known = [item for item in settings if item]
    keys = list(dict.fromkeys(key for item in known for key in item))
    return [key for key in keys if len({_hashable(item.get(key)) for item in known}) > 1]


def settings_text(settings: Mapping[str, Any], keys: Sequence[str]) -> str:
    """``abs, no bias, epochs 20``: text speaks for itself, numbers and switches are named."""
    return ", ".join(setting_text(key, settings[key]) for key in keys if settings.get(key) is not None)


def setting_text(key: str, value: object) -> str:
    """One setting for people."""
    key = key.replace("_", " ")
    if isinstance(value, bool):
        return key if value else f"no {key}"
    if isinstance(value, int | float):
        return f"{key} {value:g}"
    return f"{key} {value}" if key == "widths" else str(value)


def grouped(items: Iterable[tuple[Hashable, Item]]) -> dict[Any, list[Item]]:
    """The items by their key, in the order of first appearance."""
    found: dict[Any, list[Item]] = {}
    for key, item in items:
        found.setdefault(key, []).append(item)
    return found


def mean(values: Sequence[float]) -> float:
    """The arithmetic mean."""
    return math.fsum(values) / len(values)


def spread(values: Sequence[float]) -> float:
    """The standard deviation of the population that the values are a sample of; 0 for a single one."""
    if len(values) < 2:
        return 0.0
    middle = mean(values)
    return math.sqrt(math.fsum((value - middle) ** 2 for value in values) / (len(values) - 1))


def _is_proved_bound(row: Row) -> bool:
    if not is_number(row.get("value")) or row.get("status", "ok") != "ok" or not row.get("proved"):
        return False
    return row.get("kind") == "training" or (is_global(row) and row.get("side") != "lower")


def _measured(row: Row, accuracy: float | None, norm: str, found: Sequence[Row]) -> Measured:
    trained = [item["value"] for item in found if item.get("kind") == "training"]
    trivial = [item for item in found if item.get("verifier") == "trivial"]
    tightness = next((item["tightness"] for item in trivial if is_number(item.get("tightness"))), None)
    study, network = network_of(row)
    return Measured(
        study,
        network,
        group_of(row)[1],
        row.get("seed"),
        settings_of(row),
        norm,
        accuracy,
        next(iter([item["value"] for item in trivial] + trained), None),
        tightness,
        min((item["value"] for item in found), default=None),
    )


def _hashable(value: object) -> Hashable:
    return value if isinstance(value, Hashable) else str(value)
