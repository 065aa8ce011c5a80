"""Model files: exact round trips, and every hostile or damaged file is one line of ModelFileError."""

from __future__ import annotations

import io
import json
import math
import os
import pickle
import struct
import subprocess
import sys
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from lipbridge.activations.activation import Term
from lipbridge.activations.registry import activation, activation_module, activation_names, recognise
from lipbridge.activations.scalar_functions import SCALAR_FUNCTIONS
from lipbridge.constants.trivial import trivial_bound
from lipbridge.disk import atomic
from lipbridge.errors import InvalidArgument, ModelFileError
from lipbridge.files import container, graphs, header, modules, problems
from lipbridge.frontend.capture import capture
from lipbridge.graph.graph import Graph
from lipbridge.graph.nodes import (
    Add,
    Concat,
    Conv,
    ConvTranspose,
    Dense,
    Elementwise,
    Gather,
    GroupSort,
    Input,
    MaxPool,
    Node,
    Normalize,
    Reshape,
)
from lipbridge.layers.layers import Sinusoidal, mlp
from lipbridge.problem.problem import Problem
from lipbridge.problem.question import Ball, Question
from lipbridge.vocabulary import Quantity
from tests.support.dags import dag

PARAMETERS: dict[str, dict[str, float]] = {
    "leaky_relu": {"negative_slope": 0.2},
    "elu": {"alpha": 1.3},
    "softplus": {"beta": 2.5},
}


def assert_same_module(a: nn.Module, b: nn.Module) -> None:
    before, after = a.state_dict(), b.state_dict()
    assert list(before) == list(after)
    for name, tensor in before.items():
        assert tensor.dtype == after[name].dtype
        assert torch.equal(tensor, after[name])
    assert str(a) == str(b)


def assert_same_graph(a: Graph, b: Graph) -> None:
    assert a.name == b.name
    assert len(a.nodes) == len(b.nodes)
    for before, after in zip(a.nodes, b.nodes, strict=True):
        assert type(before) is type(after)
        for name in vars(before):
            x, y = getattr(before, name), getattr(after, name)
            if isinstance(x, Tensor):
                assert y.dtype == x.dtype
                assert torch.equal(x, y)
            else:
                assert x == y


# --- modules -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("name", activation_names())
def test_every_activation_comes_back(name: str, dtype: torch.dtype, tmp_path: Path) -> None:
    module = mlp([3, 5, 4, 2], name, **PARAMETERS.get(name, {})).to(dtype)
    again = modules.load(modules.save(module, tmp_path / "m.safetensors"))
    assert type(again) is nn.Sequential
    assert_same_module(module, again)
    assert all(parameter.requires_grad for parameter in again.parameters())
    x = torch.randn(7, 3, dtype=dtype)
    assert torch.equal(module(x), again(x))


def test_names_nesting_modes_and_shared_layers_survive(tmp_path: Path) -> None:
    shared = nn.LeakyReLU(0.3)
    inner = nn.Sequential(
        OrderedDict(first=nn.Linear(6, 4, bias=False), act=shared, again=nn.Linear(4, 4), act2=shared)
    )
    module = nn.Sequential(
        OrderedDict(
            flat=nn.Flatten(1, -1), body=inner, drop=nn.Dropout(0.25), same=nn.Identity(), sin=Sinusoidal(4, 3, 2.0)
        )
    ).eval()
    again = modules.load(modules.save(module, tmp_path))
    assert (tmp_path / container.MODEL_FILE).is_file()
    assert_same_module(module, again)
    assert not again.training
    assert set(dict(again.named_modules())) == {*dict(module.named_modules()), "body.act2"}
    x = torch.randn(5, 2, 3)
    assert torch.equal(module(x), again(x))
    assert modules.load(modules.save(nn.Linear(2, 2), tmp_path / "one")).training


def test_softplus_keeps_its_threshold(tmp_path: Path) -> None:
    module = nn.Sequential(nn.Linear(2, 2), nn.Softplus(2.0, 7.0))
    again = modules.load(modules.save(module, tmp_path))
    assert str(module) == str(again)


def test_header_holds_extra_and_the_architecture(tmp_path: Path) -> None:
    file = modules.save(mlp([2, 3, 1]), tmp_path / "new" / "folder" / "m", {"accuracy": 0.985, "seed": 3})
    header = container.load_header(file)
    assert header["kind"] == "module"
    assert header["extra"] == {"accuracy": 0.985, "seed": 3}
    assert header["body"]["module"]["layers"][0][1]["arguments"] == {"in_features": 2, "out_features": 3, "bias": True}
    for extra in ({"x": object()}, {"x": math.nan}):
        with pytest.raises(InvalidArgument, match="JSON"):
            modules.save(mlp([2, 3, 1]), file, extra)
    assert container.load_header(file) == header


class Custom(nn.Sequential):
    """A subclass may change what forward does, so it is no Sequential."""


@pytest.mark.parametrize(
    ("module", "text"),
    [
        (nn.Sequential(nn.Sequential(nn.GELU("tanh"))), "layer '0.0' of type GELU.*input"),
        (nn.Sequential(nn.Linear(2, 2), nn.Hardshrink()), "layer '1' of type Hardshrink.*jumps"),
        (nn.Sequential(nn.Linear(2, 2, dtype=torch.complex64)), "complex64"),
    ],
)
def test_modules_that_cannot_be_described_nor_captured(module: nn.Module, text: str, tmp_path: Path) -> None:
    with pytest.raises(ModelFileError, match=text) as caught:
        modules.save(module, tmp_path)
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "module",
    [
        nn.Sequential(nn.Linear(2, 2), nn.LayerNorm(2)),
        nn.Sequential(nn.Linear(2, 2), nn.GELU("tanh")),
        Custom(nn.Linear(2, 2)),
        nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(2, 2))),
        nn.Sequential(nn.utils.spectral_norm(nn.Linear(2, 2))),
    ],
    ids=["LayerNorm", "GELU tanh", "Custom", "weight norm", "spectral norm"],
)
def test_modules_that_cannot_be_described_are_kept_as_graphs(module: nn.Module, tmp_path: Path) -> None:
    module = module.eval()
    assert not modules.can_save(module)
    file = modules.save(module, tmp_path, {"seed": 3})
    header = container.load_header(file)
    assert (header["kind"], header["extra"]) == ("graph", {"seed": 3})
    assert_same_graph(graphs.load_graph(file), capture(module))
    with pytest.raises(ModelFileError, match="load_graph"):
        modules.load(file)


def test_the_input_of_a_module_that_does_not_say_it_can_be_given(tmp_path: Path) -> None:
    module = nn.Sequential(nn.Sequential(nn.GELU("tanh")))
    graph = graphs.load_graph(modules.save(module, tmp_path, input_shape=(3,)))
    assert graph.input_shape == (3,)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_weights_without_a_bound_are_not_written(value: float, tmp_path: Path) -> None:
    module = mlp([2, 3, 1])
    file = modules.save(module, tmp_path)
    before = file.read_bytes()
    with torch.no_grad():
        next(module.parameters())[0, 0] = value
    with pytest.raises(ModelFileError, match=r"'0\.weight' holds NaN or infinite"):
        modules.save(module, tmp_path)
    assert file.read_bytes() == before


# --- graphs, problems, tensors -------------------------------------------------------------------------------------


def graph_of_everything() -> Graph:
    """A Graph with every node type and odd numbers; not meant to be evaluated where that is not possible yet."""
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, dtype=torch.float64, generator=generator) / 3

    joint = recognise(
        ((Term("relu", 0.1, 1 / 3), Term("sin", math.pi, 1e-300, -0.0)), (Term("elu", parameters=(0.7,)),))
    )
    nodes: tuple[Node, ...] = (
        Input("input", (), (1, 4, 4)),
        Conv("conv", (0,), (2, 4, 4), draw(2, 1, 3, 3), draw(2), (1, 1), ((1, 1), (1, 1)), (1, 1), 1, "zeros", "c.w"),
        MaxPool("pool", (1,), (2, 2, 2), (2, 2), (2, 2), (0, 0), (1, 1), False),
        Reshape("swap", (2,), (8,), (1, 2, 0)),
        GroupSort("sort", (3,), (8,), 2),
        Dense("dense", (4,), (3,), draw(3, 8), draw(3), "d.weight"),
        Elementwise("joint", (5,), (6,), joint),
        Dense("other", (4,), (6,), draw(6, 8)),
        Add("add", (6, 7), (6,)),
        Concat("cat", (8, 3), (14,), 0),
        Gather("copies", (9,), (2, 3, 1), torch.tensor([13, -1, 0, 0, 5, -1])),
        ConvTranspose("up", (10,), (1, 5, 2), draw(2, 1, 2, 3), draw(1), (2, 1), ((1, 0), (1, 0)), (1, 1), 1, "t.w"),
        Reshape("end", (11,), (10,)),
    )
    return Graph(nodes, "every node")


def test_graph_of_every_node_comes_back_exactly(tmp_path: Path) -> None:
    graph = graph_of_everything()
    assert_same_graph(graph, graphs.load_graph(graphs.save_graph(graph, tmp_path / "g.safetensors")))


@pytest.mark.parametrize("seed", range(30))
def test_graphs_with_branches_come_back(seed: int, tmp_path: Path) -> None:
    """Convolutions in every padding mode, channelwise polyactivations, normalisation, sorting, sums and joins."""
    graph = dag(seed)
    again = graphs.load_graph(graphs.save_graph(graph, tmp_path / "g.safetensors"))
    assert_same_graph(graph, again)
    x = torch.randn(3, *graph.input_shape, dtype=torch.float64)
    assert torch.equal(graph(x), again(x)) or not bool(torch.isfinite(graph(x)).all())


@pytest.mark.parametrize(
    ("kind", "field", "value"),
    [
        ("Conv", "groups", 7),
        ("Conv", "stride", [0, 0]),
        ("Conv", "padding_mode", "mirror"),
        ("Conv", "padding", [[2**29, 2**29], [0, 0]]),
        ("Conv", "dilation", [2**40, 1]),
        ("MaxPool", "kernel", [0, 0]),
        ("MaxPool", "padding", [9, 9]),
        ("GroupSort", "group", 0),
        ("GroupSort", "group", 3),
        ("Normalize", "groups", 7),
        ("Normalize", "epsilon", -1.0),
        ("Elementwise", "axis", 9),
        ("Concat", "axis", -1),
        ("Gather", "shape", [7]),
        ("Gather", "index", {"tensor": "11.weight"}),
        ("ConvTranspose", "groups", 3),
        ("ConvTranspose", "stride", [0, 1]),
        ("ConvTranspose", "stride", [2**29, 2**29]),
        ("ConvTranspose", "dilation", [1, 2**29]),
        ("ConvTranspose", "dilation", [0, 1]),
        ("ConvTranspose", "dilation", [-1, 1]),
        ("ConvTranspose", "padding", [[2**29, 2**29], [0, 0]]),
        ("ConvTranspose", "padding", [[-1, 0], [1, 0]]),
        ("ConvTranspose", "padding", [[1, 0]]),
    ],
)
def test_hostile_options_of_nodes_are_errors(kind: str, field: str, value: object, tmp_path: Path) -> None:
    nodes = graph_of_everything().nodes
    crelu = recognise(((Term("relu"),), (Term("relu", scale=-1.0),)))
    wide: tuple[Node, ...] = (Normalize("n", (12,), (10,), 1), Elementwise("e", (1,), (4, 4, 4), crelu, 0))
    graph = Graph((*nodes, *wide))
    index = next(i for i, node in reversed(list(enumerate(graph.nodes))) if type(node).__name__ == kind)

    def change(header) -> None:
        header["body"]["nodes"][index][field] = value

    file = graphs.save_graph(graph, tmp_path)
    assert_same_graph(graph, graphs.load_graph(file))
    with pytest.raises(ModelFileError):
        graphs.load_graph(rewritten(file, change))


@pytest.mark.parametrize("index", [[14] * 6, [-2] * 6, [2**40] * 6, [-(2**63)] * 6])
def test_copies_of_coordinates_that_are_not_there_are_errors(index: list[int], tmp_path: Path) -> None:
    nodes = list(graph_of_everything().nodes)
    nodes[10] = replace(nodes[10], index=torch.tensor(index))  # type: ignore[call-arg]
    file = graphs.save_graph(Graph(tuple(nodes)), tmp_path)
    with pytest.raises(ModelFileError, match="copies coordinates beyond the 14"):
        graphs.load_graph(file)


def test_an_index_of_floating_point_numbers_is_an_error(tmp_path: Path) -> None:
    nodes = list(graph_of_everything().nodes)
    file = graphs.save_graph(Graph(tuple(nodes)), tmp_path)
    with safetensors.safe_open(str(file), framework="pt") as handle:
        header = handle.metadata()
        tensors = {name: handle.get_tensor(name) for name in handle.keys()}  # noqa: SIM118
    tensors["10.index"] = tensors["10.index"].double()
    safetensors.torch.save_file(tensors, str(file), header)
    with pytest.raises(ModelFileError, match="type that does not belong"):
        graphs.load_graph(file)


def test_a_field_that_a_node_got_later_has_its_default(tmp_path: Path) -> None:
    graph = graph_of_everything()
    file = rewritten(graphs.save_graph(graph, tmp_path), lambda h: h["body"]["nodes"][9].pop("axis"))
    assert_same_graph(graph, graphs.load_graph(file))


@pytest.mark.parametrize("name", activation_names())
def test_captured_graph_comes_back_with_its_bound(name: str, tmp_path: Path) -> None:
    graph = capture(mlp([3, 5, 4, 2], name, **PARAMETERS.get(name, {})).double())
    again = graphs.load_graph(graphs.save_graph(graph, tmp_path))
    assert_same_graph(graph, again)
    assert [trivial_bound(again, p).value for p in (1, 2, "inf")] == [
        trivial_bound(graph, p).value for p in (1, 2, "inf")
    ]
    x = torch.randn(4, 3, dtype=torch.float64)
    assert torch.equal(graph(x), again(x))


@pytest.mark.parametrize("quantity", list(Quantity))
def test_problem_comes_back(quantity: Quantity, tmp_path: Path) -> None:
    ball = Ball(torch.randn(4, 3, dtype=torch.float64), 0.1, "inf")
    for region in (None, ball):
        if region is None and quantity is Quantity.DEVIATION:
            continue
        problem = Problem(
            capture(mlp([3, 4, 2])), Question(input_norm=1, output_norm="inf", region=region, quantity=quantity)
        )
        again = problems.load_problem(problems.save_problem(problem, tmp_path))
        assert_same_graph(problem.graph, again.graph)
        assert (again.input_norm, again.output_norm, again.quantity) == (1, "inf", quantity)
        if region is None:
            assert again.region is None
        else:
            assert again.region is not None
            assert (again.region.radius, again.region.norm) == (0.1, "inf")
            assert torch.equal(again.region.centers, ball.centers)


def test_tensors_come_back(tmp_path: Path) -> None:
    tensors: dict[str, Tensor] = {
        "step": torch.tensor(7),
        "rng": torch.arange(9, dtype=torch.uint8),
        "moment": torch.randn(3, 4).T,
        "mask": torch.tensor([True, False]),
        "empty": torch.empty(0, 3, dtype=torch.bfloat16),
    }
    tensors["tied"] = tensors["moment"][1:]  # shares memory, which a file cannot
    again, metadata = container.load_tensors(
        container.save_tensors(tmp_path / "c", tensors, {"epoch": 3, "history": [0.5]})
    )
    assert metadata == {"epoch": 3, "history": [0.5]}
    assert set(again) == set(tensors)
    for name, tensor in tensors.items():
        assert again[name].dtype == tensor.dtype
        assert torch.equal(again[name], tensor)
    with pytest.raises(ModelFileError, match="'bad' holds NaN"):
        container.save_tensors(tmp_path / "c", {"bad": torch.tensor([math.nan])})
    with pytest.raises(ModelFileError, match="__metadata__"):
        container.save_tensors(tmp_path / "c", {"__metadata__": torch.zeros(1)})


def test_the_wrong_reader_names_the_right_one(tmp_path: Path) -> None:
    file = graphs.save_graph(capture(mlp([2, 2, 1])), tmp_path / "g")
    for reader in (modules.load, problems.load_problem, container.load_tensors):
        with pytest.raises(ModelFileError, match=r"holds a graph, not a .*load_graph"):
            reader(file)


# --- kill safety -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("step", ["replace", "fsync", "open"])
def test_a_write_that_dies_leaves_the_old_file(step: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = modules.save(mlp([2, 3, 1]), tmp_path / "m.safetensors")
    before = file.read_bytes()

    def fail(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    if step == "open":
        monkeypatch.setattr("builtins.open", fail)
    else:
        monkeypatch.setattr(os, step, fail)
    with pytest.raises(ModelFileError, match=r"Cannot write .*m\.safetensors.*No space left"):
        modules.save(mlp([2, 3, 1]), file)
    monkeypatch.undo()
    assert file.read_bytes() == before
    assert list(tmp_path.iterdir()) == [file]


def test_write_atomically(tmp_path: Path) -> None:
    file = atomic.write_atomically(tmp_path / "a" / "b.json", b"{}")
    assert file.read_bytes() == b"{}"
    atomic.write_atomically(file, b"new")
    assert file.read_bytes() == b"new"
    assert list(file.parent.iterdir()) == [file]


def test_what_a_killed_writer_left_is_swept_up_later(tmp_path: Path) -> None:
    old, young, other = (
        tmp_path / f".{name}.0123456789{end}.tmp" for name, end in (("a", "ab"), ("a", "cd"), ("ab", "ab"))
    )
    for file in (old, young, other):
        file.write_bytes(b"half")
    for file in (old, other):
        os.utime(file, (1, 1))
    atomic.write_atomically(tmp_path / "a", b"whole")
    assert {file.name for file in tmp_path.iterdir()} == {"a", young.name, other.name}


KILLED = """
import sys, torch
from lipbridge.files import container
for i in range(1, 10**9):
    container.save_tensors(sys.argv[1], {"a": torch.full((100_000,), float(i))}, {"i": i})
    print(i, flush=True)
"""


def test_kill_9_while_writing_leaves_one_whole_file(tmp_path: Path) -> None:
    file = tmp_path / "checkpoint"
    writer = subprocess.Popen([sys.executable, "-c", KILLED, str(file)], stdout=subprocess.PIPE)
    assert writer.stdout is not None
    for _ in range(3):
        writer.stdout.readline()
    time.sleep(0.003)
    writer.kill()
    writer.wait()
    tensors, metadata = container.load_tensors(file)
    assert metadata["i"] >= 3
    assert bool((tensors["a"] == metadata["i"]).all())


# --- hostile files ---------------------------------------------------------------------------------------------------


class Trap:
    """Leaves a mark if anything unpickles it."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return (os.mkdir, (str(self.mark),))


def refuse(file: Path, text: str, reader: Callable[[Path], object] = modules.load) -> None:
    with pytest.raises(ModelFileError, match=text) as caught:
        reader(file)
    message = str(caught.value)
    assert file.name in message
    assert message.isprintable()
    assert message.endswith(".")


@pytest.fixture
def good(tmp_path: Path) -> Path:
    return modules.save(mlp([3, 4, 2], "leaky_relu"), tmp_path / "good.safetensors")


def rewritten(file: Path, change: Callable[[dict[str, Any]], object], tensors: dict[str, Tensor] | None = None) -> Path:
    """``file`` with its header changed, and with other tensors if they are given."""
    with safetensors.safe_open(str(file), framework="pt") as handle:
        header = json.loads(handle.metadata()["lipbridge"])
        stored = {name: handle.get_tensor(name) for name in handle.keys()}  # noqa: SIM118
    change(header)
    file.write_bytes(safetensors.torch.save(stored if tensors is None else tensors, {"lipbridge": json.dumps(header)}))
    return file


def test_missing_files(tmp_path: Path) -> None:
    refuse(tmp_path / "none.safetensors", "there is no such file")
    with pytest.raises(ModelFileError, match=r"model\.safetensors"):
        modules.load(tmp_path)
    os.mkfifo(tmp_path / "pipe")
    refuse(tmp_path / "pipe", "no regular file")
    refuse(Path("/dev/zero"), "no regular file")


def test_a_file_cut_anywhere(good: Path) -> None:
    data = good.read_bytes()
    for length in [0, 1, 8, 9, 50, len(data) // 2, len(data) - 1]:
        good.write_bytes(data[:length])
        refuse(good, "Cannot read model file")
    good.write_bytes(data + b"\0")
    refuse(good, "Cannot read model file")


@pytest.mark.parametrize("legacy", [False, True])
def test_torch_save_and_pickle_are_never_opened(legacy: bool, tmp_path: Path) -> None:
    file, mark = tmp_path / "model.safetensors", tmp_path / "mark"
    torch.save({"a": torch.ones(1)}, file, _use_new_zipfile_serialization=not legacy)
    refuse(file, "lipbridge never unpickles: load it with torch yourself, then write it with lipbridge.save")
    for protocol in range(6):
        file.write_bytes(pickle.dumps(Trap(mark), protocol))
        refuse(file, "Cannot read model file")
    stream = io.BytesIO()
    torch.save(Trap(mark), stream)
    file.write_bytes(stream.getvalue())
    refuse(file, "never unpickles")
    assert not mark.exists()


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_weights_that_are_not_finite(value: float, good: Path) -> None:
    state = modules.load(good).state_dict()
    state["2.bias"][0] = value
    refuse(rewritten(good, lambda _: None, dict(state)), r"tensor '2\.bias' holds NaN or infinite")


def test_a_huge_header(good: Path) -> None:
    good.write_bytes(struct.pack("<Q", 2**63) + b"{" * 100)
    refuse(good, "cut short")
    with open(good, "wb") as stream:  # sparse, so that the header fits into the file
        stream.write(struct.pack("<Q", header.MAX_HEADER + 1) + b"{")
        stream.truncate(header.MAX_HEADER + 100)
    refuse(good, "header has .* bytes, at most")
    with pytest.raises(ModelFileError, match="header would have"):
        modules.save(mlp([2, 2, 1]), good, {"long": "x" * header.MAX_HEADER})


def test_safetensors_of_somebody_else(good: Path) -> None:
    good.write_bytes(safetensors.torch.save({"a": torch.ones(1)}))
    refuse(good, "without a header of lipbridge")
    good.write_bytes(safetensors.torch.save({"a": torch.ones(1)}, {"lipbridge": "[" * 100_000}))
    limit = sys.getrecursionlimit()
    sys.setrecursionlimit(10**6)  # Python's parser would then recurse in C until the process ends
    try:
        refuse(good, "nested more than")
    finally:
        sys.setrecursionlimit(limit)
    for text in ("[]", "nonsense", "null", "NaN", '{"format": NaN}', '{"format": 1e999}'):
        good.write_bytes(safetensors.torch.save({"a": torch.ones(1)}, {"lipbridge": text}))
        refuse(good, "Cannot read model file")


def _linear(header: dict[str, Any]) -> dict[str, Any]:
    return header["body"]["module"]["layers"][0][1]


def _nest(header: dict[str, Any]) -> None:
    for _ in range(100):
        header["body"]["module"] = {"type": "Sequential", "layers": [["0", header["body"]["module"]]]}


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (lambda h: h.update(format=2), "its format is '2', this lipbridge reads 1. Upgrade"),
        (lambda h: h.update(format=True), "its format is"),
        (lambda h: h.update(kind="weird"), "kind 'weird' is unknown"),
        (lambda h: h.pop("extra"), "lacks an object"),
        (lambda h: h.update(extra=[1]), "lacks an object"),
        (lambda h: h.update(body=None), "lacks an object"),
        (lambda h: h["body"].update(training="yes"), "truth value"),
        (lambda h: _linear(h).update(type="os.system"), "layer type 'os.system' is unknown"),
        (lambda h: _linear(h).update(type=["Linear"]), "lacks a text"),
        (lambda h: _linear(h)["arguments"].update(out_features=0), "whole number from 1"),
        (lambda h: _linear(h)["arguments"].update(out_features=2**40), "whole number from 1"),
        (lambda h: _linear(h)["arguments"].update(out_features=2**20, in_features=2**20), "the architecture says"),
        (lambda h: _linear(h)["arguments"].update(out_features=4.0), "whole number"),
        (lambda h: _linear(h)["arguments"].update(bias=False), r"tensor\(s\) belong to no layer, e.g. '0.bias'"),
        (lambda h: _linear(h)["arguments"].update(device="cuda"), "arguments other than"),
        (lambda h: h["body"]["module"]["layers"].append(["9", _linear(h)]), r"tensor\(s\) missing, e.g. '9"),
        (lambda h: h["body"]["module"]["layers"].append(["0", _linear(h)]), "name '0', which is taken"),
        (lambda h: h["body"]["module"]["layers"].append(["forward", _linear(h)]), "name 'forward', which is taken"),
        (lambda h: h["body"]["module"]["layers"].append(["a.b", _linear(h)]), "not allowed"),
        (lambda h: h["body"]["module"]["layers"].append([]), "lacks a text"),
        (lambda h: h["body"]["module"]["layers"][1][1]["arguments"].update(negative_slope="0"), "finite number"),
        (lambda h: h["body"]["module"]["layers"][1][1]["arguments"].update(inplace=True), "arguments other than"),
        (
            lambda h: h["body"]["module"].update(layers=[["0", {"type": "Identity", "arguments": {}}]] * 10_001),
            "a list",
        ),
        (_nest, "levels"),
    ],
)
def test_hostile_headers_of_modules(change: Callable[[dict[str, Any]], object], text: str, good: Path) -> None:
    refuse(rewritten(good, change), text)


def test_tensors_of_another_type_or_shape(good: Path) -> None:
    state: dict[str, Tensor] = dict(modules.load(good).state_dict())
    refuse(rewritten(good, lambda _: None, {**state, "0.bias": torch.zeros(4, dtype=torch.int32)}), "has a type")
    refuse(rewritten(good, lambda _: None, {**state, "0.bias": torch.zeros(5)}), r"has shape \(5,\)")
    refuse(rewritten(good, lambda _: None, {**state, "x\n" * 3000: torch.zeros(5)}), "belong to no layer")


def _node(index: int, **values: Any) -> Callable[[dict[str, Any]], object]:
    return lambda h: h["body"]["nodes"][index].update(values)


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (_node(1, type="Evil"), "node type 'Evil' is unknown"),
        (_node(1, type="Input"), "lacks an object"),
        (_node(0, type="Add"), "has 0 inputs"),
        (_node(1, inputs=[1]), "does not come before"),
        (_node(1, inputs=[0, 0]), "has 2 inputs"),
        (_node(1, shape=[2**29]), "do not fit"),
        (_node(1, shape=[]), "has the shape"),
        (_node(1, weight={"tensor": "5.weight"}), "another node's tensor"),
        (_node(1, weight=None), "another node's tensor"),
        (_node(1, bias=None), "belong to no layer"),
        (_node(2, shape=[7]), "a shape that its inputs do not give"),
        (_node(2, activation=[]), "activation of 0 terms"),
        (_node(2, activation=[[]]), "activation of 0 terms"),
        (_node(2, activation=[[["exec", 1, 1, 0, []]]]), "unknown function"),
        (_node(2, activation=[[["relu", 1, 1, 0, [1]]]]), "relu with 1 parameters"),
        (_node(2, activation=[[["softplus", 1, 1, 0, [0]]]]), "above 0"),
        (_node(2, activation=[[["relu", 1e200, 1e200, 0, []]]]), "Cannot read"),
        (_node(2, activation=[[["relu", 1, 1, 0, []]] * 2000]), "a list"),
        (_node(1, surprise=1), "lacks an object"),
        (lambda h: h["body"]["nodes"][1].pop("weight"), "lacks an object"),
        (lambda h: h["body"].update(nodes=[]), "Cannot read"),
        (lambda h: h["body"].update(name=3), "a text"),
    ],
)
def test_hostile_headers_of_graphs(change: Callable[[dict[str, Any]], object], text: str, tmp_path: Path) -> None:
    file = graphs.save_graph(capture(mlp([3, 4, 2], "crelu")), tmp_path / "graph.safetensors")
    refuse(rewritten(file, change), text, graphs.load_graph)


@pytest.mark.parametrize("axes", [[1, 2, 9], [0, 0, 1], [0], [-9, 1, 2], []])
def test_hostile_axes(axes: list[int], tmp_path: Path) -> None:
    file = graphs.save_graph(graph_of_everything(), tmp_path / "graph.safetensors")
    refuse(
        rewritten(file, lambda h: h["body"]["nodes"][3].update(axes=axes)), "does not fit its inputs", graphs.load_graph
    )


@pytest.mark.parametrize(
    "change",
    [
        {"input_norm": 3},
        {"quantity": "everything"},
        {"region": {"radius": -1, "norm": 2}},
        {"region": {"radius": 1}},
        {"region": None},
    ],
)
def test_hostile_headers_of_problems(change: dict[str, Any], tmp_path: Path) -> None:
    problem = Problem(capture(mlp([3, 4, 2])), Question.on(Ball(torch.zeros(2, 3, dtype=torch.float64), 1.0, 2), 2))
    file = problems.save_problem(problem, tmp_path / "problem.safetensors")
    refuse(rewritten(file, lambda h: h["body"].update(change)), "Cannot read", problems.load_problem)
    for shape in ((2, 4), (3,), (0, 3)):
        state = {"region.centers": torch.zeros(shape, dtype=torch.float64)}
        for index in (1, 3):
            node = problem.graph.nodes[index]
            assert isinstance(node, Dense)
            assert node.bias is not None
            state |= {f"{index}.weight": node.weight, f"{index}.bias": node.bias}
        file = problems.save_problem(problem, file)
        refuse(rewritten(file, lambda _: None, state), "Cannot read", problems.load_problem)


def _valid_files(folder: Path) -> list[tuple[bytes, Callable[[Path], object]]]:
    problem = Problem(
        capture(mlp([2, 3, 2], "elu")), Question.on(Ball(torch.zeros(1, 2, dtype=torch.float64), 1.0, 2), 2)
    )
    files: list[tuple[Path, Callable[[Path], object]]] = [
        (modules.save(mlp([2, 3, 2], "softplus"), folder / "m"), modules.load),
        (graphs.save_graph(graph_of_everything(), folder / "g"), graphs.load_graph),
        (problems.save_problem(problem, folder / "p"), problems.load_problem),
        (container.save_tensors(folder / "t", {"a": torch.arange(3)}, {"b": [1.5]}), container.load_tensors),
    ]
    return [(file.read_bytes(), reader) for file, reader in files]


def read_or_refuse(file: Path, reader: Callable[[Path], object]) -> None:
    """Anything but a value or a ModelFileError of one short line fails."""
    message = ""
    try:
        reader(file)
    except ModelFileError as error:
        message = str(error)
    assert len(message) < 4000
    assert "\n" not in message


@pytest.fixture(scope="module")
def valid_files(tmp_path_factory: pytest.TempPathFactory) -> list[tuple[bytes, Callable[[Path], object]]]:
    return _valid_files(tmp_path_factory.mktemp("valid"))


@settings(max_examples=400, deadline=2000, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_mutated_files_give_a_value_or_one_error(
    data: st.DataObject,
    valid_files: list[tuple[bytes, Callable[[Path], object]]],
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    original, reader = valid_files[data.draw(st.integers(0, len(valid_files) - 1))]
    content = bytearray(original)
    # Most of the structure is in the header's text: change bytes there and everywhere, splice, cut, or swap words.
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(content) - 1))
        kind = data.draw(st.sampled_from(["byte", "digit", "delete", "insert", "cut", "word"]))
        if kind == "byte":
            content[at] = data.draw(st.integers(0, 255))
        elif kind == "digit":
            digits = [i for i, byte in enumerate(content) if 48 <= byte <= 57] or [0]
            content[data.draw(st.sampled_from(digits))] = 48 + data.draw(st.integers(0, 9))
        elif kind == "delete":
            del content[at : at + data.draw(st.integers(1, 9))]
        elif kind == "insert":
            content[at:at] = data.draw(st.binary(min_size=1, max_size=9))
        elif kind == "cut":
            del content[at + 1 :]
        else:
            old, new = data.draw(st.permutations([b"Dense", b"Linear", b"Input", b"null", b"true", b"[1]"]))[:2]
            content = content.replace(old, new)
        if not content:
            content = bytearray(b"\0")
        if kind in ("delete", "insert", "word"):  # keep the header's length right, to get past the first check
            end = content.rfind(b"}}") + 2
            if end > 8:
                content[:8] = struct.pack("<Q", end - 8)
    file = tmp_path_factory.getbasetemp() / "mutated.safetensors"
    file.write_bytes(bytes(content))
    read_or_refuse(file, reader)


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)


@settings(max_examples=400, deadline=2000, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_mutated_headers_give_a_value_or_one_error(
    data: st.DataObject,
    valid_files: list[tuple[bytes, Callable[[Path], object]]],
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    original, reader = valid_files[data.draw(st.integers(0, len(valid_files) - 1))]
    file = tmp_path_factory.getbasetemp() / "mutated-header.safetensors"
    file.write_bytes(original)

    def change(value: Any) -> None:
        while True:
            keys = list(value) if isinstance(value, dict) else list(range(len(value)))
            key = data.draw(st.sampled_from(keys))
            inner = value[key]
            if isinstance(inner, dict | list) and inner and data.draw(st.integers(0, 9)):
                value = inner
                continue
            numbers = st.sampled_from([0, -1, 1, 2, 2**20, 2**31, 2**63, 10**400, 1e308, 0.5, "", [], {}])
            value[key] = data.draw(numbers | _JSON)
            return

    rewritten(file, change)
    read_or_refuse(file, reader)


def test_every_scalar_function_survives_in_a_graph(tmp_path: Path) -> None:
    for name, function in SCALAR_FUNCTIONS.items():
        term = Term(name, 1 / 3, -0.7, 0.1, tuple(0.045 for _ in function.parameters))
        before = recognise(((term,),))
        graph = Graph((Input("input", (), (2,)), Elementwise("g", (0,), (2,), before)))
        (_, node) = graphs.load_graph(graphs.save_graph(graph, tmp_path)).nodes
        assert isinstance(node, Elementwise)
        assert node.activation == before


def test_registered_activations_are_the_whitelist() -> None:
    for name in activation_names():
        assert set(activation(name).parameters) <= set(vars(activation_module(name)))
