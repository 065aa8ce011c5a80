"""Figures for people: the same in the terminal and in the report; empty for what is not known."""

from __future__ import annotations

import math


def number(value: object, digits: int = 4) -> str:
    """A figure for people; empty for none."""
    if not isinstance(value, int | float) or isinstance(value, bool) or math.isnan(value):
        return ""
    return f"{value:.{digits}g}"


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
