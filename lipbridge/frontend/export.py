"""A module as a program of operations with a symbolic batch, through ``torch.export``.

The batch is a symbol, so whatever reads its size can be seen. A module that torch cannot export in that way is exported
for two sizes of the batch, and the two programs are compared operation by operation: a difference is the size.
"""

from __future__ import annotations

import io
import logging
import operator
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from torch import Tensor, fx, nn
from torch._ops import HigherOrderOperator  # the blocks of a program: there is no public name
from torch.utils import _pytree as pytree

from lipbridge.errors import InvalidArgument, UnsupportedOperation, first_line
from lipbridge.frontend.refused import reason_of


class BatchSize:
    """Stands for a number that depends on the batch's size."""

    def __repr__(self) -> str:
        return "the size of the batch"


BATCH = BatchSize()
#: The sizes for which a module is exported where the batch cannot be a symbol.
SIZES = (2, 3)
#: Blocks that change how, not what is computed: their operations are read as if they stood outside.
_BLOCKS = (
    "wrap_with_set_grad_enabled",
    "wrap_with_autocast",
    "tag_activation_checkpoint",
    "wrap_activation_checkpoint",
)


@dataclass(eq=False)
class Program:
    """Operations in order, with the tensors of the module as inputs.

    Attributes:
        graph: placeholders, calls of ATen operations, one output.
        stored: per placeholder the dotted name of the module's parameter or buffer.
        constants: per placeholder a tensor that the program holds by itself.
        output: the operation whose value the module returns.
        batch: the batch's size in shapes: a symbol's expression, or an int.
        other: for a program with an int, the shapes that results have for the other size.
        arguments: operations whose arguments depend on the batch's size though no operation reads it.
        fixed: whether the program holds for the one size ``batch`` alone.
    """

    graph: fx.Graph
    stored: dict[fx.Node, str]
    constants: dict[fx.Node, Tensor]
    output: fx.Node
    dtype: torch.dtype
    batch: Any = None
    other: Mapping[fx.Node, Any] = field(default_factory=lambda: {})
    arguments: dict[fx.Node, tuple[Any, Any]] = field(default_factory=lambda: {})
    fixed: bool = False

    def takes(self, node: fx.Node) -> tuple[Any, Any]:
        """The arguments of an operation."""
        return self.arguments.get(node, (node.args, node.kwargs))

    def shape(self, node: fx.Node, result: Any) -> tuple[int, ...] | None:
        """The shape of a result that reads the input, without batch; None if its first axis is not the batch."""
        if not isinstance(result, Tensor) or not result.ndim:
            return None
        first, *rest = result.shape
        if self.batch is None or isinstance(self.batch, int):
            other = self.other.get(node)
            if first != self.batch or (self.other and (other is None or other[0] == first or list(other[1:]) != rest)):
                return None
        elif _expression(first) != self.batch:
            return None
        lengths = [_expression(length) for length in rest]
        return None if any(not _is_number(length) for length in lengths) else tuple(int(length) for length in lengths)


def _expression(length: Any) -> Any:
    """The expression of a symbolic length; an int is its own."""
    return cast(Any, length).node.expr if isinstance(length, torch.SymInt) else length


def _is_number(expression: Any) -> bool:
    return isinstance(expression, int) or bool(expression.is_number)


def unwrapped(module: Any) -> nn.Module:
    """The module inside DataParallel, torch.compile and an ExportedProgram.

    Raises:
        UnsupportedOperation: for a scripted module.
        InvalidArgument: for what is no module.
    """
    if isinstance(module, torch.export.ExportedProgram):
        return module.module()
    if isinstance(module, torch.jit.ScriptModule | torch.jit.ScriptFunction):
        raise UnsupportedOperation(
            type(cast(object, module)).__name__,
            "torch.jit",
            "Give the nn.Module that it was scripted or traced from: load its "
            "weights with module.load_state_dict(scripted.state_dict()).",
        )
    if not isinstance(module, nn.Module):
        raise InvalidArgument("module", "be a torch.nn.Module", type(cast(object, module)).__name__)
    if isinstance(module, nn.DataParallel | nn.parallel.DistributedDataParallel):
        return unwrapped(cast(Any, module).module)
    inner = getattr(module, "_orig_mod", None)
    return unwrapped(inner) if isinstance(inner, nn.Module) else module


def example_of(module: nn.Module, shape: tuple[int, ...], batch: int) -> Tensor:
    """Zeros in the dtype and on the device of the module's weights."""
    tensors = [t for t in (*module.parameters(), *module.buffers()) if t.is_floating_point()]
    dtype = tensors[0].dtype if tensors else torch.get_default_dtype()
    device = tensors[0].device if tensors else torch.device("cpu")
    return torch.zeros(batch, *shape, dtype=dtype, device=device)


def export(module: nn.Module, shape: tuple[int, ...], batch: int | None = None) -> Program:
    """The program of a module in the mode that it is in, for inputs of ``shape`` (without batch).

    Raises:
        UnsupportedOperation: if torch cannot export it, or the function depends on the size of the batch.
    """
    if batch is not None:
        found = _program(module, example_of(module, shape, batch), None)
        found.batch, found.fixed = batch, True
        return found
    example = example_of(module, shape, SIZES[0])
    shapes = torch.export.ShapesCollection()
    shapes[example] = {0: torch.export.Dim("batch")}
    try:
        found = _program(module, example, shapes)
    except UnsupportedOperation as refusal:
        return _for_two_sizes(module, shape, refusal)
    first = next(node for node in found.graph.nodes if node.op == "placeholder" and _is_input(found, node))
    size = first.meta["val"].shape[0]
    if not isinstance(size, torch.SymInt):  # nothing reads the input
        return _for_two_sizes(module, shape, None)
    found.batch = _expression(size)
    return found


def _is_input(program: Program, node: fx.Node) -> bool:
    return node not in program.stored and node not in program.constants


def _for_two_sizes(module: nn.Module, shape: tuple[int, ...], refusal: UnsupportedOperation | None) -> Program:
    found = _program(module, example_of(module, shape, SIZES[0]), None)
    try:
        other = _program(module, example_of(module, shape, SIZES[1]), None)
    except UnsupportedOperation as error:
        reason = f"It takes a batch of {SIZES[0]}, but for a batch of {SIZES[1]} it cannot be exported: {error}"
        raise UnsupportedOperation(type(module).__name__, "torch.export", reason) from error
    ours, theirs = list(found.graph.nodes), list(other.graph.nodes)
    place = {node: index for index, node in enumerate(theirs)}
    index = {node: i for i, node in enumerate(ours)}
    shapes: dict[fx.Node, Any] = {}
    for a, b in zip(ours, theirs, strict=False):
        if (a.op, a.target) != (b.op, b.target):
            raise _reads_batch(a)
        arguments = pytree.tree_flatten((a.args, dict(a.kwargs)))
        others = pytree.tree_flatten((b.args, dict(b.kwargs)))
        if arguments[1] != others[1]:
            raise _reads_batch(a)
        merged: list[Any] = []
        for x, y in zip(arguments[0], others[0], strict=True):
            if isinstance(x, fx.Node) and isinstance(y, fx.Node):
                if index[x] != place[y]:
                    raise _reads_batch(a)
                merged.append(x)
            elif type(x) is type(y) and (x == y or (x != x and y != y)):
                merged.append(x)
            elif isinstance(x, int) and isinstance(y, int):
                merged.append(BATCH)
            else:
                raise _reads_batch(a)
        if BATCH in merged:
            found.arguments[a] = pytree.tree_unflatten(merged, arguments[1])
        value = b.meta.get("val")
        several = isinstance(value, list | tuple) and len(cast(Sequence[Any], value)) > 0
        first = cast(Sequence[Any], value)[0] if several else cast(Any, value)
        if isinstance(first, Tensor):
            shapes[a] = tuple(first.shape)
    if len(ours) != len(theirs):
        raise refusal or UnsupportedOperation(type(module).__name__, "torch.export", "It depends on the batch's size.")
    for a, b in ((found.constants, other.constants), (other.constants, found.constants)):
        for node, tensor in a.items():
            twin = (theirs if a is found.constants else ours)[(index if a is found.constants else place)[node]]
            if b[twin].shape != tensor.shape or not bool(torch.equal(b[twin], tensor)):
                raise _reads_batch(node)
    found.batch, found.other = SIZES[0], shapes
    return found


def _reads_batch(node: fx.Node) -> UnsupportedOperation:
    operation = operation_name(node)
    reason = reason_of(operation.split(".")[0]) or "It depends on the size of the batch."
    return UnsupportedOperation(layer_name(node), operation, reason)


@contextmanager
def silenced() -> Generator[None]:
    """Nothing printed or logged: a failed export logs a traceback and prints its graph, beside the error we raise."""
    disabled = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
            yield
    finally:
        logging.disable(disabled)


def _program(module: nn.Module, example: Tensor, shapes: Any) -> Program:
    try:
        with silenced():
            program = cast(Any, torch.export.export(module, (example,), dynamic_shapes=shapes, strict=False))
            blocks = [block for block in program.graph_module.modules() if isinstance(block, fx.GraphModule)]
            if any(node.op == "call_function" and _mutates(node.target) for b in blocks for node in b.graph.nodes):
                program = program.run_decompositions({})  # in-place operations become functional ones
    except Exception as error:
        reason = _input_mismatch(module, example) or f"It failed with: {first_line(error)}"
        raise UnsupportedOperation(type(module).__name__, "torch.export", reason) from error
    return _read_signature(module, program, example.dtype)


def _input_mismatch(module: nn.Module, example: Tensor) -> str | None:
    """What a person should know if the module takes inputs of another shape."""
    for layer in module.modules():
        takes, given, what = None, 0, ""
        if isinstance(layer, nn.Linear):
            takes, given, what = layer.in_features, example.shape[-1], "features"
        elif isinstance(layer, nn.Conv1d | nn.Conv2d | nn.Conv3d):
            takes, given, what = layer.in_channels, example.shape[1] if example.ndim > 1 else 0, "channels"
            if example.ndim != 2 + len(layer.kernel_size):
                shape = tuple(example.shape[1:])
                return f"Its first layer takes inputs (channels, *{len(layer.kernel_size)} axes), the input is {shape}."
        if takes is not None:
            return None if takes == given else f"Its first layer takes {takes} {what}, the input has {given}."
    return None


def _mutates(target: Any) -> bool:
    schema = getattr(target, "_schema", None)
    return schema is not None and bool(schema.is_mutable)


def _read_signature(module: nn.Module, program: Any, dtype: torch.dtype) -> Program:
    name = type(module).__name__
    signature = program.graph_signature
    stored: dict[str, str] = {**signature.inputs_to_parameters, **signature.inputs_to_buffers}
    lifted: Mapping[str, str] = getattr(signature, "inputs_to_lifted_tensor_constants", {})
    changed = list(cast(Mapping[str, str], signature.buffers_to_mutate).values())
    if changed:
        raise UnsupportedOperation(name, "forward", f"It writes to its buffer `{changed[0]}` in every call.")
    graph, inputs, outputs = _inlined(program.graph_module, name)
    returned = [kind.kind is torch.export.graph_signature.OutputKind.USER_OUTPUT for kind in signature.output_specs]
    results = [item for item, wanted in zip(outputs, returned, strict=True) if wanted]
    if len(results) != 1 or not isinstance(results[0], fx.Node):
        raise UnsupportedOperation(
            name, "output", f"A network has one tensor as output, this one returns {len(results)} values."
        )
    found = Program(graph, {}, {}, results[0], dtype)
    users = set(cast(Sequence[str], signature.user_inputs))
    for original, node in inputs.items():
        if original in stored:
            found.stored[node] = stored[original]
        elif original in lifted:
            found.constants[node] = program.constants[lifted[original]]
        elif original not in users:
            raise UnsupportedOperation(name, original, "It is neither the input nor a tensor of the module.")
    if len(inputs) != len(found.stored) + len(found.constants) + 1:
        raise UnsupportedOperation(name, "forward", "A network has one tensor as input.")
    return found


def _inlined(root: fx.GraphModule, name: str) -> tuple[fx.Graph, dict[str, fx.Node], list[Any]]:
    """The graph with the operations of its blocks in their place, its placeholders by name, and its outputs."""
    graph = fx.Graph()
    inputs: dict[str, fx.Node] = {}

    def copy(module: Any, values: dict[fx.Node, Any]) -> list[Any]:
        for node in module.graph.nodes:
            if node in values:
                continue
            if node.op == "get_attr":
                values[node] = getattr(module, node.target)
                if not isinstance(values[node], fx.GraphModule):
                    raise UnsupportedOperation(
                        name, str(node.target), "It is a constant inside a block of the program."
                    )
            elif node.op == "output":
                return [values[item] if isinstance(item, fx.Node) else item for item in node.args[0]]
            elif isinstance(node.target, HigherOrderOperator):
                if node.target.name() not in _BLOCKS:
                    raise UnsupportedOperation(layer_name(node), node.target.name(), "Control flow is no layer.")
                arguments = [values[item] if isinstance(item, fx.Node) else item for item in node.args]
                where = next(i for i, item in enumerate(arguments) if isinstance(item, fx.GraphModule))
                block = arguments[where]
                places = [item for item in block.graph.nodes if item.op == "placeholder"]
                values[node] = copy(block, dict(zip(places, arguments[where + 1 :], strict=True)))
            elif node.target is operator.getitem and isinstance(values[node.args[0]], list):
                values[node] = values[node.args[0]][node.args[1]]
            else:
                made = values[node] = graph.node_copy(node, lambda old: values[old])
                if node.op == "placeholder":
                    inputs[node.name] = made
        raise UnsupportedOperation(name, "torch.export", "A program without output.")

    outputs = copy(root, {})
    return graph, inputs, outputs


def layer_name(node: fx.Node) -> str:
    """The dotted name of the layer that an operation belongs to."""
    stack: Mapping[str, tuple[str, Any]] = node.meta.get("nn_module_stack") or {}
    paths = [path for path, _ in stack.values()]
    return paths[-1] if paths and paths[-1] else node.name


def operation_name(node: fx.Node) -> str:
    """The name of an operation, e.g. ``linear`` or ``add.Tensor``."""
    target: Any = node.target
    if hasattr(target, "_schema"):
        return str(target.name()).removeprefix("aten::")
    return str(getattr(target, "__name__", target))


__all__ = [
    "BATCH",
    "SIZES",
    "BatchSize",
    "Program",
    "example_of",
    "export",
    "layer_name",
    "operation_name",
    "unwrapped",
]
