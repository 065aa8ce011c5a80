"""Direct calls of the overloads of torch's core aten opset, with arguments drawn from their schemas."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from tests.support import fuzz_draft
from tests.support.fuzz_draft import Draft, Unfit, dim, dims, fill, order
from tests.support.fuzz_templates import statements

fuzz_draft.FIELDS["reduce"] = lambda d, x: d.rng.choice(("sum", "prod", "mean", "amax", "amin"))


def _overloads() -> dict[str, Any]:
    found: dict[str, Any] = {}
    for packet in dir(torch.ops.aten):
        operation = getattr(torch.ops.aten, packet)
        for name in getattr(operation, "overloads", list)():
            overload = getattr(operation, name)
            if torch.Tag.core in overload.tags:
                found[packet if name == "default" else f"{packet}.{name}"] = overload
    return found


_FOUND = _overloads()
#: The core opset: ``aten.add.Tensor`` and so on.
OVERLOADS = tuple(f"aten.{name}" for name in sorted(_FOUND))

#: Overloads whose arguments must agree with each other.
_TEMPLATES: dict[str, list[str]] = {}
for _name, _template in statements("aten"):
    assert _name in _FOUND, _name
    _TEMPLATES.setdefault(_name, []).append(_template)


def aten_call(draft: Draft, x: str, overload: str) -> str:
    """A call of ``overload`` on ``x``."""
    name = overload.removeprefix("aten.")
    if name in _TEMPLATES:
        return fill(draft.rng.choice(_TEMPLATES[name]), draft, x)
    schema = _FOUND[name]._schema
    tensors = [a.name for a in schema.arguments if str(a.type) == "Tensor"]
    main = draft.rng.choice(tensors[:1] * 4 + tensors) if tensors else None
    written: list[str] = []
    for argument in schema.arguments:
        kind = str(argument.type)
        optional = argument.has_default_value()
        if argument.name in ("layout", "device", "pin_memory", "memory_format", "non_blocking", "implicit"):
            continue
        if argument.kwarg_only and optional and draft.rng.random() < 0.6:
            continue
        value = x if argument.name == main else _argument(draft, x, argument.name, kind)
        written.append(f"{argument.name}={value}" if argument.kwarg_only else value)
        if not argument.kwarg_only and optional and draft.rng.random() < 0.2:
            written.pop()
            break
    return f"aten.{name if '.' in name else name + '.default'}({', '.join(written)})"


def _argument(draft: Draft, x: str, name: str, kind: str) -> str:
    rng = draft.rng
    if kind in ("Tensor", "Optional[Tensor]"):
        if kind.startswith("Optional") and rng.random() < 0.5:
            return "None"
        return fill(rng.choice(("{C}", "{C}", "{z}", "{x}")), draft, x)
    if kind == "List[Tensor]":
        return fill(rng.choice(("[{x}, {z}]", "[{x}, {x}]", "[{x}, torch.ones_like({x})]")), draft, x)
    if name == "half_to_float":
        return "False"
    make: dict[str, Callable[[], Any]] = {
        "number": lambda: rng.choice(fuzz_draft.FLOATS),
        "Optional[number]": lambda: rng.choice((None, *fuzz_draft.FLOATS)),
        "float": lambda: rng.choice(fuzz_draft.POSITIVE),
        "bool": lambda: rng.random() < 0.5,
        "Optional[bool]": lambda: rng.choice((None, False, True)),
        "Optional[str]": lambda: repr(rng.choice((None, "floor", "trunc"))),
        "str": lambda: repr(rng.choice(("none", "tanh"))),
        "Optional[int]": lambda: rng.choice((None, rng.randint(-3, 3))),
    }
    if name == "dtype":
        return rng.choice(("None", "torch.float32", "torch.float64", "torch.float16", "torch.int64"))
    if name in ("dim", "dims", "dim1", "dim2", "dim0"):
        if "List" in kind:
            return str(order(draft, x) if name == "dims" and rng.random() < 0.5 else fuzz_draft.any_dims(draft, x))
        return str(fuzz_draft.any_dim(draft, x))
    if kind == "int":
        return str(rng.choice((rng.randint(-3, 3), rng.randint(0, 3), dim(draft, x))))
    if "List" in kind:
        rank = max(1, draft.value(x).ndim - 2)
        if name in ("pad",):
            return str(fuzz_draft.widths(draft, x))
        if rng.random() < 0.1:
            return str(dims(draft, x))
        return str([rng.randint(0 if name == "padding" else 1, 3) for _ in range(rng.choice((1, rank, rank, rank)))])
    if kind not in make:
        raise Unfit(f"no way to draw {kind}")
    return str(make[kind]())


__all__ = ["OVERLOADS", "aten_call"]
