"""Norms of convolutions against their dense matrices: values, upper bounds for training, and their gradients."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from torch import nn

from lipbridge.errors import InvalidArgument, UnsupportedProblem
from lipbridge.norms import CHEAP_PAIRS, operator_norm
from lipbridge.norms.conv_geometry import Convolution
from lipbridge.norms.convolution import circular_norm, conv_operator_norm
from lipbridge.norms.gram_convolution import conv_dual, gram_bound, penalty_norm
from lipbridge.norms.lanczos import largest_singular_value
from lipbridge.norms.toeplitz import toeplitz_bound
from lipbridge.norms.torus import torus
from tests.support.convolutions import MODES, convolutions

LAYERS = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}


def same_padding(channels: int, size: int, mode: str = "zeros", axes: int = 2) -> Convolution:
    return Convolution((channels, *[size] * axes), padding=((1, 1),) * axes, padding_mode=mode)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("axes", [1, 2, 3])
def test_apply_is_the_layer_of_torch(axes: int, mode: str) -> None:
    layer = LAYERS[axes](4, 6, 3, 2, 2, 1, 2, False, mode, dtype=torch.float64)
    geometry = Convolution((4, *[5] * axes), (2,) * axes, ((2, 2),) * axes, (1,) * axes, 2, mode)
    x = torch.randn(3, *geometry.input_shape, dtype=torch.float64)
    torch.testing.assert_close(geometry.apply(layer.weight, x), layer(x))
    assert geometry.output_shape(layer.weight) == tuple(layer(x).shape[1:])


@settings(max_examples=100)
@given(convolutions())
def test_adjoint_is_the_transposed_matrix(case) -> None:
    weight, geometry = case
    y = torch.randn(2, *geometry.output_shape(weight), dtype=torch.float64)
    expected = y.flatten(1) @ geometry.matrix(weight)
    scale = float(weight.abs().max()) * 1e-12
    torch.testing.assert_close(geometry.adjoint(weight, y).flatten(1), expected, rtol=1e-12, atol=scale)


@settings(max_examples=150)
@given(convolutions())
def test_value_is_that_of_the_matrix(case) -> None:
    weight, geometry = case
    for p, q in CHEAP_PAIRS:
        exact = float(operator_norm(geometry.matrix(weight), p, q))
        assert conv_operator_norm(weight, geometry, p, q) == pytest.approx(exact, rel=1e-9, abs=0)


@settings(max_examples=150)
@given(convolutions())
def test_upper_bounds_stand_in_order(case) -> None:
    """Matrix <= torus <= Gram iteration and penalty <= Toeplitz, each within its stated slack."""
    weight, geometry = case
    exact = float(operator_norm(geometry.matrix(weight)))
    held = torus(geometry, weight)
    circular = circular_norm(weight, geometry) * math.sqrt(held.padding_norm_squared)
    side = min(weight.shape[0] // held.groups, weight.shape[1] * held.phases)
    low, high = 1 - 1e-11, 1 + 1e-11
    assert exact * low <= circular
    if held.exact:
        assert circular <= exact * high
    for iterations in (1, 3, 6):
        assert circular * low <= float(gram_bound(weight, geometry, iterations))
        assert float(gram_bound(weight, geometry, iterations)) <= circular * side ** (0.5**iterations / 2) * high
    assert circular * low <= float(penalty_norm(weight, geometry)) <= circular * side ** (1 / 130) * high
    assert circular * low <= float(toeplitz_bound(weight, geometry)) <= circular * math.sqrt(side) * high


@settings(max_examples=60)
@given(convolutions())
def test_penalty_and_dual_law(case) -> None:
    weight, geometry = case
    for p, q in CHEAP_PAIRS:
        exact = conv_operator_norm(weight, geometry, p, q)
        sharp, smooth = (conv_dual(weight, geometry, p, q, smooth=smooth) for smooth in (False, True))
        assert exact * (1 - 1e-11) <= float(sharp[1]) <= float(smooth[1]) * (1 + 1e-11)
        if (p, q) != (2, 2):
            assert float(sharp[1]) == pytest.approx(exact, rel=1e-11, abs=0)
        assert float((sharp[0] * weight).sum()) == pytest.approx(float(sharp[1]), rel=1e-9, abs=0)
        other = torch.randn_like(weight)
        for dual, smoothed in ((sharp[0], False), (smooth[0], True)):
            assert float((dual * other).sum()) <= float(conv_dual(other, geometry, p, q, smooth=smoothed)[1]) * (
                1 + 1e-9
            )


@pytest.mark.parametrize("mode", MODES)
def test_gradients(mode: str) -> None:
    geometry = Convolution((4, 5, 6), (2, 1), ((1, 1), (2, 0)), (1, 2), 2, mode)
    weight = torch.randn(6, 2, 3, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    weight.requires_grad_()
    for norm in (1, 2, "inf"):
        assert torch.autograd.gradcheck(lambda w, norm=norm: penalty_norm(w, geometry, norm), weight)
        dual, _ = conv_dual(weight, geometry, norm)
        step = 1e-6 * torch.randn_like(weight)
        difference = (
            conv_dual(weight.detach() + step, geometry, norm)[1] - conv_dual(weight.detach() - step, geometry, norm)[1]
        )
        assert float(difference) == pytest.approx(2 * float((dual * step).sum()), rel=1e-5)
    assert torch.autograd.gradcheck(lambda w: toeplitz_bound(w, geometry), weight)


def test_the_penalty_presses_the_true_norm_down() -> None:
    geometry = same_padding(3, 6)
    weight = torch.randn(4, 3, 3, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(2)).requires_grad_()
    before = conv_operator_norm(weight.detach(), geometry)
    for _ in range(40):
        (gradient,) = torch.autograd.grad(penalty_norm(weight, geometry), weight)
        weight = (weight - 0.05 * gradient).detach().requires_grad_()
    assert conv_operator_norm(weight.detach(), geometry) < 0.8 * before


def test_parts_of_the_frequencies_agree(monkeypatch) -> None:
    """Many frequencies are walked in parts; the gradient is put together over them."""
    geometry = same_padding(3, 8)
    weight = torch.randn(4, 3, 3, 3, dtype=torch.float64)
    whole = [conv_dual(weight, geometry, smooth=smooth) for smooth in (False, True)]
    figures = gram_bound(weight, geometry), circular_norm(weight, geometry)
    monkeypatch.setattr("lipbridge.norms.torus.ENTRIES", 60)
    for (dual, value), smooth in zip(whole, (False, True), strict=True):
        again = conv_dual(weight, geometry, smooth=smooth)
        torch.testing.assert_close(again[0], dual, rtol=1e-11, atol=1e-12)
        torch.testing.assert_close(again[1], value, rtol=1e-11, atol=0)
    assert (float(gram_bound(weight, geometry)), circular_norm(weight, geometry)) == pytest.approx(
        (float(figures[0]), figures[1]), rel=1e-13
    )


@pytest.mark.parametrize("scale", [1e-200, 1e-30, 1e30, 1e150])
def test_any_scale(scale: float) -> None:
    geometry = same_padding(3, 5)
    weight = torch.randn(4, 3, 3, 3, dtype=torch.float64)
    for function in (conv_operator_norm, penalty_norm, toeplitz_bound, gram_bound):
        assert float(function(weight * scale, geometry)) == pytest.approx(
            float(function(weight, geometry)) * scale, rel=1e-11
        )


@pytest.mark.parametrize("scale", [1e-25, 1.0, 1e25])
def test_float32_training(scale: float) -> None:
    geometry = same_padding(16, 8)
    weight = (torch.randn(24, 16, 3, 3) * scale).requires_grad_()
    exact = circular_norm(weight.detach(), geometry)
    for function in (penalty_norm, toeplitz_bound, gram_bound):
        value = function(weight, geometry).detach()
        assert value.dtype == torch.float32
        assert float(value) >= exact * (1 - 1e-5)
    penalty_norm(weight, geometry).backward()
    assert weight.grad is not None
    assert bool(torch.isfinite(weight.grad).all())


@pytest.mark.parametrize("norm", [1, 2, "inf"])
def test_zero_gives_zero_and_no_nan(norm) -> None:
    geometry = same_padding(3, 4)
    weight = torch.zeros(2, 3, 3, 3, requires_grad=True)
    for function in (lambda w: penalty_norm(w, geometry, norm), lambda w: toeplitz_bound(w, geometry)):
        value = function(weight)
        (gradient,) = torch.autograd.grad(value, weight)
        assert float(value.detach()) == 0.0
        assert bool(torch.isfinite(gradient).all())
    assert conv_operator_norm(weight, geometry, norm) == 0.0


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("norm", [1, 2, "inf"])
def test_training_bounds_run_on_the_meta_device(norm, mode: str) -> None:
    geometry = Convolution((4, 8, 8), (2, 2), ((1, 1), (1, 1)), (1, 1), 2, mode)
    weight = torch.empty(6, 2, 3, 3, device="meta", requires_grad=True)
    penalty_norm(weight, geometry, norm).backward()
    toeplitz_bound(weight, geometry).backward()
    dual, value = conv_dual(weight, geometry, norm)
    assert {weight.grad.device.type, dual.device.type, value.device.type} == {"meta"}  # type: ignore[union-attr]


def test_the_torus_is_as_small_as_it_can_be() -> None:
    """Zero padding by one needs one position more than the input, not k - 1; one position less is no bound."""
    weight = torch.zeros(1, 1, 3, dtype=torch.float64)
    (axis,) = torus(same_padding(1, 32, axes=1), weight).axes
    assert (axis.frequencies, axis.phases) == (33, 1)
    (axis,) = torus(Convolution((1, 32)), weight).axes
    assert axis.frequencies == 32
    (axis,) = torus(Convolution((1, 32), (2,), ((1, 1),)), weight).axes
    assert (axis.frequencies, axis.phases) == (17, 2)
    (axis,) = torus(Convolution((1, 32), (1,), ((4, 4),), (4,)), weight).axes
    assert (axis.frequencies, axis.phases) == (9, 1)


def test_stride_is_not_ignored() -> None:
    """A kernel of size s with stride s is a matrix on blocks: its norm, where stride one would give s times as much."""
    weight = torch.full((1, 1, 2, 2), 0.25, dtype=torch.float64)
    geometry = Convolution((1, 8, 8), (2, 2))
    assert circular_norm(weight, geometry) == pytest.approx(0.5, rel=1e-13)
    assert conv_operator_norm(weight, geometry) == pytest.approx(0.5, rel=1e-12)


def test_depthwise_is_one_batch() -> None:
    weight = torch.randn(512, 1, 3, 3, dtype=torch.float64)
    geometry = Convolution((512, 16, 16), padding=((1, 1), (1, 1)), groups=512)
    each = max(circular_norm(kernel[None], same_padding(1, 16)) for kernel in weight[torch.randperm(512)[:64]])
    assert circular_norm(weight, geometry) >= each
    assert float(penalty_norm(weight, geometry)) == pytest.approx(circular_norm(weight, geometry), rel=1e-12)


@pytest.mark.parametrize("shape", [(1, 4, 9), (1, 3, 7, 7)])
def test_lanczos_against_the_matrix(shape: tuple[int, ...]) -> None:
    geometry = Convolution(shape[1:], padding=((1, 1),) * (len(shape) - 2))
    weight = torch.randn(5, shape[1], *[3] * (len(shape) - 2), dtype=torch.float64)
    value = largest_singular_value(
        lambda x: geometry.apply(weight, x),
        lambda y: geometry.adjoint(weight, y),
        torch.randn(shape, dtype=torch.float64),
    )
    assert float(value) == pytest.approx(float(operator_norm(geometry.matrix(weight))), rel=1e-10)


def test_lanczos_on_flat_and_zero_spectra() -> None:
    start = torch.randn(50, dtype=torch.float64)
    assert float(largest_singular_value(lambda x: 3 * x, lambda y: 3 * y, start)) == pytest.approx(3, rel=1e-14)
    assert float(largest_singular_value(lambda x: 0 * x, lambda y: 0 * y, start)) == 0.0


def test_iterations_close_in_quadratically() -> None:
    geometry = same_padding(16, 16, "circular")
    weight = torch.randn(16, 16, 3, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    exact = circular_norm(weight, geometry)
    gaps = [float(gram_bound(weight, geometry, iterations)) / exact - 1 for iterations in range(1, 9)]
    assert all(b <= a for a, b in itertools.pairwise(gaps))
    assert gaps[5] <= 1e-3


def test_arguments_are_checked() -> None:
    for arguments in ({"stride": (0,)}, {"groups": 2}, {"padding": ((-1, 0),)}, {"dilation": (1, 1)}):
        with pytest.raises(InvalidArgument):
            Convolution((3, 8), **arguments)
    for mode, padding in (("reflect", 8), ("circular", 9)):
        with pytest.raises(InvalidArgument):
            Convolution((3, 8), padding=((padding, 0),), padding_mode=mode)
    with pytest.raises(InvalidArgument):
        Convolution((3, 8), padding_mode="mirror")
    for shape in ((2, 3, 9), (2, 2, 3), (2, 3, 3, 3)):
        with pytest.raises(InvalidArgument):
            Convolution((3, 8)).output_shape(torch.zeros(shape))
    for function in (conv_operator_norm, conv_dual):
        with pytest.raises(UnsupportedProblem, match="NP-hard"):
            function(torch.ones(1, 3, 1), Convolution((3, 8)), "inf", 2)
