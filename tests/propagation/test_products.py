"""Products of forms with weights leave out what adds nothing, and bounds of open units alone hold as well."""

from __future__ import annotations

import math
from fractions import Fraction

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lipbridge.graph.nodes import Elementwise
from lipbridge.propagation import bounds as propagation
from lipbridge.propagation import products
from lipbridge.propagation.bounds import forward_bounds, layer_norms
from lipbridge.propagation.forms import least_of_forms
from lipbridge.propagation.products import product
from lipbridge.rounding.scalars import gamma
from lipbridge.search.starts import in_balls
from lipbridge.vocabulary import NORMS
from tests.support.coarse import COARSE_UNIT, coarse
from tests.support.dags import dag
from tests.support.enclosed import balls_of, require_inside
from tests.support.exact_propagation import arithmetic
from tests.support.families import FLAVOURS, network
from tests.support.lipsdp_reference import graph_of

families = st.builds(
    network,
    seed=st.integers(0, 10**9),
    depth=st.integers(2, 4),
    activations=st.lists(st.sampled_from(["relu", "leaky_relu", "abs", "crelu", "hardsigmoid", "tanh"]), min_size=1)
    .map(tuple)
    .filter(lambda names: len(names) < 3),
    flavour=st.sampled_from(FLAVOURS),
    width=st.just(12),
)


def always(patch: pytest.MonkeyPatch) -> None:
    """Columns are looked for in every product."""
    patch.setattr(products, "FORMS", 0)
    patch.setattr(products, "MANY", 0)


def paired(seed: int, m: int, rows: int) -> torch.Tensor:
    """Forms of which columns are zero, the second half's negative, or neither."""
    generator = torch.Generator().manual_seed(seed)
    forms = torch.randn(2, 2 * m, rows, generator=generator, dtype=torch.float64)
    forms[:, m:, ::3] = -forms[:, :m, ::3]
    forms[:, :, 1::3] = 0.0
    return coarse(forms)


@pytest.mark.parametrize("direction", [None, "zero", "away", "nearest"])
@pytest.mark.parametrize("worst", [None, "low", "high", "mixed"])
def test_a_product_without_columns_obeys_the_bound_of_a_dot_product(
    direction: str | None, worst: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    always(monkeypatch)
    forms, weight = paired(0, 3, 14), coarse(torch.randn(14, 5, dtype=torch.float64))
    with arithmetic(direction, worst):
        found, allowed = product(forms, weight), gamma(14)
    assert direction is None or allowed > 14 * COARSE_UNIT / 2
    for k in range(2):
        for i, row in enumerate(forms[k].tolist()):
            for j, column in enumerate(weight.T.tolist()):
                terms = [Fraction(a) * Fraction(b) for a, b in zip(row, column, strict=True)]
                size = sum(map(abs, terms), Fraction(0))
                assert abs(Fraction(float(found[k, i, j])) - sum(terms, Fraction(0))) <= Fraction(allowed) * size


@pytest.mark.parametrize("unknown", [math.nan, math.inf])
def test_a_product_hides_no_coefficient_that_is_unknown(unknown: float, monkeypatch: pytest.MonkeyPatch) -> None:
    always(monkeypatch)
    forms = torch.zeros(1, 4, 6, dtype=torch.float64)
    forms[0, 1, 2], forms[0, 3, 2] = unknown, -unknown
    found = product(forms, torch.ones(6, 3, dtype=torch.float64))[0]
    assert not bool(found[[1, 3]].isfinite().any())


@settings(max_examples=40)
@given(families, st.sampled_from([1e-6, 0.03, 0.3, 3.0]), st.sampled_from(NORMS), st.sampled_from([None, 0, 2]))
def test_bounds_of_open_units_alone(module, radius, norm, steps) -> None:
    """No value is outside; every piece that all units' bounds know is known."""
    graph = graph_of(module)
    ball = balls_of(graph, radius, norm, count=3)
    with pytest.MonkeyPatch.context() as patch:
        always(patch)
        patch.setattr(propagation, "BLOCK", 64)
        norms = layer_norms(graph, norm)
        found = forward_bounds(graph, ball, norms, steps=steps, open_only=True)
    require_inside(graph, ball, found)
    every = forward_bounds(graph, ball, norms, steps=steps)
    first = next((node.inputs[0] for node in graph.nodes if isinstance(node, Elementwise)), 0)
    for index, pair in enumerate(zip(found, every, strict=True)):
        if index <= first:
            assert all(torch.equal(a, b) for a, b in zip(*((x.lower, x.upper) for x in pair), strict=True))


@settings(max_examples=20)
@given(st.integers(0, 10**9), st.sampled_from([1e-3, 0.3, 3.0]), st.sampled_from(NORMS))
def test_bounds_of_open_units_of_a_dag(seed, radius, norm) -> None:
    graph = dag(seed)
    ball = balls_of(graph, radius, norm)
    with pytest.MonkeyPatch.context() as patch:
        always(patch)
        found = forward_bounds(graph, ball, layer_norms(graph, norm), steps=1, open_only=True)
    require_inside(graph, ball, found)


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("depth", [3, 4])
def test_open_units_of_the_second_layer_are_bounded_as_all_are(norm, depth) -> None:
    graph = graph_of(network(5, depth, ("relu",), width=24))
    ball = balls_of(graph, 0.8, norm, count=6)
    found, every = (
        forward_bounds(graph, ball, layer_norms(graph, norm), steps=0, open_only=only) for only in (True, False)
    )
    second = [node.inputs[0] for node in graph.nodes if isinstance(node, Elementwise)][1]
    known = every[second].lower, every[second].upper
    open_ = (known[0] < 0) & (known[1] > 0)
    assert bool(open_.any())
    for ours, theirs in zip((found[second].lower, found[second].upper), known, strict=True):
        torch.testing.assert_close(ours[open_], theirs[open_], rtol=1e-10, atol=1e-10)
        assert bool((ours[~open_].sign() == theirs[~open_].sign()).all())


@settings(max_examples=30)
@given(families, st.sampled_from([1e-3, 0.03, 0.3]), st.sampled_from(NORMS), st.integers(0, 10**6))
def test_margins_that_are_to_exceed_something(module, radius, norm, seed) -> None:
    """Balls where they do are found as without it, and none where they do not; every bound holds."""
    graph = graph_of(module)
    ball = balls_of(graph, radius, norm, count=5)
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randn(5, 2, graph.output_shape[0], generator=generator, dtype=torch.float64)
    norms = layer_norms(graph, norm)
    full = least_of_forms(graph, ball, rows, norms)
    above = float(full.amin(1).median().clamp(-1e100, 1e100))
    found = least_of_forms(graph, ball, rows, norms, above=above)
    slack = 1e-9 * (1.0 + full.abs())
    assert bool(((found > above).all(1) | (full <= above + slack).any(1)).all())
    x, domain = in_balls(ball, 50, generator)
    index = [int((ball.centers == center).flatten(1).all(1).nonzero()[0, 0]) for center in domain.centers]
    values = (rows[index] @ graph(x)[..., None]).squeeze(-1)
    size = 1e-12 * (rows[index].abs() @ graph(x).abs()[..., None]).squeeze(-1)
    assert bool((values + size.nan_to_num(1.0) >= found[index]).all())


def test_they_run_where_tensors_have_no_values() -> None:
    for name in ("relu", "crelu", "tanh"):
        graph = graph_of(network(1, 3, (name,))).to("meta")
        ball = balls_of(graph, 0.1, "inf", count=3)
        rows = torch.zeros(1, 2, graph.output_shape[0], dtype=torch.float64, device="meta")
        found = least_of_forms(graph, ball, rows, above=0.0)
        assert found.device.type == "meta"
        assert found.shape == (3, 2)


def test_groups_hold_each_open_unit_once() -> None:
    generator = torch.Generator().manual_seed(0)
    for chance in (0.0, 0.1, 0.9, 1.0):
        open_ = torch.rand(7, 11, generator=generator) < chance
        for room in (1, 30, 1000):
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(propagation, "BLOCK", room)
                seen = torch.zeros(7, 11, dtype=torch.int64)
                for places, units in propagation._groups(open_, 1):
                    where = torch.arange(7) if places is None else places
                    seen[where[:, None], units.expand(len(where), -1)] += 1
                    assert units.shape[1] * len(where) <= max(room, 1)
            assert int(seen.max()) <= 1
            assert bool((seen[open_] == 1).all())
