"""What a study and the process of a cell hand each other: files of numbers and words, never pickle.

In a folder of its own each finds a Request (``problem.safetensors`` and ``request.safetensors``) or a Cell
(``cell.json``), says with ``started`` that all is imported, and leaves its answer, at last ``done``.
"""

from __future__ import annotations

import base64
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lipbridge.disk.atomic import write_atomically
from lipbridge.disk.strict_json import jsonable
from lipbridge.files.container import load_tensors, save_tensors
from lipbridge.problem.bound import Bound, Witness
from lipbridge.problem.problem import Problem
from lipbridge.vocabulary import Side, Status

PROBLEM = "problem.safetensors"
REQUEST = "request.safetensors"
STARTED = "started"
ANSWER = "answer.safetensors"
CERTIFIED = "certified.json"
CELL = "cell.json"
ROW = "row.json"
DONE = "done"


def write_bound(path: Path, bound: Bound) -> None:
    """Write a Bound, its witness and its multipliers; numbers that are not finite travel as words."""
    tensors: dict[str, Tensor] = {}
    if bound.witness is not None:
        tensors["witness.points"] = bound.witness.points
        if bound.witness.direction is not None:
            tensors["witness.direction"] = bound.witness.direction
    for name, value in (bound.multipliers or {}).items():
        tensors[f"multiplier.{name}"] = value
    # A tensor with NaN cannot back anything; leaving it out is what the reader needs to know.
    tensors = {name: value for name, value in tensors.items() if bool(torch.isfinite(value).all())}
    facts: dict[str, Any] = {
        "value": repr(float(bound.value)),
        "seconds": repr(float(bound.seconds)),
        "side": str(Side(bound.side)),
        "proved": bool(bound.proved),
        "method": str(bound.method),
        "memory": bound.memory,
        "status": str(Status(bound.status)),
        "detail": str(bound.detail),
        "extra": jsonable(bound.extra),
    }
    save_tensors(path, tensors, facts)


def read_bound(path: Path, problem: Problem) -> Bound:
    """The Bound that :func:`write_bound` wrote, about ``problem``: its question is the problem's own."""
    tensors, facts = load_tensors(path)
    points = tensors.get("witness.points")
    prefix = "multiplier."
    multipliers = {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
    value, status, detail = float(facts["value"]), Status(facts["status"]), str(facts["detail"])
    if math.isnan(value) and status is Status.OK:
        status, detail = Status.FAILED, detail or "it returned NaN"
    return Bound(
        value=value,
        side=Side(facts["side"]),
        proved=bool(facts["proved"]) and not math.isnan(value),
        question=problem.question,
        method=str(facts["method"]),
        seconds=float(facts["seconds"]),
        memory=facts["memory"],
        status=status,
        detail=detail,
        witness=None if points is None else Witness(points, tensors.get("witness.direction")),
        multipliers=multipliers or None,
        extra=facts["extra"],
    )


def number_words(value: object) -> object:
    """A value of an option, where it is a number that JSON cannot say as words: ``{"number": "inf"}``."""
    return {"number": repr(value)} if isinstance(value, float) and not math.isfinite(value) else value


def encode_witness(witness: Witness) -> dict[str, object]:
    """A witness as JSON, bit by bit: shapes, and float64 numbers in base64."""
    found: dict[str, object] = {"points": _encoded(witness.points)}
    if witness.direction is not None:
        found["direction"] = _encoded(witness.direction)
    return found


def decode_witness(found: Mapping[str, Any]) -> Witness:
    """What :func:`encode_witness` gave.

    Raises:
        KeyError, TypeError, ValueError, RuntimeError: for what is no witness.
    """
    direction = found.get("direction")
    return Witness(_decoded(found["points"]), None if direction is None else _decoded(direction))


def _encoded(tensor: Tensor) -> dict[str, object]:
    numbers = tensor.detach().cpu().to(torch.float64).contiguous().numpy().astype("<f8")
    return {"shape": list(tensor.shape), "float64": base64.b64encode(numbers.tobytes()).decode()}


def _decoded(found: Mapping[str, Any]) -> Tensor:
    numbers = np.frombuffer(base64.b64decode(found["float64"], validate=True), dtype="<f8").astype(np.float64)
    return torch.as_tensor(numbers).reshape([int(length) for length in found["shape"]])


def write_facts(path: Path, facts: Mapping[str, object]) -> None:
    """Write JSON facts atomically."""
    write_atomically(path, json.dumps(jsonable(facts)).encode())


def read_facts(path: Path) -> dict[str, object]:
    """Read what :func:`write_facts` wrote."""
    return json.loads(path.read_bytes())
