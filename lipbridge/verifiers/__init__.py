"""Verifiers: the protocol, the registry of entry points, and those that need only torch."""

from lipbridge.problem.options import Option, read_options
from lipbridge.problem.verifier import Budget, Refusal, Task, Verifier
from lipbridge.verifiers.registry import VerifierInfo, get_verifier, get_verifiers, list_verifiers, require_options

__all__ = [
    "Budget",
    "Option",
    "Refusal",
    "Task",
    "Verifier",
    "VerifierInfo",
    "get_verifier",
    "get_verifiers",
    "list_verifiers",
    "read_options",
    "require_options",
]
