"""Problem (what is asked), Bound (what is answered), and the trivial bound."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn

from lipbridge import checks
from lipbridge.errors import InvalidArgument
from lipbridge.graph import Graph, with_axes
from lipbridge.layer_constants import notes, output_constants
from lipbridge.vocabulary import Norm, Quantity, Side, Status, as_norm


@dataclass(frozen=True, eq=False)
class Ball:
    """The closed ball {x : ||x - c||_norm <= radius}, or several of them, each a region of its own.

    ``centers`` is ``(k, *input_shape)``, a tensor or numpy array that becomes float64; a constant over k balls is the
    largest of the k constants.

    Raises:
        InvalidArgument: for a radius that is not above 0 and finite, centres of no or one axis, or another norm.
    """

    centers: Tensor
    radius: float
    norm: Norm

    def __post_init__(self) -> None:
        radius = checks.number(self.radius, "radius", "be above 0 and finite")
        if not radius > 0:
            raise InvalidArgument("radius", "be above 0 and finite", radius)
        centers = checks.tensor(self.centers, "centers")
        if centers.ndim < 2 or not centers.numel():
            raise InvalidArgument("centers", "have shape (k, *input_shape) with k >= 1", tuple(centers.shape))
        if centers.dtype is torch.bool:
            raise InvalidArgument("centers", "be numbers", centers.dtype)
        object.__setattr__(self, "centers", centers.to(torch.float64))
        object.__setattr__(self, "radius", radius)
        object.__setattr__(self, "norm", as_norm(self.norm))

    def __str__(self) -> str:
        count = len(self.centers)
        return f"{count} l{self.norm} ball{'s' if count > 1 else ''}, radius {self.radius:g}"


@dataclass(frozen=True, eq=False)
class Problem:
    """A Graph, an input and an output norm, and a region: everywhere (None) or balls.

    Outputs that are a number an input, of shape ``(batch,)``, are held in the shape ``(batch, 1)``.

    Raises:
        InvalidArgument: for another norm, or a region whose centres are no inputs of the Graph.
    """

    graph: Graph
    input_norm: Norm = 2
    output_norm: Norm = 2
    region: Ball | None = None
    quantity: Quantity = Quantity.LIPSCHITZ

    def __post_init__(self) -> None:
        words = "be a Graph, which lipbridge.capture(module) or read_onnx(file) gives"
        checks.instance(self.graph, Graph, "graph", words)
        object.__setattr__(self, "graph", with_axes(self.graph))
        for name in ("input_norm", "output_norm"):
            object.__setattr__(self, name, as_norm(getattr(self, name), name))
        if self.region is not None:
            checks.instance(self.region, Ball, "region", "be a Ball, or None for everywhere")
            if tuple(self.region.centers.shape[1:]) != self.graph.input_shape:
                expected = (
                    f"have centres of shape (k, {', '.join(map(str, self.graph.input_shape))}), inputs of the graph"
                )
                raise InvalidArgument("region", expected, tuple(self.region.centers.shape))
        checks.instance(self.quantity, str, "quantity", f"be one of {', '.join(Quantity)}")
        if self.quantity not in tuple(Quantity):
            raise InvalidArgument("quantity", f"be one of {', '.join(Quantity)}", checks.told(self.quantity))
        object.__setattr__(self, "quantity", Quantity(self.quantity))
        if self.quantity is Quantity.DEVIATION and self.region is None:
            raise InvalidArgument("region", "be a Ball for the quantity `deviation`", None)

    @property
    def norm_name(self) -> str:
        """``2`` for l_2 -> l_2, ``1->inf`` for mixed norms."""
        if self.input_norm == self.output_norm:
            return str(self.input_norm)
        return f"{self.input_norm}->{self.output_norm}"

    @property
    def region_name(self) -> str:
        """``everywhere`` or the ball in words."""
        return "everywhere" if self.region is None else str(self.region)


@dataclass(frozen=True, eq=False)
class Witness:
    """What backs a lower bound, to be checked by anyone in float64.

    ``points`` is ``(1, *input_shape)`` with a ``direction`` v of the same shape: the value is ||J(x) v||_q / ||v||_p
    at a point where the network is differentiable. Or ``(2, *input_shape)``: it is ||f(x) - f(y)||_q / ||x - y||_p.
    """

    points: Tensor
    direction: Tensor | None = None


@dataclass(frozen=True, eq=False)
class Bound:
    """A number that never travels alone: its side, whether it is proved, and what it is about.

    Attributes:
        value: the bound; NaN where ``status`` says that there is none.
        side: upper, lower or exact.
        proved: whether it survives floating-point rounding.
        norm: input and output norm, as in :attr:`Problem.norm_name`.
        region: as in :attr:`Problem.region_name`.
        method: how it was found, in words.
        quantity: ``lipschitz`` or ``deviation``.
        seconds: wall time of the verifier alone.
        memory: peak resident memory of the process in bytes, if it was measured.
        status: how the computation ended; its ``advice`` says what to do.
        detail: one line more, e.g. the reason of a failure.
        witness: the point or pair behind a lower bound.
        multipliers: the dual variables behind an upper one, by name.
        extra: further figures of the verifier (e.g. certified accuracy), ready for JSON.
    """

    value: float
    side: Side
    proved: bool
    norm: str
    method: str
    region: str = "everywhere"
    quantity: Quantity = Quantity.LIPSCHITZ
    seconds: float = 0.0
    memory: int | None = None
    status: Status = Status.OK
    detail: str = ""
    witness: Witness | None = None
    multipliers: Mapping[str, Tensor] | None = None
    extra: Mapping[str, object] = field(default_factory=lambda: {})

    def __repr__(self) -> str:
        sign = {Side.UPPER: "<=", Side.LOWER: ">=", Side.EXACT: "="}[self.side]
        word = "proved" if self.proved else "not proved"
        if self.status is not Status.OK:
            word += f", {self.status.value}"
        return (
            f"Bound({self.quantity.value} {sign} {self.value:.6g}, {word}, l{self.norm}, {self.region}, "
            f"{self.method}, {self.seconds:.3g} s)"
        )


def bound_for(
    problem: Problem,
    value: float,
    side: Side,
    *,
    proved: bool,
    method: str,
    seconds: float = 0.0,
    status: Status = Status.OK,
    detail: str = "",
) -> Bound:
    """A Bound with norm, region and quantity of ``problem``."""
    return Bound(
        value,
        side,
        proved,
        problem.norm_name,
        method,
        problem.region_name,
        problem.quantity,
        seconds,
        status=status,
        detail=detail,
    )


def trivial_bound(
    network: Graph | nn.Module,
    norm: Norm | str = 2,
    output_norm: Norm | str | None = None,
    *,
    input_shape: Sequence[int] | None = None,
) -> Bound:
    """The product of the layers' operator norms: a proved upper bound of the Lipschitz constant, everywhere.

    Each layer's norm is rounded outward (:func:`lipbridge.rigor.proved_operator_norm`, for convolutions
    :func:`lipbridge.rigor_convolution.proved_conv_norm`) and so is the product. A residual x + g(x) counts 1 + L(g), a
    concatenation the p-norm of its parts; linear branches of one node are merged first
    (:mod:`lipbridge.layer_constants`). For an input and an output norm that differ, hidden layers may pass from a norm
    to a larger exponent, and the smallest product over those paths is taken.

    Args:
        network: a Graph, or a module that :func:`lipbridge.capture` can read.
        norm: input norm, 1, 2 or "inf".
        output_norm: output norm, the input norm if not given.
        input_shape: of one input of a module, as for :func:`lipbridge.capture`.

    Raises:
        UnsupportedProblem: for inf->1, inf->2 and 2->1, whose matrix norms are NP-hard.
        UnsupportedOperation: for a layer outside the Graph's nodes.
        NumericalFailure: if weights hold NaN or a norm overflows.

    Source: Szegedy et al. 2014; mixed norms and rounding are ours. Law: never below any witness.
    """
    if not isinstance(network, Graph):
        from lipbridge.capture import capture

        network = capture(network, input_shape)
    p = as_norm(norm)
    q = p if output_norm is None else as_norm(output_norm, "output_norm")
    start = time.perf_counter()
    value = output_constants(network, p, q)[q]
    problem = Problem(network, p, q)
    bound = bound_for(problem, value, Side.UPPER, proved=True, method="trivial bound", detail=notes(network))
    return replace(bound, seconds=time.perf_counter() - start)
