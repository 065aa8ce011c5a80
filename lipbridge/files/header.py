"""The header of a model file and its limits: what each value in it may be, before anything is made of it."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, cast

#: Limits of what is read: bytes of the header, features of a layer, coordinates of a node, layers, depth, terms.
MAX_HEADER = 16 * 2**20
MAX_WIDTH = 2**20
MAX_SIZE = 2**30
MAX_LAYERS = 10_000
MAX_DEPTH = 16
MAX_TERMS = 1024
#: Characters of a fraction in a term.
MAX_DIGITS = 2600
MAX_TEXT = 1024

DAMAGED = "It is damaged, or lipbridge did not write it; save the network again"


class Fault(Exception):
    """A short fact about a file, and the way out; the public functions add the file's name."""

    def __init__(self, fact: str, way_out: str = DAMAGED) -> None:
        super().__init__(fact)
        self.way_out = way_out


def as_object(value: Any, *keys: str) -> dict[str, Any]:
    """A JSON object with exactly ``keys`` (any, if none are given)."""
    if not isinstance(value, dict) or (keys and set(cast(dict[str, Any], value)) != set(keys)):
        raise Fault(f"its header lacks an object of {', '.join(keys) or 'any keys'}, or it has more")
    return cast(dict[str, Any], value)


def as_list(value: Any, most: int = MAX_LAYERS) -> list[Any]:
    if not isinstance(value, list) or len(cast(list[Any], value)) > most:
        raise Fault(f"its header lacks a list of at most {most} items")
    return cast(list[Any], value)


def as_text(value: Any) -> str:
    if not isinstance(value, str) or len(value) > MAX_TEXT:
        raise Fault(f"its header lacks a text of at most {MAX_TEXT} characters")
    return value


def as_flag(value: Any) -> bool:
    if not isinstance(value, bool):
        raise Fault("its header lacks a truth value")
    return value


def as_integer(value: Any, least: int = -MAX_SIZE, most: int = MAX_SIZE) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
        raise Fault(f"its header lacks a whole number from {least} to {most}")
    return value


def as_width(value: Any) -> int:
    return as_integer(value, 1, MAX_WIDTH)


def as_axis(value: Any) -> int:
    return as_integer(value, -8, 8)


def as_real(value: Any) -> float:
    if not isinstance(value, int | float) or isinstance(value, bool) or not math.isfinite(value):
        raise Fault("its header lacks a finite number")
    return float(value)


def as_probability(value: Any) -> float:
    if not 0.0 <= as_real(value) <= 1.0:
        raise Fault("its header holds a probability outside [0, 1]")
    return float(value)


def as_positive(value: Any) -> float:
    if as_real(value) <= 0.0:
        raise Fault("its header holds a number that should be above 0")
    return float(value)


__all__ = [
    "DAMAGED",
    "MAX_DEPTH",
    "MAX_DIGITS",
    "MAX_HEADER",
    "MAX_LAYERS",
    "MAX_SIZE",
    "MAX_TERMS",
    "MAX_TEXT",
    "MAX_WIDTH",
    "Fault",
    "as_axis",
    "as_flag",
    "as_integer",
    "as_list",
    "as_object",
    "as_positive",
    "as_probability",
    "as_real",
    "as_text",
    "as_width",
]


Check = Callable[[Any], Any]
