"""``lipbridge export``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from lipbridge.cli import parse
from lipbridge.cli.bound import ClassesOption, ModelArgument, OutputOption, ShapeOption, WeightsOption
from lipbridge.cli.output import JsonOption, print_json
from lipbridge.errors import InvalidArgument, UnknownName
from lipbridge.processes import stdout_to_stderr

FORMATS = ("onnx", "mat")
DIALECTS = ("relu", "native")


def export(
    model: ModelArgument,
    out: Annotated[Path, typer.Option("--out", help="The file to write.")],
    to: Annotated[str, typer.Option("--to", help="onnx; mat: the weights for the MATLAB LipSDP.")] = "onnx",
    dialect: Annotated[
        str,
        typer.Option(
            help="Of onnx. relu: linear layers, relu and max pooling, for tools that know no more; native: all as is."
        ),
    ] = "relu",
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the file if it exists.")] = False,
    weights: WeightsOption = None,
    input_shape: ShapeOption = None,
    classes: ClassesOption = None,
    output: OutputOption = None,
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
    from lipbridge.files.models import Reading

    reading = Reading(parse.shape(input_shape), output, weights or (), parse.classes(classes))
    opened = open_model(model, reading)
    adapter: Any = import_module(f"lipbridge_adapters.{'onnx.export' if to == 'onnx' else 'matlab.lipsdp_mat'}")
    row: dict[str, object] = {"network": opened.name, "format": to}
    with stdout_to_stderr():
        if to == "onnx":
            adapter.export_onnx(opened.graph, out, dialect)
            row["dialect"] = dialect
        else:
            report = adapter.export_mat(opened.graph, out)
            row |= {"alpha": report.alpha, "beta": report.beta, "command": report.command}
    row |= {"file": str(out), "bytes": out.stat().st_size}
    if as_json:
        print_json([row])
        return
    typer.echo(
        f"{opened.name}: {out} ({', '.join(str(row[key]) for key in ('format', 'dialect') if key in row)}, "
        f"{row['bytes']} bytes)"
    )
    if "command" in row:
        typer.echo(f"In the folder LipSDP of its repository: {row['command']}")
