"""Rows as files of other formats: the options of every command that has rows of a study."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from lipbridge.cli.output import note

CsvOption = Annotated[Path | None, typer.Option("--csv", help="Also write the rows as CSV.")]
ParquetOption = Annotated[Path | None, typer.Option("--parquet", help="Also write the rows as Parquet.")]
LatexOption = Annotated[
    Path | None, typer.Option("--latex", help="Also write tables for LaTeX (booktabs), the best in bold.")
]


def exported(rows: Sequence[Mapping[str, Any]], csv: Path | None, parquet: Path | None, latex: Path | None) -> None:
    """Write the files that are asked for."""
    if csv is None and parquet is None and latex is None:
        return
    from lipbridge.report import tables

    for file, write in ((csv, tables.write_csv), (parquet, tables.write_parquet), (latex, tables.write_latex)):
        if file is not None:
            write(file, rows)
            note(f"rows: {file}")
