"""What the tables of a study file are called where they say no name."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from lipbridge.files.container import MODEL_FILE
from lipbridge.study.file_tables import ModelTable, VerifierTable
from lipbridge.study.grid import flat


def label_of(table: VerifierTable, tables: Sequence[VerifierTable]) -> str:
    """What a verifier is called in rows: its label, or its name, with its options where that stands there twice."""
    if table.label is not None:
        return table.label
    alone = sum(other.name == table.name for other in tables) == 1
    told = ", ".join(f"{key}={flat(value)}" for key, value in sorted(table.options.items()))
    return table.name if alone or not told else f"{table.name} ({told})"


def chosen(word: str, tables: Sequence[VerifierTable]) -> list[VerifierTable]:
    """The tables that a word in a list of verifiers means: that of the label, or all of the name."""
    labelled = [table for table in tables if label_of(table, tables) == word]
    return labelled or [table for table in tables if table.name == word]


def model_name(table: ModelTable) -> str:
    """What a model is called: its name, or the end of its path that says something."""
    if table.name is not None:
        return table.name
    text = table.path.partition("@")[0] if table.path.startswith("hf://") else table.path
    if ".py:" in text:
        return re.sub(r"\W", "_", Path(table.weights).stem if table.weights is not None else text.rpartition(":")[2])
    path = Path(text)
    path = path.parent if path.name == MODEL_FILE and path.parent.name else path
    return re.sub(r"[^A-Za-z0-9._-]", "_", path.name.partition(".")[0] or path.name)


__all__ = ["chosen", "label_of", "model_name"]
