"""``compare``: networks by verifiers, each cell in a process of its own, judged by witnesses."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from torch import Tensor

from lipbridge.errors import InvalidArgument
from lipbridge.graph.graph import Graph
from lipbridge.problem.problem import Problem
from lipbridge.problem.question import Ball, Question
from lipbridge.study.cells import Cell, Certification, Outcome, run_cell
from lipbridge.study.here import run_here
from lipbridge.study.judge import best_lower, judged, judged_together
from lipbridge.study.rows import Row
from lipbridge.verifiers import Budget, Certifier, get_verifier
from lipbridge.vocabulary import Norm, Quantity, Status, as_norm

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
        isolate: each cell in a process of its own. Without, limits are the verifiers' own affair: for debugging.
        progress: told before each cell.

    Raises:
        UnknownName, MissingDependency: for a verifier, before anything runs.

    Law: no row with side ``upper`` and status ``ok`` has a tightness below 1 - 1e-9.
    """
    p = as_norm(norm)
    q = p if output_norm is None else as_norm(output_norm, "output_norm")
    if not networks:
        raise InvalidArgument("networks", "hold at least one network", list(networks))
    names = [WITNESS, *dict.fromkeys(name for name in verifiers if name != WITNESS)]
    for name in names:
        get_verifier(name)
    budget = budget or Budget()
    plans: dict[str, list[Cell]] = {}
    for network, graph in networks.items():
        own = points.get(network) if isinstance(points, Mapping) else points
        plans[network] = plan(network, graph, names, p, q, own, budget, options or {})
    total = sum(map(len, plans.values()))
    rows: list[Row] = []
    done = 0
    for cells in plans.values():
        outcomes: list[tuple[Cell, Outcome]] = []
        for cell in cells:
            if progress is not None:
                progress(done, total, cell.network, cell.verifier)
            cell = replace(cell, threads=threads)
            outcomes.append((cell, run_cell(cell) if isolate else run_here(cell)))
            done += 1
        rows += _with_trivial(judged_together(outcomes), outcomes)
    return rows


def plan(
    network: str,
    graph: Graph,
    verifiers: Sequence[str],
    p: Norm,
    q: Norm,
    points: Points | None,
    budget: Budget,
    options: Mapping[str, Mapping[str, object]],
) -> list[Cell]:
    """The cells of one network: which question each verifier is asked, witness first."""
    everywhere = Problem(graph, Question.everywhere(p, q))
    local, certification = _local(graph, p, q, points)

    def limits(name: str, **more: object) -> Budget:
        return replace(budget, options={**budget.options, **options.get(name, {}), **more})

    starts = {} if points is None else {"starts": _shaped(points.inputs, graph)}
    cells = [Cell(network, everywhere, WITNESS, limits(WITNESS, **starts))]
    for name in verifiers:
        if name == WITNESS:
            continue
        verifier = get_verifier(name)
        asked = everywhere
        if local is not None and verifier.supports(everywhere) is not None and verifier.supports(local) is None:
            asked = local
        cells.append(
            Cell(network, asked, name, limits(name), certification if isinstance(verifier, Certifier) else None)
        )
    if local is not None and any(cell.problem.question == local.question for cell in cells):
        cells.insert(1, Cell(network, local, WITNESS, limits(WITNESS)))
    if local is not None and points is not None and points.lipschitz:
        question = replace(local, question=replace(local.question, quantity=Quantity.LIPSCHITZ))
        able = [name for name in verifiers if name not in (WITNESS, TRIVIAL) and _answers(name, question)]
        cells += [Cell(network, question, name, limits(name)) for name in (WITNESS, *able)]
    return cells


def _answers(name: str, question: Problem) -> bool:
    return get_verifier(name).supports(question) is None


def _local(
    graph: Graph, p: Norm, q: Norm, points: Points | None
) -> tuple[Problem, Certification | None] | tuple[None, None]:
    if points is None:
        return None, None
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


def _with_trivial(rows: list[Row], outcomes: Sequence[tuple[Cell, Outcome]]) -> list[Row]:
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
