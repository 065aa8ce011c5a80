"""``lipbridge check``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from lipbridge.cli import parse
from lipbridge.cli.bound import ClassesOption, ModelArgument, OutputOption, ShapeOption, WeightsOption
from lipbridge.cli.output import Cell, JsonOption, JsonRow, print_json, print_table


def check(
    model: ModelArgument,
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A proof that bound --keep-proof wrote.")],
    margin: Annotated[
        str | None,
        typer.Option(metavar="LABEL[,RIVAL...]", help="As it was given to bound."),
    ] = None,
    weights: WeightsOption = None,
    input_shape: ShapeOption = None,
    classes: ClassesOption = None,
    output: OutputOption = None,
    as_json: JsonOption = False,
) -> None:
    """Check a proof of a bound in exact fractions, by a program that shares none of the solvers.

    It ends with an error that names the first wrong step if the proof does not hold.
    """
    from lipbridge.checking.check import check as check_proof
    from lipbridge.cli.models import open_model
    from lipbridge.files.models import Reading
    from lipbridge.files.proofs import load_proof

    difference = parse.margin(margin)
    opened = open_model(model, Reading(parse.shape(input_shape), output, weights or (), parse.classes(classes), None))
    graph = opened.graph if difference is None else opened.graph.margins(*difference)
    proof = load_proof(file, graph)
    found = check_proof(proof)
    row: dict[str, Any] = {
        "network": opened.name,
        "norm": proof.problem.norm_name,
        "region": proof.problem.region_name,
        "lower": found.lower,
        "upper": found.upper,
        "leaves": found.leaves,
        "empty": found.empty,
    }
    if as_json:
        print_json([row])
    else:
        names = ("network", "norm", "region", "lower", "upper", "leaves", "empty")
        print_table("The proof holds", {name: _cell(name) for name in names}, [row])


def _cell(name: str) -> Cell:
    def shown(row: JsonRow) -> str:
        value = row[name]
        return f"{value:.12g}" if isinstance(value, float) else str(value)

    return shown
