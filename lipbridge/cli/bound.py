"""``lipbridge bound``."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lipbridge.cli import parse
from lipbridge.cli.output import JsonOption, note, print_json, spinner
from lipbridge.cli.tables import advise, warn_of_unsound
from lipbridge.errors import InvalidArgument
from lipbridge.processes import stdout_to_stderr

if TYPE_CHECKING:
    from lipbridge.graph.graph import Graph
    from lipbridge.problem.question import Ball
    from lipbridge.study.rows import Row

NormOption = Annotated[str, typer.Option(help="Input norm: 1, 2 or inf.")]
OutputNormOption = Annotated[str | None, typer.Option(help="Output norm; the input norm if not given.")]
TimeOption = Annotated[float, typer.Option("--time-limit", help="Seconds for each verifier on each network.")]
MemoryOption = Annotated[str, typer.Option("--memory-limit", help="For each verifier's process, e.g. 512M or 8G.")]
SeedOption = Annotated[int, typer.Option(help="Of everything that is drawn.")]
ModelArgument = Annotated[
    str,
    typer.Argument(
        metavar="MODEL",
        help="A folder or file that train wrote, a file of a format such as ONNX, or FILE.py:NAME: your own module, "
        "whose file is run.",
    ),
]
ShapeOption = Annotated[
    str | None,
    typer.Option(
        "--input-shape", help="Of one input of a file (ONNX) that leaves it open, or of FILE.py:NAME, e.g. 3,32,32."
    ),
]
WeightsOption = Annotated[
    list[str] | None,
    typer.Option(
        "--weights", metavar="FILE", help="State dict of FILE.py:NAME: .pt or .safetensors; nothing in it runs."
    ),
]
ClassesOption = Annotated[
    int | None,
    typer.Option(help="With --input-shape what NAME is called with, if it takes (input_shape, classes)."),
]
OutputOption = Annotated[
    str | None,
    typer.Option("--output", help="The value of a file (ONNX) to stop at, e.g. the scores before a softmax."),
]
SettingOption = Annotated[
    list[str] | None,
    typer.Option("--option", metavar="VERIFIER.NAME=VALUE", help="An option of a verifier; may be repeated."),
]

KeepOption = Annotated[
    Path,
    typer.Option(
        "--keep", metavar="FOLDER", help="Where networks are kept, with what shows it, that a verifier is wrong about."
    ),
]


def bound(
    model: ModelArgument,
    norm: NormOption = "2",
    output_norm: OutputNormOption = None,
    verifier: Annotated[str, typer.Option("--verifier", help="One or several, with commas between.")] = "trivial",
    radius: Annotated[
        float | None, typer.Option(help="Bound it in balls of this radius around test points, not everywhere.")
    ] = None,
    ball_norm: Annotated[
        str | None, typer.Option("--ball-norm", help="Norm of the balls: 1, 2 or inf; the input norm if not given.")
    ] = None,
    data: Annotated[
        str | None,
        typer.Option(help="Where the test points are from; the training run's data. Also what NAME is called for."),
    ] = None,
    points: Annotated[int, typer.Option(help="How many test points; the bound is the largest of their balls'.")] = 1,
    margin: Annotated[
        str | None,
        typer.Option(
            metavar="LABEL[,RIVAL...]",
            help="Bound the differences of this output and its rivals (all others if none is given).",
        ),
    ] = None,
    keep_proof: Annotated[
        Path | None,
        typer.Option(
            "--keep-proof",
            metavar="FILE",
            help="With the verifier exact: prove it once more, in as much time, for lipbridge check.",
        ),
    ] = None,
    time_limit: TimeOption = 300.0,
    memory_limit: MemoryOption = "8G",
    seed: SeedOption = 0,
    option: SettingOption = None,
    weights: WeightsOption = None,
    input_shape: ShapeOption = None,
    classes: ClassesOption = None,
    output: OutputOption = None,
    keep: KeepOption = Path("contradictions"),
    as_json: JsonOption = False,
) -> None:
    """Bound a network's Lipschitz constant, everywhere or with --radius in balls around test points.

    Verifiers that need foreign packages run in a process of their own with the limits. Tightness needs a lower bound:
    add `witness` to the verifiers, or use compare.
    """
    names = parse.names(verifier, "--verifier")
    memory, settings = parse.memory(memory_limit), parse.options(option or [])
    radius = parse.one_radius(radius)
    for name, value in (("--ball-norm", ball_norm), ("--data", None if ".py:" in model else data)):
        if radius is None and value is not None:
            raise InvalidArgument(name, "come with --radius, which asks for a bound in balls", value)
    if keep_proof is not None and names != ["exact"]:
        raise InvalidArgument("--keep-proof", "come with --verifier exact alone: no other keeps a proof", verifier)
    if points < 1:
        raise InvalidArgument("--points", "be at least 1", points)
    from lipbridge.cli.models import open_model
    from lipbridge.cli.tables import print_bounds
    from lipbridge.files.models import Reading, balls_of
    from lipbridge.study.single import bound_network
    from lipbridge.verifiers import Budget, require_options
    from lipbridge.vocabulary import Status

    require_options(names, settings)
    budget = Budget(time_limit, memory, seed)
    difference = parse.margin(margin)
    opened = open_model(model, Reading(parse.shape(input_shape), output, weights or (), parse.classes(classes), data))
    region = None if radius is None else balls_of(opened, data, points, radius, ball_norm or norm)
    name, graph = opened.name, opened.graph
    if difference is not None:
        label, rivals = difference
        graph = graph.margins(label, rivals)
        name = f"{name}, {label} less {'each other' if rivals is None else ', '.join(map(str, rivals))}"
    if keep_proof is not None:
        _provable(graph, norm, output_norm)
    with spinner() as show, stdout_to_stderr():
        show(f"{name}: {', '.join(names)}")
        rows = bound_network(
            name, graph, names, norm, output_norm, region=region, budget=budget, options=settings, keep=keep
        )
        if keep_proof is not None and math.isfinite(rows[0].value):
            show(f"{name}: proof")
            _keep(keep_proof, graph, norm, output_norm, region, rows[0], time_limit)
    json_rows: list[dict[str, Any]] = [row.to_json() for row in rows]
    if as_json:
        print_json(json_rows)
    else:
        print_bounds(json_rows)
    advise(json_rows)
    warn_of_unsound(json_rows)
    if not any(row.status is Status.OK for row in rows):
        raise typer.Exit(1)


def _provable(graph: Graph, norm: str, output_norm: str | None) -> None:
    """Refuse what the checker does not know before any time is spent."""
    from lipbridge.checking.check import network_of
    from lipbridge.problem.problem import Problem
    from lipbridge.problem.question import Question

    network_of(Problem(graph, Question.everywhere(norm, output_norm)))


def _keep(
    file: Path, graph: Graph, norm: str, output_norm: str | None, region: Ball | None, row: Row, seconds: float
) -> None:
    """Make a proof of a row's bound, and write it; a note says if it ended with a larger one."""
    from dataclasses import replace

    from lipbridge.branch_and_bound.proof import prove
    from lipbridge.files.proofs import save_proof
    from lipbridge.problem.problem import Problem
    from lipbridge.problem.question import Question

    question = replace(Question.everywhere(norm, output_norm), region=region)
    proof = prove(Problem(graph, question), row.value, seconds=seconds, witness=row.witness)
    save_proof(proof, file)
    if proof.upper > row.value:
        note(f"note: the proof shows {proof.upper:.6g}, not {row.value:.6g}: see the guide, The exact constant")
