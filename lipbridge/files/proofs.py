"""Proofs as files: the question, the tree, the witness, and which network it is about."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from lipbridge.checking.proof import Bounded, Empty, Proof, Split, Step
from lipbridge.errors import ProofRefused
from lipbridge.files.container import model_file, named_faults, open_container, write_container
from lipbridge.files.graphs import encode_graph
from lipbridge.files.header import Fault, as_flag, as_object, as_real, as_text
from lipbridge.graph.graph import Graph
from lipbridge.problem.bound import Witness
from lipbridge.problem.problem import Problem
from lipbridge.problem.question import Ball, Question
from lipbridge.vocabulary import as_norm

_SPLIT, _EMPTY, _BOUNDED = range(3)


def save_proof(proof: Proof, path: str | os.PathLike[str]) -> Path:
    """Write a proof to a file, atomically; returns the file's path.

    Raises:
        ModelFileError: if the file cannot be written.
    """
    file = model_file(path)
    with named_faults(file, "write"):
        problem, tensors = proof.problem, _encoded(proof.steps)
        region = problem.region
        if region is not None:
            tensors["region.centers"] = region.centers.to(torch.float64)
        if proof.witness is not None:
            tensors["witness.points"] = proof.witness.points.to(torch.float64)
            if proof.witness.direction is not None:
                tensors["witness.direction"] = proof.witness.direction.to(torch.float64)
        body = {
            "network": _digest(problem.graph),
            "input_norm": problem.input_norm,
            "output_norm": problem.output_norm,
            "region": None if region is None else {"radius": float(region.radius), "norm": region.norm},
            "upper": proof.upper,
            "witness": proof.witness is not None,
            "direction": proof.witness is not None and proof.witness.direction is not None,
        }
        return write_container(file, "proof", body, tensors, None, (torch.float64, torch.int64))


def load_proof(path: str | os.PathLike[str], graph: Graph) -> Proof:
    """Read a proof about a network that :func:`save_proof` wrote.

    Raises:
        ModelFileError: for a file that is damaged, or no proof.
        ProofRefused: if it is about another network.
    """
    file = model_file(path)
    with named_faults(file), open_container(file, "proof") as opened:
        names = "network", "input_norm", "output_norm", "region", "upper", "witness", "direction"
        body = as_object(opened.body, *names)
        shape = graph.input_shape
        expected: dict[str, Any] = {
            "steps": (torch.int64, (opened.shape("steps")[0], 3)),
            "bounds": (torch.float64, opened.shape("bounds")),
            "rows": (torch.int64, (opened.shape("rows")[0], 2)),
            "weights": (torch.float64, opened.shape("weights")),
        }
        network = as_text(body["network"])
        if body["region"] is not None:
            expected["region.centers"] = (torch.float64, (opened.shape("region.centers")[0], *shape))
        if as_flag(body["witness"]):
            expected["witness.points"] = (torch.float64, (opened.shape("witness.points")[0], *shape))
        if as_flag(body["direction"]):
            expected["witness.direction"] = (torch.float64, (1, *shape))
        if network == _digest(graph):
            tensors = opened.tensors(expected, {"F64": torch.float64, "I64": torch.int64})
            region = None
            if body["region"] is not None:
                ball = as_object(body["region"], "radius", "norm")
                region = Ball(tensors["region.centers"], as_real(ball["radius"]), as_norm(ball["norm"]))
            norms = as_norm(body["input_norm"]), as_norm(body["output_norm"])
            question = Question(input_norm=norms[0], output_norm=norms[1], region=region)
            witness = None
            if body["witness"]:
                witness = Witness(tensors["witness.points"], tensors.get("witness.direction"))
            return Proof(Problem(graph, question), as_real(body["upper"]), _decoded(tensors), witness)
    raise ProofRefused("it is about another network")


def _digest(graph: Graph) -> str:
    """A hash of all numbers of a Graph."""
    nodes, tensors = encode_graph(graph)
    found = hashlib.sha256(json.dumps({**nodes, "name": ""}, sort_keys=True).encode())
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        found.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        found.update(cast(Any, tensor).numpy().tobytes())
    return found.hexdigest()


def _encoded(steps: tuple[Step, ...]) -> dict[str, Tensor]:
    """``steps (N, 3)``: the kind and two numbers (unit and kink of a split, counts of an empty part's lists)."""
    table: list[tuple[int, int, int]] = []
    bounds: list[float] = []
    rows: list[tuple[int, int]] = []
    weights: list[float] = []
    for step in steps:
        if isinstance(step, Split):
            table.append((_SPLIT, step.unit, step.kink))
        elif isinstance(step, Empty):
            table.append((_EMPTY, len(step.rows), len(step.weights)))
            rows += step.rows
            weights += step.weights
        else:
            table.append((_BOUNDED, 0, 0))
            bounds.append(step.bound)
    return {
        "steps": torch.tensor(table, dtype=torch.int64).reshape(-1, 3),
        "bounds": torch.tensor(bounds, dtype=torch.float64),
        "rows": torch.tensor(rows, dtype=torch.int64).reshape(-1, 2),
        "weights": torch.tensor(weights, dtype=torch.float64),
    }


def _decoded(tensors: dict[str, Tensor]) -> tuple[Step, ...]:
    table, bounds, rows, weights = (
        cast(list[Any], cast(Any, tensors[name]).tolist()) for name in ("steps", "bounds", "rows", "weights")
    )
    steps: list[Step] = []
    b = r = w = 0
    for kind, one, other in table:
        if kind == _SPLIT:
            steps.append(Split(one, other))
        elif kind == _BOUNDED and b < len(bounds):
            steps.append(Bounded(bounds[b]))
            b += 1
        elif kind == _EMPTY and 0 <= one <= len(rows) - r and 0 <= other <= len(weights) - w:
            own = tuple((unit, side) for unit, side in rows[r : r + one])
            steps.append(Empty(own, tuple(weights[w : w + other])))
            r, w = r + one, w + other
        else:
            raise Fault("its steps do not fit its lists")
    if (b, r, w) != (len(bounds), len(rows), len(weights)):
        raise Fault("its steps do not fit its lists")
    return tuple(steps)


__all__ = ["load_proof", "save_proof"]
