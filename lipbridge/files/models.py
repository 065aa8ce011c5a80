"""MODEL arguments, with their run and data if there are any.

A MODEL is a folder that ``train`` wrote, a model file, a file of a registered format such as ONNX, one of these files
on the Hugging Face Hub (``hf://OWNER/NAME/PATH[@REVISION]``), or ``FILE.py:NAME``, a module of the user's own, with the
weights of another file or those that it comes with.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

from torch import nn

from lipbridge import checks
from lipbridge.data import Dataset, load_dataset
from lipbridge.disk.strict_json import parse_json
from lipbridge.errors import InvalidArgument, ModelFileError
from lipbridge.files.container import MODEL_FILE, load_header
from lipbridge.files.formats import Format, format_of, list_formats, without_suffix
from lipbridge.files.graphs import load_graph
from lipbridge.files.hub import HubModel, is_hub
from lipbridge.files.modules import load
from lipbridge.files.run_folder import settle
from lipbridge.frontend.capture import capture
from lipbridge.graph.graph import Graph
from lipbridge.problem.question import Ball
from lipbridge.processes import stdout_to_stderr
from lipbridge.vocabulary import as_norm

#: The value of ``--data`` that says: no data, even if the run names some.
NO_DATA = "none"


@dataclass(frozen=True, eq=False)
class Model:
    """A network from a file: its name, its Graph, what ``train`` wrote beside it, and notes on how it was read."""

    name: str
    path: Path
    graph: Graph
    run: dict[str, Any] | None
    notes: tuple[str, ...] = ()

    @property
    def folder(self) -> Path:
        """The folder of the run."""
        return self.path if self.path.is_dir() else self.path.parent

    @property
    def dataset(self) -> str | None:
        """The dataset that the run names."""
        found: Any = (self.run or {}).get("dataset")
        if isinstance(found, dict):
            found = cast(dict[str, Any], found).get("name")
        return found if isinstance(found, str) else None


@dataclass(frozen=True)
class Reading:
    """What is said of how MODELs are read.

    Attributes:
        input_shape: of one input, for files that leave it open and for modules.
        output: the value of a file to stop at.
        weights: a file for each ``FILE.py:NAME``, in their order.
        classes: with ``input_shape`` the arguments of a NAME that takes two.
        data: a dataset that says both, where they are not given.
    """

    input_shape: Sequence[int] | None = None
    output: str | None = None
    weights: Sequence[str] = ()
    classes: int | None = None
    data: str | None = None


def open_models(paths: Sequence[str], reading: Reading | None = None) -> list[Model]:
    """Each MODEL, under names that tell them apart.

    Raises:
        ModelFileError: for a missing or damaged file, one of the Hub that cannot be had, or weights that do not belong
            to their module.
        MissingDependency: for a file of the Hub without huggingface_hub.
        InvalidArgument: for options that no MODEL reads; a module's file that does not run.
        UnsupportedOperation: for a layer outside the Graph's nodes.
    """
    reading = reading or Reading()
    fetched = {path: HubModel.parse(path).fetch() for path in dict.fromkeys(paths) if is_hub(path)}
    told = {str(found.path): f"{path}: commit {found.pinned.revision}" for path, found in fetched.items()}
    paths = [str(fetched[path].path) if path in fetched else path for path in paths]
    known = list_formats()
    formats = {path: None if _is_source(path) else format_of(path, known) for path in paths}
    sources = [path for path in paths if _is_source(path)]
    for option, value in (("input_shape", reading.input_shape), ("output", reading.output)):
        able = any(found is not None and option in found.takes for found in formats.values())
        if value is not None and not able and not (option == "input_shape" and sources):
            words = f"come with an {' or '.join(each.title for each in known if option in each.takes)} file"
            words += " or FILE.py:NAME" if option == "input_shape" else ""
            raise InvalidArgument(f"--{option.replace('_', '-')}", words, value)
    if reading.classes is not None and not sources:
        raise InvalidArgument("--classes", "come with FILE.py:NAME as MODEL", reading.classes)
    if reading.weights and len(reading.weights) != len(sources):
        words = f"come once for each FILE.py:NAME among the MODELs, of which there are {len(sources)}"
        raise InvalidArgument("--weights", words, list(reading.weights))
    weights = iter(reading.weights or [None] * len(sources))
    plan = [(path, next(weights) if _is_source(path) else None) for path in paths]
    names = _names(plan, formats)
    opened = [
        _open_source(path, file, name, reading) if _is_source(path) else _open(path, name, reading, formats[path])
        for (path, file), name in zip(plan, names, strict=True)
    ]
    return [
        replace(model, notes=(told[path], *model.notes)) if path in told else model
        for model, path in zip(opened, paths, strict=True)
    ]


def open_model(path: str, reading: Reading | None = None) -> Model:
    """One MODEL; errors as :func:`open_models`."""
    return open_models([path], reading)[0]


def dataset_of(model: Model, data: str | None) -> Dataset | None:
    """The data to use with a model: ``--data``, or what its run names; checked against the network's input.

    Raises:
        DataError, UnknownName: if it cannot be loaded.
        InvalidArgument: if it does not fit the network.
    """
    name = data if data is not None else model.dataset
    if name is None or name == NO_DATA:
        return None
    dataset = load_dataset(name)
    inputs, outputs = _size(model.graph.input_shape), _size(model.graph.output_shape)
    if (dataset.features, dataset.classes) != (inputs, outputs):
        found = f"{name}: {dataset.features} features, {dataset.classes} classes"
        raise InvalidArgument("data", f"have {inputs} features and {outputs} classes, as {model.name} does", found)
    return dataset


def balls_of(model: Model, data: str | None, points: int, radius: float, norm: str) -> Ball:
    """Balls around the first test points of ``--data``, or of what the model's run names.

    Raises:
        InvalidArgument: if there is no data, or for a norm that there is not.
    """
    dataset = dataset_of(model, data)
    if dataset is None:
        expected = "name a dataset or a folder of IDX files, where the balls' centres are: the model's run names none"
        raise InvalidArgument("--data", expected, data)
    centers = dataset.test_inputs[:points].double()
    return Ball(centers.reshape(len(centers), *model.graph.input_shape), radius, as_norm(norm, "--ball-norm"))


def _is_source(path: str) -> bool:
    """Whether it is ``FILE.py:NAME``."""
    file, colon, _ = path.rpartition(":")
    return bool(colon) and file.lower().endswith(".py")


def _open(text: str, name: str, reading: Reading, format: Format | None) -> Model:
    path = checks.path(text, "MODEL")
    if format is not None:
        format.require()
        shape = reading.input_shape if "input_shape" in format.takes else None
        graph, notes = format.read(path, input_shape=shape, output=reading.output if "output" in format.takes else None)
        return Model(name, path, replace(graph, name=name), None, notes)
    if path.suffix.lower() == ".py":
        raise InvalidArgument("MODEL", "say which function of the file makes the module, as FILE.py:NAME", text)
    if path.is_dir():
        settle(path)
    if path.is_dir() and not (path / MODEL_FILE).exists():
        raise ModelFileError(
            f"{text} holds no {MODEL_FILE}: finish a run that was cut short (lipbridge train ... --resume), or name a "
            "model file itself."
        )
    is_graph = load_header(path).get("kind") == "graph"
    graph = load_graph(path) if is_graph else capture(load(path), name=name)
    return Model(name, path, graph, _run(path))


def _open_source(source: str, weights: str | None, name: str, reading: Reading) -> Model:
    from lipbridge.files.state_files import load_state
    from lipbridge.layers.architectures import build_module

    dataset = None if reading.data is None or reading.data == NO_DATA else load_dataset(reading.data)
    shape = None if reading.input_shape is None else tuple(reading.input_shape)
    classes = reading.classes
    if dataset is not None:
        classes = dataset.classes if classes is None else classes
    with stdout_to_stderr():
        module = build_module(source, shape or (None if dataset is None else dataset.input_shape), classes)
        if weights is None:
            notes = (f"{source}: the weights are those that it comes with; --weights FILE gives others",)
        else:
            notes = tuple(load_state(module, weights))
        module.eval()
        graph = capture(module, shape if dataset is None else _shape_on(module, shape, dataset), name=name)
    return Model(name, Path(source.rpartition(":")[0]), graph, None, notes)


def _shape_on(module: nn.Module, shape: tuple[int, ...] | None, dataset: Dataset) -> tuple[int, ...]:
    """The shape that a module reads a dataset's inputs in: as it is said, as images, or as flat rows."""
    from lipbridge.frontend.fitting import misfit

    if shape is not None:
        return shape
    fault = misfit(module, dataset.input_shape, dataset.name)
    if fault is None:
        return dataset.input_shape
    if misfit(module, (dataset.features,), dataset.name) is None:
        return (dataset.features,)
    raise fault


def _run(path: Path) -> dict[str, Any] | None:
    file = (path if path.is_dir() else path.parent) / "run.json"
    if not file.exists():
        return None
    try:
        run = parse_json(file.read_bytes())
    except ValueError:
        raise ModelFileError(f"{file}: it is not JSON, as a run's file should be. Move it away to go on.") from None
    return cast(dict[str, Any], run) if isinstance(run, dict) else None


def _names(plan: Sequence[tuple[str, str | None]], formats: Mapping[str, Format | None]) -> list[str]:
    """What says something of each MODEL (with its weights), or the whole path where those are equal."""
    short = [_short(path, formats[path]) if file is None else Path(os.path.abspath(file)).stem for path, file in plan]
    whole = [path if weights is None else f"{path} with {weights}" for path, weights in plan]
    names = [name if short.count(name) == 1 else str(Path(text)) for name, text in zip(short, whole, strict=True)]
    for name in names:
        if names.count(name) > 1:
            raise InvalidArgument("MODEL", "be different networks", name)
    return names


def _short(path: str, format: Format | None) -> str:
    if _is_source(path):
        return path.rpartition(":")[2]
    full = Path(os.path.abspath(path))
    return full.parent.name if full.name == MODEL_FILE else without_suffix(full, format)


def _size(shape: tuple[int, ...]) -> int:
    size = 1
    for length in shape:
        size *= length
    return size
