"""``lipbridge export``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from lipbridge.cli import parse
from lipbridge.cli.bound import ClassesOption, ModelArgument, OutputOption, ShapeOption, WeightsOption
from lipbridge.cli.output import JsonOption, print_json
from lipbridge.errors import InvalidArgument
from lipbridge.processes import stdout_to_stderr


def export(
    model: ModelArgument,
    out: Annotated[Path, typer.Option("--out", help="The file to write.")],
    to: Annotated[
        str | None, typer.Option("--to", metavar="FORMAT", help="onnx, mat, or another; that of FILE if not given.")
    ] = None,
    dialect: Annotated[
        str | None,
        typer.Option(
            help="Of a format that has several, as onnx: relu (linear layers, relu and max pooling) for tools that "
            "know no more; native: all as is. The format's first if not given."
        ),
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the file if it exists.")] = False,
    weights: WeightsOption = None,
    input_shape: ShapeOption = None,
    classes: ClassesOption = None,
    output: OutputOption = None,
    as_json: JsonOption = False,
) -> None:
    """Write a network in a format that other tools read. A file that exists needs --overwrite."""
    if out.is_dir() or (out.exists() and not overwrite):
        raise InvalidArgument("--out", "be a new file, or come with --overwrite", str(out))
    from lipbridge.cli.models import open_model
    from lipbridge.files.formats import format_to_write
    from lipbridge.files.models import Reading

    format = format_to_write(out, to, dialect)
    reading = Reading(parse.shape(input_shape), output, weights or (), parse.classes(classes))
    opened = open_model(model, reading)
    format.require()
    with stdout_to_stderr():
        written = format.write(opened.graph, out, dialect)
    note = written.pop("note", None)
    row = {"network": opened.name, "format": format.name, **written, "file": str(out), "bytes": out.stat().st_size}
    if as_json:
        print_json([row])
        return
    typer.echo(
        f"{opened.name}: {out} ({', '.join(str(row[key]) for key in ('format', 'dialect') if key in row)}, "
        f"{row['bytes']} bytes)"
    )
    if note is not None:
        typer.echo(str(note))
