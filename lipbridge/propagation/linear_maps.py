"""Linear nodes without their biases, and their adjoints, applied to batches.

Both obey the error bound of a dot product of :func:`terms` products in every number that they compute.
"""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from torch import Tensor

from lipbridge.graph.evaluation import evaluate
from lipbridge.graph.geometry import adjoint_geometry, geometry
from lipbridge.graph.nodes import (
    Add,
    Concat,
    Conv,
    ConvTranspose,
    Dense,
    Elementwise,
    Gather,
    GroupSort,
    MaxPool,
    Node,
    Normalize,
    Reshape,
    Softmax,
)
from lipbridge.graph.rules import ProblemRule

Shape = tuple[int, ...]


def bare(node: Node, weight: Tensor | None = None) -> Node:
    """The node without its bias and errors; with another ``weight`` of the same shape if it is given."""
    if not isinstance(node, Dense | Conv | ConvTranspose):
        return node
    return replace(node, weight=node.weight if weight is None else weight, bias=None, error=None, bias_error=None)


def image(node: Node, inputs: list[Tensor]) -> Tensor:
    """What a bare linear node makes of inputs ``(batch, *shape)``: ``(batch, *node.shape)``."""
    return evaluate(node, inputs)


#: The adjoint of a bare linear node at ``y`` ``(batch, *node.shape)``: for each input, of the given shapes,
#: ``(batch, *shape)``.
adjoint = ProblemRule[[Tensor, list[Shape]], list[Tensor]]("adjoint")
adjoint.without(
    Elementwise,
    MaxPool,
    GroupSort,
    Normalize,
    Softmax,
    reason="is not linear, so that its derivative depends on the point.",
)


@adjoint.of(Dense)
def _(node: Dense, y: Tensor, shapes: list[Shape]) -> list[Tensor]:
    return [y @ node.weight]


@adjoint.of(Conv)
def _(node: Conv, y: Tensor, shapes: list[Shape]) -> list[Tensor]:
    return [transposed(node, y, shapes[0])]


@adjoint.of(ConvTranspose)
def _(node: ConvTranspose, y: Tensor, shapes: list[Shape]) -> list[Tensor]:
    return [convolved(node, y, shapes[0])]


@adjoint.of(Gather)
def _(node: Gather, y: Tensor, shapes: list[Shape]) -> list[Tensor]:
    n = math.prod(shapes[0])
    index = torch.where(node.index >= 0, node.index, n)  # what the zeros' coefficients add up to is left out
    summed = y.new_zeros(len(y), n + 1).index_add(1, index, y.flatten(1))[:, :n]
    return [summed.reshape(len(y), *shapes[0])]


@adjoint.of(Reshape)
def _(node: Reshape, y: Tensor, shapes: list[Shape]) -> list[Tensor]:
    if node.axes is None:
        return [y.reshape(len(y), *shapes[0])]
    moved = y.reshape(len(y), *(shapes[0][axis] for axis in node.axes))
    axes = node.axes
    back = sorted(range(len(axes)), key=lambda place: axes[place])
    return [moved.permute(0, *(place + 1 for place in back))]


@adjoint.of(Concat)
def _(node: Concat, y: Tensor, shapes: list[Shape]) -> list[Tensor]:
    return list(torch.split(y, [shape[node.axis] for shape in shapes], node.axis + 1))


@adjoint.of(Add)
def _(node: Add, y: Tensor, shapes: list[Shape]) -> list[Tensor]:
    return [y for _ in shapes]


def terms(node: Node, shapes: list[Shape]) -> int:
    """At least how many products meet in one number of the image or of the adjoint; 0 where nothing is rounded."""
    if isinstance(node, Dense):
        return max(node.weight.shape)
    if isinstance(node, Conv):
        copies = [1 if node.padding_mode == "zeros" else 1 + sum(pair) for pair in node.padding]
        return max(node.weight.shape[:2]) * math.prod(node.kernel) * math.prod(copies)
    if isinstance(node, ConvTranspose):
        return max(node.weight.shape[:2]) * math.prod(node.kernel)
    if isinstance(node, Gather):
        return node.index.numel()  # not the most copies of one, which the host would have to wait for
    return len(shapes) if isinstance(node, Add) else 0


def transposed(node: Conv, y: Tensor, shape: Shape) -> Tensor:
    """The transposed convolution at ``y`` ``(batch, *node.shape)``; ``(batch, *shape)``."""
    if node.diagonal:
        return y * node.weight.reshape(-1, *[1] * (y.ndim - 2))
    with torch.backends.cudnn.flags(enabled=False):  # see lipbridge.graph.evaluation.convolve
        return geometry(node, shape).adjoint(node.weight, y)


def convolved(node: ConvTranspose, y: Tensor, shape: Shape) -> Tensor:
    """The adjoint of a transposed convolution at ``y`` ``(batch, *node.shape)``: a convolution, ``(batch, *shape)``."""
    exact = adjoint_geometry(node, shape)
    if exact is None:
        return y.new_zeros(len(y), *shape)
    for axis, ((before, _), n) in enumerate(zip(node.padding, exact.space, strict=True), start=2):
        y = y.narrow(axis, max(-before, 0), n)  # what was put on holds the bias alone
    with torch.backends.cudnn.flags(enabled=False):  # see lipbridge.graph.evaluation.convolve
        return exact.apply(node.weight, y)


__all__ = ["Shape", "adjoint", "bare", "convolved", "image", "terms", "transposed"]
