"""The studies of benchmarks/studies: each reads, says what it answers and how long it takes, and fits its time."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

import lipbridge
from lipbridge.data import DATASET_NAMES, Dataset, load_dataset
from lipbridge.data.datasets import VALIDATION
from lipbridge.errors import DataError
from lipbridge.files.graphs import load_graph
from lipbridge.layers.architectures import build_by_factory
from lipbridge.study.cells import Kind
from lipbridge.study.config import read_study
from lipbridge.study.plan import make_plan

STUDIES = Path(__file__).parents[2] / "benchmarks" / "studies"
FILES = sorted(STUDIES.glob("*.toml"))


def data(name: str) -> Dataset:
    try:
        return load_dataset(name)
    except DataError as error:
        pytest.skip(str(error))


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_a_study_reads_and_plans(file: Path) -> None:
    head = file.read_text().partition("\nname")[0]
    assert all(line.startswith("#") for line in head.splitlines())
    assert re.search(r"[Aa]bout|at most", head)
    assert "2 cores" in head
    study = read_study(file)
    assert study.name == file.stem
    assert study.tables.limits.threads == 1  # so its ids are the same everywhere
    assert study.tables.engine.jobs == 2
    for name in {table.data for table in study.tables.networks}:
        assert name.removesuffix(VALIDATION) in DATASET_NAMES
        data(name)
    plan = make_plan(study)
    assert len({network["name"] for network in plan.networks}) == len(plan.networks)
    for network in plan.networks:
        own = [cell for cell in plan.cells if cell.network == network["name"]]
        assert own[0].kind is Kind.TRAINING
        assert own[1].words["verifier"] == "witness"


def test_the_studies_are_those_of_the_paper() -> None:
    names = ["fashion", "iris", "mnist", "norms", "obstructions", "smoke", "verifiers"]
    assert [file.stem for file in FILES] == names


@pytest.mark.parametrize("factory", ["spectral_norm_mlp", "orthogonal_mlp"])
def test_parametrized_networks_are_trained_read_and_kept(factory: str, tmp_path: Path) -> None:
    """What is bounded, and what the file holds, is the function that was trained."""
    digits = load_dataset("digits")
    module = build_by_factory(f"{STUDIES / 'networks.py'}:{factory}", digits)
    config = lipbridge.TrainingConfig(epochs=2, batch_size=128, penalty=0.0, logit_scale=4.0)
    trained = lipbridge.fit(module, digits, config, out=tmp_path / "run")
    assert trained.accuracy > 0.5
    x = digits.test_inputs.double()
    kept = load_graph(tmp_path / "run" / "model.safetensors")
    with torch.no_grad():
        y = trained.module.double().eval()(x)
    torch.testing.assert_close(kept(x), y, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(lipbridge.capture(trained.module, (64,))(x), y, rtol=1e-9, atol=1e-9)
    bound = lipbridge.trivial_bound(kept)
    assert bound.value == pytest.approx(trained.bound.value, rel=1e-6)
    assert 1 - 1e-6 <= bound.value <= (1.5 if "spectral" in factory else 1 + 1e-4)
    again = lipbridge.fit(module.float(), digits, config, out=tmp_path / "run", resume=True)
    assert again.bound.value == pytest.approx(trained.bound.value, rel=1e-6)
