"""What a verifier is: three attributes of facts and two methods."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

from torch import Tensor

from lipbridge import checks
from lipbridge.graph.graph import Graph
from lipbridge.problem.bound import Bound
from lipbridge.problem.problem import Problem
from lipbridge.vocabulary import Norm


@dataclass(frozen=True)
class Budget:
    """What a verifier may spend: wall seconds, resident bytes, a seed, and options that it documents by name."""

    seconds: float = 300.0
    memory: int = 8 * 2**30
    seed: int = 0
    options: Mapping[str, object] = field(default_factory=lambda: {})

    def __post_init__(self) -> None:
        checks.real(self.seconds, "seconds", above=True)
        checks.real(self.memory, "memory", above=True)
        checks.whole(self.seed, "seed", 0, 2**63 - 1)
        checks.instance(self.options, Mapping, "options", "be options by name, in a dict")


@runtime_checkable
class Verifier(Protocol):
    """A verifier bounds a Problem. It reads the Graph and nothing else.

    Attributes:
        name: what users type, e.g. ``lipsdp``.
        summary: one line for people: what it bounds, by which method.
        norms: the norms it takes, as in the README's table, e.g. ``"2"`` or ``"1, 2, inf"``.
        proved: whether its bounds are proved in floating point.
        requires: the foreign packages it imports, as import names; empty for a core verifier.
        install: the command that installs them, empty for a core verifier.
    """

    name: str
    summary: str
    norms: str
    proved: bool
    requires: tuple[str, ...]
    install: str

    def supports(self, problem: Problem) -> str | None:
        """None if it can take the problem, otherwise the reason why it cannot, in one line."""
        ...

    def bound(self, problem: Problem, budget: Budget) -> Bound:
        """Bound the problem within the budget.

        Law: a Bound with side ``upper`` and ``proved`` is never below a witness. A limit that was reached is a
        ``status``, with the best proved bound so far or NaN, never an exception.
        """
        ...


@runtime_checkable
class Certifier(Protocol):
    """A verifier that can also certify single predictions (the field's certified, or robust, accuracy)."""

    def certify(
        self, graph: Graph, inputs: Tensor, labels: Tensor, radius: float, norm: Norm, budget: Budget
    ) -> Tensor:
        """Bool ``(n,)``: whether the class of each input is right on the whole closed l_norm ball around it."""
        ...
