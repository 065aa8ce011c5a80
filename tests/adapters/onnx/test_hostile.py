"""Hostile ONNX files: an error of one line in seconds and little memory, never a read outside the file's folder."""

from __future__ import annotations

import os
import random
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lipbridge.errors import LipbridgeError, ModelFileError

onnx: Any = pytest.importorskip("onnx", reason="needs lipbridge[onnx]")
from onnx import TensorProto, helper, numpy_helper  # noqa: E402

from lipbridge_adapters.onnx.reading import read_onnx  # noqa: E402
from tests.support.hostile import MEBIBYTES, SECONDS, bomb, require_error  # noqa: E402
from tests.support.onnx_files import BY_HAND, normal, op, save  # noqa: E402


def changed(path: Path, change: Callable[[Any], None], base: str = "acasxu") -> Path:
    """A good file with a change to its model."""
    BY_HAND[base](path)
    model = onnx.ModelProto.FromString(path.read_bytes())
    change(model)
    path.write_bytes(model.SerializeToString())
    return path


def tensor(model: Any, name: str) -> Any:
    return next(t for t in model.graph.initializer if t.name == name)


# --- tensors ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dims", [[2**29], [2**31, 2**31], [2**62, 4], [-5, 7], [0, 2**40], [1] * 40, [5, 8]])
def test_a_declared_size_is_not_believed(dims: list[int], tmp_path: Path) -> None:
    """Two gigabytes in a file of one kilobyte."""

    def change(model: Any) -> None:
        del tensor(model, "W0").dims[:]
        tensor(model, "W0").dims.extend(dims)

    path = changed(tmp_path / "m.onnx", change)
    assert path.stat().st_size < 2000
    require_error(path, "W0", ModelFileError)


@pytest.mark.parametrize(
    "kind", [TensorProto.INT64, TensorProto.STRING, TensorProto.COMPLEX64, TensorProto.BOOL, 0, 99]
)
def test_wrong_types(kind: int, tmp_path: Path) -> None:
    require_error(
        changed(tmp_path / "m.onnx", lambda m: setattr(tensor(m, "W0"), "data_type", kind)), "", ModelFileError
    )


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_weights_that_are_no_numbers(value: float, tmp_path: Path) -> None:
    W = normal(5, 7)
    W[2, 3] = value
    change = lambda m: tensor(m, "W0").CopyFrom(numpy_helper.from_array(W, "W0"))  # noqa: E731
    require_error(changed(tmp_path / "m.onnx", change), "NaN|infinite", ModelFileError)


def test_constants_of_attributes_that_are_no_numbers(tmp_path: Path) -> None:
    for constant in ({"value_float": np.nan}, {"value_floats": [1.0, np.nan, 2.0, 3.0]}):
        nodes = [helper.make_node("Constant", [], ["c"], **constant), op("Mul", "X c", "Y")]
        require_error(save(tmp_path / "m.onnx", nodes, {}, (1, 4)), "NaN", ModelFileError)


def test_values_that_are_empty(tmp_path: Path) -> None:
    weight = {"W": np.ones((4, 0), dtype=np.float32)}
    require_error(save(tmp_path / "m.onnx", [op("MatMul", "X W", "Y")], weight, (1, 4)), "empty")


def test_attributes_that_refer_to_a_function(tmp_path: Path) -> None:
    """Outside of a function there is nothing to refer to; the value beside the reference is not the attribute's."""
    node = op("LeakyRelu", "X", "Y", alpha=0.5)
    node.attribute[0].ref_attr_name = "slope"
    require_error(save(tmp_path / "m.onnx", [node], {}, (1, 4)), "refers to a function", ModelFileError)


def test_integers_as_weights(tmp_path: Path) -> None:
    path = save(tmp_path / "m.onnx", [op("MatMul", "X W", "Y")], {"W": np.ones((4, 3), dtype=np.int64)}, (1, 4))
    require_error(path, "floating point", ModelFileError)


# --- data in other files ----------------------------------------------------------------------------------------------


def pointing_to(path: Path, location: str, **entries: int) -> Path:
    """A file whose first weights (140 bytes) are in another file."""

    def change(model: Any) -> None:
        proto = tensor(model, "W0")
        proto.ClearField("raw_data")
        proto.data_location = TensorProto.EXTERNAL
        for key, value in {"location": location, **entries}.items():
            entry = proto.external_data.add()
            entry.key, entry.value = key, str(value)

    return changed(path, change)


def test_no_read_outside_the_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the location says, no file but those of the folder is opened."""
    folder, secret = tmp_path / "model", tmp_path / "secret.bin"
    (folder / "inside").mkdir(parents=True)
    secret.write_bytes(bytes(140))
    (folder / "link").symlink_to(secret)
    (folder / "tree").symlink_to(tmp_path, target_is_directory=True)
    os.link(secret, folder / "hard")
    os.mkfifo(folder / "pipe")
    (folder / "inside" / "good.bin").write_bytes(np.zeros((5, 7), dtype=np.float32).tobytes())
    opened: list[tuple[str, int]] = []
    real = os.open

    def watched(name: Any, flags: int, *args: Any, **more: Any) -> int:
        descriptor = real(name, flags, *args, **more)
        opened.append((os.path.realpath(f"/proc/self/fd/{descriptor}"), flags))
        return descriptor

    for location in (
        str(secret), "../secret.bin", "inside/../../secret.bin", "./../secret.bin", "link", "tree/secret.bin", "hard",
        "pipe", "inside", "", ".", "missing.bin", "/dev/zero", "..\\secret.bin", "inside/\0good.bin", "a/" * 50 + "b",
    ):  # fmt: skip
        path = pointing_to(folder / "m.onnx", location)
        monkeypatch.setattr(os, "open", watched)
        require_error(path, "W0", ModelFileError)
        monkeypatch.setattr(os, "open", real)
    for name, flags in opened:
        assert name == str(folder) or name.startswith(f"{folder}/") or (name == str(secret) and flags & os.O_NOFOLLOW)
    assert read_onnx(pointing_to(folder / "m.onnx", "inside/good.bin")).output_shape == (5,)


@pytest.mark.parametrize(
    "entries", [{"offset": 1}, {"offset": 2**60}, {"offset": -4}, {"length": 2**40}, {"length": 4}, {"length": -1}]
)
def test_places_in_other_files(entries: dict[str, int], tmp_path: Path) -> None:
    (tmp_path / "w.bin").write_bytes(bytes(140))
    require_error(pointing_to(tmp_path / "m.onnx", "w.bin", **entries), "W0", ModelFileError)


# --- graphs ----------------------------------------------------------------------------------------------------------


def test_cycles(tmp_path: Path) -> None:
    nodes = [op("Add", "X b", "a"), op("Relu", "a", "b"), op("Identity", "b", "Y")]
    require_error(save(tmp_path / "m.onnx", nodes, {}, (1, 4)), "before an operator gives it", ModelFileError)
    itself = [op("Identity", "Y", "Y")]
    require_error(save(tmp_path / "m.onnx", itself, {}, (1, 4)), "before an operator gives it", ModelFileError)


def test_names_and_inputs(tmp_path: Path) -> None:
    twice = [op("Relu", "X", "a"), op("Abs", "X", "a"), op("Relu", "a", "Y")]
    require_error(save(tmp_path / "m.onnx", twice, {}, (1, 4)), "two values", ModelFileError)
    require_error(save(tmp_path / "m.onnx", [op("Relu", "Z", "Y")], {}, (1, 4)), "none ever does", ModelFileError)
    require_error(save(tmp_path / "m.onnx", [op("Elu", "W", "Y")], {"W": normal(4)}, (1, 4)), "constants")
    require_error(save(tmp_path / "m.onnx", [op("Relu", "X", "X")], {}, (1, 4)), "name of another", ModelFileError)

    def two(model: Any) -> None:
        model.graph.input.append(helper.make_tensor_value_info("X2", TensorProto.FLOAT, [1, 3]))

    require_error(changed(tmp_path / "m.onnx", two), r"2 inputs \('X', 'X2'\)", ModelFileError)
    require_error(changed(tmp_path / "m.onnx", lambda m: m.graph.ClearField("input")), "0 inputs", ModelFileError)
    require_error(changed(tmp_path / "m.onnx", lambda m: m.graph.ClearField("output")), "0 outputs", ModelFileError)
    require_error(save(tmp_path / "m.onnx", [op("Relu", "X", "Y")], {}, (1, 4), kind=TensorProto.INT64), "floating")
    require_error(save(tmp_path / "m.onnx", [op("Relu", "X", "Y")], {}, (1, 2**20, 2**20)), "shape", ModelFileError)


def test_subgraphs_functions_and_foreign_operators(tmp_path: Path) -> None:
    inner = helper.make_graph([op("Relu", "X", "Z")], "inner", [], [])
    branch = helper.make_node("If", ["X"], ["Y"], then_branch=inner, else_branch=inner)
    require_error(save(tmp_path / "m.onnx", [branch], {}, (1, 4)), "If, Loop, Scan", ModelFileError)
    foreign = helper.make_node("Relu", ["X"], ["Y"], domain="com.microsoft")
    require_error(save(tmp_path / "m.onnx", [foreign], {}, (1, 4)), "com.microsoft")
    own = helper.make_function("own", "F", ["a"], ["b"], [op("Relu", "a", "b")], [helper.make_opsetid("", 13)])
    require_error(changed(tmp_path / "m.onnx", lambda m: m.functions.append(own)), "inline", ModelFileError)
    for opset in (1, 8, 23, 2**40):
        path = changed(tmp_path / "m.onnx", lambda m, v=opset: setattr(m.opset_import[0], "version", v))
        require_error(path, "opset", ModelFileError)


def test_newlines_in_names_stay_out_of_the_message(tmp_path: Path) -> None:
    node = helper.make_node("Fancy\nTrick", ["X"], ["Y"], name="a\nb\x1b[2J" * 100)
    require_error(save(tmp_path / "m.onnx", [node], {}, (1, 4)))
    attribute = helper.make_node("Relu", ["X"], ["Y"], **{"al\npha": 1.0})
    require_error(save(tmp_path / "m.onnx", [attribute], {}, (1, 4)))


def test_files_that_are_none(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    require_error(path, "No such file", ModelFileError)
    require_error(tmp_path, "Is a directory|regular", ModelFileError)
    for data in (b"", b"\0" * 4096, b"PK\x03\x04" + bytes(100), b"\x80\x04}", b"\xff" * 1000, b"[1, 2]", b"\x3a\x7f"):
        path.write_bytes(data)
        require_error(path, "ONNX", ModelFileError)
    os.mkfifo(tmp_path / "pipe.onnx")
    require_error(tmp_path / "pipe.onnx", "regular", ModelFileError)


def test_every_truncation(tmp_path: Path) -> None:
    """A file that ends early is an error, wherever (but where only its last field, the opset, is gone whole)."""
    path = tmp_path / "m.onnx"
    data = BY_HAND["acasxu"](path).read_bytes()
    for end in range(0, len(data) - 1, 7):
        path.write_bytes(data[:end])
        require_error(path, ".", ModelFileError)


# --- size ------------------------------------------------------------------------------------------------------------


BOMBS = """nodes,empty nodes,chain,sums,doubling,constant doubling,outer products,constant of shape,range,padding,pad,
window,selection,channels,fields,shared""".replace("\n", "").split(",")

_WATCH = """
    import re, sys, time
    from lipbridge.errors import LipbridgeError
    from lipbridge_adapters.onnx.reading import read_onnx
    for path in sys.argv[1:]:
        start = time.process_time()
        try:
            graph = read_onnx(path)
            what = f"no error: {graph.output_shape}"
        except LipbridgeError as error:
            what = str(error)
        peak = int(re.search(r"VmHWM:\\s*(\\d+)", open("/proc/self/status").read())[1]) / 1024  # this process alone
        print(f"{time.process_time() - start:.3f}\\t{peak:.0f}\\t{what}")
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads the peak of memory from /proc")
def test_bombs(tmp_path: Path) -> None:
    """One process reads them all: each an error in under 5 s, and all together in under 500 MiB."""
    paths = [bomb(kind, tmp_path / f"{kind}.onnx") for kind in BOMBS]
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(_WATCH), *map(str, paths)],
        capture_output=True, text=True, timeout=120, check=True, env=os.environ | {"OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    rows = [line.split("\t") for line in done.stdout.splitlines()]
    assert len(rows) == len(BOMBS)
    for kind, (seconds, peak, what) in zip(BOMBS, rows, strict=True):
        assert float(seconds) < SECONDS, (kind, seconds)
        assert float(peak) < MEBIBYTES, (kind, peak, what)
        assert not what.startswith("no error"), (kind, what)


# --- mutations -------------------------------------------------------------------------------------------------------


def mutated(data: bytes, generator: random.Random) -> bytes:
    """A few bytes changed, removed, repeated or moved."""
    found = bytearray(data)
    for _ in range(generator.choice([1, 1, 1, 2, 4, 16])):
        if not found:
            break
        i = generator.randrange(len(found))
        kind = generator.randrange(6)
        if kind == 0:
            found[i] ^= 1 << generator.randrange(8)
        elif kind == 1:
            found[i] = generator.choice([0, 1, 2, 5, 7, 10, 127, 128, 255])
        elif kind == 2:
            del found[i : i + generator.randrange(1, 20)]
        elif kind == 3:
            found[i:i] = found[generator.randrange(len(found)) :][: generator.randrange(1, 40)]
        elif kind == 4:
            j = generator.randrange(len(found))
            n = generator.randrange(1, 12)
            found[i : i + n], found[j : j + n] = found[j : j + n], found[i : i + n]
        else:
            del found[i:]
    return bytes(found)


def fuzz(cases: int, seed: int, folder: Path) -> tuple[int, int, float]:
    """Read mutations of every file made by hand; how many were read, refused, and the longest time."""
    originals = [make(folder / f"{name}.onnx").read_bytes() for name, make in BY_HAND.items() if name != "external"]
    generator, path = random.Random(seed), folder / "fuzzed.onnx"
    read = refused = lines = 0
    longest = 0.0
    for _ in range(cases):
        path.write_bytes(mutated(generator.choice(originals), generator))
        start = time.process_time()
        try:
            graph = read_onnx(path)
        except LipbridgeError as error:
            refused += 1
            lines = max(lines, len(str(error).splitlines()))
        else:
            read += 1
            assert graph.output_shape
        longest = max(longest, time.process_time() - start)
    assert lines == 1
    return read, refused, longest


def test_mutations(tmp_path: Path) -> None:
    read, refused, longest = fuzz(300, 0, tmp_path)
    assert longest < SECONDS
    assert min(read, refused) > 10


@pytest.mark.slow
def test_ten_thousand_mutations(tmp_path: Path) -> None:
    for seed in range(1, 5):
        read, refused, longest = fuzz(2_500, seed, tmp_path)
        assert longest < SECONDS
        assert min(read, refused) > 100
