"""Proved norms of convolutions and matrices against their exact matrices."""

from __future__ import annotations

import math
import random
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from lipbridge.errors import LipbridgeError
from lipbridge.norms import CHEAP_PAIRS
from lipbridge.norms.conv_geometry import Convolution
from lipbridge.rigor import convolution as rigor_convolution
from lipbridge.rigor.convolution import proved_conv_norm
from lipbridge.rigor.matrix import proved_operator_norm
from lipbridge.vocabulary import Norm
from tests.support.attack.judge import Outcome
from tests.support.attack.weights import EXTREME, SMALL, TAME, Weights
from tests.support.exact.convolution import convolved
from tests.support.exact.norms import matrix_exceeds
from tests.support.exact.rationals import Rationals, aligned, exact

MODES = ("zeros", "circular", "reflect", "replicate")
FAMILIES = ("tame", "extreme", "beside one", "positive", "torus", "extreme torus", "matrices", "extreme matrices")
#: Spectral norms are decided by elimination up to this many rows or columns; above by a witness.
ORDER = 14


@dataclass(frozen=True)
class Kernel:
    """A kernel in its geometry, or a matrix (no geometry)."""

    family: str
    seed: int
    weight: Tensor
    geometry: Convolution | None

    def __str__(self) -> str:
        return f"draw_kernel({self.family!r}, {self.seed})"

    def proved(self, p: Norm, q: Norm) -> float:
        if self.geometry is None:
            return proved_operator_norm(self.weight, p, q)
        with _without_matrices("torus" in self.family):
            return proved_conv_norm(self.weight, self.geometry, p, q)

    def matrix(self) -> Rationals:
        """``(outputs, inputs)``, by index arithmetic alone."""
        W, geometry = exact(self.weight), self.geometry
        if geometry is None:
            return W
        n = math.prod(geometry.input_shape)
        unit = Rationals(np.eye(n, dtype=object).reshape(*geometry.input_shape, n))
        options = (geometry.stride, geometry.padding, geometry.dilation, geometry.groups, geometry.padding_mode)
        return convolved(unit, W, *options).reshape(-1, n)


@contextmanager
def _without_matrices(wanted: bool) -> Iterator[None]:
    """Small convolutions are bounded by their matrices; without, by the torus, as large ones are."""
    before = rigor_convolution.OPERATIONS
    rigor_convolution.OPERATIONS = 0.0 if wanted else before
    try:
        yield
    finally:
        rigor_convolution.OPERATIONS = before


def draw_kernel(family: str, seed: int) -> Kernel:
    """A kernel of a family: any geometry of one to three axes, every padding mode, taps that share inputs."""
    drawn = random.Random(f"kernel {family} {seed}")
    weights = Weights(f"kernel {family} {seed}", EXTREME if "extreme" in family else TAME)
    if "matrices" in family:
        return Kernel(family, seed, weights.weight(drawn.randint(1, 9), drawn.randint(1, 9)), None)
    axes = drawn.choice((1, 1, 1, 2, 2, 3))
    groups, columns, rows = drawn.choice((1, 1, 2)), drawn.randint(1, 2), drawn.randint(1, 3)
    mode = drawn.choice(MODES)
    space = tuple(drawn.randint(1, (7, 4, 3)[axes - 1]) for _ in range(axes))
    stride, dilation = (tuple(drawn.choice((1, 1, 2, 3)) for _ in space) for _ in range(2))
    kernel, padding = [], []
    for n, d in zip(space, dilation, strict=True):
        widest = {"circular": n, "reflect": n - 1}.get(mode, 4)
        before, after = (drawn.randint(0, min(4, widest)) for _ in range(2))
        k = drawn.randint(1, 4)
        kernel.append(k if d * (k - 1) + 1 <= n + before + after else 1)
        padding.append((before, after))
    shape = (groups * rows, columns, *kernel)
    W = _taps(shape, weights) if family == "beside one" else weights.weight(*shape)
    if family == "positive":
        W = W.abs()
    geometry = Convolution((groups * columns, *space), stride, tuple(padding), dilation, groups, mode)
    return Kernel(family, seed, W, geometry)


def _taps(shape: tuple[int, ...], weights: Weights) -> Tensor:
    """One tap of size one, the others tiny."""
    W = torch.full(shape, weights.random.choice(SMALL), dtype=torch.float64)
    if weights.random.random() < 0.5:
        W = W * weights.normal(*shape)
    place = tuple(weights.random.randrange(n) for n in shape[2:])
    W[(slice(None), slice(None), *place)] = weights.random.choice((1.0, -1.0, 1.0 / 3.0))
    return W


def judge_kernel(kernel: Kernel) -> list[Outcome]:
    """All pairs of norms that are proved."""
    matrix, outcomes = kernel.matrix().reduced(), []
    for p, q in CHEAP_PAIRS:
        name = f"{p}->{q}"
        try:
            value = kernel.proved(p, q)
        except LipbridgeError as error:
            outcomes.append(Outcome(kernel.family, name, "refused", f"{kernel}: {error}"))
            continue
        exceeded = spectral_exceeds(matrix, value) if (p, q) == (2, 2) else matrix_exceeds(matrix, value, p, q)
        outcomes.append(Outcome(kernel.family, name, "violated" if exceeded else "held", f"{kernel}: {value!r}"))
    return outcomes


def spectral_exceeds(matrix: Rationals, bound: float) -> bool:
    """Whether the spectral norm is above a bound: by a rational witness, and by elimination if the matrix is small."""
    if math.isinf(bound) or not any(matrix.ints.flat):
        return False
    if min(matrix.shape) <= ORDER:
        return matrix_exceeds(matrix, bound, 2, 2)
    return witness_exceeds(matrix, bound)


def witness_exceeds(matrix: Rationals, bound: float) -> bool:
    """Whether ``||A v||_2 > bound ||v||_2`` for the float64 singular vector v: exact, but perhaps not the largest."""
    largest = max(abs(value) for value in matrix.ints.flat)
    scaled = torch.tensor([[float(value / largest) for value in row] for row in matrix.ints], dtype=torch.float64)
    v = exact(torch.linalg.svd(scaled).Vh[0])
    A, limit, _ = aligned(matrix, bound)
    y = A @ v.ints
    return int(y @ y) > limit * limit * int(v.ints @ v.ints)
