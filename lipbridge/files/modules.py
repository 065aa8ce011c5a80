"""Modules as files: a whitelist of layers, each with the checks of its arguments."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn

from lipbridge import checks
from lipbridge.activations.modules import CReLU, IdentityAbs, IdentityAbsL2, Sin2Pair, SinCos
from lipbridge.activations.registry import activation, activation_module, activation_names
from lipbridge.errors import LipbridgeError
from lipbridge.files.container import FLOATS, PARSING, model_file, named_faults, open_container, write_container
from lipbridge.files.graphs import save_graph
from lipbridge.files.header import (
    MAX_DEPTH,
    MAX_LAYERS,
    MAX_WIDTH,
    Check,
    Fault,
    as_axis,
    as_flag,
    as_integer,
    as_list,
    as_object,
    as_positive,
    as_probability,
    as_real,
    as_text,
    as_width,
)
from lipbridge.frontend.capture import capture
from lipbridge.graph.graph import Graph
from lipbridge.layers.layers import GroupSort as GroupSortLayer
from lipbridge.layers.layers import MaxMin, Sinusoidal, SinusoidalConv1d, SinusoidalConv2d

#: What it holds beside the layers that it describes.
HOLDS = "and the Graph of any network that lipbridge.capture reads"
#: What a module may hold; integers are the counters of BatchNorm.
_STATE: Mapping[str, torch.dtype] = {**FLOATS, "I64": torch.int64}


def save(
    module: nn.Module,
    path: str | os.PathLike[str],
    extra: Mapping[str, object] | None = None,
    *,
    input_shape: Sequence[int] | None = None,
) -> Path:
    """Write a module to a model file, atomically; returns the file's path.

    A module of layers that a model file cannot describe is captured, and its Graph written instead: the command line
    takes that like any model, and :func:`lipbridge.load_graph` reads it.

    Args:
        module: ``Linear``, ``Conv1d``, ``Conv2d``, sinusoidal layers, ``GroupSort``, ``MaxMin``, a registered
            activation, ``BatchNorm``, pooling, ``Flatten``, ``Unflatten``, ``Identity`` or ``Dropout``, or an
            ``nn.Sequential`` of these (also nested). Weights float64, float32, float16 or bfloat16, of any device. Or
            whatever :func:`lipbridge.capture` reads.
        path: a file, or an existing folder, which gets ``model.safetensors``.
        extra: anything JSON can hold, kept in the header (accuracy, seed, ...).
        input_shape: of one input, for a module that is captured and does not say it itself.

    Raises:
        ModelFileError: naming the layer that a model file cannot hold and why the module is not captured either, or
            weights that are NaN or infinite, or why the file cannot be written. A file that was there stays as it was.

    Law: ``load(save(module, path))`` has an equal ``state_dict``, with equal dtypes, and equal layers, if
    :func:`can_save` holds.
    """
    file = model_file(path)
    checks.instance(module, nn.Module, "module", "be a torch.nn.Module")
    with named_faults(file, "write"):
        try:
            described = _described(module)
        except (Fault, *PARSING) as fault:
            graph = _captured(module, input_shape, fault)
        else:
            body = {"module": described, "training": module.training}
            return write_container(file, "module", body, dict(module.state_dict()), extra, _STATE.values())
    return save_graph(graph, file, extra)


def _captured(module: nn.Module, input_shape: Sequence[int] | None, fault: Exception) -> Graph:
    try:
        return capture(module, input_shape)
    except LipbridgeError as error:
        way_out = fault.way_out if isinstance(fault, Fault) else HOLDS
        raise Fault(f"{fault}, and its Graph cannot be kept instead ({str(error).rstrip('.')})", way_out) from error


def can_save(module: nn.Module) -> bool:
    """Whether a model file can hold the architecture of a module, so that :func:`save` and :func:`load` work for it."""
    try:
        _described(module)
    except (Fault, *PARSING):
        return False
    return True


def load(path: str | os.PathLike[str]) -> nn.Module:
    """Read a model file as a torch module again, on the CPU, in the mode (train or eval) that it was saved in.

    Args:
        path: a file that :func:`save` wrote, or a folder that holds ``model.safetensors``.

    Raises:
        ModelFileError: for a file that is missing, damaged, hostile, or of an unknown architecture.
    """
    file = model_file(path)
    with named_faults(file), open_container(file, "module") as opened:
        body = as_object(opened.body, "module", "training")
        module = _decode_module(body["module"])
        expected = {name: (None, shape) for name, shape in _shapes(module).items()}
        module.load_state_dict(opened.tensors(expected, _STATE), assign=True)
        return module.train(as_flag(body["training"]))


def _lengths(value: Any) -> Any:
    """A length along space, or one for each axis; 0 stands for no padding."""
    if isinstance(value, list | tuple):
        items = cast(list[Any], value)
        if not 1 <= len(items) <= 3:
            raise Fault("its header lacks one to three lengths")
        return tuple(as_integer(item, 0, MAX_WIDTH) for item in items)
    return as_integer(value, 0, MAX_WIDTH)


def _sizes(value: Any) -> tuple[int, ...]:
    items = cast(Any, list(cast(tuple[Any, ...], value)) if isinstance(value, tuple) else value)
    return tuple(as_width(item) for item in as_list(items, 8))


def _padding(value: Any) -> Any:
    return as_text(value) if isinstance(value, str) else _lengths(value)


_CONV: Mapping[str, Check] = {
    "in_channels": as_width,
    "out_channels": as_width,
    "kernel_size": _lengths,
    "stride": _lengths,
    "padding": _padding,
    "dilation": _lengths,
    "groups": as_width,
    "padding_mode": as_text,
}
_ONE: Mapping[str, Check] = dict.fromkeys(("kernel_size", "stride", "padding", "dilation"), as_integer)
_POOL: Mapping[str, Check] = dict.fromkeys(("kernel_size", "stride", "padding"), _lengths)
_NORM: Mapping[str, Check] = {
    "num_features": as_width,
    "eps": as_positive,
    "affine": as_flag,
    "track_running_stats": as_flag,
}
#: The layers other than activations and Sequential: class, and its arguments with their checks.
_LAYERS: Mapping[str, tuple[type[nn.Module], Mapping[str, Check]]] = {
    "Linear": (nn.Linear, {"in_features": as_width, "out_features": as_width, "bias": as_flag}),
    "Sinusoidal": (Sinusoidal, {"in_features": as_width, "out_features": as_width, "scale": as_real}),
    "Conv1d": (nn.Conv1d, {**_CONV, "bias": as_flag}),
    "Conv2d": (nn.Conv2d, {**_CONV, "bias": as_flag}),
    "SinusoidalConv1d": (SinusoidalConv1d, {**_CONV, **_ONE, "scale": as_real}),
    "SinusoidalConv2d": (SinusoidalConv2d, {**_CONV, **_ONE, "scale": as_real}),
    "GroupSort": (GroupSortLayer, {"group": as_width}),
    "MaxMin": (MaxMin, {}),
    "MaxPool2d": (nn.MaxPool2d, {**_POOL, "dilation": _lengths, "ceil_mode": as_flag}),
    "AvgPool2d": (nn.AvgPool2d, {**_POOL, "ceil_mode": as_flag, "count_include_pad": as_flag}),
    "AdaptiveAvgPool2d": (nn.AdaptiveAvgPool2d, {"output_size": _lengths}),
    "BatchNorm1d": (nn.BatchNorm1d, _NORM),
    "BatchNorm2d": (nn.BatchNorm2d, _NORM),
    "Flatten": (nn.Flatten, {"start_dim": as_axis, "end_dim": as_axis}),
    "Unflatten": (nn.Unflatten, {"dim": as_axis, "unflattened_size": _sizes}),
    "Identity": (nn.Identity, {}),
    "Dropout": (nn.Dropout, {"p": as_probability}),
}
#: Arguments of torch's activation modules beyond the parameters of the registry's row.
_FURTHER: Mapping[type[nn.Module], Mapping[str, Check]] = {
    nn.Softplus: {"beta": as_positive, "threshold": as_positive},
    **{kind: {"dim": as_axis} for kind in (CReLU, IdentityAbs, IdentityAbsL2, Sin2Pair, SinCos)},
}


def _arguments(name: str, kind: type[nn.Module]) -> Mapping[str, Check]:
    return {**dict.fromkeys(activation(name).parameters, as_real), **_FURTHER.get(kind, {})}


def _activation_of(layer: nn.Module) -> str | None:
    """The registered name of an activation module (their default forms are cheap to make: they have no weights)."""
    return next((name for name in activation_names() if type(activation_module(name)) is type(layer)), None)


def _described(module: nn.Module) -> dict[str, Any]:
    """The specification of a module, from which one with the same tensors can be made."""
    spec = _encode_module(module, "")
    found = {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}
    if found != _shapes(_decode_module(spec)):
        raise Fault(
            "the module has tensors that its layers do not explain (a parametrisation or a hook?)",
            "Remove them first, e.g. with torch.nn.utils.parametrize.remove_parametrizations",
        )
    return spec


def _encode_module(module: nn.Module, path: str, depth: int = 0) -> dict[str, Any]:
    kind = type(module).__name__
    if type(module) is nn.Sequential:
        if depth >= MAX_DEPTH:
            raise Fault(f"layer {path!r} is nested more than {MAX_DEPTH} deep", "Flatten the network first")
        # named_children would leave out the second place of a module that stands in two
        inner = cast(Mapping[str, nn.Module], cast(Any, module)._modules)
        layers = [
            [name, _encode_module(layer, f"{path}.{name}".lstrip("."), depth + 1)] for name, layer in inner.items()
        ]
        return {"type": "Sequential", "layers": layers}
    row = _LAYERS.get(kind)
    if row is not None and type(module) is row[0]:
        values = {name: getattr(module, name) for name in row[1]}
        if "bias" in values:
            values["bias"] = values["bias"] is not None
        return {"type": kind, "arguments": values}
    name = _activation_of(module)
    if name is None or getattr(module, "approximate", "none") != "none":
        raise Fault(
            f"layer {path or '(top level)'!r} of type {kind} cannot be described in it",
            f"A model file holds Sequential, {', '.join(_LAYERS)} and registered activations ({_names()}), {HOLDS}",
        )
    values = {key: getattr(module, key) for key in _arguments(name, type(module))}
    values = {key: value if key == "dim" else float(value) for key, value in values.items()}
    return {"type": name, "arguments": values}


def _names() -> str:
    return ", ".join(activation_names())


def _decode_module(spec: Any, depth: int = 0, budget: list[int] | None = None) -> nn.Module:
    """The module of a specification, on the meta device."""
    budget = [MAX_LAYERS] if budget is None else budget
    budget[0] -= 1
    if depth > MAX_DEPTH or budget[0] < 0:
        raise Fault(f"its network has more than {MAX_LAYERS} layers or {MAX_DEPTH} levels")
    kind = as_text(as_object(spec).get("type"))
    if kind == "Sequential":
        module = nn.Sequential()
        for item in as_list(as_object(spec, "type", "layers")["layers"]):
            name, inner = as_list(item) if len(as_list(item)) == 2 else (None, None)
            name = as_text(name)
            if not name or "." in name or hasattr(module, name):
                raise Fault(f"its network has a layer with the name {name!r}, which is taken or not allowed")
            module.add_module(name, _decode_module(inner, depth + 1, budget))
        return module
    row = _LAYERS.get(kind)
    if row is None and kind not in activation_names():
        raise Fault(
            f"its layer type {kind[:40]!r} is unknown", f"Known are {', '.join(_LAYERS)}, Sequential, {_names()}"
        )
    checks = row[1] if row is not None else _arguments(kind, type(activation_module(kind)))
    values = as_object(as_object(spec, "type", "arguments")["arguments"])
    values = {"dim": -1, **values} if "dim" in checks else values  # files from before there was a choice
    if set(values) != set(checks):
        raise Fault(f"its layer {kind} has arguments other than {', '.join(checks) or 'none'}")
    arguments = {name: check(values[name]) for name, check in checks.items()}
    with torch.device("meta"):
        return row[0](**arguments) if row is not None else activation_module(kind, **arguments)


def _shapes(module: nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}


__all__ = ["Check", "can_save", "load", "save"]
