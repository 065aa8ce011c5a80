"""Bounds of channel chains on networks whose constant is known: non-negative weights, where every unit can be active.

At a point where all units are active the Jacobian is the product of the layers' matrices, and for non-negative weights
its norm is reached. Every option of a convolution is drawn, and padding modes are mixed.
"""

from __future__ import annotations

import itertools
import math
import random
import time
from dataclasses import replace
from fractions import Fraction
from functools import lru_cache

import pytest
import torch
from torch import nn

import lipbridge
from lipbridge.activations.activation import Term, derive
from lipbridge.graph.graph import Graph
from lipbridge.graph.nodes import Conv, Dense, Input
from lipbridge.lipsdp.by_channel import frequencies, proof
from lipbridge.lipsdp.by_channel import runs as channel_runs
from lipbridge.lipsdp.by_channel.multipliers import bound_by_channels
from lipbridge.lipsdp.by_channel.proof import prove_run
from lipbridge.lipsdp.by_channel.runs import runs_of
from lipbridge.rescaling.channel_chain import ChannelChain, Joint, Layer, channel_chain
from lipbridge.rescaling.channels import best_factors, ones, proved_product
from tests.support.channels import feasible_logs
from tests.support.coarse import coarse, coarse_arithmetic

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
        found = bound_by_channels(lipbridge.Problem(graph, lipbridge.Question.everywhere(2)), later(0.3))
        late = bound_by_channels(lipbridge.Problem(graph, lipbridge.Question.everywhere(2)), later(-1.0))
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
        value = bound_by_channels(lipbridge.Problem(graph, lipbridge.Question.everywhere(2)), later()).value
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
    for value in (
        proved_product(chain, ones(chain)),
        bound_by_channels(lipbridge.Problem(graph, lipbridge.Question.everywhere(2)), later()).value,
    ):
        assert constant <= value <= constant * (1 + 1e-6)


# --- what a run may hold, and what its torus must be ------------------------------------------------------------------


def weighted(*weights, between, geometry=()) -> nn.Sequential:
    """Convolutions with the given ``(out, in, k)`` weights and ``(before, after, mode)`` paddings, modules between."""
    layers: list[nn.Module] = []
    for index, values in enumerate(weights):
        W = torch.tensor(values, dtype=torch.float64)
        conv = nn.Conv1d(W.shape[1], W.shape[0], W.shape[2], bias=False).double()
        with torch.no_grad():
            conv.weight.copy_(W)
        layers += [*(between[index - 1] if index else ()), Padded(*(geometry or [(0, 0, "zeros")] * 9)[index], conv)]
    return nn.Sequential(*layers)


def runs_and_bound(net: nn.Module, shape: tuple[int, ...]) -> tuple[list[tuple[int, int]], float]:
    graph = lipbridge.capture(net, shape)
    runs = runs_of(channel_chain(graph))
    return [(run.first, run.last) for run in runs], bound_by_channels(
        lipbridge.Problem(graph, lipbridge.Question.everywhere(2)), later(20.0)
    ).value


def test_a_run_has_one_padding_mode():
    """On one torus, of either kind, the product of these kernels is smaller."""
    kernels = [[[0.6, 0.8]]], [[[0.9, -0.8]]]
    for first, second in (("zeros", "circular"), ("circular", "zeros")):
        net = weighted(*kernels, between=[[nn.ReLU()]], geometry=[(0, 1, first), (1, 0, second)])
        runs, value = runs_and_bound(net, (1, 5))
        J = torch.autograd.functional.jacobian(net, torch.full((1, 1, 5), 3.0).double()).reshape(5, 5)
        assert runs == []
        assert value >= float(torch.linalg.matrix_norm(J, 2))


def test_all_activations_between_two_layers_count():
    net = weighted([[[1.0, 0.0]]], [[[1.0, 0.0]]], between=[[nn.LeakyReLU(0.9), nn.ELU(5.0)]])
    runs, value = runs_and_bound(net, (1, 4))
    assert runs == []
    assert value >= 4.5  # left of zero


def test_what_stands_behind_a_run_counts():
    """Runs whose constant is one, and a spike that pooling copies three times."""
    one = [[[1.0, 0.0]]]
    net = weighted(one, one, one, between=[[nn.ReLU()], [nn.ReLU(), nn.MaxPool1d(3, 1, 1)]])
    runs, value = runs_and_bound(net, (1, 6))
    assert runs == [(0, 1)]
    assert math.sqrt(3.0) <= value <= math.sqrt(3.0) * (1.0 + 1e-6)


@pytest.mark.parametrize("behind", [False, True])
def test_factors_beside_a_run_are_those_of_the_product(behind):
    """Two channels through an abs, which no run takes: their factors reach the sum of products, from both sides."""
    cut = lipbridge.activations.registry.activation_module("abs")
    one, equal, apart = [[[1.0, 0.0]]], [[[1.0]], [[1.0]]], [[[1.0], [100.0]]]
    if behind:
        net = weighted(one, equal, apart, between=[[nn.ReLU()], [cut]])
    else:
        net = weighted([[[1.0]], [[100.0]]], [[[1.0], [1.0]]], one, between=[[cut], [nn.ReLU()]])
    runs, value = runs_and_bound(net, (1, 3))
    assert runs == [(0, 1) if behind else (1, 2)]
    assert 101.0 <= value <= 101.0 * (1.0 + 1e-3)


class Scaled(nn.Module):
    """A leaky ReLU times a number: one slope on each side of zero."""

    def __init__(self, factor: float, slope: float) -> None:
        super().__init__()
        self.factor, self.slope = factor, slope

    def forward(self, x):
        return self.factor * nn.functional.leaky_relu(x, self.slope)


@pytest.mark.parametrize("factor", [1.0, -1.0])
@pytest.mark.parametrize("padding", [(0, 1), (1, 0)])
def test_zeros_around_an_image_are_not_what_the_layer_before_has_there(padding, factor):
    """Five ones in a row and a difference: one pixel between, where the network has root five and the torus two."""
    kernels = [[[1.0] * 5]], [[[1.0, -1.0] if padding[1] else [-1.0, 1.0]]]
    net = weighted(*kernels, between=[[Scaled(factor, 0.99)]], geometry=[(0, 0, "zeros"), (*padding, "zeros")])
    runs, value = runs_and_bound(net, (1, 5))
    assert runs == [(0, 1)]
    assert value >= math.sqrt(5.0)


@pytest.mark.parametrize(("factor", "slope"), [(1.0, 0.2), (-1.0, 3.0), (1.5, 4 / 3), (0.7, -0.5), (-0.3, 0.1)])
def test_an_interval_of_slopes_is_widened_to_zero_and_no_further(factor, slope):
    graph = lipbridge.capture(weighted([[[1.0]]], [[[1.0]]], between=[[Scaled(factor, slope)]]), (1, 2))
    (act,) = channel_chain(graph).joints[0].activations
    low, high = sorted((factor, factor * slope))
    for masked, ends in ((False, (low, high)), (True, (min(low, 0.0), max(high, 0.0)))):
        rule = channel_runs._increments(act, masked)
        middle, radius = rule.outputs[0].tolist()
        assert not rule.radius[0, 1]
        assert middle - radius <= ends[0] + float(rule.radius[0, 0])
        assert ends[1] - float(rule.radius[0, 0]) <= middle + radius
        assert radius == pytest.approx(0.5 * (ends[1] - ends[0]), rel=1e-12)


def test_a_layer_that_reads_beside_its_input_is_masked():
    found = set()
    for mode, size, kernel, stride, dilation in itertools.product(
        ("zeros", "circular"), (3, 4), (1, 2), (1, 2), (1, 2)
    ):
        for before, after in itertools.product((0, 1, 2), (0, 1, 2)):
            count = (size + before + after - (kernel - 1) * dilation - 1) // stride + 1
            conv = Conv(
                "c", (0,), (1, count), torch.ones(1, 1, kernel), None,
                stride=(stride,), padding=((before, after),), dilation=(dilation,), padding_mode=mode,
            )  # fmt: skip
            layer = Layer(conv, (1, size), torch.zeros(1, dtype=torch.int64), torch.zeros(1, dtype=torch.int64))
            reads = {p * stride + t * dilation - before for p in range(count) for t in range(kernel)}
            beside = mode == "zeros" and not reads <= set(range(size))
            assert channel_runs._masked(layer) == beside, conv
            found.add((beside, before > 0, after > 0))
    assert len(found) == 7  # a layer may leave what is behind unread, but not what is before


def applied(block, x: torch.Tensor, grid: int, after: int, coarse_grid: int) -> torch.Tensor:
    """What a block of one axis makes of a real ``(channels, grid)`` input: ``(channels, after)``."""
    spectrum = torch.fft.fft(x, norm="ortho")
    out = torch.zeros(len(block.writes) * coarse_grid // after, after, dtype=torch.complex128)
    for g in range(coarse_grid):
        columns, rows = [list(range(g, n, coarse_grid)) for n in (grid, after)]
        mirrored = g >= len(block.weight)  # of a real kernel
        W = block.weight[-g % coarse_grid].conj() if mirrored else block.weight[g]
        if mirrored:  # its blocks are stored in the order of the opposite frequency's
            columns, rows = [[-h % n for h in range(-g % coarse_grid, n, coarse_grid)] for n in (grid, after)]
        found = W @ spectrum[:, columns].T.flatten()
        out[:, rows] = found.reshape(len(rows), -1).T
    return torch.fft.ifft(out, norm="ortho").real


def drawn_layers(seed: int, mode: str) -> list[Layer]:
    """Two convolutions of any geometry, the second on the first one's outputs, with weights of any sign."""
    chosen, generator = random.Random(seed), torch.Generator().manual_seed(seed)
    layers: list[Layer] = []
    channels, length = chosen.choice((1, 2)), chosen.choice((4, 6, 8))
    for _ in range(2):
        out, kernel, dilation = chosen.choice((1, 2, 4)), chosen.choice((1, 2, 3)), chosen.choice((1, 2))
        stride, reach = chosen.choice((1, 1, 2)), (kernel - 1) * dilation
        before, after = chosen.choice(((0, 0), (reach, 0), (0, reach), (reach, reach), (1, 2)))
        if mode == "circular":
            before, after = chosen.choice(((reach, 0), (0, reach), (1, reach - 1) if reach else (0, 0)))
        if length + before + after <= reach:
            before, after = reach, 0
        groups = chosen.choice([g for g in (1, 2) if channels % g == 0 and out % g == 0])
        count = (length + before + after - reach - 1) // stride + 1
        W = torch.randn(out, channels // groups, kernel, generator=generator, dtype=torch.float64)
        conv = Conv(
            "conv", (0,), (out, count), W, None, stride=(stride,), padding=((before, after),), dilation=(dilation,),
            groups=groups, padding_mode=mode,
        )  # fmt: skip
        layers.append(Layer(conv, (channels, length), torch.arange(channels), torch.arange(out)))
        channels, length = out, count
    return layers


@pytest.mark.parametrize("mode", ["zeros", "circular"])
def test_on_its_torus_each_layer_is_itself(mode):
    """Read where the image is: torch's convolution, for all options, though the torus has other positions too."""
    seen = 0
    for seed in range(40):
        layers = drawn_layers(seed, mode)
        if {channel_runs._kind(layer) for layer in layers} != {mode}:
            continue
        grids = channel_runs._grids(layers)
        if grids is None:
            continue
        (first,), (middle,), (last,) = grids
        blocks = frequencies.conv_blocks(layers, [1, 1], grids)
        for layer, block, grid, after in zip(layers, blocks, (first, middle), (middle, last), strict=True):
            x = torch.randn(layer.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
            right = Graph((Input("input", (), layer.shape), layer.node))(x[None])[0]
            wide = nn.functional.pad(x, (0, grid - x.shape[1]))
            found = applied(block, wide, grid, after, last)[:, : right.shape[1]] * 2.0**block.exponent
            assert torch.allclose(found, right, rtol=0.0, atol=1e-12 * float(right.abs().max())), seed
        seen += 1
    assert seen >= 10


# --- the proof of a run, where nothing is lost ------------------------------------------------------------------------

LINE = derive("line", ((Term("identity", 1.0),),))


def matrix_of(layer: Layer) -> torch.Tensor:
    graph = Graph((Input("input", (), layer.shape), layer.node))
    basis = torch.eye(math.prod(layer.shape), dtype=torch.float64).reshape(-1, *layer.shape)
    return graph(basis).flatten(1).T


@pytest.mark.parametrize("mode", ["zeros", "circular"])
def test_a_line_between_two_layers_loses_nothing(mode):
    """Weights of any sign and size: the largest frequency is any of them. On a torus the bound is the norm."""
    seen = 0
    for seed in range(40):
        layers = [
            replace(layer, node=replace(layer.node, weight=layer.node.weight * 2.0**power))
            for layer, power in zip(drawn_layers(seed, mode), (40 - seed, 2 * seed), strict=True)
        ]
        if {channel_runs._kind(layer) for layer in layers} != {mode} or channel_runs._grids(layers) is None:
            continue
        units = len(layers[0].writes)
        chain = ChannelChain(tuple(layers), (Joint(units, (LINE,), 1.0, plain=True),))
        run = channel_runs._formed(chain, 0, 1)  # beside zeros the line is an interval, which has a multiplier
        value = prove_run(run, [logs.exp() for logs in feasible_logs(run, seed)], None, None)
        norm = float(torch.linalg.matrix_norm(matrix_of(layers[1]) @ matrix_of(layers[0]), 2))
        assert value >= norm * (1.0 - 1e-12), seed
        assert mode == "zeros" or value <= norm * (1.0 + 1e-9), seed
        seen += 1
    assert seen >= 10


def test_the_roundings_of_a_scale_are_in_a_block():
    W, scale = torch.tensor([[0.1, 0.7], [-0.3, 1e-3]], dtype=torch.float64), torch.tensor([1 / 3, 0.9]).double()
    two = torch.arange(2)
    block = frequencies.dense_block(Layer(Dense("dense", (0,), (2,), W, None), (2,), two, two, scale), 1)
    for i, j in itertools.product(range(2), range(2)):
        exact = Fraction(float(W[i, j])) * Fraction(float(scale[i])) / Fraction(2) ** block.exponent
        off = abs(Fraction(float(block.weight[0, i, j])) - exact)
        assert off <= Fraction(block.error) * Fraction(float(block.magnitude[i, j]))


@pytest.mark.parametrize("error", [2.0**-10, 2.0**-40])
def test_the_entry_of_a_run_counts_its_error(error):
    W = torch.rand(3, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    block = frequencies.Block(W[None], W, error, 0, torch.arange(2), torch.arange(3))
    before = torch.tensor([0.5, 4.0], dtype=torch.float64)
    H = torch.tensor([[2.0, 1.0, 0.0], [1.0, 3.0, 0.0], [0.0, 0.0, 1.0]], dtype=torch.float64)
    root = torch.linalg.cholesky(H).T
    value = proof._entry_up(block, before.reciprocal(), H, 0)
    exact = float(torch.linalg.matrix_norm(root @ (W * (1.0 + error)) / before, 2))
    assert exact * (1.0 - 1e-15) <= value <= exact * (1.0 + 10.0 * error)
