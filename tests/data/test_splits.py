"""Examples held out from training under a name of their own, and the digest that names what a dataset holds."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from lipbridge.data import DATASET_NAMES, Dataset, dataset_digest, load_dataset
from lipbridge.errors import DataError, InvalidArgument, UnknownName
from tests.support.idx_files import write_dataset


def rows(inputs: torch.Tensor, labels: torch.Tensor) -> list[tuple[float, ...]]:
    return sorted(tuple(row) for row in torch.cat([inputs, labels[:, None]], 1).tolist())


@pytest.mark.parametrize("name", ["iris", "digits"])
def test_a_sixth_of_the_training_examples_stands_as_the_test_set(name: str) -> None:
    whole, split = load_dataset(name), load_dataset(f"{name}:validation")
    count = len(whole.train_labels)
    assert len(split.test_labels) == count // 6
    together = torch.cat([split.train_inputs, split.test_inputs]), torch.cat([split.train_labels, split.test_labels])
    assert rows(*together) == rows(whole.train_inputs, whole.train_labels)
    assert split.name == f"{name}:validation"
    assert (split.classes, split.input_shape, split.units) == (whole.classes, whole.input_shape, whole.units)
    again = load_dataset(f"{name}:validation")
    assert torch.equal(again.test_inputs, split.test_inputs)


def test_the_split_is_part_of_the_definition() -> None:
    """It never changes: figures that were published on it stay comparable."""
    split = load_dataset("iris:validation")
    assert split.test_labels.tolist() == [0, 0, 0, 2, 1, 0, 2, 0, 0, 0, 1, 1, 1, 2, 2, 2, 2, 1]
    assert (8 * split.test_inputs[0]).tolist() == pytest.approx([4.4, 2.9, 1.4, 0.2])


def test_of_a_folder(tmp_path: Path) -> None:
    folder = write_dataset(tmp_path / "mine", train=12, test=6)
    split = load_dataset(f"{folder}:validation")
    assert (split.name, len(split.train_labels), len(split.test_labels)) == ("mine:validation", 10, 2)
    os.rename(folder, tmp_path / "mine:validation")
    assert len(load_dataset(tmp_path / "mine:validation").train_labels) == 12  # a folder of that very name is itself


def test_what_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UnknownName, match="'nonesuch'"):
        load_dataset("nonesuch:validation")
    with pytest.raises(InvalidArgument, match="left out for anything but"):
        load_dataset("iris:validation", folder=tmp_path)
    with pytest.raises(DataError, match="two are needed"):
        load_dataset(f"{write_dataset(tmp_path / 'one', train=1, test=1)}:validation")


def test_the_digest_tells_contents_apart_and_no_names() -> None:
    data = load_dataset("iris")
    digest = dataset_digest(data)
    assert len(digest) == 64
    assert dataset_digest(load_dataset("iris")) == digest
    assert dataset_digest(replace(data, name="other", source="elsewhere", units="m")) == digest
    moved = data.train_inputs.clone()
    moved[3, 1] += 1e-6
    others = [
        replace(data, train_inputs=moved),
        replace(data, test_labels=data.test_labels.roll(1)),
        replace(data, classes=4),
        replace(data, input_shape=(2, 2)),
        replace(data, train_inputs=data.train_inputs.double()),
        load_dataset("iris:validation"),
    ]
    assert len({digest, *map(dataset_digest, others)}) == 7


def test_names_that_are_known_have_no_colon() -> None:
    assert not any(":" in name for name in DATASET_NAMES)
    assert isinstance(load_dataset("iris:validation"), Dataset)
