"""``lipbridge sweep``: a frontier of accuracy against bound, as a study made on the fly."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated, Any

import typer

from lipbridge.cli import parse
from lipbridge.cli.exports import CsvOption, LatexOption, MarkdownOption, ParquetOption, require_exports
from lipbridge.cli.output import JsonOption, note
from lipbridge.cli.study import EngineOption, JobsOption, ReportOption, RetryOption, finish, run_plan


def sweep(
    data: Annotated[
        str, typer.Argument(metavar="DATA", help="A dataset's name, or a folder of IDX or CIFAR-10 files.")
    ],
    penalty: Annotated[str, typer.Option("--penalty", help="Weights of the bound in the loss, e.g. 0.003,0.01,0.03.")],
    out: Annotated[Path, typer.Option("--out", help="The study's folder.")],
    seeds: Annotated[int, typer.Option("--seeds", min=1, help="Networks for each penalty: seeds 0, 1, ...")] = 1,
    norm: Annotated[str, typer.Option(help="Norm of the bound: 1, 2 or inf.")] = "2",
    arch: Annotated[
        str, typer.Option(help="dense, conv-small, conv-large, or FILE.py:FACTORY: your own function, which is run.")
    ] = "dense",
    widths: Annotated[str | None, typer.Option(help="Hidden widths, e.g. 256,256.")] = None,
    activation: Annotated[str | None, typer.Option(help="A registered activation, e.g. abs, crelu, sincos.")] = None,
    epochs: Annotated[int | None, typer.Option(help="Passes over the training data.")] = None,
    warm_start: Annotated[
        bool,
        typer.Option("--warm-start", help="Each network starts from the weights of the one of the penalty before."),
    ] = False,
    rescale: Annotated[
        bool, typer.Option("--rescale", help="At the end, scale the units for the least bound; the function stays.")
    ] = False,
    jobs: JobsOption = None,
    engine: EngineOption = None,
    retry: RetryOption = "",
    report: ReportOption = None,
    csv: CsvOption = None,
    parquet: ParquetOption = None,
    latex: LatexOption = None,
    markdown: MarkdownOption = None,
    as_json: JsonOption = False,
) -> None:
    """Train a network for each penalty and seed, prove their bounds, and report the frontier.

    This is a study: its file stands in the folder, and the same command, or `study resume`, goes on with it.
    """
    from lipbridge.study.config import parse_study
    from lipbridge.study.plan import make_plan
    from lipbridge.study.writing import sweep_file
    from lipbridge.vocabulary import as_norm

    changes: dict[str, Any] = {
        "widths": None if widths is None else parse.widths(widths),
        "activation": activation,
    }
    penalties = parse.penalties(penalty)
    text = sweep_file(
        data,
        penalties,
        seeds,
        as_norm(norm),
        arch,
        {name: value for name, value in changes.items() if value is not None},
        {} if epochs is None else {"epochs": epochs},
        warm_start=warm_start,
        rescale=rescale,
        engine={"jobs": jobs or 1},
    )
    read = parse_study(text, Path("sweep.toml"))
    plan = make_plan(read, jobs=jobs)
    require_exports(csv, parquet, latex, markdown)
    given = {"--penalty": penalty, "--seeds": seeds, "--norm": norm, "--arch": arch, "--widths": widths}
    given |= {"--activation": activation, "--epochs": epochs, "--out": out}
    words = [word for option, value in given.items() if value is not None for word in (option, str(value))]
    switches = [option for option, on in (("--warm-start", warm_start), ("--rescale", rescale)) if on]
    again = shlex.join(["lipbridge", "sweep", data, *words, *switches])
    run_plan(plan, read.kept(), out, again, jobs, engine, retry)
    finish(out, report, csv, parquet, latex, markdown, as_json=as_json)
    note(f"the figure for a paper: lipbridge plot frontier {out} --out frontier.pdf")


__all__ = ["sweep"]
