"""A process of an audit: one verifier, many instances, one after the other; each answer is a file, written at once.

``python -m lipbridge.auditing.worker FOLDER INSTANCES``. The process that started it sees by the answers how far it is,
and ends it where one takes too long; the instances behind that are asked in another process.
"""

from __future__ import annotations

import contextlib
import sys
import time
from pathlib import Path
from typing import Any

import torch

from lipbridge.auditing.files import labels_of, load_instance
from lipbridge.auditing.instance import Instance, Prediction
from lipbridge.disk.strict_json import jsonable
from lipbridge.files.container import load_tensors, save_tensors
from lipbridge.problem.problem import Problem
from lipbridge.problem.property import Judgement, Verdict
from lipbridge.problem.question import Question
from lipbridge.processes import end_with_parent
from lipbridge.study.engine import wire
from lipbridge.study.here import bound_or_failure, certified, certifying_task, outcome
from lipbridge.study.requests import Certification
from lipbridge.verifiers import Budget, Verifier, get_verifier
from lipbridge.verifiers.properties import judge

#: What is asked, and a file that says that everything is imported.
ASKED, READY = "asked.json", "ready"
#: The name by which :func:`lipbridge.judge` is audited.
JUDGE = "judge"


def answer_file(folder: Path, number: int) -> Path:
    """Where the answer to an instance is."""
    return folder / f"{number}.safetensors"


def main(folder: Path, instances: Path) -> None:
    """Answer what is asked in ``folder``, of the instances in the other one."""
    end_with_parent()
    torch.set_num_threads(1)
    asked: dict[str, Any] = wire.read_facts(folder / ASKED)
    verifier = None if asked["verifier"] == JUDGE else get_verifier(asked["verifier"])
    if verifier is not None:
        with contextlib.suppress(Exception):  # what is wrong will show, and be told, when it is used
            verifier.load()
    (folder / READY).touch()
    budget = Budget(asked["seconds"], asked["memory"], asked["seed"])
    for number in asked["numbers"]:
        _answer(verifier, instances / str(number), answer_file(folder, number), budget)


def _answer(verifier: Verifier | None, instance: Path, answer: Path, budget: Budget) -> None:
    found = load_instance(instance, proving=False)
    if isinstance(found, Instance):
        assert verifier is not None
        bound, _ = bound_or_failure(verifier.name, verifier, found.problem, budget)
        wire.write_bound(answer, bound)
    elif isinstance(found, Prediction):
        assert verifier is not None
        save_tensors(answer, {}, jsonable(certification_of(verifier, found, budget)))
    else:
        write_judgement(answer, judged(found.graph, found.asked_property, budget))


def certification_of(verifier: Verifier, asked: Prediction, budget: Budget) -> dict[str, object]:
    """The facts of a certified prediction, or the status and the reason why there are none."""
    points = Certification(asked.center[None], labels_of(asked), asked.radius)
    try:
        task = certifying_task(verifier, asked.graph, asked.norm, points.inputs, asked.radius)
        return certified(verifier, task, Problem(asked.graph, Question.everywhere(asked.norm)), points, budget)
    except Exception as error:  # a foreign verifier's error is a row
        status, detail = outcome(error)
        return {"status": str(status), "certification": detail}


def judged(graph: Any, asked: Any, budget: Budget) -> Judgement | str:
    """Our own verdict on a property, with half of the time for branch and bound; what went wrong, in words."""
    try:
        return judge(graph, asked, seed=budget.seed, deadline=time.perf_counter() + 0.5 * budget.seconds)
    except Exception as error:
        return outcome(error)[1]


def write_judgement(path: Path, found: Judgement | str) -> None:
    """Write a verdict with its counterexample, or what went wrong."""
    if isinstance(found, str):
        save_tensors(path, {}, {"error": found})
        return
    tensors = {} if found.counterexample is None else {"counterexample": found.counterexample}
    save_tensors(path, tensors, {"verdict": str(found.verdict), "seconds": found.seconds})


def read_judgement(path: Path) -> Judgement | str:
    """Read what :func:`write_judgement` wrote."""
    tensors, facts = load_tensors(path)
    if "error" in facts:
        return str(facts["error"])
    return Judgement(Verdict(facts["verdict"]), 0.0, tensors.get("counterexample"), float(facts["seconds"]))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
