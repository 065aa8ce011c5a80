"""Property: what no input may do, as VNN-LIB asks it, and what is known of it."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

import torch
from torch import Tensor

from lipbridge import checks
from lipbridge.errors import InvalidArgument


@dataclass(frozen=True, eq=False)
class Case:
    """A box of inputs and linear inequalities of outputs: one way to a counterexample.

    Attributes:
        lower, upper: ``(*input_shape)`` float64: the inputs between them, both included.
        rows, limits: ``(m, outputs)`` and ``(m,)`` float64, of the flattened output y: ``rows y <= limits``, all m.

    Raises:
        InvalidArgument: for an empty box, other shapes, or numbers that are not finite.
    """

    lower: Tensor
    upper: Tensor
    rows: Tensor
    limits: Tensor

    def __post_init__(self) -> None:
        for name in ("lower", "upper", "rows", "limits"):
            value = checks.floating(getattr(self, name), name, finite=True)
            object.__setattr__(self, name, value.detach().to("cpu", torch.float64))
        if self.lower.shape != self.upper.shape or bool((self.lower > self.upper).any()):
            raise InvalidArgument("upper", "have the shape of lower and be nowhere below it", tuple(self.upper.shape))
        if self.rows.ndim != 2 or not len(self.rows) or self.limits.shape != self.rows.shape[:1]:
            words = "have shapes (m, outputs) and (m,) with m >= 1"
            raise InvalidArgument("rows, limits", words, (tuple(self.rows.shape), tuple(self.limits.shape)))


@dataclass(frozen=True, eq=False)
class Property:
    """No input obeys any of the cases: an input that obeys one is a counterexample.

    Raises:
        InvalidArgument: for no case, or cases of several networks.
    """

    cases: tuple[Case, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "cases", tuple(self.cases))
        shapes = {(tuple(case.lower.shape), case.rows.shape[1]) for case in self.cases}
        if len(shapes) != 1:
            raise InvalidArgument("cases", "be one or more, all of one input shape and number of outputs", len(shapes))

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Of one input."""
        return tuple(self.cases[0].lower.shape)

    @property
    def outputs(self) -> int:
        """How many numbers the flattened output has."""
        return self.cases[0].rows.shape[1]

    @property
    def boxes(self) -> list[tuple[Tensor, Tensor, list[Case]]]:
        """The cases by their boxes."""
        found: dict[tuple[bytes, bytes], tuple[Tensor, Tensor, list[Case]]] = {}
        for case in self.cases:
            key = case.lower.numpy().tobytes(), case.upper.numpy().tobytes()
            found.setdefault(key, (case.lower, case.upper, []))[2].append(case)
        return list(found.values())


class Verdict(StrEnum):
    """What a verifier says of a property."""

    VERIFIED = "verified"
    FALSIFIED = "falsified"
    UNKNOWN = "unknown"
    TIMEOUT = "timeout"
    ERROR = "error"

    @property
    def advice(self) -> str:
        """What a user can do about it."""
        return {
            Verdict.VERIFIED: "",
            Verdict.FALSIFIED: "The counterexample is an input that breaks the property.",
            Verdict.UNKNOWN: "Neither proof nor counterexample was found: ask a complete verifier, or allow more time.",
            Verdict.TIMEOUT: "Raise the time limit, or use a smaller network.",
            Verdict.ERROR: "The tool ended with an error; the detail gives it.",
        }[self]


@dataclass(frozen=True, eq=False)
class Judgement:
    """A verdict on a property.

    Attributes:
        verdict: ``verified`` is proved after rounding, ``falsified`` holds in exact arithmetic too.
        margin: proved: in each case some inequality is broken by at least so much, everywhere in its box. Minus
            infinity if nothing is known, as where another bound is the proof.
        counterexample: ``(*input_shape)`` float64, for ``falsified``.
        seconds: wall time.
    """

    verdict: Verdict
    margin: float
    counterexample: Tensor | None
    seconds: float


def robust(x: Tensor, label: int, classes: int, radius: float, *, rivals: list[int] | None = None) -> Property:
    """That no input within ``radius`` of x in l_inf has another class than ``label``; a tie is a counterexample.

    Args:
        x: ``(*input_shape)``.
        label: the class, from 0.
        classes: how many outputs there are.
        radius: above 0 and finite; the box is rounded outward to float64.
        rivals: only these other classes; all if not given.

    Raises:
        InvalidArgument: for anything else.
    """
    x = checks.floating(x, "x", finite=True).detach().to("cpu", torch.float64)
    radius = checks.real(radius, "radius", 0.0, above=True)
    label = checks.whole(label, "label", 0, classes - 1)
    others = [k for k in range(classes) if k != label] if rivals is None else rivals
    if not others or any(not 0 <= k < classes or k == label for k in others):
        raise InvalidArgument("rivals", f"be other classes than {label} below {classes}", others)
    lower = torch.nextafter(x - radius, torch.full_like(x, -torch.inf))
    upper = torch.nextafter(x + radius, torch.full_like(x, torch.inf))
    eye = torch.eye(classes, dtype=torch.float64)
    return Property(tuple(Case(lower, upper, (eye[label] - eye[k])[None], torch.zeros(1)) for k in others))


__all__ = ["Case", "Judgement", "Property", "Verdict", "robust"]
