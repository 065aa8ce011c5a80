"""The LipSDP matrix inequality of a Graph, as a chain of stages.

Let xi = (x0, q_1, ..., q_k): the increment of the input and of every unit's free variables
(:mod:`lipbridge.verifiers.lmi_increments`). All pre-activations z_l and the output are linear maps of xi (biases drop
out of increments), and for any multipliers T >= 0

    rho |x0|^2 - |out|^2 - sum_l sum_c T_lc (z_l^2 - |q_l,c|^2) >= 0 for all xi

implies |f(x) - f(y)|_2 <= sqrt(rho) |x - y|_2. Source: Fazlyab et al. 2019 (LipSDP-Neuron: T diagonal, the only sound
variant).

The chain is held as a state-space system: the state before activation l is z_l, and one stage maps (z_l, q_l) to the
next state. A residual network fits the same form with a state that carries more than pre-activations.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lipbridge.activations import Activation
from lipbridge.errors import InvalidArgument, NumericalFailure
from lipbridge.graph import Graph, as_chain
from lipbridge.rigor import times_power_of_two
from lipbridge.verifiers.lmi_increments import Increments, increments_of

#: Multipliers by activation layer ("T1", "T2", ...): float64 vectors, constraint by constraint, unit by unit.
Multipliers = Mapping[str, Tensor]


@dataclass(frozen=True, eq=False)
class Stage:
    """One activation layer and the dense layer after it.

    Attributes:
        increments: the constraint of each unit.
        weight: ``(m, K u)`` float64: from the activation's outputs (K blocks of u units) to the next state.
        kept: indices ``(u,)`` of the units that are kept, among ``units`` of the network.
        units: the layer's units in the network.
    """

    increments: Increments
    weight: Tensor
    kept: Tensor
    units: int

    @property
    def width(self) -> int:
        """u, the units that are kept."""
        return self.kept.numel()


@dataclass(frozen=True, eq=False)
class LipSDP:
    """The matrix inequality of a network, scaled to entries of about one.

    Attributes:
        entry: W_1, ``(u_1, n)`` float64.
        stages: the activation layers.
        exponent: the network is ``2**exponent`` times the one described here.
        constant: whether all its increments are zero, so that its Lipschitz constant is 0.

    Every weight matrix is divided by a power of two near its norm. Quadratic constraints of increments do not notice a
    common factor of z and q, so neither do bounds; multipliers refer to the scaled network. Units that cannot carry an
    increment (a zero row before or zero columns after) are dropped; their multipliers are zero.
    """

    entry: Tensor
    stages: tuple[Stage, ...]
    exponent: int
    constant: bool

    def vectors(self, multipliers: Multipliers) -> list[Tensor]:
        """Multipliers as clipped tensors ``(constraints, u)`` of the kept units, one a stage.

        Raises:
            InvalidArgument: if a layer is missing, has the wrong length, or holds NaN or infinity.
        """
        vectors: list[Tensor] = []
        for index, stage in enumerate(self.stages, start=1):
            shape = (stage.increments.constraints, stage.units)
            T = multipliers.get(name(index))
            if T is None or T.numel() != math.prod(shape):
                found = None if T is None else tuple(T.shape)
                raise InvalidArgument("multipliers", f"hold a vector {name(index)} of length {math.prod(shape)}", found)
            T = T.detach().to(device="cpu", dtype=torch.float64).reshape(shape)
            if not bool(torch.isfinite(T).all()):
                raise InvalidArgument("multipliers", f"be finite in {name(index)}", "NaN or infinity")
            vectors.append(T[:, stage.kept].clamp_min(0.0))
        return vectors

    def multipliers(self, vectors: Sequence[Tensor]) -> dict[str, Tensor]:
        """The inverse of :meth:`vectors`, with zeros for the dropped units."""
        table: dict[str, Tensor] = {}
        for index, (stage, T) in enumerate(zip(self.stages, vectors, strict=True), start=1):
            full = torch.zeros(stage.increments.constraints, stage.units, dtype=torch.float64)
            full[:, stage.kept] = T.detach().to(torch.float64)
            table[name(index)] = full.flatten()
        return table


def name(layer: int) -> str:
    """The name of an activation layer's multipliers, counted from 1."""
    return f"T{layer}"


def lipsdp_of(graph: Graph) -> LipSDP:
    """Read a Graph as a LipSDP matrix inequality.

    Raises:
        UnsupportedProblem: if the Graph is no dense chain, naming the node.
        NumericalFailure: if weights hold NaN or infinity.
    """
    chain = as_chain(graph)
    weights = [layer.weight.detach().to(device="cpu", dtype=torch.float64) for layer in chain.layers]
    for layer, W in zip(chain.layers, weights, strict=True):
        if not bool(torch.isfinite(W).all()):
            raise NumericalFailure(f"The weights of layer `{layer.name}` hold NaN or infinite entries.")
    rules = [increments_of(activation) for activation in chain.activations]
    units = [W.shape[0] for W in weights[:-1]]
    weights, kept = _without_dead_units(weights, chain.activations)
    constant = any(not bool(W.any()) for W in weights)
    exponents = [_exponent(W) for W in weights]
    weights = [times_power_of_two(W, -e) for W, e in zip(weights, exponents, strict=True)]
    stages = tuple(Stage(*parts) for parts in zip(rules, weights[1:], kept, units, strict=True))
    return LipSDP(weights[0], stages, sum(exponents), constant)


def _without_dead_units(weights: list[Tensor], activations: Sequence[Activation]) -> tuple[list[Tensor], list[Tensor]]:
    """Drop units with a zero row before or zero columns after, until none is left."""
    weights = list(weights)
    kept = [torch.arange(W.shape[0]) for W in weights[:-1]]
    changed = True
    while changed:
        changed = False
        for index, activation in enumerate(activations):
            before, after = weights[index], weights[index + 1]
            columns = after.reshape(after.shape[0], activation.width, before.shape[0])
            alive = before.any(1) & columns.any(0).any(0)
            if not bool(alive.all()):
                changed = True
                weights[index] = before[alive]
                weights[index + 1] = columns[:, :, alive].flatten(1)
                kept[index] = kept[index][alive]
    return weights, kept


def _exponent(W: Tensor) -> int:
    """A whole number near log2 of the norm, from exact operations only, so that it is the same on every machine."""
    if W.numel() == 0 or not bool(W.any()):
        return 0
    return math.frexp(float(W.abs().max()))[1] + (max(W.shape) - 1).bit_length() // 2
