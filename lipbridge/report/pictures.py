"""The figures of the page, as SVG text to stand inside it, and of the study beside it as files.

They are those of ``lipbridge.plot``. In the page their colours are its CSS variables, so that one file is right in
light and dark.
"""

from __future__ import annotations

import io
import os
import re
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from lipbridge import plot
from lipbridge.errors import NothingToDraw
from lipbridge.plot.ablation import COLOURED, effects, factors
from lipbridge.plot.certified import certificates
from lipbridge.plot.networks import grouped, measured, norm_of
from lipbridge.plot.style import PAPER, Look

Row = Mapping[str, Any]
Draw = Callable[[Look], tuple[Any, Any]]

# Colours that nothing else uses, replaced by the page's variables in the finished SVG.
_VARIABLES = {
    "#010101": "currentColor",
    "#010102": "var(--soft)",
    "#010103": "var(--line)",
    "#010104": "var(--bad)",
    "#010105": "var(--card)",
    **{f"#0404{index:02x}": f"var(--c{index})" for index in range(len(PAPER.series))},
}
#: The look of the page; half of its width, and all of it.
_SIZES = {"font.size": 10.5, "axes.titlesize": 11, "legend.fontsize": 10}
_NAMES = list(_VARIABLES)
HALF = Look(*_NAMES[:5], series=tuple(_NAMES[5:]), rc={**PAPER.rc, **_SIZES})
FULL = replace(HALF, wide=1.4, high=1.15)
#: More curves of training than this are not drawn.
CURVES = 8


def pictures(rows: Sequence[Row], epochs: Sequence[Row]) -> dict[str, str]:
    """The figures that there is something to draw for, by name, each an SVG.

    Args:
        rows: JSON rows of a study.
        epochs: lines of ``metrics.jsonl`` with their network.
    """
    return {name: svg for name, draw in _figures(rows, epochs).items() if (svg := _svg(name, draw))}


def write_figures(
    folder: str | os.PathLike[str], rows: Sequence[Row], epochs: Sequence[Row] = (), suffix: str = ".pdf"
) -> list[Path]:
    """Write every figure that there is something to draw for, for papers: ``frontier.pdf``, ``tightness.pdf``, ...

    Args:
        folder: made if it is not there; files in it are replaced.
        rows: JSON rows of a study.
        epochs: lines of ``metrics.jsonl`` with their network, as ``lipbridge.plot.history`` reads them.
        suffix: ``.pdf``, ``.svg`` or ``.png``.

    Raises:
        InvalidArgument: for another suffix.
        MissingDependency: if matplotlib is not installed.
    """
    plot.require_suffix(Path(f"figure{suffix}"), "suffix")
    written: list[Path] = []
    for name, draw in _figures(rows, epochs).items():
        try:
            figure, _ = draw(PAPER)
        except NothingToDraw:
            continue
        written.append(plot.save(figure, Path(folder) / f"{name}{suffix}"))
    return written


def _figures(rows: Sequence[Row], epochs: Sequence[Row]) -> dict[str, Draw]:
    """Every figure of a study, by the name of its file."""
    known = [network for network in measured(rows) if network.accuracy is not None and network.best]
    found: dict[str, Draw] = {"frontier": lambda look: plot.frontier(rows, look=look)} if len(known) > 1 else {}
    found |= {
        "tightness": lambda look: plot.tightness(rows, look=look),
        "deviation": lambda look: plot.tightness(rows, quantity="deviation", look=look),
    }
    curves = grouped((norm_of(row), row) for row in certificates(rows))
    for norm, some in curves.items():
        if len({row["radius"] for row in some} | {0.0 for row in some if row.get("accuracy") is not None}) < 2:
            continue  # a single point is in the table
        found[f"certified-l{norm.replace('->', '-l')}"] = lambda look, norm=norm: plot.certified(
            rows, norm=norm, look=look
        )
    found["scaling"] = lambda look: plot.scaling(rows, look=look)
    for factor in factors(rows):
        if 0 < len(effects(rows, factor, "tightness")) <= COLOURED:
            name = "ablation-" + re.sub(r"[^A-Za-z0-9]+", "-", factor)[:40]
            found[name] = lambda look, factor=factor: plot.ablation(rows, factor=factor, look=look)
    if 0 < len({row["network"] for row in epochs}) <= CURVES:
        found["training"] = lambda look: plot.training(epochs, look=look)
    return found


_LABELS = {
    "frontier": "Accuracy against the proved bound of each network",
    "tightness": "Tightness against time for each verifier and network",
    "deviation": "Tightness of deviations inside balls against time for each verifier and network",
    "scaling": "Time and tightness of each verifier against the width of the network",
    "training": "Accuracy, bound and loss of each network over the epochs of its training",
    "certified": "Certified accuracy against the radius",
    "ablation": "Tightness by the value of one setting",
}


def _svg(name: str, draw: Draw) -> str:
    try:
        figure, _ = draw(FULL if name in ("scaling", "training") else HALF)
    except NothingToDraw:
        return ""
    out = io.StringIO()
    nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
    settings: dict[str, Any] = {"svg.fonttype": "none", "svg.hashsalt": name}  # ids of two figures differ
    with plot.require_matplotlib().rc_context(settings), warnings.catch_warnings():
        warnings.filterwarnings("ignore", r"Glyph \d+")
        figure.savefig(out, format="svg", transparent=True, metadata=nothing)
    svg = out.getvalue()
    svg = svg[svg.index("<svg") :]
    for colour, variable in _VARIABLES.items():
        svg = svg.replace(colour, variable)
    svg = re.sub(r' id="[A-Za-z0-9.]+_\d+"', "", svg)  # matplotlib counts them in each figure anew
    svg = re.sub(r"font: ([^;'\"]*?)[\d.]+px [^;\"]*", lambda m: _font(m.group(0)), svg)
    head, rest = svg.split(">", 1)
    wide = round(float(re.search(r'width="([\d.]+)pt"', head)[1]) * 4 / 3)  # type: ignore[index]
    least = 300 if wide < 600 else 560  # narrower, its text is too small
    head = re.sub(r' (?:width|height)="[^"]*"', "", head)
    label = _LABELS[name.partition("-")[0]]
    return f'{head} role="img" aria-label="{label}" style="--wide: {wide}px; --least: {least}px">{rest}'


def _font(style: str) -> str:
    """The page's own typeface in the size and weight that the figure asks for."""
    size = re.search(r"([\d.]+px)", style)
    weight = "600 " if "bold" in style or "700" in style else ""
    return f"font: {weight}{size.group(1) if size else '10px'} var(--sans)"
