"""Upper bounds of the l_1 norms of rows of Jacobians, by linear bounds of what is uncertain.

For a row, with cotangents a of w: ``a_i = C_i + sum_j A_ji r_j e_j a_j`` over later units j, and the row is
``D + sum_j r_j e_j a_j B_j``. Every absolute value t of an interval lies below a line ``s t + o`` with s in [-1, 1]:
first those of the row's entries, then, unit by unit from the input to the output, that of ``phi_i e_i r_i a_i``, which
is at most ``|phi_i| r_i |a_i|``. For one layer of uncertain units this is the hull of all slopes, exactly, but for the
entries whose sign is not certain.

Source: the products are those that Zhang et al. 2019 (RecurJac) and Shi et al. 2022 (arXiv 2210.07394) bound; that the
certain layers are multiplied out first, and the choice of the lines, are ours.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from lipbridge.branch_and_bound.relaxation import Resolved


def row_sums(x: Resolved, layers: Sequence[slice]) -> tuple[Tensor, Tensor]:
    """Upper bounds ``(k, m)`` of the rows' l_1 norms but for rounding, and what each unit adds to them ``(k, m, U)``.

    Args:
        x: k parts of the tree; transposed for columns.
        layers: of the units, in the order from the input (of the transposed network, too).
    """
    rad = torch.zeros_like(x.C)
    for own in reversed(layers[:-1]):
        later = x.A[:, :, own].abs()
        rad[..., own] = (x.r[:, None] * (x.C.abs() + rad)) @ later
    size = x.C.abs() + rad
    around = (x.r[:, None] * size) @ x.B.abs()
    slope, offset = _lines(x.D, around)
    form = slope @ x.B.mT
    s, o = _lines(x.C, rad)
    weight = torch.zeros_like(form)
    for own in layers:
        weight[..., own] = x.r[:, None, own] * form[..., own].abs()
        if own is not layers[-1]:
            form = form + (weight[..., own] * s[..., own]) @ x.A[:, :, own].mT
    linear = (slope * x.D).sum(-1) + offset.sum(-1)
    own_part = weight * (s * x.C + o)
    # Summed over entries, or all together: neither is always better.
    plain = (x.D.abs() + around).sum(-1)
    total = linear + own_part.sum(-1)
    return torch.minimum(plain, total), weight * size


def entries(x: Resolved, layers: Sequence[slice]) -> Tensor:
    """Upper bounds ``(k, m, n)`` of the entries' magnitudes, but for rounding."""
    rad = torch.zeros_like(x.C)
    for own in reversed(layers[:-1]):
        rad[..., own] = (x.r[:, None] * (x.C.abs() + rad)) @ x.A[:, :, own].abs()
    return x.D.abs() + (x.r[:, None] * (x.C.abs() + rad)) @ x.B.abs()


def _lines(middle: Tensor, radius: Tensor) -> tuple[Tensor, Tensor]:
    """``(slope, offset)`` of the chord above the absolute value between ``middle - radius`` and ``middle + radius``."""
    slope = torch.where(radius > middle.abs(), middle / radius.clamp_min(2.0**-1000), torch.sign(middle))
    offset = torch.where(radius > middle.abs(), radius - slope * middle, 0.0)
    return slope, offset


__all__ = ["entries", "row_sums"]
