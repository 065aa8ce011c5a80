"""Whether a module fits the data: found before anything is trained, and said in words of both."""

from __future__ import annotations

import itertools
from collections.abc import Generator
from contextlib import contextmanager
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from lipbridge.data import Dataset
from lipbridge.errors import InvalidArgument, Misfit, kind_and_line
from lipbridge.frontend.capture import capture
from lipbridge.graph.graph import Graph


def require_fit(module: nn.Module, dataset: Dataset) -> Graph:
    """The module's Graph on the dataset's flat rows.

    Raises:
        InvalidArgument: if the module does not take the data's features, does not give a logit for each class, or has
            no parameter to train; Misfit says both numbers.
        UnsupportedOperation: for a module that runs on the data, and that :func:`lipbridge.capture` cannot read.
    """
    require_parameters(module)
    shape = (dataset.features,)
    fault = misfit(module, shape, f"the data ({dataset.name})")
    if fault is not None:
        raise fault
    graph = capture(module, shape)
    if graph.output_shape != (dataset.classes,):
        found = " x ".join(map(str, graph.output_shape)) or "no"
        fact = f"The module gives {found} outputs, the data ({dataset.name}) has {dataset.classes} classes"
        raise Misfit("module", fact, f"Let it give (batch, {dataset.classes}): {dataset.classes} logits for each input")
    return graph


def require_parameters(module: nn.Module) -> None:
    """Refuse what cannot be trained.

    Raises:
        InvalidArgument: for a module without a parameter that requires a gradient; also as :func:`require_weights`.
    """
    require_weights(module)
    if not any(parameter.requires_grad for parameter in module.parameters()):
        way_out = "have a parameter to train (requires_grad)"
        raise InvalidArgument("module", way_out, f"{type(module).__name__} without one")


def require_weights(module: nn.Module) -> None:
    """Refuse a module whose weights do not exist yet (lazy layers) or have no numbers (``meta``).

    Raises:
        InvalidArgument: naming the first such tensor.
    """
    for name, tensor in itertools.chain(module.named_parameters(), module.named_buffers()):
        if is_lazy(tensor):
            raise InvalidArgument("module", "have weights: run it once on some inputs, which makes lazy layers", name)
        if tensor.is_meta:
            raise InvalidArgument("module", "have numbers as weights: load them (to_empty, load_state_dict)", name)


def dtype_of(module: nn.Module) -> torch.dtype:
    """The dtype of the inputs that a module takes: that of its first floating point tensor, float32 without one."""
    tensors = itertools.chain(module.parameters(), module.buffers())
    return next((tensor.dtype for tensor in tensors if tensor.is_floating_point()), torch.float32)


def misfit(module: nn.Module, shape: tuple[int, ...], data: str = "the data") -> InvalidArgument | None:
    """Why a module does not run on inputs of a shape, by trying it on two zeros; None if it gives a tensor.

    Args:
        module: left as it was: its mode, and torch's random state.
        shape: of one input, without batch.
        data: what the inputs are, in words.
    """
    try:
        require_weights(module)
    except InvalidArgument as error:
        return error
    module = getattr(module, "_orig_mod", module)  # a compiled module need not be compiled for this
    first = next(iter(module.parameters()), torch.empty(0))
    inputs = torch.zeros(2, *shape, dtype=dtype_of(module), device=first.device)
    entered: list[tuple[str, nn.Module, Tensor]] = []
    try:
        with _undisturbed(module, entered):
            outputs: object = module(inputs)
    except Exception as error:  # a user's forward may raise anything
        return _explained(entered, inputs, shape, data, error)
    if isinstance(outputs, Tensor):
        return None
    kind = type(outputs).__name__
    return InvalidArgument("module", "return one tensor (wrap it so that it does)", f"{kind} from its forward")


def _explained(
    entered: list[tuple[str, nn.Module, Tensor]],
    inputs: Tensor,
    shape: tuple[int, ...],
    data: str,
    error: Exception,
) -> InvalidArgument:
    """The error as one line; a layer of the wrong width is told in numbers."""
    name, layer, x = entered[-1] if entered else ("", None, inputs)
    wants, axis = _width(layer)
    has = x.shape[axis] if x.ndim > abs(axis) else None
    if wants is not None and has != wants:
        unit = ("feature" if axis == -1 else "channel") + ("s" if wants != 1 else "")
        if x.shape == inputs.shape:
            way_out = f"Give its first layer {has} inputs, or take other data" if axis == -1 else _reshaped(shape)
            return Misfit("module", f"The module takes {wants} {unit}, {data} has {_count(x, axis)}", way_out)
        fact = f"Layer `{name}` of the module takes {wants} {unit}, and gets {_count(x, axis)} from {data}"
        return Misfit("module", fact, f"The module gets inputs of shape (batch, {', '.join(map(str, shape))})")
    where = f" (in layer `{name}`)" if name else ""
    fact = f"The module does not run on {data} of shape (batch, {', '.join(map(str, shape))}){where}: "
    return Misfit("module", fact + kind_and_line(error).rstrip("."), _reshaped(shape))


def _reshaped(shape: tuple[int, ...]) -> str:
    flat = "; one that reads images starts with torch.nn.Unflatten(1, input_shape)" if len(shape) == 1 else ""
    return f"Let it take inputs of shape (batch, {', '.join(map(str, shape))}){flat}"


def _width(layer: nn.Module | None) -> tuple[int | None, int]:
    """How many inputs a layer takes, and along which axis."""
    features, channels = getattr(layer, "in_features", None), getattr(layer, "in_channels", None)
    if isinstance(features, int):
        return features, -1
    return (channels, 1) if isinstance(channels, int) else (None, -1)


def _count(x: Tensor, axis: int) -> str:
    return str(x.shape[axis]) if x.ndim > 2 or axis == -1 else f"flat rows of {x.shape[-1]}"


@contextmanager
def _undisturbed(module: nn.Module, entered: list[tuple[str, nn.Module, Tensor]]) -> Generator[None]:
    """Run a module in eval mode, noting the layers that are entered; everything is as before afterwards."""
    handles: list[Any] = []
    modes = {layer: layer.training for layer in module.modules()}
    try:
        for name, layer in cast(Any, module).named_modules():
            if not list(layer.children()):
                handles.append(layer.register_forward_pre_hook(partial(_note, entered, name)))
            layer.training = False
        with torch.no_grad(), cast(Any, torch.random).fork_rng():
            yield
    finally:
        for layer, mode in modes.items():
            layer.training = mode
        for handle in handles:
            handle.remove()


def _note(entered: list[tuple[str, nn.Module, Tensor]], name: str, layer: nn.Module, args: tuple[object, ...]) -> None:
    if args and isinstance(args[0], Tensor):
        entered.append((name, layer, args[0]))


__all__ = ["dtype_of", "misfit", "require_fit", "require_parameters", "require_weights"]
