"""Question: what is asked about a network, apart from the network. It travels with every bound."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from lipbridge import checks
from lipbridge.errors import InvalidArgument
from lipbridge.vocabulary import Norm, Quantity, as_norm


@dataclass(frozen=True, eq=False)
class Ball:
    """The closed ball {x : ||x - c||_norm <= radius}, or several of them, each a region of its own.

    ``centers`` is ``(k, *input_shape)``, a tensor or numpy array that becomes float64; a constant over k balls is the
    largest of the k constants. Two are equal if centres, radius and norm are, bit by bit, on whatever device.

    Raises:
        InvalidArgument: for a radius that is not above 0 and finite, centres of no or one axis, or another norm.
    """

    centers: Tensor
    radius: float
    norm: Norm

    def __post_init__(self) -> None:
        radius = checks.number(self.radius, "radius", "be above 0 and finite")
        if not radius > 0:
            raise InvalidArgument("radius", "be above 0 and finite", radius)
        centers = checks.tensor(self.centers, "centers")
        if centers.ndim < 2 or not centers.numel():
            raise InvalidArgument("centers", "have shape (k, *input_shape) with k >= 1", tuple(centers.shape))
        if centers.dtype is torch.bool:
            raise InvalidArgument("centers", "be numbers", centers.dtype)
        object.__setattr__(self, "centers", centers.to(torch.float64))
        object.__setattr__(self, "radius", radius)
        object.__setattr__(self, "norm", as_norm(self.norm))

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Ball):
            return NotImplemented
        return self is other or self._value() == other._value()

    def __hash__(self) -> int:
        return hash(self._value())

    def __str__(self) -> str:
        count = len(self.centers)
        return f"{count} l{self.norm} ball{'s' if count > 1 else ''}, radius {self.radius:g}"

    def _value(self) -> tuple[object, ...]:
        centers = self.centers.detach().cpu().contiguous()
        return self.radius, self.norm, tuple(centers.shape), centers.numpy().tobytes()


@dataclass(frozen=True, kw_only=True)
class Question:
    """An input and an output norm, a region (None is everywhere), and the quantity that is to be bounded.

    Equality and hash go by value: two questions with the same numbers are one. :meth:`everywhere` and :meth:`on` are
    shorter where a norm says the rest.

    Raises:
        InvalidArgument: for another norm, region or quantity, or the deviation without a ball.
    """

    input_norm: Norm
    output_norm: Norm
    region: Ball | None
    quantity: Quantity = Quantity.LIPSCHITZ

    def __post_init__(self) -> None:
        for name in ("input_norm", "output_norm"):
            object.__setattr__(self, name, as_norm(getattr(self, name), name))
        if self.region is not None:
            checks.instance(self.region, Ball, "region", "be a Ball, or None for everywhere")
        checks.instance(self.quantity, str, "quantity", f"be one of {', '.join(Quantity)}")
        if self.quantity not in tuple(Quantity):
            raise InvalidArgument("quantity", f"be one of {', '.join(Quantity)}", checks.told(self.quantity))
        object.__setattr__(self, "quantity", Quantity(self.quantity))
        if self.quantity is Quantity.DEVIATION and self.region is None:
            raise InvalidArgument("region", "be a Ball for the quantity `deviation`", None)

    @staticmethod
    def everywhere(norm: Norm | str = 2, output_norm: Norm | str | None = None) -> Question:
        """The Lipschitz constant everywhere; the output norm is the input norm if it is not given."""
        p = as_norm(norm)
        q = p if output_norm is None else as_norm(output_norm, "output_norm")
        return Question(input_norm=p, output_norm=q, region=None)

    @staticmethod
    def on(
        region: Ball,
        norm: Norm | str | None = None,
        output_norm: Norm | str | None = None,
        *,
        quantity: Quantity = Quantity.LIPSCHITZ,
    ) -> Question:
        """The constant, or the deviation, on balls; the input norm is the balls' own if it is not given."""
        checks.instance(region, Ball, "region", "be a Ball; Question.everywhere has none")
        p = region.norm if norm is None else as_norm(norm)
        q = p if output_norm is None else as_norm(output_norm, "output_norm")
        return Question(input_norm=p, output_norm=q, region=region, quantity=quantity)

    @property
    def norm_name(self) -> str:
        """``2`` for l_2 -> l_2, ``1->inf`` for mixed norms."""
        if self.input_norm == self.output_norm:
            return str(self.input_norm)
        return f"{self.input_norm}->{self.output_norm}"

    @property
    def region_name(self) -> str:
        """``everywhere`` or the ball in words."""
        return "everywhere" if self.region is None else str(self.region)

    def __str__(self) -> str:
        return f"{self.quantity.value}, l{self.norm_name}, {self.region_name}"
