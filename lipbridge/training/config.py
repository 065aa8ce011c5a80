"""What a training is asked for, and what it gives."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Literal, cast, get_args

from torch import nn

from lipbridge import checks
from lipbridge.errors import (
    InvalidArgument,
    UnknownName,
)
from lipbridge.problem.bound import Bound
from lipbridge.training.penalty import Form, Method
from lipbridge.vocabulary import Norm, as_norm

OptimizerName = Literal["adam", "adamw", "sgd"]


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


def config_facts(config: TrainingConfig) -> dict[str, object]:
    return {**asdict(config), "momentum": list(config.momentum)}


Row = dict[str, object]
