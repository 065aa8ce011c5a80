"""LipSDP's inequality for l_inf -> l_inf and l_1 -> l_1: one small program an output, or an input; proved bounds.

With z, q and the constraints ``sum_c T_c (z^2 - |q_c|^2) >= 0`` of :mod:`lipbridge.lipsdp.system`:

* l_inf: let o be one output. If ``sum_i d_i x_i^2 - o^2 - sum T (z^2 - |q|^2) >= 0`` for all (x, q), then
  ``o^2 <= sum_i d_i x_i^2 <= (sum_i d_i) |x|_inf^2``. The constant is the largest ``sqrt(sum d)`` over the outputs.
* l_1: let x be one coordinate, the others fixed. If ``rho x^2 - sum_k o_k^2 / w_k - sum T (z^2 - |q|^2) >= 0``, then by
  Cauchy-Schwarz ``(sum_k |o_k|)^2 <= (sum_k w_k) (sum_k o_k^2 / w_k) <= rho (sum_k w_k) x^2``. The constant is the
  largest over the inputs, since an l_1 ball is the hull of its corners and |J e_i|_1 is what each of them gains (on a
  segment between two points, coordinate by coordinate).

The least of the first over d and T is the relaxation of GeoLIP (Wang, Prakriya and Jha 2022, "A quantitative geometric
approach to neural-network smoothness"), there for slopes in [0, 1]. They bound o itself, by (t + sum d)/2 under
``t + x' diag(d) x - 2 o - ... >= 0``; after Schur's complement and the best t this is the least of the square above.
The second program is the transpose of the first.

Both are proved by the elimination of :mod:`lipbridge.lipsdp.proof`, which leaves ``o^2 <= z_1' H z_1`` for the
first pre-activations z_1 = W x; what is left is the largest ``x' W' H W x`` over a box (:func:`box_norm_up`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor

from lipbridge.constants.trivial import trivial_bound
from lipbridge.errors import NumericalFailure
from lipbridge.graph.graph import Graph
from lipbridge.graph.nodes import Dense, Elementwise, Input, Node
from lipbridge.linalg import eigenvalues
from lipbridge.lipsdp.chain_rounding import rounding_term
from lipbridge.lipsdp.dense_problem import DenseProblem, dense_problem
from lipbridge.lipsdp.elimination import eliminate_stage, golden, starting_multipliers
from lipbridge.lipsdp.proof import COVER, LOST, entry_norm_up, power_of_two, prove_stage, times_power_of_two_up
from lipbridge.lipsdp.system import LipSDP, lipsdp_of
from lipbridge.lowering.chain import Chain, as_chain
from lipbridge.problem.problem import Problem
from lipbridge.rigor.matrix import smallest_eigenvalue_down
from lipbridge.rounding.scalars import TINY, UNIT, add_up, gamma, mul_up, sqrt_up, up
from lipbridge.vocabulary import Norm, Quantity

#: Shares of the row sums, which are feasible for sure, that are mixed into a diagonal that may not be.
SHARES = (1e-9, 1e-6, 1e-4, 1e-3, 1e-2, 0.1, 1.0)


@dataclass(frozen=True, eq=False)
class Piece:
    """The part of a network that one program bounds: one output (l_inf) or one input (l_1).

    Attributes:
        index: of the output or the input.
        norm: "inf" or 1.
        system: its matrix inequality, with one row at the end or one column at the beginning.
        trivial: its proved trivial bound.
        rounding: what is added to a bound of the system for one of the network's piece, whose weights may be rounded
            here (:mod:`lipbridge.lipsdp.chain_rounding`); the trivial bound holds it.
    """

    index: int
    norm: Norm
    system: LipSDP
    trivial: float
    rounding: float = 0.0

    @property
    def free(self) -> int:
        """How many weights the ends have: inputs (d), or outputs (w)."""
        last = self.system.stages[-1].weight if self.system.stages else self.system.entry
        return self.system.entry.shape[1] if self.norm == "inf" else last.shape[0]


@dataclass(frozen=True, eq=False)
class Multipliers:
    """A claim: ``inner`` is T by stage, ``(constraints, u)``; ``ends`` is d, or w, all of the scaled system."""

    inner: Sequence[Tensor]
    ends: Tensor


def ends_problem(problem: Problem) -> DenseProblem | str:
    """The problem as these programs take it, or the reason why not, in one line: a dense chain, l_inf or l_1."""
    if problem.quantity is not Quantity.LIPSCHITZ:
        return "it bounds the Lipschitz constant, not the deviation from a centre"
    if problem.input_norm != problem.output_norm or problem.input_norm == 2:
        return f"it bounds the constants of l_inf and l_1, not of the norm {problem.norm_name}"
    return dense_problem(problem)


def pieces_of(network: Graph | Chain, norm: Norm) -> list[Piece]:
    """The pieces of a dense chain (or of a Graph that is one), those of the largest trivial bound first.

    Raises:
        UnsupportedProblem: if the Graph is no dense chain.
        NumericalFailure: if weights hold NaN or infinity.
    """
    chain = network if isinstance(network, Chain) else as_chain(network, rounded=True)
    count = chain.layers[-1].weight.shape[0] if norm == "inf" else chain.layers[0].weight.shape[1]
    rounding = rounding_term(chain, norm)
    pieces = [_piece(chain, norm, index, rounding) for index in range(count)]
    return sorted(pieces, key=lambda piece: -piece.trivial)


def _piece(chain: Chain, norm: Norm, index: int, rounding: float) -> Piece:
    weights = [layer.weight.detach().to(device="cpu", dtype=torch.float64) for layer in chain.layers]
    if norm == "inf":
        weights[-1] = weights[-1][index : index + 1]
    else:
        weights[0] = weights[0][:, index : index + 1]
    part = _chain_graph(chain, weights)
    trivial = trivial_bound(part, norm).value
    return Piece(index, norm, lipsdp_of(part), add_up(trivial, rounding) if rounding else trivial, rounding)


def _chain_graph(chain: Chain, weights: Sequence[Tensor]) -> Graph:
    """The chain with other weights and no biases."""
    nodes: list[Node] = [Input("x", (), (weights[0].shape[1],))]
    for layer, W, g in zip(chain.layers, weights, (*chain.activations, None), strict=True):
        nodes.append(Dense(layer.name, (len(nodes) - 1,), (W.shape[0],), W))
        if g is not None:
            nodes.append(Elementwise(f"after {layer.name}", (len(nodes) - 1,), (W.shape[0] * g.width,), g))
    return Graph(tuple(nodes))


# --- proofs ----------------------------------------------------------------------------------------------------------


def prove_piece(piece: Piece, claim: Multipliers) -> float:
    """The proved bound of a piece that multipliers from anywhere give; never above its trivial bound.

    Raises:
        NumericalFailure: if rounding leaves no room for a proof.

    Law: never below the piece's constant, whatever the multipliers.
    """
    system = piece.system
    if system.constant:
        return piece.rounding
    if not system.stages:
        return piece.trivial
    storage = _output_storage(piece, claim.ends)
    try:
        H = _proved_storage(system, mixed(piece, claim, storage), storage)
    except NumericalFailure:  # too close to infeasible for rounding; the closed form has room
        H = _proved_storage(system, _feasible(system, storage)[0], storage)
    if piece.norm == "inf":
        root = box_norm_up(H, system.entry, claim.ends)
    else:
        total = add_up(*(up(1.0 / v) for v in _floats(storage.diagonal())))
        lost = mul_up(8.0, system.entry.numel(), sqrt_up(add_up(*_floats(H.abs().sum(1)))), TINY)
        root = mul_up(add_up(entry_norm_up(H, system.entry), lost), sqrt_up(total))
    value = times_power_of_two_up(root, system.exponent)
    return min(add_up(value, piece.rounding) if piece.rounding else value, piece.trivial)


def _proved_storage(system: LipSDP, inner: Sequence[Tensor], storage: Tensor) -> Tensor:
    """H with ``z_1' H z_1`` proved to dominate what the outputs' storage makes of any increment."""
    H = storage
    for stage, T in zip(reversed(system.stages), reversed(inner), strict=True):
        H, _ = prove_stage(stage, T, H)
    return H


def closed_form(piece: Piece) -> Multipliers:
    """Feasible multipliers without a solver: LipSDP's closed form inside, row sums at the input, ones at the output."""
    system = piece.system
    if system.constant:
        zeros = [torch.zeros(s.increments.constraints, s.width, dtype=torch.float64) for s in system.stages]
        return Multipliers(zeros, torch.zeros(piece.free, dtype=torch.float64))
    storage = torch.eye(1 if piece.norm == "inf" else piece.free, dtype=torch.float64)
    inner, H = _feasible(system, storage)
    if piece.norm == "inf":
        return Multipliers(inner, (system.entry.T @ H @ system.entry).abs().sum(1))
    rho = float((system.entry.T @ H @ system.entry).abs().max())
    c = math.sqrt(rho / piece.free) if rho > 0 else 1.0
    return Multipliers([T / c for T in inner], torch.full((piece.free,), c, dtype=torch.float64))


def _output_storage(piece: Piece, ends: Tensor) -> Tensor:
    """H after the last stage: 1 for one output; ``diag(1 / w)``, with a floor under w, for all of them."""
    if piece.norm == "inf":
        return torch.eye(1, dtype=torch.float64)
    w = ends.detach().to(torch.float64).clamp_min(0.0)
    if not 1e-150 < float(w.nan_to_num(math.inf).max()) < 1e150:
        w = torch.ones_like(w)
    return torch.diag(1.0 / w.clamp_min(1e-9 * float(w.max())))


def _feasible(system: LipSDP, storage: Tensor) -> tuple[list[Tensor], Tensor]:
    """LipSDP's closed form for an output storage, and the H that it leaves; NaN if rounding left no room."""
    vectors, H = list[Tensor](), storage
    for stage in reversed(system.stages):
        T = starting_multipliers(stage, H) * (1.0 + 1e-9)
        step = eliminate_stage(stage, T, H)
        if step is None:
            T = T * 1.01
            step = eliminate_stage(stage, T, H)
        if step is None:
            raise NumericalFailure("No feasible multipliers were found; rescale the network.")
        H = step
        vectors.append(T)
    return vectors[::-1], H


def mixed(piece: Piece, claim: Multipliers, storage: Tensor) -> list[Tensor]:
    """The best convex combination of the claimed inner multipliers with feasible ones, in plain floating point."""
    system = piece.system
    feasible, _ = _feasible(system, storage)
    claimed = [
        T.detach().to(torch.float64).reshape(F.shape).nan_to_num(0.0, 0.0, 0.0).clamp_min(0.0)
        for T, F in zip(claim.inner, feasible, strict=True)
    ]

    def at(share: float) -> list[Tensor]:
        return [(1.0 - share) * T + share * F for T, F in zip(claimed, feasible, strict=True)]

    def value(share: float) -> float:
        H = storage
        for stage, T in zip(reversed(system.stages), reversed(at(share)), strict=True):
            step = eliminate_stage(stage, T, H)
            if step is None:
                return math.inf
            H = step
        P = system.entry.T @ H @ system.entry
        found = (
            float(P) if piece.norm == 1 else min(_scaled_total(P, d) for d in _diagonals(P, claim.ends, (1e-4, 1.0)))
        )
        return found if math.isfinite(found) else math.inf

    exponent, best = golden(lambda x: value(10.0**x), -9.0, 0.0, 24)
    candidates = [(best, 10.0**exponent), (value(1.0), 1.0), (value(0.0), 0.0)]
    return at(min(candidates)[1])


def _diagonals(P: Tensor, claimed: Tensor, shares: Sequence[float]) -> list[Tensor]:
    """Candidates for d: the claimed one mixed with the row sums of |P|, which dominate P."""
    sums = P.abs().sum(1)
    d = claimed.detach().to(torch.float64).nan_to_num(0.0, 0.0, 0.0).clamp_min(0.0)
    return [(1.0 - share) * d + share * sums for share in shares]


def _scale(P: Tensor, d: Tensor) -> float:
    """The least s with ``s diag(d) >= P``, in plain floating point; infinite if there is none."""
    alive = d > 0
    if bool((P.diagonal()[~alive] != 0).any()) or not bool(alive.any()):
        return math.inf
    root = d[alive].rsqrt()
    A = P[alive][:, alive] * root[:, None] * root
    if not bool(torch.isfinite(A).all()):
        return math.inf
    return float(eigenvalues(0.5 * (A + A.T))[-1])


def _scaled_total(P: Tensor, d: Tensor) -> float:
    return _scale(P, d) * float(d.sum())


def box_norm_up(H: Tensor, W: Tensor, claimed: Tensor) -> float:
    """A proved upper bound of the largest ``sqrt(x' W' H W x)`` over ``|x|_inf <= 1``.

    For every diagonal ``D >= W' H W`` the square is at most the trace of D. Two are tried, and the better is returned:
    the sums of the magnitudes in the rows of W' H W, and the claimed one, scaled until it dominates, which
    :func:`lipbridge.rigor.matrix.smallest_eigenvalue_down` proves after what its answer and the rounding of W' H W lack
    has been added to D.

    Args:
        H: ``(u, u)`` float64, symmetric, exact.
        W: ``(u, n)`` float64, the scaled first layer, whose entries may have lost 2 TINY each.
        claimed: ``(n,)``, any numbers.
    """
    P = _mirror(W.T @ (H @ W))
    if not bool(torch.isfinite(P).all()):
        raise NumericalFailure("The bound overflowed float64; rescale the network.")
    m, size = W.shape[0], W.abs()
    error = (size.T @ (H.abs() @ size)) * (2.1 * gamma(m + 8) * COVER)
    error = torch.maximum(error, error.T)  # P was mirrored, and so must its error be
    tiny = mul_up(64.0, m, m, 1.0 + float(H.abs().max()), (1.0 + float(size.max())) ** 2, TINY)
    error = error + tiny
    best = mul_up(add_up(*_floats(P.abs().sum(1)), *_floats(error.sum(1))), COVER)
    alive = W.abs().sum(0) > 0  # a zero column counts by `tiny` alone
    if bool(alive.any()):
        rest = float(error[~alive].sum() * 2.0)
        candidates = _diagonals(P[alive][:, alive], claimed[alive], SHARES)
        part, its_error = P[alive][:, alive], error[alive][:, alive]
        d = min(candidates, key=lambda candidate: _scaled_total(part, candidate))
        total = _dominating_trace(part, its_error, d)
        if total is not None:
            best = min(best, add_up(total, mul_up(rest, COVER)))
    return sqrt_up(best)


def _dominating_trace(P: Tensor, error: Tensor, d: Tensor) -> float | None:
    """A proved upper bound of the trace of a diagonal, near a multiple of d, that dominates P within ``error``."""
    d = d.clamp_min(1e-15 * float(d.max()))
    s = _scale(P, d)
    if not (math.isfinite(s) and s > 0 and bool((d > 0).all())):
        return None
    n = P.shape[0]
    D = d * (s * (1.0 + 8.0 * n * UNIT))
    scale = power_of_two(D.rsqrt())
    if not bool(torch.isfinite(D).all() and (D > 0).all()):
        return None
    M = -(P * scale[:, None] * scale)
    M.diagonal().add_(D * scale * scale)
    own = mul_up(float(((error * scale[:, None] * scale).sum(1)).max()), COVER)
    # One rounding an entry of the diagonal, whose terms are at most 2 and |M| + 2; entries that underflow in scaling.
    rounding = add_up(mul_up(4.0 * UNIT, add_up(4.0, float(M.diagonal().abs().max()))), mul_up(8.0, n, LOST))
    floor, shift = None, 8.0 * n * UNIT
    while floor is None and shift < 1.0:
        floor = smallest_eigenvalue_down(M, -shift)
        shift *= 8.0
    if floor is None:
        return None
    lift = add_up(max(-floor, 0.0), own, rounding)
    return add_up(*_floats(D), *(mul_up(lift, 1.0 / t, 1.0 / t) for t in _floats(scale)))


def _mirror(matrix: Tensor) -> Tensor:
    return torch.tril(matrix) + torch.tril(matrix, -1).T


def _floats(vector: Tensor) -> list[float]:
    return cast(list[float], cast(Any, vector).tolist())
