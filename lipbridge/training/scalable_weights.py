"""The weights of layers that may be scaled in place: those that nothing but their layer reads.

A layer's weight may be written if it *is* the stored parameter of exactly one use, or the result of a parametrisation
whose ``right_inverse`` takes other weights. Whatever else gives a weight (a computation in forward, a hook, a buffer, a
parameter that two layers share, memory that two tensors share) would change more than the layer, or nothing at all.
"""

from __future__ import annotations

import copy
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, fx, nn
from torch.nn.utils import parametrize
from torch.utils import _pytree as pytree

from lipbridge.errors import UnsupportedOperation
from lipbridge.frontend.builder import itself
from lipbridge.frontend.capture import owner_of
from lipbridge.frontend.program import Reading
from lipbridge.graph.graph import reached
from lipbridge.graph.nodes import Conv, Dense

_SCALED = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
#: In units of the dtype's rounding, relative to an entry: how far a parametrisation may give a weight back from itself.
_READ_BACK = 16.0

_COMPUTED = (
    "Only the weights of nn.Linear and nn.Conv layers can be rescaled, and not where they are computed on the way."
)
_TIED = "Its weight is used twice: by another layer, under another name, or in memory that two tensors share."
_BIAS = "Its bias is not a parameter of its own layer, used there alone."
_NOT_TAKEN = "The parametrisation of its weight takes no other weight: its right_inverse does not give it back."


@dataclass(frozen=True, eq=False)
class ScalableWeight:
    """The weight and the bias of one layer, which nothing else reads.

    Attributes:
        owner: the layer that stores them, of an ``nn.Linear`` or ``nn.Conv`` type.
        name: its name in the module, for errors.
        parametrised: whether the weight is written through a parametrisation.
    """

    owner: nn.Module
    name: str
    parametrised: bool

    @property
    def weight(self) -> Tensor:
        """The weight in float64 on the CPU."""
        with torch.no_grad(), _in_eval(self.owner):
            return cast(Tensor, self.owner.weight).detach().to(device="cpu", dtype=torch.float64)

    @property
    def bias(self) -> Tensor | None:
        """The bias in float64 on the CPU."""
        bias = cast("Tensor | None", self.owner.bias)
        return None if bias is None else bias.detach().to(device="cpu", dtype=torch.float64)

    def write(self, weight: Tensor, bias: Tensor | None) -> None:
        """Store other values, rounded once to the dtype.

        Raises:
            UnsupportedOperation: if a parametrisation does not give the weight back.
        """
        with torch.no_grad():
            if bias is not None:
                cast(Tensor, self.owner.bias).copy_(bias)
            if not self.parametrised:
                cast(Tensor, self.owner.weight).copy_(weight)
            elif not _written(self.owner, weight):
                raise UnsupportedOperation(self.name, "rescaling", _NOT_TAKEN)


def scalable_weight(module: nn.Module, reading: Reading, layer: Dense | Conv) -> ScalableWeight | str:
    """What may be scaled of a layer, or the reason why it may not.

    Args:
        module: what was read, without wrappers.
        reading: of :func:`lipbridge.frontend.capture.read_module`.
        layer: a node of its Graph.
    """
    program = reading.program
    index = next(i for i, node in enumerate(reading.graph.nodes) if node is layer)
    recipe = reading.recipes.get(index)
    if recipe is None or recipe.compute is not itself or len(recipe.sources) != 1:
        return _COMPUTED
    (source,) = recipe.sources
    if not isinstance(source, fx.Node):
        return _COMPUTED
    names, alone = _stored_before(reading, source)
    path = _owner_of(names)
    if path is None:
        return _COMPUTED
    owner = module.get_submodule(path)
    parametrised = f"{path}.weight".lstrip(".") not in names
    if not isinstance(owner, _SCALED) or tuple(owner.weight.shape) != tuple(layer.weight.shape):
        return _COMPUTED
    if parametrised != parametrize.is_parametrized(owner, "weight") or parametrised == (source in program.stored):
        return _COMPUTED
    tensors = [module.get_parameter(name) for name in names if owner_of(module, name) is not None]
    if not parametrised and len(tensors) != 1:
        return _COMPUTED  # a buffer
    bias = "bias" in dict(owner.named_parameters(recurse=False))
    if not alone or not _apart(module, [*tensors, *([owner.get_parameter("bias")] if bias else [])]):
        return _TIED
    (use,) = source.users
    if not _owns_bias(reading, use, f"{path}.bias".lstrip("."), bias) or bias != (layer.bias is not None):
        return _BIAS
    if parametrised and not _takes_other(owner):
        return _NOT_TAKEN
    return ScalableWeight(owner, path, parametrised)


def _stored_before(reading: Reading, source: fx.Node) -> tuple[list[str], bool]:
    """The module's tensors that a weight is computed from, and whether nothing but its one use reads any of it."""

    def counts(node: fx.Node) -> bool:
        return node in reading.program.stored or node in reading.reader.live

    found = {node for node in reached([source], lambda n: n.all_input_nodes if counts(n) else ()) if counts(node)}
    names = [reading.program.stored[node] for node in found if node in reading.program.stored]
    inside = all(set(node.users) <= found for node in found if node is not source)
    return names, inside and len(source.users) == 1 and _uses_once(next(iter(source.users)), source)


def _uses_once(use: fx.Node, source: fx.Node) -> bool:
    """Whether one argument, not two, is the source."""
    arguments: list[Any] = pytree.tree_leaves((use.args, use.kwargs))
    return sum(argument is source for argument in arguments) == 1


def _owner_of(names: list[str]) -> str | None:
    """The path of the one layer that stores the weight, or the tensors of its parametrisation."""
    middle = "parametrizations.weight."
    paths: set[str] = set()
    for name in names:
        head, found, _ = name.rpartition(middle)
        if found and (not head or head.endswith(".")):
            paths.add(head.rstrip("."))
        elif name == "weight" or name.endswith(".weight"):
            paths.add(name.rpartition(".")[0])
        else:
            return None
    return paths.pop() if len(paths) == 1 else None


def _apart(module: nn.Module, tensors: list[Tensor]) -> bool:
    """Whether each tensor is stored under one name, and shares no memory with another of the module's tensors."""
    named = (*module.named_parameters(remove_duplicate=False), *module.named_buffers(remove_duplicate=False))
    plain = [v for m in module.modules() for v in vars(m).values() if isinstance(v, Tensor)]
    every = [*(tensor for _, tensor in named), *plain]
    return all(sum(_overlap(tensor, other) for other in every) == 1 for tensor in tensors)


def _overlap(a: Tensor, b: Tensor) -> bool:
    if a is b:
        return True
    if a.device != b.device or not a.numel() or not b.numel() or b.layout is not torch.strided:
        return False
    (first, last), (start, end) = _span(a), _span(b)
    return first < end and start < last


def _span(tensor: Tensor) -> tuple[int, int]:
    reach = sum((n - 1) * step for n, step in zip(tensor.shape, tensor.stride(), strict=True))
    begin = tensor.data_ptr()
    return begin, begin + (reach + 1) * tensor.element_size()


def _owns_bias(reading: Reading, use: fx.Node, name: str, stored: bool) -> bool:
    """Whether the operation that reads the weight reads the layer's bias, which nothing else does, or there is none."""
    sources = [node for node, found in reading.program.stored.items() if found == name]
    if not stored:
        return not sources
    return len(sources) == 1 and list(sources[0].users) == [use] and _uses_once(use, sources[0])


# --- parametrisations ------------------------------------------------------------------------------------------------


def _takes_other(owner: nn.Module) -> bool:
    """Whether a copy of the layer can be given its weight with other rows and columns."""
    try:
        probe = copy.deepcopy(owner)
        with torch.no_grad(), _in_eval(probe):
            weight = cast(Tensor, probe.weight).detach().to(device="cpu", dtype=torch.float64)
            rows = torch.exp2(torch.arange(len(weight), dtype=torch.float64) % 3 - 1)
            columns = torch.exp2(torch.arange(weight.shape[1], dtype=torch.float64) % 5 - 2)
            other = weight * rows.reshape(-1, *(1,) * (weight.ndim - 1))
            return _written(probe, other * columns.reshape(-1, *(1,) * (weight.ndim - 2)))
    except Exception:  # a parametrisation without a right_inverse, or one that refuses
        return False


def _written(owner: nn.Module, weight: Tensor) -> bool:
    """Write a weight through its parametrisation; whether it is read back within rounding."""
    with _in_eval(owner):
        old = cast(Tensor, owner.weight)
        owner.weight = cast(Any, weight.to(old))
        back = cast(Tensor, owner.weight).detach().to(device="cpu", dtype=torch.float64)
    room = _READ_BACK * torch.finfo(old.dtype).eps * weight.abs()
    return bool(((back - weight).abs() <= room).all())


@contextmanager
def _in_eval(owner: nn.Module) -> Generator[None]:
    """A layer in eval mode, in which parametrisations do not change their own buffers when they are read."""
    modes = [(layer, layer.training) for layer in owner.modules()]
    try:
        for layer, _ in modes:
            layer.training = False
        yield
    finally:
        for layer, mode in modes:
            layer.training = mode


__all__ = ["ScalableWeight", "scalable_weight"]
