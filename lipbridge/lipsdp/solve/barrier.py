"""The LipSDP matrix inequality with a weighted log-determinant barrier: gradient and Hessian from one factorisation.

The multipliers and rho enter the inequality as ``M(x) = sum_a x_a A_a - C`` with ``A_a = sum_i s_i v_i v_i'``: the
signs +1 for a unit's q (or an input coordinate, for rho) and -1 for its z. Its coordinates are the head (the input)
and the rest (the free variables of all layers). With S the rest's block and Z = M / S the Schur complement, which is
what bounds the gain, the barrier is

    -log det Z - LIGHT log det S,

convex, since Z is concave in x. S is seldom near singular at the optimum, so a light weight on it makes the path short:
the barrier's parameter is ``head + LIGHT * rest`` instead of all rows. M^-1 = R'R + Q, where R has as many rows as the
head and Q is S^-1 on the rest. With the Gram matrices ``F = V R'R V'`` and ``G = V Q V'`` the derivatives are

    gradient_a = -sum_i s_i (F_ii + LIGHT G_ii),   Hessian_ab = sum_ij s_i s_j (F_ij^2 + 2 F_ij G_ij + LIGHT G_ij^2),

so that a Newton step costs what a few factorisations of M do, whatever the number of multipliers. Where the inequality
falls apart (abs, sin, joint constraints) each piece is a segment with its own M, whose head is the q of the layer that
cuts, and only neighbours share multipliers.

Source: the low-rank form of the Hessian is that of dual-scaling SDP solvers (Benson, Ye, Zhang 2000); its use for
LipSDP, the weight and the segments are ours. Law: gradient and Hessian are those of autograd through ``slogdet`` of
:meth:`Segment.matrix`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from lipbridge.linalg import cholesky, eigenvalues, solve_triangular, torch_linalg
from lipbridge.lipsdp.system import Stage

#: Weight of the free variables' block in the barrier.
LIGHT = 0.05


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
    """One matrix inequality ``rho on the first `inputs` coordinates + terms - constant >= 0`` of ``size`` rows.

    The first ``head`` coordinates carry the full weight in the barrier.
    """

    size: int
    head: int
    inputs: int
    terms: tuple[Term, ...]
    output: Tensor | None
    output_start: int

    def matrix(self, x: Tensor, *, constant: bool = True) -> Tensor:
        """M(x), ``(size, size)``, symmetric; without the constant part if asked."""
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
        if self.output is not None and constant:
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
    def order(self) -> float:
        """The barrier's parameter."""
        return sum(segment.head + LIGHT * (segment.size - segment.head) for segment in self.segments)

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
            M = segment.matrix(x).roll((-segment.head, -segment.head), (0, 1))  # the rest first, then the head
            diagonal = M.diagonal().clone()
            if not bool((diagonal > 0).all()):
                return None
            scale = diagonal.rsqrt()
            L = cholesky(M.mul_(scale[:, None]).mul_(scale))
            if L is None:
                return None
            found.parts.append((L, scale))
            logs = L.diagonal().log() - scale.log()
            rest = segment.size - segment.head
            found.logdet += 2.0 * float(LIGHT * logs[:rest].sum() + logs[rest:].sum())
        return found if found.logdet == found.logdet else None

    def derivatives(self, factors: Factors, count: int) -> Derivatives:
        """Gradient and Hessian of the barrier."""
        like = factors.parts[0][1]
        found = Derivatives(like.new_zeros(count), like.new_zeros(count, count))
        for segment, (L, scale) in zip(self.segments, factors.parts, strict=True):
            _add_derivatives(segment, L, scale, found)
        H = found.hessian
        H.copy_(torch.tril(H) + torch.tril(H, -1).T)
        return found

    def is_dual_feasible(self, factors: Factors, d: Tensor) -> bool:
        """Whether the dual point of the Newton step ``d`` is semidefinite (in plain floating point).

        In the coordinates of M = L L' it is ``[LIGHT (I - D22), -D21; -D12, I - D11]`` with ``D = L^-1 A(d) L^-T``.
        """
        for segment, (L, scale) in zip(self.segments, factors.parts, strict=True):
            A = segment.matrix(d, constant=False).roll((-segment.head, -segment.head), (0, 1))
            A.mul_(scale[:, None]).mul_(scale)
            D = solve_triangular(L, solve_triangular(L, A).T)
            rest = segment.size - segment.head
            D[:rest, rest:] /= math.sqrt(LIGHT)
            D[rest:, :rest] /= math.sqrt(LIGHT)
            D = D.neg_()
            D.diagonal().add_(1.0)
            if cholesky(D) is None:
                return False
        return True


@dataclass(eq=False)
class Factors:
    """Per segment a Cholesky factor of the rest and the head, in this order, and the scaling to a unit diagonal before.

    ``logdet`` is the barrier with its sign turned.
    """

    parts: list[tuple[Tensor, Tensor]] = field(default_factory=lambda: [])
    logdet: float = 0.0


@dataclass(eq=False)
class Derivatives:
    """Of the barrier: minus its gradient ``(count,)``, its Hessian ``(count, count)``, and the head's view of a step.

    ``heads`` holds per segment what the head sees of every row: ``(V R', R on the inputs)``.
    """

    gradient: Tensor
    hessian: Tensor
    heads: list[tuple[Segment, Tensor, Tensor]] = field(default_factory=lambda: [])

    def largest_step(self, d: Tensor) -> float:
        """How far x can go along d before a Schur complement, were it linear, is singular."""
        least = 0.0
        for segment, rows, inputs in self.heads:
            weights: list[Tensor] = []
            for term in segment.terms:
                T = term.values(d)
                weights += [] if term.state is None else [-T.sum(0)]
                weights += [T[c] for c in term.group[: term.variables]]
            D = (rows.T * torch.cat(weights)) @ rows + d[0] * (inputs @ inputs.T)
            least = min(least, float(eigenvalues(D)[0])) if D.numel() else least  # an activation may be constant
        return -1.0 / least if least < 0.0 else math.inf


def _add_derivatives(segment: Segment, L: Tensor, scale: Tensor, found: Derivatives) -> None:
    """Add a segment's share to the gradient and to the lower triangle of the Hessian."""
    b, H = found.gradient, found.hessian
    Q, R = _inverse(segment, L, scale)
    parts_f: list[Tensor] = []
    parts_g: list[Tensor] = []
    begins = [0]
    for term in segment.terms:
        z = None
        if term.state is not None:
            z = term.state @ R[:, term.columns].T, _rest_of(segment, term.state, term) @ Q[_rest(segment, term.columns)]
            parts_f.append(z[0])
            parts_g.append(z[1])
        for j in range(term.variables):
            f, g = R[:, term.places(j)].T, Q[_rest(segment, term.places(j))]
            if g.shape[0] != term.units:  # q is in the head
                g = Q.new_zeros(term.units, Q.shape[1])
            if z is not None and term.kappa[j]:
                f, g = f - term.kappa[j] * z[0], g - term.kappa[j] * z[1]
            parts_f.append(f)
            parts_g.append(g)
        begins.append(begins[-1] + term.units * (term.variables + (z is not None)))
    F, G = torch.cat(parts_f), torch.cat(parts_g)  # V R' and V Q, a row for every v
    inputs = R[:, : segment.inputs]
    found.heads.append((segment, F, inputs))
    onto_inputs = (F @ inputs).square().sum(1) if segment.inputs else None
    if segment.inputs:
        H[0, 0] += (inputs.T @ inputs).square().sum()
        b[0] += inputs.square().sum()
    for index, term in enumerate(segment.terms):
        f, g = F[begins[index] :], G[begins[index] :]
        u, offset = term.units, 0
        squares: list[Tensor | None] = [None] * term.constraints
        onto_z: Tensor | None = None
        if term.state is not None:
            onto_z = _columns(segment, g, term.columns, _rest_of(segment, term.state, term))
            square, own = _square(f @ f[:u].T, onto_z)
            for c in range(term.constraints):
                b[term.first + c * u : term.first + (c + 1) * u] -= own[:u]
            squares = [-square for _ in range(term.constraints)]
            offset = u
        for j in range(term.variables):
            rows = slice(offset + j * u, offset + (j + 1) * u)
            onto_q = _columns(segment, g, term.places(j), None)
            if onto_z is not None and onto_q is not None and term.kappa[j]:
                onto_q = onto_q - term.kappa[j] * onto_z
            square, own = _square(f @ f[rows].T, onto_q, rows)
            c = term.group[j]
            b[term.first + c * u : term.first + (c + 1) * u] += own
            known = squares[c]
            squares[c] = square if known is None else known + square
        for c, square in enumerate(squares):
            if square is None:
                continue
            column = slice(term.first + c * u, term.first + (c + 1) * u)
            for other, begin in zip(segment.terms[index:], begins[index:-1], strict=True):
                _fold(other, square[begin - begins[index] :], H[:, column])
        if onto_inputs is not None:
            _fold(term, onto_inputs[begins[index] :, None], H[:, :1])


def _inverse(segment: Segment, L: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
    """``(Q, R)``: M^-1 = R'R + Q, R ``(head, size)`` in the segment's order, Q on the rest alone."""
    rest = segment.size - segment.head
    Ls, C, Lz = L[:rest, :rest], L[rest:, :rest], L[rest:, rest:]
    head = solve_triangular(Lz, torch.eye(segment.head, dtype=L.dtype, device=L.device)) * scale[rest:]
    if not rest:
        return L.new_zeros(0, 0), head
    Q = torch.cholesky_inverse(Ls).mul_(scale[:rest, None]).mul_(scale[:rest])
    upper = torch_linalg.solve_triangular(Ls.T, solve_triangular(Lz, C).T, upper=True)
    return Q, torch.cat([head, -upper.T * scale[:rest]], 1)


def _rest(segment: Segment, columns: slice) -> slice:
    """Coordinates of the segment, as far as they are in the rest, counted from its begin."""
    return slice(max(columns.start - segment.head, 0), max(columns.stop - segment.head, 0))


def _rest_of(segment: Segment, state: Tensor, term: Term) -> Tensor:
    """The part of a state that lives on the rest."""
    return state[:, max(segment.head - term.start, 0) :]


def _columns(segment: Segment, g: Tensor, columns: slice, state: Tensor | None) -> Tensor | None:
    """``G`` of all rows with the rows of a state, or with unit rows; None where those live on the head alone."""
    where = _rest(segment, columns)
    if where.start == where.stop:
        return None
    return g[:, where] if state is None else g[:, where] @ state.T


def _square(F: Tensor, G: Tensor | None, rows: slice | None = None) -> tuple[Tensor, Tensor]:
    """``F^2 + 2 F G + LIGHT G^2`` entry by entry, and the diagonal of ``F + LIGHT G`` in the given rows."""
    where = slice(0, F.shape[1]) if rows is None else rows
    own = F[where].diagonal()
    if G is None:
        return F.square(), own
    return (F + G).square_().addcmul_(G, G, value=LIGHT - 1.0), own + LIGHT * G[where].diagonal()


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
