"""LipSDP with one multiplier a layer: fewer variables, a larger bound.

Source: Fazlyab et al. 2019 (LipSDP-Layer).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from torch import Tensor

from lipbridge.lipsdp.blocks import Block, Blocks, blocks_of, predicted_size
from lipbridge.lipsdp.elimination import closed_form
from lipbridge.lipsdp.system import LipSDP
from lipbridge_adapters.sdp.common import Run, SDPVerifier


class LipSDPLayerVerifier(SDPVerifier):
    """The least l_2 bound with one multiplier a layer; proved from the multipliers.

    On a ball, where each unit has slopes of its own, it is one factor a layer of the closed form's multipliers.
    """

    name = "lipsdp-layer"
    summary = "Lipschitz constant, global or in balls: semidefinite program with one multiplier a layer (LipSDP-Layer)"
    method = "LipSDP-Layer"

    def size(self, system: LipSDP) -> tuple[int, int]:
        """The program before its columns are added up."""
        return predicted_size(system)

    def multipliers(self, system: LipSDP, run: Run) -> Sequence[Tensor] | None:
        """The layer's value times the closed form's pattern, which is constant where the units are alike."""
        feasible = closed_form(system)
        blocks = blocks_of(system, feasible)
        point = run.solve(one_a_layer(blocks, feasible))
        return None if point is None else [float(t) * T for t, T in zip(point[1:], feasible, strict=True)]


def one_a_layer(blocks: Blocks, feasible: Sequence[Tensor]) -> Blocks:
    """The same inequality with one variable a stage: the factor of its feasible multipliers."""
    owner, weight = [np.zeros(1, dtype=np.int64)], [np.ones(1)]
    for stage, (T, scale) in enumerate(zip(feasible, blocks.scales, strict=True), start=1):
        owner.append(np.full(T.numel(), stage, dtype=np.int64))
        weight.append(np.asarray(T.flatten().numpy() / scale, dtype=np.float64))
    owners, weights = np.concatenate(owner), np.concatenate(weight)
    merged = tuple(_merged(block, owners[block.variables], weights[block.variables]) for block in blocks.blocks)
    return Blocks(merged, blocks.scales, tuple((1, 1) for _ in feasible))


def _merged(block: Block, variables: np.ndarray, weights: np.ndarray) -> Block:
    """Entries of the same variable at the same place added up."""
    keys = (variables * block.size + block.rows) * block.size + block.columns
    unique, where = np.unique(keys, return_inverse=True)
    values = np.bincount(where, weights=block.values * weights, minlength=len(unique)).astype(np.float64)
    rest, columns = np.divmod(unique, block.size)
    owners, rows = np.divmod(rest, block.size)
    return Block(block.size, rows, columns, owners, values, block.constant)
