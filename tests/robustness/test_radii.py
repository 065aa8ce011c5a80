"""Certified radii: never above the exact ones, and no attack inside them flips a class."""

from __future__ import annotations

import itertools
import math
from fractions import Fraction

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from lipbridge.activations.registry import activation_names
from lipbridge.constants.layer_constants import output_constants
from lipbridge.errors import InvalidArgument, NumericalFailure
from lipbridge.frontend.capture import capture
from lipbridge.graph.graph import Graph
from lipbridge.graph.nodes import Dense, Input
from lipbridge.layers.layers import mlp
from lipbridge.rigor.running_error import Enclosure
from lipbridge.robustness.radii import (
    CertifiedAccuracy,
    certified_accuracy,
    certified_radii,
    difference_norms_up,
    pairwise_constants,
    radii_of,
)
from lipbridge.vocabulary import NORMS, Norm, dual, exponent


def linear(W: Tensor, b: Tensor | None = None) -> Graph:
    return Graph((Input("x", (), (W.shape[1],)), Dense("dense", (0,), (W.shape[0],), W.double(), b)))


def steepest(gradient: Tensor, norm: Norm) -> Tensor:
    """The direction of unit l_norm along which a linear function rises most."""
    if norm == "inf":
        return gradient.sign()
    if norm == 2:
        return gradient / gradient.norm(dim=1, keepdim=True).clamp_min(1e-300)
    index = gradient.abs().argmax(dim=1, keepdim=True)
    return torch.zeros_like(gradient).scatter(1, index, gradient.gather(1, index).sign())


def attack(graph: Graph, x: Tensor, labels: Tensor, radii: Tensor, norm: Norm, steps: int = 20) -> Tensor:
    """Smallest margin that projected ascent finds in the open balls, ``(n,)``."""
    reach = radii[:, None] * (1 - 1e-12)
    smallest = torch.full_like(radii, math.inf)
    for restart in range(3):
        d = reach * steepest(torch.randn_like(x), norm) * (restart > 0)
        for step in range(steps):
            d = d.detach().requires_grad_()
            f = graph(x + d)
            own = f.gather(1, labels[:, None])[:, 0]
            margin = own - f.scatter(1, labels[:, None], -math.inf).amax(dim=1)
            smallest = torch.minimum(smallest, margin.detach())
            (gradient,) = torch.autograd.grad(margin.sum(), d)
            share = 2.0 / (step + 2.0)  # a convex combination of points of the ball stays inside it
            d = (1 - share) * d.detach() - share * reach * steepest(gradient, norm)
    return smallest


# --- known radii -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("norm", NORMS)
def test_two_class_linear_radius_is_exact(norm: Norm) -> None:
    W, x = torch.randn(2, 30, dtype=torch.float64), torch.randn(50, 30, dtype=torch.float64)
    margins = x @ (W[0] - W[1])
    exact = margins.abs() / torch.linalg.vector_norm(W[0] - W[1], exponent(dual(norm)))
    found = certified_radii(linear(W), x, (margins < 0).long(), norm)
    assert bool((found <= exact * (1 + 1e-15)).all())
    assert bool((found >= exact * (1 - 1e-9)).all())


@pytest.mark.parametrize("norm", [1, "inf"])
def test_two_class_linear_radius_in_exact_arithmetic(norm: Norm) -> None:
    W, b = torch.randn(2, 9, dtype=torch.float64), torch.randn(2, dtype=torch.float64)
    x = torch.randn(20, 9, dtype=torch.float64)
    y = (x @ W.T + b).argmax(dim=1)
    found = certified_radii(linear(W, b), x, y, norm)
    D = [Fraction(float(p)) - Fraction(float(q)) for p, q in zip(W[0], W[1], strict=True)]
    constant = max(map(abs, D)) if norm == 1 else sum(map(abs, D))
    for row, radius in zip(x, found, strict=True):
        margin = sum(d * Fraction(float(c)) for d, c in zip(D, row, strict=True))
        margin += Fraction(float(b[0])) - Fraction(float(b[1]))
        assert Fraction(float(radius)) < abs(margin) / constant
        assert float(radius) >= float(abs(margin) / constant) * (1 - 1e-9)


def test_margin_below_rounding_certifies_nothing() -> None:
    # In float64 the sum rounds to the tie's wrong side; exactly, the classes differ by less than its error.
    W = torch.tensor([[1.0, 1.0, 1.0], [0.0, 0.0, 0.0]], dtype=torch.float64)
    x = torch.tensor([[1e16, 1.0, -1e16], [1e16, -1.0, -1e16]], dtype=torch.float64)
    assert certified_radii(linear(W), x, torch.tensor([0, 0])).tolist() == [0.0, 0.0]


@pytest.mark.parametrize("label", [0, 1])
@pytest.mark.parametrize("order", list(itertools.permutations(range(3))), ids=str)
@pytest.mark.parametrize("rest", [1.0, -1.0])
def test_an_output_that_cancels_certifies_nothing_as_label_or_as_rival(
    label: int, order: tuple[int, ...], rest: float
) -> None:
    """The running error is far above a few units of the outputs: exactly they are 1 (or -1) and 0.5 (or -0.5)."""
    noisy = torch.tensor([[1e16, -1e16, rest]], dtype=torch.float64)[:, list(order)]
    quiet = torch.tensor([[0.5 * rest, 0.0, 0.0]], dtype=torch.float64)
    x, labels = torch.ones(1, 3, dtype=torch.float64), torch.tensor([label])
    graph = linear(torch.cat([noisy, quiet]))
    assert float(certified_radii(graph, x, labels)) == 0.0


@settings(max_examples=200)
@given(
    seed=st.integers(0, 10**6), scale=st.sampled_from([1.0, 1e8, 1e-8]), error=st.sampled_from([0.0, 1e-17, 1e-9, 0.1])
)
def test_radii_of_enclosed_outputs_in_exact_arithmetic(seed: int, scale: float, error: float) -> None:
    """Never above the least margin of outputs within their errors, divided by the constant of the pair."""
    generator = torch.Generator().manual_seed(seed)
    f = scale + torch.randn(4, 3, generator=generator, dtype=torch.float64)
    e = error * torch.rand(4, 3, generator=generator, dtype=torch.float64) * scale
    constants = torch.rand(3, 3, generator=generator, dtype=torch.float64) + 0.1
    labels = f.argmax(1) if seed % 4 else torch.randint(0, 3, (4,), generator=generator)
    found = radii_of(Enclosure(f, e), labels, constants)
    for row, errors, y, radius in zip(f.tolist(), e.tolist(), labels.tolist(), found.tolist(), strict=True):
        margins = [
            (Fraction(row[y]) - Fraction(row[j]) - Fraction(errors[y]) - Fraction(errors[j]))
            / Fraction(constants[y, j].item())
            for j in range(3)
            if j != y
        ]
        least = max(Fraction(0), min(margins))
        assert Fraction(radius) <= least
        assert float(least) - radius <= 1e-12 * (1.0 + scale)


def test_outputs_that_are_not_finite_have_no_radius() -> None:
    f = torch.tensor([[1.0, 0.0], [math.inf, 0.0], [1.0, -math.inf], [1.0, 0.0]], dtype=torch.float64)
    e = torch.tensor([[0.0, 0.0], [0.0, 0.0], [0.0, 0.0], [math.inf, 0.0]], dtype=torch.float64)
    found = radii_of(Enclosure(f, e), torch.zeros(4, dtype=torch.long), torch.ones(2, 2, dtype=torch.float64))
    assert found.isnan().tolist() == [False, True, True, True]


def test_ties_and_wrong_classes_have_radius_zero() -> None:
    W = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.0, 1.0]], dtype=torch.float64)
    x = torch.tensor([[1.0, 1.0], [0.0, 1.0], [2.0, 1.0]], dtype=torch.float64)
    radii = certified_radii(linear(W), x, torch.tensor([0, 0, 0]))
    assert radii[:2].tolist() == [0.0, 0.0]
    assert float(radii[2]) == pytest.approx(math.sqrt(0.5))


def test_outputs_that_never_differ() -> None:
    zero = torch.zeros(2, 3, dtype=torch.float64)
    x = torch.randn(2, 3, dtype=torch.float64)
    b = torch.tensor([1.0, 0.0], dtype=torch.float64)
    assert certified_radii(linear(zero, b), x, torch.tensor([0, 1])).tolist() == [math.inf, 0.0]
    assert certified_radii(linear(zero), x, torch.tensor([0, 1])).tolist() == [0.0, 0.0]


# --- soundness -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("name", activation_names())
def test_no_attack_inside_the_radius_flips_a_class(name: str, norm: Norm) -> None:
    graph = capture(mlp([5, 8, 6, 3], name))
    x = 2.0 * torch.randn(24, 5, dtype=torch.float64)
    y = graph(x).argmax(dim=1)
    radii = certified_radii(graph, x, y, norm)
    assert bool((radii > 0).any())
    assert bool((attack(graph, x, y, radii, norm) > -1e-12).all())


def exact_constant(rows: list[Fraction], norm: Norm) -> Fraction:
    """The constant of a linear functional in l_1 or l_inf."""
    sizes = [abs(row) for row in rows]
    return max(sizes) if norm == 1 else sum(sizes, Fraction(0))


@pytest.mark.parametrize("norm", [1, "inf"])
@pytest.mark.parametrize("scale", [1e-40, 1.0, 1e40])
def test_margins_and_constants_in_exact_arithmetic(norm: Norm, scale: float) -> None:
    module = mlp([4, 5, 3], "relu").double()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.mul_(scale)
    x = torch.randn(10, 4, dtype=torch.float64)
    y = module(x).argmax(dim=1)
    found = certified_radii(module, x, y, norm)
    (W, b, V, c) = [
        [[Fraction(float(e)) for e in row] for row in p.detach().reshape(len(p), -1)] for p in module.parameters()
    ]

    def norm_of(M: list[list[Fraction]]) -> Fraction:
        lines = M if norm == "inf" else [list(column) for column in zip(*M, strict=True)]
        return max(sum(map(abs, line), Fraction(0)) for line in lines)

    for i in range(len(x)):
        h = [
            max(Fraction(0), sum((w * Fraction(float(e)) for w, e in zip(row, x[i], strict=True)), bias[0]))
            for row, bias in zip(W, b, strict=True)
        ]
        f = [sum((v * e for v, e in zip(row, h, strict=True)), bias[0]) for row, bias in zip(V, c, strict=True)]
        k = int(y[i])
        exact = min(
            max(Fraction(0), f[k] - f[j])
            / (norm_of(W) * exact_constant([p - q for p, q in zip(V[k], V[j], strict=True)], norm))
            for j in range(3)
            if j != k
        )
        # From l_1, passing through a larger norm can only lower the constant and raise the radius.
        if norm == "inf":
            assert Fraction(float(found[i])) <= exact
        assert float(found[i]) >= float(exact) * (1 - 1e-9)


@settings(max_examples=40)
@given(
    norm=st.sampled_from(NORMS),
    shape=st.tuples(st.integers(2, 5), st.integers(1, 12)),
    scale=st.sampled_from([1e-310, 1e-150, 1e-3, 1.0, 1e150]),
    seed=st.integers(0, 10_000),
)
def test_difference_norms_are_never_below_the_exact_ones(
    norm: Norm, shape: tuple[int, int], scale: float, seed: int
) -> None:
    W = scale * torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    found = difference_norms_up(W, {norm: 1.0})
    for i, j in itertools.product(range(shape[0]), repeat=2):
        sizes = [abs(Fraction(float(p)) - Fraction(float(q))) for p, q in zip(W[i], W[j], strict=True)]
        value = Fraction(float(found[i, j]))
        if norm == 2:
            exact, value = sum((s * s for s in sizes), Fraction(0)), value * value
        else:
            exact = max(sizes) if norm == 1 else sum(sizes, Fraction(0))
        assert value >= exact
        if scale > 1e-300:
            assert value <= exact * (1 + Fraction(1, 10**9))


@pytest.mark.parametrize("scale", [1e-100, 1e-10, 1e10, 1e100])
@pytest.mark.parametrize("norm", NORMS)
def test_size_of_the_weights_does_not_matter(scale: float, norm: Norm) -> None:
    module = mlp([6, 7, 3], "abs", bias=False).double()
    x = torch.randn(20, 6, dtype=torch.float64)
    y = module(x).argmax(dim=1)
    before = certified_radii(module, x, y, norm)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.mul_(scale)
    assert torch.allclose(certified_radii(module, x, y, norm), before, rtol=1e-6, atol=0)


def test_row_differences_beat_the_whole_constant() -> None:
    graph = capture(mlp([6, 9, 4], "abs"))
    whole = math.sqrt(2) * output_constants(graph, 2, 2)[2]
    assert float(pairwise_constants(graph, 2).max()) <= whole * (1 + 1e-9)


@pytest.mark.parametrize("norm", NORMS)
def test_networks_that_end_in_an_activation(norm: Norm) -> None:
    graph = capture(nn.Sequential(nn.Linear(4, 5), nn.Tanh()))
    x = torch.randn(30, 4, dtype=torch.float64)
    y = graph(x).argmax(dim=1)
    radii = certified_radii(graph, x, y, norm)
    assert bool((radii > 0).all())
    assert bool((attack(graph, x, y, radii, norm) > -1e-12).all())


def test_the_batch_does_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    graph, x = capture(mlp([4, 5, 3])), torch.randn(11, 4)
    y = graph(x.double()).argmax(dim=1)
    whole = certified_radii(graph, x, y)
    monkeypatch.setattr("lipbridge.robustness.radii.NUMBERS", 16)  # three points of five numbers
    assert torch.allclose(certified_radii(graph, x, y), whole, rtol=1e-9, atol=0)
    assert certified_radii(graph, x[:0], y[:0]).shape == (0,)


def test_the_batched_part_never_waits_for_the_device() -> None:
    f = torch.empty(7, 4, dtype=torch.float64, device="meta")
    labels = torch.empty(7, dtype=torch.long, device="meta")
    constants = difference_norms_up(torch.empty(4, 9, dtype=torch.float64, device="meta"), {1: 1.0, 2: 2.0})
    assert radii_of(Enclosure(f, f), labels, constants).shape == (7,)


# --- accuracy --------------------------------------------------------------------------------------------------------


def test_certified_accuracy_counts_strictly() -> None:
    W = torch.tensor([[1.0], [-1.0]], dtype=torch.float64)
    x = torch.tensor([[1.0], [2.0], [3.0], [-1.0]], dtype=torch.float64)
    rows = certified_accuracy(linear(W), x, torch.tensor([0, 0, 0, 0]), [0.0, 1.0, 1.5, 2.5, 9.0])
    assert [row.certified_accuracy for row in rows] == [0.75, 0.5, 0.5, 0.25, 0.0]
    assert rows[1] == CertifiedAccuracy(1.0, 2, 0.75, 0.5, 4)


@pytest.mark.parametrize("norm", NORMS)
def test_certified_accuracy_falls_with_the_radius(norm: Norm) -> None:
    module = mlp([6, 9, 3], "relu")
    x, y = torch.randn(100, 6), torch.randint(0, 3, (100,))
    rows = certified_accuracy(module, x, y, [0.0, 0.01, 0.1, 1.0], norm)
    shares = [row.clean_accuracy for row in rows[:1]] + [row.certified_accuracy for row in rows]
    assert shares == sorted(shares, reverse=True)


# --- bad input -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("labels", "word"),
    [
        (torch.tensor([0, 3]), "below 3"),
        (torch.tensor([0, -1]), "below 3"),
        (torch.tensor([0]), "one for each input"),
        (torch.tensor([0.0, 1.0]), "whole numbers"),
        (torch.tensor([True, False]), "whole numbers"),
    ],
)
def test_labels_that_do_not_fit(labels: Tensor, word: str) -> None:
    with pytest.raises(InvalidArgument, match=word) as error:
        certified_radii(mlp([4, 5, 3]), torch.zeros(2, 4), labels)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_numbers_that_are_none_are_errors(bad: float) -> None:
    y = torch.tensor([0])
    with pytest.raises(NumericalFailure):
        certified_radii(mlp([4, 5, 3]), torch.full((1, 4), bad), y)
    for layer in (0, 2):
        module = mlp([4, 5, 3])
        with torch.no_grad():
            module[layer].weight[0, 0] = bad
        with pytest.raises(NumericalFailure):
            certified_radii(module, torch.ones(1, 4), y)


def test_arguments_outside_their_domain() -> None:
    module, x, y = mlp([4, 5, 3]), torch.zeros(1, 4), torch.tensor([0])
    for radius in (-0.1, math.nan, math.inf):
        with pytest.raises(InvalidArgument, match="radii"):
            certified_accuracy(module, x, y, [radius])
    with pytest.raises(InvalidArgument, match="at least one point"):
        certified_accuracy(module, x[:0], y[:0], [0.1])
    with pytest.raises(InvalidArgument, match="norm"):
        certified_radii(module, x, y, 3)  # type: ignore[arg-type]
    with pytest.raises(InvalidArgument, match="two outputs"):
        certified_radii(mlp([4, 5, 1]), x, y)
    with pytest.raises(InvalidArgument, match="inputs"):
        certified_radii(module, torch.zeros(1, 5), y)


def test_convolutional_networks_have_radii() -> None:
    """The radii of a convolutional network: no attack inside them, and the module is captured by its inputs' shape."""
    torch.manual_seed(0)
    module = torch.nn.Sequential(
        torch.nn.Conv2d(1, 3, 3), torch.nn.ReLU(), torch.nn.MaxPool2d(2), torch.nn.Flatten(), torch.nn.Linear(12, 3)
    ).double()
    x = torch.randn(20, 1, 6, 6, dtype=torch.float64)
    labels = module(x).argmax(1)
    radii = certified_radii(module, x, labels, 2)
    assert bool((radii > 0).all())
    for _ in range(20):
        step = torch.randn_like(x)
        step = step / step.flatten(1).norm(dim=1)[:, None, None, None] * radii[:, None, None, None] * 0.999
        assert torch.equal(module(x + step).argmax(1), labels)
