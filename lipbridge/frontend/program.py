"""Reading a program operation by operation into a Graph, and computing what it computes from weights alone.

Constants of the program, stored or computed from stored ones, are float64. What depends on parameters or buffers is
*live*: a :class:`Recipe` beside the node says how its weight is computed anew when these change.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

import torch
from torch import Tensor, fx, nn
from torch.nn.utils import parametrize
from torch.utils import _pytree as pytree

from lipbridge.errors import LipbridgeError, first_line
from lipbridge.frontend.aten.registry import HANDLERS, NEVER
from lipbridge.frontend.builder import LINE, Curve, Deferred, GraphBuilder, Recipe, Unusable
from lipbridge.frontend.computed.program import tracking
from lipbridge.frontend.export import BATCH, BatchSize, Program, layer_name, operation_name
from lipbridge.frontend.joining import stack
from lipbridge.frontend.program_values import (
    LIKE,
    OF_ONE_SIZE,
    OVER_AXES,
    PYTHON,
    SHAPED,
    Ahead,
    Refused,
    Repeated,
    first_of,
    flips_of,
    in_float64,
    is_flow,
    is_random,
    is_value,
    named_arguments,
)
from lipbridge.frontend.refused import PRODUCT
from lipbridge.graph.graph import Graph, alive_nodes, without_dead_nodes
from lipbridge.graph.nodes import Reshape


class ProgramReader(GraphBuilder):
    """Reads one program with the tensors that ``tensor_of`` gives for the dotted names."""

    def __init__(
        self, module: nn.Module, program: Program, shape: tuple[int, ...], tensor_of: Callable[[str], Tensor]
    ) -> None:
        first = next((t for t in (*module.parameters(), *module.buffers())), torch.empty(0))
        super().__init__(shape, torch.device("cpu") if first.is_meta else first.device)
        self.module, self.program, self.tensor_of = module, program, tensor_of
        self.values: dict[fx.Node, Any] = {}
        self.live: set[fx.Node] = set()
        self.keys: dict[int, fx.Node] = {}  # id of a constant -> its operation

    def read(self, name: str) -> Reading:
        """The Graph, called ``name``.

        Raises:
            UnsupportedOperation: naming the layer and operation that is outside the Graph's nodes.
        """
        for node in self.program.graph.nodes:
            self.layer, self.operation = layer_name(node), operation_name(node)
            try:
                if node.op == "placeholder":
                    self._placeholder(node)
                else:
                    self.values[node] = self._call(node)
            except LipbridgeError:
                raise
            except Exception as error:  # arguments that no handler expects, or a constant that torch cannot compute
                raise self.unsupported(f"It cannot be read: {first_line(error)}") from error
        self.layer, self.operation = "output", "output"
        value = self.values[self.program.output]
        if not isinstance(value, Curve | Deferred):
            raise self.unsupported("It does not depend on the input.")
        last = self.materialise(value)
        whole = self.graph_of_nodes(name)
        graph = without_dead_nodes(whole, last)
        if not self.nodes[last].shape:
            graph = replace(graph, nodes=(*graph.nodes, Reshape("output", (len(graph.nodes) - 1,), ())))
        place = {index: position for position, index in enumerate(alive_nodes(whole, last))}
        recipes = {place[index]: recipe for index, recipe in self.recipes.items() if index in place}
        return Reading(graph, recipes, self.program, self)

    def _placeholder(self, node: fx.Node) -> None:
        if node in self.program.stored:
            name = self.program.stored[node]
            self._constant(node, self.tensor_of(name).detach())
            self.live.add(node)
        elif node in self.program.constants:
            self._constant(node, self.program.constants[node].detach())
        else:
            self.values[node] = Curve(0, (LINE,))

    def _constant(self, node: fx.Node, value: Any) -> Any:
        if isinstance(value, Tensor):
            if value.is_floating_point():
                value = value.to(torch.float64)
            self.keys.setdefault(id(value), node)
        self.values[node] = value
        return value

    # --- calls -------------------------------------------------------------------------------------------------------

    def _call(self, node: fx.Node) -> Any:
        result = node.meta.get("val")
        if isinstance(result, torch.SymInt | torch.SymFloat | torch.SymBool):
            return BATCH
        if node.target is operator.getitem:
            source, index = cast(tuple[fx.Node, int], node.args)
            return self._item(node, self.values[source], index)
        if node.op != "call_function" or not hasattr(node.target, "_schema"):
            return None if node.op == "output" else self._plain(node, result)
        if "_assert_" in self.operation or "sym_constrain" in self.operation or result is None:
            return None  # a check of dtypes or sizes; it has no value
        arguments, options = self.program.takes(node)
        args, kwargs = self._resolve(arguments), self._resolve(dict(options))
        leaves = pytree.tree_leaves((args, kwargs))
        plain = self.operation.split(".")[0]
        reads_size = any(isinstance(leaf, BatchSize) for leaf in leaves) and plain not in SHAPED
        if reads_size and HANDLERS.get(plain) not in NEVER:
            raise self.unsupported("It reads the size of the batch.")
        if any(isinstance(leaf, Curve | Deferred) for leaf in leaves):
            if plain in OF_ONE_SIZE or (plain in LIKE and not isinstance(args[0], Curve | Deferred)):
                return self._repeated(node, args, kwargs)
            return self._handle(node, args, kwargs, result)
        if is_random(node.target, args, kwargs):
            raise self.unsupported("It draws random numbers.")
        if any(isinstance(leaf, BatchSize | Repeated) for leaf in leaves):
            return self._repeated(node, args, kwargs)
        value = self._evaluate(node, args, kwargs)
        if any(source in self.live for source in node.all_input_nodes):
            self.live.add(node)
        if not isinstance(value, list):
            return self._constant(node, value)
        return [self._remembered(node, item) for item in cast(list[Any], value)]

    def _plain(self, node: fx.Node, result: Any) -> Any:
        """A function of Python, on numbers."""
        home = str(getattr(node.target, "__module__", ""))
        if home.startswith("torch._functorch"):  # they push and pop levels of torch itself: never run one
            raise self.unsupported(
                "Transforms of functions (torch.vmap, torch.func) are not read: write it on tensors."
            )
        if home not in PYTHON:
            raise self.unsupported()
        leaves = self._resolve(list(node.args))
        if any(isinstance(leaf, BatchSize) for leaf in leaves):
            return BATCH
        if not callable(node.target) or any(isinstance(leaf, Curve | Deferred) for leaf in leaves):
            raise self.unsupported()
        return node.target(*leaves)

    def _resolve(self, value: Any) -> Any:
        def leaf(item: Any) -> Any:
            return self.values[item] if isinstance(item, fx.Node) else item

        return pytree.tree_map(leaf, value)

    def _evaluate(self, node: fx.Node, args: Any, kwargs: Any) -> Any:
        """A constant in float64, e.g. a parametrised weight, with its error; a cast rounds as in the module.

        Where an operation's rounding is not known, as a singular vector's, the numbers that float64 gives are meant.
        """
        with tracking(lenient=True):
            value = cast(Any, node.target)(*args, **kwargs)
        value = list(cast(Iterable[Any], value)) if isinstance(value, list | tuple) else value
        if any(isinstance(v, Tensor) and v.is_complex() for v in pytree.tree_leaves(value)):
            return value  # refused where it meets the input
        return pytree.tree_map(in_float64, value)

    def _remembered(self, node: fx.Node, value: Any) -> Any:
        if isinstance(value, Tensor):
            self.keys.setdefault(id(value), node)
        return value

    def _repeated(self, node: fx.Node, args: Any, kwargs: Any) -> Repeated:
        def at(size: int) -> Tensor:
            def leaf(value: Any) -> Any:
                if isinstance(value, BatchSize):
                    return size
                if isinstance(value, Repeated):
                    return value.one if size == 1 else value.three
                if isinstance(value, Curve | Deferred):
                    return torch.zeros(size, *self.shape_of(value), dtype=torch.float64, device=self.device)
                return value

            a, k = pytree.tree_map(leaf, (args, kwargs), is_leaf=is_value)
            return self._evaluate(node, a, k)

        if any(source in self.live for source in node.all_input_nodes):
            self.live.add(node)
        made = Repeated(at(1), at(3))
        self.keys.setdefault(id(made.one), node)
        return made

    def _handle(self, node: fx.Node, args: Any, kwargs: Any, result: Any) -> Any:
        """An operation that reads the input."""
        target = cast(Any, node.target)
        schema = target._schema
        handler = None if schema.is_mutable else HANDLERS.get(schema.name.removeprefix("aten::"))
        leaves = pytree.tree_leaves((args, kwargs), is_leaf=is_value)
        refused = next((leaf for leaf in leaves if isinstance(leaf, Refused)), None)
        if isinstance(refused, Ahead) and refused is args[0] and self.operation.split(".")[0] in OVER_AXES:
            found = self._over_stacked(node, refused, args, kwargs, result)
            if found is not None:
                return found
        if refused is not None and handler not in NEVER:
            if self.operation.split(".")[0] in ("matmul", "mul", "einsum") and sum(map(is_value, leaves)) > 1:
                raise self.unsupported(PRODUCT)
            return Refused(refused.error)
        if handler is None:
            random = is_random(target, args, kwargs)
            raise self.unsupported("It draws random numbers." if random else "")
        first = first_of(result)
        if handler in NEVER:
            return handler(self, {}, ())
        self.dtype = first.dtype
        shape = self.program.shape(node, first)
        if shape is None:
            hint = "It mixes the batch with the features, or the inputs of a batch with each other."
            dim = kwargs.get("dim", args[1] if len(args) > 1 else 0)
            if self.operation.split(".")[0] == "stack" and dim in (0, -first.ndim) and all(map(is_flow, args[0])):
                return Ahead(self.unsupported(hint), list(args[0]))
            return Refused(self.unsupported(hint))
        if 0 in shape:
            raise self.unsupported("Its values are empty: an axis has the length 0.")
        args, kwargs = pytree.tree_map(self._operand, (args, kwargs), is_leaf=is_value)
        return handler(self, named_arguments(target, args, kwargs), shape)

    def _over_stacked(self, node: fx.Node, stacked: Ahead, args: Any, kwargs: Any, result: Any) -> Any:
        """An average, sum or extreme over the axis before the batch, as one over the first axis of each input."""
        first = first_of(result)
        shape = self.program.shape(node, first)
        a = named_arguments(node.target, args, kwargs)
        dims, many = a.get("dim"), isinstance(a.get("dim"), list | tuple)
        over = list(cast(Sequence[int], dims)) if many else [dims]
        if shape is None or over not in ([0], [-first.ndim - 1]) or a.get("dtype"):
            return None
        together = stack(self, stacked.values, 0, (len(stacked.values), *shape))
        a |= {"self": together, "dim": [1] if many else 1}
        return HANDLERS[cast(Any, node.target)._schema.name.removeprefix("aten::")](self, a, shape)

    def _operand(self, value: Any) -> Any:
        if isinstance(value, Repeated):
            value = value.row(self)
        if isinstance(value, Tensor) and value.is_complex():
            raise self.unsupported("Complex numbers are no layer's values.")
        return value

    def _item(self, node: fx.Node, value: Any, index: int) -> Any:
        """An item of an operation's list of results; of most only the first is a function that a Graph holds."""
        if isinstance(value, list):
            items = cast(list[Any], value)
            if not any(isinstance(item, Curve | Deferred) for item in items):  # of a constant, e.g. a singular vector
                if any(source in self.live for source in node.all_input_nodes):
                    self.live.add(node)
                return self._constant(node, items[index])
            return items[index] if index < len(items) else Unusable()
        return value if index == 0 or isinstance(value, Refused) else Unusable()

    # --- where constants come from -----------------------------------------------------------------------------------

    def key(self, constant: Any) -> Any:
        """The operation that gives a constant; the constant itself if it cannot change."""
        node = self.keys.get(id(constant))
        return constant if node is None or node not in self.live else node

    def is_live(self, constant: Any) -> bool:
        """Whether a constant depends on parameters or buffers."""
        return self.keys.get(id(constant)) in self.live

    def origin(self, weight: Tensor) -> tuple[str | None, bool]:
        """The dotted name of the module's tensor that ``weight`` is, and whether it is its transpose."""
        node = self.keys.get(id(weight))
        if node is None:
            return (None, False)
        turned = False
        while node not in self.program.stored:
            flips = flips_of(node, self.values)
            if flips is None:
                return (self._parametrised(), False)
            turned, node = turned != flips, cast(fx.Node, node.args[0])
        return (self.program.stored[node], turned)

    def _parametrised(self) -> str | None:
        """The name of the weight of a layer whose weight torch's parametrisations compute."""
        modules = cast(Mapping[str, nn.Module], dict(cast(Any, self.module).named_modules()))
        owner = modules.get(self.layer)
        if owner is None or not parametrize.is_parametrized(owner, "weight"):
            return None
        own: list[Any] = [kind.forward for kind in (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)]
        return (f"{self.layer}.weight" if self.layer else "weight") if type(owner).forward in own else None


__all__ = ["ProgramReader"]


@dataclass(frozen=True, eq=False)
class Reading:
    """A Graph and, by node, how a weight is computed anew; with the program and its values, for checks."""

    graph: Graph
    recipes: Mapping[int, Recipe]
    program: Program
    reader: ProgramReader
