"""Rows before anything is known: what a cell says of itself, with every column of its kind."""

from __future__ import annotations

import os
import re
import socket
from datetime import UTC, datetime
from pathlib import PurePosixPath
from typing import Any

from lipbridge.study.cells import Cell, Kind, Row, place_of
from lipbridge.version import __version__
from lipbridge.vocabulary import Side, Status

#: The verifier whose values are lower bounds.
WITNESS = "witness"
#: Where in a study's folder its trainings write.
NETWORKS = "networks"
#: What people call what a row is about, and where they keep it: no part of a cell's id, so that a study file may change
#: it without running anything anew.
LABELS = ("network", "group", "seed", "settings", "verifier", "data", "arch", "path")
#: The verifier whose bound, which holds everywhere, stands beside those in balls.
TRIVIAL = "trivial"


def blank(cell: Cell, status: Status, detail: str = "") -> Row:
    """The row of a cell without any result; what ran it fills in the rest.

    Law: the same columns as every other row of the cell's kind.
    """
    row: Row = {
        "cell": cell.id,
        "kind": cell.kind.value,
        "network": cell.network,
        "group": cell.group,
        "seed": cell.seed,
        "settings": dict(cell.settings),
        "norm": None,
        "status": status.value,
        "detail": detail,
        "seconds": None,
        "total_seconds": None,
        "cpu_seconds": None,
        "memory": None,
        "gpu_memory": None,
        "enforced_by": None,
        "threads": cell.threads,
        "load": round(os.getloadavg()[0], 2),
        "host": socket.gethostname(),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "version": __version__,
    }
    return row | _OWN[cell.kind](cell)


def norm_name(question: Any) -> str:
    """As :attr:`lipbridge.Question.norm_name`, of a question in words."""
    first, second = str(question["norm"]), str(question["output_norm"])
    return first if first == second else f"{first}->{second}"


def training_folder(network: str, cell: str) -> str:
    """Where in a study's folder a training writes: its name for people, and its id, which changes with its settings."""
    return str(PurePosixPath(NETWORKS) / f"{slug(network)}-{cell[:8]}")


def slug(name: str) -> str:
    """A name that files can have."""
    return re.sub(r"[^\w.+=-]+", "_", name)[:80].strip("._") or "network"


def _training(cell: Cell) -> Row:
    words = cell.words
    return {
        "norm": str(words["norm"]),
        "data": words["data"]["name"],
        "arch": place_of(words["arch"]),
        "architecture": None,
        "parameters": None,
        "accuracy": None,
        "value": None,
        "proved": False,
        "bound_before_rescaling": None,
        "penalty": words["settings"].get("penalty"),
        "epochs": None,
        "epoch_seconds": None,
        "folder": training_folder(cell.network, cell.id),
    }


def _model(cell: Cell) -> Row:
    source = cell.words["source"]
    data = None if source.get("data") is None else source["data"]["name"]
    return {"data": data, "architecture": None, "parameters": None, "accuracy": None, "path": source["path"]}


def _bound(cell: Cell) -> Row:
    words = cell.words
    question = words["question"]
    region = question["region"]
    several = "s" if region and region["points"] > 1 else ""
    return {
        "norm": norm_name(question),
        "output_norm": str(question["output_norm"]),
        "verifier": words.get("verifier_label") or words["verifier"],
        "verifier_name": words["verifier"],
        "method": words["verifier"],
        "side": (Side.LOWER if words["verifier"] == WITNESS else Side.UPPER).value,
        "value": None,
        "proved": False,
        "region": f"{region['points']} l{region['norm']} ball{several}, radius {region['radius']:g}"
        if region
        else "everywhere",
        "quantity": question["quantity"],
        "tightness": None,
        "certified_accuracy": None,
        "judged": False,
        "claimed": None,
        "extra": {},
        "options": dict(words.get("options") or {}),
        "time_limit": cell.limits.seconds,
        "memory_limit": cell.limits.memory,
        "witness": None,
    }


def _certificate(cell: Cell) -> Row:
    words = cell.words
    return {
        "norm": str(words["norm"]),
        "verifier": words.get("verifier_label") or words["verifier"],
        "verifier_name": words["verifier"],
        "options": dict(words.get("options") or {}),
        "data": words["points"].get("name"),
        "radius": words["radius"],
        "points": words["points"].get("count"),
        "accuracy": None,
        "certified_accuracy": None,
    }


_OWN = {Kind.TRAINING: _training, Kind.MODEL: _model, Kind.BOUND: _bound, Kind.CERTIFICATE: _certificate}

__all__ = ["LABELS", "NETWORKS", "TRIVIAL", "WITNESS", "blank", "norm_name", "slug", "training_folder"]
