"""Random small modules from torch's whole functional surface: each captured rightly, or refused in one line."""

from __future__ import annotations

import os
import secrets
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import lipbridge
from tests.support.fuzz_aten import OVERLOADS
from tests.support.fuzz_check import NORMS, Judged, Wrong, compare, judge, operator_norm, pairs
from tests.support.fuzz_modules import FuzzModule, draw_module
from tests.support.fuzz_penalty import judge_penalty

#: New modules in every run of `make test-slow`; the first seed is in the message of a failure.
FIRST_SLOW = secrets.randbelow(2**31) if os.environ.get("LIPBRIDGE_EXPLORE") else 1_000_000
CHUNK = 250


def _hold(seeds: range) -> None:
    """No module of these seeds is wrong or crashes; and the run says something: many are right, many refused."""
    counts: Counter[str] = Counter()
    findings: list[str] = []
    for seed in seeds:
        drawn = draw_module(seed)
        outcome = judge(drawn, thorough=seed % 10 == 0)
        counts[outcome.kind] += 1
        if outcome.kind in ("wrong", "crashed"):
            findings.append(f"--- {outcome.kind}: {outcome.reason}\n{drawn}")
    assert not findings, f"{dict(counts)}\n" + "\n".join(findings)
    assert counts["right"] >= len(seeds) // 5, counts
    assert counts["refused"] >= len(seeds) // 5, counts


@pytest.mark.parametrize("first", range(0, 150, 75))
def test_random_modules_are_read_rightly_or_refused(first: int) -> None:
    _hold(range(first, first + 75))


@pytest.mark.slow
@pytest.mark.parametrize("chunk", range(5000 // CHUNK))
def test_thousands_of_random_modules_are_read_rightly_or_refused(chunk: int) -> None:
    first = FIRST_SLOW + chunk * CHUNK
    _hold(range(first, first + CHUNK))


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


# --- the judge itself ------------------------------------------------------------------------------------------------


class _Apply(nn.Module):
    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


#: Functions that are the identity but for a fault: what a wrong handler would take for the identity.
FAULTS: dict[str, Callable[[Tensor], Tensor]] = {
    "a factor": lambda x: x * (1.0 + 1e-9),
    "a shift": lambda x: x + 1e-9,
    "a cast": lambda x: x + 1e-3 * (x.long() - x.trunc().long()) + (x > 500.0),
    "an order": lambda x: x.flip(-1),
    "a size of the batch": lambda x: x * (len(x) + 7) / (len(x) + 6.999999),
    "other inputs of the batch": lambda x: x + 1e-6 * (x.mean(0) - x),
    "the order of the batch": lambda x: x + 1e-6 * (x.flip(0) - x),
    "noise": lambda x: x + 1e-6 * torch.rand_like(x),
    "a batch of one": lambda x: x.squeeze(),
    "the batch's end": lambda x: x[:4],
    "not finite": lambda x: torch.where(x.abs() > 50.0, torch.nan, x),
    "a fault for large inputs": lambda x: torch.where(x.abs() > 700.0, x * 1.01, x),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_the_judge_sees_values_that_differ(fault: str) -> None:
    graph = lipbridge.capture(nn.Identity(), (6,))
    with pytest.raises(Wrong):
        compare(lambda: _Apply(FAULTS[fault]), graph, dict.fromkeys(NORMS, 1.0), torch.float32, (6,))
    compare(lambda: _Apply(lambda x: x), graph, dict.fromkeys(NORMS, 1.0), torch.float32, (6,))


@pytest.mark.parametrize("norm", NORMS)
def test_the_judge_sees_a_bound_that_is_too_small(norm: int | str) -> None:
    net = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)).double()
    nn.init.zeros_(net[0].bias)
    graph = lipbridge.capture(net, (3,))
    J = net[2].weight @ net[0].weight
    true = {name: float(operator_norm(J.detach(), name)) for name in NORMS}
    bounds = {name: lipbridge.trivial_bound(graph, name).value for name in NORMS}
    compare(lambda: net, graph, bounds, torch.float64, (3,), thorough=True)
    with pytest.raises(Wrong):
        compare(lambda: net, graph, {**bounds, norm: 0.9 * true[norm]}, torch.float64, (3,))


@pytest.mark.parametrize("jump", [torch.round, torch.sign, lambda x: (x * 0.37).floor(), lambda x: x.int().to(x.dtype)])
def test_the_judge_sees_jumps_whatever_the_graph_says(jump: Callable[[Tensor], Tensor]) -> None:
    judged = Judged(lambda: _Apply(jump), torch.float32)
    with pytest.raises(Wrong):
        pairs(judged, dict.fromkeys(NORMS, 100.0), (4,))


class _Stale(nn.Module):
    """A penalty that keeps the bound of its construction."""

    def __init__(self, module: nn.Module, norm: Any, *, every: int, input_shape: Any) -> None:
        super().__init__()
        self.first = lipbridge.trivial_bound(module, norm, input_shape=input_shape)

    def forward(self) -> Tensor:
        return torch.tensor(self.first.value)

    def bound(self) -> lipbridge.Bound:
        return self.first


class _Blind(_Stale):
    """One that follows the weights, and pushes none."""

    def __init__(self, module: nn.Module, norm: Any, *, every: int, input_shape: Any) -> None:
        super().__init__(module, norm, every=every, input_shape=input_shape)
        self.bound = lambda: lipbridge.trivial_bound(module, norm, input_shape=input_shape)


@pytest.mark.parametrize("kind", [_Stale, _Blind])
def test_the_judge_of_penalties_sees_one_that_stands_still(kind: type, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = FuzzModule(0, (3,), _LINEAR, ("nn.Linear",), torch.float32, training=False)
    assert judge_penalty(drawn).kind == "right"
    monkeypatch.setattr(lipbridge, "TrivialBoundPenalty", kind)
    assert judge_penalty(drawn).kind == "wrong"


_LINEAR = """
class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.f = nn.Linear(3, 4)

    def forward(self, x):
        return torch.relu(self.f(x))
"""
