"""Random Graphs with branches: sums, joins, convolutions, pooling, sorting, normalisation, and nasty weights."""

from __future__ import annotations

import math
import random
from dataclasses import replace

import torch
from torch import Tensor

import lipbridge
from lipbridge.activations.registry import activation_names
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
    Normalize,
    Reshape,
    Softmax,
)

FLAVOURS = ("random", "random", "zero", "huge", "tiny", "ill_conditioned", "dead", "identity")
MODES = ("zeros", "circular", "reflect", "replicate")


class _Maker:
    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.generator = torch.Generator().manual_seed(seed)
        self.further = random.Random(f"further {seed}")  # kinds that came later leave the others as they were
        self.nodes: list[Node] = []

    def weight(self, *shape: int) -> Tensor:
        fan = max(1, math.prod(shape[1:]))
        W = torch.randn(*shape, generator=self.generator, dtype=torch.float64) / math.sqrt(fan)
        flavour = self.random.choice(FLAVOURS)
        if flavour == "ill_conditioned":
            return W * torch.logspace(0, -9, shape[0], dtype=torch.float64).reshape(-1, *(1,) * (len(shape) - 1))
        return W * {"zero": 0.0, "huge": 1e50, "tiny": 1e-50}.get(flavour, 1.0)

    def bias(self, n: int) -> Tensor | None:
        kind = self.random.choice(("none", "random", "dead"))
        if kind == "none":
            return None
        return torch.randn(n, generator=self.generator, dtype=torch.float64) - (1e3 if kind == "dead" else 0.0)

    def add(self, make) -> int:
        """Append a node whose shape is what it gives."""
        node = make(())
        sources = [torch.zeros(1, *self.nodes[i].shape, dtype=torch.float64) for i in node.inputs]
        self.nodes.append(make(tuple(evaluate(node, sources).shape[1:])))
        return len(self.nodes) - 1

    def step(self, index: int) -> int:
        """One more node on top of ``index``."""
        shape, name = self.nodes[index].shape, f"n{len(self.nodes)}"
        kinds = ["activation", "sort", "normalize", "scale", *([] if self.copied(index) else ["gather"])]
        kinds += ["conv", "conv", "pool", "reshape", "transposed"] if len(shape) > 1 else ["dense", "dense", "dense"]
        kind = self.random.choice(kinds)
        at, rank = (index,), len(shape) - 1
        if kind == "dense":
            m = self.random.choice((shape[0], self.random.randint(1, 5)))
            W, b = self.weight(m, shape[0]), self.bias(m)
            return self.add(lambda s: Dense(name, at, s, W, b))
        if kind == "conv":
            groups = self.random.choice([g for g in (1, 2) if shape[0] % g == 0])
            out = groups * self.random.randint(1, 2) if self.random.random() < 0.4 else shape[0]
            kernel = tuple(self.random.randint(1, 3) for _ in range(rank))
            padding = tuple((k // 2, k - 1 - k // 2) for k in kernel)
            fits = all(n > 2 for n in shape[1:])
            mode = self.random.choice(MODES) if fits else "zeros"
            stride = tuple(self.random.choice((1, 1, 2)) for _ in range(rank))
            W, b = self.weight(out, shape[0] // groups, *kernel), self.bias(out)
            return self.add(lambda s: Conv(name, at, s, W, b, stride, padding, (1,) * rank, groups, mode))
        if kind == "transposed":
            groups = self.random.choice([g for g in (1, 2) if shape[0] % g == 0])
            kernel = tuple(self.random.randint(1, 3) for _ in range(rank))
            stride = tuple(self.random.choice((1, 1, 2)) for _ in range(rank))
            dilation = tuple(self.random.choice((1, 1, 2)) for _ in range(rank))
            per_group = self.random.randint(1, 2)
            W, b = self.weight(shape[0], per_group, *kernel), self.bias(groups * per_group)
            node = ConvTranspose(name, at, (groups * per_group,), W, b, stride, (), dilation, groups)
            lengths = zip(node.spread(shape), stride, strict=True)
            padding = tuple(self.cut(n, step - 1) for n, step in lengths)
            return self.add(lambda s: replace(node, shape=s or node.shape, padding=padding))
        if kind == "gather":
            size = math.prod(shape)
            to = shape if self.random.random() < 0.5 else (*shape[:-1], self.random.randint(1, 4))
            index = torch.randint(-1, size, (math.prod(to),), generator=self.generator)
            return self.add(lambda s: Gather(name, at, to, index))
        if kind == "scale":
            w, b = self.weight(shape[0], 1), self.bias(shape[0])
            ones = (1,) * rank
            w = w.reshape(-1, 1, *ones)
            return self.add(lambda s: Conv(name, at, s, w, b, ones, ((0, 0),) * rank, ones, shape[0]))
        if kind == "pool":
            kernel = tuple(min(n, self.random.randint(1, 3)) for n in shape[1:])
            padding = tuple(self.random.randint(0, k // 2) for k in kernel)
            stride = tuple(self.random.randint(1, 2) for _ in range(rank))
            return self.add(lambda s: MaxPool(name, at, s, kernel, stride, padding, (1,) * rank))
        if kind == "sort":
            group = self.random.choice([g for g in (1, 2, 3) if shape[0] % g == 0])
            return self.add(lambda s: GroupSort(name, at, s, group))
        if kind == "normalize":
            groups, epsilon = self.random.choice((1, shape[0])), self.random.choice((1e-5, 0.1, 10.0))
            found = self.further.choice(("centred", "centred", "root mean square", "softmax", "log-softmax"))
            if "softmax" in found:
                axis = self.further.randrange(len(shape))
                return self.add(lambda s: Softmax(name, at, s, axis, found == "log-softmax"))
            return self.add(lambda s: Normalize(name, at, s, groups, epsilon, found == "centred"))
        if kind == "reshape":
            return self.add(lambda s: Reshape(name, at, s or (math.prod(shape),)))
        act = lipbridge.activation(self.random.choice(activation_names()))
        return self.add(lambda s: Elementwise(name, at, s, act, 0))

    def copied(self, index: int) -> bool:
        """Whether a node holds copies; copies of these are copies of one node before, as readers write them."""
        node = self.nodes[index]
        return isinstance(node, Gather) or (isinstance(node, Reshape) and self.copied(node.inputs[0]))

    def cut(self, length: int, most: int) -> tuple[int, int]:
        """How much is cut off (before, after) an axis, or at most so much put on; something is left."""
        before, after = self.random.choice((0, 0, 1)), self.random.choice((0, 0, 1, -most))
        return (before, after) if length - before - after >= 1 else (0, 0)

    def join(self, left: int, right: int) -> int:
        """The sum of two nodes if they fit, else their concatenation after flattening if need be."""
        name, shapes = f"n{len(self.nodes)}", (self.nodes[left].shape, self.nodes[right].shape)
        if shapes[0] == shapes[1] and self.random.random() < 0.7:
            return self.add(lambda s: Add(name, (left, right), s))
        if shapes[0][1:] != shapes[1][1:]:
            left, right = (self.flat(i) for i in (left, right))
        return self.add(lambda s: Concat(name, (left, right), s, 0))

    def flat(self, index: int) -> int:
        shape = self.nodes[index].shape
        if len(shape) == 1:
            return index
        return self.add(lambda s: Reshape(f"n{len(self.nodes)}", (index,), (math.prod(shape),)))


def dag(seed: int) -> Graph:
    """A Graph of some ten nodes with one to three joins, on a vector or a small image."""
    make = _Maker(seed)
    shape = make.random.choice(((3,), (4,), (2, 5), (2, 4, 3), (1, 3, 3)))
    make.nodes.append(Input("input", (), shape))
    index = 0
    for _ in range(make.random.randint(1, 3)):
        root = index
        for _ in range(make.random.randint(0, 2)):
            index = make.step(index)
        other = root
        for _ in range(make.random.randint(0, 2)):
            other = make.step(other)
        index = make.join(index, other)
    for _ in range(make.random.randint(0, 2)):
        index = make.step(index)
    nodes = list(make.nodes)
    if index != len(nodes) - 1:
        raise AssertionError("the last node made is the output")
    return Graph(tuple(nodes), f"dag {seed}")
