"""Capture of products with constants and of linear maps along axes: the module's values, the norms of its matrix."""

from __future__ import annotations

import math
from collections.abc import Callable
from fractions import Fraction

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import lipbridge
from lipbridge.errors import UnsupportedOperation
from lipbridge.frontend.axes import averages, interpolation
from lipbridge.frontend.computed.tensor import error_of, known
from lipbridge.graph.graph import Graph
from lipbridge.vocabulary import NORMS, exponent
from tests.support.captured import Lambda, agrees, kinds

Function = Callable[[Tensor], Tensor]


def draw(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(math.prod(shape)))


w4, w34, w234, w45, w245 = draw(4), draw(3, 4), draw(2, 3, 4), draw(4, 5), draw(2, 4, 5)
w342, v2 = draw(3, 4, 2), draw(2)

PRODUCTS: dict[str, tuple[Function, tuple[int, ...]]] = {
    "x @ vector": (lambda x: x @ w4, (3, 4)),
    "x @ vector, flat": (lambda x: (x @ w4)[:, None], (4,)),
    "vector @ x": (lambda x: w4 @ x, (4, 5)),
    "matrix @ x": (lambda x: w34 @ x, (2, 4, 5)),
    "x @ matrices": (lambda x: x @ w245, (2, 3, 4)),
    "matrices @ x": (lambda x: w234 @ x, (2, 4, 5)),
    "matrices @ one": (lambda x: w234 @ x, (1, 4, 5)),
    "one @ matrices": (lambda x: x[:, None] @ w245, (3, 4)),
    "einsum": (lambda x: torch.einsum("bi,oi->bo", x, w34), (4,)),
    "einsum of channels": (lambda x: torch.einsum("bchw,oc->bohw", x, w34), (4, 2, 3)),
    "einsum into heads": (lambda x: torch.einsum("btd,hdk->bhtk", x, w245), (3, 4)),
    "einsum by groups": (lambda x: torch.einsum("bgtd,gdk->bgtk", x, w245), (2, 3, 4)),
    "einsum by two groups": (lambda x: torch.einsum("bghi,ghi->bgh", x, w234), (2, 3, 4)),
    "einsum alone": (lambda x: torch.einsum("bij->bi", x), (3, 4)),
    "einsum with dots": (lambda x: torch.einsum("...i,oi->...o", x, w34), (5, 4)),
    "einsum without result": (lambda x: torch.einsum("bi,io", x, w45), (4,)),
    "einsum scales": (lambda x: torch.einsum("bi,i->bi", x, w4), (4,)),
    "einsum repeats": (lambda x: torch.einsum("bi,j->bij", x, w4), (3,)),
    "einsum of a diagonal": (lambda x: torch.einsum("bii->bi", x), (3, 3)),
    "einsum with a constant's diagonal": (lambda x: torch.einsum("bi,ii->bi", x, w45[:, :4]), (4,)),
    "tensordot": (lambda x: torch.tensordot(x, w245, dims=([2, 1], [1, 0])), (2, 4)),
    "tensordot of one axis": (lambda x: torch.tensordot(x, w45, dims=1), (3, 4)),
    "inner": (lambda x: torch.inner(x, w34), (4,)),
    "outer": (lambda x: torch.outer(x[:, 0], w4), (4,)),
    "mv": (lambda x: torch.mv(x, w4)[:, None], (4,)),
    "bmm": (lambda x: torch.bmm(x, w45.expand(len(x), 4, 5)), (3, 4)),
    "bmm from the left": (lambda x: torch.bmm(w34.expand(len(x), 3, 4), x), (4, 5)),
    "baddbmm": (lambda x: torch.baddbmm(torch.ones(3, 5), x, w45.expand(len(x), 4, 5)), (3, 4)),
    "sum": (lambda x: x.sum(1), (3, 4)),
    "sum of two axes": (lambda x: x.sum((1, 3), keepdim=True), (3, 4, 2)),
    "cumsum": (lambda x: x.cumsum(1), (3, 4)),
    "diff": (lambda x: x.diff(dim=1), (4, 2)),
    "trace": (lambda x: x.diagonal(dim1=1, dim2=2).sum(-1, keepdim=True), (3, 3)),
}
RESIZED: dict[str, tuple[nn.Module, tuple[int, ...]]] = {
    "linear": (nn.Upsample(size=7, mode="linear"), (2, 3)),
    "bilinear": (nn.Upsample(scale_factor=2, mode="bilinear"), (2, 3, 4)),
    "bilinear between corners": (nn.Upsample(scale_factor=3, mode="bilinear", align_corners=True), (2, 3, 4)),
    "bilinear down": (nn.Upsample(size=(2, 3), mode="bilinear"), (1, 5, 7)),
    "trilinear": (nn.Upsample(size=(3, 2, 5), mode="trilinear"), (1, 2, 3, 2)),
    "a factor that is no quotient": (Lambda(lambda x: F.interpolate(x, scale_factor=1.7, mode="bilinear")), (1, 5, 4)),
    "to one": (nn.Upsample(size=1, mode="linear", align_corners=True), (1, 4)),
    "uneven averages": (nn.AdaptiveAvgPool2d((3, 2)), (2, 5, 7)),
    "uneven averages of a vector": (nn.AdaptiveAvgPool1d(3), (5,)),
    "more averages than entries": (nn.AdaptiveAvgPool1d(5), (1, 3)),
}


def require_the_matrix(graph: Graph) -> None:
    """Every layer but one is a reshape, so the bound is the norm of the whole matrix."""
    n = math.prod(graph.input_shape)
    unit = torch.eye(n, dtype=torch.float64).reshape(n, *graph.input_shape)
    matrix = (graph(unit) - graph(torch.zeros_like(unit[:1]))).reshape(n, -1).T
    for p in NORMS:
        exact = float(torch.linalg.matrix_norm(matrix, exponent(p)))
        bound = lipbridge.trivial_bound(graph, p).value
        assert exact * (1.0 - 1e-14) <= bound
        assert bound == pytest.approx(exact, rel=1e-9)


@pytest.mark.parametrize("name", PRODUCTS)
def test_products(name: str) -> None:
    function, shape = PRODUCTS[name]
    graph = lipbridge.capture(Lambda(function), shape)
    x = torch.randn(3, *shape)
    torch.testing.assert_close(graph(x.double()).float(), function(x), rtol=1e-5, atol=1e-5)
    require_the_matrix(graph)


@pytest.mark.parametrize("name", RESIZED)
def test_maps_along_axes(name: str) -> None:
    require_the_matrix(agrees(*RESIZED[name]))


@pytest.mark.parametrize("first", [True, False])
def test_bilinear_with_a_constant(first: bool) -> None:
    def function(x: Tensor) -> Tensor:
        pair = (x, v2.expand(len(x), 2)) if first else (v2.expand(len(x), 2), x)
        return F.bilinear(*pair, w342 if first else w342.transpose(1, 2).contiguous(), w4[:3])

    graph = lipbridge.capture(Lambda(function), (4,))
    x = torch.randn(5, 4)
    torch.testing.assert_close(graph(x.double()).float(), function(x), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    "function",
    [
        lambda x: torch.einsum("bti,bsi->bts", x, x),
        lambda x: x @ x.mT,
        lambda x: torch.bmm(x, x.relu().mT),
        lambda x: F.bilinear(x, x, torch.ones(2, 4, 4)),
    ],
)
def test_products_of_two_functions_of_the_input_are_refused(function: Function) -> None:
    with pytest.raises(UnsupportedOperation, match="product of two functions"):
        lipbridge.capture(Lambda(function), (3, 4))


@pytest.mark.parametrize(
    "function",
    [
        lambda x: torch.einsum("bi,bj->ij", x, x),
        lambda x: x.sum(0, keepdim=True) + x,
        lambda x: x - x.sum(),
        lambda x: x.cumsum(0),
        lambda x: x.mT @ torch.ones(len(x), 2),
    ],
)
def test_what_works_along_the_batch_is_refused(function: Function) -> None:
    with pytest.raises(UnsupportedOperation):
        lipbridge.capture(Lambda(function), (4,))


class Heads(nn.Module):
    """A weight of three axes, as layers written with einsum have."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(draw(2, 4, 3))
        self.mix = nn.Parameter(draw(5, 5))

    def forward(self, x: Tensor) -> Tensor:
        return torch.einsum("btd,hdk->bhtk", self.mix @ x, self.weight).relu()


@pytest.mark.parametrize("norm", NORMS)
def test_the_penalty_reads_the_weights_of_products_live(norm) -> None:
    module = Heads()
    penalty = lipbridge.TrivialBoundPenalty(module, norm, input_shape=(5, 4))
    before = penalty()
    before.backward()
    assert all(float(p.grad.abs().sum()) > 0.0 for p in module.parameters())
    with torch.no_grad():
        module.weight.mul_(2.0)
    assert penalty.bound().value == lipbridge.trivial_bound(module, norm, input_shape=(5, 4)).value
    penalty.calls = 0
    assert float(penalty().detach()) == pytest.approx(2.0 * float(before.detach()), rel=1e-4)


@pytest.mark.parametrize("factor", [None, 1.7, 0.3])
@pytest.mark.parametrize("align", [True, False])
@pytest.mark.parametrize(("n", "m"), [(1, 1), (1, 4), (3, 7), (7, 3), (5, 5), (4, 1)])
def test_shares_of_interpolation_are_as_near_as_they_say(n: int, m: int, align: bool, factor: float | None) -> None:
    """Against fractions, worked out from the formula of the positions."""
    rows = interpolation(n, m, align, factor)
    errors = [[0.0] * n for _ in range(m)] if error_of(rows) is None else error_of(rows).tolist()
    for i in range(m):
        if align:
            at = Fraction(i * (n - 1), m - 1) if m > 1 else Fraction(0)
        else:
            step = Fraction(n, m) if factor is None else 1 / Fraction(factor)
            at = step * (2 * i + 1) / 2 - Fraction(1, 2)
        at = min(max(at, Fraction(0)), Fraction(n - 1))
        for j in range(n):
            exact = max(Fraction(0), 1 - abs(at - j))
            share = Fraction(float(known(rows)[i, j]))
            assert abs(exact - share) <= Fraction(errors[i][j]) <= exact / 2**51


def test_shares_of_averages_are_as_near_as_they_say() -> None:
    for n, m in ((5, 3), (7, 2), (3, 5), (49, 6)):
        made = averages(n, m)
        rows, errors = known(made), torch.zeros(m, n) if error_of(made) is None else error_of(made)
        for row, error in zip(rows, errors, strict=True):
            count = int((row > 0).sum())
            for t, e in zip(row.tolist(), error.tolist(), strict=True):
                assert t == e == 0.0 or abs(Fraction(t) - Fraction(1, count)) <= Fraction(e) <= Fraction(1, 2**50)
        expected = F.adaptive_avg_pool1d(torch.eye(n, dtype=torch.float64)[None], m)[0].T
        torch.testing.assert_close(rows, expected, rtol=1e-15, atol=0.0)


@pytest.mark.parametrize(
    ("module", "shape"), [(nn.AdaptiveMaxPool2d((3, 2)), (2, 5, 7)), (nn.AdaptiveMaxPool1d(4), (2, 6))]
)
def test_maxima_over_uneven_windows(module: nn.Module, shape: tuple[int, ...]) -> None:
    graph = agrees(module, shape)
    assert kinds(graph).count("MaxPool") == 1
    assert lipbridge.trivial_bound(graph, "inf").value == 1.0
    x = torch.randn(50, *shape, dtype=torch.float64)
    for p in (1, 2):
        for point in x:
            J = torch.func.jacrev(lambda y: graph(y[None])[0].flatten())(point).reshape(-1, point.numel())
            assert float(torch.linalg.matrix_norm(J, p)) <= lipbridge.trivial_bound(graph, p).value * (1.0 + 1e-12)
