"""A Dataset checks itself when it is made: what is taken, and what is refused in one line with the way out."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch

import lipbridge
from lipbridge import Dataset, TrainingConfig, fit
from lipbridge.errors import InvalidArgument, LipbridgeError


def made(**changes: Any) -> Dataset:
    """Twelve points of four features in three classes, changed."""
    parts: dict[str, Any] = {
        "name": "toy",
        "train_inputs": torch.linspace(0, 1, 32).reshape(8, 4),
        "train_labels": torch.arange(8) % 3,
        "test_inputs": torch.linspace(0, 1, 16).reshape(4, 4),
        "test_labels": torch.arange(4) % 3,
        "classes": 3,
        "input_shape": (4,),
    }
    return Dataset(**{**parts, **changes})


NAN, INF = float("nan"), float("inf")
ROWS = torch.zeros(8, 4)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"train_labels": torch.arange(5) % 3}, ["train_labels", "(8,)", "one for each input"]),
        ({"train_inputs": torch.zeros(5, 4)}, ["train_labels", "(5,)"]),
        ({"test_labels": torch.zeros(5, dtype=torch.long)}, ["test_labels", "(4,)"]),
        ({"train_labels": torch.eye(8)[:, :3]}, ["train_labels", "long()"]),
        ({"train_labels": torch.eye(8)[:, :3].long()}, ["train_labels", "argmax(1)"]),
        ({"train_labels": torch.full((8,), 3)}, ["train_labels", "below 3", "Found 3"]),
        ({"test_labels": torch.full((4,), -1)}, ["test_labels", "at least 0", "Found -1"]),
        ({"train_labels": torch.zeros(8)}, ["train_labels", "whole numbers", ".long()"]),
        ({"train_labels": torch.zeros(8, dtype=torch.bool)}, ["whole numbers"]),
        ({"train_labels": [0] * 8}, ["train_labels", "a list"]),
        ({"train_labels": None}, ["train_labels", "None"]),
        ({"train_labels": np.array(["a"] * 8)}, ["train_labels", "real numbers"]),
        ({"train_inputs": torch.zeros(8, 5)}, ["train_inputs", "(n, 4)", "(8, 5)"]),
        ({"test_inputs": torch.zeros(4, 3)}, ["test_inputs", "(n, 4)"]),
        ({"train_inputs": torch.zeros(4)}, ["train_inputs"]),
        ({"train_inputs": torch.zeros(())}, ["train_inputs", "at least one example"]),
        ({"train_inputs": torch.zeros(0, 4), "train_labels": torch.zeros(0).long()}, ["at least one example"]),
        ({"test_inputs": torch.zeros(0, 4), "test_labels": torch.zeros(0).long()}, ["test_inputs", "at least one"]),
        ({"train_inputs": torch.full((8, 4), NAN)}, ["train_inputs", "finite"]),
        ({"test_inputs": torch.full((4, 4), -INF)}, ["test_inputs", "finite"]),
        ({"train_inputs": np.full((8, 4), NAN)}, ["train_inputs", "finite"]),
        ({"train_inputs": torch.zeros(8, 4, dtype=torch.uint8)}, ["train_inputs", "/ 255"]),
        ({"train_inputs": torch.zeros(8, 4, dtype=torch.complex64)}, ["train_inputs", "complex"]),
        ({"train_inputs": ROWS.to_sparse()}, ["train_inputs", "sparse"]),
        ({"train_inputs": torch.zeros(8, 4, device="meta")}, ["train_inputs", "meta"]),
        ({"train_inputs": [[0.0] * 4] * 8}, ["train_inputs", "numpy array", "a list"]),
        ({"train_inputs": np.zeros((8, 4), dtype=object)}, ["train_inputs", "real numbers"]),
        ({"train_inputs": np.zeros((8, 4), dtype=np.longdouble)}, ["train_inputs", "64 bits"]),
        ({"classes": 1}, ["classes", "from 2"]),
        ({"classes": 3.0}, ["classes"]),
        ({"classes": True}, ["classes"]),
        ({"input_shape": ()}, ["input_shape"]),
        ({"input_shape": (2, 3)}, ["train_inputs", "(n, 6)"]),
        ({"input_shape": "4"}, ["input_shape"]),
        ({"input_shape": (-4,)}, ["input_shape", "from 1"]),
        ({"input_shape": None}, ["input_shape"]),
        ({"name": 5}, ["name", "text"]),
    ],
)
def test_what_is_refused(changes: dict[str, Any], words: list[str]) -> None:
    with pytest.raises(InvalidArgument) as caught:
        made(**changes)
    text = str(caught.value)
    assert "\n" not in text
    assert len(text) < 300
    assert all(word in text for word in words), text


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64, ">f4", ">f8"])
def test_numpy_arrays_of_any_floating_dtype(dtype: Any) -> None:
    inputs = np.linspace(0, 1, 32).reshape(8, 4).astype(dtype)
    inputs.setflags(write=False)
    found = made(train_inputs=inputs, train_labels=(np.arange(8) % 3).astype(np.uint8))
    assert torch.equal(found.train_inputs.double(), torch.tensor(inputs.astype(np.float64)))
    assert found.train_labels.dtype is torch.int64


def test_negative_strides_and_images() -> None:
    images = np.linspace(0, 1, 32, dtype=np.float32).reshape(8, 1, 2, 2)[::-1]
    found = made(train_inputs=images, test_inputs=torch.zeros(4, 1, 2, 2), input_shape=[1, 2, 2])
    assert found.input_shape == (1, 2, 2)
    assert found.train_inputs.shape == (8, 4)
    assert found.train_inputs[0, 0] == float(images[0, 0, 0, 0])


def test_dtypes_are_kept_and_agree() -> None:
    assert made().train_inputs.dtype is torch.float32
    half = made(train_inputs=ROWS.bfloat16(), test_inputs=torch.zeros(4, 4).half())
    assert half.train_inputs.dtype is half.test_inputs.dtype is torch.float32
    mixed = made(train_inputs=ROWS.double())
    assert mixed.train_inputs.dtype is mixed.test_inputs.dtype is torch.float64


def test_gradients_are_left_behind() -> None:
    found = made(train_inputs=ROWS.clone().requires_grad_())
    assert not found.train_inputs.requires_grad


def test_a_change_is_checked_too() -> None:
    with pytest.raises(InvalidArgument, match="classes"):
        dataclasses.replace(made(), classes=2)


@pytest.mark.parametrize("data", [torch.float32, torch.float64])
@pytest.mark.parametrize("weights", [torch.float32, torch.float64, torch.bfloat16])
def test_training_takes_every_pair_of_dtypes(data: torch.dtype, weights: torch.dtype) -> None:
    torch.manual_seed(0)
    module = lipbridge.mlp([4, 8, 3]).to(weights)
    dataset = made(train_inputs=torch.rand(8, 4, dtype=data))
    result = fit(module, dataset, TrainingConfig(epochs=2, batch_size=4))
    assert result.epochs == 2
    assert all(parameter.dtype is weights for parameter in result.module.parameters())


def test_inputs_that_overflow_the_module_are_refused_before_training() -> None:
    dataset = made(train_inputs=torch.full((8, 4), 1e300, dtype=torch.float64))
    with pytest.raises(LipbridgeError, match="float32, the dtype of the module"):
        fit(lipbridge.mlp([4, 8, 3]), dataset, TrainingConfig(epochs=1))
    assert fit(lipbridge.mlp([4, 8, 3]).double(), made(), TrainingConfig(epochs=1)).epochs == 1
