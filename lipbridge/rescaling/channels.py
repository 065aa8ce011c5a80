"""Chains of convolutions and dense layers with one multiplier a channel, and the best of them, without a matrix.

Between two layers every unit can be scaled: with positive factors D, ``W_2 g(W_1 x)`` is
``(W_2 D^-1) (D g(D^-1 .)) (D W_1) x``, and the map in the middle has the Lipschitz constant of g where g acts unit by
unit. So the product of ``||D_l W_l D_(l-1)^-1||`` over the layers bounds the network's l_2 constant for any factors.
For activations with slopes in [-1, 1] and for joint polyactivations the best factors give LipSDP's optimum.

In a convolutional layer all positions of a channel share one factor. Then a scaled convolution is a convolution with a
scaled kernel: its norm, its gradient and its proof are those of :mod:`lipbridge.norms` and
:mod:`lipbridge.rigor.convolution`, and no matrix is built. A flattened image keeps a factor a channel; pooling and
sorting tie the units that they mix.

The logarithm of the product is convex in the logarithms of the factors (Sezginer and Overton 1990), so the factors are
found by L-BFGS on Schatten norms of rising order.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lipbridge.constants.scaled_layers import Block, on_inputs
from lipbridge.graph.nodes import Conv
from lipbridge.norms.estimate import dual_matrix
from lipbridge.norms.gram_convolution import conv_dual
from lipbridge.rescaling.channel_chain import ChannelChain, Layer
from lipbridge.rigor.matrix import times_power_of_two
from lipbridge.rounding.outward import product
from lipbridge.rounding.scalars import UNIT, mul_up

#: Orders of the Schatten norms, as squarings, and the relative progress at which L-BFGS goes on to the next: along this
#: path it ends within 0.2 % of the optimum, where a high order alone stalls far away.
STAGES = ((1, 1e-4), (2, 1e-4), (3, 1e-4), (4, 1e-4), (5, 1e-4), (6, 1e-5), (7, 1e-5), (8, 1e-5))


#: How far above the last value infinity lies for the line search, whose cubics a larger number would spoil.
BEYOND = 2.0


#: Factors are kept within these powers of two.
LARGEST_FACTOR = 2.0**30


def ones(chain: ChannelChain) -> list[Tensor]:
    """Factors one, ``(units,)`` float64 for each joint."""
    return [torch.ones(joint.units, dtype=torch.float64) for joint in chain.joints]


def proved_product(chain: ChannelChain, factors: Sequence[Tensor], layers: Sequence[int] | None = None) -> float:
    """A proved upper bound of the l_2 Lipschitz constant from positive factors, ``(units,)`` float64 a joint.

    With ``layers``, the share of these in it, each with the joint behind it.

    Raises:
        NumericalFailure: for NaN weights, or a norm beyond float64.

    Law: never below a witness, whatever the factors.
    """
    bound = 1.0
    for index in range(len(chain.layers)) if layers is None else layers:
        layer = chain.layers[index]
        before = factors[index - 1].reciprocal()[layer.reads] if index else None
        after = factors[index][layer.writes] if index < len(chain.joints) else layer.scale
        if layer.scale is not None and index < len(chain.joints):
            after = product(factors[index][layer.writes], layer.scale.cpu())  # a larger diagonal map is a larger norm
        bound = mul_up(bound, Block(layer.node, before, after, 0).norm_up(layer.shape, 2, 2))
        if index < len(chain.joints):  # a factor times its rounded reciprocal is one but for a rounding
            bound = mul_up(bound, chain.joints[index].constant, 1.0 + 2.0 * UNIT)
    return bound


@torch.no_grad()
def best_factors(chain: ChannelChain, deadline: float = math.inf) -> list[Tensor]:
    """Factors near the least product of norms, ``(units,)`` float64 a joint, with geometric mean one.

    Args:
        chain: of :func:`channel_chain`; its weights' device does the work.
        deadline: of ``time.perf_counter``; the factors at that time are returned.
    """
    free = [index for index, joint in enumerate(chain.joints) if joint.free and joint.units > 1]
    objective = Objective(chain, free)
    x = minimised(objective, torch.zeros(sum(chain.joints[index].units for index in free)), STAGES, deadline)
    found = ones(chain)
    for index, value in objective.split(x).items():
        found[index] = as_factors(value)
    return found


def as_factors(logs: Tensor) -> Tensor:
    """Factors of geometric mean one, within their limits, on the CPU."""
    limit = math.log(LARGEST_FACTOR)
    return (logs - logs.mean()).clamp(-limit, limit).exp().cpu()


def minimised(
    function: Callable[[Tensor, int], tuple[Tensor, Tensor]],
    x: Tensor,
    stages: Sequence[tuple[int, float]],
    deadline: float,
) -> Tensor:
    """The point that L-BFGS reaches, order after order.

    Args:
        function: value and gradient at a point, for a number of squarings. It may be infinite, but not at ``x``.
        x: where to begin, on the CPU.
        stages: squarings, and the relative progress at which the next ones follow.
        deadline: of ``time.perf_counter``.
    """
    from scipy import optimize

    x, seen, least = x.double(), math.inf, math.inf

    def evaluated(point: np.ndarray[Any, Any], squarings: int) -> tuple[float, np.ndarray[Any, Any]]:
        nonlocal x, seen, least
        if time.perf_counter() > deadline:  # a flat function ends the search at once
            return 0.0, np.zeros_like(point)
        value, gradient = function(torch.as_tensor(point), squarings)
        if not bool(torch.isfinite(value) & torch.isfinite(gradient).all()):
            return seen + BEYOND, np.zeros_like(point)
        seen = float(value)
        if seen <= least:
            x, least = torch.as_tensor(point.copy()), seen
        return seen, gradient.cpu().numpy()

    for squarings, tolerance in stages:
        if not len(x) or time.perf_counter() > deadline:
            break
        least = math.inf  # values of different orders do not compare
        optimize.minimize(
            evaluated,
            x.numpy(),
            args=(squarings,),
            jac=True,
            method="L-BFGS-B",
            options={"maxiter": 100, "maxcor": 30, "ftol": tolerance, "gtol": 1e-6},
        )
    return x


class Objective:
    """The log of the product of Schatten norms of some layers, and its gradient in the logs of free joints' factors."""

    def __init__(self, chain: ChannelChain, free: Sequence[int], layers: Sequence[int] | None = None) -> None:
        self.chain, self.free = chain, free
        self.layers = range(len(chain.layers)) if layers is None else layers
        self.device = chain.layers[0].node.weight.device
        self.weights = [normalised(layer.weight())[0] for layer in chain.layers]
        self.units = [(layer.reads.to(self.device), layer.writes.to(self.device)) for layer in chain.layers]

    def split(self, x: Tensor) -> dict[int, Tensor]:
        return dict(
            zip(self.free, torch.split(x, [self.chain.joints[index].units for index in self.free]), strict=True)
        )

    def __call__(self, x: Tensor, squarings: int) -> tuple[Tensor, Tensor]:
        x = x.to(self.device)
        logs, gradient = self.split(x), torch.zeros_like(x)
        slopes = self.split(gradient)  # views
        total = torch.zeros((), dtype=torch.float64, device=self.device)
        for index in self.layers:
            reads, writes = self.units[index]
            norm, by_rows, by_columns = self.log_norm(index, logs, squarings)
            total = total + norm
            if index - 1 in slopes:
                slopes[index - 1].index_add_(0, reads, -by_columns)
            if index in slopes:
                slopes[index].index_add_(0, writes, by_rows)
        return total, gradient

    def log_norm(self, index: int, logs: Mapping[int, Tensor], squarings: int) -> tuple[Tensor, Tensor, Tensor]:
        """The log of a scaled layer's Schatten norm, and its derivatives in the logs of rows' and columns' factors.

        The norm is without the layer's power of two. ``logs`` of the joints that are not one are on the device. The
        derivatives are ``(out channels,)`` and minus those of the columns ``(in channels,)``.
        """
        layer, W, (reads, writes) = self.chain.layers[index], self.weights[index], self.units[index]
        scaled = W
        if index in logs:
            scaled = scaled * logs[index][writes].exp().reshape(-1, *[1] * (W.ndim - 1))
        if index - 1 in logs:
            scaled = scaled / on_inputs(layer.node, logs[index - 1][reads].exp())
        if layer.geometry is not None:
            dual, norm = conv_dual(scaled, layer.geometry, 2, squarings=squarings)
        elif isinstance(layer.node, Conv):
            dual, norm = dual_matrix(scaled.reshape(1, -1), 1)
            dual = dual.reshape(scaled.shape)
        else:
            dual, norm = dual_matrix(scaled, 2, squarings=squarings)
        norm = norm.clamp_min(torch.finfo(W.dtype).tiny)
        share = dual * scaled / norm
        return norm.log(), share.flatten(1).sum(1), _of_columns(layer, share)


def normalised(weight: Tensor) -> tuple[Tensor, int]:
    """The weight over a power of two near its largest entry, and that power's exponent; zero stays zero."""
    largest = float(weight.abs().max())
    exponent = math.frexp(largest)[1] if math.isfinite(largest) else 0
    return times_power_of_two(weight, -exponent), exponent


def _of_columns(layer: Layer, share: Tensor) -> Tensor:
    if not isinstance(layer.node, Conv):
        return share.sum(0)
    groups = layer.node.groups
    share = share.reshape(*share.shape[:2], -1)  # a diagonal map of vectors has no taps
    return share.sum(2).reshape(groups, -1, share.shape[1]).sum(1).flatten()
