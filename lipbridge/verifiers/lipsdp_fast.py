"""The least l_2 bound that diagonal multipliers give, without an SDP solver: Newton's method on the barrier, in torch.

The quality of LipSDP (Fazlyab et al. 2019) for every dense chain and every activation: each iterate is feasible, the
gap to the optimum is measured, and the best multipliers are proved in outward-rounded float64. Networks of slopes in
[-1, 1] and of joint constraints fall apart into a chain of small inequalities, which is solved as such. Where Newton's
method does not fit into the limits, descent on the log-multipliers takes its place, and the gap is not known.
"""

from __future__ import annotations

import math
import time
from dataclasses import replace

import torch

from lipbridge.errors import NumericalFailure
from lipbridge.graph.graph import Graph
from lipbridge.lipsdp.balls import bound_on_region
from lipbridge.lipsdp.by_channel.multipliers import bound_by_channels, channel_problem, has_convolutions
from lipbridge.lipsdp.dense_problem import DenseProblem, l2_problem
from lipbridge.lipsdp.multipliers import closed_form_bound
from lipbridge.lipsdp.proof import prove
from lipbridge.lipsdp.solve.assembly import program_of
from lipbridge.lipsdp.solve.descent import descend_one
from lipbridge.lipsdp.solve.newton import Solution, interior_point, minimise
from lipbridge.lipsdp.system import LipSDP
from lipbridge.problem.bound import Bound
from lipbridge.problem.options import Option, read_options
from lipbridge.problem.problem import Problem
from lipbridge.problem.verifier import Budget, Refusal, Task, Verifier
from lipbridge.rescaling.channel_chain import ChannelChain
from lipbridge.vocabulary import Status

METHOD = "LipSDP without a solver"


class LipSDPFastVerifier(Verifier):
    """The least l_2 bound that diagonal multipliers give, by Newton's method; proved, with its gap to the optimum."""

    name = "lipsdp-fast"
    summary = "Lipschitz constant, global or in balls: LipSDP-Neuron's optimum by Newton's method, no SDP solver"
    norms = "2"
    proved = True
    options = (
        Option(
            name="gap",
            type=float,
            default=5e-4,
            help="relative distance to the optimum at which to stop",
            domain="be between 0 and 1",
            allows=lambda value: 0 < value < 1,
        ),
    )

    def prepare(self, problem: Problem) -> Task | Refusal:
        """Dense chains, everywhere or on balls of any norm; chains with convolutions and pooling; l2 to l2."""
        dense = l2_problem(problem)
        if isinstance(dense, DenseProblem):
            return _DenseTask(dense)
        if not has_convolutions(problem):
            return Refusal(self.name, dense)
        chain = channel_problem(problem)
        return Refusal(self.name, chain) if isinstance(chain, str) else _ChannelTask(problem, chain)


class _DenseTask(Task):
    """Newton's method runs on the device of the weights where that knows float64; descent and proof on the CPU."""

    def __init__(self, dense: DenseProblem) -> None:
        self.dense = dense

    def bound(self, budget: Budget) -> Bound:
        """A proved upper bound, never above the closed form's; ``extra["gap"]`` says how far above the optimum at most.

        The gap is measured in plain floating point by a dual feasible point; the bound itself is proved.

        Raises:
            NumericalFailure: for NaN weights, or a bound beyond float64.
        """
        start = time.perf_counter()
        gap: float = read_options(LipSDPFastVerifier.name, LipSDPFastVerifier.options, budget.options)["gap"]
        device = _device(self.dense.graph)

        def solved(system: LipSDP, deadline: float) -> Bound:
            return bound_system(system, gap, deadline, device, budget.memory)

        bound = bound_on_region(self.dense, start + budget.seconds, solved)
        return replace(bound, seconds=time.perf_counter() - start)


class _ChannelTask(Task):
    """Convolutions that are too large for a matrix."""

    def __init__(self, problem: Problem, chain: ChannelChain) -> None:
        self.problem, self.chain = problem, chain

    def bound(self, budget: Budget) -> Bound:
        """A proved upper bound by one multiplier a channel, with no gap; see :mod:`lipbridge.lipsdp.by_channel`."""
        start = time.perf_counter()
        read_options(LipSDPFastVerifier.name, LipSDPFastVerifier.options, budget.options)
        bound = bound_by_channels(self.problem, start + budget.seconds, budget.memory, self.chain)
        return replace(bound, seconds=time.perf_counter() - start)


def bound_system(system: LipSDP, gap: float, deadline: float, device: torch.device, memory: float = math.inf) -> Bound:
    """The proved bound of one matrix inequality by a time of ``time.perf_counter``; NaN if it would not fit."""
    size = min(predicted_memory(system), predicted_memory_of_descent(system))
    if size > memory:
        detail = f"It would take about {size / 2**30:.2g} GiB; the limit is {memory / 2**30:.2g} GiB."
        return system.no_bound(METHOD, status=Status.MEMORY, detail=detail)
    start = time.perf_counter()
    best = closed_form_bound(system)
    status, extra = Status.OK, dict[str, object]()
    if system.stages and not system.constant and any(stage.increments.variables for stage in system.stages):
        for_the_proof = min(2.0 * best.seconds, 0.3 * (deadline - start))
        solution = solve(system, gap, deadline - for_the_proof, device, memory)
        if solution is not None:
            best = _better(system, solution, best)
            distance = _gap(system, solution, best.value)
            extra = {"steps": solution.steps} | ({"gap": distance} if math.isfinite(distance) else {})
            status = Status.TIMEOUT if solution.timed_out else Status.OK
        elif time.perf_counter() + for_the_proof > deadline:
            status = Status.TIMEOUT  # the closed form alone took the time
    detail = "The time limit was reached; the multipliers so far were proved." if status is Status.TIMEOUT else ""
    return replace(best, status=status, detail=detail, extra=extra)


def predicted_seconds(system: LipSDP) -> float:
    """Seconds that Newton's method would take on busy cores: 30 steps at 15e9 operations a second and thread.

    Measured on one busy core: 75 ms a step for 784-256-256-10, 11 s for 16 layers of 256.
    """
    order, multipliers, rows = _sizes(system)
    widest = max((stage.width for stage in system.stages), default=0)
    work = 2.0 * order**3 + multipliers**3 / 3.0 + 2.0 * rows * widest * order + rows**2 * min(system.entry.shape)
    return 30.0 / (15e9 * torch.get_num_threads()) * work


def _sizes(system: LipSDP) -> tuple[int, int, int]:
    """Rows of the matrix inequality, multipliers, and rows of V."""
    multipliers = sum(stage.increments.constraints * stage.free_width for stage in system.stages)
    variables = sum(stage.increments.variables * stage.free_width for stage in system.stages)
    units = sum(stage.width for stage in system.stages)
    return min(system.entry.shape) + variables, multipliers, variables + units


def predicted_memory(system: LipSDP) -> int:
    """Bytes of the dense matrices that a Newton step holds at once, generously, and of the process before it."""
    order, multipliers, rows = _sizes(system)
    widest = max((stage.width for stage in system.stages), default=0)
    return 330 * 10**6 + 8 * (5 * order**2 + rows * order + 3 * multipliers**2 + 4 * rows * widest)


def predicted_memory_of_descent(system: LipSDP) -> int:
    """Bytes that the elimination keeps for its gradient, generously, and of the process before it."""
    cells = sum(((1 + stage.increments.variables) * stage.width) ** 2 for stage in system.stages)
    return 330 * 10**6 + 8 * 12 * cells


def solve(
    system: LipSDP, gap: float, deadline: float, device: torch.device, memory: float = math.inf
) -> Solution | None:
    """Multipliers whose bound is within ``gap`` of the least, or the best in time (gap unknown) for large networks.

    None if rounding leaves no room to begin.
    """
    if predicted_seconds(system) > deadline - time.perf_counter() or predicted_memory(system) > memory:
        return descend_one(system, deadline, device)
    begin = interior_point(system)
    if begin is None:
        return None
    program = program_of(system, device)
    vectors, rho = begin
    x = program.point(rho, [T.to(device) for T in vectors])
    return minimise(program, x, 1.0 - 1.0 / (1.0 + gap) ** 2, deadline)


def _better(system: LipSDP, solution: Solution, fallback: Bound) -> Bound:
    """The proved bound of a solution, or the fallback where that is better or rounding left no room."""
    try:
        value, proved = prove(system, solution.vectors)
    except NumericalFailure:
        return fallback
    if value > fallback.value:
        return fallback
    return system.bound(value, proved, METHOD)


def _gap(system: LipSDP, solution: Solution, value: float) -> float:
    """``value / optimum - 1`` at most, by the solution's dual bound; infinite if there was none."""
    least = math.sqrt(max(solution.rho * (1.0 - solution.gap), 0.0))
    try:
        least = math.ldexp(least, system.exponent)
    except OverflowError:
        return math.inf
    return max(value / least - 1.0, 0.0) if least > 0.0 else math.inf


def _device(graph: Graph) -> torch.device:
    """The weights' device, or the CPU where that device has no float64."""
    return graph.device if graph.device.type in ("cuda", "xpu") else torch.device("cpu")
