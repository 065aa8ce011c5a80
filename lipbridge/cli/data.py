"""``lipbridge data``: which datasets are on this machine, and getting the others."""

from __future__ import annotations

import sys
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from lipbridge.cli.output import JsonOption, print_json, print_table
from lipbridge.text import mebibytes

app = typer.Typer(help="List datasets, and fetch those that are not here.", rich_markup_mode=None)


@app.command("list")
def list_(as_json: JsonOption = False) -> None:
    """List the datasets known by name. Any folder of IDX files or CIFAR-10 batches is a dataset too."""
    from lipbridge.data import dataset_status

    rows = [asdict(status) for status in dataset_status()]
    if as_json:
        print_json(rows)
        return
    print_table(
        "Datasets",
        {
            "name": lambda row: row["name"],
            "holds": lambda row: row["description"],
            "where": lambda row: row["where"] or "not on this machine",
            "size": lambda row: mebibytes(row["bytes_on_disk"]),
            "get it with": lambda row: row["get"],
        },
        rows,
    )


@app.command()
def fetch(
    name: Annotated[str, typer.Argument(metavar="NAME", help="mnist or fashion-mnist.")],
    folder: Annotated[Path | None, typer.Option(help="Where to put it; the user's cache if not given.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Download a dataset from public mirrors, verified by SHA-256. A copy that is already here is used."""
    from lipbridge.data import fetch_dataset

    where = fetch_dataset(name, folder, progress=sys.stderr.isatty())
    if as_json:
        print_json([{"name": name, "where": str(where)}])
    else:
        typer.echo(f"{name}: {where}")
