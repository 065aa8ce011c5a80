"""The proofs of matrix inequalities in a coarse arithmetic, against exact rationals: no rounding margin is decoration.

What a proof says is checked whole, not by a witness: from the multipliers and the bound that it returns the naive
matrix inequality is written out in fractions and tested for semidefiniteness (tests/support/lipsdp_reference.py).
"""

from __future__ import annotations

import itertools
import math
from fractions import Fraction

import numpy as np
import pytest
import torch
from torch import Tensor

from lipbridge.errors import NumericalFailure
from lipbridge.lipsdp import linf as lmi_linf
from lipbridge.lipsdp import proof as lmi_proof
from lipbridge.lipsdp.constraints import Increments
from lipbridge.lipsdp.elimination import closed_form
from lipbridge.lipsdp.linf import _dominating_trace, box_norm_up
from lipbridge.lipsdp.proof import entry_norm_up, prove
from lipbridge.lipsdp.system import Stage, lipsdp_of
from tests.support.coarse import COARSE_UNIT, DIRECTIONS, coarse, coarse_arithmetic
from tests.support.lipsdp_reference import chain, is_positive_semidefinite, lmi

torch.set_num_threads(1)


def coarse_chain(names: list[str], widths: list[int], seed: int, positive: bool):
    """A random chain whose weights the coarse arithmetic holds exactly; positive ones make every sum round one way."""
    graph, _ = chain(names, widths, seed)
    for node in graph.nodes:
        if hasattr(node, "weight"):
            node.weight.copy_(coarse(node.weight.abs() if positive else node.weight))
    return graph


def exact(W: Tensor) -> np.ndarray:
    return np.vectorize(Fraction, otypes=[object])(W.numpy())


def holds(system, names: list[str], value: float, vectors: list[Tensor], less: Fraction = Fraction(0)) -> bool:
    """Whether the naive inequality holds, exactly, of a bound (a share ``less``) and our multipliers."""
    weights = [exact(system.entry), *(exact(stage.weight) for stage in system.stages)]
    n, gram, units = lmi(weights, names)
    rho = (Fraction(value) / Fraction(2) ** system.exponent * (1 - less)) ** 2
    total = -gram
    for i in range(n):
        total[i, i] = total[i, i] + rho
    values = [Fraction(v) for T in vectors for v in T.flatten().tolist()]
    for v, unit in zip(values, units, strict=True):
        total = total - v / Fraction(unit.ratio) * unit.form
    return is_positive_semidefinite(total)


CASES = [
    (["relu"], [2, 3, 1]),
    (["relu"], [3, 2, 2]),
    (["relu"], [1, 12, 1]),
    (["abs"], [2, 3, 2]),
    (["abs"], [4, 2, 1]),
    (["relu", "relu"], [2, 2, 3, 1]),
    (["relu", "abs"], [2, 3, 2, 2]),
    (["abs", "relu"], [1, 3, 2, 1]),
]


#: How far the multipliers lie above the closed form, which is on the border of what is feasible for one output.
STEPS = (0.0, 2.0**-21, 2.0**-16, 2.0**-12, 2.0**-7)


@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize(("names", "widths"), CASES, ids=lambda value: "-".join(map(str, value)))
def test_what_is_proved_in_coarse_arithmetic_holds_exactly(names, widths, direction):
    proofs = 0
    for seed, step in [(0, s) for s in STEPS] + [(1, s) for s in STEPS[3:]] + [(2, STEPS[4])]:
        system = lipsdp_of(coarse_chain(names, widths, seed, positive=seed != 2))
        vectors = [coarse(T * (1.0 + step)) for T in closed_form(system)]
        try:
            with coarse_arithmetic(direction):
                value, proved = prove(system, vectors)
        except NumericalFailure:  # too close to the border for this rounding
            continue
        assert holds(system, names, value, proved)
        assert not holds(system, names, value, proved, Fraction(1, 100))
        proofs += 1
    assert proofs >= 4


#: Arithmetics: how single operations are rounded, and on which side sums and products are off.
ARITHMETICS = [("zero", "low"), ("zero", "high"), ("away", "mixed")]


def rule(outputs: list[list[float]], group: tuple[int, ...], radius: float = 0.0) -> Increments:
    E = torch.tensor(outputs, dtype=torch.float64)
    return Increments(E, radius * (E != 0).to(E), group)


#: Rules of one stage: outputs that see q alone, one variable, several, a joint constraint, and uncertain slopes.
RULES = {
    "abs": rule([[0, 1]], (0,)),
    "joint": rule([[0, 1, 0], [0, 0, 1]], (0, 0)),
    "relu": rule([[0.5, 0.5]], (0,)),
    "leaky": rule([[0.65625, 0.34375]], (0,)),
    "crelu": rule([[0.5, 0.5], [-0.5, 0.5]], (0,)),
    "two": rule([[0.5, 0.5, 0.25], [0.0, 0.0, 1.0]], (0, 1)),
    "uncertain": rule([[0.75, 0.5]], (0,), 2.0**-12),
}


def exact_gram(stage: Stage, H: Tensor, sign: int) -> np.ndarray:
    """``[A B]' H [A B]`` with each slope at an end of what is known of it."""
    rule, u = stage.increments, stage.width
    W = exact(stage.weight).reshape(len(stage.weight), rule.components, u)
    E = exact(rule.outputs) + sign * exact(rule.radius)
    M = np.concatenate([sum(W[:, k] * E[k, j] for k in range(rule.components)) for j in range(E.shape[1])], axis=1)
    return M.T @ exact(H) @ M


def exact_stage(stage: Stage, gram: np.ndarray, T: Tensor, storage: Tensor) -> np.ndarray:
    """The stage's matrix, which a proof says is semidefinite."""
    u, multipliers = stage.width, exact(T)
    diagonal = [-sum(column) for column in multipliers.T] + [t for c in stage.increments.group for t in multipliers[c]]
    total = np.diag(np.array(diagonal, dtype=object)) - gram
    total[:u, :u] = total[:u, :u] + exact(storage)
    return total


def a_stage(name: str, units: int, outputs: int, positive: bool, generator: torch.Generator) -> Stage:
    rule = RULES[name]
    W = coarse(torch.rand(outputs, rule.components * units, dtype=torch.float64, generator=generator))
    W = W if positive else coarse(W - 0.5)
    return Stage(rule, W, torch.arange(units), units)


def a_storage(size: int, positive: bool, generator: torch.Generator) -> Tensor:
    A = torch.rand(size, size, dtype=torch.float64, generator=generator) - (0.0 if positive else 0.5)
    H = coarse(A @ A.T / size + 0.1 * torch.eye(size, dtype=torch.float64))
    return torch.tril(H) + torch.tril(H, -1).T


def border(stage: Stage, H: Tensor) -> float:
    """The least common multiplier for which ``D >= G_qq``, in plain floating point."""
    G, _ = lmi_proof.gram_of(stage, H)
    return float(torch.linalg.eigvalsh(G[stage.width :, stage.width :])[-1])


@pytest.mark.parametrize("arithmetic", ARITHMETICS, ids=str)
@pytest.mark.parametrize("name", RULES)
def test_a_stage_holds_exactly(name, arithmetic):
    generator = torch.Generator().manual_seed(7)
    proofs = 0
    for units, outputs, positive in [(1, 1, True), (1, 24, True), (2, 16, True), (3, 2, True), (3, 2, False)]:
        stage = a_stage(name, units, outputs, positive, generator)
        H = a_storage(outputs, positive, generator)
        least = border(stage, H)
        grams = [exact_gram(stage, H, sign) for sign in ((1, -1) if stage.increments.radius.any() else (1,))]
        for step in (-(2.0**-14), 0.0, 2.0**-16, 2.0**-12, 2.0**-8, 1.0):
            T = coarse(torch.full((stage.increments.constraints, units), least * (1.0 + step), dtype=torch.float64))
            with coarse_arithmetic(*arithmetic):
                G, spread = lmi_proof.gram_of(stage, H)
                storage, _ = lmi_proof.attempt(stage, T, G, spread)
            if storage is None:
                continue
            proofs += 1
            assert all(is_positive_semidefinite(exact_stage(stage, gram, T, storage)) for gram in grams)
    assert proofs >= 5


@pytest.mark.parametrize("arithmetic", ARITHMETICS, ids=str)
def test_the_gram_matrix_of_true_weights_is_within_the_spread(arithmetic):
    """Entry by entry: of long sums, of many outputs a unit, and of weights that are off by a share of themselves."""
    generator = torch.Generator().manual_seed(3)
    many = rule([[0.5, 0.5]] * 24, (0,))
    cases = [(RULES["relu"], 30, 0.0), (RULES["two"], 12, 0.0), (many, 1, 0.0), (RULES["relu"], 1, 2.0**-10)]
    for increments, outputs, error in cases:
        W = coarse(torch.rand(outputs, 2 * increments.components, dtype=torch.float64, generator=generator) + 0.1)
        H = a_storage(outputs, True, generator)
        stage, true = (Stage(increments, weight, torch.arange(2), 2) for weight in (W, W * (1.0 + error)))
        unit = torch.eye(2 * (1 + increments.variables), dtype=torch.float64)
        with coarse_arithmetic(*arithmetic):
            G, spread = lmi_proof.gram_of(stage, H, W if error else None, error)
            bound = torch.stack([spread.times(v) for v in unit], 1)
        off = abs(exact(G) - exact_gram(true, H, 1))
        assert (off <= exact(bound)).all()
        assert float(bound.max()) < 1e-2 * float(G.max())


def graph_of_abs(W: Tensor):
    graph, _ = chain(["abs"], [2, 2, len(W)], 0)
    graph.nodes[1].weight.copy_(torch.eye(2, dtype=torch.float64))
    graph.nodes[3].weight.copy_(W)
    return graph


@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("shape", [(1, 1), (1, 9), (9, 1), (3, 3), (4, 9), (9, 4), (2, 60), (60, 2)], ids=str)
def test_the_norm_of_an_entry_holds_exactly(shape, direction):
    generator = torch.Generator().manual_seed(sum(shape))
    m, n = shape
    for seed in range(4):
        W = coarse(torch.rand(m, n, dtype=torch.float64, generator=generator) - 0.4 * (seed % 2))
        A = coarse(torch.rand(m, m, dtype=torch.float64, generator=generator) - 0.4 * (seed // 2))
        H = coarse(A @ A.T + 0.01 * torch.eye(m))
        H = torch.tril(H) + torch.tril(H, -1).T
        with coarse_arithmetic(direction):
            value = entry_norm_up(H, W)
        # W' H W <= v^2 I, on the smaller side: W W' <= v^2 H^-1.
        square, small = Fraction(value) ** 2, exact(W) @ exact(W).T
        gap = square * inverse(exact(H)) - small if n > m else square * eye(n) - exact(W).T @ exact(H) @ exact(W)
        assert is_positive_semidefinite(gap)
        true = math.sqrt(float(torch.linalg.eigvalsh(W.T @ H @ W)[-1]))
        assert value <= true * 1.01


def eye(n: int) -> np.ndarray:
    return exact(torch.eye(n, dtype=torch.float64))


def inverse(A: np.ndarray) -> np.ndarray:
    """Of an exact matrix, by Gauss and Jordan."""
    n = len(A)
    rows = [[*row, *(Fraction(int(i == j)) for j in range(n))] for i, row in enumerate(A.tolist())]
    for k in range(n):
        pivot = next(i for i in range(k, n) if rows[i][k])
        rows[k], rows[pivot] = rows[pivot], rows[k]
        rows[k] = [value / rows[k][k] for value in rows[k]]
        for i in range(n):
            if i != k:
                rows[i] = [a - rows[i][k] * b for a, b in zip(rows[i], rows[k], strict=True)]
    return np.array([row[n:] for row in rows], dtype=object)


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_the_form_on_a_box_holds_exactly(direction):
    """One row w: the largest ``x' w w' x`` over the box is ``(sum |w|)^2``, which all the routes to it reach."""
    generator = torch.Generator().manual_seed(0)
    for count in (1, 2, 7, 30):
        for signs in (False, True):
            w = coarse(torch.rand(1, count, dtype=torch.float64, generator=generator) + 0.1)
            w = w * torch.where(torch.rand(1, count, generator=generator) < 0.5, -1.0, 1.0) if signs else w
            h = coarse(torch.rand(1, 1, dtype=torch.float64, generator=generator) + 0.5)
            true = sum(abs(v) for v in exact(w)[0]) ** 2 * exact(h)[0, 0]
            P = h * w.T @ w
            with coarse_arithmetic(direction):
                value = box_norm_up(h, w, w.abs().flatten())
                computed = torch.tril(w.T @ (h @ w))
                computed = computed + torch.tril(computed, -1).T
            error = 2.0**-20 * P.abs() + 2.0**-40
            with coarse_arithmetic(direction):
                total = _dominating_trace(computed, error, coarse(P.abs().sum(1)))
            assert Fraction(value) ** 2 >= true
            assert value**2 <= float(true) * (1 + 1e-3)
            # What dominates everything within `error` of P dominates P + diag(row sums of the error).
            assert Fraction(total) >= true + Fraction(2.0**-21) * Fraction(float(P.diagonal().sum()))


def test_a_diagonal_dominates_every_matrix_within_the_error(monkeypatch) -> None:
    """Of any diagonal that dominates P + E the trace is at least ``x' (P + E) x`` for signs x; also if the scale, which
    plain floating point finds, is too small."""
    generator = torch.Generator().manual_seed(0)
    plain = lmi_linf._scale
    for count, share, found in itertools.product((1, 2, 7, 30), (0.0, 2.0**-6, 0.5), (1.0, 0.9, 0.5)):
        w = torch.rand(count, dtype=torch.float64, generator=generator) + 0.1
        x = torch.where(torch.rand(count, generator=generator) < 0.5, -1.0, 1.0).double()
        P = torch.outer(w * x, w * x)
        error, d = share * P.abs(), P.abs().sum(1)
        monkeypatch.setattr(lmi_linf, "_scale", lambda A, b, found=found: found * plain(A, b))
        total = _dominating_trace(P, error, d)
        if total is None:
            assert found < 1.0
            continue
        assert Fraction(total) >= exact(P.abs()).sum() + exact(error).sum(), (count, share, found)


def test_the_form_of_many_rows_counts_both_products() -> None:
    """Positive entries, whose sums all come out low, and one column or two: the sum over the square is the form."""
    generator = torch.Generator().manual_seed(0)
    for rows, count in ((30, 1), (20, 2)):
        W = coarse(torch.rand(rows, count, dtype=torch.float64, generator=generator) + 0.1)
        H = coarse(torch.rand(rows, rows, dtype=torch.float64, generator=generator) + 0.1)
        H = torch.tril(H) + torch.tril(H, -1).T
        with coarse_arithmetic("zero", "low"):
            value = box_norm_up(H, W, torch.ones(count, dtype=torch.float64))
        assert Fraction(value) ** 2 >= (exact(W).T @ exact(H) @ exact(W)).sum()


def test_the_diagonal_of_what_must_be_semidefinite_counts_its_rounding(monkeypatch) -> None:
    """1 - 2^-27 is rounded to 1: only together with that does D - P look semidefinite for D = I."""
    P = torch.tensor([[2.0**-27, 1.0], [1.0, 2.0**-27]], dtype=torch.float64)
    monkeypatch.setattr(lmi_linf, "_scale", lambda A, b: 1.0 / (1.0 + 16.0 * COARSE_UNIT))
    monkeypatch.setattr(lmi_linf, "smallest_eigenvalue_down", lambda M, shift: float(M[0, 0] - M[0, 1].abs()))
    with coarse_arithmetic("away"):
        total = _dominating_trace(P, torch.zeros_like(P), torch.ones(2, dtype=torch.float64))
    assert total is not None
    assert Fraction(total) >= 2 * (1 + Fraction(2) ** -27)
    assert total <= 2.0 + 100.0 * COARSE_UNIT
