"""What the process of a cell does: trains, opens, bounds or certifies, and writes the row."""

from __future__ import annotations

import contextlib
import json
import math
import resource
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from lipbridge.data import DATASET_NAMES, dataset_digest, load_dataset
from lipbridge.data.datasets import VALIDATION
from lipbridge.disk.atomic import write_atomically
from lipbridge.disk.strict_json import jsonable
from lipbridge.errors import ModelFileError
from lipbridge.files.container import file_digest, load_tensors
from lipbridge.files.hub import is_hub
from lipbridge.files.models import Model, Reading, open_model
from lipbridge.files.run_folder import CHECKPOINT, UNFINISHED
from lipbridge.graph.graph import Graph
from lipbridge.layers.architectures import is_factory
from lipbridge.machine import forget_gpu_peak, gpu_peak_bytes
from lipbridge.problem.problem import Problem
from lipbridge.problem.question import Ball, Question
from lipbridge.processes import own_peak_bytes
from lipbridge.report.facts import architecture, parameter_count
from lipbridge.study.cells import Cell, Kind, Row, place_of
from lipbridge.study.engine import wire
from lipbridge.study.engine.blank import NETWORKS, WITNESS, blank
from lipbridge.study.here import bound_or_failure, certified, certifying_task, error_line, outcome
from lipbridge.study.requests import Certification
from lipbridge.study.rows import make_row
from lipbridge.training.runs import train_run
from lipbridge.verifiers import Budget, Refusal, get_verifier
from lipbridge.vocabulary import Quantity, Status, as_norm

#: In a row's ``extra``: its value is infinite, which JSON cannot say.
INFINITE = "infinite"
#: Hexadecimal digits of what a file holds.
_SHA256 = 64
#: Points whose classes are computed at once.
_BATCH = 500
#: Called when all is imported and opened: from here on it is the work itself that takes time.
Started = Callable[[], None]
#: Called with a row that counts if nothing better follows.
Publish = Callable[[Row], None]


def answer_cell(folder: Path) -> None:
    """Do the cell in ``folder`` and write its row there; an exception of the work is a row too."""
    found = wire.read_facts(folder / wire.CELL)
    words: Any = found["cell"]
    cell, study = Cell.from_json(words), Path(str(found["study"]))
    row, before = blank(cell, Status.OK), _cpu_seconds()

    def publish(facts: Row) -> None:
        measured = {"cpu_seconds": _cpu_seconds() - before, "memory": own_peak_bytes(), "gpu_memory": gpu_peak_bytes()}
        row.update(measured | facts)
        write_atomically(folder / wire.ROW, json.dumps(jsonable(row)).encode())

    forget_gpu_peak()
    torch.set_num_threads(cell.threads)
    try:
        _WORK[cell.kind](cell, study, (folder / wire.STARTED).touch, publish)
    except Exception as error:  # of foreign code, or of a network that cannot be read
        status, detail = outcome(error)
        publish({"status": status.value, "detail": detail})


def _train(cell: Cell, study: Path, started: Started, publish: Publish) -> None:
    words = cell.words
    started()
    out = study / blank(cell, Status.OK)["folder"]
    begun = any((place / CHECKPOINT).exists() for place in (out, out / UNFINISHED))
    more: dict[str, Any] = {}
    if not _is_ours(words["data"]["name"]):
        _dataset(words["data"]["name"], words["data"]["sha256"])
    if is_factory(place_of(words["arch"])):
        _require_contents(place_of(words["arch"]), words["arch"]["sha256"])
    if words.get("start_from"):
        more["start_from"] = Path(_source(words["start_from"], study))
    facts = train_run(
        words["data"]["name"],
        str(words["norm"]),
        out,
        dict(words["changes"]),
        dict(words["settings"]),
        arch=place_of(words["arch"]),
        resume=begun,
        rescale=bool(words.get("rescale")),
        **more,
    )
    graph = open_model(str(out)).graph
    publish(
        {
            "architecture": architecture(graph),
            "parameters": parameter_count(graph),
            "accuracy": facts["accuracy"],
            "value": facts["bound"],
            "proved": facts["proved"],
            "bound_before_rescaling": facts["bound_before_rescaling"],
            "penalty": facts["penalty"],
            "epochs": facts["epochs"],
            "seconds": facts["seconds"],
            "epoch_seconds": facts["seconds"] / max(facts["epochs"], 1),
        }
    )


def _open(cell: Cell, study: Path, started: Started, publish: Publish) -> None:
    started()
    start = time.perf_counter()
    source = cell.words["source"]
    graph = _network(cell, source, study)
    accuracy = None
    if source.get("data"):
        inputs, labels = _points(source["data"], study, graph)
        accuracy = None if labels is None else _accuracy(graph, inputs, labels)
    facts: Row = {"architecture": architecture(graph), "parameters": parameter_count(graph), "accuracy": accuracy}
    publish({**facts, "seconds": time.perf_counter() - start})


def problem_of(cell: Cell, study: Path) -> Problem:
    """The problem of a cell of the kind ``bound``, with its network opened and its balls around the points.

    Raises:
        LipbridgeError: if files are not there any more, or do not fit each other.
    """
    graph = _network(cell, cell.words["source"], study)
    points = cell.words["points"]
    inputs = None if points is None else _points(points, study, graph)[0]
    return Problem(graph, _question(cell.words["question"], inputs))


def options_of(cell: Cell, study: Path) -> dict[str, object]:
    """A verifier's options; those that are tensors stand in files, and infinite ones in words."""
    found: dict[str, object] = {}
    options: Mapping[str, Any] = cell.words.get("options") or {}
    for name, value in options.items():
        if isinstance(value, Mapping):
            words = cast(Mapping[str, Any], value)
            found[name] = float(words["number"]) if "number" in words else _tensor(words, study)
        else:
            found[name] = value
    return found


def _bound(cell: Cell, study: Path, started: Started, publish: Publish) -> None:
    words = cell.words
    problem = problem_of(cell, study)
    graph = problem.graph
    inputs, labels = (None, None) if words["points"] is None else _points(words["points"], study, graph)
    name = words["verifier"]
    verifier = get_verifier(name)
    with contextlib.suppress(Exception):  # what is wrong will show, and be told, when it is used
        verifier.load()
    options = options_of(cell, study)
    if name == WITNESS and inputs is not None and problem.region is None:
        options = {"starts": inputs, **options}
    budget = Budget(cell.limits.seconds, cell.limits.memory, words["seed"], options)
    started()
    bound, task = bound_or_failure(name, verifier, problem, budget)
    bound = replace(bound, memory=own_peak_bytes())
    if math.isnan(bound.value):
        status = Status.FAILED if bound.status is Status.OK else bound.status
        bound = replace(bound, status=status, detail=bound.detail or "it returned NaN", proved=False)
    facts = make_row(cell.network, name, bound).to_json()
    for unknown in ("network", "verifier", "total_seconds", "tightness", "certified_accuracy"):
        del facts[unknown]
    if math.isinf(bound.value):
        facts["extra"] = {**facts["extra"], INFINITE: True}
    facts["witness"] = None if bound.witness is None else wire.encode_witness(bound.witness)
    publish(facts)
    asked = words.get("certify")
    if asked is None or not verifier.certifies or inputs is None or labels is None:
        return
    count = asked["count"]
    own = Certification(inputs[:count], labels[:count], asked["radius"])
    try:
        extra = certified(verifier, task, problem, own, budget)
        publish({**facts, "certified_accuracy": extra.pop("certified_accuracy"), "extra": {**facts["extra"], **extra}})
    except Exception as error:  # a foreign verifier's error is a word in the row
        publish({"extra": {**facts["extra"], "certification": error_line(error)}})


def _certify(cell: Cell, study: Path, started: Started, publish: Publish) -> None:
    words = cell.words
    graph = _network(cell, words["source"], study)
    inputs, labels = _points(words["points"], study, graph)
    if labels is None:
        raise ModelFileError(f"the points in {words['points']['path']} have no labels")
    count = words["points"].get("count") or len(inputs)
    inputs, labels = inputs[:count], labels[:count]
    verifier = get_verifier(words["verifier"])
    with contextlib.suppress(Exception):
        verifier.load()
    norm, radius = as_norm(words["norm"]), float(words["radius"])
    budget = Budget(cell.limits.seconds, cell.limits.memory, words["seed"], options_of(cell, study))
    started()
    start = time.perf_counter()
    task = certifying_task(verifier, graph, norm, inputs, radius)
    if isinstance(task, Refusal):
        publish({"status": Status.UNSUPPORTED.value, "detail": task.reason})
        return
    found = task.certify(inputs, labels, radius, budget)
    seconds = time.perf_counter() - start
    facts: Row = {"certified_accuracy": float(found.double().mean()), "points": len(labels), "seconds": seconds}
    publish({**facts, "accuracy": _accuracy(graph, inputs, labels)})


_WORK: Mapping[Kind, Callable[[Cell, Path, Started, Publish], None]] = {
    Kind.TRAINING: _train,
    Kind.MODEL: _open,
    Kind.BOUND: _bound,
    Kind.CERTIFICATE: _certify,
}


def _network(cell: Cell, source: Mapping[str, Any], study: Path) -> Graph:
    weights, data = source.get("weights"), source.get("data")
    reading = Reading(
        None if source.get("input_shape") is None else tuple(source["input_shape"]),
        source.get("output"),
        () if weights is None else (_found(weights["path"], study),),
        source.get("classes"),
        None if data is None else data["name"],
    )
    held = [(_source(source, study), source["sha256"])]
    if weights is not None:
        held.append((_found(weights["path"], study), weights["sha256"]))
    graph = _opened(tuple(held), reading).graph
    return replace(graph, name=cell.network)


@lru_cache(maxsize=2)
def _opened(held: tuple[tuple[str, str], ...], reading: Reading) -> Model:
    """The last networks stay open. ``held`` are the files, with what they held when the study was planned."""
    for path, contents in held:
        _require_contents(path, contents)
    return open_model(held[0][0], reading)


def _require_contents(path: str, contents: str) -> None:
    """Check that a file is the one that the cell's id tells of; a trained network goes by the id of its training."""
    if is_hub(path) or len(contents) != _SHA256:  # one of the Hub is pinned
        return
    if file_digest(Path(path.rpartition(":")[0] if ".py:" in path else path)) != contents:
        raise ModelFileError(f"{path} was changed since the study was planned. Run the study's file again.")


def _points(source: Mapping[str, Any], study: Path, graph: Graph) -> tuple[Tensor, Tensor | None]:
    inputs, labels = _data(source, study)
    if inputs[0].numel() != math.prod(graph.input_shape):
        words = f"its points have shape {tuple(inputs.shape[1:])}, and {graph.name!r} takes {graph.input_shape}"
        raise ModelFileError(f"{source.get('name') or source['path']} does not fit the network: {words}")
    return inputs.double().reshape(len(inputs), *graph.input_shape), labels


def _data(source: Mapping[str, Any], study: Path) -> tuple[Tensor, Tensor | None]:
    if source.get("path") is None:
        dataset = _dataset(source["name"], source["sha256"])
        return dataset.test_inputs, dataset.test_labels
    tensors, _ = load_tensors(Path(_found(source["path"], study)))
    return tensors["inputs"], tensors.get("labels")


@lru_cache(maxsize=1)
def _dataset(name: str, contents: str) -> Any:
    """The last dataset stays open, if it is the one that the cell's id tells of."""
    dataset = load_dataset(name)
    if not _is_ours(name) and dataset_digest(dataset) != contents:
        raise ModelFileError(f"the data in {name} was changed since the study was planned. Run the study's file again.")
    return dataset


def _is_ours(dataset: str) -> bool:
    """Whether a dataset is one that we know by name, whose files are checked against what they must hold."""
    return dataset.removesuffix(VALIDATION) in DATASET_NAMES


def _tensor(source: Mapping[str, Any], study: Path) -> Tensor:
    tensors, _ = load_tensors(Path(_found(source["path"], study)))
    return tensors["value"]


def _source(source: Mapping[str, Any], study: Path) -> str:
    """The path of a network in words; a folder of a training goes by the end of its name, which tells the training."""
    path = _found(source["path"], study)
    if not Path(path).exists() and Path(path).parent == study / NETWORKS:
        same = sorted((study / NETWORKS).glob(f"*-{source['sha256'][:8]}"))
        return str(same[0]) if same else path
    return path


def _found(path: str, study: Path) -> str:
    """A path in words: those of the study's own are relative to its folder."""
    if is_hub(path):
        return path
    file, colon, name = path.rpartition(":") if ".py:" in path else (path, "", "")
    return f"{study / file}{colon}{name}"


def _question(words: Mapping[str, Any], inputs: Tensor | None) -> Question:
    norm, output_norm, region = as_norm(words["norm"]), as_norm(words["output_norm"]), words["region"]
    ball = None
    if region is not None:
        if inputs is None:
            raise ModelFileError("the balls of this problem have no points to lie around")
        ball = Ball(inputs[: region["points"]], region["radius"], as_norm(region["norm"]))
    return Question(input_norm=norm, output_norm=output_norm, region=ball, quantity=Quantity(words["quantity"]))


def _accuracy(graph: Graph, inputs: Tensor, labels: Tensor) -> float:
    starts = range(0, len(labels), _BATCH)
    right = sum(int((graph(inputs[i : i + _BATCH]).argmax(1) == labels[i : i + _BATCH]).sum()) for i in starts)
    return right / len(labels)


def _cpu_seconds() -> float:
    """Of this process and those of its children that have ended."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(each.ru_utime + each.ru_stime for each in used)


__all__ = ["INFINITE", "answer_cell", "options_of", "problem_of"]
