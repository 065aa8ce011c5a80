"""Problem: what is asked."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from lipbridge import checks
from lipbridge.errors import InvalidArgument
from lipbridge.graph.graph import Graph, with_axes
from lipbridge.vocabulary import Norm, Quantity, as_norm


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
