"""What moves, repeats and drops coordinates, or puts constants beside them: torch says what goes where.

The operation is run on a batch of three inputs that hold the numbers of their coordinates, and on zeros: what differs
is a copy of the coordinate whose number it is, and the rest are constants. A third run, at other numbers, must agree.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from lipbridge.frontend.builder import FIXED, Curve, GraphBuilder
from lipbridge.frontend.copies import copied
from lipbridge.frontend.diagonal import diagonal

#: Inputs of the batch that an operation is run on.
BATCH = 3
#: Coordinates of what an operation may make.
LARGEST = 2**26


def run_on_numbers(
    builder: GraphBuilder, given: Sequence[Any], operation: Callable[[list[Tensor]], Tensor], shape: tuple[int, ...]
) -> Curve:
    """An operation on values as copies of coordinates, and constants that are added.

    Args:
        builder: of the network at hand.
        given: the values.
        operation: what it does to batches of three of them.
        shape: of what it makes, without batch.

    Raises:
        UnsupportedOperation: if it works along the batch, or is no such operation.
    """
    values = [builder.curve(value) for value in given]
    sizes = [builder.shape_of(value) for value in values]
    total = sum(math.prod(size) for size in sizes)
    if max(total, math.prod(shape)) > LARGEST:
        raise builder.unsupported(f"It makes {math.prod(shape)} numbers of {total}, at most {LARGEST} are read.")

    def run(rows: Tensor) -> Tensor:
        """The result, flattened, for inputs ``(3, total)``."""
        parts = torch.split(rows, [math.prod(size) for size in sizes], 1)
        inputs = [part.reshape(BATCH, *size) for part, size in zip(parts, sizes, strict=True)]
        return operation(inputs).reshape(BATCH, -1)

    numbers = torch.arange(BATCH * total, dtype=torch.float64, device=builder.device).reshape(BATCH, total)
    fixed, found = run(torch.zeros_like(numbers)), run(numbers + 1.0)
    copies = found != fixed
    place = torch.where(copies, found - 1.0, -1.0)
    if not bool(fixed.isfinite().all()):
        raise builder.unsupported("It puts infinite numbers beside the values.")
    if not bool((copies == copies[:1]).all() & (fixed == fixed[:1]).all() & (place == place.round()).all()):
        raise builder.unsupported("It works along the batch, or mixes coordinates.")
    index = place[0].to(torch.int64)
    # Seen once more at other numbers, in another order and differently in each input.
    other = 1.0 + numbers.flip(1).square()
    chosen = torch.nn.functional.pad(other, (0, 1))[:, index.clamp(-1, total)] if total else other
    if int(index.max()) >= total or not torch.equal(run(other), torch.where(copies, chosen, fixed)):
        raise builder.unsupported("It works along the batch, or mixes coordinates.")
    made = copied(builder, values, index, shape)
    return diagonal(builder, made, None, fixed[:1].reshape(1, *shape), shape, FIXED) if bool(fixed.any()) else made


__all__ = ["BATCH", "LARGEST", "run_on_numbers"]
