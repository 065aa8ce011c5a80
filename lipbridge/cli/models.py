"""MODEL arguments: a folder that ``train`` wrote, a model file, or an ONNX file; with its run and its data, if any."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from importlib import import_module
from pathlib import Path
from typing import Any, cast

from lipbridge.bounds import Ball
from lipbridge.capture import capture
from lipbridge.data import Dataset, load_dataset
from lipbridge.errors import InvalidArgument, ModelFileError
from lipbridge.graph import Graph
from lipbridge.store import load, load_graph, load_header, parse_json
from lipbridge.vocabulary import as_norm

#: The value of ``--data`` that says: no data, even if the run names some.
NO_DATA = "none"


@dataclass(frozen=True, eq=False)
class Model:
    """A network from a file: its name, its Graph, and what ``train`` wrote beside it."""

    name: str
    path: Path
    graph: Graph
    run: dict[str, Any] | None

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


def open_models(
    paths: Sequence[str], input_shape: Sequence[int] | None = None, output: str | None = None
) -> list[Model]:
    """Each MODEL, under names that tell them apart; ``input_shape`` and ``output`` are for ONNX files.

    Raises:
        ModelFileError: for a missing or damaged file.
        UnsupportedOperation: for a layer outside the Graph's nodes.
    """
    names = _names(paths)
    for option, given in (("--input-shape", input_shape), ("--output", output)):
        if given is not None and not any(_is_onnx(path) for path in paths):
            raise InvalidArgument(option, "come with an ONNX file", given)
    return [_open(path, name, input_shape, output) for path, name in zip(paths, names, strict=True)]


def open_model(path: str, input_shape: Sequence[int] | None = None, output: str | None = None) -> Model:
    """One MODEL; errors as :func:`open_models`."""
    return open_models([path], input_shape, output)[0]


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


def _is_onnx(path: str) -> bool:
    return Path(path).suffix.lower() == ".onnx"


def _open(text: str, name: str, input_shape: Sequence[int] | None, output: str | None) -> Model:
    path = Path(text)
    if _is_onnx(text):
        reader: Any = import_module("lipbridge_adapters.onnx_import")
        return Model(name, path, replace(reader.read_onnx(path, input_shape, output=output), name=name), None)
    is_graph = load_header(path).get("kind") == "graph"
    graph = load_graph(path) if is_graph else capture(load(path), name=name)
    return Model(name, path, graph, _run(path))


def _run(path: Path) -> dict[str, Any] | None:
    file = (path if path.is_dir() else path.parent) / "run.json"
    if not file.exists():
        return None
    try:
        run = parse_json(file.read_bytes())
    except ValueError:
        raise ModelFileError(f"{file}: it is not JSON, as a run's file should be. Move it away to go on.") from None
    return cast(dict[str, Any], run) if isinstance(run, dict) else None


def _names(paths: Sequence[str]) -> list[str]:
    """The last part of each path that says something, or the whole path where those are equal."""
    full = [Path(os.path.abspath(path)) for path in paths]
    short = [path.parent.name if path.name == "model.safetensors" else path.stem for path in full]
    names = [name if short.count(name) == 1 else str(Path(path)) for name, path in zip(short, paths, strict=True)]
    for path in names:
        if names.count(path) > 1:
            raise InvalidArgument("MODEL", "be different networks", path)
    return names


def _size(shape: tuple[int, ...]) -> int:
    size = 1
    for length in shape:
        size *= length
    return size
