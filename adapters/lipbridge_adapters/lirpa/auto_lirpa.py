"""Local output bounds and certified predictions by auto_LiRPA: IBP, CROWN-IBP, CROWN and alpha-CROWN.

Source: Xu et al. 2020, "Automatic perturbation analysis for scalable certified robustness and beyond" (the tool);
Zhang et al. 2018 (CROWN); Zhang et al. 2020 (CROWN-IBP); Xu et al. 2021 (alpha-CROWN). The tool never sees the user's
module: it gets one built here from the Graph, in float64, of nothing but sums of linear layers and the few nonlinear
functions it bounds soundly.

Convolutions stay convolutions where release 0.3 has them: one or two axes of space, zeros for padding, as many on
either side. Whatever else moves or mixes coordinates is written as a matrix, if that is small. Max pooling and sorting
become comparisons, max(a, b) = b + relu(a - b). |z| becomes 2 relu(z) - z for lines: that is tighter than the tool's
own, which fails behind convolutions in the tool's default mode.

Its arithmetic is not rounded outward. We widen what it returns by an a-priori estimate of its rounding error
(:meth:`Network.slack`), which makes a contradiction by a witness unlikely, but not impossible: nothing here is proved.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, cast

import torch
from torch import Tensor

from lipbridge.errors import InvalidArgument, LipbridgeError, MissingDependency, UnsupportedProblem
from lipbridge.graph.graph import Graph
from lipbridge.linalg import vector_norm
from lipbridge.problem.bound import Bound
from lipbridge.problem.options import Option, read_options
from lipbridge.problem.problem import Problem
from lipbridge.problem.question import Ball
from lipbridge.problem.verifier import Budget, Refusal, Task, Verifier
from lipbridge.rounding.scalars import gamma
from lipbridge.vocabulary import Quantity, Side, Status
from lipbridge_adapters.lirpa import shim
from lipbridge_adapters.lirpa.jacobian import TOO_OLD, JacobianRunner, network_of, require_pair
from lipbridge_adapters.lirpa.network import METHODS, Method, Network
from lipbridge_adapters.lirpa.runner import Runner


def _lowered(graph: Graph, asked: str | None) -> Network:
    """The Graph lowered for the method asked for, or for CROWN and, where CROWN cannot take it, IBP.

    Raises:
        UnsupportedProblem: the reason of the first method, if none can.
    """
    if len(graph.output_shape) != 1:
        raise UnsupportedProblem(f"outputs of shape {graph.output_shape} are not handled, only vectors")
    reasons: list[UnsupportedProblem] = []
    methods: tuple[Method, ...] = ("CROWN", "IBP")
    if asked is not None:
        methods = tuple(method for method in METHODS if method.lower() == asked.lower())
    for method in methods:
        try:
            return Network(graph, method)
        except UnsupportedProblem as error:
            reasons.append(error)
    raise reasons[0]


class AutoLirpaVerifier(Verifier):
    """auto_LiRPA: how far the outputs can move inside an l_2 or l_inf ball, and which predictions hold there.

    The method is CROWN unless another is asked for, or IBP for activations that the tool bounds by intervals only. From
    release 0.7 on also the Lipschitz constant in such balls (:mod:`lipbridge_adapters.lirpa.jacobian`).
    """

    name = "auto_lirpa"
    summary = "output bounds in balls, certificates and, with 0.7, local constants: IBP, CROWN-IBP, CROWN, alpha-CROWN"
    norms = "2, inf (local); with 0.7 also 1, 1->2, 1->inf, 2->inf"
    proved = False
    certifies = True
    options = (
        Option(
            name="method",
            type=str,
            default=None,
            help=f"{', '.join(METHODS)}; by default CROWN, or IBP where CROWN cannot",
            domain=f"be one of {', '.join(METHODS)}",
            allows=lambda value: value.lower() in [method.lower() for method in METHODS],
        ),
        Option(
            name="iterations",
            type=int,
            default=20,
            help="of alpha-CROWN",
            domain="be a whole number of at least 1",
            allows=lambda value: value >= 1,
        ),
    )
    requires = ("auto_LiRPA",)
    install = shim.INSTALL

    def load(self) -> None:
        """Import the tool, mended."""
        shim.load()

    def prepare(self, problem: Problem) -> Task | Refusal:
        """It takes the deviation over l_2 and l_inf balls of networks with the functions that it bounds.

        With release 0.7 or newer also the Lipschitz constant there, if it differentiates the functions.
        Of linear layers other than convolutions the matrices must be small
        (:func:`lipbridge.lowering.dense.lower_to_dense`).
        """
        try:
            balls = _require(problem)
            if problem.quantity is Quantity.DEVIATION:
                return _Task(problem, balls, _lowered(problem.graph, None))
            return _LipschitzTask(problem, balls, network_of(problem.graph, "CROWN"))
        except UnsupportedProblem as error:
            return Refusal(self.name, str(error))


class _Certifier(Task):
    """Predictions in balls of a problem's input norm."""

    def __init__(self, problem: Problem) -> None:
        self.problem = problem

    def lowered(self, options: Mapping[str, Any]) -> Network:
        return _lowered(self.problem.graph, options["method"])

    def certify(self, inputs: Tensor, labels: Tensor, radius: float, budget: Budget) -> Tensor:
        """Bool ``(n,)``: whether f_y - f_j stays positive on the whole closed ball for every rival j of the label y.

        The differences are made part of the last layer, so their common part cancels before it is bounded. Each must
        exceed the slack of :meth:`Network.slack`, an estimate of float64 rounding. Inputs not reached within the time
        limit are not certified.

        Raises:
            InvalidArgument: for a radius, label or shape out of its domain.
            UnsupportedProblem: for a network or method that the tool cannot take.
            LipbridgeError: if the tool fails, in one line.
        """
        start = time.perf_counter()
        options = read_options(AutoLirpaVerifier.name, AutoLirpaVerifier.options, budget.options)
        graph, norm = self.problem.graph, self.problem.input_norm
        if norm == 1:
            raise UnsupportedProblem("l1 balls are not offered, only l2 and linf")
        _check(graph, inputs, labels, radius)
        outputs = graph.output_shape[0]
        result = torch.zeros(len(inputs), dtype=torch.bool)
        try:
            network = self.lowered(options)
            method, device = network.method, network.device
            x = inputs.to(device, torch.float64)
            predicted = graph(x).argmax(-1).cpu()
            for label in sorted(set(_listed(labels))):
                rows = torch.nonzero((labels.cpu() == label) & (predicted == label)).flatten()
                if not len(rows):
                    continue
                rivals = torch.eye(outputs, dtype=torch.float64, device=device)
                margins = (rivals[label] - rivals)[torch.arange(outputs, device=device) != label]
                if not len(margins):
                    result[rows] = True
                    continue
                runner = Runner(Network(graph.compose_output(margins), method), budget, options["iterations"])
                done = 0
                for low, _ in runner.chunks(x[rows.to(device)].flatten(1), radius, norm, upper=False):
                    result[rows[done : done + len(low)]] = (low > 0).all(-1).cpu()
                    done += len(low)
                    if time.perf_counter() - start > budget.seconds:
                        return result
        except LipbridgeError:
            raise
        except Exception as error:
            raise LipbridgeError(f"auto_LiRPA: {_outcome(error)[1]}") from error
        return result


class _Task(_Certifier):
    """The network lowered for the method that the tool takes by default."""

    def __init__(self, problem: Problem, balls: Ball, network: Network) -> None:
        super().__init__(problem)
        self.balls, self.network = balls, network

    def lowered(self, options: Mapping[str, Any]) -> Network:
        method: str | None = options["method"]
        known = method is None or method.lower() == self.network.method.lower()
        return self.network if known else _lowered(self.problem.graph, method)

    def bound(self, budget: Budget) -> Bound:
        """sup ||f(x) - f(c)||_p / r over each l_p ball from the interval of every output; the largest over the balls.

        The Bound's ``extra`` has ``values`` and ``seconds_per_ball`` by method, and ``centers_done``. Law: no point of
        a ball moves the output further than value times radius.

        Raises:
            InvalidArgument: for an option of the budget out of its domain.
        """
        options = read_options(AutoLirpaVerifier.name, AutoLirpaVerifier.options, budget.options)

        def parts() -> tuple[str, Iterator[list[float]]]:
            network = self.lowered(options)
            runner = Runner(network, budget, options["iterations"])
            return f"auto_LiRPA {network.method}", _deviations(runner, self.problem.graph, self.balls)

        return _largest(self.problem, self.balls, budget, parts)


class _LipschitzTask(_Certifier):
    """A network whose Jacobian the tool bounds."""

    def __init__(self, problem: Problem, balls: Ball, network: Network) -> None:
        super().__init__(problem)
        self.balls, self.network = balls, network

    def bound(self, budget: Budget) -> Bound:
        """The largest over the balls of the norm of the tool's Jacobian; a claim, not proved.

        The Bound's ``extra`` has ``values`` and ``seconds_per_ball`` by method, ``centers_done``, and ``ball``, whose
        value is the largest. Law: no Jacobian in a ball has a larger norm.

        Raises:
            InvalidArgument: for an option of the budget out of its domain.
        """
        options = read_options(AutoLirpaVerifier.name, AutoLirpaVerifier.options, budget.options)

        def parts() -> tuple[str, Iterator[list[float]]]:
            problem, asked = self.problem, _method(options["method"] or self.network.method)
            network = self.network if asked == self.network.method else network_of(problem.graph, asked)
            memory, iterations = budget.memory // 2, options["iterations"]
            runner = JacobianRunner(network, problem.input_norm, problem.output_norm, memory, iterations)
            centers = self.balls.centers.to(network.device, torch.float64).flatten(1)
            found = ([runner.value(center, self.balls.radius, self.balls.norm)] for center in centers)
            return f"auto_LiRPA Jacobian {asked}", found

        return _largest(self.problem, self.balls, budget, parts)


def _largest(
    problem: Problem, balls: Ball, budget: Budget, parts: Callable[[], tuple[str, Iterator[list[float]]]]
) -> Bound:
    """The largest of the balls' values, which come part after part while time lasts; ``parts`` names the method too."""
    start = time.perf_counter()
    values: list[float] = []
    name, status, detail, value = "auto_LiRPA", Status.OK, "", math.nan
    extra: dict[str, object] = {}
    try:
        name, found = parts()
        for part in found:
            values.extend(part)
            if time.perf_counter() - start > budget.seconds:
                break
        if len(values) == len(balls.centers):
            value = max(values)
            extra["ball"] = values.index(value)
        else:
            status = Status.TIMEOUT
            detail = f"{len(values)} of {len(balls.centers)} balls done; the largest so far is {max(values):.6g}"
        method = name.split()[-1]
        extra["values"] = {method: values}
        extra["seconds_per_ball"] = {method: (time.perf_counter() - start) / len(values)}
    except InvalidArgument:
        raise
    except Exception as error:  # whatever the tool does is a row, not the end of a study
        status, detail, value = *_outcome(error), math.nan
    return Bound(
        value=value,
        side=Side.UPPER,
        proved=False,
        question=problem.question,
        method=name,
        seconds=time.perf_counter() - start,
        status=status,
        detail=detail,
        extra={**extra, "centers_done": len(values)},
    )


def _method(asked: str) -> Method:
    return next(method for method in METHODS if method.lower() == asked.lower())


def _require(problem: Problem) -> Ball:
    """The balls of a problem that the tool can take, as far as norms and quantity go."""
    balls = problem.region
    if balls is None:
        raise UnsupportedProblem("it bounds what happens in balls, and no Lipschitz constant of the whole space")
    if balls.norm not in (2, "inf"):
        raise UnsupportedProblem(f"l{balls.norm} balls are not offered, only l2 and linf")
    if problem.quantity is Quantity.LIPSCHITZ:
        if not shim.has_jacobian():
            raise UnsupportedProblem(TOO_OLD)
        require_pair(problem.input_norm, problem.output_norm)
        if len(problem.graph.output_shape) != 1:
            raise UnsupportedProblem(f"outputs of shape {problem.graph.output_shape} are not handled, only vectors")
    elif not problem.input_norm == problem.output_norm == balls.norm:
        raise UnsupportedProblem(f"the ball is l{balls.norm}, so both norms must be, not {problem.norm_name}")
    return balls


def _deviations(runner: Runner, graph: Graph, balls: Ball) -> Iterator[list[float]]:
    """sup ||f(x) - f(c)|| / r of the balls, chunk after chunk."""
    centers = balls.centers.to(runner.network.device, torch.float64)
    points, done = centers.flatten(1), 0
    for low, high in runner.chunks(points, balls.radius, balls.norm):
        part = slice(done, done + len(low))
        done += len(low)
        value = graph(centers[part])
        slack = runner.network.slack(points[part], balls.radius, runner.release)  # once more, for f(c) itself
        reach = torch.maximum(high - value, value - low) + slack
        norm = vector_norm(reach, balls.norm, dim=-1) / balls.radius
        yield _listed(norm * (1 + gamma(reach.shape[1] + 8)))


def _listed(values: Tensor) -> list[Any]:
    return cast(Any, values).tolist()


def _check(graph: Graph, inputs: Tensor, labels: Tensor, radius: float) -> None:
    if not (radius > 0 and math.isfinite(radius)):
        raise InvalidArgument("radius", "be above 0 and finite", radius)
    if tuple(inputs.shape[1:]) != graph.input_shape:
        raise InvalidArgument(
            "inputs", f"have shape (n, {', '.join(map(str, graph.input_shape))})", tuple(inputs.shape)
        )
    if labels.shape != inputs.shape[:1]:
        raise InvalidArgument("labels", f"have shape ({len(inputs)},)", tuple(labels.shape))
    if len(labels) and not 0 <= int(labels.min()) <= int(labels.max()) < graph.output_shape[0]:
        raise InvalidArgument("labels", f"be below {graph.output_shape[0]}", int(labels.max()))


def _outcome(error: Exception) -> tuple[Status, str]:
    """The status and the one-line detail of an exception."""
    text = " ".join(str(error).split())[:300] or type(error).__name__
    if isinstance(error, UnsupportedProblem):
        return Status.UNSUPPORTED, text
    if isinstance(error, MissingDependency):
        return Status.MISSING, text
    if isinstance(error, MemoryError) or "not enough memory" in text or "out of memory" in text:
        return Status.MEMORY, text
    return Status.FAILED, text if isinstance(error, LipbridgeError) else f"{type(error).__name__}: {text}"
