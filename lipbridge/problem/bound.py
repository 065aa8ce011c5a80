"""Bound: what is answered, and the witness behind a lower one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor

from lipbridge.problem.problem import Problem
from lipbridge.vocabulary import Quantity, Side, Status


@dataclass(frozen=True, eq=False)
class Witness:
    """What backs a lower bound, to be checked by anyone in float64.

    ``points`` is ``(1, *input_shape)`` with a ``direction`` v of the same shape: the value is ||J(x) v||_q / ||v||_p
    at a point where the network is differentiable. Or ``(2, *input_shape)``: it is ||f(x) - f(y)||_q / ||x - y||_p.
    """

    points: Tensor
    direction: Tensor | None = None


@dataclass(frozen=True, eq=False)
class Bound:
    """A number that never travels alone: its side, whether it is proved, and what it is about.

    Attributes:
        value: the bound; NaN where ``status`` says that there is none.
        side: upper, lower or exact.
        proved: whether it survives floating-point rounding.
        norm: input and output norm, as in :attr:`Problem.norm_name`.
        region: as in :attr:`Problem.region_name`.
        method: how it was found, in words.
        quantity: ``lipschitz`` or ``deviation``.
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
    norm: str
    method: str
    region: str = "everywhere"
    quantity: Quantity = Quantity.LIPSCHITZ
    seconds: float = 0.0
    memory: int | None = None
    status: Status = Status.OK
    detail: str = ""
    witness: Witness | None = None
    multipliers: Mapping[str, Tensor] | None = None
    extra: Mapping[str, object] = field(default_factory=lambda: {})

    def __repr__(self) -> str:
        sign = {Side.UPPER: "<=", Side.LOWER: ">=", Side.EXACT: "="}[self.side]
        word = "proved" if self.proved else "not proved"
        if self.status is not Status.OK:
            word += f", {self.status.value}"
        return (
            f"Bound({self.quantity.value} {sign} {self.value:.6g}, {word}, l{self.norm}, {self.region}, "
            f"{self.method}, {self.seconds:.3g} s)"
        )


def bound_for(
    problem: Problem,
    value: float,
    side: Side,
    *,
    proved: bool,
    method: str,
    seconds: float = 0.0,
    status: Status = Status.OK,
    detail: str = "",
) -> Bound:
    """A Bound with norm, region and quantity of ``problem``."""
    return Bound(
        value,
        side,
        proved,
        problem.norm_name,
        method,
        problem.region_name,
        problem.quantity,
        seconds,
        status=status,
        detail=detail,
    )
