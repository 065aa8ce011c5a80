"""The rows and columns of a convolution's matrix, by kind, without the matrix.

The norms 1->q are the largest column's and p->inf the largest row's, boundary included. Along one axis a row is a set
of *merged taps*, one for each input that it reads: taps that read the same input through the padding, or around a
torus, are added. Few rows differ in this (the interior ones are all alike, and with zero padding a row at the boundary
is a part of them), and likewise few columns, so each kind is looked at once. In two axes a row merges taps by the
product.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator
from functools import lru_cache
from itertools import product

import torch
from torch import Tensor

from lipbridge.norms.conv_geometry import Axis, Convolution
from lipbridge.vocabulary import Norm

#: The entries of one row or column along one axis: for each, the taps that are added.
Kind = tuple[tuple[int, ...], ...]


@lru_cache(maxsize=1024)
def axis_kinds(axis: Axis, *, columns: bool) -> tuple[Kind, ...]:
    """The kinds of rows (or columns) along one axis, but for those that are part of another."""
    entries: defaultdict[int, defaultdict[int, list[int]]] = defaultdict(lambda: defaultdict(list))
    for output in range(axis.outputs):
        for tap in range(axis.kernel):
            source = axis.source(output * axis.stride - axis.padding[0] + tap * axis.dilation)
            if source is not None:
                line, entry = (source, output) if columns else (output, source)
                entries[line][entry].append(tap)
    found = {tuple(sorted(tuple(taps) for taps in line.values())) for line in entries.values()}
    largest: list[Kind] = []
    for kind in sorted(found, key=len, reverse=True):
        if not any(Counter(kind) <= Counter(other) for other in largest):
            largest.append(kind)
    return tuple(largest)


def extreme_vectors(weight: Tensor, geometry: Convolution, *, columns: bool) -> Iterator[tuple[Tensor, bool]]:
    """Matrices ``(channels, entries)`` whose rows are the operator's rows (or columns), but for zeros and order.

    Beside each stands whether taps were added in it (and so rounded). Differentiable, on any device.

    Law: the largest norm of them all is the operator's largest row (column) norm, for every norm.
    """
    geometry.output_shape(weight)
    kinds = [axis_kinds(axis, columns=columns) for axis in geometry.geometry(tuple(weight.shape[2:]))]
    groups = geometry.groups
    grouped = weight.reshape(groups, weight.shape[0] // groups, *weight.shape[1:])
    if columns:
        grouped = grouped.transpose(1, 2)
    for chosen in product(*kinds):
        vectors = grouped
        for dim, kind in enumerate(chosen, start=3):
            vectors = _merge(vectors, kind, dim)
        merged = any(len(taps) > 1 for kind in chosen for taps in kind)
        yield vectors.flatten(2).flatten(0, 1), merged


def _merge(kernel: Tensor, kind: Kind, dim: int) -> Tensor:
    if all(taps == (j,) for j, taps in enumerate(kind)) and len(kind) == kernel.shape[dim]:
        return kernel
    parts = [sum((kernel.select(dim, tap) for tap in taps[1:]), start=kernel.select(dim, taps[0])) for taps in kind]
    return torch.stack(parts, dim=dim)


def extreme_norm(weight: Tensor, geometry: Convolution, p: Norm, q: Norm) -> Tensor:
    """The operator norm from l_p to l_q for p = 1 or q = inf: exact but for rounding, differentiable.

    Law: equals ``operator_norm(geometry.matrix(weight), p, q)``.
    """
    from lipbridge.norms.matrix import operator_norm

    largest = weight.new_zeros(())
    for vectors, _ in extreme_vectors(weight, geometry, columns=p == 1):
        norm = operator_norm(vectors.T, 1, q) if p == 1 else operator_norm(vectors, p, "inf")
        largest = torch.maximum(largest, norm)
    return largest
