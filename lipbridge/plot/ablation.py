"""One setting switched: what it does to accuracy, bound or tightness, all else equal."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, cast

from lipbridge.errors import InvalidArgument, NothingToDraw, UnknownName
from lipbridge.plot.networks import (
    Measured,
    grouped,
    is_number,
    mean,
    measured,
    setting_text,
    settings_text,
    spread,
    varying_settings,
)
from lipbridge.plot.style import PAPER, Look, canvas, entry, legend, plain, plain_ticks

Row = Mapping[str, Any]
Measure = Literal["tightness", "bound", "accuracy"]
_LABELS = {"tightness": "tightness − 1 of the trivial bound", "bound": "trivial bound", "accuracy": "test accuracy, %"}
#: Bounds that are less far above the truth than this are drawn there.
EXACT = 1e-6
#: More lines than this share one colour.
COLOURED = 8


@dataclass(frozen=True)
class Effect:
    """All networks that agree in everything but one factor and the seed: the values of a measure, by the factor's."""

    others: str
    values: Mapping[Any, Sequence[float]]


def ablation(
    rows: Sequence[Row],
    ax: Any = None,
    *,
    factor: str | None = None,
    measure: Measure = "tightness",
    look: Look = PAPER,
) -> tuple[Any, Any]:
    """A measure of each network by the value of one setting; a line joins networks that agree in all others.

    Markers are means over the seeds with the standard deviation, small ones the seeds.

    Args:
        rows: JSON rows of one study or several: those of trainings and models, and of bounds.
        ax: axes to draw on; a new figure if not given.
        factor: the setting, e.g. ``activation``; it can be left out where one alone varies.
        measure: ``tightness`` (less 1) of the trivial bound, the ``bound`` itself, or ``accuracy``.
        look: colours and sizes.

    Returns:
        The figure and its axes.

    Raises:
        NothingToDraw: if no setting varies, or nothing is measured.
        UnknownName: if the factor is none of those that vary.
        InvalidArgument: if several settings vary and no factor is given, or for an unknown measure.
        MissingDependency: if matplotlib is not installed.
    """
    if measure not in _LABELS:
        raise InvalidArgument("measure", f"be {', '.join(_LABELS)}", measure)
    known = factors(rows)
    if not known:
        raise NothingToDraw("an ablation", "a setting with several values")
    if factor is None and len(known) > 1:
        raise InvalidArgument("factor", f"be one of {', '.join(known)}: they all vary", factor)
    factor = known[0] if factor is None else factor
    if factor not in known:
        raise UnknownName("factor", factor, known)
    lines = effects(rows, factor, measure)
    if not lines:
        raise NothingToDraw("an ablation", f"a {_LABELS[measure]} of the networks")
    levels = sorted({level for line in lines for level in line.values}, key=_order)
    with canvas(look, ax, look.size(5.6, 3.5)) as (figure, (own,)):
        for place, line in enumerate(lines):
            shift = 0.0 if len(lines) == 1 else 0.24 * (place / (len(lines) - 1) - 0.5)
            _line(own, line, levels, shift, _colour(place, len(lines), look))
        own.set_xticks(range(len(levels)), [plain(setting_text(factor, level), 22) for level in levels])
        own.set_xlim(-0.45, len(levels) - 0.55)
        own.grid(visible=False, axis="x")
        own.set_ylabel(_LABELS[measure])
        values = [value for line in lines for some in line.values.values() for value in some]
        if measure != "accuracy" and min(values) > 0 and max(values) > 3 * min(values):
            own.set_yscale("log")
            plain_ticks(own.yaxis, min(values), max(values))
        entries = [
            entry(line.others, marker="o", markersize=6, color=_colour(place, len(lines), look))
            for place, line in enumerate(lines)
        ]
        legend(figure, [own], entries if 1 < len(lines) <= COLOURED else [], ax is None)
        return figure, own


def factors(rows: Sequence[Row]) -> list[str]:
    """The settings that have several values, the seed left out, which is no factor."""
    settings = {(m.study, m.group): m.settings for m in measured(rows)}
    return [key for key in varying_settings(list(settings.values())) if key != "seed"]


def effects(rows: Sequence[Row], factor: str, measure: Measure) -> list[Effect]:
    """The lines of an ablation: only such as have the measure at two values of the factor or more."""
    networks = [network for network in measured(rows) if factor in network.settings]
    others = [
        key for key in varying_settings([network.settings for network in networks]) if key not in (factor, "seed")
    ]
    several = len({network.norm for network in networks}) > 1

    def rest(network: Measured) -> str:
        text = settings_text(network.settings, others)
        return f"{text}, l{network.norm}".lstrip(", ") if several else text

    found: list[Effect] = []
    for (_, name), some in grouped(((network.study, rest(network)), network) for network in networks).items():
        pairs = [(_level(network.settings[factor]), _value(network, measure)) for network in some]
        values = grouped((level, value) for level, value in pairs if value is not None)
        if len(values) > 1:
            found.append(Effect(name, values))
    return found


def _line(ax: Any, line: Effect, levels: Sequence[Any], shift: float, colour: str) -> None:
    places = [place for place, level in enumerate(levels) if level in line.values]
    values = [line.values[levels[place]] for place in places]
    xs = [place + shift for place in places]
    for x, some in zip(xs, values, strict=True):
        if len(some) > 1:
            ax.plot([x] * len(some), some, linestyle="none", marker="o", markersize=2.5, color=colour, alpha=0.5)
    middle = [mean(some) for some in values]
    error = [min(spread(some), 0.95 * abs(mean(some))) for some in values]
    ax.errorbar(xs, middle, error, marker="o", markersize=5, linewidth=1.2, elinewidth=1, color=colour, alpha=0.9)


def _colour(place: int, count: int, look: Look) -> str:
    return look.colour(place) if count <= COLOURED else look.soft


def _value(network: Measured, measure: Measure) -> float | None:
    if measure == "tightness":
        return None if network.tightness is None else max(network.tightness - 1, EXACT)
    value = network.bound if measure == "bound" else network.accuracy
    return None if value is None else 100 * value if measure == "accuracy" else value


def _level(value: Any) -> Any:
    return ",".join(map(str, cast(list[Any], value))) if isinstance(value, list) else value


def _order(level: Any) -> tuple[int, float, str]:
    if isinstance(level, bool):
        return 0, float(level), ""
    if is_number(level):
        return 1, float(level), ""
    head = str(level).split(",")[0]
    return (2, float(head), str(level)) if head.isdigit() else (3, math.inf, str(level))
