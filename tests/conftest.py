"""Settings for all tests: one thread each (they run side by side), and the reasons for skipping."""

from __future__ import annotations

import os

import pytest
import torch
from hypothesis import settings

pytest.register_assert_rewrite("tests.support")

# Worker processes of pytest-xdist and the processes that tests start share the cores.
os.environ.setdefault("OMP_NUM_THREADS", "1")
torch.set_num_threads(1)

# The same examples in every run, so that a failure is about the change at hand; new ones are drawn with
# LIPBRIDGE_EXPLORE=1, as `make test-slow` does.
settings.register_profile("fixed", deadline=None, print_blob=True, derandomize=True)
settings.register_profile("explore", deadline=None, print_blob=True)
settings.load_profile("explore" if os.environ.get("LIPBRIDGE_EXPLORE") else "fixed")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if torch.accelerator.is_available():
        return
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(pytest.mark.skip(reason="needs a real accelerator, and torch finds none here"))


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)
