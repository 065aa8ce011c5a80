"""What a verifier is: facts, and a method that takes a problem or says why not."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from typing import Protocol, runtime_checkable

from torch import Tensor

from lipbridge import checks
from lipbridge.errors import UnsupportedProblem
from lipbridge.problem.bound import Bound
from lipbridge.problem.options import Option
from lipbridge.problem.problem import Problem


@dataclass(frozen=True)
class Budget:
    """What a verifier may spend: wall seconds, resident bytes, a seed, and options that it declares, by name."""

    seconds: float = 300.0
    memory: int = 8 * 2**30
    seed: int = 0
    options: Mapping[str, object] = field(default_factory=lambda: {})

    def __post_init__(self) -> None:
        checks.real(self.seconds, "seconds", above=True)
        checks.real(self.memory, "memory", above=True)
        checks.whole(self.seed, "seed", 0, 2**63 - 1)
        checks.instance(self.options, Mapping, "options", "be options by name, in a dict")


class Task(ABC):
    """A problem that a verifier has taken, with what it has computed of it so far."""

    @abstractmethod
    def bound(self, budget: Budget) -> Bound:
        """Bound the problem within the budget; the Bound's question is the problem's.

        Law: a Bound with side ``upper`` and ``proved`` is never below a witness. A limit that was reached is a
        ``status``, with the best proved bound so far or NaN, never an exception.

        Raises:
            UnknownName: for an option that the verifier does not declare.
            InvalidArgument: for an option outside its domain.
        """

    def certify(self, inputs: Tensor, labels: Tensor, radius: float, budget: Budget) -> Tensor:
        """Bool ``(n,)``: whether the class of each input is right on the whole closed ball around it.

        The balls have the problem's input norm. Verifiers that declare ``certifies`` have this method.

        Args:
            inputs: ``(n, *input_shape)``.
            labels: ``(n,)`` whole numbers below the number of outputs.
            radius: of the balls, above 0.
            budget: seconds and memory; inputs that are not reached are not certified.

        Raises:
            UnsupportedProblem: by a verifier that cannot.
        """
        raise UnsupportedProblem("This verifier bounds networks; it cannot certify predictions.")


@dataclass(frozen=True)
class Refusal:
    """A problem that a verifier cannot take, and why: ``reason`` is one line.

    What a Task can be asked, a Refusal answers by raising its reason: ``prepare(problem).bound(budget)`` needs no if.
    """

    verifier: str
    reason: str

    def bound(self, budget: Budget) -> Bound:
        """Raises :class:`UnsupportedProblem` with the reason."""
        raise UnsupportedProblem(f"`{self.verifier}` cannot take this problem: {self.reason.rstrip('.')}.")

    def certify(self, inputs: Tensor, labels: Tensor, radius: float, budget: Budget) -> Tensor:
        """Raises :class:`UnsupportedProblem` with the reason."""
        raise UnsupportedProblem(f"`{self.verifier}` cannot take this problem: {self.reason.rstrip('.')}.")


@runtime_checkable
class Verifier(Protocol):
    """A verifier bounds Problems. It reads the Graph and nothing else.

    A class that derives from this one has the defaults below; one that does not must have all of it.

    Attributes:
        name: what users type, e.g. ``lipsdp``.
        summary: one line for people: what it bounds, by which method.
        norms: the norms it takes, as in the README's table, e.g. ``"2"`` or ``"1, 2, inf"``.
        proved: whether its bounds are proved in floating point.
        options: what a user may set; any other option is an error.
        by_default: False for one that comparisons run only if it is named.
        certifies: whether its tasks can certify single predictions (the field's certified, or robust, accuracy).
        requires: the foreign packages it imports, as import names; empty for a core verifier.
        install: the command that installs them, empty for a core verifier.
    """

    name: str
    summary: str
    norms: str
    proved: bool
    options: Sequence[Option] = ()
    by_default: bool = True
    certifies: bool = False
    requires: Sequence[str] = ()
    install: str = ""

    def load(self) -> None:
        """Import what it requires: a study does it before the clock starts."""
        for package in self.requires:
            import_module(package)

    @abstractmethod
    def prepare(self, problem: Problem) -> Task | Refusal:
        """A task for the problem, or the reason why the verifier cannot take it.

        What has to be computed to know that (a lowering, say) is kept in the task, whose ``bound`` uses it.
        """
        ...
