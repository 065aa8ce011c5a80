"""A search by several processes ends with what one finds, whatever happens to them."""

from __future__ import annotations

import os
import signal
import time

import pytest
import torch
from torch import nn

import lipbridge
from lipbridge import Problem, Question, Status
from lipbridge.branch_and_bound import search as search_module
from lipbridge.branch_and_bound.cascade import cascade_of
from lipbridge.branch_and_bound.exact import roots
from lipbridge.branch_and_bound.expansion import Expansion
from lipbridge.branch_and_bound.helpers import Helpers
from lipbridge.branch_and_bound.search import Outcome, Search


def searched(processes: int, seconds: float = 100.0) -> tuple[Search, Outcome]:
    torch.manual_seed(1)
    graph = lipbridge.capture(nn.Sequential(nn.Linear(4, 20), nn.ReLU(), nn.Linear(20, 3)))
    problem = Problem(graph, Question.everywhere(1))
    domains, parts = roots(problem, cascade_of(graph))
    expansion = Expansion(cascade_of(graph), 1, 1, domains)
    search = Search(expansion, deadline=time.perf_counter() + seconds, memory=1e9, processes=processes)
    return search, search.run(0.0, parts)


@pytest.fixture
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(search_module, "ALONE", 0.0)
    ready = Helpers.ready.fget
    assert ready is not None

    def waited(helpers: Helpers) -> bool:
        for future in helpers.waking:
            future.exception()
        return ready(helpers)

    monkeypatch.setattr(Helpers, "ready", property(waited))


def test_two_processes_find_what_one_finds(at_once: None) -> None:
    one, alone = searched(1)
    both, found = searched(2)
    assert both.helpers is not None
    assert found.status is Status.OK
    assert found.upper == pytest.approx(alone.upper, rel=1e-9)
    assert both.best == pytest.approx(one.best, rel=1e-9)
    assert found.regions > 1


def test_a_process_that_is_killed_loses_nothing(at_once: None, monkeypatch: pytest.MonkeyPatch) -> None:
    _, alone = searched(1)
    send, killed = Helpers.send, []

    def sent(helpers: Helpers, parts: list, best: float) -> None:
        send(helpers, parts, best)
        if not killed and len(helpers.sent) == 2:
            killed.extend(helpers.pool._processes)
            for process in killed:
                os.kill(process, signal.SIGKILL)

    monkeypatch.setattr(Helpers, "send", sent)
    search, found = searched(2)
    assert killed
    assert search.helpers is not None
    assert search.helpers.count == 0
    assert found.upper == pytest.approx(alone.upper, rel=1e-9)


def test_a_process_that_dies_while_it_waits_loses_nothing(at_once: None, monkeypatch: pytest.MonkeyPatch) -> None:
    _, alone = searched(1)
    send, killed = Helpers.send, []

    def sent(helpers: Helpers, parts: list, best: float) -> None:
        if not killed and not helpers.sent:
            killed.extend(helpers.pool._processes)
            os.kill(killed[0], signal.SIGKILL)
            time.sleep(1.0)
        send(helpers, parts, best)

    monkeypatch.setattr(Helpers, "send", sent)
    search, found = searched(2)
    assert killed
    assert search.helpers is not None
    assert search.helpers.count == 0
    assert found.upper == pytest.approx(alone.upper, rel=1e-9)


def test_what_helpers_have_not_answered_at_the_limit_is_open(at_once: None, monkeypatch: pytest.MonkeyPatch) -> None:
    _, alone = searched(1)

    def none(helpers: Helpers, seconds: float) -> tuple[list, list]:
        search_over.append(True)
        time.sleep(0.05)
        return [], []

    search_over: list[bool] = []
    monkeypatch.setattr(Helpers, "answers", none)
    _, found = searched(2, seconds=8.0)
    assert search_over
    assert found.status is Status.TIMEOUT
    assert found.left > 0
    assert found.upper >= alone.upper * (1.0 - 1e-9)
