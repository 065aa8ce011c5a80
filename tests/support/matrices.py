"""Convolutions as matrices, and exact comparisons of norms."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import torch
from torch import Tensor

from lipbridge.norms.conv_geometry import Convolution
from tests.support.exact.convolution import convolved
from tests.support.exact.rationals import Rationals, exact


def conv_matrix(W: Tensor, geometry: Convolution) -> Rationals:
    n = math.prod(geometry.input_shape)
    unit = Rationals(np.eye(n, dtype=object).reshape(*geometry.input_shape, n))
    options = (geometry.stride, geometry.padding, geometry.dilation, geometry.groups, geometry.padding_mode)
    return convolved(unit, exact(W), *options).reshape(-1, n)


def exact_norm_is_at_most(W: torch.Tensor, p, q, bound: float) -> bool:
    """Exact rational check on the extreme points that attain the norm (for 2->2: on the leading singular vector)."""
    rows = [[Fraction(float(value)) for value in row] for row in W]
    columns = list(zip(*rows, strict=True))
    limit = Fraction(bound)
    if (p, q) == (2, 2):
        v = [Fraction(float(value)) for value in torch.linalg.svd(W)[2][0]]
        image = [sum(a * b for a, b in zip(row, v, strict=True)) for row in rows]
        return sum(x * x for x in image) <= limit * limit * sum(x * x for x in v)
    if (p, q) == (1, "inf"):
        return max(abs(x) for row in rows for x in row) <= limit
    vectors = columns if p == 1 else rows
    if 2 in (p, q):
        return max(sum(x * x for x in vector) for vector in vectors) <= limit * limit
    return max(sum(abs(x) for x in vector) for vector in vectors) <= limit
