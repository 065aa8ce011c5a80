"""A verifier's answer in this process: its exceptions become statuses, its seconds are its own."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from lipbridge.errors import LipbridgeError, MissingDependency, UnsupportedOperation, UnsupportedProblem
from lipbridge.problem.bound import Bound
from lipbridge.problem.problem import Problem
from lipbridge.study.cells import Cell, Outcome, failed
from lipbridge.verifiers import Budget, Certifier, Verifier, get_verifier
from lipbridge.vocabulary import Status


def run_here(cell: Cell) -> Outcome:
    """Run a cell in this process, without limits but those that the verifier minds itself."""
    verifier = get_verifier(cell.verifier)
    bound = bound_or_failure(cell.verifier, verifier, cell.problem, cell.budget)
    asked = cell.certification
    if asked is not None and isinstance(verifier, Certifier):
        facts = certify(verifier, cell.problem, asked.inputs, asked.labels, asked.radius, cell.budget)
        bound = replace(bound, extra={**bound.extra, **facts})
    return Outcome(bound, bound.seconds)


def bound_or_failure(
    name: str, verifier: Verifier, problem: Problem, budget: Budget, started: Path | None = None
) -> Bound:
    """What the verifier says, with the seconds of that alone; an exception becomes a status. ``started`` is touched."""
    start = time.perf_counter()

    def failure(status: Status, detail: str) -> Bound:
        return failed(problem, name, status, detail, time.perf_counter() - start)

    try:
        reason = verifier.supports(problem)
        if reason is not None:
            return failure(Status.UNSUPPORTED, reason)
        if started is not None:
            started.touch()
        start = time.perf_counter()
        bound = verifier.bound(problem, budget)
        seconds = time.perf_counter() - start
        if not isinstance(bound, Bound):  # type: ignore[reportUnnecessaryIsInstance]  # anybody's code
            return failure(Status.FAILED, f"it returned {type(bound).__name__}, not a Bound")
        return replace(bound, seconds=seconds)
    except MissingDependency as error:
        return failure(Status.MISSING, str(error))
    except (UnsupportedProblem, UnsupportedOperation) as error:
        return failure(Status.UNSUPPORTED, str(error))
    except MemoryError as error:
        return failure(Status.MEMORY, f"an allocation failed: {error}".rstrip(": "))
    except Exception as error:  # a foreign verifier's error is a row
        if "can't allocate memory" in str(error):
            return failure(Status.MEMORY, "an allocation failed")
        return failure(Status.FAILED, error_line(error))


def certify(
    verifier: Certifier, problem: Problem, inputs: Tensor, labels: Tensor, radius: float, budget: Budget
) -> dict[str, object]:
    """The share of predictions that the verifier certifies, with its seconds; or why there is none."""
    start = time.perf_counter()
    try:
        certified = verifier.certify(problem.graph, inputs, labels, radius, problem.input_norm, budget)
    except Exception as error:  # as above
        return {"certification": error_line(error)}
    return {
        "certified_accuracy": float(certified.to(torch.float64).mean()),
        "certified_points": len(labels),
        "certified_radius": radius,
        "certify_seconds": time.perf_counter() - start,
    }


def error_line(error: Exception) -> str:
    """An error as one line; the kind is named unless it is ours, whose text is written for people."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    text = lines[0][:300] if lines else ""
    return text if isinstance(error, LipbridgeError) and text else f"{type(error).__name__}: {text}".rstrip(": ")
