"""Scalar factors and computed constants keep their real value, or an error that covers it, up to the bound.

Programs of scalars are drawn at random and compared with their exact constant, a fraction; the tolerance is zero.
"""

from __future__ import annotations

import math
import pickle
import random
import time
from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction

import pytest
import torch
import torch.nn.functional as functional
from torch import Tensor, nn

from lipbridge import trivial_bound
from lipbridge.activations.activation import Term, derive
from lipbridge.activations.registry import activation
from lipbridge.errors import LipbridgeError, NumericalFailure, UnsupportedOperation
from lipbridge.files.graphs import load_graph, save_graph
from lipbridge.frontend.capture import capture
from lipbridge.frontend.computed.program import tracking
from lipbridge.frontend.computed.tensor import Computed, known, outward
from lipbridge.graph.graph import Graph
from lipbridge.graph.nodes import Conv, Dense, Elementwise, Input, Node
from lipbridge.lipsdp.by_channel import runs as channel_runs
from lipbridge.lipsdp.by_channel.multipliers import bound_by_channels
from lipbridge.lipsdp.by_channel.proof import prove_run
from lipbridge.lipsdp.by_channel.runs import runs_of
from lipbridge.lowering.chain import as_chain
from lipbridge.problem.problem import Problem
from lipbridge.problem.question import Ball, Question
from lipbridge.propagation.bounds import forward_bounds
from lipbridge.rescaling.channel_chain import Layer, channel_chain
from lipbridge.rescaling.channels import best_factors, ones, proved_product
from lipbridge.rigor.running_error import enclose
from lipbridge.rounding.factors import Factor, away, number
from lipbridge.verifiers import Budget, get_verifier

DOUBLE = torch.float64


class Written(nn.Module):
    """A function written with the constants that it is given."""

    def __init__(self, function: Callable[..., Tensor], *constants: object) -> None:
        super().__init__()
        self.function = function
        self.count = len(constants)
        for index, constant in enumerate(constants):
            self.register_buffer(f"c{index}", torch.tensor(constant, dtype=DOUBLE))

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x, *(getattr(self, f"c{index}") for index in range(self.count)))


def bound(module: nn.Module) -> Fraction:
    return Fraction(trivial_bound(module.double(), input_shape=(1,)).value)


third = Fraction(1, 3)
ZERO = torch.zeros(1, 1, dtype=torch.int64)


@pytest.mark.parametrize(
    ("module", "exact"),
    [
        (Written(lambda x: 1e16 * x + x - 1e16 * x), Fraction(1)),
        (Written(lambda x: x * 0.1 * 10), Fraction(0.1) * 10),
        (Written(lambda x: x * 0.4 - x / 3), Fraction(0.4) - third),
        (Written(lambda x: 0.4 * x.relu() - x.relu() / 3), Fraction(0.4) - third),
        (Written(lambda x: (x / 3 + 1).relu() - (x / 3 - 1).relu() - 0.4 * x), Fraction(0.4)),
        (Written(lambda x: x / 3 / 7 * 21 * 0.1), Fraction(0.1)),
        (Written(lambda x: (x + x + x).relu() * 1e150), 3 * Fraction(1e150)),
        (Written(lambda x: ((0.7036383648888043 * x).relu() * 1.5382679476004086).relu()), None),
        (Written(lambda x, a, b: (1e-200 * (1e-200 * (x @ a)).relu()) @ b, [[1e200]], [[1e200]]), Fraction(1)),
    ],
)
def test_factors_of_one_source_are_exact(module: nn.Module, exact: Fraction | None) -> None:
    exact = Fraction(0.7036383648888043) * Fraction(1.5382679476004086) if exact is None else exact
    found = bound(module)
    assert exact <= found <= exact * (1 + Fraction(1, 2**49))


def test_a_product_of_very_many_factors_is_cut() -> None:
    """Each takes 53 more digits of the fraction; what is behind the cut is multiplied as nodes are."""
    factors = [random.Random(seed).uniform(0.9, 1.1) for seed in range(200)]

    def scaled(x: Tensor) -> Tensor:
        for factor in factors:
            x = x * factor
        return x

    exact = math.prod(map(Fraction, factors))
    assert len(capture(Written(scaled), (1,)).nodes) == 4
    assert exact <= bound(Written(scaled)) <= exact * (1 + Fraction(1, 2**48))


@pytest.mark.parametrize("divisor", [3.0, 7.0, 10.0, 49.0])
def test_a_channel_that_is_divided_is_no_smaller(divisor: float) -> None:
    node = capture(Written(lambda x, d: x / d, [divisor, -divisor]), (2,)).nodes[1]
    assert isinstance(node, Conv)
    assert node.error is not None
    for weight, error, sign in zip(node.weight.flatten().tolist(), node.error.flatten().tolist(), (1, -1), strict=True):
        assert 0 < Fraction(sign) * Fraction(weight) - 1 / Fraction(divisor) <= Fraction(error)


def test_a_computed_weight_of_both_signs_is_not_rounded_away() -> None:
    """Larger entries need not have a larger norm there: the entries stay, and their errors count."""
    node = capture(Written(lambda x, c: x @ (c / 3.0), [[1.0, -1.0], [1.0, 1.0]]), (2,)).nodes[1]
    assert isinstance(node, Dense)
    assert not node.outward
    assert node.weight.tolist() == [[1 / 3, 1 / 3], [-1 / 3, 1 / 3]]
    positive = capture(Written(lambda x, c: x @ (c / 3.0), [[1.0, 1.0], [1.0, 1.0]]), (2,)).nodes[1]
    assert isinstance(positive, Dense)
    assert positive.outward
    assert min(map(Fraction, positive.weight.flatten().tolist())) >= third


def test_a_weight_of_which_nothing_is_known_is_refused() -> None:
    with pytest.raises(UnsupportedOperation, match="taken all its digits"):
        capture(Written(lambda x, c, d: x @ (1.0 / ((c + d) - c)), [[1e16]], [[1.0]]), (1,))


def test_a_shift_with_a_factor_keeps_the_error_of_their_product() -> None:
    node = capture(Written(lambda x, c: torch.add(x, c, alpha=0.3), 0.1), (1,)).nodes[1]
    assert isinstance(node, Conv)
    assert node.bias is not None
    assert node.bias_error is not None
    exact = Fraction(0.1) * Fraction(0.3)
    assert 0 < abs(Fraction(float(node.bias)) - exact) <= Fraction(float(node.bias_error))


def test_a_shift_that_is_computed_widens_the_interval() -> None:
    """fl(fl(1e16 + 1) - 1e16) is 0: the first output lies at x + 1 nevertheless."""
    written = Written(lambda x, w, c, d: functional.linear(x, w, (c + d) - c), [[1.0]], [1e16], [1.0])
    added = [Written(lambda x, c, d: x + ((c + d) - c), *pair) for pair in (([1e16], [1.0]), (1e16, 1.0))]
    for module in (written, *added):
        graph = capture(module, (1,))
        (node,) = graph.nodes[1:]
        assert isinstance(node, Dense | Conv)
        assert node.bias_error is not None
        assert node.bias is not None
        assert float(node.bias) + float(node.bias_error) >= 1.0
        found = forward_bounds(graph, Ball(torch.tensor([[0.5]], dtype=DOUBLE), 1e-9, "inf"))[-1]
        assert float(found.lower) <= 1.5 <= float(found.upper)


@pytest.mark.parametrize(
    ("module", "exact"),
    [
        (Written(lambda x, c, d: x * 0.4 - x / d, 0.4, 3.0), Fraction(0.4) - third),
        (Written(lambda x, c, d: x * c - x / d, [0.4], [3.0]), Fraction(0.4) - third),
        (Written(lambda x, c, d: x * (c * d), 0.1, 10.0), Fraction(0.1) * 10),
        (Written(lambda x, c, d: x * (c * d), [0.1], [10.0]), Fraction(0.1) * 10),
        (Written(lambda x, c, d: x * ((c + d) - c), [1e16], [1.0]), Fraction(1)),
        (Written(lambda x, c, d: x * ((c + d) - c), 1e16, 1.0), Fraction(1)),
        (Written(lambda x, c, d: x @ ((c + d) - c), [[1e16]], [[1.0]]), Fraction(1)),
        (Written(lambda x, c, d: x @ (c @ d), [[0.1]], [[10.0]]), Fraction(0.1) * 10),
        (Written(lambda x, c, d: x * (c * d) * 1e200 * 1e200, [1e-200], [1e-200]), Fraction(1e-200 * 1e200) ** 2),
        (Written(lambda x, c, d: x + x @ ((c + d) - c), [[1e16]], [[1.0]]), Fraction(2)),
        (Written(lambda x, c: x @ c.cumsum(1)[:, 2:], [[1e16, 1.0, -1e16]]), Fraction(1)),
        (Written(lambda x, c, d: x @ functional.conv1d(c, d)[0], [[[1e16, 1.0, -1e16]]], [[[1.0] * 3]]), Fraction(1)),
        (Written(lambda x, c, d: x * ((c + d) - c).max(), [1e16, 1e16], [1.0, 0.0]), Fraction(1)),
        (Written(lambda x, c, d: x * ((c + d) - c).round(), [1e16], [1.0]), Fraction(1)),
        (
            Written(lambda x, c, d: x @ c.scatter(0, ZERO, (c + d) - c), [[1e16]], [[1.0]]),
            Fraction(1),
        ),
        (Written(lambda x, c: x * c.sigmoid() * 1e300, [-720.0]), Fraction(2e-13)),
    ],
)
def test_constants_that_a_module_computes_carry_their_error(module: nn.Module, exact: Fraction) -> None:
    assert bound(module) >= exact


@pytest.mark.parametrize(
    "function",
    [
        lambda x, c, d: x * torch.where((c + d) - c == 0.0, 0.0, d),  # which of the two hangs on rounding
        lambda x, c, d: x * torch.where((c + d) - c != d, 0.0, d),
        lambda x, c, d: x @ functional.pad((c / 3.0 - c)[None, None], (1, 1), mode="circular")[0, 0, 2:].reshape(1, 1),
    ],
)
def test_an_error_that_would_be_lost_is_refused(function: Callable[..., Tensor]) -> None:
    with pytest.raises(NumericalFailure):
        bound(Written(function, [1e16], [1.0]))


def root(value: float) -> Tensor:
    return torch.sqrt(torch.tensor(value))


@pytest.mark.parametrize("shape", [(3,), (2, 3)])
@pytest.mark.parametrize(
    ("function", "name", "least"),
    [
        (lambda x: 0.5 * x * (1 + torch.tanh(root(2 / torch.pi) * (x + 0.044715 * x.pow(3)))), "gelu_tanh", 1.12899),
        (lambda x: x * 0.5 * (1 + torch.erf(x / root(2.0))), "gelu", 1.1289),
        (lambda x: x * 0.5 * (1 + torch.erf(x * root(0.5))), "gelu", 1.1289),
        (lambda x: x * torch.sigmoid(root(3.0) * x), "silu", 1.0998393201288669),
        (lambda x: root(3.0) * x * torch.sigmoid(x), "silu", math.nextafter(1.0998393201288669 * math.sqrt(3.0), 2.0)),
    ],
)
def test_gates_with_computed_constants_are_read(shape, function, name: str, least: float) -> None:
    """As many write GELU: the constant inside changes no slope, and one outside is rounded away from zero."""
    graph = capture(Written(function), shape)
    (term,) = next(node.activation.components[0] for node in graph if isinstance(node, Elementwise))
    assert term.function == name
    assert least <= trivial_bound(graph).value <= least * (1 + 1e-4)


def test_a_branch_of_batch_norm_is_no_exact_factor() -> None:
    class Branch(nn.Module):
        def __init__(self, variance: float) -> None:
            super().__init__()
            self.norm = nn.BatchNorm1d(1).double()
            self.norm.running_var.fill_(variance)

        def forward(self, x: Tensor) -> Tensor:
            return x - self.norm(x)

    scale = 10**40
    for variance in (3.0, 5.0, 0.1, 7.3):
        module = Branch(variance).eval()
        square = (Fraction(variance) + Fraction(1e-5)) * scale**2
        low = Fraction(math.isqrt(math.floor(square)), scale)  # the root is between this and the next
        ends = [1 - 1 / root for root in (low, low + Fraction(1, scale))]
        assert bound(module) >= min(abs(end) for end in ends), variance


# --- random programs -------------------------------------------------------------------------------------------------

Slopes = tuple[Fraction, Fraction]  # right and left of zero


def factor(draw: random.Random) -> float:
    kinds = [0.1, 3.0, 1e16, 1e-8, 0.5, -7.0, 1 / 3, 1e150, 1e-150, 1e-320, 1e300, draw.uniform(-2, 2)]
    return draw.choice(kinds)


def program(draw: random.Random, depth: int) -> tuple[Callable[[Tensor], Tensor], Slopes]:
    """A positively homogeneous function of one number and its slopes on both sides."""
    if depth == 0:
        return lambda x: x, (Fraction(1), Fraction(1))
    inner, (right, left) = program(draw, depth - 1)
    kind = draw.randrange(6)
    if kind == 0:
        c = factor(draw)
        return lambda x: inner(x) * c, (right * Fraction(c), left * Fraction(c))
    if kind == 1:
        c = draw.choice([3.0, 7.0, 0.1, 1e10, -5.0, 4.0])
        return lambda x: inner(x) / c, (right / Fraction(c), left / Fraction(c))
    if kind == 2:
        other, (above, below) = program(draw, draw.randrange(depth))
        return lambda x: inner(x) + other(x), (right + above, left + below)
    if kind == 3:
        other, (above, below) = program(draw, draw.randrange(depth))
        return lambda x: inner(x) - other(x), (right - above, left - below)
    if kind == 4:
        return lambda x: inner(x).relu(), (max(right, Fraction(0)), min(left, Fraction(0)))
    return lambda x: inner(x).abs(), (abs(right), -abs(left))


def violations(seed: int, count: int) -> tuple[int, list[int]]:
    """How many programs were bounded, and the seeds of those whose bound is below the exact constant."""
    tried, wrong = 0, list[int]()
    for each in range(seed, seed + count):
        function, slopes = program(random.Random(each), 4)
        exact = max(abs(slope) for slope in slopes)
        try:
            found = bound(Written(function))
        except LipbridgeError:  # it overflows
            continue
        tried += 1
        if found < exact:
            wrong.append(each)
    return tried, wrong


def test_random_programs_of_scalars() -> None:
    tried, wrong = violations(0, 25)
    assert not wrong
    assert tried >= 15


@pytest.mark.slow
def test_many_random_programs_of_scalars() -> None:
    tried, wrong = violations(1000, 1500)
    assert not wrong
    assert tried >= 900


# --- the parts -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "reference"),
    [
        ("add", lambda a, b: a + b),
        ("sub", lambda a, b: a - b),
        ("mul", lambda a, b: a * b),
        ("div", lambda a, b: a / b),
    ],
)
def test_errors_of_single_operations_cover_the_exact_result(name: str, reference: Callable[..., Fraction]) -> None:
    generator = torch.Generator().manual_seed(3)
    size = (400,)
    a, b = (torch.randn(size, generator=generator, dtype=DOUBLE) for _ in range(2))
    spread = torch.randint(-500, 500, size, generator=generator).to(DOUBLE)
    a, b = a * 2.0**spread, b * 2.0 ** (-spread.roll(1) / 8).round()
    a[:40], b[:40] = a[:40].round(), b[:40].round() + 1.0
    with tracking():
        found = getattr(torch, name)(a, b)
        twice = getattr(torch, name)(found, b)
    once = [Fraction(x) for x in a.tolist()]
    for result in (found, twice):
        error = result.error if isinstance(result, Computed) else torch.zeros_like(a)
        rest = [Fraction(x) for x in b.tolist()]
        once = [reference(x, y) for x, y in zip(once, rest, strict=True)]
        rows = [row for row in zip(known(result).tolist(), error.tolist(), once, strict=True) if math.isfinite(row[1])]
        assert len(rows) > 300
        assert all(abs(Fraction(value) - right) <= Fraction(own) for value, own, right in rows)


def test_what_is_exact_stays_a_plain_tensor() -> None:
    W = torch.randn(4, 4).double()
    with tracking():
        for made in (W * 2.0, W / 4.0, W.T.reshape(-1), W @ torch.eye(4, dtype=DOUBLE), W * W, torch.arange(9) / 8):
            assert not isinstance(made, Computed)
        assert (torch.arange(3) * 2).dtype == torch.int64
        assert isinstance(torch.arange(4) / 3, Computed)  # in float32, of a third in the module


def test_products_and_sums_of_many_terms() -> None:
    generator = torch.Generator().manual_seed(1)
    a, b = (torch.randn(3, 50, generator=generator, dtype=DOUBLE) * 10.0**k for k in (3, -200))
    with tracking():
        product, total = a @ b.T, a.sum(1)
        length = a.norm(dim=1)
    for i in range(3):
        row = [Fraction(x) for x in a[i].tolist()]
        assert abs(Fraction(float(total.value[i])) - sum(row)) <= Fraction(float(total.error[i]))
        square = sum(x * x for x in row)
        low, high = (Fraction(float(length.value[i])) + sign * Fraction(float(length.error[i])) for sign in (-1, 1))
        assert low * low <= square <= high * high
        for j in range(3):
            exact = sum(x * Fraction(y) for x, y in zip(row, b[j].tolist(), strict=True))
            assert abs(Fraction(float(product.value[i, j])) - exact) <= Fraction(float(product.error[i, j]))


def test_an_error_is_never_lost_silently() -> None:
    with tracking():
        made = torch.tensor([0.1], dtype=DOUBLE) * 10.0
    assert isinstance(made, Computed)
    assert isinstance(made[None].T.expand(2, 1).contiguous(), Computed)
    for lose in (float, lambda t: torch.linalg.svd(t[None]), lambda t: t > 1.0):
        with pytest.raises(NumericalFailure):
            lose(made)
    with tracking(), pytest.raises(NumericalFailure):
        torch.fft.rfft(known(made))
    larger, error = outward(made)
    assert error is not None
    assert Fraction(float(larger)) >= Fraction(0.1) * 10 >= Fraction(float(larger)) - Fraction(float(error))


def test_factors_rounded_outward_say_by_how_much() -> None:
    value = torch.tensor([1.0, -1.0, 0.1, 5e-324, 0.3], dtype=DOUBLE)
    own = torch.tensor([1e-16, 1e-3, 0.2, 5e-324, 0.0], dtype=DOUBLE)
    larger, gap = outward(Computed(value, own))
    assert gap is not None
    for i in range(5):
        v, e, w, g = (Fraction(float(each[i])) for each in (value, own, larger, gap))
        assert abs(w) >= abs(v) + e
        assert max(abs(w - v - e), abs(w - v + e)) <= g
    assert (float(larger[4]), float(gap[4])) == (0.3, 0.0)


def test_a_factor_is_its_fraction() -> None:
    half = number(Fraction(1, 2))
    assert type(half) is float
    made = number(third)
    assert isinstance(made, Factor)
    assert (Fraction(made), Fraction(float.__abs__(made)) >= third) == (third, True)
    assert Fraction(-made) == -third
    assert Fraction(float.__neg__(-made)) >= third
    assert made * 3.0 == 1.0 == 3.0 * made
    assert made != float.__abs__(made)
    assert third == made
    assert made + 0.5 == Fraction(5, 6)
    assert (0.5 - made, made - 0.5) == (Fraction(1, 6), Fraction(-1, 6))
    double = float.__abs__(made)
    assert (made == double, made < double, made >= double, made > math.nextafter(double, 0.0)) == (
        False,
        True,
        False,
        True,
    )
    assert pickle.loads(pickle.dumps(made)) == third
    act = derive("third", ((Term("identity", 1.0, made), Term("relu", -0.4)),))
    assert Fraction(act.lipschitz[2]) >= third
    assert Fraction(act.lipschitz[2]) - third < Fraction(1, 2**53)
    smooth = derive("third", ((Term("tanh", made),),))
    assert Fraction(smooth.slopes[0][1]) >= third


@pytest.mark.parametrize("exact", [Fraction(2**1024 - 2**971) + third, Fraction(2) ** 1025, Fraction(-(10**400), 3)])
def test_a_factor_beyond_doubles_is_refused(exact: Fraction) -> None:
    for made in (away, number):
        with pytest.raises(NumericalFailure, match="beyond float64"):
            made(exact)


def test_a_factor_keeps_its_fraction_in_a_file(tmp_path) -> None:
    graph = capture(Written(lambda x: (x / 3).abs() - 0.4 * x), (1,))
    save_graph(graph, tmp_path / "graph.lipbridge")
    found = load_graph(tmp_path / "graph.lipbridge")
    assert [node.activation.components for node in found.nodes[1:]] == [
        n.activation.components for n in graph.nodes[1:]
    ]


def test_constants_that_an_onnx_file_computes_carry_their_error(tmp_path) -> None:
    onnx = pytest.importorskip("onnx")
    from lipbridge_adapters.onnx.reading import read_onnx

    helper = onnx.helper
    one = [helper.make_tensor_value_info(name, 11, [1, 1]) for name in ("x", "y")]

    def written(nodes: list[tuple[str, str, str, str]], **constants: float) -> Graph:
        factors = {"alpha": 0.1}
        initializers = [helper.make_tensor(name, 11, [1, 1], [value]) for name, value in constants.items()]
        made = [helper.make_node(kind, [a, b], [c], **(factors if kind == "Gemm" else {})) for kind, a, b, c in nodes]
        model = helper.make_model(
            helper.make_graph(made, "g", one[:1], one[1:], initializers), opset_imports=[helper.make_opsetid("", 17)]
        )
        onnx.save(model, tmp_path / "model.onnx")
        return read_onnx(tmp_path / "model.onnx")

    cancelled = [("Add", "a", "w", "s"), ("Sub", "s", "a", "d")]
    exact = Fraction(0.1) * 10
    for nodes, constants, right in (
        ([*cancelled, ("MatMul", "x", "d", "y")], {"a": 1e16, "w": 1.0}, Fraction(1)),
        ([*cancelled, ("Mul", "x", "d", "y")], {"a": 1e16, "w": 1.0}, Fraction(1)),
        ([("MatMul", "a", "w", "d"), ("MatMul", "x", "d", "y")], {"a": 0.1, "w": 10.0}, exact),
        # attributes are float32
        *(([("Gemm", "x", "w", "y")], {"w": w}, Fraction(float(torch.tensor(0.1))) * Fraction(w)) for w in (0.1, 0.7)),
        ([("Mul", "a", "w", "d"), ("Mul", "x", "d", "y")], {"a": 0.1, "w": 10.0}, exact),
        (
            [("Div", "x", "a", "d"), ("Mul", "x", "w", "e"), ("Sub", "e", "d", "y")],
            {"a": 3.0, "w": 0.4},
            Fraction(0.4) - third,
        ),
    ):
        assert Fraction(trivial_bound(written(nodes, **constants)).value) >= right, nodes


def test_slopes_of_two_sides_are_exact() -> None:
    """Two slopes that are one but for a rounding: the join of the sides is not the identity's."""
    sides = ((Term("relu", 0.1, 10.0),), (Term("relu", 0.1, -10.0),))
    W = torch.tensor([[1.0, -1.0]], dtype=DOUBLE)
    nodes = (Input("input", (), (1,)), Elementwise("sides", (0,), (2,), derive("sides", sides)))
    graph = Graph((*nodes, Dense("join", (1,), (1,), W)))
    for norm in (1, 2, "inf"):
        assert Fraction(trivial_bound(graph, norm).value) >= Fraction(0.1) * 10


@pytest.mark.parametrize("divided", [False, True])
def test_gelu_with_a_computed_root_in_an_onnx_file(divided: bool, tmp_path) -> None:
    """0.5 t (1 + tanh(sqrt(2 / pi) (t + 0.044715 t^3))), with the root as an operator, or over its inverse."""
    onnx = pytest.importorskip("onnx")
    from lipbridge_adapters.onnx.reading import read_onnx

    helper = onnx.helper
    numbers = {"a": math.pi / 2 if divided else 2 / math.pi, "k": 0.044715, "three": 3.0, "one": 1.0, "half": 0.5}
    nodes = [
        ("Sqrt", ["a"], "s"), ("Pow", ["x", "three"], "p"), ("Mul", ["k", "p"], "q"), ("Add", ["x", "q"], "r"),
        ("Div", ["r", "s"], "t") if divided else ("Mul", ["s", "r"], "t"),
        ("Tanh", ["t"], "u"), ("Add", ["u", "one"], "v"), ("Mul", ["x", "half"], "w"), ("Mul", ["w", "v"], "y"),
    ]  # fmt: skip
    ends = [[helper.make_tensor_value_info(name, 11, [1, 3])] for name in ("x", "y")]
    stored = [helper.make_tensor(name, 11, [], [value]) for name, value in numbers.items()]
    made = [helper.make_node(kind, inputs, [output]) for kind, inputs, output in nodes]
    graph = helper.make_graph(made, "g", *ends, stored)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)]), tmp_path / "gelu.onnx")
    assert 1.12899 <= trivial_bound(read_onnx(tmp_path / "gelu.onnx")).value <= 1.129


def test_the_factor_of_a_gate_that_is_divided_is_no_smaller() -> None:
    def gate(x: Tensor) -> Tensor:
        return (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x.pow(3)))) / 3 * x

    (node,) = (node for node in capture(Written(gate), (3,)) if isinstance(node, Elementwise))
    ((term,),) = node.activation.components
    assert term.function == "gelu_tanh"
    assert Fraction(term.coefficient) * Fraction(term.scale) >= Fraction(2, 3)


# --- who reads a weight that is known up to an error -----------------------------------------------------------------


def uncertain_graph() -> Graph:
    W, error = torch.tensor([[2.0, -1.0]], dtype=DOUBLE), torch.tensor([[0.5, 0.25]], dtype=DOUBLE)
    layer = Dense("layer", (0,), (1,), W, torch.tensor([1.0], dtype=DOUBLE), None, False, error, error[:, 1])
    return Graph((Input("input", (), (2,)), layer))


def test_errors_of_weights_reach_bounds_intervals_and_chains(tmp_path) -> None:
    graph = uncertain_graph()
    assert trivial_bound(graph, norm="inf").value >= 3.75
    x = torch.tensor([[1.0, -2.0]], dtype=DOUBLE)
    assert float(enclose(graph, x).error) >= 0.5 + 0.5 + 0.25
    found = forward_bounds(graph, Ball(x, 1.0, "inf"))[-1]
    assert float(found.upper) >= 2.5 * 2.0 + 1.25 * 3.0 + 1.25
    assert float(found.lower) <= 0.0 + 0.75 * 1.0 + 0.75
    chain = as_chain(graph, rounded=True)
    assert chain.layers[0].bias is None
    assert torch.equal(chain.errors[0], graph.nodes[1].error)
    with pytest.raises(LipbridgeError):
        as_chain(graph)
    save_graph(graph, tmp_path / "graph.lipbridge")
    again = load_graph(tmp_path / "graph.lipbridge")
    assert trivial_bound(again, norm="inf").value == trivial_bound(graph, norm="inf").value


OWN = ["trivial", "eclipse-fast", "lipsdp-fast", "eclipse", "lipsdp", "lipsdp-chordal", "lipsdp-layer"]


def positive_graph(kind: str, seed: int) -> tuple[Graph, float]:
    """Two layers of positive weights and a ReLU, and the constant in l_2 with all weights at the end of their error."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        return torch.rand(*shape, generator=generator, dtype=DOUBLE) + 0.01

    if kind == "dense":
        (V, d), (W, e) = ((draw(5, 3), draw(5, 3)), (draw(2, 5), draw(2, 5)))
        first = Dense("first", (0,), (5,), V, None, None, False, d)
        middle: list[Node] = [Elementwise("relu", (1,), (5,), activation("relu"))]
        last: Node = Dense("last", (2,), (2,), W, None, None, False, e)
        exact = float(torch.linalg.matrix_norm((W + e) @ (V + d), 2))
        return Graph((Input("input", (), (3,)), first, *middle, last)), exact
    # circular: one frequency, zero, has the largest gain, that of the sums over the taps
    V, d, W, e, s, t = draw(3, 1, 3), draw(3, 1, 3), draw(2, 3, 3), draw(2, 3, 3), draw(3, 1, 1), draw(3, 1, 1)
    geometry = {"stride": (1,), "padding": ((1, 1),), "dilation": (1,), "padding_mode": "circular"}
    nodes: list[Node] = [Input("input", (), (1, 6)), Conv("first", (0,), (3, 6), V, None, **geometry, error=d)]
    if kind == "scaled":
        own = {"stride": (1,), "padding": ((0, 0),), "dilation": (1,), "groups": 3, "error": t}
        nodes.append(Conv("scale", (1,), (3, 6), s, None, **own, outward=seed % 2 == 0))
    factor = s.flatten() + (0.0 if seed % 2 == 0 else 1.0) * t.flatten() if kind == "scaled" else torch.ones(3)
    nodes.append(Elementwise("relu", (len(nodes) - 1,), (3, 6), activation("relu")))
    nodes.append(Conv("last", (len(nodes) - 1,), (2, 6), W, None, **geometry, error=e))
    exact = float(torch.linalg.matrix_norm((W + e).sum(2) @ (factor[:, None] * (V + d).sum(2)), 2))
    return Graph(tuple(nodes)), exact


@pytest.mark.parametrize("kind", ["dense", "circular", "scaled"])
@pytest.mark.parametrize("seed", range(4))
def test_every_verifier_counts_the_errors_of_weights(kind: str, seed: int) -> None:
    graph, exact = positive_graph(kind, seed)
    for name in OWN:
        found = get_verifier(name).prepare(Problem(graph, Question.everywhere(2))).bound(Budget(seconds=20.0))
        assert found.value >= exact * (1.0 - 1e-12), name
        assert found.value <= 8.0 * exact, name


def at_the_end_of_its_error(layer: Layer, scale: Tensor) -> Tensor:
    """The weight of a layer whose entries are positive, where both errors are as large as they may be."""
    W = layer.node.weight + layer.node.error
    return W if layer.scale is None else W * scale.reshape(-1, *[1] * (W.ndim - 1))


@pytest.mark.parametrize("kind", ["dense", "circular", "scaled"])
@pytest.mark.parametrize("seed", range(2))
def test_layers_and_runs_of_a_chain_count_the_errors_of_weights(kind: str, seed: int) -> None:
    graph, exact = positive_graph(kind, seed)
    chain = channel_chain(graph)
    # a scale that may be larger than it is stored is a layer of its own
    assert len(chain.layers) == (3 if kind == "scaled" and seed % 2 else 2)
    for layer in chain.layers:
        if layer.scale is not None:
            stored, lost = layer.scale, layer.scale_error
            for scale in (stored, stored - lost):
                moved = at_the_end_of_its_error(layer, scale) - layer.weight()
                assert bool((moved.abs() <= layer.error).all())
            low = (layer.node.weight - layer.node.error) * (stored - lost)[:, None, None]
            assert bool(((low - layer.weight()).abs() <= layer.error).all())
    bounds = [proved_product(chain, ones(chain)), proved_product(chain, best_factors(chain))]
    bounds.append(bound_by_channels(Problem(graph, Question.everywhere(2)), time.perf_counter() + 20.0).value)
    assert min(bounds) >= exact * (1.0 - 1e-12)
    for run in runs_of(chain):
        for block, layer in zip(run.blocks, chain.layers[run.first :], strict=False):
            own = layer.error if layer.node.weight.ndim == 2 else layer.error.sum(2)  # at frequency zero
            own = own[:, : block.magnitude.shape[1]] * 2.0**-block.exponent
            assert bool((own <= block.error * block.magnitude).all())


def test_the_proof_of_a_run_counts_the_errors_of_weights() -> None:
    """With a line between the layers nothing else is lost: there are no multipliers, which would leave room."""
    line = derive("line", ((Term("identity", 1.0),),))
    for kind in ("dense", "circular", "scaled"):
        graph, exact = positive_graph(kind, 0)
        nodes = [replace(node, activation=line) if isinstance(node, Elementwise) else node for node in graph.nodes]
        run = channel_runs._formed(channel_chain(Graph(tuple(nodes))), 0, 1)
        assert prove_run(run, [torch.zeros(0, run.units[0], dtype=DOUBLE)], None, None) >= exact, kind


def test_errors_of_images_reach_intervals() -> None:
    """The scale of a BatchNorm on images of two channels is computed: the intervals on a ball count it."""
    torch.manual_seed(0)
    module = nn.Sequential(nn.BatchNorm1d(2), nn.ReLU(), nn.Flatten(), nn.Linear(6, 1)).double().eval()
    graph = capture(module, (2, 3))
    x = torch.randn(2, 2, 3, dtype=DOUBLE)
    inside = x + 0.05 * torch.rand(2, 2, 3, dtype=DOUBLE)
    found = forward_bounds(graph, Ball(x, 0.1, "inf"))
    assert found[1].lower.shape == (2, 2, 3)
    assert bool(((found[-1].lower <= graph(inside)) & (graph(inside) <= found[-1].upper)).all())
