"""Which handler reads which operation of ATen."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from lipbridge.frontend.builder import GraphBuilder

#: The arguments of an operation by their names in its schema.
Arguments = Mapping[str, Any]
#: Given the builder, the arguments and the shape of the result without batch, a handler gives the result.
Handler = Callable[[GraphBuilder, Arguments, tuple[int, ...]], Any]
HANDLERS: dict[str, Handler] = {}
#: Handlers that refuse whatever they are given, with the reason why no layer can do what the operation does.
NEVER: set[Handler] = set()


def handles(*names: str) -> Callable[[Handler], Handler]:
    """Register a handler for operations of these names."""

    def add(handler: Handler) -> Handler:
        for name in names:
            HANDLERS[name] = handler
        return handler

    return add


def axis_of(builder: GraphBuilder, dim: int, rank: int) -> int:
    """An axis of the shape without batch."""
    axis = int(dim) % (rank + 1) - 1
    if axis < 0:
        raise builder.unsupported("It works along the batch.")
    return axis


def plain_name(builder: GraphBuilder) -> str:
    """The name of the operation at hand, without its overload."""
    return builder.operation.split(".")[0]
