"""On which line of a TOML file each key stands, which Python's own reader does not tell.

The text is one that ``tomllib`` has read, so the scan need not find faults: it follows headers, keys and the ends of
values, and leaves it to ``tomllib`` what they mean.
"""

from __future__ import annotations

import re
import tomllib
from bisect import bisect_right

#: Names and, in arrays, places: ``("networks", 0, "grid", "penalty")``.
Path = tuple[str | int, ...]

_BLANK = re.compile(r"[ \t]*")
_GAP = re.compile(r"(?:[ \t\r\n]|#[^\n]*)*")
_KEY = re.compile(r"[A-Za-z0-9_-]+|\"(?:[^\"\\\n]|\\.)*\"|'[^'\n]*'")
_STRINGS = (
    re.compile(r'"""(?:[^\\]|\\.)*?"""(?!")', re.DOTALL),
    re.compile(r"'''.*?'''(?!')", re.DOTALL),
    re.compile(r'"(?:[^"\\\n]|\\.)*"'),
    re.compile(r"'[^'\n]*'"),
)
_PLAIN = re.compile(r"[^,\]}#\n]+")


def key_lines(text: str) -> dict[Path, int]:
    """The line, counted from 1, of each table, key and item of an array in a TOML text that ``tomllib`` reads.

    Law: its paths are those of what ``tomllib.loads(text)`` gives, and a path's line is where it is first named.
    """
    return _Scan(text).lines()


class _Scan:
    def __init__(self, text: str) -> None:
        self.text, self.at = text, 0
        self.starts = [0, *(match.end() for match in re.finditer("\n", text))]
        self.found: dict[Path, int] = {}
        self.tables: dict[Path, int] = {}  # how many tables each array of tables has so far

    def lines(self) -> dict[Path, int]:
        table: Path = ()
        self._skip(_GAP)
        while self.at < len(self.text):
            if self._takes("[["):
                table = self._header(array=True)
                self._takes("]]")
            elif self._takes("["):
                table = self._header(array=False)
                self._takes("]")
            else:
                self._pair(table)
            self._skip(_GAP)
        return self.found

    def _header(self, *, array: bool) -> Path:
        parts, line = self._key(), self._line()
        path: Path = ()
        for place, part in enumerate(parts):
            path = (*path, part)
            self.found.setdefault(path, line)
            if array and place == len(parts) - 1:
                self.tables[path] = self.tables.get(path, 0) + 1
            if path in self.tables:
                path = (*path, self.tables[path] - 1)
                self.found.setdefault(path, line)
        return path

    def _pair(self, table: Path) -> None:
        line, path = self._line(), table
        for part in self._key():
            path = (*path, part)
            self.found.setdefault(path, line)
        self._takes("=")
        self._skip(_BLANK)
        self._value(path)

    def _key(self) -> list[str]:
        parts: list[str] = []
        while True:
            self._skip(_BLANK)
            word = self._skip(_KEY)
            parts.append(tomllib.loads(f"key = {word}")["key"] if word[:1] in ("'", '"') else word)
            self._skip(_BLANK)
            if not self._takes("."):
                return parts

    def _value(self, path: Path) -> None:
        if self._takes("["):
            self._items(path)
        elif self._takes("{"):
            self._skip(_GAP)
            while not self._takes("}"):
                self._pair(path)
                self._skip(_GAP)
                self._takes(",")
                self._skip(_GAP)
        elif not any(self._skip(pattern) for pattern in _STRINGS):
            self._skip(_PLAIN)

    def _items(self, path: Path) -> None:
        self._skip(_GAP)
        count = 0
        while not self._takes("]"):
            self.found[(*path, count)] = self._line()
            self._value((*path, count))
            count += 1
            self._skip(_GAP)
            self._takes(",")
            self._skip(_GAP)

    def _line(self) -> int:
        return bisect_right(self.starts, self.at)

    def _skip(self, pattern: re.Pattern[str]) -> str:
        match = pattern.match(self.text, self.at)
        if match is None:
            return ""
        self.at = match.end()
        return match[0]

    def _takes(self, word: str) -> bool:
        taken = self.text.startswith(word, self.at)
        self.at += len(word) if taken else 0
        return taken


__all__ = ["Path", "key_lines"]
