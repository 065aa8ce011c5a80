"""Convolutions go to auto_LiRPA as convolutions: the values of matrices, without them."""

from __future__ import annotations

from dataclasses import replace
from importlib.util import find_spec

import pytest
import torch
from torch import Tensor, nn

import lipbridge
from lipbridge import Ball, Budget, Problem, Question, Status, activation
from lipbridge.errors import UnsupportedProblem
from lipbridge.graph.graph import Graph
from lipbridge.graph.nodes import Conv, Dense, Elementwise, GroupSort, MaxPool, Node, Reshape
from lipbridge.vocabulary import Norm, Quantity
from lipbridge_adapters.lirpa.auto_lirpa import AutoLirpaVerifier
from lipbridge_adapters.lirpa.kernel import Kernel, as_kernel
from lipbridge_adapters.lirpa.network import METHODS, Method, Network
from lipbridge_adapters.lirpa.runner import Runner
from tests.support.chains import act, chain, conv, flattened, normal

if find_spec("auto_LiRPA") is None:
    pytest.skip("auto_LiRPA is missing: pip install --no-deps auto-LiRPA==0.3", allow_module_level=True)

PLAIN: tuple[Method, ...] = ("IBP", "CROWN-IBP", "CROWN")
NORMS: tuple[Norm, ...] = (2, "inf")


def ended(shape: tuple[int, ...], *nodes: Node, gain: float = 1.0) -> Graph:
    """The layers and, behind them, a dense layer of three outputs; kernels times ``gain``."""
    nodes = tuple(replace(node, weight=gain * node.weight) if isinstance(node, Conv) else node for node in nodes)
    flat = flattened(chain(shape, *nodes))
    return chain(shape, *nodes, flat, Dense("out", (), (), normal(99, 3, flat.shape[0])))


def captured(module: nn.Module, *shape: int) -> Graph:
    torch.manual_seed(3)
    for parameter in module.parameters():
        parameter.data.normal_(0.0, 0.4)
    return lipbridge.capture(module.double().eval(), shape)


class _Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(2, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)
        self.short, self.out = nn.Conv2d(2, 4, 1), nn.Linear(4 * 16, 3)

    def forward(self, x: Tensor) -> Tensor:
        z = self.first(x).abs()
        return self.out((self.second(z) + self.short(x) + z).relu().flatten(1))


class _Joined(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.out = nn.Conv2d(2, 3, 3), nn.Conv2d(5, 4, (1, 2)), nn.Linear(4 * 2 * 1, 3)

    def forward(self, x: Tensor) -> Tensor:
        z = torch.cat([self.first(x).tanh(), x[:, :, 1:3, 1:3]], 1)
        return self.out(self.second((z - 0.3) / 1.7).abs().flatten(1))


def normalised() -> nn.Module:
    layers = [nn.Conv2d(2, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.AvgPool2d(2), nn.Conv2d(4, 4, 2)]
    return nn.Sequential(*layers, nn.ELU(), nn.Flatten(), nn.Linear(4, 3))


def networks() -> dict[str, Graph]:
    pool = MaxPool("pool", (), (), (2, 2), (2, 1), (0, 0), (1, 1))
    padded = MaxPool("pool", (), (), (2, 2), (2, 2), (1, 1), (1, 1))
    shifted = Elementwise("elu", (), (), activation("elu"), 0)
    named = {
        name: ended((2, 4, 4), conv(1, 4, 2), act(name), conv(2, 3, 4 * activation(name).width), act(name), gain=0.3)
        for name in ("relu", "abs", "crelu", "tanh", "sincos", "identity_abs", "silu")
    }
    return {
        **named,
        "stride": ended((2, 5, 4), conv(1, 4, 2, stride=(2, 3), padding=((1, 1), (2, 2))), act("abs")),
        "dilation": ended((2, 6, 5), conv(1, 4, 2, dilation=(2, 2), stride=(1, 2)), act("crelu"), conv(2, 3, 8)),
        "groups": ended((4, 4, 4), conv(1, 4, 4, groups=2), act("abs"), conv(2, 4, 4, groups=4), act("relu")),
        "row": ended((2, 7), conv(1, 4, 2, (3,), stride=(2,)), act("abs"), conv(2, 3, 4, (2,), padding=((0, 0),))),
        "behind one another": ended((2, 4, 4), conv(1, 4, 2), conv(2, 3, 4), shifted, conv(3, 2, 3), act("abs")),
        "pool": ended((2, 5, 5), conv(1, 4, 2), act("abs"), pool, conv(2, 3, 4), act("relu")),
        "padded pool": ended((2, 5, 5), conv(1, 4, 2), act("crelu"), padded, conv(2, 3, 8), act("relu")),
        "sort": ended((2, 4, 4), conv(1, 4, 2), GroupSort("sort", (), (), 2), conv(2, 3, 4), act("abs")),
        "sort four": ended((2, 3, 3), conv(1, 8, 2), GroupSort("sort", (), (), 4), conv(2, 3, 8)),
        "circular behind": ended((2, 4, 4), conv(1, 4, 2), act("abs"), conv(2, 3, 4, padding_mode="circular")),
        "uneven behind": ended((2, 4, 4), conv(1, 4, 2), act("abs"), conv(2, 3, 4, padding=((1, 0), (0, 0)))),
        "residual": captured(_Residual(), 2, 4, 4),
        "joined": captured(_Joined(), 2, 4, 4),
        "normalised": captured(normalised(), 2, 4, 4),
    }


NETWORKS = networks()


def bounds(graph: Graph, method: Method, norm: Norm, radius: float, *, convolutions: bool = True) -> Tensor:
    """Lower and upper bounds, ``(2, 3, outputs)``."""
    runner = Runner(Network(graph, method, convolutions=convolutions), Budget(), 3)
    chunks = list(runner.chunks(normal(5, 3, *graph.input_shape).flatten(1), radius, norm))
    return torch.stack([torch.cat([chunk[i] for chunk in chunks]) for i in (0, 1)])


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", NETWORKS)
def test_the_lowered_network_is_the_graph(name: str, method: Method) -> None:
    graph = NETWORKS[name]
    network = Network(graph, method)
    assert network.images
    x = 3 * normal(0, 20, *graph.input_shape)
    with torch.no_grad():
        torch.testing.assert_close(network(x.flatten(1)), graph(x), rtol=0, atol=1e-9)


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("name", NETWORKS)
def test_lines_are_those_of_matrices(name: str, norm: Norm, monkeypatch: pytest.MonkeyPatch) -> None:
    graph = NETWORKS[name]
    monkeypatch.setattr(Network, "slack", lambda network, *_: torch.zeros((), dtype=torch.float64))
    found, expected = (bounds(graph, "CROWN", norm, 0.2, convolutions=kind) for kind in (True, False))
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("method", PLAIN)
@pytest.mark.parametrize("name", NETWORKS)
def test_no_point_of_a_ball_is_outside(name: str, method: Method, norm: Norm) -> None:
    graph, radius = NETWORKS[name], 0.3
    low, high = bounds(graph, method, norm, radius)
    step = normal(6, 2000, 1, *graph.input_shape)
    if norm == "inf":
        step = radius * torch.where(step.abs() > 0.5, step.sign(), step)
    else:
        step = radius * step / step.flatten(1).norm(dim=1).view(-1, 1, *[1] * len(graph.input_shape))
    points = normal(5, 3, *graph.input_shape) + step
    values = graph(points.flatten(0, 1)).reshape(*points.shape[:2], -1)
    assert bool((values >= low).all() and (values <= high).all())


@pytest.mark.parametrize("name", ["abs", "pool", "sort", "residual"])
def test_optimised_slopes_are_no_wider_than_the_first(name: str) -> None:
    graph = NETWORKS[name]
    found, first = (bounds(graph, method, "inf", 0.3) for method in ("alpha-CROWN", "CROWN"))
    assert bool((found[1] - found[0] <= first[1] - first[0] + 1e-9).all())


@pytest.mark.parametrize("name", ["abs", "crelu", "groups", "row", "pool", "sort four", "behind one another"])
def test_no_matrix_is_as_large_as_a_convolution(name: str) -> None:
    """But for the last layer's."""
    linear = [m.weight for m in Network(NETWORKS[name], "CROWN").modules() if isinstance(m, nn.Linear)]
    assert max((weight.shape[0] for weight in linear), default=0) <= 3
    assert any(isinstance(m, nn.Conv2d) for m in Network(NETWORKS[name], "CROWN").modules())


def test_a_kernel_is_its_matrix_however_it_is_taken() -> None:
    node = conv(1, 4, 6, (3, 2), groups=2, stride=(2, 1), padding=((1, 1), (0, 0)))
    graph = chain((6, 5, 4), node)
    kernel = as_kernel(graph.nodes[1], (6, 5, 4))
    assert isinstance(graph.nodes[1], Conv)
    assert kernel is not None
    x = normal(2, 3, 6 * 20)
    matrix = kernel.matrix()
    torch.testing.assert_close(x @ matrix.T, kernel(x))
    torch.testing.assert_close(kernel.one_group().matrix(), matrix)
    factors = normal(3, 6)
    torch.testing.assert_close(kernel.after_factors(factors).matrix(), matrix * factors.repeat_interleave(20))
    mix = Kernel(normal(4, 6, 3, 1, 1), (3, 5, 4), (6, 5, 4))
    torch.testing.assert_close(kernel.after_mixing(mix).matrix(), matrix @ mix.matrix())
    rows = matrix.reshape(4, -1, 120)
    torch.testing.assert_close(kernel.channels(torch.tensor([2, 0])).matrix(), rows[[2, 0]].flatten(0, 1))
    torch.testing.assert_close(kernel.placed(1, 6).matrix().reshape(6, -1, 120)[1:5], rows)
    other = kernel.plus(kernel.times(normal(5, 4)).one_group())
    assert other is not None
    torch.testing.assert_close(other.matrix().reshape(4, -1, 120), rows * (1 + normal(5, 4))[:, None, None])
    assert kernel.plus(mix) is None


def test_large_convolutions_are_bounded_by_intervals() -> None:
    """As a matrix it would have 2^29 entries."""
    graph = ended((3, 64, 64), conv(0, 12, 3), act("abs"), conv(2, 4, 12, stride=(8, 8)), act("relu"))
    balls = Ball(torch.zeros(1, 3, 64, 64), 0.1, "inf")
    task = AutoLirpaVerifier().prepare(Problem(graph, Question.on(balls, quantity=Quantity.DEVIATION)))
    assert task.bound(Budget(options={"method": "IBP"})).status is Status.OK
    assert task.bound(Budget(options={"method": "CROWN"})).status is Status.MEMORY
    with pytest.raises(UnsupportedProblem, match="as a matrix"):
        Network(graph, "IBP", convolutions=False)


def test_a_reshape_keeps_what_a_convolution_needs() -> None:
    """A vector seen as an image, and an image as a vector."""
    nodes = [Reshape("image", (), (2, 3, 4)), conv(1, 2, 2), act("abs"), Reshape("flat", (), (24,))]
    graph = chain(
        (24,), *nodes, Dense("middle", (), (), normal(1, 24, 24)), Reshape("image", (), (2, 3, 4)), conv(3, 1, 2)
    )
    graph = chain((24,), *graph.nodes[1:], Reshape("flat", (), (12,)))
    x = normal(0, 9, 24)
    with torch.no_grad():
        torch.testing.assert_close(Network(graph, "CROWN")(x), graph(x), rtol=0, atol=1e-9)
