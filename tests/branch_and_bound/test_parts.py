"""Parts of the tree: no Jacobian with slopes of theirs is above their bounds, and cells are what they say."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.optimize import linprog
from torch import nn

import lipbridge
from lipbridge.branch_and_bound.bounds import Bounds
from lipbridge.branch_and_bound.cascade import cascade_of
from lipbridge.branch_and_bound.cells import Domain, Empty, combination, look
from lipbridge.branch_and_bound.expansion import Expansion
from lipbridge.branch_and_bound.multipliers import Multipliers, System, proved
from lipbridge.branch_and_bound.parts import Part
from lipbridge.branch_and_bound.pieces import PieceTable
from lipbridge.branch_and_bound.relaxation import resolve
from lipbridge.branch_and_bound.rows import Rows
from lipbridge.norms.matrix import CHEAP_PAIRS
from lipbridge.vocabulary import Norm
from tests.support.brute_force import tiny


def ranges(table: PieceTable, k: int) -> tuple[torch.Tensor, torch.Tensor]:
    ends = (torch.rand(2, k, len(table.last)) * (table.last + 1)).long().sort(0).values
    return ends[0], ends[1]


def one_layer(norm: Norm) -> tuple[PieceTable, Bounds]:
    """Of 4-12-3 with relu."""
    torch.manual_seed(0)
    cascade = cascade_of(lipbridge.capture(nn.Sequential(nn.Linear(4, 12), nn.ReLU(), nn.Linear(12, 3))))
    table = PieceTable(cascade)
    return table, Bounds(cascade, table, norm, norm)


@pytest.mark.parametrize("turn", [0, 3])
@pytest.mark.parametrize("seed", range(12))
def test_no_jacobian_of_a_part_is_above_its_bounds(seed: int, turn: int) -> None:
    p, q = CHEAP_PAIRS[(seed + turn) % len(CHEAP_PAIRS)]
    cascade = cascade_of(tiny(seed))
    table = PieceTable(cascade)
    bounds = Bounds(cascade, table, p, q)
    low, high = ranges(table, 16)
    whole = bounds.cheap(bounds.resolved(low, high))
    uppers = []
    for row in range(bounds.rows):
        x = bounds.row(low, high, torch.full((16,), row), torch.zeros(16, bounds.entries, dtype=torch.float64))
        cheap = bounds.cheap(x)[:, 0]
        torch.testing.assert_close(cheap, whole[:, row])
        loose = (x.r > 0).any(1).nonzero().flatten()
        if bounds.has_multipliers() and len(loose):
            dear = bounds.dear(x.rows(loose), None).bounds
            assert bool(torch.isfinite(dear).all())
            cheap[loose] = torch.minimum(cheap[loose], dear)
        uppers.append(cheap)
    upper = torch.stack(uppers, 1).amax(1)
    middle, radius = table.hull(low, high)
    for _ in range(50):
        e = torch.rand(16, cascade.units, dtype=torch.float64) * 2.0 - 1.0
        e = torch.where(torch.rand(16, 1) < 0.5, e.sign(), e)
        J = resolve(cascade, middle + e * radius, torch.zeros_like(radius)).D
        assert bool((lipbridge.operator_norm(J, p, q) <= upper).all())


@pytest.mark.parametrize("norm", [1, "inf"])
@pytest.mark.parametrize("seed", range(8))
def test_no_sum_with_decided_signs_is_above_the_bounds_of_its_part(seed: int, norm: Norm) -> None:
    cascade = cascade_of(tiny(seed))
    table = PieceTable(cascade)
    bounds = Bounds(cascade, table, norm, norm)
    assert bounds.signed == bounds.has_multipliers()
    low, high = ranges(table, 16)
    rows = torch.randint(bounds.rows, (16,))
    signs = torch.randint(-1, 2, (16, bounds.entries)).double()
    x = bounds.row(low, high, rows, signs)
    upper = bounds.cheap(x)[:, 0]
    loose = (x.r > 0).any(1).nonzero().flatten()
    if bounds.signed and len(loose):
        upper[loose] = torch.minimum(upper[loose], bounds.dear(x.rows(loose), None).bounds)
    middle, radius = table.hull(low, high)
    most = torch.zeros(16, dtype=torch.float64)
    for _ in range(200):
        e = torch.rand(16, cascade.units, dtype=torch.float64) * 2.0 - 1.0
        e = torch.where(torch.rand(16, 1) < 0.8, e.sign(), e)
        J = resolve(cascade, middle + e * radius, torch.zeros_like(radius)).D
        row = (J.mT if norm == 1 else J)[torch.arange(16), rows]
        most = torch.maximum(most, (signs * row).sum(1).abs() + ((signs == 0) * row.abs()).sum(1))
    assert bool((most <= upper).all())
    tight = (radius == 0).all(1) & ((signs != 0).sum(1) <= 1)
    torch.testing.assert_close(most[tight], upper[tight], rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("anchor", [0, 2, None])
def test_multipliers_of_merged_entries_keep_the_bound(anchor: int | None) -> None:
    table, bounds = one_layer("inf")
    low, high = torch.zeros(1, 12, dtype=torch.int64), table.last[None]
    signs = np.zeros(4, dtype=np.int8)
    if anchor is not None:
        signs[anchor] = 1
    row = torch.tensor([1])
    found = bounds.dear(bounds.row(low, high, row, torch.tensor(signs[None]).double()), None)
    T, mu = found.multipliers.T[0].numpy(), found.multipliers.mu[0].numpy()
    ends = np.zeros(12, dtype=np.int16), np.ones(12, dtype=np.int16)
    part = Part(*ends, 1, signs, 1.0, 0, np.zeros((2, 12), dtype=bool), branch=12 + 1, multipliers=(T, mu))
    for half, sign in zip(part.halves(), (1, -1), strict=True):
        assert half.signs[1] == sign
        assert half.multipliers is not None
        x = bounds.row(low, high, row, torch.tensor(half.signs[None]).double())
        start = Multipliers(*(torch.tensor(t[None]) for t in half.multipliers))
        # Before any step, the bound is at most what it was.
        system = System(x, rows=True)
        assert float(proved(system, start.T, start.mu)) <= float(found.bounds) * (1.0 + 1e-9)


@pytest.mark.parametrize("norm", [1, "inf"])
def test_shares_of_entries_tell_by_how_much_the_bound_falls_with_them(norm: Norm) -> None:
    table, bounds = one_layer(norm)
    low, high = torch.zeros(1, 12, dtype=torch.int64), table.last[None]
    x = bounds.row(low, high, torch.tensor([1]), torch.zeros(1, bounds.entries).double())
    found = bounds.dear(x, None)
    shares = found.entries[0]
    assert float(shares.sum()) == pytest.approx(1.0)
    for entry in range(bounds.entries):
        scale = torch.ones(bounds.entries, dtype=torch.float64)
        scale[entry] = 0.9
        less = bounds.dear(replace(x, B=x.B * scale, D=x.D * scale), None).bounds
        assert float(1.0 - less / found.bounds) == pytest.approx(0.1 * float(shares[entry]), rel=0.1, abs=2e-3)


@pytest.mark.parametrize("norm", [2, "inf"])
def test_shares_tell_by_how_much_the_bound_falls_with_a_units_uncertainty(norm: Norm) -> None:
    table, bounds = one_layer(norm)
    low, high = torch.zeros(1, 12, dtype=torch.int64), table.last[None]
    x = bounds.row(low, high, torch.tensor([0]), torch.zeros(1, 4).double())
    found = bounds.dear(x, None)
    shares = found.shares[0]
    assert float(shares.min()) > 0.0
    order = shares.argsort(descending=True)
    fell = []
    for unit in (int(order[0]), int(order[-1])):
        r = x.r.clone()
        r[0, unit] *= 0.9
        less = bounds.dear(replace(x, r=r), None).bounds
        fell.append(float(1.0 - less / found.bounds))
        assert fell[-1] == pytest.approx(0.1 * float(shares[unit]), rel=0.2, abs=1e-3)
    assert fell[0] > fell[1]
    less = bounds.dear(replace(x, r=0.9 * x.r), None).bounds
    assert float(1.0 - less / found.bounds) == pytest.approx(0.1 * float(shares.sum()), rel=0.2)


@pytest.mark.parametrize("seed", range(12))
def test_a_part_with_one_piece_a_unit_has_its_norm(seed: int) -> None:
    cascade = cascade_of(tiny(seed))
    table = PieceTable(cascade)
    for p, q in CHEAP_PAIRS:
        bounds = Bounds(cascade, table, p, q)
        low, _ = ranges(table, 8)
        found = bounds.cheap(bounds.resolved(low, low)).amax(1)
        torch.testing.assert_close(found, bounds.gains(low), rtol=2e-10, atol=1e-11)


@pytest.mark.parametrize("seed", range(12))
def test_a_point_lies_in_the_cell_of_its_own_pattern(seed: int) -> None:
    graph = tiny(seed)
    cascade = cascade_of(graph)
    n = cascade.P.shape[1]
    search = Expansion(cascade, 2, 2, [Domain(n)])
    x = torch.randn(20, n, dtype=torch.float64)
    pattern, clear = search.pattern(x)
    assert bool(clear.all())
    rows = Rows(cascade, search.table, reduce=False)
    z, affine = rows.arguments(pattern, pattern, *search.table.hull(pattern, pattern))
    assert bool(affine.all())
    every = np.ones((2, cascade.units), dtype=bool)
    for i in range(20):
        own = pattern[i].numpy()
        G = rows.cell(z[i].numpy(), affine[i].numpy(), own, own, every).rows
        assert (G[:, :-1] @ x[i].numpy() + G[:, -1] > 0).all()


@pytest.mark.parametrize("ball", [False, True])
def test_a_folded_piece_is_one_that_no_point_of_the_part_is_on(ball: bool) -> None:
    folded = 0
    for seed in range(12):
        cascade = cascade_of(tiny(seed))
        n = cascade.P.shape[1]
        search = Expansion(cascade, 2, 2, [Domain(n, np.zeros(n), 1.0, "inf") if ball else Domain(n)])
        torch.manual_seed(seed)
        x = 2.0 * torch.rand(4000, n, dtype=torch.float64) - 1.0
        pattern = search.pattern(x if ball else 20.0 * x)[0].numpy()
        rng = np.random.default_rng(seed)
        for _ in range(20):
            last = search.table.last.numpy().astype(np.int8)
            none = np.zeros(0, dtype=np.int8)
            part = Part(0 * last, last, 0, none, np.inf, 0, np.zeros((2, len(last)), dtype=bool))
            for _ in range(5):
                _, affine = search.arguments([part])
                some = np.flatnonzero(affine[0] & (part.low < part.high))
                if not len(some):
                    break
                part.branch = int(rng.choice(some))
                part = part.halves()[int(rng.integers(2))]
                z, affine = search.arguments([part])
                if not search.feasibility.inhabited([part], z, affine):
                    break
                here = ((pattern >= part.low) & (pattern <= part.high)).all(1)
                search.feasibility.fold([part], z, affine, np.ones_like(affine))
                assert not (here & ((pattern < part.low) | (pattern > part.high)).any(1)).any()
        folded += search.feasibility.folded
    assert folded > 100


def test_a_row_is_a_combination_of_others_or_there_is_a_way_out() -> None:
    rng = np.random.default_rng(1)
    without = 0
    for _ in range(300):
        m, n = int(rng.integers(1, 9)), int(rng.integers(1, 5))
        G, c = rng.standard_normal((m, n)), rng.standard_normal(n)
        y, way = combination(G, c)
        assert (y >= 0).all()
        if way is None:
            np.testing.assert_allclose(y @ G, c, atol=1e-8)
        else:
            without += 1
            assert (G @ way > -1e-9).all()
            assert c @ way < 0
    assert 50 < without < 250


@pytest.mark.parametrize("norm", [None, 1, 2, "inf"])
def test_cells_have_a_point_or_a_proof_as_linear_programs_say(norm) -> None:
    rng = np.random.default_rng(0)
    empty = 0
    for _ in range(150):
        m, n = int(rng.integers(2, 9)), int(rng.integers(1, 4))
        G = rng.standard_normal((m, n + 1))
        domain = Domain(n) if norm is None else Domain(n, rng.standard_normal(n), float(rng.uniform(0.2, 2.0)), norm)
        answer = look(domain, G, 1e-15 * np.abs(G))
        sizes = np.linalg.norm(G[:, :-1], axis=1, keepdims=True)
        sides = [(None, None)] * n if norm is None else [(c - domain.radius, c + domain.radius) for c in domain.center]
        slack = linprog([0.0] * n + [-1.0], np.hstack([-G[:, :-1], sizes]), G[:, -1], bounds=[*sides, (None, 1.0)])
        feasible = slack.status == 0 and slack.x[n] > 1e-9
        if isinstance(answer, Empty):
            empty += 1
            assert answer.proved
            assert norm in (1, 2) or not feasible
        else:
            assert answer is not None
            assert feasible
            assert (G[:, :-1] @ answer + G[:, -1] > 0).all()
    assert 20 < empty < 130


def test_rows_that_may_vanish_prove_nothing() -> None:
    G = np.array([[1.0, 0.0], [-1.0, 0.0]])
    answer = look(Domain(1), G, np.full_like(G, 2.0))
    assert not (isinstance(answer, Empty) and answer.proved)
