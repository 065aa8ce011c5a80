"""Constants that a program computes, each with a bound of the rounding error that its float64 numbers carry.

A weight such as ``(A + W) - A`` or ``g V / |V|`` is a real number that float64 only comes near. Inside :func:`tracking`
every torch operation on constants gives, where it rounds, a :class:`Computed`: the numbers, and how far each may be
from the exact result of the operation on the exact numbers. What is exact stays a plain tensor. Operations on a
:class:`Computed` carry the error along, also outside; one whose error is not known refuses, so that none is lost.

The rules are in :mod:`lipbridge.frontend.computed.rules`.
"""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from lipbridge.errors import NumericalFailure
from lipbridge.rounding.uncertain import Uncertain


class Computed(Tensor):
    """A float64 tensor and, of its shape, ``error``: the exact entry is within it of the one that is held.

    Attributes:
        value: the numbers, as a plain tensor.
        error: float64, of the same shape, nowhere negative; infinite where nothing is known.
    """

    value: Tensor
    error: Tensor

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
        return _applied(func, args, kwargs or {}, lenient=False)


class _Tracking(TorchDispatchMode):
    def __init__(self, lenient: bool) -> None:
        cast(Any, super()).__init__()
        self.lenient = lenient

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        return _applied(func, args, kwargs or {}, lenient=self.lenient, program=True)


@contextmanager
def tracking(*, lenient: bool = False) -> Generator[None]:
    """Operations on constants give :class:`Computed` tensors where they round.

    Args:
        lenient: take the numbers that an operation without a rule gives for exact, instead of refusing.

    Raises:
        NumericalFailure: at an operation on a :class:`Computed` whose error is not known, unless ``lenient``.
    """
    with torch.no_grad(), _Tracking(lenient):
        yield


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


def _plain(value: Any) -> Any:
    return value.value if isinstance(value, Computed) else value


def _applied(func: Any, args: Sequence[Any], kwargs: Mapping[str, Any], *, lenient: bool, program: bool = False) -> Any:
    """The result of one operation, which a program that is tracked asks for, or whoever looks at its constants."""
    from lipbridge.frontend.computed.functions import ALL as RULES  # they are made of what is here
    from lipbridge.frontend.computed.rules import CHOICES, EXACT, MOVES, READS

    tensors = [leaf for leaf in pytree.tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
    uncertain = any(isinstance(tensor, Computed) for tensor in tensors)
    name = func._schema.name.removeprefix("aten::")
    if not uncertain and (name in MOVES or not _double(tensors)):
        found = func(*args, **kwargs)
        # Whole numbers that are divided, say, become numbers of the default dtype: they are meant as real ones.
        divided = isinstance(found, Tensor) and found.is_floating_point() and bool(tensors) and name in RULES
        if not divided or any(tensor.is_floating_point() or tensor.is_meta for tensor in tensors):
            return found
    if func._schema.is_mutable and (uncertain or name.rstrip("_") in RULES):
        return _in_place(func, args, kwargs, uncertain, RULES.get(name.rstrip("_")))
    if name in READS and uncertain:
        return (CHOICES if program and name in CHOICES else READS)[name](func, args, kwargs)
    given = pytree.tree_map(_plain, (list(args), dict(kwargs)))
    if name in MOVES:
        errors = pytree.tree_map(_error, (list(args), dict(kwargs)))
        return _joined(func(*given[0], **given[1]), func(*MOVES[name](errors[0]), **errors[1]))
    rule = RULES.get(name)
    if rule is not None:
        found = rule(*(_operand(leaf) for leaf in args), **kwargs)
        if found is not NotImplemented:
            return _made(found)
    found = None if uncertain and not lenient else func(*given[0], **given[1])
    made = [leaf for leaf in pytree.tree_leaves(found) if isinstance(leaf, Tensor)]
    numbers = any(tensor.is_floating_point() or tensor.is_complex() for tensor in made)
    if not lenient and (uncertain or (numbers and name not in EXACT)):
        raise NumericalFailure(
            f"A constant is computed with {name}, whose rounding error is not bounded; store the computed constant."
        )
    return found


def _in_place(func: Any, args: Sequence[Any], kwargs: Mapping[str, Any], uncertain: bool, rule: Any) -> Any:
    """An operation that writes into a tensor, which has no place for an error.

    Raises:
        NumericalFailure: if one would be lost.
    """
    found = NotImplemented if rule is None or "out" in kwargs else rule(*(_operand(leaf) for leaf in args), **kwargs)
    lost = found is NotImplemented or any(isinstance(x, Uncertain) and x.error is not None for x in _several(found))
    if uncertain or (lost and rule is not None):
        name = func._schema.name.removeprefix("aten::")
        raise NumericalFailure(
            f"A constant is changed in place by {name}, which rounds; write it without, or store it."
        )
    return func(*args, **kwargs)


def _several(found: Any) -> Sequence[Any]:
    return cast(Sequence[Any], found) if isinstance(found, tuple) else [found]


def _double(tensors: Sequence[Tensor]) -> bool:
    """Whether an operation works on numbers of float64, and no other but whole ones."""
    if any(isinstance(tensor, FakeTensor) for tensor in tensors):
        return False  # they have no numbers
    real = [tensor for tensor in tensors if tensor.is_floating_point() or tensor.is_complex()]
    return bool(real) and all(t.dtype == torch.float64 for t in real) and not any(t.is_meta for t in tensors)


def _operand(leaf: Any) -> Any:
    """A tensor of real numbers with its error; what is none as it is."""
    if isinstance(leaf, Computed):
        return Uncertain(leaf.value, leaf.error)
    if isinstance(leaf, Tensor) and leaf.dtype == torch.float64:
        return Uncertain(leaf)
    return leaf


def _error(leaf: Any) -> Any:
    if isinstance(leaf, Computed):
        return leaf.error
    return torch.zeros_like(leaf) if isinstance(leaf, Tensor) and leaf.dtype == torch.float64 else leaf


def _joined(values: Any, errors: Any) -> Any:
    if isinstance(values, list | tuple):
        pairs = zip(cast(Sequence[Tensor], values), cast(Sequence[Tensor], errors), strict=True)
        return type(cast(Any, values))(computed(value, error) for value, error in pairs)
    return computed(values, errors)


def _made(found: Any) -> Any:
    if isinstance(found, Uncertain):
        return computed(found.value, found.error)
    return tuple(_made(each) for each in cast(Any, found)) if isinstance(found, tuple) else found


__all__ = ["Computed", "computed", "error_of", "known", "outward", "tracking"]
