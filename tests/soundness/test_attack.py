"""Proved bounds against exact rational Jacobians and matrices, at tolerance zero.

A part of the attack with fixed seeds; all of it is marked ``slow`` and draws new seeds with ``LIPBRIDGE_EXPLORE``.
``python -m benchmarks.attack`` prints how often each claimant was asked.
"""

from __future__ import annotations

import os
import random
from collections import Counter
from collections.abc import Iterable

import pytest

from tests.support.attack import kernels, modules, networks
from tests.support.attack.claims import BALLS, INNER, all_claimants, proved_verifiers
from tests.support.attack.judge import Outcome, judge
from tests.support.attack.kernels import draw_kernel, judge_kernel
from tests.support.attack.modules import draw_module, judge_module
from tests.support.attack.networks import draw
from tests.support.attack.points import classifier, judge_points

FIRST = random.randrange(10**6) if os.environ.get("LIPBRIDGE_EXPLORE") else 0
#: Networks and kernels of each family in every run, and in the slow one.
FEW, MANY = 6, 460


def require_held(outcomes: Iterable[Outcome], least: int) -> Counter[str]:
    """No violation and no crash, and at least so many claims that held; how many, by claimant."""
    found = list(outcomes)
    wrong = [outcome for outcome in found if outcome.kind not in ("held", "refused")]
    assert not wrong, "\n".join(map(str, wrong))
    held = Counter(outcome.name for outcome in found if outcome.kind == "held")
    assert held.total() >= least
    return held


@pytest.mark.parametrize("family", networks.FAMILIES)
def test_networks(family: str) -> None:
    seeds = range(FEW // 2 if family == "deep" else FEW)
    require_held((o for seed in seeds for o in judge(draw(family, seed))), 6 * len(seeds))


@pytest.mark.parametrize("family", modules.FAMILIES)
def test_modules(family: str) -> None:
    require_held((o for seed in range(FEW) for o in judge_module(draw_module(family, seed))), 4 * FEW)


@pytest.mark.parametrize("family", kernels.FAMILIES)
def test_kernels(family: str) -> None:
    require_held((o for seed in range(8 * FEW) for o in judge_kernel(draw_kernel(family, seed))), 46 * FEW)


@pytest.mark.parametrize("family", ["dense", "tight", "leaky slopes", "extreme", "branches"])
def test_certified_points(family: str) -> None:
    require_held((o for seed in range(FEW) for o in judge_points(classifier(draw(family, seed)))), 2 * FEW)


@pytest.mark.parametrize("name", all_claimants())
def test_every_claimant_is_asked(name: str) -> None:
    families = ("convolutions", "dense") if name in ("channels", "on balls") else ("dense", "extreme")
    require_held((o for family in families for o in judge(draw(family, 5), [name])), 1)


def test_all_claimants_are_known() -> None:
    assert {"trivial", "eclipse-fast", "lipsdp-fast", "witness"} <= set(proved_verifiers())
    assert len(set(all_claimants())) == len(proved_verifiers()) + len(INNER) + len(BALLS)


@pytest.mark.slow
@pytest.mark.parametrize("family", networks.FAMILIES)
def test_many_networks(family: str) -> None:
    seeds = range(FIRST, FIRST + (MANY // 4 if family == "deep" else MANY))
    require_held((o for seed in seeds for o in judge(draw(family, seed))), 5 * len(seeds))


@pytest.mark.slow
@pytest.mark.parametrize("family", modules.FAMILIES)
def test_many_modules(family: str) -> None:
    seeds = range(FIRST, FIRST + MANY // 2)
    require_held((o for seed in seeds for o in judge_module(draw_module(family, seed))), 2 * MANY)


@pytest.mark.slow
@pytest.mark.parametrize("family", kernels.FAMILIES)
def test_many_kernels(family: str) -> None:
    seeds = range(FIRST, FIRST + 2 * MANY)
    require_held((o for seed in seeds for o in judge_kernel(draw_kernel(family, seed))), 10 * MANY)


@pytest.mark.slow
@pytest.mark.parametrize("family", networks.FAMILIES)
def test_many_certified_points(family: str) -> None:
    seeds = range(FIRST, FIRST + MANY // 4)
    require_held((o for seed in seeds for o in judge_points(classifier(draw(family, seed)))), MANY // 4)
