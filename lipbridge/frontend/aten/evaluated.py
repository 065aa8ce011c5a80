"""Running the operation at hand on values of our own, so that torch itself says what it does."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from lipbridge.errors import first_line
from lipbridge.frontend.aten.registry import Arguments
from lipbridge.frontend.builder import Curve, Deferred, GraphBuilder
from lipbridge.frontend.export import BatchSize


def flows_of(a: Arguments) -> list[Any]:
    """The arguments that depend on the network's input, each once, in their order."""
    leaves = pytree.tree_leaves(dict(a), is_leaf=_is_flow)
    return list(dict.fromkeys(leaf for leaf in leaves if _is_flow(leaf)))


def evaluated(builder: GraphBuilder, a: Arguments, values: Mapping[Any, Tensor], *, rows: bool = False) -> Tensor:
    """The result of the operation at hand with ``values`` ``(batch, *shape)`` float64 for each of :func:`flows_of`.

    With ``rows`` each constant that is a row for one input, of length one along its first axis, is repeated for all.

    Raises:
        UnsupportedOperation: if torch cannot compute it.
    """
    name, _, overload = builder.operation.partition(".")
    target = getattr(getattr(torch.ops.aten, name), overload or "default")
    size = len(next(iter(values.values())))

    def leaf(value: Any) -> Any:
        if _is_flow(value):
            return values[value]
        if isinstance(value, BatchSize):
            return size
        if rows and isinstance(value, Tensor) and value.ndim and len(value) == 1:
            return value.expand(size, *value.shape[1:])
        if isinstance(value, torch.dtype) and value.is_floating_point:
            return torch.float64
        return value

    given = pytree.tree_map(leaf, dict(a), is_leaf=_is_flow)
    schema = target._schema.arguments
    args = [given[argument.name] for argument in schema if not argument.kwarg_only]
    options = {argument.name: given[argument.name] for argument in schema if argument.kwarg_only}
    try:
        with torch.no_grad():
            return cast(Tensor, target(*args, **options))
    except (RuntimeError, IndexError, NotImplementedError, ValueError) as error:
        line = first_line(error, 120)
        raise builder.unsupported(f"It was not understood in float64 ({line}).") from error


def _is_flow(value: Any) -> bool:
    return isinstance(value, Curve | Deferred)


__all__ = ["evaluated", "flows_of"]
