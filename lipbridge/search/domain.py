"""Where a search moves: everywhere, or inside balls; with the projection and the natural length of a step."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from lipbridge.graph.graph import Graph
from lipbridge.graph.nodes import (
    Add,
    Concat,
    Conv,
    ConvTranspose,
    Dense,
    Elementwise,
    Gather,
    GroupSort,
    Input,
    MaxPool,
    Reshape,
)
from lipbridge.linalg import vector_norm
from lipbridge.vocabulary import Norm

#: Points stay inside this part of a ball, far more than the rounding of their distance from its centre.
INSIDE = 1.0 - 1e-9


@dataclass(frozen=True, eq=False)
class Everywhere:
    """The whole space. ``homogeneous`` says that only the direction of a point matters, so its size is kept."""

    homogeneous: bool

    def project(self, x: Tensor) -> Tensor:
        """The nearest point of the domain, for ``(batch, *shape)``."""
        return x / _size(x) if self.homogeneous else x

    def step_length(self, x: Tensor) -> Tensor:
        """The natural change of one coordinate, ``(batch, 1, ...)``."""
        return _size(x)

    def select(self, index: Tensor) -> Everywhere:
        """The domain of some of the points."""
        return self


@dataclass(frozen=True, eq=False)
class Balls:
    """A ball for each point: ``centers`` ``(batch, *shape)``, one radius and norm."""

    centers: Tensor
    radius: float
    norm: Norm

    def project(self, x: Tensor) -> Tensor:
        """The nearest point of each ball in l_2 (exactly for the norms 2 and inf, nearly for 1)."""
        reach = self.radius * INSIDE
        d = (x - self.centers).flatten(1)
        if self.norm == "inf":
            d = d.clamp(-reach, reach)
        elif self.norm == 2:
            d = d * (reach / vector_norm(d, 2, 1, True).clamp_min(reach))
        else:
            d = _onto_l1(d, reach)
        return self.centers + d.reshape(x.shape)

    def step_length(self, x: Tensor) -> Tensor:
        """The natural change of one coordinate, ``(batch, 1, ...)``."""
        n = self.centers[0].numel()
        share = {1: 1.0 / n, 2: n**-0.5, "inf": 1.0}[self.norm]
        return torch.full_like(x[:, :1].flatten(1)[:, :1].reshape(-1, *[1] * (x.ndim - 1)), self.radius * share)

    def select(self, index: Tensor) -> Balls:
        """The balls of some of the points."""
        return Balls(self.centers[index], self.radius, self.norm)


Domain = Everywhere | Balls


def _onto_l1(d: Tensor, reach: float) -> Tensor:
    """Projection of rows onto the l_1 ball by the threshold of the sorted magnitudes (Duchi et al. 2008)."""
    size = d.abs()
    ordered = size.sort(dim=1, descending=True).values
    counts = torch.arange(1, d.shape[1] + 1, dtype=d.dtype, device=d.device)
    thresholds = (ordered.cumsum(dim=1) - reach) / counts
    last = (ordered > thresholds).sum(dim=1, keepdim=True).clamp_min(1)
    threshold = thresholds.gather(1, last - 1).clamp_min(0.0)
    shrunk = d.sign() * (size - threshold).clamp_min(0.0)
    # Rounding may leave the sum a little above: a last scaling, which is the identity inside.
    return shrunk * (reach / shrunk.abs().sum(dim=1, keepdim=True).clamp_min(reach))


def _size(x: Tensor) -> Tensor:
    axes = tuple(range(1, x.ndim))
    largest = x.abs().amax(dim=axes, keepdim=True)
    largest = torch.where(largest > 0, largest, 1.0)
    return ((x / largest).square().mean(dim=axes, keepdim=True).sqrt() * largest).clamp_min(1e-300)


def homogeneous(graph: Graph) -> bool:
    """Whether f(c x) = c f(x) for c > 0, so that the Jacobian depends on the direction of x alone."""
    for node in graph.nodes:
        if isinstance(node, Dense | Conv | ConvTranspose):
            if node.bias is not None and bool(node.bias.any()):
                return False
        elif isinstance(node, Elementwise):
            if not node.activation.homogeneous:
                return False
        elif not isinstance(node, Input | Reshape | Gather | Concat | Add | MaxPool | GroupSort):
            return False
    return True


def joined(first: Domain, second: Domain) -> Domain:
    """The domain of the points of both, in this order."""
    if isinstance(first, Balls) and isinstance(second, Balls):
        return Balls(torch.cat([first.centers, second.centers]), first.radius, first.norm)
    return first
