"""Random small modules from torch's whole functional surface."""

from __future__ import annotations

import pytest
import torch

from tests.support.fuzz_aten import OVERLOADS
from tests.support.fuzz_modules import draw_module


def test_a_module_is_a_function_of_its_seed() -> None:
    for seed in range(20):
        one, two = draw_module(seed), draw_module(seed)
        assert one == two
        for a, b in zip(one.build().state_dict().values(), two.build().state_dict().values(), strict=True):
            assert torch.equal(a, b)


@pytest.mark.slow
def test_the_core_opset_is_drawn() -> None:
    drawn: set[str] = set()
    for seed in range(6000):
        drawn.update(draw_module(seed).operators)
    assert not set(OVERLOADS) - drawn
