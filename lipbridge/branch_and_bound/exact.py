"""The exact constant of a problem: roots of the tree, the search, and what both ends prove."""

from __future__ import annotations

import math
import time

import numpy as np
import torch
from torch import Tensor

from lipbridge.branch_and_bound.cascade import Cascade, Function, cascade_of
from lipbridge.branch_and_bound.cells import Domain
from lipbridge.branch_and_bound.expansion import Expansion
from lipbridge.branch_and_bound.parts import ALL, Part
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
#: Pieces of an activation at most: they are counted in 16 bits.
PIECES = 2**15 - 1
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
    domains, parts = roots(problem, cascade)
    expansion = Expansion(cascade, problem.input_norm, problem.output_norm, domains)
    processes = torch.get_num_threads() if memory > (2 + torch.get_num_threads()) * PROCESS else 1
    search = Search(
        expansion,
        deadline=began + 0.97 * seconds,
        memory=max(memory - PROCESS * (1 + processes), 2**20),
        processes=processes,
    )
    found = search.run(lower, parts)
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


def roots(problem: Problem, cascade: Cascade) -> tuple[list[Domain], list[Part]]:
    """The domains and the root of the tree of each."""
    table = PieceTable(cascade)
    first, last = torch.zeros_like(table.last), table.last
    region = problem.region
    if region is None:
        return [Domain(math.prod(problem.graph.input_shape))], [_mirrored(cascade, _root(first, last, 0))]
    centers = region.centers.detach().to("cpu").flatten(1)
    domains = [Domain(centers.shape[1], center.numpy(), region.radius, region.norm) for center in centers]
    low, high = first.expand(len(centers), -1).clone(), last.expand(len(centers), -1).clone()
    bounds = forward_bounds(
        cascade.graph,
        Ball(region.centers.cpu(), region.radius, region.norm),
        layer_norms(cascade.graph, region.norm),
        open_only=True,
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
    found = [_root(a, b, i) for i, (a, b) in enumerate(zip(low, high, strict=True))]
    return domains, [part if bool(centers[part.domain].any()) else _mirrored(cascade, part) for part in found]


def _root(low: Tensor, high: Tensor, domain: int) -> Part:
    a, b = low.numpy().astype(np.int16), high.numpy().astype(np.int16)
    return Part(a, b, ALL, np.zeros(0, dtype=np.int8), math.inf, domain, np.zeros((2, len(a)), dtype=bool))


def _mirrored(cascade: Cascade, part: Part) -> Part:
    """The part at one of each pair of points x and -x, where both have the same norm."""
    unit = mirrored_unit(cascade)
    if unit is None:
        return part
    middle = len(cascade.function(unit).slopes) // 2
    return part.cut(unit, 0, middle) if part.low[unit] < middle <= part.high[unit] else part


def mirrored_unit(cascade: Cascade) -> int | None:
    """A unit that may be kept from its middle piece up, because |J(-x)| = |J(x)|; None if that is not certain.

    It is if every output is an even or an odd function of x: a row of the Jacobian at -x is that at x, or has the other
    sign. Units are followed from the input. The unit is one that reads x alone, without a constant, and is even or odd:
    at one of the two points its argument is not below zero.
    """
    unit: int | None = None
    odd, even = torch.zeros(cascade.units, dtype=torch.bool), torch.zeros(cascade.units, dtype=torch.bool)
    for layer in cascade.layers:
        own, before = slice(layer.start, layer.stop), slice(0, layer.start)
        reads = ((cascade.P[own] != 0) | (cascade.P_error[own] != 0)).any(1)
        constant = (cascade.b[own] != 0) | (cascade.b_error[own] != 0)
        units = (cascade.A[own, before] != 0) | (cascade.A_error[own, before] != 0)
        argument_odd = ~constant & ~(units & ~odd[before]).any(1)
        argument_even = ~reads & ~(units & ~even[before]).any(1)
        even[own] = argument_even | argument_odd if is_even(layer.function) else argument_even
        odd[own] = argument_odd if is_odd(layer.function) else False
        alone = reads & argument_odd & ~units.any(1)
        bends = len(layer.function.slopes) > 1 and (is_even(layer.function) or is_odd(layer.function))
        if unit is None and bends and bool(alone.any()):
            unit = layer.start + int(alone.nonzero()[0])
    reads = ((cascade.D != 0) | (cascade.D_error != 0)).any(1)
    units = (cascade.C != 0) | (cascade.C_error != 0)
    fine = ~(units & ~odd).any(1) | (~reads & ~(units & ~even).any(1))
    return unit if bool(fine.all()) else None


def is_even(function: Function) -> bool:
    """Whether g(-t) = g(t)."""
    mirrored = tuple(-s for s in reversed(function.slopes)), tuple(reversed(function.offsets))
    return _symmetric(function) and mirrored == (function.slopes, function.offsets)


def is_odd(function: Function) -> bool:
    """Whether g(-t) = -g(t)."""
    mirrored = tuple(reversed(function.slopes)), tuple(-o for o in reversed(function.offsets))
    return _symmetric(function) and mirrored == (function.slopes, function.offsets)


def _symmetric(function: Function) -> bool:
    return tuple(-t for t in reversed(function.kinks)) == function.kinks


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
    most = max((len(layer.function.slopes) for layer in cascade.layers), default=1)
    if most > PIECES:
        return f"an activation has {most:,} pieces, more than the {PIECES:,} that a part of the search can number"
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


__all__ = ["exact_constant", "is_even", "is_odd", "mirrored_unit", "read", "roots", "span"]
