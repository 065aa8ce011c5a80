"""Rows as files for other programs and for papers: CSV, Parquet, and LaTeX with booktabs."""

from __future__ import annotations

import importlib
import io
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lipbridge import text
from lipbridge.disk.atomic import write_atomically
from lipbridge.errors import MissingDependency
from lipbridge.files.frames import COMMAND, frame_of, require_pandas
from lipbridge.plot.networks import group_of, grouped, is_number, mean, names_of, norm_of, spread
from lipbridge.report.summaries import bounds_of, certified_tables, group_table

Row = Mapping[str, Any]
_QUANTITIES = {"lipschitz": "Lipschitz constant", "deviation": "Largest deviation from the centre / radius"}
#: Longer tables may go over several pages.
FLOATING = 40
#: What pdflatex shows with its own typeface; other letters become a question mark.
_KNOWN = re.compile(r"[^\x20-\x7e\u00a1-\u017f\u2013\u2014\u2018\u2019\u201c\u201d\u2026]")


def write_csv(path: str | os.PathLike[str], rows: Sequence[Row]) -> Path:
    """Write the rows as CSV, flattened, with the columns of :func:`lipbridge.read_rows`.

    Raises:
        MissingDependency: if pandas is not installed.
        FileNotWritten: if the file cannot be written.
    """
    require_pandas()
    return write_atomically(path, frame_of(rows, "pandas").to_csv(index=False).encode())


def write_parquet(path: str | os.PathLike[str], rows: Sequence[Row]) -> Path:
    """Write the rows as Parquet, flattened, with the columns of :func:`lipbridge.read_rows`.

    Raises:
        MissingDependency: if pandas or pyarrow is not installed.
        FileNotWritten: if the file cannot be written.
    """
    require_pandas()
    try:
        importlib.import_module("pyarrow")
    except ImportError:
        raise MissingDependency("pyarrow, which writes Parquet,", COMMAND) from None
    out = io.BytesIO()
    frame_of(rows, "pandas").to_parquet(out, engine="pyarrow", index=False)
    return write_atomically(path, out.getvalue())


def write_latex(path: str | os.PathLike[str], rows: Sequence[Row]) -> Path:
    """Write the tables of a study for a paper, as :func:`latex` has them.

    Raises:
        MissingDependency: if pandas or jinja2 is not installed.
        FileNotWritten: if the file cannot be written.
    """
    return write_atomically(path, latex(rows).encode())


def latex(rows: Sequence[Row]) -> str:
    r"""Tables with booktabs: the networks, a table for each question, certified accuracy; to be read by ``\input``.

    Means and standard deviations are over the seeds of a group. In bold: the best value, which is the least bound that
    is proved for each group. Letters that pdflatex does not know become question marks.
    """
    pandas = require_pandas()
    try:
        importlib.import_module("jinja2")
    except ImportError:
        raise MissingDependency("jinja2, with which pandas writes LaTeX,", COMMAND) from None
    parts = ["% needs \\usepackage[T1]{fontenc} and \\usepackage{booktabs,longtable}"]
    if any(row.get("kind") in ("training", "model") for row in rows):
        parts.append(_networks(pandas, rows))
    parts += [_question(pandas, some, key) for key, some in _questions(rows).items()]
    for table in certified_tables(rows):
        lines = [
            [line["group"], line["verifier"], *(_interval(cell, 100) for cell in line["cells"])]
            for line in table["lines"]
        ]
        columns = ["network", "verifier", *(f"{radius:g}" for radius in table["radii"])]
        caption = f"Certified accuracy in per cent in balls of $\\ell_{_norm(table['norm'])}$, by radius."
        parts.append(_styled(pandas, columns, lines, caption, f"certified-{table['norm']}"))
    return "\n".join(parts)


def _networks(pandas: Any, rows: Sequence[Row]) -> str:
    lines = group_table(rows)
    cells = [
        [
            *(line["group"], line["norm"], str(line["seeds"]), _interval(line["accuracy"], 100)),
            *(_interval(line[key]) for key in ("bound", "tightness", "best")),
        ]
        for line in lines
    ]
    columns = ["network", "norm", "seeds", "accuracy, %", "trivial bound", "tightness", "best bound"]
    caption = "Networks: mean and standard deviation over the seeds."
    return _styled(pandas, columns, cells, caption, "networks")


def _questions(rows: Sequence[Row]) -> dict[Any, list[Row]]:
    uppers = [row for row in bounds_of(rows) if row.get("side") != "lower"]
    return grouped(((row["quantity"], norm_of(row), row["region"]), row) for row in uppers)


def _question(pandas: Any, rows: Sequence[Row], key: tuple[str, str, str]) -> str:
    quantity, norm, region = key
    names = names_of(group_of(row) for row in rows)
    lines: list[list[str]] = []
    bold: set[tuple[int, int]] = set()
    for group, some in grouped((group_of(row), row) for row in rows).items():
        proven: dict[int, float] = {}
        for verifier, few in grouped((str(row.get("verifier_label") or row["verifier"]), row) for row in some).items():
            values = _values(few, "value")
            proved = bool(values) and all(row["proved"] for row in few if row["status"] == "ok")
            if proved and len(values) == len(few):
                proven[len(lines)] = mean(values)
            statuses = dict.fromkeys(str(row["status"]) for row in few)
            lines.append(
                [
                    names[group],
                    verifier,
                    _interval_of(values),
                    _interval_of(_values(few, "tightness")),
                    _time(few),
                    "" if not values else "yes" if proved else "no",
                    "" if set(statuses) == {"ok"} else ", ".join(statuses),
                ]
            )
        bold |= {(place, 2) for place, value in proven.items() if value <= min(proven.values()) * (1 + 1e-9)}
    columns = ["network", "verifier", "bound", "tightness", "time", "proved", "status"]
    where = "" if region == "everywhere" else f", {_caption(region)}"
    caption = f"{_QUANTITIES.get(quantity, _caption(quantity))}, $\\ell_{_norm(norm)}${where}."
    return _styled(pandas, columns, lines, caption, f"{quantity}-{norm}-{region}", bold)


def _styled(
    pandas: Any,
    columns: Sequence[str],
    lines: Sequence[Sequence[str]],
    caption: str,
    label: str,
    bold: set[tuple[int, int]] = frozenset(),  # type: ignore[assignment]
) -> str:
    """One table, escaped by pandas; columns that are empty in all lines are left out, repeated names stand once."""
    kept = [place for place, _ in enumerate(columns) if any(line[place] for line in lines)]
    cells: list[list[str]] = []
    for index, line in enumerate(lines):
        again = index > 0 and lines[index - 1][0] == line[0]
        cells.append([_letters("" if again and place == 0 else line[place]) for place in kept])
    frame = pandas.DataFrame(cells, columns=[_letters(columns[place]) for place in kept], dtype=object)
    marks = [["textbf:--rwrap" if (row, place) in bold else "" for place in kept] for row in range(len(lines))]
    styled = frame.style.format(escape="latex").format_index(escape="latex", axis=1).hide(axis="index")
    weights = pandas.DataFrame(marks, index=frame.index, columns=frame.columns)
    styled = styled.apply(weights.reindex_like, axis=None)
    texts = {"network", "verifier", "proved", "status", "norm"}
    form = "".join("l" if columns[place] in texts else "r" for place in kept)
    name = "tab:" + re.sub(r"[^a-z0-9]+", "-", label.lower()).strip("-")
    form_of_page = {"environment": "longtable"} if len(lines) > FLOATING else {"position_float": "centering"}
    out: str = styled.to_latex(
        hrules=True, caption=caption, label=name, position="htbp", column_format=form, **form_of_page
    )
    return out.replace("\\begin{longtable}[htbp]", "\\begin{longtable}")


def _interval(value: Mapping[str, float] | None, factor: float = 1.0) -> str:
    return text.interval(value["mean"], value["spread"], factor) if value else ""


def _interval_of(values: Sequence[float]) -> str:
    return text.interval(mean(values), spread(values)) if values else ""


def _values(rows: Sequence[Row], key: str) -> list[float]:
    return [row[key] for row in rows if is_number(row.get(key)) and row["status"] == "ok"]


def _time(rows: Sequence[Row]) -> str:
    times = _values(rows, "seconds")
    return text.seconds(mean(times)).replace("µ", "u") if times else ""


def _norm(norm: str) -> str:
    """``2`` or ``2\\to\\infty`` as an index, in mathematics."""
    return "{" + _caption(norm).replace("inf", "\\infty").replace("->", "\\to ") + "}"


def _caption(words: str) -> str:
    """Words of ours in a caption: regions and norms have no other letters."""
    return re.sub(r"[^\w .,;:/()<>=+-]|_", " ", _letters(words))


def _letters(words: str) -> str:
    return _KNOWN.sub("?", words)
