"""Instances as files: what a worker process reads, and what is kept of a finding, so that it can be asked again."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lipbridge.auditing.instance import AnyInstance, Instance, Prediction, PropertyInstance, breaks, made, obeys
from lipbridge.errors import InvalidArgument, ModelFileError
from lipbridge.files.container import load_tensors, save_tensors
from lipbridge.files.graphs import load_graph, save_graph
from lipbridge.files.problems import load_problem, save_problem
from lipbridge.problem.property import Case, Property, Verdict
from lipbridge.vocabulary import as_norm

#: The network, with its question for a problem, without for others; and what is known of the answer.
MODEL, PROBLEM, KNOWN = "model.safetensors", "problem.safetensors", "known.safetensors"
_CASE = ("lower", "upper", "rows", "limits")


def save_instance(instance: AnyInstance, folder: Path) -> None:
    """Write an instance into a folder that is there.

    Raises:
        ModelFileError, FileNotWritten: if it cannot be written.
    """
    facts: dict[str, Any] = {"name": instance.name, "family": instance.family}
    tensors: dict[str, Tensor] = {}
    if isinstance(instance, Instance):
        save_graph(instance.problem.graph, folder / MODEL)
        save_problem(instance.problem, folder / PROBLEM)
        facts |= {"kind": "problem", "most": None if instance.most is None else str(instance.most)}
        tensors["pair"] = instance.pair
    else:
        save_graph(instance.graph, folder / MODEL)
        if instance.counterexample is not None:
            tensors["counterexample"] = instance.counterexample
    if isinstance(instance, Prediction):
        facts |= {"kind": "prediction", "label": instance.label, "radius": instance.radius, "norm": str(instance.norm)}
        tensors["center"] = instance.center
    elif isinstance(instance, PropertyInstance):
        cases = instance.asked_property.cases
        facts |= {"kind": "property", "cases": len(cases), "verdict": str(instance.verdict)}
        tensors |= {f"{place}.{name}": getattr(case, name) for place, case in enumerate(cases) for name in _CASE}
    save_tensors(folder / KNOWN, tensors, facts)


def load_instance(folder: Path, *, proving: bool = True) -> AnyInstance:
    """Read what :func:`save_instance` wrote.

    Args:
        folder: of one instance.
        proving: whether what is known is proved anew from the inputs in the file. Without, nothing is said of it:
            for who is asked the question.

    Raises:
        ModelFileError: for a folder that holds no instance, or one whose inputs do not prove what it says.
    """
    if not (folder / KNOWN).is_file():
        raise ModelFileError(f"{folder} holds no {KNOWN}: name a folder that audit --keep wrote.")
    try:
        return _read(folder, proving)
    except (KeyError, TypeError, IndexError, ValueError) as error:
        raise ModelFileError(f"{folder} holds no instance of an audit: {error}") from error


def _read(folder: Path, proving: bool) -> AnyInstance:
    tensors, facts = load_tensors(folder / KNOWN)
    name, family = str(facts["name"]), str(facts["family"])
    if facts["kind"] == "problem":
        problem = load_problem(folder / PROBLEM)
        if not proving:
            return Instance(name, family, problem, tensors["pair"], Fraction(0), None)
        most = None if facts["most"] is None else Fraction(facts["most"])
        return made(family, name, problem.graph, problem.question, tensors["pair"], most)
    graph, x = load_graph(folder / MODEL), tensors.get("counterexample")
    if facts["kind"] == "prediction":
        label, radius, norm = int(facts["label"]), float(facts["radius"]), as_norm(facts["norm"])
        found = Prediction(name, family, graph, tensors["center"], label, radius, norm, x is None, x)
        _require(x is None or not proving or breaks(found, x))
        return found
    cases = [Case(*(tensors[f"{place}.{part}"] for part in _CASE)) for place in range(facts["cases"])]
    verdict = Verdict(facts["verdict"])
    asked = PropertyInstance(name, family, graph, Property(tuple(cases)), verdict, x)
    _require((x is None) == (verdict is Verdict.VERIFIED))
    _require(x is None or not proving or obeys(asked, x))
    return asked


def _require(holds: bool) -> None:
    if not holds:
        raise InvalidArgument("counterexample", "be one in exact arithmetic", "one that is none")


def labels_of(instance: Prediction) -> Tensor:
    """``(1,)``, for a certification."""
    return torch.tensor([instance.label])


__all__ = ["KNOWN", "MODEL", "PROBLEM", "labels_of", "load_instance", "save_instance"]
