"""ONNX files in gzip: the same Graph as the plain file, and a hostile one is an error in seconds and little memory."""

from __future__ import annotations

import gzip
import os
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import lipbridge
from lipbridge.errors import InvalidArgument, ModelFileError

onnx: Any = pytest.importorskip("onnx", reason="needs lipbridge[onnx]")

from lipbridge_adapters.onnx.reading import read_onnx  # noqa: E402
from tests.support.hostile import MEBIBYTES, SECONDS, bomb, require_error  # noqa: E402
from tests.support.onnx_files import BY_HAND  # noqa: E402

_WATCH = """
    import re, sys, time
    from lipbridge.errors import LipbridgeError
    from lipbridge_adapters.onnx.reading import read_onnx
    for path in sys.argv[1:]:
        start = time.process_time()
        try:
            what = f"no error: {read_onnx(path).output_shape}"
        except LipbridgeError as error:
            what = str(error)
        peak = int(re.search(r"VmHWM:\\s*(\\d+)", open("/proc/self/status").read())[1]) / 1024
        print(f"{time.process_time() - start:.3f}\\t{peak:.0f}\\t{what}")
"""


def folded(path: Path, into: Path) -> Path:
    into.write_bytes(gzip.compress(path.read_bytes()))
    return into


@pytest.mark.parametrize("name", ["acasxu", "mnist_fc"])
def test_the_graph_is_that_of_the_plain_file(name: str, tmp_path: Path) -> None:
    plain = BY_HAND[name](tmp_path / "net.onnx")
    graph, found = read_onnx(plain), read_onnx(folded(plain, tmp_path / "net.onnx.gz"))
    assert found.name == graph.name == "net"
    assert lipbridge.trivial_bound(found).value == lipbridge.trivial_bound(graph).value
    x = torch.randn(3, *graph.input_shape, dtype=torch.float64)
    assert torch.equal(found(x), graph(x))


def test_the_content_decides_not_the_name(tmp_path: Path) -> None:
    plain = BY_HAND["acasxu"](tmp_path / "net.onnx")
    value = lipbridge.trivial_bound(read_onnx(plain)).value
    assert lipbridge.trivial_bound(read_onnx(folded(plain, tmp_path / "folded.onnx"))).value == value
    (tmp_path / "plain.onnx.gz").write_bytes(plain.read_bytes())
    assert lipbridge.trivial_bound(read_onnx(tmp_path / "plain.onnx.gz")).value == value


def test_several_members_and_weights_in_another_file(tmp_path: Path) -> None:
    path = BY_HAND["mnist_fc"](tmp_path / "net.onnx")
    data = path.read_bytes()
    (tmp_path / "two.onnx.gz").write_bytes(gzip.compress(data[:100]) + gzip.compress(data[100:]))
    assert read_onnx(tmp_path / "two.onnx.gz").output_shape == read_onnx(path).output_shape
    onnx.save_model(onnx.load(path), tmp_path / "out.onnx", save_as_external_data=True, size_threshold=0)
    found = read_onnx(folded(tmp_path / "out.onnx", tmp_path / "out.onnx.gz"))
    assert lipbridge.trivial_bound(found).value == lipbridge.trivial_bound(read_onnx(path)).value


def test_damaged_gzip(tmp_path: Path) -> None:
    data = gzip.compress(BY_HAND["acasxu"](tmp_path / "net.onnx").read_bytes())
    path = tmp_path / "net.onnx.gz"
    for end in (2, 5, 12, len(data) // 2, len(data) - 4):
        path.write_bytes(data[:end])
        require_error(path, "cut short or damaged", ModelFileError)
    path.write_bytes(data[:-8] + b"\0" * 8)  # the checksum
    require_error(path, "cut short or damaged", ModelFileError)
    for index in range(10, len(data), 37):
        path.write_bytes(data[:index] + bytes([data[index] ^ 0x55]) + data[index + 1 :])
        require_error(path, ".", ModelFileError)
    path.write_bytes(data + b"more")
    require_error(path, "cut short or damaged", ModelFileError)
    for inside in (b"", b"\0" * 4096, b"PK\x03\x04", data):
        path.write_bytes(gzip.compress(inside))
        require_error(path, "ONNX", ModelFileError)


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads the peak of memory from /proc")
def test_bombs(tmp_path: Path) -> None:
    """A gigabyte in a megabyte: each is an error in seconds, and memory stays near what a file may hold freely."""
    size = 2**30
    start = b"\x08\x07\x3a" + _varint(size) + b"\x2a" + _varint(size - 6) + b"\x4a" + _varint(size - 12)
    for name, head in (("zeros", b""), ("weights", start)):
        with gzip.open(tmp_path / f"{name}.onnx.gz", "wb", compresslevel=9) as stream:
            stream.write(head)
            for _ in range(size // 2**24):
                stream.write(bytes(2**24))
    nodes = folded(bomb("empty nodes", tmp_path / "nodes.onnx"), tmp_path / "nodes.onnx.gz")
    paths = [tmp_path / "zeros.onnx.gz", tmp_path / "weights.onnx.gz", nodes]
    assert all(path.stat().st_size < 2**21 for path in paths)
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(_WATCH), *map(str, paths)],
        capture_output=True, text=True, timeout=120, check=True, env=os.environ | {"OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    rows = [line.split("\t") for line in done.stdout.splitlines()]
    assert len(rows) == len(paths)
    for path, (seconds, peak, what) in zip(paths, rows, strict=True):
        assert float(seconds) < SECONDS, (path, seconds)
        assert float(peak) < MEBIBYTES, (path, peak, what)
        assert not what.startswith("no error"), (path, what)
    assert "100 times its size" in rows[1][2]


def _varint(value: int) -> bytes:
    found = b""
    while value > 0x7F:
        found, value = found + bytes([value & 0x7F | 0x80]), value >> 7
    return found + bytes([value])


def test_a_network_that_folds_well_is_read(tmp_path: Path) -> None:
    """A matrix of zeros folds to a thousandth; below the free size that is nobody's harm."""
    from tests.support.onnx_files import op, save

    weight = np.zeros((2000, 1000), dtype=np.float32)
    weight[0, 0] = 3.0
    path = save(tmp_path / "m.onnx", [op("MatMul", "X W", "Y")], {"W": weight}, (1, 2000))
    packed = folded(path, tmp_path / "m.onnx.gz")
    assert packed.stat().st_size < path.stat().st_size / 500
    assert lipbridge.trivial_bound(read_onnx(packed)).value >= 3.0


@pytest.mark.parametrize(("path", "shape"), [(5, None), ("m.onnx", "3"), ("m.onnx", (0,)), ("", None)])
def test_arguments_of_other_kinds(path: Any, shape: Any) -> None:
    with pytest.raises(InvalidArgument):
        read_onnx(path, shape)
