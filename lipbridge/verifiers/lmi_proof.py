"""Proves a LipSDP bound from multipliers, stage by stage, in outward-rounded float64.

The elimination of :mod:`lipbridge.verifiers.lmi_elimination` is repeated with storage matrices H_l that are *stated*,
exact float64 matrices a little above the computed ones, and each stage is proved by itself:

    [H_l - diag(T) - G_zz   -G_zq        ]
    [-G_qz                   D - G_qq    ]  >= 0,     G = [A B]' H_(l+1) [A B],

which says that V_l(z) <= z' H_l z. The products that form the matrix are bounded entry by entry, |fl(XY) - XY| <=
gamma |X||Y|; the matrix and the bound of its error are scaled by powers of two to a unit diagonal, so that layers and
neurons of very different size do not spoil each other; and the smallest eigenvalue is shown to exceed the norm of the
error. One inequality of all variables would prove the same and cost more: the stages are as small as the layers, the
input's width enters only through one certified norm, and where the inequality falls apart (abs, sin, joint
constraints) only the D - G_qq blocks remain.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor

from lipbridge.errors import NumericalFailure
from lipbridge.linalg import cholesky
from lipbridge.rigor import magnitude_norm_up, proved_operator_norm, smallest_eigenvalue_down
from lipbridge.rounding import TINY, UNIT, add_up, gamma, mul_up, sqrt_up, up
from lipbridge.verifiers.lmi_elimination import contract, diagonals, eliminate_stage
from lipbridge.verifiers.lmi_system import LipSDP, Stage

#: Error bounds are themselves computed in float64, by sums of non-negative terms: this covers their rounding.
COVER = 1.0 + 2.0**-20
#: Largest factor of a scaling by powers of two, and what an entry can lose in it by underflow: TINY times the factor.
LARGEST_SCALE = 2.0**500
LOST = TINY * LARGEST_SCALE * 2.0


def prove(system: LipSDP, vectors: Sequence[Tensor]) -> tuple[float, list[Tensor]]:
    """A proved upper bound of the l_2 Lipschitz constant and the multipliers, raised a little where needed.

    Raises:
        NumericalFailure: if the multipliers are too far from feasible, or rounding leaves no room.
    """
    if system.constant:
        return 0.0, list(vectors)
    outputs = (system.stages[-1].weight if system.stages else system.entry).shape[0]
    H, used = torch.eye(outputs, dtype=torch.float64), list[Tensor]()
    for stage, T in zip(reversed(system.stages), reversed(vectors), strict=True):
        H, T = _prove_stage(stage, T, H)
        used.append(T)
    if system.stages:
        root = _entry_norm_up(H, system.entry)
    else:  # the scaled weight may have lost entries to underflow
        root = add_up(proved_operator_norm(system.entry), mul_up(4.0, system.entry.numel(), TINY))
    return _times_power_of_two_up(root, system.exponent), used[::-1]


def _prove_stage(stage: Stage, T: Tensor, H: Tensor) -> tuple[Tensor, Tensor]:
    """A storage matrix of the stage that is proved to dominate V, and the multipliers that do it."""
    G, error = _gram(stage, H)
    T = _at_least_diagonal(stage, T, G)
    lift = 0.0
    for _ in range(14):
        raised = T * (1.0 + lift)
        proved = (
            _prove_cut(stage, raised, G, error) if stage.increments.cuts else _prove_full(stage, raised, G, error, H)
        )
        if proved is not None:
            return proved, raised
        lift = max(1e-13, 8.0 * lift)
    raise NumericalFailure("The LipSDP multipliers are too far from feasible for a proof.")


def _gram(stage: Stage, H: Tensor) -> tuple[Tensor, Tensor]:
    """``G = [A B]' H [A B]``, exactly symmetric, and an entrywise bound of its error."""
    W, rule = stage.weight, stage.increments
    m, K = W.shape[0], rule.components
    inner = _mirror(W.T @ (H @ W))
    magnitude = W.abs().T @ (H.abs() @ W.abs())
    # Underflow, also in the scaling of the weights: TINY an operation, times what it is multiplied by.
    tiny = 16.0 * m * m * (1.0 + float(H.abs().max())) * (1.0 + float(W.abs().max())) * TINY
    spread = _mirror(magnitude) * (2.1 * gamma(m)) + tiny
    E, radius = rule.outputs, rule.radius
    size = E.abs() + radius
    error = contract(stage, spread, size, size)
    error = error + contract(stage, inner.abs(), E.abs(), E.abs()) * gamma(K * K + 4)
    if bool(radius.any()):
        error = error + contract(stage, inner.abs(), radius, size) + contract(stage, inner.abs(), E.abs(), radius)
    error = (error + error.T) * COVER + 8.0 * K * K * (
        1.0 + float(size.max())
    ) * TINY  # the sum also covers a mirrored entry's error
    return _mirror(contract(stage, inner, E, E)), error


def _mirror(matrix: Tensor) -> Tensor:
    return torch.tril(matrix) + torch.tril(matrix, -1).T


def _at_least_diagonal(stage: Stage, T: Tensor, G: Tensor) -> Tensor:
    """Raise multipliers to the diagonal of G_qq, which every feasible one exceeds, and above zero."""
    u = stage.width
    needed = G.diagonal()[u:].reshape(-1, u)
    rows = [needed[[j for j, g in enumerate(stage.increments.group) if g == c]].amax(0) for c in range(T.shape[0])]
    if not rows:
        return T
    floor = torch.stack(rows)
    return torch.maximum(T, torch.maximum(floor, 1e-40 * floor.max()))


def _prove_cut(stage: Stage, T: Tensor, G: Tensor, error: Tensor) -> Tensor | None:
    """No output sees z but through q: V(z) = z' diag(T) z, if D - G_qq is positive semidefinite."""
    u = stage.width
    on_z, on_q = diagonals(stage, T)
    if not _is_positive(*_minus(torch.diag(on_q), G[u:, u:], error[u:, u:])):
        return None
    exact = T.shape[0] == 1
    return torch.diag(on_z if exact else on_z * (1.0 + 4.0 * T.shape[0] * UNIT))


def _prove_full(stage: Stage, T: Tensor, G: Tensor, error: Tensor, H: Tensor) -> Tensor | None:
    u, storage = stage.width, eliminate_stage(stage, T, H)
    if storage is None:
        return None
    on_z, on_q = diagonals(stage, T)
    weight = storage.diagonal().abs()
    weight = torch.diag(torch.maximum(weight, 1e-40 * weight.max()))
    error = error + torch.diag(torch.cat([on_z * (4.0 * T.shape[0] * UNIT), torch.zeros_like(on_q)]))
    slack = 1e-13
    while slack < 1e-3:
        raised = _mirror(storage + slack * weight)
        block = torch.diag(torch.cat([-on_z, on_q]))
        block[:u, :u] += raised
        rounding = torch.zeros_like(error)
        rounding[:u, :u] = UNIT * (raised.abs() + torch.diag(on_z))
        if _is_positive(*_minus(block, G, error + rounding)):
            return raised
        slack *= 4.0
    return None


def _minus(matrix: Tensor, G: Tensor, error: Tensor) -> tuple[Tensor, Tensor]:
    """``matrix - G`` and an entrywise bound of the error, its own rounding included."""
    return matrix - G, (error + UNIT * (matrix.abs() + G.abs())) * COVER


def _is_positive(matrix: Tensor, error: Tensor) -> bool:
    """Whether every symmetric matrix within ``error`` of ``matrix``, entry by entry, is proved to be semidefinite."""
    diagonal = matrix.diagonal()
    if not bool(torch.isfinite(matrix).all() and torch.isfinite(error).all() and (diagonal > 0).all()):
        return False
    scale = _power_of_two(diagonal.rsqrt())
    scaled = _mirror(matrix * scale[:, None] * scale)
    margin = add_up(magnitude_norm_up(error * scale[:, None] * scale), mul_up(8.0, matrix.shape[0], LOST))
    shift = add_up(margin, gamma(64) * matrix.shape[0])
    for _ in range(3):
        floor = smallest_eigenvalue_down(scaled, shift)
        if floor is None or floor >= margin:
            return floor is not None
        shift = add_up(shift, 1.5 * (margin - floor))
    return False


def _power_of_two(values: Tensor) -> Tensor:
    """Powers of two near positive values, kept within the largest scale. Exact, unlike a vectorised ``exp2``."""
    limit = math.frexp(LARGEST_SCALE)[1] - 1
    exponents = cast(list[float], cast(Any, torch.log2(values).round().clamp(-limit, limit)).tolist())
    return torch.tensor([math.ldexp(1.0, int(exponent)) for exponent in exponents], dtype=torch.float64)


def _entry_norm_up(H: Tensor, W: Tensor) -> float:
    """Upper bound of sqrt(lambda_max(W' H W)): H <= L L' + eta I by Cholesky, so W' H W <= (L'W)'(L'W) + eta W'W."""
    diagonal = H.diagonal()
    scale = _power_of_two(torch.where(diagonal > 0, diagonal, torch.ones_like(diagonal)).rsqrt())
    H, W = H * scale[:, None] * scale, W / scale[:, None]
    n = H.shape[0]
    jitter, L = 1e-15, cholesky(H)
    while L is None:
        if jitter > 1e-3:
            raise NumericalFailure("A storage matrix is not positive semidefinite; no bound could be proved.")
        L = cholesky(H + jitter * torch.eye(n, dtype=torch.float64))
        jitter *= 16.0
    product = L @ L.T
    error = L.abs() @ L.abs().T * gamma(n) + UNIT * (H.abs() + product.abs())
    eta = add_up(magnitude_norm_up(H - product), magnitude_norm_up(error * COVER), mul_up(16.0, n, n, LOST))
    Y = L.T @ W
    spread = (L.abs().T @ W.abs()) * (gamma(n) * COVER)
    tiny = mul_up(16.0 * n, W.numel(), 1.0 + float(L.abs().max()), 1.0 + float(W.abs().max()), LOST)
    root = add_up(proved_operator_norm(Y), magnitude_norm_up(spread), tiny)
    rest = mul_up(eta, proved_operator_norm(W), proved_operator_norm(W))
    return sqrt_up(add_up(mul_up(root, root), rest))


def _times_power_of_two_up(value: float, exponent: int) -> float:
    try:
        result = math.ldexp(value, exponent)
    except OverflowError as error:
        raise NumericalFailure("The LipSDP bound is beyond float64; rescale the weights.") from error
    if math.isinf(result):
        raise NumericalFailure("The LipSDP bound is beyond float64; rescale the weights.")
    return result if math.ldexp(result, -exponent) == value else up(result)
