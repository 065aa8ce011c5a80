"""How figures look: on paper by default, or in the colours of a page; axes, legends, ticks, files."""

from __future__ import annotations

import importlib
import io
import os
import warnings
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lipbridge.disk.atomic import write_atomically
from lipbridge.errors import InvalidArgument, MissingDependency

Row = Mapping[str, Any]

MARKERS = "osD^vPX*<>hp"
LINES = ("-", (0, (5, 2)), (0, (1.2, 1.6)), (0, (6, 2, 1.2, 2)), (0, (3, 1.4)))
SUFFIXES = (".pdf", ".svg", ".png")
COMMAND = 'pip install "lipbridge[report]"'
#: Longer names are shortened in their middle.
LONGEST = 44

_RC: Mapping[str, Any] = {
    "font.family": "sans-serif",
    "font.size": 9,
    "axes.titlesize": 9.5,
    "axes.titlelocation": "left",
    "axes.titleweight": "bold",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.7,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.linewidth": 0.6,
    "xtick.major.size": 0,
    "ytick.major.size": 0,
    "xtick.minor.size": 0,
    "ytick.minor.size": 0,
    "legend.frameon": False,
    "legend.fontsize": 8.5,
    "pdf.fonttype": 42,  # TrueType: text stays text, which journals ask for
    "ps.fonttype": 42,
    "svg.fonttype": "none",
}


@dataclass(frozen=True)
class Look:
    """The colours of a figure. ``series`` are told apart by people with any colour vision, and repeat."""

    text: str = "#1c1c1c"
    soft: str = "#666666"
    grid: str = "#dddddd"
    bad: str = "#d00000"
    ground: str = "#ffffff"
    series: tuple[str, ...] = (
        *("#0072b2", "#d55e00", "#009e73", "#b8629a"),  # after Okabe and Ito, the yellow left out
        *("#c98500", "#3d9bd9", "#4d4d4d", "#8a6d3b"),
    )
    rc: Mapping[str, Any] = field(default_factory=lambda: _RC)
    wide: float = 1.0
    high: float = 1.0

    def size(self, wide: float, high: float) -> tuple[float, float]:
        """Of a new figure, in inches: that of paper times what the look asks for."""
        return self.wide * wide, self.high * high

    def colour(self, place: int) -> str:
        """Of the series at that place."""
        return self.series[place % len(self.series)]

    def settings(self) -> dict[str, Any]:
        """For matplotlib."""
        text = {f"{name}.color": self.text for name in ("text", "xtick", "ytick")} | {"axes.labelcolor": self.text}
        return {**self.rc, **text, "axes.edgecolor": self.soft, "grid.color": self.grid}


PAPER = Look()


def require_matplotlib() -> Any:
    """The package matplotlib.

    Raises:
        MissingDependency: with the command that installs it.
    """
    try:
        return importlib.import_module("matplotlib")
    except ImportError:
        raise MissingDependency("matplotlib, which draws the figures,", COMMAND) from None


@contextmanager
def canvas(look: Look, ax: Any, size: tuple[float, float], columns: int = 1) -> Generator[tuple[Any, list[Any]]]:
    """The figure and its axes to draw on: new ones in the look, or those that were passed, which keep their own.

    Args:
        look: the style.
        ax: axes or a sequence of them; None for a new figure.
        size: of a new figure, in inches.
        columns: how many axes there have to be.

    Raises:
        InvalidArgument: if as many axes were not passed.
    """
    with require_matplotlib().rc_context(look.settings()):
        if ax is not None:
            axes: list[Any] = [ax] if hasattr(ax, "plot") else list(getattr(ax, "flat", ax))
            if len(axes) != columns or not all(hasattr(item, "plot") for item in axes):
                raise InvalidArgument("ax", f"be {columns} axes of matplotlib", type(ax).__name__)
            yield axes[0].figure, axes
            return
        module: Any = importlib.import_module("matplotlib.figure")
        figure = module.Figure(figsize=size, layout="constrained")
        figure.get_layout_engine().set(w_pad=0.08, h_pad=0.06)
        yield figure, list(figure.subplots(1, columns, squeeze=False)[0])


def legend(figure: Any, axes: Sequence[Any], entries: Sequence[Any], new: bool) -> None:
    """Below the axes of a new figure, beside the last of those that were passed: never on the data."""
    if not entries:
        return
    shown = list(entries)
    if not new:
        axes[-1].legend(handles=shown, loc="upper left", bbox_to_anchor=(1.02, 1.0), borderaxespad=0.0)
        return
    wide, high = figure.get_size_inches()
    room = int(wide * 108 / require_matplotlib().rcParams["legend.fontsize"])
    count = _columns([len(entry.get_label()) for entry in shown], room)
    figure.set_size_inches(wide, high + 0.18 * (-(-len(shown) // count) - 1))  # the axes keep their height
    figure.legend(handles=shown, loc="outside lower left", ncols=count, handlelength=1.6, columnspacing=1.4)


def entry(label: str, **style: Any) -> Any:
    """A line of a legend."""
    lines: Any = importlib.import_module("matplotlib.lines")
    return lines.Line2D([], [], label=plain(label), **({"linestyle": "none"} | style))


def plain(text: str, most: int = LONGEST) -> str:
    """Text that matplotlib shows as it is: no mathematics, no line breaks, no hidden labels, and not too long."""
    text = " ".join("".join(c if c.isprintable() else " " for c in str(text)).split())
    if len(text) > most:
        text = f"{text[: most // 2]}…{text[len(text) - most // 2 + 1 :]}"
    return ("\u200b" if text.startswith("_") else "") + text.replace("$", r"\$")


def time_axis(axis: Any) -> None:
    """Ticks such as 1 ms, 1 s, 100 s on a logarithmic axis."""
    ticker: Any = importlib.import_module("matplotlib.ticker")
    axis.set_major_locator(ticker.LogLocator(10.0, numticks=8))
    axis.set_major_formatter(ticker.FuncFormatter(_time))
    axis.set_minor_formatter(ticker.NullFormatter())


def plain_ticks(axis: Any, lowest: float, highest: float) -> None:
    """Ticks such as 1, 2, 5, 10 on a logarithmic axis."""
    ticker: Any = importlib.import_module("matplotlib.ticker")
    ratio = highest / lowest
    subs = (1.0, 1.5, 2.0, 3.0, 5.0, 7.0) if ratio < 12 else (1.0, 2.0, 5.0) if ratio < 300 else (1.0,)
    axis.set_major_locator(ticker.LogLocator(10.0, subs=subs, numticks=9))
    axis.set_major_formatter(ticker.FuncFormatter(_plain))
    axis.set_minor_formatter(ticker.NullFormatter())


def save(figure: Any, path: str | os.PathLike[str]) -> Path:
    """Write a figure: PDF with its text as text (TrueType), SVG, or PNG, by the suffix; an existing file is replaced.

    Raises:
        InvalidArgument: for another suffix.
        FileNotWritten: if the file cannot be written; what was there before is as it was.
    """
    path = Path(path)
    require_suffix(path)
    out = io.BytesIO()
    suffix = path.suffix.lower()[1:]
    nothing = {"pdf": ("CreationDate",), "svg": ("Date",), "png": ()}[suffix]  # the same figure gives the same bytes
    with require_matplotlib().rc_context(dict(_RC) | {"svg.hashsalt": "lipbridge"}), warnings.catch_warnings():
        warnings.filterwarnings("ignore", r"Glyph \d+")  # of a name in a script that the typeface has not
        figure.savefig(out, format=suffix, dpi=300, metadata=dict.fromkeys(nothing))
    return write_atomically(path, out.getvalue())


def require_suffix(path: Path, parameter: str = "path") -> None:
    """Check that a figure can be written under that name.

    Raises:
        InvalidArgument: for a suffix that is none of :data:`SUFFIXES`.
    """
    if path.suffix.lower() not in SUFFIXES:
        raise InvalidArgument(parameter, f"end in {', '.join(SUFFIXES[:-1])} or {SUFFIXES[-1]}", str(path))


def _columns(lengths: Sequence[int], room: int) -> int:
    """As many columns as fit, filled from top to bottom as matplotlib does: the first ones have one entry more."""
    for count in range(len(lengths), 1, -1):
        least, more = divmod(len(lengths), count)
        ends = [(place + 1) * least + min(place + 1, more) for place in range(count)]
        if sum(max(lengths[start:end]) + 7 for start, end in zip([0, *ends], ends, strict=False)) <= room:
            return count
    return 1


def _plain(value: float, _: object = None) -> str:
    return f"{value:.15g}" if value < 1e6 else f"{value:.0e}"


def _time(value: float, _: object = None) -> str:
    for size, unit in ((1.0, "s"), (1e-3, "ms")):
        if value >= size * 0.999:
            return f"{value / size:g} {unit}"
    return f"{value * 1e6:g} µs"
