"""The training itself, epoch by epoch, resumable after any interruption."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from lipbridge import checks
from lipbridge.constants.trivial import trivial_bound
from lipbridge.data import Dataset
from lipbridge.errors import (
    InvalidArgument,
    LipbridgeError,
    ModelFileError,
    NumericalFailure,
    TrainingError,
    way_out,
)
from lipbridge.files import run_folder
from lipbridge.files.modules import can_save, save
from lipbridge.frontend.capture import capture
from lipbridge.frontend.fitting import dtype_of
from lipbridge.problem.bound import Bound
from lipbridge.training.config import Row, TrainingConfig, TrainingResult, config_facts
from lipbridge.training.devices import Workers
from lipbridge.training.penalty import TrivialBoundPenalty
from lipbridge.training.rescaling import rescale as rescale_units
from lipbridge.training.steps import make_optimizer, shifted, training_step

#: Test examples of one forward pass: a convolution's activations at more would take gigabytes.
_EVALUATED = 1024


class TrainingRun:
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
        origin: Mapping[str, object] | None = None,
    ) -> None:
        self.module, self.dataset, self.config = module, dataset, config
        self.device, self.team, self.out, self.network = device, team, out, network
        #: Of which run the weights were at the start, if of any.
        self.origin = origin
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
        self.origin = metadata.get("start_from")
        self.seconds = float(metadata["seconds"])
        if self.team.first:
            with self._writing():  # a kill may have come between the checkpoint and them
                run_folder.write_history(self.folder, self.history)

    def _unlike(self, file: Path, facts: Mapping[str, Any]) -> str | None:
        """Why a checkpoint is not one of this run, None if it is."""
        other = ""
        if facts.get("config") != config_facts(self.config) or facts.get("dataset") != self.dataset.name:
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
        save(self.module, file, extra, input_shape=(self.dataset.features,))
        return "module" if can_save(self.module) else "graph"

    def _keep(self) -> None:
        if self.folder is None or not self.team.first:
            return
        metadata: Mapping[str, object] = {
            "config": config_facts(self.config),
            "dataset": self.dataset.name,
            "network": self.network,
            "start_from": self.origin,
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
            "start_from": self.origin,
            "config": config_facts(self.config),
            "processes": self.team.size,
            "device": str(self.device),
            "result": figures,
            "machine": machine_facts(),
        }
        run_folder.write_run(folder, record)
