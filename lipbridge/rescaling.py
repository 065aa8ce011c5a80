"""Function-preserving rescaling: the same network, with the least trivial bound that diagonal factors can give it.

An activation with g(d t) = d g(t) for d > 0 lets every unit be scaled: the row of W_l and the bias times d, the columns
of W_(l+1) that read the unit divided by d. The trivial bound changes, the function does not.

- l_2: the least product of spectral norms is a chain of matrix inequalities ``W_1' D_1 W_1 <= rho I``,
  ``W_2' D_2 W_2 <= D_1``, ... in the squares D of the factors. It is convex, and solved to its optimum by Newton's
  method (:mod:`lipbridge.verifiers.lipsdp_newton`).
- l_inf, in closed form: factors ``1 / (|W_l| ... |W_1| 1)`` make all row sums one, and no product of row sums is below
  ``max |W_L| ... |W_1| 1``. l_1: the same from the output.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from lipbridge.activations import Activation
from lipbridge.bounds import Bound, trivial_bound
from lipbridge.capture import capture
from lipbridge.errors import NumericalFailure, UnsupportedOperation, UnsupportedProblem
from lipbridge.graph import Chain, Dense, Elementwise, Graph, Input, Node, as_chain
from lipbridge.verifiers.lipsdp_fast import solve
from lipbridge.verifiers.lmi_increments import Increments
from lipbridge.verifiers.lmi_system import LipSDP, lipsdp_of
from lipbridge.vocabulary import Norm, as_norm

#: Relative distance to the best bound at which Newton's method stops, and the seconds that it may take.
GAP, SECONDS = 1e-4, 120.0
#: Factors are kept within these powers of two, so that no weight of float32 is lost.
LARGEST_FACTOR = 2.0**30


@dataclass(frozen=True, eq=False)
class RescaleResult:
    """A rescaled network and its trivial bound before and after.

    Attributes:
        module: a copy of the module with other weights and the same function.
        before: the proved trivial bound of the module that was given.
        after: the proved trivial bound of ``module``, never above ``before``.
    """

    module: nn.Module
    before: Bound
    after: Bound


def rescale(module: nn.Module, norm: Norm | str = 2, *, exact: bool = False) -> RescaleResult:
    """Rescale the units of a network so that its trivial bound is the least possible, and its function the same.

    Units of positively homogeneous activations (relu, leaky_relu, abs, crelu, identity_abs, ...) are scaled; layers
    around other activations are left alone. Weights are computed in float64 and rounded to the parameter's dtype, so
    the function is the same up to that rounding; with ``exact`` all factors are powers of two, and it is the same
    exactly (but for weights that underflow), for a bound that is a little larger.

    Args:
        module: a chain of ``nn.Linear`` layers and activations. It is not changed.
        norm: 1, 2 or "inf".
        exact: powers of two only.

    Returns:
        A copy of the same type and dtype, and the proved trivial bounds before and after.

    Raises:
        UnsupportedOperation: for a network that is no such chain, or that uses a layer twice.
        NumericalFailure: if weights hold NaN or infinity.

    Source: ours; the l_2 optimum is LipSDP's for slopes in [-1, 1]. Laws: ``after.value <= before.value``; the outputs
    agree.
    """
    p = as_norm(norm)
    copied = copy.deepcopy(module)
    graph, chain, linears = _read(copied)
    before = trivial_bound(graph, p)
    start = time.perf_counter()
    factors = [torch.ones(layer.weight.shape[0], dtype=torch.float64) for layer in chain.layers[:-1]]
    for first, last in _runs(chain):
        part = Chain(chain.layers[first : last + 1], chain.activations[first:last])
        factors[first:last] = _squares(part) if p == 2 else _sums(part, p)
    if exact:
        factors = [torch.exp2(d.log2().round()) for d in factors]
    if not all(bool((d > 0).all() and torch.isfinite(d).all()) for d in factors):
        raise NumericalFailure("The factors of the rescaling are beyond float64.")
    _apply(linears, chain.activations, factors)
    try:
        after = trivial_bound(capture(copied), p)
    except NumericalFailure:  # a weight overflowed its dtype
        after = before
    if not after.value < before.value:
        copied, after = copy.deepcopy(module), before
    after = replace(after, seconds=time.perf_counter() - start, method="trivial bound, rescaled")
    return RescaleResult(copied, before, after)


def require_rescalable(module: nn.Module) -> None:
    """Raise :class:`UnsupportedOperation` if :func:`rescale` could not take the module."""
    _read(module)


def _read(module: nn.Module) -> tuple[Graph, Chain, list[nn.Linear]]:
    graph = capture(module)
    try:
        chain = as_chain(graph)
    except UnsupportedProblem as error:
        raise UnsupportedOperation("network", "rescaling", str(error)) from error
    return graph, chain, _linears(module, chain)


def _linears(module: nn.Module, chain: Chain) -> list[nn.Linear]:
    """The modules behind the layers of a chain, each used once."""
    found: list[nn.Linear] = []
    for layer in chain.layers:
        path, _, parameter = (layer.parameter or "").rpartition(".")
        owner = module.get_submodule(path) if parameter == "weight" else None
        if not isinstance(owner, nn.Linear) or layer.transposed:
            raise UnsupportedOperation(layer.name, "rescaling", "Only the weights of nn.Linear layers can be rescaled.")
        found.append(owner)
    tensors = [layer.weight.data_ptr() for layer in found]
    tensors += [layer.bias.data_ptr() for layer in found if _has_bias(layer)]
    if len(set(tensors)) < len(tensors):
        raise UnsupportedOperation(chain.layers[0].name, "rescaling", "A layer that is used twice cannot be rescaled.")
    return found


def _has_bias(layer: nn.Linear) -> bool:
    return any(name == "bias" for name, _ in layer.named_parameters(recurse=False))


def _runs(chain: Chain) -> Iterator[tuple[int, int]]:
    """Index pairs (first, last) of layers with homogeneous activations between them, at least one."""
    first = 0
    for index, activation in enumerate(chain.activations):
        if not activation.homogeneous:
            if index > first:
                yield first, index
            first = index + 1
    if len(chain.activations) > first:
        yield first, len(chain.activations)


def _squares(chain: Chain) -> list[Tensor]:
    """The factors of least product of spectral norms."""
    system = lipsdp_of(_graph(chain))
    unchanged = [torch.ones(layer.weight.shape[0], dtype=torch.float64) for layer in chain.layers[:-1]]
    if system.constant:
        return unchanged
    stages = tuple(replace(stage, increments=_joint(stage.increments.components)) for stage in system.stages)
    system = LipSDP(system.entry, stages, system.exponent, system.constant)
    solution = solve(system, GAP, time.perf_counter() + SECONDS, system.entry.device)
    if solution is None:
        return unchanged
    for d, stage, T in zip(unchanged, stages, solution.vectors, strict=True):
        root = T[0].clamp_min(0.0).sqrt()
        root = root / _geometric_mean(root)
        d[stage.kept] = root.clamp(1.0 / LARGEST_FACTOR, LARGEST_FACTOR)
    return unchanged


def _geometric_mean(values: Tensor) -> Tensor:
    return values.log().mean().exp()


def _joint(components: int) -> Increments:
    """|dy| <= |dz| for the K outputs together: then the matrix inequality is that of the rescaled trivial bound."""
    E = torch.cat([torch.zeros(components, 1), torch.eye(components)], 1).to(torch.float64)
    return Increments(E, torch.zeros_like(E), (0,) * components)


def _sums(chain: Chain, p: Norm) -> list[Tensor]:
    """The factors of least product of row sums (inf) or column sums (1)."""
    magnitudes = [layer.weight.detach().cpu().abs() for layer in chain.layers]
    widths = [activation.width for activation in chain.activations]
    factors: list[Tensor] = []
    if p == "inf":
        reach = torch.ones(magnitudes[0].shape[1], dtype=torch.float64)
        for W, K in zip(magnitudes[:-1], widths, strict=True):
            reach = _positive(W @ reach)
            factors.append(1.0 / reach)
            reach = reach.repeat(K)
        return factors
    reach = torch.ones(magnitudes[-1].shape[0], dtype=torch.float64)
    for W, K in zip(reversed(magnitudes[1:]), reversed(widths), strict=True):
        reach = _positive((W.T @ reach).reshape(K, -1).amax(0))
        factors.append(reach)
    return factors[::-1]


def _positive(values: Tensor) -> Tensor:
    """Divided by their geometric mean and kept within bounds; zeros (dead units) count as the smallest."""
    alive = values[values > 0]
    if not alive.numel():
        return torch.ones_like(values)
    return (values / _geometric_mean(alive)).clamp(1.0 / LARGEST_FACTOR, LARGEST_FACTOR)


def _graph(chain: Chain) -> Graph:
    """The Graph of a part of a chain, without biases."""
    nodes: list[Node] = [Input("input", (), (chain.layers[0].weight.shape[1],))]
    for index, layer in enumerate(chain.layers):
        m = layer.weight.shape[0]
        nodes.append(Dense(layer.name, (len(nodes) - 1,), (m,), layer.weight))
        if index < len(chain.activations):
            activation = chain.activations[index]
            nodes.append(Elementwise(layer.name, (len(nodes) - 1,), (m * activation.width,), activation))
    return Graph(tuple(nodes))


def _apply(linears: list[nn.Linear], activations: tuple[Activation, ...], factors: list[Tensor]) -> None:
    """Rows and bias times a layer's factors, columns divided by those of the layer before; rounded once."""
    before: Tensor | None = None
    with torch.no_grad():
        for index, layer in enumerate(linears):
            W = layer.weight.detach().to(device="cpu", dtype=torch.float64)
            if before is not None:
                W = W / before
            if index < len(factors):
                d = factors[index]
                W = W * d[:, None]
                before = d.repeat(activations[index].width)
                if _has_bias(layer):
                    layer.bias.copy_(layer.bias.detach().to(device="cpu", dtype=torch.float64) * d)
            layer.weight.copy_(W)
