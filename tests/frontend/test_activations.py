"""Activations of torch beyond the plain ones: read as torch computes them for every parameter, or refused in words."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import lipbridge
from lipbridge.errors import UnsupportedOperation
from lipbridge.graph.evaluation import evaluate
from lipbridge.graph.graph import Graph
from lipbridge.graph.nodes import Conv, Dense, Elementwise, Input, Node
from lipbridge.vocabulary import NORMS, Norm, exponent

POINTS = torch.cat(
    [
        torch.linspace(-12.0, 12.0, 4801, dtype=torch.float64),
        torch.tensor([s * 10.0**e for e in range(-12, 4) for s in (1, -1)], dtype=torch.float64),
    ]
).sort()[0]
RATE = math.sqrt(2.0 / math.pi)


class Of(nn.Module):
    """A function as a module."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


def steepest(module: nn.Module) -> float:
    """The largest difference quotient of a scalar function over neighbouring points: never above the constant."""
    with torch.no_grad():
        y = module.double()(POINTS[:, None].clone()).flatten()
    return float((y.diff() / POINTS.diff()).abs()[POINTS.diff() > 1e-4].max())


SCALAR = [
    (nn.SELU(), 1.0507009873554805 * 1.6732632423543772),
    (nn.SELU(inplace=True), 1.0507009873554805 * 1.6732632423543772),
    (nn.CELU(), 1.0),
    (nn.CELU(0.3), 1.0),
    (nn.CELU(7.0, inplace=True), 1.0),
    (nn.ELU(2.5), 2.5),
    (nn.ELU(-0.5, inplace=True), 1.0),
    (nn.ELU(-3.0), 3.0),
    (Of(lambda x: torch._C._nn.elu(x, 1.0, 2.0, 0.5)), 2.0),
    (Of(lambda x: torch._C._nn.elu(x, 3.0, 2.0, 0.5)), 3.0),
    (Of(lambda x: torch._C._nn.elu(x, 1.0, -2.0, 1.0)), 2.0),
    (nn.Hardsigmoid(), 1 / 6),
    (nn.Hardsigmoid(inplace=True), 1 / 6),
    (nn.Hardswish(), 1.5),
    (nn.Hardswish(inplace=True), 1.5),
    (nn.Mish(), 1.0884981612517279),
    (nn.Mish(inplace=True), 1.0884981612517279),
    (nn.Softshrink(), 1.0),
    (nn.Softshrink(0.0), 1.0),
    (nn.Softshrink(3.0), 1.0),
    (nn.Hardshrink(0.0), 1.0),
    (nn.Threshold(0.7, 0.7), 1.0),
    (nn.Threshold(-2.0, -2.0, inplace=True), 1.0),
    (nn.LogSigmoid(), 1.0),
    (nn.GELU(approximate="tanh"), 1.1289930686587717),
    (nn.PReLU(), 1.0),
    (nn.PReLU(init=-2.5), 2.5),
    (nn.PReLU(init=1.5), 1.5),
    (nn.PReLU(init=0.0), 1.0),
    (nn.Tanhshrink(), 1.0),
    (nn.RReLU(), 1.0),
    (nn.RReLU(1.0, 3.0), 2.0),
    (nn.ReLU6(), 1.0),
    (nn.Hardtanh(-0.5, 2.0, inplace=True), 1.0),
    (Of(torch.atan), 1.0),
    (Of(torch.arctan), 1.0),
    (Of(torch.erf), 2 / math.sqrt(math.pi)),
    (Of(torch.special.erf), 2 / math.sqrt(math.pi)),
    (Of(torch.special.expit), 0.25),
    (Of(lambda x: F.logsigmoid(2.0 * x + 1.0)), 2.0),
    (Of(lambda x: F.selu(0.5 * x - 1.0)), 0.5 * 1.0507009873554805 * 1.6732632423543772),
    (Of(lambda x: F.hardsigmoid(-3.0 * x)), 0.5),
    (Of(lambda x: F.hardsigmoid(0.1 * x + 0.3)), 0.1 / 6),
    (Of(lambda x: F.softshrink(-x)), 1.0),
    (Of(lambda x: F.mish(F.hardswish(x))), 1.5 * 1.0884981612517279),
]


@pytest.mark.parametrize(("module", "constant"), SCALAR, ids=lambda value: str(value)[:40])
def test_scalar_functions_are_read_rightly_and_tightly(module: nn.Module, constant: float) -> None:
    if getattr(module, "inplace", False):
        module = nn.Sequential(Of(lambda x: -x), module, Of(lambda x: -x))
    module = module.double().eval()
    graph = lipbridge.capture(module, (1,))
    with torch.no_grad():
        torch.testing.assert_close(graph(POINTS[:, None]), module(POINTS[:, None].clone()), rtol=1e-9, atol=1e-12)
    for norm in NORMS:
        bound = lipbridge.trivial_bound(graph, norm).value
        assert steepest(module) <= bound * (1 + 1e-9)
        assert constant * (1 - 1e-15) <= bound <= constant * (1 + 1e-6)


@pytest.mark.parametrize(
    ("module", "words"),
    [
        (nn.CELU(-1.0), "exponentially"),
        (Of(lambda x: torch.celu(x, -0.5)), "exponentially"),
        (Of(lambda x: torch._C._nn.elu(x, 1.0, 1.0, -1.0)), "exponentially"),
        (Of(lambda x: torch._C._nn.elu(x, 0.3, 1.0, 0.3)), "no doubles"),
        (nn.CELU(1e-305), "reciprocal"),
        (nn.Hardshrink(), "jumps"),
        (nn.Threshold(0.1, 0.0), "jumps"),
        (nn.Threshold(0.0, -1.0, inplace=True), "jumps"),
        (nn.ELU(math.inf), "finite"),
        (Of(lambda x: F.rrelu(x, training=True)), "random"),
        (Of(lambda x: torch.prelu(x, x[0, :1])), "Layer"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_what_has_no_constant_is_refused(module: nn.Module, words: str) -> None:
    module = nn.Sequential(Of(lambda x: -x), module)
    with pytest.raises(UnsupportedOperation, match=words):
        lipbridge.capture(module.eval(), (4,))


# --- slopes of their own for each channel ----------------------------------------------------------------------------


def with_slopes(*slopes: float) -> nn.PReLU:
    module = nn.PReLU(len(slopes)).double()
    with torch.no_grad():
        module.weight.copy_(torch.tensor(slopes, dtype=torch.float64))
    return module


def witness(graph: Graph, norm: Norm) -> float:
    """The largest gain of random pairs of points."""
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(2, 4000, *graph.input_shape, dtype=torch.float64, generator=generator)
    gains = [torch.linalg.vector_norm(t.flatten(1), exponent(norm), dim=1) for t in (graph(x) - graph(y), x - y)]
    return float((gains[0] / gains[1]).max())


@pytest.mark.parametrize(
    "function",
    [lambda x: F.softshrink(x + 2.0**53, 0.5), lambda x: torch._C._nn.elu(0.1 * x, 0.5, 3.0, 0.75)],
)
def test_lines_that_would_be_rounded_are_nodes(function: Callable[[Tensor], Tensor]) -> None:
    """A shift by 2^53 + 1/2 and a factor of 0.1 times 3/4 are no doubles: the line is a layer of its own."""
    _, line, bent = lipbridge.capture(Of(function).double(), (1,)).nodes
    assert isinstance(line, Elementwise)
    assert line.activation.name == "identity" or line.activation.components[0][0].function == "identity"
    assert isinstance(bent, Elementwise)


@pytest.mark.parametrize(
    "slopes", [(0.25, 0.25, 0.25), (-0.1, 0.6, 0.3), (0.0, 1.0, 0.5), (-4.0, 3.0, 0.0), (1e-30, 0.25, -1e150)]
)
@pytest.mark.parametrize("space", [(), (5,), (2, 3)])
def test_channelwise_prelu(slopes: tuple[float, ...], space: tuple[int, ...]) -> None:
    module = with_slopes(*slopes)
    shape = (3, *space)
    graph = lipbridge.capture(module, shape)
    x = torch.randn(50, *shape, dtype=torch.float64) * 3
    with torch.no_grad():
        torch.testing.assert_close(graph(x), module(x), rtol=1e-12, atol=1e-12 * max(1.0, *map(abs, slopes)))
    steepest_slope = max(map(abs, slopes))
    constant = max(1.0, steepest_slope)
    for norm in NORMS:
        bound = lipbridge.trivial_bound(graph, norm).value
        assert constant <= bound
        assert witness(graph, norm) <= bound * (1 + 1e-12)  # the witness is rounded
        assert bound == constant
    for axis, slope in enumerate(slopes):  # each channel by itself, at the place where its slope counts
        one = torch.zeros(1, *shape, dtype=torch.float64)
        one[0, axis] = -1.0
        expected = torch.full(space, -slope, dtype=torch.float64)
        torch.testing.assert_close(graph(one)[0, axis], expected, rtol=1e-12, atol=1e-14)


def test_fixed_slopes_of_their_own() -> None:
    slopes = torch.tensor([0.5, 0.5, -3.0])
    for chosen, constant in ((slopes, 3.0), (slopes[:2], 1.0)):
        graph = lipbridge.capture(Of(lambda x, a=chosen: F.prelu(x, a)), (len(chosen),))
        assert lipbridge.trivial_bound(graph, "inf").value == constant


def test_slopes_along_another_axis_than_channels_are_refused() -> None:
    class Kernel(nn.Module):
        def __init__(self, *shape: int) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.arange(3.0).reshape(shape))

        def forward(self, x: Tensor) -> Tensor:
            return torch.ops.aten._prelu_kernel(x, self.weight)

    x = torch.randn(4, 3, 3)
    with torch.no_grad():
        graph = lipbridge.capture(Kernel(1, 3, 1), (3, 3))
        torch.testing.assert_close(graph(x.double()), Kernel(1, 3, 1)(x).double())
    for shape in ((3,), (1, 1, 3)):
        with pytest.raises(UnsupportedOperation, match="slopes"):
            lipbridge.capture(Kernel(*shape), (3, 3))


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize(("slopes", "start"), [(1, 0.25), (1, -3.0), (5, 0.5), (5, 2.0)])
def test_slopes_are_live_in_the_penalty(slopes: int, start: float, norm: Norm) -> None:
    torch.manual_seed(0)
    layers = nn.Sequential(nn.Linear(4, 5), nn.PReLU(slopes, init=start), nn.Linear(5, 2)).double()
    penalty = lipbridge.TrivialBoundPenalty(layers, norm, "log", every=1)
    weight = layers[1].weight

    def log_bound() -> float:
        return float(penalty().detach())

    for factor in (1.0, 3.0, -2.0):
        with torch.no_grad():
            weight.copy_(start * factor * torch.linspace(0.9, 1.0, slopes))
        weight.grad = None
        value = penalty()
        value.backward()
        fresh = lipbridge.trivial_bound(layers, norm).value
        assert penalty.bound().value == fresh
        assert math.exp(float(value.detach())) == pytest.approx(fresh, rel=0.12)  # smooth norms
        assert weight.grad is not None
        step = 1e-3 * torch.randn(slopes, dtype=torch.float64)
        ends: list[float] = []
        for sign in (1.0, -2.0):
            with torch.no_grad():
                weight.add_(sign * step)
            ends.append(log_bound())
        rise = float(weight.grad @ step)
        assert ends[0] - ends[1] == pytest.approx(2.0 * rise, rel=2e-2, abs=1e-5)
        if slopes == 1:  # max(1, |a|)
            slope = start * factor * 0.9
            assert float(weight.grad) == pytest.approx(1.0 / slope if abs(slope) > 1.0 else 0.0, rel=1e-5)


def test_slopes_that_are_tied_or_computed_are_live() -> None:
    class Computed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.raw = nn.Linear(4, 3), nn.Parameter(torch.full((3,), 0.9))

        def forward(self, x: Tensor) -> Tensor:
            return F.prelu(F.prelu(self.one(x), self.raw.exp()), -self.raw[:1] * 4.0)

    torch.manual_seed(1)
    module = Computed()
    penalty = lipbridge.TrivialBoundPenalty(module, "inf", input_shape=(4,))
    for value in (0.9, -2.0):
        with torch.no_grad():
            module.raw.fill_(value)
        assert penalty.bound().value == lipbridge.trivial_bound(module, "inf", input_shape=(4,)).value
    module.raw.grad = None
    lipbridge.TrivialBoundPenalty(module, "inf", input_shape=(4,))().backward()
    assert module.raw.grad is not None
    assert bool(module.raw.grad.abs().sum() > 0.0)


class Chosen(nn.Module):
    """A choice with one learned number."""

    def __init__(self, choice: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.choice, self.a = choice, nn.Parameter(torch.tensor([0.3], dtype=torch.float64))

    def forward(self, x: Tensor) -> Tensor:
        return self.choice(x, self.a)


@pytest.mark.parametrize(
    "choice",
    [
        lambda x, a: torch.where(x > 0, x, a * x),
        lambda x, a: torch.where(x >= 0, x, x * a.squeeze()),
        lambda x, a: torch.where(x < 0, a * x, x),
        lambda x, a: torch.where(2.0 * x <= 0, a * (2.0 * x), 2.0 * x) / 2.0,
    ],
)
def test_a_choice_with_a_learned_slope_is_a_prelu(choice: Callable[[Tensor, Tensor], Tensor]) -> None:
    module = Chosen(choice)
    x = torch.randn(20, 3, dtype=torch.float64)
    penalty = lipbridge.TrivialBoundPenalty(module, "inf", input_shape=(3,), every=1)
    for slope in (0.3, -2.5, 4.0):
        with torch.no_grad():
            module.a.fill_(slope)
            graph = lipbridge.capture(module, (3,))
            torch.testing.assert_close(graph(x), module(x))
        assert lipbridge.trivial_bound(graph, "inf").value == pytest.approx(max(1.0, abs(slope)), rel=1e-12)
        assert penalty.bound().value == lipbridge.trivial_bound(graph, "inf").value
        assert float(penalty().detach()) == pytest.approx(max(1.0, abs(slope)), rel=1e-6)
    module.a.grad = None
    penalty().backward()
    assert float(module.a.grad) == pytest.approx(1.0, rel=1e-6)


@pytest.mark.parametrize(
    "choice",
    [
        lambda x, a: torch.where(x > 0, a * x, x),
        lambda x, a: torch.where(x > 1, x, a * x),
        lambda x, a: torch.where(x > 0, x, a * x.flip(1)),
        lambda x, a: torch.where(x > 0, x, a + x),
        lambda x, a: torch.where(x > 0, x, a * a * x.abs()),
    ],
)
def test_other_choices_with_learned_numbers_are_refused(choice: Callable[[Tensor, Tensor], Tensor]) -> None:
    with pytest.raises(UnsupportedOperation, match="branches"):
        lipbridge.capture(Chosen(choice), (3,))


# --- piecewise linear functions --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "module", [nn.Hardtanh(-0.5, 2.0), nn.ReLU6(), nn.Softshrink(), nn.Threshold(1.0, 1.0)], ids=str
)
def test_clipped_lines_have_slopes_between_zero_and_one(module: nn.Module) -> None:
    (node,) = (n for n in lipbridge.capture(module, (3,)) if isinstance(n, Elementwise))
    assert node.activation.slopes == ((0.0, 1.0),)
    assert node.activation.lipschitz == {1: 1.0, 2: 1.0, "inf": 1.0}


# --- written out -----------------------------------------------------------------------------------------------------

RATE = math.sqrt(2.0 / math.pi)
GELU, GELU_TANH, MISH = 1.1289041451852, 1.1289930686587717, 1.0884981612517279
SILU = 1.0998393201289
WRITTEN = [
    (lambda x: x * torch.sigmoid(x), "silu", SILU),
    (lambda x: torch.sigmoid(x) * x, "silu", SILU),
    (lambda x: x * torch.sigmoid(1.702 * x), None, SILU),
    (lambda x: (x + 1.0) * torch.sigmoid(2.0 * x + 2.0), None, SILU),
    (lambda x: 0.5 * x * (1.0 + torch.erf(x / math.sqrt(2.0))), "gelu", GELU),
    (lambda x: x * 0.5 * (1.0 + torch.erf(x * 0.7071067811865476)), "gelu", GELU),
    (lambda x: 3.0 * x * (0.5 + 0.5 * torch.erf(x * 0.3)), None, 3.0 * GELU),
    (lambda x: 0.5 * x * (1.0 + torch.tanh(RATE * (x + 0.044715 * torch.pow(x, 3.0)))), "gelu_tanh", GELU_TANH),
    (lambda x: 0.5 * x * (1.0 + torch.tanh(RATE * (x + 0.044715 * x * x * x))), "gelu_tanh", GELU_TANH),
    (lambda x: 0.5 * x * (1.0 + torch.tanh(x * 0.7978845608 * (1.0 + 0.044715 * x * x))), None, None),
    (lambda x: x * torch.tanh(F.softplus(x)), "mish", MISH),
    (lambda x: x * torch.tanh(F.softplus(2.0 * x)), None, MISH),
    (lambda x: x * F.relu6(x + 3.0) / 6.0, None, 1.5),
    (lambda x: x * (F.relu6(x + 3.0) / 6.0), None, 1.5),
    (lambda x: x * F.hardsigmoid(x), None, 1.5),
    (lambda x: x * torch.clamp(x * 0.2 + 0.5, 0.0, 1.0), None, 1.5),
    (lambda x: x / (1.0 + x.abs()), "softsign", 1.0),
    (lambda x: torch.sin(x) * torch.sin(x), "sin_squared", 1.0),
]


@pytest.mark.parametrize(("function", "name", "constant"), WRITTEN, ids=range(len(WRITTEN)))
def test_activations_written_out(
    function: Callable[[Tensor], Tensor], name: str | None, constant: float | None
) -> None:
    module = Of(function)
    if constant is None:
        with pytest.raises(UnsupportedOperation, match="Lipschitz"):
            lipbridge.capture(module, (1,))
        return
    graph = lipbridge.capture(module, (1,))
    with torch.no_grad():
        torch.testing.assert_close(graph(POINTS[:, None]), module(POINTS[:, None]), rtol=1e-9, atol=1e-12)
    if name is not None:
        assert [n.activation.name for n in graph if isinstance(n, Elementwise)] == [name]
    bound = lipbridge.trivial_bound(graph).value
    assert steepest(module) <= bound * (1 + 1e-9)
    assert constant * (1 - 1e-12) <= bound <= constant * (1 + 1e-6)


def test_factors_of_products_that_are_no_doubles_are_rounded_away_and_never_cancelled() -> None:
    graph = lipbridge.capture(Of(lambda x: (x / 3) * x.sigmoid()).double(), (1,))
    (term,) = graph.nodes[-1].activation.components[0]
    assert term.function == "silu"
    assert Fraction(1, 3) <= Fraction(term.coefficient) <= Fraction(1, 3) + Fraction(2) ** -53
    above = math.nextafter(1 / 3, 1.0)
    left = lipbridge.capture(Of(lambda x: (x / 3) * x.sigmoid() - F.silu(x) * above).double(), (1,))
    assert lipbridge.trivial_bound(left).value >= abs(Fraction(1, 3) - Fraction(above))
    lipbridge.capture(Of(lambda x: x * (1.0 + torch.erf(0.71 * x))).double(), (1,))  # of another width than GELU's
    sixth = math.nextafter(1 / 6, 1.0)
    left = lipbridge.capture(Of(lambda x: F.hardsigmoid(x) - sixth * (F.relu(x + 3) - F.relu(x - 3))).double(), (1,))
    assert lipbridge.trivial_bound(left).value >= abs(Fraction(1, 6) - Fraction(sixth))


@pytest.mark.parametrize(
    "function",
    [
        lambda x: x * x,
        lambda x: x**3,
        lambda x: x**3 - x**3,
        lambda x: torch.tanh(x**3),
        lambda x: torch.tanh(x + 0.044715 * x**3),
        lambda x: x * torch.tanh(x + 0.044715 * x**3),
        lambda x: x * (1.0 + torch.tanh(0.8 * (x + 0.3 * x**3))),
        lambda x: x * torch.relu(x),
        lambda x: x * torch.sigmoid(x + 1.0),
        lambda x: x * (2.0 + torch.erf(x)),
        lambda x: (x + 1.0) * torch.tanh(F.softplus(x)),
        lambda x: x * torch.tanh(F.softplus(x, beta=2.0)),
        lambda x: x.flip(1) * torch.sigmoid(x),
        lambda x: (x + 1.0) * (1.0 + torch.erf(x)),
        lambda x: x * (torch.relu(x + 3.0) - 2.0 * torch.relu(x - 3.0)),
        lambda x: x * (2.0 + torch.tanh(RATE * (x + 0.044715 * x**3))),
        lambda x: x * (torch.tanh(RATE * (x + 0.044715 * x**3)) - 1.0),
        lambda x: x * (1.0 + torch.tanh(RATE * (x + 0.1 * x**2 + 0.044715 * x**3))),
        lambda x: x.flip(1) * torch.tanh(F.softplus(x)),
        lambda x: x / (1.0 - x.abs()),
        lambda x: x**2.5,
        lambda x: x * x * x * x,
    ],
    ids=range(22),
)
def test_other_products_have_no_constant(function: Callable[[Tensor], Tensor]) -> None:
    with pytest.raises(UnsupportedOperation) as refused:
        lipbridge.capture(Of(function), (2,))
    assert "check of the captured" not in str(refused.value)  # it is refused as what it is, not for its values


# --- the constant of two slopes for each coordinate ------------------------------------------------------------------


def behind_crelu(weight: Tensor, space: tuple[int, ...] = (), axis: int = 0, **changes: Any) -> Graph:
    """A layer on (relu t, relu -t), for t of shape (3, *space) or blocks along another axis."""
    shape = (3, *space)
    doubled = tuple(2 * size if i == axis else size for i, size in enumerate(shape))
    source: list[Node] = [Input("x", (), shape), Elementwise("g", (0,), doubled, lipbridge.activation("crelu"), axis)]
    if not space:
        return Graph((*source, Dense("d", (1,), (len(weight),), weight)))
    ones = (1,) * len(space)
    node = Conv("c", (1,), (len(weight), *space), weight, None, ones, ((0, 0),) * len(space), ones)
    node = replace(node, **changes)
    found = evaluate(node, [torch.zeros(1, *doubled, dtype=torch.float64)])
    return Graph((*source, replace(node, shape=tuple(found.shape[1:]))))


def steepest_jacobian(graph: Graph, norm: Norm) -> float:
    generator = torch.Generator().manual_seed(0)
    found = 0.0
    for _ in range(40):
        x = torch.randn(1, *graph.input_shape, dtype=torch.float64, generator=generator)
        J = torch.autograd.functional.jacobian(lambda t: graph(t).flatten(), x).flatten(1)
        found = max(found, float(torch.linalg.matrix_norm(J, exponent(norm))))
    return found


@pytest.mark.parametrize("space", [(), (4,), (2, 3)])
@pytest.mark.parametrize("norm", NORMS)
def test_two_slopes_for_each_coordinate(space: tuple[int, ...], norm: Norm) -> None:
    for seed in range(10):
        d, e = torch.randn(2, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
        W = torch.cat([torch.diag(d), torch.diag(e)], 1)
        graph = behind_crelu(W.reshape(3, 6, *(1,) * len(space)), space)
        bound = lipbridge.trivial_bound(graph, norm).value
        assert bound == float(W.abs().max())
        assert steepest_jacobian(graph, norm) <= bound


@pytest.mark.parametrize("norm", NORMS)
def test_other_layers_behind_it_have_the_product_of_the_norms(norm: Norm) -> None:
    torch.manual_seed(0)
    both = torch.cat([torch.eye(3), 0.5 * torch.eye(3)], 1).double()
    mixed, wide = both.clone(), torch.zeros(3, 6, 3, dtype=torch.float64)
    mixed[0, 1] = 2.0
    wide[:, :, 0], wide[:, :, 2] = both, both
    swapped = both[:, [3, 1, 2, 0, 4, 5]]
    cases = [
        behind_crelu(mixed),
        behind_crelu(both.roll(1, 1)),
        behind_crelu(swapped[[1, 0, 2]]),
        behind_crelu(torch.ones(1, 6, dtype=torch.float64)),
        behind_crelu(torch.cat([both, both])),
        behind_crelu(wide, (4,), padding=((1, 1),)),
        behind_crelu(both[:, :, None], (4,), padding=((1, 0),)),
        behind_crelu(torch.randn(3, 3, 1, dtype=torch.float64), (4,), axis=1),
        behind_crelu(torch.randn(6, 3, 1, dtype=torch.float64), (4,), groups=2),
    ]
    for graph in cases:
        assert steepest_jacobian(graph, norm) <= lipbridge.trivial_bound(graph, norm).value * (1 + 1e-12)
