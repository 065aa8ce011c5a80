"""The weight file of the original LipSDP: what is written is what its MATLAB code reads; hostile files are one line."""

from __future__ import annotations

import _pickle
import pickle
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import lipbridge
from lipbridge.activations.registry import activation, activation_names
from lipbridge.errors import LipbridgeError, ModelFileError, NumericalFailure, UnknownName, UnsupportedProblem
from lipbridge.lowering.chain import as_chain
from lipbridge.verifiers import Budget, get_verifier
from tests.support.families import FLAVOURS, network
from tests.support.lipsdp_reference import graph_of, sampled

scipy_io: Any = pytest.importorskip("scipy.io")
from lipbridge_adapters.matlab.lipsdp_mat import MAX_BYTES, export_mat, read_mat  # noqa: E402


def cells(*matrices: np.ndarray) -> np.ndarray:
    found = np.empty((1, len(matrices)), dtype=object)
    for index, W in enumerate(matrices):
        found[0, index] = W
    return found


def file_of(path: Path, compressed: bool = False, **variables: object) -> Path:
    scipy_io.savemat(path, variables, do_compression=compressed)
    return path


WEIGHTS = [np.arange(6.0).reshape(3, 2), np.array([[1.0, -2.0, 0.5]])]


@pytest.mark.parametrize("flavour", FLAVOURS)
def test_a_round_trip_keeps_every_bit_of_a_relu_chain(flavour: str, tmp_path: Path) -> None:
    graph = graph_of(network(3, 4, ("relu",), flavour))
    report = export_mat(graph, tmp_path / "weights.mat")
    assert (report.alpha, report.beta) == (0.0, 1.0)
    before, after = as_chain(graph), as_chain(read_mat(report.path))
    assert len(before.layers) == len(after.layers)
    for ours, theirs in zip(before.layers, after.layers, strict=True):
        assert torch.equal(ours.weight, theirs.weight)
        assert theirs.bias is None
    assert all(g.name == "relu" for g in after.activations)


def test_the_file_is_what_the_matlab_code_indexes(tmp_path: Path) -> None:
    # load_weights.m: weights = dict.weights; size(weights{1}, 2); length(weights). split_weights.m: size(weights, 2).
    net = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4))  # equal shapes
    report = export_mat(net, tmp_path / "weights.mat")
    assert scipy_io.whosmat(report.path) == [("weights", (1, 3), "cell")]
    found = scipy_io.loadmat(report.path)["weights"]
    for W, layer in zip(found[0], (net[0], net[2], net[4]), strict=True):
        assert W.dtype == np.float64
        assert np.array_equal(W, layer.weight.detach().double().numpy())


@pytest.mark.parametrize("name", [name for name in activation_names() if name != "sincos"])
def test_the_bound_of_the_file_and_its_slopes_holds_for_the_network(name: str, tmp_path: Path) -> None:
    """A bound for every function with slopes in [alpha, beta], which is what the program computes, is one of ours."""
    graph = graph_of(network(5, 3, (name,), "random"))
    report = export_mat(graph, tmp_path / "weights.mat")
    bound = of_slopes(report.path, report.alpha, report.beta)
    ours = (
        get_verifier("lipsdp-fast")
        .prepare(lipbridge.Problem(graph, lipbridge.Question.everywhere(2)))
        .bound(Budget())
        .value
    )
    assert bound >= ours * (1 - 1e-3)
    assert bound >= sampled(graph) * (1 - 1e-6)
    rows = activation(name).width
    assert scipy_io.loadmat(report.path)["weights"][0, 0].shape[0] == rows * as_chain(graph).layers[0].weight.shape[0]
    if rows == 1:
        assert bound == pytest.approx(ours, rel=2e-3)


def of_slopes(path: Path, alpha: float, beta: float) -> float:
    """The LipSDP bound of the file's matrices with slopes in [alpha, beta], by cvxpy, written as the MATLAB code."""
    cp: Any = pytest.importorskip("cvxpy")
    weights = [W.astype(float) for W in scipy_io.loadmat(path)["weights"][0]]
    widths = [weights[0].shape[1], *(len(W) for W in weights)]
    N, n = sum(widths[1:-1]), widths[0]
    A = np.zeros((N, n + N))
    row = column = 0
    for W in weights[:-1]:
        A[row : row + W.shape[0], column : column + W.shape[1]] = W
        row, column = row + W.shape[0], column + W.shape[1]
    B = np.hstack([np.zeros((N, n)), np.eye(N)])
    T, rho = cp.diag(cp.Variable(N, nonneg=True)), cp.Variable(nonneg=True)
    Q = -2 * alpha * beta * A.T @ T @ A + (alpha + beta) * (A.T @ T @ B + B.T @ T @ A) - 2 * B.T @ T @ B
    first = np.diag([1.0] * n + [0.0] * N)
    last = np.zeros((n + N, n + N))
    last[n + N - widths[-2] :, n + N - widths[-2] :] = weights[-1].T @ weights[-1]
    problem = cp.Problem(cp.Minimize(rho), [rho * first - last - Q >> 0])
    problem.solve(solver="CLARABEL")
    return float(problem.value) ** 0.5


def test_what_has_no_such_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "weights.mat"
    with pytest.raises(UnsupportedProblem, match="norm"):
        export_mat(nn.Sequential(nn.Linear(2, 2)), path)
    bad = nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 2))
    with torch.no_grad():
        bad[0].weight[0, 0] = float("nan")
    with pytest.raises(NumericalFailure, match="NaN"):
        export_mat(bad, path)
    assert not path.exists()
    file_of(path, weights=cells(*WEIGHTS))
    with pytest.raises(UnsupportedProblem, match="one output"):
        read_mat(path, "crelu")
    with pytest.raises(UnknownName):
        read_mat(path, "no such activation")


# --- reading ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize("kind", ["f8", "f4", ">f8"])
def test_it_reads_what_scipy_reads(compressed: bool, kind: str, tmp_path: Path) -> None:
    path = file_of(tmp_path / "w.mat", compressed, other=np.eye(3), weights=cells(*(W.astype(kind) for W in WEIGHTS)))
    layers = as_chain(read_mat(path, "tanh")).layers
    for layer, W in zip(layers, scipy_io.loadmat(path)["weights"][0], strict=True):
        assert np.array_equal(layer.weight.numpy(), W)


def test_it_reads_doubles_that_matlab_stored_as_bytes(tmp_path: Path) -> None:
    path = tmp_path / "w.mat"
    for order, mark in (("<", b"IM"), (">", b"MI")):
        path.write_bytes(by_hand(order, mark))
        assert torch.equal(as_chain(read_mat(path)).layers[0].weight, torch.tensor([[1.0, 3.0], [2.0, 4.0]]).double())


def by_hand(order: str, mark: bytes) -> bytes:
    """One 2 x 2 matrix whose doubles are stored as unsigned bytes, in either byte order, as MATLAB saves integers."""

    def element(kind: int, body: bytes) -> bytes:
        return struct.pack(order + "II", kind, len(body)) + body + b"\0" * (-len(body) % 8)

    def head(kind: int, shape: tuple[int, int], name: bytes) -> bytes:
        flags = element(6, struct.pack(order + "II", kind, 0))
        return flags + element(5, struct.pack(order + "ii", *shape)) + element(1, name)

    tag = struct.pack(order + "I", 4 << 16 | 2)  # the short form: size and type in one word
    matrix = element(14, head(6, (2, 2), b"") + tag + bytes([1, 2, 3, 4]))
    return b"MATLAB 5.0".ljust(124) + struct.pack(order + "H", 0x0100) + mark + element(
        14, head(1, (1, 1), b"weights") + matrix
    )  # fmt: skip


@pytest.mark.parametrize(
    ("variables", "words"),
    [
        ({"w": np.eye(2)}, "no variable `weights`"),
        ({"weights": np.eye(2)}, "no cell array"),
        ({"weights": {"a": np.eye(2)}}, "no cell array"),
        ({"weights": cells(np.eye(2), np.eye(3))}, "do not fit"),
        ({"weights": cells(np.eye(2), np.ones((1, 2)) * 1j)}, "complex"),
        ({"weights": cells("text")}, "text"),
        ({"weights": cells(np.array([[np.nan]]))}, "NaN"),
        ({"weights": cells(np.ones((2, 0)))}, "shape"),
        ({"weights": cells(np.ones((2, 2, 2)))}, "shape"),
        ({"weights": cells(np.eye(2, dtype=np.int32))}, "no array of floats"),
        ({"weights": cells(cells(np.eye(2)))}, "no array of floats"),
        ({"weights": cells(*[np.eye(1)] * 4).reshape(2, 2)}, "1 x L"),
    ],
)
def test_other_contents_are_refused(variables: dict[str, Any], words: str, tmp_path: Path) -> None:
    path = file_of(tmp_path / "w.mat", **variables)
    with pytest.raises(ModelFileError, match=words) as caught:
        read_mat(path)
    assert "\n" not in str(caught.value)


def test_other_files_are_refused(tmp_path: Path) -> None:
    for name, data, words in [
        ("missing.mat", None, "no such file"),
        ("empty.mat", b"", "no MATLAB file"),
        ("text.mat", b"hello" * 100, "no MATLAB file"),
        ("new.mat", b"MATLAB 7.3 MAT-file".ljust(124) + b"\x00\x02IM" + b"\x89HDF\r\n\x1a\n", "-v7"),
        ("hdf.mat", b"\x89HDF\r\n\x1a\n" + b"\0" * 500, "-v7"),
        ("old.mat", b"MATLAB".ljust(124) + b"\x00\x02IM", "version"),
    ]:
        path = tmp_path / name
        if data is not None:
            path.write_bytes(data)
        with pytest.raises(ModelFileError, match=words):
            read_mat(path)
    with pytest.raises(ModelFileError, match="no file"):
        read_mat(tmp_path)


def test_a_file_that_unpacks_to_too_much_is_refused_before_it_does(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr("lipbridge_adapters.matlab.lipsdp_mat.MAX_BYTES", 2**20)
    bomb = zlib.compress(b"\0" * 2**22)
    head = b"MATLAB 5.0".ljust(124) + b"\x00\x01IM"
    path = tmp_path / "bomb.mat"
    path.write_bytes(head + struct.pack("<II", 15, len(bomb)) + bomb)
    with pytest.raises(ModelFileError, match="unpacks"):
        read_mat(path)
    path.write_bytes(head + b"\0" * 2**20)
    with pytest.raises(ModelFileError, match="more than"):
        read_mat(path)
    assert MAX_BYTES <= 2**31
    monkeypatch.setattr("lipbridge_adapters.matlab.lipsdp_mat.MAX_ENTRIES", 8)
    with pytest.raises(ModelFileError, match="entries"):
        read_mat(file_of(path, weights=cells(*WEIGHTS)))


@pytest.mark.parametrize("compressed", [False, True])
def test_damaged_files_give_an_error_or_a_network_and_nothing_else(compressed: bool, tmp_path: Path) -> None:
    whole = file_of(tmp_path / "whole.mat", compressed, weights=cells(*WEIGHTS)).read_bytes()
    path = tmp_path / "damaged.mat"
    generator = np.random.default_rng(0)
    refused = 0
    for case in range(900):
        data = bytearray(whole)
        if case < len(whole) - 1:
            data = data[:case]
        else:
            for place in generator.integers(124, len(whole), 1 + case % 3):
                data[place] = generator.integers(0, 256)
        path.write_bytes(data)
        try:
            read_mat(path)
        except LipbridgeError as error:
            lines, refused = str(error).splitlines(), refused + 1
        else:
            lines, whole_enough = [""], case >= len(whole) - 8  # cut within its last padding it is still a network
            assert whole_enough
        assert len(lines) == 1
    assert refused > 400


def test_reading_unpickles_nothing(tmp_path: Path, monkeypatch: Any) -> None:
    path = file_of(tmp_path / "w.mat", weights=cells(*WEIGHTS))
    for module in (pickle, _pickle):
        for name in ("load", "loads", "Unpickler"):
            monkeypatch.setattr(module, name, None)
    assert read_mat(path).input_shape == (2,)


def nested(depth: int, outer: bytes = b"") -> bytes:
    """A cell array ``weights`` that holds a cell array, and so on; ``outer`` goes into the flags of the first one."""

    def element(kind: int, body: bytes) -> bytes:
        return struct.pack("<II", kind, len(body)) + body + b"\0" * (-len(body) % 8)

    body = b""
    for level in range(depth):
        last = level == depth - 1
        flags = element(6, struct.pack("<II", 1, 0) + (outer if last else b""))
        body = element(14, flags + element(5, struct.pack("<ii", 1, 1)) + element(1, b"weights" * last) + body)
    return b"MATLAB 5.0".ljust(124) + b"\x00\x01IM" + body


def test_nesting_is_never_followed(tmp_path: Path) -> None:
    """Neither in the open, nor where a length would have our walk skip what scipy reads."""
    path = tmp_path / "deep.mat"
    inner = nested(2000)[128 + 24 :]
    for data in (nested(2), nested(2000), nested(1, inner + b"\0" * (-len(inner) % 8))):
        path.write_bytes(data)
        with pytest.raises(ModelFileError) as caught:
            read_mat(path)
        assert "\n" not in str(caught.value)


def test_a_matrix_that_says_that_it_is_complex_and_is_not(tmp_path: Path) -> None:
    """scipy would look for the imaginary parts in what comes next, and crash."""
    data = by_hand("<", b"IM")
    place = data.rindex(struct.pack("<II", 6, 0)) + 1
    (tmp_path / "w.mat").write_bytes(data[:place] + b"\x08" + data[place + 1 :])
    with pytest.raises(ModelFileError, match="complex"):
        read_mat(tmp_path / "w.mat")


@pytest.mark.parametrize("what", [16, 17, 3])
def test_functions_and_objects_are_refused(what: int, tmp_path: Path) -> None:
    """Function handles, opaque and plain objects, as the variable and as a matrix of it."""
    data = by_hand("<", b"IM")
    for place in (data.index(struct.pack("<II", 1, 0)), data.rindex(struct.pack("<II", 6, 0))):
        path = tmp_path / "w.mat"
        path.write_bytes(data[:place] + bytes([what]) + data[place + 1 :])
        with pytest.raises(ModelFileError):
            read_mat(path)
