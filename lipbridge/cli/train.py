"""``lipbridge train``."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from lipbridge.cli import parse
from lipbridge.cli.output import JsonOption, print_json, print_table
from lipbridge.processes import stdout_to_stderr
from lipbridge.text import number, percent, seconds


def train(
    data: Annotated[
        str, typer.Argument(metavar="DATA", help="A dataset's name, or a folder of IDX or CIFAR-10 files.")
    ],
    out: Annotated[Path, typer.Option("--out", help="Folder for the model, its checkpoint and its metrics.")],
    norm: Annotated[str, typer.Option(help="Norm of the bound: 1, 2 or inf.")] = "2",
    arch: Annotated[
        str, typer.Option(help="dense, conv-small, conv-large, or FILE.py:FACTORY: your own function, which is run.")
    ] = "dense",
    widths: Annotated[
        str | None, typer.Option(help="Hidden widths, e.g. 256,256; of conv-small e.g. 32,64,128: channels first.")
    ] = None,
    activation: Annotated[str | None, typer.Option(help="A registered activation, e.g. abs, crelu, sincos.")] = None,
    bias: Annotated[bool | None, typer.Option("--bias/--no-bias", help="Whether layers have a bias.")] = None,
    padding: Annotated[str | None, typer.Option(help="Of conv-small and conv-large: circular or zeros.")] = None,
    start: Annotated[str | None, typer.Option(help="Initial weights: orthogonal, uniform or ill-conditioned.")] = None,
    gain: Annotated[float | None, typer.Option(help="Factor of the initial weights.")] = None,
    penalty: Annotated[float | None, typer.Option(help="Weight of the bound in the loss; 0 for none.")] = None,
    form: Annotated[str | None, typer.Option(help="linear: the bound itself; log: its logarithm.")] = None,
    method: Annotated[str | None, typer.Option(help="How l2 norms are penalised: gram or power.")] = None,
    every: Annotated[int | None, typer.Option(help="Steps between refreshes of the penalty's gradient.")] = None,
    squarings: Annotated[int | None, typer.Option(help="Sharpness of gram: 4 is forgiving, 6 tighter.")] = None,
    stride: Annotated[int | None, typer.Option(help="The penalty acts in one of so many steps.")] = None,
    epochs: Annotated[int | None, typer.Option(help="Passes over the training data.")] = None,
    batch_size: Annotated[int | None, typer.Option(help="Examples of a step.")] = None,
    optimizer: Annotated[str | None, typer.Option(help="adam, adamw or sgd.")] = None,
    learning_rate: Annotated[float | None, typer.Option("--lr", help="Peak learning rate.")] = None,
    weight_decay: Annotated[float | None, typer.Option(help="Of the optimizer.")] = None,
    warmup: Annotated[float | None, typer.Option(help="Share of the steps in which the learning rate rises.")] = None,
    label_smoothing: Annotated[float | None, typer.Option(help="Of the cross entropy.")] = None,
    logit_scale: Annotated[
        float | None, typer.Option(help="Factor of the logits in the cross entropy: larger favours accuracy.")
    ] = None,
    shift: Annotated[int | None, typer.Option(help="Augmentation: move images by up to so many pixels.")] = None,
    seed: Annotated[int, typer.Option(help="Of the initial weights and of everything drawn later.")] = 0,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, ...")] = "auto",
    resume: Annotated[
        bool,
        typer.Option(
            "--resume", help="Go on from the checkpoint in the folder, or with an overwriting that was cut short."
        ),
    ] = False,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace an earlier run in the folder, when this one is finished.")
    ] = False,
    rescale: Annotated[
        bool, typer.Option("--rescale", help="At the end, scale the units for the least bound; the function stays.")
    ] = False,
    start_from: Annotated[
        Path | None, typer.Option("--start-from", help="Folder of a run of the same network: start from its weights.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Train a network with its bound in the loss, and prove it.

    What is not given is chosen for the dataset and the norm. A folder that exists needs --resume or --overwrite.
    """
    hidden = None if widths is None else tuple(parse.widths(widths))
    changes = {
        "widths": hidden,
        "activation": activation,
        "bias": bias,
        "padding": padding,
        "start": start,
        "gain": gain,
    }
    settings = {
        "penalty": penalty,
        "form": form,
        "method": method,
        "every": every,
        "squarings": squarings,
        "stride": stride,
        "epochs": epochs,
        "batch_size": batch_size,
        "optimizer": optimizer,
        "learning_rate": learning_rate,
        "weight_decay": weight_decay,
        "warmup": warmup,
        "label_smoothing": label_smoothing,
        "logit_scale": logit_scale,
        "shift": shift,
        "seed": seed,
    }
    from lipbridge.training.runs import train_run

    with stdout_to_stderr():  # a user's own architecture may print
        run = train_run(
            data,
            norm,
            out,
            _given(changes),
            _given(settings),
            arch=arch,
            device=device,
            resume=resume,
            overwrite=overwrite,
            rescale=rescale,
            start_from=start_from,
        )
    if as_json:
        print_json([run])
        return
    print_table(
        f"{run['network']}: trained on {run['data']}",
        {
            "architecture": lambda row: row["arch"],
            "activation": lambda row: row["activation"] or "",
            "accuracy": lambda row: percent(row["accuracy"]),
            f"proved bound, l{run['norm']}": _bound,
            "penalty": lambda row: number(row["penalty"]),
            "epochs": lambda row: str(row["epochs"]),
            "time": lambda row: seconds(row["seconds"]),
            "folder": lambda row: row["out"],
        },
        [run],
    )


def _bound(row: Mapping[str, Any]) -> str:
    before = row["bound_before_rescaling"]
    return f"<= {number(row['bound'], 6)}" + ("" if before is None else f" (before rescaling {number(before, 6)})")


def _given(values: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value is not None}
