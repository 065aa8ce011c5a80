"""The folder of a training run: what stands in it, and how it survives ``kill -9`` and a full disk at any moment.

``checkpoint.safetensors``  everything needed to go on: weights, optimiser, penalty, scheduler, history; one per epoch
``model.safetensors``       the trained network, written at the end: a module (``lipbridge.load``), or for one whose
                            layers such a file cannot hold a Graph (``lipbridge.files.graphs.load_graph``)
``metrics.jsonl`` and ``.csv``  one row per epoch
``run.json``                configuration, data, result, versions and machine
``.unfinished/``            the same files of a run that overwrites this one, until it is finished

Every file is replaced atomically, and the metrics are written from the checkpoint's own history, so a killed run
leaves a consistent state of some earlier epoch. A run that overwrites another leaves it alone until all its own files
are on the disk; then one rename decides, and what a kill kept from being moved after it is moved by the next start. One
process at a time writes into the folder (:mod:`lipbridge.disk.locks`).
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import os
import shutil
from collections.abc import Generator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from itertools import zip_longest
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from lipbridge import checks
from lipbridge.disk.atomic import is_temporary, sync_folder, write_atomically
from lipbridge.disk.locks import HOLDER, LOCK, held
from lipbridge.errors import FolderInUse, InvalidArgument, ModelFileError, first_line, way_out
from lipbridge.files.container import load_header, load_tensors, save_tensors

MODEL, CHECKPOINT, RUN = "model.safetensors", "checkpoint.safetensors", "run.json"
_FILES = (MODEL, CHECKPOINT, RUN, "metrics.jsonl", "metrics.csv")
#: Folders inside: of a run that will replace the one here, of a result that is being written, and of what is whole and
#: only has to be moved into place.
UNFINISHED, _FINISHING, _FINISHED = ".unfinished", ".finishing", ".finished"

#: Names of the module's tensors in a checkpoint start so.
_WEIGHTS = "module/"
Row = Mapping[str, object]
Scheduler = torch.optim.lr_scheduler.LRScheduler


@contextmanager
def opened(folder: Path, resume: bool, overwrite: bool) -> Generator[None]:
    """Hold ``folder`` for one run, which may then write into :func:`place`; what is there stays as it is.

    Raises:
        InvalidArgument: if it exists and neither resume nor overwrite was asked for, or both were, or it is a file,
            or it holds files that no run wrote (which overwriting would lose), or it cannot be written.
        FolderInUse: if another process writes into it.
    """
    with ExitStack() as stack:
        try:
            _require(folder, resume, overwrite)  # before anything is made
            made = not folder.exists()
            folder.mkdir(parents=True, exist_ok=True)
            stack.enter_context(held(folder))
            _settle(folder)
            present = _require(folder, resume, overwrite)
            _clear(folder, overwrite)
            if overwrite and any(name in _FILES for name in present):
                (folder / UNFINISHED).mkdir()
        except FolderInUse:
            raise
        except OSError as error:
            reason = f"be a folder that can be written ({error.strerror or error}). {way_out(error)}"
            raise InvalidArgument("out", reason, folder.as_posix()) from error
        try:
            yield
        finally:
            with suppress(OSError):
                (folder / UNFINISHED).rmdir()  # if it is empty
            if made and all(name in (LOCK, HOLDER) for name in os.listdir(folder)):
                shutil.rmtree(folder, ignore_errors=True)


def place(folder: Path, overwrite: bool) -> Path:
    """Where in an opened folder a run writes that does not go on with an earlier one."""
    beside = folder / UNFINISHED
    return beside if overwrite and beside.is_dir() else folder


def checkpoints(folder: Path) -> dict[Path, dict[str, Any]]:
    """The places in an opened folder from which a run can go on, with what their checkpoints say, the latest run first.

    Raises:
        ModelFileError: if a checkpoint is damaged.
    """
    places = [beside for beside in (folder / UNFINISHED, folder) if (beside / CHECKPOINT).exists()]
    return {beside: load_header(beside / CHECKPOINT)["extra"] for beside in places}


@contextmanager
def finishing(folder: Path, beside: Path) -> Generator[Path]:
    """Where the files of a result are written, by a run in ``beside``, a :func:`place` of ``folder``.

    At the end of the block they, and all others of the run, take the place of those in the folder: all, or none.
    """
    whole = beside
    if beside == folder:
        whole = folder / _FINISHING
        whole.mkdir()
    try:
        yield whole
        os.replace(whole, folder / _FINISHED)
    except BaseException:
        if whole != beside:
            shutil.rmtree(whole, ignore_errors=True)
        raise
    sync_folder(folder)
    _settle(folder)


def settle(folder: Path) -> None:
    """Move what a finished run was kept from moving into place, if nobody else is about to; for readers."""
    if (folder / _FINISHED).is_dir():
        with suppress(OSError, FolderInUse), held(folder):
            _settle(folder)


def _settle(folder: Path) -> None:
    whole = folder / _FINISHED
    if whole.is_symlink() or not whole.is_dir():
        return
    for name in _FILES:
        if (whole / name).exists():
            os.replace(whole / name, folder / name)
    sync_folder(folder)
    shutil.rmtree(whole)


def _clear(folder: Path, overwrite: bool) -> None:
    """Remove what killed runs were about to write, and with ``overwrite`` also what a killed one had begun beside."""
    for path in folder.iterdir():
        if any(is_temporary(path.name, name) for name in (*_FILES, HOLDER)):
            path.unlink()
    shutil.rmtree(folder / _FINISHING, ignore_errors=True)
    if overwrite and (folder / UNFINISHED).exists():
        shutil.rmtree(folder / UNFINISHED)


def _require(folder: Path, resume: bool, overwrite: bool) -> list[str]:
    """Check that a run may begin in ``folder``; returns the names there that are not the lock's."""
    if resume and overwrite:
        raise InvalidArgument("resume", "not be given together with overwrite", folder.as_posix())
    if folder.exists() and not folder.is_dir():
        raise InvalidArgument("out", "be a folder", folder.as_posix())
    names = os.listdir(folder) if folder.exists() else []
    passing = {name for name in names if any(is_temporary(name, file) for file in (*_FILES, HOLDER))}
    present = sorted({*names} - {LOCK, HOLDER} - passing)
    if present and not (resume or overwrite):
        raise InvalidArgument(
            "out", "be a new or empty folder, or come with --resume or --overwrite", folder.as_posix()
        )
    if resume and not any((folder / name / CHECKPOINT).exists() for name in ("", UNFINISHED, _FINISHED)):
        raise InvalidArgument("resume", f"name a folder that holds {CHECKPOINT}", folder.as_posix())
    foreign = [name for name in present if name not in (*_FILES, UNFINISHED, _FINISHING, _FINISHED)]
    if overwrite and foreign:
        raise InvalidArgument("overwrite", "name a folder that holds nothing but a training run", foreign[0])
    return present


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


def start_from(folder: Path, module: nn.Module, network: Sequence[str]) -> dict[str, object]:
    """Put the weights of another run into ``module``, whose layers are ``network``; returns what is told of them.

    Raises:
        ModelFileError: if there is no checkpoint, or it is damaged, or that of another network.
    """
    settle(folder)
    file = folder / CHECKPOINT
    if not file.exists():
        raise ModelFileError(f"{folder} holds no {CHECKPOINT}: name the folder of a run that has trained an epoch.")
    facts = load_header(file)["extra"]
    other = facts.get("network", list(network))  # runs of before have no such entry
    if other != list(network):
        pairs = zip_longest(other, network, fillvalue="nothing")
        theirs, ours = next((theirs, ours) for theirs, ours in pairs if theirs != ours)
        raise ModelFileError(
            f"{file} holds the weights of another network ({theirs} where this one has {ours}): start from a run of "
            "the same architecture."
        )
    load_weights(folder, module)
    epochs = len(cast(Sequence[object], facts.get("history", ())))
    return {"folder": str(folder), "epochs": epochs, "sha256": hashlib.sha256(file.read_bytes()).hexdigest()}


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
        line = first_line(error, 1000)
        raise ModelFileError(f"{folder / CHECKPOINT} does not belong to this network and optimiser: {line}") from error
    return metadata
