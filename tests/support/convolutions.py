"""Families of convolutions that tests walk: any geometry in one and two axes, and kernels of every flavour."""

from __future__ import annotations

import math

import torch
from hypothesis import strategies as st
from torch import Tensor

from lipbridge.errors import InvalidArgument
from lipbridge.norms.conv_geometry import Convolution
from tests.support.families import FLAVOURS, matrix

MODES = ("zeros", "circular", "reflect", "replicate")


@st.composite
def convolutions(draw: st.DrawFn, modes: tuple[str, ...] = MODES) -> tuple[Tensor, Convolution]:
    """A kernel and a geometry that it fits, drawn over strides, paddings, dilations, groups, modes and flavours."""
    axes, groups = draw(st.integers(1, 2)), draw(st.integers(1, 3))
    rows, columns = draw(st.integers(1, 3)), draw(st.integers(1, 3))
    mode = draw(st.sampled_from(modes))
    space = draw(st.tuples(*[st.integers(1, 9 - 2 * axes)] * axes))
    kernel, stride, dilation = (draw(st.tuples(*[st.integers(1, 4 - low)] * axes)) for low in (0, 1, 1))
    padding: list[tuple[int, int]] = []
    for size, k, d in zip(space, kernel, dilation, strict=True):
        widest = {"circular": size, "reflect": size - 1}.get(mode, 4)
        before, after = draw(st.integers(0, min(4, widest))), draw(st.integers(0, min(4, widest)))
        missing = d * (k - 1) + 1 - size - before - after
        if missing > 0 and mode == "zeros":
            after += missing
        padding.append((before, after))
    geometry = Convolution((groups * columns, *space), stride, tuple(padding), dilation, groups, mode)
    flavour, seed = draw(st.sampled_from(FLAVOURS)), draw(st.integers(0, 10**6))
    flat = matrix(groups * rows, columns * math.prod(kernel), flavour, torch.Generator().manual_seed(seed))
    weight = flat.reshape(groups * rows, columns, *kernel)
    try:
        geometry.output_shape(weight)
    except InvalidArgument:  # the kernel is larger than an input that its padding cannot enlarge enough
        weight = weight[(..., *[slice(0, 1)] * axes)]
    return weight, geometry
