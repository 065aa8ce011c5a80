"""``compare``: networks by verifiers, each cell in a process of its own, judged by witnesses."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from torch import Tensor

from lipbridge import checks
from lipbridge.errors import InvalidArgument
from lipbridge.graph.graph import Graph
from lipbridge.problem.problem import Problem
from lipbridge.problem.question import Ball, Question
from lipbridge.study.engine.blank import WITNESS
from lipbridge.study.here import budgets, run_here
from lipbridge.study.in_cells import Ended, Planned, Progress, compare_in_cells
from lipbridge.study.judge import TRIVIAL, best_lower, judged, judged_together, restated
from lipbridge.study.points import Points
from lipbridge.study.requests import Certification, Outcome, Request
from lipbridge.study.rows import Row, make_row
from lipbridge.verifiers import Budget, Refusal, Task, Verifier, get_verifiers
from lipbridge.vocabulary import Norm, Quantity

#: Radii that suit inputs in [0, 1], for verifiers that need a region.
DEFAULT_RADIUS: Mapping[Norm, float] = {1: 0.3, 2: 0.1, "inf": 0.02}


def compare(
    networks: Mapping[str, Graph],
    verifiers: Sequence[str],
    norm: Norm | str = 2,
    output_norm: Norm | str | None = None,
    *,
    points: Points | Mapping[str, Points] | None = None,
    budget: Budget | None = None,
    options: Mapping[str, Mapping[str, object]] | None = None,
    threads: int = 1,
    jobs: int = 1,
    isolate: bool = True,
    progress: Progress | None = None,
    keep: Path | None = None,
    rows: Path | None = None,
    resume: bool = False,
    ended: Ended | None = None,
) -> list[Row]:
    """Every verifier on every network, side by side: same norm, dtype, threads and limits, tightness and time.

    The witness search always runs, so each upper bound has its tightness, and one below a witness is ``unsound``.
    Verifiers that do not take the Lipschitz constant are asked for the deviation in balls around the first points;
    their rows are measured against a witness of that quantity, and the trivial bound, which holds for it too, stands
    beside them. Verifiers that can certify predictions also give their certified accuracy at the balls' radius.

    Args:
        networks: Graphs by name.
        verifiers: registered names; the witness search is added.
        norm: input norm.
        output_norm: output norm, the input norm if not given.
        points: data, the same for all networks or by network; without, searches start from random points and local
            quantities are not asked for.
        budget: of each cell.
        options: of verifiers, by their name and the option's.
        threads: of each cell.
        jobs: cells at once.
        isolate: each cell in a process with these limits. Verifiers of lipbridge's own share one that has everything
            imported, others have one of their own. Without, limits are the verifiers' own affair and exceptions pass:
            for debugging.
        progress: told before each cell.
        keep: a folder where each network is kept on which a witness contradicts a verifier, with the question, the
            witness and a script that asks again; nothing is kept if not given.

    Raises:
        UnknownName, MissingDependency: for a verifier, before anything runs; UnknownName also for an option that none
            declares.
        InvalidArgument: for an option outside its domain.

    Law: no row with side ``upper`` and status ``ok`` has a tightness below 1 - 1e-9.
    """
    everywhere = Question.everywhere(norm, output_norm)
    if not networks:
        raise InvalidArgument("networks", "hold at least one network", list(networks))
    jobs = checks.whole(jobs, "jobs", 1)
    if not isolate and rows is not None:
        raise InvalidArgument("rows", "be left out where cells are not isolated", str(rows))
    found = get_verifiers(dict.fromkeys([WITNESS, *verifiers]))
    limits = budgets(found, budget or Budget(), options)
    plans: list[list[Planned]] = []
    for network, graph in networks.items():
        own = points.get(network) if isinstance(points, Mapping) else points
        plans.append(plan(network, Problem(graph, everywhere), found, own, limits, threads, prepare=not isolate))
    if not isolate:
        return _here(plans, found, progress, keep, ended)
    of_networks = {name: points.get(name) if isinstance(points, Mapping) else points for name in networks}
    return compare_in_cells(
        plans, of_networks, jobs=jobs, progress=progress, keep=keep, rows=rows, resume=resume, ended=ended
    )


def _here(
    plans: Sequence[Sequence[Planned]],
    verifiers: Mapping[str, Verifier],
    progress: Progress | None,
    keep: Path | None,
    ended: Ended | None,
) -> list[Row]:
    """All in this process, one after the other."""
    total, done = sum(map(len, plans)), 0
    rows: list[Row] = []
    for planned in plans:
        outcomes: list[tuple[Request, Outcome]] = []
        for request, task in planned:
            if progress is not None:
                progress(done, total, request.network, request.verifier)
            assert task is not None
            outcome = run_here(request, verifiers[request.verifier], task)
            outcomes.append((request, outcome))
            if ended is not None:
                ended(make_row(request.network, request.verifier, outcome.bound, outcome.total_seconds))
            done += 1
        rows += _with_trivial(judged_together(outcomes, keep), outcomes)
    return rows


def plan(
    network: str,
    everywhere: Problem,
    verifiers: Mapping[str, Verifier],
    points: Points | None,
    limits: Mapping[str, Budget],
    threads: int = 1,
    *,
    prepare: bool,
) -> list[Planned]:
    """The cells of one network: which question each verifier is asked, the witness search first.

    With ``prepare`` each has its task, and what a verifier raises passes. Without, a verifier that raises is taken for
    one that can: its process will tell.
    """
    local, certification = _local(everywhere, points)

    def asked(name: str, problem: Problem) -> Task | Refusal | None:
        if prepare:
            return verifiers[name].prepare(problem)
        try:
            return verifiers[name].prepare(problem)
        except Exception:
            return None

    def planned(name: str, problem: Problem, task: Task | Refusal | None = None, *, certify: bool = False) -> Planned:
        if prepare and task is None:
            task = asked(name, problem)
        own = limits[name]
        if prepare and name == WITNESS and points is not None and problem.region is None:
            own = replace(own, options={"starts": _shaped(points.inputs, problem.graph), **own.options})
        cell = Request(network, problem, name, own, certification if certify else None, threads)
        return cell, task if prepare else None

    cells = [planned(WITNESS, everywhere)]
    for name, verifier in verifiers.items():
        if name == WITNESS:
            continue
        problem, task = everywhere, asked(name, everywhere)
        if local is not None and isinstance(task, Refusal):
            there = asked(name, local)
            if not isinstance(there, Refusal):
                problem, task = local, there
        cells.append(planned(name, problem, task, certify=verifier.certifies))
    if local is not None and any(cell.problem.question == local.question for cell, _ in cells):
        cells.insert(1, planned(WITNESS, local))
    if local is not None and points is not None and points.lipschitz:
        question = Problem(local.graph, replace(local.question, quantity=Quantity.LIPSCHITZ))
        cells.append(planned(WITNESS, question))
        for name in verifiers:
            task = None if name in (WITNESS, TRIVIAL) else asked(name, question)
            if name not in (WITNESS, TRIVIAL) and not isinstance(task, Refusal):
                cells.append(planned(name, question, task))
    return cells


def _local(everywhere: Problem, points: Points | None) -> tuple[Problem, Certification | None] | tuple[None, None]:
    if points is None:
        return None, None
    graph, p, q = everywhere.graph, everywhere.input_norm, everywhere.output_norm
    radius = DEFAULT_RADIUS[p] if points.radius is None else points.radius
    inputs = _shaped(points.inputs[: points.count], graph)
    problem = Problem(graph, Question.on(Ball(inputs, radius, p), p, q, quantity=Quantity.DEVIATION))
    if points.labels is None:
        return problem, None
    return problem, Certification(inputs, points.labels[: points.count], radius)


def _shaped(inputs: Tensor, graph: Graph) -> Tensor:
    if inputs[0].numel() != math.prod(graph.input_shape):
        expected = f"be points of shape {graph.input_shape}, as network {graph.name!r} takes"
        raise InvalidArgument("inputs", expected, tuple(inputs.shape[1:]))
    return inputs.detach().to("cpu").double().reshape(len(inputs), *graph.input_shape)


def _with_trivial(rows: list[Row], outcomes: Sequence[tuple[Request, Outcome]]) -> list[Row]:
    """The rows, and the trivial bound restated for each local question, judged by that question's witness."""
    local = {cell.problem.question: cell.problem for cell, _ in outcomes if cell.problem.region is not None}
    own = [row for row in rows if row.verifier == TRIVIAL]
    witnesses = [outcome.bound.witness for _, outcome in outcomes]
    for problem in local.values():
        lower = best_lower(problem, witnesses)
        rows = rows + [judged(restated(row, problem), lower) for row in own]
    return rows
