"""``lipbridge compare``."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lipbridge.cli import parse
from lipbridge.cli.bound import (
    ClassesOption,
    KeepOption,
    MemoryOption,
    NormOption,
    OutputNormOption,
    OutputOption,
    SeedOption,
    SettingOption,
    ShapeOption,
    TimeOption,
    WeightsOption,
)
from lipbridge.cli.exports import CsvOption, LatexOption, MarkdownOption, ParquetOption, exported, require_exports
from lipbridge.cli.output import JsonOption, note, print_json, spinner
from lipbridge.cli.progress import told as row_told
from lipbridge.cli.tables import advise, print_bounds, warn_of_unsound
from lipbridge.errors import InvalidArgument

if TYPE_CHECKING:
    from lipbridge.study.rows import Row
    from lipbridge.verifiers import VerifierInfo


def compare(
    model: Annotated[
        list[str],
        typer.Argument(
            metavar="MODEL...",
            help="Folders or files that train wrote, files of formats such as ONNX, or FILE.py:NAME, your own modules.",
        ),
    ],
    verifiers: Annotated[
        str | None, typer.Option("--verifiers", "--verifier", help="With commas between; all that are installed.")
    ] = None,
    norm: NormOption = "2",
    output_norm: OutputNormOption = None,
    report: Annotated[
        Path | None, typer.Option("--report", help="Also write an HTML report; a file that exists is replaced.")
    ] = None,
    data: Annotated[
        str | None, typer.Option(help="Test points to start from; those of the training run, or `none`.")
    ] = None,
    points: Annotated[int, typer.Option(help="Points for local bounds and certified accuracy.")] = 32,
    radius: Annotated[float | None, typer.Option(help="Radius of the balls around them; chosen by the norm.")] = None,
    local: Annotated[
        bool, typer.Option("--local", help="Also the Lipschitz constant in these balls, by those that can bound it.")
    ] = False,
    time_limit: TimeOption = 300.0,
    memory_limit: MemoryOption = "8G",
    threads: Annotated[
        int | None, typer.Option(help="Of each verifier's process; the cores divided by the jobs if not given.")
    ] = None,
    jobs: Annotated[int, typer.Option(min=1, help="Verifiers at once.")] = 1,
    seed: SeedOption = 0,
    option: SettingOption = None,
    weights: WeightsOption = None,
    input_shape: ShapeOption = None,
    classes: ClassesOption = None,
    output: OutputOption = None,
    keep: KeepOption = Path("contradictions"),
    rows: Annotated[
        Path | None, typer.Option("--rows", metavar="FILE", help="Append each row to FILE (.jsonl) as it comes.")
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="What has its row in the file of --rows is not run.")
    ] = False,
    csv: CsvOption = None,
    parquet: ParquetOption = None,
    latex: LatexOption = None,
    markdown: MarkdownOption = None,
    as_json: JsonOption = False,
) -> None:
    """Put verifiers side by side on one or more networks.

    Each row has the value, its tightness, time and memory.

    Each runs in a process of its own with the limits. The witness search always runs: tightness is measured against
    it, and a value below it is marked unsound.
    """
    memory, settings = parse.memory(memory_limit), parse.options(option or [])
    shape, count = parse.shape(input_shape), parse.classes(classes)
    if radius is not None:
        (radius,) = parse.radii(str(radius))
    for name, value in (("--points", points), ("--threads", 1 if threads is None else threads)):
        if value < 1:
            raise InvalidArgument(name, "be at least 1", value)
    if resume and rows is None:
        raise InvalidArgument("--resume", "come with --rows, the file to go on with", None)
    if local and data == "none":
        raise InvalidArgument("--data", "name the test points that the balls of --local are around", data)
    names = None if verifiers is None else parse.names(verifiers, "--verifiers")
    left_out: list[VerifierInfo] = []
    from lipbridge.cli.models import open_models
    from lipbridge.files.models import Reading, dataset_of
    from lipbridge.machine import available_cores, machine_facts
    from lipbridge.study.comparison import compare as compare_networks
    from lipbridge.study.points import Points
    from lipbridge.verifiers import Budget, list_verifiers, require_options
    from lipbridge.vocabulary import as_norm

    if names is None:
        known = [info for info in list_verifiers() if info.by_default]
        left_out = [info for info in known if not info.installed]
        names = [info.name for info in known if info.installed]
    require_options(names, settings)
    if report is not None:
        from lipbridge.report.page import require_writable

        require_writable(report)
    require_exports(csv, parquet, latex, markdown)
    budget = Budget(time_limit, memory, seed)
    models = open_models(model, Reading(shape, output, weights or (), count, data))
    cores = max(1, available_cores() // jobs) if threads is None else threads
    of_models: dict[str, Points] = {}
    for opened in models:
        dataset = dataset_of(opened, data)
        if dataset is not None:
            of_models[opened.name] = Points(dataset.test_inputs, dataset.test_labels, points, radius, local)
        elif local:
            expected = f"name the test points that the balls of --local are around: the run of {opened.name} names none"
            raise InvalidArgument("--data", expected, data)
    p, q = as_norm(norm), as_norm(norm if output_norm is None else output_norm, "output_norm")
    for info in left_out:
        note(f"note: verifier {info.name} is left out; {info.install or info.summary}")
    ended: list[Row] = []
    with spinner() as show:

        def told(done: int, total: int, network: str, verifier: str) -> None:
            show(f"{done + 1} of {total}: {verifier} on {network}")

        def came(row: Row) -> None:
            ended.append(row)
            if not sys.stderr.isatty():
                note(f"{row.verifier} on {row.network}: {row_told({'kind': 'bound', **row.to_json()})}")

        try:
            found = compare_networks(
                {opened.name: opened.graph for opened in models},
                names,
                p,
                q,
                points=of_models,
                budget=budget,
                options=settings,
                threads=cores,
                jobs=jobs,
                progress=told,
                keep=keep,
                rows=rows,
                resume=resume,
                ended=came,
            )
        except KeyboardInterrupt:
            if not as_json:
                print_bounds([row.to_json() for row in ended])
            kept = (
                f"they stand in {rows}: --resume goes on" if rows is not None else "--rows FILE keeps them as they come"
            )
            note(f"{len(ended)} rows were there, not judged yet; {kept}")
            raise
    json_rows: list[dict[str, Any]] = [row.to_json() for row in found]
    exported([{"kind": "bound", **row} for row in json_rows], csv, parquet, latex, markdown)
    if as_json:
        print_json(json_rows)
    else:
        print_bounds(json_rows)
    advise(json_rows)
    warn_of_unsound(json_rows)
    if report is not None:
        from lipbridge.report.page import Network, write_report

        networks = [Network.read(opened.name, opened.folder, opened.graph, opened.run) for opened in models]
        write_report(report, json_rows, networks, machine_facts(cores))
        note(f"report: {report}")
