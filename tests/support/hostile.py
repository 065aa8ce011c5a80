"""ONNX files that ask for much, and the error within seconds that is due."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import pytest

from lipbridge.errors import LipbridgeError
from lipbridge_adapters.onnx.reading import read_onnx
from tests.support.onnx_files import normal, op, save

SECONDS, MEBIBYTES = 5.0, 500  # of the processor, so that a busy machine changes nothing


def require_error(path: Path, match: str = ".", kind: type[LipbridgeError] = LipbridgeError) -> None:
    start = time.process_time()
    with pytest.raises(kind, match=match) as found:
        read_onnx(path)
    assert time.process_time() - start < SECONDS
    assert "\n" not in str(found.value)
    assert len(str(found.value)) < 700


def bomb(kind: str, path: Path) -> Path:
    """Small files that ask for much."""
    if kind == "nodes":
        many = [op("Relu", f"v{i}" if i else "X", f"v{i + 1}" if i < 99_999 else "Y") for i in range(100_000)]
        return save(path, many, {}, (1, 4))
    if kind == "empty nodes":
        return save_bytes(path, b"\x0a\x00" * 4_000_000)
    if kind == "chain":  # as many nodes as are allowed, on a joint activation that grows
        nodes = [op("Sin" if i % 2 else "Neg", f"v{i}" if i else "X", f"v{i + 1}") for i in range(4_000)]
        return save(path, [*nodes, op("Hardmax", "v4000", "Y")], {}, (1, 4))
    if kind == "sums":
        nodes = [node for i in range(3_000) for node in (
            op("Mul", f"X c{i % 50}", f"m{i}"), op("Sin", f"m{i}", f"s{i}"),
            op("Add", f"v{i} s{i}" if i else "X s0", f"v{i + 1}"))]  # fmt: skip
        weights = {f"c{i}": np.float32(1.0 + i) for i in range(50)}
        return save(path, [*nodes, op("Hardmax", "v3000", "Y")], weights, (1, 4))
    if kind == "doubling":
        nodes = [op("Concat", f"v{i} v{i}" if i else "X X", f"v{i + 1}", axis=1) for i in range(40)]
        return save(path, [*nodes, op("Identity", "v40", "Y")], {}, (1, 4))
    if kind == "constant doubling":
        nodes = [op("Concat", f"c{i} c{i}", f"c{i + 1}", axis=0) for i in range(40)]
        return save(path, [*nodes, op("Mul", "X c40", "Y")], {"c0": normal(64)}, (1, 4))
    if kind == "outer products":
        nodes = [op("Mul", "a b", "c"), op("Mul", "X c", "Y")]
        return save(path, nodes, {"a": normal(40_000, 1), "b": normal(1, 40_000)}, (1, 4))
    if kind == "constant of shape":
        return save(path, [op("ConstantOfShape", "s", "c"), op("Mul", "X c", "Y")], {"s": np.array([2**40])}, (1, 4))
    if kind == "range":
        weights = {"a": np.int64(0), "b": np.int64(2**50), "c": np.int64(1)}
        return save(path, [op("Range", "a b c", "r"), op("Reshape", "X r", "Y")], weights, (1, 4))
    if kind == "padding":
        return save(path, [op("Conv", "X K", "Y", pads=[2**23] * 4)], {"K": normal(1, 1, 2, 2)}, (1, 1, 4, 4))
    if kind == "pad":
        return save(path, [op("Pad", "X p", "Y")], {"p": np.array([0, 0, 2**40, 0, 0, 0, 2**40, 0])}, (1, 1, 4, 4))
    if kind == "window":
        return save(path, [op("AveragePool", "X", "Y", kernel_shape=[2**22, 2**22])], {}, (1, 1, 4, 4))
    if kind == "selection":
        return save(path, [op("Slice", "X a b c", "s"), op("Hardmax", "s", "Y")],
                    {"a": np.array([1]), "b": np.array([300_000]), "c": np.array([1])}, (1, 400_000))  # fmt: skip
    if kind == "channels":
        return save(path, [op("Conv", "X K", "Y", group=2**15)], {"K": normal(2**15, 1, 1, 1)}, (1, 2**15, 64, 64))
    if kind == "fields":
        return save_bytes(path, b"\x0a\x02\x0a\x00" * 2_000_000)
    if kind == "shared":  # one weight scaled in each of thousands of layers
        nodes = [op("Gemm", f"v{i} W" if i else "X W", f"v{i + 1}", alpha=0.5) for i in range(3_000)]
        return save(path, [*nodes, op("Hardmax", "v3000", "Y")], {"W": normal(300, 300)}, (1, 300))
    raise AssertionError(kind)


def save_bytes(path: Path, graph: bytes) -> Path:
    length, size = len(graph), b""
    while length > 0x7F:
        size, length = size + bytes([length & 0x7F | 0x80]), length >> 7
    path.write_bytes(b"\x08\x07\x3a" + size + bytes([length]) + graph + b"\x42\x04\x0a\x00\x10\x0d")
    return path
