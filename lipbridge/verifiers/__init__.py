"""Verifiers: the protocol, the registry of entry points, and those that need only torch."""

from lipbridge.problem.verifier import Budget, Certifier, Verifier
from lipbridge.verifiers.registry import VerifierInfo, get_verifier, list_verifiers

__all__ = ["Budget", "Certifier", "Verifier", "VerifierInfo", "get_verifier", "list_verifiers"]
