"""The network that the tool sees: linear layers and the functions that it bounds soundly, built from a Graph."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, cast

import torch
from torch import Tensor, nn

from lipbridge.activations.activation import Term
from lipbridge.activations.scalar_functions import SCALAR_FUNCTIONS
from lipbridge.errors import UnsupportedProblem
from lipbridge.graph.graph import Graph
from lipbridge.graph.nodes import (
    Add,
    Concat,
    Conv,
    ConvTranspose,
    Dense,
    Elementwise,
    Gather,
    GroupSort,
    MaxPool,
    Node,
    Normalize,
    Reshape,
    Softmax,
)
from lipbridge.graph.windows import window_places
from lipbridge.lowering.dense import lower_to_dense
from lipbridge.rounding.scalars import UNIT, gamma
from lipbridge_adapters.lirpa.affine import Affine, Call, added_up, full, stacked

Method = Literal["IBP", "CROWN", "alpha-CROWN"]


METHODS: tuple[Method, ...] = ("IBP", "CROWN", "alpha-CROWN")


@dataclass(frozen=True)
class Function:
    """A nonlinear function of the tool: its value, its steepest line, an upper bound of |value|, and its methods.

    ``steepness(m)`` and ``magnitude(m)`` hold for |t| <= m. ``reach`` is where release 0.3's relaxation ends.
    """

    value: Callable[[Tensor], Tensor]
    magnitude: Callable[[Tensor], Tensor]
    steepness: Callable[[Tensor], Tensor] = torch.ones_like
    methods: tuple[Method, ...] = METHODS
    reach: float = math.inf


FUNCTIONS: dict[str, Function] = {
    "relu": Function(torch.relu, lambda m: m),
    "abs": Function(torch.abs, lambda m: m),
    "tanh": Function(torch.tanh, torch.ones_like, reach=500.0),
    "sigmoid": Function(torch.sigmoid, torch.ones_like, reach=500.0),
    "sin": Function(torch.sin, torch.ones_like),
    "cos": Function(torch.cos, torch.ones_like),
    # A product of two bounded factors, whose planes are as steep as a factor is large.
    "silu": Function(lambda z: z * torch.sigmoid(z), lambda m: m, lambda m: 1.0 + m, reach=500.0),
    # exp(min(t, 0)), for elu; the tool has no minimum with a constant that it bounds by lines.
    "exp_negative": Function(lambda z: torch.exp(-torch.relu(-z)), torch.ones_like),
    # The tool bounds softplus by intervals only.
    "softplus": Function(nn.Softplus(), lambda m: m + 1.0, methods=("IBP",)),
}


def _in_vectors(graph: Graph) -> Graph:
    """The same network with one axis throughout, and dense layers only.

    Raises:
        UnsupportedProblem: for a normalisation, and for layers that are too large as matrices.
    """
    for node in graph.nodes:
        if isinstance(node, Softmax):
            raise UnsupportedProblem(f"layer `{node.name}` is a softmax; bound the network before it, up to the logits")
        if isinstance(node, Normalize):
            raise UnsupportedProblem(
                f"layer `{node.name}` normalises by a deviation of its input, which is not bounded here"
            )
    several = any(len(node.shape) > 1 for node in graph.nodes[1:])
    if several or any(isinstance(node, Conv | ConvTranspose | Gather) for node in graph.nodes):
        return lower_to_dense(graph).graph
    return graph


class Network(nn.Module):
    """A Graph as sums of linear layers and unary functions, on flat float64 inputs ``(batch, n)``; outputs too.

    Signal 0 is the input; signal i is an affine form of earlier signals or a function of one. An activation that is
    linear on both sides of zero is lowered by method: with lines (CROWN) to ``a z + (b - a) relu z``, which keeps its
    components correlated and is tighter; with intervals (IBP) to relu z, relu -z or |z|, which are exact there.
    Nothing but affine forms ever reads the input: the tool takes an l_2 ball for a point in any other operation.

    Raises:
        UnsupportedProblem: naming the first layer or activation that it cannot take.
    """

    def __init__(self, graph: Graph, method: Method) -> None:
        super().__init__()
        self.method: Method = method
        self.steps: list[Affine | Call] = []  # signal i + 1
        self.layers = nn.ModuleList()
        self.input_size = math.prod(graph.input_shape)
        self._known: dict[tuple[object, ...], int] = {}
        self.device = graph.device
        graph = _in_vectors(graph)
        self._affine(graph.fold(self._read(0), lambda index, node, inputs: self._lower(node, index, inputs, graph)))

    def forward(self, x: Tensor) -> Tensor:
        signals = [x]
        for step, layers in zip(self.steps, self.layers, strict=True):
            if isinstance(step, Call):
                signals.append(FUNCTIONS[step.name].value(signals[step.source]))
                continue
            parts = [layer(signals[i]) for i, layer in zip(step.terms, cast(nn.ModuleList, layers), strict=True)]
            total = parts[0]
            for part in parts[1:]:
                total = total + part
            signals.append(total)
        return signals[-1]

    @property
    def widths(self) -> list[int]:
        """The widths of all signals, input first."""
        widths = [self.input_size]
        for step in self.steps:
            widths.append(widths[step.source] if isinstance(step, Call) else len(step.constant))
        return widths

    def sample_bytes(self) -> int:
        """About how much memory the bounds of one input take: the coefficients of every signal's two lines."""
        widths = self.widths
        if self.method == "IBP":
            return 64 * sum(widths)
        affine = [width for width, step in zip(widths[1:], self.steps, strict=True) if isinstance(step, Affine)]
        lines = 96 * max(affine) * max(widths)
        # The optimiser keeps the graph of a whole pass, and slopes for every pair of an output and a neuron.
        return lines if self.method == "CROWN" else 2 * lines + 64 * sum(affine) * sum(widths)

    def slack(self, centers: Tensor, radius: float, release: tuple[int, ...]) -> Tensor:
        """Per output, an estimate ``(batch, outputs)`` of the rounding error of its bounds over the balls.

        Running error analysis in the worst case: |values| through |W|, an error gamma_n |W||value| for each affine
        form, with n the number of additions on the whole way. A function f passes three times its steepness: once for
        f itself, twice because its lines were drawn for an interval that is itself off. Sources: Higham 2002, ch. 3.

        Raises:
            UnsupportedProblem: if a pre-activation may leave the range on which release 0.3 is sound.
        """
        g = gamma(16 + sum(width + 8 for width in self.widths))
        sizes: list[Tensor] = [centers.abs() + radius]
        errors: list[Tensor] = [4 * UNIT * sizes[0]]
        for step in self.steps:
            if isinstance(step, Call):
                function, m, e = FUNCTIONS[step.name], sizes[step.source], errors[step.source]
                if release < (0, 4) and self.method != "IBP" and bool((m > function.reach).any()):
                    raise UnsupportedProblem(
                        f"inputs of {step.name} may exceed {function.reach:g}, where release 0.3 is not sound; use IBP"
                    )
                errors.append(3 * function.steepness(m) * e + 16 * UNIT * (1 + m + function.magnitude(m)))
                sizes.append(function.magnitude(m))
                continue
            total, error = step.constant.abs().expand(len(centers), -1), centers.new_zeros(())
            for signal, weight in step.terms.items():
                total = total + sizes[signal] @ weight.abs().T
                error = error + errors[signal] @ weight.abs().T
            sizes.append(total)
            errors.append(error + g * total)
        return 2 * errors[-1]

    # -- building --

    def _lower(self, node: Node, index: int, sources: list[Affine], graph: Graph) -> Affine:
        flat = all(len(graph.nodes[i].shape) == 1 for i in node.inputs)
        if isinstance(node, Dense) and flat:
            return sources[0].image(node.weight, node.bias)
        if isinstance(node, Add):
            return added_up(sources)
        if isinstance(node, Reshape) and node.axes is None:
            return sources[0]
        if isinstance(node, Concat) and node.axis == 0:
            return stacked(sources)
        if isinstance(node, Elementwise) and (flat or node.activation.width == 1):
            return self._activation(node, sources[0], index)
        if isinstance(node, MaxPool):
            return self._maxima(node, sources[0], index, graph.nodes[node.inputs[0]].shape)
        if isinstance(node, GroupSort):
            return self._sorted(node, sources[0], index)
        where = "" if flat else f" on the shape {graph.nodes[node.inputs[0]].shape}"
        raise UnsupportedProblem(f"layer `{node.name}`: {type(node).__name__}{where} is not handled")

    def _maxima(self, node: MaxPool, source: Affine, index: int, shape: tuple[int, ...]) -> Affine:
        """Window by window a tournament of its entries."""
        places = window_places(node, shape[1:], self.device)  # (windows, entries), -1 outside
        inside = places.gather(1, (places >= 0).to(torch.uint8).argmax(1, keepdim=True))
        places = torch.where(places >= 0, places, inside)  # an entry counted twice changes no maximum
        channels = torch.arange(shape[0], device=self.device) * math.prod(shape[1:])
        values = self._read(self._linear((index,), source))
        entries = [values.rows((channels[:, None] + column).flatten()) for column in places.T]
        turn = 0
        while len(entries) > 1:
            first, second, *rest = entries
            turn += 1
            entries = [*rest, added_up([second, self._excess((index, "max", turn), first, second)])]
        return entries[0]

    def _sorted(self, node: GroupSort, source: Affine, index: int) -> Affine:
        """Odd-even transposition: neighbours in a group change places where they stand the wrong way round."""
        values = self._read(self._linear((index,), source))
        size, after = len(values.constant), math.prod(node.shape[1:])
        at = torch.arange(size, device=self.device).reshape(-1, node.group, after)
        columns = [values.rows(at[:, place].flatten()) for place in range(node.group)]
        for turn in range(node.group):
            for low in range(turn % 2, node.group - 1, 2):
                excess = self._excess((index, "sort", turn, low), columns[low], columns[low + 1])
                columns[low] = added_up([columns[low], excess.scaled(-1.0)])
                columns[low + 1] = added_up([columns[low + 1], excess])
        back = torch.empty(size, dtype=torch.long, device=self.device)
        back[torch.cat([at[:, place].flatten() for place in range(node.group)])] = torch.arange(
            size, device=self.device
        )
        return stacked(columns).rows(back)

    def _excess(self, key: tuple[object, ...], a: Affine, b: Affine) -> Affine:
        """``relu(a - b)``."""
        return self._function("relu", key, added_up([a, b.scaled(-1.0)]))

    def _activation(self, node: Elementwise, source: Affine, index: int) -> Affine:
        activation = node.activation
        key = (index,)
        if activation.sides is not None:
            return stacked([self._kink(key, source, left, right) for left, right in activation.sides])
        return stacked(
            [added_up([self._term(key, source, term) for term in component]) for component in activation.components]
        )

    def _term(self, key: tuple[object, ...], source: Affine, term: Term) -> Affine:
        """``c f(s t + o)``."""
        name, c, s, o = term.function, term.coefficient, term.scale, term.offset
        inner, key = source.scaled(s, o), (*key, s, o)
        if name == "identity":
            return self._read(self._linear(key, inner)).scaled(c)
        sides = SCALAR_FUNCTIONS[name].sides(term.parameters)
        if sides is not None:
            return self._kink(key, inner, *sides).scaled(c)
        if name == "elu":
            (alpha,) = term.parameters
            part = self._function("exp_negative", key, inner).scaled(alpha, -alpha)
            return added_up([self._function("relu", key, inner), part]).scaled(c)
        if name == "sin_squared":  # (1 - cos 2t) / 2
            return self._function("cos", (*key, 2), inner.scaled(2.0)).scaled(-0.5 * c, 0.5 * c)
        if name == "softplus":
            (beta,) = term.parameters
            return self._function("softplus", (*key, beta), inner.scaled(beta)).scaled(c / beta)
        return self._function(name, key, inner).scaled(c)

    def _kink(self, key: tuple[object, ...], z: Affine, left: float, right: float) -> Affine:
        """The function with slopes ``left`` and ``right`` of zero, lowered as the method likes it."""
        if left == right:
            return self._read(self._linear(key, z)).scaled(left)
        if self.method == "IBP" and left == -right:
            return self._function("abs", key, z).scaled(right)
        lines = self.method != "IBP"
        slope = right - left if lines else right
        parts = [self._function("relu", key, z).scaled(slope)] if slope else []
        if left and lines:
            parts.append(self._read(self._linear(key, z)).scaled(left))
        elif left:
            parts.append(self._function("relu", (*key, "minus"), z.scaled(-1.0)).scaled(-left))
        return added_up(parts)

    def _function(self, name: str, key: tuple[object, ...], argument: Affine) -> Affine:
        if name not in FUNCTIONS:
            raise UnsupportedProblem(f"{name} is not supported by auto_LiRPA")
        if self.method not in FUNCTIONS[name].methods:
            raise UnsupportedProblem(f"{name} is bounded by {', '.join(FUNCTIONS[name].methods)} only")
        known = (name, *key)
        if known not in self._known:
            source = self._linear(key, argument)
            self._known[known] = self._append(Call(name, source), nn.ModuleList())
        return self._read(self._known[known])

    def _linear(self, key: tuple[object, ...], form: Affine) -> int:
        if key not in self._known:
            self._known[key] = self._affine(form)
        return self._known[key]

    def _affine(self, form: Affine) -> int:
        layers = nn.ModuleList()
        form = Affine({signal: full(weight) for signal, weight in form.terms.items()}, form.constant)
        for weight in form.terms.values():
            layer = nn.Linear(weight.shape[1], weight.shape[0], bias=not layers, device="meta", dtype=torch.float64)
            layer.weight = nn.Parameter(weight.clone(), requires_grad=False)
            if not layers:
                layer.bias = nn.Parameter(form.constant.clone(), requires_grad=False)
            layers.append(layer)
        return self._append(form, layers)

    def _append(self, step: Affine | Call, layers: nn.ModuleList) -> int:
        self.steps.append(step)
        self.layers.append(layers)
        return len(self.steps)

    def _read(self, signal: int) -> Affine:
        ones = torch.ones(self.widths[signal], dtype=torch.float64, device=self.device)
        return Affine({signal: ones}, torch.zeros_like(ones))
