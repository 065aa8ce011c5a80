"""ConvTranspose in nasty geometries, with every rule of a node against torch and against its matrix."""

from __future__ import annotations

import math
from fractions import Fraction
from typing import Any

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from lipbridge.activations.registry import activation
from lipbridge.constants.layer_constants import output_constants
from lipbridge.graph.graph import Graph
from lipbridge.graph.nodes import Add, Conv, ConvTranspose, Elementwise, Input
from lipbridge.lowering.dense import lower_to_dense
from lipbridge.propagation.bounds import forward_bounds, layer_norms
from lipbridge.rigor.running_error import enclose
from lipbridge.vocabulary import NORMS, Norm, exponent
from tests.support.enclosed import balls_of, require_inside

TORCH: Any = {1: F.conv_transpose1d, 2: F.conv_transpose2d, 3: F.conv_transpose3d}


def draw(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def transposed(
    shape: tuple[int, ...],
    weight: Tensor,
    bias: Tensor | None = None,
    stride: tuple[int, ...] = (),
    padding: tuple[tuple[int, int], ...] = (),
    dilation: tuple[int, ...] = (),
    groups: int = 1,
) -> Graph:
    """One node; its shape is found here."""
    rank = len(shape) - 1
    geometry = (stride or (1,) * rank, padding or ((0, 0),) * rank, dilation or (1,) * rank, groups)
    node = ConvTranspose("t", (0,), (weight.shape[1] * groups,), weight, bias, *geometry)
    space = (n - sum(pair) for n, pair in zip(node.spread(shape), geometry[1], strict=True))
    node = ConvTranspose("t", (0,), (node.shape[0], *space), weight, bias, *geometry)
    return Graph((Input("x", (), shape), node))


def matrix_of(graph: Graph) -> Tensor:
    n = math.prod(graph.input_shape)
    unit = torch.eye(n, dtype=torch.float64).reshape(n, *graph.input_shape)
    rest = graph(torch.zeros_like(unit[:1]))
    return (graph(unit) - rest).reshape(n, -1).T


#: Input shape, kernel shape, stride, padding (cut before, after), dilation, groups.
NASTY: dict[str, Any] = {
    "plain": ((2, 4), (2, 3, 3), (1,), ((0, 0),), (1,), 1),
    "even kernel": ((2, 3, 3), (2, 1, 4, 2), (2, 2), ((1, 1), (0, 0)), (1, 1), 1),
    "output padding": ((1, 3, 3), (1, 2, 3, 3), (2, 2), ((1, 0), (1, 0)), (1, 1), 1),
    "more output padding than is cut off": ((2, 4), (2, 1, 2), (3,), ((0, -2),), (1,), 1),
    "beyond the stride": ((2, 4), (2, 1, 2), (2,), ((0, -4),), (3,), 1),
    "put on before": ((1, 4), (1, 2, 3), (1,), ((-2, 1),), (1,), 1),
    "dilated groups": ((4, 4, 3), (4, 2, 2, 3), (1, 2), ((1, 2), (0, 3)), (2, 3), 2),
    "stride above kernel": ((1, 3, 2), (1, 1, 2, 1), (3, 4), ((0, 0), (1, 0)), (1, 1), 1),
    "three axes": ((2, 2, 3, 2), (2, 2, 2, 2, 3), (2, 1, 1), ((0, 1), (1, 0), (0, 0)), (1, 2, 1), 1),
    "uneven cut": ((2, 6), (2, 2, 5), (1,), ((4, 1),), (1,), 1),
    "nothing but bias": ((1, 1), (1, 1, 1), (3,), ((1, -2),), (1,), 1),
}


def case(name: str, bias: bool = False, seed: int = 0) -> Graph:
    shape, kernel, *geometry = NASTY[name]
    W = draw(seed, *kernel)
    return transposed(shape, W, draw(seed + 1, kernel[1] * geometry[-1]) if bias else None, *geometry)


@settings(max_examples=60)
@given(st.data())
def test_it_is_torchs(data: st.DataObject) -> None:
    rank = data.draw(st.integers(1, 3))
    groups, per_in, per_out = (data.draw(st.integers(1, 2)) for _ in range(3))

    def several(least: int, most: int) -> tuple[int, ...]:
        return tuple(data.draw(st.integers(least, most)) for _ in range(rank))

    space, kernel, stride, dilation, cut = several(1, 4), several(1, 4), several(1, 3), several(1, 3), several(0, 2)
    more = tuple(data.draw(st.integers(0, max(s, d) - 1)) for s, d in zip(stride, dilation, strict=True))
    W, b = draw(0, groups * per_in, per_out, *kernel), draw(1, groups * per_out)
    shape = (groups * per_in, *space)
    padding = tuple((c, c - m) for c, m in zip(cut, more, strict=True))
    axes = zip(space, stride, dilation, kernel, padding, strict=True)
    assume(all((n - 1) * s + d * (k - 1) + 1 - sum(pair) >= 1 for n, s, d, k, pair in axes))
    x = draw(2, 3, *shape)
    expected = TORCH[rank](x, W, b, stride, cut, more, groups, dilation)
    graph = transposed(shape, W, b, stride, padding, dilation, groups)
    assert graph.output_shape == tuple(expected.shape[1:])
    torch.testing.assert_close(graph(x), expected, rtol=1e-13, atol=1e-13)
    value, tangent = graph.tangent(x, x)
    torch.testing.assert_close(value, expected, rtol=1e-13, atol=1e-13)
    torch.testing.assert_close(tangent, TORCH[rank](x, W, None, stride, cut, more, groups, dilation))


@pytest.mark.parametrize("p", NORMS)
@pytest.mark.parametrize("q", NORMS)
@pytest.mark.parametrize("name", NASTY)
def test_constants_are_the_matrixs(name: str, p: Norm, q: Norm) -> None:
    """Exact where the convolution's norm is: every norm by its dual, and never below."""
    graph = case(name, bias=True)
    if NORMS.index(p) > NORMS.index(q):
        pytest.skip("NP-hard")
    found = output_constants(graph, p, q)[q]
    matrix = matrix_of(graph)
    if (p, q) == (1, "inf"):
        exact = float(matrix.abs().max())
    elif p == 1:
        exact = float(torch.linalg.vector_norm(matrix, exponent(q), dim=0).max())
    elif q == "inf":
        dual = 2 if p == 2 else 1
        exact = float(torch.linalg.vector_norm(matrix, dual, dim=1).max())
    else:
        exact = float(torch.linalg.matrix_norm(matrix, 2))
    assert found == pytest.approx(exact, rel=1e-9, abs=1e-300)
    assert found >= exact * (1.0 - 1e-14)


def test_constants_are_proved_in_l1_and_linf() -> None:
    """Never below the sums of the stored weights as exact fractions."""
    graph = case("dilated groups")
    rows = [[abs(Fraction(float(x))) for x in row] for row in matrix_of(graph)]
    assert Fraction(output_constants(graph, "inf", "inf")["inf"]) >= max(sum(row) for row in rows)
    assert Fraction(output_constants(graph, 1, 1)[1]) >= max(sum(column) for column in zip(*rows, strict=True))


def test_large_ones_are_bounded_by_the_torus() -> None:
    graph = transposed((16, 32, 32), draw(0, 16, 16, 4, 4), None, (2, 2), ((1, 1), (1, 1)))
    x = draw(1, 1, 16, 32, 32)
    node = graph.nodes[1]
    assert isinstance(node, ConvTranspose)
    for _ in range(100):  # power iteration with the adjoint, which is a convolution
        y = graph(x)
        x = F.conv2d(y, node.weight, None, 2, 1)
        x = x / x.norm()
    reached = float(graph(x).norm() / x.norm())
    found = output_constants(graph, 2, 2)[2]
    assert reached <= found <= 1.02 * reached


@pytest.mark.parametrize("p", NORMS)
def test_a_scale_before_and_behind_belongs_to_the_layer(p: Norm) -> None:
    """BatchNorm around it: the norm of the product, not the product of the norms."""
    shape, W = (4, 3, 3), draw(0, 4, 1, 2, 2)
    ones = (1, 1)
    none = ((0, 0), (0, 0))
    before, after = (torch.tensor(t).double().reshape(-1, 1, 1, 1) for t in ([1.0, 1e-3, 1e3, 2.0], [5.0, 1e-3]))
    first = Conv("a", (0,), shape, before, None, ones, none, ones, 4)
    middle = ConvTranspose("t", (1,), (2, 6, 6), W, None, (2, 2), none, ones, 2)
    last = Conv("b", (2,), (2, 6, 6), after, None, ones, none, ones, 2)
    graph = Graph((Input("x", (), shape), first, middle, last))
    exact = float(torch.linalg.matrix_norm(matrix_of(graph), exponent(p)))
    assert exact <= output_constants(graph, p, p)[p] <= exact * (1.0 + 1e-9)


def test_a_sum_of_transposed_branches_is_one_linear_map() -> None:
    W = draw(0, 1, 1, 3)
    nodes = (
        Input("x", (), (1, 5)),
        ConvTranspose("a", (0,), (1, 5), W, None, (1,), ((1, 1),)),
        ConvTranspose("b", (0,), (1, 5), 1e-9 - W, torch.ones(1).double(), (1,), ((1, 1),)),
        Add("sum", (1, 2), (1, 5)),
    )
    assert output_constants(Graph(nodes), 2, 2)[2] < 1e-8


@pytest.mark.parametrize("name", NASTY)
def test_running_error(name: str) -> None:
    """The exact value, by fractions, is within the bound; without one it would not be."""
    graph = case(name, bias=True)
    x = draw(5, 1, *graph.input_shape)
    found = enclose(graph, x)
    node, matrix = graph.nodes[1], matrix_of(case(name))
    assert isinstance(node, ConvTranspose)
    assert node.bias is not None
    shift = node.bias.repeat_interleave(math.prod(node.shape[1:]))
    rows = zip(matrix, found.value.flatten(), found.error.flatten(), shift, strict=True)
    for row, value, error, b in rows:
        products = (Fraction(float(w)) * Fraction(float(t)) for w, t in zip(row, x.flatten(), strict=True))
        exact = Fraction(float(b)) + sum(products)
        assert abs(exact - Fraction(float(value))) <= Fraction(float(error))


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("name", NASTY)
def test_intervals(name: str, norm: Norm) -> None:
    """No value outside; on a ball at the input every output has its row's dual norm as radius."""
    first = case(name, bias=True)
    shape = first.output_shape
    second = Elementwise("abs", (1,), shape, activation("abs"), 0)
    W = draw(9, shape[0], 1, *(1,) * (len(shape) - 1))
    third = ConvTranspose("u", (2,), shape, W, None, *_plain(shape), shape[0])
    graph = Graph((*first.nodes, second, third, Elementwise("relu", (3,), shape, activation("relu"), 0)))
    ball = balls_of(graph, 0.3, norm)
    norms = layer_norms(graph, norm)
    for linear in (False, True):
        require_inside(graph, ball, forward_bounds(graph, ball, norms, linear=linear))
    found = forward_bounds(graph, ball, norms, linear=False)[1]
    dual = {1: math.inf, 2: 2, "inf": 1}[norm]
    room = 0.3 * torch.linalg.vector_norm(matrix_of(first), dual, dim=1)
    half = (0.5 * (found.upper - found.lower)).flatten(1)
    assert bool((half >= room * (1.0 - 1e-12)).all())
    if norm != 1:
        torch.testing.assert_close(half, room.expand(2, -1), rtol=1e-9, atol=1e-12)


def _plain(shape: tuple[int, ...]) -> tuple[Any, ...]:
    rank = len(shape) - 1
    return (1,) * rank, ((0, 0),) * rank, (1,) * rank


@pytest.mark.parametrize("name", NASTY)
def test_lowering_to_dense_layers_is_exact(name: str) -> None:
    graph = case(name, bias=True)
    lowered = lower_to_dense(graph)
    assert lowered.exact
    x = draw(3, 4, *graph.input_shape)
    torch.testing.assert_close(lowered.graph(x), graph(x).flatten(1), rtol=1e-12, atol=1e-12)
