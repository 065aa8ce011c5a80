"""Capture: a torch module becomes a Graph, through ``torch.export``.

The exported program is read operation by operation. Scalar operations on one source (scaling, shifting, functions of
the registry, sums and concatenations of them) are collected as a *curve* and become one ``Elementwise`` node, so a
joint polyactivation is recognised whether it comes from a module of ours or was written out by hand. Whatever is not
understood raises :class:`UnsupportedOperation` with the layer's name.
"""

from __future__ import annotations

import io
import logging
import math
import operator
from collections.abc import Callable, Mapping, Sequence
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass, replace
from typing import Any, cast

import torch
from torch import Tensor, nn

from lipbridge.activations import SCALAR_FUNCTIONS, Component, Term, recognise
from lipbridge.errors import InvalidArgument, UnsupportedOperation
from lipbridge.graph import Dense, Elementwise, Graph, Input, Node, Reshape
from lipbridge.layers import Sinusoidal


@dataclass(frozen=True)
class Curve:
    """Components applied to node ``source``, joined along ``axis`` (of the batched value); one component needs none."""

    source: int
    components: tuple[Component, ...]


_LINE: Component = (Term("identity"),)


def capture(module: nn.Module, input_shape: Sequence[int] | None = None, *, name: str | None = None) -> Graph:
    """Read a torch module as a Graph of the real-number function that its weights define.

    The module is read in eval mode (and left in the mode that it had). Weights are copied to float64 on the device
    where they are.

    Args:
        module: any module made of dense layers, activations of the registry (as modules, functions, or written out),
            flattening, and dropout or identity, which vanish.
        input_shape: shape of one input without batch; read off the first ``Linear`` if not given.
        name: name of the Graph, the class name if not given.

    Raises:
        UnsupportedOperation: naming the layer and the operation that is outside the Graph's nodes.
        InvalidArgument: if the input's shape is needed and cannot be read off.

    Law: ``capture(module)(x)`` equals ``module.double()(x)`` up to rounding.
    """
    shape = tuple(input_shape) if input_shape is not None else _input_shape(module)
    program = _export(module, shape)
    return _Reader(module, program, shape).read(name or type(module).__name__)


def _input_shape(module: nn.Module) -> tuple[int, ...]:
    for layer in module.modules():
        if isinstance(layer, nn.Linear | Sinusoidal):
            return (layer.in_features,)
        if isinstance(layer, nn.Conv1d | nn.Conv2d | nn.Conv3d):
            break
    raise InvalidArgument("input_shape", "be given, since the module does not start with a Linear layer", None)


def _export(module: nn.Module, shape: tuple[int, ...]) -> Any:
    first = next(iter(module.parameters()), torch.empty(0))
    example = torch.zeros(2, *shape, dtype=first.dtype, device=first.device)
    modes = {layer: layer.training for layer in module.modules()}
    module.eval()
    # A failed export logs a traceback and prints its graph, beside the error that we raise.
    disabled = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
            program = cast(Any, torch.export.export(module, (example,), strict=False))
        if any(fx.op == "call_function" and _mutates(fx.target) for fx in program.graph.nodes):
            program = program.run_decompositions({})  # in-place operations become functional ones
        return program
    except Exception as error:
        line = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise UnsupportedOperation(type(module).__name__, "torch.export", f"It failed with: {line}") from error
    finally:
        logging.disable(disabled)
        for layer, mode in modes.items():
            layer.training = mode


def _mutates(target: Any) -> bool:
    schema = getattr(target, "_schema", None)
    return schema is not None and bool(schema.is_mutable)


class _Reader:
    """Reads one exported program; ``nodes`` grows as curves are materialised."""

    def __init__(self, module: nn.Module, program: Any, shape: tuple[int, ...]) -> None:
        self.program = program
        self.nodes: list[Node] = [Input("input", (), shape)]
        self.values: dict[Any, Any] = {}
        self.layer = ""
        self.operation = ""
        self.materialised: dict[Curve, int] = {}
        self.module = module
        self.origins: dict[int, tuple[str, bool]] = {}  # id of a tensor -> (dotted name, whether transposed)

    def read(self, name: str) -> Graph:
        signature = self.program.graph_signature
        stored: dict[str, str] = {**signature.inputs_to_parameters, **signature.inputs_to_buffers}
        constants: Mapping[str, str] = getattr(signature, "inputs_to_lifted_tensor_constants", {})
        for fx in self.program.graph.nodes:
            if fx.op == "placeholder":
                if fx.name in stored:
                    self.values[fx] = self._stored(stored[fx.name])
                elif fx.name in constants:
                    self.values[fx] = self.program.constants[constants[fx.name]]
                else:
                    self.values[fx] = Curve(0, (_LINE,))
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
            raise self.unsupported()
        args, kwargs = self._resolve(fx.args), {key: self._resolve(value) for key, value in fx.kwargs.items()}
        if not any(_reads_input(value) for value in [*args, *kwargs.values()]):
            with torch.no_grad():
                self.values[fx] = fx.target(*args, **kwargs)  # e.g. a parametrised weight: a constant of the network
            self._remember_transpose(fx.target._schema.name, args, self.values[fx])
            return
        schema = fx.target._schema
        handler = None if schema.is_mutable else _HANDLERS.get(schema.name.removeprefix("aten::"))
        if handler is None:
            raise self.unsupported()
        arguments: dict[str, Any] = {argument.name: argument.default_value for argument in schema.arguments}
        arguments |= dict(zip([argument.name for argument in schema.arguments], args, strict=False)) | kwargs
        self.values[fx] = handler(self, arguments, tuple(fx.meta["val"].shape[1:]))

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

    def origin(self, weight: Tensor) -> tuple[str | None, bool]:
        """The dotted name of the module's tensor that ``weight`` is, and whether it is its transpose."""
        if id(weight) in self.origins:
            return self.origins[id(weight)]
        # A parametrised layer: the weight was computed, but the layer still has it under the usual name.
        modules = cast(Mapping[str, nn.Module], dict(cast(Any, self.module).named_modules()))
        path = f"{self.layer}.weight" if self.layer else "weight"
        return (path if isinstance(modules.get(self.layer), nn.Linear) else None, False)

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
        if last != len(self.nodes) - 1:
            raise self.unsupported("Later layers do not reach the output.")
        return Graph(tuple(self.nodes), name)

    def unsupported(self, hint: str = "") -> UnsupportedOperation:
        return UnsupportedOperation(self.layer or "(top level)", self.operation, hint)

    def curve(self, value: Any) -> Curve:
        if not isinstance(value, Curve):
            raise self.unsupported("One operand is not a function of the network's input.")
        return value

    def append(self, node: Node) -> Curve:
        self.nodes.append(node)
        return Curve(len(self.nodes) - 1, (_LINE,))

    def materialise(self, value: Any) -> int:
        """The index of the node that holds ``value``; a curve that bends becomes an ``Elementwise``."""
        curve = self.curve(value)
        if curve.components == (_LINE,):
            return curve.source
        if curve not in self.materialised:
            activation = recognise(curve.components)
            shape = self.nodes[curve.source].shape
            shape = (*shape[:-1], shape[-1] * len(curve.components)) if len(shape) == 1 else shape
            name = self.layer or activation.name
            self.append(Elementwise(name, (curve.source,), shape, activation))
            self.materialised[curve] = len(self.nodes) - 1
        return self.materialised[curve]

    def over_one_source(self, values: Sequence[Any]) -> list[Curve]:
        """The curves, with those that have become a node that another one reads replaced by a line on that node."""
        curves = [self.curve(value) for value in values]
        sources = {curve.source for curve in curves}
        if len(sources) == 1:
            return curves
        return [Curve(node, (_LINE,)) if (node := self.materialised.get(c, -1)) in sources else c for c in curves]


def _reads_input(value: Any) -> bool:
    if isinstance(value, list):
        return any(_reads_input(item) for item in cast(list[Any], value))
    return isinstance(value, Curve)


def _layer_name(fx: Any) -> str:
    stack: Mapping[str, tuple[str, Any]] = fx.meta.get("nn_module_stack") or {}
    paths = [path for path, _ in stack.values()]
    return paths[-1] if paths and paths[-1] else fx.name


Arguments = Mapping[str, Any]
Handler = Callable[[_Reader, Arguments, tuple[int, ...]], Any]
_HANDLERS: dict[str, Handler] = {}


def _handles(*names: str) -> Callable[[Handler], Handler]:
    def add(handler: Handler) -> Handler:
        for name in names:
            _HANDLERS[name] = handler
        return handler

    return add


@_handles("linear")
def _linear(reader: _Reader, a: Arguments, shape: tuple[int, ...]) -> Curve:
    if not isinstance(a["weight"], Tensor):
        raise reader.unsupported("The weight of a dense layer must not depend on the input.")
    return _dense(reader, a["input"], a["weight"], a.get("bias"), shape, reader.origin(a["weight"]))


@_handles("addmm")
def _addmm(reader: _Reader, a: Arguments, shape: tuple[int, ...]) -> Curve:
    if not isinstance(a["mat2"], Tensor) or not isinstance(a["self"], Tensor) or (a["beta"], a["alpha"]) != (1, 1):
        raise reader.unsupported()
    name, transposed = reader.origin(a["mat2"])
    return _dense(reader, a["mat1"], a["mat2"].T, a["self"], shape, (name, not transposed))


@_handles("matmul", "mm")
def _matmul(reader: _Reader, a: Arguments, shape: tuple[int, ...]) -> Curve:
    matrix = a["other"] if "other" in a else a["mat2"]
    if not isinstance(matrix, Tensor) or matrix.ndim != 2:
        raise reader.unsupported("Only products with a constant matrix are dense layers.")
    name, transposed = reader.origin(matrix)
    return _dense(reader, a["self"], matrix.T, None, shape, (name, not transposed))


def _dense(
    reader: _Reader,
    x: Any,
    weight: Tensor,
    bias: Tensor | None,
    shape: tuple[int, ...],
    origin: tuple[str | None, bool],
) -> Curve:
    source = reader.materialise(x)
    if len(shape) != 1:
        raise reader.unsupported("A dense layer on more than one axis is not supported; flatten first.")
    bias = None if bias is None else bias.detach().to(torch.float64)
    return reader.append(Dense(reader.layer, (source,), shape, weight.detach().to(torch.float64), bias, *origin))


@_handles("flatten", "view", "reshape", "_unsafe_view", "unsqueeze", "squeeze")
def _reshape(reader: _Reader, a: Arguments, shape: tuple[int, ...]) -> Any:
    value = reader.curve(a["self"])
    if value.components == (_LINE,) and reader.nodes[value.source].shape == shape:
        return value
    source = reader.materialise(value)
    if math.prod(reader.nodes[source].shape) != math.prod(shape):
        raise reader.unsupported("It mixes the batch with the features.")
    return reader.append(Reshape(reader.layer, (source,), shape))


@_handles("dropout", "feature_dropout", "alpha_dropout")
def _dropout(reader: _Reader, a: Arguments, shape: tuple[int, ...]) -> Any:
    if a.get("train"):
        raise reader.unsupported("Dropout is the identity only in eval mode.")
    return a["input"]


@_handles("clone", "contiguous", "detach", "alias", "detach_")
def _same(reader: _Reader, a: Arguments, shape: tuple[int, ...]) -> Any:
    return a["self"]


# --- scalar operations on a curve ------------------------------------------------------------------------------------


def _scaled(component: Component, factor: float) -> Component:
    # A line keeps its factor as the inner scale, so that relu(-t) and -t are each spelt in one way.
    return tuple(
        Term("identity", 1.0, term.coefficient * term.scale * factor, term.coefficient * term.offset * factor)
        if term.function == "identity"
        else replace(term, coefficient=term.coefficient * factor)
        for term in component
    )


def _merged(component: Component) -> Component:
    """Sum equal functions and lines; drop terms that vanish."""
    scale, offset = 0.0, 0.0
    others: dict[Term, float] = {}
    for term in component:
        if term.function == "identity":
            scale += term.coefficient * term.scale
            offset += term.coefficient * term.offset
        else:
            term = term.canonical
            key = replace(term, coefficient=1.0)
            others[key] = others.get(key, 0.0) + term.coefficient
    terms = [replace(key, coefficient=value) for key, value in others.items() if value != 0.0]
    if scale != 0.0 or offset != 0.0 or not terms:
        terms.append(Term("identity", 1.0, scale, offset))
    return tuple(sorted(terms))


def _map(reader: _Reader, value: Any, change: Callable[[Component], Component]) -> Curve:
    curve = reader.curve(value)
    return replace(curve, components=tuple(_merged(change(component)) for component in curve.components))


def _constant(reader: _Reader, value: Any) -> float:
    if isinstance(value, Tensor) and value.numel() == 1:
        value = value.detach().double().cpu().item()
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise reader.unsupported("Only scalar constants can be combined with a layer's values.")
    return float(value)


@_handles("neg")
def _neg(reader: _Reader, a: Arguments, shape: tuple[int, ...]) -> Curve:
    return _map(reader, a["self"], lambda c: _scaled(c, -1.0))


@_handles("mul")
def _mul(reader: _Reader, a: Arguments, shape: tuple[int, ...]) -> Curve:
    x, y = a["self"], a["other"]
    if isinstance(x, Curve) and isinstance(y, Curve):
        if x == y:
            return _square(reader, {"self": x}, shape)
        raise reader.unsupported("A product of two functions of the input has no Lipschitz constant.")
    curve, other = (x, y) if isinstance(x, Curve) else (y, x)
    factor = _constant(reader, other)
    return _map(reader, curve, lambda c: _scaled(c, factor))


@_handles("div")
def _div(reader: _Reader, a: Arguments, shape: tuple[int, ...]) -> Curve:
    if a.get("rounding_mode") is not None:
        raise reader.unsupported()
    divisor = _constant(reader, a["other"])
    if divisor == 0.0:
        raise reader.unsupported("It divides by zero.")
    return _map(reader, a["self"], lambda c: _scaled(c, 1.0 / divisor))


@_handles("add", "sub", "rsub")
def _add(reader: _Reader, a: Arguments, shape: tuple[int, ...]) -> Curve:
    sign = {"add": 1.0, "sub": -1.0, "rsub": 1.0}[reader.operation.split(".")[0].rstrip("_")]
    x, y = a["self"], a["other"]
    if reader.operation.startswith("rsub"):
        x, y, sign = y, x, -1.0
    sign *= _constant(reader, a.get("alpha", 1))
    if isinstance(x, Curve) and isinstance(y, Curve):
        x, y = reader.over_one_source([x, y])
        if x.source != y.source or len(x.components) != len(y.components):
            raise reader.unsupported("Sums of different layers (residual connections) are not supported yet.")
        pairs = zip(x.components, y.components, strict=True)
        return replace(x, components=tuple(_merged(c + _scaled(d, sign)) for c, d in pairs))
    if isinstance(x, Curve):
        shift = sign * _constant(reader, y)
        return _map(reader, x, lambda c: (*c, Term("identity", 1.0, 0.0, shift)))
    shift = _constant(reader, x)
    return _map(reader, y, lambda c: (*_scaled(c, sign), Term("identity", 1.0, 0.0, shift)))


@_handles("pow")
def _pow(reader: _Reader, a: Arguments, shape: tuple[int, ...]) -> Curve:
    if a["exponent"] == 2:
        return _square(reader, a, shape)
    raise reader.unsupported("It has no global Lipschitz constant.")


@_handles("square")
def _square(reader: _Reader, a: Arguments, shape: tuple[int, ...]) -> Curve:
    curve = reader.curve(a["self"])
    squares: list[Component] = []
    for component in curve.components:
        if len(component) != 1 or component[0].function != "sin":
            raise reader.unsupported("A square has no global Lipschitz constant (but sin(t)**2 has).")
        term = component[0]
        squares.append((replace(term, function="sin_squared", coefficient=term.coefficient**2),))
    return replace(curve, components=tuple(squares))


@_handles("cat", "concat", "concatenate")
def _cat(reader: _Reader, a: Arguments, shape: tuple[int, ...]) -> Curve:
    parts = reader.over_one_source(a["tensors"])
    axis = a["dim"] if a["dim"] >= 0 else a["dim"] + len(shape) + 1
    if len(shape) != 1 or axis != 1:
        raise reader.unsupported("Only concatenation of features is supported.")
    if len({part.source for part in parts}) != 1:
        raise reader.unsupported("Concatenation of different layers is not supported yet.")
    return Curve(parts[0].source, tuple(component for part in parts for component in part.components))


def _apply(reader: _Reader, value: Any, function: str, parameters: tuple[float, ...] = ()) -> Curve:
    """``function`` of a curve: each line component becomes a term; anything else is made a node first."""
    curve = reader.curve(value)
    if not all(len(c) == 1 and c[0].function == "identity" for c in curve.components):
        curve = Curve(reader.materialise(curve), (_LINE,))
    terms = [component[0] for component in curve.components]
    made = (Term(function, 1.0, t.coefficient * t.scale, t.coefficient * t.offset, parameters) for t in terms)
    return replace(curve, components=tuple((term,) for term in made))


def _plain(function: str) -> Handler:
    def handler(reader: _Reader, a: Arguments, shape: tuple[int, ...]) -> Curve:
        return _apply(reader, a["self"], function)

    return handler


for _name in ("relu", "abs", "tanh", "sigmoid", "sin", "cos", "silu"):
    assert _name in SCALAR_FUNCTIONS
    _HANDLERS[_name] = _plain(_name)


@_handles("gelu")
def _gelu(reader: _Reader, a: Arguments, shape: tuple[int, ...]) -> Curve:
    if a.get("approximate", "none") != "none":
        raise reader.unsupported("Only the exact GELU (approximate='none') is supported.")
    return _apply(reader, a["self"], "gelu")


@_handles("leaky_relu")
def _leaky_relu(reader: _Reader, a: Arguments, shape: tuple[int, ...]) -> Curve:
    return _apply(reader, a["self"], "leaky_relu", (float(a["negative_slope"]),))


@_handles("elu")
def _elu(reader: _Reader, a: Arguments, shape: tuple[int, ...]) -> Curve:
    if a["scale"] != 1 or a["input_scale"] != 1:
        raise reader.unsupported("Only ELU itself is supported, not its scaled variants.")
    return _apply(reader, a["self"], "elu", (float(a["alpha"]),))


@_handles("softplus")
def _softplus(reader: _Reader, a: Arguments, shape: tuple[int, ...]) -> Curve:
    if a["threshold"] < 20:
        # Beyond the threshold torch goes over to the line, with a jump of log(1 + exp(-threshold)): 2e-9 at 20.
        raise reader.unsupported("A softplus with a threshold below 20 jumps there; it has no Lipschitz constant.")
    return _apply(reader, a["self"], "softplus", (float(a["beta"]),))
