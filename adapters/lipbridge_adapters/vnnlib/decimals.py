"""Doubles as fixed decimals, exactly or rounded to a side: VNN-LIB has no exponents."""

from __future__ import annotations

import math
from decimal import ROUND_CEILING, ROUND_FLOOR, Context, Decimal

#: Digits behind the point, and significant ones of a box's half width, that are kept.
PLACES, SIGNIFICANT = 20, 8
#: A double has fewer digits than that.
_EXACT = Context(prec=1200)


def exactly(value: float) -> str:
    """All digits, with a point."""
    return _told(Decimal(value))


def below(value: float, places: int = PLACES) -> str:
    """The largest number of so many places that is not above a finite value."""
    return _rounded(value, places, ROUND_FLOOR)


def above(value: float, places: int = PLACES) -> str:
    """The smallest number of so many places that is not below a finite value."""
    return _rounded(value, places, ROUND_CEILING)


def places_for(half_width: float) -> int:
    """Digits behind the point that leave a box of this half width as it is, but for a part in 10^8."""
    if not half_width > 0.0:
        return PLACES
    return max(PLACES, SIGNIFICANT - math.floor(math.log10(half_width)))


def _rounded(value: float, places: int, rounding: str) -> str:
    return _told(Decimal(value).quantize(Decimal(1).scaleb(-places, _EXACT), rounding, _EXACT))


def _told(value: Decimal) -> str:
    text = format(value, "f")
    if "." in text:
        text = text.rstrip("0")
        text += "0" if text.endswith(".") else ""
    else:
        text += ".0"
    return "0.0" if text == "-0.0" else text


__all__ = ["above", "below", "exactly", "places_for"]
