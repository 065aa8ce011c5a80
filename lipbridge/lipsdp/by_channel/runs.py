"""Runs of layers whose matrix inequality is kept whole: LipSDP by frequency, one multiplier a channel.

Where an activation's outputs see its source (relu: ``y = (z + q) / 2``), the product of the layers' norms is not
LipSDP's best. With one multiplier a channel the inequality of a run of convolutions is block diagonal in the Fourier
basis: the layers of a run live on one torus, coarser by the stride from layer to layer, and all fine frequencies that
alias to one frequency of the last layer's grid form a block. The elimination of
:mod:`lipbridge.lipsdp.elimination` runs on all blocks at once; a run of dense layers is a single block.

*Circular padding* is the torus itself. *Zero padding* needs an argument of its own, for behind a layer the network goes
on only with the window of the image, and on the torus the layer has outputs outside of it. Let the activation of a
position outside be a unit whose slope is zero: its output is then what zero padding reads. If zero lies in the interval
of slopes that the multipliers stand for, such a unit obeys the same constraint as all others, so the torus with these
units is one of the systems that the inequality bounds. Intervals that lack zero (leaky relu) are widened to it.

Runs end at pooling, sorting, flattening, other paddings, and where the inequality falls apart anyway; there the factors
of :mod:`lipbridge.rescaling.channels` stand. Everything here is ours.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any, cast

import torch
from torch import Tensor

from lipbridge.activations.registry import Activation
from lipbridge.errors import NumericalFailure
from lipbridge.graph.nodes import Conv
from lipbridge.linalg import vector_norm
from lipbridge.lipsdp.constraints import Increments, increments_of
from lipbridge.lipsdp.elimination import share, through_units
from lipbridge.lipsdp.proof import (
    COVER,
    LARGEST_LIFT,
    at_least_diagonal,
    attempt,
    entry_norm_up,
    gram_of,
    largest_sum,
    times_power_of_two_up,
)
from lipbridge.lipsdp.system import Stage
from lipbridge.norms.conv_geometry import Axis
from lipbridge.rescaling.channels import ChannelChain, Layer, normalised
from lipbridge.rigor.roots import unit_roots
from lipbridge.rounding.outward import scaled_up
from lipbridge.rounding.scalars import TINY, UNIT, add_up, gamma, mul_up, sqrt_up, up

_linalg: Any = torch.linalg

#: Entries of all the blocks of a layer: runs are cut where one would have more.
ENTRIES = 2**23
#: A layer with a scale takes part if its largest entry is above the second, beside which an underflow (2^-1074) is less
#: than a rounding of the first times that entry.
SMALLEST_SIZE, SMALLEST_SCALED = 2.0**-600, 2.0**-400
#: Operations of one elimination (cubes of the blocks' sizes, summed): runs that would take more are not formed.
OPERATIONS = 2e10


@dataclass(frozen=True, eq=False)
class Block:
    """A layer at all frequencies.

    Attributes:
        weight: ``(F, m, n)``, complex128 for a convolution, float64 for a dense layer: rows are (position, channel) of
            the outputs' aliasing frequencies, columns (component, position, unit) of the inputs'.
        magnitude: ``(m, n)`` float64: each real and imaginary part of ``weight`` is off by at most ``error`` times it.
        error: 0 for a dense layer.
        exponent: the layer is ``2**exponent`` times this one.
        reads: the unit of each column, without components; of the first layer the unit of the joint before.
        writes: the unit of each row.
    """

    weight: Tensor
    magnitude: Tensor
    error: float
    exponent: int
    reads: Tensor
    writes: Tensor


@dataclass(frozen=True, eq=False)
class Run:
    """Layers ``first`` to ``last`` of a chain, with the joints between them kept whole.

    Attributes:
        blocks: one a layer.
        increments: one a joint between them.
        units: the number of multipliers' units of those joints.
    """

    first: int
    last: int
    blocks: tuple[Block, ...]
    increments: tuple[Increments, ...]
    units: tuple[int, ...]

    @property
    def exponent(self) -> int:
        return sum(block.exponent for block in self.blocks)


# --- which layers form runs -------------------------------------------------------------------------------------------


def runs_of(chain: ChannelChain) -> list[Run]:
    """The runs of a chain that can be better than the product of norms."""
    found: list[Run] = []
    first = 0
    while first < len(chain.layers) - 1:
        last = first
        while last + 1 < len(chain.layers) and _joins(chain, last) and _fits(chain, first, last + 1):
            last += 1
        if any(rule.variables for rule in _rules(chain, first, last)):
            found.append(_formed(chain, first, last))
        first = last + 1 if last > first else first + 1  # the joint behind a run is cut
    return found


def _kind(layer: Layer) -> str | None:
    """``dense``, ``circular`` (its own torus), ``zeros``, or None for layers that no run takes."""
    if layer.scale is not None and float(layer.weight().abs().max()) < SMALLEST_SCALED:
        return None
    if not isinstance(layer.node, Conv):
        return "dense"
    if layer.geometry is None or layer.geometry.padding_mode in ("reflect", "replicate"):
        return None
    axes = _axes(layer)
    if layer.geometry.padding_mode == "zeros" or all(axis.padding == (0, 0) for axis in axes):
        return "zeros"
    exact = all(axis.size % axis.stride == 0 and axis.outputs * axis.stride == axis.size for axis in axes)
    return "circular" if exact else None


def _axes(layer: Layer) -> tuple[Axis, ...]:
    assert layer.geometry is not None
    return layer.geometry.geometry(tuple(layer.node.weight.shape[2:]))


def _joins(chain: ChannelChain, index: int) -> bool:
    """Whether joint ``index`` can be kept whole."""
    joint, before, after = chain.joints[index], chain.layers[index], chain.layers[index + 1]
    if _kind(before) is None or _kind(before) != _kind(after):
        return False
    if not joint.plain or len(joint.activations) != 1:
        return False
    channels = before.node.weight.shape[0]
    width = joint.activations[0].width
    if joint.units != channels or not torch.equal(before.writes, torch.arange(channels)):
        return False
    if not torch.equal(after.reads, torch.arange(channels).repeat(width)):
        return False
    return not _increments(joint.activations[0], _masked(after)).cuts


def _masked(after: Layer) -> bool:
    """Whether a layer reads zeros around its input, where the torus has outputs of the layer before."""
    if _kind(after) != "zeros":
        return False
    return any(axis.padding[0] > 0 or _highest(axis) >= axis.size for axis in _axes(after))


def _highest(axis: Axis) -> int:
    """The highest position that is read."""
    return (axis.outputs - 1) * axis.stride - axis.padding[0] + (axis.kernel - 1) * axis.dilation


def _increments(activation: Activation, masked: bool) -> Increments:
    """What is known of an activation whose slope may also be zero, if ``masked``."""
    rule = increments_of(activation)
    if not masked or rule.cuts:
        return rule
    if activation.width == 1:
        low, high = min(activation.slopes[0][0], 0.0), max(activation.slopes[0][1], 0.0)
        middle = 0.5 * (low + high)
        radius = up(max(up(high - middle), up(middle - low)))
        return Increments(torch.tensor([[middle, radius]], dtype=torch.float64), torch.zeros(1, 2).double(), (0,))
    K = activation.width
    E = torch.zeros(K, 1 + K, dtype=torch.float64)
    E[:, 1:].fill_diagonal_(activation.lipschitz[2])
    return Increments(E, torch.zeros_like(E), (0,) * K)


def _grids(layers: Sequence[Layer]) -> list[tuple[int, ...]] | None:
    """Per layer the positions of its input's torus along each axis, and those of the last output; None if none fits."""
    axes = [_axes(layer) for layer in layers]
    grids: list[list[int]] = [[] for _ in range(len(layers) + 1)]
    for place in range(len(axes[0])):
        own = [each[place] for each in axes]
        steps = [axis.stride for axis in own]
        if _kind(layers[0]) == "circular":
            size = own[0].size
            if size % math.prod(steps):
                return None
        else:
            size, done = 1, 1
            for axis in own:
                needed = max(axis.size + axis.padding[0], _highest(axis) + 1, axis.outputs * axis.stride)
                size, done = max(size, needed * done), done * axis.stride
            size = -(-size // done) * done
        for index, step in enumerate([1, *steps]):
            size //= step
            grids[index].append(size)
    return [tuple(grid) for grid in grids]


def _rules(chain: ChannelChain, first: int, last: int) -> list[Increments]:
    """What is known of the activations between these layers."""
    joints = range(first, last)
    return [_increments(chain.joints[i].activations[0], _masked(chain.layers[i + 1])) for i in joints]


def _fits(chain: ChannelChain, first: int, last: int) -> bool:
    """Whether the blocks of these layers are small enough, and there is one torus for them."""
    layers, rules = chain.layers[first : last + 1], _rules(chain, first, last)
    if _kind(layers[0]) == "dense":
        return sum((2.0 * layer.node.weight.shape[0]) ** 3 for layer in layers[:-1]) <= OPERATIONS
    grids = _grids(layers)
    if grids is None:
        return False
    frequencies, operations = math.prod(grids[-1]), 0.0
    for index, layer in enumerate(layers):
        columns, rows = (math.prod(grids[at]) // frequencies for at in (index, index + 1))
        out, per_group = layer.node.weight.shape[:2]
        if frequencies * rows * out * columns * per_group * cast(Conv, layer.node).groups > ENTRIES:
            return False
        if index < len(rules):
            operations += 4.0 * frequencies * ((rules[index].variables + 1.0) * rows * out) ** 3
    return operations <= OPERATIONS


def _formed(chain: ChannelChain, first: int, last: int) -> Run:
    layers = chain.layers[first : last + 1]
    if _kind(layers[0]) == "dense":
        blocks = [_dense_block(layer, _width(chain, first + k, first)) for k, layer in enumerate(layers)]
    else:
        grids = _grids(layers)
        assert grids is not None
        blocks = _conv_blocks(layers, [_width(chain, first + k, first) for k in range(len(layers))], grids)
    units = tuple(joint.units for joint in chain.joints[first:last])
    return Run(first, last, tuple(blocks), tuple(_rules(chain, first, last)), units)


def predicted_memory(runs: Sequence[Run]) -> int:
    """Bytes that the elimination of runs keeps for its gradient, generously, and of the process before it."""
    total = 0
    for run in runs:
        size = 16 if run.blocks[0].weight.is_complex() else 8
        for block, rule in zip(run.blocks[1:], run.increments, strict=True):
            total += 12 * size * len(block.weight) * ((1 + rule.variables) * len(block.reads)) ** 2
        total += 8 * size * sum(block.weight.numel() for block in run.blocks)
    return 400 * 10**6 + total


# --- layers at all frequencies ----------------------------------------------------------------------------------------


def _width(chain: ChannelChain, index: int, first: int) -> int:
    """By how many components a layer inside the run reads each unit; the first layer's columns are what they are."""
    return 1 if index == first else chain.joints[index - 1].activations[0].width


def _dense_block(layer: Layer, width: int) -> Block:
    scaled, exponent = _scaled(layer)
    return Block(
        scaled[None],
        _sizes(scaled, layer, exponent),
        _own_error(layer),
        exponent,
        layer.reads[: len(layer.reads) // width],
        layer.writes,
    )


def _own_error(layer: Layer) -> float:
    """The rounding of a layer's scale and the error of its weight, relative to :func:`_sizes`."""
    return (0.0 if layer.scale is None else 2.0 * UNIT) + (0.0 if layer.error is None else 4.0 * UNIT)


def _sizes(weight: Tensor, layer: Layer, exponent: int) -> Tensor:
    """The entries' sizes; at least so much that an underflow is within a rounding of it, and the own error within four.

    Args:
        weight: over ``2**exponent``.
    """
    sizes, error = weight.abs(), layer.error
    if error is not None:
        sizes = torch.maximum(sizes, scaled_up(error.cpu(), torch.full(error.shape, 51 - exponent)))
    return sizes if layer.scale is None else sizes.clamp_min(SMALLEST_SIZE)


def _scaled(layer: Layer) -> tuple[Tensor, int]:
    """The weight over a power of two near its largest entry, and that power's exponent."""
    weight = layer.weight().cpu()
    if not bool(torch.isfinite(weight).all()):
        raise NumericalFailure(f"The weights of layer `{layer.node.name}` hold NaN or infinite entries.")
    return normalised(weight)


def _conv_blocks(layers: Sequence[Layer], widths: Sequence[int], grids: Sequence[tuple[int, ...]]) -> list[Block]:
    coarse = grids[-1]
    # A real kernel has conjugate blocks at opposite frequencies: half of them will do.
    sides = [*coarse[:-1], coarse[-1] // 2 + 1]
    frequencies = torch.tensor(list(product(*(range(side) for side in sides))))
    return [
        _conv_block(layer, width, grids[index], grids[index + 1], coarse, frequencies)
        for index, (layer, width) in enumerate(zip(layers, widths, strict=True))
    ]


def _aliases(grid: tuple[int, ...], coarse: tuple[int, ...]) -> Tensor:
    """``(positions, axes)``: what is added to a coarse frequency for each fine one that aliases to it."""
    steps = [[c * k for k in range(n // c)] for n, c in zip(grid, coarse, strict=True)]
    return torch.tensor(list(product(*steps)))


def _conv_block(
    layer: Layer,
    width: int,
    grid: tuple[int, ...],
    after: tuple[int, ...],
    coarse: tuple[int, ...],
    frequencies: Tensor,
) -> Block:
    """In the unitary Fourier bases of both grids: output frequency g is the sum over the inputs h = g modulo ``after``
    of the kernel's transform at h, over the square root of the stride."""
    axes, node = _axes(layer), cast(Conv, layer.node)
    weight, exponent = _scaled(layer)
    magnitude = _whole(_sizes(weight, layer, exponent), node.groups)
    weight = _whole(weight, node.groups)
    out, inputs, taps = weight.shape[0], weight.shape[1], math.prod(weight.shape[2:])
    columns, rows = _aliases(grid, coarse), _aliases(after, coarse)
    fine = frequencies[:, None, :] + columns[None]  # (F, P, axes)
    cosines, sines = torch.ones((), dtype=torch.float64), torch.zeros((), dtype=torch.float64)
    offsets = torch.tensor(list(product(*([t * a.dilation - a.padding[0] for t in range(a.kernel)] for a in axes))))
    for place, count in enumerate(grid):
        turns = fine[..., place, None] * offsets[:, place] % count  # (F, P, taps)
        c, s = (table[turns] for table in unit_roots(count))
        cosines, sines = cosines * c - sines * s, cosines * s + sines * c
    kernel = weight.flatten(2).permute(2, 0, 1).flatten(1)  # (taps, out * in)
    root = math.sqrt(math.prod(axis.stride for axis in axes))
    shape = (len(frequencies), len(columns), out, inputs)
    transform = torch.complex(cosines @ kernel / root, sines @ kernel / root).reshape(shape)
    differences = (columns[None, :] - rows[:, None]) % torch.tensor(after)
    joined = (differences == 0).all(-1)
    whole = torch.where(joined[None, :, :, None, None], transform[:, None], torch.zeros((), dtype=transform.dtype))
    sizes = (magnitude.flatten(2).sum(2) / root).expand(len(columns), out, inputs)
    magnitude = torch.where(joined[:, :, None, None], sizes[None], 0.0)
    # A twiddle is off by 5 UNIT an axis, its products with the taps by a dot product's rounding, the root by an ulp.
    error = add_up(gamma(taps + 4), mul_up(5.0 * len(axes), UNIT), 8.0 * UNIT, _own_error(layer))
    return Block(
        _ordered(whole, width).contiguous(),
        _ordered(magnitude[None], width)[0] * (1.0 + 2.0 * gamma(taps + 4)),
        error,
        exponent,
        layer.reads[: inputs // width].repeat(len(columns)),
        layer.writes.repeat(len(rows)),
    )


def _whole(weight: Tensor, groups: int) -> Tensor:
    """The kernel of a grouped convolution as one of all channels."""
    if groups == 1:
        return weight
    out, per_group = weight.shape[:2]
    whole = weight.new_zeros(out, per_group * groups, *weight.shape[2:])
    for group in range(groups):
        rows = slice(group * out // groups, (group + 1) * out // groups)
        whole[rows, group * per_group : (group + 1) * per_group] = weight[rows]
    return whole


def _ordered(whole: Tensor, width: int) -> Tensor:
    """``(F, rows, columns, out, in)`` as matrices: rows (position, channel), columns (component, position, unit)."""
    F, rows, columns, out, inputs = whole.shape
    parts = whole.reshape(F, rows, columns, out, width, inputs // width)
    return parts.permute(0, 1, 3, 4, 2, 5).reshape(F, rows * out, width * columns * (inputs // width))


# --- the constant of a run, in plain floating point -------------------------------------------------------------------


def log_constant(
    run: Run, logs: Sequence[Tensor], before: Tensor | None, after: Tensor | None, squarings: int
) -> Tensor:
    """The log of a smooth upper bound of a run's constant, differentiable; infinite if the multipliers do not hold.

    Args:
        logs: of the multipliers ``(constraints, units)``, one a joint.
        before: logs of the factors before the run, by unit; None for the network's input.
        after: logs of those behind it; None for its output.
        squarings: log2 of the order of the Schatten norm.
    """
    first = run.blocks[0].weight
    H = _after(run, after)
    for block, rule, values in zip(run.blocks[:0:-1], run.increments[::-1], list(logs)[::-1], strict=True):
        step = _stage(block, rule, values, H)
        if step is None:
            return torch.tensor(math.inf, dtype=torch.float64)
        H = step
    W = first if before is None else first * (-before[run.blocks[0].reads]).exp()
    if W.shape[-1] <= W.shape[-2]:
        F = W.mH @ H @ W
    else:  # the same eigenvalues on the smaller side
        factor, info = _linalg.cholesky_ex(H)
        if bool((info != 0).any()):
            return torch.tensor(math.inf, dtype=torch.float64)
        C = factor.mH @ W
        F = C @ C.mH
    scale = F.diagonal(dim1=-2, dim2=-1).real.sum(-1).max().detach().clamp_min(1e-300)
    F, log_scale = F / scale, scale.log()
    power, shift = F, torch.zeros((), dtype=torch.float64)
    for _ in range(squarings):
        power = power @ power
        size = power.abs().amax().detach().clamp_min(1e-300)
        power, shift = power / size, 2.0 * shift + size.log()
    trace = torch.einsum("fij,fji->", power, F).real
    order = 2.0**squarings + 1.0
    return 0.5 * ((trace.clamp_min(1e-300).log() + shift) / order + log_scale)


def _after(run: Run, after: Tensor | None) -> Tensor:
    writes = run.blocks[-1].writes
    diagonal = torch.ones(len(writes), dtype=torch.float64) if after is None else (2.0 * after[writes]).exp()
    weight = run.blocks[-1].weight
    return torch.diag(diagonal).to(weight.dtype)[None]


def _stage(block: Block, rule: Increments, logs: Tensor, H: Tensor) -> Tensor | None:
    """H before a joint from that behind its next layer; see :mod:`lipbridge.lipsdp.elimination`."""
    gram = block.weight.mH @ H @ block.weight
    E = rule.outputs
    u = len(block.reads)
    G = through_units(gram, E, E, u)
    if not rule.variables:
        return G
    T = logs.exp()[:, block.reads]
    top = torch.diag(T.sum(0)).to(gram.dtype) + G[:, :u, :u]
    S = torch.diag(T[list(rule.group)].flatten()).to(gram.dtype) - G[:, u:, u:]
    factor, info = _linalg.cholesky_ex(S)
    if bool((info != 0).any()):
        return None
    X = _linalg.solve_triangular(factor, G[:, u:, :u], upper=False)
    H = top + X.mH @ X
    return 0.5 * (H + H.mH)


def starting_logs(run: Run, factors: Sequence[Tensor], norms: Sequence[float]) -> list[Tensor]:
    """Logs of multipliers that hold and are not worse than the product of the scaled layers' norms, one a joint.

    Behind a layer ``V(y) <= g |y|^2`` in the scaled coordinates, with g the product of the squared constants from there
    on; see :func:`lipbridge.lipsdp.elimination.closed_form`.

    Args:
        factors: of the joints inside the run, by unit.
        norms: of the scaled layers, without their powers of two, one a layer.
    """
    found: list[Tensor] = []
    g = 1.0
    for index in range(len(run.increments) - 1, -1, -1):
        rule, d = run.increments[index], factors[index]
        g *= max(norms[index + 1], 1e-100) ** 2
        m, R, c = rule.outputs[:, 0], rule.outputs[:, 1:], rule.constraints
        part, gain = 1.0, float(m.square().sum())
        if rule.variables:
            part = share(m, R, c)
            gain += c * part + math.sqrt(c) * float(vector_norm(R.T @ m))
        tau = max(g * part * (1.0 + 1e-6), 1e-290)
        found.append((2.0 * d.log() + math.log(tau)).expand(c, -1).clone())
        g *= gain
    return found[::-1]


# --- the proof --------------------------------------------------------------------------------------------------------


def prove_run(run: Run, multipliers: Sequence[Tensor], before: Tensor | None, after: Tensor | None) -> float:
    """A proved upper bound of the run's constant from ``(constraints, units)`` multipliers.

    Args:
        before: factors d before the run, by unit: the constant is that of ``x = y / d``.
        after: factors behind it.

    Raises:
        NumericalFailure: if the multipliers are too far from feasible, or rounding leaves no room.
    """
    writes = run.blocks[-1].writes
    end = torch.ones(len(writes), dtype=torch.float64) if after is None else after[writes].square() * (1 + 4 * UNIT)
    count = len(run.blocks[0].weight)
    stored = [torch.diag(_both(end, run.blocks[-1])) for _ in range(count)]
    joints = zip(run.blocks[:0:-1], run.increments[::-1], list(multipliers)[::-1], strict=True)
    for block, rule, T in joints:
        stored = _prove_stage(block, rule, T, stored)
    entry = run.blocks[0]
    inverse = (
        torch.ones(entry.magnitude.shape[1], dtype=torch.float64)
        if before is None
        else before[entry.reads].reciprocal()
    )
    value = max(_entry_up(entry, inverse, H, index) for index, H in enumerate(stored))
    return times_power_of_two_up(mul_up(value, 1.0 + 2.0 * UNIT), run.exponent)


def _both(values: Tensor, block: Block) -> Tensor:
    """Values of complex coordinates for their real and imaginary parts."""
    return values.repeat(2) if block.weight.is_complex() else values


def _real(matrix: Tensor, components: int = 1) -> Tensor:
    """A complex matrix on real and imaginary parts: rows (part, row), columns (component, part, column)."""
    if not matrix.is_complex():
        return matrix
    parts = matrix.reshape(len(matrix), components, -1)
    top, bottom = torch.stack((parts.real, -parts.imag), 2), torch.stack((parts.imag, parts.real), 2)
    return torch.cat((top.flatten(1), bottom.flatten(1)))


def _real_magnitude(block: Block, components: int = 1) -> Tensor:
    """The magnitudes of real and imaginary parts, which are equal, in the places of :func:`_real`."""
    size = block.magnitude
    return _real(torch.complex(size, size), components).abs() if block.weight.is_complex() else size


def _prove_stage(block: Block, rule: Increments, T: Tensor, stored: list[Tensor]) -> list[Tensor]:
    """Storage matrices of one joint at all frequencies, by one set of multipliers for all."""
    magnitude = _real_magnitude(block, rule.components)
    reads = _both(block.reads, block)
    stages = [_stage_of(block, rule, index, len(reads)) for index in range(len(stored))]
    grams = [gram_of(stage, H, magnitude, block.error) for stage, H in zip(stages, stored, strict=True)]
    if rule.variables:
        for stage, (G, _) in zip(stages, grams, strict=True):
            raised = at_least_diagonal(stage, T[:, reads], G)
            T = torch.stack([row.scatter_reduce(0, reads, own, "amax") for row, own in zip(T, raised, strict=True)])
    lift = 0.0
    while lift < LARGEST_LIFT:
        found: list[Tensor] = []
        shift = 0.0
        for stage, (G, spread) in zip(stages, grams, strict=True):
            storage, shift = attempt(stage, (T * (1.0 + lift))[:, reads], G, spread)
            if storage is None:
                break
            found.append(storage)
        if len(found) == len(stages):
            return found
        lift = max(4.0 * shift, 8.0 * lift)
    raise NumericalFailure("The multipliers of a run of layers are too far from feasible for a proof.")


def _stage_of(block: Block, rule: Increments, index: int, width: int) -> Stage:
    weight = _real(block.weight[index], rule.components)
    return Stage(rule, weight, torch.arange(width), width)


def _entry_up(entry: Block, inverse: Tensor, H: Tensor, index: int) -> float:
    """Upper bound of ``|H^(1/2) W|`` for the true scaled layer at one frequency."""
    inverse = _both(inverse, entry)
    W = _real(entry.weight[index]) * inverse
    size = _real_magnitude(entry) * inverse * COVER
    # |H^(1/2) D|^2 <= the largest row sum of |D|'|H||D| for an error D of at most `relative` times the magnitudes.
    relative = add_up(entry.error, 4.0 * UNIT)
    inner = largest_sum(size.T @ (H.abs() @ size.sum(1)))
    lost = mul_up(sqrt_up(mul_up(float(H.abs().max()) + 1.0, H.numel())), 4.0 * W.numel(), TINY)
    return add_up(entry_norm_up(H, W), mul_up(relative, sqrt_up(mul_up(inner, COVER))), lost)
