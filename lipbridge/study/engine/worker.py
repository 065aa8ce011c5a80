"""The process of cells: ``python -m lipbridge.study.engine.worker``; its parent names a folder a line on its input.

Each folder holds a Request or a Cell, and gets its answer; what is imported is imported once.
"""

from __future__ import annotations

import contextlib
import os
import queue
import sys
import tempfile
import traceback
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lipbridge.errors import FileNotWritten, MissingDependency, ModelFileError
from lipbridge.files.container import load_tensors
from lipbridge.files.problems import load_problem
from lipbridge.processes import STDERR, STDOUT, end_with_parent, forget_peak, own_peak_bytes
from lipbridge.rigor.matrix import proved_operator_norm
from lipbridge.study.engine import wire
from lipbridge.study.engine.work import answer_cell
from lipbridge.study.here import bound_or_failure, certified, error_line
from lipbridge.study.requests import Certification, failed
from lipbridge.verifiers import Budget, Refusal, Task, Verifier, get_verifier
from lipbridge.vocabulary import Status


def main() -> None:
    """Answer whatever the parent names, until it ends."""
    folders: queue.SimpleQueue[str] = queue.SimpleQueue()
    end_with_parent(folders.put)
    with contextlib.suppress(Exception):
        proved_operator_norm(torch.eye(256, dtype=torch.float64))  # the first call into LAPACK is nobody's time
    while True:
        answer(Path(folders.get()))


def answer(folder: Path) -> None:
    """Answer what is asked in ``folder``."""
    _speak_into(folder)
    os.environ["TMPDIR"] = tempfile.tempdir = str(folder)  # what is left behind goes with the folder
    forget_peak()
    try:
        if (folder / wire.CELL).exists():
            answer_cell(folder)
        else:
            _answer_request(folder)
    except (FileNotWritten, ModelFileError):
        traceback.print_exc()
        sys.exit(os.EX_IOERR)  # on a full disk the last words may be lost too, an exit code is not
    sys.stdout.flush()
    sys.stderr.flush()
    (folder / wire.DONE).touch()


def _speak_into(folder: Path) -> None:
    for descriptor, name in ((1, STDOUT), (2, STDERR)):
        file = os.open(folder / name, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        os.dup2(file, descriptor)
        os.close(file)


def _answer_request(folder: Path) -> None:
    """First the bound, at once, then the certification if one is asked for."""
    tensors, request = load_tensors(folder / wire.REQUEST)
    torch.set_num_threads(request["threads"])
    problem = load_problem(folder / wire.PROBLEM)
    budget = _budget(request, tensors)
    try:
        verifier = get_verifier(request["verifier"])
        _warm_up(verifier)
    except MissingDependency as error:
        wire.write_bound(folder / wire.ANSWER, failed(problem, request["verifier"], Status.MISSING, str(error)))
        return
    (folder / wire.STARTED).touch()
    task: Task | Refusal = Refusal(request["verifier"], "it was not asked for a bound")
    if request["bound"]:
        bound, task = bound_or_failure(request["verifier"], verifier, problem, budget)
        wire.write_bound(folder / wire.ANSWER, replace(bound, memory=own_peak_bytes()))
    if request["radius"] is not None and verifier.certifies:
        asked = Certification(tensors["inputs"], tensors["labels"], request["radius"])
        try:
            facts = certified(verifier, task, problem, asked, budget)
        except Exception as error:  # a foreign verifier's error is a row
            facts = {"certification": error_line(error)}
        wire.write_facts(folder / wire.CERTIFIED, facts)


def _budget(request: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Budget:
    prefix = "option."
    options: dict[str, object] = dict(request["options"])
    options |= {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
    return Budget(request["seconds"], request["memory"], request["seed"], options)


def _warm_up(verifier: Verifier) -> None:
    """Imports are not the verifier's time."""
    with contextlib.suppress(Exception):  # what is wrong will show, and be told, when it is used
        verifier.load()


if __name__ == "__main__":
    main()
