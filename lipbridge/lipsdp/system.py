"""The LipSDP matrix inequality of a Graph, as a chain of stages.

Let xi = (x0, q_1, ..., q_k): the increment of the input and of every unit's free variables
(:mod:`lipbridge.lipsdp.constraints`). All pre-activations z_l and the output are linear maps of xi (biases drop
out of increments), and for any multipliers T >= 0

    rho |x0|^2 - |out|^2 - sum_l sum_c T_lc (z_l^2 - |q_l,c|^2) >= 0 for all xi

implies |f(x) - f(y)|_2 <= sqrt(rho) |x - y|_2. Source: Fazlyab et al. 2019 (LipSDP-Neuron: T diagonal, the only sound
variant).

The chain is held as a state-space system: the state before activation l is z_l, and one stage maps (z_l, q_l) to the
next state. A residual network fits the same form with a state that carries more than pre-activations.

On a region each unit has slopes of its own (:mod:`lipbridge.lipsdp.unit_slopes`): they are multiplied into the
weights, units of slope zero are dropped as dead, and units of one slope have no q.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lipbridge import checks
from lipbridge.activations.activation import Activation
from lipbridge.activations.slopes import Slopes
from lipbridge.errors import InvalidArgument, NumericalFailure
from lipbridge.graph.graph import Graph
from lipbridge.lipsdp.chain_rounding import rounding_term
from lipbridge.lipsdp.constraints import Increments, increments_of
from lipbridge.lipsdp.unit_slopes import SeparateShares, UnitRule, unit_rule
from lipbridge.lowering.chain import Chain, as_chain
from lipbridge.problem.bound import Bound
from lipbridge.problem.question import Ball, Question
from lipbridge.rigor.matrix import times_power_of_two
from lipbridge.vocabulary import Side, Status

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
        free: indices ``(f,)``, among the kept, of the units that have variables q; None if all have.
        apart: what the closed form reads where units have slopes of their own; None if all have the same.
    """

    increments: Increments
    weight: Tensor
    kept: Tensor
    units: int
    free: Tensor | None = None
    separate: SeparateShares | None = None

    @property
    def width(self) -> int:
        """u, the units that are kept."""
        return self.kept.numel()

    @property
    def free_width(self) -> int:
        """f, the units that have variables q."""
        return self.width if self.free is None else self.free.numel()

    def on_free_units(self, values: Tensor) -> Tensor:
        """``(rows, u)`` restricted to the units that have variables, ``(rows, f)``."""
        return values if self.free is None else values[:, self.free]

    def on_all_units(self, values: Tensor) -> Tensor:
        """``(rows * f,)`` as ``(rows, u)``, zero for units without variables."""
        if self.free is None or not values.numel():
            return values.reshape(-1, self.width) if values.numel() else values.new_zeros(0, self.width)
        rows = values.reshape(-1, self.free.numel())
        return values.new_zeros(len(rows), self.width).index_add(1, self.free, rows)


@dataclass(frozen=True, eq=False)
class Intervals:
    """Where a region takes the sources of the units: enclosures ``(lower, upper)`` a layer, ``(u,)`` each.

    Raises:
        InvalidArgument: without a region; bounds that hold everywhere need no intervals.
    """

    region: Ball
    layers: Sequence[Slopes]

    def __post_init__(self) -> None:
        checks.instance(self.region, Ball, "region", "be the Ball on which the intervals hold")


@dataclass(frozen=True, eq=False, kw_only=True)
class LipSDP:
    """The matrix inequality of a network, scaled to entries of about one.

    Attributes:
        question: what a bound of it answers: l_2 to l_2, and the region whose slopes its units have.
        entry: W_1, ``(u_1, n)`` float64.
        stages: the activation layers.
        exponent: the network is ``2**exponent`` times the one described here.
        constant: whether all its increments are zero, so that its Lipschitz constant is 0.
        rounding: what is added to every proved bound of it for one of the network, whose weights may be rounded here
            (:mod:`lipbridge.lipsdp.chain_rounding`).

    Every weight matrix is divided by a power of two near its norm. Quadratic constraints of increments do not notice a
    common factor of z and q, so neither do bounds; multipliers refer to the scaled network. Units that cannot carry an
    increment (a zero row before or zero columns after) are dropped; their multipliers are zero.
    """

    question: Question
    entry: Tensor
    stages: tuple[Stage, ...]
    exponent: int
    constant: bool
    rounding: float = 0.0

    def bound(self, value: float, vectors: Sequence[Tensor], method: str, seconds: float = 0.0) -> Bound:
        """The Bound of a value that was proved by multipliers ``(constraints, u)``, one a stage."""
        return Bound(
            value=value,
            side=Side.UPPER,
            proved=True,
            question=self.question,
            method=method,
            multipliers=self.multipliers(vectors),
            seconds=seconds,
        )

    def no_bound(self, method: str, *, status: Status = Status.OK, detail: str = "") -> Bound:
        """The Bound NaN: there is none, for a limit or for want of room in float64."""
        return Bound(
            value=math.nan,
            side=Side.UPPER,
            proved=False,
            question=self.question,
            method=method,
            status=status,
            detail=detail,
        )

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
            own = T.detach().to(torch.float64)
            full[:, stage.kept] = own if stage.free is None else _only(own, stage.free)
            table[name(index)] = full.flatten()
        return table


def name(layer: int) -> str:
    """The name of an activation layer's multipliers, counted from 1."""
    return f"T{layer}"


def _only(T: Tensor, free: Tensor) -> Tensor:
    kept = torch.zeros_like(T)
    kept[:, free] = T[:, free]
    return kept


def lipsdp_of(network: Graph | Chain, intervals: Intervals | None = None, *, joint: bool = True) -> LipSDP:
    """Read a Graph as a LipSDP matrix inequality.

    Args:
        network: a Graph, or the chain that it was read as, with weights that may be rounded.
        intervals: of each activation layer's sources on a region, for a bound on that region. None for a bound
            everywhere. It is the inequality's question, and so that of its bounds.
        joint: whether layers whose joint constant is below what their slopes imply (sin, cos) keep their one global
            constraint on a region. Without, each function has its local slopes, which is better on small regions.

    Raises:
        UnsupportedProblem: if the Graph is no dense chain, naming the node.
        NumericalFailure: if weights hold NaN or infinity.
    """
    chain = network if isinstance(network, Chain) else as_chain(network, rounded=True)
    weights = [layer.weight.detach().to(device="cpu", dtype=torch.float64) for layer in chain.layers]
    for layer, W in zip(chain.layers, weights, strict=True):
        if not bool(torch.isfinite(W).all()):
            raise NumericalFailure(f"The weights of layer `{layer.name}` hold NaN or infinite entries.")
    local: list[UnitRule | None] = [None for _ in chain.activations]
    if intervals is not None:
        pairs = zip(chain.activations, intervals.layers, strict=True)
        local = [unit_rule(g, lower.cpu(), upper.cpu(), joint=joint) for g, (lower, upper) in pairs]
    kept, constant = _kept(weights, chain.activations, local)
    rows = [*kept, torch.arange(weights[-1].shape[0])]
    units = [W.shape[0] for W in weights[:-1]]
    for index, g in enumerate(chain.activations):
        columns = weights[index + 1].reshape(-1, g.width, units[index])
        weights[index + 1] = columns[rows[index + 1]][:, :, kept[index]].flatten(1)
    weights[0] = weights[0][rows[0]]
    exponents = [_exponent(W) for W in weights]
    weights = [times_power_of_two(W, -e) for W, e in zip(weights, exponents, strict=True)]
    stages: list[Stage] = []
    for W, g, own, alive, count in zip(weights[1:], chain.activations, local, kept, units, strict=True):
        if own is None:
            stages.append(Stage(increments_of(g), W, alive, count))
        else:
            own = own.only(alive)
            every = bool(own.free.all()) or not own.increments.variables
            free = None if every else own.free.nonzero().flatten()
            stages.append(Stage(own.increments, own.weight(W), alive, count, free, own.separate(W)))
    dead = [own is not None and not bool(own.alive.any()) for own in local]
    return LipSDP(
        question=Question.everywhere(2) if intervals is None else Question.on(intervals.region, 2),
        entry=weights[0],
        stages=tuple(stages),
        exponent=sum(exponents),
        constant=constant,
        rounding=rounding_term(chain, 2, dead),
    )


def _kept(
    weights: Sequence[Tensor], activations: Sequence[Activation], local: Sequence[UnitRule | None]
) -> tuple[list[Tensor], bool]:
    """The units that can carry an increment, per layer, and whether none can, by the places of zeros alone.

    Units with a zero row before or zero columns after are dropped until none is left; so are those of slope zero.
    """
    joins = [weights[0] != 0]  # from unit to unit, whatever the output
    for W, g, own in zip(weights[1:], activations, local, strict=True):
        outputs = (W != 0).reshape(W.shape[0], g.width, -1)
        joins.append((outputs if own is None else outputs & own.alive).any(1))
    masks = [torch.ones(W.shape[0], dtype=torch.bool) for W in weights]
    changed = True
    while changed:
        changed = False
        for index in range(len(activations)):
            enters = joins[index][:, masks[index - 1]] if index else joins[index]
            found = masks[index] & enters.any(1) & joins[index + 1][masks[index + 1]].any(0)
            changed = changed or not torch.equal(found, masks[index])
            masks[index] = found
    constant = not bool(joins[0].any()) or any(not bool(mask.any()) for mask in masks[:-1])
    return [mask.nonzero().flatten() for mask in masks[:-1]], constant


def _exponent(W: Tensor) -> int:
    """A whole number near log2 of the norm, from exact operations only, so that it is the same on every machine."""
    if W.numel() == 0 or not bool(W.any()):
        return 0
    return math.frexp(float(W.abs().max()))[1] + (max(W.shape) - 1).bit_length() // 2
