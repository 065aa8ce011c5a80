"""A tensor of computed numbers, each with a bound of how far it is from the exact one."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, cast

import torch
from torch import Tensor


class Computed(Tensor):
    """A float64 tensor and, of its shape, ``error``: the exact entry is within it of the one that is held.

    Attributes:
        value: the numbers, as a plain tensor.
        error: float64, of the same shape, nowhere negative; infinite where nothing is known.
    """

    value: Tensor
    error: Tensor
    #: What an operation on it gives: :mod:`lipbridge.frontend.computed.program` says so, when it is imported.
    applied: ClassVar[Callable[..., Any]]

    @staticmethod
    def __new__(cls: Any, value: Tensor, error: Tensor) -> Computed:
        made = cast(Computed, cast(Any, Tensor)._make_subclass(cls, value, False))
        made.value, made.error = value, error
        return made

    __torch_function__ = cast(Any, torch)._C._disabled_torch_function_impl

    def __repr__(self, *, tensor_contents: Any = None) -> str:
        return f"Computed({self.value!r}, error={self.error!r})"

    @classmethod
    def __torch_dispatch__(
        cls, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        return cls.applied(func, args, kwargs or {}, lenient=False)


def known(tensor: Tensor) -> Tensor:
    """The numbers of a tensor, without the error that they may carry."""
    return tensor.value if isinstance(tensor, Computed) else tensor


def error_of(tensor: Tensor) -> Tensor | None:
    """How far the numbers of a tensor may be off; None if they are exact."""
    return tensor.error if isinstance(tensor, Computed) else None


def computed(value: Tensor, error: Tensor | None) -> Tensor:
    """A :class:`Computed`, or the plain tensor if nothing was rounded."""
    if error is None or value.is_meta:
        return value
    error = torch.where(torch.isnan(error), torch.inf, error)
    return Computed(value, error.expand(value.shape)) if bool((error > 0).any()) else value


def outward(tensor: Tensor) -> tuple[Tensor, Tensor | None]:
    """Numbers at least as far from zero as the exact ones, and how far they are from those; for factors of a diagonal.

    The exact factors are these times numbers in [-1, 1].
    """
    if not isinstance(tensor, Computed):
        return tensor, None
    value, error = tensor.value, tensor.error
    away = torch.where(value < 0, -torch.inf, torch.inf)
    larger = torch.nextafter(value + torch.where(value < 0, -error, error), away)
    larger = torch.where(error > 0, larger, value)
    gap = torch.nextafter((larger - value).abs() + error, torch.full_like(error, torch.inf))
    return larger, torch.where(error > 0, torch.nextafter(gap, torch.full_like(gap, torch.inf)), 0.0)
