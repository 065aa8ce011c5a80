"""Values and norms in fractions, against many digits, float64 and brute force."""

from __future__ import annotations

import random
from fractions import Fraction
from itertools import product

import mpmath
import pytest
import torch

from lipbridge.auditing import exactly
from lipbridge.auditing.exactly import Matrix, moved, norm_up, numbers, root_down, root_up, solved, times, values
from lipbridge.auditing.families.slopes import GELU_AT, SILU_AT, _steepest
from lipbridge.auditing.instance import Instance
from lipbridge.auditing.networks import chain
from lipbridge.auditing.registry import instances
from lipbridge.checking.network import Network

PRECISE = mpmath.mp.clone()
PRECISE.dps = 110
FUNCTIONS = {
    "sigmoid": lambda t: 1 / (1 + PRECISE.exp(-t)),
    "tanh": PRECISE.tanh,
    "silu": lambda t: t / (1 + PRECISE.exp(-t)),
    "gelu": lambda t: t * PRECISE.ncdf(t),
}


def as_many_digits(x: Fraction):
    return PRECISE.mpf(x.numerator) / x.denominator


@pytest.mark.parametrize("name", FUNCTIONS)
def test_smooth_functions_are_enclosed(name: str) -> None:
    generator = random.Random(0)
    steepest, function = exactly.FUNCTIONS[name]
    for _ in range(60):
        x = Fraction(generator.uniform(-6, 6))
        found, true = function(x), FUNCTIONS[name](as_many_digits(x))
        assert abs(as_many_digits(found.value) - true) <= as_many_digits(found.off)
        assert found.off < Fraction(1, 10**20)
        slope = PRECISE.diff(FUNCTIONS[name], as_many_digits(x))
        assert abs(slope) <= as_many_digits(steepest)


@pytest.mark.parametrize("name", ["silu", "gelu", "tanh"])
def test_differences_are_never_above_the_true_ones(name: str) -> None:
    generator, graph = random.Random(2), chain(([[1.0]], None), name)
    for _ in range(40):
        x, y = (torch.tensor([generator.uniform(-4, 4)], dtype=torch.float64) for _ in range(2))
        true = abs(FUNCTIONS[name](PRECISE.mpf(float(x))) - FUNCTIONS[name](PRECISE.mpf(float(y))))
        found = as_many_digits(moved(graph, x, y, 2))
        assert found <= true < found + PRECISE.mpf(10) ** -20


def test_where_silu_and_gelu_are_steepest() -> None:
    root = PRECISE.findroot(lambda t: t * PRECISE.tanh(t / 2) - 2, 2.4)
    assert 0 <= as_many_digits(SILU_AT + Fraction(1, 10**14)) - root < 2e-14
    for name, at in (("silu", root), ("gelu", PRECISE.sqrt(2))):
        where, most = _steepest()[name]
        slope = PRECISE.diff(FUNCTIONS[name], at)
        assert 0 <= as_many_digits(most) - slope < 1e-13
        assert abs(where - at) < 1e-14
        for t in PRECISE.linspace(-8, 8, 400):
            assert abs(PRECISE.diff(FUNCTIONS[name], t)) <= slope * (1 + PRECISE.mpf(10) ** -25)
    assert GELU_AT**2 >= 2


@pytest.mark.parametrize("square", [Fraction(2), Fraction(9, 16), Fraction(1, 3**700), Fraction(7**500), Fraction(0)])
def test_roots_are_enclosed(square: Fraction) -> None:
    low, high = root_down(square), root_up(square)
    assert low * low <= square <= high * high
    assert high <= low * (1 + Fraction(1, 10**80))


def test_norms_are_those_of_float64_and_never_below() -> None:
    generator = random.Random(1)
    for m, n in ((1, 4), (3, 3), (5, 2), (4, 6)):
        J: Matrix = [[Fraction(generator.randint(-9, 9), 4) for _ in range(n)] for _ in range(m)]
        A = torch.tensor([[float(t) for t in row] for row in J], dtype=torch.float64)
        for p, q, expected in (
            (1, 1, A.abs().sum(0).max()),
            ("inf", "inf", A.abs().sum(1).max()),
            (1, "inf", A.abs().max()),
            (2, "inf", A.norm(dim=1).max()),
            (1, 2, A.norm(dim=0).max()),
            (2, 2, torch.linalg.matrix_norm(A, 2)),
        ):
            assert float(norm_up(J, p, q)) == pytest.approx(float(expected), rel=1e-11)
        # never below: at every vector of a grid, in fractions
        s = norm_up(J, 2, 2)
        for v in product((-1, 0, 2), repeat=n):
            image = [sum((a * b for a, b in zip(row, v, strict=True)), Fraction(0)) for row in J]
            assert sum(t * t for t in image) <= s * s * sum(t * t for t in v)


def test_a_wrong_singular_value_is_not_taken() -> None:
    """The elimination, not the float, decides: with a value that is too small there is a pivot below zero."""
    J: Matrix = [[Fraction(3), Fraction(1)], [Fraction(1), Fraction(3)]]  # singular values 4 and 2
    gram = times(J, J)

    def less(s: Fraction) -> Matrix:
        return [[(s * s if i == j else Fraction(0)) - t for j, t in enumerate(row)] for i, row in enumerate(gram)]

    assert exactly._definite(less(Fraction(4) + Fraction(1, 10**30)))
    assert not exactly._definite(less(Fraction(4)))
    assert not exactly._definite(less(Fraction(4) - Fraction(1, 10**30)))


def test_linear_systems_are_solved_exactly() -> None:
    A: Matrix = [[Fraction(0), Fraction(2)], [Fraction(3), Fraction(1, 7)]]
    x = solved(A, [Fraction(1), Fraction(5)])
    assert [sum(a * t for a, t in zip(row, x, strict=True)) for row in A] == [1, 5]


def test_values_are_those_of_float64_and_of_the_checker() -> None:
    """Of every network: float64 agrees, and where units are piecewise linear so do the checker's fractions."""
    seen: set[str] = set()
    for found in instances():
        graph = found.problem.graph if isinstance(found, Instance) else found.graph
        name = found.name.split("-l")[0]
        if name in seen or found.family in ("subnormal-and-huge", "cancelling-biases"):
            continue
        seen.add(name)
        torch.manual_seed(0)
        x = torch.randn(1, *graph.input_shape, dtype=torch.float64)
        exact = values(graph, numbers(x[0]))
        expected = graph(x)[0].flatten()
        scale = 1.0 + float(max(t.abs().max() for t in graph.values(x)))
        for near, value in zip(exact, expected.tolist(), strict=True):
            assert float(near.value) == pytest.approx(value, rel=1e-9, abs=1e-9 * scale)
        if found.family != "steep-slopes" or "abs" in name:
            assert [near.value for near in exact] == list(Network(graph).at(numbers(x[0]))[1])
            assert not any(near.off for near in exact)
    assert len(seen) > 50
