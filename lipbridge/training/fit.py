"""fit(): train a network with its trivial bound in the loss, on any device, resumable, on one process or several."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, cast, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lipbridge import checks
from lipbridge.constants.trivial import trivial_bound
from lipbridge.data import Dataset
from lipbridge.errors import (
    InvalidArgument,
    LipbridgeError,
    ModelFileError,
    NumericalFailure,
    TrainingError,
    UnknownName,
    way_out,
)
from lipbridge.files import run_folder
from lipbridge.files.graphs import save_graph
from lipbridge.files.modules import can_save, save
from lipbridge.frontend.capture import capture
from lipbridge.frontend.fitting import dtype_of, require_fit
from lipbridge.graph.graph import Graph
from lipbridge.graph.nodes import Elementwise
from lipbridge.problem.bound import Bound
from lipbridge.training.devices import Workers, pick_device, workers
from lipbridge.training.penalty import Form, Method, TrivialBoundPenalty
from lipbridge.training.rescaling import require_rescalable
from lipbridge.training.rescaling import rescale as rescale_units
from lipbridge.vocabulary import Norm, as_norm

OptimizerName = Literal["adam", "adamw", "sgd"]
Row = dict[str, object]
#: Test examples of one forward pass: a convolution's activations at more would take gigabytes.
_EVALUATED = 1024


@dataclass(frozen=True)
class TrainingConfig:
    """How to train: everything that, with the data and the network, fixes the result on a CPU.

    Attributes:
        norm: l_p in which the bound is penalised and reported.
        penalty: weight of the penalty; 0 trains an ordinary network.
        form: ``linear`` penalises the trivial bound, ``log`` its logarithm.
        method: how l_2 norms are estimated, see :class:`lipbridge.TrivialBoundPenalty`.
        every: calls between two refreshes of the penalty's gradient; None for the method's default.
        squarings: sharpness of that estimate, see :class:`lipbridge.TrivialBoundPenalty`.
        stride: the penalty acts in one of so many steps, with so many times the weight.
        epochs: passes over the training data.
        batch_size: examples of a step, over all processes.
        optimizer: ``adam``, ``adamw`` or ``sgd`` (with momentum 0.9).
        learning_rate: peak of the one-cycle schedule.
        weight_decay: of the optimiser.
        momentum: the optimiser's averaging: Adam's two betas (the first is the momentum of ``sgd``).
        warmup: share of the steps in which the learning rate rises.
        shift: augmentation: each image moves by up to this many pixels along each axis, filled with zeros.
        label_smoothing: of the cross entropy.
        logit_scale: factor of the logits in the cross entropy (an inverse temperature). A bound of B trained with s is
            worth what one of s B is with 1: larger favours accuracy, smaller the margin, at one value of the bound.
            (Béthune et al. 2022: a Lipschitz constraint and this factor are one trade-off.)
        seed: of initial order, augmentation and dropout. (The initial weights are the caller's.)
    """

    norm: Norm = 2
    penalty: float = 0.03
    form: Form = "linear"
    method: Method = "gram"
    every: int | None = None
    squarings: int = 4
    stride: int = 2
    epochs: int = 15
    batch_size: int = 256
    optimizer: OptimizerName = "adam"
    learning_rate: float = 3e-3
    weight_decay: float = 0.0
    momentum: tuple[float, float] = (0.9, 0.99)
    warmup: float = 0.3
    shift: int = 0
    label_smoothing: float = 0.0
    logit_scale: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        object.__setattr__(self, "norm", as_norm(self.norm))
        for name, known in (
            ("form", get_args(Form)),
            ("method", get_args(Method)),
            ("optimizer", get_args(OptimizerName)),
        ):
            value: object = getattr(self, name)
            if not isinstance(value, str) or value not in known:
                raise UnknownName(name, cast(str, value), known)
        # The seed of an epoch is a multiple of the run's, and torch takes 63 bits.
        limits = (("epochs", 1, 10**9), ("batch_size", 1, None), ("stride", 1, None), ("shift", 0, None))
        for name, least, most in (*limits, ("seed", 0, 2**40), ("squarings", 1, 10)):
            object.__setattr__(self, name, checks.whole(getattr(self, name), name, least, most))
        if self.every is not None:
            object.__setattr__(self, "every", checks.whole(self.every, "every", 1))
        for name in ("penalty", "weight_decay", "label_smoothing"):
            self._real(name, "be finite and not negative", lambda x: x >= 0)
        for name in ("learning_rate", "logit_scale"):
            self._real(name, "be finite and above 0", lambda x: x > 0)
        self._real("label_smoothing", "be at most 1", lambda x: x <= 1)
        self._real("warmup", "lie between 0 and 1", lambda x: 0 < x < 1)
        found = cast(object, self.momentum)
        pair = cast(Sequence[object], found) if isinstance(found, tuple | list) else ()
        words = "be two numbers of at least 0 and below 1"
        betas = tuple(checks.number(beta, "momentum", words) for beta in pair)
        if len(betas) != 2 or not all(0 <= beta < 1 for beta in betas):
            raise InvalidArgument("momentum", words, betas or checks.told(cast(object, found)))
        object.__setattr__(self, "momentum", betas)

    def _real(self, name: str, should: str, fits: Callable[[float], bool]) -> None:
        value = checks.number(getattr(self, name), name, should)
        if not fits(value):
            raise InvalidArgument(name, should, value)
        object.__setattr__(self, name, value)


@dataclass(frozen=True, eq=False)
class TrainingResult:
    """What a run reached.

    Attributes:
        module: the trained module, in eval mode, on the device of the run.
        accuracy: share of the test examples classified rightly.
        bound: the proved trivial bound.
        penalty: the weight of the penalty.
        seconds: wall time of training, over all resumed parts.
        epochs: epochs trained.
        history: one row per epoch; its ``bound`` is the proved one of the module at the end of that epoch.
        out: the run's folder, if there is one.
        before: the proved trivial bound before rescaling, if that was asked for.
    """

    module: nn.Module
    accuracy: float
    bound: Bound
    penalty: float
    seconds: float
    epochs: int
    history: list[Row] = field(repr=False)
    out: Path | None = None
    before: Bound | None = None


def fit(
    module: nn.Module,
    dataset: Dataset,
    config: TrainingConfig | None = None,
    *,
    out: Path | str | None = None,
    resume: bool = False,
    overwrite: bool = False,
    rescale: bool = False,
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
        device: ``auto``, ``cpu``, ``cuda``, ...
        progress: a progress bar on stderr, if that is a terminal.

    Under ``torchrun`` the processes share each batch (DistributedDataParallel) and the first one writes.

    Raises:
        InvalidArgument: for a folder that exists or cannot be written, a module that does not fit the data or has
            nothing to train, ...; nothing is written then.
        FolderInUse: if another process trains into the folder.
        UnsupportedOperation: if ``rescale`` is asked for a network that cannot be rescaled; nothing is written then.
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
    with workers(place) as team:
        # Made first: whatever it refuses must leave the folder as it was.
        run = _Run(module.to(place), dataset, config, place, team, folder, network)
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


def make_optimizer(module: nn.Module, config: TrainingConfig) -> torch.optim.Optimizer:
    """The optimiser that ``config`` names, over the module's parameters."""
    parameters = [p for p in module.parameters() if p.requires_grad]
    fused = all(p.device.type in ("cpu", "cuda") for p in parameters)
    rate, decay = config.learning_rate, config.weight_decay
    if config.optimizer == "sgd":
        return torch.optim.SGD(parameters, rate, momentum=config.momentum[0], weight_decay=decay, fused=fused or None)
    kind = torch.optim.Adam if config.optimizer == "adam" else torch.optim.AdamW
    return kind(parameters, rate, betas=config.momentum, weight_decay=decay, fused=fused or None)


def training_step(
    model: Callable[[Tensor], Tensor],
    penalty: TrivialBoundPenalty | None,
    optimizer: torch.optim.Optimizer,
    inputs: Tensor,
    labels: Tensor,
    config: TrainingConfig,
) -> tuple[Tensor, Tensor]:
    """One step: forward, cross entropy plus penalty, backward, update. Nothing in it waits for the device.

    Args:
        model: ``(batch, d) -> (batch, classes)``.
        penalty: the penalty, or None.
        inputs: ``(batch, d)`` on the model's device.
        labels: ``(batch,)`` int64 there.

    Returns:
        The cross entropy (without penalty) and the number of right answers, as tensors without axes, detached.
    """
    logits = model(inputs)
    scaled = logits if config.logit_scale == 1 else config.logit_scale * logits
    entropy = F.cross_entropy(scaled, labels, label_smoothing=config.label_smoothing)
    direct = penalty is not None and penalty.direct
    loss = entropy if penalty is None or direct else entropy + config.penalty * penalty()
    optimizer.zero_grad(set_to_none=True)
    cast(Any, loss).backward()
    if penalty is not None and direct:
        penalty.add_gradient(config.penalty, config.stride)
    optimizer.step()
    return entropy.detach(), (logits.detach().argmax(1) == labels).sum()


def shifted(inputs: Tensor, shape: tuple[int, ...], pixels: int, generator: torch.Generator | None) -> Tensor:
    """Move each image by its own random whole number of pixels along both axes, filling with zeros.

    Args:
        inputs: ``(batch, d)`` flattened images of ``shape`` (channels, height, width).
        pixels: the largest shift.
        generator: on the device of ``inputs``.
    """
    batch, (channels, height, width) = len(inputs), shape
    padded = F.pad(inputs.view(batch, channels, height, width), (pixels,) * 4)
    offsets = torch.randint(0, 2 * pixels + 1, (2, batch, 1), generator=generator, device=inputs.device)
    rows = offsets[0] + torch.arange(height, device=inputs.device)
    columns = offsets[1] + torch.arange(width, device=inputs.device)
    index = torch.arange(batch, device=inputs.device)[:, None, None]
    # Advanced indices around a slice put the channels last.
    moved = padded[index, :, rows[:, :, None], columns[:, None, :]]
    return moved.permute(0, 3, 1, 2).reshape(batch, -1)


class _Run:
    """One training run: its parts, and the loop over epochs."""

    def __init__(
        self,
        module: nn.Module,
        dataset: Dataset,
        config: TrainingConfig,
        device: torch.device,
        team: Workers,
        out: Path | None,
        network: list[str],
    ) -> None:
        self.module, self.dataset, self.config = module, dataset, config
        self.device, self.team, self.out, self.network = device, team, out, network
        #: Where this run writes: its folder, or a place in it while another run still stands there.
        self.folder = out
        # The whole dataset lives on the device: a batch is an index there, not a copy from the host.
        self.dtype = dtype_of(module)
        self.inputs = self._inputs(dataset.train_inputs, "train_inputs")
        self.labels = dataset.train_labels.to(device)
        self.tests = self._inputs(dataset.test_inputs, "test_inputs", torch.device("cpu"))
        self.penalty = self._penalty()
        #: Whether the penalty's bound is that of a fresh capture; None until the first epoch has told.
        self.live: bool | None = None
        self.model: Callable[[Tensor], Tensor] = module
        if team.size > 1:
            self.model = nn.parallel.DistributedDataParallel(module)
        if config.shift and len(dataset.input_shape) != 3:
            raise InvalidArgument("shift", f"be 0 for {dataset.name}, whose inputs are no images", config.shift)
        if config.shift and config.shift >= min(dataset.input_shape[1:]):
            words = f"be less than a side of the images of {dataset.name}, {dataset.input_shape}"
            raise InvalidArgument("shift", words, config.shift)
        self.batch = min(config.batch_size, len(self.labels)) // team.size * team.size
        if self.batch == 0:
            raise InvalidArgument("batch_size", f"hold an example for each of {team.size} processes", config.batch_size)
        self.steps = len(self.labels) // self.batch
        self.optimizer = make_optimizer(module, config)
        total = config.epochs * self.steps + 1
        # A rise that ends at the first step would divide by zero.
        rise = config.warmup if config.warmup * total != 1 else config.warmup * (1.0 - 1e-9)
        self.scheduler = torch.optim.lr_scheduler.OneCycleLR(
            self.optimizer, config.learning_rate, total_steps=total, pct_start=rise, cycle_momentum=False
        )
        self.history: list[Row] = []
        self.seconds = 0.0

    def _inputs(self, inputs: Tensor, name: str, device: torch.device | None = None) -> Tensor:
        """Inputs in the dtype of the module, on the run's device if no other is given."""
        found = inputs.to(device=device or self.device, dtype=self.dtype)
        if not checks.all_finite(found):
            words = f"hold numbers that are finite in {self.dtype}, the dtype of the module"
            raise InvalidArgument(name, words, inputs.dtype)
        return found

    def _penalty(self) -> TrivialBoundPenalty | None:
        """The penalty; without weight it is made for its bound alone, and None for a module that it cannot read."""
        config = self.config
        try:
            return TrivialBoundPenalty(
                self.module,
                config.norm,
                config.form,
                method=config.method,
                every=config.every,
                squarings=config.squarings,
                input_shape=(self.dataset.features,),
            ).to(self.device)
        except LipbridgeError:
            if config.penalty > 0:
                raise
            return None

    @property
    def parts(self) -> dict[str, nn.Module]:
        return {"module": self.module} | ({} if self.penalty is None else {"penalty": self.penalty})

    def resume(self) -> None:
        """Go on with what was begun last and is of this network, data and settings."""
        assert self.out is not None
        found = run_folder.checkpoints(self.out)
        faults = {place: self._unlike(place / run_folder.CHECKPOINT, facts) for place, facts in found.items()}
        fitting = [place for place, fault in faults.items() if fault is None]
        if not fitting:
            raise ModelFileError(list(faults.values())[-1] or "")
        self.folder = fitting[0]
        metadata = run_folder.load_checkpoint(self.folder, self.parts, self.optimizer, self.scheduler)
        self.history = list(metadata["history"])
        self.seconds = float(metadata["seconds"])
        if self.team.first:
            with self._writing():  # a kill may have come between the checkpoint and them
                run_folder.write_history(self.folder, self.history)

    def _unlike(self, file: Path, facts: Mapping[str, Any]) -> str | None:
        """Why a checkpoint is not one of this run, None if it is."""
        other = ""
        if facts.get("config") != _jsonable(self.config) or facts.get("dataset") != self.dataset.name:
            other = "with other settings or data; resume with the same ones"
        elif facts.get("network", self.network) != self.network:  # runs of before have no such entry
            other = "by another network; resume with the same one"
        return f"{file} was written {other}, or start anew with --overwrite." if other else None

    def train(self, progress: bool, rescaled: bool = False) -> TrainingResult:
        first = len(self.history)
        start, before = time.perf_counter(), self.seconds
        with self._bar(progress, first) as bar:
            for epoch in range(first, self.config.epochs):
                row = self._epoch(epoch)
                self.seconds = before + time.perf_counter() - start
                self.history.append({**row, "seconds": round(self.seconds, 3)})
                self._keep()
                bar.set_postfix({"loss": row["loss"], "accuracy": row["accuracy"], "TB": row["bound"]})
                bar.update()
        return self._finish(rescaled)

    def _bar(self, progress: bool, first: int) -> Any:
        from tqdm import tqdm

        shown = progress and self.team.first and sys.stderr.isatty()
        return cast(Any, tqdm)(total=self.config.epochs, initial=first, unit="epoch", disable=not shown, leave=False)

    def _epoch(self, epoch: int) -> Row:
        self.module.train()
        # Seeded by epoch, so that a resumed run draws what the unbroken one would have drawn.
        seed = self.config.seed * 1_000_003 + epoch
        cast(Any, torch).manual_seed(seed)
        order = torch.randperm(len(self.labels), generator=torch.Generator().manual_seed(seed)).to(self.device)
        draws = torch.Generator(self.device).manual_seed(seed)
        loss = torch.zeros((), device=self.device)
        right = torch.zeros((), device=self.device, dtype=torch.int64)
        part = self.batch // self.team.size
        for step in range(self.steps):
            start = step * self.batch + self.team.rank * part
            chosen = order[start : start + part]
            inputs, labels = self.inputs[chosen], self.labels[chosen]
            if self.config.shift:
                inputs = shifted(inputs, self.dataset.input_shape, self.config.shift, draws)
            penalty = self.penalty if self.config.penalty > 0 else None
            step_loss, step_right = training_step(self.model, penalty, self.optimizer, inputs, labels, self.config)
            self.scheduler.step()
            loss += step_loss
            right += step_right
        mean_loss = float(self.team.total(loss)) / (self.steps * self.team.size)
        right = self.team.total(right)
        if not math.isfinite(mean_loss):
            raise self._diverged(epoch + 1, "loss")
        try:
            bound = self._bound(last=epoch + 1 == self.config.epochs)
        except NumericalFailure as error:
            raise self._diverged(epoch + 1, "bound") from error
        return {
            "epoch": epoch + 1,
            "loss": mean_loss,
            "train_accuracy": round(int(right) / (self.steps * self.batch), 6),
            "accuracy": self.accuracy(),
            "bound": bound,
            "penalty": self.config.penalty,
            "learning_rate": float(self.scheduler.get_last_lr()[0]),
        }

    def _bound(self, last: bool) -> float:
        """The proved bound of the module as it is now.

        The penalty knows it without a capture. It is asked only where it was right after the first epoch, when all
        weights had moved; the last epoch's comes from a capture in any case.
        """
        known = self.penalty.bound().value if self.penalty is not None and self.live is not False else None
        if known is not None and self.live and not last:
            return known
        fresh = self._captured_bound().value
        if self.live is None:
            self.live = known is not None and math.isclose(known, fresh, rel_tol=1e-9)
        return fresh

    def _captured_bound(self) -> Bound:
        return trivial_bound(capture(self.module, (self.dataset.features,)), self.config.norm)

    @torch.no_grad()
    def accuracy(self) -> float:
        """Share of right answers on the test data."""
        self.module.eval()
        inputs, labels = self.tests, self.dataset.test_labels
        right = 0
        for start in range(0, len(labels), _EVALUATED):
            logits = self.module(inputs[start : start + _EVALUATED].to(self.device))
            right += int((logits.argmax(1).cpu() == labels[start : start + _EVALUATED]).sum())
        return right / len(labels)

    def _diverged(self, epoch: int, what: str) -> TrainingError:
        kept = len(self.history)
        where = "nothing was written"
        if self.folder is not None and kept:
            self._restore()
            where = f"{self.folder} keeps the model and checkpoint of epoch {kept}"
        if self.folder != self.out:
            where += f", and {self.out} the run that was there"
        return TrainingError(f"The {what} was no longer finite in epoch {epoch}: {where}. Try a smaller learning rate.")

    def _restore(self) -> None:
        assert self.folder is not None
        run_folder.load_checkpoint(self.folder, self.parts, self.optimizer, self.scheduler)
        if self.team.first:
            self._save_model(self.folder, {})

    def _save_model(self, folder: Path, extra: Mapping[str, object]) -> str:
        """Write the model file; returns what it holds."""
        file = folder / run_folder.MODEL
        if can_save(self.module):
            save(self.module, file, extra)
            return "module"
        save_graph(capture(self.module, (self.dataset.features,)), file, extra)
        return "graph"

    def _keep(self) -> None:
        if self.folder is None or not self.team.first:
            return
        metadata: Mapping[str, object] = {
            "config": _jsonable(self.config),
            "dataset": self.dataset.name,
            "network": self.network,
            "history": self.history,
            "seconds": self.seconds,
        }
        with self._writing():
            run_folder.save_checkpoint(self.folder, self.parts, self.optimizer, self.scheduler, metadata)
            run_folder.write_history(self.folder, self.history)

    @contextmanager
    def _writing(self) -> Generator[None]:
        """A disk that is full, or a folder that is gone, is one line that names the file and says how to go on."""
        try:
            yield
        except (OSError, ModelFileError) as error:
            cause = error if isinstance(error, OSError) else error.__cause__
            if not isinstance(cause, OSError):
                raise
            assert self.folder is not None
            kept = "nothing is there to go on from yet: start again"
            if (self.folder / run_folder.CHECKPOINT).exists():
                kept = "the last checkpoint that was written whole is kept: go on with resume (--resume)"
            if self.folder != self.out:
                kept = f"the run in {self.out} is as it was, and {kept}"
            raise TrainingError(
                f"{cause.filename or self.folder} could not be written ({cause.strerror or cause}). "
                f"{way_out(cause)}; {kept}."
            ) from error

    def _finish(self, rescaled: bool) -> TrainingResult:
        self.module.eval()
        config = self.config
        bound = self._captured_bound()
        before: Bound | None = None
        if rescaled:
            found = rescale_units(self.module, config.norm, input_shape=(self.dataset.features,))
            self.module, before, bound = found.module, found.before, found.after
        result = TrainingResult(
            self.module,
            self.accuracy(),
            bound,
            config.penalty,
            self.seconds,
            len(self.history),
            self.history,
            self.out,
            before,
        )
        if self.out is not None and self.folder is not None and self.team.first:
            with self._writing(), run_folder.finishing(self.out, self.folder) as folder:
                self._write(folder, result)
        self.team.wait()
        return result

    def _write(self, folder: Path, result: TrainingResult) -> None:
        from lipbridge.machine import machine_facts

        figures = {
            "accuracy": result.accuracy,
            "bound": result.bound.value,
            "norm": self.config.norm,
            "penalty": result.penalty,
            "seconds": round(result.seconds, 3),
            "epochs": result.epochs,
        }
        if result.before is not None:
            figures["bound_before_rescaling"] = result.before.value
        kind = self._save_model(folder, {"dataset": self.dataset.name, **figures})
        record = {
            "dataset": self.dataset.name,
            "source": self.dataset.source,
            "units": self.dataset.units,
            "network": str(self.module),
            "model": kind,
            "config": _jsonable(self.config),
            "processes": self.team.size,
            "device": str(self.device),
            "result": figures,
            "machine": machine_facts(),
        }
        run_folder.write_run(folder, record)


def _jsonable(config: TrainingConfig) -> dict[str, object]:
    return {**asdict(config), "momentum": list(config.momentum)}
