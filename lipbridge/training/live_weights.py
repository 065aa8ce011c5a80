"""The weights of a Graph's layers as the module's tensors give them now, so that a penalty reads them in every call.

A weight that is a tensor of the module is read there; one that is computed on the way (parametrised, standardised,
scaled by statistics) is computed anew by the part of the program that gives it, with gradients to all parameters.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from lipbridge.constants.node_constants import propagate
from lipbridge.errors import UnsupportedOperation
from lipbridge.frontend.activations import TwoSlopes
from lipbridge.frontend.builder import Curve, Deferred, Recipe
from lipbridge.frontend.capture import owner_of
from lipbridge.frontend.export import BatchSize, Program, layer_name, operation_name
from lipbridge.frontend.normalisation import SCALE
from lipbridge.frontend.program import ProgramReader, Reading
from lipbridge.frontend.program_values import Repeated
from lipbridge.graph.graph import Graph, reached, tensors
from lipbridge.graph.nodes import Add, Concat, Conv, ConvTranspose, Dense, Elementwise, Input, Node
from lipbridge.vocabulary import Norm


@dataclass(frozen=True)
class _Slot:
    """The result of an earlier step."""

    index: int


@dataclass(frozen=True)
class LiveTensor:
    """A weight of one node: a parameter as it stands, or a part of the program that computes it.

    ``stored`` is the module that owns the parameter, its name there, and whether the weight is its transpose.
    """

    stored: tuple[nn.Module, str, bool] | None
    recipe: Recipe
    steps: tuple[Callable[[list[Any]], Any], ...]
    results: tuple[int, ...]

    def read(self) -> Tensor:
        """The weight as the layer uses it, with gradients, in the module's dtype."""
        if self.stored is not None:
            owner, name, transposed = self.stored
            tensor = cast(Tensor, getattr(owner, name))
            return tensor.T if transposed else tensor
        values: list[Any] = []
        for step in self.steps:
            values.append(step(values))
        return self.recipe.compute(*(values[index] for index in self.results))


@dataclass(frozen=True)
class LiveLayer:
    """A layer with weights: what it reads, and the scale of a normalisation that follows it and nothing else reads.

    ``node`` is a Dense, Conv or ConvTranspose, or an Elementwise whose weight is one number that its Lipschitz
    constant is the absolute value of.
    """

    node: Dense | Conv | ConvTranspose | Elementwise
    weight: LiveTensor
    scale: LiveTensor | None

    @property
    def tensor(self) -> Tensor:
        """The parameter, if ``direct``."""
        assert self.weight.stored is not None
        owner, name, _ = self.weight.stored
        return cast(Tensor, getattr(owner, name))

    @property
    def transposed(self) -> bool:
        """Whether the layer's matrix is the parameter's transpose."""
        return self.weight.stored is not None and self.weight.stored[2]

    @property
    def direct(self) -> bool:
        """Whether the layer's weight is a parameter as it stands, or its transpose, and is trained."""
        if self.scale is not None or self.weight.stored is None:
            return False
        return isinstance(self.tensor, nn.Parameter) and self.tensor.requires_grad

    @property
    def scalar(self) -> bool:
        """Whether the layer acts on each coordinate or channel by itself: its norm is its largest entry."""
        if isinstance(self.weight.recipe.compute, TwoSlopes):
            return True
        return isinstance(self.node, Elementwise) or (isinstance(self.node, Conv) and self.node.diagonal)

    def read(self) -> Tensor:
        """The weight, scaled, with gradients to all parameters."""
        weight = self.weight.read()
        if self.scale is None:
            return weight
        return weight * self.scale.read().reshape(-1, *(1,) * (weight.ndim - 1))


def live_layers(module: nn.Module, reading: Reading) -> dict[int, LiveLayer]:
    """The layers whose weights depend on parameters or buffers, by the index of their node; see :class:`LiveLayer`."""
    graph, recipes = reading.graph, reading.recipes
    readers = graph.readers()
    found: dict[int, LiveLayer] = {}
    merged: set[int] = set()
    for index, node in enumerate(graph.nodes):
        if index not in recipes or index in merged:
            continue
        assert isinstance(node, Dense | Conv | ConvTranspose | Elementwise)
        scale = None
        after = readers[index]
        if _mergeable(node) and len(after) == 1 and after[0] in recipes and _is_scale(graph.nodes[after[0]]):
            scale = _tensor(module, reading, after[0])
            merged.add(after[0])
        found[index] = LiveLayer(node, _tensor(module, reading, index), scale)
    return found


def require_no_choice(reading: Reading) -> None:
    """That no weight decides which numbers pass, e.g. ``x.masked_fill(p > 0.5, 0.0)``: such a bound has jumps.

    Raises:
        UnsupportedOperation: naming the operation that makes the choice.
    """
    reader = reading.reader
    choices: set[fx.Node] = set()
    for node in reading.program.graph.nodes:
        value = reader.values.get(node)
        if isinstance(value, Curve | Deferred) and any(source in choices for source in node.all_input_nodes):
            hint = "Which numbers pass here depends on the values of weights; a penalty has no gradient for that."
            raise UnsupportedOperation(layer_name(node), operation_name(node), hint)
        if node in reader.live and isinstance(value, Tensor) and not value.is_floating_point():
            sources = [source for source in node.all_input_nodes if source in reader.live]
            computed = any(source in choices or _is_real(reader.values[source]) for source in sources)
            choices.update([node] if computed else [])


def _is_real(value: Any) -> bool:
    return isinstance(value, Tensor) and value.is_floating_point()


def merged_scales(graph: Graph, layers: Mapping[int, LiveLayer]) -> set[int]:
    """The nodes of scales that count with the layer before them."""
    return {i for i, node in enumerate(graph.nodes) if any(s in layers and layers[s].scale for s in node.inputs)}


def _mergeable(node: Node) -> bool:
    if isinstance(node, Dense):
        return len(node.shape) == 1
    return isinstance(node, Conv) and not node.diagonal


def _is_scale(node: Node) -> bool:
    return isinstance(node, Conv) and node.diagonal and node.parameter == SCALE


def _tensor(module: nn.Module, reading: Reading, index: int) -> LiveTensor:
    node, recipe = reading.graph.nodes[index], reading.recipes[index]
    steps, results = _steps(reading.program, reading.reader, recipe.sources)
    return LiveTensor(_stored(module, node), recipe, steps, results)


def _stored(module: nn.Module, node: Node) -> tuple[nn.Module, str, bool] | None:
    """Where the weight stands, if it is a parameter or its transpose."""
    if not isinstance(node, Dense | Conv | ConvTranspose) or not node.parameter or node.parameter == SCALE:
        return None
    owner, name = owner_of(module, node.parameter), node.parameter.rpartition(".")[2]
    tensor = getattr(owner, name, None)
    transposed = isinstance(node, Dense) and node.transposed
    if owner is None or not isinstance(tensor, Tensor):
        return None
    shape = tuple(tensor.T.shape if transposed else tensor.shape)
    return (owner, name, transposed) if shape == tuple(node.weight.shape) else None


def _steps(
    program: Program, reader: ProgramReader, sources: Sequence[Any]
) -> tuple[tuple[Callable[[list[Any]], Any], ...], tuple[int, ...]]:
    """The operations that give the sources from the module's tensors, in order, and where the sources are then."""
    place: dict[Any, int] = {}
    steps: list[Callable[[list[Any]], Any]] = []

    def add(key: Any, step: Callable[[list[Any]], Any]) -> None:
        place[key] = len(steps)
        steps.append(step)

    starts = [source for source in sources if isinstance(source, fx.Node)]
    wanted = reached(starts, lambda node: node.all_input_nodes if node in reader.live else ())
    for node in program.graph.nodes:
        if node not in wanted:
            continue
        if node in program.stored:
            add(node, _stored_step(reader.tensor_of, program.stored[node]))
        elif node not in reader.live:
            add(node, _fixed_step(reader.values.get(node), program.dtype))
        else:
            arguments = pytree.tree_map(_placed(place), program.takes(node))
            add(node, _call_step(node.target, *arguments))
    for source in sources:
        if not isinstance(source, fx.Node):
            add(id(source), _fixed_step(source, program.dtype))
    return tuple(steps), tuple(place[s if isinstance(s, fx.Node) else id(s)] for s in sources)


def _placed(place: Mapping[Any, int]) -> Callable[[Any], Any]:
    def leaf(item: Any) -> Any:
        if isinstance(item, fx.Node):
            return _Slot(place[item])
        return 1 if isinstance(item, BatchSize) else item

    return leaf


def _stored_step(tensor_of: Callable[[str], Tensor], name: str) -> Callable[[list[Any]], Any]:
    return lambda _: tensor_of(name)


def _fixed_step(value: Any, dtype: torch.dtype) -> Callable[[list[Any]], Any]:
    if isinstance(value, Repeated):
        value = value.one
    if isinstance(value, BatchSize):
        value = 1
    if isinstance(value, Tensor) and value.is_floating_point():
        value = value.to(dtype)
    return lambda _: value


def _call_step(target: Any, args: Any, kwargs: Any) -> Callable[[list[Any]], Any]:
    def filled(template: Any, values: list[Any]) -> Any:
        if isinstance(template, _Slot):
            return values[template.index]
        if isinstance(template, list | tuple):
            return [filled(item, values) for item in cast(Sequence[Any], template)]
        return template

    options = dict(kwargs)
    return lambda values: target(
        *(filled(item, values) for item in args), **{key: filled(item, values) for key, item in options.items()}
    )


def fixed_factors(graph: Graph, norm: Norm, layers: Mapping[int, LiveLayer]) -> dict[int, float]:
    """The constants of all nodes with one input and no live weight of their own, by index."""
    found: dict[int, float] = {}
    scales = merged_scales(graph, layers)
    for index, node in enumerate(graph.nodes):
        if isinstance(node, Input | Add | Concat) or index in layers:
            continue
        weight = tensors(node).get("weight")
        # A scale counts with the layer before it; on the meta device there is no number to read.
        known = index in scales or (weight is not None and weight.is_meta)
        shapes = [graph.nodes[i].shape for i in node.inputs]
        found[index] = 1.0 if known else propagate(node, [{norm: 1.0}], shapes)[norm]
    return found


def check_live(layers: Mapping[int, LiveLayer], kept: Graph, fresh: Graph) -> None:
    """That the layers' weights are those of a fresh capture, and that a kept program gives its Graph.

    Raises:
        UnsupportedOperation: naming the first layer that is read from other tensors than the module computes with.
    """
    reason = "When parameters or buffers change, it changes in another way than is read: it holds a copy of a weight."
    if len(kept.nodes) != len(fresh.nodes):
        raise UnsupportedOperation(fresh.name, "forward", reason)
    for index, (ours, theirs) in enumerate(zip(kept.nodes, fresh.nodes, strict=True)):
        if not _alike(ours, theirs):
            raise UnsupportedOperation(theirs.name, type(theirs).__name__, reason)
        if index in layers and layers[index].scale is None:
            weight = layers[index].read().detach()
            right = _factor_of(theirs).to(weight.device).reshape(weight.shape)
            room = 64.0 * torch.finfo(weight.dtype).eps * float(right.abs().max().clamp_min(1e-30))
            if not bool(((weight.to(torch.float64) - right).abs() <= max(room, 1e-4 * float(right.abs().max()))).all()):
                raise UnsupportedOperation(theirs.name, type(theirs).__name__, reason)


def _factor_of(node: Node) -> Tensor:
    if isinstance(node, Elementwise):
        (component,) = node.activation.components
        if component[0].function == "leaky_relu":
            return torch.tensor(node.activation.lipschitz[2], dtype=torch.float64)
        return torch.tensor(component[0].coefficient * component[0].scale, dtype=torch.float64)
    return tensors(node)["weight"]


def _alike(ours: Node, theirs: Node) -> bool:
    if type(ours) is not type(theirs) or vars(ours).keys() != vars(theirs).keys():
        return False
    for name, value in vars(ours).items():
        other = vars(theirs)[name]
        if isinstance(value, Tensor) and isinstance(other, Tensor):
            if value.shape != other.shape or not torch.equal(value, other):
                return False
        elif isinstance(value, Tensor) or isinstance(other, Tensor) or value != other:
            return False
    return True


__all__ = [
    "LiveLayer",
    "LiveTensor",
    "check_live",
    "fixed_factors",
    "live_layers",
    "merged_scales",
    "require_no_choice",
]
