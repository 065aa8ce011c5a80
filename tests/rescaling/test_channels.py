"""One factor a channel: any factors bound the network, the best ones are the best, and ties are kept."""

from __future__ import annotations

import math
from fractions import Fraction

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import lipbridge
from lipbridge.errors import UnsupportedProblem
from lipbridge.graph.graph import Graph
from lipbridge.graph.nodes import Dense
from lipbridge.lowering.dense import lower_to_dense
from lipbridge.rescaling import channels
from lipbridge.rescaling.channel_chain import channel_chain
from lipbridge.rescaling.channels import best_factors, proved_product
from lipbridge.verifiers import Budget, get_verifier
from tests.support.channels import conv_network, steepest
from tests.support.refusals import refused

torch.set_num_threads(1)


@settings(max_examples=8, deadline=None)
@given(seed=st.integers(0, 10**6))
def test_any_factors_bound_the_network(seed):
    net = conv_network(seed)
    chain = channel_chain(lipbridge.capture(net, (2, 6, 6)))
    generator = torch.Generator().manual_seed(seed)
    factors = [
        torch.exp(4 * torch.randn(joint.units, generator=generator, dtype=torch.float64)) for joint in chain.joints
    ]
    witness = steepest(net) * (1.0 - 1e-9)
    trivial = lipbridge.trivial_bound(lipbridge.capture(net, (2, 6, 6))).value
    assert proved_product(chain, factors) >= witness
    best = proved_product(chain, best_factors(chain))
    assert best >= witness
    assert trivial == 0.0 or best <= trivial * 1.03 + 1e-200  # merged layers may make the trivial bound the smaller one


@pytest.mark.parametrize("scale", [5.0, 1e-314, 3e-322, 0.7])
def test_a_scale_that_underflows_with_its_factor_is_rounded_up(scale: float):
    """One number a layer, so that the constant is a product, in exact arithmetic."""
    net = nn.Sequential(nn.Conv2d(1, 1, 1, bias=False), nn.BatchNorm2d(1), nn.ReLU(), nn.Conv2d(1, 1, 1, bias=False))
    net = net.double().eval()
    with torch.no_grad():
        net[0].weight.fill_(1e300)
        net[1].weight.fill_(scale)
        net[3].weight.fill_(0.3)
    graph = lipbridge.capture(net, (1, 2, 2))
    chain = channel_chain(graph)
    assert chain.layers[0].scale is not None
    exact = Fraction(1e300) * Fraction(float(chain.layers[0].scale)) * Fraction(0.3)
    for factor in torch.linspace(0.001, 0.999, 40, dtype=torch.float64):
        assert Fraction(proved_product(chain, [factor[None]])) >= exact


def test_a_scale_at_the_end_counts():
    net = nn.Sequential(nn.Conv2d(1, 1, 1), nn.ReLU(), nn.Conv2d(1, 1, 1), nn.BatchNorm2d(1)).double().eval()
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.fill_(5.0)
    chain = channel_chain(lipbridge.capture(net, (1, 2, 2)))
    assert chain.layers[-1].scale is not None
    assert proved_product(chain, channels.ones(chain)) >= 125.0 / math.sqrt(1.0 + 1e-5)


def matrices(graph: Graph) -> list[Tensor]:
    return [node.weight for node in lower_to_dense(graph).graph if isinstance(node, Dense)]


@pytest.mark.parametrize("mode", ["zeros", "circular"])
def test_scaled_convolutions_are_scaled_matrices(mode):
    torch.manual_seed(1)
    net = nn.Sequential(
        nn.Conv2d(2, 4, 3, 2, 1, padding_mode=mode, bias=False), nn.ReLU(),
        nn.Conv2d(4, 6, 3, 1, 1, groups=2, padding_mode=mode, bias=False), nn.ReLU(),
        nn.Flatten(), nn.Linear(54, 3, bias=False),
    ).double()  # fmt: skip
    graph = lipbridge.capture(net, (2, 6, 6))
    chain = channel_chain(graph)
    first, second = torch.rand(4).double() + 0.5, torch.rand(6).double() + 0.5
    A, B, C = matrices(graph)
    d, e = first.repeat_interleave(9), second.repeat_interleave(9)
    exact = [A * d[:, None], B * e[:, None] / d, C / e]
    product = math.prod(float(torch.linalg.matrix_norm(W, 2)) for W in exact)
    found = proved_product(chain, [first, second])
    assert product <= found <= product * (1.0 + 1e-9)


def test_the_gradient_is_that_of_the_objective():
    net = conv_network(12, activations=("crelu", "abs"))
    chain = channel_chain(lipbridge.capture(net, (2, 6, 6)))
    free = [index for index, joint in enumerate(chain.joints) if joint.units > 1]
    objective = channels.Objective(chain, free)
    generator = torch.Generator().manual_seed(0)
    x = 0.3 * torch.randn(sum(chain.joints[i].units for i in free), generator=generator, dtype=torch.float64)
    _, gradient = objective(x, 3)
    for index in range(len(x)):
        step = 1e-6
        above, below = x.clone(), x.clone()
        above[index] += step
        below[index] -= step
        slope = float(objective(above, 3)[0] - objective(below, 3)[0]) / (2 * step)
        assert float(gradient[index]) == pytest.approx(slope, abs=1e-5)


def test_the_best_factors_undo_a_shaking():
    torch.manual_seed(3)
    net = nn.Sequential(
        nn.Conv2d(2, 6, 3, 1, 1, padding_mode="circular", bias=False), nn.ReLU(),
        nn.Conv2d(6, 8, 3, 2, 1, padding_mode="circular", bias=False), nn.ReLU(),
        nn.Flatten(), nn.Linear(72, 4, bias=False),
    ).double()  # fmt: skip
    graph = lipbridge.capture(net, (2, 6, 6))
    best = proved_product(channel_chain(graph), best_factors(channel_chain(graph)))
    with torch.no_grad():
        d, e = torch.logspace(-2, 2, 6).double(), torch.logspace(1, -1, 8).double()
        net[0].weight *= d[:, None, None, None]
        net[2].weight *= e[:, None, None, None] / d[:, None, None]
        net[5].weight /= e.repeat_interleave(9)
    shaken = lipbridge.capture(net, (2, 6, 6))
    assert lipbridge.trivial_bound(shaken).value > 20 * best
    chain = channel_chain(shaken)
    assert proved_product(chain, best_factors(chain)) == pytest.approx(best, rel=5e-3)


def test_for_abs_it_lies_between_lipsdp_and_the_trivial_bound():
    torch.manual_seed(5)
    net = nn.Sequential(
        nn.Conv2d(1, 4, 3, 1, 1, padding_mode="circular"), lipbridge.activations.registry.activation_module("abs"),
        nn.Conv2d(4, 4, 3, 2, 1, padding_mode="circular"), lipbridge.activations.registry.activation_module("abs"),
        nn.Flatten(), nn.Linear(36, 4),
    ).double()  # fmt: skip
    graph = lipbridge.capture(net, (1, 6, 6))
    each = (
        get_verifier("lipsdp-fast").prepare(lipbridge.Problem(graph, lipbridge.Question.everywhere(2))).bound(Budget())
    )  # small: a multiplier for each unit
    chain = channel_chain(graph)
    found = proved_product(chain, best_factors(chain))
    assert each.value * (1 - 1e-3) <= found < 0.99 * lipbridge.trivial_bound(graph).value


def test_sorting_and_pooling_tie_units():
    net = nn.Sequential(nn.Conv2d(2, 6, 3), lipbridge.MaxMin(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(24, 2))
    chain = channel_chain(lipbridge.capture(net, (2, 6, 6)))
    assert chain.joints[0].units == 3
    assert chain.layers[0].writes.tolist() == [0, 1, 2, 0, 1, 2]
    assert chain.layers[1].reads.tolist() == ([0] * 4 + [1] * 4 + [2] * 4) * 2


class Copied(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x[:, [0, 0, 1]]


def test_copies_of_a_coordinate_count():
    net = nn.Sequential(nn.Linear(2, 2), nn.ReLU(), Copied(), nn.Linear(3, 1))
    (joint,) = channel_chain(lipbridge.capture(net, (2,))).joints
    assert math.sqrt(2.0) <= joint.constant <= 1.5


class Turned(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.transpose(1, 2)


def test_positions_of_a_channel_share_a_factor_where_they_are_mixed():
    """Outputs of a dense layer, one unit each, are read as an image of two channels."""
    image, count = nn.Unflatten(1, (2, 2)), nn.Linear(4, 4)
    for rest in ([image, nn.MaxPool1d(2, 1), nn.Flatten(), nn.Linear(2, 1)], [nn.ReLU(), image, nn.Conv1d(2, 1, 2)]):
        chain = channel_chain(lipbridge.capture(nn.Sequential(count, *rest), (4,)))
        assert chain.joints[0].units == 2
        assert chain.layers[0].writes.tolist() == [0, 0, 1, 1]
        assert chain.layers[1].reads.tolist() == [0, 1]
    turned = nn.Sequential(nn.Linear(6, 6), nn.ReLU(), nn.Unflatten(1, (2, 3)), Turned(), nn.Flatten(), nn.Linear(6, 1))
    assert channel_chain(lipbridge.capture(turned, (6,))).layers[1].reads.tolist() == [0, 3, 1, 4, 2, 5]


def test_what_is_no_chain_is_refused_by_name():
    class Residual(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.Conv2d(2, 2, 3, padding=1)

        def forward(self, x: Tensor) -> Tensor:
            return x + self.inner(x).relu()

    with pytest.raises(UnsupportedProblem, match="branches"):
        channel_chain(lipbridge.capture(Residual(), (2, 6, 6)))
    with pytest.raises(UnsupportedProblem, match="ends with"):
        channel_chain(lipbridge.capture(nn.Sequential(nn.Conv2d(2, 2, 3), nn.ReLU()), (2, 6, 6)))
    for first in (nn.ELU(2.0), nn.ReLU(), nn.MaxPool2d(3, 1, 1)):  # slopes of two, slopes of one, windows that overlap
        with pytest.raises(UnsupportedProblem, match="begins with"):
            channel_chain(lipbridge.capture(nn.Sequential(first, nn.Conv2d(2, 2, 3)), (2, 6, 6)))


def test_lipsdp_fast_takes_convolutions_too_large_for_a_matrix():
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(3, 16, 3, 1, 1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(16, 16, 3, 1, 1), nn.ReLU(),
        nn.Flatten(), nn.Linear(16 * 64, 10),
    )  # fmt: skip
    problem = lipbridge.Problem(lipbridge.capture(net, (3, 16, 16)), lipbridge.Question.everywhere(2))
    verifier = get_verifier("lipsdp-fast")
    assert refused(verifier, problem) is None
    bound = verifier.prepare(problem).bound(Budget())
    assert bound.proved
    assert bound.value < 0.95 * lipbridge.trivial_bound(problem.graph).value
    assert {len(T) for T in bound.multipliers.values()} == {16}
    ball = lipbridge.Problem(problem.graph, lipbridge.Question.on(lipbridge.Ball(torch.zeros(1, 3, 16, 16), 0.1, 2), 2))
    assert "everywhere" in refused(verifier, ball)


# --- rescale on convolutions ------------------------------------------------------------------------------------------

HOMOGENEOUS = ("relu", "abs", "crelu", "leaky_relu")


@settings(max_examples=8, deadline=None)
@given(seed=st.integers(0, 10**6), norm=st.sampled_from([1, 2, "inf"]), exact=st.booleans())
def test_rescaling_keeps_the_function_and_lowers_the_bound(seed, norm, exact):
    net = conv_network(seed, activations=HOMOGENEOUS)
    found = lipbridge.rescale(net, norm, exact=exact, input_shape=(2, 6, 6))
    assert found.after.value <= found.before.value
    assert found.after.value == lipbridge.trivial_bound(lipbridge.capture(found.module, (2, 6, 6)), norm).value
    x = torch.randn(8, 2, 6, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    y, z = net(x).detach(), found.module(x).detach()
    if exact:
        assert torch.equal(y, z)
    else:
        l2 = lipbridge.trivial_bound(lipbridge.capture(net, (2, 6, 6))).value
        room = 1.0 + l2 * float(x.flatten(1).norm(dim=1).max()) + float(net(0 * x).detach().abs().max())
        assert not math.isfinite(room) or float((y - z).abs().max()) <= 1e-9 * room


@pytest.mark.parametrize("norm", [1, "inf"])
def test_on_circular_convolutions_the_sums_are_the_least(norm):
    """No factors, of channels or of units, give less than the norm of the product of magnitudes.

    (In l_1 a stride makes the positions of an input channel differ, which one factor a channel cannot follow.)
    """
    torch.manual_seed(2)
    net = nn.Sequential(
        nn.Conv2d(2, 5, 3, 1, 1, padding_mode="circular", bias=False), nn.ReLU(),
        nn.Conv2d(5, 4, 3, 2 if norm == "inf" else 1, 1, padding_mode="circular", bias=False),
    ).double()  # fmt: skip
    graph = lipbridge.capture(net, (2, 6, 6))
    A, B = matrices(graph)
    least = float(torch.linalg.matrix_norm(B.abs() @ A.abs(), 1 if norm == 1 else math.inf))
    found = lipbridge.rescale(net, norm, input_shape=(2, 6, 6))
    assert found.after.value == pytest.approx(least, rel=1e-9)
    assert found.before.value > 1.02 * least


def test_batchnorm_is_left_alone():
    net = nn.Sequential(
        nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 6, 3), nn.ReLU(), nn.Flatten(), nn.Linear(24, 2)
    ).eval()  # fmt: skip
    with torch.no_grad():
        net[3].weight *= torch.logspace(-1, 1, 6)[:, None, None, None]
    chain = channel_chain(lipbridge.capture(net, (2, 6, 6)))
    assert [layer.scale is not None for layer in chain.layers] == [True, False, False]
    found = lipbridge.rescale(net, input_shape=(2, 6, 6))
    assert found.after.value < 0.9 * found.before.value
    assert torch.equal(found.module[0].weight, net[0].weight)
    x = torch.randn(4, 2, 6, 6)
    assert torch.allclose(net(x), found.module(x), atol=1e-5)
