"""Proves a LipSDP bound from multipliers, stage by stage, in outward-rounded float64.

The elimination of :mod:`lipbridge.lipsdp.elimination` is repeated with storage matrices H_l that are *stated*,
exact float64 matrices a little above the computed ones, and each stage is proved by itself:

    [H_l - diag(T) - G_zz   -G_zq        ]
    [-G_qz                   D - G_qq    ]  >= 0,     G = [A B]' H_(l+1) [A B],

which says that V_l(z) <= z' H_l z. H_l is made from a computed Cholesky factor in such a way that the matrix is a
square plus a remainder, whose parts are bounded (:func:`attempt`): one factorisation and four products a layer, no
eigenvalues and no search. The rounding of a product is bounded by |fl(XY) - XY| <= gamma |X||Y|, of which only row
sums are needed; everything is scaled by powers of two to a unit diagonal, so that layers and neurons of very different
size do not spoil each other. One inequality of all variables would prove the same and cost more: the stages are as
small as the layers, the input's width enters only through one certified norm, and where the inequality falls apart
(abs, sin, joint constraints) only the D - G_qq blocks remain.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor

from lipbridge.errors import NumericalFailure
from lipbridge.linalg import cholesky, solve_triangular
from lipbridge.lipsdp.elimination import contract, diagonals
from lipbridge.lipsdp.system import LipSDP, Stage
from lipbridge.rigor.matrix import largest_eigenvalue_up, magnitude_norm_up, proved_operator_norm
from lipbridge.rounding.scalars import TINY, UNIT, add_up, down, gamma, mul_up, sqrt_up, up

#: Error bounds are themselves computed in float64, by sums of non-negative terms: this covers their rounding.
COVER = 1.0 + 2.0**-20
#: Largest factor of a scaling by powers of two, and what an entry can lose in it by underflow: TINY times the factor.
LARGEST_SCALE = 2.0**500
LOST = TINY * LARGEST_SCALE * 2.0
#: Multipliers are raised by at most this share for a proof: it makes room for rounding, it does not repair.
LARGEST_LIFT = 1e-2


def prove(system: LipSDP, vectors: Sequence[Tensor]) -> tuple[float, list[Tensor]]:
    """A proved upper bound of the l_2 Lipschitz constant and the multipliers, raised a little where needed.

    It is one of the network that the system was read from, whose weights may be rounded in the system.

    Raises:
        NumericalFailure: if the multipliers are too far from feasible, or rounding leaves no room.
    """
    if system.constant:
        return system.rounding, list(vectors)
    outputs = (system.stages[-1].weight if system.stages else system.entry).shape[0]
    H, used = torch.eye(outputs, dtype=torch.float64), list[Tensor]()
    for stage, T in zip(reversed(system.stages), reversed(vectors), strict=True):
        H, T = prove_stage(stage, T, H)
        used.append(T)
    if system.stages:
        root = entry_norm_up(H, system.entry)
    else:  # the scaled weight may have lost entries to underflow
        root = add_up(proved_operator_norm(system.entry), mul_up(4.0, system.entry.numel(), TINY))
    value = times_power_of_two_up(root, system.exponent)
    return (add_up(value, system.rounding) if system.rounding else value), used[::-1]


def prove_stage(stage: Stage, T: Tensor, H: Tensor) -> tuple[Tensor, Tensor]:
    """A storage matrix of the stage that is proved to dominate V, and the multipliers that do it."""
    G, spread = gram_of(stage, H)
    T = at_least_diagonal(stage, T, G)
    raised, lift = T, 0.0
    while lift < LARGEST_LIFT:
        storage, shift = attempt(stage, raised, G, spread)
        if storage is not None:
            return storage, raised
        lift = max(4.0 * shift, 8.0 * lift)
        raised = T * (1.0 + lift)
    raise NumericalFailure("The LipSDP multipliers are too far from feasible for a proof.")


class Spread:
    """An entrywise bound of the error of G, ``((1 + J) u)`` square, that is never formed: only its row sums are.

    A block of non-negative entries has a norm of at most ``sqrt(largest row sum * largest column sum)`` (Schur), also
    after a scaling of its rows and columns, and those sums are products of non-negative matrices with one vector:
    nothing beside the matrix products whose error they bound.
    """

    def __init__(
        self, stage: Stage, H: Tensor, inner: Tensor, magnitude: Tensor | None = None, error: float = 0.0
    ) -> None:
        self._stage, self._storage, self._inner = stage, H.abs(), inner.abs()
        self._weight = stage.weight.abs() if magnitude is None else magnitude
        m = stage.weight.shape[0]
        # A weight off by `error` times its magnitude M adds (2 error + error^2) M' |H| M.
        #: |fl(W' fl(H W)) - W' H W| <= (2 gamma_m + gamma_m^2) |W|' |H| |W|; slopes in local weights: a few more ulp.
        self._relative = 2.1 * (gamma(m + 8) + error)
        # Underflow, also in the scaling of the weights: TINY an operation, times what it is multiplied by.
        largest = (1.0 + float(self._storage.max())) * (1.0 + float(self._weight.max()))
        self._tiny = 32.0 * m * m * largest * TINY

    def times(self, v: Tensor) -> Tensor:
        """The bound, or a little more, times a non-negative vector ``(u + J f,)``."""
        rule, u = self._stage.increments, self._stage.width
        v = torch.cat([v[:u], self._stage.on_all_units(v[u:]).flatten()])
        E, radius, K = rule.outputs.abs(), rule.radius, rule.components
        size, blocks = E + radius, v.reshape(-1, u)
        outer = (size @ blocks).flatten()
        error = self._weight.T @ (self._storage @ (self._weight @ outer)) * self._relative + self._tiny * outer.sum()
        total = size.T @ error.reshape(K, u)
        known = (self._inner @ (E @ blocks).flatten()).reshape(K, u)
        total = total + (E.T @ known) * gamma(K * K + 4)
        if bool(radius.any()):
            total = total + radius.T @ (self._inner @ outer).reshape(K, u)
            total = total + E.T @ (self._inner @ (radius @ blocks).flatten()).reshape(K, u)
        total = total.flatten() * COVER + 8.0 * K * K * (1.0 + float(size.max())) * TINY * v.sum()
        return torch.cat([total[:u], self._stage.on_free_units(total[u:].reshape(-1, u)).flatten()])


def gram_of(stage: Stage, H: Tensor, magnitude: Tensor | None = None, error: float = 0.0) -> tuple[Tensor, Spread]:
    """``G = [A B]' H [A B]``, exactly symmetric, and an entrywise bound of its error.

    Where the stage's weight is itself off by up to ``error`` times ``magnitude``, which is at least its size, that is
    for the true weight.
    """
    inner = _mirror(stage.weight.T @ (H @ stage.weight))
    E = stage.increments.outputs
    return _mirror(contract(stage, inner, E, E)), Spread(stage, H, inner, magnitude, error)


def _mirror(matrix: Tensor) -> Tensor:
    return torch.tril(matrix) + torch.tril(matrix, -1).T


def at_least_diagonal(stage: Stage, T: Tensor, G: Tensor) -> Tensor:
    """Raise multipliers to the diagonal of G_qq, which every feasible one exceeds, and above zero."""
    u = stage.width
    needed = stage.on_all_units(G.diagonal()[u:])
    rows = [needed[[j for j, g in enumerate(stage.increments.group) if g == c]].amax(0) for c in range(T.shape[0])]
    if not rows:
        return T
    floor = torch.stack(rows)
    return torch.maximum(T, torch.maximum(floor, 1e-40 * floor.max()))


def attempt(stage: Stage, T: Tensor, G: Tensor, spread: Spread) -> tuple[Tensor | None, float]:
    """A storage matrix, or None if ``T`` was not proved feasible, and the shift of the test.

    With ``A = D - G_qq``, ``B = G_qz``, ``C = H - diag(T) - G_zz`` the stage's inequality is ``[A -B; -B' C] >= 0``. In
    coordinates scaled by powers of two, let L be a computed Cholesky factor of A - s I and X a computed L^-1 B. Then

        [A -B; -B' C] = [L; -X'] [L; -X']' + [R1 -R2; -R2' R3],  R1 = A - L L',  R2 = B - L X,  R3 = C - X'X,

    whatever L and X are, and the last matrix is semidefinite if ``R1 >= r I``, ``|R2| <= e2``, ``R3 >= (e2^2 / r) I``.
    So H = diag(T) + G_zz + X'X, raised by ``e3 + e2^2 / r`` in the scaled coordinates, where e3 bounds its rounding.
    Where the outputs see z through q alone, V(z) = z' diag(T) z and ``A >= 0`` is all that is needed.
    """
    u, cuts = stage.width, stage.increments.cuts
    on_z, on_q = diagonals(stage, T)
    uncertain = 4.0 * T.shape[0] * UNIT  # relative, of the sum of a unit's multipliers
    A = -G[u:, u:]
    A.diagonal().add_(on_q)
    if not bool(torch.isfinite(G).all() and (A.diagonal() > 0).all()):
        return None, 1e-13
    rows = power_of_two(A.diagonal().rsqrt())
    A = A * rows[:, None] * rows
    sums = spread.times(torch.cat([torch.zeros_like(on_z), rows]))
    margin = add_up(largest_sum(sums[u:] * rows), 4.0 * UNIT, mul_up(8.0, A.shape[0], LOST))
    factor, shift = _factor(A, margin)
    if factor is None:
        return None, shift
    if cuts:
        return torch.diag(on_z if T.shape[0] == 1 else on_z * (1.0 + uncertain)), shift
    L, room = factor
    top = torch.diag(on_z) + G[:u, :u]
    X = solve_triangular(L, G[u:, :u] * rows[:, None])
    diagonal = top.diagonal() + X.square().sum(0)
    columns = power_of_two(torch.where(diagonal > 0, diagonal, torch.ones_like(diagonal)).rsqrt())
    X = X * columns
    error = spread.times(torch.cat([columns, torch.zeros_like(rows)]))
    B = G[u:, :u] * rows[:, None] * columns
    second = error_of_solution(B, L, X, error[u:] * rows, sums[:u] * columns)
    H, third = sum_with_square(top, X, columns, uncertain)
    third = add_up(third, largest_sum(error[:u] * columns))  # and the error of G_zz
    lift = mul_up(add_up(third, second * (second / room)), COVER)
    H.diagonal().add_(lift / columns.square())
    return (H if bool(torch.isfinite(H).all()) else None), shift


def error_of_solution(B: Tensor, L: Tensor, X: Tensor, row_sums: Tensor, column_sums: Tensor) -> float:
    """Upper bound of the norm of ``B + E - L X`` for any E whose magnitudes have sums of at most these.

    It is at most the computed value, the rounding of the product ``L X``, and the norm of E.
    """
    relative = gamma(L.shape[0] + 1)
    return add_up(
        magnitude_norm_up(B - L @ X),
        _schur((L.abs() @ X.abs().sum(1)) * relative, (X.abs().T @ L.abs().sum(0)) * relative),
        _schur(row_sums, column_sums),
        mul_up(8.0, L.shape[0] + X.shape[1], LOST),
    )


def sum_with_square(top: Tensor, X: Tensor, columns: Tensor, uncertain: float) -> tuple[Tensor, float]:
    """``H = top + C^-1 X'X C^-1`` as computed, symmetric, and an upper bound of the norm of ``C (H - exact) C``.

    Args:
        top: symmetric; each entry may be off by the share ``uncertain`` of that of H, if only on the diagonal.
        X: the root of the square, in coordinates scaled by C.
        columns: the diagonal of C, powers of two.
        uncertain: see ``top``.
    """
    H = _mirror(top + X.T @ X / columns[:, None] / columns)
    error = add_up(
        largest_sum(X.abs().T @ X.abs().sum(1)) * gamma(X.shape[0] + 1),
        largest_sum((H.abs() @ columns) * columns) * (8.0 * UNIT + uncertain),
        largest_sum(columns.square().sum()[None] * (8.0 * TINY)),  # entries of H that underflow
        mul_up(8.0, X.shape[0] + X.shape[1], LOST),
    )
    return H, error


def _factor(A: Tensor, margin: float) -> tuple[tuple[Tensor, float] | None, float]:
    """``(L, r)`` with ``A >= L L' + (r + margin) I`` proved and r > 0, or None; and the shift that was tried last.

    Args:
        A: symmetric, with a diagonal of about one.
        margin: of A's own error.
    """
    n = A.shape[0]
    shift = add_up(mul_up(4.0, margin), mul_up(gamma(64), n))
    for _ in range(3):
        S = A.clone()
        S.diagonal().sub_(shift)  # one rounding an entry, which `margin` and the last term below cover
        L = cholesky(S)
        if L is None:
            return None, shift
        size = L.abs()
        # |fl(S - fl(L L')) - (S - L L')| <= u |fl(S - fl(L L'))| + gamma_n |L| |L|', and underflow.
        residual = mul_up(magnitude_norm_up(S - L @ L.T), COVER)
        rounding = largest_sum(size @ size.sum(0)) * gamma(n + 1)
        error = add_up(residual, rounding, mul_up(4.0 * UNIT, 1.0 + shift), mul_up(8.0 * n, n, TINY), margin)
        if error < 0.75 * shift:
            return (L, down(shift - error)), shift
        shift = mul_up(2.0, error)
    return None, shift


def largest_sum(sums: Tensor) -> float:
    """The largest of computed sums of non-negative terms, with their rounding."""
    return mul_up(float(sums.max()), COVER) if sums.numel() else 0.0


def _schur(row_sums: Tensor, column_sums: Tensor) -> float:
    """Upper bound of the norm of a non-negative matrix of these sums."""
    return sqrt_up(mul_up(largest_sum(row_sums), largest_sum(column_sums)))


def power_of_two(values: Tensor) -> Tensor:
    """Powers of two near positive values, kept within the largest scale. Exact, unlike a vectorised ``exp2``."""
    limit = math.frexp(LARGEST_SCALE)[1] - 1
    exponents = cast(list[float], cast(Any, torch.log2(values).round().clamp(-limit, limit)).tolist())
    return torch.tensor([math.ldexp(1.0, int(exponent)) for exponent in exponents], dtype=torch.float64)


def entry_norm_up(H: Tensor, W: Tensor) -> float:
    """Upper bound of sqrt(lambda_max(W' H W))."""
    m, n = W.shape
    if n <= m:
        product, size = _mirror(W.T @ (H @ W)), W.abs()
        error = largest_sum(size.T @ (H.abs() @ size.sum(1))) * 2.1 * gamma(m)
        tiny = mul_up(16.0 * m * m, n, 1.0 + float(H.abs().max()), 1.0 + float(size.max()), TINY)
        return sqrt_up(max(add_up(largest_eigenvalue_up(product), error * COVER, tiny), 0.0))
    return _wide_entry_norm_up(H, W)


def _wide_entry_norm_up(H: Tensor, W: Tensor) -> float:
    """The same where W has more columns: H <= L L' + eta I by Cholesky, so W' H W <= (L'W)'(L'W) + eta W'W."""
    diagonal = H.diagonal()
    scale = power_of_two(torch.where(diagonal > 0, diagonal, torch.ones_like(diagonal)).rsqrt())
    H, W = H * scale[:, None] * scale, W / scale[:, None]
    L, eta = dominating_factor(H)
    n, size = H.shape[0], L.abs()
    Y = L.T @ W
    spread = _schur(size.T @ W.abs().sum(1), W.abs().T @ size.sum(1)) * gamma(n)
    tiny = mul_up(16.0 * n, W.numel(), 1.0 + float(L.abs().max()), 1.0 + float(W.abs().max()), LOST)
    root = add_up(proved_operator_norm(Y), mul_up(spread, COVER), tiny)
    size_of_entry = magnitude_norm_up(W)
    rest = mul_up(eta, size_of_entry, size_of_entry)
    return sqrt_up(add_up(mul_up(root, root), rest))


def dominating_factor(H: Tensor) -> tuple[Tensor, float]:
    """``(L, eta)`` with ``H <= L L' + eta I`` proved, for a symmetric H with a diagonal of about one.

    Raises:
        NumericalFailure: if H is too far from semidefinite.
    """
    n = H.shape[0]
    jitter, L = 1e-15, cholesky(H)
    while L is None:
        if jitter > 1e-3:
            raise NumericalFailure("A storage matrix is not positive semidefinite; no bound could be proved.")
        L = cholesky(H + jitter * torch.eye(n, dtype=torch.float64))
        jitter *= 16.0
    size = L.abs()
    eta = add_up(
        mul_up(magnitude_norm_up(H - L @ L.T), COVER),
        largest_sum(size @ size.sum(0)) * gamma(n + 1),
        mul_up(16.0, n, n, LOST),
    )
    return L, eta


def times_power_of_two_up(value: float, exponent: int) -> float:
    try:
        result = math.ldexp(value, exponent)
    except OverflowError as error:
        raise NumericalFailure("The LipSDP bound is beyond float64; rescale the weights.") from error
    if math.isinf(result):
        raise NumericalFailure("The LipSDP bound is beyond float64; rescale the weights.")
    return result if math.ldexp(result, -exponent) == value else up(result)
