"""The words that every other file shares: norms and the names of a bound's side, quantity and status."""

from __future__ import annotations

import math
import numbers
from enum import StrEnum
from typing import Literal

from lipbridge.errors import InvalidArgument

#: The exponent of a vector norm: 1, 2 or "inf".
Norm = Literal[1, 2, "inf"]
#: All norms, in the order in which the norm of a fixed vector decreases.
NORMS: tuple[Norm, Norm, Norm] = (1, 2, "inf")


def as_norm(value: object, parameter: str = "norm") -> Norm:
    """Read a norm from 1, 2, ``math.inf``, ``"1"``, ``"2"``, ``"inf"`` or ``"l2"``-like spellings.

    Raises:
        InvalidArgument: for anything else.
    """
    if isinstance(value, bool) or not isinstance(value, str | numbers.Real):
        raise InvalidArgument(parameter, "be 1, 2 or inf", value)
    if isinstance(value, numbers.Integral) and value not in (1, 2):
        raise InvalidArgument(parameter, "be 1, 2 or inf", value)  # it may have more digits than Python agrees to print
    text = str(value).strip().lower().removeprefix("l").removeprefix("_")
    if text in ("1", "1.0"):
        return 1
    if text in ("2", "2.0"):
        return 2
    if text in ("inf", "infinity", "∞") or value == math.inf:
        return "inf"
    raise InvalidArgument(parameter, "be 1, 2 or inf", value)


def exponent(norm: Norm) -> float:
    """The norm as a number, for functions such as ``torch.linalg.vector_norm``."""
    return math.inf if norm == "inf" else float(norm)


def dual(norm: Norm) -> Norm:
    """The dual norm: 1 and inf are each other's dual, 2 is its own."""
    return {1: "inf", 2: 2, "inf": 1}[norm]  # type: ignore[return-value]


class Side(StrEnum):
    """On which side of the true constant a value lies."""

    UPPER = "upper"
    LOWER = "lower"
    EXACT = "exact"


class Quantity(StrEnum):
    """What a value bounds.

    ``lipschitz``: sup over pairs in the region of ||f(x) - f(y)||_q / ||x - y||_p.
    ``deviation``: for a ball B(c, r), sup over x in it of ||f(x) - f(c)||_q / r. It never exceeds the first.
    """

    LIPSCHITZ = "lipschitz"
    DEVIATION = "deviation"


class Status(StrEnum):
    """How a computation ended."""

    OK = "ok"
    TIMEOUT = "timeout"
    MEMORY = "memory"
    UNSUPPORTED = "unsupported"
    MISSING = "missing"
    FAILED = "failed"
    UNSOUND = "unsound"

    @property
    def advice(self) -> str:
        """What a user can do about it."""
        return {
            Status.OK: "",
            Status.TIMEOUT: "Raise the time limit, or use a smaller network.",
            Status.MEMORY: "Raise the memory limit, or use a smaller network.",
            Status.UNSUPPORTED: "This verifier cannot take this problem; the detail says why.",
            Status.MISSING: "Install the tool; the detail gives the command.",
            Status.FAILED: "The tool ended with an error; the detail gives it.",
            Status.UNSOUND: "A witness contradicts this value: do not use it, and report it to the tool's authors.",
        }[self]
