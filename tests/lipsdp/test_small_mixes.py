"""Small mixes of layers through every proved verifier and rescale: a bound, or a refusal in our own words."""

from __future__ import annotations

import random

import pytest
import torch
from torch import nn

import lipbridge
from lipbridge.errors import LipbridgeError
from lipbridge.verifiers import Budget, get_verifier
from lipbridge.vocabulary import Norm
from tests.support.refusals import refused

VERIFIERS = ("trivial", "eclipse-fast", "lipsdp-fast")
NORMS: tuple[Norm, ...] = (2, 1, "inf")
ACTIVATIONS = (nn.ReLU, nn.Tanh, nn.LeakyReLU, nn.ELU, nn.Identity, nn.PReLU, nn.Hardtanh, nn.Dropout)


def batchnorm(shape: tuple[int, ...], generator: torch.Generator) -> nn.Module:
    layer = (nn.BatchNorm1d, nn.BatchNorm1d, nn.BatchNorm2d)[len(shape) - 1](shape[0])
    with torch.no_grad():
        for tensor in (layer.weight, layer.bias, layer.running_mean):
            tensor.copy_(torch.randn(tensor.shape, generator=generator))
        layer.running_var.uniform_(0.1, 3.0, generator=generator)
    return layer


def mix(seed: int) -> tuple[nn.Sequential, tuple[int, ...]]:
    """One to seven layers of any order that the shapes allow, some with dead units; and the input's shape."""
    rng, generator = random.Random(seed), torch.Generator().manual_seed(seed)
    torch.manual_seed(seed)
    shape = start = rng.choice([(4,), (1,), (2, 6), (2, 4, 4), (3, 1, 1)])
    layers: list[nn.Module] = []
    for _ in range(rng.randint(1, 7)):
        kinds = ["linear", "linear", "batchnorm", "activation", "activation"]
        kinds += ["conv", "conv", "pool", "flatten"] if len(shape) > 1 else []
        kind, axes = rng.choice(kinds), len(shape) - 1
        if kind == "linear":
            layer: nn.Module = nn.Linear(shape[-1], rng.choice([1, 2, 5]), bias=rng.random() < 0.7)
        elif kind == "conv":
            size = rng.choice([k for k in (1, 2, 3) if k <= min(shape[1:])])
            conv = (nn.Conv1d, nn.Conv2d)[axes - 1]
            layer = conv(shape[0], rng.choice([1, 2, 3]), size, padding=size // 2, stride=rng.choice([1, 2]))
        elif kind == "batchnorm":
            layer = batchnorm(shape, generator)
        elif kind == "pool" and min(shape[1:]) > 1:
            layer = rng.choice([(nn.MaxPool1d, nn.AvgPool1d), (nn.MaxPool2d, nn.AvgPool2d)][axes - 1])(2, 1)
        elif kind in ("pool", "flatten"):
            layer = nn.Flatten()
        else:
            layer = rng.choice(ACTIVATIONS)()
        if isinstance(layer, nn.Linear) and rng.random() < 0.3:  # columns that are dead, rows that surely pass
            with torch.no_grad():
                layer.weight[:, ::2] = 0.0
                if layer.bias is not None:
                    layer.bias[::2] = rng.choice([-50.0, 50.0])
        layers.append(layer)
        shape = tuple(layer.eval()(torch.zeros(1, *shape)).shape[1:])
    return nn.Sequential(*layers).eval(), start


def attempts(seed: int, verifiers: tuple[str, ...]) -> int:
    """How many bounds and rescalings a mix has; anything but one of our own errors is raised."""
    net, shape = mix(seed)
    try:
        graph = lipbridge.capture(net, shape)
    except LipbridgeError:
        return 0
    done = 0
    balls = [lipbridge.Ball(torch.full((1, *shape), 0.3, dtype=torch.float64), r, 2) for r in (0.1, 3.0)]
    for name in verifiers:
        for norm in NORMS:
            for region in (None, *balls):
                problem = lipbridge.Problem(graph, lipbridge.Question(input_norm=norm, output_norm=norm, region=region))
                verifier = get_verifier(name)
                if refused(verifier, problem) is None:
                    assert verifier.prepare(problem).bound(Budget(seconds=20.0)).value >= 0.0
                    done += 1
    for norm in NORMS:
        try:
            found = lipbridge.rescale(net, norm, input_shape=shape)
        except LipbridgeError:
            continue
        assert found.after.value <= found.before.value
        done += 1
    return done


def test_small_mixes_have_bounds_or_are_refused() -> None:
    assert sum(attempts(seed, ("eclipse-fast", "lipsdp-fast")) for seed in range(5)) > 5


@pytest.mark.slow
@pytest.mark.parametrize("part", range(4))
def test_many_small_mixes_have_bounds_or_are_refused(part: int) -> None:
    assert sum(attempts(seed, VERIFIERS) for seed in range(100 + 80 * part, 180 + 80 * part)) > 100


NORMALISED = {
    "behind an activation": lambda: (nn.Linear(4, 8), nn.ReLU(), nn.BatchNorm1d(8), nn.Linear(8, 3)),
    "before a dense layer": lambda: (nn.BatchNorm1d(4), nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3)),
    "behind a flatten": lambda: (nn.Flatten(), nn.BatchNorm1d(4), nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3)),
    "before two layers": lambda: (nn.BatchNorm1d(4), nn.ELU(), nn.Linear(4, 5), nn.Linear(5, 3)),
}


@pytest.mark.parametrize("place", NORMALISED)
@pytest.mark.parametrize("norm", NORMS)
def test_batchnorm_of_vectors_has_bounds_and_is_left_alone_by_rescale(place: str, norm: Norm) -> None:
    torch.manual_seed(0)
    net, x = nn.Sequential(*NORMALISED[place]()).eval(), torch.randn(9, 4)
    if norm == 2:
        problem = lipbridge.Problem(lipbridge.capture(net, (4,)), lipbridge.Question.everywhere(2))
        assert (
            0.0
            < get_verifier("lipsdp-fast").prepare(problem).bound(Budget()).value
            <= lipbridge.trivial_bound(net).value
        )
    if place == "behind an activation":
        with pytest.raises(lipbridge.errors.UnsupportedOperation, match="Only the weights"):
            lipbridge.rescale(net, norm)
        return
    found = lipbridge.rescale(net, norm, input_shape=(4,))
    assert found.after.value < found.before.value
    assert torch.allclose(found.module(x), net(x), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ["relu", "tanh", "crelu", "sincos"])
@pytest.mark.parametrize("verifier", ["lipsdp-fast", "eclipse-fast"])
def test_the_only_uncertain_unit_may_be_dead_behind(name: str, verifier: str) -> None:
    activation, width = lipbridge.activation_module(name), 2 * lipbridge.activation(name).width
    net = nn.Sequential(nn.Linear(2, 2), activation, nn.Linear(width, 2)).double()
    with torch.no_grad():
        net[0].weight.copy_(torch.eye(2))
        net[0].bias.copy_(torch.tensor([50.0, 0.0]))
        net[2].weight[:, 1::2] = 0.0
    region = lipbridge.Ball(torch.zeros(1, 2, dtype=torch.float64), 1.0, 2)
    problem = lipbridge.Problem(lipbridge.capture(net), lipbridge.Question.on(region, 2))
    bound = get_verifier(verifier).prepare(problem).bound(Budget()).value
    points = torch.tensor([[0.0, 0.0], [0.9, 0.1], [-0.9, -0.1]], dtype=torch.float64)
    for point in points:
        jacobian = torch.autograd.functional.jacobian(net, point)
        assert float(torch.linalg.matrix_norm(jacobian, 2)) <= bound * (1.0 + 1e-12)
    if name == "relu":  # affine there: the bound is the norm of the one column that counts
        assert bound == pytest.approx(float(net[2].weight[:, 0].detach().norm()), rel=1e-6)
