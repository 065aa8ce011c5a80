"""Tightness against time: how far above the truth each verifier's bound may be, and what it took."""

from __future__ import annotations

import importlib
import math
from collections.abc import Mapping, Sequence
from typing import Any

from lipbridge.errors import InvalidArgument, NothingToDraw
from lipbridge.plot.networks import group_of, grouped, is_number, norm_of, palette
from lipbridge.plot.style import MARKERS, PAPER, Look, canvas, entry, legend, time_axis

Row = Mapping[str, Any]
#: Bounds that are less far above the truth than this are drawn as exact.
EXACT = 1e-6


def tightness(
    rows: Sequence[Row],
    ax: Any = None,
    *,
    quantity: str = "lipschitz",
    norm: str | int | None = None,
    look: Look = PAPER,
) -> tuple[Any, Any]:
    """Tightness - 1 of each upper bound against the seconds it took, both logarithmic.

    Tightness is the bound divided by the largest value that a witness proves. A shape is a verifier, a colour a group
    of networks (a family of groups, where there are many). Hollow: not proved. A red edge: a witness contradicts the
    value, which then stands on a line of its own below ``exact``.

    Args:
        rows: JSON rows of bounds, of one study or several; others are left out.
        ax: axes to draw on; a new figure if not given.
        quantity: ``lipschitz`` or ``deviation``.
        norm: only bounds in this norm, e.g. 2 or ``"2->inf"``.
        look: colours and sizes.

    Returns:
        The figure and its axes.

    Raises:
        NothingToDraw: if no row has a tightness and a time.
        MissingDependency: if matplotlib is not installed.
    """
    if quantity not in ("lipschitz", "deviation"):
        raise InvalidArgument("quantity", "be lipschitz or deviation", quantity)
    drawn = [row for row in rows if _drawable(row) and row["quantity"] == quantity]
    if norm is not None:
        drawn = [row for row in drawn if norm_of(row) == str(norm)]
    if not drawn:
        raise NothingToDraw("tightness against time", "bounds with a tightness and a time")
    colours, names = palette(rows)
    shown = sorted({colours[group_of(row)] for row in drawn})
    verifiers = list(dict.fromkeys(row["verifier"] for row in drawn))
    least = min((row["tightness"] - 1 for row in drawn if row["tightness"] - 1 >= EXACT), default=1e-3)
    floor = 10.0 ** (math.floor(math.log10(least) + 1e-9) - 1)
    with canvas(look, ax, look.size(5.6, 3.7)) as (figure, (own,)):
        kinds = grouped(((_mark(row), colours[group_of(row)], row["verifier"]), row) for row in drawn)
        size = 7.5 if len(drawn) <= 60 else 5.5
        for (mark, colour, verifier), some in kinds.items():
            hollow, bad = mark
            style = _style(verifiers.index(verifier), colour, look, hollow, bad)
            ys = [floor / 4 if bad and row["tightness"] < 1 else max(row["tightness"] - 1, floor) for row in some]
            times = [row["seconds"] for row in some]
            own.plot(times, ys, linestyle="none", markersize=size, alpha=0.9, zorder=3, **style)
        _axes(own, drawn, floor, look)
        shapes = [
            entry(name, markersize=6, marker=_marker(place), color=look.text) for place, name in enumerate(verifiers)
        ]
        tones = [entry(names[place], marker="s", markersize=6, color=look.colour(place)) for place in shown]
        marks = [mark for mark in dict.fromkeys(mark for mark, *_ in kinds) if any(mark)]
        told = [
            entry(words, marker="o", markersize=6, **_edge(look.soft, look, hollow, bad))
            for words, hollow, bad in (("not proved", True, False), ("contradicted by a witness", False, True))
            if any((hollow and mark[0] and not mark[1]) or (bad and mark[1]) for mark in marks)
        ]
        legend(figure, [own], [*shapes, *(tones if len(shown) > 1 else []), *told], ax is None)
        return figure, own


def _axes(ax: Any, drawn: Sequence[Row], floor: float, look: Look) -> None:
    ticker: Any = importlib.import_module("matplotlib.ticker")
    highest = max(max(row["tightness"] for row in drawn) - 1, 10 * floor)
    below = any(row["tightness"] < 1 and row["status"] == "unsound" for row in drawn)
    times = [row["seconds"] for row in drawn]
    ax.set_xscale("log")
    ax.set_yscale("log")
    ax.set_xlim(min(times) / 2.5, max(times) * 2.5)
    ax.set_ylim(floor / (10 if below else 2), highest * 2.5)
    ax.axhline(floor, color=look.soft, linewidth=0.9, linestyle=(0, (4, 3)), zorder=1)
    first, last = round(math.log10(floor)) + 1, math.floor(math.log10(highest * 2.5))
    step = max(1, -(-(last - first + 1) // 7))
    ticks = [10.0**power for power in range(first, last + 1, step)]
    marks = [floor, *ticks]
    words = ["exact", *(f"{tick:g}" for tick in ticks)]
    if below:
        marks, words = [floor / 4, *marks], ["unsound", *words]
    ax.yaxis.set_major_locator(ticker.FixedLocator(marks))
    ax.yaxis.set_major_formatter(ticker.FixedFormatter(words))
    ax.yaxis.set_minor_formatter(ticker.NullFormatter())
    time_axis(ax.xaxis)
    ax.set_xlabel("time")
    ax.set_ylabel("tightness − 1")


def _drawable(row: Row) -> bool:
    bound = row.get("kind") in (None, "bound") and row.get("side") != "lower"
    return bound and is_number(row.get("tightness")) and is_number(row.get("seconds")) and row["seconds"] > 0


def _mark(row: Row) -> tuple[bool, bool]:
    """Hollow, and with a red edge."""
    return not row["proved"], row["status"] == "unsound"


def _style(place: int, colour: int, look: Look, hollow: bool, bad: bool) -> dict[str, Any]:
    return {"marker": _marker(place)} | _edge(look.colour(colour), look, hollow, bad)


def _edge(colour: str, look: Look, hollow: bool, bad: bool) -> dict[str, Any]:
    return {
        "markerfacecolor": look.ground if hollow else colour,
        "markeredgecolor": look.bad if bad else colour,
        "markeredgewidth": 2.0 if bad else 1.4 if hollow else 0.0,
    }


def _marker(place: int) -> str:
    return MARKERS[place % len(MARKERS)]
