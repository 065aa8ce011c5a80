"""Evaluation of nodes: values, derivatives along a direction, running errors, against slow obvious references."""

from __future__ import annotations

import itertools
from dataclasses import replace
from fractions import Fraction

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from lipbridge.activations.registry import activation
from lipbridge.errors import UnsupportedOperation
from lipbridge.graph.evaluation import evaluate
from lipbridge.graph.graph import Graph
from lipbridge.graph.nodes import (
    Add,
    Concat,
    Conv,
    Elementwise,
    GroupSort,
    Input,
    MaxPool,
    Node,
    Normalize,
    Reshape,
    Softmax,
)
from lipbridge.rigor.running_error import Enclosure, enclosed
from lipbridge.rigor.tangent_error import Tangent, enclosed_tangent
from tests.support.convolution_nodes import convolutions, draw


def place(index: int, length: int, mode: str) -> int | None:
    """Where a padded coordinate reads."""
    if 0 <= index < length:
        return index
    if mode == "zeros":
        return None
    if mode == "circular":
        return index % length
    if mode == "replicate":
        return min(max(index, 0), length - 1)
    return -index if index < 0 else 2 * (length - 1) - index


def slow_convolution(node: Conv, x: Tensor) -> dict[tuple[int, ...], Fraction]:
    """The definition, in exact arithmetic, for one input ``(channels, *space)``."""
    out, per_group, *kernel = node.weight.shape
    result: dict[tuple[int, ...], Fraction] = {}
    for o in range(out):
        for position in itertools.product(*(range(n) for n in node.shape[1:])):
            total = Fraction(0) if node.bias is None else Fraction(float(node.bias[o]))
            for c, offset in itertools.product(range(per_group), itertools.product(*map(range, kernel))):
                at = [
                    place(p * s - before + k * d, n, node.padding_mode)
                    for p, s, (before, _), k, d, n in zip(
                        position, node.stride, node.padding, offset, node.dilation, x.shape[1:], strict=True
                    )
                ]
                if None not in at:
                    channel = o // (out // node.groups) * per_group + c
                    total += Fraction(float(node.weight[(o, c, *offset)])) * Fraction(float(x[(channel, *at)]))
            result[(o, *position)] = total
    return result


@settings(max_examples=60)
@given(convolutions(), st.integers(0, 10**6), st.sampled_from([1.0, 1e-160, 1e150]))
def test_convolution_is_its_definition_within_its_running_error(case, seed: int, size: float) -> None:
    node, shape = case
    x = draw(seed, 1, *shape) * size
    found = enclosed(node, [Enclosure(x, torch.zeros_like(x))])
    assert found.value.shape[1:] == node.shape
    for index, exact in slow_convolution(node, x[0]).items():
        value, error = Fraction(float(found.value[(0, *index)])), Fraction(float(found.error[(0, *index)]))
        assert abs(value - exact) <= error
        assert error <= Fraction(1e-12) * Fraction(size + 1.0)


def cases() -> list[tuple[Node, tuple[int, ...]]]:
    """Nodes other than convolutions, each with its input's shape."""
    crelu, tanh = activation("crelu"), activation("tanh")
    return [
        (MaxPool("pool", (0,), (2, 3, 3), (3, 3), (2, 2), (1, 1), (1, 1)), (2, 5, 6)),
        (MaxPool("pool", (0,), (2, 3, 3), (2, 2), (2, 2), (0, 0), (1, 1), True), (2, 5, 6)),
        (MaxPool("pool", (0,), (2, 3), (2,), (2,), (0,), (2,)), (2, 7)),
        (GroupSort("sort", (0,), (6,), 3), (6,)),
        (GroupSort("sort", (0,), (4, 3, 2), 2), (4, 3, 2)),
        (Normalize("norm", (0,), (6,), 1, 1e-5), (6,)),
        (Normalize("norm", (0,), (4, 3, 2), 2, 1e-3), (4, 3, 2)),
        (Normalize("rms", (0,), (4, 3, 2), 2, 1e-3, False), (4, 3, 2)),
        (Softmax("softmax", (0,), (4, 3, 2), 1), (4, 3, 2)),
        (Softmax("log-softmax", (0,), (4, 3, 2), 0, True), (4, 3, 2)),
        (Elementwise("act", (0,), (6, 3, 2), crelu, 0), (3, 3, 2)),
        (Elementwise("act", (0,), (3, 6, 2), crelu, 1), (3, 3, 2)),
        (Elementwise("act", (0,), (3, 3, 4), crelu), (3, 3, 2)),
        (Elementwise("act", (0,), (3, 3, 2), tanh, 0), (3, 3, 2)),
        (Reshape("move", (0,), (4, 3), (2, 0, 1)), (2, 3, 2)),
        (Conv("scale", (0,), (5,), draw(0, 5, 1), draw(1, 5), (), (), (), 5), (5,)),
        (Add("add", (0, 0, 0), (3, 2)), (3, 2)),
        (Concat("cat", (0, 0), (3, 4), 1), (3, 2)),
    ]


@pytest.mark.parametrize("case", cases(), ids=lambda case: type(case[0]).__name__)
def test_every_node(case) -> None:
    node, shape = case
    x, v = draw(2, 7, *shape), draw(3, 7, *shape)
    graph = Graph((Input("input", (), shape), node))
    assert graph(x).shape[1:] == node.shape == graph.output_shape
    # the derivative: autograd's, and forward evaluation beside the point
    value, tangent = graph.tangent(x, v)
    assert torch.equal(value, graph(x))
    expected = torch.func.jvp(graph, (x,), (v,))[1]
    torch.testing.assert_close(tangent, expected, rtol=1e-12, atol=1e-12)
    # enclosures: any input within its error gives an output within the error
    error = draw(4, 7, *shape).abs() * 1e-4
    wide = enclosed(node, [Enclosure(x, error)] * len(node.inputs))
    for seed in range(20):
        moved = x + error * (2 * torch.rand(x.shape, dtype=torch.float64) - 1)
        assert bool(((graph(moved) - wide.value).abs() <= wide.error).all()), seed
    assert float(wide.error.max()) < 1.0
    # the same for the derivative, where it is sound
    one, true = torch.ones_like(x), torch.ones(len(x), dtype=torch.bool)
    push = enclosed_tangent(node, [Tangent(Enclosure(x, error), Enclosure(v, error), one, true)] * len(node.inputs))
    assert bool(push.sound.any())
    for seed in range(20):
        noise = 2 * torch.rand(2, *x.shape, dtype=torch.float64) - 1
        at = graph.tangent(x + error * noise[0], v + error * noise[1])[1]
        inside = ((at - push.tangent.value).abs() <= push.tangent.error).flatten(1).all(1)
        assert bool((inside | ~push.sound).all()), seed
    exact = enclosed_tangent(node, [Tangent(*[Enclosure(y, 0 * y) for y in (x, v)], one, true)] * len(node.inputs))
    assert bool(exact.sound.all())
    assert float((exact.tangent.value - tangent).abs().max()) <= float(exact.tangent.error.max()) < 1e-9


def test_ties_are_sound_only_among_constants() -> None:
    """Two equal entries of a window: no derivative, unless both are dead."""
    x = torch.tensor([[[1.0, 1.0, 0.0, 0.0]]], dtype=torch.float64)
    pool = MaxPool("pool", (0,), (1, 2), (2,), (2,), (0,), (1,))
    sort = GroupSort("sort", (0,), (4,), 2)
    true = torch.ones(1, dtype=torch.bool)
    for node, point in ((pool, x), (sort, x[:, 0])):
        for live, sound in ((point, False), (point * 0, True), (1 - point, False)):
            given_ = Tangent(*[Enclosure(point, 0 * point)] * 2, live, true)
            assert bool(enclosed_tangent(node, [given_]).sound) is sound
    apart = torch.tensor([[1.0, 2.0, 0.0, 0.0]], dtype=torch.float64)
    live = torch.tensor([[1.0, 1.0, 0.0, 0.0]], dtype=torch.float64)
    assert bool(enclosed_tangent(sort, [Tangent(*[Enclosure(apart, 0 * apart)] * 2, live, true)]).sound)


@pytest.mark.parametrize("case", cases(), ids=lambda case: type(case[0]).__name__)
def test_nodes_run_on_the_meta_device(case) -> None:
    node, shape = case
    graph = Graph((Input("input", (), shape), node)).to("meta")
    x = torch.empty(2, *shape, dtype=torch.float64, device="meta")
    assert graph(x).shape[1:] == graph.tangent(x, x)[0].shape[1:] == node.shape


def test_what_torch_cannot_do_is_an_error() -> None:
    wide = Conv("c", (0,), (1, 1, 1, 1, 1), torch.ones(1, 1, 1, 1, 1, 1), stride=(2,) * 4)
    with pytest.raises(UnsupportedOperation, match="4-dimensional"):
        evaluate(wide, [torch.zeros(1, 1, 1, 1, 1, 1)])


def test_sums_and_diagonal_maps_are_their_definitions() -> None:
    """Whole numbers, so that every digit counts; three different terms, and a shift for each channel."""
    x = torch.arange(12.0, dtype=torch.float64).reshape(2, 3, 2)
    terms = [x, 100.0 * x, 10_000.0 + x]
    assert torch.equal(evaluate(Add("add", (0, 1, 2), (3, 2)), terms), 102.0 * x + 10_000.0)
    scale, shift = torch.tensor([2.0, -1.0, 0.0]).double(), torch.tensor([0.5, 3.0, -7.0]).double()
    image = Conv("scale", (0,), (3, 2), scale[:, None, None], shift, (1,), ((0, 0),), (1,), 3)
    assert image.diagonal
    assert torch.equal(evaluate(image, [x]), x * scale[:, None] + shift[:, None])
    assert torch.equal(evaluate(replace(image, bias=None), [x]), x * scale[:, None])
    vector = Conv("scale", (0,), (3,), scale[:, None], shift, (), (), (), 3)
    assert torch.equal(evaluate(vector, [x[..., 0]]), x[..., 0] * scale + shift)


@pytest.mark.parametrize(
    ("kernel", "stride", "padding", "groups"),
    [
        (1, 1, (0, 0), 3),
        (2, 1, (0, 0), 3),
        (2, 1, (1, 0), 3),
        (1, 2, (0, 0), 3),
        (1, 1, (1, 0), 3),
        (1, 1, (0, 1), 3),
        (1, 1, (0, 0), 1),
    ],
)
def test_what_is_diagonal(kernel: int, stride: int, padding: tuple[int, int], groups: int) -> None:
    """Only what scales each channel where it is: a kernel of one tap, no stride, no padding, no other channel."""
    size = (4 + sum(padding) - kernel) // stride + 1
    weight = torch.ones(3, 3 // groups, kernel, dtype=torch.float64)
    conv = Conv("conv", (0,), (3, size), weight, None, (stride,), (padding,), (1,), groups)
    assert conv.diagonal == ((kernel, stride, padding, groups) == (1, 1, (0, 0), 3))
    x = torch.randn(2, 3, 4, dtype=torch.float64)
    expected = torch.nn.functional.conv1d(torch.nn.functional.pad(x, padding), weight, None, stride, 0, 1, groups)
    torch.testing.assert_close(evaluate(conv, [x]), expected)
