"""The lists of changes, read and checked."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
LISTS = Path(__file__).with_name("changes")
#: Which test noticed each change last: {file: {name: node id}}. It saves time and decides nothing.
NOTICED_BY = Path(__file__).with_name("noticed_by.json")
KINDS = ("logic", "rounding")


class StaleList(ValueError):
    """A list that does not fit the tree: what it would change, or run, is not there."""


@dataclass(frozen=True)
class Change:
    """One change of one file.

    Attributes:
        file: of the code, relative to the root.
        name: unique in the file.
        kind: "logic", or "rounding" if it drops no more than a rounding error.
        before: the text to replace, once in the file.
        after: what replaces it.
        tests: files or node ids of pytest, in the order in which they run.
        equivalent: why no input can show the change; None if one can.
        likely: the test among ``tests`` that noticed the change before, which runs first; None if none did.
    """

    file: str
    name: str
    kind: str
    before: str
    after: str
    tests: tuple[str, ...]
    equivalent: str | None = None
    likely: str | None = None

    def applied_to(self, text: str) -> str:
        """The file's text after the change.

        Raises:
            StaleList: unless the text to replace occurs exactly once and the change changes something.
        """
        count = text.count(self.before)
        if count != 1 or self.before == self.after:
            raise StaleList(f"{self.file}: `{self.name}`: its text occurs {count} times, not once: {self.before!r}")
        return text.replace(self.before, self.after)


def remembered(path: Path = NOTICED_BY) -> dict[str, dict[str, str]]:
    """Which test noticed each change last, by file and name."""
    return json.loads(path.read_text()) if path.exists() else {}


def remember(noticed: Iterable[tuple[Change, str]], path: Path = NOTICED_BY) -> None:
    """Write down which tests noticed changes, beside what is known of others."""
    known = remembered(path)
    for change, test in noticed:
        known.setdefault(change.file, {})[change.name] = test
    path.write_text(json.dumps(known, indent=1, sort_keys=True) + "\n")


def read(
    lists: Sequence[Path], root: Path = ROOT, noticed_by: Mapping[str, Mapping[str, str]] | None = None
) -> list[Change]:
    """All changes of the lists, checked against the tree at ``root``.

    Args:
        lists: files of changes.
        root: of the tree.
        noticed_by: as :func:`remembered`; a test that a list does not name any more is left out.

    Raises:
        StaleList: for a change that does not fit, a test file that is not there, or a name that occurs twice.
    """
    changes: list[Change] = []
    for path in lists:
        data = tomllib.loads(path.read_text())
        text = (root / data["file"]).read_text()
        for row in data["change"]:
            tests = tuple(row.pop("tests", data["tests"]))
            likely = (noticed_by or {}).get(data["file"], {}).get(row["name"])
            if likely is not None and not any(likely == t or likely.startswith((f"{t}::", f"{t}[")) for t in tests):
                likely = None
            change = Change(file=data["file"], tests=tests, likely=likely, **row)
            if change.kind not in KINDS:
                raise StaleList(f"{path.name}: `{change.name}`: kind must be one of {KINDS}, not {change.kind!r}")
            missing = [test for test in tests if not (root / test.split("::")[0]).exists()]
            if missing:
                raise StaleList(f"{path.name}: `{change.name}`: there is no {missing[0]}")
            change.applied_to(text)
            changes.append(change)
        own = [change.name for change in changes if change.file == data["file"]]
        if len(set(own)) < len(own):
            raise StaleList(f"{path.name}: two changes have one name: {sorted(own)}")
    return changes
