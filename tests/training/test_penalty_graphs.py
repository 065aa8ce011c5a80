"""The penalty on any Graph: convolutions, BatchNorm, residuals, pooling, shared and parametrised weights."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrize

import lipbridge
from lipbridge import TrivialBoundPenalty
from lipbridge.errors import InvalidArgument
from lipbridge.vocabulary import NORMS


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one, self.norm = nn.Conv2d(4, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4)
        self.two = nn.Conv2d(4, 4, 3, padding=1, padding_mode="circular")

    def forward(self, x: Tensor) -> Tensor:
        return x + self.two(self.norm(self.one(x)).relu())


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1, bias=False),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        Residual(),
        nn.MaxPool2d(3, 2, 1),
        nn.AvgPool2d(2),
        nn.Flatten(),
        nn.Linear(16, 3, bias=False),
    )


SHAPE = (1, 8, 8)


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("form", ["linear", "log"])
def test_value_is_the_trivial_bound_smoothed(norm, form: str) -> None:
    module = network().eval()
    penalty = TrivialBoundPenalty(module, norm, form, input_shape=SHAPE, squarings=8)
    bound = lipbridge.trivial_bound(lipbridge.capture(module, SHAPE), norm).value
    value = float(penalty())
    value = math.exp(value) if form == "log" else value
    # smoothing raises each of four layers by some per cent, and the torus is larger than the zero-padded image
    assert bound * (1 - 1e-4) <= value <= bound * 2.0
    assert penalty.bound().value == bound
    with torch.no_grad():
        for tensor in (*module.parameters(), *module.buffers()):
            if tensor.is_floating_point():
                tensor.mul_(1.5).add_(0.1)
    live = lipbridge.trivial_bound(lipbridge.capture(module, SHAPE), norm).value
    assert penalty.bound().value == pytest.approx(live, rel=1e-12)


@pytest.mark.parametrize("norm", NORMS)
def test_gradient_is_that_of_a_difference(norm) -> None:
    """Along random directions of all parameters, BatchNorm's included, against refreshed values on both sides."""
    module = network().eval().double()
    penalty = TrivialBoundPenalty(module, norm, every=1, input_shape=SHAPE)
    penalty().backward()
    with torch.no_grad():
        for seed in range(3):
            generator = torch.Generator().manual_seed(seed)
            step = [torch.randn(p.shape, generator=generator, dtype=p.dtype) * 2e-4 for p in module.parameters()]
            slope = sum(
                float((p.grad * d).sum()) for p, d in zip(module.parameters(), step, strict=True) if p.grad is not None
            )
            values = []
            for sign in (1.0, -2.0, 1.0):
                for p, d in zip(module.parameters(), step, strict=True):
                    p.add_(d, alpha=sign)
                values.append(float(penalty()))
            assert (values[0] - values[1]) / 2 == pytest.approx(slope, rel=2e-2, abs=1e-4 * values[2])


@pytest.mark.parametrize("method", ["gram", "power"])
def test_training_presses_the_bound_down(method: str) -> None:
    module = network()
    every, rate, share = {"gram": (2, 0.05, 0.5), "power": (1, 0.005, 0.9)}[method]
    penalty = TrivialBoundPenalty(module, 2, "log", method=method, every=every, input_shape=SHAPE)  # type: ignore[arg-type]
    optimiser = torch.optim.SGD(module.parameters(), lr=rate)
    before = penalty.bound().value
    for _ in range(30):
        optimiser.zero_grad()
        penalty().backward()
        optimiser.step()
    assert penalty.bound().value < share * before


def test_shared_and_parametrised_weights() -> None:
    class Shared(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv1d(2, 2, 3, padding=1, bias=False)
            self.other = nn.Conv1d(2, 2, 3, padding=1, bias=False)
            self.other.weight = self.conv.weight
            self.last = parametrize.register_parametrization(nn.Conv1d(2, 2, 1, bias=False), "weight", Doubled())

        def forward(self, x: Tensor) -> Tensor:
            return self.last(F.conv1d(self.other(self.conv(x).abs()).abs(), self.conv.weight, padding=1).abs())

    module = Shared()
    penalty = TrivialBoundPenalty(module, 1, "log", input_shape=(2, 6))
    penalty().backward()
    # the weight counts three times, so the gradient along itself is three; the parametrised one counts once
    assert float((module.conv.weight.grad * module.conv.weight).sum()) == pytest.approx(3.0, rel=1e-5)
    original = module.last.parametrizations.weight.original  # type: ignore[union-attr]
    assert float((original.grad * original).sum()) == pytest.approx(1.0, rel=1e-5)
    assert not penalty.direct
    with pytest.raises(InvalidArgument):
        penalty.add_gradient(1.0)


class Doubled(nn.Module):
    def forward(self, W: Tensor) -> Tensor:
        return 2.0 * W


def test_adding_the_gradient_is_the_same_step() -> None:
    module = nn.Sequential(nn.Conv1d(1, 3, 3), nn.ReLU(), nn.Flatten(), nn.Linear(12, 2))
    other = copy.deepcopy(module)
    x = torch.randn(5, 1, 6)
    one, two = (TrivialBoundPenalty(m, input_shape=(1, 6)) for m in (module, other))
    (module(x).square().sum() + 0.3 * one()).backward()
    other(x).square().sum().backward()
    two.add_gradient(0.3)
    for p, q in zip(module.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(p.grad, q.grad, rtol=1e-5, atol=1e-6)


def test_layernorm_counts_its_scale() -> None:
    module = nn.Sequential(nn.Linear(4, 4, bias=False), nn.LayerNorm(4))
    penalty = TrivialBoundPenalty(module, "inf", input_shape=(4,))
    before = float(penalty())
    with torch.no_grad():
        module[1].weight.mul_(3.0)
    assert float(TrivialBoundPenalty(module, "inf", input_shape=(4,))()) == pytest.approx(3 * before, rel=1e-4)
    assert penalty.bound().value == pytest.approx(lipbridge.trivial_bound(module, "inf").value, rel=1e-12)


def test_a_factor_computed_on_the_way_is_computed_anew() -> None:
    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale, self.register = nn.Parameter(torch.zeros(3)), nn.Linear(3, 3)
            self.register_buffer("mean", torch.randn(3))

        def forward(self, x: Tensor) -> Tensor:
            return self.register((x - self.mean) / (1.0 + self.mean.abs())) * self.scale.exp()

    module = Scaled()
    penalty = TrivialBoundPenalty(module)
    with torch.no_grad():
        module.scale.uniform_(-1.0, 1.0)
        module.mean.normal_()
    assert penalty.bound().value == lipbridge.trivial_bound(module).value
    penalty().backward()
    assert module.scale.grad is not None
    assert bool((module.scale.grad != 0).any())


def test_a_computed_matrix_is_turned_as_in_the_module() -> None:
    class Doubled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Parameter(torch.randn(3, 4)), nn.Parameter(torch.randn(2, 4))

        def forward(self, x: Tensor) -> Tensor:
            return F.linear((x @ (2.0 * self.first)).relu(), self.second.exp())

    module = Doubled()
    penalty = TrivialBoundPenalty(module, "inf", input_shape=(3,))
    with torch.no_grad():
        module.first.normal_()
        module.second.normal_()
    assert penalty.bound().value == pytest.approx(
        lipbridge.trivial_bound(module, "inf", input_shape=(3,)).value, rel=1e-12
    )


@pytest.mark.parametrize("norm", NORMS)
def test_a_whole_training_step_on_the_meta_device(norm) -> None:
    """No value is looked at: forward, penalty, backward and optimiser run where there are no numbers."""
    with torch.device("meta"):
        module = network()
        x, y = torch.randn(6, *SHAPE), torch.zeros(6, dtype=torch.long)
    penalty = TrivialBoundPenalty(module, norm, input_shape=SHAPE)
    optimiser = torch.optim.Adam(module.parameters())
    loss = F.cross_entropy(module(x), y) + 0.1 * penalty()
    loss.backward()
    optimiser.step()
    assert loss.is_meta
    assert all(p.grad is not None and p.grad.is_meta for n, p in module.named_parameters() if n.endswith("weight"))
