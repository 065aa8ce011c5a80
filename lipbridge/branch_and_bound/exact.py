"""The exact constant of a problem: roots of the tree, the search, and what both ends prove."""

from __future__ import annotations

import math
import time

import torch
from torch import Tensor

from lipbridge.branch_and_bound.cascade import Cascade, Function, cascade_of
from lipbridge.branch_and_bound.cells import Domain
from lipbridge.branch_and_bound.pieces import PieceTable
from lipbridge.branch_and_bound.search import Search
from lipbridge.constants.trivial import trivial_bound
from lipbridge.errors import InvalidArgument, UnsupportedOperation, UnsupportedProblem
from lipbridge.problem.bound import Bound, Witness
from lipbridge.problem.problem import Problem
from lipbridge.problem.question import Ball
from lipbridge.propagation.bounds import forward_bounds, layer_norms
from lipbridge.search.directions import top_directions
from lipbridge.search.lower_bound import search_lower_bound
from lipbridge.search.witness import witness_value
from lipbridge.vocabulary import Side, Status

METHOD = "branch and bound"
#: Products of weights must stay so far from the ends of float64, as a power of two, that their squares do too.
SPAN = 450.0
#: Upper and lower bounds that differ by less, relatively, are one number.
EXACT = 1e-9
#: Seconds of the first search for a lower bound, and the share of the time that it may take.
FIRST_SEARCH, FIRST_SHARE = 20.0, 0.05
#: Networks of so few units have a short one: the tree finds better points soon.
FEW_UNITS, FEW_ROUNDS = 100, 1
#: Resident memory of the process without the tree.
PROCESS = 600 * 2**20


def exact_constant(problem: Problem, cascade: Cascade, *, seconds: float, memory: float, seed: int = 0) -> Bound:
    """The constant of a piecewise linear network, or, at a limit, a proved upper bound beside a proved lower one.

    Args:
        problem: of a cheap pair of norms, everywhere or on balls.
        cascade: of its graph.
        seconds: wall time from now.
        memory: bytes of the process.
        seed: of the first search for a witness.

    Returns:
        ``side`` is exact if both bounds agree to 1e-9; ``value`` is the upper one. ``extra`` holds ``lower``, ``gap``
        (relative), ``regions``, ``leaves``, ``infeasible``, ``unproved`` (cells that are empty by the figures alone)
        and ``open``.

    Law: never below a witness, never above the trivial bound; the witness's value is ``extra["lower"]``.
    """
    began = time.perf_counter()
    lower, witness = _first_witness(problem, cascade, min(FIRST_SEARCH, FIRST_SHARE * seconds), seed)
    domains, starts = roots(problem, cascade)
    search = Search(
        cascade,
        problem.input_norm,
        problem.output_norm,
        domains,
        deadline=began + 0.97 * seconds,
        memory=max(memory - PROCESS, 2**20),
    )
    found = search.run(lower, starts)
    for x in reversed(found.points):
        known = _witness_at(problem, x)
        if known is not None:
            lower, witness = max((lower, witness), known, key=lambda pair: pair[0])
            break
    trivial = trivial_bound(problem.graph, problem.input_norm, problem.output_norm).value
    upper = max(min(found.upper, trivial), lower)
    gap = upper / lower - 1.0 if lower > 0.0 else math.inf if upper > 0.0 else 0.0
    exact = gap <= EXACT
    status = Status.OK if exact else found.status
    open_ = "" if exact else _why(status, found.unproved)
    return Bound(
        value=upper,
        side=Side.EXACT if exact else Side.UPPER,
        proved=True,
        question=problem.question,
        method=METHOD,
        seconds=time.perf_counter() - began,
        status=status,
        detail=open_,
        witness=witness,
        extra={
            "lower": lower,
            "gap": gap if math.isfinite(gap) else None,
            "regions": found.regions,
            "leaves": found.leaves,
            "infeasible": found.empty,
            "unproved": found.unproved,
            "open": found.left,
        },
    )


def _why(status: Status, unproved: int) -> str:
    if status is not Status.OK:
        return f"The {'time' if status is Status.TIMEOUT else 'memory'} limit was reached; both bounds are proved."
    if unproved:
        return f"{unproved} regions look empty, which rounding hides; both bounds are proved."
    return "Rounding is larger than the gap that an exact value may have; both bounds are proved."


def roots(problem: Problem, cascade: Cascade) -> tuple[list[Domain], list[tuple[Tensor, Tensor]]]:
    """The domains and, for each, the pieces ``(U,)`` that units can be on."""
    table = PieceTable(cascade)
    first, last = torch.zeros_like(table.last), table.last
    region = problem.region
    if region is None:
        unit = mirrored_unit(cascade)
        if unit is not None:
            first = first.clone()
            first[unit] = 1
        return [Domain(math.prod(problem.graph.input_shape))], [(first, last)]
    centers = region.centers.detach().to("cpu").flatten(1)
    domains = [Domain(centers.shape[1], center.numpy(), region.radius, region.norm) for center in centers]
    low, high = first.expand(len(centers), -1).clone(), last.expand(len(centers), -1).clone()
    bounds = forward_bounds(
        cascade.graph, Ball(region.centers.cpu(), region.radius, region.norm), layer_norms(cascade.graph, region.norm)
    )
    for layer in cascade.layers:
        if len(layer.function.slopes) == 1:
            continue
        own = slice(layer.start, layer.stop)
        source = bounds[cascade.graph.nodes[layer.node].inputs[0]]
        kinks, error = table.kinks[own, 1:-1], table.kink_error[own, None]
        z = (source.lower.flatten(1)[..., None], source.upper.flatten(1)[..., None])
        low[:, own] = (kinks + error <= z[0]).sum(-1).clamp_max(table.last[own])
        high[:, own] = torch.maximum((kinks - error < z[1]).sum(-1), low[:, own]).clamp_max(table.last[own])
    return domains, list(zip(low, high, strict=True))


def mirrored_unit(cascade: Cascade) -> int | None:
    """A unit that may be taken on its upper piece because f(-x) = f(x); None if that is not certain.

    It is if x enters through arguments without a constant alone, and all of those are of even functions. Then the
    Jacobian at -x is that at x with the other sign, and one of the two points has the argument of the unit above zero.
    """
    if bool(cascade.D.any()) or bool(cascade.D_error.any()):
        return None
    reads = ((cascade.P != 0) | (cascade.P_error != 0)).any(1)
    for layer in cascade.layers:
        own = slice(layer.start, layer.stop)
        if not bool(reads[own].any()):
            continue
        constant = bool(cascade.b[own].any() or cascade.b_error[own].any())
        beyond = bool(cascade.A[own].any() or cascade.A_error[own].any())
        if constant or beyond or not bool(reads[own].all()) or not is_even(layer.function):
            return None
    return next((layer.start for layer in cascade.layers if bool(reads[layer.start])), None) if reads.any() else None


def is_even(function: Function) -> bool:
    """Whether g(-t) = g(t), with one kink, at zero."""
    return function.kinks == (0,) and function.slopes[0] == -function.slopes[1]


def _first_witness(problem: Problem, cascade: Cascade, seconds: float, seed: int) -> tuple[float, Witness | None]:
    rounds = FEW_ROUNDS if cascade.units <= FEW_UNITS else 8
    try:
        found = search_lower_bound(problem, seconds=seconds, seed=seed, rounds=rounds, steps=50)
    except (UnsupportedProblem, UnsupportedOperation):
        return 0.0, None
    return found.value, found.witness


def _witness_at(problem: Problem, x: Tensor) -> tuple[float, Witness] | None:
    """What the Jacobian at a point ``(n,)`` proves."""
    graph = problem.graph
    point = x.reshape(1, *graph.input_shape).to(graph.device)
    v = torch.ones_like(point)
    v = top_directions(graph, point, v, problem.input_norm, problem.output_norm, 0.0)
    witness = Witness(point, v)
    try:
        return witness_value(problem, witness), witness
    except (InvalidArgument, UnsupportedOperation):
        return None


def read(problem: Problem) -> Cascade | str:
    """The normal form of a problem's network, or the reason why there is none."""
    try:
        cascade = cascade_of(problem.graph)
    except (UnsupportedProblem, UnsupportedOperation) as error:
        return str(error)
    low, high = span(cascade)
    if low < -SPAN or high > SPAN:
        return (
            f"products of its weights may lie between 2^{low:.0f} and 2^{high:.0f}, where float64 has no room for the "
            "squares; rescale the network"
        )
    return cascade


def span(cascade: Cascade) -> tuple[float, float]:
    """Binary logarithms that no product of weights and slopes along a path, nor of some of them, leaves.

    The bounds of parts multiply layers, and layers' products with themselves, and count on none of them to underflow.
    """
    tensors = [cascade.P, cascade.C, cascade.D, cascade.b]
    tensors += [cascade.A[layer.start : layer.stop] for layer in cascade.layers]
    slopes = [abs(slope) for layer in cascade.layers for slope in layer.function.slopes if slope]
    low = sum(min(math.log2(slope), 0.0) for slope in slopes) if slopes else 0.0
    high = sum(max(math.log2(slope), 0.0) for slope in slopes) if slopes else 0.0
    for x in tensors:
        sizes = x[x != 0].abs()
        if sizes.numel() and bool(torch.isfinite(sizes).all()):
            low += min(math.log2(float(sizes.min())), 0.0)
            high += max(math.log2(float(sizes.max())), 0.0) + math.log2(max(x.shape[-1], 1))
    return low, high


__all__ = ["exact_constant", "is_even", "mirrored_unit", "read", "roots", "span"]
