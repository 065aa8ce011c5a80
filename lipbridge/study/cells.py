"""A cell: one piece of a study's work, in JSON words alone, and the row that comes of it.

A cell travels to another process or another machine and is found again after a crash by its id, a hash of all that
fixes its result.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from typing import Any, cast

#: What a finished cell leaves: JSON alone.
Row = dict[str, Any]
#: Goes into every id: raised when the same words come to mean something else.
_FORMAT = 1
#: Where a thing is to be found; what it holds is told by the ``sha256`` beside it.
_PLACES = ("name", "path")
#: What people call a thing.
_LABELS = ("verifier_label",)


class Kind(StrEnum):
    """What a cell does: train a network, open an external one, bound one, certify its predictions."""

    TRAINING = "training"
    MODEL = "model"
    BOUND = "bound"
    CERTIFICATE = "certificate"


@dataclass(frozen=True)
class Limits:
    """Of a cell: wall-clock seconds, and bytes of resident memory of its process and all that it starts."""

    seconds: float
    memory: int


@dataclass(frozen=True, eq=False)
class Cell:
    """One piece of work.

    Attributes:
        id: 16 hexadecimal digits, equal for equal work; see :func:`make_cell`.
        kind: what is done.
        words: JSON: what it is done with.
        network: its network's name, which is unique in the study.
        group: that name without the seed: equal for all seeds of one setting.
        label: a line for people.
        limits: enforced by whoever runs it.
        threads: of its process.
        after: ids of the cells that it needs: they must have succeeded.
        seed: of the network's training, if it is trained here.
        settings: what the study says of the network, by name.
    """

    id: str
    kind: Kind
    words: Mapping[str, Any]
    network: str
    group: str
    label: str
    limits: Limits
    threads: int = 1
    after: tuple[str, ...] = ()
    seed: int | None = None
    settings: Mapping[str, Any] = field(default_factory=lambda: {})

    def to_json(self) -> dict[str, Any]:
        """JSON types only."""
        return {**asdict(self), "kind": self.kind.value, "after": list(self.after)}

    @staticmethod
    def from_json(found: Mapping[str, Any]) -> Cell:
        """What :meth:`to_json` gave.

        Raises:
            KeyError, TypeError, ValueError: for what is no cell.
        """
        facts = dict(found)
        limits = Limits(**facts.pop("limits"))
        kind, after = Kind(facts.pop("kind")), tuple(facts.pop("after"))
        cell = Cell(kind=kind, after=after, limits=limits, **facts)
        _require(cell)
        return cell


def make_cell(
    kind: Kind,
    words: Mapping[str, Any],
    *,
    network: str,
    label: str,
    limits: Limits,
    threads: int = 1,
    after: Sequence[str] = (),
    group: str | None = None,
    seed: int | None = None,
    settings: Mapping[str, Any] | None = None,
) -> Cell:
    """A cell with its id: a hash of its kind, its words, its threads, the cells that it needs, and its limits.

    Names and labels are not part of it, and neither are the limits of a training or a reading, whose result they cannot
    change.
    Where words name a file or a dataset and tell its ``sha256``, that counts, and its ``name`` and ``path`` do not.

    Law: equal on every machine, in every folder, and whatever else stands in the study.
    """
    own_words = {name: value for name, value in words.items() if name not in _LABELS}
    own = [limits.seconds, limits.memory] if kind in (Kind.BOUND, Kind.CERTIFICATE) else None
    facts = {"format": _FORMAT, "kind": kind.value, "words": _contents(own_words), "threads": threads}
    told = canonical({**facts, "after": sorted(after), "limits": own})
    return Cell(
        id=hashlib.sha256(told).hexdigest()[:16],
        kind=kind,
        words=words,
        network=network,
        group=network if group is None else group,
        label=label,
        limits=limits,
        threads=threads,
        after=tuple(after),
        seed=seed,
        settings={} if settings is None else settings,
    )


def _require(cell: Cell) -> None:
    """What was read is to be trusted with names of files: an id has no slash in it."""
    texts: list[object] = [cell.id, cell.network, cell.group, cell.label, *cell.after]
    numbers: list[object] = [cell.limits.seconds, cell.limits.memory, cell.threads]
    if not all(isinstance(text, str) for text in texts) or re.fullmatch(r"[0-9a-f]{16}", cell.id) is None:
        raise ValueError(f"{cell.id!r} is the id of no cell")
    if not all(isinstance(number, int | float) and number > 0 for number in numbers):
        raise ValueError(f"cell {cell.id} has no limits")
    if not all(isinstance(table, Mapping) for table in cast(list[object], [cell.words, cell.settings])):
        raise TypeError(f"cell {cell.id} has no words")


def canonical(value: object) -> bytes:
    """JSON in one form: sorted keys, no spaces."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()


def place_of(words: object) -> str:
    """Where a dataset, an architecture or a file that is named in words is found: its name, or its path."""
    if isinstance(words, str):
        return words
    found = cast(Mapping[str, object], words)
    return str(found["name"] if "name" in found else found["path"])


def _contents(value: object) -> object:
    if isinstance(value, Mapping):
        found = cast(Mapping[str, object], value)
        places = _PLACES if found.get("sha256") is not None else ()
        return {name: _contents(item) for name, item in found.items() if name not in places}
    if isinstance(value, list | tuple):
        return [_contents(item) for item in cast(Sequence[object], value)]
    return value


__all__ = ["Cell", "Kind", "Limits", "Row", "canonical", "make_cell", "place_of"]
