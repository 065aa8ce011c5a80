"""The best lower bound that a search finds within a time, with its witness."""

from __future__ import annotations

import math
import time
from dataclasses import replace

import torch
from torch import Tensor

from lipbridge import checks
from lipbridge.errors import InvalidArgument, NumericalFailure, UnsupportedProblem
from lipbridge.graph.nodes import Dense
from lipbridge.problem.bound import Bound
from lipbridge.problem.problem import Problem
from lipbridge.rigor.tangent_error import understood
from lipbridge.search import starts as origin
from lipbridge.search.ascent import Climb, ascent_step, deviation_step
from lipbridge.search.directions import batch_norm, gains, top_directions
from lipbridge.search.domain import Balls, Domain, Everywhere, homogeneous, joined
from lipbridge.search.pool import Pool, settle
from lipbridge.vocabulary import Norm, Quantity, Side

#: Smoothing widths at the beginning and the end of the first climb, and of the later ones, which start from its best.
WIDTHS = (1.0, 0.03)
LATER_WIDTHS = (0.3, 0.03)
#: Step lengths at the beginning and the end of a climb.
RATES = (0.3, 0.02)
#: Steps between two looks at the true gain.
LOOK = 10
#: Two rounds in a row that raise the best value by less than this, relatively, end the search.
STAGNATION = 2e-4
#: A climb starts from this share of the best starts; the others are drawn from the rest.
GREEDY = 0.75
#: Random points scored in a round: at most this many, and by about this many multiplications.
MOST_RANDOM = 4096
SCORING = 2**27
#: Points scored at once.
CHUNK = 512


def search_lower_bound(
    problem: Problem,
    starts: Tensor | None = None,
    *,
    seconds: float = 20.0,
    seed: int = 0,
    restarts: int = 32,
    steps: int = 100,
    rounds: int = 8,
) -> Bound:
    """A proved lower bound with a witness: the best point found by batched ascent from data and random starts.

    Args:
        problem: network, norms (all nine pairs), region and quantity.
        starts: ``(n, *input_shape)`` points to start from, e.g. test images; unused where the region is a ball.
        seconds: wall time after which the search stops with what it has.
        seed: of the random starts. The same seed gives the same bound on the CPU, unless time ran out.
        restarts: how many points climb at once.
        steps: steps of one climb.
        rounds: at most this many climbs, each from the best points of the ones before and fresh random ones; fewer
            when two bring nothing.

    Raises:
        InvalidArgument: for starts of a wrong shape or counts below one.
        UnsupportedProblem: for a layer whose rounding is not known.
        NumericalFailure: if weights, starts or centres hold NaN or infinite entries.

    Law: never above the true constant; :func:`witness_value` of its witness is its value.
    """
    began = time.perf_counter()
    checks.instance(problem, Problem, "problem", "be a Problem, e.g. Problem(lipbridge.capture(module))")
    starts = None if starts is None else checks.tensor(starts, "starts")
    seconds = checks.real(seconds, "seconds")
    seed = checks.whole(seed, "seed", 0, 2**63 - 1)
    _check(problem, starts, restarts=restarts, steps=steps, rounds=rounds)
    search = _Search(problem, seed, began + seconds, restarts, steps)
    x, domain = search.first(starts, search.affordable())
    pool, best, idle, count = None, 0.0, 0, 0
    while count < rounds and idle < 2:
        pool = search.climb(x, domain, pool)
        value, count = float(pool.value.max()), count + 1
        idle = 0 if value > best * (1.0 + STAGNATION) else idle + 1
        best = value
        if time.perf_counter() > search.deadline:
            break
        x, domain = search.again(pool)
    assert pool is not None  # there is at least one round
    value, witness = settle(problem, pool)
    return Bound(
        value=value,
        side=Side.LOWER,
        proved=True,
        question=problem.question,
        method="witness search",
        detail="" if witness else "no differentiable point was found; zero always holds",
        witness=witness,
        extra={"rounds": count},
        seconds=time.perf_counter() - began,
    )


class _Search:
    """One search: what does not change from round to round."""

    def __init__(self, problem: Problem, seed: int, deadline: float, restarts: int, steps: int) -> None:
        self.problem, self.graph = problem, problem.graph
        self.p: Norm = problem.input_norm
        self.q: Norm = problem.output_norm
        self.generator = torch.Generator().manual_seed(seed)
        self.deadline, self.restarts, self.steps = deadline, restarts, steps
        self.homogeneous = homogeneous(problem.graph)
        self.device = problem.graph.device

    def first(self, starts: Tensor | None, count: int) -> tuple[Tensor, Domain]:
        """Points to start from, data and ``count`` random ones."""
        region = self.problem.region
        if region is not None:
            x, balls = origin.in_balls(region, count, self.generator)
            return x.to(self.device), Balls(balls.centers.to(self.device), balls.radius, balls.norm)
        x = origin.everywhere(self.graph.input_shape, starts, count, self.homogeneous, self.generator)
        domain = Everywhere(self.homogeneous)
        return domain.project(x.to(self.device)), domain

    def affordable(self) -> int:
        """How many random points to score: thousands where that costs little, as in the plane's narrow sectors."""
        weights = [node.weight.numel() for node in self.graph.nodes if isinstance(node, Dense)]
        return max(self.restarts, min(MOST_RANDOM, SCORING // (1 + math.prod(self.graph.output_shape) * sum(weights))))

    def again(self, pool: Pool) -> tuple[Tensor, Domain]:
        """The best points, moved a little and not so little, and fresh random ones."""
        kept = pool.best(max(1, self.restarts // 4)).repeated(4)
        near = origin.perturbed(kept.x, kept.domain, self.generator)
        fresh, domain = self.first(None, self.affordable())
        return torch.cat([near, fresh]), joined(kept.domain, domain)

    def climb(self, x: Tensor, domain: Domain, pool: Pool | None) -> Pool:
        """The pool after a climb from the most promising of the points ``x``."""
        widths = WIDTHS if pool is None else LATER_WIDTHS
        found = self.promising(self.scored(x, domain))
        state = Climb.start(found.x, found.v)
        outputs = self.graph(found.domain.centers) if isinstance(found.domain, Balls) else found.x
        for step in range(self.steps):
            fraction = step / max(1, self.steps - 1)
            width, rate = _between(widths, fraction), _between(RATES, fraction)
            if self.problem.quantity is Quantity.DEVIATION and isinstance(found.domain, Balls):
                state = deviation_step(self.graph, state, found.domain, outputs, self.q, rate)
            else:
                state = ascent_step(self.graph, state, found.domain, self.p, self.q, width, rate)
            if (step + 1) % LOOK == 0 or step + 1 == self.steps:
                v, value = self.look(state.x, state.v, found.domain)
                found = found.improved(state.x, v, value)
                state = replace(state, v=self.direction(state.x, state.v, width))
                if time.perf_counter() > self.deadline:
                    break
        return found.joined(pool).best(2 * self.restarts)

    def promising(self, scored: Pool) -> Pool:
        """Where to climb from: mostly the best, and a few others, since the best may share a dead end."""
        ordered = scored.best(len(scored.value))
        greedy = max(1, round(GREEDY * self.restarts))
        rest = greedy + torch.randperm(max(0, len(ordered.value) - greedy), generator=self.generator)
        index = torch.cat([torch.arange(min(greedy, len(ordered.value))), rest[: self.restarts - greedy]])
        return ordered.rows(index.to(self.device))

    def scored(self, x: Tensor, domain: Domain) -> Pool:
        """All points with their best directions and gains, in pieces that fit the memory."""
        v = torch.randn(x.shape, generator=self.generator, dtype=torch.float64).to(self.device)
        rows: list[tuple[Tensor, Tensor]] = []
        index = torch.arange(len(x), device=self.device)
        for start in range(0, len(x), CHUNK):
            piece = index[start : start + CHUNK]
            rows.append(self.look(x[piece], v[piece], domain.select(piece)))
            if time.perf_counter() > self.deadline and len(rows) * CHUNK >= self.restarts:
                break
        directions, values = (torch.cat(parts) for parts in zip(*rows, strict=True))
        return Pool(x[: len(values)], directions, values, domain.select(index[: len(values)]))

    def look(self, x: Tensor, v: Tensor, domain: Domain) -> tuple[Tensor, Tensor]:
        """The true direction and gain at each point."""
        if self.problem.quantity is Quantity.DEVIATION and isinstance(domain, Balls):
            change = batch_norm(self.graph(x) - self.graph(domain.centers), self.q) / domain.radius
            return v, torch.where(torch.isfinite(change), change, 0.0)
        v = self.direction(x, v, 0.0)
        return v, gains(self.graph, x, v, self.p, self.q)

    def direction(self, x: Tensor, v: Tensor, width: float) -> Tensor:
        if self.problem.quantity is Quantity.DEVIATION:
            return v
        return top_directions(self.graph, x, v, self.p, self.q, width)


def _between(ends: tuple[float, float], fraction: float) -> float:
    return ends[0] * (ends[1] / ends[0]) ** fraction


def _check(problem: Problem, starts: Tensor | None, **counts: int) -> None:
    for name, count in counts.items():
        checks.whole(count, name, 1, 2**31)
    reason = understood(problem.graph)
    if reason is not None:
        raise UnsupportedProblem(f"The witness search cannot take this network: {reason}.")
    if starts is not None and (not starts.ndim or tuple(starts.shape[1:]) != problem.graph.input_shape):
        raise InvalidArgument(
            "starts", f"have shape (n, {', '.join(map(str, problem.graph.input_shape))})", tuple(starts.shape)
        )
    region = problem.region
    tensors = [getattr(node, name, None) for node in problem.graph.nodes for name in ("weight", "bias")]
    tensors += [starts, None if region is None else region.centers]
    if not all(bool(torch.isfinite(tensor).all()) for tensor in tensors if isinstance(tensor, Tensor)):
        raise NumericalFailure("The weights, starts or centres hold NaN or infinite entries.")
