"""Questions: equal by value, checked, and never forgotten by a bound."""

from __future__ import annotations

import pytest
import torch

import lipbridge
from lipbridge import Ball, Bound, Problem, Question
from lipbridge.errors import InvalidArgument
from lipbridge.lipsdp.dense_problem import local_intervals, local_systems
from lipbridge.lipsdp.multipliers import closed_form_bound, closed_form_multipliers, prove_from_multipliers
from lipbridge.lipsdp.system import Intervals, LipSDP, lipsdp_of
from lipbridge.verifiers import Budget, get_verifier
from lipbridge.vocabulary import Quantity, Side


def ball(radius: float = 0.5, dtype: torch.dtype = torch.float64) -> Ball:
    return Ball(torch.arange(6.0).reshape(2, 3).to(dtype), radius, "inf")


def test_equal_by_value() -> None:
    pairs = [
        (Question.everywhere(2), Question(input_norm=2, output_norm=2, region=None)),
        (Question.everywhere("l1", "inf"), Question(input_norm=1, output_norm="inf", region=None)),
        (Question.on(ball()), Question.on(ball(dtype=torch.float32), "inf", "inf")),  # centres become float64
        (Question.on(ball(), 2, quantity=Quantity.DEVIATION), Question.on(ball(), 2, quantity="deviation")),
    ]
    for one, other in pairs:
        assert one == other
        assert hash(one) == hash(other)
    assert len({question for pair in pairs for question in pair}) == len(pairs)


def test_different_where_a_number_is() -> None:
    moved = Ball(torch.nextafter(ball().centers, torch.tensor(9.0).double()), 0.5, "inf")
    one_by_one = Ball(ball().centers[:1], 0.5, "inf")
    other_norm = Ball(ball().centers, 0.5, 2)
    regions = [None, ball(), ball(0.25), moved, one_by_one, other_norm]
    questions = [Question(input_norm=2, output_norm=2, region=region) for region in regions]
    questions += [
        Question.on(ball(), 2, quantity=Quantity.DEVIATION),
        Question.everywhere(1),
        Question.everywhere(2, 1),
    ]
    assert len(set(questions)) == len(questions)
    assert ball() != "a ball"


def test_wrong_ones_are_refused() -> None:
    for arguments, parameter in (
        ({"input_norm": 3, "output_norm": 2, "region": None}, "input_norm"),
        ({"input_norm": 2, "output_norm": "two", "region": None}, "output_norm"),
        ({"input_norm": 2, "output_norm": 2, "region": "everywhere"}, "region"),
        ({"input_norm": 2, "output_norm": 2, "region": ball(), "quantity": "volume"}, "quantity"),
        ({"input_norm": 2, "output_norm": 2, "region": None, "quantity": "deviation"}, "region"),
    ):
        with pytest.raises(InvalidArgument, match=parameter):
            Question(**arguments)
    with pytest.raises(InvalidArgument, match="region"):
        Question.on(None)
    with pytest.raises(TypeError):
        Question(2, 2, None)
    with pytest.raises(TypeError, match="region"):
        Question(input_norm=2, output_norm=2)
    graph = lipbridge.capture(lipbridge.mlp([4, 2]))
    with pytest.raises(InvalidArgument, match="region"):
        Problem(graph, Question.on(ball()))
    with pytest.raises(InvalidArgument, match="question"):
        Problem(graph, 2)


def test_no_bound_without_its_question() -> None:
    with pytest.raises(TypeError, match="question"):
        Bound(value=1.0, side=Side.UPPER, proved=True, method="by hand")
    with pytest.raises(TypeError):
        Bound(1.0, Side.UPPER, True, Question.everywhere(2), "by hand")
    bound = Bound(value=1.0, side=Side.UPPER, proved=True, question=Question.on(ball(), 1, "inf"), method="by hand")
    assert (bound.norm, bound.region, bound.quantity) == ("1->inf", "2 linf balls, radius 0.5", Quantity.LIPSCHITZ)


def test_a_system_of_a_ball_knows_it() -> None:
    """Its bound says "on the ball" by every way; a witness everywhere is above it."""
    torch.manual_seed(0)
    graph = lipbridge.capture(lipbridge.mlp([10, 30, 30, 3], "relu"))
    region = Ball(torch.zeros(1, 10, dtype=torch.float64), 0.05, 2)
    intervals = local_intervals(graph, region)[0]
    system = lipsdp_of(graph, intervals)
    assert system.question == Question.on(region, 2)
    everywhere = Question.everywhere(2)
    assert lipsdp_of(graph).question == everywhere
    bounds = [closed_form_bound(system), prove_from_multipliers(system, closed_form_multipliers(system))]
    bounds += [closed_form_bound(each) for each in local_systems(graph, intervals)]
    witness = lipbridge.search_lower_bound(Problem(graph, everywhere), seconds=5.0)
    for bound in bounds:
        assert bound.question == Question.on(region, 2)
        assert bound.proved
        assert bound.value < witness.value  # so it holds nowhere else
    assert closed_form_bound(graph).question == everywhere
    two = Ball(torch.stack([torch.zeros(10), torch.ones(10)]), 0.05, 2)
    assert [each.region for each in local_intervals(graph, two)] == [region, Ball(torch.ones(1, 10), 0.05, 2)]
    with pytest.raises(TypeError):
        lipsdp_of(graph, intervals.layers, True)
    with pytest.raises(InvalidArgument, match="region"):
        Intervals(None, intervals.layers)
    with pytest.raises(TypeError, match="question"):
        LipSDP(entry=system.entry, stages=system.stages, exponent=0, constant=False)


@pytest.mark.parametrize("name", ["trivial", "witness", "eclipse-fast", "lipsdp-fast"])
def test_verifiers_answer_what_was_asked(name: str) -> None:
    graph = lipbridge.capture(lipbridge.mlp([3, 8, 2], "relu"))
    for question in (Question.everywhere(2), Question.on(ball(), 2)):
        bound = get_verifier(name).prepare(Problem(graph, question)).bound(Budget(seconds=5.0))
        assert bound.question == question
