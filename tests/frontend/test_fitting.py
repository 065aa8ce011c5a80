"""A module that does not fit the data is found before training, and both numbers are said."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import lipbridge
from lipbridge import Dataset, TrainingConfig, fit, load_dataset
from lipbridge.errors import InvalidArgument, LipbridgeError, TrainingError
from lipbridge.frontend.fitting import misfit

CONFIG = TrainingConfig(epochs=2, batch_size=64)


@pytest.fixture(scope="module")
def iris() -> Dataset:
    return load_dataset("iris")


class Wrapped(nn.Module):
    """Something made of a linear layer."""

    def __init__(self, call: Callable[[nn.Linear, Tensor], Any]) -> None:
        super().__init__()
        self.layer, self.call = nn.Linear(4, 3), call

    def forward(self, x: Tensor) -> Any:
        return self.call(self.layer, x)


def fails(layer: nn.Linear, x: Tensor) -> Tensor:
    raise KeyError("first line\nsecond line")


@pytest.mark.parametrize(
    ("module", "words"),
    [
        (lambda: nn.Linear(6, 3), "module takes 6 features, the data (iris) has 4."),
        (lambda: lipbridge.mlp([5, 8, 3]), "module takes 5 features, the data (iris) has 4."),
        (lambda: nn.Linear(4, 2), "module gives 2 outputs, the data (iris) has 3 classes."),
        (
            lambda: nn.Sequential(nn.Linear(4, 5), nn.Linear(6, 3)),
            "Layer `1` of the module takes 6 features, and gets 5",
        ),
        (lambda: nn.Sequential(nn.Conv2d(1, 3, 3), nn.Flatten()), "starts with torch.nn.Unflatten(1, input_shape)"),
        (lambda: Wrapped(lambda layer, x: (layer(x), x)), "return one tensor"),
        (lambda: Wrapped(lambda layer, x: {"logits": layer(x)}), "return one tensor"),
        (lambda: Wrapped(fails), "KeyError: 'first line"),
        (nn.ReLU, "parameter to train"),
        (lambda: nn.Linear(4, 3).requires_grad_(False), "parameter to train"),
        (lambda: nn.LazyLinear(3), "run it once"),
        (lambda: nn.Linear(4, 3, device="meta"), "numbers as weights"),
        (lambda: nn.Linear, "be a torch.nn.Module"),
        (lambda: "mlp", "be a torch.nn.Module"),
    ],
)
def test_what_does_not_fit(module: Callable[[], Any], words: str, iris: Dataset, tmp_path: Path) -> None:
    with pytest.raises(InvalidArgument) as caught:
        fit(module(), iris, CONFIG, out=tmp_path / "run")
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run").exists()


def test_the_diagnosis_leaves_the_module_and_the_random_state_as_they_were() -> None:
    module = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Dropout(), nn.Linear(8, 3))
    module[2].eval()
    before = {name: value.clone() for name, value in module.state_dict().items()}
    state = torch.get_rng_state()
    fault = misfit(module, (4,))
    assert fault is not None
    assert (
        str(fault) == "The module takes 6 features, the data has 4. Give its first layer 4 inputs, or take other data."
    )
    assert misfit(module, (6,)) is None
    assert torch.equal(state, torch.get_rng_state())
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())
    assert [layer.training for layer in module] == [True, True, False, True]
    assert not any(layer._forward_pre_hooks for layer in module.modules())


def test_arguments_of_other_kinds(iris: Dataset) -> None:
    module = nn.Linear(4, 3)
    for arguments, word in (
        ((module, "iris"), "load_dataset"),
        ((module, iris, {"epochs": 3}), "TrainingConfig"),
        ((module, iris, 0), "TrainingConfig"),
    ):
        with pytest.raises(InvalidArgument, match=word):
            fit(*arguments)


def test_a_folder_that_cannot_be_written_is_found_before_training(iris: Dataset, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    for out in (tmp_path / "file", tmp_path / "file" / "run", "/proc/run", "a\0b", 5):
        with pytest.raises(InvalidArgument, match="out"):
            fit(nn.Linear(4, 3), iris, CONFIG, out=out)


def test_a_disk_that_fills_up_is_one_line(iris: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("lipbridge.files.run_folder.write_history", full)
    with pytest.raises(TrainingError, match=r"No space left on device.*--resume"):
        fit(nn.Linear(4, 3), iris, CONFIG, out=tmp_path / "run")


@pytest.mark.parametrize("penalty", [0.0, 0.05])
def test_each_row_has_the_bound_of_a_fresh_capture(penalty: float, iris: Dataset, monkeypatch: Any) -> None:
    """Whatever the penalty says: here it says nonsense."""
    seen: list[float] = []
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3))

    original = lipbridge.training.loop.TrainingRun.accuracy

    def accuracy(self: Any) -> float:
        seen.append(lipbridge.trivial_bound(module).value)
        return original(self)

    monkeypatch.setattr("lipbridge.training.loop.TrainingRun.accuracy", accuracy)
    monkeypatch.setattr(
        "lipbridge.training.loop.TrivialBoundPenalty.bound",
        lambda self: lipbridge.Bound(
            value=1.0,
            side=lipbridge.vocabulary.Side.UPPER,
            proved=True,
            question=lipbridge.Question.everywhere(2),
            method="nonsense",
        ),
    )
    result = fit(module, iris, TrainingConfig(epochs=4, batch_size=32, penalty=penalty))
    rows = [row["bound"] for row in result.history]
    assert rows == pytest.approx(seen[: len(rows)], rel=1e-12)
    assert rows[-1] == result.bound.value


def test_a_penalty_that_is_right_is_asked(iris: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[float] = []
    original = lipbridge.TrivialBoundPenalty.bound

    def bound(self: Any) -> Any:
        found = original(self)
        asked.append(found.value)
        return found

    monkeypatch.setattr("lipbridge.training.loop.TrivialBoundPenalty.bound", bound)
    result = fit(lipbridge.mlp([4, 8, 3]), iris, TrainingConfig(epochs=5, batch_size=32))
    assert [row["bound"] for row in result.history] == pytest.approx(asked, rel=1e-12)


class Ring(nn.Module):
    """A weight that is computed from others: a penalty cannot always read it."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x)


def test_without_a_penalty_a_module_that_it_cannot_read_trains(iris: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise lipbridge.errors.UnsupportedOperation("layer", "penalty")

    monkeypatch.setattr("lipbridge.training.loop.TrivialBoundPenalty", refuse)
    result = fit(Ring(), iris, TrainingConfig(epochs=2, penalty=0.0))
    assert result.history[-1]["bound"] == result.bound.value
    with pytest.raises(LipbridgeError):
        fit(Ring(), iris, TrainingConfig(epochs=2, penalty=0.1))


@pytest.mark.parametrize("warmup", [0.5, 1e-9, 0.999])
def test_a_single_step(warmup: float, iris: Dataset) -> None:
    result = fit(nn.Linear(4, 3), iris, TrainingConfig(epochs=1, batch_size=1000, warmup=warmup))
    assert result.bound.value > 0


def test_a_shift_beyond_the_image_is_refused() -> None:
    with pytest.raises(InvalidArgument, match="less than a side"):
        fit(nn.Linear(64, 10), load_dataset("digits"), TrainingConfig(shift=10**9))
