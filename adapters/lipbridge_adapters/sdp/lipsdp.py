"""LipSDP through cvxpy: the field's SDP baseline, with every bound proved again from the solver's multipliers.

Source: Fazlyab, Robey, Hassani, Morari, Pappas 2019 (LipSDP-Neuron). The matrix inequality, the constraint of each
activation and the proof are in :mod:`lipbridge.lipsdp.multipliers`; this file hands the inequality to a solver.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from lipbridge.lipsdp.blocks import blocks_of, predicted_size
from lipbridge.lipsdp.elimination import closed_form
from lipbridge.lipsdp.system import LipSDP
from lipbridge_adapters.sdp.common import Run, SDPVerifier


class LipSDPVerifier(SDPVerifier):
    """The least l_2 bound that diagonal multipliers give, by one matrix inequality, as it was published.

    Where no output of a layer sees z but through q (abs, sin, joint constraints) that inequality falls apart by itself.
    """

    name = "lipsdp"
    summary = "Lipschitz constant, global or in balls: semidefinite program (LipSDP-Neuron), one matrix inequality"
    method = "LipSDP"

    def size(self, system: LipSDP) -> tuple[int, int]:
        """The whole program."""
        return predicted_size(system)

    def multipliers(self, system: LipSDP, run: Run) -> Sequence[Tensor] | None:
        """One multiplier a unit and constraint."""
        blocks = blocks_of(system, closed_form(system))
        point = run.solve(blocks)
        return None if point is None else [torch.tensor(T) for T in blocks.vectors(point)]
