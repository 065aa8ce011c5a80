"""LipSDP by overlapping blocks: a sparse matrix inequality is a sum of small ones, one a layer.

Where the next layer sees one variable p_l a unit (every activation of one function), the inequality couples p_(l-1) and
p_l only. It is then equivalent to one inequality a pair of layers, which pass a free symmetric matrix in p_l on to each
other: the same optimum, smaller matrices, more variables. Layers whose outputs see z and q apart (crelu, sin2_pair)
stay together with their neighbour.

Source: Xue, Lindemann, Robey, Hassani, Pappas, Alur 2022 (Chordal-LipSDP); Agler's theorem for chordal patterns.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from lipbridge.lipsdp.blocks import blocks_of, predicted_size
from lipbridge.lipsdp.elimination import closed_form
from lipbridge.lipsdp.system import LipSDP
from lipbridge_adapters.sdp.common import Run, SDPVerifier


class LipSDPChordalVerifier(SDPVerifier):
    """LipSDP-Neuron's optimum by a chain of small inequalities; proved from the multipliers."""

    name = "lipsdp-chordal"
    summary = (
        "Lipschitz constant, global or in balls: LipSDP-Neuron by chordal decomposition, a small inequality a layer"
    )
    method = "LipSDP, chordal"

    def size(self, system: LipSDP) -> tuple[int, int]:
        """All blocks."""
        return predicted_size(system, chordal=True)

    def multipliers(self, system: LipSDP, run: Run) -> Sequence[Tensor] | None:
        """One multiplier a unit and constraint."""
        blocks = blocks_of(system, closed_form(system), chordal=True)
        point = run.solve(blocks)
        return None if point is None else [torch.tensor(T) for T in blocks.vectors(point)]
