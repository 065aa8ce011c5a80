"""The folder of a training run: what stands in it, and how it survives ``kill -9`` at any moment.

``checkpoint.safetensors``  everything needed to go on: weights, optimiser, penalty, scheduler, history; one per epoch
``model.safetensors``       the trained network, written at the end: a module (``lipbridge.load``), or for one whose
                            layers such a file cannot hold a Graph (``lipbridge.store.load_graph``)
``metrics.jsonl`` and ``.csv``  one row per epoch
``run.json``                configuration, data, result, versions and machine

Every file is replaced atomically, and the metrics are written from the checkpoint's own history, so a killed run
leaves a consistent state of some earlier epoch.
"""

from __future__ import annotations

import csv
import io
import json
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from lipbridge import checks
from lipbridge.errors import InvalidArgument, ModelFileError
from lipbridge.store import load_tensors, save_tensors, write_atomically

MODEL, CHECKPOINT, RUN = "model.safetensors", "checkpoint.safetensors", "run.json"
_FILES = (MODEL, CHECKPOINT, RUN, "metrics.jsonl", "metrics.csv")

#: Names of the module's tensors in a checkpoint start so.
_WEIGHTS = "module/"
Row = Mapping[str, object]
Scheduler = torch.optim.lr_scheduler.LRScheduler


def prepare(folder: Path, resume: bool, overwrite: bool) -> None:
    """Check that a run may write into ``folder``, before anything is written; clear it if ``overwrite``.

    Raises:
        InvalidArgument: if it exists and neither resume nor overwrite was asked for, or both were, or it is a file,
            or it holds files that no run wrote (which overwriting would lose), or it cannot be written.
    """
    try:
        _prepare(folder, resume, overwrite)
        _require_writable(folder)
    except OSError as error:
        reason = error.strerror or str(error)
        raise InvalidArgument("out", f"be a folder that can be written ({reason})", folder.as_posix()) from error


def _require_writable(folder: Path) -> None:
    """Try it: the only test that holds for every user and file system. A folder that was not there is not left."""
    nearest = next(place for place in (folder, *folder.absolute().parents) if place.exists())
    with tempfile.TemporaryFile(dir=nearest):
        pass


def _prepare(folder: Path, resume: bool, overwrite: bool) -> None:

    if resume and overwrite:
        raise InvalidArgument("resume", "not be given together with overwrite", folder.as_posix())
    if folder.exists() and not folder.is_dir():
        raise InvalidArgument("out", "be a folder", folder.as_posix())
    present = sorted(path.name for path in folder.iterdir()) if folder.exists() else []
    if present and not (resume or overwrite):
        raise InvalidArgument(
            "out", "be a new or empty folder, or come with --resume or --overwrite", folder.as_posix()
        )
    if resume and CHECKPOINT not in present:
        raise InvalidArgument("resume", f"name a folder that holds {CHECKPOINT}", folder.as_posix())
    if overwrite:
        foreign = [name for name in present if name not in _FILES and not name.endswith(".tmp")]
        if foreign:
            raise InvalidArgument("overwrite", "name a folder that holds nothing but a training run", foreign[0])
        for name in present:
            (folder / name).unlink()


def write_history(folder: Path, history: Sequence[Row]) -> None:
    """Write the metrics of all epochs so far, as JSON lines and as CSV."""
    lines = "".join(json.dumps(row) + "\n" for row in history)
    write_atomically(folder / "metrics.jsonl", lines.encode())
    table = io.StringIO()
    writer = csv.DictWriter(table, fieldnames=list(history[0]) if history else ["epoch"])
    writer.writeheader()
    writer.writerows(history)
    write_atomically(folder / "metrics.csv", table.getvalue().encode())


def write_run(folder: Path, record: Mapping[str, object]) -> None:
    """Write ``run.json``."""
    write_atomically(folder / RUN, (json.dumps(record, indent=2) + "\n").encode())


def save_checkpoint(
    folder: Path,
    parts: Mapping[str, nn.Module],
    optimizer: torch.optim.Optimizer,
    scheduler: Scheduler,
    metadata: Mapping[str, object],
) -> None:
    """Write the whole state of a run; ``parts`` are the modules by name."""
    tensors = {f"{part}/{name}": value for part, module in parts.items() for name, value in module.state_dict().items()}
    state = optimizer.state_dict()
    for index, entry in state["state"].items():
        for name, value in entry.items():
            tensors[f"optimizer/{index}/{name}"] = value if isinstance(value, Tensor) else torch.tensor(value)
    groups = [{key: value for key, value in group.items() if _plain(value)} for group in state["param_groups"]]
    schedule = {key: value for key, value in scheduler.state_dict().items() if _plain(value)}
    save_tensors(
        folder / CHECKPOINT,
        {name: value.detach().cpu().contiguous() for name, value in tensors.items()},
        {**metadata, "groups": groups, "schedule": schedule},
    )


def load_weights(folder: Path | str, module: nn.Module) -> nn.Module:
    """Put the weights of a run's checkpoint into ``module``, of the architecture that was trained; returns it.

    For networks whose layers a model file cannot hold. (The weights are those as trained, before any rescaling.)

    Raises:
        ModelFileError: if the file is missing or damaged, or belongs to another network.
    """
    file = checks.path(folder, "folder") / CHECKPOINT
    checks.instance(module, nn.Module, "module", "be a torch.nn.Module")
    tensors, _ = load_tensors(file)
    try:
        module.load_state_dict({k.removeprefix(_WEIGHTS): v for k, v in tensors.items() if k.startswith(_WEIGHTS)})
    except RuntimeError as error:
        line = " ".join(str(error).split())[:200]
        raise ModelFileError(f"{file} does not belong to this network: {line}") from error
    return module


def _plain(value: object) -> bool:
    if isinstance(value, list | tuple):
        return all(_plain(item) for item in cast(Sequence[object], value))
    return value is None or isinstance(value, bool | int | float | str)


def _tupled(group: Mapping[str, Any]) -> dict[str, Any]:
    """JSON has no tuples: the betas were one, the list of parameters was not."""
    return {
        key: tuple(cast(list[Any], value)) if isinstance(value, list) and key != "params" else value
        for key, value in group.items()
    }


def load_checkpoint(
    folder: Path, parts: Mapping[str, nn.Module], optimizer: torch.optim.Optimizer, scheduler: Scheduler
) -> dict[str, Any]:
    """Restore what :func:`save_checkpoint` wrote; returns the metadata.

    Raises:
        ModelFileError: if the file is damaged or belongs to another network or optimiser.
    """
    tensors, metadata = load_tensors(folder / CHECKPOINT)
    try:
        for part, module in parts.items():
            prefix = f"{part}/"
            module.load_state_dict({k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)})
        state: dict[int, dict[str, Tensor]] = {}
        for key, value in tensors.items():
            if key.startswith("optimizer/"):
                _, index, name = key.split("/")
                state.setdefault(int(index), {})[name] = value
        olds = optimizer.state_dict()["param_groups"]
        groups = [{**old, **_tupled(new)} for old, new in zip(olds, metadata["groups"], strict=True)]
        optimizer.load_state_dict({"state": state, "param_groups": groups})
        scheduler.load_state_dict({**scheduler.state_dict(), **metadata["schedule"]})
    except (KeyError, RuntimeError, ValueError, TypeError) as error:
        line = str(error).strip().splitlines()[0]
        raise ModelFileError(f"{folder / CHECKPOINT} does not belong to this network and optimiser: {line}") from error
    return metadata
