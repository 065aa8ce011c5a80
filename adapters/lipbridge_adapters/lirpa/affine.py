"""Sums of linear maps of earlier values: what a network is made of between two nonlinear functions."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Affine:
    """``constant + sum of matrix @ signal`` over signals by index; a vector stands for a diagonal matrix."""

    terms: dict[int, Tensor]
    constant: Tensor

    def image(self, matrix: Tensor, bias: Tensor | None = None) -> Affine:
        """``matrix @ self + bias``."""
        constant = matrix @ self.constant
        return Affine(
            {signal: _times(matrix, weight) for signal, weight in self.terms.items()},
            constant if bias is None else constant + bias,
        )

    def scaled(self, factor: float, shift: float = 0.0) -> Affine:
        return Affine(
            {signal: factor * weight for signal, weight in self.terms.items()}, factor * self.constant + shift
        )

    def rows(self, index: Tensor) -> Affine:
        """The coordinates ``index``."""
        return Affine({signal: _rows(weight, index) for signal, weight in self.terms.items()}, self.constant[index])


def _times(matrix: Tensor, weight: Tensor) -> Tensor:
    return matrix * weight if weight.ndim == 1 else matrix @ weight


def _rows(weight: Tensor, index: Tensor) -> Tensor:
    if weight.ndim == 2:
        return weight[index]
    picked = weight.new_zeros(len(index), len(weight))
    return picked.scatter(1, index[:, None], weight[index, None])


def full(weight: Tensor) -> Tensor:
    return torch.diag(weight) if weight.ndim == 1 else weight


def _added(a: Tensor, b: Tensor) -> Tensor:
    return a + b if a.ndim == b.ndim else full(a) + full(b)


@dataclass(frozen=True)
class Call:
    """A function of FUNCTIONS, by name, of one earlier signal."""

    name: str
    source: int


def added_up(forms: list[Affine]) -> Affine:
    terms: dict[int, Tensor] = {}
    for form in forms:
        for signal, weight in form.terms.items():
            terms[signal] = _added(terms[signal], weight) if signal in terms else weight
    return Affine(terms, torch.stack([form.constant for form in forms]).sum(0))


def stacked(forms: list[Affine]) -> Affine:
    if len(forms) == 1:
        return forms[0]
    total = sum(len(form.constant) for form in forms)
    padded: list[Affine] = []
    start = 0
    for form in forms:
        rows = torch.arange(start, start + len(form.constant), device=form.constant.device)
        start += len(rows)

        def pad(part: Tensor, rows: Tensor = rows) -> Tensor:
            return part.new_zeros(total, *part.shape[1:]).index_copy(0, rows, part)

        padded.append(Affine({signal: pad(full(weight)) for signal, weight in form.terms.items()}, pad(form.constant)))
    return added_up(padded)
