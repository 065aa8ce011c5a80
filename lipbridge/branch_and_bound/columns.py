"""Values of nodes as affine functions of some variables: a column of numbers for each, with entrywise errors.

Linear nodes act on all columns at once, as a batch of inputs, so that every linear node of a Graph is taken without
writing its matrix down. What rounding may lose is bounded by the same node with magnitudes (Higham 2002, section 3.1).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from lipbridge.graph.evaluation import evaluate
from lipbridge.graph.nodes import Add, Conv, ConvTranspose, Dense, Node
from lipbridge.rounding.scalars import FLOOR, UNIT, gamma

#: More than the rounding of a sum of non-negative terms that bounds an error.
COVER = 1.0 + 2.0**-20


@dataclass(frozen=True, eq=False)
class Columns:
    """``value`` and ``error``, both ``(variables, *shape)``: each exact number is within its error of its value."""

    value: Tensor
    error: Tensor

    def padded(self, count: int) -> Columns:
        """The same with zeros for variables up to ``count``."""
        more = self.value.new_zeros(count - len(self.value), *self.value.shape[1:])
        return Columns(torch.cat([self.value, more]), torch.cat([self.error, more]))

    def scaled(self, factor: tuple[float, float]) -> Columns:
        """Times a number, given with its error."""
        number, error = factor
        if error == 0.0 and number in (0.0, 1.0, -1.0):
            return Columns(number * self.value, abs(number) * self.error)
        size = self.value.abs() + self.error
        lost = abs(number) * self.error + (error + 2.0 * UNIT * abs(number)) * size
        return Columns(number * self.value, torch.where(size > 0, lost * COVER + FLOOR, 0.0))

    def plus(self, other: Columns) -> Columns:
        """The sum, of as many variables as the longer one has."""
        count = max(len(self.value), len(other.value))
        a, b = self.padded(count), other.padded(count)
        rounded = (a.value != 0) & (b.value != 0)
        total = a.value + b.value
        error = a.error + b.error
        error = torch.where(error > 0, error * COVER, 0.0)
        return Columns(total, error + torch.where(rounded, UNIT * COVER * total.abs() + FLOOR, 0.0))

    def shifted(self, variable: int, number: Tensor, error: Tensor | None = None) -> Columns:
        """With ``number`` (of the value's shape without variables) added for one variable."""
        blank = torch.zeros_like(self.value)
        shift, lost = blank.clone(), blank
        shift[variable] = number
        if error is not None:
            lost = blank.clone()
            lost[variable] = error
        return self.plus(Columns(shift, lost))


def through(node: Node, inputs: list[Columns], constant: int) -> Columns:
    """What a linear node makes of its inputs; ``constant`` is the variable that its bias belongs to."""
    if isinstance(node, Dense | Conv | ConvTranspose):
        return _weighted(node, inputs[0], constant)
    if isinstance(node, Add):
        total = inputs[0]
        for part in inputs[1:]:
            total = total.plus(part)
        return total
    count = max(len(part.value) for part in inputs)
    padded = [part.padded(count) for part in inputs]
    return Columns(evaluate(node, [x.value for x in padded]), evaluate(node, [x.error for x in padded]))


def _weighted(node: Dense | Conv | ConvTranspose, x: Columns, constant: int) -> Columns:
    core = replace(node, bias=None)

    def by(weight: Tensor, columns: Tensor) -> Tensor:
        return evaluate(replace(core, weight=weight), [columns])

    value = by(node.weight, x.value)
    sizes = x.value.abs()
    held = (x.value != 0).to(torch.float64)
    terms = by((node.weight != 0).to(torch.float64), held).round()
    units = ((sizes == 0) | (sizes == 1)).flatten(1).all(1).reshape(-1, *[1] * (value.ndim - 1))
    rounding = gamma(int(terms.max()) + 8 if terms.numel() else 8) * by(node.weight.abs(), sizes) + FLOOR
    error = torch.where((terms <= 1) & units, 0.0, torch.where(terms > 0, rounding, 0.0))
    if bool(x.error.any()):
        error = error + by(node.weight.abs(), x.error)
    if node.error is not None:
        error = error + by(node.error, sizes + x.error)
    found = Columns(value, torch.where(error > 0, error * COVER, 0.0))
    if node.bias is None:
        return found
    axes = () if isinstance(node, Dense) else (1,) * (value.ndim - 2)
    bias, lost = (
        None if t is None else t.reshape(-1, *axes).expand(value.shape[1:]) for t in (node.bias, node.bias_error)
    )
    assert bias is not None
    return found.shifted(constant, bias, lost)


__all__ = ["Columns", "through"]
