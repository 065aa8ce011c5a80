"""The layers a bound-trained network is made of, and the builder of dense chains."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

from lipbridge.activations import activation, activation_module
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
