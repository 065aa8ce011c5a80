"""Convolutions of every small geometry against matrices by numpy's index arithmetic: rows, tori, bounds."""

from __future__ import annotations

import itertools
import math
import random

import pytest
import torch
from torch import Tensor

from lipbridge.errors import InvalidArgument
from lipbridge.norms import CHEAP_PAIRS, operator_norm
from lipbridge.norms import torus as torus_module
from lipbridge.norms.conv_extremes import extreme_vectors
from lipbridge.norms.conv_geometry import Convolution
from lipbridge.norms.convolution import circular_norm, conv_operator_norm
from lipbridge.norms.gram_convolution import gram_bound
from lipbridge.norms.toeplitz import toeplitz_bound
from lipbridge.norms.torus import torus
from lipbridge.rigor import convolution as rigor_convolution
from lipbridge.rigor.convolution import proved_conv_norm
from tests.support.convolutions import MODES
from tests.support.matrices import conv_matrix


def geometry_of(drawn: random.Random, mode: str, axes: int) -> Convolution:
    """Sizes from one, strides and dilations up to three, padding before and after as wide as the mode takes."""
    space = tuple(drawn.randint(1, 7 if axes == 1 else 4) for _ in range(axes))
    widest = [{"circular": n, "reflect": n - 1}.get(mode, 5) for n in space]
    padding = tuple((drawn.randint(0, w), drawn.randint(0, w)) for w in widest)
    stride, dilation = (tuple(drawn.choice((1, 1, 2, 3)) for _ in range(axes)) for _ in range(2))
    groups = drawn.choice((1, 1, 2))
    return Convolution((groups * drawn.randint(1, 2), *space), stride, padding, dilation, groups, mode)


def kernel_of(drawn: random.Random, geometry: Convolution, seed: int) -> Tensor | None:
    kernel = [drawn.randint(1, 4) for _ in geometry.space]
    shape = (geometry.groups * drawn.randint(1, 2), geometry.input_shape[0] // geometry.groups, *kernel)
    W = torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    W = W.abs() if seed % 2 else W
    try:
        geometry.output_shape(W)
    except InvalidArgument:
        return None
    return W


def require(W: Tensor, geometry: Convolution) -> None:
    exact = conv_matrix(W, geometry)
    A = torch.tensor([float(x) for x in exact.fractions()], dtype=torch.float64).reshape(exact.shape)
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(1, *geometry.input_shape, dtype=torch.float64, generator=generator)
    y = torch.randn(1, *geometry.output_shape(W), dtype=torch.float64, generator=generator)
    torch.testing.assert_close(geometry.apply(W, x).flatten(), A @ x.flatten(), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(geometry.adjoint(W, y).flatten(), A.T @ y.flatten(), rtol=1e-12, atol=1e-12)
    for p, q in CHEAP_PAIRS:
        value = float(operator_norm(A, p, q))
        assert conv_operator_norm(W, geometry, p, q) == pytest.approx(value, rel=1e-9, abs=1e-14), (p, q)
        assert proved_conv_norm(W, geometry, p, q) >= value * (1 - 1e-13), (p, q)
    norm = float(operator_norm(A))
    held = torus(geometry, W)
    around = circular_norm(W, geometry) * math.sqrt(held.padding_norm_squared)
    assert around >= norm * (1 - 1e-12)
    assert not held.exact or around == pytest.approx(norm, rel=1e-9, abs=1e-14)
    for bound in (gram_bound, toeplitz_bound):
        assert float(bound(W, geometry)) >= around * (1 - 1e-9)
    for columns in (False, True):  # what is said to be added is, and nothing else
        taps = torch.ones_like(W)
        found = [(float(vectors.max()), merged) for vectors, merged in extreme_vectors(taps, geometry, columns=columns)]
        assert all((most > 1) == merged for most, merged in found)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("axes", [1, 2])
def test_every_geometry(axes: int, mode: str, monkeypatch) -> None:
    monkeypatch.setattr(rigor_convolution, "OPERATIONS", 0.0)  # large layers are bounded by the torus
    drawn, tried = random.Random(f"{mode} {axes}"), 0
    for seed in itertools.count():
        geometry = geometry_of(drawn, mode, axes)
        W = kernel_of(drawn, geometry, seed)
        if W is not None:
            require(W, geometry)
            tried += 1
        if tried == (90 if axes == 1 else 25):
            break


def test_circular_padding_whose_stride_does_not_divide_the_size(monkeypatch) -> None:
    monkeypatch.setattr(rigor_convolution, "OPERATIONS", 0.0)
    for n, stride, padding in itertools.product((2, 3, 5), (2, 3), ((1, 0), (0, 1), (1, 1), (2, 2))):
        geometry = Convolution((1, n), (stride,), (padding,), (), 1, "circular")
        for seed in range(3):
            W = torch.randn(1, 1, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
            if geometry.geometry((3,))[0].outputs >= 1:
                require(W, geometry)


@pytest.mark.parametrize("mode", MODES)
def test_three_axes_and_parts_of_the_frequencies(mode: str, monkeypatch) -> None:
    monkeypatch.setattr(rigor_convolution, "OPERATIONS", 0.0)
    monkeypatch.setattr(torus_module, "ENTRIES", 1)
    for seed, padding in enumerate([((1, 0), (0, 1), (1, 1)), ((1, 1), (1, 1), (0, 1))]):
        geometry = Convolution((1, 2, 3, 2), padding=padding, padding_mode=mode)
        W = torch.randn(2, 1, 2, 2, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
        require(W, geometry)
        require(W[..., :1, :1], Convolution((1, 2, 3, 2), (1, 2, 1), padding=padding, padding_mode=mode))
