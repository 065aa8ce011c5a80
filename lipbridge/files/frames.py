"""Rows of studies as a table: a frame of pandas or polars with the same columns and kinds, whichever is installed."""

from __future__ import annotations

import importlib
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, cast

from lipbridge.disk.strict_json import parse_json
from lipbridge.errors import InvalidArgument, MissingDependency
from lipbridge.files.rows import PLAN, ROWS, load_rows

Row = Mapping[str, Any]
Frame = Literal["pandas", "polars"]
Kind = Literal["text", "float", "int", "bool"]

COMMAND = 'pip install "lipbridge[frames]"'
#: The columns that every table has, in this order, and what they hold; those that are all empty have no other home.
COLUMNS: Mapping[str, Kind] = {
    **{"study": "text", "network": "text", "group": "text", "seed": "int", "kind": "text", "norm": "text"},
    **{"output_norm": "text", "verifier": "text", "verifier_label": "text", "quantity": "text", "region": "text"},
    **{"side": "text", "value": "float", "proved": "bool", "tightness": "float", "accuracy": "float"},
    **{"certified_accuracy": "float", "radius": "float", "points": "int", "status": "text", "detail": "text"},
    **{"seconds": "float", "total_seconds": "float", "cpu_seconds": "float", "memory": "int", "gpu_memory": "int"},
    **{"threads": "int", "load": "float", "data": "text", "arch": "text", "architecture": "text"},
    **{"parameters": "int", "penalty": "float", "epochs": "int", "epoch_seconds": "float"},
    **{"bound_before_rescaling": "float", "folder": "text", "path": "text", "method": "text"},
    **{"time_limit": "float", "memory_limit": "int", "host": "text", "date": "text", "version": "text", "cell": "text"},
}
#: Mappings inside a row, which become columns such as ``settings.penalty``.
NESTED = ("settings", "options", "extra")
#: What only a check of the row needs.
DROPPED = ("witness",)


def read_rows(*paths: str | os.PathLike[str], frame: Frame | None = None, flatten: bool = True) -> Any:
    """The rows of one or more studies as a frame, a row each, with the column ``study``.

    Args:
        paths: folders of studies, of which the rows of the last plan count; files such as their ``rows.jsonl``, which
            have those of earlier plans too; or what ``compare --json`` printed.
        frame: ``pandas`` or ``polars``; the one that is installed, pandas first, if not given.
        flatten: settings, options and extras as columns (``settings.penalty``); else as JSON text, a column each.

    Returns:
        A frame of pandas with nullable dtypes, or of polars. Witnesses are left out.

    Raises:
        MissingDependency: if it is not installed.
        InvalidArgument: for a path without rows.
    """
    return frame_of(load_all(paths), frame, flatten)


def load_all(paths: Iterable[str | os.PathLike[str]]) -> list[dict[str, Any]]:
    """The rows of several places. A study is named as its rows say, else by its folder; no two places share a name.

    Raises:
        InvalidArgument: for a path without rows, or if none is given.
    """
    places = list(dict.fromkeys(Path(path) for path in paths))
    if not places:
        raise InvalidArgument("paths", "name the folder of a study or a file of rows", places)
    found: list[dict[str, Any]] = []
    taken: dict[str, Path] = {}
    for place in places:
        for row in _load(place):
            name = str(row.get("study") or (place if place.is_dir() else place.absolute().parent).resolve().name)
            if taken.setdefault(name, place) != place:
                name = f"{name} ({place})"
            found.append(row | {"study": name})
    return found


def frame_of(rows: Sequence[Row], frame: Frame | None = None, flatten: bool = True) -> Any:
    """JSON rows as a frame, as :func:`read_rows` gives it."""
    name, package = _package(frame)
    columns = {key: _column(values, COLUMNS.get(key)) for key, values in _columns(rows, flatten).items()}
    if name == "polars":
        types = {"text": package.String, "float": package.Float64, "int": package.Int64, "bool": package.Boolean}
        return package.DataFrame([package.Series(key, data, types[kind]) for key, (kind, data) in columns.items()])
    types = {"text": "string", "float": "Float64", "int": "Int64", "bool": "boolean"}
    series = {key: package.Series(data, dtype=types[kind]) for key, (kind, data) in columns.items()}
    return package.DataFrame(series)


def require_pandas() -> Any:
    """The package pandas, which writes tables.

    Raises:
        MissingDependency: with the command that installs it.
    """
    return _package("pandas")[1]


def _load(place: Path) -> list[dict[str, Any]]:
    expected = f"be a study's folder (it holds {ROWS}) or a file of rows"
    try:
        if place.suffix == ".json" and not place.is_dir():
            found: Any = parse_json(place.read_bytes())
            rows: list[Any] = cast(list[Any], found) if isinstance(found, list) else []
            rows = [row for row in rows if isinstance(row, dict) and "network" in row]
        else:
            rows = _of_plan(place, load_rows(place))
    except InvalidArgument:
        raise InvalidArgument("paths", expected, str(place)) from None
    except (OSError, ValueError) as error:
        why = error.strerror if isinstance(error, OSError) else str(error)
        raise InvalidArgument("paths", f"{expected} ({why})", str(place)) from None
    if not rows:
        raise InvalidArgument("paths", f"{expected}, with a row in it", str(place))
    return rows


def _of_plan(place: Path, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Of a study's folder the rows of its last plan, where it has one."""
    if not place.is_dir() or not (place / PLAN).exists():
        return rows
    try:
        ids = {str(cell["id"]) for cell in parse_json((place / PLAN).read_bytes())["cells"]}
    except (ValueError, TypeError, LookupError):
        return rows
    return [row for row in rows if ids & {str(row.get("cell")), str(row.get("restates"))}]


def _package(frame: str | None) -> tuple[str, Any]:
    if frame not in (None, "pandas", "polars"):
        raise InvalidArgument("frame", "be pandas or polars", frame)
    for name in ("pandas", "polars") if frame is None else (frame,):
        try:
            return name, importlib.import_module(name)
        except ImportError:
            continue
    command = "pip install polars" if frame == "polars" else COMMAND
    raise MissingDependency(f"{frame or 'pandas'}, which makes frames of rows,", command)


def _columns(rows: Sequence[Row], flatten: bool) -> dict[str, list[Any]]:
    """Every column with a value for each row: the known ones first, then others in the order of their first row."""
    flat = [_flat(row, flatten) for row in rows]
    keys = dict.fromkeys([*COLUMNS, *(key for row in flat for key in row if "." not in key)])
    keys |= dict.fromkeys(sorted(key for row in flat for key in row if "." in key))
    return {key: [row.get(key) for row in flat] for key in keys}


def _flat(row: Row, flatten: bool) -> dict[str, Any]:
    found = {key: value for key, value in row.items() if key not in (*DROPPED, *NESTED)}
    for key in NESTED:
        inner: Mapping[str, Any] = row.get(key) or {}
        if flatten:
            found |= {f"{key}.{name}": value for name, value in inner.items()}
        else:
            found[key] = inner
    return found


def _column(values: Sequence[Any], kind: Kind | None) -> tuple[Kind, list[Any]]:
    """The column's kind and values: text wherever they are not all of one kind, or not of the known one."""
    known = [value for value in values if value is not None]
    if all(isinstance(value, bool) for value in known) and (known or kind == "bool"):
        return "bool", list(values)
    numbers = all(isinstance(value, int | float) and not isinstance(value, bool) for value in known)
    if kind != "text" and numbers and (known or kind is not None):
        if kind == "float" or any(isinstance(value, float) and not value.is_integer() for value in known):
            return "float", [None if value is None else float(value) for value in values]
        if (kind == "int" or all(isinstance(value, int) for value in known)) and all(abs(v) < 2**63 for v in known):
            return "int", [None if value is None else int(value) for value in values]
        return "float", [None if value is None else float(value) for value in values]
    return "text", [value if value is None or isinstance(value, str) else json.dumps(value) for value in values]
