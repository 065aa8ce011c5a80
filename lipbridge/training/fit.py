"""fit(): train a network with its trivial bound in the loss, on any device, resumable, on one process or several."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path

import torch
from torch import nn

from lipbridge import checks
from lipbridge.data import Dataset
from lipbridge.files import run_folder
from lipbridge.frontend.fitting import require_fit
from lipbridge.graph.graph import Graph
from lipbridge.graph.nodes import Elementwise
from lipbridge.training.config import TrainingConfig, TrainingResult
from lipbridge.training.devices import pick_device, workers
from lipbridge.training.loop import TrainingRun
from lipbridge.training.rescaling import require_rescalable


def fit(
    module: nn.Module,
    dataset: Dataset,
    config: TrainingConfig | None = None,
    *,
    out: Path | str | None = None,
    resume: bool = False,
    overwrite: bool = False,
    rescale: bool = False,
    start_from: Path | str | None = None,
    device: str | torch.device = "auto",
    progress: bool = True,
) -> TrainingResult:
    """Train ``module`` on ``dataset`` with its trivial bound in the loss.

    Args:
        module: maps ``(batch, d)`` to ``(batch, classes)`` logits; any module that :func:`lipbridge.capture` reads. One
            that reads images starts with ``nn.Unflatten(1, dataset.input_shape)``. If a model file cannot hold it
            (:func:`lipbridge.files.modules.can_save`), the run's model is written as a Graph, and its ``state_dict`` is
            in the
            checkpoint: :func:`lipbridge.files.run_folder.load_weights` puts it back into a module.
        dataset: see :func:`lipbridge.data.load_dataset`.
        config: how to train.
        out: folder of the run; nothing is written if not given. See :mod:`lipbridge.files.run_folder`.
        resume: go on from the folder's checkpoint; on the CPU the weights end bit-identical to an unbroken run.
            If a run that overwrites another was cut short, it is the one to go on with, given its settings; given those
            of the other, that one.
        overwrite: replace an earlier run in the folder, which stays as it is until this one is finished.
        rescale: give the trained network the least trivial bound that scaling its units can give
            (:func:`lipbridge.rescale`); the checkpoint keeps the weights as they were trained, so a finished run can be
            resumed for that alone.
        start_from: the folder of another run of the same architecture, whose weights (as trained, before any rescaling)
            take the place of the module's before training; ``run.json`` tells it. A run that is resumed has its own.
        device: ``auto``, ``cpu``, ``cuda``, ...
        progress: a progress bar on stderr, if that is a terminal.

    Under ``torchrun`` the processes share each batch (DistributedDataParallel) and the first one writes.

    Raises:
        InvalidArgument: for a folder that exists or cannot be written, a module that does not fit the data or has
            nothing to train, ...; nothing is written then.
        FolderInUse: if another process trains into the folder.
        UnsupportedOperation: if ``rescale`` is asked for a network that cannot be rescaled; nothing is written then.
        ModelFileError: if the weights to start from are missing, damaged or those of another network.
        TrainingError: if the loss or the bound is no longer finite, or the folder can no longer be written; it keeps
            the last good checkpoint and its model.

    Law: each row of the history has the proved trivial bound of the module as it was at the end of that epoch.
    """
    checks.instance(module, nn.Module, "module", "be a torch.nn.Module")
    checks.instance(dataset, Dataset, "dataset", 'be a Dataset, e.g. lipbridge.load_dataset("digits")')
    config = TrainingConfig() if config is None else config
    checks.instance(config, TrainingConfig, "config", "be a TrainingConfig")
    folder = None if out is None else checks.path(out, "out")
    flags = {"resume": resume, "overwrite": overwrite, "rescale": rescale, "progress": progress}
    for name, flag in flags.items():
        checks.flag(flag, name)
    network = _layers(require_fit(module, dataset))
    if rescale:
        require_rescalable(module, (dataset.features,))
    place = pick_device(device)
    origin = None
    if start_from is not None and not resume:
        origin = run_folder.start_from(checks.path(start_from, "start_from"), module, network)
    with workers(place) as team:
        # Made first: whatever it refuses must leave the folder as it was.
        run = TrainingRun(module.to(place), dataset, config, place, team, folder, network, origin)
        if folder is None:
            return run.train(progress, rescale)
        with run_folder.opened(folder, resume, overwrite) if team.first else nullcontext():
            team.wait()
            run.folder = run_folder.place(folder, overwrite)
            if resume:
                run.resume()
            return run.train(progress, rescale)


def _layers(graph: Graph) -> list[str]:
    """One line a node, without names and numbers: equal for networks that a checkpoint cannot confuse."""
    kinds = [node.activation if isinstance(node, Elementwise) else type(node).__name__ for node in graph.nodes]
    return [f"{kind} {node.inputs} {node.shape}" for kind, node in zip(kinds, graph.nodes, strict=True)]
