"""The sandwich on Graphs with branches: no witness is above the trivial bound."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from lipbridge import Problem, Question, search_lower_bound, trivial_bound, witness_value
from lipbridge.errors import NumericalFailure
from lipbridge.norms import CHEAP_PAIRS
from tests.support.dags import dag


@settings(max_examples=30)
@given(st.integers(0, 10**6), st.sampled_from(CHEAP_PAIRS))
def test_witness_is_below_the_trivial_bound(seed: int, pair) -> None:
    graph = dag(seed)
    try:
        upper = trivial_bound(graph, *pair)
        found = search_lower_bound(
            Problem(graph, Question.everywhere(*pair)), seconds=2.0, restarts=4, steps=6, rounds=1
        )
    except NumericalFailure:  # weights of 1e50 one after the other
        return
    assert upper.proved
    assert found.proved
    assert found.value <= upper.value
    if found.witness is not None:
        assert witness_value(Problem(graph, Question.everywhere(*pair)), found.witness) == found.value
