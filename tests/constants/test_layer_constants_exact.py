"""Constants of linear Graphs and of slopes against exact Jacobians: every option of a layer, in float64 and coarsely.

Whatever is merged (diagonals with their layer, branches with each other) has the exact norm of the product or the sum,
or more: at tolerance zero. In the coarse arithmetic each rounding that the merging made has to be counted.
"""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction

import mpmath
import pytest
import torch
from torch import Tensor

from lipbridge.activations.activation import Term, derive
from lipbridge.activations.registry import activation
from lipbridge.constants.layer_constants import output_constants
from lipbridge.constants.linear_branches import _own_tap
from lipbridge.constants.node_constants import _root_up, normalize_norm_up, root_mean_square_norm_up
from lipbridge.constants.trivial import trivial_bound
from lipbridge.graph.evaluation import evaluate
from lipbridge.graph.graph import Graph
from lipbridge.graph.nodes import (
    Add,
    Concat,
    Conv,
    ConvTranspose,
    Dense,
    Elementwise,
    Gather,
    Input,
    MaxPool,
    Node,
    Normalize,
)
from lipbridge.graph.windows import most_windows
from lipbridge.vocabulary import NORMS, Norm
from tests.support.attack.truth import everywhere
from tests.support.coarse import coarse, coarse_arithmetic
from tests.support.exact.jets import Stored

ARITHMETICS = [None, ("zero", "low"), ("away", "mixed")]


class Draw:
    """Random options and coarse weights, and Graphs whose shapes follow from their nodes."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.generator = torch.Generator().manual_seed(seed)
        self.nodes: list[Node] = []

    def weight(self, *shape: int) -> Tensor:
        W = torch.rand(*shape, dtype=torch.float64, generator=self.generator)
        return coarse(W - 0.5 if self.random.random() < 0.6 else W)

    def input(self, *shape: int) -> int:
        self.nodes = [Input("x", (), shape)]
        return 0

    def add(self, make: Callable[[tuple[int, ...]], Node]) -> int:
        node = make(())
        zeros = [torch.zeros(1, *self.nodes[i].shape, dtype=torch.float64) for i in node.inputs]
        self.nodes.append(make(tuple(evaluate(node, zeros).shape[1:])))
        return len(self.nodes) - 1

    def dense(self, at: int, rows: int) -> int:
        W = self.weight(rows, self.nodes[at].shape[-1])
        return self.add(lambda s: Dense("dense", (at,), s, W, self.weight(rows)))

    def diagonal(self, at: int) -> int:
        shape = self.nodes[at].shape
        rank = len(shape) - 1
        W = self.weight(shape[0], 1, *(1,) * rank) * 2.0
        ones, none = (1,) * rank, ((0, 0),) * rank
        return self.add(lambda s: Conv("diagonal", (at,), s, W, None, ones, none, ones, shape[0]))

    def conv(self, at: int, channels: int | None = None, **options) -> int:
        shape = self.nodes[at].shape
        rank = len(shape) - 1
        groups = options.get("groups", 1)
        out = shape[0] if channels is None else channels
        kernel = options.get("kernel", (3,) * rank)
        W = self.weight(out, shape[0] // groups, *kernel)
        stride, dilation = (options.get(name, (1,) * rank) for name in ("stride", "dilation"))
        padding = options.get("padding", ((0, 0),) * rank)
        mode = options.get("mode", "zeros")
        return self.add(lambda s: Conv("conv", (at,), s, W, None, stride, padding, dilation, groups, mode))

    def sum(self, *at: int) -> int:
        return self.add(lambda s: Add("sum", at, s or self.nodes[at[0]].shape))

    def graph(self) -> Graph:
        return Graph(tuple(self.nodes))


def constants(graph: Graph, arithmetic: tuple[str, str] | None) -> dict:
    if arithmetic is None:
        return {p: output_constants(graph, p, p)[p] for p in NORMS}
    with coarse_arithmetic(*arithmetic):
        return {p: output_constants(graph, p, p)[p] for p in NORMS}


def require(graph: Graph, arithmetic: tuple[str, str] | None = None, tight: float | None = None) -> None:
    """No exact Jacobian has a norm above the constant; and with ``tight`` one is within that factor of it."""
    found = constants(graph, arithmetic)
    truth = everywhere(Stored(graph), 0, lines=2)
    for p, bound in found.items():
        assert not truth.exceeds(bound, p, p), (graph, p)
        assert tight is None or truth.exceeds(bound / tight, p, p), (graph, p)


arithmetics = pytest.mark.parametrize("arithmetic", ARITHMETICS, ids=str)


@arithmetics
def test_a_layer_and_its_diagonals(arithmetic) -> None:
    for seed in range(6):
        draw = Draw(seed)
        if seed % 3 == 0:
            at = draw.diagonal(draw.dense(draw.diagonal(draw.input(3)), 2))
        elif seed % 3 == 1:
            at = draw.conv(draw.diagonal(draw.input(4, 4)), 2, groups=2, stride=(2,), padding=((0, 2),), kernel=(2,))
            at = draw.diagonal(at)
        else:
            at = draw.diagonal(draw.input(4, 2))
            W = draw.weight(4, 3, 2)
            at = draw.add(lambda s: ConvTranspose("t", (1,), s or (6, 4), W, None, (2,), ((0, 0),), (1,), 2))  # noqa: B023
            at = draw.diagonal(at)
        require(draw.graph(), arithmetic, 1.3)


@pytest.mark.parametrize("width", [1, 2, 3])
def test_one_number_each(width: int) -> None:
    """Products of three numbers: the exact constant is theirs, so that a lost rounding shows at once."""
    for seed in range(40):
        draw = Draw(seed)
        draw.diagonal(draw.dense(draw.diagonal(draw.input(width)), width))
        for node in draw.nodes[1:]:
            node.weight.copy_(torch.rand(node.weight.shape, dtype=torch.float64, generator=draw.generator))
        if width == 1 or seed % 2:
            require(draw.graph(), None)


def test_a_dense_layer_on_the_last_of_two_axes_is_no_diagonals_layer() -> None:
    for seed in range(4):
        for order in itertools.permutations(("dense", "diagonal")):
            draw = Draw(seed)
            at = draw.input(2, 2)
            for kind in order:
                at = draw.dense(at, 2) if kind == "dense" else draw.diagonal(at)
            require(draw.graph())


#: Convolutions that keep a size of 6: before < after, even kernels, dilation, each with its modes.
KEEPING = [
    {"kernel": (3,), "padding": ((1, 1),)},
    {"kernel": (3,), "padding": ((0, 2),)},
    {"kernel": (3,), "padding": ((2, 0),)},
    {"kernel": (2,), "padding": ((0, 1),)},
    {"kernel": (2,), "padding": ((1, 1),), "dilation": (2,)},
    {"kernel": (2,), "padding": ((0, 2),), "dilation": (2,)},
    {"kernel": (2,), "padding": ((2, 0),), "dilation": (2,)},
    {"kernel": (3,), "padding": ((1, 3),), "dilation": (2,)},
    {"kernel": (3,), "padding": ((2, 2),), "dilation": (2,)},
    {"kernel": (4,), "padding": ((1, 2),)},
    {"kernel": (1,), "padding": ((0, 0),)},
]
MODES = ("zeros", "circular", "reflect", "replicate")


@pytest.mark.parametrize("mode", MODES)
def test_residual_sums_of_every_geometry(mode: str) -> None:
    """x + W x, and x + D W x + E x with diagonals: the kernel has the one at the tap that reads its own place."""
    for number, options in enumerate(KEEPING):
        for groups in (1, 2):
            draw = Draw(number)
            x = draw.input(2, 6)
            draw.sum(x, draw.conv(x, mode=mode, groups=groups, **options))
            require(draw.graph(), None, 1.6)
            draw = Draw(number)
            x = draw.input(2, 6)
            draw.sum(x, draw.diagonal(draw.conv(x, mode=mode, groups=groups, **options)), draw.diagonal(x))
            require(draw.graph(), None, 1.6)


def test_residual_sums_in_two_axes() -> None:
    for seed, (dilation, padding, kernel) in enumerate(
        [((1, 2), ((0, 2), (2, 0)), (3, 2)), ((2, 1), ((1, 1), (0, 1)), (2, 2)), ((1, 1), ((1, 0), (1, 1)), (2, 3))]
    ):
        draw = Draw(seed)
        x = draw.input(2, 4, 3)
        draw.sum(x, draw.conv(x, dilation=dilation, padding=padding, kernel=kernel))
        require(draw.graph(), None, 1.6)


def test_two_branches_of_different_geometry() -> None:
    """They are no one kernel, though their shapes agree: mode, padding, dilation and groups differ, one at a time."""
    base = {"kernel": (3,), "padding": ((1, 1),), "mode": "zeros"}
    others = [{"mode": mode} for mode in MODES] + [
        {"padding": ((0, 2),)},
        {"padding": ((2, 0),)},
        {"dilation": (2,), "padding": ((2, 2),)},
        {"groups": 2},
        {"kernel": (2,), "padding": ((0, 1),)},
    ]
    for seed, other in enumerate(others):
        for first, second in itertools.permutations((base, {**base, **other})):
            for size in (2, 6):
                draw = Draw(seed)
                x = draw.input(2, size)
                draw.sum(*(draw.conv(x, **options) for options in (first, second)))
                require(draw.graph(), None, 1.6)
    draw = Draw(2)
    x = draw.input(1, 3)  # one padding is stride two's, with the same outputs
    draw.sum(draw.conv(x, stride=(2,), padding=((1, 1),)), draw.conv(x, kernel=(3,), padding=((0, 1),)))
    require(draw.graph(), None, 1.6)


@arithmetics
def test_what_sums_and_scalings_of_kernels_round(arithmetic) -> None:
    for seed in range(4):
        draw = Draw(seed)
        x = draw.input(1, 1) if seed < 3 else draw.input(1, 3)
        options = {"kernel": (3,), "padding": ((1, 1),), "mode": "zeros" if seed < 3 else "circular"}
        branches = [draw.conv(x, **options), draw.diagonal(draw.conv(x, **options)), draw.diagonal(x), x]
        branches += [draw.conv(x, **options) for _ in range(6)]
        draw.sum(*branches)
        require(draw.graph(), arithmetic, 1.7)


@arithmetics
def test_branches_as_a_matrix(arithmetic) -> None:
    """Sums and joins of layers behind layers, of lines of several terms, of copies."""
    line = derive("line", ((Term("identity", 0.75, 1.5, 2.0), Term("identity", -0.3, 1.0, -1.0)),))
    for seed in range(4):
        draw = Draw(seed)
        x = draw.input(3)
        deep = draw.dense(draw.dense(x, 4), 3)
        bent = draw.add(lambda s: Elementwise("line", (deep,), s, line))  # noqa: B023
        copies = draw.add(lambda s: Gather("g", (x,), s or (3,), torch.tensor([2, -1, 2])))  # noqa: B023
        parts = (x, bent, draw.dense(x, 3), copies)
        if seed % 2:
            draw.add(lambda s: Concat("c", parts, s or (12,), 0))  # noqa: B023
        else:
            draw.sum(*parts)
        require(draw.graph(), arithmetic, 1.05)


def test_terms_that_bend_are_no_line() -> None:
    """h + 5 relu(h) - 6 h, of which a term is a line and the sum is not, and 2 h + (h + |h|)."""
    for terms, factor in (
        ((Term("identity", -6.0), Term("relu", 5.0)), 1.0),
        ((Term("relu", 5.0), Term("identity", -6.0)), 1.0),
        ((Term("identity", 1.0), Term("abs", 1.0)), 2.0),
    ):
        draw = Draw(1)
        h = draw.input(2)
        bent = draw.add(lambda s: Elementwise("b", (h,), s, derive("sum", (terms,))))  # noqa: B023
        layer = draw.add(lambda s: Dense("d", (h,), s, factor * torch.eye(2, dtype=torch.float64)))  # noqa: B023
        draw.sum(layer, bent)
        require(draw.graph())


def test_a_join_of_both_sides_of_relu_one_by_one() -> None:
    """[D, E] with diagonals has the steepest slope; an entry beside the diagonals makes it an ordinary layer."""
    both = activation("crelu")
    sides = derive("sides", ((Term("relu"),), (Term("relu", 1.0, -1.0),)))
    for seed, (beside, act) in enumerate(itertools.product((False, True), (sides, both))):
        draw = Draw(seed)
        x = draw.input(3)
        act_at = draw.add(lambda s: Elementwise("a", (x,), s or (6,), act, 0))  # noqa: B023
        W = torch.cat([torch.diag(draw.weight(3)), torch.diag(draw.weight(3))], 1)
        if beside:
            W[0, 4] = 0.9
        draw.add(lambda s: Dense("d", (act_at,), s, W))  # noqa: B023
        require(draw.graph(), None, 1.001 if not beside and act is sides else None)
        image = Draw(seed)
        y = image.input(3, 2)
        at = image.add(lambda s: Elementwise("a", (y,), s or (6, 2), act, 0))  # noqa: B023
        for options in ({}, {"stride": (2,)}, {"padding": ((0, 1),)}):
            one = Draw(seed)
            one.nodes = list(image.nodes)
            stride, padding = options.get("stride", (1,)), options.get("padding", ((0, 0),))
            one.add(lambda s: Conv("c", (at,), s, W[:, :, None], None, stride, padding, (1,), 1))  # noqa: B023
            require(one.graph())
    rows = Draw(9)
    x = rows.input(2, 3)  # a dense layer acts along the last axis, and the sides stand along the first
    at = rows.add(lambda s: Elementwise("a", (x,), s or (4, 3), sides, 0))
    rows.dense(at, 2)
    require(rows.graph())


@pytest.mark.parametrize("kernel", [1, 2, 3, 4])
def test_windows_that_share_an_input(kernel: int) -> None:
    """Counted by hand in every small geometry, on one pixel too, and in two axes the product."""
    for n, stride, dilation in itertools.product(range(1, 8), range(1, 4), range(1, 4)):
        for padding in range(kernel // 2 + 1):
            padded = [-1] * padding + list(range(n)) + [-1] * padding
            starts = range(0, len(padded) - dilation * (kernel - 1), stride)
            windows = [{padded[s + dilation * tap] for tap in range(kernel)} - {-1} for s in starts]
            if not windows:
                continue
            most = max(sum(i in window for window in windows) for i in range(n))
            pool = MaxPool("m", (0,), (1, len(windows)), (kernel,), (stride,), (padding,), (dilation,))
            assert most_windows(pool, (1, n)) == most
            square = MaxPool("m", (0,), (1, len(windows), 3), (kernel, 2), (stride, 1), (padding, 0), (dilation, 1))
            assert most_windows(square, (1, n, 4)) == 2 * most


@pytest.mark.parametrize("centred", [True, False])
@pytest.mark.parametrize("n", [2, 50, 400, 1600])
def test_normalisation_of_many_entries(n: int, centred: bool) -> None:
    """Half the entries up, half down, one spike: rows of the Jacobian in l_inf and columns in l_1, by formula."""
    epsilon = 1e-5
    graph = Graph((Input("x", (), (n,)), Normalize("norm", (0,), (n,), 1, epsilon, centred)))
    worst = 0.0
    for spike in torch.linspace(0.0, 2.0, 9, dtype=torch.float64) * math.sqrt(n):
        for size in torch.logspace(-1, 1, 9, dtype=torch.float64) * math.sqrt(epsilon):
            x = torch.ones(n, dtype=torch.float64)
            x[1::2] = -1.0
            x[0] = x[0] + spike
            x = x / x.square().mean().sqrt() * size
            x = x - x.mean() if centred else x
            s = math.sqrt(float(x.square().mean()) + epsilon)
            y = x / s
            row = -(y[0] * y + (1.0 if centred else 0.0)) / n
            row[0] += 1.0
            worst = max(worst, float(row.abs().sum()) / s)
    for p in (1, "inf"):
        bound = output_constants(graph, p, p)[p]
        assert worst <= bound * (1 + 1e-12)
        assert bound <= 2.2 * worst


#: One over the root of these, rounded twice to nearest and then one step up, is below the real number.
NARROW = (1.526496648836987e-05, 0.2503493644624167, 4.03866425471083)


def exact_normalisation(n: int, epsilon: float, norm: Norm, centred: bool) -> mpmath.mpf:
    """The supremum over the sizes of the input, to 60 digits; see the laws of `normalize_norm_up` and its sibling."""
    a, c = (2 - mpmath.mpf(2) / n, mpmath.sqrt(n - 1)) if centred else (mpmath.mpf(1), (mpmath.sqrt(n) - 1) / 2)
    if norm == 2:
        return 1 / mpmath.sqrt(epsilon)
    r = max(mpmath.mpf(0), min(mpmath.mpf(1), (2 * c - a) / (3 * c))) if c else mpmath.mpf(0)
    return max(a, mpmath.sqrt(1 - r) * (a + c * r)) / mpmath.sqrt(epsilon)


@pytest.mark.parametrize("centred", [True, False])
def test_constants_of_normalisation_are_rounded_up(centred: bool) -> None:
    norm_up = normalize_norm_up if centred else root_mean_square_norm_up
    draw = random.Random(0)
    with mpmath.workdps(60):
        for _ in range(300):
            n, epsilon = draw.choice([2, 3, 5, 16, 100, 4096]), draw.choice([*NARROW, 1e-5 * draw.uniform(0.5, 2.0)])
            epsilon *= 4.0 ** draw.randint(-3, 3)
            for norm in NORMS:
                assert mpmath.mpf(norm_up(n, epsilon, norm)) >= exact_normalisation(n, epsilon, norm, centred)


def test_an_own_tap_is_the_identity() -> None:
    """Over all small geometries: the tap alone is the identity, and where a tap is, it is found."""
    found = 0
    for n, length, dilation, stride, before, after in itertools.product(
        range(1, 5), range(1, 4), (1, 2), (1, 2), range(5), range(5)
    ):
        reach = dilation * (length - 1) + 1
        if n + before + after < reach or (n + before + after - reach) // stride + 1 != n:
            continue
        node = Conv("conv", (0,), (1, n), torch.zeros(1, 1, length).double(), None, (stride,), ((before, after),))
        node = replace(node, dilation=(dilation,))
        x = torch.randn(3, 1, n, dtype=torch.float64)
        taps = [
            tap for tap in range(length) if torch.equal(evaluate(replace(node, weight=one_at(tap, length)), [x]), x)
        ]
        own = _own_tap(node, (1, n))
        assert own is None if not taps else own == (taps[0],) or (stride > 1 and n == 1 and own is None)
        found += own is not None
    assert found > 20


def one_at(tap: int, length: int) -> Tensor:
    return torch.nn.functional.one_hot(torch.tensor([[tap]]), length).double()


def test_a_strided_convolution_beside_its_input_is_no_kernel() -> None:
    """x + conv(x) for x of three entries, read at 0, 2 and beyond: not zero, although the kernel is minus one."""
    conv = Conv("conv", (0,), (1, 3), -torch.ones(1, 1, 1).double(), None, (2,), ((0, 2),))
    graph = Graph((Input("input", (), (1, 3)), conv, Add("add", (0, 1), (1, 3))))
    assert trivial_bound(graph, "inf").value >= 2.0


def test_a_join_on_another_axis_joins_no_sides() -> None:
    """relu(t) and relu(-t) in two rows, and a difference inside of each row."""
    sides = Elementwise("sides", (0,), (2, 2), activation("crelu"), 0)
    join = Dense("join", (1,), (2, 1), torch.tensor([[1.0, -1.0]]).double())
    assert trivial_bound(Graph((Input("input", (), (1, 2)), sides, join)), "inf").value >= 2.0


def test_a_join_of_other_sides_adds_their_slopes() -> None:
    lines = derive("lines", ((Term("identity", 1.0),), (Term("abs", 1.0),)))
    for n in (1, 3):
        sides = Elementwise("sides", (0,), (2 * n,), lines, 0)
        join = Dense("join", (1,), (n,), torch.cat([torch.eye(n), torch.eye(n)], 1).double())
        graph = Graph((Input("input", (), (n,)), sides, join))
        assert all(trivial_bound(graph, norm).value >= 2.0 for norm in NORMS)


def test_kernels_that_cancel_keep_what_rounding_took() -> None:
    """2^53 + 0.9 - 2^53 is 0 in float64."""
    kernels = [torch.full((2, 2, 1), value, dtype=torch.float64) for value in (2.0**53, 0.9, -(2.0**53))]
    convs = [Conv(f"conv{i}", (0,), (2, 4), kernel, None, (1,), ((0, 0),)) for i, kernel in enumerate(kernels)]
    graph = Graph((Input("input", (), (2, 4)), *convs, Add("add", (1, 2, 3), (2, 4))))
    assert all(trivial_bound(graph, norm).value >= 1.8 for norm in NORMS)


def test_a_join_with_others_is_not_its_linear_part() -> None:
    small = [Dense(f"small{i}", (0,), (2,), 1e-3 * torch.eye(2).double()) for i in range(2)]
    steep = Elementwise("steep", (0,), (2,), derive("steep", ((Term("relu", 1000.0),),)))
    graph = Graph((Input("input", (), (2,)), *small, steep, Concat("join", (1, 2, 3), (6,), 0)))
    assert all(trivial_bound(graph, norm).value >= 1000.0 for norm in NORMS)


def test_roots_of_whole_numbers_are_rounded_up() -> None:
    for count in range(1, 400):
        assert Fraction(_root_up(count)) ** 2 >= count
    assert _root_up(144) == 12.0
