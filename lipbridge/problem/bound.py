"""Bound: what is answered, and the witness behind a lower one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor

from lipbridge.problem.question import Question
from lipbridge.vocabulary import Quantity, Side, Status


@dataclass(frozen=True, eq=False)
class Witness:
    """What backs a lower bound, to be checked by anyone in float64.

    ``points`` is ``(1, *input_shape)`` with a ``direction`` v of the same shape: the value is ||J(x) v||_q / ||v||_p
    at a point where the network is differentiable. Or ``(2, *input_shape)``: it is ||f(x) - f(y)||_q / ||x - y||_p.
    """

    points: Tensor
    direction: Tensor | None = None


@dataclass(frozen=True, eq=False, kw_only=True)
class Bound:
    """A number that never travels alone: its side, whether it is proved, and what it is about.

    Attributes:
        value: the bound; NaN where ``status`` says that there is none.
        side: upper, lower or exact.
        proved: whether it survives floating-point rounding.
        question: what it answers: norms, region and quantity. It has no default, so that none is forgotten.
        method: how it was found, in words.
        seconds: wall time of the verifier alone.
        memory: peak resident memory of the process in bytes, if it was measured.
        status: how the computation ended; its ``advice`` says what to do.
        detail: one line more, e.g. the reason of a failure.
        witness: the point or pair behind a lower bound.
        multipliers: the dual variables behind an upper one, by name.
        extra: further figures of the verifier (e.g. certified accuracy), ready for JSON.
    """

    value: float
    side: Side
    proved: bool
    question: Question
    method: str
    seconds: float = 0.0
    memory: int | None = None
    status: Status = Status.OK
    detail: str = ""
    witness: Witness | None = None
    multipliers: Mapping[str, Tensor] | None = None
    extra: Mapping[str, object] = field(default_factory=lambda: {})

    @property
    def norm(self) -> str:
        """Input and output norm in words, as in :attr:`Question.norm_name`."""
        return self.question.norm_name

    @property
    def region(self) -> str:
        """The region in words, as in :attr:`Question.region_name`."""
        return self.question.region_name

    @property
    def quantity(self) -> Quantity:
        """``lipschitz`` or ``deviation``."""
        return self.question.quantity

    def __repr__(self) -> str:
        sign = {Side.UPPER: "<=", Side.LOWER: ">=", Side.EXACT: "="}[self.side]
        word = "proved" if self.proved else "not proved"
        if self.status is not Status.OK:
            word += f", {self.status.value}"
        return (
            f"Bound({self.quantity.value} {sign} {self.value:.6g}, {word}, l{self.norm}, {self.region}, "
            f"{self.method}, {self.seconds:.3g} s)"
        )
