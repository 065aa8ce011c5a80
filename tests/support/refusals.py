"""Why a verifier, or a reader of problems, refuses."""

from __future__ import annotations

from lipbridge.problem.problem import Problem
from lipbridge.problem.verifier import Refusal, Task, Verifier


def refused(verifier: Verifier, problem: Problem) -> str | None:
    """The reason why a verifier does not take a problem; None if it does."""
    found = verifier.prepare(problem)
    assert isinstance(found, Task | Refusal)
    return found.reason if isinstance(found, Refusal) else None


def reason(found: object) -> str | None:
    """What a reader of problems says where it gives a reason in place of what it reads."""
    return found if isinstance(found, str) else None
