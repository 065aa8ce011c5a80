"""A problem whose network is a dense chain, with what is derived of it: each matrix inequality is made once.

All verifiers of the LipSDP family read the same object (:meth:`lipbridge.Problem.once`), so a study with several of
them lowers a network once for each question.
"""

from __future__ import annotations

from functools import cached_property

from torch import Tensor

from lipbridge.errors import InvalidArgument, NumericalFailure, UnsupportedProblem
from lipbridge.graph.graph import Graph
from lipbridge.lipsdp.system import Intervals, LipSDP, lipsdp_of
from lipbridge.lipsdp.unit_slopes import is_joint
from lipbridge.lowering.chain import Chain, as_chain
from lipbridge.problem.problem import Problem
from lipbridge.problem.question import Ball
from lipbridge.propagation.bounds import forward_bounds, layer_norms
from lipbridge.vocabulary import Quantity

#: Balls whose intervals are found at once.
TOGETHER = 8
#: Bytes of balls' matrix inequalities that are kept; beyond, one is made again when it is needed again.
KEPT = 2**28


class DenseProblem:
    """A dense chain and a region; see :func:`dense_problem`."""

    def __init__(self, problem: Problem) -> None:
        self.graph, self.question, self.region = problem.graph, problem.question, problem.region
        self._of_balls: dict[int, list[LipSDP]] = {}
        self._bytes = 0

    @cached_property
    def chain(self) -> Chain:
        """The network as a chain, with weights that may be rounded.

        Raises:
            NumericalFailure: for NaN weights.
        """
        return as_chain(self.graph, rounded=True)

    @cached_property
    def everywhere(self) -> LipSDP:
        """The inequality without a region."""
        return lipsdp_of(self.chain)

    @cached_property
    def intervals(self) -> list[Intervals]:
        """Of each ball of the region."""
        return [] if self.region is None else local_intervals(self.graph, self.region, chain=self.chain)

    def of_ball(self, ball: int) -> list[LipSDP]:
        """The inequalities of one ball (:func:`local_systems`)."""
        known = self._of_balls.get(ball)
        if known is None:
            known = local_systems(self.chain, self.intervals[ball])
            size = sum(map(_bytes, known))
            if self._bytes + size <= KEPT:
                self._of_balls[ball], self._bytes = known, self._bytes + size
        return known


def dense_problem(problem: Problem) -> DenseProblem | str:
    """The problem as a dense chain, the same object at every call, or the reason why it is none, in one line."""
    return problem.once(_read)


def _read(problem: Problem) -> DenseProblem | str:
    found = DenseProblem(problem)
    try:
        _ = found.chain
    except UnsupportedProblem as error:
        return str(error)
    except NumericalFailure:  # NaN weights: whoever asks for the chain is told
        return found
    return found


def other_question(problem: Problem) -> str | None:
    """Why a problem does not ask for the l_2 Lipschitz constant; None if it does."""
    if problem.quantity is not Quantity.LIPSCHITZ:
        return "it bounds the Lipschitz constant, not the deviation from a centre"
    if (problem.input_norm, problem.output_norm) != (2, 2):
        return f"it bounds the l2 constant, not the norm {problem.norm_name}"
    return None


def l2_problem(problem: Problem) -> DenseProblem | str:
    """The problem as LipSDP takes it, or the reason why it cannot: a dense chain, l_2 to l_2, on whatever region."""
    return other_question(problem) or dense_problem(problem)


def local_intervals(graph: Graph, region: Ball, *, linear: bool = True, chain: Chain | None = None) -> list[Intervals]:
    """Per ball the intervals ``(lower, upper)`` of each activation layer's sources, on the CPU.

    They hold for the network itself, also where its chain's weights are rounded.

    Args:
        graph: a network that :func:`lipbridge.lowering.chain.as_chain` reads.
        region: the balls.
        linear: see :func:`lipbridge.propagation.bounds.forward_bounds`.
        chain: that the graph was read as, if it is known.

    Raises:
        InvalidArgument: if the centres do not fit the network, or are not finite.
        NumericalFailure: for NaN weights.
    """
    if tuple(region.centers.shape[1:]) != graph.input_shape:
        raise InvalidArgument("centers", f"have shape (k, *{graph.input_shape})", tuple(region.centers.shape))
    if not bool(region.centers.isfinite().all()):
        raise InvalidArgument("centers", "be finite", "NaN or infinity")
    norms = layer_norms(graph, region.norm)
    sources = (chain or as_chain(graph, rounded=True)).sources
    found: list[Intervals] = []
    for first in range(0, len(region.centers), TOGETHER):
        part = Ball(region.centers[first : first + TOGETHER], region.radius, region.norm)
        reached = forward_bounds(graph, part, norms, linear=linear)
        ends = [(reached[i].lower.flatten(1).cpu(), reached[i].upper.flatten(1).cpu()) for i in sources]
        for ball in range(len(part.centers)):
            own = Ball(part.centers[ball : ball + 1], region.radius, region.norm)
            found.append(Intervals(own, [(lower[ball], upper[ball]) for lower, upper in ends]))
    return found


def local_systems(network: Graph | Chain, intervals: Intervals) -> list[LipSDP]:
    """The matrix inequalities of one ball: any of them bounds the network there.

    There are two where a layer has a joint constraint (sin, cos): with its global constraint, and with local slopes.
    """
    chain = network if isinstance(network, Chain) else as_chain(network, rounded=True)
    both = any(is_joint(activation) for activation in chain.activations)
    return [lipsdp_of(chain, intervals, joint=joint) for joint in ((True, False) if both else (True,))]


def _bytes(system: LipSDP) -> int:
    tensors: list[Tensor] = [system.entry, *(stage.weight for stage in system.stages)]
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)
