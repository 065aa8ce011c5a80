"""``lipbridge export``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from lipbridge.cli.output import JsonOption, print_json, stdout_for_rows
from lipbridge.errors import InvalidArgument, UnknownName

FORMATS = ("onnx",)
DIALECTS = ("relu", "native")


def export(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="A folder or file that train wrote.")],
    out: Annotated[Path, typer.Option("--out", help="The file to write.")],
    to: Annotated[str, typer.Option("--to", help=f"Format: {', '.join(FORMATS)}.")] = "onnx",
    dialect: Annotated[
        str, typer.Option(help="relu: dense layers and relu alone, for tools that know no more; native: all as it is.")
    ] = "relu",
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the file if it exists.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Write a network in a format that other tools read. A file that exists needs --overwrite."""
    for kind, name, known in (("format", to, FORMATS), ("dialect", dialect, DIALECTS)):
        if name not in known:
            raise UnknownName(kind, name, known)
    if out.is_dir() or (out.exists() and not overwrite):
        raise InvalidArgument("--out", "be a new file, or come with --overwrite", str(out))
    from importlib import import_module
    from typing import Any

    from lipbridge.cli.models import open_model

    opened = open_model(model)
    adapter: Any = import_module("lipbridge_adapters.onnx")
    with stdout_for_rows():
        adapter.export_onnx(opened.graph, out, dialect)
    row = {
        "network": opened.name,
        "format": to,
        "dialect": dialect,
        "file": str(out),
        "bytes": out.stat().st_size,
    }
    if as_json:
        print_json([row])
    else:
        typer.echo(f"{opened.name}: {out} ({to}, {dialect}, {row['bytes']} bytes)")
