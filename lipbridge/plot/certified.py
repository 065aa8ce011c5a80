"""Certified accuracy against the radius of the ball around each test point."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from lipbridge.errors import InvalidArgument, NothingToDraw
from lipbridge.plot.networks import group_of, grouped, is_number, mean, network_of, norm_of, palette, spread
from lipbridge.plot.style import LINES, PAPER, Look, canvas, entry, legend, plain

Row = Mapping[str, Any]


def certified(
    rows: Sequence[Row], ax: Any = None, *, norm: str | int | None = None, look: Look = PAPER
) -> tuple[Any, Any]:
    """The share of test points whose class is proved right in the whole ball, by the radius of the ball.

    A colour is a group of networks, with a band of one standard deviation over its seeds; a kind of line a verifier.
    The curve starts at radius 0 with the accuracy, where that is known.

    Args:
        rows: JSON rows of certificates, of one study or several; others are left out.
        ax: axes to draw on; a new figure if not given.
        norm: the norm of the balls; it can be left out where there is one.
        look: colours and sizes.

    Returns:
        The figure and its axes.

    Raises:
        NothingToDraw: if there are no certificates.
        InvalidArgument: if there are several norms and none is given.
        MissingDependency: if matplotlib is not installed.
    """
    drawn = certificates(rows)
    norms = list(dict.fromkeys(norm_of(row) for row in drawn))
    if norm is not None:
        drawn = [row for row in drawn if norm_of(row) == str(norm)]
    if not drawn:
        raise NothingToDraw("certified accuracy", "certificates")
    if norm is None and len(norms) > 1:
        raise InvalidArgument("norm", f"be one of {', '.join(norms)}: the rows have them all", norm)
    colours, names = palette(rows)
    shown = sorted({colours[group_of(row)] for row in drawn})
    verifiers = list(dict.fromkeys(row["verifier"] for row in drawn))
    with canvas(look, ax, look.size(5.6, 3.7)) as (figure, (own,)):
        for (group, verifier), curve in grouped(((group_of(row), row["verifier"]), row) for row in drawn).items():
            _curve(own, curve, look.colour(colours[group]), LINES[verifiers.index(verifier) % len(LINES)])
        own.set_xlabel(f"radius, l{norm if norm is not None else norms[0]}")
        own.set_ylabel("certified accuracy, %")
        own.set_ylim(0, min(own.get_ylim()[1] * 1.02, 104))
        own.set_xlim(left=-0.012 * own.get_xlim()[1])
        tones = [entry(names[place], linestyle="-", color=look.colour(place)) for place in shown]
        kinds = [
            entry(name, linestyle=LINES[place % len(LINES)], color=look.text) for place, name in enumerate(verifiers)
        ]
        if len(tones) == 1 and len(kinds) == 1:
            own.set_title(plain(f"{names[shown[0]]}, {verifiers[0]}"))
        legend(figure, [own], (tones if len(tones) > 1 else []) + (kinds if len(kinds) > 1 else []), ax is None)
        return figure, own


def certificates(rows: Sequence[Row]) -> list[Row]:
    """The rows that say how many test points are certified at a radius, those of ``compare`` included."""
    found: list[Row] = []
    for row in rows:
        if not is_number(row.get("certified_accuracy")):
            continue
        if row.get("kind") == "certificate":
            if is_number(row.get("radius")):
                found.append(row)
            continue
        extra: Mapping[str, Any] = row.get("extra") or {}
        radius = extra.get("certified_radius")
        restated = row.get("region") != "everywhere" and row.get("verifier") == "trivial"
        if is_number(radius) and not restated:
            found.append({**row, "radius": radius, "accuracy": None, "points": extra.get("certified_points")})
    return found


def _curve(ax: Any, rows: Sequence[Row], colour: str, line: Any) -> None:
    points = {(network_of(row), float(row["radius"])): 100 * row["certified_accuracy"] for row in rows}
    for row in rows:
        if is_number(row.get("accuracy")):
            points[network_of(row), 0.0] = 100 * row["accuracy"]
    by_radius = grouped((radius, value) for (_, radius), value in points.items())
    radii = sorted(by_radius)
    middle = [mean(by_radius[radius]) for radius in radii]
    error = [spread(by_radius[radius]) for radius in radii]
    ax.plot(radii, middle, color=colour, linestyle=line, linewidth=1.6, marker="o", markersize=3)
    if any(error):
        low = [max(value - off, 0.0) for value, off in zip(middle, error, strict=True)]
        high = [min(value + off, 100.0) for value, off in zip(middle, error, strict=True)]
        ax.fill_between(radii, low, high, color=colour, alpha=0.18, linewidth=0)
