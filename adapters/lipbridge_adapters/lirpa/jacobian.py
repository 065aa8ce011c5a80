"""Local Lipschitz constants by auto_LiRPA's Jacobian: intervals of its entries, or the sums of its rows.

Source: Shi et al. 2022, "Efficiently computing local Lipschitz constants of neural networks via bound propagation".
The tool has it from release 0.7 on, which is in its repository only. Of what release 0.7.1 differentiates we found
sound what is used here: sums of dense layers, relu, tanh, sigmoid, silu and exp. Its joins of vectors are not (they are
folded into the dense layers), its convolutions cannot be built (they are written as matrices), and of several balls at
once it gives all one and the same value (they are asked one by one). Outputs are asked one by one as well: the tool
carries all outputs along in every bound of an entry.
"""

from __future__ import annotations

import importlib
from typing import Any

import torch
from torch import Tensor, nn

from lipbridge.errors import NumericalFailure, UnsupportedProblem
from lipbridge.graph.graph import Graph
from lipbridge.norms.matrix import CHEAP_PAIRS, operator_norm
from lipbridge.rounding.scalars import gamma
from lipbridge.vocabulary import Norm, exponent
from lipbridge_adapters.lirpa import shim
from lipbridge_adapters.lirpa.network import Method, Network
from lipbridge_adapters.lirpa.runner import SOUND_OPTIONS

#: Why there is no Lipschitz constant from an older release.
TOO_OLD = (
    "a Lipschitz constant needs the Jacobian of auto_LiRPA 0.7 or newer, which is not on PyPI; from a checkout of its "
    "repository: " + shim.INSTALL_NEWEST
)
METHODS: tuple[Method, ...] = ("CROWN", "alpha-CROWN")
#: Of values, relative; the largest violation in 204 random networks was 2e-9 without any margin, by exp alone.
MARGIN = 1e-7
#: By how much balls are larger than asked, relative to the radius and to the centre: a unit whose sign is misjudged by
#: rounding would be off by more than any margin of the value.
WIDER, WIDER_BY_CENTRE = 2.0**-30, 2.0**-45
#: The least radius that the tool is asked for: its lines above exp are wrong on intervals shorter than 1e-8.
LEAST = 1e-7


def require_pair(p: Norm, q: Norm) -> None:
    """Raise :class:`UnsupportedProblem` for inf->1, inf->2 and 2->1."""
    if (p, q) not in CHEAP_PAIRS:
        raise UnsupportedProblem(f"the norm {p}->{q} of a matrix is NP-hard")


def network_of(graph: Graph, method: Method) -> Network:
    """The Graph in what the tool differentiates.

    Raises:
        UnsupportedProblem: for methods other than CROWN and alpha-CROWN, and for what it does not take.
    """
    if method not in METHODS:
        raise UnsupportedProblem(f"auto_LiRPA bounds the Jacobian by {' or '.join(METHODS)}, not by {method}")
    return Network(graph, method, derivative=True)


class _Row(nn.Module):
    """A row of the Jacobian, ``(batch, inputs)``, or the sum of its magnitudes, ``(batch,)``; one output is chosen."""

    def __init__(self, network: Network, summed: bool) -> None:
        super().__init__()
        self.network, self.summed = network, summed
        self.operator: Any = importlib.import_module("auto_LiRPA.jacobian").JacobianOP

    def forward(self, x: Tensor, chosen: Tensor) -> Tensor:
        jacobian: Tensor = self.operator.apply(self.network(x).matmul(chosen), x)  # (batch, 1, inputs)
        return jacobian.abs().sum(-1) if self.summed else jacobian


class JacobianRunner:
    """The tool on the Jacobian of one network, ball by ball.

    Args:
        network: from :func:`network_of`.
        p, q: norms of inputs and outputs.
        memory: bytes that it may take.
        iterations: of alpha-CROWN.

    Raises:
        UnsupportedProblem: for norms that are NP-hard.
        MemoryError: if it would take more.
    """

    def __init__(self, network: Network, p: Norm, q: Norm, memory: int, iterations: int) -> None:
        self.tool = shim.load()
        self.network = network
        self.p: Norm = p
        self.q: Norm = q
        require_pair(p, q)
        self.summed = p == q == "inf"
        need = network.sample_bytes() + 96 * network.input_size * max(network.widths)
        if memory < need:
            raise MemoryError(f"the Jacobian by {network.method} needs about {need / 2**20:.3g} MiB")
        # Where terms cancel, their rounding is relative to the terms.
        self.slack = 4.0 * gamma(16 + sum(network.widths)) * float(operator_norm(network.steepest(), p, q))
        start = torch.zeros(1, network.input_size, dtype=torch.float64, device=network.device)
        self.outputs = torch.eye(network.widths[-1], dtype=torch.float64, device=network.device).unsqueeze(-1)
        self.chosen = self.outputs[0].clone()
        settings = {"iteration": iterations}
        with shim.session():
            self.model = self.tool.BoundedModule(
                _Row(network, self.summed),
                (self.tool.BoundedTensor(start), self.chosen),  # a plain tensor beside it is not perturbed
                bound_opts={**SOUND_OPTIONS, "optimize_bound_args": settings},
                device=start.device,
                custom_ops=shim.operators(self.tool),
            )

    def value(self, center: Tensor, radius: float, norm: Norm) -> float:
        """An upper bound of the Jacobian's norm on the ball around a flat centre ``(inputs,)``; not proved.

        Raises:
            NumericalFailure: if the tool's bounds are infinite or NaN.
        """
        wide = max(radius, LEAST) * (1.0 + WIDER) + WIDER_BY_CENTRE * float(center.abs().max())
        rows = [self._row(center[None], wide, norm, output) for output in self.outputs]
        low, high = (torch.cat([row[i] for row in rows]) for i in (0, 1))
        if not bool((low.isfinite() & high.isfinite()).all()):
            raise NumericalFailure("the tool's bounds are infinite or NaN")
        value = float(high.max()) if self.summed else norm_of(low, high, self.p, self.q)
        return value * (1.0 + MARGIN) + self.slack

    def _row(self, point: Tensor, radius: float, norm: Norm, output: Tensor) -> tuple[Tensor, Tensor]:
        """Bounds of one output's row, ``(1, inputs)``, or its sum, ``(1, 1)``, whose lower bound is not asked for."""
        optimize = self.network.method == "alpha-CROWN"
        self.chosen.copy_(output)
        with shim.session(), torch.set_grad_enabled(optimize):
            ball = self.tool.PerturbationLpNorm(norm=exponent(norm), eps=radius)
            inputs = self.tool.BoundedTensor(point, ball), self.chosen
            low, high = self.model.compute_jacobian_bounds(inputs, optimize=optimize, bound_lower=not self.summed)
        high = high.detach().flatten(1)
        return (torch.zeros_like(high) if self.summed else low.detach().flatten(1)), high


def norm_of(low: Tensor, high: Tensor, p: Norm, q: Norm) -> float:
    """An upper bound of the norms from l_p to l_q of all matrices ``(m, n)`` with entries between ``low`` and ``high``.

    No entry of such a matrix is larger than the largest magnitude in its interval, and norms of matrices without
    negative entries grow with the entries. In l_2 it is also at most the norm of the middle and that of the
    half-widths together.
    """
    largest = operator_norm(torch.maximum(low.abs(), high.abs()), p, q)
    if (p, q) != (2, 2):
        return float(largest)
    middle = low + (high - low) / 2
    around = operator_norm(middle, 2) + operator_norm(torch.maximum(high - middle, middle - low), 2)
    return float(torch.minimum(largest, around))
