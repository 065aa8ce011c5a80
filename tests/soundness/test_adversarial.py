"""Whatever is passed to a public function: a value, or an error of ours in one line that names the way out."""

from __future__ import annotations

import dataclasses
import math
import pathlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import lipbridge
from lipbridge.errors import InvalidArgument, LipbridgeError, ModelFileError, NumericalFailure
from lipbridge.files import container, graphs, modules, problems
from lipbridge.files.run_folder import load_weights
from lipbridge.files.state_files import load_state
from lipbridge.training.devices import pick_device
from lipbridge.vocabulary import Quantity

NAN, INF = math.nan, math.inf
MODULE = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
INPUTS, LABELS = torch.linspace(0, 1, 20).reshape(5, 4), torch.arange(5) % 3
GRAPH = lipbridge.capture(MODULE)
PROBLEM = lipbridge.Problem(GRAPH, lipbridge.Question.everywhere(2))
BALL = lipbridge.Ball(torch.zeros(1, 4), 0.1, 2)
DATA = lipbridge.Dataset("toy", INPUTS, LABELS, INPUTS, LABELS, 3, (4,))
WITNESS = lipbridge.Witness(torch.full((1, 4), 0.3, dtype=torch.float64), torch.ones(1, 4, dtype=torch.float64))
QUICK = {"restarts": 2, "steps": 2, "rounds": 1}

JUNK: Mapping[str, Any] = {
    "None": None,
    "5": 5,
    "-1": -1,
    "nan": NAN,
    "inf": INF,
    "3.5": 3.5,
    "1j": 1j,
    "true": True,
    "10**5000": 10**5000,  # Python refuses to print it
    "-10**400": -(10**400),
    "text": "x",
    "empty text": "",
    "NUL": "a\0b",
    "bytes": b"x",
    "list": [],
    "dict": {},
    "tuple": (),
    "nested": [[1.0, 2.0], [3.0]],
    "object": object(),
    "class": nn.Linear,
    "function": len,
    "layer": nn.Linear(4, 3),
    "range": range(3),
    "vector": torch.zeros(2),
    "empty": torch.zeros(0, 4),
    "NaN tensor": torch.full((5, 4), NAN),
    "complex": torch.zeros(5, 4, dtype=torch.complex64),
    "meta": torch.zeros(5, 4, device="meta"),
    "sparse": torch.eye(5, 4).to_sparse(),
    "bool tensor": torch.zeros(5, 4, dtype=torch.bool),
    "scalar": torch.zeros((), dtype=torch.long),
    "array": np.zeros((5, 4)),
    "array of text": np.array(["a"]),
    "folder": Path("/"),
    "nowhere": "/proc/x/y",
}

Row = tuple[Callable[..., Any], dict[str, Any]]


def rows(folder: Path) -> dict[str, Row]:
    """Functions with arguments that are right; each of these is replaced by each of ``JUNK``."""
    model = modules.save(MODULE, folder / "model.safetensors")
    torch.save(MODULE.state_dict(), folder / "weights.pt")
    save, load = folder / "saved.safetensors", folder / "graph.safetensors"
    graphs.save_graph(GRAPH, load)
    problem = problems.save_problem(PROBLEM, folder / "problem.safetensors")
    tensors = container.save_tensors(folder / "tensors.safetensors", {"a": INPUTS}, {})
    config = lipbridge.TrainingConfig(epochs=1, batch_size=5)
    balls = lipbridge.Problem(GRAPH, lipbridge.Question.on(BALL, 2))
    flags = {"resume": False, "overwrite": False, "rescale": False, "progress": False}
    return {
        "capture": (lipbridge.capture, {"module": MODULE, "input_shape": (4,)}),
        "trivial_bound": (
            lipbridge.trivial_bound,
            {"network": GRAPH, "norm": 2, "output_norm": 2, "input_shape": None},
        ),
        "penalty": (
            lipbridge.TrivialBoundPenalty,
            {"module": MODULE, "norm": 2, "every": 2, "squarings": 4, "input_shape": (4,)},
        ),
        "fit": (
            lipbridge.fit,
            {"module": MODULE, "dataset": DATA, "config": config, "out": None, "device": "cpu", **flags},
        ),
        "certified_radii": (
            lipbridge.certified_radii,
            {"network": GRAPH, "inputs": INPUTS, "labels": LABELS, "norm": 2},
        ),
        "certified_accuracy": (
            lipbridge.certified_accuracy,
            {"network": GRAPH, "inputs": INPUTS, "labels": LABELS, "radii": [0.1], "norm": 2},
        ),
        "save": (modules.save, {"module": MODULE, "path": save, "extra": {"a": 1}}),
        "load": (modules.load, {"path": model}),
        "load_header": (container.load_header, {"path": model}),
        "save_graph": (graphs.save_graph, {"graph": GRAPH, "path": save, "extra": None}),
        "load_graph": (graphs.load_graph, {"path": load}),
        "save_problem": (problems.save_problem, {"problem": PROBLEM, "path": save}),
        "load_problem": (problems.load_problem, {"path": problem}),
        "save_tensors": (container.save_tensors, {"path": save, "tensors": {"a": INPUTS}, "metadata": {}}),
        "load_tensors": (container.load_tensors, {"path": tensors}),
        "load_weights": (load_weights, {"folder": folder, "module": MODULE}),
        "load_state": (load_state, {"module": MODULE, "path": folder / "weights.pt"}),
        "load_dataset": (lipbridge.load_dataset, {"name_or_folder": "iris", "folder": None}),
        "Dataset": (lipbridge.Dataset, {f.name: getattr(DATA, f.name) for f in dataclasses.fields(DATA)}),
        "TrainingConfig": (lipbridge.TrainingConfig, dataclasses.asdict(lipbridge.TrainingConfig())),
        "Ball": (lipbridge.Ball, {"centers": INPUTS, "radius": 0.1, "norm": 2}),
        "Problem": (lipbridge.Problem, {"graph": GRAPH, "question": PROBLEM.question}),
        "Question": (
            lipbridge.Question,
            {"input_norm": 2, "output_norm": 2, "region": BALL, "quantity": Quantity.LIPSCHITZ},
        ),
        "Question.everywhere": (lipbridge.Question.everywhere, {"norm": 2, "output_norm": 1}),
        "Question.on": (lipbridge.Question.on, {"region": BALL, "norm": 2, "output_norm": 1, "quantity": "deviation"}),
        "search": (lipbridge.search_lower_bound, {"problem": PROBLEM, "starts": INPUTS, "seed": 0, **QUICK}),
        "search on balls": (lipbridge.search_lower_bound, {"problem": balls, "starts": None, "seconds": 1.0, **QUICK}),
        "witness_value": (lipbridge.witness_value, {"problem": PROBLEM, "witness": WITNESS}),
        "Witness": (
            lambda **a: lipbridge.witness_value(PROBLEM, lipbridge.Witness(**a)),
            {"points": WITNESS.points, "direction": WITNESS.direction},
        ),
        "rescale": (lipbridge.rescale, {"module": MODULE, "norm": 2, "exact": False, "input_shape": (4,)}),
        "operator_norm": (lipbridge.operator_norm, {"matrix": torch.ones(3, 4), "p": 2, "q": 2}),
        "proved_operator_norm": (lipbridge.proved_operator_norm, {"matrix": torch.ones(3, 4), "p": 2, "q": 2}),
        "Budget": (lipbridge.Budget, {"seconds": 1.0, "memory": 2**30, "seed": 0, "options": {}}),
        "get_verifier": (lipbridge.get_verifier, {"name": "trivial"}),
        "mlp": (lipbridge.mlp, {"widths": [4, 8, 3], "activation_name": "abs", "bias": True}),
        "activation": (lipbridge.activation, {"name": "abs"}),
        "pick_device": (pick_device, {"name": "cpu"}),
        "a Graph": (lambda x: GRAPH(x), {"x": INPUTS.double()}),
    }


NAMES = (
    *("capture", "trivial_bound", "penalty", "fit", "certified_radii", "certified_accuracy", "rescale", "Budget"),
    *("save", "load", "load_header", "save_graph", "load_graph", "save_problem", "load_problem", "save_tensors"),
    *("load_tensors", "load_weights", "load_state", "load_dataset", "Dataset", "TrainingConfig", "Ball", "Problem"),
    *("search", "search on balls", "witness_value", "Witness", "operator_norm", "proved_operator_norm", "mlp"),
    *("get_verifier", "activation", "pick_device", "a Graph", "Question", "Question.everywhere", "Question.on"),
)
#: `load_weights` needs the checkpoint of a run, which is not there: its errors are looked at all the same.
REFUSES = ("load_weights",)


@pytest.fixture
def table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Row]:
    monkeypatch.chdir(tmp_path)  # "x" is a good name of a file
    return rows(tmp_path)


def test_the_table_is_whole(table: dict[str, Row]) -> None:
    assert set(table) == set(NAMES)
    for name, (function, arguments) in table.items():
        if name not in REFUSES:
            function(**arguments)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.filterwarnings("ignore")
def test_a_value_or_one_line(name: str, table: dict[str, Row]) -> None:
    function, arguments = table[name]
    for parameter in arguments:
        for junk, value in JUNK.items():
            where = f"{name}({parameter}={junk})"
            try:
                function(**{**arguments, parameter: value})
            except LipbridgeError as error:
                text = str(error)
            except Exception as error:
                pytest.fail(f"{where} raised {type(error).__name__}: {error}")
            else:
                continue
            assert "\n" not in text, where
            assert 20 < len(text) < 900, (where, text)


# --- what the line says ----------------------------------------------------------------------------------------------


SAYS: Mapping[str, tuple[Callable[[], object], list[str]]] = {
    "labels as floats": (
        lambda: lipbridge.certified_radii(MODULE, INPUTS, LABELS.float()),
        ["labels", "whole numbers", ".long()"],
    ),
    "a label beyond": (lambda: lipbridge.certified_radii(MODULE, INPUTS, LABELS + 1), ["labels", "below 3", "Found 3"]),
    "labels of another length": (lambda: lipbridge.certified_radii(MODULE, INPUTS, LABELS[:4]), ["(5,)", "(4,)"]),
    "other features": (lambda: lipbridge.certified_radii(MODULE, INPUTS[:, :3], LABELS), ["(n, 4)", "(5, 3)"]),
    "NaN inputs": (lambda: lipbridge.certified_radii(MODULE, INPUTS * NAN, LABELS), ["NaN"]),
    "norm 3": (lambda: lipbridge.certified_radii(MODULE, INPUTS, LABELS, 3), ["norm", "1, 2 or inf", "Found 3"]),
    "a list as inputs": (lambda: lipbridge.certified_radii(MODULE, INPUTS.tolist(), LABELS), ["numpy array", "a list"]),
    "a negative radius": (lambda: lipbridge.certified_accuracy(MODULE, INPUTS, LABELS, [-1.0]), ["radii", "-1.0"]),
    "a NaN radius": (lambda: lipbridge.certified_accuracy(MODULE, INPUTS, LABELS, [NAN]), ["radii", "nan"]),
    "a number as radii": (lambda: lipbridge.certified_accuracy(MODULE, INPUTS, LABELS, 0.1), ["radii", "in a list"]),
    "no points": (lambda: lipbridge.certified_accuracy(MODULE, INPUTS[:0], LABELS[:0], [0.1]), ["at least one point"]),
    "no network": (lambda: lipbridge.certified_radii("net", INPUTS, LABELS), ["network", "torch.nn.Module", "'net'"]),
    "a ball without radius": (lambda: lipbridge.Ball(INPUTS, 0.0, 2), ["radius", "above 0"]),
    "a ball of NaN radius": (lambda: lipbridge.Ball(INPUTS, NAN, 2), ["radius", "above 0 and finite"]),
    "a ball in l3": (lambda: lipbridge.Ball(INPUTS, 0.1, 3), ["norm", "1, 2 or inf"]),
    "a ball elsewhere": (
        lambda: lipbridge.Problem(GRAPH, lipbridge.Question.on(lipbridge.Ball(torch.zeros(1, 5), 1.0, 2), 2)),
        ["(k, 4)"],
    ),
    "a module as graph": (
        lambda: lipbridge.Problem(MODULE, lipbridge.Question.everywhere(2)),
        ["lipbridge.capture(module)", "a Sequential"],
    ),
    "no such quantity": (
        lambda: lipbridge.Problem(GRAPH, lipbridge.Question(input_norm=2, output_norm=2, region=None, quantity="size")),
        ["lipschitz, deviation", "'size'"],
    ),
    "starts elsewhere": (lambda: lipbridge.search_lower_bound(PROBLEM, torch.zeros(2, 5)), ["starts", "(n, 4)"]),
    "half a step": (lambda: lipbridge.search_lower_bound(PROBLEM, steps=0.5), ["steps", "whole number"]),
    "NaN seconds": (lambda: lipbridge.search_lower_bound(PROBLEM, seconds=NAN), ["seconds", "at least 0"]),
    "a graph of float32": (lambda: GRAPH(INPUTS), ["float64", "float32"]),
    "a graph of five": (lambda: GRAPH(torch.zeros(1, 5).double()), ["(batch, 4)", "(1, 5)"]),
    "saving what is no module": (lambda: lipbridge.save(MODULE.state_dict(), "x"), ["torch.nn.Module", "OrderedDict"]),
    "a number as path": (lambda: lipbridge.load(5), ["path", "pathlib.Path", "Found 5"]),
    "a flag in words": (lambda: lipbridge.fit(MODULE, DATA, resume="no"), ["resume", "True or False"]),
    "half an epoch": (lambda: lipbridge.TrainingConfig(epochs=0.5), ["epochs", "whole number"]),
    "a penalty in words": (lambda: lipbridge.TrainingConfig(penalty="0.1"), ["penalty", "not negative"]),
    "three betas": (lambda: lipbridge.TrainingConfig(momentum=(0.1, 0.2, 0.3)), ["momentum", "two numbers"]),
    "a matrix of whole numbers": (lambda: lipbridge.operator_norm(torch.ones(2, 2).long()), ["floating point"]),
}


@pytest.mark.parametrize("name", SAYS)
def test_the_way_out_is_named(name: str) -> None:
    call, words = SAYS[name]
    with pytest.raises((InvalidArgument, NumericalFailure)) as caught:
        call()
    assert all(word in str(caught.value) for word in words), str(caught.value)


def test_arrays_and_texts_are_taken_where_they_say_the_same() -> None:
    radii = lipbridge.certified_radii(MODULE, INPUTS, LABELS, 2)
    assert torch.equal(lipbridge.certified_radii(MODULE, INPUTS.numpy(), LABELS.numpy(), "l2"), radii)
    ball = lipbridge.Ball(INPUTS.numpy(), np.float32(0.5), "2")
    assert (ball.centers.dtype, ball.radius, ball.norm) == (torch.float64, 0.5, 2)
    problem = lipbridge.Problem(GRAPH, lipbridge.Question.on(ball, "2", "inf", quantity="deviation"))
    assert (problem.norm_name, problem.quantity) == ("2->inf", Quantity.DEVIATION)
    assert lipbridge.TrainingConfig(norm="inf", epochs=np.int64(3)) == lipbridge.TrainingConfig(norm="inf", epochs=3)
    assert lipbridge.certified_radii(MODULE, INPUTS[:0], LABELS[:0]).shape == (0,)


@pytest.mark.parametrize("kind", [str, Path, lambda path: str(path).encode(), lambda path: pathlib.PurePosixPath(path)])
def test_paths_of_every_kind(kind: Callable[[Path], Any], tmp_path: Path) -> None:
    path = kind(tmp_path / "net.safetensors")
    assert lipbridge.save(MODULE, path) == tmp_path / "net.safetensors"
    assert torch.equal(lipbridge.load(path)[0].weight, MODULE[0].weight)
    lipbridge.fit(MODULE, DATA, lipbridge.TrainingConfig(epochs=1), out=kind(tmp_path / "run"))
    assert (tmp_path / "run" / "run.json").exists()


def test_folders_and_files_in_each_others_place(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    (tmp_path / "folder").mkdir()
    for call in (
        lambda: lipbridge.load(tmp_path / "folder"),
        lambda: lipbridge.load(tmp_path / "file" / "below"),
        lambda: lipbridge.load(tmp_path / "file"),
        lambda: lipbridge.save(MODULE, tmp_path / "file" / "below"),
        lambda: lipbridge.save(MODULE, "/proc/net.safetensors"),
        lambda: lipbridge.load_dataset(tmp_path / "file"),
        lambda: lipbridge.load_dataset("mnist", folder=tmp_path / "file"),
        lambda: lipbridge.load_dataset(tmp_path / "folder"),
    ):
        with pytest.raises(LipbridgeError) as caught:
            call()
        assert "\n" not in str(caught.value)
    with pytest.raises(ModelFileError, match=r"file"):
        lipbridge.save(MODULE, tmp_path / "file" / "below")
