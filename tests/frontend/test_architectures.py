"""The built-in architectures, users' factories, and how both start."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch
from torch import nn

import lipbridge
from lipbridge.data import Dataset, load_dataset
from lipbridge.errors import InvalidArgument, UnknownName
from lipbridge.graph.geometry import geometry
from lipbridge.graph.nodes import Conv, Dense
from lipbridge.layers.architectures import CONVOLUTIONAL, Padding, build, build_by_factory, is_factory
from lipbridge.rigor.convolution import proved_conv_norm
from lipbridge.training.recipes import initialised, recipe
from lipbridge.vocabulary import NORMS


def images(channels: int = 1, height: int = 8, width: int = 8, classes: int = 10) -> Dataset:
    """A dataset of noise with images of a shape."""
    inputs, labels = torch.rand(12, channels * height * width), torch.arange(12) % classes
    shape = (channels, height, width)
    return Dataset("noise", inputs, labels, inputs, labels, classes, shape, "noise", "units", "here")


@pytest.mark.parametrize(
    ("arch", "name"),
    [*(("conv-small", name) for name in lipbridge.activation_names()), ("conv-large", "abs"), ("conv-large", "crelu")],
)
def test_channelwise_activations_multiply_channels(arch: str, name: str, tmp_path: Path) -> None:
    data = images(3, 8, 12, 5)
    module = build(arch, data, (4, 2, 3, 5, 6), name)
    graph = lipbridge.capture(module, (data.features,))
    components = lipbridge.activation(name).width
    kernels = [node.weight for node in graph.nodes if isinstance(node, Conv)]
    assert [kernel.shape[0] for kernel in kernels] == [4, 2, 3, 5][: len(CONVOLUTIONAL[arch].convolutions)]
    assert [kernel.shape[1] for kernel in kernels[1:]] == [n * components for n in [4, 2, 3][: len(kernels) - 1]]
    assert not any(layer.bias is not None for layer in module if isinstance(layer, nn.Conv2d | nn.Linear))
    assert module(data.test_inputs).shape == (12, 5)
    torch.testing.assert_close(graph(data.test_inputs.double()), module.double()(data.test_inputs.double()))
    again = lipbridge.load(lipbridge.save(module, tmp_path))
    assert torch.equal(module(data.test_inputs.double()), again(data.test_inputs.double()))


@pytest.mark.parametrize("size", [(28, 28), (32, 32), (8, 16)])
@pytest.mark.parametrize("arch", list(CONVOLUTIONAL))
def test_an_orthogonal_start_has_norm_one_in_every_layer(arch: str, size: tuple[int, int]) -> None:
    """And circular padding makes that exact: the proved norm of every convolution is 1 up to its proof's margin."""
    data = images(1, *size)
    widths = (4, 6, 4, 6, 8)
    module = initialised(build(arch, data, widths), "orthogonal", 1.0, 3, (data.features,))
    graph = lipbridge.capture(module, (data.features,))
    for node in graph.nodes:
        if isinstance(node, Conv):
            norm = proved_conv_norm(node.weight, geometry(node, graph.nodes[node.inputs[0]].shape))
            assert 1 - 1e-6 <= norm <= 1 + 1e-5
    hidden = sum(isinstance(node, Conv | Dense) for node in graph.nodes)
    assert 0.99 <= lipbridge.trivial_bound(graph).value <= 1.0 + 1e-4 * hidden
    half = initialised(build(arch, data, widths), "orthogonal", 0.5, 3, (data.features,))
    for ours, theirs in zip(half.parameters(), module.parameters(), strict=True):
        torch.testing.assert_close(2 * ours, theirs)


@pytest.mark.parametrize("size", [(4, 4), (5, 7), (9, 6)])
@pytest.mark.parametrize(
    ("arch", "padding"), [("conv-small", "circular"), ("conv-small", "zeros"), ("conv-large", "circular")]
)
@pytest.mark.parametrize("norm", NORMS)
def test_bounds_hold_on_images_that_the_strides_do_not_divide(
    arch: str, padding: Padding, size: tuple[int, int], norm
) -> None:
    data = images(2, *size)
    module = initialised(
        build(arch, data, (3, 4, 3, 4, 5), padding=padding), "orthogonal", 1.0, 0, (data.features,)
    ).double()
    bound = lipbridge.trivial_bound(lipbridge.capture(module, (data.features,)), norm)
    x = torch.randn(200, data.features, dtype=torch.float64)
    step = 1e-3 * torch.randn(200, data.features, dtype=torch.float64)
    p = float(norm)
    with torch.no_grad():
        quotients = (module(x + step) - module(x)).norm(p, dim=1) / step.norm(p, dim=1)
    assert 0 < float(quotients.max()) <= bound.value * (1 + 1e-9)


@pytest.mark.parametrize("arch", list(CONVOLUTIONAL))
@pytest.mark.parametrize("norm", NORMS)
def test_recipes_build_what_they_say(arch: str, norm) -> None:
    data = images(1, 28, 28)
    plan = recipe(data, norm, arch)
    widths = CONVOLUTIONAL[arch].widths if norm == 2 or arch == "conv-large" else (32, 64, 128)
    assert (plan.arch, plan.widths, plan.activation, plan.bias) == (arch, widths, "abs", False)
    assert plan.config.norm == norm
    module, again = plan.build(data), plan.build(data)
    assert all(torch.equal(a, b) for a, b in zip(module.parameters(), again.parameters(), strict=True))
    other = dataclasses.replace(plan, config=dataclasses.replace(plan.config, seed=1)).build(data)
    assert not any(torch.equal(a, b) for a, b in zip(module.parameters(), other.parameters(), strict=True))


def test_bad_architectures() -> None:
    data = images()
    for arch in ("conv-medium", "net.py", ":make", "net.py:"):
        with pytest.raises(UnknownName, match=r"dense, conv-small, conv-large, FILE\.py:FACTORY"):
            is_factory(arch)
    with pytest.raises(UnknownName, match="conv-small"):
        build("conv-medium", data, (4,))
    for widths in ((), (4,), (4, 0), (4, -1)):
        with pytest.raises(InvalidArgument, match="widths"):
            build("conv-small", data, widths)
    with pytest.raises(InvalidArgument, match="no images"):
        build("conv-small", load_dataset("iris"), (4, 4))
    with pytest.raises(InvalidArgument, match="no images of 4 x 4 or more"):
        build("conv-small", images(1, 3, 8), (4, 4))


FACTORIES = """
from __future__ import annotations
import dataclasses
import torch
from torch import nn

@dataclasses.dataclass
class Sizes:
    channels: int = 3

def on_images(input_shape, classes):
    c, h, w = input_shape
    size = Sizes().channels
    return nn.Sequential(nn.Conv2d(c, size, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(size * h * w, classes))

def on_rows(input_shape, classes):
    return nn.Sequential(nn.Unflatten(1, input_shape), on_images(input_shape, classes))

def of_numbers(input_shape, classes):
    return 3

def of_three(input_shape, classes):
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 3))

def of_pairs(input_shape, classes):
    class Pair(nn.Linear):
        def forward(self, x):
            return x, x
    return Pair(64, 10)

def too_wide(input_shape, classes):
    return nn.Linear(65, classes)

def failing(input_shape, classes):
    raise RuntimeError("two\\nlines")

def leaving(input_shape, classes):
    raise SystemExit("bye")

def of_one(input_shape):
    return nn.Linear(64, 10)

number = 3
"""


@pytest.fixture
def factories(tmp_path: Path) -> Path:
    path = tmp_path / "own.py"
    path.write_text(FACTORIES)
    return path


@pytest.mark.parametrize("name", ["on_images", "on_rows"])
def test_a_factory_of_ones_own(factories: Path, name: str) -> None:
    data = images(2, 5, 6, 4)
    module = build_by_factory(f"{factories}:{name}", data, 3)
    assert module(data.test_inputs).shape == (12, 4)
    assert module.training
    assert isinstance(module[0], nn.Unflatten)  # type: ignore[index]
    torch.manual_seed(3)
    expected = nn.Conv2d(2, 3, 3, padding=1)
    assert torch.equal(next(module.parameters()), expected.weight)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("of_numbers", "returns a torch.nn.Module"),
        ("of_three", r"\(batch, 1, 8, 8\) or \(batch, 64\) to \(batch, 10\) for noise.*shape \(2, 3\) for 2 inputs"),
        ("of_pairs", "shape None for 2 inputs"),
        ("too_wide", "mat1 and mat2"),
        ("failing", r"own\.py:failing, line \d+: RuntimeError: two'"),
        ("leaving", "SystemExit: bye"),
        ("of_one", "TypeError"),
        ("number", "name a function that .*own.py has"),
        ("absent", "name a function that .*own.py has"),
    ],
)
def test_factories_that_do_not_work(factories: Path, name: str, words: str) -> None:
    with pytest.raises(InvalidArgument, match=words) as caught:
        build_by_factory(f"{factories}:{name}", images())
    assert "\n" not in str(caught.value)


def test_files_that_do_not_work(tmp_path: Path) -> None:
    (tmp_path / "broken.py").write_text("import torch\n\ndef make(:\n")
    (tmp_path / "raising.py").write_text("\n\n1 / 0\n")
    (tmp_path / "notes.txt").write_text("make = 1")
    for name, words in (
        ("broken.py", "line 3: SyntaxError"),
        ("raising.py", "line 3: ZeroDivisionError"),
        ("notes.txt", r"ends in \.py"),
        ("absent.py", "a file that exists"),
        (".", "a file that exists"),
    ):
        with pytest.raises(InvalidArgument, match=words) as caught:
            build_by_factory(f"{tmp_path / name}:make", images())
        assert "\n" not in str(caught.value)
