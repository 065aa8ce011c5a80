"""Networks by name: dense chains, two convolutional ones, and whatever a user's Python file makes.

Every network reads flat rows ``(batch, d)``, as :func:`lipbridge.fit` gives them, and turns them into images itself.
"""

from __future__ import annotations

import importlib.util
import inspect
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from torch import nn

from lipbridge.activations.registry import activation, activation_module
from lipbridge.data import Dataset
from lipbridge.errors import InvalidArgument, UnknownName, kind_and_line
from lipbridge.layers.layers import mlp

#: ``circular`` makes the l_2 norm of a convolution exact; with ``zeros`` it is proved on a larger torus, but torch
#: needs no copy of the image.
Padding = Literal["circular", "zeros"]
DENSE = "dense"
#: How a user's own architecture is spelt.
FACTORY = "FILE.py:FACTORY"


@dataclass(frozen=True)
class ConvNet:
    """A convolutional network: (kernel, stride) of each convolution, and default widths.

    ``widths`` are the channels of each convolution, then the widths of any number of hidden dense layers.
    """

    convolutions: tuple[tuple[int, int], ...]
    widths: tuple[int, ...]


#: The convolutional networks known by name.
CONVOLUTIONAL: Mapping[str, ConvNet] = {
    "conv-small": ConvNet(((5, 2), (5, 2)), (48, 96, 256)),
    "conv-large": ConvNet(((3, 1), (5, 2), (3, 1), (5, 2)), (32, 32, 64, 64, 256)),
}


def is_factory(arch: str) -> bool:
    """Whether an architecture is a user's ``FILE.py:FACTORY``.

    Raises:
        UnknownName: if it is neither that nor a known name.
    """
    if arch == DENSE or arch in CONVOLUTIONAL:
        return False
    path, colon, name = arch.rpartition(":")
    if not (colon and path and name):
        raise UnknownName("architecture", arch, [DENSE, *CONVOLUTIONAL, FACTORY])
    return True


def build(
    arch: str,
    dataset: Dataset,
    widths: Sequence[int],
    activation_name: str = "abs",
    *,
    bias: bool = False,
    padding: Padding = "circular",
) -> nn.Sequential:
    """A built-in architecture for ``dataset``, with torch's own initial weights.

    Args:
        arch: ``dense``, ``conv-small`` or ``conv-large``.
        widths: hidden widths; for a convolutional network see :class:`ConvNet`.
        activation_name: a registered activation; in a convolutional network its K components stand along the channels.
        bias: whether layers have a bias.
        padding: of convolutions, ``circular`` or ``zeros``.

    Raises:
        UnknownName: for an architecture, activation or padding that is not known.
        InvalidArgument: for widths that do not fit, or inputs that are no images where a network convolves.
    """
    if arch == DENSE:
        return mlp([dataset.features, *widths, dataset.classes], activation_name, bias=bias)
    if arch not in CONVOLUTIONAL:
        raise UnknownName("architecture", arch, [DENSE, *CONVOLUTIONAL])
    if padding not in get_args(Padding):
        raise UnknownName("padding", padding, get_args(Padding))
    return _convolutional(arch, dataset, widths, activation_name, bias, padding)


def _convolutional(
    arch: str, dataset: Dataset, widths: Sequence[int], activation_name: str, bias: bool, padding: Padding
) -> nn.Sequential:
    plan = CONVOLUTIONAL[arch].convolutions
    if len(dataset.input_shape) != 3 or min(dataset.input_shape[1:]) < 4:
        raise InvalidArgument(
            "arch", f"be {DENSE} for {dataset.name}, whose inputs are no images of 4 x 4 or more", arch
        )
    if len(widths) < len(plan) or min(widths) < 1:
        words = f"hold the channels of the {len(plan)} convolutions of {arch}, then the widths of hidden dense layers"
        raise InvalidArgument("widths", words, list(widths))
    components = activation(activation_name).width
    channels, height, width = dataset.input_shape
    layers: list[nn.Module] = [nn.Unflatten(1, dataset.input_shape)]
    for (kernel, stride), filters in zip(plan, widths, strict=False):
        options: dict[str, Any] = {"padding": kernel // 2, "padding_mode": padding, "bias": bias}
        layers.append(nn.Conv2d(channels, filters, kernel, stride, **options))
        layers.append(activation_module(activation_name, **({"dim": 1} if components > 1 else {})))
        channels = filters * components
        height, width = -(-height // stride), -(-width // stride)
    layers.append(nn.Flatten())
    sizes = [channels * height * width, *widths[len(plan) :], dataset.classes]
    for index, (n, m) in enumerate(pairwise(sizes)):
        if index:
            layers.append(activation_module(activation_name))
        layers.append(nn.Linear(n * (components if index else 1), m, bias=bias))
    return nn.Sequential(*layers)


# --- a user's own ----------------------------------------------------------------------------------------------------


def build_by_factory(arch: str, dataset: Dataset, seed: int = 0) -> nn.Module:
    """The module that a function in a Python file makes, ready for flat rows. This runs the file.

    The function is called as ``factory(input_shape, classes)``, e.g. with ``(1, 28, 28)`` and 10, after
    ``torch.manual_seed(seed)``. Its module maps ``(batch, *input_shape)`` or ``(batch, d)`` to ``(batch, classes)``; in
    the first case a layer that makes images of flat rows is put before it.

    Args:
        arch: ``FILE.py:FACTORY``.
        dataset: gives the shape of an input and the number of classes.

    Raises:
        InvalidArgument: for a file or function that is missing or fails, or a module that does not fit.
    """
    path, _, name = arch.rpartition(":")
    factory = _function(Path(path), name, arch)
    torch.manual_seed(seed)  # pyright: ignore[reportUnknownMemberType]
    module = _run(arch, lambda: factory(dataset.input_shape, dataset.classes))
    if not isinstance(module, nn.Module):
        raise InvalidArgument("arch", "name a function that returns a torch.nn.Module", f"{arch} -> {module!r:.80}")
    return _for_rows(module, dataset, arch)


def build_module(
    source: str, input_shape: Sequence[int] | None = None, classes: int | None = None, *, parameter: str = "MODEL"
) -> nn.Module:
    """The module of ``FILE.py:NAME``, where NAME is a function, a class, or a module. This runs the file.

    A function that can be called with two arguments gets ``(input_shape, classes)``, if both are known; otherwise it is
    called without any. ``torch.manual_seed(0)`` comes before it, and before the file: each process that opens a module
    with random weights finds the same ones.

    Args:
        source: ``FILE.py:NAME``.
        parameter: what errors call it.

    Raises:
        InvalidArgument: for a file or name that is missing or fails, a function that needs arguments which are not
            known, or what is no module.
    """
    path, _, name = source.rpartition(":")
    torch.manual_seed(0)  # pyright: ignore[reportUnknownMemberType]
    found: object = _loaded(Path(path), name, source, parameter)
    if not isinstance(found, nn.Module):
        factory = _callable(found, name, path, source, parameter)
        arguments = _arguments(factory, input_shape, classes, source, parameter)
        torch.manual_seed(0)  # pyright: ignore[reportUnknownMemberType]
        found = _run(source, lambda: factory(*arguments), parameter)
    if not isinstance(found, nn.Module):
        words = "name a function that returns a torch.nn.Module"
        raise InvalidArgument(parameter, words, f"{source} -> {type(found).__name__}")
    return found


def _arguments(
    factory: Callable[..., Any], input_shape: Sequence[int] | None, classes: int | None, source: str, parameter: str
) -> tuple[object, ...]:
    """What a factory is called with."""
    try:
        signature = inspect.signature(factory)
    except (ValueError, TypeError):  # some builtins have none
        return ()
    given = (None if input_shape is None else tuple(input_shape), classes)
    if None not in given and _takes(signature, *given):
        return given
    if _takes(signature):
        return ()
    if _takes(signature, *given):
        words = "be called with (input_shape, classes), which --input-shape and --classes say, or --data"
    else:
        words = "name a function that can be called with (input_shape, classes), or without arguments"
    raise InvalidArgument(parameter, words, f"{source}{signature}")


def _takes(signature: inspect.Signature, *arguments: object) -> bool:
    try:
        signature.bind(*arguments)
    except TypeError:
        return False
    return True


def _function(path: Path, name: str, arch: str) -> Callable[..., Any]:
    if not path.is_file():
        raise InvalidArgument(
            "arch", f"be {DENSE}, {', '.join(CONVOLUTIONAL)} or {FACTORY} with a file that exists", arch
        )
    return _callable(_loaded(path, name, arch, "arch"), name, path, arch, "arch")


def _callable(found: object, name: str, path: Path | str, arch: str, parameter: str) -> Callable[..., Any]:
    if not callable(found):
        raise InvalidArgument(parameter, f"name a function that {path} has", arch)
    return found


def _loaded(path: Path, name: str, arch: str, parameter: str) -> object:
    """What a Python file calls ``name``; None if it has no such thing."""
    if not path.is_file():
        raise InvalidArgument(parameter, "be FILE.py:NAME with a file that exists", arch)
    spec = importlib.util.spec_from_file_location(f"lipbridge_architecture_{path.stem}", path)
    if spec is None or spec.loader is None:
        raise InvalidArgument(parameter, "name a file that ends in .py", arch)
    loader, loaded = spec.loader, importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = loaded  # dataclasses and the like look their module up while it is executed
    _run(arch, lambda: loader.exec_module(loaded), parameter)
    return getattr(loaded, name, None)


def _run(arch: str, action: Callable[[], Any], parameter: str = "arch") -> Any:
    """Run foreign code, which may import what stands beside its file; whatever it raises is one line with the place."""
    path = Path(arch.rpartition(":")[0])
    folder = str(path.absolute().parent)
    sys.path.insert(0, folder)
    try:
        return action()
    except (Exception, SystemExit) as error:
        entries = traceback.extract_tb(error.__traceback__)
        places = [entry.lineno for entry in entries if Path(entry.filename).name == path.name]
        line = places[-1] if places else getattr(error, "lineno", None)
        where = f"{arch}, line {line}" if line else arch
        raise InvalidArgument(parameter, "name code that runs", f"{where}: {kind_and_line(error)}") from error
    finally:
        with suppress(ValueError):  # the code may have changed the path itself
            sys.path.remove(folder)


def _for_rows(module: nn.Module, dataset: Dataset, arch: str) -> nn.Module:
    """The module itself if it reads flat rows, else with an ``nn.Unflatten`` before it."""
    faults: list[str] = []
    for candidate in (module, nn.Sequential(nn.Unflatten(1, dataset.input_shape), module)):
        try:
            found = _output_shape(candidate, dataset)
        except Exception as error:  # foreign code may raise anything
            faults.append(kind_and_line(error))
            continue
        if found == (2, dataset.classes):
            return candidate
        faults.insert(0, f"it gives shape {found} for 2 inputs")
    shapes = f"(batch, {', '.join(map(str, dataset.input_shape))}) or (batch, {dataset.features})"
    words = f"make a module that maps {shapes} to (batch, {dataset.classes}) for {dataset.name}"
    raise InvalidArgument("arch", words, f"{arch}: {faults[0]}")


@torch.no_grad()
def _output_shape(module: nn.Module, dataset: Dataset) -> tuple[int, ...] | None:
    first = next(module.parameters(), torch.empty(0))
    inputs = torch.zeros(2, dataset.features, dtype=first.dtype, device=first.device)
    modes = {layer: layer.training for layer in module.modules()}
    try:
        outputs = module.eval()(inputs)
    finally:
        for layer, mode in modes.items():
            layer.training = mode
    return tuple(outputs.shape) if isinstance(outputs, torch.Tensor) else None
