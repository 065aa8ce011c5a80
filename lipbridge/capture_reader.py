"""Reading an exported program operation by operation: the values on the way, and the registry of handlers.

A value is a :class:`Curve` (scalar functions of one node, not yet a node themselves), or something that waits for the
operation that uses it (:class:`Deferred`): padding waits for its convolution, halves of a split for their maximum.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

from lipbridge.activations import Component, Term, recognise
from lipbridge.errors import UnsupportedOperation
from lipbridge.graph import Elementwise, Graph, Input, Node, without_dead_nodes


@dataclass(frozen=True)
class Curve:
    """Components applied to node ``source``, joined along ``axis`` of its shape; one component needs none."""

    source: int
    components: tuple[Component, ...]
    axis: int = 0


#: The `parameter` of a weight that is part of the architecture, e.g. the kernel of an average: nothing trains it.
FIXED = ""
LINE: Component = (Term("identity"),)


class Deferred:
    """A value that is no curve yet; ``materialise`` makes it one if no operation took it as it is."""

    def materialise(self, reader: Reader) -> Curve:
        """The value as a curve."""
        raise NotImplementedError


class Unusable(Deferred):
    """A result that no Graph holds; it is an error only if something reads it."""

    def materialise(self, reader: Reader) -> Curve:
        """Raises UnsupportedOperation."""
        raise reader.unsupported("It reads indices or statistics; only the values of such an operation can be used.")


class Reader:
    """Reads one exported program; ``nodes`` grows as curves are materialised."""

    def __init__(self, module: nn.Module, program: Any, shape: tuple[int, ...]) -> None:
        self.program = program
        self.nodes: list[Node] = [Input("input", (), shape)]
        self.values: dict[Any, Any] = {}
        self.layer = ""
        self.operation = ""
        self.materialised: dict[Curve, int] = {}
        self.module = module
        self.fixed: set[int] = set()  # ids of constants that are written in the code, and of buffers
        first = next(module.parameters(), torch.empty(0))
        self.device = torch.device("cpu") if first.is_meta else first.device
        self.origins: dict[int, tuple[str, bool]] = {}  # id of a tensor -> (dotted name, whether transposed)

    def read(self, name: str) -> Graph:
        signature = self.program.graph_signature
        stored: dict[str, str] = {**signature.inputs_to_parameters, **signature.inputs_to_buffers}
        constants: Mapping[str, str] = getattr(signature, "inputs_to_lifted_tensor_constants", {})
        for fx in self.program.graph.nodes:
            if fx.op == "placeholder":
                if fx.name in stored:
                    self.values[fx] = self._stored(stored[fx.name])
                    if fx.name in signature.inputs_to_buffers:
                        self.fixed.add(id(self.values[fx]))
                elif fx.name in constants:
                    self.values[fx] = self.program.constants[constants[fx.name]]
                    self.fixed.add(id(self.values[fx]))
                else:
                    self.values[fx] = Curve(0, (LINE,))
            elif fx.op == "call_function":
                self._call(fx)
            elif fx.op == "output":
                return self._finish(fx, name)
        raise UnsupportedOperation(name, "a program without output")

    def _stored(self, name: str) -> Tensor:
        tensors = self.program.state_dict
        value: Tensor = tensors[name] if name in tensors else self.program.constants[name]
        self.origins[id(value)] = (name, False)
        return value

    def _call(self, fx: Any) -> None:
        self.operation = str(getattr(fx.target, "name", lambda: fx.target)()).removeprefix("aten::")
        self.layer = _layer_name(fx)
        if fx.target is operator.getitem:
            self.values[fx] = self._item(self.values[fx.args[0]], fx.args[1])
            return
        if "_assert_" in self.operation:  # what a conversion of dtypes leaves behind; it has no value
            return
        args, kwargs = self._resolve(fx.args), {key: self._resolve(value) for key, value in fx.kwargs.items()}
        if not any(_reads_input(value) for value in [*args, *kwargs.values()]):
            with torch.no_grad():
                self.values[fx] = fx.target(*args, **kwargs)  # e.g. a parametrised weight: a constant of the network
            self._remember_transpose(fx.target._schema.name, args, self.values[fx])
            return
        schema = fx.target._schema
        handler = None if schema.is_mutable else HANDLERS.get(schema.name.removeprefix("aten::"))
        if handler is None:
            raise self.unsupported()
        arguments: dict[str, Any] = {argument.name: argument.default_value for argument in schema.arguments}
        arguments |= dict(zip([argument.name for argument in schema.arguments], args, strict=False)) | kwargs
        result = fx.meta["val"]
        first = cast(Sequence[Tensor], result)[0] if isinstance(result, list | tuple) else cast(Tensor, result)
        self.values[fx] = handler(self, arguments, tuple(first.shape[1:]))

    def _item(self, value: Any, index: int) -> Any:
        """An item of an operation's list of results; of most only the first is a function that a Graph holds."""
        items = cast(list[Any], value if isinstance(value, list) else [value])
        return items[index] if 0 <= index < len(items) else Unusable()

    def _remember_transpose(self, operation: str, args: Sequence[Any], result: Any) -> None:
        origin = self.origins.get(id(args[0])) if args else None
        if (
            origin
            and operation in ("aten::t", "aten::numpy_T", "aten::transpose", "aten::permute")
            and result.ndim == 2
        ):
            flipped = tuple(result.shape) == tuple(args[0].shape[::-1]) and args[1:] not in ([0, 0], [[0, 1]])
            if flipped:
                self.origins[id(result)] = (origin[0], not origin[1])

    def factor_origin(self, factor: Tensor) -> str | None:
        """As :meth:`origin` for a factor of a diagonal map: ``FIXED`` for one that nothing trains."""
        return FIXED if id(factor) in self.fixed else self.origins.get(id(factor), (None, False))[0]

    def origin(self, weight: Tensor) -> tuple[str | None, bool]:
        """The dotted name of the module's tensor that ``weight`` is, and whether it is its transpose."""
        if id(weight) in self.origins:
            return self.origins[id(weight)]
        # A parametrised layer: the weight was computed, but the layer still has it under the usual name.
        modules = cast(Mapping[str, nn.Module], dict(cast(Any, self.module).named_modules()))
        path = f"{self.layer}.weight" if self.layer else "weight"
        known = isinstance(modules.get(self.layer), nn.Linear | nn.Conv1d | nn.Conv2d | nn.Conv3d)
        return (path if known else None, False)

    def _resolve(self, value: Any) -> Any:
        if isinstance(value, list | tuple):
            return [self._resolve(item) for item in cast(Sequence[Any], value)]
        return self.values[value] if isinstance(value, torch.fx.Node) else value

    def _finish(self, fx: Any, name: str) -> Graph:
        (outputs,) = fx.args
        self.layer, self.operation = name, "output"
        if len(outputs) != 1 or not isinstance(outputs[0], torch.fx.Node):
            raise self.unsupported("A network has one tensor as output.")
        self.layer = "output"
        last = self.materialise(self.values[outputs[0]])
        return without_dead_nodes(Graph(tuple(self.nodes), name), last)

    def unsupported(self, hint: str = "") -> UnsupportedOperation:
        """The error for the operation at hand."""
        return UnsupportedOperation(self.layer or "(top level)", self.operation, hint)

    def curve(self, value: Any) -> Curve:
        """``value`` as a curve.

        Raises:
            UnsupportedOperation: if it is none: a constant, or several values.
        """
        if isinstance(value, Deferred):
            return value.materialise(self)
        if not isinstance(value, Curve):
            raise self.unsupported("One operand is not a function of the network's input.")
        return value

    def append(self, node: Node) -> Curve:
        """A line on a new node."""
        self.nodes.append(node)
        return Curve(len(self.nodes) - 1, (LINE,))

    def materialise(self, value: Any) -> int:
        """The index of the node that holds ``value``; a curve that bends becomes an ``Elementwise``."""
        curve = self.curve(value)
        if curve.components == (LINE,):
            return curve.source
        if curve not in self.materialised:
            activation = recognise(curve.components)
            shape = list(self.nodes[curve.source].shape)
            axis = curve.axis
            if len(curve.components) > 1:
                shape[axis] *= len(curve.components)
            axis = -1 if axis == len(shape) - 1 or len(curve.components) == 1 else axis
            name = self.layer or activation.name
            self.append(Elementwise(name, (curve.source,), tuple(shape), activation, axis))
            self.materialised[curve] = len(self.nodes) - 1
        return self.materialised[curve]

    def owns_statistics(self) -> bool:
        """Whether the layer at hand is a module with running statistics."""
        modules = cast(Mapping[str, nn.Module], dict(cast(Any, self.module).named_modules()))
        return isinstance(getattr(modules.get(self.layer), "running_var", None), Tensor)

    def line(self, value: Any) -> Curve:
        """``value`` as a node of its own."""
        return Curve(self.materialise(value), (LINE,))

    def shape_of(self, value: Any) -> tuple[int, ...]:
        """The shape of ``value``, without batch."""
        curve = self.curve(value)
        shape = list(self.nodes[curve.source].shape)
        if len(curve.components) > 1:
            shape[curve.axis] *= len(curve.components)
        return tuple(shape)

    def over_one_source(self, values: Sequence[Any]) -> list[Curve]:
        """The curves, with those that have become a node that another one reads replaced by a line on that node."""
        curves = [self.curve(value) for value in values]
        sources = {curve.source for curve in curves}
        if len(sources) == 1:
            return curves
        return [Curve(node, (LINE,)) if (node := self.materialised.get(c, -1)) in sources else c for c in curves]


def _reads_input(value: Any) -> bool:
    if isinstance(value, list):
        return any(_reads_input(item) for item in cast(list[Any], value))
    return isinstance(value, Curve | Deferred)


def _layer_name(fx: Any) -> str:
    stack: Mapping[str, tuple[str, Any]] = fx.meta.get("nn_module_stack") or {}
    paths = [path for path, _ in stack.values()]
    return paths[-1] if paths and paths[-1] else fx.name


Arguments = Mapping[str, Any]
Handler = Callable[[Reader, Arguments, tuple[int, ...]], Any]
HANDLERS: dict[str, Handler] = {}


def handles(*names: str) -> Callable[[Handler], Handler]:
    """Register a handler for operations of these names."""

    def add(handler: Handler) -> Handler:
        for name in names:
            HANDLERS[name] = handler
        return handler

    return add
