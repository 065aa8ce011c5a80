"""Every option of every layer, away from its default: read as torch computes it, in float64 and to its last digits."""

from __future__ import annotations

import math
from collections.abc import Callable
from fractions import Fraction

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import lipbridge
from lipbridge.graph.graph import Graph
from lipbridge.graph.nodes import Conv, ConvTranspose, Dense


class Of(nn.Module):
    """A function as a module."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


def trained(module: nn.Module) -> nn.Module:
    """In float64 and eval mode, with numbers that float32 does not hold."""
    module = module.double().eval()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, tensor in module.state_dict().items():
            if tensor.is_floating_point():
                drawn = torch.randn(tensor.shape, generator=generator, dtype=torch.float64)
                tensor.copy_(drawn.abs() + 0.1 if "var" in name else drawn)
    return module


def agrees(module: nn.Module, shape: tuple[int, ...]) -> Graph:
    graph = lipbridge.capture(module, shape)
    x = torch.randn(3, *shape, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        torch.testing.assert_close(graph(x), module(x), rtol=1e-12, atol=1e-12)
    return graph


def padded(*widths: int, mode: str = "constant", value: float | None = None) -> nn.Module:
    return Of(lambda x: F.pad(x, widths, mode, value))


LAYERS: list[tuple[nn.Module, tuple[int, ...]]] = [
    (nn.Conv1d(2, 3, 4, stride=2, padding=3, dilation=2), (2, 9)),
    (nn.Conv1d(2, 2, 2, padding="same", dilation=3), (2, 7)),
    (nn.Conv1d(2, 4, 4, padding="same", groups=2, padding_mode="circular"), (2, 7)),
    (nn.Conv2d(2, 3, (2, 3), stride=(1, 2), padding=(0, 2), dilation=(3, 1)), (2, 6, 5)),
    (nn.Conv2d(2, 2, (2, 4), padding="same", dilation=(1, 2), padding_mode="reflect", bias=False), (2, 5, 8)),
    (nn.Conv2d(4, 4, (1, 2), stride=(2, 1), padding=(1, 2), groups=4, padding_mode="replicate"), (4, 4, 5)),
    (nn.Conv3d(1, 2, (2, 1, 2), stride=(1, 2, 1), padding=(1, 0, 2), dilation=(1, 1, 2)), (1, 3, 4, 3)),
    *(
        (nn.Sequential(padded(0, 2, 1, 3, mode=mode), nn.Conv2d(1, 2, (2, 3), dilation=(2, 1))), (1, 4, 4))
        for mode in ("constant", "circular", "reflect", "replicate")
    ),
    (nn.Sequential(padded(0, 2), padded(1, 0), nn.Conv1d(2, 2, 2)), (2, 4)),
    (nn.Sequential(padded(0, 1, mode="circular"), padded(1, 0, mode="reflect"), nn.Conv1d(2, 2, 2)), (2, 4)),
    (nn.Sequential(padded(0, 2, mode="circular"), nn.Conv1d(2, 2, 2, padding=1)), (2, 4)),
    (nn.Sequential(padded(0, 2), nn.Conv1d(2, 2, 2, padding=(1,))), (2, 4)),
    (nn.Sequential(padded(0, 2, value=1.5), nn.Conv1d(2, 2, 3)), (2, 4)),
    (nn.Sequential(padded(1, 2, 0, 1, value=-0.3), nn.MaxPool2d(2)), (2, 4, 4)),
    (nn.Sequential(padded(0, 1), nn.MaxPool1d(2)), (2, 5)),
    (nn.Sequential(padded(1, 1), nn.MaxPool1d(3)), (2, 5)),
    (nn.Sequential(padded(1, 1, value=-math.inf), nn.MaxPool1d(3)), (2, 5)),
    (nn.Sequential(padded(1, 1, 0, 0, value=-math.inf), nn.MaxPool2d((1, 2), stride=2)), (2, 4, 5)),
    (Of(lambda x: F.pad(x, (1, 2), value=-0.3)), (2, 4)),
    (nn.ConvTranspose1d(2, 3, 3, stride=3, padding=1, output_padding=2, dilation=2), (2, 4)),
    (nn.ConvTranspose1d(2, 2, 2, stride=2, output_padding=1, groups=2), (2, 3)),
    (
        nn.ConvTranspose2d(2, 3, (2, 3), stride=(1, 3), padding=(1, 0), output_padding=(0, 2), dilation=(2, 1)),
        (2, 3, 2),
    ),
    (nn.ConvTranspose2d(4, 2, (3, 1), stride=(2, 1), groups=2, bias=False), (4, 2, 3)),
    (nn.AvgPool1d(3, stride=2, padding=1, count_include_pad=False), (2, 6)),
    (nn.AvgPool1d(4, stride=3, padding=2, ceil_mode=True), (2, 6)),
    (nn.AvgPool1d(2, stride=3, ceil_mode=True, count_include_pad=False), (2, 7)),
    (nn.AvgPool2d((3, 2), (2, 3), (1, 0), ceil_mode=True), (2, 6, 7)),
    (nn.AvgPool2d((2, 3), (1, 2), (1, 1), ceil_mode=True, count_include_pad=False), (2, 4, 5)),
    (nn.AvgPool2d((2, 3), (1, 2), (1, 1), divisor_override=5), (2, 4, 5)),
    (nn.AvgPool2d(3, 2, 1, ceil_mode=True, divisor_override=-7), (1, 4, 4)),
    (nn.AvgPool3d((1, 2, 3), (1, 2, 1), (0, 1, 1), count_include_pad=False), (1, 2, 3, 4)),
    (nn.AdaptiveAvgPool1d(4), (2, 7)),
    (nn.AdaptiveAvgPool2d((3, 2)), (2, 7, 5)),
    (nn.AdaptiveMaxPool1d(3), (2, 7)),
    (nn.AdaptiveMaxPool2d((2, 3)), (2, 5, 7)),
    (nn.MaxPool1d(2, stride=3, padding=1, dilation=2, ceil_mode=True), (2, 8)),
    (nn.MaxPool2d((3, 2), (2, 1), (1, 0), (1, 3), ceil_mode=True), (2, 6, 5)),
    (nn.BatchNorm2d(3, eps=0.5), (3, 2, 2)),
    (nn.BatchNorm1d(3, eps=1e-3, affine=False), (3,)),
    (nn.LayerNorm((2, 3), eps=0.25, bias=False), (4, 2, 3)),
    (nn.LayerNorm(3, eps=1e-3, elementwise_affine=False), (4, 3)),
    (nn.GroupNorm(3, 6, eps=0.1), (6, 2)),
    (nn.GroupNorm(2, 4, affine=False), (4, 2, 2)),
    (nn.InstanceNorm1d(3, eps=0.1, affine=True), (3, 4)),
    (nn.InstanceNorm2d(2, eps=0.1, affine=True, track_running_stats=True), (2, 3, 2)),
    (nn.RMSNorm((2, 3), eps=0.3), (4, 2, 3)),
    (nn.RMSNorm(3), (2, 3)),
    (nn.Upsample(scale_factor=1.7, mode="linear", recompute_scale_factor=False), (2, 5)),
    (nn.Upsample(scale_factor=1.7, mode="linear", recompute_scale_factor=True), (2, 5)),
    (nn.Upsample(size=(7, 3), mode="bilinear", align_corners=True), (2, 3, 5)),
    (nn.Upsample(size=(1, 9), mode="bilinear", align_corners=True), (2, 3, 4)),
    (nn.Upsample(scale_factor=(0.6, 2.3), mode="bilinear"), (1, 5, 4)),
    (nn.Upsample(scale_factor=(2.0, 1.5, 0.5), mode="trilinear"), (1, 2, 3, 4)),
    (nn.Linear(5, 3), (5,)),
    (nn.Linear(5, 3, bias=False), (2, 5)),
    (nn.Softmax(1), (3, 4)),
    (nn.LogSoftmax(-1), (3, 4)),
    (Of(lambda x: x.cumsum(1)), (5, 2)),
    (Of(lambda x: x.cumsum(-1)), (2, 5)),
    (Of(lambda x: x.diff(dim=2)), (2, 5)),
    (Of(lambda x: x.sum((1, -1))), (2, 3, 4)),
    (Of(lambda x: x.mean((-1, 1), keepdim=True)), (2, 3, 4)),
    (Of(lambda x: torch.addmm(torch.tensor([[1.0, -2.0]], dtype=x.dtype), x, torch.ones(3, 2, dtype=x.dtype))), (3,)),
]


@pytest.mark.parametrize(("module", "shape"), LAYERS, ids=lambda value: str(value).replace("\n", "")[:70])
def test_layers_with_all_their_options(module: nn.Module, shape: tuple[int, ...]) -> None:
    module = trained(module)
    graph = agrees(module, shape)
    held = {name: tensor for name, tensor in module.named_parameters() if tensor.ndim > 1}
    found = [node.weight for node in graph if isinstance(node, Dense | Conv | ConvTranspose)]
    for tensor in held.values():  # kernels and matrices are the module's numbers, all 53 bits of them
        if not isinstance(module, nn.LayerNorm | nn.RMSNorm):  # whose scale is a diagonal layer
            assert any(torch.equal(tensor.detach().flatten(), weight.flatten()) for weight in found)


@pytest.mark.parametrize("alpha", [0.25, 2.0, -0.5])
def test_parameters_of_activations(alpha: float) -> None:
    """Steeper than one, negative, and beside a factor and a shift: the constant is the steepest slope."""
    for module, steepest in (
        (nn.ELU(alpha), max(1.0, abs(alpha))),
        (nn.LeakyReLU(alpha * 2), max(1.0, abs(alpha * 2))),
        (nn.CELU(abs(alpha)), 1.0),
        (nn.Softplus(abs(alpha) * 3, threshold=25.0), 1.0),
        (nn.Hardtanh(-abs(alpha), 1.5), 1.0),
        (nn.Threshold(alpha, alpha), 1.0),
        (nn.Softshrink(abs(alpha)), 1.0),
    ):
        inner = Of(lambda x: -2.0 * x + 0.75)
        graph = agrees(nn.Sequential(inner, module).eval(), (3,))
        for norm in (1, 2, "inf"):
            bound = lipbridge.trivial_bound(graph, norm).value
            assert 2.0 * steepest <= bound <= 2.0 * steepest * (1 + 1e-12)


# --- factors that are quotients: never below the module's own ---------------------------------------------------------


def exact_gain(graph: Graph) -> Fraction:
    """The largest row sum of the Graph's linear layers, one after the other: at least the constant from l_inf."""
    total = Fraction(1)
    for node in graph:
        if isinstance(node, Dense | Conv):
            total *= max(sum(map(Fraction, row.abs().flatten().tolist()), Fraction(0)) for row in node.weight)
    return total


@pytest.mark.parametrize("n", [3, 7, 49, 161])
def test_averages_are_never_below_those_of_real_numbers(n: int) -> None:
    """A window of n ones has the average 1: the shares that are stored add up to at least that, in rational numbers."""
    for module, shape in (
        (nn.AvgPool1d(n), (1, n)),
        (Of(lambda x: x.mean(1, keepdim=True)), (n,)),
        (nn.AdaptiveAvgPool1d(1), (2, n)),
    ):
        assert exact_gain(lipbridge.capture(module.double(), shape)) >= 1
    # A window at the border, of another size: one more layer that divides, place by place.
    graph = lipbridge.capture(nn.AvgPool1d(n, 1, n // 2, count_include_pad=False).double(), (1, n))
    (shares,) = [node.weight.flatten().tolist() for node in graph if isinstance(node, Conv) and node.diagonal]
    for place, share in enumerate(shares):
        count = min(place + n - n // 2, n) - max(place - n // 2, 0)
        assert Fraction(share) * count >= 1
    for module, shape in (
        (nn.AdaptiveAvgPool1d(n - 1), (1, n)),
        (nn.AdaptiveAvgPool1d(2), (1, 5)),
        (nn.Upsample(size=2 * n + 1, mode="linear"), (1, n)),
        (nn.Upsample(size=n + 2, mode="linear", align_corners=True), (1, n)),
    ):
        (matrix,) = [
            node.weight for node in lipbridge.capture(module.double(), shape) if isinstance(node, Dense | Conv)
        ]
        for row in matrix.reshape(matrix.shape[0], -1).tolist():
            assert sum(map(Fraction, row), Fraction(0)) >= 1


@pytest.mark.parametrize("divisor", [3.0, -7.0, 0.3])
def test_divisors_are_never_rounded_towards_zero(divisor: float) -> None:
    for module in (
        Of(lambda x: x / divisor),
        Of(lambda x: x / torch.tensor([divisor, divisor, 2.0], dtype=torch.float64)),
        nn.Sequential(Of(lambda x: torch.relu(x) / divisor)),
        nn.Sequential(Of(lambda x: (x - 0.5) / divisor)),
    ):
        bound = Fraction(lipbridge.trivial_bound(lipbridge.capture(module.double(), (3,)), "inf").value)
        exact = max(Fraction(1) / abs(Fraction(divisor)), Fraction(1, 2) if "tensor" in str(module) else Fraction(0))
        assert exact <= bound <= exact * (1 + Fraction(1, 2**40)) or bound == Fraction(1, 2)


@pytest.mark.parametrize("epsilon", [1e-5, 0.3])
def test_scales_of_statistics_are_never_rounded_towards_zero(epsilon: float) -> None:
    norm = trained(nn.BatchNorm1d(40, eps=epsilon))
    node = lipbridge.capture(norm, (40,)).nodes[1]
    assert isinstance(node, Conv)
    for scale, weight, variance in zip(
        *(t.flatten().tolist() for t in (node.weight, norm.weight, norm.running_var)),  # type: ignore[union-attr]
        strict=True,
    ):
        square = Fraction(weight) ** 2 / (Fraction(variance) + Fraction(epsilon))
        assert square <= Fraction(scale) ** 2 <= square * (1 + Fraction(1, 2**40))
