"""The weights of a module from a file of others: a ``state_dict`` in torch's format or in safetensors.

Nothing in a file is executed: torch's reader is used with ``weights_only=True``, and what it would unfold is checked
first. Every name and shape must fit, numbers are widened where they must be and never rounded, and what the module
holds afterwards is compared with the file. Whatever is wrong is a :class:`ModelFileError` of one line.
"""

from __future__ import annotations

import os
import stat
import warnings
import zipfile
from collections.abc import Iterable, Mapping
from functools import reduce
from pathlib import Path
from typing import Any, cast

import safetensors
import torch
from torch import Tensor, nn

from lipbridge import checks
from lipbridge.errors import ModelFileError, first_line, kind_and_line
from lipbridge.frontend.fitting import require_weights

#: Where checkpoints keep a state dict among other things.
WRAPPERS = ("state_dict", "model_state_dict", "model", "net", "module")
#: What DataParallel, torch.compile and Lightning put before every name.
PREFIXES = ("module.", "_orig_mod.", "model.")
_FLOATS = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
_MAX_HEADER = 16 * 2**20
_SHOWN = 3

_SCRIPT = "it is a TorchScript archive; load it with torch.jit.load and save its state_dict() with torch.save"

State = Mapping[str, object]


class _Fault(Exception):
    """A short fact about a file; :func:`load_state` adds the file's name."""


def load_state(module: nn.Module, path: str | os.PathLike[str]) -> list[str]:
    """Put the weights of a file into a module, all of them or none; returns notes for people, one a line.

    Args:
        module: of the architecture that the weights belong to, on the CPU. It is made wider (float64) where the file
            is: the numbers of the file are never rounded.
        path: what ``torch.save(module.state_dict(), path)`` or ``safetensors.torch.save_file`` wrote. Also a
            checkpoint that keeps the state dict under ``state_dict`` or the like, and names that all start with
            ``module.`` (DataParallel), ``_orig_mod.`` (torch.compile) or ``model.``: taken only where what is left
            fits exactly, and told in a note.

    Raises:
        ModelFileError: for a file that is missing, damaged or hostile, or holds more than tensors; for missing and
            unexpected names, other shapes, NaN; or if two names of the file that are one tensor in the module differ.

    Law: afterwards ``module.state_dict()`` equals the file, number for number.
    """
    checks.instance(module, nn.Module, "module", "be a torch.nn.Module")
    require_weights(module)
    file = checks.path(path, "path")
    try:
        state, notes = _unwrapped(_read(file))
        _put(module, *_named(state, cast(State, module.state_dict()), notes))
        return [f"{file.name}: {note}" for note in notes]
    except _Fault as fault:
        raise ModelFileError(f"Cannot read weights {str(file)!r}: {' '.join(str(fault).split())}.") from None


# --- files -----------------------------------------------------------------------------------------------------------


def _read(file: Path) -> object:
    try:
        status = os.stat(file)
        if not stat.S_ISREG(status.st_mode):
            raise _Fault("it is no regular file; give one that torch.save or safetensors wrote")
        with open(file, "rb") as stream:
            start = stream.read(9)
    except OSError as error:
        raise _Fault(error.strerror or str(error)) from error
    if start[:4] == b"PK\x03\x04":
        _require_stored(file, status.st_size)
    elif start[:1] != b"\x80" or start[8:9] == b"{":
        return _read_safetensors(file, start, status.st_size)
    try:
        # As a stream: by its name torch takes some files for another format.
        with warnings.catch_warnings(), open(file, "rb") as stream:
            warnings.simplefilter("ignore")
            return cast(object, cast(Any, torch).load(stream, map_location="cpu", weights_only=True))
    except Exception as error:  # what torch raises on damaged bytes has no common type
        raise _Fault(_why(error)) from error


def _require_stored(file: Path, size: int) -> None:
    """A zip file of torch is not compressed: one that would unfold to more than itself is a bomb."""
    try:
        with zipfile.ZipFile(file) as archive:
            entries = archive.infolist()
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError, EOFError) as error:
        raise _Fault(f"it is damaged ({error})") from error
    if any(entry.filename.endswith("/constants.pkl") for entry in entries):
        raise _Fault(_SCRIPT)
    if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries) or sum(e.file_size for e in entries) > size:
        raise _Fault("it unfolds to more than its size, which no file of torch.save does")


def _why(error: Exception) -> str:
    if type(error).__name__ == "UnpicklingError":
        return (
            "it holds more than tensors, or is damaged, and code from a file is never run; "
            "write it with torch.save(module.state_dict(), path)"
        )
    return f"it is damaged, or torch.save did not write it ({kind_and_line(error, 120)})"


def _read_safetensors(file: Path, start: bytes, size: int) -> object:
    length = int.from_bytes(start[:8], "little")
    if len(start) < 9 or length > min(size - 8, _MAX_HEADER):
        raise _Fault("it is neither a file of torch.save nor of safetensors, or it is cut short")
    try:
        with cast(Any, safetensors).safe_open(str(file), framework="pt") as handle:
            return {str(name): cast(Tensor, handle.get_tensor(name)).clone() for name in list(handle.keys())}
    except Exception as error:
        raise _Fault(f"it is damaged, or safetensors did not write it ({first_line(error, 120)})") from error


# --- names -----------------------------------------------------------------------------------------------------------


def _unwrapped(found: object) -> tuple[State, list[str]]:
    """The state dict itself, out of a checkpoint that keeps it beside other things."""
    if not isinstance(found, Mapping):
        raise _Fault(f"it holds a {type(found).__name__}, not a state dict; write it with module.state_dict()")
    state = cast(Mapping[object, object], found)
    if not _is_state(state):
        inner = [key for key in WRAPPERS if _is_state(state.get(key))]
        if len(inner) != 1:
            words = f"keeps several state dicts ({_some(inner)})" if inner else f"holds no state dict ({_some(state)})"
            raise _Fault(f"it {words}; write it with torch.save(module.state_dict(), path)")
        return cast(State, state[inner[0]]), [f"the weights are those under {inner[0]!r}"]
    return cast(State, state), []


def _is_state(value: object) -> bool:
    """Whether it is a mapping of names to tensors (and to the extra state of layers)."""
    if not isinstance(value, Mapping) or not value:
        return False
    items = cast(Mapping[object, object], value).items()
    return all(isinstance(k, str) and (isinstance(v, Tensor) or k.endswith("_extra_state")) for k, v in items)


def _named(state: State, expected: State, notes: list[str]) -> tuple[State, State]:
    """The state under the module's names, and what the module has; one prefix of all names is taken off."""
    missing, surplus = _difference(state, expected)
    for prefix in PREFIXES:
        if missing and all(name.startswith(prefix) for name in state):
            shorter = {name.removeprefix(prefix): value for name, value in state.items()}
            if not any(_difference(shorter, expected)):
                notes.append(f"{prefix!r} before every name was taken off")
                return shorter, expected
    wrong = [
        f"{name!r} has shape {_shape(state[name])}, the module has {_shape(value)}"
        for name, value in expected.items()
        if name in state and isinstance(value, Tensor) and _shape(state[name]) != _shape(value)
    ]
    facts = [
        f"{len(names)} {word} ({_some(names)})"
        for names, word in ((missing, "missing"), (surplus, "unexpected"))
        if names
    ]
    facts += wrong[:_SHOWN] + ([f"and {len(wrong) - _SHOWN} other shapes"] if len(wrong) > _SHOWN else [])
    if facts:
        raise _Fault(f"it does not belong to this module: {', '.join(facts)}")
    return state, expected


def _difference(state: State, expected: State) -> tuple[list[str], list[str]]:
    """Names that are missing and names that belong to nothing."""
    # Of names for one tensor, one is enough (safetensors keeps one); counters of BatchNorm change nothing.
    here = {_place(value) for name, value in expected.items() if name in state} - {None}
    missing = [
        name
        for name, value in expected.items()
        if name not in state and _place(value) not in here and not name.endswith("num_batches_tracked")
    ]
    return missing, [name for name in state if name not in expected]


def _place(value: object) -> tuple[int, torch.Size, tuple[int, ...]] | None:
    if not isinstance(value, Tensor) or not value.numel():
        return None
    return value.data_ptr(), value.shape, value.stride()


def _shape(value: object) -> tuple[int, ...] | None:
    return tuple(value.shape) if isinstance(value, Tensor) else None


def _some(names: Iterable[object]) -> str:
    shown = [repr(str(name)[:80]) for name in names]
    more = f", and {len(shown) - _SHOWN} more" if len(shown) > _SHOWN else ""
    return ", ".join(shown[:_SHOWN]) + more


# --- numbers ---------------------------------------------------------------------------------------------------------


def _put(module: nn.Module, state: State, expected: State) -> None:
    tensors = {name: value for name, value in state.items() if isinstance(value, Tensor)}
    for name, value in tensors.items():
        own = expected[name]
        if not isinstance(own, Tensor) or value.layout != torch.strided or value.is_meta or value.is_quantized:
            raise _Fault(f"{name!r} is no dense tensor, or not one in the module")
        if value.is_complex() or value.is_floating_point() != own.is_floating_point():
            raise _Fault(f"{name!r} is {value.dtype}, the module has {own.dtype}")
        if value.is_floating_point() and value.dtype not in _FLOATS:
            raise _Fault(f"{name!r} is {value.dtype}; convert it to one of float64, float32, float16 or bfloat16")
        if value.is_floating_point() and not bool(torch.isfinite(value).all()):
            raise _Fault(f"{name!r} holds NaN or infinite values; such a network has no bound")
    _widen(module, tensors)
    try:
        module.load_state_dict(dict(state), strict=False)
    except Exception as error:  # a module may load in its own way
        raise _Fault(f"the module does not take it ({first_line(error)})") from error
    held = cast(State, module.state_dict())
    for name, value in tensors.items():
        now = held.get(name)
        if not isinstance(now, Tensor) or not torch.equal(now.cpu().double(), value.double()):
            raise _Fault(f"the module holds other numbers as {name!r} than the file (two names of one tensor differ?)")


def _widen(module: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Make the module as wide as the widest numbers of the file, so that none is rounded."""
    own = {name: value.dtype for name, value in module.state_dict().items() if isinstance(value, Tensor)}
    pairs = [(own[name], value.dtype) for name, value in tensors.items() if value.is_floating_point()]
    if any(torch.promote_types(*pair) is not pair[0] for pair in pairs):
        module.to(reduce(torch.promote_types, [dtype for pair in pairs for dtype in pair]))


__all__ = ["PREFIXES", "WRAPPERS", "load_state"]
