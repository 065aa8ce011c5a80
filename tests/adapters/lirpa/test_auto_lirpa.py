"""The auto_LiRPA adapter: sound against sampled and ascended points, equal to the Graph, honest about its limits."""

from __future__ import annotations

import importlib
import logging
import math
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lipbridge import Ball, Budget, Problem, Question, activation, activation_names, capture, mlp
from lipbridge.errors import InvalidArgument, LipbridgeError, UnsupportedProblem
from lipbridge.graph.graph import Graph
from lipbridge.graph.nodes import Add, Concat, Dense, Elementwise, GroupSort, Input, MaxPool, Node, Normalize, Reshape
from lipbridge.linalg import vector_norm
from lipbridge.propagation.bounds import forward_bounds
from lipbridge.verifiers import Verifier
from lipbridge.vocabulary import Norm, Quantity, Status
from lipbridge_adapters.lirpa import shim
from lipbridge_adapters.lirpa.auto_lirpa import AutoLirpaVerifier
from lipbridge_adapters.lirpa.network import METHODS, Method, Network
from lipbridge_adapters.lirpa.runner import SOUND_OPTIONS
from tests.adapters.lirpa import jacobian_networks
from tests.support.chains import act, chain, conv, flattened, normal
from tests.support.dags import MODES
from tests.support.refusals import refused

if find_spec("auto_LiRPA") is None:
    pytest.skip("auto_LiRPA is missing: pip install --no-deps auto-LiRPA==0.3", allow_module_level=True)

VERIFIER = AutoLirpaVerifier()
BALLS: tuple[Norm, ...] = (2, "inf")
REFUSED = {"gelu", "gelu_tanh", "mish", "hardswish", "celu", "softsign", "atan"}
SUPPORTED = [name for name in activation_names() if name not in REFUSED]
PLAIN: tuple[Method, ...] = ("IBP", "CROWN-IBP", "CROWN")
CASES = [(name, method) for name, method in product(SUPPORTED, PLAIN) if name != "softplus" or method == "IBP"]


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def network(name: str, seed: int, widths: tuple[int, ...] = (4, 6, 5, 3), gain: float = 1.5) -> Graph:
    """A random chain with biases, its weights large enough that pre-activations change sign and phase."""
    torch.manual_seed(seed)
    module = mlp(widths, name).double()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.mul_(gain)
    return capture(module)


def branched(name: str, seed: int) -> Graph:
    """Every node type: an activation and a skip connection right at the input, Concat, Add, Reshape."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    g = activation(name)
    k = g.width
    nodes: list[Node] = [
        Input("x", (), (2, 2)),
        Reshape("flat", (0,), (4,)),
        Elementwise("g0", (1,), (4 * k,), g),
        Dense("d1", (2,), (4,), normal(4, 4 * k), normal(4)),
        Add("skip", (1, 3), (4,)),
        Elementwise("g1", (4,), (4 * k,), g),
        Concat("cat", (5, 1), (4 * k + 4,)),
        Dense("out", (6,), (3,), normal(3, 4 * k + 4)),
    ]
    return Graph(tuple(nodes))


def deviation(graph: Graph, centers: Tensor, radius: float, norm: Norm) -> Problem:
    return Problem(graph, Question.on(Ball(centers, radius, norm), norm, quantity=Quantity.DEVIATION))


def certify(graph: Graph, inputs: Tensor, labels: Tensor, radius: float, norm: Norm, budget: Budget) -> Tensor:
    """By the task of any ball of that norm."""
    problem = deviation(graph, torch.zeros(1, *graph.input_shape), 0.1, norm)
    return VERIFIER.prepare(problem).certify(inputs, labels, radius, budget)


def bounded(problem: Problem, method: str, **limits: Any) -> Any:
    return VERIFIER.prepare(problem).bound(Budget(options={"method": method, "iterations": 5}, **limits))


def project(step: Tensor, radius: float, norm: Norm) -> Tensor:
    if norm == "inf":
        return step.clamp(-radius, radius)
    length = vector_norm(step.flatten(1), 2, dim=1).reshape(-1, *[1] * (step.ndim - 1))
    return step * (radius / length.clamp(min=radius))


def ascended(graph: Graph, center: Tensor, radius: float, norm: Norm, gain: Any, seed: int) -> Tensor:
    """Points of the ball: uniform ones pushed to the sphere, then projected gradient ascent of ``gain(f(x), f(c))``."""
    generator = torch.Generator().manual_seed(seed)
    step = torch.randn(64, *center.shape, generator=generator, dtype=torch.float64)
    step = project(step * (radius * 3), radius, norm)
    for _ in range(12):
        step = step.detach().requires_grad_()
        (slope,) = torch.autograd.grad(gain(graph(center + step), graph(center.unsqueeze(0))).sum(), step)
        size = slope.abs() if norm == "inf" else vector_norm(slope.flatten(1), 2, dim=1).view(-1, *[1] * center.ndim)
        step = project(step + 0.3 * radius * slope / size.clamp(min=1e-300), radius, norm)
    return center + step.detach()


def moved(values: Tensor, value: Tensor, norm: Norm) -> Tensor:
    return vector_norm(values - value, norm, dim=-1)


def assert_sound(graph: Graph, method: str, norm: Norm, radius: float, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    centers = 2 * torch.randn(2, *graph.input_shape, generator=generator, dtype=torch.float64)
    bound = bounded(deviation(graph, centers, radius, norm), method)
    assert bound.status is Status.OK, bound.detail
    assert not bound.proved
    for center, value in zip(centers, bound.extra["values"][method], strict=True):
        points = ascended(graph, center, radius, norm, lambda y, y0: moved(y, y0, norm), seed)
        reached = moved(graph(points), graph(center.unsqueeze(0)), norm).max().item()
        assert reached <= value * radius, f"reached {reached}, bound {value * radius}"
    assert bound.value == max(bound.extra["values"][method])


# --- soundness -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("norm", BALLS)
@pytest.mark.parametrize(("name", "method"), CASES)
def test_no_point_of_the_ball_exceeds_the_bound(name: str, method: str, norm: Norm) -> None:
    for seed, radius in enumerate((0.05, 0.8)):
        assert_sound(network(name, seed), method, norm, radius, seed)
    assert_sound(branched(name, 7), method, norm, 0.4, 7)


@pytest.mark.parametrize("norm", BALLS)
@pytest.mark.parametrize("name", ["abs", "crelu", "tanh", "silu", "elu"])
def test_optimised_slopes_stay_sound(name: str, norm: Norm) -> None:
    assert_sound(branched(name, 4), "alpha-CROWN", norm, 0.3, 4)


@pytest.mark.parametrize("method", METHODS)
def test_affine_network_is_exact(method: Method) -> None:
    torch.manual_seed(0)
    graph = capture(nn.Sequential(nn.Linear(5, 4), nn.Linear(4, 3)).double())
    weight = graph(torch.eye(5, dtype=torch.float64)).T - graph(torch.zeros(1, 5, dtype=torch.float64)).T
    centers = torch.randn(3, 5, dtype=torch.float64)
    rows = bounded(deviation(graph, centers, 0.1, "inf"), method)
    assert rows.value == pytest.approx(weight.abs().sum(1).max().item(), rel=1e-9)
    columns = bounded(deviation(graph, centers, 0.1, 2), method)
    assert columns.value == pytest.approx(weight.norm().item(), rel=1e-9)


class _Pair(nn.Module):
    """relu z and relu -z, or |z|, of one pre-activation, as anybody would write them."""

    def __init__(self, seed: int, kind: str) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.kind = kind
        factor = 1 if kind == "abs" else 2
        self.layers = nn.ModuleList([nn.Linear(5, 8), nn.Linear(8 * factor, 8), nn.Linear(8 * factor, 3)])

    def forward(self, x: Tensor) -> Tensor:
        for i, layer in enumerate(self.layers):
            if i:
                x = x.relu() + (-x).relu() if self.kind == "abs" else torch.cat([x.relu(), (-x).relu()], -1)
            x = layer(x)
        return x


def raw_violations(options: dict[str, object]) -> int:
    """In how many random nets the tool's own CROWN bounds, with these options, are exceeded by a sampled point."""
    tool = shim.load()
    found = 0
    for seed, kind in product(range(12), ("crelu", "abs")):
        module = _Pair(seed, kind).double()
        center = torch.randn(1, 5, dtype=torch.float64)
        with shim.session():
            model = tool.BoundedModule(module, center, bound_opts=dict(options), device="cpu")
            ball = tool.PerturbationLpNorm(norm=math.inf, eps=0.3)
            low, high = model.compute_bounds(x=(tool.BoundedTensor(center, ball),), method="CROWN")
        points = center + 0.3 * (2 * torch.rand(4000, 5, dtype=torch.float64) - 1)
        points = torch.cat([points, center + 0.3 * (points - center).sign()])
        with torch.no_grad():
            y = module(points)
        found += bool((y > high + 1e-9).any() or (y < low - 1e-9).any())
    return found


def test_what_makes_release_03_sound(monkeypatch: pytest.MonkeyPatch) -> None:
    assert raw_violations({}) == 0
    assert raw_violations(SOUND_OPTIONS) == 0
    if shim.version(shim.load()) < (0, 4):
        own = importlib.import_module("auto_LiRPA.interval_bound").check_IBP_intermediate
        monkeypatch.setattr(shim, "_intervals_from_below", own)
        assert raw_violations({}) > 0  # why the shim replaces it
        monkeypatch.undo()
        shim.load()


def test_every_model_gets_the_sound_options(monkeypatch: pytest.MonkeyPatch) -> None:
    tool, seen = shim.load(), list[dict[str, object]]()

    class Spy(tool.BoundedModule):  # type: ignore[misc, name-defined]
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            seen.append(kwargs)
            super().__init__(*args, **kwargs)

    monkeypatch.setattr(tool, "BoundedModule", Spy)
    graph = network("abs", 0)
    assert bounded(deviation(graph, torch.zeros(1, 4), 0.1, 2), "CROWN").status is Status.OK
    certify(graph, torch.zeros(1, 4), graph(torch.zeros(1, 4).double()).argmax(-1), 0.1, 2, Budget())
    assert len(seen) == 2
    for kwargs in seen:
        options = kwargs["bound_opts"]
        assert isinstance(options, dict)
        assert SOUND_OPTIONS.items() <= options.items()
        assert {"onnx::Sin", "onnx::Cos"} <= set(kwargs["custom_ops"])


def test_line_above_sine_holds_and_is_tight() -> None:
    generator = torch.Generator().manual_seed(0)
    for width in (0.0, 1e-9, 1e-4, 0.1, 1.0, 3.0, 6.0, 40.0):
        low = 20 * torch.randn(500, generator=generator, dtype=torch.float64)
        high = low + width * torch.rand(500, generator=generator, dtype=torch.float64)
        k, b = shim.upper_line(low, high)
        t = low + (high - low) * torch.linspace(0, 1, 301, dtype=torch.float64).unsqueeze(1)
        gap = k * t + b - t.sin()
        assert gap.min() >= -1e-13
        assert gap.min(0).values.max() <= 3e-3 * min(width, 1.0) ** 2 + 1e-13  # it touches, up to the grid


# --- the lowered network ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", SUPPORTED)
def test_lowered_network_is_the_graph(name: str, method: Method) -> None:
    if name == "softplus" and method != "IBP":
        pytest.skip("softplus is bounded by IBP only")
    for graph in (network(name, 1), branched(name, 2)):
        x = 3 * torch.randn(50, *graph.input_shape, dtype=torch.float64)
        with torch.no_grad():
            torch.testing.assert_close(Network(graph, method)(x.flatten(1)), graph(x), rtol=0, atol=1e-9)


def test_only_affine_forms_read_the_input() -> None:
    lowered = Network(branched("abs", 0), "CROWN")
    assert all(getattr(step, "source", 1) != 0 for step in lowered.steps)


def test_abs_by_relu_is_tighter_than_the_native_one() -> None:
    graph, center = network("abs", 5), torch.ones(1, 4, dtype=torch.float64)
    ours = bounded(deviation(graph, center, 0.5, "inf"), "CROWN").value
    assert ours < bounded(deviation(graph, center, 0.5, "inf"), "IBP").value


# --- certified predictions -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("norm", BALLS)
@pytest.mark.parametrize(("name", "method"), [("abs", "CROWN"), ("crelu", "IBP"), ("sincos", "CROWN"), ("tanh", "IBP")])
def test_no_certified_prediction_is_overturned(name: str, method: str, norm: Norm) -> None:
    graph = network(name, 11)
    x = torch.randn(20, 4, dtype=torch.float64)
    labels = graph(x).argmax(-1)
    labels[0] = (labels[0] + 1) % 3
    counts: list[int] = []
    for radius in (1e-6, 0.05, 0.2, 0.8):
        certified = certify(graph, x, labels, radius, norm, Budget(options={"method": method}))
        assert certified.dtype == torch.bool
        assert not certified[0]
        counts.append(int(certified.sum()))
        for i in certified.nonzero().flatten().tolist():
            rivals = torch.arange(3) != labels[i]
            points = ascended(
                graph, x[i], radius, norm, lambda y, _, r=rivals, k=labels[i]: y[:, r].amax(1) - y[:, k], i
            )
            assert bool((graph(points).argmax(-1) == labels[i]).all())
    assert counts == sorted(counts, reverse=True)
    assert counts[0] == 19
    assert counts[-1] < counts[0]


def test_certify_of_float32_images_keeps_their_shape() -> None:
    graph = branched("relu", 3)
    x = torch.randn(5, 2, 2)
    labels = graph(x.double()).argmax(-1)
    assert certify(graph, x, labels, 1e-7, "inf", Budget()).all()


def test_certify_stops_in_time_and_certifies_nothing_unseen() -> None:
    graph = network("abs", 0)
    x = torch.randn(50, 4, dtype=torch.float64)
    certified = certify(graph, x, graph(x).argmax(-1), 1e-6, 2, Budget(seconds=1e-9))
    assert certified.sum() <= 1


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"radius": 0.0}, "radius"),
        ({"radius": math.nan}, "radius"),
        ({"labels": torch.tensor([0, 3])}, "labels"),
        ({"labels": torch.tensor([0])}, "labels"),
        ({"inputs": torch.zeros(2, 5)}, "inputs"),
        ({"budget": Budget(options={"method": "beta-CROWN"})}, "method"),
    ],
)
def test_certify_refuses_bad_arguments(change: dict[str, Any], word: str) -> None:
    given: dict[str, Any] = {
        "graph": network("abs", 0),
        "inputs": torch.zeros(2, 4),
        "labels": torch.tensor([0, 1]),
        "radius": 0.1,
        "norm": 2,
        "budget": Budget(),
    }
    with pytest.raises(InvalidArgument, match=f"`{word}`"):
        certify(**{**given, **change})


# --- what it says of itself ------------------------------------------------------------------------------------------


def test_it_is_a_verifier_and_a_certifier() -> None:
    assert isinstance(VERIFIER, Verifier)
    assert VERIFIER.certifies
    assert VERIFIER.requires == ("auto_LiRPA",)


@pytest.mark.parametrize("name", activation_names())
def test_every_registered_activation_is_taken_or_refused_by_name(name: str) -> None:
    reason = refused(VERIFIER, deviation(network(name, 0), torch.zeros(1, 4), 0.1, 2))
    assert (reason is None) == (name in SUPPORTED)
    assert reason is None or name in reason


def test_reasons() -> None:
    graph, x = network("abs", 0), torch.zeros(1, 4)
    assert "Lipschitz" in (refused(VERIFIER, Problem(graph, Question.everywhere(2))) or "")
    assert "l1" in (refused(VERIFIER, deviation(graph, x, 0.1, 1)) or "")
    mixed = Problem(graph, Question.on(Ball(x, 0.1, 2), 2, "inf", quantity=Quantity.DEVIATION))
    assert "2->inf" in (refused(VERIFIER, mixed) or "")
    rows = Graph((Input("x", (), (2, 3)), Dense("rows", (0,), (2, 1), torch.ones(1, 3).double())))
    assert "output" in (refused(VERIFIER, deviation(rows, torch.zeros(1, 2, 3), 0.1, 2)) or "")
    with pytest.raises(UnsupportedProblem, match="Lipschitz"):
        VERIFIER.prepare(Problem(graph, Question.everywhere(2))).bound(Budget())


def test_softplus_falls_back_to_intervals_unless_lines_are_asked_for() -> None:
    problem = deviation(network("softplus", 0), torch.zeros(1, 4), 0.1, 2)
    assert VERIFIER.prepare(problem).bound(Budget()).method == "auto_LiRPA IBP"
    asked = bounded(problem, "CROWN")
    assert (asked.status, asked.detail) == (Status.UNSUPPORTED, "softplus is bounded by IBP only")


def test_large_inputs_of_tanh_are_refused_where_the_tool_is_wrong() -> None:
    problem = deviation(network("tanh", 0, gain=200.0), 10 * torch.ones(1, 4), 5.0, "inf")
    old = shim.version(shim.load()) < (0, 4)
    assert bounded(problem, "CROWN").status is (Status.UNSUPPORTED if old else Status.OK)
    assert bounded(problem, "IBP").status is Status.OK


def test_timeout_says_what_was_done() -> None:
    bound = bounded(deviation(network("abs", 0), torch.zeros(9, 4), 0.1, 2), "CROWN", seconds=1e-9)
    assert bound.status is Status.TIMEOUT
    assert math.isnan(bound.value)
    assert bound.extra["centers_done"] == 1
    assert bound.detail.startswith("1 of 9 balls")


def test_memory_limit_is_a_status() -> None:
    bound = bounded(deviation(network("abs", 0), torch.zeros(1, 4), 0.1, 2), "CROWN", memory=1000)
    assert bound.status is Status.MEMORY


def test_failures_of_the_tool_are_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise AssertionError("first\nsecond")

    monkeypatch.setattr(shim.load().BoundedModule, "compute_bounds", fail)
    graph, x = network("abs", 0), torch.zeros(1, 4)
    bound = bounded(deviation(graph, x, 0.1, 2), "CROWN")
    assert (bound.status, bound.detail) == (Status.FAILED, "AssertionError: first second")
    with pytest.raises(LipbridgeError, match="first second"):
        certify(graph, x, graph(x.double()).argmax(-1), 0.1, 2, Budget())
    assert torch.get_default_dtype() == torch.float32


def test_nan_weights_are_no_bound() -> None:
    bad = Dense("d", (0,), (2,), torch.full((2, 4), math.nan, dtype=torch.float64))
    bound = bounded(deviation(Graph((Input("x", (), (4,)), bad)), torch.zeros(1, 4), 0.1, 2), "CROWN")
    assert bound.status is Status.FAILED
    assert math.isnan(bound.value)


def test_wrong_options_are_refused() -> None:
    problem = deviation(network("abs", 0), torch.zeros(1, 4), 0.1, 2)
    with pytest.raises(InvalidArgument, match="method"):
        VERIFIER.prepare(problem).bound(Budget(options={"method": "MILP"}))
    with pytest.raises(InvalidArgument, match="iterations"):
        VERIFIER.prepare(problem).bound(Budget(options={"iterations": 0}))


# --- the shim --------------------------------------------------------------------------------------------------------


def test_loading_twice_changes_nothing_more() -> None:
    tool = shim.load()
    members = tool.BoundedModule._named_members
    reader = getattr(torch._C.Node, "__getitem__", None)
    assert shim.load() is tool
    assert tool.BoundedModule._named_members is members
    assert getattr(torch._C.Node, "__getitem__", None) is reader
    assert "numpy.lib.arraysetops" not in sys.modules
    assert not any(getattr(handler, "stream", None) is sys.stdout for handler in logging.getLogger().handlers)


def test_nothing_reaches_stdout(capfd: pytest.CaptureFixture[str]) -> None:
    with shim.session():
        print("printed by the tool")  # noqa: T201
        logging.getLogger("auto_LiRPA.utils").error("logged by the tool")
        assert torch.get_default_dtype() == torch.float64
    bounded(deviation(network("abs", 0), torch.zeros(2, 4), 0.1, 2), "alpha-CROWN")
    assert capfd.readouterr().out == ""
    assert torch.get_default_dtype() == torch.float32


def test_a_missing_tool_names_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shim, "find_spec", lambda name: None)
    bound = bounded(deviation(network("abs", 0), torch.zeros(1, 4), 0.1, 2), "CROWN")
    assert bound.status is Status.MISSING
    assert "pip install --no-deps auto-LiRPA==0.3" in bound.detail


def test_a_lowering_names_the_layer_it_cannot_take() -> None:
    for node in (Normalize("norm", (0,), (4,)), Elementwise("norm", (0,), (4,), activation("gelu"))):
        with pytest.raises(UnsupportedProblem, match=r"norm|gelu"):
            Network(Graph((Input("x", (), (4,)), node)), "CROWN")


# --- images ----------------------------------------------------------------------------------------------------------


def image_network(kind: str, seed: int, name: str = "abs") -> Graph:
    """A convolution, what ``kind`` says, another convolution, and a dense layer, on 4 x 5 images of two channels."""
    channels = 4 * activation(name).width
    middle: dict[str, Node] = {
        "pool": MaxPool("pool", (), (), (2, 2), (2, 2), (0, 0), (1, 1)),
        "padded pool": MaxPool("pool", (), (), (3, 2), (1, 2), (1, 1), (1, 1)),
        "sort": GroupSort("sort", (), (), 2),
        "sort four": GroupSort("sort", (), (), 4),
        "none": conv(seed + 4, channels, channels, (1, 1), padding=((0, 0),) * 2),
    }
    mode = kind if kind in MODES else "zeros"
    first = conv(seed, 4, 2, padding_mode=mode, padding=((1, 1), (2, 1)), stride=(1, 2), groups=2)
    layers = [first, act(name), middle.get(kind, middle["none"]), conv(seed + 2, 3, channels), act("relu")]
    body = chain((2, 4, 5), *layers)
    flat = flattened(body)
    return chain((2, 4, 5), *layers, flat, Dense("out", (), (), normal(seed + 3, 3, flat.shape[0])))


KINDS = (*MODES, "pool", "padded pool", "sort", "sort four")


@pytest.mark.parametrize("method", PLAIN)
@pytest.mark.parametrize("kind", KINDS)
def test_lowered_images_are_the_graph(kind: str, method: Method) -> None:
    for name in ("abs", "crelu", "sincos"):
        graph = image_network(kind, 1, name)
        x = 3 * torch.randn(20, *graph.input_shape, dtype=torch.float64)
        with torch.no_grad():
            torch.testing.assert_close(Network(graph, method)(x.flatten(1)), graph(x), rtol=0, atol=1e-9)


@pytest.mark.parametrize("norm", BALLS)
@pytest.mark.parametrize("kind", KINDS)
def test_no_point_of_a_ball_of_images_exceeds_the_bound(kind: str, norm: Norm) -> None:
    assert_sound(image_network(kind, 3), "IBP", norm, 0.2, 3)
    assert_sound(image_network(kind, 4, "crelu" if norm == 2 else "abs"), "CROWN", norm, 0.1, 4)


@pytest.mark.parametrize("kind", ["circular", "pool"])
def test_optimised_slopes_stay_sound_on_images(kind: str) -> None:
    assert_sound(image_network(kind, 6), "alpha-CROWN", "inf", 0.1, 6)


@pytest.mark.parametrize("kind", ["zeros", "circular", "replicate"])
def test_images_as_tight_as_our_own_lines(kind: str) -> None:
    """On a small ball CROWN and our propagation enclose about the same: neither lost the convolution's structure."""
    graph, radius = image_network(kind, 2), 1e-3
    center = normal(0, 1, *graph.input_shape)
    bound = bounded(deviation(graph, center, radius, "inf"), "CROWN")
    relu = Graph((*graph.nodes, Elementwise("end", (len(graph.nodes) - 1,), (3,), activation("relu"))))
    found = forward_bounds(relu, Ball(center, radius, "inf"))[-2]
    ours = torch.maximum(found.upper - graph(center), graph(center) - found.lower).max().item() / radius
    assert bound.value == pytest.approx(ours, rel=0.05)


def test_images_are_certified() -> None:
    graph = image_network("pool", 1)
    x = torch.randn(6, *graph.input_shape, dtype=torch.float64)
    labels = graph(x).argmax(-1)
    assert certify(graph, x, labels, 1e-7, "inf", Budget()).all()
    for i in certify(graph, x, labels, 0.05, "inf", Budget()).nonzero().flatten().tolist():
        rivals = torch.arange(3) != labels[i]
        points = ascended(graph, x[i], 0.05, "inf", lambda y, _, r=rivals, k=labels[i]: y[:, r].amax(1) - y[:, k], i)
        assert bool((graph(points).argmax(-1) == labels[i]).all())


def test_images_too_large_for_matrices_are_refused_with_the_reason() -> None:
    graph = chain((3, 64, 64), conv(0, 16, 3, padding_mode="circular"))
    flat = Graph((*graph.nodes, Reshape("flat", (1,), (16 * 64 * 64,))))
    reason = refused(VERIFIER, deviation(flat, torch.zeros(1, 3, 64, 64), 0.1, 2))
    assert reason is not None
    assert "as a matrix" in reason


# --- what a random search found --------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", PLAIN)
def test_a_residual_network_of_elu(method: Method) -> None:
    """0.3 gave the intervals of -z to z, which relu(z) and exp(-relu(-z)) both read: off by 0.4 in CROWN."""
    graph = jacobian_networks.network("residual", "elu", 3066)
    center = normal(3066, 2, 4)
    bound = bounded(deviation(graph, center, 0.1, 2), method)
    step = normal(1, 5000, 2, 4)
    points = center + 0.1 * step / step.norm(dim=-1, keepdim=True)
    values = graph(points.flatten(0, 1)).reshape(5000, 2, -1)
    reached = (values - graph(center)).norm(dim=-1).amax(0)
    assert all(value * 0.1 >= float(found) for value, found in zip(bound.extra["values"][method], reached, strict=True))


@pytest.mark.parametrize("kind", ["chain", "residual", "joined"])
@pytest.mark.parametrize("name", ["elu", "selu", "silu", "crelu"])
def test_branches_of_functions_that_read_one_number_twice(kind: str, name: str) -> None:
    for seed in range(6):
        graph = jacobian_networks.network(kind, name, 3000 + seed)
        assert_sound(graph, METHODS[1 + seed % 2], BALLS[seed // 2 % 2], (0.1, 0.5)[seed % 2], seed)
