"""Capture of convolutions, pooling, normalisation, residuals, sorting: the Graph evaluates to the module's output."""

from __future__ import annotations

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrize

import lipbridge
from lipbridge.errors import UnsupportedOperation
from lipbridge.graph.nodes import Add, Concat, Conv, Dense, Elementwise, GroupSort, MaxPool, Normalize, Reshape
from tests.support.captured import Lambda, agrees, kinds


def statistics(norm: nn.Module) -> nn.Module:
    """A normalisation layer with numbers as after training."""
    with torch.no_grad():
        for name, tensor in norm.state_dict().items():
            if tensor.is_floating_point():
                tensor.copy_(torch.randn_like(tensor).abs() + 0.1 if "var" in name else torch.randn_like(tensor))
    return norm


@settings(max_examples=20)
@given(st.data())
def test_convolutions(data: st.DataObject) -> None:
    rank = data.draw(st.sampled_from([1, 2]))
    groups = data.draw(st.sampled_from([1, 2]))
    kernel = data.draw(st.integers(1, 3))
    options = {
        "stride": data.draw(st.integers(1, 2)),
        "dilation": data.draw(st.integers(1, 2)),
        "padding": data.draw(st.sampled_from([0, 1, 2, "same", "valid"])),
        "padding_mode": data.draw(st.sampled_from(["zeros", "circular", "reflect", "replicate"])),
        "bias": data.draw(st.booleans()),
    }
    assume(options["padding"] != "same" or options["stride"] == 1)
    kind = (nn.Conv1d, nn.Conv2d)[rank - 1]
    module = kind(2 * groups, 3 * groups, kernel, groups=groups, **options)  # type: ignore[arg-type]
    space = tuple(data.draw(st.integers(5, 8)) for _ in range(rank))
    graph = agrees(module, (2 * groups, *space))
    assert kinds(graph) == ["Conv"]
    node = graph.nodes[1]
    assert isinstance(node, Conv)
    assert node.parameter == "weight"


@settings(max_examples=20)
@given(st.data())
def test_pooling(data: st.DataObject) -> None:
    rank = data.draw(st.sampled_from([1, 2]))
    kernel = data.draw(st.integers(1, 4))
    common = {
        "kernel_size": kernel,
        "stride": data.draw(st.sampled_from([None, 1, 2, 3])),
        "padding": data.draw(st.integers(0, kernel // 2)),
        "ceil_mode": data.draw(st.booleans()),
    }
    space = tuple(data.draw(st.integers(6, 9)) for _ in range(rank))
    average = (nn.AvgPool1d, nn.AvgPool2d)[rank - 1](**common, count_include_pad=data.draw(st.booleans()))  # type: ignore[arg-type]
    agrees(average, (3, *space))
    maximum = (nn.MaxPool1d, nn.MaxPool2d)[rank - 1](**common, dilation=data.draw(st.integers(1, 2)))  # type: ignore[arg-type]
    assert kinds(agrees(maximum, (3, *space))) == ["MaxPool"]


@pytest.mark.parametrize(
    ("module", "shape", "expected"),
    [
        (nn.AdaptiveAvgPool2d(1), (3, 4, 5), ["Conv"]),
        (nn.AdaptiveAvgPool2d((2, 1)), (3, 4, 5), ["Conv"]),
        (nn.AdaptiveAvgPool1d(3), (2, 6), ["Conv"]),
        (nn.AdaptiveMaxPool2d(2), (2, 4, 6), ["MaxPool"]),
        (Lambda(lambda x: x.mean((2, 3))), (3, 4, 5), ["Reshape", "Conv", "Reshape"]),
        (Lambda(lambda x: x.mean(1, keepdim=True)), (3, 4), ["Reshape", "Conv", "Reshape"]),
        (Lambda(lambda x: x.amax((-1, 1))), (3, 4, 5), ["Reshape", "MaxPool", "Reshape"]),
        (nn.AvgPool2d(3, 2, 1, divisor_override=5), (3, 7, 7), ["Conv"]),
        (statistics(nn.BatchNorm2d(3)), (3, 4, 4), ["Conv"]),
        (statistics(nn.BatchNorm1d(3)), (3,), ["Conv"]),
        (statistics(nn.BatchNorm1d(3, affine=False)), (3, 5), ["Conv"]),
        (statistics(nn.InstanceNorm1d(3, track_running_stats=True, affine=True)), (3, 5), ["Conv"]),
        (statistics(nn.LayerNorm(6)), (6,), ["Normalize", "Conv"]),
        (statistics(nn.LayerNorm((3, 4))), (2, 3, 4), ["Normalize", "Reshape", "Conv", "Reshape"]),
        (nn.LayerNorm(4, elementwise_affine=False), (2, 3, 4), ["Normalize"]),
        (statistics(nn.GroupNorm(2, 6)), (6, 3, 2), ["Normalize", "Conv"]),
        (nn.InstanceNorm2d(3), (3, 4, 4), ["Normalize"]),
        (nn.Sequential(nn.Dropout2d(), nn.Flatten(), nn.Dropout()), (2, 3, 3), ["Reshape"]),
        (Lambda(lambda x: x.permute(0, 3, 1, 2).transpose(1, 2)), (2, 3, 4), ["Reshape", "Reshape"]),
        (nn.Linear(4, 5), (3, 4), ["Dense"]),
        (nn.ZeroPad2d((1, 2, 0, 1)), (2, 3, 3), ["Conv"]),
        (nn.Sequential(nn.ReflectionPad2d(1), nn.Conv2d(2, 3, 3)), (2, 4, 4), ["Conv"]),
        (nn.Sequential(nn.CircularPad1d((0, 1)), nn.Conv1d(2, 3, 3, padding=1)), (2, 5), ["Conv", "Conv"]),
        (Lambda(lambda x: F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 1, 1))), (2, 5, 4), ["Gather"]),
        (Lambda(lambda x: x[:, 1:3]), (4,), ["Gather"]),
        (Lambda(lambda x: x[:, 1::2, 2:-1]), (4, 6), ["Gather"]),
        (Lambda(lambda x: x[:, 1]), (4, 6), ["Gather", "Reshape"]),
        (Lambda(lambda x: torch.stack([x[:, 0], x[:, 2]], 2)), (4, 6), None),
        (Lambda(lambda x: x * torch.tensor([[1.0, 2.0, 3.0]]) - torch.tensor([1.0, 0.0, 2.0])), (3,), ["Conv", "Conv"]),
        (Lambda(lambda x: 1.0 - x / torch.tensor([3.0, 7.0, 2.0])[:, None]), (3, 4), ["Conv", "Elementwise"]),
        (Lambda(lambda x: x + torch.arange(6.0).reshape(1, 2, 3)), (2, 3), ["Reshape", "Conv", "Reshape"]),
        (Lambda(lambda x: torch.arange(3.0) - x), (3,), ["Elementwise", "Conv"]),
        (nn.ReLU6(), (3,), ["Elementwise"]),
        (nn.Hardtanh(-1.0, 2.0), (2, 3), ["Elementwise"]),
        (Lambda(lambda x: (2 * x + 1).clamp(min=0.5)), (3,), ["Elementwise"]),
        (Lambda(lambda x: torch.maximum(x.sin(), -x)), (2, 3), None),
        (Lambda(lambda x: torch.min(x, x.abs().neg())), (4,), None),
        (Lambda(lambda x: torch.cat([x.relu(), (-x).relu()], 1)), (2, 3, 3), ["Elementwise"]),
        (Lambda(lambda x: torch.cat([x.relu(), (-x).relu()], -1)), (2, 3, 3), ["Elementwise"]),
    ],
    ids=str,
)
def test_layers(module: nn.Module, shape: tuple[int, ...], expected: list[str] | None) -> None:
    graph = agrees(module, shape)
    assert expected is None or kinds(graph) == expected


@pytest.mark.parametrize(
    ("function", "group"),
    [
        (lambda x: x.unflatten(1, (-1, 2)).sort(dim=2).values.flatten(1, 2), 2),
        (lambda x: x.view(len(x), -1, 3, *x.shape[2:]).sort(2)[0].view_as(x), 3),
        (lambda x: torch.sort(x.unflatten(1, (-1, 2)), 2, descending=True)[0].flatten(1, 2), 2),
        (lambda x: torch.cat([torch.max(*x.chunk(2, 1)), torch.min(*x.chunk(2, 1))], 1), 2),
        (lambda x: torch.cat([torch.minimum(*x.split(3, 1)), torch.maximum(*x.split(3, 1))], 1), 2),
        (lambda x: x.sort(1).values, 6),
    ],
)
@pytest.mark.parametrize("shape", [(6,), (6, 2), (6, 3, 2)])
def test_sorting(function, group: int, shape: tuple[int, ...]) -> None:
    graph = agrees(Lambda(function), shape)
    assert [node.group for node in graph if isinstance(node, GroupSort)] == [group]
    assert {type(node) for node in graph.nodes[1:]} <= {GroupSort, Reshape, Elementwise}


class Residual(nn.Module):
    def __init__(self, sign: float = 1.0) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 3, padding=1)
        self.norm = statistics(nn.BatchNorm2d(3))
        self.sign = sign

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(self.norm(self.conv(x)))
        return x + y if self.sign > 0 else x - 0.5 * y


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_residual_connections(sign: float) -> None:
    graph = agrees(nn.Sequential(Residual(sign), nn.ReLU(inplace=True), Residual(sign)), (3, 4, 4))
    assert sum(isinstance(node, Add) for node in graph) == 2
    assert next(node.name for node in graph if isinstance(node, Conv)) == "0.conv"


def test_dense_connections() -> None:
    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two = nn.Conv2d(2, 3, 3, padding=1), nn.Conv2d(5, 2, 1)

        def forward(self, x: Tensor) -> Tensor:
            x = torch.cat([x, self.one(x).relu()], 1)
            return torch.cat((self.two(x), x), dim=1)

    graph = agrees(Block(), (2, 3, 3))
    assert [node.axis for node in graph if isinstance(node, Concat)] == [0, 0]
    assert kinds(graph) == ["Conv", "Elementwise", "Concat", "Conv", "Concat"]


class Shared(nn.Module):
    """One layer used twice, a weight used by two layers, functional calls, nesting and a parametrisation."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 2, 3, padding=1)
        self.other = nn.Conv2d(2, 2, 3, padding=1, bias=False)
        self.other.weight = self.conv.weight
        self.inner = nn.Sequential(nn.Sequential(nn.Conv2d(2, 2, 1)))
        parametrize.register_parametrization(self.inner[0][0], "weight", Turned())

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x).tanh()
        x = F.conv2d(self.other(x), self.conv.weight, padding=1, stride=2)
        return self.inner(F.relu(x))


class Turned(nn.Module):
    def forward(self, W: Tensor) -> Tensor:
        return 2.0 * W.transpose(0, 1)


def test_shared_functional_nested_and_parametrised() -> None:
    graph = agrees(Shared(), (2, 4, 4))
    names = [node.parameter for node in graph if isinstance(node, Conv)]
    assert set(names[:3]) <= {"conv.weight", "other.weight"}
    assert names[3] == "inner.0.0.weight"


def test_a_network_of_many_kinds() -> None:
    module = nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1, padding_mode="circular"),
        statistics(nn.BatchNorm2d(4)),
        nn.ReLU(inplace=True),
        nn.MaxPool2d(3, 2, 1),
        nn.Conv2d(4, 6, 3, padding="same", groups=2),
        statistics(nn.GroupNorm(3, 6)),
        nn.LeakyReLU(0.1),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        nn.Linear(24, 5),
        nn.LayerNorm(5),
    )
    graph = agrees(module, (1, 8, 8))
    assert {type(node) for node in graph} >= {Conv, MaxPool, Normalize, Dense}


@pytest.mark.parametrize(
    "function",
    [
        lambda x: torch.add(x.relu(), x, alpha=0.3),
        lambda x: torch.sub(x, x.relu(), alpha=3.0),
        lambda x: torch.sub(x, torch.ones(3, dtype=x.dtype), alpha=0.25),
        lambda x: torch.rsub(x, x.abs(), alpha=2.0),
        lambda x: torch.add(x, 3.0, alpha=0.5).relu(),
        lambda x: torch.where(1.0 - 2.0 * x > 0.0, 3.0 * x, x + 1.0),
        lambda x: F.pad(crelu(x), (1, 1)) * 2.0,
        lambda x: crelu(x)[:, 1:5],
        lambda x: crelu(x).sum(1, keepdim=True),
        lambda x: crelu(x).mean(1, keepdim=True),
    ],
)
def test_sums_with_factors_choices_and_what_reads_a_crelu(function) -> None:
    agrees(Lambda(function), (3,))


def crelu(x: Tensor) -> Tensor:
    return torch.cat([x.relu(), (-x).relu()], 1)


@pytest.mark.parametrize(
    ("module", "shape", "words"),
    [
        (nn.Sequential(nn.Softmax(0)), (3, 4), "`0`: operation softmax.*batch"),
        (nn.Sequential(nn.BatchNorm2d(2, track_running_stats=False)), (2, 4, 4), "`0`.*batch"),
        (Lambda(lambda x: x.flip(0)), (4,), "flip"),
        (Lambda(lambda x: x.sum(0, keepdim=True) + x), (4,), "sum"),
        (Lambda(lambda x: x.mean(0, keepdim=True) + x), (4,), "batch"),
        (Lambda(lambda x: x.sort(1).indices * 1.0), (4,), "indices"),
        (Lambda(lambda x: x + torch.relu(x)[:, 0]), (2, 2), "mixes|shape"),
        (Lambda(lambda x: x * x.relu()), (4,), "product"),
        (Lambda(lambda x: F.pad(x, (1, 1), value=torch.inf)), (2, 4), "infinite"),
        (Lambda(lambda x: x + torch.ones(2, 4)), (4,), "batch"),
        (Lambda(lambda x: x / torch.tensor([1.0, 0.0])), (2,), "zero"),
        (Lambda(lambda x: x / 0.0), (2,), "zero"),
        (Lambda(lambda x: x[:, :0]), (2,), "empty"),
        (Lambda(lambda x: torch.where(x > 0, x + 1.0, x)), (2,), "jumps"),
        (Lambda(lambda x: torch.where(1.0 - x > 0, x, 2.0 * x)), (2,), "jumps"),
        (Lambda(lambda x: torch.cat([x[:, :0], x], 1)), (2,), "empty"),
        (nn.LSTM(3, 4), (5, 3), "3 values"),
    ],
    ids=str,
)
def test_what_is_not_supported_is_named(module: nn.Module, shape: tuple[int, ...], words: str) -> None:
    with pytest.raises(UnsupportedOperation, match=words):
        lipbridge.capture(module, shape)


def test_factors_that_are_computed_are_rounded_away_from_zero() -> None:
    norm = statistics(nn.BatchNorm2d(8))
    node = lipbridge.capture(norm, (8, 2, 2)).nodes[1]
    assert isinstance(node, Conv)
    square = node.weight.flatten().square()
    exact = norm.weight.double().square() / (norm.running_var.double() + norm.eps)  # type: ignore[union-attr]
    assert bool((square >= exact).all())
    assert bool((square <= exact * (1 + 1e-14)).all())
    assert bool((node.weight.flatten().sign() == norm.weight.sign()).all())
    pool = lipbridge.capture(nn.AvgPool2d(7), (1, 7, 7)).nodes[1]
    assert isinstance(pool, Conv)
    assert float(pool.weight.flatten()[0]) * 49 >= 1.0
