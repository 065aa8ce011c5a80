"""Verdicts on properties by what the core proves: linear bounds on boxes, and a search for counterexamples."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence

import torch
from torch import Tensor

from lipbridge.errors import InvalidArgument
from lipbridge.graph.graph import Graph, with_axes
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


def judge(graph: Graph, asked: Property, *, seed: int = 0, starts: Tensor | None = None) -> Judgement:
    """Whether a network has a property: sound and incomplete.

    ``verified`` is proved for real arithmetic, after rounding; ``falsified`` comes with an input that breaks the
    property for certain. Boxes whose sides differ are bounded on the smallest cube around them.

    Args:
        graph: the network.
        asked: of its input shape and number of outputs.
        seed: of the search's random starts.
        starts: ``(k, *input_shape)``: further ones, moved into each case's box.

    Raises:
        InvalidArgument: if the property is not of this network.
        UnsupportedOperation: for a node without a rule.
    """
    began = time.perf_counter()
    graph = with_axes(graph)
    if asked.input_shape != graph.input_shape or asked.outputs != math.prod(graph.output_shape):
        should = f"be of inputs {graph.input_shape} and {math.prod(graph.output_shape)} outputs, as the network is"
        raise InvalidArgument("asked", should, (asked.input_shape, asked.outputs))
    margin = min(_margin(graph, lower, upper, cases) for lower, upper, cases in asked.boxes)
    if margin > 0.0:
        return Judgement(Verdict.VERIFIED, margin, None, time.perf_counter() - began)
    found = counterexample(graph, asked.cases, seed=seed, starts=starts)
    verdict = Verdict.UNKNOWN if found is None else Verdict.FALSIFIED
    return Judgement(verdict, margin, found, time.perf_counter() - began)


def _margin(graph: Graph, lower: Tensor, upper: Tensor, cases: Sequence[Case]) -> float:
    """By how much some inequality of each case is broken at least, all over the box."""
    center = 0.5 * lower + 0.5 * upper
    reach = torch.nextafter(torch.maximum(upper - center, center - lower), torch.tensor(math.inf, dtype=torch.float64))
    radius = float(reach.max().clamp_min(FLOOR))
    ball = Ball(center[None].to(graph.device), radius, "inf")
    rows = torch.cat([case.rows for case in cases]).to(graph.device)
    least = least_of_forms(graph, ball, rows[None], layer_norms(graph, "inf"))[0].cpu()
    limits = torch.cat([case.limits for case in cases])
    broken = least - limits - 4.0 * UNIT * (least.abs() + limits.abs())
    found: list[float] = []
    start = 0
    for case in cases:
        found.append(float(broken[start : start + len(case.rows)].max()))
        start += len(case.rows)
    return min(found)


def counterexample(
    graph: Graph, cases: Sequence[Case], *, seed: int = 0, starts: Tensor | None = None
) -> Tensor | None:
    """An input that obeys all inequalities of a case for certain, by signed gradients; None if none was found."""
    generator = torch.Generator().manual_seed(seed)
    for case in cases:
        half = 0.5 * case.upper - 0.5 * case.lower
        corners = 2.0 * torch.randint(0, 2, (STARTS - 1, *half.shape), generator=generator).to(half) - 1.0
        x = (0.5 * case.lower + 0.5 * case.upper)[None] + torch.cat([torch.zeros_like(half)[None], corners]) * half
        x = x if starts is None else torch.cat([starts.to(x), x])
        for step in range(STEPS + 1):
            x = torch.minimum(torch.maximum(x, case.lower), case.upper)
            obeyed = _obeyed(graph, case, x)
            if bool(obeyed.any()):
                return x[int(obeyed.nonzero()[0])]
            if step < STEPS:
                rate = RATES[0] * (RATES[1] / RATES[0]) ** (step / STEPS)
                x = x - rate * half * _slope(graph, case, x).sign()
    return None


def _slope(graph: Graph, case: Case, x: Tensor) -> Tensor:
    with torch.enable_grad():
        leaf = x.to(graph.device, copy=True).requires_grad_()
        y = graph(leaf).flatten(1) @ case.rows.T.to(graph.device) - case.limits.to(graph.device)
        (slope,) = torch.autograd.grad(y.amax(1).sum(), leaf)
    return slope.cpu()


def _obeyed(graph: Graph, case: Case, x: Tensor) -> Tensor:
    """``(k,)``: which inputs obey all inequalities in exact arithmetic, as far as running errors show."""
    y = enclose(graph, x.to(graph.device))
    value, error = y.value.flatten(1).cpu(), y.error.flatten(1).cpu()
    size = value.abs() @ case.rows.abs().T + case.limits.abs()
    lost = error @ case.rows.abs().T + 4.0 * gamma(value.shape[1] + 8) * size + FLOOR
    return (value @ case.rows.T - case.limits + lost * (1.0 + 2.0**-40) <= 0.0).all(1)


__all__ = ["counterexample", "judge"]
