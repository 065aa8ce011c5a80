"""fit(): what it reaches, and that nothing is lost whatever happens to it."""

from __future__ import annotations

import copy
import csv
import dataclasses
import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest
import torch
from torch import nn

import lipbridge
import lipbridge.training.loop
from lipbridge import TrainingConfig, TrivialBoundPenalty, fit
from lipbridge.data import Dataset, load_dataset
from lipbridge.errors import (
    FolderInUse,
    InvalidArgument,
    ModelFileError,
    TrainingError,
    UnknownName,
    UnsupportedOperation,
)
from lipbridge.files import run_folder
from lipbridge.files.container import load_tensors
from lipbridge.files.graphs import load_graph
from lipbridge.layers.architectures import build
from lipbridge.training.devices import pick_device
from lipbridge.training.recipes import initialised
from lipbridge.training.steps import make_optimizer, shifted, training_step
from lipbridge.vocabulary import NORMS

CONFIG = TrainingConfig(epochs=4, batch_size=64, penalty=0.03)


@pytest.fixture(scope="module")
def digits() -> Dataset:
    return load_dataset("digits")


def network(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return lipbridge.mlp([64, 32, 32, 10], "abs", bias=False)


def equal(a: nn.Module, b: nn.Module) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True))


def test_penalty_lowers_the_bound_at_like_accuracy(digits: Dataset) -> None:
    config = dataclasses.replace(CONFIG, epochs=15)
    with_penalty = fit(network(), digits, config)
    plain = fit(network(), digits, dataclasses.replace(config, penalty=0.0))
    assert with_penalty.accuracy >= 0.93
    assert with_penalty.bound.proved
    assert with_penalty.bound.value < 0.6 * plain.bound.value


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("optimizer", ["adam", "adamw", "sgd"])
def test_every_norm_and_optimiser(norm, optimizer: str, digits: Dataset) -> None:
    rate = 0.05 if optimizer == "sgd" else 3e-3
    config = TrainingConfig(
        norm=norm, epochs=2, batch_size=64, penalty=1e-4, optimizer=optimizer, learning_rate=rate, weight_decay=1e-4
    )
    result = fit(network(), digits, config)
    assert result.accuracy > 0.3
    assert result.bound.norm == str(norm)


def test_the_folder_of_a_run(digits: Dataset, tmp_path: Path) -> None:
    result = fit(network(), digits, CONFIG, out=tmp_path / "run")
    assert {path.name for path in (tmp_path / "run").iterdir()} == {
        "model.safetensors", "checkpoint.safetensors", "metrics.jsonl", "metrics.csv", "run.json", ".lock",
    }  # fmt: skip
    assert equal(lipbridge.load(tmp_path / "run"), result.module)
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    rows = list(csv.DictReader((tmp_path / "run" / "metrics.csv").open()))
    assert [line["epoch"] for line in lines] == [int(row["epoch"]) for row in rows] == [1, 2, 3, 4]
    assert set(lines[0]) == {
        "epoch",
        "loss",
        "train_accuracy",
        "accuracy",
        "bound",
        "penalty",
        "learning_rate",
        "seconds",
    }
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    assert record["result"]["bound"] == result.bound.value
    assert record["config"]["seed"] == 0
    assert {"versions", "threads", "load"} <= set(record["machine"])


def test_same_seed_same_weights(digits: Dataset) -> None:
    a, b = (fit(network(), digits, CONFIG).module for _ in range(2))
    c = fit(network(), digits, dataclasses.replace(CONFIG, seed=1)).module
    assert equal(a, b)
    assert not equal(a, c)


class Interrupted(Exception):
    pass


@pytest.mark.parametrize("optimizer", ["adam", "adamw", "sgd"])
@pytest.mark.parametrize("stop", [1, 3])
def test_resuming_ends_bit_identical(digits: Dataset, tmp_path: Path, monkeypatch, optimizer: str, stop: int) -> None:
    """With dropout and augmentation, whose random draws must be the same too."""
    config = dataclasses.replace(CONFIG, optimizer=optimizer, shift=1, every=7, learning_rate=2e-3)

    def dropping() -> nn.Module:
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Dropout(0.2), nn.Linear(32, 10))

    whole = fit(dropping(), digits, config, out=tmp_path / "whole")
    epoch = lipbridge.training.loop.TrainingRun._epoch

    def stops(self, index: int):
        if index == stop:
            raise Interrupted
        return epoch(self, index)

    monkeypatch.setattr(lipbridge.training.loop.TrainingRun, "_epoch", stops)
    with pytest.raises(Interrupted):
        fit(dropping(), digits, config, out=tmp_path / "parts")
    monkeypatch.undo()
    assert not (tmp_path / "parts" / "model.safetensors").exists()
    resumed = fit(dropping(), digits, config, out=tmp_path / "parts", resume=True)
    assert equal(whole.module, resumed.module)
    without_time = [{k: v for k, v in row.items() if k != "seconds"} for row in whole.history]
    assert without_time == [{k: v for k, v in row.items() if k != "seconds"} for row in resumed.history]


SCRIPT = """
import sys, torch, lipbridge
from lipbridge.data import load_dataset
torch.set_num_threads(1)
torch.manual_seed(0)
module = lipbridge.mlp([64, 32, 32, 10], "abs", bias=False)
config = lipbridge.TrainingConfig(epochs={epochs}, batch_size=64)
lipbridge.fit(module, load_dataset("digits"), config, out=sys.argv[1], resume={resume})
"""


def run_script(tmp_path: Path, resume: bool, epochs: int, *launcher: str) -> subprocess.Popen[bytes]:
    script = tmp_path / f"train_{resume}.py"
    script.write_text(textwrap.dedent(SCRIPT.format(resume=resume, epochs=epochs)))
    return subprocess.Popen(
        [sys.executable, *launcher, str(script), str(tmp_path / "run")], stderr=subprocess.PIPE, stdout=subprocess.PIPE
    )


def test_kill_9_at_any_moment(digits: Dataset, tmp_path: Path) -> None:
    """Kill a training process twice at arbitrary moments; each time every file is whole; the end is bit-identical.

    While it lives, nobody else writes into its folder.
    """
    epochs = 60
    config = TrainingConfig(epochs=epochs, batch_size=64)
    checkpoint = tmp_path / "run" / "checkpoint.safetensors"
    for attempt, more in enumerate((0.15, 0.05)):
        before = checkpoint.stat().st_mtime_ns if attempt else 0
        process = run_script(tmp_path, bool(attempt), epochs)
        deadline = time.monotonic() + 120
        while not (checkpoint.exists() and checkpoint.stat().st_mtime_ns > before):
            assert process.poll() is None, process.communicate()[1].decode()
            assert time.monotonic() < deadline
            time.sleep(0.005)
        time.sleep(more)
        os.kill(process.pid, signal.SIGSTOP)  # so that it lives until it is killed, on a machine however fast
        with pytest.raises(FolderInUse, match=rf"process {process.pid} on .*train_{bool(attempt)}\.py"):
            fit(network(), digits, config, out=tmp_path / "run", **{"overwrite" if attempt else "resume": True})
        os.kill(process.pid, signal.SIGKILL)
        process.communicate()
        _, metadata = load_tensors(checkpoint)
        lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
        assert len(metadata["history"]) - 1 <= len(lines) <= len(metadata["history"])
        assert all(json.loads(line)["epoch"] == index + 1 for index, line in enumerate(lines))
    resumed = fit(network(), digits, config, out=tmp_path / "run", resume=True)
    assert equal(resumed.module, fit(network(), digits, config).module)
    assert not list((tmp_path / "run").glob("*.tmp*")) or resumed.epochs == epochs


def test_nan_loss_stops_with_the_last_good_checkpoint(digits: Dataset, tmp_path: Path, monkeypatch) -> None:
    step = lipbridge.training.steps.training_step
    calls = 0

    def poisoned(model, penalty, optimizer, inputs, labels, config):
        nonlocal calls
        calls += 1
        if calls == 50:  # in the third epoch of 21 steps
            inputs = inputs * float("nan")
        return step(model, penalty, optimizer, inputs, labels, config)

    good = fit(network(), digits, dataclasses.replace(CONFIG, epochs=2), out=tmp_path / "good")
    monkeypatch.setattr(lipbridge.training.loop, "training_step", poisoned)
    with pytest.raises(
        TrainingError, match=r"no longer finite in epoch 3: .* keeps the model and checkpoint of epoch 2"
    ):
        fit(network(), digits, CONFIG, out=tmp_path / "run")
    assert len((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()) == 2
    saved = lipbridge.load(tmp_path / "run")
    assert all(bool(torch.isfinite(p).all()) for p in saved.parameters())
    assert good.epochs == 2
    monkeypatch.undo()
    assert fit(network(), digits, CONFIG, out=tmp_path / "run", resume=True).epochs == 4


def test_an_existing_folder_is_not_touched(digits: Dataset, tmp_path: Path) -> None:
    fit(network(), digits, dataclasses.replace(CONFIG, epochs=1), out=tmp_path / "run")
    before = {path: path.read_bytes() for path in (tmp_path / "run").iterdir()}
    for options, words in (
        ({}, "--resume or --overwrite"),
        ({"resume": True, "overwrite": True}, "together"),
    ):
        with pytest.raises(InvalidArgument, match=words):
            fit(network(), digits, CONFIG, out=tmp_path / "run", **options)
    with pytest.raises(ModelFileError, match="other settings"):
        fit(network(), digits, dataclasses.replace(CONFIG, penalty=0.5), out=tmp_path / "run", resume=True)
    assert {path: path.read_bytes() for path in (tmp_path / "run").iterdir()} == before
    with pytest.raises(InvalidArgument, match="checkpoint"):
        fit(network(), digits, CONFIG, out=tmp_path / "new", resume=True)
    (tmp_path / "file").write_text("mine")
    with pytest.raises(InvalidArgument, match="be a folder"):
        fit(network(), digits, CONFIG, out=tmp_path / "file")
    assert (tmp_path / "file").read_text() == "mine"


def test_overwriting_replaces_a_run_but_nothing_else(digits: Dataset, tmp_path: Path) -> None:
    short = dataclasses.replace(CONFIG, epochs=1)
    fit(network(), digits, short, out=tmp_path / "run")
    assert fit(network(), digits, short, out=tmp_path / "run", overwrite=True).epochs == 1
    (tmp_path / "run" / "thesis.tex").write_text("mine")
    with pytest.raises(InvalidArgument, match=r"nothing but a training run. Found 'thesis.tex'"):
        fit(network(), digits, short, out=tmp_path / "run", overwrite=True)
    assert (tmp_path / "run" / "thesis.tex").read_text() == "mine"
    assert (tmp_path / "run" / "model.safetensors").exists()


def test_a_checkpoint_of_another_network_is_refused(digits: Dataset, tmp_path: Path) -> None:
    short = dataclasses.replace(CONFIG, epochs=1)
    fit(network(), digits, short, out=tmp_path / "run")
    with pytest.raises(ModelFileError, match=r"by another network|does not belong"):
        fit(lipbridge.mlp([64, 16, 10]), digits, short, out=tmp_path / "run", resume=True)
    with pytest.raises(ModelFileError, match="other settings"):
        fit(network(), digits, CONFIG, out=tmp_path / "run", resume=True)


def test_two_gloo_processes_train_as_one(digits: Dataset, tmp_path: Path) -> None:
    process = run_script(
        tmp_path,
        False,
        3,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node=2",
        "--local-addr=127.0.0.1",
    )
    _, errors = process.communicate(timeout=240)
    assert process.returncode == 0, errors.decode()
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    assert record["processes"] == 2
    alone = fit(network(), digits, TrainingConfig(epochs=3, batch_size=64))
    # The same batches, averaged in another order: equal but for rounding that training amplifies a little.
    assert record["result"]["bound"] == pytest.approx(alone.bound.value, rel=0.02)
    assert record["result"]["accuracy"] == pytest.approx(alone.accuracy, abs=0.02)


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("name", ["abs", "crelu", "sincos", "identity_abs", "sin2_pair"])
def test_a_whole_step_on_the_meta_device(norm, name: str) -> None:
    """The device holds no data: a tensor left on the CPU, or a wait for the device, would raise."""
    config = TrainingConfig(norm=norm, shift=1)
    with torch.device("meta"):
        module = lipbridge.mlp([64, 16, 10], name)
        inputs, labels = torch.empty(8, 64), torch.empty(8, dtype=torch.int64)
    penalty = TrivialBoundPenalty(module, norm)
    optimizer = make_optimizer(module, config)
    moved = shifted(inputs, (1, 8, 8), 1, None)
    loss, right = training_step(module, penalty, optimizer, moved, labels, config)
    assert loss.device.type == right.device.type == "meta"


@pytest.mark.gpu
def test_training_on_an_accelerator(digits: Dataset) -> None:
    result = fit(network(), digits, dataclasses.replace(CONFIG, epochs=15), device="auto")
    assert next(result.module.parameters()).device.type != "cpu"
    assert result.accuracy >= 0.93


def test_shifting_moves_images_and_fills_with_zeros() -> None:
    images = torch.arange(1.0, 33.0).view(2, 2 * 4 * 2)  # two images of shape (2, 4, 2)
    generator = torch.Generator().manual_seed(0)
    seen = set()
    for _ in range(60):
        moved = shifted(images, (2, 4, 2), 1, generator).view(2, 2, 4, 2)
        for image, result in zip(images.view(2, 2, 4, 2), moved, strict=True):
            fits = [
                (down, right)
                for down in (-1, 0, 1)
                for right in (-1, 0, 1)
                if torch.equal(
                    nn.functional.pad(image, (1, 1, 1, 1))[:, 1 - down : 5 - down, 1 - right : 3 - right], result
                )
            ]
            assert len(fits) == 1
            seen.update(fits)
    assert len(seen) == 9


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({"epochs": 0}, "epochs"),
        ({"batch_size": 2.5}, "batch_size"),
        ({"penalty": float("nan")}, "penalty"),
        ({"penalty": -1.0}, "penalty"),
        ({"learning_rate": 0.0}, "learning_rate"),
        ({"warmup": 1.0}, "warmup"),
        ({"squarings": 0}, "squarings"),
        ({"label_smoothing": 1.5}, "label_smoothing"),
        ({"logit_scale": 0.0}, "logit_scale"),
        ({"norm": 3}, "norm"),
        ({"form": "square"}, "form"),
        ({"optimizer": "lbfgs"}, "optimizer"),
    ],
)
def test_bad_settings(change, error: str) -> None:
    with pytest.raises((InvalidArgument, UnknownName), match=error):
        dataclasses.replace(CONFIG, **change)


def test_rescaling_at_the_end_or_later(digits: Dataset, tmp_path: Path) -> None:
    config = dataclasses.replace(CONFIG, penalty=0.0)
    plain = fit(network(), digits, config, out=tmp_path / "run")
    later = fit(network(), digits, config, out=tmp_path / "run", resume=True, rescale=True)
    at_once = fit(network(), digits, config, out=tmp_path / "other", rescale=True)
    assert later.before is not None
    assert later.before.value == plain.bound.value
    assert later.bound.value == at_once.bound.value < 0.99 * plain.bound.value
    assert equal(lipbridge.load(tmp_path / "run"), later.module)
    torch.testing.assert_close(later.module(digits.test_inputs), plain.module(digits.test_inputs), rtol=1e-4, atol=1e-4)
    assert (
        json.loads((tmp_path / "run" / "run.json").read_text())["result"]["bound_before_rescaling"] == plain.bound.value
    )
    again = fit(network(), digits, config, out=tmp_path / "run", resume=True)  # the checkpoint kept the trained weights
    assert equal(again.module, plain.module)


def test_a_network_that_cannot_be_rescaled_is_refused_before_training(digits: Dataset, tmp_path: Path) -> None:
    shared = nn.Linear(64, 64)
    module = nn.Sequential(shared, nn.ReLU(), shared, nn.ReLU(), nn.Linear(64, 10))
    with pytest.raises(UnsupportedOperation, match="rescaling"):
        fit(module, digits, CONFIG, out=tmp_path / "run", rescale=True)
    assert not (tmp_path / "run").exists()


def test_a_network_that_does_not_fit_the_data(digits: Dataset, tmp_path: Path) -> None:
    for module, words in ((lipbridge.mlp([64, 8, 3]), "10 logits"), (lipbridge.mlp([5, 8, 10]), "takes 5 .* has 64")):
        with pytest.raises(ValueError, match=words):
            fit(module, digits, CONFIG, out=tmp_path / "run")
    assert not (tmp_path / "run").exists()
    iris, old = load_dataset("iris"), dataclasses.replace(CONFIG, epochs=1)
    fit(lipbridge.mlp([4, 8, 3]), iris, old, out=tmp_path / "run")
    before = {path: path.read_bytes() for path in (tmp_path / "run").iterdir()}
    with pytest.raises(InvalidArgument, match="no images"):
        fit(lipbridge.mlp([4, 8, 3]), iris, dataclasses.replace(old, shift=1), out=tmp_path / "run", overwrite=True)
    assert {path: path.read_bytes() for path in (tmp_path / "run").iterdir()} == before


def test_a_device_that_is_not_there() -> None:
    with pytest.raises(InvalidArgument, match="device"):
        pick_device("warp:9")


# --- convolutional networks ------------------------------------------------------------------------------------------

CONV = TrainingConfig(epochs=4, batch_size=128, penalty=0.03, every=3, shift=1)


def convolutional(dataset: Dataset, activation: str = "abs", seed: int = 0) -> nn.Sequential:
    module = build("conv-small", dataset, (4, 6, 8), activation)
    return initialised(module, "orthogonal", seed=seed, input_shape=(dataset.features,))


@pytest.mark.parametrize(("norm", "activation"), [(1, "abs"), (2, "abs"), ("inf", "abs"), (2, "sincos")])
def test_the_penalty_lowers_the_bound_of_a_convolutional_network(norm, activation: str, digits: Dataset) -> None:
    weight = {1: 3e-3, 2: 0.03, "inf": 1e-3}[norm]
    config = TrainingConfig(norm=norm, epochs=8, batch_size=64, penalty=weight, every=3, learning_rate=1e-2)
    result = fit(convolutional(digits, activation), digits, config)
    plain = fit(convolutional(digits, activation), digits, dataclasses.replace(config, penalty=0.0))
    assert result.accuracy > 0.6
    assert result.bound.proved
    assert result.bound.value < 0.6 * plain.bound.value


def test_resuming_a_convolutional_run_ends_bit_identical(digits: Dataset, tmp_path: Path, monkeypatch) -> None:
    whole = fit(convolutional(digits), digits, CONV, out=tmp_path / "whole")
    epoch = lipbridge.training.loop.TrainingRun._epoch

    def stops(self, index: int):
        if index == 2:
            raise Interrupted
        return epoch(self, index)

    monkeypatch.setattr(lipbridge.training.loop.TrainingRun, "_epoch", stops)
    with pytest.raises(Interrupted):
        fit(convolutional(digits), digits, CONV, out=tmp_path / "parts")
    monkeypatch.undo()
    resumed = fit(convolutional(digits), digits, CONV, out=tmp_path / "parts", resume=True)
    assert equal(whole.module, resumed.module)
    assert equal(lipbridge.load(tmp_path / "parts"), whole.module)
    assert json.loads((tmp_path / "parts" / "run.json").read_text())["model"] == "module"


@pytest.mark.parametrize("change", ["relu", "stride"])
def test_a_checkpoint_of_equal_tensors_but_another_network_is_refused(
    digits: Dataset, tmp_path: Path, change: str
) -> None:
    short = dataclasses.replace(CONV, epochs=1)
    fit(convolutional(digits), digits, short, out=tmp_path / "run")
    other = convolutional(digits, "relu" if change == "relu" else "abs")
    if change == "stride":
        other[1].stride, other[3].stride = (1, 1), (4, 4)  # type: ignore[assignment]
    with pytest.raises(ModelFileError, match="another network"):
        fit(other, digits, short, out=tmp_path / "run", resume=True)


class Residual(nn.Module):
    """A layer that no model file can hold."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(channels, channels, 3, padding=1), nn.BatchNorm2d(channels)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.norm(self.conv(x)).relu()


def residual() -> nn.Sequential:
    torch.manual_seed(0)
    first = nn.Conv2d(1, 4, 3, 2, padding=1)
    return nn.Sequential(nn.Unflatten(1, (1, 8, 8)), first, Residual(4), nn.Flatten(), nn.Linear(64, 10))


def test_a_network_that_no_model_file_holds_is_kept_as_a_graph(digits: Dataset, tmp_path: Path) -> None:
    """With BatchNorm, whose scale the penalty reads live."""
    result = fit(residual(), digits, CONV, out=tmp_path / "run")
    graph = load_graph(tmp_path / "run")
    assert lipbridge.trivial_bound(graph).value == result.bound.value
    inputs = digits.test_inputs[:20].double()
    torch.testing.assert_close(graph(inputs), copy.deepcopy(result.module).double()(inputs))
    assert json.loads((tmp_path / "run" / "run.json").read_text())["model"] == "graph"
    with pytest.raises(ModelFileError, match="load_graph"):
        lipbridge.load(tmp_path / "run")
    again = run_folder.load_weights(tmp_path / "run", residual())
    assert equal(again, result.module)
    with pytest.raises(ModelFileError, match="does not belong"):
        run_folder.load_weights(tmp_path / "run", network())
    resumed = fit(residual(), digits, CONV, out=tmp_path / "run", resume=True)
    assert equal(resumed.module, result.module)


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("name", ["abs", "crelu"])
@pytest.mark.parametrize("arch", ["conv-small", "conv-large"])
def test_a_whole_convolutional_step_on_the_meta_device(norm, name: str, arch: str, digits: Dataset) -> None:
    config = TrainingConfig(norm=norm, shift=1)
    with torch.device("meta"):
        module = build(arch, digits, (4, 4, 4, 4, 8), name)
        inputs, labels = torch.empty(8, 64), torch.empty(8, dtype=torch.int64)
    penalty = TrivialBoundPenalty(module, norm, input_shape=(64,))
    optimizer = make_optimizer(module, config)
    loss, right = training_step(module, penalty, optimizer, shifted(inputs, (1, 8, 8), 1, None), labels, config)
    assert loss.device.type == right.device.type == "meta"


def test_the_logit_scale_is_a_factor_of_the_logits(digits: Dataset) -> None:
    """A step with scale s is one with s times the last layer and scale one: the loss cannot tell them apart."""
    x, y = digits.train_inputs[:64], digits.train_labels[:64]
    losses: list[float] = []
    for scale, factor in ((1.0, 3.0), (3.0, 1.0)):
        net = network()
        with torch.no_grad():
            net[-1].weight *= factor
        config = dataclasses.replace(CONFIG, logit_scale=scale)
        losses.append(float(training_step(net, None, make_optimizer(net, config), x, y, config)[0]))
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    scaled = fit(network(), digits, dataclasses.replace(CONFIG, logit_scale=4.0))
    assert scaled.bound.value < 0.7 * fit(network(), digits, CONFIG).bound.value


def test_a_convolutional_network_is_rescaled_at_the_end(digits: Dataset, tmp_path: Path) -> None:
    config = dataclasses.replace(CONFIG, epochs=1, penalty=0.0)
    net = build("conv-small", digits, (4, 6, 8))
    result = fit(net, digits, config, out=tmp_path / "run", rescale=True)
    assert result.before is not None
    assert result.bound.value < result.before.value
