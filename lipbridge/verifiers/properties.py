"""Verdicts on properties by what the core proves: linear bounds on boxes, and a search for counterexamples."""

from __future__ import annotations

import heapq
import itertools
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

import torch
from torch import Tensor

from lipbridge.checking.network import Network
from lipbridge.errors import InvalidArgument, NumericalFailure, UnsupportedProblem
from lipbridge.graph.graph import Graph, with_axes
from lipbridge.graph.nodes import Conv, Dense
from lipbridge.lowering.stretched import stretched
from lipbridge.problem.property import Case, Judgement, Property, Verdict
from lipbridge.problem.question import Ball
from lipbridge.propagation.bounds import layer_norms
from lipbridge.propagation.forms import least_of_forms
from lipbridge.rigor.running_error import enclose
from lipbridge.rounding.scalars import FLOOR, UNIT, gamma

#: Steps of the search for a counterexample, and starts for each case: the middle, and random corners.
STEPS, STARTS = 40, 4
#: Step lengths at the beginning and the end, in half widths of the box.
RATES = (0.5, 0.02)
#: Steps from the middle of a part of a box.
FEW_STEPS = 4
#: Boxes whose sides differ by less, relatively, are cubes; sides count as at least so much of the longest.
EVEN, THIN = 1e-9, 1e-9
#: Weights at most of networks that are evaluated in fractions.
FRACTIONS = 50_000


def judge(
    graph: Graph,
    asked: Property,
    *,
    seed: int = 0,
    starts: Tensor | None = None,
    tried: Property | None = None,
    dtype: torch.dtype = torch.float64,
    deadline: float | None = None,
) -> Judgement:
    """Whether a network has a property: sound and incomplete.

    ``verified`` is proved for real arithmetic, after rounding; ``falsified`` comes with an input that breaks the
    property for certain.

    Args:
        graph: the network.
        asked: of its input shape and number of outputs.
        seed: of the search's random starts.
        starts: ``(k, *input_shape)``: further ones, moved into each case's box.
        tried: the property that a counterexample is to break, if not ``asked``.
        dtype: of floats; a counterexample holds such alone. The ends of the boxes of ``tried`` are some.
        deadline: of ``time.perf_counter``: until then, boxes are split where neither a proof nor a counterexample is
            found. They are not if none is given.

    Raises:
        InvalidArgument: if the property is not of this network.
        UnsupportedOperation: for a node without a rule.
    """
    began = time.perf_counter()
    graph = with_axes(graph)
    for each in (asked, asked if tried is None else tried):
        if each.input_shape != graph.input_shape or each.outputs != math.prod(graph.output_shape):
            should = f"be of inputs {graph.input_shape} and {math.prod(graph.output_shape)} outputs, as the network is"
            raise InvalidArgument("asked", should, (each.input_shape, each.outputs))
    margins: list[tuple[Tensor, Tensor, list[Case], Tensor]] = []
    for lower, upper, cases in asked.boxes:
        if deadline is not None and margins and time.perf_counter() > deadline:
            return Judgement(Verdict.TIMEOUT, -math.inf, None, time.perf_counter() - began)
        margins.append((lower, upper, cases, _margins(graph, lower, upper, cases)))
    margin = min(float(found.min()) for *_, found in margins)
    if margin > 0.0:
        return Judgement(Verdict.VERIFIED, margin, None, time.perf_counter() - began)
    cases = (tried or asked).cases
    found = counterexample(graph, cases, seed=seed, starts=starts, dtype=dtype, deadline=deadline)
    verdict = Verdict.UNKNOWN if found is None else Verdict.FALSIFIED
    if found is None and deadline is not None:
        waiting = [_Box(lower, upper, _open(cases, own), float(own.min())) for lower, upper, cases, own in margins]
        verdict, found = _split(graph, [box for box in waiting if box.cases], tried or asked, dtype, deadline)
        margin = 0.0 if verdict is Verdict.VERIFIED else margin
    return Judgement(verdict, margin, found, time.perf_counter() - began)


@dataclass(eq=False)
class _Box:
    """A part of a case's box, the cases that are open there, and the least margin there, if it is known."""

    lower: Tensor
    upper: Tensor
    cases: list[Case]
    margin: float = -math.inf

    def halves(self, entry: int) -> tuple[_Box, _Box]:
        low, high = self.lower.clone(), self.upper.clone()
        middle = 0.5 * self.lower.flatten()[entry] + 0.5 * self.upper.flatten()[entry]
        low.view(-1)[entry] = high.view(-1)[entry] = middle
        return _Box(self.lower, high, self.cases), _Box(low, self.upper, self.cases)


def _split(
    graph: Graph, boxes: list[_Box], tried: Property, dtype: torch.dtype, deadline: float
) -> tuple[Verdict, Tensor | None]:
    """Branch and bound on the inputs: the box of the least margin is halved along the entry that moves it most."""
    count = itertools.count()
    heap = [(box.margin, next(count), box) for box in boxes]
    heapq.heapify(heap)
    while heap:
        if time.perf_counter() > deadline:
            return Verdict.TIMEOUT, None
        box = heapq.heappop(heap)[2]
        middle = (0.5 * box.lower + 0.5 * box.upper)[None]
        case = box.cases[0]
        reach = (_slope(graph, case, middle)[0].abs() * (box.upper - box.lower)).flatten()
        entry = int((reach if bool(reach.isfinite().all()) and bool(reach.any()) else box.upper - box.lower).argmax())
        for half in box.halves(entry):
            if torch.equal(half.lower, box.lower) and torch.equal(half.upper, box.upper):
                return Verdict.UNKNOWN, None  # floats end here
            own = _margins(graph, half.lower, half.upper, half.cases)
            half.cases = _open(half.cases, own)
            if half.cases:
                half.margin = float(own.min())
                heapq.heappush(heap, (half.margin, next(count), half))
                found = _near(graph, half, tried, dtype)
                if found is not None:
                    return Verdict.FALSIFIED, found
    return Verdict.VERIFIED, None


def _open(cases: Sequence[Case], margins: Tensor) -> list[Case]:
    """The cases that are not proved."""
    return [case for case, margin in zip(cases, margins, strict=True) if not float(margin) > 0.0]


def _near(graph: Graph, box: _Box, tried: Property, dtype: torch.dtype) -> Tensor | None:
    """A counterexample at the middle of a box, or a few steps from it."""
    middle = (0.5 * box.lower + 0.5 * box.upper)[None]
    for case in tried.cases:
        if bool((case.lower <= box.upper).all()) and bool((box.lower <= case.upper).all()):
            found = _descended(graph, case, middle, 0.5 * box.upper - 0.5 * box.lower, FEW_STEPS, dtype)
            if found is not None:
                return found
    return None


def _margins(graph: Graph, lower: Tensor, upper: Tensor, cases: Sequence[Case]) -> Tensor:
    """By how much some inequality of each case is broken at least, all over the box: ``(cases,)``."""
    graph, ball = as_cube(graph, lower, upper)
    rows = torch.cat([case.rows for case in cases]).to(graph.device)
    least = least_of_forms(graph, ball, rows[None], layer_norms(graph, "inf"))[0].cpu()
    limits = torch.cat([case.limits for case in cases])
    broken = least - limits - 4.0 * UNIT * (least.abs() + limits.abs())
    ends = list(itertools.accumulate(len(case.rows) for case in cases))
    return torch.stack([broken[end - len(case.rows) : end].max() for case, end in zip(cases, ends, strict=True)])


def as_cube(graph: Graph, lower: Tensor, upper: Tensor) -> tuple[Graph, Ball]:
    """A box as a ball in l_inf: of the network itself, or of one behind a factor for each entry of the input.

    The nodes of the network stand at the end of the other one's.
    """
    center = 0.5 * lower + 0.5 * upper
    reach = torch.nextafter(torch.maximum(upper - center, center - lower), torch.full_like(center, math.inf))
    most = float(reach.max().clamp_min(FLOOR))
    if float(reach.min()) >= most * (1.0 - EVEN) or most <= THIN * float(center.abs().max()):
        return graph, Ball(center[None].to(graph.device), most, "inf")
    factors = reach.clamp_min(THIN * most)
    middle = center / factors
    ends = torch.stack([upper / factors - middle, middle - lower / factors])
    lost = 8.0 * UNIT * (upper.abs() + lower.abs() + center.abs()) / factors + FLOOR
    radius = float((ends.amax(0) + lost).max() * (1.0 + 4.0 * UNIT))
    return stretched(graph, factors), Ball(middle[None].to(graph.device), radius, "inf")


def counterexample(
    graph: Graph,
    cases: Sequence[Case],
    *,
    seed: int = 0,
    starts: Tensor | None = None,
    dtype: torch.dtype = torch.float64,
    deadline: float | None = None,
) -> Tensor | None:
    """An input that obeys all inequalities of a case for certain, by signed gradients; None if none was found.

    It holds floats of ``dtype``, as the ends of the boxes do. After the ``deadline`` no further case is looked at.
    """
    generator = torch.Generator().manual_seed(seed)
    for case in cases:
        if deadline is not None and time.perf_counter() > deadline:
            return None
        half = 0.5 * case.upper - 0.5 * case.lower
        corners = 2.0 * torch.randint(0, 2, (STARTS - 1, *half.shape), generator=generator).to(half) - 1.0
        x = (0.5 * case.lower + 0.5 * case.upper)[None] + torch.cat([torch.zeros_like(half)[None], corners]) * half
        x = x if starts is None else torch.cat([starts.to(x), x])
        found = _descended(graph, case, x, half, STEPS, dtype)
        if found is not None:
            return found
    return None


def _descended(graph: Graph, case: Case, x: Tensor, half: Tensor, steps: int, dtype: torch.dtype) -> Tensor | None:
    """An input that obeys a case, on the way from some inputs by signed gradients; None if there is none."""
    for step in range(steps + 1):
        x = torch.minimum(torch.maximum(x, case.lower), case.upper)
        rounded = x.to(dtype).double()  # between the ends, which are such floats
        obeyed, close = _obeyed(graph, case, rounded)
        if bool(obeyed.any()):
            return rounded[int(obeyed.nonzero()[0])]
        if step in (0, steps) and bool(close.any()):
            own = rounded[int(close.nonzero()[0])]
            if _in_fractions(graph, case, own):
                return own
        if step < steps:
            rate = RATES[0] * (RATES[1] / RATES[0]) ** (step / steps)
            x = x - rate * half * _slope(graph, case, x).sign()
    return None


def _slope(graph: Graph, case: Case, x: Tensor) -> Tensor:
    with torch.enable_grad():
        leaf = x.to(graph.device, copy=True).requires_grad_()
        y = graph(leaf).flatten(1) @ case.rows.T.to(graph.device) - case.limits.to(graph.device)
        (slope,) = torch.autograd.grad(y.amax(1).sum(), leaf)
    return slope.cpu()


def _obeyed(graph: Graph, case: Case, x: Tensor) -> tuple[Tensor, Tensor]:
    """``(k,)`` each: which inputs obey all inequalities in exact arithmetic for certain, and which may do so."""
    y = enclose(graph, x.to(graph.device))
    value, error = y.value.flatten(1).cpu(), y.error.flatten(1).cpu()
    size = value.abs() @ case.rows.abs().T + case.limits.abs()
    lost = error @ case.rows.abs().T + 4.0 * gamma(value.shape[1] + 8) * size + FLOOR
    over, lost = value @ case.rows.T - case.limits, lost * (1.0 + 2.0**-40)
    return (over + lost <= 0.0).all(1), (over - lost <= 0.0).all(1)


def _in_fractions(graph: Graph, case: Case, x: Tensor) -> bool:
    """Whether an input obeys all inequalities, some perhaps as equalities: for small piecewise linear networks."""
    if sum(node.weight.numel() for node in graph.nodes if isinstance(node, Dense | Conv)) > FRACTIONS:
        return False
    try:
        _, y = Network(graph).at([Fraction(float(value)) for value in x.flatten()])
    except (UnsupportedProblem, NumericalFailure):
        return False
    for row, limit in zip(case.rows, case.limits, strict=True):
        total = sum((Fraction(float(a)) * b for a, b in zip(row, y, strict=True)), Fraction(0))
        if total > Fraction(float(limit)):
            return False
    return True


__all__ = ["as_cube", "counterexample", "judge"]
