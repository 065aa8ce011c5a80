"""Verdicts on properties by what the core proves: linear bounds on boxes, and a search for counterexamples."""

from __future__ import annotations

import heapq
import itertools
import math
import time
from collections.abc import Iterator, Sequence
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
#: How much smaller the share that is left of an entry may be than that of another.
AHEAD = 0.2
#: Boxes that are halved at once.
TOGETHER = 64
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
        margins.append((lower, upper, cases, _margins(graph, lower[None], upper[None], cases, norms=True)[0]))
    margin = min(float(found.min()) for *_, found in margins)
    if margin > 0.0:
        return Judgement(Verdict.VERIFIED, margin, None, time.perf_counter() - began)
    cases = (tried or asked).cases
    found = counterexample(graph, cases, seed=seed, starts=starts, dtype=dtype, deadline=deadline)
    verdict = Verdict.UNKNOWN if found is None else Verdict.FALSIFIED
    if found is None and deadline is not None:
        waiting = [
            _Box(lower, upper, _open(cases, own), float(own.min()), upper - lower)
            for lower, upper, cases, own in margins
        ]
        verdict, found = _split(graph, [box for box in waiting if box.cases], tried or asked, dtype, deadline)
        margin = 0.0 if verdict is Verdict.VERIFIED else margin
    return Judgement(verdict, margin, found, time.perf_counter() - began)


@dataclass(eq=False)
class _Box:
    """A part of a case's box, the cases that are open there, the least margin there, and the widths of that box."""

    lower: Tensor
    upper: Tensor
    cases: list[Case]
    margin: float
    whole: Tensor

    def halves(self, entry: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Along an entry of the input; none where floats end."""
        low, high = self.lower.clone(), self.upper.clone()
        middle = 0.5 * self.lower.flatten()[entry] + 0.5 * self.upper.flatten()[entry]
        low.view(-1)[entry] = high.view(-1)[entry] = middle
        if not (torch.equal(high, self.upper) or torch.equal(low, self.lower)):
            yield self.lower, high
            yield low, self.upper


def _split(
    graph: Graph, boxes: list[_Box], tried: Property, dtype: torch.dtype, deadline: float
) -> tuple[Verdict, Tensor | None]:
    """Branch and bound on the inputs: boxes of the least margins are halved along the entry that moves outputs most.

    Halves of one shape are bounded together.
    """
    count = itertools.count()
    heap = [(box.margin, next(count), box) for box in boxes]
    heapq.heapify(heap)
    while heap:
        if time.perf_counter() > deadline:
            return Verdict.TIMEOUT, None
        taken = [heapq.heappop(heap)[2] for _ in range(min(len(heap), TOGETHER))]
        shapes: dict[bytes, list[tuple[_Box, Tensor, Tensor]]] = {}
        for box, entry in zip(taken, _entries(graph, taken), strict=True):
            parts = list(box.halves(entry))
            if not parts:
                return Verdict.UNKNOWN, None
            for lower, upper in parts:
                shapes.setdefault((upper - lower).float().numpy().tobytes(), []).append((box, lower, upper))
        for group in shapes.values():
            lower, upper = torch.stack([low for _, low, _ in group]), torch.stack([high for *_, high in group])
            cases = list({id(case): case for box, _, _ in group for case in box.cases}.values())
            own = _margins(graph, lower, upper, cases, norms=False)
            found = _near(graph, lower, upper, tried, dtype)
            if found is not None:
                return Verdict.FALSIFIED, found
            for (box, low, high), margins in zip(group, own, strict=True):
                held = {id(case) for case in box.cases}
                known = [(case, margin) for case, margin in zip(cases, margins, strict=True) if id(case) in held]
                still = [(case, float(margin)) for case, margin in known if not float(margin) > 0.0]
                if still:
                    least = min(margin for _, margin in still)
                    part = _Box(low, high, [case for case, _ in still], least, box.whole)
                    heapq.heappush(heap, (least, next(count), part))
    return Verdict.VERIFIED, None


def _entries(graph: Graph, boxes: Sequence[_Box]) -> list[int]:
    """The entry of each box's input that moves the open cases' inequalities most, by its width and their slopes.

    Slopes at the middle say nothing of what bends: entries that were halved much more often than another have to wait.
    """
    middle = torch.stack([0.5 * box.lower + 0.5 * box.upper for box in boxes])
    width = torch.stack([box.upper - box.lower for box in boxes]).flatten(1)
    cases = list({id(case): case for box in boxes for case in box.cases}.values())
    moved = torch.zeros_like(width)
    for case in cases:
        has = torch.tensor([any(case is own for own in box.cases) for box in boxes])
        for row in range(len(case.rows)):
            slope = _slope(graph, case, middle, row).flatten(1).abs() * width
            moved += torch.where(has[:, None], slope, 0.0)
    usable = (moved.isfinite().all(1) & moved.any(1))[:, None]
    whole = torch.stack([box.whole for box in boxes]).flatten(1)
    share = torch.where(whole > 0.0, width / whole, 0.0)
    waits = share < AHEAD * share.amax(1, keepdim=True)
    return [int(entry) for entry in torch.where(usable, moved, share).masked_fill(waits, -1.0).argmax(1)]


def _open(cases: Sequence[Case], margins: Tensor) -> list[Case]:
    """The cases that are not proved."""
    return [case for case, margin in zip(cases, margins, strict=True) if not float(margin) > 0.0]


def _near(graph: Graph, lower: Tensor, upper: Tensor, tried: Property, dtype: torch.dtype) -> Tensor | None:
    """A counterexample at the middles of boxes, or a few steps from them."""
    middle, half = 0.5 * lower + 0.5 * upper, 0.5 * upper - 0.5 * lower
    for case in tried.cases:
        meets = ((case.lower <= upper) & (lower <= case.upper)).flatten(1).all(1)
        if bool(meets.any()):
            found = _descended(graph, case, middle[meets], half[meets], FEW_STEPS, dtype)
            if found is not None:
                return found
    return None


def _margins(graph: Graph, lower: Tensor, upper: Tensor, cases: Sequence[Case], *, norms: bool) -> Tensor:
    """By how much some inequality of each case is broken at least, all over each box: ``(boxes, cases)``.

    ``norms`` says whether the layers' norms are worth their time.
    """
    graph, ball = as_cube(graph, lower, upper)
    rows = torch.cat([case.rows for case in cases]).to(graph.device)
    least = least_of_forms(graph, ball, rows[None], layer_norms(graph, "inf") if norms else None).cpu()
    limits = torch.cat([case.limits for case in cases])
    broken = least - limits - 4.0 * UNIT * (least.abs() + limits.abs())
    ends = list(itertools.accumulate(len(case.rows) for case in cases))
    parts = [broken[:, end - len(case.rows) : end].amax(1) for case, end in zip(cases, ends, strict=True)]
    return torch.stack(parts, 1)


def as_cube(graph: Graph, lower: Tensor, upper: Tensor) -> tuple[Graph, Ball]:
    """Boxes as balls in l_inf: of the network itself, or of one behind a factor for each entry of the input.

    The nodes of the network stand at the end of the other one's. Boxes of one shape lose nothing by being together.

    Args:
        graph: the network.
        lower, upper: ``(k, *input_shape)`` float64, the ends of k boxes.
    """
    center = 0.5 * lower + 0.5 * upper
    reach = torch.maximum(upper - center, center - lower).amax(0)
    reach = torch.nextafter(reach, torch.full_like(reach, math.inf))
    most = float(reach.max().clamp_min(FLOOR))
    if float(reach.min()) >= most * (1.0 - EVEN) or most <= THIN * float(center.abs().max()):
        return graph, Ball(center.to(graph.device), most, "inf")
    factors = reach.clamp_min(THIN * most)
    middle = center / factors
    ends = torch.stack([upper / factors - middle, middle - lower / factors])
    lost = 8.0 * UNIT * (upper.abs() + lower.abs() + center.abs()) / factors + FLOOR
    radius = float((ends.amax(0) + lost).max() * (1.0 + 4.0 * UNIT))
    return stretched(graph, factors), Ball(middle.to(graph.device), radius, "inf")


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


def _slope(graph: Graph, case: Case, x: Tensor, row: int | None = None) -> Tensor:
    """The gradient of an inequality's left side, or of that which is broken most."""
    with torch.enable_grad():
        leaf = x.to(graph.device, copy=True).requires_grad_()
        y = graph(leaf).flatten(1) @ case.rows.T.to(graph.device) - case.limits.to(graph.device)
        (slope,) = torch.autograd.grad((y.amax(1) if row is None else y[:, row]).sum(), leaf)
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
