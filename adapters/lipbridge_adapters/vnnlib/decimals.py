"""Doubles as fixed decimals, exactly: VNN-LIB has no exponents, and every double ends after some digits."""

from __future__ import annotations

from decimal import Decimal


def exactly(value: float) -> str:
    """All digits of a finite value, with a point."""
    text = format(Decimal(value), "f")
    text = text.rstrip("0") if "." in text else f"{text}."
    text += "0" if text.endswith(".") else ""
    return "0.0" if text == "-0.0" else text


__all__ = ["exactly"]
