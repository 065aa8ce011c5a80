"""The networks of a study: those that its grids train, and those that are there already; the first cell of each."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from lipbridge.data import DATASET_NAMES, Dataset, load_dataset
from lipbridge.data.datasets import VALIDATION
from lipbridge.disk.toml_lines import Path as Place
from lipbridge.errors import LipbridgeError
from lipbridge.files.hub import HubModel, is_hub
from lipbridge.layers.architectures import build, build_by_factory, is_factory
from lipbridge.study import grid
from lipbridge.study.cells import Cell, Kind, Limits, make_cell
from lipbridge.study.config import StudyFile
from lipbridge.study.faults import Faults
from lipbridge.study.file_tables import ModelTable, NetworksTable
from lipbridge.study.names import model_name
from lipbridge.study.words import dataset_words, file_words, source_words, trained_words, training_words
from lipbridge.training.recipes import Recipe, recipe
from lipbridge.vocabulary import as_norm

Json = dict[str, Any]


@dataclass(frozen=True, eq=False)
class Network:
    """A network of a study, its first cell, and the data that its questions are asked on."""

    cell: Cell
    family: str
    data: Json | None
    dataset: Dataset | None = field(repr=False)

    @property
    def names(self) -> tuple[str, str, str]:
        """What a pattern may match: its own name, that of all its seeds, that of the table."""
        return self.cell.network, self.cell.group, self.family

    @property
    def source(self) -> Json:
        """How other cells name it."""
        return trained_words(self.cell) if self.cell.kind is Kind.TRAINING else dict(self.cell.words["source"])

    def facts(self) -> Json:
        """What a plan tells of it."""
        cell = self.cell
        return {
            "name": cell.network,
            "group": cell.group,
            "kind": cell.kind.value,
            "cell": cell.id,
            "seed": cell.seed,
            "settings": dict(cell.settings),
        }

    def cell_of(self, kind: Kind, words: Mapping[str, Any], label: str, limits: Limits, threads: int) -> Cell:
        """A cell that needs this network."""
        own = self.cell
        return make_cell(
            kind,
            words,
            network=own.network,
            group=own.group,
            seed=own.seed,
            settings=own.settings,
            label=f"{own.network}: {label}",
            limits=limits,
            threads=threads,
            after=[own.id],
        )


def networks(study: StudyFile, faults: Faults, threads: int) -> list[Network]:
    """All networks of a study, in the order of the file; what does not fit the data is a fault."""
    data = _Data(study.folder)
    found: list[Network] = []
    for index, table in enumerate(study.tables.networks):
        found += _trained(study, data, ("networks", index), table, faults, threads)
    for index, table in enumerate(study.tables.models):
        found += _read(study, data, ("models", index), table, faults, threads)
    known: dict[str, Network] = {}
    for network in found:
        name = network.cell.network
        if known.setdefault(name, network).cell.id != network.cell.id:
            words = f"two different networks would be called {name}, by which rows are told apart"
            faults.add((), f"{words}: put them into tables of their own")
    return found


class _Data:
    """Datasets by name, each loaded once."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.loaded: dict[str, tuple[Json, Dataset]] = {}

    def __call__(self, name: str) -> tuple[Json, Dataset]:
        if name not in self.loaded:
            known = name.removesuffix(VALIDATION) in DATASET_NAMES
            place = name if known else _absolute(self.folder, name)
            dataset = load_dataset(place)
            self.loaded[name] = dataset_words(place, dataset), dataset
        return self.loaded[name]


def _absolute(folder: Path, text: str) -> str:
    return os.path.normpath(folder / Path(text).expanduser())


def _trained(
    study: StudyFile, data: _Data, place: Place, table: NetworksTable, faults: Faults, threads: int
) -> Iterator[Network]:
    memory = study.tables.limits.memory if table.memory is None else table.memory
    limits, cells, shapes = Limits(table.time, memory), dict[tuple[object, ...], Cell](), set[str]()
    axis = table.warm_start
    for point in grid.points(table):
        try:
            words, dataset = data(point.data)
        except LipbridgeError as error:
            faults.raised((*place, "data"), error, point.data)
            return
        plan = _recipe(point, dataset, study.folder)
        if not _fits(plan, dataset, place, point, faults, shapes):
            continue
        for seed in table.seeds:
            before = _before(cells, table, point, seed)
            own = replace(plan, config=replace(plan.config, seed=seed))
            told = {**_told(point, own), **({"rescale": True} if table.rescale else {})}
            cell = make_cell(
                Kind.TRAINING,
                training_words(words, own, rescale=table.rescale, start_from=before),
                network=point.network(seed),
                group=point.group,
                seed=seed,
                settings=told if axis is None else {**told, "warm_start": axis},
                label=f"{point.network(seed)}: train",
                limits=limits,
                threads=threads,
                after=[] if before is None else [before.id],
            )
            cells[(*_key(point), seed)] = cell
            yield Network(cell, point.family, words, dataset)


def _key(point: grid.Point) -> tuple[object, ...]:
    return tuple(repr(value) for value in point.axes.values())


def _before(
    cells: Mapping[tuple[object, ...], Cell], table: NetworksTable, point: grid.Point, seed: int
) -> Cell | None:
    """The training whose weights a warm start takes: the one before along the axis, all else equal."""
    axis = table.warm_start
    if axis is None:
        return None
    at = table.grid[axis].index(point.axes[axis])
    if at == 0:
        return None
    key = tuple(repr(table.grid[axis][at - 1] if name == axis else value) for name, value in point.axes.items())
    return cells.get((*key, seed))


def _recipe(point: grid.Point, dataset: Dataset, folder: Path) -> Recipe:
    arch = point.arch
    if is_factory(arch):
        file, _, name = arch.rpartition(":")
        arch = f"{_absolute(folder, file)}:{name}"
    default = recipe(dataset, as_norm(point.norm), arch)
    changes = {key: tuple(value) if key == "widths" else value for key, value in point.recipe.items()}
    return replace(default, **changes, config=replace(default.config, **point.training))


def _fits(plan: Recipe, dataset: Dataset, place: Place, point: grid.Point, faults: Faults, shapes: set[str]) -> bool:
    """Whether the network can be built for the data; each shape is tried once."""
    shape = repr((plan.arch, plan.widths, plan.activation, plan.bias, plan.padding, dataset.name))
    try:
        if shape not in shapes and is_factory(plan.arch):
            build_by_factory(plan.arch, dataset)
        elif shape not in shapes:
            with torch.device("meta"):  # no weights are drawn
                build(plan.arch, dataset, plan.widths, plan.activation, bias=plan.bias, padding=plan.padding)
    except LipbridgeError as error:
        parameter = getattr(error, "parameter", "arch")
        section = "recipe" if parameter in grid.RECIPE else ""
        faults.raised(_where(place, point, section, parameter), error, point.recipe.get(parameter, point.arch))
        return False
    shapes.add(shape)
    if plan.config.shift and (len(dataset.input_shape) != 3 or plan.config.shift >= min(dataset.input_shape[1:])):
        words = f"should be 0, or less than a side of the images, for {dataset.name} with inputs {dataset.input_shape}"
        at = _where(place, point, "training", "shift")
        faults.add(at, f"{words}; found {plan.config.shift}")
        return False
    return True


def _where(place: Place, point: grid.Point, section: str, key: str) -> Place:
    """Where a setting of a point stands: in the grid, or in the table's own section."""
    if key in point.axes:
        return (*place, "grid", key)
    return (*place, section, key) if section else (*place, key)


def _told(point: grid.Point, plan: Recipe) -> Json:
    """What rows say of a network: its shape, its penalty, and all that the study says of it."""
    told: Json = {"family": point.family, "data": point.data, "norm": plan.config.norm, "arch": point.arch}
    if not is_factory(plan.arch):
        told |= {"widths": plan.widths, "activation": plan.activation, "bias": plan.bias, "start": plan.start}
    told |= {"penalty": plan.config.penalty, **point.recipe, **point.training}
    return {key: grid.flat(value) for key, value in told.items()}


def _read(
    study: StudyFile, data: _Data, place: Place, table: ModelTable, faults: Faults, threads: int
) -> Iterator[Network]:
    try:
        words, dataset = (None, None) if table.data is None else data(table.data)
        source = _source(table, study.folder)
    except LipbridgeError as error:
        key = "data" if table.data is not None and not data.loaded.get(table.data) else "path"
        faults.raised((*place, key), error, table.path)
        return
    name = model_name(table)
    cell = make_cell(
        Kind.MODEL,
        {"source": {**source, "data": words}},
        network=name,
        settings={"family": name, **({} if table.data is None else {"data": table.data})},
        label=f"{name}: read",
        limits=Limits(study.tables.limits.time, study.tables.limits.memory),
        threads=threads,
    )
    yield Network(cell, name, words, dataset)


def _source(table: ModelTable, folder: Path) -> Json:
    weights = None if table.weights is None else file_words(Path(_absolute(folder, table.weights)))
    if is_hub(table.path):
        found = HubModel.parse(table.path, "path").fetch()
        words = {**file_words(found.path), "path": str(found.pinned)}
    elif ".py:" in table.path.lower():
        file, _, name = table.path.rpartition(":")
        words = source_words(f"{_absolute(folder, file)}:{name}")
    else:
        words = file_words(Path(_absolute(folder, table.path)))
    shape = None if table.input_shape is None else list(table.input_shape)
    return {**words, "input_shape": shape, "output": table.output, "weights": weights, "classes": table.classes}


__all__ = ["Network", "networks"]
