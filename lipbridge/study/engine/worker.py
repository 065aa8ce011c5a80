"""The process of one request: ``python -m lipbridge.study.engine.worker FOLDER`` leaves its answer in the folder."""

from __future__ import annotations

import contextlib
import os
import sys
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
from lipbridge.processes import end_with_parent, own_peak_bytes
from lipbridge.rigor.matrix import proved_operator_norm
from lipbridge.study.engine import wire
from lipbridge.study.here import bound_or_failure, certified, error_line
from lipbridge.study.requests import Certification, failed
from lipbridge.verifiers import Budget, Refusal, Task, Verifier, get_verifier
from lipbridge.vocabulary import Status


def main(folder: Path) -> None:
    """Answer the request in ``folder``: first the bound, at once, then the certification if one is asked for."""
    end_with_parent()
    try:
        _answer(folder)
    except (FileNotWritten, ModelFileError):
        traceback.print_exc()
        sys.exit(os.EX_IOERR)  # on a full disk the last words may be lost too, an exit code is not


def _answer(folder: Path) -> None:
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
    """Imports and the first call into LAPACK are not the verifier's time."""
    with contextlib.suppress(Exception):  # what is wrong will show, and be told, when it is used
        verifier.load()
    proved_operator_norm(torch.eye(256, dtype=torch.float64))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
