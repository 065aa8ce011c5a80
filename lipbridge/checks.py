"""What users pass, read or refused: each function gives a value of the right type, or an error that names the way out.

Nothing else of lipbridge is imported here, so that every file can use it.
"""

from __future__ import annotations

import math
import numbers
import operator
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar, cast

import numpy as np
import torch
from torch import Tensor

from lipbridge.errors import InvalidArgument

T = TypeVar("T")


def instance(value: object, kind: type[T], parameter: str, should: str) -> T:
    """``value`` itself if it is one of ``kind``.

    Raises:
        InvalidArgument: otherwise, with the type that was found.
    """
    if not isinstance(value, kind):
        raise InvalidArgument(parameter, should, told(value))
    return value


def number(value: object, parameter: str, should: str = "be a finite number") -> float:
    """A finite real number as a float; a tensor or array without axes counts.

    Raises:
        InvalidArgument: for anything else, also for truth values, text, NaN and infinity.
    """
    item: object = value
    if isinstance(value, Tensor | np.ndarray) and math.prod(cast(Any, value).shape) == 1:
        item = cast(Any, value).item()
    if isinstance(item, bool) or not isinstance(item, numbers.Real):
        raise InvalidArgument(parameter, should, told(item))
    try:
        found = float(item)
    except OverflowError:
        found = math.inf
    if not math.isfinite(found):
        raise InvalidArgument(parameter, should, item)
    return found


def real(value: object, parameter: str, least: float = 0.0, *, above: bool = False) -> float:
    """A number of at least (or above) ``least``, infinity included.

    Raises:
        InvalidArgument: for anything else.
    """
    words = f"be a number {'above' if above else 'of at least'} {least:g}"
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise InvalidArgument(parameter, words, told(value))
    try:
        found = float(value)
    except OverflowError:
        found = math.copysign(math.inf, cast(Any, value) >= 0 or -1)
    if not (found > least or (found == least and not above)):
        raise InvalidArgument(parameter, words, found)
    return found


def flag(value: object, parameter: str) -> bool:
    """A truth value.

    Raises:
        InvalidArgument: for anything else, since a text like "False" would count as true.
    """
    if isinstance(value, np.bool_):
        value = bool(cast(Any, value))
    if not isinstance(value, bool):
        raise InvalidArgument(parameter, "be True or False", told(value))
    return value


def whole(value: object, parameter: str, least: int, most: int | None = None) -> int:
    """A whole number (no truth value) from ``least`` to ``most``.

    Raises:
        InvalidArgument: for anything else.
    """
    whole_number = not isinstance(value, bool) and isinstance(value, numbers.Integral)
    found = operator.index(cast(Any, value)) if whole_number else least - 1
    if found < least or (most is not None and found > most):
        words = f"of at least {least}" if most is None else f"from {least} to {most}"
        raise InvalidArgument(parameter, f"be a whole number {words}", told(value))
    return found


def path(value: object, parameter: str) -> Path:
    """A path from text, bytes or any path object.

    Raises:
        InvalidArgument: for anything else, an empty name, or a name with a NUL, which no file system has.
    """
    if not isinstance(value, str | bytes | os.PathLike):
        raise InvalidArgument(parameter, "be a path (str or pathlib.Path)", told(value))
    text = os.fsdecode(cast(Any, value))
    if not text or "\0" in text:
        raise InvalidArgument(parameter, "be a path that a file can have", text)
    return Path(text)


def tensor(value: object, parameter: str) -> Tensor:
    """A dense tensor of real numbers, detached; a numpy array becomes one (sharing its memory where torch can).

    Raises:
        InvalidArgument: for anything else: lists, complex numbers, quantized or sparse tensors, no numbers (meta).
    """
    if isinstance(value, np.ndarray):
        value = _from_numpy(cast("np.ndarray[Any, Any]", value), parameter)
    if not isinstance(value, Tensor):
        raise InvalidArgument(parameter, "be a torch.Tensor or a numpy array", told(value))
    if value.layout != torch.strided or value.is_quantized or value.is_complex() or value.is_meta:
        words = f"{value.dtype}, {value.layout}, on {value.device}"
        raise InvalidArgument(parameter, "be a dense tensor of real numbers (not complex, sparse or on meta)", words)
    return value.detach()


def floating(value: object, parameter: str, *, axes: str = "", finite: bool = True) -> Tensor:
    """As :func:`tensor`, of floating point numbers that are finite; float16 and bfloat16 become float32, exactly.

    Raises:
        InvalidArgument: for anything else.
    """
    found = tensor(value, parameter)
    if not found.is_floating_point():
        raise InvalidArgument(
            parameter, "be floating point numbers (convert with .float(), e.g. pixels.float() / 255)", found.dtype
        )
    if found.dtype not in (torch.float32, torch.float64):
        found = found.float()
    if finite and not all_finite(found):
        raise InvalidArgument(
            parameter, "hold finite numbers (clean it, e.g. with torch.nan_to_num)", "NaN or infinity"
        )
    return found


def integers(value: object, parameter: str) -> Tensor:
    """As :func:`tensor`, of whole numbers, as int64.

    Raises:
        InvalidArgument: for anything else, also for truth values and for floats that happen to be whole.
    """
    found = tensor(value, parameter)
    if found.is_floating_point() or found.dtype is torch.bool:
        raise InvalidArgument(parameter, "be whole numbers (convert with .long())", found.dtype)
    return found.long()


def labels(value: object, parameter: str, rows: int, classes: int) -> Tensor:
    """Labels ``[rows]`` as int64 in 0..classes-1.

    Raises:
        InvalidArgument: for another type or shape, or a label outside.
    """
    found = integers(value, parameter)
    if tuple(found.shape) != (rows,):
        way_out = " (of one-hot rows take .argmax(1))" if found.ndim == 2 else ""
        raise InvalidArgument(parameter, f"have shape ({rows},), one for each input{way_out}", tuple(found.shape))
    wrong = found[(found < 0) | (found >= classes)]
    if len(wrong):
        raise InvalidArgument(parameter, f"be at least 0 and below {classes}, the number of classes", int(wrong[0]))
    return found


def shape(value: object, parameter: str) -> tuple[int, ...]:
    """The shape of one input, without batch: whole numbers of at least 1. One number is a shape of one axis.

    Raises:
        InvalidArgument: for anything else.
    """
    items = (value,) if isinstance(value, int) else value
    if not isinstance(items, Sequence) or isinstance(items, str | bytes) or not items:
        raise InvalidArgument(parameter, "be the shape of one input without batch, e.g. (3, 32, 32)", told(value))
    return tuple(whole(item, parameter, 1, 2**31) for item in cast(Sequence[object], items))


def all_finite(value: Tensor) -> bool:
    """Whether a real tensor holds neither NaN nor infinity; no copy of it is made."""
    if not value.numel():
        return True
    least, largest = value.aminmax()  # NaN goes through both
    return bool(torch.isfinite(least) & torch.isfinite(largest))


def told(value: object) -> object:
    """What an error shows of a value: itself where that is short and says something, else its type."""
    short = isinstance(value, str | bytes | Path) and len(str(value)) <= 100
    if short or value is None or isinstance(value, bool | int | float):
        return value
    return _Type(type(value))


class _Type:
    """A type as words: ``a Linear``, ``a numpy.ndarray``."""

    def __init__(self, kind: type) -> None:
        plain = kind.__module__ in ("builtins", "__main__") or kind.__module__.startswith("torch.nn")
        self.name = kind.__name__ if plain else f"{kind.__module__}.{kind.__name__}"

    def __repr__(self) -> str:
        article = "an" if self.name[:1].lower() in "aeiou" else "a"
        return f"{article} {self.name}"


def _from_numpy(array: np.ndarray[Any, Any], parameter: str) -> Tensor:
    if array.dtype.kind not in "fiub":
        raise InvalidArgument(parameter, "be an array of real numbers", f"dtype {array.dtype}")
    if array.dtype.kind == "f" and array.dtype.itemsize > 8:
        raise InvalidArgument(parameter, "be an array of at most 64 bits a number", f"dtype {array.dtype}")
    # Torch takes neither foreign byte orders nor negative strides, and warns of memory that it may not write to.
    native = array.astype(array.dtype.newbyteorder("="), order="C", copy=False)
    return cast(Any, torch).from_numpy(native if native.flags.writeable else native.copy())
