"""Products of matrices that are known up to an error, in a coarse arithmetic: each rounding is counted."""

from __future__ import annotations

from fractions import Fraction
from itertools import product

import pytest
import torch
from torch import Tensor

from lipbridge.rounding.uncertain import Uncertain, composed, image, plus
from tests.support.coarse import coarse, coarse_arithmetic
from tests.support.uncertain import exact, misses, times


def entries(seed: int, *shape: int) -> Tensor:
    """Positive, of both signs, or near a power of two, where the relative rounding of a product is largest."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.rand(*shape, dtype=torch.float64, generator=generator)
    return coarse([x, x - 0.5, 1.0 + x / 64.0][seed % 3])


@pytest.mark.parametrize("arithmetic", [("zero", None), ("zero", "low"), ("away", "high"), ("away", "mixed")], ids=str)
def test_products_and_sums(arithmetic) -> None:
    third = float(coarse(torch.tensor(1 / 3, dtype=torch.float64)))
    for seed, (left, right, off, other) in enumerate(product((False, True), repeat=4)):
        inner = 9 if seed % 2 else 1
        A = Uncertain(entries(seed, *((inner,) if left else (2, inner))))
        B = Uncertain(entries(seed + 1, *((inner,) if right else (inner, 2))))
        if off:
            A = Uncertain(A.value, coarse(A.value.abs() * 2.0**-12))
        if other:
            B = Uncertain(B.value, coarse(B.value.abs() * 2.0**-2))
        v = Uncertain(entries(seed + 2, inner), coarse(entries(seed + 2, inner).abs() * 2.0**-12) if off else None)
        with coarse_arithmetic(*arithmetic):
            found, column = composed(A, B), image(A, v)
            assert column is not None
            total = plus(column, Uncertain(torch.full_like(column.value, third)))
        for sides in product((-1, 1), repeat=2):
            assert max(misses(found, times(exact(A, sides[0]), exact(B, sides[1])))) <= 0
        as_column = Uncertain(v.value[:, None], None if v.error is None else v.error[:, None])
        for side in (-1, 1):
            truth = times(exact(A, side), exact(as_column, side))
            summed = [[row[0] + Fraction(third)] for row in truth]
            for result, wanted in ((column, truth), (total, summed)):
                error = None if result.error is None else result.error[:, None]
                assert max(misses(Uncertain(result.value[:, None], error), wanted)) <= 0
