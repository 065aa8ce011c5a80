"""The folder for VNN-COMP's verifiers: what it holds is one network, its questions, and verdicts on that network."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
import vnnlib
from torch import nn

import lipbridge
from lipbridge.cli.app import run
from lipbridge.cli.questions import claimed
from lipbridge.data import load_dataset
from lipbridge.files.benchmarks import get_benchmark
from lipbridge.lowering.twin import twin
from lipbridge.problem.property import robust
from lipbridge.verifiers.properties import judge


@pytest.fixture
def model(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    return lipbridge.save(nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3)), tmp_path / "m.safetensors")


def table(path: Path) -> list[list[str]]:
    return list(csv.reader(path.read_text().splitlines()))


def exported(model: Path, out: Path, *more: str) -> list[str]:
    return ["export", str(model), "--to", "vnncomp", "--data", "iris", "--radius", "0.01,0.3", "--out", str(out), *more]


def test_every_file_is_there_and_the_verdicts_are_of_the_written_network(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "questions"
    assert run(exported(model, out, "--points", "4", "--timeout", "7", "--json")) == 0
    rows = json.loads(capsys.readouterr().out)
    assert len(rows) == 8
    listed, expected = table(out / "instances.csv"), table(out / "expected.csv")
    assert [row[2] for row in listed] == ["7"] * 8
    assert len(table(out / "instances-2.0.csv")) == 8
    for network, query, _ in [*listed, *table(out / "instances-2.0.csv")]:
        assert (out / network).is_file()
        assert (out / query).is_file()
    for _, query, _ in table(out / "instances-2.0.csv"):
        vnnlib.parse_query_file(str(out / query))
    graph = lipbridge.read_onnx(out / "onnx/network.onnx")
    data = load_dataset("iris")
    names = {"verified": "unsat", "falsified": "sat", "unknown": "unknown"}
    for place, row in enumerate(rows):
        x, label = data.test_inputs[place % 4].double(), int(data.test_labels[place % 4])
        own = judge(graph, robust(x.reshape(graph.input_shape), label, 3, (0.01, 0.3)[place // 4]))
        assert row["verdict"] == own.verdict.value
        assert row["margin"] == own.margin
        assert expected[1 + 2 * place][2] == names[row["verdict"]]
        assert float(expected[1 + 2 * place][3]) == own.margin
        if own.counterexample is not None:  # another program sees it too
            session = onnxruntime.InferenceSession(out / "onnx/network.onnx")
            (y,) = session.run(None, {"X": own.counterexample.numpy().astype(np.float32)[None]})
            assert y[0].argmax() != label or y[0].max() - y[0][label] < 1e-4


def test_a_question_for_each_rival(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "questions"
    assert run(exported(model, out, "--points", "2", "--per-rival")) == 0
    assert "8 properties" in capsys.readouterr().out
    names = [Path(row[1]).stem for row in table(out / "instances.csv")]
    label = int(load_dataset("iris").test_labels[0])
    assert [f"point0_radius0.01_class{k}" in names for k in range(3)] == [k != label for k in range(3)]


@pytest.mark.parametrize("norm", ["1", "inf"])
def test_a_lipschitz_claim_as_a_twin_and_as_two_networks(
    norm: str, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "claim"
    asked = ["export", str(model), "--to", "vnncomp", "--lipschitz", "100", "--norm", norm, "--out", str(out)]
    assert run([*asked, "--box=-1,1", "--distance", "0.1,0.5", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert {row["verdict"] for row in rows} == {"verified"}
    assert len(rows) == 4 * 2 * (8 if norm == "1" else 6)
    listed, pairs = table(out / "instances.csv"), table(out / "pairs.csv")[1:]
    assert len(listed) == len(pairs) == len(rows)
    for f, query, result, _ in pairs:
        assert (out / f).is_file()
        assert result == "unsat"
        assert len(vnnlib.parse_query_file(str(out / query)).networks) == 2
    for _, query, _ in table(out / "instances-2.0.csv"):
        vnnlib.parse_query_file(str(out / query))
    graph, pair = lipbridge.read_onnx(out / "onnx/single.onnx"), lipbridge.read_onnx(out / "onnx/network.onnx")
    x, d = torch.randn(2, 3, 4, dtype=torch.float64)
    g = graph(x + d) - graph(x)
    y = pair(torch.cat([x, d], 1))
    if norm == "inf":
        torch.testing.assert_close(y, torch.cat([g, -g, 100.0 * d, -100.0 * d], 1), rtol=1e-6, atol=1e-6)
    else:
        torch.testing.assert_close(y.amax(1), g.abs().sum(1) - 100.0 * d.abs().sum(1), rtol=1e-6, atol=1e-6)


def test_networks_that_are_rounded_say_so(tmp_path: Path) -> None:
    benchmark = get_benchmark("vnncomp")
    torch.manual_seed(0)
    for act, exactly in ((nn.ReLU(), True), (nn.LeakyReLU(0.01), False)):
        graph = lipbridge.capture(nn.Sequential(nn.Linear(2, 3), act, nn.Linear(3, 2)))
        for norm in (1, "inf"):
            _, same = benchmark.network(twin(graph, 1.5, norm), tmp_path)
            assert same == exactly


def test_the_written_constant_is_never_above_the_claimed_one() -> None:
    for value in (0.1, 1.0, 0.3, 1e-3, 7.7):
        held = claimed(value, "inf", "0,1", "0.1,1").constant
        assert held <= value
        assert held == float(np.float32(held))
        assert held >= value * (1.0 - 2.0**-22)


def test_wrong_options_are_told(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    full = tmp_path / "full"
    full.mkdir()
    (full / "note.txt").write_text("mine")
    asked = exported(model, tmp_path / "new")
    for args, words in (
        (exported(model, full), "--overwrite"),
        ([*asked, "--points", "0"], "--points"),
        ([*asked, "--timeout", "0"], "--timeout"),
        ([*asked, "--dialect", "relu"], "--dialect"),
        ([*asked[:6], *asked[8:]], "--radius"),
        ([*asked, "--lipschitz", "1"], "--lipschitz"),
        ([*asked[:6], *asked[8:], "--lipschitz", "1", "--norm", "2"], "norm"),
        ([*asked[:6], *asked[8:], "--lipschitz", "1", "--box", "1"], "--box"),
        ([*asked[:6], *asked[8:], "--lipschitz", "1", "--distance", "2,1"], "order"),
        (["export", str(model), "--out", str(tmp_path / "x.onnx"), "--radius", "0.1"], "vnncomp"),
        ([*asked[:4], "--data", "mnistt", *asked[6:]], "mnistt"),
    ):
        assert run(args) == 2, args
        assert words in capsys.readouterr().err
    assert (full / "note.txt").read_text() == "mine"
    assert not (tmp_path / "new" / "instances.csv").exists()
