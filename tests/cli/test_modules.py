"""``FILE.py:NAME`` as MODEL, with weights of another file, and ONNX files in gzip: rows, names, and each bad input."""

from __future__ import annotations

import gzip
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import safetensors.torch
import torch
from torch import nn

import lipbridge
from lipbridge.cli.app import run
from tests.support.command_line import Answer, refused

Cli = Callable[..., Answer]

SOURCE = """
import torch
from torch import nn
from beside import HIDDEN


def make():
    print("chatter of the file")
    return nn.Sequential(nn.Linear(64, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, 10))


def images(shape, classes):
    channels, height, width = shape
    return nn.Sequential(nn.Conv2d(channels, 2, 3), nn.ReLU(), nn.Flatten(),
                         nn.Linear(2 * (height - 2) * (width - 2), classes))


def defaults(shape=(1, 8, 8), classes=10):
    return images(shape, classes)


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(64, 10)

    def forward(self, x):
        return self.fc(x)


module = Net()


def fails():
    raise ValueError("first line\\nsecond line")


def number():
    return 3


def three(a, b, c):
    return make()


constant = 5
"""


@pytest.fixture
def cli(capfd: pytest.CaptureFixture[str]) -> Cli:
    def call(*arguments: object) -> Answer:
        capfd.readouterr()
        code = run([str(argument) for argument in arguments])
        return Answer(code, *capfd.readouterr())

    return call


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "net.py").write_text(SOURCE)
    (tmp_path / "beside.py").write_text("HIDDEN = 16\n")
    (tmp_path / "broken.py").write_text("def make(:\n")
    torch.manual_seed(5)
    state = network().state_dict()
    torch.save(state, tmp_path / "net.pt")
    torch.save({"state_dict": {f"module.{name}": value for name, value in state.items()}}, tmp_path / "parallel.pt")
    torch.save({"0.weight": torch.zeros(3, 3)}, tmp_path / "other.pt")
    safetensors.torch.save_file(dict(state), tmp_path / "net.safetensors")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def network() -> nn.Sequential:
    return nn.Sequential(nn.Linear(64, 16), nn.ReLU(), nn.Linear(16, 10))


def expected(folder: Path) -> float:
    module = network()
    module.load_state_dict(torch.load(folder / "net.pt", weights_only=True))
    return lipbridge.trivial_bound(module).value


@pytest.mark.parametrize("file", ["net.pt", "net.safetensors", "parallel.pt"])
def test_weights_of_a_file(cli: Cli, folder: Path, file: str) -> None:
    answer = cli("bound", "net.py:make", "--weights", file, "--json")
    assert answer.rows[0]["value"] == expected(folder)
    assert answer.rows[0]["network"] == Path(file).stem
    assert "chatter of the file" in answer.err  # stdout is for the rows
    assert ("note: parallel.pt: 'module.'" in answer.err) == (file == "parallel.pt")


def test_weights_that_the_module_comes_with_are_told(cli: Cli, folder: Path) -> None:
    for name in ("make", "Net", "module", "defaults"):
        shape = ["--input-shape", "1,8,8"] if name == "defaults" else []
        answer = cli("bound", f"net.py:{name}", *shape, "--json")
        assert answer.rows[0]["network"] == name
        assert f"note: net.py:{name}: the weights are those that it comes with" in answer.err
    again = cli("bound", "net.py:make", "--json")
    assert again.rows[0]["value"] == cli("bound", "net.py:make", "--json").rows[0]["value"]  # seeded


def test_random_weights_of_a_module_are_the_same_in_each_process(cli: Cli, folder: Path) -> None:
    """The cells of a study each open the file: they must see one network."""
    (folder / "random.py").write_text("from torch import nn\nnet = nn.Sequential(nn.Linear(4, 3))\n")
    values: set[float] = set()
    for seed in (1, 2):
        torch.manual_seed(seed)  # what another process has drawn by then
        (row,) = cli("bound", "random.py:net", "--input-shape", "4", "--json").rows
        values.add(row["value"])
    assert len(values) == 1


def test_functions_of_shape_and_classes(cli: Cli, folder: Path) -> None:
    said = cli("bound", "net.py:images", "--input-shape", "1,8,8", "--classes", "10", "--json").rows[0]["value"]
    assert cli("bound", "net.py:images", "--data", "digits", "--json").rows[0]["value"] == said
    refused(cli("bound", "net.py:images"), "--input-shape", "--classes", "(shape, classes)")


def test_certify_and_compare_and_export(cli: Cli, folder: Path) -> None:
    pytest.importorskip("onnx")
    (row,) = cli("certify", "net.py:images", "digits", "--radius", "0.1", "--points", "9", "--json").rows
    assert (row["network"], row["points"]) == ("images", 9)
    (row,) = cli(
        "certify", "net.py:make", "digits", "--weights", "net.pt", "--radius", "0.1", "--points", "9", "--json"
    ).rows
    assert row["network"] == "net"
    rows = cli(
        "compare", "net.py:make", "net.py:make", "--weights", "net.pt", "--weights", "parallel.pt",
        "--verifiers", "trivial", "--option", "witness.rounds=1", "--json",
    ).rows  # fmt: skip
    values = {row["network"]: row["value"] for row in rows if row["verifier"] == "trivial"}
    assert values == {"net": expected(folder), "parallel": expected(folder)}
    cli("export", "net.py:make", "--weights", "net.pt", "--out", "net.onnx")
    (folder / "net.onnx.gz").write_bytes(gzip.compress((folder / "net.onnx").read_bytes()))
    (row,) = cli("bound", "net.onnx.gz", "--json").rows
    assert (row["network"], row["value"]) == ("net", pytest.approx(expected(folder), rel=1e-12))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["net.py"], ["FILE.py:NAME"]),
        (["nowhere.py:make"], ["file that exists"]),
        (["net.py:nothing"], ["net.py has"]),
        (["net.py:constant"], ["net.py has"]),
        (["net.py:"], ["net.py"]),
        (["net.py:fails"], ["line", "ValueError: first line"]),
        (["net.py:number"], ["returns a torch.nn.Module", "int"]),
        (["net.py:three"], ["(a, b, c)"]),
        (["broken.py:make"], ["broken.py", "line 1"]),
        (["net.py:make", "--weights", "other.pt"], ["3 missing", "'0.weight' has shape (3, 3)", "(16, 64)"]),
        (["net.py:make", "--weights", "nowhere.pt"], ["nowhere.pt", "No such file"]),
        (["net.py:make", "--weights", "."], ["no regular file"]),
        (["net.py:make", "--weights", "net.py"], ["net.py", "neither"]),
        (["net.py:make", "--weights", "net.pt", "--weights", "net.pt"], ["--weights", "once for each"]),
        (["net.pt", "--weights", "net.pt"], ["--weights", "FILE.py:NAME"]),
        (["net.pt"], ["--weights"]),
        (["net.safetensors"], ["--weights"]),
        (["net.py:make", "--input-shape", "5"], ["takes 64 features"]),
        (["net.py:make", "--classes", "0"], ["--classes"]),
        (["net.py:make", "--output", "scores"], ["--output", "ONNX"]),
        (["net.py:make", "--data", "iris"], ["takes 64 features, iris has 4"]),
        (["net.py:make", "--data", "nothing"], ["nothing"]),
    ],
)
def test_bad_inputs(cli: Cli, folder: Path, arguments: Sequence[str], words: Sequence[str]) -> None:
    answer = cli("bound", *arguments, "--json")
    kept = [line for line in answer.err.splitlines(keepends=True) if line[:5] not in ("note:", "chatt")]
    refused(Answer(answer.code, answer.out, "".join(kept)), *words)


def test_what_belongs_to_no_module(cli: Cli, folder: Path) -> None:
    lipbridge.save(network(), folder / "model.safetensors")
    refused(cli("bound", ".", "--classes", "10"), "--classes")
    refused(cli("bound", ".", "--weights", "net.pt"), "--weights", "there are 0")
    refused(cli("bound", ".", "--input-shape", "64"), "--input-shape")


def test_a_folder_of_other_files_is_no_model(cli: Cli, folder: Path) -> None:
    refused(cli("bound", "."), "holds no model.safetensors", "--resume")
