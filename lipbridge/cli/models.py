"""MODEL arguments of commands: opened, and what is to be known of how they were read told on stderr."""

from __future__ import annotations

from collections.abc import Sequence

from lipbridge.cli.output import note
from lipbridge.files import models
from lipbridge.files.models import Model, Reading


def open_models(paths: Sequence[str], reading: Reading | None = None) -> list[Model]:
    """As :func:`lipbridge.files.models.open_models`, with the notes told."""
    opened = models.open_models(paths, reading)
    for model in opened:
        for line in model.notes:
            note(f"note: {line}")
    return opened


def open_model(path: str, reading: Reading | None = None) -> Model:
    """One MODEL."""
    return open_models([path], reading)[0]
