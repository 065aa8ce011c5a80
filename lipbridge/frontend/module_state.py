"""Running a user's module and leaving it as it was: modes, weights, attributes, hooks, gradients, random numbers."""

from __future__ import annotations

import random
import types
from collections import deque
from collections.abc import Callable, Generator, Iterator, MutableMapping, MutableSequence, MutableSet
from contextlib import contextmanager
from functools import partial
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

_HOOKS = ("_forward_hooks", "_forward_pre_hooks")


@contextmanager
def as_it_was(module: nn.Module) -> Generator[None]:
    """Run ``module`` in eval mode, without gradients; everything that it, or a hook of it, changes is put back.

    That is: the mode of each layer (by the module's own ``train``, where that does work, e.g. merges weights), the
    values of parameters and buffers, plain attributes and the lists, dicts and sets in them, the lists, dicts and sets
    that a hook writes to, ``grad``, and the random state of torch, numpy and Python.

    Law: afterwards ``state_dict`` is bitwise what it was.
    """
    layers = list(module.modules())
    modes = [layer.training for layer in layers]
    tensors = [t for layer in layers for t in _own_tensors(layer)]
    gradients = [(t, t.grad) for t in tensors if t.is_leaf]
    # Only a module with a `train` of its own can change weights when the mode changes: the copies cost memory.
    works = any(type(layer).train is not nn.Module.train or type(layer).eval is not nn.Module.eval for layer in layers)
    copies = [(t, t.detach().clone()) for t in (tensors if works else [b for m in layers for b in _buffers(m)])]
    attributes = [(layer, _contents(layer)) for layer in layers]
    outside = [(container, _copied(container)) for container in _written_by_hooks(layers)]
    python, arrays = random.getstate(), np.random.get_state()
    devices = sorted({t.device for t in tensors if t.device.type == "cuda"}, key=str)
    fork = cast(Any, torch.random).fork_rng
    with fork(devices=[device.index or 0 for device in devices]), torch.no_grad():
        try:
            _set_mode(module, False)
            yield
        finally:
            if modes[0]:
                _set_mode(module, True)
            for layer, contents in attributes:
                _put_back(layer, contents)
            for container, copy in outside:
                _refill(container, copy)
            for layer, mode in zip(layers, modes, strict=True):
                layer.training = mode
            for tensor, copy in copies:
                if not tensor.is_meta and not _same(tensor, copy):
                    tensor.data.copy_(copy)
            for tensor, gradient in gradients:
                if tensor.grad is not gradient:
                    tensor.grad = gradient
            random.setstate(python)
            np.random.set_state(arrays)


def _set_mode(module: nn.Module, training: bool) -> None:
    try:
        module.train(training)
        if not training:
            module.eval()
    except NotImplementedError:  # an exported program has one mode only
        return


def _own_tensors(layer: nn.Module) -> list[Tensor]:
    return [*layer.parameters(recurse=False), *_buffers(layer)]


def _buffers(layer: nn.Module) -> list[Tensor]:
    return [t for t in layer.buffers(recurse=False) if type(t) is Tensor]


def _same(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and bool(torch.equal(torch.nan_to_num(a.detach()), torch.nan_to_num(b)))


# --- containers ------------------------------------------------------------------------------------------------------

_Container = MutableSequence[Any] | MutableMapping[Any, Any] | MutableSet[Any]


def _copied(container: Any) -> Any:
    return container.copy() if hasattr(container, "copy") else list(container)


def _refill(container: Any, copy: Any) -> None:
    """Put a container's contents back; the container stays the same object."""
    if isinstance(container, dict | set):
        held = cast(Any, container)
        same = len(held) == len(copy) and (
            all(k in copy and copy[k] is v for k, v in cast(dict[Any, Any], container).items())
            if isinstance(container, dict)
            else container == copy
        )
        if not same:
            held.clear()
            held.update(copy)
    elif len(container) != len(copy) or any(a is not b for a, b in zip(container, copy, strict=True)):
        container.clear()
        container.extend(copy)


def _contents(layer: nn.Module) -> tuple[dict[str, Any], list[tuple[Any, Any]]]:
    """A layer's attributes, and the contents of the containers among them (parameters, buffers and hooks included)."""
    attributes = dict(vars(layer))
    containers: list[Any] = [v for v in attributes.values() if isinstance(v, list | dict | set | deque)]
    held = [(container, _copied(container)) for container in containers]
    return attributes, held


def _put_back(layer: nn.Module, contents: tuple[dict[str, Any], list[tuple[Any, Any]]]) -> None:
    attributes, held = contents
    _refill(vars(layer), attributes)
    for container, copy in held:
        _refill(container, copy)


def _written_by_hooks(layers: list[nn.Module]) -> list[Any]:
    """Lists, dicts and sets that forward hooks reach: variables around them, defaults, globals, owners."""
    found: dict[int, Any] = {}
    for layer in layers:
        for name in _HOOKS:
            for hook in cast(dict[int, Callable[..., Any]], getattr(layer, name, {})).values():
                for value in _reached(hook):
                    if isinstance(value, list | dict | set | deque):
                        found[id(cast(object, value))] = value
    return list(found.values())


def _reached(hook: Any, depth: int = 3) -> Iterator[Any]:
    if depth == 0:
        return
    if isinstance(hook, partial):
        inside = cast("partial[Any]", hook)
        values = [inside.func, *inside.args, *inside.keywords.values()]
    elif isinstance(hook, types.MethodType):
        values = [hook.__self__, hook.__func__]
    elif isinstance(hook, types.FunctionType):
        cells = [cell.cell_contents for cell in hook.__closure__ or () if _is_filled(cell)]
        names = hook.__code__.co_names
        values = [*cells, *(hook.__defaults__ or ()), *(hook.__globals__[n] for n in names if n in hook.__globals__)]
    elif isinstance(hook, nn.Module | type | types.ModuleType | Tensor):
        return  # layers are kept by themselves
    else:
        values = list(getattr(hook, "__dict__", {}).values())
    for value in values:
        yield value
        if isinstance(value, dict) and depth > 1:  # e.g. a list of activations for each layer
            yield from list(cast(dict[Any, Any], value).values())
        yield from _reached(value, depth - 1)


def _is_filled(cell: types.CellType) -> bool:
    try:
        cell.cell_contents  # noqa: B018
    except ValueError:
        return False
    return True


__all__ = ["as_it_was"]
