"""Affine forms as torch modules: linear layers and convolutions, added up."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from lipbridge_adapters.lirpa.affine import Affine, Weight, full
from lipbridge_adapters.lirpa.kernel import Kernel, pair


class Sum(nn.Module):
    """``constant + sum of weight @ signal``, of the signals in the order of the form's terms.

    Args:
        form: what is added up.
        images: whether a factor of all coordinates becomes a kernel of one tap rather than a matrix.
    """

    def __init__(self, form: Affine, images: bool) -> None:
        super().__init__()
        weights = [_settled(weight, images) for weight in form.terms.values()]
        carrier = next((i for i, weight in enumerate(weights) if isinstance(weight, Tensor)), None)
        self.parts = nn.ModuleList()
        for i, weight in enumerate(weights):
            if isinstance(weight, Kernel):
                self.parts.append(_Convolution(weight))
            else:
                self.parts.append(_dense(weight, form.constant if i == carrier else None))
        moved = carrier is None and bool((form.constant != 0).any())
        self.shift = nn.Parameter(form.constant.clone(), requires_grad=False) if moved else None

    def forward(self, signals: list[Tensor]) -> Tensor:
        total = self.parts[0](signals[0])
        for part, signal in zip(list(self.parts)[1:], signals[1:], strict=True):
            total = total + part(signal)
        return total if self.shift is None else total + self.shift


def _settled(weight: Weight, images: bool) -> Weight:
    if isinstance(weight, Tensor) and weight.ndim == 1 and images and bool((weight == weight[0]).all()):
        row = (1, 1, len(weight))
        return Kernel(weight[:1].reshape(1, 1, 1, 1), row, row)
    return weight if isinstance(weight, Kernel) else full(weight)


def _dense(weight: Tensor, bias: Tensor | None) -> nn.Linear:
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None, device="meta", dtype=torch.float64)
    layer.weight = nn.Parameter(weight.clone(), requires_grad=False)
    if bias is not None:
        layer.bias = nn.Parameter(bias.clone(), requires_grad=False)
    return layer


class _Convolution(nn.Module):
    """A kernel as torch's convolution, between reshapes, since all signals are flat."""

    def __init__(self, kernel: Kernel) -> None:
        super().__init__()
        self.source, self.size = kernel.source, math.prod(kernel.target)
        self.inner = nn.Conv2d(
            kernel.source[0],
            kernel.target[0],
            pair(tuple(kernel.weight.shape[2:])),
            kernel.stride,
            kernel.padding,
            kernel.dilation,
            kernel.groups,
            bias=False,
            device="meta",
            dtype=torch.float64,
        )
        self.inner.weight = nn.Parameter(kernel.weight.clone(), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x.reshape(-1, *self.source)).reshape(-1, self.size)
