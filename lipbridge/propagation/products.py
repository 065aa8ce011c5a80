"""Products of many linear forms with a matrix of weights, without the columns that add nothing."""

from __future__ import annotations

import torch
from torch import Tensor

#: From how many forms and multiplications on it pays to look for columns to leave out, and from what share of them.
FORMS, MANY, SHARE = 32, 2**20, 0.15


def product(forms: Tensor, weight: Tensor) -> Tensor:
    """``forms @ weight`` for ``(k, m, rows)`` forms, in another order of summation.

    Region by region, coefficients that are zero in all forms are left out: those of units that are off. Where the
    second half of the forms is the first one's negative, as for units that are on if the forms bound something from
    both sides, the first half is multiplied alone. Each number is a sum of the same products, so that it obeys the
    error bound of a dot product of length ``rows``. On the CPU alone: elsewhere looking would wait for the device.
    """
    m, rows, n = *forms.shape[1:], weight.shape[1]
    if forms.device.type != "cpu" or forms.requires_grad or m < FORMS or m * rows * n < MANY:
        return forms @ weight
    return torch.stack([_product(own, weight) for own in forms]) if len(forms) > 1 else _product(forms[0], weight)[None]


def _product(forms: Tensor, weight: Tensor) -> Tensor:
    """The same for the ``(m, rows)`` forms of one region."""
    half = len(forms) // 2
    first, second = forms[:half], forms[half:]
    other = forms.abs().amax(0) != 0.0  # so is NaN
    same = torch.zeros_like(other)
    if len(forms) == 2 * half:
        same = other & ((first + second).abs().amax(0) == 0.0)
        other = other & ~same
    apart, shared = other.nonzero().flatten(), same.nonzero().flatten()
    rows = len(weight)
    if len(apart) + 0.5 * len(shared) > (1.0 - SHARE) * rows:
        return forms @ weight
    found = forms.index_select(1, apart) @ weight.index_select(0, apart)
    if len(shared):
        both = first.index_select(1, shared) @ weight.index_select(0, shared)
        found[:half] += both
        found[half:] -= both
    return found


__all__ = ["product"]
