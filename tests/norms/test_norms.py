"""Operator norms: values against extreme points, estimates for training against values."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor

from lipbridge.norms import (
    CHEAP_PAIRS,
    dual_matrix,
    estimate_by_dual,
    estimate_by_power,
    gram_dual,
    initial_vector,
    operator_norm,
    power_step,
)
from lipbridge.vocabulary import exponent
from tests.support.families import FLAVOURS, matrix


def by_extreme_points(W: Tensor, p, q) -> float:
    """Slow reference: a convex function takes its maximum over the ball at an extreme point (2: by a fine search)."""
    n = W.shape[1]
    if p == 1:
        points = torch.eye(n, dtype=W.dtype)
    elif p == "inf":
        points = torch.tensor(list(itertools.product([-1.0, 1.0], repeat=n)), dtype=W.dtype)
    elif q == 2:
        points = torch.linalg.eigh(W.T @ W)[1].T
    else:
        points = W / torch.linalg.vector_norm(W, dim=1, keepdim=True).clamp_min(1e-300)
    return float(torch.linalg.vector_norm(points @ W.T, exponent(q), dim=1).max())


@pytest.mark.parametrize("pair", CHEAP_PAIRS)
@pytest.mark.parametrize("flavour", FLAVOURS)
def test_value_is_attained_at_an_extreme_point(pair, flavour: str) -> None:
    W = matrix(5, 6, flavour, torch.Generator().manual_seed(0))
    assert float(operator_norm(W, *pair)) == pytest.approx(by_extreme_points(W, *pair), rel=1e-12)


@pytest.mark.parametrize("pair", CHEAP_PAIRS)
def test_value_is_differentiable_and_batched(pair) -> None:
    W = torch.randn(3, 4, 5, dtype=torch.float64, requires_grad=True)
    assert operator_norm(W, *pair).shape == (3,)
    assert torch.autograd.gradcheck(lambda A: operator_norm(A, *pair), W)


@pytest.mark.parametrize("pair", CHEAP_PAIRS)
@pytest.mark.parametrize("shape", [(4, 7), (7, 4), (1, 3), (3, 1)])
def test_dual_matrix_law(pair, shape) -> None:
    generator = torch.Generator().manual_seed(1)
    W = torch.randn(*shape, dtype=torch.float64, generator=generator)
    D, smoothed = dual_matrix(W, *pair)
    norm = float(operator_norm(W, *pair))
    count = {(1, "inf"): shape[0] * shape[1], (1, 1): shape[1], (1, 2): shape[1]}.get(pair, shape[0])
    slack = min(shape) ** (1 / 130) if pair == (2, 2) else count ** (1 / 32)
    assert norm * (1 - 1e-12) <= float(estimate_by_dual(W, D)) <= norm * slack * (1 + 1e-12)
    assert float(smoothed) == pytest.approx(float(estimate_by_dual(W, D)), rel=1e-9)
    assert torch.equal(dual_matrix(W, *pair, out=torch.empty_like(W))[0], D)
    for _ in range(50):  # <D, V> is at most the norm of V: the estimate never overstates by being stale
        V = torch.randn(*shape, dtype=torch.float64, generator=generator)
        assert float(estimate_by_dual(V, D)) <= float(operator_norm(V, *pair)) * slack * (1 + 1e-12)


def test_gram_dual_is_the_gradient_of_the_schatten_norm() -> None:
    W = torch.randn(5, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(2), requires_grad=True)
    for squarings in (1, 3, 6):
        order = 2 * (2**squarings + 1)
        schatten = torch.linalg.svdvals(W).pow(order).sum() ** (1 / order)
        (gradient,) = torch.autograd.grad(schatten, W)
        D, norm = gram_dual(W.detach(), squarings)
        torch.testing.assert_close(norm, schatten.detach(), rtol=1e-12, atol=0)
        torch.testing.assert_close(D, gradient, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("scale", [1e-30, 1.0, 1e30])
@pytest.mark.parametrize("flavour", ["random", "rank_one", "orthogonal", "ill_conditioned"])
def test_gram_in_float32_at_any_scale(scale: float, flavour: str) -> None:
    W = (matrix(64, 100, flavour, torch.Generator().manual_seed(3)) * scale).float()
    D, norm = gram_dual(W)
    exact = float(torch.linalg.svdvals(W.double())[0])
    assert exact * (1 - 1e-5) <= float(norm) <= exact * 64 ** (1 / 130) * (1 + 1e-5)
    assert bool(torch.isfinite(D).all())


@pytest.mark.parametrize("pair", CHEAP_PAIRS)
def test_zero_gives_zero_and_no_nan(pair) -> None:
    D, _ = dual_matrix(torch.zeros(3, 4), *pair)
    assert float(estimate_by_dual(torch.zeros(3, 4), D)) == 0.0
    assert bool(torch.isfinite(D).all())


def test_power_iteration_rises_to_the_norm_from_below() -> None:
    W = torch.randn(30, 40, dtype=torch.float64, generator=torch.Generator().manual_seed(4))
    exact, v = float(torch.linalg.svdvals(W)[0]), initial_vector(40).double()
    values = []
    for _ in range(400):
        v = power_step(W, v)[1]
        values.append(float(estimate_by_power(W, v)))
    assert max(values) <= exact * (1 + 1e-12)
    assert values[-1] >= exact * (1 - 1e-9)
    assert all(b >= a * (1 - 1e-12) for a, b in itertools.pairwise(values))


def test_power_gradient_is_rank_one() -> None:
    W = torch.randn(6, 5, dtype=torch.float64, requires_grad=True)
    v = initial_vector(5).double()
    for _ in range(300):
        v = power_step(W.detach(), v)[1]
    estimate_by_power(W, v).backward()
    U, _, Vh = torch.linalg.svd(W.detach())
    assert W.grad is not None
    torch.testing.assert_close(W.grad.abs(), torch.outer(U[:, 0], Vh[0]).abs(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("pair", CHEAP_PAIRS)
def test_everything_runs_on_the_meta_device(pair) -> None:
    # It holds no data: a tensor left on the CPU or a host synchronisation would raise.
    W = torch.empty(6, 5, device="meta")
    assert operator_norm(W, *pair).device.type == "meta"
    assert estimate_by_dual(W, dual_matrix(W, *pair)[0]).device.type == "meta"
    assert power_step(W, initial_vector(5, "meta"))[1].device.type == "meta"
