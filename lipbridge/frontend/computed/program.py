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
from lipbridge.frontend.computed.functions import ALL
from lipbridge.frontend.computed.looks import CHOICES, EXACT, MOVES, READS
from lipbridge.frontend.computed.tensor import Computed, computed
from lipbridge.rounding.uncertain import Uncertain


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


def _plain(value: Any) -> Any:
    return value.value if isinstance(value, Computed) else value


def _applied(func: Any, args: Sequence[Any], kwargs: Mapping[str, Any], *, lenient: bool, program: bool = False) -> Any:
    """The result of one operation, which a program that is tracked asks for, or whoever looks at its constants."""
    tensors = [leaf for leaf in pytree.tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
    uncertain = any(isinstance(tensor, Computed) for tensor in tensors)
    name = func._schema.name.removeprefix("aten::")
    if not uncertain and (name in MOVES or not _double(tensors)):
        found = func(*args, **kwargs)
        # Whole numbers that are divided, say, become numbers of the default dtype: they are meant as real ones.
        divided = isinstance(found, Tensor) and found.is_floating_point() and bool(tensors) and name in ALL
        if not divided or any(tensor.is_floating_point() or tensor.is_meta for tensor in tensors):
            return found
    if func._schema.is_mutable and (uncertain or name.rstrip("_") in ALL):
        return _in_place(func, args, kwargs, uncertain, ALL.get(name.rstrip("_")))
    if name in READS and uncertain:
        return (CHOICES if program and name in CHOICES else READS)[name](func, args, kwargs)
    given = pytree.tree_map(_plain, (list(args), dict(kwargs)))
    if name in MOVES:
        errors = pytree.tree_map(_error, (list(args), dict(kwargs)))
        return _joined(func(*given[0], **given[1]), func(*MOVES[name](errors[0]), **errors[1]))
    rule = ALL.get(name)
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


Computed.applied = staticmethod(_applied)

__all__ = ["tracking"]
