"""The report's plots, as SVG text to stand inside the page.

Colours are the page's: foreground, grid and series come out as CSS variables, so one file is right in light and dark.
"""

from __future__ import annotations

import importlib
import io
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

from lipbridge.errors import MissingDependency

Row = Mapping[str, Any]

#: As many colours as the page defines (``--c0`` ...); more networks than that repeat them.
COLOURS = 8
MARKERS = "osD^vPX*<>hp"

# Colours that nothing else uses, replaced by the page's variables in the finished SVG.
_TEXT, _GRID, _BAD = "#010101", "#020202", "#030303"
_SERIES = [f"#0404{index:02x}" for index in range(COLOURS)]
_STYLE = {
    "svg.fonttype": "none",
    "font.size": 10,
    "text.color": _TEXT,
    "axes.labelcolor": _TEXT,
    "axes.edgecolor": _GRID,
    "axes.titlesize": 10.5,
    "axes.titlelocation": "left",
    "axes.titleweight": "bold",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": _GRID,
    "grid.linewidth": 0.7,
    "xtick.color": _TEXT,
    "ytick.color": _TEXT,
    "xtick.major.size": 0,
    "ytick.major.size": 0,
    "xtick.minor.size": 0,
    "ytick.minor.size": 0,
    "legend.frameon": False,
}


def require_matplotlib() -> Any:
    """The package matplotlib.

    Raises:
        MissingDependency: with the command that installs it.
    """
    try:
        return importlib.import_module("matplotlib")
    except ImportError:
        raise MissingDependency("matplotlib, which draws the report's plots,", REPORT_COMMAND) from None


REPORT_COMMAND = 'pip install "lipbridge[report]"'


def tightness_plot(rows: Sequence[Row], networks: Sequence[str], verifiers: Sequence[str]) -> str:
    """Tightness against seconds, a panel for each quantity; a shape for each verifier, a colour for each network.

    Rows without both figures are left out; an empty text if none has them.
    """
    drawn = [row for row in rows if _positive(row["tightness"]) and _positive(row["seconds"])]
    panels = [name for name in ("lipschitz", "deviation") if any(row["quantity"] == name for row in drawn)]
    if not panels:
        return ""
    matplotlib = require_matplotlib()
    with matplotlib.rc_context({**_STYLE, "svg.hashsalt": "tightness"}):
        figure = _figure(9.6, 4.0)
        axes = figure.subplots(1, len(panels), squeeze=False)[0]
        for ax, quantity in zip(axes, panels, strict=True):
            points = [row for row in drawn if row["quantity"] == quantity]
            _tightness_panel(ax, points, networks, verifiers)
            ax.set_title("Lipschitz constant" if quantity == "lipschitz" else "Deviation inside the balls")
        axes[0].set_ylabel("tightness: bound / witness")
        shown = [name for name in verifiers if any(row["verifier"] == name for row in drawn)]
        _legend(figure, networks, shown, verifiers)
        return _svg(figure, "Tightness against seconds for each verifier and network")


def training_plot(histories: Mapping[str, Sequence[Row]], networks: Sequence[str]) -> str:
    """Test accuracy, trivial bound and loss by epoch, a colour for each network; empty if none was recorded."""
    known = {name: rows for name, rows in histories.items() if rows}
    if not known:
        return ""
    matplotlib = require_matplotlib()
    with matplotlib.rc_context({**_STYLE, "svg.hashsalt": "training"}):
        figure = _figure(9.6, 3.1)
        axes = figure.subplots(1, 3)
        panels = (("accuracy", "Test accuracy, %", 100.0), ("bound", "Trivial bound", 1.0), ("loss", "Loss", 1.0))
        for ax, (key, title, factor) in zip(axes, panels, strict=True):
            lowest, highest = math.inf, 0.0
            for name, rows in known.items():
                points = [(row["epoch"], factor * row[key]) for row in rows if _positive(row.get(key))]
                if points:
                    epochs, values = zip(*points, strict=True)
                    style = {"marker": "o", "markersize": 3} if len(points) < 40 else {}
                    ax.plot(epochs, values, color=_colour(name, networks), linewidth=1.8, label=name, **style)
                    lowest, highest = min(lowest, *values), max(highest, *values)
            ax.set_title(title)
            ax.set_xlabel("epoch")
            ax.xaxis.get_major_locator().set_params(integer=True)
            if key != "accuracy" and highest > 8 * lowest:
                ax.set_yscale("log")
                _plain_ticks(ax.yaxis, lowest, highest)
        handles = list(axes[0].get_lines())
        if len(known) > 1:
            figure.legend(handles=handles, loc="outside lower left", ncols=4, handlelength=1.4)
        return _svg(figure, "Accuracy, bound and loss of each network over the epochs of its training")


def _tightness_panel(ax: Any, rows: Sequence[Row], networks: Sequence[str], verifiers: Sequence[str]) -> None:
    values = [row["tightness"] for row in rows]
    ax.axhline(1.0, color=_TEXT, linewidth=1.0, linestyle=(0, (4, 3)), zorder=1)
    for row in rows:
        bad = row["status"] == "unsound"
        ax.plot(
            [row["seconds"]],
            [row["tightness"]],
            marker=MARKERS[verifiers.index(row["verifier"]) % len(MARKERS)],
            markersize=9,
            linestyle="none",
            color=_colour(row["network"], networks),
            markeredgecolor=_BAD if bad else "none",
            markeredgewidth=2 if bad else 0,
            alpha=0.9,
            zorder=3,
        )
    ax.set_xscale("log")
    times = [row["seconds"] for row in rows]
    ax.set_xlim(min(times) / 3, max(times) * 3)
    _time_ticks(ax.xaxis)
    if max(values) > 4:
        ax.set_yscale("log")
        ax.set_ylim(min(0.8, 0.8 * min(values)), max(values) * 1.6)
        _plain_ticks(ax.yaxis, min(values), max(values))
    else:
        span = max(max(values) - 1.0, 0.01)
        ax.set_ylim(min(1.0, *values) - 0.16 * span, 1.0 + 1.18 * span)
    below = {"xycoords": ("axes fraction", "data"), "xytext": (3, -3), "textcoords": "offset points"}
    ax.annotate("exact", (0.0, 1.0), ha="left", va="top", fontsize=8.5, **below)
    ax.set_xlabel("time")


def _legend(figure: Any, networks: Sequence[str], shown: Sequence[str], verifiers: Sequence[str]) -> None:
    lines: Any = importlib.import_module("matplotlib.lines")
    shapes = [
        lines.Line2D([], [], marker=MARKERS[verifiers.index(name) % len(MARKERS)], linestyle="none", markersize=7,
                     color=_TEXT, label=name)
        for name in shown
    ]  # fmt: skip
    colours = [
        lines.Line2D([], [], linestyle="-", linewidth=5, color=_colour(name, networks), label=name) for name in networks
    ]
    handles = [*shapes, *colours]
    columns = len(handles) if sum(len(name) + 6 for name in [*shown, *networks]) < 110 else 4
    figure.legend(handles=handles, loc="outside lower left", ncols=columns, handlelength=1.2, columnspacing=1.6)


def _time_ticks(axis: Any) -> None:
    units = ((60.0, "min"), (1.0, "s"), (1e-3, "ms"), (0.0, "µs"))

    def text(value: float, _: object = None) -> str:
        for size, unit in units:
            if value >= size * 0.999 and size > 0:
                return f"{value / size:g} {unit}"
        return f"{value * 1e6:g} µs"

    ticker: Any = importlib.import_module("matplotlib.ticker")
    axis.set_major_locator(ticker.LogLocator(10.0, numticks=8))
    axis.set_major_formatter(ticker.FuncFormatter(text))
    axis.set_minor_formatter(ticker.NullFormatter())


def _plain_ticks(axis: Any, lowest: float, highest: float) -> None:
    ticker: Any = importlib.import_module("matplotlib.ticker")
    subs = (1.0, 2.0, 5.0) if highest < 300 * lowest else (1.0,)
    axis.set_major_locator(ticker.LogLocator(10.0, subs=subs, numticks=9))
    axis.set_major_formatter(ticker.StrMethodFormatter("{x:g}"))
    axis.set_minor_formatter(ticker.NullFormatter())


def _figure(width: float, height: float) -> Any:
    module: Any = importlib.import_module("matplotlib.figure")
    figure = module.Figure(figsize=(width, height), layout="constrained")
    figure.get_layout_engine().set(w_pad=0.12, h_pad=0.06)
    return figure


def _svg(figure: Any, label: str) -> str:
    out = io.StringIO()
    nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
    figure.savefig(out, format="svg", transparent=True, metadata=nothing)
    svg = out.getvalue()
    svg = svg[svg.index("<svg") :]
    replacements = {_TEXT: "currentColor", _GRID: "var(--line)", _BAD: "var(--bad)"}
    replacements |= {colour: f"var(--c{index})" for index, colour in enumerate(_SERIES)}
    for colour, variable in replacements.items():
        svg = svg.replace(colour, variable)
    svg = re.sub(r"font: ([^;'\"]*?)[\d.]+px [^;\"]*", lambda m: _font(m.group(0)), svg)
    svg = re.sub(r'(<svg [^>]*?)width="[^"]*"', r"\1", svg, count=1)
    svg = re.sub(r'(<svg [^>]*?)height="[^"]*"', r"\1", svg, count=1)
    return svg.replace("<svg ", f'<svg role="img" aria-label="{label}" ', 1)


def _font(style: str) -> str:
    """The page's own typeface in the size and weight that the plot asks for."""
    size = re.search(r"([\d.]+px)", style)
    weight = "600 " if "bold" in style or "700" in style else ""
    return f"font: {weight}{size.group(1) if size else '10px'} var(--sans)"


def _colour(name: str, networks: Sequence[str]) -> str:
    return _SERIES[list(networks).index(name) % COLOURS]


def _positive(value: object) -> bool:
    return isinstance(value, int | float) and value > 0 and math.isfinite(value)
