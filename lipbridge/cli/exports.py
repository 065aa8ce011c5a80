"""Rows as files of other formats: the options of every command that has rows of a study."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from lipbridge.cli.output import note
from lipbridge.disk.atomic import require_place

CsvOption = Annotated[Path | None, typer.Option("--csv", help="Also write the rows as CSV.")]
ParquetOption = Annotated[Path | None, typer.Option("--parquet", help="Also write the rows as Parquet.")]
LatexOption = Annotated[
    Path | None, typer.Option("--latex", help="Also write tables for LaTeX (booktabs), the best in bold.")
]
MarkdownOption = Annotated[Path | None, typer.Option("--markdown", help="Also write the same tables in Markdown.")]


def require_exports(csv: Path | None, parquet: Path | None, latex: Path | None, markdown: Path | None) -> None:
    """Check, before any long work, that the files that are asked for can be made and written.

    Raises:
        MissingDependency: if a package that they need is not installed.
        InvalidArgument: if one cannot be written.
    """
    if csv is not None or parquet is not None or latex is not None:
        from lipbridge.report import exports

        exports.require(parquet=parquet is not None)
    names = ("--csv", "--parquet", "--latex", "--markdown")
    for name, file in zip(names, (csv, parquet, latex, markdown), strict=True):
        if file is not None:
            require_place(file, name)


def exported(
    rows: Sequence[Mapping[str, Any]],
    csv: Path | None,
    parquet: Path | None,
    latex: Path | None,
    markdown: Path | None,
) -> None:
    """Write the files that are asked for."""
    if csv is None and parquet is None and latex is None and markdown is None:
        return
    from lipbridge.report import exports

    writers = (exports.write_csv, exports.write_parquet, exports.write_latex, exports.write_markdown)
    for file, write in zip((csv, parquet, latex, markdown), writers, strict=True):
        if file is not None:
            write(file, rows)
            note(f"rows: {file}")
