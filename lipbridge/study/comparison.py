"""``compare``: networks by verifiers, each cell in a process of its own, judged by witnesses."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from torch import Tensor

from lipbridge.errors import InvalidArgument
from lipbridge.graph.graph import Graph
from lipbridge.problem.problem import Problem
from lipbridge.problem.question import Ball, Question
from lipbridge.study.engine.alone import run_request
from lipbridge.study.here import budgets, run_here
from lipbridge.study.judge import best_lower, judged, judged_together
from lipbridge.study.requests import Certification, Outcome, Request
from lipbridge.study.rows import Row
from lipbridge.verifiers import Budget, Refusal, Task, Verifier, get_verifiers
from lipbridge.vocabulary import Norm, Quantity, Status

#: The verifier whose lower bounds every other one is judged by; it always runs.
WITNESS = "witness"
#: The verifier whose bound, which holds everywhere, stands beside those in balls.
TRIVIAL = "trivial"
#: Radii that suit inputs in [0, 1], for verifiers that need a region.
DEFAULT_RADIUS: Mapping[Norm, float] = {1: 0.3, 2: 0.1, "inf": 0.02}
DEFAULT_POINTS = 32

#: Told before each cell: how many are done, how many there are, the network and the verifier.
Progress = Callable[[int, int, str, str], None]


@dataclass(frozen=True, eq=False)
class Points:
    """Data that a study needs beyond the networks.

    ``inputs`` ``(n, *input_shape)`` are where searches start; the first ``count`` of them are the centres of the balls
    for verifiers of local quantities, and with ``labels`` ``(n,)`` the predictions that are certified. ``radius`` is
    that of the balls, chosen by the norm if it is None. With ``lipschitz`` the Lipschitz constant in the balls is a
    question of its own, put to every verifier that can answer it.
    """

    inputs: Tensor
    labels: Tensor | None = None
    count: int = DEFAULT_POINTS
    radius: float | None = None
    lipschitz: bool = False

    def __post_init__(self) -> None:
        if self.count < 1:
            raise InvalidArgument("points", "be at least 1", self.count)
        if not len(self.inputs):
            raise InvalidArgument("inputs", "hold at least one point", tuple(self.inputs.shape))
        if self.radius is not None and not 0 < self.radius < float("inf"):
            raise InvalidArgument("radius", "be above 0 and finite", self.radius)


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
    isolate: bool = True,
    progress: Progress | None = None,
    keep: Path | None = None,
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
        isolate: each cell in a process of its own. Without, limits are the verifiers' own affair and exceptions pass:
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
    found = get_verifiers(dict.fromkeys([WITNESS, *verifiers]))
    limits = budgets(found, budget or Budget(), options)
    plans: list[list[Planned]] = []
    for network, graph in networks.items():
        own = points.get(network) if isinstance(points, Mapping) else points
        plans.append(plan(network, Problem(graph, everywhere), found, own, limits, threads, prepare=not isolate))
    total = sum(map(len, plans))
    rows: list[Row] = []
    done = 0
    for planned in plans:
        outcomes: list[tuple[Request, Outcome]] = []
        for cell, task in planned:
            if progress is not None:
                progress(done, total, cell.network, cell.verifier)
            outcomes.append((cell, run_request(cell) if task is None else run_here(cell, found[cell.verifier], task)))
            done += 1
        rows += _with_trivial(judged_together(outcomes, keep), outcomes)
    return rows


#: A cell, and its task where it is to run in this process.
Planned = tuple[Request, Task | Refusal | None]


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
        if name == WITNESS and points is not None and problem.region is None:
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
        rows = rows + [judged(_restated(row, problem), lower) for row in own]
    return rows


def _restated(row: Row, problem: Problem) -> Row:
    """A global upper bound as one of the constant or the deviation in a ball, which never exceeds it."""
    detail = "global, so it holds here"
    status = row.status if math.isnan(row.value) else Status.OK  # judged anew
    return replace(
        row, region=problem.region_name, quantity=problem.quantity, detail=detail, tightness=None, status=status
    )
