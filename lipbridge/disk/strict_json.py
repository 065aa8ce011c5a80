"""JSON: from files that may be hostile, and of values that may be anything."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor

#: How deep the JSON of a file may be nested.
MAX_NESTING = 500
_BRACKETS = re.compile(r'"(?:[^"\\]|\\.)*+"|[\[\]{}]')


def parse_json(text: str | bytes) -> Any:
    """Parse JSON from a file that may be hostile: no NaN or infinity, and no deeper than :data:`MAX_NESTING`.

    Python's own parser recurses in C, and where the recursion limit was raised a deep text ends the process.

    Raises:
        ValueError: for text that is no such JSON.
    """
    text = text.decode() if isinstance(text, bytes) else text
    depth = 0
    few = text.count("[") + text.count("{") <= MAX_NESTING  # as in the rows of a study, of which there are thousands
    for token in () if few else _BRACKETS.finditer(text):
        depth += {"[": 1, "{": 1, "]": -1, "}": -1}.get(token.group(), 0)
        if depth > MAX_NESTING:
            raise ValueError(f"it is nested more than {MAX_NESTING} deep")
    return json.loads(text, parse_constant=_no_constant)


def _no_constant(name: str) -> float:
    raise ValueError(f"it holds {name}")


def jsonable(value: Any) -> Any:
    """``value`` as JSON types; NaN and infinity become None, unknown objects their text."""
    if isinstance(value, Mapping):
        return {str(key): jsonable(item) for key, item in value.items()}  # type: ignore[reportUnknownVariableType]
    if isinstance(value, Tensor):
        return jsonable(value.tolist())  # type: ignore[reportUnknownMemberType]
    if isinstance(value, list | tuple | set | frozenset):
        return [jsonable(item) for item in value]  # type: ignore[reportUnknownVariableType]
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else None
    if value is None or isinstance(value, bool | int):
        return value
    return str(value)


__all__ = ["jsonable", "parse_json"]
