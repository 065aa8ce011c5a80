"""The words of each kind of cell: what a plan writes and whoever runs the cell reads. JSON alone.

``training``     ``data`` a dataset, ``norm``, ``arch`` (``dense``, ..., or a factory), ``changes`` and ``settings``
                 (every field of the Recipe and of its TrainingConfig, with the seed, so that a recipe that changes is
                 another cell), ``rescale``, ``start_from`` (a trained network, or null)
``model``        ``source``: a file or a factory with ``input_shape``, ``output``, ``weights`` (a file or null),
                 ``classes``, ``data`` (a dataset or null)
``bound``        ``source``: a trained network, or that of a model, ``question``: ``norm``, ``output_norm``,
                 ``quantity``, ``region`` (null, or ``radius``, ``norm``, ``points``), ``verifier``, ``verifier_label``,
                 ``options``, ``seed``, ``points`` a dataset or null: where the witness search starts, and the centres
``certificate``  ``source``, ``verifier``, ``verifier_label``, ``options``, ``seed``, ``norm``, ``radius``, ``points`` a
                 dataset with ``count``

A dataset is ``name`` (as :func:`lipbridge.load_dataset` takes it) and ``sha256``, of its contents
(:func:`lipbridge.data.dataset_digest`). A file is ``path`` and ``sha256``, a factory ``path`` (``FILE.py:NAME``),
``factory`` (NAME) and the file's ``sha256``, a trained network the ``path`` of its folder in the study's and, as its
``sha256``, the id of its training.
Beside a ``sha256`` names and paths are no part of a cell's id (:func:`lipbridge.study.cells.make_cell`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from lipbridge.data import Dataset, dataset_digest
from lipbridge.files.container import file_digest
from lipbridge.layers.architectures import is_factory
from lipbridge.study.cells import Cell
from lipbridge.study.engine.blank import training_folder
from lipbridge.training.config import config_facts
from lipbridge.training.recipes import Recipe
from lipbridge.vocabulary import Norm, Quantity

Words = dict[str, Any]


def dataset_words(name: str, dataset: Dataset) -> Words:
    """A dataset by its contents, and where it is found."""
    return {"name": name, "sha256": dataset_digest(dataset)}


def file_words(path: Path) -> Words:
    """A file by its contents, and where it is found; of a run's folder its model.

    Raises:
        ModelFileError: if it cannot be read.
    """
    return {"path": str(path), "sha256": file_digest(path)}


def source_words(source: str) -> Words:
    """``FILE.py:NAME``: the file by its contents, and the name in it."""
    path, _, name = source.rpartition(":")
    return {**file_words(Path(path)), "path": source, "factory": name}


def training_words(
    data: Mapping[str, Any], plan: Recipe, *, rescale: bool = False, start_from: Cell | None = None
) -> Words:
    """A training: everything that fixes its result on one machine."""
    own = is_factory(plan.arch)
    changes = {field.name: getattr(plan, field.name) for field in fields(plan) if field.name not in ("config", "arch")}
    return {
        "data": dict(data),
        "norm": plan.config.norm,
        "arch": source_words(plan.arch) if own else plan.arch,
        "changes": {} if own else {**changes, "widths": list(plan.widths)},
        "settings": config_facts(plan.config),
        "rescale": rescale,
        "start_from": None if start_from is None else trained_words(start_from),
    }


def question_words(
    norm: Norm,
    output_norm: Norm,
    quantity: Quantity = Quantity.LIPSCHITZ,
    region: Mapping[str, Any] | None = None,
) -> Words:
    """A question; ``region`` has ``radius``, ``norm`` and the number of ``points``."""
    ball = None if region is None else {**region, "radius": float(region["radius"])}
    return {"norm": norm, "output_norm": output_norm, "quantity": str(quantity), "region": ball}


def trained_words(training: Cell) -> Words:
    """The network that a training cell makes."""
    return {"path": training_folder(training.network, training.id), "sha256": training.id}


__all__ = [
    "dataset_words",
    "file_words",
    "question_words",
    "source_words",
    "trained_words",
    "training_words",
]
