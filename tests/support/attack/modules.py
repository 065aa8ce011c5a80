"""Random modules beside the same network as an exact Graph, written down without the package's reader.

A bound of what the reader makes of a module is compared with the module itself: its factors, divisions, paddings and
averages are rational numbers here, and never rounded.
"""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import lipbridge
from lipbridge.activations.modules import CReLU
from lipbridge.activations.registry import activation
from lipbridge.errors import LipbridgeError
from lipbridge.graph.graph import Graph
from lipbridge.graph.nodes import Add, Concat, Reshape
from tests.support.attack.judge import Outcome, judge_against
from tests.support.attack.networks import SLOPES, Case, Maker, hardtanh, leaky
from tests.support.attack.weights import EXTREME, TAME
from tests.support.exact.jets import ExactLinear
from tests.support.exact.rationals import Rationals

FACTORS = (0.1, 10.0, 3.0, 1.0 / 3.0, -0.7, 1e16, 1e-16, 2.0**-20, 1e-200, 1e200, 0.3)
SHIFTS = (0.0, 0.3, -1.0, 0.1)
FAMILIES = ("modules", "extreme modules")


class Program(nn.Module):
    """Steps in order, each a function or layer of the values of earlier ones; value 0 is the input."""

    def __init__(self) -> None:
        super().__init__()
        self.steps: list[tuple[Callable[..., Tensor], tuple[int, ...]]] = []
        self.layers = nn.ModuleList()

    def add(self, step: Callable[..., Tensor], *sources: int) -> int:
        if isinstance(step, nn.Module):
            self.layers.append(step.double())
        self.steps.append((step, sources))
        return len(self.steps)

    def forward(self, x: Tensor) -> Tensor:
        values = [x]
        for step, sources in self.steps:
            values.append(step(*(values[index] for index in sources)))
        return values[-1]


@dataclass(frozen=True)
class Twin:
    """A module, and the Graph that it is."""

    family: str
    seed: int
    module: Program
    graph: Graph

    def __str__(self) -> str:
        return f"draw_module({self.family!r}, {self.seed})"


class Builder:
    """Adds the same step to a Program and to a Graph. A place is a pair of their indices."""

    def __init__(self, seed: int | str, inputs: tuple[int, ...], flavours: tuple[str, ...]) -> None:
        self.random = random.Random(f"module {seed}")
        self.make = Maker(seed, inputs, flavours)
        self.program = Program()

    def shape(self, at: tuple[int, int]) -> tuple[int, ...]:
        return self.make.shape(at[1])

    def exact(self, at: tuple[int, int], matrix: Sequence[Sequence[Fraction]], shift: Sequence[Fraction]) -> int:
        """A node of rational numbers on the flattened input, of the same shape."""
        return self.linear(at, matrix, shift, self.shape(at))

    def linear(self, at, matrix, shift, shape: tuple[int, ...]) -> int:
        node = ExactLinear(self.make.name(), (at[1],), shape, rationals(matrix), rationals([[v] for v in shift]))
        self.make.nodes.append(node)
        return self.make.last

    def lines(self, at: tuple[int, int], factors: Sequence[Fraction], shifts: Sequence[Fraction]) -> int:
        """A factor and a shift for each number, or for each channel."""
        n, positions = math.prod(self.shape(at)), math.prod(self.shape(at)[1:])
        of = [index // positions if len(factors) == self.shape(at)[0] else 0 for index in range(n)]
        matrix = [[factors[of[i]] if i == j else Fraction(0) for j in range(n)] for i in range(n)]
        return self.exact(at, matrix, [shifts[of[i]] for i in range(n)])

    # --- steps --------------------------------------------------------------------------------------------------------

    def dense(self, at: tuple[int, int], m: int) -> tuple[int, int]:
        made = self.make.dense(at[1], m)
        node: Any = self.make.nodes[made]
        layer = nn.Linear(self.shape(at)[-1], m, node.bias is not None)
        return self.program.add(filled(layer, node), at[0]), made

    def activate(self, at: tuple[int, int]) -> tuple[int, int]:
        drawn = self.random
        kind = drawn.choice(("relu", "relu", "abs", "leaky", "prelu", "clipped", "relu6", "crelu", "terms"))
        if kind == "terms":
            return self.terms(at)
        if kind == "prelu":
            return self.prelu(at)
        step: Callable[..., Tensor]
        if kind == "relu":
            step, row = drawn.choice((nn.ReLU(), F.relu, lambda x: x.clamp(min=0.0))), activation("relu")
        elif kind == "abs":
            step, row = torch.abs, activation("abs")
        elif kind == "leaky":
            slope = drawn.choice(SLOPES)
            step, row = nn.LeakyReLU(slope), leaky(slope)
        elif kind == "clipped":
            low, high = drawn.choice(((-1.0, 1.0), (-0.3, 2.0), (0.1, 0.7)))
            step, row = drawn.choice((nn.Hardtanh(low, high), lambda x: x.clamp(low, high))), hardtanh(low, high)
        elif kind == "relu6":
            step, row = nn.ReLU6(), hardtanh(0.0, 6.0)
        else:
            step = drawn.choice((CReLU(dim=1), lambda x: torch.cat([x.relu(), (-x).relu()], 1)))
            row = activation("crelu")
        return self.program.add(step, at[0]), self.make.activate(at[1], row)

    def prelu(self, at: tuple[int, int]) -> tuple[int, int]:
        """relu(x) - a relu(-x), with a slope for all or for each channel."""
        count = self.random.choice((1, self.shape(at)[0]))
        slopes = [self.random.choice(SLOPES) for _ in range(count)]
        layer = nn.PReLU(count, dtype=torch.float64)
        layer.weight.data = torch.tensor(slopes, dtype=torch.float64)
        right = self.make.activate(at[1], activation("relu"))
        turned = self.lines(at, [Fraction(-1)], [Fraction(0)])
        left = self.make.activate(turned, activation("relu"))
        scaled = self.lines((0, left), [-Fraction(slope) for slope in slopes], [Fraction(0)] * count)
        return self.program.add(layer, at[0]), self.total(right, scaled)

    def total(self, *nodes: int) -> int:
        n = self.make.nodes[nodes[0]]
        return self.make.add(Add(self.make.name(), nodes, n.shape))

    def terms(self, at: tuple[int, int]) -> tuple[int, int]:
        """Sums of lines and hinges of one value, that nearly cancel at times."""
        a, b, c = (self.random.choice(FACTORS[:7]) for _ in range(3))
        kind = self.random.choice(("cancel", "hinge", "difference"))

        def line(factor: float) -> int:
            return self.lines(at, [Fraction(factor)], [Fraction(0)])

        if kind == "cancel":
            made = self.total(line(a), at[1], line(-a))
            return self.program.add(lambda x: a * x + x - a * x, at[0]), made
        if kind == "difference":
            made = self.total(line(a), line(-b), line(-c))
            return self.program.add(lambda x: x * a - b * x - x * c, at[0]), made
        relu = self.make.activate(at[1], activation("relu"))
        made = self.total(self.lines((0, relu), [Fraction(a)], [Fraction(0)]), line(b))
        return self.program.add(lambda x: a * torch.relu(x) + b * x, at[0]), made

    def scalars(self, at: tuple[int, int]) -> tuple[int, int]:
        """A run of factors, divisors and shifts, written in all the ways there are."""
        factor, shift, place = Fraction(1), Fraction(0), at[0]
        for _ in range(self.random.randint(1, 4)):
            kind, c = (
                self.random.choice(("times", "into", "over", "plus", "from", "minus")),
                self.random.choice(FACTORS),
            )
            s = self.random.choice(SHIFTS)
            if kind in ("times", "into"):
                factor, shift = factor * Fraction(c), shift * Fraction(c)
                place = self.program.add((lambda x, c=c: x * c) if kind == "times" else (lambda x, c=c: c * x), place)
            elif kind == "over":
                factor, shift = factor / Fraction(c), shift / Fraction(c)
                place = self.program.add(lambda x, c=c: x / c, place)
            elif kind == "plus":
                shift = shift + Fraction(s)
                place = self.program.add(lambda x, s=s: x + s, place)
            elif kind == "from":
                factor, shift = -factor, Fraction(s) - shift
                place = self.program.add(lambda x, s=s: s - x, place)
            else:
                shift = shift - Fraction(s)
                place = self.program.add(lambda x, s=s: x - s, place)
        return place, self.lines(at, [factor], [shift])

    def norm(self, at: tuple[int, int]) -> tuple[int, int]:
        """BatchNorm in eval mode, of deviations that are rational."""
        shape, n = self.shape(at), self.shape(at)[0]
        kinds: list[Any] = [nn.BatchNorm1d, nn.BatchNorm1d, nn.BatchNorm2d]
        epsilon = self.random.choice((0.0, 2.0**-10, 1.0))
        deviations = [self.random.choice((1.5, 2.0, 3.0, 7.0, 2.0**20)) for _ in range(n)]
        layer = kinds[len(shape) - 1](n, eps=epsilon, dtype=torch.float64).eval()
        node: Any = self.make.nodes[self.make.scale(at[1])]  # its numbers alone are used
        self.make.nodes.pop()
        with torch.no_grad():
            layer.running_var.copy_(torch.tensor(deviations, dtype=torch.float64) ** 2 - epsilon)
            layer.running_mean.normal_(generator=self.make.weights.generator)
            layer.weight.copy_(node.weight.flatten())
            layer.bias.zero_() if node.bias is None else layer.bias.copy_(node.bias)
        factors = [Fraction(w) / Fraction(d) for w, d in zip(layer.weight.tolist(), deviations, strict=True)]
        means, biases = layer.running_mean.tolist(), layer.bias.tolist()
        shifts = [Fraction(b) - f * Fraction(m) for b, f, m in zip(biases, factors, means, strict=True)]
        return self.program.add(layer, at[0]), self.lines(at, factors, shifts)

    def scaled(self, at: tuple[int, int]) -> tuple[int, int]:
        """A learned number a channel, as a factor or divisor."""
        n, ones = self.shape(at)[0], (1,) * (len(self.shape(at)) - 1)
        values = torch.tensor([self.random.choice(FACTORS) for _ in range(n)], dtype=torch.float64).reshape(n, *ones)
        over = self.random.random() < 0.5
        factors = [1 / Fraction(v) if over else Fraction(v) for v in values.flatten().tolist()]
        step = (lambda x: x / values) if over else (lambda x: x * values)
        return self.program.add(step, at[0]), self.lines(at, factors, [Fraction(0)] * n)

    def conv(self, at: tuple[int, int]) -> tuple[int, int]:
        made = self.make.conv(at[1])
        node: Any = self.make.nodes[made]
        kinds: list[Any] = [None, nn.Conv1d, nn.Conv2d]
        kind, channels, bias = kinds[len(node.kernel)], self.shape(at)[0], node.bias is not None
        even = all(before == after for before, after in node.padding)
        options = {"stride": node.stride, "dilation": node.dilation, "groups": node.groups, "bias": bias}
        if even:
            options |= {"padding": tuple(before for before, _ in node.padding), "padding_mode": node.padding_mode}
        layer = filled(kind(channels, node.weight.shape[0], node.kernel, **options), node)
        place = at[0]
        if not even:
            widths = [width for pair in reversed(node.padding) for width in pair]
            mode = "constant" if node.padding_mode == "zeros" else node.padding_mode
            place = self.program.add(lambda x: F.pad(x, widths, mode), place)
        return self.program.add(layer, place), made

    def transposed(self, at: tuple[int, int]) -> tuple[int, int]:
        made = self.make.transposed(at[1])
        node: Any = self.make.nodes[made]
        kinds: list[Any] = [None, nn.ConvTranspose1d, nn.ConvTranspose2d]
        options: dict[str, Any] = {"stride": node.stride, "dilation": node.dilation, "groups": node.groups}
        layer = kinds[len(node.kernel)](
            self.shape(at)[0], node.shape[0], node.kernel, bias=node.bias is not None, **options
        )
        place = self.program.add(filled(layer, node, bias=False), at[0])
        if any(before or after for before, after in node.padding):
            widths = [-width for pair in reversed(node.padding) for width in pair]
            place = self.program.add(lambda x: F.pad(x, widths), place)
        if node.bias is not None:
            bias = node.bias.reshape(-1, *(1,) * len(node.kernel))
            place = self.program.add(lambda x: x + bias, place)
        return place, made

    def max_pool(self, at: tuple[int, int]) -> tuple[int, int]:
        made = self.make.max_pool(at[1])
        node: Any = self.make.nodes[made]
        kinds: list[Any] = [None, nn.MaxPool1d, nn.MaxPool2d]
        layer = kinds[len(node.kernel)](node.kernel, node.stride, node.padding, node.dilation, ceil_mode=node.ceil_mode)
        return self.program.add(layer, at[0]), made

    def mean_pool(self, at: tuple[int, int]) -> tuple[int, int]:
        """Average pooling with padding that counts or not, windows that stick out, and divisors of any sign."""
        channels, *space = self.shape(at)
        drawn = self.random
        kernel = tuple(min(n, drawn.randint(1, 3)) for n in space)
        padding = tuple(drawn.randint(0, k // 2) for k in kernel)
        stride = tuple(drawn.randint(1, 3) for _ in space)
        ceil, counts = drawn.random() < 0.3, drawn.random() < 0.5
        override = drawn.choice((None, None, 3, -3, 7)) if len(space) == 2 else None
        options = {"ceil_mode": ceil, "count_include_pad": counts} | (
            {"divisor_override": override} if override else {}
        )
        kinds: list[Any] = [None, nn.AvgPool1d, nn.AvgPool2d]
        layer = kinds[len(space)](kernel, stride, padding, **options)
        out = tuple(layer(torch.zeros(1, channels, *space)).shape[2:])
        rows: list[list[Fraction]] = []
        for channel, place in itertools.product(range(channels), itertools.product(*map(range, out))):
            ranges, size = [], 1
            for i, n, k, s, p in zip(place, space, kernel, stride, padding, strict=True):
                start, end = i * s - p, min(i * s - p + k, n + p)
                size *= end - start
                ranges.append(range(max(start, 0), min(end, n)))
            inside = list(itertools.product(*ranges))
            share = Fraction(1, override or (size if counts else len(inside)))
            row = np.full((channels, *space), Fraction(0), dtype=object)
            for taken in inside:
                row[(channel, *taken)] = share
            rows.append(list(row.flat))
        made = self.linear(at, rows, [Fraction(0)] * len(rows), (channels, *out))
        return self.program.add(layer, at[0]), made

    def sort(self, at: tuple[int, int]) -> tuple[int, int]:
        made = self.make.sort(at[1])
        node: Any = self.make.nodes[made]
        shape, group = self.shape(at), node.group

        def step(x: Tensor) -> Tensor:
            return (
                x.reshape(x.shape[0], shape[0] // group, group, *shape[1:]).sort(2).values.reshape(x.shape[0], *shape)
            )

        return self.program.add(step, at[0]), made

    def flat(self, at: tuple[int, int]) -> tuple[int, int]:
        if len(self.shape(at)) == 1:
            return at
        made = self.make.add(Reshape(self.make.name(), (at[1],), (math.prod(self.shape(at)),)))
        return self.program.add(nn.Flatten(), at[0]), made

    def join(self, left: tuple[int, int], right: tuple[int, int]) -> tuple[int, int]:
        if self.shape(left) == self.shape(right):
            kind = self.random.choice(("sum", "sum", "difference", "join"))
            if kind == "sum":
                return self.program.add(lambda a, b: a + b, left[0], right[0]), self.total(left[1], right[1])
            if kind == "difference":
                turned = self.lines(right, [Fraction(-1)], [Fraction(0)])
                return self.program.add(lambda a, b: a - b, left[0], right[0]), self.total(left[1], turned)
        if self.shape(left)[1:] != self.shape(right)[1:]:
            left, right = self.flat(left), self.flat(right)
        shape = (self.shape(left)[0] + self.shape(right)[0], *self.shape(left)[1:])
        made = self.make.add(Concat(self.make.name(), (left[1], right[1]), shape, 0))
        return self.program.add(lambda a, b: torch.cat([a, b], 1), left[0], right[0]), made

    def step(self, at: tuple[int, int]) -> tuple[int, int]:
        steps = [self.activate, self.activate, self.scalars, self.norm, self.scaled]
        if self.shape(at)[0] > 1:
            steps.append(self.sort)
        if len(self.shape(at)) > 1:
            steps += [self.conv, self.conv, self.transposed, self.max_pool, self.mean_pool, self.mean_pool]
        elif self.random.random() < 0.4:
            return self.dense(at, self.random.randint(1, 3))
        return self.random.choice(steps)(at)


def filled(layer: Any, node: Any, bias: bool = True) -> nn.Module:
    """A layer with a node's numbers; without ``bias`` its own is zero."""
    layer = layer.double()
    with torch.no_grad():
        layer.weight.copy_(node.weight)
        if node.bias is not None:
            layer.bias.copy_(node.bias if bias else torch.zeros_like(node.bias))
    return layer


def rationals(rows: Sequence[Sequence[Fraction]]) -> Rationals:
    common = math.lcm(*(value.denominator for row in rows for value in row))
    ints = np.empty((len(rows), len(rows[0])), dtype=object)
    for index, row in enumerate(rows):
        ints[index] = [value.numerator * (common // value.denominator) for value in row]
    return Rationals(ints, Fraction(1, common))


def draw_module(family: str, seed: int) -> Twin:
    """A module of a family: a chain with a branch or two, of one input (a vector or an image) or of several."""
    drawn = random.Random(f"{family} {seed}")
    inputs = drawn.choice(((1,), (1,), (2,), (1, 4), (2, 3), (1, 3, 3), (2, 2, 3)))
    build = Builder(f"{family} {seed}", inputs, EXTREME if "extreme" in family else TAME)
    at = (0, 0)
    for _ in range(drawn.randint(1, 3)):
        root = at
        for _ in range(drawn.randint(1, 2)):
            at = build.step(at)
        if drawn.random() < 0.4:
            at = build.join(at, build.step(root))
    if drawn.random() < 0.7:
        at = build.dense(build.flat(at), drawn.randint(1, 3))
    return Twin(family, seed, build.program.eval(), build.make.graph(f"{family} {seed}"))


def judge_module(twin: Twin) -> list[Outcome]:
    """What is claimed of the Graph that the package reads, against the module's exact Jacobians."""
    try:
        graph = lipbridge.capture(twin.module, twin.graph.input_shape)
    except LipbridgeError as error:
        return [Outcome(twin.family, "capture", "refused", f"{twin}: {error}")]
    except Exception as error:
        return [Outcome(twin.family, "capture", "crashed", f"{twin}: {type(error).__name__}: {error}")]
    return judge_against(Case(twin.family, twin.seed, graph), twin.graph, str(twin))
