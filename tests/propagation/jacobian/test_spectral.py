"""Proved spectral norms of batches: never below, close above."""

from __future__ import annotations

import math

import pytest
import torch

from lipbridge.propagation.jacobian.spectral import spectral_norms_up
from tests.support.families import FLAVOURS, matrix
from tests.support.matrices import exact_norm_is_at_most


@pytest.mark.parametrize("flavour", [f for f in FLAVOURS if f != "dead"])
def test_never_below_and_close_above(flavour) -> None:
    generator = torch.Generator().manual_seed(0)
    for m, n in ((1, 4), (3, 3), (4, 2), (5, 9)):
        batch = torch.stack([matrix(m, n, flavour, generator) for _ in range(4)])
        found = spectral_norms_up(batch)
        assert found.shape == (4,)
        for W, bound in zip(batch, found.tolist(), strict=True):
            assert exact_norm_is_at_most(W, 2, 2, bound)
            assert bound <= float(torch.linalg.matrix_norm(W, 2)) * (1 + 1e-7) + 1e-290


def test_what_is_not_finite_is_infinite() -> None:
    batch = torch.ones(3, 2, 4, dtype=torch.float64)
    batch[0, 1, 1], batch[1, 0, 0] = math.nan, math.inf
    assert spectral_norms_up(batch)[:2].tolist() == [math.inf, math.inf]
    assert float(spectral_norms_up(batch)[2]) == pytest.approx(math.sqrt(8))
