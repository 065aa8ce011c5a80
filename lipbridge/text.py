"""Figures for people: the same in the terminal and in the report, empty for what is not known; and those they type."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping


def number(value: object, digits: int = 4) -> str:
    """A figure for people; empty for none."""
    if not isinstance(value, int | float) or isinstance(value, bool) or math.isnan(value):
        return ""
    return f"{value:.{digits}g}"


#: Digits of a mean whose spread is smaller still.
_DIGITS = 6


def interval(middle: object, error: object, factor: float = 1.0) -> str:
    """A mean with its spread, to the spread's first digit (its second after a 1); the mean alone without a spread."""
    if not isinstance(middle, int | float) or not math.isfinite(middle):
        return ""
    if not isinstance(error, int | float) or not math.isfinite(error) or error <= 0:
        return number(factor * middle)
    place = math.floor(math.log10(factor * error))
    digits = max(0, (factor * error < 1.95 * 10.0**place) - place)
    if middle and digits > (most := _DIGITS - 1 - math.floor(math.log10(abs(factor * middle)))):
        return f"{factor * middle:.{max(most, 0)}f}"  # they agree in all digits that are worth showing
    return f"{factor * middle:.{digits}f} ± {factor * error:.{digits}f}"


def seconds(value: object) -> str:
    """A time for people, from milliseconds to hours."""
    if not isinstance(value, int | float) or math.isnan(value):
        return ""
    if value < 1:
        return f"{1000 * value:.3g} ms"
    return f"{value:.3g} s" if value < 120 else f"{value / 60:.3g} min"


def percent(value: object) -> str:
    """A share for people."""
    return f"{100 * value:.2f} %" if isinstance(value, int | float) and not math.isnan(value) else ""


def mebibytes(value: object) -> str:
    """A size for people."""
    return f"{value / 2**20:.0f} MiB" if isinstance(value, int | float) else ""


def duration(text: str) -> float | None:
    """Seconds of ``90 s``, ``5 min``, ``2 h``, ``1 d`` or a bare number; None for anything else."""
    return _amount(text, _SECONDS, 1)


def size(text: str) -> int | None:
    """Bytes of ``512M``, ``8G``, ``8 GiB`` or a bare number of MiB; None for anything else."""
    value = _amount(text, {f"{unit}{end}": 2**power for unit, power in _POWERS for end in ("", "b", "ib")}, 2**20)
    return None if value is None else int(value)


_SECONDS = {"s": 1, "seconds": 1, "min": 60, "minutes": 60, "h": 3600, "hours": 3600, "d": 86400, "days": 86400}
_POWERS = (("k", 10), ("m", 20), ("g", 30), ("t", 40))


def _amount(text: str, units: Mapping[str, int], bare: int) -> float | None:
    match = re.fullmatch(r"(\d+\.?\d*(?:e\d+)?)\s*([a-z]*)", text.strip().lower(), re.ASCII)
    unit = None if match is None else units.get(match[2], None if match[2] else bare)
    return None if match is None or unit is None else float(match[1]) * unit
