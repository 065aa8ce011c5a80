"""Instances of the audit by name."""

from __future__ import annotations

from lipbridge.auditing.instance import Instance, Prediction, PropertyInstance
from lipbridge.auditing.registry import instances


def named(name: str) -> Instance | Prediction | PropertyInstance:
    """The one instance of a name."""
    (found,) = [instance for instance in instances() if instance.name == name]
    return found
