"""A network behind factors is the network at the scaled input."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import lipbridge
from lipbridge.errors import InvalidArgument
from lipbridge.lowering.stretched import stretched


@pytest.mark.parametrize("image", [False, True])
def test_values_are_those_at_the_scaled_input(image: bool) -> None:
    torch.manual_seed(0)
    shape = (2, 5, 5) if image else (6,)
    first = nn.Sequential(nn.Conv2d(2, 3, 3), nn.Flatten(), nn.Linear(27, 6)) if image else nn.Linear(6, 6)
    graph = lipbridge.capture(nn.Sequential(first, nn.ReLU(), nn.Linear(6, 3)), shape)
    factors = 2.0 ** torch.randint(-3, 4, shape).double()
    factors.view(-1)[0] = 0.0
    u = torch.randn(7, *shape, dtype=torch.float64)
    torch.testing.assert_close(stretched(graph, factors)(u), graph(factors * u), rtol=1e-12, atol=1e-12)
    with pytest.raises(InvalidArgument, match="have the shape"):
        stretched(graph, factors.flatten()[1:])
