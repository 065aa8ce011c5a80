"""Options: what a user may set for one verifier, declared once, so that a misspelt name is an error."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from lipbridge import checks
from lipbridge.errors import InvalidArgument, UnknownName

_TYPES = {int: "a whole number", float: "a number", str: "a word", bool: "true or false", Tensor: "a tensor"}


def _any_value(_: Any) -> bool:
    return True


@dataclass(frozen=True, kw_only=True)
class Option:
    """An option of a verifier.

    Attributes:
        name: what users type, e.g. ``gap`` for ``--option lipsdp-fast.gap=1e-4``.
        type: int, float (which takes whole numbers too), str, bool or Tensor (from Python only).
        default: its value where none is given; None where the verifier chooses.
        help: one line.
        domain: what a value must do, as in "be between 0 and 1".
        allows: whether a value of the type is in the domain.
    """

    name: str
    type: type
    default: object
    help: str
    domain: str = ""
    allows: Callable[[Any], bool] = _any_value

    @property
    def type_name(self) -> str:
        """The type in words."""
        return _TYPES.get(self.type, self.type.__name__)

    def read(self, value: object) -> Any:
        """The value, of the option's type.

        Raises:
            InvalidArgument: for another type, or a value outside the domain.
        """
        given = value
        if self.type is float and isinstance(value, int) and not isinstance(value, bool):
            value = float(value) if abs(value) < 2**1023 else value
        right = isinstance(value, self.type) and not (self.type is int and isinstance(value, bool))
        if not right or not self.allows(value):
            raise InvalidArgument(self.name, self.domain or f"be {self.type_name}", checks.told(given))
        return value


def read_options(verifier: str, known: Sequence[Option], given: Mapping[str, object]) -> dict[str, Any]:
    """Every option of a verifier by name: what is given, checked, or its default.

    Raises:
        UnknownName: for a name that the verifier does not declare, with those that it does.
        InvalidArgument: for a value outside its option's domain.
    """
    names = {option.name for option in known}
    for name in given:
        if name not in names:
            raise UnknownName(f"option of verifier {verifier}:", name, sorted(names) or ["none"])
    return {o.name: o.read(given[o.name]) if o.name in given else o.default for o in known}
