"""The LipSDP matrix inequality as sparse affine maps of its multipliers, one a block: what an SDP solver takes.

Where no output of a layer sees z but through q (abs, sin, joint constraints) the inequality falls apart: the layer's q
starts a block of its own, weighted by T, and its z ends the block before. A network of such layers is a chain of small
inequalities W_1' T_1 W_1 <= rho I, W_2' T_2 W_2 <= T_1, ...; a ReLU network is one block.

That block is block-tridiagonal where the next layer sees one variable a unit. In its chordal form it is a chain of
blocks, one a pair of layers, that overlap in the variables p of the layer between them and pass a free symmetric matrix
S on: ``block_1(x0, p_1) - p_1' S p_1 >= 0``, ``p_1' S p_1 + block_2(p_1, p_2) >= 0``. The least rho is the same, since
S can be what is left of the first block after its other variables are eliminated.

Nothing here needs to be exact, since the solver's multipliers are proved afterwards, so the coordinates are chosen for
speed and scaling: x0 is reduced to the row space of W_1; q is replaced by p = q + kappa z where that makes the next
layer a function of p alone (sparser: LipSDP's own variables); and everything is scaled so that the closed-form feasible
point is the vector of ones.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from lipbridge.lipsdp.elimination import eliminate
from lipbridge.lipsdp.system import LipSDP, Stage

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]

#: Above this kappa the change of variables q = p - kappa z would spoil the scaling more than its sparsity saves.
LARGEST_KAPPA = 8.0


@dataclass(frozen=True, eq=False)
class Block:
    """``constant + sum_v value_v * A_v >= 0``, each matrix ``(size, size)`` given by its lower triangle.

    Attributes:
        size: rows of the block.
        rows: of the entries of all A_v.
        columns: of them, never above ``rows``.
        variables: the index v of each entry; 0 is rho.
        values: the entries.
        constant: ``(size, size)``, symmetric.
    """

    size: int
    rows: Integers
    columns: Integers
    variables: Integers
    values: Floats
    constant: Floats


@dataclass(frozen=True, eq=False)
class Blocks:
    """The whole problem: minimise variable 0 subject to all blocks, with rho and the multipliers >= 0.

    Attributes:
        blocks: the matrix inequalities.
        scales: per stage, what the solver's multipliers are to be multiplied by.
        shapes: per stage the shape (constraints, units) of its multipliers, in the order of the variables.
        slack: the number of free variables after the multipliers: what overlapping blocks pass on.
    """

    blocks: tuple[Block, ...]
    scales: tuple[float, ...]
    shapes: tuple[tuple[int, int], ...]
    slack: int = 0

    @property
    def multipliers(self) -> int:
        """The number of multipliers."""
        return sum(c * u for c, u in self.shapes)

    @property
    def variables(self) -> int:
        """rho, all multipliers, and the free variables."""
        return 1 + self.multipliers + self.slack

    def vectors(self, solution: Floats) -> list[Floats]:
        """The multipliers of each stage, unscaled, in a solution vector."""
        parts: list[Floats] = []
        start = 1
        for scale, (c, u) in zip(self.scales, self.shapes, strict=True):
            parts.append(scale * solution[start : start + c * u].reshape(c, u))
            start += c * u
        return parts


def predicted_size(system: LipSDP, *, chordal: bool = False) -> tuple[int, int]:
    """``(entries, cells)``: entries of all A_v, and the sum of the blocks' sizes squared, without building them."""
    size = support = min(system.entry.shape)
    entries, cells = size, 0
    for index, stage in enumerate(system.stages):
        rule, u = stage.increments, stage.width
        kappa, alone = _shift(stage)
        squares = sum(weight != 0.0 for weight in _square_weights(stage, kappa))
        products = int(np.count_nonzero(kappa))
        entries += u * (squares * support * (support + 1) // 2 + products * support + rule.variables)
        cells += size * size if rule.cuts else 0
        size = rule.variables * u if rule.cuts else size + rule.variables * u
        support = rule.variables * u if alone else support + rule.variables * u
        if chordal and _overlaps(system, index):
            cells += size * size
            size, entries = support, entries + support * (support + 1)
    return entries, cells + size * size


def blocks_of(system: LipSDP, feasible: Sequence[Tensor], *, chordal: bool = False) -> Blocks:
    """The blocks of a network with at least one activation, scaled by a feasible point with one value a stage.

    Args:
        system: the matrix inequality.
        feasible: multipliers, one tensor a stage.
        chordal: overlapping blocks, one a pair of layers, wherever the next layer sees one variable a unit alone.
    """
    scales = tuple(float(T.max()) if T.numel() else 1.0 for T in feasible)
    found = eliminate(system, feasible)
    rho = 1.0 if found is None else float(found)
    W: Floats = _array(system.entry)
    if W.shape[1] > W.shape[0]:
        W = _floats(np.linalg.qr(W.T)[1]).T
    n: int = W.shape[1]
    builder = _Builder(n)
    builder.add_diagonal(_range(n), np.zeros(n, dtype=np.int64))
    state, support = _floats(W / math.sqrt(rho)), _range(n)
    blocks: list[Block] = []
    shapes = tuple((stage.increments.constraints, stage.width) for stage in system.stages)
    first, free = 1, 1 + sum(c * u for c, u in shapes)
    for position, (stage, scale) in enumerate(zip(system.stages, scales, strict=True)):
        rule, u = stage.increments, stage.width
        state = _floats(state * math.sqrt(scale))
        index = first + np.arange(rule.constraints * u).reshape(-1, u)
        first += index.size
        group = np.array(rule.group, dtype=np.int64)
        kappa, _ = _shift(stage)
        weights = _square_weights(stage, kappa)
        if rule.cuts:
            for variables, weight in zip(index, weights, strict=True):
                builder.add_squares(state, support, weight, variables)
            blocks.append(builder.block())
            builder = _Builder(rule.variables * u)
            p = _range(rule.variables * u)
            builder.add_diagonal(p, index[group].ravel())
            support = np.empty(0, dtype=np.int64)
        else:
            p = builder.extend(rule.variables * u)
            builder.add_diagonal(p, index[group].ravel())
            for variables, weight in zip(index, weights, strict=True):
                builder.add_squares(state, support, weight, variables)
            for j, c in enumerate(group):
                if kappa[j]:
                    builder.add_products(state, support, p[j * u : (j + 1) * u], -kappa[j], index[c])
        state, support = _next_state(stage, kappa, state, support, p, scale)
        if chordal and _overlaps(system, position):
            count = len(support)
            passed = free + np.arange(count * (count + 1) // 2)
            free += len(passed)
            builder.add_symmetric(support, -1.0, passed)
            blocks.append(builder.block())
            builder, support = _Builder(count), _range(count)
            builder.add_symmetric(support, 1.0, passed)
    builder.subtract_gram(state, support)
    blocks.append(builder.block())
    return Blocks(tuple(blocks), scales, shapes, free - 1 - sum(c * u for c, u in shapes))


def _overlaps(system: LipSDP, index: int) -> bool:
    """Whether a chordal block ends after this stage: the next sees p alone, and the inequality goes on."""
    stage = system.stages[index]
    if index + 1 == len(system.stages) or stage.increments.cuts or not stage.increments.variables:
        return False
    return _shift(stage)[1] and not system.stages[index + 1].increments.cuts


def _square_weights(stage: Stage, kappa: Floats) -> list[float]:
    """Per constraint the factor of z^2 in ``|p - kappa z|^2 - z^2``: zero for slopes in [0, b], hence sparse."""
    group = np.array(stage.increments.group, dtype=np.int64)
    weights = [float((kappa[group == c] ** 2).sum()) - 1.0 for c in range(stage.increments.constraints)]
    return [0.0 if abs(weight) < 1e-12 else weight for weight in weights]


def _shift(stage: Stage) -> tuple[Floats, bool]:
    """kappa per variable, and whether the next state then sees the new variables alone."""
    E = _array(stage.increments.outputs)
    m, R = E[:, 0], E[:, 1:]
    none = np.zeros(R.shape[1])
    if not R.shape[1] or not m.any():
        return none, not m.any()
    kappa = _floats(np.linalg.lstsq(R, m, rcond=None)[0])
    if np.abs(kappa).max() > LARGEST_KAPPA or np.abs(m - R @ kappa).max() > 1e-12 * np.abs(m).max():
        return none, False
    return kappa, True


def _next_state(
    stage: Stage, kappa: Floats, state: Floats, support: Integers, p: Integers, scale: float
) -> tuple[Floats, Integers]:
    """The next state as a map of the block's coordinates: values on its support."""
    E, u = _array(stage.increments.outputs), stage.width
    m, R = E[:, 0] - E[:, 1:] @ kappa, E[:, 1:]
    W = _array(stage.weight).reshape(-1, E.shape[0], u) / math.sqrt(scale)
    onto_p = _floats(np.einsum("aku,kj->aju", W, R)).reshape(W.shape[0], -1)
    if _shift(stage)[1] or stage.increments.cuts:
        return onto_p, p
    onto_z = _floats(np.einsum("aku,k->au", W, m))
    return np.concatenate([onto_z @ state, onto_p], axis=1), np.concatenate([support, p])


def _array(tensor: Tensor) -> Floats:
    return _floats(tensor.numpy())


def _range(count: int) -> Integers:
    return np.arange(count, dtype=np.int64)


def _floats(values: object) -> Floats:
    """Names the type that numpy's stubs lose."""
    return cast(Floats, values)


class _Builder:
    """Collects the entries of one block."""

    def __init__(self, size: int) -> None:
        self.size = size
        self._parts: list[tuple[Integers, Integers, Integers, Floats]] = []
        self._constant: tuple[Floats, Integers] | None = None

    def extend(self, count: int) -> Integers:
        """Append coordinates; returns their indices."""
        self.size += count
        return np.arange(self.size - count, self.size)

    def add_diagonal(self, where: Integers, variables: Integers) -> None:
        """``+ value_v`` at the given diagonal places."""
        self._parts.append((where, where, variables, np.ones(len(where))))

    def add_squares(self, state: Floats, support: Integers, weight: float, variables: Integers) -> None:
        """``+ value_v weight s s'`` for each row s of ``state``, which lives on ``support`` (ascending)."""
        if weight == 0.0:
            return
        low, high = np.tril_indices(len(support))
        values = weight * state[:, low] * state[:, high]
        u, count = values.shape
        self._parts.append(
            (np.tile(support[low], u), np.tile(support[high], u), np.repeat(variables, count), values.ravel())
        )

    def add_products(self, state: Floats, support: Integers, p: Integers, factor: float, variables: Integers) -> None:
        """``+ value_v factor (s e' + e s')`` for each row s and its own coordinate e, which comes after the support."""
        u, count = state.shape
        self._parts.append(
            (np.repeat(p, count), np.tile(support, u), np.repeat(variables, count), (factor * state).ravel())
        )

    def add_symmetric(self, support: Integers, sign: float, variables: Integers) -> None:
        """``+ sign S`` on the support (ascending): one variable an entry of the lower triangle."""
        low, high = np.tril_indices(len(support))
        self._parts.append((support[low], support[high], variables, np.full(len(variables), sign)))

    def subtract_gram(self, state: Floats, support: Integers) -> None:
        """``- |state|^2``, with no variable."""
        self._constant = (state, support)

    def block(self) -> Block:
        """The block of everything added so far."""
        rows, columns, variables, values = (np.concatenate(part) for part in zip(*self._parts, strict=True))
        constant = np.zeros((self.size, self.size))
        if self._constant is not None:
            state, support = self._constant
            constant[np.ix_(support, support)] = -state.T @ state
        return Block(self.size, rows, columns, variables, values, constant)
