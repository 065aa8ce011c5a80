"""Rows as files for other programs and for papers: CSV, Parquet, LaTeX with booktabs, and Markdown."""

from __future__ import annotations

import importlib
import io
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lipbridge.disk.atomic import write_atomically
from lipbridge.errors import MissingDependency
from lipbridge.files.frames import COMMAND, frame_of, require_pandas
from lipbridge.report.tables import PaperTable, paper_tables

Row = Mapping[str, Any]
#: Longer tables may go over several pages.
FLOATING = 40
#: What pdflatex shows with its own typeface; other letters become a question mark.
_KNOWN = re.compile(r"[^\x20-\x7e\u00a1-\u017f\u2013\u2014\u2018\u2019\u201c\u201d\u2026]")


def require(*, parquet: bool = False) -> None:
    """Check that what the exports need is installed.

    Raises:
        MissingDependency: if pandas is not, or pyarrow for Parquet.
    """
    require_pandas()
    if parquet:
        try:
            importlib.import_module("pyarrow")
        except ImportError:
            raise MissingDependency("pyarrow, which writes Parquet,", COMMAND) from None


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
    require(parquet=True)
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


def write_markdown(path: str | os.PathLike[str], rows: Sequence[Row]) -> Path:
    """Write the same tables in Markdown, for a README or a forum.

    Raises:
        FileNotWritten: if the file cannot be written.
    """
    return write_atomically(path, markdown(rows).encode())


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
    return "\n".join([*parts, *(_styled(pandas, table) for table in paper_tables(rows))])


def markdown(rows: Sequence[Row]) -> str:
    """The tables of :func:`latex` in Markdown, with pipes."""
    return "\n".join(_piped(table) for table in paper_tables(rows))


def _styled(pandas: Any, table: PaperTable) -> str:
    """In LaTeX, escaped by pandas."""
    kept, columns = table.kept, table.columns
    cells = [[_letters(table.cell(index, place)) for place in kept] for index in range(len(table.lines))]
    frame = pandas.DataFrame(cells, columns=[_letters(columns[place]) for place in kept], dtype=object)
    marks = [["textbf:--rwrap" if (row, place) in table.bold else "" for place in kept] for row in range(len(cells))]
    styled = frame.style.format(escape="latex").format_index(escape="latex", axis=1).hide(axis="index")
    weights = pandas.DataFrame(marks, index=frame.index, columns=frame.columns)
    styled = styled.apply(weights.reindex_like, axis=None)
    texts = {"network", "verifier", "proved", "status", "norm"}
    form = "".join("l" if columns[place] in texts else "r" for place in kept)
    name = "tab:" + re.sub(r"[^a-z0-9]+", "-", table.label.lower()).strip("-")
    form_of_page = {"environment": "longtable"} if len(cells) > FLOATING else {"position_float": "centering"}
    before, _, after = table.caption.partition("{norm}")
    caption = _caption(before) + (f"$\\ell_{_norm(table.norm)}${_caption(after)}" if after else "")
    out: str = styled.to_latex(
        hrules=True, caption=caption, label=name, position="htbp", column_format=form, **form_of_page
    )
    return out.replace("\\begin{longtable}[htbp]", "\\begin{longtable}")


def _piped(table: PaperTable) -> str:
    """In Markdown; nothing that a cell holds ends the cell or the table."""
    kept = table.kept
    body = [
        [
            f"**{cell}**" if cell and (index, place) in table.bold else cell
            for place in kept
            for cell in [_plain(table.cell(index, place))]
        ]
        for index in range(len(table.lines))
    ]
    heads = [[_plain(table.columns[place]) for place in kept], ["---"] * len(kept)]
    lines = [f"| {' | '.join(cells)} |" for cells in [*heads, *body]]
    return "\n".join([table.caption.replace("{norm}", f"l_{table.norm}"), "", *lines, ""])


def _plain(words: str) -> str:
    """Words without a meaning in Markdown or HTML."""
    return re.sub(r"([\\|*_`<>\[\]&])", r"\\\1", " ".join(words.split()))


def _norm(norm: str) -> str:
    """``2`` or ``2\\to\\infty`` as an index, in mathematics."""
    return "{" + _caption(norm).replace("inf", "\\infty").replace("->", "\\to ") + "}"


def _caption(words: str) -> str:
    """Words of ours in a caption: regions and norms have no other letters."""
    return re.sub(r"[^\w .,;:/()<>=+-]|_", " ", _letters(words))


def _letters(words: str) -> str:
    return _KNOWN.sub("?", words)
