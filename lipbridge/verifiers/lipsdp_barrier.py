"""The LipSDP matrix inequality with its log-determinant barrier: gradient and Hessian from one inverse.

The multipliers and rho enter the inequality as ``M(x) = sum_a x_a A_a - C`` with ``A_a = sum_i s_i v_i v_i'``: the
signs +1 for a unit's q (or an input coordinate, for rho) and -1 for its z. With P = M^-1 the barrier -log det M
therefore has

    gradient_a = -sum_i s_i v_i' P v_i,        Hessian_ab = sum_ij s_i s_j (v_i' P v_j)^2,

so that all second derivatives are the squared entries of one Gram matrix V P V': a Newton step costs what a few
factorisations of M do, whatever the number of multipliers. Where the inequality falls apart (abs, sin, joint
constraints) each piece is a segment with its own M, and only neighbours share multipliers.

Source: the low-rank form of the Hessian is that of dual-scaling SDP solvers (Benson, Ye, Zhang 2000); its use for
LipSDP and the segments are ours. Law: gradient and Hessian are those of autograd through ``slogdet`` of
:meth:`Segment.matrix`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from torch import Tensor

from lipbridge.linalg import cholesky
from lipbridge.verifiers.lmi_system import LipSDP, Stage

#: Above this kappa the change of variables q = p - kappa z would spoil the scaling more than its sparsity saves.
LARGEST_KAPPA = 8.0


@dataclass(frozen=True, eq=False)
class Term:
    """What one stage contributes to a segment: ``sum_c T_c (|q_c|^2 - z^2)``, or one half of it at a cut.

    Attributes:
        first: index of the stage's first multiplier in x; multiplier (c, i) stands at ``first + c u + i``.
        group: the constraint of each q.
        constraints: how many there are.
        units: u.
        state: ``(u, s)``: z as a map of the segment's coordinates ``start`` to ``start + s``; None if z is elsewhere.
        start: see there.
        place: coordinate of the first p, laid out (J, u); None if q is elsewhere.
        kappa: per q, ``q_j = p_j - kappa_j z``.
    """

    first: int
    group: tuple[int, ...]
    constraints: int
    units: int
    state: Tensor | None
    start: int
    place: int | None
    kappa: tuple[float, ...]

    @property
    def columns(self) -> slice:
        """The coordinates that z lives on."""
        return slice(self.start, self.start + (0 if self.state is None else self.state.shape[1]))

    def places(self, j: int) -> slice:
        """The coordinates of p_j."""
        first = (self.place or 0) + j * self.units
        return slice(first, first + self.units)

    @property
    def variables(self) -> int:
        """J where q is in the segment, otherwise 0."""
        return 0 if self.place is None else len(self.group)

    def values(self, x: Tensor) -> Tensor:
        """The multipliers ``(constraints, u)`` in x."""
        return x[self.first : self.first + self.constraints * self.units].reshape(self.constraints, self.units)


@dataclass(frozen=True, eq=False)
class Segment:
    """One matrix inequality ``rho on the first `inputs` coordinates + terms - constant >= 0`` of ``size`` rows."""

    size: int
    inputs: int
    terms: tuple[Term, ...]
    output: Tensor | None
    output_start: int

    def matrix(self, x: Tensor) -> Tensor:
        """M(x), ``(size, size)``, symmetric."""
        M = x.new_zeros(self.size, self.size)
        diagonal = x[0] * (torch.arange(self.size, device=x.device) < self.inputs)
        for term in self.terms:
            T = term.values(x)
            weight = x.new_zeros(term.units)
            for j, c in enumerate(term.group[: term.variables]):
                diagonal[term.places(j)] += T[c]
                kappa = term.kappa[j]
                if kappa and term.state is not None:
                    cross = (kappa * T[c])[:, None] * term.state
                    M[term.places(j), term.columns] -= cross
                    M[term.columns, term.places(j)] -= cross.T
                    weight = weight + kappa * kappa * T[c]
            if term.state is not None:
                weight = weight - T.sum(0)
                if bool((weight.abs() > 1e-14 * T.sum(0).abs()).any()):  # zero for slopes in [0, b]
                    M[term.columns, term.columns] += term.state.T @ (weight[:, None] * term.state)
        if self.output is not None:
            where = slice(self.output_start, self.output_start + self.output.shape[1])
            M[where, where] -= self.output.T @ self.output
        M.diagonal().add_(diagonal)
        return M


@dataclass(frozen=True, eq=False)
class Program:
    """Minimise x_0 = rho subject to all segments: the whole LipSDP.

    Attributes:
        segments: the matrix inequalities.
        stages: of the system; x holds rho and the multipliers ``(constraints, f)`` of their free units.
    """

    segments: tuple[Segment, ...]
    stages: tuple[Stage, ...]

    @property
    def order(self) -> int:
        """Rows of all segments: the barrier's parameter."""
        return sum(segment.size for segment in self.segments)

    def point(self, rho: float, vectors: Sequence[Tensor]) -> Tensor:
        """x from rho and the multipliers of each stage."""
        own = [stage.on_free_units(T).flatten() for stage, T in zip(self.stages, vectors, strict=True)]
        return torch.cat([vectors[0].new_tensor([rho]), *own])

    def vectors(self, x: Tensor) -> list[Tensor]:
        """The multipliers of each stage in x, on the CPU; zero for units without variables."""
        parts: list[Tensor] = []
        first = 1
        for stage in self.stages:
            count = stage.increments.constraints * stage.free_width
            parts.append(stage.on_all_units(x[first : first + count].cpu()))
            first += count
        return parts

    def factors(self, x: Tensor) -> Factors | None:
        """Cholesky factors of all segments at x, or None if x is not strictly feasible."""
        found = Factors()
        for segment in self.segments:
            M = segment.matrix(x)
            diagonal = M.diagonal().clone()
            if not bool((diagonal > 0).all()):
                return None
            scale = diagonal.rsqrt()
            L = cholesky(M.mul_(scale[:, None]).mul_(scale))
            if L is None:
                return None
            found.parts.append((L, scale))
            found.logdet += 2.0 * float(L.diagonal().log().sum() - scale.log().sum())
        return found if found.logdet == found.logdet else None

    def derivatives(self, factors: Factors, count: int) -> tuple[Tensor, Tensor]:
        """``b_a = tr(P A_a)`` of length ``count`` and the barrier's Hessian ``(count, count)``."""
        like = factors.parts[0][1]
        b, H = like.new_zeros(count), like.new_zeros(count, count)
        for segment, (L, scale) in zip(self.segments, factors.parts, strict=True):
            P = torch.cholesky_inverse(L).mul_(scale[:, None]).mul_(scale)
            _add_derivatives(segment, P, b, H)
        H.copy_(torch.tril(H) + torch.tril(H, -1).T)
        return b, H


@dataclass(eq=False)
class Factors:
    """Per segment a Cholesky factor and the scaling to a unit diagonal before it, and log det of all."""

    parts: list[tuple[Tensor, Tensor]] = field(default_factory=lambda: [])
    logdet: float = 0.0


def _add_derivatives(segment: Segment, P: Tensor, b: Tensor, H: Tensor) -> None:
    """Add a segment's share to b and to the lower triangle of H."""
    rows: list[Tensor] = []
    begins = [0]
    for term in segment.terms:
        z = None if term.state is None else term.state @ P[term.columns]
        if z is not None:
            rows.append(z)
        for j in range(term.variables):
            q = P[term.places(j)]
            rows.append(q if z is None or not term.kappa[j] else q - term.kappa[j] * z)
        begins.append(begins[-1] + term.units * (term.variables + (z is not None)))
    Y = torch.cat(rows)  # V P, a row for every v
    inputs = Y[:, : segment.inputs].square().sum(1) if segment.inputs else None
    if inputs is not None:
        H[0, 0] += P[: segment.inputs, : segment.inputs].square().sum()
        b[0] += P.diagonal()[: segment.inputs].sum()
    for index, term in enumerate(segment.terms):
        below = Y[begins[index] :]
        u, offset = term.units, 0
        squares: list[Tensor | None] = [None] * term.constraints
        KZ = None
        if term.state is not None:
            KZ = below[:, term.columns] @ term.state.T
            own = KZ[:u].diagonal()
            for c in range(term.constraints):
                b[term.first + c * u : term.first + (c + 1) * u] -= own
            square = -KZ.square()
            squares = [square.clone() if c else square for c in range(term.constraints)]
            offset = u
        for j in range(term.variables):
            K = below[:, term.places(j)]
            if KZ is not None and term.kappa[j]:
                K = K - term.kappa[j] * KZ
            c = term.group[j]
            b[term.first + c * u : term.first + (c + 1) * u] += K[offset + j * u : offset + (j + 1) * u].diagonal()
            known = squares[c]
            squares[c] = K.square() if known is None else known.addcmul_(K, K)
        for c, square in enumerate(squares):
            if square is None:
                continue
            column = slice(term.first + c * u, term.first + (c + 1) * u)
            for other, begin in zip(segment.terms[index:], begins[index:-1], strict=True):
                _fold(other, square[begin - begins[index] :], H[:, column])
        if inputs is not None:
            _fold(term, inputs[begins[index] :, None], H[:, :1])


def _fold(term: Term, values: Tensor, target: Tensor) -> None:
    """Sum the rows of each multiplier of a term, with their signs, into its rows of ``target``."""
    u = term.units
    offset = 0
    if term.state is not None:
        offset = u
        for c in range(term.constraints):
            target[term.first + c * u : term.first + (c + 1) * u] -= values[:u]
    for j in range(term.variables):
        row = term.first + term.group[j] * u
        target[row : row + u] += values[offset + j * u : offset + (j + 1) * u]


def program_of(system: LipSDP, device: torch.device | str = "cpu") -> Program:
    """The segments of a network with at least one activation, on a device that knows float64."""
    W = system.entry.to(device)
    if W.shape[1] > W.shape[0]:  # W_1 enters through W_1 W_1' only
        W = cast(tuple[Tensor, Tensor], cast(Any, torch.linalg).qr(W.T, mode="r"))[1].T.contiguous()
    segments: list[Segment] = []
    terms: list[Term] = []
    size = inputs = W.shape[1]
    state, start, first = W, 0, 1
    for stage in system.stages:
        rule, u = stage.increments, stage.free_width
        J, C = rule.variables, rule.constraints
        own = state if stage.free is None else state[stage.free.to(state.device)]
        kappa, alone = _shift(stage)
        if rule.cuts:
            terms.append(Term(first, rule.group, C, u, own, start, None, ()))
            segments.append(Segment(size, inputs, tuple(terms), None, 0))
            terms, size, inputs, place = [Term(first, rule.group, C, u, None, 0, 0, kappa)], J * u, 0, 0
        else:
            place = size
            size += J * u
            if J:
                terms.append(Term(first, rule.group, C, u, own, start, place, kappa))
        first += C * u
        state, start = _next_state(stage, kappa, state, start, place, alone)
    segments.append(Segment(size, inputs, tuple(terms), state, start))
    return Program(tuple(segments), system.stages)


def _shift(stage: Stage) -> tuple[tuple[float, ...], bool]:
    """kappa per variable, and whether the next state then sees the new variables alone."""
    E = stage.increments.outputs
    m, R = E[:, 0], E[:, 1:]
    none = (0.0,) * R.shape[1]
    if not R.shape[1] or not bool(m.any()):
        return none, not bool(m.any())
    kappa = cast(Tensor, cast(Any, torch.linalg).pinv(R)) @ m
    kappa = torch.where((kappa - kappa.round()).abs() < 1e-14, kappa.round(), kappa)
    if float(kappa.abs().max()) > LARGEST_KAPPA or float((m - R @ kappa).abs().max()) > 1e-12 * float(m.abs().max()):
        return none, False
    return tuple(float(value) for value in kappa.unbind()), True


def _next_state(
    stage: Stage, kappa: tuple[float, ...], state: Tensor, start: int, place: int, alone: bool
) -> tuple[Tensor, int]:
    """The next state as a map of the segment's coordinates, and the first of those."""
    E, u = stage.increments.outputs.to(state.device), stage.width
    R = E[:, 1:]
    W = stage.weight.to(state.device).reshape(-1, E.shape[0], u)
    onto_p = torch.einsum("aku,kj->aju", W, R)
    onto_p = (onto_p if stage.free is None else onto_p[..., stage.free.to(state.device)]).flatten(1)
    if alone or stage.increments.cuts:
        return onto_p, place
    m = E[:, 0] - R @ state.new_tensor(kappa) if kappa else E[:, 0]
    onto_z = torch.einsum("aku,k->au", W, m) @ state
    return torch.cat([onto_z, onto_p], dim=1), start  # p comes right after what z lives on
