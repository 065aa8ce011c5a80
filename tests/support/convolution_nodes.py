"""Random convolutions as nodes, in every option."""

from __future__ import annotations

import torch
from hypothesis import strategies as st
from torch import Tensor

from lipbridge.graph.evaluation import evaluate
from lipbridge.graph.nodes import (
    Conv,
)

MODES = ("zeros", "circular", "reflect", "replicate")


def draw(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@st.composite
def convolutions(draws, most: int = 4) -> tuple[Conv, tuple[int, ...]]:
    """A random convolution in every option, and its input's shape."""
    rank = draws(st.sampled_from([1, 2]))
    groups = draws(st.sampled_from([1, 2]))
    channels, out = groups * draws(st.integers(1, 2)), groups * draws(st.integers(1, 2))
    kernel = tuple(draws(st.integers(1, 3)) for _ in range(rank))
    stride, dilation = (tuple(draws(st.integers(1, 2)) for _ in range(rank)) for _ in range(2))
    space = tuple(
        draws(st.integers((k - 1) * d + 1, (k - 1) * d + most)) for k, d in zip(kernel, dilation, strict=True)
    )
    padding = tuple((draws(st.integers(0, min(2, n - 1))), draws(st.integers(0, min(2, n - 1)))) for n in space)
    seed = draws(st.integers(0, 10**6))
    weight = draw(seed, out, channels // groups, *kernel)
    bias = draw(seed + 1, out) if draws(st.booleans()) else None
    mode = draws(st.sampled_from(MODES))
    shape = (channels, *space)
    node = Conv("conv", (0,), (), weight, bias, stride, padding, dilation, groups, mode)
    found = evaluate(node, [torch.zeros(1, *shape, dtype=torch.float64)]).shape[1:]
    return Conv("conv", (0,), tuple(found), weight, bias, stride, padding, dilation, groups, mode), shape
