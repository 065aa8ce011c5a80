"""Rows: what a study says about one verifier on one network."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from lipbridge.disk.strict_json import jsonable
from lipbridge.problem.bound import Bound, Witness
from lipbridge.vocabulary import Quantity, Side, Status


@dataclass(frozen=True, eq=False)
class Row:
    """A Bound in a study: network and verifier added, and tightness = value / best witnessed lower bound.

    ``seconds`` is the verifier alone, ``total_seconds`` its whole process with all imports. ``memory`` is the peak
    resident memory of the process in bytes. ``certified_accuracy`` is that of the same verifier on the study's points.
    """

    network: str
    verifier: str
    method: str
    side: Side
    value: float
    proved: bool
    norm: str
    region: str
    quantity: Quantity
    seconds: float
    status: Status
    tightness: float | None = None
    memory: int | None = None
    total_seconds: float | None = None
    detail: str = ""
    certified_accuracy: float | None = None
    extra: Mapping[str, object] = field(default_factory=lambda: {})
    witness: Witness | None = None

    def to_json(self) -> dict[str, Any]:
        """The row for programs: JSON types only, and null for whatever is not a finite number."""
        values = {item.name: getattr(self, item.name) for item in fields(self) if item.name != "witness"}
        return jsonable(values)


def make_row(network: str, verifier: str, bound: Bound, total_seconds: float | None = None) -> Row:
    """The row of a Bound, not judged yet."""
    extra = dict(bound.extra)
    certified = extra.pop("certified_accuracy", None)
    return Row(
        network,
        verifier,
        bound.method,
        bound.side,
        bound.value,
        bound.proved,
        bound.norm,
        bound.region,
        bound.quantity,
        bound.seconds,
        bound.status,
        memory=bound.memory,
        total_seconds=total_seconds,
        detail=bound.detail,
        certified_accuracy=float(certified) if isinstance(certified, int | float) else None,
        extra=extra,
        witness=bound.witness,
    )
