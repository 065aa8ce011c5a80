"""A study in a process of its own, to be killed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from lipbridge.study.cells import Cell

ROOT = Path(__file__).parents[2]


@contextmanager
def started(
    folder: Path, kind: str, cells: Sequence[Cell], environment: Mapping[str, str] | None = None
) -> Generator[subprocess.Popen[bytes]]:
    """The study of :mod:`tests.support.cluster_cells` on these cells; killed at the end, if it was not before."""
    file = folder / "cells.jsonl"
    file.write_text("".join(json.dumps(cell.to_json()) + "\n" for cell in cells))
    command = [sys.executable, "-m", "tests.support.cluster_cells", str(folder), kind, str(file)]
    process = subprocess.Popen(command, cwd=ROOT, env={**os.environ, **(environment or {})})
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def wait_for(thing: Callable[[], object], seconds: float = 60.0) -> None:
    """Until a thing is true."""
    deadline = time.monotonic() + seconds
    while not thing():
        assert time.monotonic() < deadline, "it never came"
        time.sleep(0.05)
