"""Bounds of channel chains on networks whose constant is known: non-negative weights, where every unit can be active.

At a point where all units are active the Jacobian is the product of the layers' matrices, and for non-negative weights
its norm is reached. Every option of a convolution is drawn, and padding modes are mixed.
"""

from __future__ import annotations

import math
import random
import time
from functools import lru_cache

import pytest
import torch
from torch import nn

import lipbridge
from lipbridge.channels import best_factors, channel_chain, ones, proved_product
from lipbridge.graph import Graph
from lipbridge.verifiers.channel_multipliers import bound_by_channels
from lipbridge.verifiers.channel_runs import prove_run, runs_of
from tests.support.coarse import coarse, coarse_arithmetic
from tests.verifiers.test_channel_runs import feasible_logs

torch.set_num_threads(1)
MODES = ("zeros", "circular", "reflect", "replicate")


class Padded(nn.Module):
    """A convolution with padding of its own before and after."""

    def __init__(self, before: int, after: int, mode: str, conv: nn.Conv1d) -> None:
        super().__init__()
        self.pad, self.mode, self.conv = (before, after), mode, conv

    def forward(self, x):
        mode = "constant" if self.mode == "zeros" else self.mode
        return self.conv(nn.functional.pad(x, self.pad, mode=mode))


def positive_network(seed: int, *, modes=MODES, activation=nn.ReLU, length: int = 7) -> nn.Sequential:
    """Two or three convolutions with any options, BatchNorm and average pooling between; weights above zero."""
    chosen = random.Random(seed)
    layers: list[nn.Module] = []
    channels, mode = chosen.choice((1, 2)), chosen.choice(modes)
    first = channels
    for _ in range(chosen.choice((2, 3))):
        mode = chosen.choice((mode, mode, chosen.choice(modes)))
        out = chosen.choice((1, 2, 2))
        groups = chosen.choice([g for g in (1, 2) if channels % g == 0 and out % g == 0])
        kernel, dilation, stride = chosen.choice((1, 2, 3)), chosen.choice((1, 1, 2)), chosen.choice((1, 1, 1, 2))
        reach = (kernel - 1) * dilation
        before, after = chosen.choice(((reach, 0), (0, reach), (reach // 2, reach - reach // 2), (reach, reach)))
        if length + before + after - reach < 2 or max(before, after) >= length:
            before, after = 0, 0
        if length + before + after - reach < 1:
            kernel, reach = 1, 0
        if layers:
            layers.append(activation())
        layers.append(Padded(before, after, mode, nn.Conv1d(channels, out, kernel, stride, 0, dilation, groups)))
        length = (length + before + after - reach - 1) // stride + 1
        channels = out
        if chosen.random() < 0.3:
            layers.append(nn.BatchNorm1d(channels))
        if chosen.random() < 0.3 and length >= 2:
            layers.append(nn.AvgPool1d(2, 1))
            length -= 1
    net = nn.Sequential(*layers).double().eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.copy_(coarse(torch.rand(parameter.shape, generator=generator, dtype=torch.float64) + 0.1))
    net.input_shape = (first, 7)
    return net


@lru_cache(maxsize=64)
def captured(seed: int, modes: tuple[str, ...] = MODES) -> Graph:
    net = positive_network(seed, modes=modes)
    return lipbridge.capture(net, net.input_shape)


def product_of(graph: Graph) -> float:
    """The norm of the Jacobian where every unit is active; ``graph`` has non-negative weights and biases."""
    x = torch.full((1, *graph.input_shape), 3.0, dtype=torch.float64)
    n = x[0].numel()
    basis = torch.eye(n, dtype=torch.float64).reshape(n, *graph.input_shape)
    J = graph.tangent(x.expand(n, *graph.input_shape), basis)[1].flatten(1)
    return float(torch.linalg.matrix_norm(J, 2))


def later(seconds: float = 3.0) -> float:
    return time.perf_counter() + seconds


def test_no_option_of_a_layer_is_forgotten():
    runs = tight = 0
    for seed in range(24):
        graph = captured(seed)
        chain = channel_chain(graph)
        true = product_of(graph) * (1.0 - 1e-12)
        found = bound_by_channels(lipbridge.Problem(graph), later(0.3))
        late = bound_by_channels(lipbridge.Problem(graph), later(-1.0))
        runs += len(runs_of(chain))
        tight += found.value <= 1.05 * true
        assert true <= found.value <= late.value * (1 + 1e-9), seed
        assert true <= min(proved_product(chain, best_factors(chain)), proved_product(chain, ones(chain))), seed
    assert runs >= 3
    assert tight >= 2


@pytest.mark.parametrize("arithmetic", [("zero", "low"), ("away", "high"), ("zero", "mixed")], ids=str)
def test_runs_and_products_hold_in_coarse_arithmetic(arithmetic):
    proofs = 0
    for seed in (0, 4, 5, 8):
        graph = captured(seed, MODES[:2])
        chain = channel_chain(graph)
        with coarse_arithmetic(*arithmetic):
            product = proved_product(chain, [coarse(d) for d in best_factors(chain)])
        assert product >= product_of(graph) * (1.0 - 1e-12), seed
        for run in runs_of(chain):
            if run.first or run.last + 1 < len(chain.layers):
                continue
            multipliers = [coarse(logs.exp()) for logs in feasible_logs(run, seed)]
            with coarse_arithmetic(*arithmetic):
                value = prove_run(run, multipliers, None, None)
            assert value >= product_of(graph) * (1.0 - 1e-12), seed
            proofs += 1
    assert proofs >= 2


@pytest.mark.parametrize("mode", ["zeros", "circular"])
def test_a_line_of_single_channels_is_bounded_exactly(mode):
    """Circular: the sums of the taps, which a constant input reaches; no route to them has a factor to spare."""
    for seed in range(2):
        generator = torch.Generator().manual_seed(seed)
        net = nn.Sequential(
            nn.Conv1d(1, 1, 3, padding=1, padding_mode=mode, bias=False), nn.ReLU(),
            nn.Conv1d(1, 1, 3, padding=1, padding_mode=mode, bias=False),
        ).double()  # fmt: skip
        with torch.no_grad():
            for parameter in net.parameters():
                parameter.copy_(coarse(torch.rand(parameter.shape, generator=generator, dtype=torch.float64)))
        graph = lipbridge.capture(net, (1, 8))
        sums = math.prod(float(parameter.detach().sum()) for parameter in net.parameters())
        chain = channel_chain(graph)
        (run,) = runs_of(chain)
        for arithmetic in (("zero", "low"), ("away", "high")):
            with coarse_arithmetic(*arithmetic):
                value = proved_product(chain, ones(chain))
            assert value >= product_of(graph)
            assert mode == "zeros" or sums <= value <= sums * (1 + 1e-3)
        value = bound_by_channels(lipbridge.Problem(graph), later()).value
        assert product_of(graph) * (1 - 1e-12) <= value <= sums * (1 + 1e-9)
        assert (run.first, run.last) == (0, 1)


@pytest.mark.parametrize(
    ("between", "constant"),
    [
        (nn.MaxPool1d(3, 1, 1), math.sqrt(3.0)),
        (nn.MaxPool1d(2, 1), math.sqrt(2.0)),
        (nn.Sigmoid(), 0.25),
        (nn.ELU(2.0), 2.0),
        (nn.LeakyReLU(-3.0), 3.0),
        (nn.Softplus(3.0), 1.0),
    ],
    ids=repr,
)
def test_what_stands_between_two_layers_counts(between, constant):
    """Unit kernels: the constant is that of the middle, by a spike (pooling) or a steep point."""
    net = nn.Sequential(nn.Conv1d(1, 1, 1, bias=False), between, nn.Conv1d(1, 1, 1, bias=False)).double()
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.fill_(1.0)
    graph = lipbridge.capture(net, (1, 6))
    chain = channel_chain(graph)
    for value in (proved_product(chain, ones(chain)), bound_by_channels(lipbridge.Problem(graph), later()).value):
        assert constant <= value <= constant * (1 + 1e-6)
