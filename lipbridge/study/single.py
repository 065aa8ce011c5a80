"""One network at a time: the rows of ``lipbridge bound`` and ``lipbridge certify``."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor

from lipbridge.disk.strict_json import jsonable
from lipbridge.errors import UnsupportedProblem
from lipbridge.graph.graph import Graph
from lipbridge.problem.problem import Problem
from lipbridge.problem.question import Ball, Question
from lipbridge.study.engine.alone import certify_request, run_request
from lipbridge.study.here import bound_or_failure, budgets, certifying_task
from lipbridge.study.judge import judged_together
from lipbridge.study.requests import Certification, Outcome, Request
from lipbridge.study.rows import Row
from lipbridge.verifiers import Budget, Refusal, get_verifiers
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
    keep: Path | None = None,
) -> list[Row]:
    """The verifiers' bounds of one network, everywhere or on balls; those with foreign packages in their own process.

    What a witness contradicts is kept in a folder of ``keep``, if that is given.

    Raises:
        UnknownName, MissingDependency, UnsupportedProblem: for a verifier that cannot do it, before any one runs.
    """
    everywhere = Question.everywhere(norm, output_norm)
    problem = Problem(graph, replace(everywhere, region=region))
    found = get_verifiers(verifiers)
    limits = budgets(found, budget or Budget(), options)
    for verifier, own in found.items():
        task = own.prepare(problem)
        if isinstance(task, Refusal):
            words = f"Verifier {verifier} cannot bound {name} in l{problem.norm_name}: {task.reason.rstrip('.')}."
            raise UnsupportedProblem(words)
    outcomes: list[tuple[Request, Outcome]] = []
    for verifier, own in found.items():
        request = Request(name, problem, verifier, limits[verifier])
        if own.requires:
            outcomes.append((request, run_request(request)))
        else:
            bound, _ = bound_or_failure(verifier, own, problem, limits[verifier])
            outcomes.append((request, Outcome(bound, bound.seconds)))
    return judged_together(outcomes, keep)


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
    """One row for each verifier and radius, ready for JSON. Verifiers with foreign packages have their own process.

    ``detail`` says what went wrong where one certified nothing because its process failed or was stopped.

    Raises:
        UnknownName, MissingDependency, UnsupportedProblem: for a verifier that cannot certify, before any one runs.
    """
    certifiers = get_verifiers(verifiers)
    for verifier, certifier in certifiers.items():
        if not certifier.certifies:
            raise UnsupportedProblem(f"Verifier {verifier} bounds networks; it cannot certify predictions.")
    points = inputs.double().reshape(len(inputs), *graph.input_shape)
    accuracy = float((graph(points).argmax(1) == labels).double().mean())
    rows: list[dict[str, Any]] = []
    for verifier, certifier in certifiers.items():
        for radius in radii:
            start = time.perf_counter()
            task = certifying_task(certifier, graph, norm, points, radius)
            detail = ""
            if certifier.requires and not isinstance(task, Refusal):
                problem = Problem(graph, Question.everywhere(norm))
                facts = certify_request(Request(name, problem, verifier, budget, Certification(points, labels, radius)))
                share, detail = facts.get("certified_accuracy"), str(facts.get("certification", ""))
            else:
                share = float(task.certify(points, labels, radius, budget).double().mean())
            seconds = time.perf_counter() - start
            row = {
                "network": name,
                "data": data,
                "verifier": verifier,
                "norm": str(norm),
                "radius": radius,
                "points": len(labels),
                "accuracy": accuracy,
                "certified_accuracy": share,
                "seconds": seconds,
                "detail": detail,
            }
            rows.append(jsonable(row))
    return rows
