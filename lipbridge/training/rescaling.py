"""Function-preserving rescaling: the same network, with the least trivial bound that diagonal factors can give it.

An activation with g(d t) = d g(t) for d > 0 lets every unit be scaled: the row of W_l and the bias times d, the columns
of W_(l+1) that read the unit divided by d. The trivial bound changes, the function does not. The units of a
convolution are its channels (:mod:`lipbridge.rescaling.channels`), so that it stays one.

- l_2: the least product of spectral norms. For a dense chain that is a chain of matrix inequalities
  ``W_1' D_1 W_1 <= rho I``, ``W_2' D_2 W_2 <= D_1``, ... in the squares D of the factors, solved to its optimum by
  Newton's method (:mod:`lipbridge.lipsdp.solve.newton`) where that is quick; otherwise, and for convolutions, by
  L-BFGS to within about 0.3 %.
- l_inf, in closed form: factors ``1 / (|W_l| ... |W_1| 1)`` make all row sums one, and no product of row sums is below
  ``max |W_L| ... |W_1| 1``. l_1: the same from the output. Of a convolution's channel the largest position counts.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from lipbridge import checks
from lipbridge.constants.scaled_layers import on_inputs
from lipbridge.constants.trivial import trivial_bound
from lipbridge.errors import NumericalFailure, UnsupportedOperation, UnsupportedProblem, first_line
from lipbridge.frontend.capture import capture, read_module
from lipbridge.frontend.export import unwrapped
from lipbridge.frontend.program import Reading
from lipbridge.graph.evaluation import evaluate
from lipbridge.graph.graph import Graph
from lipbridge.graph.nodes import Conv, Dense, Elementwise, Input, Node
from lipbridge.lipsdp.constraints import Increments
from lipbridge.lipsdp.system import lipsdp_of
from lipbridge.problem.bound import Bound
from lipbridge.rescaling.channel_chain import ChannelChain, Layer, channel_chain
from lipbridge.rescaling.channels import LARGEST_FACTOR, best_factors, ones
from lipbridge.training.same_function import same_function
from lipbridge.training.scalable_weights import ScalableWeight, scalable_weight
from lipbridge.verifiers.lipsdp_fast import predicted_seconds, solve
from lipbridge.vocabulary import Norm, as_norm

#: Relative distance to the best bound at which Newton's method stops, and the seconds that it and L-BFGS may take.
GAP, SECONDS = 1e-4, 120.0
#: Newton's method is not begun if it is predicted to take longer.
NEWTON_SECONDS = 10.0


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


def rescale(
    module: nn.Module, norm: Norm | str = 2, *, exact: bool = False, input_shape: Sequence[int] | None = None
) -> RescaleResult:
    """Rescale the units of a network so that its trivial bound is the least possible, and its function the same.

    Units of positively homogeneous activations (relu, leaky_relu, abs, crelu, identity_abs, ...) are scaled, of a
    convolution its channels; layers around other activations are left alone. So are weights that are not the parameter
    of one layer used once, or given by a parametrisation whose ``right_inverse`` takes others. Afterwards the two
    modules are compared at random points, and a difference beyond rounding is a refusal.

    Weights are computed in float64 and rounded to the parameter's dtype, so the function is the same up to that
    rounding; with ``exact`` all factors are powers of two, and it is the same exactly (but for weights that underflow),
    for a bound that is a little larger.

    Args:
        module: a chain of ``nn.Linear`` and ``nn.Conv`` layers, activations, pooling and flattening. Only a copy is
            written, so it stays as it is, whatever happens.
        norm: 1, 2 or "inf".
        exact: powers of two only.
        input_shape: as for :func:`lipbridge.capture`.

    Returns:
        A copy of the same type and dtype, and the proved trivial bounds before and after.

    Raises:
        UnsupportedOperation: for a network that is no such chain, that has no weight which may be scaled, that cannot
            be copied, or that would become another function.
        NumericalFailure: if weights hold NaN or infinity.

    Source: ours; the l_2 optimum is LipSDP's for slopes in [-1, 1]. Laws: ``after.value <= before.value``; the outputs
    agree.
    """
    p = as_norm(norm)
    checks.flag(exact, "exact")
    copied = _copy_of(checks.instance(module, nn.Module, "module", "be a torch.nn.Module"))
    reading, chain, weights = _read(copied, input_shape)
    graph = copy.deepcopy(reading.graph)  # of a float64 module it reads the memory that is written below
    before = trivial_bound(graph, p)
    start = time.perf_counter()
    factors = _squares(chain) if p == 2 else _sums(chain, p)
    if exact:
        factors = [torch.exp2(d.log2().round()) for d in factors]
    if not all(bool((d > 0).all() and torch.isfinite(d).all()) for d in factors):
        raise NumericalFailure("The factors of the rescaling are beyond float64.")
    _apply(chain, weights, factors)
    try:
        scaled = capture(copied, input_shape)
        after = trivial_bound(scaled, p)
        _require_same((module, copied), (graph, scaled))
    except NumericalFailure:  # a weight overflowed its dtype
        after = before
    if not after.value < before.value:
        copied, after = _copy_of(module), before
        _require_same((module, copied), (graph, graph))
    after = replace(after, seconds=time.perf_counter() - start, method="trivial bound, rescaled")
    return RescaleResult(copied, before, after)


def _copy_of(module: nn.Module) -> nn.Module:
    """A copy that shares no memory with the module, which therefore stays as it is, whatever happens.

    Raises:
        UnsupportedOperation: if there is no such copy.
    """
    kind = type(module).__name__
    try:
        copied = copy.deepcopy(module)
    except Exception as error:
        hint = f"The module cannot be copied: {first_line(error)}. Attributes that are computed tensors cannot."
        raise UnsupportedOperation(kind, "rescaling", hint) from error
    ours, theirs = ({t.data_ptr() for t in (*m.parameters(), *m.buffers()) if t.numel()} for m in (module, copied))
    if ours & theirs:
        raise UnsupportedOperation(kind, "rescaling", "A copy of the module shares tensors with the module.")
    return copied


def _require_same(modules: tuple[nn.Module, nn.Module], graphs: tuple[Graph, Graph]) -> None:
    """Raise :class:`UnsupportedOperation` if the two differ by more than rounding explains."""
    if not same_function(modules, graphs):
        reason = (
            "A scaled weight or bias is used in more than one way, or computed on the way, so the network would become "
            "another function."
        )
        raise UnsupportedOperation(type(modules[0]).__name__, "rescaling", reason)


def require_rescalable(module: nn.Module, input_shape: Sequence[int] | None = None) -> None:
    """Raise :class:`UnsupportedOperation` if :func:`rescale` could not take the module."""
    _read(_copy_of(module), input_shape)


def _read(
    module: nn.Module, input_shape: Sequence[int] | None
) -> tuple[Reading, ChannelChain, list[ScalableWeight | None]]:
    """What was read, its chain, and the weights of its layers; joints that cannot be scaled are not free."""
    reading = read_module(module, input_shape)
    try:
        chain = channel_chain(reading.graph, _is_pooling)
    except UnsupportedProblem as error:
        raise UnsupportedOperation("network", "rescaling", f"It takes a chain of layers. {error}") from error
    found = [scalable_weight(unwrapped(module), reading, layer.node) for layer in chain.layers]
    weights = [None if isinstance(weight, str) else weight for weight in found]
    joints = tuple(
        # BatchNorm behind a layer adds a shift that would have to be scaled as well.
        replace(
            joint,
            free=all(g.homogeneous for g in joint.activations)
            and None not in weights[i : i + 2]
            and chain.layers[i].scale is None,
        )
        for i, joint in enumerate(chain.joints)
    )
    if joints and not any(joint.free for joint in joints):
        for layer, weight in zip(chain.layers, found, strict=True):
            if isinstance(weight, str):
                raise UnsupportedOperation(layer.node.name, "rescaling", weight)
    return reading, replace(chain, joints=joints), weights


def _is_pooling(node: Node) -> bool:
    """Average pooling: the same on every channel, with no weight of the module."""
    return (
        isinstance(node, Conv)
        and not node.parameter
        and node.bias is None
        and node.weight.shape[:2] == (node.groups, 1)
        and bool((node.weight == node.weight[:1]).all())
    )


def _squares(chain: ChannelChain) -> list[Tensor]:
    """The factors of least product of spectral norms."""
    factors = ones(chain)
    deadline = time.perf_counter() + SECONDS
    slow = False
    for first, last in _runs(chain):
        found = _by_newton(chain, first, last, deadline)
        slow = slow or found is None
        factors[first:last] = factors[first:last] if found is None else found
    return best_factors(chain, deadline) if slow else factors


def _runs(chain: ChannelChain) -> Iterator[tuple[int, int]]:
    """Index pairs (first, last) of layers with free joints between them, at least one."""
    first = 0
    for index, joint in enumerate(chain.joints):
        if not joint.free:
            if index > first:
                yield first, index
            first = index + 1
    if len(chain.joints) > first:
        yield first, len(chain.joints)


def _by_newton(chain: ChannelChain, first: int, last: int, deadline: float) -> list[Tensor] | None:
    """The optimum of a run of dense layers with an activation between each two; None if it is no such run, or slow."""
    graph = _dense_run(chain, first, last)
    if graph is None:
        return None
    unchanged = [torch.ones(joint.units, dtype=torch.float64) for joint in chain.joints[first:last]]
    system = lipsdp_of(graph)
    if system.constant:
        return unchanged
    stages = tuple(replace(stage, increments=_joint(stage.increments.components)) for stage in system.stages)
    system = replace(system, stages=stages, rounding=0.0)
    if predicted_seconds(system) > NEWTON_SECONDS:
        return None
    solution = solve(system, GAP, deadline, system.entry.device)
    if solution is None or solution.timed_out:
        return None
    for d, stage, T in zip(unchanged, stages, solution.vectors, strict=True):
        root = T[0].clamp_min(0.0).sqrt()
        root = root / _geometric_mean(root)
        d[stage.kept] = root.clamp(1.0 / LARGEST_FACTOR, LARGEST_FACTOR)
    return unchanged


def _dense_run(chain: ChannelChain, first: int, last: int) -> Graph | None:
    """The Graph of a part of a chain, without biases, if it is one of dense layers and single activations."""
    layers, joints = chain.layers[first : last + 1], chain.joints[first:last]
    nodes: list[Node] = [Input("input", (), (layers[0].node.weight.shape[-1],))]
    for index, layer in enumerate(layers):
        m = layer.node.weight.shape[0]
        if isinstance(layer.node, Conv):
            return None
        nodes.append(Dense(layer.node.name, (len(nodes) - 1,), (m,), layer.weight()))
        if index < len(joints):
            (activation, *others), width = joints[index].activations or (None,), layers[index + 1].shape[0] // m
            if others or activation is None or activation.width != width or joints[index].units != m:
                return None
            nodes.append(Elementwise(layer.node.name, (len(nodes) - 1,), (m * width,), activation))
    return Graph(tuple(nodes))


def _geometric_mean(values: Tensor) -> Tensor:
    return values.log().mean().exp()


def _joint(components: int) -> Increments:
    """|dy| <= |dz| for the K outputs together: then the matrix inequality is that of the rescaled trivial bound."""
    E = torch.cat([torch.zeros(components, 1), torch.eye(components)], 1).to(torch.float64)
    return Increments(E, torch.zeros_like(E), (0,) * components)


def _sums(chain: ChannelChain, p: Norm) -> list[Tensor]:
    """The factors of least product of row sums (inf) or column sums (1)."""
    factors, joints, last = ones(chain), chain.joints, len(chain.layers) - 1
    reach: Tensor | None = None
    for index in range(last) if p == "inf" else range(last, 0, -1):
        layer = chain.layers[index]
        near = index if p == "inf" else index - 1  # the joint behind the layer, seen from where we come
        reach = _positive(_spread_forward(layer, reach, joints[near].units) if p == "inf"
                          else _spread_backward(layer, reach, joints[near].units))  # fmt: skip
        if joints[near].free:
            factors[near] = 1.0 / reach if p == "inf" else reach
        else:
            reach = None
    return factors


def _spread_forward(layer: Layer, reach: Tensor | None, units: int) -> Tensor:
    """For each unit behind the layer the largest of ``|A| reach`` over its coordinates."""
    ones = torch.ones(layer.shape[0] if isinstance(layer.node, Conv) else layer.shape[-1], dtype=torch.float64)
    values = _magnitudes(layer, _image(ones if reach is None else reach[layer.reads], layer.shape))
    return _largest(values, layer.writes, units)


def _spread_backward(layer: Layer, reach: Tensor | None, units: int) -> Tensor:
    """For each unit before the layer the largest of ``|A|' reach`` over its coordinates."""
    channels = torch.ones(layer.node.weight.shape[0], dtype=torch.float64) if reach is None else reach[layer.writes]
    start = torch.zeros(1, *layer.shape, dtype=torch.float64, requires_grad=True)
    with torch.enable_grad():
        values = _magnitudes(layer, start)
        (found,) = torch.autograd.grad(values, start, _image(channels, tuple(values.shape[1:])))
    return _largest(found, layer.reads, units)


def _magnitudes(layer: Layer, x: Tensor) -> Tensor:
    weight = layer.weight().cpu().abs()
    return evaluate(replace(layer.node, weight=weight, bias=None), [x])


def _image(channels: Tensor, shape: tuple[int, ...]) -> Tensor:
    return channels.reshape(1, -1, *[1] * (len(shape) - 1)).expand(1, *shape)


def _largest(values: Tensor, names: Tensor, units: int) -> Tensor:
    per_name = values[0].detach().flatten(1).amax(1) if values.ndim > 2 else values[0].detach()
    return torch.zeros(units, dtype=torch.float64).scatter_reduce(0, names, per_name, "amax")


def _positive(values: Tensor) -> Tensor:
    """Divided by their geometric mean and kept within bounds; zeros (dead units) count as the smallest."""
    alive = values[values > 0]
    if not alive.numel():
        return torch.ones_like(values)
    return (values / _geometric_mean(alive)).clamp(1.0 / LARGEST_FACTOR, LARGEST_FACTOR)


def _apply(chain: ChannelChain, weights: Sequence[ScalableWeight | None], factors: Sequence[Tensor]) -> None:
    """Rows and bias times a layer's factors, columns divided by those of the layer before; rounded once."""
    for index, (layer, own) in enumerate(zip(chain.layers, weights, strict=True)):
        behind = index < len(factors) and chain.joints[index].free
        ahead = index > 0 and chain.joints[index - 1].free
        if own is None or not (behind or ahead):
            continue
        W, bias = own.weight, own.bias
        if ahead:
            W = W / on_inputs(layer.node, factors[index - 1][layer.reads])
        if behind:
            d = factors[index][layer.writes]
            W = W * d.reshape(-1, *[1] * (W.ndim - 1))
            bias = None if bias is None else bias * d
        own.write(W, bias if behind else None)
