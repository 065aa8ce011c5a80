"""Capture of what moves coordinates: the Graph gives the module's values to the last bit, and makes nothing in vain."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import lipbridge
from lipbridge.errors import UnsupportedOperation
from lipbridge.graph.nodes import ConvTranspose, Gather
from lipbridge.vocabulary import NORMS, exponent
from tests.support.captured import Lambda, kinds, same


def index(*rows: Any) -> Tensor:
    return torch.tensor(list(rows))


def assigned(x: Tensor) -> Tensor:
    y = x.clone()
    y[:, 0] = 2.0
    y[:, 1:3] = x[:, 2:]
    return y


Function = Callable[[Tensor], Tensor]
MOVES: dict[str, tuple[Function | nn.Module, tuple[int, ...]]] = {
    "flip": (lambda x: x.flip(-1), (2, 3, 4)),
    "flip of two axes": (lambda x: torch.flip(x, (1, 2)), (2, 3, 4)),
    "roll": (lambda x: x.roll((2, -1), (-1, 1)), (2, 5)),
    "rot90": (lambda x: x.rot90(1, (2, 3)), (2, 3, 4)),
    "index_select": (lambda x: x.index_select(1, index(2, 0, 0)), (3, 2)),
    "index": (lambda x: x[:, [2, 0]], (3, 2)),
    "index behind": (lambda x: x[:, :, index(1, 1)], (3, 2)),
    "two indices": (lambda x: x[:, index(0, 2), index(1, 0)], (3, 2)),
    "gather": (lambda x: x.gather(1, index([0, 2, 1]).expand(len(x), 3)), (3,)),
    "take_along_dim": (lambda x: x.take_along_dim(index([2, 2, 1]), 1), (3,)),
    "expand": (lambda x: x.unsqueeze(2).expand(-1, -1, 3), (4,)),
    "expand by the batch": (lambda x: x[:, None].expand(x.shape[0], 2, 4), (4,)),
    "broadcast_to": (lambda x: torch.broadcast_to(x[:, None], (x.shape[0], 2, 4)), (4,)),
    "repeat": (lambda x: x.repeat(1, 2, 1), (2, 3)),
    "tile": (lambda x: x.tile(2), (4,)),
    "repeat_interleave": (lambda x: x.repeat_interleave(2, 1), (4,)),
    "patches": (nn.Unfold((2, 3), 2, 1, 2), (2, 5, 6)),
    "windows": (lambda x: x.unfold(2, 2, 1), (2, 5)),
    "pixel_shuffle": (nn.PixelShuffle(2), (8, 2, 3)),
    "pixel_unshuffle": (nn.PixelUnshuffle(2), (2, 4, 6)),
    "channel_shuffle": (nn.ChannelShuffle(2), (4, 2, 2)),
    "tril": (lambda x: x.tril(), (3, 4)),
    "triu": (lambda x: torch.triu(x, 1), (3, 4)),
    "diagonal": (lambda x: x.diagonal(dim1=1, dim2=2), (3, 3)),
    "diag_embed": (torch.diag_embed, (3,)),
    "nearest 1": (nn.Upsample(scale_factor=2), (2, 3)),
    "nearest 2": (nn.Upsample(scale_factor=2.5), (2, 3, 4)),
    "nearest 3": (nn.Upsample(size=(3, 5, 2)), (1, 2, 2, 3)),
    "nearest exact": (nn.Upsample(size=(5, 3), mode="nearest-exact"), (1, 2, 4)),
    "down": (lambda x: F.interpolate(x, scale_factor=0.5), (1, 4, 4)),
    "crop": (nn.ZeroPad2d((-1, 1, -1, 0)), (2, 3, 4)),
    "crop and reflect": (lambda x: F.pad(x, (-1, 2), mode="reflect"), (2, 5)),
    "crop and wrap": (lambda x: F.pad(x, (-1, 2), mode="circular"), (1, 5)),
    "channels of zeros": (lambda x: F.pad(x, (0, 0, 0, 0, 1, 2)), (2, 2, 3)),
    "vector beside zeros": (lambda x: F.pad(x, (1, 2)), (3,)),
    "padding with a number": (nn.ConstantPad1d((1, 2), 2.5), (2, 3)),
    "masked_fill": (lambda x: x.masked_fill(torch.tensor([True, False, True]), 7.0), (3,)),
    "index_fill": (lambda x: x.index_fill(1, index(0, 2), 3.0), (4,)),
    "assignment": (assigned, (4,)),
    "slice_scatter": (lambda x: torch.slice_scatter(x, x[:, 2:], 1, 0, 2), (4,)),
}
#: What needs no Gather.
PLAIN: dict[str, tuple[Function, tuple[int, ...], list[str]]] = {
    "nothing": (lambda x: x.flip(1).flip(1), (3, 2), []),
    "roll around": (lambda x: x.roll(3, 1), (3, 2), []),
    "expand to itself": (lambda x: x.expand(-1, 4), (4,), []),
    "index of a row": (lambda x: x[:, torch.arange(6).reshape(2, 3)], (6,), ["Reshape"]),
    "mT": (lambda x: x.mT, (2, 3), ["Reshape"]),
    "movedim": (lambda x: x.movedim(1, 3), (2, 3, 4), ["Reshape"]),
    "swapaxes": (lambda x: x.swapaxes(1, 2), (2, 3), ["Reshape"]),
    "one gather": (lambda x: x.flip(1).roll(1, 1).reshape(-1, 2, 3).flip(2), (6,), ["Gather"]),
}


@pytest.mark.parametrize("name", MOVES)
def test_copies_are_exact(name: str) -> None:
    function, shape = MOVES[name]
    module = function if isinstance(function, nn.Module) else Lambda(function)
    graph = same(module, shape)
    assert any(isinstance(node, Gather) for node in graph)
    n = torch.Size(shape).numel()
    unit = torch.eye(n, dtype=torch.float64).reshape(n, *shape)
    matrix = (graph(unit) - graph(torch.zeros_like(unit[:1]))).reshape(n, -1).T
    for p in NORMS:
        exact = float(torch.linalg.matrix_norm(matrix, exponent(p)))
        bound = lipbridge.trivial_bound(graph, p).value
        assert exact <= bound * (1.0 + 1e-12)
        if name not in ("assignment", "slice_scatter"):
            assert bound == pytest.approx(exact, rel=1e-12)


@pytest.mark.parametrize("name", PLAIN)
def test_nothing_is_made_in_vain(name: str) -> None:
    function, shape, expected = PLAIN[name]
    assert kinds(same(Lambda(function), shape)) == expected


@pytest.mark.parametrize(
    ("function", "shape"),
    [
        (lambda x: x.flip(0), (3,)),
        (lambda x: x.roll(1, 0), (3,)),
        (lambda x: x.roll(1), (2, 3)),
        (lambda x: x.rot90(2, (0, 1)), (3,)),
        (lambda x: x.repeat(2, 1), (3,)),
        (lambda x: x.diagonal(), (3,)),
        (lambda x: x.index_select(0, index(0)), (3,)),
        (lambda x: x.repeat_interleave(2, 0), (3,)),
    ],
)
def test_what_works_along_the_batch_is_refused(function: Function, shape: tuple[int, ...]) -> None:
    with pytest.raises(UnsupportedOperation, match="batch"):
        lipbridge.capture(Lambda(function), shape)


def test_infinite_numbers_are_refused() -> None:
    mask = torch.tensor([True, False, True])
    with pytest.raises(UnsupportedOperation, match="infinite"):
        lipbridge.capture(Lambda(lambda x: x.masked_fill(mask, -torch.inf)), (3,))


@pytest.mark.parametrize(
    ("function", "shape"),
    [
        (lambda x: x + x.relu()[:, :1], (4,)),
        (lambda x: x - x.mean(1, keepdim=True), (4, 2)),
        (lambda x: x[:, :, :1] * torch.tensor([1.0, -2.0, 3.0]) + x[:, :1], (2, 3)),
        (lambda x: x.amax((2, 3), keepdim=True) - 0.5 * x, (2, 2, 3)),
    ],
)
def test_what_is_repeated_in_a_sum_or_a_product(function: Function, shape: tuple[int, ...]) -> None:
    graph = lipbridge.capture(Lambda(function), shape)
    x = torch.randn(20, *shape, dtype=torch.float64)
    torch.testing.assert_close(graph(x), function(x), rtol=1e-12, atol=1e-12)
    for p in NORMS:
        bound = lipbridge.trivial_bound(graph, p).value
        for point in x:
            J = torch.func.jacrev(lambda y: function(y[None])[0].flatten())(point).reshape(-1, point.numel())
            assert float(torch.linalg.matrix_norm(J, exponent(p))) <= bound * (1.0 + 1e-12)


@pytest.mark.parametrize("rank", [1, 2, 3])
def test_transposed_convolutions(rank: int) -> None:
    kind = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)[rank - 1]
    module = kind(4, 6, 3, stride=3, padding=1, output_padding=2, groups=2, dilation=2)
    graph = lipbridge.capture(module, (4, *(3,) * rank))
    assert kinds(graph) == ["ConvTranspose"]
    node = graph.nodes[1]
    assert isinstance(node, ConvTranspose)
    assert node.parameter == "weight"
    x = torch.randn(2, 4, *(3,) * rank, dtype=torch.float64)
    torch.testing.assert_close(graph(x), module.double()(x), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("norm", NORMS)
def test_the_penalty_reads_transposed_convolutions_live(norm) -> None:
    module = nn.Sequential(
        nn.ConvTranspose2d(2, 4, 3, 2, 1, 1, groups=2), nn.BatchNorm2d(4), nn.ReLU(), nn.ConvTranspose2d(4, 1, (2, 3))
    )
    module.eval()
    penalty = lipbridge.TrivialBoundPenalty(module, norm, input_shape=(2, 3, 3))
    before = penalty()
    before.backward()
    for layer in (module[0], module[3]):
        assert float(layer.weight.grad.abs().sum()) > 0.0
    with torch.no_grad():
        module[3].weight.mul_(3.0)
    assert penalty.bound().value == lipbridge.trivial_bound(module, norm, input_shape=(2, 3, 3)).value
    penalty.calls = 0
    assert float(penalty()) == pytest.approx(3.0 * float(before), rel=1e-4)
    assert float(penalty()) >= penalty.bound().value * (1.0 - 1e-5)


def test_a_transposed_convolution_of_which_only_the_bias_is_left_is_constant() -> None:
    module = nn.ConvTranspose1d(1, 1, 1, stride=3, padding=1, output_padding=2)
    assert lipbridge.trivial_bound(module, input_shape=(1, 1)).value == 0.0


class Rows(nn.Module):
    """A layer, and a function that may work along the batch."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.layer, self.function = nn.Linear(4, 4), function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self.layer(x))


FAR_ROWS: dict[str, Callable[[Tensor], Tensor]] = {
    "below a far diagonal": lambda x: x.tril(-7),
    "above a far diagonal": lambda x: x.triu(-50),
    "a roll by 42": lambda x: x.roll(42, 0),
    "a roll by 42 from behind": lambda x: x.roll(42, -2),
    "a roll of all numbers": lambda x: x.roll(168),
    "two rolls": lambda x: x.roll((42, 1), (0, 1)),
    "four quarter turns": lambda x: torch.rot90(x, 4, (0, 1)),
    "a far row filled": lambda x: x.index_fill(0, torch.tensor([40]), 0.0),
    "a far diagonal": lambda x: x.diagonal_scatter(torch.zeros(1), -50),
    "upside down": lambda x: torch.flipud(x),
}


@pytest.mark.parametrize("name", FAR_ROWS)
def test_what_only_large_batches_show_is_refused(name: str) -> None:
    with pytest.raises(UnsupportedOperation, match=r"It works along the batch\."):
        lipbridge.capture(Rows(FAR_ROWS[name]))


def test_the_check_takes_a_large_batch_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lipbridge.frontend.aten.moves._names_batch", lambda reader, a: False)
    for name in ("below a far diagonal", "a roll by 42"):
        with pytest.raises(UnsupportedOperation):
            lipbridge.capture(Rows(FAR_ROWS[name]))
