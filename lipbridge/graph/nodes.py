"""The nodes of a Graph: a small closed set. Weights are float64.

Shapes never count the batch. Images and sequences are channels first, ``(channels, *space)``.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor

from lipbridge.activations.activation import Activation


@dataclass(frozen=True, eq=False)
class Node:
    """A node: ``name`` (the layer's, for errors), ``inputs`` (indices of earlier nodes), ``shape`` without batch."""

    name: str
    inputs: tuple[int, ...]
    shape: tuple[int, ...]


@dataclass(frozen=True, eq=False)
class Input(Node):
    """The network's input, always node 0."""


@dataclass(frozen=True, eq=False)
class Dense(Node):
    """``W x + b`` on the last axis. ``weight`` is ``(m, n)`` float64, ``bias`` ``(m,)`` float64 or None.

    ``parameter`` is the dotted name of the module's tensor that the weight was read from, if it is one (so that a
    training penalty finds it), and ``transposed`` says that W is that tensor's transpose.

    ``error`` is of the weight's shape: how far each entry may be from the network's own, which is computed from stored
    numbers (None if all are exact). ``outward`` says that the network's own weight, whatever it is within that, has no
    larger norm. ``bias_error`` is the bias's.
    """

    weight: Tensor
    bias: Tensor | None = None
    parameter: str | None = None
    transposed: bool = False
    error: Tensor | None = None
    bias_error: Tensor | None = None
    outward: bool = False


@dataclass(frozen=True, eq=False)
class Conv(Node):
    """A convolution on ``(channels, *space)``: kernel ``(out, in / groups, *kernel)``, per-axis geometry.

    ``padding`` is (before, after) for each axis of space; ``padding_mode`` is ``zeros``, ``circular``, ``reflect`` or
    ``replicate``. With no axes of space (a kernel ``(n, 1)``, ``groups = n``, empty geometry) it is a diagonal map of
    vectors.

    ``parameter`` is the dotted name of the module's tensor that the kernel was read from; for the scale of a
    normalisation layer in eval mode it is the layer's own name followed by ``.scale``. ``error``, ``bias_error`` and
    ``outward`` are as for :class:`Dense`.
    """

    weight: Tensor
    bias: Tensor | None = None
    stride: tuple[int, ...] = (1,)
    padding: tuple[tuple[int, int], ...] = ((0, 0),)
    dilation: tuple[int, ...] = (1,)
    groups: int = 1
    padding_mode: str = "zeros"
    parameter: str | None = None
    error: Tensor | None = None
    bias_error: Tensor | None = None
    outward: bool = False

    @property
    def kernel(self) -> tuple[int, ...]:
        """The kernel's lengths along space."""
        return tuple(self.weight.shape[2:])

    @property
    def diagonal(self) -> bool:
        """Whether each channel is only scaled and shifted by numbers of its own."""
        return (
            self.weight.shape[1] == 1
            and self.groups == self.weight.shape[0]
            and math.prod(self.kernel) == 1
            and all(step == 1 for step in self.stride)
            and not any(before or after for before, after in self.padding)
        )


@dataclass(frozen=True, eq=False)
class ConvTranspose(Node):
    """A transposed convolution on ``(channels, *space)``: kernel ``(in, out / groups, *kernel)``, per-axis geometry.

    Input i is spread, by tap j, to the position ``i stride + j dilation``; ``padding`` is how many of these positions
    are cut off (before, after) each axis. Where it is negative, as behind torch's ``output_padding``, so many are put
    on that hold the bias alone. Without its bias it is the adjoint of the convolution with the same kernel and geometry
    that maps ``shape`` to the input's shape.

    ``parameter`` is the dotted name of the module's tensor that the kernel was read from. ``error``, ``bias_error`` and
    ``outward`` are as for :class:`Dense`.
    """

    weight: Tensor
    bias: Tensor | None = None
    stride: tuple[int, ...] = (1,)
    padding: tuple[tuple[int, int], ...] = ((0, 0),)
    dilation: tuple[int, ...] = (1,)
    groups: int = 1
    parameter: str | None = None
    error: Tensor | None = None
    bias_error: Tensor | None = None
    outward: bool = False

    @property
    def kernel(self) -> tuple[int, ...]:
        """The kernel's lengths along space."""
        return tuple(self.weight.shape[2:])

    def spread(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """The lengths of space that inputs of ``shape`` are spread over, before anything is cut off or put on."""
        axes = zip(shape[1:], self.stride, self.dilation, self.kernel, strict=True)
        return tuple((n - 1) * step + dilation * (taps - 1) + 1 for n, step, dilation, taps in axes)


@dataclass(frozen=True, eq=False)
class Gather(Node):
    """Each output is a copy of one input, or zero: selections, repetitions, flips, crops, padding with zeros.

    ``index`` is int64 of the flattened output's length: the input coordinate, in the flattened input, that the output
    copies, or -1 for zero.
    """

    index: Tensor


@dataclass(frozen=True, eq=False)
class Elementwise(Node):
    """One polyactivation on one source; its K outputs per coordinate stand in K blocks along ``axis`` of the shape.

    ``axis`` is 0 for channelwise polyactivations on ``(channels, *space)``, and -1, the last and only axis, on vectors.
    """

    activation: Activation
    axis: int = -1

    @property
    def linear(self) -> bool:
        """Whether every component is a line, so that it only scales and shifts."""
        return all(term.function == "identity" for component in self.activation.components for term in component)


@dataclass(frozen=True, eq=False)
class Concat(Node):
    """Concatenation along ``axis`` of the shape (batch not counted)."""

    axis: int = 0


@dataclass(frozen=True, eq=False)
class Add(Node):
    """Sum of nodes of equal shape."""


@dataclass(frozen=True, eq=False)
class MaxPool(Node):
    """Maximum over windows of ``(channels, *space)``."""

    kernel: tuple[int, ...] = (1,)
    stride: tuple[int, ...] = (1,)
    padding: tuple[int, ...] = (0,)
    dilation: tuple[int, ...] = (1,)
    ceil_mode: bool = False


@dataclass(frozen=True, eq=False)
class GroupSort(Node):
    """Sorts groups of ``group`` neighbours along axis 0 in ascending order (MaxMin for 2)."""

    group: int = 2


@dataclass(frozen=True, eq=False)
class Normalize(Node):
    """(x - mean) / sqrt(variance + epsilon) over each of ``groups`` equal runs of the flattened input.

    Not ``centred`` it is x / sqrt(mean square + epsilon). The core of LayerNorm and RMSNorm (a run for each leading
    index) and of GroupNorm (a run for each group of channels); their scale and shift are a diagonal ``Conv`` that
    follows. No other node is nonlinear with a constant that depends on a number of the layer: it is 1 / sqrt(epsilon),
    reached where a run is constant, or zero.
    """

    groups: int = 1
    epsilon: float = 1e-5
    centred: bool = True


@dataclass(frozen=True, eq=False)
class Softmax(Node):
    """exp(x) / sum(exp(x)) along ``axis`` of the shape (batch not counted), or its logarithm if ``log``."""

    axis: int = 0
    log: bool = False


@dataclass(frozen=True, eq=False)
class Reshape(Node):
    """A permutation of coordinates: transpose by ``axes`` (if given), then reshape to ``shape``."""

    axes: tuple[int, ...] | None = None


def block_axis(node: Elementwise) -> int:
    """The axis of ``node.shape`` along which the blocks stand, as a non-negative number."""
    return node.axis % len(node.shape)


__all__ = [
    "Add",
    "Concat",
    "Conv",
    "ConvTranspose",
    "Dense",
    "Elementwise",
    "Gather",
    "GroupSort",
    "Input",
    "MaxPool",
    "Node",
    "Normalize",
    "Reshape",
    "Softmax",
    "block_axis",
]
