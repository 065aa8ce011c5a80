"""A training run from words: dataset, norm and what the user changes of the recipe; its row."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from lipbridge.activations import activation as activation_facts
from lipbridge.data import load_dataset
from lipbridge.layers import mlp
from lipbridge.study.rows import jsonable
from lipbridge.training import fit, recipe
from lipbridge.vocabulary import as_norm


def train_run(
    data: str,
    norm: str,
    out: Path,
    *,
    widths: Sequence[int] | None = None,
    activation: str | None = None,
    bias: bool | None = None,
    changes: Mapping[str, Any] | None = None,
    device: str = "auto",
    resume: bool = False,
    overwrite: bool = False,
) -> dict[str, Any]:
    """Train by the recipe of the dataset and the norm, with ``changes`` to its TrainingConfig; returns the row.

    Raises:
        LipbridgeError: for a value outside its domain, before anything is written.
    """
    p = as_norm(norm)
    if activation is not None:
        activation_facts(activation)
    recipe_widths, recipe_activation, recipe_bias, config = recipe(data, p)
    config = replace(config, **(changes or {}))
    dataset = load_dataset(data)
    hidden = recipe_widths if widths is None else widths
    name = recipe_activation if activation is None else activation
    with_bias = recipe_bias if bias is None else bias
    torch.manual_seed(config.seed)  # pyright: ignore[reportUnknownMemberType]
    module = mlp([dataset.features, *hidden, dataset.classes], name, bias=with_bias)
    result = fit(module, dataset, config, out=out, resume=resume, overwrite=overwrite, device=device)
    row = {
        "network": out.resolve().name,
        "data": dataset.name,
        "widths": list(hidden),
        "activation": name,
        "bias": with_bias,
        "norm": str(p),
        "form": config.form,
        "seed": config.seed,
        "accuracy": result.accuracy,
        "bound": result.bound.value,
        "proved": result.bound.proved,
        "penalty": result.penalty,
        "seconds": result.seconds,
        "epochs": result.epochs,
        "out": str(out),
    }
    return jsonable(row)
