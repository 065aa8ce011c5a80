"""Bounds of the Clarke Jacobian as a verifier: local constants in every cheap pair of norms, and certificates."""

from __future__ import annotations

import math
import time
from dataclasses import replace

import torch
from torch import Tensor

from lipbridge.branch_and_bound.local import BATCH, Found, search
from lipbridge.constants.layer_constants import output_constants
from lipbridge.errors import NumericalFailure
from lipbridge.graph.graph import Graph, multiply_adds
from lipbridge.graph.nodes import Elementwise
from lipbridge.norms.matrix import CHEAP_PAIRS
from lipbridge.problem.bound import Bound
from lipbridge.problem.options import Option, read_options
from lipbridge.problem.problem import Problem
from lipbridge.problem.question import Ball
from lipbridge.problem.verifier import Budget, Refusal, Task, Verifier
from lipbridge.propagation.bounds import layer_norms
from lipbridge.propagation.forms import least_of_forms
from lipbridge.propagation.jacobian.derivatives import derivative
from lipbridge.propagation.jacobian.local import STEPS, identity, local_constants, row_constants
from lipbridge.propagation.jacobian.norms import factors_of
from lipbridge.propagation.jacobian.regions import Parts
from lipbridge.rigor.running_error import enclose
from lipbridge.robustness.radii import certified_radii, margins_down
from lipbridge.rounding.scalars import UNIT
from lipbridge.verifiers.lipsdp_fast import LipSDPFastVerifier
from lipbridge.vocabulary import Quantity, Side, Status

METHOD = "bounds of the Clarke Jacobian"
SPLITS = ("none", "auto", "units", "inputs")
#: With so many inputs at most it is the input that ``auto`` splits.
FEW_INPUTS = 6
#: Inputs are certified together up to so many.
TOGETHER = 64
#: Multiplications a second that linear bounds are taken to need, on one busy core.
SPEED = 2e10
#: Likewise for the descent of lines, which autograd differentiates.
SPEED_OF_LINES = 2e9
#: Balls are bounded together, and lines descend, for at most so much of the time that is left.
SHARE = 0.1


class JacobianVerifier(Verifier):
    """Local Lipschitz constants by intervals and linear bounds of the Clarke Jacobian, proved.

    In l_2 the matrix inequality of ``lipsdp-fast`` is asked as well, where it can take the network, and the better of
    both is the answer.

    Source: Shi et al. 2022 (arXiv 2210.07394) and Zhang et al. 2019 (RecurJac) for the bound propagation.
    """

    name = "jacobian"
    summary = "Lipschitz constant in balls, or global: bounds of the Clarke Jacobian, split further on request"
    norms = "1, 2, inf, 1->2, 1->inf, 2->inf"
    proved = True
    certifies = True
    options = (
        Option(
            name="split",
            type=str,
            default="none",
            help="branch and bound until the time limit: none, units, inputs, or auto (inputs where there are few)",
            domain=f"be one of {', '.join(SPLITS)}",
            allows=lambda value: value in SPLITS,
        ),
        Option(
            name="steps",
            type=int,
            default=STEPS,
            help="steps that the lines around piecewise linear activations descend on the units' bounds",
            domain="be a whole number, 0 to 1000",
            allows=lambda value: 0 <= value <= 1000,
        ),
        Option(
            name="margins",
            type=bool,
            default=True,
            help="certify by linear bounds of the logits' differences too, not by their constants alone",
        ),
    )

    def prepare(self, problem: Problem) -> Task | Refusal:
        """Every Graph whose nodes have bounds of their derivatives; inf->1, inf->2 and 2->1 are NP-hard."""
        if problem.quantity is not Quantity.LIPSCHITZ:
            return Refusal(self.name, "it bounds the Lipschitz constant, not the deviation from a centre")
        if (problem.input_norm, problem.output_norm) not in CHEAP_PAIRS:
            return Refusal(self.name, f"the norm {problem.norm_name} of a matrix is NP-hard")
        for node in problem.graph.nodes[1:]:
            if not derivative.knows(type(node)):
                return Refusal(self.name, f"layer `{node.name}` ({type(node).__name__}) has no bound of its derivative")
        spectral = None
        if problem.region is not None and (problem.input_norm, problem.output_norm) == (2, 2):
            taken = LipSDPFastVerifier().prepare(problem)
            spectral = taken if isinstance(taken, Task) else None
        return JacobianTask(problem, spectral)


class JacobianTask(Task):
    """A problem whose Jacobians are bounded.

    Args:
        problem: what is asked.
        spectral: the task of ``lipsdp-fast`` for the same problem, if there is one.
    """

    def __init__(self, problem: Problem, spectral: Task | None) -> None:
        self.problem, self.spectral = problem, spectral

    def bound(self, budget: Budget) -> Bound:
        """A proved upper bound, never above the trivial one; ``extra["ball"]`` is the ball with the largest bound.

        ``extra["splits"]`` counts the parts that were split. With several balls the largest are improved first.

        Raises:
            NumericalFailure: for NaN weights, or a bound beyond float64.
        """
        start = time.perf_counter()
        options = read_options(JacobianVerifier.name, JacobianVerifier.options, budget.options)
        deadline = start + budget.seconds
        problem = self.problem
        p, q = problem.input_norm, problem.output_norm
        trivial = output_constants(problem.graph, p, q)[q]
        if problem.region is None:
            found = self._everywhere(deadline)
        else:
            share = 0.5 if self.spectral is not None else 1.0
            split = options["split"]
            if split == "auto":
                split = "inputs" if math.prod(problem.graph.input_shape) <= FEW_INPUTS else "units"
            until = start + share * budget.seconds
            found = self._local(problem.region, until, str(split), int(options["steps"]))
        value, method = found.value, METHOD
        extra: dict[str, object] = {} if problem.region is None else {"ball": found.ball, "splits": found.splits}
        if self.spectral is not None and time.perf_counter() < deadline:
            seconds = deadline - time.perf_counter()
            try:
                other = self.spectral.bound(replace(budget, seconds=seconds, options={}))
                if other.proved and other.side is Side.UPPER and other.value < value:
                    value, method = other.value, other.method
                    extra = {**extra, "ball": other.extra.get("ball", found.ball)}
            except NumericalFailure:
                pass  # what was found stands
        if trivial <= value:
            value, method = trivial, "trivial bound"
        if not math.isfinite(value):
            raise NumericalFailure("A bound is beyond float64; rescale the network.")
        stopped = found.finished or time.perf_counter() < deadline
        return Bound(
            value=value,
            side=Side.UPPER,
            proved=True,
            question=problem.question,
            method=method,
            status=Status.OK if stopped else Status.TIMEOUT,
            detail="" if stopped else "The time limit was reached; the bound so far is proved.",
            seconds=time.perf_counter() - start,
            extra=extra,
        )

    def _everywhere(self, deadline: float) -> Found:
        graph, p, q = self.problem.graph, self.problem.input_norm, self.problem.output_norm
        linear = predicted_seconds(graph) < deadline - time.perf_counter()
        value = float(local_constants(graph, None, p, q, linear=linear)[0])
        return Found(value, 0, 0, int(linear), linear)

    def _local(self, region: Ball, deadline: float, split: str, steps: int) -> Found:
        graph, p, q = self.problem.graph, self.problem.input_norm, self.problem.output_norm
        left = deadline - time.perf_counter()
        each, lines = predicted_seconds(graph), predicted_seconds_of_lines(graph, steps)
        if lines > SHARE * left:
            steps, lines = 0, 0.0
        parts = Parts(
            graph, region, p, q, identity(graph), layer_norms(graph, region.norm), factors_of(graph, p), steps=steps
        )
        linear = each < left

        def together(with_lines: bool) -> int:
            cost = (each + lines if with_lines and linear else 0.0) + 1e-9
            return max(1, min(BATCH, int(SHARE * (deadline - time.perf_counter()) / cost)))

        found = search(parts, len(region.centers), deadline, split=split, linear=linear, batch=together)
        return replace(found, finished=found.finished and linear)

    def certify(self, inputs: Tensor, labels: Tensor, radius: float, budget: Budget) -> Tensor:
        """By margin and the constants of all differences to the label's logit on the ball, proved.

        Points that the global constants certify need no more; then come, unless the option ``margins`` is false, the
        linear bounds of the differences themselves; the others are taken in turn while time lasts.
        """
        deadline = time.perf_counter() + budget.seconds
        options = read_options(JacobianVerifier.name, JacobianVerifier.options, budget.options)
        graph, p = self.problem.graph, self.problem.input_norm
        safe = certified_radii(graph, inputs, labels, p) > radius
        inputs, labels = inputs.to(graph.device, torch.float64), labels.to(graph.device)
        factors, norms = factors_of(graph, p), layer_norms(graph, p)
        open_ = (~safe).nonzero().flatten()
        for start in range(0, len(open_), TOGETHER):
            if time.perf_counter() > deadline:
                break
            chosen = open_[start : start + TOGETHER]
            margins = margins_of(graph, inputs[chosen], labels[chosen])
            right = margins.amin(1) > 0
            chosen, margins = chosen[right], margins[right]
            if options["margins"] and len(chosen):
                rows = differences(labels[chosen], graph.output_shape[0])
                least = least_of_forms(graph, Ball(inputs[chosen], radius, p), rows, norms, above=0.0)
                held = (least > 0).all(1)
                safe[chosen[held]] = True
                chosen, margins = chosen[~held], margins[~held]
            for steps in dict.fromkeys((0, int(options["steps"]) if p != 2 else 0)):
                if not len(chosen):
                    break
                rows = differences(labels[chosen], graph.output_shape[0])
                ball = Ball(inputs[chosen], radius, p)
                constants = row_constants(graph, ball, p, rows, factors=factors, layer_norms=norms, steps=steps)
                held = (constants * radius * (1.0 + 4.0 * UNIT) < margins).all(1)
                safe[chosen[held]] = True
                chosen, margins = chosen[~held], margins[~held]
        return safe


def differences(labels: Tensor, classes: int) -> Tensor:
    """``(n, classes - 1, classes)``: each point's logit of its label less every rival's."""
    eye = torch.eye(classes, dtype=torch.float64, device=labels.device)
    return eye[labels][:, None] - eye[rivals_of(labels, classes)]


def rivals_of(labels: Tensor, classes: int) -> Tensor:
    """``(n, classes - 1)``: the other classes, in order."""
    every = torch.arange(classes, device=labels.device).expand(len(labels), -1)
    return every[every != labels[:, None]].reshape(len(labels), -1)


def margins_of(graph: Graph, inputs: Tensor, labels: Tensor) -> Tensor:
    """``(n, classes - 1)``: lower bounds of the differences of :func:`differences` at the inputs."""
    found = margins_down(enclose(graph, inputs), labels)
    return found.gather(1, rivals_of(labels, found.shape[1]))


def predicted_seconds_of_lines(graph: Graph, steps: int) -> float:
    """About how long the lines' descent takes on one region, where a fifth of the units may be at a kink."""
    behind = [i for i, node in enumerate(graph.nodes) if isinstance(node, Elementwise)][1:]
    units = sum(math.prod(graph.nodes[graph.nodes[i].inputs[0]].shape) for i in behind)
    return 12.0 * steps * 0.2 * units * multiply_adds(graph) / SPEED_OF_LINES


def predicted_seconds(graph: Graph) -> float:
    """About how long linear bounds of all cotangents take on one region: a form of each unit through the network."""
    outputs = math.prod(graph.output_shape)
    units = sum(math.prod(node.shape) for node in graph.nodes)
    return 2.0 * outputs * units * multiply_adds(graph) / SPEED


__all__ = ["JacobianTask", "JacobianVerifier"]
