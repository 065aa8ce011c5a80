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
    out: Annotated[Path, typer.Option("--out", help="The file to write; for vnncomp a folder.")],
    to: Annotated[
        str | None,
        typer.Option("--to", metavar="FORMAT", help="onnx, mat, vnncomp, or another; that of FILE if not given."),
    ] = None,
    dialect: Annotated[
        str | None,
        typer.Option(
            help="Of a format that has several, as onnx: relu (linear layers, relu and max pooling) for tools that "
            "know no more; native: all as is. The format's first if not given."
        ),
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the file if it exists.")] = False,
    data: Annotated[
        str | None, typer.Option(metavar="DATA", help="For vnncomp: whose test points are asked about; the run's own.")
    ] = None,
    radius: Annotated[
        str | None, typer.Option(help="For vnncomp: in l_inf, one or several, with commas between.")
    ] = None,
    points: Annotated[int, typer.Option(help="For vnncomp: how many test points, from the first.")] = 10,
    per_rival: Annotated[
        bool, typer.Option("--per-rival", help="For vnncomp: a file for each other class, not one for all.")
    ] = False,
    lipschitz: Annotated[
        float | None,
        typer.Option(metavar="L", help="For vnncomp: ask whether it bounds the Lipschitz constant."),
    ] = None,
    norm: Annotated[str, typer.Option(help="With --lipschitz: inf or 1.")] = "inf",
    box: Annotated[str, typer.Option(help="With --lipschitz: the ends of each number of x.")] = "0,1",
    distance: Annotated[str, typer.Option(help="With --lipschitz: the ends of |x - y| in l_inf.")] = "0.01,1",
    timeout: Annotated[int, typer.Option(help="For vnncomp: seconds that a verifier has for each file.")] = 60,
    weights: WeightsOption = None,
    input_shape: ShapeOption = None,
    classes: ClassesOption = None,
    output: OutputOption = None,
    as_json: JsonOption = False,
) -> None:
    """Write a network in a format that other tools read. A file that exists needs --overwrite.

    vnncomp is a folder with the network as ONNX, questions as VNN-LIB 1.0 and 2.0, and our own verdicts: whether the
    classes of test points are robust (--radius), or whether L bounds the Lipschitz constant (--lipschitz).
    """
    from lipbridge.files.benchmarks import benchmark_names

    if to is not None and to in benchmark_names():
        from lipbridge.cli.questions import asked_about, claimed, export_claim, export_questions
        from lipbridge.files.models import Reading

        if dialect is not None:
            raise InvalidArgument("--dialect", f"not be given with {to}, which has one", dialect)
        reading = Reading(parse.shape(input_shape), output, weights or (), parse.classes(classes), data=data)
        if radius is not None and lipschitz is not None:
            raise InvalidArgument("--radius", "not come with --lipschitz: they are two questions", radius)
        if lipschitz is not None:
            claim = claimed(lipschitz, norm, box, distance)
            export_claim(model, out, to, claim, timeout, reading, overwrite=overwrite, as_json=as_json)
            return
        if radius is None:
            raise InvalidArgument("--radius or --lipschitz", f"be given with --to {to}", None)
        asked = asked_about(data, radius, points, per_rival, timeout)
        export_questions(model, out, to, asked, reading, overwrite=overwrite, as_json=as_json)
        return
    if data is not None or radius is not None or lipschitz is not None or per_rival:
        words = f"come with --to {' or '.join(benchmark_names())}"
        raise InvalidArgument("--data, --radius, --lipschitz, --per-rival", words, to)
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
