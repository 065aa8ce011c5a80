"""Claims against the truth: upper bounds below an exact Jacobian's norm, and lower bounds without backing."""

from __future__ import annotations

from dataclasses import dataclass

from lipbridge.graph.graph import Graph
from lipbridge.problem.bound import Bound, Witness
from lipbridge.problem.problem import Problem
from lipbridge.vocabulary import Norm, Side
from tests.support.attack.claims import Claim, Silence, claims
from tests.support.attack.networks import Case
from tests.support.attack.truth import Truth, everywhere, in_balls
from tests.support.exact.jets import Stored
from tests.support.exact.lines import at_point
from tests.support.exact.rationals import Rationals, common_unit, exact

#: Networks of more nodes are walked along one line only.
DEEP = 40
KINDS = ("held", "refused", "violated", "crashed")


@dataclass(frozen=True)
class Outcome:
    """One question: ``kind`` is one of :data:`KINDS`, ``text`` what reproduces it."""

    family: str
    name: str
    kind: str
    text: str = ""


def judge(case: Case, names: list[str] | None = None) -> list[Outcome]:
    """Every claim about a network (or of the claimants named) against its exact Jacobians."""
    return judge_against(case, case.graph, str(case), names)


def judge_against(case: Case, true: Graph, text: str, names: list[str] | None = None) -> list[Outcome]:
    """Every claim about a case's Graph against the exact Jacobians of another Graph, which it should be."""
    known: dict[int, tuple[Stored, Truth]] = {}
    outcomes: list[Outcome] = []
    for claim in claims(case.graph, text, names):
        if isinstance(claim, Silence):
            kind = "crashed" if claim.crashed else "refused"
            outcomes.append(Outcome(case.family, claim.name, kind, f"{text}: {claim.text}"))
            continue
        graph = true if claim.problem.graph is case.graph else claim.problem.graph
        if id(graph) not in known:
            stored = Stored(graph)
            known[id(graph)] = stored, everywhere(stored, case.seed, 1 if len(graph.nodes) > DEEP else 2)
        stored, truth = known[id(graph)]
        if claim.bound.side is Side.LOWER:
            held = _is_backed(stored, claim)
        elif claim.problem.region is not None:
            held = not _exceeded(in_balls(stored, claim.problem.region, case.seed), claim)
        else:
            held = not _exceeded(truth, claim)
        kind = "held" if held else "violated"
        outcomes.append(Outcome(case.family, claim.name, kind, f"{text}: {_told(claim.problem, claim.bound)}"))
    return outcomes


def _told(problem: Problem, bound: Bound) -> str:
    return f"{bound.value!r} for the norm {problem.norm_name}, {problem.region_name}"


def _exceeded(truth: Truth, claim: Claim) -> bool:
    return truth.exceeds(claim.bound.value, claim.problem.input_norm, claim.problem.output_norm)


# --- lower bounds ----------------------------------------------------------------------------------------------------


def _is_backed(stored: Stored, claim: Claim) -> bool:
    """Whether the witness has at least the value, evaluated exactly (one side of its point is enough)."""
    value, witness = claim.bound.value, claim.bound.witness
    if value == 0.0:
        return True
    if witness is None:
        return False
    p, q = claim.problem.input_norm, claim.problem.output_norm
    return any(not _less(top, bottom, value, p, q) for top, bottom in _differences(stored, witness))


def _differences(stored: Stored, witness: Witness) -> list[tuple[Rationals, Rationals]]:
    """Exact differences of outputs and of inputs, to be divided by each other."""
    points = [exact(point.flatten()) for point in witness.points]
    if witness.direction is None:
        step = points[1].minus(points[0])
        values = [at_point(stored, point, step).value[:, 0] for point in points]
        return [(values[1].minus(values[0]), step)]
    v = exact(witness.direction.flatten())
    sides = (v, Rationals(-v.ints, v.unit))
    return [(at_point(stored, points[0], side).slope, side) for side in sides]


def _less(top: Rationals, bottom: Rationals, value: float, p: Norm, q: Norm) -> bool:
    """Whether ``||top||_q < value ||bottom||_p``, by squares where a norm has a root."""
    n, d = value.as_integer_ratio()
    unit = common_unit(top.unit, bottom.unit)
    left, right = (_power(Rationals(x.at(unit), unit), norm) for x, norm in ((top, q), (bottom, p)))
    square = 2 in (p, q)
    if square:
        left, right = (size if norm == 2 else size * size for size, norm in ((left, q), (right, p)))
        n, d = n * n, d * d
    return left * d < n * right


def _power(x: Rationals, norm: Norm) -> int:
    """The norm of the whole numbers, or its square in l_2."""
    sizes = [abs(value) for value in x.ints.flat]
    if norm == 2:
        return sum(size * size for size in sizes)
    return sum(sizes) if norm == 1 else max(sizes, default=0)
