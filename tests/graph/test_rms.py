"""RMSNorm: the constant of x / sqrt(mean(x^2) + epsilon) is exact in every norm; its rules; its forms."""

from __future__ import annotations

import math
from collections.abc import Callable
from decimal import Decimal, localcontext

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import lipbridge
from lipbridge.constants.layer_constants import output_constants
from lipbridge.constants.node_constants import root_mean_square_norm_up
from lipbridge.errors import UnsupportedOperation
from lipbridge.frontend.moments import default_epsilon
from lipbridge.graph.graph import Graph
from lipbridge.graph.nodes import Input, Normalize
from lipbridge.propagation.bounds import forward_bounds, layer_norms
from lipbridge.rigor.running_error import enclose
from lipbridge.vocabulary import NORMS, Norm
from tests.support.captured import Lambda, Llama, agrees, kinds
from tests.support.enclosed import balls_of, require_inside


def rms(n: int, epsilon: float, groups: int = 1) -> Graph:
    return Graph((Input("x", (), (groups * n,)), Normalize("rms", (0,), (groups * n,), groups, epsilon, False)))


def jacobian(n: int, epsilon: float, x: Tensor) -> Tensor:
    """By the formula, which the first test checks."""
    s = (x.square().mean() + epsilon).sqrt()
    return (torch.eye(n, dtype=torch.float64) - torch.outer(x, x) / (n * s * s)) / s


def nasty(n: int, epsilon: float) -> Tensor:
    """Points at which a row's sum is the largest: one spike beside equal entries of alternating signs, and others."""
    scale = math.sqrt(epsilon)
    generator = torch.Generator().manual_seed(n)
    points = [torch.zeros(n, dtype=torch.float64), torch.full((n,), scale, dtype=torch.float64)]
    signs = torch.where(torch.arange(n) % 2 == 0, 1.0, -1.0).double()
    for spike in torch.logspace(-2, 1.5, 15, dtype=torch.float64):
        for size in torch.logspace(-2, 2, 41, dtype=torch.float64):
            x = signs.clone()
            x[0] = spike * math.sqrt(n)
            points.append(x * scale * size * math.sqrt(n) / x.norm())
    points += list(torch.randn(5, n, generator=generator, dtype=torch.float64) * scale)
    return torch.stack(points)


def row_sums(n: int, epsilon: float, x: Tensor) -> Tensor:
    """The largest absolute row sum of the Jacobian at each of the points; it is symmetric."""
    s = (x.square().mean(1, keepdim=True) + epsilon).sqrt()
    y = x / s
    own = (1.0 - y.square() / n).abs()
    others = y.abs() * (y.abs().sum(1, keepdim=True) - y.abs()) / n
    return ((own + others) / s).amax(1)


def test_the_jacobian() -> None:
    graph = rms(5, 0.3)
    x = torch.randn(5, dtype=torch.float64)
    J = torch.func.jacrev(lambda y: graph(y[None])[0])(x)
    torch.testing.assert_close(J, jacobian(5, 0.3, x), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(row_sums(5, 0.3, x[None])[0], J.abs().sum(1).max(), rtol=1e-12, atol=1e-12)
    value, tangent = graph.tangent(x[None], torch.eye(5, dtype=torch.float64)[:1])
    torch.testing.assert_close(value, F.rms_norm(x[None], (5,), eps=0.3), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(tangent[0], J[:, 0], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("epsilon", [1e-12, 1e-5, 1.0, 1e3])
@pytest.mark.parametrize("n", [1, 2, 3, 4, 5, 7, 40, 300, 2000])
def test_the_constants_are_reached_and_never_exceeded(n: int, epsilon: float) -> None:
    graph = rms(n, epsilon)
    x = nasty(n, epsilon)
    largest = float(row_sums(n, epsilon, x).max())
    for p in (1, "inf"):
        bound = output_constants(graph, p, p)[p]
        assert largest <= bound * (1.0 + 1e-13)
        assert largest >= bound * (1.0 - 0.02)  # on a grid of spikes and sizes
    bound = output_constants(graph, 2, 2)[2]
    assert bound == pytest.approx(epsilon**-0.5, rel=1e-14)
    assert bound * bound * epsilon >= 1.0 - 1e-15


@pytest.mark.parametrize("n", [5, 40, 2000])
def test_the_constant_is_the_maximum_of_its_formula(n: int) -> None:
    """At the very maximiser the bound is reached to rounding."""
    c = (math.sqrt(n) - 1.0) / 2.0
    r = (2.0 * c - 1.0) / (3.0 * c)
    angle = 0.5 * (math.pi - math.atan(math.sqrt(n - 1.0)))
    y = torch.full((n,), math.sqrt(n * r / (n - 1.0)) * math.sin(angle), dtype=torch.float64)
    y[0] = math.sqrt(n * r) * math.cos(angle)
    x = y * math.sqrt(1.0 / (1.0 - r))  # for epsilon one, the divisor is the root of 1 / (1 - r)
    assert float(row_sums(n, 1.0, x[None])[0]) == pytest.approx(root_mean_square_norm_up(n, 1.0, "inf"), rel=1e-11)


def test_running_error_holds_the_exact_value() -> None:
    epsilon = 1e-5
    x = torch.randn(3, 6, dtype=torch.float64) * torch.tensor([[1e-4], [1.0], [1e5]], dtype=torch.float64)
    found = enclose(rms(3, epsilon, 2), x)
    with localcontext() as context:
        context.prec = 60
        for row, values, errors in zip(x, found.value, found.error, strict=True):
            for start in (0, 3):
                entries = [Decimal(float(t)) for t in row[start : start + 3]]
                root = (sum(t * t for t in entries) / 3 + Decimal(epsilon)).sqrt()
                for i, t in enumerate(entries):
                    away = abs(t / root - Decimal(float(values[start + i])))
                    assert away <= Decimal(float(errors[start + i]))


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("n", [1, 2, 6])
def test_intervals(n: int, norm: Norm) -> None:
    graph = rms(n, 0.01, 2)
    for radius in (1e-3, 0.1, 10.0):
        ball = balls_of(graph, radius, norm)
        for linear in (False, True):
            found = forward_bounds(graph, ball, layer_norms(graph, norm), linear=linear)
            require_inside(graph, ball, found)
            assert float(found[-1].upper.max()) <= math.sqrt(n) * (1.0 + 1e-12)


# --- capture ---------------------------------------------------------------------------------------------------------


def pixels(x: Tensor) -> Tensor:
    return x / torch.sqrt(torch.mean(x * x, dim=1, keepdim=True) + 1e-8)


Function = Callable[[Tensor], Tensor]
FORMS: dict[str, tuple[nn.Module, tuple[int, ...], int]] = {
    "torch's, without epsilon": (nn.RMSNorm(6), (6,), 1),
    "torch's": (nn.RMSNorm(4, eps=1e-3), (3, 4), 3),
    "torch's, two axes": (nn.RMSNorm((3, 4), eps=1e-3, elementwise_affine=False), (2, 3, 4), 2),
    "pixels": (Lambda(pixels), (3, 2, 2), 4),
    "of space": (Lambda(lambda x: x * (x.square().mean((2, 3), keepdim=True) + 1e-6).pow(-0.5)), (2, 3, 2), 2),
    "of an activation": (Lambda(lambda x: pixels(x.relu())), (4,), 1),
    "reciprocal": (Lambda(lambda x: (1.0 / (x.pow(2).mean(1, True) + 0.1).sqrt()) * x), (4,), 1),
    "of what is centred": (Lambda(lambda x: pixels(x - x.mean(1, keepdim=True))), (4,), 1),
}


@pytest.mark.parametrize("name", FORMS)
def test_forms(name: str) -> None:
    module, shape, groups = FORMS[name]
    graph = agrees(module, shape) if "without" not in name else lipbridge.capture(module, shape)
    (node,) = (node for node in graph if isinstance(node, Normalize))
    assert (node.groups, node.centred) == (groups, False)


def test_an_epsilon_that_is_not_given_is_that_of_the_modules_own_dtype() -> None:
    """Double precision would take 2e-16, and have a bound that is 2e4 times as large."""
    for dtype in (torch.float32, torch.float64):
        graph = lipbridge.capture(nn.Sequential(nn.Linear(3, 4), nn.RMSNorm(4)).to(dtype))
        (node,) = (node for node in graph if isinstance(node, Normalize))
        assert node.epsilon == torch.finfo(dtype).eps


def test_half_precision_takes_the_epsilon_of_float32() -> None:
    """bfloat16's own, 0.008, would have a bound that is 250 times too small."""
    x = torch.full((1, 4), 1e-2, dtype=torch.bfloat16)
    assert float(nn.RMSNorm(4, dtype=torch.bfloat16)(x).min()) > 0.99
    assert default_epsilon(torch.bfloat16) == default_epsilon(torch.float16) == torch.finfo(torch.float32).eps


def test_a_llamas() -> None:
    module = Llama(5)
    graph = lipbridge.capture(module, (3, 5))
    assert kinds(graph)[0] == "Normalize"
    x = torch.randn(4, 3, 5)
    torch.testing.assert_close(graph(x.double()).float(), module(x), rtol=1e-5, atol=1e-5)
    penalty = lipbridge.TrivialBoundPenalty(module, 2, input_shape=(3, 5))
    penalty().backward()
    assert float(module.weight.grad.abs().sum()) > 0.0


@pytest.mark.parametrize(
    "function",
    [
        lambda x: x.pow(2),
        lambda x: x.pow(2).mean(1, keepdim=True),
        lambda x: x * x.pow(2).mean(1, keepdim=True),
        lambda x: x / x.square().mean(1, keepdim=True).sqrt(),
        lambda x: x.relu() * (x.square().mean(1, keepdim=True) + 1.0).rsqrt(),
        lambda x: x * (x.square().mean(0, keepdim=True) + 1.0).rsqrt(),
        lambda x: x * (x.square().mean(1) + 1.0).rsqrt()[:, None],
        lambda x: x.rsqrt(),
    ],
)
def test_what_is_no_such_normalisation_is_refused(function: Function) -> None:
    with pytest.raises(UnsupportedOperation):
        lipbridge.capture(Lambda(function), (4,))
