"""A training run from words: dataset, norm and what the user changes of the recipe; its row."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from lipbridge.activations.registry import activation as activation_facts
from lipbridge.data import load_dataset
from lipbridge.disk.strict_json import jsonable
from lipbridge.errors import InvalidArgument
from lipbridge.layers.architectures import DENSE, is_factory
from lipbridge.training.fit import fit
from lipbridge.training.recipes import recipe
from lipbridge.vocabulary import as_norm


def train_run(
    data: str,
    norm: str,
    out: Path,
    changes: Mapping[str, Any],
    settings: Mapping[str, Any],
    *,
    arch: str = DENSE,
    device: str = "auto",
    resume: bool = False,
    overwrite: bool = False,
    rescale: bool = False,
    start_from: Path | None = None,
) -> dict[str, Any]:
    """Train by the recipe of the dataset and the norm, and give the row.

    Args:
        data: a dataset's name or a folder.
        norm: of the bound.
        out: folder of the run.
        changes: to the Recipe, by field.
        settings: changes to its TrainingConfig, by field.
        arch: the architecture; a user's ``FILE.py:FACTORY`` runs that file, and takes no ``changes``.
        device: as in :func:`lipbridge.training.fit.fit`, also the four that follow.
        resume: go on from the checkpoint.
        overwrite: replace an earlier run.
        rescale: end with the least trivial bound that scaling units can give.
        start_from: the folder of a run whose weights this one starts from.

    Raises:
        LipbridgeError: for a value outside its domain, before anything is written.
    """
    p = as_norm(norm)
    if "activation" in changes:
        activation_facts(changes["activation"])
    own = is_factory(arch)
    if own and changes:
        name, value = next(iter(changes.items()))
        raise InvalidArgument(name, f"be left out with {arch}, which decides it", value)
    dataset = load_dataset(data)
    default = recipe(dataset, p, arch)
    config = replace(default.config, **settings)
    plan = replace(default, **changes, config=config)
    result = fit(
        plan.build(dataset),
        dataset,
        config,
        out=out,
        resume=resume,
        overwrite=overwrite,
        rescale=rescale,
        start_from=start_from,
        device=device,
    )
    row = {
        "network": out.resolve().name,
        "data": dataset.name,
        "arch": arch,
        "widths": None if own else list(plan.widths),
        "activation": None if own else plan.activation,
        "bias": None if own else plan.bias,
        "norm": str(p),
        "form": config.form,
        "seed": config.seed,
        "accuracy": result.accuracy,
        "bound": result.bound.value,
        "proved": result.bound.proved,
        "bound_before_rescaling": None if result.before is None else result.before.value,
        "penalty": result.penalty,
        "seconds": result.seconds,
        "epochs": result.epochs,
        "out": str(out),
    }
    return jsonable(row)
