"""The network that the tool sees: linear layers and the functions that it bounds soundly, built from a Graph."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

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
    Input,
    MaxPool,
    Node,
    Normalize,
    Reshape,
    Softmax,
    block_axis,
)
from lipbridge.graph.windows import window_places
from lipbridge.lowering.dense import component_line, lower_to_dense
from lipbridge.rounding.scalars import UNIT, gamma
from lipbridge_adapters.lirpa.affine import Affine, Call, Weight, added_up, stacked
from lipbridge_adapters.lirpa.kernel import Kernel, Shape, as_kernel, image_shape, pair
from lipbridge_adapters.lirpa.sums import Sum

Method = Literal["IBP", "CROWN-IBP", "CROWN", "alpha-CROWN"]


METHODS: tuple[Method, ...] = ("IBP", "CROWN-IBP", "CROWN", "alpha-CROWN")

#: Methods that get the intervals of activations from intervals alone.
BY_INTERVALS: tuple[Method, ...] = ("IBP", "CROWN-IBP")


@dataclass(frozen=True)
class Function:
    """A nonlinear function of the tool: its value, its steepest line, an upper bound of |value|, and its methods.

    ``steepness(m)`` and ``magnitude(m)`` hold for |t| <= m. ``reach`` is where release 0.3's relaxation ends, and
    ``derivative`` says whether release 0.7 bounds the Jacobian of a network with it soundly; no slope of it is larger
    than ``steepest`` where a Network uses it.
    """

    value: Callable[[Tensor], Tensor]
    magnitude: Callable[[Tensor], Tensor]
    steepness: Callable[[Tensor], Tensor] = torch.ones_like
    methods: tuple[Method, ...] = METHODS
    reach: float = math.inf
    derivative: bool = False
    steepest: float = 1.0


FUNCTIONS: dict[str, Function] = {
    "relu": Function(torch.relu, lambda m: m, derivative=True),
    "abs": Function(torch.abs, lambda m: m),
    "tanh": Function(torch.tanh, torch.ones_like, reach=500.0, derivative=True),
    "sigmoid": Function(torch.sigmoid, torch.ones_like, reach=500.0, derivative=True),
    "sin": Function(torch.sin, torch.ones_like),
    "cos": Function(torch.cos, torch.ones_like),
    # A product of two bounded factors, whose planes are as steep as a factor is large.
    "silu": Function(
        lambda z: z * torch.sigmoid(z), lambda m: m, lambda m: 1.0 + m, reach=500.0, derivative=True, steepest=1.1
    ),
    # exp(min(t, 0)), for elu; the tool has no minimum with a constant that it bounds by lines.
    # For elu's derivative, of arguments below zero.
    "exp": Function(torch.exp, torch.exp, torch.exp, derivative=True),
    "exp_negative": Function(lambda z: torch.exp(-torch.relu(-z)), torch.ones_like),
    # The tool bounds softplus by intervals only.
    "softplus": Function(nn.Softplus(), lambda m: m + 1.0, methods=("IBP",)),
}


def _readable(graph: Graph, convolutions: bool) -> Graph:
    """The same network in vectors and dense layers only, unless it has convolutions that the tool should see as such.

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
    if convolutions and any(_kernel_of(node, graph) is not None for node in graph.nodes):
        return graph
    several = any(len(node.shape) > 1 for node in graph.nodes[1:])
    if several or any(isinstance(node, Conv | ConvTranspose | Gather) for node in graph.nodes):
        return lower_to_dense(graph).graph
    return graph


def _kernel_of(node: Node, graph: Graph) -> Kernel | None:
    """The kernel of a convolution that the tool takes; a factor of each channel is no convolution."""
    if not isinstance(node, Conv) or node.diagonal:
        return None
    return as_kernel(node, graph.nodes[node.inputs[0]].shape)


def _images(shape: tuple[int, ...]) -> Shape | None:
    return image_shape(shape) if len(shape) in (2, 3) else None


class Network(nn.Module):
    """A Graph as sums of linear layers and unary functions, on flat float64 inputs ``(batch, n)``; outputs too.

    Signal 0 is the input; signal i is an affine form of earlier signals or a function of one. An activation that is
    linear on both sides of zero is lowered by method: with lines (CROWN) to ``a z + (b - a) relu z``, which keeps its
    components correlated and is tighter; with intervals (IBP) to relu z, relu -z or |z|, which are exact there.
    CROWN-IBP gets what IBP gets, since its lines rest on intervals. Nothing but affine forms ever reads the input: the
    tool takes an l_2 ball for a point in any other operation.

    Convolutions stay kernels, and so do factors of channels, copies of channels and the entries of pooling windows that
    meet them; what no kernel is becomes a matrix.

    Args:
        graph: the network.
        method: of bounding it.
        convolutions: whether the tool gets convolutions as such; matrices if not.
        derivative: whether it is for the tool's Jacobian, which takes fewer functions and no convolutions.

    Raises:
        UnsupportedProblem: naming the first layer or activation that it cannot take.
    """

    def __init__(self, graph: Graph, method: Method, *, convolutions: bool = True, derivative: bool = False) -> None:
        super().__init__()
        self.method: Method = method
        self.derivative = derivative
        self.steps: list[Affine | Call] = []  # signal i + 1
        self.layers = nn.ModuleList()
        self.input_size = math.prod(graph.input_shape)
        self._known: dict[tuple[object, ...], int] = {}
        self.device = graph.device
        graph = _readable(graph, convolutions and not derivative)
        self.images = any(_kernel_of(node, graph) is not None for node in graph.nodes)
        self._affine(graph.fold(self._read(0), lambda index, node, inputs: self._lower(node, index, inputs, graph)))

    def forward(self, x: Tensor) -> Tensor:
        signals = [x]
        for step, layers in zip(self.steps, self.layers, strict=True):
            if isinstance(step, Call):
                signals.append(FUNCTIONS[step.name].value(signals[step.source]))
                continue
            signals.append(layers([signals[i] for i in step.terms]))
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
        lines = 96 * (affine[-1] if self.method == "CROWN-IBP" else max(affine)) * max(widths)
        # The optimiser keeps the graph of a whole pass, and slopes for every pair of an output and a neuron.
        return lines if self.method != "alpha-CROWN" else 2 * lines + 64 * sum(affine) * sum(widths)

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
                total = total + _absolute(weight, sizes[signal])
                error = error + _absolute(weight, errors[signal])
            sizes.append(total)
            errors.append(error + g * total)
        return 2 * errors[-1]

    def steepest(self) -> Tensor:
        """``(outputs, inputs)``: no entry of a Jacobian is larger, nor are the magnitudes of its terms together."""
        found = [torch.eye(self.input_size, dtype=torch.float64, device=self.device)]  # inputs first: rows are images
        for step in self.steps:
            if isinstance(step, Call):
                found.append(FUNCTIONS[step.name].steepest * found[step.source])
            else:
                parts = [_absolute(weight, found[signal]) for signal, weight in step.terms.items()]
                found.append(torch.stack(parts).sum(0))
        return found[-1].T

    # -- building --

    def _lower(self, node: Node, index: int, sources: list[Affine], graph: Graph) -> Affine:
        shapes = [graph.nodes[i].shape for i in node.inputs]
        if isinstance(node, Add):
            return added_up(sources)
        if isinstance(node, Concat):
            return self._concatenated(node, sources, shapes)
        source, shape = sources[0], shapes[0]
        if isinstance(node, Reshape) and node.axes is None:
            return source
        if isinstance(node, Dense) and len(node.shape) == len(shape) == 1:
            return self._value(node, source, source.convolved).image(node.weight, node.bias)
        if isinstance(node, Conv) and node.diagonal:
            scaled = source.times(node.weight.flatten(), shape[0])
            bias = node.bias
            return scaled if bias is None else scaled.plus(bias.repeat_interleave(len(scaled.constant) // len(bias)))
        kernel = _kernel_of(node, graph)
        if isinstance(node, Conv) and kernel is not None:
            made = source.convolution(kernel, node.bias)
            if made is None:
                made = self._value(node, source, True).convolution(kernel, node.bias)
            assert made is not None
            return made
        if isinstance(node, Elementwise):
            return self._elementwise(node, source, index, shape)
        if isinstance(node, MaxPool):
            return self._maxima(node, source, index, shape)
        if isinstance(node, GroupSort):
            return self._sorted(node, source, index)
        return self._as_matrix(node, source, shape)

    def _as_matrix(self, node: Node, source: Affine, shape: tuple[int, ...]) -> Affine:
        """A linear node that no kernel is: a matrix of flattened values."""
        alone = Graph((Input("x", (), shape), replace(node, inputs=(0,))))
        *_, last = lower_to_dense(alone).graph.nodes
        if not isinstance(last, Dense):
            raise UnsupportedProblem(f"layer `{node.name}`: {type(node).__name__} is not handled")
        return self._value(node, source, source.mixing).image(last.weight, last.bias)

    def _value(self, node: Node, source: Affine, own: bool) -> Affine:
        """What a node reads; a signal of its own, if it should be one, where a product of weights would grow large."""
        return self._read(self._linear(("value", node.inputs[0]), source)) if own else source

    def _concatenated(self, node: Concat, sources: list[Affine], shapes: list[tuple[int, ...]]) -> Affine:
        images = [_images(shape) for shape in shapes] if node.axis == 0 else []
        known = [image for image in images if image is not None]
        joined = stacked(sources, known if len(known) == len(sources) else None)
        if node.axis == 0:
            return joined
        starts = torch.tensor([0, *(math.prod(shape) for shape in shapes)], device=self.device).cumsum(0)
        places = [
            torch.arange(math.prod(shape), device=self.device).reshape(shape) + start
            for shape, start in zip(shapes, starts, strict=False)
        ]
        return joined.rows(torch.cat(places, node.axis).flatten())

    def _elementwise(self, node: Elementwise, source: Affine, index: int, shape: tuple[int, ...]) -> Affine:
        width, axis = node.activation.width, block_axis(node)
        image = _images(shape)
        made = self._activation(node, source, index, None if image is None else [image] * width)
        if width == 1 or axis == 0:
            return made
        blocks = torch.arange(len(made.constant), device=self.device).reshape(width, *shape)
        order = (*range(1, 1 + axis), 0, *range(1 + axis, 1 + len(shape)))
        return made.rows(blocks.permute(order).flatten())

    def _maxima(self, node: MaxPool, source: Affine, index: int, shape: tuple[int, ...]) -> Affine:
        """Window by window a tournament of its entries."""
        values = self._read(self._linear((index,), source))
        entries = self._entries(node, values, shape)
        turn = 0
        while len(entries) > 1:
            first, second, *rest = entries
            turn += 1
            entries = [*rest, added_up([second, self._excess((index, "max", turn), first, second)])]
        return entries[0]

    def _entries(self, node: MaxPool, values: Affine, shape: tuple[int, ...]) -> list[Affine]:
        """Of every window the first entry, the second, and so on: by kernels of a single one where no window ends."""
        image, target = _images(shape), _images(node.shape)
        if self.images and image is not None and target is not None and not any(node.padding) and not node.ceil_mode:
            space = len(shape) - 1
            rest = (1,) * (2 - space)
            taps, stride, dilation = (pair(rest + each) for each in (node.kernel, node.stride, node.dilation))
            ones = torch.eye(math.prod(taps), dtype=torch.float64, device=self.device).reshape(-1, 1, 1, *taps)
            kernels = [
                Kernel(one.expand(image[0], -1, -1, -1), image, target, stride, (0, 0), dilation, image[0])
                for one in ones
            ]
            found = [values.convolution(kernel, None) for kernel in kernels]
            made = [form for form in found if form is not None]
            if len(made) == len(found):
                return made
        places = window_places(node, shape[1:], self.device)  # (windows, entries), -1 outside
        inside = places.gather(1, (places >= 0).to(torch.uint8).argmax(1, keepdim=True))
        places = torch.where(places >= 0, places, inside)  # an entry counted twice changes no maximum
        channels = torch.arange(shape[0], device=self.device) * math.prod(shape[1:])
        return [values.rows((channels[:, None] + column).flatten()) for column in places.T]

    def _sorted(self, node: GroupSort, source: Affine, index: int) -> Affine:
        """Odd-even transposition: neighbours in a group change places where they stand the wrong way round."""
        values = self._read(self._linear((index,), source))
        size, image = len(values.constant), _images(node.shape) if self.images else None
        count, after = node.shape[0], math.prod(node.shape[1:])
        groups = torch.arange(count, device=self.device).reshape(-1, node.group)

        def picked(form: Affine, channels: Tensor, shape: Shape | None) -> Affine:
            chosen = None if shape is None else form.channels(channels, shape)
            if chosen is not None:
                return chosen
            return form.rows((channels[:, None] * after + torch.arange(after, device=self.device)).flatten())

        columns = [picked(values, groups[:, place], image) for place in range(node.group)]
        for turn in range(node.group):
            for low in range(turn % 2, node.group - 1, 2):
                excess = self._excess((index, "sort", turn, low), columns[low], columns[low + 1])
                columns[low] = added_up([columns[low], excess.scaled(-1.0)])
                columns[low + 1] = added_up([columns[low + 1], excess])
        back = torch.empty(count, dtype=torch.long, device=self.device)
        back[groups.T.flatten()] = torch.arange(count, device=self.device)
        part = None if image is None else (len(groups), *image[1:])
        joined = stacked(columns, None if part is None else [part] * node.group)
        assert len(joined.constant) == size
        return picked(joined, back, image)

    def _excess(self, key: tuple[object, ...], a: Affine, b: Affine) -> Affine:
        """``relu(a - b)``."""
        return self._function("relu", key, added_up([a, b.scaled(-1.0)]))

    def _activation(self, node: Elementwise, source: Affine, index: int, shapes: list[Shape] | None) -> Affine:
        activation = node.activation
        key = (index,)
        if self.images and node.linear:
            lines = [component_line(component) for component in activation.components]
            return stacked([source.scaled(float(slope), float(offset)) for slope, offset in lines], shapes)
        if activation.sides is not None:
            return stacked([self._kink(key, source, left, right) for left, right in activation.sides], shapes)
        parts = [added_up([self._term(key, source, term) for term in component]) for component in activation.components]
        return stacked(parts, shapes)

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
            if self.derivative:  # of exp(-r) at r = relu(-t), whose minus it takes as a weight alone
                below = self._function("relu", (*key, "minus"), inner.scaled(-1.0))
                part = self._function("exp", (*key, "exp"), below.scaled(-1.0)).scaled(alpha, -alpha)
            else:
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
        lines = self.method not in BY_INTERVALS
        if not lines and left == -right:
            return self._function("abs", key, z).scaled(right)
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
        if self.derivative and not FUNCTIONS[name].derivative:
            raise UnsupportedProblem(f"auto_LiRPA's Jacobian does not know {name}")
        known = (name, *key)
        if known not in self._known:
            source = self._linear(key, argument)
            self._known[known] = self._append(Call(name, source), nn.Identity())
        return self._read(self._known[known])

    def _linear(self, key: tuple[object, ...], form: Affine) -> int:
        if key not in self._known:
            self._known[key] = self._affine(form)
        return self._known[key]

    def _affine(self, form: Affine) -> int:
        return self._append(form, Sum(form, self.images))

    def _append(self, step: Affine | Call, layer: nn.Module) -> int:
        self.steps.append(step)
        self.layers.append(layer)
        return len(self.steps)

    def _read(self, signal: int) -> Affine:
        ones = torch.ones(self.widths[signal], dtype=torch.float64, device=self.device)
        return Affine({signal: ones}, torch.zeros_like(ones))


def _absolute(weight: Weight, sizes: Tensor) -> Tensor:
    """``|W| sizes``, for sizes ``(batch, n)``."""
    if isinstance(weight, Kernel):
        return replace(weight, weight=weight.weight.abs())(sizes)
    return sizes * weight.abs() if weight.ndim == 1 else sizes @ weight.abs().T
