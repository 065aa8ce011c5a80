"""Capture: a torch module becomes a Graph, through ``torch.export``.

The exported program is read operation by operation (:mod:`lipbridge.frontend.builder`). Scalar operations on one source
(scaling, shifting, functions of the registry, sums and concatenations of them) are collected as a *curve* and become
one ``Elementwise`` node, so a joint polyactivation is recognised whether it comes from a module of ours or was written
out by hand. Whatever is not understood raises :class:`UnsupportedOperation` with the layer's name.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, cast

import torch
from torch import Tensor, fx, nn
from torch.nn.parameter import is_lazy

from lipbridge.errors import InvalidArgument, UnsupportedOperation

# The modules of handlers register themselves.
from lipbridge.frontend.aten import (
    axes,
    contractions,
    extremes,
    joining,
    layers,
    moves,
    normalisation,
    pooling,
    refusals,
    scalars,
    shapes,
)
from lipbridge.frontend.check import check_reading
from lipbridge.frontend.export import export, unwrapped
from lipbridge.frontend.module_state import as_it_was
from lipbridge.frontend.program import ProgramReader, Reading
from lipbridge.graph.graph import Graph
from lipbridge.layers.layers import Sinusoidal

_HANDLED_IN = (axes, contractions, extremes, joining, layers, moves, normalisation, pooling, refusals, scalars, shapes)


def capture(module: nn.Module, input_shape: Sequence[int] | None = None, *, name: str | None = None) -> Graph:
    """Read a torch module as a Graph of the real-number function that its weights define.

    The module is read in eval mode and left as it was: modes (by its own ``train``), weights, buffers, attributes,
    hooks, gradients and random state. Weights are copied to float64 on the device where they are.

    The batch is a symbol: what reads its size or works along it is refused. Then the capture checks itself, see
    :func:`check_capture`; only weights on the meta device are not checked.

    Args:
        module: any feed-forward module made of dense layers, convolutions, activations of the registry (as modules,
            functions, or written out), pooling, sorting, normalisation, softmax, reshapes, sums and joins; dropout and
            identity vanish. DataParallel, ``torch.compile`` and ``torch.export``'s programs are read through.
        input_shape: shape of one input without batch; read off a ``Linear`` or ``Unflatten`` at the start if not given.
        name: name of the Graph, the class name if not given.

    Raises:
        UnsupportedOperation: naming the layer and the operation that is outside the Graph's nodes, or at which the
            Graph and the module part.
        InvalidArgument: if the input's shape is needed and cannot be read off.

    Factors that a layer computes from its numbers (BatchNorm's scale, quotients, the shares of an average) are rounded
    away from zero by a few units in the last place, so that the Graph's trivial bound is one of the module's real
    function too. All other factors are exact.

    Law: ``capture(module)(x)`` equals ``module.double()(x)`` up to rounding.
    """
    return read_module(module, input_shape, name).graph


def check_capture(module: nn.Module, input_shape: Sequence[int] | None = None) -> Graph:
    """Capture ``module`` and compare module and Graph anew: what every :func:`capture` does at its end, by hand.

    Both are evaluated at random points of scales 1e-3 to 1e3: in float64 the Graph against the exported program, in
    the module's dtype the module against the program, for a batch of one, of three and of another size, in another
    order, alone and beside others, and twice.

    Returns:
        The Graph.

    Raises:
        UnsupportedOperation: naming the first operation at which they part, or how the module differs.
    """
    return capture(module, input_shape)


def read_module(
    module: Any, input_shape: Sequence[int] | None = None, name: str | None = None, *, checked: bool = True
) -> Reading:
    """The Graph with the recipes of its weights, see :class:`lipbridge.frontend.program.Reading`."""
    network = unwrapped(module)
    _require_dense(network)
    baked = _baked_input(network)
    shape = _shape_of(network, input_shape, baked)
    # A program that was exported for one size of the batch holds for that size alone.
    batch = int(baked[0]) if baked is not None and isinstance(baked[0], int) else None
    with as_it_was(network):
        program = export(network, shape, batch)
        reading = ProgramReader(network, program, shape, tensor_of(network)).read(name or type(network).__name__)
        if checked and not any(t.is_meta for t in (*network.parameters(), *network.buffers())):
            check_reading(network, reading, shape)
    return reading


def _require_dense(module: nn.Module) -> None:
    """All tensors of the module are there, and hold a number for each index."""
    for name, tensor in (*module.named_parameters(), *module.named_buffers()):
        if is_lazy(tensor):
            raise InvalidArgument("module", "have run once, so that its lazy layers have weights", name)
        if tensor.layout is not torch.strided or tensor.is_quantized:
            kind = "quantized" if tensor.is_quantized else str(tensor.layout).removeprefix("torch.")
            hint = f"Store {name} as an ordinary tensor: {'dequantize' if tensor.is_quantized else 'to_dense'}()."
            raise UnsupportedOperation(name.rpartition(".")[0] or "(top level)", f"a tensor that is {kind}", hint)


def tensor_of(module: nn.Module) -> Callable[[str], Tensor]:
    """A function that gives the module's tensor of a dotted name, as it is when it is called."""

    def find(name: str) -> Tensor:
        path, _, own = name.rpartition(".")
        return cast(Tensor, getattr(module.get_submodule(path), own))

    return find


def owner_of(module: nn.Module, name: str) -> nn.Module | None:
    """The layer that stores the module's parameter of a dotted name; None if what has that name is no parameter."""
    path, _, own = name.rpartition(".")
    owner = module.get_submodule(path)
    return owner if own in dict(owner.named_parameters(recurse=False)) else None


def _baked_input(module: nn.Module) -> Any:
    """The shape, with batch, of the input of a program that torch exported; None for other modules."""
    if not isinstance(module, fx.GraphModule):
        return None
    values = [node.meta.get("val") for node in module.graph.nodes if node.op == "placeholder"]
    return values[0].shape if len(values) == 1 and isinstance(values[0], Tensor) and values[0].ndim else None


def _shape_of(module: nn.Module, given: Sequence[int] | None, baked: Any) -> tuple[int, ...]:
    if given is None:
        return _with_an_axis(tuple(int(n) for n in baked[1:])) if baked is not None else _input_shape(module)
    try:
        shape = tuple(int(n) for n in given)
    except (TypeError, ValueError):
        raise InvalidArgument(
            "input_shape", "be the shape of one input, without batch, e.g. (1, 28, 28)", given
        ) from None
    if any(n < 1 for n in shape) or any(n != m for n, m in zip(shape, given, strict=True)):
        raise InvalidArgument("input_shape", "hold lengths of at least 1", given)
    return _with_an_axis(shape)


def _with_an_axis(shape: tuple[int, ...]) -> tuple[int, ...]:
    if not shape:
        raise InvalidArgument(
            "input_shape",
            "have an axis beside the batch; for one number an input wrap the module, so that it takes x of shape "
            "(batch, 1) and gives x[:, 0] on",
            shape,
        )
    return shape


def _input_shape(module: nn.Module) -> tuple[int, ...]:
    for layer in module.modules():
        if isinstance(layer, nn.Linear | Sinusoidal):
            return (layer.in_features,)
        if isinstance(layer, nn.Unflatten) and layer.dim == 1:
            return (math.prod(layer.unflattened_size),)
        if isinstance(layer, nn.Conv1d | nn.Conv2d | nn.Conv3d):
            break
    raise InvalidArgument("input_shape", "be given, since the module does not start with a Linear layer", None)
