"""The check at the end of every capture: each old fault, put back by a patched handler, is seen and named."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import lipbridge
from lipbridge.errors import NumericalFailure, UnsupportedOperation
from lipbridge.frontend import check as capture_check
from lipbridge.frontend import program as capture_program
from lipbridge.frontend.aten.registry import HANDLERS, Arguments
from lipbridge.frontend.builder import LINE, Curve, GraphBuilder
from lipbridge.frontend.capture import capture  # registers the handlers that these tests patch
from lipbridge.frontend.program import ProgramReader
from lipbridge.frontend.shapes import Part
from lipbridge.graph.nodes import Conv, MaxPool
from tests.support.families import network


class Function(nn.Module):
    """A function as a module, with a layer so that weights exist."""

    def __init__(self, function: Callable[[Tensor], Tensor], n: int = 4) -> None:
        super().__init__()
        self.function, self.layer = function, nn.Linear(n, n)

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self.layer(x))


@pytest.fixture(params=["small", "large"])
def evaluation(request, monkeypatch) -> None:
    """The check as of small networks, and as of those whose evaluation takes long: fewer points, compared otherwise."""
    if request.param == "large":
        monkeypatch.setattr(capture_check, "_POINTS", ((0.0, 7), (0.0, 4), (math.inf, 3)))


def _same(reader: GraphBuilder, a: Arguments, shape: tuple[int, ...]) -> Any:
    return a["self"]


def _negative_start(reader: GraphBuilder, a: Arguments, shape: tuple[int, ...]) -> Any:
    return Part(reader.curve(a["self"]), int(a["dim"]) - 1, max(int(a["start"]), 0), 1, int(a["length"]))


def _unpooled(reader: GraphBuilder, a: Arguments, shape: tuple[int, ...]) -> Any:
    pool = MaxPool(reader.layer, (reader.materialise(a["self"]),), shape, (1,), (1,), (0,), (1,))
    return reader.append(pool)


def _doubled(reader: GraphBuilder, a: Arguments, shape: tuple[int, ...]) -> Any:
    made = HANDLERS["relu"](reader, a, shape)
    return Curve(made.source, tuple(tuple(LINE) for _ in made.components))


@pytest.mark.parametrize(
    ("operation", "handler", "function", "layer"),
    [
        ("to", _same, lambda x: (x * 255).to(torch.uint8).float() / 255, "to"),
        ("narrow", _negative_start, lambda x: x.narrow(1, -2, 2), "narrow"),
        ("abs", _same, lambda x: torch.relu(x.abs()), "abs"),
        ("tanh", _doubled, lambda x: x.tanh() + 1.0, "tanh"),
        ("flip", _same, lambda x: x.flip(1), "flip"),
        ("roll", _same, lambda x: x.roll(1, 1).relu(), "roll"),
        ("round", _same, lambda x: x.round(), "round"),
    ],
)
@pytest.mark.usefixtures("evaluation")
def test_a_handler_that_is_wrong_is_named(monkeypatch, operation, handler, function, layer) -> None:
    monkeypatch.setitem(HANDLERS, operation, handler)
    with pytest.raises(UnsupportedOperation, match="found by the check") as caught:
        capture(Function(function))
    assert caught.value.layer.startswith(layer)


@pytest.mark.usefixtures("evaluation")
def test_a_size_of_the_batch_that_becomes_a_number_is_seen(monkeypatch) -> None:
    with pytest.raises(UnsupportedOperation, match="size of the batch"):
        capture(Function(lambda x: x / x.shape[0]))
    monkeypatch.setattr(capture_program, "BATCH", 2)
    with pytest.raises(UnsupportedOperation):
        capture(Function(lambda x: x / x.shape[0]))


@pytest.mark.usefixtures("evaluation")
def test_a_convolution_with_another_stride_or_padding_is_seen(monkeypatch) -> None:
    right = HANDLERS["conv1d"]

    def shifted(reader: GraphBuilder, a: Arguments, shape: tuple[int, ...]) -> Any:
        made = right(reader, a, shape)
        node = reader.nodes[made.source]
        assert isinstance(node, Conv)
        ((before, after),) = node.padding
        reader.nodes[made.source] = Conv(
            *list(vars(node).values())[:6], ((after - 1, before + 1),), *list(vars(node).values())[7:]
        )
        return made

    module = nn.Sequential(nn.Conv1d(2, 3, 3, padding=1), nn.ReLU())
    capture(module, (2, 6))
    monkeypatch.setitem(HANDLERS, "conv1d", shifted)
    with pytest.raises(UnsupportedOperation, match="found by the check"):
        capture(module, (2, 6))


def test_a_live_weight_that_is_read_from_another_tensor_is_seen(monkeypatch) -> None:
    class Tenfold(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return F.linear(x, 10.0 * self.weight, self.bias)

    module = nn.Sequential(Tenfold(4, 4), nn.ReLU(), nn.Linear(4, 2))
    penalty = lipbridge.TrivialBoundPenalty(module)
    assert penalty.bound().value == lipbridge.trivial_bound(module).value
    monkeypatch.setattr(ProgramReader, "origin", lambda self, weight: (f"{self.layer}.weight", False))
    with pytest.raises(UnsupportedOperation, match="another way than is read") as caught:
        lipbridge.TrivialBoundPenalty(module)
    assert caught.value.layer == "0"


class Counting(nn.Module):
    """Its outputs change from call to call, or with what torch.export cannot see."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind, self.layer, self.calls = kind, nn.Linear(4, 3), 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        y = self.layer(x)
        if self.kind == "calls":
            return y * self.calls
        if self.kind == "numpy":
            return y * float(np.random.rand())
        if self.kind == "python":
            return y + random.random()
        if self.kind == "one":
            return y * 2 if x.shape[0] == 1 else y
        if self.kind == "large":
            return y * 2 if x.shape[0] > 4 else y
        return y * 2 if torch.compiler.is_compiling() else y


@pytest.mark.parametrize("kind", ["calls", "numpy", "python", "one", "large", "compiling"])
@pytest.mark.usefixtures("evaluation")
def test_what_torch_export_does_not_see_is_seen(kind: str) -> None:
    with pytest.raises(UnsupportedOperation):
        capture(Counting(kind))


@pytest.mark.parametrize(
    "function",
    [
        lambda x: x * x.shape[0],
        lambda x: x * len(x),
        lambda x: x / x.size(0) ** 0.5,
        lambda x: x - x.mean(0),
        lambda x: x.flip(0),
        lambda x: x.roll(1, 0),
        lambda x: torch.cat([x, x], 0),
        lambda x: x[:1] + x,
        lambda x: x[1:],
        lambda x: x[::2],
        lambda x: x.view(-1, 2),
        lambda x: x.view(2, -1),
        lambda x: x.T @ x,
        lambda x: F.batch_norm(x, None, None, training=True),
        lambda x: x + torch.arange(x.shape[0])[:, None],
        lambda x: x.sum(),
        lambda x: x.cumsum(0),
        lambda x: x.softmax(0),
        lambda x: x.sort(0).values,
        lambda x: x + torch.rand(4),
        lambda x: x * torch.bernoulli(torch.full((4,), 0.5)),
        lambda x: x + torch.randn_like(x),
        lambda x: F.dropout(x, 0.5, training=True),
        lambda x: x.to(torch.int64).float(),
        lambda x: x.bool().float(),
        lambda x: (x + 0j).real,
        lambda x: torch.view_as_real(torch.fft.fft(x)).flatten(1),
        lambda x: x.type(torch.int32).type(torch.float32),
        lambda x: x.round(),
        lambda x: x.sign(),
        lambda x: torch.where(x > 0, x, x - 1.0),
        lambda x: x * (x > 0),
    ],
)
@pytest.mark.usefixtures("evaluation")
def test_what_works_along_the_batch_or_jumps_is_refused(function) -> None:
    with pytest.raises(UnsupportedOperation):
        lipbridge.trivial_bound(Function(function))


@pytest.mark.parametrize(
    "function",
    [
        lambda x: x.view(x.shape[0], 2, 2).flatten(1),
        lambda x: x.reshape(len(x), -1),
        lambda x: x.view(x.size(0), -1)[:],
        lambda x: torch.where(x > 0, x, 0.2 * x),
        lambda x: torch.where(x < 1.0, torch.zeros_like(x), x - 1.0),
        lambda x: x + torch.ones(x.shape[0], 4),
        lambda x: x + torch.zeros_like(x),
        lambda x: x.half().float(),
        lambda x: torch.clip(x, -1.0, 1.0),
        lambda x: x.clamp_min(0.0).clamp_max(6.0),
        lambda x: x.narrow(1, -2, 2),
        lambda x: x[:, -3:-1],
        lambda x: x[:, [True, False, True, False]] if False else x[..., 1],
    ],
)
@pytest.mark.usefixtures("evaluation")
def test_what_only_looks_like_it_is_read(function) -> None:
    module = Function(lambda x: function(x).reshape(x.shape[0], -1))
    graph = lipbridge.check_capture(module)
    x = torch.randn(5, 4)
    assert torch.allclose(graph(x.double()).float(), module(x), atol=1e-2)


def test_weights_that_are_not_finite_are_named() -> None:
    module = nn.Sequential(nn.Linear(3, 3), nn.ReLU(), nn.Linear(3, 3))
    with torch.no_grad():
        module[2].weight[0, 0] = torch.nan
    with pytest.raises(NumericalFailure, match=r"2\.weight"):
        capture(module)


def test_modules_inside_others_are_read() -> None:
    plain = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))
    value = lipbridge.trivial_bound(plain).value
    symbolic = {0: torch.export.Dim("batch")}
    x = torch.randn(3, 4)
    wrapped: list[Any] = [
        nn.DataParallel(plain),
        torch.compile(plain),
        nn.Sequential(torch.compile(plain)),
        torch.export.export(plain, (x,)),
        torch.export.export(plain, (x,)).module(),
        torch.export.export(plain, (x,), dynamic_shapes=(symbolic,)).module(),
    ]
    for module in wrapped:
        assert lipbridge.trivial_bound(module).value == value
    with pytest.raises(UnsupportedOperation, match="load_state_dict"):
        lipbridge.trivial_bound(torch.jit.trace(plain, x))


class Blocks(nn.Module):
    """Frozen backbone, autocast and in-place operations."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 2)
        self.a.requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            y = F.relu(self.a(x), inplace=True)
        with torch.autocast("cpu", torch.bfloat16):
            z = self.b(y)
        return z.float()


def test_blocks_are_read_as_if_they_stood_outside() -> None:
    module = Blocks()
    plain = nn.Sequential(module.a, nn.ReLU(), module.b)
    # Autocast rounds the weight of `b` to bfloat16, as it does when the module runs.
    assert lipbridge.trivial_bound(module).value == pytest.approx(lipbridge.trivial_bound(plain).value, rel=2**-8)


@pytest.mark.parametrize("kind", [("sincos", "identity_abs", 4, "dead", 1), ("identity_abs", None, 2, "integers", 172)])
@pytest.mark.usefixtures("evaluation")
def test_sums_in_another_order_are_no_difference(kind) -> None:
    """In float64 the program is its own reference, so only the running error says what another batch may change."""
    first, second, depth, flavour, seed = kind
    activations = tuple(name for name in (first, second) if name)
    module = network(seed=seed, depth=depth, activations=activations, flavour=flavour, bias=True).double()
    capture(module)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("size", [2, 16])
@pytest.mark.usefixtures("evaluation")
def test_a_small_difference_is_still_a_difference(monkeypatch, dtype, size) -> None:
    """A thousand times what rounding explains is refused, in either dtype: the room for rounding is not everything."""

    class Differs(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = nn.Sequential(nn.Linear(size, 8), nn.ReLU(), nn.Linear(8, 3)).to(dtype)

        def forward(self, x: Tensor) -> Tensor:
            y = self.net(x)
            return y * (1.0 + 2e4 * torch.finfo(dtype).eps) if not torch.compiler.is_exporting() else y

    with pytest.raises(UnsupportedOperation, match=r"something else than torch\.export reads"):
        capture(Differs(), (size,))


class Squared(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(3, 3, bias=False).double(), nn.Linear(3, 3, bias=False).double()

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.first(x).abs())


def test_overflow_is_a_failure_of_numbers() -> None:
    module = Squared()
    with torch.no_grad():
        module.first.weight.fill_(1e300)
        module.second.weight.fill_(1e300)
    with pytest.raises(NumericalFailure, match="overflow"):
        capture(module)


def test_a_weight_that_is_not_finite_is_named() -> None:
    module = Squared()
    with torch.no_grad():
        module.second.weight[0, 0] = torch.inf
    with pytest.raises(NumericalFailure, match=r"second\.weight"):
        capture(module)


@pytest.mark.parametrize(
    "function",
    [
        torch.vmap(torch.relu),
        lambda x: x + torch.func.grad(torch.sum)(torch.ones(4)),
        lambda x: torch.func.vjp(torch.relu, x)[0],
        lambda x: torch.func.jvp(torch.relu, (x,), (x,))[0],
    ],
)
def test_transforms_of_functions_leave_torch_as_it_was(function) -> None:
    """Their operations push and pop torch's own levels; one that stays would break whatever runs after a refusal."""
    with pytest.raises(UnsupportedOperation, match=r"torch\.vmap, torch\.func"):
        capture(Function(function), (4,))
    assert torch._C._functorch.peek_interpreter_stack() is None
    assert torch.vmap(torch.randn_like, randomness="different")(torch.zeros(3, 2)).shape == (3, 2)
    torch.randn(2)
