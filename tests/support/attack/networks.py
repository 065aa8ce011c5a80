"""Families of piecewise linear networks, as Graphs, that draw every option of every node."""

from __future__ import annotations

import math
import random
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from lipbridge.activations.activation import Activation, Term
from lipbridge.activations.registry import activation, recognise
from lipbridge.graph.evaluation import evaluate
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
    Reshape,
)
from tests.support.attack.weights import EXTREME, TAME, Weights

SLOPES = (-3.0, -1.5, -1.0, -0.5, -0.01, 0.0, 0.01, 0.1, 0.3, 1.0, 1.25, 1.7)
MODES = ("zeros", "zeros", "circular", "reflect", "replicate")


@dataclass(frozen=True)
class Case:
    """A network of a family; the seed and the family's name draw it again."""

    family: str
    seed: int
    graph: Graph

    def __str__(self) -> str:
        return f"draw({self.family!r}, {self.seed})"


def hardtanh(low: float, high: float) -> Activation:
    return recognise(((Term("relu", 1.0, 1.0, -low), Term("relu", -1.0, 1.0, -high), Term("identity", 1.0, 0.0, low)),))


def leaky(slope: float) -> Activation:
    return recognise(((Term("leaky_relu", parameters=(slope,)),),))


def piecewise(drawn: random.Random) -> Activation:
    """A piecewise linear activation: a registered one, a clipped line, a leaky one, or a sum or join of terms."""
    kind = drawn.choice(("plain", "plain", "plain", "leaky", "leaky", "clipped", "sum", "joint"))
    if kind == "plain":
        names = ("relu", "relu", "abs", "crelu", "identity_abs", "identity_abs_l2", "hardsigmoid")
        return activation(drawn.choice(names))
    if kind == "leaky":
        return leaky(drawn.choice(SLOPES))
    if kind == "clipped":
        low = drawn.choice((0.0, -1.0, -0.3, 0.1))
        return hardtanh(low, low + drawn.choice((6.0, 2.0, 0.1, 0.6)))
    return recognise(tuple(_component(drawn) for _ in range(1 if kind == "sum" else 2)))


def _component(drawn: random.Random) -> tuple[Term, ...]:
    numbers, offsets = (1.0, -1.0, 0.5, 0.1, -2.7, 3.0, 1.0 / 3.0), (0.0, 0.0, 1.0, -0.3, 0.7)
    terms: list[Term] = []
    for _ in range(drawn.randint(1, 3)):
        name = drawn.choice(("relu", "abs", "leaky_relu", "identity"))
        own = (drawn.choice(SLOPES),) if name == "leaky_relu" else ()
        terms.append(Term(name, drawn.choice(numbers), drawn.choice(numbers), drawn.choice(offsets), own))
    return tuple(terms)


class Maker:
    """Appends nodes to a Graph; what their shapes are, evaluation says."""

    def __init__(self, seed: int | str, inputs: tuple[int, ...], flavours: tuple[str, ...] = TAME) -> None:
        self.random = random.Random(f"network {seed}")
        self.weights = Weights(seed, flavours)
        self.nodes: list[Node] = [Input("x", (), inputs)]

    @property
    def last(self) -> int:
        return len(self.nodes) - 1

    def shape(self, index: int) -> tuple[int, ...]:
        return self.nodes[index].shape

    def add(self, node: Node) -> int:
        sources = [torch.zeros(1, *self.nodes[i].shape, dtype=torch.float64) for i in node.inputs]
        self.nodes.append(replace(node, shape=tuple(evaluate(node, sources).shape[1:])))
        return self.last

    def graph(self, name: str) -> Graph:
        return Graph(tuple(self.nodes), name)

    def name(self) -> str:
        return f"n{len(self.nodes)}"

    # --- nodes --------------------------------------------------------------------------------------------------------

    def dense(self, at: int, m: int) -> int:
        W = self.weights.weight(m, self.shape(at)[-1])
        return self.add(Dense(self.name(), (at,), (), W, self.weights.bias(m)))

    def activate(self, at: int, row: Activation | None = None) -> int:
        return self.add(Elementwise(self.name(), (at,), (), row or piecewise(self.random), 0))

    def scale(self, at: int) -> int:
        """A normalisation in eval mode: every channel a scale and a shift of its own."""
        channels, rank = self.shape(at)[0], len(self.shape(at)) - 1
        ones = (1,) * rank
        W = self.weights.weight(channels, 1, *ones)
        bias = self.weights.bias(channels)
        return self.add(Conv(self.name(), (at,), (), W, bias, ones, ((0, 0),) * rank, ones, channels))

    def line(self, at: int) -> int:
        """A factor and a shift of all numbers."""
        factor = self.random.choice((0.1, 10.0, -3.0, 1.0 / 3.0, 2.0**-20))
        return self.activate(at, recognise(((Term("identity", 1.0, factor, self.random.choice((0.0, 0.3))),),)))

    def conv(self, at: int, out: int | None = None) -> int:
        channels, *space = self.shape(at)
        drawn, rank = self.random, len(space)
        groups = drawn.choice([g for g in (1, 1, 2, 3) if channels % g == 0])
        rows = drawn.randint(1, 2) if out is None else max(1, out // groups)
        dilation = tuple(drawn.choice((1, 1, 2)) for _ in space)
        kernel = tuple(drawn.randint(1, 3) for _ in space)
        mode = drawn.choice(MODES)
        padding: list[tuple[int, int]] = []
        for n, k, d in zip(space, kernel, dilation, strict=True):
            widest = {"circular": n, "reflect": n - 1}.get(mode, 3)
            before, after = (min(widest, drawn.randint(0, d * (k - 1) + 1)) for _ in range(2))
            padding.append((before, after))
        kernel = tuple(
            k if n + sum(pair) >= d * (k - 1) + 1 else 1
            for n, k, d, pair in zip(space, kernel, dilation, padding, strict=True)
        )
        stride = tuple(drawn.choice((1, 1, 1, 2, 3)) for _ in range(rank))
        W = self.weights.weight(groups * rows, channels // groups, *kernel)
        bias = self.weights.bias(groups * rows)
        return self.add(Conv(self.name(), (at,), (), W, bias, stride, tuple(padding), dilation, groups, mode))

    def transposed(self, at: int) -> int:
        channels, *space = self.shape(at)
        drawn = self.random
        groups = drawn.choice([g for g in (1, 1, 2) if channels % g == 0])
        kernel = tuple(drawn.randint(1, 3) for _ in space)
        stride, dilation = (tuple(drawn.choice((1, 1, 2)) for _ in space) for _ in range(2))
        W = self.weights.weight(channels, drawn.randint(1, 2), *kernel)
        out = groups * W.shape[1]
        node = ConvTranspose(self.name(), (at,), (out,), W, self.weights.bias(out), stride, (), dilation, groups)
        padding: list[tuple[int, int]] = []
        for length, step in zip(node.spread(self.shape(at)), stride, strict=True):
            pair = (drawn.choice((0, 0, 1)), drawn.choice((0, 0, 1, 1 - step)))
            padding.append(pair if length - sum(pair) >= 1 else (0, 0))
        return self.add(replace(node, padding=tuple(padding)))

    def max_pool(self, at: int) -> int:
        drawn, space = self.random, self.shape(at)[1:]
        kernel = tuple(min(n, drawn.randint(1, 3)) for n in space)
        dilation = tuple(drawn.choice((1, 1, 2)) if d * 2 - 1 <= n else 1 for n, d in zip(space, kernel, strict=True))
        padding = tuple(drawn.randint(0, k // 2) for k in kernel)
        stride = tuple(drawn.randint(1, 3) for _ in space)
        return self.add(MaxPool(self.name(), (at,), (), kernel, stride, padding, dilation, drawn.random() < 0.3))

    def mean_pool(self, at: int) -> int:
        """Average pooling as a convolution of every channel alone; overlapping, padded, or over everything."""
        channels, *space = self.shape(at)
        drawn = self.random
        kernel = tuple(min(n, drawn.randint(1, 3)) for n in space)
        padding = tuple((p, p) for p in (drawn.randint(0, k // 2) for k in kernel))
        stride = tuple(drawn.randint(1, 2) for _ in space)
        W = torch.full((channels, 1, *kernel), 1.0 / math.prod(kernel), dtype=torch.float64)
        ones = (1,) * len(space)
        return self.add(Conv(self.name(), (at,), (), W, None, stride, padding, ones, channels))

    def sort(self, at: int) -> int:
        groups = [g for g in (2, 3, self.shape(at)[0]) if self.shape(at)[0] % g == 0 and g <= 4]
        return self.add(GroupSort(self.name(), (at,), (), self.random.choice(groups or [1])))

    def gather(self, at: int) -> int:
        shape = self.shape(at)
        to = (*shape[:-1], self.random.randint(1, 4))
        index: Tensor = torch.tensor([self.random.randint(-1, math.prod(shape) - 1) for _ in range(math.prod(to))])
        return self.add(Gather(self.name(), (at,), to, index))

    def move(self, at: int) -> int:
        """A transposition, or another shape of the same numbers."""
        shape = self.shape(at)
        axes = list(range(len(shape)))
        self.random.shuffle(axes)
        return self.add(Reshape(self.name(), (at,), tuple(shape[axis] for axis in axes), tuple(axes)))

    def flat(self, at: int) -> int:
        return at if len(self.shape(at)) == 1 else self.reshaped(at, (math.prod(self.shape(at)),))

    def reshaped(self, at: int, shape: tuple[int, ...]) -> int:
        return self.add(Reshape(self.name(), (at,), shape))

    def join(self, left: int, right: int) -> int:
        """The sum of two nodes if they fit, or they are concatenated."""
        if self.shape(left) == self.shape(right) and self.random.random() < 0.7:
            return self.add(Add(self.name(), (left, right), ()))
        if self.shape(left)[1:] != self.shape(right)[1:]:
            left, right = self.flat(left), self.flat(right)
        return self.add(Concat(self.name(), (left, right), (), 0))

    def copied(self, at: int) -> bool:
        """Whether a node holds copies; readers write copies of copies as copies of one node before."""
        node = self.nodes[at]
        return isinstance(node, Gather) or (isinstance(node, Reshape) and self.copied(node.inputs[0]))

    def step(self, at: int) -> int:
        """Any node on top of another."""
        image = len(self.shape(at)) > 1
        steps = [self.activate, self.activate, self.scale, self.line]
        if self.shape(at)[0] > 1:
            steps += [self.sort]
        if not self.copied(at):
            steps += [self.gather]
        if image:
            steps += [self.conv, self.conv, self.conv, self.transposed, self.max_pool, self.mean_pool, self.move]
            return self.random.choice(steps)(at)
        if self.random.random() < 0.4:
            return self.dense(at, self.random.randint(1, 4))
        return self.random.choice(steps)(at)


# --- families --------------------------------------------------------------------------------------------------------


def _inputs(drawn: random.Random) -> int:
    return drawn.choice((1, 1, 2, 3, 4))


def _chain(seed: int, depth: int, width: int, flavours: tuple[str, ...], rows=None, normalised: bool = False) -> Graph:
    drawn = random.Random(f"chain {seed}")
    make = Maker(seed, (_inputs(drawn),), flavours)
    at = 0
    for layer in range(depth):
        if normalised and drawn.random() < 0.5:
            at = make.scale(at) if drawn.random() < 0.7 else make.line(at)
        at = make.dense(at, drawn.randint(1, width))
        if normalised and drawn.random() < 0.5:
            at = make.scale(at)
        if layer < depth - 1:
            at = make.activate(at, None if rows is None else rows(drawn))
    return make.graph(f"chain {seed}")


def dense(seed: int) -> Graph:
    """Ordinary chains of dense layers."""
    return _chain(seed, 1 + seed % 5, 5, TAME)


def _tight(seed: int, extreme: bool) -> Graph:
    """Chains whose product of norms is attained, so that one rounding too few shows: monomial or positive layers."""
    drawn = random.Random(f"tight {seed}")
    kind = drawn.choice(("numbers", "monomial", "positive", "aligned"))
    width = 1 if kind == "numbers" else drawn.randint(1, 4)
    rows = ("relu", "abs", "crelu") if kind == "monomial" else ("relu", "abs")
    make = Maker(seed, (drawn.choice((1, width)),), ("normal",))
    at, depth = 0, drawn.randint(1, 6)
    for layer in range(depth):
        n, m = make.shape(at)[0], width
        W = make.weights.weight(m, n).abs()
        if kind == "monomial":
            order = [drawn.randrange(n) for _ in range(m)] if n < m else drawn.sample(range(n), m)
            W = W * torch.nn.functional.one_hot(torch.tensor(order), n)
        if kind == "aligned":
            W = W[:, :1] * torch.linspace(1.0, 2.0, m, dtype=torch.float64)[:n].repeat(-(-n // m))[:n]
        W = make.weights.sized(W) if extreme else W
        at = make.add(Dense(make.name(), (at,), (), W))
        if layer < depth - 1:
            at = make.activate(at, activation(drawn.choice(rows)))
    return make.graph(f"tight {seed}")


def tight(seed: int) -> Graph:
    """Chains whose product of norms is attained or nearly so."""
    return _tight(seed, False)


def extreme_tight(seed: int) -> Graph:
    """The same with weights of 1e-320 to 1e150."""
    return _tight(seed, True)


def leaky_slopes(seed: int) -> Graph:
    """Leaky slopes of -3 to 1.7, mixed."""
    return _chain(seed, 2 + seed % 4, 4, TAME, lambda drawn: leaky(drawn.choice((*SLOPES, drawn.uniform(-3.0, 1.7)))))


def extreme(seed: int) -> Graph:
    """Weights of 1e-320 to 1e150."""
    return _chain(seed, 1 + seed % 5, 4, EXTREME)


def deep(seed: int) -> Graph:
    """Depth 30, of relu, abs and leaky layers."""
    rows = [activation("relu"), activation("abs"), leaky(0.5), leaky(-1.0)]
    return _chain(seed, 30, 3, EXTREME if seed % 2 else TAME, lambda drawn: drawn.choice(rows))


def normalised(seed: int) -> Graph:
    """Scales and shifts before, between and behind dense layers."""
    return _chain(seed, 1 + seed % 4, 4, EXTREME if seed % 2 else TAME, normalised=True)


def _image(make: Maker, one_input: bool) -> int:
    """An image of a few numbers: the input itself, or a line of images."""
    shape = make.random.choice(((2, 4), (3, 5), (1, 6), (1, 3, 3), (2, 2, 3), (2, 3, 3)))
    if not one_input:
        make.nodes[0] = Input("x", (), shape)
        return 0
    return make.reshaped(make.dense(0, math.prod(shape)), shape)


def _convolutional(seed: int, flavours: tuple[str, ...]) -> Graph:
    drawn = random.Random(f"convolutions {seed}")
    make = Maker(seed, (1,), flavours)
    at = _image(make, drawn.random() < 0.5)
    for _ in range(drawn.randint(1, 3)):
        at = make.conv(at)
        if drawn.random() < 0.8:
            at = make.activate(at)
        if drawn.random() < 0.4:
            at = drawn.choice((make.max_pool, make.mean_pool, make.sort))(at)
        if drawn.random() < 0.2:
            at = make.scale(at)
    if drawn.random() < 0.6:
        at = make.dense(make.flat(at), drawn.randint(1, 3))
    return make.graph(f"convolutions {seed}")


def convolutions(seed: int) -> Graph:
    """Convolutions of any geometry with activations, pooling and sorting."""
    return _convolutional(seed, TAME)


def extreme_convolutions(seed: int) -> Graph:
    """The same with weights of 1e-320 to 1e150."""
    return _convolutional(seed, EXTREME)


def _branching(seed: int, flavours: tuple[str, ...]) -> Graph:
    drawn = random.Random(f"branches {seed}")
    image = drawn.random() < 0.5
    make = Maker(seed, (1 if image else _inputs(drawn),), flavours)
    at = _image(make, drawn.random() < 0.6) if image else 0
    for _ in range(drawn.randint(1, 3)):
        root, ends = at, []
        for _ in range(2):
            end = root
            for _ in range(drawn.randint(0, 2)):
                end = make.step(end)
            ends.append(end)
        at = make.join(ends[0], ends[1])
    for _ in range(drawn.randint(0, 2)):
        at = make.step(at)
    return make.graph(f"branches {seed}")


def branches(seed: int) -> Graph:
    """Sums and joins of any nodes."""
    return _branching(seed, TAME)


def extreme_branches(seed: int) -> Graph:
    """The same with weights of 1e-320 to 1e150."""
    return _branching(seed, EXTREME)


FAMILIES = {
    "dense": dense,
    "tight": tight,
    "extreme tight": extreme_tight,
    "leaky slopes": leaky_slopes,
    "normalised": normalised,
    "deep": deep,
    "extreme": extreme,
    "convolutions": convolutions,
    "extreme convolutions": extreme_convolutions,
    "branches": branches,
    "extreme branches": extreme_branches,
}


def draw(family: str, seed: int) -> Case:
    """A network of a family."""
    return Case(family, seed, FAMILIES[family](seed))
