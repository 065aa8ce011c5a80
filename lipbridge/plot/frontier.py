"""Accuracy against proved bound: what a smaller bound costs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from lipbridge.errors import InvalidArgument, NothingToDraw
from lipbridge.plot.networks import Measured, families, grouped, mean, measured, spread
from lipbridge.plot.style import MARKERS, PAPER, Look, canvas, entry, legend, plain, plain_ticks

Row = Mapping[str, Any]
#: With more groups than this the penalties are not written beside their points.
WRITTEN = 16


def frontier(
    rows: Sequence[Row],
    ax: Any = None,
    *,
    bound: Literal["trivial", "best"] = "trivial",
    norm: str | int | None = None,
    look: Look = PAPER,
) -> tuple[Any, Any]:
    """Test accuracy against the proved bound of each network.

    A small marker is a network, a larger one the mean over the seeds of its group, with the standard deviation. A line
    goes along the penalty; a colour is a family, that is all that differs but the penalty and the seed.

    Args:
        rows: JSON rows of one study or several: those of trainings and models, and of bounds.
        ax: axes to draw on; a new figure if not given.
        bound: the trivial bound, or the least that any verifier proved.
        norm: only bounds in this norm, e.g. 2 or ``"2->inf"``.
        look: colours and sizes.

    Returns:
        The figure and its axes.

    Raises:
        NothingToDraw: if no network has both.
        MissingDependency: if matplotlib is not installed.
    """
    if bound not in ("trivial", "best"):
        raise InvalidArgument("bound", "be trivial or best", bound)
    everything = measured(rows)
    points = [
        point
        for point in everything
        if point.accuracy is not None and _bound(point, bound) and norm in (None, point.norm, _whole(point.norm))
    ]
    if not points:
        raise NothingToDraw("the frontier", "networks with an accuracy and a proved bound")
    norms = list(dict.fromkeys(point.norm for point in points))
    named = families([(point.study, point.group, point.settings) for point in everything])
    if len(norms) > 1:
        named = [f"{name}, l{point.norm}".lstrip(", ") for name, point in zip(named, everything, strict=True)]
    palette = list(dict.fromkeys(named))  # of all, so that the figures of a study agree
    chosen = {id(point) for point in points}
    drawn = [(name, point) for name, point in zip(named, everything, strict=True) if id(point) in chosen]
    lines = grouped(drawn)
    with canvas(look, ax, look.size(5.6, 3.7)) as (figure, (own,)):
        values = [_bound(point, bound) for point in points]
        if max(values) > 4 * min(values):
            own.set_xscale("log")
            own.set_xlim(min(values) / 1.25, max(values) * 1.35)
            plain_ticks(own.xaxis, min(values), max(values))
        groups = {(name, point.study, point.group) for name, point in drawn}
        for name, family in lines.items():
            _line(own, family, bound, palette.index(name), look, len(groups) <= WRITTEN)
        kind = "trivial bound" if bound == "trivial" else "least proved bound"
        own.set_xlabel(f"{kind} of the Lipschitz constant" + (f", l{norms[0]}" if len(norms) == 1 else ""))
        own.set_ylabel("test accuracy, %")
        own.margins(y=0.12)
        entries = [entry(name, **_style(palette.index(name), look), markersize=6) for name in lines if name]
        legend(figure, [own], entries if len(lines) > 1 else [], ax is None)
        return figure, own


def _line(ax: Any, family: Sequence[Measured], bound: str, place: int, look: Look, written: bool) -> None:
    style = _style(place, look)
    groups = list(grouped(((point.study, point.group), point) for point in family).values())
    groups.sort(key=lambda group: (group[0].penalty is None, group[0].penalty or 0.0))
    marks = [([_bound(p, bound) for p in group], [100 * (p.accuracy or 0.0) for p in group]) for group in groups]
    centres = [(mean(x), mean(y)) for x, y in marks]
    if any(len(x) > 1 for x, _ in marks):
        small = style | {"markersize": 3, "alpha": 0.45, "markeredgewidth": 0}
        ax.plot([v for x, _ in marks for v in x], [v for _, y in marks for v in y], linestyle="none", **small)
    along = [centre for centre, group in zip(centres, groups, strict=True) if group[0].penalty is not None]
    if len(along) > 1:
        ax.plot(*zip(*along, strict=True), color=style["color"], linewidth=1.2, alpha=0.8)
    for (x, y), (bounds, accuracies), group in zip(centres, marks, groups, strict=True):
        dx = min(spread(bounds), 0.95 * x)
        ax.errorbar(x, y, spread(accuracies), dx, markersize=6.5, elinewidth=1, capsize=0, zorder=3, **style)
        if written and group[0].penalty is not None and len(groups) > 1:
            text = {"textcoords": "offset points", "fontsize": 7, "color": look.soft}
            ax.annotate(plain(f"{group[0].penalty:g}"), (x, y), (5, -9), **text)


def _style(place: int, look: Look) -> dict[str, Any]:
    marker = MARKERS[(place + place // len(look.series)) % len(MARKERS)]
    return {"color": look.colour(place), "marker": marker}


def _bound(point: Measured, kind: str) -> float:
    """Zero if there is none: a bound of zero is on no logarithmic axis either."""
    value = point.best if kind == "best" or point.bound is None else point.bound
    return value or 0.0


def _whole(norm: str) -> object:
    return int(norm) if norm.isdigit() else norm
