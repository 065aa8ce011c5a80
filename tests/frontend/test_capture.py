"""Capture: the Graph evaluates to the module's output, and what is not understood is an error with the layer's name."""

from __future__ import annotations

import copy
import math
from collections import OrderedDict
from fractions import Fraction

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm, weight_norm

import lipbridge
from lipbridge.activations.registry import activation_names
from lipbridge.errors import InvalidArgument, UnsupportedOperation
from lipbridge.graph.graph import Graph
from lipbridge.graph.nodes import Dense, Elementwise


def check(module: nn.Module, shape: tuple[int, ...], input_shape: tuple[int, ...] | None = None) -> Graph:
    """Capture, and compare with the module in float64 on random inputs."""
    graph = lipbridge.capture(module, input_shape)
    x = torch.randn(9, *shape, dtype=torch.float64)
    expected = copy.deepcopy(module).double().eval()(x)
    torch.testing.assert_close(graph(x), expected, rtol=1e-6, atol=1e-6)
    assert graph.input_shape == shape
    return graph


def activations(graph: Graph) -> list[str]:
    return [node.activation.name for node in graph if isinstance(node, Elementwise)]


class Function(nn.Module):
    """Two dense layers with a function written by hand between them."""

    def __init__(self, function, factor: int = 1) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(4, 5), nn.Linear(5 * factor, 3)
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.function(self.first(x)))


@pytest.mark.parametrize("name", activation_names())
@pytest.mark.parametrize("bias", [True, False])
def test_every_activation_module_is_recognised(name: str, bias: bool) -> None:
    assert activations(check(lipbridge.mlp([4, 5, 6, 3], name, bias=bias), (4,))) == [name, name]


@pytest.mark.parametrize(
    ("function", "name", "factor"),
    [
        (lambda z: torch.cat([z.relu(), (-z).relu()], -1), "crelu", 2),
        (lambda z: torch.cat((torch.relu(z), nn.functional.relu(z.neg())), dim=1), "crelu", 2),
        (lambda z: torch.cat([torch.sin(z), torch.cos(z)], -1), "sincos", 2),
        (lambda z: torch.cat([z, z.abs()], -1), "identity_abs", 2),
        (lambda z: torch.cat([z, z.abs()], -1) * 0.7071067811865475, "identity_abs_l2", 2),
        (lambda z: torch.cat([z * 0.7071067811865475, (z * 0.7071067811865475).abs()], -1), "identity_abs_l2", 2),
        (lambda z: torch.cat([(z + z.sin() ** 2) / 2, (z - z.sin().square()) / 2], -1), "sin2_pair", 2),
        (
            lambda z: torch.cat([0.5 * (z + torch.sin(z) * torch.sin(z)), 0.5 * z - z.sin().pow(2) * 0.5], -1),
            "sin2_pair",
            2,
        ),
        (torch.abs, "abs", 1),
        (lambda z: -(-z).relu() + z.relu() - z, "t", 1),
        (lambda z: z.relu() + (-z).relu(), "relu(-1 t) + relu(t)", 1),
        (lambda z: torch.cat([z.relu(), z.tanh()], -1), "joint(relu(t), tanh(t))", 2),
        (lambda z: nn.functional.leaky_relu(z, 0.2), "leaky_relu", 1),
        (lambda z: nn.functional.softplus(z, beta=2.0), "softplus", 1),
        (lambda z: nn.functional.elu(z, 0.5), "elu", 1),
        (lambda z: nn.functional.gelu(z), "gelu", 1),
        (lambda z: (2 * z + 1).sin(), "sin(2 t + 1)", 1),
        (lambda z: 1 - z.relu(), "1 + -1 relu(t)", 1),
    ],
)
def test_functions_written_by_hand(function, name: str, factor: int) -> None:
    graph = check(Function(function, factor), (4,))
    found = activations(graph)
    if name != "t":  # cancels to 0 t exactly or is spelt as such: only the values matter
        assert found == [name]


def test_a_division_by_no_power_of_two_is_rounded_away_from_zero() -> None:
    """1 / sqrt(2) as float64 has it is another number than the registry's, and its function another by an ulp."""
    graph = check(Function(lambda z: torch.cat([z, z.abs()], -1) / math.sqrt(2), 2), (4,))
    (row,) = [node.activation for node in graph if isinstance(node, Elementwise)]
    exact = Fraction(1) / Fraction(math.sqrt(2))
    assert 2 * exact**2 <= Fraction(row.lipschitz[2]) ** 2 <= (1 + Fraction(1, 2**49)) ** 2


def test_joint_facts_of_hand_written_curves_are_used() -> None:
    module = Function(lambda z: torch.cat([z.relu(), (-z).relu()], -1), 2)
    graph = lipbridge.capture(module)
    dense = [lipbridge.proved_operator_norm(node.weight) for node in graph if isinstance(node, Dense)]
    assert lipbridge.trivial_bound(graph).value == pytest.approx(math.prod(dense), rel=1e-12)


def test_nested_functions_become_two_nodes() -> None:
    graph = check(Function(lambda z: torch.relu(torch.tanh(z))), (4,))
    assert activations(graph) == ["tanh", "relu"]


def test_a_value_used_twice_is_one_node() -> None:
    graph = check(Function(lambda z: torch.cat([z.relu().sin(), z.relu()], -1), 2), (4,))
    assert activations(graph) == ["relu", "joint(sin(t), t)"]


def test_scaling_and_shifting_the_input_counts() -> None:
    class Normalised(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = lipbridge.mlp([4, 5, 3], "relu")

        def forward(self, x: Tensor) -> Tensor:
            return self.net((x - 0.1307) / 0.3081) * 2

    module = Normalised()
    check(module, (4,))
    ratio = lipbridge.trivial_bound(module).value / lipbridge.trivial_bound(module.net).value
    assert ratio == pytest.approx(2 / 0.3081, rel=1e-12)


def test_flatten_dropout_identity_and_nesting() -> None:
    module = nn.Sequential(
        OrderedDict(
            flat=nn.Flatten(),
            body=nn.Sequential(nn.Linear(12, 6), nn.ReLU(inplace=True), nn.Dropout(0.5), nn.Identity()),
            head=nn.Linear(6, 2),
        )
    ).train()
    graph = check(module, (3, 4), (3, 4))
    assert [node.name for node in graph if isinstance(node, Dense)] == ["body.0", "head"]
    assert module.training
    assert module.body[2].training  # capture leaves the mode as it was


def test_in_place_operations_are_not_missed() -> None:
    class InPlace(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(4, 5), nn.Linear(5, 3)

        def forward(self, x: Tensor) -> Tensor:
            z = self.a(x)
            z.relu_()
            return self.b(z + z.sin())

    check(InPlace(), (4,))


@pytest.mark.parametrize("wrap", [spectral_norm, weight_norm])
def test_parametrised_and_shared_layers(wrap) -> None:
    layer = wrap(nn.Linear(4, 4))
    graph = check(nn.Sequential(layer, nn.Tanh(), layer, nn.Tanh(), nn.Linear(4, 2)), (4,))
    assert len([node for node in graph if isinstance(node, Dense)]) == 3


def test_matrix_products_and_where_the_weight_lives() -> None:
    class Products(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Parameter(torch.randn(4, 5)), nn.Parameter(torch.randn(3, 5))
            self.c = nn.Parameter(torch.randn(3))

        def forward(self, x: Tensor) -> Tensor:
            return torch.addmm(self.c, (x @ self.a).abs(), self.b.T)

    graph = check(Products(), (4,), (4,))
    dense = [node for node in graph if isinstance(node, Dense)]
    assert [(node.parameter, node.transposed) for node in dense] == [("a", True), ("b", False)]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_weights_of_any_precision_are_read_exactly(dtype: torch.dtype) -> None:
    module = lipbridge.mlp([4, 5, 3], "relu").to(dtype)
    first = next(node for node in lipbridge.capture(module) if isinstance(node, Dense))
    assert torch.equal(first.weight, module[0].weight.detach().double())


def test_sinusoidal_layer() -> None:
    module = nn.Sequential(lipbridge.Sinusoidal(4, 6), nn.Linear(12, 3, bias=False))
    graph = check(module, (4,), (4,))
    assert activations(graph) == ["sincos"]
    W = module[0].weight.detach()
    assert lipbridge.trivial_bound(graph).value == pytest.approx(
        float(torch.linalg.matrix_norm(W.double(), 2) * torch.linalg.matrix_norm(module[1].weight.detach().double(), 2))
    )


class Two(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.block = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return x, self.block(x)


class DataDependent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.block = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.block(x) if x.sum() > 0 else x


@pytest.mark.parametrize(
    ("module", "words"),
    [
        (nn.Sequential(nn.Linear(4, 4), nn.Softmax(0)), "`1`: operation softmax.*batch"),
        (nn.Sequential(OrderedDict(a=nn.Linear(4, 4), norm=nn.CELU(-1.0))), "`norm`: operation celu"),
        (nn.Sequential(nn.Linear(4, 4), nn.Hardshrink()), "`1`: operation hardshrink"),
        (Two(), "one tensor as output"),
        (DataDependent(), "torch.export"),
        (Function(lambda z: z * z), "Lipschitz"),
        (Function(lambda z: z**3), "Lipschitz"),
        (Function(lambda z: z * z.sin()), "Lipschitz"),
        (Function(lambda z: z - z.mean(0)), "operation mean"),
        (Function(lambda z: z.T.reshape(2, 5)), "operation"),
        (nn.Linear(4, 4).train(), ""),
    ],
)
def test_what_is_not_supported_is_named(module: nn.Module, words: str) -> None:
    if not words:
        assert lipbridge.capture(module).output_shape == (4,)
        return
    with pytest.raises(UnsupportedOperation, match=words) as error:
        lipbridge.capture(module)
    assert "\n" not in str(error.value)


def test_the_shape_of_an_image_must_be_given() -> None:
    with pytest.raises(InvalidArgument, match="input_shape"):
        lipbridge.capture(nn.Sequential(nn.Conv2d(1, 2, 3)))


def test_a_function_that_mixes_the_batch_is_refused() -> None:
    class Mixes(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.block = nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            return self.block(x).reshape(-1, 2)

    with pytest.raises(UnsupportedOperation, match="mixes the batch"):
        lipbridge.capture(Mixes())
