"""A verifier's answer in this process: prepared, bounded, certified; and its exceptions as statuses."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor

from lipbridge.errors import (
    LipbridgeError,
    MissingDependency,
    UnknownName,
    UnsupportedOperation,
    UnsupportedProblem,
    first_line,
    kind_and_line,
)
from lipbridge.graph.graph import Graph
from lipbridge.problem.bound import Bound
from lipbridge.problem.options import read_options
from lipbridge.problem.problem import Problem
from lipbridge.problem.question import Ball, Question
from lipbridge.study.requests import Certification, Outcome, Request, failed
from lipbridge.verifiers import Budget, Refusal, Task, Verifier
from lipbridge.vocabulary import Norm, Quantity, Status

#: The least that is left of a time limit when preparing has taken all of it: whoever is asked answers at once.
_LEAST = 1e-3


def budgets(
    verifiers: Mapping[str, Verifier], budget: Budget, options: Mapping[str, Mapping[str, object]] | None
) -> dict[str, Budget]:
    """Each verifier's budget: of the options for all it gets those that it declares, and those for it alone.

    Raises:
        UnknownName: for an option for all that none declares, or one of its own that a verifier does not.
        InvalidArgument: for a value outside its option's domain.
    """
    declared = {name: {option.name for option in verifier.options} for name, verifier in verifiers.items()}
    known = sorted({option for names in declared.values() for option in names})
    for option in budget.options:
        if option not in known:
            raise UnknownName(f"option of {', '.join(verifiers)}:", option, known or ["none"])
    found: dict[str, Budget] = {}
    for name, verifier in verifiers.items():
        shared = {key: value for key, value in budget.options.items() if key in declared[name]}
        own = {**shared, **(options or {}).get(name, {})}
        read_options(name, verifier.options, own)
        found[name] = replace(budget, options=own)
    return found


def run_here(request: Request, verifier: Verifier, task: Task | Refusal) -> Outcome:
    """Answer a request in this process, without limits but those that the verifier minds itself; exceptions pass.

    A refusal is a row with its reason. The seconds are those of ``Task.bound``.
    """
    bound = answer(request.verifier, request.problem, task, request.budget)
    asked = request.certification
    if asked is not None and verifier.certifies:
        bound = replace(
            bound, extra={**bound.extra, **certified(verifier, task, request.problem, asked, request.budget)}
        )
    return Outcome(bound, bound.seconds)


def answer(name: str, problem: Problem, task: Task | Refusal, budget: Budget) -> Bound:
    """The Bound of a task, with the seconds of that alone; a refusal becomes a status."""
    if isinstance(task, Refusal):
        return failed(problem, name, Status.UNSUPPORTED, task.reason)
    if not isinstance(task, Task):  # type: ignore[reportUnnecessaryIsInstance]  # anybody's code
        words = f"`prepare` returned {type(task).__name__}, neither a Task nor a Refusal"
        return failed(problem, name, Status.FAILED, words)
    start = time.perf_counter()
    bound = task.bound(budget)
    seconds = time.perf_counter() - start
    if not isinstance(bound, Bound):  # type: ignore[reportUnnecessaryIsInstance]
        return failed(problem, name, Status.FAILED, f"it returned {type(bound).__name__}, not a Bound", seconds)
    if bound.question != problem.question:
        words = f"it answered another question ({bound.question}) than it was asked"
        return failed(problem, name, Status.FAILED, words, seconds)
    try:
        return replace(bound, value=float(bound.value), seconds=seconds)
    except (TypeError, ValueError, OverflowError, RuntimeError):
        return failed(problem, name, Status.FAILED, f"its value is a {type(bound.value).__name__}, no number", seconds)


def bound_or_failure(name: str, verifier: Verifier, problem: Problem, budget: Budget) -> tuple[Bound, Task | Refusal]:
    """What the verifier says, and its task; an exception becomes a status.

    The seconds are those of ``prepare`` and ``bound`` together, and so is the time limit.
    """
    start = time.perf_counter()
    task: Task | Refusal = Refusal(name, "it was not prepared")
    try:
        task = verifier.prepare(problem)
        left = max(budget.seconds - (time.perf_counter() - start), _LEAST)
        bound = answer(name, problem, task, replace(budget, seconds=left))
    except Exception as error:  # a foreign verifier's error is a row
        status, detail = outcome(error)
        bound = failed(problem, name, status, detail)
    return replace(bound, seconds=time.perf_counter() - start), task


def outcome(error: Exception) -> tuple[Status, str]:
    """The status and the one-line detail of a verifier's exception."""
    if isinstance(error, MissingDependency):
        return Status.MISSING, str(error)
    if isinstance(error, UnsupportedProblem | UnsupportedOperation):
        return Status.UNSUPPORTED, str(error)
    if isinstance(error, MemoryError):
        return Status.MEMORY, f"an allocation failed: {error}".rstrip(": ")
    if "can't allocate memory" in str(error):
        return Status.MEMORY, "an allocation failed"
    return Status.FAILED, error_line(error)


def certifying_task(verifier: Verifier, graph: Graph, norm: Norm, inputs: Tensor, radius: float) -> Task | Refusal:
    """The task by which a verifier certifies predictions on l_norm balls of a radius around inputs.

    That is its task of the constant everywhere, or of the deviation on the balls where it does not take the first.
    """
    if not verifier.certifies:
        return Refusal(verifier.name, "it bounds networks; it cannot certify predictions")
    task = verifier.prepare(Problem(graph, Question.everywhere(norm)))
    if isinstance(task, Refusal):
        on_balls = Question.on(Ball(inputs, radius, norm), norm, quantity=Quantity.DEVIATION)
        task = verifier.prepare(Problem(graph, on_balls))
    return task


def certified(
    verifier: Verifier, task: Task | Refusal, problem: Problem, asked: Certification, budget: Budget
) -> dict[str, object]:
    """The share of predictions that a verifier certifies, by the task it has or another, with its seconds."""
    start = time.perf_counter()
    if isinstance(task, Refusal):
        task = certifying_task(verifier, problem.graph, problem.input_norm, asked.inputs, asked.radius)
    found = task.certify(asked.inputs, asked.labels, asked.radius, budget)
    return {
        "certified_accuracy": float(found.to(torch.float64).mean()),
        "certified_points": len(asked.labels),
        "certified_radius": asked.radius,
        "certify_seconds": time.perf_counter() - start,
    }


def error_line(error: Exception) -> str:
    """An error as one line; the kind is named unless it is ours, whose text is written for people."""
    return first_line(error, 300) if isinstance(error, LipbridgeError) else kind_and_line(error, 300)
