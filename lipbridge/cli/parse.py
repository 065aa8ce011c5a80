"""Values of options: lists and sizes as people type them, each fault named by its option."""

from __future__ import annotations

import math
from collections.abc import Sequence

from lipbridge.errors import InvalidArgument
from lipbridge.text import size


def names(text: str, option: str) -> list[str]:
    """``a,b`` as a list without repetitions."""
    found = [item.strip() for item in text.split(",") if item.strip()]
    if not found:
        raise InvalidArgument(option, "be one name or several with commas between", text)
    return list(dict.fromkeys(found))


def chosen(text: str, option: str, known: Sequence[str]) -> list[str]:
    """``a,b`` as a list of known words; an empty text is none."""
    found = [item.strip() for item in text.split(",") if item.strip()]
    for item in found:
        if item not in known:
            raise InvalidArgument(option, f"be of {', '.join(known)}, with commas between", item)
    return list(dict.fromkeys(found))


def widths(text: str) -> list[int]:
    """``256,256`` as whole numbers of at least 1; an empty text is no hidden layer."""
    found = [item.strip() for item in text.split(",")] if text.strip() else []
    if not all(item.isascii() and item.isdigit() and int(item) >= 1 for item in found):
        raise InvalidArgument("--widths", "be whole numbers of at least 1 with commas between", text)
    return [int(item) for item in found]


def shape(text: str | None, option: str = "--input-shape") -> tuple[int, ...] | None:
    """``3,32,32`` as the shape of one input; None if it is not given."""
    if text is None:
        return None
    found = [item.strip() for item in text.split(",")]
    if not all(item.isascii() and item.isdigit() and 1 <= int(item[:12]) < 2**31 for item in found):
        raise InvalidArgument(option, "be whole numbers of at least 1 with commas between", text)
    return tuple(int(item) for item in found)


def margin(text: str | None, option: str = "--margin") -> tuple[int, list[int] | None] | None:
    """``3`` or ``3,5,8`` as the place of an output and of its rivals, None for all others; None if it is not given."""
    if text is None:
        return None
    found = [item.strip() for item in text.split(",")]
    if not all(item.isascii() and item.isdigit() and int(item[:12]) < 2**31 for item in found):
        raise InvalidArgument(option, "be whole numbers of at least 0 with commas between", text)
    label, *rivals = (int(item) for item in found)
    return label, rivals or None


def classes(value: int | None) -> int | None:
    """A number of classes, or none."""
    if value is not None and value < 1:
        raise InvalidArgument("--classes", "be at least 1", value)
    return value


def radii(text: str, option: str = "--radius") -> list[float]:
    """``0.1,0.5`` as numbers above 0."""
    found = [_number(item) for item in text.split(",")]
    if not all(0 < value < math.inf for value in found):
        raise InvalidArgument(option, "be finite numbers above 0 with commas between", text)
    return found


def penalties(text: str, option: str = "--penalty") -> list[float]:
    """``0,0.01`` as finite numbers of at least 0."""
    found = [_number(item) for item in text.split(",")]
    if not all(0 <= value < math.inf for value in found):
        raise InvalidArgument(option, "be finite numbers of at least 0 with commas between", text)
    return list(dict.fromkeys(found))


def two(text: str, option: str) -> tuple[float, float]:
    """``0,1`` as two finite numbers."""
    found = [_number(item) for item in text.split(",")]
    if len(found) != 2 or not all(map(math.isfinite, found)):
        raise InvalidArgument(option, "be two finite numbers with a comma between", text)
    return found[0], found[1]


def one_radius(value: float | None, option: str = "--radius") -> float | None:
    """A number above 0, or none."""
    return None if value is None else radii(str(value), option)[0]


def memory(text: str) -> int:
    """``512M``, ``8G``, or a number of MiB, as bytes."""
    value = size(text)
    if value is None or not 1 <= value < 2**60:
        raise InvalidArgument("--memory-limit", "be a size like 512M or 8G, or a number of MiB", text)
    return value


def options(items: list[str]) -> dict[str, dict[str, object]]:
    """``lipsdp.solver=SCS`` and the like as options by verifier; numbers and true/false are read as such."""
    found: dict[str, dict[str, object]] = {}
    for item in items:
        key, equals, value = item.partition("=")
        verifier, dot, name = key.strip().partition(".")
        if not (equals and dot and verifier and name):
            raise InvalidArgument("--option", "look like VERIFIER.NAME=VALUE", item)
        found.setdefault(verifier, {})[name] = _value(value.strip())
    return found


def _value(text: str) -> object:
    if text.lower() in ("true", "false"):
        return text.lower() == "true"
    try:
        return int(text)
    except ValueError:
        value = _number(text)
        return text if math.isnan(value) else value


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan
