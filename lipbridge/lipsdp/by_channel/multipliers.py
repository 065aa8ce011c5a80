"""LipSDP on networks with convolutions: one multiplier a channel, and no matrix of a convolution.

The multipliers of a channel's positions are equal, so that the matrix inequality keeps the convolutions' structure. It
is kept whole along runs of layers (:mod:`lipbridge.lipsdp.by_channel.runs`) and cut between them, where the scaled
layers' norms are multiplied (:mod:`lipbridge.rescaling.channels`). All multipliers and factors are found together, by
L-BFGS on smoothed eigenvalues, and the best are proved.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence

import torch
from torch import Tensor

from lipbridge.constants.trivial import trivial_bound
from lipbridge.errors import NumericalFailure, UnsupportedProblem
from lipbridge.graph.nodes import Conv, MaxPool
from lipbridge.lipsdp.by_channel.constant import log_constant, starting_logs
from lipbridge.lipsdp.by_channel.proof import prove_run
from lipbridge.lipsdp.by_channel.runs import Run, predicted_memory, runs_of
from lipbridge.lipsdp.dense_problem import other_question
from lipbridge.lipsdp.system import name
from lipbridge.problem.bound import Bound
from lipbridge.problem.problem import Problem
from lipbridge.rescaling.channel_chain import ChannelChain, channel_chain
from lipbridge.rescaling.channels import Objective, as_factors, best_factors, minimised, ones, proved_product
from lipbridge.rounding.scalars import UNIT, mul_up
from lipbridge.vocabulary import Side, Status

METHOD = "LipSDP, one multiplier a channel"
#: Orders of the Schatten norms where runs are kept whole, as squarings, and the progress at which the next follows.
RUN_STAGES = ((4, 1e-4), (6, 1e-5), (8, 1e-6))


def channel_problem(problem: Problem) -> ChannelChain | str:
    """The chain that one multiplier a channel can bound, or the reason why it cannot, in one line."""
    reason = other_question(problem)
    if reason is not None:
        return reason
    if problem.region is not None:
        return (
            "convolutions that have no exact matrix (too large, or padding that copies inputs onto one another) are "
            "bounded everywhere, not on balls"
        )
    try:
        return channel_chain(problem.graph)
    except UnsupportedProblem as error:
        return str(error)


def has_convolutions(problem: Problem) -> bool:
    """Whether the Graph has layers that a channel's multiplier is for."""
    return any(isinstance(node, Conv | MaxPool) for node in problem.graph)


def bound_by_channels(
    problem: Problem, deadline: float, memory: float = math.inf, chain: ChannelChain | None = None
) -> Bound:
    """The proved bound of the best multipliers by a time of ``time.perf_counter``, never above the trivial bound.

    Runs that would take more than ``memory`` bytes are cut: the scaled layers' norms stand.

    Raises:
        NumericalFailure: for NaN weights, or a bound beyond float64.
    """
    start = time.perf_counter()
    chain = chain or channel_chain(problem.graph)
    factors = ones(chain)
    value = min(proved_product(chain, factors), trivial_bound(problem.graph).value)
    multipliers = [d.square()[None] for d in factors]
    runs = _runs(chain, memory)
    now = time.perf_counter()
    until = deadline - min(2.0 * (now - start), 0.3 * (deadline - start))  # proofs take about as long as the first one
    best = best_factors(chain, now + 0.3 * (until - now) if runs else until)
    late = time.perf_counter() > until
    found = proved_product(chain, best)
    if found < value:
        value, factors = found, best
        multipliers = [d.square()[None] for d in factors]
    if runs and value > 0.0 and time.perf_counter() < until:
        try:
            found, whole = _bound_by_runs(chain, runs, best, until)
        except NumericalFailure:  # rounding leaves no room: the product stands
            found, whole = math.inf, multipliers
        if found < value:
            value, multipliers = found, whole
        late = time.perf_counter() > until
    return Bound(
        value=value,
        side=Side.UPPER,
        proved=True,
        question=problem.question,
        method=METHOD,
        seconds=time.perf_counter() - start,
        status=Status.TIMEOUT if late else Status.OK,
        detail="The time limit was reached; the multipliers so far were proved." if late else "",
        multipliers={name(index): T.flatten() for index, T in enumerate(multipliers, start=1)},
    )


def _runs(chain: ChannelChain, memory: float) -> list[Run]:
    try:
        runs = runs_of(chain)
    except NumericalFailure:  # a scale overflows
        return []
    return runs if predicted_memory(runs) <= memory else []


class _Whole:
    """The log of the bound, and its gradient, in the logs of the outer joints' factors and the runs' multipliers."""

    def __init__(self, chain: ChannelChain, runs: Sequence[Run]) -> None:
        self.chain, self.runs = chain, runs
        inner = {index for run in runs for index in range(run.first, run.last)}
        inside = {index for run in runs for index in range(run.first, run.last + 1)}
        self.outer = [index for index in range(len(chain.joints)) if index not in inner]
        self.alone = [index for index in range(len(chain.layers)) if index not in inside]
        self.separate = Objective(chain, self.outer, self.alone)
        self.sizes = [chain.joints[index].units for index in self.outer]
        self.shapes = [
            (rule.constraints, units) for run in runs for rule, units in zip(run.increments, run.units, strict=True)
        ]

    def joined(self, factors: Sequence[Tensor], logs: Sequence[Tensor]) -> Tensor:
        return torch.cat([*(factors[index].log() for index in self.outer), *(values.flatten() for values in logs)])

    def parted(self, x: Tensor) -> tuple[dict[int, Tensor], list[list[Tensor]]]:
        """Logs of the outer joints' factors, and of each run's multipliers."""
        parts = list(torch.split(x, [*self.sizes, *(a * b for a, b in self.shapes)]))
        logs = [part.reshape(shape) for part, shape in zip(parts[len(self.sizes) :], self.shapes, strict=True)]
        grouped: list[list[Tensor]] = []
        for run in self.runs:
            grouped.append(logs[: len(run.increments)])
            logs = logs[len(run.increments) :]
        return dict(zip(self.outer, parts[: len(self.sizes)], strict=True)), grouped

    def __call__(self, x: Tensor, squarings: int) -> tuple[Tensor, Tensor]:
        count = sum(self.sizes)
        value, slopes = self.separate(x[:count], squarings)
        with torch.enable_grad():
            point = x.detach().requires_grad_()
            outer, logs = self.parted(point)
            total = torch.zeros((), dtype=torch.float64)
            for run, own in zip(self.runs, logs, strict=True):
                total = total + log_constant(run, own, outer.get(run.first - 1), outer.get(run.last), squarings)
            if not bool(torch.isfinite(total)):
                return total.detach(), torch.zeros_like(x)
            (gradient,) = torch.autograd.grad(total, point)
        gradient[:count] += slopes.to(gradient.device)
        return value.to(total.device) + total.detach(), gradient


def _bound_by_runs(
    chain: ChannelChain, runs: Sequence[Run], factors: Sequence[Tensor], deadline: float
) -> tuple[float, list[Tensor]]:
    """The proved bound and the multipliers (factors squared, of the outer joints), from factors to begin with."""
    whole = _Whole(chain, runs)
    known = {index: d.log().to(whole.separate.device) for index, d in enumerate(factors)}
    norms = [math.exp(whole.separate.log_norm(index, known, 6)[0]) for index in range(len(chain.layers))]
    logs: list[Tensor] = []
    for run in runs:
        logs += starting_logs(run, factors[run.first : run.last], norms[run.first : run.last + 1])
    x = whole.joined(factors, logs)
    now = time.perf_counter()
    x = minimised(whole, x, RUN_STAGES, now + 0.6 * (deadline - now))
    outer, multipliers = whole.parted(x)
    used = [as_factors(outer[index]) if index in outer else factors[index] for index in range(len(chain.joints))]
    bound = proved_product(chain, used, whole.alone)
    table = [d.square()[None] for d in used]
    for run, own in zip(runs, multipliers, strict=True):
        before = used[run.first - 1] if run.first else None
        after = used[run.last] if run.last < len(chain.joints) else None
        # Multipliers refer to the factors behind the run, which were brought to geometric mean one.
        shift = 0.0 if after is None else 2.0 * float(outer[run.last].mean())
        T = [(values - shift).exp() for values in own]
        constant = chain.joints[run.last].constant if after is not None else 1.0
        bound = mul_up(bound, prove_run(run, T, before, after), constant, 1.0 + 4.0 * UNIT)
        table[run.first : run.last] = T
    return bound, table
