"""Bounds of nodes against exact and coarse arithmetic."""

from __future__ import annotations

import math
import random
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import mpmath
import pytest
import torch
from torch import Tensor

from lipbridge.activations import slopes
from lipbridge.activations.activation import Component, Term, derive
from lipbridge.activations.registry import activation, activation_names
from lipbridge.graph.evaluation import evaluate
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
)
from lipbridge.propagation.rules import (
    NodeBounds,
    norm_up,
)
from lipbridge.rigor.running_error import Enclosure
from lipbridge.rounding import scalars as rounding
from lipbridge.vocabulary import Norm
from tests.support.coarse import coarse, coarse_arithmetic

#: Far more than what the reference rounds, and nothing beside any margin.
ROOM = 2.0**-250


MODES = ("zeros", "circular", "reflect", "replicate")


@contextmanager
def arithmetic(direction: str | None, worst: str | None = None) -> Iterator[None]:
    """float64 for None, else 24 bits; the margins that are so many units of roundoff grow with the unit."""
    if direction is None:
        yield
        return
    with coarse_arithmetic(direction, worst), pytest.MonkeyPatch.context() as patch:
        grown = rounding.UNIT / 2.0**-53
        known = {"WIDER": slopes.WIDER, "SLACK": slopes.SLACK}
        for module in [m for name, m in sys.modules.items() if name.startswith("lipbridge")]:
            for name, value in known.items():
                if vars(module).get(name) == value:
                    patch.setattr(module, name, value * grown)
        yield


def bends() -> list[tuple[Component, ...]]:
    """Activations beside the registry's: parameters, kinks away from zero, sums, several components."""
    clip = (Term("relu", 1.0, 1.0, 1.0), Term("relu", -1.0, 1.0, -0.5))
    return [
        ((Term("leaky_relu", parameters=(-1.5,)),),),
        ((Term("leaky_relu", parameters=(2.5,)),),),
        ((Term("elu", 1.5, -0.5, 0.25, (2.0,)),),),
        ((Term("softplus", 1.0, 1.0, 0.0, (3.0,)),),),
        ((Term("abs", 0.75, -2.0, 0.5),),),
        (clip,),
        ((*clip, Term("identity", 0.5, 1.0, -0.125)),),
        ((Term("relu", 3.0, 0.25, -0.375),), (Term("identity"),)),
        ((Term("tanh", -2.0, 0.5, 1.0), Term("relu", 1.0, -1.0, 0.25)),),
        ((Term("sin", 1.0, 3.0, 1.0),), (Term("gelu", -1.0),), clip),
        ((Term("celu", 1.0, 1.0, 0.0, (0.25,)), Term("identity", -1.0)),),
    ]


class Maker:
    """Random nodes whose weights are numbers of 24 bits, with every option drawn."""

    def __init__(self, seed: int) -> None:
        self.random, self.generator = random.Random(seed), torch.Generator().manual_seed(seed)
        self.nodes: list[Node] = []

    def weight(self, *shape: int) -> Tensor:
        W = torch.randn(*shape, generator=self.generator, dtype=torch.float64)
        kind = self.random.choice(("random", "random", "rows that cancel", "swamped"))
        if kind == "rows that cancel" and shape[-1] > 1:
            W[..., 1] = -W[..., 0] * (1.0 + 2.0**-12)
        if kind == "swamped":
            W = torch.where(torch.rand(shape, generator=self.generator) < 0.7, W * 2.0**-22, W)
        return coarse(W)

    def bias(self, n: int) -> Tensor | None:
        return self.weight(n) * self.random.choice((1.0, 100.0)) if self.random.random() < 0.6 else None

    def add(self, node: Node) -> int:
        """Append a node with the shape of what it gives."""
        sources = [torch.zeros(1, *self.nodes[i].shape, dtype=torch.float64) for i in node.inputs]
        self.nodes.append(replace(node, shape=tuple(evaluate(node, sources).shape[1:])))
        return len(self.nodes) - 1

    def step(self, index: int) -> int:
        shape, draw = self.nodes[index].shape, self.random
        kinds = ["bend", "bend", "bend", "sort", "normalize", "softmax", "gather", "diagonal"]
        kinds += ["conv", "conv", "transposed", "pool", "pool", "turn"] if len(shape) > 1 else ["dense"] * 5
        kind = draw.choice(kinds)
        name, at = f"{kind}{len(self.nodes)}", (index,)
        axes = shape[1:]

        def each(*choices: int) -> tuple[int, ...]:
            return tuple(draw.choice(choices) for _ in axes)

        if kind == "dense":
            m = draw.randint(1, 4)
            return self.add(Dense(name, at, (), self.weight(m, shape[-1]), self.bias(m)))
        if kind == "conv":
            groups = draw.choice([g for g in (1, 2) if shape[0] % g == 0])
            out, kernel, dilation = groups * draw.randint(1, 2), each(1, 2, 3), each(1, 1, 2)
            mode = draw.choice(MODES)
            most = [n - 1 if mode == "reflect" else n for n in axes]
            padding = tuple((draw.randint(0, min(2, m)), draw.randint(0, min(2, m))) for m in most)
            spans = zip(axes, padding, kernel, dilation, strict=True)
            if any(n + sum(pair) < (k - 1) * d + 1 for n, pair, k, d in spans):
                kernel = (1,) * len(axes)
            W, b = self.weight(out, shape[0] // groups, *kernel), self.bias(out)
            return self.add(Conv(name, at, (), W, b, each(1, 1, 2), padding, dilation, groups, mode))
        if kind == "transposed":
            groups = draw.choice([g for g in (1, 2) if shape[0] % g == 0])
            out = groups * draw.randint(1, 2)
            W, b = self.weight(shape[0], out // groups, *each(1, 2, 3)), self.bias(out)
            node = ConvTranspose(name, at, (), W, b, each(1, 2), (), each(1, 2), groups)
            cuts = [(draw.randint(0, 1), draw.choice((0, 1, -1))) for _ in axes]
            lengths = node.spread(shape)
            fits = all(n - sum(cut) >= 1 for n, cut in zip(lengths, cuts, strict=True))
            return self.add(replace(node, padding=tuple(cuts) if fits else ((0, 0),) * len(axes)))
        if kind == "pool":
            kernel, dilation = each(1, 2, 3), each(1, 1, 2)
            padding = tuple(draw.randint(0, k // 2) for k in kernel)
            spans = zip(axes, padding, kernel, dilation, strict=True)
            if any(n + 2 * p < (k - 1) * d + 1 for n, p, k, d in spans):
                kernel, padding, dilation = (1,) * len(axes), (0,) * len(axes), (1,) * len(axes)
            return self.add(MaxPool(name, at, (), kernel, each(1, 2), padding, dilation, draw.random() < 0.5))
        if kind == "diagonal":
            W, ones = self.weight(shape[0], 1), (1,) * len(axes)
            zero = ((0, 0),) * len(axes)
            return self.add(
                Conv(name, at, (), W.reshape(-1, 1, *ones), self.bias(shape[0]), ones, zero, ones, shape[0])
            )
        if kind == "gather":
            index_ = torch.randint(-1, math.prod(shape), (math.prod(shape),), generator=self.generator)
            self.nodes.append(Gather(name, at, shape, index_))
            return len(self.nodes) - 1
        if kind == "sort":
            return self.add(GroupSort(name, at, (), draw.choice([g for g in (1, 2, 3) if shape[0] % g == 0])))
        if kind == "normalize":
            groups = draw.choice((1, shape[0]))
            return self.add(Normalize(name, at, (), groups, draw.choice((1e-5, 0.1, 10.0)), draw.random() < 0.5))
        if kind == "softmax":
            return self.add(Softmax(name, at, (), draw.randrange(len(shape)), draw.random() < 0.5))
        if kind == "turn":
            axes_ = (*range(1, len(shape)), 0)
            return self.add(Reshape(name, at, tuple(shape[i] for i in axes_), axes_))
        components = (
            draw.choice(bends()) if draw.random() < 0.5 else activation(draw.choice(activation_names())).components
        )
        return self.add(Elementwise(name, at, (), derive("bend", components), draw.randrange(len(shape))))

    def flat(self, index: int) -> int:
        node = Reshape(f"flat{len(self.nodes)}", (index,), (math.prod(self.nodes[index].shape),))
        return self.add(node) if len(self.nodes[index].shape) > 1 else index

    def join(self, left: int, right: int) -> int:
        shapes = (self.nodes[left].shape, self.nodes[right].shape)
        name = f"join{len(self.nodes)}"
        if shapes[0] == shapes[1] and self.random.random() < 0.6:
            return self.add(Add(name, (left, right, *([right] if self.random.random() < 0.3 else [])), ()))
        if shapes[0] == shapes[1]:
            return self.add(Concat(name, (left, right), (), self.random.randrange(len(shapes[0]))))
        return self.add(Concat(name, (self.flat(left), self.flat(right)), (), 0))


def moved(a: list[Any], b: list[Any], norm: Norm) -> Any:
    sizes = [abs(x - y) for x, y in zip(a, b, strict=True)]
    if norm == 2:
        return mpmath.sqrt(mpmath.fsum(s * s for s in sizes))
    return mpmath.fsum(sizes) if norm == 1 else max(sizes)


class Boxes(Maker):
    """Nodes of every kind, and boxes for what they read."""

    def normal(self, *shape: int) -> Tensor:
        return torch.randn(*shape, generator=self.generator, dtype=torch.float64)

    def box(self, shape: tuple[int, ...], norm: Norm, k: int = 2, *, known: str = "both") -> NodeBounds:
        """Intervals of several widths around what is known of the centre: both, or only the ``box`` or ``distance``."""
        value = coarse(self.normal(k, *shape) * self.random.choice((1.0, 30.0)))
        width = torch.exp2(torch.randint(-24, 2, (k, *shape), generator=self.generator).double())
        error = coarse(width * 2.0 ** -self.random.randint(1, 12))
        lower, upper = (coarse(value + side * (width + error)) for side in (-1.0, 1.0))
        infinite = torch.full_like(lower, math.inf)
        distance = coarse(norm_up(upper - lower, norm).reshape(k, -1).amax(1) * 0.25)
        if known == "box":
            distance = torch.full_like(distance, math.inf)
        if known == "distance":
            lower, upper = -infinite, infinite
        return NodeBounds(lower, upper, Enclosure(value, error), distance)


def linear_node(seed: int) -> tuple[Boxes, Node]:
    """A dense layer, a convolution or a transposed one, in every option."""
    make = Boxes(seed)
    shape = make.random.choice(((1,), (4,), (40,), (2, 6), (1, 3, 4), (3, 5)))
    make.nodes.append(Input("input", (), shape))
    while True:
        index = make.step(0)
        node = make.nodes[index]
        if isinstance(node, Dense | Conv | ConvTranspose):
            return make, node
        del make.nodes[index:]


def nonlinear_node(seed: int) -> tuple[Boxes, Node]:
    make = Boxes(seed)
    shape = make.random.choice(((4,), (6,), (2, 5), (1, 3, 4)))
    make.nodes.append(Input("input", (), shape))
    while True:
        index = make.step(0)
        node = make.nodes[index]
        if isinstance(node, MaxPool | GroupSort | Normalize | Softmax | Elementwise | Gather | Reshape):
            return make, node
        del make.nodes[index:]
