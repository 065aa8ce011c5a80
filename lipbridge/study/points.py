"""The points of a comparison: where searches start, and the centres of balls."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from lipbridge.errors import InvalidArgument

DEFAULT_POINTS = 32


@dataclass(frozen=True, eq=False)
class Points:
    """Data that a study needs beyond the networks.

    ``inputs`` ``(n, *input_shape)`` are where searches start; the first ``count`` of them are the centres of the balls
    for verifiers of local quantities, and with ``labels`` ``(n,)`` the predictions that are certified. ``radius`` is
    that of the balls, chosen by the norm if it is None. With ``lipschitz`` the Lipschitz constant in the balls is a
    question of its own, put to every verifier that can answer it.
    """

    inputs: Tensor
    labels: Tensor | None = None
    count: int = DEFAULT_POINTS
    radius: float | None = None
    lipschitz: bool = False

    def __post_init__(self) -> None:
        if self.count < 1:
            raise InvalidArgument("points", "be at least 1", self.count)
        if not len(self.inputs):
            raise InvalidArgument("inputs", "hold at least one point", tuple(self.inputs.shape))
        if self.radius is not None and not 0 < self.radius < float("inf"):
            raise InvalidArgument("radius", "be above 0 and finite", self.radius)


__all__ = ["DEFAULT_POINTS", "Points"]
