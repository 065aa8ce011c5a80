"""Lowering: rewrites of a Graph that keep its function, for tools that know fewer operations.

A piecewise linear activation with its kink at zero is, in every component, g_k(t) = r_k relu(t) - l_k relu(-t) + o_k.
So ``relu([W; -W] x + [b; -b])`` holds everything it needs, and the r, l and o go into the weights that come next:
|Wx + b| = [I I] relu([W; -W] x + [b; -b]). A kink elsewhere, as in relu(s t + o), is a row with a shifted bias. Both
factors act block by block with one number a block (:class:`_Blocks`), which keeps the merging cheap and lets it
account for every rounding.
"""

from __future__ import annotations

import torch

from lipbridge.graph.graph import Graph, with_axes
from lipbridge.lowering.rewriter import Lowering, Rewriter


def lower_to_relu(graph: Graph, *, exact: bool = False) -> Graph:
    """The same function with ``relu`` as its only activation; see :func:`relu_lowering` for the rounding.

    Law: ``lower_to_relu(g)(x)`` equals ``g(x)`` up to float64 rounding, a number an input with an axis of length one;
    abs, crelu and relu are lowered exactly.
    """
    return relu_lowering(graph, exact=exact).graph


def relu_lowering(graph: Graph, *, exact: bool = False, readable: torch.dtype | None = None) -> Lowering:
    """Write every piecewise linear activation as relu rows merged into the weights around it.

    A unit takes one row for each of relu(t) and relu(-t) that any component needs, whatever the number of
    components (and one for each kink elsewhere, and side of it); relu itself is left alone. Scalings and shifts
    vanish into a neighbouring dense layer or convolution. Where an activation has none beside it that can take it in,
    one is put in: on ``(channels, *space)`` a convolution with a kernel of one tap.

    Args:
        graph: any Graph; nodes other than ``Elementwise``, ``Dense`` and ``Conv`` pass through.
        exact: put in a layer of its own wherever merging would round a weight.
        readable: keep what a reader needs to find the activations again in weights of this dtype: merge only where
            merged weights of it are of it too and hold the activation for all to see (abs and CReLU do), and never
            into a layer that others read or read from. As with ``exact``, but for factors and shifts of all units
            alike, and slopes that are no doubles, which are rounded.

    Raises:
        UnsupportedOperation: naming the layer of an activation that is not piecewise linear;
            with ``exact`` also where a slope is no double.
        NumericalFailure: if merged weights overflow.
    """
    return Rewriter(with_axes(graph), hinges=True, exact=exact or readable is not None, readable=readable).run()


def fold_scalings(graph: Graph, *, exact: bool = False) -> Lowering:
    """Merge every ``Elementwise`` that is affine, t -> s t + o, into a dense layer beside it; leave all others.

    Law: the function is the same up to float64 rounding. (A number an input gets an axis of length one.)
    """
    return Rewriter(with_axes(graph), hinges=False, exact=exact).run()


__all__ = ["fold_scalings", "lower_to_relu", "relu_lowering"]
