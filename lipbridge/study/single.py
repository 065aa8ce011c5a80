"""One network at a time: the rows of ``lipbridge bound`` and ``lipbridge certify``."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from torch import Tensor

from lipbridge.disk.strict_json import jsonable
from lipbridge.errors import UnsupportedProblem
from lipbridge.graph.graph import Graph
from lipbridge.problem.problem import Problem
from lipbridge.problem.question import Ball, Question
from lipbridge.study.cells import Cell, run_cell
from lipbridge.study.here import run_here
from lipbridge.study.judge import judged_together
from lipbridge.study.rows import Row
from lipbridge.verifiers import Budget, Certifier, get_verifier
from lipbridge.vocabulary import Norm


def bound_network(
    name: str,
    graph: Graph,
    verifiers: Sequence[str],
    norm: Norm | str = 2,
    output_norm: Norm | str | None = None,
    *,
    region: Ball | None = None,
    budget: Budget | None = None,
    options: Mapping[str, Mapping[str, object]] | None = None,
) -> list[Row]:
    """The verifiers' bounds of one network, everywhere or on balls; those with foreign packages in their own process.

    Raises:
        UnknownName, MissingDependency, UnsupportedProblem: for a verifier that cannot do it, before any one runs.
    """
    everywhere = Question.everywhere(norm, output_norm)
    problem = Problem(graph, replace(everywhere, region=region))
    budget = budget or Budget()
    for verifier in verifiers:
        reason = get_verifier(verifier).supports(problem)
        if reason is not None:
            words = f"Verifier {verifier} cannot bound {name} in l{problem.norm_name}: {reason.rstrip('.')}."
            raise UnsupportedProblem(words)
    cells: list[Cell] = []
    for verifier in verifiers:
        own = {**budget.options, **(options or {}).get(verifier, {})}
        cells.append(Cell(name, problem, verifier, replace(budget, options=own)))
    runs = [run_cell if get_verifier(cell.verifier).requires else run_here for cell in cells]
    return judged_together([(cell, run(cell)) for cell, run in zip(cells, runs, strict=True)])


def certified_rows(
    name: str,
    graph: Graph,
    data: str,
    inputs: Tensor,
    labels: Tensor,
    radii: Sequence[float],
    norm: Norm,
    verifiers: Sequence[str],
    budget: Budget,
) -> list[dict[str, Any]]:
    """One row for each verifier and radius, ready for JSON.

    Raises:
        UnknownName, MissingDependency, UnsupportedProblem: for a verifier that cannot certify, before any one runs.
    """
    certifiers = {verifier: _certifier(verifier) for verifier in verifiers}
    points = inputs.double().reshape(len(inputs), *graph.input_shape)
    accuracy = float((graph(points).argmax(1) == labels).double().mean())
    rows: list[dict[str, Any]] = []
    for verifier, certifier in certifiers.items():
        for radius in radii:
            start = time.perf_counter()
            certified = certifier.certify(graph, points, labels, radius, norm, budget)
            seconds = time.perf_counter() - start
            row = {
                "network": name,
                "data": data,
                "verifier": verifier,
                "norm": str(norm),
                "radius": radius,
                "points": len(labels),
                "accuracy": accuracy,
                "certified_accuracy": float(certified.double().mean()),
                "seconds": seconds,
            }
            rows.append(jsonable(row))
    return rows


def _certifier(name: str) -> Certifier:
    verifier = get_verifier(name)
    if not isinstance(verifier, Certifier):
        raise UnsupportedProblem(f"Verifier {name} bounds networks; it cannot certify predictions.")
    return verifier
