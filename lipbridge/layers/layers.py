"""The layers a bound-trained network is made of (dense, convolutional, sorting), and the builder of dense chains."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

from lipbridge import checks
from lipbridge.activations.registry import activation, activation_module
from lipbridge.errors import InvalidArgument


class Sinusoidal(nn.Module):
    """A bias-free sinusoidal layer: x -> (sin(W x), cos(W x)), with ``2 * out_features`` outputs.

    It needs no bias for universal approximation, because span{sin w'x, cos w'x} is an algebra that holds the
    constants, and its derivative has l_2 norm one along every coordinate of W x, so no unit can go dead.

    Args:
        in_features: n.
        out_features: rows m of W; the output has 2 m features, ``[sin(W x), cos(W x)]``.
        scale: standard deviation of the entries of W times sqrt(n), i.e. the typical frequency at the start.

    Source: Kuang et al., arXiv 2603.28113 (bias-free sinusoidal layers). Law: Lipschitz constant in l_2 <= ||W||_2.
    """

    def __init__(self, in_features: int, out_features: int, scale: float = 1.0) -> None:
        super().__init__()
        for name, value in (("in_features", in_features), ("out_features", out_features)):
            _require_width(name, value)
        self.in_features, self.out_features, self.scale = in_features, out_features, scale
        self.weight = nn.Parameter(torch.empty(out_features, in_features))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw W anew: normal entries with standard deviation ``scale / sqrt(in_features)``."""
        nn.init.normal_(self.weight, std=self.scale / self.in_features**0.5)

    def forward(self, x: Tensor) -> Tensor:
        z = nn.functional.linear(x, self.weight)
        return torch.cat([z.sin(), z.cos()], dim=-1)

    def extra_repr(self) -> str:
        return f"{self.in_features}, {self.out_features}, scale={self.scale:g}"


class _SinusoidalConv(nn.Module):
    """What the sinusoidal convolutions of one and two axes share."""

    axes: int

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        stride: int = 1,
        padding: int = 0,
        dilation: int = 1,
        groups: int = 1,
        padding_mode: str = "zeros",
        scale: float = 1.0,
    ) -> None:
        super().__init__()
        options = {"in_channels": in_channels, "out_channels": out_channels, "kernel_size": kernel_size}
        for name, value in {**options, "stride": stride, "dilation": dilation, "groups": groups}.items():
            _require_width(name, value)
        if padding_mode not in ("zeros", "circular", "reflect", "replicate"):
            raise InvalidArgument("padding_mode", "be zeros, circular, reflect or replicate", padding_mode)
        if in_channels % groups or out_channels % groups:
            raise InvalidArgument("groups", "divide both numbers of channels", groups)
        self.in_channels, self.out_channels, self.kernel_size = in_channels, out_channels, kernel_size
        self.stride, self.padding, self.dilation, self.groups = stride, padding, dilation, groups
        self.padding_mode, self.scale = padding_mode, scale
        self.weight = nn.Parameter(torch.empty(out_channels, in_channels // groups, *(kernel_size,) * self.axes))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the kernel anew: normal entries with standard deviation ``scale`` over the root of the fan-in."""
        nn.init.normal_(self.weight, std=self.scale / self.weight[0].numel() ** 0.5)

    def forward(self, x: Tensor) -> Tensor:
        padding = self.padding
        if padding and self.padding_mode != "zeros":
            x = nn.functional.pad(x, (padding, padding) * self.axes, mode=self.padding_mode)
            padding = 0
        convolve = nn.functional.conv1d if self.axes == 1 else nn.functional.conv2d
        z = convolve(x, self.weight, None, self.stride, padding, self.dilation, self.groups)
        return torch.cat([z.sin(), z.cos()], dim=1)

    def extra_repr(self) -> str:
        return (
            f"{self.in_channels}, {self.out_channels}, kernel_size={self.kernel_size}, stride={self.stride}, "
            f"padding={self.padding}, scale={self.scale:g}"
        )


class SinusoidalConv1d(_SinusoidalConv):
    """A bias-free sinusoidal convolution: x -> (sin(W * x), cos(W * x)), joined along the channels.

    ``2 * out_channels`` channels come out. The options are those of ``torch.nn.Conv1d``, one number each; ``scale`` is
    the typical frequency at the start, as for :class:`Sinusoidal`.

    Source: as :class:`Sinusoidal`. Law: Lipschitz constant in l_2 at most that of the convolution.
    """

    axes = 1


class SinusoidalConv2d(_SinusoidalConv):
    """As :class:`SinusoidalConv1d`, on images ``(batch, channels, height, width)``."""

    axes = 2


class GroupSort(nn.Module):
    """Sorts groups of ``group`` neighbouring channels in ascending order: Lipschitz constant one in every norm.

    Args:
        group: size of the groups; it divides the channels (or features), which are axis 1.

    Source: Anil, Lucas, Grosse 2019 ("Sorting out Lipschitz function approximation"). Law: the gradient keeps its
    norm, since almost everywhere the layer is a permutation.
    """

    def __init__(self, group: int = 2) -> None:
        super().__init__()
        _require_width("group", group)
        self.group = group

    def forward(self, x: Tensor) -> Tensor:
        groups = x.reshape(x.shape[0], -1, self.group, *x.shape[2:])
        return groups.sort(dim=2).values.reshape(x.shape)

    def extra_repr(self) -> str:
        return str(self.group)


class MaxMin(nn.Module):
    """(max(a, b), min(a, b)) for the halves a, b of the channels (axis 1): :class:`GroupSort` of pairs."""

    def forward(self, x: Tensor) -> Tensor:
        a, b = x.chunk(2, dim=1)
        return torch.cat([torch.maximum(a, b), torch.minimum(a, b)], dim=1)


def _require_width(name: str, value: object) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise InvalidArgument(name, "be a whole number of at least 1", value)


def mlp(
    widths: Sequence[int], activation_name: str = "abs", *, bias: bool = True, **parameters: float
) -> nn.Sequential:
    """A dense chain with one activation between each two layers, as a plain ``torch.nn.Sequential``.

    A polyactivation with K components multiplies the width that the next layer reads by K; ``widths`` are those of
    the dense layers, input and output included.

    Args:
        widths: e.g. ``[784, 256, 256, 10]``; at least two.
        activation_name: a registered activation (:func:`lipbridge.activation_names`).
        bias: whether dense layers have a bias.
        parameters: parameters of the activation, e.g. ``negative_slope=0.1``.

    Raises:
        InvalidArgument: for widths below 1 or fewer than two.
        UnknownName: for an activation that is not registered.
    """
    checks.instance(widths, Sequence, "widths", "be a list of widths, e.g. [784, 256, 10]")
    checks.flag(bias, "bias")
    if len(widths) < 2:
        raise InvalidArgument("widths", "hold at least the input's and the output's width", list(widths))
    for width in widths:
        _require_width("widths", width)
    factor = activation(activation_name).width
    layers: list[nn.Module] = []
    for index, (n, m) in enumerate(pairwise(widths)):
        if index:
            layers.append(activation_module(activation_name, **parameters))
            n *= factor
        layers.append(nn.Linear(n, m, bias=bias))
    return nn.Sequential(*layers)
