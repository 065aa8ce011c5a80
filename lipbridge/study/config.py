"""Study files: TOML that says what is trained, what is bounded and by whom.

>>> study = read_study("mnist.toml")          # every fault with its line and its field, or none
>>> plan = make_plan(study)                   # lipbridge.study.plan: the cells
"""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast, get_args

from pydantic import ValidationError

from lipbridge import checks
from lipbridge.disk import toml_lines
from lipbridge.errors import StudyFileError
from lipbridge.study.faults import Faults, from_pydantic
from lipbridge.study.file_checks import check_table, check_together
from lipbridge.study.file_tables import StudyTable, Table

#: What a study is called that has neither a name nor a file.
UNNAMED = "study"


@dataclass(frozen=True, eq=False)
class StudyFile:
    """A study file that was read and has no fault.

    Attributes:
        path: the file; relative paths in it are relative to its folder, or to what its key ``folder`` says.
        text: as it was read.
        name: its own, or the file's.
        tables: what it says, see :mod:`lipbridge.study.file_tables`.
        raw: the same as TOML has it.
        lines: where each key stands.
        notes: what a user should know before it runs.
    """

    path: Path
    text: str
    name: str
    tables: StudyTable
    raw: Mapping[str, Any] = field(repr=False)
    lines: Mapping[toml_lines.Path, int] = field(repr=False)
    notes: tuple[str, ...] = ()

    @property
    def folder(self) -> Path:
        """What relative paths in the file are relative to."""
        return (self.path.parent / (self.tables.folder or "")).absolute()

    def faults(self) -> Faults:
        """For checks that come later, with data at hand."""
        return Faults(str(self.path), self.lines)

    def kept(self) -> str:
        """The text to keep with the results: its name and relative paths in it mean the same from any folder."""
        text = self._placed()
        return text if self.tables.name is not None else f"name = {json.dumps(self.name, ensure_ascii=False)}\n{text}"

    def _placed(self) -> str:
        if self.tables.folder is not None and Path(self.tables.folder).is_absolute():
            return self.text
        line = f"folder = {json.dumps(str(self.folder), ensure_ascii=False)}  # that of {self.path.name}"
        own = self.lines.get(("folder",))
        if own is None:
            return f"{line}\n{self.text}"
        lines = self.text.split("\n")  # as TOML counts them
        return "\n".join([*lines[: own - 1], line, *lines[own:]])


def read_study(path: Path | str) -> StudyFile:
    """Read a study file and check all that can be checked without data.

    Raises:
        StudyFileError: with up to ten faults, each with its line and its field.
    """
    file = checks.path(path, "path")
    try:
        text = file.read_text(encoding="utf-8")
    except OSError as error:
        begin = ": `lipbridge study example` prints one to begin with" if isinstance(error, FileNotFoundError) else ""
        raise StudyFileError(str(file), [f"it cannot be read ({error.strerror}){begin}"]) from None
    except UnicodeDecodeError:
        raise StudyFileError(str(file), ["it is not text in UTF-8, as TOML is"]) from None
    return parse_study(text, file)


def parse_study(text: str, path: Path | str = f"{UNNAMED}.toml") -> StudyFile:
    """The same of a text; relative paths in it are relative to the folder of ``path``, which need not be there.

    Raises:
        StudyFileError: as :func:`read_study`.
    """
    path = Path(path)
    text = text.replace("\r\n", "\n")
    try:
        raw = tomllib.loads(text)
        lines = toml_lines.key_lines(text)
    except tomllib.TOMLDecodeError as error:
        raise StudyFileError(str(path), [_syntax(error)]) from None
    except RecursionError:
        raise StudyFileError(str(path), ["its tables are nested too deeply"]) from None
    faults = Faults(str(path), lines)
    folder = raw.get("folder")
    base = (path.parent / (folder if isinstance(folder, str) else "")).absolute()
    tables = _tables(raw, faults)
    for place, table in _parts(raw):
        check_table(place, table, faults, base)
    notes = () if tables is None else check_together(tables, faults)
    faults.done()
    assert tables is not None
    return StudyFile(path, text, tables.name or path.stem or UNNAMED, tables, raw, lines, notes)


def _tables(raw: Mapping[str, Any], faults: Faults) -> StudyTable | None:
    try:
        return StudyTable.model_validate(raw)
    except ValidationError as error:
        from_pydantic(faults, error, _known)
        return None


def _parts(raw: Mapping[str, Any]) -> Iterator[tuple[toml_lines.Path, Table]]:
    """The tables of arrays that are well-formed, each with its place."""
    for key, items in raw.items():
        kinds = _classes(StudyTable.model_fields[key].annotation) if key in StudyTable.model_fields else []
        for place, item in enumerate(cast(list[object], items) if kinds and isinstance(items, list) else ()):
            with suppress(ValidationError):
                yield (key, place), kinds[0].model_validate(_without_faults(kinds[0], item))


def _without_faults(kind: type[Table], item: object) -> object:
    """A table without the keys that have a fault of their own, so that what the others mean is checked all the same."""
    try:
        kind.model_validate(item)
    except ValidationError as error:
        wrong = {fault["loc"][0] for fault in error.errors() if fault["loc"]}
        if isinstance(item, dict):
            return {key: value for key, value in cast(dict[str, object], item).items() if key not in wrong}
    return item


def _known(path: toml_lines.Path) -> Iterable[str]:
    """The keys of the table at a path."""
    table: type[Table] = StudyTable
    for part in path:
        if isinstance(part, str):
            kinds = _classes(table.model_fields[part].annotation)
            if not kinds:
                return ()
            table = kinds[0]
    return table.model_fields


def _classes(annotation: object) -> list[type[Table]]:
    if isinstance(annotation, type) and issubclass(annotation, Table):
        return [annotation]
    return [kind for inner in get_args(annotation) for kind in _classes(inner)]


def _syntax(error: tomllib.TOMLDecodeError) -> str:
    match = re.fullmatch(r"(.*) \(at (?:line (\d+), column (\d+)|(end of document))\)", str(error), re.DOTALL)
    if match is None or match[4]:
        return f"at its end: {match[1] if match else error}"
    twice = re.fullmatch(r"Cannot declare \((.*?),?\) twice", match[1])
    words = f"[{twice[1].replace(chr(39), '').replace(', ', '.')}] stands there twice" if twice else match[1]
    return f"line {match[2]}, column {match[3]}: {words}"


__all__ = ["StudyFile", "parse_study", "read_study"]
