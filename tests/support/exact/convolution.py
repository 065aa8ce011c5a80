"""Convolutions by index arithmetic of numpy's own: numbers are placed around the indices of the input, tap by tap."""

from __future__ import annotations

import itertools
import math

import numpy as np

from tests.support.exact.rationals import Rationals, concatenate, product, zeros

MODES = {"zeros": "constant", "circular": "wrap", "reflect": "reflect", "replicate": "edge"}


def convolved(
    x: Rationals,
    weight: Rationals,
    stride: tuple[int, ...],
    padding: tuple[tuple[int, int], ...],
    dilation: tuple[int, ...],
    groups: int,
    mode: str,
) -> Rationals:
    """The convolution of ``x`` ``(channels, *space, k)``, in each of its k columns: ``(out, *space, k)``."""
    columns = x.shape[-1]
    space = x.shape[1:-1]
    places = np.arange(math.prod(space)).reshape(space)
    if any(before or after for before, after in padding):
        fill = {"constant_values": -1} if mode == "zeros" else {}
        places = np.pad(places, padding, MODES[mode], **fill)  # type: ignore[call-overload]
    flat = concatenate([x.reshape(x.shape[0], -1, columns), zeros(x.shape[0], 1, columns)], axis=1)  # -1 is zero
    kernel = weight.shape[2:]
    out = tuple(
        (n - d * (k - 1) - 1) // s + 1 for n, k, s, d in zip(places.shape, kernel, stride, dilation, strict=True)
    )
    rows = weight.shape[0] // groups
    total = zeros(weight.shape[0], *out, columns)
    for tap in itertools.product(*map(range, kernel)):
        window = tuple(
            slice(j * d, j * d + (m - 1) * s + 1, s) for j, d, m, s in zip(tap, dilation, out, stride, strict=True)
        )
        seen = flat[:, places[window].reshape(-1)]
        parts = [
            product(
                weight[(slice(g * rows, (g + 1) * rows), slice(None), *tap)],
                seen[g * weight.shape[1] : (g + 1) * weight.shape[1]].reshape(weight.shape[1], -1),
            )
            for g in range(groups)
        ]
        total = total.plus(concatenate(parts, axis=0).reshape(*total.shape))
    return total


def spread(
    x: Rationals,
    weight: Rationals,
    stride: tuple[int, ...],
    padding: tuple[tuple[int, int], ...],
    dilation: tuple[int, ...],
    groups: int,
) -> Rationals:
    """The transposed convolution of ``x`` ``(channels, *space, k)`` with a kernel ``(in, out / groups, *kernel)``."""
    columns, space = x.shape[-1], x.shape[1:-1]
    kernel = weight.shape[2:]
    full = tuple((n - 1) * s + d * (k - 1) + 1 for n, k, s, d in zip(space, kernel, stride, dilation, strict=True))
    inputs, outputs = weight.shape[0] // groups, weight.shape[1]
    unit = weight.unit * x.unit
    total = zeros(groups * outputs, *full, columns).ints
    for tap in itertools.product(*map(range, kernel)):
        window = tuple(
            slice(j * d, j * d + (n - 1) * s + 1, s) for j, d, n, s in zip(tap, dilation, space, stride, strict=True)
        )
        for g in range(groups):
            own = slice(g * inputs, (g + 1) * inputs)
            W = weight[(own, slice(None), *tap)]
            part = product(Rationals(W.ints.T, W.unit), x[own].reshape(inputs, -1))
            place = (slice(g * outputs, (g + 1) * outputs), *window)
            total[place] += part.ints.reshape(total[place].shape)
    cut = Rationals(total, unit)
    for axis, (before, after) in enumerate(padding, start=1):
        length = cut.shape[axis]
        kept = slice(max(before, 0), length - max(after, 0))
        parts = [cut[(slice(None),) * axis + (kept,)]]
        for width, place in ((-before, 0), (-after, 2)):
            if width > 0:
                empty = zeros(*cut.shape[:axis], width, *cut.shape[axis + 1 :])
                parts = [empty, *parts] if place == 0 else [*parts, empty]
        cut = concatenate(parts, axis)
    return cut
