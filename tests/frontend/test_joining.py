"""Joins of a layer's values with constants, and of parts of length zero."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import lipbridge
from lipbridge.errors import UnsupportedOperation
from tests.support.captured import Lambda, agrees

C = torch.tensor([3.0, -1.0, 0.5])
Function = Callable[[Tensor], Tensor]
FORMS: dict[str, tuple[Function, tuple[int, ...]]] = {
    "ones": (lambda x: torch.cat([x, torch.ones(x.shape[0], 2)], 1), (4,)),
    "expanded": (lambda x: torch.cat([C.expand(x.shape[0], 3), x], 1), (4,)),
    "repeated": (lambda x: torch.cat([x, C[None].repeat(x.shape[0], 1)], 1), (4,)),
    "zeros_like": (lambda x: torch.cat([x, torch.zeros_like(x)], -1), (4,)),
    "between": (lambda x: torch.cat([x.relu(), torch.ones_like(x), x], 1), (3, 2)),
    "channels": (lambda x: torch.cat([x, torch.full_like(x[:, :1], 2.0)], 1), (2, 3, 3)),
    "rows": (lambda x: torch.cat([x, torch.ones_like(x[:, :, :1])], 2), (2, 3, 2)),
    "stack": (lambda x: torch.stack([x, torch.zeros_like(x)], 1), (4,)),
    "stack at the end": (lambda x: torch.stack([torch.ones(4).expand_as(x), x], 2), (4,)),
    "hstack": (lambda x: torch.hstack([x, x.new_ones(x.shape[0], 1)]), (4,)),
    "hstack of layers": (lambda x: torch.hstack([x.sin(), x]), (4, 2)),
    "column_stack": (lambda x: torch.column_stack([x, x.sum(1), x.relu()]), (4,)),
    "dstack": (lambda x: torch.dstack([x, torch.zeros_like(x), x.relu()]), (4,)),
    "an old empty tensor": (lambda x: torch.cat([torch.empty(0), x], 1), (4,)),
    "an empty part": (lambda x: torch.cat(torch.split(x, [2, 0, 2], 1)[::-1], 1), (4,)),
    "an empty part of a curve": (lambda x: torch.cat([x.sin(), torch.split(x, [4, 0], 1)[1]], 1), (4,)),
}


@pytest.mark.parametrize("name", FORMS)
def test_forms(name: str) -> None:
    agrees(Lambda(FORMS[name][0]), FORMS[name][1])


@pytest.mark.parametrize("name", ["ones", "expanded", "channels", "rows", "stack", "stack at the end", "hstack"])
def test_constants_do_not_count(name: str) -> None:
    """A shift has no part in any bound."""
    function, shape = FORMS[name]
    for norm in (1, 2, "inf"):
        assert lipbridge.trivial_bound(Lambda(function), norm, input_shape=shape).value == 1.0


@pytest.mark.parametrize(
    ("function", "words"),
    [
        (lambda x: torch.split(x, [4, 0], 1)[1], "empty"),
        (lambda x: x[:, 4:], "empty"),
        (lambda x: torch.cat([x, torch.ones(1, 4)], 0), "batch"),
        (lambda x: torch.vstack([x, torch.ones(1, 4)]), "batch"),
        (lambda x: torch.cat([x, torch.arange(x.shape[0])[:, None]], 1), "batch"),
        (lambda x: torch.cat([x, torch.rand(x.shape[0], 1)], 1), "batch"),
    ],
)
def test_others_are_refused(function: Function, words: str) -> None:
    with pytest.raises(UnsupportedOperation, match=words):
        lipbridge.capture(Lambda(function), (4,))


class Token(nn.Module):
    """A learnable constant beside a layer's values, as class tokens are."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.token, self.last = nn.Linear(4, 4), nn.Parameter(torch.randn(1, 2)), nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(torch.cat([self.token.expand(x.shape[0], -1), self.first(x)], 1))


def test_a_learnable_constant_leaves_the_penalty_live() -> None:
    module = Token()
    penalty = lipbridge.TrivialBoundPenalty(module)
    with torch.no_grad():
        module.token.mul_(5.0)
        module.first.weight.mul_(2.0)
    penalty().backward()
    assert float(module.first.weight.grad.abs().sum()) > 0.0
    assert penalty.bound().value == pytest.approx(lipbridge.trivial_bound(module).value, rel=1e-6)


@pytest.mark.parametrize("free", [False, True])
@pytest.mark.parametrize("dynamo", [True, False], ids=["dynamo", "traced"])
@pytest.mark.parametrize("name", ["ones", "expanded", "zeros_like", "between", "channels", "stack"])
def test_through_onnx(name: str, dynamo: bool, free: bool, tmp_path: Path) -> None:
    pytest.importorskip("onnx", reason="onnx is not installed")
    from lipbridge_adapters.onnx.reading import read_onnx
    from tests.support.onnx_files import torch_file

    function, shape = FORMS[name]
    module = Lambda(function)
    graph = read_onnx(torch_file(module, shape, tmp_path / "m.onnx", 18, dynamo=dynamo, free=free))
    x = torch.randn(5, *shape)
    torch.testing.assert_close(graph(x.double()).float(), module(x), rtol=1e-5, atol=1e-6)
    for norm in (1, 2, "inf"):
        expected = lipbridge.trivial_bound(module, norm, input_shape=shape).value
        assert lipbridge.trivial_bound(graph, norm).value == pytest.approx(expected, rel=1e-6)


class Ahead(nn.Module):
    """Branches that stand on a new axis before the batch."""

    def __init__(self, join: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.a, self.b, self.join = nn.Linear(3, 4), nn.Linear(3, 4), join

    def forward(self, x: Tensor) -> Tensor:
        return self.join(self.a(x).relu(), self.b(x))


OVER_BRANCHES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "mean": lambda a, b: torch.stack([a, b]).mean(0),
    "mean from behind": lambda a, b: torch.stack([a, b]).mean(-3),
    "sum": lambda a, b: torch.stack([a, b], dim=0).sum(dim=0),
    "amax": lambda a, b: torch.stack([a, b], dim=-3).amax(0),
    "max": lambda a, b: torch.stack([a, b, a - b]).max(0).values,
    "min": lambda a, b: torch.stack([a, b]).min(dim=0)[0],
    "twice": lambda a, b: (lambda t: t.mean(0) + t.sum(0))(torch.stack([a, b])),
}

ALONG_THE_BATCH: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "over the batch": lambda a, b: torch.stack([a, b]).sum(1),
    "over the batch too": lambda a, b: torch.stack([a, b]).sum((0, 1)),
    "over all": lambda a, b: torch.stack([a, b]).mean(),
    "first over features": lambda a, b: torch.stack([a, b]).sum(2).sum(0),
    "softmax between": lambda a, b: torch.stack([a, b]).softmax(0).sum(0),
    "one of them": lambda a, b: torch.stack([a, b])[0],
}


@pytest.mark.parametrize("name", OVER_BRANCHES)
def test_averages_and_extremes_over_stacked_branches(name: str) -> None:
    torch.manual_seed(3)
    module = Ahead(OVER_BRANCHES[name]).double()
    graph = lipbridge.capture(module, (3,))
    x = torch.randn(5, 3, dtype=torch.float64)
    torch.testing.assert_close(graph(x), module(x).detach())
    assert lipbridge.TrivialBoundPenalty(module).bound().value == lipbridge.trivial_bound(graph).value


@pytest.mark.parametrize("name", ALONG_THE_BATCH)
def test_other_readings_of_stacked_branches_are_refused(name: str) -> None:
    with pytest.raises(UnsupportedOperation, match="batch"):
        lipbridge.capture(Ahead(ALONG_THE_BATCH[name]), (3,))
