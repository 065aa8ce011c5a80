"""Values of an exported program that are none yet: repeated, refused, ahead; and arguments by name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, fx

from lipbridge.errors import UnsupportedOperation
from lipbridge.frontend.builder import Curve, Deferred, GraphBuilder
from lipbridge.frontend.computed.tensor import known
from lipbridge.frontend.export import operation_name

#: Operations that may be told the size of the batch, since the shape of their result says what they do with it.
SHAPED = frozenset(
    [
        "view",
        "reshape",
        "_unsafe_view",
        "unflatten",
        "expand",
        "expand_copy",
        "view_copy",
        "zeros",
        "ones",
        "full",
        "new_zeros",
        "new_ones",
        "new_full",
        "zeros_like",
        "ones_like",
        "full_like",
        "repeat",
        "broadcast_to",
    ]
)


OF_ONE_SIZE = frozenset(["zeros_like", "ones_like", "full_like", "new_zeros", "new_ones", "new_full"])


#: The modules of functions that only compute numbers.
PYTHON = frozenset(["_operator", "operator", "math", "builtins", "torch"])


#: Operations that read nothing but the shape of their second value.
LIKE = frozenset(["expand_as", "view_as", "reshape_as"])


#: Operations that may run over an axis before the batch.
OVER_AXES = frozenset(["mean", "sum", "amax", "amin", "max", "min"])


@dataclass(frozen=True, eq=False)
class Repeated:
    """A constant of as many equal rows as the batch has: its value for a batch of one, and of three."""

    one: Tensor
    three: Tensor

    def row(self, builder: GraphBuilder) -> Tensor:
        """The value for a batch of one.

        Raises:
            UnsupportedOperation: if rows differ.
        """
        one, three = self.one, self.three
        fits = one.ndim == three.ndim and three.shape[:1] == (3,) and one.shape[:1] == (1,)
        if not fits or not (one.is_meta or torch.equal(known(one).expand_as(three), known(three))):
            raise builder.unsupported("It depends on the size of the batch.")
        return one


@dataclass(frozen=True, eq=False)
class Refused(Deferred):
    """What came of an operation that moves or mixes the batch: refused for that, if no reason comes that says more."""

    error: UnsupportedOperation

    def materialise(self, builder: GraphBuilder) -> Curve:
        """Raises the refusal."""
        raise self.error


@dataclass(frozen=True, eq=False)
class Ahead(Refused):
    """Values stacked along a new axis before the batch: read where they are averaged, summed or compared over it."""

    values: Sequence[Any]


def named_arguments(target: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of an operation of torch by their names in its schema, defaults filled in."""
    schema = target._schema.arguments
    given = dict(zip([argument.name for argument in schema], args, strict=False))
    return {argument.name: argument.default_value for argument in schema} | given | dict(kwargs)


def first_of(result: Any) -> Any:
    """An operation's result, or the first of several."""
    return cast(Sequence[Any], result)[0] if isinstance(result, list | tuple) else result


def is_flow(value: Any) -> bool:
    return isinstance(value, Curve | Deferred) and not isinstance(value, Refused)


def is_value(value: Any) -> bool:
    return isinstance(value, Curve | Deferred | Repeated)


def in_float64(value: Any) -> Any:
    if isinstance(value, Tensor) and value.layout is not torch.strided:
        value = value.to_dense()
    return value.to(torch.float64) if isinstance(value, Tensor) and value.is_floating_point() else value


def is_random(target: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> bool:
    if torch.Tag.nondeterministic_seeded not in getattr(target, "tags", ()):
        return False
    names = [argument.name for argument in target._schema.arguments]
    given = {argument.name: argument.default_value for argument in target._schema.arguments}
    given |= dict(zip(names, args, strict=False)) | dict(kwargs)
    return given.get("train", given.get("training", True)) is not False


def flips_of(node: fx.Node, values: Mapping[fx.Node, Any]) -> bool | None:
    """Whether an operation transposes a matrix (True) or leaves it as it is (False); None if it does something else."""
    if node.op != "call_function" or not node.args or not isinstance(node.args[0], fx.Node):
        return None
    before = values.get(node.args[0])
    name = operation_name(node).split(".")[0]
    if name not in ("t", "numpy_T", "transpose", "permute", "mT", "detach", "alias", "clone", "contiguous"):
        return None
    if not isinstance(before, Tensor) or before.ndim != 2:
        return False if isinstance(before, Tensor) and name in ("detach", "alias", "clone", "contiguous") else None
    index = torch.arange(before.numel()).reshape(before.shape)
    with torch.no_grad():
        after = cast(Any, node.target)(index, *node.args[1:], **node.kwargs)
    if after.shape == index.shape and torch.equal(after, index):
        return False
    return True if after.shape == index.T.shape and torch.equal(after, index.T) else None
