"""Networks without negative weights, dead units among them, and units twice: the constant is the product's norm.

With W >= 0 and slopes in [0, 1] each Jacobian lies, entry by entry, between 0 and the product of the weights, which
the network has where all units are active; l_1, l_2 and l_inf operator norms never fall when entries grow.
"""

from __future__ import annotations

import random
from collections.abc import Iterator

import torch
from torch import Tensor

from lipbridge.auditing.instance import Instance, Steep
from lipbridge.auditing.networks import Layer, behind, chain, convolutions, matrix, whole

#: Widths of the random networks.
WIDTHS = ((3, 5, 1), (4, 6, 4, 2), (2, 8, 8, 8, 3), (5, 16, 16, 4))


def _layers(generator: random.Random, widths: tuple[int, ...]) -> list[tuple[Tensor, Tensor]]:
    pairs = list(zip(widths[1:], widths[:-1], strict=True))
    return [(whole(generator, m, n, 0, 4), whole(generator, 1, m, 0, 2)[0]) for m, n in pairs]


def _relu(layers: list[tuple[Tensor, Tensor]]) -> list[Layer]:
    found: list[Layer] = []
    for layer in layers:
        found += [layer, "relu"]
    return found[:-1]


def _ones(n: int) -> Tensor:
    return torch.ones(n, dtype=torch.float64)


def nonnegative(seed: int) -> Iterator[Instance]:
    """Random weights of quarters from 0 to 1, biases from 0 to a half."""
    generator = random.Random(1000 * seed + 1)
    for widths in WIDTHS:
        graph = chain(*_relu(_layers(generator, widths)))
        name = "nonnegative-" + "-".join(map(str, widths))
        yield from Steep("nonnegative", name, graph, _ones(widths[0]), 0.5, mixed=True).instances()


def dead_and_duplicated(seed: int) -> Iterator[Instance]:
    """The same with units that are never active or cancel each other, behind huge weights, and units in copies."""
    generator = random.Random(1000 * seed + 2)
    family = "dead-and-duplicated"
    for index, (n, h, m) in enumerate([(3, 4, 1), (4, 6, 2)]):
        first, second, last = _layers(generator, (n, h, h, m))
        # Rows that are negative on what relu gives, and biases below zero: never active, whatever the input.
        dead = torch.cat([-whole(generator, 2, h, 0, 4), torch.zeros(1, h, dtype=torch.float64)])
        W, b = torch.cat([second[0], dead]), torch.cat([second[1], matrix([-1.0, -0.25, -0.5])])
        out = torch.cat([last[0], whole(generator, m, 3, -4000, 4000)], 1)
        graph = chain(first, "relu", (W, b), "relu", (out, last[1]))
        yield from Steep(family, f"dead-{index}", graph, _ones(n), 0.5).instances()
        # Each unit of the second layer four times, its quarter each.
        W, b, out = second[0].repeat(4, 1), second[1].repeat(4), last[0].repeat(1, 4) / 4
        graph = chain(first, "relu", (W, b), "relu", (out, last[1]))
        yield from Steep(family, f"copies-{index}", graph, _ones(n), 0.5).instances()
        # A copy of each with plus and with minus 1000 times the weight, which is nothing.
        W, b = second[0].repeat(3, 1), second[1].repeat(3)
        graph = chain(first, "relu", (W, b), "relu", (torch.cat([last[0], 1000 * last[0], -1000 * last[0]], 1), None))
        yield from Steep(family, f"cancelled-{index}", graph, _ones(n), 0.5).instances()


def contractive_convolutions(seed: int) -> Iterator[Instance]:
    """Stacks of convolutions whose kernels sum to less than one, in one and two axes, around the circle or with zeros.

    A tool that leaves them out, or counts a kernel's norm for a convolution's, is wrong on them.
    """
    generator = random.Random(1000 * seed + 3)
    family = "contractive-convolutions"
    settings = [
        ("circle", (1, 8), (1, 1, 3), "circular", 1, 2),
        ("line", (1, 8), (1, 1, 3), "zeros", 1, 3),
        ("square", (1, 4, 4), (1, 1, 3, 3), "zeros", 1, 2),
        ("torus", (1, 4, 4), (1, 1, 3, 3), "circular", 1, 2),
        ("channels", (2, 6), (2, 2, 3), "zeros", 1, 2),
        ("strided", (1, 9), (1, 1, 3), "zeros", 2, 1),
    ]
    for name, shape, kernel, mode, stride, depth in settings:
        size = int(torch.tensor(kernel).prod()) // kernel[0]
        kernels = [whole(generator, kernel[0], size, 1, 4, 4 * size + 4).reshape(kernel) for _ in range(depth)]
        nodes = convolutions(shape, [matrix((32 * k).round() / 32) for k in kernels], 1, mode, stride=stride)
        flat = nodes[-1].shape[0]
        graph = behind(nodes, (whole(generator, 2, flat, 0, 2), None))
        base = torch.ones(shape, dtype=torch.float64)
        yield from Steep(family, name, graph, base, 0.5).instances()


def subnormal_and_huge(seed: int) -> Iterator[Instance]:
    """Weights of 2^-1074 to 2^1000 whose product is an ordinary number, or a tiny one: what under- or overflows on the
    way, in a Gram matrix or in a product of norms, shows.
    """
    generator = random.Random(1000 * seed + 4)
    exponents = {
        "tiny-then-huge": (-1000, 990),
        "huge-then-tiny": (900, -890),
        "subnormal": (-1074, 1000, 80),
        "gram-underflows": (-600, 3),
        "product-overflows": (700, 700, -700, -695),
        "product-underflows": (-700, -700, 700, 695),
        "both": (-520, 520, -520, 520),
    }
    for name, powers in exponents.items():
        widths = [2] * len(powers) + [2]
        layers: list[Layer] = []
        for power in powers:
            layers += [(whole(generator, 2, 2, 1, 3, 1) * 2.0**power, None), "relu"]
        graph = chain(*layers[:-1])
        yield from Steep("subnormal-and-huge", name, graph, _ones(widths[0]), 0.5).instances()


__all__ = ["contractive_convolutions", "dead_and_duplicated", "nonnegative", "subnormal_and_huge"]
