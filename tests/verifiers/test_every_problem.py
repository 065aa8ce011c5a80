"""Every registered verifier on every family of problem: it refuses with a reason, or its bound stands where it must."""

from __future__ import annotations

import math
from functools import cache

import pytest
import torch

from lipbridge import Ball, Budget, Problem, Quantity, Question, Refusal, Side, Status, Task
from lipbridge.verifiers import get_verifier, list_verifiers
from tests.support.problem_families import FAMILIES, graph_of

VERIFIERS = [info.name for info in list_verifiers() if info.installed]
#: Whose value may lie below the constant, as it says of itself.
UNSOUND = ("lipsdp-network",)
#: Who bounds each output by an interval: that may be looser than the product of norms.
INTERVALS = ("auto_lirpa",)


QUESTIONS = ("2", "1", "inf", "1->2", "2->inf", "inf->1", "l2 balls", "linf balls", "l2 deviation", "linf deviation")


@cache
def problem_of(family: str, name: str) -> Problem:
    graph = graph_of(family)
    if "balls" not in name and "deviation" not in name:
        return Problem(graph, Question.everywhere(*name.split("->")))
    norm, _, kind = name.partition(" ")
    torch.manual_seed(1)
    balls = Ball(torch.randn(2, *graph.input_shape, dtype=torch.float64), 0.1, norm)
    quantity = Quantity.DEVIATION if kind == "deviation" else Quantity.LIPSCHITZ
    return Problem(graph, Question.on(balls, quantity=quantity))


@cache
def least(family: str, name: str) -> float | None:
    """What a witness proves; None where the search does not know a layer's rounding."""
    task = get_verifier("witness").prepare(problem_of(family, name))
    if isinstance(task, Refusal):
        return None
    bound = task.bound(Budget(seconds=2.0, options={"restarts": 8, "steps": 20, "rounds": 1}))
    assert bound.side is Side.LOWER
    return bound.value


@cache
def most(family: str, name: str) -> float:
    """The trivial bound, which holds on balls and for the deviation too; infinite for norms that are NP-hard."""
    problem = problem_of(family, name)
    task = get_verifier("trivial").prepare(
        Problem(problem.graph, Question.everywhere(problem.input_norm, problem.output_norm))
    )
    return math.inf if isinstance(task, Refusal) else task.bound(Budget()).value


@pytest.mark.parametrize("question", QUESTIONS)
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("name", VERIFIERS)
def test_it_refuses_or_its_bound_stands_where_it_must(name: str, family: str, question: str) -> None:
    problem = problem_of(family, question)
    answer = get_verifier(name).prepare(problem)
    if isinstance(answer, Refusal):
        assert answer.verifier == name
        assert 10 < len(answer.reason) < 400
        assert "\n" not in answer.reason
        return
    assert isinstance(answer, Task)
    bound = answer.bound(Budget(seconds=20.0) if name != "witness" else Budget(seconds=1.0))
    assert bound.question == problem.question
    assert bound.proved == (get_verifier(name).proved and not math.isnan(bound.value))
    assert bound.status in (Status.OK, Status.TIMEOUT), bound
    assert not math.isnan(bound.value)
    lower, upper = least(family, question), most(family, question)
    if bound.side is Side.UPPER:
        assert name in UNSOUND or lower is None or bound.value >= lower
        assert name in (*UNSOUND, *INTERVALS) or bound.value <= upper * (1 + 1e-9), (bound, upper)
    else:
        assert bound.value <= upper


def test_every_verifier_takes_something_and_refuses_something() -> None:
    for name in VERIFIERS:
        kinds = {
            isinstance(get_verifier(name).prepare(problem_of(family, question)), Task)
            for family in FAMILIES
            for question in QUESTIONS
        }
        assert True in kinds, name
        assert kinds == {True, False} or name == "witness", name
