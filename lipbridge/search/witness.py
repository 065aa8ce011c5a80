"""What a witness proves: its value, recomputed from the Problem alone and rounded down."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from lipbridge import checks
from lipbridge.errors import InvalidArgument
from lipbridge.problem.bound import Witness
from lipbridge.problem.problem import Problem
from lipbridge.problem.question import Ball
from lipbridge.rigor.running_error import enclose
from lipbridge.rigor.tangent_error import enclose_tangent
from lipbridge.rounding.scalars import UNIT, gamma
from lipbridge.search.directions import batch_norm
from lipbridge.vocabulary import Norm, Quantity


def witness_value(problem: Problem, witness: Witness) -> float:
    """The lower bound that a witness proves, evaluated in float64 and rounded down by its own running error.

    Args:
        problem: what is bounded.
        witness: a point with a direction, or a pair of points; see :class:`lipbridge.Witness`.

    Raises:
        InvalidArgument: if it proves nothing: a point too close to a kink for the network to be differentiable there
            (in float64), a point outside the region, points that coincide, or numbers beyond float64.
        UnsupportedOperation: for a layer whose rounding is not known.

    Law: never above the true constant of the real-number function; equal to a plain float64 evaluation but for
    rounding.
    """
    checks.instance(problem, Problem, "problem", "be a Problem, e.g. Problem(lipbridge.capture(module))")
    checks.instance(witness, Witness, "witness", "be a Witness (that of a Bound which a search found)")
    shape, pair = problem.graph.input_shape, witness.direction is None or problem.quantity is Quantity.DEVIATION
    device = problem.graph.device
    points = _points(witness.points, "points", (2 if pair else 1, *shape)).to(device)
    if problem.quantity is Quantity.DEVIATION or witness.direction is None:
        value = float(pair_values(problem, points[:1], points[1:])[0])
    else:
        direction = _points(witness.direction, "direction", (1, *shape)).to(device)
        _require(_inside(points, problem.region), "lie in the region")
        value = float(point_values(problem, points, direction)[0])
    _require(not math.isnan(value), "be a point away from kinks, or two different points in the region")
    return value


def _points(value: object, name: str, shape: tuple[int, ...]) -> Tensor:
    found = checks.tensor(value, name)
    if tuple(found.shape) != shape or found.dtype is torch.bool:
        raise InvalidArgument(name, f"be numbers of shape {shape}", tuple(found.shape))
    return found.to(torch.float64)


def point_values(problem: Problem, x: Tensor, v: Tensor) -> Tensor:
    """``||J(x) v||_q / ||v||_p`` rounded down, ``(batch,)``; NaN where the network has a kink or is not finite."""
    y = enclose_tangent(problem.graph, x, v)
    top = lower_norm(y.tangent.value, y.tangent.error, problem.output_norm)
    value = _quotient_down(top, _norm_up(v, problem.input_norm))
    return torch.where(y.sound & torch.isfinite(value), value, math.nan)


def pair_values(problem: Problem, x: Tensor, y: Tensor) -> Tensor:
    """The quotient of pairs rounded down, ``(batch,)``; NaN where it is not finite or a point is outside.

    For the quantity ``deviation`` x must be a centre and the divisor is the radius; otherwise it is ||x - y||_p.
    """
    at_x, at_y = enclose(problem.graph, x), enclose(problem.graph, y)
    difference = at_x.value - at_y.value
    error = (at_x.error + at_y.error + 2.0 * UNIT * difference.abs()) * (1.0 + 8.0 * UNIT)
    top = lower_norm(difference, error, problem.output_norm)
    if problem.quantity is Quantity.DEVIATION:
        assert problem.region is not None  # Problem requires it
        value = _quotient_down(top, torch.full_like(top, problem.region.radius))
        fits = _in_some_ball(y, problem.region, x)
    else:
        value = _quotient_down(top, _norm_up(x - y, problem.input_norm))
        fits = _in_one_ball(x, y, problem.region)
    return torch.where(fits & torch.isfinite(value), value, math.nan)


def lower_norm(value: Tensor, error: Tensor, norm: Norm) -> Tensor:
    """``(batch,)``: never above the norm of any tensor within ``error`` of ``value``."""
    least = (value.abs() * (1.0 - UNIT) - error).clamp_min(0.0) * (1.0 - 4.0 * UNIT)
    return batch_norm(least, norm) * (1.0 - 4.0 * gamma(least[0].numel() + 8))


def _norm_up(x: Tensor, norm: Norm) -> Tensor:
    return batch_norm(x, norm) * (1.0 + 4.0 * gamma(x[0].numel() + 8))


def _quotient_down(top: Tensor, bottom: Tensor) -> Tensor:
    quotient = (top / bottom) * (1.0 - 4.0 * UNIT)
    return torch.where(quotient < 1e-290, 0.0, quotient)  # relative errors say nothing near the subnormal range


def _distances_up(x: Tensor, centers: Tensor, norm: Norm) -> Tensor:
    return _norm_up(x - centers, norm) * (1.0 + 4.0 * UNIT)


def _inside(x: Tensor, region: Ball | None) -> bool:
    """Whether a single point ``(1, *shape)`` is inside one of the balls, not on its surface."""
    if region is None:
        return True
    centers = region.centers.to(device=x.device, dtype=torch.float64)
    return bool((_distances_up(x.expand_as(centers), centers, region.norm) < region.radius).any())


def _in_one_ball(x: Tensor, y: Tensor, region: Ball | None) -> Tensor:
    """Whether a ball holds both points of each pair, ``(batch,)``."""
    if region is None:
        return torch.ones(len(x), dtype=torch.bool, device=x.device)
    fits = torch.zeros(len(x), dtype=torch.bool, device=x.device)
    for center in region.centers.to(device=x.device, dtype=torch.float64):
        near = [_distances_up(point, center.expand_as(point), region.norm) <= region.radius for point in (x, y)]
        fits = fits | (near[0] & near[1])
    return fits


def _in_some_ball(y: Tensor, region: Ball, x: Tensor) -> Tensor:
    """Whether x is a centre and y in the ball around it, ``(batch,)``."""
    centers = region.centers.to(device=x.device, dtype=torch.float64).flatten(1)
    central = (x.flatten(1)[:, None] == centers[None]).all(dim=2).any(dim=1)
    return central & (_distances_up(y, x, region.norm) <= region.radius)


def _require(condition: bool, should: str) -> None:
    if not condition:
        raise InvalidArgument("witness", should, "one that proves nothing")
