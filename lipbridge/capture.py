"""Capture: a torch module becomes a Graph, through ``torch.export``.

The exported program is read operation by operation (:mod:`lipbridge.capture_reader`). Scalar operations on one source
(scaling, shifting, functions of the registry, sums and concatenations of them) are collected as a *curve* and become
one ``Elementwise`` node, so a joint polyactivation is recognised whether it comes from a module of ours or was written
out by hand. Whatever is not understood raises :class:`UnsupportedOperation` with the layer's name.
"""

from __future__ import annotations

import io
import logging
import math
from collections.abc import Sequence
from contextlib import redirect_stderr, redirect_stdout
from typing import Any, cast

import torch
from torch import nn

# The modules of handlers register themselves.
from lipbridge import capture_layers, capture_normalisation, capture_pooling, capture_scalar, capture_shapes
from lipbridge.capture_reader import Reader
from lipbridge.errors import InvalidArgument, UnsupportedOperation
from lipbridge.graph import Graph
from lipbridge.layers import Sinusoidal

_HANDLED_IN = (capture_layers, capture_normalisation, capture_pooling, capture_scalar, capture_shapes)


def capture(module: nn.Module, input_shape: Sequence[int] | None = None, *, name: str | None = None) -> Graph:
    """Read a torch module as a Graph of the real-number function that its weights define.

    The module is read in eval mode (and left in the mode that it had). Weights are copied to float64 on the device
    where they are.

    Args:
        module: any feed-forward module made of dense layers, convolutions, activations of the registry (as modules,
            functions, or written out), pooling, sorting, normalisation, reshapes, sums and concatenations; dropout and
            identity vanish.
        input_shape: shape of one input without batch; read off a ``Linear`` or ``Unflatten`` at the start if not given.
        name: name of the Graph, the class name if not given.

    Raises:
        UnsupportedOperation: naming the layer and the operation that is outside the Graph's nodes.
        InvalidArgument: if the input's shape is needed and cannot be read off.

    Factors that a layer computes from its numbers (BatchNorm's scale, the shares of an average) are rounded away from
    zero by a few units in the last place, so that the Graph's trivial bound is one of the module's real function too.

    Law: ``capture(module)(x)`` equals ``module.double()(x)`` up to rounding.
    """
    shape = tuple(input_shape) if input_shape is not None else _input_shape(module)
    program = _export(module, shape)
    return Reader(module, program, shape).read(name or type(module).__name__)


def _input_shape(module: nn.Module) -> tuple[int, ...]:
    for layer in module.modules():
        if isinstance(layer, nn.Linear | Sinusoidal):
            return (layer.in_features,)
        if isinstance(layer, nn.Unflatten) and layer.dim == 1:
            return (math.prod(layer.unflattened_size),)
        if isinstance(layer, nn.Conv1d | nn.Conv2d | nn.Conv3d):
            break
    raise InvalidArgument("input_shape", "be given, since the module does not start with a Linear layer", None)


def _export(module: nn.Module, shape: tuple[int, ...]) -> Any:
    first = next(iter(module.parameters()), torch.empty(0))
    example = torch.zeros(2, *shape, dtype=first.dtype, device=first.device)
    modes = {layer: layer.training for layer in module.modules()}
    module.eval()
    # A failed export logs a traceback and prints its graph, beside the error that we raise.
    disabled = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
            program = cast(Any, torch.export.export(module, (example,), strict=False))
        if any(fx.op == "call_function" and _mutates(fx.target) for fx in program.graph.nodes):
            program = program.run_decompositions({})  # in-place operations become functional ones
        return program
    except Exception as error:
        line = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise UnsupportedOperation(type(module).__name__, "torch.export", f"It failed with: {line}") from error
    finally:
        logging.disable(disabled)
        for layer, mode in modes.items():
            layer.training = mode


def _mutates(target: Any) -> bool:
    schema = getattr(target, "_schema", None)
    return schema is not None and bool(schema.is_mutable)
