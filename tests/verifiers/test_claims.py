"""Verdicts on Lipschitz claims: true ones hold, false ones fall, and the cases hold every pair."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction

import pytest
import torch
from torch import nn

import lipbridge
from lipbridge import Ball, Budget, Problem, Question, Verdict, get_verifier
from lipbridge.checking.network import Network
from lipbridge.errors import InvalidArgument
from lipbridge.graph.graph import Graph
from lipbridge.lowering.twin import twin
from lipbridge.problem.claim import LipschitzClaim
from lipbridge.verifiers.claims import judge_claim
from lipbridge.vocabulary import Norm


def network() -> Graph:
    torch.manual_seed(0)
    return lipbridge.capture(nn.Sequential(nn.Linear(2, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 2)))


def constant(graph: Graph, norm: Norm, radius: float) -> float:
    ball = Ball(torch.zeros(1, 2, dtype=torch.float64), radius, "inf")
    return get_verifier("exact").prepare(Problem(graph, Question.on(ball, norm))).bound(Budget(seconds=30)).value


@pytest.mark.parametrize("norm", [1, "inf"])
def test_a_true_claim_holds_and_a_false_one_falls(norm: Norm) -> None:
    graph = network()
    for factor, radius in ((1.01, 1.5), (0.9, 1.0)):
        L = factor * constant(graph, norm, radius)
        claim = LipschitzClaim(L, norm, -1.0, 1.0, 1e-4, 0.5)
        pair = twin(graph, L, norm)
        exact = Network(pair)
        verdicts = set()
        for _, asked, found in judge_claim(graph, pair, claim, same=True, seconds=30.0):
            verdicts.add(found.verdict)
            if found.counterexample is None:
                continue
            (case,) = asked.cases
            x = found.counterexample
            assert bool((x >= case.lower).all() and (x <= case.upper).all())
            _, y = exact.at([Fraction(float(value)) for value in x])
            assert all(sum(Fraction(float(a)) * b for a, b in zip(row, y, strict=True)) <= 0 for row in case.rows)
            f, g = graph(x[None, :2]), graph(x[None, :2] + x[None, 2:])
            power = float("inf") if norm == "inf" else 1.0
            assert float((g - f).norm(power)) >= L * float(x[2:].norm(power)) * (1.0 - 1e-9)
        assert verdicts == {Verdict.VERIFIED} if factor > 1 else Verdict.FALSIFIED in verdicts


@pytest.mark.parametrize("norm", [1, "inf"])
def test_every_pair_of_its_distances_that_breaks_the_bound_obeys_a_case(norm: Norm) -> None:
    graph = network()
    claim = LipschitzClaim(0.3 * constant(graph, norm, 1.5), norm, -1.0, 1.0, 0.1, 0.5)
    pair, power = twin(graph, claim.constant, norm), float("inf") if norm == "inf" else 1.0
    cases = [asked.cases[0] for _, asked in claim.properties(2, 2)]
    broken = 0
    for _ in range(400):
        x, d = 2.0 * torch.rand(2, dtype=torch.float64) - 1.0, torch.rand(2, dtype=torch.float64) - 0.5
        if not 0.1 <= float(d.abs().max()) <= 0.5:
            continue
        size = float((graph((x + d)[None]) - graph(x[None])).norm(power))
        z = torch.cat([x, d])
        y = pair(z[None])[0]
        obeyed = [
            bool((z >= case.lower).all() and (z <= case.upper).all() and (case.rows @ y <= 0).all()) for case in cases
        ]
        assert any(obeyed) == (size >= claim.constant * float(d.norm(power)))
        broken += any(obeyed)
    assert broken > 20


def test_a_file_that_rounds_is_judged_by_itself() -> None:
    """The exact constant of f says nothing of a twin with other numbers: here one of twice the claim's constant."""
    graph = lipbridge.capture(nn.Sequential(nn.Linear(2, 4), nn.ReLU(), nn.Linear(4, 2)))
    L = 1.01 * constant(graph, "inf", 1.5)
    steeper = replace(graph, nodes=(*graph.nodes[:-1], replace(graph.nodes[-1], weight=2.0 * graph.nodes[-1].weight)))
    claim = LipschitzClaim(L, "inf", -1.0, 1.0, 0.1, 0.5)
    found = [known for *_, known in judge_claim(graph, twin(steeper, L, "inf"), claim, same=False, seconds=5.0)]
    assert any(known.verdict is not Verdict.VERIFIED for known in found)


def test_wrong_claims_are_refused_in_words() -> None:
    for wrong in (
        {"norm": 2},
        {"constant": 0.0},
        {"low": 1.0, "high": 0.0},
        {"nearest": 0.6},
        {"nearest": 0.0},
        {"high": float("inf")},
    ):
        good = {"constant": 1.0, "norm": 1, "low": 0.0, "high": 1.0, "nearest": 0.1, "farthest": 0.5}
        with pytest.raises(InvalidArgument):
            LipschitzClaim(**(good | wrong))
