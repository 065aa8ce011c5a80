"""The network of a pair is what it says."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import lipbridge
from lipbridge.errors import InvalidArgument, UnsupportedProblem
from lipbridge.lowering.twin import signs, twin
from lipbridge.vocabulary import Norm


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Conv1d(1, 2, 2), nn.Linear(6, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.one(x).relu().flatten(1)
        return (self.two(y) + x.flatten(1)[:, :3])[:, :, None]


@pytest.mark.parametrize("norm", [1, "inf"])
@pytest.mark.parametrize("kind", ["dense", "residual"])
def test_its_outputs_are_the_sides_of_the_bound(kind: str, norm: Norm) -> None:
    torch.manual_seed(0)
    module, shape = (nn.Linear(4, 3), (4,)) if kind == "dense" else (Residual(), (1, 4))
    graph = lipbridge.capture(module.double(), shape)
    made = twin(graph, 1.75, norm)
    x, d = torch.randn(2, 5, *shape, dtype=torch.float64)
    g = (graph(x + d) - graph(x)).flatten(1)
    d = d.flatten(1)
    if norm == "inf":
        expected = torch.cat([g, -g, 1.75 * d, -1.75 * d], 1)
    else:
        sides = torch.tensor(signs(3), dtype=torch.float64)
        expected = g @ sides.T - 1.75 * d.abs().sum(1, keepdim=True)
        torch.testing.assert_close(expected.amax(1), g.abs().sum(1) - 1.75 * d.abs().sum(1))
    torch.testing.assert_close(made(torch.cat([x.flatten(1), d], 1)), expected)


def test_what_is_not_piecewise_linear_or_too_wide_is_refused() -> None:
    with pytest.raises(InvalidArgument, match="norm"):
        twin(lipbridge.capture(nn.Linear(2, 2)), 1.0, 2)
    with pytest.raises(UnsupportedProblem, match="at most 8"):
        twin(lipbridge.capture(nn.Linear(2, 9)), 1.0, 1)
