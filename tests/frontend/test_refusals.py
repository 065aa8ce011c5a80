"""What a Graph cannot hold is refused in words, also where a few random inputs would not show it."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import lipbridge
from lipbridge.errors import UnsupportedOperation

MATRIX = torch.arange(6.0).reshape(3, 2)


class Learned(nn.Module):
    """A function of the input and a parameter."""

    def __init__(self, function: Callable[[Tensor, Tensor], Tensor], value: float = 1e-3) -> None:
        super().__init__()
        self.function, self.p = function, nn.Parameter(torch.tensor(value))

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x, self.p)


CASES: list[tuple[Callable[[Tensor], Tensor] | nn.Module, tuple[int, ...], str]] = [
    # jumps, and slopes without limit
    (nn.Softplus(1, 1), (3,), "jumps"),
    (nn.Softplus(3, 19.5), (3,), "jumps"),
    (lambda x: F.softplus(x, 1.0, 0), (3,), "jumps"),
    (lambda x: torch.div(x, 3.0, rounding_mode="floor"), (3,), "jumps"),
    (lambda x: torch.div(x, 1e9, rounding_mode="trunc") + x, (3,), "jumps|changes|reads|other"),
    (lambda x: x.to(torch.int32).to(x.dtype) + x, (3,), "cast"),
    (lambda x: torch.where(x > 30.0, x + 1.0, x), (3,), "jumps"),
    (lambda x: torch.where(x < -1e3, 0.0 * x, x), (3,), "jumps"),
    (lambda x: torch.celu(x, -1e3), (3,), "exponentially"),
    (lambda x: x / 0.0, (3,), "zero|finite"),
    (lambda x: x * math.inf, (3,), "factor"),
    (lambda x: torch.clamp(x, 2.0, 1.0), (3,), "limit"),
    (lambda x: torch.maximum(x, torch.tensor([1.0, -math.inf, 0.0])), (3,), "finite"),
    (lambda x: F.pad(x, (0, 1), value=-math.inf), (2, 4), "infinite"),
    (lambda x: F.max_pool1d(F.pad(x, (0, 1), value=-math.inf), 2), (2, 5), "infinite"),
    (lambda x: F.max_pool1d(F.pad(x, (2, 2), value=-math.inf), 3), (2, 5), "infinite|changes|computes|overflow"),
    (lambda x: F.layer_norm(x, (3,), eps=0.0), (3,), "epsilon"),
    (lambda x: F.group_norm(x, 1, eps=0.0), (2, 3), "epsilon"),
    (lambda x: F.rms_norm(x, (3,), eps=0.0), (3,), "epsilon"),
    (lambda x: x / x.square().mean(1, keepdim=True).sqrt(), (3,), "epsilon"),
    # random numbers, statistics of the batch
    (lambda x: F.dropout(x, 0.001, training=True), (3,), "eval"),
    (lambda x: F.alpha_dropout(x, 1e-9, training=True), (3,), "eval"),
    (lambda x: F.batch_norm(x, torch.zeros(3), torch.ones(3), training=True), (3,), "batch|statistics"),
    (nn.BatchNorm1d(3, track_running_stats=False), (3,), "batch"),
    # steps of a normalisation that are no normalisation
    (lambda x: x / (x.square().mean(1, keepdim=True) + 1e-3 + 1e-3).sqrt(), (3,), "twice"),
    (lambda x: x.relu() / (x.square().mean(1, keepdim=True) + 1e-3).sqrt(), (3,), "another value"),
    (lambda x: x * (x.square().mean(1, keepdim=True) + 1e-3).pow(0.25), (3,), "slopes|square|Lipschitz"),
    (lambda x: x * (x.square().mean(1, keepdim=True) + 1e-3).sqrt(), (3,), "product|square|Lipschitz"),
    (Learned(lambda x, p: x / (x.square().mean(1, keepdim=True) + p).sqrt()), (3,), "epsilon"),
    # the batch: what a few inputs may not show
    (lambda x: x.permute(1, 0), (3,), "batch"),
    (lambda x: x[::2], (3,), "batch"),
    (lambda x: x[1:], (3,), "batch"),
    (lambda x: x[0:1000], (3,), "batch"),
    (lambda x: x.roll(42, 0), (3,), "works along the batch"),
    (lambda x: x.roll(42, -2), (3,), "works along the batch"),
    (lambda x: x.roll(300), (3,), "works along the batch"),
    (lambda x: x.tril(500), (3,), "works along the batch"),
    (lambda x: x.triu(-500), (3,), "works along the batch"),
    (lambda x: x.flip(-2), (3,), "works along the batch"),
    (lambda x: x.cumsum(0), (3,), "batch"),
    (lambda x: x.softmax(-2), (3,), "batch"),
    (lambda x: x.sort(0).values, (3,), "batch"),
    (lambda x: x.amax(0, keepdim=True) + x, (3,), "batch"),
    (lambda x: x.sum() + x, (3,), "batch"),
    (lambda x: x.mean(-2, keepdim=True) + x, (3,), "batch|squares?"),
    (lambda x: torch.einsum("bi,cj->bi", x, torch.ones(7, 2)[:1]) + torch.ones(2, 1), (3,), "batch"),
    (lambda x: torch.cat([x, torch.ones(2, 3)], 1), (3,), "batch|Sizes|export|expand"),
    (lambda x: F.linear(x, torch.ones(2, 3), torch.ones(5, 2)), (4, 3), "bias|batch|rows|export|size"),
    # forms that are not read
    (lambda x: torch.addmm(torch.ones(2), x, MATRIX, beta=2.0), (3,), "addmm"),
    (lambda x: torch.addmm(torch.ones(2), x, MATRIX, alpha=0.5), (3,), "addmm"),
    (lambda x: torch.baddbmm(torch.ones(1, 1, 2), x, MATRIX[None], beta=3.0), (1, 3), "batch|factors|export|Expected"),
    (lambda x: x.diff(n=2), (5,), "first differences"),
    (lambda x: x.diff(prepend=x[:, :1]), (5,), "first differences"),
    (lambda x: x.topk(2, sorted=False).values, (5,), "order"),
]


@pytest.mark.parametrize(("function", "shape", "words"), CASES, ids=[f"{i}" for i in range(len(CASES))])
def test_it_is_refused(function: Callable[[Tensor], Tensor] | nn.Module, shape: tuple[int, ...], words: str) -> None:
    class Module(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return function(x)

    module = function if isinstance(function, nn.Module) else Module()
    with pytest.raises(UnsupportedOperation, match=words) as error:
        lipbridge.capture(module.eval(), shape)
    assert "found by the check" not in str(error.value)
    assert "\n" not in str(error.value)


#: What a program for a batch of one, which torch exported, may say of that one; it is read for one input of any batch.
ALONE: dict[str, tuple[Callable[[Tensor], Tensor], tuple[int, ...], str]] = {
    "sum": (lambda x: x.sum((), keepdim=True), (1,), "works along the batch"),
    "mean": (lambda x: x.mean(0, keepdim=True), (3,), "mixes the inputs of a batch"),
    "transpose": (lambda x: x.transpose(0, 1), (1, 3), "moves the axis of the batch"),
}


@pytest.mark.parametrize("name", ALONE)
def test_a_program_of_one_input_does_not_hide_what_works_along_the_batch(name: str) -> None:
    function, shape, words = ALONE[name]
    module = nn.Module()
    module.forward = function  # type: ignore[method-assign]
    with pytest.raises(UnsupportedOperation, match=words):
        lipbridge.capture(torch.export.export(module, (torch.zeros(1, *shape),)), shape)


@pytest.mark.parametrize(("exponent", "divides"), [(0.25, True), (-1.0, False)])
def test_other_powers_of_a_mean_square_are_no_root(exponent: float, divides: bool) -> None:
    class Powers(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            power = (x.square().mean(1, keepdim=True) + 1e-3) ** exponent
            return x / power if divides else x * power

    with pytest.raises(UnsupportedOperation, match="slopes grow without limit"):
        lipbridge.capture(Powers(), (3,))
