"""A run that starts from the weights of another, and starts that are ill-conditioned on purpose."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
import torch
from torch import nn

import lipbridge
import lipbridge.training.loop
from lipbridge import TrainingConfig, fit
from lipbridge.cli.app import run
from lipbridge.data import Dataset, load_dataset
from lipbridge.errors import InvalidArgument, ModelFileError
from lipbridge.layers.architectures import build
from lipbridge.training.recipes import CONDITION, initialised

CONFIG = TrainingConfig(epochs=2, batch_size=64)


@pytest.fixture(scope="module")
def iris() -> Dataset:
    return load_dataset("iris")


@pytest.fixture(scope="module")
def first(iris: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("first") / "run"
    fit(network(1), iris, CONFIG, out=folder)
    return folder


def network(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return lipbridge.mlp([4, 8, 8, 3], "abs")


def equal(a: nn.Module, b: nn.Module) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True))


def test_it_is_as_if_the_module_had_come_with_these_weights(first: Path, iris: Dataset, tmp_path: Path) -> None:
    warm = fit(network(0), iris, CONFIG, out=tmp_path / "warm", start_from=first)
    by_hand = fit(lipbridge.load_weights(first, network(0)), iris, CONFIG)
    assert equal(warm.module, by_hand.module)
    assert not equal(warm.module, fit(network(0), iris, CONFIG).module)
    told = json.loads((tmp_path / "warm" / "run.json").read_text())["start_from"]
    assert told["folder"] == str(first)
    assert told["epochs"] == 2
    assert json.loads((first / "run.json").read_text())["start_from"] is None


def test_a_run_cut_short_goes_on_without_the_other(
    first: Path, iris: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = fit(network(0), iris, CONFIG, start_from=first)
    keep = lipbridge.training.loop.TrainingRun._keep

    def cut(self: lipbridge.training.loop.TrainingRun) -> None:
        keep(self)
        raise KeyboardInterrupt

    monkeypatch.setattr(lipbridge.training.loop.TrainingRun, "_keep", cut)
    with pytest.raises(KeyboardInterrupt):
        fit(network(0), iris, CONFIG, out=tmp_path / "run", start_from=first)
    monkeypatch.setattr(lipbridge.training.loop.TrainingRun, "_keep", keep)
    resumed = fit(network(0), iris, CONFIG, out=tmp_path / "run", resume=True, start_from=tmp_path / "gone")
    assert equal(resumed.module, whole.module)
    assert json.loads((tmp_path / "run" / "run.json").read_text())["start_from"]["folder"] == str(first)


@pytest.mark.parametrize(
    "other", [lipbridge.mlp([4, 8, 8, 3], "relu"), lipbridge.mlp([4, 9, 8, 3]), lipbridge.mlp([4, 8, 3])]
)
def test_another_architecture_is_refused_in_words(other: nn.Module, first: Path, iris: Dataset, tmp_path: Path) -> None:
    before = [p.clone() for p in other.parameters()]
    with pytest.raises(ModelFileError, match=r"another network .* where this one has .* same architecture"):
        fit(other, iris, CONFIG, out=tmp_path / "run", start_from=first)
    assert not (tmp_path / "run").exists()
    assert all(map(torch.equal, before, other.parameters()))


def test_a_folder_without_a_run(iris: Dataset, tmp_path: Path) -> None:
    with pytest.raises(ModelFileError, match=r"holds no checkpoint.safetensors"):
        fit(network(), iris, CONFIG, start_from=tmp_path)
    with pytest.raises(InvalidArgument, match="`start_from`"):
        fit(network(), iris, CONFIG, start_from="")


def test_the_command_line(tmp_path: Path) -> None:
    small = ["train", "iris", "--widths", "4", "--epochs", "1"]
    assert run([*small, "--out", str(tmp_path / "a"), "--seed", "1"]) == 0
    assert run([*small, "--out", str(tmp_path / "b"), "--start-from", str(tmp_path / "a")]) == 0
    assert json.loads((tmp_path / "b" / "run.json").read_text())["start_from"]["folder"] == str(tmp_path / "a")


def test_an_ill_conditioned_start_has_singular_values_from_one_to_a_thousandth(iris: Dataset) -> None:
    module = initialised(build("dense", iris, (12, 7)), "ill-conditioned", 2.0, 3)
    for layer in module:
        if isinstance(layer, nn.Linear):
            sigma = torch.linalg.svdvals(layer.weight.detach().double())
            expected = 2.0 * CONDITION ** -torch.linspace(0, 1, len(sigma), dtype=torch.float64)
            torch.testing.assert_close(sigma, expected, rtol=1e-3, atol=1e-6)


def test_an_ill_conditioned_convolution_has_norm_one(iris: Dataset) -> None:
    data = dataclasses.replace(
        load_dataset("digits"), train_inputs=torch.zeros(2, 64), train_labels=torch.tensor([0, 1])
    )
    module = initialised(build("conv-small", data, (3, 4, 8)), "ill-conditioned", 1.0, 0, (64,))
    assert lipbridge.trivial_bound(lipbridge.capture(module, (64,))).value == pytest.approx(1.0, rel=1e-2)
    again = initialised(build("conv-small", data, (3, 4, 8)), "ill-conditioned", 1.0, 0, (64,))
    assert equal(module, again)
