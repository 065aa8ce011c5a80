"""Handlers of operations that are never a layer, see :mod:`lipbridge.frontend.refused`."""

from __future__ import annotations

from lipbridge.frontend.aten.registry import HANDLERS, NEVER, Arguments, Handler
from lipbridge.frontend.builder import GraphBuilder
from lipbridge.frontend.refused import REASONS


def _refusing(reason: str) -> Handler:
    def handler(builder: GraphBuilder, a: Arguments, shape: tuple[int, ...]) -> None:
        raise builder.unsupported(reason)

    return handler


for _reason, _names in REASONS.items():
    _handler = _refusing(_reason)
    NEVER.add(_handler)
    for _name in _names:
        # Some of these are a layer in special cases, which their own handlers know.
        HANDLERS.setdefault(_name, _handler)
