"""The proved constant of a run for given multipliers."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from lipbridge.errors import NumericalFailure
from lipbridge.lipsdp.by_channel.frequencies import Block
from lipbridge.lipsdp.by_channel.runs import Run
from lipbridge.lipsdp.constraints import Increments
from lipbridge.lipsdp.proof import (
    COVER,
    LARGEST_LIFT,
    at_least_diagonal,
    attempt,
    entry_norm_up,
    gram_of,
    largest_sum,
    times_power_of_two_up,
)
from lipbridge.lipsdp.system import Stage
from lipbridge.rounding.scalars import TINY, UNIT, add_up, mul_up, sqrt_up


def prove_run(run: Run, multipliers: Sequence[Tensor], before: Tensor | None, after: Tensor | None) -> float:
    """A proved upper bound of the run's constant from ``(constraints, units)`` multipliers.

    Args:
        before: factors d before the run, by unit: the constant is that of ``x = y / d``.
        after: factors behind it.

    Raises:
        NumericalFailure: if the multipliers are too far from feasible, or rounding leaves no room.
    """
    writes = run.blocks[-1].writes
    end = torch.ones(len(writes), dtype=torch.float64) if after is None else after[writes].square() * (1 + 4 * UNIT)
    count = len(run.blocks[0].weight)
    stored = [torch.diag(_both(end, run.blocks[-1])) for _ in range(count)]
    joints = zip(run.blocks[:0:-1], run.increments[::-1], list(multipliers)[::-1], strict=True)
    for block, rule, T in joints:
        stored = _prove_stage(block, rule, T, stored)
    entry = run.blocks[0]
    inverse = (
        torch.ones(entry.magnitude.shape[1], dtype=torch.float64)
        if before is None
        else before[entry.reads].reciprocal()
    )
    value = max(_entry_up(entry, inverse, H, index) for index, H in enumerate(stored))
    return times_power_of_two_up(mul_up(value, 1.0 + 2.0 * UNIT), run.exponent)


def _both(values: Tensor, block: Block) -> Tensor:
    """Values of complex coordinates for their real and imaginary parts."""
    return values.repeat(2) if block.weight.is_complex() else values


def _real(matrix: Tensor, components: int = 1) -> Tensor:
    """A complex matrix on real and imaginary parts: rows (part, row), columns (component, part, column)."""
    if not matrix.is_complex():
        return matrix
    parts = matrix.reshape(len(matrix), components, -1)
    top, bottom = torch.stack((parts.real, -parts.imag), 2), torch.stack((parts.imag, parts.real), 2)
    return torch.cat((top.flatten(1), bottom.flatten(1)))


def _real_magnitude(block: Block, components: int = 1) -> Tensor:
    """The magnitudes of real and imaginary parts, which are equal, in the places of :func:`_real`."""
    size = block.magnitude
    return _real(torch.complex(size, size), components).abs() if block.weight.is_complex() else size


def _prove_stage(block: Block, rule: Increments, T: Tensor, stored: list[Tensor]) -> list[Tensor]:
    """Storage matrices of one joint at all frequencies, by one set of multipliers for all."""
    magnitude = _real_magnitude(block, rule.components)
    reads = _both(block.reads, block)
    stages = [_stage_of(block, rule, index, len(reads)) for index in range(len(stored))]
    grams = [gram_of(stage, H, magnitude, block.error) for stage, H in zip(stages, stored, strict=True)]
    if rule.variables:
        for stage, (G, _) in zip(stages, grams, strict=True):
            raised = at_least_diagonal(stage, T[:, reads], G)
            T = torch.stack([row.scatter_reduce(0, reads, own, "amax") for row, own in zip(T, raised, strict=True)])
    lift = 0.0
    while lift < LARGEST_LIFT:
        found: list[Tensor] = []
        shift = 0.0
        for stage, (G, spread) in zip(stages, grams, strict=True):
            storage, shift = attempt(stage, (T * (1.0 + lift))[:, reads], G, spread)
            if storage is None:
                break
            found.append(storage)
        if len(found) == len(stages):
            return found
        lift = max(4.0 * shift, 8.0 * lift)
    raise NumericalFailure("The multipliers of a run of layers are too far from feasible for a proof.")


def _stage_of(block: Block, rule: Increments, index: int, width: int) -> Stage:
    weight = _real(block.weight[index], rule.components)
    return Stage(rule, weight, torch.arange(width), width)


def _entry_up(entry: Block, inverse: Tensor, H: Tensor, index: int) -> float:
    """Upper bound of ``|H^(1/2) W|`` for the true scaled layer at one frequency."""
    inverse = _both(inverse, entry)
    W = _real(entry.weight[index]) * inverse
    size = _real_magnitude(entry) * inverse * COVER
    # |H^(1/2) D|^2 <= the largest row sum of |D|'|H||D| for an error D of at most `relative` times the magnitudes.
    relative = add_up(entry.error, 4.0 * UNIT)
    inner = largest_sum(size.T @ (H.abs() @ size.sum(1)))
    lost = mul_up(sqrt_up(mul_up(float(H.abs().max()) + 1.0, H.numel())), 4.0 * W.numel(), TINY)
    return add_up(entry_norm_up(H, W), mul_up(relative, sqrt_up(mul_up(inner, COVER))), lost)
