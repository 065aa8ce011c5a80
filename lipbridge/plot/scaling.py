"""Cost and tightness of each verifier against the width of the network."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, cast

from lipbridge.errors import NothingToDraw
from lipbridge.plot.networks import (
    families,
    group_of,
    grouped,
    is_global,
    is_number,
    mean,
    norm_of,
    settings_of,
    settings_text,
)
from lipbridge.plot.style import LINES, MARKERS, PAPER, Look, canvas, entry, legend, plain_ticks, time_axis

Row = Mapping[str, Any]
#: Bounds that are less far above the truth than this are drawn there.
EXACT = 1e-4


def scaling(
    rows: Sequence[Row], ax: Any = None, *, norm: str | int | None = None, look: Look = PAPER
) -> tuple[Any, list[Any]]:
    """How the time of each verifier, and the tightness of its bound, grow with the width.

    A colour and shape is a verifier, a kind of line a family of networks, e.g. bound-trained and plain. Lines go
    through the geometric means over the seeds, the range over them is a band. A cross marks where a limit ended a
    verifier.

    Args:
        rows: JSON rows of bounds whose settings have ``widths`` or ``width``; others are left out.
        ax: two axes to draw on; a new figure if not given.
        norm: only bounds in this norm, e.g. 2 or ``"2->inf"``.
        look: colours and sizes.

    Returns:
        The figure and its two axes, of the time and of tightness - 1.

    Raises:
        NothingToDraw: if there are no two widths.
        MissingDependency: if matplotlib is not installed.
    """
    drawn = [row for row in rows if is_global(row) and row.get("side") != "lower" and width(row) is not None]
    drawn = [row for row in drawn if norm is None or norm_of(row) == str(norm)]
    if len({width(row) for row in drawn}) < 2:
        raise NothingToDraw("cost against width", "bounds of networks of several widths")
    named = families([(*group_of(row), settings_of(row)) for row in drawn], ("widths", "width", "seed"))
    verifiers = list(dict.fromkeys(row["verifier"] for row in drawn))
    if len(set(named)) > len(LINES):  # too many to tell apart: the penalty, or all together
        named = [settings_text(settings_of(row), ["penalty"]) for row in drawn]
        named = named if len(set(named)) <= len(LINES) else [""] * len(drawn)
    kinds = list(dict.fromkeys(named))
    with canvas(look, ax, look.size(7.2, 3.3), 2) as (figure, axes):
        times: list[float] = []
        keyed = [((row["verifier"], name), row) for row, name in zip(drawn, named, strict=True)]
        for (verifier, kind), some in grouped(keyed).items():
            place = verifiers.index(verifier)
            style = {
                "color": look.colour(place),
                "marker": MARKERS[place % len(MARKERS)],
                "linestyle": LINES[kinds.index(kind) % len(LINES)],
            }
            times += _curve(axes[0], [(width(r), _positive(r.get("seconds"))) for r in some if _ended(r)], style)
            _curve(axes[1], [(width(r), _excess(r)) for r in some], style)
            late = [(width(r), _positive(r.get("seconds") or r.get("time_limit"))) for r in some if not _ended(r)]
            late = [(x, y) for x, y in late if y is not None]
            if late:
                axes[0].plot(*zip(*late, strict=True), linestyle="none", marker="x", markersize=6, color=style["color"])
                times += [y for _, y in late]
        widths = sorted({width(row) or 0 for row in drawn})
        for own in axes:
            own.set_xscale("log")
            own.set_xticks(widths, [str(value) for value in widths])
            own.set_xticks([], minor=True)
            own.set_xlabel("width")
            own.set_yscale("log")
        if times:
            time_axis(axes[0].yaxis)
        low, high = axes[1].get_ylim()
        plain_ticks(axes[1].yaxis, low, high)
        axes[0].set_title("Time")
        axes[1].set_title("Tightness − 1")
        shapes = [
            entry(name, marker=MARKERS[place % len(MARKERS)], color=look.colour(place), markersize=6)
            for place, name in enumerate(verifiers)
        ]
        lines = [entry(name, linestyle=LINES[place % len(LINES)], color=look.text) for place, name in enumerate(kinds)]
        limits = [entry("ended by a limit", marker="x", color=look.text)] if not all(map(_ended, drawn)) else []
        legend(figure, axes, [*shapes, *(lines if len(kinds) > 1 else []), *limits], ax is None)
        return figure, axes


def width(row: Row) -> int | None:
    """The largest hidden width that the settings of a row name."""
    settings = settings_of(row)
    value: Any = settings.get("width", settings.get("widths"))
    items = cast(list[Any], value if isinstance(value, list) else str(value if value is not None else "").split(","))
    try:
        return max((int(item) for item in items if str(item).strip()), default=None)
    except (TypeError, ValueError):
        return None


def _curve(ax: Any, points: Sequence[tuple[int | None, float | None]], style: dict[str, Any]) -> list[float]:
    by_width = grouped((x, y) for x, y in points if x is not None and y is not None)
    places = sorted(by_width)
    if not places:
        return []
    middle = [math.exp(mean([math.log(value) for value in by_width[x]])) for x in places]
    ax.plot(places, middle, linewidth=1.4, markersize=4.5, **style)
    if any(len(values) > 1 for values in by_width.values()):
        low, high = ([edge(by_width[x]) for x in places] for edge in (min, max))
        ax.fill_between(places, low, high, color=style["color"], alpha=0.15, linewidth=0)
    return [value for values in by_width.values() for value in values]


def _ended(row: Row) -> bool:
    return row.get("status") not in ("timeout", "memory")


def _positive(value: object) -> float | None:
    return float(value) if is_number(value) and value > 0 else None


def _excess(row: Row) -> float | None:
    if row.get("status") != "ok" or not is_number(row.get("tightness")):
        return None
    return max(row["tightness"] - 1, EXACT)
