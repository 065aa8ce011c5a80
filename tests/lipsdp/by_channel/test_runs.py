"""LipSDP by frequency: blocks that are the convolution, the dense inequality, and a proof that covers rounding."""

from __future__ import annotations

import math
import time

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import lipbridge
from lipbridge.activations.registry import activation_module
from lipbridge.errors import NumericalFailure
from lipbridge.graph.nodes import Dense
from lipbridge.lipsdp.by_channel import runs as channel_runs
from lipbridge.lipsdp.by_channel.constant import log_constant
from lipbridge.lipsdp.by_channel.multipliers import bound_by_channels
from lipbridge.lipsdp.by_channel.proof import prove_run
from lipbridge.lipsdp.by_channel.runs import runs_of
from lipbridge.lipsdp.constraints import increments_of
from lipbridge.lipsdp.elimination import eliminate
from lipbridge.lipsdp.system import LipSDP, Stage
from lipbridge.lowering.dense import lower_to_dense
from lipbridge.rescaling.channel_chain import channel_chain
from lipbridge.rescaling.channels import best_factors, proved_product
from tests.support.channels import conv_network, feasible_logs, steepest

torch.set_num_threads(1)


def normalised(net: nn.Module) -> nn.Module:
    """Largest entries of 0.9, so that no layer has a power of two of its own."""
    with torch.no_grad():
        for parameter in net.parameters():
            if parameter.ndim > 1:
                parameter *= 0.9 / parameter.abs().max()
    return net.double()


def three_convolutions(name: str, mode: str, *, stride: int = 2, groups: int = 1, dilation: int = 1) -> nn.Module:
    """Convolutions, with nothing behind the last: one run."""
    width = lipbridge.activation(name).width
    act = {"dim": 1} if width > 1 else {}
    pad = dilation
    return normalised(
        nn.Sequential(
            nn.Conv2d(2, 4, 3, 1, pad, dilation, groups, padding_mode=mode), activation_module(name, **act),
            nn.Conv2d(4 * width, 6, 3, stride, 1, padding_mode=mode), activation_module(name, **act),
            nn.Conv2d(6 * width, 4, 3, 1, 1, 1, 2, padding_mode=mode),
        )
    )  # fmt: skip


def dense_system(graph) -> LipSDP:
    """The same inequality on the matrices, unscaled."""
    weights = [node.weight for node in lower_to_dense(graph).graph if isinstance(node, Dense)]
    activations = [node.activation for node in graph if hasattr(node, "activation")]
    stages = [
        Stage(increments_of(g), W, torch.arange(W.shape[1] // g.width), W.shape[1] // g.width)
        for g, W in zip(activations, weights[1:], strict=True)
    ]
    return LipSDP(
        question=lipbridge.Question.everywhere(2), entry=weights[0], stages=tuple(stages), exponent=0, constant=False
    )


SHAPES = [{}, {"stride": 1}, {"groups": 2}, {"stride": 3}, {"dilation": 2}]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("name", ["relu", "tanh", "leaky_relu", "crelu"])
def test_on_a_torus_it_is_the_dense_inequality(name, shape):
    torch.manual_seed(3)
    graph = lipbridge.capture(three_convolutions(name, "circular", **shape), (2, 6, 6))
    chain = channel_chain(graph)
    (run,) = runs_of(chain)
    assert (run.first, run.last) == (0, 2)
    logs = feasible_logs(run, 1)
    system = dense_system(graph)
    vectors = []
    for own, stage, units in zip(logs, system.stages, run.units, strict=True):
        vectors.append(own.exp().repeat_interleave(stage.units // units, dim=1))
    rho = eliminate(system, vectors)
    smooth = float(log_constant(run, logs, None, None, 14))
    assert math.exp(smooth) == pytest.approx(math.sqrt(float(rho)), rel=1e-3)
    proved = prove_run(run, [own.exp() for own in logs], None, None)
    assert math.sqrt(float(rho)) * (1 - 1e-12) <= proved <= math.sqrt(float(rho)) * (1 + 1e-8)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("name", ["relu", "tanh", "leaky_relu"])
def test_zero_padding_is_covered(name, shape):
    """The torus with units of slope zero outside bounds the matrices' inequality at the same multipliers."""
    torch.manual_seed(4)
    graph = lipbridge.capture(three_convolutions(name, "zeros", **shape), (2, 6, 6))
    (run,) = runs_of(channel_chain(graph))
    logs = feasible_logs(run, 2)
    proved = prove_run(run, [own.exp() for own in logs], None, None)
    system = dense_system(graph)
    vectors = [
        own.exp().repeat_interleave(stage.units // units, dim=1)
        for own, stage, units in zip(logs, system.stages, run.units, strict=True)
    ]
    dense = math.sqrt(float(eliminate(system, vectors)))
    assert dense <= proved
    if name != "leaky_relu":  # whose interval was widened
        assert proved <= 1.5 * dense


def test_batchnorm_belongs_to_the_layer_before_it():
    """With the scale in the kernel the run is the same, but for a rounding."""
    torch.manual_seed(6)
    norm = nn.BatchNorm2d(4).eval()
    with torch.no_grad():
        norm.weight.copy_(torch.rand(4) + 0.5)
    net = normalised(nn.Sequential(nn.Conv2d(2, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 3, 3, padding=1)))
    scaled = nn.Sequential(net[0], norm.double(), net[1], net[2])
    (run,) = runs_of(channel_chain(lipbridge.capture(scaled, (2, 6, 6))))
    with torch.no_grad():
        net[0].weight *= (norm.weight / (norm.running_var + norm.eps).sqrt())[:, None, None, None]
    (plain,) = runs_of(channel_chain(lipbridge.capture(net, (2, 6, 6))))
    logs = feasible_logs(plain, 1)
    T = [own.exp() for own in logs]
    assert run.blocks[0].error > plain.blocks[0].error
    assert prove_run(run, T, None, None) == pytest.approx(prove_run(plain, T, None, None), rel=1e-9)


def test_factors_divide_what_a_run_reads_and_multiply_what_it_gives():
    net = normalised(nn.Sequential(nn.Conv2d(2, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 2, 3, padding=1)))
    (run,) = runs_of(channel_chain(lipbridge.capture(net, (2, 6, 6))))
    T = [own.exp() for own in feasible_logs(run, 1)]
    plain = prove_run(run, T, None, None)
    for factor in (2.0**-6, 8.0):
        factors = torch.full((2,), factor, dtype=torch.float64)
        assert prove_run(run, T, factors, None) == pytest.approx(plain / factor, rel=1e-9)
        larger = [own * factor**2 for own in T]
        assert prove_run(run, larger, None, factors) == pytest.approx(plain * factor, rel=1e-9)
    # The larger one of two decides: a channel of the input that is divided by less than the other.
    apart = prove_run(run, T, torch.tensor([2.0**-6, 1.0], dtype=torch.float64), None)
    assert 2.0 * plain < apart <= 64.0 * plain * (1.0 + 1e-9)


class Turned(nn.Module):
    """Exchanges rows and columns."""

    def forward(self, x: Tensor) -> Tensor:
        return x.transpose(2, 3)


@pytest.mark.parametrize(
    "between", [nn.MaxPool2d(3, 1, 1), nn.AvgPool2d(3, 1, 1), lipbridge.MaxMin(), Turned(), nn.Sequential()], ids=str
)
def test_what_moves_positions_ends_a_run(between: nn.Module):
    torch.manual_seed(7)
    net = normalised(
        nn.Sequential(nn.Conv2d(2, 4, 3, padding=1), nn.ReLU(), between, nn.Conv2d(4, 3, 3, padding=1))
    ).double()
    graph = lipbridge.capture(net, (2, 6, 6))
    runs = [(run.first, run.last) for run in runs_of(channel_chain(graph))]
    assert runs == ([(0, 1)] if isinstance(between, nn.Sequential | nn.AvgPool2d) else [])
    bound = bound_by_channels(lipbridge.Problem(graph, lipbridge.Question.everywhere(2)), time.perf_counter() + 1.0)
    lower = lipbridge.search_lower_bound(
        lipbridge.Problem(graph, lipbridge.Question.everywhere(2)),
        torch.randn(1, 2, 6, 6).double(),
        restarts=8,
        rounds=2,
    )
    assert bound.value >= lower.value


def test_a_line_inside_a_run_has_no_multipliers():
    torch.manual_seed(0)
    convs = [nn.Conv2d(2, 2, 3, padding=1, padding_mode="circular") for _ in range(3)]
    net = normalised(nn.Sequential(convs[0], nn.LeakyReLU(1.0), convs[1], nn.ReLU(), convs[2]))
    graph = lipbridge.capture(net, (2, 6, 6))
    (run,) = runs_of(channel_chain(graph))
    assert [rule.variables for rule in run.increments] == [0, 1]
    bound = bound_by_channels(lipbridge.Problem(graph, lipbridge.Question.everywhere(2)), time.perf_counter() + 1.0)
    lower = lipbridge.search_lower_bound(
        lipbridge.Problem(graph, lipbridge.Question.everywhere(2)),
        torch.randn(1, 2, 6, 6).double(),
        restarts=8,
        rounds=2,
    )
    assert lower.value <= bound.value < lipbridge.trivial_bound(graph).value


def test_without_padding_no_interval_is_widened():
    net = normalised(nn.Sequential(nn.Conv2d(2, 4, 3), nn.LeakyReLU(0.2), nn.Conv2d(4, 3, 3)))
    (run,) = runs_of(channel_chain(lipbridge.capture(net, (2, 7, 7))))
    assert run.increments[0].outputs.flatten().tolist() == pytest.approx([0.6, 0.4])
    padded = normalised(nn.Sequential(nn.Conv2d(2, 4, 3), nn.LeakyReLU(0.2), nn.Conv2d(4, 3, 3, padding=1)))
    (run,) = runs_of(channel_chain(lipbridge.capture(padded, (2, 7, 7))))
    assert run.increments[0].outputs.flatten().tolist() == pytest.approx([0.5, 0.5])


def test_intervals_widened_to_zero_cover_what_they_must():
    for name in lipbridge.activation_names():
        found = lipbridge.activation(name)
        rule = channel_runs._increments(found, True)
        if rule.cuts or found.width > 1:
            continue
        middle, radius = rule.outputs[0].tolist()
        low, high = found.slopes[0]
        assert middle - radius <= min(low, 0.0)
        assert max(high, 0.0) <= middle + radius


@pytest.mark.parametrize("mode", ["circular", "zeros"])
@pytest.mark.parametrize("stride", [1, 2])
def test_the_blocks_are_the_convolution(mode, stride):
    """Applied in the Fourier bases they give what torch gives; each entry is off by no more than stated."""
    torch.manual_seed(5)
    net = normalised(nn.Sequential(
        nn.Conv2d(2, 4, 3, stride, 1, padding_mode=mode), nn.ReLU(), nn.Conv2d(4, 2, 3, 1, 1, padding_mode=mode)
    ))  # fmt: skip
    chain = channel_chain(lipbridge.capture(net, (2, 4, 4)))
    (run,) = runs_of(chain)
    block, layer = run.blocks[0], chain.layers[0]
    grids = channel_runs._grids(chain.layers)
    N, M = grids[0], grids[-1]
    kernel = layer.node.weight.numpy().astype(np.longdouble)
    root = np.sqrt(np.longdouble(stride) * stride)
    frequencies = [(a, b) for a in range(M[0]) for b in range(M[1] // 2 + 1)]
    aliases = [(M[0] * i, M[1] * j) for i in range(N[0] // M[0]) for j in range(N[1] // M[1])]
    tau = np.longdouble("6.283185307179586476925286766559")
    for f, (a, b) in enumerate(frequencies):
        for p, (i, j) in enumerate(aliases):
            for t in range(2):
                exact_re = exact_im = np.longdouble(0)
                for u in range(3):
                    for v in range(3):
                        angle = tau * np.longdouble(
                            ((a + i) * (u - 1) * N[1] + (b + j) * (v - 1) * N[0]) % (N[0] * N[1])
                        )
                        angle = angle / np.longdouble(N[0] * N[1])
                        exact_re = exact_re + kernel[:, t, u, v] * np.cos(angle)
                        exact_im = exact_im + kernel[:, t, u, v] * np.sin(angle)
                rows = [r for r in range(len(block.weight[f])) if block.magnitude[r, p * 2 + t] > 0]
                found = block.weight[f][rows][:, p * 2 + t].numpy()
                allowed = block.error * block.magnitude[rows][:, p * 2 + t].numpy() + 1e-19
                assert np.all(np.abs(found.real - exact_re / root) <= allowed)
                assert np.all(np.abs(found.imag - exact_im / root) <= allowed)


def test_multipliers_that_do_not_hold_are_refused():
    torch.manual_seed(3)
    graph = lipbridge.capture(three_convolutions("relu", "circular"), (2, 6, 6))
    (run,) = runs_of(channel_chain(graph))
    logs = feasible_logs(run, 1)
    logs[0] = logs[0] - 6.0  # of the first joint, far below what the others need
    assert float(log_constant(run, logs, None, None, 4)) == math.inf
    with pytest.raises(NumericalFailure, match="feasible"):
        prove_run(run, [own.exp() for own in logs], None, None)


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 10**6))
def test_never_below_a_witness_on_nasty_networks(seed):
    net = conv_network(seed, activations=("relu", "leaky_relu", "tanh", "softplus", "crelu"))
    graph = lipbridge.capture(net, (2, 6, 6))
    try:
        bound = bound_by_channels(
            lipbridge.Problem(graph, lipbridge.Question.everywhere(2)), time.perf_counter() + 20.0
        )
    except NumericalFailure:
        return
    assert bound.proved
    assert bound.value >= steepest(net) * (1.0 - 1e-9)
    assert bound.value <= lipbridge.trivial_bound(graph).value


@pytest.mark.parametrize("mode", ["circular", "zeros"])
def test_for_relu_it_is_better_than_any_rescaling(mode):
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(2, 4, 3, 1, 1, padding_mode=mode), nn.ReLU(), nn.Conv2d(4, 6, 3, 2, 1, padding_mode=mode), nn.ReLU(),
        nn.Flatten(), nn.Linear(54, 8), nn.ReLU(), nn.Linear(8, 3),
    ).double()  # fmt: skip
    graph = lipbridge.capture(net, (2, 6, 6))
    chain = channel_chain(graph)
    assert [(run.first, run.last) for run in runs_of(chain)] == [(0, 1), (2, 3)]
    rescaled = proved_product(chain, best_factors(chain))
    bound = bound_by_channels(lipbridge.Problem(graph, lipbridge.Question.everywhere(2)), time.perf_counter() + 60.0)
    assert bound.value < 0.8 * rescaled
    each = (
        lipbridge.verifiers.get_verifier("lipsdp-fast")
        .prepare(lipbridge.Problem(graph, lipbridge.Question.everywhere(2)))
        .bound(lipbridge.verifiers.Budget())
    )
    assert each.value * (1 - 1e-3) <= bound.value  # a multiplier for each unit is never worse
    assert {name: len(T) for name, T in bound.multipliers.items()} == {"T1": 4, "T2": 6, "T3": 8}


def test_the_gradient_of_a_run():
    torch.manual_seed(3)
    (run,) = runs_of(channel_chain(lipbridge.capture(three_convolutions("relu", "zeros"), (2, 6, 6))))
    logs = [own.requires_grad_() for own in feasible_logs(run, 1)]
    value = log_constant(run, logs, None, None, 5)
    value.backward()
    for own in logs:
        for unit in range(own.shape[1]):
            with torch.no_grad():
                step = torch.zeros_like(own)
                step[0, unit] = 1e-5
                moved = [[x + s * step if x is own else x for x in logs] for s in (1.0, -1.0)]
                slope = (log_constant(run, moved[0], None, None, 5) - log_constant(run, moved[1], None, None, 5)) / 2e-5
            assert float(own.grad[0, unit]) == pytest.approx(float(slope), abs=1e-6)


@pytest.mark.parametrize("seconds", [-1.0, 1e-3, 0.3])
def test_a_time_limit_is_a_status(seconds: float):
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(2, 8, 3, 1, 1), nn.ReLU(), nn.Conv2d(8, 8, 3, 1, 1), nn.ReLU(), nn.Flatten(), nn.Linear(288, 3)
    )  # fmt: skip
    graph = lipbridge.capture(net, (2, 6, 6))
    bound = bound_by_channels(lipbridge.Problem(graph, lipbridge.Question.everywhere(2)), time.perf_counter() + seconds)
    assert bound.proved
    assert bound.value <= lipbridge.trivial_bound(graph).value
    assert bound.status == ("timeout" if seconds < 0.1 else bound.status)
    cut = bound_by_channels(
        lipbridge.Problem(graph, lipbridge.Question.everywhere(2)), time.perf_counter() + 20.0, memory=1.0
    )
    whole = bound_by_channels(lipbridge.Problem(graph, lipbridge.Question.everywhere(2)), time.perf_counter() + 20.0)
    assert whole.value < cut.value < lipbridge.trivial_bound(graph).value
