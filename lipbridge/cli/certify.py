"""``lipbridge certify``."""

from __future__ import annotations

from typing import Annotated

import typer

from lipbridge.cli import parse
from lipbridge.cli.bound import ModelArgument, NormOption, OutputOption, ShapeOption, WeightsOption
from lipbridge.cli.output import JsonOption, print_json, print_table, spinner
from lipbridge.errors import InvalidArgument
from lipbridge.processes import stdout_to_stderr
from lipbridge.text import number, percent, seconds


def certify(
    model: ModelArgument,
    data: Annotated[str, typer.Argument(metavar="DATA", help="A dataset's name, or a folder of IDX files.")],
    radius: Annotated[str, typer.Option("--radius", help="One or several, with commas between.")],
    norm: NormOption = "2",
    verifier: Annotated[str, typer.Option("--verifier", help="One or several that can certify.")] = "trivial",
    points: Annotated[int | None, typer.Option(help="Only the first so many test points; all if not given.")] = None,
    time_limit: Annotated[float, typer.Option("--time-limit", help="Seconds for each verifier and radius.")] = 300.0,
    weights: WeightsOption = None,
    input_shape: ShapeOption = None,
    output: OutputOption = None,
    as_json: JsonOption = False,
) -> None:
    """Give the certified accuracy at each radius.

    That is the share of test points whose class is right in the whole closed ball of that radius.
    """
    radii, names = parse.radii(radius), parse.names(verifier, "--verifier")
    if points is not None and points < 1:
        raise InvalidArgument("--points", "be at least 1", points)
    from lipbridge.cli.models import open_model
    from lipbridge.files.models import Reading, dataset_of
    from lipbridge.study.single import certified_rows
    from lipbridge.verifiers import Budget
    from lipbridge.vocabulary import as_norm

    p, budget = as_norm(norm), Budget(time_limit)
    reading = Reading(parse.shape(input_shape), output, weights or (), data=data)
    opened = open_model(model, reading)
    dataset = dataset_of(opened, data)
    if dataset is None:
        raise InvalidArgument("DATA", "name a dataset", data)
    inputs, labels = dataset.test_inputs[:points], dataset.test_labels[:points]
    with spinner() as show, stdout_to_stderr():
        show(f"{opened.name}: {', '.join(names)}")
        rows = certified_rows(opened.name, opened.graph, dataset.name, inputs, labels, radii, p, names, budget)
    if as_json:
        print_json(rows)
        return
    print_table(
        f"{opened.name}: certified accuracy on {len(labels)} test points of {dataset.name}, l{p}",
        {
            "verifier": lambda row: row["verifier"],
            "radius": lambda row: number(row["radius"]),
            "accuracy": lambda row: percent(row["accuracy"]),
            "certified": lambda row: percent(row["certified_accuracy"]),
            "time": lambda row: seconds(row["seconds"]),
            "detail": lambda row: row["detail"],
        },
        rows,
    )
