"""The builder by itself: a Graph made of its functions, with no module and no file, and what it may import."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from torch import Tensor, nn

import lipbridge
from lipbridge.errors import UnsupportedOperation
from lipbridge.frontend.builder import LINE, Curve, GraphBuilder
from lipbridge.frontend.extremes import sort
from lipbridge.frontend.functions import apply, clamp
from lipbridge.frontend.joining import join
from lipbridge.frontend.layers import Padded, convolution, dense
from lipbridge.frontend.pooling import average_pool
from lipbridge.frontend.scalar import add, multiply
from lipbridge.frontend.shapes import seen_as
from lipbridge.graph.graph import Graph

CONCEPTS = (
    "activations axes choices contractions copies diagonal extremes functions joining layers moments moves "
    "normalisation pooling products scalar self_gated shapes softmax"
)


def normal(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64)


def finished(builder: GraphBuilder, value: Curve) -> Graph:
    assert builder.materialise(value) == len(builder.nodes) - 1
    return builder.graph_of_nodes("by hand")


def test_a_residual_network_by_hand():
    W, b, V = normal(4, 3), normal(4), normal(3, 4)
    builder = GraphBuilder((3,), torch.device("cpu"))
    x = Curve(0, (LINE,))
    hidden = apply(builder, dense(builder, x, W, False, b, (4,)), "relu")
    inner = dense(builder, hidden, V.T, True, None, (3,))
    graph = finished(builder, add(builder, x, multiply(builder, inner, 0.5, (3,)), (3,)))
    points = normal(7, 3)
    torch.testing.assert_close(graph(points), points + 0.5 * ((points @ W.T + b).relu() @ V.T))
    assert [type(node).__name__ for node in graph.nodes].count("Dense") == 2


def test_an_image_by_hand_is_the_module_s_graph():
    kernel, bias = normal(4, 2, 3, 3), normal(4)
    builder = GraphBuilder((2, 4, 4), torch.device("cpu"))
    padded = Padded(Curve(0, (LINE,)), ((1, 1), (1, 1)), "circular", 0.0)
    geometry = {"stride": (1, 1), "dilation": (1, 1)}
    made = convolution(builder, padded, kernel, bias, (4, 4, 4), padding=((0, 0), (0, 0)), groups=1, **geometry)
    limited = clamp(builder, made, -1.0, 1.0)
    pooled = average_pool(builder, limited, (4, 2, 2), kernel=(2, 2), stride=(2, 2), padding=(0, 0), with_padding=True)
    graph = finished(builder, seen_as(builder, pooled, (16,)))

    layer = nn.Conv2d(2, 4, 3, padding=1, padding_mode="circular").double()
    with torch.no_grad():
        layer.weight.copy_(kernel)
        layer.bias.copy_(bias)
    module = nn.Sequential(layer, nn.Hardtanh(), nn.AvgPool2d(2), nn.Flatten())
    read = lipbridge.capture(module, (2, 4, 4))
    assert [type(node) for node in graph.nodes] == [type(node) for node in read.nodes]
    points = normal(3, 2, 4, 4)
    assert torch.equal(graph(points), read(points))


def test_sorting_and_joining_by_hand():
    builder = GraphBuilder((4,), torch.device("cpu"))
    x = Curve(0, (LINE,))
    graph = finished(builder, join(builder, [sort(builder, x, 0, True, (4,)), x], 0, (8,)))
    points = normal(5, 4)
    torch.testing.assert_close(graph(points), torch.cat([points.sort(1, descending=True)[0], points], 1))


def test_errors_name_what_the_front_end_calls_the_operation():
    builder = GraphBuilder((3,), torch.device("cpu"))
    builder.layer, builder.operation = "head", "Mul"
    x = Curve(0, (LINE,))
    y = dense(builder, x, normal(3, 3), False, None, (3,))
    with pytest.raises(UnsupportedOperation, match=r"head.*Mul|Mul.*head"):
        multiply(builder, x, y, (3,))
    with pytest.raises(UnsupportedOperation, match=r"empty"):
        dense(builder, x, normal(0, 3), False, None, (0,))


def test_the_functions_know_no_front_end():
    """In a process that imports the builder and its functions alone, no reader of programs or files is loaded."""
    code = f"""
import importlib, sys
for name in ["builder", *"{CONCEPTS}".split()]:
    importlib.import_module("lipbridge.frontend." + name)
print(sorted(m for m in sys.modules if m.startswith(("lipbridge.frontend.aten", "lipbridge_adapters", "onnx"))
    or m in ("lipbridge.frontend." + n for n in ("program", "capture", "export", "check", "program_values"))))
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"
